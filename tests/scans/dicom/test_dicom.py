"""DICOM series and segmentations: read back what was written, agree with an independent reader, refuse bad
folders.

Every series is synthetic and written into a temporary folder, then damaged.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from builders import SIDES, small_phantom
from pydicom.uid import generate_uid

from ctseg.errors import CaseError
from ctseg.geometry.volume import Volume, reorient
from ctseg.scans.dicom import dicom_files, dicom_pixels, dicom_seg, dicom_series, mask_objects
from ctseg.scans.formats import volume_files

PHANTOM = small_phantom()
MARK = "PATIENTMARK"


def _turned(tilt_mm: float = 0.0) -> np.ndarray:
    """An oblique affine; tilt_mm shifts each slice along its columns."""
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = PHANTOM.image.affine.copy()
    affine[1, 0] = tilt_mm
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = -101.3, 57.7, 1203.1
    return affine


def _write(
    folder: Path, volume: Volume | None = None, *, patient: str = MARK, number: int = 1, seed: int = 0
) -> str:
    return dicom_series.write_series(
        folder, volume or PHANTOM.image, patient_id=patient, series_number=number, seed=seed
    )


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A good series of 10 slices."""
    _write(tmp_path / "ct")
    return tmp_path / "ct"


def _edit(path: Path, **values: Any) -> None:
    """Change elements of one file; None deletes one."""
    content = pydicom.dcmread(path)
    for name, value in values.items():
        if value is None:
            delattr(content, name)
        else:
            setattr(content, name, value)
    content.save_as(path)


def _edit_all(folder: Path, **values: Any) -> None:
    for path in folder.glob("*.dcm"):
        _edit(path, **values)


def _codes(findings: list[Any]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.code) for finding in findings]


# ---- round trips ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [PHANTOM.image.affine, _turned()], ids=["straight", "oblique"])
def test_series_round_trip(tmp_path: Path, affine: np.ndarray) -> None:
    volume = Volume(PHANTOM.image.array, affine)
    _write(tmp_path, volume)
    back, findings = dicom_series.read_series(tmp_path)
    assert np.array_equal(back.array, volume.array) and back.array.dtype == np.float32
    assert np.abs(back.affine - affine).max() < 1e-4 and not findings


def test_tilted_gantry_keeps_its_shear(tmp_path: Path) -> None:
    volume = Volume(PHANTOM.image.array, _turned(tilt_mm=0.8))
    _write(tmp_path, volume)
    back, findings = dicom_series.read_series(tmp_path)
    # atan(0.8 / 3)
    assert _codes(findings) == [("WARN", "GANTRY_TILT")] and "14.9 degrees" in findings[0].cause
    assert np.abs(back.affine - volume.affine).max() < 1e-4 and np.array_equal(back.array, volume.array)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0), (2, 0, 1)])
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, False), (False, True, True)])
def test_other_axis_orders_come_back_in_the_same_place(
    tmp_path: Path, order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    """Sagittal, coronal, feet-first: slices may be reversed, the patient must not be."""
    volume = reorient(PHANTOM.image, order, flips)
    _write(tmp_path, volume)
    back, _ = dicom_series.read_series(tmp_path)
    to_index = np.linalg.inv(volume.affine) @ back.affine
    place = np.rint(to_index @ [2, 3, 4, 1]).astype(int)[:3]
    assert np.abs(to_index - np.rint(to_index)).max() < 1e-4
    assert back.array[2, 3, 4] == volume.array[tuple(place)]
    assert np.array_equal(np.sort(back.array, axis=None), np.sort(volume.array, axis=None))


def test_simpleitk_reads_the_same(tmp_path: Path) -> None:
    import SimpleITK as sitk

    _write(tmp_path, Volume(PHANTOM.image.array, _turned()))
    ours, _ = dicom_series.read_series(tmp_path)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    assert np.array_equal(sitk.GetArrayFromImage(image), ours.array)
    for d, h, w in ((0, 0, 0), (9, 0, 5), (3, 11, 13)):
        assert np.allclose(
            image.TransformIndexToPhysicalPoint((w, h, d)), (ours.affine @ [d, h, w, 1])[:3], atol=1e-3
        )


def test_written_series_is_reproducible_and_valid_for_highdicom(tmp_path: Path) -> None:
    import highdicom

    uid = _write(tmp_path / "a")
    assert _write(tmp_path / "b") == uid and _write(tmp_path / "c", seed=1) != uid
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    volume = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in (tmp_path / "a").iterdir()])
    assert volume.spatial_shape == PHANTOM.image.array.shape


