"""A sweep on one of Hydra's own launchers (basic, joblib, submitit): each job of the launcher runs one point.

The process of the sweeper plans the trials, records the sweep and writes the report. A job may start on another
machine. It runs what is left of its point in a worker process, with the same locks, limits and retries as the local
engine.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from lora_sweep.config.schema import config_from_json
from lora_sweep.runs import files, results
from lora_sweep.runs.locks import is_locked
from sweep.engines.engine import SweepStopped
from sweep.engines.event_log import EventLog
from sweep.engines.local.supervisor import Supervisor
from sweep.engines.pending import PendingTrial, list_pending
from sweep.engines.queue import TrialQueue
from sweep.plan.make import make_plan
from sweep.resources.machine import assign_slots, find_slots
from sweep.status.live import PlainLines
from sweep.status.progress import SweepProgress
from sweep.store import trial_state
from sweep.store.sweep_file import read_sweep_file
from sweep.trials import Key, Plan, PlannedTrial


@dataclass
class HydraEngine:
    """Runs trials as jobs of one of Hydra's launchers.

    Attributes:
        start_jobs: calls the launcher with the overrides of each job, and returns the result of each job.
        returns: the results of all jobs so far.
    """

    start_jobs: Callable[[list[list[str]]], Sequence[JobReturn]]
    returns: list[JobReturn] = field(default_factory=list)

    def count_workers(self, plan: Plan) -> int:
        return len(assign_slots(plan.trials[0].config.launch))

    def run(self, plan: Plan, pending: list[PendingTrial], runs: Path, sweep: str) -> None:
        """Start a job for each point that has a pending trial or a pending baseline."""
        pending_keys = {item.trial.key for item in pending}
        baseline_keys = {trial.key: trial.baseline for trial in plan.trials}
        jobs: dict[Key, list[str]] = {}
        for key in plan.points:
            if key in pending_keys or baseline_keys.get(key) in pending_keys:
                jobs[key] = [*plan.overrides[key], f"sweep_name={sweep}"]
        self.returns.extend(self.start_jobs(list(jobs.values())))


def run_point(config: DictConfig) -> float | None:
    """The task that a launcher of Hydra calls in each job: run what is left of one point in this process.

    Returns:
        The trial's quality; None where the trial is not complete.

    Raises:
        KeyboardInterrupt: a signal asked the job to stop. A launcher in the same process then starts no other job.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    plan = make_plan([config_from_json(values)], strict=True)
    runs, name = Path(plan.trials[0].config.runs_dir), str(plan.trials[0].config.sweep_name)
    sweep = read_sweep_file(runs, name)
    labels = {entry.key: entry.label for entry in sweep.trials} if sweep else {}
    trials = [dataclasses.replace(trial, label=labels.get(trial.key, trial.label)) for trial in plan.trials]
    try:
        run_trials(trials, runs, name)
    except SweepStopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from None
    return results.load_record(runs, *plan.points[0]).metric_mean("quality")


def run_trials(trials: list[PlannedTrial], runs: Path, sweep: str) -> None:
    """Run what is left of these trials in one worker. A baseline that another job runs at this moment is skipped."""
    lock_paths = {trial.key: files.trial_lock(runs, trial.trial_id) for trial in trials}
    free = [trial for trial in trials if trial.kind != "baseline" or not is_locked(lock_paths[trial.key])]
    pending = list_pending(free, {trial.key: trial_state.read_trial_state(trial, runs) for trial in free}, runs)
    if not pending:
        return
    settings = trials[0].config.launch
    progress = SweepProgress(sweep, len(pending), time.time(), counts={"waiting": len(pending)})
    log = EventLog(runs, sweep, {item.trial.key: "waiting" for item in pending}, progress)
    slots = find_slots(settings.devices)[:1]
    Supervisor(settings, slots, TrialQueue(pending), log, PlainLines(progress.started)).run()
