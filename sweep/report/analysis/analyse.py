"""Compute once everything that a report shows, from the files of a sweep. Each format then only writes it.

The input is the file of the sweep, the files of its trials, and the files of votes in the sweep's folder.
"""

from dataclasses import dataclass
from pathlib import Path

from lora_sweep.runs.files import report_folder
from sweep.report.analysis.comparison import Standing
from sweep.report.analysis.configurations import OBJECTIVE, Key
from sweep.report.analysis.effects import (
    Factor,
    FactorPair,
    MainEffect,
    find_factors,
    measure_effects,
    measure_interactions,
)
from sweep.report.analysis.load import Sweep, load_sweep
from sweep.report.analysis.observations import Observation, write_observations
from sweep.report.analysis.ranking import Ranking, describe_gain, rank
from sweep.report.analysis.rows import ReportRow, ReportRows, make_rows
from sweep.report.analysis.votes import Tally, Vote, count_votes, read_votes
from sweep.report.formats.cells import format_interval, format_metric, name_row
from sweep.store.sweep_file import read_sweep_file
from sweep.text import count_noun

TEST_SUFFIX = "-test"  # ends the name of the sweep that holds the chosen row's scores on the test split


@dataclass(frozen=True)
class TestScore:
    """The chosen configuration on the test split, which nothing read before it was chosen.

    Attributes:
        mark: the mark that the configuration has in the sweep.
        text: the result in a sentence.
    """

    __test__ = False  # keeps pytest from taking it for a test

    mark: str
    standing: Standing
    text: str


@dataclass(frozen=True)
class Analysis:
    """Everything that a report shows about a sweep; ``runs`` is the folder that holds its files."""

    runs: Path
    sweep: Sweep
    ranking: Ranking
    rows: ReportRows
    factors: list[Factor]
    effects: list[MainEffect]
    pairs: list[FactorPair]
    observations: list[Observation]
    votes: list[Vote]
    vote_notes: list[str]
    test: TestScore | None

    @property
    def standings(self) -> list[Standing]:
        return self.ranking.comparison.standings

    @property
    def recommended(self) -> ReportRow | None:
        """The row of the configuration to use."""
        return next((row for row in self.rows.configurations if row.is_recommended), None)

    @property
    def recommended_trial(self) -> ReportRow | None:
        """The row of the trial to use: the first complete trial of the recommended configuration."""
        chosen = self.recommended
        if chosen is None:
            return None
        key = chosen.trial_id, chosen.eval_id
        return next((row for row in self.rows.trials if (row.trial_id, row.eval_id) == key), None)

    @property
    def tallies(self) -> list[tuple[ReportRow, Tally]]:
        """The votes on each configuration that people compared."""
        tallies = count_votes(self.votes, list_keys(self.sweep))
        return [(row, tallies[row.mark]) for row in self.rows.configurations if row.mark in tallies]


def list_keys(sweep: Sweep) -> dict[str, list[Key]]:
    """The keys of the trials of each configuration, by the mark of the configuration."""
    return {item.summary.mark: [trial.key for trial in item.trials] for item in sweep.configurations}


def analyse_sweep(runs: Path, name: str) -> Analysis:
    """Read and analyse the sweep ``name``.

    Raises:
        Refused: the sweep does not exist.
    """
    sweep = load_sweep(runs, name)
    ranking = rank(sweep)
    factors = find_factors(sweep, ranking.comparison)
    effects = measure_effects(ranking.comparison, factors)
    pairs = measure_interactions(ranking.comparison, factors)
    votes, notes = read_votes(report_folder(runs, name))
    return Analysis(
        runs=runs,
        sweep=sweep,
        ranking=ranking,
        rows=make_rows(sweep, ranking.comparison, ranking.recommended),
        factors=factors,
        effects=effects,
        pairs=pairs,
        observations=write_observations(sweep, ranking, factors, effects, pairs),
        votes=votes,
        vote_notes=notes,
        test=read_test_score(runs, sweep),
    )


def read_test_score(runs: Path, sweep: Sweep) -> TestScore | None:
    """The score on the test split; None until ``sweep.confirm`` has measured it."""
    name = f"{sweep.name}{TEST_SUFFIX}"
    file = read_sweep_file(runs, name)
    if file is None or file.split != "test":
        return None
    standings = rank(load_sweep(runs, name)).comparison.standings
    standing = next((standing for standing in standings if standing.is_tied and standing.quality), None)
    if standing is None or standing.quality is None:
        return None
    trial_id = standing.configuration.trials[0].summary.trial_id
    chosen = next(
        (item for item in sweep.configurations if any(trial.summary.trial_id == trial_id for trial in item.trials)),
        None,
    )
    if chosen is None:
        return None
    mean, gain = standing.quality, standing.versus_baseline
    text = (
        f"On the test split, which is scored only once: {name_row(chosen.summary)} has {OBJECTIVE} "
        f"{format_metric(OBJECTIVE, mean.value)} {format_interval(OBJECTIVE, mean.low, mean.high)} on "
        f"{count_noun(standing.prompts, 'prompt')}, {count_noun(standing.seeds, 'seed')}"
    )
    if gain is not None:
        text += f", {describe_gain(gain)}"
    return TestScore(chosen.summary.mark, standing, f"{text}.")
