"""Pairs of predicted and reference masks on disk: found, named, checked against each other, and scored.

What does not fit together is refused before anything is scored: a prediction without reference or the
reverse, another grid, label values that no structure has.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.artifacts import read_json
from ctseg.datasets import listing
from ctseg.datasets.masks import Naming, label_map, values_of
from ctseg.errors import CaseError, Finding, IntegrityError, PreconditionError, UsageError
from ctseg.geometry.boxes import tight_box
from ctseg.scans.formats import volume_files
from ctseg.scoring.metrics import MAX_LABEL, Row, Structure, has_reference, score_case
from ctseg.scoring.shape import tubular
from ctseg.scoring.summary import RESERVED_NAMES

_NAME_FILES = ("labels.json", "dataset.json")


@dataclasses.dataclass(frozen=True)
class Pair:
    """One case to score. prediction None: the file is missing and counts as empty. prediction_file and
    reference_file: how results call the files. states: structure -> what the case says about its annotation
    ("unlabelled" and "unevaluable" are not scored)."""

    case_id: str
    patient_id: str
    prediction: Path | None
    reference: Path
    prediction_file: str
    reference_file: str
    states: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ScoreSettings:
    """How pairs are scored. tolerances_mm: structure -> tolerances of the NSD, the main one first. topology:
    which structures' topology is measured, see `tubular.measured`."""

    tolerances_mm: Mapping[str, tuple[float, ...]]
    boundary_mode: str = "surfel"
    ignore_label: int | None = None
    topology: str = "auto"
    fill_gaps: bool = False  # of DICOM masks from a thicker series, see `slice_gaps`


@dataclasses.dataclass(frozen=True)
class LabelNames:
    """Structures of a folder of label maps; ignore_label: voxels nobody looked at; annotated: case id ->
    names of the structures that were looked for there (cases that are not listed: all)."""

    structures: tuple[Structure, ...]
    ignore_label: int | None = None
    annotated: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)

    def states_of(self, case_id: str) -> dict[str, str]:
        """ "unlabelled" for every structure that was not looked for in this case."""
        if case_id not in self.annotated:
            return {}
        return {s.name: "unlabelled" for s in self.structures if s.name not in self.annotated[case_id]}


# ---- names ------------------------------------------------------------------------------------------------


def find_label_names(reference: Path, prediction: Path, given: Path | None) -> LabelNames:
    """Names from `given`, else from labels.json or dataset.json in the reference folder, the prediction
    folder, or the parent of either (nnU-Net's place). Raises when the folders contradict each other."""
    if given is not None:
        return read_label_names(given)
    found = {}
    for folder in (reference, reference.parent, prediction, prediction.parent):
        path = next((folder / name for name in _NAME_FILES if (folder / name).is_file()), None)
        if path is not None:
            found[path] = read_label_names(path)
    if not found:
        raise PreconditionError(
            "NO_LABEL_NAMES",
            f"neither folder holds {' or '.join(_NAME_FILES)}, so the label ids have no names",
            'give --labels names.json, for example {"1": "liver", "2": "spleen"}',
            file=reference.name,
        )
    (first, names), *others = found.items()
    for path, other in others:
        if set(other.structures) != set(names.structures):
            raise IntegrityError(
                "ORGAN_MAP_MISMATCH",
                f"{first.parent.name}/{first.name} and {path.parent.name}/{path.name} give the label "
                "ids different names",
                "give the right names with --labels",
                file=path.name,
            )
    return names


def read_label_names(path: Path) -> LabelNames:
    """Names from {"1": "liver"}, {"liver": 1}, or a dataset.json or manifest.json with such a map under
    "labels".

    A list of ids makes a region. "background" is left out, "ignore" is the ignore label. An "annotated" map
    (case id -> names), or "annotated" in each of a manifest's "cases", says what was looked for in a case.
    """
    if not path.is_file():
        raise UsageError(
            "FILE_MISSING",
            "the file with the label names does not exist",
            "check the path after --labels",
            file=path.name,
        )
    content = read_json(path)
    table = content.get("labels", content) if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        raise UsageError(
            "BAD_LABELS",
            "no map of label ids and names in it",
            'write for example {"1": "liver"}',
            file=path.name,
        )
    structures, ignore = [], None
    for key, value in table.items():
        if key == "annotated":
            continue
        name, labels = (value, _ids(key)) if isinstance(value, str) else (key, _ids(value))
        if labels is None:
            raise UsageError(
                "BAD_LABELS",
                f"{key!r}: {value!r} does not join a name and an id from 0 to {MAX_LABEL}",
                'write for example "1": "liver"',
                file=path.name,
            )
        if name.lower() == "ignore":
            ignore = labels[0]
        elif name.lower() != "background" and labels != (0,):
            structures.append(Structure(name, labels))
    structures.sort(key=lambda structure: structure.labels)
    check_names([structure.name for structure in structures], path.name)
    return LabelNames(
        tuple(structures),
        ignore,
        _annotated(content, {structure.name for structure in structures}, path.name),
    )


