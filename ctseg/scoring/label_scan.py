"""One sweep over two label maps: the confusion matrix of all labels and the box of each label in both maps.

Eight bytes at a time: most such words are background in both maps and are skipped, most others hold one label
each, and only those on the surfaces are looked at voxel by voxel.
"""

from __future__ import annotations

import numpy as np

Box = tuple[slice, ...]
# Small steps: what they hold stays in the cache and in memory that the process already has.
_READ = 1 << 15  # words read
_WAITING = 1 << 13  # words that are not background, collected before they are counted


class LabelScan:
    """What one sweep over two maps finds.

    prediction, reference: of one shape (D, H, W) and dtype, uint8 or uint16, any memory order, labels below n_labels.
    matrix: (n_labels, n_labels) int64 voxel counts, [reference label, prediction label].
    """

    def __init__(self, *, prediction: np.ndarray, reference: np.ndarray, n_labels: int):
        if (
            prediction.shape != reference.shape
            or prediction.dtype != reference.dtype
            or reference.dtype not in (np.uint8, np.uint16)
        ):
            raise ValueError(
                f"prediction {prediction.shape} {prediction.dtype} and reference {reference.shape} {reference.dtype} must be alike and uint8 or uint16"
            )
        self.n_labels, self.shape, self._dtype = n_labels, reference.shape, reference.dtype
        self._lanes = 8 // reference.itemsize  # voxels per word
        self._pair_type = np.min_scalar_type(n_labels**2 - 1)
        self.matrix = np.zeros((n_labels, n_labels), np.int64)
        # Per axis a table (label, coordinate), flat: whether the label occurs there.
        self._occurs = [np.zeros(n_labels * n, bool) for n in reference.shape]
        self._sweep(np.ascontiguousarray(prediction).reshape(-1), np.ascontiguousarray(reference).reshape(-1))

    def boxes(self, wanted: list[int]) -> dict[int, Box]:
        """For each wanted label above 0 the smallest box that holds it in both maps; labels in neither are left out."""
        tables = [occurs.reshape(self.n_labels, -1) for occurs in self._occurs]
        found = {}
        for label in wanted:
            ends = [np.flatnonzero(table[label])[[0, -1]] for table in tables if table[label].any()]
            if len(ends) == 3:
                found[label] = tuple(slice(int(first), int(last) + 1) for first, last in ends)
        return found

    def _sweep(self, prediction: np.ndarray, reference: np.ndarray) -> None:
        whole = reference.size // self._lanes
        cut = whole * self._lanes
        words = prediction[:cut].view(np.uint64), reference[:cut].view(np.uint64)
        waiting: list[tuple[np.ndarray, ...]] = []
        count = 0
        for start in range(0, whole, _READ):
            one, other = (array[start : start + _READ] for array in words)
            busy = np.flatnonzero((one | other) != 0)
            self.matrix[0, 0] += (one.size - busy.size) * self._lanes
            if busy.size:
                waiting.append((start + busy, one[busy], other[busy]))
                count += busy.size
            if waiting and (count > _WAITING or start + _READ >= whole):
                self._add_words(*map(np.concatenate, zip(*waiting)))
                waiting, count = [], 0
        if waiting:
            self._add_words(*map(np.concatenate, zip(*waiting)))
        if cut < reference.size:
            self._add_voxels(np.arange(cut, reference.size), prediction[cut:], reference[cut:], 1)

    def _add_words(self, places: np.ndarray, prediction: np.ndarray, reference: np.ndarray) -> None:
        """Counts words; places: their numbers in the map."""
        first = places * self._lanes  # flat position of a word's first voxel
        even = self._is_even(prediction) & self._is_even(reference)
        if self.shape[2] % self._lanes:
            even &= first % self.shape[2] <= self.shape[2] - self._lanes  # the word lies in one row
        self._add_even(
            first[even],
            prediction[even].view(self._dtype)[:: self._lanes],
            reference[even].view(self._dtype)[:: self._lanes],
        )
        mixed = np.flatnonzero(~even)
        self._add_voxels(
            first[mixed], prediction[mixed].view(self._dtype), reference[mixed].view(self._dtype), self._lanes
        )

    def _is_even(self, words: np.ndarray) -> np.ndarray:
        """Whether all voxels of a word hold one label: turning it by one voxel changes nothing."""
        bits = np.uint64(64 // self._lanes)
        return (words << bits | words >> (np.uint64(64) - bits)) == words

    def _add_even(self, first: np.ndarray, prediction: np.ndarray, reference: np.ndarray) -> None:
        """Words of one label in each map, given by one voxel each."""
        self._count(prediction, reference, self._lanes)
        for labels, chosen in (
            (reference, np.flatnonzero(reference)),
            (prediction, np.flatnonzero(prediction != reference)),
        ):
            self._mark(labels[chosen], first[chosen], self._lanes - 1)

    def _add_voxels(
        self, first: np.ndarray, prediction: np.ndarray, reference: np.ndarray, lanes: int
    ) -> None:
        """Runs of `lanes` voxels each, a power of 2; first: flat position of each run's first voxel."""
        self._count(prediction, reference, 1)
        shift = lanes.bit_length() - 1
        for labels, chosen in (
            (reference, np.flatnonzero(reference)),
            (prediction, np.flatnonzero(prediction != reference)),
        ):
            positions = first[chosen >> shift]
            positions += chosen & (lanes - 1)
            self._mark(labels[chosen], positions, 0)

    def _count(self, prediction: np.ndarray, reference: np.ndarray, voxels: int) -> None:
        pairs = reference.astype(self._pair_type)
        pairs *= self._pair_type.type(self.n_labels) if self.n_labels > 1 else 1
        pairs += prediction.astype(self._pair_type, copy=False)
        self.matrix += voxels * np.bincount(pairs, minlength=self.n_labels**2).reshape(self.matrix.shape)

    def _mark(self, labels: np.ndarray, positions: np.ndarray, further: int) -> None:
        """Notes the coordinates of voxels, and of those `further` along the row. (Label 0 is noted in part only.)"""
        labels = labels.astype(np.intp)
        rows = positions // self.shape[2]
        planes = rows // self.shape[1]
        positions -= rows * self.shape[2]
        rows -= planes * self.shape[1]
        for occurs, size, places in zip(self._occurs, self.shape, (planes, rows, positions)):
            places += labels * size
            occurs[places] = True
        if further:
            positions += further
            self._occurs[2][positions] = True
