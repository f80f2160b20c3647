"""Key observations: sentences about the numbers of a sweep, as a person would write them under the table.

A difference is claimed only if its interval excludes zero. Otherwise the sentence says that no difference is shown, and
how large it could be.
"""

from dataclasses import dataclass
from typing import Literal

from sweep.report.analysis.configurations import OBJECTIVE
from sweep.report.analysis.effects import Factor, FactorPair, MainEffect, format_estimate_interval, format_level
from sweep.report.analysis.load import Sweep
from sweep.report.analysis.ranking import Ranking, has_single_best
from sweep.report.formats.cells import format_change, format_interval, name_row
from sweep.statistics.estimates import Estimate
from sweep.text import count_noun, escape_controls, format_decimals, format_setting

MIN_COST_DIFFERENCE = 0.05  # relative; a smaller one is not mentioned


@dataclass(frozen=True)
class Observation:
    """One sentence. The kind ``none`` means that no difference is shown."""

    kind: Literal["finding", "none", "warning"]
    text: str


def write_observations(
    sweep: Sweep, ranking: Ranking, factors: list[Factor], effects: list[MainEffect], pairs: list[FactorPair]
) -> list[Observation]:
    """All lines, the warnings last."""
    lines = [line for effect in effects for line in describe_effect(effect)]
    lines += [Observation("finding", f"Interaction: {pair.text}.") for pair in pairs if pair.interaction.is_visible]
    measured = [effect.factor for effect in effects]
    for factor in factors:
        if factor not in measured:
            name = factor.name
            text = f"The effect of {name} is unknown: no rows have all values of {name} and are equal otherwise."
            lines.append(Observation("none", text))
    lines += describe_forgetting(ranking)
    return [*lines, *warn_of_edges(ranking, factors, effects), *warn_of_single_rate(sweep, ranking)]


def describe_effect(effect: MainEffect) -> list[Observation]:
    """A sentence for each level that differs from the first, and one for all levels that are not shown to differ."""
    name, first = effect.factor.name, effect.factor.levels[0]
    pairs = f"on average over {count_noun(effect.blocks, 'pair')} of rows"
    if any(contrast.low is None for contrast in effect.contrasts):
        return [Observation("none", f"The effect of {name} is unknown: there are too few prompts.")]
    lines, unclear = [], []
    for level, contrast, costs in zip(effect.factor.levels[1:], effect.contrasts, effect.costs, strict=True):
        if not is_shown(contrast):
            unclear.append((level, contrast, costs))
            continue
        verb = "raises" if contrast.value > 0 else "lowers"
        text = f"{name} {level} instead of {first} {verb} {OBJECTIVE}: {describe_change(contrast)} {pairs}"
        lines.append(Observation("finding", f"{text}{describe_costs(costs)}."))
    if len(unclear) == 1:
        level, contrast, costs = unclear[0]
        text = (
            f"{name} {level} instead of {first} shows no difference in {OBJECTIVE}: {describe_change(contrast)} {pairs}"
        )
        lines.append(Observation("none", f"{text}{describe_costs(costs)}."))
    elif unclear:
        low = min(contrast.low or 0.0 for _, contrast, _ in unclear)
        high = max(contrast.high or 0.0 for _, contrast, _ in unclear)
        levels = f"{', '.join(level for level, _, _ in unclear[:-1])} and {unclear[-1][0]}"
        text = f"{name} {levels} instead of {first} show no difference in {OBJECTIVE}: all intervals lie within"
        lines.append(Observation("none", f"{text} {format_interval(OBJECTIVE, low, high)}, {pairs} each."))
    return lines


def describe_change(contrast: Estimate) -> str:
    return f"{format_change(OBJECTIVE, contrast.value)} {format_estimate_interval(contrast)}"


def describe_costs(costs: tuple[float | None, float | None]) -> str:
    """``, at 5.30 times the trainable parameters and 1.50 times the training time``, without nearly equal costs."""
    names = ("the trainable parameters", "the training time")
    texts = [
        f"{format_decimals(ratio, 2)} times {name}"
        for ratio, name in zip(costs, names, strict=True)
        if ratio and abs(ratio - 1) >= MIN_COST_DIFFERENCE
    ]
    return f", at {' and '.join(texts)}" if texts else ""


def describe_forgetting(ranking: Ranking) -> list[Observation]:
    """How training changed the loss on the neutral text: in the recommended row, and in the row where it is highest."""
    ranked = [standing for standing in ranking.comparison.standings if standing.is_tied is not None]
    losses = [(standing.forgetting, standing) for standing in ranked if standing.forgetting is not None]
    if not losses:
        return []
    _, worst = max(losses, key=lambda pair: pair[0])
    shown = {item.summary.mark: (loss, item) for loss, item in losses if item is ranking.recommended}
    shown |= {item.summary.mark: (loss, item) for loss, item in losses if item is worst}
    parts = [
        f"{format_change('forgetting', loss)} for {name_row(item.summary)}{', the highest' * (item is worst)}"
        for loss, item in shown.values()
    ]
    text = f"Loss on a neutral text, compared with the untuned model, in nats a token: {'; '.join(parts)}."
    return [Observation("finding", text)]


def warn_of_edges(ranking: Ranking, factors: list[Factor], effects: list[MainEffect]) -> list[Observation]:
    """A warning for each setting that seems to matter and of which the best row has the smallest or largest value."""
    comparison = ranking.comparison
    if comparison.best is None or not has_single_best(comparison):
        return []
    best = comparison.standings[comparison.best].summary
    keys = {effect.factor.key for effect in effects if any(is_shown(contrast) for contrast in effect.contrasts)}
    lines = []
    for factor in factors:
        level = format_level(best.value(factor.key))
        lowest = factor.levels[0] if factor.values[0] != 0 else None  # no smaller value exists, as of dropout
        is_at_edge = factor.is_numeric and factor.key != "bits" and level in (lowest, factor.levels[-1])
        if is_at_edge and (len(factor.levels) > 2 or factor.key in keys):
            side, further = ("largest", "larger") if level == factor.levels[-1] else ("smallest", "smaller")
            text = (
                f"Best at the edge of the grid: {name_row(best)}, which has the highest mean, has the {side} "
                f"{factor.name} tried, {level}. A {further} one may be better still."
            )
            lines.append(Observation("warning", text))
    return lines


def warn_of_single_rate(sweep: Sweep, ranking: Ranking) -> list[Observation]:
    """A warning if r was varied and the learning rate was not."""
    summaries = [standing.summary for standing in ranking.comparison.standings if standing.is_tied is not None]
    rates = {format_setting(summary.learning_rate) for summary in summaries}
    if "lora.r" not in sweep.varied or len({summary.r for summary in summaries}) < 2 or len(rates) != 1:
        return []
    text = (
        f"r was varied at one learning rate ({escape_controls(rates.pop())}): the best rate can differ with r, and "
        "variants of LoRA may score alike once each has its own best rate (arXiv 2602.04998)."
    )
    return [Observation("warning", text)]


def is_shown(contrast: Estimate) -> bool:
    """Whether the interval excludes zero."""
    return contrast.side != "undecided"
