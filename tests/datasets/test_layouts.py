"""Every layout is read from synthetic data written in it; bad folders are refused or reported by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import builders
import numpy as np
import pytest
from builders import SIDES, small_phantom

from ctseg.datasets import layouts, metadata
from ctseg.datasets.case import ABSENT, PRESENT, UNLABELLED, DataSet
from ctseg.datasets.case_sources import source_from_record, source_to_record
from ctseg.datasets.layouts import LAYOUTS, open_data_set
from ctseg.datasets.load_case import load_case
from ctseg.errors import CaseError, PipelineError, PreconditionError, UsageError
from ctseg.geometry.volume import Volume, to_canonical
from ctseg.scans.dicom import dicom_series
from ctseg.scans.formats import nifti

HIPS = ("left_hip", "right_hip", "sacrum")
FLARE = ("kidney_left", "kidney_right", "spleen")
HEAD = ("LeftParotid", "RightParotid", "Brainstem")
# layout: (writer, names of the left, right and middle structure, start of the case ids)
WRITERS = {
    "plain": (builders.write_plain, SIDES, "case_"),
    "abdomenatlas": (builders.write_abdomenatlas, SIDES, "BDMAP_"),
    "totalsegmentator": (builders.write_totalsegmentator, SIDES, "s000"),
    "nnunet": (builders.write_nnunet, SIDES, "colon_"),
    "msd": (builders.write_msd, SIDES, "spleen_"),
    "monai": (builders.write_monai, SIDES, "scan"),
    "flare22": (builders.write_flare22, FLARE, "FLARE22_Tr_"),
    "ctpelvic1k": (builders.write_ctpelvic1k, HIPS, "dataset6_CLINIC_"),
    "openkbp_csv": (builders.write_openkbp_csv, HEAD, "pt_"),
    "dicom_seg": (builders.write_dicom_seg, SIDES, "Patient_"),
    "synthetic": (builders.write_synthetic, SIDES, "Patient_"),
}


def phantoms_for(layout: str, numbers=(10, 2, 1)) -> builders.Phantoms:
    _, names, prefix = WRITERS[layout]
    return {f"{prefix}{number}": small_phantom(names, seed=number) for number in numbers}


def codes(data: DataSet, severity: str | None = None) -> list[str]:
    return [finding.code for finding in data.findings if severity in (None, finding.severity)]


def refused(data: DataSet) -> dict[str, str]:
    """case id -> code of the cases that were left out."""
    return {finding.case: finding.code for finding in data.findings if finding.severity == "ERROR"}


# ---- all layouts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", list(WRITERS))
def test_same_content_gives_the_same_cases_in_every_layout(layout, tmp_path):
    write, names, prefix = WRITERS[layout]
    phantoms = phantoms_for(layout)
    write(tmp_path, phantoms)

    data = open_data_set(tmp_path)

    assert data.layout == layout
    assert data.synthetic == (layout == "synthetic")
    assert [case.case_id for case in data.cases] == [f"{prefix}{number}" for number in (1, 2, 10)], (
        "natural order"
    )
    assert set(names) <= set(data.structures)
    assert data.findings == ()
    for case in data.cases:
        loaded = load_case(case, names, root=tmp_path)
        expected = phantoms[case.case_id]
        corner = tuple(slice(0, n) for n in expected.image.array.shape)  # OpenKBP volumes are padded
        image, label = to_canonical(loaded.image), to_canonical(loaded.label)
        np.testing.assert_array_equal(image.array[corner], expected.image.array)
        np.testing.assert_array_equal(label.array[corner], expected.label.array)
        np.testing.assert_allclose(image.spacing_mm, expected.image.spacing_mm, rtol=1e-6)
        assert loaded.states == dict.fromkeys(names, PRESENT)
        assert "SIDE_SWAP" not in [finding.code for finding in loaded.findings]


@pytest.mark.parametrize("layout", list(WRITERS))
def test_records_survive_the_manifest(layout, tmp_path):
    WRITERS[layout][0](tmp_path, phantoms_for(layout))
    for case in open_data_set(tmp_path).cases:
        stored = json.loads(json.dumps(source_to_record(case, tmp_path)))
        assert source_from_record(stored, tmp_path) == case
        assert str(tmp_path) not in json.dumps(stored)


@pytest.mark.parametrize("layout", list(WRITERS))
def test_forcing_the_layout_gives_what_detection_gives(layout, tmp_path):
    WRITERS[layout][0](tmp_path, phantoms_for(layout))
    assert open_data_set(tmp_path, layout) == open_data_set(tmp_path)


@pytest.mark.parametrize("layout", list(WRITERS))
def test_relative_root_and_hidden_files(layout, tmp_path, monkeypatch):
    WRITERS[layout][0](tmp_path, phantoms_for(layout))
    expected = [case.case_id for case in open_data_set(tmp_path).cases]
    for folder in [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]:
        (folder / ".DS_Store").write_bytes(b"x")
        for path in [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]:
            (folder / f"._{path.name}").write_bytes(b"resource fork")
    (tmp_path / "__MACOSX").mkdir()
    monkeypatch.chdir(tmp_path)
    data = open_data_set(Path())
    assert [case.case_id for case in data.cases] == expected
    assert data.findings == ()


@pytest.mark.parametrize("layout", list(WRITERS))
def test_forced_layout_on_a_foreign_folder_is_a_clear_error(layout, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(PreconditionError) as error:
        open_data_set(tmp_path, layout)
    assert error.value.code in ("NO_DATA", "METADATA_INVALID")
    assert error.value.fix


def test_every_layout_has_a_one_line_shape():
    for adapter in LAYOUTS.values():
        assert adapter.SHAPE and "\n" not in adapter.SHAPE


# ---- opening ----------------------------------------------------------------------------------------------


def test_a_path_that_is_no_folder_with_data_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "scan.nii.gz").write_bytes(b"x")
    (tmp_path / "data.zip").write_bytes(b"PK")
    for name, code, text in (
        ("missing", "NO_DATA", "no folder"),
        ("empty", "NO_DATA", "is empty"),
        ("scan.nii.gz", "NO_DATA", "is a file"),
        ("data.zip", "ARCHIVE_INPUT", "archive"),
    ):
        with pytest.raises(PreconditionError, match=text) as error:
            open_data_set(tmp_path / name)
        assert error.value.code == code
        assert "--data" in error.value.fix


def test_an_unknown_folder_is_described_with_the_known_layouts(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz", "c.json", "d.dcm"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(PreconditionError) as error:
        open_data_set(tmp_path)
    assert error.value.code == "NO_DATA"
    for part in ("2 .nii.gz", "1 .json", "1 .dcm"):
        assert part in error.value.cause
    for name, adapter in LAYOUTS.items():
        assert name == "synthetic" or f"{name}: {adapter.SHAPE}" in error.value.fix


def test_data_one_folder_deeper_is_pointed_at(tmp_path):
    builders.write_plain(tmp_path / "inner", phantoms_for("plain"))
    with pytest.raises(PreconditionError, match="inner', which looks like plain"):
        open_data_set(tmp_path)


def test_unknown_layout_name_suggests_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'nnunet'") as error:
        open_data_set(tmp_path, "nnUNet2")
    assert error.value.code == "UNKNOWN_LAYOUT"


def test_two_layouts_in_one_folder_follow_the_fixed_order_and_are_told(tmp_path):
    builders.write_abdomenatlas(tmp_path, phantoms_for("abdomenatlas"))
    builders.write_monai(tmp_path, phantoms_for("monai"))
    data = open_data_set(tmp_path)
    assert data.layout == "abdomenatlas"
    assert codes(data, "NOTE")[0] == "LAYOUT_CHOSEN" and "monai" in data.findings[0].cause
    assert open_data_set(tmp_path, "monai").layout == "monai"


# ---- files ------------------------------------------------------------------------------------------------


def test_upper_case_and_uncompressed_names_are_found(tmp_path):
    builders.write_abdomenatlas(tmp_path, phantoms_for("abdomenatlas", (1, 2, 3)))
    case = tmp_path / "BDMAP_1"
    (case / "ct.nii.gz").rename(case / "CT.NII.GZ")
    (case / "segmentations").rename(case / "Segmentations")
    (case / "Segmentations" / "bladder.nii.gz").rename(case / "Segmentations" / "Bladder.nii.gz")
    data = open_data_set(tmp_path)
    assert len(data.cases) == 3
    assert len(data.structures) == 3, "one spelling per structure"
    assert data.cases[0].annotated == data.cases[1].annotated == frozenset(data.structures)


def test_scan_or_label_that_is_missing_is_refused_by_name(tmp_path):
    for layout, image, label in (
        ("plain", "train/case_1/ct.nii.gz", "train/case_2/labels.nii.gz"),
        ("abdomenatlas", "BDMAP_1/ct.nii.gz", "BDMAP_2/segmentations"),
        ("totalsegmentator", "s0001/ct.nii.gz", "s0002/segmentations"),
        (
            "nnunet",
            "Dataset001_Synthetic/imagesTr/colon_1_0000.nii.gz",
            "Dataset001_Synthetic/labelsTr/colon_2.nii.gz",
        ),
        ("msd", "Task42_Synthetic/imagesTr/spleen_1.nii.gz", "Task42_Synthetic/labelsTr/spleen_2.nii.gz"),
        ("monai", "scans/scan1.nii.gz", "maps/scan2_seg.nii.gz"),
        ("flare22", "images/FLARE22_Tr_1_0000.nii.gz", "labels/FLARE22_Tr_2.nii.gz"),
        ("ctpelvic1k", "data/dataset6_CLINIC_1_data.nii.gz", "masks/dataset6_CLINIC_2_mask_4label.nii.gz"),
        ("openkbp_csv", "train-pats/pt_1/ct.csv", "train-pats/pt_2/*Parotid.csv"),
        ("dicom_seg", "Patient_1/im_1", "Patient_2/im_3"),
    ):
        root = tmp_path / layout
        write, _, prefix = WRITERS[layout]
        phantoms = phantoms_for(layout)
        write(root, phantoms)
        for pattern in (image, label):
            for path in list(root.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if layout == "openkbp_csv":
            (root / "train-pats/pt_2/Brainstem.csv").unlink()
        data = open_data_set(root)
        assert [case.case_id for case in data.cases] == [f"{prefix}10"], layout
        missing = refused(data)
        assert set(missing) == {f"{prefix}1", f"{prefix}2"}, layout
        assert missing[f"{prefix}1"] in ("FILE_MISSING", "SEG_WRONG_SERIES"), layout
        # lists name their files, so there the label's file is missing, not the entry
        assert missing[f"{prefix}2"] == ("FILE_MISSING" if layout in ("msd", "monai") else "LABEL_MISSING"), (
            layout
        )
        assert "UNMATCHED_FILE" not in codes(data), "the rest of a refused case is explained by its error"


def test_left_over_files_are_reported(tmp_path):
    builders.write_plain(tmp_path, phantoms_for("plain"))
    shutil.copytree(tmp_path / "train/case_1", tmp_path / "train/case_77")
    (tmp_path / "readme.txt").write_text("about")
    (tmp_path / "more.zip").write_bytes(b"PK")
    (tmp_path / "train.tar.gz").write_bytes(b"x")  # beside the folder train: unpacked already
    data = open_data_set(tmp_path)
    assert len(data.cases) == 3
    by_file = {finding.file: (finding.severity, finding.code) for finding in data.findings}
    assert (
        by_file["train/case_77/ct.nii.gz"]
        == by_file["train/case_77/labels.nii.gz"]
        == ("WARN", "UNMATCHED_FILE")
    )
    assert by_file["more.zip"] == ("ERROR", "ARCHIVE_INPUT") and refused(data) == {
        "more.zip": "ARCHIVE_INPUT"
    }
    assert by_file["train.tar.gz"] == ("NOTE", "ARCHIVE_INPUT")
    assert by_file["-"] == ("NOTE", "OTHER_FILES")


def test_many_left_over_files_are_counted_not_listed(tmp_path):
    builders.write_plain(tmp_path, phantoms_for("plain"))
    (tmp_path / "old").mkdir()
    for number in range(50):
        (tmp_path / "old" / f"x{number}.nii").write_bytes(b"")
    findings = [finding for finding in open_data_set(tmp_path).findings if finding.code == "UNMATCHED_FILE"]
    assert len(findings) == 21 and "30 more" in findings[-1].cause


@pytest.mark.parametrize(
    "layout, copy",
    [
        ("abdomenatlas", ("BDMAP_1/ct.nii.gz", "BDMAP_1/CT.nii")),
        (
            "nnunet",
            (
                "Dataset001_Synthetic/imagesTr/colon_1_0000.nii.gz",
                "Dataset001_Synthetic/imagesTr/colon_1_0000.nii",
            ),
        ),
        ("ctpelvic1k", ("data/dataset6_CLINIC_1_data.nii.gz", "masks/dataset6_CLINIC_1_data.nii.gz")),
        ("plain", ("train/case_1/labels.nii.gz", "train/case_1/labels.nii")),
    ],
)
def test_the_same_name_twice_stops(layout, copy, tmp_path):
    WRITERS[layout][0](tmp_path, phantoms_for(layout))
    shutil.copy(tmp_path / copy[0], tmp_path / copy[1])
    with pytest.raises(PreconditionError) as error:
        open_data_set(tmp_path)
    assert error.value.code == "DUPLICATE_ID"


def test_case_ids_that_differ_only_in_case_stop(tmp_path):
    builders.write_abdomenatlas(
        tmp_path, {name: small_phantom(seed=1) for name in ("Patient_A", "patient_a", "other")}
    )
    with pytest.raises(PreconditionError, match="Patient_A"):
        open_data_set(tmp_path)


@pytest.mark.parametrize("names", [None, "123"], ids=["long", "one character"])
def test_one_case_in_two_entries_of_the_manifest_stops(names, tmp_path):
    phantoms = phantoms_for("plain")
    builders.write_plain(tmp_path, dict(zip(names, phantoms.values())) if names else phantoms)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["cases"].append(manifest["cases"][0])
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PreconditionError) as error:
        open_data_set(tmp_path)
    assert error.value.code == "DUPLICATE_ID"


def test_links_and_special_files_are_refused_without_being_opened(tmp_path):
    root, outside = tmp_path / "data", tmp_path / "outside.nii.gz"
    builders.write_abdomenatlas(root, {f"c{number}": small_phantom(seed=number) for number in range(1, 8)})
    shutil.copy(root / "c1/ct.nii.gz", outside)

    def replace(case: str, make) -> None:
        path = root / case / "ct.nii.gz"
        path.unlink()
        make(path)

    replace("c1", lambda path: path.symlink_to(outside))
    replace("c2", os.mkfifo)
    replace("c3", lambda path: path.symlink_to(path))
    replace("c4", Path.mkdir)
    replace("c5", lambda path: path.symlink_to("/dev/zero"))
    replace("c6", lambda path: path.symlink_to(root / "c7/ct.nii.gz"))  # inside the data folder: fine
    data = open_data_set(root)
    assert refused(data) == {
        "c1": "LINK_OUTSIDE",
        "c2": "NOT_REGULAR",
        "c3": "FILE_MISSING",
        "c4": "NOT_REGULAR",
        "c5": "NOT_REGULAR",
    }
    assert [case.case_id for case in data.cases] == ["c6", "c7"]
    followed = open_data_set(root, follow_links=True)
    assert [case.case_id for case in followed.cases] == ["c1", "c6", "c7"] and len(refused(followed)) == 4


def test_strange_but_valid_folder_names_are_read(tmp_path):
    names = ["Müller 1", "-rf", "it's $(id)", "コ"]
    builders.write_abdomenatlas(
        tmp_path, {name: small_phantom(seed=index) for index, name in enumerate(names)}
    )
    data = open_data_set(tmp_path)
    assert {case.case_id for case in data.cases} == set(names)
    load_case(data.cases[0], SIDES, root=tmp_path)


def test_a_folder_name_that_is_no_text_is_refused(tmp_path):
    builders.write_abdomenatlas(tmp_path, phantoms_for("abdomenatlas"))
    (tmp_path / "BDMAP_1").rename(tmp_path / os.fsdecode(b"BDMAP_\xff"))
    data = open_data_set(tmp_path)
    assert refused(data) == {"BDMAP_\\udcff": "UNSAFE_NAME"}
    json.dumps([finding.record() for finding in data.findings], ensure_ascii=False).encode("utf-8")


# ---- plain ------------------------------------------------------------------------------------------------


def write_manifest(root: Path, content: object) -> None:
    (root / "manifest.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_plain_annotated_absent_and_split(tmp_path):
    phantoms = {
        "a": small_phantom(SIDES, seed=1),
        "b": small_phantom(SIDES[:2], seed=2),  # nobody looked for the bladder
        "c": small_phantom(SIDES, seed=3, absent=["bladder"]),
    }
    builders.write_plain(tmp_path, phantoms, splits={"b": "test", "c": "val"})
    a, b, c = open_data_set(tmp_path).cases
    assert [case.split for case in (a, b, c)] == ["train", "test", "val"]
    states = [load_case(case, SIDES, root=tmp_path).states["bladder"] for case in (a, b, c)]
    assert states == [PRESENT, UNLABELLED, ABSENT]


@pytest.mark.parametrize("layout", ["plain", "totalsegmentator"])
def test_a_split_of_another_name_is_told(tmp_path, layout):
    phantoms = {f"s000{number}": small_phantom(SIDES, seed=number) for number in range(1, 4)}
    write = builders.write_plain if layout == "plain" else builders.write_totalsegmentator
    write(tmp_path, phantoms, splits={"s0001": "train", "s0002": "Testing", "s0003": "holdout"})
    data = open_data_set(tmp_path)
    assert [case.split for case in data.cases] == ["train", "test", None]
    assert [(finding.severity, finding.code, finding.case) for finding in data.findings] == [
        ("WARN", "SPLIT_UNKNOWN", "s0003")
    ]


def test_plain_minimal_manifest(tmp_path):
    builders.write_plain(tmp_path, phantoms_for("plain"))
    for case in ("case_1", "case_2", "case_10"):
        (tmp_path / "train" / case).rename(tmp_path / case)
    labels = {name: value for value, name in enumerate(SIDES, start=1)}
    write_manifest(
        tmp_path, {"labels": labels, "cases": [{"case": "case_1", "patient": 7}, {"case": "case_2"}]}
    )
    data = open_data_set(tmp_path)
    assert [(case.case_id, case.patient_id, case.split, case.annotated) for case in data.cases] == [
        ("case_1", "7", None, frozenset(SIDES)),
        ("case_2", "case_2", None, frozenset(SIDES)),
    ]
    assert "UNMATCHED_FILE" in codes(data), "case_10 is not in the manifest"


@pytest.mark.parametrize(
    "entry",
    [
        {"case": "../case_1"},
        {"case": "/etc"},
        {"case": ".."},
        {"case": "case_1", "split": "../train"},
        {"case": ""},
    ],
)
def test_plain_ids_that_leave_the_folder_are_refused(entry, tmp_path):
    builders.write_plain(tmp_path, phantoms_for("plain", (1, 2)))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["cases"] = [manifest["cases"][1] | {"case": "case_2"}, entry]
    write_manifest(tmp_path, manifest)
    data = open_data_set(tmp_path)
    assert refused(data) == {entry["case"]: "UNSAFE_NAME"}
    assert [case.case_id for case in data.cases] == ["case_2"]


def test_plain_unknown_annotated_name_is_a_warning(tmp_path):
    builders.write_plain(tmp_path, phantoms_for("plain", (1,)))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["cases"][0]["annotated"] = ["BLADDER", "Larnyx", 3]
    write_manifest(tmp_path, manifest)
    data = open_data_set(tmp_path)
    assert data.cases[0].annotated == {"bladder"}
    assert codes(data, "WARN") == ["METADATA_INVALID"] * 2 and "Larnyx" in data.findings[0].cause


@pytest.mark.parametrize(
    "content, code, text",
    [
        ('{"labels": {"a": 1},\n "cases": [,]}', "METADATA_PARSE", "line 2"),
        ('{"labels": {"a": 1, "a": 2}, "cases": []}', "METADATA_PARSE", "'a' stands twice"),
        ({"cases": [{"case": "a"}]}, "LABEL_NAMES_MISSING", "names"),
        ({"labels": ["background", "a"], "cases": [{"case": "a"}]}, "LABEL_NAMES_MISSING", "a list"),
        ({"labels": {"a": [1, 2]}, "cases": []}, "REGIONS_UNSUPPORTED", "region"),
        ({"labels": {"a": 1, "b": 1}, "cases": []}, "METADATA_INVALID", "two names"),
        ({"labels": {"a": -1}, "cases": []}, "METADATA_INVALID", "-1"),
        ({"labels": {"a": 1.5}, "cases": []}, "METADATA_INVALID", "1.5"),
        ({"labels": {"a": True}, "cases": []}, "METADATA_INVALID", "True"),
        ({"labels": {"a": "9" * 5000}, "cases": []}, "METADATA_INVALID", "has the value '999"),
        ({"labels": {"a": 1, "A": 2}, "cases": []}, "METADATA_INVALID", "twice"),
        ({"labels": {"background": 0}, "cases": []}, "METADATA_INVALID", "background"),
        ({"labels": {"a": 1}, "cases": {"a": 1}}, "METADATA_INVALID", "not a list"),
        ({"labels": {"a": 1}, "cases": ["a"]}, "METADATA_INVALID", "entry 0"),
        ({"labels": {"a": 1}, "cases": []}, "NO_DATA", "no case"),
        ("[" * 100_000, "METADATA_PARSE", "JSON"),
    ],
)
def test_bad_metadata_names_file_and_entry(content, code, text, tmp_path):
    write_manifest(tmp_path, content)
    with pytest.raises(PipelineError) as error:
        open_data_set(tmp_path)
    assert error.value.code == code
    assert text in error.value.cause
    assert code == "NO_DATA" or error.value.file == "manifest.json"


def test_several_names_of_the_background_are_no_contradiction(tmp_path):
    path = tmp_path / "labels.json"
    table = metadata.label_table({"background": 0, "outside": 0, "ignore": 0, "liver": 1}, path)
    assert table.values == {1: "liver"}


@pytest.mark.parametrize("raw", [[], "", 0, {"0": "MR"}])
def test_channels_that_are_none_or_no_ct_are_refused(raw, tmp_path):
    with pytest.raises(PreconditionError, match=r"METADATA_INVALID|NOT_CT"):
        metadata.ct_channel(raw, tmp_path / "dataset.json")


def test_trying_a_layout_does_not_look_into_folders_of_masks(tmp_path):
    """A plain data set whose cases keep other masks beside them, one of them twice."""
    builders.write_plain(tmp_path, phantoms_for("plain"))
    for name in ("liver.nii", "liver.nii.gz"):
        place = tmp_path / "old" / "segmentations" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    shutil.copy(next(tmp_path.rglob("ct.nii.gz")), tmp_path / "old" / "ct.nii.gz")
    assert open_data_set(tmp_path).layout == "plain"


def test_an_image_that_is_no_file_name_is_an_entry_without_a_scan(tmp_path):
    builders.write_monai(tmp_path, phantoms_for("monai"))
    path = next(tmp_path.glob("*.json"))
    content = json.loads(path.read_text())
    content["training"].append({**content["training"][0], "image": "."})
    path.write_text(json.dumps(content))
    data = open_data_set(tmp_path, "monai")
    assert len(refused(data)) == 1 and len(data.cases) == len(content["training"]) - 1


def test_metadata_with_byte_order_mark_is_read(tmp_path):
    builders.write_plain(tmp_path, phantoms_for("plain"))
    path = tmp_path / "manifest.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(open_data_set(tmp_path).cases) == 3


@pytest.mark.parametrize(
    "layout",
    [
        "plain",
        "abdomenatlas",
        "totalsegmentator",
        "nnunet",
        "msd",
        "monai",
        "dicom_seg",
        "combined",
        "plain without annotated",
    ],
)
def test_a_case_without_any_structure_is_a_healthy_one_where_the_data_set_says_what_it_looked_for(
    layout, tmp_path
):
    write, _, prefix = WRITERS.get(layout, (None, None, "case_"))
    phantoms = {
        f"{prefix}{number}": small_phantom(seed=number, absent=SIDES if number == 2 else ())
        for number in (1, 2)
    }
    if layout == "combined":
        builders.write_abdomenatlas(tmp_path, phantoms, combined=True)
    else:
        (write or builders.write_plain)(tmp_path, phantoms)
    if layout == "plain without annotated":
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        write_manifest(
            tmp_path, manifest | {"cases": [{"split": "train", "case": name} for name in phantoms]}
        )
    present, healthy = (load_case(case, SIDES, root=tmp_path) for case in open_data_set(tmp_path).cases)
    assert present.states == dict.fromkeys(SIDES, PRESENT) and present.findings == ()
    assert healthy.states == dict.fromkeys(SIDES, ABSENT) and [
        (f.severity, f.code) for f in healthy.findings
    ] == [("WARN", "LABEL_EMPTY")]


@pytest.mark.parametrize("layout", ["flare22", "ctpelvic1k", "airway", "imagecas"])
def test_an_empty_map_of_what_every_patient_has_is_a_lost_label(layout, tmp_path):
    if layout == "airway":
        write_single(
            tmp_path,
            small_phantom(absent=SIDES),
            "images/ATM_001_0000.nii.gz",
            "labels/ATM_001_0000.nii.gz",
            "airway",
        )
    elif layout == "imagecas":
        write_single(
            tmp_path / "1", small_phantom(absent=SIDES), "img.nii.gz", "label.nii.gz", "coronary_artery"
        )
    else:
        write, names, prefix = WRITERS[layout]
        write(tmp_path, {f"{prefix}1": small_phantom(names, absent=names)})
    data = open_data_set(tmp_path)
    with pytest.raises(CaseError) as error:
        load_case(data.cases[0], data.structures, root=tmp_path)
    assert error.value.code == "LABEL_EMPTY" and "out of the data set" in error.value.fix


# ---- masks ------------------------------------------------------------------------------------------------


def test_a_missing_mask_is_unlabelled_and_an_empty_one_absent(tmp_path):
    builders.write_abdomenatlas(
        tmp_path,
        {
            "a": small_phantom(seed=1),
            "b": small_phantom(SIDES[:2], seed=2),
            "c": small_phantom(seed=3, absent=["bladder"]),
        },
    )
    data = open_data_set(tmp_path)
    assert data.structures == ("bladder", "kidney_left", "kidney_right")
    assert data.cases[1].annotated == {"kidney_left", "kidney_right"}
    assert [load_case(case, SIDES, root=tmp_path).states["bladder"] for case in data.cases] == [
        PRESENT,
        UNLABELLED,
        ABSENT,
    ]


def test_combined_map_needs_names_and_then_gives_the_same_labels(tmp_path):
    phantoms = phantoms_for("abdomenatlas")
    builders.write_abdomenatlas(tmp_path, phantoms, combined=True)
    case = open_data_set(tmp_path).cases[0]
    np.testing.assert_array_equal(
        load_case(case, SIDES, root=tmp_path).label.array, phantoms["BDMAP_1"].label.array
    )
    (tmp_path / "labels.json").unlink()
    with pytest.raises(PreconditionError, match="which value is which organ"):
        open_data_set(tmp_path)


def test_masks_win_over_the_combined_map(tmp_path):
    builders.write_abdomenatlas(tmp_path, phantoms_for("abdomenatlas"))
    builders.write_abdomenatlas(tmp_path, {"BDMAP_1": small_phantom(("x", "y", "z"))}, combined=True)
    (tmp_path / "labels.json").unlink()
    data = open_data_set(tmp_path)
    assert data.cases[0].labels.format == "masks"
    assert data.structures == ("bladder", "kidney_left", "kidney_right")


def test_totalsegmentator_splits_from_meta_csv(tmp_path):
    builders.write_totalsegmentator(
        tmp_path,
        phantoms_for("totalsegmentator"),
        splits={"s0001": "train", "s0002": "val", "s00010": "test", "s0099": "test"},
    )
    data = open_data_set(tmp_path)
    assert data.layout == "totalsegmentator"
    assert [case.split for case in data.cases] == ["train", "val", "test"]
    assert data.findings == ()


# ---- nnU-Net, Decathlon, MONAI ----------------------------------------------------------------------------


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_nnunet_data_set_folder_itself_and_version_1(tmp_path):
    phantoms = phantoms_for("nnunet")
    builders.write_nnunet(tmp_path / "v2", phantoms)
    builders.write_nnunet(
        tmp_path / "v1" / "nnUNet_raw_data", phantoms, version=1, dataset="Task001_Synthetic"
    )
    for root in (tmp_path / "v2", tmp_path / "v2/Dataset001_Synthetic", tmp_path / "v1"):
        data = open_data_set(root)
        assert data.layout == "nnunet"
        assert data.structures == SIDES
        assert data.cases[0].labels.values == dict(enumerate(SIDES, start=1))


def test_nnunet_ignore_label_and_regions(tmp_path):
    builders.write_nnunet(tmp_path, phantoms_for("nnunet"))
    path = tmp_path / "Dataset001_Synthetic/dataset.json"
    change_json(
        path, labels={"background": 0, "kidney_left": 1, "kidney_right": 2, "bladder": 3, "ignore": 4}
    )
    data = open_data_set(tmp_path)
    assert data.structures == SIDES and data.cases[0].labels.ignore_value == 4
    change_json(path, labels={"background": 0, "kidneys": [1, 2], "bladder": 3}, regions_class_order=[1, 3])
    with pytest.raises(PreconditionError, match="kidneys") as error:
        open_data_set(tmp_path)
    assert error.value.code == "REGIONS_UNSUPPORTED"


def test_nnunet_channels(tmp_path):
    builders.write_nnunet(tmp_path, phantoms_for("nnunet", (1,)))
    folder = tmp_path / "Dataset001_Synthetic"
    shutil.copy(folder / "imagesTr/colon_1_0000.nii.gz", folder / "imagesTr/colon_1_0001.nii.gz")
    change_json(folder / "dataset.json", channel_names={"0": "PET", "1": "CT"})
    data = open_data_set(tmp_path)
    assert data.cases[0].image.path.name == "colon_1_0001.nii.gz" and data.findings == ()
    for channels in ({"0": "T1"}, {"0": "PET", "1": "noNorm"}):
        change_json(folder / "dataset.json", channel_names=channels)
        with pytest.raises(PreconditionError) as error:
            open_data_set(tmp_path)
        assert error.value.code == "NOT_CT"


def test_nnunet_listed_data_set_and_paths_that_leave_it(tmp_path):
    builders.write_nnunet(tmp_path, phantoms_for("nnunet"))
    folder = tmp_path / "Dataset001_Synthetic"
    (folder / "imagesTr").rename(tmp_path / "elsewhere")
    change_json(
        folder / "dataset.json",
        dataset={
            "x": {"images": ["../elsewhere/colon_1_0000.nii.gz"], "label": "labelsTr/colon_1.nii.gz"},
            "y": {"images": ["../../outside.nii.gz"], "label": "labelsTr/colon_2.nii.gz"},
            "z": {"images": [], "label": "labelsTr/colon_2.nii.gz"},
        },
    )
    data = open_data_set(tmp_path)
    assert [case.case_id for case in data.cases] == ["x"]
    assert refused(data) == {"y": "UNSAFE_NAME", "z": "METADATA_INVALID"}
    load_case(data.cases[0], SIDES, root=tmp_path)


def test_nnunet_splits_and_test_scans(tmp_path):
    builders.write_nnunet(tmp_path, phantoms_for("nnunet"))
    folder = tmp_path / "Dataset001_Synthetic"
    (tmp_path / "splits_final.json").write_text(
        json.dumps([{"train": ["colon_1", "colon_10"], "val": ["colon_2"]}, {"train": [], "val": []}])
    )
    (folder / "imagesTs").mkdir()
    for number in (3, 4):
        shutil.copy(folder / "imagesTr/colon_1_0000.nii.gz", folder / f"imagesTs/colon_{number}_0000.nii.gz")
    data = open_data_set(tmp_path)
    assert [(case.case_id, case.split) for case in data.cases] == [
        ("colon_1", "train"),
        ("colon_2", "val"),
        ("colon_10", "train"),
    ]
    assert sorted(codes(data)) == ["SPLITS_FOUND", "TEST_UNLABELLED"]
    change_json(folder / "dataset.json", numTraining=5)
    missing = [finding for finding in open_data_set(tmp_path).findings if finding.code == "CASES_MISSING"]
    assert [(finding.severity, finding.cause) for finding in missing] == [
        ("WARN", "it counts 5 training cases, 3 are here")
    ]
    (folder / "labelsTs").mkdir()
    shutil.copy(folder / "labelsTr/colon_1.nii.gz", folder / "labelsTs/colon_3.nii.gz")
    assert {case.case_id: case.split for case in open_data_set(tmp_path).cases}["colon_3"] == "test"
    (tmp_path / "splits_final.json").write_text(
        json.dumps([{"train": ["COLON_1", "colon_10"], "val": ["colon_2"]}])
    )
    told = [finding for finding in open_data_set(tmp_path).findings if finding.code == "SPLIT_UNKNOWN"]
    assert (
        len(told) == 1 and "1 of its cases are not in this data set, the first is 'COLON_1'" in told[0].cause
    )
    (tmp_path / "splits_final.json").write_text('{"train": []}')
    with pytest.raises(PreconditionError, match="no list"):
        open_data_set(tmp_path)


def test_several_data_sets_in_one_folder_need_a_choice(tmp_path):
    for name in ("Dataset001_A", "Dataset002_B"):
        builders.write_nnunet(tmp_path, phantoms_for("nnunet"), dataset=name)
    with pytest.raises(PreconditionError, match="Dataset001_A, Dataset002_B") as error:
        open_data_set(tmp_path)
    assert error.value.code == "SEVERAL_DATA_SETS"
    assert len(open_data_set(tmp_path / "Dataset002_B").cases) == 3


def test_one_label_file_for_two_scans_is_told(tmp_path):
    builders.write_msd(tmp_path, phantoms_for("msd"))
    path = tmp_path / "Task42_Synthetic/dataset.json"
    training = json.loads(path.read_text())["training"]
    change_json(
        path, training=[entry | {"label": training[0]["label"]} for entry in training[:2]] + training[2:]
    )
    told = [finding for finding in open_data_set(tmp_path).findings if finding.code == "LABEL_SHARED"]
    assert len(told) == 1 and told[0].severity == "WARN" and "has the same label file" in told[0].cause


def test_decathlon_of_another_modality_and_without_labels(tmp_path):
    builders.write_msd(tmp_path, phantoms_for("msd"))
    path = tmp_path / "Task42_Synthetic/dataset.json"
    content = json.loads(path.read_text())
    del content["training"][0]["label"]
    content["training"].append({"image": "../../../x.nii.gz", "label": "./labelsTr/x.nii.gz"})
    path.write_text(json.dumps(content))
    assert refused(open_data_set(tmp_path)) == {"spleen_10": "LABEL_MISSING", "x": "UNSAFE_NAME"}
    for modality in ({"0": "MRI"}, {"0": "FLAIR", "1": "T1w"}):
        change_json(path, modality=modality)
        with pytest.raises(PreconditionError) as error:
            open_data_set(tmp_path)
        assert error.value.code == "NOT_CT"


@pytest.mark.parametrize(
    "names",
    [
        {"labels": {"background": 0, "kidney_left": 1, "kidney_right": 2, "bladder": 3}},
        {"labels": {"0": "background", "1": "kidney_left", "2": "kidney_right", "3": "bladder"}},
        {
            "class_names": [
                {"name": "kidney_left", "index": [1]},
                {"name": "kidney_right", "index": 2},
                {"name": "bladder", "index": [3]},
            ]
        },
        {"class_names": ["background", *SIDES]},
    ],
)
def test_monai_names_in_every_form(names, tmp_path):
    builders.write_monai(tmp_path, phantoms_for("monai"))
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": json.loads(path.read_text())["training"]} | names))
    assert open_data_set(tmp_path).structures == SIDES


def test_monai_without_names_says_which_file_to_add(tmp_path):
    builders.write_monai(tmp_path, phantoms_for("monai"))
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": json.loads(path.read_text())["training"]}))
    with pytest.raises(PreconditionError, match=r"labels\.json") as error:
        open_data_set(tmp_path)
    assert error.value.code == "LABEL_NAMES_MISSING"
    (tmp_path / "labels.json").write_text(json.dumps(dict(zip(SIDES, (1, 2, 3)))))
    data = open_data_set(tmp_path)
    assert data.structures == SIDES and data.findings == ()
    for bad in (["kidney_left", "bladder"], [{"name": "kidneys", "index": [1, 2]}]):
        change_json(path, class_names=bad)
        with pytest.raises(PreconditionError):
            open_data_set(tmp_path)


def test_monai_lists_splits_and_unsafe_paths(tmp_path):
    for number in (1, 2, 3):
        builders.write_plain(tmp_path, {f"c{number}": small_phantom(seed=number)})
    (tmp_path / "manifest.json").unlink()
    entries = {
        number: {"image": f"train/c{number}/ct.nii.gz", "label": f"train/c{number}/labels.nii.gz"}
        for number in (1, 2, 3)
    }
    (tmp_path / "list.json").write_text(
        json.dumps(
            {
                "labels": dict(zip(SIDES, (1, 2, 3))),
                "training": [entries[1] | {"patient_id": "p"}, {"image": "/etc/passwd", "label": "x.nii.gz"}],
                "validation": [entries[2]],
                "testing": [{"image": entries[3]["image"]}],
            }
        )
    )
    data = open_data_set(tmp_path)
    assert [(case.case_id, case.split, case.patient_id) for case in data.cases] == [
        ("train_c1_ct", "train", "p"),
        ("train_c2_ct", "val", "train_c2_ct"),
    ]
    assert refused(data) == {"passwd": "UNSAFE_NAME"}
    assert "TEST_UNLABELLED" in codes(data)
    change_json(tmp_path / "list.json", dataroot="/data")
    with pytest.raises(PreconditionError, match="dataroot"):
        open_data_set(tmp_path)


def test_flare_and_ctpelvic_list_what_has_no_partner(tmp_path):
    builders.write_flare22(tmp_path / "a" / "FLARE22Train", phantoms_for("flare22"))
    assert len(open_data_set(tmp_path / "a").cases) == 3, "one folder deeper"
    builders.write_ctpelvic1k(tmp_path / "b", phantoms_for("ctpelvic1k"))
    (tmp_path / "b/masks/Patient_12_Sequence_3.nii.gz").write_bytes(b"")
    data = open_data_set(tmp_path / "b")
    assert data.structures == ("sacrum", "right_hip", "left_hip", "lumbar_vertebra")
    assert codes(data) == ["UNMATCHED_FILE"]


def test_swapped_sides_of_ctpelvic1k_are_warned_about(tmp_path):
    builders.write_ctpelvic1k(tmp_path, {"dataset1_x_1": small_phantom(("right_hip", "left_hip", "sacrum"))})
    loaded = load_case(open_data_set(tmp_path).cases[0], HIPS, root=tmp_path)
    assert "SIDE_SWAP" in [finding.code for finding in loaded.findings]


# ---- airways and coronary arteries -------------------------------------------------------------------------


def write_single(folder: Path, phantom, image: str, label: str, name: str) -> None:
    """A scan and a map in which 1 is the phantom's first structure."""
    nifti.write_image(folder / image, phantom.image)
    mask = Volume((phantom.label.array == 1).astype(np.uint8), phantom.label.affine)
    nifti.write_label(folder / label, mask, names={1: name})


