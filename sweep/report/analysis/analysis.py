"""A sweep's files to everything that a report says: computed once, and written by every writer in its own way.

Reads the sweep's folder (its list, its trials' files, logs and votes) and nothing else.
"""

from dataclasses import dataclass
from pathlib import Path

from lora_sweep.runs.files import report_folder
from sweep.report.analysis.comparison import OBJECTIVE, Standing
from sweep.report.analysis.effects import Joint, MainEffect, factors, interactions, main_effects
from sweep.report.analysis.load import Sweep, load_sweep
from sweep.report.analysis.observations import Observation, observations
from sweep.report.analysis.ranking import Ranking, gain_words, rank
from sweep.report.analysis.votes import Key, Tally, Vote, read_votes, tally
from sweep.report.formats.cells import interval, metric, row_name
from sweep.store.sweep_file import read_sweep_file
from sweep.text import count_noun

TEST_SUFFIX = "-test"  # of the sweep that holds the chosen row's scores on the test split


@dataclass(frozen=True)
class TestScore:
    """The chosen row on the test split, which nothing read before it was chosen."""

    __test__ = False  # no test, whatever pytest takes its name for

    mark: str  # in the sweep
    standing: Standing
    text: str


@dataclass(frozen=True)
class Analysis:
    """All that a report says of a sweep; ``runs`` is where its files are."""

    runs: Path
    sweep: Sweep
    ranking: Ranking
    effects: list[MainEffect]
    joint: list[Joint]
    observations: list[Observation]
    votes: list[Vote]
    vote_notes: list[str]
    test: TestScore | None

    @property
    def tallies(self) -> list[tuple[str, str, Tally]]:
        """(mark, label, votes) of each entry that people compared."""
        found = tally(self.votes, entry_keys(self.sweep))
        return [(mark, self.label(mark), each) for mark, each in found.items()]

    def label(self, mark: str) -> str:
        return next(str(entry.row["label"]) for entry in self.sweep.entries if entry.row["mark"] == mark)

    @property
    def standings(self) -> list[Standing]:
        return self.ranking.compared.standings


def entry_keys(sweep: Sweep) -> dict[str, list[Key]]:
    """By an entry's mark, the trials and evaluations that are it."""
    keys = {}
    for entry in sweep.entries:
        rows = [sweep.rows[place] for place in entry.places]
        keys[str(entry.row["mark"])] = [(row["trial_id"], row["eval_id"]) for row in rows]
    return keys


def analyse(runs: Path, name: str) -> Analysis:
    """Everything of the sweep ``name``.

    Raises:
        Refused: there is no such sweep.
    """
    sweep = load_sweep(runs, name)
    ranking = rank(sweep)
    found = factors(sweep, ranking.compared)
    effects = main_effects(ranking.compared, found)
    joint = interactions(ranking.compared, found)
    votes, notes = read_votes(report_folder(runs, name))
    return Analysis(
        runs=runs,
        sweep=sweep,
        ranking=ranking,
        effects=effects,
        joint=joint,
        observations=observations(sweep, ranking, found, effects, joint),
        votes=votes,
        vote_notes=notes,
        test=test_score(runs, sweep),
    )


def test_score(runs: Path, sweep: Sweep) -> TestScore | None:
    """What ``sweep.confirm`` found on the test split; None before it did."""
    name = f"{sweep.name}{TEST_SUFFIX}"
    file = read_sweep_file(runs, name)
    if file is None or file.split != "test":
        return None
    tested = load_sweep(runs, name)
    ranking = rank(tested)
    standing = next((each for each in ranking.compared.standings if each.tied and each.quality), None)
    if standing is None:
        return None
    trial_id = tested.rows[standing.entry.places[0]]["trial_id"]
    entry = next((e for e in sweep.entries if any(sweep.rows[p]["trial_id"] == trial_id for p in e.places)), None)
    if entry is None or standing.quality is None:
        return None
    mean, gain = standing.quality, standing.versus_baseline
    text = (
        f"On the test split, read once: {row_name(entry.row)} has {OBJECTIVE} {metric(OBJECTIVE, mean.value)} "
        f"{interval(OBJECTIVE, mean.low, mean.high)} on {count_noun(standing.prompts, 'prompt')}, "
        f"{count_noun(standing.seeds, 'seed')}"
    )
    if gain is not None:
        text += f", {gain_words(gain)}"
    return TestScore(str(entry.row["mark"]), standing, f"{text}.")
