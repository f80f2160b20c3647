"""The workers at work: gives out packs of trials, watches limits and signals, decides what a death or a fault means.

A pack of several that ends otherwise than by its members' outcomes says nothing of any of them: each runs again, alone.

One thread and one loop. What happened is appended to the sweep's events.jsonl before anything is made of it; what a
trial's outcome is, its own files say.
"""

import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_sweep.config.schema import Launch
from lora_sweep.errors import EXIT_INTERRUPTED
from lora_sweep.runs import files, results
from lora_sweep.runs.crash_points import crash_point
from lora_sweep.runs.locks import holder
from sweep.engines.event_log import Ledger
from sweep.engines.local.worker_process import COMMAND, Worker, as_job
from sweep.engines.queue import MAX_DEATHS, Queue, Waiting, can_halve
from sweep.resources import pack_size
from sweep.resources.machine import Slot, build_worker_environment
from sweep.status.live import Screen
from sweep.status.progress import Board, Running
from sweep.store import trial_state
from sweep.trials import Key, PlannedTrial

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
TICK_SECONDS = 0.2
BUSY_SECONDS = 1.0  # until a trial that another sweep runs is asked for again
NO_MEMORY = "the system killed the worker process for its memory"
FALSE_STARTS = 3  # workers in a row that died before they began a trial: the fault is no trial's


class Stopped(Exception):
    """The sweep ended before its trials did; its message says why. What is done is kept.

    ``can_go_on``: whether the same command would, as after a signal.
    """

    def __init__(self, why: str, can_go_on: bool = True) -> None:
        super().__init__(why)
        self.can_go_on = can_go_on


