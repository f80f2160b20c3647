"""A board as a terminal shows it: how far the sweep is, and a row for each trial that runs. A pure function."""

from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from lora_sweep.runs.results import STATUSES
from sweep.report.analysis.load import number
from sweep.status.progress import Board, Running
from sweep.text import UNKNOWN, fit_one_line, format_clock, format_duration

COLUMNS = (  # header, whether it stands right, and the width of terminal from which there is room for it
    ("trial", False, 0),
    ("device", False, 48),
    ("phase", False, 40),
    ("step", True, 0),
    ("", False, 72),
    ("loss", True, 0),
    ("tok/s", True, 56),
    ("time", True, 0),
)
BAR_COLUMN, BAR_WIDTH = 4, 8
NAME_LIMIT, CELL_LIMIT, LABEL_LIMIT, LABEL_MINIMUM = 24, 10, 200, 6  # characters


def table(board: Board, now: float, rows: int = 100) -> RenderableType:
    """The table of a board.

    Args:
        now: in seconds of time.time().
        rows: of running trials, at most; how many more there are is said.
    """
    running = list(board.running.values())
    lines = [_row(each, now) for each in running[:rows]]
    return _Table(_title(board), _left(board.seconds_left), _ended(board), lines, len(running) - len(lines))


class _Row(NamedTuple):
    cells: list[str]  # a column each; the bar's is empty
    share: float | None  # of its steps


class _Table(NamedTuple):
    """Laid out when its width is known: a narrow terminal has fewer columns, and labels get what is left."""

    title: Text
    left: str
    ended: float
    rows: list[_Row]
    more: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        on_one_line = self.title.cell_len + 3 + len(self.left) <= width
        yield Text.assemble(self.title, "   " if on_one_line else "\n", self.left) if self.left else self.title
        yield _bar(self.ended, width)
        yield Segment.line()  # a bar does not end its line
        if self.rows:
            yield self._grid(width)
        if self.more:
            yield Text(f"and {self.more} more", "dim")

    def _grid(self, width: int) -> Table:
        gap = 2 if width >= 100 else 1
        places = [place for place, (_, _, needs) in enumerate(COLUMNS) if width >= needs]
        grid = Table.grid(padding=(0, gap, 0, 0))
        taken = 0
        for place in places:
            header = COLUMNS[place][0]
            grid.add_column(no_wrap=True, overflow="ellipsis", justify="right" if COLUMNS[place][1] else "left")
            if place == BAR_COLUMN:
                taken += BAR_WIDTH + gap
            elif place:
                taken += max(cell_len(cell) for cell in (header, *(row.cells[place] for row in self.rows))) + gap
        grid.add_row(*(Text(COLUMNS[place][0], "dim") for place in places))
        for row in self.rows:
            cells: list[RenderableType] = [*map(Text, row.cells)]
            label = Text(row.cells[0])
            label.truncate(max(LABEL_MINIMUM, width - taken), overflow="ellipsis")
            cells[0] = label
            if row.share is not None:
                cells[BAR_COLUMN] = _bar(row.share, BAR_WIDTH)
            grid.add_row(*(cells[place] for place in places))
        return grid


def _bar(share: float, width: int) -> ProgressBar:
    return ProgressBar(total=1, completed=share, width=width, complete_style="cyan", finished_style="green")


def _row(each: Running, now: float) -> _Row:
    step, steps, loss, speed = map(number, (each.step, each.steps, each.loss, each.tokens_per_second))
    cells = [
        fit_one_line(str(each.label), LABEL_LIMIT),
        fit_one_line(str(each.device), CELL_LIMIT),
        fit_one_line(str(each.phase), CELL_LIMIT),
        UNKNOWN if step is None else f"{step:.0f}" if steps is None else f"{step:.0f}/{steps:.0f}",
        "",
        UNKNOWN if loss is None else f"{loss:.3f}" if abs(loss) < 1e4 else f"{loss:.2e}",
        UNKNOWN if speed is None else f"{speed:,.0f}",
        format_clock(now - each.started),
    ]
    share = None if step is None or not steps else step / steps
    return _Row(cells, share)


def _title(board: Board) -> Text:
    """``sweep NAME  12 of 40 done, 1 diverged, 25 waiting``. What runs is seen below it."""
    counts = board.counts
    title = Text.assemble("sweep ", (fit_one_line(board.name, NAME_LIMIT), "bold"))
    title.append(f"  {counts.get('complete', 0) + counts.get('done', 0)} of {board.total} done")
    known = [status for status in STATUSES if status != "complete"]
    others = [status for status in counts if status not in {*STATUSES, "done", "running", "waiting"}]
    for status in (*known, *others):
        if counts.get(status):
            title.append(", ")
            title.append(f"{counts[status]} {fit_one_line(status, CELL_LIMIT)}", "yellow")
    if counts.get("waiting"):
        title.append(f", {counts['waiting']} waiting")
    return title


def _ended(board: Board) -> float:
    """The share of the trials that have an outcome."""
    open_ones = board.counts.get("waiting", 0) + board.counts.get("running", 0)
    return (sum(board.counts.values()) - open_ones) / max(1, board.total)


def _left(seconds: float | None) -> str:
    seconds = number(seconds)
    return "" if seconds is None else f"about {format_duration(seconds)} left"
