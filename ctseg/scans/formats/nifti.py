"""NIfTI files: read with every check before use, written with the affine bit for bit.

A file is read in this order, and nothing later happens after a refusal: regular file, magic bytes, header,
memory, decompression bounded to the declared size (checksum included), type, finiteness, geometry,
intensities. nibabel parses the header only: it accepts singular geometry and expands what a header never
declared.
"""

from __future__ import annotations

import gzip
import html
import math
import re
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.quaternions import mat2quat, quat2mat

from ctseg.artifacts import atomic_write
from ctseg.errors import Finding
from ctseg.geometry.tolerances import off_by
from ctseg.geometry.volume import RAS_TO_LPS, Grid, Volume
from ctseg.scans.formats import checks
from ctseg.scans.formats.regular_files import AGAIN, implausible, not_3d, read_regular, refuse, wrong_kind
from ctseg.scans.formats.stored_values import Content, Stored

# docs/decisions/012-tolerances.md has the reasons.
QUATERNION_FLOAT32 = 1e-6  # the components of a quaternion that was computed in 32 bits are no more exact
QUATERNION_DECIMALS = 2e-4  # b2 + c2 + d2 may exceed 1 by what four decimals round; more is no quaternion
_LABEL = r'<Label\s[^>]*\bKey="(\d{1,6})"[^>]*>\s*(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))\s*</Label>'
_EXTENSION_LIMIT = 64 << 20
_NAMES_LIMIT = 4 << 20  # bytes of a file that are searched for names: a table of 200 takes 30 kB
# Data type of the header -> NumPy's, and those that are refused by name.
_TYPES = dict(
    zip(
        (2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280),
        ["u1", "i2", "i4", "f4", "f8", "i1", "u2", "u4", "i8", "u8"],
    )
)
_TYPE_NAMES = {
    1: "1-bit",
    32: "complex64",
    128: "RGB24",
    1536: "float128",
    1792: "complex128",
    2048: "complex256",
    2304: "RGBA32",
}
_ONE_FILE = "convert it to one .nii.gz file"
_GEOMETRY = "export the scan again with its geometry"


# ---- reading ----------------------------------------------------------------------------------------------


def read(path: Path) -> Stored:
    """What stands in the file, checked; errors and findings do not name it."""
    if path.suffix.lower() in (".hdr", ".img"):
        raise refuse("PAIR_UNSUPPORTED", "a header/image pair", _ONE_FILE)
    content = _content(path)
    findings = _name_findings(path, content.zipped)
    header = _parse_header(content)
    shape, dropped = _check_shape(header)
    if dropped:
        findings.append(Finding("WARN", "NOT_3D", f"{dropped} further axes of length 1 were dropped"))
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if code in _TYPE_NAMES:
        cause = f"voxels are {_TYPE_NAMES[code]}, not single numbers"
        raise refuse("NOT_SCALAR", cause, "export the scan as 16-bit integers")
    if code not in _TYPES or np.dtype(_TYPES[code]).itemsize * 8 != bits:
        raise implausible(f"data type {code} with {bits} bits per voxel")
    dtype = np.dtype(header.endianness + _TYPES[code])
    checks.check_memory(math.prod(shape), dtype.itemsize)
    affine, notes = _affine(header, shape)
    content.take(_voxels_start(header) - content.position)
    array, rest = content.voxels(shape, dtype)  # the bytes already lie in (D, H, W) order
    return Stored(array, *_scaling(header), affine, findings + notes + rest)


def read_names(path: Path) -> dict[int, str]:
    """Value -> name from the label table in a NIfTI extension (as Connectome Workbench and TotalSegmentator
    write it); empty without one."""
    content = _content(path, _NAMES_LIMIT)
    header = _parse_header(content)
    text = content.take(_voxels_start(header) - content.position).decode("utf-8", errors="replace")
    names = {
        int(value): (quoted or html.unescape(plain)).strip()
        for value, quoted, plain in re.findall(_LABEL, text, re.DOTALL)
    }
    return {value: name for value, name in names.items() if value > 0 and name}


