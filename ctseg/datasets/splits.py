"""Who is trained on, who selects the model, who is tested: by patient, stratified, frozen once drawn.

The order of patients comes from a hash of their ids, never from the order of files. What stands in
`splits.json` stays: a new patient never moves an old one. A data set's own split wins over both.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ctseg.artifacts import Workspace, canonical_hash, read_json
from ctseg.config import DataSettings
from ctseg.datasets.case import PRESENT
from ctseg.errors import Finding, IntegrityError, PreconditionError
from ctseg.manifest import Case

SPLITS = ("train", "val", "test")
SPLITS_VERSION = 1


@dataclasses.dataclass
class _Group:
    """Patients that must stay together (one patient, or several that share a scan). allowed: the splits it
    may go to.
    """

    patients: set[str] = dataclasses.field(default_factory=set)
    cases: list[Case] = dataclasses.field(default_factory=list)
    allowed: tuple[str, ...] = SPLITS
    split: str | None = None

    @functools.cached_property
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
        formats = sorted({case.source["image"]["format"] for case in self.cases})
        digests = (
            hashlib.sha256(f"{seed}:{patient}".encode("utf-8", "surrogatepass")).hexdigest()
            for patient in self.patients
        )
        return -len(self.present), sorted(self.present), formats, min(digests)

    def leakage(self, where: str) -> IntegrityError:
        """The error of patients that `where` puts into two splits."""
        ids = ", ".join(sorted(case.case_id for case in self.cases))
        return IntegrityError(
            "LEAKAGE",
            f"the cases {ids} are one patient or one scan, but {where} puts them into different splits",
            "remove the copy or correct the split; processed_data/splits.json may be deleted to draw again",
        )


def draw_splits(
    cases: Iterable[Case], *, frozen: Mapping[str, str], val_fraction: float, test_fraction: float, seed: int
) -> tuple[dict[str, str], list[Finding]]:
    """({patient_id: "train" | "val" | "test"} for every patient of `cases`, what is worth telling).

    One scan under two names, told by the hash of the voxels, cannot be in two splits. frozen: the assignment
    of an existing `splits.json`. Raises PreconditionError TOO_FEW_CASES when a split
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
    _bind(groups, frozen, findings)
    _assign_rest(groups, {"val": val_fraction, "test": test_fraction}, seed)
    shown: dict[str, set[str]] = {name: set() for case in cases for name in case.states}
    for split in SPLITS:
        there = [group for group in groups if group.split == split]
        if not there:
            raise PreconditionError(
                "TOO_FEW_CASES",
                f"no patient is left for {split} ({len(groups)} usable patients); "
                "each of train, val and test needs one",
                "add patients, or delete processed_data/splits.json to draw the splits again",
            )
        for name in set().union(*(group.present for group in there)):
            shown[name].add(split)
    for name, splits in shown.items():
        for split in SPLITS:
            if split not in splits:
                harm = "it cannot be learned" if split == "train" else "its scores there are null"
                cause = f"no case of {split} shows {name}: {harm}"
                fix = "add cases that show it, or leave it out with --structures"
                findings.append(Finding("WARN", "SPLIT_NO_ORGAN", cause, fix))
    drawn = {patient: str(group.split) for group in groups for patient in group.patients}
    return dict(sorted(drawn.items())), findings


def _groups(cases: list[Case], findings: list[Finding]) -> list[_Group]:
    """Cases gathered by patient, patients that share a scan gathered too; in the order of the smallest
    patient id.
    """
    leader = {case.patient_id: case.patient_id for case in cases}
    first_with: dict[str, Case] = {}
    for case in cases:
        other = first_with.setdefault(case.content_hash, case)
        if other is case:
            continue
        cause = f"its image has the same voxels as case {other.case_id}; both stay in one split"
        findings.append(Finding("WARN", "DUPLICATE_CONTENT", cause, "remove one of them", case.case_id))
        low, high = sorted((leader[case.patient_id], leader[other.patient_id]))
        leader = {patient: low if led == high else led for patient, led in leader.items()}
    members: defaultdict[str, _Group] = defaultdict(_Group)
    for case in cases:
        group = members[leader[case.patient_id]]
        group.patients.add(case.patient_id)
        group.cases.append(case)
    return [members[key] for key in sorted(members)]