def test_airway_pairs_of_both_kinds(tmp_path):
    for number in (2, 10):
        write_single(
            tmp_path / "TrainBatch1",
            small_phantom(SIDES, seed=number),
            f"images/ATM_{number:03d}_0000.nii.gz",
            f"labels/ATM_{number:03d}_0000.nii.gz",
            "airway",
        )
    exact = small_phantom(SIDES, seed=3)
    dicom_series.write_series(
        tmp_path / "exact/images/CASE03", exact.image, patient_id="synthetic", series_number=1, seed=0
    )
    nifti.write_label(
        tmp_path / "exact/labels/CASE03.nii.gz",
        Volume((exact.label.array == 1).astype(np.uint8), exact.label.affine),
        names={1: "airway"},
    )
    (tmp_path / "exact/images/CASE04").mkdir()
    data = open_data_set(tmp_path)
    assert data.layout == "airway_pair" and data.structures == ("airway",)
    assert [case.case_id for case in data.cases] == ["ATM_002", "ATM_010", "CASE03"] and refused(data) == {
        "CASE04": "LABEL_MISSING"
    }
    for case in data.cases:
        loaded = load_case(case, ["airway"], root=tmp_path)
        assert loaded.states == {"airway": "present"} and loaded.label.array.shape == loaded.image.array.shape


