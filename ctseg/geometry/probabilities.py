"""Probabilities of many structures on one canvas, each kept only where it has any: organs fill a scan once, however many they are.

Stored whole, a hundred structures cost a hundred canvases. Here each keeps the blocks in which it somewhere reaches `least`,
so that memory follows the anatomy instead of the number of structures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ctseg.geometry.sparse_volume import Box, SparseVolume, extent, from_blocks, in_blocks

LEAST = 1e-4  # probabilities below this are 0 in blocks that hold no higher ones: no surface lies there, and no structure can win with it


class Shares:
    """Weighted means of probabilities that arrive window by window, one sparse volume per class.

    shape: (D, H, W) of the canvas. Class 0 is background. Values in a class's blocks are exact; what a window adds
    elsewhere is dropped where it is below `least`.
    """

    def __init__(self, n_classes: int, shape: Sequence[int], least: float = LEAST):
        self.n_classes = n_classes
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.least = least
        self._parts: dict[int, SparseVolume] = {}

    @classmethod
    def of(cls, probabilities: np.ndarray) -> Shares:
        """From whole arrays (S+1, D, H, W), nothing dropped."""
        result = cls(len(probabilities), probabilities.shape[1:], least=0.0)
        result.add((slice(0, n) for n in result.shape), probabilities)
        return result

    @property
    def stored(self) -> int:
        """How many probabilities have a place in memory."""
        return sum(part.stored for part in self._parts.values())

    def add(self, place: Iterable[slice], values: np.ndarray, weight: np.ndarray | None = None) -> None:
        """Add the probabilities (S+1, d, h, w) of a window at `place`, times its share `weight` (d, h, w) in them."""
        window = tuple(place)
        highest = values.max(axis=(1, 2, 3))
        for number in np.flatnonzero(highest >= self.least):
            self._of(int(number)).add(window, values[number], weight, least=self.least)

    def add_shares(self, other: Shares) -> None:
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
            self._of(0).add([slice(0, n) for n in self.shape], unseen.astype(np.float32))

    def numbers(self) -> list[int]:
        """The structures that have any voxels at all, without background."""
        return sorted(number for number, part in self._parts.items() if number and part.stored)

    def part(self, number: int) -> tuple[Box, np.ndarray] | None:
        """(its box, float32 values in it) of a class, None where it has nothing."""
        held = self._parts.get(number)
        box = None if held is None else held.box
        return None if held is None or box is None else (box, held.dense(box))

    def whole(self, number: int) -> np.ndarray:
        """(D, H, W) float32 of one class."""
        return (
            self._parts[number].dense() if number in self._parts else np.zeros(self.shape, dtype=np.float32)
        )

    def leading(self) -> np.ndarray:
        """(D, H, W) float32: the highest probability of any class, background too."""
        best = in_blocks(self.whole(0))
        for number in self.numbers():
            stored, values = self._parts[number].blocks()
            best[stored] = np.maximum(best[stored], values)
        return from_blocks(best, self.shape)

    def region(
        self, number: int, least: float, *, margin: int = 0
    ) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
        """(first voxel, shape) of the part of the canvas where a class has at least `least`, `margin` voxels wider; None where it never has."""
        found = self.part(number)
        if found is None or not (hits := found[1] >= least).any():
            return None
        inner = extent(hits)
        d, h, w = (
            (max(0, held.start + part.start - margin), min(size, held.start + part.stop + margin))
            for held, part, size in zip(found[0], inner, self.shape)
        )
        return (d[0], h[0], w[0]), (d[1] - d[0], h[1] - h[0], w[1] - w[0])

    def cut(self, number: int, region: tuple[tuple[int, int, int], tuple[int, int, int]]) -> np.ndarray:
        """A class's values in a region (first voxel, shape) of the canvas, 0 where it has none."""
        start, shape = region
        if number not in self._parts:
            return np.zeros(shape, dtype=np.float32)
        d, h, w = (slice(s, s + n) for s, n in zip(start, shape))
        return self._parts[number].dense((d, h, w))

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
