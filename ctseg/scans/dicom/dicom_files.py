"""Which DICOM series lie in a folder, from headers alone, and which of them is the CT that is meant.

Files are walked and recognised by their mark; a DICOMDIR, whatever its name, is not followed, nothing is ever
forced. No value of a patient's header appears in a message.
"""

import contextlib
import dataclasses
import logging
import operator
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
)

from ctseg.artifacts import atomic_write, canonical_hash
from ctseg.errors import CaseError, Finding, Findings, PipelineError
from ctseg.scans.formats import folder_walk, regular_files
from ctseg.scans.formats.regular_files import at_file, refuse

SMALLEST_SLICES = 4  # fewer slices are a scout or a sample, not a volume
# What a SEG or RTSTRUCT takes over from its series: what an archive needs to file it with the patient, and
# nothing else.
PATIENT_AND_STUDY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
ENHANCED_CT = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
NO_PATIENT = canonical_hash("")[:16]  # the patient_key of files without a patient id
_TAGS = """
SOPClassUID SOPInstanceUID SeriesInstanceUID Modality PatientID ImageType NumberOfFrames
StudyInstanceUID ImagePositionPatient Rows
"""


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Silence pydicom and highdicom: their warnings and log records quote values of the header."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)  # for the loggers below them, too
            yield
        finally:
            for logger, level in zip(loggers, before):
                logger.setLevel(level)


@contextlib.contextmanager
def guard(path: Path) -> Iterator[None]:
    """Name the file in an error, and turn whatever a damaged file raises into DICOM_CORRUPT: values are
    parsed when they are asked for, and pydicom raises many types. Only the type is told, the text may quote
    the header."""
    try:
        with at_file(path):
            yield
    except (PipelineError, MemoryError):
        raise
    except Exception as error:
        cause = f"it cannot be parsed ({type(error).__name__})"
        raise refuse("DICOM_CORRUPT", cause, "copy or export the file again", path) from None


@dataclasses.dataclass(frozen=True)
class SeriesInfo:
    """One series of a folder, from headers alone. n_slices counts the frames of a multi-frame CT and no
    localizers. patient_key: a hash that is equal for files of one patient. uid: empty where anonymisation
    took it away. slices: (position, SOP instance UID) of its files as they are written. study: the study's
    UID, of its first file."""

    uid: str
    modality: str
    folder: Path
    files: tuple[Path, ...]
    n_slices: int
    patient_key: str
    slices: frozenset[tuple[str, str]] = frozenset()
    study: str = ""


@dataclasses.dataclass
class Found:
    """What a folder holds. series: one entry per folder and series, sorted; others: files that are no DICOM
    object of a series; damaged: DICOM files that cannot be read, and why; not_entered: see
    `folder_walk.walk`."""

    series: list[SeriesInfo]
    others: list[Path]
    damaged: dict[Path, CaseError]
    not_entered: dict[Path, str]


@private()
def find(folder: Path) -> Found:
    """Every series below a folder, and what is none."""
    if not folder.is_dir():
        fix = "restore the folder or remove the case"
        raise refuse("FILE_MISSING", "the folder does not exist", fix, folder)
    found, single = Found([], [], {}, {}), []
    for place, _, names in folder_walk.walk(folder, found.not_entered):
        for path in (place / name for name in names):
            try:
                file = _series_of(path)
            except CaseError as error:
                found.damaged[path] = error
                continue
            if file is None:
                found.others.append(path)
            else:
                single.append(file)
    key = operator.attrgetter("folder", "uid", "modality", "patient_key")
    found.series = [_joined(same) for same in _grouped(sorted(single, key=key), key)]
    return found


