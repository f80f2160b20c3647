"""The page's main charts as PNG files, for a pull request or a slide.

Draws what ``page_data`` computed and computes nothing of its own but places on a sheet. Texts are drawn as they are
(a ``$`` starts no formula), and with a box for a character that the font lacks, so that no label can break a chart.
The same data give the same bytes: matplotlib's own font, no date, no state outside of a figure.
"""

import io
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lora_sweep.results import write_atomic
from sweep.report.show import millions, plural

Json = dict[str, Any]
Chart = Callable[[Json], Figure | None]

DPI = 150
WIDTH = 8.0  # inches: 1,200 pixels
MOST_ROWS = 40  # of the ranking: more are not read on a slide
MOST_PANELS = 9
MOST_COLOURS = 8  # curves that the eye tells apart; more are drawn in grey
LABEL_LIMIT = 44  # characters
FONT = "DejaVu Sans"  # comes with matplotlib

# Okabe and Ito's colours, told apart by colour-blind people too.
TIED, OTHER, BASE, MARKED = "#0072B2", "#8a8a8a", "#D55E00", "#009E73"
FRONT = {TIED: 4, MARKED: 5}  # what others must not hide
CURVES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
QUALITY = "quality (0-100; mean over prompts, 95 % interval)"
STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 9.0,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}


def write_pngs(data: Json, folder: Path) -> list[Path]:
    """Write ranking, Pareto, effects and losses into ``folder``; a chart with nothing to draw has no file.

    Args:
        data: as ``sweep.report.page_data.page_data`` makes it.
    """
    charts: dict[str, Chart] = {"ranking": ranking, "pareto": pareto, "effects": effects, "losses": losses}
    written = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not what a user's matplotlibrc says
        matplotlib.rcParams.update(STYLE)
        for name, chart in charts.items():
            path, figure = folder / f"{name}.png", chart(data)
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            stream = io.BytesIO()
            figure.savefig(stream, format="png", metadata={"Software": None})
            if not path.exists() or path.read_bytes() != stream.getvalue():
                write_atomic(path, stream.getvalue())
            written.append(path)
    return written


