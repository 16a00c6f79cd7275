"""Guide organs of each source, in training and for new scans; and guides that are the answer, which are
refused.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from infer_pairs import infer_test_cases
from tiny_runs import COARSE, TINY, run, words_of

import run_pipeline
from ctseg import artifacts
from ctseg.runtime import checkpoints
from ctseg.scans.formats import volume_files

pytestmark = [pytest.mark.usefixtures("small_tensors"), pytest.mark.slow]

GUIDED = ["--structures", "bladder", "--model", "anatomy_guided_unet"]
PLAIN = words_of(**{"evaluate.flip": False})  # the mirror is the subject of other tests


def test_own_labels_as_guide_are_refused(tmp_path, cohorts, capsys):
    words = ["--preprocess", "--task", "heart_like", "--data", str(cohorts["heart_like"])]
    settings = words_of(**{"data.guide_organs": "coronary_artery,aorta"})
    assert run_pipeline.main([*words, "--workspace", str(tmp_path), *settings, *TINY]) != 0
    assert "GUIDE_LEAK" in capsys.readouterr().err


def test_a_guided_network_without_a_guide_is_refused(tmp_path, cohorts, capsys):
    words = ["--all", "--model", "anatomy_guided_unet", "--data", str(cohorts["pelvis"])]
    assert run_pipeline.main([*words, "--workspace", str(tmp_path), *TINY]) != 0
    assert "guide" in capsys.readouterr().err


def test_folder_of_masks_guides(tmp_path, cohorts):
    cohort, masks = cohorts["pelvis"] / "nifti", tmp_path / "masks"
    for case in sorted(cohort.iterdir()):
        shutil.copytree(case / "segmentations", masks / case.name)
    organs = ["femur_left", "femur_right", "sacrum"]
    words = ["--guide", str(masks), "--structures", "bladder,rectum", "--model", "anatomy_guided_unet"]
    settings = words_of(**{"data.guide_organs": ",".join(organs)})
    workspace = run(
        tmp_path / "work", cohort, *words, *settings, *COARSE, *PLAIN, stages=("preprocess", "train")
    )
    manifest = artifacts.read_json(workspace.manifest)
    assert manifest["guide"] == {"kind": "folder", "source": "predicted", "organs": organs}
    assert all(case["guide"]["presence"]["sacrum"] for case in manifest["cases"])
    assert checkpoints.load(workspace.best_model)["guide"]["organs"] == organs


def test_reference_masks_in_the_guide_folder_are_a_leak(tmp_path, cohorts):
    cohort, masks = cohorts["pelvis"] / "nifti", tmp_path / "masks"
    for case in sorted(cohort.iterdir()):
        (masks / case.name).mkdir(parents=True)
        shutil.copy(case / "segmentations" / "bladder.nii.gz", masks / case.name / "something_else.nii.gz")
    words = ["--preprocess", "--data", str(cohort), "--workspace", str(tmp_path / "work")]
    settings = words_of(**{"data.guide_organs": "something_else"})
    code = run_pipeline.main([*words, "--structures", "bladder", "--guide", str(masks), *settings, *TINY])
    report = artifacts.read_json(artifacts.Workspace(tmp_path / "work").preprocess_report)
    assert code != 0 and "GUIDE_LEAK" in {finding["code"] for finding in report["findings"]}


@pytest.fixture(scope="module")
def guided(tmp_path_factory, cohorts) -> tuple[artifacts.Workspace, artifacts.Workspace]:
    """(a model that predicts organs, a network that it guides), on the NIfTI patients."""
    root, cohort = tmp_path_factory.mktemp("guided"), cohorts["pelvis"] / "nifti"
    organs = ["--structures", "sacrum,femur_left,femur_right", "--model", "unet"]
    first = run(root / "first", cohort, *organs, *COARSE, *PLAIN, stages=("preprocess", "train"))
    return first, run(
        root / "second", cohort, *GUIDED, "--guide-model", str(first.best_model), *COARSE, *PLAIN
    )


def test_an_earlier_model_guides(guided):
    first, second = guided
    manifest = artifacts.read_json(second.manifest)
    assert manifest["guide"]["organs"] == checkpoints.load(first.best_model)["structures"]
    case = manifest["cases"][0]
    label, _ = volume_files.read_integers(second.processed / "guide_masks" / f"{case['case_id']}.nii.gz")
    assert list(label.array.shape) == case["scan"]["shape"]


@pytest.mark.parametrize("source", ["model", "folder"])
def test_new_scans_with_guide_organs_get_what_the_evaluation_saw(tmp_path, guided, source):
    first, second = guided
    where: dict[str, Path] = {"model": first.best_model, "folder": second.processed / "guide_masks"}
    code, pairs = infer_test_cases(second, tmp_path, "--guide", str(where[source]), *PLAIN)
    assert code == 0 and all(np.array_equal(a, b) for a, b in pairs)


def test_a_guided_network_wants_guide_organs_of_new_scans_too(tmp_path, guided, capsys):
    code, _ = infer_test_cases(guided[1], tmp_path)
    assert code == 2 and "guide organs" in capsys.readouterr().err
