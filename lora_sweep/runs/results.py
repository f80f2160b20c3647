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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sweep.runs.crash_points import crash_point
from lora_sweep.runs.files import TrialFolder, read_json, read_jsonl, trial_folder, write_json

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


def adapter_of(training: dict[str, Any]) -> str | None:
    """What names the adapter that a training's result is of: a hash of its files'; None for a baseline."""
    files = {name: digest for name, digest in training.get("files", {}).items() if name.startswith("adapter/")}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest() if files else None


@dataclass(frozen=True)
class TrialResult:
    """A trial with one evaluation, as its files say. Numbers are None where they are unknown.

    Attributes:
        kind: ``trial`` or ``baseline``.
        status: one of STATUSES, or None while there is no outcome; ``reason`` says why in words.
        bits: of the base while training (a baseline: while generating): 4, 8, 16 or 32.
        training: the content of the trial's result.json, {} before it exists.
        evaluation: the content of the evaluation's result.json, {} before it exists.
        scores: ``{"prompts": [{"prompt_id", <metric>: number}], "means": {...}, "references": {...}}``.
        generations: rows of generations.jsonl.
        losses: rows of losses.jsonl.
    """

    trial_id: str
    eval_id: str
    kind: str
    label: str
    status: str | None
    reason: str | None
    config: dict[str, Any]
    training: dict[str, Any]
    evaluation: dict[str, Any]
    scores: dict[str, Any]
    generations: list[dict[str, Any]]
    losses: list[dict[str, Any]]

    @property
    def bits(self) -> int | None:
        return self.training.get("bits")

    def metric(self, name: str) -> float | None:
        """The mean of a metric over the prompts that have it; None when there is none."""
        value = self.scores.get("means", {}).get(name)
        return None if value is None else float(value)


def write_failure(
    runs: Path, ids: dict[str, str], config: dict[str, Any], facts: dict[str, Any], status: str, reason: str
) -> None:
    """Record how a trial ended other than complete: as its evaluation's outcome when it is trained, else its own.

    Args:
        ids: trial_id, eval_id and kind.
        config, facts: what planning knows of the trial, for a report that has nothing else.
    """
    folder = trial_folder(runs, ids["trial_id"])
    trained = (read_json(folder.result) or {}).get("status") == "complete"
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


def load_result(runs: Path, trial_id: str, eval_id: str, label: str = "") -> TrialResult:
    """One trial of a sweep from its files. Never raises for files that are absent: their values are empty."""
    folder = trial_folder(runs, trial_id)
    evaluation_folder = folder.evaluation(eval_id)
    training = read_json(folder.result) or {}
    evaluation = read_json(evaluation_folder.result) or {}
    outcome = evaluation if training.get("status") == "complete" else training
    kept = read_json(folder.config) or {}
    config = kept.get("config", {})
    if evaluation.get("eval") and isinstance(config, dict):  # an adapter outlives the evaluation it was trained with
        config = {**config, "eval": evaluation["eval"]}
    return TrialResult(
        trial_id=trial_id,
        eval_id=eval_id,
        kind=kept.get("kind", "trial"),
        label=label,
        status=outcome.get("status"),
        reason=outcome.get("reason"),
        config=config,
        training=training,
        evaluation=evaluation,
        scores=read_json(evaluation_folder.scores) or {} if evaluation else {},
        generations=read_jsonl(evaluation_folder.generations) if evaluation else [],
        losses=read_jsonl(folder.losses),
    )


def read_outcome(runs: Path, trial_id: str, eval_id: str) -> dict[str, Any]:
    """The result.json that says how a trial with this evaluation ended; {} while none does."""
    folder = trial_folder(runs, trial_id)
    training = read_json(folder.result) or {}
    if training.get("status") != "complete":
        return training
    return read_json(folder.evaluation(eval_id).result) or {}


def is_settled(runs: Path, trial_id: str, eval_id: str) -> bool:
    """Whether this trial with this evaluation needs no further work."""
    return read_outcome(runs, trial_id, eval_id).get("status") in SETTLED
