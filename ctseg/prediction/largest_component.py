"""Largest component per structure, where the validation cases say that it helps, or that it does no harm to
what is one piece in the training references.

Components are found on runs of equal voxels along W, for all structures at once: memory and time follow the
surface of the structures, not their number or the boxes that a stray voxel makes large.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

CRUMBS = 0.01  # share of a structure's voxels outside its largest component that still counts as one piece
# slices and rows back to the lines that touch one and come before it
_LINES_BEFORE = ((0, 1), (1, -1), (1, 0), (1, 1))


@dataclasses.dataclass(frozen=True)
class _Runs:
    """Runs of equal voxels along W, in memory order; all (n,).

    line: of the D x H lines; from start to stop along W; component: numbered over all structures.
    """

    value: np.ndarray
    line: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    component: np.ndarray

    def components_of(self, value: int) -> tuple[np.ndarray, np.ndarray]:
        """(components of a structure, their voxels)."""
        own = self.value == value
        sizes = np.bincount(self.component[own], (self.stop - self.start)[own])
        components = np.flatnonzero(sizes)
        return components, sizes[components]


def keep_largest(label: np.ndarray, structures: Sequence[int]) -> np.ndarray:
    """A copy of a label map (D, H, W) in which each of `structures` (label ids) has lost the 26-components
    that are smaller than its largest.

    Equals stay, so that the result does not depend on the order of the axes. A structure that is not there
    changes nothing.
    """
    result = label.copy()
    runs = _find_runs(label, structures)
    for value in np.unique(runs.value).tolist():
        components, sizes = runs.components_of(value)
        smaller = np.isin(runs.component, components[sizes < sizes.max()])
        for index in np.flatnonzero(smaller):
            d, h = divmod(int(runs.line[index]), label.shape[1])
            result[d, h, runs.start[index] : runs.stop[index]] = 0
    return result


def in_one_piece(labels: Iterable[np.ndarray], n_structures: int) -> list[bool]:
    """Whether each structure (label ids 1..n) is one 26-component, but for crumbs, in every label map (D, H,
    W) that shows it; False where none does.
    """
    shown, whole = [False] * n_structures, [True] * n_structures
    for label in labels:
        runs = _find_runs(label, range(1, n_structures + 1))
        for value in np.unique(runs.value).tolist():
            _, sizes = runs.components_of(value)
            shown[value - 1] = True
            whole[value - 1] &= bool(sizes.max() >= (1 - CRUMBS) * sizes.sum())
    return [one and other for one, other in zip(shown, whole)]


def _find_runs(label: np.ndarray, structures: Sequence[int]) -> _Runs:
    """The runs of some structures in a label map (D, H, W)."""
    height, width = label.shape[1:]
    chosen = np.zeros(int(max(label.max(initial=0), *structures, 0)) + 1, dtype=bool)
    chosen[list(structures)] = True
    values, lines, starts, stops = [], [], [], []
    for d, plane in enumerate(label):
        held = np.where(chosen[plane], plane, 0)
        edges = np.zeros((height, width + 1), dtype=bool)
        edges[:, 1:-1] = held[:, 1:] != held[:, :-1]
        edges[:, [0, -1]] = True
        h, w = np.nonzero(edges)
        begins = w < width
        h, first = h[begins], w[begins]
        last = w[1:][begins[:-1]]  # every start is followed by the next edge of its line
        value = held[h, first]
        kept = value > 0
        values.append(value[kept])
        lines.append(d * height + h[kept])
        starts.append(first[kept])
        stops.append(last[kept])
    value, line, start, stop = (np.concatenate(parts) for parts in (values, lines, starts, stops))
    return _Runs(value, line, start, stop, _join(value, line, start, stop, height, width))


def _join(
    value: np.ndarray, line: np.ndarray, start: np.ndarray, stop: np.ndarray, height: int, width: int
) -> np.ndarray:
    """(n,) component of each run: those of one structure that touch, by a corner too, are joined."""
    span = width + 2  # a place on a line as one number, so that neighbouring lines do not touch
    first, last = line * span + start, line * span + stop
    ones, others = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)]
    for slices, rows in _LINES_BEFORE:
        row = line % height - rows
        near = np.flatnonzero((row >= 0) & (row < height) & (line >= slices * height))
        shift = (slices * height + rows) * span
        # those that end at or behind the run's start
        low = np.searchsorted(last, first[near] - shift, side="left")
        high = np.searchsorted(first, last[near] - shift, side="right")  # and begin at or before its end
        count = np.maximum(high - low, 0)
        one = np.repeat(near, count)
        other = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
        same = value[one] == value[other]
        ones.append(one[same])
        others.append(other[same])
    one, other = np.concatenate(ones), np.concatenate(others)
    graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(len(value), len(value)))
    return connected_components(graph, directed=False)[1]
