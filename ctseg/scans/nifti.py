"""NIfTI files: read with every check before use, written with the affine bit for bit.

A file is read in this order, and nothing later happens after a refusal: regular file, magic bytes, header,
memory, decompression bounded to the declared size (checksum included), type, finiteness, geometry, intensities.
nibabel parses the header only: it accepts singular geometry and expands what a header never declared.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from ctseg.artifacts import atomic_write
from ctseg.errors import Finding
from ctseg.scans import checks
from ctseg.scans.checks import refuse
from ctseg.scans.stored import Content, Stored, image_of, integers_of, mask_of
from ctseg.scans.volume import RAS_TO_LPS, Grid, Volume

FORMS_AGREE_MM = 0.01  # qform and sform closer than this at the corners are one geometry
FORMS_CONFLICT_MM = 1.0  # farther apart than this nobody knows which one is meant
_EXTENSION_LIMIT = 64 << 20
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_TYPE_NAMES = {1: "1-bit", 32: "complex64", 128: "RGB24", 1536: "float128", 1792: "complex128", 2048: "complex256", 2304: "RGBA32"}


def read_image(path: str | Path, *, check_hu: bool = True) -> tuple[Volume, list[Finding]]:
    """The CT of a NIfTI file: float32 HU, (D, H, W), not below -1024, and what was noticed.

    check_hu=False skips the plausibility of the intensities and the smallest size (for other images than CT).
    Raises CaseError; its `file` is the path as given.
    """
    path = Path(path)
    return image_of(_read(path), path, check_hu=check_hu)


def read_integers(path: str | Path) -> tuple[Volume, list[Finding]]:
    """The integers of a label file as int32 (D, H, W). Checked before any cast, so nothing wraps or truncates."""
    path = Path(path)
    return integers_of(_read(path), path)


def read_mask(path: str | Path) -> tuple[Volume, list[Finding]]:
    """What a mask file holds: integers, or the probabilities of one structure; see `stored.mask_of`."""
    path = Path(path)
    return mask_of(_read(path), path)


def read_names(path: str | Path) -> dict[int, str]:
    """Value -> name from the label table in a NIfTI extension (as Connectome Workbench and TotalSegmentator write it); empty without one."""
    names: dict[int, str] = {}
    for extension in getattr(nib.load(path).header, "extensions", []):
        content = extension.get_content()
        text = content.decode("utf-8", errors="replace") if isinstance(content, bytes) else str(content)
        names |= {int(value): name.strip() for value, name in re.findall(r'<Label\s[^>]*Key="(\d{1,6})"[^>]*>\s*<!\[CDATA\[(.*?)\]\]>', text)}
    return {value: name for value, name in names.items() if value > 0 and name}


def write_image(path: str | Path, volume: Volume, *, dtype: Any = np.int16) -> None:
    """Write an image atomically; integers are rounded and limited to the range of the type."""
    array = volume.array
    if np.issubdtype(dtype, np.integer) and array.dtype.kind == "f":
        limits = np.iinfo(dtype)
        array = np.clip(np.rint(array), limits.min, limits.max)
    _write(Path(path), array.astype(dtype), volume.affine)


def write_label(path: str | Path, volume: Volume, *, names: dict[int, str] | None = None) -> None:
    """Write a label map atomically, as uint8 or, above 255, uint16.

    names: when given, every value but 0 must have one (the caller writes them next to the file); ValueError else.
    """
    low, high = int(volume.array.min()), int(volume.array.max())
    if volume.array.dtype.kind not in "uib" or low < 0 or high > 65535:
        raise ValueError(f"a label map holds integers from 0 to 65535, not {volume.array.dtype} from {low} to {high}")
    if names is not None:
        unnamed = sorted({int(v) for v in np.unique(volume.array)} - {0} - set(names))
        if unnamed:
            raise ValueError(f"label values without a name: {unnamed}")
    _write(Path(path), volume.array.astype(np.uint8 if high <= 255 else np.uint16), volume.affine)


def file_affine(affine: np.ndarray) -> np.ndarray:
    """Between the affine of a Volume, (d, h, w) to LPS, and of its file, (i, j, k) to RAS. Its own inverse."""
    return RAS_TO_LPS @ affine[:, [2, 1, 0, 3]]


# ---- reading ----------------------------------------------------------------------------------------------


def _read(path: Path) -> Stored:
    if path.suffix.lower() in (".hdr", ".img"):
        raise refuse("PAIR_UNSUPPORTED", "a header/image pair", "convert it to one .nii.gz file", path)
    data = checks.read_regular(path)
    zipped = data[:2] == b"\x1f\x8b"
    content = Content(path, data, zipped=zipped, truncated="NIFTI_TRUNCATED")
    findings = _name_findings(path, zipped)
    header = _parse_header(path, content)
    shape, dropped = _check_shape(path, header)
    if dropped:
        findings.append(Finding("WARN", "NOT_3D", f"{dropped} further axes of length 1 were dropped", file=str(path)))
    code = int(header["datatype"])
    if code in _TYPE_NAMES:
        raise refuse("NOT_SCALAR", f"voxels are {_TYPE_NAMES[code]}, not single numbers", "export the scan as 16-bit integers", path)
    if code not in _TYPES or np.dtype(_TYPES[code]).itemsize * 8 != int(header["bitpix"]):
        raise refuse("HEADER_IMPLAUSIBLE", f"data type {code} with {int(header['bitpix'])} bits per voxel", "export the scan again", path)
    dtype = np.dtype(header.endianness + _TYPES[code])
    voxels = shape[0] * shape[1] * shape[2]
    checks.check_memory(voxels, dtype.itemsize, path)
    affine, notes = _affine(path, header, shape)
    array = _voxels(path, content, header, shape, dtype)
    slope, intercept = _scaling(path, header)
    return Stored(array, slope, intercept, affine, findings + notes)


def _name_findings(path: Path, zipped: bool) -> list[Finding]:
    named_zipped = path.name.lower().endswith(".gz")
    if named_zipped and not zipped:
        return [Finding("WARN", "NOT_GZIP", "named .gz but not compressed; read as it is", "rename the file to .nii", file=str(path))]
    if zipped and not named_zipped:
        return [Finding("NOTE", "NOT_GZIP", "compressed although its name does not end in .gz", "rename the file to .nii.gz", file=str(path))]
    return []


def _parse_header(path: Path, content: Content) -> Any:
    """nibabel's header object for the first 348 (NIfTI-1) or 540 (NIfTI-2) bytes, unchecked."""
    start = content.take(4)
    if len(start) < 4:
        raise refuse("NIFTI_TRUNCATED", f"ended at byte {len(start)} inside the header", "copy or download the file again", path)
    sizes = {int.from_bytes(start, "little"), int.from_bytes(start, "big")}
    kinds: tuple[tuple[int, Any, int], ...] = ((348, nib.Nifti1Header, 344), (540, nib.Nifti2Header, 4))
    for size, kind, magic_at in kinds:
        if size not in sizes:
            continue
        block = start + content.take(size - 4)
        if len(block) < size:
            raise refuse("NIFTI_TRUNCATED", f"ended at byte {len(block)} inside the header", "copy or download the file again", path)
        magic = block[magic_at : magic_at + 3]
        if magic in (b"ni1", b"ni2"):
            raise refuse("PAIR_UNSUPPORTED", "the header of a header/image pair", "convert it to one .nii.gz file", path)
        if magic in (b"n+1", b"n+2"):
            return kind(binaryblock=block, endianness="<" if int.from_bytes(start, "little") == size else ">", check=False)
    raise checks.wrong_kind(path, start + content.take(256), "NOT_NIFTI", "a NIfTI header")


