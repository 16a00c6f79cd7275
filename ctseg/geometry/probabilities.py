"""Probabilities of many structures on one canvas, each kept only where it has any: organs fill a scan once,
however many they are.

Stored whole, a hundred structures cost a hundred canvases. Here each keeps the blocks in which it somewhere
reaches `least`, so that memory follows the anatomy instead of the number of structures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctseg.geometry.boxes import Box, bounding_box, box_shape, box_start, grow, move, whole_box
from ctseg.geometry.sparse_volume import SparseVolume, from_blocks, in_blocks

# probabilities below this are 0 in blocks that hold no higher ones: no surface lies there, and no structure
# can win with it
LEAST = 1e-4


class Probabilities:
    """Weighted means of probabilities that arrive window by window, one sparse volume per class.

    shape: (D, H, W) of the canvas. Class 0 is background. Values in a class's blocks are exact; what a window
    adds elsewhere is dropped where it is below `least`.
    """

    def __init__(self, n_classes: int, shape: Sequence[int], least: float = LEAST):
        self.n_classes = n_classes
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.least = least
        self._parts: dict[int, SparseVolume] = {}

    @property
    def stored(self) -> int:
        """How many probabilities have a place in memory."""
        return sum(part.stored for part in self._parts.values())

    def add(self, place: tuple[slice, ...], values: np.ndarray, weight: np.ndarray | None = None) -> None:
        """Add the probabilities (S+1, d, h, w) of a window at `place`, times its share `weight` (d, h, w) in
        them."""
        d, h, w = place
        highest = values.max(axis=(1, 2, 3))
        for number in np.flatnonzero(highest >= self.least):
            self._of(int(number)).add((d, h, w), values[number], weight, least=self.least)

    def add_model(self, other: Probabilities) -> None:
        """Add another model's probabilities of the same canvas."""
        for number, part in other._parts.items():
            self._of(number).add_volume(part)

    def divide(self, by: float) -> None:
        """Divide every class by a number."""
        for part in self._parts.values():
            part.divide(by)

    def fill_background(self, unseen: np.ndarray) -> None:
        """Make background certain where no window looked. unseen: bool (D, H, W)."""
        if unseen.any():
            self._of(0).add(whole_box(self.shape), unseen.astype(np.float32))

    def numbers(self) -> list[int]:
        """The structures that have any voxels at all, without background."""
        return sorted(number for number, part in self._parts.items() if number and part.stored)

    def held_box(self, number: int) -> Box | None:
        """The box outside which a class has nothing; None where it has nothing at all."""
        return self._parts[number].box if number in self._parts else None

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

    def leading(self) -> np.ndarray:
        """(D, H, W) float32: the highest probability of any class, background too."""
        best = in_blocks(self.whole(0))
        for number in self.numbers():
            stored, values = self._parts[number].blocks()
            best[stored] = np.maximum(best[stored], values)
        return from_blocks(best, self.shape)

    def box_above(self, number: int, least: float, *, margin: int = 0) -> Box | None:
        """The box of the canvas where a class has at least `least`, `margin` voxels wider; None where it
        never has."""
        found = self.part(number)
        if found is None or (inner := bounding_box(found[1] >= least)) is None:
            return None
        return grow(move(inner, box_start(found[0])), margin, self.shape)

    def cut(self, number: int, box: Box) -> np.ndarray:
        """(d, h, w) float32: a class's values in a box of the canvas, 0 where it has none."""
        held = self._parts.get(number)
        return np.zeros(box_shape(box), dtype=np.float32) if held is None else held.dense(box)

    def label(self) -> np.ndarray:
        """(D, H, W) number of the class with most weight; ties go to the lower number."""
        best = in_blocks(self.whole(0))
        winners = np.zeros(best.shape, dtype=np.uint8 if self.n_classes <= 256 else np.uint16)
        for number in self.numbers():
            stored, values = self._parts[number].blocks()
            before = best[stored]
            wins = values > before
            best[stored] = np.where(wins, values, before)
            winners[stored] = np.where(wins, winners.dtype.type(number), winners[stored])
        return from_blocks(winners, self.shape)

    def _of(self, number: int) -> SparseVolume:
        """The volume of a class; a new one where it has none yet."""
        if number not in self._parts:
            self._parts[number] = SparseVolume(self.shape)
        return self._parts[number]
