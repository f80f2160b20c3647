"""Which row has the highest mean, against which baseline, and how many rows came to what end.

Owns the sentence on the best row. A mean without an interval proves nothing, and the sentence says so.
"""

from dataclasses import dataclass

from sweep.report.show import is_complete, is_failed, metric, row_name, visible
from sweep.report.table import PENDING, Row, Sweep

NO_INTERVALS = "Differences come without intervals: do not read small ones."


@dataclass(frozen=True)
class Best:
    """The rows with the highest mean quality (more than one when equal), their baseline, and the sentences on them."""

    rows: list[Row]
    baseline: Row | None
    text: str


def best(sweep: Sweep) -> Best:
    """The highest mean quality among complete trials, and what it is worth."""
    ranked = [row for row in sweep.rows if row["kind"] == "trial" and is_complete(row)]
    ranked = [row for row in ranked if row.get("quality") is not None]
    if not ranked:
        return Best([], None, "No trial is complete with a quality yet, so no row is the best.")
    top = max(row["quality"] for row in ranked)
    rows = [row for row in ranked if row["quality"] == top]
    baseline = baseline_of(sweep, rows[0])
    text = f"Best mean quality: {' and '.join(row_name(row) for row in rows)} with {metric('quality', top)}; "
    if baseline is None:
        text += "there is no complete baseline to compare with."
    else:
        name = f"baseline, {row_name(baseline)},"
        text += f"the {name} has {metric('quality', baseline['quality'])}."
        if baseline["quality"] >= top:
            text += " No trial's mean is above its baseline's."
    if evaluated_differently(sweep):
        text += " Rows were evaluated differently: their means cannot be compared."
    return Best(rows, baseline, f"{text} {NO_INTERVALS}")


def evaluated_differently(sweep: Sweep) -> bool:
    """Whether complete rows answered other prompts, or the same ones under other limits: they cannot be ranked."""
    ours = ("quant", "batch_size", "baseline_templates")
    found = [result.config.get("eval") for result in sweep.results if result.status == "complete"]
    settings = [{k: v for k, v in each.items() if k not in ours} for each in found if isinstance(each, dict)]
    return any(each != settings[0] for each in settings)


def baseline_of(sweep: Sweep, row: Row) -> Row | None:
    """The baseline that the sweep names for ``row``; where it names none, the one most like it in bits and template."""
    scored = [other for other in sweep.rows if other["kind"] == "baseline" and is_complete(other)]
    scored = [other for other in scored if other.get("quality") is not None]
    if isinstance(row.get("baseline"), list):
        named = (other for other in scored if [other["trial_id"], other["eval_id"]] == row["baseline"])
        return next(named, None)
    bits = row["eval_bits"] or row["bits"]

    def likeness(other: Row) -> tuple[bool, bool]:
        return (other["eval_bits"] or other["bits"]) == bits, other["template"] == row["template"]

    return max(scored, key=likeness, default=None)


def tally(sweep: Sweep) -> str:
    """``8 trials and 2 baselines: 8 complete, 1 diverged, 1 pending``."""
    trials = sum(row["kind"] == "trial" for row in sweep.rows)
    kinds = [_plural(trials, "trial"), _plural(len(sweep.rows) - trials, "baseline")]
    return f"{' and '.join(kinds)}: {statuses(sweep.rows) or 'no rows'}"


def statuses(rows: list[Row]) -> str:
    """``8 complete, 1 diverged, 1 pending``."""
    found = [str(row["status"]) for row in rows]
    order = sorted(set(found), key=lambda status: (status != "complete", status == PENDING, status))
    return ", ".join(f"{found.count(status)} {visible(status)}" for status in order)


def failures(sweep: Sweep) -> list[Row]:
    return [row for row in sweep.rows if is_failed(row)]


def _plural(amount: int, noun: str) -> str:
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"
