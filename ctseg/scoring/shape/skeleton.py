"""Centre lines of masks: 3-D thinning that keeps the topology (foreground 26-connected, background
6-connected).

After Lee, Kashyap and Chu (CVGIP: Graphical Models and Image Processing 56(6), 1994): layer by layer, from
six sides in turn, border voxels are deleted that are simple (their deletion changes no component, tunnel or
cavity) and no end of a line. Two differences. Whether a voxel is simple is decided by the part of its surface
that it shares with its neighbours. And the candidates of one side are deleted in eight groups, by the parity
of their coordinates: no two voxels of a group touch, so a whole group is tested again and deleted at once,
and every deletion is safe. As in the original only the first test looks for ends of lines: with it in the
second one, spurs stay everywhere.

A component therefore never vanishes, not even the 2 x 2 x 2 cube or the 2 x 2 x 8 bar that common
implementations of Lee's thinning delete entirely.
"""

from __future__ import annotations

import itertools

import numpy as np

from ctseg.geometry.boxes import tight_box

# The 26 neighbours of a voxel; a neighbourhood is a 26-bit number, bit k for neighbour k. The surface of the
# voxel (a cube) has 26 cells too, 6 faces, 12 edges and 8 corners, one towards each neighbour: they share the
# numbering.
_OFFSETS = np.array([offset for offset in itertools.product((-1, 0, 1), repeat=3) if any(offset)])
# the nine rows of three voxels along the last axis
_ROWS = np.array(list(itertools.product((-1, 0, 1), repeat=2)))
_HALF = 13
# Bits of a voxel's row: the one before it, itself, the one after it.
_BEFORE, _SELF, _AFTER = (np.uint8(bit) for bit in (1, 2, 4))
_LOW = np.uint32((1 << _HALF) - 1)


def _bits(members: np.ndarray) -> int:
    """The number whose bit k is members[k]."""
    return sum(1 << int(k) for k in np.flatnonzero(members))


def _tables(relation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two tables, for the lower and the upper 13 bits of a set: the union of relation[k] over its members k.

    relation: (26, 26) bool.
    """
    halves = []
    for start in (0, _HALF):
        table = np.zeros(1 << _HALF, np.uint32)
        for k in range(_HALF):
            table[1 << k : 2 << k] = table[: 1 << k] | np.uint32(_bits(relation[start + k]))
        halves.append(table)
    return halves[0], halves[1]


# Neighbours that touch each other (or are the same), and the surface cells that a neighbour covers: the cell
# lies wherever the neighbour's offset is not 0 on the same side.
_TOUCHING = _tables(np.abs(_OFFSETS[:, None] - _OFFSETS[None]).max(axis=2) <= 1)
_COVERED = _tables(((_OFFSETS[:, None] == 0) | (_OFFSETS[:, None] == _OFFSETS[None])).all(axis=2))
_FACES, _EDGES, _CORNERS = (np.uint32(_bits(np.abs(_OFFSETS).sum(axis=1) == n)) for n in (1, 2, 3))


def skeletonise(mask: np.ndarray) -> np.ndarray:
    """The centre lines of a mask (D, H, W), bool of the same shape. Empty stays empty; the input is not
    changed.

    One voxel wide except where lines meet, with the Betti numbers of the mask: tunnels stay as rings,
    cavities as shells. The outside of the array counts as background. Does not depend on where in the array
    the mask lies.
    """
    mask = np.asarray(mask).astype(bool, copy=False)
    result = np.zeros(mask.shape, bool)
    if mask.any():
        box = tight_box(mask)
        grid = np.pad(np.ascontiguousarray(mask[box]).view(np.uint8), 1)  # thin_in_place needs the order of C
        thin_in_place(grid)
        result[box] = grid[1:-1, 1:-1, 1:-1]
    return result


def thin_in_place(grid: np.ndarray) -> None:
    """Thin a contiguous uint8 array in place; its outermost voxels are background.

    `rows` holds three voxels in each element (the one before, itself, the one after), so that a neighbourhood
    is read in 9 steps instead of 26.
    """
    strides = np.array([grid.shape[1] * grid.shape[2], grid.shape[2], 1])
    flat, steps = grid.reshape(-1), _ROWS @ strides[:2]
    rows = flat << 1
    rows[1:] |= flat[:-1]
    rows[:-1] |= flat[1:] << 2
    active = np.flatnonzero(flat)
    d, h, w = np.unravel_index(active, grid.shape)
    parity = (d & 1) * 4 + (h & 1) * 2 + (w & 1)
    while True:
        for side in (strides[0], -strides[0], strides[1], -strides[1], strides[2], -strides[2]):
            at_border = (rows[active] & _SELF != 0) & (rows[active + side] & _SELF == 0)
            border, groups = active[at_border], parity[at_border]
            codes = _neighbourhoods(rows, border, steps)
            thin = (np.bitwise_count(codes) > 1) & is_simple(codes)  # one neighbour: the end of a line
            border, groups = border[thin], groups[thin]
            for group in range(8):  # no two of a group touch
                candidates = border[groups == group]
                gone = candidates[is_simple(_neighbourhoods(rows, candidates, steps))]
                rows[gone] &= ~_SELF
                rows[gone - 1] &= ~_AFTER
                rows[gone + 1] &= ~_BEFORE
        left = rows[active] & _SELF != 0
        if left.all():
            flat[:] = rows >> 1 & 1
            return
        active, parity = active[left], parity[left]


def _neighbourhoods(rows: np.ndarray, positions: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The 26-bit neighbourhood (uint32) of each flat position; steps: to the nine rows around it."""
    codes = np.zeros(positions.size, np.uint32)
    for k, step in enumerate(steps):
        codes |= rows[positions + step].astype(np.uint32) << np.uint32(3 * k)
    return codes & _LOW | codes >> np.uint32(_HALF + 1) << np.uint32(_HALF)  # without the voxel itself


def is_simple(codes: np.ndarray) -> np.ndarray:
    """Whether deleting a voxel with this neighbourhood (uint32) changes no component, tunnel or cavity.

    That is so when the part of the voxel's surface that is shared with foreground neighbours is one piece
    without a hole: connected, and of Euler number 1. An isolated voxel shares nothing (0), an inner one
    everything (2).
    """
    covered = _union(_COVERED, codes)
    euler = (
        np.bitwise_count(covered & _CORNERS).astype(np.int8)
        - np.bitwise_count(covered & _EDGES)
        + np.bitwise_count(covered & _FACES)
    )
    simple = euler == 1
    simple[simple] = _is_connected(codes[simple])
    return simple


def _is_connected(codes: np.ndarray) -> np.ndarray:
    """Whether the foreground neighbours are one piece among themselves (26-connected)."""
    reached = codes & (~codes + np.uint32(1))  # the lowest of them
    while True:
        grown = _union(_TOUCHING, reached) & codes
        if np.array_equal(grown, reached):
            return reached == codes
        reached = grown


def _union(tables: tuple[np.ndarray, np.ndarray], codes: np.ndarray) -> np.ndarray:
    return tables[0][codes & _LOW] | tables[1][codes >> np.uint32(_HALF)]
