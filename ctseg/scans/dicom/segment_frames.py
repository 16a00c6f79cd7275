"""Frames of a DICOM segmentation: where they lie on a CT's grid, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from ctseg.errors import Finding
from ctseg.geometry import tolerances
from ctseg.geometry.volume import Volume
from ctseg.scans.dicom.dicom_pixels import Decoder
from ctseg.scans.formats.regular_files import refuse

EXPORT = "export the segmentation again from the tool that drew it"


def place_frames(header: Any, image: Volume) -> tuple[list[tuple[int | None, int]], float]:
    """(for each frame its segment number, or None for a label map, and the index d of its slice; the largest
    distance along an axis in voxels)."""
    to_index = np.linalg.inv(image.affine)
    shared = (header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    labelmap = str(header.get("SegmentationType", "")) == "LABELMAP"
    result: list[tuple[int | None, int]] = []
    rows, columns = image.array.shape[1:]
    farthest = 0.0
    for index, groups in enumerate(header.PerFrameFunctionalGroupsSequence):
        try:
            corners = _corners(groups, shared, rows, columns)
            number = (
                None
                if labelmap
                else int(_group(groups, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            )
        except (AttributeError, TypeError, ValueError, IndexError):
            raise refuse("SEG_GEOMETRY", f"frame {index + 1} has no complete geometry", EXPORT) from None
        plane = int(np.rint((to_index @ corners[0])[0])) if np.isfinite(corners).all() else -1
        wanted = np.array(
            [[plane, 0, 0, 1], [plane, rows - 1, 0, 1], [plane, 0, columns - 1, 1]], dtype=np.float64
        )
        off = float(np.abs(corners @ to_index.T - wanted).max())
        # the scan's positions and the frames' may be rounded
        if not 0 <= plane < image.array.shape[0] or not off <= 2 * tolerances.ROUNDED:
            where = (
                f"{off:.2g} of a voxel off the nearest slice"
                if 0 <= plane < image.array.shape[0]
                else "outside the scan"
            )
            raise refuse("SEG_GEOMETRY", f"frame {index + 1} lies {where}", EXPORT)
        farthest = max(farthest, off)
        result.append((number, plane))
    return result, farthest


def _corners(groups: Any, shared: Any, rows: int, columns: int) -> np.ndarray:
    """(3, 4) homogeneous LPS mm of a frame's first pixel, the last one of its first column and of its first
    row."""
    position = np.array(
        [float(v) for v in _group(groups, shared, "PlanePositionSequence").ImagePositionPatient]
    )
    directions = np.array(
        [float(v) for v in _group(groups, shared, "PlaneOrientationSequence").ImageOrientationPatient]
    ).reshape(2, 3)
    down, across = (float(v) for v in _group(groups, shared, "PixelMeasuresSequence").PixelSpacing)
    points = [
        position,
        position + directions[1] * down * (rows - 1),
        position + directions[0] * across * (columns - 1),
    ]
    return np.hstack([np.array(points), np.ones((3, 1))])


def _group(groups: Any, shared: Any, name: str) -> Any:
    """One functional group of a frame, its own or the shared one."""
    return (groups.get(name) or getattr(shared, name))[0]


def contents(
    path: Path, frames: list[tuple[int | None, int]], numbers: set[int]
) -> Iterator[tuple[int | None, int, np.ndarray]]:
    """(segment number or None, slice index, stored values (H, W)) of every frame that matters."""
    content = pydicom.dcmread(path)
    with Decoder() as decoder:
        for (number, plane), stored in zip(frames, _bits(content) or decoder.frames(content, path)):
            if number is None or number in numbers:
                yield number, plane, stored


def _bits(content: Any) -> Iterator[np.ndarray] | None:
    """The frames (H, W) of uncompressed single bits, where a frame may begin within a byte; None for other
    pixels."""
    syntax = pydicom.uid.UID(str(content.file_meta.TransferSyntaxUID))
    if int(content.get("BitsAllocated") or 0) != 1 or syntax.is_encapsulated:
        return None
    pixels, (rows, columns) = (
        np.frombuffer(content.get("PixelData") or b"", np.uint8),
        (int(content.Rows), int(content.Columns)),
    )
    size, count = rows * columns, int(content.get("NumberOfFrames") or 1)
    if len(pixels) * 8 < size * count:
        raise refuse(
            "PIXELS_CORRUPT",
            f"{len(pixels)} of {(size * count + 7) // 8} bytes of pixels",
            "copy or export the file again",
        )
    return (
        np.unpackbits(pixels[at // 8 : (at + size + 7) // 8], bitorder="little")[at % 8 :][:size].reshape(
            rows, columns
        )
        for at in range(0, size * count, size)
    )


def least_value(header: Any, threshold: float | None) -> tuple[float, list[Finding]]:
    """(stored value from which a voxel belongs to a segment, what is to be told about it)."""
    if str(header.get("SegmentationType", "")) != "FRACTIONAL":
        return 1, []
    kind, maximum = (
        str(header.get("SegmentationFractionalType", "")),
        int(header.get("MaximumFractionalValue") or 0),
    )
    kind = kind if kind in ("PROBABILITY", "OCCUPANCY") else "unknown"
    if threshold is None:
        raise refuse(
            "SEG_FRACTIONAL",
            f"it holds values of 0 to {maximum} (type {kind}), not a mask",
            "export it as a binary segmentation, or choose where a mask begins, for example --set "
            "data.fractional_threshold=0.5",
        )
    if maximum < 1:
        raise refuse("DICOM_CORRUPT", "it does not say its largest value", EXPORT)
    cause = (
        f"fractional segmentation of type {kind}, largest value {maximum}: voxels from "
        f"{threshold:g} of it on count"
    )
    return threshold * maximum, [
        Finding("WARN", "SEG_FRACTIONAL", cause, "nothing to do if that threshold is meant")
    ]
