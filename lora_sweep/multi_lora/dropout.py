"""Which numbers of an input are dropped: a function of a seed, made faster than torch's own on a CPU."""

import math

import torch

MAX_SPARSE_RATE = 0.15  # up to here drawing places takes half the time of drawing bits for all; from 0.2 on more


def draw_dropped(rows: torch.Tensor, dropout: float, seed: int) -> torch.Tensor:
    """Which numbers of ``rows`` are dropped, each with probability ``dropout``.

    torch's dropout draws 64 random bits a number, and on a CPU the generator is one thread's. Where few numbers are
    dropped, their places are drawn: Poisson's number of them, each anywhere, so that a number is missed by all of them
    with probability ``1 - dropout``, whatever becomes of the others. Else 16 bits a number, compared in place.

    Returns:
        The places of the dropped in the flat rows; or bits like ``rows``, of each number all zero or else all one.
    """
    generator, count = torch.Generator(rows.device).manual_seed(seed), rows.numel()
    if dropout <= MAX_SPARSE_RATE:
        expected = torch.tensor(-math.log1p(-dropout) * count, dtype=torch.float64)
        hits = int(torch.poisson(expected, generator=torch.Generator().manual_seed(seed + 1)))
        return torch.randint(count, (hits,), generator=generator, device=rows.device)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=rows.device)
    words.random_(-(1 << 63), None, generator=generator)
    bits = words.view(torch.int16)[:count].view(rows.shape)
    below = round((1 - dropout) * 32768) - 16384
    return bits.bitwise_right_shift_(1).sub_(below).bitwise_right_shift_(15).to(_mask_dtype(rows))


def zero_dropped(rows: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """``rows`` with zeros where ``drawn``, as of :func:`draw_dropped`, says that they are dropped."""
    if drawn.dtype == torch.int64:
        return rows.reshape(-1).index_fill(0, drawn, 0).view(rows.shape)
    return rows.view(drawn.dtype).bitwise_and(drawn).view(rows.dtype)


def join_dropped(rows: torch.Tensor, drawn: list[tuple[int, int, torch.Tensor]]) -> torch.Tensor:
    """What was drawn for some ``rows``, from one to before another, as one draw for all of them."""
    if all(each.dtype == torch.int64 for *_, each in drawn):
        return torch.cat([each + begin * rows.shape[1] for begin, _, each in drawn])
    bits = torch.full(rows.shape, -1, dtype=_mask_dtype(rows), device=rows.device)
    for begin, end, each in drawn:
        if each.dtype == torch.int64:
            bits[begin:end].view(-1).index_fill_(0, each, 0)
        else:
            bits[begin:end] = each
    return bits


def _mask_dtype(rows: torch.Tensor) -> torch.dtype:
    """Whole numbers as wide as those of ``rows``."""
    return torch.int16 if rows.element_size() == 2 else torch.int32
