"""Nearest boundary point by looking at the lattice around each point, the near offsets first.

Surfaces of a fair prediction lie a few voxels apart. Then a handful of look-ups per point finds the nearest
point of the other surface exactly, and the points come out in the order of their distance, so that nothing
has to be sorted.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ctseg.geometry.boxes import Spacing

MAX_OFFSETS = 700  # of the table; a ball of 5.5 voxels at equal spacing
_TOGETHER = 1 << 15  # look-ups in one step: below it the calls cost more than the work
# distance in mm and the offsets (m, 3) at that distance, nearest first
Shells = list[tuple[float, np.ndarray]]


@functools.lru_cache(maxsize=64)
def shells_of(spacing_mm: Spacing) -> Shells:
    """All lattice offsets in a ball around 0 (0 itself left out), grouped by distance."""
    radius = (0.75 * MAX_OFFSETS * math.prod(spacing_mm) / math.pi) ** (1 / 3)
    radius = max(radius, min(spacing_mm))
    reach = [np.arange(-n, n + 1) for n in (int(radius / s) for s in spacing_mm)]
    grid = np.stack(np.meshgrid(*reach, indexing="ij"), axis=-1).reshape(-1, 3)
    away = np.sqrt(((grid * np.array(spacing_mm)) ** 2).sum(axis=1))
    inside = np.flatnonzero((away > 0) & (away <= radius))
    inside = inside[np.argsort(away[inside], kind="stable")]
    away, grid = away[inside], grid[inside]
    # Equal distances reached along different axes differ in the last bits: one shell.
    starts = np.flatnonzero(np.diff(away, prepend=0.0) > 1e-9 * radius)
    return [(float(away[start]), part) for start, part in zip(starts, np.split(grid, starts[1:]))]


def search(
    points: np.ndarray, target: np.ndarray, spacing_mm: Spacing, *, budget: float
) -> tuple[list[np.ndarray], list[float], np.ndarray]:
    """Looks from each point for the nearest True voxel of `target`.

    points: flat positions in `target` (bool, 3D), none of them True there. budget: look-ups after which no
    further shell is begun. Returns, nearest first, the numbers of the points found in each shell, the shells'
    distances in mm, and the numbers of the points that were not found.
    """
    shells = shells_of(spacing_mm)
    reach = np.abs(np.concatenate([offsets for _, offsets in shells])).max(axis=0)
    field = np.zeros([n + 2 * r for n, r in zip(target.shape, reach)], bool)
    field[tuple(slice(r, r + n) for n, r in zip(target.shape, reach))] = target
    steps = np.array([field.shape[1] * field.shape[2], field.shape[2], 1])
    field = field.reshape(-1)
    planes, within = np.divmod(points, target.shape[1] * target.shape[2])
    rows, columns = np.divmod(within, target.shape[2])
    at = (planes + reach[0]) * steps[0] + (rows + reach[1]) * steps[1] + (columns + reach[2])
    left, groups, distances_mm, spent = np.arange(points.size), [], [], 0
    for distance_mm, offsets in shells:
        spent += left.size * len(offsets)
        if not left.size or spent > budget:
            break
        found = _any_true(field, at, offsets @ steps)
        groups.append(left[found])
        distances_mm.append(distance_mm)
        missing = ~found
        left, at = left[missing], at[missing]
    return groups, distances_mm, left


def _any_true(field: np.ndarray, at: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(n,) whether field[at + offset] is True for any of the offsets."""
    if at.size * offsets.size < _TOGETHER:
        return field[at + offsets[:, None]].any(axis=0)
    found = field[at + offsets[0]]
    for offset in offsets[1:]:
        found |= field[at + offset]
    return found
