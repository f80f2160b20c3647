"""What is left of a plan: how many trials, how long they take, and what they need of the disk. Arithmetic.

But for :func:`finished_before`, which reads the results of a runs folder, nothing here opens a file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sweep.config.identity import canonical
from lora_sweep.config.schema import Launch
from lora_sweep.runs.files import read_json
from lora_sweep.runs.records import EvaluationResult, TrialResult
from sweep.resources import pack_size
from sweep.store.trial_state import State
from sweep.trials import Key, Plan, PlannedTrial

BYTES_PER_PARAM = 4  # of an adapter: fp32
CHECKPOINT_FACTOR = 3  # the adapter, and Adam's two moments of each of its parameters
CHECKPOINTS_AT_ONCE = 3  # the two that are kept, and the one being written
TEXT_BYTES = 200_000  # losses, texts, scores and log of a trial


def left(plan: Plan, states: Mapping[Key, State]) -> list[PlannedTrial]:
    """The trials and baselines that a run of the command works on."""
    retry = plan.trials[0].config.launch.retry == "failed"
    return [
        trial
        for trial in plan.trials
        if not states[trial.key].settled or (retry and states[trial.key].name not in ("done", "invalid"))
    ]


def workers_of(settings: Launch) -> int:
    """How many workers the settings ask for; 1 where that follows from the devices that are there."""
    return settings.workers or (len(settings.devices) if isinstance(settings.devices, list) else 1)


def needed_bytes(plan: Plan, states: Mapping[Key, State], at_once: int | None = None) -> int:
    """Disk space that what is left of the plan takes.

    Args:
        at_once: workers, each with the checkpoints of its pack; None: what the settings say.
    """
    work = left(plan, states)
    adapters = [BYTES_PER_PARAM * trial.trainable_params for trial in work if states[trial.key].name != "trained"]
    needed = sum(adapters) + TEXT_BYTES * len(work)
    if any(trial.config.train.checkpoint_steps for trial in work):
        settings = plan.trials[0].config.launch
        members = (at_once or workers_of(settings)) * pack_size.max_pack_members(settings.pack)
        largest = sorted(adapters, reverse=True)[:members]
        needed += CHECKPOINT_FACTOR * CHECKPOINTS_AT_ONCE * sum(largest)
    return needed


# --- time --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """What a complete trial took.

    Attributes:
        base: its model, quantization and data, as :func:`base_of` names them.
        row_seconds: of training on one row; a step takes as many as its batch has rows.
        eval_seconds: of writing the texts, in each of its evaluations.
        device: on which it trained.
    """

    base: str
    target_modules: tuple[str, ...]
    row_seconds: float
    eval_seconds: tuple[float, ...]
    device: str


@dataclass(frozen=True)
class Expected:
    """How long what is left takes on one device.

    Attributes:
        known: how many of the trials and baselines that are left the seconds are of.
        finished: how many trials they were learnt from.
    """

    seconds: float
    known: int
    finished: int


def base_of(identity: Mapping[str, Any]) -> str:
    """A name for what a trial's or a baseline's identity says of its base."""
    return canonical([identity.get(part) for part in ("model", "quant", "data")])


def finished_before(runs: Path) -> list[Finished]:
    """What the complete trials of a runs folder took; a result that lacks a number tells nothing."""
    found = []
    for path in (runs / "trials").glob("*/result.json"):
        training = TrialResult.from_json(read_json(path))
        identity, device = training.identity, training.provenance.device
        if training.status != "complete" or training.kind != "trial" or device is None:
            continue
        if training.train_seconds is None or not training.steps:
            continue
        evaluations = [EvaluationResult.from_json(read_json(path)) for path in path.parent.glob("evals/*/result.json")]
        seconds = [result.generate_seconds for result in evaluations if result.status == "complete"]
        try:
            rows = training.steps * float(identity["train"]["batch"])
            modules = tuple(identity["lora"]["targets"])
            row_seconds = training.train_seconds / rows
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            continue
        known = tuple(float(number) for number in seconds if number is not None)
        found.append(Finished(base_of(identity), modules, row_seconds, known, device))
    return found


def expected_time(work: Sequence[PlannedTrial], states: Mapping[Key, State], finished: Sequence[Finished]) -> Expected:
    """The seconds of what is left, one after another, learnt from finished trials of the same base."""
    of_base: dict[str, list[Finished]] = {}
    for each in finished:
        of_base.setdefault(each.base, []).append(each)
    total, known, learnt = 0.0, 0, set()
    for trial in work:
        base = base_of(trial.identity)
        seconds = trial_seconds(trial, states[trial.key], of_base.get(base, []))
        if seconds is not None:
            total, known = total + seconds, known + 1
            learnt.add(base)
    return Expected(total, known, sum(len(of_base[base]) for base in learnt))


def trial_seconds(trial: PlannedTrial, state: State, like: Sequence[Finished]) -> float | None:
    """The seconds of one trial after finished ones of its base; None where they cannot be told."""
    if not like:
        return None
    texts = [seconds for each in like for seconds in each.eval_seconds]
    evaluation = sum(texts) / len(texts) if texts else 0.0
    if trial.kind == "baseline" or state.name == "trained":
        return evaluation
    rows = planned_rows(trial)
    if rows is None:
        return None
    modules = tuple(sorted(trial.target_modules))
    closest = [each for each in like if each.target_modules == modules] or like
    return evaluation + rows * sum(each.row_seconds for each in closest) / len(closest)


def planned_rows(trial: PlannedTrial) -> int | None:
    """How many rows a training sees, the last batch of an epoch counted whole; None where the data is not at hand."""
    train = trial.config.train
    batch = train.per_device_train_batch_size * train.gradient_accumulation_steps
    if train.max_steps:
        return train.max_steps * batch
    if trial.facts.data.train_rows is None:
        return None
    return math.ceil(train.num_train_epochs * math.ceil(trial.facts.data.train_rows / batch)) * batch
