"""DICOM segmentation objects (SEG): read onto a CT's grid, and written for a CT series.

Frames are placed by their position in the patient, never by their order, and a missing frame is empty:
writers leave empty frames out, so frames and slices differ in number. Segments may overlap.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import generate_uid
from pydicom.valuerep import format_number_as_ds

from ctseg.errors import Finding, Findings
from ctseg.geometry import tolerances
from ctseg.geometry.volume import Volume
from ctseg.scans.dicom import dicom_codes, dicom_files, dicom_frames, dicom_series, mask_objects
from ctseg.scans.dicom.dicom_pixels import Decoder
from ctseg.scans.dicom.mask_objects import SEG
from ctseg.scans.formats import checks, slice_gaps
from ctseg.scans.formats.regular_files import located, refuse

# All that highdicom sees of the series, next to its functional groups.
_FROM_SOURCE = """
StudyInstanceUID SOPClassUID SOPInstanceUID SeriesInstanceUID SeriesNumber FrameOfReferenceUID
PositionReferenceIndicator Modality ImageType Rows Columns NumberOfFrames ImagePositionPatient
ImageOrientationPatient PixelSpacing SliceThickness SpacingBetweenSlices LossyImageCompression
LossyImageCompressionRatio LossyImageCompressionMethod
"""


@dicom_files.private()
def read_segments(
    path: Path,
    image: Volume,
    image_folder: Path | None,
    *,
    names: Collection[str] | None = None,
    series_uid: str | None = None,
    fractional_threshold: float | None = None,
    gaps: str = slice_gaps.KEEP,
) -> tuple[dict[str, np.ndarray], Findings]:
    """({segment label: bool (D, H, W) on the image's grid}, what was noticed).

    names: read only these (all when None); a name that two segments carry is refused. image_folder: where the
    CT series lies, to check that the segmentation was drawn on it; None skips that check (a CT in NIfTI
    form). fractional_threshold: share of the largest value, above 0 and up to 1, from which a voxel of a
    fractional segmentation belongs to its segment; None: fractional ones are refused. gaps: what becomes of a
    segment on every other slice, as from a thicker series, see `slice_gaps`; one that is left out is not
    among the masks.
    """
    if fractional_threshold is not None and not 0 < fractional_threshold <= 1:
        raise ValueError(f"fractional_threshold={fractional_threshold} lies outside 0 (excluded) to 1")
    with dicom_files.guard(path):
        header, known = mask_objects.open_masks(path, SEG)
        announced, listed = int(header.get("NumberOfFrames") or 1), len(header.get(dicom_frames.GROUPS[1]))
        if listed and listed != announced:
            cause = f"{announced} frames with {listed} descriptions"
            raise refuse("DICOM_CORRUPT", cause, "export the segmentation again")
        least, findings = least_value(header, fractional_threshold)
        if image_folder is not None:
            frames, series = [header.get("FrameOfReferenceUID")], mask_objects.series_of(header)
            scan, notes = dicom_files.drawn_on(image_folder, series_uid, frames=frames, series=series)
            findings += notes
            if scan is None:
                cause = "it refers to another series and another frame of reference"
                raise refuse("SEG_WRONG_SERIES", cause, "give the segmentation that was drawn on this series")
        if unnamed := [number for number, name in known.items() if not name]:
            cause = f"{len(unnamed)} segments have no label and are left out"
            findings.append(Finding("WARN", "SEG_NAMELESS", cause, "name them in the tool that drew them"))
        segments = {n: name for n, name in known.items() if name and (names is None or name in names)}
        if len(set(segments.values())) < len(segments):
            cause = "two segments carry the same label"
            raise refuse("SEG_AMBIGUOUS", cause, "give each segment its own label")
        masks, off = _painted(path, header, image, known, segments, least)
        if off > tolerances.EQUAL:
            cause = f"its frames lie up to {off:.2g} of a voxel beside the scan's slices and count as on them"
            fix = "nothing to do if positions were rounded"
            findings.append(Finding("WARN", "GRID_ROUNDING", cause, fix))
        for name, mask in list(masks.items()):
            drawn = {int(plane): float(plane) for plane in np.flatnonzero(mask.any(axis=(1, 2)))}
            usable, notes = slice_gaps.settle(
                mask, drawn, gaps, spacing_mm=image.spacing_mm[1:], name=name, voxels=True
            )
            findings += notes
            if not usable:
                del masks[name]
    return masks, located(findings, path)


# ---- reading ----------------------------------------------------------------------------------------------


def _painted(
    path: Path, header: Any, image: Volume, known: dict[int, str], segments: dict[int, str], least: float
) -> tuple[dict[str, np.ndarray], float]:
    """(the masks of `segments`, how far their frames lie beside the slices in voxels). known: all that may
    occur; least: the stored value from which a voxel belongs to a segment."""
    size, (rows, columns) = (header.get("Rows"), header.get("Columns")), image.array.shape[1:]
    if size != (rows, columns):
        cause = f"frames of {size[0]} x {size[1]} on slices of {rows} x {columns}"
        raise refuse("SEG_GEOMETRY", cause, SEG.fix)
    checks.check_memory(len(segments) * image.array.size, 1)
    masks = {name: np.zeros(image.array.shape, dtype=bool) for name in segments.values()}
    frames, off = place_frames(header, image)
    require_known({number for number, _ in frames if number is not None}, known)
    nothing = {0, int(header.get("PixelPaddingValue") or 0)}
    with Decoder() as decoder:
        for (number, plane), stored in zip(frames, decoder.frames(path)):
            if number in segments:
                masks[segments[number]][plane] |= stored >= least
            elif number is None:  # a label map: the stored value is the segment number
                values = set(np.unique(stored).tolist())
                require_known(values - nothing, known)
                for value in values & set(segments):
                    masks[segments[value]][plane] |= stored == value
    return masks, off


def require_known(values: set[int], known: dict[int, str]) -> None:
    """Refuse values or segment numbers that the list of segments does not hold."""
    if unknown := sorted(values - set(known)):
        cause = f"found segment numbers {unknown[:12]}, expected {sorted(known)}"
        raise refuse("LABEL_VALUES", cause, SEG.fix)


def place_frames(header: Any, image: Volume) -> tuple[list[tuple[int | None, int]], float]:
    """(for each frame its segment number, or None for a label map, and the index d of its slice; the largest
    distance along an axis in voxels)."""
    to_index = np.linalg.inv(image.affine)
    shared = (header.get(dicom_frames.GROUPS[0]) or [pydicom.Dataset()])[0]
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
            raise refuse("SEG_GEOMETRY", f"frame {index} has no complete geometry", SEG.fix) from None
        # the frame's first pixel, the last one of its first column and of its first row, as (d, h, w)
        corners = np.array([first, first + steps[0], first + steps[1]]) @ to_index[:3, :3].T + to_index[:3, 3]
        plane = int(np.rint(corners[0, 0])) if np.isfinite(corners).all() else -1
        off = float(np.abs(corners - [[plane, 0, 0], [plane, rows - 1, 0], [plane, 0, columns - 1]]).max())
        # the scan's positions and the frames' may be rounded
        if not 0 <= plane < slices or not off <= 2 * tolerances.ROUNDED:
            inside = f"{off:.2g} of a voxel off the nearest slice"
            where = inside if 0 <= plane < slices else "outside the scan"
            raise refuse("SEG_GEOMETRY", f"frame {index} lies {where}", SEG.fix)
        farthest = max(farthest, off)
        result.append((number, plane))
    return result, farthest


def least_value(header: Any, threshold: float | None) -> tuple[float, Findings]:
    """(stored value from which a voxel belongs to a segment, what is to be told about it)."""
    if header.get("SegmentationType") != "FRACTIONAL":
        return 1, []
    kind, maximum = header.get("SegmentationFractionalType"), int(header.get("MaximumFractionalValue") or 0)
    kind = kind if kind in ("PROBABILITY", "OCCUPANCY") else "unknown"
    if threshold is None:
        fix = (
            "export it as a binary segmentation, or choose where a mask begins, for example --set "
            "data.fractional_threshold=0.5"
        )
        raise refuse("SEG_FRACTIONAL", f"it holds values of 0 to {maximum} (type {kind}), not a mask", fix)
    if maximum < 1:
        raise refuse("DICOM_CORRUPT", "it does not say its largest value", SEG.fix)
    cause = (
        f"fractional segmentation of type {kind}, largest value {maximum}: voxels from "
        f"{threshold:g} of it on count"
    )
    fix = "nothing to do if that threshold is meant"
    return threshold * maximum, [Finding("WARN", "SEG_FRACTIONAL", cause, fix)]


# ---- writing ----------------------------------------------------------------------------------------------


@dicom_files.private()
def write_segments(
    path: Path,
    label: Volume,
    names: dict[int, str],
    series_folder: Path,
    *,
    series_uid: str | None = None,
    algorithm: str | None = None,
) -> Findings:
    """Write a label map as a binary SEG of the one CT series in `series_folder` (or of the named one),
    atomically.

    label: integers (D, H, W) on the grid of the series (slices in either direction); ValueError otherwise.
    names: label value -> segment label; segments are numbered 1, 2, ... in the order of the values and carry
    the standard code of their anatomy where there is one. algorithm: what predicted them; None: a person drew
    them. The same arguments give the same bytes, others another series. Returns what is to be told.
    """
    import highdicom

    target = mask_objects.target_of(path, label, names, series_folder, series_uid)
    headers = sources = target.headers
    table = np.zeros(max(int(label.array.max()), *names) + 1, dtype=np.uint8)
    table[list(target.names)] = np.arange(1, len(names) + 1)
    masks = table[label.array[target.planes]]
    places: dict[str, Any] = {}
    if dicom_frames.frame_of(headers[0]) is not None:
        chosen, _ = dicom_files.choose(series_folder, series_uid)
        sources = [dicom_files.read_header(chosen.files[0], None)]
        masks, places = _on_frames(masks, headers, sources[0])
    content = highdicom.seg.Segmentation(
        source_images=[_without_the_rest(source, slice_distance(headers)) for source in sources],
        pixel_array=masks,
        segmentation_type="BINARY",
        segment_descriptions=[
            _describe(number, name, algorithm) for number, name in enumerate(target.names.values(), start=1)
        ],
        **places,
        series_instance_uid=generate_uid(),
        series_number=mask_objects.series_number(headers[0], 100),
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="ctseg",
        manufacturer_model_name="ctseg",
        software_versions="1",
        device_serial_number="1",
    )
    _make_reproducible(content, str(headers[0].SeriesInstanceUID))
    mask_objects.write(path, content, headers[0])
    return target.findings


def _without_the_rest(header: Any, distance: float) -> pydicom.Dataset:
    """What highdicom may see of a header of the series: nothing of patient and study, which it would refuse
    where it is missing or odd, as after anonymisation. distance: of the slices in mm, in place of a thickness
    that nobody wrote."""
    kept = dicom_files.new_item(**dict.fromkeys(dicom_files.PATIENT_AND_STUDY, ""))
    for keyword in (*_FROM_SOURCE.split(), *dicom_frames.GROUPS):
        if keyword in header:
            kept[keyword] = header[keyword]
    if not kept.get("SliceThickness"):
        kept.SliceThickness = format_number_as_ds(distance)
    return kept


def _on_frames(masks: np.ndarray, headers: list[Any], source: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """(masks in the order of a multi-frame file, empty where a frame is no slice of the scan; where its
    frames lie). source: the header of the file, which gets the UIDs that the scan has, or that were made up.
    """
    import highdicom

    first = headers[0]
    for keyword in (*dicom_series.OF_SERIES, "SOPClassUID", "SOPInstanceUID"):
        setattr(source, keyword, first.get(keyword))
    placed = np.zeros((int(source.NumberOfFrames), *masks.shape[1:]), dtype=masks.dtype)
    placed[[dicom_frames.frame_of(header) or 0 for header in headers]] = masks
    return placed, {
        "pixel_measures": highdicom.PixelMeasuresSequence(first.PixelSpacing, slice_distance(headers)),
        "plane_orientation": highdicom.PlaneOrientationSequence("PATIENT", first.ImageOrientationPatient),
        "plane_positions": [
            highdicom.PlanePositionSequence("PATIENT", header.ImagePositionPatient)
            for header in dicom_frames.split(source)
        ],
    }


def slice_distance(headers: list[Any]) -> float:
    """mm between neighbouring slices along their normal."""
    row, column = np.array(headers[0].ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    ends = [np.array(headers[end].ImagePositionPatient, dtype=np.float64) for end in (0, -1)]
    return abs(float((ends[1] - ends[0]) @ np.cross(row, column))) / max(1, len(headers) - 1)


def _describe(number: int, name: str, algorithm: str | None) -> Any:
    """What a segment is and who made it."""
    import highdicom
    from highdicom.sr.coding import CodedConcept

    kind, side = dicom_codes.concept(name, number)
    made_by = None
    if algorithm is not None:
        made_by = highdicom.AlgorithmIdentificationSequence(
            algorithm, CodedConcept("123110", "DCM", "Artificial Intelligence"), "1"
        )
    description = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=CodedConcept("123037004", "SCT", "Anatomical Structure"),
        segmented_property_type=kind,
        algorithm_type="MANUAL" if algorithm is None else "AUTOMATIC",
        algorithm_identification=made_by,
    )
    if side is not None:
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    return description


def _make_reproducible(content: Any, series: str) -> None:
    """Replace the time stamps and the random identifier that highdicom writes."""
    for moment in ("Content", "InstanceCreation", "Series"):
        for part, fixed in (("Date", "20000101"), ("Time", "000000")):
            if moment + part in content:
                setattr(content, moment + part, fixed)
    for item in content.get("ContributingEquipmentSequence") or []:
        item.ContributionDateTime = "20000101000000"
    organization = generate_uid(entropy_srcs=[series, "dimensions"])
    for item in (*content.DimensionOrganizationSequence, *content.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
