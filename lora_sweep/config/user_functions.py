"""Functions of the user's own, by their names."""

import functools
import hashlib
import importlib.metadata
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from lora_sweep.config.schema import BUILT_IN_SCORERS
from lora_sweep.errors import Refused

GROUP = "lora_sweep.scorers"  # of entry points: functions of one's own, by name


@functools.cache
def installed() -> dict[str, EntryPoint]:
    """The scorers that installed packages offer, by name. They stay while this process does."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def entry_point(name: str) -> EntryPoint | None:
    """What ``name`` stands for: the object reference ``module:function``, or an installed entry point."""
    if re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name):
        return EntryPoint(name, name, GROUP)
    return installed().get(name)


def load_function(name: str) -> Callable[..., Any]:
    """Import what ``name`` stands for.

    Raises:
        Refused: there is no such thing, its import fails, or it cannot be called.
    """
    point = entry_point(name)
    if point is None:
        raise Refused(f"eval.scorer = {name}", "is not installed")
    try:
        function = point.load()
    except (Exception, SystemExit) as error:
        raise Refused(f"eval.scorer = {name}", f"cannot be loaded ({in_words(error)})") from error
    if not callable(function):
        raise Refused(f"eval.scorer = {name}", f"is no function but a {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def function_fingerprint(name: str) -> str | None:
    """What names the function behind ``name``: where it is, and the sha256 of its module's source, read on the spot.

    None for a built-in scorer and for what is not there. What the module itself imports is not looked at.
    """
    point = None if name in BUILT_IN_SCORERS else entry_point(name)
    if point is None:
        return None
    source = source_file(point.value.partition(":")[0].strip())
    try:
        content = source.read_bytes() if source else b""
    except OSError:
        content = b""
    return f"{point.value}@{hashlib.sha256(content).hexdigest()[:16]}"


def source_file(module: str) -> Path | None:
    """The file that an import of the dotted ``module`` would read. Runs none of it, nor of its packages."""
    path: Sequence[str] | None = None
    name, origin = "", None
    for part in module.split("."):
        if name and path is None:
            return None  # what stands before the dot is no package
        name = f"{name}.{part}" if name else part
        specs = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None:
            return None
        path, origin = spec.submodule_search_locations, spec.origin if spec.has_location else None
    return Path(origin) if origin else None


def in_words(error: BaseException) -> str:
    """An error as its type and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:300]}" if said else type(error).__name__