def test_write_series_refuses_skewed_pixels(tmp_path: Path) -> None:
    affine = PHANTOM.image.affine.copy()
    affine[1, 2] = 0.5
    with pytest.raises(ValueError, match="perpendicular"):
        _write(tmp_path, Volume(PHANTOM.image.array, affine))


def test_find_series_lists_what_is_there(tmp_path: Path) -> None:
    first = _write(tmp_path / "p1" / "ct")
    second = _write(tmp_path / "p2" / "ct", patient="other")
    (tmp_path / "p2" / "notes.txt").write_text("no image")
    (tmp_path / "p2" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    found = dicom_files.find(tmp_path).series
    assert [(info.uid, info.modality, info.n_slices, info.folder.parent.name) for info in found] == [
        (first, "CT", 10, "p1"),
        (second, "CT", 10, "p2"),
    ]
    assert found[0].patient_key != found[1].patient_key and MARK not in found[0].patient_key


# ---- used, with a word ------------------------------------------------------------------------------------


def test_order_of_names_and_numbers_does_not_matter(series: Path) -> None:
    expected, _ = dicom_series.read_series(series)
    for index, path in enumerate(sorted(series.iterdir())):
        _edit(path, InstanceNumber=10 - index)
        path.rename(series / f"x{(index * 7) % 10}.bin")
    back, findings = dicom_series.read_series(series)
    assert (
        np.array_equal(back.array, expected.array)
        and np.array_equal(back.affine, expected.affine)
        and not findings
    )


def test_other_files_are_passed_over(series: Path) -> None:
    for name in ("Thumbs.db", ".DS_Store", "README", "DICOMDIR"):
        (series / name).write_bytes(b"" if name == "README" else b"text" * 100)
    volume, findings = dicom_series.read_series(series)
    assert volume.array.shape == PHANTOM.image.array.shape
    assert _codes(findings) == [("NOTE", "NOT_DICOM")] and findings[0].cause.startswith("4 files")


def test_scouts_are_left_out(series: Path) -> None:
    for name, values in (
        ("named", {"ImageType": ["DERIVED", "PRIMARY", "LOCALIZER"]}),
        ("crossing", {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}),
    ):
        shutil.copy(series / "slice_0003.dcm", series / f"{name}.dcm")
        _edit(series / f"{name}.dcm", SOPInstanceUID=generate_uid(), InstanceNumber=11, **values)
    volume, findings = dicom_series.read_series(series)
    assert np.array_equal(volume.array, PHANTOM.image.array)
    assert _codes(findings) == [("NOTE", "LOCALIZER"), ("NOTE", "LOCALIZER")]


def test_exact_copies_are_left_out(series: Path) -> None:
    shutil.copy(series / "slice_0003.dcm", series / "copy.dcm")
    volume, findings = dicom_series.read_series(series)
    assert np.array_equal(volume.array, PHANTOM.image.array) and _codes(findings) == [("NOTE", "SLICE_COPY")]


def test_missing_end_is_a_warning(series: Path) -> None:
    for number in (1, 2):
        (series / f"slice_{number:04d}.dcm").unlink()
    _, findings = dicom_series.read_series(series)
    assert (
        _codes(findings) == [("WARN", "SLICE_COUNT")]
        and "8 slices" in findings[0].cause
        and "10" in findings[0].cause
    )


def test_rescale_is_applied_slice_by_slice(series: Path) -> None:
    path = series / "slice_0004.dcm"
    content = pydicom.dcmread(path)
    stored = content.pixel_array.astype(int) - 1024  # HU
    content.RescaleIntercept, content.RescaleSlope = "-2048", "0.5"
    content.PixelData = ((stored + 2048) * 2).astype("<u2").tobytes()
    content.save_as(path)
    volume, findings = dicom_series.read_series(series)
    assert np.array_equal(volume.array, PHANTOM.image.array) and _codes(findings) == [
        ("NOTE", "RESCALE_VARIES")
    ]


def test_padding_becomes_air(series: Path) -> None:
    for path in series.iterdir():
        content = pydicom.dcmread(path)
        stored = content.pixel_array.astype(np.int32) - 1024
        stored[:, 0] = -2000
        content.PixelRepresentation, content.RescaleIntercept = 1, "0"
        content.PixelData = stored.astype("<i2").tobytes()
        content.add_new("PixelPaddingValue", "SS", -2000)
        content.save_as(path)
    volume, findings = dicom_series.read_series(series)
    assert (volume.array[:, :, 0] == -1024).all() and np.array_equal(
        volume.array[:, :, 1:], PHANTOM.image.array[:, :, 1:]
    )
    assert _codes(findings) == [("NOTE", "PADDING")]


def test_padding_value_inside_tissue_is_not_trusted(series: Path) -> None:
    for path in series.iterdir():
        content = pydicom.dcmread(path)
        content.add_new("PixelPaddingValue", "US", 1064)  # 40 HU
        content.save_as(path)
    volume, _ = dicom_series.read_series(series)
    assert np.array_equal(volume.array, PHANTOM.image.array)


def test_run_length_encoding_gives_the_same(series: Path) -> None:
    for path in series.iterdir():
        content = pydicom.dcmread(path)
        content.compress(pydicom.uid.RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        content.save_as(path)
    volume, findings = dicom_series.read_series(series)
    assert np.array_equal(volume.array, PHANTOM.image.array) and not findings


def test_one_series_of_several_can_be_named(tmp_path: Path) -> None:
    first = _write(tmp_path)
    for path in tmp_path.glob("*.dcm"):
        path.rename(tmp_path / f"first_{path.name}")
    _write(tmp_path, Volume(PHANTOM.image.array + 5, PHANTOM.image.affine), number=2)
    with pytest.raises(CaseError, match=r"2 CT series \(10, 10 slices\)") as caught:
        dicom_series.read_series(tmp_path)
    assert caught.value.code == "SERIES_AMBIGUOUS"
    assert np.array_equal(dicom_series.read_series(tmp_path, first)[0].array, PHANTOM.image.array)
    with pytest.raises(CaseError, match="not in the folder"):
        dicom_series.read_series(tmp_path, "1.2.3")


# ---- positions, directions and UIDs that were rounded or blanked ------------------------------------------


def _rounded(
    folder: Path,
    step: float,
    decimals: int,
    turn: np.ndarray | None = None,
    *,
    slices: int = 40,
    drop: tuple[int, ...] = (),
    form: str = "",
    origin: float = -60.0,
) -> Volume:
    """A series of even slices whose positions were rounded when written; what it should be read as."""
    affine = np.diag([step, 3.0, 3.0, 1.0])[[2, 1, 0, 3]]
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ affine[:3, :3]
    affine[:3, 3] = origin
    volume = Volume(np.resize(PHANTOM.image.array, (slices, *PHANTOM.image.array.shape[1:])), affine)
    _write(folder, volume)
    for index, path in enumerate(sorted(folder.iterdir())):
        if index in drop:
            path.unlink()
        else:
            place = affine[:3, 3] + index * affine[:3, 0]
            _edit(
                path,
                ImagePositionPatient=[
                    format(value, form) if form else round(float(value), decimals) for value in place
                ],
            )
    return volume


TURN = _turned()[:3, :3] / np.linalg.norm(_turned()[:3, :3], axis=0)
OBLIQUE = TURN[:, [2, 1, 0]]


@pytest.mark.parametrize(
    ("step", "decimals", "turn", "origin", "form"),
    [
        (0.625, 2, None, -60, ""),
        (1.25, 1, None, -60, ""),
        (1 / 3, 2, None, -60, ""),
        (0.625, 2, OBLIQUE, -60, ""),
        (1.25, 1, OBLIQUE, -60, ""),
        (0.625, 2, None, -1234.5, ""),
        (0.625, 2, None, 23456.7, ""),
        (1.25, 0, None, -60, ".3e"),
    ],
    ids=[
        "0.625 mm",
        "1.25 mm",
        "a third",
        "oblique",
        "oblique, one decimal",
        "far",
        "very far",
        "scientific",
    ],
)
def test_rounding_of_positions_does_not_add_up(
    tmp_path: Path, step: float, decimals: int, turn: np.ndarray | None, origin: float, form: str
) -> None:
    volume = _rounded(tmp_path, step, decimals, turn, origin=origin, form=form)
    back, findings = dicom_series.read_series(tmp_path)
    assert np.array_equal(back.array, volume.array) and back.grid.spacing_mm[0] == pytest.approx(
        step, rel=2e-4
    )
    assert np.abs((back.affine - volume.affine) @ [39, 0, 0, 1]).max() < 0.1 * step
    assert {code for _, code in _codes(findings)} <= {"POSITIONS_ROUNDED", "GANTRY_TILT"} and all(
        "0.0" in finding.cause for finding in findings[:1]
    )
    # what SEG and RTSTRUCT are written by
    planes = dicom_series.label_planes(back, dicom_series.series_headers(tmp_path))
    assert planes == list(range(40))


@pytest.mark.parametrize("missing", [(1,), (20,), (37, 38)])
@pytest.mark.parametrize(("step", "decimals"), [(0.625, 2), (1.25, 1)])
def test_a_missing_slice_is_seen_among_rounded_ones(
    tmp_path: Path, step: float, decimals: int, missing: tuple[int, ...]
) -> None:
    _rounded(tmp_path, step, decimals, drop=missing)
    with pytest.raises(CaseError, match=f"SLICE_GAP.*{len(missing)} slices are missing"):
        dicom_series.read_series(tmp_path)


def test_deviations_that_add_up_are_refused_and_small_ones_told(series: Path) -> None:
    _move(series, 5, 0.1)  # 0.03 of the step
    assert _codes(dicom_series.read_series(series)[1]) == [("WARN", "POSITIONS_ROUNDED")]
    for number in range(6, 11):
        _move(series, number, 0.3 * (number - 5))
    with pytest.raises(CaseError, match="SLICE_SPACING_NONUNIFORM"):
        dicom_series.read_series(series)


@pytest.mark.parametrize(("decimals", "codes"), [(6, []), (4, []), (3, []), (2, ["ORIENTATION_ROUNDED"])])
def test_directions_with_few_digits_are_made_perpendicular(
    tmp_path: Path, decimals: int, codes: list[str]
) -> None:
    _write(tmp_path, Volume(PHANTOM.image.array, _turned()))
    for path in tmp_path.iterdir():
        _edit(
            path,
            ImageOrientationPatient=[
                round(float(value), decimals) for value in pydicom.dcmread(path).ImageOrientationPatient
            ],
        )
    back, findings = dicom_series.read_series(tmp_path)
    axes = back.affine[:3, 1:3] / np.linalg.norm(back.affine[:3, 1:3], axis=0)
    assert np.abs(axes.T @ axes - np.eye(2)).max() < 1e-12 and np.linalg.norm(
        back.affine[:3, 2]
    ) == pytest.approx(np.linalg.norm(_turned()[:3, 2]))
    assert [code for _, code in _codes(findings) if code != "GANTRY_TILT"] == codes
    assert np.abs((back.affine - _turned()) @ [5, 8, 8, 1]).max() < 10**-decimals * 20


UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")


@pytest.mark.parametrize("value", ["", None, "1.2.3"])
@pytest.mark.parametrize("keywords", [*[(keyword,) for keyword in UIDS], UIDS], ids=[*UIDS, "all"])
def test_blanked_uids_make_no_duplicates(series: Path, keywords: tuple[str, ...], value: str | None) -> None:
    if value == "1.2.3" and "SOPClassUID" in keywords:
        keywords = keywords[1:]
    _edit_all(series, **dict.fromkeys(keywords, value))
    volume, findings = dicom_series.read_series(series)
    assert np.array_equal(volume.array, PHANTOM.image.array) and not findings
    shutil.copy(series / "slice_0003.dcm", series / "copy.dcm")
    assert _codes(dicom_series.read_series(series)[1]) == [("NOTE", "SLICE_COPY")]
    _edit(series / "copy.dcm", WindowCenter="40")
    with pytest.raises(CaseError, match="SLICE_DUPLICATE"):
        dicom_series.read_series(series)


# ---- refused ----------------------------------------------------------------------------------------------


def _slice(folder: Path, number: int) -> Path:
    return folder / f"slice_{number:04d}.dcm"


def _truncate(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def _move(folder: Path, number: int, z_mm: float) -> None:
    x, y, z = pydicom.dcmread(_slice(folder, number)).ImagePositionPatient
    _edit(_slice(folder, number), ImagePositionPatient=[x, y, float(z) + z_mm])


def _sideways(folder: Path) -> None:
    x, y, z = pydicom.dcmread(_slice(folder, 5)).ImagePositionPatient
    _edit(_slice(folder, 5), ImagePositionPatient=[float(x) + 4, y, z])


def _duplicate(folder: Path) -> None:
    shutil.copy(_slice(folder, 3), folder / "extra.dcm")
    _edit(folder / "extra.dcm", SOPInstanceUID=generate_uid(), InstanceNumber=11)


def _same_uid(folder: Path) -> None:
    shutil.copy(_slice(folder, 3), folder / "extra.dcm")
    _edit(folder / "extra.dcm", InstanceNumber=11)


def _keep(folder: Path, count: int) -> None:
    for path in sorted(folder.iterdir())[count:]:
        path.unlink()


def _second_patient(folder: Path) -> None:
    for number in range(1, 6):
        _edit(_slice(folder, number), PatientID="ANOTHER" + MARK)


def _rename_syntax(folder: Path) -> None:
    for path in folder.iterdir():
        content = pydicom.dcmread(path)
        content.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + b"x" * 100])
        content["PixelData"].is_undefined_length = True
        content.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
        content.save_as(path)


def _stored_hu(folder: Path) -> None:
    _edit_all(folder, RescaleIntercept="0")


def _no_number(folder: Path) -> None:
    """The digits of one position overwritten, as a disk error does."""
    content = _slice(folder, 4).read_bytes()
    at = content.index(b"-20.0")
    _slice(folder, 4).write_bytes(content[:at] + b"xx" + content[at + 2 :])


BAD_SERIES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "middle slice missing": ("SLICE_GAP", lambda f: _slice(f, 5).unlink()),
    "two slices missing": ("SLICE_GAP", lambda f: [_slice(f, n).unlink() for n in (4, 7)] and None),
    "one position twice": ("SLICE_DUPLICATE", _duplicate),
    "one UID twice, other content": ("SLICE_DUPLICATE", _same_uid),
    "uneven steps": ("SLICE_SPACING_NONUNIFORM", lambda f: _move(f, 5, 0.5)),
    "one slice sideways": ("GEOMETRY_INCONSISTENT", _sideways),
    "no rescale slope": ("RESCALE_MISSING", lambda f: _edit_all(f, RescaleSlope=None)),
    "no rescale intercept in one slice": (
        "RESCALE_MISSING",
        lambda f: _edit(_slice(f, 4), RescaleIntercept=None),
    ),
    "no position": ("GEOMETRY_MISSING", lambda f: _edit(_slice(f, 4), ImagePositionPatient=None)),
    "no orientation": ("GEOMETRY_MISSING", lambda f: _edit_all(f, ImageOrientationPatient=None)),
    "no pixel spacing": ("GEOMETRY_MISSING", lambda f: _edit_all(f, PixelSpacing=None)),
    "pixel spacing differs": ("GEOMETRY_INCONSISTENT", lambda f: _edit(_slice(f, 4), PixelSpacing=[2, 1.1])),
    "rows differ": ("GEOMETRY_INCONSISTENT", lambda f: _edit(_slice(f, 4), Rows=11)),
    "orientation not orthonormal": (
        "GEOMETRY_INCONSISTENT",
        lambda f: _edit_all(f, ImageOrientationPatient=[1, 0, 0, 0.5, 1, 0]),
    ),
    "truncated in the pixels": (
        "DICOM_TRUNCATED",
        lambda f: _truncate(_slice(f, 4), _slice(f, 4).stat().st_size - 50),
    ),
    "truncated before the pixels": ("DICOM_TRUNCATED", lambda f: _edit(_slice(f, 4), PixelData=None)),
    "truncated in the header": ("DICOM_TRUNCATED", lambda f: _truncate(_slice(f, 4), 400)),
    "garbage behind the mark": (
        "DICOM_TRUNCATED",
        lambda f: _slice(f, 4).write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40) and None,
    ),
    "position is no number": ("DICOM_CORRUPT", _no_number),
    "another modality": ("NOT_CT", lambda f: _edit_all(f, Modality="MR")),
    "three slices": ("TOO_SMALL", lambda f: _keep(f, 3)),
    "five slices": ("TOO_SMALL", lambda f: _keep(f, 5)),
    "two patients": ("MULTI_PATIENT", _second_patient),
    "multi-frame": (
        "MULTIFRAME_UNSUPPORTED",
        lambda f: _edit_all(f, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1"),
    ),
    "frames in one file": ("MULTIFRAME_UNSUPPORTED", lambda f: _edit_all(f, NumberOfFrames=3)),
    "single bits": (
        "NOT_SCALAR",
        lambda f: _edit(next(f.iterdir()), BitsAllocated=1, BitsStored=1, HighBit=0),
    ),
    "inverted pixels": ("NOT_SCALAR", lambda f: _edit_all(f, PhotometricInterpretation="MONOCHROME1")),
    "stored as HU + 1024": ("NOT_HU", _stored_hu),
    "spacing 300 mm": ("SPACING_IMPLAUSIBLE", lambda f: _edit_all(f, PixelSpacing=[300, 300])),
    "no file": ("FILE_MISSING", lambda f: _keep(f, 0)),
    "no folder": ("FILE_MISSING", lambda f: shutil.rmtree(f)),
}


