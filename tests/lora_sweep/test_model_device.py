"""The device: what the environment may say against torch, and how accelerators are listed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_sweep.model import device

ROOT = Path(__file__).parents[2]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``found("cuda", 2)``: torch says that there are two of them."""
    monkeypatch.delenv("LORA_SWEEP_DEVICE", raising=False)

    def make(kind: str, count: int) -> None:
        properties = SimpleNamespace(name=f"big {kind}", total_memory=80 << 30)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        for module in (torch.cuda, torch.xpu):
            monkeypatch.setattr(module, "get_device_properties", lambda index: properties)

    return make


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_each_accelerator_is_listed_with_its_memory(kind: str, found: Any) -> None:
    found(kind, 2)
    listed = device.list_accelerators()
    assert listed == [{"type": kind, "index": i, "name": f"big {kind}", "memory_bytes": 80 << 30} for i in (0, 1)]


def test_apples_is_one_that_does_not_tell_its_memory(found: Any) -> None:
    found("mps", 7)
    assert device.list_accelerators() == [{"type": "mps", "index": 0, "name": "mps", "memory_bytes": None}]


def test_the_environment_may_ask_for_the_cpu(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found("xpu", 1)
    assert device.pick_device().type == "xpu"
    monkeypatch.setenv("LORA_SWEEP_DEVICE", "cpu")
    assert device.pick_device().type == "cpu"
    assert device.list_accelerators() == []


def test_the_command_prints_them_as_json() -> None:
    variables = {**os.environ, "LORA_SWEEP_DEVICE": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "lora_sweep.model.device"],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, json.loads(done.stdout)) == (0, []), done.stderr


def test_cudnn_plans_no_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", told.append)
    monkeypatch.setattr(device, "find_accelerator", lambda: None)
    device.pick_device()
    monkeypatch.setattr(device, "find_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "big")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert device.pick_device() == device.Device("cuda", "big", torch.bfloat16)
    assert told == [False]
