"""DICOM segmentation objects (SEG): read onto a CT's grid, and written for a CT series.

Frames are placed by their position in the patient, never by their order, and a missing frame is empty:
writers leave empty frames out, so frames and slices differ in number. Segments may overlap.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import SegmentationStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from ctseg.artifacts import atomic_write
from ctseg.errors import Finding
from ctseg.geometry import tolerances
from ctseg.geometry.volume import Volume
from ctseg.scans.dicom import dicom_codes, dicom_files, dicom_frames, dicom_series
from ctseg.scans.dicom.segment_frames import EXPORT, contents, least_value, place_frames
from ctseg.scans.formats import checks, regular_files, slice_gaps
from ctseg.scans.formats.regular_files import located, refuse

LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
_FROM_SOURCE = (  # all that highdicom sees of the series
    "StudyInstanceUID",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    *dicom_frames.GROUPS,
)


@dicom_files.private()
def list_segments(path: str | Path) -> dict[int, str]:
    """Segment number -> segment label of a SEG file, from its header."""
    with dicom_files.guard(Path(path)):
        return {number: name for number, name in _segments(_header(Path(path))).items() if name}


def referenced_series(path: str | Path) -> frozenset[str]:
    """UIDs of the series that a SEG file says it was drawn on; empty when it names none."""
    items = _header(Path(path)).get("ReferencedSeriesSequence") or []
    return frozenset(str(item.SeriesInstanceUID) for item in items if "SeriesInstanceUID" in item)


@dicom_files.private()
def read_segments(
    path: str | Path,
    image: Volume,
    image_folder: str | Path | None,
    *,
    names: Collection[str] | None = None,
    series_uid: str | None = None,
    fractional_threshold: float | None = None,
    gaps: str = slice_gaps.KEEP,
) -> tuple[dict[str, np.ndarray], list[Finding]]:
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
    with dicom_files.guard(Path(path)):
        masks, findings = _read(
            Path(path),
            image,
            None if image_folder is None else Path(image_folder),
            names,
            series_uid,
            fractional_threshold,
        )
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


def _read(
    path: Path,
    image: Volume,
    image_folder: Path | None,
    names: Collection[str] | None,
    series_uid: str | None,
    threshold: float | None,
) -> tuple[dict[str, np.ndarray], list[Finding]]:
    header = _header(path)
    announced = int(header.get("NumberOfFrames") or 1)
    listed = len(header.get("PerFrameFunctionalGroupsSequence") or [])
    if listed and listed != announced:
        cause = f"{announced} frames with {listed} descriptions"
        raise refuse("DICOM_CORRUPT", cause, "export the segmentation again")
    least, findings = least_value(header, threshold)
    if image_folder is not None:
        findings += _check_series(header, image_folder, series_uid)
    known = _segments(header)
    segments = {number: name for number, name in known.items() if name and (names is None or name in names)}
    if unnamed := [number for number, name in known.items() if not name]:
        findings.append(
            Finding(
                "WARN",
                "SEG_NAMELESS",
                f"{len(unnamed)} segments have no label and are left out",
                "name them in the tool that drew them",
            )
        )
    if len(set(segments.values())) < len(segments):
        raise refuse("SEG_AMBIGUOUS", "two segments carry the same label", "give each segment its own label")
    _check_size(header, image)
    checks.check_memory(len(segments) * image.array.size, 1)
    masks = {name: np.zeros(image.array.shape, dtype=bool) for name in segments.values()}
    frames, off = place_frames(header, image)
    if off > tolerances.EQUAL:
        findings.append(
            Finding(
                "WARN",
                "GRID_ROUNDING",
                f"its frames lie up to {off:.2g} of a voxel beside the scan's slices and count as on them",
                "nothing to do if positions were rounded",
            )
        )
    _require_known({number for number, _ in frames if number is not None}, known)
    nothing = {0, int(header.get("PixelPaddingValue") or 0)}
    for number, plane, content in contents(path, frames, set(segments)):
        if number is not None:
            masks[segments[number]][plane] |= content >= least
            continue
        values = set(np.unique(content).tolist())  # a label map: the stored value is the segment number
        _require_known(values - nothing, known)
        for value in values & set(segments):
            masks[segments[value]][plane] |= content == value
    return masks, findings


def _check_size(header: Any, image: Volume) -> None:
    """Refuse frames of another size than the image's slices."""
    rows, columns = image.array.shape[1:]
    if (int(header.get("Rows", 0)), int(header.get("Columns", 0))) != (rows, columns):
        cause = f"frames of {header.get('Rows')} x {header.get('Columns')} on slices of {rows} x {columns}"
        raise refuse("SEG_GEOMETRY", cause, EXPORT)


