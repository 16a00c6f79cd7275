"""Masks of any form against masks of any form, on the command line: equal scores, nothing dropped, every
refusal names its file.
"""

from __future__ import annotations

import csv
import gzip
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from builders import small_phantom, with_itk

import evaluate
import visualize
from ctseg import artifacts
from ctseg.evaluation.mask_forms import find_cases
from ctseg.evaluation.mask_pairs import pair_masks
from ctseg.evaluation.scored import ScoreSettings, score_pair
from ctseg.geometry.volume import Volume, reorient
from ctseg.scans.dicom import dicom_seg, dicom_series, rtstruct
from ctseg.scans.formats import nifti, volume_files

NAMES = ("kidney_left", "kidney_right", "bladder")
TABLE = dict(enumerate(NAMES, start=1))
SHAPE = (10, 16, 20)  # D, H, W
FORMS = ("nifti", "nrrd", "mha", "organs", "seg", "rtstruct")
SAME = (
    "structure",
    "label",
    "state",
    "tp",
    "fp",
    "fn",
    "tn",
    "dice",
    "precision",
    "recall",
    "hd_mm",
    "hd95_mm",
    "hd95_imputed_mm",
    "assd_mm",
    "nsd",
    "reference_ml",
)


def prediction_of(label: Volume) -> Volume:
    """A worse mask (synthetic): one structure moved by a voxel, one eroded, one not found."""
    array = np.zeros_like(label.array)
    array[np.roll(label.array == 1, 1, axis=2)] = 1
    array[(label.array == 2) & np.roll(label.array == 2, 1, axis=0)] = 2
    return Volume(array, label.affine)


def write(
    folder: Path, form: str, case: str, label: Volume, ct: Path, table: dict[int, str] | None = None
) -> Path:
    """One case in one form below a folder; its path."""
    table = TABLE if table is None else table
    folder.mkdir(parents=True, exist_ok=True)
    if form in ("nifti", "nrrd", "mha"):
        artifacts.write_json(folder / "labels.json", {str(value): name for value, name in table.items()})
        path = folder / f"{case}{'.nii.gz' if form == 'nifti' else '.' + form}"
        if form == "nifti":
            nifti.write_label(path, label)
        else:
            with_itk(path, label.array, label.affine)
    elif form == "organs":
        path = folder / case
        for value, name in table.items():
            nifti.write_label(
                path / f"{name}.nii.gz", Volume((label.array == value).astype(np.uint8), label.affine)
            )
    elif form == "seg":
        path = folder / f"{case}_seg.dcm"
        dicom_seg.write_segments(path, label, table, ct, algorithm="test")
    else:
        path = folder / f"{case}_rtstruct.dcm"
        rtstruct.write_structures(path, label, table, ct)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Volume]]:
    """(folder with the scans of two synthetic cases as DICOM series under ct/, the reference of each)."""
    root = tmp_path_factory.mktemp("forms")
    labels = {}
    for number, case in enumerate(("a", "b"), start=1):
        phantom = small_phantom(NAMES, seed=number, shape=SHAPE)
        dicom_series.write_series(
            root / "ct" / case, phantom.image, patient_id=f"SYNTHETIC-{case}", series_number=1, seed=number
        )
        labels[case] = phantom.label
    return root, labels


