"""Every task through all stages on a tiny synthetic cohort, with its own network; guides, the roi grid and comparisons."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from independent_dicom import in_order, seg_masks, structure_masks

import infer
import run_pipeline
from ctseg import artifacts, cli
from ctseg.anatomy import write_cohort
from ctseg.errors import UsageError
from ctseg.geometry.volume import match_grid
from ctseg.runtime import checkpoints
from ctseg.scans.datasets.find_scans import find_scans
from ctseg.scans.dicom import dicom_seg, dicom_series, rtstruct
from ctseg.scans.formats import volume_files
from ctseg.tasks import TASKS

TINY = [
    "--workers",
    "1",
    "--epochs",
    "2",
    "--profile",
    "cpu",
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


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory) -> dict[str, Path]:
    """Tiny synthetic cohorts by task, drawn when first asked for."""
    root = tmp_path_factory.mktemp("cohorts")

    class Drawn(dict):
        def __missing__(self, task: str) -> Path:
            write_cohort(root / task, task=task, patients=6, seed=1, size="tiny")
            self[task] = root / task
            return self[task]

    return Drawn()


def run(workspace: Path, cohort: Path, *arguments: str) -> artifacts.Workspace:
    """All stages in a workspace; asserts that they end well."""
    assert (
        run_pipeline.main(["--all", "--data", str(cohort), "--workspace", str(workspace), *arguments, *TINY])
        == 0
    )
    return artifacts.Workspace(workspace)


@pytest.mark.parametrize("task", list(TASKS))
def test_a_task_runs_with_its_own_network(task, tmp_path, cohorts):
    workspace = run(tmp_path, cohorts[task], "--task", task)
    manifest, record = artifacts.read_json(workspace.manifest), artifacts.read_json(workspace.run_record)
    assert manifest["task"] == task and record["synthetic"] is True
    assert record["model"] == TASKS[task].settings.get("model.name", "multi_decoder")
    assert len(record["cases"]) >= 1 and (workspace.evaluation / "per_case.csv").exists()
    assert ("val_dice_of_passes" in artifacts.read_json(workspace.history)) == (
        record["model"] == "multipass_unet"
    )
    several = chosen_passes(workspace) > 1
    assert (
        (workspace.evaluation / "per_pass.csv").exists()
        == several
        == (workspace.evaluation / "per_pass.png").exists()
    )
    assert (record["guide_source"] == "ground_truth") == (task == "heart_like")
    assert workspace.topology.exists() == (task in ("airway", "heart_like"))


def test_later_stages_take_the_task_from_the_manifest(tmp_path, cohorts):
    common = ["--workspace", str(tmp_path), *TINY]
    assert (
        run_pipeline.main(
            ["--preprocess", "--task", "pelvic_bones", "--data", str(cohorts["pelvic_bones"]), *common]
        )
        == 0
    )
    assert run_pipeline.main(["--train", *common]) == 0
    assert artifacts.read_json(artifacts.Workspace(tmp_path).history)["model"] == "multipass_unet"


def chosen_passes(workspace):
    """After how many passes validation scored highest."""
    of_passes = artifacts.read_json(workspace.history).get("val_dice_of_passes", [0.0])
    return 1 + of_passes.index(max(of_passes))


def test_training_begins_with_the_first_pass_alone(tmp_path, cohorts):
    workspace = run(
        tmp_path, cohorts["pelvis"], "--model", "multipass_unet", "--set", "train.first_pass_fraction=1"
    )
    assert len(artifacts.read_json(workspace.history)["val_dice_of_passes"]) == 1
    assert not (workspace.evaluation / "per_pass.csv").exists()


def test_passes_are_scored_one_by_one(tmp_path, cohorts, monkeypatch):
    from ctseg.learning import trainer

    monkeypatch.setattr(
        trainer, "mean", lambda values: len(calls.append(values) or calls)
    )  # a later pass always seems better
    calls = []
    workspace = run(
        tmp_path,
        cohorts["pelvis"],
        "--model",
        "multipass_unet",
        "--set",
        "model.infer_passes=3",
        "--set",
        "train.first_pass_fraction=0",
    )
    with (workspace.evaluation / "per_pass.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {"1", "2"} <= {row["pass"] for row in rows} <= {"1", "2", "3"}
    last = {
        (row["case_id"], row["structure"]): row["dice"] for row in rows
    }  # sorted by pass: the last one stays
    with (workspace.evaluation / "per_case.csv").open(newline="") as stream:
        assert {(row["case_id"], row["structure"]): row["dice"] for row in csv.DictReader(stream)} == last


# ---------------------------------------------------------------- guides


def test_own_labels_as_guide_are_refused(tmp_path, cohorts, capsys):
    code = run_pipeline.main(
        [
            "--preprocess",
            "--task",
            "heart_like",
            "--data",
            str(cohorts["heart_like"]),
            "--workspace",
            str(tmp_path),
            "--set",
            "data.guide_organs=coronary_artery,aorta",
            *TINY,
        ]
    )
    assert code != 0 and "GUIDE_LEAK" in capsys.readouterr().err


def test_a_guided_network_without_a_guide_is_refused(tmp_path, cohorts, capsys):
    assert (
        run_pipeline.main(
            [
                "--all",
                "--model",
                "anatomy_guided_unet",
                "--data",
                str(cohorts["pelvis"]),
                "--workspace",
                str(tmp_path),
                *TINY,
            ]
        )
        != 0
    )
    assert "guide" in capsys.readouterr().err


def test_folder_of_masks_guides(tmp_path, cohorts):
    cohort, masks = cohorts["pelvis"], tmp_path / "masks"
    for case in sorted((cohort / "nifti").iterdir()):
        shutil.copytree(case / "segmentations", masks / case.name)
    workspace = run(
        tmp_path / "work",
        cohort / "nifti",
        "--model",
        "anatomy_guided_unet",
        "--guide",
        str(masks),
        "--structures",
        "bladder,rectum",
        "--set",
        "data.guide_organs=femur_left,femur_right,sacrum",
    )
    manifest = artifacts.read_json(workspace.manifest)
    assert manifest["guide"] == {
        "kind": "folder",
        "source": "predicted",
        "organs": ["femur_left", "femur_right", "sacrum"],
    }
    assert all(case["guide"]["presence"]["sacrum"] for case in manifest["cases"])
    assert checkpoints.load(workspace.best_model)["guide"]["organs"] == [
        "femur_left",
        "femur_right",
        "sacrum",
    ]


def test_reference_masks_in_the_guide_folder_are_a_leak(tmp_path, cohorts):
    cohort, masks = cohorts["pelvis"], tmp_path / "masks"
    for case in sorted((cohort / "nifti").iterdir()):
        (masks / case.name).mkdir(parents=True)
        shutil.copy(case / "segmentations" / "bladder.nii.gz", masks / case.name / "something_else.nii.gz")
    code = run_pipeline.main(
        [
            "--preprocess",
            "--data",
            str(cohort / "nifti"),
            "--workspace",
            str(tmp_path / "work"),
            "--structures",
            "bladder",
            "--guide",
            str(masks),
            "--set",
            "data.guide_organs=something_else",
            *TINY,
        ]
    )
    report = artifacts.read_json(artifacts.Workspace(tmp_path / "work").preprocess_report)
    assert code != 0 and "GUIDE_LEAK" in {finding["code"] for finding in report["findings"]}


def test_an_earlier_model_guides(tmp_path, cohorts):
    first = run(
        tmp_path / "first",
        cohorts["pelvis"],
        "--structures",
        "sacrum,femur_left,femur_right",
        "--model",
        "unet",
    )
    second = run(
        tmp_path / "second",
        cohorts["pelvis"],
        "--structures",
        "bladder",
        "--model",
        "anatomy_guided_unet",
        "--guide-model",
        str(first.best_model),
    )
    assert (
        artifacts.read_json(second.manifest)["guide"]["organs"]
        == checkpoints.load(first.best_model)["structures"]
    )
    written = second.processed / "guide_masks"
    case = artifacts.read_json(second.manifest)["cases"][0]
    assert (
        list(volume_files.read_integers(written / f"{case['case_id']}.nii.gz")[0].array.shape)
        == case["scan"]["shape"]
    )


# ---------------------------------------------------------------- roi grid


def test_roi_cuts_training_tensors_around_the_structures_and_tests_without_looking(tmp_path, cohorts):
    workspace = run(
        tmp_path,
        cohorts["pelvis"],
        "--structures",
        "bladder",
        "--set",
        "data.grid=roi",
        "--set",
        "data.spacing_mm=2",
        "--model",
        "unet",
    )
    manifest = artifacts.read_json(workspace.manifest)
    for case in manifest["cases"]:
        canvas = case["canvas"]["shape"]
        origins = np.array([tensor["origin"] for tensor in case["tensors"]])
        covered = origins.max(0) + 128 - origins.min(0)
        if case["split"] == "train":
            assert (covered == 128).all() or case["voxels"]["bladder"] == 0  # one tensor of full resolution
        else:
            assert (covered == canvas).all()  # nobody may know where the structure lies
        assert case["locator"]["canvas"]["shape"] == [128, 128, 128]
    assert checkpoints.load(workspace.best_model)["locator"]["arch"]["name"] == "unet"
    for case in artifacts.read_json(workspace.run_record)["cases"]:
        assert case["located"] == (case["region"] is not None)


# ---------------------------------------------------------------- new scans


def infer_test_cases(
    workspace: artifacts.Workspace, output: Path, *arguments: str
) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
    """(exit code of infer.py on the NIfTI test scans, pairs of its masks and those of the evaluation)."""
    manifest, run_record = artifacts.read_json(workspace.manifest), artifacts.read_json(workspace.run_record)
    scans = output / "scans"
    chosen = {}
    for case in manifest["cases"]:
        if case["split"] == "test" and case["source"]["image"]["format"] == "nifti":
            path = Path(case["source"]["image"]["path"])
            (scans / case["case_id"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy((workspace.root / manifest["data_root"] / path), scans / f"{case['case_id']}.nii.gz")
            chosen[case["case_id"]] = next(
                c["prediction"] for c in run_record["cases"] if c["case_id"] == case["case_id"]
            )
    code = infer.main(
        [
            "--input",
            str(scans),
            "--output",
            str(output / "masks"),
            "--checkpoint",
            str(workspace.best_model),
            "--device",
            "cpu",
            "--set",
            "evaluate.overlap=0",
            *arguments,
        ]
    )
    pairs = [
        (
            volume_files.read_integers(output / "masks" / f"{name}.nii.gz")[0],
            volume_files.read_integers(workspace.evaluation / file)[0],
        )
        for name, file in chosen.items()
    ]
    assert pairs and all(np.array_equal(a.affine, b.affine) for a, b in pairs)
    return code, [(a.array, b.array) for a, b in pairs]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "unet", "--structures", "bladder,sacrum", "--set", "data.grid=whole"],
        [
            "--model",
            "multipass_unet",
            "--structures",
            "bladder",
            "--set",
            "data.grid=windows",
            "--set",
            "data.spacing_mm=6",
        ],
        [
            "--model",
            "unet",
            "--structures",
            "bladder",
            "--set",
            "data.grid=roi",
            "--set",
            "data.spacing_mm=3",
        ],
    ],
)
def test_infer_gives_what_the_evaluation_saw(tmp_path, cohorts, arguments):
    workspace = run(tmp_path / "work", cohorts["pelvis"] / "nifti", *arguments)
    code, pairs = infer_test_cases(workspace, tmp_path / "new")
    assert code == 0 and all(np.array_equal(a, b) for a, b in pairs)


def test_infer_with_each_source_of_guide_organs(tmp_path, cohorts, capsys):
    cohort = cohorts["pelvis"] / "nifti"
    first = run(
        tmp_path / "first", cohort, "--structures", "sacrum,femur_left,femur_right", "--model", "unet"
    )
    guided = run(
        tmp_path / "second",
        cohort,
        "--structures",
        "bladder",
        "--model",
        "anatomy_guided_unet",
        "--guide-model",
        str(first.best_model),
    )
    code, pairs = infer_test_cases(guided, tmp_path / "by_model", "--guide", str(first.best_model))
    assert code == 0 and all(np.array_equal(a, b) for a, b in pairs)
    code, pairs = infer_test_cases(
        guided, tmp_path / "by_folder", "--guide", str(guided.processed / "guide_masks")
    )
    assert code == 0 and all(np.array_equal(a, b) for a, b in pairs)
    command = [
        "--input",
        str(tmp_path / "by_model" / "scans"),
        "--output",
        str(tmp_path / "none"),
        "--checkpoint",
        str(guided.best_model),
    ]
    assert infer.main(command) == 2 and "guide organs" in capsys.readouterr().err


def test_infer_goes_on_after_a_bad_scan(tmp_path, cohorts, capsys):
    workspace = run(
        tmp_path / "work", cohorts["pelvis"] / "nifti", "--model", "unet", "--structures", "bladder"
    )
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(next((cohorts["pelvis"] / "nifti").iterdir()) / "ct.nii.gz", scans / "good.nii.gz")
    (scans / "bad.nii.gz").write_bytes(b"no scan")
    assert (
        infer.main(
            [
                "--input",
                str(scans),
                "--output",
                str(tmp_path / "masks"),
                "--checkpoint",
                str(workspace.best_model),
            ]
        )
        == 3
    )
    record = artifacts.read_json(tmp_path / "masks" / "inference.json")
    assert [("error" in scan) for scan in record["scans"]] == [True, False] and (
        tmp_path / "masks" / "good.nii.gz"
    ).exists()
    assert "case=bad" in capsys.readouterr().out


def test_infer_finds_series_at_every_depth_and_refuses_two_scans_of_one_name(tmp_path, cohorts):
    series, other = [
        found.folder for found in dicom_series.find_series(cohorts["pelvis"]) if found.modality == "CT"
    ][:2]
    exported = tmp_path / "export"
    shutil.copytree(series, exported)
    assert list(find_scans(exported)) == ["export"]
    (exported / "empty").mkdir()  # a folder beside the slices does not hide them
    assert list(find_scans(exported)) == ["export"]
    shutil.copytree(other, exported / "other patient" / "study" / "ct")
    assert sorted(find_scans(exported)) == ["export", "other patient"]
    assert sorted(find_scans(tmp_path)) == ["export_1", "export_2"]
    shutil.copy(next((cohorts["pelvis"] / "nifti").rglob("ct.nii.gz")), tmp_path / "export_1.nii.gz")
    with pytest.raises(UsageError, match="both called"):
        find_scans(tmp_path)


def test_infer_writes_dicom_that_reads_back_as_the_same_mask(tmp_path, cohorts, capsys):
    """Scan -> infer.py -> SEG and RTSTRUCT -> our readers, highdicom and an independent filler -> the mask of the NIfTI, on the same grid."""
    import highdicom

    workspace = run(tmp_path / "work", cohorts["pelvis"] / "nifti", "--model", "unet")
    series = next(found for found in dicom_series.find_series(cohorts["pelvis"]) if found.modality == "CT")
    command = [
        "--input",
        str(series.folder),
        "--output",
        str(tmp_path / "masks"),
        "--checkpoint",
        str(workspace.best_model),
        "--format",
        "nifti,seg,rtstruct",
        "--statistics",
    ]
    assert infer.main(command) == 0
    name = series.folder.name
    label = volume_files.read_integers(tmp_path / "masks" / f"{name}.nii.gz")[0]
    image = dicom_series.read_series(series.folder)[0]
    names = artifacts.read_json(tmp_path / "masks" / "labels.json")
    segments, _ = dicom_seg.read_segments(tmp_path / "masks" / f"{name}_seg.dcm", image, series.folder)
    contours, _ = rtstruct.read_structures(tmp_path / "masks" / f"{name}_rtstruct.dcm", image, series.folder)
    expected = match_grid(label, image.grid, tolerance=1e-3).array
    with (tmp_path / "masks" / "statistics.csv").open() as stream:
        rows = {row["structure"]: row for row in csv.DictReader(stream)}
    assert expected.any()
    for value, structure in names.items():
        mask = expected == int(value)
        assert np.array_equal(segments[structure], mask) and np.array_equal(
            contours.get(structure, np.zeros_like(mask)), mask
        )
        assert float(rows[structure]["volume_ml"]) == pytest.approx(
            mask.sum() * np.prod(image.grid.spacing_mm) / 1000, abs=1e-3
        )
        if mask.any():
            assert float(rows[structure]["mean_hu"]) == pytest.approx(image.array[mask].mean(), abs=0.01)
    slices = in_order(series.folder, label)
    for masks in (
        seg_masks(tmp_path / "masks" / f"{name}_seg.dcm", slices),
        structure_masks(tmp_path / "masks" / f"{name}_rtstruct.dcm", slices),
    ):
        assert set(masks) == set(names.values())
        assert all(
            np.array_equal(masks[structure], label.array == int(value)) for value, structure in names.items()
        )
    written = highdicom.seg.segread(tmp_path / "masks" / f"{name}_seg.dcm")
    description = written.get_segment_description(1)
    assert (
        str(description.algorithm_type.value) == "AUTOMATIC"
        and description.segmented_property_type.scheme_designator == "SCT"
    )
    assert (
        infer.main(["--input", str(next((cohorts["pelvis"] / "nifti").rglob("ct.nii.gz"))), *command[2:]])
        == 2
    )
    assert "--format nifti" in capsys.readouterr().err


# ---------------------------------------------------------------- comparison


def test_compare_writes_a_page_and_goes_on_where_it_was(tmp_path, cohorts, capsys):
    command = [
        "--compare",
        "unet,unet+model.width=6",
        "--data",
        str(cohorts["pelvis"]),
        "--workspace",
        str(tmp_path),
        *TINY,
    ]
    assert run_pipeline.main(command) == 0
    folder = artifacts.Workspace(tmp_path).comparison
    record = artifacts.read_json(folder / "comparison.json")
    assert record["synthetic"] is True and [score["method"] for score in record["statistics"]["methods"]] == [
        "unet",
        "unet+model.width=6",
    ]
    assert record["costs"]["unet"]["parameters"] < record["costs"]["unet+model.width=6"]["parameters"]
    assert "unet+model.width=6" in (folder / "comparison.html").read_text()
    for score in record["statistics"][
        "methods"
    ]:  # a missed structure counts as the image diagonal in one, and not at all in the other
        imputed, found = record["costs"][score["method"]]["hd95_imputed_mm"], score["macro"]["hd95_mm"]
        assert found is None or imputed == pytest.approx(found) or score["missed"] > 0
    weights = {path: path.stat().st_mtime_ns for path in folder.rglob("best_model.pth")}
    assert len(weights) == 2
    assert run_pipeline.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("best_model.pth")} == weights
    assert run_pipeline.main([*command, "--restart"]) == 0
    again = {path: path.stat().st_mtime_ns for path in folder.rglob("best_model.pth")}
    assert again.keys() == weights.keys() and all(again[path] > weights[path] for path in weights)


@pytest.mark.parametrize(
    ("words", "backbone"),
    [
        ([], "vnet"),
        (["--model", "unet"], "auto"),
        (["--set", "model.name=unet"], "auto"),
        (["--compare", "unet,multipass_unet"], "auto"),
        (["--model", "unet", "--set", "model.backbone=multi_decoder"], "multi_decoder"),
    ],
)
def test_a_demo_keeps_its_backbone_only_where_no_model_is_named(words, backbone):
    """Else `--model unet` would train the V-Net that the demo of the pelvic bones puts into its passes."""
    arguments = run_pipeline.build_parser().parse_args(["--all", "--task", "pelvic_bones", *words])
    run_pipeline._use_demo_settings(arguments)
    settings = cli.settings_from(arguments)[1]
    assert settings.model.backbone == backbone and settings.data.spacing_mm == (4.0,)


def test_compare_tells_the_topology_of_tubes(tmp_path, cohorts):
    assert (
        run_pipeline.main(
            [
                "--compare",
                "unet,unet+model.width=6",
                "--task",
                "airway",
                "--data",
                str(cohorts["airway"]),
                "--workspace",
                str(tmp_path),
                *TINY,
            ]
        )
        == 0
    )
    record = artifacts.read_json(artifacts.Workspace(tmp_path).comparison / "comparison.json")
    assert all(
        {"cldice", "betti_error", "td_full"} <= set(record["topology"][method])
        for method in ("unet", "unet+model.width=6")
    )


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("unet,unett", "did you mean 'unet'?"),
        ("unet,unet+train.augmentatio=none", "did you mean 'train.augmentation'?"),
    ],
)
def test_compare_refuses_what_does_not_exist_before_any_work(methods, said, tmp_path, cohorts, capsys):
    assert (
        run_pipeline.main(
            ["--compare", methods, "--data", str(cohorts["pelvis"]), "--workspace", str(tmp_path), *TINY]
        )
        == 2
    )
    assert said in capsys.readouterr().err and not (tmp_path / "processed_data").exists()


def test_compare_needs_two_methods(tmp_path, cohorts, capsys):
    assert (
        run_pipeline.main(
            ["--compare", "unet", "--data", str(cohorts["pelvis"]), "--workspace", str(tmp_path), *TINY]
        )
        == 2
    )
    assert "--compare unet,multi_decoder" in capsys.readouterr().err