def test_imagecas_keeps_its_splits(tmp_path):
    for split, name in (("train", "1"), ("valid", "2"), ("test", "3")):
        write_single(
            tmp_path / split / name,
            small_phantom(SIDES, seed=int(name)),
            "img.nii.gz",
            "label.nii.gz",
            "coronary_artery",
        )
    nifti.write_label(
        tmp_path / "train/1/heart_combined.nii.gz", small_phantom(SIDES, seed=1).label, names=None
    )
    (tmp_path / "test/4").mkdir()
    (tmp_path / "test/4/img.nii.gz").write_bytes(b"")
    data = open_data_set(tmp_path)
    assert data.layout == "imagecas" and {case.case_id: case.split for case in data.cases} == {
        "1": "train",
        "2": "val",
        "3": "test",
    }
    assert refused(data) == {"4": "LABEL_MISSING"} and codes(data, "WARN") == []
    assert load_case(data.cases[0], ["coronary_artery"], root=tmp_path).states == {
        "coronary_artery": "present"
    }


# ---- OpenKBP and DICOM ------------------------------------------------------------------------------------


def test_openkbp_official_splits_and_missing_structures(tmp_path):
    phantoms = phantoms_for("openkbp_csv") | {"pt_201": small_phantom(HEAD[:2], seed=4)}
    builders.write_openkbp_csv(
        tmp_path / "provided-data", phantoms, pools={"pt_201": "validation-pats", "pt_10": "test-pats"}
    )
    (tmp_path / "provided-data/train-pats/pt_1/PTV56.csv").write_text(",data\n")
    (tmp_path / "provided-data/train-pats/pt_1/dose.csv").write_text(",data\n")
    for root in (tmp_path, tmp_path / "provided-data"):
        data = open_data_set(root)
        assert {case.case_id: case.split for case in data.cases} == {
            "pt_1": "train",
            "pt_2": "train",
            "pt_10": "test",
            "pt_201": "val",
        }
        assert data.structures == ("Brainstem", "RightParotid", "LeftParotid")
        assert data.cases[-1].annotated == {"LeftParotid", "RightParotid"}
        assert data.findings == ()
    assert {case.split for case in open_data_set(tmp_path / "provided-data/test-pats").cases} == {"test"}


