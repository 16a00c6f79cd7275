"""NRRD files (.nrrd) and the segmentations of 3D Slicer (.seg.nrrd): read with every check before use.

The order is that of `nifti`: regular file, magic bytes, header, memory, data bounded to the declared size,
finiteness, geometry, intensities. SimpleITK and pynrrd refuse cut files too; the header is parsed here
because it must say where the patient's left is (a `space` and `space directions`), in one of its forms and
without contradiction. Format: https://teem.sourceforge.net/nrrd/format.html.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ctseg.errors import Finding, Findings
from ctseg.geometry.volume import Volume
from ctseg.scans.formats import checks
from ctseg.scans.formats.regular_files import (
    AGAIN,
    at_file,
    implausible,
    located,
    not_3d,
    read_regular,
    refuse,
    wrong_kind,
)
from ctseg.scans.formats.stored_values import Content, Fields, Stored, integers_of

HEADER_LIMIT = 4 << 20  # bytes; a segmentation of a hundred structures needs 100 kB
TRUNCATED = "NRRD_TRUNCATED"
_ONE_FILE = "save it as one .nrrd file"
_DRAW_AGAIN = "save the segmentation again from the tool that drew it"
_TYPES = {  # NumPy's type -> the format's names for it
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
_CODES = {name: code for code, names in _TYPES.items() for name in names.split(", ")}
# Spaces that say where the patient's left is; others do not.
_SPACES = (
    "left-posterior-superior",
    "lps",
    "right-anterior-superior",
    "ras",
    "left-anterior-superior",
    "las",
)
_MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", ""}
# An axis that holds several values of a voxel, without the structure of a colour or tensor.
_LIST_KINDS = {"list", "none", "???", "stub", "vector", "point"}


# Name -> (layer, value) of the segments of a 3D Slicer segmentation: the voxels of a segment hold its value
# in its layer. Those of different layers may overlap.
Segments = dict[str, tuple[int, int]]


@dataclasses.dataclass
class Header:
    """What stands before the voxels, and the bytes behind it.

    fields: by their names in lower case; values: key -> text (`:=`); axis: which axis of the file counts the
    layers, None where there is one layer alone; shape: (D, H, W); directions: the words of "space directions"
    for W, H, D, "(1,0,0)".
    """

    fields: Fields
    values: dict[str, str]
    data: memoryview
    layers: int
    axis: int | None
    shape: tuple[int, int, int]
    directions: list[str]


def read(path: Path) -> Stored:
    """What stands in a file of one layer, checked; errors and findings do not name it."""
    header = _parse(path, read_regular(path))
    stored, segments = _read(header), _segments(header)
    if header.layers > 1 and segments:
        fix = "export it as one label map, or as one file per structure"
        raise refuse("NOT_3D", f"its segments lie in {header.layers} layers and may overlap", fix)
    if header.layers > 1:
        raise not_3d(f"{header.layers} values for each voxel")
    if segments:
        _check_values(segments, stored.array)
    if header.axis is not None:
        stored.findings.append(Finding("WARN", "NOT_3D", "a further axis of length 1 was dropped"))
    return dataclasses.replace(stored, array=stored.array[0])


def read_names(path: Path) -> dict[int, str]:
    """Value -> name from the segments that a file describes; empty without any, and where they lie in several
    layers."""
    segments = list_segments(path)
    one_layer = all(layer == 0 for layer, _ in segments.values())
    return {value: name for name, (_, value) in segments.items()} if one_layer else {}


def list_segments(path: Path) -> Segments:
    """The segments that a file describes, in their order; empty for a plain image or label map. Reads the
    header alone."""
    with at_file(path):
        return _segments(_parse(path, read_regular(path, HEADER_LIMIT)))


def read_segments(path: Path) -> tuple[tuple[str, ...], Callable[[str], Volume], Findings]:
    """(names of the segments, the mask of one: a Volume of bool, what was noticed). The file is read once."""
    with at_file(path):
        header = _parse(path, read_regular(path))
        labels, findings = integers_of(_read(header))
        segments = _segments(header)
        _check_values(segments, labels.array)

    def read_segment(name: str) -> Volume:
        layer, value = segments[name]
        return Volume(labels.array[layer] == value, labels.affine)

    return tuple(segments), read_segment, located(findings, path)


# ---- header -----------------------------------------------------------------------------------------------


def _parse(path: Path, data: bytes) -> Header:
    if path.suffix.lower() == ".nhdr":
        raise refuse("PAIR_UNSUPPORTED", "a detached header, whose voxels lie in another file", _ONE_FILE)
    if not re.match(rb"NRRD000\d\r?\n", data[:16]):
        raise wrong_kind(data[:256], "NOT_NRRD", "an NRRD header")
    header = data[:HEADER_LIMIT]
    end = re.search(rb"\r?\n\r?\n", header)
    text = header[: end.start() if end else None].decode("utf-8", errors="replace")
    fields, values = Fields(), Fields()
    for line in text.splitlines()[1:]:
        if line.startswith("#"):
            continue
        key, separator, value = line.partition(":=")
        if separator and ":" not in key:
            if values.setdefault(key, value) != value:
                raise implausible("a key stands twice with two values")
            continue
        name, _, content = line.partition(":")
        name = name.strip().lower()
        if name in fields:
            shown = name if re.fullmatch(r"[a-z ]{1,32}", name) else "?"
            raise implausible(f"the field '{shown}' stands twice")
        fields[name] = content.strip()
    if "data file" in fields or "datafile" in fields:
        raise refuse("PAIR_UNSUPPORTED", "its voxels lie in another file", _ONE_FILE)
    if end is None:
        raise refuse(TRUNCATED, f"no end of the header in the first {len(header)} bytes", AGAIN)
    return Header(fields, values, memoryview(data)[end.end() :], *_check_sizes(fields))


def _check_sizes(fields: Fields) -> tuple[int, int | None, tuple[int, int, int], list[str]]:
    """What sizes, kinds and directions say of the axes: the last four fields of a Header."""
    sizes = [int(size) for size in fields.numbers("sizes", kind=int)]
    count = len(sizes)
    if fields["dimension"].split() != [str(count)] or not sizes or min(sizes) < 1:
        raise implausible("dimension and sizes do not fit together")
    kinds = fields["kinds"].lower().split() or ["domain"] * count
    directions = re.findall(r"\([^()]*\)|none", re.sub(r"\s", "", fields["space directions"].lower()))
    outside = [number for number, vector in enumerate(directions) if vector == "none"]
    if count == 3 and outside:
        raise not_3d("one of its three axes lies outside space (a picture of several values)")
    if count != 3 and (count != 4 or len(kinds) != 4 or outside not in ([0], [3])):
        raise not_3d(f"sizes {tuple(sizes)}")
    layers, axis = 1, None
    if outside:
        (axis,) = outside
        layers = sizes.pop(axis)
        directions.pop(axis)
        if kinds[axis] not in _LIST_KINDS and layers != 1:
            code = "NOT_3D" if kinds[axis] in ("domain", "time", "space") else "NOT_SCALAR"
            raise refuse(code, "several values for each voxel", "export the scan as one number per voxel")
    w, h, d = sizes
    return layers, axis, (d, h, w), directions


def _read(header: Header) -> Stored:
    """The stored array (layers, D, H, W)."""
    dtype = _check_type(header.fields)
    checks.check_memory(header.layers * math.prod(header.shape), dtype.itemsize)
    affine, findings = _affine(header)
    encoding = header.fields["encoding"].lower()
    if encoding not in ("raw", "gzip", "gz"):
        fix = "save it again, raw or compressed with gzip"
        raise refuse("ENCODING_UNSUPPORTED", "its voxels are neither raw nor gzip", fix)
    for name in ("byte skip", "byteskip", "line skip", "lineskip"):
        if header.fields.get(name, "0") != "0":
            cause = "bytes or lines stand between the header and the voxels"
            raise refuse("ENCODING_UNSUPPORTED", cause, "save it again as one plain .nrrd file")
    content = Content(header.data, zipped=encoding != "raw", truncated=TRUNCATED)
    if header.axis == 0:  # the values of one voxel lie side by side
        array, notes = content.voxels((*header.shape, header.layers), dtype)
        array = np.moveaxis(array, 3, 0)
    else:
        array, notes = content.voxels((header.layers, *header.shape), dtype)
    return Stored(array, affine, findings + notes)


def _check_type(fields: Fields) -> np.dtype:
    name = " ".join(fields["type"].lower().split())
    if name not in _CODES:
        code = "NOT_SCALAR" if name == "block" else "HEADER_IMPLAUSIBLE"
        raise refuse(code, "its type is no number", "export the scan as 16-bit integers")
    if {"old min", "oldmin", "old max", "oldmax"} & set(fields):
        cause = "its intensities are scaled ('old min', 'old max')"
        raise refuse("ENCODING_UNSUPPORTED", cause, "save the scan in Hounsfield units")
    order = {"little": "<", "big": ">"}.get(fields["endian"].lower(), "")
    if not order and np.dtype(_CODES[name]).itemsize > 1:
        raise implausible("the byte order is not given")
    return np.dtype(order + _CODES[name])


def _affine(header: Header) -> tuple[np.ndarray, Findings]:
    """The affine of the Volume: the first axis of space in the file is W, the last D.

    'spacings', where some writer gives them too, must agree.
    """
    fields, fix = header.fields, "export the scan with its geometry"
    space, origin = fields["space"].lower(), re.sub(r"\s", "", fields["space origin"])
    if space not in _SPACES:
        cause = (
            "its 'space' does not name the patient's left, back and head" if space else "no 'space' is given"
        )
        cause += ", so left and right are unknown"
        raise refuse("AFFINE_UNKNOWN", cause, f"{fix} (left-posterior-superior)")
    units = f"{fields['space units']} {fields['units']}".lower()
    if not set(re.findall(r'"([^"]*)"', units)) <= _MILLIMETRES:
        raise refuse("UNITS_UNSUPPORTED", "lengths are not in mm", "export the scan in mm")
    if len(header.directions) != 3 or not origin:
        raise refuse("AFFINE_UNKNOWN", "'space directions' or 'space origin' is missing", fix)
    signs = [1 if word[0] in "lps" else -1 for word in (space.split("-") if "-" in space else space)]
    affine = np.eye(4)
    try:
        for column, text in zip((2, 1, 0, 3), (*header.directions, origin)):
            x, y, z = (float(number) for number in text.strip("()").split(","))
            affine[:3, column] = np.multiply((x, y, z), signs)
    except ValueError:
        cause = "'space directions' or 'space origin' holds something else than three numbers"
        raise implausible(cause) from None
    findings = checks.check_affine(affine)
    spacings = [size for axis, size in enumerate(fields.numbers("spacings")) if axis != header.axis]
    if np.isnan(spacings).all():  # none, or the format's word for "not given"
        return affine, findings
    if len(spacings) != 3:
        raise implausible("'spacings' does not hold a number for each axis")
    return affine, findings + checks.check_voxel_size(affine, np.array(spacings[::-1]), "'spacings'")


# ---- segments ---------------------------------------------------------------------------------------------


def _segments(header: Header) -> Segments:
    """What the keys Segment0_Name, Segment0_LabelValue and Segment0_Layer say. Older files number no values:
    each layer is one segment."""
    keys = [re.fullmatch(r"Segment(\d{1,4})_(?:Name|ID)", key) for key in header.values]
    numbers = sorted({int(found[1]) for found in keys if found})
    segments: Segments = {}
    for place, number in enumerate(numbers):
        name, called, value, layer = (
            header.values.get(f"Segment{number}_{key}") for key in ("Name", "ID", "LabelValue", "Layer")
        )
        if value is None and len(numbers) == header.layers:
            value, layer = "1", str(place) if layer is None else layer
        try:
            segments[(name or called or "").strip()] = int(layer or 0), int(value or "")
        except ValueError:
            raise refuse("METADATA_INVALID", "a segment has no label value", _DRAW_AGAIN) from None
    if "" in segments or not all(
        0 <= layer < header.layers and value > 0 for layer, value in segments.values()
    ):
        cause = "a segment has no name, or lies in no layer of the file"
        raise refuse("METADATA_INVALID", cause, _DRAW_AGAIN)
    if len(set(segments.values())) < len(numbers):
        raise refuse("METADATA_INVALID", "two segments have the same name or the same voxels", _DRAW_AGAIN)
    return segments


def _check_values(segments: Segments, layers: np.ndarray) -> None:
    """Refuse voxels that no segment explains. layers: (layers, D, H, W)."""
    checks.check_finite(layers)
    for number, layer in enumerate(layers):
        known = {0, *(value for place, value in segments.values() if place == number)}
        if unknown := sorted({int(value) for value in np.unique(layer)} - known):
            cause = f"label values {', '.join(map(str, unknown[:5]))} belong to no segment of the file"
            raise refuse("LABEL_VALUES", cause, _DRAW_AGAIN)
