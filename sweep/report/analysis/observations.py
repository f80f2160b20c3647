"""Key observations: the lines that a person would write under the table, written from the numbers.

Owns the sentences and when each is said. A difference is claimed only where its interval does not hold zero; otherwise
the line says that none is shown, and how large it could be. ``kind`` is ``finding``, ``none`` (no difference shown) or
``warning``.
"""

from dataclasses import dataclass

from sweep.report.analysis.comparison import OBJECTIVE
from sweep.report.analysis.effects import Factor, Joint, MainEffect, interval_text, level_of
from sweep.report.analysis.load import Sweep
from sweep.report.analysis.ranking import Ranking, is_alone_at_the_top
from sweep.report.formats.cells import change, interval, row_name
from sweep.statistics.estimates import Estimate
from sweep.text import count_noun, escape_controls, format_decimals, format_setting

SAME = 0.05  # a cost that differs by less is not worth a word


@dataclass(frozen=True)
class Observation:
    kind: str
    text: str


def observations(
    sweep: Sweep, ranking: Ranking, factors: list[Factor], effects: list[MainEffect], joint: list[Joint]
) -> list[Observation]:
    """All lines, the sweep's warnings last."""
    found = [line for effect in effects for line in factor_lines(effect)]
    found += [Observation("finding", f"An interaction: {each.text}.") for each in joint if each.found.is_visible]
    measured = [effect.factor for effect in effects]
    for factor in factors:
        if factor not in measured:
            text = f"{factor.name} was never varied alone over all of its values: what it changes is not known."
            found.append(Observation("none", text))
    found += forgetting_lines(ranking)
    return [*found, *edge_warnings(ranking, factors, effects), *rate_warnings(sweep, ranking)]


def factor_lines(effect: MainEffect) -> list[Observation]:
    """A line for each level that differs from the first, and one for those that are not shown to."""
    name, first = effect.factor.name, effect.factor.levels[0]
    others = list(zip(effect.factor.levels[1:], effect.contrasts, effect.costs, strict=True))
    pairs = f"on average over {count_noun(effect.blocks, 'pair')} of rows"
    lines = []
    if any(contrast.low is None for contrast in effect.contrasts):
        return [Observation("none", f"{name}: nothing can be said of its differences from so few prompts.")]
    for level, contrast, costs in others:
        if shown(contrast):
            verb = "raises" if contrast.value > 0 else "lowers"
            text = f"{name} {level} instead of {first} {verb} {OBJECTIVE}: {span(contrast)} {pairs}{cost_words(costs)}."
            lines.append(Observation("finding", text))
    left = [(level, contrast, costs) for level, contrast, costs in others if not shown(contrast)]
    if len(left) == 1:
        level, contrast, costs = left[0]
        text = f"{name} {level} instead of {first}: no difference in {OBJECTIVE} is shown, {span(contrast)} {pairs}"
        lines.append(Observation("none", f"{text}{cost_words(costs)}."))
    elif left:
        low, high = min(c.low or 0.0 for _, c, _ in left), max(c.high or 0.0 for _, c, _ in left)
        levels = f"{', '.join(level for level, _, _ in left[:-1])} and {left[-1][0]}"
        text = f"{name} {levels} instead of {first}: no difference in {OBJECTIVE} is shown, all within"
        lines.append(Observation("none", f"{text} {interval(OBJECTIVE, low, high)}, {pairs} each."))
    return lines


def span(contrast: Estimate) -> str:
    return f"{change(OBJECTIVE, contrast.value)} {interval_text(contrast)}"


def cost_words(costs: tuple[float | None, float | None]) -> str:
    """``, for 5.3 times the trainable parameters and 1.5 times the training time``; what stays equal is left out."""
    names = ("the trainable parameters", "the training time")
    pairs = zip(costs, names, strict=True)
    words = [f"{format_decimals(ratio, 2)} times {name}" for ratio, name in pairs if ratio and abs(ratio - 1) >= SAME]
    return f", for {' and '.join(words)}" if words else ""


def forgetting_lines(ranking: Ranking) -> list[Observation]:
    """What training did to the loss on the neutral text, of the recommended row and of the one that lost most."""
    rows = [standing.row for standing in ranking.compared.standings if standing.tied is not None]
    known = [row for row in rows if row.get("forgetting") is not None]
    if not known:
        return []
    worst = max(known, key=lambda row: row["forgetting"])
    chosen = ranking.recommended.row if ranking.recommended else None
    said = [row for row in (chosen, worst) if row is not None and row.get("forgetting") is not None]
    unique = [row for place, row in enumerate(said) if row not in said[:place]]
    parts = [
        f"{change('forgetting', row['forgetting'])} for {row_name(row)}{', the highest' * (row is worst)}"
        for row in unique
    ]
    text = f"Loss on a neutral text against the untuned model, nats a token: {'; '.join(parts)}."
    return [Observation("finding", text)]


def edge_warnings(ranking: Ranking, factors: list[Factor], effects: list[MainEffect]) -> list[Observation]:
    """Where the best row has the smallest or largest value tried of a number that seems to matter."""
    if ranking.compared.best is None or not is_alone_at_the_top(ranking.compared):
        return []
    best = ranking.compared.standings[ranking.compared.best].row
    matters = {effect.factor.key for effect in effects if any(map(shown, effect.contrasts))}
    lines = []
    for factor in factors:
        level = level_of(best.get(factor.key))
        lowest = factor.levels[0] if factor.values[0] != 0 else None  # below no dropout there is nothing
        at_edge = factor.is_numeric and factor.key != "bits" and level in (lowest, factor.levels[-1])
        if at_edge and (len(factor.levels) > 2 or factor.key in matters):
            side, further = ("largest", "larger") if level == factor.levels[-1] else ("smallest", "smaller")
            text = (
                f"Best at the edge of the grid: {row_name(best)}, which has the highest mean, has the {side} "
                f"{factor.name} tried, {level}. A {further} one may be better still."
            )
            lines.append(Observation("warning", text))
    return lines


def rate_warnings(sweep: Sweep, ranking: Ranking) -> list[Observation]:
    """Where r was varied and its learning rate was not."""
    rows = [standing.row for standing in ranking.compared.standings if standing.tied is not None]
    rates = {format_setting(row.get("learning_rate")) for row in rows}
    if "lora.r" not in sweep.varied or len({row.get("r") for row in rows}) < 2 or len(rates) != 1:
        return []
    text = (
        f"r was varied at one learning rate ({escape_controls(rates.pop())}): the best rate can differ with r, and "
        "with its rate tuned each variant of LoRA may come out alike (arXiv 2602.04998)."
    )
    return [Observation("warning", text)]


def shown(contrast: Estimate) -> bool:
    """Whether the interval does not hold zero."""
    return contrast.side != "undecided"
