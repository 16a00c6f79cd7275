"""How far every voxel lies from an organ, in mm: negative inside, positive outside, never infinite.

Two uses: the map of a label on its own grid (`signed_distance_maps`), and the coarse maps that guide a network
(`coarse_maps`), whose voxels are blocks of voxels of the canvas.

The distance is measured between voxel centres (the exact Euclidean transform) and then shortened by half a voxel,
because the boundary lies half a voxel before the nearest centre of the other side. "Half a voxel" along the unit
vector u to that centre is sqrt(sum (u_i s_i)^2) / 2: along an axis half its spacing, on an isotropic grid s / 2 in
every direction. So the map changes by one voxel from centre to centre across a face, and is never zero. Where two
centres are equally near on an anisotropic grid, either one counts: the map may differ there by half the difference of
the spacings.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ctseg.geometry.grids import Index, Region, occupied_regions
from ctseg.geometry.volume import Grid, Volume, resample

FAR_MM = 1000.0  # stands for "no such organ" where no limit is given
GUIDE_MM = 2.0  # wanted voxel size of a guide grid
GUIDE_RANGE_MM = 300.0  # guide maps are clipped to plus and minus this; 16 bits then keep 0.25 mm or better
_SAME = 1e-3  # spacings that differ by less (relative) count as isotropic

Spacing = tuple[float, float, float]


def signed_distance_maps(
    label: np.ndarray, ids: Sequence[int], spacing_mm: Spacing, *, limit_mm: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(maps (K, D, H, W) float32 in mm, presence (K,) bool) of the structures `ids` of a label map (D, H, W).

    limit_mm: clip to [-limit_mm, limit_mm] and compute only where that can matter; exact in between. A structure
    without a voxel is +limit_mm (FAR_MM without a limit) everywhere, with presence False. One that fills the whole
    array is the negative of that. The edge of the array is no boundary.
    """
    regions = occupied_regions(label)
    maps = np.full((len(ids), *label.shape), FAR_MM if limit_mm is None else limit_mm, dtype=np.float32)
    for row, number in zip(maps, ids):
        if number in regions:
            _fill(row, label, number, regions[number], spacing_mm, limit_mm)
    return maps, np.array([number in regions for number in ids], dtype=bool)


def _fill(
    result: np.ndarray,
    label: np.ndarray,
    number: int,
    region: Region,
    spacing_mm: Spacing,
    limit_mm: float | None,
) -> None:
    """Write the distances to one structure into `result`, which holds the constant for "far" already.

    The nearest background voxel of an inside voxel lies in the structure's box or one voxel around it, so the
    transform of the inside is cheap. The one of the outside needs as much as the limit reaches.
    """
    ring = _grown(region, (1, 1, 1), label.shape)
    near: tuple[slice, ...] = (slice(None),) * 3
    if limit_mm is not None:
        reach = limit_mm + max(spacing_mm) / 2  # of the centres, before the half voxel comes off
        near = _grown(region, [int(np.ceil(reach / spacing)) for spacing in spacing_mm], label.shape)
    outside = _distance_to_zero(label[near] != number, spacing_mm)
    inside = label[ring] == number
    depth = np.full(inside.shape, result.flat[0]) if inside.all() else _distance_to_zero(inside, spacing_mm)
    result[near] = outside
    result[ring][inside] = -depth[inside]
    if limit_mm is not None:
        np.clip(result[near], -limit_mm, limit_mm, out=result[near])


