"""Scores of single objects, such as lesions: which were found, which were not, and which are no objects.

An object is a 26-connected component. Nothing here is written by evaluate.py; it is a function to call.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

MATCHINGS = ("iou", "overlap")
MINIMUM_IOU = 0.5
_CONNECTED = np.ones((3, 3, 3), bool)


@dataclasses.dataclass(frozen=True)
class InstanceScores:
    """Scores of the objects of one pair of masks; None is undefined.

    tp, fp, fn: objects. f1 (the same number as rq): 2TP/(2TP+FP+FN), None when neither mask has an object.
    matching "iou": sq is the mean IoU of the matched pairs (None without any), pq = sq x rq, 0 without any match
    (panoptic quality, Kirillov et al., CVPR 2019). matching "overlap": lesion_dice is the mean over TP, FP and FN
    objects, the last two counting 0. Measures of the other matching are None.
    """

    tp: int
    fp: int
    fn: int
    f1: float | None
    sq: float | None = None
    rq: float | None = None
    pq: float | None = None
    lesion_dice: float | None = None


def instance_scores(
    *, prediction: np.ndarray, reference: np.ndarray, matching: str = "iou"
) -> InstanceScores:
    """Scores of the objects in two masks (D, H, W).

    matching: "iou" pairs objects that share at least half of their union; that is one to one.
    "overlap" finds a reference object wherever any predicted one touches it; all predicted objects that touch it
    are taken together, and one that touches several reference objects counts for each of them.
    """
    if prediction.ndim != 3 or prediction.shape != reference.shape:
        raise ValueError(
            f"prediction {prediction.shape} and reference {reference.shape} must be 3D and of one shape"
        )
    if matching not in MATCHINGS:
        raise ValueError(f"matching={matching!r} of {MATCHINGS}")
    predicted, n_predicted = ndimage.label(np.asarray(prediction).astype(bool), _CONNECTED)
    true, n_true = ndimage.label(np.asarray(reference).astype(bool), _CONNECTED)
    both = (predicted > 0) & (true > 0)
    pairs, shared = np.unique(np.stack([true[both], predicted[both]]), axis=1, return_counts=True)
    sizes = (
        np.bincount(true.reshape(-1), minlength=n_true + 1),
        np.bincount(predicted.reshape(-1), minlength=n_predicted + 1),
    )
    if matching == "iou":
        return _one_to_one(pairs, shared, sizes, n_true, n_predicted)
    return _touching(pairs, shared, sizes, n_true, n_predicted)


def _one_to_one(
    pairs: np.ndarray, shared: np.ndarray, sizes: tuple[np.ndarray, np.ndarray], n_true: int, n_predicted: int
) -> InstanceScores:
    ious = shared / (sizes[0][pairs[0]] + sizes[1][pairs[1]] - shared)
    # One to one by itself: two disjoint components cannot each be half of a third one, since a voxel joins its halves.
    matched = ious[ious >= MINIMUM_IOU].tolist()
    tp = len(matched)
    f1 = _f1(tp, n_predicted - tp, n_true - tp)
    sq = sum(matched) / tp if tp else None
    return InstanceScores(
        tp, n_predicted - tp, n_true - tp, f1, sq=sq, rq=f1, pq=None if f1 is None else (sq or 0.0) * f1
    )


def _touching(
    pairs: np.ndarray, shared: np.ndarray, sizes: tuple[np.ndarray, np.ndarray], n_true: int, n_predicted: int
) -> InstanceScores:
    dice = []
    for one in np.unique(pairs[0]):
        own = pairs[0] == one
        dice.append(float(2 * shared[own].sum() / (sizes[0][one] + sizes[1][pairs[1][own]].sum())))
    tp, fp = len(dice), n_predicted - np.unique(pairs[1]).size
    fn = n_true - tp
    f1 = _f1(tp, fp, fn)
    return InstanceScores(
        tp, fp, fn, f1, rq=f1, lesion_dice=None if f1 is None else sum(dice) / (tp + fp + fn)
    )


def _f1(tp: int, fp: int, fn: int) -> float | None:
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None
