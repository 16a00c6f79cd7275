"""Distances between the surfaces of two masks, and the surface metrics that read them.

Two boundary modes, whose values must never be compared with each other:
"surfel"  the points are voxel corners, weighted by the area of the surface there (values of DeepMind's
          surface-distance package, Nikolov et al., arXiv:1809.04430)
"voxel"   the points are foreground voxels with a 6-neighbour in the background; outside the image is
          background; weight 1 (values of MONAI and of Metrics Reloaded, Maier-Hein et al., Nature Methods
          2024)

Distances are computed once per pair of masks; every metric is a small function of them.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ctseg.geometry.boxes import Spacing, tight_box, union
from ctseg.scoring import shells, surfel

BOUNDARY_MODES = ("surfel", "voxel")
TOLERANCE_EPSILON = 1e-6  # relative; without it exact multiples of the spacing flip, 3 x 0.1 > 0.3 in floats


Directed = tuple[np.ndarray, np.ndarray]


class SurfaceDistances(NamedTuple):
    """Distances between two boundaries. sides: (distances in mm, weights) of the reference's points to the
    prediction, and of the prediction's to the reference: float64, one value for each point, by increasing
    distance; weights in mm2, or 1 each."""

    sides: tuple[Directed, Directed]
    boundary_mode: str


def surface_distances(
    *, prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing, boundary_mode: str = "surfel"
) -> SurfaceDistances | None:
    """Distances between the surfaces of two masks (D, H, W) of any memory order; None when either is empty.

    spacing_mm in the order of the axes.
    """
    prediction, reference, spacing_mm = check_masks(prediction, reference, spacing_mm)
    if boundary_mode not in BOUNDARY_MODES:
        raise ValueError(f"boundary_mode={boundary_mode!r} of {BOUNDARY_MODES}")
    if not prediction.any() or not reference.any():
        return None
    box = union(tight_box(prediction), tight_box(reference))
    return distances_in_box(
        prediction=np.ascontiguousarray(prediction[box]),
        reference=np.ascontiguousarray(reference[box]),
        spacing_mm=spacing_mm,
        boundary_mode=boundary_mode,
    )


def check_masks(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing
) -> tuple[np.ndarray, np.ndarray, Spacing]:
    """The two masks as bool arrays and the spacing as floats; ValueError unless shapes and spacing make
    sense."""
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.ndim != 3 or prediction.shape != reference.shape:
        raise ValueError(
            f"prediction {prediction.shape} and reference {reference.shape} must be 3D and of one shape"
        )
    if len(spacing_mm) != 3 or not all(0 < s < math.inf for s in spacing_mm):
        raise ValueError(f"spacing_mm={spacing_mm} must be three positive numbers")
    d, h, w = map(float, spacing_mm)
    return prediction.astype(bool, copy=False), reference.astype(bool, copy=False), (d, h, w)


def distances_in_box(
    *, prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing, boundary_mode: str
) -> SurfaceDistances:
    """As `surface_distances`, for contiguous bool crops that hold all of both masks, neither of them
    empty."""
    one, other = (boundary_of(mask, spacing_mm, boundary_mode) for mask in (reference, prediction))
    thickness = 2.0 * np.count_nonzero(prediction ^ reference) / (one.points.size + other.points.size)
    there = directed_distances(one, other, spacing_mm, thickness)
    back = directed_distances(other, one, spacing_mm, thickness)
    return SurfaceDistances((there, back), boundary_mode)


class Boundary(NamedTuple):
    """mask: (D, H, W) bool, where the points of a boundary lie; points: their flat positions; weights: of
    each."""

    mask: np.ndarray
    points: np.ndarray
    weights: np.ndarray


def boundary_of(mask: np.ndarray, spacing_mm: Spacing, boundary_mode: str) -> Boundary:
    """The boundary of a contiguous bool mask (D, H, W).

    voxel: foreground voxels with at least one 6-neighbour in the background; outside the image is background.
    """
    if boundary_mode == "surfel":
        codes = surfel.padded_codes(mask)
        corners = surfel.is_boundary(codes)
        points = np.flatnonzero(corners)
        return Boundary(corners, points, surfel.area_table(spacing_mm)[codes.reshape(-1)[points]])
    padded, inside = np.pad(mask, 1), mask.copy()
    for axis, step in itertools.product(range(3), (-1, 1)):
        inside &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    voxels = mask & ~inside
    points = np.flatnonzero(voxels)
    return Boundary(voxels, points, np.ones(points.size))


# What a step costs, in look-ups of `shells.search` (measured on balls in 32^3 to 128^3 voxels; only the
# ratios matter).
TRANSFORM_PER_VOXEL = 25.0
TREE_PER_TARGET, TREE_PER_POINT = 30.0, 200.0
NEAR_VOXELS = 2.5  # mean distance of the surfaces up to which looking around each point is tried


def directed_distances(source: Boundary, target: Boundary, spacing_mm: Spacing, thickness: float) -> Directed:
    """(distances of the points of `source` to `target` in mm, float64, increasing; their weights in that
    order).

    thickness: mean distance of the surfaces in voxels, roughly. Takes the cheapest of looking around each
    point (`shells`), a distance transform, and a KD-tree over the points that do not coincide; they agree to
    1e-9 mm. Looks around the points while that is cheaper than the others, and takes the cheaper of these for
    the points that are left.
    """
    shared = target.mask.reshape(-1)[source.points]
    groups, steps_mm, left = [np.flatnonzero(shared)], [0.0], np.flatnonzero(~shared)
    transform = TRANSFORM_PER_VOXEL * source.mask.size
    if left.size and thickness <= NEAR_VOXELS:
        found, distances_mm, missing = shells.search(
            source.points[left], target.mask, spacing_mm, budget=0.5 * transform
        )
        groups += [left[numbers] for numbers in found]
        steps_mm += distances_mm
        left = left[missing]
    distances = np.repeat(steps_mm, [group.size for group in groups])
    if left.size:
        tree = TREE_PER_TARGET * target.points.size + TREE_PER_POINT * max(1.0, thickness) * left.size
        by = tree_distances if tree < transform else transform_distances
        rest = by(source.points[left], target, spacing_mm)
        order = np.argsort(rest, kind="stable")
        groups.append(left[order])
        distances = np.concatenate([distances, rest[order]])
    return distances, source.weights[np.concatenate(groups)]


def transform_distances(points: np.ndarray, target: Boundary, spacing_mm: Spacing) -> np.ndarray:
    """Distance (mm) of every point (flat positions) to `target`, by a Euclidean distance transform of the
    box."""
    return ndimage.distance_transform_edt(~target.mask, sampling=spacing_mm).reshape(-1)[points]


def tree_distances(points: np.ndarray, target: Boundary, spacing_mm: Spacing) -> np.ndarray:
    """The same by a KD-tree of the target's points."""
    one, other = (
        np.stack(np.unravel_index(flat, target.mask.shape), axis=1) * spacing_mm
        for flat in (target.points, points)
    )
    return cKDTree(one, balanced_tree=False, compact_nodes=False).query(other)[0]