@pytest.mark.parametrize("name", list(BAD_SERIES))
def test_bad_series(series: Path, name: str) -> None:
    code, damage = BAD_SERIES[name]
    damage(series)
    with pytest.raises(CaseError) as caught:
        dicom_series.read_series(series)
    assert caught.value.code == code
    assert caught.value.file.startswith(str(series)) and MARK not in str(caught.value)


def test_the_gap_is_located(series: Path) -> None:
    _slice(series, 5).unlink()
    with pytest.raises(
        CaseError, match=r"1 slices are missing, the first 12.0 mm from the first slice \(step 3 mm\)"
    ):
        dicom_series.read_series(series)


def test_missing_codec_names_its_packages(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _rename_syntax(series)
    monkeypatch.setattr(dicom_pixels, "installed", lambda syntax: ())
    with pytest.raises(
        CaseError, match=r"JPEG 2000.*pip install -r requirements-dicom.txt` \(it needs pylibjpeg-openjpeg\)"
    ) as caught:
        dicom_series.read_series(series)
    assert caught.value.code == "CODEC_MISSING"
    monkeypatch.setattr(dicom_pixels, "installed", lambda syntax: ("pillow",))
    with pytest.raises(CaseError) as caught:
        dicom_series.read_series(series)
    assert caught.value.code == "PIXELS_CORRUPT"


def test_no_header_value_reaches_warnings_or_logs(
    series: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """pydicom quotes values that break a rule of the standard, in warnings, log records and exceptions."""
    path = _slice(series, 4)
    good = path.read_bytes()
    uid = str(pydicom.dcmread(path).SOPInstanceUID).encode()
    for old, new in ((uid, MARK.encode() + uid[len(MARK) :]), (b"-20.0", MARK[:5].encode())):
        at = good.rindex(old)
        path.write_bytes(good[:at] + new + good[at + len(old) :])
        caplog.clear()
        with caplog.at_level("DEBUG"):
            try:
                dicom_series.read_series(series)
            except CaseError as error:
                assert MARK[:5] not in str(error) and error.code == "DICOM_CORRUPT" and new != MARK
        assert MARK[:5] not in caplog.text and not recwarn.list
        if old == uid:
            with pytest.warns(UserWarning, match=MARK):  # what pydicom says when nobody silences it
                assert pydicom.dcmread(path).SOPInstanceUID


def test_mutated_files_end_in_a_volume_or_a_named_refusal(series: Path) -> None:
    rng = np.random.default_rng(5)
    path = _slice(series, 4)
    good = path.read_bytes()
    refused = 0
    for _ in range(150):
        mutant = bytearray(good)
        for position in rng.integers(132, len(good), rng.integers(1, 8)):
            mutant[position] = rng.integers(0, 256)
        path.write_bytes(bytes(mutant))
        try:
            volume, _ = dicom_series.read_series(series)
        except CaseError as error:
            assert error.code.isupper() and MARK not in str(error)
            refused += 1
        else:
            assert np.isfinite(volume.array).all()
    assert 10 < refused < 150


# ---- segmentations ----------------------------------------------------------------------------------------


@pytest.fixture
def seg(series: Path, tmp_path: Path) -> Path:
    """A SEG of the phantom's three structures, beside the series."""
    dicom_seg.write_segments(tmp_path / "seg.dcm", PHANTOM.label, PHANTOM.names, series)
    return tmp_path / "seg.dcm"


@pytest.mark.parametrize(
    "affine", [PHANTOM.image.affine, _turned(), _turned(0.8)], ids=["straight", "oblique", "tilted"]
)
def test_segmentation_round_trip(tmp_path: Path, affine: np.ndarray) -> None:
    _write(tmp_path / "ct", Volume(PHANTOM.image.array, affine))
    path = tmp_path / "seg.dcm"
    dicom_seg.write_segments(path, Volume(PHANTOM.label.array, affine), PHANTOM.names, tmp_path / "ct")
    assert mask_objects.list_names(path, "SEG") == PHANTOM.names
    image, _ = dicom_series.read_series(tmp_path / "ct")
    masks, findings = dicom_seg.read_segments(path, image, tmp_path / "ct")
    assert list(masks) == list(SIDES) and not findings
    for value, name in PHANTOM.names.items():
        assert np.array_equal(masks[name], PHANTOM.label.array == value)


def test_segmentation_is_reproducible_and_leaves_empty_frames_out(
    seg: Path, series: Path, tmp_path: Path
) -> None:
    dicom_seg.write_segments(tmp_path / "again.dcm", PHANTOM.label, PHANTOM.names, series)
    assert (tmp_path / "again.dcm").read_bytes() == seg.read_bytes()
    slices = sum(int((PHANTOM.label.array == value).any(axis=(1, 2)).sum()) for value in PHANTOM.names)
    assert int(pydicom.dcmread(seg).NumberOfFrames) == slices < 30


def test_highdicom_places_the_segments_the_same(seg: Path) -> None:
    import highdicom

    theirs = highdicom.seg.segread(seg).get_volume(combine_segments=False, dtype=np.uint8)
    filled = np.argwhere(theirs.array[..., 1] > 0).mean(axis=0)
    place = (theirs.affine @ [*filled, 1])[:3]
    ours = np.argwhere(PHANTOM.label.array == 2).mean(axis=0)
    assert np.allclose(place, (PHANTOM.label.affine @ [*ours, 1])[:3], atol=1e-3)


def test_a_label_against_the_slice_order_is_written_in_place(series: Path, tmp_path: Path) -> None:
    flipped = reorient(PHANTOM.label, (0, 1, 2), (True, False, False))
    dicom_seg.write_segments(tmp_path / "seg.dcm", flipped, PHANTOM.names, series)
    masks, _ = dicom_seg.read_segments(tmp_path / "seg.dcm", PHANTOM.image, series)
    assert np.array_equal(masks["bladder"], PHANTOM.label.array == 3)
    moved = Volume(PHANTOM.label.array, PHANTOM.label.affine + np.pad([[1.0]], ((2, 1), (3, 0))))
    with pytest.raises(ValueError, match="grid of the series"):
        dicom_seg.write_segments(tmp_path / "seg.dcm", moved, PHANTOM.names, series)


def test_only_named_segments_are_read(seg: Path, series: Path) -> None:
    masks, _ = dicom_seg.read_segments(seg, PHANTOM.image, series, names=["bladder", "liver"])
    assert list(masks) == ["bladder"] and masks["bladder"].sum() == (PHANTOM.label.array == 3).sum()


def _shift_frame(path: Path, index: int, z_mm: float) -> None:
    content = pydicom.dcmread(path)
    position = content.PerFrameFunctionalGroupsSequence[index].PlanePositionSequence[0]
    x, y, z = position.ImagePositionPatient
    position.ImagePositionPatient = [x, y, float(z) + z_mm]
    content.save_as(path)


def _same_label(path: Path) -> None:
    content = pydicom.dcmread(path)
    content.SegmentSequence[1].SegmentLabel = content.SegmentSequence[0].SegmentLabel
    content.save_as(path)


def _foreign(path: Path) -> None:
    content = pydicom.dcmread(path)
    content.FrameOfReferenceUID = generate_uid()
    content.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    content.save_as(path)


BAD_SEGMENTATIONS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "other series and frame": ("SEG_WRONG_SERIES", _foreign),
    "fractional": ("SEG_FRACTIONAL", lambda p: _edit(p, SegmentationType="FRACTIONAL")),
    "other rows": ("SEG_GEOMETRY", lambda p: _edit(p, Rows=11)),
    "frame between slices": ("SEG_GEOMETRY", lambda p: _shift_frame(p, 2, 1.2)),
    "frame outside": ("SEG_GEOMETRY", lambda p: _shift_frame(p, 2, 300.0)),
    "one label twice": ("SEG_AMBIGUOUS", _same_label),
    "no segmentation": ("NOT_SEG", lambda p: _edit(p, SOPClassUID="1.2.840.10008.5.1.4.1.1.2")),
    "no frames": ("DICOM_TRUNCATED", lambda p: _edit(p, PerFrameFunctionalGroupsSequence=None)),
    "garbage": ("DICOM_CORRUPT", lambda p: p.write_bytes(b"garbage" * 100) and None),
    "missing": ("FILE_MISSING", lambda p: p.unlink()),
    "pixels truncated": ("DICOM_TRUNCATED", lambda p: _edit(p, PixelData=b"\0\0")),
}


@pytest.mark.parametrize("name", list(BAD_SEGMENTATIONS))
def test_bad_segmentation(seg: Path, series: Path, name: str) -> None:
    code, damage = BAD_SEGMENTATIONS[name]
    damage(seg)
    with pytest.raises(CaseError) as caught:
        dicom_seg.read_segments(seg, PHANTOM.image, series)
    assert caught.value.code == code and caught.value.file == str(seg) and MARK not in str(caught.value)


def test_segments_come_by_number_and_a_high_bit_means_nothing_for_single_bits(
    seg: Path, series: Path
) -> None:
    before, _ = dicom_seg.read_segments(seg, PHANTOM.image, series)
    content = pydicom.dcmread(seg)
    content.HighBit = 7
    content.SegmentSequence = list(reversed(content.SegmentSequence))
    content.save_as(seg)
    after, _ = dicom_seg.read_segments(seg, PHANTOM.image, series)
    assert list(after) == list(before) == list(PHANTOM.names.values())
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_same_frame_of_reference_is_enough(seg: Path, series: Path) -> None:
    content = pydicom.dcmread(seg)
    content.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    content.save_as(seg)
    masks, _ = dicom_seg.read_segments(seg, PHANTOM.image, series)
    assert masks["kidney_left"].any()


# ---- real files -------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_series_equals_simpleitk(real_data: Path) -> None:
    import SimpleITK as sitk

    for name in ("cip/Testing/Data/Input/ct-64Dicom", "ibsi/ibsi_validation/dicom/STS_002/CT/image"):
        ours, findings = dicom_series.read_series(real_data / name)
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(real_data / name)))
        assert np.array_equal(np.maximum(sitk.GetArrayFromImage(image), -1024), ours.array) and not findings
        d, h, w = ours.array.shape
        assert np.allclose(
            image.TransformIndexToPhysicalPoint((w - 1, h - 1, d - 1)),
            (ours.affine @ [d - 1, h - 1, w - 1, 1])[:3],
            atol=1e-2,
        )


