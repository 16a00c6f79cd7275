"""NIfTI files: read with every check before use, written with the affine bit for bit.

A file is read in this order, and nothing later happens after a refusal: regular file, magic bytes, header,
memory, decompression bounded to the declared size (checksum included), type, finiteness, geometry,
intensities. nibabel parses the header only: it accepts singular geometry and expands what a header never
declared.
"""

import contextlib
import gzip
import html
import math
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.quaternions import mat2quat, quat2mat

from ctseg.artifacts import atomic_write
from ctseg.errors import Finding, Findings
from ctseg.geometry.volume import RAS_TO_LPS, Grid, Volume
from ctseg.scans.formats import checks
from ctseg.scans.formats.regular_files import AGAIN, implausible, read_regular, refuse, wrong_kind
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
    findings = []
    if content.zipped != path.name.lower().endswith(".gz"):
        told = ("named .gz but not compressed; read as it is", "rename the file to .nii")
        if content.zipped:
            told = ("compressed although its name does not end in .gz", "rename the file to .nii.gz")
        findings.append(Finding("WARN", "NOT_GZIP", *told))
    header = _parse_header(content)
    count, *dimensions = [int(n) for n in header["dim"]]
    lengths = dimensions[: max(count, 0)]
    if not 1 <= count <= 7 or min(lengths) < 1:
        raise implausible(f"dimensions {tuple(lengths)}")
    shape, notes = checks.check_axes(lengths)
    findings += notes
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
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):  # no scaling, as the standard and nibabel have it
        slope, intercept = 1.0, 0.0
    if not np.isfinite([slope, intercept]).all():
        raise implausible(f"intensity scaling {slope:g} * x + {intercept:g}")
    return Stored(array, affine, findings + notes + rest, slope, intercept)


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


def _parse_header(content: Content) -> Any:
    """nibabel's header object for the first 348 (NIfTI-1) or 540 (NIfTI-2) bytes, unchecked."""
    block = content.take(4)
    # the first bytes, which say the size -> (kind, size, place of the magic bytes, byte order)
    kinds: dict[bytes, tuple[Any, int, int, str]] = {
        struct.pack(f"{order}i", size): (kind, size, magic_at, order)
        for kind, size, magic_at in ((nib.Nifti1Header, 348, 344), (nib.Nifti2Header, 540, 4))
        for order in "<>"
    }
    kind, size, magic_at, byte_order = kinds.get(block, (None, 4, 4, "<"))
    block += content.take(size - 4)
    if len(block) < size:
        raise refuse("NIFTI_TRUNCATED", f"ended at byte {len(block)} inside the header", AGAIN)
    magic = block[magic_at : magic_at + 3]
    if magic in (b"ni1", b"ni2"):
        raise refuse("PAIR_UNSUPPORTED", "the header of a header/image pair", _ONE_FILE)
    if magic in (b"n+1", b"n+2"):
        return kind(binaryblock=block, endianness=byte_order, check=False)
    raise wrong_kind(block + content.take(256), "NOT_NIFTI", "a NIfTI header")


def _voxels_start(header: Any) -> int:
    """The byte where the voxels begin: behind header and extensions."""
    smallest = 352 if int(header["sizeof_hdr"]) == 348 else 544
    offset = float(header["vox_offset"]) or smallest  # 0: some tools' word for "right behind the header"
    if not smallest <= offset <= smallest + _EXTENSION_LIMIT or offset != int(offset):
        raise implausible(f"the voxels are said to start at byte {offset:g}")
    return int(offset)


def _affine(header: Any, shape: tuple[int, int, int]) -> tuple[np.ndarray, Findings]:
    """The affine of the Volume and what was noticed; the sform counts, else the qform, never a guess.

    Whatever else the header says about the same place (qform, pixdim) must agree: docs/geometry.md has the
    rules.
    """
    if int(header["xyzt_units"]) & 7 not in (0, 2):
        raise refuse("UNITS_UNSUPPORTED", "lengths are not in mm", "export the scan in mm")
    sizes = np.asarray(header["pixdim"][1:4], dtype=np.float64)  # (i, j, k)
    problems = (
        ("SPACING_NONFINITE", "NaN or infinite", ~np.isfinite(sizes)),
        ("SPACING_NEGATIVE", "negative", sizes < 0),
        ("SPACING_MISSING", "0", sizes == 0),
    )
    problem = next(((code, what) for code, what, wrong in problems if wrong.any()), None)
    if int(header["sform_code"]) > 0:
        affine = file_affine(np.asarray(header.get_sform(), dtype=np.float64))
        findings = checks.check_affine(affine)
        if problem is None:
            return affine, findings + _compare_forms(header, Grid(shape, affine), sizes)
        code, what = problem
        cause = f"the voxel size in pixdim is {what}; the sform is used"
        return affine, [*findings, Finding("WARN", code, cause, "correct pixdim in the header")]
    if problem is not None:
        code, what = problem
        raise refuse(code, f"the voxel size is {what}", _GEOMETRY)
    if int(header["qform_code"]) <= 0:
        cause = "neither qform nor sform is set, so left and right are unknown"
        raise refuse("AFFINE_UNKNOWN", cause, _GEOMETRY)
    qform = _qform(header, sizes)
    if qform is None:
        cause = "the quaternion of the qform is invalid: b2 + c2 + d2 is far above 1, or NaN"
        raise refuse("AFFINE_SINGULAR", cause, _GEOMETRY)
    findings, excess = [], float(np.square(_quaternion(header)).sum()) - 1
    if excess > 4 * QUATERNION_FLOAT32:
        cause = (
            f"the quaternion of the qform is too long (b2 + c2 + d2 = 1 + {excess:.1g}) and is shortened: "
            f"the axes may be up to {np.degrees(2 * np.sqrt(excess)):.2g} degrees off"
        )
        findings.append(Finding("WARN", "AFFINE_ROUNDED", cause, "store an sform too"))
    affine = file_affine(qform)
    return affine, findings + checks.check_affine(affine)


