"""What the two kinds of DICOM masks, SEG and RTSTRUCT, have in common: how they are opened, and written for a
CT series."""

import functools
import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.uid import RTStructureSetStorage, SegmentationStorage, generate_uid

from ctseg.artifacts import canonical_hash
from ctseg.errors import Findings
from ctseg.geometry.volume import Volume
from ctseg.scans.dicom import dicom_files, dicom_series
from ctseg.scans.formats import regular_files
from ctseg.scans.formats.regular_files import refuse

LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
UNDEFINED_LENGTH = 0xFFFFFFFF  # of an element that says at its end where it ends
UNICODE = "ISO_IR 192"  # the character set of what we write: names in any script
LONGEST_NAME = 64  # characters of a long string (LO)


class Kind(NamedTuple):
    """A kind of masks: what it and its masks are called; the codes of a file that is none and of a number
    given twice; its classes; the sequences that it must have, the first of which lists the masks by number
    and name; the remedy where that list is wrong."""

    file: str
    words: str
    masks: str
    is_none: str
    ambiguous: str
    classes: tuple[str, ...]
    sequences: tuple[str, ...]
    number: str
    name: str
    fix: str


SEG = Kind(
    "SEG",
    "DICOM segmentation",
    "segments",
    "NOT_SEG",
    "SEG_AMBIGUOUS",
    (SegmentationStorage, LABELMAP_STORAGE),
    ("SegmentSequence", "PerFrameFunctionalGroupsSequence"),
    "SegmentNumber",
    "SegmentLabel",
    "export the segmentation again from the tool that drew it",
)
RTSTRUCT = Kind(
    "RTSTRUCT",
    "DICOM RT structure set",
    "structures",
    "NOT_RTSTRUCT",
    "RT_AMBIGUOUS",
    (RTStructureSetStorage,),
    ("StructureSetROISequence",),
    "ROINumber",
    "ROIName",
    "export the structure set again from the tool that drew it, for this series",
)
KINDS = {"SEG": SEG, "RTSTRUCT": RTSTRUCT}  # by their modality


def open_masks(path: Path, kind: Kind) -> tuple[Any, dict[int, str]]:
    """(header of a file of this kind, number -> name of its masks, empty where a mask has none); neither may
    be changed: the file opened last is kept."""
    regular_files.require_regular(path)
    facts = path.stat()
    return _open(path, kind, (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns))


@functools.lru_cache(maxsize=1)
def _open(path: Path, kind: Kind, version: tuple[int, ...]) -> tuple[Any, dict[int, str]]:
    """The file in this version. Where structures are read one by one, parsing it again for each would take
    most of the time."""
    header = dicom_files.read_header(path, None)
    if is_cut(header):
        cause = "an element of its header holds less than it announces: the file was cut"
        raise refuse("DICOM_TRUNCATED", cause, "copy or export the file again")
    if header.get("SOPClassUID") not in kind.classes:
        give = f"give the {kind.file} file of this scan"
        raise refuse(kind.is_none, f"it is no {kind.words}", give)
    if not all(sequence in header for sequence in kind.sequences):
        cause = f"the header ends before the {kind.masks}"
        raise refuse("DICOM_TRUNCATED", cause, "copy or export the file again")
    items = getattr(header, kind.sequences[0])
    names = {int(getattr(item, kind.number)): dicom_files.text(item, kind.name) for item in items}
    if len(names) < len(items):
        raise refuse(kind.ambiguous, f"two {kind.masks} carry the same number", kind.fix)
    if kind is SEG:
        names = {number: names[number] for number in sorted(names) if number}  # 0: background of a label map
    return header, names


def is_cut(header: Any) -> bool:
    """Whether a header just read ends within an element: pydicom takes what is left of it without a word."""
    return any(
        isinstance(element, RawDataElement)
        and element.length != UNDEFINED_LENGTH
        and len(element.value or b"") < element.length
        for element in header.values()
    )


@dicom_files.private()
def list_names(path: Path, modality: str) -> dict[int, str]:
    """Number -> name of the masks of a file of this modality, SEG or RTSTRUCT, from its header."""
    with dicom_files.guard(path):
        return {number: name for number, name in open_masks(path, KINDS[modality])[1].items() if name}


@dicom_files.private()
def referenced_series(path: Path, modality: str) -> frozenset[str]:
    """UIDs of the series that such a file says it was drawn on; empty when it names none."""
    with dicom_files.guard(path):
        return series_of(open_masks(path, KINDS[modality])[0])


def series_of(header: Any) -> frozenset[str]:
    """UIDs of the series that a SEG names in its header, an RTSTRUCT in its frames of reference."""
    named = list(header.get("ReferencedSeriesSequence") or [])
    for frame in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            named += study.get("RTReferencedSeriesSequence") or []
    return frozenset(str(item.SeriesInstanceUID) for item in named if "SeriesInstanceUID" in item)


class Target(NamedTuple):
    """What masks are written for: the headers of the slices of a series, the index d in the label of each
    slice, the masks' names as DICOM can hold them, in the order of their values, and what is to be told."""

    headers: list[Any]
    planes: list[int]
    names: dict[int, str]
    findings: Findings


def target_of(path: Path, label: Volume, names: dict[int, str], folder: Path, uid: str | None) -> Target:
    """The one CT series in `folder` (or the named one) as the target of a label map on its grid: ValueError
    otherwise. Names have 64 characters at most; one that is cut ends with a hash, so that no two become one.
    """
    headers = dicom_series.series_headers(folder, uid)
    findings = dicom_series.fill_uids(headers, path)
    short = {
        value: name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}_{canonical_hash(name)[:8]}"
        for value, name in sorted(names.items())
    }
    return Target(headers, dicom_series.label_planes(label, headers), short, findings)


def series_number(header: Any, step: int) -> int:
    """The number of a series that is made from the one of `header`: `step` more, or `step` where that is no
    number of 32 bits."""
    try:
        number = max(0, int(header.get("SeriesNumber") or 1)) + step
    except (ValueError, TypeError, OverflowError):  # text, several numbers, too many digits
        return step
    return number if number < 2**31 else step


def write(path: Path, content: pydicom.Dataset, source: Any) -> None:
    """Write masks atomically, filed with the patient and study of `source`, a header of their series.

    Instance and series UIDs are made from all else that the object holds: equal ones mean the same object.
    """
    content.SpecificCharacterSet = UNICODE
    for keyword in dicom_files.PATIENT_AND_STUDY:
        setattr(content, keyword, source.get(keyword, ""))
    content.SOPInstanceUID = content.SeriesInstanceUID = "2.25.0"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, content, enforce_file_format=True)
    digest = hashlib.sha256(stream.getvalue()).hexdigest()
    content.SOPInstanceUID = generate_uid(entropy_srcs=[digest, "instance"])
    content.SeriesInstanceUID = generate_uid(entropy_srcs=[digest, "series"])
    dicom_files.write(path, content)
