"""Errors of Hydra and OmegaConf in one sentence: where, problem, what is allowed, and the nearest correct spelling.

Knows the messages of hydra-core 1.3 and 1.4 and of omegaconf 2.3. Of any other message the first line is kept.
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
from lora_sweep.errors import Refused, find_nearest

TYPE_NAMES = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}


def explain_hydra_error(error: BaseException) -> Refused | None:
    """Why the command cannot be composed; None for an error of another kind.

    Looks at the message of the error and at those of its causes, outermost first.
    """
    mark = getattr(error, "problem_mark", None)  # PyYAML: the file and the line
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
    for pattern, make_refusal in PATTERNS:
        match = re.search(pattern, text)
        if match:
            return make_refusal(match, text, error)
    detailed = next(
        (str(link) for link in chain if "full_key: " in str(link) and isinstance(link, OmegaConfBaseException)), ""
    )
    where = f"{name_file(text)}{find_full_key(detailed)}" if detailed else ""
    return Refused(where, (detailed or str(error)).strip().splitlines()[0])


def list_keys_below(path: str) -> list[str]:
    """The keys of the schema below a dotted path; empty where any key is allowed."""
    node: Any = Config
    for name in [part for part in path.split(".") if part]:
        fields = (
            {field.name: field.type for field in dataclasses.fields(node)} if dataclasses.is_dataclass(node) else {}
        )
        hint = fields.get(name)
        arguments = [a for a in typing.get_args(hint) if dataclasses.is_dataclass(a)]
        node = arguments[0] if arguments else hint
    return list_keys(node)


def list_keys(node: Any) -> list[str]:
    """The keys of a class of the schema; empty for anything else."""
    return [field.name for field in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []


def find_key_elsewhere(last: str) -> str | None:
    """The key of another group with a last part spelt like ``last``: ``lora.r`` for ``r``."""
    paths = {key: f"{group}.{key}" for group in list_keys_below("") for key in reversed(list_keys_below(group))}
    near = find_nearest(last, paths) if len(last) > 3 else last  # short words resemble too many others
    return paths.get(near) if near else None


def name_file(text: str) -> str:
    """``lora/mine.yaml: `` where the mistake is in the file of a group, else empty."""
    where = re.search(r"In '([^']+)'", text)
    return f"{where[1]}.yaml: " if where else ""


def find_full_key(text: str) -> str:
    """The dotted key that OmegaConf's message names."""
    key = re.search(r"full_key: (\S+)", text)
    return key[1] if key else "a key"


def refuse_unknown_key(match: re.Match[str], text: str, error: BaseException) -> Refused:
    path = match["path"]
    parent, _, last = path.rpartition(".")
    if parent == "train.sft":
        return Refused(path, f"is a new key: write it with a plus in front, +{path}=...")
    owner = re.search(r"object_type=(\w+)", text)
    allowed = list_keys(getattr(schema, owner[1], None)) if owner else []
    allowed = allowed or list_keys_below(parent)
    problem = "is no known key"
    other = find_key_elsewhere(last) if allowed and not find_nearest(last, allowed) else None
    return Refused(name_file(text) + path, f"{problem}; did you mean {other!r}?" if other else problem, allowed, last)


def refuse_unknown_option(match: re.Match[str], text: str, error: BaseException) -> Refused:
    group, _, option = match["path"].rpartition("/")
    listed = re.search(r"Available options in '[^']+':\n((?:\t\S+\n?)+)", text)
    options = listed[1].split() if listed else []
    return Refused(f"{group}={option}" if group else option, f"is no file of conf/{group}", options, option)


def refuse_wrong_type(match: re.Match[str], text: str, error: BaseException) -> Refused:
    wanted = TYPE_NAMES.get(match["type"], match["type"])
    return Refused(f"{name_file(text)}{find_full_key(text)} = {match['value']}", f"must be {wanted}")


def refuse_wrong_shape(match: re.Match[str], text: str, error: BaseException) -> Refused:
    problem = f"{match['value']!r} stands where a mapping with keys must be"
    where = name_file(text) or f"{find_full_key(text)}: "
    return Refused(where.removesuffix(": "), problem, list_keys(getattr(schema, match["type"], None)))


def refuse_no_list(match: re.Match[str], text: str, error: BaseException) -> Refused:
    return Refused(name_file(text) + find_full_key(text), "must be a list, as in [a,b]")


def refuse_null(match: re.Match[str], text: str, error: BaseException) -> Refused:
    return Refused(f"{name_file(text)}{find_full_key(text)} = null", "must have a value")


def refuse_deletion(match: re.Match[str], text: str, error: BaseException) -> Refused:
    return Refused(f"~{match['path']}", "cannot be deleted: every trial has this key")


def refuse_below_null(match: re.Match[str], text: str, error: BaseException) -> Refused:
    return Refused("", "a key below one that is null cannot be set alone; give the whole, as in 'model.wheel={...}'")


def refuse_second_choice(match: re.Match[str], text: str, error: BaseException) -> Refused:
    problem = "chooses its group a second time: leave out the plus, or write override in a list of defaults"
    return Refused(f"{match['group']}={match['option']}", problem)


def refuse_unreadable(match: re.Match[str], text: str, error: BaseException) -> Refused:
    override = getattr(error, "override", None)
    problem = f"cannot be read as KEY=VALUE ({match[0].splitlines()[0]}); quote it for the shell"
    return Refused(f"{override}" if override else "the command", problem)


def refuse_value_for_group(match: re.Match[str], text: str, error: BaseException) -> Refused:
    return Refused("", "a group takes a file's name, as in lora=default; a value goes to its key, as in lora.r=8")


def refuse_sweeper_key(match: re.Match[str], text: str, error: BaseException) -> Refused:
    return Refused(f"hydra.sweeper.{match['key']}", "is no known key", ("params", "rows"), match["key"])


MakeRefusal = Callable[[re.Match[str], str, BaseException], Refused]
# Hydra raises these two with plain Python types.
PLAIN_ERRORS = r"Config group override must be a string or a list|Unexpected type for root"
PATTERNS: list[tuple[str, MakeRefusal]] = [
    (r"Could not find '(?P<path>[^']+)'", refuse_unknown_option),
    (
        r"Value '(?P<value>.*)' (?:of type '[^']*' could not be converted to|is not a valid) (?P<type>\w+)",
        refuse_wrong_type,
    ),
    (r"Key '[^']+' (?:is )?not in[^\n]*\n\s*full_key: (?P<path>\S+)", refuse_unknown_key),
    (r"Could not (?:override|append to config) '(?P<path>[^'@]+)", refuse_unknown_key),
    (r"\w+ is not a subclass of (?P<type>\w+)\. value: (?P<value>.*)", refuse_wrong_shape),
    (r"Invalid value assigned: \w+ is not a ListConfig", refuse_no_list),
    (r"field '[^']+' is not Optional|Incompatible value 'None' for field", refuse_null),
    (r"does not support deletion\s+full_key: (?P<path>\S+)", refuse_deletion),
    (
        r"Multiple values for (?P<group>[^ ]+)\. To override a value use 'override [^:]+: (?P<option>[^']+)'",
        refuse_second_choice,
    ),
    (
        r"(?:no viable alternative|mismatched input|extraneous input|token recognition error|missing EQUAL)[^\n]*",
        refuse_unreadable,
    ),
    (r"Config group override must be a string or a list", refuse_value_for_group),
    (r"Unexpected type for root", refuse_below_null),
    (r"GridSweeper.* got an unexpected keyword argument '(?P<key>\w+)'", refuse_sweeper_key),
]