def _check_series(header: Any, image_folder: Path, series_uid: str | None) -> list[Finding]:
    """Refuse a segmentation of another series than the one in the folder."""
    named = [item.get("SeriesInstanceUID") for item in header.get("ReferencedSeriesSequence") or []]
    frames = [header.get("FrameOfReferenceUID")]
    scan, findings = dicom_files.drawn_on(image_folder, series_uid, frames=frames, series=named)
    if scan is None:
        cause = "it refers to another series and another frame of reference"
        raise refuse("SEG_WRONG_SERIES", cause, "give the segmentation that was drawn on this series")
    return findings


def _require_known(values: set[int], known: dict[int, str]) -> None:
    """Refuse values or segment numbers that the list of segments does not hold."""
    if unknown := sorted(values - set(known)):
        raise refuse(
            "LABEL_VALUES", f"found segment numbers {unknown[:12]}, expected {sorted(known)}", EXPORT
        )


def _header(path: Path) -> Any:
    regular_files.require_regular(path)
    header = dicom_files.read_header(path, None)
    if str(header.get("SOPClassUID", "")) not in (SegmentationStorage, LABELMAP_STORAGE):
        raise refuse("NOT_SEG", "it is no DICOM segmentation", "give the SEG file of this scan")
    if "SegmentSequence" not in header or "PerFrameFunctionalGroupsSequence" not in header:
        raise refuse(
            "DICOM_TRUNCATED", "the header ends before the segments", "copy or export the file again"
        )
    numbers = [int(item.SegmentNumber) for item in header.SegmentSequence]
    if len(set(numbers)) < len(numbers):
        raise refuse("SEG_AMBIGUOUS", "two segments carry the same number", EXPORT)
    return header


def _segments(header: Any) -> dict[int, str]:
    numbers = {
        int(item.SegmentNumber): dicom_files.text(item, "SegmentLabel") for item in header.SegmentSequence
    }
    # 0: background of a label map
    return {number: name for number, name in sorted(numbers.items()) if number > 0}


# ---- writing ----------------------------------------------------------------------------------------------


@dicom_files.private()
def write_segments(
    path: str | Path,
    label: Volume,
    names: dict[int, str],
    series_folder: str | Path,
    *,
    series_uid: str | None = None,
    algorithm: str | None = None,
) -> list[Finding]:
    """Write a label map as a binary SEG of the one CT series in `series_folder` (or of the named one),
    atomically.

    label: integers (D, H, W) on the grid of the series (slices in either direction); ValueError otherwise.
    names: label value -> segment label; segments are numbered 1, 2, ... in the order of the values and carry
    the standard code of their anatomy where there is one. algorithm: what predicted them; None: a person drew
    them. The same arguments give the same bytes, others another series. Returns what is to be told.
    """
    import highdicom

    headers = dicom_series.series_headers(series_folder, series_uid)
    findings, names = dicom_series.fill_uids(headers, Path(path)), dicom_files.short_names(names)
    planes = dicom_series.label_planes(label, headers)
    table = np.zeros(max(int(label.array.max()), *names) + 1, dtype=np.uint8)
    for number, value in enumerate(sorted(names), start=1):
        table[value] = number
    descriptions = [
        _describe(number, names[value], algorithm) for number, value in enumerate(sorted(names), start=1)
    ]
    masks, sources = table[label.array[planes]], headers
    places: dict[str, Any] = {}
    if dicom_frames.frame_of(headers[0]) is not None:
        masks, sources, places = _on_frames(
            masks, headers, dicom_series.source_file(series_folder, series_uid)
        )
    content = highdicom.seg.Segmentation(
        source_images=[_without_the_rest(source, _slice_distance(headers)) for source in sources],
        pixel_array=masks,
        segmentation_type="BINARY",
        segment_descriptions=descriptions,
        **places,
        series_instance_uid=generate_uid(),
        series_number=dicom_files.series_number(headers[0], 100),
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="ctseg",
        manufacturer_model_name="ctseg",
        software_versions="1",
        device_serial_number="1",
    )
    _make_reproducible(content, str(headers[0].SeriesInstanceUID))
    content.SpecificCharacterSet = dicom_files.UNICODE
    for keyword in dicom_files.PATIENT_AND_STUDY:
        setattr(content, keyword, headers[0].get(keyword, ""))
    dicom_files.name_by_content(content)
    atomic_write(path, lambda stream: content.save_as(stream))
    return findings


