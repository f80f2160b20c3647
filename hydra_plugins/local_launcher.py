"""Hydra finds our launcher here: it runs trials in worker processes on this machine."""

import sys
from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """Composes the points, and gives them to ``sweep.launch`` with the local engine."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from sweep.compose import compose_points
        from sweep.engines.local.engine import LocalEngine
        from sweep.launch import launch_points

        hydra_overrides = [str(override) for override in self.config.hydra.overrides.hydra]
        configs = compose_points(self.hydra_context.config_loader, hydra_overrides, job_overrides)
        plan, outcomes = launch_points(configs, job_overrides, sys.argv[1:], LocalEngine())
        self.is_complete = all(result.status == "complete" for result in outcomes.values())  # baselines too
        returns = []
        for overrides, key in zip(job_overrides, plan.points, strict=True):
            result, job = outcomes[key], JobReturn(overrides=overrides)
            if result.status == "complete":
                job.status, job.return_value = JobStatus.COMPLETED, result.metric_mean("quality")
            else:
                job.status, job.return_value = JobStatus.FAILED, RuntimeError(result.reason)
            returns.append(job)
        return returns
