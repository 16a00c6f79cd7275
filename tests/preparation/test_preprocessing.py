"""The preprocessing stage on a small hand-made data set of the layout `plain`."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest
from builders import small_phantom, write_nnunet
from dying import prepare_or_die
from shapes import probabilities_of
from tiny_workspace import read_tensor

import preprocessing
import run_pipeline
from ctseg import artifacts, cli, laterality
from ctseg.artifacts import Workspace, read_json
from ctseg.config import DataSettings
from ctseg.datasets.case import DataSet
from ctseg.errors import (
    CaseError,
    IntegrityError,
    PipelineError,
    PreconditionError,
    ResourceError,
    UsageError,
)
from ctseg.geometry import grids
from ctseg.geometry.argmax_on_scan import label_on_scan
from ctseg.geometry.volume import Grid
from ctseg.manifest import Manifest, from_record
from ctseg.preparation import case_to_tensors
from ctseg.preparation.choices import choose_structures
from ctseg.processes import ordered_map

LABELS = {"liver": 1, "kidney_left": 2, "kidney_right": 3}
SHAPE = (28, 24, 20)  # of the file: (i, j, k)
SPACING = (4.0, 5.0, 6.0)


def write_case(
    folder: Path, *, number: int, spacing: tuple[float, float, float] = SPACING, without: str | None = None
) -> None:
    """A soft body in air with three boxes in it; i runs to the left, j to the back, k upwards."""
    generator = np.random.default_rng(number)
    image = np.full(SHAPE, -1000.0)
    image[3:25, 4:21, 1:19] = 40
    label = np.zeros(SHAPE, np.uint8)
    shift = number % 3
    for value, corner in ((1, (4, 8, 9)), (2, (18, 14, 3)), (3, (5, 14, 3))):
        i, j, k = (c + shift for c in corner)
        label[i : i + 5, j : j + 4, k : k + 5] = value
        image[i : i + 5, j : j + 4, k : k + 5] = 40 + 30 * value
    image += generator.normal(0, 8, SHAPE)
    if without:
        label[label == LABELS[without]] = 0
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # to RAS: x to the right, y to the front
    affine[:3, 3] = (50, 60, -40)
    folder.mkdir(parents=True)
    for name, array in (("ct", np.rint(image).astype(np.int16)), ("labels", label)):
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")


def write_data(root: Path, count: int = 6, **entries: dict[str, Any]) -> Path:
    """`count` cases p0, p1, ...; entries: more fields of a case in the manifest, or options of write_case
    under "_".
    """
    cases = []
    for number in range(count):
        entry = dict(entries.get(f"p{number}", {}))
        options = entry.pop("_", {})
        cases.append({"case": f"p{number}", **entry})
        write_case(root / entry.get("split", "") / f"p{number}", number=number, **options)
    (root / "manifest.json").write_text(json.dumps({"labels": LABELS, "cases": cases}))
    return root


def preprocess(data: Path, workspace: Path, *options: str) -> int:
    """Run the stage in this process with one worker; errors come through."""
    arguments = cli.parser("preprocessing.py", "").parse_args(
        ["--data", str(data), "--workspace", str(workspace), "--workers", "1", *options]
    )
    return preprocessing.run(*cli.settings_from(arguments))


def snapshot(workspace: Path) -> dict[str, tuple[int, bytes]]:
    files = sorted(path for path in (workspace / "processed_data").rglob("*") if path.is_file())
    return {
        path.relative_to(workspace).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in files
    }


def changed(before: dict[str, tuple[int, bytes]], after: dict[str, tuple[int, bytes]]) -> set[str]:
    """Files that were written or deleted, without the report of the run."""
    names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    return names - {"processed_data/preprocess_report.json"}


def report(workspace: Path) -> dict[str, Any]:
    return read_json(workspace / "processed_data/preprocess_report.json")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(
        tmp_path / "data",
        p1={"annotated": ["liver", "kidney_left"], "_": {"without": "kidney_right"}},
        p2={"_": {"without": "kidney_right"}},
    )


def test_manifest_says_everything_a_later_stage_needs(data: Path, tmp_path: Path) -> None:
    assert preprocess(data, tmp_path / "w") == 0
    workspace = Workspace(tmp_path / "w")
    manifest = artifacts.read_json(workspace.manifest)
    assert (manifest["layout"], manifest["synthetic"], manifest["structures"]) == (
        "plain",
        False,
        list(LABELS),
    )
    # auto: one tensor holds the body
    assert (manifest["grid"], manifest["spacing_mm"]) == ("windows", [6.0, 5.0, 4.0])
    assert [case["case_id"] for case in manifest["cases"]] == [f"p{n}" for n in range(6)]
    assert sorted(case["split"] for case in manifest["cases"]) == [
        "test",
        "train",
        "train",
        "train",
        "train",
        "val",
    ]
    states = {case["case_id"]: case["states"]["kidney_right"] for case in manifest["cases"]}
    assert (states["p0"], states["p1"], states["p2"]) == ("present", "unlabelled", "absent")
    assert manifest["cases"][0]["voxels"] == {"liver": 100, "kidney_left": 100, "kidney_right": 100}
    assert (
        manifest["cases"][2]["voxels"]["kidney_right"] == 0
        and "kidney_right" not in manifest["cases"][1]["voxels"]
    )
    assert manifest["cases"][1]["lost_fraction"] == {"liver": 0.0, "kidney_left": 0.0}
    assert manifest["splits_hash"] == artifacts.canonical_hash(read_json(workspace.splits))
    assert report(tmp_path / "w")["found"] == 6 and report(tmp_path / "w")["processed"] == 6
    assert str(tmp_path) not in workspace.manifest.read_text().replace(manifest["data_root"], "")


@pytest.mark.parametrize("grid", ["whole", "windows"])
def test_tensors_and_references(data: Path, tmp_path: Path, grid: str) -> None:
    preprocess(data, tmp_path / "w", "--set", f"data.grid={grid}")
    workspace = Workspace(tmp_path / "w")
    manifest = artifacts.read_json(workspace.manifest)
    assert manifest["grid"] == grid and (manifest["spacing_mm"] is None) == (grid == "whole")
    for case in manifest["cases"]:
        canvas, scan = from_record(Grid, case["canvas"]), from_record(Grid, case["scan"])
        assert len(case["tensors"]) == 1 and case["tensors"][0]["origin"] == [0, 0, 0]
        image, label = read_tensor(
            workspace.processed / case["tensors"][0]["file"], sha256=case["tensors"][0]["sha256"]
        )
        assert (
            image.shape == (128, 128, 128)
            and image.dtype == np.float16
            and label is not None
            and label.dtype == np.uint8
        )
        # window -250..750: 40 HU is 0.29, air is 0
        assert image.min() == 0 and 0.25 < float(image.max()) < 0.5
        back = label_on_scan(
            probabilities_of(np.stack([label == n for n in range(4)]).astype(np.float32)), canvas, scan
        )
        path = workspace.processed / case["reference"]["file"]
        assert artifacts.file_hash(path) == case["reference"]["sha256"]
        stored, source = nib.load(path), nib.load(data / case["case_id"] / "labels.nii.gz")
        np.testing.assert_array_equal(stored.affine, source.affine)
        np.testing.assert_array_equal(stored.get_fdata(), source.get_fdata())
        agreement = (back == np.asarray(source.dataobj).T).mean()
        assert agreement == 1.0 if grid == "windows" else agreement > 0.98
        if case["states"]["kidney_right"] == "present":  # left is where W is greater
            assert np.argwhere(label == 2)[:, 2].mean() > np.argwhere(label == 3)[:, 2].mean() + 10


def test_second_run_writes_nothing_and_what_changed_is_redone(data: Path, tmp_path: Path) -> None:
    w = tmp_path / "w"
    preprocess(data, w)
    first = snapshot(w)
    (data / "p0/ct.nii.gz").touch()
    assert preprocess(data, w) == 0
    assert changed(first, snapshot(w)) == set() and report(w)["cached"] == 6
    third = snapshot(w)
    preprocess(data, w)
    assert third == snapshot(w)  # not even the report

    (w / "processed_data/tensors/p3_00.npz").unlink()
    (w / "processed_data/references/p4.nii.gz").write_bytes(b"damaged")
    preprocess(data, w)
    again = snapshot(w)
    assert (report(w)["processed"], report(w)["cached"]) == (2, 4)
    assert {name: content for name, (_, content) in again.items()} == {
        name: content for name, (_, content) in third.items()
    } | {"processed_data/preprocess_report.json": again["processed_data/preprocess_report.json"][1]}

    image = nib.load(data / "p5/ct.nii.gz")
    voxels = np.asarray(image.dataobj).copy()
    voxels[10, 10, 10] += 1
    nib.save(nib.Nifti1Image(voxels, image.affine), data / "p5/ct.nii.gz")
    preprocess(data, w)
    assert changed(again, snapshot(w)) == {
        "processed_data/manifest.json",
        "processed_data/tensors/p5_00.npz",
        "processed_data/references/p5.nii.gz",
    }

    preprocess(data, w, "--set", "data.window_hu=-200,300")
    assert report(w)["processed"] == 6
    assert "STALE_CACHE" in {finding["code"] for finding in report(w)["findings"]}


def test_removed_case_takes_its_files_along(data: Path, tmp_path: Path) -> None:
    preprocess(data, tmp_path / "w")
    splits = read_json(tmp_path / "w/processed_data/splits.json")
    victim = next(name for name, split in splits["assignment"].items() if split == "train")
    content = json.loads((data / "manifest.json").read_text())
    content["cases"] = [entry for entry in content["cases"] if entry["case"] != victim]
    (data / "manifest.json").write_text(json.dumps(content))
    assert preprocess(data, tmp_path / "w") == 0
    assert not list((tmp_path / "w/processed_data").rglob(f"{victim}*"))
    assert len(list((tmp_path / "w/processed_data/tensors").iterdir())) == 5
    assert read_json(tmp_path / "w/processed_data/splits.json") == splits  # who is gone stays written down


def test_any_number_of_workers_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    for workers in ("1", "2"):
        preprocess(data, tmp_path / workers, "--workers", workers)
    one, two = (
        {name: content for name, (_, content) in snapshot(tmp_path / workers).items()}
        for workers in ("1", "2")
    )
    assert len(one) == 15 and one == two


def test_bad_cases_are_skipped_reported_and_end_in_exit_code_3(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 10)
    (data / "p2/ct.nii.gz").write_bytes((data / "p2/ct.nii.gz").read_bytes()[:500])
    (data / "p7/labels.nii.gz").unlink()
    assert preprocess(data, tmp_path / "w") == 3
    found = report(tmp_path / "w")
    assert (found["found"], found["processed"], found["skipped"], found["skipped_cases"]) == (
        10,
        8,
        2,
        ["p2", "p7"],
    )
    errors = {finding["case"]: finding for finding in found["findings"] if finding["severity"] == "ERROR"}
    assert (
        set(errors) == {"p2", "p7"}
        and errors["p2"]["action"] == "skipped"
        and errors["p2"]["code"] == "NIFTI_TRUNCATED"
    )
    assert [case["case_id"] for case in read_json(tmp_path / "w/processed_data/manifest.json")["cases"]] == [
        f"p{n}" for n in range(10) if n not in (2, 7)
    ]
    assert preprocess(data, tmp_path / "w", "--allow-skips") == 0
    assert report(tmp_path / "w")["cached"] == 8


def test_too_many_bad_cases_stop_the_run(data: Path, tmp_path: Path) -> None:
    for name in ("p0", "p1"):
        (data / name / "ct.nii.gz").write_bytes(b"")
    with pytest.raises(PreconditionError, match=r"SKIP_LIMIT.*2 of 6") as caught:
        preprocess(data, tmp_path / "w")
    assert caught.value.exit_code == 4
    assert report(tmp_path / "w")["skipped"] == 2  # what went wrong can be read all the same
    assert preprocess(data, tmp_path / "w", "--set", "data.skip_limit=0.5") == 3


def test_foreseen_and_unforeseen_faults_of_one_case(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults: dict[str, Callable[[], None]] = {}
    original = case_to_tensors.load_case

    def faulty(record: Any, *arguments: Any, **options: Any) -> Any:
        if record.case_id in faults:
            raise faults[record.case_id]()  # type: ignore[misc]
        return original(record, *arguments, **options)

    monkeypatch.setattr(case_to_tensors, "load_case", faulty)
    faults["p3"] = lambda: ZeroDivisionError("secret header text")  # type: ignore[assignment, return-value]
    monkeypatch.setattr("preprocessing.LOG.propagate", True)
    with caplog.at_level("DEBUG", "ctseg"):
        assert preprocess(data, tmp_path / "w") == 3
    finding = next(
        f for f in report(tmp_path / "w")["findings"] if f["case"] == "p3" and f["severity"] == "ERROR"
    )
    assert (
        finding["code"] == "INTERNAL"
        and "ZeroDivisionError" in finding["cause"]
        and "secret" not in json.dumps(finding)
    )
    assert any(
        "Traceback" in record.getMessage() and record.levelname == "DEBUG" for record in caplog.records
    )
    faults["p3"] = lambda: ResourceError("DISK_FULL", "no space", "free some")  # type: ignore[assignment, return-value]
    with pytest.raises(ResourceError, match="DISK_FULL"):
        preprocess(data, tmp_path / "other")


def test_killed_worker_costs_one_case(data: Path, tmp_path: Path) -> None:
    from ctseg.datasets.layouts import open_data_set

    recipe = case_to_tensors.Recipe(
        data, Workspace(tmp_path / "w"), tuple(LABELS), DataSettings(), plan=grids.GridPlan("whole", None)
    )
    jobs = [case_to_tensors.CaseJob(record, recipe) for record in open_data_set(data).cases[:3]]
    outcomes = ordered_map(prepare_or_die, jobs, workers=2, after_death=case_to_tensors.after_death)
    assert [outcome.case_id for outcome in outcomes] == ["p0", "p1", "p2"]
    assert [outcome.case is None for outcome in outcomes] == [False, True, False]
    assert [finding.code for finding in outcomes[1].findings] == ["WORKER_DIED"]


def test_splits_are_frozen_and_guarded(data: Path, tmp_path: Path) -> None:
    w = tmp_path / "w"
    preprocess(data, w)
    before = read_json(w / "processed_data/splits.json")
    write_case(data / "p6", number=6)
    content = json.loads((data / "manifest.json").read_text())
    content["cases"].append({"case": "p6"})
    (data / "manifest.json").write_text(json.dumps(content))
    preprocess(data, w, "--seed", "5")
    after = read_json(w / "processed_data/splits.json")
    assert {name: after["assignment"][name] for name in before["assignment"]} == before[
        "assignment"
    ] and "p6" in after["assignment"]
    assert "SPLIT_FROZEN" in {finding["code"] for finding in report(w)["findings"]}
    after["assignment"]["p0"] = "test" if after["assignment"]["p0"] != "test" else "train"
    artifacts.write_json(w / "processed_data/splits.json", after)
    with pytest.raises(IntegrityError, match="SPLIT_CHANGED"):
        preprocess(data, w)


def test_copies_stay_in_one_split_and_never_cross_frozen_ones(data: Path, tmp_path: Path) -> None:
    w = tmp_path / "w"
    preprocess(data, w)
    assignment = read_json(w / "processed_data/splits.json")["assignment"]
    test, train = (
        next(name for name, split in assignment.items() if split == wanted) for wanted in ("test", "train")
    )
    for file in ("ct.nii.gz", "labels.nii.gz"):
        (data / train / file).write_bytes((data / test / file).read_bytes())
    with pytest.raises(IntegrityError, match="LEAKAGE"):
        preprocess(data, w)
    assert preprocess(data, tmp_path / "fresh") == 0
    fresh = read_json(tmp_path / "fresh/processed_data/splits.json")["assignment"]
    assert fresh[test] == fresh[train]
    assert "DUPLICATE_CONTENT" in {finding["code"] for finding in report(tmp_path / "fresh")["findings"]}


def test_own_split_of_the_data_set(tmp_path: Path) -> None:
    data = write_data(
        tmp_path / "data", 5, **{f"p{n}": {"split": "test" if n < 2 else "train"} for n in range(5)}
    )
    preprocess(data, tmp_path / "w")
    assignment = read_json(tmp_path / "w/processed_data/splits.json")["assignment"]
    assert assignment["p0"] == assignment["p1"] == "test"
    assert sorted(assignment[name] for name in ("p2", "p3", "p4")) == ["train", "train", "val"]


def test_three_patients_are_enough_and_two_are_not(tmp_path: Path) -> None:
    assert preprocess(write_data(tmp_path / "three", 3), tmp_path / "w3") == 0
    with pytest.raises(PreconditionError, match=r"TOO_FEW_CASES.*at least 3"):
        preprocess(write_data(tmp_path / "two", 2), tmp_path / "w2")


def test_structures_can_be_chosen(data: Path, tmp_path: Path) -> None:
    preprocess(data, tmp_path / "w", "--structures", "kidney_left,liver")
    assert read_json(tmp_path / "w/processed_data/manifest.json")["structures"] == ["liver", "kidney_left"]
    with pytest.raises(UsageError, match=r"UNKNOWN_ORGAN.*'livr'.*did you mean 'liver'"):
        preprocess(data, tmp_path / "w", "--structures", "livr")


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("data.spacing_mm=1,2", "BAD_VALUE"),
        ("data.spacing_mm=0.001", "BAD_VALUE"),
        ("data.test_fraction=0.8", "BAD_VALUE"),
    ],
)
def test_bad_settings(data: Path, tmp_path: Path, setting: str, code: str) -> None:
    with pytest.raises(UsageError, match=code):
        preprocess(data, tmp_path / "w", "--set", setting, "--set", "data.val_fraction=0.15")


def test_windows_of_fine_spacing_overlap(data: Path, tmp_path: Path) -> None:
    preprocess(data, tmp_path / "w", "--set", "data.spacing_mm=1.5,1,0.6", "--structures", "liver")
    manifest = read_json(tmp_path / "w/processed_data/manifest.json")
    assert (manifest["grid"], manifest["spacing_mm"]) == ("windows", [1.5, 1.0, 0.6])
    case = manifest["cases"][0]
    origins = np.array([tensor["origin"] for tensor in case["tensors"]])
    assert len(origins) == 2 and case["canvas"]["shape"][2] > 128  # 28 x 4 mm at 0.6 mm
    assert 0 < origins[1, 2] <= 96
    first, second = (
        read_tensor(tmp_path / "w/processed_data" / tensor["file"])[0] for tensor in case["tensors"]
    )
    np.testing.assert_array_equal(first[:, :, origins[1, 2] :], second[:, :, : 128 - origins[1, 2]])


def test_auto_takes_one_tensor_when_the_body_is_too_large(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 3)
    for number in range(3):  # the same bodies in slices of an eighth: 20 x 8 = 160 voxels along one axis
        for name in ("ct", "labels"):
            image = nib.load(data / f"p{number}" / f"{name}.nii.gz")
            larger = np.repeat(np.asarray(image.dataobj), 8, axis=2)
            nib.save(
                nib.Nifti1Image(larger, image.affine @ np.diag([1, 1, 0.125, 1])),
                data / f"p{number}" / f"{name}.nii.gz",
            )
    preprocess(data, tmp_path / "w")
    manifest = read_json(tmp_path / "w/processed_data/manifest.json")
    assert manifest["grid"] == "whole" and all(len(case["tensors"]) == 1 for case in manifest["cases"])


def test_full_disk_is_noticed_before_the_work(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = preprocessing.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(preprocessing.shutil, "disk_usage", lambda path: usage._replace(free=10_000_000))
    with pytest.raises(ResourceError, match="DISK_FULL") as caught:
        preprocess(data, tmp_path / "w")
    assert caught.value.exit_code == 6


def test_a_full_disk_is_noticed_before_lost_tensors_are_made_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--set", "data.grid=windows")
    assert preprocess(data, tmp_path / "w", *words) == 0
    shutil.rmtree(tmp_path / "w/processed_data/tensors")
    usage = preprocessing.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(preprocessing.shutil, "disk_usage", lambda path: usage._replace(free=10_000_000))
    with pytest.raises(ResourceError, match="DISK_FULL"):
        preprocess(data, tmp_path / "w", *words)
    assert not (tmp_path / "w/processed_data/tensors").exists()


def test_findings_keep_their_case_through_a_worker() -> None:
    """Errors travel between processes whole."""
    # the same protocol as between processes
    error: PipelineError = copy.deepcopy(CaseError("X", "cause", "fix", case="a", file="b"))
    assert (error.case, error.file, error.code) == ("a", "b", "X")


@pytest.mark.real
@pytest.mark.slow
def test_openkbp_in_its_own_format(real_data: Path, tmp_path: Path) -> None:
    """Three patients suffice: one each to train, validate and test."""
    assert preprocess(real_data / "openkbp_csv", tmp_path / "w") == 0
    manifest = read_json(tmp_path / "w/processed_data/manifest.json")
    assert sorted(case["split"] for case in manifest["cases"]) == ["test", "train", "val"]
    assert all(
        case["states"]["Brainstem"] == "present" and case["lost_fraction"]["Brainstem"] == 0
        for case in manifest["cases"]
    )


def _move(manifest: dict[str, Any]) -> None:
    next(case for case in manifest["cases"] if case["split"] == "test")["split"] = "train"


def _swap_patients(manifest: dict[str, Any]) -> None:
    test, train = (
        next(case for case in manifest["cases"] if case["split"] == split) for split in ("test", "train")
    )
    train["patient_id"] = test["patient_id"]


EDITS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a test case moved to train": (_move, "LEAKAGE"),
    "one patient in two splits": (_swap_patients, "LEAKAGE"),
    "a case twice": (
        lambda manifest: manifest["cases"].append(dict(manifest["cases"][0])),
        "MANIFEST_CHANGED",
    ),
    "a case removed": (lambda manifest: manifest["cases"].pop(), "MANIFEST_CHANGED"),
    "structures reordered": (lambda manifest: manifest["structures"].reverse(), "MANIFEST_CHANGED"),
    "a state changed": (
        lambda manifest: manifest["cases"][0]["states"].update(liver="absent"),
        "MANIFEST_CHANGED",
    ),
    "another window": (lambda manifest: manifest.update(window_hu=[-100, 100]), "MANIFEST_CHANGED"),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Workspace]:
    """(data, the workspace after the stage); who changes it brings it back."""
    root = tmp_path_factory.mktemp("prepared")
    data = write_data(root / "data")
    assert preprocess(data, root / "w") == 0
    return data, Workspace(root / "w")


@pytest.mark.parametrize("edit", list(EDITS))
def test_a_manifest_edited_by_hand_is_refused_by_every_later_stage(
    prepared: tuple[Path, Workspace], edit: str
) -> None:
    (data, workspace), (change, code) = prepared, EDITS[edit]
    before = manifest = artifacts.read_json(workspace.manifest)
    manifest = copy.deepcopy(before)
    change(manifest)
    artifacts.write_json(workspace.manifest, manifest)
    with pytest.raises(IntegrityError, match=code) as caught:
        Manifest.load(workspace)
    assert caught.value.exit_code == 5
    assert preprocess(data, workspace.root) == 0  # the remedy that the message names
    assert artifacts.read_json(workspace.manifest) == before


def test_healthy_patients_are_used_and_every_split_shows_the_structure(tmp_path: Path) -> None:
    phantoms = {
        f"colon_{n}": small_phantom(("lesion",), seed=n, absent=("lesion",) if n > 3 else ())
        for n in range(1, 9)
    }
    write_nnunet(tmp_path / "data", phantoms)
    assert preprocess(tmp_path / "data", tmp_path / "w") == 0
    cases = artifacts.read_json(Workspace(tmp_path / "w").manifest)["cases"]
    assert {case["case_id"]: case["states"]["lesion"] for case in cases} == {
        name: "absent" if int(name[-1]) > 3 else "present" for name in phantoms
    }
    assert {case["split"] for case in cases if case["states"]["lesion"] == "present"} == {
        "train",
        "val",
        "test",
    }
    assert [finding["code"] for finding in report(tmp_path / "w")["findings"]] == ["LABEL_EMPTY"] * 5


def test_cases_without_labels_and_one_fault_do_not_stop_a_run(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 7)
    for name in ("p0", "p1", "p2"):
        (data / name / "labels.nii.gz").unlink()
    (data / "p3/ct.nii.gz").write_bytes(b"")
    (data / "more.zip").write_bytes(b"PK")
    assert preprocess(data, tmp_path / "w") == 3
    assert report(tmp_path / "w")["skipped_cases"] == ["more.zip", "p0", "p1", "p2", "p3"]
    with pytest.raises(PreconditionError, match=r"SKIP_LIMIT.*1 of 8 cases are faulty.*data.skip_limit=0.13"):
        preprocess(data, tmp_path / "w", "--set", "data.skip_limit=0")
    assert preprocess(data, tmp_path / "w", "--set", "data.skip_limit=0.13") == 3


@pytest.mark.parametrize("grid", ["whole", "auto"])
def test_an_interrupted_first_run_keeps_its_finished_cases(grid, tmp_path, monkeypatch):
    """With a grid known beforehand the tensors; where all cases decide it, what was read."""
    data, read, load = write_data(tmp_path / "data"), [], case_to_tensors.load_case

    def watched(record: Any, *args: Any, **more: Any) -> Any:
        read.append(record.case_id)
        if len(read) == stop_at:
            raise KeyboardInterrupt
        return load(record, *args, **more)

    monkeypatch.setattr(case_to_tensors, "load_case", watched)
    stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        preprocess(data, tmp_path / "w", "--set", f"data.grid={grid}")
    assert read == ["p0", "p1", "p2", "p3"]
    stop_at = 0
    read.clear()
    assert preprocess(data, tmp_path / "w", "--set", f"data.grid={grid}") == 0
    assert read[:3] == ["p3", "p4", "p5"] and len(read) == (3 if grid == "whole" else 9)
    assert preprocess(data, tmp_path / "at_once", "--set", f"data.grid={grid}") == 0
    manifests = [read_json(Workspace(tmp_path / name).manifest) for name in ("w", "at_once")]
    assert manifests[0]["cases"] == manifests[1]["cases"] and not Workspace(tmp_path / "w").finished.exists()


def test_a_scan_that_may_not_be_read_costs_its_case_only(tmp_path, monkeypatch):
    data, load = write_data(tmp_path / "data"), case_to_tensors.load_case

    def refuse(record: Any, *args: Any, **more: Any) -> Any:
        if record.case_id == "p1":
            raise PermissionError(13, "Permission denied", str(record.image.path))
        return load(record, *args, **more)

    monkeypatch.setattr(case_to_tensors, "load_case", refuse)
    assert preprocess(data, tmp_path / "w") == 3
    report = read_json(Workspace(tmp_path / "w").preprocess_report)
    assert report["skipped_cases"] == ["p1"] and [
        record["code"] for record in report["findings"] if record["severity"] == "ERROR"
    ] == ["PERMISSION"]


def test_two_spellings_of_one_name_are_refused_with_both(data: Path, tmp_path: Path) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    for labels in (
        {"GTV1": 1, "GTV_1": 2, "x": 3},
        {"Leber": 1, "Kidney_L": 2, "LeftKidney": 3},
        {"肝臓": 1, "肝 臓": 2, "x": 3},
    ):
        (data / "manifest.json").write_text(
            json.dumps({"labels": labels, "cases": [{"case": case["case"]} for case in manifest["cases"]]})
        )
        one, other = (name for name in labels if name not in ("x", "Leber"))
        with pytest.raises(PreconditionError, match=f"'{one}' and '{other}'"):
            preprocess(data, tmp_path / "w")
    # the remedy that the message names
    assert preprocess(data, tmp_path / "w", "--structures", "肝臓,x") == 0


def test_declared_pairs_reach_every_later_stage_and_unknown_names_are_refused(
    data: Path, tmp_path: Path
) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(
        json.dumps(
            {
                "labels": {"liver": 1, "organ one": 2, "organ two": 3},
                "cases": [{"case": case["case"]} for case in manifest["cases"]],
            }
        )
    )
    for text, names in (
        ("organ one:organ two", [["organ one", "organ two"]]),
        ("Organ_Two : organ-one;", None),
        (" organ two:organ one , ", [["organ two", "organ one"]]),
    ):
        if names is None:
            with pytest.raises(UsageError, match="organ-one"):
                preprocess(data, tmp_path / "w", "--set", f"data.pairs={text}")
            continue
        assert preprocess(data, tmp_path / "w", "--set", f"data.pairs={text}") == 0
        assert artifacts.read_json(Workspace(tmp_path / "w").manifest)["sides"] == {
            "pairs": names,
            "lone": [],
        }
    for text, cause in (
        ("spleen:organ two", "no structure 'spleen'"),
        ("organ two", "no ':'"),
        ("organ one:organ one", "twice"),
    ):
        with pytest.raises(UsageError, match=cause):
            preprocess(data, tmp_path / "w", "--set", f"data.pairs={text}")


def test_sides_are_known_from_the_whole_data_set(data: Path, tmp_path: Path) -> None:
    """And a swapped pair is told in every language: here value 2 lies on the patient's left."""
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(
        json.dumps(
            {
                "labels": {"Foie": 1, "Rein_D": 2, "Rein_G": 3},
                "cases": [{"case": case["case"]} for case in manifest["cases"]],
            }
        )
    )
    assert preprocess(data, tmp_path / "w") == 0
    swapped = [finding for finding in report(tmp_path / "w")["findings"] if finding["code"] == "SIDE_SWAP"]
    assert len(swapped) == 4 and "Rein_G lies" in swapped[0]["cause"]  # two cases show one kidney
    assert preprocess(data, tmp_path / "w", "--structures", "Rein_G") == 0
    sides = artifacts.read_json(Workspace(tmp_path / "w").manifest)["sides"]
    assert sides == {"pairs": [["Rein_G", "Rein_D"]], "lone": []} and laterality.one_sided(
        sides, ["Rein_G"]
    ) == ["Rein_G"]


