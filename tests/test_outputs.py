"""Nothing that is written takes the place of something that was given, on the real command lines."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import analyze
import evaluate
import preprocessing
import run_pipeline
import train
import visualize
from ctseg import artifacts, outputs
from ctseg.errors import ResourceError, UsageError
from ctseg.geometry.volume import Grid
from ctseg.manifest import Case, StoredFile


def contents(*roots: Path) -> dict[str, str]:
    """sha256 of every file below the folders."""
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_maps(folder: Path, *names: str) -> Path:
    """Label maps of one box, and labels.json beside them."""
    folder.mkdir(parents=True)
    array = np.zeros((16, 16, 16), np.uint8)
    array[4:12, 5:12, 4:11] = 1
    for name in names:
        nib.save(nib.Nifti1Image(array, np.diag([-3.0, -3.0, 3.0, 1.0])), folder / f"{name}.nii.gz")
    artifacts.write_json(folder / "labels.json", {"1": "liver"})
    return folder


@pytest.mark.parametrize(
    ("target", "given"),
    [
        ("data/scan.nii.gz", "data/scan.nii.gz"),
        ("data/scan.nii.gz", "data"),
        ("data/deep/er/x.json", "data"),
        ("hard/scan.nii.gz", "data/scan.nii.gz"),
        ("soft/scan.nii.gz", "data/scan.nii.gz"),
        ("link/x.json", "data"),
        ("link/deep/x.json", "data"),
        ("data/../data/x.json", "data"),
        ("data/x.json", "link"),
    ],
)
def test_a_target_over_or_in_an_input_is_refused_by_name(target, given, tmp_path):
    write_maps(tmp_path / "data", "scan")
    for name in ("hard", "soft"):
        (tmp_path / name).mkdir()
    os.link(tmp_path / "data" / "scan.nii.gz", tmp_path / "hard" / "scan.nii.gz")
    (tmp_path / "soft" / "scan.nii.gz").symlink_to(tmp_path / "data" / "scan.nii.gz")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(UsageError, match="OUTPUT_OVER_INPUT"):
        outputs.keep_inputs([tmp_path / "free.json", tmp_path / target], [None, tmp_path / given])


def test_what_touches_no_input_is_allowed_and_two_results_of_one_name_are_not(tmp_path):
    data = write_maps(tmp_path / "data", "scan")
    outputs.keep_inputs(
        [tmp_path / "out" / "scan.nii.gz", tmp_path / "data.json"],
        [data, data / "scan.nii.gz", tmp_path / "gone"],
    )
    outputs.keep_inputs([data / "masks" / "scan.nii.gz"], [data], below=False)
    with pytest.raises(UsageError, match="OUTPUT_OVER_INPUT"):
        outputs.keep_inputs([data / "scan_mask.nii.gz"], [data], below=False)
    with pytest.raises(UsageError, match="TARGET_TWICE"):
        outputs.keep_inputs([tmp_path / "Scan.nii.gz", tmp_path / "scan.nii.gz"], [])


def test_case_of_names_does_not_matter_where_the_system_ignores_it(tmp_path, monkeypatch):
    data = write_maps(tmp_path / "data", "scan")
    stat = Path.stat
    monkeypatch.setattr(
        Path, "stat", lambda self, **how: stat(Path(str(self).replace("SCAN", "scan")), **how)
    )
    with pytest.raises(UsageError, match="OUTPUT_OVER_INPUT"):
        outputs.keep_inputs([data / "SCAN.nii.gz"], [data / "scan.nii.gz"])


@pytest.mark.parametrize("output", ["prediction", "reference", "reference/scores", "names"])
def test_scores_are_never_written_among_masks(output, tmp_path, capsys):
    reference, prediction = (
        write_maps(tmp_path / "reference", "a", "b"),
        write_maps(tmp_path / "prediction", "a", "b"),
    )
    (tmp_path / "names").mkdir()
    # as nnU-Net calls its scores, and so do we
    names = (reference / "labels.json").rename(tmp_path / "names" / "summary.json")
    before = contents(tmp_path)
    words = [
        "--reference",
        str(reference),
        "--prediction",
        str(prediction),
        "--labels",
        str(names),
        "--no-plots",
        "--workers",
        "1",
        "--output",
    ]
    assert (
        evaluate.main([*words, str(tmp_path / output)]) == 2
        and "OUTPUT_OVER_INPUT" in capsys.readouterr().err
    )
    assert contents(tmp_path) == before
    for _ in range(2):  # over its own earlier results it may
        assert evaluate.main([*words, str(tmp_path / "scores")]) == 0
    assert before.items() <= contents(tmp_path).items()


@pytest.mark.parametrize(
    "words",
    [
        ["--stills", "{masks}"],
        ["--output", "{masks}/tour.gif"],
        ["--sheet", "{ct}/sheet.png", "--ct", "{ct}"],
        ["--stills", "{reference}/pictures", "--reference", "{reference}"],
    ],
)
def test_pictures_are_never_written_among_masks_and_slices(words, tmp_path, capsys):
    places = {
        "masks": write_maps(tmp_path / "masks", "liver"),
        "reference": write_maps(tmp_path / "reference", "liver"),
        "ct": tmp_path / "series",
    }
    places["ct"].mkdir()
    before = contents(tmp_path)
    assert visualize.main(["--input", str(places["masks"]), *(word.format(**places) for word in words)]) == 2
    assert "OUTPUT_OVER_INPUT" in capsys.readouterr().err and contents(tmp_path) == before


@pytest.mark.parametrize(
    "words",
    [
        ["--workspace", "data"],
        ["--workspace", "data/run"],
        ["--workspace", "link"],
        ["--workspace", "w", "--processed", "data/x"],
        ["--workspace", "linked"],
        ["--workspace", "data/case_0/../../w/../data"],
    ],
)
@pytest.mark.parametrize("stage", [preprocessing, train, evaluate, analyze, run_pipeline])
def test_a_workspace_among_the_scans_is_refused(stage, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_maps(tmp_path / "data" / "case_0", "ct")
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "linked" / "evaluation_results").mkdir(parents=True)
    (tmp_path / "linked" / "evaluation_results" / "predictions").symlink_to(tmp_path / "data")
    before = contents(tmp_path)
    more = ["--preprocess"] if stage is run_pipeline else []
    assert (
        stage.main(["--data", "data", *words, *more]) == 2 and "OUTPUT_OVER_INPUT" in capsys.readouterr().err
    )
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "words",
    [
        ["--data", "w/evaluation_results/data"],
        ["--data", "data", "--guide-model", "w/checkpoints/best_model.pth"],
        ["--data", "data", "--guide", "w/evaluation_results/data", "--set", "data.guide_organs=liver"],
    ],
)
def test_scans_and_guides_where_results_would_replace_them_are_refused(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("data", "w/evaluation_results/data", "w/checkpoints"):
        write_maps(tmp_path / place / "case_0", "ct")
    (tmp_path / "w/checkpoints/best_model.pth").touch()
    before = contents(tmp_path)
    assert (
        run_pipeline.main(["--all", "--workspace", "w", *words]) == 2
        and "OUTPUT_OVER_INPUT" in capsys.readouterr().err
    )
    assert contents(tmp_path) == before


def test_files_of_others_in_a_shared_folder_of_tensors_stay(tmp_path):
    workspace = artifacts.Workspace(tmp_path / "w", tmp_path / "mine")
    mine = write_maps(workspace.references, "mine")
    made = workspace.references / "case.nii.gz"
    made.touch()
    reference = StoredFile("references/case.nii.gz", "")
    case = Case("case", "case", {}, {}, Grid((1, 1, 1), np.eye(4)), reference=reference)
    preprocessing.remove_stale(workspace, [case], [])
    assert not made.exists() and (mine / "mine.nii.gz").exists()


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, capsys):
    masks = write_maps(tmp_path / "masks", "a")
    (tmp_path / "file").touch()
    words = ["--reference", str(masks), "--prediction", str(masks), "--no-plots", "--output"]
    for place in (tmp_path / "file", tmp_path / "file" / "deep", tmp_path / ("x" * 300)):
        assert evaluate.main([*words, str(place)]) == 6
        said = capsys.readouterr().err
        assert said.startswith("ERROR ") and str(place) in said and "Traceback" not in said
    with pytest.raises(ResourceError, match="NOT_A_FOLDER"):
        outputs.require_writable(tmp_path / "file")
