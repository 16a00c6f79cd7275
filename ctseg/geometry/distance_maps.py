"""How far every voxel lies from an organ, in mm: negative inside, positive outside, never infinite.

Two uses: the map of a label on its own grid (`signed_distance_maps`), and the coarse maps that guide a
network (`coarse_maps`), whose voxels are blocks of voxels of the canvas.

The distance is measured between voxel centres (the exact Euclidean transform) and then shortened by half a
voxel, because the boundary lies half a voxel before the nearest centre of the other side. "Half a voxel"
along the unit vector u to that centre is sqrt(sum (u_i s_i)^2) / 2: along an axis half its spacing, on an
isotropic grid s / 2 in every direction. So the map changes by one voxel from centre to centre across a face,
and is never zero. Where two centres are equally near on an anisotropic grid, either one counts: the map may
differ there by half the difference of the spacings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ctseg.geometry.boxes import (
    Index,
    Spacing,
    box_shape,
    box_start,
    grow,
    intersection,
    label_boxes,
    union,
    whole_box,
    within,
)
from ctseg.geometry.volume import Grid, Volume, covered_box, resample, tight

FAR_MM = 1000.0  # stands for "no such organ" where no limit is given
GUIDE_MM = 2.0  # wanted voxel size of a guide grid
GUIDE_RANGE_MM = 300.0  # guide maps are clipped to plus and minus this; 16 bits then keep 0.25 mm or better
_SAME = 1e-3  # spacings that differ by less (relative) count as isotropic


def signed_distance_maps(
    label: np.ndarray, ids: Sequence[int], spacing_mm: Spacing, *, limit_mm: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(maps (K, D, H, W) float32 in mm, presence (K,) bool) of the structures `ids` of a label map (D, H, W).

    limit_mm: clip to [-limit_mm, limit_mm] and compute only where that can matter; exact in between. A
    structure without a voxel is +limit_mm (FAR_MM without a limit) everywhere, with presence False. One that
    fills the whole array is the negative of that. The edge of the array is no boundary.
    """
    boxes = label_boxes(label)
    far = FAR_MM if limit_mm is None else limit_mm
    maps = np.full((len(ids), *label.shape), far, dtype=np.float32)
    for row, number in zip(maps, ids):
        if number not in boxes:
            continue
        # The nearest background voxel of an inside voxel lies in the structure's box or one voxel around it,
        # so the transform of the inside is cheap. The one of the outside needs as much as the limit reaches.
        ring, near = grow(boxes[number], 1, label.shape), whole_box(label.shape)
        if limit_mm is not None:
            reach = limit_mm + max(spacing_mm) / 2  # of the centres, before the half voxel comes off
            near = grow(boxes[number], [int(np.ceil(reach / step)) for step in spacing_mm], label.shape)
        outside, inside = label[near] != number, label[ring] == number
        depth = np.full(inside.shape, far) if inside.all() else _distance_to_zero(inside, spacing_mm)
        row[near] = _distance_to_zero(outside, spacing_mm)
        row[ring][inside] = -depth[inside]
        if limit_mm is not None:
            np.clip(row[near], -limit_mm, limit_mm, out=row[near])
    return maps, np.array([number in boxes for number in ids], dtype=bool)


