"""The README is true: its commands exist, its layout is the repository's, its links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lora_sweep.config.schema import TEMPLATES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]


def test_it_has_commands() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python -m ")])
def test_commands_plan(command: str, tmp_path: Path, tiny_folder: object) -> None:
    """Each sweep plans, on tiny stand-ins for the model and the data; hub models plan with nothing at hand."""
    _, _, module, *arguments = shlex.split(command)
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(f'{{"title": "lamp {i}", "kind": "lamp", "text": "A lamp."}}' for i in range(80))
    )
    changed = [f"model.path={tiny_folder('llama')}" if a.startswith("model.path") else a for a in arguments]  # type: ignore[operator]
    if not any(a.startswith(("model", "experiment")) for a in changed):
        changed += ["model=tiny", "data=tiny"]
    done = subprocess.run(
        [sys.executable, "-m", "sweep.plan", *changed], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "trainable" in done.stdout


def test_the_layout_is_the_repository() -> None:
    listed = re.search(r"## Layout\n\n```\n(.*?)```", README, re.DOTALL)
    assert listed
    folders = {line.split("/")[0] for line in listed[1].splitlines()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert folders == {path.split("/")[0] for path in tracked if "/" in path and not path.startswith(".")}


def test_the_rooms_of_contributing_are_the_files() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = text[text.index("## Rooms") : text.index("## What must hold")]
    listed = set(re.findall(r"^  (\w+\.py)\b", rooms, re.MULTILINE))
    files = {path.name for room in ("lora_sweep", "sweep") for path in (ROOT / room).glob("*.py")}
    assert listed == files - {"__init__.py"}


def test_the_values_it_names_are_there() -> None:
    for group in ("model", "data", "quant", "experiment", "tracking"):
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            assert f"`{file.stem}`" in README, f"conf/{group}/{file.name} is not in the README"
    for template in TEMPLATES:
        assert f"`{template}`" in README or f"={template}`" in README


def test_no_path_of_a_machine_and_no_leftover_is_in_it() -> None:
    assert not re.search(r"/(home|root|tmp|work)/", README)
    assert "_TABLE" not in README
    assert os.linesep == "\n" or "\r" not in README
