"""Quality against trainable parameters, with the front: the trials that none of their cost or less beats."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from sweep.report.formats.png.sheet import (
    ACCENT,
    DASHES,
    HEAD,
    INNER,
    MARGIN,
    PAPER,
    SMALL,
    SOFT,
    TICK,
    Json,
    draw_row,
    known,
    legend,
    look,
    name_of,
    plain,
    plot,
    quality_axis,
    scored,
    sheet,
    subtitle_of,
    symbols,
)

MOST = 40  # trials that are all numbered; of more, those on the front and the recommended one
DISC = 14.0  # points across
WIDE = INNER - 0.95  # inches
ROUND = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9))  # a decade's ticks, from few to many


def pareto(data: Json) -> Figure | None:
    trials = [row for row in scored(data) if row["kind"] == "trial" and known(row["trainable_params"])]
    rows = [row for row in trials if row["trainable_params"] > 0]
    if not rows:
        return None
    front, few = front_of(rows), len(rows) <= MOST
    notes = [f"On the front: {'; '.join(plain(name_of(row), 2, SMALL) for row in front[:9])}."]
    if len({row["trainable_params"] for row in rows}) < len(rows):
        notes.append("Trials of equal cost are moved sideways, so that they are told apart.")
    figure = sheet("Quality against the number of trainable parameters", subtitle_of(data), 4.15, notes)
    axes = plot(figure, MARGIN + 0.45, HEAD + 0.15, WIDE, 3.4)
    baselines = [row for row in scored(data) if row["kind"] == "baseline"]
    numbered = [row for row in rows if few or row in front or row["recommended"]]
    quality_axis(axes, [*numbered, *baselines, *({"quality": row["quality"]} for row in rows)])
    least, most = cost_axis(axes, [row["trainable_params"] for row in rows])
    for row, x in places(rows, front, WIDE * 72 / math.log10(most / least), few):
        if row in numbered:
            disc(axes, row, x)
        else:
            axes.plot(x, row["quality"], linestyle="", markersize=3.5, alpha=0.6, zorder=2, **look(row))
    corners = [*((row["trainable_params"], row["quality"]) for row in front), (most, front[-1]["quality"])]
    axes.step(*zip(*corners, strict=True), where="post", color=ACCENT, linewidth=1.6, alpha=0.5, zorder=1)
    draw_baselines(axes, baselines)
    lines = [Line2D([], [], color=ACCENT, linewidth=1.6, alpha=0.5, label="front")]
    if baselines:
        lines.append(Line2D([], [], color=TICK, linestyle=DASHES, linewidth=1.1, label="baseline (untuned)"))
    legend(figure, [*symbols(rows), *lines])
    return figure


def front_of(rows: list[Json]) -> list[Json]:
    """By rising cost, each better than all that cost less or as much."""
    front: list[Json] = []
    for row in sorted(rows, key=lambda row: (row["trainable_params"], -row["quality"])):
        if not front or row["quality"] > front[-1]["quality"]:
            front.append(row)
    return front


def disc(axes: Axes, row: Json, x: float) -> None:
    """A row's symbol with its mark in it."""
    draw_row(axes, row, (x, row["quality"]), size=DISC)
    size = 7.5 if len(row["mark"]) < 3 else 5.5 if len(row["mark"]) < 4 else 4.5
    colour = PAPER if row["recommended"] else look(row)["color"]
    mark = plain(row["mark"], DISC / 72, size)
    axes.text(x, row["quality"], mark, size=size, color=colour, ha="center", va="center_baseline", zorder=5)


def places(rows: list[Json], front: list[Json], decade: float, few: bool) -> list[tuple[Json, float]]:
    """Where each row stands: discs that would hide each other side by side, those of the front in their place.

    Args:
        decade: points to a tenfold cost.
    """
    at = [math.log10(row["trainable_params"]) * decade for row in rows]
    kept = [row in front or row["recommended"] for row in rows]
    if not few:
        moved = [0 if stays else (place * 7 % 23 - 11) / 2 for place, stays in enumerate(kept)]
        return [(row, 10 ** ((x + by) / decade)) for row, x, by in zip(rows, at, moved, strict=True)]
    found: dict[int, float] = {}
    for place in sorted(range(len(rows)), key=lambda place: (rows[place] not in front, not kept[place])):
        near = sum(abs(other - at[place]) < DISC for other in at)
        gap = min(DISC + 1, 160 / near)
        offsets = (gap * (-1) ** step * -(-step // 2) for step in range(4 * len(rows)))
        free = (by for by in offsets if all(abs(at[place] + by - x) > 0.99 * gap for x in found.values()))
        found[place] = at[place] + next(free, 0.0)
    return [(row, 10 ** (found[place] / decade)) for place, row in enumerate(rows)]


def cost_axis(axes: Axes, costs: list[float]) -> tuple[float, float]:
    """A logarithmic axis with round ticks, in millions; its ends."""
    least, most = math.log10(min(costs)), math.log10(max(costs))
    room = max(0.15, (most - least) * 0.08)
    ends = 10 ** (least - room), 10 ** (most + room)
    powers = range(math.floor(least - room), math.ceil(most + room) + 1)
    for digits in ROUND:
        ticks = [digit * 10.0**power for power in powers for digit in digits]
        ticks = [tick for tick in ticks if ends[0] <= tick <= ends[1]]
        if len(ticks) >= 4:
            break
    ticks = ticks[:: -(-len(ticks) // 8)]
    axes.set_xscale("log")
    axes.set_xlim(*ends)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick / 1e6:.6g}" for tick in ticks])
    axes.set_xlabel("trainable parameters (millions, logarithmic)", fontsize=SMALL, color=SOFT)
    return ends


def draw_baselines(axes: Axes, baselines: list[Json]) -> None:
    """A dashed line each; of lines that nearly touch, one name for all."""
    low, high = axes.get_ylim()
    groups: list[list[Json]] = []
    for row in baselines:
        axes.axhline(row["quality"], color=TICK, linestyle=DASHES, linewidth=1.1, zorder=1)
        if groups and groups[-1][0]["quality"] - row["quality"] < (high - low) / 20:
            groups[-1].append(row)
        else:
            groups.append([row])
    for group in groups:
        words = plain(", ".join(row["mark"] for row in reversed(group)), 0.45, SMALL)
        middle = sum(row["quality"] for row in group) / len(group)
        where = axes.get_yaxis_transform()
        axes.text(1.01, middle, words, transform=where, size=SMALL, color=TICK, va="center_baseline")
