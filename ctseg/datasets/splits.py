"""Who is trained on, who selects the model, who is tested: by patient, stratified, frozen once drawn.

The order of patients comes from a hash of their ids, never from the order of files. What stands in
`splits.json` stays: a new patient never moves an old one. A data set's own split wins over both.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ctseg.artifacts import canonical_hash
from ctseg.config import DataSettings
from ctseg.datasets.case import PRESENT
from ctseg.errors import Finding, IntegrityError, PreconditionError
from ctseg.manifest import Case

SPLITS = ("train", "val", "test")
SPLITS_VERSION = 1


@dataclasses.dataclass(frozen=True)
class SplitCase:
    """What drawing a split needs to know of a case. own: the data set's own split, or None.

    content: hash of the voxels, so that one scan under two names cannot be in two splits.
    """

    case_id: str
    patient_id: str
    states: Mapping[str, str]
    source_format: str
    content: str
    own: str | None = None


@dataclasses.dataclass
class _Group:
    """Patients that must stay together (one patient, or several that share a scan)."""

    patients: set[str]
    cases: list[SplitCase]

    def present(self) -> set[str]:
        """The structures that some case of it shows."""
        return {name for case in self.cases for name, state in case.states.items() if state == PRESENT}

    def known(self) -> set[str]:
        """The names under which an earlier split may know it. A patient without a name of its own is called
        after its first case, which may be another one since scans were added.
        """
        ids = {case.case_id for case in self.cases}
        return self.patients | {case.case_id for case in self.cases if case.patient_id in ids}

    def order(self, seed: int) -> tuple[Any, ...]:
        """Sort key: first what it is stratified by, then the smallest hash of its patients' ids."""
        present = sorted(self.present())
        formats = sorted({case.source_format for case in self.cases})
        digests = (
            hashlib.sha256(f"{seed}:{patient}".encode("utf-8", "surrogatepass")).hexdigest()
            for patient in self.patients
        )
        return -len(present), present, formats, min(digests)


