"""Contours of other tools: rounded positions, other slice spacings, damaged and foreign ones; right values
counted by hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

import evaluate
import preprocessing
import visualize
from ctseg import artifacts
from ctseg.errors import CaseError, Finding
from ctseg.geometry.volume import Volume
from ctseg.scans.dicom import dicom_series, mask_objects, rtstruct
from ctseg.scans.formats import slice_gaps

SHAPE = (40, 24, 24)
IMAGE = Volume(
    np.full(SHAPE, 40, np.float32),
    np.array([[0, 0, 3.0, -30], [0, 3.0, 0, -30], [1.0, 0, 0, -60], [0, 0, 0, 1]]),
)
IMAGE.array[:, :2] = -1000
Contours = Iterable[np.ndarray]


def box(low: float, high: float, d: float, column: float = 0.0) -> np.ndarray:
    """A square in LPS mm, from and to these rows and columns, on slice d."""
    corners = [
        (d, low, low + column),
        (d, low, high + column),
        (d, high, high + column),
        (d, high, low + column),
    ]
    return (np.column_stack([corners, np.ones(4)]) @ IMAGE.affine.T)[:, :3]


def outer(d: float) -> np.ndarray:
    """49 pixels."""
    return box(5.5, 12.5, d)


def hole(d: float) -> np.ndarray:
    """9 pixels, inside the outer one."""
    return box(7.5, 10.5, d)


def aside(d: float) -> np.ndarray:
    """49 other pixels."""
    return box(5.5, 12.5, d, column=9)


def item(**elements: Any) -> pydicom.Dataset:
    result = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(result, keyword, value)
    return result


def write(
    folder: Path,
    structures: dict[str, Contours],
    image: Volume = IMAGE,
    seed: int = 0,
    patient: str = "synthetic",
) -> Path:
    """A series in `folder`/ct and an RTSTRUCT of it with these contours (LPS mm); returns the RTSTRUCT."""
    scan = Volume(image.array + seed, image.affine)  # no two patients alike
    dicom_series.write_series(folder / "ct", scan, patient_id=patient, series_number=1, seed=seed)
    path, names = folder / "rs.dcm", dict(enumerate(structures, start=1))
    rtstruct.write_structures(
        path, Volume(np.zeros(image.array.shape, np.uint8), image.affine), names, folder / "ct"
    )
    edit(
        path,
        lambda content: [
            set_contours(entry, contours)
            for entry, contours in zip(content.ROIContourSequence, structures.values())
        ],
    )
    return path


def set_contours(entry: Any, contours: Contours) -> None:
    entry.ContourSequence = [
        item(
            ContourGeometricType="CLOSED_PLANAR",
            NumberOfContourPoints=len(points),
            ContourData=[f"{value:.9g}" for value in points.ravel()],
        )
        for points in contours
    ]


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = pydicom.dcmread(path)
    change(content)
    content.save_as(path)


def read(path: Path, **options: Any) -> tuple[dict[str, np.ndarray], list[Finding]]:
    return rtstruct.read_structures(path, IMAGE, path.parent / "ct", **options)


def read_one(path: Path, **options: Any) -> tuple[list[int], list[str]]:
    """(voxels of 'x' on its slices from the first to the last one, codes of the findings)."""
    masks, findings = read(path, **options)
    counts = masks["x"].sum(axis=(1, 2))
    drawn = np.flatnonzero(counts)
    return counts[drawn[0] : drawn[-1] + 1].tolist(), [finding.code for finding in findings]


# ---- planes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", [0.0, 0.02, 0.1, 0.2])
@pytest.mark.parametrize("offset", [0.0, 0.3, 0.5])
def test_contours_of_one_slice_are_one_plane_however_they_are_rounded(tmp_path, rounding, offset):
    """B07: a ring and a part beside it, each with a z of its own."""
    rng = np.random.default_rng(0)
    path = write(
        tmp_path,
        {
            "x": [
                part(d + offset + rng.uniform(-rounding, rounding))
                for d in range(10, 20)
                for part in (outer, hole, aside)
            ]
        },
    )
    assert read_one(path) == ([49 - 9 + 49] * 10, [])


def test_a_contour_of_more_than_64_kilobytes_is_read(tmp_path):
    """In explicit VR it does not fit the length of its own type and is stored as bytes."""
    corners = np.concatenate([outer(10), outer(10)[:1]])
    fine = np.concatenate([np.linspace(a, b, 1500, endpoint=False) for a, b in itertools.pairwise(corners)])
    path = write(tmp_path, {"x": [fine]})
    content = pydicom.dcmread(path)
    assert isinstance(content.ROIContourSequence[0].ContourSequence[0].ContourData, bytes)
    assert read_one(path) == ([49], [])


def test_rounded_coordinates_of_an_oblique_series(tmp_path):
    """B07: coordinates with one decimal on slices of 1.25 mm, tilted by 10 degrees."""
    angle, rng = np.deg2rad(10), np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, :3] = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    ) @ np.array([[0, 0, 3], [0, 3, 0], [1.25, 0, 0]])
    affine[:3, 3] = -60, -50, -60
    image = Volume(np.full((40, 40, 40), 40, np.float32), affine)
    image.array[:, :2] = -1000

    def circle(d: int, radius: float, points: int) -> np.ndarray:
        turn = np.linspace(0, 2 * np.pi, points, endpoint=False) + rng.uniform(0, 1)
        index = np.column_stack(
            [np.full(points, d), 19.5 + radius * np.sin(turn), 19.5 + radius * np.cos(turn), np.ones(points)]
        )
        return np.round((index @ affine.T)[:, :3], 1)

    path = write(
        tmp_path, {"x": [ring for d in range(5, 35) for ring in (circle(d, 10, 60), circle(d, 4, 16))]}, image
    )
    masks, findings = rtstruct.read_structures(path, image, tmp_path / "ct")
    assert masks["x"].sum(axis=(1, 2)).tolist() == [0] * 5 + [264] * 30 + [0] * 5 and not findings


def test_planes_half_way_go_the_same_way_in_every_structure(tmp_path):
    path = write(
        tmp_path, {"x": [outer(d + 0.49) for d in (10, 11, 12)], "y": [aside(d + 0.51) for d in (10, 11, 12)]}
    )
    masks, findings = read(path)
    assert (
        all(np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [10, 11, 12] for mask in masks.values())
        and not findings
    )


@pytest.mark.parametrize("step", [0.2, 0.4, 0.5, 0.8])
def test_the_planes_of_a_finer_series_do_not_cancel_each_other(tmp_path, step):
    planes = np.arange(10, 20, step)
    path = write(tmp_path, {"x": [part(d) for d in planes for part in (outer, hole)]})
    counts, codes = read_one(path)
    assert set(counts) == {40} and codes == ["RT_FINER_PLANES"]
    (finding,) = read(path)[1]
    assert finding.cause.startswith(f"{2 * (len(planes) - len(counts))} contours of 'x'")


# ---- gaps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1.2, 2, 2.5, 5])
def test_a_structure_of_a_thicker_series_is_told_left_out_or_interpolated(tmp_path, step):
    planes = [10 + step * n for n in range(int(20 / step) + 1)]
    path = write(tmp_path, {"x": [part(d) for d in planes for part in (outer, hole)]})
    assert read_one(path, gaps=slice_gaps.FILL) == ([40] * (round(planes[-1] - 0.05) - 9), ["LABEL_GAPS"])
    masks, (finding,) = read(path)
    assert (
        masks["x"].sum() == 40 * len(planes)
        and finding.severity == "WARN"
        and f"drawn on {len(planes)} slices" in finding.cause
    )
    assert read(path, gaps=slice_gaps.LEAVE_OUT)[0] == {}


def test_outlines_are_interpolated_by_their_distances(tmp_path):
    """Squares of 3, 7 and 11 voxels on every other slice: 5 and 9 between them."""
    path = write(tmp_path, {"x": [box(10.5 - n, 13.5 + n, 10 + n) for n in (0, 2, 4)]})
    assert read_one(path, gaps=slice_gaps.FILL)[0] == [9, 25, 49, 81, 121]


def test_a_forgotten_slice_is_told_and_separate_pieces_are_not(tmp_path):
    path = write(tmp_path, {"x": [outer(d) for d in (10, 11, 12, 13, 15, 16, 17)]})
    assert read_one(path, gaps=slice_gaps.FILL) == ([49] * 4 + [0] + [49] * 3, ["LABEL_GAPS"])
    edit(
        path,
        lambda content: set_contours(
            content.ROIContourSequence[0], [outer(10), outer(11), aside(20), aside(21)]
        ),
    )
    assert read_one(path)[1] == []


# ---- what is not used -------------------------------------------------------------------------------------


def ends(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A change of the last contour of 'x', which leaves no gap behind."""
    return lambda content: change(content.ROIContourSequence[0].ContourSequence[-1])


