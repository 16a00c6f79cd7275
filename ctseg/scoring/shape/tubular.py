"""Topology and tree metrics of one structure in one case, which structures get them, and their summary.

Only cases whose reference holds the structure are measured, `present` and `missed` alike (see
`ctseg.scoring.metrics`). A missed one counts: no centre line, no tree length and no branch found, leakage 0,
the reference's own Betti numbers as errors; precision and breaks are undefined then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ctseg.geometry.boxes import Spacing
from ctseg.scoring import statistics
from ctseg.scoring.metrics import HALLUCINATED, MISSED, UNANNOTATED, UNEVALUABLE, Row, grouped
from ctseg.scoring.shape.airway_tree import Tree, td_by_generation, tree_metrics
from ctseg.scoring.shape.topology import Betti, Shape, cldice, component_errors
from ctseg.scoring.tolerances import first_fit

TREE, TUBE, OTHER = "tree", "tube", "other"
_AIRWAYS = ("airway", "bronch")
CHOICES = ("auto", "all", "none")
# Words in a structure's name, read without case and anything but letters; the first row that fits decides.
# Walls and what grows in a vessel are no tubes; branching metrics make sense only where there are branches.
_KINDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "lesion",
            "tumor",
            "tumour",
            "cancer",
            "cyst",
            "metastas",
            "nodule",
            "thromb",
            "plaque",
            "calcif",
            "wall",
        ),
        OTHER,
    ),
    ((*_AIRWAYS, "coronary", "vessel"), TREE),
    (("trachea", "aorta", "artery", "arteries", "arterial", "vein", "venacava", "postcava", "ureter"), TUBE),
)
# Columns of every measured structure, and of trees in addition.
SHAPE_COLUMNS = (
    "cldice",
    "cldice_precision",
    "cldice_recall",
    "b0_reference",
    "b0_prediction",
    "b1_reference",
    "b1_prediction",
    "b2_reference",
    "b2_prediction",
    "b0_error",
    "b1_error",
    "b2_error",
    "betti_error",
    "b0_located_error",
    "extra_components",
    "extra_components_ml",
)
TREE_COLUMNS = (
    "td_full",
    "precision_full",
    "leakage_full",
    "td_lcc",
    "precision_lcc",
    "leakage_lcc",
    "td_mm_full",
    "td_mm_lcc",
    "bd_full",
    "bd_lcc",
    "amr_full",
    "amr_lcc",
    "dice_full",
    "dice_lcc",
    "breaks",
    "branches",
    "tree_length_mm",
)
GENERATIONS = "td_by_generation_full"  # list, from the trachea on


def kind_of(name: str) -> str:
    """TREE, TUBE or OTHER, from the structure's name."""
    return first_fit(name, _KINDS, OTHER)


def measured(names: Iterable[str], choice: str) -> list[str]:
    """The structures to measure: "auto" tubes and trees, "all" every one, "none" none."""
    if choice not in CHOICES:
        raise ValueError(f"choice={choice!r} of {CHOICES}")
    return [name for name in names if choice == "all" or (choice == "auto" and kind_of(name) != OTHER)]


# ---- one structure of one case ----------------------------------------------------------------------------


def compare(prediction: Shape, reference: Shape, spacing_mm: Spacing, tree: Tree | None) -> Row:
    """SHAPE_COLUMNS of one prediction of the reference's shape. tree: of a branching reference
    (`parse_tree`); then TREE_COLUMNS and GENERATIONS too."""
    centre, parts = cldice(prediction, reference), component_errors(prediction, reference, spacing_mm)
    row: Row = {"cldice": centre.cldice, "cldice_precision": centre.precision, "cldice_recall": centre.recall}
    errors: Row = {}
    for b, own, other in zip(Betti._fields, prediction.betti, reference.betti):
        row |= {f"{b}_reference": other, f"{b}_prediction": own}
        errors[f"{b}_error"] = abs(own - other)
    row |= {
        **errors,
        "betti_error": sum(errors.values()),
        "b0_located_error": parts.b0_error,
        "extra_components": parts.extra,
        "extra_components_ml": parts.extra_ml,
    }
    if tree is not None:
        row |= tree_metrics(prediction, reference, tree)
        row[GENERATIONS] = td_by_generation(prediction.mask, tree)
    return row


# ---- all cases --------------------------------------------------------------------------------------------


def summarise(rows: Sequence[Row], baseline_rows: Sequence[Row]) -> dict[str, Any]:
    """The `topology` block of summary_statistics.json: structure -> counts and statistics of every column.

    rows: those of `score_case` with patient_id and "topology", what `compare` returned, or None where nothing
    was measured. baseline_rows: the same of predicting nothing, whose means stand under "all_background".
    Empty when no structure was measured.
    """
    nothing = grouped(filter(_topology, baseline_rows), "structure")
    blocks = {}
    for name, own in grouped(rows, "structure").items():
        with_it = list(filter(_topology, own))
        if not with_it:
            continue
        found, patients = list(map(_topology, with_it)), [row["patient_id"] for row in with_it]
        unscored = sum(row["state"] in (UNANNOTATED, UNEVALUABLE) for row in own)
        columns = [column for column in (*SHAPE_COLUMNS, *TREE_COLUMNS) if column in found[0]]
        block: dict[str, Any] = {
            "kind": kind_of(name),
            "connectivity": "26/6",
            "n_reference": len(with_it),
            "n_missed": sum(row["state"] == MISSED for row in with_it),
            "n_without_reference": len(own) - unscored - len(with_it),
            "n_hallucinated": sum(row["state"] == HALLUCINATED for row in own),
        }
        block |= {column: statistics.describe([row[column] for row in found], patients) for column in columns}
        if GENERATIONS in found[0]:
            block[GENERATIONS] = _of_generations([row[GENERATIONS] for row in found])
        block["all_background"] = {
            column: statistics.describe(
                [_topology(row)[column] for row in nothing.get(name, ())], patients, interval=False
            )["mean"]
            for column in columns
        }
        blocks[name] = block
    return blocks


def _topology(row: Row) -> Row:
    """What was measured; empty where nothing was."""
    return row.get("topology") or {}


def airway_block(topology: Mapping[str, Any]) -> dict[str, Any]:
    """The `airway` block of summary_statistics.json: the tree columns of the airways, out of `summarise`'s
    block.

    "structure" says whose they are; of several airways the first. Empty without one: other trees (coronaries,
    vessels) stand in the `topology` block only.
    """
    counts = ("n_reference", "n_missed", "n_without_reference", "n_hallucinated")
    for name, block in topology.items():
        if block["kind"] == TREE and first_fit(name, [(_AIRWAYS, True)], False):
            return {"structure": name, **{key: block[key] for key in (*counts, *TREE_COLUMNS, GENERATIONS)}}
    return {}


def _of_generations(shares: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Mean and median over the cases that reach each generation."""
    result = []
    for generation in range(max(map(len, shares))):
        values = [case[generation] for case in shares if len(case) > generation]
        mean, median = float(np.mean(values)), float(np.median(values))
        result.append({"generation": generation, "mean": mean, "median": median, "n": len(values)})
    return result
