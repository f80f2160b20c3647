"""Checkpoints, from which a killed training resumes. This module knows their files and hashes, not their content.

    <checkpoints>/checkpoint-<step>/
      ...              the files of the trainer
      progress.json    our own: the losses so far, tokens, seconds
      manifest.json    written last: the step, and the sha256 of every other file

A folder is a checkpoint only if it has a manifest and every file has the hash that the manifest gives. A kill, a full
disk or a power failure can damage the newest folder, and a training that resumed from it would end in a different
adapter without any error.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sweep.runs import files
from lora_sweep.runs.files import JsonObject

MANIFEST_VERSION = 1  # of the files in a checkpoint; checkpoints of another version are ignored
MAX_CHECKPOINTS = 2  # sealed checkpoints to keep: one more than needed, in case the newest cannot be read
MANIFEST = "manifest.json"
PROGRESS = "progress.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with undamaged files; ``progress`` is the argument of :func:`seal_checkpoint`."""

    folder: Path
    step: int
    progress: dict[str, Any]


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """The folder to which transformers' Trainer saves ``step`` when ``checkpoints`` is its output_dir."""
    return checkpoints / f"checkpoint-{step}"


def seal_checkpoint(checkpoints: Path, step: int, progress: JsonObject) -> None:
    """Complete the checkpoint that the trainer saved at ``step``, and remove the ones that it replaces."""
    folder = checkpoint_folder(checkpoints, step)
    files.write_json(folder / PROGRESS, progress)
    files.write_json(folder / MANIFEST, make_manifest(folder, step))
    prune_checkpoints(checkpoints, step)


def find_last_valid(checkpoints: Path) -> Checkpoint | None:
    """The undamaged checkpoint of the highest step; None when there is none."""
    for step, folder in sorted(list_checkpoints(checkpoints).items(), reverse=True):
        try:
            progress = files.read_json(folder / PROGRESS)
            is_whole = files.read_json(folder / MANIFEST) == make_manifest(folder, step)
        except (OSError, RecursionError):  # it cannot be read
            continue
        if is_whole and progress is not None:
            return Checkpoint(folder, step, progress)
    return None


def prune_checkpoints(checkpoints: Path, newest: int) -> None:
    """Remove all checkpoints except the last MAX_CHECKPOINTS sealed ones up to step ``newest``.

    Checkpoints above ``newest`` are removed too: the present attempt found them damaged, or it would have begun there.
    """
    folders = list_checkpoints(checkpoints)
    sealed = [step for step, folder in folders.items() if step <= newest and (folder / MANIFEST).is_file()]
    for step in folders.keys() - set(sorted(sealed)[-MAX_CHECKPOINTS:]):
        shutil.rmtree(folders[step], ignore_errors=True)


def make_manifest(folder: Path, step: int) -> JsonObject:
    """The manifest that fits the present files of a checkpoint."""
    names = [path.name for path in folder.iterdir() if path.name != MANIFEST]
    return {"version": MANIFEST_VERSION, "step": step, "files": files.hash_files(folder, names)}


def list_checkpoints(checkpoints: Path) -> dict[int, Path]:
    """The folders that the trainer wrote below ``checkpoints``, damaged ones included, by their steps."""
    name = re.compile("checkpoint-([1-9][0-9]{0,17})")
    return {int(match[1]): path for path in checkpoints.glob("checkpoint-*") if (match := name.fullmatch(path.name))}
