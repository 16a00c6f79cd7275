"""Hostile and odd DICOM folders: a DICOMDIR that leads elsewhere, lengths that lie, nesting without end,
links, pipes.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from builders import small_phantom
from pydicom.uid import MediaStorageDirectoryStorage, generate_uid

from ctseg.errors import CaseError
from ctseg.scans.dicom import dicom_series

PHANTOM = small_phantom()
MARK = "PATIENTMARK"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    dicom_series.write_series(tmp_path / "in" / "ct", PHANTOM.image, patient_id=MARK, series_number=1, seed=0)
    return tmp_path / "in" / "ct"


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir", "index.dcm"])
def test_a_directory_file_is_never_followed(series, name):
    """Its entry leads to a complete slice beside the folder; whoever follows it reads one slice more."""
    outside = series.parent.parent / "secret.dcm"
    content = pydicom.dcmread(series / "slice_0001.dcm")
    content.SOPInstanceUID, content.ImagePositionPatient = generate_uid(), [0, 0, -99]
    content.save_as(outside)
    directory = pydicom.Dataset()
    entry = pydicom.Dataset()
    entry.DirectoryRecordType, entry.ReferencedFileID = "IMAGE", ["..", "..", "secret.dcm"]
    directory.DirectoryRecordSequence = [entry]
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.SOPClassUID = directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID, directory.file_meta.TransferSyntaxUID = (
        generate_uid(),
        pydicom.uid.ExplicitVRLittleEndian,
    )
    pydicom.dcmwrite(series / name, directory, enforce_file_format=True)
    opened: list[str] = []
    recording = [True]
    sys.addaudithook(
        lambda event, arguments: opened.append(str(arguments[0])) if recording and event == "open" else None
    )
    volume, findings = dicom_series.read_series(series)
    recording.clear()
    assert volume.array.shape == PHANTOM.image.array.shape and [finding.code for finding in findings] == [
        "NOT_DICOM"
    ]
    assert any(path.endswith("slice_0001.dcm") for path in opened) and not any(
        "secret" in path for path in opened
    )


def head(path: Path) -> tuple[bytes, bytes]:
    """A file cut before its first element behind the file header."""
    content = path.read_bytes()
    at = 144 + struct.unpack("<I", content[140:144])[0]
    return content[:at], content[at:]


def element(group: int, number: int, vr: bytes, length: int, value: bytes = b"") -> bytes:
    """Explicit little endian; the long form for VRs that have one."""
    start = struct.pack("<HH", group, number) + vr
    return (
        start
        + (struct.pack("<HI", 0, length) if vr in (b"SQ", b"OB", b"UN", b"OW") else struct.pack("<H", length))
        + value
    )


def put(path: Path, content: bytes) -> None:
    """An element in front of all others."""
    before, behind = head(path)
    path.write_bytes(before + content + behind)


def replace_start(path: Path, content: bytes) -> None:
    path.write_bytes(head(path)[0] + content)


def nested(depth: int) -> bytes:
    """Sequences of undefined length inside each other, never closed."""
    return b"".join(
        element(0x0008, 0x1140, b"SQ", 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        for _ in range(depth)
    )


def garble_vrs(path: Path) -> None:
    before, behind = head(path)
    path.write_bytes(before + behind.replace(b"UI", b"ZZ").replace(b"DS", b"\x07\x90"))


HOSTILE: dict[str, Callable[[Path], None]] = {
    "an element of 4 GB": lambda path: put(path, element(0x0008, 0x0001, b"UN", 0xFFFFFFF0)),
    "an element longer than the file, at its end": lambda path: replace_start(
        path, element(0x0008, 0x0016, b"OB", 0x7FFFFFFF, b"1.2")
    ),
    "3000 nested sequences": lambda path: put(path, nested(3000)),
    "VRs that do not exist": garble_vrs,
    "no transfer syntax": lambda path: path.write_bytes(
        path.read_bytes().replace(b"\x02\x00\x10\x00", b"\x02\x00\x77\x00", 1)
    ),
    "random bytes behind the mark": lambda path: path.write_bytes(
        b"\0" * 128 + b"DICM" + np.random.default_rng(5).bytes(4000)
    ),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_file_is_refused_by_name_and_soon(series, name):
    import resource

    path = series / "slice_0004.dcm"
    HOSTILE[name](path)
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CaseError) as caught:
        dicom_series.read_series(series)
    assert (
        caught.value.code in ("DICOM_CORRUPT", "DICOM_TRUNCATED")
        and caught.value.file == str(path)
        and MARK not in str(caught.value)
    )
    assert time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_a_length_beyond_the_memory_is_a_damaged_file(series, monkeypatch):
    original = pydicom.dcmread

    def reads(path, **options):
        if Path(path).name == "slice_0004.dcm":
            raise MemoryError
        return original(path, **options)

    monkeypatch.setattr(pydicom, "dcmread", reads)
    with pytest.raises(CaseError, match=r"DICOM_CORRUPT.*longer than the memory"):
        dicom_series.read_series(series)


def test_pipes_links_and_folders_with_names_of_slices_are_passed_over(series):
    os.mkfifo(series / "pipe.dcm")
    (series / "zero.dcm").symlink_to("/dev/zero")
    (series / "loop.dcm").symlink_to("loop.dcm")
    (series / "folder.dcm").mkdir()
    volume, findings = dicom_series.read_series(series)
    assert np.array_equal(volume.array, PHANTOM.image.array)
    assert [(finding.code, finding.cause[:7]) for finding in findings] == [("NOT_DICOM", "3 files")]


@pytest.mark.parametrize("modality", ["MR", "PT", "RTDOSE", "CANARY^NAME"])
def test_another_modality_is_named_only_where_it_is_a_code(series, modality):
    for path in series.iterdir():
        content = pydicom.dcmread(path)
        content.Modality = modality
        content.save_as(path)
    with pytest.raises(CaseError) as caught:
        dicom_series.read_series(series)
    assert (
        caught.value.code == "NOT_CT"
        and ("unknown" if "^" in modality else modality) in caught.value.cause
        and "CANARY" not in str(caught.value)
    )


@pytest.mark.parametrize("position", ["FFS", "HFDR", "FFP"])
def test_the_patient_position_does_not_turn_the_scan(series, position):
    """Feet first, decubitus, prone: position and orientation of the slices say all; the word is not used."""
    expected, _ = dicom_series.read_series(series)
    for path in series.iterdir():
        content = pydicom.dcmread(path)
        content.PatientPosition = position
        content.save_as(path)
    volume, findings = dicom_series.read_series(series)
    assert (
        np.array_equal(volume.array, expected.array)
        and np.array_equal(volume.affine, expected.affine)
        and not findings
    )
