"""Layers that read one input: their adapters' products are made as one, and are the numbers that each makes alone."""

from typing import Any

import pytest
import torch

from lora_sweep import packed
from lora_sweep.packed import Adapter, Blocks

NAMES = ("q", "k", "v")
SIZES = {"q": 10, "k": 6, "v": 6}


class Reader(torch.nn.Module):
    """q, k and v of one input, in the order that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        for name in NAMES:
            self.add_module(name, torch.nn.Linear(8, SIZES[name]).requires_grad_(False))

    def forward(self, x: torch.Tensor, order: tuple[str, ...] = NAMES) -> list[torch.Tensor]:
        return [self.get_submodule(name)(x) for name in order]


def adapter(names: tuple[str, ...], r: int, seed: int, dropout: float = 0.0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    a = {name: torch.randn(r, 8, generator=generator) for name in names}
    b = {name: torch.randn(SIZES[name], r, generator=generator) for name in names}
    made = Adapter(a, b, 0.5, dropout, seed)
    made.train()
    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The layers of each product that was made."""
    seen: list[list[str]] = []
    own = packed.product

    def watched(x: torch.Tensor, layers: Any, blocks: Blocks) -> Any:
        seen.append([layer.name for layer in layers])
        return own(x, layers, blocks)

    monkeypatch.setattr(packed, "product", watched)
    return seen


def once(reader: Reader, blocks: Blocks, order: tuple[str, ...], x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs, the gradient of the input, and those of every adapter, which are zero again after this."""
    x = x.clone().requires_grad_()
    ys = reader(x, order)
    torch.cat([(y * torch.arange(1.0, y.shape[-1] + 1)).flatten() for y in ys]).square().sum().backward()
    found = [y.detach() for y in ys] + [x.grad]
    for each in blocks.adapters:
        found.append(each.gradient.clone())
        each.gradient.zero_()
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_layers_that_read_one_input_are_one_product_with_the_numbers_of_three(
    dropout: float, calls: list[list[str]]
) -> None:
    reader, x = Reader(), torch.randn(1, 7, 8)
    adapters = [adapter(("q", "v"), 2, 1, dropout), adapter(NAMES, 3, 2, dropout)]
    with packed.packed(reader, adapters) as blocks:
        blocks.sizes, blocks.drawing = [4, 3], [0, 0]
        apart = once(reader, blocks, NAMES, x)
        assert calls == [["q"], ["v"], ["k"]] or calls == [["q"], ["k"], ["v"]]
        calls.clear()
        joint = once(reader, blocks, NAMES, x)
        assert len(calls) == 1
        assert sorted(calls[0]) == sorted(NAMES)
    for one, other in zip(apart, joint, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
        assert other.abs().sum() > 0


@pytest.mark.parametrize("order", [("q",), ("q", "v"), ("v", "q", "k"), ("q", "q", "k")])
def test_a_forward_that_asks_for_other_layers_than_the_last_gets_their_numbers(order: tuple[str, ...]) -> None:
    reader, x = Reader(), torch.randn(1, 7, 8)
    adapters = [adapter(NAMES, 2, 1), adapter(("k",), 3, 2)]
    with packed.packed(reader, adapters) as blocks:
        blocks.sizes = [4, 3]
        once(reader, blocks, NAMES, x)  # now q is known to be read with k and v
        found = once(reader, blocks, order, x)
    with packed.packed(reader, adapters) as blocks:
        blocks.sizes = [4, 3]
        expected = once(reader, blocks, order, x)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


def test_rows_beyond_the_blocks_have_no_adapter() -> None:
    reader, x = Reader(), torch.randn(1, 8, 8)
    with packed.packed(reader, [adapter(NAMES, 2, 1)]) as blocks:
        blocks.sizes = [5]
        ys = reader(x)
    plain = reader(x)
    for y, expected in zip(ys, plain, strict=True):
        torch.testing.assert_close(y[:, 5:], expected[:, 5:])
        assert not torch.allclose(y[:, :5], expected[:, :5])