def _check_shape(path: Path, header: Any) -> tuple[tuple[int, int, int], int]:
    """((D, H, W), number of dropped axes of length 1)."""
    dimensions = [int(n) for n in header["dim"]]
    count = dimensions[0]
    lengths = dimensions[1 : 1 + max(count, 0)]
    if not 1 <= count <= 7 or min(lengths) < 1:
        raise refuse("HEADER_IMPLAUSIBLE", f"dimensions {tuple(lengths)}", "export the scan again", path)
    if count < 3 or any(n > 1 for n in lengths[3:]):
        raise refuse("NOT_3D", f"shape {tuple(lengths)}", "give one 3D volume per file", path)
    return (lengths[2], lengths[1], lengths[0]), count - 3


def _voxels(path: Path, content: Content, header: Any, shape: tuple[int, int, int], dtype: np.dtype) -> np.ndarray:
    """The stored array; its bytes already lie in (D, H, W) order."""
    smallest = 352 if int(header["sizeof_hdr"]) == 348 else 544
    offset = float(header["vox_offset"]) or smallest  # 0 is written by some tools for "right behind the header"
    if not smallest <= offset <= smallest + _EXTENSION_LIMIT or offset != int(offset):
        raise refuse("HEADER_IMPLAUSIBLE", f"the voxels are said to start at byte {offset:g}", "export the scan again", path)
    size = shape[0] * shape[1] * shape[2] * dtype.itemsize
    content.take(int(offset) - content.position)
    data = content.take(size)
    if len(data) < size:
        raise refuse("NIFTI_TRUNCATED", f"ended at byte {content.position} of {int(offset) + size}", "copy or download the file again", path)
    content.finish(int(offset) + size)
    return np.frombuffer(data, dtype).reshape(shape)


