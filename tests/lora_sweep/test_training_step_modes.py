"""Members that train in parallel, and the choice of the faster step mode."""

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.here import HERE
from test_training_packed import DATA, alone, copies, load, losses

from lora_sweep.config.schema import Model, Quant
from lora_sweep.data.prompts import Example, make_examples
from lora_sweep.data.splits import load_splits
from lora_sweep.model.device import Device
from lora_sweep.model.load import base_signature, load_tokenizer
from lora_sweep.multi_lora.dequantize import dequantize_base
from lora_sweep.training import pack_step, step_modes
from lora_sweep.training.packed import train_pack
from lora_sweep.training.step_modes import StepModeSelector, list_step_modes
from sweep.resources import pack_size


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    return make_examples(load_splits(DATA).train, DATA, load_tokenizer(Model(name="tiny", tiny="llama")), 128)


def dequantized(bits: int | None) -> Any:
    base = load(bits)
    dequantize_base(base, Quant(bits, materialize="always"), HERE)
    return base


@pytest.mark.parametrize("first", ["batched", "parallel"])
@pytest.mark.parametrize(("shorter", "used"), [(0.5, True), (0.99, False), (2.0, False)])
def test_the_faster_mode_is_found_in_the_first_steps(
    first: Any, shorter: float, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    selector, clock, made = StepModeSelector([first, "sequential"]), 0.0, []
    monkeypatch.setattr(step_modes.time, "perf_counter", lambda: clock)
    for step in range(8):
        with selector.time_step(10) as mode:
            made.append(mode)
            clock += 100.0 if step == 0 else shorter if mode == first else 1.0  # the first warms up
    measured = [first, first, "sequential"] if first == "parallel" else [first, first, "sequential", "sequential"]
    assert made == [*measured, *[first if used else "sequential"] * (8 - len(measured))]
    assert not selector.is_measuring


def test_members_share_the_cores_of_a_cpu_where_the_layers_allow_it(
    rows: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    cpu, gpu = (Device(kind, kind, torch.float32) for kind in ("cpu", "cuda"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert list_step_modes(load(), 2, cpu) == ["parallel", "sequential"]
    assert list_step_modes(dequantized(8), 2, cpu) == ["parallel", "sequential"]
    assert list_step_modes(load(), 2, gpu) == ["batched", "sequential"]
    assert list_step_modes(load(), 1, cpu) == ["sequential"]
    assert list_step_modes(load(8), 2, cpu) == ["batched", "sequential"], "its layers keep state in a forward"
    scaled = load()
    scaled.model.rotary_emb.rope_type = "longrope"
    assert list_step_modes(scaled, 2, cpu) == ["batched", "sequential"], (
        "a forward of long rows would change those of short ones"
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert list_step_modes(load(), 2, cpu) == ["batched", "sequential"]
    assert pack_size.MEMBER_THREADS == step_modes.MEMBER_THREADS


@pytest.mark.skipif(HERE.type != "cpu", reason="only a CPU has cores to share")
@pytest.mark.parametrize(("bits", "saving"), [(None, False), (8, False), (None, True)])
def test_two_members_train_at_once_and_a_single_one_uses_all_cores(
    bits: int | None, saving: bool, rows: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    at_work: list[int] = []
    most: list[int] = []
    forward = pack_step.forward_backward

    def seen(*arguments: Any) -> None:
        at_work.append(threading.get_ident())
        most.append(len(at_work))
        shares.append((len(arguments[3]), arguments[-1]))
        forward(*arguments)
        at_work.remove(threading.get_ident())

    shares: list[tuple[int, float]] = []
    monkeypatch.setattr(pack_step, "forward_backward", seen)
    threads = torch.get_num_threads()
    kinds: list[dict[str, Any]] = [
        {"lora": {"dropout": 0.2}, "gradient_checkpointing": saving, "seed": seed, "max_steps": steps}
        for seed, steps in ((0, 3), (1, 3), (2, 9))
    ]
    base = dequantized(bits)
    ended = train_pack(base, copies(base, kinds, rows), HERE, tmp_path, "parallel")
    assert max(most) == 2
    beside = shares.count((1, 0.5))
    assert beside >= 6, "the member with the most remaining steps is next"
    assert shares == [(1, 0.5)] * beside + [(1, 1.0)] * (15 - beside)
    assert torch.get_num_threads() == threads
    for kind, trained in zip(kinds, ended, strict=True):
        assert losses(trained) == pytest.approx(losses(alone(bits, kind, rows, tmp_path)[1]), rel=1e-5)


@pytest.mark.skipif(HERE.type != "cpu", reason="only a CPU has cores to share")
def test_an_error_in_one_member_ends_all_and_leaves_the_base_unchanged(
    rows: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    forward, calls, seen = pack_step.forward_backward, itertools.count(1), []

    def broken(*arguments: Any) -> None:
        seen.append(number := next(calls))
        if number == 3:
            raise RuntimeError("out of luck")
        time.sleep(0.1)
        forward(*arguments)

    monkeypatch.setattr(pack_step, "forward_backward", broken)
    base = load()
    before = base_signature(base)
    with pytest.raises(RuntimeError, match="out of luck"):
        train_pack(base, copies(base, [{}, {"seed": 1}], rows), HERE, tmp_path, "parallel")
    assert len(seen) <= 4
    assert base_signature(base) == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("member")]
