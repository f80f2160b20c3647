"""``python -m sweep.confirm [NAME]``: confirm a ranking with more seeds, then with the test split.

First each configuration of the tied group is trained with more seeds, as further trials of the same sweep, until it
has enough of them. The results show how much the seed changes the scores, and the tied group is computed again. Then
the recommended configuration is scored on the test split, which no command has read before. These scores are stored
as the sweep NAME-test, and the report of NAME shows them. After an interruption the same command resumes.
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
from sweep.report.analysis.analyse import TEST_SUFFIX, Analysis, analyse_sweep
from sweep.report.analysis.configurations import Configuration
from sweep.report.formats.cells import name_row
from sweep.report.write import write_report
from sweep.store.sweep_file import find_newest_sweep, read_sweep_file
from sweep.text import count_noun
from sweep.trials import Plan

DEFAULT_SEEDS = 3  # for each tied configuration


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit code: 0, 1 if a trial failed, 75 after an interruption, 78 if refused."""
    parser = argparse.ArgumentParser(
        prog="python -m sweep.confirm",
        description="Train the rows tied with the best with more seeds, and score the chosen one on the test split.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the sweep (default: the one that was started last)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (default: runs)")
    parser.add_argument(
        "--seeds", type=int, default=DEFAULT_SEEDS, metavar="N", help=f"of each row (default: {DEFAULT_SEEDS})"
    )
    options = parser.parse_args(arguments)
    try:
        if options.seeds < 2:
            raise Refused(f"--seeds {options.seeds}", "must be at least 2: one seed shows no difference between seeds")
        return confirm_sweep(options.runs, options.name or find_newest_sweep(options.runs), options.seeds)
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        print("\ninterrupted; finished trials are kept, and the same command goes on", flush=True)
        return EXIT_INTERRUPTED


def confirm_sweep(runs: Path, name: str, seeds: int) -> int:
    """Train until every tied configuration has ``seeds`` seeds, then score the recommended one on the test split.

    Returns:
        The exit code.

    Raises:
        Refused: the sweep is NAME-test of another sweep, the name NAME-test is taken, or no row is recommended.
    """
    sweep = read_sweep_file(runs, name)
    if sweep is not None and sweep.split == "test":
        raise Refused(f"sweep {name}", "holds another sweep's scores on the test split: confirm that one")
    tested = read_sweep_file(runs, f"{name}{TEST_SUFFIX}")
    if tested is not None and tested.split != "test":
        reason = f"is another sweep, and the test scores of {name} need its name: rename it"
        raise Refused(f"sweep {name}{TEST_SUFFIX}", reason)
    analysis = analyse_sweep(runs, name)
    resume_command = shlex.join(["python", "-m", "sweep.confirm", name, "--runs", str(runs), "--seeds", str(seeds)])
    while missing := find_missing_seeds(analysis, seeds):
        rows = ", ".join(f"{name_row(item.summary)}: {count_noun(len(new), 'seed')} more" for item, new in missing)
        print(f"tied with the best, and to be trained again: {rows}", flush=True)
        if not launch_plan(plan_more_seeds(runs, analysis, missing), analysis.sweep.command, resume_command):
            return EXIT_FAILED
        analysis = analyse_sweep(runs, name)
        if list_row_names(find_missing_seeds(analysis, seeds)) == list_row_names(missing):
            raise RuntimeError(f"the new trials of {name} gave no row a further seed")
    recommended = analysis.ranking.recommended
    if recommended is None:
        raise Refused(f"sweep {name}", analysis.ranking.text)
    is_complete = score_on_test(runs, analysis, recommended.configuration, resume_command)
    print(write_report(runs, name))
    return EXIT_COMPLETE if is_complete else EXIT_FAILED


def list_row_names(missing: list[tuple[Configuration, list[int]]]) -> list[tuple[str, list[int]]]:
    """The name of each row with its missing seeds. Names stay the same when the sweep is analysed again."""
    return [(name_row(configuration.summary), seeds) for configuration, seeds in missing]


