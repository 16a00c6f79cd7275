"""The grids the networks see, and the way back to the scan.

A canvas is the grid on which the 128^3 tensors of a case lie. Its axes are the scan's own axes in canonical order
(superior, posterior, left), so an oblique scan is not interpolated more than needed. Three kinds:

* `whole`: the canvas is one 128^3 tensor that holds the body at the finest isotropic spacing;
* `windows`: a canvas of fixed spacing, at least 128 voxels along each axis, cut into 128^3 tensors;
* `roi`: the same canvas, of which training sees the 128^3 around the structures, and prediction what a locator, trained
  on the `whole` canvas, finds there.

Where an axis of the scan already has the wanted spacing (within 1 %), the canvas lies on the scan's own voxels along
it; when all three do, nothing is interpolated and the way there and back is exact.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from ctseg.artifacts import TENSOR_SIZE
from ctseg.geometry.volume import AIR_HU, Grid, Volume, canonical_axes, reorient, resample, to_canonical

Index = tuple[int, int, int]
Region = tuple[Index, Index]  # first index and shape

BODY_HU = -300.0  # between fat (-120) and air or foam (-1000): skin stays inside, blankets mostly do not
COARSE_MM = 6.0  # finding a box needs no finer copy, and 512 x 512 x 300 then takes well under 0.1 s
LEVEL_PART = 0.01  # components of less than this share of the largest are noise
SAME_SPACING = 0.01  # spacings that differ by less count as equal
LUNG_WINDOW_HU = (-1024.0, 400.0)
SPLINE_MARGIN = 4  # voxels around a structure whose values still shape its surface in a cubic interpolation
SHEAR_TOLERANCE = 1e-3  # axes further than this from orthogonal are made orthogonal


@dataclasses.dataclass(frozen=True)
class Box:
    """A box along the axes of `frame_of` a scan: its edges in mm, low and high of each of D, H, W."""

    low_mm: tuple[float, float, float]
    high_mm: tuple[float, float, float]

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """Edge lengths in mm along D, H, W."""
        d, h, w = (high - low for low, high in zip(self.low_mm, self.high_mm))
        return d, h, w


@dataclasses.dataclass(frozen=True)
class GridPlan:
    """Which canvas every case of a run gets. spacing_mm: along D, H, W, None for `whole`."""

    kind: str  # whole | windows | roi
    spacing_mm: tuple[float, float, float] | None

    def canvas(self, scan: Grid, box: Box) -> Grid:
        """The canvas of one scan whose body lies in `box`."""
        if self.spacing_mm is None:
            return whole_grid(scan, box)
        return window_grid(scan, box, self.spacing_mm)


# ---- axes and the body's box --------------------------------------------------------------------------------


def canonical_grid(grid: Grid) -> Grid:
    """The same voxels with the axes in canonical order and direction (as `volume.to_canonical`, without array)."""
    return _reorient_grid(grid, *canonical_axes(grid.affine))


def _reorient_grid(grid: Grid, order: Index, flips: tuple[bool, bool, bool]) -> Grid:
    affine = grid.affine.copy()
    affine[:, :3] = grid.affine[:, list(order)]
    d, h, w = (grid.shape[axis] for axis in order)
    for axis, (flip, count) in enumerate(zip(flips, (d, h, w))):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (count - 1)
            affine[:3, axis] *= -1
    return Grid((d, h, w), affine)


def frame_of(scan: Grid) -> np.ndarray:
    """(3, 3) unit vectors in LPS as columns: the scan's own axes in canonical order.

    Sheared axes (a tilted gantry) are replaced by the nearest orthogonal ones, so that tensors show anatomy unsheared.
    """
    affine = canonical_grid(scan).affine
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(directions)
    orthogonal = left @ right
    return directions if np.abs(orthogonal - directions).max() < SHEAR_TOLERANCE else orthogonal


def _extent(grid: Grid, region: Region, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinate in mm along each frame axis of the voxels of `region`, edges included."""
    start, shape = region
    ends = [(first - 0.5, first + count - 0.5) for first, count in zip(start, shape)]
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*ends)]).T
    coordinates = np.linalg.inv(frame) @ (grid.affine @ corners)[:3]
    return coordinates.min(axis=1), coordinates.max(axis=1)


