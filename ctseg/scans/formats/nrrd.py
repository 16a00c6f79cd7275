"""NRRD files (.nrrd) and the segmentations of 3D Slicer (.seg.nrrd): read with every check before use.

The order is that of `nifti`: regular file, magic bytes, header, memory, data bounded to the declared size, finiteness, geometry, intensities. The
header is parsed here and the voxels are taken by us: other readers fill a file that was cut off with zeros and turn NaN into 0.
Format: https://teem.sourceforge.net/nrrd/format.html. Only what says where the patient's left is can be used: a `space` and `space directions`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ctseg.errors import Finding
from ctseg.geometry.volume import Volume
from ctseg.scans.formats import checks
from ctseg.scans.formats.checks import refuse
from ctseg.scans.formats.stored_values import Content, Stored, image_of, integers_of, mask_of

HEADER_LIMIT = 4 << 20  # bytes; a segmentation of a hundred structures needs 100 kB
TRUNCATED = "NRRD_TRUNCATED"
_FIX = "export the scan again"
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
# Signs that turn a space's axes into left, posterior, superior. Others do not say where the patient's left is.
_SPACES = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
_MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", ""}
_LIST_KINDS = {
    "list",
    "none",
    "???",
    "stub",
    "vector",
    "point",
}  # an axis that holds several values of a voxel, without the structure of a colour or tensor


def read_image(path: str | Path, *, check_hu: bool = True) -> tuple[Volume, list[Finding]]:
    """The CT of an NRRD file; see `nifti.read_image`."""
    path = Path(path)
    return image_of(_only_layer(_read(path), path), path, check_hu=check_hu)


def read_integers(path: str | Path) -> tuple[Volume, list[Finding]]:
    """The integers of a label file as int32 (D, H, W); see `nifti.read_integers`. Segmentations of several layers: `read_segments`."""
    path = Path(path)
    read = _read(path)
    volume, findings = integers_of(_only_layer(read, path), path)
    if segments := _segments(read[1], path):
        _check_values(segments, [volume], path)
    return volume, findings


def read_mask(path: str | Path) -> tuple[Volume, list[Finding]]:
    """Integers, or the probabilities of one structure; see `stored.mask_of`."""
    path = Path(path)
    return mask_of(_only_layer(_read(path), path), path)


def read_names(path: str | Path) -> dict[int, str]:
    """Value -> name from the segments that a file describes; empty without any, and where they lie in several layers."""
    segments = list_segments(path)
    return (
        {segment.value: segment.name for segment in segments}
        if all(segment.layer == 0 for segment in segments)
        else {}
    )


@dataclasses.dataclass(frozen=True)
class Segment:
    """One segment of a 3D Slicer segmentation: its voxels hold `value` in `layer`. Segments of different layers may overlap."""

    name: str
    layer: int
    value: int


def list_segments(path: str | Path) -> tuple[Segment, ...]:
    """The segments that a file describes, in their order; empty for a plain image or label map. Reads the header alone."""
    path = Path(path)
    return _segments(_parse(path, checks.read_regular(path, HEADER_LIMIT)), path)


def read_segments(path: str | Path) -> tuple[tuple[Segment, ...], Callable[[Segment], Volume], list[Finding]]:
    """(segments, the mask of one: a Volume of bool, what was noticed). The file is read once."""
    path = Path(path)
    stored, header = _read(path)
    segments = _segments(header, path)
    layers = []
    findings = list(stored.findings)
    for layer in stored.array:
        volume, notes = integers_of(dataclasses.replace(stored, array=layer, findings=[]), path)
        layers.append(volume)
        findings += notes
    _check_values(segments, layers, path)
    return (
        segments,
        lambda segment: Volume(layers[segment.layer].array == segment.value, stored.affine),
        findings,
    )


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
        raise refuse(
            "PAIR_UNSUPPORTED",
            "a detached header, whose voxels lie in another file",
            "save it as one .nrrd file",
            path,
        )
    if not re.match(rb"NRRD000\d\r?\n", data[:16]):
        raise checks.wrong_kind(path, data[:256], "NOT_NRRD", "an NRRD header")
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
                raise refuse("HEADER_IMPLAUSIBLE", "a key stands twice with two values", _FIX, path)
            continue
        name, _, content = line.partition(":")
        name = name.strip().lower()
        if name in fields:
            raise refuse("HEADER_IMPLAUSIBLE", f"the field '{_shown(name)}' stands twice", _FIX, path)
        fields[name] = content.strip()
    if "data file" in fields or "datafile" in fields:
        raise refuse("PAIR_UNSUPPORTED", "its voxels lie in another file", "save it as one .nrrd file", path)
    if end is None:
        raise refuse(
            TRUNCATED,
            f"no end of the header in the first {len(header)} bytes",
            "copy or download the file again",
            path,
        )
    return _Header(fields, values, end.end(), data)


def _shown(name: str) -> str:
    return name if re.fullmatch(r"[a-z ]{1,32}", name) else "?"


def _numbers(header: _Header, name: str, kind: Callable[[str], float], path: Path) -> list[float]:
    try:
        return [kind(word) for word in header.words(name)]
    except (ValueError, OverflowError):
        raise refuse(
            "HEADER_IMPLAUSIBLE", f"'{name}' holds something else than numbers", _FIX, path
        ) from None


def _read(path: Path) -> tuple[Stored, _Header]:
    """The stored array (layers, D, H, W) and the header."""
    header = _parse(path, checks.read_regular(path))
    layers, axis, shape = _check_sizes(header, path)
    dtype = _check_type(header, path)
    checks.check_memory(layers * shape[0] * shape[1] * shape[2], dtype.itemsize, path)
    affine, findings = _affine(header, axis, path)
    array, notes = _voxels(header, layers, axis, shape, dtype, path)
    return Stored(array, 1.0, 0.0, affine, findings + notes), header


def _only_layer(read: tuple[Stored, _Header], path: Path) -> Stored:
    stored, header = read
    layers = len(stored.array)
    if layers > 1 and _segments(header, path):
        raise refuse(
            "NOT_3D",
            f"its segments lie in {layers} layers and may overlap",
            "export it as one label map, or as one file per structure",
            path,
        )
    if layers > 1:
        raise refuse("NOT_3D", f"{layers} values for each voxel", "give one 3D volume per file", path)
    if header.fields["dimension"].strip() == "4":
        stored.findings.append(
            Finding("WARN", "NOT_3D", "a further axis of length 1 was dropped", file=str(path))
        )
    return dataclasses.replace(stored, array=stored.array[0])


def _check_sizes(header: _Header, path: Path) -> tuple[int, int | None, tuple[int, int, int]]:
    """(number of layers, which axis of the file counts them or None, (D, H, W))."""
    sizes = [int(n) for n in _numbers(header, "sizes", int, path)]
    if header.words("dimension") != [str(len(sizes))] or not sizes or min(sizes) < 1:
        raise refuse("HEADER_IMPLAUSIBLE", "dimension and sizes do not fit together", _FIX, path)
    if len(sizes) not in (3, 4):
        raise refuse("NOT_3D", f"sizes {tuple(sizes)}", "give one 3D volume per file", path)
    kinds = [kind.lower() for kind in header.words("kinds")] or ["domain"] * len(sizes)
    outside = [number for number, vector in enumerate(_vectors(header)) if vector == "none"]
    if len(sizes) == 3:
        if outside:
            raise refuse(
                "NOT_3D",
                "one of its three axes lies outside space (a picture of several values)",
                "give one 3D volume per file",
                path,
            )
        return 1, None, (sizes[2], sizes[1], sizes[0])
    if len(outside) != 1 or outside[0] not in (0, 3) or len(kinds) != 4:
        raise refuse("NOT_3D", f"sizes {tuple(sizes)}", "give one 3D volume per file", path)
    axis = outside[0]
    if kinds[axis] not in _LIST_KINDS and not sizes[axis] == 1:
        raise refuse(
            "NOT_3D" if kinds[axis] in ("domain", "time", "space") else "NOT_SCALAR",
            "several values for each voxel",
            "export the scan as one number per voxel",
            path,
        )
    d, h, w = [size for number, size in enumerate(sizes) if number != axis][::-1]
    return sizes[axis], axis, (d, h, w)


def _vectors(header: _Header) -> list[str]:
    """The words of "space directions": "(1,0,0)" or "none"."""
    return [
        re.sub(r"\s", "", word)
        for word in re.findall(r"\([^()]*\)|none", header.fields.get("space directions", "").lower())
    ]


def _check_type(header: _Header, path: Path) -> np.dtype:
    name = " ".join(header.fields.get("type", "").lower().split())
    if name not in _CODES:
        raise refuse(
            "NOT_SCALAR" if name == "block" else "HEADER_IMPLAUSIBLE",
            "its type is no number",
            "export the scan as 16-bit integers",
            path,
        )
    if {"old min", "oldmin", "old max", "oldmax"} & set(header.fields):
        raise refuse(
            "ENCODING_UNSUPPORTED",
            "its intensities are scaled ('old min', 'old max')",
            "save the scan in Hounsfield units",
            path,
        )
    order = {"little": "<", "big": ">"}.get(header.fields.get("endian", "").lower(), "")
    if not order and np.dtype(_CODES[name]).itemsize > 1:
        raise refuse("HEADER_IMPLAUSIBLE", "the byte order is not given", _FIX, path)
    return np.dtype(order + _CODES[name])


def _affine(header: _Header, axis: int | None, path: Path) -> tuple[np.ndarray, list[Finding]]:
    """The affine of the Volume: the first axis of space in the file is W, the last D."""
    space = header.fields.get("space", "").lower()
    if space not in _SPACES:
        cause = (
            "no 'space' is given"
            if not space
            else "its 'space' does not name the patient's left, back and head"
        )
        raise refuse(
            "AFFINE_UNKNOWN",
            f"{cause}, so left and right are unknown",
            "export the scan with its geometry (left-posterior-superior)",
            path,
        )
    units = {
        unit.lower()
        for field in ("space units", "units")
        for unit in re.findall(r'"([^"]*)"', header.fields.get(field, ""))
    }
    if not units <= _MILLIMETRES:
        raise refuse("UNITS_UNSUPPORTED", "lengths are not in mm", "export the scan in mm", path)
    vectors = [vector for number, vector in enumerate(_vectors(header)) if number != axis]
    origin = re.sub(r"\s", "", header.fields.get("space origin", ""))
    if len(vectors) != 3 or not origin:
        raise refuse(
            "AFFINE_UNKNOWN",
            "'space directions' or 'space origin' is missing",
            "export the scan with its geometry",
            path,
        )
    affine = np.eye(4)
    try:
        for column, text in ((2, vectors[0]), (1, vectors[1]), (0, vectors[2]), (3, origin)):
            affine[:3, column] = [
                float(number) * sign
                for number, sign in zip(text.strip("()").split(","), _SPACES[space], strict=True)
            ]
    except ValueError:
        raise refuse(
            "HEADER_IMPLAUSIBLE",
            "'space directions' or 'space origin' holds something else than three numbers",
            _FIX,
            path,
        ) from None
    return affine, checks.check_affine(affine, path) + _check_spacings(header, axis, affine, path)


def _check_spacings(header: _Header, axis: int | None, affine: np.ndarray, path: Path) -> list[Finding]:
    """Hold 'spacings', where some writer gives them too, against 'space directions'."""
    numbers = [
        number for place, number in enumerate(_numbers(header, "spacings", float, path)) if place != axis
    ]
    if not numbers or all(np.isnan(numbers)):  # NaN is the format's word for "not given"
        return []
    if len(numbers) != 3:
        raise refuse("HEADER_IMPLAUSIBLE", "'spacings' does not hold a number for each axis", _FIX, path)
    return checks.check_voxel_size(affine, np.array(numbers[::-1]), "'spacings'", path)


def _voxels(
    header: _Header, layers: int, axis: int | None, shape: tuple[int, int, int], dtype: np.dtype, path: Path
) -> tuple[np.ndarray, list[Finding]]:
    """The stored array (layers, D, H, W)."""
    encoding = header.fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise refuse(
            "ENCODING_UNSUPPORTED",
            "its voxels are neither raw nor gzip",
            "save it again, raw or compressed with gzip",
            path,
        )
    for name in ("byte skip", "byteskip", "line skip", "lineskip"):
        if header.fields.get(name, "0") != "0":
            raise refuse(
                "ENCODING_UNSUPPORTED",
                "bytes or lines stand between the header and the voxels",
                "save it again as one plain .nrrd file",
                path,
            )
    content = Content(
        path, memoryview(header.data)[header.start :], zipped=encoding != "raw", truncated=TRUNCATED
    )
    count = layers * shape[0] * shape[1] * shape[2]
    size = count * dtype.itemsize
    data = content.take(size)
    if len(data) < size:
        raise refuse(
            TRUNCATED,
            f"the voxels end at byte {len(data)} of {size}",
            "copy or download the file again",
            path,
        )
    findings = content.finish(size)
    if axis == 0:  # the values of one voxel lie side by side
        return np.moveaxis(np.frombuffer(data, dtype).reshape(*shape, layers), 3, 0), findings
    return np.frombuffer(data, dtype).reshape(layers, *shape), findings


# ---- segments ---------------------------------------------------------------------------------------------


def _segments(header: _Header, path: Path) -> tuple[Segment, ...]:
    """What the keys Segment0_Name, Segment0_LabelValue and Segment0_Layer say. Older files number no values: each layer is one segment."""
    numbers = sorted(
        {
            int(found.group(1))
            for key in header.values
            if (found := re.fullmatch(r"Segment(\d{1,4})_(?:Name|ID)", key))
        }
    )
    if not numbers:
        return ()
    layers, _, _ = _check_sizes(header, path)
    segments = []
    for place, number in enumerate(numbers):
        name = (
            header.values.get(f"Segment{number}_Name") or header.values.get(f"Segment{number}_ID", "")
        ).strip()
        value, layer = (
            header.values.get(f"Segment{number}_LabelValue"),
            header.values.get(f"Segment{number}_Layer"),
        )
        plain = value is None and len(numbers) == layers
        try:
            segments.append(
                Segment(
                    name,
                    place if layer is None and plain else int(layer or 0),
                    1 if plain else int(value or ""),
                )
            )
        except ValueError:
            raise _bad_segments("a segment has no label value", path) from None
    if not all(segment.name and 0 <= segment.layer < layers and segment.value > 0 for segment in segments):
        raise _bad_segments("a segment has no name, or lies in no layer of the file", path)
    if len({segment.name for segment in segments}) < len(segments) or len(
        {(segment.layer, segment.value) for segment in segments}
    ) < len(segments):
        raise _bad_segments("two segments have the same name or the same voxels", path)
    return tuple(segments)


def _bad_segments(cause: str, path: Path) -> Exception:
    return refuse("METADATA_INVALID", cause, "save the segmentation again from the tool that drew it", path)


def _check_values(segments: tuple[Segment, ...], layers: list[Volume], path: Path) -> None:
    """Refuse voxels that no segment explains."""
    for number, layer in enumerate(layers):
        known = {0} | {segment.value for segment in segments if segment.layer == number}
        unknown = sorted({int(value) for value in np.unique(layer.array)} - known)
        if unknown:
            listed = ", ".join(map(str, unknown[:5]))
            raise refuse(
                "LABEL_VALUES",
                f"label values {listed} belong to no segment of the file",
                "save the segmentation again from the tool that drew it",
                path,
            )
