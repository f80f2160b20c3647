"""Quantized weights dequantized once and kept, where there is memory for it: the same numbers, without the work.

A 4-bit product is exactly "dequantize, then multiply", at every product anew. An 8-bit one multiplies whole numbers
going forward, which stays; going back it dequantizes, and that is kept.
"""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from lora_sweep.config import Quant
from lora_sweep.device import Device, free_memory
from lora_sweep.packed import replace

SHARE = 0.5  # of the memory that is free after loading: the rest is the training's


def materialize(base: Any, quant: Quant, device: Device) -> bool:
    """Replace the quantized layers of ``base`` by such that keep their weights in the compute dtype.

    Returns:
        Whether it did: ``quant.materialize`` says ``always``, or ``auto`` and there is room.
    """
    layers = {
        name: layer
        for name, layer in base.named_modules()
        if isinstance(layer, Linear4bit) or (isinstance(layer, Linear8bitLt) and layer.bias is None)
    }
    needed = sum(layer.in_features * layer.out_features for layer in layers.values()) * device.compute_bytes
    free = free_memory(device)
    fits = free is not None and needed <= SHARE * free
    if not layers or quant.materialize == "never" or (quant.materialize == "auto" and not fits):
        return False
    for name, layer in layers.items():
        dense = dequantized(layer, device.compute_dtype)
        replace(base, name, as_linear(layer, dense) if isinstance(layer, Linear4bit) else EightBit(layer, dense))
    return True


def dequantized(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """A quantized layer's weight [out, in], as bitsandbytes' own products see it."""
    weight = layer.weight
    if isinstance(layer, Linear4bit):
        dense: torch.Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return dense.to(dtype)
    scale = weight.SCB if weight.SCB is not None else layer.state.SCB
    whole: torch.Tensor = weight.data.to(dtype)
    return whole.mul_(scale.unsqueeze(1).mul(1.0 / 127.0))


def as_linear(layer: Any, dense: torch.Tensor) -> torch.nn.Linear:
    """A layer that multiplies by ``dense``."""
    with torch.device("meta"):
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = torch.nn.Parameter(dense, requires_grad=False)
    if layer.bias is not None:
        plain.bias = torch.nn.Parameter(layer.bias.data.to(dense.dtype), requires_grad=False)
    return plain.eval()


class EightBit(torch.nn.Linear):
    """An 8-bit layer whose gradient goes through a dequantized copy that it keeps as its ``weight``.

    A Linear for PEFT, which puts an adapter on it as on any other.
    """

    def __init__(self, layer: Linear8bitLt, dense: torch.Tensor) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = torch.nn.Parameter(dense, requires_grad=False)
        self.layer = layer

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """[..., in] to [..., out]."""
        y: torch.Tensor = EightBitProduct.apply(input, self.layer, self.weight)  # type: ignore[no-untyped-call]
        return y


class EightBitProduct(torch.autograd.Function):
    """bitsandbytes' product, and the gradient of its input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any, dense: torch.Tensor) -> Any:
        ctx.dense = dense
        return layer(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0].to(ctx.dense.dtype) @ ctx.dense, None, None
