"""Scorers that the user wrote, by their names."""

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
from lora_sweep.errors import Refused, describe_error

ENTRY_POINT_GROUP = "lora_sweep.scorers"  # the group of entry points through which a package offers scorers


@functools.cache
def list_installed_scorers() -> dict[str, EntryPoint]:
    """The scorers that installed packages offer, by name. Read once in a process."""
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}


def find_entry_point(name: str) -> EntryPoint | None:
    """The entry point for ``module:function``, or for the name of an installed scorer; None for another name."""
    if re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name):
        return EntryPoint(name, name, ENTRY_POINT_GROUP)
    return list_installed_scorers().get(name)


def load_function(name: str) -> Callable[..., Any]:
    """Import the scorer ``name``.

    Raises:
        Refused: no scorer has this name, its import fails, or it cannot be called.
    """
    point = find_entry_point(name)
    if point is None:
        raise Refused(f"eval.scorer = {name}", "is not installed")
    try:
        function = point.load()
    except (Exception, SystemExit) as error:
        raise Refused(f"eval.scorer = {name}", f"cannot be loaded ({describe_error(error)})") from error
    if not callable(function):
        raise Refused(f"eval.scorer = {name}", f"is no function but a {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def fingerprint_function(name: str) -> str | None:
    """A text that changes with the scorer ``name``: its module and function, and a hash of the module's present source.

    None for a built-in scorer and for one that does not exist. Modules that it imports are not part of the hash.
    """
    point = None if name in BUILT_IN_SCORERS else find_entry_point(name)
    if point is None:
        return None
    source = find_source_file(point.value.partition(":")[0].strip())
    try:
        content = source.read_bytes() if source else b""
    except OSError:
        content = b""
    return f"{point.value}@{hashlib.sha256(content).hexdigest()[:16]}"


def find_source_file(module: str) -> Path | None:
    """The file that an import of the dotted ``module`` would read. Runs no code of it or of its packages."""
    path: Sequence[str] | None = None
    name, origin = "", None
    for part in module.split("."):
        if name and path is None:
            return None  # the name before the dot is not a package
        name = f"{name}.{part}" if name else part
        specs = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None:
            return None
        path, origin = spec.submodule_search_locations, spec.origin if spec.has_location else None
    return Path(origin) if origin else None
