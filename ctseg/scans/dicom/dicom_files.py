"""Which DICOM series lie in a folder, from headers alone, and which of them is the CT that is meant.

Files are walked and recognised by their mark; a DICOMDIR, whatever its name, is not followed, nothing is ever
forced. No value of a patient's header appears in a message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    UID,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
    generate_uid,
)

from ctseg.artifacts import canonical_hash
from ctseg.errors import CaseError, Finding, PipelineError
from ctseg.scans.formats import folder_walk, regular_files
from ctseg.scans.formats.regular_files import at_file, refuse, unreadable

UNICODE = "ISO_IR 192"  # the character set of what we write: names in any script
LONGEST_NAME = 64  # characters of a long string (LO)
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
_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "PatientID",
    "ImageType",
    "NumberOfFrames",
    "StudyInstanceUID",
    "ImagePositionPatient",
    "Rows",
]


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


@dataclasses.dataclass(frozen=True)
class _Identity:
    uid: str
    modality: str
    patient_key: str
    slices: int  # 0: a localizer
    place: tuple[str, str]  # position, SOP instance UID
    study: str


@dataclasses.dataclass
class Found:
    """What a folder holds. series: one entry per folder and series, sorted; others: files that are no DICOM
    object of a series; damaged: DICOM files that cannot be read, and why; not_entered: see
    `folder_walk.walk`."""

    series: list[SeriesInfo] = dataclasses.field(default_factory=list)
    others: list[Path] = dataclasses.field(default_factory=list)
    damaged: dict[Path, CaseError] = dataclasses.field(default_factory=dict)
    not_entered: dict[Path, str] = dataclasses.field(default_factory=dict)


@private()
def find(folder: Path) -> Found:
    """Every series below a folder, and what is none."""
    if not folder.is_dir():
        raise refuse(
            "FILE_MISSING", "the folder does not exist", "restore the folder or remove the case", folder
        )
    found = Found()
    groups: dict[tuple[Path, str, str, str], list[tuple[Path, _Identity]]] = {}
    for place, _, names in folder_walk.walk(folder, found.not_entered):
        for path in (place / name for name in names):
            try:
                identity = _identity(path)
            except CaseError as error:
                found.damaged[path] = error
                continue
            if identity is None:
                found.others.append(path)
            else:
                key = (place, identity.uid, identity.modality, identity.patient_key)
                groups.setdefault(key, []).append((path, identity))
    found.series = [
        SeriesInfo(
            uid,
            modality,
            where,
            tuple(path for path, _ in files),
            sum(one.slices for _, one in files),
            patient,
            frozenset(one.place for _, one in files),
            files[0][1].study,
        )
        for (where, uid, modality, patient), files in sorted(groups.items())
    ]
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
        raise refuse(
            "FILE_MISSING",
            f"no DICOM file among {others} files",
            "restore the series or remove the case",
            folder,
        )
    wanted = [info for info in series if info.modality == "CT" and uid in (None, info.uid)]
    if not wanted and uid is not None and not any(info.uid == uid for info in series):
        raise refuse(
            "FILE_MISSING", "the chosen series is not in the folder", "choose a series that is there", folder
        )
    if not wanted:
        kinds = ", ".join(sorted({word(info.modality) for info in series}))
        raise refuse("NOT_CT", f"modality {kinds} instead of CT", "give a CT series", folder)
    if len({info.patient_key for info in wanted}) > 1:
        raise refuse(
            "MULTI_PATIENT",
            "the folder holds slices of more than one patient",
            "keep one patient per folder",
            folder,
        )
    by_uid: dict[str, list[SeriesInfo]] = {}
    for info in wanted:
        by_uid.setdefault(info.uid, []).append(info)
    joined = [_joined(same) for same in by_uid.values()]
    volumes = [info for info in joined if info.n_slices >= SMALLEST_SLICES] or joined
    if len(volumes) > 1:
        counts = ", ".join(str(info.n_slices) for info in volumes)
        raise refuse(
            "SERIES_AMBIGUOUS",
            f"{len(volumes)} CT series ({counts} slices)",
            "keep one series in the folder, or name the series",
            folder,
        )
    return volumes[0], others


def read_header(path: Path, tags: list[str] | None) -> Any:
    """A file's header without pixels; DICOM_CORRUPT for whatever pydicom cannot parse."""
    with guard(path):
        try:
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        except InvalidDicomError:  # reading on would be guessing
            raise refuse(
                "DICOM_CORRUPT",
                "the DICOM mark at its beginning is missing",
                "save it again as a DICOM file with its file header (PS3.10)",
                path,
            ) from None
        except MemoryError:  # a header needs little: its length fields lie
            raise refuse(
                "DICOM_CORRUPT",
                "an element of the header is announced longer than the memory",
                "copy or export the file again",
                path,
            ) from None