def body_mask(image: Volume) -> Volume:
    """Bool mask of the patient on a coarse copy of the image (every n-th voxel, about 6 mm).

    Opened once, so that thin things (blanket, tubes, a hollow table top) fall off. Body is the component that is
    largest after peeling off some 12 mm, and those level with it from front to back (a second leg, arms, pieces of a
    masked scan): a table lies behind.
    Empty when nothing in the image is denser than -300 HU.
    """
    from scipy import ndimage

    steps = [max(1, int(COARSE_MM / spacing)) for spacing in image.spacing_mm]
    coarse = image.array[:: steps[0], :: steps[1], :: steps[2]] > BODY_HU
    affine = image.affine.copy()
    affine[:3, :3] *= steps
    opened = ndimage.binary_opening(np.pad(coarse, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
    parts, _ = ndimage.label(opened if opened.any() else coarse)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept = np.zeros(len(sizes), dtype=bool)
    if sizes.any():
        regions, depth = ndimage.find_objects(parts), canonical_axes(image.affine)[0][1]
        cores = np.bincount(parts[ndimage.binary_erosion(opened, iterations=2)], minlength=len(sizes))
        body = regions[int((cores if cores.any() else sizes).argmax()) - 1][depth]
        for number in np.flatnonzero(sizes >= max(1.0, LEVEL_PART * sizes.max())):
            along = regions[int(number) - 1][depth]
            kept[number] = body.start <= (along.start + along.stop - 1) / 2 < body.stop
    return Volume(kept[parts], affine)


def body_box(image: Volume, margin_mm: float) -> Box:
    """The box around the body plus a margin, cut at the scan's edge; the whole scan when no body is found."""
    frame = frame_of(image.grid)
    scan_low, scan_high = _extent(image.grid, ((0, 0, 0), image.grid.shape), frame)
    return mask_box(body_mask(image), image.grid, margin_mm) or _box(scan_low, scan_high)


def lungs_box(image: Volume, margin_mm: float) -> Box | None:
    """The box around lungs and trachea plus a margin; None where there are none. image: HU."""
    from ctseg.geometry.body_regions import lung_region

    canonical = to_canonical(image)
    low, high = LUNG_WINDOW_HU
    region = lung_region((canonical.array - low) / (high - low), LUNG_WINDOW_HU, canonical.spacing_mm)
    return mask_box(Volume(region, canonical.affine), image.grid, margin_mm)


def kept_box(image: Volume, crop: str, margin_mm: float) -> Box:
    """What of a scan the tensors keep: crop "body", or "lungs" (the body where no lungs are found)."""
    lungs = lungs_box(image, margin_mm) if crop == "lungs" else None
    return lungs if lungs is not None else body_box(image, margin_mm)


def mask_box(mask: Volume, scan: Grid, margin_mm: float) -> Box | None:
    """The box around a mask in canonical axes plus a margin, cut at the edge of the scan it belongs to; None when the mask is empty."""
    region = _occupied(mask.array)
    if region is None:
        return None
    frame = frame_of(scan)
    scan_low, scan_high = _extent(scan, ((0, 0, 0), scan.shape), frame)
    low, high = _extent(mask.grid, region, frame)
    return _box(np.maximum(low - margin_mm, scan_low), np.minimum(high + margin_mm, scan_high))


def extend_box(box: Box, label: Volume) -> Box:
    """The box grown, where needed, to hold every labelled voxel."""
    region = _occupied(label.array)
    if region is None:
        return box
    low, high = _extent(label.grid, region, frame_of(label.grid))
    return _box(np.minimum(low, box.low_mm), np.maximum(high, box.high_mm))


def _box(low: np.ndarray, high: np.ndarray) -> Box:
    return Box(
        (float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2]))
    )


def _occupied(mask: np.ndarray, margin: int = 0) -> Region | None:
    """The smallest region that holds all non-zero voxels, `margin` voxels wider where the array goes on; None if empty."""
    start, shape = [], []
    for axis in range(3):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if not hits.size:
            return None
        first, last = max(0, int(hits[0]) - margin), min(mask.shape[axis] - 1, int(hits[-1]) + margin)
        start.append(first)
        shape.append(last - first + 1)
    return (start[0], start[1], start[2]), (shape[0], shape[1], shape[2])


# ---- canvases and tensors -----------------------------------------------------------------------------------


def whole_grid(scan: Grid, box: Box) -> Grid:
    """128^3 voxels at the finest isotropic spacing that holds the box, the box in the middle."""
    spacing = max(box.size_mm) / TENSOR_SIZE
    centre = (np.array(box.low_mm) + np.array(box.high_mm)) / 2
    return _grid_at(
        frame_of(scan), centre - spacing * TENSOR_SIZE / 2, np.full(3, spacing), (TENSOR_SIZE,) * 3
    )


