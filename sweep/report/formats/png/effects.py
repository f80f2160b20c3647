"""What each setting changes: a panel a setting, and one for each pair of settings whose interaction is visible."""

import math
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweep.report.formats.cells import format_change, format_interval
from sweep.report.formats.png.sheet import (
    ACCENT,
    HEAD,
    INNER,
    MARGIN,
    PALETTE,
    SMALL,
    SOFT,
    TEXT_LINE,
    TINY,
    Json,
    inches,
    known,
    minus,
    plain,
    plot,
    quality_axis,
    sheet,
    write,
)
from sweep.text import count_noun, escape_controls

Piece = tuple[str, str]  # a text and its colour
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
MOST_PANELS = 12
MOST_CONTRASTS, MOST_LEVELS = 4, 8  # in words below a panel
INSET, TALL, GAP = 0.45, 1.6, 0.25  # inches: left of a panel's axes, their height, between panels


def effects(data: Json) -> Figure | None:
    factors = {factor["key"]: factor for factor in data["factors"]}
    pairs = [each for each in data["interactions"] if each["visible"] and each["cells"]]
    every = [*(each for each in data["effects"] if each["levels"]), *pairs]
    panels = every[:MOST_PANELS]
    if not panels:
        return None
    columns = 2 if len(panels) in (1, 2, 4) else 3
    width = (INNER - GAP * (columns - 1)) / columns
    words = [below(panel, factors, width) for panel in panels]
    deep = 0.85 if any(is_turned(levels_of(panel), width - INSET) for panel in panels) else 0.32
    starts = range(0, len(panels), columns)  # of each line of panels
    tall = [0.2 + TALL + deep + TEXT_LINE * max(map(len, words[start : start + columns])) + 0.3 for start in starts]
    notes = ["Green: a difference beyond the noise. Grey: no difference is shown."]
    if len(every) > len(panels):
        notes.append(f"{count_noun(len(every) - len(panels), 'further panel')} not drawn.")
    subtitle = f"sweep {plain(data['name'], 1.7, SMALL)}  ·  mean quality at each value, over all values of the other "
    subtitle += "settings, with 95 % intervals"
    figure = sheet("What each setting changes", subtitle, sum(tall) - 0.2, notes)
    for place, (panel, lines) in enumerate(zip(panels, words, strict=True)):
        left, down = MARGIN + place % columns * (width + GAP), HEAD - 0.05 + sum(tall[: place // columns])
        keys = [panel["factor"]] if is_main(panel) else [panel["a"], panel["b"]]
        names = [plain(name_in(factors, key), width / len(keys) - 0.3) for key in keys]
        write(figure, left, down + 0.08, " and ".join(names), size=9, weight="bold")
        axes = plot(figure, left + INSET, down + 0.2, width - INSET, TALL)
        quality_axis(axes, [span for each in panels for span in spans_of(each)], "quality (0 to 100)")
        if place % columns:
            axes.set_ylabel("")
        level_axis(axes, levels_of(panel), width - INSET)
        draw = draw_main if is_main(panel) else draw_pair
        draw(axes, panel, factors)
        for number, pieces in enumerate(lines):
            write_pieces(figure, left, down + 0.2 + TALL + deep + TEXT_LINE * (number + 0.6), pieces)
    return figure


def is_main(panel: Json) -> bool:
    return "levels" in panel


def spans_of(panel: Json) -> list[Json]:
    """A panel's means with their intervals."""
    return list(panel["levels"] if is_main(panel) else panel["cells"])


def levels_of(panel: Json, key: str = "a") -> list[str]:
    """The levels of a main effect, or of one of the two settings of a pair."""
    return list(dict.fromkeys(span["level" if is_main(panel) else key] for span in spans_of(panel)))


def name_in(factors: dict[str, Json], key: str) -> str:
    return str(factors[key]["name"]) if key in factors else key


def is_turned(levels: list[str], width: float) -> bool:
    """Whether the levels' names are too wide to stand side by side; those of two or three are cut instead."""
    return (
        len(levels) > 3 and max(inches(plain(level, 2, SMALL), SMALL) for level in levels) > width / len(levels) - 0.05
    )


def level_axis(axes: Axes, levels: list[str], width: float) -> None:
    """Levels at equal distance; of many, some are named."""
    turned, every = is_turned(levels, width), -(-len(levels) // 12)
    room = 0.85 if turned else width / len(levels) - 0.05
    named = range(0, len(levels), every)
    axes.set_xlim(-0.5, len(levels) - 0.5)
    axes.set_xticks(list(named), [plain(levels[place], room, SMALL) for place in named])
    axes.grid(visible=False, axis="x")
    if turned:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")


def draw_spans(
    axes: Axes, spans: list[Json], colour: str, shift: float = 0, marker: str = "o", line: str = "-"
) -> None:
    """Means with their intervals, moved by ``shift`` levels."""
    at = [place + shift for place in range(len(spans))]
    for x, span in zip(at, spans, strict=True):
        if known(span["low"]) and known(span["high"]):
            axes.plot([x, x], [span["low"], span["high"]], color=colour, linewidth=1.3, alpha=0.6)
    means = [span["mean"] if known(span["mean"]) else math.nan for span in spans]
    axes.plot(at, means, color=colour, linewidth=1.2, linestyle=line, marker=marker, markersize=5.5)


def draw_main(axes: Axes, effect: Json, factors: dict[str, Json]) -> None:
    """The levels of a number are joined, those of a name are not."""
    numeric = factors.get(effect["factor"], {}).get("numeric")
    draw_spans(axes, effect["levels"], ACCENT, line="-" if numeric else "")


def draw_pair(axes: Axes, pair: Json, _: dict[str, Json]) -> None:
    """A line for each level of the second setting."""
    cells, second = {(cell["a"], cell["b"]): cell for cell in pair["cells"]}, levels_of(pair, "b")
    unknown = {"mean": None, "low": None, "high": None}
    gap = min(0.12, 0.6 / len(second))
    for place, (level, (colour, marker, line)) in enumerate(zip(second, styles(len(second)), strict=True)):
        spans = [cells.get((first, level), unknown) for first in levels_of(pair, "a")]
        draw_spans(axes, spans, colour, (place - (len(second) - 1) / 2) * gap, marker, line)


def styles(amount: int) -> list[tuple[str, str, str]]:
    """Colour, marker and line of each of several curves."""
    markers, lines = list(MARKERS), ("-", "--", ":")
    return [(PALETTE[place % 6], markers[place % 6], lines[place // 6 % 3]) for place in range(amount)]


def below(panel: Json, factors: dict[str, Json], room: float) -> list[list[Piece]]:
    """What stands below a panel of ``room`` inches, a list of pieces a line."""
    return contrasts(panel, room) if is_main(panel) else legend_of(panel, factors, room)


def contrasts(effect: Json, room: float) -> list[list[Piece]]:
    """``16 − 8  +2.3 [−0.4, 5.1]``, a line a difference to the first level."""
    found: list[list[Piece]] = []
    for each in effect["contrasts"][:MOST_CONTRASTS]:
        interval = format_interval("quality", each["low"], each["high"])
        numbers = minus(f"{format_change('quality', each['value'])} {interval}".rstrip())
        side = (room - inches(f" − :  {numbers}", TINY)) / 2
        against = plain(each["against"], max(side, 2 * side - inches(plain(each["level"], 9, TINY), TINY)), TINY)
        names = f"{plain(each['level'], 2 * side - inches(against, TINY), TINY)} − {against}"
        found.append([(f"{names}:", SOFT), (numbers, ACCENT if each["shown"] else SOFT)])
    more = len(effect["contrasts"]) - MOST_CONTRASTS
    return [*found, [(f"and {more} more", SOFT)]] if more > 0 else found


def legend_of(pair: Json, factors: dict[str, Json], room: float) -> list[list[Piece]]:
    """The second setting's levels in their colours, and what is visible."""
    lines: list[list[Piece]] = [[(f"{plain(name_in(factors, pair['b']), room / 2.5, TINY)}:", SOFT)]]
    second = levels_of(pair, "b")
    for level, (colour, marker, _) in zip(second[:MOST_LEVELS], styles(len(second)), strict=False):
        piece = (f"{MARKERS[marker]} {plain(level, room / 2.5, TINY)}", colour)
        if inches("  ".join(text for text, _ in [*lines[-1], piece]), TINY) > room:
            lines.append([])
        lines[-1].append(piece)
    if len(second) > MOST_LEVELS:
        lines.append([(f"and {len(second) - MOST_LEVELS} more", SOFT)])
    said = " ".join(escape_controls(pair["text"][:600]).split())
    wrapped = textwrap.wrap(said, int(room * 72 / TINY / 0.56), max_lines=4, placeholder="…")
    return [*lines, *([(plain(line, room, TINY), SOFT)] for line in wrapped)]


def write_pieces(figure: Figure, left: float, down: float, pieces: list[Piece]) -> None:
    for text, colour in pieces:
        write(figure, left, down, text, size=TINY, color=colour)
        left += inches(f"{text}  ", TINY)
