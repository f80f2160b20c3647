"""The engine that runs trials in worker processes on this machine."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_sweep.runs import results
from lora_sweep.runs.locks import remove_stale_locks
from sweep.engines.event_log import EventLog
from sweep.engines.local.supervisor import Supervisor
from sweep.engines.local.worker_process import WORKER_COMMAND
from sweep.engines.pending import PendingTrial
from sweep.engines.queue import TrialQueue
from sweep.resources.machine import assign_slots
from sweep.status.live import open_screen
from sweep.status.progress import SweepProgress
from sweep.trials import Plan


@dataclass(frozen=True)
class LocalEngine:
    """Runs trials in worker processes, one on each slot of this machine.

    Attributes:
        command: the command that starts a worker process. Tests start another one.
    """

    command: Sequence[str] = WORKER_COMMAND

    def count_workers(self, plan: Plan) -> int:
        return len(assign_slots(plan.trials[0].config.launch))

    def run(self, plan: Plan, pending: list[PendingTrial], runs: Path, sweep: str) -> None:
        settings = plan.trials[0].config.launch
        slots = assign_slots(settings)[: len(pending)]
        statuses = {trial.key: str(results.read_outcome(runs, *trial.key).status) for trial in plan.trials}
        statuses |= {item.trial.key: "waiting" for item in pending} | {point.key: "invalid" for point in plan.invalid}
        progress = SweepProgress(sweep, len(statuses), time.time(), counts=dict(Counter(statuses.values())))
        log = EventLog(runs, sweep, statuses, progress)
        try:
            with open_screen(progress) as screen:
                Supervisor(settings, slots, TrialQueue(pending), log, screen, self.command).run()
        finally:
            remove_stale_locks(runs / "locks")  # of workers that were killed
