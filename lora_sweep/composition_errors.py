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

from lora_sweep.config import Config
from lora_sweep.errors import Refused

TYPE_NAMES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "a text"}


def as_refused(error: BaseException) -> Refused | None:
    """What composition has against the command; None for an error of another kind.

    Takes an error's own message and those of its causes, outermost first.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = "\n".join(str(link) for link in chain)
    is_group = re.search(r"Config group override must be a string or a list", text)
    if not isinstance(error, HydraException | OmegaConfBaseException) and not is_group:
        return None
    for pattern, sentence in PATTERNS:
        found = re.search(pattern, text)
        if found:
            return sentence(found, text, error)
    return Refused("", str(error).strip().splitlines()[0])


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
    return [field.name for field in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []


def _unknown_key(found: re.Match[str], text: str, error: BaseException) -> Refused:
    path = found["path"]
    parent, _, last = path.rpartition(".")
    if parent == "train.sft":
        return Refused(path, f"is a new key: write it with a plus in front, +{path}=...")
    where = re.search(r"In '([^']+)'", text)
    return Refused(f"conf/{where[1]}.yaml: {path}" if where else path, "is no known key", keys_below(parent), last)


def _unknown_option(found: re.Match[str], text: str, error: BaseException) -> Refused:
    group, _, option = found["path"].rpartition("/")
    listed = re.search(r"Available options in '[^']+':\n((?:\t\S+\n?)+)", text)
    options = listed[1].split() if listed else []
    return Refused(f"{group}={option}" if group else option, f"is no file of conf/{group}", options, option)


def _wrong_type(found: re.Match[str], text: str, error: BaseException) -> Refused:
    key = re.search(r"full_key: (\S+)", text)
    wanted = TYPE_NAMES.get(found["type"], found["type"])
    return Refused(f"{key[1] if key else 'a key'} = {found['value']}", f"must be {wanted}")


def _unreadable(found: re.Match[str], text: str, error: BaseException) -> Refused:
    override = getattr(error, "override", None)
    detail = found[0].splitlines()[0]
    return Refused(
        f"{override}" if override else "the command", f"cannot be read as KEY=VALUE ({detail}); quote it for the shell"
    )


def _group_as_value(found: re.Match[str], text: str, error: BaseException) -> Refused:
    return Refused("", "a group takes a file's name, as in lora=default; a value goes to its key, as in lora.r=8")


Sentence = Callable[[re.Match[str], str, BaseException], Refused]
PATTERNS: list[tuple[str, Sentence]] = [
    (r"Could not find '(?P<path>[^']+)'", _unknown_option),
    (r"Value '(?P<value>[^']*)' of type '[^']*' could not be converted to (?P<type>\w+)", _wrong_type),
    (r"Key '[^']+' (?:is )?not in[^\n]*\n\s*full_key: (?P<path>\S+)", _unknown_key),
    (r"Could not (?:override|append to config) '(?P<path>[^'@]+)", _unknown_key),
    (r"(?:no viable alternative|mismatched input|extraneous input|token recognition error)[^\n]*", _unreadable),
    (r"Config group override must be a string or a list", _group_as_value),
]
