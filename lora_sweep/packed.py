"""One frozen base under several adapters at once: linear layers whose rows come in blocks, a block an adapter.

Owns the adapters' numbers and their products. Knows nothing of rows of data, of optimizers or of files.
"""

import contextlib
import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

FEW = 512  # rows of decoding; of more, as of prompts, the zeros of stacked adapters are much to multiply
FEW_DROPPED = 0.15  # of an input: their places are drawn in half the time of bits for all; from 0.2 on in more


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

    def stacked(self, names: Iterable[str]) -> torch.Tensor:
        """The matrices A of some modules that read the same input, below each other."""
        return torch.cat([self.a[name] for name in names])

    def views(self, flat: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The matrices A and B by module name within a flat tensor."""
        a, b, at = {}, {}, 0
        for name, (shape_a, shape_b) in self.shapes.items():
            a[name] = flat[at : at + shape_a.numel()].view(shape_a)
            at += shape_a.numel()
            b[name] = flat[at : at + shape_b.numel()].view(shape_b)
            at += shape_b.numel()
        return a, b


@dataclass
class Blocks:
    """Whose the rows of the present forward are.

    Attributes:
        adapters: of the members of the pack; None for one that has none, as a baseline.
        sizes: rows of each, in order; rows are tokens of a flat sequence, or sequences of a batch.
        drawing: names each block's place in its training, for its dropout; None: no dropout.
    """

    adapters: list[Adapter | None]
    sizes: list[int] = field(default_factory=list)
    drawing: list[int] | None = None
    input: torch.Tensor | None = None  # what the last layer read
    masks: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # dropout's of it, by first row
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)  # of it, by layers that have yet to be called
    readers: dict[str, list["PackedLinear"]] = field(default_factory=dict)  # by the first to read an input: all of them
    stacks: dict[str, tuple[torch.Tensor, torch.Tensor, Any]] = field(default_factory=dict)  # by layer, and whose
    scales: dict[Any, torch.Tensor] = field(default_factory=dict)  # of stacks' columns, by row

    def spans(self, rows: int) -> list[tuple[int, int]]:
        """First row and end of each block, for an input of so many rows."""
        times = rows // max(1, sum(self.sizes))
        ends = list(itertools.accumulate(size * times for size in self.sizes))
        return list(zip([0, *ends], ends, strict=False))

    def of(self, rows: int) -> Iterator[tuple[int, int, Adapter, int | None]]:
        """First row, end, adapter and drawing of each block with an adapter, for an input of so many rows."""
        for number, (begin, end) in enumerate(self.spans(rows)):
            adapter = self.adapters[number]
            if adapter is not None and begin < end:
                yield begin, end, adapter, None if self.drawing is None else self.drawing[number]

    def add_stacked(self, y: torch.Tensor, x: torch.Tensor, name: str) -> None:
        """Add all updates to ``y`` in two products: the adapters' matrices stacked, what is not a block's own zeroed.

        For few rows of many members, as in decoding: there a product's call costs more than what it multiplies.
        """
        if name not in self.stacks:
            own = [(number, each) for number, each in enumerate(self.adapters) if each is not None and name in each.a]
            a, b = torch.cat([each.a[name] for _, each in own]), torch.cat([each.b[name].T for _, each in own])
            self.stacks[name] = a, b, tuple((number, len(each.a[name]), each.scale) for number, each in own)
        a, b, ranks = self.stacks[name]
        key = (len(x), tuple(self.sizes), ranks)
        if key not in self.scales:
            scales, spans, column = torch.zeros(len(x), len(a)), self.spans(len(x)), 0
            for number, r, scale in ranks:
                begin, end = spans[number]
                scales[begin:end, column : column + r] = scale
                column += r
            now = {known: found for known, found in self.scales.items() if known[:2] == key[:2]}
            self.scales = {**now, key: scales.to(x.device, x.dtype)}
        y.addmm_(functional.linear(x, a).mul_(self.scales[key]), b)

    def output(self, x: torch.Tensor, layer: "PackedLinear") -> torch.Tensor:
        """Of one layer [rows, out], made together with those of all its ``readers`` of the same ``x`` [..., in]."""
        if self.input is not x:
            self.let_go()
            self.input = x
        if layer.name not in self.outputs:
            group = self.readers.get(layer.name, [layer])
            made = product(x.reshape(-1, x.shape[-1]), group, self)
            self.outputs |= dict(zip((each.name for each in group), made, strict=True))
        return self.outputs.pop(layer.name)

    def let_go(self) -> None:
        """Forget the last input, and what was made of it."""
        self.input, self.masks, self.outputs = None, {}, {}

    def dropped(
        self, rows: torch.Tensor, begin: int, name: str, adapter: Adapter, drawing: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A block's input with some numbers zeroed, and the mask that made it so. The rest is not scaled up yet.

        A draw is a function of the adapter's seed, the place in its training, and the name of the first layer that
        reads the input: the same in any pack, when a forward is computed again, and after a resume.
        """
        if begin not in self.masks:
            mask = kept(rows, adapter.dropout, zlib.crc32(f"{adapter.seed} {drawing} {name}".encode()))
            self.masks[begin] = masked(rows, mask), mask
        return self.masks[begin]


def kept(rows: torch.Tensor, dropout: float, seed: int) -> torch.Tensor:
    """Bits of each number of ``rows``: all zero with probability ``dropout``, or else all one.

    torch's dropout draws 64 random bits a number, and on a CPU the generator is one thread's. Where few numbers are
    dropped, their places are drawn: Poisson's number of them, each anywhere, so that a number is missed by all of them
    with probability ``1 - dropout``, whatever becomes of the others. Else 16 bits a number, compared in place.
    """
    generator, count = torch.Generator(rows.device).manual_seed(seed), rows.numel()
    whole = torch.int16 if rows.element_size() == 2 else torch.int32
    if dropout <= FEW_DROPPED:
        expected = torch.tensor(-math.log1p(-dropout) * count, dtype=torch.float64)
        hits = int(torch.poisson(expected, generator=torch.Generator().manual_seed(seed)))
        places = torch.randint(count, (hits,), generator=generator, device=rows.device)
        return torch.full((count,), -1, dtype=whole, device=rows.device).index_fill_(0, places, 0).view(rows.shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=rows.device)
    words.random_(-(1 << 63), None, generator=generator)
    bits = words.view(torch.int16)[:count].view(rows.shape)
    below = round((1 - dropout) * 32768) - 16384
    return bits.bitwise_right_shift_(1).sub_(below).bitwise_right_shift_(15).to(whole)


def masked(rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``rows`` where the bits of ``mask`` are one, and zero elsewhere."""
    return rows.view(mask.dtype).bitwise_and(mask).view(rows.dtype)


class PackedLinear(torch.nn.Module):
    """A frozen linear layer, plus for each block of its input's rows what that block's adapter adds."""

    def __init__(self, name: str, base_layer: Any, blocks: Blocks) -> None:
        super().__init__()
        self.name, self.base_layer, self.blocks = name, base_layer, blocks

    @property
    def weight(self) -> Any:
        """The base's: some models look at it."""
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        y = self.blocks.output(x, self)
        return y.view(*x.shape[:-1], y.shape[1])

    def dense(self) -> tuple[Any, Any]:
        """W [out, in] and its bias; twice None of a quantized layer, which has a product of its own."""
        if type(self.base_layer) not in (torch.nn.Linear, Conv1D):
            return None, None
        weight = self.base_layer.weight
        return weight.T if isinstance(self.base_layer, Conv1D) else weight, self.base_layer.bias


class Product(torch.autograd.Function):
    """``x @ W.T`` and each block's update for some layers as one node; its backward adds to the adapters' gradients.

    What the layers' matrices A make of a block is one product, and so are the gradients of A and of the block. A
    layer's ``begun`` is a quantized one's own product, which is copied; None: W is multiplied here.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layers: Sequence[PackedLinear], blocks: Blocks, *begun: Any) -> Any:
        ys, ctx.weights, ctx.shape, ctx.parts = [], [], x.shape, []
        for y, layer in zip(begun, layers, strict=True):
            weight, bias = layer.dense()
            ys.append(y.clone() if weight is None else functional.linear(x, weight, bias))
            ctx.weights.append(weight)
        if len(x) <= FEW and sum(map(bool, blocks.sizes)) > 1 and not ctx.needs_input_grad[0]:
            for y, layer in zip(ys, layers, strict=True):
                blocks.add_stacked(y, x, layer.name)
            return tuple(ys)
        for begin, end, adapter, drawing in blocks.of(len(x)):
            own = [(number, layer.name) for number, layer in enumerate(layers) if layer.name in adapter.a]
            if not own:
                continue
            rows, mask, scale = x[begin:end], None, adapter.scale
            if adapter.dropout and drawing is not None:
                rows, mask = blocks.dropped(rows, begin, own[0][1], adapter, drawing)
                scale /= 1 - adapter.dropout  # what was kept stands for what was not
            a = adapter.stacked(name for _, name in own)
            lows = torch.split(functional.linear(rows, a), [len(adapter.a[name]) for _, name in own], dim=1)
            for (number, name), low in zip(own, lows, strict=True):
                ys[number][begin:end].addmm_(low, adapter.b[name].T, alpha=scale)
            ctx.parts.append((begin, end, adapter, own, rows, lows, mask, scale))
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        grad_x = None
        for grad, weight in zip(gradients, ctx.weights, strict=True):
            if weight is not None:
                grad_x = grad @ weight if grad_x is None else grad_x.addmm_(grad, weight)
        grad_x = gradients[0].new_zeros(ctx.shape) if grad_x is None else grad_x
        for begin, end, adapter, own, rows, lows, mask, scale in ctx.parts:
            grad_lows = []
            for (number, name), low in zip(own, lows, strict=True):
                part = gradients[number][begin:end]
                grad_lows.append(part @ adapter.b[name])
                adapter.grad_b[name].add_((low.T @ part).T, alpha=scale)
            grad_low = torch.cat(grad_lows, dim=1).mul_(scale)
            grad_as = torch.split(grad_low.T @ rows, [low.shape[1] for low in lows])
            for (_, name), grad_a in zip(own, grad_as, strict=True):
                adapter.grad_a[name].add_(grad_a)
            a = adapter.stacked(name for _, name in own)
            if mask is None:
                grad_x[begin:end].addmm_(grad_low, a)
            else:
                grad_x[begin:end].add_(masked(grad_low @ a, mask))
        ctx.parts = []
        of_begun = [None if w is not None else g for g, w in zip(gradients, ctx.weights, strict=True)]
        return grad_x, None, None, *of_begun


def product(x: torch.Tensor, layers: Sequence[PackedLinear], blocks: Blocks) -> tuple[torch.Tensor, ...]:
    """:class:`Product` of x [rows, in], as [rows, out] of each layer."""
    begun = [layer.base_layer(x) if layer.dense()[0] is None else None for layer in layers]
    ys: tuple[torch.Tensor, ...] = Product.apply(x, layers, blocks, *begun)  # type: ignore[no-untyped-call]
    return ys


@contextlib.contextmanager
def packed(base: Any, adapters: Sequence[Adapter | None]) -> Iterator[Blocks]:
    """Within this, ``base`` has the adapters; who owns which rows is for the caller to say in what this yields."""
    blocks = Blocks(list(adapters))
    names = dict.fromkeys(name for adapter in adapters if adapter is not None for name in adapter.a)
    layers = {name: base.get_submodule(name) for name in names}
    try:
        for name, layer in layers.items():
            replace(base, name, PackedLinear(name, layer, blocks))
        yield blocks
    finally:
        for name, layer in layers.items():
            replace(base, name, layer)


def find_readers(base: Any, blocks: Blocks) -> None:
    """See in a forward of one token which layers read one and the same input: q, k and v; gate and up.

    Before a training's first step, so that one that goes on from a checkpoint makes the same products.
    """
    seen: list[tuple[torch.Tensor, PackedLinear]] = []
    layers = [module for module in base.modules() if isinstance(module, PackedLinear)]
    hooks = [layer.register_forward_pre_hook(lambda layer, read: seen.append((read[0], layer))) for layer in layers]
    blocks.sizes = [0] * len(blocks.adapters)
    with torch.no_grad():
        base.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=base.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    groups: list[list[PackedLinear]] = []
    for before, (x, layer) in zip([None, *(x for x, _ in seen)], seen, strict=False):
        groups += [[]] if x is not before else []
        groups[-1].append(layer)
    blocks.readers = {group[0].name: group for group in groups}
    blocks.let_go()


def replace(base: Any, name: str, layer: torch.nn.Module) -> None:
    """Put ``layer`` where the module ``name`` is."""
    parent, _, child = name.rpartition(".")
    setattr(base.get_submodule(parent), child, layer)