def scores(folder: Path) -> list[dict[str, str]]:
    with (folder / "per_case.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def run(*words: object) -> int:
    return evaluate.main([*map(str, words), "--no-plots", "--workers", "1"])


def refused(capsys: pytest.CaptureFixture, *words: object) -> str:
    """The error line of a comparison that must be refused."""
    assert run(*words) in (2, 4, 5)
    error = capsys.readouterr().err
    assert error.startswith("ERROR ") and " Fix: " in error and "Traceback" not in error
    return error


@pytest.mark.parametrize("single", [False, True])
def test_every_form_gives_the_same_scores(
    world: tuple[Path, dict[str, Volume]], tmp_path: Path, single: bool
) -> None:
    root, labels = world
    cases = ("a",) if single else ("a", "b")
    paths: dict[tuple[str, str], Path] = {}
    for form in FORMS:
        for side in ("reference", "prediction"):
            for case in cases:
                mask = labels[case] if side == "reference" else prediction_of(labels[case])
                found = write(tmp_path / side / form, form, case, mask, root / "ct" / case)
                paths[side, form] = found if single else tmp_path / side / form
    expected = None
    ct = root / "ct" / "a" if single else root / "ct"
    pairs = [
        ("nifti", "nifti"),
        ("nrrd", "mha"),
        ("organs", "seg"),
        ("rtstruct", "organs"),
        ("seg", "rtstruct"),
    ]
    for one, other in (
        [("nifti", "nifti"), ("rtstruct", "nifti"), ("organs", "nrrd"), ("mha", "rtstruct")]
        if single
        else pairs
    ):
        out = tmp_path / "scores" / f"{one}_{other}"
        dicom = {one, other} & {"seg", "rtstruct"}
        assert (
            run(
                "--reference",
                paths["reference", one],
                "--prediction",
                paths["prediction", other],
                "--output",
                out,
                *(["--ct", ct] if dicom else []),
                *(["--one-case"] if single else []),
            )
            == 0
        ), (one, other)
        rows = scores(out)
        order = {name: number for number, name in enumerate(NAMES)}
        # organs are listed by name, the others by number: the numbers of the results follow
        found = sorted(
            ({key: row[key] for key in SAME if key != "label"} | {"case": row["case_id"]} for row in rows),
            key=lambda row: (row["case"], order[row["structure"]]),
        )
        expected = expected or found
        assert [row | {"nsd": ""} for row in found] == [row | {"nsd": ""} for row in expected] and len(
            found
        ) == 3 * len(cases), (one, other)
    assert {row["state"] for row in expected} == {"present", "missed"} and any(
        0 < float(row["dice"]) < 1 for row in expected
    )


def test_scores_without_output_are_only_printed(
    world: tuple[Path, dict[str, Volume]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, labels = world
    reference = write(tmp_path / "r", "nifti", "a", labels["a"], root)
    prediction = write(tmp_path / "p", "organs", "a", prediction_of(labels["a"]), root)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run("--reference", reference, "--prediction", prediction) == 0
    text = capsys.readouterr().out
    assert "MACRO MEAN" in text and "what predicting nothing scores" in text and "bladder" in text
    assert sorted(tmp_path.rglob("*")) == before
    assert [line for line in text.splitlines() if len(line) > 100 and not line.startswith("- ")] == []


def test_predicting_nothing_is_said_within_100_columns(
    world: tuple[Path, dict[str, Volume]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, labels = world
    empty = Volume(np.zeros(SHAPE, np.uint8), labels["a"].affine)
    paths = [
        write(tmp_path / side, "nifti", "a", mask, root) for side, mask in (("r", labels["a"]), ("p", empty))
    ]
    assert run("--reference", paths[0], "--prediction", paths[1]) == 0
    lines = capsys.readouterr().out.splitlines()
    macro = next(line for line in lines if line.startswith("MACRO MEAN"))
    assert macro.endswith("NOT BETTER THAN PREDICTING NOTHING") and len(macro) <= 100
    assert (
        sum(line.startswith("kidney_left") and line.endswith("!") for line in lines) == 1
        and "!: NOT BETTER THAN PREDICTING NOTHING" in lines
    )


def test_overlapping_structures_are_each_scored_by_their_own_masks(tmp_path: Path) -> None:
    label = small_phantom(NAMES, shape=SHAPE).label
    inner = np.zeros(SHAPE, bool)
    inner[6, 6, 16] = True
    for side in ("r", "p"):
        for name, mask in (("kidney_left", label.array == 1), ("tumour", inner)):
            nifti.write_label(
                tmp_path / side / "a" / f"{name}.nii.gz", Volume(mask.astype(np.uint8), label.affine)
            )
    assert (inner & (label.array == 1)).sum() == 1
    assert run("--reference", tmp_path / "r", "--prediction", tmp_path / "p", "--output", tmp_path / "s") == 0
    assert [(row["structure"], row["dice"], row["fp"], row["fn"]) for row in scores(tmp_path / "s")] == [
        ("kidney_left", "1.0", "0", "0"),
        ("tumour", "1.0", "0", "0"),
    ]


def test_segmentations_of_3d_slicer_name_their_structures(tmp_path: Path) -> None:
    label = small_phantom(NAMES, shape=SHAPE).label
    keys = {
        f"Segment{value - 1}_{key}": text
        for value, name in TABLE.items()
        for key, text in (("Name", name), ("LabelValue", str(4 - value)), ("Layer", "0"))
    }
    # other values than those of labels.json
    turned = Volume(np.where(label.array > 0, 4 - label.array, 0).astype(np.uint8), label.affine)
    write(tmp_path / "r", "nifti", "a", label, tmp_path)
    (tmp_path / "p").mkdir()
    with_itk(tmp_path / "p" / "a.seg.nrrd", turned.array, turned.affine, **keys)
    assert run("--reference", tmp_path / "r", "--prediction", tmp_path / "p", "--output", tmp_path / "s") == 0
    assert [(row["structure"], row["dice"]) for row in scores(tmp_path / "s")] == [
        (name, "1.0") for name in NAMES
    ]


# ---- names ------------------------------------------------------------------------------------------------

OTHER_WORDS = {1: "Kidney_L", 2: "RightKidney", 3: "Blase"}


def test_spellings_are_matched_and_results_keep_the_references(
    world: tuple[Path, dict[str, Volume]], tmp_path: Path
) -> None:
    root, labels = world
    reference = write(tmp_path, "rtstruct", "a", labels["a"], root / "ct" / "a")
    prediction = write(tmp_path / "p", "nifti", "a", labels["a"], root, OTHER_WORDS)
    assert (
        run(
            "--reference",
            reference,
            "--prediction",
            prediction,
            "--ct",
            root / "ct" / "a",
            "--output",
            tmp_path / "s",
        )
        == 0
    )
    assert [(row["structure"], row["dice"], row["prediction_file"]) for row in scores(tmp_path / "s")] == [
        (name, "1.0", "a.nii.gz") for name in NAMES
    ]


def organs(folder: Path, label: Volume, *names: str) -> Path:
    for value, name in enumerate(names, start=1):
        nifti.write_label(
            folder / f"{name}.nii.gz", Volume((label.array == min(value, 3)).astype(np.uint8), label.affine)
        )
    return folder


def test_what_only_one_side_has_is_refused_by_name_unless_the_comparison_is_limited(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    label = small_phantom(NAMES, shape=SHAPE).label
    reference, prediction = (
        organs(tmp_path / "r" / "a", label, "liver", "spleen"),
        organs(tmp_path / "p" / "a", label, "liver", "heart", "lung"),
    )
    words = ("--reference", reference.parent, "--prediction", prediction.parent, "--output", tmp_path / "s")
    error = refused(capsys, *words)
    assert (
        "STRUCTURES_DIFFER case=a file=a" in error
        and "only the reference has spleen and only the prediction has heart, lung" in error
        and "--structures liver" in error
    )
    error = refused(capsys, *words, "--allow-missing")
    assert "only the prediction has heart, lung" in error and not (tmp_path / "s").exists()
    assert run(*words, "--structures", "liver") == 0
    assert [(row["structure"], row["state"]) for row in scores(tmp_path / "s")] == [("liver", "present")]
    assert "MISSING_PREDICTION case=a file=a: the prediction does not hold spleen" in refused(
        capsys, *words, "--structures", "liver,spleen"
    )
    assert run(*words, "--structures", "liver,spleen", "--allow-missing") == 0
    rows = scores(tmp_path / "s")
    assert [(row["structure"], row["state"], row["dice"]) for row in rows] == [
        ("liver", "present", "1.0"),
        ("spleen", "missed", "0.0"),
    ]
    assert (
        "case a: the prediction does not hold spleen"
        in json.loads((tmp_path / "s" / "summary_statistics.json").read_text())["warnings"][0]
    )
    assert (
        "UNKNOWN_STRUCTURE" in (error := refused(capsys, *words, "--structures", "heart"))
        and "no reference holds 'heart'" in error
    )


def test_what_a_reference_does_not_speak_about_is_unannotated_and_not_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    label = small_phantom(NAMES, shape=SHAPE).label
    for case, names in (("a", ("liver", "spleen")), ("b", ("liver",))):
        organs(tmp_path / "r" / case, label, *names)
        organs(tmp_path / "p" / case, label, "liver", "spleen")
    words = ("--reference", tmp_path / "r", "--prediction", tmp_path / "p", "--output", tmp_path / "s")
    assert (
        "STRUCTURES_DIFFER case=b" in (error := refused(capsys, *words))
        and "only the prediction has spleen" in error
    )
    assert run(*words, "--structures", "liver,spleen") == 0
    assert [
        (row["case_id"], row["structure"], row["state"], row["dice"]) for row in scores(tmp_path / "s")
    ] == [
        ("a", "liver", "present", "1.0"),
        ("a", "spleen", "present", "1.0"),
        ("b", "liver", "present", "1.0"),
        ("b", "spleen", "unannotated", ""),
    ]


def test_a_contour_that_nobody_drew_is_no_empty_reference_but_an_empty_prediction(
    world: tuple[Path, dict[str, Volume]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, labels = world
    partly = Volume(np.where(labels["a"].array == 3, 0, labels["a"].array), labels["a"].affine)
    drawn, full = (
        write(tmp_path / "x", "rtstruct", "a", partly, root / "ct" / "a"),
        write(tmp_path / "y", "nifti", "a", labels["a"], root),
    )
    ct = ("--ct", root / "ct" / "a", "--output", tmp_path / "s")
    assert "only the prediction has bladder" in refused(
        capsys, "--reference", drawn, "--prediction", full, *ct
    )
    assert (
        run("--reference", drawn, "--prediction", full, *ct, "--structures", "kidney_left,kidney_right") == 0
    )
    assert run("--reference", full, "--prediction", drawn, *ct) == 0
    assert [(row["structure"], row["state"]) for row in scores(tmp_path / "s")] == [
        ("kidney_left", "present"),
        ("kidney_right", "present"),
        ("bladder", "missed"),
    ]


def test_two_names_that_may_both_be_meant_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    label = small_phantom(NAMES, shape=SHAPE).label
    organs(tmp_path / "r" / "a", label, "bladder")
    organs(tmp_path / "p" / "a", label, "BLADDER", "urinary_bladder")
    assert "STRUCTURE_AMBIGUOUS case=a file=a" in refused(
        capsys, "--reference", tmp_path / "r", "--prediction", tmp_path / "p"
    )
    error = refused(capsys, "--reference", tmp_path / "p", "--prediction", tmp_path / "r")
    assert "STRUCTURE_AMBIGUOUS case=a file=a: 'bladder' would be compared with two" in error
    shutil.rmtree(tmp_path / "r")
    organs(tmp_path / "r" / "a", label, "BLADDER", "urinary_bladder")
    assert run("--reference", tmp_path / "p", "--prediction", tmp_path / "r", "--output", tmp_path / "s") == 0
    assert [row["structure"] for row in scores(tmp_path / "s")] == ["BLADDER", "urinary_bladder"]


def test_label_maps_without_names_and_values_without_a_name(
    world: tuple[Path, dict[str, Volume]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, labels = world
    seg, ct = write(tmp_path / "r", "seg", "a", labels["a"], root / "ct" / "a"), ("--ct", root / "ct" / "a")
    path = write(tmp_path / "p", "nifti", "a", labels["a"], root)
    (tmp_path / "p" / "labels.json").unlink()
    assert "NO_LABEL_NAMES case=a file=a.nii.gz" in refused(
        capsys, "--reference", seg, "--prediction", path, *ct
    )
    artifacts.write_json(tmp_path / "names.json", {"1": "kidney_left", "2": "kidney_right"})
    words = (
        "--reference",
        seg,
        "--prediction",
        path,
        *ct,
        "--labels",
        tmp_path / "names.json",
        "--structures",
        "kidney_left",
    )
    assert "LABEL_VALUES case=a file=a.nii.gz" in (error := refused(capsys, *words)) and "3" in error


def test_ignored_voxels_and_regions_of_a_table_count_as_in_two_folders(tmp_path: Path) -> None:
    label = small_phantom(NAMES, shape=SHAPE).label
    truth = label.array.copy()
    truth[0, 0, :4] = 9
    predicted = label.array.copy()
    predicted[0, 0, :4] = 1
    table = {"labels": {"kidneys": [1, 2], "bladder": 3, "ignore": 9}}
    for side, array in (("r", truth), ("p", predicted)):
        nifti.write_label(tmp_path / side / "a.nii.gz", Volume(array, label.affine))
    artifacts.write_json(tmp_path / "r" / "labels.json", table)
    results = []
    for out, words in (("maps", ()), ("forms", ("--structures", "kidneys,bladder"))):
        assert (
            run(
                "--reference",
                tmp_path / "r",
                "--prediction",
                tmp_path / "p",
                "--output",
                tmp_path / out,
                *words,
            )
            == 0
        )
        results.append(
            [{key: value for key, value in row.items() if key != "label"} for row in scores(tmp_path / out)]
        )
        report = (tmp_path / out / "evaluation_report.txt").read_text(encoding="utf-8")
        assert '4 voxels of the references are marked "ignore" and left out of all scores' in report
    assert results[0] == results[1] and [row["dice"] for row in results[0]] == ["1.0", "1.0"]


# ---- grids and files --------------------------------------------------------------------------------------


def test_axes_are_reordered_with_and_without_a_scan(
    world: tuple[Path, dict[str, Volume]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, labels = world
    turned = reorient(prediction_of(labels["a"]), (2, 0, 1), (True, False, True))
    seg, path = (
        write(tmp_path / "r", "seg", "a", labels["a"], root / "ct" / "a"),
        write(tmp_path / "p", "nifti", "a", turned, root),
    )
    straight = write(tmp_path / "q", "nifti", "a", prediction_of(labels["a"]), root)
    for number, prediction in enumerate((path, straight)):
        assert (
            run(
                "--reference",
                seg,
                "--prediction",
                prediction,
                "--ct",
                root / "ct" / "a",
                "--output",
                tmp_path / str(number),
            )
            == 0
        )
    assert scores(tmp_path / "0") == scores(tmp_path / "1")
    reference = write(tmp_path / "o", "organs", "a", labels["a"], root)
    assert run("--reference", reference, "--prediction", path, "--output", tmp_path / "without") == 0
    assert (
        run(
            "--reference",
            reference,
            "--prediction",
            path,
            "--ct",
            root / "ct" / "a",
            "--output",
            tmp_path / "with",
        )
        == 0
    )
    assert scores(tmp_path / "without") == scores(tmp_path / "with")


def test_equal_label_maps_whose_axes_run_differently_score_1(
    world: tuple[Path, dict[str, Volume]], tmp_path: Path
) -> None:
    """Files and folders, with and without the scan: one grid rule."""
    root, labels = world
    turned = reorient(labels["a"], (2, 0, 1), (True, False, True))
    paths = [
        write(tmp_path / side, "nifti", "a", label, root)
        for side, label in (("r", labels["a"]), ("p", turned))
    ]
    shutil.copytree(root / "ct" / "a", tmp_path / "ct" / "a")
    for number, (one, other, *ct) in enumerate(
        (
            paths,
            [path.parent for path in paths],
            [*paths, "--ct", root / "ct" / "a"],
            [*(path.parent for path in paths), "--ct", tmp_path / "ct"],
        )
    ):
        out = tmp_path / str(number)
        assert run("--reference", one, "--prediction", other, "--output", out, *ct) == 0
        assert [row["dice"] for row in scores(out)] == ["1.0"] * 3


def test_a_label_map_under_another_name_is_the_same_for_every_script(
    world: tuple[Path, dict[str, Volume]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Plain but called .nii.gz, compressed but called .nii, an HTML page: read with a word or refused by
    name, without the folder.
    """
    root, labels = world
    names = tmp_path / "names.json"
    artifacts.write_json(names, {str(value): name for value, name in TABLE.items()})
    straight = tmp_path / "a.nii.gz"
    nifti.write_label(straight, labels["a"])
    plain = gzip.decompress(straight.read_bytes())
    for name, content, code in (
        ("plain/a.nii.gz", plain, "WARN NOT_GZIP"),
        ("zipped/a.nii", gzip.compress(plain), "WARN NOT_GZIP"),
        ("page/a.nii.gz", b"<html>404</html>", "ERROR NOT_NIFTI"),
    ):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(content)
        commands = [
            (evaluate.main, ["--reference", path, "--prediction", straight, *more])
            for more in (["--labels", names], ["--labels", names, "--ct", root / "ct" / "a"], [])
        ]
        for main, words in [
            *commands,
            (visualize.main, ["--input", path, "--sheet", tmp_path / "sheet.png", "--ct", root / "ct" / "a"]),
        ]:
            done = main(
                [*map(str, words), *(["--no-plots", "--workers", "1"] if main is evaluate.main else [])]
            )
            output = capsys.readouterr()
            said = output.out + output.err
            assert "Traceback" not in said and str(tmp_path) not in "".join(
                line for line in said.splitlines() if line.startswith(("WARN", "ERROR"))
            )
            if code is not None and code.startswith("ERROR"):
                assert done != 0 and f"{code} case=" in said
            elif words is not commands[2][1]:
                assert done == 0 and (code is None or code in said), said
            else:
                assert done == 4 and "NO_LABEL_NAMES" in said


@pytest.mark.parametrize("change", ["moved", "smaller"])
def test_another_grid_is_refused_by_name(
    world: tuple[Path, dict[str, Volume]], tmp_path: Path, capsys: pytest.CaptureFixture, change: str
) -> None:
    root, labels = world
    affine = labels["a"].affine.copy()
    affine[2, 3] += 1.0 if change == "moved" else 0.0
    other = Volume(labels["a"].array if change == "moved" else labels["a"].array[:-1], affine)
    seg, path = (
        write(tmp_path / "r", "seg", "a", labels["a"], root / "ct" / "a"),
        write(tmp_path / "p", "nifti", "a", other, root),
    )
    error = refused(capsys, "--reference", seg, "--prediction", path, "--ct", root / "ct" / "a")
    assert "GRID_MISMATCH case=a file=a.nii.gz" in error and (
        "1 mm away" in error if change == "moved" else "(9, 16, 20)" in error
    )


def test_cases_files_and_scans_that_are_missing_or_too_many_are_named(
    world: tuple[Path, dict[str, Volume]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, labels = world
    for case in ("a", "b"):
        write(tmp_path / "r", "seg", case, labels[case], root / "ct" / case)
        write(tmp_path / "p", "organs", case, labels[case], root)
    words = ("--reference", tmp_path / "r", "--prediction", tmp_path / "p")
    assert "SCAN_MISSING case=a file=a_seg.dcm" in refused(capsys, *words)
    shutil.copytree(root / "ct" / "a", tmp_path / "ct" / "a")
    assert "SCAN_MISSING case=b file=ct" in refused(capsys, *words, "--ct", tmp_path / "ct")
    assert (
        "NO_DATA" in (error := refused(capsys, *words, "--ct", tmp_path / "nowhere"))
        and "after --ct" in error
    )
    shutil.move(tmp_path / "p" / "b", tmp_path / "p" / "c")
    assert "MISSING_PREDICTION case=b" in refused(capsys, *words, "--ct", root / "ct")
    assert "EXTRA_PREDICTION case=c" in refused(capsys, *words, "--ct", root / "ct", "--allow-missing")
    shutil.rmtree(tmp_path / "p" / "c")
    assert run(*words, "--ct", root / "ct", "--allow-missing", "--output", tmp_path / "s") == 0
    assert [row["state"] for row in scores(tmp_path / "s")] == ["present"] * 3 + ["missed"] * 3
    write(tmp_path / "r", "rtstruct", "a", labels["a"], root / "ct" / "a")
    assert "DUPLICATE_ID case=a file=a_seg.dcm" in refused(capsys, *words, "--ct", root / "ct")
    assert "MASKS_AMBIGUOUS" in refused(
        capsys, "--reference", tmp_path / "r", "--prediction", tmp_path / "p" / "a" / "bladder.nii.gz"
    )


def test_damaged_foreign_and_wrong_files_are_named(
    world: tuple[Path, dict[str, Volume]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, labels = world
    good, ct = write(tmp_path / "r", "nifti", "a", labels["a"], root), ("--ct", root / "ct" / "a")
    foreign = write(tmp_path / "p", "rtstruct", "b", labels["b"], root / "ct" / "b")
    assert "RT_WRONG_SERIES case=a file=b_rtstruct.dcm" in refused(
        capsys, "--reference", good, "--prediction", foreign, *ct
    )
    (tmp_path / "text.dcm").write_text("no mask at all")
    assert "file=text.dcm" in refused(capsys, "--reference", good, "--prediction", tmp_path / "text.dcm", *ct)
    cut = with_itk(tmp_path / "cut.nrrd", labels["a"].array, labels["a"].affine, compress=False)
    cut.write_bytes(cut.read_bytes()[:-9])
    artifacts.write_json(tmp_path / "labels.json", {str(value): name for value, name in TABLE.items()})
    assert "NRRD_TRUNCATED case=a file=cut.nrrd" in refused(capsys, "--reference", good, "--prediction", cut)
    (tmp_path / "v").mkdir()
    shutil.copy(cut, tmp_path / "v" / "a.nhdr")
    assert "PAIR_UNSUPPORTED case=a file=a.nhdr" in refused(
        capsys,
        "--reference",
        good.parent,
        "--prediction",
        tmp_path / "v",
        "--labels",
        tmp_path / "labels.json",
    )
    assert "NO_DATA" in refused(capsys, "--reference", tmp_path / "v" / "none", "--prediction", good)
    assert run("--reference", good) == 2 and run("--ct", root) == 2


def test_no_patient_data_reaches_results(
    world: tuple[Path, dict[str, Volume]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, labels = world
    path = write(tmp_path / "r", "rtstruct", "a", labels["a"], root / "ct" / "a")
    assert pydicom.dcmread(path).PatientID == "SYNTHETIC-a"
    assert (
        run("--reference", path, "--prediction", path, "--ct", root / "ct" / "a", "--output", tmp_path / "s")
        == 0
    )
    texts = [
        capsys.readouterr().out,
        *(file.read_text(encoding="utf-8") for file in (tmp_path / "s").iterdir()),
    ]
    assert not any("SYNTHETIC-a" in text for text in texts)


def test_one_case_in_two_folders_of_organs(tmp_path: Path) -> None:
    label = small_phantom(NAMES, shape=SHAPE).label
    words = (
        "--reference",
        organs(tmp_path / "truth", label, *NAMES),
        "--prediction",
        organs(tmp_path / "mine" / "segmentations", label, *NAMES).parent,
    )
    assert run(*words, "--one-case", "--output", tmp_path / "s") == 0
    assert {(row["case_id"], row["dice"]) for row in scores(tmp_path / "s")} == {("truth", "1.0")}


def test_a_file_of_one_structure_holds_one_value(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    label = small_phantom(NAMES, shape=SHAPE).label
    words = (
        "--reference",
        organs(tmp_path / "truth", label, NAMES[0]),
        "--prediction",
        tmp_path / "mine",
        "--one-case",
        "--output",
        tmp_path / "s",
    )
    file = tmp_path / "mine" / f"{NAMES[0]}.nii.gz"
    nifti.write_label(file, Volume((label.array == 1).astype(np.uint8) * 255, label.affine))
    assert run(*words) == 0 and [row["dice"] for row in scores(tmp_path / "s")] == ["1.0"]
    nifti.write_label(file, label)  # the whole label map under the name of one structure
    assert (
        "LABEL_VALUES case=truth file=mine: the mask of 'kidney_left' holds several values, from 0 to 3"
        in refused(capsys, *words)
    )


def test_a_pair_travels_to_another_process(world: tuple[Path, dict[str, Volume]], tmp_path: Path) -> None:
    root, labels = world
    paths = (
        write(tmp_path, "seg", "a", labels["a"], root / "ct" / "a"),
        write(tmp_path, "rtstruct", "a", prediction_of(labels["a"]), root / "ct" / "a"),
    )
    (pair,), structures = pair_masks(*paths, ct=root / "ct" / "a")
    how = ScoreSettings({structure.name: (2.0, 1.0) for structure in structures})
    assert score_pair(pickle.loads(pickle.dumps(pair)), structures, how) == score_pair(pair, structures, how)


def test_a_folder_says_which_cases_it_holds(world: tuple[Path, dict[str, Volume]], tmp_path: Path) -> None:
    root, labels = world
    write(tmp_path, "nifti", "a", labels["a"], root)
    write(tmp_path, "organs", "a", labels["a"], root)  # infer.py --format nifti,organs: the label map counts
    write(tmp_path, "organs", "b", labels["b"], root)
    write(tmp_path / "c", "seg", "whatever", labels["a"], root / "ct" / "a")
    shutil.copytree(root / "ct" / "a", tmp_path / "scan")
    found = find_cases(tmp_path)
    assert {case: path.relative_to(tmp_path).as_posix() for case, path in found.items()} == {
        "a": "a.nii.gz",
        "b": "b",
        "c": "c/whatever_seg.dcm",
    }


# ---- real files -------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize("patient", ["STS_002", "STS_019"])
def test_the_contours_of_the_ibsi_equal_their_mask_on_the_command_line(
    real_data: Path, tmp_path: Path, patient: str
) -> None:
    root = real_data / "ibsi" / "ibsi_validation"
    folder = root / "dicom" / patient / "CT"
    artifacts.write_json(tmp_path / "names.json", {"1": "GTV mass CT"})
    contours, mask = next((folder / "mask").glob("*.dcm")), root / "nifti" / patient / "CT_mask.nii.gz"
    for one, other in ((contours, mask), (mask, contours)):
        assert (
            run(
                "--reference",
                one,
                "--prediction",
                other,
                "--ct",
                folder / "image",
                "--labels",
                tmp_path / "names.json",
                "--output",
                tmp_path / "s",
            )
            == 0
        )
        (row,) = scores(tmp_path / "s")
        assert (row["state"], row["dice"], row["hd_mm"], row["fp"], row["fn"]) == (
            "present",
            "1.0",
            "0.0",
            "0",
            "0",
        ) and int(row["tp"]) > 5000


@pytest.mark.real
def test_a_real_nrrd_label_map_equals_itself_as_nifti(real_data: Path, tmp_path: Path) -> None:

    path = real_data / "cip" / "Testing" / "Data" / "Input" / "wholeLung-64.nrrd"
    nifti.write_label(tmp_path / "lung.nii.gz", volume_files.read_integers(path)[0])
    artifacts.write_json(tmp_path / "names.json", {"1": "lung"})
    for ct in ((), ("--ct", path.with_name("ct-64Dicom")), ("--ct", path.with_name("ct-64.nrrd"))):
        assert (
            run(
                "--reference",
                path,
                "--prediction",
                tmp_path / "lung.nii.gz",
                "--labels",
                tmp_path / "names.json",
                "--output",
                tmp_path / "s",
                *ct,
            )
            == 0
        )
        assert [row["dice"] for row in scores(tmp_path / "s")] == ["1.0"]
