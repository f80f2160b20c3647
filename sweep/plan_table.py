"""A plan as a terminal shows it: what the command means, and a line a trial."""

from pathlib import Path

from lora_sweep import results
from sweep.trials import Plan, Planned

HEADERS = ("#", "trial", "id", "state", "target modules", "trainable", "memory")
RIGHT = {0, 5, 6}
MODULES_WIDTH = 44


def plan_table(plan: Plan, runs: Path, name: str) -> str:
    """The plan's head and its rows.

    ``trainable`` counts parameters exactly; ``memory`` is the forecast of one training step, in GiB.
    """
    lines = [row(number, trial, runs) for number, trial in enumerate(plan.trials, start=1)]
    widths = [max(len(line[i]) for line in [HEADERS, *lines]) for i in range(len(HEADERS))]

    def aligned(line: tuple[str, ...]) -> str:
        cells = [c.rjust(w) if i in RIGHT else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([head(plan, runs, name), "", aligned(HEADERS), *(aligned(line) for line in lines), ""])


def head(plan: Plan, runs: Path, name: str) -> str:
    """Two lines: how many trials of what, and the data."""
    trials = [trial for trial in plan.trials if trial.kind == "trial"]
    done = sum(results.is_settled(runs, *trial.key) for trial in plan.trials)
    baselines = len(plan.trials) - len(trials)
    models = ", ".join(dict.fromkeys(trial.config.model.name for trial in trials))
    counts = f"{len(trials)} trial{'s' * (len(trials) != 1)} and {baselines} baseline{'s' * (baselines != 1)}"
    lines = [f"sweep {name}: {counts} of {models}; {len(plan.trials) - done} to run, {done} done"]
    for source, trial in {trial.config.data.name: trial for trial in trials}.items():
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
    return "\n".join(lines)


def row(number: int, trial: Planned, runs: Path) -> tuple[str, ...]:
    modules = ", ".join(trial.target_modules)
    if len(modules) > MODULES_WIDTH:
        modules = modules[: MODULES_WIDTH - 1] + "…"
    return (
        str(number),
        trial.label,
        trial.trial_id,
        state(trial, runs),
        modules or "-",
        f"{trial.trainable_params:,}",
        f"{trial.forecast.total / 2**30:.2f} GiB",
    )


def state(trial: Planned, runs: Path) -> str:
    """``done``, ``new``, ``trained`` when only the evaluation is left, or the outcome that will be tried again."""
    if results.is_settled(runs, *trial.key):
        return "done"
    result = results.load_result(runs, *trial.key)
    if result.status:
        return result.status
    return "trained" if result.training and trial.kind == "trial" else "new"
