"""NRRD, 3D Slicer segmentations and MetaImage: the same voxels as SimpleITK reads, refusals by name, and the
commands that take them.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from builders import small_phantom, with_itk

from ctseg.artifacts import write_json
from ctseg.datasets import case_sources, listing, load_case
from ctseg.datasets.case import CaseRecord, ImageSource, LabelSource
from ctseg.datasets.find_scans import search
from ctseg.datasets.layouts import open_data_set
from ctseg.datasets.masks import open_masks
from ctseg.errors import CaseError, PreconditionError, UsageError
from ctseg.geometry.volume import Volume
from ctseg.scans.dicom import dicom_series
from ctseg.scans.formats import nifti, nrrd, volume_files

SHAPE = (9, 10, 12)  # D, H, W


def oblique() -> np.ndarray:
    """Index (d, h, w) to LPS mm, turned about two axes, with three different voxel sizes."""
    a, b = np.deg2rad([12.0, -7.0])
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]) @ np.array(
        [[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn[:, ::-1] * (3.0, 2.0, 1.5)
    affine[:3, 3] = (-11.25, 4.5, 87.125)
    return affine


def hu() -> np.ndarray:
    """A synthetic CT in whole HU."""
    array = np.random.default_rng(0).integers(-200, 300, SHAPE).astype(np.int16)
    array[:, :2] = -1000
    return array


def header(affine: np.ndarray | None = None, **changes: str | None) -> bytes:
    """The header of an NRRD of SHAPE; changes: field (with _ for a blank) -> text, None leaves it out."""
    affine = oblique() if affine is None else affine
    vectors = [
        "(" + ",".join(f"{number!r}" for number in affine[:3, column].tolist()) + ")"
        for column in (2, 1, 0, 3)
    ]
    fields: dict[str, str | None] = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "12 10 9",
        "space directions": " ".join(vectors[:3]),
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": vectors[3],
    }
    fields |= {name.replace("_", " "): text for name, text in changes.items()}
    return (
        b"NRRD0004\n# a comment\n"
        + "".join(f"{name}: {text}\n" for name, text in fields.items() if text is not None).encode()
        + b"\n"
    )


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("kind", ["int16", "uint8", "int32", "float32", "float64"])
def test_what_simpleitk_writes_is_read_as_simpleitk_reads_it(
    tmp_path: Path, suffix: str, compress: bool, kind: str
) -> None:
    array = (hu() % 200 if kind == "uint8" else hu()).astype(kind)
    path = with_itk(tmp_path / f"ct{suffix}", array, oblique(), compress=compress)
    volume, findings = volume_files.read_image(path, check_hu=False)
    theirs = sitk.ReadImage(str(path))
    assert (
        np.array_equal(volume.array, sitk.GetArrayFromImage(theirs))
        and volume.array.dtype == np.float32
        and findings == []
    )
    assert np.abs(volume.affine - oblique()).max() < 1e-9
    corner = theirs.TransformIndexToPhysicalPoint((11, 3, 8))  # i, j, k
    assert np.allclose((volume.affine @ (8, 3, 11, 1))[:3], corner, atol=1e-9)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", (-1, -1, 1)),
        ("RAS", (-1, -1, 1)),
        ("left-anterior-superior", (1, -1, 1)),
        ("LPS", (1, 1, 1)),
    ],
)
def test_every_space_names_the_patients_left(tmp_path: Path, space: str, signs: tuple[int, int, int]) -> None:
    theirs = np.diag([*signs, 1.0]) @ oblique()
    path = write(tmp_path / "ct.nrrd", header(theirs, space=space) + hu().tobytes())
    volume, _ = volume_files.read_image(path)
    assert np.allclose(volume.affine, oblique()) and np.array_equal(volume.array, hu())
    image = sitk.ReadImage(str(path))  # the independent reader agrees
    assert np.allclose((volume.affine @ (8, 3, 11, 1))[:3], image.TransformIndexToPhysicalPoint((11, 3, 8)))


def test_big_endian_and_windows_line_ends(tmp_path: Path) -> None:
    content = header(endian="big", encoding="gzip").replace(b"\n", b"\r\n") + gzip.compress(
        hu().astype(">i2").tobytes()
    )
    assert np.array_equal(volume_files.read_image(write(tmp_path / "ct.nrrd", content))[0].array, hu())


BODY = hu().tobytes()
NAN = hu().astype(np.float32)
NAN[0, 0, :2] = np.nan
PLAIN = "(1.0,0.0,0.0)"
BAD = {
    "cut raw": ("NRRD_TRUNCATED", header() + BODY[:-2]),
    "no voxel": ("NRRD_TRUNCATED", header()),
    "cut gzip": ("NRRD_TRUNCATED", header(encoding="gzip") + gzip.compress(BODY)[:-400]),
    "cut checksum": ("NRRD_TRUNCATED", header(encoding="gzip") + gzip.compress(BODY)[:-4]),
    "header only": ("NRRD_TRUNCATED", header()[:-1]),
    "damaged gzip": (
        "GZIP_CORRUPT",
        header(encoding="gzip") + gzip.compress(BODY)[:100] + b"\x99" * 8 + gzip.compress(BODY)[108:],
    ),
    "bomb": ("TOO_LARGE", header(encoding="gzip") + gzip.compress(BODY + b"\0" * (2 << 20))),
    "nan": ("NONFINITE", header(type="float") + NAN.tobytes()),
    "empty": ("FILE_EMPTY", b""),
    "html": ("NOT_NRRD", b"<!DOCTYPE html><html>"),
    "pointer": ("NOT_NRRD", b"version https://git-lfs.github.com/spec/v1\n"),
    "no space": ("AFFINE_UNKNOWN", header(space=None) + BODY),
    "unknown space": ("AFFINE_UNKNOWN", header(space="scanner-xyz") + BODY),
    "no directions": ("AFFINE_UNKNOWN", header(space_directions=None) + BODY),
    "no origin": ("AFFINE_UNKNOWN", header(space_origin=None) + BODY),
    "two numbers": ("HEADER_IMPLAUSIBLE", header(space_origin="(1,2)") + BODY),
    "parallel axes": ("AFFINE_SINGULAR", header(space_directions=f"{PLAIN} {PLAIN} (0,0,1)") + BODY),
    "nan direction": ("SPACING_NONFINITE", header(space_directions=f"{PLAIN} (0,nan,0) (0,0,1)") + BODY),
    "tiny voxels": ("SPACING_IMPLAUSIBLE", header(space_directions=f"{PLAIN} (0,0.001,0) (0,0,1)") + BODY),
    "metres": ("UNITS_UNSUPPORTED", header(space_units='"m" "m" "m"') + BODY),
    "huge": ("HEADER_IMPLAUSIBLE", header(sizes="32767 32767 32767") + BODY),
    "large": ("TOO_LARGE", header(sizes="4096 4096 4096") + BODY),
    "negative": ("HEADER_IMPLAUSIBLE", header(sizes="12 10 -9") + BODY),
    "no number": ("HEADER_IMPLAUSIBLE", header(sizes="12 10 x") + BODY),
    "four sizes": ("HEADER_IMPLAUSIBLE", header(sizes="12 10 9 1") + BODY),
    "plane": ("NOT_3D", header(dimension="2", sizes="12 10") + BODY),
    "series": (
        "NOT_3D",
        header(
            dimension="4",
            sizes="12 10 3 3",
            space_directions=f"{PLAIN} (0,1,0) (0,0,1) none",
            kinds="domain domain domain time",
        )
        + BODY,
    ),
    "vectors": (
        "NOT_3D",
        header(
            dimension="4",
            sizes="3 12 10 3",
            space_directions=f"none {PLAIN} (0,1,0) (0,0,1)",
            kinds="vector domain domain domain",
        )
        + BODY,
    ),
    "colours": (
        "NOT_SCALAR",
        header(
            dimension="4",
            sizes="3 12 10 3",
            space_directions=f"none {PLAIN} (0,1,0) (0,0,1)",
            kinds="RGB-color domain domain domain",
        )
        + BODY,
    ),
    "block": ("NOT_SCALAR", header(type="block") + BODY),
    "no type": ("HEADER_IMPLAUSIBLE", header(type="complex") + BODY),
    "no byte order": ("HEADER_IMPLAUSIBLE", header(endian=None) + BODY),
    "text": ("ENCODING_UNSUPPORTED", header(encoding="ascii") + b"1 " * 1080),
    "skip": ("ENCODING_UNSUPPORTED", header(byte_skip="-1") + BODY),
    "quantised": ("ENCODING_UNSUPPORTED", header(old_min="-1024", old_max="3071") + BODY),
    "other spacings": ("AFFINE_CONFLICT", header(spacings="0.9 2 3") + BODY),
    "spacings of two axes": ("HEADER_IMPLAUSIBLE", header(spacings="1.5 2") + BODY),
    "metres per axis": ("UNITS_UNSUPPORTED", header(units='"m" "m" "m"') + BODY),
    "gzip as a whole": ("NOT_NRRD", gzip.compress(header() + BODY)),
    "a key with two values": (
        "HEADER_IMPLAUSIBLE",
        header()[:-1] + b"Segment0_LabelValue:=1\nSegment0_LabelValue:=2\n\n" + BODY,
    ),
    "twice": ("HEADER_IMPLAUSIBLE", header()[:-1] + b"sizes: 1 1 1\n\n" + BODY),
    "detached": ("PAIR_UNSUPPORTED", header(data_file="ct.raw")),
    "8 bits": ("NOT_HU", header(type="uchar") + BODY[:1080]),
    "shifted": ("NOT_HU", header() + (hu() + 1024).tobytes()),
    "constant": ("CONSTANT_IMAGE", header() + b"\0" * len(BODY)),
    "small": ("TOO_SMALL", header(sizes="12 10 4") + BODY[: 2 * 480]),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_nrrd(tmp_path: Path, name: str) -> None:
    code, content = BAD[name]
    path = write(tmp_path / "ct.nrrd", content)
    with pytest.raises(CaseError) as caught:
        volume_files.read_image(path)
    assert (caught.value.code, caught.value.file) == (code, str(path))


@pytest.mark.parametrize(
    ("spacings", "told"), [("nan nan nan", []), ("1.5 2.0 3.0", []), ("1.5 2 2.9", ["WARN AFFINE_CONFLICT"])]
)
def test_spacings_are_held_against_the_directions(tmp_path: Path, spacings: str, told: list[str]) -> None:
    volume, findings = volume_files.read_image(write(tmp_path / "ct.nrrd", header(spacings=spacings) + BODY))
    assert np.allclose(volume.affine, oblique()) and [f"{f.severity} {f.code}" for f in findings] == told


def test_bytes_behind_raw_voxels_are_said(tmp_path: Path) -> None:
    volume, findings = volume_files.read_image(write(tmp_path / "ct.nrrd", header() + BODY + b"\0" * 7))
    assert np.array_equal(volume.array, hu()) and [finding.code for finding in findings] == ["TRAILING_BYTES"]


def mha(body: bytes, **changes: str | None) -> bytes:
    fields: dict[str, str | None] = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "1 2 3",
        "ElementSpacing": "1.5 2 3",
        "DimSize": "12 10 9",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }
    fields |= changes
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # the last one
    return "".join(f"{name} = {text}\n" for name, text in fields.items() if text is not None).encode() + body


BAD_MHA = {
    "cut": ("MHA_TRUNCATED", mha(BODY[:-1])),
    "cut zlib": ("MHA_TRUNCATED", mha(zlib.compress(BODY)[:-300], CompressedData="True")),
    "cut header": ("MHA_TRUNCATED", mha(b"")[:60]),
    "nan": ("NONFINITE", mha(NAN.tobytes(), ElementType="MET_FLOAT")),
    "bomb": ("TOO_LARGE", mha(zlib.compress(BODY + b"\0" * (2 << 20)), CompressedData="True")),
    "damaged": ("GZIP_CORRUPT", mha(b"\0" * 90, CompressedData="True")),
    "nrrd": ("NOT_METAIMAGE", header() + BODY),
    "detached": ("PAIR_UNSUPPORTED", mha(b"", ElementDataFile="ct.raw")),
    "no matrix": ("AFFINE_UNKNOWN", mha(BODY, TransformMatrix=None)),
    "no spacing": ("AFFINE_UNKNOWN", mha(BODY, ElementSpacing=None)),
    "zero spacing": ("SPACING_MISSING", mha(BODY, ElementSpacing="1 0 1")),
    "negative spacing": ("SPACING_NEGATIVE", mha(BODY, ElementSpacing="1 -1 1")),
    "short matrix": ("HEADER_IMPLAUSIBLE", mha(BODY, TransformMatrix="1 0 0")),
    "channels": ("NOT_SCALAR", mha(BODY, ElementNumberOfChannels="3")),
    "plane": ("NOT_3D", mha(BODY, NDims="2", DimSize="12 10")),
    "series": ("NOT_3D", mha(BODY, NDims="4", DimSize="12 10 3 3")),
    "text": ("ENCODING_UNSUPPORTED", mha(BODY, BinaryData="False")),
    "scaled": ("ENCODING_UNSUPPORTED", mha(BODY, ElementToIntensityFunctionSlope="2")),
    "huge": ("HEADER_IMPLAUSIBLE", mha(BODY, DimSize="32767 32767 32767")),
    "endless": ("HEADER_IMPLAUSIBLE", mha(BODY, DimSize="12 10 inf")),
    "no size": ("HEADER_IMPLAUSIBLE", mha(BODY, DimSize="12 10 nan")),
    "matrix of another scale": ("AFFINE_CONFLICT", mha(BODY, TransformMatrix="2 0 0 0 2 0 0 0 2")),
    "two origins": ("AFFINE_CONFLICT", mha(BODY, Position="-1 2 3")),
    "two matrices": ("AFFINE_CONFLICT", mha(BODY, Rotation="-1 0 0 0 1 0 0 0 1")),
    "cm": ("UNITS_UNSUPPORTED", mha(BODY, DistanceUnits="cm")),
    "maybe": ("HEADER_IMPLAUSIBLE", mha(BODY, CompressedData="perhaps")),
}


@pytest.mark.parametrize("name", list(BAD_MHA))
def test_bad_metaimage(tmp_path: Path, name: str) -> None:
    code, content = BAD_MHA[name]
    path = write(tmp_path / "ct.mha", content)
    with pytest.raises(CaseError) as caught:
        volume_files.read_image(path)
    assert (caught.value.code, caught.value.file) == (code, str(path))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ElementSize": "1.5 2 3", "Origin": "1 2 3", "Rotation": "1 0 0 0 1 0 0 0 1"}, []),
        ({"ElementSize": "1.5 2 5"}, ["WARN AFFINE_CONFLICT"]),  # thicker than their distance: slices overlap
        ({"Position": "1 2 3.05"}, ["WARN AFFINE_CONFLICT"]),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0 0.98"}, ["WARN AFFINE_CONFLICT"]),
        ({"TransformMatrix": "1 0 0 0.1 0.995 0 0 0 1"}, ["WARN AFFINE_SHEAR"]),
    ],
)
def test_what_a_metaimage_says_twice(tmp_path: Path, changes: dict[str, str], told: list[str]) -> None:
    volume, findings = volume_files.read_image(write(tmp_path / "ct.mha", mha(BODY, **changes)))
    assert (
        np.allclose(volume.affine[:3, 3], [1, 2, 3]) and [f"{f.severity} {f.code}" for f in findings] == told
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header() + BODY, "an NRRD file"),
        (mha(BODY), "a MetaImage file"),
        (b"\0" * 128 + b"DICM" + b"\0" * 300, "a DICOM file"),
        (gzip.compress(header() + BODY), "gzip as a whole"),
    ],
)
def test_a_file_under_the_suffix_of_another_format_is_called_what_it_is(
    tmp_path: Path, content: bytes, said: str
) -> None:
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        try:
            volume_files.read_image(
                write(
                    tmp_path / f"ct{suffix}",
                    gzip.compress(content) if "gzip" in said and suffix == ".nii.gz" else content,
                )
            )
        except CaseError as error:
            assert said in str(error) and error.code.startswith("NOT_")
        else:
            assert suffix[1:] in ("nrrd", "mha") and said == (
                "an NRRD file" if suffix == ".nrrd" else "a MetaImage file"
            )


def test_header_texts_do_not_reach_messages(tmp_path: Path) -> None:
    mark = "DOE^JANE"
    for name, content in (
        ("a.nrrd", header(type=mark) + BODY),
        ("b.nrrd", header(space=mark) + BODY),
        ("c.nrrd", header()[:-1] + f"{mark}: 1\n{mark}: 1\n\n".encode() + BODY),
        ("d.mha", mha(BODY, ElementType=mark)),
        ("e.mha", mha(BODY, Offset=mark)),
        ("f.mha", mha(f"{mark}\n".encode(), ElementDataFile=None)),
    ):
        with pytest.raises(CaseError) as caught:
            volume_files.read_image(write(tmp_path / name, content))
        assert mark.lower() not in str(caught.value).lower()


def test_random_bytes_in_the_header_end_in_a_volume_or_a_named_refusal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, content in enumerate(
        [
            header() + BODY,
            header(encoding="gzip") + gzip.compress(BODY),
            mha(BODY),
            mha(zlib.compress(BODY), CompressedData="True"),
        ]
    ):
        start = content.index(b"\n\n") if number < 2 else content.index(b"LOCAL")
        path = tmp_path / ("ct.nrrd" if number < 2 else "ct.mha")
        for _ in range(150):
            changed = bytearray(content)
            for place in rng.integers(0, start, int(rng.integers(1, 4))):
                changed[place] = int(rng.integers(0, 256))
            try:
                volume, _ = volume_files.read_image(write(path, bytes(changed)))
                assert volume.array.ndim == 3 and np.isfinite(volume.affine).all()
            except CaseError as error:
                assert error.file == str(path)


# ---- segmentations of 3D Slicer ---------------------------------------------------------------------------

KEYS = (
    "Segment0_Name:=liver\nSegment0_LabelValue:=1\nSegment0_Layer:=0\n"
    "Segment1_Name:=lesion\nSegment1_LabelValue:=1\nSegment1_Layer:=1\n"
    "Segment2_Name:=spleen\nSegment2_LabelValue:=2\nSegment2_Layer:=0\n"
)
LAYERED = {
    "dimension": "4",
    "sizes": "2 12 10 9",
    "kinds": "list domain domain domain",
    "type": "unsigned char",
    "space_directions": "none (1.5,0,0) (0,2,0) (0,0,3)",
}


def layers() -> np.ndarray:
    """(2, D, H, W): liver 1 and spleen 2 in the first layer, a lesion inside the liver in the second."""
    array = np.zeros((2, *SHAPE), np.uint8)
    array[0, 2:7, 2:8, 1:6] = 1
    array[0, 2:5, 2:5, 8:11] = 2
    array[1, 3:5, 3:5, 2:4] = 1
    return array


def segmentation(path: Path, keys: str = KEYS, array: np.ndarray | None = None, **changes: str) -> Path:
    array = layers() if array is None else array
    body = np.ascontiguousarray(np.moveaxis(array, 0, 3)).tobytes() if array.ndim == 4 else array.tobytes()
    return write(
        path,
        header(**(LAYERED if array.ndim == 4 else {"type": "uint8"}) | changes)[:-1]
        + keys.encode()
        + b"\n"
        + body,
    )


def test_segments_of_several_layers_overlap_and_keep_their_names(tmp_path: Path) -> None:
    masks = open_masks(segmentation(tmp_path / "a.seg.nrrd"))
    assert masks.names == ("liver", "lesion", "spleen")
    expected = {"liver": layers()[0] == 1, "lesion": layers()[1] == 1, "spleen": layers()[0] == 2}
    for name, mask in expected.items():
        assert masks.read(name).array.dtype == bool and np.array_equal(masks.read(name).array, mask)
    assert (masks.read("liver").array & masks.read("lesion").array).sum() == 8
    assert np.allclose(masks.read("liver").affine[:3, :3], [[0, 0, 1.5], [0, 2, 0], [3, 0, 0]])


def test_one_layer_is_a_label_map_with_names_and_old_files_number_no_values(tmp_path: Path) -> None:
    plain = segmentation(
        tmp_path / "a.seg.nrrd",
        "Segment0_Name:=liver\nSegment0_LabelValue:=1\nSegment1_Name:=spleen\nSegment1_LabelValue:=2\n",
        layers()[0],
    )
    assert nrrd.read_names(plain) == {1: "liver", 2: "spleen"} and np.array_equal(
        volume_files.read_integers(plain)[0].array, layers()[0]
    )
    assert open_masks(plain).names == ("liver", "spleen")
    old = segmentation(
        tmp_path / "old.seg.nrrd", "Segment0_Name:=body\nSegment1_Name:=lesion\n", np.minimum(layers(), 1)
    )
    assert np.array_equal(open_masks(old).read("lesion").array, layers()[1] == 1) and np.array_equal(
        open_masks(old).read("body").array, layers()[0] > 0
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("Segment2_LabelValue:=2", "Segment2_LabelValue:=5"), "LABEL_VALUES"),
        (("Segment2_LabelValue:=2", "Segment2_LabelValue:=two"), "METADATA_INVALID"),
        (("Segment2_Layer:=0", "Segment2_Layer:=2"), "METADATA_INVALID"),
        (("Segment2_Name:=spleen", "Segment2_Name:=liver"), "METADATA_INVALID"),
        (("Segment1_Layer:=1", "Segment1_Layer:=0"), "METADATA_INVALID"),
    ],
)
def test_segments_that_do_not_fit_the_voxels_are_refused(
    tmp_path: Path, change: tuple[str, str], code: str
) -> None:
    with pytest.raises(CaseError, match=code):
        open_masks(segmentation(tmp_path / "a.seg.nrrd", KEYS.replace(*change)))


@pytest.mark.parametrize(("value", "code"), [(np.nan, "NONFINITE"), (0.5, "LABEL_NOT_INTEGER")])
def test_segments_of_values_that_are_no_integers_are_refused(tmp_path: Path, value: float, code: str) -> None:
    array = layers().astype("<f4")
    array[0, 0, 0, 0] = value
    path = segmentation(tmp_path / "a.seg.nrrd", array=array, type="float")
    with pytest.raises(CaseError, match=code) as caught:
        open_masks(path).read("liver")
    assert caught.value.file


def test_a_label_map_whose_segments_do_not_explain_its_voxels_is_refused(tmp_path: Path) -> None:
    """Also where a table beside it has a name for the value."""
    one = "Segment0_Name:=liver\nSegment0_LabelValue:=1\n"
    for keys, code in ((one, "LABEL_VALUES"), (one + "Segment1_Name:=spleen\n", "METADATA_INVALID")):
        with pytest.raises(CaseError, match=code):
            volume_files.read_integers(segmentation(tmp_path / "a.seg.nrrd", keys, layers()[0]))


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [
        ("spleen", "liver", False),
        ("liver", "tumour", False),
        ("Leber", "SPLEEN", True),
        ("Segment_1", "Segment_2", True),
    ],
)
def test_names_in_the_file_are_never_overruled_by_a_table(
    tmp_path: Path, first: str, second: str, fits: bool
) -> None:
    keys = (
        f"Segment0_Name:={first}\nSegment0_LabelValue:=1\nSegment1_Name:={second}\nSegment1_LabelValue:=2\n"
    )
    image = with_itk(tmp_path / "ct.nrrd", hu(), oblique())
    label = segmentation(tmp_path / "a.seg.nrrd", keys, layers()[0])
    (tmp_path / "labels.json").write_text('{"1": "liver", "2": "spleen"}')
    assert open_masks(label).names == (first, second)
    record = CaseRecord(
        "a", "a", ImageSource("nrrd", image), LabelSource("map", label, {1: "liver", 2: "spleen"})
    )
    if fits:
        assert np.array_equal(
            load_case.load_case(record, ["liver", "spleen"], root=tmp_path).label.array, layers()[0]
        )
        return
    with pytest.raises(
        CaseError,
        match=rf"ORGAN_MAP_MISMATCH case=a file=a.seg.nrrd: the file itself calls the value \d "
        rf"'({first}|{second})'",
    ):
        load_case.load_case(record, ["liver", "spleen"], root=tmp_path)


def test_layers_are_no_label_map(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="NOT_3D"):
        volume_files.read_integers(segmentation(tmp_path / "a.seg.nrrd"))


def test_organs_in_files_of_their_own(tmp_path: Path) -> None:
    for name, mask in (("liver", layers()[0] == 1), ("lesion", layers()[1] == 1)):
        with_itk(tmp_path / f"{name}.nrrd", mask.astype(np.uint8), oblique())
    masks = open_masks(tmp_path)
    assert masks.names == ("lesion", "liver") and np.array_equal(masks.read("liver").array, layers()[0] == 1)


# ---- where such files go in -------------------------------------------------------------------------------


def test_scans_in_a_folder_are_found_and_a_detached_header_is_refused_by_name(tmp_path: Path) -> None:
    with_itk(tmp_path / "a.nrrd", hu(), oblique())
    with_itk(tmp_path / "b.mha", hu(), oblique())
    write(tmp_path / "c.nhdr", header(data_file="c.raw"))
    write(tmp_path / "d.mhd", mha(b"", ElementDataFile="d.raw"))
    segmentation(tmp_path / "a.seg.nrrd")
    found = search(tmp_path)[0]
    assert {name: source.format for name, source in found.items()} == {
        "a": "nrrd",
        "b": "metaimage",
        "c": "nrrd",
        "d": "metaimage",
    }
    one, other = (load_case.load_image(found[name])[0] for name in "ab")
    assert (
        np.array_equal(one.array, hu())
        and np.array_equal(other.array, hu())
        and np.abs(one.affine - other.affine).max() < 1e-9
    )
    for name in "cd":
        with pytest.raises(CaseError, match="PAIR_UNSUPPORTED"):
            load_case.load_image(found[name])
    with_itk(tmp_path / "a.nii", hu(), oblique())
    with pytest.raises(UsageError, match=r"a\.nii and a\.nrrd are both called 'a'"):
        search(tmp_path)


def nrrd_case(root: Path, image: Path, label: Path) -> None:
    phantom = small_phantom(seed=1)
    for path, volume in (
        (image, Volume(phantom.image.array.astype(np.int16), phantom.image.affine)),
        (label, phantom.label),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        with_itk(root / path, volume.array, volume.affine)


def test_training_data_in_nrrd_are_read_like_nifti(tmp_path: Path) -> None:
    phantom = small_phantom(seed=1)
    labels = {name: value for value, name in phantom.names.items()}
    nrrd_case(tmp_path / "plain", Path("c1/ct.nrrd"), Path("c1/labels.seg.nrrd"))
    write_json(tmp_path / "plain" / "manifest.json", {"labels": labels, "cases": [{"case": "c1"}]})
    nrrd_case(tmp_path / "nnunet" / "Dataset001_X", Path("imagesTr/c1_0000.nrrd"), Path("labelsTr/c1.nrrd"))
    write_json(
        tmp_path / "nnunet" / "Dataset001_X" / "dataset.json",
        {"channel_names": {"0": "CT"}, "labels": {"background": 0, **labels}, "file_ending": ".nrrd"},
    )
    for layout in ("plain", "nnunet"):
        (case,) = open_data_set(tmp_path / layout).cases
        assert case.image.format == "nrrd"
        loaded = load_case.load_case(case, list(labels), root=tmp_path / layout)
        assert np.array_equal(loaded.image.array, phantom.image.array) and np.array_equal(
            loaded.label.array, phantom.label.array
        )
        assert set(loaded.states.values()) == {"present"} and len(case_sources.source_hash(case)) == 64
        assert (
            case_sources.source_from_record(case_sources.source_to_record(case, tmp_path), tmp_path) == case
        )


def test_names_of_files(tmp_path: Path) -> None:
    names = {"a.nrrd": "a", "a.seg.nrrd": "a", "a.NII.GZ": "a", "b.mha": "b", "b.nhdr": None, "b.dcm": None}
    assert {name: listing.volume_stem(Path(name)) for name in names} == names
    with pytest.raises(PreconditionError, match="NO_DATA"):
        open_masks(tmp_path)


# ---- real files -------------------------------------------------------------------------------------------


@pytest.mark.real
def test_the_real_nrrd_equals_its_dicom_series_and_simpleitk(real_data: Path) -> None:
    folder = real_data / "cip" / "Testing" / "Data" / "Input"
    volume, _ = volume_files.read_image(folder / "ct-64.nrrd")
    series, _ = dicom_series.read_series(folder / "ct-64Dicom")
    # the series states 6 digits
    assert np.array_equal(volume.array, series.array) and volume.grid.corner_distance_mm(series.grid) < 1e-3
    assert np.array_equal(
        volume.array, np.maximum(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "ct-64.nrrd"))), -1024)
    )
    assert load_case.load_image(listing.image_source(folder / "TestInput.nrrd"))[1][0].code == "PADDING"


@pytest.mark.real
def test_real_label_maps_equal_simpleitk(real_data: Path) -> None:
    files = [*sorted((real_data / "cip").rglob("*-64.nrrd")), *sorted((real_data / "dcmqi").rglob("*.nrrd"))]
    assert len(files) > 12
    for path in files:
        theirs = sitk.ReadImage(str(path))
        volume, findings = volume_files.read_integers(path)
        assert np.array_equal(volume.array, sitk.GetArrayFromImage(theirs)) and findings == [], path.name
        last = [n - 1 for n in theirs.GetSize()]
        assert np.allclose(
            (volume.affine @ (*last[::-1], 1))[:3], theirs.TransformIndexToPhysicalPoint(last)
        ), path.name


@pytest.mark.real
def test_a_real_nrrd_written_as_nifti_lies_on_the_same_grid(real_data: Path, tmp_path: Path) -> None:
    volume, _ = volume_files.read_integers(real_data / "cip" / "Testing" / "Data" / "Input" / "lm-64.nrrd")
    nifti.write_label(tmp_path / "lm.nii.gz", volume)
    assert volume_files.read_integers(tmp_path / "lm.nii.gz")[0].grid.matches(volume.grid)