def drawn_on(
    folder: Path, series_uid: str | None, *, frames: Collection[Any], series: Collection[Any]
) -> tuple[str | None, list[Finding]]:
    """(frame of reference of the one series in `folder` or of the named one, None where the labels were drawn
    on another; what was noticed).

    frames, series: the frames of reference and series UIDs that the labels name. Where anonymisation took
    away those of either side, only the positions tell, and a finding says so.
    """
    chosen, _ = choose(folder, series_uid)
    first = read_header(chosen.files[0], ["FrameOfReferenceUID", "SeriesInstanceUID"])
    pairs = [
        (str(first.get("FrameOfReferenceUID") or ""), {str(uid) for uid in frames if uid}),
        (str(first.get("SeriesInstanceUID") or ""), {str(uid) for uid in series if uid}),
    ]
    if any(own in named for own, named in pairs):
        return pairs[0][0], []
    if any(own and named for own, named in pairs):
        return None, []
    return pairs[0][0], [
        Finding(
            "WARN",
            "SERIES_UNKNOWN",
            "it and the scan name no common kind of UID: whether it was drawn on this scan is told by "
            "positions alone",
            "keep the UIDs when anonymising (replaced alike in all files)",
        )
    ]


def name_by_content(content: Any) -> None:
    """Give an object that is written instance and series UIDs made from all else that it holds: equal ones
    mean the same object."""
    content.SOPInstanceUID = content.SeriesInstanceUID = content.file_meta.MediaStorageSOPInstanceUID = UID(
        "2.25.0"
    )
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, content, enforce_file_format=True)
    digest = hashlib.sha256(stream.getvalue()).hexdigest()
    content.SOPInstanceUID = content.file_meta.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=[digest, "instance"]
    )
    content.SeriesInstanceUID = generate_uid(entropy_srcs=[digest, "series"])


def series_number(header: Any, step: int) -> int:
    """The number of a series that is made from the one of `header`: `step` more, or `step` where that is no
    number of 32 bits."""
    try:
        number = max(0, int(header.get("SeriesNumber") or 1)) + step
    except (ValueError, TypeError, OverflowError):  # text, several numbers, too many digits
        return step
    return number if number < 2**31 else step


def short_names(names: Mapping[int, str]) -> dict[int, str]:
    """Names as a DICOM file can hold them, 64 characters at most; one that is cut ends with a hash, so that
    no two become one."""
    return {
        value: name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}_{canonical_hash(name)[:8]}"
        for value, name in names.items()
    }


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


def _identity(path: Path) -> _Identity | None:
    """Which series a file belongs to; None when it is no object of a series."""
    if path.name.upper() == "DICOMDIR" or path.name.startswith(".") or not is_dicom(path):
        return None
    header = read_header(path, _TAGS)
    with guard(path):
        sop_class = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
        if sop_class == MediaStorageDirectoryStorage:
            return None
        # the elements are in the order of their tags
        if "SeriesInstanceUID" not in header and "Rows" not in header:
            raise refuse(
                "DICOM_TRUNCATED",
                "the header ends before the series is named",
                "copy or export the file again",
                path,
            )
        patient = canonical_hash(str(header.get("PatientID", "")))[:16]
        frames = max(1, int(header.get("NumberOfFrames") or 1)) if sop_class in ENHANCED_CT else 1
        uid, instance, position, study = (
            str(header.get(tag) or "")
            for tag in ("SeriesInstanceUID", "SOPInstanceUID", "ImagePositionPatient", "StudyInstanceUID")
        )
        return _Identity(
            uid,
            str(header.get("Modality", "")),
            patient,
            0 if is_localizer(header) else frames,
            (position, instance),
            study,
        )


def is_dicom(path: Path) -> bool:
    """Whether a regular file carries the DICOM mark; nothing else is ever opened."""
    try:
        size = regular_files.require_regular(path)
    except CaseError as error:
        if error.code == "PERMISSION":
            raise
        return False
    if size < 132:
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except PermissionError:
        raise unreadable(path) from None


def join_parts(series: list[SeriesInfo]) -> list[SeriesInfo]:
    """The series, those in one whose slices are spread over several folders. What has one UID without being
    parts of one scan stays apart: copies, other patients, other slices in the same place (UIDs that
    anonymisation made equal)."""
    merged: dict[tuple[str, str], list[SeriesInfo]] = {}
    for info in series:
        merged.setdefault((info.uid or str(info.folder), info.patient_key), []).append(info)
    return [info for same in merged.values() for info in ([_joined(same)] if _are_parts(same) else same)]


def _are_parts(same: list[SeriesInfo]) -> bool:
    slices = frozenset().union(*(info.slices for info in same))
    copies = all(info.slices == slices for info in same[1:])
    return len(same) == 1 or (not copies and len({place for place, _ in slices}) == len(slices))


def _joined(same: list[SeriesInfo]) -> SeriesInfo:
    """One entry for parts in several folders; its folder holds all of them."""
    if len(same) == 1:
        return same[0]
    return dataclasses.replace(
        same[0],
        folder=Path(os.path.commonpath([info.folder for info in same])),
        files=tuple(path for info in same for path in info.files),
        n_slices=sum(info.n_slices for info in same),
        slices=frozenset().union(*(info.slices for info in same)),
    )


def word(text: str) -> str:
    """A modality as it may be printed: DICOM code strings only."""
    return text if text.isascii() and text.replace("_", "").isalnum() and len(text) <= 16 else "unknown"
