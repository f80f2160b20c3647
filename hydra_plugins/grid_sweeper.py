"""Hydra finds our sweeper here: it runs every combination of the swept values, or the rows of an experiment.

Hydra imports this module in every program that uses Hydra, so our modules are imported inside the methods.
"""

import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lora_sweep.errors import EXIT_FAILED


class GridSweeper(Sweeper):
    """Expands the command into points, and gives all of them to the launcher at once. Writes no file."""

    def __init__(self, params: dict[str, Any], rows: Sequence[Sequence[str]]) -> None:
        self.params, self.rows = params, rows

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from sweep.engines.hydra_jobs import run_point

        self.hydra_context, self.config = hydra_context, config
        self.is_local = config.hydra.runtime.choices["hydra/launcher"] == "local"
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function if self.is_local else run_point, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from sweep.compose import compose_points
        from sweep.engines.hydra_jobs import HydraEngine
        from sweep.launch import launch_points
        from sweep.search.grid import list_points

        assert self.hydra_context is not None
        assert self.config is not None
        loader, launcher = self.hydra_context.config_loader, self.launcher
        assert launcher is not None
        points = list_points(loader, arguments, dict(self.params), list(self.rows))
        if self.is_local:
            returns = launcher.launch(points, initial_job_idx=0)
            local: Any = launcher  # Hydra 1.3 can load the class twice, and then isinstance is false
            is_complete = local.is_complete
        else:
            configs = compose_points(loader, [str(text) for text in self.config.hydra.overrides.hydra], points)
            engine = HydraEngine(lambda jobs: launcher.launch(jobs, initial_job_idx=0))
            _, outcomes = launch_points(configs, points, sys.argv[1:], engine)
            returns = engine.returns
            is_complete = all(result.status == "complete" for result in outcomes.values())
        if not is_complete:
            sys.exit(EXIT_FAILED)
        return returns
