"""MetaImage files (.mha): read with every check before use, in the order of `nifti`; `.mhd`, a detached
header, is refused by name.

The header is parsed here and the voxels are taken by us: SimpleITK fills a file that was cut off with zeros,
turns NaN into 0 and accepts a field that stands twice. Axes are left, posterior, superior, as ITK has them;
the three numbers of each axis stand together in TransformMatrix. AnatomicalOrientation, a comment on that
matrix, is not used. Format: https://itk.org/Wiki/MetaIO/Documentation.
"""

import itertools
import math
from pathlib import Path

import numpy as np

from ctseg.errors import Finding, Findings
from ctseg.geometry.tolerances import EQUAL
from ctseg.geometry.volume import Grid
from ctseg.scans.formats import checks
from ctseg.scans.formats.regular_files import (
    AGAIN,
    EXPORT,
    implausible,
    not_3d,
    read_regular,
    refuse,
    wrong_kind,
)
from ctseg.scans.formats.stored_values import Content, Fields, Stored

HEADER_LIMIT = 1 << 20  # bytes
TRUNCATED = "MHA_TRUNCATED"
_ONE_FILE = "save it as one .mha file"
# One thing under three names each.
_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_ORIGINS = ("Offset", "Position", "Origin")
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


def read(path: Path) -> Stored:
    """What stands in the file, checked; errors and findings do not name it."""
    if path.suffix.lower() == ".mhd":
        raise refuse("PAIR_UNSUPPORTED", "a detached header, whose voxels lie in another file", _ONE_FILE)
    data = read_regular(path)
    fields, start = _parse(data)
    (count,) = fields.numbers("NDims", 1)
    if count not in (2, 3, 4) or fields.get("ObjectType", "Image").lower() != "image":
        raise not_3d("it is no volume")
    lengths = fields.numbers("DimSize", int(count))
    if min(lengths) < 1 or not all(n.is_integer() for n in lengths):
        raise implausible("the dimensions are no numbers of voxels")
    shape, findings = checks.check_axes([int(n) for n in lengths])
    dtype = _check_type(fields)
    checks.check_memory(math.prod(shape), dtype.itemsize)
    affine, notes = _affine(fields, shape)
    content = Content(memoryview(data)[start:], zipped=_flag(fields, "CompressedData"), truncated=TRUNCATED)
    array, rest = content.voxels(shape, dtype)
    return Stored(array, affine, findings + notes + rest)


def _parse(data: bytes) -> tuple[Fields, int]:
    """(fields, where the voxels begin)."""
    fields, start = Fields(), 0
    while "ElementDataFile" not in fields:
        end = data.find(b"\n", start, HEADER_LIMIT)
        line = data[start : end if end >= 0 else start + 256]
        name, separator, value = line.decode("latin-1").partition("=")
        name = name.strip()
        if not fields and not (separator and name in _FIRST):
            raise wrong_kind(data[:256], "NOT_METAIMAGE", "a MetaImage header")
        if end < 0:
            raise refuse(TRUNCATED, "the file ends inside the header", AGAIN)
        if not separator or name in fields:
            raise implausible(f"line {len(fields) + 1} of the header is no field, or one that stands twice")
        fields[name] = value.strip()
        start = end + 1
    if fields["ElementDataFile"].upper() != "LOCAL":
        raise refuse("PAIR_UNSUPPORTED", "its voxels lie in another file", _ONE_FILE)
    return fields, start


def _flag(fields: Fields, name: str, default: str = "False") -> bool:
    text = fields.get(name, default).lower()
    if text not in ("true", "false", "1", "0"):
        raise implausible(f"'{name}' is neither True nor False")
    return text in ("true", "1")


def _check_type(fields: Fields) -> np.dtype:
    kind = fields["ElementType"]
    if fields.get("ElementNumberOfChannels", "1") != "1" or kind.endswith("_ARRAY"):
        raise refuse("NOT_SCALAR", "several values for each voxel", "export the scan as one number per voxel")
    if kind not in _TYPES or not _flag(fields, "BinaryData", "True"):
        cause = "its voxels are no binary numbers of a known type"
        raise refuse("ENCODING_UNSUPPORTED", cause, "export the scan as 16-bit integers")
    if fields.get("HeaderSize", "0") != "0":
        cause = "bytes stand between the header and the voxels"
        raise refuse("ENCODING_UNSUPPORTED", cause, "save it again as one plain .mha file")
    for name, neutral in (("Slope", 1.0), ("Offset", 0.0)):
        name = f"ElementToIntensityFunction{name}"
        if name in fields and fields.numbers(name, 1) != [neutral]:
            cause = "its intensities are scaled"
            raise refuse("ENCODING_UNSUPPORTED", cause, "save the scan in Hounsfield units")
    big = any(_flag(fields, name) for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"))
    return np.dtype((">" if big else "<") + _TYPES[kind])


def _affine(fields: Fields, shape: tuple[int, int, int]) -> tuple[np.ndarray, Findings]:
    """The affine of the Volume, and what was noticed: the first axis of the file is W, the last D. Synonyms
    must say the same; ElementSize may differ from ElementSpacing, which counts: slices may be thicker or
    thinner than their step."""
    count = int(fields["NDims"])
    if fields.get("DistanceUnits", "mm").lower() not in ("mm", "?"):
        raise refuse("UNITS_UNSUPPORTED", "lengths are not in mm", "export the scan in mm")
    matrices, origins = ([name for name in options if name in fields] for options in (_MATRICES, _ORIGINS))
    if not (matrices and origins and "ElementSpacing" in fields):
        cause = "TransformMatrix, Offset or ElementSpacing is missing, so its place in the patient is unknown"
        raise refuse("AFFINE_UNKNOWN", cause, "export the scan with its geometry")
    spacing = np.array(fields.numbers("ElementSpacing", count))[:3]
    if (spacing <= 0).any():
        code = "SPACING_MISSING" if (spacing == 0).any() else "SPACING_NEGATIVE"
        raise refuse(code, "a voxel size is not positive", EXPORT)
    affines = []
    for matrix, origin in itertools.product(matrices, origins):
        directions = np.array(fields.numbers(matrix, count * count)).reshape(count, count)[:3, :3]
        affine = np.eye(4)
        affine[:3, :3] = (directions * spacing[:, None])[::-1].T  # rows are axes W, H, D
        affine[:3, 3] = fields.numbers(origin, count)[:3]
        affines.append((matrix, origin, affine))
    affine = affines[0][2]
    findings = checks.check_affine(affine)
    findings += checks.check_voxel_size(affine, spacing[::-1], "ElementSpacing")
    for matrix, origin, other in affines:
        cause = f"{matrices[0]} and {origins[0]} put the scan elsewhere than {matrix} and {origin}"
        off = Grid(shape, affine).off_by(Grid(shape, other))
        fix = "leave one of each in the header"
        findings += checks.agreement(off, "AFFINE_CONFLICT", cause, "the former count", fix)
    size = np.array(fields.numbers("ElementSize", count) if "ElementSize" in fields else spacing)[:3]
    if float(np.max(np.abs(size - spacing) / spacing)) > EQUAL:
        theirs, ours = checks.times(size, 5), checks.times(spacing, 5)
        cause = f"ElementSize says {theirs} mm, ElementSpacing {ours} mm, which is used"
        fix = "nothing to do if the slices overlap or leave gaps"
        findings.append(Finding("WARN", "AFFINE_CONFLICT", cause, fix))
    return affine, findings
