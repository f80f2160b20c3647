"""Which rows are tied with the best, which one to use, and how many rows came to what end.

Owns which entries are ranked and the sentences on them. The recommendation is the cheapest member of the group tied
with the best, not the highest mean: with twenty equal configurations and fifty prompts the highest looks 8 to 11 points
better than it is.
"""

import math
from collections import Counter
from dataclasses import dataclass

from sweep.report.analysis.comparison import OBJECTIVE, Compared, Standing, baseline_of, compare
from sweep.report.analysis.configurations import Entry
from sweep.report.analysis.differences import SOURCES, differing, makers
from sweep.report.analysis.load import PENDING, Row, Sweep, is_other
from sweep.report.formats.cells import interval, is_complete, is_failed, metric, row_name
from sweep.statistics.estimates import Estimate
from sweep.store.drift import describe_other_sources
from sweep.text import count_noun, escape_controls, format_count

SINGLE_SEED = "single seed: ranking not established"


@dataclass(frozen=True)
class Ranking:
    """The entries compared, and what that says.

    Attributes:
        tied: the group tied with the best, the cheapest first.
        recommended: the one to use; None where nothing is ranked.
        baseline: the recommended one's.
        choice: the recommendation in a sentence, or why there is none.
        among: of how many it is the cheapest; "" where there is none.
        notes: what qualifies it, a sentence each.
    """

    compared: Compared
    tied: list[Standing]
    recommended: Standing | None
    baseline: Row | None
    choice: str
    among: str
    notes: list[str]

    @property
    def text(self) -> str:
        return f"{self.choice} {self.among}".rstrip()


def rank(sweep: Sweep) -> Ranking:
    """Compare the complete trials of the sweep's own model and data, and choose."""
    trials = [entry for entry in sweep.entries if entry.row["kind"] == "trial"]
    scored = [entry for entry in trials if is_complete(entry.row) and entry.row.get(OBJECTIVE) is not None]
    ranked = [entry for entry in scored if not is_other(entry.row)]
    left_out = _left_out([entry.row for entry in scored if is_other(entry.row)])
    unclear = _unclear(sweep, [entry.row for entry in ranked])
    differently = evaluated_differently(sweep) or asked_differently(sweep, ranked)
    compared = compare(sweep, [] if unclear or differently else ranked)
    if unclear:
        return Ranking(compared, [], None, None, unclear, "", left_out)
    if differently:
        text = "Rows were evaluated differently: their means cannot be compared, so none is ranked."
        return Ranking(compared, [], None, None, text, "", left_out)
    if compared.best is None:
        which = " of the sweep's present model and data" if left_out else ""
        text = f"No trial{which} is complete with a {OBJECTIVE} yet, so no row is the best."
        if ranked:
            text = f"No prompt has a {OBJECTIVE} of its own in every row, so none is ranked."
        return Ranking(compared, [], None, None, text, "", left_out)
    tied = sorted((each for each in compared.standings if each.tied), key=_cost)
    chosen = next((each for each in tied if each.verdict == "high"), tied[0])
    baseline = baseline_of(sweep, sweep.rows[chosen.entry.places[0]])
    choice, among = _choice(chosen, baseline, tied), _among(chosen, tied, compared)
    notes = [_noise(compared), *left_out, _made_differently(sweep, [entry.row for entry in ranked])]
    return Ranking(compared, tied, chosen, baseline, choice, among, [note for note in notes if note])


def _cost(standing: Standing) -> tuple[float, ...]:
    """Fewest trainable parameters, then memory, then time; unknown is dearest."""
    keys = ("trainable_params", "peak_memory_bytes", "train_seconds")
    return tuple(math.inf if (value := standing.row.get(key)) is None else value for key in keys)


def _choice(chosen: Standing, baseline: Row | None, tied: list[Standing]) -> str:
    """The recommendation, with its mean and what it gains."""
    row, quality = chosen.row, chosen.quality
    assert quality is not None
    mean = f"{OBJECTIVE} {metric(OBJECTIVE, quality.value)} {interval(OBJECTIVE, quality.low, quality.high)}".rstrip()
    on = count_noun(chosen.prompts, "prompt")
    gain = chosen.versus_baseline
    if gain is None or baseline is None:
        beside = "its baseline was not asked all of these prompts"
        if baseline is None:
            beside = "there is no complete baseline to compare with"
        return f"Use {row_name(row)}: {mean} on {on}; {beside}."
    beside = gain_words(gain, f", {row_name(baseline)}")
    if chosen.verdict == "high":
        return f"Use {row_name(row)}: {mean} on {on}, {beside}."
    said = "No row is shown to be better than its baseline."
    if all(each.versus_baseline is not None and each.versus_baseline.side == "worse" for each in tied):
        said = "Use the untuned model: every row tied with the best is worse than its baseline."
    return f"{said} Of those tied with the best the cheapest is {row_name(row)}: {mean} on {on}, {beside}."


def gain_words(gain: Estimate, name: str = "") -> str:
    """``9.0 above its baseline, row B1 (baseline 4bit) (difference [2.3, 15.6])``; no span where none is known."""
    side, span = "above" if gain.value >= 0 else "below", interval(OBJECTIVE, gain.low, gain.high)
    known = f" (difference {span})" if span else ""
    return f"{metric(OBJECTIVE, abs(gain.value))} {side} its baseline{name}{known}"


