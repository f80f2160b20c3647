"""The interface of an engine, which starts workers on slots and has them run trials."""

from pathlib import Path
from typing import Protocol

from lora_sweep.errors import SweepError
from sweep.engines.pending import PendingTrial
from sweep.trials import Plan


class SweepStopped(SweepError):
    """The engine stopped before every trial had an outcome. The message says why; finished trials are kept.

    Attributes:
        can_resume: whether the same command can go on, as after a signal. If not, a person must first repair something.
    """

    def __init__(self, reason: str, can_resume: bool = True) -> None:
        super().__init__(reason)
        self.can_resume = can_resume


class Engine(Protocol):
    """Runs trials. It does not choose them. Each outcome is in the files of its trial."""

    def count_workers(self, plan: Plan) -> int:
        """How many workers the plan's settings ask for."""

    def run(self, plan: Plan, pending: list[PendingTrial], runs: Path, sweep: str) -> None:
        """Run the pending trials of the plan until each has an outcome.

        Args:
            runs: the runs folder.
            sweep: the name of the sweep. The caller holds its lock.

        Raises:
            SweepStopped: a signal, a full disk or a broken installation stopped the sweep.
        """
