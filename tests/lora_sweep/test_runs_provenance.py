"""What a result says of the code that made it."""

import subprocess
import sys
from pathlib import Path

import pytest

from lora_sweep.runs import provenance

SOURCE = '''"""A docstring."""
import math


def grow(x: float) -> float:
    """Twice ``x``."""
    return x * 2  # why


class Empty:
    """Nothing else."""
'''
ROOT = Path(__file__).parents[2]


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
    before = provenance.fingerprint_sources({"a": SOURCE, "b": "x = 1\n"})
    after = provenance.fingerprint_sources({"a": SOURCE.replace(old, new), "b": "x = 1\n"})
    assert (before == after) == same


def test_a_string_that_is_no_docstring_counts_and_so_does_the_module_it_is_in() -> None:
    one, other = "x = 1\n'a'\n", "x = 1\n'b'\n"
    assert provenance.fingerprint_sources({"a": one}) != provenance.fingerprint_sources({"a": other})
    assert provenance.fingerprint_sources({"a": one, "b": other}) != provenance.fingerprint_sources(
        {"a": other, "b": one}
    )


def test_the_fingerprint_of_the_code_is_short_and_of_every_listed_source(monkeypatch: pytest.MonkeyPatch) -> None:
    found = provenance.code_fingerprint()
    assert len(found) == 16
    assert found == provenance.code_fingerprint() == provenance.fingerprint_sources(provenance.SOURCES)
    for name in provenance.SOURCES:
        changed = {**provenance.SOURCES, name: provenance.SOURCES[name] + "\nunheard_of = 1\n"}
        assert provenance.fingerprint_sources(changed) != found, name


def test_the_code_that_counts_is_that_of_the_rooms_that_make_numbers() -> None:
    assert {name.partition("/")[0] for name in provenance.SOURCES} == set(provenance.CODE_ROOMS)
    assert {"training/packed", "worker/pack", "data/rows", "scoring/score"} <= set(provenance.SOURCES)
    for name in provenance.NOT_CODE:
        assert (ROOT / f"lora_sweep/{name}.py").is_file(), f"{name} is gone"
        assert name not in provenance.SOURCES


def test_a_result_says_what_any_process_knows_and_what_only_the_worker_does() -> None:
    made = provenance.collect_provenance("a device", "torch.bfloat16", "then")
    assert {key: made[key] for key in provenance.collect_code_state()} == provenance.collect_code_state()
    assert set(provenance.collect_code_state()) == {"versions", "git_commit", "git_dirty", "code"}
    assert (made["device"], made["dtype"], made["started"]) == ("a device", "bfloat16", "then")
    assert made["code"] == provenance.code_fingerprint()


def test_asking_for_it_loads_no_torch_and_is_quick(tmp_path: Path) -> None:
    code = (
        "import sys, time; t = time.perf_counter(); from lora_sweep.runs import provenance; "
        "provenance.collect_code_state(); "
        "assert time.perf_counter() - t < 3; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "lora_sweep" in done.stdout.split()
    assert not {"torch", "transformers", "peft", "trl", "datasets"} & set(done.stdout.split())
