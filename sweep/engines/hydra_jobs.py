"""A sweep under Hydra's other launchers (basic, joblib, submitit): a job is one point, wherever it runs.

The sweeper's process plans, records and reports; a job finds the store, passes over what is done, and runs the rest of
its point as our own launcher would, in a worker process with the same claims, limits and retries.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lora_sweep.config.schema import config_from_json
from lora_sweep.runs import files, results
from lora_sweep.runs.locks import is_claimed
from sweep.engines.local.supervisor import Crew, Stopped
from sweep.engines.queue import Queue, Waiting
from sweep.plan.make import make_plan
from sweep.resources import machine
from sweep.status.live import PlainLines
from sweep.status.progress import Board
from sweep.store import trial_state
from sweep.store.sweep_file import read_sweep_file
from sweep.trials import PlannedTrial


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
    sweep = read_sweep_file(runs, name)
    labels = {entry.key: entry.label for entry in sweep.trials} if sweep else {}
    trials = [dataclasses.replace(trial, label=labels.get(trial.key, trial.label)) for trial in plan.trials]
    try:
        run_trials(trials, runs, name)
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from None
    return results.load_record(runs, *plan.points[0]).metric_mean("quality")


def run_trials(trials: list[PlannedTrial], runs: Path, name: str) -> None:
    """Run in one worker what these trials need, but for baselines that another job runs at this moment."""
    waiting = []
    for trial in trials:
        state = trial_state.state_of(trial, runs)
        busy = trial.kind == "baseline" and is_claimed(files.trial_lock(runs, trial.trial_id))
        if not state.settled and not busy:
            alone = bool(trial_state.setbacks_of(trial, runs))
            waiting.append(Waiting(trial, trained=state.name == "trained", alone=alone))
    if not waiting:
        return
    settings = trials[0].config.launch
    board = Board(name, len(waiting), time.time(), counts={"waiting": len(waiting)})
    status = {item.trial.key: "waiting" for item in waiting}
    places = machine.find_slots(settings.devices)[:1]
    crew = Crew(runs, name, settings, places, Queue(waiting), status, PlainLines(board.started), board)
    crew.run()
