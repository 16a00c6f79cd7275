"""Where the slices of a series lie: their positions checked, sorted, and made the affine of one volume.

Slices are sorted along the slice normal; the step between them stands in the affine as it is, so a tilted
gantry gives a sheared affine instead of a wrong scan.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.errors import Finding, Findings
from ctseg.geometry import tolerances
from ctseg.scans.dicom import dicom_files
from ctseg.scans.dicom.dicom_files import SMALLEST_SLICES
from ctseg.scans.formats import checks
from ctseg.scans.formats.regular_files import refuse

ORIENTATION_TOLERANCE = 1e-3  # of direction cosines between slices of one series
ROUNDED_COSINES = 0.02  # what two decimals make of the length and the right angle of row and column direction
# Tag -> (its numbers in every slice, by how much they may differ between slices).
_GEOMETRY = {
    "ImagePositionPatient": (3, np.inf),
    "ImageOrientationPatient": (6, ORIENTATION_TOLERANCE),
    "PixelSpacing": (2, 1e-4),
    "Rows": (1, 0.0),
    "Columns": (1, 0.0),
}


@dataclasses.dataclass
class Slice:
    """One slice of a series; `geometry` holds the numbers of its tags from `check_each` on."""

    path: Path
    header: Any
    geometry: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def directions(self) -> np.ndarray:
        """Row and column direction (2, 3) as they are written."""
        return self.geometry["ImageOrientationPatient"].reshape(2, 3)

    @property
    def skew(self) -> float:
        """How far row and column direction are from being perpendicular unit vectors."""
        return float(np.abs(self.directions @ self.directions.T - np.eye(2)).max())


def numbers_of(item: Slice, tag: str) -> list[float]:
    """The numbers of an element, none where it is missing. DICOM_CORRUPT for anything else."""
    try:
        values = [float(value) for value in dicom_files.many(item.header.get(tag))]
    except Exception:  # pydicom raises many types on values it cannot parse
        values = [float("nan")]
    if not np.isfinite(values).all():
        raise refuse("DICOM_CORRUPT", f"{tag} is not a number", "export the series again", item.path)
    return values


def check_each(slices: list[Slice]) -> None:
    """Every slice has a position, an orientation, a pixel spacing and a size, as finite numbers."""
    for item in slices:
        item.geometry = {tag: np.array(numbers_of(item, tag)) for tag in _GEOMETRY}
        for tag, (length, _) in _GEOMETRY.items():
            if len(item.geometry[tag]) != length:
                cause, fix = f"{tag} is missing or incomplete", "export the series again with its geometry"
                raise refuse("GEOMETRY_MISSING", cause, fix, item.path)
        if item.skew > ROUNDED_COSINES:
            cause = "row and column direction are not perpendicular unit vectors"
            raise refuse("GEOMETRY_INCONSISTENT", cause, "export the series again", item.path)


def drop_crossing(slices: list[Slice]) -> Findings:
    """Leave out the few slices that run across the others (scouts that do not say so)."""
    normals = np.array([np.cross(*item.directions) for item in slices])
    # of each slice, how many run as it does; one after the other, for all at once take a square of memory
    alike = [np.count_nonzero(np.abs(normals @ normal) > 0.99) for normal in normals]
    along = np.abs(normals @ normals[np.argmax(alike)]) > 0.99
    total, dropped = len(slices), int(np.count_nonzero(~along))
    if dropped > max(2, 0.1 * total):
        cause = f"{dropped} of {total} slices run across the others"
        raise refuse("GEOMETRY_INCONSISTENT", cause, "keep one orientation in the folder")
    slices[:] = itertools.compress(slices, along)
    if len(slices) < SMALLEST_SLICES:
        raise refuse("TOO_SMALL", f"{len(slices)} parallel slices are no volume", "give the whole series")
    cause = f"{dropped} images that run across the series were left out"
    return [Finding("NOTE", "LOCALIZER", cause)] if dropped else []


def sort_and_place(slices: list[Slice]) -> tuple[np.ndarray, Findings]:
    """Sort the slices in place along their normal; the affine (d, h, w) to LPS mm and what was noticed."""
    first = slices[0]
    for item in slices:
        for tag, (_, tolerance) in _GEOMETRY.items():
            difference = np.abs(item.geometry[tag] - first.geometry[tag]).max()
            if difference > tolerance:
                cause = f"{tag} differs from the other slices by {difference:.3g}"
                fix = "remove the slice that does not belong to the series"
                raise refuse("GEOMETRY_INCONSISTENT", cause, fix, item.path)
    left, _, right = np.linalg.svd(first.directions, full_matrices=False)
    row, column = left @ right  # the nearest perpendicular unit vectors
    normal = np.cross(row, column)
    slices.sort(key=lambda item: float(item.geometry["ImagePositionPatient"] @ normal))
    positions = np.array([item.geometry["ImagePositionPatient"] for item in slices])
    _check_steps(slices, positions @ normal)
    # The line that fits the positions best: rounding does not add up along it.
    index = np.arange(len(positions)) - (len(positions) - 1) / 2
    middle = positions.mean(axis=0)
    affine = np.eye(4)
    affine[:3, 0] = index @ (positions - middle) / (index @ index)
    affine[:3, 3] = middle + index[0] * affine[:3, 0]
    affine[:3, 1:3] = np.stack([column, row], axis=1) * first.geometry["PixelSpacing"]
    findings = [finding for finding in checks.check_affine(affine) if finding.code != "AFFINE_SHEAR"]
    findings += _check_line(slices, positions, affine)
    if first.skew > ORIENTATION_TOLERANCE:
        cause = (
            f"row and column direction are written with few digits ({first.skew:.2g} off "
            "perpendicular unit vectors); the nearest such vectors are used"
        )
        fix = "export the series again with more digits if its place in the room matters"
        findings.append(Finding("WARN", "ORIENTATION_ROUNDED", cause, fix))
    tilt = checks.shear_degrees(affine)
    if tilt > checks.SHEAR_DEGREES:
        cause = f"slices are shifted by {tilt:.1f} degrees; the shear is kept and resampled"
        findings.append(Finding("WARN", "GANTRY_TILT", cause))
    return affine, findings


def _check_line(slices: list[Slice], positions: np.ndarray, affine: np.ndarray) -> Findings:
    """Refuse a series with a slice off the grid that `affine` says, by `tolerances`, in fractions of a voxel
    along each axis. positions: (N, 3)."""
    beside = positions - affine[:3, 3] - np.outer(np.arange(len(slices)), affine[:3, 0])
    off = np.abs(np.linalg.solve(affine[:3, :3], beside.T))  # (axis, slice) in voxels
    worst = int(np.argmax(off.max(axis=0)))
    share, off_mm = float(off[:, worst].max()), float(np.linalg.norm(beside[worst]))
    if off[0].max() > tolerances.ROUNDED:
        across = np.cross(affine[:3, 1], affine[:3, 2])
        steps = np.abs(np.diff(positions @ across)) / np.linalg.norm(across)
        cause = (
            f"steps from {steps.min():.3f} to {steps.max():.3f} mm; a slice lies "
            f"{off_mm:.2g} mm off even places ({share:.2g} of a step, {tolerances.ROUNDED:g} is allowed)"
        )
        raise refuse("SLICE_SPACING_NONUNIFORM", cause, "give a series with one slice spacing")
    if share > tolerances.ROUNDED:
        cause = f"the slice lies {off_mm:.2g} mm beside the line of the others"
        raise refuse("GEOMETRY_INCONSISTENT", cause, "export the series again", slices[worst].path)
    cause = (
        f"slices lie up to {off_mm:.2g} mm ({share:.2g} of a voxel) off evenly spaced places, which are used"
    )
    fix = "nothing to do if their positions were rounded when written"
    return [Finding("WARN", "POSITIONS_ROUNDED", cause, fix)] if share > tolerances.EQUAL else []


def _check_steps(slices: list[Slice], places: np.ndarray) -> None:
    """Refuse double positions and missing slices. places: mm along the normal, sorted."""
    steps = np.diff(places)
    apart = steps[steps > tolerances.EQUAL * steps.mean()]
    usual = float(np.median(apart)) if apart.size else 0.0
    tolerance = 2 * tolerances.ROUNDED * usual  # both ends of a step may be rounded
    nearest = int(np.argmin(steps))
    if steps[nearest] <= tolerance:
        cause = "two slices lie at the same position"
        raise refuse("SLICE_DUPLICATE", cause, "keep one of them", slices[nearest + 1].path)
    odd = np.flatnonzero(np.abs(steps - usual) > tolerance)
    multiples = np.rint(steps[odd] / usual)
    whole = (multiples >= 2) & (np.abs(steps[odd] - multiples * usual) <= multiples * tolerance)
    if odd.size and whole.all():
        cause = (
            f"{int((multiples - 1).sum())} slices are missing, the first "
            f"{places[odd[0]] - places[0] + usual:.1f} mm from the first slice (step {usual:.3g} mm)"
        )
        raise refuse("SLICE_GAP", cause, "export the whole series again")