@pytest.mark.real
def test_real_series_equals_its_nifti(real_data: Path) -> None:
    from ctseg.geometry.volume import match_grid

    base = real_data / "ibsi/ibsi_validation"
    dicom, _ = dicom_series.read_series(base / "dicom/STS_019/CT/image")
    other, _ = volume_files.read_image(base / "nifti/STS_019/CT_image.nii.gz")
    moved = match_grid(other, dicom.grid, 0.01)
    assert moved is not None and np.array_equal(moved.array, dicom.array)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("dcm_qa_ct/In/GE", "SLICE_SPACING_NONUNIFORM"),
        ("dicom2nifti/tests/data/failing/sliceincrement/002", "SLICE_GAP"),
        ("dicom2nifti/tests/data/failing/gantrytilting/001", "TOO_SMALL"),  # four slices
        ("dcmqi/data/segmentations/ct-3slice", "TOO_SMALL"),
        ("dcmqi/data/segmentations/24x38x3/multiframe", "TOO_SMALL"),  # three frames
        ("dcmqi/data/segmentations/23x38x3/multiframe", "TOO_SMALL"),
        ("cornerstone_wado/testImages", "SLICE_DUPLICATE"),
        ("ibsi/ibsi_2_digital_phantom/dicom/orientation", "NOT_HU"),
    ],
)
def test_real_folders_that_are_refused(real_data: Path, name: str, code: str) -> None:
    with pytest.raises(CaseError) as caught:
        dicom_series.read_series(real_data / name)
    assert caught.value.code == code


