"""The results of trials and evaluations: written with a seal, checked for damage, and read as records.

This module does not know what a metric means. The folders are described in ``files``.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

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
# Another attempt would end the same way.
FINAL_STATUSES = ("complete", "diverged", "invalid", "pruned", "timeout", "killed")
LARGE_FILE_BYTES = 8 << 20  # a larger file is hashed again only if it was written after its result


def write_result(path: Path, value: Mapping[str, object]) -> None:
    """Write a result.json atomically, with a seal: a hash of its content."""
    write_json(path, {**value, "seal": compute_seal(value)})


def compute_seal(value: Mapping[str, object]) -> str:
    """The sha256 of a result's content without its seal."""
    content = {key: item for key, item in value.items() if key != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def find_damage(path: Path) -> str | None:
    """What is wrong with the result.json at ``path`` or with a file that it lists, in words.

    None where every file is as it was written, and where there is no result.json. A file above LARGE_FILE_BYTES that
    is not newer than the result counts as unchanged, so that adapters of a gigabyte are not read again.
    """
    if not path.exists():
        return None
    value = read_json(path)
    if value is None:
        return f"{path.name} is torn"
    if value.get("seal") != compute_seal(value):
        return f"{path.name} was altered"
    written = path.stat().st_mtime_ns
    files = value.get("files", {})
    for name, digest in files.items():
        file = path.parent / name
        try:
            stat = file.stat()
            if stat.st_size > LARGE_FILE_BYTES and stat.st_mtime_ns <= written:
                continue
            with file.open("rb") as handle:
                is_same = hashlib.file_digest(handle, "sha256").hexdigest() == digest
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if not is_same:
            return f"{name} was altered"
    return None


def hash_adapter(training: TrialResult) -> str | None:
    """A hash of the adapter's files. An evaluation records it to tell which adapter wrote the texts.

    None for a baseline, which has no adapter.
    """
    files = {name: digest for name, digest in training.files.items() if name.startswith("adapter/")}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest() if files else None


def write_failure(
    runs: Path, ids: dict[str, str], config: Mapping[str, object], facts: Mapping[str, object], status: str, reason: str
) -> None:
    """Record that a trial is not complete: in its evaluation's result.json if it is trained, else in its own.

    Args:
        ids: trial_id, eval_id and kind.
        config: the trial's configuration as JSON.
        facts: what planning knows about the trial. A report shows them, because there is nothing else to show.
        status: one of STATUSES.
        reason: why it ended so, in words.
    """
    folder = trial_folder(runs, ids["trial_id"])
    has_adapter = is_trained(folder)
    if not has_adapter:  # a complete result.json holds the hash of config.json, which then must not change
        write_json(folder.config, {"trial_id": ids["trial_id"], "kind": ids["kind"], "config": config})
    target = folder.evaluation(ids["eval_id"]).result if has_adapter else folder.result
    write_result(target, {**ids, "status": status, "reason": reason, "eval": config["eval"], **facts})


def remove_failures(folder: TrialFolder, eval_id: str) -> None:
    """Remove results that are not complete, so that a later result.json belongs to the next attempt."""
    for path in (folder.result, folder.evaluation(eval_id).result):
        if (read_json(path) or {}).get("status") != "complete":
            path.unlink(missing_ok=True)
            crash_point("failure forgotten")


def read_trial_result(folder: TrialFolder) -> TrialResult:
    """How the training of a trial ended. Every field is unknown until then."""
    return TrialResult.from_json(read_json(folder.result))


def read_evaluation_result(folder: EvalFolder) -> EvaluationResult:
    """How an evaluation ended. Every field is unknown until then."""
    return EvaluationResult.from_json(read_json(folder.result))


def is_trained(folder: TrialFolder) -> bool:
    """Whether the training is complete, so that only evaluations are left."""
    return read_trial_result(folder).status == "complete"


def load_record(runs: Path, trial_id: str, eval_id: str, label: str = "") -> TrialRecord:
    """One trial of a sweep from its files. Values of an absent or unreadable JSON file are unknown; nothing raises."""
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
    """The result that tells how a trial with this evaluation ended. Its status is None until then."""
    folder = trial_folder(runs, trial_id)
    training = read_trial_result(folder)
    return read_evaluation_result(folder.evaluation(eval_id)) if training.status == "complete" else training


def has_final_outcome(runs: Path, trial_id: str, eval_id: str) -> bool:
    """Whether this trial with this evaluation needs no further work."""
    return read_outcome(runs, trial_id, eval_id).status in FINAL_STATUSES
