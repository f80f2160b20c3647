"""The rooms of the project and the direction of their imports, read from the sources; and that planning loads no torch.

A room is a folder, or a module that stands in a package's own folder. The two tables below are the whole rule: a room
imports rooms of earlier steps, and rooms of its own step as long as no circle comes of it.
"""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("lora_sweep", "sweep", "hydra_plugins")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "safetensors"}

TRIAL_STEPS = (
    {"errors", "runs"},
    {"config"},
    {"data", "scoring", "facts", "messages"},
    {"model", "tracking"},
    {"multi_lora"},
    {"training", "generation", "export"},
    {"worker", "train", "inspect"},
)
SWEEP_STEPS = (
    {"text", "tables", "labels", "statistics"},
    {"trials"},
    {"store", "resources"},
    {"report", "status", "search"},
    {"compose", "plan"},
    {"engines"},
    {"launch"},
    {"confirm", "final", "ship", "serve", "chat", "compare", "dashboard", "track", "remove", "submit", "__main__"},
)
OPEN_TO_SWEEP = {"errors", "runs", "config", "data", "facts", "scoring", "tracking", "messages"}  # they load no torch


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it; of our own ones, the module itself and not its package."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {name for name in inside if is_module(name)}
            modules |= submodules | ({str(node.module)} if submodules != inside else set())
    return modules


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imported_rooms(path: Path, package: str) -> set[str]:
    """The rooms of ``package`` that a file imports from."""
    return {name.split(".")[1] for name in imports(path) if name.startswith(f"{package}.")}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[1]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_imports_only_from_rooms_before_or_beside_its_own(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    if package == "hydra_plugins" or room_of(path) == "__init__":
        return
    steps = TRIAL_STEPS if package == "lora_sweep" else SWEEP_STEPS
    step_of = {room: number for number, step in enumerate(steps) for room in step}
    room = room_of(path)
    assert room in step_of, "a new room: give it a step"
    later = {name for name in imported_rooms(path, package) if step_of[name] > step_of[room]}
    assert not later, f"{room} comes before {later}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_trial_knows_no_sweep_and_a_sweep_no_torch(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] == "lora_sweep":
        assert not imported_rooms(path, "sweep")
    else:
        assert imported_rooms(path, "lora_sweep") <= OPEN_TO_SWEEP
        assert not {name.partition(".")[0] for name in imports(path)} & HEAVY
    if path.relative_to(ROOT).parts[0] != "hydra_plugins":
        assert not imported_rooms(path, "hydra_plugins")


@pytest.mark.parametrize("of_rooms", [True, False], ids=["rooms", "modules"])
def test_no_imports_form_a_circle(of_rooms: bool) -> None:
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        own = name_of(path)
        ours = {name for name in imports(path) if name.split(".")[0] in PACKAGES and name != own}
        if of_rooms:
            own, ours = ".".join(own.split(".")[:2]), {".".join(name.split(".")[:2]) for name in ours}
        graph.setdefault(own, set()).update(ours - {own})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_report_is_a_function_of_result_files_alone() -> None:
    for path in (ROOT / "sweep/report").rglob("*.py"):
        assert imported_rooms(path, "lora_sweep") <= {"runs", "errors", "scoring", "config"}, path.name
        assert imported_rooms(path, "sweep") <= {"report", "store", "statistics", "tables", "text", "labels"}, path.name


def test_the_import_reader_sees_every_form(tmp_path: Path) -> None:
    source = (
        "import sweep.plan.make\nfrom lora_sweep.runs import results\ndef f():\n    from sweep.trials import Plan\n"
    )
    path = tmp_path / "m.py"
    path.write_text(source)
    assert imports(path) == {"sweep.plan.make", "lora_sweep.runs.results", "sweep.trials"}
    assert imported_rooms(path, "sweep") == {"plan", "trials"}


def test_nothing_that_plans_launches_or_reports_loads_torch() -> None:
    modules = ["lora_sweep.train", "sweep.plan.make", "sweep.launch", "sweep.report.__main__"]
    modules += ["hydra_plugins.local_launcher", "hydra_plugins.grid_sweeper"]
    lines = ["import importlib, sys"]
    for module in modules:
        lines += [f"importlib.import_module({module!r})", f"print({module!r}, *sorted({HEAVY!r} & set(sys.modules)))"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == modules, done.stderr


def test_hydras_address_holds_short_shells_and_is_no_package() -> None:
    folder = ROOT / "hydra_plugins"
    assert not (folder / "__init__.py").exists(), "Hydra's plugins share this name with other distributions"
    lengths = {path.name: len(path.read_text().splitlines()) for path in folder.glob("*.py")}
    assert lengths
    assert max(lengths.values()) < 60, lengths


def test_only_hydras_own_groups_name_python_objects() -> None:
    files = sorted((ROOT / "conf").rglob("*.yaml"))
    naming = [path for path in files if re.search(r"^\s*_target_\s*:", path.read_text(), re.MULTILINE)]
    assert naming == sorted((ROOT / "conf/hydra").rglob("*.yaml"))


def test_folders_and_files_stay_small() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
    folders = {path.parent for path in SOURCES}
    modules = {folder: sum(path.name != "__init__.py" for path in folder.glob("*.py")) for folder in folders}
    assert {str(folder): count for folder, count in modules.items() if count > 12} == {}
