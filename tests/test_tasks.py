"""Every task through all stages on a tiny synthetic cohort, with its own network; several passes."""

from __future__ import annotations

import csv

import pytest
from tiny_runs import COARSE, TINY, run, words_of

import run_pipeline
from ctseg import artifacts, cli
from ctseg.learning import trainer
from ctseg.tasks import TASKS

pytestmark = pytest.mark.usefixtures("small_tensors")


@pytest.mark.slow
@pytest.mark.parametrize("task", list(TASKS))
def test_a_task_runs_with_its_own_network(task, tmp_path, cohorts):
    """Training and evaluation take the task from the data."""
    words = ["--data", str(cohorts[task]), "--workspace", str(tmp_path), *TINY, *COARSE]
    assert run_pipeline.main(["--preprocess", "--task", task, *words]) == 0
    assert run_pipeline.main(["--train", "--eval", *words[2:]]) == 0
    workspace = artifacts.Workspace(tmp_path)
    manifest, record = artifacts.read_json(workspace.manifest), artifacts.read_json(workspace.run_record)
    assert manifest["task"] == task and record["synthetic"] is True
    assert record["model"] == TASKS[task].settings.get("model.name", "multi_decoder")
    assert len(record["cases"]) >= 1 and (workspace.evaluation / "per_case.csv").exists()
    of_passes = artifacts.read_json(workspace.history).get("val_dice_of_passes")
    assert (of_passes is not None) == (record["model"] == "multipass_unet")
    several = of_passes is not None and of_passes.index(max(of_passes)) > 0
    for name in ("per_pass.csv", "per_pass.png"):
        assert (workspace.evaluation / name).exists() == several
    assert (record["guide_source"] == "ground_truth") == (task == "heart_like")
    assert workspace.topology.exists() == (task in ("airway", "heart_like"))


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
    run_pipeline.use_demo_settings(arguments)
    settings = cli.settings_from(arguments)[1]
    assert settings.model.backbone == backbone and settings.data.spacing_mm == (4.0,)


# ---------------------------------------------------------------- passes


FEW = ("--structures", "bladder,rectum")


def test_training_begins_with_the_first_pass_alone(tmp_path, cohorts):
    settings = words_of(**{"train.first_pass_fraction": 1, "evaluate.flip": False})
    workspace = run(
        tmp_path, cohorts["pelvis"] / "nifti", "--model", "multipass_unet", *FEW, *settings, *COARSE
    )
    assert len(artifacts.read_json(workspace.history)["val_dice_of_passes"]) == 1
    assert not (workspace.evaluation / "per_pass.csv").exists()


def test_passes_are_scored_one_by_one(tmp_path, cohorts, monkeypatch):
    # a later pass always seems better
    monkeypatch.setattr(trainer, "mean", lambda values: len(calls.append(values) or calls))
    calls = []
    settings = words_of(**{"model.infer_passes": 3, "train.first_pass_fraction": 0, "evaluate.flip": False})
    workspace = run(
        tmp_path, cohorts["pelvis"] / "nifti", "--model", "multipass_unet", *FEW, *settings, *COARSE
    )

    def scores(name: str) -> list[dict[str, str]]:
        with (workspace.evaluation / name).open(newline="") as stream:
            return list(csv.DictReader(stream))

    rows = scores("per_pass.csv")
    assert {"1", "2"} <= {row["pass"] for row in rows} <= {"1", "2", "3"}
    # sorted by pass: the last one stays
    last = {(row["case_id"], row["structure"]): row["dice"] for row in rows}
    assert {(row["case_id"], row["structure"]): row["dice"] for row in scores("per_case.csv")} == last
