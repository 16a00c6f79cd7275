"""The grids the networks see, and the way back to the scan.

A canvas is the grid on which the 128^3 tensors of a case lie. Its axes are the scan's own axes in canonical
order (superior, posterior, left), so an oblique scan is not interpolated more than needed. Three kinds:

* `whole`: the canvas is one 128^3 tensor that holds the body at the finest isotropic spacing;
* `windows`: a canvas of fixed spacing, at least 128 voxels along each axis, cut into 128^3 tensors;
* `roi`: the same canvas, of which training sees the 128^3 around the structures, and prediction what a
  locator, trained on the `whole` canvas, finds there.

Where an axis of the scan already has the wanted spacing (within 1 %), the canvas lies on the scan's own
voxels along it; when all three do, nothing is interpolated and the way there and back is exact.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.artifacts import TENSOR_SIZE
from ctseg.geometry.body_regions import body_mask, lung_region
from ctseg.geometry.boxes import (
    Box,
    Index,
    bounding_box,
    box_start,
    box_stop,
    grow,
    intersection,
    label_boxes,
    make_box,
    move,
    union,
    whole_box,
    within,
)
from ctseg.geometry.volume import (
    AIR_HU,
    Flips,
    Grid,
    Volume,
    axes_towards,
    canonical_axes,
    corner_points,
    covered_box,
    face_corners,
    reorient,
    resample,
    to_canonical,
)

SAME_SPACING = 0.01  # spacings that differ by less count as equal
LUNG_WINDOW_HU = (-1024.0, 400.0)
SPLINE_MARGIN = 4  # voxels around a structure whose values still shape its surface in a cubic interpolation
SHEAR_TOLERANCE = 1e-3  # axes further than this from orthogonal are made orthogonal


@dataclasses.dataclass(frozen=True)
class Extent:
    """A box in space along the axes of `frame_of` a scan: (3,) its edges in mm, low and high of each of D, H,
    W."""

    low_mm: np.ndarray
    high_mm: np.ndarray

    @property
    def size_mm(self) -> np.ndarray:
        """(3,) edge lengths in mm along D, H, W."""
        return np.subtract(self.high_mm, self.low_mm)


@dataclasses.dataclass(frozen=True)
class GridPlan:
    """Which canvas every case of a run gets. spacing_mm: along D, H, W, None for `whole`."""

    kind: str  # whole | windows | roi
    spacing_mm: tuple[float, float, float] | None

    def canvas(self, scan: Grid, box: Extent) -> Grid:
        """The canvas of one scan whose body lies in `box`."""
        if self.spacing_mm is None:
            return whole_grid(scan, box)
        return window_grid(scan, box, self.spacing_mm)


# ---- axes and the body's box ------------------------------------------------------------------------------


def canonical_grid(grid: Grid) -> Grid:
    """The same voxels with the axes in canonical order and direction (as `volume.to_canonical`, without
    array)."""
    return grid.reorient(*canonical_axes(grid.affine))


def frame_of(scan: Grid) -> np.ndarray:
    """(3, 3) unit vectors in LPS as columns: the scan's own axes in canonical order.

    Sheared axes (a tilted gantry) are replaced by the nearest orthogonal ones, so that tensors show anatomy
    unsheared.
    """
    affine = canonical_grid(scan).affine
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(directions)
    orthogonal = left @ right
    return directions if np.abs(orthogonal - directions).max() < SHEAR_TOLERANCE else orthogonal


def _reach(grid: Grid, frame: np.ndarray, box: Box | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinate in mm along each frame axis of the voxels of a box (all), outer faces
    included."""
    coordinates = np.linalg.inv(frame) @ face_corners(grid.affine, box or whole_box(grid.shape))
    return coordinates.min(axis=1), coordinates.max(axis=1)


def kept_extent(image: Volume, crop: str, margin_mm: float) -> Extent:
    """What of a scan (HU) the tensors keep: crop "body" or "lungs" (with the trachea) plus a margin, cut at
    the scan's edge.

    The body where no lungs are found, the whole scan where no body is found.
    """
    if crop == "lungs":
        canonical, (low_hu, high_hu) = to_canonical(image), LUNG_WINDOW_HU
        windowed = (canonical.array - low_hu) / (high_hu - low_hu)
        mask = Volume(lung_region(windowed, LUNG_WINDOW_HU, canonical.spacing_mm), canonical.affine)
    else:
        mask = body_mask(image)
    box = bounding_box(mask.array)
    if box is None and crop == "lungs":
        return kept_extent(image, "body", margin_mm)
    frame = frame_of(image.grid)
    scan_low, scan_high = _reach(image.grid, frame)
    if box is None:
        return Extent(scan_low, scan_high)
    low, high = _reach(mask.grid, frame, box)
    return Extent(np.maximum(low - margin_mm, scan_low), np.minimum(high + margin_mm, scan_high))


