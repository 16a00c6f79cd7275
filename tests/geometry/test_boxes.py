"""Boxes of voxels against plain loops over indices."""

from __future__ import annotations

import numpy as np
import pytest

from ctseg.geometry import boxes

LEFT, RIGHT = boxes.make_box((2, 3, 4), (5, 9, 6)), boxes.make_box((4, -2, 5), (7, 4, 20))


def test_a_box_is_an_index_with_a_start_and_a_shape() -> None:
    array = np.arange(10 * 12 * 14).reshape(10, 12, 14)
    assert array[LEFT].shape == boxes.box_shape(LEFT) == (3, 6, 2)
    assert array[LEFT].flat[0] == array[boxes.box_start(LEFT)]
    assert array[boxes.whole_box(array.shape)].shape == array.shape


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32])
def test_bounding_box_and_label_boxes(dtype: type) -> None:
    sparse = np.zeros((40, 30, 20), dtype)
    assert boxes.bounding_box(sparse) is None
    with pytest.raises(ValueError, match="empty"):
        boxes.tight_box(sparse)
    sparse[15:18, 4:9, 3] = 2
    sparse[33, 2, 11:15] = 2
    box = boxes.make_box((15, 2, 3), (34, 9, 15))
    assert boxes.bounding_box(sparse) == boxes.bounding_box(np.asfortranarray(sparse)) == box
    assert boxes.tight_box(sparse, 4) == boxes.make_box((11, 0, 0), (38, 13, 19))
    if dtype is not bool:
        sparse[0, 0, 0] = 5
        assert boxes.label_boxes(sparse) == {2: box, 5: boxes.make_box((0, 0, 0), (1, 1, 1))}


def test_boxes_grow_and_move() -> None:
    assert boxes.grow(LEFT, 3) == boxes.make_box((-1, 0, 1), (8, 12, 9))
    assert boxes.grow(LEFT, (0, 1, 5), (10, 12, 10)) == boxes.make_box((2, 2, 0), (5, 10, 10))
    assert boxes.move(LEFT, (1, 0, -5)) == boxes.make_box((3, 3, -1), (6, 9, 1))


def test_boxes_meet_and_join() -> None:
    assert boxes.union(LEFT) == LEFT
    assert boxes.union(LEFT, RIGHT) == boxes.union(RIGHT, LEFT) == boxes.make_box((2, -2, 4), (7, 9, 20))
    shared = boxes.intersection(LEFT, RIGHT)
    assert shared == boxes.make_box((4, 3, 5), (5, 4, 6))
    assert boxes.intersection(LEFT, boxes.move(LEFT, (0, 6, 0))) is None  # side by side
    array = np.arange(30 * 30 * 30).reshape(30, 30, 30)
    assert np.array_equal(array[LEFT][boxes.within(shared, LEFT)], array[shared])
