"""Largest component per structure, where the validation cases say that it helps, or that it does no harm to
what is one piece in the training references.

Components are found on runs of equal voxels along W, for all structures at once: memory and time follow the
surface of the structures, not their number or the boxes that a stray voxel makes large.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

CRUMBS = 0.01  # share of a structure's voxels outside its largest component that still counts as one piece


class Runs(NamedTuple):
    """Runs of equal voxels along W, in memory order; all (n,).

    start, stop: voxels counted along W, then H, then D, in a label map with a frame of one voxel. held:
    voxels of the whole component that the run belongs to.
    """

    value: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    held: np.ndarray

    def largest(self, n_values: int) -> np.ndarray:
        """(n_values,) voxels of the largest component of each structure; 0 where there is none."""
        result = np.zeros(n_values)
        np.maximum.at(result, self.value, self.held)
        return result


def keep_largest(label: np.ndarray, structures: Sequence[int]) -> np.ndarray:
    """A copy of a label map (D, H, W) in which each of `structures` (label ids) has lost the 26-components
    that are smaller than its largest.

    Equals stay, so that the result does not depend on the order of the axes. A structure that is not there
    changes nothing.
    """
    result = label.copy()
    runs = find_runs(label, structures)
    smaller = runs.held < runs.largest(max(structures, default=0) + 1)[runs.value]
    framed = [n + 2 for n in label.shape]
    for start, stop in zip(runs.start[smaller], runs.stop[smaller]):
        d, h, w = np.unravel_index(start, framed)
        result[d - 1, h - 1, w - 1 : w - 1 + stop - start] = 0
    return result


def in_one_piece(labels: Iterable[np.ndarray], n_structures: int) -> list[bool]:
    """Whether each structure (label ids 1..n) is one 26-component, but for crumbs, in every label map (D, H,
    W) that shows it; False where none does.
    """
    shown, whole = np.zeros(n_structures + 1, bool), np.ones(n_structures + 1, bool)
    for label in labels:
        runs = find_runs(label, range(1, n_structures + 1))
        voxels = np.bincount(runs.value, runs.stop - runs.start, minlength=len(shown))
        shown |= voxels > 0
        whole &= runs.largest(len(shown)) >= (1 - CRUMBS) * voxels
    return (shown & whole)[1:].tolist()


def find_runs(label: np.ndarray, structures: Sequence[int]) -> Runs:
    """The runs of some structures in a label map (D, H, W)."""
    row = label.shape[2] + 2
    plane = row * (label.shape[1] + 2)
    values, starts, stops = [], [], []
    for number, slice_ in enumerate(label, start=1):
        held = np.pad(np.where(np.isin(slice_, structures), slice_, 0), 1).ravel()
        edges = np.flatnonzero(held[1:] != held[:-1]) + 1
        inside = np.flatnonzero(held[edges])  # the frame follows the last of them
        values.append(held[edges[inside]])
        starts.append(edges[inside] + number * plane)
        stops.append(edges[inside + 1] + number * plane)
    value, start, stop = (np.concatenate(parts) for parts in (values, starts, stops))
    # runs of one structure that touch, by a corner too, are joined: each looks at the four lines before it
    pairs = [np.zeros((2, 0), np.intp)]
    for back in (row, plane - row, plane, plane + row):
        low = np.searchsorted(stop, start - back)  # those that end at or behind the run's start
        high = np.searchsorted(start, stop - back, side="right")  # and begin at or before its end
        count = np.maximum(high - low, 0)
        one = np.repeat(np.arange(len(value)), count)
        other = np.arange(len(one)) + np.repeat(low + count - np.cumsum(count), count)
        pairs.append(np.stack([one, other])[:, value[one] == value[other]])
    links = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(links.shape[1], dtype=bool), links), shape=(len(value), len(value)))
    component = connected_components(graph, directed=False)[1]
    return Runs(value, start, stop, np.bincount(component, stop - start)[component])
