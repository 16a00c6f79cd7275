"""Boxes of voxels along the axes of an array: three slices with a start and a stop, so that a box is an
index.

A box may reach beyond its array (negative starts too) until it is cut; only then does it index.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

Index = tuple[int, int, int]
Spacing = tuple[float, float, float]  # mm, in the order of the axes
Box = tuple[slice, slice, slice]


def make_box(start: Sequence[int] | np.ndarray, stop: Sequence[int] | np.ndarray) -> Box:
    """The box from voxel `start` up to, without, voxel `stop`."""
    d, h, w = (slice(int(first), int(end)) for first, end in zip(start, stop))
    return d, h, w


def whole_box(shape: Sequence[int]) -> Box:
    """The box of a whole array."""
    return make_box((0, 0, 0), shape)


def box_start(box: Box) -> Index:
    """The first voxel of a box."""
    d, h, w = box
    return d.start, h.start, w.start


def box_stop(box: Box) -> Index:
    """The voxel behind the last one of a box, along each axis."""
    d, h, w = box
    return d.stop, h.stop, w.stop


def box_shape(box: Box) -> Index:
    """How many voxels a box has along each axis."""
    d, h, w = box
    return d.stop - d.start, h.stop - h.start, w.stop - w.start


def bounding_box(mask: np.ndarray) -> Box | None:
    """The smallest box that holds all non-zero voxels of an array (D, H, W); None when there are none."""
    sides: list[slice] = []
    for axis in range(3):  # each axis shortens what the next one looks through
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if not hits.size:
            return None
        sides.append(slice(int(hits[0]), int(hits[-1]) + 1))
        mask = mask[(*[slice(None)] * axis, sides[-1])]
    return sides[0], sides[1], sides[2]


def tight_box(mask: np.ndarray, margin: int = 0) -> Box:
    """The bounding box of a mask that has voxels, `margin` voxels wider where the array goes on."""
    box = bounding_box(mask)
    if box is None:
        raise ValueError("an empty mask has no bounding box")
    return grow(box, margin, mask.shape)


def label_boxes(label: np.ndarray) -> dict[int, Box]:
    """Number -> smallest box that holds all its voxels, for the positive numbers of a label map (D, H, W)."""
    outer = bounding_box(label)
    if outer is None:
        return {}
    found = ndimage.find_objects(label[outer])  # a slow walk, so not over the background around everything
    return {
        number: move(box, box_start(outer)) for number, box in enumerate(found, start=1) if box is not None
    }


def grow(box: Box, margin: int | Sequence[int], shape: Sequence[int] | None = None) -> Box:
    """The box `margin` voxels wider on all sides (one number, or one an axis), cut to an array of `shape`."""
    start, stop = np.subtract(box_start(box), margin), np.add(box_stop(box), margin)
    return make_box(start, stop) if shape is None else make_box(np.maximum(start, 0), np.minimum(stop, shape))


def union(first: Box, *others: Box) -> Box:
    """The smallest box that holds all of them."""
    boxes = (first, *others)
    return make_box(
        np.min([box_start(b) for b in boxes], axis=0), np.max([box_stop(b) for b in boxes], axis=0)
    )


def intersection(one: Box, other: Box) -> Box | None:
    """What two boxes share; None when they do not meet."""
    start = np.maximum(box_start(one), box_start(other))
    stop = np.minimum(box_stop(one), box_stop(other))
    return make_box(start, stop) if (start < stop).all() else None


def move(box: Box, by: Sequence[int] | np.ndarray) -> Box:
    """The box shifted by `by` voxels."""
    return make_box(np.add(box_start(box), by), np.add(box_stop(box), by))


def within(box: Box, outer: Box) -> Box:
    """The box counted from the first voxel of another one, to index an array that holds only `outer`."""
    return move(box, np.negative(box_start(outer)))