def test_dicom_patients_are_named_after_their_first_case(tmp_path):
    """Nothing that is computed from a patient id leaves the reader: a hash of a short number can be found by
    trying all.
    """
    for number, patient in enumerate(("4711", "4712", "4711"), start=1):
        write_dicom_case(tmp_path / f"p{number}", number, patient=patient)
    assert [case.patient_id for case in open_data_set(tmp_path).cases] == ["p1", "p2", "p1"]


def write_dicom_case(folder: Path, number: int, *, patient: str = "P", segmentations: int = 1) -> str:
    from ctseg.scans.dicom import dicom_seg, dicom_series

    phantom = small_phantom(seed=number)
    uid = dicom_series.write_series(
        folder / "ct", phantom.image, patient_id=patient, series_number=number, seed=number
    )
    for index in range(segmentations):
        dicom_seg.write_segments(
            folder / f"seg{index}" / "x.dcm", phantom.label, phantom.names, folder / "ct"
        )
    return uid


def test_dicom_contours_are_labels_too(tmp_path):
    from ctseg.scans.dicom import rtstruct

    write_dicom_case(tmp_path / "Anna", 1, patient="Anna")
    write_dicom_case(tmp_path / "Berta", 2, patient="Berta", segmentations=0)
    phantom = small_phantom(seed=2)
    rtstruct.write_structures(
        tmp_path / "Berta" / "plan" / "rs.dcm", phantom.label, phantom.names, tmp_path / "Berta" / "ct"
    )
    data = open_data_set(tmp_path)
    assert [(case.case_id, case.labels.format) for case in data.cases] == [
        ("Anna", "dicom_seg"),
        ("Berta", "rtstruct"),
    ] and data.findings == ()
    berta = load_case(data.cases[1], SIDES, root=tmp_path)
    np.testing.assert_array_equal(to_canonical(berta.label).array, small_phantom(seed=2).label.array)
    rtstruct.write_structures(
        tmp_path / "Anna" / "rs.dcm", small_phantom(seed=1).label, phantom.names, tmp_path / "Anna" / "ct"
    )
    assert [finding.code for finding in open_data_set(tmp_path).findings] == ["SEG_AMBIGUOUS"]


