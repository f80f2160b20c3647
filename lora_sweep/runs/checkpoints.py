"""A training's checkpoints: where a killed training goes on from. Knows files and checksums, not what is in them.

    <checkpoints>/checkpoint-<step>/
      ...              what the trainer saved
      progress.json    what is ours: the losses so far, tokens, seconds
      manifest.json    written last: the step, and the sha256 of every file above

Only a manifest makes a checkpoint, and only while every file is what it says: a kill, a full disk or a lost power line
can leave the newest one torn, and a training that went on from it would end in another adapter without a word.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sweep.runs import files

VERSION = 1  # of the folder's form: one of another form is passed over
KEPT = 2  # sealed checkpoints that stay: one more than needed, should the newest turn out unreadable
MANIFEST = "manifest.json"
PROGRESS = "progress.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every file is as it was sealed; ``progress`` is what :func:`seal` was given."""

    folder: Path
    step: int
    progress: dict[str, Any]


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where transformers' Trainer saves ``step`` when ``checkpoints`` is its output_dir."""
    return checkpoints / f"checkpoint-{step}"


def seal(checkpoints: Path, step: int, progress: dict[str, Any]) -> None:
    """Make what the trainer saved at ``step`` a checkpoint, and remove those that it replaces."""
    folder = folder_of(checkpoints, step)
    files.write_json(folder / PROGRESS, progress)
    files.write_json(folder / MANIFEST, manifest(folder, step))
    prune(checkpoints, step)


def last_valid(checkpoints: Path) -> Checkpoint | None:
    """The checkpoint of the highest step that is whole; None when there is none."""
    for step, folder in sorted(numbered(checkpoints).items(), reverse=True):
        try:
            progress = files.read_json(folder / PROGRESS)
            whole = files.read_json(folder / MANIFEST) == manifest(folder, step)
        except (OSError, RecursionError):  # what cannot be read cannot be gone on from
            continue
        if whole and progress is not None:
            return Checkpoint(folder, step, progress)
    return None


def prune(checkpoints: Path, newest: int) -> None:
    """Remove all but the KEPT last sealed checkpoints up to the step ``newest``.

    Those above it go too: an attempt that went on from below them has found them torn.
    """
    found = numbered(checkpoints)
    sealed = [step for step, folder in found.items() if step <= newest and (folder / MANIFEST).is_file()]
    for step in found.keys() - set(sorted(sealed)[-KEPT:]):
        shutil.rmtree(found[step], ignore_errors=True)


def manifest(folder: Path, step: int) -> dict[str, Any]:
    """What a checkpoint's manifest must say, from its files as they are."""
    names = [path.name for path in folder.iterdir() if path.name != MANIFEST]
    return {"version": VERSION, "step": step, "files": files.file_hashes(folder, names)}


def numbered(checkpoints: Path) -> dict[int, Path]:
    """The folders of ``checkpoints`` that the trainer wrote, whole or not, by their steps."""
    named = re.compile("checkpoint-([1-9][0-9]{0,17})")
    return {int(found[1]): path for path in checkpoints.glob("checkpoint-*") if (found := named.fullmatch(path.name))}