def shown(contour: Any, values: Sequence[Any]) -> None:
    contour["ContourData"] = pydicom.DataElement("ContourData", "DS", list(values), validation_mode=0)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (ends(lambda contour: setattr(contour, "ContourGeometricType", "POINT")), "RT_OPEN_CONTOUR"),
        (ends(lambda contour: setattr(contour, "ContourGeometricType", "OPEN_PLANAR")), "RT_OPEN_CONTOUR"),
        (ends(lambda contour: setattr(contour, "ContourGeometricType", "OPEN_NONPLANAR")), "RT_OPEN_CONTOUR"),
        (ends(lambda contour: shown(contour, contour.ContourData[:6])), "RT_OPEN_CONTOUR"),
        (ends(lambda contour: delattr(contour, "ContourData")), "RT_OPEN_CONTOUR"),
        (ends(lambda contour: shown(contour, contour.ContourData[:-1])), "RT_CONTOUR_DAMAGED"),
        (ends(lambda contour: shown(contour, ["nan", *contour.ContourData[1:]])), "RT_CONTOUR_DAMAGED"),
        (
            ends(
                lambda contour: shown(
                    contour,
                    [float(value) + 500 * (n % 3 == 0) for n, value in enumerate(contour.ContourData)],
                )
            ),
            "RT_OFF_GRID",
        ),
    ],
)
def test_every_contour_that_is_left_out_is_counted(tmp_path, change, code):
    path = write(tmp_path, {"x": [outer(d) for d in (10, 11, 12, 13)]})
    edit(path, change)
    masks, (finding,) = read(path)
    assert (
        masks["x"].sum() == 3 * 49 and finding.code == code and finding.cause.startswith("1 contours of 'x'")
    )


