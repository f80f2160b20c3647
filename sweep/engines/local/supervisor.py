"""The loop over the worker processes of this machine: it hands out packs, reads events, and watches limits and signals.

What the end of an attempt means, ``sweep.engines.policy`` decides; this module carries the decisions out. One thread,
one loop. Each event is in the sweep's events.jsonl before it has any effect; a trial's outcome is in its own files.
"""

import os
import selectors
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_sweep.config.schema import Launch
from lora_sweep.messages import Event
from lora_sweep.runs import files
from lora_sweep.runs.crash_points import crash_point
from sweep.engines import policy
from sweep.engines.decisions import apply_decision
from sweep.engines.engine import SweepStopped
from sweep.engines.event_log import EventLog
from sweep.engines.job import make_job
from sweep.engines.local.worker_process import WORKER_COMMAND, WorkerProcess, start_worker
from sweep.engines.pending import PendingTrial
from sweep.engines.policy import Attempt, Decision, KeepOutcome, RunAgain
from sweep.engines.queue import TrialQueue
from sweep.engines.stop_signals import StopSignals
from sweep.resources import pack_size
from sweep.resources.machine import Slot, build_worker_environment
from sweep.status.live import Screen
from sweep.status.progress import RunningTrial
from sweep.store.failed_attempts import FailedAttempt, read_failed_attempts
from sweep.trials import PlannedTrial

TICK_SECONDS = 0.2
EXIT_POLL_SECONDS = 0.01  # between two looks at a worker that was killed


