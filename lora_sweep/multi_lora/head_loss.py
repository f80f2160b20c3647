"""The loss of hidden states under an output head; of a frozen one the logits of all tokens are never there at once."""

from typing import Any

import torch
from torch.nn import functional

MAX_LOGITS_BYTES = 64 << 20  # bytes of logits that are there at once: of 682 tokens with 49,152 each in bf16
CPU_SOFTMAX_TOKENS = 16  # of these tokens in fp32 on a CPU: 3 MB, which its caches hold from one pass to the next
GPU_SOFTMAX_TOKENS = 256  # in fp32 on another device: 50 MB
TOKEN_MULTIPLE = 8  # of tokens: a product of 315 took 7 % longer than one of 320 (AVX512-BF16)


def compute_head_loss(
    states: torch.Tensor, head: Any, wanted: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The negative log-likelihood of tokens, in fp32.

    Args:
        states: [n, hidden], in front of ``head``.
        wanted: [n], the tokens; ``weights``: [n], of each in the sum.

    Returns:
        The weighted sum, which can be differentiated, and the losses [n] in nats, which cannot.
    """
    if type(head) is torch.nn.Linear and not head.weight.requires_grad:
        total, each = FrozenHeadLoss.apply(states, head.weight, head.bias, wanted, weights)  # type: ignore[no-untyped-call]
        return total, each
    each = functional.cross_entropy(head(states).float(), wanted, reduction="none")
    return (each * weights).sum(), each.detach()


class FrozenHeadLoss(torch.autograd.Function):
    """The loss under a head without an adapter. Its gradient is made in the forward, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, states: Any, weight: Any, bias: Any, wanted: Any, weights: Any) -> Any:
        tokens, beyond = len(states), -len(states) % TOKEN_MULTIPLE
        if beyond:
            states = functional.pad(states, (0, 0, 0, beyond))
            wanted, weights = (functional.pad(of_tokens, (0, beyond)) for of_tokens in (wanted, weights))
        each = torch.empty(len(states), dtype=torch.float32, device=states.device)
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        at_once = CPU_SOFTMAX_TOKENS if states.device.type == "cpu" else GPU_SOFTMAX_TOKENS
        for part in split_tokens(len(states), len(weight) * states.element_size()):
            logits = functional.linear(states[part], weight, bias)
            for rows, named, losses in zip(
                *(t.split(at_once) for t in (logits, wanted[part], each[part])), strict=True
            ):
                likely = rows.log_softmax(1, dtype=torch.float32)
                torch.neg(likely.gather(1, named[:, None])[:, 0], out=losses)
                if gradient is not None:
                    slope = likely.exp_()
                    slope.scatter_add_(1, named[:, None], torch.full_like(slope[:, :1], -1))
                    rows.copy_(slope)  # the logits are not needed any more
            if gradient is not None:
                torch.mm(logits, weight, out=gradient[part]).mul_(weights[part, None])
        ctx.save_for_backward(gradient if gradient is None else gradient[:tokens])
        each = each[:tokens]
        ctx.mark_non_differentiable(each)
        return (each * weights[:tokens]).sum(), each

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None, None


def split_tokens(tokens: int, bytes_each: int) -> list[slice]:
    """``tokens`` in parts of like size, a multiple of 8, whose logits take :data:`LOGITS` at most."""
    most = max(1, MAX_LOGITS_BYTES // bytes_each // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
    size = -(-max(1, tokens) // max(1, -(-tokens // most)) // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
    return [slice(begin, begin + size) for begin in range(0, tokens, size)]
