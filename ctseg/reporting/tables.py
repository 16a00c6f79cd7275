"""What the tables of the report are filled with: every number comes from `summary_statistics.json` or
`per_case.csv`. The templates write them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ctseg.reporting.page import interval_text
from ctseg.reporting.pictures.slices import case_means
from ctseg.reporting.results import Results, dig
from ctseg.scoring.metrics import MISSED, Row, grouped, has_reference
from ctseg.scoring.paired import macro, macro_interval
from ctseg.scoring.summary import lowest, mean

WIDE = 8  # more structures than this: the table of cases names the lowest one instead of all
WORST = 12
WORST_COLUMNS = ("case_id", "structure", "state", "dice", "hd95_mm", "confidence")
SAME = 1e-9
STATE_WORDS = {
    "missed": "0.000 missed",
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


def structure_table(found: Results) -> list[dict[str, Any]]:
    """One line per structure: the statistics of four metrics, the counts of its states, and the tolerance of
    NSD in mm.
    """
    lines = []
    for name in found.structures if found.evaluated else ():
        line = {
            metric: found.summary[f"{name}_{metric}"] for metric in ("dice", "nsd", "hd95_imputed", "hd95")
        }
        tolerance = found.summary["settings"]["tolerances_mm"][name][0]
        lines.append({"name": name, **line, "n": found.summary["presence"][name], "tolerance": tolerance})
    return lines


def case_table(found: Results) -> dict[str, Any]:
    """Every test case, the lowest mean Dice first.

    Few structures: one column each (the row of the case); many: the row of the lowest one and how many were
    missed.
    """
    means = case_means(found.rows)
    wide = len(found.structures) > WIDE
    lines = []
    for case, own in grouped(found.rows, "case_id").items():
        by_name = {row["structure"]: row for row in own}
        scored = list(filter(has_reference, own))
        lines.append(
            {
                "case": case,
                "mean": means.get(case),
                "hd95": mean([row["hd95_mm"] for row in scored]),
                "rows": [] if wide else [by_name.get(name) for name in found.structures],
                "lowest": min(scored, key=lambda row: row["dice"], default=None),
                "missed": sum(row["state"] == MISSED for row in scored),
            }
        )
    lines.sort(key=lambda line: (means.get(line["case"], 2.0), line["case"]))
    columns = ["lowest structure", "missed"] if wide else found.structures
    return {"columns": columns, "wide": wide, "lines": lines}


def worst_table(found: Results) -> dict[str, list[dict[str, Any]]]:
    """The lowest single results (case and structure) by Dice and, where it was measured, those of lowest
    confidence.
    """
    return {key: lowest(found.rows, key, WORST_COLUMNS, WORST) for key in ("dice", "confidence")}


def calibration_table(found: Results) -> list[dict[str, Any]]:
    """One line per structure whose probabilities were kept; the whole volume is never shown without the
    boundary band.
    """
    return [
        {"name": name, "sure": too_sure(regions["band"]["bins"]), **regions}
        for name, regions in found.summary.get("calibration", {}).items()
        if regions["band"]["ece"] is not None
    ]


def too_sure(bins: list[Row]) -> float | None:
    """Mean stated probability minus observed frequency over all voxels of the bins."""
    filled = [one for one in bins if one["n"]]
    if not filled:
        return None
    return float(np.average([one["p"] - one["y"] for one in filled], weights=[one["n"] for one in filled]))


def macro_ci(found: Results) -> str:
    """95 % CI of the mean over structures, by resampling patients; empty where patients with several scans
    would change the mean.
    """
    keys = [(row["patient_id"], row["structure"]) for row in found.scored]
    if not keys or len(set(keys)) < len(keys):
        return ""
    (patients, in_patient), (names, in_name) = (np.unique(part, return_inverse=True) for part in zip(*keys))
    matrix = np.full((len(patients), len(names)), np.nan)
    matrix[in_patient, in_name] = [row["dice"] for row in found.scored]
    stated = dig(found.summary, "headline", "macro_dice")
    if stated is None or abs(macro(matrix) - stated) > SAME:
        return ""
    return interval_text(*macro_interval(matrix))
