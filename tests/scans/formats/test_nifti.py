"""NIfTI reading and writing: exact geometry both ways, and every bad file refused by name.

All files synthetic.
"""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import small_phantom

from ctseg.errors import CaseError
from ctseg.geometry.volume import Volume
from ctseg.scans.formats import checks, nifti, volume_files
from ctseg.scans.formats.stored_values import Content

PHANTOM = small_phantom().image


def _header(
    shape: tuple[int, ...] = (14, 12, 10), spacing: float = 2.0, dtype: type = np.int16
) -> nib.Nifti1Header:
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_data_offset(352)
    return header


def _body(dtype: type = np.int16) -> np.ndarray:
    """(i, j, k) = (14, 12, 10) of plausible HU."""
    return PHANTOM.array.transpose(2, 1, 0).astype(dtype)


def _store(path: Path, header: nib.Nifti1Header, array: np.ndarray | bytes, *, zipped: bool = True) -> Path:
    voxels = array if isinstance(array, bytes) else array.tobytes(order="F")
    content = header.binaryblock + b"\0" * 4 + voxels
    path.write_bytes(gzip.compress(content, 1) if zipped else content)
    return path


def _code(path: Path, *, label: bool = False) -> str:
    """The code with which a file is refused; the message names the file and fits the fixed line format."""
    with pytest.raises(CaseError) as caught:
        volume_files.read_integers(path) if label else volume_files.read_image(path)
    assert caught.value.file == str(path)
    assert str(caught.value).startswith(
        f"ERROR {caught.value.code} case=- file={path}: "
    ) and ". Fix: " in str(caught.value)
    return caught.value.code


# ---- geometry ---------------------------------------------------------------------------------------------


def _grids() -> dict[str, np.ndarray]:
    c, s = np.cos(0.35), np.sin(0.35)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    straight = np.zeros((4, 4))
    straight[2, 0], straight[1, 1], straight[0, 2], straight[3, 3] = 3, 2, 1, 1
    grids = {
        "straight": straight,
        "oblique": straight.copy(),
        "left-handed": straight.copy(),
        "sheared": straight.copy(),
    }
    grids["oblique"][:3, :3] = turn @ straight[:3, :3]
    grids["left-handed"][:3, 2] *= -1
    grids["sheared"][1, 0] = 0.8
    for affine in grids.values():
        affine[:3, 3] = -101.3, 57.7, 1203.1
    # as an sform holds it
    return {name: affine.astype(np.float32).astype(np.float64) for name, affine in grids.items()}


@pytest.mark.parametrize("name", list(_grids()))
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_affine_and_voxels_survive_bit_for_bit(tmp_path: Path, name: str, suffix: str) -> None:
    volume = Volume(PHANTOM.array, _grids()[name])
    path = tmp_path / f"ct{suffix}"
    nifti.write_image(path, volume)
    back, findings = volume_files.read_image(path)
    assert np.array_equal(back.affine, volume.affine) and back.affine.dtype == np.float64
    assert np.array_equal(back.array, volume.array) and back.array.dtype == np.float32
    assert [finding.code for finding in findings] == (["AFFINE_SHEAR"] if name == "sheared" else [])
    nifti.write_image(tmp_path / f"again{suffix}", back)
    assert (tmp_path / f"again{suffix}").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", list(_grids()))
def test_nibabel_and_simpleitk_see_the_same_places(tmp_path: Path, name: str) -> None:
    import SimpleITK as sitk

    volume = Volume(PHANTOM.array, _grids()[name])
    nifti.write_image(tmp_path / "ct.nii.gz", volume)
    theirs = nib.load(tmp_path / "ct.nii.gz")
    d, h, w = 4, 7, 9
    place = (volume.affine @ [d, h, w, 1])[:3]
    assert np.allclose(theirs.affine @ [w, h, d, 1], [-place[0], -place[1], place[2], 1], atol=1e-4)
    assert float(np.asanyarray(theirs.dataobj)[w, h, d]) == volume.array[d, h, w]
    if name != "sheared":  # which SimpleITK does not read
        image = sitk.ReadImage(str(tmp_path / "ct.nii.gz"))
        assert np.allclose(image.TransformIndexToPhysicalPoint((w, h, d)), place, atol=1e-3)


