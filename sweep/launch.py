"""A plan to outcomes: looks at what is there, runs what is left, and reports. Imports no torch.

Owns the order of things and what a person is told. What happened is read from the trials' files.
"""

import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lora_sweep.config.schema import Config
from lora_sweep.errors import EXIT_FAILED, EXIT_INTERRUPTED, Refused
from lora_sweep.runs import files, results
from lora_sweep.runs.crash_points import crash_point
from lora_sweep.runs.locks import claim, holder, remove_stale
from lora_sweep.runs.provenance import made_with
from lora_sweep.runs.records import TrialRecord
from lora_sweep.tracking.run import closing_line
from lora_sweep.tracking.sweep_run import log_sweep
from sweep.engines.local.supervisor import Crew, Stopped
from sweep.engines.local.worker_process import COMMAND
from sweep.engines.queue import Queue, Waiting
from sweep.plan.make import make_plan
from sweep.plan.table import format_plan
from sweep.resources import machine
from sweep.resources.estimate import estimate_disk_bytes
from sweep.status.live import screen
from sweep.status.progress import Board
from sweep.store import trial_state
from sweep.store.drift import drift_notes
from sweep.store.sweep_file import record_sweep, sweep_name
from sweep.store.trial_state import State
from sweep.text import format_disk_bytes
from sweep.trials import Key, Plan, attach_overrides

Outcomes = dict[Key, TrialRecord]
Run = Callable[[Plan, list[Waiting], Path, str], None]  # the plan, what waits of it, the runs folder, the sweep's name


def launch(
    plan: Plan,
    arguments: list[str],
    worker: Sequence[str] = COMMAND,
    run: Run | None = None,
    again: str | None = None,
) -> Outcomes:
    """Run what is left of the plan, write and print the report, and return every trial's result.

    Args:
        arguments: of the command, for the record and to print the line that goes on after an interruption.
        worker: the command of a worker process; a test gives its own.
        run: runs what waits; None: workers of this process.
        again: the command to go on with, where it is not the recorded one.

    Raises:
        Refused: the sweep runs already, or its folder cannot take what it needs.
        SystemExit: 75 after a signal or where the disk takes no more, 1 where no worker starts.
    """
    runs, name = Path(plan.trials[0].config.runs_dir), sweep_name(plan)
    command = command_of(arguments)
    states = head(plan, runs, name)
    try:
        worked = not trial_state.is_done(plan, states, runs, name)
        if (
            worked or leftovers(runs, name) or not trial_state.is_mirrored(runs, name)
        ):  # else not even a claim is written
            work(plan, runs, name, command, run or partial(run_here, worker=worker))
        return finish(plan, runs, name, worked)
    except Stopped as stopped:
        why, code = str(stopped), EXIT_INTERRUPTED if stopped.can_go_on else EXIT_FAILED
    except OSError as error:
        if error.errno not in files.DISK_ERRORS:
            raise
        why, code = f"nothing can be written: {error}", EXIT_INTERRUPTED
    print(f"\n{why}; finished trials are kept. Go on with:\n  {again or command}", flush=True)
    raise SystemExit(code)


def work(plan: Plan, runs: Path, name: str, command: str, run: Run) -> None:
    """What only the sweep's one orchestrator may do."""
    path = files.sweep_lock(runs, name)
    with claim(path) as ours:
        if not ours:
            raise Refused(f"sweep {name}", f"is run by {holder(path)}: one command at a time")
        waiting = prepared(plan, runs, name, command)
        if waiting:
            run(plan, waiting, runs, name)
        crash_point("before mirror")
        mirror(plan, runs, name, command)
        crash_point("mirrored")


def leftovers(runs: Path, name: str) -> bool:
    """Whether a killed orchestrator of this sweep left anything behind."""
    folder = files.report_folder(runs, name)
    found = [*(runs / "locks").glob("*"), *folder.rglob(".*.tmp"), *(runs / "sweeps").glob(f".{name}.json.*.tmp")]
    return bool(found) or files.progress_file(runs, name).exists()


def tidy(runs: Path, name: str) -> None:
    """Remove what an orchestrator of this sweep that was killed left behind. Only for who has the sweep's claim."""
    remove_stale(runs / "locks")
    files.remove_leftovers(files.report_folder(runs, name))
    for path in (runs / "sweeps").glob(f".{name}.json.*.tmp"):
        path.unlink(missing_ok=True)
    files.progress_file(runs, name).unlink(missing_ok=True)


def command_of(arguments: list[str]) -> str:
    """What a person types to go on."""
    return shlex.join(["python", "-m", "lora_sweep.train", *arguments])


