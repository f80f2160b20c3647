"""Every comparison of an entry in words: against its baseline, against the best, and the noise of both kinds."""

from sweep.report.analysis.analysis import Analysis
from sweep.report.analysis.comparison import OBJECTIVE, Standing
from sweep.report.formats.cells import change, interval, metric
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
    "Differences of means with intervals that hold for all rows at once; wins are prompts. Noise of prompts is the "
    "standard error of the mean; noise of seeds the standard deviation of trainings that differ in their seed alone."
)


def comparisons(analysis: Analysis) -> list[tuple[Standing, list[str]]]:
    """Each ranked entry and its cells, in the order of HEADERS."""
    return [(standing, cells(standing)) for standing in analysis.standings if standing.tied is not None]


def cells(standing: Standing) -> list[str]:
    return [
        format_count(standing.prompts),
        format_count(standing.seeds),
        difference(standing.versus_baseline),
        score(standing.against_baseline),
        difference(standing.versus_best),
        score(standing.against_best),
        metric(OBJECTIVE, standing.prompt_noise),
        metric(OBJECTIVE, standing.seed_noise),
    ]


def difference(estimate: Estimate | None) -> str:
    if estimate is None:
        return UNKNOWN
    return f"{change(OBJECTIVE, estimate.value)} {interval(OBJECTIVE, estimate.low, estimate.high)}".rstrip()


def score(found: tuple[int, int, int] | None) -> str:
    return UNKNOWN if found is None else ", ".join(map(format_count, found))
