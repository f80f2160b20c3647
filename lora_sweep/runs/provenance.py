"""How a result was made: versions, code, commit, device, dtypes, times. Imports no torch."""

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

from lora_sweep.runs.files import JsonObject

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "lora-sweep")
# The rooms that compute a trial's numbers. Left out are config and facts, because their results are part of the trial's
# id, and everything that only moves files and words (runs, tracking, messages, the worker's loop).
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
    """The source of each module that computes numbers, by its room and name."""
    package = Path(__file__).parents[1]
    paths = [path for room in CODE_ROOMS for path in sorted((package / room).glob("*.py"))]
    names = {path: path.relative_to(package).with_suffix("").as_posix() for path in paths}
    return {name: path.read_text(encoding="utf-8") for path, name in names.items() if name not in NOT_CODE}


# Read at import, because a file can be edited while a worker that has imported it trains.
SOURCES = read_sources()


def collect_provenance(device: str, dtype: str, started: str) -> JsonObject:
    """The ``provenance`` of a result.json.

    Args:
        device: the device's name.
        dtype: torch's name of the type that it computes in.
        started: the ISO time at which this stage of the trial began.
    """
    return {
        **collect_code_state(),
        "device": device,
        "dtype": dtype.removeprefix("torch."),
        "adapter_dtype": "float32",
        "platform": platform.platform(),
        "started": started,
        "finished": utc_now(),
    }


def collect_code_state() -> JsonObject:
    """The part of the provenance that does not depend on a device: versions, code, commit."""
    commit, dirty = read_git_state()
    return {**collect_versions(), "git_commit": commit, "git_dirty": dirty}


def collect_versions() -> JsonObject:
    """The versions of the libraries and of our code. Starts no other process."""
    versions = {"python": platform.python_version(), **{name: find_version(name) for name in PACKAGES}}
    return {"versions": versions, "code": code_fingerprint()}


@functools.cache
def code_fingerprint() -> str:
    """Hex digits that change when the code that computes a trial's numbers changes."""
    return fingerprint_sources(SOURCES)


def fingerprint_sources(sources: Mapping[str, str]) -> str:
    """A hash of the statements in ``sources``, without comments, docstrings and layout."""
    hashes = {name: hash_statements(source) for name, source in sources.items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def hash_statements(source: str) -> str:
    """A hash of the statements of one module."""
    return hashlib.sha256(json.dumps(strip_tree(ast.parse(source))).encode()).hexdigest()


def strip_tree(value: Any) -> Any:
    """A syntax tree as lists, without docstrings, and without empty fields: those differ between versions of Python."""
    if isinstance(value, list):
        return [strip_tree(item) for item in value]
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = dict(ast.iter_fields(value))
    if isinstance(value, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        fields["body"] = value.body[ast.get_docstring(value, clean=False) is not None :]
    parts = [[name, strip_tree(item)] for name, item in fields.items() if item not in (None, [])]
    return [type(value).__name__, *parts]


def find_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # our own package, run from a checkout
        return "not installed"


def read_git_state() -> tuple[str | None, bool | None]:
    """The commit of this code, and whether any file differs from it; None for both outside a git checkout."""
    package = Path(__file__).parent

    def run_git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit, changes = run_git("rev-parse", "HEAD"), run_git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:
        return None, None
    return commit, None if changes is None else bool(changes)


def utc_now() -> str:
    """The present time in UTC, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
