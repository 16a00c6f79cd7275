"""Scores of one case: overlap from one confusion matrix for all structures, surfaces in the structures'
boxes.

Masks are arrays (D, H, W); `spacing_mm` is in the same axis order. Everything is keyword-only: the order of
prediction and reference differs between packages, so a position would lie. Undefined is None, never 0, 1 or
NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ctseg.geometry.boxes import Box, Spacing, bounding_box, label_boxes, union
from ctseg.scoring import distances as surfaces
from ctseg.scoring import tolerances

Row = dict[str, Any]
PRESENT, MISSED, HALLUCINATED, ABSENT = "present", "missed", "hallucinated", "absent"
UNANNOTATED, UNEVALUABLE = "unannotated", "unevaluable"
HEADLINE_STATES = (PRESENT, MISSED)  # the reference holds the structure
STATES = (PRESENT, MISSED, HALLUCINATED, ABSENT, UNANNOTATED, UNEVALUABLE)
# What a case may say about a structure, and the state that follows whatever the masks hold.
_NOT_SCORED = {"unlabelled": UNANNOTATED, UNANNOTATED: UNANNOTATED, UNEVALUABLE: UNEVALUABLE}
_DISTANCES = ("hd_mm", "hd95_mm", "assd_mm", "masd_mm")
MAX_LABEL = 65535
_PIECE = 1 << 16  # voxels counted at a time


class Structure(NamedTuple):
    """A structure: its name and its label ids (several: a region, the union of these labels)."""

    name: str
    labels: tuple[int, ...]

    @property
    def key(self) -> str:
        """The label as nnU-Net writes it: "1", or "(1, 2)" for a region."""
        return str(self.labels[0]) if len(self.labels) == 1 else str(self.labels)


class Counts(NamedTuple):
    """Voxels of one structure in one case: true/false positive/negative."""

    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of(cls, *, prediction: np.ndarray, reference: np.ndarray) -> Counts:
        """Counts of two bool masks of one shape."""
        if prediction.shape != reference.shape:
            raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
        tp = int(np.count_nonzero(prediction & reference))
        fp, fn = int(np.count_nonzero(prediction)) - tp, int(np.count_nonzero(reference)) - tp
        return cls(tp, fp, fn, reference.size - tp - fp - fn)

    def ratios(self) -> dict[str, float | None]:
        """None where nothing is divided by: dice and iou when both masks are empty, precision when the
        prediction is, recall (sensitivity) and the signed relative volume error when the reference is,
        specificity when the reference fills the volume (near 1 for every small structure: never a
        headline)."""
        tp, fp, fn, tn = self
        fractions = {
            "dice": (2 * tp, 2 * tp + fp + fn),
            "iou": (tp, tp + fp + fn),
            "precision": (tp, tp + fp),
            "recall": (tp, tp + fn),
            "specificity": (tn, tn + fp),
            "volume_error": (fp - fn, tp + fn),
        }
        return {
            name: numerator / denominator if denominator else None
            for name, (numerator, denominator) in fractions.items()
        }


def has_reference(row: Mapping[str, Any]) -> bool:
    """Whether a row's reference holds the structure: only such rows enter a headline."""
    return row["state"] in HEADLINE_STATES