def head(plan: Plan, runs: Path, name: str) -> dict[Key, State]:
    """Look at what is there, say it, and refuse what the disk cannot take."""
    states = trial_state.states(plan, runs)
    print(format_plan(plan, runs, name, states, notes=drift_notes(plan, states, runs, name)), flush=True)
    if not trial_state.is_done(plan, states, runs, name):
        check_disk(plan, states, runs)
    return states


def prepared(plan: Plan, runs: Path, name: str, command: str) -> list[Waiting]:
    """Record the sweep, move aside what is broken, and list what is left to run. Only for who has the sweep's claim."""
    tidy(runs, name)
    retry = plan.trials[0].config.launch.retry == "failed"
    states = trial_state.states(plan, runs)  # once more: whoever had the claim before may have gone on in between
    for trial in plan.trials:
        said = trial_state.prepare(trial, states[trial.key], runs, retry)
        if said:
            print(said, flush=True)
        if said or retry:
            states[trial.key] = trial_state.state_of(trial, runs)
    waiting = [
        Waiting(trial, trained=states[trial.key].name == "trained", alone=bool(trial_state.setbacks_of(trial, runs)))
        for trial in plan.trials
        if not states[trial.key].settled
    ]
    crash_point("prepared")
    record_sweep(plan, runs, name, command, made_with() if waiting else None)
    trial_state.write_invalid(plan, runs)
    return waiting


def run_here(plan: Plan, waiting: list[Waiting], runs: Path, name: str, worker: Sequence[str]) -> None:
    """Run what waits, on the places of this machine."""
    settings, places = plan.trials[0].config.launch, workers_on(plan)[: len(waiting)]
    status = {trial.key: str(results.read_outcome(runs, *trial.key).status) for trial in plan.trials}
    status |= {item.trial.key: "waiting" for item in waiting} | {point.key: "invalid" for point in plan.invalid}
    board = Board(name, len(status), time.time(), counts=dict(Counter(status.values())))
    try:
        with screen(board) as shown:
            crew = Crew(runs, name, settings, places, Queue(waiting), status, shown, board, worker)
            crew.run()
    finally:
        remove_stale(runs / "locks")  # of workers that were killed


def workers_on(plan: Plan) -> list[machine.Slot]:
    """The place of each worker that the plan's settings ask for; several may share one."""
    settings = plan.trials[0].config.launch
    places = machine.find_slots(settings.devices)
    return [places[number % len(places)] for number in range(settings.workers or len(places))]


def finish(plan: Plan, runs: Path, name: str, worked: bool) -> Outcomes:
    """Write and print the report."""
    from sweep.report.write import write_report

    print(write_report(runs, name))
    rows = [*plan.trials, *plan.invalid]
    outcomes = {row.key: results.load_record(runs, *row.key, row.label) for row in rows}
    failed = sum(outcome.status not in ("complete", "invalid") for outcome in outcomes.values())
    if failed:
        print(f"{failed} failed; their logs: {runs}/trials/<id>/log.txt. To try them again: launch.retry=failed")
    line = closing_line(plan.trials[0].config.tracking, runs)
    if line and worked:
        print(line)
    return outcomes


def mirror(plan: Plan, runs: Path, name: str, command: str) -> None:
    """The sweep's own run, unless it shows the present results already."""
    if trial_state.is_mirrored(runs, name):
        return
    settings = plan.trials[0].config.tracking
    if settings.backend != "none":
        from sweep.report.analysis.analysis import analyse
        from sweep.report.formats.page_data import page_data
        from sweep.report.write import write_report

        write_report(runs, name)  # its files are an artifact of the run
        analysis = analyse(runs, name)
        rows, charts = analysis.sweep.rows, page_data(analysis)[0]
        log_sweep(settings, runs, name=name, command=command, rows=rows, charts=charts)
    files.append_event(runs, name, "mirrored")


def check_disk(plan: Plan, states: dict[Key, State], runs: Path) -> None:
    """Refuse what the disk cannot take, before anything is trained."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=runs):  # has no name that a kill could leave behind
            pass
    except OSError as error:
        raise Refused(f"runs_dir = {runs}", f"cannot be written: {error.strerror}") from None
    needed, free = estimate_disk_bytes(plan, states, len(workers_on(plan))), machine.measure_free_disk(runs)
    if needed > free:
        raise Refused(
            f"runs_dir = {runs}", f"needs about {format_disk_bytes(needed)}, and {format_disk_bytes(free)} are free"
        )


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
    plan = attach_overrides(make_plan(configs, strict=True), points)
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