def test_the_list_tells_what_preprocessing_would_refuse_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "data", 10)
    image = nib.load(data / "p3/labels.nii.gz")
    # another grid
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-2], image.affine), data / "p3/labels.nii.gz")
    (data / "p5/ct.nii.gz").write_bytes((data / "p5/ct.nii.gz").read_bytes()[:800])
    command = ["--list", "--data", str(data), "--workspace", str(tmp_path / "w"), "--workers", "1"]
    assert run_pipeline.main(command) == 3
    told = capsys.readouterr().out
    assert (
        "ERROR GRID_MISMATCH case=p3" in told
        and "ERROR NIFTI_TRUNCATED case=p5" in told
        and "Of 10 cases read 8 can be used, 2 will be left out" in told
    )
    assert not (tmp_path / "w").exists()
    assert preprocess(data, tmp_path / "w") == 3
    assert report(tmp_path / "w")["skipped_cases"] == ["p3", "p5"]
    (data / "p6/ct.nii.gz").write_bytes(b"")
    assert run_pipeline.main(command) == 4 and "SKIP_LIMIT" in capsys.readouterr().err
    monkeypatch.setattr(preprocessing, "PREVIEW_S", 0.0)
    assert run_pipeline.main(command) == 0 and "10 more cases were not looked at" in capsys.readouterr().out


