"""Which configurations are tied with the best, which one to use, and how many trials have which status.

This module decides which configurations are ranked, and writes the sentences about them. It recommends the cheapest
configuration of the tied group and not the one with the highest mean: among twenty equal configurations scored on fifty
prompts, the highest mean looks 8 to 11 points better than it is.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sweep.report.analysis.comparison import Comparison, Standing, compare, find_baseline
from sweep.report.analysis.configurations import OBJECTIVE, PENDING, Configuration, Trial, TrialSummary
from sweep.report.analysis.differences import SOURCE_PREFIXES, find_differences, select_makers
from sweep.report.analysis.load import Sweep
from sweep.report.formats.cells import format_interval, format_metric, name_row
from sweep.statistics.estimates import Estimate
from sweep.store.drift import describe_other_sources
from sweep.text import count_noun, escape_controls, format_count

SINGLE_SEED = "single seed: ranking not established"


@dataclass(frozen=True)
class Ranking:
    """The comparison of a sweep, and the recommendation that follows from it.

    Attributes:
        tied: the group tied with the best, the cheapest first.
        recommended: the configuration to use; None if nothing is ranked.
        baseline: the baseline of the recommended configuration.
        choice: the recommendation in a sentence, or the reason why there is none.
        rivals: how the recommended configuration stands among the other ranked ones; "" if nothing is ranked.
        notes: sentences on what limits the recommendation.
    """

    comparison: Comparison
    tied: list[Standing]
    recommended: Standing | None
    baseline: Trial | None
    choice: str
    rivals: str
    notes: list[str]

    @property
    def text(self) -> str:
        return f"{self.choice} {self.rivals}".rstrip()


def rank(sweep: Sweep) -> Ranking:
    """Compare the complete configurations of the sweep's present model and data, and choose one."""
    scored = [item for item in sweep.configurations if not item.summary.is_baseline and item.summary.is_scored]
    ranked = [item for item in scored if not item.summary.is_outdated]
    left_out = describe_outdated([item.summary for item in scored if item.summary.is_outdated])
    obstacle = find_obstacle(sweep, ranked)
    comparison = compare(sweep, [] if obstacle else ranked)
    if comparison.best is None:
        which = " of the sweep's present model and data" if left_out else ""
        text = f"No trial{which} is complete with a {OBJECTIVE} yet, so no row is the best."
        if ranked:
            text = f"No prompt has a {OBJECTIVE} in every row, so no row is ranked."
        return Ranking(comparison, [], None, None, obstacle or text, "", left_out)
    tied = sorted((standing for standing in comparison.standings if standing.is_tied), key=measure_cost)
    chosen = next((standing for standing in tied if standing.verdict == "high"), tied[0])
    baseline = find_baseline(sweep, chosen.configuration.trials[0])
    notes = [describe_noise(comparison), *left_out, note_makers(sweep, ranked)]
    return Ranking(
        comparison,
        tied,
        chosen,
        baseline,
        describe_choice(chosen, baseline, tied),
        describe_rivals(chosen, tied, comparison),
        [note for note in notes if note],
    )


def measure_cost(standing: Standing) -> tuple[float, ...]:
    """The cost to sort by: trainable parameters, then memory, then time. An unknown cost counts as the highest."""
    summary = standing.summary
    costs = (summary.trainable_params, summary.peak_memory_bytes, summary.train_seconds)
    return tuple(math.inf if cost is None else cost for cost in costs)


# --- why nothing is ranked ---------------------------------------------------------------------------------------


def find_obstacle(sweep: Sweep, ranked: list[Configuration]) -> str:
    """A sentence on why the configurations cannot be compared; "" if they can."""
    unclear = find_unclear_sources(sweep, ranked)
    if unclear:
        names = " and of ".join(escape_controls(name) for name in unclear)
        return (
            f"No row is ranked: rows of {names} were made from different sources (see Differences between rows), and "
            "this sweep's file does not record which source is the present one. Run the sweep's command again to "
            "record it."
        )
    if is_evaluated_differently(sweep) or is_asked_differently(ranked):
        return "Rows were evaluated differently, so their means cannot be compared and no row is ranked."
    return ""


