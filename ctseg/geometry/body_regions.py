"""The region of the lungs and the trachea in a CT of the chest, by threshold and shape alone.

Axis 0 of the arrays runs along the patient (superior), so a slice along it is an axial slice. Images are
0..1, see `ctseg.geometry.intensity.window`.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ctseg.errors import UsageError
from ctseg.geometry.boxes import Box, bounding_box, grow, label_boxes, tight_box, whole_box
from ctseg.geometry.volume import Volume, canonical_axes

BODY_HU = -300.0  # between fat (-120) and air or foam (-1000): skin stays inside, blankets mostly do not
BODY_MM = 6.0  # the body's edge needs no finer copy, and 512 x 512 x 300 then takes well under 0.1 s
LEVEL_PART = 0.01  # components of less than this share of the largest are noise

AIR_HU = -400.0  # between lung (below -500) and soft tissue
COARSE_MM = (
    2.0  # the lungs are found on every k-th voxel, about this far apart: nobody needs their edge more finely
)
CLOSING_MM = 6.0  # half the width of vessels and bronchial walls that belong to the lung region
SECOND_LUNG = 0.2  # a second component below this share of the largest is not the other lung
TRACHEA_ML = 1.0
LARGEST_TRACHEA_ML = 150.0
MARGIN_MM = 10.0


def body_mask(image: Volume) -> Volume:
    """Bool mask of the patient on a coarse copy of the image (every n-th voxel, about 6 mm).

    Opened once, so that thin things (blanket, tubes, a hollow table top) fall off. Body is the component that
    is largest after peeling off some 12 mm, and those level with it from front to back (a second leg, arms,
    pieces of a masked scan): a table lies behind.
    Empty when nothing in the image is denser than -300 HU.
    """
    steps = [max(1, int(BODY_MM / spacing)) for spacing in image.spacing_mm]
    coarse = image.array[:: steps[0], :: steps[1], :: steps[2]] > BODY_HU
    affine = image.affine.copy()
    affine[:3, :3] *= steps
    opened = ndimage.binary_opening(np.pad(coarse, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
    parts, _ = ndimage.label(opened if opened.any() else coarse)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept = np.zeros(len(sizes), dtype=bool)
    if sizes.any():
        boxes, depth = label_boxes(parts), canonical_axes(image.affine)[0][1]
        cores = np.bincount(parts[ndimage.binary_erosion(opened, iterations=2)], minlength=len(sizes))
        body = boxes[int((cores if cores.any() else sizes).argmax())][depth]
        for number in np.flatnonzero(sizes >= max(1.0, LEVEL_PART * sizes.max())):
            along = boxes[int(number)][depth]
            kept[number] = body.start <= (along.start + along.stop - 1) / 2 < body.stop
    return Volume(kept[parts], affine)


def lung_region(
    image: np.ndarray, window_hu: tuple[float, float], spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """(D, H, W) bool: lungs with their vessels, and the trachea; all False when there is no such thing.

    image: (D, H, W), 0..1 in the window. Air of an axial slice that reaches the slice's edge is outside the
    patient; of the rest, the largest component and the second, unless both lungs are one, are closed over
    vessels and walls.
    """
    threshold = (AIR_HU - window_hu[0]) / (window_hu[1] - window_hu[0])
    if not 0 < threshold < 1:
        raise UsageError(
            "BAD_WINDOW",
            f"the window {window_hu} cannot tell lung from tissue",
            f"use one that holds {AIR_HU:.0f} HU, such as -1024 to 400",
        )
    steps = [max(1, round(COARSE_MM / s)) for s in spacing_mm]
    coarse_mm = tuple(step * s for step, s in zip(steps, spacing_mm))
    air = image[:: steps[0], :: steps[1], :: steps[2]] < threshold
    components, n_components = ndimage.label(air & ~_outside(air))
    if n_components == 0:
        return np.zeros(image.shape, bool)
    sizes = np.bincount(components.ravel())[1:]
    order = np.argsort(-sizes, kind="stable") + 1
    kept = [label for label in order[:2] if sizes[label - 1] >= SECOND_LUNG * sizes[order[0] - 1]]
    lungs = _close(np.isin(components, kept), coarse_mm)
    region = lungs | _trachea(components, sizes, kept, coarse_mm)
    for axis, step in enumerate(steps):
        region = np.repeat(region, step, axis)
    return region[: image.shape[0], : image.shape[1], : image.shape[2]]


def lung_box(region: np.ndarray, spacing_mm: tuple[float, float, float]) -> Box:
    """The box of a lung region with 10 mm around it, inside the array; the whole array when the region is
    empty."""
    box = bounding_box(region) or whole_box(region.shape)
    return grow(box, [int(np.ceil(MARGIN_MM / s)) for s in spacing_mm], region.shape)


def _outside(air: np.ndarray) -> np.ndarray:
    """Air connected to the edge of its own axial slice.

    By slice, because the trachea leaves the scan at the top and the lungs may at the bottom: that end is no
    reason to lose them.
    """
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    components, n_components = ndimage.label(air, in_plane)
    touching = np.zeros(n_components + 1, bool)
    for edge in (components[:, 0], components[:, -1], components[:, :, 0], components[:, :, -1]):
        touching[edge] = True
    touching[0] = False
    return touching[components]


def _close(mask: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """The mask closed with a ball of CLOSING_MM; room is left at the edges so that they do not count as
    tissue."""
    pad = [(int(np.ceil(CLOSING_MM / s)) + 1,) * 2 for s in spacing_mm]
    grown = ndimage.distance_transform_edt(~np.pad(mask, pad), sampling=spacing_mm) <= CLOSING_MM
    closed = ndimage.distance_transform_edt(grown, sampling=spacing_mm) > CLOSING_MM
    inner = tuple(slice(before, before + n) for (before, _), n in zip(pad, mask.shape))
    return closed[inner] | mask


def _trachea(
    components: np.ndarray, sizes: np.ndarray, lungs: list[int], spacing_mm: tuple[float, ...]
) -> np.ndarray:
    """The largest other component of a trachea's volume whose centre is above the lungs' and near their
    middle in W.

    Often the trachea is one component with a lung; then nothing is added, or a pocket of gas too small to
    matter.
    """
    box = tight_box(np.isin(components, lungs))
    d_middle, w_quarter = (box[0].start + box[0].stop) / 2, (box[2].stop - box[2].start) / 4
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    for label in np.argsort(-sizes, kind="stable") + 1:
        if label in lungs or not TRACHEA_ML <= sizes[label - 1] * voxel_ml <= LARGEST_TRACHEA_ML:
            continue
        d, _, w = ndimage.center_of_mass(components == label)
        if d > d_middle and box[2].start + w_quarter < w < box[2].stop - w_quarter:
            return components == label
    return np.zeros(components.shape, bool)