@pytest.mark.parametrize(("marker", "code"), [([], "PARSE"), ({"structures": 5}, "INVALID")])
def test_a_damaged_marker_of_a_synthetic_cohort_is_refused(
    cohorts: dict[str, Path], tmp_path: Path, marker: object, code: str
) -> None:
    data = shutil.copytree(cohorts["pelvis"], tmp_path / "data")
    artifacts.write_json(data / "synthetic.json", marker)
    with pytest.raises(PreconditionError, match=f"METADATA_{code}.*synthetic.json"):
        preprocess(data, tmp_path / "w")


def test_a_synthetic_cohort_never_replaces_tensors_of_scans(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preprocess(data, tmp_path / "w") == 0
    before = Workspace(tmp_path / "w").manifest.read_bytes()
    capsys.readouterr()
    for main, words in (
        (preprocessing.main, []),
        (run_pipeline.main, ["--preprocess"]),
        (run_pipeline.main, ["--all"]),
    ):
        assert main([*words, "--workspace", str(tmp_path / "w")]) == 2
        assert "DATA_NEEDED" in capsys.readouterr().err
    assert (
        Workspace(tmp_path / "w").manifest.read_bytes() == before
        and not Workspace(tmp_path / "w").synthetic_data.exists()
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("Kidney_L", "liver", "LeftKidney"), "'Kidney_L' and 'LeftKidney' are one name in two spellings"),
        (("liver", " "), "a structure has no name"),
        (("liv\x0cer",), r"'liv\\x0cer' holds control characters"),
    ],
)
def test_names_that_would_be_taken_for_another_or_are_none_are_refused(
    names: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    found = SimpleNamespace(structures=names, cases=[object()], synthetic=False, root=tmp_path)
    with pytest.raises(PreconditionError, match=f"STRUCTURES_ALIKE.*{said}"):
        choose_structures(cast(DataSet, found), DataSettings())
