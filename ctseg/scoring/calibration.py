"""Whether probabilities mean what they say: of voxels called 0.8, are 80 % the structure?

Per structure, one against the rest: sums over 15 equal bins that add up over cases, and from them the
expected calibration error (Naeini, Cooper and Hauskrecht, 2015), Brier score (1950) and negative log
likelihood in nats. Over two regions: the whole scan, where millions of certain voxels far from everything
hide any fault, and the boundary band: dilate(R|P, 5) without erode(R&P, 5), 6-connected steps in voxels, R
reference, P prediction; outside the scan is background. Arrays are (D, H, W). Undefined (a region without
voxels) is None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from ctseg.geometry.boxes import bounding_box, grow

BINS = 15
CLIP = 1e-7  # probabilities are kept this far from 0 and 1 in the log likelihood
BAND_STEPS = 5
MARGIN = BAND_STEPS + 1  # voxels around a structure inside which its band lies, with one row of background
REGIONS = ("band", "whole")  # in the order they are shown: whole never alone, never first
_CHUNK = 1 << 17  # voxels per step: the temporaries stay in the cache


@dataclasses.dataclass
class Sums:
    """What adds up over voxels, cases and structures. n, y: (15,) int64 voxels and those that are the
    structure; p: (15,) float64 sum of probabilities."""

    n: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    p: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BINS, dtype=np.float64))
    y: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    brier: float = 0.0
    nll: float = 0.0

    @property
    def voxels(self) -> int:
        """All that was counted."""
        return int(self.n.sum())

    @property
    def ece(self) -> float | None:
        """Expected calibration error: mean over voxels of the gap between the mean probability and the
        frequency of their bin."""
        return float(np.abs(self.p - self.y).sum() / self.voxels) if self.voxels else None

    def add(self, probability: np.ndarray, reference: np.ndarray) -> None:
        """Count voxels. probability: any shape, 0..1; reference: bool, the same shape."""
        if probability.shape != reference.shape:
            raise ValueError(
                f"probability {probability.shape} and reference {reference.shape} differ in shape"
            )
        flat, truth = probability.reshape(-1), reference.reshape(-1)
        for first in range(0, flat.size, _CHUNK):
            p, y = flat[first : first + _CHUNK].astype(np.float64), truth[first : first + _CHUNK]
            bins = np.minimum((p * BINS).astype(np.intp), BINS - 1)
            self.n += np.bincount(bins, minlength=BINS)
            self.p += np.bincount(bins, p, minlength=BINS)
            self.y += np.bincount(bins[y], minlength=BINS)
            given = np.where(y, p, 1.0 - p)  # what was given to the truth
            self.brier += float(np.square(1.0 - given).sum())
            self.nll -= float(np.log(np.clip(given, CLIP, 1.0 - CLIP)).sum())

    def add_background(self, voxels: int) -> None:
        """Count voxels of probability 0 that are not the structure, without looking at them."""
        self.n[0] += voxels
        self.nll -= voxels * float(np.log(1.0 - CLIP))

    def merge(self, other: Sums) -> None:
        """Add what another counted."""
        for part, counted in vars(other).items():
            setattr(self, part, getattr(self, part) + counted)

    def record(self) -> dict[str, Any]:
        """The sums as JSON values."""
        return {part: np.asarray(counted).tolist() for part, counted in vars(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Sums:
        """The sums that `record` returned."""
        parts: dict[str, Any] = {
            part: np.array(counted) if isinstance(counted, list) else counted
            for part, counted in record.items()
        }
        return cls(**parts)

    def describe(self) -> dict[str, Any]:
        """ece, brier, nll, and per bin n, mean probability p and frequency y (None in an empty bin)."""
        count = self.voxels
        return {
            "ece": self.ece,
            "brier": self.brier / count if count else None,
            "nll": self.nll / count if count else None,
            "bins": [
                {"n": int(n), "p": float(p / n) if n else None, "y": float(y / n) if n else None}
                for n, p, y in zip(self.n, self.p, self.y)
            ],
        }


Regions = dict[str, Sums]


def empty() -> Regions:
    """Sums of both regions that counted nothing yet."""
    return {region: Sums() for region in REGIONS}


def structure_sums(
    *,
    probability: np.ndarray,
    reference: np.ndarray,
    prediction: np.ndarray,
    voxels: int,
    ignored: np.ndarray | None = None,
) -> Regions:
    """The sums of one structure in one case.

    probability (0..1), reference and prediction (bool): (d, h, w), one box of the scan that holds everything
    of all three and, inside the scan, MARGIN voxels around both masks. ignored: bool, the voxels of the box
    that do not count, for nobody looked at them. voxels: of the whole scan, without what is ignored anywhere;
    those outside the box have probability 0 and are not the structure.
    """
    seen = np.ones(reference.shape, bool) if ignored is None else ~ignored
    inside = int(np.count_nonzero(seen))
    if voxels < inside:
        raise ValueError(f"a scan of {voxels} voxels cannot hold a box of {inside}")
    result = empty()
    result["whole"].add(probability[seen], reference[seen])
    result["whole"].add_background(voxels - inside)
    either = reference | prediction
    if (box := bounding_box(either)) is not None:
        near = grow(box, MARGIN, either.shape)
        band = boundary_band(reference=reference[near], prediction=prediction[near]) & seen[near]
        result["band"].add(probability[near][band], reference[near][band])
    return result


def boundary_band(*, reference: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(D, H, W) bool: dilate(R|P, 5) without erode(R&P, 5). Empty where both masks are."""
    outer = ndimage.binary_dilation(reference | prediction, iterations=BAND_STEPS)
    return outer & ~ndimage.binary_erosion(reference & prediction, iterations=BAND_STEPS)


def describe(sums: Mapping[str, Mapping[str, Sums]]) -> dict[str, dict[str, Any]]:
    """The content of "calibration" in `summary_statistics.json`: structure -> region -> scores and bins."""
    return {
        name: {region: regions[region].describe() for region in REGIONS} for name, regions in sums.items()
    }


def pooled(sums: Mapping[str, Mapping[str, Sums]]) -> Regions:
    """The sums of all structures together: a structure counts by its voxels."""
    result = empty()
    for regions in sums.values():
        for region in REGIONS:
            result[region].merge(regions[region])
    return result
