"""What a result says of the code that made it."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_layers import ROOT, ours

from lora_sweep import provenance

SOURCE = '''"""A docstring."""
import math


def grow(x: float) -> float:
    """Twice ``x``."""
    return x * 2  # why


class Empty:
    """Nothing else."""
'''
# Reached from a trial's straight line, and yet without a say in its numbers that its id or its versions do not have.
NO_NUMBERS = {
    "config",
    "crashes",
    "errors",
    "fetch",
    "identity",
    "intervals",
    "jobs",
    "metrics",
    "provenance",
    "results",
    "tracking",
    "tracking_mlflow",
    "tracking_tables",
    "tracking_trackio",
    "tracking_wandb",
}


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Twice ``x``.", "Two times ``x``.", True),
        ('    """Twice ``x``."""\n', "", True),
        ("  # why", "", True),
        ("x * 2", "(x\n        * 2)", True),
        ("x * 2", "x * 3", False),
        ("x * 2", "x * 2.0", False),
        ("grow(x: float)", "grow(x: float = 0)", False),
        ("import math", "", False),
    ],
)
def test_only_statements_count(old: str, new: str, same: bool) -> None:
    assert old in SOURCE
    before = provenance.fingerprint_of({"a": SOURCE, "b": "x = 1\n"})
    after = provenance.fingerprint_of({"a": SOURCE.replace(old, new), "b": "x = 1\n"})
    assert (before == after) == same


def test_a_string_that_is_no_docstring_counts_and_so_does_the_module_it_is_in() -> None:
    one, other = "x = 1\n'a'\n", "x = 1\n'b'\n"
    assert provenance.fingerprint_of({"a": one}) != provenance.fingerprint_of({"a": other})
    assert provenance.fingerprint_of({"a": one, "b": other}) != provenance.fingerprint_of({"a": other, "b": one})


def test_the_fingerprint_of_the_code_is_short_and_of_every_listed_source(monkeypatch: pytest.MonkeyPatch) -> None:
    found = provenance.code_fingerprint()
    assert len(found) == 16
    assert found == provenance.code_fingerprint() == provenance.fingerprint_of(provenance.SOURCES)
    for name in provenance.CODE:
        changed = {**provenance.SOURCES, name: provenance.SOURCES[name] + "\nunheard_of = 1\n"}
        assert provenance.fingerprint_of(changed) != found, name


def test_whatever_a_trial_runs_is_listed_or_makes_no_number() -> None:
    reached, left = set[str](), {"line"}
    while left:
        reached |= left
        left = {name for each in left for name in ours(ROOT / f"lora_sweep/{each}.py", "lora_sweep")} - reached
    assert reached - NO_NUMBERS == set(provenance.CODE)
    assert not NO_NUMBERS & set(provenance.CODE)


def test_a_result_says_what_any_process_knows_and_what_only_the_worker_does() -> None:
    device: Any = SimpleNamespace(name="a device", compute_dtype="torch.bfloat16")
    made = provenance.provenance(device, "then")
    assert {key: made[key] for key in provenance.made_with()} == provenance.made_with()
    assert set(provenance.made_with()) == {"versions", "git_commit", "git_dirty", "code"}
    assert (made["device"], made["dtype"], made["started"]) == ("a device", "bfloat16", "then")
    assert made["code"] == provenance.code_fingerprint()


def test_asking_for_it_loads_no_torch_and_is_quick(tmp_path: Path) -> None:
    code = (
        "import sys, time; t = time.perf_counter(); from lora_sweep.provenance import made_with; made_with(); "
        "assert time.perf_counter() - t < 3; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "lora_sweep" in done.stdout.split()
    assert not {"torch", "transformers", "peft", "trl", "datasets"} & set(done.stdout.split())
