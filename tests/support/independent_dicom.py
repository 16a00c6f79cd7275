"""SEG and RTSTRUCT read without our readers: highdicom's frames, and matplotlib's point-in-polygon at the
voxel centres.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from matplotlib.path import Path as Outline

from ctseg.geometry.volume import Volume


def in_order(folder: Path, label: Volume) -> list[Any]:
    """The slices of a series as pydicom reads them, in the order of the label's first axis."""
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    return sorted(
        slices,
        key=lambda item: float(
            np.linalg.inv(label.affine)[0] @ [*map(float, item.ImagePositionPatient), 1.0]
        ),
    )


def seg_masks(path: Path, slices: list[Any]) -> dict[str, np.ndarray]:
    """Segment label -> bool (D, H, W) on the slices."""
    seg = highdicom.seg.segread(path)
    pixels = seg.get_pixels_by_source_instance(
        [item.SOPInstanceUID for item in slices],
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    return {item.SegmentLabel: pixels[..., int(item.SegmentNumber) - 1] > 0 for item in seg.SegmentSequence}


def structure_masks(path: Path, slices: list[Any]) -> dict[str, np.ndarray]:
    """ROI name -> bool (D, H, W): centres inside an odd number of the contours that refer to a slice; each
    contour lies in its plane.
    """
    content = pydicom.dcmread(path)
    names = {int(item.ROINumber): item.ROIName for item in content.StructureSetROISequence}
    shape = (len(slices), int(slices[0].Rows), int(slices[0].Columns))
    numbers = {header.SOPInstanceUID: d for d, header in enumerate(slices)}
    corners = [np.array(header.ImagePositionPatient, float) for header in slices]
    directions = [np.array(header.ImageOrientationPatient, float).reshape(2, 3) for header in slices]
    spacings = [tuple(float(value) for value in header.PixelSpacing) for header in slices]
    masks = {}
    for item in content.ROIContourSequence:
        parity = np.zeros(shape, dtype=int)
        for contour in item.get("ContourSequence") or []:
            d = numbers[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            points = np.array(contour.ContourData, float).reshape(-1, 3) - corners[d]
            (row, column), (down, right) = directions[d], spacings[d]
            assert np.abs(points @ np.cross(row, column)).max() < 1e-3
            polygon = np.column_stack([points @ row / right, points @ column / down])
            left, top = np.maximum(np.floor(polygon.min(axis=0)).astype(int), 0)
            right_end, bottom = np.ceil(polygon.max(axis=0)).astype(int) + 1
            h, w = np.mgrid[top:bottom, left:right_end]
            inside = (
                Outline(polygon).contains_points(np.column_stack([w.ravel(), h.ravel()])).reshape(h.shape)
            )
            parity[d, top:bottom, left:right_end] += inside[: shape[1] - top, : shape[2] - left]
        masks[names[int(item.ReferencedROINumber)]] = parity % 2 == 1
    return masks
