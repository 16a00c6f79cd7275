"""Knowing without a reference which results to distrust: agreement of several predictions of one scan, and
how well that foretells the Dice.

Confidence is the mean pairwise Dice between the label maps of members: the plain and the mirrored view of a
network, the models of an ensemble. Risk is 1 - Dice. AURC is the area under the risk-coverage curve (Geifman
and El-Yaniv, 2017): the mean over k of the mean risk of the k most confident cases. Undefined is None: the
confidence of a structure that no member predicts, a correlation of equal values.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # scipy.stats, slow to import, is loaded where it is first used

from ctseg.scoring.metrics import Row, grouped, has_reference
from ctseg.scoring.summary import lowest

_COLUMNS = ("case_id", "structure", "confidence", "dice")
_CHUNK = 1 << 20


def agreement(labels: Sequence[np.ndarray], n_structures: int) -> list[float | None]:
    """Mean pairwise Dice of each structure (label ids 1..n) between label maps (D, H, W) of one scan.

    A pair of which only one member has the structure counts 0, one of which neither has it does not count.
    None where no member has it, and for fewer than two members.
    """
    if len(labels) < 2:
        return [None] * n_structures
    flat = [np.ascontiguousarray(label).reshape(-1) for label in labels]
    pairs = list(itertools.combinations(range(len(flat)), 2))
    sizes, shared = (np.zeros((len(of), n_structures + 1), np.int64) for of in (flat, pairs))
    for first in range(0, flat[0].size, _CHUNK):
        parts = [label[first : first + _CHUNK] for label in flat]
        for i, part in enumerate(parts):
            sizes[i] += np.bincount(part[part > 0], minlength=n_structures + 1)
        for k, (i, j) in enumerate(pairs):
            agreed = (parts[i] > 0) & (parts[i] == parts[j])
            shared[k] += np.bincount(parts[i][agreed], minlength=n_structures + 1)
    both = np.reshape([sizes[i] + sizes[j] for i, j in pairs], shared.shape)
    sums, counts = (2 * shared / np.maximum(both, 1)).sum(axis=0), (both > 0).sum(axis=0)
    return [float(total / count) if count else None for total, count in zip(sums[1:], counts[1:])]


def aurc(confidence: Sequence[float], risk: Sequence[float]) -> float | None:
    """Area under the risk-coverage curve; None without cases. Cases of equal confidence count as their mean:
    the value expected over their orders."""
    if not len(risk):
        return None
    return float(np.mean(coverage_risk(confidence, risk)))


def coverage_risk(confidence: Sequence[float], risk: Sequence[float]) -> np.ndarray:
    """(n,) mean risk of the k most confident cases, k = 1..n; ties as in `aurc`."""
    values, certain = np.asarray(risk, dtype=np.float64), np.asarray(confidence, dtype=np.float64)
    _, group = np.unique(-certain, return_inverse=True)
    level = np.bincount(group, values) / np.bincount(group)
    return np.cumsum(level[np.sort(group)]) / np.arange(1, len(values) + 1)


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None for fewer than two values or when either side is constant."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(scipy.stats.spearmanr(one, other).statistic)


def case_points(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """{case_id, confidence, dice} of every case where both are defined: mean confidence over what was
    predicted, mean Dice over what the reference holds (a missed structure counts 0). The first can be had
    without a reference."""
    points = []
    for case_id, own in grouped(rows, "case_id").items():
        sure = [row["confidence"] for row in own if row.get("confidence") is not None]
        dice = [row["dice"] for row in own if has_reference(row)]
        if sure and dice:
            points.append(
                {"case_id": case_id, "confidence": float(np.mean(sure)), "dice": float(np.mean(dice))}
            )
    return points


def summarise(rows: Sequence[Row], members: int = 1, reason: str | None = None) -> dict[str, Any]:
    """The content of "failure_detection" in `summary_statistics.json`.

    rows: of all cases and structures, with "confidence" where it is known. members: how many predictions were
    compared; reason: why there is no confidence. aurc lies between aurc_oracle (cases in order of their Dice)
    and, when confidence knows something, aurc_random (in any order). n_missed_by_all: structures of the
    reference that no member predicts, so that no confidence warns of them.
    """
    points = case_points(rows)
    scored = [row for row in rows if has_reference(row)]
    sure = [row for row in scored if row.get("confidence") is not None]
    known = grouped(sure, "structure")
    names = dict.fromkeys(row["structure"] for row in rows)
    by_structure = {name: _rank(known[name]) for name in names if name in known}
    return {
        **_rank(points),
        "members": members,
        "reason": reason,
        "n_missed_by_all": len(scored) - len(sure) if members > 1 else None,
        "structures": by_structure,
        "worst_by_confidence": lowest(rows, "confidence", _COLUMNS),
        "worst_by_dice": lowest(rows, "dice", _COLUMNS) if by_structure else [],
    }


def _rank(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """aurc, its two bounds, spearman and n of things with confidence and dice."""
    confidence, dice = ([point[key] for point in points] for key in ("confidence", "dice"))
    risk = [1.0 - value for value in dice]
    return {
        "aurc": aurc(confidence, risk),
        "aurc_random": float(np.mean(risk)) if risk else None,
        "aurc_oracle": aurc(dice, risk),
        "spearman": spearman(confidence, dice),
        "n": len(points),
    }
