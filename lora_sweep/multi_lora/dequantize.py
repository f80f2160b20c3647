"""Quantized weights, dequantized once and kept where there is memory: the same numbers without repeated work.

A 4-bit layer dequantizes its weight and then multiplies, again at every product. An 8-bit layer multiplies whole
numbers in the forward, which stays so: LLM.int8 rounds its inputs too, and another product would be another model. In
the backward it dequantizes its weight, and that copy is kept.

Dimensions: rows: tokens of all members; in, out: sizes of a layer's input and output.
"""

from typing import Any, NamedTuple

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from lora_sweep.config.schema import Quant
from lora_sweep.model.device import Device, read_free_memory
from lora_sweep.multi_lora.linear import replace_module
from lora_sweep.multi_lora.member_threads import get_member_thread

MAX_FREE_MEMORY_SHARE = 0.5  # of the memory that is free after loading; the training needs the rest


def dequantize_base(base: Any, quant: Quant, device: Device) -> bool:
    """Replace the quantized layers of ``base`` by layers that keep their weights in the compute dtype.

    Returns:
        Whether they were replaced: ``quant.materialize`` is ``always``, or it is ``auto`` and there is room.
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
    input_cache = QuantizedInputCache()
    for name, layer in layers.items():
        weight = dequantize_weight(layer, device.compute_dtype)
        if isinstance(layer, Linear8bitLt):
            replace_module(base, name, Int8Linear(layer, weight, input_cache))
        else:
            replace_module(base, name, make_linear(layer, weight))
    return True


def has_stateless_layers(base: Any) -> bool:
    """Whether no layer of ``base`` keeps state in a forward, as bitsandbytes' own do: two forwards can run at once."""
    wrapped = {id(layer.layer) for layer in base.modules() if isinstance(layer, Int8Linear)}
    return not any(
        isinstance(layer, Linear4bit | Linear8bitLt) and id(layer) not in wrapped for layer in base.modules()
    )


def dequantize_weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """A quantized layer's weight [out, in] in ``dtype``, as bitsandbytes' own products see it."""
    if isinstance(layer, Linear4bit):
        packed: Any = layer.weight
        weight: torch.Tensor = dequantize_4bit(packed.data, packed.quant_state)
        return weight.to(dtype)
    int8, row_max = read_int8_weight(layer)
    return int8.to(dtype).mul_(row_max.unsqueeze(1).mul(1.0 / 127.0))


def make_linear(layer: Any, weight: torch.Tensor) -> torch.nn.Linear:
    """A frozen layer like ``layer`` that multiplies by ``weight`` [out, in]."""
    with torch.device("meta"):
        linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        linear.bias = torch.nn.Parameter(layer.bias.data.to(weight.dtype), requires_grad=False)
    return linear.eval()


class Int8Linear(torch.nn.Linear):
    """An 8-bit layer that sends gradients through a dequantized copy, which is its ``weight``.

    It is a Linear, so that PEFT puts an adapter on it as on any other.
    """

    def __init__(self, layer: Linear8bitLt, weight: torch.Tensor, input_cache: "QuantizedInputCache") -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.layer, self.input_cache = layer, input_cache

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """[..., in] to [..., out]."""
        y: torch.Tensor = Int8Product.apply(input, self)  # type: ignore[no-untyped-call]
        return y


class Int8Product(torch.autograd.Function):
    """LLM.int8 (arXiv 2208.07339) as bitsandbytes computes it, and the gradient of its input.

    Forward: ``y = x[:, outliers] @ W[:, outliers].T + (q_x @ q_W.T) * max_x * max_W / 127²``, with q rounded to int8.
    Backward: ``dx = dy @ W``, with W dequantized.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Int8Linear) -> Any:
        ctx.weight = layer.weight
        return layer.layer(x) if x.device.type != "cpu" else multiply_on_cpu(x, layer)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0].to(ctx.weight.dtype) @ ctx.weight, None


def multiply_on_cpu(x: torch.Tensor, layer: Int8Linear) -> torch.Tensor:
    """The product of x [..., in] with an 8-bit layer: bitsandbytes' numbers to the last bit, with fewer copies."""
    x_rows = x.reshape(-1, x.shape[-1])  # [rows, in]
    int8_x, x_max, outliers = layer.input_cache.quantize_rows(x_rows, layer.layer.state.threshold)
    int8_weight, weight_max = read_int8_weight(layer.layer)
    y_int: torch.Tensor = torch.ops.bitsandbytes.int8_linear_matmul(int8_x, int8_weight).float()  # [rows, out]
    # In this order, and 1 / 127² in these digits: another last bit here is another int8 in the next layers.
    y = y_int.mul_(x_max * weight_max).mul_(6.200124e-05).to(x.dtype)
    if len(outliers):
        y.addmm_(x_rows[:, outliers], layer.weight[:, outliers].T)
    return y.view(*x.shape[:-1], len(weight_max))


class Int8Input(NamedTuple):
    """A quantized input: int8 [rows, in], each row's greatest size [rows, 1], columns that are left out of int8."""

    int8: torch.Tensor
    row_max: torch.Tensor
    outliers: torch.Tensor


class QuantizedInputCache:
    """The last input of each member thread as int8: q, k and v, or gate and up, read the same one."""

    def __init__(self) -> None:
        self.inputs: dict[int, tuple[torch.Tensor, int, Int8Input]] = {}  # by member thread: input, its version, int8

    def quantize_rows(self, x: torch.Tensor, threshold: float) -> Int8Input:
        """Quantize x [rows, in] row by row; columns with a number of ``threshold`` or more are outliers."""
        thread = get_member_thread()
        if thread in self.inputs:
            # The last input is held here, so that no other tensor can lie at its address.
            last_x, version, quantized = self.inputs[thread]
            if last_x.data_ptr() == x.data_ptr() and last_x.shape == x.shape and version == x._version:
                return quantized
        rounded = x.to(torch.float16).float()  # bitsandbytes rounds to fp16 first
        size = rounded.abs()
        is_large = size >= threshold
        outliers = is_large.any(dim=0).nonzero()[:, 0] if threshold > 0 else is_large.new_empty(0, dtype=torch.long)
        if len(outliers):
            size = size.masked_fill_(is_large, 0)
        row_max = size.amax(dim=1, keepdim=True)  # [rows, 1]
        int8 = rounded.mul_(127.0 / row_max).round_().to(torch.int8)  # [rows, in]
        int8[:, outliers] = 0
        quantized = Int8Input(int8, row_max, outliers)
        self.inputs[thread] = x.detach(), x._version, quantized
        return quantized


def read_int8_weight(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """An 8-bit layer's int8 weight [out, in], and the size that 127 stands for in each row [out]."""
    return layer.weight.data, layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
