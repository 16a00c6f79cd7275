"""The same patients as NIfTI and as DICOM CT with SEG: the same tensors, the same predictions."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import Phantom, small_phantom, write_abdomenatlas, write_dicom_seg
from tiny_runs import words_of
from tiny_workspace import read_tensor

import infer
import run_pipeline
from ctseg import artifacts
from ctseg.datasets.layouts import open_data_set
from ctseg.datasets.splits import splits_record
from ctseg.geometry.volume import Volume, to_canonical
from ctseg.scans.formats import volume_files

pytestmark = pytest.mark.usefixtures("small_tensors")

TINY = [
    *("--workers", "1", "--epochs", "1", "--profile", "cpu", "--model", "unet", "--device", "cpu"),
    *words_of(
        **{
            "train.steps_per_epoch": 15,
            "train.learning_rate": 0.02,
            "train.ema_decay": 0.8,
            "train.precision": "fp32",
            "train.patch_size": "32,32,32",
            "model.levels": 3,
            "model.width": 4,
            "train.validations": 1,
            "data.grid": "whole",
        }
    ),
]
REAL = {5: "liver", 21: "urinary_bladder"}  # ids of TotalSegmentator's `total`


def real_patients(folder: Path) -> dict[str, Phantom]:
    """Four overlapping parts of the one CT, every second voxel of it, as patients: what is compared is the
    two forms, not the model.
    """
    image = halved(to_canonical(volume_files.read_image(folder / "example_ct.nii.gz")[0]))
    label = halved(
        to_canonical(volume_files.read_integers(folder / "example_seg_fast_force_split.nii.gz")[0])
    )
    kept = np.zeros(label.array.shape, dtype=np.uint8)
    for number, value in enumerate(REAL, start=1):
        kept[label.array == value] = number
    names = dict(enumerate(REAL.values(), start=1))
    patients = {}
    for number in range(4):
        part = slice(number * 3, number * 3 + 38)
        affine = image.grid.crop((part.start, 0, 0), image.grid.shape).affine
        patients[f"part_{number}"] = Phantom(
            Volume(np.rint(image.array[part]), affine), Volume(kept[part], affine), names
        )
    return patients


def halved(volume: Volume) -> Volume:
    """Every second voxel along every axis."""
    affine = volume.affine.copy()
    affine[:3, :3] *= 2
    return Volume(np.ascontiguousarray(volume.array[::2, ::2, ::2]), affine)


def preprocess(root: Path, data: Path) -> artifacts.Workspace:
    words = ["--preprocess", "--data", str(data), "--workspace", str(root)]
    assert run_pipeline.main([*words, *TINY]) == 0
    return artifacts.Workspace(root)


def compare(root: Path, patients: dict[str, Phantom]) -> None:
    """Tensors of both forms, and the probabilities that one network, trained on one form, gives the scans of
    both.
    """
    write_abdomenatlas(root / "nifti", patients, combined=True)
    write_dicom_seg(root / "dicom", patients)
    first = preprocess(root / "a", root / "nifti")
    manifest = artifacts.read_json(first.manifest)
    patient = {case["case_id"]: case["patient_id"] for case in manifest["cases"]}
    # patients are called otherwise in DICOM: give them the same split
    splits = artifacts.read_json(first.processed / "splits.json")
    other = {case.case_id: case.patient_id for case in open_data_set(root / "dicom", None).cases}
    assignment = {other[case]: splits["assignment"][patient[case]] for case in patient}
    artifacts.write_json(
        root / "b" / "processed_data" / "splits.json", splits_record(assignment, splits["seed"])
    )
    second = preprocess(root / "b", root / "dicom")
    twins = artifacts.read_json(second.manifest)
    for one, twin in zip(manifest["cases"], twins["cases"]):
        assert all(one[key] == twin[key] for key in ("case_id", "split", "states"))
        for mine, theirs in zip(one["tensors"], twin["tensors"]):
            image, label = read_tensor(first.processed / mine["file"])
            image_twin, label_twin = read_tensor(second.processed / theirs["file"])
            difference = np.abs(image.astype(float) - image_twin.astype(float)).max()
            assert np.array_equal(label, label_twin) and difference <= 2e-3, one["case_id"]

    assert run_pipeline.main(["--train", "--workspace", str(first.root), *TINY]) == 0
    chosen = next(number for number, case in enumerate(manifest["cases"]) if case["split"] == "test")
    scans = (
        open_data_set(root / "nifti", None).cases[chosen],
        open_data_set(root / "dicom", None).cases[chosen],
    )
    given = []
    for number, scan in enumerate(scans):
        output = root / f"masks_{number}"
        words = ["--input", str(scan.image.path), "--output", str(output), "--device", "cpu", "--no-tta"]
        words += ["--checkpoint", str(first.best_model), "--set", "evaluate.overlap=0", "--probabilities"]
        assert infer.main(words) == 0
        files = sorted(output.glob("*_probabilities/*.nii.gz"))
        given.append([nib.as_closest_canonical(nib.load(file)).get_fdata() for file in files])
    for one, twin in zip(*given, strict=True):  # the intensities differ by their rounding
        assert one.shape == twin.shape and one.std() > 0.01  # else equality says nothing
        assert np.abs(one - twin).max() < 0.05 and np.abs(one - twin).mean() < 1e-3


@pytest.mark.slow
def test_synthetic_patients_as_nifti_and_as_dicom(tmp_path):
    compare(tmp_path, {f"case_{seed}": small_phantom(seed=seed) for seed in range(4)})


@pytest.mark.slow
def test_a_real_scan_as_nifti_and_as_dicom(tmp_path, real_data):
    compare(tmp_path, real_patients(real_data / "totalseg" / "tests" / "reference_files"))
