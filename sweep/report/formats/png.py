"""The page's main charts as PNG files, for a paper or a slide. They draw the numbers of ``page_data`` and add none.

matplotlib lays out each chart; texts that can be long are cut before they are drawn.
"""

import io
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from lora_sweep.runs.files import write_atomic
from sweep.text import count_noun, escape_controls

Json = dict[str, Any]  # the data of the page, from page_data

# page.css's colours
PAPER, INK, SOFT, LINE = "#fbfaf7", "#1d2429", "#626d75", "#e3e0d8"
ACCENT, ACCENT_SOFT, TICK = "#0b6e69", "#d8ebe8", "#b4541a"
FONT = "DejaVu Sans"  # matplotlib contains it, so that all machines draw the same picture
STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # so that a $ is drawn as a $
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
}
WIDTH_INCHES, DOTS_PER_INCH = 7.5, 200
ROW_INCHES = 0.24  # height of a line in a chart with one line for each row
MAX_ROWS, MAX_LEVELS = 40, 8  # drawn rows of a sweep, and contrasts of a factor
MAX_LABEL, MAX_NAME = 30, 40  # characters
RUNAWAY_FACTOR = 1.5  # losses higher than this times the highest first loss are not drawn


def write_pngs(data: Json, folder: Path) -> list[Path]:
    """Write each chart that has something to show; the same data give the same bytes.

    Args:
        data: the data of the page, from ``page_data``.

    Returns:
        The paths of the charts. The old file of a chart that has nothing to show now is deleted.
    """
    written = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # so that a matplotlibrc of the user changes nothing
        matplotlib.rcParams.update(STYLE)
        for name, draw in CHARTS.items():
            path, figure = folder / name, draw(data)
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            content = render_png(figure)
            if not path.exists() or path.read_bytes() != content:
                write_atomic(path, content)
            written.append(path)
    return written


def render_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


# --- parts of a chart ------------------------------------------------------------------------------------------------


@cache
def is_in_font(character: str) -> bool:
    return ord(character) in get_font(findfont(FONT)).get_charmap()


def cut_text(text: object, length: int) -> str:
    """``text`` on one line of at most ``length`` characters; those that the font lacks become U+FFFD."""
    line = " ".join(escape_controls(str(text)[:1000]).split())
    line = "".join(character if is_in_font(character) else "\ufffd" for character in line)
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def new_chart(data: Json, title: str, height: float, notes: Sequence[str] = ()) -> tuple[Figure, Axes]:
    """A figure of ``height`` inches, with the title, the name of the sweep and notes; and its axes."""
    figure = Figure((WIDTH_INCHES, height), dpi=DOTS_PER_INCH, facecolor=PAPER, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(title, x=0.01, ha="left", size=12, weight="bold")
    axes.set_title(f"sweep {cut_text(data['name'], MAX_NAME)}", loc="left", size=8, color=SOFT)
    if notes:
        figure.supxlabel("\n".join(notes), x=0.01, ha="left", size=8, color=SOFT)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, labelcolor=INK, labelsize=8)
    return figure, axes


def describe_role(row: Json) -> tuple[str, str, str, str]:
    """How all charts draw a row: its text in the legend, its marker, colour and fill."""
    if row["kind"] == "baseline":
        return "baseline (untuned)", "s", TICK, TICK
    if row["recommended"]:
        return "recommended", "o", ACCENT, ACCENT
    return ("tied with the best", "o", ACCENT, ACCENT_SOFT) if row["tied"] else ("other trial", "o", SOFT, PAPER)


def draw_rows(axes: Axes, rows: Sequence[Json], positions: Sequence[float], flat: bool) -> None:
    """Draw the quality of each row with its interval.

    Args:
        positions: the position of each row on the other axis.
        flat: whether the intervals are horizontal.
    """
    drawn: set[str] = set()
    for row, position in zip(rows, positions, strict=True):
        role, marker, colour, fill = describe_role(row)
        has_interval = is_number(row["low"]) and is_number(row["high"])
        below, above = (row["quality"] - row["low"], row["high"] - row["quality"]) if has_interval else (0.0, 0.0)
        x, y = (row["quality"], position) if flat else (position, row["quality"])
        error = {("xerr" if flat else "yerr"): [[max(0.0, below)], [max(0.0, above)]]}
        label = role if role not in drawn else "_nolegend_"
        axes.errorbar(x, y, fmt=marker, color=colour, mfc=fill, elinewidth=1.2, label=label, **error)  # type: ignore[arg-type]
        drawn.add(role)
    if rows:
        axes.legend(loc="best", fontsize=8, frameon=False)


