"""This machine: devices and their cache, the environment of a worker, memory limits, kills and disk."""

import ctypes.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_sweep.errors import Refused
from sweep.resources import machine
from sweep.resources.machine import (
    Slot,
    build_worker_environment,
    count_oom_kills,
    find_slots,
    measure_free_disk,
    read_memory_limit,
)

INSTALLED = next(filter(None, map(ctypes.util.find_library, machine.TCMALLOC_LIBRARIES)), None)
RAM = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
TWO = [{"type": "cuda", "index": i, "name": "big", "memory_bytes": 80 << 30} for i in (0, 1)]
VISIBLE = (
    "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "LORA_SWEEP_DEVICE", "OMP_NUM_THREADS",
    "LD_PRELOAD",
)  # fmt: skip


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cache, and no variable of the machine that runs the tests."""
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path / "cache"))
    for name in VISIBLE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)


@pytest.fixture
def torch_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """``torch_says(devices)``: what the process that imports torch would print; it returns the times it was asked."""
    monkeypatch.setattr(machine, "ROOT", tmp_path / "root")  # no device files but those a test makes

    def say(devices: list[dict[str, Any]]) -> list[int]:
        asked: list[int] = []

        def answer() -> list[dict[str, Any]]:
            asked.append(1)
            return devices

        monkeypatch.setattr(machine, "ask_torch_for_devices", answer)
        return asked

    return say


# --- slots ---------------------------------------------------------------------------------------------------------


def test_auto_is_every_accelerator_and_asks_once(torch_says: Any) -> None:
    asked = torch_says(TWO)
    assert find_slots("auto") == find_slots("auto") == [Slot("cuda", i, "big", 80 << 30) for i in (0, 1)]
    assert len(asked) == 1


def test_auto_is_the_cpu_where_there_is_no_accelerator(torch_says: Any) -> None:
    asked = torch_says([])
    for _ in range(2):
        (slot,) = find_slots("auto")
        assert (slot.type, slot.index, slot.name) == ("cpu", None, "cpu")
        assert slot.memory_bytes == read_memory_limit()
    assert len(asked) == 1, "that there is none is known from then on"


def test_the_cpu_needs_no_process(torch_says: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = torch_says(TWO)
    assert [slot.type for slot in find_slots("cpu")] == ["cpu"]
    monkeypatch.setenv("LORA_SWEEP_DEVICE", "cpu")
    assert [slot.type for slot in find_slots("auto")] == ["cpu"]
    assert asked == []


def test_a_list_means_those_in_its_order(torch_says: Any) -> None:
    torch_says(TWO)
    assert [slot.index for slot in find_slots([1, 0])] == [1, 0]
    assert [slot.index for slot in find_slots([1])] == [1]


def test_an_index_that_no_device_has_is_refused(torch_says: Any) -> None:
    torch_says(TWO)
    with pytest.raises(Refused) as caught:
        find_slots([0, 2])
    assert str(caught.value) == "launch.devices = [0, 2]: there is no device 2; allowed: 0, 1"


def test_an_index_where_there_is_no_accelerator_is_refused(torch_says: Any) -> None:
    torch_says([])
    with pytest.raises(Refused) as caught:
        find_slots([0])
    assert str(caught.value) == "launch.devices = [0]: this machine has no accelerator; allowed: auto, cpu"


@pytest.mark.parametrize("name", VISIBLE[:3])
def test_other_visible_devices_are_asked_about_anew(
    name: str, torch_says: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = torch_says(TWO)
    find_slots("auto")
    monkeypatch.setenv(name, "1")
    find_slots("auto")
    assert len(asked) == 2


@pytest.mark.parametrize("node", ["dev/nvidia1", "dev/dri/renderD128", "proc/sys/kernel/random/boot_id"])
def test_another_device_or_start_of_the_machine_is_asked_about_anew(node: str, torch_says: Any, tmp_path: Path) -> None:
    asked = torch_says(TWO)
    find_slots("auto")
    path = tmp_path / "root" / node
    path.parent.mkdir(parents=True)
    path.write_text("1")
    find_slots("auto")
    assert len(asked) == 2


def test_a_driver_that_is_not_ready_is_asked_again(torch_says: Any, tmp_path: Path) -> None:
    (tmp_path / "root/dev").mkdir(parents=True)
    (tmp_path / "root/dev/nvidia0").touch()
    torch_says([])
    assert [slot.type for slot in find_slots("auto")] == ["cpu"]
    torch_says(TWO)
    assert [slot.type for slot in find_slots("auto")] == ["cuda", "cuda"]


def test_the_real_process_answers_and_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = find_slots("auto")
    assert slots
    assert all(slot.memory_bytes is None or slot.memory_bytes > 1 << 20 for slot in slots)

    def forbidden() -> Any:
        raise AssertionError("asked twice")

    monkeypatch.setattr(machine, "ask_torch_for_devices", forbidden)
    assert find_slots("auto") == slots


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'libcuda is torn' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(machine.sys, "executable", str(program))
    with pytest.raises(RuntimeError, match="exit code 3:\nlibcuda is torn"):
        machine.ask_torch_for_devices()


def test_what_libraries_print_before_the_answer_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho 'loading'\necho '{json.dumps(TWO)}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(machine.sys, "executable", str(program))
    assert machine.ask_torch_for_devices() == TWO


# --- the environment of a worker -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "index", "expected"),
    [
        ({}, 1, {"CUDA_VISIBLE_DEVICES": "1"}),
        ({"CUDA_VISIBLE_DEVICES": "3,5"}, 1, {"CUDA_VISIBLE_DEVICES": "5"}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b"}, 1, {"CUDA_VISIBLE_DEVICES": "GPU-b"}),
        ({"HIP_VISIBLE_DEVICES": "3,5"}, 0, {"CUDA_VISIBLE_DEVICES": "3", "HIP_VISIBLE_DEVICES": "3"}),
        ({"ZE_AFFINITY_MASK": "7"}, 0, {"CUDA_VISIBLE_DEVICES": "0"}),
    ],
)
def test_a_worker_sees_its_gpu_alone(
    given: dict[str, str], index: int, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert build_worker_environment(Slot("cuda", index, "big", None), 1, 8) == expected


def test_a_worker_sees_its_xpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    slot = Slot("xpu", 1, "arc", None)
    assert build_worker_environment(slot, 2, 8) == {"ZE_AFFINITY_MASK": "1"}
    monkeypatch.setenv("ZE_AFFINITY_MASK", "0.0,0.1")
    assert build_worker_environment(slot, 2, 8) == {"ZE_AFFINITY_MASK": "0.1"}


def test_what_cannot_be_shared_out_needs_no_variable() -> None:
    assert build_worker_environment(Slot("mps", 0, "mps", None), 1, 8) == {}


@pytest.mark.parametrize(("workers", "cores", "threads"), [(1, 8, None), (2, 8, "4"), (3, 8, "2"), (9, 8, "1")])
def test_workers_on_the_cpu_share_its_cores(workers: int, cores: int, threads: str | None) -> None:
    variables = build_worker_environment(Slot("cpu", None, "cpu", None), workers, cores)
    assert variables == {"LORA_SWEEP_DEVICE": "cpu", **({"OMP_NUM_THREADS": threads} if threads else {})}


def test_threads_that_were_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert build_worker_environment(Slot("cpu", None, "cpu", None), 2, 8) == {"LORA_SWEEP_DEVICE": "cpu"}


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is preloaded elsewhere")
def test_workers_on_the_cpu_take_tcmalloc_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    slot = Slot("cpu", None, "cpu", None)
    assert "LD_PRELOAD" not in build_worker_environment(slot, 1, 8)
    monkeypatch.setattr(ctypes.util, "find_library", {"tcmalloc": "libtcmalloc.so.4"}.get)
    assert build_worker_environment(slot, 1, 8)["LD_PRELOAD"] == "libtcmalloc.so.4"
    monkeypatch.setenv("LD_PRELOAD", "libother.so")
    assert build_worker_environment(slot, 1, 8)["LD_PRELOAD"] == "libtcmalloc.so.4:libother.so"
    monkeypatch.setenv("LD_PRELOAD", "libjemalloc.so.2")
    assert "LD_PRELOAD" not in build_worker_environment(slot, 1, 8), "an allocator was chosen already"


@pytest.mark.skipif(INSTALLED is None, reason="no tcmalloc is installed")
def test_a_process_has_the_allocator_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: INSTALLED)
    variables = build_worker_environment(Slot("cpu", None, "cpu", None), 1, 8)
    command = [sys.executable, "-c", "print('tcmalloc' in open('/proc/self/maps').read())"]
    found = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("True\n", "")


# --- memory ----------------------------------------------------------------------------------------------------------


def written(root: Path, **files: str) -> Path:
    """A root with files; a slash in a name is written as two underscores, and a dot as one more."""
    for name, text in files.items():
        path = root / name.replace("___", ".").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_without_a_limit_memory_is_the_machines(tmp_path: Path) -> None:
    assert read_memory_limit(tmp_path) == RAM
    limits = {"proc__self__cgroup": "0::/a", "sys__fs__cgroup__a__memory___max": "max"}
    assert read_memory_limit(written(tmp_path, **limits)) == RAM
    huge = {"proc__self__cgroup": "0::/b", "sys__fs__cgroup__b__memory___max": str(RAM * 2)}
    assert read_memory_limit(written(tmp_path, **huge)) == RAM


@pytest.mark.parametrize(
    ("cgroup", "limited"),
    [
        ("0::/a/b", "sys__fs__cgroup__a__b__memory___max"),
        ("0::/a/b", "sys__fs__cgroup__a__memory___max"),  # a parent's
        ("0::/host/only", "sys__fs__cgroup__memory___max"),  # a container sees its own group as the mount
        ("0::/../b", "sys__fs__cgroup__b__memory___max"),
        ("5:cpu:/x\n4:memory:/a\n0::/", "sys__fs__cgroup__memory__a__memory___limit_in_bytes"),
        ("4:cpu,memory:/host/only", "sys__fs__cgroup__memory__memory___limit_in_bytes"),
    ],
)
def test_a_control_groups_limit_counts(cgroup: str, limited: str, tmp_path: Path) -> None:
    assert read_memory_limit(written(tmp_path, proc__self__cgroup=cgroup, **{limited: "1000000"})) == 1000000


def test_another_groups_limit_does_not_count(tmp_path: Path) -> None:
    other = {"proc__self__cgroup": "4:cpu:/a\n0::/a", "sys__fs__cgroup__b__memory___max": "1000"}
    other["sys__fs__cgroup__memory__a__memory___limit_in_bytes"] = "1000"
    assert read_memory_limit(written(tmp_path, **other)) == RAM


EVENTS = "low 0\noom 9\noom_kill 3\noom_group_kill 1"


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({}, 0),
        ({"proc__vmstat": "nr_free_pages 7\noom_kill 5"}, 5),
        (
            {
                "proc__self__cgroup": "0::/a",
                "sys__fs__cgroup__a__memory___events": EVENTS,
                "proc__vmstat": "oom_kill 5",
            },
            3,
        ),
        (
            {
                "proc__self__cgroup": "4:memory:/a\n0::/",
                "sys__fs__cgroup__memory__a__memory___oom_control": "oom_kill_disable 1\nunder_oom 0\noom_kill 4",
                "proc__vmstat": "oom_kill 5",
            },
            4,
        ),
        (  # an old kernel's file has no such line
            {
                "proc__self__cgroup": "4:memory:/a",
                "sys__fs__cgroup__memory__a__memory___oom_control": "oom_kill_disable 1\nunder_oom 0",
                "proc__vmstat": "oom_kill 5",
            },
            5,
        ),
    ],
)
def test_kills_are_those_of_the_own_group_where_it_tells(files: dict[str, str], kills: int, tmp_path: Path) -> None:
    assert count_oom_kills(written(tmp_path, **files)) == kills


def test_this_machine_answers() -> None:
    assert 0 < read_memory_limit() <= RAM
    assert count_oom_kills() >= 0


def test_free_space_is_that_of_the_place_that_will_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    real = shutil.disk_usage

    def usage(path: Path) -> Any:
        asked.append(path)
        return real(path)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert measure_free_disk(tmp_path / "not" / "yet") > 0
    monkeypatch.chdir(tmp_path)
    measure_free_disk(Path("runs"))
    measure_free_disk(Path())
    assert asked == [tmp_path] * 3