def test_dicom_several_scans_of_one_patient(tmp_path):
    for number in (1, 2):
        write_dicom_case(tmp_path / "Anna" / f"study{number}", number, patient="Anna")
    write_dicom_case(tmp_path / "Berta", 3, patient="Berta")
    data = open_data_set(tmp_path)
    assert [case.case_id for case in data.cases] == ["Anna_study1_ct", "Anna_study2_ct", "Berta"]
    anna1, anna2, berta = (case.patient_id for case in data.cases)
    assert anna1 == anna2 != berta
    for case, seed in zip(data.cases, (1, 2, 3)):
        loaded = load_case(case, SIDES, root=tmp_path)
        np.testing.assert_array_equal(to_canonical(loaded.image).array, small_phantom(seed=seed).image.array)


def test_dicom_scans_and_segmentations_in_separate_trees_are_matched_by_reference(tmp_path):
    for number in (1, 2):
        write_dicom_case(tmp_path / "all" / f"p{number}", number, patient=f"p{number}")
        (tmp_path / "scans").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        (tmp_path / f"all/p{number}/ct").rename(tmp_path / f"scans/p{number}")
        (tmp_path / f"all/p{number}/seg0").rename(tmp_path / f"masks/q{3 - number}")  # order must not matter
    shutil.rmtree(tmp_path / "all")
    data = open_data_set(tmp_path)
    assert [(case.case_id, case.labels.path.parent.name) for case in data.cases] == [
        ("scans_p1", "q2"),
        ("scans_p2", "q1"),
    ]


