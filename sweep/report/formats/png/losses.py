"""The training loss at each step: a few trials are told apart by colour, of many the recommended row's stand out."""

from statistics import median_low

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sweep.report.formats.png.sheet import (
    ACCENT,
    HEAD,
    INNER,
    MARGIN,
    PALETTE,
    SMALL,
    SOFT,
    Json,
    known,
    legend,
    plain,
    plot,
    sheet,
    subtitle_of,
)
from sweep.text import format_count

Curve = tuple[Json, list[tuple[float, float]]]  # its row, and (step, loss)s
MOST = 12  # curves that are told apart
GREY = "#b3b9bd"  # so light that the recommended one's line is seen on a thousand others
INSET, NAMES = 0.45, 2.2  # inches: left of the axes, and of the legend


def losses(data: Json) -> Figure | None:
    curves = curves_of(data)
    if not curves:
        return None
    few = len(curves) <= MOST
    least, most, above = ends([loss for _, points in curves for _, loss in points], [p[0][1] for _, p in curves])
    notes = [f"Higher than {most:.3g}, and not drawn: {format_count(above)} of the losses."] if above else []
    figure = sheet("Training loss at each step", subtitle_of(data), 3.95, notes)
    width = INNER - INSET - (NAMES if few else 0)
    axes = plot(figure, MARGIN + INSET, HEAD - 0.1 if few else HEAD + 0.1, width, 3.45 if few else 3.25)
    (draw_few if few else draw_many)(figure, axes, curves)
    steps = [step for _, points in curves for step, _ in points]
    room = 0.02 * (max(steps) - min(steps)) or 1
    axes.set_xlim(min(steps) - room, max(steps) + room)
    room = 0.05 * (most - least) or 0.1
    axes.set_ylim(least - room, most + room)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.set_xlabel("training step", fontsize=SMALL, color=SOFT)
    axes.set_ylabel("loss (nats a token)", fontsize=SMALL, color=SOFT)
    return figure


def curves_of(data: Json) -> list[Curve]:
    """The curves of known rows, that of the highest last loss first, as the lines end."""
    rows, found = {row["mark"]: row for row in data["rows"]}, []
    for curve in data["curves"]:
        row = rows.get(curve.get("entry", curve["mark"]))
        points = [(x, y) for x, y in zip(curve["steps"], curve["losses"], strict=True) if known(x) and known(y)]
        if row is not None and points:
            found.append((row, points))
    return sorted(found, key=lambda curve: -curve[1][-1][1])


def ends(losses: list[float], firsts: list[float]) -> tuple[float, float, int]:
    """The least and most that are drawn, and how many are above: one that ran away would flatten all others."""
    limit = 1.3 * median_low(firsts)
    drawn = [loss for loss in losses if loss <= limit] or losses
    return min(drawn), max(drawn), len(losses) - len(drawn)


def draw_few(figure: Figure, axes: Axes, curves: list[Curve]) -> None:
    """A colour a row, which its seeds share; the recommended one's is the accent, and wider."""
    rows = {row["mark"]: row for row, _ in curves}
    others = [mark for mark, row in rows.items() if not row["recommended"]]
    free = [(colour, line) for line in ("-", "--", ":") for colour in PALETTE if (colour, line) != (ACCENT, "-")]
    looks = {mark: (*look, 1.2) for mark, look in zip(others, free, strict=False)}
    looks |= {mark: (ACCENT, "-", 2.6) for mark in rows if mark not in looks}
    for row, points in curves:
        colour, line, width = looks[row["mark"]]
        point = "o" if len(points) == 1 else ""
        over = 4 if row["recommended"] else 2
        axes.plot(*zip(*points, strict=True), color=colour, ls=line, linewidth=width, marker=point, zorder=over)
    handles = []
    for mark, row in rows.items():
        colour, line, width = looks[mark]
        label = plain(f"{mark}  {row['label']}", (NAMES - 0.6) / 1.1, SMALL)
        handles.append(Line2D([], [], color=colour, ls=line, linewidth=width, label=label))
    names = legend(figure, handles, MARGIN + INNER - NAMES + 0.2, HEAD - 0.05, columns=1)
    for row, text in zip(rows.values(), names.get_texts(), strict=True):
        text.set_fontweight("bold" if row["recommended"] else "normal")


def draw_many(figure: Figure, axes: Axes, curves: list[Curve]) -> None:
    strength = max(0.06, min(0.9, 25 / len(curves)))
    chosen = [points for row, points in curves if row["recommended"]]
    others = [points for row, points in curves if not row["recommended"]]
    axes.add_collection(LineCollection(others, colors=GREY, linewidths=0.8, alpha=strength), autolim=False)
    for points in chosen:
        axes.plot(*zip(*points, strict=True), color=ACCENT, linewidth=2, zorder=3)
    handles = [Line2D([], [], color=ACCENT, linewidth=2, label="recommended")] if chosen else []
    label = f"{format_count(len(others))} other trials" if chosen else f"{format_count(len(others))} trials"
    legend(figure, [*handles, Line2D([], [], color=GREY, linewidth=1, label=label)])
