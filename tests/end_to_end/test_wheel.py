"""The built wheel in a fresh environment, used from an empty folder elsewhere, as somebody who installed it would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMOKE = ("experiment=smoke", "tracking=none")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command without the variables that lead Python to this checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of a fresh environment into which pip installed the wheel with its dependencies."""
    home = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    built = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", home, ROOT, cwd=home)
    assert built.returncode == 0, built.stderr
    (wheel,) = home.glob("*.whl")
    run(sys.executable, "-m", "venv", home / "env", cwd=home)
    python = home / "env" / "bin" / "python"
    done = run(python, "-m", *pip[2:], "install", "-c", ROOT / "requirements.lock", wheel, cwd=home)
    assert done.returncode == 0, done.stderr
    return python.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with an experiment, a data file and a configuration of the user's own, and a ``sweep.py``."""
    home = tmp_path_factory.mktemp("mine")
    for group, name, text in (
        (
            "experiment",
            "mine",
            "# @package _global_\ndefaults: [smoke]\nsweep_name: mine\nhydra: {sweeper: {params: {lora.r: '2'}}}",
        ),
        ("data", "few", "name: few\ntiny: 60"),
    ):
        path = home / "conf" / group / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (home / "elsewhere" / "data").mkdir(parents=True)
    (home / "elsewhere" / "data" / "more.yaml").write_text("name: more\ntiny: 70\n")
    return home


def test_a_smoke_sweep_and_its_report_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    trained = run(installed / "python", "-m", "lora_sweep.train", *SMOKE, cwd=tmp_path)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    report = run(installed / "python", "-m", "sweep.report", cwd=tmp_path)
    assert "runs/sweeps/smoke/report.html" in report.stdout
    assert "5 complete" in report.stdout


def test_values_of_the_working_folder_are_found_without_a_flag(installed: Path, folder: Path) -> None:
    done = run(
        installed / "python", "-m", "lora_sweep.train", "experiment=mine", "data=few", "tracking=none", cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sweep mine: 2 trials and 1 baseline" in done.stdout
    assert "data few: " in done.stdout


def test_values_of_a_named_folder_are_found(installed: Path, folder: Path) -> None:
    words = ("--config-dir", "elsewhere", "model=tiny", "data=more", "tracking=none")
    done = run(installed / "python", "-m", "sweep.plan", *words, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data more: " in done.stdout


def test_the_console_script_works_beside_a_file_called_sweep(installed: Path, folder: Path) -> None:
    (folder / "sweep.py").write_text("raise SystemExit('the wrong file')\n")
    (folder / "judge.py").write_text("def score(text, reference, product, category):\n    return 1.0\n")
    words = ("experiment=mine", "eval.scorer=judge:score", "sweep_name=judged", "tracking=none")
    done = run(installed / "lora-sweep", "train", *words, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for command in ("report", "status", "plan"):
        done = run(
            installed / "lora-sweep", command, *(("model=tiny", "data=tiny") if command == "plan" else ()), cwd=folder
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_puts_no_folder_of_a_common_name_into_the_environment(installed: Path) -> None:
    code = (
        "import sysconfig, pathlib; print(*(p.name for p in pathlib.Path(sysconfig.get_paths()['purelib']).iterdir()))"
    )
    names = run(installed / "python", "-c", code, cwd=installed).stdout.split()
    assert {"lora_sweep", "sweep", "hydra_plugins"} <= set(names)
    assert not {"conf", "tests", "benchmarks", "docs"} & set(names)
