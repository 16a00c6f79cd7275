"""Masks of any form against masks of any form: structures matched by name, put on one grid without
interpolation, scored one by one.

Absent is not empty: a structure that the reference does not speak about is unannotated, one that the
prediction does not hold is refused or, with --allow-missing, missed. Nothing that only one side has is
dropped in silence. Segments may overlap, because each structure is scored by its own masks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ctseg import structure_names
from ctseg.config import did_you_mean
from ctseg.datasets import load_case
from ctseg.datasets.case import ImageSource
from ctseg.datasets.masks import Masks, open_masks, scan_missing
from ctseg.errors import CaseError, IntegrityError, PreconditionError, UsageError
from ctseg.evaluation import mask_forms
from ctseg.evaluation.mask_forms import MAP, RTSTRUCT, Side
from ctseg.evaluation.mask_pairs import (
    LabelNames,
    Refusals,
    ScoreSettings,
    case_columns,
    check_names,
    check_sets,
    listed,
    score_maps,
    warnings_of,
)
from ctseg.scoring.metrics import Row, Structure

_IGNORED = 2  # in the map of one structure: 0 background, 1 the structure


@dataclasses.dataclass(frozen=True)
class Match:
    """One structure of one case: its name in the results, and what either side calls it (None: the side does
    not have it)."""

    name: str
    reference: str | None
    prediction: str | None


@dataclasses.dataclass(frozen=True)
class MaskPair:
    """One case to score. prediction None: the masks are missing and count as empty. scan: whose grid the
    masks are put on."""

    case_id: str
    patient_id: str
    prediction: Side | None
    reference: Side
    scan: ImageSource | None
    matches: tuple[Match, ...] = ()
    unlabelled: frozenset[str] = frozenset()

    @property
    def prediction_file(self) -> str:
        """How results call the prediction; empty where it is missing."""
        return "" if self.prediction is None else self.prediction.file


# ---- pairs ------------------------------------------------------------------------------------------------


def pair_masks(
    reference: Path,
    prediction: Path,
    *,
    labels: Path | None,
    ct: Path | None,
    structures: str | None,
    single: bool,
    allow_missing: bool,
) -> tuple[list[MaskPair], list[str]]:
    """(pairs by case id, names of the structures). single: both paths are one case. structures: the words
    after --structures."""
    if single or mask_forms.is_one_case(reference) or mask_forms.is_one_case(prediction):
        case_id = mask_forms.case_of(reference)
        references, predictions = (
            {case_id: mask_forms.one_case(reference)},
            {case_id: mask_forms.one_case(prediction)},
        )
    else:
        references, predictions = mask_forms.find_cases(reference), mask_forms.find_cases(prediction)
    if not references:
        raise PreconditionError(
            "NO_DATA", "it holds no masks", "check the path after --reference", file=reference.name
        )
    check_sets("case", references, predictions, allow_missing=allow_missing)
    own, theirs = (mask_forms.names_of(list(paths.values()), labels) for paths in (references, predictions))
    own, theirs = own or theirs, theirs or own  # label maps share the names that stand beside the others
    pairs = []
    for case_id, path in sorted(references.items()):
        predicted = predictions.get(case_id)
        one = _open(path, own, case_id)
        other = None if predicted is None else _open(predicted, theirs, case_id)
        if ct is None and (one.is_dicom or (other is not None and other.is_dicom)):
            raise scan_missing(path if one.is_dicom else predicted or path, case_id)
        scan = None if ct is None else mask_forms.find_scan(ct, case_id, only=len(references) == 1)
        pairs.append(MaskPair(case_id, case_id, other, one, scan, unlabelled=_unlabelled(one, own, case_id)))
    chosen = _wanted(structures, pairs) if structures else _named(pairs)
    check_names(chosen, reference.name)
    return [
        dataclasses.replace(
            pair, matches=_matches(pair, chosen, limited=structures is not None, allow_missing=allow_missing)
        )
        for pair in pairs
    ], chosen


def _open(path: Path, names: LabelNames | None, case_id: str) -> Side:
    try:
        return mask_forms.open_side(path, names)
    except (CaseError, PreconditionError) as error:
        kind = IntegrityError if isinstance(error, CaseError) else PreconditionError
        raise kind(error.code, error.cause, error.fix, case=case_id, file=path.name) from None


def _unlabelled(side: Side, names: LabelNames | None, case_id: str) -> frozenset[str]:
    """Names that the reference's own list says nobody looked for in this case."""
    return frozenset(names.states_of(case_id)) if side.kind == MAP and names is not None else frozenset()


