"""The steps of a sweep: read what is on disk, run what is left on an engine, write the report. Imports no torch.

The outcome of a trial is read from the trial's files, never from the engine.
"""

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lora_sweep.config.schema import Config
from lora_sweep.errors import EXIT_FAILED, EXIT_INTERRUPTED, Refused
from lora_sweep.runs import files, results
from lora_sweep.runs.crash_points import crash_point
from lora_sweep.runs.locks import describe_holder, hold_lock
from lora_sweep.runs.provenance import collect_code_state
from lora_sweep.runs.records import TrialRecord
from lora_sweep.tracking.run import closing_line
from lora_sweep.tracking.sweep_run import log_sweep
from sweep.engines.engine import Engine, SweepStopped
from sweep.engines.pending import PendingTrial, list_pending
from sweep.plan.make import make_plan
from sweep.plan.table import format_plan
from sweep.resources import machine
from sweep.resources.estimate import estimate_disk_bytes
from sweep.store import trial_state
from sweep.store.drift import format_drift_notes
from sweep.store.leftovers import has_leftovers, remove_temporary_files
from sweep.store.sweep_file import name_sweep, record_sweep
from sweep.store.trial_state import TrialState
from sweep.text import format_disk_bytes
from sweep.trials import Key, Plan, attach_overrides

Outcomes = dict[Key, TrialRecord]


def launch_points(
    configs: list[Config], points: Sequence[Sequence[str]], arguments: list[str], engine: Engine
) -> tuple[Plan, Outcomes]:
    """Plan the points of a command and launch the plan.

    Args:
        points: the overrides of each config, in the order of ``configs``.
        arguments: as for :func:`launch`.

    Returns:
        The plan, and the result of each of its trials.
    """
    plan = attach_overrides(make_plan(configs, strict=True), points)
    return plan, launch(plan, arguments, engine)


def launch(plan: Plan, arguments: list[str], engine: Engine, resume_command: str | None = None) -> Outcomes:
    """Run what is left of the plan, write and print the report, and return the result of every trial.

    Args:
        arguments: those of the command ``lora_sweep.train``. The sweep's file records this command, and an interruption
            prints it.
        resume_command: the command to print after an interruption, if another one resumes the sweep.

    Raises:
        Refused: another process runs the sweep, or the runs folder cannot be written or has too little space.
        SystemExit: 75 after a signal or if nothing can be written, 1 if no worker starts.
    """
    runs, name = Path(plan.trials[0].config.runs_dir), name_sweep(plan)
    command = shlex.join(["python", "-m", "lora_sweep.train", *arguments])
    states = trial_state.read_trial_states(plan, runs)
    print(format_plan(plan, runs, name, states, notes=format_drift_notes(plan, states, runs, name)), flush=True)
    is_done = trial_state.is_done(plan, states, runs, name)
    if not is_done:
        check_disk(plan, states, runs, engine.count_workers(plan))
    try:
        if not is_done or has_leftovers(runs, name) or not trial_state.is_mirrored(runs, name):
            run_sweep(plan, runs, name, command, engine)  # otherwise no file is written, not even a lock
        return report_outcomes(plan, runs, name, has_run=not is_done)
    except SweepStopped as stopped:
        reason, code = str(stopped), EXIT_INTERRUPTED if stopped.can_resume else EXIT_FAILED
    except OSError as error:
        if error.errno not in files.DISK_ERRORS:
            raise
        reason, code = f"nothing can be written: {error}", EXIT_INTERRUPTED
    print(f"\n{reason}; finished trials are kept. Go on with:\n  {resume_command or command}", flush=True)
    raise SystemExit(code)


def check_disk(plan: Plan, states: dict[Key, TrialState], runs: Path, workers: int) -> None:
    """Refuse a runs folder that cannot be written or has too little space, before anything is trained."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=runs):  # a file without a name, so a killed process leaves nothing
            pass
    except OSError as error:
        raise Refused(f"runs_dir = {runs}", f"cannot be written: {error.strerror}") from None
    needed, free = estimate_disk_bytes(plan, states, workers), machine.measure_free_disk(runs)
    if needed > free:
        raise Refused(
            f"runs_dir = {runs}", f"needs about {format_disk_bytes(needed)}, and {format_disk_bytes(free)} are free"
        )


def run_sweep(plan: Plan, runs: Path, name: str, command: str, engine: Engine) -> None:
    """Run what is left while this process holds the sweep's lock.

    Raises:
        Refused: another process holds the lock.
    """
    path = files.sweep_lock(runs, name)
    with hold_lock(path) as is_ours:
        if not is_ours:
            raise Refused(f"sweep {name}", f"is run by {describe_holder(path)}: one command at a time")
        pending = prepare_sweep(plan, runs, name, command)
        if pending:
            engine.run(plan, pending, runs, name)
        crash_point("before mirror")
        mirror_sweep(plan, runs, name, command)
        crash_point("mirrored")


def prepare_sweep(plan: Plan, runs: Path, name: str, command: str) -> list[PendingTrial]:
    """Move broken trials to quarantine, record the sweep, and list what is left to run. The caller holds the lock."""
    remove_temporary_files(runs, name)
    retry_failed = plan.trials[0].config.launch.retry == "failed"
    # Read again: another command may have run the sweep before we got the lock.
    states = trial_state.read_trial_states(plan, runs)
    for trial in plan.trials:
        message = trial_state.prepare_trial(trial, states[trial.key], runs, retry_failed)
        if message:
            print(message, flush=True)
        if message or retry_failed:
            states[trial.key] = trial_state.read_trial_state(trial, runs)
    pending = list_pending(plan.trials, states, runs)
    crash_point("prepared")
    record_sweep(plan, runs, name, command, collect_code_state() if pending else None)
    trial_state.write_invalid_results(plan, runs)
    return pending


def mirror_sweep(plan: Plan, runs: Path, name: str, command: str) -> None:
    """Send the results of the sweep to the tracker as one run, unless the tracker has these results already."""
    if trial_state.is_mirrored(runs, name):
        return
    settings = plan.trials[0].config.tracking
    if settings.backend != "none":
        # Imported late: the report loads scipy, which a refused command does not need.
        from sweep.report.analysis.analyse import analyse_sweep
        from sweep.report.formats.json_file import rows_to_json
        from sweep.report.formats.page_data import write_page_data
        from sweep.report.write import write_report

        write_report(runs, name)  # the run gets the report's files as an artifact
        analysis = analyse_sweep(runs, name)
        rows, charts = rows_to_json(analysis), write_page_data(analysis)[0]
        log_sweep(settings, runs, name=name, command=command, rows=rows, charts=charts)
    files.append_event(runs, name, "mirrored")


def report_outcomes(plan: Plan, runs: Path, name: str, has_run: bool) -> Outcomes:
    """Write and print the report, and return the result of every trial."""
    from sweep.report.write import write_report  # imported late, as in mirror_sweep

    print(write_report(runs, name))
    rows = [*plan.trials, *plan.invalid]
    outcomes = {row.key: results.load_record(runs, *row.key, row.label) for row in rows}
    failed = sum(outcome.status not in ("complete", "invalid") for outcome in outcomes.values())
    if failed:
        print(f"{failed} failed; their logs: {runs}/trials/<id>/log.txt. To try them again: launch.retry=failed")
    line = closing_line(plan.trials[0].config.tracking, runs)
    if line and has_run:
        print(line)
    return outcomes
