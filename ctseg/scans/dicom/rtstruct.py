"""DICOM RT structure sets (RTSTRUCT): contours read onto a CT's grid, and written for a CT series.

A voxel belongs to a structure where its centre lies inside an odd number of the structure's contours of that
plane: a contour inside another one is a hole (DICOM PS3.3 C.8.8.6), and the channel of a keyhole contour
cancels itself. On the grid that the contours were drawn on, and with this rule, the published masks of the
IBSI are met voxel by voxel. What is not used of a file is counted in a finding, with its reason
(docs/decisions/015-contours.md).
"""

from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import RTStructureSetStorage

from ctseg.errors import Finding, Findings
from ctseg.geometry.tolerances import ROUNDED
from ctseg.geometry.volume import Volume
from ctseg.scans.dicom import dicom_files, dicom_frames, mask_objects
from ctseg.scans.dicom.contours import FLAT, fill_plane, outlines_of, part_into_planes
from ctseg.scans.dicom.dicom_files import new_item
from ctseg.scans.dicom.mask_objects import RTSTRUCT
from ctseg.scans.formats import checks, slice_gaps
from ctseg.scans.formats.regular_files import located, refuse

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
_OTHER_SCAN = "give the structure set of this scan, or choose other structures with --structures"
_DROPPED = {  # why contours of a structure are left out: code -> (what they are, remedy)
    "RT_OPEN_CONTOUR": (
        "enclose nothing (points, open lines, fewer than 3 points)",
        "close them in the tool that drew them",
    ),
    "RT_CONTOUR_DAMAGED": ("hold coordinates that are no numbers, or not three for each point", RTSTRUCT.fix),
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
def list_drawn(path: Path) -> frozenset[str]:
    """Names of the structures that have a closed contour; the others are lines of a template that nobody
    drew."""
    with dicom_files.guard(path):
        header, names = mask_objects.open_masks(path, RTSTRUCT)
        contours = _contours(header)
        return frozenset(
            name
            for number, name in names.items()
            if name and any(not _outline(item)[1] for item in contours[number])
        )


@dicom_files.private()
def read_structures(
    path: Path,
    image: Volume,
    image_folder: Path | None,
    *,
    names: Collection[str] | None = None,
    series_uid: str | None = None,
    gaps: str = slice_gaps.KEEP,
) -> tuple[dict[str, np.ndarray], Findings]:
    """({ROI name: bool (D, H, W) on the image's grid}, what was noticed).

    A structure that nobody drew, or whose contours hold no voxel centre, is not among them. names: read only
    these (all when None); a name that two ROIs carry is refused. image_folder: where the CT series lies, to
    check that the contours were drawn on it; None skips that check. gaps: what becomes of a structure on
    every other slice, see `slice_gaps`. A plane of contours counts for the nearest slice, unless another
    plane lies nearer to that.
    """
    with dicom_files.guard(path):
        header, known = mask_objects.open_masks(path, RTSTRUCT)
        foreign, findings = frozenset[int](), Findings()
        if image_folder is not None:
            foreign, findings = _foreign(header, image_folder, series_uid)
        wanted = {n: name for n, name in known.items() if name and (names is None or name in names)}
        contours = _contours(header)
        drawn = [name for number, name in wanted.items() if contours[number]]
        if len(set(drawn)) < len(drawn):
            cause = "two structures carry the same name"
            raise refuse("RT_AMBIGUOUS", cause, "give each structure its own name")
        checks.check_memory(len(wanted) * image.array.size, 1)
        if unnamed := sum(bool(items) and not known.get(number) for number, items in contours.items()):
            cause = f"{unnamed} drawn structures have no name and are left out"
            findings.append(Finding("WARN", "RT_NAMELESS", cause, "name them in the tool that drew them"))
        masks = {}
        for number, name in wanted.items():
            if number in foreign:
                cause = f"the structure '{name}' was drawn in another frame of reference: it is left out"
                findings.append(Finding("WARN", "RT_WRONG_SERIES", cause, "draw it on this scan"))
            elif contours[number]:
                mask, notes = _structure(contours[number], image, name, gaps)
                findings += notes
                if mask is not None:
                    masks[name] = mask
            elif name not in drawn:
                cause = f"the structure '{name}' has no contours"
                findings.append(Finding("WARN", "LABEL_MISSING", cause, "delete it, or draw it"))
    return masks, located(findings, path)


# ---- reading ----------------------------------------------------------------------------------------------


def _foreign(header: Any, image_folder: Path, series_uid: str | None) -> tuple[frozenset[int], Findings]:
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
    frames, series = {*listed, *own.values()}, mask_objects.series_of(header)
    scan, findings = dicom_files.drawn_on(image_folder, series_uid, frames=frames, series=series)
    fix = "give the structure set that was drawn on this series"
    if scan is None:
        raise refuse("RT_WRONG_SERIES", "it refers to another series and another frame of reference", fix)
    others = listed - {scan, ""} if scan in frames else set()
    foreign = frozenset(number for number, frame in own.items() if frame in others)
    if len(foreign) == len(own):
        raise refuse("RT_WRONG_SERIES", "all of its structures lie in another frame of reference", fix)
    return foreign, findings


def _contours(header: Any) -> dict[int, list[Any]]:
    """Structure number -> its contours, from all places where the file has some."""
    contours = defaultdict[int, list[Any]](list)
    for item in header.get("ROIContourSequence") or []:
        contours[int(item.ReferencedROINumber)] += item.get("ContourSequence") or []
    return contours


def _outline(item: Any) -> tuple[list[Any], str]:
    """(the numbers of a contour as they stand there, the reason, a key of _DROPPED, why it encloses no area
    that is known; empty for one that does). More than 64 kB of numbers are stored as bytes of no known type
    (VR UN)."""
    values = item.get("ContourData")
    if isinstance(values, bytes):
        values = values.decode("latin-1").rstrip("\0 ").split("\\")
    values = dicom_files.many(values)
    if str(item.get("ContourGeometricType", "")).upper() not in _CLOSED or len(values) < 9:
        return values, "RT_OPEN_CONTOUR"
    return values, "RT_CONTOUR_DAMAGED" if len(values) % 3 else ""


def _structure(items: list[Any], image: Volume, name: str, gaps: str) -> tuple[np.ndarray | None, Findings]:
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
    findings = []
    for code, count in dropped.items():
        what, fix = _DROPPED[code]
        if count:
            findings.append(Finding("WARN", code, f"{count} contours of '{name}' {what}: left out", fix))
    if crossing:
        cause = (
            f"contours of '{name}' cross each other: {crossing} voxels inside two of them count as outside"
        )
        findings.append(Finding("WARN", "RT_CONTOURS_CROSS", cause, "join them in the tool that drew them"))
    if not mask.any():
        cause = f"the contours of '{name}' hold no voxel centre: it counts as not annotated"
        return None, [*findings, Finding("WARN", "RT_NO_VOXEL", cause, "draw it larger, or delete it")]
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
        values, why = _outline(item)
        points = np.array([] if why else [float(value) for value in values])
        if why or not np.isfinite(points).all():
            dropped[why or "RT_CONTOUR_DAMAGED"] += 1
            continue
        index = (np.column_stack([points.reshape(-1, 3), np.ones(len(points) // 3)]) @ to_index.T)[:, :3]
        place = float(index[:, 0].mean())
        if np.abs(index[:, 0] - place).max() > FLAT:
            raise refuse("RT_OFF_GRID", f"a contour of '{name}' leans out of its slice", RTSTRUCT.fix)
        if not -0.5 - ROUNDED <= place <= shape[0] - 0.5 + ROUNDED:
            beyond += 1
        elif (index[:, 1:].max(axis=0) < -0.5).any() or (index[:, 1:].min(axis=0) > shape[1:] - 0.5).any():
            dropped["RT_OFF_GRID"] += 1
        else:
            found.append((place, index[:, 1:]))
    if beyond:
        cause = f"{beyond} contours of '{name}' lie outside the scan, beyond its first or last slice"
        raise refuse("RT_OFF_GRID", cause, _OTHER_SCAN)
    return sorted(found, key=lambda one: one[0]), dropped


# ---- writing ----------------------------------------------------------------------------------------------


@dicom_files.private()
def write_structures(
    path: Path,
    label: Volume,
    names: dict[int, str],
    series_folder: Path,
    *,
    series_uid: str | None = None,
    colours: dict[int, tuple[int, int, int]] | None = None,
    algorithm: str = "",
) -> Findings:
    """Write a label map as an RTSTRUCT of the one CT series in `series_folder` (or of the named one),
    atomically.

    label: integers (D, H, W) on the grid of the series (slices in either direction); ValueError otherwise.
    names: label value -> ROI name; ROIs are numbered 1, 2, ... in the order of the values. colours: label
    value -> RGB, 0 to 255. algorithm: what predicted them. Contours run half-way between voxel centres, so
    `read_structures` gives back the same voxels. The same arguments give the same bytes, others another
    series. Returns what is to be told.
    """
    headers, planes, names, findings = mask_objects.target_of(path, label, names, series_folder, series_uid)
    first, numbered = headers[0], dict(enumerate(names, start=1))
    reference, images = _reference(headers)
    made_by = {"ROIGenerationDescription": algorithm} if algorithm else {}
    content = dicom_files.new_object(
        SOPClassUID=RTStructureSetStorage,
        Modality="RTSTRUCT",
        Manufacturer="ctseg",
        SeriesNumber=mask_objects.series_number(first, 200),
        SeriesDescription="ctseg segmentation",
        InstanceNumber=1,
        FrameOfReferenceUID=first.FrameOfReferenceUID,
        PositionReferenceIndicator="",
        StructureSetLabel="ctseg",
        StructureSetDate="20000101",
        StructureSetTime="000000",
        OperatorsName="",
        ApprovalStatus="UNAPPROVED",
        ReferencedFrameOfReferenceSequence=[reference],
        StructureSetROISequence=[
            new_item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID,
                ROIName=names[value],
                ROIGenerationAlgorithm="AUTOMATIC",
                **made_by,
            )
            for number, value in numbered.items()
        ],
        RTROIObservationsSequence=[
            new_item(
                ObservationNumber=n, ReferencedROINumber=n, RTROIInterpretedType="ORGAN", ROIInterpreter=""
            )
            for n in numbered
        ],
        ROIContourSequence=[
            new_item(
                ReferencedROINumber=number,
                ROIDisplayColor=list((colours or {}).get(value, (255, 0, 0))),
                ContourSequence=_drawn(label, value, planes, images),
            )
            for number, value in numbered.items()
        ],
    )
    mask_objects.write(path, content, first)
    return findings


def _reference(headers: list[Any]) -> tuple[pydicom.Dataset, list[pydicom.Dataset]]:
    """(frame of reference, study, series and slices that contours lie on; the slices among them: files, or
    frames of a multi-frame file)."""
    images, first = [], headers[0]
    for header in headers:
        image = new_item(
            ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID
        )
        if (frame := dicom_frames.frame_of(header)) is not None:
            image.ReferencedFrameNumber = frame + 1
        images.append(image)
    series = new_item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
    study = new_item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    frame_uid = first.FrameOfReferenceUID
    return new_item(FrameOfReferenceUID=frame_uid, RTReferencedStudySequence=[study]), images


def _drawn(
    label: Volume, value: int, planes: list[int], images: list[pydicom.Dataset]
) -> list[pydicom.Dataset]:
    """The contours around a value of the label. planes: the index d in the label of each of the images."""
    contours = []
    for plane, image in zip(planes, images):
        for outline in outlines_of(label.array[plane] == value):
            index = np.column_stack([np.full(len(outline), plane), outline, np.ones(len(outline))])
            points = (index @ label.affine.T)[:, :3]
            contours.append(
                new_item(
                    ContourImageSequence=[image],
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(outline),
                    ContourData=[f"{coordinate:.10g}" for coordinate in points.ravel()],
                )
            )
    return contours