@dataclass
class Crew:
    """Runs trials on places until each has an outcome.

    Args:
        places: a worker each; a place may stand there more than once.
        status: of every trial of the plan, by key: the states at the start, and then the outcomes.
    """

    runs: Path
    name: str
    settings: Launch
    places: list[Slot]
    queue: Queue
    status: dict[Key, str]
    screen: Screen
    board: Board
    command: Sequence[str] = COMMAND
    workers: dict[int, Worker] = field(default_factory=dict)
    stops: int = 0  # signals that asked to stop
    stopping: str | None = None  # why nothing new starts
    false_starts: int = 0

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.runs, self.name, self.status, self.board)

    def run(self) -> None:
        """Run everything that waits.

        Raises:
            Stopped: a signal, a disk that takes no more, or workers that cannot start.
        """
        self.ledger.note("begin", pid=os.getpid(), waiting=len(self.queue.waiting))
        with selectors.DefaultSelector() as self.selector, self.signals():
            try:
                while self.queue.waiting or self.workers:
                    if self.stopping and not self.workers:
                        break
                    self.turn()
            finally:
                for worker in self.workers.values():
                    worker.kill()
                    while worker.exit_code() is None:
                        time.sleep(0.01)
                files.progress_file(self.runs, self.name).unlink(missing_ok=True)
        if self.stopping:
            raise Stopped(self.stopping, can_go_on=self.false_starts < FALSE_STARTS)
        self.ledger.note("finish", counts=self.board.counts)

    def turn(self) -> None:
        """One round: hear, reap, watch, give out, show."""
        if self.stops:
            self.obey_signal()
        self.give_out()
        for key, _ in self.selector.select(TICK_SECONDS):
            if isinstance(key.data, int):
                if key.data in self.workers:
                    self.hear(self.workers[key.data])
            else:
                key.data.recv(64)
        for worker in list(self.workers.values()):
            if worker.exit_code() is not None:
                self.hear(worker)
                self.bury(worker)
            else:
                self.watch(worker)
        self.show()

    # --- giving out ----------------------------------------------------------------------------------------------

    def give_out(self) -> None:
        """A pack for every idle worker, a worker for every place while trials wait; the word to end for the rest."""
        for number in range(len(self.places)):
            worker = self.workers.get(number)
            if worker is not None and (worker.items or worker.ending):
                continue
            if self.stopping:
                if worker is not None:
                    worker.end()
                continue
            running = [item for each in self.workers.values() for item in each.items.values()]
            pack = self.next_pack(number, worker.loaded if worker else None, running)
            if pack:
                self.start(worker or self.hire(number), pack)
            elif worker is not None and not self.queue.waiting and not running:
                worker.end()

    def next_pack(self, number: int, loaded: str | None, running: list[Waiting]) -> list[Waiting]:
        """What the worker of a place runs next, without those that have died too often."""
        place = self.places[number]
        room = pack_size.limit_pack_memory(place, self.places.count(place))
        busy = sum(bool(each.items) for each in self.workers.values())
        workers = len(self.places)
        share = pack_size.share_waiting_trials(len(self.queue.waiting), len(running), workers, workers - busy)
        most = pack_size.limit_pack_members(self.settings.pack, room, share)
        pack = []
        for item in self.queue.take(
            loaded, running, time.monotonic(), most, room, pack_size.count_member_threads(place)
        ):
            if trial_state.deaths(trial_state.setbacks_of(item.trial, self.runs)) < MAX_DEATHS:
                pack.append(item)
            else:  # the orchestrator died before it could say so
                self.fail(item.trial, "killed", f"its worker died {MAX_DEATHS} times; see its log.txt")
        return pack

    def hire(self, number: int) -> Worker:
        place = self.places[number]
        variables = build_worker_environment(place, self.places.count(place), os.cpu_count() or 1)
        worker = Worker.start(number, place, variables, self.runs, self.name, self.command)
        self.workers[number] = worker
        self.selector.register(worker.output, selectors.EVENT_READ, number)
        return worker

    def start(self, worker: Worker, pack: list[Waiting]) -> None:
        jobs = []
        for item in pack:
            trial, setbacks = item.trial, trial_state.setbacks_of(item.trial, self.runs)
            halves = self.settings.on_oom == "halve_batch"
            halvings = Counter(each.get("stage") for each in setbacks if halves and each.get("how") == "oom")
            deaths = trial_state.deaths(setbacks)
            jobs.append(as_job(trial, stages=item.stages, halvings=dict(halvings), failed_attempts=deaths))
            self.board.running[trial.key] = Running(trial.trial_id, trial.label, worker.place.name, time.time())
            self.ledger.set_status(trial, "running")
        crash_point("before job")
        worker.give(pack, jobs)

    # --- hearing -------------------------------------------------------------------------------------------------

    def hear(self, worker: Worker) -> None:
        """Take in what a worker said."""
        for event in worker.events():
            key = str(event.get("trial_id")), str(event.get("eval_id"))
            item, running, kind = worker.items.get(key), self.board.running.get(key), event.get("event")
            if kind == "say":
                self.screen.say(str(event["text"]))
            elif kind == "start" and item is not None:
                worker.started.add(key)
                self.false_starts = 0
                self.ledger.note("start", item.trial, worker=worker.number + 1, stages=item.stages)
            elif kind == "phase" and running is not None:
                running.phase, running.step, running.steps, running.loss = event["phase"], None, None, None
                worker.stage = "evaluate" if event["phase"] == "writing" else worker.stage
            elif kind == "step" and running is not None:
                for name in ("step", "steps", "loss", "tokens_per_second"):
                    setattr(running, name, event.get(name))
            elif kind == "disk":
                worker.ending = True
                self.stop_all(f"nothing can be written: {event['reason']}")
            elif kind == "end" and item is not None:
                self.ended(worker, item, str(event["status"]), str(event.get("reason")))

    def ended(self, worker: Worker, item: Waiting, status: str, reason: str) -> None:
        """A trial's stages are over: file what came of it, and let what is to be continued wait."""
        crash_point("outcome heard")
        trial, several = item.trial, worker.given > 1
        self.release(worker, item)
        if status == "busy":
            self.wait_for_others(item)
        elif status == "apart":
            self.part([item], reason)
        elif status == "trained":
            self.ledger.note("end", trial, status=status, sha256=trial_state.result_hash(trial, self.runs))
            self.queue.put_back(Waiting(trial, trained=True, alone=item.alone))
        elif status == "preempted" and worker.timeout:
            if several:
                self.part([item], worker.timeout)
            else:
                self.fail(trial, "timeout", worker.timeout)
        elif status == "preempted" and not self.stopping:  # somebody else's signal hit the worker
            self.ledger.note("preempted", trial)
            self.queue.put_back(item)
        elif status == "oom" and self.settings.on_oom == "halve_batch" and self.halve(item, worker.stage):
            pass
        else:
            self.ledger.ended(trial, status, "end" if trial.key in worker.started else "found")  # by another sweep
            self.ledger.durations.append((time.monotonic() - worker.since) / worker.given)
        if status in ("oom", "preempted", "apart"):
            worker.ending = True  # it ends by itself: after running out of memory, what it holds is not surely freed
        elif worker.stop_by is not None:
            worker.end()  # it was asked to stop, and would stop its next trial

    def part(self, items: Iterable[Waiting], reason: str) -> None:
        """Let the members of a pack wait for a process of their own, whatever it was that went wrong."""
        for item in items:
            crash_point("apart seen")
            self.ledger.setback(item.trial, "apart", reason=reason)
            self.screen.say(f"{item.trial.label}: to run again, alone: {reason}")
            crash_point("apart kept")
            self.queue.put_back(Waiting(item.trial, trial_state.is_trained(item.trial, self.runs), alone=True))

    def wait_for_others(self, item: Waiting) -> None:
        """Another sweep has the trial: its result is ours too once it is there."""
        trial = item.trial
        if results.is_settled(self.runs, *trial.key):
            status = str(results.read_outcome(self.runs, *trial.key).status)
            self.ledger.set_status(trial, status)
            self.ledger.note("found", trial, status=status)
            return
        if not item.not_before:
            by = holder(files.trial_lock(self.runs, trial.trial_id))
            self.screen.say(f"{trial.label}: waits for {by}, which runs it")
        item.not_before = time.monotonic() + BUSY_SECONDS
        self.queue.waiting.append(item)

    def halve(self, item: Waiting, stage: str) -> bool:
        """Let the trial wait for another go with half the batch, if that can help."""
        before = trial_state.setbacks_of(item.trial, self.runs)
        done = sum(each.get("how") == "oom" and each.get("stage") == stage for each in before)
        if not can_halve(item.trial, stage, done):
            return False
        self.ledger.setback(item.trial, "oom", stage=stage)
        self.screen.say(f"{item.trial.label}: out of memory, once more with half the batch")
        trained = item.trained or (stage == "evaluate" and trial_state.is_trained(item.trial, self.runs))
        self.queue.put_back(Waiting(item.trial, trained, alone=True))
        return True

    # --- deaths and limits ---------------------------------------------------------------------------------------

    def bury(self, worker: Worker) -> None:
        """A worker's process is gone: whatever it ran is retried, or has found its end."""
        self.selector.unregister(worker.output)
        worker.close()
        del self.workers[worker.number]
        items = list(worker.items.values())
        for item in items:
            self.release(worker, item)
        code = worker.process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        no_memory = worker.ran_out_of_memory()
        if not items or (self.stopping and not worker.timeout):
            return
        item = items[0]
        if worker.given > 1 and (worker.started or worker.timeout or no_memory):
            self.part(items, worker.timeout or (NO_MEMORY if no_memory else f"the worker process ended with {how}"))
        elif worker.timeout:
            self.fail(item.trial, "timeout", worker.timeout)
        elif no_memory:
            if not (self.settings.on_oom == "halve_batch" and self.halve(item, worker.stage)):
                self.fail(item.trial, "oom", NO_MEMORY)
        elif not worker.started:
            self.false_start(items, how)
        else:
            self.death(item, how)

    def death(self, item: Waiting, how: str) -> None:
        """A worker died over the one trial that it was given: a retry, or the end."""
        trial = item.trial
        crash_point("death seen")
        self.ledger.setback(trial, "death", signal=how)
        crash_point("death kept")
        deaths = trial_state.deaths(trial_state.setbacks_of(trial, self.runs))
        if deaths < MAX_DEATHS:
            retry = f"retry {deaths} of {MAX_DEATHS - 1}"
            self.screen.say(f"{trial.label}: its worker ended with {how}; {retry}")
            self.queue.put_back(Waiting(trial, trial_state.is_trained(trial, self.runs), alone=True))
        else:
            reason = f"its worker ended with {how}, for the {deaths}. time; see trials/{trial.trial_id}/log.txt"
            self.fail(trial, "killed", reason)

    def false_start(self, items: list[Waiting], how: str) -> None:
        """A worker that died before it began anything: no trial's fault."""
        self.false_starts += 1
        for item in reversed(items):
            self.ledger.note("false start", item.trial, how=how)
            self.queue.put_back(item)
        if self.false_starts >= FALSE_STARTS:
            log = files.report_folder(self.runs, self.name) / "worker-1.log"
            self.stop_all(f"workers do not start ({how}); see {log.parent.name}/worker-*.log")

    def watch(self, worker: Worker) -> None:
        """Stop a pack at its limits, and kill what does not stop."""
        now, limits = time.monotonic(), self.settings
        if worker.stop_by is not None and now >= worker.stop_by:
            worker.kill()
        elif worker.items and worker.stop_by is None:
            if limits.trial_minutes and now - worker.since > limits.trial_minutes * 60 * worker.given:
                each = f" for each of {worker.given}" if worker.given > 1 else ""
                worker.timeout = f"more than launch.trial_minutes={limits.trial_minutes:g}{each}"
            elif limits.stall_minutes and now - worker.heard > limits.stall_minutes * 60:
                worker.timeout = f"no progress for launch.stall_minutes={limits.stall_minutes:g}"
            if worker.timeout:
                worker.ask_to_stop(now + limits.grace_seconds)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Count the signals that ask to stop; the third ends this process at once, and with it all workers."""
        here, there = socket.socketpair()
        here.setblocking(False)
        there.setblocking(False)

        def count(number: int, frame: Any) -> None:
            self.stops += 1
            if self.stops >= 3:
                if sys.stdout.isatty():
                    os.write(1, b"\x1b[?25h")  # the live table hides the cursor
                os._exit(EXIT_INTERRUPTED)

        self.selector.register(here, selectors.EVENT_READ, here)
        before = {number: signal.signal(number, count) for number in STOP_SIGNALS}
        wakeup = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            here.close()
            there.close()

    def obey_signal(self) -> None:
        """The first: nothing new starts and running trials save. The second: they are killed."""
        if self.stops == 1 and not self.stopping:
            self.screen.say("stopping: running trials are being saved; a second signal ends them at once")
            self.stop_all("interrupted")
        elif self.stops >= 2:
            self.stopping = self.stopping or "interrupted"
            for worker in self.workers.values():
                worker.kill()

    def stop_all(self, why: str) -> None:
        """Start nothing new, and have every running trial save."""
        self.stopping = self.stopping or why
        for worker in self.workers.values():
            if worker.items:
                worker.ask_to_stop(time.monotonic() + self.settings.grace_seconds)

    # --- keeping -------------------------------------------------------------------------------------------------

    def release(self, worker: Worker, item: Waiting) -> None:
        del worker.items[item.trial.key]
        self.board.running.pop(item.trial.key, None)
        self.ledger.set_status(item.trial, "waiting")

    def fail(self, trial: PlannedTrial, status: str, reason: str) -> None:
        """Give the trial an outcome that the worker could not write."""
        found = self.ledger.write_outcome(trial, status, reason)
        if found is None:  # another sweep has begun it: what comes of it is its outcome
            later, trained = time.monotonic() + BUSY_SECONDS, trial_state.is_trained(trial, self.runs)
            self.queue.waiting.append(Waiting(trial, trained, alone=True, not_before=later))
        else:
            self.screen.say(f"{trial.label}: {found[0]}: {found[1]}")

    def show(self) -> None:
        """The live table, and now and then the file that another terminal reads."""
        self.ledger.progress(len(self.queue.waiting), len(self.places))
        self.screen.refresh(self.board)
