"""Real DICOM against independent readers: SimpleITK and NRRD for CT, highdicom and NRRD for SEG, an even-odd
filler for RTSTRUCT.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Outline

from ctseg.errors import CaseError
from ctseg.geometry.volume import Grid, Volume
from ctseg.scans.dicom import dicom_seg, dicom_series, mask_objects, rtstruct

pytestmark = pytest.mark.real
SEGMENTATIONS = "dcmqi/data/segmentations"
CLOSEST_MM = 0.01


def corners(shape: tuple[int, ...]) -> np.ndarray:
    """(8, 3) indices d, h, w of the corners of a volume."""
    return np.array(np.meshgrid(*[[0, n - 1] for n in shape], indexing="ij")).reshape(3, -1).T


def corner_error_mm(grid: Grid, image: object) -> float:
    """Largest distance between the corners of our grid and those of a SimpleITK image."""
    places = np.array(
        [image.TransformIndexToPhysicalPoint([int(n) for n in index[::-1]]) for index in corners(grid.shape)]
    )
    ours = np.column_stack([corners(grid.shape), np.ones(8)]) @ grid.affine.T
    return float(np.linalg.norm(places - ours[:, :3], axis=1).max())


def by_simpleitk(folder: Path) -> object:
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


# ---- CT ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "slices"),
    [
        ("cip/Testing/Data/Input/ct-64Dicom", 79),
        ("ibsi/ibsi_validation/dicom/STS_002/CT/image", 48),
        ("ibsi/ibsi_validation/dicom/STS_019/CT/image", 47),
    ],
)
def test_clean_series_agree_with_simpleitk(real_data, name, slices):
    import SimpleITK as sitk

    ours, findings = dicom_series.read_series(real_data / name)
    theirs = by_simpleitk(real_data / name)
    assert ours.array.shape == theirs.GetSize()[::-1] and len(ours.array) == slices and not findings
    error = corner_error_mm(ours.grid, theirs)
    assert error < CLOSEST_MM, f"corners up to {error:.2g} mm apart"
    difference = float(np.abs(np.maximum(sitk.GetArrayFromImage(theirs), -1024) - ours.array).max())
    assert difference == 0, f"up to {difference} HU apart"


def test_dicom_equals_the_delivered_nrrd(real_data):
    import SimpleITK as sitk

    folder = real_data / "cip/Testing/Data/Input"
    ours, _ = dicom_series.read_series(folder / "ct-64Dicom")
    theirs = sitk.ReadImage(str(folder / "ct-64.nrrd"))
    error = corner_error_mm(ours.grid, theirs)
    assert error < CLOSEST_MM, f"corners up to {error:.2g} mm apart"
    assert np.array_equal(np.maximum(sitk.GetArrayFromImage(theirs), -1024), ours.array)


def test_the_digital_phantom_has_the_geometry_that_simpleitk_reads(real_data):
    """It holds no HU and is refused as a scan; its slices are sorted and placed all the same."""
    folder = real_data / "ibsi/ibsi_2_digital_phantom/dicom/orientation"
    with pytest.raises(CaseError, match="NOT_HU"):
        dicom_series.read_series(folder)
    headers = dicom_series.series_headers(folder)
    theirs = by_simpleitk(folder)
    places = np.array([[float(value) for value in header.ImagePositionPatient] for header in headers])
    expected = np.array([theirs.TransformIndexToPhysicalPoint((0, 0, d)) for d in range(len(headers))])
    error = float(np.linalg.norm(places - expected, axis=1).max())
    assert len(headers) == 64 and error < CLOSEST_MM, f"slices up to {error:.2g} mm apart"


def test_an_oblique_real_series_is_placed_like_simpleitk_does(real_data, tmp_path, monkeypatch):
    """Three slices of a test pattern, refused for both; without those checks the geometry is that of any
    series.
    """
    monkeypatch.setattr(dicom_series, "SMALLEST_SLICES", 2)
    monkeypatch.setattr("ctseg.scans.dicom.slice_geometry.SMALLEST_SLICES", 2)
    monkeypatch.setattr("ctseg.scans.dicom.dicom_files.SMALLEST_SLICES", 2)
    monkeypatch.setattr("ctseg.scans.formats.checks.SMALLEST_VOXELS", 2)
    monkeypatch.setattr("ctseg.scans.formats.checks.check_hu", lambda *_, **__: None)
    for path in (real_data / "rt_utils/tests/oriented_data").glob("*.dcm"):
        shutil.copy(path, tmp_path)
    ours, _ = dicom_series.read_series(tmp_path)
    error = corner_error_mm(ours.grid, by_simpleitk(tmp_path))
    assert error < CLOSEST_MM, f"corners up to {error:.2g} mm apart"


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        (
            "dcm_qa_ct/In/GE",
            "SLICE_SPACING_NONUNIFORM",
            "steps from 1.081 to 6.999 mm",
        ),  # tilted by 18.5 degrees too
        ("dicom2nifti/tests/data/failing/sliceincrement/002", "SLICE_GAP", "1 slices are missing"),
        ("dicom2nifti/tests/data/failing/gantrytilting/001", "TOO_SMALL", "shape"),  # four tilted slices
        ("rt_utils/tests/oriented_data", "TOO_SMALL", "3 slices"),
        ("rt_utils/tests/mock_data", "TOO_SMALL", "2 slices"),
        ("highdicom/data/test_files", "TOO_SMALL", "1 slices"),
        (
            "pydicom/src/pydicom/data/test_files",
            "TOO_SMALL",
            "1 slices",
        ),  # beside an RTSTRUCT without file header
        ("pydicom_data/data_store/data", "MULTI_PATIENT", "more than one patient"),
        ("nibabel/nibabel/tests/data", "NOT_CT", "modality MR"),
    ],
)
def test_folders_that_are_no_volume_are_refused_by_name(real_data, name, code, said):
    with pytest.raises(CaseError) as caught:
        dicom_series.read_series(real_data / name)
    assert caught.value.code == code and said in caught.value.cause


@pytest.mark.parametrize(
    ("kept", "step_mm"), [(slice(0, 14), 4.002), (slice(14, 28), 6.999)], ids=["lower part", "upper part"]
)
def test_each_evenly_spaced_part_of_the_tilted_head_is_read_with_its_tilt(real_data, tmp_path, kept, step_mm):
    import SimpleITK as sitk

    headers = {
        path: pydicom.dcmread(path, stop_before_pixels=True)
        for path in (real_data / "dcm_qa_ct/In/GE").glob("*.dcm")
    }
    chosen = sorted(headers, key=lambda path: float(headers[path].ImagePositionPatient[2]))[kept]
    for path in chosen:
        shutil.copy(path, tmp_path)
    volume, findings = dicom_series.read_series(tmp_path)
    (finding,) = [finding for finding in findings if finding.code == "GANTRY_TILT"]
    assert finding.severity == "WARN" and "18.5 degrees" in finding.cause
    normal = np.cross(volume.affine[:3, 2], volume.affine[:3, 1])
    assert abs(float(volume.affine[:3, 0] @ normal)) / np.linalg.norm(normal) == pytest.approx(
        step_mm, abs=2e-3
    )
    worst = 0.0
    # each slice by itself is read right by SimpleITK, only its series reader drops the tilt
    for d, path in enumerate(chosen):
        single = sitk.ReadImage(str(path))
        assert np.array_equal(np.maximum(sitk.GetArrayFromImage(single)[0], -1024), volume.array[d])
        for w, h in ((0, 0), (511, 0), (0, 511), (511, 511)):
            theirs = single.TransformIndexToPhysicalPoint((w, h, 0))
            worst = max(worst, float(np.linalg.norm((volume.affine @ [d, h, w, 1])[:3] - theirs)))
    assert worst < CLOSEST_MM, f"corners up to {worst:.2g} mm apart"


# ---- SEG ---------------------------------------------------------------------------------------------------


def own_grid(path: Path) -> tuple[Volume, object]:
    """(empty image on the grid of a SEG file, highdicom's volume of it): from highdicom alone."""
    import highdicom

    theirs = highdicom.seg.segread(path).get_volume(rescale_fractional=False, skip_overlap_checks=True)
    return Volume(np.zeros(theirs.spatial_shape, dtype=np.float32), theirs.affine), theirs


SEG_FILES = {
    "highdicom/data/test_files/seg_image_ct_binary.dcm": [638],
    "highdicom/data/test_files/seg_image_ct_binary_overlap.dcm": [64, 16],
    "highdicom/data/test_files/seg_image_ct_binary_single_frame.dcm": [1832],
    f"{SEGMENTATIONS}/liver.dcm": [107098],
    f"{SEGMENTATIONS}/partial_overlaps.dcm": [9602, 11888, 10743, 6693, 4713],
    f"{SEGMENTATIONS}/23x38x3/seg/label.seg": [322],
    f"{SEGMENTATIONS}/24x38x3/seg/label.seg": [315],
}


@pytest.mark.parametrize("name", list(SEG_FILES))
def test_segmentations_equal_what_highdicom_reads(real_data, name):
    image, theirs = own_grid(real_data / name)
    masks, findings = dicom_seg.read_segments(real_data / name, image, None)
    assert [int(mask.sum()) for mask in masks.values()] == SEG_FILES[name] and not findings
    for number, mask in enumerate(masks.values()):
        assert np.array_equal(mask, theirs.array[..., number] > 0)


@pytest.mark.parametrize("name", ["sparse-labelmap-noppv.dcm", "sparse-labelmap-ppv5.dcm"])
def test_sparse_label_maps_equal_their_nrrd(real_data, name):
    """Label maps that leave empty frames out; one declares a padding value, with which dcmqi filled the empty
    slice.
    """
    path = real_data / SEGMENTATIONS / name
    image, theirs = own_grid(path)
    masks, _ = dicom_seg.read_segments(path, image, None)
    (mask,) = masks.values()
    assert np.array_equal(mask, theirs.array[..., 1] > 0)  # highdicom lists the background as a segment
    assert_same_places(
        mask, image, real_data / SEGMENTATIONS / f"sparse_labelmap_{name[16:-4]}_seg.nrrd", 630
    )


def assert_same_places(mask: np.ndarray, image: Volume, nrrd: Path, count: int) -> None:
    """The voxels of a mask are, in mm, those that hold 1 in an NRRD."""
    import SimpleITK as sitk

    other = sitk.ReadImage(str(nrrd))
    ours = (np.column_stack([np.argwhere(mask), np.ones(int(mask.sum()))]) @ image.affine.T)[:, :3]
    theirs = np.array(
        [
            other.TransformIndexToPhysicalPoint([int(n) for n in index[::-1]])
            for index in np.argwhere(sitk.GetArrayFromImage(other) == 1)
        ]
    )
    assert len(ours) == len(theirs) == count
    first, second = (places[np.lexsort(np.round(places / 0.1).T)] for places in (ours, theirs))
    assert np.abs(first - second).max() < 0.01


def test_frames_of_bits_that_end_inside_a_byte_equal_their_nrrd(real_data):
    """23 x 38 pixels are 109 bytes and 2 bits: frames of a binary SEG follow each other without a gap."""
    folder = real_data / SEGMENTATIONS / "23x38x3"
    image, _ = own_grid(folder / "seg/label.seg")
    assert image.array[0].size % 8 == 2
    masks, _ = dicom_seg.read_segments(folder / "seg/label.seg", image, None)
    assert_same_places(masks["Liver"], image, folder / "nrrd/label.nrrd", 322)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("seg_image_ct_true_fractional.dcm", {0.01: 661, 0.5: None, 1.0: None}),
        ("seg_image_ct_binary_fractional.dcm", {0.01: 638, 0.5: 638, 1.0: 638}),
    ],
)
def test_fractional_segmentations_need_a_threshold(real_data, name, counts):
    path = real_data / "highdicom/data/test_files" / name
    image, theirs = own_grid(path)
    with pytest.raises(
        CaseError, match=r"SEG_FRACTIONAL.*0 to 255 \(type PROBABILITY\).*data\.fractional_threshold"
    ):
        dicom_seg.read_segments(path, image, None)
    for threshold, count in counts.items():
        masks, (finding,) = dicom_seg.read_segments(path, image, None, fractional_threshold=threshold)
        (mask,) = masks.values()
        assert np.array_equal(mask, theirs.array[..., 0] >= threshold * 255), threshold
        assert count is None or int(mask.sum()) == count
        assert (
            (finding.severity, finding.code) == ("WARN", "SEG_FRACTIONAL")
            and "PROBABILITY" in finding.cause
            and "255" in finding.cause
            and f"{threshold:g}" in finding.cause
        )
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="fractional_threshold"):
            dicom_seg.read_segments(path, image, None, fractional_threshold=wrong)


