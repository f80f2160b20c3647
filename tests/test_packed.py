"""Rows that are of no block get what the base alone makes of them."""

import torch

from lora_sweep.flat import MULTIPLE, Block, _padded, flatten
from lora_sweep.packed import Adapter, packed
from lora_sweep.prompts import Example


def test_rows_beyond_the_blocks_have_no_adapter_and_no_gradient() -> None:
    base = torch.nn.Sequential(torch.nn.Linear(8, 6).requires_grad_(False))
    adapter = Adapter({"0": torch.randn(2, 8)}, {"0": torch.randn(6, 2)}, 0.5, 0.0, 0)
    adapter.train()
    x = torch.randn(1, 8, 8, requires_grad=True)
    with packed(base, [adapter]) as blocks:
        blocks.sizes = [5]
        y = base(x)
        y[:, 5:].sum().backward()
    plain = base(x)
    torch.testing.assert_close(y[:, 5:], plain[:, 5:])
    assert not torch.allclose(y[:, :5], plain[:, :5])
    assert adapter.gradient is not None
    assert not adapter.gradient.any()


def test_a_sequence_is_filled_up_with_its_last_token_which_is_of_no_block() -> None:
    rows = [Example(list(range(10, 10 + length)), 3, False) for length in (7, 6)]
    flat = flatten([Block(rows, 0, 1.0)], ["response"], "cpu", torch.float32)
    assert flat.sizes == [13]
    assert flat.input_ids.shape == flat.position_ids.shape == (1, 16)
    assert flat.input_ids.shape[1] % MULTIPLE == 0
    assert flat.input_ids[0, 12:].tolist() == [15] * 4
    assert flat.position_ids[0, 12:].tolist() == [5] * 4
    assert _padded(flat.spans, 16, "cpu", torch.float32).places[12:].unique().numel() == 1
    assert max(flat.kept.tolist()) < 12