def window_grid(scan: Grid, box: Box, spacing_mm: tuple[float, float, float]) -> Grid:
    """Canvas of fixed spacing (D, H, W) that covers the box, at least 128 voxels along each axis.

    What has to be added to reach 128 is taken from the scan where it goes on, else it is air.
    """
    frame = frame_of(scan)
    canonical = canonical_grid(scan)
    directions = canonical.affine[:3, :3] / np.array(canonical.spacing_mm)
    straight = np.abs(directions - frame).max() < SHEAR_TOLERANCE
    scan_low, scan_high = _extent(canonical, ((0, 0, 0), canonical.shape), frame)
    lows, steps, counts = [], [], []
    for axis, (own, wanted) in enumerate(zip(canonical.spacing_mm, spacing_mm)):
        aligned = straight and abs(own / wanted - 1) <= SAME_SPACING
        step = own if aligned else wanted
        edge, low, high = scan_low[axis], box.low_mm[axis], box.high_mm[axis]
        if aligned:  # outwards to the edges of the scan's voxels
            low = edge + np.floor((low - edge) / step + 1e-3) * step
            high = edge + np.ceil((high - edge) / step - 1e-3) * step
        count = max(TENSOR_SIZE, int(np.ceil((high - low) / step - 1e-3)))
        low = (low + high) / 2 - count * step / 2
        between = sorted((edge, scan_high[axis] - count * step))
        low = min(max(low, between[0]), between[1]) if count == TENSOR_SIZE else low
        if aligned:
            low = edge + np.round((low - edge) / step) * step
        lows.append(low)
        steps.append(step)
        counts.append(count)
    return _grid_at(frame, np.array(lows), np.array(steps), (counts[0], counts[1], counts[2]))


def _grid_at(frame: np.ndarray, low_mm: np.ndarray, spacing_mm: np.ndarray, shape: Index) -> Grid:
    """The grid along `frame` whose first voxel has its lower edges at `low_mm`."""
    affine = np.eye(4)
    affine[:3, :3] = frame * spacing_mm
    affine[:3, 3] = frame @ (low_mm + spacing_mm / 2)
    return Grid(shape, affine)


