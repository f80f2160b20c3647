"""Checkpoints: a stopped or killed training ends in the same bytes, and a damaged checkpoint misleads nobody."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.here import HERE

from lora_sweep.config.schema import Data, Lora, Model, Quant, Train
from lora_sweep.data.prompts import make_examples
from lora_sweep.data.splits import load_splits
from lora_sweep.errors import Preempted
from lora_sweep.model.load import base_signature, load_base, load_tokenizer
from lora_sweep.multi_lora.peft_format import attach_adapter
from lora_sweep.runs import checkpoints
from lora_sweep.runs.checkpoints import find_last_valid, seal_checkpoint
from lora_sweep.training.progress import Trained
from lora_sweep.training.single import train_with_trl

ROOT = Path(__file__).parents[2]
DATA = Data(name="tiny", tiny=60, train_rows=15)  # 4 steps an epoch, the last one of 3 rows
ALL_AND_HEAD = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


def train(
    folder: Path,
    checkpoints: Path | None = None,
    stop_at: int | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    shape: str = "llama",
    targets: tuple[str, ...] | list[str] = ("q_proj", "v_proj"),
    bits: int | None = None,
    lora: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Trained, str]:
    """What a training of 8 steps in 2 epochs did, and the sha256 of the adapter that it saved below ``folder``."""
    source = Model(name="tiny", tiny=shape)
    tokenizer = load_tokenizer(source)
    rows = make_examples(load_splits(DATA).train, DATA, tokenizer, 128)
    base = load_base(source, Quant(bits), HERE)
    before = base_signature(base)
    model = attach_adapter(base, Lora(**{"dropout": 0.1, **(lora or {})}), list(targets), 0)
    steps: list[int] = []

    def seen(step: int, planned: int, values: dict[str, float]) -> None:
        steps.append(step)
        on_step(step)

    asked = Train(**{"num_train_epochs": 2, "learning_rate": 1e-2, **settings})
    trained = train_with_trl(
        model, rows, tokenizer, asked, 0, HERE, folder, seen, checkpoints, lambda: steps[-1] == stop_at
    )
    assert steps == list(range((trained.resumed_from or 0) + 1, trained.steps + 1)), "told of a step twice, or never"
    assert [values["step"] for values in trained.losses] == list(range(1, trained.steps + 1))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    if not (lora or {}).get("bias"):
        assert base_signature(model.unload()) == before
    return trained, sha256(folder / "adapter/adapter_model.safetensors")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stop(folder: Path, at: int, kept: Path, **settings: Any) -> None:
    with pytest.raises(Preempted, match=f"^saved at step {at} of "):
        train(folder, kept, stop_at=at, **settings)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, str]:
    return train_whole(tmp_path_factory.mktemp("undisturbed"), {})


@pytest.fixture(scope="module")
def stopped_at_6(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a training that saved every 2 steps until 6 of 8: copy before changing anything."""
    kept = tmp_path_factory.mktemp("stopped") / "checkpoints"
    stop(kept.parent, 6, kept, checkpoint_steps=2)
    return kept


@pytest.fixture
def kept(stopped_at_6: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped_at_6, tmp_path / "checkpoints"))


def steps_in(kept: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in kept.iterdir())


# --- the same bytes ---------------------------------------------------------------------------------------------------

GPT2 = {"shape": "gpt2", "targets": ["c_attn", "c_fc"]}
NEOX = {"shape": "gpt_neox", "targets": ["query_key_value"]}
TWO_OF_TWO = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


WHOLE: dict[str, tuple[Trained, str]] = {}  # trainings that nobody stopped, by their settings


def train_whole(folder: Path, settings: dict[str, Any]) -> tuple[Trained, str]:
    """A training that nobody stops, once for each settings."""
    if str(settings) not in WHOLE:
        WHOLE[str(settings)] = train(folder, **settings)
    return WHOLE[str(settings)]


@pytest.mark.parametrize(
    ("at", "settings"),
    [
        pytest.param(1, {}, id="first step"),
        pytest.param(4, {}, id="end of an epoch"),
        pytest.param(6, {"bits": 4, "lora": {"use_dora": True}}, id="4bit dora"),
        pytest.param(6, {"bits": 8, "optim": "adamw_bnb_8bit"}, id="8bit, 8-bit optimizer"),
        pytest.param(6, {**GPT2, "lora": {"bias": "all"}, "train_sampling_strategy": "sequential"}, id="every bias"),
        pytest.param(6, {**NEOX, "lora": {"bias": "lora_only"}, "bits": 4}, id="4bit, biases of adapted layers"),
        pytest.param(6, {"targets": ALL_AND_HEAD, "bits": 4}, id="4bit, the head too"),
        pytest.param(
            5,
            {**TWO_OF_TWO, "gradient_checkpointing": True, "lr_scheduler_type": "cosine", "warmup_steps": 6},
            id="accumulation, warmup",
        ),
        pytest.param(2, {"train_sampling_strategy": "group_by_length"}, id="by length, first epoch"),
        pytest.param(6, {"train_sampling_strategy": "group_by_length"}, id="by length, second epoch"),
    ],
)
def test_a_stopped_training_goes_on_to_the_same_bytes(at: int, settings: dict[str, Any], tmp_path: Path) -> None:
    whole, adapter = train_whole(tmp_path, settings)
    stop(tmp_path, at, tmp_path / "checkpoints", **settings)
    resumed, adapter_again = train(tmp_path, tmp_path / "checkpoints", **settings)
    assert resumed.resumed_from == at
    assert (resumed.losses, resumed.tokens) == (whole.losses, whole.tokens)
    assert adapter_again == adapter


