"""NRRD files (.nrrd) and the segmentations of 3D Slicer (.seg.nrrd): read with every check before use.

The order is that of `nifti`: regular file, magic bytes, header, memory, data bounded to the declared size,
finiteness, geometry, intensities. SimpleITK and pynrrd refuse cut files too; the header is parsed here
because it must say where the patient's left is (a `space` and `space directions`), in one of its forms and
without contradiction. Format: https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ctseg.errors import Finding
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
from ctseg.scans.formats.stored_values import Content, Stored, integers_of

HEADER_LIMIT = 4 << 20  # bytes; a segmentation of a hundred structures needs 100 kB
TRUNCATED = "NRRD_TRUNCATED"
_ONE_FILE = "save it as one .nrrd file"
_DRAW_AGAIN = "save the segmentation again from the tool that drew it"
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        "longlong",
        "long long",
        "long long int",
        "signed long long",
        "signed long long int",
        "int64",
        "int64_t",
    ),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_CODES = {name: code for code, names in _TYPES.items() for name in names}
# Signs that turn a space's axes into left, posterior, superior. Others do not say where the patient's left
# is.
_SPACES = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
_MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", ""}
# An axis that holds several values of a voxel, without the structure of a colour or tensor.
_LIST_KINDS = {"list", "none", "???", "stub", "vector", "point"}


@dataclasses.dataclass(frozen=True)
class Segment:
    """One segment of a 3D Slicer segmentation: its voxels hold `value` in `layer`. Those of different layers
    may overlap."""

    name: str
    layer: int
    value: int


def read(path: Path) -> Stored:
    """What stands in a file of one layer, checked; errors and findings do not name it."""
    stored, header = _read(path)
    layers, segments = len(stored.array), _segments(header)
    if layers > 1 and segments:
        fix = "export it as one label map, or as one file per structure"
        raise refuse("NOT_3D", f"its segments lie in {layers} layers and may overlap", fix)
    if layers > 1:
        raise not_3d(f"{layers} values for each voxel")
    if segments:
        _check_values(segments, stored.array)
    if header.fields["dimension"].strip() == "4":
        stored.findings.append(Finding("WARN", "NOT_3D", "a further axis of length 1 was dropped"))
    return dataclasses.replace(stored, array=stored.array[0])


def read_names(path: Path) -> dict[int, str]:
    """Value -> name from the segments that a file describes; empty without any, and where they lie in several
    layers."""
    segments = list_segments(path)
    one_layer = all(segment.layer == 0 for segment in segments)
    return {segment.value: segment.name for segment in segments} if one_layer else {}


def list_segments(path: Path) -> tuple[Segment, ...]:
    """The segments that a file describes, in their order; empty for a plain image or label map. Reads the
    header alone."""
    with at_file(path):
        return _segments(_parse(path, read_regular(path, HEADER_LIMIT)))


def read_segments(path: Path) -> tuple[tuple[Segment, ...], Callable[[Segment], Volume], list[Finding]]:
    """(segments, the mask of one: a Volume of bool, what was noticed). The file is read once."""
    with at_file(path):
        stored, header = _read(path)
        segments = _segments(header)
        labels, findings = integers_of(stored)
        _check_values(segments, labels.array)

    def read_segment(segment: Segment) -> Volume:
        return Volume(labels.array[segment.layer] == segment.value, stored.affine)

    return segments, read_segment, located(findings, path)


# ---- header -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Header:
    """fields: lower-case name -> text; values: key -> text (`:=`); start: where the data begins."""

    fields: dict[str, str]
    values: dict[str, str]
    start: int
    data: bytes

    def words(self, name: str) -> list[str]:
        return self.fields.get(name, "").split()


def _parse(path: Path, data: bytes) -> _Header:
    if path.suffix.lower() == ".nhdr":
        raise refuse("PAIR_UNSUPPORTED", "a detached header, whose voxels lie in another file", _ONE_FILE)
    if not re.match(rb"NRRD000\d\r?\n", data[:16]):
        raise wrong_kind(data[:256], "NOT_NRRD", "an NRRD header")
    header = data[:HEADER_LIMIT]
    end = re.search(rb"\r?\n\r?\n", header)
    text = header[: end.start() if end else len(header)].decode("utf-8", errors="replace")
    fields: dict[str, str] = {}
    values: dict[str, str] = {}
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
    return _Header(fields, values, end.end(), data)


def _numbers(header: _Header, name: str, kind: Callable[[str], float]) -> list[float]:
    try:
        return [kind(word) for word in header.words(name)]
    except (ValueError, OverflowError):
        raise implausible(f"'{name}' holds something else than numbers") from None


def _read(path: Path) -> tuple[Stored, _Header]:
    """The stored array (layers, D, H, W) and the header."""
    header = _parse(path, read_regular(path))
    layers, axis, shape = _check_sizes(header)
    dtype = _check_type(header)
    checks.check_memory(layers * math.prod(shape), dtype.itemsize)
    affine, findings = _affine(header, axis)
    encoding = header.fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        fix = "save it again, raw or compressed with gzip"
        raise refuse("ENCODING_UNSUPPORTED", "its voxels are neither raw nor gzip", fix)
    for name in ("byte skip", "byteskip", "line skip", "lineskip"):
        if header.fields.get(name, "0") != "0":
            cause = "bytes or lines stand between the header and the voxels"
            raise refuse("ENCODING_UNSUPPORTED", cause, "save it again as one plain .nrrd file")
    data = memoryview(header.data)[header.start :]
    content = Content(data, zipped=encoding != "raw", truncated=TRUNCATED)
    # With axis 0 the values of one voxel lie side by side.
    array, notes = content.voxels((*shape, layers) if axis == 0 else (layers, *shape), dtype)
    return Stored(
        np.moveaxis(array, 3, 0) if axis == 0 else array, 1.0, 0.0, affine, findings + notes
    ), header


def _check_sizes(header: _Header) -> tuple[int, int | None, tuple[int, int, int]]:
    """(number of layers, which axis of the file counts them or None, (D, H, W))."""
    sizes = [int(n) for n in _numbers(header, "sizes", int)]
    if header.words("dimension") != [str(len(sizes))] or not sizes or min(sizes) < 1:
        raise implausible("dimension and sizes do not fit together")
    kinds = [kind.lower() for kind in header.words("kinds")] or ["domain"] * len(sizes)
    outside = [number for number, vector in enumerate(_vectors(header)) if vector == "none"]
    if len(sizes) == 3:
        if outside:
            raise not_3d("one of its three axes lies outside space (a picture of several values)")
        return 1, None, (sizes[2], sizes[1], sizes[0])
    if len(sizes) != 4 or len(outside) != 1 or outside[0] not in (0, 3) or len(kinds) != 4:
        raise not_3d(f"sizes {tuple(sizes)}")
    axis = outside[0]
    if kinds[axis] not in _LIST_KINDS and sizes[axis] != 1:
        code = "NOT_3D" if kinds[axis] in ("domain", "time", "space") else "NOT_SCALAR"
        raise refuse(code, "several values for each voxel", "export the scan as one number per voxel")
    d, h, w = [size for number, size in enumerate(sizes) if number != axis][::-1]
    return sizes[axis], axis, (d, h, w)


def _vectors(header: _Header) -> list[str]:
    """The words of "space directions": "(1,0,0)" or "none"."""
    return [
        re.sub(r"\s", "", word)
        for word in re.findall(r"\([^()]*\)|none", header.fields.get("space directions", "").lower())
    ]


def _check_type(header: _Header) -> np.dtype:
    name = " ".join(header.fields.get("type", "").lower().split())
    if name not in _CODES:
        code = "NOT_SCALAR" if name == "block" else "HEADER_IMPLAUSIBLE"
        raise refuse(code, "its type is no number", "export the scan as 16-bit integers")
    if {"old min", "oldmin", "old max", "oldmax"} & set(header.fields):
        cause = "its intensities are scaled ('old min', 'old max')"
        raise refuse("ENCODING_UNSUPPORTED", cause, "save the scan in Hounsfield units")
    order = {"little": "<", "big": ">"}.get(header.fields.get("endian", "").lower(), "")
    if not order and np.dtype(_CODES[name]).itemsize > 1:
        raise implausible("the byte order is not given")
    return np.dtype(order + _CODES[name])


def _affine(header: _Header, axis: int | None) -> tuple[np.ndarray, list[Finding]]:
    """The affine of the Volume: the first axis of space in the file is W, the last D."""
    space, fix = header.fields.get("space", "").lower(), "export the scan with its geometry"
    if space not in _SPACES:
        cause = (
            "its 'space' does not name the patient's left, back and head" if space else "no 'space' is given"
        )
        cause += ", so left and right are unknown"
        raise refuse("AFFINE_UNKNOWN", cause, f"{fix} (left-posterior-superior)")
    units = " ".join(header.fields.get(field, "") for field in ("space units", "units")).lower()
    if not set(re.findall(r'"([^"]*)"', units)) <= _MILLIMETRES:
        raise refuse("UNITS_UNSUPPORTED", "lengths are not in mm", "export the scan in mm")
    vectors = [vector for number, vector in enumerate(_vectors(header)) if number != axis]
    origin = re.sub(r"\s", "", header.fields.get("space origin", ""))
    if len(vectors) != 3 or not origin:
        raise refuse("AFFINE_UNKNOWN", "'space directions' or 'space origin' is missing", fix)
    affine = np.eye(4)
    try:
        for column, text in zip((2, 1, 0, 3), (*vectors, origin)):
            x, y, z = (float(number) for number in text.strip("()").split(","))
            affine[:3, column] = np.multiply((x, y, z), _SPACES[space])
    except ValueError:
        cause = "'space directions' or 'space origin' holds something else than three numbers"
        raise implausible(cause) from None
    return affine, checks.check_affine(affine) + _check_spacings(header, axis, affine)


def _check_spacings(header: _Header, axis: int | None, affine: np.ndarray) -> list[Finding]:
    """Hold 'spacings', where some writer gives them too, against 'space directions'."""
    numbers = [number for place, number in enumerate(_numbers(header, "spacings", float)) if place != axis]
    if not numbers or all(np.isnan(numbers)):  # NaN is the format's word for "not given"
        return []
    if len(numbers) != 3:
        raise implausible("'spacings' does not hold a number for each axis")
    return checks.check_voxel_size(affine, np.array(numbers[::-1]), "'spacings'")


# ---- segments ---------------------------------------------------------------------------------------------


def _segments(header: _Header) -> tuple[Segment, ...]:
    """What the keys Segment0_Name, Segment0_LabelValue and Segment0_Layer say. Older files number no values:
    each layer is one segment."""
    keys = [re.fullmatch(r"Segment(\d{1,4})_(?:Name|ID)", key) for key in header.values]
    numbers = sorted({int(found.group(1)) for found in keys if found})
    if not numbers:
        return ()
    layers, _, _ = _check_sizes(header)
    segments = []
    for place, number in enumerate(numbers):
        name, called, value, layer = (
            header.values.get(f"Segment{number}_{key}") for key in ("Name", "ID", "LabelValue", "Layer")
        )
        plain = value is None and len(numbers) == layers
        try:
            layer_number = place if layer is None and plain else int(layer or 0)
            stored = 1 if plain else int(value or "")
        except ValueError:
            raise _bad_segments("a segment has no label value") from None
        segments.append(Segment((name or called or "").strip(), layer_number, stored))
    if not all(segment.name and 0 <= segment.layer < layers and segment.value > 0 for segment in segments):
        raise _bad_segments("a segment has no name, or lies in no layer of the file")
    names, places = zip(*((segment.name, (segment.layer, segment.value)) for segment in segments))
    if len(set(names)) < len(segments) or len(set(places)) < len(segments):
        raise _bad_segments("two segments have the same name or the same voxels")
    return tuple(segments)


def _bad_segments(cause: str) -> Exception:
    return refuse("METADATA_INVALID", cause, _DRAW_AGAIN)


def _check_values(segments: tuple[Segment, ...], layers: np.ndarray) -> None:
    """Refuse voxels that no segment explains. layers: (layers, D, H, W)."""
    for number, layer in enumerate(layers):
        known = {0} | {segment.value for segment in segments if segment.layer == number}
        unknown = sorted({int(value) for value in np.unique(layer)} - known)
        if unknown:
            listed = ", ".join(map(str, unknown[:5]))
            raise refuse(
                "LABEL_VALUES", f"label values {listed} belong to no segment of the file", _DRAW_AGAIN
            )
