"""A trial that has no outcome yet, and what it needs next."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_sweep.config.identity import base_identity, to_canonical_json
from lora_sweep.messages import STAGES
from sweep.store.failed_attempts import read_failed_attempts
from sweep.store.trial_state import TrialState
from sweep.trials import Key, PlannedTrial


@dataclass(eq=False)
class PendingTrial:
    """A trial without an outcome.

    Attributes:
        is_trained: whether only its evaluation is left.
        runs_alone: whether it joins no pack, because an earlier attempt at it failed.
        not_before: the earliest time at which it may start; seconds of time.monotonic().
        bases: the name of the base that it trains on, and of the base that writes its texts.
    """

    trial: PlannedTrial
    is_trained: bool = False
    runs_alone: bool = False
    not_before: float = 0.0
    bases: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        self.bases = name_bases(self.trial)

    @property
    def base(self) -> str:
        """The base that its next stage needs."""
        return self.bases[self.is_trained]

    @property
    def stages(self) -> list[str]:
        """The next stages that one worker can run, because they need the same base."""
        if self.is_trained:
            return ["evaluate"]
        return list(STAGES) if self.bases[0] == self.bases[1] else ["train"]


def list_pending(trials: Iterable[PlannedTrial], states: Mapping[Key, TrialState], runs: Path) -> list[PendingTrial]:
    """The trials whose state is not final. A trial with a failed attempt runs alone."""
    return [
        PendingTrial(
            trial,
            is_trained=states[trial.key].name == "trained",
            runs_alone=bool(read_failed_attempts(runs, trial.trial_id)),
        )
        for trial in trials
        if not states[trial.key].is_final
    ]


def name_bases(trial: PlannedTrial) -> tuple[str, str]:
    """The name of the base that a worker loads to train the trial, and of the base that it loads to write the texts."""
    evaluated = dataclasses.replace(trial.config.quant, bits=trial.config.eval_bits())
    names = []
    for quant in (trial.config.quant, evaluated):
        data = dataclasses.replace(trial.config.data, template="")  # a base serves prompts of every template
        config = dataclasses.replace(trial.config, quant=quant, data=data)
        base = base_identity(config, trial.facts.model.fingerprint, trial.facts.data.fingerprint)
        names.append(to_canonical_json([base, dataclasses.asdict(config.model)]))
    return names[0], names[1]