# ---- RTSTRUCT ----------------------------------------------------------------------------------------------


@pytest.fixture
def head(real_data) -> Volume:
    """The grid that rt-utils' structure sets were drawn on: two of its slices are at hand, the others follow
    in the same steps.
    """
    slices = [
        pydicom.dcmread(real_data / f"rt_utils/tests/mock_data/ct_{number}.dcm", stop_before_pixels=True)
        for number in (1, 2)
    ]
    affine = np.zeros((4, 4))
    affine[:3, 3], affine[3, 3] = slices[0].ImagePositionPatient, 1
    affine[:3, 0] = np.subtract(slices[1].ImagePositionPatient, slices[0].ImagePositionPatient)
    affine[1, 1], affine[0, 2] = slices[0].PixelSpacing
    return Volume(np.zeros((5, 512, 512), dtype=np.float32), affine)


def filled(path: Path, number: int, image: Volume) -> np.ndarray:
    """An independent reading of one structure: matplotlib's point-in-polygon at every voxel centre, odd
    contours inside.
    """
    content = pydicom.dcmread(path)
    (item,) = [item for item in content.ROIContourSequence if item.ReferencedROINumber == number]
    parity = np.zeros(image.array.shape, dtype=int)
    for contour in item.ContourSequence:
        points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
        index = np.column_stack([points, np.ones(len(points))]) @ np.linalg.inv(image.affine).T
        (top, left), (bottom, right) = (
            np.floor(index[:, 1:3].min(axis=0)).astype(int),
            np.ceil(index[:, 1:3].max(axis=0)).astype(int),
        )
        h, w = np.mgrid[top : bottom + 1, left : right + 1]
        inside = Outline(index[:, [2, 1]], closed=False).contains_points(
            np.column_stack([w.ravel(), h.ravel()])
        )
        parity[round(index[0, 0]), top : bottom + 1, left : right + 1] += inside.reshape(h.shape)
    return parity % 2 == 1


