"""The loss under an output head, without the logits of all tokens in memory at once.

Dimensions: n: labelled tokens; chunk: tokens with logits in memory at a time; few: tokens with fp32 probabilities in
memory at a time; hidden, vocab: of the head.

Two sizes are at work. A chunk of tokens shares one product with the head, because a product of few tokens takes as
long to read the head as one of many. Within it, the softmax runs over few tokens at a time, because their fp32 numbers
then stay in a core's caches from one pass to the next.
"""

from typing import Any

import torch
from torch.nn import functional

from lora_sweep.multi_lora.layout import ROW_MULTIPLE

MAX_LOGITS_BYTES = 64 << 20  # of a chunk's logits: 682 tokens with 49,152 logits each in bf16
CPU_SOFTMAX_TOKENS = 16  # 3 MB of fp32 at 49,152 logits: a core's caches hold it
GPU_SOFTMAX_TOKENS = 256  # 50 MB of fp32


def compute_head_loss(
    states: torch.Tensor, head: Any, target_ids: torch.Tensor, target_weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The negative log-likelihood of tokens, in fp32.

    Args:
        states: [n, hidden], the input of ``head``.
        target_ids: [n], the tokens to predict.
        target_weights: [n], the weight of each token in the sum.

    Returns:
        The weighted sum, which can be differentiated, and the losses [n] in nats, which cannot.
    """
    if type(head) is torch.nn.Linear and not head.weight.requires_grad:
        weighted_sum, losses = FrozenHeadLoss.apply(  # type: ignore[no-untyped-call]
            states, head.weight, head.bias, target_ids, target_weights
        )
        return weighted_sum, losses
    losses = functional.cross_entropy(head(states).float(), target_ids, reduction="none")  # [n]
    return (losses * target_weights).sum(), losses.detach()


class FrozenHeadLoss(torch.autograd.Function):
    """Weighted cross entropy of a frozen head; its gradient is made in the forward, while the logits are there.

    Forward: ``p = softmax(states @ W.T + b)``, ``loss_i = -log p[i, target_i]``, ``L = sum(weight_i * loss_i)``.
    Backward: ``dL/dstates = weight_i * (p - onehot(target)) @ W``. The same idea as in Liger's fused linear cross
    entropy (arXiv 2410.10989).
    """

    @staticmethod
    def forward(ctx: Any, states: Any, weight: Any, bias: Any, target_ids: Any, target_weights: Any) -> Any:
        tokens, padding = len(states), -len(states) % ROW_MULTIPLE
        if padding:
            states = functional.pad(states, (0, 0, 0, padding))
            target_ids = functional.pad(target_ids, (0, padding))
            target_weights = functional.pad(target_weights, (0, padding))
        losses = torch.empty(len(states), dtype=torch.float32, device=states.device)  # [n]
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None  # [n, hidden]
        for chunk in split_tokens(len(states), len(weight) * states.element_size()):
            logits = functional.linear(states[chunk], weight, bias)  # [chunk, vocab]
            write_losses(logits, target_ids[chunk], losses[chunk], gradient is not None)
            if gradient is not None:
                torch.mm(logits, weight, out=gradient[chunk]).mul_(target_weights[chunk, None])  # [chunk, hidden]
        ctx.save_for_backward(gradient if gradient is None else gradient[:tokens])
        losses = losses[:tokens]
        ctx.mark_non_differentiable(losses)
        return (losses * target_weights[:tokens]).sum(), losses

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None, None


def write_losses(logits: torch.Tensor, target_ids: torch.Tensor, losses: torch.Tensor, with_gradient: bool) -> None:
    """Write the losses of ``logits`` [chunk, vocab] into ``losses`` [chunk].

    With ``with_gradient`` the logits are overwritten by their gradient, ``softmax(logits) - onehot(target_ids)``.
    """
    few = CPU_SOFTMAX_TOKENS if logits.device.type == "cpu" else GPU_SOFTMAX_TOKENS
    parts = [torch.split(tensor, few) for tensor in (logits, target_ids, losses)]
    for few_logits, few_ids, few_losses in zip(*parts, strict=True):
        log_p = few_logits.log_softmax(1, dtype=torch.float32)  # [few, vocab]
        torch.neg(log_p.gather(1, few_ids[:, None])[:, 0], out=few_losses)
        if with_gradient:
            grad_logits = log_p.exp_()  # [few, vocab]
            grad_logits.scatter_add_(1, few_ids[:, None], torch.full_like(grad_logits[:, :1], -1))
            few_logits.copy_(grad_logits)


def split_tokens(tokens: int, token_bytes: int) -> list[slice]:
    """Split ``tokens`` into chunks of like size, a multiple of 8, with logits of at most :data:`MAX_LOGITS_BYTES`.

    Args:
        token_bytes: of one token's logits.
    """
    most = max(1, MAX_LOGITS_BYTES // token_bytes // ROW_MULTIPLE) * ROW_MULTIPLE
    chunks = max(1, -(-tokens // most))
    size = -(-max(1, tokens) // chunks // ROW_MULTIPLE) * ROW_MULTIPLE
    return [slice(begin, begin + size) for begin in range(0, tokens, size)]
