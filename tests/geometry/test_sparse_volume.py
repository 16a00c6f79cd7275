"""A sparse volume against a dense array to which the same is done."""

from __future__ import annotations

import numpy as np
import pytest

from ctseg.geometry.sparse_volume import EDGE, SparseVolume, from_blocks, in_blocks


def random_part(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], np.ndarray]:
    starts = [int(rng.integers(0, n)) for n in shape]
    stops = [int(rng.integers(start + 1, n + 1)) for start, n in zip(starts, shape)]
    place = tuple(slice(*pair) for pair in zip(starts, stops))
    size = [part.stop - part.start for part in place]
    values = rng.random(size, dtype=np.float32)
    values[rng.random(size) < 0.9] = 0
    return place, values


@pytest.mark.parametrize("shape", [(9, 14, 17), (8, 4, 12), (1, 3, 30)])
def test_what_was_added_is_there_in_every_box(shape):
    rng = np.random.default_rng(0)
    for _ in range(10):
        sparse, other, dense = SparseVolume(shape), SparseVolume(shape), np.zeros(shape, np.float32)
        for volume in (sparse, other, sparse, other, sparse):
            place, values = random_part(rng, shape)
            weight = rng.random(values.shape, dtype=np.float32)
            volume.add(place, values, weight)
            dense[place] += values * weight
        sparse.add_volume(other)
        sparse.divide(3.0)
        dense /= 3
        np.testing.assert_allclose(sparse.dense(), dense, rtol=1e-6)
        place, _ = random_part(rng, shape)
        np.testing.assert_allclose(sparse.dense(place), dense[place], rtol=1e-6)
        stored, values = sparse.blocks()
        assert (
            np.array_equal(values, in_blocks(sparse.dense())[stored]) and not in_blocks(dense)[~stored].any()
        )
        box = sparse.box
        assert box is not None
        dense[box] = 0
        assert not dense.any()


def test_the_ends_of_a_volume_need_no_whole_blocks():
    array = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    parts = in_blocks(array)
    assert (
        parts.shape == (2, 2, 2, EDGE, EDGE, EDGE)
        and parts[1, 1, 1, 1, 2, 3] == 0
        and parts.sum() == array.sum()
    )
    assert np.array_equal(from_blocks(parts, array.shape), array)


def test_only_blocks_that_reach_the_least_value_are_stored_and_those_keep_everything():
    values = np.zeros((12, 12, 12), np.float32)
    values[0, 0, 0], values[5, 5, 5], values[4, 4, 4], values[9, 9, 9] = 0.5, 0.2, 0.001, 0.001
    sparse, place = SparseVolume(values.shape), (slice(0, 12),) * 3
    sparse.add(place, values, least=0.01)
    assert sparse.stored == 2 * EDGE**3
    assert sparse.dense()[4, 4, 4] == np.float32(0.001) and sparse.dense()[9, 9, 9] == 0
    sparse.add(place, np.full_like(values, 0.001), least=0.01)  # too little for a new block
    assert sparse.stored == 2 * EDGE**3 and sparse.dense()[5, 5, 5] == np.float32(0.201)


def test_an_empty_volume_is_zero_and_has_no_box():
    sparse = SparseVolume((5, 6, 7))
    sparse.add((slice(0, 5), slice(0, 6), slice(0, 7)), np.zeros((5, 6, 7), np.float32))
    assert sparse.box is None and sparse.stored == 0 and not sparse.dense().any()