def test_copies_count_once_and_crossings_are_told(tmp_path):
    path = write(tmp_path, {"x": [part for d in (10, 11, 12) for part in (outer(d), outer(d + 0.02)[::-1])]})
    assert read_one(path) == ([49] * 3, ["RT_CONTOUR_COPY"])
    edit(
        path,
        lambda content: set_contours(
            content.ROIContourSequence[0], [outer(10), box(5.5, 12.5, 10, column=5)]
        ),
    )
    masks, (finding,) = read(path)
    assert masks["x"].sum() == 2 * 35 and finding.code == "RT_CONTOURS_CROSS" and "14 voxels" in finding.cause


def test_what_encloses_no_voxel_is_not_annotated_and_what_lies_beside_the_slices_is_refused(tmp_path):
    path = write(tmp_path, {"x": [outer(10)], "tiny": [box(5.2, 5.4, d) for d in (10, 11)]})
    masks, (finding,) = read(path)
    assert set(masks) == {"x"} and finding.code == "RT_NO_VOXEL"
    edit(path, lambda content: set_contours(content.ROIContourSequence[1], [box(105, 110, 10)]))
    with pytest.raises(CaseError, match=r"RT_OFF_GRID.*'tiny' lies outside the scan"):
        read(path)


def test_structures_that_the_list_does_not_name_or_that_belong_elsewhere(tmp_path):
    path = write(tmp_path, {"x": [outer(10)], "y": [aside(10)], "z": [hole(10)]})
    edit(
        path,
        lambda content: (
            delattr(content.StructureSetROISequence[1], "ROIName"),
            content.StructureSetROISequence.pop(2),
        ),
    )
    masks, (finding,) = read(path)
    assert set(masks) == {"x"} and finding.code == "RT_NAMELESS" and finding.cause.startswith("2 drawn")
    edit(
        path,
        lambda content: (
            setattr(content.ROIContourSequence[1], "ReferencedROINumber", 1),
            content.StructureSetROISequence.pop(1),
        ),
    )
    assert read(path)[0]["x"].sum() == 2 * 49  # two places of the file hold contours of one structure


def test_one_name_or_number_twice(tmp_path):
    path = write(tmp_path, {"x": [outer(10)], "y": []})
    edit(path, lambda content: setattr(content.StructureSetROISequence[1], "ROIName", "x"))
    assert read_one(path) == ([49], [])  # only one of them is drawn
    edit(path, lambda content: setattr(content.StructureSetROISequence[1], "ROINumber", 1))
    with pytest.raises(CaseError, match=r"RT_AMBIGUOUS.*same number"):
        read(path)


def test_a_structure_of_another_frame_of_reference_is_left_out(tmp_path):
    path = write(tmp_path, {"x": [outer(10)], "y": [outer(10)]})

    def change(content: Any) -> None:
        content.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3"
        content.ReferencedFrameOfReferenceSequence.append(item(FrameOfReferenceUID="1.2.3"))

    edit(path, change)
    masks, (finding,) = read(path)
    assert set(masks) == {"x"} and finding.code == "RT_WRONG_SERIES" and "'y'" in finding.cause


