"""Linear layers of one frozen base under several adapters at once.

A layer's input holds the rows of all members of a pack. The frozen weight multiplies all rows in one product; each
segment of rows (segments.py) is multiplied by its own adapter's matrices. Layers that read one input (q, k and v; gate
and up) are one node of autograd's graph.

Dimensions: rows: tokens or texts of all members; r: an adapter's rank; c: ranks of all matrices A in a stack, added
up; in, out: sizes of a layer's input and output.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lora_sweep.multi_lora.adapter import Adapter
from lora_sweep.multi_lora.dropout import zero_dropped
from lora_sweep.multi_lora.segments import AdapterMap


class PackedLinear(torch.nn.Module):
    """A frozen linear layer that adds to each segment of its input's rows that segment's LoRA update.

    Attributes:
        input_group: the layers that read the same input, if this one is the first of them; else the layer alone.
    """

    def __init__(self, name: str, base_layer: Any, adapter_map: AdapterMap) -> None:
        super().__init__()
        self.name, self.base_layer, self.adapter_map = name, base_layer, adapter_map
        self.input_group: list[PackedLinear] = [self]

    @property
    def weight(self) -> Any:
        """The base layer's weight: some models look at it."""
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]. The first layer to read an input makes the outputs of all that read it."""
        adapter_map = self.adapter_map.select_thread()
        if adapter_map.input is not x:
            adapter_map.forget_input()
            adapter_map.input = x
        if self.name not in adapter_map.outputs:
            ys = multiply_pack(x.reshape(-1, x.shape[-1]), self.input_group, adapter_map)
            adapter_map.outputs |= dict(zip((layer.name for layer in self.input_group), ys, strict=True))
        y = adapter_map.outputs.pop(self.name)  # [rows, out]
        return y.view(*x.shape[:-1], y.shape[1])

    def read_dense(self) -> tuple[Any, Any]:
        """W [out, in] and the bias [out] or None; None for both if the layer is quantized and multiplies by itself."""
        if type(self.base_layer) not in (torch.nn.Linear, Conv1D):
            return None, None
        weight = self.base_layer.weight
        return weight.T if isinstance(self.base_layer, Conv1D) else weight, self.base_layer.bias


class PackedProduct(torch.autograd.Function):
    """The outputs of some layers that read one input, with each segment's LoRA update (arXiv 2106.09685, eq. 3).

    For the rows x of a segment, its scale s, its dropout mask m, and each layer l:
    Forward: ``u = s * (m * x) @ A.T`` for all layers at once, ``y_l = x @ W_l.T + bias_l + u_l @ B_l.T``.
    Backward, with G_l the gradient of y_l: ``h_l = s * G_l @ B_l``, ``dA_l += h_l.T @ (m * x)``,
    ``dB_l += G_l.T @ u_l``, ``dx = sum_l G_l @ W_l + m * (h @ A)``.

    The gradients of A and B are added to the adapters' own and not returned: autograd would need a node a matrix.

    Args of ``forward``: x [rows, in]; the layers; the map of adapters; for each layer that is quantized its own
    product [rows, out], to which the updates are added in a copy, else None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layers: Sequence[PackedLinear], adapter_map: AdapterMap, *quantized_ys: Any
    ) -> Any:
        ys, ctx.weights, ctx.shape, ctx.groups = [], [], x.shape, []
        saved: list[torch.Tensor | None] = []
        for quantized_y, layer in zip(quantized_ys, layers, strict=True):
            weight, bias = layer.read_dense()
            ys.append(quantized_y.clone() if weight is None else functional.linear(x, weight, bias))  # [rows, out]
            ctx.weights.append(weight)
        names = tuple(layer.name for layer in layers)
        for group in adapter_map.group_segments(x, names):
            x_dropped, mask = adapter_map.drop_inputs(x, group, names)  # [group's rows, in]
            u = functional.linear(x_dropped, group.stack.a).mul_(group.scale)  # [group's rows, c]
            for y, layer_u, b in zip(ys, torch.split(u, group.stack.widths, dim=1), group.stack.b, strict=True):
                if layer_u.shape[1]:
                    y[group.rows].addmm_(layer_u, b.T)
            ctx.groups.append(group)
            saved += x_dropped, mask, u
        ctx.save_for_backward(*saved)  # not as attributes, which gradient checkpointing would not see
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        grad_x = None  # [rows, in]
        for grad, weight in zip(gradients, ctx.weights, strict=True):
            if weight is not None:
                grad_x = grad @ weight if grad_x is None else grad_x.addmm_(grad, weight)
        grad_x = gradients[0].new_zeros(ctx.shape) if grad_x is None else grad_x
        saved = ctx.saved_tensors
        for group, x_dropped, mask, u in zip(ctx.groups, saved[::3], saved[1::3], saved[2::3], strict=True):
            stack, grad_ys = group.stack, [grad[group.rows] for grad in gradients]  # each [group's rows, out]
            h = torch.cat([grad_y @ b for grad_y, b in zip(grad_ys, stack.b, strict=True) if len(b)], dim=1)
            h.mul_(group.scale)  # [group's rows, c]
            layer_us = torch.split(u, stack.widths, dim=1)  # each [group's rows, the layer's part of c]
            grad_as = torch.split(h.T @ x_dropped, stack.widths)  # each [the layer's part of c, in]
            for grad_y, layer_u, grad_a, owners in zip(grad_ys, layer_us, grad_as, stack.owners, strict=True):
                if owners:
                    add_gradients(owners, grad_a, layer_u.T @ grad_y)
            if mask is None:
                grad_x[group.rows].addmm_(h, stack.a)
            else:
                grad_x[group.rows].add_(zero_dropped(h @ stack.a, mask))
        # What a quantized layer made goes back through its own product.
        grad_quantized = [None if w is not None else g for g, w in zip(gradients, ctx.weights, strict=True)]
        return grad_x, None, None, *grad_quantized


