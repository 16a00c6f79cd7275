"""How certain a mean is: bootstrap over patients, who are the independent unit, not their scans."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

RESAMPLES = 10_000
SEED = 0
SMALLEST_N = 5  # below it no interval is given
RELIABLE_N = 50  # below it the true coverage of a nominal 95 % interval is some 73 to 91 %


Interval = tuple[list[float] | None, list[str]]  # 95 % limits, and flags of what they are worth


def describe(
    values: Sequence[float | None], patients: Sequence[Hashable], *, interval: bool = True
) -> dict[str, Any]:
    """Mean, std (ddof 1), min, max, median, p05, n, n_undefined, ci95, ci_method and flags of the values.

    None is undefined: it is counted and takes no part. The mean of nothing is None, the std of one value too.
    patients: who each value belongs to; the interval resamples patients with all their values.
    """
    pairs = [(value, patient) for value, patient in zip(values, patients) if value is not None]
    defined = np.array([value for value, _ in pairs], dtype=np.float64)
    n = int(defined.size)
    ci95, flags = bca_interval(defined, [patient for _, patient in pairs]) if interval else (None, [])
    return {
        "mean": float(defined.mean()) if n else None,
        "std": float(defined.std(ddof=1)) if n > 1 else None,
        "min": float(defined.min()) if n else None,
        "max": float(defined.max()) if n else None,
        "median": float(np.median(defined)) if n else None,
        "p05": float(np.percentile(defined, 5)) if n else None,
        "n": n,
        "n_undefined": len(values) - n,
        "ci95": ci95,
        "ci_method": "bca" if ci95 else None,
        "flags": flags,
    }


def settled(n: int, values: np.ndarray, limits: Callable[[], list[float]], *, equal: float = 0.0) -> Interval:
    """The interval over n patients; None below 5.

    Flags: "optimistic_ci" below 50 patients, "degenerate" (zero width) when all values are equal. limits: of
    the interval where they are not. equal: how far apart values may lie that rounding alone has parted.
    """
    if n < SMALLEST_N:
        return None, []
    flags = ["optimistic_ci"] if n < RELIABLE_N else []
    if np.ptp(values) <= equal:
        return [float(values[0])] * 2, [*flags, "degenerate"]
    return limits(), flags


def bca_interval(values: np.ndarray, patients: Sequence[Hashable]) -> Interval:
    """95 % BCa interval (Efron, 1987) of the mean, and its flags; see `settled`."""
    sums: dict[Hashable, list[float]] = {}
    for value, patient in zip(values, patients):
        sums.setdefault(patient, []).append(float(value))
    total = np.array([sum(of_patient) for of_patient in sums.values()])
    size = np.array([len(of_patient) for of_patient in sums.values()], dtype=np.float64)

    def limits() -> list[float]:
        draws = patient_draws(len(sums))
        means = total[draws].sum(axis=1) / size[draws].sum(axis=1)
        without = (total.sum() - total) / (size.sum() - size)
        return bca_limits(means, float(total.sum() / size.sum()), without)

    return settled(len(sums), values, limits)


def bca_limits(resampled: np.ndarray, observed: float, without: np.ndarray) -> list[float]:
    """95 % BCa limits (Efron, 1987) of any statistic.

    resampled: (R,) its values in the bootstrap resamples. observed: its value. without: (n,) its values with
    one patient left out, for the acceleration.
    """
    ordered, count = np.sort(resampled), len(resampled)
    below = (np.count_nonzero(ordered < observed) + 0.5 * np.count_nonzero(ordered == observed)) / count
    bias = ndtri(np.clip(below, 1 / count, 1 - 1 / count))
    deviation = without.mean() - without
    spread = (deviation**2).sum()
    acceleration = (deviation**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    shifted = bias + ndtri([0.025, 0.975])
    low, high = np.quantile(ordered, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return [float(low), float(high)]


@functools.lru_cache(maxsize=4)
def patient_draws(n: int, count: int = RESAMPLES) -> np.ndarray:
    """(count, n) patient numbers; the same for every metric and method of one run."""
    return np.random.default_rng(SEED).integers(0, n, size=(count, n), dtype=np.int32)