def test_only_a_qform_is_read_the_same(tmp_path: Path) -> None:
    header = _header()
    header["sform_code"] = 0
    with_qform, _ = volume_files.read_image(_store(tmp_path / "q.nii.gz", header, _body()))
    with_both, _ = volume_files.read_image(_store(tmp_path / "b.nii.gz", _header(), _body()))
    assert np.allclose(with_qform.affine, with_both.affine, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.float32, np.float64])
def test_every_scalar_type_gives_the_same_hu(tmp_path: Path, dtype: type) -> None:
    volume, findings = volume_files.read_image(
        _store(tmp_path / "ct.nii.gz", _header(dtype=dtype), _body(dtype))
    )
    assert np.array_equal(volume.array, PHANTOM.array) and not findings


def test_scaling_is_applied(tmp_path: Path) -> None:
    header = _header(dtype=np.uint16)
    header["scl_slope"], header["scl_inter"] = 0.5, -1024
    stored = ((PHANTOM.array.transpose(2, 1, 0) + 1024) * 2).astype(np.uint16)
    volume, _ = volume_files.read_image(_store(tmp_path / "ct.nii.gz", header, stored))
    assert np.array_equal(volume.array, PHANTOM.array)


@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_no_slope_means_no_scaling(tmp_path: Path, slope: float) -> None:
    header = _header()
    header["scl_slope"], header["scl_inter"] = slope, 500
    volume, _ = volume_files.read_image(_store(tmp_path / "ct.nii.gz", header, _body()))
    assert np.array_equal(volume.array, PHANTOM.array)


def test_big_endian_and_nifti_2(tmp_path: Path) -> None:
    swapped = _header().as_byteswapped(">")
    big, _ = volume_files.read_image(_store(tmp_path / "big.nii.gz", swapped, _body().astype(">i2")))
    second = nib.Nifti2Image(_body(), _header().get_sform())
    nib.save(second, tmp_path / "two.nii.gz")
    two, _ = volume_files.read_image(tmp_path / "two.nii.gz")
    plain, _ = volume_files.read_image(_store(tmp_path / "one.nii.gz", _header(), _body()))
    for volume in (big, two):
        assert np.array_equal(volume.array, plain.array) and np.array_equal(volume.affine, plain.affine)


def test_gzip_of_several_members(tmp_path: Path) -> None:
    nifti.write_image(tmp_path / "ct.nii", PHANTOM)
    content = (tmp_path / "ct.nii").read_bytes()
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    volume, _ = volume_files.read_image(tmp_path / "ct.nii.gz")
    assert np.array_equal(volume.array, PHANTOM.array)


def test_padding_is_raised_to_air_and_told(tmp_path: Path) -> None:
    array = _body()
    array[0] = -3024
    volume, findings = volume_files.read_image(_store(tmp_path / "ct.nii.gz", _header(), array))
    assert volume.array.min() == -1024 and [(f.severity, f.code) for f in findings] == [("NOTE", "PADDING")]
    assert "-3024" in findings[0].cause


# ---- files that are accepted with a word ------------------------------------------------------------------


def test_plain_file_named_gz_is_read_with_a_warning(tmp_path: Path) -> None:
    volume, findings = volume_files.read_image(
        _store(tmp_path / "ct.nii.gz", _header(), _body(), zipped=False)
    )
    assert np.array_equal(volume.array, PHANTOM.array) and [(f.severity, f.code) for f in findings] == [
        ("WARN", "NOT_GZIP")
    ]


def test_a_fourth_axis_of_length_one_is_dropped_with_a_warning(tmp_path: Path) -> None:
    volume, findings = volume_files.read_image(
        _store(tmp_path / "ct.nii.gz", _header((14, 12, 10, 1)), _body()[..., None])
    )
    assert volume.array.shape == (10, 12, 14) and [(f.severity, f.code) for f in findings] == [
        ("WARN", "NOT_3D")
    ]


def test_small_disagreement_of_the_forms_is_a_warning(tmp_path: Path) -> None:
    header = _header()
    header["qoffset_x"] = float(header["qoffset_x"]) + 0.05
    _, findings = volume_files.read_image(_store(tmp_path / "ct.nii.gz", header, _body()))
    assert [(f.severity, f.code) for f in findings] == [("WARN", "AFFINE_CONFLICT")] and "0.05" in findings[
        0
    ].cause


# ---- a header that says the same place twice ---------------------------------------------------------------


_HALF_TURN = np.array([0.6, 0.64, 0.48]) / np.linalg.norm([0.6, 0.64, 0.48])