def extent_with(extent: Extent, label: Volume) -> Extent:
    """The extent grown, where needed, to hold every labelled voxel."""
    box = bounding_box(label.array)
    if box is None:
        return extent
    low, high = _reach(label.grid, frame_of(label.grid), box)
    return Extent(np.minimum(low, extent.low_mm), np.maximum(high, extent.high_mm))


# ---- canvases and tensors ---------------------------------------------------------------------------------


def whole_grid(scan: Grid, box: Extent) -> Grid:
    """128^3 voxels at the finest isotropic spacing that holds the box, the box in the middle."""
    spacing = box.size_mm.max() / TENSOR_SIZE
    low_mm = np.add(box.low_mm, box.high_mm) / 2 - spacing * TENSOR_SIZE / 2
    return _grid_at(frame_of(scan), low_mm, np.full(3, spacing), (TENSOR_SIZE,) * 3)


def window_grid(scan: Grid, box: Extent, spacing_mm: tuple[float, float, float]) -> Grid:
    """Canvas of fixed spacing (D, H, W) that covers the box, at least 128 voxels along each axis.

    What has to be added to reach 128 is taken from the scan where it goes on, else it is air.
    """
    frame, canonical = frame_of(scan), canonical_grid(scan)
    own, wanted = np.array(canonical.spacing_mm), np.array(spacing_mm)
    straight = np.abs(canonical.affine[:3, :3] / own - frame).max() < SHEAR_TOLERANCE
    aligned = straight & (np.abs(own / wanted - 1) <= SAME_SPACING)
    step = np.where(aligned, own, wanted)
    first, last = _reach(canonical, frame)
    # outwards to the edges of the scan's voxels
    low = np.where(aligned, first + np.floor((box.low_mm - first) / step + 1e-3) * step, box.low_mm)
    high = np.where(aligned, first + np.ceil((box.high_mm - first) / step - 1e-3) * step, box.high_mm)
    count = np.maximum(TENSOR_SIZE, np.ceil((high - low) / step - 1e-3)).astype(int)
    low = (low + high) / 2 - count * step / 2
    lowest, highest = np.sort([first, last - count * step], axis=0)
    low = np.where(count == TENSOR_SIZE, np.clip(low, lowest, highest), low)
    low = np.where(aligned, first + np.round((low - first) / step) * step, low)
    d, h, w = count.tolist()
    return _grid_at(frame, low, step, (d, h, w))


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


def region_around(box: Box, canvas: Grid) -> Box:
    """The part of a canvas around a box of its voxels plus a margin: 128 voxels along each axis, more where
    the box needs it, moved to lie inside."""
    start, stop, shape = np.array(box_start(box)), np.array(box_stop(box)), np.array(canvas.shape)
    margin = np.ceil(ROI_MARGIN_MM / np.array(canvas.spacing_mm))
    count = np.minimum(shape, np.maximum(TENSOR_SIZE, stop - start + 2 * margin))
    first = np.clip(np.round((start + stop) / 2 - count / 2), 0, shape - count)
    return make_box(first, first + count)


def labelled_region(label: Volume) -> Box:
    """`region_around` all labelled voxels of a canvas; around its middle when there are none."""
    middle = np.array(label.grid.shape) // 2
    return region_around(bounding_box(label.array) or make_box(middle, middle + 1), label.grid)


# ---- moving voxels between scan and canvas ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Placement:
    """How voxels of one grid become voxels of another: axis order, then flips, then the index of the first
    one."""

    order: Index
    flips: Flips
    start: Index


def find_placement(source: Grid, target: Grid) -> Placement | None:
    """How `source` lies on the voxels of `target` (which may be larger or smaller); None when it does not."""
    axes = axes_towards(source, target)
    if axes is None:
        return None
    moved = source.reorient(*axes)
    d, h, w = (round(float(value)) for value in (np.linalg.inv(target.affine) @ moved.affine[:, 3])[:3])
    if not target.crop((d, h, w), moved.shape).matches(moved):
        return None
    return Placement(*axes, (d, h, w))


def place(volume: Volume, grid: Grid, placement: Placement, fill: float) -> Volume:
    """The volume's voxels copied to their place on `grid`; `fill` where it has none. No interpolation."""
    moved = reorient(volume, placement.order, placement.flips).array
    result = np.full(grid.shape, fill, dtype=moved.dtype)
    whole = move(whole_box(moved.shape), placement.start)
    if (shared := intersection(whole, whole_box(grid.shape))) is not None:
        result[shared] = moved[within(shared, whole)]
    return Volume(result, grid.affine)


