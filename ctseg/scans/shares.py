"""Probabilities of many structures on one canvas, each kept only where it has any: organs fill a scan once, however many they are.

Stored whole, a hundred structures cost a hundred canvases. Here each keeps the box outside which it is less than `least` everywhere,
so that memory follows the anatomy instead of the number of structures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Box = tuple[slice, slice, slice]
LEAST = 1e-3  # probabilities below this are 0 outside a structure's box: no surface lies there, and no structure can win with it


def least_of(n_classes: int) -> float:
    """The probability below which a class of so many needs no voxels: a tenth of what can win at all."""
    return min(LEAST, 0.1 / n_classes)


class Shares:
    """Weighted sums of probabilities that arrive window by window, one array per class, in boxes that grow.

    shape: (D, H, W) of the canvas. Class 0 is background. Values inside a class's box are exact; what is dropped outside it was
    below `least` in the window that it came from.
    """

    def __init__(self, n_classes: int, shape: Sequence[int], least: float | None = None):
        self.n_classes = n_classes
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.least = least_of(n_classes) if least is None else least
        self._parts: dict[int, tuple[Box, np.ndarray]] = {}

    @classmethod
    def of(cls, probabilities: np.ndarray) -> Shares:
        """From whole arrays (S+1, D, H, W), nothing dropped."""
        result = cls(len(probabilities), probabilities.shape[1:], least=0.0)
        result.add((slice(0, n) for n in result.shape), probabilities)
        return result

    def add(self, place: Iterable[slice], values: np.ndarray, weight: np.ndarray | None = None) -> None:
        """Add the probabilities (S+1, d, h, w) of a window at `place`, times `weight` (d, h, w)."""
        window = tuple(place)
        highest = values.reshape(len(values), -1).max(axis=1)
        for number in np.flatnonzero(highest >= self.least):
            inner = _occupied(values[number], self.least)
            part = values[number][inner] if weight is None else values[number][inner] * weight[inner]
            self._room(int(number), _shifted(inner, window))[...] += part

    def add_shares(self, other: Shares) -> None:
        """Add another model's probabilities of the same canvas."""
        for number, (box, values) in other._parts.items():
            self._room(number, box)[...] += values

    def divide(self, weights: np.ndarray | float) -> None:
        """Divide every class by the summed weights (D, H, W) of the windows, or by a number."""
        for box, values in self._parts.values():
            values /= weights[box] if isinstance(weights, np.ndarray) else weights

    def fill_background(self, unseen: np.ndarray) -> None:
        """Make background certain where no window looked. unseen: bool (D, H, W)."""
        if unseen.any():
            inner = _occupied(unseen, True)
            self._room(0, inner)[...] += unseen[inner]

    def numbers(self) -> list[int]:
        """The structures that have any voxels at all, without background."""
        return sorted(number for number in self._parts if number)

    def part(self, number: int) -> tuple[Box, np.ndarray] | None:
        """(its box, float32 values in it) of a class, None where it has none."""
        return self._parts.get(number)

    def whole(self, number: int) -> np.ndarray:
        """(D, H, W) float32 of one class."""
        result = np.zeros(self.shape, dtype=np.float32)
        if (found := self._parts.get(number)) is not None:
            result[found[0]] = found[1]
        return result

    def leading(self) -> np.ndarray:
        """(D, H, W) float32: the highest probability of any class, background too."""
        best = self.whole(0)
        for number in self.numbers():
            box, values = self._parts[number]
            np.maximum(best[box], values, out=best[box])
        return best

    def region(self, number: int, least: float, *, margin: int = 0) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
        """(first voxel, shape) of the part of the canvas where a class has at least `least`, `margin` voxels wider; None where it never has."""
        box, values = self._parts[number]
        if not (values >= least).any():
            return None
        inner = _shifted(_occupied(values, least), box)
        d, h, w = ((max(0, part.start - margin), min(size, part.stop + margin)) for part, size in zip(inner, self.shape))
        return (d[0], h[0], w[0]), (d[1] - d[0], h[1] - h[0], w[1] - w[0])

    def cut(self, number: int, region: tuple[tuple[int, int, int], tuple[int, int, int]]) -> np.ndarray:
        """A class's values in a region (first voxel, shape) of the canvas, 0 where it has none."""
        start, shape = region
        result = np.zeros(shape, dtype=np.float32)
        if (found := self._parts.get(number)) is not None:
            box, values = found
            common = [slice(max(part.start, s), min(part.stop, s + n)) for part, s, n in zip(box, start, shape)]
            if all(part.start < part.stop for part in common):
                result[tuple(slice(part.start - s, part.stop - s) for part, s in zip(common, start))] = values[_inside((common[0], common[1], common[2]), box)]
        return result

    def label(self) -> np.ndarray:
        """(D, H, W) number of the class with most weight; ties go to the lower number."""
        winners = np.zeros(self.shape, dtype=np.uint8 if self.n_classes <= 256 else np.uint16)
        best = self.whole(0)
        for number in self.numbers():
            box, values = self._parts[number]
            wins = values > best[box]
            best[box][wins] = values[wins]
            winners[box][wins] = number
        return winners

    def _room(self, number: int, box: Box) -> np.ndarray:
        """The array of a class at `box`, which its own box now holds."""
        if number not in self._parts:
            self._parts[number] = (box, np.zeros([part.stop - part.start for part in box], dtype=np.float32))
        held, values = self._parts[number]
        d, h, w = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(held, box))
        if (d, h, w) != held:
            grown = np.zeros([part.stop - part.start for part in (d, h, w)], dtype=np.float32)
            grown[_inside(held, (d, h, w))] = values
            held, values = (d, h, w), grown
            self._parts[number] = (held, values)
        return values[_inside(box, held)]


def _occupied(values: np.ndarray, least: float) -> Box:
    """The smallest box that holds all values of at least `least`; everything when least is 0."""
    hits = values >= least
    d, h, w = ((int(places[0]), int(places[-1]) + 1) for axis in range(3)
               if len(places := np.flatnonzero(hits.any(axis=tuple(other for other in range(3) if other != axis)))))
    return slice(*d), slice(*h), slice(*w)


def _shifted(box: Box, window: Sequence[slice]) -> Box:
    d, h, w = (slice(window[axis].start + box[axis].start, window[axis].start + box[axis].stop) for axis in range(3))
    return d, h, w


def _inside(box: Box, held: Box) -> Box:
    d, h, w = (slice(box[axis].start - held[axis].start, box[axis].stop - held[axis].start) for axis in range(3))
    return d, h, w
