"""Scoring of two folders of masks, and of a workspace's predictions: result files, refusals, honesty."""

from __future__ import annotations

import csv
import filecmp
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_workspace import write_manifest

import evaluate
from ctseg import artifacts, config
from ctseg.datasets.case import IGNORED
from ctseg.errors import PipelineError, UsageError
from ctseg.evaluation import result_files
from ctseg.evaluation.label_names import read_label_names
from ctseg.evaluation.mask_pairs import pair_masks
from ctseg.evaluation.scored import ScoreSettings, score_pairs
from ctseg.geometry.volume import Grid, Volume
from ctseg.manifest import Case
from ctseg.scans.formats import nifti

SHAPE, SPACING = (10, 12, 14), (3.0, 2.0, 1.0)
NAMES = ("bladder", "rectum", "prostate")
TEXT_FILES = (
    "detailed_results.json",
    "summary_statistics.json",
    "summary.json",
    "per_case.csv",
    "evaluation_report.txt",
)
PLOTS = ("dice_boxplots.png", "dice_vs_hausdorff.png", "metrics_heatmap.png")


def affine(spacing: tuple[float, float, float] = SPACING) -> np.ndarray:
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[1, 1], matrix[0, 2] = spacing
    matrix[:, 3] = (-20, 30, 5, 1)
    return matrix


def mask(*present: int, shift: int = 0) -> np.ndarray:
    """A label map (synthetic) with a box for each of the given labels 1, 2, 3, moved by `shift` slices."""
    array = np.zeros(SHAPE, np.uint8)
    for label in present:
        array[2 + shift : 6 + shift, 2:6, 4 * label - 3 : 4 * label - 1] = label
    return array


def save(folder: Path, case_id: str, array: np.ndarray, matrix: np.ndarray | None = None) -> None:
    nifti.write_label(folder / f"{case_id}.nii.gz", Volume(array, affine() if matrix is None else matrix))


def folders(
    root: Path,
    references: dict[str, np.ndarray],
    predictions: dict[str, np.ndarray],
    names: tuple[str, ...] = NAMES,
) -> list[str]:
    """The arguments that score the given maps, written below `root`."""
    for name, maps in (("reference", references), ("prediction", predictions)):
        (root / name).mkdir(parents=True, exist_ok=True)
        for case_id, array in maps.items():
            save(root / name, case_id, array)
    artifacts.write_json(
        root / "reference" / "labels.json", {str(i): name for i, name in enumerate(names, start=1)}
    )
    return [
        "--reference",
        str(root / "reference"),
        "--prediction",
        str(root / "prediction"),
        "--output",
        str(root / "scores"),
        "--no-plots",
        "--workers",
        "1",
    ]


