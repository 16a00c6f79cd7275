"""Checks that every reader shares: the size, the geometry, the intensities.

All raise CaseError with a stable code; what is tolerated comes back as a Finding. Thresholds stand here
alone.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from ctseg.errors import Finding, Findings
from ctseg.geometry.tolerances import EQUAL, ROUNDED
from ctseg.geometry.volume import AIR_HU, Grid, Volume, axes_like
from ctseg.scans.formats.regular_files import (
    EXPORT,
    MEMORY_LIMIT_BYTES,
    implausible,
    not_3d,
    refuse,
    too_large,
)

SPACING_RANGE_MM = (0.1, 20.0)
FARTHEST_MM = 100_000.0  # of the first voxel from the origin: beyond, a NIfTI's float32 does not hold 0.01 mm
SMALLEST_VOXELS = 8  # per axis
SMALLEST_EXTENT_MM = 10.0  # per axis; shorter than any structure we segment with its surroundings
SHEAR_DEGREES = 0.1  # axes closer to a right angle than this count as orthogonal
HU_RANGE = (-33_000.0, 66_000.0)  # 16 bits of storage with the usual offsets; dental metal reaches 31,000
TISSUE_HU = -30.0  # every scan of a body holds fat or air, so values below this


def check_memory(voxels: int, item_bytes: int) -> None:
    """Refuse a scan whose array would not fit, from its header alone."""
    need = voxels * (item_bytes + 4)
    if voxels * item_bytes > 1 << 40:
        raise implausible(f"the header announces {voxels:.3g} voxels")
    if need > MEMORY_LIMIT_BYTES:
        raise too_large(f"needs {need / 2**30:.1f} GiB")


def check_axes(lengths: Sequence[int]) -> tuple[tuple[int, int, int], Findings]:
    """(D, H, W) of a file whose axes run W, H, D and may go on with axes of length 1, which are told."""
    if len(lengths) < 3 or any(length > 1 for length in lengths[3:]):
        raise not_3d(f"shape {tuple(lengths)}")
    w, h, d, *further = lengths
    cause = f"further axes of length 1 were dropped (shape {tuple(lengths)})"
    return (d, h, w), [Finding("WARN", "NOT_3D", cause)] if further else []


def shear_degrees(affine: np.ndarray) -> float:
    """The largest deviation of the angles between the three axes from 90 degrees."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs((directions.T @ directions)[[0, 0, 1], [1, 2, 2]])
    return float(np.degrees(np.arcsin(np.clip(cosines.max(), 0.0, 1.0))))


def check_affine(affine: np.ndarray) -> Findings:
    """Finite, invertible, plausible spacing; shear is reported and kept."""
    if not np.isfinite(affine).all():
        raise refuse("SPACING_NONFINITE", "the affine holds NaN or infinity", EXPORT)
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    if norms.min() <= 0 or abs(np.linalg.det(affine[:3, :3])) < 1e-6 * norms.prod():
        cause = "the affine has no inverse (an axis without length or two parallel axes)"
        raise refuse("AFFINE_SINGULAR", cause, EXPORT)
    low, high = SPACING_RANGE_MM
    if norms.min() < low or norms.max() > high:
        cause = f"voxels of {times(norms, 4)} mm; {low} to {high} mm is allowed"
        raise refuse("SPACING_IMPLAUSIBLE", cause, "correct the voxel size")
    far = np.abs(affine[:3, 3]).max()
    if far > FARTHEST_MM:
        cause = f"the first voxel lies {far:.3g} mm from the origin; {FARTHEST_MM:.0f} mm is allowed"
        raise refuse("POSITION_IMPLAUSIBLE", cause, EXPORT)
    shear = shear_degrees(affine)
    cause = f"axes are {shear:.2f} degrees off the right angle; resampling uses the full affine"
    return [Finding("WARN", "AFFINE_SHEAR", cause)] if shear > SHEAR_DEGREES else []


def times(lengths: Iterable[float], digits: int) -> str:
    """Lengths as they are told, for example "3 x 0.7 x 0.7"."""
    return " x ".join(f"{length:.{digits}g}" for length in lengths)


def agreement(off: float, code: str, cause: str, counts: str, fix: str) -> Findings:
    """What it means that two statements about one place lie `off` voxels apart: nothing, a warning, or
    (CaseError) no use.

    cause: the two statements. counts: the one that is used where they differ by rounding.
    docs/decisions/012-tolerances.md has the reasons.
    """
    if off <= EQUAL:
        return []
    if not off <= ROUNDED:
        raise refuse(code, f"{cause} ({off:.2g} of a voxel; {ROUNDED:g} is allowed)", fix)
    return [Finding("WARN", code, f"{cause} ({off:.2g} of a voxel); {counts}", fix)]


def check_voxel_size(affine: np.ndarray, sizes_mm: np.ndarray, source: str) -> Findings:
    """Hold the voxel size that a header also states by itself (D, H, W) against the affine, which counts.

    On sheared axes the distance of neighbouring planes is as good a size as the length of a step.
    """
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    planes = 1 / np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1)
    apart = np.minimum(np.abs(steps - sizes_mm), np.abs(planes - sizes_mm))
    theirs, ours = times(sizes_mm[::-1], 5), times(steps[::-1], 5)
    cause = f"{source} says voxels of {theirs} mm, the axes of the same header {ours} mm"
    fix = "correct the header: write one voxel size in both places"
    return agreement(float(np.max(apart / steps)), "AFFINE_CONFLICT", cause, "the axes count", fix)


