"""From masks to surfaces that can be drawn: dense points with normals, in LPS millimetres.

No mesh: a surface is the set of points where a smoothed mask crosses one level, at least one point per picture element. It
needs no triangulation, no library and no order of drawing (after Levoy and Whitted 1985, "The use of points as a display
primitive"). A renderer that wants triangles gives its own finder of crossings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from ctseg.geometry.boxes import bounding_box, box_start, grow
from ctseg.geometry.volume import Volume

SMOOTH_VOXELS = 0.8  # enough to hide the steps between voxels, too little to close what is open
LEVELS = (0.15, 0.6)  # of the smoothed mask: where a surface may be put to keep the volume


@dataclasses.dataclass(frozen=True)
class Surface:
    """What is drawn.

    points_mm, normals: (N, 3) float32, LPS mm and unit vectors out of the structure. colour: (3,) or (N, 3), 0 to 1.
    opacity: below 1, only what lies nearest is drawn, over the rest. triangles: (M, 3) point numbers, where they were asked for.
    flat: a picture in a plane, not a body: seen from both sides and not lit.
    """

    name: str
    points_mm: np.ndarray
    normals: np.ndarray
    colour: np.ndarray
    opacity: float = 1.0
    triangles: np.ndarray | None = None
    flat: bool = False


# (field, level, parts per voxel along D, H, W) -> index positions (N, 3) of the crossing, the field's slope there (N, 3), and triangles of them or None
Finder = Callable[[np.ndarray, float, Sequence[int]], tuple[np.ndarray, np.ndarray, np.ndarray | None]]


def crossings(field: np.ndarray, level: float, parts: Sequence[int]) -> tuple[np.ndarray, np.ndarray, None]:
    """The Finder of this module: dense points, no triangles."""
    return (*_crossings(field, level, parts), None)


def surface_of(
    mask: Volume,
    name: str,
    colour: np.ndarray,
    *,
    step_mm: float,
    opacity: float = 1.0,
    smooth_voxels: float = SMOOTH_VOXELS,
    find: Finder = crossings,
) -> Surface:
    """The surface of a mask (bool (D, H, W)), closed where it meets the scan's border; no points for an empty one.

    step_mm: distance of the points. The level is the one that keeps the mask's volume, so a thin vessel does not vanish
    in the smoothing.
    """
    box = bounding_box(mask.array)
    if box is None:
        return _nowhere(name, colour, opacity)
    tight = np.pad(mask.array[box], _ROOM).astype(np.float32)
    smooth = ndimage.gaussian_filter(tight, smooth_voxels)
    count = int(tight.sum())
    level = min(max(float(np.partition(smooth.ravel(), -count)[-count]), LEVELS[0]), LEVELS[1])
    placed = _Placed(smooth, box_start(grow(box, _ROOM)), mask)
    return _surface(placed, level, Surface(name, _NONE, _NONE, colour, opacity), step_mm, find)


def surface_at(
    values: Volume,
    level: float,
    name: str,
    colour: np.ndarray,
    *,
    step_mm: float,
    opacity: float = 1.0,
    find: Finder = crossings,
) -> Surface:
    """Where probabilities (float32 (D, H, W), 0 to 1) cross a level, between the voxels and not smoothed; 0 beyond the scan's border."""
    box = bounding_box(values.array >= level)
    if box is None:
        return _nowhere(name, colour, opacity)
    wide = grow(box, _ROOM, values.array.shape)
    field = np.pad(values.array[wide], _ROOM)
    placed = _Placed(field, box_start(grow(wide, _ROOM)), values)
    return _surface(placed, level, Surface(name, _NONE, _NONE, colour, opacity), step_mm, find)


_ROOM = 3  # voxels around the box of a mask
_NONE = np.zeros((0, 3), dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A part of a volume. start: index of its first voxel in the whole."""

    field: np.ndarray
    start: Sequence[int]
    whole: Volume


def _nowhere(name: str, colour: np.ndarray, opacity: float) -> Surface:
    return Surface(name, _NONE, _NONE, colour, opacity, np.zeros((0, 3), dtype=np.int64))


def _surface(placed: _Placed, level: float, surface: Surface, step_mm: float, find: Finder) -> Surface:
    """The surface with its points: where the field crosses the level."""
    affine = placed.whole.affine
    index, slope, triangles = find(
        placed.field, level, [max(1, round(spacing / step_mm)) for spacing in placed.whole.spacing_mm]
    )
    points_mm = (index + np.asarray(placed.start)) @ affine[:3, :3].T + affine[:3, 3]
    normals = -slope @ np.linalg.inv(affine[:3, :3])  # a gradient goes by the inverse transpose
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    return dataclasses.replace(
        surface,
        points_mm=points_mm.astype(np.float32),
        normals=normals.astype(np.float32),
        triangles=triangles,
    )


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
    offsets = np.stack(
        np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in parts], indexing="ij"), axis=-1
    ).reshape(-1, 3)
    slopes = [np.gradient(field, axis=axis) for axis in range(3)]
    points, directions = [], []
    for offset in offsets.astype(np.float32):
        places = (voxels + offset).T
        slope = np.stack([ndimage.map_coordinates(part, places, order=1) for part in slopes], axis=1)
        steepness = np.linalg.norm(slope, axis=1) + 1e-6
        height = ndimage.map_coordinates(field, places, order=1) - level
        away = height / steepness  # in voxels, along the slope
        reach = (np.abs(slope) / np.asarray(parts)).sum(
            axis=1
        ) / steepness  # half the part's extent along the slope, doubled
        hit = np.abs(away) <= reach
        points.append(places.T[hit] - slope[hit] * (away / steepness)[hit, None])
        directions.append(slope[hit])
    return np.concatenate(points), np.concatenate(directions)


def _halves(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    lower, upper = [slice(None)] * 3, [slice(None)] * 3
    lower[axis], upper[axis] = slice(None, -1), slice(1, None)
    return tuple(lower), tuple(upper)