def test_one_patient_folder_or_loose_files_are_one_case(tmp_path):
    write_dicom_case(tmp_path / "tree" / "Patient_1", 1)
    assert [case.case_id for case in open_data_set(tmp_path / "tree/Patient_1").cases] == ["Patient_1"]
    (tmp_path / "flat").mkdir()
    for index, path in enumerate(sorted((tmp_path / "tree").rglob("*.dcm"))):
        shutil.copy(path, tmp_path / "flat" / f"{index}.dcm")
    data = open_data_set(tmp_path / "flat")
    assert [case.case_id for case in data.cases] == ["flat"]
    assert load_case(data.cases[0], SIDES, root=tmp_path / "flat").states == dict.fromkeys(SIDES, PRESENT)


def test_dicom_folders_that_are_no_pair_are_refused(tmp_path):
    write_dicom_case(tmp_path / "good", 1, patient="1")
    write_dicom_case(tmp_path / "two_segs", 2, patient="2", segmentations=2)
    write_dicom_case(tmp_path / "no_seg", 3, patient="3", segmentations=0)
    write_dicom_case(tmp_path / "no_ct", 4, patient="4")
    shutil.rmtree(tmp_path / "no_ct/ct")
    data = open_data_set(tmp_path)
    assert [case.case_id for case in data.cases] == ["good"]
    assert refused(data) == {
        "two_segs": "SEG_AMBIGUOUS",
        "no_seg": "LABEL_MISSING",
        "no_ct": "SEG_WRONG_SERIES",
    }


