"""One sweep over two label maps: the confusion matrix of all labels and the box of each label in both maps.

Eight voxels at a time: most words of eight are background in both maps and are skipped, most others hold one label
each, and only those on the surfaces are looked at voxel by voxel.
"""

from __future__ import annotations

import numpy as np

Box = tuple[slice, ...]
_CHUNK = 1 << 18  # words per step: the temporaries stay small


class LabelScan:
    """What one sweep finds. matrix: (n_labels, n_labels) int64 voxel counts, [reference, prediction].

    prediction, reference: uint8 or uint16 (D, H, W) of labels below n_labels, any memory order.
    """

    def __init__(self, *, prediction: np.ndarray, reference: np.ndarray, n_labels: int):
        self.n_labels, self.shape = n_labels, reference.shape
        self.matrix = np.zeros((n_labels, n_labels), np.int64)
        # Per axis whether a label occurs at a coordinate.
        self._occurs = [np.zeros(n_labels * n, bool) for n in reference.shape]
        prediction, reference = np.ascontiguousarray(prediction).reshape(-1), np.ascontiguousarray(reference).reshape(-1)
        self._lanes = 8 // reference.itemsize
        whole = reference.size // self._lanes
        cut = whole * self._lanes
        prediction_words, reference_words = prediction[:cut].view(np.uint64), reference[:cut].view(np.uint64)
        for start in range(0, whole, _CHUNK):
            self._add_words(start, prediction_words[start : start + _CHUNK], reference_words[start : start + _CHUNK], prediction.dtype)
        if cut < reference.size:
            self._add_voxels(np.arange(cut, reference.size), prediction[cut:], reference[cut:])

    def boxes(self, wanted: list[int]) -> dict[int, Box]:
        """For each wanted label the smallest box that holds it in both maps; labels in neither are left out."""
        tables = [occurs.reshape(self.n_labels, -1) for occurs in self._occurs]
        found = {}
        for label in wanted:
            ends = [np.flatnonzero(table[label])[[0, -1]] for table in tables if table[label].any()]
            if len(ends) == 3:
                found[label] = tuple(slice(int(first), int(last) + 1) for first, last in ends)
        return found

    def _add_words(self, start: int, prediction: np.ndarray, reference: np.ndarray, dtype: np.dtype) -> None:
        busy = np.flatnonzero((prediction | reference) != 0)
        self.matrix[0, 0] += (prediction.size - busy.size) * self._lanes
        prediction, reference = prediction[busy], reference[busy]
        first = (start + busy) * self._lanes  # flat position of a word's first voxel
        even = _is_even(prediction, dtype) & _is_even(reference, dtype)
        if self.shape[2] % self._lanes:
            even &= first % self.shape[2] <= self.shape[2] - self._lanes  # the word lies in one row
        self._add_even(first[even], _first_lane(prediction[even], dtype), _first_lane(reference[even], dtype))
        mixed = ~even
        positions = (first[mixed][:, None] + np.arange(self._lanes)).reshape(-1)
        self._add_voxels(positions, prediction[mixed].view(dtype), reference[mixed].view(dtype))

    def _add_even(self, first: np.ndarray, prediction: np.ndarray, reference: np.ndarray) -> None:
        """Words of one label in each map."""
        self._count(prediction, reference, self._lanes)
        coordinates = self._coordinates(first)
        for labels, chosen in ((reference, slice(None)), (prediction, prediction != reference)):
            self._mark(labels[chosen], [axis[chosen] for axis in coordinates])
            self._occurs[2][labels[chosen] * self.shape[2] + coordinates[2][chosen] + (self._lanes - 1)] = True

    def _add_voxels(self, positions: np.ndarray, prediction: np.ndarray, reference: np.ndarray) -> None:
        prediction, reference = prediction.astype(np.intp), reference.astype(np.intp)
        self._count(prediction, reference, 1)
        for labels, chosen in ((reference, reference != 0), (prediction, prediction != reference)):
            self._mark(labels[chosen], self._coordinates(positions[chosen]))

    def _count(self, prediction: np.ndarray, reference: np.ndarray, voxels: int) -> None:
        counted = np.bincount(reference * self.n_labels + prediction, minlength=self.n_labels**2)
        self.matrix += voxels * counted.reshape(self.matrix.shape)

    def _coordinates(self, positions: np.ndarray) -> list[np.ndarray]:
        rows = positions // self.shape[2]
        planes = rows // self.shape[1]
        return [planes, rows - planes * self.shape[1], positions - rows * self.shape[2]]

    def _mark(self, labels: np.ndarray, coordinates: list[np.ndarray]) -> None:
        for occurs, size, places in zip(self._occurs, self.shape, coordinates):
            occurs[labels * size + places] = True


def _first_lane(words: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return words.view(dtype)[:: 8 // dtype.itemsize].astype(np.intp)


def _is_even(words: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Whether all voxels of a word hold one label: turning it by one voxel changes nothing."""
    bits = np.uint64(8 * dtype.itemsize)
    return (words << bits | words >> (np.uint64(64) - bits)) == words
