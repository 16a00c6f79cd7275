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
from ctseg.scans.formats import checks, regular_files, slice_gaps
from ctseg.scans.formats.regular_files import located, refuse

# slices that a point may lie beside the plane of its contour: with one decimal, 0.12 of a slice of 0.5 mm
FLAT = 0.25
# length of the mean direction of planes on a circle of one slice: rounding by 0.2 of a slice leaves 0.9
SAME_OFFSET = 0.8
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


def fill(contours: list[np.ndarray], shape: tuple[int, int], corner: tuple[int, int] = (0, 0)) -> np.ndarray:
    """bool (H, W): pixel centres inside an odd number of closed polygons, each (N, 2) in (row, column) with
    centres at integers.

    corner: the (row, column) of the first pixel. Each edge toggles everything to the right of where it
    crosses a row of centres. Edges are open at their lower end, so a vertex on a row counts once; a centre on
    an edge belongs to the polygon on its right.
    """
    starts = np.concatenate(contours)
    ends = np.concatenate([np.roll(contour, -1, axis=0) for contour in contours])
    upward = starts[:, 0] <= ends[:, 0]
    top, bottom = np.where(upward[:, None], starts, ends), np.where(upward[:, None], ends, starts)
    first, last = (
        np.clip(np.ceil(rows), corner[0], corner[0] + shape[0]).astype(int)
        for rows in (top[:, 0], bottom[:, 0])
    )
    count = last - first
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = (bottom - top)[edge]
    column = (
        top[edge, 1] + (row - top[edge, 0]) * slope[:, 1] / slope[:, 0]
    )  # an edge along a row crosses none
    toggles = np.zeros((shape[0], shape[1] + 1), dtype=np.int64)
    np.add.at(toggles, (row - corner[0], np.clip(np.ceil(column) - corner[1], 0, shape[1]).astype(int)), 1)
    return (np.cumsum(toggles[:, :-1], axis=1) % 2).astype(bool)


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
    if scan is None:
        raise refuse(
            "RT_WRONG_SERIES",
            "it refers to another series and another frame of reference",
            "give the structure set that was drawn on this series",
        )
    others = listed - {scan, ""} if scan in {*listed, *own.values()} else set()
    foreign = frozenset(number for number, frame in own.items() if frame in others)
    if len(foreign) == len(own):
        raise refuse(
            "RT_WRONG_SERIES",
            "all of its structures lie in another frame of reference",
            "give the structure set that was drawn on this series",
        )
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
    if not count:
        return []
    return [
        Finding(
            "WARN",
            "RT_NAMELESS",
            f"{count} drawn structures have no name and are left out",
            "name them in the tool that drew them",
        )
    ]


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
    for plane, (place, outlines) in _planes(polygons, image.array.shape[0], dropped).items():
        mask[plane], copies, crossed = _fill_plane(outlines, image.array.shape[1:])
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


def _planes(
    polygons: list[tuple[float, np.ndarray]], slices: int, dropped: Counter[str]
) -> dict[int, tuple[float, list[np.ndarray]]]:
    """Slice -> (place of its plane, the polygons of that plane). Other planes of a slice are added to
    `dropped`.

    Contours lie in one plane where the step between them is less than half the step from plane to plane: the
    positions of one slice differ by rounding, those of a finer series by its slices. Planes that all lie
    beside the slices by the same move by that, so that rounding does not part those half-way between two
    slices.
    """
    places = np.array([place for place, _ in polygons])
    found: dict[int, tuple[float, list[np.ndarray]]] = {}
    if not polygons:
        return found
    cuts = np.flatnonzero(np.diff(places) >= _step(places) / 2) + 1
    groups = np.split(np.arange(len(places)), cuts)
    direction = np.mean([np.exp(2j * np.pi * places[members].mean()) for members in groups])
    offset = (
        float(np.angle(direction)) / (2 * np.pi) if abs(direction) > SAME_OFFSET else 0.0
    )  # of all planes from the slices
    offset += offset < ROUNDED - 0.5  # half-way ones go the same way in every structure of a file
    for members in groups:
        place = float(places[members].mean())
        plane = min(max(int(np.rint(place - offset)), 0), slices - 1)
        outlines = [polygons[index][1] for index in members]
        if plane in found:
            nearer, farther = sorted((found[plane], (place, outlines)), key=lambda one: abs(one[0] - plane))
            dropped["RT_FINER_PLANES"] += len(farther[1])
            found[plane] = nearer
        else:
            found[plane] = place, outlines
    return found


def _step(places: np.ndarray) -> float:
    """Slices between neighbouring planes of contours: from the last place of one slice to the first of the
    next one.

    places: sorted. Slices are cut apart at their middles and at their edges; where planes lie on a cut,
    rounding puts them on both of its sides, and the other cut counts. Within a single slice there is nothing
    to tell the step from: half a slice.
    """
    steps = [0.5]
    for offset in (0.5, 0.0):
        cell = np.floor(places + offset)
        steps += [float(np.median(step)) for step in [np.diff(places)[np.diff(cell) > 0]] if len(step)]
    return max(steps) if len(places) < 2 or places[-1] - places[0] < 1 else max(steps[1:])


