"""Marks planted in a CT series must not come out of infer.py, except for what a SEG or RTSTRUCT needs to be
filed with its patient.
"""

from __future__ import annotations

import gzip
import logging
import shutil
from pathlib import Path

import pydicom
import pytest
import tiny_workspace
from builders import small_phantom
from pydicom.uid import generate_uid

import infer
import train
from ctseg import artifacts
from ctseg.scans.dicom import dicom_series

FILED = {
    "PatientName": "CANARYNAME^A",
    "PatientID": "CANARYID",
    "PatientBirthDate": "19010203",
    "AccessionNumber": "CANARYACC",
    "StudyID": "CANARYSTUDY",
    "ReferringPhysicianName": "CANARYREF^B",
}
HIDDEN = {
    "SeriesDescription": "CANARYSERIES",
    "ProtocolName": "CANARYPROTOCOL",
    "InstitutionName": "CANARYHOUSE",
    "InstitutionAddress": "CANARYROAD",
    "OperatorsName": "CANARYOPERATOR^C",
    "PerformingPhysicianName": "CANARYDOCTOR^D",
    "PatientComments": "CANARYCOMMENT",
    "ImageComments": "CANARYIMAGE",
    "OtherPatientIDs": "CANARYOTHER",
    "PatientAddress": "CANARYHOME",
    "StationName": "CANARYSTATION",
    "DeviceSerialNumber": "CANARYDEVICE",
    "RequestedProcedureDescription": "CANARYREQUEST",
}
MARKS = [b"CANARY", b"19010203"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a checkpoint, a folder with one good series and four bad ones)"""
    root = tmp_path_factory.mktemp("privacy")
    workspace = tiny_workspace.make(root / "work")
    assert (
        train.main(
            tiny_workspace.arguments(
                workspace, **{"train.epochs": 1, "train.steps_per_epoch": 1, "train.validations": 1}
            )
        )
        == 0
    )
    scan = small_phantom(shape=(10, 16, 18)).image
    scans = root / "scans"
    dicom_series.write_series(scans / "good", scan, patient_id="x", series_number=1, seed=0)
    for path in (scans / "good").iterdir():
        plant(path)
    for number, name in enumerate(("gap", "truncated", "garbled", "without_rescale"), start=2):
        shutil.copytree(scans / "good", scans / name)
        uid = generate_uid(entropy_srcs=[name])
        for path in (scans / name).iterdir():
            content = pydicom.dcmread(path)
            content.SeriesInstanceUID, content.SeriesNumber = uid, number
            if name == "without_rescale":
                del content.RescaleSlope
            content.save_as(path)
        damage(scans / name)
    return workspace.best_model, scans


def plant(path: Path) -> None:
    content = pydicom.dcmread(path)
    for keyword, value in {**FILED, **HIDDEN}.items():
        setattr(content, keyword, value)
    block = content.private_block(0x0009, "CANARYMAKER", create=True)
    block.add_new(0x01, "LO", "CANARYPRIVATE")
    content.save_as(path)


def damage(folder: Path) -> None:
    path = folder / "slice_0004.dcm"
    if folder.name == "gap":
        path.unlink()
    elif folder.name == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    elif folder.name == "garbled":
        content = path.read_bytes()
        at = content.rindex(b"\x28\x00\x30\x00DS") + 8  # the pixel spacing becomes a part of a name
        path.write_bytes(content[:at] + b"CANA" + content[at + 4 :])


def test_only_the_dicom_masks_carry_who_the_patient_is(inputs, tmp_path, capfd, caplog):
    checkpoint, scans = inputs
    output = tmp_path / "masks"
    with caplog.at_level(logging.DEBUG):
        code = infer.main(
            [
                "--input",
                str(scans),
                "--output",
                str(output),
                "--checkpoint",
                str(checkpoint),
                "--device",
                "cpu",
                "--no-tta",
                "--format",
                "nifti,organs,seg,rtstruct",
                "--probabilities",
                "--save-uncertainty",
                "--statistics",
                "--set",
                "evaluate.overlap=0",
            ]
        )
    said = capfd.readouterr()
    assert code == 3
    record = artifacts.read_json(output / "inference.json")
    assert {scan["scan"]: scan.get("error") for scan in record["scans"]} == {
        "good": None,
        "gap": "SLICE_GAP",
        "truncated": "DICOM_TRUNCATED",
        "garbled": "DICOM_CORRUPT",
        "without_rescale": "RESCALE_MISSING",
    }
    for text in (said.out, said.err, caplog.text):
        assert not any(mark.decode() in text for mark in MARKS)
    files = [path for path in output.rglob("*") if path.is_file()]
    kinds = {path.name.split(".", 1)[1] for path in files}
    assert kinds == {"nii.gz", "dcm", "json", "csv"}
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        assert not any(mark in str(path).encode() for mark in MARKS)
        if path.suffix == ".dcm":
            stored = pydicom.dcmread(path)
            # a PACS files it by these
            assert {keyword: str(stored[keyword].value) for keyword in FILED if keyword in stored} == FILED, (
                path.name
            )
            for value in FILED.values():
                content = content.replace(value.encode(), b"")
        assert not any(mark in content for mark in MARKS), path.name


def test_the_marks_would_be_found(inputs):
    """The search of the other test, on what went in."""
    _, scans = inputs
    content = (scans / "good" / "slice_0001.dcm").read_bytes()
    for value in [*FILED.values(), *HIDDEN.values(), "CANARYPRIVATE", "CANARYMAKER"]:
        assert value.encode() in content