def _without_the_rest(header: Any, distance: float) -> pydicom.Dataset:
    """What highdicom may see of a header of the series: nothing of patient and study, which it would refuse
    where it is missing or odd, as after anonymisation. distance: of the slices in mm, in place of a thickness
    that nobody wrote."""
    kept = pydicom.Dataset()
    for keyword in dicom_files.PATIENT_AND_STUDY:
        setattr(kept, keyword, "")
    for keyword in _FROM_SOURCE:
        if keyword in header:
            kept[keyword] = header[keyword]
    if not kept.get("SliceThickness"):
        kept.SliceThickness = format_number_as_ds(distance)
    return kept


def _on_frames(
    masks: np.ndarray, headers: list[Any], source: Any
) -> tuple[np.ndarray, list[Any], dict[str, Any]]:
    """(masks in the order of a multi-frame file, empty where a frame is no slice of the scan; the file; where
    its frames lie)."""
    import highdicom

    first = headers[0]
    for keyword in (
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "SOPClassUID",
        "SOPInstanceUID",
    ):
        setattr(source, keyword, first.get(keyword))  # as the scan has them, or as they were made up
    placed = np.zeros((int(source.NumberOfFrames), *masks.shape[1:]), dtype=masks.dtype)
    for header, mask in zip(headers, masks):
        placed[dicom_frames.frame_of(header)] = mask
    positions = {
        dicom_frames.frame_of(header): header.ImagePositionPatient for header in dicom_frames.split(source)
    }
    measures = highdicom.PixelMeasuresSequence(
        pixel_spacing=first.PixelSpacing, slice_thickness=_slice_distance(headers)
    )
    return (
        placed,
        [source],
        {
            "pixel_measures": measures,
            "plane_orientation": highdicom.PlaneOrientationSequence("PATIENT", first.ImageOrientationPatient),
            "plane_positions": [
                highdicom.PlanePositionSequence("PATIENT", positions[index]) for index in range(len(placed))
            ],
        },
    )


def _slice_distance(headers: list[Any]) -> float:
    """mm between neighbouring slices along their normal."""
    directions = np.array([float(value) for value in headers[0].ImageOrientationPatient]).reshape(2, 3)
    first, last = (
        np.array([float(value) for value in header.ImagePositionPatient])
        for header in (headers[0], headers[-1])
    )
    return abs(float((last - first) @ np.cross(*directions))) / max(1, len(headers) - 1)


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
    for keyword in ("ContentDate", "InstanceCreationDate", "SeriesDate"):
        if keyword in content:
            setattr(content, keyword, "20000101")
    for keyword in ("ContentTime", "InstanceCreationTime", "SeriesTime"):
        if keyword in content:
            setattr(content, keyword, "000000")
    for item in content.get("ContributingEquipmentSequence") or []:
        item.ContributionDateTime = "20000101000000"
    organization = generate_uid(entropy_srcs=[series, "dimensions"])
    for sequence in (content.DimensionOrganizationSequence, content.DimensionIndexSequence):
        for item in sequence:
            item.DimensionOrganizationUID = organization
