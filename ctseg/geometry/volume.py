"""`Volume` = array + affine, and the only resampling of the project.

Arrays are (D, H, W). `affine` maps an index (d, h, w, 1), in that order, to LPS millimetres (x to the patient's
left, y to posterior, z to superior), the convention of DICOM and ITK. Readers convert at the door.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import SimpleITK as sitk

from ctseg.geometry.tolerances import EQUAL, ROUNDED, off_by

AIR_HU = -1024.0  # what lies outside a scan's field of view
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Canonical order of a grid's axes: D towards superior, H towards posterior, W towards the patient's left.
CANONICAL_DIRECTIONS = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # rows: D, H, W in LPS


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where voxels lie: shape (D, H, W) and the affine of the indices, to LPS mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along D, H, W in mm."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    def record(self) -> dict:
        """The grid as it stands in the manifest."""
        return {
            "shape": [int(n) for n in self.shape],
            "affine": [[float(v) for v in row] for row in self.affine],
        }

    @classmethod
    def from_record(cls, record: dict) -> Grid:
        """The grid of a manifest entry."""
        d, h, w = record["shape"]
        return cls((int(d), int(h), int(w)), np.array(record["affine"], dtype=np.float64))

    def matches(self, other: Grid, tolerance: float = EQUAL) -> bool:
        """Whether both grids have the same shape and their corners lie within `tolerance` of a voxel."""
        return self.shape == other.shape and self.off_by(other) <= tolerance

    def off_by(self, other: Grid) -> float:
        """The largest distance between the same corners of two grids of one shape, in voxels of this one."""
        return off_by(self.corner_distance_mm(other), self.spacing_mm)

    def corner_distance_mm(self, other: Grid) -> float:
        """Largest distance in mm between the same index corners of two grids of one shape."""
        ends = np.array(np.meshgrid(*[[0, n - 1] for n in self.shape], indexing="ij")).reshape(3, -1)
        points = np.vstack([ends, np.ones(ends.shape[1])])
        return float(np.linalg.norm(((self.affine - other.affine) @ points)[:3], axis=0).max())

    def crop(self, start: tuple[int, int, int], shape: tuple[int, int, int]) -> Grid:
        """The grid of the sub-box that begins at index `start` (may lie outside) and has `shape`."""
        affine = self.affine.copy()
        affine[:3, 3] = (self.affine @ np.array([*start, 1.0]))[:3]
        return Grid(shape, affine)


@dataclasses.dataclass(frozen=True)
class Volume:
    """A 3D array with its place in the patient.

    array: (D, H, W); float32 HU for an image, uint8 for a label map. affine: (4, 4) float64, index to LPS mm.
    """

    array: np.ndarray
    affine: np.ndarray

    @property
    def grid(self) -> Grid:
        """The volume's grid."""
        d, h, w = self.array.shape
        return Grid((d, h, w), self.affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along D, H, W in mm."""
        return self.grid.spacing_mm


def canonical_axes(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which array axis serves as D, H, W, and whether it must be flipped, to come nearest to canonical order.

    The assignment maximises the sum of cosines, so each axis is used once also for oblique scans.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = CANONICAL_DIRECTIONS @ directions  # (canonical axis, array axis)
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    best = max(orders, key=lambda order: sum(abs(cosines[i, order[i]]) for i in range(3)))
    d, h, w = (bool(cosines[i, best[i]] < 0) for i in range(3))
    return best, (d, h, w)


def reorient(volume: Volume, order: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> Volume:
    """The same voxels with axes permuted, then flipped where asked; the affine follows. No interpolation."""
    array = np.transpose(volume.array, order)
    affine = volume.affine.copy()
    affine[:, :3] = volume.affine[:, list(order)]
    for axis, flip in enumerate(flips):
        if flip:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    return Volume(np.ascontiguousarray(array), affine)


def to_canonical(volume: Volume) -> Volume:
    """The volume with its axes nearest to superior, posterior, left. No interpolation."""
    return reorient(volume, *canonical_axes(volume.affine))


def axes_like(volume: Volume, grid: Grid) -> Volume:
    """The volume with its axes permuted and flipped to run like those of `grid`; itself where they do, or cannot."""
    to_grid = np.linalg.inv(grid.affine) @ volume.affine
    order = tuple(int(np.argmax(np.abs(to_grid[axis, :3]))) for axis in range(3))
    flips = tuple(bool(to_grid[axis, order[axis]] < 0) for axis in range(3))
    if sorted(order) != [0, 1, 2] or (order == (0, 1, 2) and not any(flips)):
        return volume
    return reorient(volume, (order[0], order[1], order[2]), (flips[0], flips[1], flips[2]))


def match_grid(volume: Volume, grid: Grid, tolerance: float = ROUNDED) -> Volume | None:
    """The volume on `grid` when a permutation and flips of its axes lead there within `tolerance` of a voxel, else None."""
    moved = axes_like(volume, grid)
    return moved if grid.matches(moved.grid, tolerance) else None


_INTERPOLATORS = {"linear": sitk.sitkLinear, "cubic": sitk.sitkBSpline3, "nearest": sitk.sitkNearestNeighbor}


def resample(volume: Volume, grid: Grid, *, order: str, fill: float, smooth: bool = False) -> Volume:
    """The volume's values at the voxel centres of `grid`.

    order: "linear", "cubic" (B-spline; both give float32) or "nearest" (the input's type). fill: value outside the volume.
    smooth: Gaussian filter before downsampling, against aliasing (images only).
    Works in index space with the full affine, so sheared and left-handed grids are exact. Where the grids are
    equal the values come back unchanged.
    """
    if volume.grid.matches(grid, 1e-6):
        return Volume(volume.array, grid.affine)
    array = volume.array
    mapping = np.linalg.inv(volume.affine) @ grid.affine  # index of `grid` -> index of the volume
    if order != "nearest":
        array = array.astype(np.float32)
    if smooth:
        array = _smooth_for(array, np.linalg.norm(mapping[:3, :3], axis=1))
    if order == "cubic" and (axes := parallel_axes(mapping)) is not None:
        return Volume(_separable_cubic(array, mapping, axes, grid.shape, fill), grid.affine)
    image = sitk.GetImageFromArray(array)
    # ITK counts (w, h, d); reversing rows and columns of the mapping turns (d, h, w) into that order.
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(mapping[:3, :3][::-1, ::-1].ravel().tolist())
    transform.SetTranslation(mapping[:3, 3][::-1].tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in grid.shape[::-1]])
    resampler.SetTransform(transform)
    resampler.SetInterpolator(_INTERPOLATORS[order])
    resampler.SetDefaultPixelValue(float(fill))
    return Volume(sitk.GetArrayFromImage(resampler.Execute(image)), grid.affine)


def parallel_axes(mapping: np.ndarray) -> tuple[int, int, int] | None:
    """For each axis of the array the axis of the grid that is parallel to it, or None where they are oblique."""
    steps = np.abs(mapping[:3, :3])
    d, h, w = (int(axis) for axis in steps.argmax(axis=1))
    aside = steps.copy()
    aside[[0, 1, 2], [d, h, w]] = 0
    return (d, h, w) if sorted((d, h, w)) == [0, 1, 2] and aside.max() < 1e-9 else None


def _separable_cubic(
    array: np.ndarray, mapping: np.ndarray, axes: tuple[int, int, int], shape: tuple[int, ...], fill: float
) -> np.ndarray:
    """Cubic spline interpolation one axis after the other, as products with small matrices: 5 times faster than voxel by voxel.

    A voxel reaches half its size beyond its centre; there the spline keeps its last value, and `fill` begins behind it.
    """
    outside = []
    for axis in np.argsort(
        [shape[axes[i]] / array.shape[i] for i in range(3)], kind="stable"
    ):  # what grows most comes last
        count, size = shape[axes[axis]], array.shape[axis]
        places = mapping[axis, 3] + mapping[axis, axes[axis]] * np.arange(count)
        outside.append((axes[axis], (places < -0.5) | (places > size - 0.5)))
        array = np.moveaxis(
            np.tensordot(spline_weights(np.clip(places, 0, size - 1), size), array, axes=(1, axis)), 0, axis
        )
    result = np.ascontiguousarray(array.transpose(np.argsort(axes)))
    for axis, places in outside:
        np.moveaxis(result, axis, 0)[places] = fill
    return result


def spline_weights(places: np.ndarray, size: int) -> np.ndarray:
    """(len(places), size) float32: what each of `size` samples at 0, 1, 2, ... contributes to a cubic spline through them at `places`."""
    from scipy.interpolate import make_interp_spline

    degree = min(3, size - 1)
    weights = (
        np.ones((len(places), 1))
        if degree == 0
        else make_interp_spline(np.arange(size), np.eye(size), k=degree)(places)
    )
    return weights.astype(np.float32)


def _smooth_for(array: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The array low-passed for sampling every `steps` voxels; sigma as for a pixel of that width."""
    from scipy.ndimage import gaussian_filter1d

    for axis, step in enumerate(steps):
        if step > 1.2:  # below that the linear kernel itself smooths enough
            array = gaussian_filter1d(
                array, 0.5 * np.sqrt(step**2 - 1.0), axis=axis, mode="nearest", truncate=3.0
            )
    return array