def _turned_header(
    excess: float, *, sform: bool, spacing: float = 3.0
) -> tuple[nib.Nifti1Header, np.ndarray]:
    """A header of half a turn about an oblique axis whose b2 + c2 + d2 is 1 + excess, and the affine that it
    means.
    """
    affine = np.eye(4)
    affine[:3, :3] = (2 * np.outer(_HALF_TURN, _HALF_TURN) - np.eye(3)) * spacing
    affine[:3, 3] = [10, 20, -30]
    header = _header()
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=int(sform))
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = _HALF_TURN * np.sqrt(1 + excess)
    return header, affine


@pytest.mark.parametrize("sform", [True, False])
@pytest.mark.parametrize("excess", [-8e-7, -1e-7, 4e-7, 8e-7, 2e-6])
def test_a_quaternion_rounded_in_32_bits_is_read_without_a_word(
    tmp_path: Path, excess: float, sform: bool
) -> None:
    """Shorter than 1 by rounding it turns the axes by 0.1 degrees: no reason to refuse an sform that is
    exact.
    """
    header, affine = _turned_header(excess, sform=sform)
    volume, findings = volume_files.read_image(_store(tmp_path / "ct.nii.gz", header, _body()))
    if sform or excess > -1e-7:
        assert np.abs(nifti.file_affine(volume.affine) - affine).max() < 1e-5
    assert not findings


def test_a_quaternion_written_in_decimals_is_told_and_one_that_is_none_refused(tmp_path: Path) -> None:
    header, affine = _turned_header(1e-4, sform=False)
    volume, findings = volume_files.read_image(_store(tmp_path / "ct.nii.gz", header, _body()))
    assert np.abs(nifti.file_affine(volume.affine) - affine).max() < 1e-4
    assert [(f.severity, f.code) for f in findings] == [
        ("WARN", "AFFINE_ROUNDED")
    ] and "1.1 degrees" in findings[0].cause
    for wrong in (1e-3, np.nan):
        header, affine = _turned_header(0.0, sform=True)
        header["quatern_b"] = np.sqrt(float(header["quatern_b"]) ** 2 + wrong)
        volume, findings = volume_files.read_image(_store(tmp_path / "ct.nii.gz", header, _body()))
        assert np.abs(nifti.file_affine(volume.affine) - affine).max() < 1e-5  # the sform counts
        assert [(f.severity, f.code) for f in findings] == [
            ("WARN", "AFFINE_CONFLICT")
        ] and "quaternion" in findings[0].cause
        header["sform_code"] = 0
        assert _code(_store(tmp_path / "ct.nii.gz", header, _body())) == "AFFINE_SINGULAR"


def test_a_handedness_of_zero_means_one(tmp_path: Path) -> None:
    header = _header()
    header["sform_code"], header["pixdim"][0] = 0, 0
    volume, findings = volume_files.read_image(_store(tmp_path / "ct.nii.gz", header, _body()))
    assert np.allclose(nifti.file_affine(volume.affine), np.diag([-2, -2, 2, 1])) and not findings


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((2, 2, 2.0002), None),
        ((2, 2.01, 2), None),
        ((1.96, 2, 2), "WARN"),
        ((2, 2, 2.11), "ERROR"),
        ((1.7, 1.7, 1.6), "ERROR"),
        ((0, 0, 0), "SPACING_MISSING"),
        ((2, np.nan, 2), "SPACING_NONFINITE"),
        ((-2, 2, 2), "SPACING_NEGATIVE"),
    ],
)
@pytest.mark.parametrize("qform_code", [0, 1])
def test_pixdim_is_held_against_the_sform(
    tmp_path: Path, qform_code: int, sizes: tuple[float, float, float], expected: str | None
) -> None:
    """Other programs take pixdim: the same file would be larger or smaller there. Rounding is normal."""
    header = _header()
    header["qform_code"], header["pixdim"][1:4] = qform_code, sizes
    path = _store(tmp_path / "ct.nii.gz", header, _body())
    if expected == "ERROR":
        assert _code(path) == "AFFINE_CONFLICT"
        return
    volume, findings = volume_files.read_image(path)
    assert volume.spacing_mm == (2, 2, 2)
    told = [f"{f.severity} {f.code}" for f in findings]
    assert told == (
        [] if expected is None else ["WARN AFFINE_CONFLICT" if expected == "WARN" else f"WARN {expected}"]
    )


