"""The rooms of the project and what each may import, read from the sources; and that planning loads no torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("lora_sweep", "sweep", "hydra_plugins")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
HEAVY = {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "safetensors"}

# Inside a trial: a module imports modules of rows above its own, and none of its own row.
ROWS = (
    ("errors", "crashes", "metrics", "device", "dropout", "lanes", "intervals", "tracking_tables"),
    ("results", "claims"),
    ("config", "checkpoints"),
    ("fetch", "composition_errors", "scorers", "jobs", "tracking_wandb", "tracking_mlflow", "tracking_trackio"),
    ("identity", "data", "provenance", "tracking"),
    ("facts",),
    ("targets", "footprint", "prompts"),
    ("tiny",),
    ("model", "packed", "flat", "head_loss", "norms"),
    ("adapters", "materialize"),
    ("finetune", "generate", "score", "pack_ways"),
    ("pack_training", "pack_generation"),
    ("shared",),
    ("trial",),
    ("line",),
    ("worker", "inspect", "train"),
)
OPEN_TO_SWEEP = {
    "config", "results", "errors", "facts", "targets", "footprint", "tracking", "fetch", "composition_errors",
    "metrics", "identity", "provenance", "claims", "crashes", "jobs", "intervals", "scorers", "tracking_tables",
}  # fmt: skip


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it; of our own ones, the module itself and not its package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = str(node.module)
            inside = {f"{module}.{alias.name}" for alias in node.names}
            submodules = {name for name in inside if is_module(name)}
            found |= submodules | ({module} if submodules != inside else set())
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def ours(path: Path, room: str) -> set[str]:
    """The modules of a room that a file imports, without the room's name."""
    return {name.removeprefix(f"{room}.") for name in imports(path) if name == room or name.startswith(f"{room}.")}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_imports_only_from_the_rooms_below_its_own(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    if room == "lora_sweep":
        assert not ours(path, "sweep"), "a trial knows nothing of sweeps"
    else:
        assert ours(path, "lora_sweep") <= OPEN_TO_SWEEP
        assert not {name.partition(".")[0] for name in imports(path)} & HEAVY
    if room != "hydra_plugins":
        assert not ours(path, "hydra_plugins")


@pytest.mark.parametrize("path", sorted((ROOT / "lora_sweep").glob("*.py")), ids=name_of)
def test_a_trials_module_imports_only_from_rows_above_its_own(path: Path) -> None:
    if path.stem == "__init__":
        assert not imports(path)
        return
    rank = {name: number for number, row in enumerate(ROWS) for name in row}
    assert path.stem in rank, "a new module: give it a row"
    for name in ours(path, "lora_sweep"):
        assert rank[name] < rank[path.stem], f"{path.stem} imports {name}"


def test_the_rows_list_no_module_that_is_gone() -> None:
    assert {name for row in ROWS for name in row} == {p.stem for p in (ROOT / "lora_sweep").glob("[a-z]*.py")}


def test_the_schema_needs_only_the_errors_and_they_need_nothing() -> None:
    assert ours(ROOT / "lora_sweep/config.py", "lora_sweep") == {"errors"}
    assert not ours(ROOT / "lora_sweep/errors.py", "lora_sweep")


def test_a_report_is_a_function_of_result_files_alone() -> None:
    for path in (ROOT / "sweep/report").glob("*.py"):
        assert ours(path, "lora_sweep") <= {"results", "errors", "metrics", "intervals"}, path.name
        others = {name for name in ours(path, "sweep") if not name.startswith("report")}
        assert others <= {"drift", "statistics", "simultaneous"}, path.name


def test_the_import_reader_sees_every_form(tmp_path: Path) -> None:
    source = "import sweep.plan\nfrom lora_sweep import results, tracking\ndef f():\n    from sweep.plan import Plan\n"
    path = tmp_path / "m.py"
    path.write_text(source)
    assert imports(path) == {"sweep.plan", "lora_sweep.results", "lora_sweep.tracking"}
    assert ours(path, "lora_sweep") == {"results", "tracking"}


def test_nothing_that_plans_launches_or_reports_loads_torch() -> None:
    modules = ["lora_sweep.train", "sweep.plan", "sweep.launch", "sweep.report", "hydra_plugins.local_launcher"]
    modules += ["hydra_plugins.grid_sweeper", "sweep.report.__main__"]
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


def test_files_stay_small() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