def test_stopped_again_and_again(undisturbed: tuple[Trained, str], tmp_path: Path) -> None:
    kept = tmp_path / "checkpoints"
    for at, every in ((2, None), (3, 5), (6, 1)):  # how often it saves is nobody's number: it may change on the way
        stop(tmp_path, at, kept, checkpoint_steps=every)
    resumed, adapter = train(tmp_path, kept)
    assert (resumed.losses, resumed.tokens, adapter) == (undisturbed[0].losses, undisturbed[0].tokens, undisturbed[1])


def save_and_tell(folder: str, kill_at: str = "") -> None:
    """In a process of its own: train as ``undisturbed`` does, saving every 2 steps; die without a word at a step."""

    def on_step(step: int) -> None:
        if str(step) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    trained, adapter = train(Path(folder), Path(folder) / "checkpoints", on_step=on_step, checkpoint_steps=2)
    print(json.dumps([adapter, trained.resumed_from, trained.losses]))


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bytes(undisturbed: tuple[Trained, str], tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, 'tests/lora_sweep'); import test_runs_checkpoints as t; "
    code += "t.save_and_tell(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    killed = subprocess.run([*command, "5"], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert steps_in(tmp_path / "checkpoints") == [2, 4]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    whole, adapter = undisturbed
    assert json.loads(done.stdout.splitlines()[-1]) == [adapter, 4, whole.losses]


def test_half_the_batch_goes_on_from_the_same_row(tmp_path: Path) -> None:
    """As after running out of memory."""
    settings: dict[str, Any] = {"lora": {"dropout": 0.0}, "train_sampling_strategy": "group_by_length"}
    whole, _ = train(tmp_path, **settings)
    stop(tmp_path, 6, tmp_path / "checkpoints", **settings)
    halved, _ = train(tmp_path, tmp_path / "checkpoints", **settings, **TWO_OF_TWO)
    assert halved.resumed_from == 6
    assert halved.tokens == whole.tokens
    losses, expected = ([values["loss"] for values in trained.losses] for trained in (halved, whole))
    assert losses == pytest.approx(expected, rel=1e-5)


# --- when it saves and when it ends -----------------------------------------------------------------------------------


def test_two_checkpoints_stay_and_the_end_needs_none(undisturbed: tuple[Trained, str], tmp_path: Path) -> None:
    kept, found = tmp_path / "checkpoints", []
    trained, adapter = train(
        tmp_path, kept, on_step=lambda step: found.append(steps_in(kept) if kept.exists() else []), checkpoint_steps=2
    )
    assert found == [[], [], [2], [2], [2, 4], [2, 4], [4, 6], [4, 6]]
    assert steps_in(kept) == [4, 6]
    assert (trained.resumed_from, adapter) == (None, undisturbed[1]), "saving changed the adapter"


def test_a_request_to_stop_saves_between_the_checkpoints(kept: Path, tmp_path: Path) -> None:
    stop(tmp_path, 7, kept, checkpoint_steps=2)
    assert steps_in(kept) == [6, 7]


def test_a_request_at_the_last_step_comes_too_late(kept: Path, tmp_path: Path) -> None:
    assert train(tmp_path, kept, stop_at=8)[0].steps == 8


def test_without_a_folder_nothing_is_saved(tmp_path: Path) -> None:
    with pytest.raises(Preempted, match="at step 3; nothing was saved"):
        train(tmp_path, stop_at=3, checkpoint_steps=1)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_seconds_are_those_of_all_attempts(kept: Path, tmp_path: Path) -> None:
    point = find_last_valid(kept)
    assert point is not None
    path = kept / "checkpoint-6/progress.json"
    path.write_text(json.dumps({**point.progress, "train_seconds": 1000.0}))
    seal_checkpoint(kept, 6, json.loads(path.read_text()))
    started = time.perf_counter()
    trained, _ = train(tmp_path, kept)
    assert point.progress["train_seconds"] > 0
    assert 1000 < trained.train_seconds < 1000 + time.perf_counter() - started


