"""The workers at work: gives out trials, watches limits and signals, and decides what a death or a fault means.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_sweep import results
from lora_sweep.claims import claim, holder
from lora_sweep.config import Launch
from lora_sweep.crashes import crash_point
from lora_sweep.errors import EXIT_INTERRUPTED
from sweep import store
from sweep.board import Board, Running
from sweep.live import Screen
from sweep.machine import Place, environment
from sweep.schedule import MAX_DEATHS, Queue, Waiting, can_halve
from sweep.trials import Key, Planned
from sweep.workers import COMMAND, Worker, as_job

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
TICK_SECONDS = 0.2
PROGRESS_SECONDS = 2.0  # between two writings of progress.json
BUSY_SECONDS = 1.0  # until a trial that another sweep runs is asked for again
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
    places: list[Place]
    queue: Queue
    status: dict[Key, str]
    screen: Screen
    board: Board
    command: Sequence[str] = COMMAND
    workers: dict[int, Worker] = field(default_factory=dict)
    stops: int = 0  # signals that asked to stop
    stopping: str | None = None  # why nothing new starts
    false_starts: int = 0
    durations: list[float] = field(default_factory=list)
    wrote_progress: float = 0.0

    def run(self) -> None:
        """Run everything that waits.

        Raises:
            Stopped: a signal, a disk that takes no more, or workers that cannot start.
        """
        self.note("begin", pid=os.getpid(), waiting=len(self.queue.waiting))
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
                results.progress_file(self.runs, self.name).unlink(missing_ok=True)
        if self.stopping:
            raise Stopped(self.stopping, can_go_on=self.false_starts < FALSE_STARTS)
        self.note("finish", counts=self.board.counts)

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
        """A trial for every idle worker, a worker for every place while trials wait; the word to end for the rest."""
        now = time.monotonic()
        for number in range(len(self.places)):
            worker = self.workers.get(number)
            if worker is not None and (worker.item is not None or worker.ending):
                continue
            if self.stopping:
                if worker is not None:
                    worker.end()
                continue
            running = [each.item for each in self.workers.values() if each.item is not None]
            item = self.queue.take(worker.loaded if worker else None, running, now)
            if item is None:
                if worker is not None and not self.queue.waiting and not running:
                    worker.end()
                continue
            setbacks = store.setbacks_of(item.trial, self.runs)
            if store.deaths(setbacks) >= MAX_DEATHS:  # the orchestrator died before it could say so
                self.fail(item.trial, "killed", f"its worker died {MAX_DEATHS} times; see its log.txt")
                continue
            self.start(worker or self.hire(number), item, setbacks)

    def hire(self, number: int) -> Worker:
        place = self.places[number]
        variables = environment(place, self.places.count(place), os.cpu_count() or 1)
        worker = Worker.start(number, place, variables, self.runs, self.name, self.command)
        self.workers[number] = worker
        self.selector.register(worker.output, selectors.EVENT_READ, number)
        return worker

    def start(self, worker: Worker, item: Waiting, setbacks: list[dict[str, Any]]) -> None:
        trial = item.trial
        halves = self.settings.on_oom == "halve_batch"
        halvings = Counter(each.get("stage") for each in setbacks if halves and each.get("how") == "oom")
        deaths = store.deaths(setbacks)
        self.board.running[worker.number] = Running(trial.trial_id, trial.label, worker.place.name, time.time())
        self.set_status(trial, "running")
        crash_point("before job")
        worker.give(item, as_job(trial, stages=item.stages, halvings=dict(halvings), setbacks=deaths))

    # --- hearing -------------------------------------------------------------------------------------------------

    def hear(self, worker: Worker) -> None:
        """Take in what a worker said."""
        for event in worker.events():
            running = self.board.running.get(worker.number)
            kind = event.get("event")
            if kind == "say":
                self.screen.say(str(event["text"]))
            elif kind == "start" and worker.item is not None:
                worker.started, self.false_starts = True, 0
                self.note("start", worker.item.trial, worker=worker.number + 1, stages=worker.item.stages)
            elif kind == "phase" and running is not None:
                running.phase, running.step, running.steps, running.loss = event["phase"], None, None, None
                worker.stage = "evaluate" if event["phase"] == "writing" else worker.stage
            elif kind == "step" and running is not None:
                for name in ("step", "steps", "loss", "tokens_per_second"):
                    setattr(running, name, event.get(name))
            elif kind == "disk":
                worker.ending = True
                self.stop_all(f"nothing can be written: {event['reason']}")
            elif kind == "end" and worker.item is not None:
                self.ended(worker, str(event["status"]))

    def ended(self, worker: Worker, status: str) -> None:
        """A trial's stages are over: file what came of it, and let what is to be continued wait."""
        crash_point("outcome heard")
        item = self.release(worker)
        trial = item.trial
        if status == "busy":
            self.wait_for_others(item)
        elif status == "trained":
            self.note("end", trial, status=status, sha256=store.result_hash(trial, self.runs))
            self.queue.put_back(Waiting(trial, trained=True))
        elif status == "preempted" and worker.timeout:
            self.fail(trial, "timeout", worker.timeout)
        elif status == "preempted" and not self.stopping:  # somebody else's signal hit the worker
            self.note("preempted", trial)
            self.queue.put_back(item)
        elif status == "oom" and self.settings.on_oom == "halve_batch" and self.halve(item, worker.stage):
            pass
        else:
            what = "end" if worker.started else "found"  # by another sweep
            self.note(what, trial, status=status, sha256=store.result_hash(trial, self.runs))
            self.set_status(trial, status)
            self.durations.append(time.monotonic() - worker.since)
        if status not in ("oom", "preempted") and worker.stop_by is not None:
            worker.end()  # it was asked to stop, and would stop its next trial
        if status in ("oom", "preempted"):
            worker.ending = True  # it ends by itself: after running out of memory, what it holds is not surely freed

    def wait_for_others(self, item: Waiting) -> None:
        """Another sweep has the trial: its result is ours too once it is there."""
        trial = item.trial
        if results.is_settled(self.runs, *trial.key):
            status = str(results.read_outcome(self.runs, *trial.key).get("status"))
            self.set_status(trial, status)
            self.note("found", trial, status=status)
            return
        if not item.not_before:
            by = holder(results.trial_lock(self.runs, trial.trial_id))
            self.screen.say(f"{trial.label}: waits for {by}, which runs it")
        item.not_before = time.monotonic() + BUSY_SECONDS
        self.queue.waiting.append(item)

    def halve(self, item: Waiting, stage: str) -> bool:
        """Let the trial wait for another go with half the batch, if that can help."""
        before = store.setbacks_of(item.trial, self.runs)
        done = sum(each.get("how") == "oom" and each.get("stage") == stage for each in before)
        if not can_halve(item.trial, stage, done):
            return False
        self.setback(item.trial, "oom", stage=stage)
        self.screen.say(f"{item.trial.label}: out of memory, once more with half the batch")
        trained = item.trained or (stage == "evaluate" and store.is_trained(item.trial, self.runs))
        self.queue.put_back(Waiting(item.trial, trained=trained))
        return True

    # --- deaths and limits ---------------------------------------------------------------------------------------

    def bury(self, worker: Worker) -> None:
        """A worker's process is gone: whatever it ran is retried, or has found its end."""
        self.selector.unregister(worker.output)
        worker.close()
        del self.workers[worker.number]
        if worker.item is None:
            return
        code, began, stage = worker.process.returncode, worker.started, worker.stage
        item = self.release(worker)
        trial = item.trial
        if self.stopping or worker.timeout:
            if worker.timeout:
                self.fail(trial, "timeout", worker.timeout)
            return
        if worker.ran_out_of_memory():
            reason = "the system killed the worker process for its memory"
            if not (self.settings.on_oom == "halve_batch" and self.halve(item, stage)):
                self.fail(trial, "oom", reason)
            return
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if not began:
            self.false_start(item, how)
            return
        crash_point("death seen")
        self.setback(trial, "death", signal=how)
        crash_point("death kept")
        deaths = store.deaths(store.setbacks_of(trial, self.runs))
        if deaths < MAX_DEATHS:
            retry = f"retry {deaths} of {MAX_DEATHS - 1}"
            self.screen.say(f"{trial.label}: its worker ended with {how}; {retry}")
            self.queue.put_back(Waiting(trial, trained=store.is_trained(trial, self.runs)))
        else:
            reason = f"its worker ended with {how}, for the {deaths}. time; see trials/{trial.trial_id}/log.txt"
            self.fail(trial, "killed", reason)

    def false_start(self, item: Waiting, how: str) -> None:
        """A worker that died before it began anything: no trial's fault."""
        self.false_starts += 1
        self.note("false start", item.trial, how=how)
        self.queue.put_back(item)
        if self.false_starts >= FALSE_STARTS:
            log = results.report_folder(self.runs, self.name) / "worker-1.log"
            self.stop_all(f"workers do not start ({how}); see {log.parent.name}/worker-*.log")

    def watch(self, worker: Worker) -> None:
        """Stop a trial at its limits, and kill what does not stop."""
        now, limits = time.monotonic(), self.settings
        if worker.stop_by is not None and now >= worker.stop_by:
            worker.kill()
        elif worker.item is not None and worker.stop_by is None:
            if limits.trial_minutes and now - worker.since > limits.trial_minutes * 60:
                worker.timeout = f"more than launch.trial_minutes={limits.trial_minutes:g}"
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
            if worker.item is not None:
                worker.ask_to_stop(time.monotonic() + self.settings.grace_seconds)

    # --- keeping -------------------------------------------------------------------------------------------------

    def release(self, worker: Worker) -> Waiting:
        assert worker.item is not None
        item, worker.item = worker.item, None
        self.board.running.pop(worker.number, None)
        self.set_status(item.trial, "waiting")
        return item

    def fail(self, trial: Planned, status: str, reason: str) -> None:
        """Write an outcome that the worker could not write, unless there is one by now."""
        job = as_job(trial)
        ids = {key: job[key] for key in ("trial_id", "eval_id", "kind")}
        with claim(results.trial_lock(self.runs, trial.trial_id)) as ours:
            if not ours:  # another sweep has begun it: what comes of it is its outcome
                later = time.monotonic() + BUSY_SECONDS
                self.queue.waiting.append(Waiting(trial, store.is_trained(trial, self.runs), not_before=later))
                return
            if not results.is_settled(self.runs, *trial.key):
                results.write_failure(self.runs, ids, job["config"], job["facts"], status, reason)
        outcome = results.read_outcome(self.runs, *trial.key)
        status, reason = str(outcome["status"]), str(outcome.get("reason"))
        self.note("end", trial, status=status, sha256=store.result_hash(trial, self.runs))
        self.set_status(trial, status)
        self.screen.say(f"{trial.label}: {status}: {reason}")

    def setback(self, trial: Planned, how: str, **more: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        folder = results.trial_folder(self.runs, trial.trial_id)
        results.append_line(folder.setbacks, {"time": now, "how": how, "sweep": self.name, **more})
        self.note(how, trial, **more)

    def note(self, event: str, trial: Planned | None = None, **more: Any) -> None:
        """Append to the sweep's log."""
        ids = {} if trial is None else {"trial_id": trial.trial_id, "eval_id": trial.eval_id}
        results.append_event(self.runs, self.name, event, **ids, **more)

    def set_status(self, trial: Planned, status: str) -> None:
        before = self.status[trial.key]
        self.status[trial.key] = status
        counts = self.board.counts
        counts[before] -= 1
        if not counts[before]:
            del counts[before]
        counts[status] = counts.get(status, 0) + 1

    def show(self) -> None:
        """The live table, and now and then the file that another terminal reads."""
        if self.durations:
            left = len(self.queue.waiting) + len(self.board.running)
            mean = sum(self.durations) / len(self.durations)
            self.board.seconds_left = mean * left / len(self.places) if left else None
        self.screen.refresh(self.board)
        now = time.monotonic()
        if now - self.wrote_progress >= PROGRESS_SECONDS and self.board.running:
            self.wrote_progress = now
            results.write_json(results.progress_file(self.runs, self.name), self.board.to_json())