def image_on_canvas(image: Volume, canvas: Grid) -> Volume:
    """HU values on the canvas, float32; -1024 outside the scan and where the scanner wrote less (padding)."""
    volume = Volume(np.maximum(image.array, np.float32(AIR_HU)), image.affine)
    placement = find_placement(volume.grid, canvas)
    if placement is not None:
        return place(volume, canvas, placement, AIR_HU)
    box = covered_part(canvas, volume.grid, margin=8)  # room for the low-pass before downsampling
    if box is None:
        return Volume(np.full(canvas.shape, AIR_HU, dtype=np.float32), canvas.affine)
    part = _average_blocks(volume.crop_to(box), canvas)
    return resample(part, canvas, order="linear", fill=AIR_HU, smooth=True)


def _average_blocks(volume: Volume, target: Grid) -> Volume:
    """The volume averaged over blocks of as many whole voxels as fit into one voxel of `target`.

    Area averaging is the low-pass that downsampling needs, ten times faster than a wide Gaussian; `resample`
    adds the small rest. A last incomplete block is filled up with the last voxel.
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

    Masks are interpolated one by one, never the label numbers, and without a low-pass, which would erase
    structures thinner than a voxel of the canvas.
    """
    placement = find_placement(label.grid, canvas)
    if placement is not None:
        return place(label, canvas, placement, 0)
    candidates = []
    for number, box in label_boxes(label.array).items():
        part = label.crop_to(grow(box, SPLINE_MARGIN, label.grid.shape))
        candidates.append((number, Volume((part.array == number).astype(np.float32), part.affine)))
    background = Volume(label.array == 0, label.affine)
    return Volume(argmax_of(candidates, background, canvas), canvas.affine)


def argmax_of(candidates: list[tuple[int, Volume]], background: Volume, target: Grid) -> np.ndarray:
    """Label map (uint8) on `target`: at each voxel the number whose interpolated weight is highest.

    Cubic, because linear interpolation lowers every ridge: a vessel one or two voxels thick lost a fifth of
    its volume on the way to a grid of the same spacing and back (docs/geometry.md). Weights are 0 outside a
    candidate's volume, the background's 1. Only the running best is kept.
    """
    result = np.zeros(target.shape, dtype=np.uint8)
    placed = [
        (number, volume, box)
        for number, volume in candidates
        if (box := covered_part(volume.grid, target)) is not None
    ]
    if not placed:
        return result
    joint = union(*(box for _, _, box in placed))
    around = target.crop_to(joint)
    ground = covered_part(around, background.grid, margin=8)
    if ground is None:
        best = np.ones(around.shape, dtype=np.float32)
    else:
        part = background.crop_to(ground)
        part = Volume(part.array.astype(np.float32), part.affine)
        best = resample(part, around, order="cubic", fill=1.0).array.copy()
    for number, volume, box in placed:
        weight = resample(volume, target.crop_to(box), order="cubic", fill=0.0).array
        highest = best[within(box, joint)]
        wins = weight > highest
        highest[wins] = weight[wins]
        result[box][wins] = number
    return result


def covered_part(source: Grid, target: Grid, margin: int = 1) -> Box | None:
    """The box of `target` that `source` covers, `margin` voxels wider; None when they do not meet."""
    return intersection(grow(covered_box(source, target), margin), whole_box(target.shape))


# ---- what the way to the canvas costs ---------------------------------------------------------------------


def count_voxels(label: np.ndarray) -> dict[int, int]:
    """Number -> voxels, for the non-zero numbers of a label map."""
    return {n: int(np.count_nonzero(label[box] == n)) for n, box in label_boxes(label).items()}


def lost_fractions(label: Volume, canvas: Grid) -> dict[int, float]:
    """Number -> share of its volume (voxel centres on the scan) that lies outside the canvas."""
    to_canvas = np.linalg.inv(canvas.affine) @ label.affine
    limits = np.array(canvas.shape)[:, None] - 0.5
    result = {}
    for number, box in label_boxes(label.array).items():
        places = corner_points(to_canvas, box_start(box), np.subtract(box_stop(box), 1))
        if not ((places >= -0.5) & (places <= limits)).all():
            voxels = np.argwhere(label.array[box] == number) + np.array(box_start(box))
            places = (voxels @ to_canvas[:3, :3].T + to_canvas[:3, 3]).T
        result[number] = float(1.0 - ((places >= -0.5) & (places <= limits)).all(axis=0).mean())
    return result
