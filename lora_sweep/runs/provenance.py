"""Where and with what a result was made: versions, code, commit, device, dtypes, times. Imports no torch."""

import ast
import datetime
import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "lora-sweep")
# The rooms whose code makes a trial's numbers. What a trial's id stands for already (config, facts) is left out, and so
# is what only carries files and words (runs, tracking, messages, the worker's loop).
CODE_ROOMS = ("data", "model", "multi_lora", "training", "generation", "scoring", "worker")
NOT_CODE = (
    "model/inspect",
    "model/data_facts",
    "model/model_facts",
    "worker/loop",
    "data/wheels",
    "scoring/intervals",
    "scoring/metrics",
)


def read_sources() -> dict[str, str]:
    """The text of each module that makes numbers, by its room and name."""
    package = Path(__file__).parents[1]
    paths = [path for room in CODE_ROOMS for path in sorted((package / room).glob("*.py"))]
    names = {path: path.relative_to(package).with_suffix("").as_posix() for path in paths}
    return {name: path.read_text(encoding="utf-8") for path, name in names.items() if name not in NOT_CODE}


# Read at once, because a file can be edited while a worker that has imported it trains.
SOURCES = read_sources()


def provenance(device: str, dtype: str, started: str) -> dict[str, Any]:
    """Where and with what a result was made.

    Args:
        device, dtype: the device's name, and torch's name of the type that it computes in.
    """
    return {
        **made_with(),
        "device": device,
        "dtype": dtype.removeprefix("torch."),
        "adapter_dtype": "float32",
        "platform": platform.platform(),
        "started": started,
        "finished": now(),
    }


def made_with() -> dict[str, Any]:
    """The part of a result's provenance that any process knows, without a device: versions, code, commit."""
    commit, dirty = git_state()
    return {**versions_and_code(), "git_commit": commit, "git_dirty": dirty}


def versions_and_code() -> dict[str, Any]:
    """What makes a trial's numbers; asks no other process."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {"versions": versions, "code": code_fingerprint()}


@functools.cache
def code_fingerprint() -> str:
    """Hex digits that change when the code that makes a trial's numbers does."""
    return fingerprint_of(SOURCES)


def fingerprint_of(sources: Mapping[str, str]) -> str:
    """Hex digits of the statements in ``sources``: comments, docstrings and layout do not count."""
    plain = {name: _statements(source) for name, source in sources.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _statements(source: str) -> str:
    """Hex digits of a source's statements."""
    return hashlib.sha256(json.dumps(_plain(ast.parse(source))).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A syntax tree as lists without docstrings and empty fields, of which each Python has its own."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = dict(ast.iter_fields(value))
    if isinstance(value, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        fields["body"] = value.body[ast.get_docstring(value, clean=False) is not None :]
    return [type(value).__name__, *([name, _plain(item)] for name, item in fields.items() if item not in (None, []))]


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # ours, run from a checkout that is not installed
        return "not installed"


def git_state() -> tuple[str | None, bool | None]:
    """The commit of this code and whether files differ from it; None for both outside a git checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:
        return None, None
    return commit, None if changes is None else bool(changes)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
