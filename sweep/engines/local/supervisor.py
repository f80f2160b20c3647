"""The loop over the worker processes of this machine: it gives them packs, reads their events, and checks limits.

``sweep.engines.policy`` decides what happens to a trial when an attempt at it ends; this module carries the decision
out. There is one thread with one loop. A decision is in events.jsonl before its trial goes back to the queue, and an
outcome is in the files of its trial.
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
        slots: the slot of each worker; a slot that several workers share is listed several times.
        workers: the living worker processes, by their number.
        stop_reason: why no other trial starts; None while the sweep goes on.
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
            SweepStopped: a signal came, the disk is full, or workers cannot start.
        """
        self.log.append_event("begin", pid=os.getpid(), waiting=len(self.queue.waiting))
        with selectors.DefaultSelector() as self.selector, self.stop_signals:
            self.selector.register(self.stop_signals.reader, selectors.EVENT_READ)
            try:
                while self.workers or (self.queue.waiting and not self.stop_reason):
                    self.run_round()
            finally:
                for worker in self.workers.values():
                    worker.kill_group()
                    while not worker.has_exited():
                        time.sleep(EXIT_POLL_SECONDS)
                files.progress_file(self.runs, self.log.sweep).unlink(missing_ok=True)
        if self.stop_reason:
            raise SweepStopped(self.stop_reason, can_resume=self.false_starts < policy.MAX_FALSE_STARTS)
        self.log.append_event("finish", counts=self.log.progress.counts)

    def run_round(self) -> None:
        """Run one round of the loop. It waits for events at most TICK_SECONDS."""
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
        self.screen.draw_table(self.log.progress)

    # --- packs ---------------------------------------------------------------------------------------------------

    def assign_packs(self) -> None:
        """Give each idle worker a pack. Start workers while trials wait, and end workers when nothing is left."""
        for number in range(len(self.slots)):
            worker = self.workers.get(number)
            if worker is not None and (worker.running or worker.is_ending):
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
        """Take the trials that worker ``number`` runs next from the queue."""
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
        """Start worker ``number`` on its slot."""
        slot = self.slots[number]
        variables = build_worker_environment(slot, self.slots.count(slot), os.cpu_count() or 1)
        worker = start_worker(number, slot, variables, self.runs, self.log.sweep, self.command)
        self.workers[number] = worker
        self.selector.register(worker.output, selectors.EVENT_READ, number)
        return worker

    def give_pack(self, worker: WorkerProcess, pack: list[PendingTrial]) -> None:
        """Give a worker a pack to run, and show its trials as running."""
        jobs = [make_job(pending, self.read_failed_attempts(pending.trial)) for pending in pack]
        for trial in (pending.trial for pending in pack):
            self.log.progress.running[trial.key] = RunningTrial(
                trial.trial_id, trial.label, worker.slot.name, time.time()
            )
            self.log.set_status(trial, "running")
        crash_point("before job")
        worker.give_pack(pack, jobs)

    # --- events of workers ---------------------------------------------------------------------------------------

    def read_events(self, worker: WorkerProcess) -> None:
        """Handle every event that a worker has sent."""
        for event in worker.read_events():
            self.handle_event(worker, event)

    def handle_event(self, worker: WorkerProcess, event: Event) -> None:
        """Handle one event. ``lora_sweep.messages`` describes them."""
        key = str(event.get("trial_id")), str(event.get("eval_id"))
        pending, running, kind = worker.running.get(key), self.log.progress.running.get(key), event.get("event")
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
            worker.is_ending = True
            self.stop_all(f"nothing can be written: {event['reason']}")
        elif kind == "end" and pending is not None:
            self.handle_report(worker, pending, str(event["status"]), str(event.get("reason")))

    def handle_report(self, worker: WorkerProcess, pending: PendingTrial, status: str, reason: str) -> None:
        """Handle the report of a worker that the stages of a trial have ended."""
        crash_point("outcome heard")
        trial = pending.trial
        decision = policy.decide_after_report(trial, status, reason, self.describe_attempt(worker, trial))
        self.release_trial(worker, pending)
        if isinstance(decision, KeepOutcome):
            # A trial that ended without a start has a result that another sweep wrote.
            self.log.record_outcome(trial, decision.status, "end" if trial.key in worker.started else "found")
            self.log.durations.append((time.monotonic() - worker.given_at) / worker.pack_size)
        else:
            self.apply_decision(pending, decision)
        if policy.ends_worker(status):
            worker.is_ending = True
        elif worker.kill_at is not None:  # it was asked to stop, and would stop its next trial
            worker.end_when_idle()

    def reap_worker(self, worker: WorkerProcess) -> None:
        """Remove a worker whose process has ended, and decide about the trials that it did not finish."""
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
        for pending, decision in reversed(list(zip(unfinished, decisions, strict=True))):  # each goes to the front
            self.apply_decision(pending, decision)
        if RunAgain("false start", worker_exit.how) in decisions:
            self.false_starts += 1
            if self.false_starts >= policy.MAX_FALSE_STARTS:
                logs = files.report_folder(self.runs, self.log.sweep) / "worker-*.log"
                self.stop_all(f"workers do not start ({worker_exit.how}); see {logs}")

    def describe_attempt(self, worker: WorkerProcess, trial: PlannedTrial) -> Attempt:
        """What the policy needs to know about a trial on a worker."""
        return Attempt(
            pack_size=worker.pack_size,
            has_begun=bool(worker.started),
            stage=worker.stage,
            timeout=worker.timeout,
            is_stopping=self.stop_reason is not None,
            failed_before=self.read_failed_attempts(trial),
        )

    def read_failed_attempts(self, trial: PlannedTrial) -> list[FailedAttempt]:
        return read_failed_attempts(self.runs, trial.trial_id)

    def apply_decision(self, pending: PendingTrial, decision: Decision) -> None:
        apply_decision(decision, pending, self.queue, self.log, self.screen)

    def release_trial(self, worker: WorkerProcess, pending: PendingTrial) -> None:
        """Remove a trial that has ended from its worker, and show it as waiting."""
        del worker.running[pending.trial.key]
        self.log.progress.running.pop(pending.trial.key, None)
        self.log.set_status(pending.trial, "waiting")

    # --- limits and signals --------------------------------------------------------------------------------------

    def check_limits(self, worker: WorkerProcess) -> None:
        """Ask a worker to stop if its pack reached a time limit. Kill the worker if it did not stop in time."""
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
        """Start no other trial, and ask every worker to save and exit."""
        self.stop_reason = self.stop_reason or reason
        for worker in self.workers.values():
            if worker.running:
                worker.request_stop(time.monotonic() + self.settings.grace_seconds)

    def obey_signals(self) -> None:
        """After the first stop signal running trials save, and no other trial starts. The second kills the workers."""
        if self.stop_signals.count == 1 and not self.stop_reason:
            self.screen.print_line("stopping: running trials are being saved; a second signal ends them at once")
            self.stop_all("interrupted")
        elif self.stop_signals.count >= 2:
            self.stop_reason = self.stop_reason or "interrupted"
            for worker in self.workers.values():
                worker.kill_group()
