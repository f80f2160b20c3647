"""One frozen base under several adapters at once: linear layers whose rows come in blocks, a block an adapter.

Owns the adapters' numbers and their products. Knows nothing of rows of data, of optimizers or of files.
"""

import contextlib
import functools
import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lora_sweep.multi_lora.dropout import draw_dropped, join_dropped, zero_dropped
from lora_sweep.multi_lora.member_threads import get_member_thread

MAX_STACKED_ROWS = 512  # rows of decoding; of more, as of prompts, the zeros of stacked adapters are much to multiply


class Adapter:
    """One adapter's matrices: fp32 numbers that are trained, and a copy in the dtype that products are made in.

    The trained numbers, their gradient and the copy are one tensor each, of which the matrices are views: what an
    optimizer does element by element is one operation instead of hundreds.

    Attributes:
        a, b: by the adapted module's name: A [r, in] and B [out, r] of arXiv 2106.09685, in the products' dtype.
        numbers: all of them, flat, in fp32; ``gradient`` likewise, None where nothing is trained.
        scale: the update is ``scale * x @ A.T @ B.T``.
    """

    def __init__(
        self, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], scale: float, dropout: float, seed: int
    ) -> None:
        self.scale, self.dropout, self.seed = scale, dropout, seed
        self.shapes = {name: (a[name].shape, b[name].shape) for name in a}
        self.numbers = torch.cat([matrix.detach().float().flatten() for name in a for matrix in (a[name], b[name])])
        self.gradient: torch.Tensor | None = None
        self.grad_a: dict[str, torch.Tensor] = {}
        self.grad_b: dict[str, torch.Tensor] = {}
        self.in_dtype(torch.float32)

    def in_dtype(self, dtype: torch.dtype) -> None:
        """Make products in ``dtype`` from now on."""
        self.copy = self.numbers if dtype == torch.float32 else self.numbers.to(dtype)
        self.a, self.b = self.views(self.copy)

    def train(self) -> None:
        """Keep a gradient."""
        self.gradient = torch.zeros_like(self.numbers)
        self.grad_a, self.grad_b = self.views(self.gradient)

    def changed(self) -> None:
        """Told after the numbers were changed in place."""
        if self.copy is not self.numbers:
            self.copy.copy_(self.numbers)

    def views(self, flat: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The matrices A and B by module name within a flat tensor."""
        a, b, at = {}, {}, 0
        for name, (shape_a, shape_b) in self.shapes.items():
            a[name] = flat[at : at + shape_a.numel()].view(shape_a)
            at += shape_a.numel()
            b[name] = flat[at : at + shape_b.numel()].view(shape_b)
            at += shape_b.numel()
        return a, b


@dataclass(frozen=True)
class SegmentGroup:
    """Some rows of an input, and the matrices of those whose they are, for all layers that read it.

    Attributes:
        span: which rows; ``found``: the blocks in it, as of :meth:`AdapterMap.of`.
        a: [c, in]: the matrices A below each other, those of the first layer's owners, then the next layer's.
        b: of each layer [out, its columns of the c]: the matrices B beside each other.
        owners: of each layer, whose its columns are, in order; ``widths``: how many are each layer's.
        scale: of the updates; or [rows, c], which is zero where a column is not the row's own adapter's.
    """

    span: slice
    found: list[tuple[int, int, int, Adapter]]
    a: torch.Tensor
    b: list[torch.Tensor]
    owners: list[list[tuple[Adapter, str]]]
    widths: list[int]
    scale: float | torch.Tensor


@dataclass
class AdapterMap:
    """Whose the rows of the present forward are.

    Attributes:
        adapters: of the members of the pack; None for one that has none, as a baseline.
        input_groups: by the first layer to read an input, all that do.
        sizes: rows of each, in order; rows are tokens of a flat sequence, or sequences of a batch.
        drawing: names each block's place in its training, for its dropout; None: no dropout.
    """

    adapters: list[Adapter | None]
    input_groups: dict[str, list["PackedLinear"]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    drawing: list[int] | None = None
    input: torch.Tensor | None = None  # what the last layer read
    drawn: dict[int, torch.Tensor] = field(default_factory=dict)  # which numbers of it are dropped, by block
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)  # of it, by layers that have yet to be called
    plan: tuple[Any, dict[tuple[str, ...], list[SegmentGroup]]] = (None, {})  # of the present sizes, by layers
    whose: list[bool] = field(default_factory=list)  # blocks that have rows, when the stacks were made
    stacks: dict[Any, Any] = field(default_factory=dict)  # matrices beside each other, by layers and whose
    scales: dict[Any, torch.Tensor] = field(default_factory=dict)  # of stacks' columns, by row
    others: dict[int, "AdapterMap"] = field(default_factory=dict)  # of the lanes but 0, by lane

    def mine(self) -> "AdapterMap":
        """Those of the present thread's lane: each has a forward of its own."""
        number = get_member_thread()
        if number and number not in self.others:
            self.others[number] = AdapterMap(self.adapters, self.input_groups)
        return self.others[number] if number else self

    def of(self, rows: int) -> list[tuple[int, int, int, Adapter]]:
        """Number, first row, end and adapter of each block with an adapter, for an input of so many rows."""
        times = rows // max(1, sum(self.sizes))
        ends = list(itertools.accumulate(size * times for size in self.sizes))
        numbered = enumerate(zip([0, *ends], ends, self.adapters, strict=False))
        return [(n, begin, end, own) for n, (begin, end, own) in numbered if own is not None and begin < end]

    def output(self, x: torch.Tensor, layer: "PackedLinear") -> torch.Tensor:
        """Of one layer [rows, out], made with those of all layers that read the same ``x`` [..., in]."""
        if self.input is not x:
            self.let_go()
            self.input = x
        if layer.name not in self.outputs:
            group = self.input_groups.get(layer.name, [layer])
            made = multiply_pack(x.reshape(-1, x.shape[-1]), group, self)
            self.outputs |= dict(zip((each.name for each in group), made, strict=True))
        return self.outputs.pop(layer.name)

    def let_go(self) -> None:
        """Forget the last input, and what was made of it."""
        self.input, self.drawn, self.outputs = None, {}, {}

    def parts(self, x: torch.Tensor, names: tuple[str, ...]) -> list[SegmentGroup]:
        """The rows of ``x`` by whose they are; or all of them as one, where a call costs more than what it multiplies.

        That is so for few rows, as in decoding, and on anything but a CPU. A NaN of one member is then one for all.
        """
        key = (len(x), tuple(self.sizes), self.drawing is None)
        if self.plan[0] != key:
            self.plan = key, {}
            if self.whose != (whose := [bool(size) for size in self.sizes]):  # an author's last text is written
                self.whose = whose
                self.stacks.clear()
        known = self.plan[1]
        if names not in known:
            found = [each for each in self.of(len(x)) if any(name in each[3].a for name in names)]
            if len(found) > 1 and (len(x) <= MAX_STACKED_ROWS or x.device.type != "cpu"):
                known[names] = [self.part(x, slice(0, len(x)), found, names)]
            else:
                known[names] = [self.part(x, slice(each[1], each[2]), [each], names) for each in found]
        return known[names]

    def part(
        self, x: torch.Tensor, span: slice, found: list[tuple[int, int, int, Adapter]], names: tuple[str, ...]
    ) -> SegmentGroup:
        """The rows of ``x`` in ``span``, which belong to the blocks ``found``."""
        key = (*names, *(number for number, *_ in found))
        if key not in self.stacks:
            owners = [[(own, name) for *_, own in found if name in own.a] for name in names]
            widths = [sum(len(own.a[name]) for own, name in each) for each in owners]
            a = join_matrices([own.a[name] for each in owners for own, name in each], 0)
            b = [join_matrices([own.b[name] for own, name in each], 1) if each else a[:0] for each in owners]
            self.stacks[key] = a, b, owners, widths
        a, b, owners, widths = self.stacks[key]
        scales = [own.scale if self.drawing is None else own.scale / (1 - own.dropout) for *_, own in found]
        if len(found) == 1:
            return SegmentGroup(span, found, a, b, owners, widths, scales[0])
        of_found = list(zip(found, scales, strict=True))
        columns = [(n, len(own.a[name]), s) for name in names for (n, _, _, own), s in of_found if name in own.a]
        return SegmentGroup(span, found, a, b, owners, widths, self.scale(x, columns))

    def changed(self) -> None:
        """Told when the adapters' numbers may have changed."""
        self.stacks.clear()
        self.plan = None, {}

    def scale(self, x: torch.Tensor, columns: list[tuple[int, int, float]]) -> torch.Tensor:
        """[rows, c], in fp32, for blocks, numbers of columns, and scales in order."""
        key = (len(x), tuple(self.sizes), tuple(columns))
        if key not in self.scales:
            rows = torch.full((len(x), 1), -1, device=x.device)
            for number, begin, end, _ in self.of(len(x)):
                rows[begin:end] = number
            numbers, scales = (
                torch.tensor([each[at] for each in columns for _ in range(each[1])], device=x.device) for at in (0, 2)
            )
            now = {known: found for known, found in self.scales.items() if known[:2] == key[:2]}
            self.scales = {**now, key: torch.where(rows == numbers, scales, 0.0)}
        return self.scales[key]

    def dropped(
        self, x: torch.Tensor, part: SegmentGroup, names: tuple[str, ...]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A part's rows, in training with some numbers zeroed, and which those are. The rest is not scaled up.

        A draw is a function of the adapter's seed, the place in its training, and the name of its first layer that
        reads the input: the same in any pack, when a forward is computed again, and after a resume.
        """
        rows, found = x[part.span], part.found
        if self.drawing is None or not any(own.dropout for *_, own in found):
            return rows, None
        for number, begin, end, own in found:
            if number not in self.drawn:
                first = next(name for name in names if name in own.a)
                seed = zlib.crc32(f"{own.seed} {self.drawing[number]} {first}".encode())
                self.drawn[number] = draw_dropped(x[begin:end], own.dropout, seed)
        drawn = self.drawn[found[0][0]]
        if len(found) > 1:
            drawn = join_dropped(rows, [(begin, end, self.drawn[number]) for number, begin, end, _ in found])
        return zero_dropped(rows, drawn), drawn


class PackedLinear(torch.nn.Module):
    """A frozen linear layer, plus for each block of its input's rows what that block's adapter adds."""

    def __init__(self, name: str, base_layer: Any, blocks: AdapterMap) -> None:
        super().__init__()
        self.name, self.base_layer, self.blocks = name, base_layer, blocks

    @property
    def weight(self) -> Any:
        """The base's: some models look at it."""
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        y = self.blocks.mine().output(x, self)
        return y.view(*x.shape[:-1], y.shape[1])

    def dense(self) -> tuple[Any, Any]:
        """W [out, in] and its bias; twice None of a quantized layer, which has a product of its own."""
        if type(self.base_layer) not in (torch.nn.Linear, Conv1D):
            return None, None
        weight = self.base_layer.weight
        return weight.T if isinstance(self.base_layer, Conv1D) else weight, self.base_layer.bias


class PackedProduct(torch.autograd.Function):
    """``x @ W.T`` and each block's update for some layers as one node; its backward adds to the adapters' gradients.

    What the layers' matrices A make of a block is one product, and so are the gradients of A and of the block. A
    layer's ``begun`` is a quantized one's own product, which is copied; None: W is multiplied here.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layers: Sequence[PackedLinear], blocks: AdapterMap, *begun: Any) -> Any:
        ys, ctx.weights, ctx.shape, ctx.parts = [], [], x.shape, []
        saved: list[torch.Tensor | None] = []
        for y, layer in zip(begun, layers, strict=True):
            weight, bias = layer.dense()
            ys.append(y.clone() if weight is None else functional.linear(x, weight, bias))
            ctx.weights.append(weight)
        names = tuple(layer.name for layer in layers)
        for part in blocks.parts(x, names):
            rows, drawn = blocks.dropped(x, part, names)
            low = functional.linear(rows, part.a).mul_(part.scale)
            for y, own, b in zip(ys, torch.split(low, part.widths, dim=1), part.b, strict=True):
                if own.shape[1]:
                    y[part.span].addmm_(own, b.T)
            ctx.parts.append(part)
            saved += rows, drawn, low
        ctx.save_for_backward(*saved)  # not as attributes, which gradient checkpointing would not see
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        grad_x = None
        for grad, weight in zip(gradients, ctx.weights, strict=True):
            if weight is not None:
                grad_x = grad @ weight if grad_x is None else grad_x.addmm_(grad, weight)
        grad_x = gradients[0].new_zeros(ctx.shape) if grad_x is None else grad_x
        saved = ctx.saved_tensors
        for part, rows, drawn, low_of_all in zip(ctx.parts, saved[::3], saved[1::3], saved[2::3], strict=True):
            lows = torch.split(low_of_all, part.widths, dim=1)
            parts = [grad[part.span] for grad in gradients]
            grad_low = torch.cat([of_y @ b for of_y, b in zip(parts, part.b, strict=True) if len(b)], dim=1)
            grad_low.mul_(part.scale)
            grad_as = torch.split(grad_low.T @ rows, part.widths)
            for of_y, low, grad_a, owners in zip(parts, lows, grad_as, part.owners, strict=True):
                if owners:
                    add_gradients(owners, grad_a, low.T @ of_y)
            if drawn is None:
                grad_x[part.span].addmm_(grad_low, part.a)
            else:
                grad_x[part.span].add_(zero_dropped(grad_low @ part.a, drawn))
        of_begun = [None if w is not None else g for g, w in zip(gradients, ctx.weights, strict=True)]
        return grad_x, None, None, *of_begun


def add_gradients(owners: list[tuple[Adapter, str]], grad_a: torch.Tensor, grad_b: torch.Tensor) -> None:
    """Add a layer's gradients, of the matrices A [c, in] and of B [c, out], to those of the columns' owners."""
    begin = 0
    for adapter, name in owners:
        columns = slice(begin, begin + len(adapter.a[name]))
        adapter.grad_a[name].add_(grad_a[columns])
        adapter.grad_b[name].add_(grad_b[columns].T)
        begin = columns.stop


def multiply_pack(x: torch.Tensor, layers: Sequence[PackedLinear], blocks: AdapterMap) -> tuple[torch.Tensor, ...]:
    """:class:`PackedProduct` of x [rows, in], as [rows, out] of each layer."""
    begun = [layer.base_layer(x) if layer.dense()[0] is None else None for layer in layers]
    ys: tuple[torch.Tensor, ...] = PackedProduct.apply(x, layers, blocks, *begun)  # type: ignore[no-untyped-call]
    return ys


def join_matrices(matrices: list[torch.Tensor], dim: int) -> torch.Tensor:
    """The only one itself, several copied into one along ``dim``."""
    return matrices[0] if len(matrices) == 1 else torch.cat(matrices, dim)


@contextlib.contextmanager
def attach_pack(base: Any, adapters: Sequence[Adapter | None]) -> Iterator[AdapterMap]:
    """Within this, ``base`` has the adapters; who owns which rows is for the caller to say in what this yields.

    Looks once which layers read one input, so that they are made together from the first time on: a training that
    goes on from a checkpoint makes the same products as one that was never interrupted.
    """
    blocks = AdapterMap(list(adapters))
    names = dict.fromkeys(name for adapter in adapters if adapter is not None for name in adapter.a)
    layers = {name: base.get_submodule(name) for name in names}
    try:
        for name, layer in layers.items():
            replace_module(base, name, PackedLinear(name, layer, blocks))
        blocks.input_groups = find_input_groups(base)
        blocks.let_go()
        yield blocks
    finally:
        for name, layer in layers.items():
            replace_module(base, name, layer)


def find_input_groups(base: Any) -> dict[str, list[PackedLinear]]:
    """See in a forward of one token which layers read one and the same input: q, k and v; gate and up.

    They multiply nothing then, so that this costs little.

    Returns:
        By the name of the first layer to read an input, all that do.
    """
    seen: list[tuple[torch.Tensor, PackedLinear]] = []
    layers = [module for module in base.modules() if isinstance(module, PackedLinear)]

    def see(layer: PackedLinear, x: torch.Tensor) -> torch.Tensor:
        seen.append((x, layer))
        b = next(own.b[layer.name] for own in layer.blocks.adapters if own is not None and layer.name in own.b)
        return x.new_zeros(*x.shape[:-1], len(b))

    for layer in layers:
        layer.forward = functools.partial(see, layer)  # type: ignore[method-assign]
    with torch.no_grad():
        if layers:
            base.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=base.device), use_cache=False)
    for layer in layers:
        del layer.forward
    groups: list[list[PackedLinear]] = []
    for before, (x, layer) in zip([None, *(x for x, _ in seen)], seen, strict=False):
        groups += [[]] if x is not before else []
        groups[-1].append(layer)
    return {group[0].name: group for group in groups}


def replace_module(base: Any, name: str, layer: torch.nn.Module) -> None:
    """Put ``layer`` where the module ``name`` is."""
    parent, _, child = name.rpartition(".")
    setattr(base.get_submodule(parent), child, layer)
