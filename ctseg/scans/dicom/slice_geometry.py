"""Where the slices of a series lie: their positions checked, sorted, and made the affine of one volume.

Slices are sorted along the slice normal; the step between them stands in the affine as it is, so a tilted
gantry gives a sheared affine instead of a wrong scan.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.errors import Finding
from ctseg.geometry import tolerances
from ctseg.scans.dicom import dicom_files
from ctseg.scans.dicom.dicom_files import SMALLEST_SLICES
from ctseg.scans.formats import checks
from ctseg.scans.formats.regular_files import refuse

ORIENTATION_TOLERANCE = 1e-3  # of direction cosines between slices of one series

ROUNDED_COSINES = 0.02  # what two decimals make of the length and the right angle of row and column direction


@dataclasses.dataclass
class Slice:
    path: Path
    header: Any
    position: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))


def numbers_of(item: Slice, tag: str) -> list[float]:
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
        for tag, length in (
            ("ImagePositionPatient", 3),
            ("ImageOrientationPatient", 6),
            ("PixelSpacing", 2),
            ("Rows", 1),
            ("Columns", 1),
        ):
            values = numbers_of(item, tag)
            if len(values) != length:
                raise refuse(
                    "GEOMETRY_MISSING",
                    f"{tag} is missing or incomplete",
                    "export the series again with its geometry",
                    item.path,
                )
        item.position = np.array(numbers_of(item, "ImagePositionPatient"))
        if _skew(item) > ROUNDED_COSINES:
            raise refuse(
                "GEOMETRY_INCONSISTENT",
                "row and column direction are not perpendicular unit vectors",
                "export the series again",
                item.path,
            )


def _directions(item: Slice) -> np.ndarray:
    """Row and column direction (2, 3) as they are written."""
    return np.array(numbers_of(item, "ImageOrientationPatient")).reshape(2, 3)


def _skew(item: Slice) -> float:
    """How far row and column direction are from being perpendicular unit vectors."""
    directions = _directions(item)
    return float(np.abs(directions @ directions.T - np.eye(2)).max())


def drop_crossing(slices: list[Slice]) -> tuple[list[Slice], list[Finding]]:
    """Without the few slices that run across the others (scouts that do not say so)."""
    normals = [np.cross(*_directions(item)) for item in slices]
    agreeing = [sum(abs(float(a @ b)) > 0.99 for b in normals) for a in normals]
    main = normals[int(np.argmax(agreeing))]
    kept = [item for item, normal in zip(slices, normals) if abs(float(normal @ main)) > 0.99]
    dropped = len(slices) - len(kept)
    if dropped > max(2, 0.1 * len(slices)):
        raise refuse(
            "GEOMETRY_INCONSISTENT",
            f"{dropped} of {len(slices)} slices run across the others",
            "keep one orientation in the folder",
        )
    if len(kept) < SMALLEST_SLICES:
        raise refuse("TOO_SMALL", f"{len(kept)} parallel slices are no volume", "give the whole series")
    if not dropped:
        return kept, []
    return kept, [Finding("NOTE", "LOCALIZER", f"{dropped} images that run across the series were left out")]


def sort_and_place(slices: list[Slice]) -> tuple[np.ndarray, list[Finding]]:
    """Sort the slices in place along their normal; the affine (d, h, w) to LPS mm and what was noticed."""
    first = slices[0]
    for item in slices:
        for tag, tolerance in (
            ("Rows", 0.0),
            ("Columns", 0.0),
            ("PixelSpacing", 1e-4),
            ("ImageOrientationPatient", ORIENTATION_TOLERANCE),
        ):
            difference = np.abs(np.subtract(numbers_of(item, tag), numbers_of(first, tag))).max()
            if difference > tolerance:
                raise refuse(
                    "GEOMETRY_INCONSISTENT",
                    f"{tag} differs from the other slices by {difference:.3g}",
                    "remove the slice that does not belong to the series",
                    item.path,
                )
    left, _, right = np.linalg.svd(_directions(first), full_matrices=False)
    row, column = left @ right  # the nearest perpendicular unit vectors
    spacing = numbers_of(first, "PixelSpacing")
    normal = np.cross(row, column)
    slices.sort(key=lambda item: float(item.position @ normal))
    positions = np.array([item.position for item in slices])
    affine = np.eye(4)
    affine[:3, 3], affine[:3, 0] = _line(positions)
    affine[:3, 1], affine[:3, 2] = column * spacing[0], row * spacing[1]
    _check_steps(slices, positions @ normal)
    findings = [finding for finding in checks.check_affine(affine) if finding.code != "AFFINE_SHEAR"]
    findings += _check_line(slices, affine)
    if _skew(first) > ORIENTATION_TOLERANCE:
        findings.append(
            Finding(
                "WARN",
                "ORIENTATION_ROUNDED",
                f"row and column direction are written with few digits ({_skew(first):.2g} off "
                "perpendicular unit vectors); the nearest such vectors are used",
                "export the series again with more digits if its place in the room matters",
            )
        )
    tilt = checks.shear_degrees(affine)
    if tilt > checks.SHEAR_DEGREES:
        findings.append(
            Finding(
                "WARN",
                "GANTRY_TILT",
                f"slices are shifted by {tilt:.1f} degrees; the shear is kept and resampled",
            )
        )
    return affine, findings


def _line(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first point, step) of the line that fits slice positions (N, 3) best: rounding does not add up along
    it."""
    index = np.arange(len(positions)) - (len(positions) - 1) / 2
    middle = positions.mean(axis=0)
    step = index @ (positions - middle) / (index @ index)
    return middle + index[0] * step, step


