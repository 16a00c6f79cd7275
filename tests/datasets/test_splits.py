"""Splits: by patient, stratified, independent of order, frozen once drawn."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from ctseg.datasets.splits import draw_splits, frozen_assignment, splits_record
from ctseg.errors import IntegrityError, PreconditionError
from ctseg.geometry.volume import Grid
from ctseg.manifest import Case


def case(
    name: str,
    *,
    patient: str | None = None,
    present: str = "liver",
    source: str = "nifti",
    content: str | None = None,
    own: str | None = None,
) -> Case:
    states = {organ: "present" if organ in present.split() else "absent" for organ in ("liver", "prostate")}
    return Case(
        name,
        patient or name,
        states,
        {"image": {"format": source}, "split": own},
        Grid((1, 1, 1), np.eye(4)),
        content_hash=content or f"voxels of {name}",
    )


def draw(cases: list[Case], frozen: dict[str, str] | None = None, **options: float) -> dict[str, str]:
    values = {"val_fraction": 0.15, "test_fraction": 0.2, "seed": 0, **options}
    return draw_splits(
        cases,
        frozen=frozen or {},
        val_fraction=values["val_fraction"],
        test_fraction=values["test_fraction"],
        seed=int(values["seed"]),
    )[0]


def sizes(assignment: dict[str, str]) -> tuple[int, int, int]:
    counts = Counter(assignment.values())
    return counts["train"], counts["val"], counts["test"]


@pytest.mark.parametrize(
    ("patients", "expected"),
    [(3, (1, 1, 1)), (4, (2, 1, 1)), (10, (6, 2, 2)), (24, (15, 4, 5)), (100, (65, 15, 20))],
)
def test_sizes(patients: int, expected: tuple[int, int, int]) -> None:
    assert sizes(draw([case(f"p{n}") for n in range(patients)])) == expected


def test_order_does_not_matter_but_the_seed_does() -> None:
    cases = [
        case(f"p{n}", present="liver prostate" if n % 3 else "liver", source="dicom" if n % 2 else "nifti")
        for n in range(40)
    ]
    first = draw(cases)
    shuffled = cases.copy()
    random.Random(1).shuffle(shuffled)
    assert draw(shuffled) == first
    assert draw(cases, seed=1) != first


def test_each_stratum_is_shared_out() -> None:
    """20 men (DICOM), 20 women (NIfTI): 13 / 3 / 4 of each."""
    cases = [case(f"m{n}", present="liver prostate", source="dicom") for n in range(20)] + [
        case(f"w{n}") for n in range(20)
    ]
    assignment = draw(cases)
    for prefix in "mw":
        train, val, test = sizes({name: split for name, split in assignment.items() if name[0] == prefix})
        assert abs(train - 13) <= 1 and abs(val - 3) <= 1 and abs(test - 4) <= 1


def test_no_patient_in_two_splits_whatever_the_ids() -> None:
    generator = random.Random(7)
    for _ in range(200):
        count = generator.randrange(6, 40)
        names = [f"{generator.getrandbits(32):x}-ü{n}" for n in range(count)]
        cases = [
            case(
                name,
                patient=names[generator.randrange(n // 2 + 1)],
                present=generator.choice(["liver", "prostate", "liver prostate"]),
            )
            for n, name in enumerate(names)
        ]
        patients = {c.patient_id for c in cases}
        if len(patients) < 3:
            continue
        assignment = draw(cases)
        assert set(assignment) == patients
        assert min(sizes(assignment)) >= 1


def test_frozen_patients_stay_and_new_ones_fill_up() -> None:
    cases = [case(f"p{n}") for n in range(20)]
    frozen = draw(cases)
    more = draw([*cases, *(case(f"new{n}") for n in range(20))], frozen)
    assert {name: more[name] for name in frozen} == frozen
    assert sizes(more) == (26, 6, 8)
    fewer = draw(cases[3:], frozen)
    assert all(fewer[name] == frozen[name] for name in fewer)


def test_a_patient_stays_where_it_was_when_an_earlier_scan_of_it_is_added() -> None:
    """Patients of DICOM folders are called after their first case, and that is another one now."""
    for n in range(12):
        cases = [case(f"p{k}") for k in range(12)]
        frozen = draw(cases)
        again = draw([case("a0"), *cases[:n], case(f"p{n}", patient="a0"), *cases[n + 1 :]], frozen)
        assert again["a0"] == frozen[f"p{n}"]


@pytest.mark.parametrize(("present", "healthy"), [(3, 3), (4, 2), (3, 9), (5, 45)])
def test_every_split_has_cases_that_show_the_structure(present: int, healthy: int) -> None:
    for seed in range(10):
        cases = [case(f"p{n}") for n in range(present)] + [case(f"h{n}", present="") for n in range(healthy)]
        assignment = draw(cases, seed=seed)
        assert {assignment[f"p{n}"] for n in range(present)} == {"train", "val", "test"}
        assert min(sizes(assignment)) >= 1
    for more in (1, 4, 6):
        two = draw([case("a"), case("b"), *(case(f"h{n}", present="") for n in range(more))])
        assert {two["a"], two["b"]} == {"train", "test"}  # one to learn from, one to score


def test_own_split_wins_and_val_is_carved_from_train() -> None:
    cases = [case(f"a{n}", own="train") for n in range(20)] + [case(f"b{n}", own="test") for n in range(5)]
    assignment, findings = draw_splits(
        cases, frozen={"b0": "train", "a0": "train"}, val_fraction=0.15, test_fraction=0.2, seed=0
    )
    assert {name for name, split in assignment.items() if split == "test"} == {f"b{n}" for n in range(5)}
    assert sizes(assignment) == (17, 3, 5)
    assert assignment["a0"] == "train"
    assert {finding.code for finding in findings} >= {"SPLIT_CARVED", "SPLIT_MOVED"}
    assert draw([*cases, case("new", own="train")], assignment).items() >= assignment.items()


def test_only_train_counts_as_unsplit_and_says_so() -> None:
    assignment, findings = draw_splits(
        [case(f"p{n}", own="train") for n in range(10)],
        frozen={},
        val_fraction=0.15,
        test_fraction=0.2,
        seed=0,
    )
    assert sizes(assignment) == (6, 2, 2)
    assert [finding.severity for finding in findings if finding.code == "SPLIT_CARVED"] == ["NOTE"]


def test_complete_own_split_is_kept_as_it_is() -> None:
    own = {"a": "val", "b": "test", "c": "train", "d": "train"}
    assignment, findings = draw_splits(
        [case(name, own=split, present="liver prostate") for name, split in own.items()],
        frozen={},
        val_fraction=0.5,
        test_fraction=0.3,
        seed=0,
    )
    assert assignment == own and findings == []


def test_too_few() -> None:
    with pytest.raises(PreconditionError, match=r"TOO_FEW_CASES.*at least 3"):
        draw([case("a"), case("b")])
    with pytest.raises(PreconditionError, match="TOO_FEW_CASES"):
        draw([case("a1", patient="a"), case("a2", patient="a"), case("b"), case("b2", patient="b")])
    with pytest.raises(PreconditionError, match=r"TOO_FEW_CASES.*left for val"):
        draw([case("a", own="train"), case("b", own="test"), case("c", own="test")])


def test_one_scan_under_two_names_stays_together() -> None:
    for n in range(30):  # whatever the split of a single one would be
        cases = [case(f"p{k}") for k in range(12)] + [
            case(f"copy{n}", content="voxels of p3"),
            case(f"again{n}", content=f"voxels of p{n % 3 + 5}"),
        ]
        assignment, findings = draw_splits(cases, frozen={}, val_fraction=0.2, test_fraction=0.3, seed=n)
        assert assignment[f"copy{n}"] == assignment["p3"]
        assert assignment[f"again{n}"] == assignment[f"p{n % 3 + 5}"]
        assert [finding.severity for finding in findings if finding.code == "DUPLICATE_CONTENT"] == [
            "WARN",
            "WARN",
        ]


def test_leakage_is_refused() -> None:
    cases = [case(f"p{k}") for k in range(6)]
    frozen = {"p0": "train", "p1": "test"}
    with pytest.raises(IntegrityError, match=r"LEAKAGE.*p0, p1") as caught:
        draw([*cases[:1], case("p1", content="voxels of p0"), *cases[2:]], frozen)
    assert caught.value.exit_code == 5
    with pytest.raises(IntegrityError, match="LEAKAGE"):
        draw([case("a1", patient="a", own="train"), case("a2", patient="a", own="test"), *cases])


def test_structure_missing_from_a_split_is_told() -> None:
    cases = [case("m", present="liver prostate", own="train"), case("v", own="val"), case("t", own="test")]
    _, findings = draw_splits(cases, frozen={}, val_fraction=0.2, test_fraction=0.2, seed=0)
    assert {finding.cause.split(":")[0] for finding in findings if finding.code == "SPLIT_NO_ORGAN"} == {
        "no case of val shows prostate",
        "no case of test shows prostate",
    }


def test_edited_file_is_noticed() -> None:
    record = splits_record({"b": "test", "a": "train"}, seed=3)
    assert frozen_assignment(record) == {"a": "train", "b": "test"}
    for edited in (
        {**record, "assignment": {"a": "test", "b": "test"}},
        {**record, "version": 9},
        {"assignment": {"a": "nowhere"}},
        [],
    ):
        with pytest.raises(IntegrityError, match="SPLIT_CHANGED"):
            frozen_assignment(edited)
