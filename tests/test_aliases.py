"""Names that mean the same structure."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from builders import small_phantom, write_dicom_seg

from ctseg import structure_names
from ctseg.datasets import case_sources, load_case, masks
from ctseg.datasets.case import PRESENT, UNLABELLED
from ctseg.datasets.layouts import open_data_set
from ctseg.prediction import scan_outputs
from ctseg.scans.dicom import rtstruct


@pytest.mark.parametrize(
    "names",
    [
        ("kidney_left", "Kidney_L", "LeftKidney", "KIDNEY LT", "left kidney"),
        ("Bladder", "BLADDER", "urinary_bladder"),
        ("Femur_Head_R", "femoral head right", "RightFemoralHead"),
        ("SpinalCord", "spinal_cord", "Cord"),
        ("Parotid_L", "parotid_gland_left", "LeftParotid"),
        ("vertebrae_L5", "Vertebrae L5"),
    ],
)
def test_spellings_of_one_structure(names):
    assert len({structure_names.key_of(name) for name in names}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kidney_left", "kidney_right"),
        ("femur_left", "femur_head_left"),
        ("bladder", "gallbladder"),
        ("bladder_wall", "bladder"),
        ("PTV_50", "PTV_60"),
        ("vertebrae_L4", "vertebrae_L5"),
        ("heart_atrium_left", "heart_atrium_right"),
        ("rib_left_4", "rib_left_5"),
        ("lung_upper_lobe_left", "lung_lower_lobe_left"),
    ],
)
def test_different_structures_stay_apart(one, other):
    assert structure_names.key_of(one) != structure_names.key_of(other)


def test_a_name_is_found_only_when_it_can_mean_one_thing():
    assert (
        structure_names.find("bladder", ["Bladder", "rectum"]) == "Bladder"
        and structure_names.find("Bladder", ["bladder", "Bladder"]) == "Bladder"
    )
    assert (
        structure_names.find("BLADDER", ["bladder", "Bladder"]) is None
        and structure_names.find("spleen", ["Bladder"]) is None
    )


def test_contours_that_are_spelt_differently_are_one_structure(tmp_path):
    first, second, third = (small_phantom(seed=seed) for seed in range(3))
    for name, phantom, names in (
        ("Anna", first, {1: "Kidney_L", 3: "Bladder"}),
        ("Berta", second, {1: "kidney_left", 3: "BLADDER"}),
        ("Cora", third, {1: "kidney left", 3: "Bladder"}),
    ):
        write_dicom_seg(tmp_path / "all", {name: phantom})
        (tmp_path / "all" / name / "im_3" / "seg.dcm").unlink()
        label = type(phantom.label)(
            np.where(np.isin(phantom.label.array, list(names)), phantom.label.array, 0).astype(np.uint8),
            phantom.label.affine,
        )
        rtstruct.write_structures(
            tmp_path / "all" / name / "rs.dcm", label, names, tmp_path / "all" / name / "im_1"
        )
    data = open_data_set(tmp_path / "all", "dicom_seg")
    assert data.structures == ("Bladder", "Kidney_L") and [finding.code for finding in data.findings] == [
        "ONE_STRUCTURE"
    ]
    for case, phantom in zip(data.cases, (first, second, third)):
        again = case_sources.source_from_record(case_sources.source_to_record(case, tmp_path), tmp_path)
        loaded = load_case.load_case(again, ("Kidney_L", "Bladder", "spleen"), root=tmp_path)
        assert loaded.states == {"Kidney_L": PRESENT, "Bladder": PRESENT, "spleen": UNLABELLED}
        assert (
            loaded.label is not None
            and np.array_equal(loaded.label.array == 1, phantom.label.array == 1)
            and np.array_equal(loaded.label.array == 2, phantom.label.array == 3)
        )


def test_what_stands_side_by_side_in_one_file_is_not_joined(tmp_path):
    phantom, other = small_phantom(seed=0), small_phantom(seed=1)
    for name, drawn, names in (
        ("Anna", phantom, {1: "Bladder", 2: "bladder", 3: "x"}),
        ("Berta", other, {1: "BLADDER", 2: "y", 3: "x"}),
    ):
        write_dicom_seg(tmp_path / "all", {name: drawn})
        (tmp_path / "all" / name / "im_3" / "seg.dcm").unlink()
        label = type(drawn.label)(
            np.where(drawn.label.array <= 3, drawn.label.array, 0).astype(np.uint8), drawn.label.affine
        )
        rtstruct.write_structures(
            tmp_path / "all" / name / "rs.dcm", label, names, tmp_path / "all" / name / "im_1"
        )
    assert {"Bladder", "bladder", "BLADDER"} <= set(open_data_set(tmp_path / "all", "dicom_seg").structures)


def test_names_in_another_script_are_not_joined_and_come_back_from_a_seg(tmp_path):
    liver, spleen = "肝臓", "脾臓"
    for number, name in enumerate((liver, spleen, liver, spleen)):
        phantom = small_phantom(seed=number)
        label = type(phantom.label)((phantom.label.array == 1).astype(np.uint8), phantom.label.affine)
        write_dicom_seg(tmp_path, {f"p{number}": dataclasses.replace(phantom, label=label, names={1: name})})
    data = open_data_set(tmp_path, "dicom_seg")
    assert data.structures == (liver, spleen) and data.findings == ()
    assert [case.annotated for case in data.cases] == [{liver}, {spleen}, {liver}, {spleen}]
    assert (
        structure_names.find("脾", data.structures) is None
        and structure_names.find(" 脾臓", data.structures) == spleen
    )


@pytest.mark.parametrize(
    "name", ["肝臓", "CTV+1cm", "CTV-1cm", "left kidney", "Größe", "यकृत", "PTV_50.4", "GTV'", "🫀"]
)
def test_a_mask_file_has_the_name_of_its_structure(name, tmp_path):
    assert scan_outputs.file_name(name) == name
    (tmp_path / f"{name}.nii.gz").write_bytes(b"")
    assert list(masks.organ_files(tmp_path)) == [name]


@pytest.mark.parametrize("name", ["a/b", "..", ".x", "-x", "GTV*", "a\nb", "肝" * 90, "CON:"])
def test_names_that_no_file_can_have_get_a_safe_one(name):
    assert scan_outputs.file_name(name).isascii() and scan_outputs.file_name(name) != scan_outputs.file_name(
        name + "x"
    )