def add_gradients(owners: list[tuple[Adapter, str]], grad_a: torch.Tensor, grad_b: torch.Tensor) -> None:
    """Add a layer's gradients, of A [c, in] and of B transposed [c, out], to those of the adapters in ``owners``."""
    begin = 0
    for adapter, name in owners:
        columns = slice(begin, begin + len(adapter.a[name]))
        adapter.grad_a[name].add_(grad_a[columns])  # [r, in]
        adapter.grad_b[name].add_(grad_b[columns].T)  # [out, r]
        begin = columns.stop


def multiply_pack(x: torch.Tensor, layers: Sequence[PackedLinear], adapter_map: AdapterMap) -> tuple[torch.Tensor, ...]:
    """:class:`PackedProduct` of x [rows, in]: the output [rows, out] of each layer."""
    quantized_ys = [layer.base_layer(x) if layer.read_dense()[0] is None else None for layer in layers]
    ys: tuple[torch.Tensor, ...] = PackedProduct.apply(  # type: ignore[no-untyped-call]
        x, layers, adapter_map, *quantized_ys
    )
    return ys


@contextlib.contextmanager
def attach_pack(base: Any, adapters: Sequence[Adapter | None]) -> Iterator[AdapterMap]:
    """Within this, the layers of ``base`` have the adapters. The caller says in the map which rows belong to whom.

    Which layers read one input is found here, in a forward of one token. If the first step found it, that step would
    multiply each layer alone, and a training that resumes would get other last digits in its own first step.
    """
    adapter_map = AdapterMap(list(adapters))
    names = dict.fromkeys(name for adapter in adapters if adapter is not None for name in adapter.a)
    layers = {name: base.get_submodule(name) for name in names}
    try:
        for name, layer in layers.items():
            replace_module(base, name, PackedLinear(name, layer, adapter_map))
        for group in find_input_groups(base):
            group[0].input_group = group
        adapter_map.forget_input()
        yield adapter_map
    finally:
        for name, layer in layers.items():
            replace_module(base, name, layer)


def find_input_groups(base: Any) -> list[list[PackedLinear]]:
    """Find the layers that read one and the same input, such as q, k and v, or gate and up.

    One token is sent through the base. The layers multiply nothing then, so this costs little.

    Returns:
        Groups of layers that were called one after another with one input, in the order of the calls.
    """
    calls: list[tuple[torch.Tensor, PackedLinear]] = []
    layers = [module for module in base.modules() if isinstance(module, PackedLinear)]

    def record_call(layer: PackedLinear, x: torch.Tensor) -> torch.Tensor:
        calls.append((x, layer))
        b = next(own.b[layer.name] for own in layer.adapter_map.adapters if own is not None and layer.name in own.b)
        return x.new_zeros(*x.shape[:-1], len(b))  # [..., out]

    for layer in layers:
        layer.forward = functools.partial(record_call, layer)  # type: ignore[method-assign]
    with torch.no_grad():
        if layers:
            base.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=base.device), use_cache=False)
    for layer in layers:
        del layer.forward
    groups: list[list[PackedLinear]] = []
    for previous_x, (x, layer) in zip([None, *(x for x, _ in calls)], calls, strict=False):
        groups += [[]] if x is not previous_x else []
        groups[-1].append(layer)
    return groups


def replace_module(base: Any, name: str, module: torch.nn.Module) -> None:
    """Put ``module`` in the place of the submodule ``name`` of ``base``."""
    parent, _, child = name.rpartition(".")
    setattr(base.get_submodule(parent), child, module)
