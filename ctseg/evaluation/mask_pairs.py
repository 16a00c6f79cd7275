"""Pairs of predicted and reference masks: cases found, structures matched, and refused what does not fit.

Two folders of label maps whose ids have the same names are compared id by id; masks of any other forms name
by name. Absent is not empty: a structure that the reference does not speak about is unannotated, one that the
prediction does not hold is refused or, with --allow-missing, missed. Nothing that only one side has is
dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ctseg.config import did_you_mean
from ctseg.datasets.case import ImageSource
from ctseg.datasets.masks import scan_missing
from ctseg.errors import IntegrityError, PreconditionError, UsageError, at_case, listed
from ctseg.evaluation import mask_forms
from ctseg.evaluation.label_names import LabelNames, check_names
from ctseg.evaluation.mask_forms import MAP, Side
from ctseg.scoring.metrics import Structure
from ctseg.structure_names import key_of


class Match(NamedTuple):
    """One structure of one case: its name in the results, and what either side calls it (None: the side does
    not have it)."""

    name: str
    reference: str | None
    prediction: str | None


class Pair(NamedTuple):
    """One case to score. prediction None: the masks are missing and count as empty. states: structure -> what
    the case says about its annotation ("unlabelled" and "unevaluable" are not scored). scan: whose grid the
    masks are put on. matches: of the structures in their order; None for label maps of the same ids."""

    case_id: str
    patient_id: str
    reference: Side
    prediction: Side | None
    states: Mapping[str, str]
    scan: ImageSource | None = None
    matches: tuple[Match, ...] | None = None

    @property
    def sides(self) -> list[Side]:
        """The reference, and the prediction where there is one."""
        return [side for side in (self.reference, self.prediction) if side is not None]

    @property
    def lacking(self) -> list[str]:
        """Structures of the reference that the prediction does not hold."""
        return [
            one.name for one in self.matches or () if one.reference is not None and one.prediction is None
        ]


def pair_masks(
    reference: Path,
    prediction: Path,
    *,
    labels: Path | None = None,
    ct: Path | None = None,
    structures: str | None = None,
    single: bool = False,
    allow_missing: bool = False,
) -> tuple[list[Pair], tuple[Structure, ...]]:
    """(pairs by case id, what is compared). single: both paths are one case. structures: the words after
    --structures. allow_missing: of a prediction, or of a structure that it does not hold."""
    shared = None
    if ct is None and structures is None and not single:
        shared = mask_forms.shared_names(reference, prediction, labels)
    if shared is not None:
        references, predictions = mask_forms.volumes_in(reference), mask_forms.volumes_in(prediction)
    elif single or mask_forms.is_one_case(reference) or mask_forms.is_one_case(prediction):
        case_id = mask_forms.case_of(reference)
        references, predictions = ({case_id: mask_forms.one_case(path)} for path in (reference, prediction))
    else:
        references, predictions = mask_forms.find_cases(reference), mask_forms.find_cases(prediction)
    if not references:
        raise PreconditionError(
            "NO_DATA", "it holds no masks", "check the path after --reference", file=reference.name
        )
    check_sets("case", references, predictions, allow_missing=allow_missing)
    own: LabelNames | None
    theirs: LabelNames | None
    if shared is not None:
        check_annotated(shared, references)
        own, theirs = shared, shared._replace(ignore_label=None)
    else:
        own, theirs = (
            mask_forms.names_of(list(paths.values()), labels) for paths in (references, predictions)
        )
        own, theirs = own or theirs, theirs or own  # label maps share the names that stand beside the others
    pairs = []
    for case_id, path in sorted(references.items()):
        predicted = predictions.get(case_id)
        with at_case(case_id, path.name, kind=IntegrityError):  # nothing may drop out, so no case to skip
            one = mask_forms.open_side(path, own, reference=True)
        other = None
        if predicted is not None:
            with at_case(case_id, predicted.name, kind=IntegrityError):
                other = mask_forms.open_side(predicted, theirs)
        if ct is None and (one.is_dicom or (other is not None and other.is_dicom)):
            raise scan_missing(path if one.is_dicom else predicted or path, case_id)
        scan = None if ct is None else mask_forms.find_scan(ct, case_id, only=len(references) == 1)
        states = own.states_of(case_id) if one.kind == MAP and own is not None else {}
        pairs.append(Pair(case_id, case_id, one, other, states, scan))
    if shared is not None:
        return pairs, shared.structures
    chosen = wanted_structures(structures, pairs) if structures else named_structures(pairs)
    check_names(chosen, reference.name)
    return [
        match_structures(pair, chosen, limited=structures is not None, allow_missing=allow_missing)
        for pair in pairs
    ], tuple(Structure(name, (number,)) for number, name in enumerate(chosen, start=1))


def check_annotated(names: LabelNames, references: Iterable[str]) -> None:
    """Refuse a list of annotated cases that are not those of the references. One of both is fine: a list of
    more cases, or of some of them."""
    unknown = sorted(set(names.annotated) - set(references))
    unlisted = sorted(set(references) - set(names.annotated))
    if unknown and unlisted:
        raise UsageError(
            "BAD_LABELS",
            f"'annotated' names {listed(unknown)} without a reference, but not {listed(unlisted)}",
            "correct the case ids",
        )


def check_sets(
    what: str, references: Iterable[str], predictions: Iterable[str], *, allow_missing: bool = False
) -> None:
    """Refuse when a reference lacks its prediction (unless allowed) or a prediction its reference."""
    missing, extra = sorted(set(references) - set(predictions)), sorted(set(predictions) - set(references))
    if missing and not allow_missing:
        raise PreconditionError(
            "MISSING_PREDICTION",
            f"no prediction for {what} {listed(missing)}",
            "predict these too, or give --allow-missing to count them as missed",
            case=missing[0],
        )
    if extra:
        raise PreconditionError(
            "EXTRA_PREDICTION",
            f"prediction without reference: {listed(extra)}",
            "remove it, or add its reference",
            case=extra[0],
        )


# ---- structures -------------------------------------------------------------------------------------------


def named_structures(pairs: Sequence[Pair]) -> list[str]:
    """Every structure of the references, the first spelling of each; two names of one case are two
    structures."""
    chosen: list[str] = []
    for pair in pairs:
        own = pair.reference.names
        for name in own:
            taken = {key_of(other) for other in chosen if other not in own}
            if name not in chosen and key_of(name) not in taken:
                chosen.append(name)
    return chosen


def wanted_structures(text: str, pairs: Sequence[Pair]) -> list[str]:
    """The names after --structures; each must be in a reference."""
    wanted = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    known = list(dict.fromkeys(name for pair in pairs for name in pair.reference.names))
    for name in wanted:
        if all(partner(name, pair.reference, wanted, pair.case_id) is None for pair in pairs):
            raise UsageError(
                "UNKNOWN_STRUCTURE",
                f"no reference holds '{name}'",
                f"choose from {listed(known)}{did_you_mean(name, known)}",
            )
    return wanted


def partner(name: str, side: Side, chosen: Sequence[str], case_id: str) -> str | None:
    """What a side calls a structure; None when it has none. Refuses two names that could both be meant."""
    if name in side.names:
        return name
    same = [other for other in side.names if key_of(other) == key_of(name) and other not in chosen]
    if len(same) > 1:
        raise IntegrityError(
            "STRUCTURE_AMBIGUOUS",
            f"'{name}' may be {' or '.join(repr(other) for other in same)}",
            "rename them, or choose with --structures",
            case=case_id,
            file=side.file,
        )
    return same[0] if same else None


def match_structures(pair: Pair, chosen: Sequence[str], *, limited: bool, allow_missing: bool) -> Pair:
    """The pair with its structures matched. Refuses what only one side has, unless --structures limits the
    comparison, and what the prediction lacks, unless it may."""
    names: list[list[str | None]] = []
    for side in (pair.reference, pair.prediction):
        used = [None if side is None else partner(name, side, chosen, pair.case_id) for name in chosen]
        twice = sorted({name for name in used if name is not None and used.count(name) > 1})
        if side is not None and twice:
            raise IntegrityError(
                "STRUCTURE_AMBIGUOUS",
                f"'{twice[0]}' would be compared with two structures of the other side",
                "rename them, or choose with --structures",
                case=pair.case_id,
                file=side.file,
            )
        names.append(used)
    matches = tuple(Match(*match) for match in zip(chosen, *names))
    silent = {match.name: "unlabelled" for match in matches if match.reference is None}
    pair = pair._replace(matches=matches, states={**pair.states, **silent})
    if pair.prediction is None:
        return pair
    place = {"case": pair.case_id, "file": pair.prediction.file}
    missing, known = pair.lacking, {match.prediction for match in matches if match.reference is not None}
    extra = [name for name in pair.prediction.names if name not in known]
    if not limited and (extra or (missing and not allow_missing)):
        parts = [
            f"only the {who} has {listed(own)}"
            for who, own in (("reference", missing), ("prediction", extra))
            if own
        ]
        common = [match.name for match in matches if None not in match]
        fix = (
            f"limit the comparison, for example --structures {','.join(common[:4])}"
            if common
            else "name the structures alike on both sides (--labels names those of label maps)"
        )
        raise PreconditionError("STRUCTURES_DIFFER", " and ".join(parts), fix, **place)
    if missing and not allow_missing:
        raise PreconditionError(
            "MISSING_PREDICTION",
            f"the prediction does not hold {listed(missing)}",
            "predict these too, or give --allow-missing to count them as missed",
            **place,
        )
    return pair
