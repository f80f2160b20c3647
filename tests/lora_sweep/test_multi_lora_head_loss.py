"""The loss under an output head, made in parts: the losses and gradients of all logits at once."""

import pytest
import torch
from support.here import HERE

from lora_sweep.multi_lora import head_loss as module
from lora_sweep.multi_lora.head_loss import CPU_SOFTMAX_TOKENS, compute_head_loss, split_tokens
from lora_sweep.multi_lora.layout import ROW_MULTIPLE


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("tokens", [1, CPU_SOFTMAX_TOKENS + 1, 48 + CPU_SOFTMAX_TOKENS + 1])
@pytest.mark.parametrize("bias", [False, True])
def test_parts_have_the_losses_and_gradients_of_the_whole(
    dtype: torch.dtype, close: float, tokens: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LOGITS_BYTES", 48 * 50 * dtype.itemsize)
    head = torch.nn.Linear(16, 50, bias=bias).to(HERE.type, dtype).requires_grad_(False)
    states = torch.randn(tokens, 16, device=HERE.type, dtype=dtype).requires_grad_()
    target_ids = torch.randint(50, (tokens,), device=HERE.type)
    weights = torch.rand(tokens, device=HERE.type)
    total, token_losses = compute_head_loss(states, head, target_ids, weights)
    total.backward()  # type: ignore[no-untyped-call]

    exact = states.detach().double().requires_grad_()
    logits = torch.nn.functional.linear(exact, head.weight.double(), head.bias.double() if bias else None)
    losses = torch.nn.functional.cross_entropy(logits, target_ids, reduction="none")
    (losses * weights).sum().backward()
    torch.testing.assert_close(token_losses.double(), losses.detach(), rtol=close, atol=close)
    torch.testing.assert_close(total.double(), (losses * weights).sum(), rtol=close, atol=close)
    assert states.grad is not None
    assert exact.grad is not None
    off = torch.linalg.vector_norm(states.grad.double() - exact.grad) / torch.linalg.vector_norm(exact.grad)
    assert float(off) < close


def test_what_needs_no_gradient_keeps_none() -> None:
    head = torch.nn.Linear(16, 50).to(HERE.type).requires_grad_(False)
    states = torch.randn(3, 16, device=HERE.type)
    total, token_losses = compute_head_loss(
        states, head, torch.tensor([1, 2, 3], device=HERE.type), torch.ones(3, device=HERE.type)
    )
    assert not total.requires_grad
    assert len(token_losses) == 3


@pytest.mark.parametrize(("tokens", "sizes"), [(0, []), (8, [8]), (48, [48]), (56, [32, 24]), (320, [48] * 6 + [32])])
def test_parts_are_alike_and_hold_what_they_may(tokens: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOGITS_BYTES", 48 * 100)
    chunks = split_tokens(tokens, 100)
    assert [len(range(tokens)[part]) for part in chunks] == sizes
    assert all(len(range(tokens)[part]) % ROW_MULTIPLE == 0 for part in chunks)
    assert split_tokens(8, 1 << 40) == [slice(0, 8)], "one logit alone is more"
