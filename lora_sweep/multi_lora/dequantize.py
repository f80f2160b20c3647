"""Quantized weights dequantized once and kept, where there is memory for it: the same numbers, without the work.

A 4-bit product is exactly "dequantize, then multiply", at every product anew. An 8-bit one multiplies whole numbers
going forward, which stays; going back it dequantizes, and that is kept.
"""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from lora_sweep.config.schema import Quant
from lora_sweep.model.device import Device, read_free_memory
from lora_sweep.multi_lora.linear import replace_module
from lora_sweep.multi_lora.member_threads import get_member_thread

MAX_FREE_MEMORY_SHARE = 0.5  # of the memory that is free after loading: the rest is the training's


def dequantize_base(base: Any, quant: Quant, device: Device) -> bool:
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
    free = read_free_memory(device)
    fits = free is not None and needed <= MAX_FREE_MEMORY_SHARE * free
    if not layers or quant.materialize == "never" or (quant.materialize == "auto" and not fits):
        return False
    inputs = QuantizedInputs()
    for name, layer in layers.items():
        dense = dequantize_weight(layer, device.compute_dtype)
        replace_module(
            base, name, make_linear(layer, dense) if isinstance(layer, Linear4bit) else Int8Linear(layer, dense, inputs)
        )
    return True


def has_stateless_layers(base: Any) -> bool:
    """Whether no layer of ``base`` is bitsandbytes' own, whose forwards note things in the layer."""
    own = {id(layer.layer) for layer in base.modules() if isinstance(layer, Int8Linear)}
    return not any(isinstance(layer, Linear4bit | Linear8bitLt) and id(layer) not in own for layer in base.modules())


def dequantize_weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """A quantized layer's weight [out, in], as bitsandbytes' own products see it."""
    weight = layer.weight
    if isinstance(layer, Linear4bit):
        dense: torch.Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return dense.to(dtype)
    whole, scale = read_int8_weight(layer)
    return whole.to(dtype).mul_(scale.unsqueeze(1).mul(1.0 / 127.0))


def make_linear(layer: Any, dense: torch.Tensor) -> torch.nn.Linear:
    """A layer that multiplies by ``dense``."""
    with torch.device("meta"):
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = torch.nn.Parameter(dense, requires_grad=False)
    if layer.bias is not None:
        plain.bias = torch.nn.Parameter(layer.bias.data.to(dense.dtype), requires_grad=False)
    return plain.eval()


class Int8Linear(torch.nn.Linear):
    """An 8-bit layer whose gradient goes through a dequantized copy that it keeps as its ``weight``.

    A Linear for PEFT, which puts an adapter on it as on any other.
    """

    def __init__(self, layer: Linear8bitLt, dense: torch.Tensor, inputs: "QuantizedInputs") -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = torch.nn.Parameter(dense, requires_grad=False)
        self.layer, self.inputs = layer, inputs

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """[..., in] to [..., out]."""
        y: torch.Tensor = Int8Product.apply(input, self)  # type: ignore[no-untyped-call]
        return y


class Int8Product(torch.autograd.Function):
    """bitsandbytes' product, and the gradient of its input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Int8Linear) -> Any:
        ctx.dense = layer.weight
        return layer.layer(x) if x.device.type != "cpu" else multiply_on_cpu(x, layer)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0].to(ctx.dense.dtype) @ ctx.dense, None


def multiply_on_cpu(x: torch.Tensor, layer: Int8Linear) -> torch.Tensor:
    """LLM.int8 (arXiv 2208.07339) as bitsandbytes computes it, without its copies."""
    whole, rows, outliers = layer.inputs.quantized(x.reshape(-1, x.shape[-1]), layer.layer.state.threshold)
    weight, scale = read_int8_weight(layer.layer)
    product: torch.Tensor = torch.ops.bitsandbytes.int8_linear_matmul(whole, weight).float()
    # In this order, and 1 / 127 / 127 in these digits: a last bit more or less is another whole number further on.
    y = product.mul_(rows * scale).mul_(6.200124e-05).to(x.dtype)
    if len(outliers):
        y.addmm_(x.reshape(-1, x.shape[-1])[:, outliers], layer.weight[:, outliers].T)
    return y.view(*x.shape[:-1], len(scale))


class QuantizedInputs:
    """A lane's last input as whole numbers: q, k and v, or gate and up, read the same one."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[torch.Tensor, int, Any]] = {}  # by lane

    def quantized(self, x: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [rows, in] as int8, what a row's 127 stands for [rows, 1], and the columns to multiply as they are."""
        if get_member_thread() in self.seen:
            # The input is held, so that no other tensor can lie at its address.
            known, version, found = self.seen[get_member_thread()]
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
        self.seen[get_member_thread()] = x.detach(), x._version, (whole, rows, outliers)
        return whole, rows, outliers


def read_int8_weight(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """An 8-bit layer's whole numbers [out, in], and what 127 stands for in each row [out]."""
    return layer.weight.data, layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