def tensor_origins(shape: Index) -> list[Index]:
    """First indices of the fewest 128^3 tensors that cover a canvas, spread evenly."""
    along = []
    for size in shape:
        rest = size - TENSOR_SIZE
        count = 1 + -(-rest // TENSOR_SIZE)
        along.append([rest * number // max(1, count - 1) for number in range(count)])
    return [(d, h, w) for d in along[0] for h in along[1] for w in along[2]]


ROI_MARGIN_MM = 15.0  # around the structures: what a network should see of their surroundings


def region_around(
    low: np.ndarray, high: np.ndarray, shape: Index, spacing_mm: tuple[float, float, float]
) -> Region:
    """The part of a canvas around the voxels `low` to `high` (inclusive) plus a margin: 128 voxels along each axis, more
    where the structures need it, moved to lie inside."""
    starts, counts = [], []
    for first, last, size, step in zip(low, high, shape, spacing_mm):
        margin = int(np.ceil(ROI_MARGIN_MM / step))
        count = min(size, max(TENSOR_SIZE, int(last - first) + 1 + 2 * margin))
        starts.append(int(np.clip(round((first + last + 1) / 2 - count / 2), 0, size - count)))
        counts.append(count)
    return (starts[0], starts[1], starts[2]), (counts[0], counts[1], counts[2])


def labelled_region(label: Volume) -> Region:
    """`region_around` all labelled voxels of a canvas; its middle when there are none."""
    box = _occupied(label.array)
    low, high = (
        (np.array(label.grid.shape) // 2,) * 2
        if box is None
        else (np.array(box[0]), np.array(box[0]) + np.array(box[1]) - 1)
    )
    return region_around(low, high, label.grid.shape, label.grid.spacing_mm)


# ---- moving voxels between scan and canvas ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Placement:
    """How voxels of one grid become voxels of another: axis order, then flips, then the index of the first one."""

    order: Index
    flips: tuple[bool, bool, bool]
    start: Index


def find_placement(source: Grid, target: Grid) -> Placement | None:
    """How `source` lies on the voxels of `target` (which may be larger or smaller); None when it does not."""
    to_target = np.linalg.inv(target.affine) @ source.affine
    order = tuple(int(np.argmax(np.abs(to_target[axis, :3]))) for axis in range(3))
    if sorted(order) != [0, 1, 2]:
        return None
    order = (order[0], order[1], order[2])
    flips = (
        bool(to_target[0, order[0]] < 0),
        bool(to_target[1, order[1]] < 0),
        bool(to_target[2, order[2]] < 0),
    )
    moved = _reorient_grid(source, order, flips)
    d, h, w = (round(float(value)) for value in (np.linalg.inv(target.affine) @ moved.affine[:, 3])[:3])
    if not target.crop((d, h, w), moved.shape).matches(moved):
        return None
    return Placement(order, flips, (d, h, w))


def place(volume: Volume, grid: Grid, placement: Placement, fill: float) -> Volume:
    """The volume's voxels copied to their place on `grid`; `fill` where it has none. No interpolation."""
    moved = reorient(volume, placement.order, placement.flips).array
    result = np.full(grid.shape, fill, dtype=moved.dtype)
    target = tuple(slice(max(0, s), max(0, s + n)) for s, n in zip(placement.start, moved.shape))
    source = tuple(slice(max(0, -s), max(0, size - s)) for s, size in zip(placement.start, grid.shape))
    result[target] = moved[source]
    return Volume(result, grid.affine)


def image_on_canvas(image: Volume, canvas: Grid) -> Volume:
    """HU values on the canvas, float32; -1024 outside the scan and where the scanner wrote less (padding)."""
    volume = Volume(np.maximum(image.array, np.float32(AIR_HU)), image.affine)
    placement = find_placement(volume.grid, canvas)
    if placement is not None:
        return place(volume, canvas, placement, AIR_HU)
    region = _footprint(canvas, volume.grid, margin=8)  # room for the low-pass before downsampling
    if region is None:
        return Volume(np.full(canvas.shape, AIR_HU, dtype=np.float32), canvas.affine)
    part = _average_blocks(_cut(volume, region), canvas)
    return resample(part, canvas, order="linear", fill=AIR_HU, smooth=True)


def _average_blocks(volume: Volume, target: Grid) -> Volume:
    """The volume averaged over blocks of as many whole voxels as fit into one voxel of `target`.

    Area averaging is the low-pass that downsampling needs, ten times faster than a wide Gaussian; `resample` adds
    the small rest. A last incomplete block is filled up with the last voxel.
    """
    array, affine = volume.array, volume.affine.copy()
    steps = np.linalg.norm((np.linalg.inv(volume.affine) @ target.affine)[:3, :3], axis=1)
    for axis, size in enumerate(min(int(step + 0.01), count) for step, count in zip(steps, array.shape)):
        if size < 2:
            continue
        array = np.moveaxis(array, axis, 0)
        total = array[::size].astype(np.float32)
        for offset in range(1, size):
            layers = array[offset::size]
            total[: len(layers)] += layers
            total[len(layers) :] += array[-1]
        total *= np.float32(1 / size)
        array = np.moveaxis(total, 0, axis)
        affine[:3, 3] += affine[:3, axis] * (size - 1) / 2
        affine[:3, axis] *= size
    return Volume(np.ascontiguousarray(array), affine)


def label_on_canvas(label: Volume, canvas: Grid) -> Volume:
    """Label map (uint8) on the canvas. Exact where the grids align, else the structure with most weight wins.

    Masks are interpolated one by one, never the label numbers, and without a low-pass, which would erase structures
    thinner than a voxel of the canvas.
    """
    placement = find_placement(label.grid, canvas)
    if placement is not None:
        return place(label, canvas, placement, 0)
    candidates = []
    for number, region in occupied_regions(label.array).items():
        part = _cut(label, _grow(region, label.grid.shape, SPLINE_MARGIN))
        candidates.append((number, Volume((part.array == number).astype(np.float32), part.affine)))
    background = Volume(label.array == 0, label.affine)
    return Volume(elect(candidates, background, canvas), canvas.affine)


def elect(candidates: list[tuple[int, Volume]], background: Volume, target: Grid) -> np.ndarray:
    """Label map (uint8) on `target`: at each voxel the number whose interpolated weight is highest.

    Cubic, because linear interpolation lowers every ridge: a vessel one or two voxels thick lost a fifth of its volume on
    the way to a grid of the same spacing and back (docs/geometry.md). Weights are 0 outside a candidate's volume, the
    background's 1. Only the running best is kept.
    """
    result = np.zeros(target.shape, dtype=np.uint8)
    placed = [
        (number, volume, region)
        for number, volume in candidates
        if (region := _footprint(volume.grid, target)) is not None
    ]
    if not placed:
        return result
    low = [min(region[0][axis] for _, _, region in placed) for axis in range(3)]
    high = [max(region[0][axis] + region[1][axis] for _, _, region in placed) for axis in range(3)]
    start = (low[0], low[1], low[2])
    union = target.crop(start, (high[0] - low[0], high[1] - low[1], high[2] - low[2]))
    ground = _footprint(union, background.grid, margin=8)
    if ground is None:
        best = np.ones(union.shape, dtype=np.float32)
    else:
        part = _cut(background, ground)
        best = resample(
            Volume(part.array.astype(np.float32), part.affine), union, order="cubic", fill=1.0
        ).array.copy()
    for number, volume, region in placed:
        weight = resample(volume, target.crop(*region), order="cubic", fill=0.0).array
        inside = tuple(
            slice(first - base, first - base + count) for first, count, base in zip(*region, start)
        )
        wins = weight > best[inside]
        best[inside][wins] = weight[wins]
        result[tuple(slice(first, first + count) for first, count in zip(*region))][wins] = number
    return result


def _footprint(source: Grid, target: Grid, margin: int = 1) -> Region | None:
    """The region of `target` that `source` covers, `margin` voxels wider; None when they do not meet."""
    ends = [(-0.5, count - 0.5) for count in source.shape]
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*ends)]).T
    indices = (np.linalg.inv(target.affine) @ source.affine @ corners)[:3]
    low = np.maximum(np.floor(indices.min(axis=1)).astype(int) - margin, 0)
    high = np.minimum(np.ceil(indices.max(axis=1)).astype(int) + margin + 1, target.shape)
    if (high <= low).any():
        return None
    d, h, w = (int(value) for value in high - low)
    return (int(low[0]), int(low[1]), int(low[2])), (d, h, w)


def _cut(volume: Volume, region: Region) -> Volume:
    """The part of a volume inside a region of its own grid (a view)."""
    start, shape = region
    array = volume.array[tuple(slice(first, first + count) for first, count in zip(start, shape))]
    return Volume(array, volume.grid.crop(start, shape).affine)


def _grow(region: Region, limit: Index, margin: int) -> Region:
    start = [max(0, first - margin) for first in region[0]]
    stop = [min(size, first + count + margin) for first, count, size in zip(*region, limit)]
    return (start[0], start[1], start[2]), (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])