@private()
def choose(folder: Path, uid: str | None) -> tuple[SeriesInfo, int]:
    """(the one CT series that is meant, its files possibly spread over subfolders; number of other files).

    uid: which one; without it exactly one series must be a volume, scouts do not count.
    """
    found = find(folder)
    series, others = found.series, len(found.others)
    for path, why in found.not_entered.items():
        if why not in (folder_walk.HIDDEN, folder_walk.TWICE):
            raise refuse("PERMISSION", why, "change the permissions of the folder", path)
    if found.damaged:
        raise next(iter(found.damaged.values()))
    if not series:
        cause, fix = f"no DICOM file among {others} files", "restore the series or remove the case"
        raise refuse("FILE_MISSING", cause, fix, folder)
    wanted = [info for info in series if info.modality == "CT" and uid in (None, info.uid)]
    if not wanted and uid is not None and not any(info.uid == uid for info in series):
        cause = "the chosen series is not in the folder"
        raise refuse("FILE_MISSING", cause, "choose a series that is there", folder)
    if not wanted:
        kinds = ", ".join(sorted({word(info.modality) for info in series}))
        raise refuse("NOT_CT", f"modality {kinds} instead of CT", "give a CT series", folder)
    if len({info.patient_key for info in wanted}) > 1:
        cause = "the folder holds slices of more than one patient"
        raise refuse("MULTI_PATIENT", cause, "keep one patient per folder", folder)
    joined = [_joined(same) for same in _grouped(wanted, operator.attrgetter("uid"))]
    volumes = [info for info in joined if info.n_slices >= SMALLEST_SLICES] or joined
    if len(volumes) > 1:
        counts = ", ".join(str(info.n_slices) for info in volumes)
        fix = "keep one series in the folder, or name the series"
        raise refuse("SERIES_AMBIGUOUS", f"{len(volumes)} CT series ({counts} slices)", fix, folder)
    return volumes[0], others


def read_header(path: Path, tags: list[str] | None) -> Any:
    """A file's header without pixels; DICOM_CORRUPT for whatever pydicom cannot parse."""
    with guard(path):
        try:
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        except InvalidDicomError:  # reading on would be guessing
            fix = "save it again as a DICOM file with its file header (PS3.10)"
            raise refuse("DICOM_CORRUPT", "the DICOM mark at its beginning is missing", fix) from None
        except MemoryError:  # a header needs little: its length fields lie
            cause = "an element of the header is announced longer than the memory"
            raise refuse("DICOM_CORRUPT", cause, "copy or export the file again") from None


def drawn_on(
    folder: Path, series_uid: str | None, *, frames: Collection[Any], series: Collection[Any]
) -> tuple[str | None, Findings]:
    """(frame of reference of the one series in `folder` or of the named one, None where the labels were drawn
    on another; what was noticed).

    frames, series: the frames of reference and series UIDs that the labels name. Where anonymisation took
    away those of either side, only the positions tell, and a finding says so.
    """
    chosen, _ = choose(folder, series_uid)
    named = {"FrameOfReferenceUID": frames, "SeriesInstanceUID": series}
    header = read_header(chosen.files[0], list(named))
    pairs = [(str(header.get(tag) or ""), {str(uid) for uid in uids if uid}) for tag, uids in named.items()]
    frame = pairs[0][0]
    if any(own in theirs for own, theirs in pairs):
        return frame, []
    if any(own and theirs for own, theirs in pairs):
        return None, []
    cause = (
        "it and the scan name no common kind of UID: whether it was drawn on this scan is told by "
        "positions alone"
    )
    fix = "keep the UIDs when anonymising (replaced alike in all files)"
    return frame, [Finding("WARN", "SERIES_UNKNOWN", cause, fix)]


def text(item: Any, keyword: str) -> str:
    """A text value of one line as it was meant: a backslash in it parts no values, and UTF-8 is read as such
    though nobody declared it."""
    value = "\\".join(str(part) for part in many(item.get(keyword))).strip()
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


@private()
def modality_of(path: Path) -> str:
    """The modality that a DICOM file states, as a code string ("CT", "SEG"). Raises CaseError for a file that
    is none."""
    with guard(path):
        return word(str(read_header(path, ["Modality"]).get("Modality", "")))


