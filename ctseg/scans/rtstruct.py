"""DICOM RT structure sets (RTSTRUCT): contours read onto a CT's grid, and written for a CT series.

A voxel belongs to a structure where its centre lies inside an odd number of the structure's contours of that plane:
a contour inside another one is a hole (DICOM PS3.3 C.8.8.6), and the channel of a keyhole contour cancels itself.
On the grid that the contours were drawn on, and with this rule, the published masks of the IBSI are met voxel by voxel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from ctseg.artifacts import atomic_write
from ctseg.errors import Finding
from ctseg.scans import checks, dicom_files, dicom_frames, dicom_series
from ctseg.scans.checks import refuse
from ctseg.scans.volume import Volume

FLAT = 0.1  # slices that a contour may lean out of its plane
SAME_PLANE = 0.01  # slices between contours of one plane: positions are often written with a few digits
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_FIX = "export the structure set again from the tool that drew it, for this series"


@dicom_files.private()
def list_structures(path: str | Path) -> dict[int, str]:
    """ROI number -> ROI name of an RTSTRUCT file."""
    with dicom_files.guard(Path(path)):
        return _names(_header(Path(path)))


@dicom_files.private()
def list_drawn(path: str | Path) -> frozenset[str]:
    """Names of the structures that have a closed contour; the others are lines of a template that nobody drew."""
    with dicom_files.guard(Path(path)):
        header = _header(Path(path))
        contours = {int(item.ReferencedROINumber): item.get("ContourSequence") or [] for item in header.get("ROIContourSequence") or []}
        return frozenset(name for number, name in _names(header).items() if any(_is_closed(item) for item in contours.get(number, [])))


def referenced_series(path: str | Path) -> frozenset[str]:
    """UIDs of the series that an RTSTRUCT file says it was drawn on; empty when it names none."""
    with dicom_files.guard(Path(path)):
        return frozenset(str(item.SeriesInstanceUID) for item in _referenced(_header(Path(path))) if "SeriesInstanceUID" in item)


@dicom_files.private()
def read_structures(
    path: str | Path, image: Volume, image_folder: str | Path | None, *, names: Collection[str] | None = None, series_uid: str | None = None
) -> tuple[dict[str, np.ndarray], list[Finding]]:
    """({ROI name: bool (D, H, W) on the image's grid}, what was noticed).

    names: read only these (all when None); a name that two ROIs carry is refused. image_folder: where the CT series lies,
    to check that the contours were drawn on it; None skips that check. A contour between two slices counts for the
    nearer one, unless that has contours of its own plane.
    """
    with dicom_files.guard(Path(path)):
        return _read(Path(path), image, None if image_folder is None else Path(image_folder), names, series_uid)


def fill(contours: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """bool (H, W): pixel centres inside an odd number of closed polygons, each (N, 2) in (row, column) with centres at integers.

    Each edge toggles everything to the right of where it crosses a row of centres. Edges are open at their lower end, so a
    vertex on a row counts once; a centre on an edge belongs to the polygon on its right.
    """
    starts = np.concatenate(contours)
    ends = np.concatenate([np.roll(contour, -1, axis=0) for contour in contours])
    upward = starts[:, 0] <= ends[:, 0]
    top, bottom = np.where(upward[:, None], starts, ends), np.where(upward[:, None], ends, starts)
    first, last = (np.clip(np.ceil(rows), 0, shape[0]).astype(int) for rows in (top[:, 0], bottom[:, 0]))
    count = last - first
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = (bottom - top)[edge]
    column = top[edge, 1] + (row - top[edge, 0]) * slope[:, 1] / slope[:, 0]  # an edge along a row crosses none
    toggles = np.zeros((shape[0], shape[1] + 1), dtype=np.int64)
    np.add.at(toggles, (row, np.clip(np.ceil(column), 0, shape[1]).astype(int)), 1)
    return (np.cumsum(toggles[:, :-1], axis=1) % 2).astype(bool)


# ---- reading ----------------------------------------------------------------------------------------------


def _read(path: Path, image: Volume, image_folder: Path | None, names: Collection[str] | None, series_uid: str | None) -> tuple[dict[str, np.ndarray], list[Finding]]:
    header = _header(path)
    if image_folder is not None:
        frames = [item.get("FrameOfReferenceUID") for item in header.get("ReferencedFrameOfReferenceSequence") or []]
        frames += [item.get("ReferencedFrameOfReferenceUID") for item in header.StructureSetROISequence]
        if not dicom_files.drawn_on(image_folder, series_uid, frames=frames, series=[item.get("SeriesInstanceUID") for item in _referenced(header)]):
            raise refuse("RT_WRONG_SERIES", "it refers to another series and another frame of reference", "give the structure set that was drawn on this series", path)
    wanted = {number: name for number, name in _names(header).items() if names is None or name in names}
    if len(set(wanted.values())) < len(wanted):
        raise refuse("RT_AMBIGUOUS", "two structures carry the same name", "give each structure its own name", path)
    checks.check_memory(len(wanted) * image.array.size, 1, path)
    contours = {int(item.ReferencedROINumber): item.get("ContourSequence") or [] for item in header.get("ROIContourSequence") or []}
    to_index = np.linalg.inv(image.affine)
    masks, findings = {}, []
    for number, name in wanted.items():
        planes, dropped = _planes(contours.get(number, []), to_index, image.array.shape[0], path, name)
        if dropped:
            findings.append(Finding("WARN", "RT_OPEN_CONTOUR", f"{dropped} contours of '{name}' enclose nothing (points, open lines, fewer than 3 points)", "close them in the tool that drew them", file=path.name))
        if not planes:
            findings.append(Finding("WARN", "LABEL_MISSING", f"the structure '{name}' has no contours", "delete it, or draw it", file=path.name))
            continue
        masks[name] = np.zeros(image.array.shape, dtype=bool)
        for plane, polygons in planes.items():
            masks[name][plane] = fill(polygons, image.array.shape[1:])
    return masks, findings


def _header(path: Path) -> Any:
    checks.require_regular(path)
    header = dicom_files.read_header(path, None)
    if str(header.get("SOPClassUID", "")) != RTStructureSetStorage:
        raise refuse("NOT_RTSTRUCT", "it is no DICOM RT structure set", "give the RTSTRUCT file of this scan", path)
    if "StructureSetROISequence" not in header:
        raise refuse("DICOM_TRUNCATED", "the header ends before the structures", "copy or export the file again", path)
    return header


def _names(header: Any) -> dict[int, str]:
    return {int(item.ROINumber): str(item.get("ROIName", "")).strip() for item in header.StructureSetROISequence}


def _referenced(header: Any) -> Iterator[Any]:
    for frame in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            yield from study.get("RTReferencedSeriesSequence") or []


def _is_closed(item: Any) -> bool:
    """Whether a contour encloses an area: a closed one of at least three points."""
    count = len(item.get("ContourData") or [])
    return str(item.get("ContourGeometricType", "")) in _CLOSED and count >= 9 and count % 3 == 0


def _planes(items: Any, to_index: np.ndarray, slices: int, path: Path, name: str) -> tuple[dict[int, list[np.ndarray]], int]:
    """({slice: its polygons in (row, column)}, contours that enclose nothing)."""
    found: dict[int, dict[float, list[np.ndarray]]] = {}  # slice, place of the contours' plane
    dropped = 0
    for item in items:
        if not _is_closed(item):
            dropped += 1
            continue
        points = np.array([float(value) for value in item.ContourData])
        index = (np.column_stack([points.reshape(-1, 3), np.ones(len(points) // 3)]) @ to_index.T)[:, :3]
        place = float(index[:, 0].mean()) if np.isfinite(index).all() else np.inf
        if not -0.5 <= place <= slices - 0.5 or np.ptp(index[:, 0]) > FLAT:
            cause = "leans out of its slice" if np.isfinite(place) and np.ptp(index[:, 0]) > FLAT else "lies outside the scan"
            raise refuse("RT_OFF_GRID", f"a contour of '{name}' {cause}", _FIX, path)
        plane = min(max(round(place), 0), slices - 1)
        places = found.setdefault(plane, {})
        near = next((other for other in places if abs(other - place) <= SAME_PLANE), place)
        places.setdefault(near, []).append(index[:, 1:])
    # XOR is for contours of one plane: where several planes share a slice, the nearest one stands for it
    return {plane: places[min(places, key=lambda place: abs(place - plane))] for plane, places in found.items()}, dropped


# ---- writing ----------------------------------------------------------------------------------------------


@dicom_files.private()
def write_structures(
    path: str | Path, label: Volume, names: dict[int, str], series_folder: str | Path, *, series_uid: str | None = None,
    colours: dict[int, tuple[int, int, int]] | None = None,
) -> None:
    """Write a label map as an RTSTRUCT of the one CT series in `series_folder` (or of the named one), atomically.

    label: integers (D, H, W) on the grid of the series (slices in either direction); ValueError otherwise. names: label value
    -> ROI name; ROIs are numbered 1, 2, ... in the order of the values. colours: label value -> RGB, 0 to 255. Contours
    run half-way between voxel centres, so `read_structures` gives back the same voxels. The same arguments give the same bytes.
    """
    headers = dicom_series.series_headers(series_folder, series_uid)
    planes = dicom_series.label_planes(label, headers)
    first, series = headers[0], str(headers[0].SeriesInstanceUID)
    content = pydicom.Dataset()
    for keyword in dicom_files.PATIENT_AND_STUDY:
        setattr(content, keyword, first.get(keyword, ""))
    described = {
        "SOPClassUID": RTStructureSetStorage, "SOPInstanceUID": generate_uid(entropy_srcs=[series, "rtstruct"]), "Modality": "RTSTRUCT", "Manufacturer": "ctseg",
        "SeriesInstanceUID": generate_uid(entropy_srcs=[series, "rtstruct series"]), "SeriesNumber": int(first.get("SeriesNumber") or 1) + 200,
        "SeriesDescription": "ctseg segmentation", "InstanceNumber": 1, "FrameOfReferenceUID": first.FrameOfReferenceUID, "PositionReferenceIndicator": "",
        "StructureSetLabel": "ctseg", "StructureSetDate": "20000101", "StructureSetTime": "000000", "OperatorsName": "", "ApprovalStatus": "UNAPPROVED"}
    for keyword, value in described.items():
        setattr(content, keyword, value)
    content.ReferencedFrameOfReferenceSequence = [_reference(headers)]
    numbered = dict(enumerate(sorted(names), start=1))
    content.StructureSetROISequence = [_item(ROINumber=n, ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID, ROIName=names[value][:64], ROIGenerationAlgorithm="AUTOMATIC") for n, value in numbered.items()]
    content.RTROIObservationsSequence = [_item(ObservationNumber=n, ReferencedROINumber=n, RTROIInterpretedType="ORGAN", ROIInterpreter="") for n in numbered]
    content.ROIContourSequence = []
    for number, value in numbered.items():
        item = _item(ReferencedROINumber=number, ROIDisplayColor=list((colours or {}).get(value, (255, 0, 0))), ContourSequence=[])
        for header, plane in zip(headers, planes):
            image = _image(header)
            for outline in _outlines(label.array[plane] == value):
                points = np.column_stack([np.full(len(outline), plane), outline, np.ones(len(outline))]) @ label.affine.T
                data = [f"{coordinate:.10g}" for coordinate in points[:, :3].ravel()]
                item.ContourSequence.append(_item(ContourImageSequence=[image], ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=len(outline), ContourData=data))
        content.ROIContourSequence.append(item)
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = RTStructureSetStorage, content.SOPInstanceUID, ExplicitVRLittleEndian
    content.file_meta = meta
    atomic_write(path, lambda stream: pydicom.dcmwrite(stream, content, enforce_file_format=True))


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
    study = _item(ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1", ReferencedSOPInstanceUID=headers[0].StudyInstanceUID, RTReferencedSeriesSequence=[series])
    return _item(FrameOfReferenceUID=headers[0].FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Closed polygons (N, 2) in (row, column) around a mask (H, W) and around its holes, corners only."""
    if not mask.any():
        return []
    from contourpy import contour_generator

    outlines = []
    for outline in contour_generator(z=np.pad(mask, 1).astype(np.float64)).lines(0.5):
        points = np.asarray(outline)[:-1, ::-1] - 1  # closed: the last point repeats the first
        turns = np.abs(np.diff(np.concatenate([points[-1:], points, points[:1]]), axis=0, n=2)).max(axis=1) > 1e-9
        outlines.append(points[turns])
    return outlines