def _quaternion(header: Any) -> np.ndarray:
    """b, c, d as they are stored."""
    return np.array([float(header[f"quatern_{letter}"]) for letter in "bcd"])


def _qform(header: Any, sizes: np.ndarray, expected: np.ndarray | None = None) -> np.ndarray | None:
    """The qform (4, 4), (i, j, k) to RAS mm, with voxel sizes (i, j, k); None when its quaternion is none.

    As in the NIfTI reference library a is 0 from a length of 1 on, and the third axis runs the other way
    where pixdim[0] is negative.
    expected: axes (3, 3) that are taken where their quaternion is the stored one as well as 32 bits can say
    it. Near half a turn the three stored numbers say little about the fourth: rounded, they turn the axes by
    up to 0.16 degrees.
    """
    stored, handedness = _quaternion(header), [1, 1, -1 if float(header["pixdim"][0]) < 0 else 1]
    square, rotation = 1 - float(np.square(stored).sum()), None
    if expected is not None and np.linalg.det(expected * handedness) > 0:
        a, *axis = mat2quat(expected * handedness)
        signs = (1, -1) if abs(a) < np.sqrt(2 * QUATERNION_FLOAT32) else (1,)
        if min(np.abs(sign * stored - axis).max() for sign in signs) <= QUATERNION_FLOAT32:
            rotation = expected * handedness
    if rotation is None:
        if not square >= -QUATERNION_DECIMALS:
            return None
        # it shortens what is too long
        rotation = quat2mat([0.0 if square < 1e-7 else np.sqrt(square), *stored])
    result = np.eye(4)
    result[:3, :3] = rotation * handedness * sizes
    result[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return result


def _compare_forms(header: Any, grid: Grid, sizes: np.ndarray) -> Findings:
    """Hold pixdim (sizes), and a qform's rotation and offset, against the sform, whose grid is `grid`.

    A qform holds no shear: it is held against the nearest perpendicular axes of the same lengths.
    """
    findings = checks.check_voxel_size(grid.affine, sizes[::-1], "pixdim")
    if int(header["qform_code"]) <= 0:
        return findings
    fix = "correct the header: set sform and qform to the true geometry"
    straight = file_affine(grid.affine)
    lengths = np.linalg.norm(straight[:3, :3], axis=0)
    left, _, right = np.linalg.svd(straight[:3, :3] / lengths)
    straight[:3, :3] = left @ right * lengths
    qform = _qform(header, lengths, left @ right)
    if qform is None or not np.isfinite(qform).all():
        cause = "the quaternion or the offset of the qform is invalid; the sform is used"
        return [*findings, Finding("WARN", "AFFINE_CONFLICT", cause, fix)]
    ours, theirs = (Grid(grid.shape, file_affine(form)) for form in (straight, qform))
    cause = f"qform and sform are {ours.corner_distance_mm(theirs):.2g} mm apart at the corners"
    off = ours.off_by(theirs)
    return findings + checks.agreement(off, "AFFINE_CONFLICT", cause, "the sform is used", fix)


# ---- writing ----------------------------------------------------------------------------------------------


def write_image(path: Path, volume: Volume, *, dtype: Any = np.int16) -> None:
    """Write an image atomically; integers are rounded and limited to the range of the type."""
    array = volume.array
    if np.issubdtype(dtype, np.integer) and array.dtype.kind == "f":
        limits = np.iinfo(dtype)
        array = np.clip(np.rint(array), limits.min, limits.max)
    _write(path, array.astype(dtype), volume.affine)


def write_label(path: Path, volume: Volume, *, names: dict[int, str] | None = None) -> None:
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
        unnamed = sorted(set(np.unique(volume.array).tolist()) - {0, *names})
        if unnamed:
            raise ValueError(f"label values without a name: {unnamed}")
    _write(path, volume.array.astype(np.uint8 if high <= 255 else np.uint16), volume.affine)


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

    def write(stream: BinaryIO) -> None:
        with (
            gzip.GzipFile(filename="", mode="wb", compresslevel=3, fileobj=stream, mtime=0)
            if path.name.lower().endswith(".gz")
            else contextlib.nullcontext(stream)
        ) as target:
            target.write(header.binaryblock + b"\0" * 4)
            target.write(np.ascontiguousarray(array).data)

    atomic_write(path, write)