def _among(chosen: Standing, tied: list[Standing], compared: Compared) -> str:
    """Of how many it is the cheapest, and which one has the highest mean."""
    assert compared.best is not None
    best = compared.standings[compared.best]
    ranked = count_noun(len(compared.ranked), "ranked row")
    if len(tied) == 1:
        return f"It alone is tied with the best, of {ranked}." if len(compared.ranked) > 1 else "It is the only one."
    which = "the cheapest" if chosen is tied[0] else "the cheapest that is better than its baseline"
    text = f"It is {which} of {len(tied)} tied with the best, of {ranked}"
    if best is chosen:
        return f"{text}, and has the highest mean." if is_alone_at_the_top(compared) else f"{text}."
    assert best.quality is not None
    mine, its = chosen.row["trainable_params"], best.row["trainable_params"]
    cost = (
        f", which trains {format_count(its)} parameters instead of {format_count(mine)}"
        if mine and its and mine != its
        else ""
    )
    return f"{text}; the highest mean, {metric(OBJECTIVE, best.quality.value)}, is that of {row_name(best.row)}{cost}."


def is_alone_at_the_top(compared: Compared) -> bool:
    """Whether no other ranked row has the best one's mean."""
    means = [each.quality.value for place in compared.ranked if (each := compared.standings[place]).quality]
    return means.count(max(means, default=0.0)) == 1


def _noise(compared: Compared) -> str:
    """Which noises the intervals hold."""
    standings = [compared.standings[place] for place in compared.ranked]
    seeds = sorted({each.seeds for each in standings})
    if compared.noise is None:
        return f"{SINGLE_SEED}. Intervals are over prompts alone; python -m sweep.confirm trains the tied rows again."
    deviation = metric(OBJECTIVE, math.sqrt(compared.noise.variance))
    several = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else count_noun(seeds[0], "seed")
    alone = " Rows with a single seed: ranking not established." if seeds[0] == 1 else ""
    return f"{several} a row: intervals hold the noise of prompts and of seeds (standard deviation {deviation}).{alone}"


def _left_out(rows: list[Row]) -> list[str]:
    """``2 rows were made from other data and are not ranked.``"""
    counts = Counter(describe_other_sources(row["drift"]) for row in rows)
    verbs = {True: ("row was", "is"), False: ("rows were", "are")}
    words = ((count, *verbs[count == 1], what) for what, count in counts.items())
    return [f"{count} {rows_were} made from {what} and {are} not ranked." for count, rows_were, are, what in words]


def _unclear(sweep: Sweep, rows: list[Row]) -> str:
    """Where rows of one name were made from several sources, and an older sweep's file does not say which is meant."""
    several = [name for name in differing(sweep, rows) if name.startswith(SOURCES)]
    unknown = [name for name in several if name not in sweep.sources]
    if not unknown:
        return ""
    names = " and of ".join(escape_controls(name) for name in unknown)
    return (
        f"No row is ranked: rows of {names} were made from different sources (see Differences between rows), and this "
        "sweep's file does not say which is meant now. Running the sweep's command again records it."
    )


def _made_differently(sweep: Sweep, ranked: list[Row]) -> str:
    """``Rows differ in code: see Differences between rows.``, of those that are ranked and of their baselines."""
    baselines = [baseline for row in ranked if (baseline := baseline_of(sweep, row)) is not None]
    names = makers(differing(sweep, [*ranked, *baselines]))
    return f"Rows differ in {escape_controls(', '.join(names))}: see Differences between rows." if names else ""


def evaluated_differently(sweep: Sweep) -> bool:
    """Whether complete rows answered other prompts, or the same ones under other limits: they cannot be ranked."""
    ours = ("quant", "batch_size", "baseline_templates")
    pairs = zip(sweep.rows, sweep.results, strict=True)
    found = [result.config.get("eval") for row, result in pairs if result.status == "complete" and not is_other(row)]
    settings = [{k: v for k, v in each.items() if k not in ours} for each in found if isinstance(each, dict)]
    return any(each != settings[0] for each in settings)


def asked_differently(sweep: Sweep, ranked: list[Entry]) -> bool:
    """Whether one prompt id stands for several prompts, as under another data.split_seed or in other data."""
    asked: dict[str, list[object]] = {}
    for place in (place for entry in ranked for place in entry.places):
        for line in sweep.results[place].generations:
            what = [line.get(key) for key in ("product", "category", "reference")]
            if asked.setdefault(str(line.get("prompt_id")), what) != what:
                return True
    return False


def tally(sweep: Sweep) -> str:
    """``8 trials and 2 baselines: 8 complete, 1 diverged, 1 pending``."""
    trials = sum(row["kind"] == "trial" for row in sweep.rows)
    kinds = [count_noun(trials, "trial"), count_noun(len(sweep.rows) - trials, "baseline")]
    return f"{' and '.join(kinds)}: {statuses(sweep.rows) or 'no rows'}"


def statuses(rows: list[Row]) -> str:
    """``8 complete, 1 diverged, 1 pending``."""
    found = [str(row["status"]) for row in rows]
    order = sorted(set(found), key=lambda status: (status != "complete", status == PENDING, status))
    return ", ".join(f"{found.count(status)} {escape_controls(status)}" for status in order)


def failures(sweep: Sweep) -> list[Row]:
    return [row for row in sweep.rows if is_failed(row)]
