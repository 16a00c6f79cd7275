"""Checks that every reader shares: the file itself, the size, the geometry, the intensities.

All raise CaseError with a stable code; what is tolerated comes back as a Finding. Thresholds stand here alone.
"""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import numpy as np

from ctseg.errors import CaseError, Finding
from ctseg.geometry.tolerances import EQUAL, ROUNDED
from ctseg.geometry.volume import AIR_HU, Grid, Volume, axes_like

MEMORY_LIMIT_BYTES = 4 << 30  # for one scan as stored plus as float32; 512 x 512 x 2700 in 16 bits
SPACING_RANGE_MM = (0.1, 20.0)
FARTHEST_MM = (
    100_000.0  # of the first voxel from the origin: beyond it a NIfTI's float32 no longer holds 0.01 mm
)
SMALLEST_VOXELS = 8  # per axis
SMALLEST_EXTENT_MM = 10.0  # per axis; shorter than any structure we segment with its surroundings
SHEAR_DEGREES = 0.1  # axes closer to a right angle than this count as orthogonal
HU_RANGE = (-33_000.0, 66_000.0)  # 16 bits of storage with the usual offsets; dental metal reaches 31,000
TISSUE_HU = -30.0  # every scan of a body holds fat or air, so values below this


def refuse(code: str, cause: str, fix: str, path: Path | str) -> CaseError:
    """The error of one unusable file."""
    return CaseError(code, cause, fix, file=path)


