"""Masks on the scan's own voxels, packed to bits, so that many structures fit in memory while slices are cut from them."""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.geometry.volume import Grid, Volume, resample, to_canonical
from ctseg.scans.masks import Masks, tight

ALIGNED = 0.01  # voxels by which masks may lie beside the scan's voxels and still count as on them


@dataclasses.dataclass(frozen=True)
class Piece:
    """The mask of one structure inside its box.

    start: index of the box in the canonical scan. packed: its voxels, eight along W in one byte.
    """

    start: tuple[int, int, int]
    shape: tuple[int, int, int]
    packed: np.ndarray

    def cut(self, axis: int, number: int) -> np.ndarray | None:
        """The slice (bool) across an axis, as wide and high as the box; None when it has no voxel."""
        inside = number - self.start[axis]
        if not 0 <= inside < self.shape[axis]:
            return None
        if axis == 2:
            part = np.unpackbits(self.packed[:, :, inside // 8, None], axis=2)[:, :, inside % 8]
        else:
            part = np.unpackbits(np.take(self.packed, inside, axis=axis), axis=1, count=self.shape[2])
        return part.astype(bool) if part.any() else None


def mask_of(masks: Masks, name: str) -> tuple[Volume | None, bool]:
    """(the mask of a structure in its box, None when it is empty; whether it comes from probabilities)."""
    if masks.stored is None or masks.level is None:
        return masks.tight(name), False
    values = masks.stored(name)
    if values.array.dtype.kind != "f":
        return tight(values), False
    return tight(Volume(values.array >= masks.level, values.affine)), True


def piece_of(part: Volume | None, grid: Grid) -> tuple[Piece | None, bool]:
    """A mask on a canonical grid.

    part: as `Masks.tight` gives it. Returns (None when it is empty there; whether it had to be resampled, to the nearest
    voxel).
    """
    if part is None:
        return None, False
    part = to_canonical(part)
    to_grid = np.linalg.inv(grid.affine) @ part.affine
    turned = np.abs(to_grid[:3, :3] - np.eye(3)).max() * max(part.array.shape)
    moved = bool(max(turned, np.abs(to_grid[:3, 3] - np.rint(to_grid[:3, 3])).max()) > ALIGNED)
    if moved:
        part = resampled(part, grid)
        if part is None:
            return None, True
        to_grid = np.linalg.inv(grid.affine) @ part.affine
    start = np.rint(to_grid[:3, 3]).astype(int)
    low, high = np.maximum(start, 0), np.minimum(start + part.array.shape, grid.shape)
    if (high <= low).any():  # it lies beside the scan, where there is no picture
        return None, moved
    array = part.array[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start))]
    packed = np.packbits(array > 0, axis=2)
    return Piece(tuple(low.tolist()), array.shape, packed), moved


def resampled(part: Volume, grid: Grid) -> Volume | None:
    """A mask on the voxels of a grid, each as the nearest of its own, inside its box; None when it is empty there."""
    to_grid = np.linalg.inv(grid.affine) @ part.affine
    ends = np.array(np.meshgrid(*[[-0.5, n - 0.5] for n in part.array.shape], indexing="ij")).reshape(3, -1)
    reach = to_grid[:3, :3] @ ends + to_grid[:3, 3:]
    low = np.maximum(np.floor(reach.min(axis=1)).astype(int), 0)
    high = np.minimum(np.ceil(reach.max(axis=1)).astype(int) + 1, grid.shape)
    if (high <= low).any():
        return None
    around = grid.crop(tuple(low), tuple(high - low))
    values = Volume(part.array.astype(np.uint8), part.affine)
    return tight(resample(values, around, order="nearest", fill=0))