def draw_splits(
    cases: Iterable[SplitCase],
    *,
    frozen: Mapping[str, str],
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> tuple[dict[str, str], list[Finding]]:
    """({patient_id: "train" | "val" | "test"} for every patient of `cases`, what is worth telling).

    frozen: the assignment of an existing `splits.json`. Raises PreconditionError TOO_FEW_CASES when a split
    would stay empty and IntegrityError LEAKAGE when one patient or one scan is bound to two splits.
    """
    findings: list[Finding] = []
    cases = sorted(cases, key=lambda case: case.case_id)
    groups = _groups(cases, findings)
    if len(groups) < 3:
        raise PreconditionError(
            "TOO_FEW_CASES",
            f"{len(groups)} usable patients with scans of their own; at least 3 are needed "
            "(one each to train, validate and test)",
            "add patients with labels",
        )
    allowed = _allowed(groups, findings)
    chosen = _bound(groups, allowed, frozen, findings)
    _assign_rest(groups, allowed, chosen, {"val": val_fraction, "test": test_fraction}, seed)
    for split in SPLITS:
        if split not in chosen.values():
            raise PreconditionError(
                "TOO_FEW_CASES",
                f"no patient is left for {split} ({len(groups)} usable patients); "
                "each of train, val and test needs one",
                "add patients, or delete processed_data/splits.json to draw the splits again",
            )
    assignment = {patient: chosen[index] for index, group in enumerate(groups) for patient in group.patients}
    findings += _missing_structures(cases, assignment)
    return dict(sorted(assignment.items())), findings


def _groups(cases: list[SplitCase], findings: list[Finding]) -> list[_Group]:
    """Cases gathered by patient, patients that share a scan gathered too; in the order of the smallest
    patient id.
    """
    leader = {case.patient_id: case.patient_id for case in cases}

    def root(patient: str) -> str:
        while leader[patient] != patient:
            patient = leader[patient]
        return patient

    first_with: dict[str, SplitCase] = {}
    for case in cases:
        other = first_with.setdefault(case.content, case)
        if other is case:
            continue
        findings.append(
            Finding(
                "WARN",
                "DUPLICATE_CONTENT",
                f"its image has the same voxels as case {other.case_id}; both stay in one split",
                "remove one of them",
                case.case_id,
            )
        )
        low, high = sorted((root(case.patient_id), root(other.patient_id)))
        leader[high] = low
    members: dict[str, _Group] = {}
    for case in cases:
        group = members.setdefault(root(case.patient_id), _Group(set(), []))
        group.patients.add(case.patient_id)
        group.cases.append(case)
    return [members[key] for key in sorted(members)]


def _allowed(groups: list[_Group], findings: list[Finding]) -> list[tuple[str, ...]]:
    """The splits each group may go to, from the data set's own split.

    Where the data set has no val (or no test) at all, that one may be carved from its train.
    """
    own: list[str | None] = []
    for group in groups:
        names = {case.own for case in group.cases if case.own is not None}
        if len(names) > 1:
            raise _leakage(group, "the data set's own split")
        own.append(names.pop() if names else None)
    carved = (
        ["train", *(split for split in ("val", "test") if split not in own)] if None not in own else ["train"]
    )
    if None not in own and len(carved) > 1:
        what = "only a train split: val and test are" if len(carved) == 3 else f"no {carved[1]} split: it is"
        findings.append(Finding("NOTE", "SPLIT_CARVED", f"the data set has {what} carved from train"))
    options = {None: SPLITS, "train": tuple(carved), "val": ("val",), "test": ("test",)}
    return [options[name] for name in own]


def _bound(
    groups: list[_Group], allowed: list[tuple[str, ...]], frozen: Mapping[str, str], findings: list[Finding]
) -> dict[int, str]:
    """Number of a group -> its split, where the data set's own or an earlier split (`frozen`) decides."""
    chosen: dict[int, str] = {}
    for index, group in enumerate(groups):
        bound = {frozen[name] for name in group.known() if frozen.get(name) in SPLITS}
        if len(bound) > 1:
            raise _leakage(group, "splits.json")
        if len(allowed[index]) == 1:
            chosen[index] = allowed[index][0]
            if bound and bound != {chosen[index]}:
                cause = (
                    f"the data set now puts patient {min(group.patients)} into {chosen[index]}, "
                    f"splits.json said {bound.pop()}"
                )
                findings.append(Finding("NOTE", "SPLIT_MOVED", cause))
        elif bound and bound <= set(allowed[index]):
            chosen[index] = bound.pop()
    return chosen


def _assign_rest(
    groups: list[_Group],
    allowed: list[tuple[str, ...]],
    chosen: dict[int, str],
    fractions: Mapping[str, float],
    seed: int,
) -> None:
    """Fill `chosen`: each group in stratified hash order goes to the split that is most below its share so
    far.

    Because equal strata follow each other, each stratum is shared out in the same proportions (systematic
    sampling), and the totals are exact to the rounded quota.
    """
    pools: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, options in enumerate(allowed):
        if len(options) > 1:
            pools[options].append(index)
    for options, pool in sorted(pools.items()):
        quota = dict.fromkeys(options, 0)
        for split in options[1:]:
            filled = any(chosen.get(index) == split for index in range(len(groups)) if index not in pool)
            smallest = 0 if filled or fractions[split] == 0 else 1
            quota[split] = max(smallest, round(fractions[split] * len(pool)))
        quota["train"] = max(1, len(pool) - sum(quota.values()))
        counts = {split: sum(chosen.get(index) == split for index in pool) for split in options}
        free = sorted(
            (index for index in pool if index not in chosen), key=lambda index: groups[index].order(seed)
        )
        for index in free:
            done = sum(counts.values()) + 1
            open_splits = [split for split in options if counts[split] < quota[split]] or ["train"]
            chosen[index] = max(
                open_splits, key=lambda split: quota[split] * done / len(pool) - counts[split]
            )
            counts[chosen[index]] += 1
        _spread(groups, free, options, chosen)


def _spread(groups: list[_Group], free: list[int], options: tuple[str, ...], chosen: dict[int, str]) -> None:
    """Exchange groups so that every split shows each structure, where there are enough that show it; sizes
    stay as they are.

    Needed where few patients have a structure. A group is given away only if its split then lacks nothing
    that it showed; but with two that show it, one is learned from and the other scored, so val gives to test.
    """
    holders = Counter((split, name) for index, split in chosen.items() for name in groups[index].present())
    for name in sorted({name for index in free for name in groups[index].present()}):
        for split in sorted(options, key=("train", "test", "val").index):
            if holders[split, name]:
                continue
            spare = {("val", name)} if split == "test" else set()
            givers = [
                index
                for index in free
                if name in groups[index].present()
                and (holders[chosen[index], name] > 1 or (chosen[index], name) in spare)
            ]
            givers.sort(key=lambda index: holders[chosen[index], name] == 1)  # val's only one last
            pairs = ((giver, taker) for giver in givers for taker in free if chosen[taker] == split)
            for giver, taker in pairs:
                lost = [(chosen[giver], thing) for thing in groups[giver].present() - groups[taker].present()]
                lost += [(split, thing) for thing in groups[taker].present() - groups[giver].present()]
                if all(holders[key] > 1 or key in spare for key in lost):
                    for index in (giver, taker):
                        holders.subtract((chosen[index], thing) for thing in groups[index].present())
                    chosen[giver], chosen[taker] = split, chosen[giver]
                    for index in (giver, taker):
                        holders.update((chosen[index], thing) for thing in groups[index].present())
                    break


def _missing_structures(cases: list[SplitCase], assignment: Mapping[str, str]) -> list[Finding]:
    """A warning for each structure that no case of some split shows."""
    shown: dict[str, set[str]] = {}
    for case in cases:
        for name, state in case.states.items():
            splits = shown.setdefault(name, set())
            if state == PRESENT:
                splits.add(assignment[case.patient_id])
    return [
        Finding(
            "WARN",
            "SPLIT_NO_ORGAN",
            f"no case of {split} shows {name}: "
            + ("it cannot be learned" if split == "train" else "its scores there are null"),
            "add cases that show it, or leave it out with --structures",
        )
        for name, splits in shown.items()
        for split in SPLITS
        if split not in splits
    ]


def _leakage(group: _Group, where: str) -> IntegrityError:
    ids = ", ".join(sorted(case.case_id for case in group.cases))
    return IntegrityError(
        "LEAKAGE",
        f"the cases {ids} are one patient or one scan, but {where} puts them into different splits",
        "remove the copy or correct the split; processed_data/splits.json may be deleted to draw again",
    )


# ---- splits.json ---------------------------------------------------------------------------------


def assign(
    cases: Sequence[Case], existing: Any, data: DataSettings
) -> tuple[list[Case], dict[str, Any], list[Finding]]:
    """(the cases with their splits, content of `splits.json`, findings). existing: its content of an earlier
    run, or None.

    Raises as `draw_splits` and `frozen_assignment`.
    """
    frozen, seed = ({}, data.seed) if existing is None else (frozen_assignment(existing), existing["seed"])
    drawn, findings = draw_splits(
        [
            SplitCase(
                case.case_id,
                case.patient_id,
                case.states,
                case.source["image"]["format"],
                case.content_hash,
                case.source["split"],
            )
            for case in cases
        ],
        frozen=frozen,
        val_fraction=data.val_fraction,
        test_fraction=data.test_fraction,
        seed=data.seed,
    )
    if seed != data.seed:
        cause = f"splits.json was drawn with seed {seed} and is kept"
        findings.append(Finding("NOTE", "SPLIT_FROZEN", cause, "delete it to draw again"))
    assigned = [dataclasses.replace(case, split=drawn[case.patient_id]) for case in cases]
    # Patients that are gone stay written down: should they come back, they return to the same split.
    return assigned, splits_record({**frozen, **drawn}, seed), findings


def splits_record(assignment: Mapping[str, str], seed: int) -> dict[str, Any]:
    """The content of `splits.json`. assignment_hash lets an edited file be noticed."""
    ordered = dict(sorted(assignment.items()))
    return {
        "version": SPLITS_VERSION,
        "seed": seed,
        "assignment": ordered,
        "assignment_hash": canonical_hash(ordered),
    }


def frozen_assignment(record: Any) -> dict[str, str]:
    """The assignment of an existing `splits.json`; IntegrityError SPLIT_CHANGED when somebody edited it."""
    assignment: Any = record.get("assignment") if isinstance(record, dict) else None
    sound = isinstance(assignment, dict) and all(split in SPLITS for split in assignment.values())
    if (
        not sound
        or record.get("version") != SPLITS_VERSION
        or record.get("assignment_hash") != canonical_hash(assignment)
    ):
        raise IntegrityError(
            "SPLIT_CHANGED",
            "it was edited after it was drawn, or is of another version",
            "restore it, or delete processed_data to draw new splits "
            "(all models then have to be trained again)",
            file="splits.json",
        )
    return dict(assignment)