@pytest.mark.parametrize(
    "name",
    [
        "mock_data/rt.dcm",
        "mock_data/invalid_reference_rt.dcm",
        "mock_data/non_existent_reference_rt.dcm",
        "empty/dummy_rt.dcm",
    ],
)
def test_structures_of_rt_utils_whatever_slices_they_refer_to(real_data, head, name):
    """References to slices that do not exist, or to none at all, do not matter: contours are placed by their
    coordinates, and the series or the frame of reference is right in all of these files.
    """
    folder = real_data / "rt_utils/tests"
    masks, findings = rtstruct.read_structures(folder / name, head, folder / "mock_data")
    numbers = {
        called: number for number, called in mask_objects.list_names(folder / name, "RTSTRUCT").items()
    }
    assert not findings and masks
    for called, mask in masks.items():
        expected = filled(folder / name, numbers[called], head)
        apart = int((mask != expected).sum())  # centres that lie on an edge belong to either side
        assert mask.sum() > 1000 and apart <= 0.01 * mask.sum(), (
            f"{called}: {apart} of {int(mask.sum())} voxels"
        )


def test_contours_beyond_the_slices_at_hand_are_refused(real_data, head):
    short = Volume(head.array[:2], head.affine)
    with pytest.raises(CaseError, match=r"RT_OFF_GRID.*outside the scan"):
        rtstruct.read_structures(real_data / "rt_utils/tests/mock_data/invalid_reference_rt.dcm", short, None)


def test_a_structure_set_of_another_series_is_refused(real_data, head):
    folder = real_data / "ibsi/ibsi_validation/dicom/STS_002/CT/image"
    image, _ = dicom_series.read_series(folder)
    with pytest.raises(CaseError, match="RT_WRONG_SERIES"):
        rtstruct.read_structures(
            real_data / "rt_utils/tests/mock_data/invalid_reference_rt.dcm", image, folder
        )


def test_a_structure_set_without_file_header_is_refused_by_name(real_data):
    path = real_data / "pydicom/src/pydicom/data/test_files/rtstruct.dcm"
    with pytest.raises(
        CaseError, match=r"DICOM_CORRUPT.*rtstruct\.dcm: the DICOM mark at its beginning is missing"
    ):
        mask_objects.list_names(path, "RTSTRUCT")