def _distance_to_zero(mask: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """(D, H, W) float32: mm from each True voxel to the boundary of the nearest False voxel; 0 where False.

    At least one voxel must be False. Only the nearest voxel's index is asked of SciPy: its own way from there
    to the distance takes several arrays of 64 bits per voxel and axis.
    """
    nearest = ndimage.distance_transform_edt(
        mask, sampling=spacing_mm, return_distances=False, return_indices=True
    )
    isotropic = max(spacing_mm) - min(spacing_mm) <= _SAME * max(spacing_mm)
    squared = np.zeros(mask.shape, dtype=np.float32)
    weighted = squared if isotropic else np.zeros_like(squared)
    for axis, (size, spacing) in enumerate(zip(mask.shape, spacing_mm)):
        own = np.arange(size, dtype=nearest.dtype).reshape([-1 if other == axis else 1 for other in range(3)])
        step = np.subtract(nearest[axis], own, dtype=np.float32)
        step *= np.float32(spacing)
        step *= step
        squared += step
        if not isotropic:
            step *= np.float32(spacing**2)
            weighted += step
    if not isotropic:
        weighted /= np.maximum(squared, np.float32(1e-12))
        half = np.sqrt(weighted, out=weighted)
        half *= np.float32(0.5)
    distance = np.sqrt(squared, out=squared)
    distance -= np.float32(min(spacing_mm) / 2) if isotropic else half
    distance *= mask
    return distance


# ---- coarse maps of a canvas ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class CoarseMaps:
    """Distances on the guide grid of a canvas.

    distance_mm: (K, d, h, w) float16, within plus and minus GUIDE_RANGE_MM. presence: (K,) bool, whether the
    scan shows the organ at all. stride: guide voxel g covers the canvas voxels [g * stride, (g + 1) * stride)
    of an axis.
    """

    distance_mm: np.ndarray
    presence: np.ndarray
    stride: Index


def guide_stride(canvas: Grid, target_mm: float = GUIDE_MM) -> Index:
    """Whole canvas voxels per guide voxel along D, H, W: as near to `target_mm` as possible, the finer one of
    two."""
    steps = []
    for spacing in canvas.spacing_mm:
        fewer = max(1, int(target_mm / spacing))
        nearer = abs(fewer * spacing - target_mm) <= abs((fewer + 1) * spacing - target_mm) + 1e-9
        steps.append(fewer if nearer else fewer + 1)
    return steps[0], steps[1], steps[2]


def guide_grid(canvas: Grid, stride: Index) -> Grid:
    """The grid whose voxels are blocks of canvas voxels; the last block of an axis may stick out of the
    canvas."""
    affine = canvas.affine.copy()
    affine[:3, 3] = (canvas.affine @ np.array([*((step - 1) / 2 for step in stride), 1.0]))[:3]
    affine[:3, :3] *= stride
    d, h, w = (-(-size // step) for size, step in zip(canvas.shape, stride))
    return Grid((d, h, w), affine)


def organ_masks(label: Volume, ids: Sequence[int]) -> list[Volume | None]:
    """The mask (uint8 0/1) of each structure of a label map, cut to its box; None for one without a voxel."""
    parts = {number: label.crop_to(box) for number, box in label_boxes(label.array).items() if number in ids}
    masks = {n: Volume((part.array == n).astype(np.uint8), part.affine) for n, part in parts.items()}
    return [masks.get(number) for number in ids]


def coarse_maps(masks: Sequence[Volume | None], canvas: Grid, *, target_mm: float = GUIDE_MM) -> CoarseMaps:
    """Distances to organs, for training and prediction on `canvas`.

    masks: for each organ a 0/1 array with its place in the patient (cut to the organ or as large as the scan,
    on any grid), None when the organ is not there. The distances are those of the whole scan: an organ beside
    the canvas counts, what lies beyond the scan is not organ. Masks are brought to the guide grid with
    nearest neighbour; an organ that falls between its voxels altogether is marked in the voxels that hold it.
    """
    stride = guide_stride(canvas, target_mm)
    grid = guide_grid(canvas, stride)
    maps = np.full((len(masks), *grid.shape), GUIDE_RANGE_MM, dtype=np.float16)
    presence = np.zeros(len(masks), dtype=bool)
    for row, mask in enumerate(masks):
        part = None if mask is None else tight(mask, 1)
        if part is not None:
            presence[row] = True
            voxels = np.ascontiguousarray(part.array > 0).view(np.uint8)
            maps[row] = _coarse_map(Volume(voxels, part.affine), grid)
    return CoarseMaps(maps, presence, stride)


def _coarse_map(mask: Volume, grid: Grid) -> np.ndarray:
    """(d, h, w) float32 mm on the guide grid, clipped to the range.

    The transform runs on the guide grid continued to where the organ ends, at most as far as the range goes:
    what lies beyond changes nothing within the range.
    """
    box = covered_box(mask.grid, grid)  # continued beyond its edges
    organ = resample(mask, grid.crop_to(box), order="nearest", fill=0).array
    if not organ.any():
        to_guide = np.linalg.inv(grid.affine) @ mask.affine
        places = np.rint(np.argwhere(mask.array) @ to_guide[:3, :3].T + to_guide[:3, 3]).astype(int)
        organ = np.zeros(box_shape(box), dtype=np.uint8)
        organ[tuple((places - box_start(box)).T)] = 1
    canvas = whole_box(grid.shape)
    reach = [int(np.ceil(GUIDE_RANGE_MM / spacing)) + 2 for spacing in grid.spacing_mm]
    wide = intersection(union(grow(box, 1), canvas), grow(canvas, reach))
    assert wide is not None
    shared = intersection(box, wide)
    if shared is None:
        return np.full(grid.shape, GUIDE_RANGE_MM, dtype=np.float32)
    whole = np.zeros(box_shape(wide), dtype=np.uint8)
    whole[within(shared, wide)] = organ[within(shared, box)]
    maps, _ = signed_distance_maps(whole, [1], grid.spacing_mm, limit_mm=GUIDE_RANGE_MM)
    return maps[0][within(canvas, wide)]