def find_unclear_sources(sweep: Sweep, ranked: list[Configuration]) -> list[str]:
    """Names of models and data that stand for several sources, if the sweep's file does not record the present one."""
    differences = find_differences(sweep, [trial.summary for trial in list_scored(ranked)])
    return [name for name in differences if name.startswith(SOURCE_PREFIXES) and name not in sweep.sources]


def list_scored(configurations: list[Configuration]) -> list[Trial]:
    return [trial for configuration in configurations for trial in configuration.trials if trial.summary.is_scored]


def is_evaluated_differently(sweep: Sweep) -> bool:
    """Whether complete rows answered different prompts, or the same prompts under different limits."""
    ignored = ("quant", "batch_size", "baseline_templates")  # they change no text, or the table has a column for them
    present = [trial for trial in sweep.trials if trial.record.status == "complete" and not trial.summary.is_outdated]
    configs = [trial.record.config.get("eval") for trial in present]
    settings = [{k: v for k, v in config.items() if k not in ignored} for config in configs if isinstance(config, dict)]
    return any(setting != settings[0] for setting in settings)


def is_asked_differently(ranked: list[Configuration]) -> bool:
    """Whether one prompt id stands for several prompts, for example because data.split_seed or the data changed."""
    prompts: dict[str, list[object]] = {}
    for trial in (trial for configuration in ranked for trial in configuration.trials):
        for line in trial.record.generations:
            content = [line.get(key) for key in ("product", "category", "reference")]
            if prompts.setdefault(str(line.get("prompt_id")), content) != content:
                return True
    return False


# --- sentences ---------------------------------------------------------------------------------------------------


def describe_choice(chosen: Standing, baseline: Trial | None, tied: list[Standing]) -> str:
    """The recommendation, with its mean and its gain over the baseline."""
    summary, quality = chosen.summary, chosen.quality
    assert quality is not None
    interval = format_interval(OBJECTIVE, quality.low, quality.high)
    mean = f"{OBJECTIVE} {format_metric(OBJECTIVE, quality.value)} {interval}".rstrip()
    prompts = count_noun(chosen.prompts, "prompt")
    gain = chosen.versus_baseline
    if gain is None or baseline is None:
        reason = "its baseline did not answer all of these prompts"
        if baseline is None:
            reason = "there is no complete baseline to compare with"
        return f"Use {name_row(summary)}: {mean} on {prompts}; {reason}."
    gain_text = describe_gain(gain, f", {name_row(baseline.summary)}")
    if chosen.verdict == "high":
        return f"Use {name_row(summary)}: {mean} on {prompts}, {gain_text}."
    advice = "No row is shown to be better than its baseline."
    if all(item.versus_baseline is not None and item.versus_baseline.side == "worse" for item in tied):
        advice = "Use the untuned model: every row tied with the best is worse than its baseline."
    return f"{advice} The cheapest row tied with the best is {name_row(summary)}: {mean} on {prompts}, {gain_text}."


def describe_gain(gain: Estimate, baseline: str = "") -> str:
    """``9.0 above its baseline, row B1 (baseline 4bit) (difference [2.3, 15.6])``, without an unknown interval."""
    side, interval = "above" if gain.value >= 0 else "below", format_interval(OBJECTIVE, gain.low, gain.high)
    difference = f" (difference {interval})" if interval else ""
    return f"{format_metric(OBJECTIVE, abs(gain.value))} {side} its baseline{baseline}{difference}"


