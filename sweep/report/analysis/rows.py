"""The rows of the report's tables: made once, after the comparison, and read by every format."""

from dataclasses import dataclass, replace

from lora_sweep.scoring.intervals import Interval, mean_interval
from sweep.report.analysis.comparison import (
    SCALE,
    Comparison,
    Standing,
    find_baseline,
    measure_forgetting,
    read_scores,
)
from sweep.report.analysis.configurations import OBJECTIVE, Trial, TrialSummary
from sweep.report.analysis.load import Sweep


@dataclass(frozen=True, kw_only=True)
class ReportRow(TrialSummary):
    """One trial or one configuration, with the results of the comparison.

    Attributes:
        trial: the trial; for a configuration, its first trial.
        baseline: the baseline of the trial; None for a baseline.
        is_recommended: whether it is the configuration to use.
        quality_ci_low, quality_ci_high: the 95 % interval of the quality.
        delta_baseline, delta_best: differences of means to the baseline and to the best.
        forgetting: by how much the loss on the neutral text is above the baseline's, in nats a token.
    """

    trial: Trial
    baseline: Trial | None = None
    is_recommended: bool = False
    quality_ci_low: float | None = None
    quality_ci_high: float | None = None
    delta_baseline: float | None = None
    delta_best: float | None = None
    tied_with_best: bool | None = None
    verdict: str | None = None
    forgetting: float | None = None


@dataclass(frozen=True)
class ReportRows:
    """All rows of a report.

    Attributes:
        trials: in the order of the sweep's trials.
        configurations: in the order of the sweep's configurations.
    """

    trials: list[ReportRow]
    configurations: list[ReportRow]


def make_rows(sweep: Sweep, comparison: Comparison, recommended: Standing | None) -> ReportRows:
    """The rows of a compared sweep. A configuration of one trial has the same row as the trial."""
    by_mark, configurations = {}, []
    for standing in comparison.standings:
        is_recommended, trials = standing is recommended, standing.configuration.trials
        row = make_configuration_row(sweep, standing, is_recommended)
        configurations.append(row)
        for trial in trials:
            mark = trial.summary.mark
            by_mark[mark] = row if len(trials) == 1 else make_trial_row(sweep, standing, trial, comparison.is_share)
    return ReportRows([by_mark[trial.summary.mark] for trial in sweep.trials], configurations)


def make_configuration_row(sweep: Sweep, standing: Standing, is_recommended: bool) -> ReportRow:
    """The row of a configuration: means over its seeds."""
    summary, trials, quality = standing.summary, standing.configuration.trials, standing.quality
    interval = None
    if quality is not None:
        if len(trials) > 1:  # the mean of the trials' means is summed in another order: the last bit could differ
            summary = replace(summary, metrics={**summary.metrics, OBJECTIVE: quality.value})
        if quality.low is not None and quality.high is not None:
            interval = quality.low, quality.high
    return make_row(sweep, standing, summary, trials[0], interval, standing.forgetting, is_recommended)


def make_trial_row(sweep: Sweep, standing: Standing, trial: Trial, is_share: bool) -> ReportRow:
    """The row of one of several seeds: it has the interval of the trial and the verdict of the configuration."""
    interval = mean_interval(list(read_scores(trial.record).values()), SCALE, is_share)
    return make_row(sweep, standing, trial.summary, trial, interval, measure_forgetting(sweep, trial))


def make_row(
    sweep: Sweep,
    standing: Standing,
    summary: TrialSummary,
    trial: Trial,
    interval: Interval | None,
    forgetting: float | None,
    is_recommended: bool = False,
) -> ReportRow:
    low, high = interval or (None, None)
    return ReportRow(
        **vars(summary),
        trial=trial,
        baseline=None if summary.is_baseline else find_baseline(sweep, trial),
        is_recommended=is_recommended,
        quality_ci_low=low,
        quality_ci_high=high,
        delta_baseline=standing.versus_baseline.value if standing.versus_baseline else None,
        delta_best=standing.versus_best.value if standing.versus_best else None,
        tied_with_best=standing.is_tied,
        verdict=standing.verdict,
        forgetting=forgetting,
    )
