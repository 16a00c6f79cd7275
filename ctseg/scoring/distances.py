"""Distances between the surfaces of two masks, and the surface metrics that read them.

Two boundary modes, whose values must never be compared with each other:
"surfel"  the points are voxel corners, weighted by the area of the surface there (values of DeepMind's
          surface-distance package, Nikolov et al., arXiv:1809.04430)
"voxel"   the points are foreground voxels with a 6-neighbour in the background; outside the image is
          background; weight 1 (values of MONAI and of Metrics Reloaded, Maier-Hein et al., Nature Methods 2024)

Distances are computed once per pair of masks; every metric is a small function of them.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ctseg.geometry.boxes import tight_box, union
from ctseg.scoring import shells, surfel

try:
    import edt as _edt
except ImportError:  # an accelerator only: SciPy gives the same distances
    _edt = None

BOUNDARY_MODES = ("surfel", "voxel")
ENGINES = ("auto", "shells", "edt", "scipy", "tree")
TOLERANCE_EPSILON = 1e-6  # relative; without it exact multiples of the spacing flip, 3 x 0.6 > 1.8 in floats


@dataclasses.dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm from each boundary to the other one, sorted, with their weights (mm2, or 1 each).

    All arrays are float64; from_reference_mm and reference_weights have one value per boundary point of the
    reference, the other two per boundary point of the prediction.
    """

    from_reference_mm: np.ndarray
    reference_weights: np.ndarray
    from_prediction_mm: np.ndarray
    prediction_weights: np.ndarray
    boundary_mode: str


def surface_distances(
    *,
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: tuple[float, float, float],
    boundary_mode: str = "surfel",
    engine: str = "auto",
) -> SurfaceDistances | None:
    """Distances between the surfaces of two masks (D, H, W) of any memory order; None when either is empty.

    spacing_mm in the order of the axes. engine: "auto" takes the cheapest of "edt" (the package), "scipy" and
    "tree" (KD-tree over the points that do not coincide); they agree to 1e-5 mm.
    """
    prediction, reference, spacing_mm = check_masks(prediction, reference, spacing_mm)
    if boundary_mode not in BOUNDARY_MODES or engine not in ENGINES:
        raise ValueError(
            f"boundary_mode={boundary_mode!r} of {BOUNDARY_MODES}, engine={engine!r} of {ENGINES}"
        )
    if not prediction.any() or not reference.any():
        return None
    box = union(tight_box(prediction), tight_box(reference))
    return distances_in_box(
        prediction=np.ascontiguousarray(prediction[box]),
        reference=np.ascontiguousarray(reference[box]),
        spacing_mm=spacing_mm,
        boundary_mode=boundary_mode,
        engine=engine,
    )


def check_masks(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """The two masks as bool arrays and the spacing as floats; ValueError unless shapes and spacing make sense."""
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.ndim != 3 or prediction.shape != reference.shape:
        raise ValueError(
            f"prediction {prediction.shape} and reference {reference.shape} must be 3D and of one shape"
        )
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"spacing_mm={spacing_mm} must be three positive numbers")
    return (
        prediction.astype(bool, copy=False),
        reference.astype(bool, copy=False),
        (spacing[0], spacing[1], spacing[2]),
    )


def distances_in_box(
    *,
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: tuple[float, float, float],
    boundary_mode: str,
    engine: str = "auto",
) -> SurfaceDistances:
    """As `surface_distances`, for contiguous bool crops that hold all of both masks, neither of them empty."""
    if boundary_mode == "surfel":
        areas = surfel.area_table(spacing_mm)
        reference_codes, prediction_codes = surfel.padded_codes(reference), surfel.padded_codes(prediction)
        reference_side, prediction_side = (
            _Side(surfel.is_boundary(reference_codes)),
            _Side(surfel.is_boundary(prediction_codes)),
        )
        reference_weights = areas[reference_codes.reshape(-1)[reference_side.points]]
        prediction_weights = areas[prediction_codes.reshape(-1)[prediction_side.points]]
    else:
        reference_side, prediction_side = _Side(voxel_boundary(reference)), _Side(voxel_boundary(prediction))
        reference_weights, prediction_weights = (
            np.ones(reference_side.points.size),
            np.ones(prediction_side.points.size),
        )
    thickness = (
        2.0
        * np.count_nonzero(prediction ^ reference)
        / (reference_side.points.size + prediction_side.points.size)
    )
    from_reference, reference_order = _one_way(reference_side, prediction_side, spacing_mm, engine, thickness)
    from_prediction, prediction_order = _one_way(
        prediction_side, reference_side, spacing_mm, engine, thickness
    )
    return SurfaceDistances(
        from_reference,
        reference_weights[reference_order],
        from_prediction,
        prediction_weights[prediction_order],
        boundary_mode,
    )


class _Side:
    """One boundary: `mask` bool (D, H, W) and the flat positions of its points."""

    def __init__(self, mask: np.ndarray):
        self.mask, self.points = mask, np.flatnonzero(mask)


def voxel_boundary(mask: np.ndarray) -> np.ndarray:
    """Foreground voxels with at least one 6-neighbour in the background; outside the image is background."""
    inside = mask.copy()
    for axis in range(3):
        lower, upper = [slice(None)] * 3, [slice(None)] * 3
        lower[axis], upper[axis] = slice(None, -1), slice(1, None)
        inside[tuple(lower)] &= mask[tuple(upper)]
        inside[tuple(upper)] &= mask[tuple(lower)]
        for end in (0, -1):
            border = [slice(None)] * 3
            border[axis] = end  # type: ignore[call-overload]
            inside[tuple(border)] = False
    return mask & ~inside


