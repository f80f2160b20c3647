"""Packs: the same losses as TRL at every step, and each member trains as if it were alone, whatever the others do."""

import dataclasses
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support.here import HERE
from trl import SFTTrainer

from lora_sweep.config.schema import Data, Lora, Model, Quant, Train
from lora_sweep.data.prompts import Example, make_examples
from lora_sweep.data.splits import load_splits
from lora_sweep.errors import Diverged, Preempted
from lora_sweep.generation.packed_base import find_ragged_batch_problem
from lora_sweep.model.device import Device
from lora_sweep.model.load import base_signature, load_base, load_tokenizer
from lora_sweep.model.sft_settings import make_sft_config
from lora_sweep.multi_lora import segments
from lora_sweep.multi_lora.dropout import draw_dropped, join_dropped, zero_dropped
from lora_sweep.multi_lora.head_loss import compute_head_loss
from lora_sweep.multi_lora.peft_format import attach_adapter, create_adapter, export_tensors
from lora_sweep.training import pack_step, packed
from lora_sweep.training.member import MemberTraining, PackMember
from lora_sweep.training.packed import find_trl_reason, train_pack
from lora_sweep.training.progress import Trained
from lora_sweep.training.single import make_dataset, train_with_trl

DATA = Data(name="tiny", tiny=60, train_rows=16)
ATTN = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTN, "gate_proj", "up_proj", "down_proj"]
STEP_MODES = ["batched", "parallel"] if HERE.type == "cpu" else ["batched"]
TARGETS = {  # by the shape of the model: of its attention, and all linear ones
    "llama": (ATTN, ALL),
    "gpt2": (["c_attn"], ["c_attn", "c_fc", "c_proj"]),
    "phi3": (["qkv_proj"], ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    "gpt_neox": (["query_key_value"], ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(Model(name="tiny", tiny="llama"))


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[Example]:
    return make_examples(load_splits(DATA).train, DATA, tokenizer, 128)


def load(bits: int | None = None, shape: str = "llama") -> Any:
    base = load_base(Model(name="tiny", tiny=shape), Quant(bits), HERE)
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # GPT-2 has dropout of its own
    return base


def member(
    base: Any, rows: list[Example], targets: list[str], lora: dict[str, Any] | None = None, **train: Any
) -> PackMember:
    seed = train.pop("seed", 0)
    more = {key: train.pop(key) for key in ("checkpoints", "stop") if key in train}
    settings = Train(**{"max_steps": 6, "learning_rate": 1e-2, **train})
    adapter, _ = create_adapter(base, Lora(**{"dropout": 0.0, "r": 4, **(lora or {})}), targets, seed)
    return PackMember(adapter, rows, settings, seed, **more)


def losses(trained: Any) -> list[float]:
    assert isinstance(trained, Trained), trained
    return [step["loss"] for step in trained.losses]


@pytest.mark.parametrize(
    ("bits", "shape", "loss_on"),
    [
        *[(bits, "llama", loss_on) for bits in (None, 4, 8) for loss_on in ("response", "all")],
        *[(None, shape, loss_on) for shape in ("phi3", "gpt_neox") for loss_on in ("response", "all")],
        (None, "gpt2", "response"),  # under `all` transformers divides GPT-2's loss by one label too many a row
    ],
)
def test_same_losses_as_trl_for_20_steps(
    bits: int | None, shape: str, loss_on: str, rows: Any, tokenizer: Any, tmp_path: Path
) -> None:
    settings = Train(max_steps=20, learning_rate=1e-2, loss_on=loss_on, weight_decay=0.1, warmup_steps=3)
    base = load(bits, shape)
    model = attach_adapter(base, Lora(r=4, dropout=0.0), TARGETS[shape][1], 0)
    drawn = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    trainer = SFTTrainer(
        model=model,
        args=make_sft_config(settings, 0, HERE, tmp_path),
        train_dataset=make_dataset(rows, loss_on),
        processing_class=tokenizer,
    )
    for name, parameter in model.named_parameters():
        if name in drawn:
            parameter.data = drawn[name]
    trainer.train()
    theirs = [entry for entry in trainer.state.log_history if "loss" in entry]
    base = load(bits, shape)
    ours = member(base, rows, TARGETS[shape][1], **dataclasses.asdict(settings))
    (trained,) = train_pack(base, [ours], HERE, tmp_path)
    assert isinstance(trained, Trained)
    bounds = {"loss": 1e-3, "grad_norm": 1e-2, "learning_rate": 1e-9, "epoch": 1e-9}
    if bits == 8:  # LLM.int8 finds its outliers among all tokens of a product, and padding has none here
        bounds |= {"loss": 0.03, "grad_norm": 0.15}
    for key, bound in bounds.items():
        found, expected = [step[key] for step in trained.losses], [entry[key] for entry in theirs]
        assert found == pytest.approx(expected, rel=bound), key


# --- each member as if alone -----------------------------------------------------------------------------------------


def copies(base: Any, kinds: list[dict[str, Any]], rows: list[Example]) -> list[PackMember]:
    """A member of each kind, with a new adapter."""
    return [member(base, rows, **{"targets": ATTN, **kind}) for kind in kinds]


def alone(bits: int | None, kind: dict[str, Any], rows: list[Example], tmp_path: Path) -> tuple[PackMember, Any]:
    base = load(bits)
    (one,) = copies(base, [kind], rows)
    (trained,) = train_pack(base, [one], HERE, tmp_path)
    return one, trained


DIFFERENT: list[dict[str, Any]] = [
    {"lora": {"r": 2, "dropout": 0.1}, "max_steps": 20},
    {"lora": {"r": 8, "alpha": 4.0}, "targets": ALL, "seed": 3, "learning_rate": 3e-3, "max_steps": 20},
    {"lora": {"r": 4, "dropout": 0.2, "use_rslora": True}, "targets": [*ALL, "lm_head"], "loss_on": "all"},
    {"targets": ["down_proj"], "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 9},
    {"weight_decay": 0.3, "max_grad_norm": 0.1, "lr_scheduler_type": "cosine", "warmup_steps": 2, "max_steps": 20},
    {"optim": "sgd", "learning_rate": 1.0, "train_sampling_strategy": "group_by_length", "num_train_epochs": 2.5},
]


@pytest.fixture(scope="module", params=[None, 4])
def reference(request: Any, rows: list[Example], tmp_path_factory: Any) -> tuple[int | None, list[Any]]:
    """The bits of a base, and what each of DIFFERENT trained alone on it: (its member, its outcome)."""
    folder = tmp_path_factory.mktemp("alone")
    return request.param, [alone(request.param, kind, rows, folder) for kind in DIFFERENT]


@pytest.fixture(params=["stacked", "by segment"])
def forwards(request: Any, monkeypatch: Any) -> None:
    """Two ways to compute one forward for all members: as on an accelerator, and as on a CPU."""
    monkeypatch.setattr(packed, "find_max_tokens", lambda *seen: 10**9)
    monkeypatch.setattr(segments, "MAX_STACKED_ROWS", 0 if request.param == "by segment" else 10**9)


@pytest.mark.parametrize("mode", [*STEP_MODES, None])
def test_each_member_trains_as_if_alone(reference: Any, forwards: None, mode: Any, rows: Any, tmp_path: Path) -> None:
    bits, lonely = reference
    base = load(bits)
    before = base_signature(base)
    members = copies(base, DIFFERENT, rows)
    ended = train_pack(base, members, HERE, tmp_path, mode)
    assert base_signature(base) == before
    assert base.config._attn_implementation != "lora_sweep"
    for one, trained, (other, expected) in zip(members, ended, lonely, strict=True):
        assert losses(trained) == pytest.approx(losses(expected), rel=1e-4)
        assert trained.tokens == expected.tokens
        assert torch.linalg.vector_norm(one.adapter.numbers - other.adapter.numbers) < 1e-4 * torch.linalg.vector_norm(
            other.adapter.numbers
        )


# One step of plain gradient descent with this rate moves the numbers by the gradient.
ONE_STEP = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}


def draw_numbers(one: PackMember) -> torch.Tensor:
    """Put the same random numbers into an adapter each time, and return a copy: B = 0 would hide A's gradient."""
    numbers = torch.randn(one.adapter.numbers.shape, generator=torch.Generator().manual_seed(one.seed)) * 0.05
    return one.adapter.numbers.copy_(numbers).clone()


@pytest.fixture(scope="module")
def gradient_alone(rows: list[Example], tmp_path_factory: Any) -> Any:
    """``gradient_alone(bits, kind)``: the gradient of a member that trains alone, computed once."""
    folder, gradients = tmp_path_factory.mktemp("gradients"), {}

    def compute(bits: int | None, kind: dict[str, Any]) -> torch.Tensor:
        key = (bits, str(kind))
        if key not in gradients:
            base = load(bits)
            (one,) = copies(base, [{**kind, **ONE_STEP}], rows)
            start = draw_numbers(one)
            train_pack(base, [one], HERE, folder)
            gradients[key] = start - one.adapter.numbers
        return gradients[key]

    return compute


@pytest.mark.usefixtures("forwards")
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("r", [2, 8])
@pytest.mark.parametrize("targets", [ATTN, ALL], ids=["attn", "all_linear"])
@pytest.mark.parametrize("mode", STEP_MODES)
def test_the_gradients_are_those_of_training_alone(
    mode: Any, r: int, targets: list[str], bits: int | None, rows: Any, gradient_alone: Any, tmp_path: Path
) -> None:
    kinds = [{"lora": {"r": r}, "targets": targets, "seed": seed} for seed in (1, 2)] + [{"targets": ["v_proj"]}]
    base = load(bits)
    members = copies(base, [{**kind, **ONE_STEP} for kind in kinds], rows)
    starts = [draw_numbers(one) for one in members]
    train_pack(base, members, HERE, tmp_path, mode)
    for kind, one, start in zip(kinds, members, starts, strict=True):
        gradient, expected = start - one.adapter.numbers, gradient_alone(bits, kind)
        assert torch.linalg.vector_norm(expected) > 0.01
        assert torch.linalg.vector_norm(gradient - expected) <= 1e-5 * torch.linalg.vector_norm(expected)


def test_the_gradients_are_those_that_peft_has(rows: Any, tokenizer: Any, tmp_path: Path) -> None:
    base = load()
    one = member(base, rows, ALL, max_steps=1, optim="sgd", learning_rate=1.0, max_grad_norm=0.0, seed=4)
    start = one.adapter.numbers.normal_(0, 0.05).clone()
    model = attach_adapter(load(), Lora(r=4, dropout=0.0), ALL, 4)
    weights = export_tensors(one.adapter)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(weights[name.replace(".default", "")])
    train_pack(base, [one], HERE, tmp_path)
    settings = Train(max_steps=1, optim="sgd", learning_rate=1.0, max_grad_norm=0.0)
    train_with_trl(model, rows, tokenizer, settings, 4, HERE, tmp_path)
    after = {name.replace(".default", ""): p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
    ours = export_tensors(one.adapter)
    for name, weight in weights.items():
        assert torch.linalg.vector_norm(after[name] - ours[name]) <= 1e-5 * torch.linalg.vector_norm(
            after[name] - weight
        )
    assert not torch.equal(start, one.adapter.numbers)


@pytest.mark.usefixtures("forwards")
@pytest.mark.parametrize("mode", STEP_MODES)
def test_a_member_that_diverges_leaves_and_the_others_go_on(mode: Any, rows: Any, tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"learning_rate": 1e30, "targets": ["gate_proj", "up_proj", "down_proj"]},
        {"seed": 1},
    ]
    base = load()
    first, wild, last = train_pack(base, copies(base, kinds, rows), HERE, tmp_path, mode)
    assert isinstance(wild, Diverged)
    assert "at step" in str(wild)
    assert losses(first) == pytest.approx(losses(alone(None, kinds[0], rows, tmp_path)[1]), rel=1e-5)
    assert losses(last) == pytest.approx(losses(alone(None, kinds[2], rows, tmp_path)[1]), rel=1e-5)


@pytest.mark.parametrize("mode", STEP_MODES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_members_stop_save_and_go_on_alone_or_in_another_pack(
    dropout: float, mode: Any, rows: Any, tmp_path: Path
) -> None:
    kinds: list[dict[str, Any]] = [{"lora": {"dropout": dropout}, "seed": seed, "max_steps": 8} for seed in (0, 1)]
    base, asked = load(), []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 6  # called by both at every step

    halted = copies(
        base, [{**kind, "checkpoints": tmp_path / str(i), "stop": stop} for i, kind in enumerate(kinds)], rows
    )
    for outcome in train_pack(base, halted, HERE, tmp_path, mode):
        assert isinstance(outcome, Preempted)
        assert "saved at step" in str(outcome)
    whole = [alone(None, kind, rows, tmp_path)[0].adapter.numbers for kind in kinds]
    base = load()
    (first,) = copies(base, [{**kinds[0], "checkpoints": tmp_path / "0"}], rows)
    (trained,) = train_pack(base, [first], HERE, tmp_path)
    assert isinstance(trained, Trained)
    assert trained.resumed_from is not None
    assert trained.resumed_from == 4 if mode == "batched" else 0 < trained.resumed_from < 8
    assert (trained.steps, len(trained.losses)) == (8, 8)
    second, other = copies(
        base, [{**kinds[1], "checkpoints": tmp_path / "1"}, {"targets": ["o_proj"], "seed": 9}], rows
    )
    again, _ = train_pack(base, [second, other], HERE, tmp_path, mode)
    assert isinstance(again, Trained)
    assert again.resumed_from is not None
    for one, numbers in ((first, whole[0]), (second, whole[1])):
        assert torch.linalg.vector_norm(one.adapter.numbers - numbers) < 1e-5 * torch.linalg.vector_norm(numbers)


def test_trl_ignores_the_checkpoints_of_a_pack_and_a_pack_those_of_trl(
    rows: Any, tokenizer: Any, tmp_path: Path
) -> None:
    kept, base = tmp_path / "kept", load()
    model = attach_adapter(base, Lora(r=4, dropout=0.0), ATTN, 0)
    with pytest.raises(Preempted):
        train_with_trl(
            model, rows, tokenizer, Train(max_steps=4), 0, HERE, tmp_path, checkpoints=kept, stop=lambda: True
        )
    base = load()
    (one,) = copies(base, [{"checkpoints": kept, "stop": lambda: True}], rows)
    assert isinstance(train_pack(base, [one], HERE, tmp_path)[0], Preempted)
    assert one.adapter.numbers.isfinite().all()
    model = attach_adapter(load(), Lora(r=4, dropout=0.0), ATTN, 0)
    trained = train_with_trl(model, rows, tokenizer, Train(max_steps=4), 0, HERE, tmp_path, checkpoints=kept)
    assert trained.resumed_from is None


def test_dropout_depends_on_the_seed_and_the_step_and_has_the_right_share(rows: Any, tmp_path: Path) -> None:
    plain, one, again, other = (
        losses(alone(None, {"lora": {"dropout": dropout}, "seed": seed}, rows, tmp_path)[1])
        for dropout, seed in ((0.0, 0), (0.5, 0), (0.5, 0), (0.5, 1))
    )
    assert one == (again if HERE.type == "cpu" else pytest.approx(again, rel=1e-5))  # atomic sums there
    assert one[1:] != pytest.approx(plain[1:], rel=1e-6)
    assert one != other
    x = torch.ones(1000, 1000)
    for dtype in (torch.float32, torch.bfloat16):
        masks = [draw_dropped(x.to(dtype), 0.05, seed) for seed in (1, 2)]
        kept_numbers = [zero_dropped(x.to(dtype), mask).float() for mask in masks]
        assert kept_numbers[0].unique().tolist() == [0.0, 1.0]
        assert float(kept_numbers[0].mean()) == pytest.approx(0.95, abs=0.001)  # 5 standard errors
        both = float((kept_numbers[0] * kept_numbers[1]).mean())
        assert both == pytest.approx(0.95**2, abs=0.0015), "two seeds drop the same numbers"


@pytest.mark.parametrize("shares", [(0.1, 0.05), (0.1, 0.5), (0.5, 0.3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_masks_drop_the_same_numbers_as_separate_ones(shares: tuple[float, float], dtype: torch.dtype) -> None:
    rows = torch.randn(12, 40, dtype=dtype, device=HERE.type)
    spans = ((2, 5), (5, 12))
    drawn = [draw_dropped(rows[begin:end], share, begin) for (begin, end), share in zip(spans, shares, strict=True)]
    found = zero_dropped(rows, join_dropped(rows, [(*span, each) for span, each in zip(spans, drawn, strict=True)]))
    assert torch.equal(found[:2], rows[:2])
    for (begin, end), each in zip(spans, drawn, strict=True):
        assert torch.equal(found[begin:end], zero_dropped(rows[begin:end], each))
        assert 0 < int((found[begin:end] == 0).sum()) < found[begin:end].numel()


def test_gradient_checkpointing_changes_no_number(rows: Any, tmp_path: Path) -> None:
    kind: dict[str, Any] = {"lora": {"dropout": 0.3}, "targets": ALL}
    kept_all, spared = (
        alone(None, {**kind, "gradient_checkpointing": saving}, rows, tmp_path)[0].adapter.numbers
        for saving in (False, True)
    )
    if HERE.type == "cpu":
        assert torch.equal(kept_all, spared)
    torch.testing.assert_close(kept_all, spared, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["batched", "sequential"])
def test_gradient_checkpointing_works_in_a_thread_of_autograd(
    mode: Any, rows: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    kinds: list[dict[str, Any]] = [
        {"lora": {"dropout": 0.3}, "targets": ALL, "gradient_checkpointing": True, "seed": seed} for seed in (0, 1)
    ]
    expected = [alone(None, kind, rows, tmp_path)[0].adapter.numbers for kind in kinds]
    backward, base = torch.autograd.backward, load()
    members = copies(base, kinds, rows)
    with ThreadPoolExecutor(1) as threads:  # as on a GPU
        monkeypatch.setattr(torch.autograd, "backward", lambda loss: threads.submit(backward, loss).result())
        train_pack(base, members, HERE, tmp_path, mode)
    for one, numbers in zip(members, expected, strict=True):
        torch.testing.assert_close(one.adapter.numbers, numbers, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("saving", [False, True])
def test_gradient_checkpointing_keeps_no_layers_inputs(
    saving: bool, rows: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    made: list[Any] = []
    alive: list[int] = []

    def drawn(*arguments: Any) -> torch.Tensor:
        mask = draw_dropped(*arguments)
        made.append(weakref.ref(mask))
        return mask

    def loss(*arguments: Any) -> Any:
        alive.append(sum(mask() is not None for mask in made))
        return compute_head_loss(*arguments)

    monkeypatch.setattr(segments, "draw_dropped", drawn)
    monkeypatch.setattr(pack_step, "compute_head_loss", loss)
    kind: dict[str, Any] = {"lora": {"dropout": 0.3}, "targets": ALL, "gradient_checkpointing": saving, "max_steps": 2}
    alone(None, kind, rows, tmp_path)
    assert alive == ([1, 1] if saving else [8, 8])  # two layers with four inputs each; the last input is still held


def test_the_parts_of_a_batch_change_no_number(rows: Any, tmp_path: Path) -> None:
    """A trial that ran out of memory trains with smaller micro-batches."""
    whole, parts = (
        losses(
            alone(
                None, {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}, rows, tmp_path
            )[1]
        )
        for size in (4, 1)
    )
    assert parts == pytest.approx(whole, rel=1e-5)


def test_a_forward_for_several_members_fills_half_of_the_free_memory(
    rows: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    base = load()
    trainings = [MemberTraining(one, HERE, tmp_path) for one in copies(base, [{}, {"seed": 1}], rows)]
    least = 4 * max(len(row.input_ids) for row in rows)
    layer = (
        2 * 2 * (4 * 64 + 2 * (64 + 32) + 3 * (64 + 128))
    )  # two layers, twice: inputs and outputs of q, o; k, v; mlp
    for kind, free, expected in (
        ("cpu", 10**12, least),
        ("cuda", 10**9, int(0.5 * 10**9 / 4 / layer)),
        ("cuda", 10**3, least),
        ("mps", None, least),
    ):
        monkeypatch.setattr(pack_step, "read_free_memory", lambda device, free=free: free)
        assert pack_step.find_max_tokens(base, trainings, Device(kind, kind, torch.float32)) == expected


def test_a_forward_holds_no_more_tokens_than_the_largest_micro_batch(
    rows: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    sizes: list[int] = []
    flatten = pack_step.concatenate_rows

    def spy(*arguments: Any) -> Any:
        batch = flatten(*arguments)
        sizes.append(batch.input_ids.shape[1])
        return batch

    monkeypatch.setattr(pack_step, "concatenate_rows", spy)
    monkeypatch.setattr(pack_step, "read_free_memory", lambda device: None)
    base = load()
    train_pack(
        base,
        copies(base, [{"seed": size, "per_device_train_batch_size": size} for size in (4, 1, 1, 1, 1)], rows),
        HERE,
        tmp_path,
        "batched",
    )
    longest = max(len(row.input_ids) for row in rows)
    assert max(sizes) <= 4 * longest
    assert len(sizes) <= 3 * 6, "no forward had two members"


# --- what TRL must train ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "lora", "reason"),
    [
        ({}, {}, None),
        ({"sft": {"adam_beta2": 0.9}, "optim": "sgd", "lr_scheduler_type": "cosine"}, {"use_rslora": True}, None),
        ({"sft": {"neftune_noise_alpha": 5}}, {}, "train.sft.neftune_noise_alpha"),
        ({"optim": "adafactor"}, {}, "train.optim=adafactor"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, {}, "train.lr_scheduler_type=reduce_lr_on_plateau"),
        ({}, {"use_dora": True}, "lora.use_dora"),
        ({}, {"bias": "all"}, "lora.bias=all"),
    ],
)
def test_trl_trains_what_the_loop_does_not_support(train: Any, lora: Any, reason: str | None, rows: Any) -> None:
    assert find_trl_reason(Train(**train), Lora(**lora), load(), rows) == reason


def test_trl_trains_a_base_with_dropout_or_a_short_attention_window(rows: Any) -> None:
    gpt2 = load_base(Model(name="tiny", tiny="gpt2"), Quant(), HERE)
    assert find_trl_reason(Train(), Lora(), gpt2, rows) == "a base model with dropout"
    base = load()
    base.config.sliding_window = 20
    assert find_trl_reason(Train(), Lora(), base, rows) == "a base that looks back 20 tokens"


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_a_base_that_needs_padded_rows_is_detected(bits: int | None, rows: Any) -> None:
    base = load(bits)
    assert find_ragged_batch_problem(base, rows, HERE) is None
    head, forward = base.get_output_embeddings(), base.forward

    def scaled(*arguments: Any, **named: Any) -> Any:
        outputs = forward(*arguments, **named)
        outputs.logits = outputs.logits * 1.5
        return outputs

    base.forward = scaled
    assert "logits are" in (find_ragged_batch_problem(base, rows, HERE) or "")
    del base.forward
    head.forward = lambda states: 1 / 0
    assert find_ragged_batch_problem(base, rows, HERE) == "ZeroDivisionError: division by zero"
