"""The tables of the report as words: every number comes from `summary_statistics.json` or `per_case.csv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctseg.reporting.gallery import CasePicture
from ctseg.reporting.page import DASH, starred, text_of
from ctseg.reporting.pictures.plots import dice_of, mean_of, number, with_reference
from ctseg.reporting.pictures.slices import case_means
from ctseg.reporting.results import Results, dig, patient_of
from ctseg.scoring.paired import macro, macro_interval

WIDE = 8  # more structures than this: the table of cases names the lowest one instead of all
WORST = 12
SAME = 1e-9
STATE_WORDS = {
    "missed": "missed",
    "hallucinated": "hallucinated",
    "absent": "absent",
    "unannotated": "not annotated",
    "unevaluable": "cut off",
}


TOPOLOGY_COLUMNS = (
    ("td_lcc", "{:.3f}"),
    ("bd_lcc", "{:.3f}"),
    ("precision_lcc", "{:.3f}"),
    ("leakage_lcc", "{:.3f}"),
    ("td_full", "{:.3f}"),
    ("precision_full", "{:.3f}"),
    ("breaks", "{:.1f}"),
    ("cldice", "{:.3f}"),
    ("betti_error", "{:.1f}"),
)


def topology_table(found: Results) -> list[dict[str, Any]]:
    """One line per structure that is a tube: means over the test scans that show it; empty without such
    structures.
    """
    lines = []
    for name, block in ((found.summary.get("topology") or {}) if found.evaluated else {}).items():
        cells = [text_of(dig(block, column, "mean"), form) for column, form in TOPOLOGY_COLUMNS]
        nothing = [text_of(dig(block, "all_background", column), form) for column, form in TOPOLOGY_COLUMNS]
        lines.append({"name": name, "n": block.get("n_reference"), "cells": cells, "nothing": nothing})
    return lines


def structure_table(found: Results) -> list[dict[str, Any]]:
    """One line per structure, all numbers from `summary_statistics.json`."""
    if not found.evaluated:
        return []
    tolerances = dig(found.summary, "settings", "tolerances_mm") or {}
    lines = []
    for name in found.structures:
        dice, nsd, imputed, defined = (
            found.summary.get(f"{name}_{metric}") or {} for metric in ("dice", "nsd", "hd95_imputed", "hd95")
        )
        counts = dig(found.summary, "presence", name) or {}
        interval = dice.get("ci95")
        low, high = [100 * min(1.0, max(0.0, value)) for value in interval] if interval else (0.0, 0.0)
        lines.append(
            {
                "name": name,
                "dice": text_of(dice.get("mean")),
                "width": 100 * min(1.0, max(0.0, dice.get("mean") or 0.0)),
                "low": low,
                "high": high,
                "interval": starred(interval, dice.get("flags") or []),
                "median": text_of(dice.get("median")),
                "p05": text_of(dice.get("p05")),
                "nsd": text_of(nsd.get("mean")),
                "tolerance": _tolerance(tolerances.get(name)),
                "hd95_imputed": text_of(imputed.get("mean"), "{:.1f}"),
                "hd95": text_of(defined.get("mean"), "{:.1f}"),
                "hd95_n": text_of(defined.get("n"), "{:d}"),
                "counts": [
                    text_of(counts.get(f"n_{state}"), "{:d}")
                    for state in ("present", "missed", "hallucinated", "absent", "unannotated")
                ],
                "unevaluable": counts.get("n_unevaluable") or 0,
            }
        )
    return lines


def _tolerance(values: object) -> str:
    first = values[0] if isinstance(values, (list, tuple)) and values else values
    return f"{first:g} mm" if isinstance(first, (int, float)) else ""


def baseline_row(found: Results) -> dict[str, str]:
    """The predictor that says "background" everywhere, as the same table shows it."""
    if not found.evaluated:
        return {}
    values = dig(found.summary, "baselines", "all_background") or {}
    return {
        "dice": text_of(values.get("macro_dice")),
        "nsd": text_of(values.get("macro_nsd")),
        "hd95_imputed": text_of(values.get("macro_hd95_imputed"), "{:.1f}"),
        "missed": str(len(with_reference(found.rows))),
    }


def case_table(found: Results) -> dict[str, Any]:
    """Every test case, the lowest mean Dice first.

    Few structures: one column each; many: the lowest one by name.
    """
    means = case_means(found.rows)
    cases = sorted({str(row["case_id"]) for row in found.rows}, key=lambda case: (means.get(case, 2.0), case))
    wide = len(found.structures) > WIDE
    by_case: dict[str, list[dict[str, Any]]] = {}
    for row in found.rows:
        by_case.setdefault(str(row["case_id"]), []).append(row)
    lines = []
    for case in cases:
        mine = by_case[case]
        scored = with_reference(mine)
        distance, _ = mean_of(scored, "hd95_mm")
        cells = [
            _case_cell(next((row for row in mine if row["structure"] == name), None))
            for name in ([] if wide else found.structures)
        ]
        if wide:
            low = min(scored, key=dice_of, default=None)
            missed = [row for row in scored if row["state"] == "missed"]
            cells = [
                {
                    "text": DASH if low is None else f"{low['structure']} {dice_of(low):.3f}",
                    "state": "present",
                },
                {"text": str(len(missed)), "state": "missed" if missed else "present"},
            ]
        lines.append(
            {
                "case": case,
                "mean": text_of(means.get(case)),
                "hd95": text_of(distance, "{:.1f}"),
                "cells": cells,
            }
        )
    return {"columns": ["lowest structure", "missed"] if wide else found.structures, "lines": lines}


def _case_cell(row: Mapping[str, Any] | None) -> dict[str, str]:
    if row is None:
        return {"text": DASH, "state": "absent"}
    state = str(row["state"])
    if state == "present":
        return {"text": text_of(number(row, "dice")), "state": state}
    return {"text": "0.000 missed" if state == "missed" else STATE_WORDS.get(state, state), "state": state}


# ---- single results ---------------------------------------------------------------------------------------


def worst_table(found: Results, gallery: Sequence[CasePicture]) -> dict[str, Any]:
    """The lowest single results (case and structure) by Dice and, where it was measured, those of lowest
    confidence.

    Each line: case, structure, Dice, HD95, confidence, state and the anchor of a picture that shows it.
    """
    scored = with_reference(found.rows)
    by_dice = sorted(
        scored, key=lambda row: (dice_of(row), -(number(row, "hd95_imputed_mm") or 0.0), str(row["case_id"]))
    )
    sure = [row for row in scored if number(row, "confidence") is not None]
    by_confidence = sorted(sure, key=lambda row: (number(row, "confidence"), str(row["case_id"])))
    anchors = picture_anchors(gallery)
    return {
        "by_dice": [_worst_line(row, anchors) for row in by_dice[:WORST]],
        "by_confidence": [_worst_line(row, anchors) for row in by_confidence[:WORST]],
        "of": len(scored),
        "with_confidence": len(sure),
    }


def picture_anchors(gallery: Sequence[CasePicture]) -> dict[tuple[str, str | None], str]:
    """(case, structure or None for all of them) -> id of its picture on the page."""
    return {
        (picture.choice.case_id, picture.choice.structure): f"picture-{index}"
        for index, picture in enumerate(gallery, start=1)
    }


def _worst_line(row: Mapping[str, Any], anchors: Mapping[tuple[str, str | None], str]) -> dict[str, Any]:
    case, structure = str(row["case_id"]), str(row["structure"])
    return {
        "case": case,
        "structure": structure,
        "dice": f"{dice_of(row):.3f}",
        "hd95": text_of(number(row, "hd95_mm"), "{:.1f}"),
        "missed": row["state"] == "missed",
        "confidence": text_of(number(row, "confidence")),
        "anchor": anchors.get((case, structure)) or anchors.get((case, None)) or "",
    }


# ---- calibration ------------------------------------------------------------------------------------------


def calibration_table(found: Results) -> list[dict[str, str]]:
    """One line per structure whose probabilities were kept; the whole volume is never shown without the
    boundary band.
    """
    lines = []
    for name, regions in (found.summary.get("calibration") or {}).items():
        whole, band = (regions.get(region) or {} for region in ("whole", "band"))
        if band.get("ece") is None:
            continue
        lines.append(
            {
                "name": str(name),
                "ece_band": text_of(band["ece"]),
                "sure": text_of(_too_sure(band.get("bins") or []), "{:+.3f}"),
                "brier_band": text_of(band.get("brier")),
                "nll_band": text_of(band.get("nll")),
                "ece_whole": text_of(whole.get("ece")),
            }
        )
    return lines


def _too_sure(bins: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean stated probability minus observed frequency over all voxels of the bins."""
    filled = [
        (one["n"], one["p"], one["y"])
        for one in bins
        if one.get("n") and one.get("p") is not None and one.get("y") is not None
    ]
    total = sum(n for n, _, _ in filled)
    return sum(n * (p - y) for n, p, y in filled) / total if total else None


def failure_detection(found: Results) -> dict[str, str]:
    """AURC and Spearman as words; empty when neither was measured."""
    block = found.summary.get("failure_detection") or {}
    if block.get("aurc") is None and block.get("spearman") is None:
        return {}
    return {"aurc": text_of(block.get("aurc")), "spearman": text_of(block.get("spearman"), "{:.2f}")}


# ---- macro ------------------------------------------------------------------------------------------------


def macro_ci(found: Results) -> str:
    """95 % CI of the mean over structures, by resampling patients; empty where patients with several scans
    would change the mean.
    """
    rows = with_reference(found.rows)
    dice = {(patient_of(row), str(row["structure"])): dice_of(row) for row in rows}
    if not rows or len(dice) < len(rows):
        return ""
    patients, names = (sorted(set(part)) for part in zip(*dice))
    matrix = np.array([[dice.get((patient, name), np.nan) for name in names] for patient in patients])
    stated = dig(found.summary, "headline", "macro_dice")
    if stated is None or abs(macro(matrix) - stated) > SAME:
        return ""
    return starred(*macro_interval(matrix))