def _fill_plane(polygons: list[np.ndarray], shape: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """(mask (H, W) of one plane, polygons that enclose just what another one encloses and are left out,
    voxels where two cross)."""
    mask, copies, found = np.zeros(shape, dtype=bool), 0, set()
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for polygon in polygons:
        low = np.clip(np.ceil(polygon.min(axis=0)), 0, shape).astype(int)
        high = np.clip(np.floor(polygon.max(axis=0)) + 1, low, shape).astype(int)
        part = fill([polygon], (high[0] - low[0], high[1] - low[1]), (low[0], low[1]))
        key = (*low, *high, part.tobytes())
        if key in found:
            copies += 1
        elif part.any():
            found.add(key)
            parts.append((part, low, high))
            mask[low[0] : high[0], low[1] : high[1]] ^= part
    return mask, copies, _crossing(parts)


def _crossing(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> int:
    """Voxels that two of the masks share, each with its first corner and its end; without pairs of which one
    lies inside the other."""
    lows, highs = (np.array([part[end] for part in parts]).reshape(-1, 2) for end in (1, 2))
    count = 0
    for number, (part, low, high) in enumerate(parts):
        for other in np.flatnonzero((lows[:number] < high).all(axis=1) & (highs[:number] > low).all(axis=1)):
            start, end = np.maximum(low, lows[other]), np.minimum(high, highs[other])
            views = [
                mask[start[0] - at[0] : end[0] - at[0], start[1] - at[1] : end[1] - at[1]]
                for mask, at, _ in (parts[number], parts[other])
            ]
            shared = int(np.count_nonzero(views[0] & views[1]))
            count += shared if shared < min(np.count_nonzero(part), np.count_nonzero(parts[other][0])) else 0
    return count


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
    content = pydicom.Dataset()
    content.SpecificCharacterSet = dicom_files.UNICODE
    for keyword in dicom_files.PATIENT_AND_STUDY:
        setattr(content, keyword, first.get(keyword, ""))
    described = {
        "SOPClassUID": RTStructureSetStorage,
        "Modality": "RTSTRUCT",
        "Manufacturer": "ctseg",
        "SeriesNumber": dicom_files.series_number(first, 200),
        "SeriesDescription": "ctseg segmentation",
        "InstanceNumber": 1,
        "FrameOfReferenceUID": first.FrameOfReferenceUID,
        "PositionReferenceIndicator": "",
        "StructureSetLabel": "ctseg",
        "StructureSetDate": "20000101",
        "StructureSetTime": "000000",
        "OperatorsName": "",
        "ApprovalStatus": "UNAPPROVED",
    }
    for keyword, value in described.items():
        setattr(content, keyword, value)
    content.ReferencedFrameOfReferenceSequence = [_reference(headers)]
    numbered = dict(enumerate(sorted(names), start=1))
    content.StructureSetROISequence = [
        _item(
            ROINumber=n,
            ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID,
            ROIName=names[value],
            ROIGenerationAlgorithm="AUTOMATIC",
            **({"ROIGenerationDescription": algorithm} if algorithm else {}),
        )
        for n, value in numbered.items()
    ]
    content.RTROIObservationsSequence = [
        _item(ObservationNumber=n, ReferencedROINumber=n, RTROIInterpretedType="ORGAN", ROIInterpreter="")
        for n in numbered
    ]
    content.ROIContourSequence = []
    for number, value in numbered.items():
        item = _item(
            ReferencedROINumber=number,
            ROIDisplayColor=list((colours or {}).get(value, (255, 0, 0))),
            ContourSequence=[],
        )
        for header, plane in zip(headers, planes):
            image = _image(header)
            for outline in _outlines(label.array[plane] == value):
                points = (
                    np.column_stack([np.full(len(outline), plane), outline, np.ones(len(outline))])
                    @ label.affine.T
                )
                data = [f"{coordinate:.10g}" for coordinate in points[:, :3].ravel()]
                item.ContourSequence.append(
                    _item(
                        ContourImageSequence=[image],
                        ContourGeometricType="CLOSED_PLANAR",
                        NumberOfContourPoints=len(outline),
                        ContourData=data,
                    )
                )
        content.ROIContourSequence.append(item)
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = RTStructureSetStorage, ExplicitVRLittleEndian
    content.file_meta = meta
    dicom_files.name_by_content(content)
    atomic_write(path, lambda stream: pydicom.dcmwrite(stream, content, enforce_file_format=True))
    return findings


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


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Closed polygons (N, 2) in (row, column) around a mask (H, W) and around its holes, corners only."""
    if not mask.any():
        return []
    from contourpy import contour_generator

    outlines = []
    for outline in contour_generator(z=np.pad(mask, 1).astype(np.float64)).lines(0.5):
        points = np.asarray(outline)[:-1, ::-1] - 1  # closed: the last point repeats the first
        turns = (
            np.abs(np.diff(np.concatenate([points[-1:], points, points[:1]]), axis=0, n=2)).max(axis=1) > 1e-9
        )
        outlines.append(points[turns])
    return outlines
