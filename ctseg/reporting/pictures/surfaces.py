"""From masks to surfaces that can be drawn: dense points with normals, in LPS millimetres.

No mesh: a surface is the set of points where a smoothed mask crosses one level, at least one point per
picture element. It needs no triangulation, no library and no order of drawing (after Levoy and Whitted
1985, "The use of points as a display primitive").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ctseg.geometry.boxes import bounding_box, box_start, grow
from ctseg.geometry.volume import Volume

SMOOTH_VOXELS = 0.8  # enough to hide the steps between voxels, too little to close what is open
LEVELS = (0.15, 0.6)  # of the smoothed mask: where a surface may be put to keep the volume
ROOM = 3  # voxels around the box of a mask


@dataclasses.dataclass(frozen=True)
class Surface:
    """What is drawn.

    points_mm, normals: (N, 3) float32, LPS mm and unit vectors out of the structure. colour: (3,) or (N,
    3), 0 to 1. opacity: below 1, only what lies nearest is drawn, over the rest. flat: a picture in a
    plane, not a body: seen from both sides and not lit.
    """

    name: str
    points_mm: np.ndarray
    normals: np.ndarray
    colour: np.ndarray
    opacity: float = 1.0
    flat: bool = False


def all_points_mm(surfaces: Sequence[Surface]) -> np.ndarray:
    """(N, 3) the points of all of them. ValueError when there is none."""
    points = np.concatenate([surface.points_mm for surface in surfaces])
    if not len(points):
        raise ValueError("no surface has a point")
    return points


def box_mm(surfaces: Sequence[Surface]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest x, y and z of all points. ValueError when there is none."""
    points = all_points_mm(surfaces)
    return points.min(axis=0), points.max(axis=0)


def surface_of(
    values: Volume,
    name: str,
    colour: np.ndarray,
    *,
    step_mm: float,
    level: float | None = None,
    opacity: float = 1.0,
    smooth_voxels: float = SMOOTH_VOXELS,
) -> Surface:
    """The surface of a mask (bool (D, H, W)), or where probabilities (float32, 0 to 1) cross a level, between
    the voxels and not smoothed; closed where it meets the scan's border, no points for an empty one.

    step_mm: distance of the points. A mask is smoothed, and its level is the one that keeps its volume, so a
    thin vessel does not vanish.
    """
    box = bounding_box(values.array if level is None else values.array >= level)
    if box is None:
        none = np.zeros((0, 3), dtype=np.float32)
        return Surface(name, none, none, colour)
    if level is None:
        mask = np.pad(values.array[box], ROOM).astype(np.float32)
        field = ndimage.gaussian_filter(mask, smooth_voxels)
        count = int(mask.sum())
        level = float(np.clip(np.partition(field.ravel(), -count)[-count], *LEVELS))
    else:
        box = grow(box, ROOM, values.array.shape)
        field = np.pad(values.array[box], ROOM)
    start = box_start(grow(box, ROOM))
    return Surface(name, *crossings_mm(field, level, start, values, step_mm), colour, opacity)


def crossings_mm(
    field: np.ndarray, level: float, start: Sequence[int], whole: Volume, step_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Points in mm and outward normals, each (N, 3) float32, where a field (D, H, W) falls below the level.

    start: index of the field's first voxel in the whole volume. Each voxel beside the crossing is divided
    into parts of about `step_mm`; what lies near the surface is moved onto it.
    """
    parts = [max(1, round(spacing / step_mm)) for spacing in whole.spacing_mm]
    inside = field > level
    near = ndimage.binary_dilation(inside) ^ ndimage.binary_erosion(inside, border_value=1)
    voxels = np.argwhere(near).astype(np.float32)
    offsets = np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in parts], indexing="ij")
    slopes = [np.gradient(field, axis=axis) for axis in range(3)]
    points, directions = [], []
    for offset in np.stack(offsets, axis=-1).reshape(-1, 3).astype(np.float32):
        places = (voxels + offset).T
        slope = np.stack([ndimage.map_coordinates(part, places, order=1) for part in slopes], axis=1)
        steepness = np.linalg.norm(slope, axis=1) + 1e-6
        height = ndimage.map_coordinates(field, places, order=1) - level
        away = height / steepness  # in voxels, along the slope
        # half a part's extent there, doubled
        reach = (np.abs(slope) / np.asarray(parts)).sum(axis=1) / steepness
        hit = np.abs(away) <= reach
        points.append(places.T[hit] - slope[hit] * (away / steepness)[hit, None])
        directions.append(slope[hit])
    affine = whole.affine
    points_mm = (np.concatenate(points) + np.asarray(start)) @ affine[:3, :3].T + affine[:3, 3]
    # a gradient goes by the inverse transpose
    normals = -np.concatenate(directions) @ np.linalg.inv(affine[:3, :3])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    return points_mm.astype(np.float32), normals.astype(np.float32)