def _check_line(slices: list[Slice], affine: np.ndarray) -> list[Finding]:
    """Refuse a series with a slice off the grid that `affine` says, by `tolerances`, in fractions of a voxel
    along each axis."""
    positions = np.array([item.position for item in slices])
    beside = positions - affine[:3, 3] - np.outer(np.arange(len(slices)), affine[:3, 0])
    off = np.abs(np.linalg.solve(affine[:3, :3], beside.T))  # (axis, slice) in voxels
    worst = int(np.argmax(off.max(axis=0)))
    share, off_mm = float(off[:, worst].max()), float(np.linalg.norm(beside[worst]))
    if off[0].max() > tolerances.ROUNDED:
        steps = np.diff(positions @ np.cross(affine[:3, 1], affine[:3, 2])) / np.prod(
            np.linalg.norm(affine[:3, 1:3], axis=0)
        )
        raise refuse(
            "SLICE_SPACING_NONUNIFORM",
            f"steps from {np.abs(steps).min():.3f} to {np.abs(steps).max():.3f} mm; a slice lies "
            f"{off_mm:.2g} mm off even places ({share:.2g} of a step, {tolerances.ROUNDED:g} is allowed)",
            "give a series with one slice spacing",
        )
    if share > tolerances.ROUNDED:
        raise refuse(
            "GEOMETRY_INCONSISTENT",
            f"the slice lies {off_mm:.2g} mm beside the line of the others",
            "export the series again",
            slices[worst].path,
        )
    if share <= tolerances.EQUAL:
        return []
    return [
        Finding(
            "WARN",
            "POSITIONS_ROUNDED",
            f"slices lie up to {off_mm:.2g} mm ({share:.2g} of a voxel) off evenly spaced places, "
            "which are used",
            "nothing to do if their positions were rounded when written",
        )
    ]


def _check_steps(slices: list[Slice], places: np.ndarray) -> None:
    """Refuse double positions and missing slices. places: mm along the normal, sorted."""
    steps = np.diff(places)
    apart = steps[steps > tolerances.EQUAL * steps.mean()]
    usual = float(np.median(apart)) if apart.size else 0.0
    tolerance = 2 * tolerances.ROUNDED * usual  # both ends of a step may be rounded
    nearest = int(np.argmin(steps))
    if steps[nearest] <= tolerance:
        raise refuse(
            "SLICE_DUPLICATE",
            "two slices lie at the same position",
            "keep one of them",
            slices[nearest + 1].path,
        )
    odd = np.flatnonzero(np.abs(steps - usual) > tolerance)
    multiples = np.rint(steps[odd] / usual)
    if (
        odd.size
        and (multiples >= 2).all()
        and (np.abs(steps[odd] - multiples * usual) <= multiples * tolerance).all()
    ):
        missing = int((multiples - 1).sum())
        raise refuse(
            "SLICE_GAP",
            f"{missing} slices are missing, the first {places[odd[0]] - places[0] + usual:.1f} mm "
            f"from the first slice (step {usual:.3g} mm)",
            "export the whole series again",
        )
