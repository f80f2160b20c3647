"""Lay out the progress of a sweep for a terminal: how far it is, and a row for each running trial. Pure functions."""

from dataclasses import dataclass
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from lora_sweep.runs.records import read_number
from lora_sweep.runs.results import STATUSES
from sweep.status.progress import RunningTrial, SweepProgress
from sweep.tables import Column, build_table
from sweep.text import fit_one_line, format_clock, format_duration


class StatusColumn(NamedTuple):
    """A column that the table has on terminals with at least ``min_width`` characters."""

    column: Column
    min_width: int


COLUMNS = (
    StatusColumn(Column("trial"), 0),
    StatusColumn(Column("device"), 48),
    StatusColumn(Column("phase"), 40),
    StatusColumn(Column("step", "right"), 0),
    StatusColumn(Column(""), 72),
    StatusColumn(Column("loss", "right"), 0),
    StatusColumn(Column("tok/s", "right"), 56),
    StatusColumn(Column("time", "right"), 0),
)
LABEL_COLUMN, BAR_COLUMN = 0, 4  # indices into COLUMNS
BAR_WIDTH = 8  # characters, like the other widths
MAX_NAME_WIDTH, MAX_CELL_WIDTH, MAX_LABEL_WIDTH, MIN_LABEL_WIDTH = 24, 10, 200, 6
UNKNOWN = "-"


def draw_progress(progress: SweepProgress, now: float, max_rows: int = 100) -> RenderableType:
    """A title, a bar and a table of running trials, laid out for the width of the terminal that prints them.

    Args:
        now: in seconds of time.time().
        max_rows: how many running trials have a row. If there are more, a last line counts them.
    """
    running = list(progress.running.values())
    rows = [build_row(trial, now) for trial in running[:max_rows]]
    seconds = read_number(progress.seconds_left)
    time_left = "" if seconds is None else f"about {format_duration(seconds)} left"
    return ProgressTable(build_title(progress), time_left, count_ended(progress), rows, len(running) - len(rows))


class TableRow(NamedTuple):
    """The cells of a running trial; that of the bar is empty. ``share`` of its steps are done; None if not known."""

    cells: list[str]
    share: float | None


@dataclass(frozen=True)
class ProgressTable:
    """What rich prints: the title, a bar and the rows, laid out for the width of the terminal.

    On a narrow terminal there are fewer columns, and labels get the width that the other columns leave. In a file or a
    pipe there are no bars.

    Attributes:
        ended: the share of the trials that have an outcome, 0 to 1.
        hidden_rows: how many running trials have no row.
    """

    title: Text
    time_left: str
    ended: float
    rows: list[TableRow]
    hidden_rows: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        fits_one_line = self.title.cell_len + 3 + len(self.time_left) <= width
        if self.time_left:
            yield Text.assemble(self.title, "   " if fits_one_line else "\n", self.time_left)
        else:
            yield self.title
        if options.is_terminal:
            yield build_bar(self.ended, width)
            yield Segment.line()  # a bar does not end its line
        if self.rows:
            yield self.lay_out_rows(width, has_bars=options.is_terminal)
        if self.hidden_rows:
            yield Text(f"and {self.hidden_rows} more", "dim")

    def lay_out_rows(self, width: int, has_bars: bool) -> RenderableType:
        """The table of running trials in ``width`` characters."""
        gap = 2 if width >= 100 else 1
        shown = [i for i, column in enumerate(COLUMNS) if width >= column.min_width and (has_bars or i != BAR_COLUMN)]
        taken = 0
        for i in shown[1:]:
            texts = (COLUMNS[i].column.header, *(row.cells[i] for row in self.rows))
            taken += (BAR_WIDTH if i == BAR_COLUMN else max(map(cell_len, texts))) + gap
        lines: list[list[RenderableType]] = []
        for row in self.rows:
            label = Text(row.cells[LABEL_COLUMN])
            label.truncate(max(MIN_LABEL_WIDTH, width - taken), overflow="ellipsis")
            cells: list[RenderableType] = [label, *row.cells[1:]]
            if row.share is not None:
                cells[BAR_COLUMN] = build_bar(row.share, BAR_WIDTH)
            lines.append([cells[i] for i in shown])
        return build_table([COLUMNS[i].column for i in shown], lines, gap)


def build_bar(share: float, width: int) -> ProgressBar:
    return ProgressBar(total=1, completed=share, width=width, complete_style="cyan", finished_style="green")


def build_row(trial: RunningTrial, now: float) -> TableRow:
    """The row of a running trial. Its values can come from a file, so each can be of any type."""
    step, steps, loss = read_number(trial.step), read_number(trial.steps), read_number(trial.loss)
    speed = read_number(trial.tokens_per_second)
    cells = [
        fit_one_line(str(trial.label), MAX_LABEL_WIDTH),
        fit_one_line(str(trial.device), MAX_CELL_WIDTH),
        fit_one_line(str(trial.phase), MAX_CELL_WIDTH),
        UNKNOWN if step is None else f"{step:.0f}" if steps is None else f"{step:.0f}/{steps:.0f}",
        "",
        UNKNOWN if loss is None else f"{loss:.3f}" if abs(loss) < 1e4 else f"{loss:.2e}",
        UNKNOWN if speed is None else f"{speed:,.0f}",
        format_clock(now - trial.started),
    ]
    return TableRow(cells, None if step is None or not steps else step / steps)


def build_title(progress: SweepProgress) -> Text:
    """The first line, as ``sweep NAME  12 of 40 done, 1 diverged, 25 waiting``. Running trials have rows instead."""
    counts = progress.counts
    title = Text.assemble("sweep ", (fit_one_line(progress.name, MAX_NAME_WIDTH), "bold"))
    title.append(f"  {counts.get('complete', 0) + counts.get('done', 0)} of {progress.total} done")
    failures = [status for status in STATUSES if status != "complete"]
    others = [status for status in counts if status not in {*STATUSES, "done", "running", "waiting"}]
    for status in (*failures, *others):
        if counts.get(status):
            title.append(", ")
            title.append(f"{counts[status]} {fit_one_line(status, MAX_CELL_WIDTH)}", "yellow")
    if counts.get("waiting"):
        title.append(f", {counts['waiting']} waiting")
    return title


def count_ended(progress: SweepProgress) -> float:
    """The share of the trials that have an outcome, 0 to 1."""
    without_outcome = progress.counts.get("waiting", 0) + progress.counts.get("running", 0)
    return (sum(progress.counts.values()) - without_outcome) / max(1, progress.total)