def _scaling(path: Path, header: Any) -> tuple[float, float]:
    """(slope, intercept); a slope of 0 or NaN means no scaling, as the standard and nibabel have it."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite(slope) or not np.isfinite(intercept):
        raise refuse("HEADER_IMPLAUSIBLE", f"intensity scaling {slope:g} * x + {intercept:g}", "export the scan again", path)
    return slope, intercept


def _affine(path: Path, header: Any, shape: tuple[int, int, int]) -> tuple[np.ndarray, list[Finding]]:
    """The affine of the Volume and what was noticed; the sform counts, else the qform, never a guess."""
    if int(header["xyzt_units"]) & 7 not in (0, 2):
        raise refuse("UNITS_UNSUPPORTED", "lengths are not in mm", "export the scan in mm", path)
    findings: list[Finding] = []
    sform = header.get_sform() if int(header["sform_code"]) > 0 else None
    qform = _qform(path, header, needed=sform is None)
    ours = file_affine(np.asarray(sform if sform is not None else qform, dtype=np.float64))
    findings += checks.check_affine(ours, path)
    grid = Grid(shape, ours)
    if sform is not None and qform is not None:
        distance = grid.corner_distance_mm(Grid(shape, file_affine(qform)))
        if not distance <= FORMS_CONFLICT_MM:
            raise refuse("AFFINE_CONFLICT", f"qform and sform are {distance:.3g} mm apart at the corners", "correct the header: set both to the true geometry", path)
        if distance > FORMS_AGREE_MM:
            findings.append(Finding("WARN", "AFFINE_CONFLICT", f"qform and sform are {distance:.2g} mm apart at the corners; the sform is used", file=str(path)))
    return ours, findings


def _qform(path: Path, header: Any, *, needed: bool) -> np.ndarray | None:
    """The qform; None when the file has none and does not need it, or when its voxel size is unusable then."""
    sizes = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    problems = (
        ("SPACING_NONFINITE", not np.isfinite(sizes).all(), "NaN or infinite"),
        ("SPACING_NEGATIVE", bool((sizes < 0).any()), "negative"),
        ("SPACING_MISSING", bool((sizes == 0).any()), "0"),
    )
    for code, wrong, what in problems:
        if wrong and needed:
            raise refuse(code, f"the voxel size is {what}", "export the scan again with its geometry", path)
        if wrong:
            return None
    if int(header["qform_code"]) <= 0:
        if needed:
            raise refuse("AFFINE_UNKNOWN", "neither qform nor sform is set, so left and right are unknown", "export the scan again with its geometry", path)
        return None
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        raise refuse("AFFINE_SINGULAR", "the quaternion of the qform is invalid", "export the scan again with its geometry", path) from None


# ---- writing ----------------------------------------------------------------------------------------------


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