def _grown(region: Region, margin: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(
        slice(max(0, first - more), min(size, first + count + more))
        for first, count, more, size in zip(*region, margin, shape)
    )


def _distance_to_zero(mask: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """(D, H, W) float32: mm from each True voxel to the boundary of the nearest False voxel; 0 where False.

    At least one voxel must be False. Only the nearest voxel's index is asked of SciPy: its own way from there to the
    distance takes several arrays of 64 bits per voxel and axis.
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


# ---- coarse maps of a canvas --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class CoarseMaps:
    """Distances on the guide grid of a canvas.

    distance_mm: (K, d, h, w) float16, within plus and minus GUIDE_RANGE_MM. presence: (K,) bool, whether the scan
    shows the organ at all. stride: guide voxel g covers the canvas voxels [g * stride, (g + 1) * stride) of an axis.
    """

    distance_mm: np.ndarray
    presence: np.ndarray
    stride: Index


def guide_stride(canvas: Grid, target_mm: float = GUIDE_MM) -> Index:
    """Whole canvas voxels per guide voxel along D, H, W: as near to `target_mm` as possible, the finer one of two."""
    steps = []
    for spacing in canvas.spacing_mm:
        fewer = max(1, int(target_mm / spacing))
        steps.append(
            fewer
            if abs(fewer * spacing - target_mm) <= abs((fewer + 1) * spacing - target_mm) + 1e-9
            else fewer + 1
        )
    return steps[0], steps[1], steps[2]


def guide_grid(canvas: Grid, stride: Index) -> Grid:
    """The grid whose voxels are blocks of canvas voxels; the last block of an axis may stick out of the canvas."""
    affine = canvas.affine.copy()
    affine[:3, 3] = (canvas.affine @ np.array([*((step - 1) / 2 for step in stride), 1.0]))[:3]
    affine[:3, :3] *= stride
    d, h, w = (-(-size // step) for size, step in zip(canvas.shape, stride))
    return Grid((d, h, w), affine)


def organ_masks(label: Volume, ids: Sequence[int]) -> list[Volume | None]:
    """The mask (uint8 0/1) of each structure of a label map, cut to its box; None for one without a voxel."""
    regions = occupied_regions(label.array)
    masks: list[Volume | None] = []
    for number in ids:
        if number not in regions:
            masks.append(None)
            continue
        start, shape = regions[number]
        box = tuple(slice(first, first + count) for first, count in zip(start, shape))
        masks.append(
            Volume((label.array[box] == number).astype(np.uint8), label.grid.crop(start, shape).affine)
        )
    return masks


def coarse_maps(masks: Sequence[Volume | None], canvas: Grid, *, target_mm: float = GUIDE_MM) -> CoarseMaps:
    """Distances to organs, for training and prediction on `canvas`.

    masks: for each organ a 0/1 array with its place in the patient (cut to the organ or as large as the scan, on any
    grid), None when the organ is not there. The distances are those of the whole scan: an organ beside the canvas
    counts, what lies beyond the scan is not organ. Masks are brought to the guide grid with nearest neighbour; an organ
    that falls between its voxels altogether is marked in the voxels that hold it.
    """
    stride = guide_stride(canvas, target_mm)
    grid = guide_grid(canvas, stride)
    maps = np.full((len(masks), *grid.shape), GUIDE_RANGE_MM, dtype=np.float16)
    presence = np.zeros(len(masks), dtype=bool)
    for row, mask in enumerate(masks):
        part = None if mask is None else _tight(mask)
        if part is not None:
            presence[row] = True
            maps[row] = _coarse_map(part, grid)
    return CoarseMaps(maps, presence, stride)


def _tight(mask: Volume) -> Volume | None:
    """The mask as uint8, cut to its non-zero voxels and one voxel around them; None when there are none."""
    region = occupied_regions((mask.array > 0).view(np.uint8)).get(1)
    if region is None:
        return None
    box = _grown(region, (1, 1, 1), mask.array.shape)
    part = np.ascontiguousarray(mask.array[box] > 0).view(np.uint8)
    return Volume(part, mask.grid.crop((box[0].start, box[1].start, box[2].start), region[1]).affine)


def _coarse_map(mask: Volume, grid: Grid) -> np.ndarray:
    """(d, h, w) float32 mm on the guide grid, clipped to the range.

    The transform runs on the guide grid continued to where the organ ends, at most as far as the range goes: what
    lies beyond changes nothing within the range.
    """
    start, organ = _on_guide_grid(mask, grid)
    reach = [int(np.ceil(GUIDE_RANGE_MM / spacing)) + 2 for spacing in grid.spacing_mm]
    low = [max(min(first - 1, 0), -more) for first, more in zip(start, reach)]
    high = [
        min(max(first + count + 1, size), size + more)
        for first, count, size, more in zip(start, organ.shape, grid.shape, reach)
    ]
    whole = np.zeros([b - a for a, b in zip(low, high)], dtype=np.uint8)
    first = [max(a, s) for a, s in zip(low, start)]
    last = [min(b, s + n) for b, s, n in zip(high, start, organ.shape)]
    if any(b <= a for a, b in zip(first, last)):
        return np.full(grid.shape, GUIDE_RANGE_MM, dtype=np.float32)
    target = tuple(slice(a - base, b - base) for a, b, base in zip(first, last, low))
    whole[target] = organ[tuple(slice(a - s, b - s) for a, b, s in zip(first, last, start))]
    maps, _ = signed_distance_maps(whole, [1], grid.spacing_mm, limit_mm=GUIDE_RANGE_MM)
    return maps[0][tuple(slice(-base, size - base) for base, size in zip(low, grid.shape))]


def _on_guide_grid(mask: Volume, grid: Grid) -> tuple[Index, np.ndarray]:
    """(first guide voxel, uint8 mask) of an organ on the guide grid, continued beyond its edges."""
    to_guide = np.linalg.inv(grid.affine) @ mask.affine
    ends = [(-0.5, count - 0.5) for count in mask.array.shape]
    corners = (to_guide @ np.array([[*corner, 1.0] for corner in itertools.product(*ends)]).T)[:3]
    low, high = np.floor(corners.min(axis=1)).astype(int), np.ceil(corners.max(axis=1)).astype(int) + 1
    start, shape = (
        (int(low[0]), int(low[1]), int(low[2])),
        (int(high[0] - low[0]), int(high[1] - low[1]), int(high[2] - low[2])),
    )
    array = resample(mask, grid.crop(start, shape), order="nearest", fill=0).array
    if not array.any():
        places = np.rint(np.argwhere(mask.array) @ to_guide[:3, :3].T + to_guide[:3, 3]).astype(int) - low
        array = np.zeros(shape, dtype=np.uint8)
        array[tuple(places.T)] = 1
    return start, array
