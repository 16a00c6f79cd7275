"""Pairs of masks scored case by case in processes of their own, and what a result file says of how it was
done.

Label maps of the same ids are scored in one go, all other masks a structure at a time: segments may overlap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ctseg.artifacts import Workspace
from ctseg.datasets import load_case
from ctseg.datasets.case import IGNORED
from ctseg.datasets.masks import Masks, Naming, open_masks, values_of
from ctseg.errors import CaseError, IntegrityError, at_case, listed
from ctseg.evaluation.label_names import check_names
from ctseg.evaluation.mask_forms import MAP, RTSTRUCT, Side
from ctseg.evaluation.mask_pairs import Pair, check_sets
from ctseg.geometry.boxes import Spacing, tight_box
from ctseg.geometry.volume import Volume
from ctseg.manifest import Manifest
from ctseg.processes import ordered_map
from ctseg.scoring import distances, statistics
from ctseg.scoring.metrics import Row, Structure, has_reference, score_case
from ctseg.scoring.shape import tubular
from ctseg.scoring.shape.airway_tree import parse_tree
from ctseg.scoring.shape.topology import Shape

_IGNORED = 2  # in the map of one structure: 0 background, 1 the structure


class ScoreSettings(NamedTuple):
    """How pairs are scored. tolerances_mm: structure -> tolerances of the NSD, the main one first. topology:
    which structures' topology is measured, see `tubular.measured`."""

    tolerances_mm: Mapping[str, tuple[float, ...]]
    boundary_mode: str = "surfel"
    topology: str = "auto"
    fill_gaps: bool = False  # of DICOM masks from a thicker series, see `slice_gaps`


class Scored(NamedTuple):
    """Pairs and their scores, ordered by case id and structure.

    rows: of the predictions. nothing: of a model that predicts nothing. notes: lines of what was noticed.
    ignored: voxels of the references that nobody looked at.
    """

    pairs: Sequence[Pair]
    structures: Sequence[Structure]
    how: ScoreSettings
    rows: list[Row]
    nothing: list[Row]
    notes: list[str]
    ignored: int

    @property
    def names(self) -> list[str]:
        """The structures' names in order."""
        return [structure.name for structure in self.structures]

    @property
    def missing(self) -> int:
        """How many predictions there are none of."""
        return sum(pair.prediction is None for pair in self.pairs)

    @property
    def warnings(self) -> list[str]:
        """The notes, after what counts as missed and before what was ignored."""
        said = [
            f"case {pair.case_id}: the prediction does not hold {listed(pair.lacking)}, which count as missed"
            for pair in self.pairs
            if pair.prediction is not None and pair.lacking
        ]
        if self.missing:
            said.insert(0, f"{self.missing} predictions are missing; their structures count as missed")
        if self.ignored:
            marked = f'{self.ignored} voxels of the references are marked "ignore" and left out of all scores'
            return [*said, *self.notes, marked]
        return [*said, *self.notes]

    def settings(self, *, split_hash: str | None, synthetic: bool) -> dict[str, Any]:
        """How the scores were made, as the result files hold it (JSON values)."""
        return {
            "boundary_mode": self.how.boundary_mode,
            "hd95": "max_of_directed_percentiles",
            "tolerance_epsilon": distances.TOLERANCE_EPSILON,
            "empty_policy": "present_only",
            "tolerances_mm": {name: list(values) for name, values in self.how.tolerances_mm.items()},
            "distance_unit": "mm",
            "bootstrap": {"method": "bca", "resamples": statistics.RESAMPLES, "seed": statistics.SEED},
            "split_hash": split_hash,
            "n_patients": len({pair.patient_id for pair in self.pairs}),
            "n_cases": len(self.pairs),
            "n_missing_predictions": self.missing,
            "synthetic": synthetic,
        }


def score_pairs(
    pairs: Sequence[Pair],
    structures: Sequence[Structure],
    how: ScoreSettings,
    *,
    workers: int = 1,
    progress: Callable[..., Any] | None = None,
) -> Scored:
    """Score every pair: one process per case at a time, one thread each.

    The result does not depend on the number of workers. progress: as `ordered_map` takes it.
    """
    ordered = sorted(pairs, key=lambda pair: pair.case_id)
    job = functools.partial(score_pair, structures=structures, settings=how)
    scored = ordered_map(job, ordered, workers=workers, progress=progress)
    return Scored(
        ordered,
        structures,
        how,
        rows=[row for case in scored for row in case.rows],
        nothing=[row for case in scored for row in case.nothing],
        notes=[line for case in scored for line in case.notes],
        ignored=sum(case.ignored for case in scored),
    )


def pairs_of_test_split(workspace: Workspace, manifest: Manifest, record: Mapping[str, Any]) -> list[Pair]:
    """The predictions that `evaluation_run.json` lists, beside the references of the test split.

    Raises IntegrityError when the two are about other structures or cases.
    """
    if record["structures"] != list(manifest.structures):
        raise IntegrityError(
            "ORGAN_MAP_MISMATCH",
            "the predictions name other structures than processed_data",
            "run `python evaluate.py` again",
            file=workspace.relative(workspace.run_record),
        )
    check_names(manifest.structures)
    expected = {case.case_id: case for case in manifest.of_split("test")}
    predicted = {case["case_id"]: case for case in record["cases"]}
    check_sets("test case", expected, predicted)
    names = tuple(manifest.structures)
    table = dict(enumerate(names, start=1))
    pairs = []
    for case_id, case in expected.items():
        files = predicted[case_id]["reference"], predicted[case_id]["prediction"]
        reference = Side(
            workspace.processed / files[0],
            MAP,
            names,
            f"processed_data/{files[0]}",
            Naming.of(table, IGNORED),
        )
        prediction = Side(workspace.evaluation / files[1], MAP, names, files[1], Naming.of(table))
        pairs.append(Pair(case_id, case.patient_id, reference, prediction, case.states))
    return pairs