# ---- what is read off the distances -----------------------------------------------------------------------


def hausdorff_mm(distances: SurfaceDistances) -> float:
    """Largest distance of a point of one surface to the other one."""
    return float(max(d[-1] for d, _ in distances.sides))


def percentile_hausdorff_mm(distances: SurfaceDistances, percent: float = 95.0) -> float:
    """The larger of the two directed percentiles (never a percentile of the pooled distances).

    surfel: the first distance at which the weights reach the share. voxel: linear interpolation.
    """
    if distances.boundary_mode == "voxel":
        return float(max(np.percentile(d, percent) for d, _ in distances.sides))
    values = []
    for d, weights in distances.sides:
        share = np.cumsum(weights) / weights.sum()
        values.append(d[min(int(np.searchsorted(share, percent / 100.0)), d.size - 1)])
    return float(max(values))


def average_symmetric_mm(distances: SurfaceDistances) -> float:
    """ASSD: mean over the points of both surfaces together."""
    total = sum((d * weights).sum() for d, weights in distances.sides)
    return float(total / sum(weights.sum() for _, weights in distances.sides))


def mean_average_mm(distances: SurfaceDistances) -> float:
    """MASD: mean of the two directed means."""
    return float(0.5 * sum((d * weights).sum() / weights.sum() for d, weights in distances.sides))


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """NSD: share of both surfaces that lies within the tolerance of the other one."""
    limit = tolerance_mm * (1.0 + TOLERANCE_EPSILON)
    near = sum(weights[d <= limit].sum() for d, weights in distances.sides)
    return float(near / sum(weights.sum() for _, weights in distances.sides))
