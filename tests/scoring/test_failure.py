"""Agreement of members, AURC and Spearman by hand, the worst cases, and the lines that users of new scans
see.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ctseg.prediction.new_scans import low_confidence
from ctseg.reporting.pictures import reliability
from ctseg.scoring import failure
from ctseg.scoring.failure import agreement, aurc, coverage_risk, spearman
from ctseg.scoring.summary import lowest

RISK = [0.1, 0.2, 0.3, 0.4]


def labels(*lists: list[int]) -> list[np.ndarray]:
    return [np.array(values, dtype=np.uint8).reshape(1, 1, -1) for values in lists]


def test_two_members():
    assert agreement(labels([1, 1, 0, 2, 0], [1, 1, 1, 0, 0]), 3) == [pytest.approx(4 / 5), 0.0, None]
    assert agreement(labels([1, 2, 0], [1, 2, 0]), 2) == [1.0, 1.0]


def test_three_members_are_the_mean_of_three_pairs():
    a, b, c = labels([1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0])
    assert agreement([a, b, c], 1) == [pytest.approx((4 / 5 + 0 + 0) / 3)]
    assert agreement([a, c, c], 1) == [0.0]  # the pair of two empty maps does not count


def test_fewer_than_two_members_agree_on_nothing():
    assert agreement(labels([1, 2]), 2) == [None, None] and agreement([], 2) == [None, None]


def test_large_maps_against_brute_force():
    rng = np.random.default_rng(0)
    members = [rng.integers(0, 4, (9, 400, 400)).astype(np.uint8) for _ in range(3)]  # more than one step
    expected = [
        np.mean(
            [
                2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum())
                for a, b in itertools.combinations(members, 2)
            ]
        )
        for k in (1, 2, 3)
    ]
    assert agreement(members, 3) == pytest.approx(expected)


def test_aurc_by_hand():
    assert aurc([4, 3, 2, 1], RISK) == pytest.approx(0.175) and aurc([1, 2, 3, 4], RISK) == pytest.approx(
        0.325
    )
    assert np.allclose(coverage_risk([4, 3, 2, 1], RISK), [0.1, 0.15, 0.2, 0.25])
    assert aurc([], []) is None and aurc([0.3], [0.4]) == pytest.approx(0.4)


def test_ties_count_as_the_mean_over_their_orders():
    confidence = [0.9, 0.5, 0.5, 0.5]
    orders = [aurc([0.9, *order], RISK) for order in itertools.permutations([0.5, 0.4, 0.3])]
    assert aurc(confidence, RISK) == pytest.approx(np.mean(orders))
    assert aurc([0.5] * 4, RISK) == pytest.approx(np.mean(RISK))
    shuffled = [2, 0, 3, 1]
    assert aurc([confidence[i] for i in shuffled], [RISK[i] for i in shuffled]) == pytest.approx(
        aurc(confidence, RISK)
    )


def test_spearman():
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 6, 40).tolist(), rng.integers(0, 6, 40).tolist()
    assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    assert spearman([1, 2, 3], [2, 9, 10]) == pytest.approx(1) and spearman(
        [1, 2, 3], [3, 2, 1]
    ) == pytest.approx(-1)
    assert spearman([1, 1, 1], [1, 2, 3]) is None and spearman([1], [2]) is None and spearman([], []) is None


def row(
    case: str, structure: str, dice: float | None, confidence: float | None, state: str = "present"
) -> dict:
    return {"case_id": case, "structure": structure, "state": state, "dice": dice, "confidence": confidence}


ROWS = [
    row("a", "liver", 0.9, 0.95),
    row("a", "spleen", 0.8, 0.9),
    row("b", "liver", 0.5, 0.6),
    row("b", "spleen", 0.0, None, "missed"),
    row("c", "liver", None, 0.4, "hallucinated"),
    row("c", "spleen", 0.7, 0.6),
    row("d", "liver", None, None, "absent"),
    row("d", "spleen", None, None, "unannotated"),
]


def test_cases_and_structures_are_ranked_by_what_is_known():
    found = failure.summarise(ROWS, members=2)
    # mean confidence a .925, b .6, c .5; mean Dice a .85, b .25, c .7; d has no Dice
    assert found["n"] == 3 and found["members"] == 2 and found["reason"] is None
    assert found["aurc"] == pytest.approx(np.mean([0.15, (0.15 + 0.75) / 2, (0.15 + 0.75 + 0.3) / 3]))
    assert found["aurc_oracle"] == pytest.approx(np.mean([0.15, 0.225, 0.4])) and found[
        "aurc_random"
    ] == pytest.approx(0.4)
    assert found["spearman"] == pytest.approx(0.5) and found["n_missed_by_all"] == 1
    assert found["structures"]["liver"]["n"] == 2 and found["structures"]["liver"][
        "spearman"
    ] == pytest.approx(1)
    assert found["structures"]["spleen"]["aurc"] == pytest.approx((0.2 + 0.25) / 2)


def test_the_worst_by_confidence_and_by_dice():
    found = failure.summarise(ROWS, members=2)
    # .6 twice: by case
    assert [(item["case_id"], item["structure"]) for item in found["worst_by_confidence"]] == [
        ("b", "liver"),
        ("c", "spleen"),
        ("a", "spleen"),
        ("a", "liver"),
    ]
    assert [(item["case_id"], item["structure"]) for item in found["worst_by_dice"]][:2] == [
        ("b", "spleen"),
        ("b", "liver"),
    ]
    assert len(lowest(ROWS, "dice", ("case_id",), 2)) == 2


def test_without_members_nothing_is_known_and_it_says_why():
    rows = [{key: value for key, value in item.items() if key != "confidence"} for item in ROWS]
    found = failure.summarise(rows, reason="a single prediction")
    assert found["aurc"] is found["spearman"] is found["aurc_random"] is found["n_missed_by_all"] is None
    assert (
        found["n"] == 0
        and found["structures"] == {}
        and found["worst_by_dice"] == []
        and found["reason"] == "a single prediction"
    )


def test_the_line_about_a_doubtful_scan():
    assert low_confidence("scan", {"liver": 0.7, "spleen": None}, 0.7) is None
    line = low_confidence("scan", {"liver": 0.69, "spleen": 0.2, "aorta": 0.9}, 0.7)
    assert (
        line is not None
        and "\n" not in line
        and line.index("spleen 0.20") < line.index("liver 0.69")
        and "aorta" not in line
        and "LOW_CONFIDENCE case=scan" in line
    )
    assert "and 2 more" in (low_confidence("scan", {f"s{i}": 0.1 for i in range(7)}, 0.7) or "")


@pytest.mark.pictures
@pytest.mark.parametrize("count", [1, 8])
def test_picture_of_confidence(tmp_path: Path, count: int):
    rng = np.random.default_rng(2)
    rows = [
        row(f"c{case}", f"s{i}", float(rng.random()), float(rng.random()))
        for case in range(count)
        for i in range(count)
    ]
    rows.append(row("c0", "none", 0.0, None, "missed"))
    reliability.confidence(rows, [f"s{i}" for i in range(count)], tmp_path / "c.png", True)
    assert (tmp_path / "c.png").stat().st_size > 5000
