"""Hydra's address for our launcher: worker processes on this machine."""

import sys
from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """Composes the points, and hands the trials to ``sweep.launch``."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from sweep.compose import compose_points
        from sweep.launch import launch
        from sweep.plan.make import make_plan
        from sweep.trials import attach_overrides

        of_hydra = [str(override) for override in self.config.hydra.overrides.hydra]
        configs = compose_points(self.hydra_context.config_loader, of_hydra, job_overrides)
        plan = attach_overrides(make_plan(configs, strict=True), job_overrides)
        outcomes = launch(plan, sys.argv[1:])
        returns = []
        for overrides, result in zip(job_overrides, (outcomes[key] for key in plan.points), strict=True):
            status = JobStatus.COMPLETED if result.status == "complete" else JobStatus.FAILED
            job = JobReturn(overrides=overrides, status=status)
            job.return_value = (
                result.metric_mean("quality") if status == JobStatus.COMPLETED else RuntimeError(result.reason)
            )
            returns.append(job)
        self.complete = all(result.status == "complete" for result in outcomes.values())  # baselines too
        return returns