def put_on(mask: Volume, grid: Grid, *, of: str = "image") -> tuple[Volume, Findings]:
    """The mask on exactly `grid`, the grid of `of`, by reordering its axes; nothing is interpolated.

    CaseError GRID_MISMATCH where that does not lead there within a twentieth of a voxel.
    """
    moved = axes_like(mask, grid)
    fix = f"give the mask that was drawn on this {of}, or resample it onto the grid of the {of}"
    if moved.array.shape != grid.shape:
        cause = f"its shape is {mask.array.shape}, the {of} has {grid.shape} (D, H, W)"
        raise refuse("GRID_MISMATCH", cause, fix)
    theirs, ours = times(moved.spacing_mm, 4), times(grid.spacing_mm, 4)
    sizes = f" (voxels {theirs} against {ours} mm)" if theirs != ours else ""
    apart_mm = moved.grid.corner_distance_mm(grid)
    cause = f"its affine puts it up to {apart_mm:.2g} mm away from the {of}{sizes}"
    off = grid.off_by(moved.grid)
    if not off <= ROUNDED:
        raise refuse("GRID_MISMATCH", cause, fix)
    findings = []
    if off > EQUAL:
        cause += f", {off:.2g} of a voxel, and counts as the same"
        findings.append(Finding("WARN", "GRID_ROUNDING", cause, "nothing to do if it was rounded"))
    if moved is not mask:
        cause = f"its axes run differently from those of the {of}; reordered without interpolation"
        findings.append(Finding("NOTE", "GRID_REORDERED", cause))
    return Volume(moved.array, grid.affine), findings


def check_size(grid: Grid) -> None:
    """Refuse a scan too small to hold an organ and its surroundings."""
    extents = [n * s for n, s in zip(grid.shape, grid.spacing_mm)]
    if min(grid.shape) < SMALLEST_VOXELS or min(extents) < SMALLEST_EXTENT_MM:
        text = " x ".join(f"{extent:.0f}" for extent in extents)
        needed = f"{SMALLEST_VOXELS} voxels and {SMALLEST_EXTENT_MM:.0f} mm along each axis"
        cause = f"shape {grid.shape} of {text} mm; at least {needed} are needed"
        raise refuse("TOO_SMALL", cause, "use a scan that holds the whole structure")


def check_finite(array: np.ndarray) -> None:
    """Refuse NaN and infinity, with their number. The array may be of any scalar type."""
    if array.dtype.kind != "f" or bool(np.isfinite(array.min()) and np.isfinite(array.max())):
        return
    count = int(array.size - np.isfinite(array).sum())
    cause = f"n={count} voxels ({100 * count / array.size:.3g} %) are NaN or infinite"
    raise refuse("NONFINITE", cause, "export the scan again without them")


def check_hu(array: np.ndarray, *, stored_bits: int = 16) -> None:
    """Refuse intensities that cannot be Hounsfield units. array: float32, finite.

    The rules use only what every body has: air or fat (below -30 HU), and no majority of voxels denser than
    bone. Contrast, metal, tight crops without outside air and any padding value pass.
    """
    low, high = float(array.min()), float(array.max())
    found = f"range {low:g} to {high:g}"
    if low == high:
        raise refuse("CONSTANT_IMAGE", f"every voxel has the value {low:g}", EXPORT)
    step = 1 if array.size < 1 << 22 else 3  # shares need no more than every 27th voxel of a large scan
    few = array[::step, ::step, ::step]
    offset = np.count_nonzero((few > 800) & (few < 1300)) > 0.05 * few.size
    reasons = (
        (stored_bits <= 8, f"stored in 8 bits ({found}): at most 256 levels are a picture, not HU"),
        (low < HU_RANGE[0] or high > HU_RANGE[1], f"{found} exceeds {HU_RANGE[0]:g} to {HU_RANGE[1]:g}"),
        (high - low < 100, f"{found} is narrower than fat to muscle: the scan is already scaled"),
        (low >= TISSUE_HU, f"the smallest value is {low:g}: no air and no fat"),
        (np.count_nonzero(few > 1000) > 0.5 * few.size, "more than half of the voxels are denser than bone"),
        (
            offset and not np.any((few >= -1020) & (few <= TISSUE_HU)),
            "tissue lies near 1024 and nothing but padding lies below 0: stored as HU + 1024",
        ),
    )
    cause = next((cause for wrong, cause in reasons if wrong), None)
    if cause is not None:
        fix = (
            "convert to Hounsfield units (water 0, air -1000); values stored as HU + 1024 need 1024 "
            "subtracted"
        )
        raise refuse("NOT_HU", cause, fix)


def clip_padding(array: np.ndarray) -> Findings:
    """Raise everything below air (-1024 HU) to air, in place; a note says how much that was."""
    lowest = float(array.min())
    if lowest >= AIR_HU:
        return []
    share = 100 * np.count_nonzero(array < AIR_HU) / array.size
    np.maximum(array, np.float32(AIR_HU), out=array)
    cause = f"{share:.3g} % of the voxels lie below -1024 HU (lowest {lowest:g}) and count as air"
    return [Finding("NOTE", "PADDING", cause)]
