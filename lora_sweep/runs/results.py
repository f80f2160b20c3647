"""Every file of a runs folder: their names, how they are written, and a trial as one row.

    runs/
      trials/<trial id>/
        config.json              the trial, complete
        losses.jsonl             {"step", "loss", "learning_rate", "grad_norm", "epoch"} a line
        adapter/                 PEFT's format
        result.json              written last: the training's outcome, with the sha256 of the files above
        checkpoints/             of a training under way
        setbacks.jsonl           a line for each death of its worker and each time that memory ran out
        log.txt                  what the libraries and the trial said
        evals/<eval id>/
          generations.jsonl      a prompt a line: what was asked, written and meant
          scores.json            the metrics of each prompt, and their means
          result.json            written last: the evaluation's outcome
      sweeps/<name>.json         ids and the command
      sweeps/<name>/             events.jsonl, report.{md,csv,json,html}, report-texts/, votes*.json, worker-N.log;
                                 while it runs progress.json
      quarantine/                trials whose files are not as they were written
      locks/                     held by who runs; empty otherwise
      wandb/, mlflow.db, mlflow/, trackio/   mirrors; nothing reads them

A baseline is a trial without an adapter: its own result says so at once, and its numbers are in its evaluation.
Nothing here knows what a metric means.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lora_sweep.runs.crash_points import crash_point
from lora_sweep.runs.files import EvalFolder, TrialFolder, read_json, read_jsonl, trial_folder, write_json
from lora_sweep.runs.records import (
    EvaluationResult,
    EvaluationScores,
    Generation,
    LossRow,
    TrialRecord,
    TrialResult,
)

STATUSES = ("complete", "diverged", "oom", "timeout", "preempted", "killed", "invalid", "pruned", "failed")
SETTLED = ("complete", "diverged", "invalid", "pruned", "timeout", "killed")  # trying again would end the same way
LARGE_FILE = 8 << 20  # bytes; a larger file is hashed again only where its time says that it was written to


def write_result(path: Path, value: dict[str, Any]) -> None:
    """Write a result.json: atomically, and with a seal over its own content."""
    write_json(path, {**value, "seal": seal_of(value)})


def seal_of(value: dict[str, Any]) -> str:
    """The sha256 of a result's content but for its seal."""
    content = {key: item for key, item in value.items() if key != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def broken(path: Path) -> str | None:
    """Why the result.json at ``path`` cannot be trusted: it or a file that it names is not as it was written.

    None where all is as written, and where there is no result.json at all. A file larger than LARGE_FILE whose time
    is not after the result's is taken for unchanged: an adapter of a gigabyte is not read to find out.
    """
    if not path.exists():
        return None
    value = read_json(path)
    if value is None:
        return f"{path.name} is torn"
    if value.get("seal") != seal_of(value):
        return f"{path.name} was altered"
    written = path.stat().st_mtime_ns
    files = value.get("files", {})
    for name, digest in files.items():
        file = path.parent / name
        try:
            stat = file.stat()
            if stat.st_size > LARGE_FILE and stat.st_mtime_ns <= written:
                continue
            with file.open("rb") as handle:
                same = hashlib.file_digest(handle, "sha256").hexdigest() == digest
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if not same:
            return f"{name} was altered"
    return None


def hash_adapter(training: TrialResult) -> str | None:
    """The sha256 of the hashes of the adapter's files, which an evaluation keeps to say what it evaluated.

    None for a baseline, which has no adapter.
    """
    files = {name: digest for name, digest in training.files.items() if name.startswith("adapter/")}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest() if files else None


def write_failure(
    runs: Path, ids: dict[str, str], config: dict[str, Any], facts: Mapping[str, object], status: str, reason: str
) -> None:
    """Record how a trial ended other than complete: as its evaluation's outcome when it is trained, else its own.

    Args:
        ids: trial_id, eval_id and kind.
        config, facts: what planning knows of the trial, for a report that has nothing else.
    """
    folder = trial_folder(runs, ids["trial_id"])
    trained = is_trained(folder)
    if not trained:  # the checksums of a complete result hold its config as it was
        write_json(folder.config, {"trial_id": ids["trial_id"], "kind": ids["kind"], "config": config})
    target = folder.evaluation(ids["eval_id"]).result if trained else folder.result
    write_result(target, {**ids, "status": status, "reason": reason, "eval": config["eval"], **facts})


def forget_failure(folder: TrialFolder, eval_id: str) -> None:
    """Remove outcomes other than complete, so that an outcome found later is of the attempt that follows."""
    for path in (folder.result, folder.evaluation(eval_id).result):
        if (read_json(path) or {}).get("status") != "complete":
            path.unlink(missing_ok=True)
            crash_point("failure forgotten")


def read_trial_result(folder: TrialFolder) -> TrialResult:
    """How the training of a trial ended; every field is unknown while it has not."""
    return TrialResult.from_json(read_json(folder.result))


def read_evaluation_result(folder: EvalFolder) -> EvaluationResult:
    """How an evaluation ended; every field is unknown while it has not."""
    return EvaluationResult.from_json(read_json(folder.result))


def is_trained(folder: TrialFolder) -> bool:
    """Whether the training is complete, so that only evaluations are left."""
    return read_trial_result(folder).status == "complete"


def load_record(runs: Path, trial_id: str, eval_id: str, label: str = "") -> TrialRecord:
    """One trial of a sweep from its files. Never raises for files that are absent or torn: their values are unknown."""
    folder = trial_folder(runs, trial_id)
    evaluation_folder = folder.evaluation(eval_id)
    training = read_trial_result(folder)
    evaluation = read_evaluation_result(evaluation_folder)
    is_evaluated = evaluation != EvaluationResult()
    outcome = evaluation if training.status == "complete" else training
    recorded = read_json(folder.config) or {}
    config = recorded.get("config")
    config = config if isinstance(config, dict) else {}
    if evaluation.eval:  # an adapter outlives the evaluation it was trained with
        config = {**config, "eval": evaluation.eval}
    return TrialRecord(
        trial_id=trial_id,
        eval_id=eval_id,
        kind="baseline" if recorded.get("kind") == "baseline" else "trial",
        label=label,
        status=outcome.status,
        reason=outcome.reason,
        config=config,
        training=training,
        evaluation=evaluation,
        scores=EvaluationScores.from_json(read_json(evaluation_folder.scores) if is_evaluated else None),
        generations=cast("list[Generation]", read_jsonl(evaluation_folder.generations)) if is_evaluated else [],
        losses=cast("list[LossRow]", read_jsonl(folder.losses)),
    )


def read_outcome(runs: Path, trial_id: str, eval_id: str) -> TrialResult | EvaluationResult:
    """The result that tells how a trial with this evaluation ended; its status is None while none does."""
    folder = trial_folder(runs, trial_id)
    training = read_trial_result(folder)
    return read_evaluation_result(folder.evaluation(eval_id)) if training.status == "complete" else training


def is_settled(runs: Path, trial_id: str, eval_id: str) -> bool:
    """Whether this trial with this evaluation needs no further work."""
    return read_outcome(runs, trial_id, eval_id).status in SETTLED