# What a step costs, in look-ups of `shells.search` (measured on balls in 32^3 to 128^3 voxels; only the ratios matter).
_TRANSFORM_PER_VOXEL = {"edt": 8.0, "scipy": 25.0}
_TREE_PER_TARGET, _TREE_PER_POINT = 30.0, 200.0
_NEAR_VOXELS = 2.5  # mean distance of the surfaces up to which looking around each point is tried


def _one_way(
    source: _Side, target: _Side, spacing_mm: tuple[float, float, float], engine: str, thickness: float
) -> tuple[np.ndarray, np.ndarray]:
    """Distances (mm, float64, increasing) of the points of `source` to `target`, and the points' numbers in that order.

    thickness: mean distance of the surfaces in voxels, roughly. "auto" looks around the points while that is cheaper
    than a transform or a tree, and takes the cheaper of these for the points that are left.
    """
    shared = target.mask.reshape(-1)[source.points]
    groups, steps_mm, left = [np.flatnonzero(shared)], [0.0], np.flatnonzero(~shared)
    transform = "edt" if _edt is not None else "scipy"
    if left.size and (engine == "shells" or (engine == "auto" and thickness <= _NEAR_VOXELS)):
        budget = math.inf if engine == "shells" else 0.5 * _TRANSFORM_PER_VOXEL[transform] * source.mask.size
        found, distances_mm, missing = shells.search(
            source.points[left], target.mask, spacing_mm, budget=budget
        )
        groups += [left[numbers] for numbers in found]
        steps_mm += distances_mm
        left = left[missing]
    distances = np.repeat(steps_mm, [group.size for group in groups])
    if left.size:
        if engine in ("auto", "shells"):
            tree = _TREE_PER_TARGET * target.points.size + _TREE_PER_POINT * max(1.0, thickness) * left.size
            engine = "tree" if tree < _TRANSFORM_PER_VOXEL[transform] * source.mask.size else transform
        rest = (_by_tree if engine == "tree" else _by_transform)(
            source.points[left], target, spacing_mm, engine
        )
        order = np.argsort(rest, kind="stable")
        groups.append(left[order])
        distances = np.concatenate([distances, rest[order]])
    return distances, np.concatenate(groups)


def _by_transform(
    points: np.ndarray, target: _Side, spacing_mm: tuple[float, float, float], engine: str
) -> np.ndarray:
    """Distance of every point (flat positions) to `target` through a Euclidean distance transform of the box."""
    away = ~target.mask
    if engine == "edt":
        # the same bytes as uint8: three times faster than as bool
        field = _edt.edt(away.view(np.uint8), anisotropy=spacing_mm, black_border=False, parallel=1)
    else:
        field = ndimage.distance_transform_edt(away, sampling=spacing_mm)
    return field.reshape(-1)[points].astype(np.float64)


def _by_tree(
    points: np.ndarray, target: _Side, spacing_mm: tuple[float, float, float], _engine: str
) -> np.ndarray:
    """The same through a KD-tree of the target's points."""
    corners = [
        np.stack(np.unravel_index(flat, target.mask.shape), axis=1) * spacing_mm
        for flat in (target.points, points)
    ]
    return cKDTree(corners[0], balanced_tree=False, compact_nodes=False).query(corners[1])[0]


# ---- what is read off the distances -----------------------------------------------------------------------


def hausdorff_mm(distances: SurfaceDistances) -> float:
    """Largest distance of a point of one surface to the other one."""
    return float(max(distances.from_reference_mm[-1], distances.from_prediction_mm[-1]))


def percentile_hausdorff_mm(distances: SurfaceDistances, percent: float = 95.0) -> float:
    """The larger of the two directed percentiles (never a percentile of the pooled distances).

    surfel: the first distance at which the weights reach the share. voxel: linear interpolation.
    """
    sides = (
        (distances.from_reference_mm, distances.reference_weights),
        (distances.from_prediction_mm, distances.prediction_weights),
    )
    if distances.boundary_mode == "voxel":
        return float(max(np.percentile(d, percent) for d, _ in sides))
    values = []
    for d, weights in sides:
        share = np.cumsum(weights) / weights.sum()
        values.append(d[min(int(np.searchsorted(share, percent / 100.0)), d.size - 1)])
    return float(max(values))


def average_symmetric_mm(distances: SurfaceDistances) -> float:
    """ASSD: mean over the points of both surfaces together."""
    total = distances.reference_weights.sum() + distances.prediction_weights.sum()
    return float(
        (
            _weighted(distances.from_reference_mm, distances.reference_weights)
            + _weighted(distances.from_prediction_mm, distances.prediction_weights)
        )
        / total
    )


def mean_average_mm(distances: SurfaceDistances) -> float:
    """MASD: mean of the two directed means."""
    return float(
        0.5
        * (
            _weighted(distances.from_reference_mm, distances.reference_weights)
            / distances.reference_weights.sum()
            + _weighted(distances.from_prediction_mm, distances.prediction_weights)
            / distances.prediction_weights.sum()
        )
    )


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """NSD: share of both surfaces that lies within the tolerance of the other one."""
    limit = tolerance_mm * (1.0 + TOLERANCE_EPSILON)
    near = (
        distances.reference_weights[distances.from_reference_mm <= limit].sum()
        + distances.prediction_weights[distances.from_prediction_mm <= limit].sum()
    )
    return float(near / (distances.reference_weights.sum() + distances.prediction_weights.sum()))


def _weighted(distances: np.ndarray, weights: np.ndarray) -> float:
    return float((distances * weights).sum())
