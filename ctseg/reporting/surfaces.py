"""From masks to surfaces that can be drawn: dense points with normals, in LPS millimetres.

No mesh: a surface is the set of points where a smoothed mask crosses one level, at least one point per picture element. It
needs no triangulation, no library and no order of drawing (after Levoy and Whitted 1985, "The use of points as a display
primitive").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ctseg.scans.volume import Volume

SMOOTH_VOXELS = 0.8  # enough to hide the steps between voxels, too little to close what is open
LEVELS = (0.15, 0.6)  # of the smoothed mask: where a surface may be put to keep the volume


@dataclasses.dataclass(frozen=True)
class Surface:
    """What is drawn.

    points_mm, normals: (N, 3) float32, LPS mm and unit vectors out of the structure. colour: (3,) or (N, 3), 0 to 1.
    opacity: below 1, only what lies nearest is drawn, over the rest.
    """

    name: str
    points_mm: np.ndarray
    normals: np.ndarray
    colour: np.ndarray
    opacity: float = 1.0


def surface_of(mask: Volume, name: str, colour: np.ndarray, *, step_mm: float, opacity: float = 1.0, smooth_voxels: float = SMOOTH_VOXELS) -> Surface:
    """The surface of a mask (bool (D, H, W)), closed where it meets the scan's border; no points for an empty one.

    step_mm: distance of the points. The level is the one that keeps the mask's volume, so a thin vessel does not vanish
    in the smoothing.
    """
    empty = np.zeros((0, 3), dtype=np.float32)
    boxes = ndimage.find_objects(mask.array.astype(np.uint8))
    if not boxes:
        return Surface(name, empty, empty, colour, opacity)
    tight = np.pad(mask.array[boxes[0]], 3).astype(np.float32)
    smooth = ndimage.gaussian_filter(tight, smooth_voxels)
    count = int(tight.sum())
    level = min(max(float(np.partition(smooth.ravel(), -count)[-count]), LEVELS[0]), LEVELS[1])
    index, slope = _crossings(smooth, level, [max(1, round(spacing / step_mm)) for spacing in mask.spacing_mm])
    start = [part.start - 3 for part in boxes[0]]
    to_mm = mask.affine[:3, :3]
    points_mm = (index + start) @ to_mm.T + mask.affine[:3, 3]
    normals = -slope @ np.linalg.inv(to_mm)  # a gradient goes by the inverse transpose
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    return Surface(name, points_mm.astype(np.float32), normals.astype(np.float32), colour, opacity)


def _crossings(field: np.ndarray, level: float, parts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Index positions (N, 3) where the field (D, H, W) crosses the level, and its slope there, per index.

    Each voxel beside the crossing is divided into `parts` along D, H and W; what lies near the surface is moved onto it.
    """
    inside = field > level
    near = np.zeros_like(inside)
    for axis in range(3):
        lower, upper = _halves(axis)
        differs = inside[lower] != inside[upper]
        near[lower] |= differs
        near[upper] |= differs
    voxels = np.argwhere(near).astype(np.float32)
    offsets = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in parts], indexing="ij"), axis=-1).reshape(-1, 3)
    slopes = [np.gradient(field, axis=axis) for axis in range(3)]
    points, directions = [], []
    for offset in offsets.astype(np.float32):
        places = (voxels + offset).T
        slope = np.stack([ndimage.map_coordinates(part, places, order=1) for part in slopes], axis=1)
        steepness = np.linalg.norm(slope, axis=1) + 1e-6
        height = ndimage.map_coordinates(field, places, order=1) - level
        away = height / steepness  # in voxels, along the slope
        reach = (np.abs(slope) / np.asarray(parts)).sum(axis=1) / steepness  # half the part's extent along the slope, doubled
        hit = np.abs(away) <= reach
        points.append(places.T[hit] - slope[hit] * (away / steepness)[hit, None])
        directions.append(slope[hit])
    return np.concatenate(points), np.concatenate(directions)


def _halves(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    lower, upper = [slice(None)] * 3, [slice(None)] * 3
    lower[axis], upper[axis] = slice(None, -1), slice(1, None)
    return tuple(lower), tuple(upper)