def find_missing_seeds(analysis: Analysis, seeds: int) -> list[tuple[Configuration, list[int]]]:
    """The tied configurations with fewer than ``seeds`` complete trials, each with the seeds to train it with.

    The seeds are the smallest unused ones. A seed that diverged is not used again; a trial that failed is tried again.
    If ``seeds`` trials of a configuration ended without an adapter, it gets no more seeds.
    """
    missing = []
    for standing in analysis.ranking.tied:
        summaries = [trial.summary for trial in standing.configuration.trials]
        ended = {summary.seed for summary in summaries if summary.status in results.FINAL_STATUSES}
        lost = len(ended) - standing.seeds
        wanted = 0 if lost >= seeds else max(0, seeds - standing.seeds)
        new = [seed for seed in range(2 * seeds + len(ended)) if seed not in ended][:wanted]
        if new:
            missing.append((standing.configuration, new))
    return missing


def plan_more_seeds(runs: Path, analysis: Analysis, missing: list[tuple[Configuration, list[int]]]) -> Plan:
    """The plan of the sweep's complete trials and of the trials with further seeds.

    Raises:
        Refused: the model or the data changed since the sweep, so new rows could not be compared with its rows.
    """
    sweep = analysis.sweep
    ranked = [standing.configuration for standing in analysis.standings if standing.is_tied is not None]
    trials = [trial for configuration in ranked for trial in configuration.trials if trial.summary.is_complete]
    configs = [restore_config(runs, sweep.name, trial.record.config) for trial in trials]
    overrides = [trial.overrides for trial in trials]
    for configuration, seeds in missing:
        first = configuration.trials[0]
        config = restore_config(runs, sweep.name, first.record.config)
        typed = [text for text in first.overrides if not text.startswith("seed=")]
        for seed in seeds:
            configs.append(dataclasses.replace(config, seed=seed))
            overrides.append([*typed, f"seed={seed}"] if typed else [])
    plan = make_plan(configs, strict=True)
    if any(point != trial.key for point, trial in zip(plan.points, trials, strict=False)):
        reason = "was made from another model or other data than are here now: run its command again, then confirm it"
        raise Refused(f"sweep {sweep.name}", reason)
    return dataclasses.replace(plan, overrides=dict(zip(plan.points, overrides, strict=True)))


def score_on_test(runs: Path, analysis: Analysis, recommended: Configuration, resume_command: str) -> bool:
    """Evaluate every seed of the recommended configuration on the test split; returns whether all are complete.

    Raises:
        Refused: the test split was used for another configuration. Used twice, it would be one more validation split.
    """
    sweep, name = analysis.sweep, f"{analysis.sweep.name}{TEST_SUFFIX}"
    trials = [trial for trial in recommended.trials if trial.summary.is_complete]
    if not trials[0].record.training.data.test_rows:
        print("the data has no test split (data.test_fraction=0), so nothing is scored on one")
        return True
    before = read_sweep_file(runs, name)
    tested = {entry.trial_id for entry in before.trials if entry.kind == "trial"} if before else set()
    if tested and not tested & {trial.summary.trial_id for trial in trials}:
        rows = [trial.summary for trial in sweep.trials if trial.summary.trial_id in tested]
        other = name_row(rows[0]) if rows else "a row that the sweep no longer has"
        reason = (
            f"was used to score {other}, and it may be used only once; the recommendation is now "
            f"{name_row(recommended.summary)}"
        )
        raise Refused(f"the test split of sweep {sweep.name}", reason)
    configs = [restore_config(runs, name, trial.record.config) for trial in trials]
    configs = [dataclasses.replace(c, eval=dataclasses.replace(c.eval, split="test")) for c in configs]
    return launch_plan(make_plan(configs, strict=True), sweep.command, resume_command)


def launch_plan(plan: Plan, command: str, resume_command: str) -> bool:
    """Launch the plan under the command of the sweep itself; returns whether all trials are complete."""
    try:
        arguments = shlex.split(command)[3:]
    except ValueError:
        arguments = []  # the sweep's file was edited by hand
    outcomes = launch(plan, arguments, LocalEngine(), resume_command)
    return all(result.status == "complete" for result in outcomes.values())


def restore_config(runs: Path, name: str, config: dict[str, Any]) -> Config:
    """The recorded configuration of a trial, as one of the sweep ``name`` in ``runs``."""
    return dataclasses.replace(config_from_json(config), runs_dir=str(runs), sweep_name=name)


if __name__ == "__main__":
    sys.exit(main())
