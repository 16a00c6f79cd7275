"""infer.py on synthetic scans: what it can write, ensembles, and the geometry of what it is given."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from tiny_runs import run, words_of

import infer
from ctseg import artifacts
from ctseg.datasets.find_scans import search
from ctseg.datasets.masks import open_masks
from ctseg.scans.formats import nifti, volume_files


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cohorts) -> tuple[Path, list[Path]]:
    """(a scan, checkpoints of two seeds and of another structure)."""
    root, data = tmp_path_factory.mktemp("trained"), cohorts["pelvis"] / "nifti"
    several = ["--structures", "bladder,rectum,femur_left,femur_right,hip_left,hip_right"]
    runs = {
        "a": (["preprocess", "train"], several),
        "b": (["train"], [*several, "--set", "train.seed=1", "--processed", str(root / "a/processed_data")]),
        "c": (["preprocess", "train"], ["--structures", "bladder"]),
    }
    words = ["--model", "unet", *words_of(**{"train.precision": "fp32", "train.schedule": "plateau"})]
    places = [
        run(root / name, data, *words, *more, stages=tuple(stages)) for name, (stages, more) in runs.items()
    ]
    return next(data.rglob("ct.nii.gz")), [place.best_model for place in places]


def predict(scan: Path, output: Path, checkpoints: list[Path], *words: str, mirror: bool = False) -> int:
    """The exit code of infer.py; the mirrored scan is predicted only where it is the subject."""
    models = ["--checkpoint", *map(str, checkpoints), *([] if mirror else ["--no-tta"])]
    common = ["--input", str(scan), "--output", str(output), "--device", "cpu", "--set", "evaluate.overlap=0"]
    return infer.main([*common, *models, *words])


def array(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_a_file_per_structure_probabilities_and_uncertainty_agree_with_the_label_map(tmp_path, trained):
    scan, checkpoints = trained
    assert (
        predict(
            scan,
            tmp_path,
            checkpoints[:1],
            "--format",
            "nifti,organs",
            "--probabilities",
            "--save-uncertainty",
            "--keep-largest",
            "none",
        )
        == 0
    )
    label, names = (
        volume_files.read_integers(tmp_path / "ct.nii.gz")[0].array,
        artifacts.read_json(tmp_path / "labels.json"),
    )
    organs = open_masks(tmp_path / "ct")
    assert set(organs.names) == set(names.values()) and label.any()
    probabilities = {
        name: array(tmp_path / "ct_probabilities" / f"{name}.nii.gz").T for name in names.values()
    }
    background = 1 - sum(probabilities.values())
    for value, name in names.items():
        assert np.array_equal(organs.read(name).array, label == int(value))
        assert (
            probabilities[name].dtype == np.float32
            and probabilities[name].min() >= 0
            and probabilities[name].max() <= 1
        )
        clear = (
            probabilities[name]
            > np.maximum(
                background, np.max([other for key, other in probabilities.items() if key != name], axis=0)
            )
            + 0.05
        )
        assert np.count_nonzero(label[clear] != int(value)) <= 0.01 * np.count_nonzero(clear)
    uncertainty = array(tmp_path / "ct_uncertainty.nii.gz").T
    assert uncertainty.min() >= 0 and uncertainty.max() <= 1
    certain = np.maximum(background, np.max(list(probabilities.values()), axis=0))
    assert uncertainty[certain > 0.9].mean() < uncertainty[certain < 0.6].mean()
    record = artifacts.read_json(tmp_path / "inference.json")
    assert (
        record["versions"]["numpy"] == np.__version__
        and record["peak_memory_gb"] > 0
        and record["scans"][0]["files"]["uncertainty"] == "ct_uncertainty.nii.gz"
    )


def test_an_ensemble_gives_the_mean_of_its_probabilities(tmp_path, trained, capsys):
    scan, (first, second, foreign) = trained
    for name, checkpoints in (("a", [first]), ("b", [second]), ("ab", [first, second])):
        assert predict(scan, tmp_path / name, checkpoints, "--probabilities") == 0
    a, b, both = (array(tmp_path / name / "ct_probabilities" / "bladder.nii.gz") for name in ("a", "b", "ab"))
    assert np.abs(a - b).max() > 0.01 and np.allclose(both, (a + b) / 2, atol=2e-3)
    assert len(artifacts.read_json(tmp_path / "ab" / "inference.json")["checkpoints_sha256"]) == 2
    assert (
        predict(scan, tmp_path / "wrong", [first, foreign]) == 2
        and "other structures" in capsys.readouterr().err
    )


def test_mirrored_views_can_be_left_out(tmp_path, trained):
    scan, checkpoints = trained
    results, records = [], []
    for words in ([], ["--tta"], ["--no-tta"]):
        output = tmp_path / ("".join(words) or "default")
        assert predict(scan, output, checkpoints[:1], "--probabilities", *words, mirror=True) == 0
        results.append(array(output / "ct_probabilities" / "bladder.nii.gz"))
        records.append(artifacts.read_json(output / "inference.json"))
    assert np.array_equal(results[0], results[1]) and not np.array_equal(results[0], results[2])
    (both,), (alone,) = records[0]["scans"], records[2]["scans"]
    assert (
        both["members"] == 2
        and records[0]["why_no_confidence"] is None
        and alone["members"] == 1
        and "single prediction" in records[2]["why_no_confidence"]
    )
    assert set(both["confidence"]) == set(records[0]["structures"]) == set(alone["confidence"]) and set(
        alone["confidence"].values()
    ) == {None}
    known = [value for value in both["confidence"].values() if value is not None]
    assert known and all(0 <= value <= 1 for value in known)


def test_doubtful_scans_are_named(tmp_path, trained, capsys):
    scan, checkpoints = trained
    assert (
        predict(scan, tmp_path / "strict", checkpoints[:2], "--set", "evaluate.low_confidence=1", mirror=True)
        == 0
    )
    record = artifacts.read_json(tmp_path / "strict" / "inference.json")["scans"][0]
    lowest = min((value, name) for name, value in record["confidence"].items() if value is not None)
    assert record["members"] == 4 and lowest[0] < 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "LOW_CONFIDENCE" in line]
    assert len(lines) == 1 and f"{lowest[1]} {lowest[0]:.2f}" in lines[0]
    assert predict(scan, tmp_path / "easy", checkpoints[:1], "--set", "evaluate.low_confidence=0") == 0
    assert "LOW_CONFIDENCE" not in capsys.readouterr().out


def stored(
    image: nib.Nifti1Image,
    path: Path,
    *,
    affine: np.ndarray | None = None,
    data: np.ndarray | None = None,
    dtype: str = "<i2",
    slope: float = 1.0,
) -> None:
    """Write voxels of a scan in another form."""
    values = np.asarray(image.dataobj) if data is None else data
    header = nib.Nifti1Header(endianness=dtype[0])
    header.set_data_dtype(np.dtype(dtype))
    # nibabel keeps integers as they are
    written = nib.Nifti1Image(
        np.rint(values / slope).astype(dtype), image.affine if affine is None else affine, header
    )
    written.set_sform(written.affine, code=1)
    written.set_qform(None, code=0)
    nib.save(written, path)
    if slope != 1.0:
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[112:116] = np.float32(slope).tobytes()  # scl_slope
        path.write_bytes(gzip.compress(content))


def test_masks_lie_exactly_on_the_scan_whatever_its_form(tmp_path, trained):
    """Flipped axes, a left-handed affine, an extra axis of length 1, big-endian numbers, a scale: the same
    patient, so the same mask, in the file's own geometry.
    """
    scan, checkpoints = trained
    image = nib.load(scan)
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(scan, scans / "plain.nii.gz")
    values = np.asarray(image.dataobj)
    flips = np.diag([-1.0, 1.0, 1.0, 1.0])
    flips[0, 3] = values.shape[0] - 1
    stored(image, scans / "left_handed.nii.gz", affine=image.affine @ flips, data=values[::-1])
    turned = image.affine[:, [2, 0, 1, 3]]
    stored(image, scans / "other_axes.nii.gz", affine=turned, data=values.transpose(2, 0, 1))
    stored(image, scans / "one_more_axis.nii.gz", data=values[..., None])
    stored(image, scans / "big_endian.nii.gz", dtype=">i2")
    stored(image, scans / "scaled.nii.gz", slope=0.5)
    angle = np.deg2rad(9)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    stored(image, scans / "oblique.nii.gz", affine=turn @ image.affine)
    assert predict(scans, tmp_path / "masks", checkpoints[:1]) == 0
    plain = array(tmp_path / "masks" / "plain.nii.gz")
    assert plain.any()
    same = {
        "left_handed": lambda a: a[::-1],
        "other_axes": lambda a: a.transpose(1, 2, 0),
        "one_more_axis": lambda a: a,
        "big_endian": lambda a: a,
        "scaled": lambda a: a,
    }
    for path in scans.iterdir():
        name, mask = path.name, nib.load(tmp_path / "masks" / path.name)
        assert np.array_equal(mask.affine, nib.load(path).affine), name  # to the last bit
        assert mask.shape == nib.load(path).shape[:3], name
        if (back := same.get(name.split(".")[0])) is not None:
            assert np.array_equal(back(np.asarray(mask.dataobj)), plain), name


def test_scans_in_nrrd_and_metaimage_get_the_mask_of_the_same_nifti_on_exactly_that_grid(
    tmp_path, trained, capsys
):
    """NIfTI out, whatever came in; a detached header is refused by name and the others are still done."""
    scan, checkpoints = trained
    image = sitk.ReadImage(str(scan))
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(scan, scans / "plain.nii.gz")
    for name in ("as_nrrd.nrrd", "as_mha.mha"):
        sitk.WriteImage(image, str(scans / name), True)
    (scans / "detached.nhdr").write_text("NRRD0004\ndata file: x.raw\n\n")
    assert predict(scans, tmp_path / "masks", checkpoints[:1]) == 3
    assert "PAIR_UNSUPPORTED case=detached" in capsys.readouterr().out
    plain, _ = volume_files.read_integers(tmp_path / "masks" / "plain.nii.gz")
    assert plain.array.any()
    for name in ("as_nrrd", "as_mha"):
        mask, _ = volume_files.read_integers(tmp_path / "masks" / f"{name}.nii.gz")
        assert np.array_equal(mask.array, plain.array) and mask.grid.corner_distance_mm(plain.grid) < 1e-3


def test_infer_goes_on_after_a_bad_scan(tmp_path, trained, capsys):
    scan, checkpoints = trained
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(scan, scans / "good.nii.gz")
    (scans / "bad.nii.gz").write_bytes(b"no scan")
    assert predict(scans, tmp_path / "masks", checkpoints[:1]) == 3
    record = artifacts.read_json(tmp_path / "masks" / "inference.json")
    assert [("error" in scan) for scan in record["scans"]] == [True, False]
    assert (tmp_path / "masks" / "good.nii.gz").exists() and "case=bad" in capsys.readouterr().out


def test_a_scan_that_breaks_in_an_unforeseen_way_does_not_end_the_others(
    tmp_path, trained, monkeypatch, capsys
):
    scan, checkpoints = trained
    for name in ("first", "second", "third", "fourth"):
        shutil.copy(scan, tmp_path / f"{name}.nii.gz")
    from ctseg.datasets import load_case

    load = load_case.load_image

    def breaking(source):
        if source.path.name.startswith("second"):
            raise ZeroDivisionError("Mustermann^Erika")
        if source.path.name.startswith("third"):
            raise MemoryError
        return load(source)

    monkeypatch.setattr(load_case, "load_image", breaking)
    assert predict(tmp_path, tmp_path / "out", checkpoints[:1]) == 3
    said = capsys.readouterr().out
    assert (
        "ERROR PREDICT_FAILED case=second" in said
        and "ZeroDivisionError in test_infer.py, line" in said
        and "Mustermann" not in said
    )
    assert "ERROR OUT_OF_MEMORY case=third" in said
    record = artifacts.read_json(tmp_path / "out" / "inference.json")
    # in the order of names
    assert record["finished"] and [item.get("error") for item in record["scans"]] == [
        None,
        None,
        "PREDICT_FAILED",
        "OUT_OF_MEMORY",
    ]
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {"first.nii.gz", "fourth.nii.gz"}


def test_masks_never_take_the_place_of_scans(tmp_path, trained, capsys):
    """From simongraham/hovernet_inference issue 8 and danielgatis/rembg issue 94, where the originals were
    lost.
    """
    scan, checkpoints = trained
    single, folder = tmp_path / "single" / "scan.nii.gz", tmp_path / "folder"
    for path in (single, folder / "a.nii.gz", folder / "b.nii.gz", tmp_path / "other" / "x.nii.gz"):
        path.parent.mkdir(exist_ok=True)
        shutil.copy(scan, path)
    (tmp_path / "link").symlink_to(folder)
    guide = tmp_path / "guide"
    guide.mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    for given, output, words in (
        (folder, folder, []),
        (single, single.parent, []),
        (folder, tmp_path / "link", []),
        (folder / "a.nii.gz", folder, ["--format", "organs"]),
        (single, guide, ["--guide", str(guide)]),
    ):
        assert (
            predict(given, output, checkpoints[:1], *words) == 2
            and "OUTPUT_OVER_INPUT" in capsys.readouterr().err
        )
    (folder / "A_probabilities.nii.gz").symlink_to(tmp_path / "other" / "x.nii.gz")
    (folder / "a_uncertainty.nii.gz").symlink_to(tmp_path / "other" / "x.nii.gz")
    assert (
        predict(folder, tmp_path / "out", checkpoints[:1], "--save-uncertainty") == 2
        and "TARGET_TWICE" in capsys.readouterr().err
    )
    for path in folder.glob("?_*"):
        path.unlink()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")} == before and not list(
        guide.iterdir()
    )
    for _ in range(2):  # a folder of its own among them is no scan the next time
        assert predict(folder, folder / "masks", checkpoints[:1]) == 0
    assert {path.name for path in (folder / "masks").iterdir()} == {
        "a.nii.gz",
        "b.nii.gz",
        "labels.json",
        "inference.json",
    }
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_full_disk_ends_the_run_and_an_unreadable_scan_only_itself(tmp_path, trained, monkeypatch, capsys):
    scan, checkpoints = trained
    for name in ("a", "b"):
        shutil.copy(scan, tmp_path / f"{name}.nii.gz")
    from ctseg.datasets import load_case

    def refuse(number: int, path: Path):
        raise OSError(number, os.strerror(number), str(path))

    load = load_case.load_image
    monkeypatch.setattr(
        load_case,
        "load_image",
        lambda source: refuse(errno.EACCES, source.path) if source.path.name[0] == "a" else load(source),
    )
    assert predict(tmp_path, tmp_path / "out", checkpoints[:1]) == 3
    said = capsys.readouterr().out
    assert (
        "ERROR PERMISSION case=a" in said
        and "report" not in said
        and (tmp_path / "out" / "b.nii.gz").exists()
    )
    monkeypatch.undo()
    monkeypatch.setattr(
        nifti,
        "write_label",
        lambda path, *_, **__: artifacts.atomic_write(path, lambda stream: refuse(errno.ENOSPC, path)),
    )
    assert predict(tmp_path, tmp_path / "full", checkpoints[:1]) == 6
    said = capsys.readouterr().err
    assert "ERROR DISK_FULL" in said and "a.nii.gz" in said and not list((tmp_path / "full").glob(".tmp-*"))


def test_the_same_command_goes_on_after_an_interruption_and_begins_anew_where_something_changed(
    tmp_path, trained, monkeypatch
):
    scan, checkpoints = trained
    for name in ("a", "b", "c"):
        shutil.copy(scan, tmp_path / f"{name}.nii.gz")
    from ctseg.datasets import load_case

    load, read = load_case.load_image, []

    def watched(source, *, stop_at=None):
        read.append(source.path.name[0])
        if read[-1] == stop_at:
            raise KeyboardInterrupt
        return load(source)

    monkeypatch.setattr(load_case, "load_image", lambda source: watched(source, stop_at="c"))
    assert predict(tmp_path, tmp_path / "out", checkpoints[:1]) == 130 and read == ["a", "b", "c"]
    assert not artifacts.read_json(tmp_path / "out" / "inference.json")["finished"]
    monkeypatch.setattr(load_case, "load_image", watched)
    (tmp_path / "out" / "a.nii.gz").unlink()
    first = (tmp_path / "out" / "b.nii.gz").stat().st_mtime_ns
    read.clear()
    assert predict(tmp_path, tmp_path / "out", checkpoints[:1]) == 0 and read == ["a", "c"]
    assert (tmp_path / "out" / "b.nii.gz").stat().st_mtime_ns == first
    assert len(artifacts.read_json(tmp_path / "out" / "inference.json")["scans"]) == 3
    for words in (["--keep-largest", "all"], ["--format", "nifti,organs"]):
        read.clear()
        assert predict(tmp_path, tmp_path / "out", checkpoints[:1], *words) == 0 and read == ["a", "b", "c"]


def test_scouts_of_an_export_are_passed_over(tmp_path):
    from ctseg.geometry.volume import Volume
    from ctseg.scans.dicom import dicom_series

    volume = Volume(np.zeros((8, 16, 16), np.float32), np.diag([3.0, 2.0, 2.0, 1.0])[:, [2, 1, 0, 3]])
    for folder, count in (("one/scout", 2), ("one/axial", 8), ("two", 2)):
        dicom_series.write_series(
            tmp_path / folder,
            Volume(volume.array[:count], volume.affine),
            patient_id=folder[:3],
            series_number=count,
            seed=1,
        )
    found = search(tmp_path)[0]
    # what has nothing better is refused by name later
    assert set(found) == {"one", "two"} and found["one"].path.name == "axial"
