"""A chart's sheet of paper: its head, axes and notes, what a row looks like, and texts that the font has and that fit.

Knows nothing of what a chart shows.
"""

import math
import textwrap
from collections.abc import Sequence
from functools import cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ft2font import LoadFlags
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sweep.text import escape_controls

Json = dict[str, Any]

# page.css's colours
PAPER, INK, SOFT, LINE = "#fbfaf7", "#1d2429", "#626d75", "#e3e0d8"
ACCENT, ACCENT_SOFT, TICK = "#0b6e69", "#d8ebe8", "#b4541a"
PALETTE = (ACCENT, TICK, "#3f5fae", "#a33a6a", "#6f7d17", "#7a4fa8")
DASHES = (0, (4, 3))

FONT = "DejaVu Sans"  # matplotlib brings it, so that every machine draws the same
STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a $ is a $
    "text.hinting": "none",  # else each letter's width is rounded to pixels, and a text is wider than its letters
    "axes.edgecolor": SOFT,
}
SMALL, TINY = 8, 7.5  # points
WIDTH, DPI = 7.5, 200  # inches, and pixels an inch: the page's 750 pixels at twice their size
MARGIN, HEAD, TEXT_LINE = 0.3, 0.95, 0.165  # inches: around, above a chart, and a line of small text
INNER = WIDTH - 2 * MARGIN
REMOVED = "\ufffd"


@cache
def advance(ch: str) -> float | None:
    """The width of a character in ems; None where the font does not have it."""
    font = get_font(findfont(FONT))
    if ord(ch) not in font.get_charmap():
        return None
    return float(font.load_char(ord(ch), LoadFlags.NO_SCALE).horiAdvance) / font.units_per_EM


def inches(text: str, points: float = 9) -> float:
    return sum(advance(ch) or 0.0 for ch in text) * points / 72


def plain(text: Any, width: float, points: float = 9) -> str:
    """``text`` in one line of characters that the font has, cut to ``width`` inches."""
    room, line, fits = width * 72 / points, "", 0
    for ch in " ".join(escape_controls(str(text)[:1000]).split()):
        is_mark = advance(ch) == 0
        if is_mark and len(line) > 2 and not any(map(advance, line[-3:])):
            continue  # three marks on a letter, no tower
        kept = REMOVED if advance(ch) is None else ch
        room -= advance(kept) or 0.0
        if room < 0:
            return f"{line[:fits].rstrip()}…"
        line += kept
        fits = len(line) if room >= inches("…", 72) else fits
    return line


def minus(text: str) -> str:
    return text.replace("-", "−")


def name_of(row: Json) -> str:
    return f"{row['mark']} ({row['label']})"


def sheet(title: str, subtitle: str, height: float, notes: Sequence[str] = ()) -> Figure:
    """A figure with room of ``height`` inches between its head and its notes."""
    lines = [line for note in notes for line in textwrap.wrap(note, 112)]
    figure = Figure((WIDTH, HEAD + height + TEXT_LINE * len(lines) + MARGIN / 2), dpi=DPI, facecolor=PAPER)
    write(figure, MARGIN, 0.38, title, size=13, weight="bold")
    write(figure, MARGIN, 0.6, plain(subtitle, INNER, SMALL), size=SMALL, color=SOFT)
    for place, line in enumerate(lines):
        down = HEAD + height + TEXT_LINE * (place + 0.6)
        write(figure, MARGIN, down, plain(line, INNER, SMALL), size=SMALL, color=SOFT)
    return figure


def subtitle_of(data: Json) -> str:
    """The sweep, and the row that it recommends."""
    chosen = next((row for row in data["rows"] if row["recommended"]), None)
    name = f"sweep {plain(data['name'], 2.4, SMALL)}"
    return name if chosen is None else f"{name}  ·  recommended: row {name_of(chosen)}"


def write(figure: Figure, left: float, down: float, text: str, **look: Any) -> None:
    """Text whose baseline is ``down`` inches below the top."""
    figure.text(left / WIDTH, 1 - down / figure.get_figheight(), text, va="baseline", **look)


def plot(figure: Figure, left: float, down: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the upper left corner."""
    whole = figure.get_figheight()
    axes = figure.add_axes((left / WIDTH, 1 - (down + height) / whole, width / WIDTH, height / whole))
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=SOFT, labelcolor=INK, labelsize=SMALL)
    axes.grid(color=LINE, linewidth=0.8)
    return axes


def legend(figure: Figure, handles: list[Line2D], left: float = MARGIN, down: float = 0.72, columns: int = 6) -> Legend:
    return figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(left / WIDTH, 1 - down / figure.get_figheight()),
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        borderpad=0,
        borderaxespad=0,
        columnspacing=1.6,
        handlelength=1.6,
        handletextpad=0.5,
    )


def known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def scored(data: Json) -> list[Json]:
    """The rows with a quality, the best first."""
    return sorted((row for row in data["rows"] if known(row["quality"])), key=lambda row: -row["quality"])


def look(row: Json) -> Json:
    """A row's symbol: the same in every chart."""
    if row["kind"] == "baseline":
        return {"marker": "s", "color": TICK, "markerfacecolor": TICK}
    if row["recommended"]:
        return {"marker": "o", "color": ACCENT, "markerfacecolor": ACCENT}
    if row["tied"]:
        return {"marker": "o", "color": ACCENT, "markerfacecolor": ACCENT_SOFT}
    return {"marker": "o", "color": SOFT, "markerfacecolor": PAPER}


def symbols(rows: list[Json]) -> list[Line2D]:
    """The legend of the symbols that occur."""
    rest = [row for row in rows if row["kind"] == "trial" and not row["recommended"]]
    words = {
        "recommended": [row for row in rows if row["recommended"]],
        "tied with the best": [row for row in rest if row["tied"]],
        "other trial": [row for row in rest if not row["tied"]],
        "baseline (untuned)": [row for row in rows if row["kind"] == "baseline"],
    }
    present = [(label, found[0]) for label, found in words.items() if found]
    return [Line2D([], [], linestyle="", markersize=6.5, label=label, **look(row)) for label, row in present]


def draw_row(axes: Axes, row: Json, at: tuple[float, float], across: bool = False, size: float = 6.5) -> None:
    """A row's symbol at ``at``, on the line of its interval."""
    style = look(row)
    if known(row["low"]) and known(row["high"]):
        ends = ([row["low"], row["high"]], [at[1]] * 2) if across else ([at[0]] * 2, [row["low"], row["high"]])
        axes.plot(*ends, color=style["color"], linewidth=1.4, alpha=0.7, zorder=2)
    axes.plot(*at, linestyle="", markersize=size, zorder=4, clip_on=False, **style)


def quality_axis(axes: Axes, spans: Sequence[Json], label: str = "quality (0 to 100)") -> None:
    """An upright axis with room for every interval; a span is a row, or a mean with its interval."""
    values = [span.get(key) for span in spans for key in ("low", "high", "quality", "mean")]
    finite = [value for value in values if value is not None and known(value)]
    least, most = min(finite, default=0.0), max(finite, default=1.0)
    room = 0.06 * (most - least) or 1.0
    axes.set_ylim(least - room, most + room)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_ylabel(label, fontsize=SMALL, color=SOFT)
