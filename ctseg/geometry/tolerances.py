"""How far two statements about one place may lie apart and still mean the same: fractions of a voxel, never
mm.

Decimal strings, float32 and quaternions round by a share of what they describe: 0.05 mm is a rounding on
voxels of 3 mm and a fault on voxels of 0.3 mm. One rule for slices of a series, for two forms in one header
and for a mask on its scan (docs/decisions/012-tolerances.md): up to `EQUAL` nothing is said, up to `ROUNDED`
the data is used with a WARN, beyond it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EQUAL = 0.005  # of a voxel: float32 at 1 m from the origin on voxels of 0.1 mm
ROUNDED = (
    0.05  # of a voxel: a slice of 1.25 mm written with one decimal is 0.04 off; it moves no voxel of a mask
)


def off_by(distance_mm: float | np.ndarray, spacing_mm: Sequence[float] | float) -> float:
    """The largest distance as a fraction of the smallest voxel side. Compare with `EQUAL` and `ROUNDED`."""
    return float(np.max(np.abs(distance_mm)) / np.min(spacing_mm))
