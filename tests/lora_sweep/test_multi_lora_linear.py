"""Rows that are of no block get what the base alone makes of them; layers that read one input are found."""

import pytest
import torch
from support.here import HERE

from lora_sweep.config.schema import Model, Quant
from lora_sweep.data.prompts import Example
from lora_sweep.generation.packed import infer_with_adapters
from lora_sweep.model.load import load_base
from lora_sweep.multi_lora.layout import ROW_MULTIPLE, MemberRows, concatenate_rows, pad_spans, use_layout
from lora_sweep.multi_lora.linear import Adapter, AdapterMap, attach_pack


class Reader(torch.nn.Module):
    """A base of one frozen layer, which reads what it is given, or a token as eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 6).requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.layer.weight.device

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y

    def base_model(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        return self(input_ids[..., None].expand(-1, -1, 8).float())


def test_rows_beyond_the_blocks_have_no_adapter_and_no_gradient() -> None:
    base = Reader().to(HERE.type)
    a, b = (torch.randn(shape, device=HERE.type) for shape in ((2, 8), (6, 2)))
    adapter = Adapter({"layer": a}, {"layer": b}, 0.5, 0.0, 0)
    adapter.train()
    x = torch.randn(1, 8, 8, device=HERE.type, requires_grad=True)
    with attach_pack(base, [adapter]) as blocks:
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
    flat = concatenate_rows([MemberRows(rows, 0, 1.0)], ["response"], "cpu", torch.float32)
    assert flat.sizes == [13]
    assert flat.input_ids.shape == flat.position_ids.shape == (1, 16)
    assert flat.input_ids.shape[1] % ROW_MULTIPLE == 0
    assert flat.input_ids[0, 12:].tolist() == [15] * 4
    assert flat.position_ids[0, 12:].tolist() == [5] * 4
    assert pad_spans(flat.spans, 16, "cpu", torch.float32).places[12:].unique().numel() == 1
    assert max(flat.kept.tolist()) < 12


def test_what_fills_a_sequence_up_is_the_last_token_in_every_layer() -> None:
    base = load_base(Model(name="tiny", tiny="llama"), Quant(None), HERE)
    rows = [Example(list(range(10, 10 + length)), 3, False) for length in (7, 6)]
    flat = concatenate_rows([MemberRows(rows, 2, 1.0)], ["response"], HERE.type, torch.float32)
    with infer_with_adapters(base, [], HERE), use_layout(flat):
        states = base.base_model(input_ids=flat.input_ids, position_ids=flat.position_ids, use_cache=False)[0][0]
    (tokens,) = flat.sizes
    assert tokens == 11
    torch.testing.assert_close(states[tokens:], states[tokens - 1 : tokens].expand(5, -1))


def test_matrices_of_those_who_have_no_rows_left_are_not_kept() -> None:
    adapters = [Adapter({"x": torch.ones(2, 8)}, {"x": torch.ones(6, 2)}, 2 / 0.95, 0.0, 0) for _ in range(3)]
    blocks, x = AdapterMap(list(adapters)), torch.ones(6, 8, dtype=torch.bfloat16)
    for sizes in ([2, 2, 2], [3, 0, 3], [6, 0, 0]):
        blocks.sizes = sizes
        (part,) = blocks.parts(x, ("x",))
        assert len(part.a) == 2 * sum(map(bool, sizes))
        assert len(blocks.stacks) == 1
    blocks.sizes = [4, 2, 0]
    (part,) = blocks.parts(x, ("x",))
    assert isinstance(part.scale, torch.Tensor)
    of_both = [[2 / 0.95] * 2 + [0.0] * 2] * 4 + [[0.0] * 2 + [2 / 0.95] * 2] * 2
    assert torch.equal(part.scale, torch.tensor(of_both)), "rounded to bf16"


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ("llama", [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]),
        ("gpt_neox", [["query_key_value"], ["dense"], ["dense_h_to_4h"], ["dense_4h_to_h"]]),
    ],
)
def test_layers_that_read_one_input_are_found(shape: str, groups: list[list[str]]) -> None:
    base = load_base(Model(name="tiny", tiny=shape), Quant(None), HERE)
    names = [name for name, module in base.named_modules() if any(name.rpartition(".")[2] in group for group in groups)]
    a = {name: torch.zeros(1, base.get_submodule(name).in_features) for name in names}
    b = {name: torch.zeros(base.get_submodule(name).out_features, 1) for name in names}
    with attach_pack(base, [None, Adapter(a, b, 1.0, 0.0, 0)]) as blocks:
        pass
    assert not any("forward" in vars(module) for module in base.modules())
    found = [[layer.name.rpartition(".")[2] for layer in group] for group in blocks.input_groups.values()]
    assert found == groups * base.config.num_hidden_layers
    assert blocks.input is None
