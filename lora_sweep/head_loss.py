"""The loss of hidden states under an output head; of a frozen one the logits of all tokens are never there at once."""

from typing import Any

import torch
from torch.nn import functional

CHUNK = 256  # tokens whose logits are there at once: 49,152 of each are 25 MB in bf16
AT_ONCE = 16  # of them in fp32 on a CPU: 3 MB, which its caches hold from one pass to the next


def head_loss(
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
        total, each = FrozenHead.apply(states, head.weight, head.bias, wanted, weights)  # type: ignore[no-untyped-call]
        return total, each
    each = functional.cross_entropy(head(states).float(), wanted, reduction="none")
    return (each * weights).sum(), each.detach()


class FrozenHead(torch.autograd.Function):
    """:func:`head_loss` of a head without an adapter: the gradient is made on the way, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, states: Any, weight: Any, bias: Any, wanted: Any, weights: Any) -> Any:
        each = torch.empty(len(states), dtype=torch.float32, device=states.device)
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        at_once = AT_ONCE if states.device.type == "cpu" else CHUNK
        for begin in range(0, len(states), CHUNK):
            part = slice(begin, begin + CHUNK)
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
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(each)
        return (each * weights).sum(), each

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None, None
