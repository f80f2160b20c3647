"""Rows without an adapter get the base's own numbers; stacks follow the members at work; shared inputs are found."""

import pytest
import torch
from support.here import HERE

from lora_sweep.config.schema import Model, Quant
from lora_sweep.model.load import load_base
from lora_sweep.multi_lora.adapter import Adapter
from lora_sweep.multi_lora.linear import attach_pack, find_input_groups
from lora_sweep.multi_lora.segments import AdapterMap


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


def test_rows_of_no_segment_have_no_adapter_and_no_gradient() -> None:
    base = Reader().to(HERE.type)
    a, b = (torch.randn(shape, device=HERE.type) for shape in ((2, 8), (6, 2)))
    adapter = Adapter({"layer": a}, {"layer": b}, 0.5, 0.0, 0)
    adapter.allocate_gradient()
    x = torch.randn(1, 8, 8, device=HERE.type, requires_grad=True)
    with attach_pack(base, [adapter]) as adapter_map:
        adapter_map.segment_sizes = [5]
        y = base(x)
        y[:, 5:].sum().backward()
    plain = base(x)
    torch.testing.assert_close(y[:, 5:], plain[:, 5:])
    assert not torch.allclose(y[:, :5], plain[:, :5])
    assert adapter.gradient is not None
    assert not adapter.gradient.any()


def test_matrices_of_members_without_rows_are_not_kept() -> None:
    adapters = [Adapter({"x": torch.ones(2, 8)}, {"x": torch.ones(6, 2)}, 2 / 0.95, 0.0, 0) for _ in range(3)]
    adapter_map, x = AdapterMap(list(adapters)), torch.ones(6, 8, dtype=torch.bfloat16)
    for sizes in ([2, 2, 2], [3, 0, 3], [6, 0, 0]):
        adapter_map.segment_sizes = sizes
        (group,) = adapter_map.group_segments(x, ("x",))
        assert len(group.stack.a) == 2 * sum(map(bool, sizes))
        assert len(adapter_map.stacks) == 1
    adapter_map.segment_sizes = [4, 2, 0]
    (group,) = adapter_map.group_segments(x, ("x",))
    assert isinstance(group.scale, torch.Tensor)
    expected = [[2 / 0.95] * 2 + [0.0] * 2] * 4 + [[0.0] * 2 + [2 / 0.95] * 2] * 2
    assert torch.equal(group.scale, torch.tensor(expected)), "rounded to bf16"


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
    with attach_pack(base, [None, Adapter(a, b, 1.0, 0.0, 0)]) as adapter_map:
        found_groups = find_input_groups(base)
        assert all(group[0].input_group == group for group in found_groups)
    assert not any("forward" in vars(module) for module in base.modules())
    found_names = [[layer.name.rpartition(".")[2] for layer in group] for group in found_groups]
    assert found_names == groups * base.config.num_hidden_layers
    assert adapter_map.input is None
