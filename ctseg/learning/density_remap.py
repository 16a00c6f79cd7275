"""Class-balanced remapping of intensities: airway lumen and wall get most of the range that the network sees.

An airway is a hundredth of the lung region, so a window that suits the region spends its range elsewhere. The
table follows the intensities of lumen, wall and the rest as if the three were equally common. This is our
reconstruction of "DDR-CB" of AnatomicalPriorsMTL-AirwaySegment, which publishes the idea and no code. The
table is fitted on training cases only and travels in the checkpoint.

Axis 0 of the arrays runs along the patient (superior), so a slice along it is an axial slice. Images are
0..1, see `ctseg.geometry.intensity.window`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from ctseg.datasets.case import IGNORED
from ctseg.errors import IntegrityError, PreconditionError
from ctseg.geometry.body_regions import AIR_HU, lung_box, lung_region
from ctseg.learning.dataset import TrainingCase

WALL_MM = 1.5
MIX = 0.3  # share of the straight line in the table; 1 would give the identity
BIN_HU = 16.0  # width of a bin; the window is cut into the nearest whole number of them


def fit_lookup(cases: Iterable[TrainingCase], window_hu: tuple[float, float]) -> np.ndarray:
    """(n + 1,) float32: new values at n + 1 evenly spaced old values 0..1, to be interpolated linearly.

    Strictly increasing, first 0 and last exactly 1. A case that is not of the training split is refused: the
    table would know what the scores are to measure.
    """
    n_bins = max(2, round((window_hu[1] - window_hu[0]) / BIN_HU))
    counts = np.zeros((3, n_bins))
    for case in cases:
        if case.split != "train":
            raise IntegrityError(
                "LEAKAGE",
                f"the density remap was given a case of split '{case.split}'",
                "fit it on training cases only",
                case=case.case_id,
            )
        counts += class_counts(case, window_hu, n_bins)
    totals = counts.sum(1, keepdims=True)
    if not totals.all():
        raise PreconditionError(
            "NO_TUBES",
            "no training case shows the tube with its surroundings, so its intensities are unknown",
            "check the masks of the training cases, or turn the density remap off",
        )
    density = (counts / totals).mean(0)  # equal shares, however rare a class is
    balanced = np.concatenate([[0.0], np.cumsum(density)])
    line = np.linspace(0, 1, n_bins + 1)
    table = ((1 - MIX) * balanced + MIX * line).astype(np.float32)
    table[0], table[-1] = 0, 1
    return table


def class_counts(case: TrainingCase, window_hu: tuple[float, float], n_bins: int) -> np.ndarray:
    """(3, n_bins) voxels per intensity of lumen, wall and the rest of the lung box."""
    image, label = case.image.float().numpy(), case.label.numpy()
    tube = (label > 0) & (label != IGNORED)
    if window_hu[0] < AIR_HU < window_hu[1]:
        region = lung_region(image, window_hu, case.spacing_mm)
    else:  # not a window for lungs: whatever it does not cut off as air
        region = image > 0
    box = lung_box(region | tube, case.spacing_mm)
    image, tube = image[box], tube[box]
    reach = int(np.clip(round(WALL_MM / min(case.spacing_mm)), 1, 2))
    grown = ndimage.binary_dilation(tube, np.ones((3, 3, 3), bool), iterations=reach)
    bins = np.minimum((image * n_bins).astype(np.int32), n_bins - 1)
    return np.stack([np.bincount(bins[where], minlength=n_bins) for where in (tube, grown & ~tube, ~grown)])
