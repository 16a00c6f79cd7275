"""Mistakes that a first pass may make, drawn into a context so that later passes learn to mend and not to
copy.

Draws come from PyTorch's global generator, which the caller seeds. Each function takes and returns the
context of one sample, (S, D, H, W) probabilities of the structures, and lets gradients through.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LARGEST_SHIFT = 4  # voxels


def corrupted(context: Tensor) -> Tensor:
    """The context with one random mistake."""
    mistakes = (erased, resized, shifted, with_blob)
    return mistakes[_draw(0, len(mistakes) - 1)](context)


def erased(context: Tensor) -> Tensor:
    """One structure is missing, altogether or in a box around one of its voxels."""
    structure = _draw(0, len(context) - 1)
    box: tuple[slice, ...] = ()
    found = (context[structure] > 0.5).nonzero()
    if len(found) and _draw(0, 1):
        centre = found[_draw(0, len(found) - 1)].tolist()
        halves = [_draw(1, max(1, n // 4)) for n in context.shape[1:]]
        box = tuple(slice(max(0, c - half), c + half + 1) for c, half in zip(centre, halves))
    keep = torch.ones_like(context)
    keep[structure][box] = 0
    return context * keep


def resized(context: Tensor) -> Tensor:
    """All structures are one or two voxels too thin or too thick."""
    reach = _draw(1, 2)
    sign = 1 if _draw(0, 1) else -1  # a minimum is the maximum upside down
    grown = sign * functional.max_pool3d(sign * context[None], 2 * reach + 1, stride=1, padding=reach)[0]
    return grown / grown.sum(dim=0, keepdim=True).clamp_min(1)  # grown neighbours share a voxel


def shifted(context: Tensor) -> Tensor:
    """All structures lie 1 to 4 voxels off along each axis; what comes in at the edge is blank."""
    padding: list[int] = []
    for _ in range(3):
        by = _draw(1, LARGEST_SHIFT) * (1 if _draw(0, 1) else -1)
        padding += [by, -by]
    return functional.pad(context, padding)


def with_blob(context: Tensor) -> Tensor:
    """One structure has a ball too much, somewhere; the others lose those voxels."""
    structure, size = _draw(0, len(context) - 1), context.shape[1:]
    radius = _draw(2, max(2, min(size) // 6))
    d, h, w = ((torch.arange(n, device=context.device) - _draw(0, n - 1)).square() for n in size)
    ball = d.view(-1, 1, 1) + h.view(-1, 1) + w <= radius**2
    only_it = torch.zeros_like(context)
    only_it[structure] = 1
    return torch.where(ball, only_it, context)


def _draw(low: int, high: int) -> int:
    """A random whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, ()))