def _annotated(table: dict[str, Any], known: set[str], file: str) -> dict[str, frozenset[str]]:
    content = table.get("annotated", {})
    if isinstance(table.get("cases"), list):  # the manifest.json of the plain layout
        content = {
            case["case"]: case["annotated"]
            for case in table["cases"]
            if isinstance(case, dict) and {"case", "annotated"} <= set(case)
        }
    if not isinstance(content, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in content.values()
    ):
        raise UsageError(
            "BAD_LABELS",
            "'annotated' is no map from case ids to lists of names",
            'write for example {"case_1": ["liver"]}',
            file=file,
        )
    unknown = sorted({name for names in content.values() for name in names} - known)
    if unknown:
        raise UsageError(
            "BAD_LABELS",
            f"'annotated' names {listed(unknown)}, which have no label id",
            "correct the names",
            file=file,
        )
    return {unicodedata.normalize("NFC", case): frozenset(names) for case, names in content.items()}


def _ids(value: object) -> tuple[int, ...] | None:
    """Label ids from "1", 1 or [1, 2]; None when it is none of these."""
    values: list[Any] = value if isinstance(value, list) else [value]
    try:
        ids = tuple(sorted({int(v) for v in values if not isinstance(v, (bool, float))}))
    except (TypeError, ValueError):
        return None
    return ids if len(ids) == len(values) > 0 and ids[0] >= 0 and ids[-1] <= MAX_LABEL else None


def check_names(names: Sequence[str], file: str = "-") -> None:
    """Refuse no names, equal names, and names that would collide with keys of the result files."""
    twice = sorted({name for name in names if names.count(name) > 1})
    reserved = sorted(RESERVED_NAMES.intersection(names))
    if not names or twice or reserved or "" in names:
        cause = (
            f"{twice} occur twice"
            if twice
            else f"{reserved} are keys of the result files"
            if reserved
            else "there is no structure, or one without a name"
        )
        raise UsageError("BAD_LABELS", cause, "rename the structures", file=file)


# ---- pairs ------------------------------------------------------------------------------------------------


def pair_folders(
    reference: Path, prediction: Path, names: LabelNames, *, allow_missing: bool = False
) -> list[Pair]:
    """One pair per mask of the reference folder, by file name, ordered by case id.

    A missing prediction is refused, or with allow_missing kept as an empty one; an extra prediction is
    refused.
    """
    references, predictions = volumes_in(reference), volumes_in(prediction)
    if not references:
        raise PreconditionError(
            "NO_DATA",
            "the reference folder holds no .nii.gz, .nii, .nrrd or .mha files",
            "check the path after --reference",
            file=reference.name,
        )
    check_sets("case", references, predictions, allow_missing=allow_missing)
    unknown, unlisted = (
        sorted(set(names.annotated) - set(references)),
        sorted(set(references) - set(names.annotated)),
    )
    if unknown and unlisted:  # one of both is fine: a list of more cases, or of some of them
        raise UsageError(
            "BAD_LABELS",
            f"'annotated' names {listed(unknown)} without a reference, but not {listed(unlisted)}",
            "correct the case ids",
        )
    pairs = []
    for case_id, path in sorted(references.items()):
        predicted = predictions.get(case_id)
        pairs.append(
            Pair(
                case_id,
                case_id,
                predicted,
                path,
                predicted.name if predicted else "",
                path.name,
                names.states_of(case_id),
            )
        )
    return pairs


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


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def volumes_in(folder: Path) -> dict[str, Path]:
    """Case id -> volume directly in a folder, detached headers too (their reader refuses them by name)."""
    found: dict[str, Path] = {}
    for path in listing.entries(folder):
        stem = volume_files.stem_of(path, detached=True)
        if stem is None:
            continue
        case_id = unicodedata.normalize("NFC", stem)  # file systems and archives decompose names
        if case_id in found:
            raise PreconditionError(
                "DUPLICATE_ID",
                f"{found[case_id].name} and {path.name} are the same case",
                "keep one of them",
                case=case_id,
                file=path.name,
            )
        found[case_id] = path
    return found