def _bind(groups: list[_Group], frozen: Mapping[str, str], findings: list[Finding]) -> None:
    """Put each group where the data set's own or an earlier split (`frozen`) decides, and say where others
    may go.

    Where the data set has no val (or no test) at all, that one may be carved from its train.
    """
    own: list[str | None] = []
    for group in groups:
        names: set[str] = {case.source["split"] for case in group.cases} - {None}
        if len(names) > 1:
            raise group.leakage("the data set's own split")
        own.append(names.pop() if names else None)
    carved = ["train"]
    if None not in own:
        carved += (split for split in ("val", "test") if split not in own)
    if len(carved) > 1:
        what = "only a train split: val and test are" if len(carved) == 3 else f"no {carved[1]} split: it is"
        findings.append(Finding("NOTE", "SPLIT_CARVED", f"the data set has {what} carved from train"))
    options = {None: SPLITS, "train": tuple(carved), "val": ("val",), "test": ("test",)}
    for group, name in zip(groups, own):
        group.allowed = options[name]
        earlier = {frozen[patient] for patient in group.known() if frozen.get(patient) in SPLITS}
        if len(earlier) > 1:
            raise group.leakage("splits.json")
        if len(group.allowed) == 1:
            group.split = group.allowed[0]
            if earlier and group.split not in earlier:
                cause = (
                    f"the data set now puts patient {min(group.patients)} into {group.split}, "
                    f"splits.json said {earlier.pop()}"
                )
                findings.append(Finding("NOTE", "SPLIT_MOVED", cause))
        elif earlier and earlier <= set(group.allowed):
            group.split = earlier.pop()


def _assign_rest(groups: list[_Group], fractions: Mapping[str, float], seed: int) -> None:
    """Give a split to the groups without: each, in stratified hash order, goes to the split that is most
    below its share so far.

    Because equal strata follow each other, each stratum is shared out in the same proportions (systematic
    sampling), and the totals are exact to the rounded quota.
    """
    pools: defaultdict[tuple[str, ...], list[_Group]] = defaultdict(list)
    for group in groups:
        pools[group.allowed].append(group)
    for options, pool in sorted(pools.items()):
        if len(options) == 1:
            continue
        elsewhere = {group.split for group in groups if group.allowed != options}
        quota = dict.fromkeys(options, 0)
        for split in options[1:]:
            smallest = 0 if split in elsewhere or fractions[split] == 0 else 1
            quota[split] = max(smallest, round(fractions[split] * len(pool)))
        quota["train"] = max(1, len(pool) - sum(quota.values()))
        counts = Counter(group.split for group in pool if group.split is not None)
        free = sorted((group for group in pool if group.split is None), key=lambda group: group.order(seed))
        for group in free:
            done = counts.total() + 1
            open_splits = [split for split in options if counts[split] < quota[split]] or ["train"]
            group.split = max(open_splits, key=lambda split: quota[split] * done / len(pool) - counts[split])
            counts[group.split] += 1
        _spread(groups, free, options)


def _spread(groups: list[_Group], free: list[_Group], options: tuple[str, ...]) -> None:
    """Exchange groups so that every split shows each structure, where there are enough that show it; sizes
    stay as they are.

    Needed where few patients have a structure. A group is given away only if its split then lacks nothing
    that it showed; but with two that show it, one is learned from and the other scored, so val gives to test.
    """
    holders = Counter((group.split, name) for group in groups for name in group.present)
    for name in sorted({name for group in free for name in group.present}):
        for split in sorted(options, key=("train", "test", "val").index):
            if holders[split, name]:
                continue
            spare = {("val", name)} if split == "test" else set()
            givers = [
                group
                for group in free
                if name in group.present and (holders[group.split, name] > 1 or (group.split, name) in spare)
            ]
            givers.sort(key=lambda group: holders[group.split, name] == 1)  # val's only one last
            takers = [group for group in free if group.split == split]
            for giver, taker in itertools.product(givers, takers):
                given = {(giver.split, thing) for thing in giver.present - taker.present}
                taken = {(split, thing) for thing in taker.present - giver.present}
                if all(holders[key] > 1 or key in spare for key in given | taken):
                    holders.subtract(given | taken)
                    holders.update((split, thing) for _, thing in given)
                    holders.update((giver.split, thing) for _, thing in taken)
                    giver.split, taker.split = split, giver.split
                    break


# ---- splits.json ---------------------------------------------------------------------------------


def assign(
    cases: Sequence[Case], workspace: Workspace, data: DataSettings
) -> tuple[list[Case], dict[str, Any], list[Finding]]:
    """(the cases with their splits, new content of `splits.json`, findings).

    Raises as `draw_splits` and `frozen_assignment`.
    """
    existing = read_json(workspace.splits) if workspace.splits.exists() else None
    frozen, seed = ({}, data.seed) if existing is None else (frozen_assignment(existing), existing["seed"])
    drawn, findings = draw_splits(
        cases, frozen=frozen, val_fraction=data.val_fraction, test_fraction=data.test_fraction, seed=data.seed
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
    known: dict[str, Any] = record if isinstance(record, dict) else {}
    drawn = known.get("assignment")
    if known.get("version") != SPLITS_VERSION or known.get("assignment_hash") != canonical_hash(drawn):
        raise IntegrityError(
            "SPLIT_CHANGED",
            "it was edited after it was drawn, or is of another version",
            "restore it, or delete processed_data to draw new splits "
            "(all models then have to be trained again)",
            file="splits.json",
        )
    return dict(known["assignment"])