@pytest.mark.real
@pytest.mark.parametrize(
    ("seg", "voxels"),
    [
        ("liver.dcm", {"Liver": 107098}),
        (
            "partial_overlaps.dcm",
            {"GREEN": 9602, "ORANGE": 11888, "PURPLE": 10743, "LIGHT_BLUE": 6693, "DARK_BLUE": 4713},
        ),
    ],
)
def test_real_segmentations_have_the_published_voxel_counts(
    real_data: Path, seg: str, voxels: dict[str, int]
) -> None:
    """Counts of the NRRD files that lie beside them; overlapping segments stay whole."""
    folder = real_data / "dcmqi/data/segmentations"
    slices = sorted(
        (pydicom.dcmread(path) for path in (folder / "ct-3slice").iterdir()),
        key=lambda s: float(s.ImagePositionPatient[2]),
    )
    affine = np.eye(4)
    affine[:3, 3] = slices[0].ImagePositionPatient
    affine[:3, :3] = 0
    affine[:3, 0] = np.subtract(slices[1].ImagePositionPatient, slices[0].ImagePositionPatient)
    affine[1, 1], affine[0, 2] = slices[0].PixelSpacing
    masks, _ = dicom_seg.read_segments(
        folder / seg, Volume(np.zeros((3, 512, 512), np.float32), affine), folder / "ct-3slice"
    )
    assert {name: int(mask.sum()) for name, mask in masks.items()} == voxels


