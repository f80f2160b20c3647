"""Runs in a tracker for the trials of a worker. A run is open from the first training step to the scores."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from lora_sweep.messages import Failure, Job
from lora_sweep.runs import files
from lora_sweep.tracking import run as tracking
from lora_sweep.tracking.names import name_run
from lora_sweep.tracking.run import Run


class TrackerRuns:
    """The runs that are open in this process, by trial id. A run is opened and finished in the same process."""

    def __init__(self, runs: Path, sweep: str) -> None:
        self.runs, self.sweep = runs, sweep
        self.open_runs: dict[str, Run] = {}

    def log_step(self, job: Job, step: int, values: Mapping[str, float]) -> None:
        """Show a training step while the training runs, if the evaluation follows in this process.

        A training that resumes from a checkpoint has no step 1 here. :meth:`take_run` then shows its whole curve.
        """
        if step == 1 and "evaluate" in job.stages:
            self.open_runs[job.trial_id] = self.open_run(job)
        run = self.open_runs.get(job.trial_id)
        if run is not None:
            run.log_step(step, values)

    def take_run(self, job: Job, losses: Iterable[Mapping[str, float]]) -> Run:
        """The trial's run, for the caller to finish. If it opens only now, ``losses`` give the training's curve."""
        run = self.open_runs.pop(job.trial_id, None)
        if run is None:
            run = self.open_run(job)
            for row in losses:
                run.log_step(int(row["step"]), {key: value for key, value in row.items() if key != "step"})
        return run

    def mirror_failure(self, job: Job, failure: Failure) -> None:
        """End the trial's run as failed. A preempted trial runs again later, so no run is opened for it."""
        run = self.open_runs.pop(job.trial_id, None)
        if run is None and failure.status != "preempted":
            run = self.open_run(job)
        if run is not None:
            run.fail(failure.status, failure.reason)

    def open_run(self, job: Job) -> Run:
        """Open the trial's run. Its name is padded so that the names of all trials of the sweep sort well."""
        return tracking.open_run(
            job.config.tracking,
            self.runs,
            group=self.sweep,
            name=name_run(job.label, files.read_labels(self.runs, self.sweep)),
            run_id=f"{job.trial_id}-{job.eval_id}",
            job_type=job.kind,
            config={**dataclasses.asdict(job.config), "target_modules": job.target_modules, "trial_id": job.trial_id},
            tags=[job.config.model.name, job.config.data.name],
        )
