"""What infer.py gives for whole studies: the masks of the evaluation, DICOM that reads back, series at every
depth.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import highdicom
import numpy as np
import pytest
import tiny_workspace
from independent_dicom import in_order, seg_masks, structure_masks
from infer_pairs import infer_test_cases
from tiny_runs import run, words_of

import infer
import train
from ctseg import artifacts
from ctseg.datasets.find_scans import search
from ctseg.errors import UsageError
from ctseg.geometry import grids
from ctseg.geometry.volume import match_grid
from ctseg.prediction import predictor
from ctseg.runtime import checkpoints
from ctseg.scans.dicom import dicom_files, dicom_seg, dicom_series, rtstruct
from ctseg.scans.formats import volume_files

pytestmark = [pytest.mark.usefixtures("small_tensors"), pytest.mark.slow]


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--model", "unet", "--structures", "bladder,sacrum"], {"data.grid": "whole"}),
        (
            ["--model", "multipass_unet", "--structures", "bladder"],
            {"data.grid": "windows", "data.spacing_mm": 6, "evaluate.flip": False},
        ),
    ],
    ids=["whole, mirrored", "windows, passes"],
)
def test_infer_gives_what_the_evaluation_saw(tmp_path, cohorts, words, settings):
    workspace = run(tmp_path / "work", cohorts["pelvis"] / "nifti", *words, *words_of(**settings))
    own = {key: value for key, value in settings.items() if key.startswith("evaluate")}
    code, pairs = infer_test_cases(workspace, tmp_path / "new", *words_of(**own))
    assert code == 0 and all(np.array_equal(a, b) for a, b in pairs)


def test_roi_cuts_training_tensors_around_the_structures_and_tests_without_looking(tmp_path, cohorts):
    """And new scans get what the evaluation saw."""
    plain = words_of(**{"evaluate.flip": False})
    words = ["--structures", "bladder", "--model", "unet", *plain]
    settings = words_of(**{"data.grid": "roi", "data.spacing_mm": 4})
    workspace = run(tmp_path / "work", cohorts["pelvis"] / "nifti", *words, *settings)
    manifest = artifacts.read_json(workspace.manifest)
    for case in manifest["cases"]:
        canvas = case["canvas"]["shape"]
        origins = np.array([tensor["origin"] for tensor in case["tensors"]])
        covered = origins.max(0) + grids.TENSOR_SIZE - origins.min(0)
        if case["split"] == "train":
            assert (covered == grids.TENSOR_SIZE).all() or case["voxels"][
                "bladder"
            ] == 0  # one tensor of full resolution
        else:
            assert (covered == canvas).all()  # nobody may know where the structure lies
        assert case["locator"]["canvas"]["shape"] == [grids.TENSOR_SIZE] * 3
    assert checkpoints.load(workspace.best_model)["locator"]["arch"]["name"] == "unet"
    for case in artifacts.read_json(workspace.run_record)["cases"]:
        assert case["located"] == (case["region"] is not None)
    code, pairs = infer_test_cases(workspace, tmp_path / "new", *plain)
    assert code == 0 and all(np.array_equal(a, b) for a, b in pairs)


def test_infer_finds_series_at_every_depth_and_refuses_two_scans_of_one_name(tmp_path, cohorts):
    series, other = [
        found.folder for found in dicom_files.find(cohorts["pelvis"]).series if found.modality == "CT"
    ][:2]
    exported = tmp_path / "export"
    shutil.copytree(series, exported)
    assert list(search(exported)[0]) == ["export"]
    (exported / "empty").mkdir()  # a folder beside the slices does not hide them
    assert list(search(exported)[0]) == ["export"]
    shutil.copytree(other, exported / "other patient" / "study" / "ct")
    assert sorted(search(exported)[0]) == ["export", "other patient"]
    assert sorted(search(tmp_path)[0]) == ["export_1", "export_2"]
    shutil.copy(next((cohorts["pelvis"] / "nifti").rglob("ct.nii.gz")), tmp_path / "export_1.nii.gz")
    with pytest.raises(UsageError, match="both called"):
        search(tmp_path)


STRUCTURES = ["bladder", "rectum", "sacrum"]


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A network that has hardly learned, for three structures of the pelvis."""
    workspace = tiny_workspace.make(tmp_path / "work", cases=3)
    settings = {"train.epochs": 1, "train.steps_per_epoch": 1, "model.width": 2}
    assert train.main(tiny_workspace.arguments(workspace, **settings)) == 0
    content = checkpoints.load(workspace.best_model)
    checkpoints.save(workspace.best_model, content | {"structures": STRUCTURES, "largest_component": []})
    return workspace.best_model


