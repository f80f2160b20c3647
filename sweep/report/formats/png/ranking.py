"""The ranking as a forest plot: a row a line, the best first, with its quality, interval and verdict."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator

from sweep.report.formats.cells import format_interval, format_metric
from sweep.report.formats.png.sheet import (
    ACCENT_SOFT,
    DASHES,
    HEAD,
    INK,
    MARGIN,
    SMALL,
    SOFT,
    TICK,
    WIDTH,
    Json,
    draw_row,
    inches,
    known,
    legend,
    look,
    minus,
    plain,
    plot,
    scored,
    sheet,
    subtitle_of,
    symbols,
    write,
)
from sweep.text import count_noun, format_count

MOST = 40  # rows
STEP = 0.25  # inches from a row to the next
END = WIDTH - MARGIN
NUMBERS, VERDICT = 1.5, 0.75  # inches of the columns at the right


def ranking(data: Json) -> Figure | None:
    rows, notes = chosen(data)
    if not rows:
        return None
    height, down = STEP * len(rows), HEAD + 0.3
    figure = sheet("Quality of each configuration, with its 95 % interval", subtitle_of(data), height + 0.85, notes)
    legend(figure, symbols(rows))
    marks, labels = [plain(row["mark"], 0.6) for row in rows], [plain(row["label"], 2.3) for row in rows]
    indent = MARGIN + 1.1 * max(map(inches, [*marks, "row"])) + 0.12  # bold is wider by a tenth
    left = indent + 1.1 * max(map(inches, [*labels, "configuration"])) + 0.2
    axes = plot(figure, left, down, END - VERDICT - NUMBERS - left, height)
    for x, words, align in ((MARGIN, "row", "left"), (indent, "configuration", "left"), (END, "verdict", "right")):
        write(figure, x, down - 0.1, words, size=SMALL, color=SOFT, ha=align)
    write(figure, END - VERDICT, down - 0.1, "quality [95 % interval]", size=SMALL, color=SOFT, ha="right")
    for place, (row, mark, label) in enumerate(zip(rows, marks, labels, strict=True)):
        line(figure, row, down + STEP * place, ((MARGIN, mark), (indent, label)))
        draw_row(axes, row, (row["quality"], place), across=True)
        if row["kind"] == "baseline":
            axes.axvline(row["quality"], color=TICK, linewidth=0.9, linestyle=DASHES, alpha=0.6, zorder=1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.yaxis.set_major_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_xlabel("quality (0 to 100, higher is better)", fontsize=SMALL, color=SOFT)
    return figure


def line(figure: Figure, row: Json, down: float, names: tuple[tuple[float, str], ...]) -> None:
    """A row's texts; the recommended one's in bold, on a ground of its own."""
    colour = TICK if row["kind"] == "baseline" else look(row)["color"] if row["recommended"] else INK
    style = {"weight": "bold" if row["recommended"] else "normal", "color": colour}
    numbers = (
        f"{format_metric('quality', row['quality'])} {format_interval('quality', row['low'], row['high'])}".rstrip()
    )
    middle = down + STEP / 2 + 0.045
    for x, text in names:
        write(figure, x, middle, text, **style)
    write(figure, END - VERDICT, middle, minus(numbers), ha="right", **style)
    write(figure, END, middle, plain(row["verdict"] or "", VERDICT), ha="right", **style)
    if row["recommended"]:
        whole = figure.get_figheight()
        corner, wide = ((MARGIN - 0.1) / WIDTH, 1 - (down + STEP) / whole), (END - MARGIN + 0.2) / WIDTH
        figure.add_artist(Rectangle(corner, wide, STEP / whole, color=ACCENT_SOFT, alpha=0.6, linewidth=0, zorder=-1))


def chosen(data: Json) -> tuple[list[Json], list[str]]:
    """The rows that are drawn, and what is said of the others."""
    rows, notes = scored(data), []
    if len(rows) > MOST:
        must = [row for row in rows if row["recommended"]] + [row for row in rows if row["kind"] == "baseline"][:5]
        best = [row for row in rows if row not in must][: MOST - len(must)]
        beside = ", beside the recommended one and the baselines" if must else ""
        notes.append(f"The best {len(best)} of {format_count(len(rows))} rows{beside}.")
        rows = [row for row in rows if row in must or row in best]
    lost = [row for row in data["rows"] if not known(row["quality"])]
    if lost:
        named = [f"{plain(row['mark'], 0.6)} ({plain(row['status'], 1.2)})" for row in lost[:6]]
        more = f" and {len(lost) - 6} more" if len(lost) > 6 else ""
        notes.append(f"Not drawn, since without a quality: {count_noun(len(lost), 'row')}, {', '.join(named)}{more}.")
    return rows, notes
