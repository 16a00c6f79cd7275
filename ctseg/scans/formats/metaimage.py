"""MetaImage files (.mha): read with every check before use, in the order of `nifti`; `.mhd`, a detached header, is refused by name.

The header is parsed here and the voxels are taken by us: other readers fill a file that was cut off with zeros and turn NaN into 0.
Axes are left, posterior, superior, as ITK has them; the three numbers of each axis stand together in TransformMatrix. AnatomicalOrientation, a
comment on that matrix, is not used. Format: https://itk.org/Wiki/MetaIO/Documentation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctseg.errors import Finding
from ctseg.geometry.tolerances import EQUAL
from ctseg.geometry.volume import Grid, Volume
from ctseg.scans.formats import checks
from ctseg.scans.formats.checks import refuse
from ctseg.scans.formats.stored_values import Content, Stored, image_of, integers_of, mask_of

HEADER_LIMIT = 1 << 20  # bytes
TRUNCATED = "MHA_TRUNCATED"
_FIX = "export the scan again"
_MATRICES, _ORIGINS = (
    ("TransformMatrix", "Rotation", "Orientation"),
    ("Offset", "Position", "Origin"),
)  # one thing under three names
_FIRST = ("ObjectType", "NDims", "Comment")  # how a header begins
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def read_image(path: str | Path, *, check_hu: bool = True) -> tuple[Volume, list[Finding]]:
    """The CT of a MetaImage file; see `nifti.read_image`."""
    path = Path(path)
    return image_of(_read(path), path, check_hu=check_hu)


def read_integers(path: str | Path) -> tuple[Volume, list[Finding]]:
    """The integers of a label file as int32 (D, H, W); see `nifti.read_integers`."""
    path = Path(path)
    return integers_of(_read(path), path)


def read_mask(path: str | Path) -> tuple[Volume, list[Finding]]:
    """Integers, or the probabilities of one structure; see `stored.mask_of`."""
    path = Path(path)
    return mask_of(_read(path), path)


# ---- reading ----------------------------------------------------------------------------------------------


def _read(path: Path) -> Stored:
    data = checks.read_regular(path)
    fields, start = _parse(path, data)
    shape, findings = _check_shape(fields, path)
    dtype = _check_type(fields, path)
    checks.check_memory(shape[0] * shape[1] * shape[2], dtype.itemsize, path)
    affine, notes = _affine(fields, shape, path)
    findings += notes
    zipped = _flag(fields, "CompressedData", path)
    content = Content(path, memoryview(data)[start:], zipped=zipped, truncated=TRUNCATED)
    size = shape[0] * shape[1] * shape[2] * dtype.itemsize
    voxels = content.take(size)
    if len(voxels) < size:
        raise refuse(
            TRUNCATED,
            f"the voxels end at byte {len(voxels)} of {size}",
            "copy or download the file again",
            path,
        )
    findings += content.finish(size)
    return Stored(np.frombuffer(voxels, dtype).reshape(shape), 1.0, 0.0, affine, findings)


def _parse(path: Path, data: bytes) -> tuple[dict[str, str], int]:
    """({field: text}, where the voxels begin)."""
    if path.suffix.lower() == ".mhd":
        raise refuse(
            "PAIR_UNSUPPORTED",
            "a detached header, whose voxels lie in another file",
            "save it as one .mha file",
            path,
        )
    fields: dict[str, str] = {}
    start = 0
    while "ElementDataFile" not in fields:
        end = data.find(b"\n", start, HEADER_LIMIT)
        line = data[start : end if end >= 0 else start + 256]
        name, separator, value = line.decode("latin-1").partition("=")
        name = name.strip()
        if not fields and not (separator and name in _FIRST):
            raise checks.wrong_kind(path, data[:256], "NOT_METAIMAGE", "a MetaImage header")
        if end < 0:
            raise refuse(
                TRUNCATED, "the file ends inside the header", "copy or download the file again", path
            )
        if not separator or name in fields:
            raise refuse(
                "HEADER_IMPLAUSIBLE",
                f"line {len(fields) + 1} of the header is no field, or one that stands twice",
                _FIX,
                path,
            )
        fields[name] = value.strip()
        start = end + 1
    if fields["ElementDataFile"].upper() != "LOCAL":
        raise refuse("PAIR_UNSUPPORTED", "its voxels lie in another file", "save it as one .mha file", path)
    return fields, start


def _numbers(fields: dict[str, str], name: str, count: int, path: Path) -> list[float]:
    try:
        numbers = [float(word) for word in fields.get(name, "").split()]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise refuse("HEADER_IMPLAUSIBLE", f"'{name}' does not hold {count} numbers", _FIX, path)
    return numbers


def _flag(fields: dict[str, str], name: str, path: Path) -> bool:
    text = fields.get(name, "False").lower()
    if text not in ("true", "false", "1", "0"):
        raise refuse("HEADER_IMPLAUSIBLE", f"'{name}' is neither True nor False", _FIX, path)
    return text in ("true", "1")


def _check_shape(fields: dict[str, str], path: Path) -> tuple[tuple[int, int, int], list[Finding]]:
    (count,) = _numbers(fields, "NDims", 1, path)
    if count not in (2, 3, 4) or fields.get("ObjectType", "Image").lower() != "image":
        raise refuse("NOT_3D", "it is no volume", "give one 3D volume per file", path)
    lengths = _numbers(fields, "DimSize", int(count), path)
    if min(lengths) < 1 or not all(n == int(n) for n in lengths):
        raise refuse("HEADER_IMPLAUSIBLE", "the dimensions are no numbers of voxels", _FIX, path)
    if count < 3 or any(n > 1 for n in lengths[3:]):
        raise refuse("NOT_3D", f"shape {tuple(int(n) for n in lengths)}", "give one 3D volume per file", path)
    note = (
        [Finding("WARN", "NOT_3D", "a further axis of length 1 was dropped", file=str(path))]
        if count == 4
        else []
    )
    return (int(lengths[2]), int(lengths[1]), int(lengths[0])), note


def _check_type(fields: dict[str, str], path: Path) -> np.dtype:
    if fields.get("ElementNumberOfChannels", "1") != "1" or fields.get("ElementType", "").endswith("_ARRAY"):
        raise refuse(
            "NOT_SCALAR", "several values for each voxel", "export the scan as one number per voxel", path
        )
    if fields.get("ElementType") not in _TYPES or not _flag(
        {"BinaryData": "True"} | fields, "BinaryData", path
    ):
        raise refuse(
            "ENCODING_UNSUPPORTED",
            "its voxels are no binary numbers of a known type",
            "export the scan as 16-bit integers",
            path,
        )
    if fields.get("HeaderSize", "0") != "0":
        raise refuse(
            "ENCODING_UNSUPPORTED",
            "bytes stand between the header and the voxels",
            "save it again as one plain .mha file",
            path,
        )
    for name, neutral in (
        ("ElementToIntensityFunctionSlope", 1.0),
        ("ElementToIntensityFunctionOffset", 0.0),
    ):
        if name in fields and _numbers(fields, name, 1, path) != [neutral]:
            raise refuse(
                "ENCODING_UNSUPPORTED",
                "its intensities are scaled",
                "save the scan in Hounsfield units",
                path,
            )
    big = any(_flag(fields, name, path) for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"))
    return np.dtype((">" if big else "<") + _TYPES[fields["ElementType"]])


def _affine(
    fields: dict[str, str], shape: tuple[int, int, int], path: Path
) -> tuple[np.ndarray, list[Finding]]:
    """The affine of the Volume, and what was noticed: the first axis of the file is W, the last D. Synonyms must say the same."""
    count = int(fields["NDims"])
    if fields.get("DistanceUnits", "mm").lower() not in ("mm", "?"):
        raise refuse("UNITS_UNSUPPORTED", "lengths are not in mm", "export the scan in mm", path)
    matrices, origins = ([name for name in options if name in fields] for options in (_MATRICES, _ORIGINS))
    if not (matrices and origins and "ElementSpacing" in fields):
        raise refuse(
            "AFFINE_UNKNOWN",
            "TransformMatrix, Offset or ElementSpacing is missing, so its place in the patient is unknown",
            "export the scan with its geometry",
            path,
        )
    spacing = np.array(_numbers(fields, "ElementSpacing", count, path))[:3]
    if (spacing <= 0).any():
        raise refuse(
            "SPACING_MISSING" if (spacing == 0).any() else "SPACING_NEGATIVE",
            "a voxel size is not positive",
            _FIX,
            path,
        )

    def placed(matrix: str, origin: str) -> np.ndarray:
        directions = np.array(_numbers(fields, matrix, count * count, path)).reshape(count, count)[:3, :3]
        affine = np.eye(4)
        affine[:3, :3] = (directions * spacing[:, None])[::-1].T  # rows are axes W, H, D
        affine[:3, 3] = _numbers(fields, origin, count, path)[:3]
        return affine

    affine = placed(matrices[0], origins[0])
    findings = checks.check_affine(affine, path) + checks.check_voxel_size(
        affine, spacing[::-1], "ElementSpacing", path
    )
    grid = Grid(shape, affine)
    for matrix, origin in ((matrix, origin) for matrix in matrices for origin in origins):
        cause = f"{matrices[0]} and {origins[0]} put the scan elsewhere than {matrix} and {origin}"
        findings += checks.agreement(
            grid.off_by(Grid(shape, placed(matrix, origin))),
            "AFFINE_CONFLICT",
            cause,
            "the former count",
            "leave one of each in the header",
            path,
        )
    if "ElementSize" in fields:
        findings += _check_size(np.array(_numbers(fields, "ElementSize", count, path))[:3], spacing, path)
    return affine, findings


def _check_size(size: np.ndarray, spacing: np.ndarray, path: Path) -> list[Finding]:
    """Hold ElementSize against ElementSpacing, which counts: slices may be thicker or thinner than their distance."""
    if float(np.max(np.abs(size - spacing) / spacing)) <= EQUAL:
        return []
    theirs, ours = (" x ".join(f"{n:.5g}" for n in numbers) for numbers in (size, spacing))
    cause = f"ElementSize says {theirs} mm, ElementSpacing {ours} mm, which is used"
    return [
        Finding(
            "WARN",
            "AFFINE_CONFLICT",
            cause,
            "nothing to do if the slices overlap or leave gaps",
            file=str(path),
        )
    ]
