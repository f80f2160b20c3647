"""A frozen base's RMS norms, each as one node of autograd's graph: about half the time on a CPU.

transformers' own norm is a row of small fp32 operations, and each is a node that keeps its input in fp32. A training
step has two norms a layer. Ours keeps one tensor, in the dtype of the states.

Dimensions: ..., hidden: the states.
"""

import contextlib
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch


class FusedRmsNorm(torch.autograd.Function):
    """RMSNorm (arXiv 1910.07467) with a frozen weight, computed in fp32 and rounded as transformers' Llama does.

    Forward: ``s = 1 / sqrt(mean(x²) + eps)``, ``n = x * s``, ``y = weight * n``.
    Backward, with ``g = dy * weight``: ``dx = s * (g - n * mean(g * n))``.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x_fp32 = x.float() if x.dtype != torch.float32 else x.clone()  # [..., hidden]; a copy, which is changed below
        scale = torch.linalg.vecdot(x_fp32, x_fp32).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)  # [..., 1]
        normed = x_fp32.mul_(scale).to(x.dtype)  # [..., hidden]
        ctx.save_for_backward(normed, weight, scale)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        normed, weight, scale = ctx.saved_tensors
        grad = (gradients[0] * weight).float()  # [..., hidden]
        normed_fp32 = normed.float()
        mean = torch.linalg.vecdot(grad, normed_fp32).div_(normed.shape[-1]).unsqueeze(-1)  # [..., 1]
        return grad.addcmul_(normed_fp32, mean, value=-1).mul_(scale).to(normed.dtype), None, None


@contextlib.contextmanager
def fuse_norms(base: Any) -> Iterator[None]:
    """Within this, the RMS norms of ``base`` are computed by :class:`FusedRmsNorm`."""
    verdicts: dict[Any, bool] = {}  # one norm of each kind is tried
    norms = []
    for module in base.modules():
        weight = getattr(module, "weight", None)
        form = (weight.shape, weight.dtype, weight.requires_grad) if isinstance(weight, torch.Tensor) else None
        kind = type(module), form
        if kind not in verdicts:
            verdicts[kind] = is_rms_norm(module)
        norms += [module] if verdicts[kind] else []
    for norm in norms:
        norm.forward = partial(_forward_norm, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = FusedRmsNorm.apply(x, norm.weight, norm.variance_epsilon)  # type: ignore[no-untyped-call]
    return y


@torch.no_grad()
def is_rms_norm(module: Any) -> bool:
    """Whether a module computes what :class:`FusedRmsNorm` computes.

    The name says too little: Gemma's norm adds one to its weight, and some norms take a gate. So both are compared on
    a few numbers.
    """
    weight = getattr(module, "weight", None)
    if not hasattr(module, "variance_epsilon") or weight is None or weight.dim() != 1 or weight.requires_grad:
        return False
    if len(inspect.signature(module.forward).parameters) > 1:  # a gate beside the states
        return False
    x = torch.linspace(-2, 3, 2 * len(weight), dtype=weight.dtype, device=weight.device).view(2, -1)  # [2, hidden]
    return torch.allclose(module(x), _forward_norm(module, x), rtol=2 * torch.finfo(weight.dtype).eps, atol=0)