# ---- scoring ----------------------------------------------------------------------------------------------


def score_pair(
    pair: Pair, structures: Sequence[Structure], settings: ScoreSettings
) -> tuple[list[Row], list[Row], list[str]]:
    """(rows, rows of predicting nothing, lines of what was noticed) of one pair. Raises PipelineError.

    Rows of structures whose topology is measured carry it under "topology" (see `tubular.compare`), others
    None.
    """
    naming = Naming({structure.name: structure.labels for structure in structures}, settings.ignore_label)
    with Refusals(pair.case_id, pair.reference_file):
        reference = label_map(pair.reference, naming)
        label = reference.label_volume()
    notes = warnings_of(reference.findings, pair.case_id, pair.reference_file)
    prediction = np.zeros(label.array.shape, np.uint8)
    if pair.prediction is not None:
        with Refusals(pair.case_id, pair.prediction_file):
            predicted = label_map(pair.prediction, Naming(naming.values))
            prediction = predicted.on(label.grid, "reference", pair.prediction)
        notes += warnings_of(predicted.findings, pair.case_id, pair.prediction_file)
    rows, nothing = score_maps(prediction, label.array, label.spacing_mm, structures, settings, pair.states)
    names = case_columns(pair.case_id, pair.patient_id, pair.prediction_file, pair.reference_file)
    return [names | row for row in rows], [names | row for row in nothing], notes


def case_columns(case_id: str, patient_id: str, prediction_file: str, reference_file: str) -> Row:
    """What every row of a case begins with."""
    return {
        "case_id": case_id,
        "patient_id": patient_id,
        "prediction_file": prediction_file,
        "reference_file": reference_file,
    }


def score_maps(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: tuple[float, float, float],
    structures: Sequence[Structure],
    settings: ScoreSettings,
    states: Mapping[str, str],
) -> tuple[list[Row], list[Row]]:
    """(rows, rows of predicting nothing) of two label maps (D, H, W) on one grid; without ids and files."""
    common: Any = {
        "reference": reference,
        "spacing_mm": spacing_mm,
        "structures": structures,
        "tolerances_mm": settings.tolerances_mm,
        "annotation": states,
        "boundary_mode": settings.boundary_mode,
        "ignore_label": settings.ignore_label,
    }
    rows, nothing = (
        score_case(prediction=prediction, **common),
        score_case(prediction=np.zeros_like(reference, dtype=np.uint8), **common),
    )
    wanted = tubular.measured([structure.name for structure in structures], settings.topology)
    for structure, row, empty in zip(structures, rows, nothing):
        chosen = structure.name in wanted and has_reference(row)
        found = (
            _topology(prediction, reference, spacing_mm, structure, settings.ignore_label)
            if chosen
            else (None, None)
        )
        row["topology"], empty["topology"] = found
    return rows, nothing


def _topology(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: tuple[float, float, float],
    structure: Structure,
    ignore_label: int | None,
) -> tuple[Row, Row]:
    """(topology of one structure, that of predicting nothing), in the box that holds all of it; ignored
    voxels are background.
    """
    masks = [values_of(array, structure.labels) for array in (prediction, reference)]
    box = tight_box(masks[0] | masks[1])
    mask, truth = (mask[box] for mask in masks)
    if ignore_label is not None:
        mask &= reference[box] != ignore_label
    tree = tubular.kind_of(structure.name) == tubular.TREE
    known = tubular.study(reference=truth, spacing_mm=spacing_mm, tree=tree)
    found, nothing = (
        tubular.compare(prediction=part, reference=known) for part in (mask, np.zeros_like(truth))
    )
    return found, nothing


def warnings_of(
    findings: Iterable[Finding], case_id: str, shown: str, *, notes_too: bool = False
) -> list[str]:
    """The lines of the warnings about one file of a case, or of all that was noticed."""
    told = [finding for finding in findings if notes_too or finding.severity == "WARN"]
    return [dataclasses.replace(finding, case=case_id, file=shown).line() for finding in told]


class Refusals:
    """Where one bad file is no case to skip, since nothing may drop out: its error gets the case and the
    file."""

    def __init__(self, case_id: str, file: str):
        self.case_id, self.file = case_id, file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CaseError):
            fault = IntegrityError(error.code, error.cause, error.fix, case=self.case_id, file=self.file)
            raise fault from None
