"""``python -m sweep.confirm [NAME]``: make sure of a ranking, and read the test split once.

The tied group's members are trained with more seeds, as further trials of the same sweep, until each has as many as
asked for; what seeds add is then known, and who is tied is looked at again. The row that is then recommended is scored
on the test split, which nothing has read before, as the sweep NAME-test, which the report of NAME shows. The same
command goes on after an interruption, as every other does.
"""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

from lora_sweep.config.schema import Config, config_from_json
from lora_sweep.errors import EXIT_COMPLETE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED, Refused
from lora_sweep.runs import results
from sweep.engines.local.engine import LocalEngine
from sweep.launch import launch
from sweep.plan.make import make_plan
from sweep.report.analysis.analysis import TEST_SUFFIX, Analysis, analyse
from sweep.report.analysis.configurations import Entry
from sweep.report.formats.cells import row_name
from sweep.report.write import write_report
from sweep.store.sweep_file import find_newest_sweep, read_sweep_file
from sweep.text import count_noun
from sweep.trials import Key, Plan

SEEDS = 3  # of each tied row


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, 1 where a trial failed, 75 after an interruption, 78 when it cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m sweep.confirm",
        description="Train the rows tied with the best with more seeds, and score the chosen one on the test split.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the sweep; left out: the one that was started last")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (default: runs)")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help=f"of each row (default: {SEEDS})")
    given = parser.parse_args(arguments)
    try:
        if given.seeds < 2:
            raise Refused(f"--seeds {given.seeds}", "must be at least 2: one seed shows no noise of seeds")
        return confirm(given.runs, given.name or find_newest_sweep(given.runs), given.seeds)
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        print("\ninterrupted; finished trials are kept, and the same command goes on", flush=True)
        return EXIT_INTERRUPTED


def confirm(runs: Path, name: str, seeds: int) -> int:
    """Train until every tied row has ``seeds`` seeds, then score the chosen one on the test split."""
    sweep = read_sweep_file(runs, name)
    if sweep is not None and sweep.split == "test":
        raise Refused(f"sweep {name}", "holds another sweep's scores on the test split: confirm that one")
    tested = read_sweep_file(runs, f"{name}{TEST_SUFFIX}")
    if tested is not None and tested.split != "test":
        what = f"is a sweep of its own, and its name is wanted for the test scores of {name}: rename it"
        raise Refused(f"sweep {name}{TEST_SUFFIX}", what)
    analysis = analyse(runs, name)
    again = shlex.join(["python", "-m", "sweep.confirm", name, "--runs", str(runs), "--seeds", str(seeds)])
    while missing := missing_seeds(analysis, seeds):
        listed = ", ".join(f"{row_name(entry.row)}: {count_noun(len(new), 'seed')} more" for entry, new in missing)
        print(f"tied with the best, and to be trained again: {listed}", flush=True)
        if not run(more_seeds(runs, analysis, missing), analysis.sweep.command, again):
            return EXIT_FAILED
        analysis = analyse(runs, name)
        if named(missing_seeds(analysis, seeds)) == named(missing):
            raise RuntimeError(f"no row of {name} has more seeds after training them")
    chosen = analysis.ranking.recommended
    if chosen is None:
        raise Refused(f"sweep {name}", analysis.ranking.text)
    complete = score_on_test(runs, analysis, chosen.entry, again)
    print(write_report(runs, name))
    return EXIT_COMPLETE if complete else EXIT_FAILED


def named(missing: list[tuple[Entry, list[int]]]) -> list[tuple[str, list[int]]]:
    """The same by the rows' names."""
    return [(row_name(entry.row), seeds) for entry, seeds in missing]


