"""A plan as a terminal shows it: what the command means, what it takes, and a line a trial."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from sweep.resources.estimate import Finished, expected_time, finished_before, left, needed_bytes
from sweep.resources.machine import Slot, find_slots, measure_free_disk
from sweep.store.trial_state import State
from sweep.text import count_noun, format_disk_bytes, format_duration
from sweep.trials import Key, Plan, PlannedTrial

HEADERS = ("#", "trial", "id", "state", "target modules", "trainable", "memory", "")
RIGHT = {0, 5, 6}
MODULES_WIDTH = 44


def plan_table(
    plan: Plan,
    runs: Path,
    name: str,
    states: Mapping[Key, State],
    notes: Sequence[str] = (),
    devices: Sequence[Slot] | None = None,
) -> str:
    """The plan's head, its rows, and why some of them cannot run or are run again.

    ``trainable`` counts parameters exactly; ``memory`` is the forecast of one training step.

    Args:
        states: of the plan's trials, by their key.
        notes: further lines of the head.
        devices: those of this machine that the plan may use; None: they are looked for.

    Raises:
        Refused: ``launch.devices`` names a device that is not there.
    """
    settings = plan.trials[0].config.launch
    given = find_slots(settings.devices) if devices is None else devices
    used = [given[i % len(given)] for i in range(settings.workers or len(given))]
    work, room = left(plan, states), room_bytes(used)
    tight = {trial.key for trial in work if room is not None and trial.forecast.total > room}
    lines = [row(n, trial, states[trial.key].name, room, tight) for n, trial in enumerate(plan.trials, start=1)]
    for number, point in enumerate(plan.invalid, start=len(lines) + 1):
        lines.append((str(number), point.label, point.trial_id, "invalid", "-", "-", "-", ""))
    head = [count_line(plan, states, work, name), *data_lines(plan), device_line(used, len(tight))]
    if work:
        head += materialize_lines(work)
        head += [time_line(work, states, finished_before(runs), used), disk_line(plan, states, runs, len(used))]
    below = [f"broken: {t.label}: {states[t.key].why}" for t in plan.trials if states[t.key].name == "broken"]
    below += [f"invalid: {point.label}: {point.reason}" for point in plan.invalid]
    return "\n".join([*head, *notes, "", *aligned(lines), *([""] if below else []), *below, ""])


def aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """The headers and the rows with columns of one width."""
    widths = [max(len(line[i]) for line in [HEADERS, *lines]) for i in range(len(HEADERS))]
    formats = [f"{{:>{w}}}" if i in RIGHT else f"{{:<{w}}}" for i, w in enumerate(widths)]
    return ["  ".join(formats).format(*line).rstrip() for line in [HEADERS, *lines]]


def row(number: int, trial: PlannedTrial, state: str, room: int | None, tight: set[Key]) -> tuple[str, ...]:
    modules = ", ".join(trial.target_modules)
    if len(modules) > MODULES_WIDTH:
        modules = modules[: MODULES_WIDTH - 1] + "…"
    return (
        str(number),
        trial.label,
        trial.trial_id,
        state,
        modules or "-",
        f"{trial.trainable_params:,}",
        f"{trial.forecast.total / 2**30:.2f} GiB",
        f"does not fit {gibibytes(room)}" if room is not None and trial.key in tight else "",
    )


# --- the head ----------------------------------------------------------------------------------------------------


def count_line(plan: Plan, states: Mapping[Key, State], work: Sequence[PlannedTrial], name: str) -> str:
    """How many trials of what, and how many of them in which state; the counts after the semicolon add up."""
    trials = [trial for trial in plan.trials if trial.kind == "trial"]
    baselines = len(plan.trials) - len(trials)
    models = ", ".join(dict.fromkeys(trial.config.model.name for trial in trials))
    working = {trial.key for trial in work}
    counts = Counter({"to run": 0, "done": 0})
    for trial in plan.trials:
        state = states[trial.key].name
        counts["to run" if trial.key in working and state != "broken" else state] += 1
    counts["invalid"] += len(plan.invalid)
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state in ("to run", "done"))
    return (
        f"sweep {name}: {count_noun(len(trials), 'trial')} and {count_noun(baselines, 'baseline')} of {models}; {shown}"
    )


def data_lines(plan: Plan) -> list[str]:
    """A line a data set: its splits, and what was left out or cut."""
    lines = []
    for source, trial in {trial.config.data.name: trial for trial in plan.trials if trial.kind == "trial"}.items():
        data = trial.facts.data
        if data.train_rows is None:
            lines.append(f"data {source}: not at hand, so lengths and drops are unknown")
            continue
        tokens = "" if data.train_tokens is None else f", {data.train_tokens:,} training tokens an epoch"
        dropped = "".join(f"; {count} left out ({why})" for why, count in data.dropped.items())
        cut = ""
        if data.cut_rows or data.cut_validation_rows:
            rows = f"{data.cut_rows} training and {data.cut_validation_rows or 0} validation rows"
            cut = f"; {rows} cut at {trial.config.train.max_length} tokens"
        lines.append(
            f"data {source}: {data.train_rows} training, {data.validation_rows} validation, "
            f"{data.test_rows} test rows{tokens}{dropped}{cut}"
        )
    return lines


def room_bytes(used: Sequence[Slot]) -> int | None:
    """Memory for one worker where there is most of it; None where a device does not tell.

    Args:
        used: the place of each worker.
    """
    shares = [None if place.memory_bytes is None else place.memory_bytes // used.count(place) for place in used]
    known = [share for share in shares if share is not None]
    return max(known) if len(known) == len(shares) else None


def device_line(used: Sequence[Slot], tight: int) -> str:
    """What the workers own, and whether every trial fits on it."""
    kinds = Counter((place.name, place.memory_bytes) for place in dict.fromkeys(used))
    named = []
    for (name, memory), count in kinds.items():
        size_of = "" if memory is None else f", {gibibytes(memory)}{' each' * (count > 1)}"
        named.append(f"{count} x {name}{size_of}" if count > 1 else f"{name}{size_of}")
    devices = len(set(used))
    line = f"device{'s' * (devices > 1)}: {' and '.join(named)}"
    if len(used) > devices:
        line += f"; {len(used)} workers share {'them' if devices > 1 else 'it'}"
    return line + (f"; {tight} of the rows {'do' if tight > 1 else 'does'} not fit" if tight else "")


def materialize_lines(work: Sequence[PlannedTrial]) -> list[str]:
    """What ``quant.materialize=auto`` adds to the memory column where a worker finds room for it."""
    more = max(0 if trial.forecast.always else trial.forecast.materialized for trial in work)
    if not more:
        return []
    return [f"dequantized weights: {more / 2**30:.2f} GiB more, where there is room (quant.materialize=auto)"]


def time_line(
    work: Sequence[PlannedTrial], states: Mapping[Key, State], finished: Sequence[Finished], used: Sequence[Slot]
) -> str:
    """How long what is left takes, after finished trials of the same base on the same device."""
    here = [each for each in finished if any(each.device.startswith((place.name, place.type)) for place in used)]
    expected = expected_time(work, states, here)
    if not expected.known:
        return "time unknown: no trial of this base has finished"
    seconds = expected.seconds / min(len(set(used)), len(work))
    part = "what is left" if expected.known == len(work) else f"{expected.known} of the {len(work)} that are left"
    source = f"from {count_noun(expected.finished, 'finished trial')} of the same base"
    return f"about {format_duration(seconds)} for {part} ({source})"


def disk_line(plan: Plan, states: Mapping[Key, State], runs: Path, workers: int) -> str:
    needed = needed_bytes(plan, states, workers)
    return (
        f"disk needed: about {format_disk_bytes(needed)} in {runs} (free: {format_disk_bytes(measure_free_disk(runs))})"
    )


# --- words -------------------------------------------------------------------------------------------------------


def gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
