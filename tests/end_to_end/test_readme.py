"""The README is true: its commands exist, its layout is the repository's, its links lead somewhere."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from support.commands import run_command

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]


def test_it_has_commands() -> None:
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if re.match(r"python -m (lora_sweep.train|sweep.plan) ", command)]
)
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
    planned = run_command("sweep.plan.__main__", *changed, folder=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "trainable" in planned.stdout


def test_the_rooms_of_contributing_are_the_folders() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = text[text.index("## The rooms") : text.index("## Words")]
    for package in ("lora_sweep", "sweep"):
        names = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or path.is_dir()}
        for name in names - {"__init__", "__main__", "__pycache__", "conf"}:
            assert re.search(rf"\b{name}\b", rooms), f"CONTRIBUTING.md does not name {package}/{name}"


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    for target in targets:
        assert ((ROOT / page).parent / target).exists(), f"{page} leads to {target}, which is not there"


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))],
)
def test_modules_that_a_page_names_exist(page: str) -> None:
    for name in re.findall(r"`([\w./]+/\w+\.py)`", (ROOT / page).read_text(encoding="utf-8")):
        folders = (ROOT, ROOT / "lora_sweep", ROOT / "sweep")
        assert any((folder / name).is_file() for folder in folders), f"{page} names {name}, which is not there"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_a_page_is_short(page: str) -> None:
    assert len((ROOT / page).read_text(encoding="utf-8").split()) <= 900


def test_the_picture_is_small() -> None:
    assert (ROOT / "docs/images/report.png").stat().st_size < 300_000


def test_no_path_of_a_machine_and_no_leftover_is_in_it() -> None:
    assert not re.search(r"/(home|root|tmp|work)/", README)
    assert "_TABLE" not in README
    assert os.linesep == "\n" or "\r" not in README
