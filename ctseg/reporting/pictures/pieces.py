"""Masks on the scan's own voxels, packed to bits, so that many structures fit in memory while slices are cut
from them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.datasets.masks import Masks
from ctseg.geometry.boxes import Box, box_shape, intersection, move, whole_box, within
from ctseg.geometry.volume import Grid, Volume, covered_box, resample, tight, to_canonical

ALIGNED = 0.01  # voxels by which masks may lie beside the scan's voxels and still count as on them


@dataclasses.dataclass(frozen=True)
class Piece:
    """The mask of one structure inside its box of the canonical scan.

    packed: its voxels, eight along W in one byte.
    """

    box: Box
    packed: np.ndarray

    def cut(self, axis: int, number: int) -> np.ndarray | None:
        """The slice (bool) across an axis, as wide and high as the box; None when it has no voxel."""
        side = self.box[axis]
        if not side.start <= number < side.stop:
            return None
        inside, width = number - side.start, box_shape(self.box)[2]
        if axis == 2:
            part = np.unpackbits(self.packed[:, :, inside // 8, None], axis=2)[:, :, inside % 8]
        else:
            part = np.unpackbits(np.take(self.packed, inside, axis=axis), axis=1, count=width)
        return part.astype(bool) if part.any() else None


def mask_of(masks: Masks, name: str) -> tuple[Volume | None, bool]:
    """(the mask of a structure in its box, None when it is empty; whether it comes from probabilities)."""
    if masks.level is None:
        return masks.tight(name), False
    values = masks.values(name)
    if values.array.dtype.kind != "f":
        return tight(values), False
    return tight(Volume(values.array >= masks.level, values.affine)), True


def piece_of(part: Volume | None, grid: Grid) -> tuple[Piece | None, bool]:
    """A mask on a canonical grid.

    part: as `Masks.tight` gives it. Returns (None when it is empty there; whether it had to be resampled,
    to the nearest voxel).
    """
    if part is None:
        return None, False
    part = to_canonical(part)
    to_grid = np.linalg.inv(grid.affine) @ part.affine
    turned = np.abs(to_grid[:3, :3] - np.eye(3)).max() * max(part.array.shape)
    moved = bool(max(turned, np.abs(to_grid[:3, 3] - np.rint(to_grid[:3, 3])).max()) > ALIGNED)
    if moved:
        covered = intersection(covered_box(part.grid, grid), whole_box(grid.shape))
        if covered is None:
            return None, True
        voxels = Volume(part.array.astype(np.uint8), part.affine)
        part = tight(resample(voxels, grid.crop_to(covered), order="nearest", fill=0))
        if part is None:
            return None, True
        to_grid = np.linalg.inv(grid.affine) @ part.affine
    own = move(whole_box(part.array.shape), np.rint(to_grid[:3, 3]))
    box = intersection(own, whole_box(grid.shape))
    if box is None:  # it lies beside the scan, where there is no picture
        return None, moved
    return Piece(box, np.packbits(part.array[within(box, own)] > 0, axis=2)), moved
