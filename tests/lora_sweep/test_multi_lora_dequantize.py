"""Weights dequantized once: the same numbers going forward and back, and only where there is room."""

import dataclasses
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from support.here import HERE

from lora_sweep.config.schema import Model, Quant
from lora_sweep.model.device import Device, read_free_memory
from lora_sweep.model.load import load_base
from lora_sweep.multi_lora import dequantize as module
from lora_sweep.multi_lora.dequantize import dequantize_base

DTYPES = [torch.float32, torch.bfloat16]


def load(bits: int | None, dtype: torch.dtype, shape: str = "llama") -> tuple[Any, Device]:
    device = dataclasses.replace(HERE, compute_dtype=dtype)
    return load_base(Model(name="tiny", tiny=shape), Quant(bits), device), device


def there_and_back(base: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the gradient of their sum of squares with respect to the embedded tokens."""
    ids = torch.arange(40, device=HERE.type).view(2, 20) + 5
    inputs = base.get_input_embeddings()(ids).detach().requires_grad_(True)
    logits = base(inputs_embeds=inputs).logits
    logits.float().square().sum().backward()
    assert inputs.grad is not None
    return logits.detach().float(), inputs.grad.float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "shape"), [(4, "llama"), (8, "llama"), (4, "gpt_neox"), (8, "phi3")])
def test_the_numbers_of_the_model_are_unchanged(bits: int, shape: str, dtype: torch.dtype) -> None:
    base, device = load(bits, dtype, shape)
    before = there_and_back(base, dtype)
    assert dequantize_base(base, Quant(bits), device)
    assert not any(isinstance(layer, Linear4bit) for layer in base.modules())
    after = there_and_back(base, dtype)
    for old, new in zip(before, after, strict=True):
        assert torch.linalg.vector_norm(new - old) <= 1e-6 * torch.linalg.vector_norm(old)


def test_once_used_eight_bit_layers_too() -> None:
    base, device = load(8, torch.float32)
    plain = there_and_back(base, torch.float32)  # bitsandbytes moves the scales at the first product
    dequantize_base(base, Quant(8), device)
    again = there_and_back(base, torch.float32)
    assert torch.equal(plain[0], again[0])
    torch.testing.assert_close(plain[1], again[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 7])
def test_an_eight_bit_product_with_outliers_is_bitsandbytes_own(rows: int, dtype: torch.dtype) -> None:
    base, device = load(8, dtype)
    layer = base.model.layers[0].mlp.up_proj
    torch.manual_seed(0)
    x = torch.randn(rows, layer.in_features).to(HERE.type, dtype)
    x[0, 3], x[-1, 5] = 9.0, -20.0
    own, other = layer(x), layer(2 * x)
    dequantize_base(base, Quant(8), device)
    kept = base.model.layers[0].mlp
    bound = 1e-6 if dtype == torch.float32 else 2**-8  # a rounding of bf16
    for _ in range(2):  # the second time from the input that was kept
        torch.testing.assert_close(kept.up_proj(x), own, rtol=bound, atol=bound)
        torch.testing.assert_close(kept.gate_proj(x), kept.gate_proj(x.clone()))
    x.mul_(2)  # in place: another input, where the last one was
    torch.testing.assert_close(kept.up_proj(x), other, rtol=bound, atol=2 * bound)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("how", "free", "kept"),
    [
        ("never", 10**12, False),
        ("always", 0, True),
        ("auto", 10**12, True),
        ("auto", 10, False),
        ("auto", None, False),
    ],
)
def test_where_there_is_room(
    bits: int, how: str, free: int | None, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, device = load(bits, torch.float32)
    monkeypatch.setattr(module, "read_free_memory", lambda device: free)
    assert dequantize_base(base, Quant(bits, materialize=how), device) is kept
    quantized = [layer for layer in base.modules() if isinstance(layer, Linear4bit | Linear8bitLt)]
    assert bool(quantized) is (bits == 8 or not kept)


def test_a_base_that_is_not_quantized_is_left_alone() -> None:
    base, device = load(None, torch.float32)
    assert not dequantize_base(base, Quant(materialize="always"), device)


def test_this_machine_tells_how_much_is_free() -> None:
    free = read_free_memory(HERE)
    assert free is not None
    assert 0 < free < 2**50
