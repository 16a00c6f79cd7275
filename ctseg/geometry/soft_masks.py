"""The probabilities of one structure on the scan's own grid, only in the box where it has any."""

from __future__ import annotations

import itertools

import numpy as np

from ctseg.geometry.grids import find_placement, place
from ctseg.geometry.probabilities import Shares
from ctseg.geometry.sparse_volume import Box
from ctseg.geometry.volume import Grid, Volume, resample


def probability_on_scan(
    probabilities: Shares, number: int, canvas: Grid, scan: Grid
) -> tuple[Box, np.ndarray] | None:
    """(box of the scan, float32 probabilities 0..1 of class `number` in it); outside the box they are 0. None where the structure has none at all.

    Interpolated linearly between canvas voxels; copied where canvas and scan share their voxels.
    """
    found = probabilities.part(number)
    if found is None:
        return None
    held = [
        (max(0, part.start - 1), min(size, part.stop + 1))
        for part, size in zip(found[0], probabilities.shape)
    ]  # a zero around it, to fade to
    d, h, w = held
    start, shape = (d[0], h[0], w[0]), (d[1] - d[0], h[1] - h[0], w[1] - w[0])
    source = Volume(probabilities.cut(number, (start, shape)), canvas.crop(start, shape).affine)
    box = _covered(source.grid, scan)
    if box is None:
        return None
    target = scan.crop(
        (box[0].start, box[1].start, box[2].start),
        (box[0].stop - box[0].start, box[1].stop - box[1].start, box[2].stop - box[2].start),
    )
    placement = find_placement(source.grid, target)
    moved = (
        resample(source, target, order="linear", fill=0.0)
        if placement is None
        else place(source, target, placement, 0.0)
    )
    return box, np.clip(moved.array, 0.0, 1.0)


def _covered(part: Grid, scan: Grid) -> Box | None:
    """The smallest box of the scan that holds every voxel centre inside the outer faces of `part`'s voxels; None where there is none."""
    corners = np.array(
        [(*corner, 1.0) for corner in itertools.product(*((-0.5, n - 0.5) for n in part.shape))]
    )
    places = (np.linalg.inv(scan.affine) @ part.affine @ corners.T)[:3]
    low = np.maximum(np.floor(places.min(axis=1)).astype(int), 0)
    high = np.minimum(np.ceil(places.max(axis=1)).astype(int) + 1, scan.shape)
    if (low >= high).any():
        return None
    d, h, w = (slice(int(a), int(b)) for a, b in zip(low, high))
    return d, h, w
