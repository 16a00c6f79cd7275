"""The search for scans: links, split series, nested folders, several patients; and that nothing is left out
without a word.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from builders import small_phantom
from pydicom.uid import MediaStorageDirectoryStorage, generate_uid

import infer
from ctseg import artifacts
from ctseg.datasets import case_sources, find_scans, load_case
from ctseg.datasets.case import CaseRecord
from ctseg.datasets.layouts import open_data_set
from ctseg.errors import CaseError, PreconditionError, UsageError
from ctseg.geometry.volume import Volume
from ctseg.scans.dicom import dicom_series
from ctseg.scans.formats import nifti
from ctseg.scans.formats.folder_walk import walk

PHANTOM = small_phantom()


def ct(folder: Path, patient: str, *, number: int = 1, slices: int = 10, **edits: str) -> Path:
    """A series of the phantom, its own for each patient and number; edits: elements set in every file."""
    dicom_series.write_series(
        folder,
        Volume(PHANTOM.image.array[:slices], PHANTOM.image.affine),
        patient_id=patient,
        series_number=number,
        seed=len(patient),
    )
    for path in folder.iterdir() if edits else ():
        content = pydicom.dcmread(path)
        for keyword, value in edits.items():
            setattr(content, keyword, value)
        content.save_as(path)
    return folder


def volume(path: Path) -> None:
    nifti.write_image(path, PHANTOM.image)


def link(place: Path, target: Path | str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


def told(root: Path) -> tuple[list[str], dict[str, str]]:
    """(names of the scans, place -> code of what was left out; a lost scan's code in capitals, else lower
    case). Every scan is read.
    """
    scans, findings = find_scans.search(root)
    for source in scans.values():
        assert np.array_equal(load_case.load_image(source)[0].array, PHANTOM.image.array)
    return list(scans), {
        finding.file: finding.code if finding.severity == "ERROR" else finding.code.lower()
        for finding in findings
    }


# ---- links ------------------------------------------------------------------------------------------------


def test_a_cohort_of_links_into_an_archive_is_found(tmp_path):
    for name in ("p1", "p2"):
        ct(tmp_path / "archive" / name / "series", name)
        link(tmp_path / "cohort" / name, tmp_path / "archive" / name)
    volume(tmp_path / "archive/p3/ct.nii.gz")
    link(tmp_path / "cohort/p3", tmp_path / "archive/p3")
    for path in ct(tmp_path / "archive/p4", "four").iterdir():
        link(tmp_path / "cohort/p4" / path.name, path)
    assert told(tmp_path / "cohort") == (["p1", "p2", "p4", "p3"], {})
    link(tmp_path / "linked", tmp_path / "cohort")
    assert told(tmp_path / "linked") == (["p1", "p2", "p4", "p3"], {})
    record = [
        CaseRecord("p", "p", source, None) for source in find_scans.search(tmp_path / "cohort")[0].values()
    ]
    # the hash sees the files behind the links
    assert len({case_sources.source_hash(case) for case in record[:3]}) == 3


def test_links_in_circles_end_and_a_folder_counts_once(tmp_path):
    ct(tmp_path / "in/p1/s", "p1")
    ct(tmp_path / "archive/p2/s", "p2")
    link(tmp_path / "in/p1/up", tmp_path / "in")
    link(tmp_path / "in/above", tmp_path)
    link(tmp_path / "in/p2", tmp_path / "archive/p2")
    link(tmp_path / "in/p2_again", tmp_path / "archive/p2")
    link(tmp_path / "archive/p2/back", tmp_path / "in/p1")
    scans, findings = find_scans.search(tmp_path / "in")
    assert list(scans) == ["p1", "p2"] and [(finding.severity, finding.code) for finding in findings] == [
        ("NOTE", "LINK_TWICE")
    ]
    assert "and 3 more" in findings[0].cause


def test_a_folder_below_a_thousand_others_is_found(tmp_path):
    folders = [tmp_path / "in"]
    for _ in range(1100):
        folders.append(folders[-1] / "d")
    for folder in folders:
        folder.mkdir()
    try:
        assert [place for place, _, _ in walk(folders[0])] == folders
    finally:
        for folder in reversed(folders):  # what tidies up after tests would recurse
            folder.rmdir()


def test_links_that_lead_nowhere_are_lost_scans(tmp_path):
    ct(tmp_path / "p1/s", "p1")
    link(tmp_path / "p2", "/nowhere/p2")
    link(tmp_path / "p3", "p3")
    for number in range(5):
        link(tmp_path / f"p4/{number}.dcm", f"/nowhere/{number}.dcm")
    assert told(tmp_path) == (["p1"], {"p2": "FILE_MISSING", "p3": "FILE_MISSING", "p4": "FILE_MISSING"})


# ---- series -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "p1"])
def test_a_series_spread_over_folders_is_one_scan(tmp_path, place):
    for number, path in enumerate(sorted(ct(tmp_path / "whole", "p1").iterdir())):
        folder = tmp_path / "in" / place / f"part{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    assert told(tmp_path / "in") == ([place or "in"], {})


def test_what_shares_a_series_uid_without_being_parts_of_one_scan_stays_apart(tmp_path):
    first = ct(tmp_path / "a/s", "x")
    shutil.copytree(first, tmp_path / "copy/s")
    ct(tmp_path / "other_patient/s", "x", PatientID="y")
    for path in shutil.copytree(first, tmp_path / "other_slices/s").iterdir():
        content = pydicom.dcmread(path)
        content.SOPInstanceUID = generate_uid()
        content.save_as(path)
    assert told(tmp_path) == (["a", "copy", "other_patient", "other_slices"], {})
    for path in (tmp_path / "other_patient/s").iterdir():
        path.rename(first / f"y_{path.name}")
    with pytest.raises(CaseError, match="MULTI_PATIENT"):
        load_case.load_image(find_scans.search(tmp_path)[0]["a_1"])


def test_several_patients_in_one_folder_and_equal_names_below_several(tmp_path):
    for name in ("p1", "p22"):
        for path in ct(tmp_path / "flat" / name, name).iterdir():
            path.rename(tmp_path / "flat" / f"{name}_{path.name}")
        (tmp_path / "flat" / name).rmdir()
    assert told(tmp_path / "flat") == (["flat_1", "flat_2"], {})
    for name in ("p1", "p22"):
        ct(tmp_path / "deep" / name / "study/series", name)
    assert told(tmp_path / "deep") == (["p1", "p22"], {})


def test_any_suffix_will_do(tmp_path):
    for path, suffix in zip(
        sorted(ct(tmp_path / "in/p", "p").iterdir()),
        [".IMA", ".DCM", "", ".1", ".img", ".txt", ".bin", ".PNG", ".json", ".dicom"],
    ):
        path.rename(path.with_name(path.stem + suffix))
    volume(tmp_path / "in/q.nii.gz")
    (tmp_path / "in/q.nii.gz").rename(tmp_path / "in/q.NII.GZ")
    assert told(tmp_path / "in") == (["p", "q"], {})


def test_a_directory_of_another_name_does_not_spoil_its_folder(tmp_path):
    """Philips writes DIRFILE into every folder: a DICOMDIR, whose class stands in the file header alone."""
    ct(tmp_path / "S1/S10", "p")
    directory = pydicom.Dataset()
    directory.DirectoryRecordSequence = []
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID, directory.file_meta.TransferSyntaxUID = (
        generate_uid(),
        pydicom.uid.ExplicitVRLittleEndian,
    )
    for place in ("DICOMDIR", "S1/DIRFILE", "S1/S10/DIRFILE"):
        pydicom.dcmwrite(tmp_path / place, directory, enforce_file_format=True)
    assert told(tmp_path) == (["S1"], {"S1/DIRFILE": "other_files"})
    with pytest.raises(UsageError, match="single DICOM file"):
        find_scans.search(tmp_path / "DICOMDIR")


# ---- what is no scan --------------------------------------------------------------------------------------


def test_other_modalities_scouts_and_damaged_series_are_told(tmp_path):
    ct(tmp_path / "p1/ct", "p1")
    ct(tmp_path / "p1/mr", "p1", number=2, Modality="MR")
    ct(tmp_path / "p1/scout", "p1", number=3, slices=2)
    ct(tmp_path / "same_study", "p1", number=4, Modality="PT")
    ct(tmp_path / "p22/mr", "p22", Modality="MR")
    for path in ct(tmp_path / "p333", "p333").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    for path in ct(tmp_path / "p4444", "p4444").iterdir():
        path.write_bytes(path.read_bytes()[132:])
    names, left_out = told(tmp_path)
    assert names == ["p1"]
    assert left_out == {
        "p1/mr": "extra_series",
        "p1/scout": "extra_series",
        "same_study": "extra_series",
        "p22/mr": "NOT_CT",
        "p333": "DICOM_TRUNCATED",
        "p4444": "DICOM_CORRUPT",
    }
    with pytest.raises(PreconditionError, match=r"NO_DATA.*modality MR"):
        find_scans.search(tmp_path / "p22")


def test_files_in_folders_of_patients_are_found_and_masks_are_not_scans(tmp_path):
    for place in (
        "x",
        "p1/ct",
        "p2/ct",
        "p3/day1",
        "p3/day2",
        "p2/labels",
        "p1/segmentations/liver",
        "results/x",
        "results/x/liver",
        ".hidden/y",
    ):
        volume(tmp_path / f"{place}.nii.gz")
    (tmp_path / "results/inference.json").write_text("{}")
    (tmp_path / "scans.zip").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.nii.gz").mkdir()
    names, left_out = told(tmp_path)
    assert names == ["x", "p1", "p2", "p3_day1", "p3_day2"]
    assert left_out == {
        "p2/labels.nii.gz": "labels",
        "results/x.nii.gz": "labels",
        "p1/segmentations/liver.nii.gz": "labels",
        ".hidden": "other_files",
        "empty": "other_files",
        "scans.zip": "ARCHIVE_INPUT",
        "folder.nii.gz": "NOT_REGULAR",
    }


def test_one_scan_is_asked_for_by_name(tmp_path):
    volume(tmp_path / "p1/ct.nii.gz")
    assert find_scans.find_one(tmp_path, option="--ct").path.name == "ct.nii.gz"
    volume(tmp_path / "p2/ct.nii.gz")
    with pytest.raises(UsageError, match=r"2 scans .*after --ct \(p1, p2\)"):
        find_scans.find_one(tmp_path, option="--ct")


def test_infer_counts_a_lost_scan_as_one_that_failed(tmp_path, monkeypatch, capsys):
    """On the command line: exit code 3, a line, a record; `finished` all the same."""
    ct(tmp_path / "in/p1", "p1")
    ct(tmp_path / "in/p22", "p22", Modality="MR")

    class Stub:
        names, labels, takes_guide = ("a",), {1: "a"}, False
        why_no_confidence = why_not_mirrored = None
        machine = type("Machine", (), {"reason": "none", "device": "cpu"})

        def __init__(self):
            self.checkpoint = {"arch": {"name": "stub"}, "synthetic": True}

    (tmp_path / "m.pth").write_bytes(b"x")
    monkeypatch.setattr("ctseg.prediction.predictor.load_predictor", lambda *_, **__: Stub())
    monkeypatch.setattr("ctseg.prediction.predictor.ensemble", lambda members: members[0])
    monkeypatch.setattr("ctseg.runtime.hardware.peak_memory_gb", lambda _: 0.0)
    monkeypatch.setattr(
        "ctseg.prediction.new_scans.Inference.predict", lambda self, name, *_: {"scan": name, "files": {}}
    )
    assert (
        infer.main(
            [
                "--input",
                str(tmp_path / "in"),
                "--output",
                str(tmp_path / "out"),
                "--checkpoint",
                str(tmp_path / "m.pth"),
            ]
        )
        == 3
    )
    record = artifacts.read_json(tmp_path / "out/inference.json")
    assert [(scan["scan"], scan.get("error")) for scan in record["scans"]] == [
        ("p22", "NOT_CT"),
        ("p1", None),
    ] and record["finished"]
    out = capsys.readouterr().out
    assert "ERROR NOT_CT case=p22" in out and "1 masks" in out and "1 scans left out" in out


# ---- preprocessing ----------------------------------------------------------------------------------------


def test_training_data_behind_links_are_refused_by_name(tmp_path):
    """P08: what lies outside the data folder is not read, and every patient there is named."""
    from ctseg.scans.dicom import dicom_seg

    for name in ("p1", "p22", "p333"):
        home = tmp_path / ("data" if name == "p1" else "archive") / name
        dicom_seg.write_segments(home / "seg.dcm", PHANTOM.label, PHANTOM.names, ct(home / "ct", name))
    link(tmp_path / "data/p22", tmp_path / "archive/p22")
    link(tmp_path / "data/p333/inner", tmp_path / "archive/p333")
    link(tmp_path / "data/gone", "/nowhere")
    for path in ct(tmp_path / "data/damaged", "damaged").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    ct(tmp_path / "data/mr", "mr", Modality="MR")
    data = open_data_set(tmp_path / "data")
    assert [case.case_id for case in data.cases] == ["p1"]
    refused = {finding.case: finding.code for finding in data.findings if finding.severity == "ERROR"}
    assert refused == {
        "p22": "LINK_OUTSIDE",
        "p333_inner": "LINK_OUTSIDE",
        "gone": "FILE_MISSING",
        "damaged": "DICOM_TRUNCATED",
        "mr": "NOT_CT",
    }
    followed = open_data_set(tmp_path / "data", follow_links=True)  # the remedy that the message names
    assert [case.case_id for case in followed.cases] == ["p1", "p22", "p333"]
    read = [load_case.load_case(case, followed.structures, root=followed.root) for case in followed.cases]
    assert all(np.array_equal(case.label.array > 0, read[0].label.array > 0) for case in read)
