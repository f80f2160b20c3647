"""A norm as one node: the numbers and gradients of transformers', which others of the name do not have."""

from typing import Any

import pytest
import torch
from support.here import HERE
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lora_sweep.config.schema import Model, Quant
from lora_sweep.model.load import load_base
from lora_sweep.multi_lora.rms_norm import FusedRmsNorm, fuse_norms, is_rms_norm


def llama(dtype: torch.dtype, weight: float = 1.0) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(24, 1e-5).to(HERE.type, dtype).requires_grad_(False)
    norm.weight += weight * torch.randn_like(norm.weight)
    return norm


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_norm_as_a_node_has_the_same_numbers_and_gradients(dtype: torch.dtype, close: float) -> None:
    torch.manual_seed(0)  # bf16 is compared to the last bit
    norm = llama(dtype)
    x = torch.randn(1, 7, 24, device=HERE.type, dtype=dtype).requires_grad_()
    grad = torch.randn_like(x)
    theirs, ours = norm(x), FusedRmsNorm.apply(x, norm.weight, 1e-5)
    torch.testing.assert_close(ours, theirs, rtol=1e-6 if dtype == torch.float32 else 0, atol=0)
    of_theirs, of_ours = (torch.autograd.grad(y, x, grad)[0] for y in (theirs, ours))
    off = torch.linalg.vector_norm((of_ours - of_theirs).float()) / torch.linalg.vector_norm(of_theirs.float())
    assert float(off) < close


def test_only_such_norms_are_taken() -> None:
    assert is_rms_norm(llama(torch.float32))
    assert is_rms_norm(llama(torch.bfloat16))
    assert not is_rms_norm(llama(torch.float32).requires_grad_()), "its weight would get no gradient"
    other = GemmaRMSNorm(24).requires_grad_(False)  # multiplies with one more than its weight
    other.variance_epsilon = other.eps
    assert not is_rms_norm(other)
    assert not is_rms_norm(torch.nn.LayerNorm(24))


def test_a_gate_beside_the_numbers_is_not_lost() -> None:
    class Gated(LlamaRMSNorm):
        def forward(self, x: torch.Tensor, gate: Any = None) -> torch.Tensor:
            return super().forward(x) if gate is None else super().forward(x) * gate

    assert not is_rms_norm(Gated(24, 1e-5).requires_grad_(False))


def test_a_base_has_its_own_norms_again_afterwards() -> None:
    base = load_base(Model(name="tiny", tiny="llama"), Quant(None), HERE)
    norms = [module for module in base.modules() if isinstance(module, LlamaRMSNorm)]
    x = torch.randn(1, 3, base.config.hidden_size, device=HERE.type, requires_grad=True)
    with fuse_norms(base):
        assert {type(norm(x).grad_fn).__name__ for norm in norms} == {"FusedRmsNormBackward"}
    assert "FusedRmsNormBackward" not in {type(norm(x).grad_fn).__name__ for norm in norms}
