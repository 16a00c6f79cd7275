"""All stages end to end on a tiny synthetic cohort, and what happens when one is missing."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_workspace

import run_pipeline
from ctseg import artifacts
from ctseg.geometry.volume import Volume
from ctseg.scans.formats import nifti, volume_files

TINY = [
    "--profile",
    "cpu",
    "--workers",
    "1",
    "--epochs",
    "2",
    "--set",
    "train.steps_per_epoch=2",
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
]
EVALUATION = [
    "detailed_results.json",
    "summary_statistics.json",
    "summary.json",
    "per_case.csv",
    "evaluation_report.txt",
    "dice_boxplots.png",
    "dice_vs_hausdorff.png",
    "metrics_heatmap.png",
    "evaluation_run.json",
    "predictions/labels.json",
]
ANALYSIS = [
    "loss_curves.png",
    "dice_scores.png",
    "hausdorff_distances.png",
    "learning_rate.png",
    "resource_usage.png",
    "combined_metrics.png",
    "training_summary.txt",
    "report.html",
]


@pytest.fixture(scope="module")
def cohort(cohorts) -> Path:
    return cohorts["pelvis"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cohort) -> artifacts.Workspace:
    workspace = artifacts.Workspace(tmp_path_factory.mktemp("workspace"))
    assert run_pipeline.main(["--all", "--data", str(cohort), "--workspace", str(workspace.root), *TINY]) == 0
    return workspace


def test_all_leaves_every_named_artifact(finished):
    for folder, names in ((finished.evaluation, EVALUATION), (finished.analysis, ANALYSIS)):
        for name in names:
            assert (folder / name).stat().st_size > 0, name
    assert finished.best_model.exists() and finished.log.stat().st_size > 0
    assert not list(finished.root.rglob(".tmp-*")) and not (finished.root / ".lock").exists()


def test_every_json_is_strict(finished):
    for path in finished.root.rglob("*.json"):
        if path.name != "summary.json":  # nnU-Net's readers need its NaN
            artifacts.read_json(path)


def test_synthetic_results_say_so(finished):
    assert "synthetic" in (finished.evaluation / "evaluation_report.txt").read_text().splitlines()[0].lower()
    assert "synthetic" in finished.report.read_text().lower()
    assert "synthetic" in (finished.analysis / "training_summary.txt").read_text().lower()


def test_tensors_are_128_cubed_and_predictions_lie_on_the_scan(finished, cohort):
    manifest = artifacts.read_json(finished.manifest)
    for case in manifest["cases"]:
        for item in case["tensors"]:
            image, label = tiny_workspace.read_tensor(
                finished.processed / item["file"], sha256=item["sha256"]
            )
            assert image.shape == (128, 128, 128) and label is not None and label.shape == (128, 128, 128)
            assert image.dtype == np.float16 and 0 <= float(image.min()) <= float(image.max()) <= 1
    run = artifacts.read_json(finished.run_record)
    assert {case["case_id"] for case in run["cases"]} == {
        case["case_id"] for case in manifest["cases"] if case["split"] == "test"
    }
    for case in run["cases"]:
        entry = next(c for c in manifest["cases"] if c["case_id"] == case["case_id"])
        written = volume_files.read_integers(finished.evaluation / case["prediction"])[0]
        assert list(written.array.shape) == entry["scan"]["shape"]
        assert np.allclose(written.affine, entry["scan"]["affine"], atol=1e-4)


def test_a_second_run_changes_nothing(finished, cohort):
    before = {
        path: path.read_bytes()
        for path in [*finished.tensors.iterdir(), finished.manifest, finished.splits, finished.best_model]
    }
    assert (
        run_pipeline.main(
            ["--preprocess", "--train", "--data", str(cohort), "--workspace", str(finished.root), *TINY]
        )
        == 0
    )
    assert {path: path.read_bytes() for path in before} == before


def test_stages_one_by_one_equal_all(finished, cohort, tmp_path):
    for stage in ("--preprocess", "--train", "--eval", "--analyze"):
        assert run_pipeline.main([stage, "--data", str(cohort), "--workspace", str(tmp_path), *TINY]) == 0
    one, other = finished, artifacts.Workspace(tmp_path)
    assert one.splits.read_bytes() == other.splits.read_bytes()
    assert (one.evaluation / "per_case.csv").read_bytes() == (other.evaluation / "per_case.csv").read_bytes()
    for path in one.tensors.iterdir():
        assert path.read_bytes() == (other.tensors / path.name).read_bytes()


@pytest.mark.parametrize(
    ("stage", "named"), [("--train", "--preprocess"), ("--eval", "--preprocess"), ("--analyze", "--train")]
)
def test_a_missing_predecessor_is_named(stage, named, tmp_path, capsys):
    assert run_pipeline.main([stage, "--workspace", str(tmp_path)]) == 4
    message = capsys.readouterr().err
    assert named in message and "Traceback" not in message
    assert "COMPLETE" not in capsys.readouterr().out


def test_a_checkpoint_of_other_data_is_refused(finished, cohort, tmp_path, capsys):
    workspace = artifacts.Workspace(tmp_path)
    assert (
        run_pipeline.main(
            [
                "--preprocess",
                "--data",
                str(cohort),
                "--workspace",
                str(tmp_path),
                *TINY,
                "--set",
                "data.window_hu=-100,200",
            ]
        )
        == 0
    )
    shutil.copytree(finished.checkpoints, workspace.checkpoints)
    assert run_pipeline.main(["--eval", "--workspace", str(tmp_path), *TINY]) == 5
    assert "CHECKPOINT_MISMATCH" in capsys.readouterr().err


def test_a_model_that_predicts_nothing_scores_zero(finished, tmp_path, capsys):
    """The case this project exists for: absent organs must not make an empty prediction look good."""
    import evaluate
    from ctseg import config

    workspace = artifacts.Workspace(tmp_path / "w")
    shutil.copytree(finished.root, workspace.root)
    for case in artifacts.read_json(workspace.run_record)["cases"]:
        path = workspace.evaluation / case["prediction"]
        scan = volume_files.read_integers(path)[0]
        nifti.write_label(path, Volume(np.zeros(scan.array.shape, np.uint8), scan.affine), names=None)
    assert evaluate.score_run(workspace, config.Settings()) == 0
    summary = json.loads((workspace.evaluation / "summary_statistics.json").read_text())
    assert summary["headline"]["macro_dice"] == 0
    report = (workspace.evaluation / "evaluation_report.txt").read_text()
    assert "NOT BETTER THAN PREDICTING NOTHING" in report and "0.000" in report
    with (workspace.evaluation / "per_case.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["state"] for row in rows} <= {"missed", "absent", "unannotated"}
    assert all(row["dice"] == ("0.0" if row["state"] == "missed" else "") for row in rows)


@pytest.mark.parametrize(("make", "code"), [(lambda p: p / "nowhere", "NO_DATA"), (lambda p: p, "NO_DATA")])
def test_no_data_is_refused_by_name(make, code, tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    assert run_pipeline.main(["--all", "--data", str(make(folder)), "--workspace", str(tmp_path / "w")]) == 4
    assert code in capsys.readouterr().err


def test_unknown_structures_and_layouts_get_a_hint(cohort, tmp_path, capsys):
    assert (
        run_pipeline.main(
            ["--preprocess", "--data", str(cohort), "--workspace", str(tmp_path), "--structures", "prostrate"]
        )
        == 2
    )
    assert "did you mean 'prostate'" in capsys.readouterr().err
    assert (
        run_pipeline.main(
            ["--preprocess", "--data", str(cohort), "--workspace", str(tmp_path), "--layout", "nnnet"]
        )
        == 2
    )
    assert "nnunet" in capsys.readouterr().err


def test_one_bad_scan_is_skipped_and_told(cohort, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(cohort, data)
    victim = sorted(data.rglob("ct.nii.gz"))[0]
    victim.write_bytes(victim.read_bytes()[:2000])
    arguments = ["--preprocess", "--data", str(data), "--workspace", str(tmp_path / "w"), *TINY]
    assert run_pipeline.main(arguments) == 3
    said = capsys.readouterr().out
    assert "NIFTI_TRUNCATED" in said and victim.parent.name in said
    report = artifacts.read_json(artifacts.Workspace(tmp_path / "w").preprocess_report)
    assert (
        report["found"] == report["processed"] + report["cached"] + report["skipped"]
        and report["skipped"] == 1
    )
    assert run_pipeline.main([*arguments, "--allow-skips"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "nonsense"],
        ["--set", "data.guide=nonsense"],
        ["--structures", "nonsense"],
        ["--guide", "labels", "--set", "data.guide_organs=nonsense"],
        ["--set", "data.pairs=nonsense"],
    ],
)
def test_texts_that_mean_nothing_in_these_data_are_refused_before_any_work(words, cohort, tmp_path, capsys):
    """The settings that may be any text: all others are refused by themselves, see test_config.py."""
    words = ["--preprocess", "--train", "--data", str(cohort), "--workspace", str(tmp_path), *words]
    assert run_pipeline.main(words) == 2
    error = capsys.readouterr().err
    assert "nonsense" in error and "Fix: " in error and not list(tmp_path.rglob("*.npz"))
