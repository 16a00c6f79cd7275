"""Slices that a structure leaves out between its first and its last one, as contours of a thicker series do.

A gap as wide as the usual step between the drawn slices comes from the drawing: told, and interpolated on
request. A wider one is told where the structure lies at the same place on both sides of it, since a slice may
have been forgotten there.
"""

import numpy as np
from scipy import ndimage

from ctseg.errors import Finding, Findings

USUAL = 1.5  # steps up to which a gap still is one of the drawing: half-way to a slice that is missing
# A structure on every other slice: as it is; not at all; interpolated.
KEEP, LEAVE_OUT, FILL = "keep", "leave_out", "fill"
_FIX = (
    "interpolate them with --set data.fill_contour_gaps=true (visualize.py: --fill-contour-gaps), "
    "or draw the structure on every slice"
)
_TOLD = {
    KEEP: ("WARN", ", which count as empty", _FIX),
    LEAVE_OUT: ("WARN", ": it counts as not annotated", _FIX),
    FILL: ("NOTE", ", which are interpolated", "nothing to do if that is meant"),
}


def settle(
    mask: np.ndarray,
    places: dict[int, float],
    policy: str,
    *,
    spacing_mm: tuple[float, float],
    name: str,
    voxels: bool = False,
) -> tuple[bool, Findings]:
    """(whether the mask can be used, what is to be told about its gaps).

    mask: bool (D, H, W), filled in place by FILL. places: drawn slice -> where its contours lie, in slices.
    spacing_mm: of H and W. voxels: it was painted, not drawn; it may end and begin again, so that only a
    pattern is told. Only LEAVE_OUT finds a mask that cannot be used.
    """
    places = {plane: place for plane, place in places.items() if mask[plane].any()}
    usual, wide = _gaps(mask, places)
    findings: Findings = []
    if voxels and len(places) < 3:
        return True, []
    if wide and not voxels:
        cause = (
            f"nothing is drawn of '{name}' on {wide} slices although it goes on behind them; they "
            "count as empty"
        )
        findings.append(Finding("WARN", "LABEL_GAPS", cause, "draw it there too if it is there"))
    if not usual:
        return True, findings
    missing = sum(high - low - 1 for low, high in usual)
    cause = (
        f"'{name}' is drawn on {len(places)} slices as on a thicker series, and not on {missing} between them"
    )
    severity, what_becomes, fix = _TOLD[policy]
    findings.append(Finding(severity, "LABEL_GAPS", cause + what_becomes, fix))
    for low, high in usual if policy == FILL else []:
        # the signed distances to both outlines, weighted by their places (Raya and Udupa 1990)
        rows, columns = (np.flatnonzero((mask[low] | mask[high]).any(axis=axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        below, above = (_signed_mm(mask[plane][box], spacing_mm) for plane in (low, high))
        for plane in range(low + 1, high):
            share = (plane - places[low]) / (places[high] - places[low])
            mask[plane][box] = (1 - share) * below + share * above > 0
    return policy != LEAVE_OUT, findings


def _gaps(mask: np.ndarray, places: dict[int, float]) -> tuple[list[tuple[int, int]], int]:
    """([slices around each gap of the usual width], empty slices of the wider ones that the structure
    spans)."""
    drawn = sorted(places)
    steps = np.diff([places[plane] for plane in drawn])
    usual, wide = [], 0
    for low, high, step in zip(drawn, drawn[1:], steps):
        if high - low < 2:
            continue
        spans = bool((mask[low] & mask[high]).any())
        if step <= USUAL * np.quantile(steps, 0.5, method="lower") and (spans or len(drawn) > 2):
            usual.append((low, high))
        elif spans:
            wide += high - low - 1
    return usual, wide


def _signed_mm(mask: np.ndarray, spacing_mm: tuple[float, float]) -> np.ndarray:
    """mm to the outline of a mask (H, W) that holds a voxel, positive inside; what lies around it is
    outside."""
    padded = np.pad(mask, 1)
    inside, outside = (
        ndimage.distance_transform_edt(part, sampling=spacing_mm) for part in (padded, ~padded)
    )
    return (inside - outside)[1:-1, 1:-1]
