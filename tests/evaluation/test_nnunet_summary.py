"""summary.json against nnU-Net's own code: it is loaded by its reader and holds the numbers of its
evaluation.

The comparison runs in the Python that CTSEG_NNUNET_PYTHON names, or in this one when it has nnunetv2. Rules
without it are tested in test_evaluate_folders.py.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evaluate
from ctseg import artifacts
from ctseg.geometry.volume import Volume
from ctseg.scans.formats import nifti

INSTALL = (
    "nnunetv2 is not here: `python3 -m venv nnunet && nnunet/bin/pip install nnunetv2` (about 5 GB), "
    "then run this test with CTSEG_NNUNET_PYTHON=nnunet/bin/python"
)
KEYS = ("Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref")
THEIRS = """
import json, sys
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder_simple, load_summary_json
if __name__ == "__main__":
    reference, prediction, theirs, ours, labels, ignore = sys.argv[1:]
    labels = [tuple(label) if isinstance(label, list) else label for label in json.loads(labels)]
    compute_metrics_on_folder_simple(
        reference, prediction, labels, theirs, num_processes=1, ignore_label=json.loads(ignore))
    for path in (theirs, ours):
        content = load_summary_json(path)
        content["mean"] = {str(key): value for key, value in content["mean"].items()}
        for case in content["metric_per_case"]:
            case["metrics"] = {str(key): value for key, value in case["metrics"].items()}
        print(json.dumps(content))
"""


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter that has nnunetv2."""
    chosen = os.environ.get("CTSEG_NNUNET_PYTHON")
    if chosen is None and importlib.util.find_spec("nnunetv2") is None:
        pytest.skip(INSTALL)
    return chosen or sys.executable


def label_map(*boxes: tuple[int, int, int]) -> np.ndarray:
    """(label, place along the last axis, thickness) of each box."""
    array = np.zeros((8, 9, 20), np.uint8)
    for label, place, size in boxes:
        array[2:6, 2 : 2 + size, place : place + 3] = label
    return array


# Synthetic. 1 is found, missed, half found; 2 is hallucinated and absent too; 3 occurs nowhere; 9 is the
# ignore label.
REFERENCES = {
    "a": label_map((1, 2, 4), (2, 8, 4)),
    "b": label_map((1, 2, 4)),
    "c": label_map((1, 2, 5)),
    "d": label_map(),
    "e": label_map((2, 9, 3)),
}
PREDICTIONS = {
    "a": label_map((1, 2, 4), (2, 9, 4)),
    "b": label_map((2, 12, 3)),
    "c": label_map((1, 3, 2)),
    "d": label_map(),
    "e": label_map((1, 9, 3)),
}


def both(
    root: Path,
    python: str,
    names: dict[str, Any],
    labels: list[Any],
    references: dict[str, np.ndarray],
    predictions: dict[str, np.ndarray],
    ignore: int | None = None,
    places: str = "labels.json",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(nnU-Net's summary, ours), both through nnU-Net's reader."""
    affine = np.diag([1.0, 2.0, 3.0, 1.0])[:, [2, 1, 0, 3]]
    for side, maps in (("reference", references), ("prediction", predictions)):
        for case_id, array in maps.items():
            nifti.write_label(root / side / f"{case_id}.nii.gz", Volume(array, affine))
    artifacts.write_json(root / places, names)
    folders = [str(root / "reference"), str(root / "prediction")]
    assert (
        evaluate.main(
            [
                "--reference",
                folders[0],
                "--prediction",
                folders[1],
                "--output",
                str(root / "scores"),
                "--labels",
                str(root / places),
                "--no-plots",
                "--workers",
                "1",
            ]
        )
        == 0
    )
    script = root / "theirs.py"
    script.write_text(THEIRS, encoding="utf-8")
    command = [
        python,
        str(script),
        *folders,
        str(root / "theirs.json"),
        str(root / "scores" / "summary.json"),
        json.dumps(labels),
        json.dumps(ignore),
    ]
    quiet = {name: str(root) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **quiet}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, ours = done.stdout.strip().splitlines()[-2:]
    return json.loads(theirs), json.loads(ours)


def assert_same(theirs: dict[str, float], ours: dict[str, float]) -> None:
    assert set(theirs) == set(ours) == set(KEYS)
    for key in KEYS:
        assert (math.isnan(theirs[key]) and math.isnan(ours[key])) or theirs[key] == pytest.approx(
            ours[key], rel=1e-12
        ), key


def assert_equal_files(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Every number of every case and mean. Only the paths (ours are names) and `extra` differ."""
    assert list(theirs["mean"]) == list(ours["mean"])
    for label, mean in theirs["mean"].items():
        assert_same(mean, ours["mean"][label])
    assert_same(theirs["foreground_mean"], ours["foreground_mean"])
    assert len(theirs["metric_per_case"]) == len(ours["metric_per_case"]) > 0
    for one, other in zip(theirs["metric_per_case"], ours["metric_per_case"]):
        assert (
            Path(one["prediction_file"]).name == other["prediction_file"]
            and Path(one["reference_file"]).name == other["reference_file"]
        )
        assert set(one["metrics"]) == set(other["metrics"]) and set(other) - set(one) == {"extra"}
        for label, metrics in one["metrics"].items():
            assert_same(metrics, other["metrics"][label])


def test_labels_missed_hallucinated_and_absent(tmp_path: Path, python: str) -> None:
    theirs, ours = both(tmp_path, python, {"1": "liver", "2": "spleen"}, [1, 2], REFERENCES, PREDICTIONS)
    assert_equal_files(theirs, ours)
    dice = {
        case["reference_file"][0]: {label: case["metrics"][label]["Dice"] for label in ("1", "2")}
        for case in ours["metric_per_case"]
    }
    # missed, hallucinated, absent, right
    assert dice["b"]["1"] == 0 and dice["b"]["2"] == 0 and math.isnan(dice["d"]["1"]) and dice["a"]["1"] == 1
    assert 0 < ours["foreground_mean"]["Dice"] < 1


def test_a_label_that_never_occurs(tmp_path: Path, python: str) -> None:
    theirs, ours = both(
        tmp_path, python, {"1": "liver", "2": "spleen", "3": "pancreas"}, [1, 2, 3], REFERENCES, PREDICTIONS
    )
    assert_equal_files(theirs, ours)
    assert (
        math.isnan(ours["mean"]["3"]["Dice"])
        and math.isnan(ours["foreground_mean"]["Dice"])
        and ours["mean"]["3"]["TP"] == 0
    )


def test_regions(tmp_path: Path, python: str) -> None:
    names = {"labels": {"background": 0, "whole": [1, 2], "core": 2}}
    theirs, ours = both(tmp_path, python, names, [[1, 2], 2], REFERENCES, PREDICTIONS, places="dataset.json")
    assert_equal_files(theirs, ours)
    assert (
        set(ours["mean"]) == {"(1, 2)", "2"} and ours["mean"]["(1, 2)"]["n_ref"] > ours["mean"]["2"]["n_ref"]
    )


def test_the_ignore_label(tmp_path: Path, python: str) -> None:
    references = {case: array.copy() for case, array in REFERENCES.items()}
    for array in references.values():
        array[:, :, 10:] = 9
    names = {"labels": {"background": 0, "liver": 1, "spleen": 2, "ignore": 9}}
    theirs, ours = both(
        tmp_path, python, names, [1, 2], references, PREDICTIONS, ignore=9, places="dataset.json"
    )
    assert_equal_files(theirs, ours)
    assert ours["metric_per_case"][0]["metrics"]["1"]["TN"] < 8 * 9 * 10
