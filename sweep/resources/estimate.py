"""List the remaining trials of a plan, and estimate the disk space and the time that they need.

Only :func:`read_finished_trials` reads files, the results in a runs folder; all other functions are arithmetic.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sweep.config.identity import to_canonical_json
from lora_sweep.runs.files import EvalFolder, TrialFolder, trial_folder
from lora_sweep.runs.results import read_evaluation_result, read_trial_result
from sweep.resources import pack_size
from sweep.store.trial_state import TrialState
from sweep.trials import Key, Plan, PlannedTrial

BYTES_PER_PARAM = 4  # an adapter is stored in fp32
CHECKPOINT_FACTOR = 3  # a checkpoint holds the adapter and, for each parameter, two moments of Adam
CHECKPOINTS_ON_DISK = 3  # two are kept, and a third is being written
TEXT_BYTES = 200_000  # the losses, texts, scores and log of a trial


def list_remaining_trials(plan: Plan, states: Mapping[Key, TrialState]) -> list[PlannedTrial]:
    """The trials and baselines that a run of the command works on."""
    retries_failed = plan.trials[0].config.launch.retry == "failed"
    return [trial for trial in plan.trials if states[trial.key].needs_work(retries_failed)]


def estimate_disk_bytes(plan: Plan, states: Mapping[Key, TrialState], workers: int) -> int:
    """The bytes of disk that the remaining trials need.

    Args:
        workers: how many run at the same time, each with the checkpoints of its pack.
    """
    remaining = list_remaining_trials(plan, states)
    untrained = [trial for trial in remaining if states[trial.key].name != "trained"]
    adapters = [BYTES_PER_PARAM * trial.trainable_params for trial in untrained]
    disk_bytes = sum(adapters) + TEXT_BYTES * len(remaining)
    if any(trial.config.train.checkpoint_steps for trial in remaining):
        trials_at_once = workers * pack_size.find_largest_pack(plan.trials[0].config.launch.pack)
        largest = sorted(adapters, reverse=True)[:trials_at_once]
        disk_bytes += CHECKPOINT_FACTOR * CHECKPOINTS_ON_DISK * sum(largest)
    return disk_bytes


# --- time --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FinishedTrial:
    """The time that a complete trial took.

    Attributes:
        base: the name of its base, from :func:`identify_base`.
        row_seconds: seconds of training for one row. A step takes this long for each row of its batch.
        eval_seconds: for each of its evaluations, the seconds of generating the texts.
        device: the device that it trained on.
    """

    base: str
    target_modules: tuple[str, ...]
    row_seconds: float
    eval_seconds: tuple[float, ...]
    device: str


@dataclass(frozen=True)
class TimeEstimate:
    """How long the remaining trials take, one after another on one device.

    Attributes:
        seconds: the total of the trials that could be estimated.
        trials: how many trials and baselines could be estimated.
        sources: how many finished trials the estimate is made from.
    """

    seconds: float
    trials: int
    sources: int


def identify_base(identity: Mapping[str, Any]) -> str:
    """A name for the base of a trial or a baseline: its model, quantization and data.

    Args:
        identity: of the trial or the baseline.
    """
    return to_canonical_json([identity.get(part) for part in ("model", "quant", "data")])


def read_finished_trials(runs: Path) -> list[FinishedTrial]:
    """The times of the complete trials in a runs folder. A result without the necessary numbers is left out."""
    folders = (trial_folder(runs, path.parent.name) for path in (runs / "trials").glob("*/result.json"))
    trials = (read_finished_trial(folder) for folder in folders)
    return [trial for trial in trials if trial is not None]


def read_finished_trial(folder: TrialFolder) -> FinishedTrial | None:
    """The times of one trial; None if it is not complete or lacks a number."""
    training = read_trial_result(folder)
    if (training.status, training.kind) != ("complete", "trial") or training.provenance.device is None:
        return None
    try:
        rows = float(training.steps or 0) * float(training.identity["train"]["batch"])
        target_modules = tuple(training.identity["lora"]["targets"])
        row_seconds = training.train_seconds / rows if training.train_seconds is not None else None
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if row_seconds is None:
        return None
    evaluations = [read_evaluation_result(EvalFolder(path.parent)) for path in folder.path.glob("evals/*/result.json")]
    eval_seconds = tuple(
        float(evaluation.generate_seconds)
        for evaluation in evaluations
        if evaluation.status == "complete" and evaluation.generate_seconds is not None
    )
    base = identify_base(training.identity)
    return FinishedTrial(base, target_modules, row_seconds, eval_seconds, training.provenance.device)


def estimate_time(
    remaining: Sequence[PlannedTrial], states: Mapping[Key, TrialState], finished: Sequence[FinishedTrial]
) -> TimeEstimate:
    """Estimate the time of the remaining trials from finished trials of the same bases."""
    finished_by_base: dict[str, list[FinishedTrial]] = {}
    for trial in finished:
        finished_by_base.setdefault(trial.base, []).append(trial)
    total, trials, bases = 0.0, 0, set()
    for planned in remaining:
        base = identify_base(planned.identity)
        seconds = estimate_trial_seconds(planned, states[planned.key], finished_by_base.get(base, []))
        if seconds is not None:
            total, trials = total + seconds, trials + 1
            bases.add(base)
    return TimeEstimate(total, trials, sum(len(finished_by_base[base]) for base in bases))


def estimate_trial_seconds(trial: PlannedTrial, state: TrialState, finished: Sequence[FinishedTrial]) -> float | None:
    """Estimate the seconds of one trial from finished trials of its base; None if that is not possible.

    Finished trials with the same target modules are preferred.
    """
    if not finished:
        return None
    eval_seconds = [seconds for other in finished for seconds in other.eval_seconds]
    evaluation = sum(eval_seconds) / len(eval_seconds) if eval_seconds else 0.0
    if trial.kind == "baseline" or state.name == "trained":
        return evaluation
    rows = count_training_rows(trial)
    if rows is None:
        return None
    modules = tuple(sorted(trial.target_modules))
    closest = [other for other in finished if other.target_modules == modules] or finished
    return evaluation + rows * sum(other.row_seconds for other in closest) / len(closest)


def count_training_rows(trial: PlannedTrial) -> int | None:
    """The number of rows that a training sees, with the last batch of an epoch counted as full; None without data."""
    train = trial.config.train
    batch = train.per_device_train_batch_size * train.gradient_accumulation_steps
    if train.max_steps:
        return train.max_steps * batch
    if trial.facts.data.train_rows is None:
        return None
    return math.ceil(train.num_train_epochs * math.ceil(trial.facts.data.train_rows / batch)) * batch