def grouped(rows: Iterable[Row], column: str) -> dict[Any, list[Row]]:
    """The rows by their value in a column, both in the order in which they come."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[column], []).append(row)
    return groups


def image_diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """The diagonal of the grid: the distance charged for a missed structure (221.7025 for 128^3 at 1 mm)."""
    return math.sqrt(sum((n * s) ** 2 for n, s in zip(shape, spacing_mm)))


def surface_metrics(
    pair: surfaces.SurfaceDistances, tolerances_mm: Sequence[float]
) -> dict[str, float | None]:
    """hd_mm, hd95_mm, assd_mm, masd_mm and nsd_{tolerance}mm of one pair of surfaces."""
    return {
        "hd_mm": surfaces.hausdorff_mm(pair),
        "hd95_mm": surfaces.percentile_hausdorff_mm(pair),
        "assd_mm": surfaces.average_symmetric_mm(pair),
        "masd_mm": surfaces.mean_average_mm(pair),
        **{tolerances.key(t): surfaces.surface_dice(pair, t) for t in tolerances_mm},
    }


# ---- all structures of one case ---------------------------------------------------------------------------


def score_case(
    *,
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Spacing,
    structures: Sequence[Structure],
    tolerances_mm: Mapping[str, tuple[float, ...]],
    annotation: Mapping[str, str] | None = None,
    boundary_mode: str = "surfel",
    ignore_label: int | None = None,
) -> list[Row]:
    """One row per structure, in their order, from two label maps (D, H, W) of integers on one grid.

    annotation: name -> "unlabelled" or "unevaluable" for structures about which the reference says nothing;
    any other value, or none, means that the reference was annotated and its mask decides.
    ignore_label: voxels with this reference label leave all four counts and are background for the surfaces.
    The row's keys are the columns of `per_case.csv` without ids and files, plus image_diagonal_mm (float) and
    nsd_by_tolerance ({"nsd_2mm": value}).
    """
    if prediction.ndim != 3 or prediction.shape != reference.shape:
        raise ValueError(
            f"prediction {prediction.shape} and reference {reference.shape} must be 3D and of one shape"
        )
    shape = reference.shape
    prediction, reference, index_of, ignored = _compact(prediction, reference, structures, ignore_label)
    labelled = [box for box in (bounding_box(prediction), bounding_box(reference)) if box is not None]
    if labelled:  # planes without any label are background in both; a view, for a copy takes longer
        planes = union(*labelled)[0]
        prediction, reference = prediction[planes], reference[planes]
    n_labels = int(max(prediction.max(initial=0), reference.max(initial=0), *index_of.values())) + 1
    matrix = confusion_matrix(prediction=prediction, reference=reference, n_labels=n_labels)
    matrix[0, 0] += math.prod(shape) - reference.size - ignored
    members = [[index_of[label] for label in structure.labels] for structure in structures]
    counts = [counts_of(matrix, member) for member in members]
    states = [state_of(c, (annotation or {}).get(s.name)) for s, c in zip(structures, counts)]
    boxes = [label_boxes(array) for array in (prediction, reference)]
    diagonal_mm = image_diagonal_mm(shape, spacing_mm)
    rows = []
    for structure, member, count, state in zip(structures, members, counts, states):
        taus = tolerances_mm[structure.name]
        surface: dict[str, float | None] = dict.fromkeys(_DISTANCES)
        surface |= dict.fromkeys(map(tolerances.key, taus), 0.0 if state == MISSED else None)
        if state == PRESENT:
            box = union(*(found[i] for found in boxes for i in member if i in found))
            pair = surfaces.distances_in_box(
                prediction=_crop(prediction, box, member),
                reference=_crop(reference, box, member),
                spacing_mm=spacing_mm,
                boundary_mode=boundary_mode,
            )
            surface = surface_metrics(pair, taus)
        rows.append(
            {
                "structure": structure.name,
                "label": structure.key,
                "state": state,
                "boundary_mode": boundary_mode,
                **_overlap_columns(count, state, spacing_mm),
                **_surface_columns(surface, state, taus, diagonal_mm),
                **{f"spacing_{axis}_mm": float(s) for axis, s in zip("dhw", spacing_mm)},
            }
        )
    return rows


def _compact(
    prediction: np.ndarray, reference: np.ndarray, structures: Sequence[Structure], ignore_label: int | None
) -> tuple[np.ndarray, np.ndarray, dict[int, int], int]:
    """Both maps as small unsigned integers, label id -> that integer, and how many voxels were ignored.

    uint8 maps keep their values, others are numbered anew. The inputs are not changed.
    """
    ids = sorted({label for structure in structures for label in structure.labels})
    if not all(0 < label <= MAX_LABEL for label in ids):
        raise ValueError(f"label ids must lie in 1 to {MAX_LABEL}, found {ids}")
    index_of = {label: i + 1 for i, label in enumerate(ids)}
    ignore = None if ignore_label is None else reference == ignore_label
    if prediction.dtype == reference.dtype == np.uint8:
        index_of = {label: label for label in ids}
        prediction, reference = np.ascontiguousarray(prediction), np.ascontiguousarray(reference)
    else:
        prediction, reference = (_renumber(array, ids) for array in (prediction, reference))
    if ignore is None:
        return prediction, reference, index_of, 0
    prediction, reference = prediction.copy(), reference.copy()
    prediction[ignore] = reference[ignore] = 0
    return prediction, reference, index_of, int(np.count_nonzero(ignore))


def _renumber(array: np.ndarray, ids: list[int]) -> np.ndarray:
    """`array` with ids[i] replaced by i + 1 and everything else by 0; contiguous uint8, or uint16 above 255
    ids."""
    target = np.uint8 if len(ids) < 256 else np.uint16
    top = max(ids, default=0)
    if array.min(initial=0) < 0 or array.max(initial=0) > top:
        array = np.where((array < 0) | (array > top), 0, array)
    table = np.zeros(top + 1, target)
    table[ids] = np.arange(1, len(ids) + 1)
    return np.ascontiguousarray(table[array])


def confusion_matrix(*, prediction: np.ndarray, reference: np.ndarray, n_labels: int) -> np.ndarray:
    """(n_labels, n_labels) int64 voxel counts, [reference label, prediction label], of maps with labels below
    n_labels.

    Piece by piece, so that temporaries stay in the cache; background in both, most of a scan, is counted by
    the rest.
    """
    flat = prediction.reshape(-1), reference.reshape(-1)
    counts = np.zeros(n_labels**2, np.int64)
    for first in range(0, reference.size, _PIECE):
        predicted, true = (array[first : first + _PIECE] for array in flat)
        labelled = np.flatnonzero(predicted | true)
        counts += np.bincount(
            true[labelled].astype(np.intp) * n_labels + predicted[labelled], minlength=counts.size
        )
    counts[0] += reference.size - counts.sum()
    return counts.reshape(n_labels, n_labels)


def counts_of(matrix: np.ndarray, member: list[int]) -> Counts:
    """The counts of a structure of one or several labels, from the confusion matrix of all labels."""
    tp = int(matrix[np.ix_(member, member)].sum())
    fn, fp = int(matrix[member].sum()) - tp, int(matrix[:, member].sum()) - tp
    return Counts(tp, fp, fn, int(matrix.sum()) - tp - fp - fn)


def state_of(counts: Counts, annotation: str | None) -> str:
    """One of STATES, from the masks and from what the case says about the structure."""
    if annotation in _NOT_SCORED:
        return _NOT_SCORED[annotation]
    in_reference, in_prediction = counts.tp + counts.fn > 0, counts.tp + counts.fp > 0
    if in_reference:
        return PRESENT if in_prediction else MISSED
    return HALLUCINATED if in_prediction else ABSENT


def _overlap_columns(counts: Counts, state: str, spacing_mm: Spacing) -> Row:
    voxel_ml = math.prod(spacing_mm) / 1000.0
    columns: Row = {
        **counts._asdict(),
        **counts.ratios(),
        "reference_ml": (counts.tp + counts.fn) * voxel_ml,
        "prediction_ml": (counts.tp + counts.fp) * voxel_ml,
    }
    if state in (UNANNOTATED, UNEVALUABLE):
        return dict.fromkeys(columns)
    if state == HALLUCINATED:  # by the plain formula they are 0, but there is no reference to overlap with
        columns |= {"dice": None, "iou": None}
    return columns


def _surface_columns(
    surface: dict[str, float | None], state: str, tolerances_mm: tuple[float, ...], diagonal_mm: float
) -> Row:
    """The columns of the surface metrics. A missed structure is charged the image diagonal in the imputed
    ones."""
    keys = [tolerances.key(tau) for tau in tolerances_mm]
    imputed = {
        f"{name}_imputed_mm": diagonal_mm if state == MISSED else surface[f"{name}_mm"]
        for name in ("hd", "hd95", "assd")
    }
    return {
        **{name: surface[name] for name in _DISTANCES},
        **imputed,
        "nsd": surface[keys[0]],
        "nsd_tau_mm": tolerances_mm[0],
        "nsd2": surface[keys[1]],
        "nsd2_tau_mm": tolerances_mm[1],
        "nsd_by_tolerance": {key: surface[key] for key in keys},
        "image_diagonal_mm": diagonal_mm,
    }


def _crop(volume: np.ndarray, box: Box, member: list[int]) -> np.ndarray:
    """The structure's mask inside the box, contiguous bool."""
    crop = volume[box]
    return crop == member[0] if len(member) == 1 else np.isin(crop, member)