def test_a_damaged_slice_is_left_to_the_reader_which_refuses_the_case(tmp_path):
    write_dicom_case(tmp_path / "damaged", 1, patient="1")
    write_dicom_case(tmp_path / "good", 2, patient="2")
    first = next((tmp_path / "damaged/ct").iterdir())
    first.write_bytes(first.read_bytes()[:200])
    data = open_data_set(tmp_path)
    damaged, good = data.cases
    assert (damaged.case_id, good.case_id) == ("damaged", "good")
    load_case(good, SIDES, root=tmp_path)
    with pytest.raises(CaseError) as error:
        load_case(damaged, SIDES, root=tmp_path)
    assert error.value.case == "damaged"


def test_a_segmentation_of_another_patient_in_the_folder_is_never_used(tmp_path):
    write_dicom_case(tmp_path / "a", 1, patient="1")
    write_dicom_case(tmp_path / "b", 2, patient="2")
    shutil.copy(tmp_path / "b/seg0/x.dcm", tmp_path / "a/seg0/x.dcm")  # a now holds only b's
    a, b = open_data_set(tmp_path).cases
    load_case(b, SIDES, root=tmp_path)
    with pytest.raises(CaseError) as error:
        load_case(a, SIDES, root=tmp_path)
    assert error.value.code == "SEG_WRONG_SERIES"