@pytest.mark.parametrize("sizes", ["steps", "planes"])
@pytest.mark.parametrize("qform", [True, False])
def test_a_sheared_sform_is_held_against_what_the_other_forms_can_say(
    tmp_path: Path, sizes: str, qform: bool
) -> None:
    """A qform holds no shear; pixdim is the length of a step or the distance of planes, 11 % apart at 26
    degrees.
    """
    header, affine = _header(), np.diag([-2.0, -2.0, 2.0, 1.0])
    affine[1, 2] = 1.0
    header.set_qform(affine, code=int(qform), strip_shears=True)
    header.set_sform(affine, code=1)
    if sizes == "planes":
        header["pixdim"][1:4] = 2, 2 * np.cos(np.arctan(0.5)), 2
    volume, findings = volume_files.read_image(_store(tmp_path / "ct.nii.gz", header, _body()))
    assert [(f.severity, f.code) for f in findings] == [("WARN", "AFFINE_SHEAR")] and np.allclose(
        nifti.file_affine(volume.affine), affine
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_voxels_that_the_header_does_not_declare_are_told(tmp_path: Path, zipped: bool) -> None:
    """Two volumes of which the header counts one."""
    two = np.stack([_body(), _body()], axis=3)
    path = _store(tmp_path / ("ct.nii.gz" if zipped else "ct.nii"), _header(), two, zipped=zipped)
    volume, findings = volume_files.read_image(path)
    assert np.array_equal(volume.array, PHANTOM.array) and [(f.severity, f.code) for f in findings] == [
        ("WARN", "TRAILING_BYTES")
    ]


def test_names_in_the_file_are_found_in_any_packing(tmp_path: Path) -> None:
    table = (
        b'<LabelTable><Label Red="1" Key="1"><![CDATA[liver]]></Label>'
        b'<Label Key="2" Alpha="1">left &amp; right</Label></LabelTable>'
    )
    for endianness, kind in (("<", nib.Nifti1Header), (">", nib.Nifti1Header), ("<", nib.Nifti2Header)):
        header = kind(endianness=endianness)
        header.set_data_shape((14, 12, 10))
        header.set_sform(np.diag([2, 2, 2, 1]), code=1)
        header["pixdim"][1:4] = 2
        start = int(header["sizeof_hdr"]) + 4
        header["vox_offset"] = start + len(table) + 8
        content = (
            header.binaryblock
            + b"\1\0\0\0"
            + (len(table) + 8).to_bytes(4, "little")
            + b"\0" * 4
            + table
            + b"\0" * (14 * 12 * 10 * 4)
        )
        for name, data in (
            ("a.nii", content),
            ("a.nii.gz", gzip.compress(content)),
            ("gz.nii", gzip.compress(content)),
            ("plain.nii.gz", content),
        ):
            (tmp_path / name).write_bytes(data)
            assert nifti.read_names(tmp_path / name) == {1: "liver", 2: "left & right"}
            assert volume_files.read_integers(tmp_path / name)[0].array.shape == (10, 12, 14)


# ---- files that are refused -------------------------------------------------------------------------------


def _whole(tmp_path: Path) -> bytes:
    return _store(tmp_path / "whole.nii.gz", _header(), _body()).read_bytes()


def _bytes(tmp_path: Path, content: bytes, name: str = "ct.nii.gz") -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def test_truncated_files(tmp_path: Path) -> None:
    whole = _whole(tmp_path)
    for length in (len(whole) // 2, len(whole) - 3, 30):
        assert _code(_bytes(tmp_path, whole[:length])) == "NIFTI_TRUNCATED"
    plain = gzip.decompress(whole)
    with pytest.raises(CaseError, match=f"ended at byte 1000 of {len(plain)}"):
        volume_files.read_image(_bytes(tmp_path, plain[:1000], "ct.nii"))
    assert _code(_bytes(tmp_path, plain[:352], "ct.nii")) == "NIFTI_TRUNCATED"
    assert _code(_bytes(tmp_path, plain[:200], "ct.nii")) == "NIFTI_TRUNCATED"
    assert _code(_bytes(tmp_path, whole[: len(whole) // 2]), label=True) == "NIFTI_TRUNCATED"


@pytest.mark.parametrize("place", [0.3, 0.5, 0.9])
def test_flipped_bytes(tmp_path: Path, place: float) -> None:
    whole = bytearray(_whole(tmp_path))
    start = int(place * len(whole))
    for index in range(start, min(start + 8, len(whole))):
        whole[index] ^= 0x5A
    assert _code(_bytes(tmp_path, bytes(whole))) in {"GZIP_CORRUPT", "NIFTI_TRUNCATED"}


def test_a_wrong_checksum_alone_is_found(tmp_path: Path) -> None:
    whole = bytearray(_whole(tmp_path))
    whole[-6] ^= 1
    assert _code(_bytes(tmp_path, bytes(whole))) == "GZIP_CORRUPT"


def test_files_of_another_kind(tmp_path: Path) -> None:
    assert _code(_bytes(tmp_path, b"")) == "FILE_EMPTY"
    for content, word in (
        (b"<!DOCTYPE html><html>" * 40, "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 20, "git-lfs"),
        (b"x" * 500, "first bytes"),
    ):
        with pytest.raises(CaseError, match=word) as caught:
            volume_files.read_image(_bytes(tmp_path, content))
        assert caught.value.code == "NOT_NIFTI"
    assert _code(_bytes(tmp_path, b"PK\x03\x04" + b"x" * 500)) == "ARCHIVE_INPUT"
    assert _code(_bytes(tmp_path, gzip.compress(b"x" * 500))) == "NOT_NIFTI"
    nib.save(nib.Nifti1Pair(_body(), np.eye(4)), tmp_path / "pair.img")
    assert _code(tmp_path / "pair.hdr") == "PAIR_UNSUPPORTED"
    assert _code(tmp_path / "pair.img") == "PAIR_UNSUPPORTED"
    assert _code(_bytes(tmp_path, (tmp_path / "pair.hdr").read_bytes() + b"\0" * 500)) == "PAIR_UNSUPPORTED"


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert _code(tmp_path / "nothing.nii.gz") == "FILE_MISSING"
    (tmp_path / "folder.nii.gz").mkdir()
    assert _code(tmp_path / "folder.nii.gz") == "NOT_REGULAR"
    os.mkfifo(tmp_path / "pipe.nii.gz")
    assert _code(tmp_path / "pipe.nii.gz") == "NOT_REGULAR"
    (tmp_path / "zero.nii.gz").symlink_to("/dev/zero")
    assert _code(tmp_path / "zero.nii.gz") == "NOT_REGULAR"
    (tmp_path / "loop.nii.gz").symlink_to(tmp_path / "loop.nii.gz")
    assert _code(tmp_path / "loop.nii.gz") == "FILE_MISSING"


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read every file")
def test_unreadable_file(tmp_path: Path) -> None:
    path = _bytes(tmp_path, _whole(tmp_path))
    path.chmod(0)
    assert _code(path) == "PERMISSION"


def test_unusual_names_are_fine(tmp_path: Path) -> None:
    for name in ("-rf.nii.gz", "Ä ö 'x' $(id).nii.gz", "a\nb.nii.gz"):
        volume, _ = volume_files.read_image(_store(tmp_path / name, _header(), _body()))
        assert np.array_equal(volume.array, PHANTOM.array)


def _change(**values: object) -> Callable[[nib.Nifti1Header], None]:
    def change(header: nib.Nifti1Header) -> None:
        for key, value in values.items():
            header[key] = value

    return change


NO_FORMS = {"qform_code": 0, "sform_code": 0}
BAD_HEADERS = {
    "spacing 0": ("SPACING_MISSING", _change(**NO_FORMS, pixdim=[1, 0, 0, 0, 0, 0, 0, 0])),
    "spacing negative": ("SPACING_NEGATIVE", _change(**NO_FORMS, pixdim=[1, -2, 2, 2, 0, 0, 0, 0])),
    "spacing NaN": ("SPACING_NONFINITE", _change(**NO_FORMS, pixdim=[1, np.nan, 2, 2, 0, 0, 0, 0])),
    "no forms": ("AFFINE_UNKNOWN", _change(**NO_FORMS)),
    "far away": ("POSITION_IMPLAUSIBLE", _change(qform_code=0, srow_x=[2, 0, 0, 1e30])),
    "sform rows 0": (
        "AFFINE_SINGULAR",
        _change(qform_code=0, srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4),
    ),
    "sform NaN": ("SPACING_NONFINITE", _change(qform_code=0, srow_x=[np.nan] * 4)),
    "sform parallel axes": (
        "AFFINE_SINGULAR",
        _change(qform_code=0, srow_x=[2, 2, 0, 0], srow_y=[1, 1, 0, 0]),
    ),
    "forms 90 degrees apart": ("AFFINE_CONFLICT", _change(srow_x=[0, 2, 0, 0], srow_y=[2, 0, 0, 0])),
    "quaternion invalid": ("AFFINE_SINGULAR", _change(sform_code=0, quatern_b=2.0, quatern_c=2.0)),
    "spacing 1000 mm": ("SPACING_IMPLAUSIBLE", _change(qform_code=0, srow_x=[1000, 0, 0, 0])),
    "spacing 1e-4 mm": ("SPACING_IMPLAUSIBLE", _change(qform_code=0, srow_x=[1e-4, 0, 0, 0])),
    "metre": ("UNITS_UNSUPPORTED", _change(xyzt_units=1)),
    "micron": ("UNITS_UNSUPPORTED", _change(xyzt_units=3)),
    "32767 cubed": ("HEADER_IMPLAUSIBLE", _change(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])),
    "4096 cubed": ("TOO_LARGE", _change(dim=[3, 4096, 4096, 4096, 1, 1, 1, 1])),
    "negative dimension": ("HEADER_IMPLAUSIBLE", _change(dim=[3, -14, 12, 10, 1, 1, 1, 1])),
    "zero dimension": ("HEADER_IMPLAUSIBLE", _change(dim=[3, 0, 12, 10, 1, 1, 1, 1])),
    "no dimension": ("HEADER_IMPLAUSIBLE", _change(dim=[0, 14, 12, 10, 1, 1, 1, 1])),
    "two volumes": ("NOT_3D", _change(dim=[4, 14, 12, 5, 2, 1, 1, 1])),
    "flat": ("NOT_3D", _change(dim=[2, 14, 120, 1, 1, 1, 1, 1])),
    "colours": ("NOT_SCALAR", _change(datatype=128, bitpix=24)),
    "complex": ("NOT_SCALAR", _change(datatype=32, bitpix=64)),
    "unknown type": ("HEADER_IMPLAUSIBLE", _change(datatype=3)),
    "type and bits disagree": ("HEADER_IMPLAUSIBLE", _change(datatype=4, bitpix=32)),
    "voxels start in the header": ("HEADER_IMPLAUSIBLE", _change(vox_offset=100)),
    "voxels start at NaN": ("HEADER_IMPLAUSIBLE", _change(vox_offset=np.nan)),
    "voxels start far behind": ("HEADER_IMPLAUSIBLE", _change(vox_offset=1e12)),
    "slope infinite": ("HEADER_IMPLAUSIBLE", _change(scl_slope=np.inf)),
    "slope 1e9": ("NOT_HU", _change(scl_slope=1e9, scl_inter=0)),
    "single voxel": ("TOO_SMALL", _change(dim=[3, 1, 1, 1, 1, 1, 1, 1])),
    "four slices": ("TOO_SMALL", _change(dim=[3, 14, 12, 4, 1, 1, 1, 1])),
}


@pytest.mark.parametrize("name", list(BAD_HEADERS))
def test_bad_header(tmp_path: Path, name: str) -> None:
    code, change = BAD_HEADERS[name]
    header = _header()
    change(header)
    assert _code(_store(tmp_path / "ct.nii.gz", header, _body())) == code


def test_a_zip_bomb_is_never_expanded(tmp_path: Path) -> None:
    """More data than declared: refused after one further MiB, whatever the file would expand to."""
    header = _header()
    content = header.binaryblock + b"\0" * 4 + _body().tobytes(order="F") + b"\0" * (64 << 20)
    path = _bytes(tmp_path, gzip.compress(content, 1))
    reader = Content(path.read_bytes(), zipped=True, truncated="NIFTI_TRUNCATED")
    reader.take(352)
    with pytest.raises(CaseError) as caught:
        reader.voxels(_body().shape, _body().dtype)
    assert caught.value.code == "TOO_LARGE" and reader.position == 352 + _body().nbytes + (1 << 20)


def test_nonfinite_voxels(tmp_path: Path) -> None:
    for value in (np.nan, np.inf, -np.inf):
        array = _body(np.float32)
        array[:2, :2, :2] = value
        with pytest.raises(CaseError, match=r"n=8 voxels \(0.476 %\)") as caught:
            volume_files.read_image(_store(tmp_path / "ct.nii.gz", _header(dtype=np.float32), array))
        assert caught.value.code == "NONFINITE"
    assert (
        _code(
            _store(
                tmp_path / "ct.nii.gz", _header(dtype=np.float32), np.full((14, 12, 10), np.nan, np.float32)
            ),
            label=True,
        )
        == "NONFINITE"
    )


def _noise(low: float, high: float) -> np.ndarray:
    return np.random.default_rng(3).uniform(low, high, (14, 12, 10))


NOT_HU = {
    "float times 1e30": _body(np.float64) * 1e30,
    "float beyond float32": _body(np.float64) * 1e300,
    "HU + 1024": (_body(np.int32) + 1024).astype(np.uint16),
    "HU + 1024 with padding": np.where(_body() < -500, -2000, _body() + 1024).astype(np.int16),
    "eight bits": np.clip((_body() + 200) / 2, 0, 255).astype(np.uint8),
    "scaled to 0..1": _noise(0, 1).astype(np.float32),
    "scaled to -1..1": _noise(-1, 1).astype(np.float32),
    "like MR": _noise(0, 3000).astype(np.int16),
    "like MR with ringing": (_noise(0, 30000) - 40).astype(np.int16),
}


@pytest.mark.parametrize("name", list(NOT_HU))
def test_intensities_that_are_not_hu(tmp_path: Path, name: str) -> None:
    array = NOT_HU[name]
    path = _store(tmp_path / "ct.nii.gz", _header(dtype=array.dtype.type), array)
    assert _code(path) == "NOT_HU"


def test_constant_image(tmp_path: Path) -> None:
    assert (
        _code(_store(tmp_path / "ct.nii.gz", _header(), np.full((14, 12, 10), 40, np.int16)))
        == "CONSTANT_IMAGE"
    )


@pytest.mark.parametrize("change", ["metal", "no outside air", "padding -32768"])
def test_intensities_that_are_hu(tmp_path: Path, change: str) -> None:
    array = _body()
    if change == "metal":
        array[5, 5, 5] = 31000
    elif change == "no outside air":
        array[array < -500] = -95
    else:
        array[0] = -32768
    volume, _ = volume_files.read_image(_store(tmp_path / "ct.nii.gz", _header(), array))
    assert volume.array.max() == (31000 if change == "metal" else PHANTOM.array.max())


# ---- labels -----------------------------------------------------------------------------------------------


def _label(dtype: type) -> np.ndarray:
    array = np.zeros((14, 12, 10), dtype=dtype)
    array[3:6, 4:7, 2:5] = 1
    array[8:10, 4:7, 2:5] = 7
    return array


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_labels_of_every_type(tmp_path: Path, dtype: type) -> None:
    volume, findings = volume_files.read_integers(
        _store(tmp_path / "l.nii.gz", _header(dtype=dtype), _label(dtype))
    )
    assert (
        volume.array.dtype == np.int32
        and np.array_equal(volume.array, _label(np.int32).transpose(2, 1, 0))
        and not findings
    )


def test_labels_are_checked_before_any_cast(tmp_path: Path) -> None:
    array = _label(np.int16)
    array[0, 0, 0], array[1, 0, 0] = 256, -1
    volume, _ = volume_files.read_integers(_store(tmp_path / "l.nii.gz", _header(), array))
    assert (volume.array.max(), volume.array.min()) == (256, -1)
    huge = _label(np.float64)
    huge[0, 0, 0] = 2.0**31
    assert _code(_store(tmp_path / "l.nii.gz", _header(dtype=np.float64), huge), label=True) == "LABEL_VALUES"


def test_labels_that_are_no_integers(tmp_path: Path) -> None:
    near = _store(
        tmp_path / "near.nii.gz", _header(dtype=np.float32), _label(np.float32) * np.float32(0.9999)
    )
    volume, findings = volume_files.read_integers(near)
    assert np.array_equal(volume.array, _label(np.int32).transpose(2, 1, 0))
    assert [(f.severity, f.code) for f in findings] == [("WARN", "LABEL_NOT_INTEGER")]
    assert (
        _code(
            _store(tmp_path / "far.nii.gz", _header(dtype=np.float32), _label(np.float32) * np.float32(0.99)),
            label=True,
        )
        == "LABEL_NOT_INTEGER"
    )


def test_write_label_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    label = Volume(_label(np.int32).transpose(2, 1, 0), PHANTOM.affine)
    nifti.write_label(tmp_path / "l.nii.gz", label, names={1: "liver", 7: "spleen"})
    assert nib.load(tmp_path / "l.nii.gz").get_data_dtype() == np.uint8
    nifti.write_label(tmp_path / "big.nii.gz", Volume(label.array * 100, label.affine))
    assert volume_files.read_integers(tmp_path / "big.nii.gz")[0].array.max() == 700
    with pytest.raises(ValueError, match="without a name"):
        nifti.write_label(tmp_path / "x.nii.gz", label, names={1: "liver"})
    with pytest.raises(ValueError, match="integers"):
        nifti.write_label(tmp_path / "x.nii.gz", Volume(-label.array, label.affine))
    with pytest.raises(ValueError, match="integers"):
        nifti.write_label(tmp_path / "x.nii.gz", Volume(label.array.astype(np.float32), label.affine))
    assert not (tmp_path / "x.nii.gz").exists()


def test_written_files_carry_no_text_and_no_time(tmp_path: Path) -> None:
    nifti.write_image(tmp_path / "a.nii.gz", PHANTOM)
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert struct.unpack("<I", content[4:8]) == (0,) and not content[3] & 0x08  # no time, no name
    header = nib.load(tmp_path / "a.nii.gz").header
    assert all(not header[field].item() for field in ("descrip", "db_name", "aux_file", "intent_name"))


# ---- mutated files ----------------------------------------------------------------------------------------


def test_mutated_headers_end_in_a_volume_or_a_named_refusal(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    plain = bytearray(gzip.decompress(_whole(tmp_path)))
    refused = 0
    for _ in range(400):
        mutant = bytearray(plain)
        for position in rng.integers(0, 352, rng.integers(1, 6)):
            mutant[position] = rng.integers(0, 256)
        path = _bytes(tmp_path, bytes(mutant), "mutant.nii")
        try:
            volume, _ = volume_files.read_image(path)
        except CaseError as error:
            assert error.file == str(path) and error.code.isupper()
            refused += 1
        else:
            assert np.isfinite(volume.array).all() and abs(np.linalg.det(volume.affine)) > 0
    assert 50 < refused < 400


def test_memory_check_needs_no_memory() -> None:
    checks.check_memory(512 * 512 * 1000, 2)
    with pytest.raises(CaseError, match="limit 4 GiB"):
        checks.check_memory(512 * 512 * 4000, 2)


# ---- real scans -------------------------------------------------------------------------------------------

REAL_CT = (
    "openkbp/train/*/ct.nii.gz",
    "openkbp/test/*/ct.nii.gz",
    "totalseg/tests/reference_files/example_ct*.nii.gz",
    "tptbox/TPTBox/tests/sample_ct/sub-ct_label-22_ct.nii.gz",
    "ibsi/ibsi_validation/nifti/*/CT_image.nii.gz",
)


@pytest.mark.real
@pytest.mark.parametrize("pattern", REAL_CT)
def test_every_real_ct_passes_and_equals_nibabel(real_data: Path, pattern: str) -> None:
    paths = sorted(real_data.glob(pattern))
    assert paths
    for path in paths:
        volume, findings = volume_files.read_image(path)
        assert not [finding for finding in findings if finding.severity != "NOTE"]
        theirs = nib.load(path)
        values = np.maximum(np.asanyarray(theirs.dataobj).astype(np.float32), -1024).transpose(2, 1, 0)
        assert np.array_equal(volume.array, values)
        assert np.allclose(nifti.file_affine(volume.affine), theirs.affine, atol=1e-6)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("niivue/CT_AVM.nii.gz", "NOT_HU"),  # a picture of a CT: 8 bits, nothing below 0
        ("nibabel/nibabel/tests/data/anatomical.nii", "NOT_HU"),
        ("nibabel/nibabel/tests/data/example4d.nii.gz", "NOT_3D"),
        ("nibabel/nibabel/tests/data/resampled_anat_moved.nii", "NONFINITE"),
        ("totalseg/tests/reference_files/spine_report/example_ct_report/spine_report.nii.gz", "NOT_SCALAR"),
    ],
)
def test_real_images_that_are_no_ct_in_hu(real_data: Path, name: str, code: str) -> None:
    assert _code(real_data / name) == code