def test_without_uids_positions_decide_and_a_warning_says_so(tmp_path):
    path = write(tmp_path, {"x": [outer(10)]})
    edit(
        path,
        lambda content: (
            delattr(content, "ReferencedFrameOfReferenceSequence"),
            delattr(content.StructureSetROISequence[0], "ReferencedFrameOfReferenceUID"),
        ),
    )
    assert read_one(path) == ([49], ["SERIES_UNKNOWN"])


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Größe"),
        ("ISO_IR 192", "前列腺"),
        ("GB18030", "淺層 前列腺"),
        ("ISO_IR 144", "Печень"),
        (["", "ISO 2022 IR 87"], "左 膀胱"),
        (["", "ISO 2022 IR 149"], "방광"),
        ("ISO_IR 192", "a\\b"),
    ],
)
def test_names_of_every_script(tmp_path, charset, name):
    path = write(tmp_path, {"x": [outer(10)]})
    edit(
        path,
        lambda content: (
            setattr(content, "SpecificCharacterSet", charset),
            setattr(content.StructureSetROISequence[0], "ROIName", name),
        ),
    )
    assert set(read(path)[0]) == {name} and mask_objects.list_names(path, "RTSTRUCT") == {1: name}


@pytest.mark.parametrize(("stored", "meant"), [("Grö".encode(), "Grö"), (b"Gr\xf6\xdf", "Größ")])
def test_names_whose_character_set_nobody_declared(tmp_path, stored, meant):
    path = write(tmp_path, {"name": [outer(10)]})
    edit(path, lambda content: delattr(content, "SpecificCharacterSet"))
    path.write_bytes(path.read_bytes().replace(b"name", stored))
    assert mask_objects.list_names(path, "RTSTRUCT") == {1: meant}


# ---- the real command lines -------------------------------------------------------------------------------


def test_the_stage_leaves_stripes_out_and_interpolates_them_on_request(tmp_path, capsys):
    """B09: 'rectum' on every other slice; 5 slices of 49 voxels are told, 9 are right."""
    for number in range(3):
        structures = {
            "rectum": [aside(d) for d in range(10, 20, 2)],
            "ring": [part for d in range(10, 20) for part in (outer(d + 0.02), hole(d))],
        }
        write(tmp_path / "data" / f"p{number}", structures, seed=number, patient=str(number))
    words = ["--data", str(tmp_path / "data"), "--workers", "1", "--set", "data.grid=whole"]
    workspace = artifacts.Workspace(tmp_path / "work")

    def run(*more: str) -> list[tuple[dict[str, Any], dict[str, Any], list[str]]]:
        assert preprocessing.main(["--workspace", str(workspace.root), *words, *more]) == 0
        entries = artifacts.read_json(workspace.manifest)["cases"]
        return [
            (entry["voxels"], entry["states"], [finding["code"] for finding in entry["findings"]])
            for entry in entries
        ]

    for voxels, states, codes in run():
        assert (voxels, states["rectum"], codes) == ({"ring": 400}, "unlabelled", ["LABEL_GAPS"])
    assert "data.fill_contour_gaps=true" in capsys.readouterr().out
    for voxels, states, _ in run("--set", "data.fill_contour_gaps=true"):
        assert (voxels["rectum"], states["rectum"]) == (441, "present")
    assert preprocessing.main(["--workspace", str(tmp_path / "other"), *words, "--structures", "rectum"]) == 4
    assert "ERROR LABEL_GAPS case=p0" in capsys.readouterr().out


def test_scores_and_pictures_tell_stripes(tmp_path, capsys):
    path = write(tmp_path, {"x": [outer(d) for d in range(10, 20, 2)], "tiny": [box(5.2, 5.4, 10)]})
    words = ["--reference", str(path), "--prediction", str(path), "--ct", str(tmp_path / "ct"), "--no-plots"]
    assert evaluate.main([*words, "--output", str(tmp_path / "a")]) == 0
    report = capsys.readouterr().out
    assert "WARN LABEL_GAPS" in report and "WARN RT_NO_VOXEL" in report
    assert evaluate.main([*words, "--set", "data.fill_contour_gaps=true"]) == 0
    assert "interpolated" in capsys.readouterr().out
    assert (
        visualize.main(
            [
                "--input",
                str(path),
                "--ct",
                str(tmp_path / "ct"),
                "--sheet",
                str(tmp_path / "sheet.png"),
                "--fill-contour-gaps",
            ]
        )
        == 0
    )
    assert "NOTE LABEL_GAPS" in capsys.readouterr().out