# ---- one pair ---------------------------------------------------------------------------------------------


class CaseScores(NamedTuple):
    """What `score_pair` gives, see `Scored`."""

    rows: list[Row]
    nothing: list[Row]
    notes: list[str]
    ignored: int


def open_pair(pair: Pair, fill_gaps: bool) -> tuple[Volume | None, list[Masks], list[str]]:
    """(scan, masks of the reference and the prediction, lines of what was noticed about the scan)."""
    scan, notes, opened = None, [], []
    if pair.scan is not None:
        with at_case(pair.case_id, pair.scan.path.name, kind=IntegrityError):
            scan, found = load_case.load_image(pair.scan)
        notes = [one.at(pair.case_id, pair.scan.path.name).line() for one in found if one.severity == "WARN"]
    for side in pair.sides:
        with at_case(pair.case_id, side.file, kind=IntegrityError):
            opened.append(open_masks(side.path, scan, pair.scan, naming=side.naming, fill_gaps=fill_gaps))
            if side is pair.reference and not opened[0].names:
                raise CaseError("LABEL_EMPTY", "it names no structure", "restore the labels")
    return scan, opened, notes


def score_pair(pair: Pair, structures: Sequence[Structure], settings: ScoreSettings) -> CaseScores:
    """The scores of one case. Raises PipelineError: where one bad file is no case to skip, since nothing may
    drop out, a CaseError becomes an IntegrityError of the case and the file."""
    scan, opened, notes = open_pair(pair, settings.fill_gaps)
    with at_case(pair.case_id, pair.reference.file, kind=IntegrityError):
        grid = (scan or opened[0].labels or opened[0].read(opened[0].names[0])).grid

    def placed(number: int, name: str | None = None) -> np.ndarray:
        """A mask of a side (0: the reference) on the grid that everything is compared on; without a name its
        label map."""
        side = pair.sides[number]
        with at_case(pair.case_id, side.file, kind=IntegrityError):
            return opened[number].on(grid, "reference" if scan is None else "scan", side.path, name)

    value = None if pair.reference.naming is None else pair.reference.naming.ignore
    labels = placed(0) if pair.matches is None or value is not None else None
    ignored = None if value is None else labels == value
    empty = np.zeros(grid.shape, np.uint8)
    rows: list[Row] = []
    nothing: list[Row] = []
    if pair.matches is None and labels is not None:
        prediction = empty if pair.prediction is None else placed(1)
        rows, nothing = score_maps(
            prediction, labels, grid.spacing_mm, structures, settings, pair.states, value
        )
    for structure, match in zip(structures, pair.matches or ()):
        truth = empty.copy() if match.reference is None else placed(0, match.reference).astype(np.uint8)
        prediction = empty if match.prediction is None else placed(1, match.prediction).astype(np.uint8)
        states = pair.states
        if pair.reference.kind == RTSTRUCT and not truth.any():  # contours cannot say "none there"
            states = {match.name: "unlabelled"}
        if ignored is not None:
            truth[ignored] = _IGNORED
        own = Structure(match.name, (1,))
        found = score_maps(
            prediction, truth, grid.spacing_mm, [own], settings, states, None if ignored is None else _IGNORED
        )
        rows += [found[0][0] | {"label": structure.key}]
        nothing += [found[1][0] | {"label": structure.key}]
    for side, masks in zip(pair.sides, opened):
        told = (finding for finding in masks.findings if finding.code != "GRID_REORDERED")
        notes += [finding.at(pair.case_id, side.file).line() for finding in told]
    names = {
        "case_id": pair.case_id,
        "patient_id": pair.patient_id,
        "prediction_file": "" if pair.prediction is None else pair.prediction.file,
        "reference_file": pair.reference.file,
    }
    return CaseScores(
        [names | row for row in rows],
        [names | row for row in nothing],
        notes,
        0 if ignored is None else int(np.count_nonzero(ignored)),
    )


def score_maps(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Spacing,
    structures: Sequence[Structure],
    settings: ScoreSettings,
    states: Mapping[str, str],
    ignore_label: int | None,
) -> tuple[list[Row], list[Row]]:
    """(rows, rows of predicting nothing) of two label maps (D, H, W) on one grid; without ids and files.

    Rows of structures whose topology is measured carry it under "topology" (see `tubular.compare`), others
    None.
    """
    rows, nothing = (
        score_case(
            prediction=guess,
            reference=reference,
            spacing_mm=spacing_mm,
            structures=structures,
            tolerances_mm=settings.tolerances_mm,
            annotation=states,
            boundary_mode=settings.boundary_mode,
            ignore_label=ignore_label,
        )
        for guess in (prediction, np.zeros_like(reference, dtype=np.uint8))
    )
    wanted = tubular.measured([structure.name for structure in structures], settings.topology)
    for structure, row, empty in zip(structures, rows, nothing):
        row["topology"] = empty["topology"] = None
        if structure.name in wanted and has_reference(row):
            row["topology"], empty["topology"] = topology_rows(
                prediction, reference, spacing_mm, structure, ignore_label
            )
    return rows, nothing


def topology_rows(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Spacing,
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
    known = Shape(truth)
    tree = parse_tree(known, spacing_mm) if tubular.kind_of(structure.name) == tubular.TREE else None
    found, nothing = (
        tubular.compare(Shape(part), known, spacing_mm, tree) for part in (mask, np.zeros_like(truth))
    )
    return found, nothing
