"""The table of comparisons: each configuration with its baseline and with the best, and both kinds of noise."""

from sweep.report.analysis.analyse import Analysis
from sweep.report.analysis.comparison import Standing
from sweep.report.analysis.configurations import OBJECTIVE
from sweep.report.analysis.rows import ReportRow
from sweep.report.formats.cells import format_change, format_interval, format_metric
from sweep.statistics.estimates import Estimate
from sweep.text import UNKNOWN, format_count

HEADERS = (
    "prompts",
    "seeds",
    "against its baseline",
    "wins, ties, losses",
    "against the best",
    "wins, ties, losses",
    "noise of prompts",
    "noise of seeds",
)
LEGEND = (
    "Differences of means. Their intervals hold for all rows at once. Wins, ties and losses count prompts. The noise "
    "of prompts is the standard error of the mean; the noise of seeds is the standard deviation between trainings that "
    "differ only in their seed."
)


def list_comparisons(analysis: Analysis) -> list[tuple[ReportRow, list[str]]]:
    """Each ranked configuration with its cells, in the order of HEADERS."""
    pairs = zip(analysis.rows.configurations, analysis.standings, strict=True)
    return [(row, write_cells(standing)) for row, standing in pairs if standing.is_tied is not None]


def write_cells(standing: Standing) -> list[str]:
    return [
        format_count(standing.prompts),
        format_count(standing.seeds),
        format_difference(standing.versus_baseline),
        format_wins(standing.wins_over_baseline),
        format_difference(standing.versus_best),
        format_wins(standing.wins_over_best),
        format_metric(OBJECTIVE, standing.prompt_noise),
        format_metric(OBJECTIVE, standing.seed_noise),
    ]


def format_difference(estimate: Estimate | None) -> str:
    if estimate is None:
        return UNKNOWN
    change, interval = format_change(OBJECTIVE, estimate.value), format_interval(OBJECTIVE, estimate.low, estimate.high)
    return f"{change} {interval}".rstrip()


def format_wins(wins: tuple[int, int, int] | None) -> str:
    return UNKNOWN if wins is None else ", ".join(map(format_count, wins))
