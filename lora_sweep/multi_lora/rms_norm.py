"""A frozen base's RMS norms, each as one node of the graph: half the time on a CPU, and states kept in their own dtype.

A step has two a layer, and transformers' own is a row of small operations in fp32, each a node with what it keeps.
"""

import contextlib
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch


class FusedRmsNorm(torch.autograd.Function):
    """``weight * x / sqrt(mean(x²) + eps)`` (arXiv 1910.07467), made in fp32 as transformers' Llama makes it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float() if x.dtype != torch.float32 else x.clone()
        scale = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
        normed = wide.mul_(scale).to(x.dtype)
        ctx.save_for_backward(normed, weight, scale)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        normed, weight, scale = ctx.saved_tensors
        grad = (gradients[0] * weight).float()
        wide = normed.float()
        along = torch.linalg.vecdot(grad, wide).div_(wide.shape[-1]).unsqueeze(-1)
        return grad.addcmul_(wide, along, value=-1).mul_(scale).to(normed.dtype), None, None


@contextlib.contextmanager
def fuse_norms(base: Any) -> Iterator[None]:
    """Within this, the norms of ``base`` that are such ones are made by :class:`FusedRmsNorm`."""
    known: dict[Any, bool] = {}
    norms = []
    for module in base.modules():
        weight = getattr(module, "weight", None)
        like = (weight.shape, weight.dtype, weight.requires_grad) if isinstance(weight, torch.Tensor) else None
        kind = type(module), like
        if kind not in known:
            known[kind] = is_rms_norm(module)
        norms += [module] if known[kind] else []
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
    """Whether a module computes what :class:`FusedRmsNorm` computes: Gemma's norm, for one, adds one to its weight."""
    weight = getattr(module, "weight", None)
    if not hasattr(module, "variance_epsilon") or weight is None or weight.dim() != 1 or weight.requires_grad:
        return False
    if len(inspect.signature(module.forward).parameters) > 1:  # a gate beside the numbers
        return False
    some = torch.linspace(-2, 3, 2 * len(weight), dtype=weight.dtype, device=weight.device).view(2, -1)
    return torch.allclose(module(some), _forward_norm(module, some), rtol=2 * torch.finfo(weight.dtype).eps, atol=0)
