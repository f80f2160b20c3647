"""Which trial runs next: pure rules over what waits and what runs. Knows no process and no file."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

from lora_sweep.config.identity import base_identity, canonical
from lora_sweep.messages import STAGES
from sweep.resources.pack_size import choose_pack_members
from sweep.trials import PlannedTrial

MAX_DEATHS = 3  # of a trial's worker: the first attempt and two retries


@dataclass(eq=False)
class Waiting:
    """A trial that needs work.

    Attributes:
        trained: only its evaluation is left.
        alone: it shares no process with another: it had a setback, or a pack of which it was had one.
        not_before: in seconds of time.monotonic().
    """

    trial: PlannedTrial
    trained: bool = False
    alone: bool = False
    not_before: float = 0.0
    bases: tuple[str, str] = ("", "")  # that it trains on, that it writes with

    def __post_init__(self) -> None:
        self.bases = bases(self.trial)

    @property
    def base(self) -> str:
        """What must be loaded for what it needs next."""
        return self.bases[self.trained]

    @property
    def stages(self) -> list[str]:
        """What is done in one go: everything on one base."""
        if self.trained:
            return ["evaluate"]
        return list(STAGES) if self.bases[0] == self.bases[1] else ["train"]


@dataclass
class Queue:
    """The trials that wait, in the plan's order."""

    waiting: list[Waiting] = field(default_factory=list)

    def take(
        self,
        loaded: str | None,
        running: Iterable[Waiting],
        now: float,
        most: int = 1,
        room: int | None = None,
        at_a_time: int = 1,
    ) -> list[Waiting]:
        """The next pack for a worker that has ``loaded`` in memory, taken out; empty where nothing may start now.

        First one for the base at hand, so that a base is loaded once; then one whose base will not be asked for again
        when others have trained; then one whose base no other worker has. Two evaluations of one trial never run
        at once. With it come those that need the same stages on the same base, up to ``most`` that fit ``room`` bytes
        with the activations of so many ``at_a_time``.
        """
        running = list(running)
        busy = {each.trial.trial_id for each in running}
        free = [each for each in self.waiting if each.trial.trial_id not in busy and each.not_before <= now]
        others = {each.base for each in running}
        later = {each.bases[1] for each in [*self.waiting, *running] if each.stages == ["train"]}
        first = min(free, key=lambda w: (w.base != loaded, w.base in later, w.base in others), default=None)
        if first is None:
            return []
        candidates = companions(first, free) if most > 1 else [first]
        forecasts = [each.trial.forecast for each in candidates]
        pack = [candidates[place] for place in choose_pack_members(forecasts, most, room, at_a_time)]
        for each in pack:
            self.waiting.remove(each)
        return pack

    def put_back(self, item: Waiting) -> None:
        """Wait again, before all others."""
        self.waiting.insert(0, item)


def companions(first: Waiting, free: Iterable[Waiting]) -> list[Waiting]:
    """``first``, and who could share a process with it."""
    found = {first.trial.trial_id: first}
    if first.alone:
        return [first]
    for each in free:
        if (each.base, each.stages) == (first.base, first.stages) and not each.alone:
            found.setdefault(each.trial.trial_id, each)
    return list(found.values())


def bases(trial: PlannedTrial) -> tuple[str, str]:
    """A name for what a worker loads to train the trial, and to write its texts."""
    evaluated = dataclasses.replace(trial.config.quant, bits=trial.config.eval_bits())
    found = []
    for quant in (trial.config.quant, evaluated):
        config = dataclasses.replace(trial.config, quant=quant)
        base = base_identity(config, trial.facts.model.fingerprint, trial.facts.data.fingerprint)
        base["data"].pop("template")  # the form of a prompt needs no other base
        found.append(canonical([base, dataclasses.asdict(config.model)]))
    return found[0], found[1]


def can_halve(trial: PlannedTrial, stage: str, halvings: int) -> bool:
    """Whether another halving of the batch would change anything: ``halvings`` were made before."""
    if stage == "evaluate":
        sampled = trial.config.eval.do_sample  # there the batch size changes the texts
        return not sampled and trial.config.eval.batch_size >> halvings > 1
    return trial.config.train.per_device_train_batch_size % (2 << halvings) == 0
