"""The files of an evaluation, from rows and settings: JSON, CSV and the report for people.

detailed_results.json    one object per case, keys {organ}_{metric} and mean_{metric}
summary_statistics.json  everything aggregated (`ctseg.scoring.summary.summarise`)
summary.json             the format of nnU-Net, whose readers need floats: the only file with bare NaN
per_case.csv             one line per case and structure, the columns of COLUMNS; an empty cell is undefined
                         or was not measured
topology.csv             all that was measured of tubes and trees, more than per_case.csv has columns for: one
                         line per case and structure its reference holds, the columns of TOPOLOGY_COLUMNS
per_pass.csv             the same scores after each pass, only for a network of several passes
evaluation_report.txt    the same for reading (`report_text`)

The columns of calibration (ece_whole, ece_band) and confidence are empty where rows do not hold them: two
folders of masks have no probabilities.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ctseg.artifacts import Workspace, read_record, write_json, write_text
from ctseg.evaluation.report_text import report_text
from ctseg.evaluation.scored import Scored
from ctseg.scoring import calibration, failure
from ctseg.scoring import summary as scores
from ctseg.scoring.metrics import UNANNOTATED, UNEVALUABLE, Row, grouped
from ctseg.scoring.shape import tubular
from ctseg.tables import write_csv

COLUMNS = (
    "case_id",
    "patient_id",
    "structure",
    "label",
    "state",
    "boundary_mode",
    "tp",
    "fp",
    "fn",
    "tn",
    "dice",
    "iou",
    "precision",
    "recall",
    "specificity",
    "volume_error",
    "reference_ml",
    "prediction_ml",
    "hd_mm",
    "hd95_mm",
    "hd_imputed_mm",
    "hd95_imputed_mm",
    "assd_mm",
    "assd_imputed_mm",
    "masd_mm",
    "nsd",
    "nsd_tau_mm",
    "nsd2",
    "nsd2_tau_mm",
    "b0_reference",
    "b0_prediction",
    "b0_error",
    "b1_error",
    "b2_error",
    "betti_error",
    "extra_components",
    "extra_components_ml",
    "cldice",
    "td_full",
    "td_lcc",
    "bd_full",
    "bd_lcc",
    "precision_lcc",
    "leakage_full",
    "leakage_lcc",
    "amr_full",
    "amr_lcc",
    "tree_length_mm",
    "td_mm_full",
    "td_mm_lcc",
    "breaks",
    "ece_whole",
    "ece_band",
    "confidence",
    "spacing_d_mm",
    "spacing_h_mm",
    "spacing_w_mm",
    "prediction_file",
    "reference_file",
)
# of all tables of scores: what is a text, not a number
TEXT_COLUMNS = frozenset(
    (
        "case_id",
        "patient_id",
        "structure",
        "label",
        "state",
        "boundary_mode",
        "prediction_file",
        "reference_file",
        "td_by_generation_full",
    )
)
TOPOLOGY_COLUMNS = (
    "case_id",
    "patient_id",
    "structure",
    "state",
    *tubular.SHAPE_COLUMNS,
    *tubular.TREE_COLUMNS,
    tubular.GENERATIONS,
)
PLOTS = {  # and whether every evaluation of a model has them
    "dice_boxplots.png": True,
    "dice_vs_hausdorff.png": True,
    "metrics_heatmap.png": True,
    "per_pass.png": False,
    "reliability.png": False,
    "confidence.png": False,
}
RESULTS = (  # every file that the scores of an evaluation may become
    "detailed_results.json",
    "summary_statistics.json",
    "summary.json",
    "per_case.csv",
    "topology.csv",
    "per_pass.csv",
    "evaluation_report.txt",
    *PLOTS,
)


def remove_results(folder: Path) -> None:
    """Remove the scores and plots of an earlier evaluation, which would be taken for those of a new one."""
    for name in RESULTS:
        (folder / name).unlink(missing_ok=True)


class Trust(NamedTuple):
    """What is known of the probabilities behind a prediction. sums: structure -> region -> sums of its
    calibration; members: how many predictions each is the mean of; reason: why there is no confidence, None
    where there is."""

    sums: Mapping[str, Mapping[str, calibration.Sums]]
    members: int
    reason: str | None


ONLY_MASKS = Trust({}, 1, "only masks were given, no probabilities")


def join_trust(workspace: Workspace, record: Mapping[str, Any], rows: Sequence[Row]) -> Trust:
    """Put confidence and calibration errors of the prediction run into the rows; return what belongs to all
    cases.

    A calibration.json of other weights or data than the run's is left out, as is what an earlier version did
    not record.
    """
    content = read_record(workspace.calibration) if workspace.calibration.exists() else {}
    if any(content.get(key) != record.get(key) for key in ("checkpoint_sha256", "manifest_hash")):
        content = {}
    confidence = {case["case_id"]: case.get("confidence", {}) for case in record["cases"]}
    for row in rows:
        if row["state"] in (UNANNOTATED, UNEVALUABLE):
            continue  # its confidence stays in evaluation_run.json: nothing here can be compared with it
        row |= content.get("cases", {}).get(row["case_id"], {}).get(row["structure"], {})
        row["confidence"] = confidence[row["case_id"]].get(row["structure"])
    sums = {
        name: {region: calibration.Sums.from_record(own) for region, own in regions.items()}
        for name, regions in content.get("structures", {}).items()
    }
    members = record.get("members", 1)
    reason = record.get("why_no_confidence", "the prediction run did not record it")
    return Trust(sums, members, None if members > 1 else reason)


def write_results(
    folder: Path | None,
    scored: Scored,
    *,
    synthetic: bool,
    split_hash: str | None = None,
    trust: Trust = ONLY_MASKS,
) -> str:
    """Write the text files in place of all earlier results and return the report; without a folder only the
    report.

    Its rows are ordered by case, with "topology" where that was measured, and "ece_whole", "ece_band" and
    "confidence" where those are known.
    """
    rows = scored.rows
    settings = scored.settings(split_hash=split_hash, synthetic=synthetic)
    topology = tubular.summarise(rows, scored.nothing)
    summary = scores.summarise(rows, scored.nothing, settings) | {
        "topology": topology,
        "airway": tubular.airway_block(topology),
        "calibration": calibration.describe(trust.sums),
        "failure_detection": failure.summarise(rows, trust.members, trust.reason),
    }
    summary["warnings"] = [*scored.warnings, *summary["warnings"]]
    report = report_text(rows, summary)
    if folder is None:
        return report
    remove_results(folder)
    write_json(folder / "detailed_results.json", scores.case_records(rows))
    write_json(folder / "summary_statistics.json", summary)
    write_text(folder / "summary.json", json.dumps(nnunet_summary(rows), indent=4, sort_keys=True) + "\n")
    write_csv(folder / "per_case.csv", [row | (row.get("topology") or {}) for row in rows], COLUMNS)
    if topology:
        write_csv(folder / "topology.csv", topology_lines(rows), TOPOLOGY_COLUMNS)
    write_text(folder / "evaluation_report.txt", report)
    return report


PASS_COLUMNS = (
    "case_id",
    "patient_id",
    "structure",
    "state",
    "pass",
    "dice",
    "hd95_mm",
    "assd_mm",
    "fp_volume_ml",
)


def write_passes(folder: Path, rows_by_pass: Sequence[Sequence[Row]]) -> None:
    """Write per_pass.csv, one line per case, structure and pass: scores, and what was predicted outside the
    structure in mL."""
    lines = []
    for number, rows in enumerate(rows_by_pass, start=1):
        for row in rows:
            voxel_ml = row["spacing_d_mm"] * row["spacing_h_mm"] * row["spacing_w_mm"] / 1000
            outside = None if row["fp"] is None else row["fp"] * voxel_ml
            lines.append(row | {"pass": number, "fp_volume_ml": outside})
    lines.sort(key=lambda line: (line["case_id"], line["structure"], line["pass"]))
    write_csv(folder / "per_pass.csv", lines, PASS_COLUMNS)


def topology_lines(rows: Sequence[Row]) -> list[Row]:
    """The rows of topology.csv; tree length by generation is a list in one cell, parted by blanks."""
    lines = [row | row["topology"] for row in rows if row.get("topology")]
    for line in lines:
        line[tubular.GENERATIONS] = " ".join(map(str, line.get(tubular.GENERATIONS, ())))
    return lines


# ---- nnU-Net ----------------------------------------------------------------------------------------------

_NNUNET_KEYS = ("Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref")


def nnunet_summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The content of `summary.json`, by nnU-Net's own rules: a hallucination counts 0, an absent case is NaN
    and left out of a mean, a label that never occurs makes foreground_mean NaN. These means are not the
    headline."""
    means = {}
    for label, own in grouped(rows, "label").items():
        measured = [nnunet_metrics(row) for row in own]
        means[label] = {key: _nan_mean([values[key] for values in measured]) for key in _NNUNET_KEYS}
    return {
        "foreground_mean": {
            key: sum(mean[key] for mean in means.values()) / len(means) for key in _NNUNET_KEYS
        },
        "mean": means,
        "metric_per_case": [
            {
                "metrics": {row["label"]: nnunet_metrics(row) for row in own},
                "prediction_file": own[0]["prediction_file"],
                "reference_file": own[0]["reference_file"],
                "extra": {row["label"]: {"name": row["structure"], "state": row["state"]} for row in own},
            }
            for own in grouped(rows, "case_id").values()
        ],
    }


def nnunet_metrics(row: Row) -> dict[str, float]:
    """One structure of one case in nnU-Net's words; NaN where it was not scored."""
    if row["state"] in (UNANNOTATED, UNEVALUABLE):
        return dict.fromkeys(_NNUNET_KEYS, math.nan)
    tp, fp, fn = row["tp"], row["fp"], row["fn"]
    found = tp + fp + fn
    return {
        "Dice": 2 * tp / (found + tp) if found else math.nan,
        "IoU": tp / found if found else math.nan,
        "TP": tp,
        "FP": fp,
        "FN": fn,
        "TN": row["tn"],
        "n_pred": tp + fp,
        "n_ref": tp + fn,
    }


def _nan_mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
