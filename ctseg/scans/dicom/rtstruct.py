"""DICOM RT structure sets (RTSTRUCT): contours read onto a CT's grid, and written for a CT series.

A voxel belongs to a structure where its centre lies inside an odd number of the structure's contours of that
plane: a contour inside another one is a hole (DICOM PS3.3 C.8.8.6), and the channel of a keyhole contour
cancels itself. On the grid that the contours were drawn on, and with this rule, the published masks of the
IBSI are met voxel by voxel. What is not used of a file is counted in a finding, with its reason
(docs/decisions/015-contours.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from ctseg.artifacts import atomic_write
from ctseg.errors import Finding
from ctseg.geometry.tolerances import ROUNDED
from ctseg.geometry.volume import Volume
from ctseg.scans.dicom import dicom_files, dicom_frames, dicom_series
from ctseg.scans.dicom.contours import FLAT, fill_plane, outlines_of, part_into_planes
from ctseg.scans.formats import checks, regular_files, slice_gaps
from ctseg.scans.formats.regular_files import located, refuse

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
_FIX = "export the structure set again from the tool that drew it, for this series"
_OTHER_SCAN = "give the structure set of this scan, or choose other structures with --structures"
_DROPPED = {  # why contours of a structure are left out: code -> (what they are, remedy)
    "RT_OPEN_CONTOUR": (
        "enclose nothing (points, open lines, fewer than 3 points)",
        "close them in the tool that drew them",
    ),
    "RT_CONTOUR_DAMAGED": ("hold coordinates that are no numbers, or not three for each point", _FIX),
    "RT_OFF_GRID": (
        "lie beside what the slices show",
        "nothing to do if the slices show only a part of what was drawn on",
    ),
    "RT_CONTOUR_COPY": (
        "are copies of another one of the same slice",
        "delete the copies in the tool that drew them",
    ),
    "RT_FINER_PLANES": (
        "lie between the slices, where a nearer plane stands for the slice",
        "nothing to do if they were drawn on a finer series",
    ),
}


@dicom_files.private()
def list_structures(path: str | Path) -> dict[int, str]:
    """ROI number -> ROI name of an RTSTRUCT file."""
    with dicom_files.guard(Path(path)):
        return _names(_header(Path(path)))


@dicom_files.private()
def list_drawn(path: str | Path) -> frozenset[str]:
    """Names of the structures that have a closed contour; the others are lines of a template that nobody
    drew."""
    with dicom_files.guard(Path(path)):
        header = _header(Path(path))
        contours = _contours(header)
        return frozenset(
            name
            for number, name in _names(header).items()
            if any(_why_not(item) is None for item in contours.get(number, []))
        )


def referenced_series(path: str | Path) -> frozenset[str]:
    """UIDs of the series that an RTSTRUCT file says it was drawn on; empty when it names none."""
    with dicom_files.guard(Path(path)):
        return frozenset(
            str(item.SeriesInstanceUID)
            for item in _referenced(_header(Path(path)))
            if "SeriesInstanceUID" in item
        )


@dicom_files.private()
def read_structures(
    path: str | Path,
    image: Volume,
    image_folder: str | Path | None,
    *,
    names: Collection[str] | None = None,
    series_uid: str | None = None,
    gaps: str = slice_gaps.KEEP,
) -> tuple[dict[str, np.ndarray], list[Finding]]:
    """({ROI name: bool (D, H, W) on the image's grid}, what was noticed).

    A structure that nobody drew, or whose contours hold no voxel centre, is not among them. names: read only
    these (all when None); a name that two ROIs carry is refused. image_folder: where the CT series lies, to
    check that the contours were drawn on it; None skips that check. gaps: what becomes of a structure on
    every other slice, see `slice_gaps`. A plane of contours counts for the nearest slice, unless another
    plane lies nearer to that.
    """
    path, folder = Path(path), None if image_folder is None else Path(image_folder)
    with dicom_files.guard(path):
        masks, findings = _read(_header(path), image, folder, names, series_uid, gaps)
    return masks, located(findings, path)


# ---- reading ----------------------------------------------------------------------------------------------


def _read(
    header: Any,
    image: Volume,
    image_folder: Path | None,
    names: Collection[str] | None,
    series_uid: str | None,
    gaps: str,
) -> tuple[dict[str, np.ndarray], list[Finding]]:
    foreign: frozenset[int] = frozenset()
    findings: list[Finding] = []
    if image_folder is not None:
        foreign, findings = _foreign(header, image_folder, series_uid)
    wanted = {number: name for number, name in _names(header).items() if names is None or name in names}
    contours = _contours(header)
    drawn = [name for number, name in wanted.items() if contours.get(number)]
    if len(set(drawn)) < len(drawn):
        raise refuse("RT_AMBIGUOUS", "two structures carry the same name", "give each structure its own name")
    checks.check_memory(len(wanted) * image.array.size, 1)
    findings += _nameless(header, contours)
    masks = {}
    for number, name in wanted.items():
        if number in foreign:
            findings.append(
                Finding(
                    "WARN",
                    "RT_WRONG_SERIES",
                    f"the structure '{name}' was drawn in another frame of reference: it is left out",
                    "draw it on this scan",
                )
            )
        elif contours.get(number):
            mask, notes = _structure(contours[number], image, name, gaps)
            findings += notes
            if mask is not None:
                masks[name] = mask
        elif name not in drawn:
            findings.append(
                Finding(
                    "WARN",
                    "LABEL_MISSING",
                    f"the structure '{name}' has no contours",
                    "delete it, or draw it",
                )
            )
    return masks, findings


def _foreign(header: Any, image_folder: Path, series_uid: str | None) -> tuple[frozenset[int], list[Finding]]:
    """(numbers of the structures that lie in another frame of reference, what was noticed). Refuses a file
    that has nothing of this scan."""
    own = {
        int(item.ROINumber): str(item.get("ReferencedFrameOfReferenceUID", ""))
        for item in header.StructureSetROISequence
    }
    listed = {
        str(item.get("FrameOfReferenceUID", ""))
        for item in header.get("ReferencedFrameOfReferenceSequence") or []
    }
    series = [item.get("SeriesInstanceUID") for item in _referenced(header)]
    scan, findings = dicom_files.drawn_on(
        image_folder, series_uid, frames=[*listed, *own.values()], series=series
    )
    fix = "give the structure set that was drawn on this series"
    if scan is None:
        raise refuse("RT_WRONG_SERIES", "it refers to another series and another frame of reference", fix)
    others = listed - {scan, ""} if scan in {*listed, *own.values()} else set()
    foreign = frozenset(number for number, frame in own.items() if frame in others)
    if len(foreign) == len(own):
        raise refuse("RT_WRONG_SERIES", "all of its structures lie in another frame of reference", fix)
    return foreign, findings


def _header(path: Path) -> Any:
    regular_files.require_regular(path)
    header = dicom_files.read_header(path, None)
    if str(header.get("SOPClassUID", "")) != RTStructureSetStorage:
        raise refuse("NOT_RTSTRUCT", "it is no DICOM RT structure set", "give the RTSTRUCT file of this scan")
    if "StructureSetROISequence" not in header:
        raise refuse(
            "DICOM_TRUNCATED", "the header ends before the structures", "copy or export the file again"
        )
    numbers = [int(item.ROINumber) for item in header.StructureSetROISequence]
    if len(set(numbers)) < len(numbers):
        raise refuse("RT_AMBIGUOUS", "two structures carry the same number", _FIX)
    return header


def _names(header: Any) -> dict[int, str]:
    """Number -> name of the structures that have one."""
    names = {
        int(item.ROINumber): dicom_files.text(item, "ROIName") for item in header.StructureSetROISequence
    }
    return {number: name for number, name in names.items() if name}


def _contours(header: Any) -> dict[int, list[Any]]:
    """Structure number -> its contours, from all places where the file has some."""
    contours: dict[int, list[Any]] = {}
    for item in header.get("ROIContourSequence") or []:
        contours.setdefault(int(item.ReferencedROINumber), []).extend(item.get("ContourSequence") or [])
    return contours


def _nameless(header: Any, contours: dict[int, list[Any]]) -> list[Finding]:
    names = _names(header)
    count = sum(bool(items) and number not in names for number, items in contours.items())
    cause = f"{count} drawn structures have no name and are left out"
    return [Finding("WARN", "RT_NAMELESS", cause, "name them in the tool that drew them")] if count else []


def _referenced(header: Any) -> Iterator[Any]:
    for frame in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            yield from study.get("RTReferencedSeriesSequence") or []


def _coordinates(item: Any) -> list[Any]:
    """The numbers of a contour, as they stand there. More than 64 kB of them are stored as bytes of no known
    type (VR UN)."""
    value = item.get("ContourData")
    return (
        value.decode("latin-1").rstrip("\0 ").split("\\")
        if isinstance(value, bytes)
        else dicom_files.many(value)
    )


def _why_not(item: Any) -> str | None:
    """The reason (a key of _DROPPED) why a contour encloses no area that is known; None for one that does."""
    count = len(_coordinates(item))
    if str(item.get("ContourGeometricType", "")).upper() not in _CLOSED or count < 9:
        return "RT_OPEN_CONTOUR"
    return "RT_CONTOUR_DAMAGED" if count % 3 else None


def _structure(
    items: list[Any], image: Volume, name: str, gaps: str
) -> tuple[np.ndarray | None, list[Finding]]:
    """(mask (D, H, W), what is to be told); no mask where a structure cannot be evaluated on this grid."""
    polygons, dropped = _polygons(items, image, name)
    if not polygons and dropped["RT_OFF_GRID"]:
        raise refuse("RT_OFF_GRID", f"'{name}' lies outside the scan, beside its slices", _OTHER_SCAN)
    mask, places, crossing = np.zeros(image.array.shape, dtype=bool), {}, 0
    for plane, (place, outlines) in part_into_planes(polygons, image.array.shape[0], dropped).items():
        mask[plane], copies, crossed = fill_plane(outlines, image.array.shape[1:])
        places[plane] = place
        dropped["RT_CONTOUR_COPY"] += copies
        crossing += crossed
    findings = [
        Finding(
            "WARN", code, f"{count} contours of '{name}' {_DROPPED[code][0]}: left out", _DROPPED[code][1]
        )
        for code, count in dropped.items()
        if count
    ]
    if crossing:
        findings.append(
            Finding(
                "WARN",
                "RT_CONTOURS_CROSS",
                f"contours of '{name}' cross each other: {crossing} voxels inside two of them count "
                "as outside",
                "join them in the tool that drew them",
            )
        )
    if not mask.any():
        findings.append(
            Finding(
                "WARN",
                "RT_NO_VOXEL",
                f"the contours of '{name}' hold no voxel centre: it counts as not annotated",
                "draw it larger, or delete it",
            )
        )
        return None, findings
    usable, notes = slice_gaps.settle(mask, places, gaps, spacing_mm=image.spacing_mm[1:], name=name)
    return mask if usable else None, findings + notes


def _polygons(
    items: list[Any], image: Volume, name: str
) -> tuple[list[tuple[float, np.ndarray]], Counter[str]]:
    """([(place in slices, polygon (N, 2) in (row, column))] sorted by place, number of contours for each
    reason to leave them out)."""
    to_index, shape = np.linalg.inv(image.affine), np.array(image.array.shape)
    found, dropped, beyond = [], Counter[str](), 0
    for item in items:
        why = _why_not(item)
        points = np.array([float(value) for value in _coordinates(item)]) if why is None else np.zeros(0)
        if why is not None or not np.isfinite(points).all():
            dropped[why or "RT_CONTOUR_DAMAGED"] += 1
            continue
        index = (np.column_stack([points.reshape(-1, 3), np.ones(len(points) // 3)]) @ to_index.T)[:, :3]
        place = float(index[:, 0].mean())
        if np.abs(index[:, 0] - place).max() > FLAT:
            raise refuse("RT_OFF_GRID", f"a contour of '{name}' leans out of its slice", _FIX)
        if not -0.5 - ROUNDED <= place <= shape[0] - 0.5 + ROUNDED:
            beyond += 1
        elif (index[:, 1:].max(axis=0) < -0.5).any() or (index[:, 1:].min(axis=0) > shape[1:] - 0.5).any():
            dropped["RT_OFF_GRID"] += 1
        else:
            found.append((place, index[:, 1:]))
    if beyond:
        raise refuse(
            "RT_OFF_GRID",
            f"{beyond} contours of '{name}' lie outside the scan, beyond its first or last slice",
            _OTHER_SCAN,
        )
    return sorted(found, key=lambda one: one[0]), dropped


# ---- writing ----------------------------------------------------------------------------------------------


@dicom_files.private()
def write_structures(
    path: str | Path,
    label: Volume,
    names: dict[int, str],
    series_folder: str | Path,
    *,
    series_uid: str | None = None,
    colours: dict[int, tuple[int, int, int]] | None = None,
    algorithm: str = "",
) -> list[Finding]:
    """Write a label map as an RTSTRUCT of the one CT series in `series_folder` (or of the named one),
    atomically.

    label: integers (D, H, W) on the grid of the series (slices in either direction); ValueError otherwise.
    names: label value -> ROI name; ROIs are numbered 1, 2, ... in the order of the values. colours: label
    value -> RGB, 0 to 255. algorithm: what predicted them. Contours run half-way between voxel centres, so
    `read_structures` gives back the same voxels. The same arguments give the same bytes, others another
    series. Returns what is to be told.
    """
    headers = dicom_series.series_headers(series_folder, series_uid)
    findings = dicom_series.fill_uids(headers, Path(path))
    planes = dicom_series.label_planes(label, headers)
    first, names = headers[0], dicom_files.short_names(names)
    content = _item(
        SpecificCharacterSet=dicom_files.UNICODE,
        **{keyword: first.get(keyword, "") for keyword in dicom_files.PATIENT_AND_STUDY},
        SOPClassUID=RTStructureSetStorage,
        Modality="RTSTRUCT",
        Manufacturer="ctseg",
        SeriesNumber=dicom_files.series_number(first, 200),
        SeriesDescription="ctseg segmentation",
        InstanceNumber=1,
        FrameOfReferenceUID=first.FrameOfReferenceUID,
        PositionReferenceIndicator="",
        StructureSetLabel="ctseg",
        StructureSetDate="20000101",
        StructureSetTime="000000",
        OperatorsName="",
        ApprovalStatus="UNAPPROVED",
        ReferencedFrameOfReferenceSequence=[_reference(headers)],
    )
    numbered = dict(enumerate(sorted(names), start=1))
    content.StructureSetROISequence = [
        _region(n, names[value], first.FrameOfReferenceUID, algorithm) for n, value in numbered.items()
    ]
    content.RTROIObservationsSequence = [
        _item(ObservationNumber=n, ReferencedROINumber=n, RTROIInterpretedType="ORGAN", ROIInterpreter="")
        for n in numbered
    ]
    content.ROIContourSequence = [
        _item(
            ReferencedROINumber=number,
            ROIDisplayColor=list((colours or {}).get(value, (255, 0, 0))),
            ContourSequence=_drawn(label, value, headers, planes),
        )
        for number, value in numbered.items()
    ]
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = RTStructureSetStorage, ExplicitVRLittleEndian
    content.file_meta = meta
    dicom_files.name_by_content(content)
    atomic_write(path, lambda stream: pydicom.dcmwrite(stream, content, enforce_file_format=True))
    return findings


def _region(number: int, name: str, frame_of_reference: str, algorithm: str) -> pydicom.Dataset:
    """The entry of a structure in the list of all; algorithm: what predicted it, may be empty."""
    region = _item(
        ROINumber=number,
        ReferencedFrameOfReferenceUID=frame_of_reference,
        ROIName=name,
        ROIGenerationAlgorithm="AUTOMATIC",
    )
    if algorithm:
        region.ROIGenerationDescription = algorithm
    return region


def _drawn(label: Volume, value: int, headers: list[Any], planes: list[int]) -> list[pydicom.Dataset]:
    """The contours around a value of the label. planes: the index d in the label of each header's slice."""
    contours = []
    for header, plane in zip(headers, planes):
        image = _image(header)
        for outline in outlines_of(label.array[plane] == value):
            index = np.column_stack([np.full(len(outline), plane), outline, np.ones(len(outline))])
            points = (index @ label.affine.T)[:, :3]
            contours.append(
                _item(
                    ContourImageSequence=[image],
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(outline),
                    ContourData=[f"{coordinate:.10g}" for coordinate in points.ravel()],
                )
            )
    return contours


def _item(**elements: Any) -> pydicom.Dataset:
    item = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def _image(header: Any) -> pydicom.Dataset:
    """The slice that a contour lies on, or the frame of a multi-frame file."""
    item = _item(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)
    if (frame := dicom_frames.frame_of(header)) is not None:
        item.ReferencedFrameNumber = frame + 1
    return item


def _reference(headers: list[Any]) -> pydicom.Dataset:
    """The frame of reference, study, series and slices that the contours lie on."""
    images = [_image(header) for header in headers]
    series = _item(SeriesInstanceUID=headers[0].SeriesInstanceUID, ContourImageSequence=images)
    study = _item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=headers[0].StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=headers[0].FrameOfReferenceUID, RTReferencedStudySequence=[study])