@pytest.mark.real
def test_real_fractional_segmentation_is_refused(real_data: Path) -> None:
    with pytest.raises(CaseError) as caught:
        dicom_seg.read_segments(
            real_data / "highdicom/data/test_files/seg_image_ct_true_fractional.dcm", PHANTOM.image, None
        )
    assert caught.value.code == "SEG_FRACTIONAL"


def test_values_in_the_upper_bits_of_a_word_are_refused(series: Path) -> None:
    """As scanners of the past stored them: read as they stand they would be 16 times too large."""
    for path in series.iterdir():
        content = pydicom.dcmread(path)
        content.BitsStored, content.HighBit = 12, 15
        content.save_as(path)
    with pytest.raises(CaseError, match=r"PIXELS_UNSUPPORTED.*high bit 11"):
        dicom_series.read_series(series)


def test_acquisitions_that_lie_between_each_other_are_told(series: Path) -> None:
    files = sorted(series.iterdir(), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))
    for numbers, code in (
        (lambda index: 1 + index % 2, ["ACQUISITIONS_MIXED"]),
        (lambda index: 1 + index // 4, []),
        (lambda index: None, []),
    ):
        for index, path in enumerate(files):
            content = pydicom.dcmread(path)
            content.AcquisitionNumber = numbers(index)
            content.save_as(path)
        assert [
            finding.code for finding in dicom_series.read_series(series)[1] if finding.severity == "WARN"
        ] == code