def require_regular(path: Path) -> int:
    """Size in bytes of a regular file; refuses everything whose opening or reading could hang or surprise."""
    try:
        status = path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise refuse(
                "FILE_MISSING",
                "the link leads back to itself (link loop)",
                "replace the link by the file",
                path,
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise refuse(
                "PERMISSION", "its folder may not be entered", "change the permissions of the folder", path
            ) from None
        raise refuse(
            "FILE_MISSING", "the file does not exist", "restore the file or remove the case", path
        ) from None
    except ValueError:  # a NUL character in the name
        raise refuse("FILE_MISSING", "the name is not a file name", "rename the file", path) from None
    if not stat.S_ISREG(status.st_mode):
        raise refuse(
            "NOT_REGULAR",
            f"it is {_kind(status.st_mode)}, not a regular file",
            "put the data file itself there",
            path,
        )
    if status.st_size == 0:
        raise refuse("FILE_EMPTY", "the file has 0 bytes", "copy or download the file again", path)
    return status.st_size


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((name for test, name in kinds if test(mode)), "something else")


def read_regular(path: Path, count: int = -1) -> bytes:
    """The bytes of a regular file, bounded by the memory limit; or only its first `count`."""
    size = require_regular(path)
    if size > MEMORY_LIMIT_BYTES:
        raise refuse(
            "TOO_LARGE",
            f"the file has {size / 2**30:.1f} GiB, limit {MEMORY_LIMIT_BYTES / 2**30:.0f} GiB",
            "crop or resample the scan first",
            path,
        )
    try:
        with path.open("rb") as stream:
            return stream.read(count)
    except PermissionError:
        raise refuse(
            "PERMISSION", "the file may not be read", "change the permissions of the file", path
        ) from None
    except OSError as error:
        raise refuse(
            "READ_FAILED",
            f"reading failed ({errno.errorcode.get(error.errno or 0, 'unknown error')})",
            "check the disk and copy the file again",
            path,
        ) from None


_OTHER_KINDS = (  # first bytes (DICOM: behind 128 others), what they mean
    (b"\x1f\x8b", "compressed with gzip as a whole", "unpack it with gunzip"),
    (b"NRRD000", "an NRRD file", "rename it to .nrrd"),
    (b"ObjectType", "a MetaImage file", "rename it to .mha"),
    (b"DICM", "a DICOM file", "give the folder of the series"),
)


def wrong_kind(path: Path, start: bytes, code: str, expected: str) -> CaseError:
    """The error of a file that begins with something else than `expected`; names what is often found instead."""
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return refuse(
            code, "it looks like a git-lfs pointer", "run `git lfs pull` or download the file itself", path
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return refuse(
            code,
            "it looks like an HTML page",
            "download the file again, logged in if the site needs it",
            path,
        )
    for magic, what, fix in _OTHER_KINDS:
        if start.startswith(magic) or start[128:].startswith(magic):
            return refuse(code, f"it is {what}", fix, path)
    if start.startswith(b"PK\x03\x04"):
        return refuse("ARCHIVE_INPUT", "it is a zip archive", "unpack it first", path)
    return refuse(code, f"the first bytes are not {expected}", "check what the file is", path)


def check_memory(voxels: int, item_bytes: int, path: Path | str) -> None:
    """Refuse a scan whose array would not fit, from its header alone."""
    need = voxels * (item_bytes + 4)
    if voxels * item_bytes > 1 << 40:
        raise refuse(
            "HEADER_IMPLAUSIBLE", f"the header announces {voxels:.3g} voxels", "export the scan again", path
        )
    if need > MEMORY_LIMIT_BYTES:
        raise refuse(
            "TOO_LARGE",
            f"needs {need / 2**30:.1f} GiB, limit {MEMORY_LIMIT_BYTES / 2**30:.0f} GiB",
            "crop or resample the scan first",
            path,
        )


def shear_degrees(affine: np.ndarray) -> float:
    """How far the three axes are from being perpendicular: the largest deviation of their angles from 90 degrees."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs((directions.T @ directions)[[0, 0, 1], [1, 2, 2]])
    return float(np.degrees(np.arcsin(np.clip(cosines.max(), 0.0, 1.0))))


def check_affine(affine: np.ndarray, path: Path | str) -> list[Finding]:
    """Finite, invertible, plausible spacing; shear is reported and kept."""
    if not np.isfinite(affine).all():
        raise refuse("SPACING_NONFINITE", "the affine holds NaN or infinity", "export the scan again", path)
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    if norms.min() <= 0 or abs(np.linalg.det(affine[:3, :3])) < 1e-6 * norms.prod():
        raise refuse(
            "AFFINE_SINGULAR",
            "the affine has no inverse (an axis without length or two parallel axes)",
            "export the scan again",
            path,
        )
    low, high = SPACING_RANGE_MM
    if norms.min() < low or norms.max() > high:
        text = " x ".join(f"{n:.4g}" for n in norms)
        raise refuse(
            "SPACING_IMPLAUSIBLE",
            f"voxels of {text} mm; {low} to {high} mm is allowed",
            "correct the voxel size",
            path,
        )
    if np.abs(affine[:3, 3]).max() > FARTHEST_MM:
        raise refuse(
            "POSITION_IMPLAUSIBLE",
            f"the first voxel lies {np.abs(affine[:3, 3]).max():.3g} mm from the origin; {FARTHEST_MM:.0f} mm is allowed",
            "export the scan again",
            path,
        )
    shear = shear_degrees(affine)
    if shear > SHEAR_DEGREES:
        return [
            Finding(
                "WARN",
                "AFFINE_SHEAR",
                f"axes are {shear:.2f} degrees off the right angle; resampling uses the full affine",
                file=str(path),
            )
        ]
    return []


def agreement(off: float, code: str, cause: str, counts: str, fix: str, path: Path | str) -> list[Finding]:
    """What it means that two statements about one place lie `off` voxels apart: nothing, a warning, or (CaseError) no use.

    cause: the two statements. counts: the one that is used where they differ by rounding. docs/decisions/012-tolerances.md.
    """
    if off <= EQUAL:
        return []
    if not off <= ROUNDED:
        raise refuse(code, f"{cause} ({off:.2g} of a voxel; {ROUNDED:g} is allowed)", fix, path)
    return [Finding("WARN", code, f"{cause} ({off:.2g} of a voxel); {counts}", fix, file=str(path))]


def check_voxel_size(
    affine: np.ndarray, sizes_mm: np.ndarray, source: str, path: Path | str
) -> list[Finding]:
    """Hold the voxel size that a header also states by itself (D, H, W) against the affine, which counts.

    On sheared axes the distance of neighbouring planes is as good a size as the length of a step.
    """
    steps, planes = (
        np.linalg.norm(affine[:3, :3], axis=0),
        1 / np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1),
    )
    apart = np.minimum(np.abs(steps - sizes_mm), np.abs(planes - sizes_mm))
    theirs, ours = (" x ".join(f"{size:.5g}" for size in sizes[::-1]) for sizes in (sizes_mm, steps))
    cause = f"{source} says voxels of {theirs} mm, the axes of the same header {ours} mm"
    return agreement(
        float(np.max(apart / steps)),
        "AFFINE_CONFLICT",
        cause,
        "the axes count",
        "correct the header: write one voxel size in both places",
        path,
    )


def put_on(mask: Volume, grid: Grid, path: Path | str, *, of: str = "image") -> tuple[Volume, list[Finding]]:
    """The mask on exactly `grid`, the grid of `of`, by reordering its axes; nothing is interpolated.

    CaseError GRID_MISMATCH where that does not lead there within a twentieth of a voxel.
    """
    moved = axes_like(mask, grid)
    fix = f"give the mask that was drawn on this {of}, or resample it onto the grid of the {of}"
    if moved.array.shape != grid.shape:
        raise refuse(
            "GRID_MISMATCH",
            f"its shape is {mask.array.shape}, the {of} has {grid.shape} (D, H, W)",
            fix,
            path,
        )
    theirs, ours = (
        " x ".join(f"{s:.4g}" for s in spacing) for spacing in (moved.spacing_mm, grid.spacing_mm)
    )
    sizes = f" (voxels {theirs} against {ours} mm)" if theirs != ours else ""
    cause = f"its affine puts it up to {moved.grid.corner_distance_mm(grid):.2g} mm away from the {of}{sizes}"
    off = grid.off_by(moved.grid)
    if not off <= ROUNDED:
        raise refuse("GRID_MISMATCH", cause, fix, path)
    findings = []
    if off > EQUAL:
        cause += f", {off:.2g} of a voxel, and counts as the same"
        findings.append(
            Finding("WARN", "GRID_ROUNDING", cause, "nothing to do if it was rounded", file=str(path))
        )
    if moved is not mask:
        findings.append(
            Finding(
                "NOTE",
                "GRID_REORDERED",
                f"its axes run differently from those of the {of}; reordered without interpolation",
                file=str(path),
            )
        )
    return Volume(moved.array, grid.affine), findings


def check_size(grid: Grid, path: Path | str) -> None:
    """Refuse a scan too small to hold an organ and its surroundings."""
    extents = [n * s for n, s in zip(grid.shape, grid.spacing_mm)]
    if min(grid.shape) < SMALLEST_VOXELS or min(extents) < SMALLEST_EXTENT_MM:
        text = " x ".join(f"{e:.0f}" for e in extents)
        raise refuse(
            "TOO_SMALL",
            f"shape {grid.shape} of {text} mm; at least {SMALLEST_VOXELS} voxels and {SMALLEST_EXTENT_MM:.0f} mm along each axis are needed",
            "use a scan that holds the whole structure",
            path,
        )


def check_finite(array: np.ndarray, path: Path | str) -> None:
    """Refuse NaN and infinity, with their number. The array may be of any scalar type."""
    if array.dtype.kind != "f" or bool(np.isfinite(array.min()) and np.isfinite(array.max())):
        return
    count = int(array.size - np.isfinite(array).sum())
    raise refuse(
        "NONFINITE",
        f"n={count} voxels ({100 * count / array.size:.3g} %) are NaN or infinite",
        "export the scan again without them",
        path,
    )


def check_hu(array: np.ndarray, path: Path | str, *, stored_bits: int = 16) -> None:
    """Refuse intensities that cannot be Hounsfield units. array: float32, finite.

    The rules use only what every body has: air or fat (below -30 HU), and no majority of voxels denser than
    bone. Contrast, metal, tight crops without outside air and any padding value pass.
    """
    low, high = float(array.min()), float(array.max())
    fix = "convert to Hounsfield units (water 0, air -1000); values stored as HU + 1024 need 1024 subtracted"
    if low == high:
        raise refuse("CONSTANT_IMAGE", f"every voxel has the value {low:g}", "export the scan again", path)
    if stored_bits <= 8:
        raise refuse(
            "NOT_HU",
            f"stored in 8 bits (range {low:g} to {high:g}): at most 256 levels are a picture, not HU",
            fix,
            path,
        )
    if low < HU_RANGE[0] or high > HU_RANGE[1]:
        raise refuse(
            "NOT_HU", f"range {low:g} to {high:g} exceeds {HU_RANGE[0]:g} to {HU_RANGE[1]:g}", fix, path
        )
    if high - low < 100:
        raise refuse(
            "NOT_HU",
            f"range {low:g} to {high:g} is narrower than fat to muscle: the scan is already scaled",
            fix,
            path,
        )
    if low >= TISSUE_HU:
        raise refuse("NOT_HU", f"the smallest value is {low:g}: no air and no fat", fix, path)
    step = 1 if array.size < 1 << 22 else 3  # shares need no more than every 27th voxel of a large scan
    array = array[::step, ::step, ::step]
    if np.count_nonzero(array > 1000) > 0.5 * array.size:
        raise refuse("NOT_HU", "more than half of the voxels are denser than bone", fix, path)
    offset = np.count_nonzero((array > 800) & (array < 1300)) > 0.05 * array.size
    if offset and not np.any((array >= -1020) & (array <= TISSUE_HU)):
        raise refuse(
            "NOT_HU",
            "tissue lies near 1024 and nothing but padding lies below 0: stored as HU + 1024",
            fix,
            path,
        )


def clip_padding(array: np.ndarray, path: Path | str) -> list[Finding]:
    """Raise everything below air (-1024 HU) to air, in place; a note says how much that was."""
    lowest = float(array.min())
    if lowest >= AIR_HU:
        return []
    below = np.count_nonzero(array < AIR_HU)
    np.maximum(array, np.float32(AIR_HU), out=array)
    return [
        Finding(
            "NOTE",
            "PADDING",
            f"{100 * below / array.size:.3g} % of the voxels lie below -1024 HU (lowest {lowest:g}) and count as air",
            file=str(path),
        )
    ]
