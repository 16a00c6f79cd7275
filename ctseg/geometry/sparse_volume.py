"""A volume of which only the parts that hold something are stored: small blocks, found through a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctseg.geometry.boxes import (
    Box,
    bounding_box,
    box_shape,
    box_start,
    box_stop,
    intersection,
    make_box,
    whole_box,
    within,
)

# voxels along each edge of a block: half as much is stored as with 8, and the table is a hundredth of the
# volume
EDGE = 4
_VOXELS_AT_ONCE = 1 << 21


class SparseVolume:
    """A (D, H, W) float32 array, 0 wherever nothing was added.

    What was added is stored in blocks of EDGE^3 voxels; the first block is that of all places without one.
    """

    def __init__(self, shape: Sequence[int]):
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        # number of the block at each place
        self._table = np.zeros([-(-n // EDGE) for n in self.shape], dtype=np.int32)
        self._blocks = np.zeros((1, EDGE, EDGE, EDGE), dtype=np.float32)  # more than are in use
        self._used = 1

    @property
    def stored(self) -> int:
        """How many voxels have a place in memory."""
        return (self._used - 1) * EDGE**3

    @property
    def box(self) -> Box | None:
        """The smallest box of whole blocks that holds everything, None when there is nothing."""
        found = bounding_box(self._table)
        return None if found is None else intersection(_in_voxels(found), whole_box(self.shape))

    def add(
        self, place: Box, values: np.ndarray, weight: np.ndarray | None = None, *, least: float = 0.0
    ) -> None:
        """Add `values` (d, h, w), not negative, times `weight` (d, h, w), at `place`. New blocks only where
        some value reaches `least`."""
        places = _places_of(place)
        wide = _in_voxels(places)
        padded, inner = np.zeros(box_shape(wide), dtype=np.float32), within(place, wide)
        if weight is None:
            padded[inner] = values
        else:
            np.multiply(values, weight, out=padded[inner])
        parts = np.ascontiguousarray(_in_blocks(padded))
        highest = parts.reshape(*parts.shape[:3], -1).max(axis=3)
        table = self._table[places]
        wanted = (highest > 0) & ((highest >= least) | (table > 0))
        self._make_room(table, wanted)
        self._blocks[table[wanted]] += parts[wanted]

    def add_volume(self, other: SparseVolume) -> None:
        """Add another volume of the same shape."""
        wanted = other._table > 0
        self._make_room(self._table, wanted)
        self._blocks[self._table[wanted]] += other._blocks[other._table[wanted]]

    def divide(self, by: float) -> None:
        """Divide by a number."""
        self._blocks[: self._used] /= by

    def dense(self, box: Box | None = None) -> np.ndarray:
        """(d, h, w) float32 of a box, default everything."""
        box = box or whole_box(self.shape)
        places = _places_of(box)
        table = self._table[places]
        result = np.empty([n * EDGE for n in table.shape], dtype=np.float32)
        parts = _in_blocks(result)
        rows = max(1, _VOXELS_AT_ONCE // max(1, table[0].size * EDGE**3))
        for first in range(0, len(table), rows):
            parts[first : first + rows] = self._blocks[table[first : first + rows]]
        return result[within(box, _in_voxels(places))]

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """(bool (nd, nh, nw): which places have a block; (n, EDGE, EDGE, EDGE): a copy of these)."""
        stored = self._table > 0
        return stored, self._blocks[self._table[stored]]

    def _make_room(self, table: np.ndarray, wanted: np.ndarray) -> None:
        """Give every wanted place a block. table: a part of the table, changed in place."""
        new = wanted & (table == 0)
        count = int(np.count_nonzero(new))
        if not count:
            return
        if self._used + count > len(self._blocks):
            size = max(self._used + count, len(self._blocks) * 5 // 4)
            # in place where the system can; new blocks are 0
            self._blocks.resize((size, EDGE, EDGE, EDGE), refcheck=False)
        table[new] = np.arange(self._used, self._used + count)
        self._used += count


def in_blocks(array: np.ndarray) -> np.ndarray:
    """(nd, nh, nw, EDGE, EDGE, EDGE) of a copy of an array (D, H, W) with zeros behind its ends."""
    return _in_blocks(np.pad(array, [(0, -n % EDGE) for n in array.shape]))


def from_blocks(blocks: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(D, H, W) of blocks as `in_blocks` gives them."""
    nd, nh, nw = blocks.shape[:3]
    return np.ascontiguousarray(
        blocks.transpose(0, 3, 1, 4, 2, 5).reshape(nd * EDGE, nh * EDGE, nw * EDGE)[whole_box(shape)]
    )


def _places_of(box: Box) -> Box:
    """The box of places in the table whose blocks hold a box of voxels."""
    return make_box([side.start // EDGE for side in box], [-(-side.stop // EDGE) for side in box])


def _in_voxels(places: Box) -> Box:
    """The box of voxels in a box of places."""
    return make_box(np.multiply(box_start(places), EDGE), np.multiply(box_stop(places), EDGE))


def _in_blocks(array: np.ndarray) -> np.ndarray:
    """A view (nd, nh, nw, EDGE, EDGE, EDGE) of an array of whole blocks."""
    d, h, w = (n // EDGE for n in array.shape)
    return array.reshape(d, EDGE, h, EDGE, w, EDGE).transpose(0, 2, 4, 1, 3, 5)
