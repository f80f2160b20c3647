"""Which row has the highest mean, against which baseline, and how many rows came to what end.

Owns the sentence on the best row. A mean without an interval proves nothing, and the sentence says so.
"""

from collections import Counter
from dataclasses import dataclass

from sweep.drift import from_what
from sweep.report.differences import SOURCES, differing, makers
from sweep.report.show import is_complete, is_failed, metric, plural, row_name, visible
from sweep.report.table import PENDING, Row, Sweep, is_other

NO_INTERVALS = "Differences come without intervals: do not read small ones."


@dataclass(frozen=True)
class Best:
    """The rows with the highest mean quality (more than one when equal), their baseline, and the sentences on them."""

    rows: list[Row]
    baseline: Row | None
    text: str


def best(sweep: Sweep) -> Best:
    """The highest mean quality among complete trials of the sweep's own model and data, and what it is worth."""
    scored = [row for row in sweep.rows if row["kind"] == "trial" and is_complete(row)]
    scored = [row for row in scored if row.get("quality") is not None]
    ranked = [row for row in scored if not is_other(row)]
    left_out = _left_out([row for row in scored if is_other(row)])
    unclear = _unclear(sweep, ranked)
    if unclear:
        return Best([], None, _sentences(unclear, left_out))
    if not ranked:
        which = " of the sweep's present model and data" if left_out else ""
        return Best(
            [], None, _sentences(f"No trial{which} is complete with a quality yet, so no row is the best.", left_out)
        )
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
    differently = evaluated_differently(sweep) and "Rows were evaluated differently: their means cannot be compared."
    return Best(rows, baseline, _sentences(text, left_out, differently, _made_differently(sweep, ranked), NO_INTERVALS))


def _sentences(*texts: str | bool) -> str:
    return " ".join(text for text in texts if isinstance(text, str) and text)


def _left_out(rows: list[Row]) -> str:
    """``2 rows were made from other data and are not ranked.``"""
    counts = Counter(from_what(row["drift"]) for row in rows)
    verbs = {True: ("row was", "is"), False: ("rows were", "are")}
    words = ((count, *verbs[count == 1], what) for what, count in counts.items())
    return " ".join(
        f"{count} {rows_were} made from {what} and {are} not ranked." for count, rows_were, are, what in words
    )


def _unclear(sweep: Sweep, rows: list[Row]) -> str:
    """Where rows of one name were made from several sources, and an older sweep's file does not say which is meant."""
    several = [name for name in differing(sweep, rows) if name.startswith(SOURCES)]
    unknown = [name for name in several if name not in sweep.sources]
    if not unknown:
        return ""
    names = " and of ".join(visible(name) for name in unknown)
    return (
        f"No row is ranked: rows of {names} were made from different sources (see Differences between rows), and this "
        "sweep's file does not say which is meant now. Running the sweep's command again records it."
    )


def _made_differently(sweep: Sweep, ranked: list[Row]) -> str:
    """``Rows differ in code: see Differences between rows.``, of those that are ranked and of their baselines."""
    baselines = [baseline for row in ranked if (baseline := baseline_of(sweep, row)) is not None]
    names = makers(differing(sweep, [*ranked, *baselines]))
    return f"Rows differ in {visible(', '.join(names))}: see Differences between rows." if names else ""


def evaluated_differently(sweep: Sweep) -> bool:
    """Whether complete rows answered other prompts, or the same ones under other limits: they cannot be ranked."""
    ours = ("quant", "batch_size", "baseline_templates")
    pairs = zip(sweep.rows, sweep.results, strict=True)
    found = [result.config.get("eval") for row, result in pairs if result.status == "complete" and not is_other(row)]
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

    scored = [other for other in scored if is_other(other) == is_other(row)]

    def likeness(other: Row) -> tuple[bool, bool]:
        return (other["eval_bits"] or other["bits"]) == bits, other["template"] == row["template"]

    return max(scored, key=likeness, default=None)


def tally(sweep: Sweep) -> str:
    """``8 trials and 2 baselines: 8 complete, 1 diverged, 1 pending``."""
    trials = sum(row["kind"] == "trial" for row in sweep.rows)
    kinds = [plural(trials, "trial"), plural(len(sweep.rows) - trials, "baseline")]
    return f"{' and '.join(kinds)}: {statuses(sweep.rows) or 'no rows'}"


def statuses(rows: list[Row]) -> str:
    """``8 complete, 1 diverged, 1 pending``."""
    found = [str(row["status"]) for row in rows]
    order = sorted(set(found), key=lambda status: (status != "complete", status == PENDING, status))
    return ", ".join(f"{found.count(status)} {visible(status)}" for status in order)


def failures(sweep: Sweep) -> list[Row]:
    return [row for row in sweep.rows if is_failed(row)]
