"""Hydra's address for our sweeper: every combination of the swept values, or an experiment's list of rows."""

import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lora_sweep.errors import EXIT_FAILED, Refused


class GridSweeper(Sweeper):
    """Expands the command into points and gives them all to the launcher at once. Writes no file."""

    def __init__(self, params: dict[str, Any], rows: Sequence[Sequence[str]]) -> None:
        self.params, self.rows = params, rows

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if config.hydra.runtime.choices["hydra/launcher"] != "local":
            raise Refused("hydra/launcher", "only 'local' runs trials")
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from sweep.compose import points

        assert self.hydra_context is not None
        assert self.launcher is not None
        trials = points(self.hydra_context.config_loader, arguments, dict(self.params), list(self.rows))
        returns = self.launcher.launch(trials, initial_job_idx=0)
        launcher: Any = self.launcher  # Hydra 1.3 may load the class a second time: isinstance would not know it
        if not launcher.complete:
            sys.exit(EXIT_FAILED)
        return returns