# ---- what the way to the canvas costs -----------------------------------------------------------------------


def occupied_regions(label: np.ndarray) -> dict[int, Region]:
    """Number -> smallest region that holds all its voxels, for the non-zero numbers of a label map."""
    from scipy import ndimage

    result: dict[int, Region] = {}
    for number, slices in enumerate(ndimage.find_objects(label), start=1):
        if slices is not None:
            d, h, w = slices
            result[number] = (
                (d.start, h.start, w.start),
                (d.stop - d.start, h.stop - h.start, w.stop - w.start),
            )
    return result


def count_voxels(label: np.ndarray) -> dict[int, int]:
    """Number -> voxels, for the non-zero numbers of a label map."""
    counts = {}
    for number, (start, shape) in occupied_regions(label).items():
        part = label[tuple(slice(first, first + count) for first, count in zip(start, shape))]
        counts[number] = int(np.count_nonzero(part == number))
    return counts


def lost_fractions(label: Volume, canvas: Grid) -> dict[int, float]:
    """Number -> share of its volume (voxel centres on the scan) that lies outside the canvas."""
    to_canvas = np.linalg.inv(canvas.affine) @ label.affine
    result = {}
    for number, region in occupied_regions(label.array).items():
        low, high = _canvas_extent(region, to_canvas)
        if (low >= -0.5).all() and (high <= np.array(canvas.shape) - 0.5).all():
            result[number] = 0.0
            continue
        part = _cut(label, region).array
        voxels = np.argwhere(part == number) + np.array(region[0])
        indices = voxels @ to_canvas[:3, :3].T + to_canvas[:3, 3]
        inside = ((indices >= -0.5) & (indices <= np.array(canvas.shape) - 0.5)).all(axis=1)
        result[number] = float(1.0 - inside.mean())
    return result


def _canvas_extent(region: Region, to_canvas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ends = [(first, first + count - 1) for first, count in zip(*region)]
    indices = (to_canvas @ np.array([[*corner, 1.0] for corner in itertools.product(*ends)]).T)[:3]
    return indices.min(axis=1), indices.max(axis=1)
