"""Hydra's and OmegaConf's errors as one sentence: where, what, what is allowed, and the nearest right spelling.

Works on the messages of hydra-core 1.3 and 1.4 and omegaconf 2.3; a message it does not know keeps its first line.
"""

import dataclasses
import re
import typing
from collections.abc import Callable
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from lora_sweep.config import schema
from lora_sweep.config.schema import Config
from lora_sweep.errors import Refused, nearest

TYPE_NAMES = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}


def as_refused(error: BaseException) -> Refused | None:
    """What composition has against the command; None for an error of another kind.

    Takes an error's own message and those of its causes, outermost first.
    """
    mark = getattr(error, "problem_mark", None)  # PyYAML's: the file and the line
    if mark is not None:
        return Refused(f"{mark.name}, line {mark.line + 1}", f"is broken YAML ({getattr(error, 'problem', None)})")
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = "\n".join(str(link) for link in chain)
    if not isinstance(error, HydraException | OmegaConfBaseException) and not re.search(PLAIN_ERRORS, text):
        return None
    for pattern, sentence in PATTERNS:
        found = re.search(pattern, text)
        if found:
            return sentence(found, text, error)
    named = next(
        (str(link) for link in chain if "full_key: " in str(link) and isinstance(link, OmegaConfBaseException)), ""
    )
    place = f"{_in_file(text)}{_full_key(named)}" if named else ""
    return Refused(place, (named or str(error)).strip().splitlines()[0])


def keys_below(path: str) -> list[str]:
    """The keys of the schema at a dotted path; empty where any key may stand."""
    node: Any = Config
    for name in [part for part in path.split(".") if part]:
        fields = (
            {field.name: field.type for field in dataclasses.fields(node)} if dataclasses.is_dataclass(node) else {}
        )
        hint = fields.get(name)
        arguments = [a for a in typing.get_args(hint) if dataclasses.is_dataclass(a)]
        node = arguments[0] if arguments else hint
    return keys_of(node)


def keys_of(node: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []


def key_elsewhere(last: str) -> str | None:
    """The key of another group whose last part is spelt like ``last``: ``lora.r`` for ``r``."""
    paths = {key: f"{group}.{key}" for group in keys_below("") for key in reversed(keys_below(group))}
    near = nearest(last, paths) if len(last) > 3 else last  # short words are like too many others
    return paths.get(near) if near else None


def _in_file(text: str) -> str:
    """``lora/mine.yaml: `` where the mistake is in a group's file, else nothing."""
    where = re.search(r"In '([^']+)'", text)
    return f"{where[1]}.yaml: " if where else ""


def _full_key(text: str) -> str:
    key = re.search(r"full_key: (\S+)", text)
    return key[1] if key else "a key"


def _unknown_key(found: re.Match[str], text: str, error: BaseException) -> Refused:
    path = found["path"]
    parent, _, last = path.rpartition(".")
    if parent == "train.sft":
        return Refused(path, f"is a new key: write it with a plus in front, +{path}=...")
    owner = re.search(r"object_type=(\w+)", text)
    allowed = keys_of(getattr(schema, owner[1], None)) if owner else []
    allowed = allowed or keys_below(parent)
    what = "is no known key"
    other = key_elsewhere(last) if allowed and not nearest(last, allowed) else None
    return Refused(_in_file(text) + path, f"{what}; did you mean {other!r}?" if other else what, allowed, last)


def _unknown_option(found: re.Match[str], text: str, error: BaseException) -> Refused:
    group, _, option = found["path"].rpartition("/")
    listed = re.search(r"Available options in '[^']+':\n((?:\t\S+\n?)+)", text)
    options = listed[1].split() if listed else []
    return Refused(f"{group}={option}" if group else option, f"is no file of conf/{group}", options, option)


def _wrong_type(found: re.Match[str], text: str, error: BaseException) -> Refused:
    wanted = TYPE_NAMES.get(found["type"], found["type"])
    return Refused(f"{_in_file(text)}{_full_key(text)} = {found['value']}", f"must be {wanted}")


def _wrong_shape(found: re.Match[str], text: str, error: BaseException) -> Refused:
    what = f"{found['value']!r} stands where a mapping with keys must be"
    return Refused((_in_file(text) or f"{_full_key(text)}: ")[:-2], what, keys_of(getattr(schema, found["type"], None)))


def _not_a_list(found: re.Match[str], text: str, error: BaseException) -> Refused:
    return Refused(_in_file(text) + _full_key(text), "must be a list, as in [a,b]")


def _null(found: re.Match[str], text: str, error: BaseException) -> Refused:
    return Refused(f"{_in_file(text)}{_full_key(text)} = null", "must have a value")


def _deletion(found: re.Match[str], text: str, error: BaseException) -> Refused:
    return Refused(f"~{found['path']}", "cannot be deleted: every trial has this key")


def _below_null(found: re.Match[str], text: str, error: BaseException) -> Refused:
    return Refused("", "a key below one that is null cannot be set alone; give the whole, as in 'model.wheel={...}'")


def _chosen_twice(found: re.Match[str], text: str, error: BaseException) -> Refused:
    what = "chooses its group a second time: leave out the plus, or write override in a list of defaults"
    return Refused(f"{found['group']}={found['option']}", what)


def _unreadable(found: re.Match[str], text: str, error: BaseException) -> Refused:
    override = getattr(error, "override", None)
    detail = found[0].splitlines()[0]
    return Refused(
        f"{override}" if override else "the command", f"cannot be read as KEY=VALUE ({detail}); quote it for the shell"
    )


def _group_as_value(found: re.Match[str], text: str, error: BaseException) -> Refused:
    return Refused("", "a group takes a file's name, as in lora=default; a value goes to its key, as in lora.r=8")


def _sweeper_key(found: re.Match[str], text: str, error: BaseException) -> Refused:
    return Refused(f"hydra.sweeper.{found['key']}", "is no known key", ("params", "rows"), found["key"])


Sentence = Callable[[re.Match[str], str, BaseException], Refused]
PLAIN_ERRORS = r"Config group override must be a string or a list|Unexpected type for root"  # not of Hydra's own types
PATTERNS: list[tuple[str, Sentence]] = [
    (r"Could not find '(?P<path>[^']+)'", _unknown_option),
    (r"Value '(?P<value>.*)' (?:of type '[^']*' could not be converted to|is not a valid) (?P<type>\w+)", _wrong_type),
    (r"Key '[^']+' (?:is )?not in[^\n]*\n\s*full_key: (?P<path>\S+)", _unknown_key),
    (r"Could not (?:override|append to config) '(?P<path>[^'@]+)", _unknown_key),
    (r"\w+ is not a subclass of (?P<type>\w+)\. value: (?P<value>.*)", _wrong_shape),
    (r"Invalid value assigned: \w+ is not a ListConfig", _not_a_list),
    (r"field '[^']+' is not Optional|Incompatible value 'None' for field", _null),
    (r"does not support deletion\s+full_key: (?P<path>\S+)", _deletion),
    (
        r"Multiple values for (?P<group>[^ ]+)\. To override a value use 'override [^:]+: (?P<option>[^']+)'",
        _chosen_twice,
    ),
    (
        r"(?:no viable alternative|mismatched input|extraneous input|token recognition error|missing EQUAL)[^\n]*",
        _unreadable,
    ),
    (r"Config group override must be a string or a list", _group_as_value),
    (r"Unexpected type for root", _below_null),
    (r"GridSweeper.* got an unexpected keyword argument '(?P<key>\w+)'", _sweeper_key),
]