def sheet(height: float, title: str, data: Json, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(f"{title} · {drawable(data['name'])}", x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=rows * columns > 1)
    return figure, list(axes.flat)


def ranking(data: Json) -> Figure | None:
    """A forest plot: every scored row's quality with its interval, best first."""
    scored = sorted((row for row in data["rows"] if is_known(row["quality"])), key=lambda row: -row["quality"])
    if not scored:
        return None
    shown = scored[:MOST_ROWS]
    left = [row for row in scored[MOST_ROWS:] if row["kind"] == "baseline"]
    shown += left[: MOST_ROWS // 4]
    figure, (axes,) = sheet(1.3 + 0.24 * max(len(shown), 4), "Ranking", data)
    for place, row in enumerate(shown):
        whisker(axes, row, place, colour_of(row), is_across=True)
    axes.set_yticks(range(len(shown)), [row_label(row) for row in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel(QUALITY)
    more = len(scored) - len(shown)
    if more:
        axes.set_title(f"{plural(more, 'row')} with less quality not shown", fontsize=9)
    legend(figure, axes, shown)
    return figure


def pareto(data: Json) -> Figure | None:
    """Quality against trainable parameters, the front as a line, baselines as levels."""
    trials = [row for row in data["rows"] if row["kind"] == "trial" and is_known(row["quality"])]
    trials = [row for row in trials if is_known(row["trainable_params"]) and row["trainable_params"] > 0]
    if not trials:
        return None
    figure, (axes,) = sheet(5.0, "Quality for trainable parameters", data)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: millions(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for row, place in side_by_side(trials):
        drawn = row if len(trials) <= MOST_ROWS else {**row, "low": None, "high": None}
        whisker(axes, drawn, place, colour_of(row), is_across=False)
    front = front_of(trials)
    axes.step([row["trainable_params"] for row in front], [row["quality"] for row in front], where="post", color="0.4")
    name_points(axes, front, trials)
    baseline_levels(axes, data)
    axes.set_xlabel("trainable parameters (logarithmic; up to four of equal number stand side by side)")
    axes.set_ylabel(QUALITY if len(trials) <= MOST_ROWS else "quality (0-100; mean over prompts)")
    legend(figure, axes, trials, front=True)
    return figure


def name_points(axes: Axes, front: list[Json], trials: list[Json]) -> None:
    """Names beside the upper part of the front and the recommended point: labels where they have room, else marks."""
    for row in [*front[-MOST_COLOURS:], *(row for row in trials if row["recommended"] and row not in front)]:
        name = drawable(row["label"], 28) if len(trials) <= MOST_COLOURS else f"row {row['mark']}"
        offset = (7, -12 if row["recommended"] else 5)
        axes.annotate(name, (row["trainable_params"], row["quality"]), offset, textcoords="offset points", fontsize=8)


def baseline_levels(axes: Axes, data: Json) -> None:
    bases = [row for row in data["rows"] if row["kind"] == "baseline" and is_known(row["quality"])]
    for number, row in enumerate(bases[:MOST_COLOURS]):
        axes.axhline(row["quality"], color=BASE, linestyle="--", linewidth=1)
        where, side = ((0.995, "right"), (0.005, "left"))[number % 2]
        style: Json = {"ha": side, "va": "bottom", "fontsize": 8, "color": BASE}
        axes.annotate(drawable(row["label"], 28), (where, row["quality"]), xycoords=("axes fraction", "data"), **style)


def side_by_side(rows: list[Json]) -> list[tuple[Json, float]]:
    """Rows with their places on the axis of parameters, up to four of equal number 3 % apart."""
    groups: dict[float, list[Json]] = {}
    for row in rows:
        groups.setdefault(row["trainable_params"], []).append(row)
    places = []
    for params, group in groups.items():
        apart = 0.03 if len(group) <= 4 else 0.0
        for number, row in enumerate(group):
            places.append((row, params * (1 + apart * (number - (len(group) - 1) / 2))))
    return places


def effects(data: Json) -> Figure | None:
    """A panel a factor: the mean quality of each level, on average over the other factors."""
    drawn = [each for each in data["effects"] if any(is_known(level["mean"]) for level in each["levels"])][:MOST_PANELS]
    if not drawn:
        return None
    names = {factor["key"]: factor["name"] for factor in data["factors"]}
    columns = min(3, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure, panels = sheet(1.0 + 3.4 * rows, "What each factor changes", data, rows, columns)
    for axes, effect in zip(panels, drawn, strict=False):
        levels = effect["levels"]
        for place, level in enumerate(levels):
            whisker(axes, {**level, "quality": level["mean"], "kind": "level"}, place, TIED, is_across=False)
        axes.plot(range(len(levels)), [level["mean"] for level in levels], color=TIED, linewidth=1)
        shown = range(0, len(levels), math.ceil(len(levels) / 8))
        names_of = [drawable(levels[index]["level"], 14) for index in shown]
        is_wide = sum(map(len, names_of)) > 66 // columns
        axes.set_xticks(shown, names_of, rotation=30 if is_wide else 0, ha="right" if is_wide else "center")
        axes.set_xlim(-0.5, len(levels) - 0.5)
        axes.set_title(drawable(names.get(effect["factor"], effect["factor"]), 60 // columns))
        axes.set_xlabel(contrast_words(effect["contrasts"]), fontsize=8)
    for axes in panels[len(drawn) :]:
        axes.set_visible(False)
    figure.supylabel(QUALITY, fontsize=9)
    return figure


def contrast_words(contrasts: list[Json]) -> str:
    """The differences to the first level, as many as fit below a panel."""
    lines = []
    for each in contrasts[:3]:
        levels = f"{drawable(each['level'], 9)} − {drawable(each['against'], 9)}"
        span = f" [{each['low']:+.1f}, {each['high']:+.1f}]" if is_known(each["low"]) and is_known(each["high"]) else ""
        lines.append(f"{levels}: {each['value']:+.1f}{span}")
    if not any(each["shown"] for each in contrasts):
        lines.append("no difference is shown")
    return "\n".join(lines)


def losses(data: Json) -> Figure | None:
    """Each trial's training loss at its steps."""
    curves = [curve for curve in data["curves"] if any(map(is_known, curve["losses"]))]
    if not curves:
        return None
    rows = {row["mark"]: row for row in data["rows"]}
    figure, (axes,) = sheet(5.0, "Training loss", data)
    few, faint = len(curves) <= MOST_COLOURS, max(0.06, min(0.5, 20 / len(curves)))
    for place, curve in enumerate(curves):
        row = rows.get(curve.get("entry", curve["mark"]), {})
        marked = bool(row.get("recommended"))
        label = f"{curve['mark']} {drawable(row.get('label', ''))}"
        values = [loss if is_known(loss) else math.nan for loss in curve["losses"]]
        colour = CURVES[place] if few else MARKED if marked else OTHER
        style: Json = {"color": colour, "linewidth": 2.0 if marked else 1.0, "alpha": 1.0 if few or marked else faint}
        point = "o" if len(values) == 1 else None
        axes.plot(
            curve["steps"],
            values,
            label=label if few or marked else None,
            zorder=3 if marked else 2,
            marker=point,
            **style,
        )
    axes.set_ylim(*loss_limits(curves))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (nats per token)")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, loc="upper right")
    if not few:
        axes.set_title(plural(len(curves), "trial"), fontsize=9)
    return figure


def loss_limits(curves: list[Json]) -> tuple[float | None, float | None]:
    """What of the losses the sheet shows: one that diverged to 1e30 leaves the others their shape."""
    known = sorted(loss for curve in curves for loss in curve["losses"] if is_known(loss))
    usual = known[int(0.98 * (len(known) - 1))]
    middle = known[len(known) // 2]
    top = min(known[-1], max(usual, middle) * 1.5) if usual <= 4 * abs(middle) else 4 * abs(middle)
    low = known[0]
    margin = 0.05 * (top - low)
    return (low - margin, top + margin) if margin > 0 else (None, None)


def whisker(axes: Axes, row: Json, place: float, colour: str, is_across: bool) -> None:
    """A point with its interval, across or upright; the point alone where no interval is known."""
    value, low, high = row["quality"], row["low"], row["high"]
    if not is_known(value):
        return
    marker = "D" if row["kind"] == "baseline" else "*" if row.get("recommended") else "o"
    style: Json = {
        "marker": marker,
        "color": colour,
        "markersize": 11 if marker == "*" else 5,
        "zorder": FRONT.get(colour, 3),
    }
    if is_known(low) and is_known(high):
        span = ([low, high], [place, place]) if is_across else ([place, place], [low, high])
        axes.plot(*span, color=colour, linewidth=1.4, alpha=0.75)
    axes.plot(*((value, place) if is_across else (place, value)), linestyle="none", **style)


def front_of(rows: list[Json]) -> list[Json]:
    """Those that none of at most as many parameters reaches, cheapest first."""
    front: list[Json] = []
    for row in sorted(rows, key=lambda row: (row["trainable_params"], -row["quality"])):
        if not front or row["quality"] > front[-1]["quality"]:
            front.append(row)
    return front


def legend(figure: Figure, axes: Axes, rows: list[Json], front: bool = False) -> None:
    """What the colours and points mean, of those that are there, below the chart."""
    kinds = {
        "recommended": (any(row["recommended"] for row in rows), "*", MARKED),
        "tied with the best": (any(row["tied"] and not row["recommended"] for row in rows), "o", TIED),
        "not tied": (any(colour_of(row) == OTHER for row in rows), "o", OTHER),
        "baseline": (any(row["kind"] == "baseline" for row in rows), "D", BASE),
    }
    for label, (is_there, marker, colour) in kinds.items():
        if is_there:
            axes.plot([], [], linestyle="none", marker=marker, color=colour, label=label)
    if front:
        axes.plot([], [], color="0.4", label="Pareto front")
    figure.legend(loc="outside lower right", fontsize=8, ncols=5)


def colour_of(row: Json) -> str:
    if row["kind"] == "baseline":
        return BASE
    return MARKED if row["recommended"] else TIED if row["tied"] else OTHER


def row_label(row: Json) -> str:
    return f"{row['mark']}  {drawable(row['label'])}"


def drawable(text: Any, limit: int = LABEL_LIMIT) -> str:
    """One line of ``text``, at most about ``limit`` characters, with a box for what the font has no picture of."""
    line = " ".join(str(text).split())
    if len(line) > limit:
        line = f"{line[: limit - 1]}…"
    return "".join(character if has_glyph(character) else "□" for character in line)


@cache
def has_glyph(character: str) -> bool:
    return bool(get_font(findfont(FONT)).get_char_index(ord(character)))


def is_known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
