"""Scores of single objects against values counted by hand, for both ways to match them."""

from __future__ import annotations

import numpy as np
import pytest

from ctseg.scoring.instances import InstanceScores, instance_scores


def boxes(*filled: tuple[slice, slice, slice]) -> np.ndarray:
    mask = np.zeros((12, 12, 12), bool)
    for box in filled:
        mask[box] = True
    return mask


def bar(first: int, last: int, at: int = 1) -> tuple[slice, slice, slice]:
    """A row of voxels along the first axis."""
    return slice(first, last), slice(at, at + 1), slice(1, 2)


def test_found_missed_and_invented_objects() -> None:
    reference = boxes(bar(0, 4), bar(0, 4, at=5), bar(6, 8, at=9))
    prediction = boxes(bar(1, 5), bar(0, 4, at=5), bar(10, 12))
    assert instance_scores(prediction=prediction, reference=reference) == InstanceScores(
        2, 1, 1, 2 / 3, sq=0.8, rq=2 / 3, pq=pytest.approx(1.6 / 3)
    )
    assert instance_scores(prediction=prediction, reference=reference, matching="overlap") == InstanceScores(
        2, 1, 1, 2 / 3, rq=2 / 3, lesion_dice=(0.75 + 1) / 4
    )


def test_a_weak_overlap_is_found_by_touch_only() -> None:
    reference, prediction = boxes(bar(0, 4)), boxes(bar(3, 7))
    assert instance_scores(prediction=prediction, reference=reference) == InstanceScores(
        0, 1, 1, 0.0, sq=None, rq=0.0, pq=0.0
    )
    assert instance_scores(prediction=prediction, reference=reference, matching="overlap") == InstanceScores(
        1, 0, 0, 1.0, rq=1.0, lesion_dice=0.25
    )


def test_pieces_of_one_object_are_taken_together_by_touch() -> None:
    reference = boxes(bar(0, 7))
    prediction = boxes(bar(0, 3), bar(4, 7))
    assert instance_scores(prediction=prediction, reference=reference, matching="overlap") == InstanceScores(
        1, 0, 0, 1.0, rq=1.0, lesion_dice=12 / 13
    )
    apart = instance_scores(prediction=prediction, reference=reference)
    assert (apart.tp, apart.fp, apart.fn) == (0, 2, 1)  # 3 of 7 voxels each


def test_exactly_one_half_is_a_match() -> None:
    found = instance_scores(prediction=boxes(bar(0, 2)), reference=boxes(bar(0, 4)))
    assert (found.tp, found.sq, found.pq) == (1, 0.5, 0.5)


def test_only_the_larger_piece_is_a_match() -> None:
    reference, prediction = boxes(bar(0, 5)), boxes(bar(0, 3), bar(4, 5))
    found = instance_scores(prediction=prediction, reference=reference)
    assert (found.tp, found.fp, found.fn, found.sq) == (1, 1, 0, 0.6)


def test_one_prediction_over_two_objects_counts_for_both() -> None:
    reference, prediction = boxes(bar(0, 3), bar(5, 8)), boxes(bar(0, 8))
    assert instance_scores(prediction=prediction, reference=reference, matching="overlap") == InstanceScores(
        2, 0, 0, 1.0, rq=1.0, lesion_dice=pytest.approx(6 / 11)
    )
    assert instance_scores(prediction=prediction, reference=reference).tp == 0


def test_corner_neighbours_are_one_object() -> None:
    mask = boxes((slice(1, 2),) * 3, (slice(2, 3),) * 3)
    assert instance_scores(prediction=mask, reference=mask).tp == 1


@pytest.mark.parametrize("matching", ["iou", "overlap"])
def test_empty_masks(matching: str) -> None:
    some, none = boxes(bar(0, 2)), boxes()
    assert instance_scores(prediction=none, reference=none, matching=matching) == InstanceScores(
        0, 0, 0, None
    )
    for prediction, reference, counts in ((some, none, (0, 1, 0)), (none, some, (0, 0, 1))):
        found = instance_scores(prediction=prediction, reference=reference, matching=matching)
        assert (found.tp, found.fp, found.fn) == counts and found.f1 == 0.0
        assert (found.pq, found.sq, found.lesion_dice) == (
            (0.0, None, None) if matching == "iou" else (None, None, 0.0)
        )


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        instance_scores(prediction=boxes(), reference=boxes()[:3])
    with pytest.raises(ValueError, match="matching"):
        instance_scores(prediction=boxes(), reference=boxes(), matching="nearest")
