"""Probabilities of many structures on one canvas, each kept only where it has any: organs fill a scan once,
however many they are.

Stored whole, a hundred structures cost a hundred canvases. Here each keeps the blocks in which it somewhere
reaches `least`, found through a table, so that memory follows the anatomy instead of the number of
structures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctseg.geometry.boxes import (
    Box,
    bounding_box,
    box_shape,
    box_start,
    box_stop,
    grow,
    intersection,
    make_box,
    move,
    whole_box,
    within,
)

# probabilities below this are 0 in blocks that hold no higher ones: no surface lies there, and no structure
# can win with it
LEAST = 1e-4
# voxels along each edge of a block: half as much is stored as with 8, and the table is a hundredth of the
# volume
EDGE = 4
_VOXELS_AT_ONCE = 1 << 21


class Probabilities:
    """Weighted means of probabilities that arrive window by window, not negative.

    shape: (D, H, W) of the canvas. Class 0 is background. Values in a class's blocks of EDGE^3 voxels are
    exact; what a window adds elsewhere is dropped where it is below `least`.
    """

    def __init__(self, n_classes: int, shape: Sequence[int], least: float = LEAST):
        self.n_classes = n_classes
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.least = least
        self._tables: dict[int, np.ndarray] = {}  # of each class: number of the block at each place
        # the first is that of all places without one; there are more than are in use
        self._blocks = np.zeros((1, EDGE, EDGE, EDGE), dtype=np.float32)
        self._used = 1

    @property
    def stored(self) -> int:
        """How many probabilities have a place in memory."""
        return (self._used - 1) * EDGE**3

    def add(self, place: tuple[slice, ...], values: np.ndarray, weight: np.ndarray | None = None) -> None:
        """Add the probabilities (S+1, d, h, w) of a window at `place`, times its share `weight` (d, h, w) in
        them."""
        d, h, w = place
        for number in np.flatnonzero(values.max(axis=(1, 2, 3)) >= self.least):
            self._add(int(number), (d, h, w), values[number] if weight is None else values[number] * weight)

    def _add(self, number: int, place: Box, values: np.ndarray) -> None:
        places = _places_of(place)
        wide = _in_voxels(places)
        padded = np.zeros(box_shape(wide), dtype=np.float32)
        padded[within(place, wide)] = values
        parts = np.ascontiguousarray(_in_blocks(padded))
        highest = parts.reshape(*parts.shape[:3], -1).max(axis=3)
        table = self._table(number)[places]
        wanted = (highest > 0) & ((highest >= self.least) | (table > 0))
        self._make_room(table, wanted)
        self._blocks[table[wanted]] += parts[wanted]

    def add_model(self, other: Probabilities) -> None:
        """Add another model's probabilities of the same canvas."""
        for number, table in other._tables.items():
            own, wanted = self._table(number), table > 0
            self._make_room(own, wanted)
            self._blocks[own[wanted]] += other._blocks[table[wanted]]

    def divide(self, by: float) -> None:
        """Divide every class by a number."""
        self._blocks[: self._used] /= by

    def fill_background(self, unseen: np.ndarray) -> None:
        """Make background certain where no window looked. unseen: bool (D, H, W)."""
        if unseen.any():
            self._add(0, whole_box(self.shape), unseen.astype(np.float32))

    def numbers(self) -> list[int]:
        """The structures that have any voxels at all, without background."""
        return sorted(number for number, table in self._tables.items() if number and table.any())

    def held_box(self, number: int) -> Box | None:
        """The box of whole blocks outside which a class has nothing; None where it has nothing at all."""
        found = bounding_box(self._tables[number]) if number in self._tables else None
        return None if found is None else intersection(_in_voxels(found), whole_box(self.shape))

    def part(self, number: int) -> tuple[Box, np.ndarray] | None:
        """(its box, float32 values in it) of a class, None where it has nothing."""
        box = self.held_box(number)
        return None if box is None else (box, self.cut(number, box))

    def whole(self, number: int) -> np.ndarray:
        """(D, H, W) float32 of one class."""
        return self.cut(number, whole_box(self.shape))

    def dense(self) -> np.ndarray:
        """(S+1, D, H, W) float32 of all classes."""
        return np.stack([self.whole(number) for number in range(self.n_classes)])

    def box_above(self, number: int, least: float, *, margin: int = 0) -> Box | None:
        """The box of the canvas where a class has at least `least`, `margin` voxels wider; None where it
        never has."""
        found = self.part(number)
        if found is None or (inner := bounding_box(found[1] >= least)) is None:
            return None
        return grow(move(inner, box_start(found[0])), margin, self.shape)

    def cut(self, number: int, box: Box) -> np.ndarray:
        """(d, h, w) float32: a class's values in a box of the canvas, 0 where it has none."""
        if number not in self._tables:
            return np.zeros(box_shape(box), dtype=np.float32)
        places = _places_of(box)
        table = self._tables[number][places]
        result = np.empty([n * EDGE for n in table.shape], dtype=np.float32)
        parts = _in_blocks(result)
        rows = max(1, _VOXELS_AT_ONCE // max(1, table[0].size * EDGE**3))
        for first in range(0, len(table), rows):
            parts[first : first + rows] = self._blocks[table[first : first + rows]]
        return result[within(box, _in_voxels(places))]

    def label(self) -> np.ndarray:
        """(D, H, W) number of the class with most weight; ties go to the lower number."""
        return self.highest()[0]

    def highest(self) -> tuple[np.ndarray, np.ndarray]:
        """(D, H, W) `label`, and float32 the probability of that class."""
        highest = np.pad(self.whole(0), [(0, -n % EDGE) for n in self.shape])
        label = np.zeros(highest.shape, dtype=np.uint8 if self.n_classes <= 256 else np.uint16)
        best, winners = _in_blocks(highest), _in_blocks(label)
        for number in self.numbers():
            stored = self._tables[number] > 0
            values, before = self._blocks[self._tables[number][stored]], best[stored]
            wins = values > before
            best[stored] = np.where(wins, values, before)
            winners[stored] = np.where(wins, label.dtype.type(number), winners[stored])
        box = whole_box(self.shape)
        return np.ascontiguousarray(label[box]), np.ascontiguousarray(highest[box])

    def _table(self, number: int) -> np.ndarray:
        """The table of a class; a new one where it has none yet."""
        if number not in self._tables:
            self._tables[number] = np.zeros([-(-n // EDGE) for n in self.shape], dtype=np.int32)
        return self._tables[number]

    def _make_room(self, table: np.ndarray, wanted: np.ndarray) -> None:
        """Give every wanted place a block. table: a part of the table of a class, changed in place."""
        new = wanted & (table == 0)
        end = self._used + int(np.count_nonzero(new))
        if end > len(self._blocks):
            # in place where the system can; new blocks are 0
            self._blocks.resize((max(end, len(self._blocks) * 5 // 4), EDGE, EDGE, EDGE), refcheck=False)
        table[new] = np.arange(self._used, end)
        self._used = end


def _places_of(box: Box) -> Box:
    """The box of places in a table whose blocks hold a box of voxels."""
    return make_box([side.start // EDGE for side in box], [-(-side.stop // EDGE) for side in box])


def _in_voxels(places: Box) -> Box:
    """The box of voxels in a box of places."""
    return make_box(np.multiply(box_start(places), EDGE), np.multiply(box_stop(places), EDGE))


def _in_blocks(array: np.ndarray) -> np.ndarray:
    """A view (nd, nh, nw, EDGE, EDGE, EDGE) of an array of whole blocks."""
    d, h, w = (n // EDGE for n in array.shape)
    return array.reshape(d, EDGE, h, EDGE, w, EDGE).transpose(0, 2, 4, 1, 3, 5)
