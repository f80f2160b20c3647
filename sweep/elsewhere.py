"""A sweep under Hydra's other launchers (basic, joblib, submitit): a job is one point, wherever it runs.

The sweeper's process plans, records and reports; a job finds the store, passes over what is done, and runs the rest of
its point as our own launcher would, in a worker process with the same claims, limits and retries.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lora_sweep import results
from lora_sweep.claims import is_claimed
from lora_sweep.config import Config, config_from_json
from sweep import machine, store
from sweep.board import Board
from sweep.crew import Crew, Stopped
from sweep.launch import Outcomes, launch
from sweep.live import PlainLines
from sweep.plan import make_plan
from sweep.schedule import Queue, Waiting
from sweep.trials import Key, Plan, Planned, with_overrides


def launch_points(
    start: Callable[[list[list[str]]], Any],
    configs: list[Config],
    points: Sequence[Sequence[str]],
    arguments: list[str],
) -> tuple[list[Any], Outcomes]:
    """Have another launcher run the points of a command that are not done.

    Args:
        start: gives a list of overrides a job to the launcher and returns what it returns.

    Returns:
        That, and every trial's result.
    """
    plan = with_overrides(make_plan(configs, strict=True), points)
    returned: list[Any] = []

    def run(plan: Plan, waiting: list[Waiting], runs: Path, name: str) -> None:
        left = {item.trial.key for item in waiting}
        baseline_of = {trial.key: trial.baseline for trial in plan.trials}
        jobs: dict[Key, list[str]] = {}
        for key, overrides in zip(plan.points, points, strict=True):
            if key in left or baseline_of.get(key) in left:
                jobs.setdefault(key, [*overrides, f"sweep_name={name}"])
        returned.extend(start(list(jobs.values())))

    outcomes = launch(plan, arguments, run=run)
    return returned, outcomes


def run_point(config: DictConfig) -> float | None:
    """What such a launcher calls for each job: run one point here, unless its folder says that it is done.

    Returns:
        The trial's quality; None where it is not complete.

    Raises:
        KeyboardInterrupt: a signal asked to stop; a launcher in this process must then start no other job.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    plan = make_plan([config_from_json(values)], strict=True)
    runs, name = Path(plan.trials[0].config.runs_dir), str(plan.trials[0].config.sweep_name)
    listed = (results.read_json(results.sweep_file(runs, name)) or {}).get("trials", [])
    labels = {(entry["trial_id"], entry["eval_id"]): entry["label"] for entry in listed}
    trials = [dataclasses.replace(trial, label=labels.get(trial.key, trial.label)) for trial in plan.trials]
    try:
        run_trials(trials, runs, name)
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from None
    return results.load_result(runs, *plan.points[0]).metric("quality")


def run_trials(trials: list[Planned], runs: Path, name: str) -> None:
    """Run in one worker what these trials need, but for baselines that another job runs at this moment."""
    waiting = []
    for trial in trials:
        state = store.state_of(trial, runs)
        busy = trial.kind == "baseline" and is_claimed(results.trial_lock(runs, trial.trial_id))
        if not state.settled and not busy:
            alone = bool(store.setbacks_of(trial, runs))
            waiting.append(Waiting(trial, trained=state.name == "trained", alone=alone))
    if not waiting:
        return
    settings = trials[0].config.launch
    board = Board(name, len(waiting), time.time(), counts={"waiting": len(waiting)})
    status = {item.trial.key: "waiting" for item in waiting}
    places = machine.places(settings.devices)[:1]
    crew = Crew(runs, name, settings, places, Queue(waiting), status, PlainLines(board.started), board)
    crew.run()