def _content(path: Path, count: int = -1) -> Content:
    """The bytes of a file (or its first `count`), whatever its name says about compression."""
    data = read_regular(path, count)
    return Content(data, zipped=data[:2] == b"\x1f\x8b", truncated="NIFTI_TRUNCATED")


def _name_findings(path: Path, zipped: bool) -> list[Finding]:
    if zipped == path.name.lower().endswith(".gz"):
        return []
    cause, fix = (
        ("compressed although its name does not end in .gz", "rename the file to .nii.gz")
        if zipped
        else ("named .gz but not compressed; read as it is", "rename the file to .nii")
    )
    return [Finding("WARN", "NOT_GZIP", cause, fix)]


def _parse_header(content: Content) -> Any:
    """nibabel's header object for the first 348 (NIfTI-1) or 540 (NIfTI-2) bytes, unchecked."""
    block = content.take(4)
    sizes = {order: int.from_bytes(block, order) for order in ("little", "big")}
    kinds: dict[int, tuple[Any, int]] = {348: (nib.Nifti1Header, 344), 540: (nib.Nifti2Header, 4)}
    size = next((size for size in kinds if size in sizes.values()), 4)
    block += content.take(size - 4)
    if len(block) < size:
        raise refuse("NIFTI_TRUNCATED", f"ended at byte {len(block)} inside the header", AGAIN)
    if size in kinds:
        kind, magic_at = kinds[size]
        magic = block[magic_at : magic_at + 3]
        if magic in (b"ni1", b"ni2"):
            raise refuse("PAIR_UNSUPPORTED", "the header of a header/image pair", _ONE_FILE)
        if magic in (b"n+1", b"n+2"):
            return kind(binaryblock=block, endianness="<" if sizes["little"] == size else ">", check=False)
    raise wrong_kind(block + content.take(256), "NOT_NIFTI", "a NIfTI header")


def _check_shape(header: Any) -> tuple[tuple[int, int, int], int]:
    """((D, H, W), number of dropped axes of length 1)."""
    count, *dimensions = [int(n) for n in header["dim"]]
    lengths = dimensions[: max(count, 0)]
    if not 1 <= count <= 7 or min(lengths) < 1:
        raise implausible(f"dimensions {tuple(lengths)}")
    if count < 3 or any(n > 1 for n in lengths[3:]):
        raise not_3d(f"shape {tuple(lengths)}")
    return (lengths[2], lengths[1], lengths[0]), count - 3


def _voxels_start(header: Any) -> int:
    """The byte where the voxels begin: behind header and extensions."""
    smallest = 352 if int(header["sizeof_hdr"]) == 348 else 544
    offset = float(header["vox_offset"]) or smallest  # 0: some tools' word for "right behind the header"
    if not smallest <= offset <= smallest + _EXTENSION_LIMIT or offset != int(offset):
        raise implausible(f"the voxels are said to start at byte {offset:g}")
    return int(offset)


