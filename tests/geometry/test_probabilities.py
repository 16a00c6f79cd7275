"""Probabilities stored in blocks against dense arrays to which the same is done."""

from __future__ import annotations

import numpy as np
import pytest

from ctseg.geometry.probabilities import EDGE, Probabilities


def random_values(rng: np.random.Generator, place: tuple[slice, ...]) -> np.ndarray:
    size = [part.stop - part.start for part in place]
    values = rng.random(size, dtype=np.float32)
    values[rng.random(size) < 0.9] = 0
    return values


def random_place(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[slice, ...]:
    starts = [int(rng.integers(0, n)) for n in shape]
    stops = [int(rng.integers(start + 1, n + 1)) for start, n in zip(starts, shape)]
    return tuple(slice(*pair) for pair in zip(starts, stops))


@pytest.mark.parametrize("shape", [(9, 14, 17), (8, 4, 12), (1, 3, 30)])
def test_what_was_added_is_there_in_every_box(shape):
    rng = np.random.default_rng(0)
    for _ in range(10):
        ours, other, dense = Probabilities(2, shape, 0.0), Probabilities(2, shape, 0.0), np.zeros((2, *shape))
        for part in (ours, other, ours, other, ours):
            place = random_place(rng, shape)
            values = np.stack([random_values(rng, place) for _ in range(2)])
            weight = rng.random(values.shape[1:], dtype=np.float32)
            part.add(place, values, weight)
            dense[(slice(None), *place)] += values * weight
        ours.add_model(other)
        ours.divide(3.0)
        dense /= 3
        for number in range(2):
            np.testing.assert_allclose(ours.whole(number), dense[number], rtol=1e-6)
            place = random_place(rng, shape)
            np.testing.assert_allclose(ours.cut(number, place), dense[number][place], rtol=1e-6)
        label, highest = ours.highest()
        np.testing.assert_allclose(highest, dense.max(axis=0), rtol=1e-6)
        assert np.array_equal(label, ours.label()) and np.array_equal(label, dense.argmax(axis=0))
        for number in range(2):
            box = ours.held_box(number)
            assert box is not None
            dense[number][box] = 0
        assert not dense.any()


def test_only_blocks_that_reach_the_least_value_are_stored_and_those_keep_everything():
    values = np.zeros((1, 12, 12, 12), np.float32)
    for place, value in ((0, 0.5), (5, 0.2), (4, 0.001), (9, 0.001)):
        values[0, place, place, place] = value
    sparse, place = Probabilities(1, (12, 12, 12), 0.01), (slice(0, 12),) * 3
    sparse.add(place, values)
    assert sparse.stored == 2 * EDGE**3
    assert sparse.whole(0)[4, 4, 4] == np.float32(0.001) and sparse.whole(0)[9, 9, 9] == 0
    corner = np.full_like(values, 0.001)
    corner[0, 0, 0, 0] = 0.01
    sparse.add(place, corner)  # elsewhere too little for a new block
    assert sparse.stored == 2 * EDGE**3 and sparse.whole(0)[5, 5, 5] == np.float32(0.201)


def test_what_is_empty_is_zero_and_has_no_box():
    sparse = Probabilities(1, (5, 6, 7), 0.0)
    sparse.add((slice(0, 5), slice(0, 6), slice(0, 7)), np.zeros((1, 5, 6, 7), np.float32))
    assert sparse.held_box(0) is None and sparse.stored == 0 and not sparse.whole(0).any()