def test_one_patient_id_for_all_folders_is_taken_as_anonymisation(tmp_path):
    for number in (1, 2, 3):
        write_dicom_case(tmp_path / f"p{number}", number, patient="ANON")
    data = open_data_set(tmp_path)
    assert [case.patient_id for case in data.cases] == ["p1", "p2", "p3"]
    assert codes(data, "WARN") == ["PATIENT_ID_SHARED"]


def test_patients_without_id_are_not_thrown_together(tmp_path):
    for number in (1, 2):
        write_dicom_case(tmp_path / f"p{number}", number, patient="")
    write_dicom_case(tmp_path / "p3", 3, patient="known")
    assert [case.patient_id for case in open_data_set(tmp_path).cases][:2] == ["p1", "p2"]


def test_synthetic_findings_name_the_half(tmp_path):
    builders.write_synthetic(tmp_path, phantoms_for("synthetic"))
    (tmp_path / "nifti/Patient_10/ct.nii.gz").unlink()
    data = open_data_set(tmp_path)
    assert data.synthetic and refused(data) == {"Patient_10": "FILE_MISSING"}
    assert data.findings[0].file == "nifti/Patient_10/ct.nii.gz"
    shutil.rmtree(tmp_path / "nifti")
    shutil.rmtree(tmp_path / "dicom")
    with pytest.raises(PreconditionError, match="incomplete"):
        open_data_set(tmp_path)


# ---- real data --------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_openkbp(real_data):
    root = real_data / "openkbp"
    data = open_data_set(root)
    manifest = json.loads((root / "manifest.json").read_text())
    assert data.layout == "plain" and data.findings == ()
    assert [case.split for case in data.cases].count("train") == 99
    assert [case.split for case in data.cases].count("test") == 16
    assert data.structures == (
        "Brainstem",
        "SpinalCord",
        "RightParotid",
        "LeftParotid",
        "Mandible",
        "Larynx",
        "Esophagus",
    )
    expected = {entry["case"]: entry for entry in manifest["cases"]}
    assert {case.case_id: case.annotated for case in data.cases} == {
        name: frozenset(entry["annotated"]) for name, entry in expected.items()
    }
    case = data.cases[0]
    loaded = load_case(case, data.structures, root=root)
    counted = {
        name: int((loaded.label.array == index).sum()) for index, name in enumerate(data.structures, start=1)
    }
    assert {name: count for name, count in counted.items() if count} == expected[case.case_id]["voxels"]


@pytest.mark.real
def test_real_openkbp_csv_equals_the_prepared_set(real_data):
    root, prepared = real_data / "openkbp_csv", real_data / "openkbp"
    data = open_data_set(root)
    assert data.layout == "openkbp_csv" and data.findings == ()
    assert [(case.case_id, case.split) for case in data.cases] == [
        ("pt_1", "train"),
        ("pt_12", "train"),
        ("pt_100", "train"),
    ]
    others = {case.case_id: case for case in open_data_set(prepared).cases}
    case, other = data.cases[2], others["pt_100"]
    assert case.annotated == other.annotated
    ours, theirs = (
        load_case(case, data.structures, root=root),
        load_case(other, data.structures, root=prepared),
    )
    assert ours.states == theirs.states
    np.testing.assert_array_equal(to_canonical(ours.image).array, to_canonical(theirs.image).array)
    np.testing.assert_array_equal(to_canonical(ours.label).array, to_canonical(theirs.label).array)


@pytest.mark.real
def test_real_totalsegmentator_masks(real_data, tmp_path):
    source = real_data / "totalseg/tests/reference_files"
    (tmp_path / "s0000").mkdir()
    shutil.copy(source / "example_ct_sm.nii.gz", tmp_path / "s0000/ct.nii.gz")
    shutil.copytree(source / "example_seg_fast", tmp_path / "s0000/segmentations")
    data = open_data_set(tmp_path)
    assert data.layout == "totalsegmentator"
    assert len(data.structures) > 100 and data.cases[0].annotated == frozenset(data.structures)
    assert codes(data) == ["OTHER_FILES"]
    loaded = load_case(data.cases[0], ("liver", "femur_left", "heart"), root=tmp_path)
    masks = {
        name: np.count_nonzero(loaded.label.array == index)
        for index, name in enumerate(("liver", "femur_left", "heart"), start=1)
    }
    assert loaded.states == {name: PRESENT if count else ABSENT for name, count in masks.items()}
    assert set(loaded.states.values()) == {PRESENT, ABSENT}


def test_adapters_are_in_the_documented_order():
    order = list(LAYOUTS)
    assert order[0] == "synthetic" and order[-1] == "dicom_seg"
    assert order.index("nnunet") < order.index("msd") < order.index("monai")
    assert order.index("totalsegmentator") < order.index("abdomenatlas")
    assert layouts.open_data_set is open_data_set


@pytest.mark.parametrize(
    ("layout", "closed"),
    [
        ("totalsegmentator", "s0001"),
        ("totalsegmentator", "s0001/segmentations"),
        ("abdomenatlas", "BDMAP_00000001"),
        ("dicom_seg", "Patient_01"),
    ],
)
def test_a_folder_that_may_not_be_entered_costs_its_case_only(layout, closed, tmp_path, monkeypatch):
    writer, names, start = WRITERS[layout]
    writer(
        tmp_path,
        {
            case: small_phantom(names, seed=number)
            for number, case in enumerate((closed.split("/")[0], f"{start}0007", f"{start}0008"))
        },
    )
    place, listed, entered, allowed = str(tmp_path / closed), os.listdir, os.scandir, os.access

    def refuse(path: object) -> None:
        if str(path) == place:
            raise PermissionError(13, "Permission denied", place)

    monkeypatch.setattr(os, "listdir", lambda path=".": refuse(path) or listed(path))
    monkeypatch.setattr(os, "scandir", lambda path=".": refuse(path) or entered(path))
    monkeypatch.setattr(
        os, "access", lambda path, mode, **how: str(path) != place and allowed(path, mode, **how)
    )
    data_set = open_data_set(tmp_path, layout)
    errors = [finding for finding in data_set.findings if finding.severity == "ERROR"]
    assert len(data_set.cases) == 2 and [(finding.code, finding.case) for finding in errors] == [
        ("PERMISSION", closed.split("/")[0])
    ]
