"""footprint: trainable parameters, summed by hand and counted by PEFT on the real model, and the memory forecast."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_shapes import ATTN, BIASED, EMBEDDING, LAYER, LAYER_BIASES, TOTAL, hand_facts

from lora_sweep.config.schema import Config, Lora
from lora_sweep.facts.facts import Linear, ModelFacts
from lora_sweep.facts.memory import count_trainable_params, forecast_memory
from lora_sweep.facts.targets import name_target_modules, resolve_targets

GROUPS = ("attn", "mlp", "all_linear", "all_linear_and_head")
SHAPES = sorted(LAYER)
R = 4


def by_hand(shape: str, group: str) -> list[tuple[int, int]]:
    """(in, out) of every matrix of a group, from the table of literal shapes."""
    chosen = {
        "attn": lambda path: path in ATTN[shape],
        "mlp": lambda path: path.startswith("mlp."),
        "all_linear": lambda path: True,
        "all_linear_and_head": lambda path: True,
    }[group]
    layer = [sides for path, sides in LAYER[shape][1].items() if chosen(path)]
    return layer * 2 + ([(64, 512)] if group == "all_linear_and_head" else [])


def extra_by_hand(shape: str, group: str, option: str) -> int:
    """What DoRA or trained biases add to r·(in+out)."""
    outputs = sum(out for _, out in by_hand(shape, group))
    if option == "dora":
        return outputs
    if option == "lora_only":
        head = 512 if group == "all_linear_and_head" else 0
        return outputs - head if shape in BIASED else 0
    if option == "all":
        return 2 * LAYER_BIASES[shape] + 64 if shape in BIASED else 0
    return 0


OPTIONS = {
    "plain": Lora(r=R),
    "dora": Lora(r=R, use_dora=True),
    "rslora": Lora(r=R, use_rslora=True),
    "lora_only": Lora(r=R, bias="lora_only"),
    "all": Lora(r=R, bias="all"),
}


@pytest.fixture(scope="module")
def real_model(tiny_folder: Callable[..., Path]) -> Callable[[str], Any]:
    """A fresh copy of the tiny model of a shape, its head untied, with its weights."""
    loaded: dict[str, Any] = {}

    def model(shape: str) -> Any:
        from transformers import AutoModelForCausalLM

        if shape not in loaded:
            folder = tiny_folder(shape, tie_word_embeddings=False)
            loaded[shape] = AutoModelForCausalLM.from_pretrained(folder)
        return copy.deepcopy(loaded[shape])

    return model


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_trainable_parameters_are_those_of_the_sum_by_hand_and_of_peft(
    shape: str, group: str, option: str, real_model: Callable[[str], Any]
) -> None:
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer

    from lora_sweep.model.load import make_lora_config

    model, lora = hand_facts(shape, tied=False), OPTIONS[option]
    linears = resolve_targets(group, model)
    sides = by_hand(shape, group)
    expected = sum(R * (inward + outward) for inward, outward in sides) + extra_by_hand(shape, group, option)
    assert count_trainable_params(lora, linears, model) == expected

    adapted = get_peft_model(real_model(shape), make_lora_config(lora, name_target_modules(linears, model)))
    assert adapted.get_nb_trainable_parameters()[0] == expected
    base = adapted.get_base_model()
    assert [name for name, part in base.named_modules() if isinstance(part, LoraLayer)] == [x.name for x in linears]


# Literal sums, r = 1: two layers, each matrix in + out.
LITERAL = {
    ("llama", "attn"): 2 * ((64 + 64) + (64 + 32)),
    ("llama", "all_linear"): 2 * (128 + 96 + 96 + 128 + 192 + 192 + 192),
    ("gpt2", "attn"): 2 * 256,
    ("gpt2", "mlp"): 2 * (320 + 320),
    ("phi3", "attn"): 2 * 192,
    ("phi3", "all_linear_and_head"): 2 * (128 + 192 + 320 + 192) + 576,
    ("gpt_neox", "attn"): 2 * 256,
    ("gpt_neox", "all_linear"): 2 * (256 + 128 + 192 + 192),
}


@pytest.mark.parametrize(("shape", "group"), LITERAL)
@pytest.mark.parametrize("r", [1, 8])
def test_literal_sums(shape: str, group: str, r: int) -> None:
    model = hand_facts(shape, tied=False)
    assert count_trainable_params(Lora(r=r), resolve_targets(group, model), model) == r * LITERAL[shape, group]


# --- memory ------------------------------------------------------------------------------------------------------


def config(bits: int | None = None, double_quant: bool = True, **train: Any) -> Config:
    made = Config()
    made.quant.bits, made.quant.double_quant = bits, double_quant
    for key, value in train.items():
        setattr(made.train, key, value)
    return made


MATRICES = 2 * (64 * 64 + 64 * 32 + 64 * 32 + 64 * 64 + 3 * 64 * 128)  # of the tiny Llama, without its head
REST = TOTAL["llama"] - MATRICES


@pytest.mark.parametrize(
    ("bits", "double_quant", "compute_bytes", "expected"),
    [
        (None, True, 4, TOTAL["llama"] * 4),
        (None, True, 2, TOTAL["llama"] * 2),
        (8, True, 2, MATRICES + REST * 2),
        (4, False, 2, MATRICES / 2 + MATRICES / 64 * 4 + REST * 2),  # 4 bits, and an fp32 constant a block of 64
        (4, True, 4, MATRICES * 4.127 / 8 + REST * 4),
    ],
)
def test_weights_take_their_bits_and_the_rest_the_compute_dtype(
    bits: int | None, double_quant: bool, compute_bytes: int, expected: float
) -> None:
    forecast = forecast_memory(config(bits, double_quant), hand_facts("llama"), 0, 64, compute_bytes)
    assert forecast.weights == int(expected)


@pytest.mark.parametrize(("bits", "double_quant"), [(8, True), (4, False)])
def test_quantized_weights_take_what_bitsandbytes_takes(
    bits: int, double_quant: bool, tiny_folder: Callable[..., Path]
) -> None:
    import torch

    from lora_sweep.config.schema import Model, Quant
    from lora_sweep.model.device import Device
    from lora_sweep.model.load import load_base

    model = Model(name="tiny", path=str(tiny_folder("llama")))
    base = load_base(model, Quant(bits, double_quant), Device("cpu", "cpu", torch.float32))
    stored = sum(parameter.nbytes for parameter in base.parameters())
    matrices = [part.weight for name, part in base.named_modules() if name.endswith("_proj")]
    if bits == 4:
        stored += sum(weight.quant_state.absmax.nbytes for weight in matrices)
    forecast = forecast_memory(config(bits, double_quant), hand_facts("llama"), 0, 64, 4)
    assert forecast.weights == stored


def test_an_adapter_takes_weight_gradient_and_two_moments_in_fp32() -> None:
    forecast = forecast_memory(config(), hand_facts("llama"), 1000, 64, 2)
    assert forecast.adapter == 1000 * 4 * 4


def test_activations_and_logits_grow_with_the_tokens_of_a_step() -> None:
    model = hand_facts("llama")
    one = forecast_memory(config(per_device_train_batch_size=1, max_length=256), model, 0, 100, 4)
    assert one.activations == 24 * 100 * 64 * 2 * 4
    assert one.logits == 3 * 100 * 512 * 4
    four = forecast_memory(config(per_device_train_batch_size=4, max_length=256), model, 0, 100, 4)
    assert (four.activations, four.logits) == (4 * one.activations, 4 * one.logits)
    assert (four.weights, four.adapter) == (one.weights, one.adapter)


@pytest.mark.parametrize(("longest_row", "max_length", "tokens"), [(100, 256, 100), (300, 256, 256), (None, 256, 256)])
def test_rows_count_up_to_max_length(longest_row: int | None, max_length: int, tokens: int) -> None:
    made = config(per_device_train_batch_size=1, max_length=max_length)
    assert forecast_memory(made, hand_facts("llama"), 0, longest_row, 4).logits == 3 * tokens * 512 * 4


def test_gradient_checkpointing_and_bits_make_it_smaller_and_the_total_is_the_sum() -> None:
    model = hand_facts("llama")
    plain = forecast_memory(config(), model, 500, 100, 4)
    checkpointed = forecast_memory(config(gradient_checkpointing=True), model, 500, 100, 4)
    assert checkpointed.activations * 24 == plain.activations
    assert plain.total == plain.weights + plain.adapter + plain.activations + plain.logits
    by_bits = [forecast_memory(config(bits), model, 500, 100, 4).total for bits in (4, 8, None)]
    assert by_bits == sorted(set(by_bits))


@pytest.mark.parametrize(
    ("bits", "how", "copies"),
    [(4, "auto", MATRICES * 2), (8, "auto", MATRICES * 2), (4, "never", 0), (None, "auto", 0), (None, "always", 0)],
)
def test_copies_that_a_worker_may_make_are_said_beside_the_total(bits: int | None, how: str, copies: int) -> None:
    made = config(bits)
    made.quant.materialize = how
    forecast = forecast_memory(made, hand_facts("llama"), 500, 100, 2)
    assert forecast.materialized == copies
    assert forecast.base == forecast.weights
    assert forecast.total == forecast.weights + forecast.adapter + forecast.activations + forecast.logits


def test_copies_that_it_makes_in_any_case_are_in_the_total() -> None:
    plain, always = config(8), config(8)
    always.quant.materialize = "always"
    before, after = (forecast_memory(each, hand_facts("llama"), 500, 100, 4) for each in (plain, always))
    assert after.total - before.total == after.base - before.base == MATRICES * 4


def test_the_blog_s_model_in_4_bits_fits_into_a_small_gpu() -> None:
    """OpenLLaMA-3B: 3.22e9 numbers in matrices at 4.127 bits, and embedding and head in bf16: 2.1 GB in all."""
    hidden, inner, vocabulary = 3200, 8640, 32000
    layer = [Linear(f"model.layers.{n}.x{i}", hidden, hidden) for n in range(26) for i in range(4)]
    layer += [Linear(f"model.layers.{n}.y{i}", hidden, inner) for n in range(26) for i in range(3)]
    total = 26 * (4 * hidden**2 + 3 * hidden * inner) + 2 * vocabulary * hidden + 53 * hidden
    model = ModelFacts(
        fingerprint="x",
        model_type="llama",
        linears=[*layer, Linear("lm_head", hidden, vocabulary)],
        attn=[],
        mlp=[],
        head="lm_head",
        tied_head=False,
        total_params=total,
        bias_params=0,
        hidden_size=hidden,
        layers=26,
        vocab_size=vocabulary,
    )
    weights = forecast_memory(config(4), model, 0, 256, 2).weights
    assert weights == pytest.approx(2.07e9, rel=0.01)
    assert forecast_memory(config(None), model, 0, 256, 2).weights == 2 * total


def test_a_tied_head_is_counted_once() -> None:
    untied, tied = hand_facts("llama", tied=False), hand_facts("llama", tied=True)
    assert untied.total_params - tied.total_params == EMBEDDING
    difference = (forecast_memory(config(4), facts, 0, 64, 2).weights for facts in (untied, tied))
    assert next(difference) - next(difference) == 2 * EMBEDDING
