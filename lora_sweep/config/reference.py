"""`python -m lora_sweep.config.reference`: every key of the configuration as a Markdown page, docs/configuration.md.

Keys, types and meanings are read from the source of the schema, where each field has a comment; default values and the
files of a group from the YAML files in ``conf/``.
"""

import ast
import dataclasses
import io
import json
import tokenize
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lora_sweep.config import schema
from lora_sweep.config.conf_folder import find_conf_folder

INTRODUCTION = """# Every key of the configuration

Made by `make docs` from `lora_sweep/config/schema.py` and the files in `conf/`. Do not edit it by hand.

Type a key as `KEY=VALUE` behind `python -m lora_sweep.train`. With `-m`, commas separate the values to sweep over:
`-m lora.r=8,16`. A group is chosen by the name of its file: `model=tiny` takes `conf/model/tiny.yaml`. Your own files
in `./conf/GROUP/NAME.yaml` of the working folder are found in the same way. The column "default" is what a command
without any key uses.
"""


def read_field_comments(source: str) -> dict[str, dict[str, str]]:
    """The comment of each field by class and name: those on its own lines, else the lines right above it."""
    lines = {
        token.start[0]: (token.string.lstrip("# ").strip(), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    comments: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        for item in node.body if isinstance(node, ast.ClassDef) else ():
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            rows = list(range(item.lineno, (item.end_lineno or item.lineno) + 1))
            first = item.lineno
            while first - 1 in lines and lines[first - 1][1]:
                first -= 1
            rows = [*range(first, item.lineno), *rows]
            words = [lines[row][0] for row in rows if row in lines]
            comments.setdefault(str(getattr(node, "name", "")), {})[item.target.id] = " ".join(words)
    return comments


def write_type(annotation: Any) -> str:
    """A field's type as a reader of YAML knows it: ``whole number or null``."""
    text = str(getattr(annotation, "__name__", annotation) if "|" not in str(annotation) else annotation)
    text = str(annotation) if "[" in str(annotation) else text
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "None": "null"}
    words["Any"] = "text, number or list"
    names = []
    for part in (part.strip() for part in text.split("|")):
        if part.startswith("list"):
            names.append("list")
        else:  # a dict, or a dataclass that may be null
            names.append(words.get(part.rpartition(".")[2], "map"))
    return " or ".join(names)


def read_defaults(conf: Path) -> dict[str, Any]:
    """The values of a command without any key, as a tree."""
    base: Any = OmegaConf.to_container(OmegaConf.load(conf / "base.yaml"))
    entries = [entry for entry in base.pop("defaults") if isinstance(entry, dict)]
    chosen = {group: name for entry in entries for group, name in entry.items() if name and " " not in group}
    base.pop("hydra", None)
    for group, name in chosen.items():
        base[group] = OmegaConf.to_container(OmegaConf.load(conf / group / f"{name}.yaml"))
    return {str(key): value for key, value in base.items()}


def list_keys(kind: type, values: dict[str, Any], prefix: str = "") -> list[tuple[str, str, Any, str]]:
    """Each key below ``prefix``: its dotted name, type, default and meaning."""
    comments = read_field_comments(Path(schema.__file__).read_text(encoding="utf-8"))
    rows: list[tuple[str, str, Any, str]] = []
    for item in dataclasses.fields(kind):
        default = None if item.default is dataclasses.MISSING else item.default
        value = values.get(item.name, default) if isinstance(values, dict) else default
        if value is None and item.default_factory is not dataclasses.MISSING:
            value = item.default_factory()
        nested = item.type if dataclasses.is_dataclass(item.type) else None
        if nested is not None:
            assert isinstance(nested, type)
            rows += list_keys(nested, value if isinstance(value, dict) else {}, f"{prefix}{item.name}.")
        else:
            meaning = comments.get(kind.__name__, {}).get(item.name, "")
            rows.append((prefix + item.name, write_type(item.type), value, meaning))
    return rows


def describe_file(group: str, path: Path) -> str:
    """A list entry: the words that choose a YAML file, and the first comment of the file, which says what it is for."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = next((line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line), "")
    return f"- `{group}={path.stem}`: {comment.partition(': ')[2] or comment}"


def escape_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def write_value(value: Any) -> str:
    if isinstance(value, dict) and "requirement" in value:
        return f"a file of `{value['requirement']}`"
    return "" if value == "???" else f"`{json.dumps(value, ensure_ascii=False)}`"


def write_reference(conf: Path) -> str:
    """The whole page."""
    values = read_defaults(conf)
    parts = [INTRODUCTION]
    groups = {item.name: item.type for item in dataclasses.fields(schema.Config) if dataclasses.is_dataclass(item.type)}
    for group, kind in groups.items():
        assert isinstance(kind, type)
        parts.append(f"## {group}\n\n{(kind.__doc__ or '').strip()}\n")
        files = sorted((conf / group).glob("*.yaml"))
        if len(files) > 1:
            lines = [describe_file(group, path) for path in files]
            parts.append("\n".join(lines) + "\n")
        parts.append(write_table(list_keys(kind, values.get(group, {}), f"{group}.")))
    rest = [row for row in list_keys(schema.Config, values) if "." not in row[0]]
    parts.append("## Keys of the whole sweep\n\n" + write_table(rest))
    experiments = sorted((conf / "experiment").glob("*.yaml"))
    lines = [describe_file("experiment", path) for path in experiments]
    parts.append("## experiment\n\nReady-made sweeps. Keys that you type win over those of the file.\n")
    return "\n".join([*parts, *lines]) + "\n"


def write_table(rows: list[tuple[str, str, Any, str]]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, kind, value, meaning in rows:
        lines.append(f"| `{key}` | {escape_cell(kind)} | {write_value(value)} | {escape_cell(meaning)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(write_reference(find_conf_folder()), end="")
