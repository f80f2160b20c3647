"""Quantized weights dequantized once and kept, where there is memory for it: the same numbers, without the work.

A 4-bit product is exactly "dequantize, then multiply", at every product anew. An 8-bit one multiplies whole numbers
going forward, which stays; going back it dequantizes, and that is kept.
"""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from lora_sweep.config.schema import Quant
from lora_sweep.model.device import Device, free_memory
from lora_sweep.multi_lora.linear import replace
from lora_sweep.multi_lora.member_threads import lane

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
    inputs = Inputs()
    for name, layer in layers.items():
        dense = dequantized(layer, device.compute_dtype)
        replace(
            base, name, as_linear(layer, dense) if isinstance(layer, Linear4bit) else EightBit(layer, dense, inputs)
        )
    return True


def is_materialized(base: Any) -> bool:
    """Whether no layer of ``base`` is bitsandbytes' own, whose forwards note things in the layer."""
    own = {id(layer.layer) for layer in base.modules() if isinstance(layer, EightBit)}
    return not any(isinstance(layer, Linear4bit | Linear8bitLt) and id(layer) not in own for layer in base.modules())


def dequantized(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """A quantized layer's weight [out, in], as bitsandbytes' own products see it."""
    weight = layer.weight
    if isinstance(layer, Linear4bit):
        dense: torch.Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return dense.to(dtype)
    whole, scale = eight_bits(layer)
    return whole.to(dtype).mul_(scale.unsqueeze(1).mul(1.0 / 127.0))


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

    def __init__(self, layer: Linear8bitLt, dense: torch.Tensor, inputs: "Inputs") -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = torch.nn.Parameter(dense, requires_grad=False)
        self.layer, self.inputs = layer, inputs

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """[..., in] to [..., out]."""
        y: torch.Tensor = EightBitProduct.apply(input, self)  # type: ignore[no-untyped-call]
        return y


class EightBitProduct(torch.autograd.Function):
    """bitsandbytes' product, and the gradient of its input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: EightBit) -> Any:
        ctx.dense = layer.weight
        return layer.layer(x) if x.device.type != "cpu" else on_cpu(x, layer)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0].to(ctx.dense.dtype) @ ctx.dense, None


def on_cpu(x: torch.Tensor, layer: EightBit) -> torch.Tensor:
    """LLM.int8 (arXiv 2208.07339) as bitsandbytes computes it, without its copies."""
    whole, rows, outliers = layer.inputs.quantized(x.reshape(-1, x.shape[-1]), layer.layer.state.threshold)
    weight, scale = eight_bits(layer.layer)
    product: torch.Tensor = torch.ops.bitsandbytes.int8_linear_matmul(whole, weight).float()
    # In this order, and 1 / 127 / 127 in these digits: a last bit more or less is another whole number further on.
    y = product.mul_(rows * scale).mul_(6.200124e-05).to(x.dtype)
    if len(outliers):
        y.addmm_(x.reshape(-1, x.shape[-1])[:, outliers], layer.weight[:, outliers].T)
    return y.view(*x.shape[:-1], len(scale))


class Inputs:
    """A lane's last input as whole numbers: q, k and v, or gate and up, read the same one."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[torch.Tensor, int, Any]] = {}  # by lane

    def quantized(self, x: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [rows, in] as int8, what a row's 127 stands for [rows, 1], and the columns to multiply as they are."""
        if lane() in self.seen:
            known, version, found = self.seen[lane()]  # holds its memory, so that no other tensor can be where it is
            if known.data_ptr() == x.data_ptr() and known.shape == x.shape and version == x._version:
                return found  # type: ignore[no-any-return]
        plain = x.to(torch.float16).float()  # bitsandbytes rounds to fp16 first
        size = plain.abs()
        large = size >= threshold
        outliers = large.any(dim=0).nonzero()[:, 0] if threshold > 0 else large.new_empty(0, dtype=torch.long)
        if len(outliers):
            size = size.masked_fill_(large, 0)
        rows = size.amax(dim=1, keepdim=True)
        whole = plain.mul_(127.0 / rows).round_().to(torch.int8)
        whole[:, outliers] = 0
        self.seen[lane()] = x.detach(), x._version, (whole, rows, outliers)
        return whole, rows, outliers


def eight_bits(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """An 8-bit layer's whole numbers [out, in], and what 127 stands for in each row [out]."""
    return layer.weight.data, layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
