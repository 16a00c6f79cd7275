"""Frames of a DICOM segmentation: where they lie on a CT's grid, and from which value on a voxel counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctseg.errors import Finding
from ctseg.geometry import tolerances
from ctseg.geometry.volume import Volume
from ctseg.scans.dicom import dicom_frames
from ctseg.scans.formats.regular_files import refuse

EXPORT = "export the segmentation again from the tool that drew it"


def place_frames(header: Any, image: Volume) -> tuple[list[tuple[int | None, int]], float]:
    """(for each frame its segment number, or None for a label map, and the index d of its slice; the largest
    distance along an axis in voxels)."""
    to_index = np.linalg.inv(image.affine)
    shared = dicom_frames.shared_groups(header)
    labelmap = header.get("SegmentationType") == "LABELMAP"
    result: list[tuple[int | None, int]] = []
    slices, rows, columns = image.array.shape
    farthest = 0.0
    for index, groups in enumerate(header.PerFrameFunctionalGroupsSequence, start=1):
        position, orientation, measures, segment = (
            dicom_frames.functional_group(groups, shared, f"{name}Sequence")
            for name in ("PlanePosition", "PlaneOrientation", "PixelMeasures", "SegmentIdentification")
        )
        try:
            first = np.array([float(v) for v in position.ImagePositionPatient])
            along = np.array([float(v) for v in orientation.ImageOrientationPatient]).reshape(2, 3)
            height, width = (float(v) for v in measures.PixelSpacing)
            steps = [along[1] * height * (rows - 1), along[0] * width * (columns - 1)]
            number = None if labelmap else int(segment.ReferencedSegmentNumber)
        except (AttributeError, TypeError, ValueError, IndexError):
            raise refuse("SEG_GEOMETRY", f"frame {index} has no complete geometry", EXPORT) from None
        # the frame's first pixel, the last one of its first column and of its first row, as (d, h, w)
        corners = np.array([first, first + steps[0], first + steps[1]]) @ to_index[:3, :3].T + to_index[:3, 3]
        plane = int(np.rint(corners[0, 0])) if np.isfinite(corners).all() else -1
        off = float(np.abs(corners - [[plane, 0, 0], [plane, rows - 1, 0], [plane, 0, columns - 1]]).max())
        # the scan's positions and the frames' may be rounded
        if not 0 <= plane < slices or not off <= 2 * tolerances.ROUNDED:
            inside = f"{off:.2g} of a voxel off the nearest slice"
            where = inside if 0 <= plane < slices else "outside the scan"
            raise refuse("SEG_GEOMETRY", f"frame {index} lies {where}", EXPORT)
        farthest = max(farthest, off)
        result.append((number, plane))
    return result, farthest


def least_value(header: Any, threshold: float | None) -> tuple[float, list[Finding]]:
    """(stored value from which a voxel belongs to a segment, what is to be told about it)."""
    if header.get("SegmentationType") != "FRACTIONAL":
        return 1, []
    kind, maximum = header.get("SegmentationFractionalType"), int(header.get("MaximumFractionalValue") or 0)
    kind = kind if kind in ("PROBABILITY", "OCCUPANCY") else "unknown"
    if threshold is None:
        cause = f"it holds values of 0 to {maximum} (type {kind}), not a mask"
        fix = (
            "export it as a binary segmentation, or choose where a mask begins, for example --set "
            "data.fractional_threshold=0.5"
        )
        raise refuse("SEG_FRACTIONAL", cause, fix)
    if maximum < 1:
        raise refuse("DICOM_CORRUPT", "it does not say its largest value", EXPORT)
    cause = (
        f"fractional segmentation of type {kind}, largest value {maximum}: voxels from "
        f"{threshold:g} of it on count"
    )
    fix = "nothing to do if that threshold is meant"
    return threshold * maximum, [Finding("WARN", "SEG_FRACTIONAL", cause, fix)]