# ---- structures -------------------------------------------------------------------------------------------


def _spoken(side: Side) -> list[str]:
    """The names that a reference speaks about."""
    return [name for name in side.names if name not in side.undrawn]


def _named(pairs: Sequence[MaskPair]) -> list[str]:
    """Every structure of the references, the first spelling of each; two names of one case are two
    structures."""
    chosen: list[str] = []
    for pair in pairs:
        own = _spoken(pair.reference)
        for name in own:
            if name not in chosen and not any(
                structure_names.key_of(name) == structure_names.key_of(other) and other not in own
                for other in chosen
            ):
                chosen.append(name)
    return chosen


def _wanted(text: str, pairs: Sequence[MaskPair]) -> list[str]:
    """The names after --structures; each must be in a reference."""
    wanted = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    known = list(dict.fromkeys(name for pair in pairs for name in _spoken(pair.reference)))
    for name in wanted:
        if all(
            _partner(name, _spoken(pair.reference), wanted, pair, pair.reference.file) is None
            for pair in pairs
        ):
            raise UsageError(
                "UNKNOWN_STRUCTURE",
                f"no reference holds '{name}'",
                f"choose from {listed(known)}{did_you_mean(name, known)}",
            )
    return wanted


def _partner(
    name: str, available: Sequence[str], chosen: Sequence[str], pair: MaskPair, file: str
) -> str | None:
    """What a side calls a structure; None when it has none. Refuses two names that could both be meant."""
    if name in available:
        return name
    same = [
        other
        for other in available
        if structure_names.key_of(other) == structure_names.key_of(name) and other not in chosen
    ]
    if len(same) > 1:
        raise IntegrityError(
            "STRUCTURE_AMBIGUOUS",
            f"'{name}' may be {' or '.join(repr(other) for other in same)}",
            "rename them, or choose with --structures",
            case=pair.case_id,
            file=file,
        )
    return same[0] if same else None


def _matches(
    pair: MaskPair, chosen: Sequence[str], *, limited: bool, allow_missing: bool
) -> tuple[Match, ...]:
    """The structures of one case on both sides. Refuses what only one side has, unless --structures limits
    the comparison."""
    ours, theirs = _spoken(pair.reference), () if pair.prediction is None else pair.prediction.names
    file = pair.reference.file if pair.prediction is None else pair.prediction.file
    matches = tuple(
        Match(
            name,
            _partner(name, ours, chosen, pair, pair.reference.file),
            _partner(name, theirs, chosen, pair, file),
        )
        for name in chosen
    )
    for used, where in (
        ([match.reference for match in matches], pair.reference.file),
        ([match.prediction for match in matches], file),
    ):
        twice = sorted({name for name in used if name is not None and used.count(name) > 1})
        if twice:
            raise IntegrityError(
                "STRUCTURE_AMBIGUOUS",
                f"'{twice[0]}' would be compared with two structures of the other side",
                "rename them, or choose with --structures",
                case=pair.case_id,
                file=where,
            )
    if pair.prediction is not None:
        _refuse_one_sided(pair, matches, limited=limited, allow_missing=allow_missing)
    return matches


def _refuse_one_sided(
    pair: MaskPair, matches: Sequence[Match], *, limited: bool, allow_missing: bool
) -> None:
    """Refuse what the prediction lacks, unless it may, and what only it has, unless --structures limits."""
    theirs, file = pair.prediction.names if pair.prediction else (), pair.prediction_file
    missing = lacking(matches)
    if not limited:
        extra = [name for name in theirs if name not in {match.prediction for match in matches}] + [
            match.prediction for match in matches if match.reference is None and match.prediction is not None
        ]
        if extra or (missing and not allow_missing):
            parts = [
                f"only the {side} has {listed(names)}"
                for side, names in (("reference", missing), ("prediction", extra))
                if names
            ]
            common = [match.name for match in matches if None not in (match.reference, match.prediction)]
            fix = (
                f"limit the comparison, for example --structures {','.join(common[:4])}"
                if common
                else "name the structures alike on both sides (--labels names those of label maps)"
            )
            raise PreconditionError(
                "STRUCTURES_DIFFER", " and ".join(parts), fix, case=pair.case_id, file=file
            )
    if missing and not allow_missing:
        raise PreconditionError(
            "MISSING_PREDICTION",
            f"the prediction does not hold {listed(missing)}",
            "predict these too, or give --allow-missing to count them as missed",
            case=pair.case_id,
            file=file,
        )