def _scaling(header: Any) -> tuple[float, float]:
    """(slope, intercept); a slope of 0 or NaN means no scaling, as the standard and nibabel have it."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite(slope) or not np.isfinite(intercept):
        raise implausible(f"intensity scaling {slope:g} * x + {intercept:g}")
    return slope, intercept


def _affine(header: Any, shape: tuple[int, int, int]) -> tuple[np.ndarray, list[Finding]]:
    """The affine of the Volume and what was noticed; the sform counts, else the qform, never a guess.

    Whatever else the header says about the same place (qform, pixdim) must agree: docs/geometry.md has the
    rules.
    """
    if int(header["xyzt_units"]) & 7 not in (0, 2):
        raise refuse("UNITS_UNSUPPORTED", "lengths are not in mm", "export the scan in mm")
    sform = np.asarray(header.get_sform(), dtype=np.float64) if int(header["sform_code"]) > 0 else None
    problem = _size_problem(header)
    if sform is None:
        theirs, findings = _qform_alone(header, problem)
    else:
        theirs, findings = sform, []
    ours = file_affine(theirs)
    findings += checks.check_affine(ours)
    if sform is not None and problem is not None:
        code, what = problem
        cause = f"the voxel size in pixdim is {what}; the sform is used"
        findings.append(Finding("WARN", code, cause, "correct pixdim in the header"))
    elif sform is not None:
        findings += _compare_forms(header, Grid(shape, ours))
    return ours, findings


def _sizes(header: Any) -> np.ndarray:
    """The voxel sizes in pixdim, (i, j, k)."""
    return np.asarray(header["pixdim"][1:4], dtype=np.float64)


def _size_problem(header: Any) -> tuple[str, str] | None:
    """(code, words) when pixdim holds no voxel size, else None."""
    sizes = _sizes(header)
    if not np.isfinite(sizes).all():
        return "SPACING_NONFINITE", "NaN or infinite"
    if (sizes < 0).any():
        return "SPACING_NEGATIVE", "negative"
    return ("SPACING_MISSING", "0") if (sizes == 0).any() else None


def _qform_alone(header: Any, problem: tuple[str, str] | None) -> tuple[np.ndarray, list[Finding]]:
    """The qform, (i, j, k) to RAS mm, of a header without sform."""
    if problem is not None:
        raise refuse(problem[0], f"the voxel size is {problem[1]}", _GEOMETRY)
    if int(header["qform_code"]) <= 0:
        cause = "neither qform nor sform is set, so left and right are unknown"
        raise refuse("AFFINE_UNKNOWN", cause, _GEOMETRY)
    rotation = _rotation(header)
    if rotation is None:
        cause = "the quaternion of the qform is invalid: b2 + c2 + d2 is far above 1, or NaN"
        raise refuse("AFFINE_SINGULAR", cause, _GEOMETRY)
    qform = _qform(header, rotation, _sizes(header))
    excess = float(np.square(_quaternion(header)).sum()) - 1
    if excess <= 4 * QUATERNION_FLOAT32:
        return qform, []
    cause = (
        f"the quaternion of the qform is too long (b2 + c2 + d2 = 1 + {excess:.1g}) and is shortened: "
        f"the axes may be up to {np.degrees(2 * np.sqrt(excess)):.2g} degrees off"
    )
    return qform, [Finding("WARN", "AFFINE_ROUNDED", cause, "store an sform too")]


def _quaternion(header: Any) -> np.ndarray:
    """b, c, d as they are stored."""
    return np.array([float(header[name]) for name in ("quatern_b", "quatern_c", "quatern_d")])


def _rotation(header: Any, expected: np.ndarray | None = None) -> np.ndarray | None:
    """The rotation (3, 3) of the qform, None when its quaternion is none.

    As in the NIfTI reference library a is 0 from a length of 1 on.
    expected: taken where its quaternion is the stored one as well as 32 bits can say it. Near half a turn the
    three stored numbers say little about the fourth: rounded, they turn the axes by up to 0.16 degrees.
    """
    stored = _quaternion(header)
    if expected is not None and np.linalg.det(expected) > 0:
        a, *axis = mat2quat(expected)
        signs = (1, -1) if abs(a) < np.sqrt(2 * QUATERNION_FLOAT32) else (1,)
        if min(np.abs(sign * stored - axis).max() for sign in signs) <= QUATERNION_FLOAT32:
            return expected
    square = 1 - float(np.square(stored).sum())
    if not square >= -QUATERNION_DECIMALS:
        return None
    return quat2mat([0.0 if square < 1e-7 else np.sqrt(square), *stored])  # it shortens what is too long


def _handedness(header: Any) -> int:
    """1, or -1 where the third axis runs the other way. As in the NIfTI reference library: pixdim[0], where 0
    means 1."""
    return -1 if float(header["pixdim"][0]) < 0 else 1


def _qform(header: Any, rotation: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(4, 4) of a rotation with voxel sizes (i, j, k) and the header's handedness and offset."""
    result = np.eye(4)
    result[:3, :3] = rotation * [1, 1, _handedness(header)] * sizes
    result[:3, 3] = [float(header[name]) for name in ("qoffset_x", "qoffset_y", "qoffset_z")]
    return result