def describe_rivals(chosen: Standing, tied: list[Standing], comparison: Comparison) -> str:
    """How many rows are tied with the chosen one, and which row has the highest mean."""
    assert comparison.best is not None
    best = comparison.standings[comparison.best]
    ranked = count_noun(len(comparison.ranked), "ranked row")
    if len(comparison.ranked) == 1:
        return "It is the only ranked row."
    if len(tied) == 1:
        return f"It is the best of {ranked}: no other row is tied with it."
    which = "the cheapest" if chosen is tied[0] else "the cheapest with a gain over its baseline"
    text = f"It is {which} of {len(tied)} rows tied with the best, out of {ranked}"
    if best is chosen:
        return f"{text}, and has the highest mean." if has_single_best(comparison) else f"{text}."
    assert best.quality is not None
    chosen_params, best_params = chosen.summary.trainable_params, best.summary.trainable_params
    cost = ""
    if chosen_params and best_params and chosen_params != best_params:
        cost = f", which trains {format_count(best_params)} parameters instead of {format_count(chosen_params)}"
    mean = format_metric(OBJECTIVE, best.quality.value)
    return f"{text}. The highest mean, {mean}, is that of {name_row(best.summary)}{cost}."


def has_single_best(comparison: Comparison) -> bool:
    """Whether exactly one ranked row has the highest mean."""
    means = [standing.quality.value for standing in comparison.ranked_standings if standing.quality]
    return means.count(max(means, default=0.0)) == 1


def describe_noise(comparison: Comparison) -> str:
    """A sentence on which noise the intervals allow for."""
    seeds = sorted({standing.seeds for standing in comparison.ranked_standings})
    if comparison.noise is None:
        return (
            f"{SINGLE_SEED}. Intervals allow for the choice of prompts only; python -m sweep.confirm trains the tied "
            "rows with more seeds."
        )
    deviation = format_metric(OBJECTIVE, math.sqrt(comparison.noise.variance))
    several = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else count_noun(seeds[0], "seed")
    single = " Rows with a single seed: ranking not established." if seeds[0] == 1 else ""
    return (
        f"{several} per row: intervals allow for the choice of prompts and of seeds (standard deviation between seeds "
        f"{deviation}).{single}"
    )


def describe_outdated(summaries: list[TrialSummary]) -> list[str]:
    """``2 rows were made from other data and are not ranked.``"""
    counts = Counter(describe_other_sources(list(summary.drift)) for summary in summaries)
    notes = []
    for sources, count in counts.items():
        subject, verb = ("row was", "is") if count == 1 else ("rows were", "are")
        notes.append(f"{count} {subject} made from {sources} and {verb} not ranked.")
    return notes


def note_makers(sweep: Sweep, ranked: list[Configuration]) -> str:
    """``Rows differ in code: see Differences between rows.``, for the ranked rows and their baselines."""
    trials = list_scored(ranked)
    baselines = [baseline.summary for trial in trials if (baseline := find_baseline(sweep, trial)) is not None]
    names = select_makers(find_differences(sweep, [*(trial.summary for trial in trials), *baselines]))
    return f"Rows differ in {escape_controls(', '.join(names))}: see Differences between rows." if names else ""


def count_trials(sweep: Sweep) -> str:
    """``8 trials and 2 baselines: 8 complete, 1 diverged, 1 pending``"""
    summaries = [trial.summary for trial in sweep.trials]
    baselines = sum(summary.is_baseline for summary in summaries)
    kinds = [count_noun(len(summaries) - baselines, "trial"), count_noun(baselines, "baseline")]
    return f"{' and '.join(kinds)}: {count_statuses(summaries) or 'no rows'}"


def count_statuses(summaries: Sequence[TrialSummary]) -> str:
    """``8 complete, 1 diverged, 1 pending``"""
    statuses = [summary.status for summary in summaries]
    order = sorted(set(statuses), key=lambda status: (status != "complete", status == PENDING, status))
    return ", ".join(f"{statuses.count(status)} {escape_controls(status)}" for status in order)