@dataclass
class Supervisor:
    """Runs the trials of a queue on slots of this machine until each has an outcome.

    Attributes:
        slots: one for each worker; a slot that several workers share is there several times.
        workers: the living processes, by their number.
        stop_reason: why nothing new starts; None while the sweep goes on.
        false_starts: how many workers in a row died before they began a trial.
    """

    settings: Launch
    slots: list[Slot]
    queue: TrialQueue
    log: EventLog
    screen: Screen
    command: Sequence[str] = WORKER_COMMAND
    workers: dict[int, WorkerProcess] = field(default_factory=dict)
    stop_signals: StopSignals = field(default_factory=StopSignals)
    stop_reason: str | None = None
    false_starts: int = 0

    @property
    def runs(self) -> Path:
        return self.log.runs

    def run(self) -> None:
        """Run every trial of the queue.

        Raises:
            SweepStopped: a signal, a full disk, or workers that cannot start.
        """
        self.log.append_event("begin", pid=os.getpid(), waiting=len(self.queue.waiting))
        with selectors.DefaultSelector() as self.selector, self.stop_signals:
            self.selector.register(self.stop_signals.reader, selectors.EVENT_READ)
            try:
                while self.workers or (self.queue.waiting and not self.stop_reason):
                    self.tick()
            finally:
                for worker in self.workers.values():
                    worker.kill_group()
                    while not worker.has_exited():
                        time.sleep(EXIT_POLL_SECONDS)
                files.progress_file(self.runs, self.log.sweep).unlink(missing_ok=True)
        if self.stop_reason:
            raise SweepStopped(self.stop_reason, can_resume=self.false_starts < policy.MAX_FALSE_STARTS)
        self.log.append_event("finish", counts=self.log.board.counts)

    def tick(self) -> None:
        """One round of the loop; takes at most TICK_SECONDS."""
        self.obey_signals()
        self.assign_packs()
        for key, _ in self.selector.select(TICK_SECONDS):
            if key.data is None:
                self.stop_signals.clear_wakeup()
            elif key.data in self.workers:
                self.read_events(self.workers[key.data])
        for worker in list(self.workers.values()):
            if worker.has_exited():
                self.read_events(worker)
                self.reap_worker(worker)
            else:
                self.check_limits(worker)
        self.log.write_progress(len(self.queue.waiting), len(self.slots))
        self.screen.draw_table(self.log.board)

    # --- packs ---------------------------------------------------------------------------------------------------

    def assign_packs(self) -> None:
        """Give each idle worker a pack. Start a worker for a free slot while trials wait; end workers without work."""
        for number in range(len(self.slots)):
            worker = self.workers.get(number)
            if worker is not None and (worker.running or worker.ending):
                continue
            if self.stop_reason:
                if worker is not None:
                    worker.end_when_idle()
                continue
            running = [pending for other in self.workers.values() for pending in other.running.values()]
            pack = self.take_pack(number, worker.loaded_base if worker else None, running)
            if pack:
                self.give_pack(worker or self.start_worker(number), pack)
            elif worker is not None and not self.queue.waiting and not running:
                worker.end_when_idle()

    def take_pack(self, number: int, loaded_base: str | None, running: list[PendingTrial]) -> list[PendingTrial]:
        """The trials that the worker of a slot runs next, taken from the queue."""
        slot = self.slots[number]
        memory = pack_size.limit_pack_memory(slot, self.slots.count(slot))
        busy = sum(bool(worker.running) for worker in self.workers.values())
        workers = len(self.slots)
        share = pack_size.share_waiting_trials(len(self.queue.waiting), len(running), workers, workers - busy)
        max_members = pack_size.limit_pack_members(self.settings.pack, memory, share)
        member_threads = pack_size.count_member_threads(slot)
        pack = []
        for pending in self.queue.take_pack(
            loaded_base, running, time.monotonic(), max_members, memory, member_threads
        ):
            refusal = policy.decide_before_start(self.read_failed_attempts(pending.trial))
            if refusal is None:
                pack.append(pending)
            else:
                self.apply_decision(pending, refusal)
        return pack

    def start_worker(self, number: int) -> WorkerProcess:
        """Start the worker of a slot."""
        slot = self.slots[number]
        variables = build_worker_environment(slot, self.slots.count(slot), os.cpu_count() or 1)
        worker = start_worker(number, slot, variables, self.runs, self.log.sweep, self.command)
        self.workers[number] = worker
        self.selector.register(worker.output, selectors.EVENT_READ, number)
        return worker

    def give_pack(self, worker: WorkerProcess, pack: list[PendingTrial]) -> None:
        """Have a worker run a pack, and show its trials as running."""
        jobs = [make_job(pending, self.read_failed_attempts(pending.trial)) for pending in pack]
        for trial in (pending.trial for pending in pack):
            self.log.board.running[trial.key] = RunningTrial(trial.trial_id, trial.label, worker.slot.name, time.time())
            self.log.set_status(trial, "running")
        crash_point("before job")
        worker.give_pack(pack, jobs)

    # --- events of workers ---------------------------------------------------------------------------------------

    def read_events(self, worker: WorkerProcess) -> None:
        """Handle every event that a worker has sent."""
        for event in worker.read_events():
            self.handle_event(worker, event)

    def handle_event(self, worker: WorkerProcess, event: Event) -> None:
        """Handle one event, see ``lora_sweep.messages``."""
        key = str(event.get("trial_id")), str(event.get("eval_id"))
        pending, running, kind = worker.running.get(key), self.log.board.running.get(key), event.get("event")
        if kind == "say":
            self.screen.print_line(str(event["text"]))
        elif kind == "start" and pending is not None:
            worker.started.add(key)
            self.false_starts = 0
            self.log.append_event("start", pending.trial, worker=worker.number + 1, stages=pending.stages)
        elif kind == "phase" and running is not None:
            running.phase, running.step, running.steps, running.loss = str(event["phase"]), None, None, None
            worker.stage = "evaluate" if event["phase"] == "writing" else worker.stage
        elif kind == "step" and running is not None:
            for name in ("step", "steps", "loss", "tokens_per_second"):
                setattr(running, name, event.get(name))
        elif kind == "disk":
            worker.ending = True
            self.stop_all(f"nothing can be written: {event['reason']}")
        elif kind == "end" and pending is not None:
            self.handle_report(worker, pending, str(event["status"]), str(event.get("reason")))

    def handle_report(self, worker: WorkerProcess, pending: PendingTrial, status: str, reason: str) -> None:
        """A worker reports that a trial's stages have ended."""
        crash_point("outcome heard")
        trial = pending.trial
        decision = policy.decide_after_report(trial, status, reason, self.describe_attempt(worker, trial))
        self.release_trial(worker, pending)
        if isinstance(decision, KeepOutcome):
            # A trial that ended and never started has a result of another sweep.
            self.log.record_outcome(trial, decision.status, "end" if trial.key in worker.started else "found")
            self.log.durations.append((time.monotonic() - worker.given_at) / worker.pack_size)
        else:
            self.apply_decision(pending, decision)
        if policy.ends_worker(status):
            worker.ending = True
        elif worker.kill_at is not None:  # it was asked to stop, and would obey that in its next trial
            worker.end_when_idle()

    def reap_worker(self, worker: WorkerProcess) -> None:
        """A worker's process has ended: forget it, and decide about the trials that it had not finished."""
        self.selector.unregister(worker.output)
        worker.close_pipes()
        del self.workers[worker.number]
        unfinished, worker_exit = list(worker.running.values()), worker.describe_exit()
        decisions = [
            policy.decide_after_exit(pending.trial, worker_exit, self.describe_attempt(worker, pending.trial))
            for pending in unfinished
        ]
        for pending in unfinished:
            self.release_trial(worker, pending)
        for pending, decision in reversed(list(zip(unfinished, decisions, strict=True))):  # each is put first
            self.apply_decision(pending, decision)
        if RunAgain("false start", worker_exit.how) in decisions:
            self.false_starts += 1
            if self.false_starts >= policy.MAX_FALSE_STARTS:
                logs = f"{self.log.sweep}/worker-*.log"
                self.stop_all(f"workers do not start ({worker_exit.how}); see {logs}")

    def describe_attempt(self, worker: WorkerProcess, trial: PlannedTrial) -> Attempt:
        """What the policy has to know of a trial on a worker."""
        return Attempt(
            pack_size=worker.pack_size,
            began=bool(worker.started),
            stage=worker.stage,
            timeout=worker.timeout,
            stopping=self.stop_reason is not None,
            failed_before=self.read_failed_attempts(trial),
        )

    def read_failed_attempts(self, trial: PlannedTrial) -> list[FailedAttempt]:
        return read_failed_attempts(self.runs, trial.trial_id)

    def apply_decision(self, pending: PendingTrial, decision: Decision) -> None:
        apply_decision(decision, pending, self.queue, self.log, self.screen)

    def release_trial(self, worker: WorkerProcess, pending: PendingTrial) -> None:
        """The worker runs this trial no more."""
        del worker.running[pending.trial.key]
        self.log.board.running.pop(pending.trial.key, None)
        self.log.set_status(pending.trial, "waiting")

    # --- limits and signals --------------------------------------------------------------------------------------

    def check_limits(self, worker: WorkerProcess) -> None:
        """Ask a worker to stop when its pack reaches a time limit, and kill it when it does not stop."""
        now = time.monotonic()
        if worker.kill_at is not None:
            if now >= worker.kill_at:
                worker.kill_group()
        elif worker.running:
            running, silent = now - worker.given_at, now - worker.heard_at
            worker.timeout = policy.find_reached_limit(self.settings, worker.pack_size, running, silent)
            if worker.timeout:
                worker.request_stop(now + self.settings.grace_seconds)

    def stop_all(self, reason: str) -> None:
        """Start nothing new, and ask every worker to save and exit."""
        self.stop_reason = self.stop_reason or reason
        for worker in self.workers.values():
            if worker.running:
                worker.request_stop(time.monotonic() + self.settings.grace_seconds)

    def obey_signals(self) -> None:
        """After the first stop signal nothing new starts and running trials save; the second kills the workers."""
        if self.stop_signals.count == 1 and not self.stop_reason:
            self.screen.print_line("stopping: running trials are being saved; a second signal ends them at once")
            self.stop_all("interrupted")
        elif self.stop_signals.count >= 2:
            self.stop_reason = self.stop_reason or "interrupted"
            for worker in self.workers.values():
                worker.kill_group()
