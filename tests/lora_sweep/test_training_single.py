"""Fine-tuning: the same loss as TRL's, the same adapter from the same seed, and nothing left on the base."""

import math
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.here import HERE
from trl import SFTTrainer

from lora_sweep.config.schema import Data, Lora, Model, Quant, Train
from lora_sweep.data.prompts import Example, make_examples
from lora_sweep.data.splits import load_splits
from lora_sweep.errors import Diverged, Refused
from lora_sweep.model.load import base_signature, load_base, load_tokenizer
from lora_sweep.model.sft_settings import make_sft_config
from lora_sweep.multi_lora.peft_format import attach_adapter
from lora_sweep.training.progress import Progress
from lora_sweep.training.single import ResponseTrainer, make_dataset, train_with_trl

TINY = Model(name="tiny", tiny="llama")
DATA = Data(name="tiny", tiny=60, train_rows=16)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(TINY)


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[Example]:
    return make_examples(load_splits(DATA).train, DATA, tokenizer, 128)


def load(bits: int | None = None, model: Model = TINY) -> Any:
    return load_base(model, Quant(bits), HERE)


def losses_of(
    trainer_class: type, base: Any, rows: list[Example], tokenizer: Any, tmp_path: Any, loss_on: str
) -> list[float]:
    model = attach_adapter(base, Lora(dropout=0.0), ["q_proj", "v_proj"], 0)
    kept = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    args = make_sft_config(Train(loss_on=loss_on, max_steps=6), 0, HERE, tmp_path)
    trainer = trainer_class(
        model=model, args=args, train_dataset=make_dataset(rows, loss_on), processing_class=tokenizer
    )
    trainer.device, trainer.progress = HERE, Progress()
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = kept[name]
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_same_loss_as_trl_at_every_step(
    bits: int | None, loss_on: str, rows: Any, tokenizer: Any, tmp_path: Any
) -> None:
    theirs = losses_of(SFTTrainer, load(bits), rows, tokenizer, tmp_path, loss_on)
    ours = losses_of(ResponseTrainer, load(bits), rows, tokenizer, tmp_path, loss_on)
    assert len(ours) == 6
    assert ours == pytest.approx(theirs, rel=1e-4)


def train(
    base: Any, rows: list[Example], tokenizer: Any, tmp_path: Any, seed: int = 0, **changes: Any
) -> tuple[Any, Any]:
    targets = changes.pop("targets", ["q_proj", "v_proj"])
    model = attach_adapter(base, Lora(), targets, seed)
    trained = train_with_trl(model, rows, tokenizer, Train(**{"max_steps": 4, **changes}), seed, HERE, tmp_path)
    return model, trained


def adapter_of(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def test_the_adapter_is_a_function_of_the_seed(rows: Any, tokenizer: Any, tmp_path: Any) -> None:
    first, again, other = (adapter_of(train(load(), rows, tokenizer, tmp_path, seed)[0]) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_trial_leaves_the_base_as_it_was(bits: int | None, rows: Any, tokenizer: Any, tmp_path: Any) -> None:
    base = load(bits)
    before = base_signature(base)
    fresh = adapter_of(train(load(bits), rows, tokenizer, tmp_path)[0])
    model, _ = train(base, rows, tokenizer, tmp_path, targets=["up_proj"])
    with torch.no_grad():  # generating changes nothing either: bitsandbytes would repack 4-bit weights on some CPUs
        model.eval()(input_ids=torch.tensor([rows[0].input_ids], device=HERE.type))
    base = model.unload()
    assert base_signature(base) == before
    assert "forward" not in base.__dict__
    second = adapter_of(train(base, rows, tokenizer, tmp_path)[0])
    assert all(torch.equal(fresh[name], second[name]) for name in fresh), "a second trial on one base differs"


def test_a_changed_base_is_noticed() -> None:
    base = load()
    before = base_signature(base)
    with torch.no_grad():
        base.model.layers[0].mlp.up_proj.weight.add_(1e-9)
    assert base_signature(base) != before


def test_an_adapter_on_the_head_is_trained(rows: Any, tokenizer: Any, tmp_path: Any) -> None:
    before = adapter_of(attach_adapter(load(), Lora(), ["lm_head", "q_proj"], 0))
    model, _ = train(load(), rows, tokenizer, tmp_path, targets=["lm_head", "q_proj"])
    moved = [name for name, weight in adapter_of(model).items() if not torch.equal(weight, before[name])]
    assert any("lm_head.lora_B" in name for name in moved)
    assert "get_output_embeddings" not in model.__dict__


def test_training_lowers_the_loss_and_counts_what_it_saw(rows: Any, tokenizer: Any, tmp_path: Any) -> None:
    steps = []
    model = attach_adapter(load(), Lora(), ["up_proj", "down_proj", "q_proj", "v_proj"], 0)
    settings = Train(num_train_epochs=4, learning_rate=1e-2)
    trained = train_with_trl(model, rows, tokenizer, settings, 0, HERE, tmp_path, lambda *seen: steps.append(seen))
    assert trained.steps == 16 == len(trained.losses) == len(steps)
    assert steps[-1][:2] == (16, 16)
    assert trained.tokens == 4 * sum(len(row.input_ids) for row in rows)
    assert trained.losses[-1]["loss"] < trained.losses[0]["loss"] - 0.2
    assert set(trained.losses[0]) == {"step", "loss", "learning_rate", "grad_norm", "epoch"}
    if HERE.type == "cpu":
        assert trained.gpu_utilization_percent is None


def test_accumulation_is_one_larger_batch(rows: Any, tokenizer: Any, tmp_path: Any) -> None:
    rows = rows[:8]
    _, whole = train(load(), rows, tokenizer, tmp_path, max_steps=2, per_device_train_batch_size=8)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    _, split = train(load(), rows, tokenizer, tmp_path, max_steps=2, **parts)
    assert [v["loss"] for v in split.losses] == pytest.approx([v["loss"] for v in whole.losses], rel=1e-3)


def test_a_loss_that_is_not_finite_ends_the_trial(rows: Any, tokenizer: Any, tmp_path: Any) -> None:
    with pytest.raises(Diverged, match=r"(loss|grad_norm) is (nan|inf) at step \d+ of 4"):
        train(load(), rows, tokenizer, tmp_path, learning_rate=1e30, targets=["up_proj", "down_proj"])


def test_gradient_checkpointing_trains_to_the_same_adapter(rows: Any, tokenizer: Any, tmp_path: Any) -> None:
    plain = adapter_of(train(load(), rows, tokenizer, tmp_path)[0])
    model, trained = train(load(), rows, tokenizer, tmp_path, gradient_checkpointing=True)
    assert math.isfinite(trained.losses[-1]["loss"])
    for name, weight in adapter_of(model).items():
        torch.testing.assert_close(weight, plain[name])


def test_further_sft_keys_reach_trl(rows: Any, tokenizer: Any, tmp_path: Any) -> None:
    assert make_sft_config(Train(sft={"adam_beta2": 0.9}), 0, HERE, tmp_path).adam_beta2 == 0.9
    with pytest.raises(Refused, match=r"train\.sft\.adam_beta22: is no key of TRL's SFTConfig; allowed: adam_beta2"):
        make_sft_config(Train(sft={"adam_beta22": 0.9}), 0, HERE, tmp_path)