def select_rows(data: Json) -> tuple[list[Json], list[str]]:
    """The rows to draw, the best first, and notes on the rows that are left out."""
    scored = sorted((row for row in data["rows"] if is_number(row["quality"])), key=lambda row: -row["quality"])
    notes, rows = [], scored
    if len(scored) > MAX_ROWS:
        required = [row for row in scored if row["recommended"] or row["kind"] == "baseline"][: MAX_ROWS // 2]
        best = [row for row in scored if row not in required][: MAX_ROWS - len(required)]
        rows = [row for row in scored if row in required or row in best]
        notes.append(f"The best {len(best)} of {len(scored):,} rows, beside the recommended one and the baselines.")
    without = [row for row in data["rows"] if not is_number(row["quality"])]
    if without:
        shown = ", ".join(f"{cut_text(row['mark'], 8)} ({cut_text(row['status'], 20)})" for row in without[:4])
        more = f" and {len(without) - 4} more" if len(without) > 4 else ""
        notes.append(f"Not drawn because they have no quality: {count_noun(len(without), 'row')}, {shown}{more}.")
    return rows, notes


# --- the charts ------------------------------------------------------------------------------------------------------


def draw_ranking(data: Json) -> Figure | None:
    """The quality of each row with its interval: one line for each row, the best at the top."""
    rows, notes = select_rows(data)
    if not rows:
        return None
    figure, axes = new_chart(
        data, "Quality of each configuration", 1.9 + ROW_INCHES * len(rows) + 0.15 * len(notes), notes
    )
    draw_rows(axes, rows, range(len(rows)), flat=True)
    names = [f"{cut_text(row['mark'], 8)}  {cut_text(row['label'], MAX_LABEL)}" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("quality (0 to 100) with its 95 % interval", size=8, color=SOFT)
    return figure


def draw_cost(data: Json) -> Figure | None:
    """Quality against trainable parameters, on a logarithmic axis; a baseline trains none and is a line."""
    rows = [row for row in select_rows(data)[0] if row["kind"] == "trial" and is_number(row["trainable_params"])]
    rows = [row for row in rows if row["trainable_params"] > 0]
    if not rows:
        return None
    figure, axes = new_chart(data, "Quality against trainable parameters", 4.6)
    baselines = [row["quality"] for row in data["rows"] if row["kind"] == "baseline" and is_number(row["quality"])]
    for number, quality in enumerate(baselines):
        label = None if number else "baseline (untuned)"
        axes.axhline(quality, color=TICK, linewidth=0.9, linestyle="--", label=label)
    positions = spread_equal([float(row["trainable_params"]) for row in rows])
    draw_rows(axes, rows, positions, flat=False)
    for row, position in zip(rows, positions, strict=True):
        axes.annotate(
            cut_text(row["mark"], 8), (position, row["quality"]), (5, 3), textcoords="offset points", size=7.5
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 500k, 1M
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("trainable parameters", size=8, color=SOFT)
    axes.set_ylabel("quality (0 to 100)", size=8, color=SOFT)
    return figure


def spread_equal(costs: list[float]) -> list[float]:
    """The costs with equal ones a little apart, so that every row is visible."""
    return [cost * (1 + 0.04 * costs[:index].count(cost)) for index, cost in enumerate(costs)]


def draw_effects(data: Json) -> Figure | None:
    """The difference that each setting makes, with its interval; in colour if the interval excludes zero."""
    contrasts = [
        (f"{cut_text(effect['factor'], 16)}: {cut_text(c['level'], 16)} − {cut_text(c['against'], 16)}", c)
        for effect in data["effects"]
        for c in effect["contrasts"][:MAX_LEVELS]
        if is_number(c["value"])
    ]
    if not contrasts:
        return None
    hidden = sum(len(effect["contrasts"]) for effect in data["effects"]) - len(contrasts)
    notes = [f"Not drawn: {count_noun(hidden, 'difference')}."] if hidden else []
    figure, axes = new_chart(data, "What each setting changes", 1.6 + 0.3 * len(contrasts), notes)
    for position, (_, contrast) in enumerate(contrasts):
        colour = ACCENT if contrast["shown"] else SOFT
        if is_number(contrast["low"]) and is_number(contrast["high"]):
            axes.plot([contrast["low"], contrast["high"]], [position, position], color=colour, linewidth=1.4)
        axes.plot(contrast["value"], position, "o", color=colour)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(contrasts)), [name for name, _ in contrasts])
    axes.set_ylim(len(contrasts) - 0.5, -0.5)
    axes.set_xlabel("difference in quality; green where its 95 % interval excludes 0", size=8, color=SOFT)
    return figure


def draw_losses(data: Json) -> Figure | None:
    """The training loss of each trial at its steps; the recommended row is in colour, the others are grey."""
    curves = [curve for curve in data["curves"] if any(map(is_number, curve["losses"]))]
    if not curves:
        return None
    recommended = {row["mark"] for row in data["rows"] if row["recommended"]}
    figure, axes = new_chart(data, "Training loss", 4.2)
    first = [curve["losses"][0] for curve in curves if is_number(curve["losses"][0])]
    top = RUNAWAY_FACTOR * max(first, default=1.0)
    label: str | None = "recommended"  # only once in the legend, also if the recommended row has several seeds
    for curve in curves:
        pairs = zip(curve["steps"], curve["losses"], strict=True)
        points = [(step, loss) for step, loss in pairs if is_number(loss) and loss <= top]
        if points:
            (line,) = axes.plot(*zip(*points, strict=True), color=SOFT, linewidth=0.9, alpha=0.8)
            if curve.get("entry", curve["mark"]) in recommended:  # "entry" is the mark of the trial's configuration
                line.set(color=ACCENT, linewidth=2.0, label=label, zorder=3)
                label = None
    outside = sum(is_number(loss) and loss > top for curve in curves for loss in curve["losses"])
    if outside:
        words = f"Not drawn: {count_noun(outside, 'loss value')} higher than {top:.1f}."
        figure.supxlabel(words, x=0.01, ha="left", size=8, color=SOFT)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", fontsize=8, frameon=False)
    axes.set_xlabel("step", size=8, color=SOFT)
    axes.set_ylabel("loss (nats a token)", size=8, color=SOFT)
    return figure


CHARTS: dict[str, Callable[[Json], Figure | None]] = {
    "ranking.png": draw_ranking,
    "pareto.png": draw_cost,
    "effects.png": draw_effects,
    "losses.png": draw_losses,
}
