"""RTSTRUCT: contours to voxels and back, on all kinds of grids; phantoms are synthetic, IBSI cases real."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ctseg.errors import CaseError
from ctseg.geometry.volume import Volume, match_grid
from ctseg.scans.dicom import dicom_series, mask_objects, rtstruct
from ctseg.scans.dicom.contours import fill
from ctseg.scans.formats import volume_files

SHAPE = (8, 20, 24)  # D, H, W
SPACING_MM = (3.0, 2.0, 1.0)
NAMES = {1: "bladder", 2: "rectum", 3: "empty"}


def polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=np.float64)


def square(low: float, high: float) -> np.ndarray:
    return polygon((low, low), (low, high), (high, high), (high, low))


def test_a_contour_inside_another_is_a_hole_and_one_beside_it_is_not():
    mask = fill([square(0.5, 8.5), square(2.5, 5.5), square(3.5, 4.5)], (10, 12))
    expected = np.zeros((10, 12), dtype=bool)
    expected[1:9, 1:9] = True
    expected[3:6, 3:6] = False
    expected[4, 4] = True
    assert np.array_equal(mask, expected)


def test_a_keyhole_contour_leaves_the_hole_open():
    """Outer ring, a channel of no width to the hole, around it, and the same way back; the channel runs along
    voxel centres.
    """
    outer = [(0.5, 0.5), (0.5, 8.5), (8.5, 8.5), (8.5, 5.0)]
    hole = [(5.5, 5.0), (5.5, 5.5), (2.5, 5.5), (2.5, 2.5), (5.5, 2.5), (5.5, 5.0)]
    mask = fill([polygon(*outer, *hole, (8.5, 5.0), (8.5, 0.5))], (10, 12))
    assert np.array_equal(mask, fill([square(0.5, 8.5), square(2.5, 5.5)], (10, 12)))


@pytest.mark.parametrize("direction", [1, -1])
def test_neighbours_that_share_an_edge_through_centres_share_no_voxel(direction):
    left = polygon((1, 1), (1, 5), (6, 5), (6, 1))[::direction]
    right = polygon((1, 5), (1, 9), (6, 9), (6, 5))[::direction]
    first, second, both = (
        fill(contours, (8, 12)) for contours in ([left], [right], [polygon((1, 1), (1, 9), (6, 9), (6, 1))])
    )
    assert not (first & second).any() and np.array_equal(first | second, both) and both.sum() == 5 * 8


def test_what_lies_outside_the_image_is_cut_off():
    mask = fill(
        [
            polygon((-7, -9), (-7, 3.5), (3.5, 3.5), (3.5, -9)),
            polygon((8.5, 8.5), (8.5, 90), (90, 90), (90, 8.5)),
        ],
        (10, 12),
    )
    expected = np.zeros((10, 12), dtype=bool)
    expected[:4, :4] = True
    expected[9:, 9:] = True
    assert np.array_equal(mask, expected)


def label_map() -> np.ndarray:
    """Two structures with a hole, a diagonal contact, an islet, and voxels on the border of the image."""
    d, h, w = np.indices(SHAPE)
    label = np.zeros(SHAPE, dtype=np.uint8)
    ball = (d - 2) ** 2 * 4 + (h - 8) ** 2 + (w - 9) ** 2
    label[ball < 36] = 1
    label[ball < 6] = 0
    label[ball == 0] = 2
    label[4:, 17:, 20:] = 2
    label[1, 2, 20], label[1, 3, 21], label[3, 0, 0] = 2, 2, 2
    return label


def series(folder: Path, *, oblique: bool = False) -> Volume:
    """A synthetic CT series on disk, as it is read back."""
    directions = np.eye(3)
    if oblique:
        angles = np.deg2rad([12.0, -7.0])
        about_x = np.array(
            [[1, 0, 0], [0, np.cos(angles[0]), -np.sin(angles[0])], [0, np.sin(angles[0]), np.cos(angles[0])]]
        )
        about_z = np.array(
            [[np.cos(angles[1]), -np.sin(angles[1]), 0], [np.sin(angles[1]), np.cos(angles[1]), 0], [0, 0, 1]]
        )
        directions = about_x @ about_z
    affine = np.eye(4)
    affine[:3, :3] = directions[:, ::-1] * SPACING_MM  # D, H, W along z, y, x
    affine[:3, 3] = (-11.25, 4.5, 87.125)
    rng = np.random.default_rng(0)
    image = Volume(rng.integers(-200, 300, SHAPE).astype(np.float32), affine)
    dicom_series.write_series(folder, image, patient_id="synthetic", series_number=1, seed=0)
    return dicom_series.read_series(folder)[0]


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("flipped", [False, True])
def test_what_is_written_is_read_back_voxel_by_voxel(tmp_path, oblique, flipped):
    image = series(tmp_path / "ct", oblique=oblique)
    label = Volume(label_map(), image.affine)
    if flipped:  # the same voxels, stored from the other end
        affine = image.affine.copy()
        affine[:3, 3] += affine[:3, 0] * (SHAPE[0] - 1)
        affine[:3, 0] *= -1
        label = Volume(np.ascontiguousarray(label.array[::-1]), affine)
    rtstruct.write_structures(tmp_path / "rs.dcm", label, NAMES, tmp_path / "ct")
    masks, findings = rtstruct.read_structures(tmp_path / "rs.dcm", image, tmp_path / "ct")
    assert [finding.code for finding in findings] == ["LABEL_MISSING"] and set(masks) == {"bladder", "rectum"}
    for value in (1, 2):
        assert np.array_equal(masks[NAMES[value]], label_map() == value)
    first = (tmp_path / "rs.dcm").read_bytes()
    rtstruct.write_structures(tmp_path / "rs.dcm", label, NAMES, tmp_path / "ct")
    assert (tmp_path / "rs.dcm").read_bytes() == first


def test_the_file_names_its_series_slices_and_structures(tmp_path):
    image = series(tmp_path / "ct")
    rtstruct.write_structures(
        tmp_path / "rs.dcm", Volume(label_map(), image.affine), NAMES, tmp_path / "ct", colours={1: (1, 2, 3)}
    )
    assert mask_objects.list_names(tmp_path / "rs.dcm", "RTSTRUCT") == {1: "bladder", 2: "rectum", 3: "empty"}
    headers = dicom_series.series_headers(tmp_path / "ct")
    assert mask_objects.referenced_series(tmp_path / "rs.dcm", "RTSTRUCT") == {headers[0].SeriesInstanceUID}
    content = pydicom.dcmread(tmp_path / "rs.dcm")
    slices = {str(header.SOPInstanceUID): float(header.ImagePositionPatient[2]) for header in headers}
    contours = [contour for item in content.ROIContourSequence for contour in item.ContourSequence]
    assert contours and all(
        slices[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        == pytest.approx(float(contour.ContourData[2]), abs=1e-4)
        for contour in contours
    )
    assert [list(item.ROIDisplayColor) for item in content.ROIContourSequence] == [
        [1, 2, 3],
        [255, 0, 0],
        [255, 0, 0],
    ]


@pytest.fixture
def written(tmp_path):
    """(folder of the series, its image, the structure set to be changed, where to save it)"""
    image = series(tmp_path / "ct")
    rtstruct.write_structures(
        tmp_path / "rs.dcm", Volume(label_map(), image.affine), {1: "bladder", 2: "rectum"}, tmp_path / "ct"
    )
    return tmp_path / "ct", image, pydicom.dcmread(tmp_path / "rs.dcm"), tmp_path / "rs.dcm"


def moved(contour: pydicom.Dataset, by_mm: float, points: slice = slice(None)) -> None:
    data = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
    data[points, 2] += by_mm
    contour.ContourData = [f"{value:.6g}" for value in data.ravel()]


def test_a_set_that_was_cut_within_its_structures_is_refused_and_not_read_without_them(written):
    """pydicom takes what is left of an element that is shorter than announced."""
    folder, image, _, path = written
    whole = path.read_bytes()
    names = list(rtstruct.read_structures(path, image, folder)[0])
    read = 0
    for size in range(len(whole) // 3, len(whole), len(whole) // 60):
        path.write_bytes(whole[:size])
        try:
            found, _ = rtstruct.read_structures(path, image, folder)
        except CaseError as error:
            assert error.code in ("DICOM_TRUNCATED", "DICOM_CORRUPT"), size
        else:
            read += 1
            assert list(found) == names, size
    assert read == 0


def test_contours_that_enclose_nothing_are_counted(written):
    folder, image, content, path = written
    contours = content.ROIContourSequence[0].ContourSequence
    contours[0].ContourGeometricType = "OPEN_PLANAR"
    contours[1].ContourData = contours[1].ContourData[:6]
    content.save_as(path)
    (finding,) = rtstruct.read_structures(path, image, folder)[1]
    assert finding.code == "RT_OPEN_CONTOUR" and finding.cause.startswith("2 contours of 'bladder'")


@pytest.mark.parametrize(
    ("by_mm", "points", "said"),
    [(1.0, slice(None), None), (-60.0, slice(None), "outside the scan"), (2.0, slice(0, 2), "leans out")],
)
def test_a_contour_between_slices_counts_for_the_nearest_one_and_one_off_the_scan_is_refused(
    written, by_mm, points, said
):
    folder, image, content, path = written
    for contour in content.ROIContourSequence[0].ContourSequence:
        moved(contour, by_mm, points)
    content.save_as(path)
    if said:
        with pytest.raises(CaseError, match=rf"RT_OFF_GRID.*{said}"):
            rtstruct.read_structures(path, image, folder)
    else:
        assert np.array_equal(rtstruct.read_structures(path, image, folder)[0]["bladder"], label_map() == 1)


def test_two_planes_of_one_slice_do_not_cancel_each_other(written):
    """Contours of a finer series: where two of its planes share a slice, the nearer one counts, not their
    difference.
    """
    folder, image, content, path = written
    item = content.ROIContourSequence[0]
    copies = copy.deepcopy(list(item.ContourSequence))
    for contour in copies:
        moved(contour, 1.2)
    item.ContourSequence = [*item.ContourSequence, *copies]
    content.save_as(path)
    assert np.array_equal(rtstruct.read_structures(path, image, folder)[0]["bladder"], label_map() == 1)


def test_a_set_of_another_series_or_with_one_name_twice_is_refused(written):
    folder, image, content, path = written
    content.StructureSetROISequence[1].ROIName = "bladder "
    content.save_as(path)
    with pytest.raises(CaseError, match="RT_AMBIGUOUS"):
        rtstruct.read_structures(path, image, folder)
    for item in (content.ReferencedFrameOfReferenceSequence[0], *content.StructureSetROISequence):
        item[
            "FrameOfReferenceUID" if "FrameOfReferenceUID" in item else "ReferencedFrameOfReferenceUID"
        ].value = "1.2.3"
    content.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[
        0
    ].SeriesInstanceUID = "1.2.4"
    content.save_as(path)
    with pytest.raises(CaseError, match="RT_WRONG_SERIES"):
        rtstruct.read_structures(path, image, folder)
    with pytest.raises(CaseError, match="NOT_RTSTRUCT"):
        mask_objects.list_names(next(folder.iterdir()), "RTSTRUCT")


@pytest.mark.real
@pytest.mark.skipif("CTSEG_DATA" not in os.environ, reason="needs CTSEG_DATA, the folder of real scans")
@pytest.mark.parametrize("patient", ["STS_002", "STS_019"])
def test_the_masks_of_the_ibsi_are_met_voxel_by_voxel(patient):
    root = Path(os.environ["CTSEG_DATA"]) / "ibsi" / "ibsi_validation"
    folder = root / "dicom" / patient / "CT" / "image"
    image = dicom_series.read_series(folder)[0]
    (structures,) = [
        path
        for path in (root / "dicom" / patient).rglob("*.dcm")
        if pydicom.dcmread(path, stop_before_pixels=True).Modality == "RTSTRUCT"
    ]
    masks, _ = rtstruct.read_structures(structures, image, folder)
    published = volume_files.read_integers(root / "nifti" / patient / "CT_mask.nii.gz")[0]
    expected = match_grid(published, image.grid, tolerance=0.05).array > 0
    assert any(np.array_equal(mask, expected) for mask in masks.values()) and expected.any()