def test_infer_writes_dicom_that_reads_back_as_the_same_mask(
    tmp_path, cohorts, checkpoint, monkeypatch, capsys
):
    """Scan -> infer.py -> SEG and RTSTRUCT -> our readers, highdicom and an independent filler -> the same
    mask.

    The network's prediction is the reference, with a hole in one structure and an island of another.
    """
    series = next(found for found in dicom_files.find(cohorts["pelvis"]).series if found.modality == "CT")
    image, *_ = dicom_series.read_series(series.folder)
    reference, _ = dicom_seg.read_segments(series.folder.parent / "im_3" / "seg.dcm", image, series.folder)
    predicted = np.zeros(image.array.shape, np.uint8)
    for number, name in enumerate(STRUCTURES, start=1):
        predicted[reference[name]] = number
    d, h, w = np.median(np.argwhere(predicted == 1), axis=0).astype(int)
    assert (predicted[d - 1 : d + 2, h - 2 : h + 3, w - 2 : w + 3] == 1).all()
    predicted[d, h - 1 : h + 2, w - 1 : w + 2] = 0  # the hole
    assert not predicted[3:6, 2:6, 2:7].any()
    predicted[3:6, 2:6, 2:7] = 2  # the island
    plain = predictor.Predictor.predict

    def predict(self, case, **more):
        return predictor.dataclasses.replace(plain(self, case, **more), label=predicted)

    monkeypatch.setattr(predictor.Predictor, "predict", predict)
    output = tmp_path / "masks"
    words = ["--output", str(output), "--checkpoint", str(checkpoint), "--set", "evaluate.overlap=0"]
    words += ["--format", "nifti,seg,rtstruct", "--statistics"]
    assert infer.main(["--input", str(series.folder), *words]) == 0
    name = series.folder.name
    seg, contours = output / f"{name}_seg.dcm", output / f"{name}_rtstruct.dcm"
    label = volume_files.read_integers(output / f"{name}.nii.gz")[0]
    assert np.array_equal(match_grid(label, image.grid, tolerance=1e-3).array, predicted)
    names = {int(number): name for number, name in artifacts.read_json(output / "labels.json").items()}
    assert names == dict(enumerate(STRUCTURES, start=1))
    with (output / "statistics.csv").open() as stream:
        rows = {row["structure"]: row for row in csv.DictReader(stream)}
    segments, _ = dicom_seg.read_segments(seg, image, series.folder)
    read_back, _ = rtstruct.read_structures(contours, image, series.folder)
    voxel_ml = np.prod(image.grid.spacing_mm) / 1000
    for number, structure in names.items():
        mask = predicted == number
        assert mask.any() and np.array_equal(segments[structure], mask)
        assert np.array_equal(read_back[structure], mask)
        assert float(rows[structure]["volume_ml"]) == pytest.approx(mask.sum() * voxel_ml, abs=1e-3)
        assert float(rows[structure]["mean_hu"]) == pytest.approx(image.array[mask].mean(), abs=0.01)
    slices = in_order(series.folder, label)
    for masks in (seg_masks(seg, slices), structure_masks(contours, slices)):
        assert set(masks) == set(STRUCTURES)
        assert all(np.array_equal(masks[name], label.array == number) for number, name in names.items())
    description = highdicom.seg.segread(seg).get_segment_description(1)
    assert str(description.algorithm_type.value) == "AUTOMATIC"
    assert description.segmented_property_type.scheme_designator == "SCT"
    scan = next((cohorts["pelvis"] / "nifti").rglob("ct.nii.gz"))
    assert infer.main(["--input", str(scan), *words]) == 2
    assert "--format nifti" in capsys.readouterr().err
