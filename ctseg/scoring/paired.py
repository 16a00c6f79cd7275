"""Statistics of paired values, one per patient: intervals, test, correction, ranking. No names, no verdicts.

A matrix is (patients, structures), NaN where a patient's reference does not hold the structure.
Sources: Wilcoxon (1945), zeros by Pratt (1959), Holm (1979), BCa intervals by Efron (1987), tau-b by Kendall
(1945).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import scipy  # scipy.stats, slow to import, is loaded where it is first used

from ctseg.scoring.statistics import RESAMPLES, SMALLEST_N, Interval, bca_limits, patient_draws, settled

EXACT_N = 50
SMALLEST_TEST_N = 6  # with fewer patients no p below 0.05 exists
RANKINGS = 1000


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is defined; NaN, without a warning, where nothing is."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=axis)
    total = np.where(defined, values, 0.0).sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def macro(matrix: np.ndarray) -> float:
    """Mean over the structures of their means over patients, from (patients, structures) with NaN; NaN for
    nothing."""
    return float(nan_mean(nan_mean(matrix, axis=0), axis=0))


def resampled_macro(matrix: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(resamples,) macro means of resampled patients. A structure that no drawn patient has is left out of
    that one.

    counts: (resamples, patients) of `patient_counts`.
    """
    defined = ~np.isnan(matrix)
    total, size = counts @ np.where(defined, matrix, 0.0), counts @ defined.astype(np.float64)
    return nan_mean(np.divide(total, size, out=np.full(total.shape, np.nan), where=size > 0), axis=1)


@functools.lru_cache(maxsize=4)
def patient_counts(n: int, count: int = RESAMPLES) -> np.ndarray:
    """(count, n) how often each patient is drawn in each of the resamples of `patient_draws`."""
    rows = np.arange(count)[:, None] * n + patient_draws(n, count)
    return np.bincount(rows.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def macro_interval(matrix: np.ndarray) -> Interval:
    """95 % BCa interval of the macro mean over patients, and its flags as in `statistics.settled`."""
    matrix = matrix[~np.isnan(matrix).all(axis=1)]
    n = len(matrix)
    if n < SMALLEST_N:
        return None, []
    resampled = resampled_macro(matrix, patient_counts(n))

    def limits() -> list[float]:
        without = np.array([macro(np.delete(matrix, i, axis=0)) for i in range(n)])
        return bca_limits(resampled, macro(matrix), without)

    return settled(n, resampled, limits, equal=1e-12)


def median_interval(values: np.ndarray) -> Interval:
    """95 % percentile bootstrap interval of the median of (n,) values, one per patient, and its flags."""

    def limits() -> list[float]:
        resampled = np.median(values[patient_draws(len(values))], axis=1)
        return np.quantile(resampled, [0.025, 0.975]).tolist()

    return settled(len(values), values, limits)


# ---- test -------------------------------------------------------------------------------------------------


def wilcoxon_p(differences: np.ndarray) -> float:
    """Two-sided p of the signed-rank test, zeros by Pratt; above 50 values by the normal approximation, else
    exact, with ties and zeros too: there the approximation can fall below the smallest p that n signs
    allow."""
    sizes = np.abs(differences)
    if not sizes.any():
        return 1.0
    if len(sizes) > EXACT_N:
        return float(scipy.stats.wilcoxon(differences, zero_method="pratt", method="asymptotic").pvalue)
    # twice the rank is whole: ties share a mean rank
    doubled = np.round(2 * scipy.stats.rankdata(sizes)).astype(int)
    ranks = doubled[sizes > 0]
    seen = int(ranks[differences[sizes > 0] > 0].sum())
    chance = np.ones(1)  # chance[s]: of a sum s of the positive ranks when every sign is a coin
    for rank_ in ranks:
        chance = 0.5 * (np.pad(chance, (0, rank_)) + np.pad(chance, (rank_, 0)))
    return float(min(1.0, 2 * min(chance[: seen + 1].sum(), chance[seen:].sum())))


def holm(p: Sequence[float]) -> list[float]:
    """The p-values corrected by Holm (1979), in their order."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.arange(len(p), 0, -1) * np.asarray(p, dtype=np.float64)[order])
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.tolist()


# ---- ranking ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Rank:
    """A method's place by macro Dice: on all patients, its 95 % range over resamples, and the share of first
    places."""

    method: str
    rank: float
    ci95: list[float] | None
    wins: float


def rank(
    matrices: np.ndarray, names: Sequence[str], resamples: int = RANKINGS
) -> tuple[list[Rank], float | None]:
    """Ranks by macro mean (higher is better) over bootstraps of patients, and the mean Kendall tau-b to the
    ranking on all patients. matrices: (methods, patients, structures). Equal methods share the mean rank and
    the win.

    With fewer than 5 patients there is no range; tau is None when all methods are equal.
    """
    matrices = matrices[:, ~np.isnan(matrices).all(axis=(0, 2))]
    n = matrices.shape[1]
    counts = patient_counts(n, resamples)
    whole = np.array([macro(matrix) for matrix in matrices])
    drawn = np.stack([resampled_macro(matrix, counts) for matrix in matrices])  # (methods, resamples)
    ranks = scipy.stats.rankdata(-np.round(drawn, 12), axis=0)
    first = drawn.round(12) == drawn.round(12).max(axis=0)
    wins = (first / first.sum(axis=0)).mean(axis=1)
    place = scipy.stats.rankdata(-np.round(whole, 12))
    limits = np.quantile(ranks, [0.025, 0.975], axis=1) if n >= SMALLEST_N else None
    result = [
        Rank(
            name,
            float(place[i]),
            None if limits is None else [float(limits[0, i]), float(limits[1, i])],
            float(wins[i]),
        )
        for i, name in enumerate(names)
    ]
    return result, _kendall(place, ranks)


def _kendall(place: np.ndarray, ranks: np.ndarray) -> float | None:
    """Mean tau-b (Kendall, 1945) of each column of (methods, resamples) to `place`."""
    one, other = np.triu_indices(len(place), k=1)
    fixed, drawn = np.sign(place[one] - place[other]), np.sign(ranks[one] - ranks[other])
    scale = np.sqrt((fixed**2).sum() * (drawn**2).sum(axis=0))
    defined = scale > 0
    return float(((fixed @ drawn)[defined] / scale[defined]).mean()) if defined.any() else None