def is_localizer(header: Any) -> bool:
    """Whether an image calls itself a localizer (scout)."""
    return "LOCALIZER" in [str(part).upper() for part in many(header.get("ImageType"))]


def many(value: Any) -> list[Any]:
    """The values of an element, whether it holds none, one or several."""
    if value is None:
        return []
    return list(value) if not isinstance(value, (str, bytes)) and hasattr(value, "__iter__") else [value]


def _series_of(path: Path) -> SeriesInfo | None:
    """The series of a single file; None when it is no object of a series."""
    if path.name.upper() == "DICOMDIR" or path.name.startswith(".") or not is_dicom(path):
        return None
    header = read_header(path, _TAGS.split())
    with guard(path):
        sop_class = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
        if sop_class == MediaStorageDirectoryStorage:
            return None
        # the elements are in the order of their tags
        if "SeriesInstanceUID" not in header and "Rows" not in header:
            cause = "the header ends before the series is named"
            raise refuse("DICOM_TRUNCATED", cause, "copy or export the file again")
        frames = max(1, int(header.get("NumberOfFrames") or 1)) if sop_class in ENHANCED_CT else 1
        uid, instance, position, study = (
            str(header.get(tag) or "")
            for tag in ("SeriesInstanceUID", "SOPInstanceUID", "ImagePositionPatient", "StudyInstanceUID")
        )
        return SeriesInfo(
            uid,
            str(header.get("Modality", "")),
            path.parent,
            (path,),
            0 if is_localizer(header) else frames,
            canonical_hash(str(header.get("PatientID", "")))[:16],
            frozenset([(position, instance)]),
            study,
        )


def is_dicom(path: Path) -> bool:
    """Whether a regular file carries the DICOM mark; nothing else is ever opened."""
    try:
        return regular_files.read_regular(path, 132)[128:] == b"DICM"
    except CaseError as error:
        if error.code in ("PERMISSION", "READ_FAILED"):
            raise
        return False


def join_parts(series: list[SeriesInfo]) -> list[SeriesInfo]:
    """The series, those in one whose slices are spread over several folders. What has one UID without being
    parts of one scan stays apart: copies, other patients, other slices in the same place (UIDs that
    anonymisation made equal)."""
    result = []
    for same in _grouped(series, lambda info: (info.uid or str(info.folder), info.patient_key)):
        joined = _joined(same)
        copies = all(info.slices == joined.slices for info in same[1:])
        distinct = len({place for place, _ in joined.slices}) == len(joined.slices)
        result += [joined] if distinct and not copies else same
    return result


def _grouped(series: list[SeriesInfo], key: Callable[[SeriesInfo], Any]) -> list[list[SeriesInfo]]:
    """Those of one key together, in the order of the first of each."""
    groups: dict[Any, list[SeriesInfo]] = {}
    for info in series:
        groups.setdefault(key(info), []).append(info)
    return list(groups.values())


def _joined(same: list[SeriesInfo]) -> SeriesInfo:
    """One entry for the parts of a series; its folder holds all of them."""
    return dataclasses.replace(
        same[0],
        folder=Path(os.path.commonpath({info.folder for info in same})),
        files=tuple(path for info in same for path in info.files),
        n_slices=sum(info.n_slices for info in same),
        slices=frozenset().union(*(info.slices for info in same)),
    )


def word(text: str) -> str:
    """A modality as it may be printed: DICOM code strings only."""
    return text if text.isascii() and text.replace("_", "").isalnum() and len(text) <= 16 else "unknown"


def new_item(**elements: Any) -> pydicom.Dataset:
    """A dataset of these elements, given by their keywords."""
    item = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def new_object(**elements: Any) -> pydicom.Dataset:
    """The same as the content of a file, uncompressed."""
    content = new_item(**elements)
    content.file_meta = pydicom.dataset.FileMetaDataset()
    content.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return content


def write(path: Path, content: pydicom.Dataset) -> None:
    """Write an object as a DICOM file, atomically."""
    atomic_write(path, lambda stream: pydicom.dcmwrite(stream, content, enforce_file_format=True))