def lacking(matches: Sequence[Match]) -> list[str]:
    """Structures of a reference that its prediction does not hold."""
    return [match.name for match in matches if match.reference is not None and match.prediction is None]


# ---- scoring ----------------------------------------------------------------------------------------------


def score_masks(
    pair: MaskPair, structures: Sequence[Structure], settings: ScoreSettings
) -> tuple[list[Row], list[Row], list[str]]:
    """(rows, rows of predicting nothing, lines of what was noticed) of one case, a structure at a time.
    Raises PipelineError."""
    scan, notes = None, []
    if pair.scan is not None:
        with Refusals(pair.case_id, pair.scan.path.name):
            scan, findings = load_case.load_image(pair.scan)
            notes = warnings_of(findings, pair.case_id, pair.scan.path.name)
    sides = [side for side in (pair.reference, pair.prediction) if side is not None]
    opened: list[Masks] = []
    for side in sides:
        with Refusals(pair.case_id, side.file):
            opened.append(
                open_masks(side.path, scan, pair.scan, naming=side.naming, fill_gaps=settings.fill_gaps)
            )
    reference = opened[0]
    with Refusals(pair.case_id, pair.reference.file):
        if not reference.names:
            raise CaseError("LABEL_EMPTY", "it names no structure", "restore the labels")
        grid = (scan or reference.labels or reference.read(reference.names[0])).grid
    of = "reference" if scan is None else "scan"

    def placed(place: int, name: str | None) -> np.ndarray:
        """A structure of a side (0: reference) on the grid that everything is compared on (uint8); empty
        without."""
        if name is None or place >= len(sides):
            return np.zeros(grid.shape, np.uint8)
        side = sides[place]
        with Refusals(pair.case_id, side.file):
            return opened[place].on(grid, of, side.path, name).astype(np.uint8)

    ignore = None
    if reference.naming.ignore is not None:
        with Refusals(pair.case_id, pair.reference.file):
            ignore = reference.on(grid, of, pair.reference.path) == reference.naming.ignore
    how = dataclasses.replace(settings, ignore_label=None if ignore is None else _IGNORED)
    rows: list[Row] = []
    nothing: list[Row] = []
    names = case_columns(pair.case_id, pair.patient_id, pair.prediction_file, pair.reference.file)
    for structure, match in zip(structures, pair.matches):
        truth, prediction = placed(0, match.reference), placed(1, match.prediction)
        # Contours cannot say "none there".
        undrawn = pair.reference.kind == RTSTRUCT and not truth.any()
        unannotated = match.reference is None or match.name in pair.unlabelled or undrawn
        if ignore is not None:
            truth[ignore] = _IGNORED
        states = {match.name: "unlabelled"} if unannotated else {}
        found = score_maps(prediction, truth, grid.spacing_mm, [Structure(match.name, (1,))], how, states)
        rows += [names | row | {"label": structure.key} for row in found[0]]
        nothing += [names | row | {"label": structure.key} for row in found[1]]
    for side, masks in zip(sides, opened):
        told = [finding for finding in masks.findings if finding.code != "GRID_REORDERED"]
        notes += warnings_of(told, pair.case_id, side.file, notes_too=True)
    return rows, nothing, notes


def numbered(names: Sequence[str]) -> tuple[Structure, ...]:
    """The structures with the numbers that the result files call them by."""
    return tuple(Structure(name, (number,)) for number, name in enumerate(names, start=1))


def said_of(pairs: Sequence[MaskPair]) -> list[str]:
    """Warnings about structures that a prediction does not hold and that therefore count as missed."""
    return [
        f"case {pair.case_id}: the prediction does not hold {listed(names)}, which count as missed"
        for pair in pairs
        if pair.prediction is not None and (names := lacking(pair.matches))
    ]