def missing_seeds(analysis: Analysis, seeds: int) -> list[tuple[Entry, list[int]]]:
    """The tied rows with fewer than ``seeds`` complete trials, and the seeds to train each with: the smallest unused.

    A seed that diverged is passed over, what failed is tried again; a row of which as many seeds as asked for ended
    without an adapter gets no more.
    """
    missing = []
    for standing in analysis.ranking.tied:
        rows = [analysis.sweep.rows[place] for place in standing.entry.places]
        ended = {row["seed"] for row in rows if row["status"] in results.SETTLED}
        lost = len(ended) - standing.seeds
        wanted = 0 if lost >= seeds else max(0, seeds - standing.seeds)
        new = [seed for seed in range(2 * seeds + len(ended)) if seed not in ended][:wanted]
        if new:
            missing.append((standing.entry, new))
    return missing


def more_seeds(runs: Path, analysis: Analysis, missing: list[tuple[Entry, list[int]]]) -> Plan:
    """The plan of the sweep's complete trials and the further seeds.

    Raises:
        Refused: the model or the data are others than the sweep's: its rows could not be compared with new ones.
    """
    sweep = analysis.sweep
    ranked = [each.entry for each in analysis.standings if each.tied is not None]
    known = [place for entry in ranked for place in entry.places if sweep.rows[place]["status"] == "complete"]
    configs = [recorded(runs, sweep.name, sweep.results[place].config) for place in known]
    overrides = [sweep.overrides[place] for place in known]
    for entry, seeds in missing:
        place = entry.places[0]
        config = recorded(runs, sweep.name, sweep.results[place].config)
        typed = [each for each in sweep.overrides[place] if not each.startswith("seed=")]
        for seed in seeds:
            configs.append(dataclasses.replace(config, seed=seed))
            overrides.append([*typed, f"seed={seed}"] if typed else [])
    plan = make_plan(configs, strict=True)
    same = [point == key_of(sweep.rows[place]) for point, place in zip(plan.points, known, strict=False)]
    if not all(same):
        what = "was made from another model or other data than are here now: run its command again before confirming it"
        raise Refused(f"sweep {sweep.name}", what)
    return dataclasses.replace(plan, overrides=dict(zip(plan.points, overrides, strict=True)))


def score_on_test(runs: Path, analysis: Analysis, chosen: Entry, again: str) -> bool:
    """Evaluate the chosen row, with every seed, on the test split; whether all of it is complete.

    Raises:
        Refused: the test split was used for another row: a second look would be one of several, as on validation.
    """
    sweep, name = analysis.sweep, f"{analysis.sweep.name}{TEST_SUFFIX}"
    places = [place for place in chosen.places if sweep.rows[place]["status"] == "complete"]
    rows = [sweep.rows[place] for place in places]
    if not sweep.results[places[0]].training.data.test_rows:
        print("the data has no test split (data.test_fraction=0), so nothing is scored on one")
        return True
    before = read_sweep_file(runs, name)
    tested = {entry.trial_id for entry in before.trials if entry.kind == "trial"} if before else set()
    if tested and not tested & {row["trial_id"] for row in rows}:
        other = next((row_name(row) for row in sweep.rows if row["trial_id"] in tested), "a row that is gone")
        what = f"was scored for {other}, and is read once; the recommendation is {row_name(chosen.row)} now"
        raise Refused(f"the test split of sweep {sweep.name}", what)
    configs = [recorded(runs, name, sweep.results[place].config) for place in places]
    configs = [dataclasses.replace(c, eval=dataclasses.replace(c.eval, split="test")) for c in configs]
    return run(make_plan(configs, strict=True), sweep.command, again)


def run(plan: Plan, command: str, again: str) -> bool:
    """Launch the plan, recorded as of the sweep's own command; whether all of it is complete."""
    try:
        arguments = shlex.split(command)[3:]
    except ValueError:
        arguments = []  # the sweep's file was edited by hand
    outcomes = launch(plan, arguments, LocalEngine(), again)
    return all(result.status == "complete" for result in outcomes.values())


def recorded(runs: Path, name: str, config: dict[str, Any]) -> Config:
    """A trial's configuration as it was recorded, as one of the sweep ``name``."""
    return dataclasses.replace(config_from_json(config), runs_dir=str(runs), sweep_name=name)


def key_of(row: dict[str, Any]) -> Key:
    return row["trial_id"], row["eval_id"]


if __name__ == "__main__":
    sys.exit(main())