# --- what a checkpoint holds ------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_no_more_than_it_needs(tmp_path: Path) -> None:
    stop(tmp_path, 1, tmp_path / "checkpoints", targets=ALL_AND_HEAD)
    folder = tmp_path / "checkpoints/checkpoint-1"
    ours = {"manifest.json", "progress.json"}
    theirs = {"adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}
    assert {path.name for path in folder.iterdir()} == ours | theirs
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint-1"]
    from safetensors.torch import load_file

    assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors")), "the embedding too"


def test_no_pickle_is_loaded_but_as_weights(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, asked = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: asked.append(kwargs) or load(*args, **kwargs))
    train(tmp_path, kept)
    assert len(asked) == 3  # of the optimizer, the schedule and the generators
    assert all(kwargs["weights_only"] is True for kwargs in asked)


# --- which checkpoint counts ------------------------------------------------------------------------------------------


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "torn": lambda folder: os.truncate(folder / "optimizer.pt", 1000),
    "emptied": lambda folder: os.truncate(folder / "rng_state.pth", 0),
    "gone": lambda folder: (folder / "scheduler.pt").unlink(),
    "more": lambda folder: (folder / "scaler.pt").write_bytes(b"x"),
    "a bit of the adapter": lambda folder: flip(folder / "adapter_model.safetensors"),
    "a bit of the optimizer": lambda folder: flip(folder / "optimizer.pt"),
    "a bit of the losses": lambda folder: flip(folder / "progress.json"),
    "a bit of the manifest": lambda folder: flip(folder / "manifest.json", 0.99),
    "unsealed": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: os.truncate(folder / "manifest.json", 100),
    "a folder as manifest": lambda folder: ((folder / "manifest.json").unlink(), (folder / "manifest.json").mkdir()),
    "renamed": lambda folder: folder.rename(folder.with_name("checkpoint-7")),
    "half removed": lambda folder: [path.unlink() for path in folder.iterdir() if path.name != "manifest.json"],
}
GARBAGE = [
    "",
    "null",
    "3",
    "true",
    '"text"',
    "[]",
    "{}",
    "[" * 100_000,
    '{"files": 3}',
    '{"step": 6, "files": {}}',
    "é\0",
]
DAMAGES |= {
    f"manifest {text[:30]!r}": lambda folder, text=text: (folder / "manifest.json").write_text(text) for text in GARBAGE
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(damage: str, kept: Path) -> None:
    assert find_last_valid(kept).step == 6
    DAMAGES[damage](kept / "checkpoint-6")
    assert find_last_valid(kept).step == 4


@pytest.mark.parametrize("damage", ["unsealed", "renamed"])
def test_a_training_goes_on_from_the_one_before(
    damage: str, kept: Path, tmp_path: Path, undisturbed: tuple[Trained, str]
) -> None:
    DAMAGES[damage](kept / "checkpoint-6")
    (kept / "checkpoint-6").mkdir(exist_ok=True)
    (
        kept / "checkpoint-6/pytorch_model.bin"
    ).touch()  # what another attempt left there must not be sealed with this one's
    trained, adapter = train(tmp_path, kept, checkpoint_steps=2)
    assert (trained.resumed_from, trained.losses, adapter) == (4, undisturbed[0].losses, undisturbed[1])
    assert steps_in(kept) == [4, 6]
    assert find_last_valid(kept).step == 6
    assert not (kept / "checkpoint-6/pytorch_model.bin").exists()


def test_with_none_that_is_whole_it_starts_anew(kept: Path, tmp_path: Path, undisturbed: tuple[Trained, str]) -> None:
    for folder in kept.iterdir():
        DAMAGES["torn"](folder)
    trained, adapter = train(tmp_path, kept)
    assert (trained.resumed_from, adapter) == (None, undisturbed[1])
    assert list(kept.iterdir()) == []


def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    assert find_last_valid(tmp_path / "absent") is None
    for name in ("checkpoint-", "checkpoint-x", "checkpoint-1e3", "checkpoint--4", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-9").write_text("a file")
    assert find_last_valid(tmp_path) is None
    for step in (2, 10, 9_999):  # by number, not by name
        shutil.rmtree(tmp_path / f"checkpoint-{step}", ignore_errors=True)
        (tmp_path / f"checkpoint-{step}").mkdir()
        seal_checkpoint(tmp_path, step, {"losses": []})
    found = find_last_valid(tmp_path)
    assert found == checkpoints.Checkpoint(tmp_path / "checkpoint-9999", 9_999, {"losses": []})
    assert {"checkpoint-10", "checkpoint-x", "checkpoint-9", "other"} < {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "checkpoint-2").exists()


def test_what_is_unsealed_goes_and_counts_for_none_of_the_two(kept: Path) -> None:
    for step in (3, 5, 7):  # a removal that was cut short leaves such folders anywhere
        (kept / f"checkpoint-{step}").mkdir()
    seal_checkpoint(kept, 7, {"losses": []})
    assert steps_in(kept) == [6, 7]
    (kept / "checkpoint-7/manifest.json").unlink()
    checkpoints.prune_checkpoints(kept, 8)
    assert steps_in(kept) == [6]


def test_a_kill_while_sealing_leaves_the_one_before(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = checkpoints.files.write_json, []

    def killed(path: Path, value: Any) -> None:
        written.append(path.name)
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(checkpoints.files, "write_json", killed)
    shutil.copytree(kept / "checkpoint-6", kept / "checkpoint-8", ignore=shutil.ignore_patterns("manifest.json"))
    with pytest.raises(KeyboardInterrupt):
        seal_checkpoint(kept, 8, {"losses": []})
    assert written == ["progress.json", "manifest.json"]
    assert find_last_valid(kept).step == 6
