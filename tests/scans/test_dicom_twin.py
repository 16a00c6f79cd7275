"""The same patients as NIfTI and as DICOM CT with SEG: the same tensors, the same scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import Phantom, small_phantom, write_abdomenatlas, write_dicom_seg

import run_pipeline
from ctseg import artifacts
from ctseg.geometry.volume import Volume, to_canonical
from ctseg.scans.datasets.layouts import open_data_set
from ctseg.scans.datasets.splits import splits_record
from ctseg.scans.formats import volume_files

TINY = [
    "--workers",
    "1",
    "--epochs",
    "3",
    "--profile",
    "cpu",
    "--model",
    "unet",
    "--set",
    "train.steps_per_epoch=80",
    "--set",
    "train.patch_size=32,32,32",
    "--set",
    "model.levels=3",
    "--set",
    "model.width=4",
    "--set",
    "train.validations=1",
    "--set",
    "evaluate.overlap=0",
    "--set",
    "data.grid=whole",
    "--device",
    "cpu",
]
REAL = {5: "liver", 21: "urinary_bladder"}  # ids of TotalSegmentator's `total`


def real_patients(folder: Path) -> dict[str, Phantom]:
    """Six overlapping parts of the one CT, as patients: what is compared is the two forms, not the model."""
    image = to_canonical(volume_files.read_image(folder / "example_ct.nii.gz")[0])
    label = to_canonical(volume_files.read_integers(folder / "example_seg_fast_force_split.nii.gz")[0])
    kept = np.zeros(label.array.shape, dtype=np.uint8)
    for number, value in enumerate(REAL, start=1):
        kept[label.array == value] = number
    names = dict(enumerate(REAL.values(), start=1))
    patients = {}
    for number in range(6):
        part = slice(number * 6, number * 6 + 76)
        affine = image.grid.crop((part.start, 0, 0), image.grid.shape).affine
        patients[f"part_{number}"] = Phantom(
            Volume(np.rint(image.array[part]), affine), Volume(kept[part], affine), names
        )
    return patients


def compare(root: Path, patients: dict[str, Phantom]) -> None:
    write_abdomenatlas(root / "nifti", patients, combined=True)
    write_dicom_seg(root / "dicom", patients)
    first, second = artifacts.Workspace(root / "a"), artifacts.Workspace(root / "b")
    assert (
        run_pipeline.main(["--all", "--data", str(root / "nifti"), "--workspace", str(first.root), *TINY])
        == 0
    )
    patient = {case["case_id"]: case["patient_id"] for case in artifacts.read_json(first.manifest)["cases"]}
    splits = artifacts.read_json(
        first.processed / "splits.json"
    )  # patients are called otherwise in DICOM: give them the same split
    other = {case.case_id: case.patient_id for case in open_data_set(root / "dicom", None).cases}
    assignment = {other[case]: splits["assignment"][patient[case]] for case in patient}
    artifacts.write_json(second.processed / "splits.json", splits_record(assignment, splits["seed"]))
    assert (
        run_pipeline.main(["--all", "--data", str(root / "dicom"), "--workspace", str(second.root), *TINY])
        == 0
    )

    for one, twin in zip(
        *(artifacts.read_json(workspace.manifest)["cases"] for workspace in (first, second))
    ):
        assert (
            one["case_id"] == twin["case_id"]
            and one["split"] == twin["split"]
            and one["states"] == twin["states"]
        )
        for mine, theirs in zip(one["tensors"], twin["tensors"]):
            image, label = artifacts.read_tensor(first.processed / mine["file"])
            image_twin, label_twin = artifacts.read_tensor(second.processed / theirs["file"])
            assert (
                np.array_equal(label, label_twin)
                and np.abs(image.astype(float) - image_twin.astype(float)).max() <= 2e-3
            ), one["case_id"]
    scores = [
        artifacts.read_json(workspace.evaluation / "summary_statistics.json") for workspace in (first, second)
    ]
    assert scores[0]["headline"]["macro_dice"] > 0.05  # else equality says nothing
    assert scores[1]["headline"]["macro_dice"] == pytest.approx(scores[0]["headline"]["macro_dice"], abs=5e-3)
    assert scores[1]["headline"]["macro_nsd"] == pytest.approx(scores[0]["headline"]["macro_nsd"], abs=1e-2)


def test_synthetic_patients_as_nifti_and_as_dicom(tmp_path):
    compare(tmp_path, {f"case_{seed}": small_phantom(seed=seed) for seed in range(6)})


def test_a_real_scan_as_nifti_and_as_dicom(tmp_path, real_data):
    compare(tmp_path, real_patients(real_data / "totalseg" / "tests" / "reference_files"))
