"""Write a plan as text: what the command runs, what it needs, and a table with a line for each trial."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from sweep.resources.estimate import (
    FinishedTrial,
    estimate_disk_bytes,
    estimate_time,
    list_remaining_trials,
    read_finished_trials,
)
from sweep.resources.machine import Slot, assign_slots, measure_free_disk
from sweep.store.trial_state import TrialState
from sweep.tables import Column, build_table, find_output_width, render_text
from sweep.text import count_noun, format_disk_bytes, format_duration
from sweep.trials import Key, Plan, PlannedTrial

COLUMNS = (
    Column("#"),
    Column("trial"),
    Column("id"),
    Column("state"),
    Column("target modules", is_flexible=True),
    Column("trainable", justify="right"),
    Column("memory", justify="right"),
    Column(""),
)
MAX_MODULES_CHARACTERS = 44


def format_plan(
    plan: Plan,
    runs: Path,
    name: str,
    states: Mapping[Key, TrialState],
    notes: Sequence[str] = (),
) -> str:
    """The head of the plan, a table of its rows, and the reasons why some rows are invalid or run again.

    In the table ``trainable`` is the exact number of parameters, and ``memory`` is the forecast of a training step.

    Args:
        name: of the sweep.
        states: of the plan's trials, by their key.
        notes: further lines for the end of the head.

    Raises:
        Refused: ``launch.devices`` names a device that is not there.
    """
    slots = assign_slots(plan.trials[0].config.launch)
    remaining, memory = list_remaining_trials(plan, states), find_worker_memory(slots)
    too_large = {trial.key for trial in remaining if memory is not None and trial.forecast.total > memory}
    head = [format_counts(plan, states, remaining, name), *format_data(plan), format_devices(slots, len(too_large))]
    if remaining:
        head += format_dequantized(remaining)
        head.append(format_time(remaining, states, read_finished_trials(runs), slots))
        head.append(format_disk(plan, states, runs, len(slots)))
    rows = list_rows(plan, states, too_large, memory)
    table = render_text(build_table(COLUMNS, rows), find_output_width())
    reasons = [f"broken: {t.label}: {states[t.key].reason}" for t in plan.trials if states[t.key].name == "broken"]
    reasons += [f"invalid: {point.label}: {point.reason}" for point in plan.invalid]
    return "\n".join([*head, *notes, "", table, *([""] if reasons else []), *reasons, ""])


def list_rows(
    plan: Plan, states: Mapping[Key, TrialState], too_large: set[Key], memory: int | None
) -> list[tuple[str, ...]]:
    """The cells of each trial, then of each invalid point."""
    rows: list[tuple[str, ...]] = []
    for number, trial in enumerate(plan.trials, start=1):
        warning = f"does not fit {format_gibibytes(memory)}" if memory is not None and trial.key in too_large else ""
        sizes = (f"{trial.trainable_params:,}", f"{trial.forecast.total / 2**30:.2f} GiB", warning)
        modules = shorten_modules(trial.target_modules)
        rows.append((str(number), trial.label, trial.trial_id, states[trial.key].name, modules, *sizes))
    for number, point in enumerate(plan.invalid, start=len(plan.trials) + 1):
        rows.append((str(number), point.label, point.trial_id, "invalid", "-", "-", "-", ""))
    return rows


def shorten_modules(target_modules: Sequence[str]) -> str:
    """The names of target modules, cut to the width of their column; ``-`` for a baseline."""
    modules = ", ".join(target_modules) or "-"
    return modules if len(modules) <= MAX_MODULES_CHARACTERS else modules[: MAX_MODULES_CHARACTERS - 3] + "..."


# --- the head ----------------------------------------------------------------------------------------------------


def format_counts(plan: Plan, states: Mapping[Key, TrialState], remaining: Sequence[PlannedTrial], name: str) -> str:
    """The number of trials and baselines with their models, and the number of rows in each state.

    The counts after the semicolon add up to the rows of the table.
    """
    trials = [trial for trial in plan.trials if trial.kind == "trial"]
    baselines = len(plan.trials) - len(trials)
    models = ", ".join(dict.fromkeys(trial.config.model.name for trial in trials))
    remaining_keys = {trial.key for trial in remaining}
    counts = Counter({"to run": 0, "done": 0})
    for trial in plan.trials:
        state = states[trial.key].name
        counts["to run" if trial.key in remaining_keys and state != "broken" else state] += 1
    counts["invalid"] += len(plan.invalid)
    by_state = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state in ("to run", "done"))
    rows = f"{count_noun(len(trials), 'trial')} and {count_noun(baselines, 'baseline')} of {models}"
    return f"sweep {name}: {rows}; {by_state}"


def format_data(plan: Plan) -> list[str]:
    """A line for each data set: the sizes of its splits, and the numbers of rows that were left out or cut."""
    lines = []
    for source, trial in {trial.config.data.name: trial for trial in plan.trials if trial.kind == "trial"}.items():
        data = trial.facts.data
        if data.train_rows is None:
            lines.append(f"data {source}: not downloaded yet, so the numbers of rows and tokens are unknown")
            continue
        tokens = "" if data.train_tokens is None else f", {data.train_tokens:,} training tokens an epoch"
        dropped = "".join(f"; {count} left out ({reason})" for reason, count in data.dropped.items())
        cut = ""
        if data.cut_rows or data.cut_validation_rows:
            rows = f"{data.cut_rows} training and {data.cut_validation_rows or 0} validation rows"
            cut = f"; {rows} cut at {trial.config.train.max_length} tokens"
        lines.append(
            f"data {source}: {data.train_rows} training, {data.validation_rows} validation, "
            f"{data.test_rows} test rows{tokens}{dropped}{cut}"
        )
    return lines


def find_worker_memory(slots: Sequence[Slot]) -> int | None:
    """Bytes of memory of the worker that has most of it; None if a device does not report its memory.

    Args:
        slots: the slot of each worker. Workers that share a slot divide its memory.
    """
    shares = [None if slot.memory_bytes is None else slot.memory_bytes // slots.count(slot) for slot in slots]
    reported = [share for share in shares if share is not None]
    return max(reported) if len(reported) == len(shares) else None


def format_devices(slots: Sequence[Slot], too_large: int) -> str:
    """The devices of the workers, and the number of trials that do not fit on them.

    Args:
        slots: the slot of each worker.
        too_large: how many trials do not fit.
    """
    kinds = Counter((slot.name, slot.memory_bytes) for slot in dict.fromkeys(slots))
    descriptions = []
    for (name, memory), count in kinds.items():
        size = "" if memory is None else f", {format_gibibytes(memory)}{' each' * (count > 1)}"
        descriptions.append(f"{count} x {name}{size}" if count > 1 else f"{name}{size}")
    devices = len(set(slots))
    line = f"device{'s' * (devices > 1)}: {' and '.join(descriptions)}"
    if len(slots) > devices:
        line += f"; {len(slots)} workers share {'them' if devices > 1 else 'it'}"
    return line + (f"; {too_large} of the rows {'do' if too_large > 1 else 'does'} not fit" if too_large else "")


def format_dequantized(remaining: Sequence[PlannedTrial]) -> list[str]:
    """The memory that ``quant.materialize=auto`` takes in addition to the table, on a worker that has enough."""
    extra = max(0 if trial.forecast.always else trial.forecast.materialized for trial in remaining)
    if not extra:
        return []
    return [f"dequantized weights: {extra / 2**30:.2f} GiB more, where there is room (quant.materialize=auto)"]


def format_time(
    remaining: Sequence[PlannedTrial],
    states: Mapping[Key, TrialState],
    finished: Sequence[FinishedTrial],
    slots: Sequence[Slot],
) -> str:
    """The time that the remaining trials take, from finished trials of the same base on the same device."""
    names = tuple(name for slot in slots for name in (slot.name, slot.type))
    estimate = estimate_time(remaining, states, [trial for trial in finished if trial.device.startswith(names)])
    if not estimate.trials:
        return "time unknown: no trial of this base has finished"
    seconds = estimate.seconds / min(len(set(slots)), len(remaining))
    is_for_all = estimate.trials == len(remaining)
    scope = "what is left" if is_for_all else f"{estimate.trials} of the {len(remaining)} that are left"
    source = f"from {count_noun(estimate.sources, 'finished trial')} of the same base"
    return f"about {format_duration(seconds)} for {scope} ({source})"


def format_disk(plan: Plan, states: Mapping[Key, TrialState], runs: Path, workers: int) -> str:
    """The disk space that the remaining trials need, and the space that is free."""
    needed, free = estimate_disk_bytes(plan, states, workers), measure_free_disk(runs)
    return f"disk needed: about {format_disk_bytes(needed)} in {runs} (free: {format_disk_bytes(free)})"


def format_gibibytes(count: int) -> str:
    """Bytes as ``16.0 GiB``."""
    return f"{count / 2**30:.1f} GiB"