def _compare_forms(header: Any, grid: Grid) -> list[Finding]:
    """Hold pixdim, and a qform's rotation and offset, against the sform, whose grid is `grid`."""
    findings = checks.check_voxel_size(grid.affine, _sizes(header)[::-1], "pixdim")
    if int(header["qform_code"]) <= 0:
        return findings
    fix = "correct the header: set sform and qform to the true geometry"
    straight = _without_shear(file_affine(grid.affine))
    sizes = np.linalg.norm(straight[:3, :3], axis=0)
    rotation = _rotation(header, straight[:3, :3] / sizes * [1, 1, _handedness(header)])
    qform = None if rotation is None else _qform(header, rotation, sizes)
    if qform is None or not np.isfinite(qform).all():
        cause = "the quaternion or the offset of the qform is invalid; the sform is used"
        return [*findings, Finding("WARN", "AFFINE_CONFLICT", cause, fix)]
    apart = Grid(grid.shape, file_affine(straight)).corner_distance_mm(Grid(grid.shape, file_affine(qform)))
    cause = f"qform and sform are {apart:.2g} mm apart at the corners"
    return findings + checks.agreement(
        off_by(apart, sizes), "AFFINE_CONFLICT", cause, "the sform is used", fix
    )


def _without_shear(sform: np.ndarray) -> np.ndarray:
    """What a qform can hold of an sform: the nearest perpendicular axes, of the same lengths."""
    sizes = np.linalg.norm(sform[:3, :3], axis=0)
    left, _, right = np.linalg.svd(sform[:3, :3] / sizes)
    result = sform.copy()
    result[:3, :3] = left @ right * sizes
    return result


# ---- writing ----------------------------------------------------------------------------------------------


def write_image(path: str | Path, volume: Volume, *, dtype: Any = np.int16) -> None:
    """Write an image atomically; integers are rounded and limited to the range of the type."""
    array = volume.array
    if np.issubdtype(dtype, np.integer) and array.dtype.kind == "f":
        limits = np.iinfo(dtype)
        array = np.clip(np.rint(array), limits.min, limits.max)
    _write(Path(path), array.astype(dtype), volume.affine)


def write_label(path: str | Path, volume: Volume, *, names: dict[int, str] | None = None) -> None:
    """Write a label map atomically, as uint8 or, above 255, uint16.

    names: when given, every value but 0 must have one (the caller writes them next to the file); ValueError
    else.
    """
    low, high = int(volume.array.min()), int(volume.array.max())
    if volume.array.dtype.kind not in "uib" or low < 0 or high > 65535:
        raise ValueError(
            f"a label map holds integers from 0 to 65535, not {volume.array.dtype} from {low} to {high}"
        )
    if names is not None:
        unnamed = sorted({int(v) for v in np.unique(volume.array)} - {0} - set(names))
        if unnamed:
            raise ValueError(f"label values without a name: {unnamed}")
    _write(Path(path), volume.array.astype(np.uint8 if high <= 255 else np.uint16), volume.affine)


def file_affine(affine: np.ndarray) -> np.ndarray:
    """Between the affine of a Volume, (d, h, w) to LPS, and of its file, (i, j, k) to RAS. Its own
    inverse."""
    return RAS_TO_LPS @ affine[:, [2, 1, 0, 3]]


def _write(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """One file with the sform; the qform as well unless the axes are sheared, which it cannot hold.

    The sform is stored in 32 bits: whatever was read from one comes back bit for bit. The same content gives
    the same bytes (no time stamp); no text goes into the header.
    """
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape[::-1])
    theirs = file_affine(affine)
    header.set_qform(theirs, code=1 if checks.shear_degrees(affine) < 1e-3 else 0)
    header.set_sform(theirs, code=1)
    header.set_xyzt_units("mm")
    header.set_data_offset(352)
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    content = header.binaryblock + b"\0" * 4

    def write(stream: BinaryIO) -> None:
        if not path.name.lower().endswith(".gz"):
            stream.write(content)
            stream.write(np.ascontiguousarray(array).data)
            return
        with gzip.GzipFile(filename="", mode="wb", compresslevel=3, fileobj=stream, mtime=0) as zipped:
            zipped.write(content)
            zipped.write(np.ascontiguousarray(array).data)

    atomic_write(path, write)