REFERENCES = {"a": mask(1, 2), "b": mask(1, 2), "c": mask(1), "d": mask()}
PREDICTIONS = {"a": mask(1, 2), "b": mask(1, shift=1), "c": mask(1, 2, shift=2), "d": mask()}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of four small cases, with pictures."""
    root = tmp_path_factory.mktemp("scored")
    arguments = folders(root, REFERENCES, PREDICTIONS)
    arguments.remove("--no-plots")
    assert evaluate.main(arguments) == 0
    return root / "scores"


def strict(path: Path) -> object:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} in {path.name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# ---- files ------------------------------------------------------------------------------------------------


def test_all_files_are_there(scored: Path) -> None:
    assert {path.name for path in scored.iterdir()} == {*TEXT_FILES, *PLOTS}
    assert all((scored / name).read_bytes().startswith(b"\x89PNG") for name in PLOTS)


def test_detailed_results(scored: Path) -> None:
    cases = strict(scored / "detailed_results.json")
    assert [case["patient_id"] for case in cases] == ["a", "b", "c", "d"]
    for organ in NAMES:
        for metric in (
            "dice",
            "iou",
            "sensitivity",
            "specificity",
            "precision",
            "f1",
            "hd",
            "hd95",
            "state",
            "nsd",
            "assd",
            "masd",
            "hd95_imputed",
            "volume_error",
            "reference_ml",
            "prediction_ml",
        ):
            assert all(f"{organ}_{metric}" in case for case in cases)
    by_id = {case["patient_id"]: case for case in cases}
    assert by_id["b"]["bladder_dice"] == by_id["b"]["bladder_f1"] == 0.75 and by_id["b"]["bladder_hd"] == 3
    assert (
        by_id["b"]["rectum_state"] == "missed"
        and by_id["b"]["rectum_dice"] == 0
        and by_id["b"]["rectum_hd95"] is None
    )
    assert by_id["b"]["mean_dice"] == 0.375 and by_id["b"]["mean_hd"] == 3
    assert by_id["c"]["rectum_state"] == "hallucinated" and by_id["c"]["mean_dice"] == 0.5
    assert by_id["d"]["mean_dice"] is None and by_id["d"]["bladder_state"] == "absent"


def test_summary_statistics(scored: Path) -> None:
    summary = strict(scored / "summary_statistics.json")
    assert summary["schema_version"] == 1
    assert summary["settings"] | {"tolerances_mm": None} == {
        "boundary_mode": "surfel",
        "hd95": "max_of_directed_percentiles",
        "tolerance_epsilon": 1e-6,
        "empty_policy": "present_only",
        "tolerances_mm": None,
        "distance_unit": "mm",
        "bootstrap": {"method": "bca", "resamples": 10000, "seed": 0},
        "split_hash": None,
        "n_patients": 4,
        "n_cases": 4,
        "n_missing_predictions": 0,
        "synthetic": False,
    }
    assert summary["settings"]["tolerances_mm"]["bladder"] == [3.0, 2.0, 5.0]
    for metric in (
        "dice",
        "iou",
        "precision",
        "sensitivity",
        "specificity",
        "f1",
        "hd",
        "hd95",
        "hd95_imputed",
        "assd",
        "masd",
        "nsd",
        "nsd_3mm",
        "nsd_2mm",
        "nsd_5mm",
        "volume_error",
    ):
        assert set(summary[f"bladder_{metric}"]) == {
            "mean",
            "std",
            "min",
            "max",
            "median",
            "p05",
            "n",
            "n_undefined",
            "ci95",
            "ci_method",
            "flags",
        }
    assert (summary["bladder_dice"]["mean"], summary["bladder_dice"]["n"]) == (0.75, 3)
    assert (summary["rectum_dice"]["mean"], summary["rectum_dice"]["n"]) == (0.5, 2)
    assert (
        summary["rectum_hd95"]["n"],
        summary["rectum_hd95"]["n_undefined"],
        summary["rectum_hd95"]["mean"],
    ) == (1, 1, 0)
    assert summary["rectum_hd95_imputed"]["mean"] == pytest.approx(math.sqrt(30**2 + 24**2 + 14**2) / 2)
    assert summary["all_cases"]["rectum_dice"] == {"mean": pytest.approx(1 / 3), "n": 3}
    assert summary["headline"]["macro_dice"] == 0.625
    assert (summary["headline"]["structures"], summary["headline"]["structures_without_reference"]) == (
        ["bladder", "rectum"],
        ["prostate"],
    )
    assert summary["prostate_dice"]["mean"] is None and summary["presence"]["prostate"]["n_absent"] == 4
    assert (
        summary["baselines"]["all_background"] | {"macro_dice": 0, "better_than_baseline": True}
        == summary["baselines"]["all_background"]
    )
    assert summary["worst_cases"]["rectum"][0] == {
        "case_id": "b",
        "dice": 0,
        "state": "missed",
        "hd95_mm": None,
    }


def test_nnunet_summary(scored: Path) -> None:
    text = (scored / "summary.json").read_text(encoding="utf-8")
    content = json.loads(text)
    assert text == json.dumps(content, indent=4, sort_keys=True) + "\n"
    keys = {"Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref"}
    assert (
        set(content) == {"foreground_mean", "mean", "metric_per_case"}
        and set(content["foreground_mean"]) == keys
    )
    assert set(content["mean"]) == {"1", "2", "3"} and all(
        set(values) == keys for values in content["mean"].values()
    )
    # nnU-Net's rules: the hallucinated rectum of c is 0, the absent one of d is left out
    assert content["mean"]["2"]["Dice"] == pytest.approx(1 / 3)
    assert content["mean"]["1"]["TP"] == np.mean([32, 24, 16, 0])
    assert math.isnan(content["mean"]["3"]["Dice"]) and math.isnan(content["foreground_mean"]["Dice"])
    first = content["metric_per_case"][0]
    assert (first["prediction_file"], first["reference_file"]) == ("a.nii.gz", "a.nii.gz") and set(
        first["metrics"]["1"]
    ) == keys
    assert first["metrics"]["1"]["n_ref"] == 32 and first["extra"]["1"] == {
        "name": "bladder",
        "state": "present",
    }


def test_per_case_table(scored: Path) -> None:
    with (scored / "per_case.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == result_files.COLUMNS and len(rows) == 12
    missed = next(row for row in rows if row["state"] == "missed")
    assert (
        missed["case_id"],
        missed["structure"],
        missed["dice"],
        missed["hd95_mm"],
        missed["precision"],
    ) == ("b", "rectum", "0.0", "", "")
    assert float(missed["hd95_imputed_mm"]) == math.sqrt(30**2 + 24**2 + 14**2)
    assert all(row["boundary_mode"] == "surfel" and row["spacing_d_mm"] == "3.0" for row in rows)


def test_report(scored: Path) -> None:
    text = (scored / "evaluation_report.txt").read_text(encoding="utf-8")
    places = [
        text.index(part)
        for part in (
            "boundary mode surfel",
            "NSD tolerances",
            "Counts of cases",
            "Headline",
            "all background",
            "All: present",
            "Surface distances",
            "Worst 5",
            "Warnings",
        )
    ]
    assert places == sorted(places)
    assert "synthetic" not in text and "NOT BETTER" not in text
    assert (
        re.search(r"^MACRO MEAN\s+2\s+0\.625", text, re.MULTILINE)
        and "no case holds it in the reference, so it has no score and is left out of the headline: prostate"
        in text
    )
    assert re.search(r"^rectum\s+20\.\d\d \(n=2\)\s+0\.00 \(n=1\)", text, re.MULTILINE)


def test_synthetic_data_say_so(tmp_path: Path) -> None:
    arguments = folders(tmp_path, {"a": mask(1)}, {"a": mask(1)}, ("bladder",))
    artifacts.write_json(tmp_path / "reference" / "synthetic.json", {})
    assert evaluate.main(arguments) == 0
    lines = (tmp_path / "scores" / "evaluation_report.txt").read_text(encoding="utf-8").splitlines()
    titles = [line for line, below in itertools.pairwise(lines) if below and set(below) == {"-"}]
    assert "synthetic" in lines[0] and len(titles) == 8 and all("synthetic" in title for title in titles)
    assert strict(tmp_path / "scores" / "summary_statistics.json")["settings"]["synthetic"] is True


@pytest.mark.parametrize("mode", ["surfel", "voxel"])
def test_mode_is_written_everywhere(tmp_path: Path, mode: str) -> None:
    assert (
        evaluate.main([*folders(tmp_path, {"a": mask(1)}, {"a": mask(1, shift=1)}), "--boundary-mode", mode])
        == 0
    )
    scores = tmp_path / "scores"
    assert strict(scores / "summary_statistics.json")["settings"]["boundary_mode"] == mode
    assert (
        f"boundary mode {mode}"
        in (scores / "evaluation_report.txt").read_text(encoding="utf-8").splitlines()[0]
    )
    assert {
        row["boundary_mode"]
        for row in csv.DictReader((scores / "per_case.csv").read_text(encoding="utf-8").splitlines())
    } == {mode}


def test_workers_and_file_order_change_nothing(tmp_path: Path) -> None:
    first = folders(tmp_path / "one", REFERENCES, PREDICTIONS)
    second = folders(
        tmp_path / "two", dict(reversed(REFERENCES.items())), dict(reversed(PREDICTIONS.items()))
    )
    second[-1] = "2"
    assert evaluate.main(first) == evaluate.main(second) == 0
    assert filecmp.cmpfiles(tmp_path / "one/scores", tmp_path / "two/scores", TEXT_FILES, shallow=False) == (
        list(TEXT_FILES),
        [],
        [],
    )


def test_order_of_pairs_changes_nothing(tmp_path: Path) -> None:
    folders(tmp_path, REFERENCES, PREDICTIONS)
    pairs, structures = pair_masks(tmp_path / "reference", tmp_path / "prediction")
    how = ScoreSettings(dict.fromkeys(NAMES, (2.0, 1.0)))
    assert [structure.name for structure in structures] == list(NAMES)
    assert score_pairs(pairs, structures, how) == score_pairs(pairs[::-1], structures, how)


# ---- honesty ----------------------------------------------------------------------------------------------


def test_predicting_nothing_on_39_mostly_absent_cases(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """With "absent counts as 1" this predictor would score (31 + 35 + 37) / 39 / 3 = .8803."""
    references = {
        f"case_{i:02d}": mask(*[label for label, n in ((1, 8), (2, 4), (3, 2)) if i < n]) for i in range(39)
    }
    assert evaluate.main(folders(tmp_path, references, dict.fromkeys(references, mask()))) == 0
    scores = tmp_path / "scores"
    summary = strict(scores / "summary_statistics.json")
    assert summary["headline"]["macro_dice"] == 0 and [summary[f"{name}_dice"]["mean"] for name in NAMES] == [
        0,
        0,
        0,
    ]
    assert [summary[f"{name}_dice"]["n"] for name in NAMES] == [8, 4, 2]
    assert [summary["presence"][name]["n_absent"] for name in NAMES] == [31, 35, 37]
    assert summary["baselines"]["all_background"]["better_than_baseline"] is False
    assert summary["all_cases"]["bladder_dice"] == {"mean": 0, "n": 8}
    report = (scores / "evaluation_report.txt").read_text(encoding="utf-8")
    assert re.search(r"^MACRO MEAN\s+3\s+0\.000.*NOT BETTER THAN PREDICTING NOTHING", report, re.MULTILINE)
    assert report in capsys.readouterr().out
    for name in TEXT_FILES:
        assert not re.search(r"\.880[34]", (scores / name).read_text(encoding="utf-8")), name


@pytest.mark.parametrize(
    "content",
    [
        {"1": "bladder", "2": "rectum", "annotated": {"a": ["bladder"]}},
        {
            "labels": {"bladder": 1, "rectum": 2},
            "cases": [{"case": "a", "annotated": ["bladder"]}, {"case": "b"}],
        },
    ],
)
def test_structures_nobody_looked_for_are_not_scored(tmp_path: Path, content: dict) -> None:
    arguments = folders(
        tmp_path, {"a": mask(1), "b": mask(1, 2)}, {"a": mask(1, 2), "b": mask(1, 2)}, ("bladder", "rectum")
    )
    artifacts.write_json(tmp_path / "reference" / "labels.json", content)
    assert evaluate.main(arguments) == 0
    summary = strict(tmp_path / "scores" / "summary_statistics.json")
    assert (
        summary["presence"]["rectum"] | {"n_unannotated": 1, "n_hallucinated": 0, "n_present": 1}
        == summary["presence"]["rectum"]
    )
    per_case = json.loads((tmp_path / "scores" / "summary.json").read_text(encoding="utf-8"))
    assert (
        math.isnan(per_case["metric_per_case"][0]["metrics"]["2"]["TP"])
        and per_case["mean"]["2"]["Dice"] == 1
    )


def test_annotation_of_unknown_cases(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = folders(tmp_path, {"a": mask(1)}, {"a": mask(1)}, ("bladder",))
    artifacts.write_json(
        tmp_path / "reference" / "labels.json", {"1": "bladder", "annotated": {"A": ["bladder"]}}
    )
    code, error = refused(arguments, capsys)
    assert code == 2 and "A without a reference" in error


def test_missing_prediction_counts_as_missed_when_allowed(tmp_path: Path) -> None:
    arguments = folders(tmp_path, {"a": mask(1), "b": mask(1)}, {"a": mask(1)}, ("bladder",))
    assert evaluate.main([*arguments, "--allow-missing"]) == 0
    summary = strict(tmp_path / "scores" / "summary_statistics.json")
    assert summary["bladder_dice"]["mean"] == 0.5 and summary["presence"]["bladder"]["n_missed"] == 1
    assert (
        summary["settings"]["n_missing_predictions"] == 1
        and "1 predictions are missing" in summary["warnings"][0]
    )


# ---- refusals ---------------------------------------------------------------------------------------------


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> tuple[int, str]:
    code = evaluate.main(arguments)
    error = capsys.readouterr().err
    assert error.startswith("ERROR ") and " Fix: " in error and "Traceback" not in error
    assert not Path(arguments[5]).exists()
    return code, error


def test_missing_prediction(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, error = refused(folders(tmp_path, {"a": mask(1), "b": mask(1)}, {"a": mask(1)}), capsys)
    assert code == 4 and "MISSING_PREDICTION case=b" in error


def test_extra_prediction(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, error = refused(
        [*folders(tmp_path, {"a": mask(1)}, {"a": mask(1), "b": mask(1)}), "--allow-missing"], capsys
    )
    assert code == 4 and "EXTRA_PREDICTION case=b" in error


def test_other_shape(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, error = refused(folders(tmp_path, {"a": mask(1)}, {"a": mask(1)[:9]}), capsys)
    assert code == 5 and "GRID_MISMATCH case=a file=a.nii.gz" in error and "(9, 12, 14)" in error


@pytest.mark.parametrize(
    "change, fits",
    [((2, 3, 0.5), False), ((2, 0, 0.02), False), ((0, 2, -2.0), False), ((2, 3, 0.0004), True)],
)
def test_other_affine(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: tuple[int, int, float], fits: bool
) -> None:
    arguments = folders(tmp_path, {"a": mask(1)}, {})
    moved = affine()
    moved[change[:2]] += change[2]
    save(tmp_path / "prediction", "a", mask(1), moved)
    if fits:
        assert evaluate.main(arguments) == 0
        return
    code, error = refused(arguments, capsys)
    assert code == 5 and "GRID_MISMATCH case=a" in error and "affine" in error


@pytest.mark.parametrize("side", ["reference", "prediction"])
def test_label_without_a_name(tmp_path: Path, capsys: pytest.CaptureFixture, side: str) -> None:
    arguments = folders(tmp_path, {"a": mask(1)}, {"a": mask(1)})
    save(tmp_path / side, "a", np.where(mask(1) > 0, 7, 0).astype(np.uint8))
    code, error = refused(arguments, capsys)
    assert code == 5 and "LABEL_VALUES case=a" in error and "7" in error


@pytest.mark.parametrize("value, reason", [(0.5, "LABEL_NOT_INTEGER"), (np.nan, "NONFINITE")])
def test_label_that_is_no_integer(
    tmp_path: Path, capsys: pytest.CaptureFixture, value: float, reason: str
) -> None:
    arguments = folders(tmp_path, {"a": mask(1)}, {"a": mask(1)})
    array = mask(1).astype(np.float32)
    array[0, 0, 0] = value
    nifti.write_image(tmp_path / "prediction" / "a.nii.gz", Volume(array, affine()), dtype=np.float32)
    code, error = refused(arguments, capsys)
    assert code == 5 and f"{reason} case=a file=a.nii.gz" in error


def test_refusal_in_a_worker_process(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = folders(tmp_path, REFERENCES, PREDICTIONS | {"c": mask(1)[:9]})
    arguments[-1] = "2"
    code, error = refused(arguments, capsys)
    assert code == 5 and "GRID_MISMATCH case=c" in error


def test_a_case_is_the_same_in_either_unicode_composition(tmp_path: Path) -> None:
    assert evaluate.main(folders(tmp_path, {"F\u00e4lle": mask(1)}, {"Fa\u0308lle": mask(1)})) == 0


def test_folders_that_name_their_labels_differently(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = folders(tmp_path, {"a": mask(1)}, {"a": mask(1)}, ("bladder", "rectum"))
    artifacts.write_json(tmp_path / "prediction" / "labels.json", {"1": "rectum", "2": "bladder"})
    code, error = refused(arguments, capsys)
    assert code == 5 and "ORGAN_MAP_MISMATCH" in error
    other = tmp_path / "Dataset002_other" / "labelsTr"  # nnU-Net's place: beside the folder of the maps
    other.parent.mkdir()
    (tmp_path / "prediction" / "labels.json").unlink()
    (tmp_path / "prediction").rename(other)
    artifacts.write_json(
        other.parent / "dataset.json", {"labels": {"background": 0, "rectum": 1, "bladder": 2}}
    )
    code, error = refused(
        [str(other) if word == str(tmp_path / "prediction") else word for word in arguments], capsys
    )
    assert code == 5 and "Dataset002_other/dataset.json" in error


def test_no_names_no_files_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = folders(tmp_path, {"a": mask(1)}, {"a": mask(1)})
    (tmp_path / "reference" / "labels.json").unlink()
    assert refused(arguments, capsys)[0] == 4
    assert refused([*arguments, "--labels", str(tmp_path / "none.json")], capsys)[0] == 2
    arguments[1] = str(tmp_path / "nowhere")
    assert refused(arguments, capsys)[0] == 4
    assert evaluate.main(arguments[:2]) == 2


def test_one_case_in_two_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = folders(tmp_path, {"a": mask(1)}, {"a": mask(1)})
    nifti.write_label(tmp_path / "reference" / "a.nii", Volume(mask(1), affine()))
    code, error = refused(arguments, capsys)
    assert code == 4 and "DUPLICATE_ID" in error


def test_tolerances_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = [*folders(tmp_path, {"a": mask(1)}, {"a": mask(1)}), "--tolerances", str(tmp_path / "t.json")]
    for wrong in ({"liver": [2]}, {"bladder": 2}, {"bladder": ["wide"]}, [1]):
        artifacts.write_json(tmp_path / "t.json", wrong)
        assert refused(arguments, capsys)[0] == 2
    artifacts.write_json(tmp_path / "t.json", {"bladder": [4, 1]})
    assert evaluate.main(arguments) == 0
    summary = strict(tmp_path / "scores" / "summary_statistics.json")
    assert (
        summary["settings"]["tolerances_mm"]["bladder"] == [4, 1] and summary["bladder_nsd_4mm"]["mean"] == 1
    )


def test_files_that_people_write_may_begin_with_a_byte_order_mark_and_are_refused_as_theirs(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tolerances, names = tmp_path / "t.json", tmp_path / "n.json"
    arguments = [*folders(tmp_path, {"a": mask(1)}, {"a": mask(1)}), "--labels", str(names)]
    arguments += ["--tolerances", str(tolerances)]
    tolerances.write_text('{"bladder": [4, 1]}', encoding="utf-8-sig")
    names.write_text('{"1": "bladder"}', encoding="utf-8-sig")
    for file in (tolerances, names):
        good = file.read_bytes()
        file.write_text("{", encoding="utf-16")
        code, said = refused(arguments, capsys)
        assert code == 4 and f"METADATA_PARSE case=- file={file.name}" in said and "correct the file" in said
        file.write_bytes(good)
    artifacts.write_json(tmp_path / "evaluation_run.json", [])
    assert "ARTIFACT_CORRUPT case=- file=evaluation_run.json" in refused(arguments, capsys)[1]
    (tmp_path / "evaluation_run.json").unlink()
    assert evaluate.main(arguments) == 0
    assert strict(tmp_path / "scores/summary_statistics.json")["bladder_nsd_4mm"]["mean"] == 1


# ---- label names ------------------------------------------------------------------------------------------


def names_in(tmp_path: Path, content: object) -> list[tuple[str, tuple[int, ...]]]:
    artifacts.write_json(tmp_path / "n.json", content)
    return [
        (structure.name, structure.labels) for structure in read_label_names(tmp_path / "n.json").structures
    ]


def test_forms_of_label_names(tmp_path: Path) -> None:
    expected = [("liver", (1,)), ("spleen", (2,))]
    assert names_in(tmp_path, {"2": "spleen", "1": "liver"}) == expected
    assert names_in(tmp_path, {"liver": 1, "spleen": 2}) == expected
    assert (
        names_in(
            tmp_path, {"labels": {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}, "channel_names": {}}
        )
        == expected
    )
    assert read_label_names(tmp_path / "n.json").ignore_label == 3
    assert names_in(tmp_path, {"labels": {"0": "background", "1": "liver", "2": "spleen"}}) == expected
    assert names_in(tmp_path, {"labels": {"background": 0, "whole": [1, 2], "core": 2}}) == [
        ("whole", (1, 2)),
        ("core", (2,)),
    ]


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"1": "mean"},
        {"1": "liver", "2": "liver"},
        {"liver": -1},
        {"liver": 1.5},
        {"liver": None},
        {"liver": True},
        {"x": "liver"},
        {"1": ""},
        {"0": "background"},
        {"1": "liver", "annotated": {"a": ["lung"]}},
        {"1": "liver", "annotated": ["a"]},
    ],
)
def test_wrong_label_names(tmp_path: Path, content: object) -> None:
    with pytest.raises(UsageError):
        names_in(tmp_path, content)


def test_regions_as_nnunet_writes_them(tmp_path: Path) -> None:
    arguments = folders(tmp_path, {"a": mask(1, 2)}, {"a": mask(1)})
    artifacts.write_json(
        tmp_path / "reference" / "labels.json", {"labels": {"background": 0, "whole": [1, 2], "core": 2}}
    )
    assert evaluate.main(arguments) == 0
    content = json.loads((tmp_path / "scores" / "summary.json").read_text(encoding="utf-8"))
    assert content["mean"]["(1, 2)"]["Dice"] == pytest.approx(2 / 3) and content["mean"]["2"]["Dice"] == 0


# ---- the workspace ----------------------------------------------------------------------------------------


def workspace_with_predictions(root: Path) -> artifacts.Workspace:
    """A synthetic workspace after prediction: two test cases, two structures, one unlabelled once."""
    workspace = artifacts.Workspace(root)
    cases, run = [], []
    for i, split in enumerate(("train", "test", "test")):
        save(workspace.references, f"c{i}", mask(1, 2) if i < 2 else mask(1))
        cases.append(
            Case(
                f"c{i}",
                f"p{i}",
                {"bladder": "present", "rectum": "unlabelled" if i == 2 else "present"},
                source={},
                scan=Grid((1, 1, 1), np.eye(4)),
                split=split,
            )
        )
        if split == "test":
            save(workspace.predictions, f"c{i}", mask(1, 2))
            run.append(
                {
                    "case_id": f"c{i}",
                    "patient_id": f"p{i}",
                    "seconds": 1.0,
                    "prediction": f"predictions/c{i}.nii.gz",
                    "reference": f"references/c{i}.nii.gz",
                }
            )
    write_manifest(workspace, cases, ["bladder", "rectum"], synthetic=True)
    artifacts.write_json(
        workspace.run_record,
        {"version": 1, "synthetic": True, "structures": ["bladder", "rectum"], "cases": run},
    )
    return workspace


def test_workspace_is_scored_on_its_test_cases(tmp_path: Path) -> None:
    workspace = workspace_with_predictions(tmp_path)
    assert evaluate.score_run(workspace, config.Settings()) == 0
    summary = strict(workspace.evaluation / "summary_statistics.json")
    assert summary["headline"]["macro_dice"] == 1 and summary["presence"]["rectum"]["n_unannotated"] == 1
    assert (
        summary["settings"]["split_hash"] == artifacts.read_json(workspace.manifest)["splits_hash"]
        and summary["settings"]["n_patients"] == 2
    )
    assert (
        "synthetic"
        in (workspace.evaluation / "evaluation_report.txt").read_text(encoding="utf-8").splitlines()[0]
    )
    assert all((workspace.evaluation / name).exists() for name in (*TEXT_FILES, *PLOTS))


def test_ignored_voxels_of_a_reference_leave_every_score(tmp_path: Path) -> None:
    workspace = workspace_with_predictions(tmp_path)
    assert evaluate.score_run(workspace, config.Settings()) == 0
    plain = (workspace.evaluation / "per_case.csv").read_text(encoding="utf-8")
    reference, predicted = mask(1, 2), mask(1, 2)
    reference[9, 10, 10:13] = IGNORED
    predicted[9, 10, 10:12] = 1  # a mistake where nobody looked
    save(workspace.references, "c1", reference)
    save(workspace.predictions, "c1", predicted)
    assert evaluate.score_run(workspace, config.Settings()) == 0
    rows, before = (
        list(csv.DictReader(text.splitlines()))
        for text in ((workspace.evaluation / "per_case.csv").read_text(encoding="utf-8"), plain)
    )
    for row, old in zip(rows, before):
        assert row | {"tn": ""} == old | {"tn": ""}
        assert int(old["tn"] or 0) - int(row["tn"] or 0) == (3 if row["case_id"] == "c1" else 0)
    report = (workspace.evaluation / "evaluation_report.txt").read_text(encoding="utf-8")
    assert '3 voxels of the references are marked "ignore"' in report


@pytest.mark.parametrize("stopped_in", ["score_pairs", "draw"])
def test_an_evaluation_that_stops_leaves_nothing_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_in: str
) -> None:
    """Old plots beside new scores, or old scores beside new predictions, would be taken for theirs."""
    workspace = workspace_with_predictions(tmp_path)
    assert evaluate.score_run(workspace, config.Settings()) == 0
    for name in ("per_pass.csv", "per_pass.png", "reliability.png", "topology.csv"):
        (workspace.evaluation / name).write_bytes(b"of an earlier network")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, stopped_in, stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate.score_run(workspace, config.Settings())
    left = {path.name for path in workspace.evaluation.iterdir() if path.is_file()}
    assert left - {workspace.run_record.name} == (set(TEXT_FILES) if stopped_in == "draw" else set())


def test_workspace_with_a_test_case_that_was_not_predicted(tmp_path: Path) -> None:
    workspace = workspace_with_predictions(tmp_path)
    record = artifacts.read_json(workspace.run_record)
    artifacts.write_json(workspace.run_record, record | {"cases": record["cases"][:1]})
    with pytest.raises(PipelineError, match="MISSING_PREDICTION case=c2"):
        evaluate.score_run(workspace, config.Settings())


def test_help_is_instant_and_names_both_uses() -> None:
    done = subprocess.run(
        [sys.executable, "evaluate.py", "--help"],
        cwd=Path(evaluate.__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "--reference" in done.stdout and "--model" in done.stdout


@pytest.mark.parametrize("missing", ["--reference", "--prediction"])
def test_a_folder_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, missing: str
) -> None:
    (tmp_path / "there").mkdir()
    folders = {"--reference": "there", "--prediction": "there", "--output": "out"} | {missing: "nowhere"}
    assert (
        evaluate.main([word for option, name in folders.items() for word in (option, str(tmp_path / name))])
        == 4
    )
    message = capsys.readouterr().err
    assert "NO_DATA" in message and missing in message and "nowhere" in message
