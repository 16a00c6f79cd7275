"""From rows (one per case and structure, see `ctseg.scoring.metrics.score_case`) to the numbers people read.

The headline of a structure is the mean over the cases whose reference holds it, `present` and `missed`, a
missed one counting 0. A case without the structure never enters a mean of overlap: it is counted. Structures
without any reference have no headline. Rows additionally carry case_id and patient_id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctseg.scoring import statistics
from ctseg.scoring.metrics import ABSENT, HALLUCINATED, MISSED, PRESENT, STATES, Row, grouped, has_reference
from ctseg.scoring.paired import SMALLEST_TEST_N, median_interval, wilcoxon_p

Summary = dict[str, Any]
ALL_STATES = (PRESENT, MISSED, HALLUCINATED)
# Key in summary_statistics.json and detailed_results.json -> column of a row.
METRICS = {
    "dice": "dice",
    "iou": "iou",
    "precision": "precision",
    "sensitivity": "recall",
    "specificity": "specificity",
    "f1": "dice",
    "hd": "hd_mm",
    "hd_imputed": "hd_imputed_mm",
    "hd95": "hd95_mm",
    "hd95_imputed": "hd95_imputed_mm",
    "assd": "assd_mm",
    "assd_imputed": "assd_imputed_mm",
    "masd": "masd_mm",
    "nsd": "nsd",
    "volume_error": "volume_error",
}
# Metrics of the baseline row and of the "all" table.
BASELINE_METRICS = ("dice", "iou", "nsd", "sensitivity", "precision", "hd95", "hd95_imputed", "volume_error")
ALL_METRICS = ("dice", "iou", "nsd", "hd_imputed", "hd95_imputed")
CASE_MEANS = ("dice", "iou", "hd", "hd95", "hd95_imputed")
WORST = 5
WORST_COLUMNS = ("case_id", "dice", "state", "hd95_mm")
# Top-level keys of the summary, which a structure therefore cannot be called ("mean" makes mean_dice).
RESERVED_NAMES = frozenset(
    (
        "schema_version",
        "settings",
        "presence",
        "all_cases",
        "baselines",
        "headline",
        "worst_cases",
        "topology",
        "calibration",
        "failure_detection",
        "comparisons",
        "warnings",
        "mean",
    )
)


def summarise(rows: Sequence[Row], baseline_rows: Sequence[Row], settings: Mapping[str, Any]) -> Summary:
    """The content of `summary_statistics.json`.

    baseline_rows: rows of the predictor that leaves every voxel background, made by the same code from the
    same references. settings goes into the file as it is.
    """
    by_name = grouped(rows, "structure")
    summary: Summary = {"schema_version": 1, "settings": dict(settings)}
    for name, own in by_name.items():
        headline = [row for row in own if has_reference(row)]
        patients = [row["patient_id"] for row in headline]
        for metric, column in METRICS.items():
            summary[f"{name}_{metric}"] = statistics.describe([row[column] for row in headline], patients)
        for key in own[0]["nsd_by_tolerance"]:
            values = [row["nsd_by_tolerance"][key] for row in headline]
            summary[f"{name}_{key}"] = statistics.describe(values, patients)
    cases = [case for case in case_records(rows) if case["n_reference"]]
    for metric in CASE_MEANS:
        summary[f"mean_{metric}"] = statistics.describe(
            [case[f"mean_{metric}"] for case in cases], [case["patient_id"] for case in cases]
        )
    summary["presence"] = {name: presence(own) for name, own in by_name.items()}
    summary["all_cases"] = {
        f"{name}_{metric}": _mean_of_all(own, metric)
        for name, own in by_name.items()
        for metric in ALL_METRICS
    }
    summary["headline"] = headline_of(rows)
    summary["baselines"] = {"all_background": _baseline(baseline_rows, summary["headline"])}
    summary["worst_cases"] = {name: lowest(own, "dice", WORST_COLUMNS) for name, own in by_name.items()}
    summary |= {
        "topology": {},
        "airway": {},
        "calibration": {},
        "failure_detection": {"aurc": None, "spearman": None},
        "comparisons": [],
    }
    summary["warnings"] = _warnings(by_name, summary)
    return summary


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the defined values; None when there is none."""
    defined = [value for value in values if value is not None]
    return float(sum(defined) / len(defined)) if defined else None


def headline_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over the structures' own headlines, each structure counting once, and who takes part."""
    scored = {name: list(filter(has_reference, own)) for name, own in grouped(rows, "structure").items()}
    macro = {
        f"macro_{metric}": mean([mean([row[METRICS[metric]] for row in own]) for own in scored.values()])
        for metric in ("dice", "iou", "nsd", "hd95_imputed")
    }
    return {
        **macro,
        "structures": [name for name, own in scored.items() if own],
        "structures_without_reference": [name for name, own in scored.items() if not own],
    }


def presence(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts of one structure's states, presence sensitivity and specificity, mean false volume in mL."""
    n = {state: sum(row["state"] == state for row in rows) for state in STATES}
    with_it, without_it = n[PRESENT] + n[MISSED], n[ABSENT] + n[HALLUCINATED]
    return {
        **{f"n_{state}": count for state, count in n.items()},
        "sensitivity": n[PRESENT] / with_it if with_it else None,
        "specificity": n[ABSENT] / without_it if without_it else None,
        "false_volume_ml_mean": mean([row["prediction_ml"] for row in rows if row["state"] == HALLUCINATED]),
    }


def _mean_of_all(rows: Sequence[Row], metric: str) -> dict[str, Any]:
    """Mean over present, missed and hallucinated cases; a hallucination overlaps 0 and is the image diagonal
    off."""
    values = [
        row[METRICS[metric]]
        if row["state"] != HALLUCINATED
        else row["image_diagonal_mm"]
        if metric.endswith("_imputed")
        else 0.0
        for row in rows
        if row["state"] in ALL_STATES
    ]
    return {"mean": mean(values), "n": len(values)}


def _baseline(rows: Sequence[Row], headline: Mapping[str, Any]) -> dict[str, Any]:
    """What predicting nothing scores, and whether the method is better."""
    result: dict[str, Any] = {}
    for name, own in grouped(rows, "structure").items():
        scored, found = list(filter(has_reference, own)), presence(own)
        for metric in BASELINE_METRICS:
            result[f"{name}_{metric}"] = mean([row[METRICS[metric]] for row in scored])
        result |= {f"{name}_presence_{key}": found[key] for key in ("sensitivity", "specificity")}
    nothing = headline_of(rows)
    result |= {key: value for key, value in nothing.items() if key.startswith("macro_")}
    mine = headline["macro_dice"]
    return {**result, "better_than_baseline": None if mine is None else mine > nothing["macro_dice"]}


def lowest(rows: Sequence[Row], key: str, columns: Sequence[str], count: int = WORST) -> list[dict[str, Any]]:
    """Some columns of the `count` rows with a reference that are lowest in `key`, where that is defined.

    Ties by the larger distance, then by case id and structure.
    """
    ranked = sorted(
        (row for row in rows if has_reference(row) and row.get(key) is not None),
        key=lambda row: (row[key], -(row.get("hd95_imputed_mm") or 0.0), row["case_id"], row["structure"]),
    )
    return [{column: row.get(column) for column in columns} for row in ranked[:count]]


def case_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The content of `detailed_results.json`: one object per case, organ by organ.

    The means run over the organs that the case's reference holds; an undefined distance takes no part in
    mean_hd and mean_hd95, but counts as the image diagonal in mean_hd95_imputed.
    """
    records = []
    for case_id, own in grouped(rows, "case_id").items():
        record: dict[str, Any] = {"patient_id": own[0]["patient_id"], "case_id": case_id}
        for row in own:
            name = row["structure"]
            record |= {f"{name}_{metric}": row[column] for metric, column in METRICS.items()}
            record |= {f"{name}_{key}": row[key] for key in ("state", "reference_ml", "prediction_ml")}
        scored = [row for row in own if has_reference(row)]
        record["n_reference"] = len(scored)
        record |= {f"mean_{metric}": mean([row[METRICS[metric]] for row in scored]) for metric in CASE_MEANS}
        records.append(record)
    return records


def _warnings(by_name: Mapping[str, Sequence[Row]], summary: Summary) -> list[str]:
    found = []
    if summary["baselines"]["all_background"]["better_than_baseline"] is False:
        found.append(
            "NOT BETTER THAN PREDICTING NOTHING: "
            "the headline is not above that of the all-background predictor"
        )
    without = summary["headline"]["structures_without_reference"]
    if without:
        found.append(
            "no case holds it in the reference, so it has no score and is left out of the headline: "
            + ", ".join(without)
        )
    fine: dict[tuple[float, float], list[str]] = {}
    for name, rows in by_name.items():
        coarsest = max(max(row[f"spacing_{axis}_mm"] for axis in "dhw") for row in rows)
        for tau in (rows[0]["nsd_tau_mm"], rows[0]["nsd2_tau_mm"]):
            if tau < coarsest:
                fine.setdefault((tau, coarsest), []).append(name)
    found += [
        f"NSD at {tau:g} mm is finer than the largest voxel spacing ({coarsest:g} mm) "
        "and therefore quantised: " + ", ".join(names)
        for (tau, coarsest), names in sorted(fine.items())
    ]
    if any("optimistic_ci" in summary[f"{name}_dice"]["flags"] for name in by_name):
        found.append(
            "confidence intervals marked * come from fewer than 50 patients "
            "and are narrower than they should be"
        )
    return found


def pass_gain(rows_by_pass: Sequence[Sequence[Row]]) -> str | None:
    """Last pass minus first in Dice over patients, in words: the median difference with its 95 % interval and
    the two-sided p, over present and missed structures averaged per patient. None when no test case shows a
    structure; no p below 6 patients, where no outcome could be significant."""
    first, last = (
        np.array(
            [
                np.mean([row["dice"] for row in own])
                for _, own in sorted(grouped(filter(has_reference, rows), "patient_id").items())
            ]
        )
        for rows in (rows_by_pass[0], rows_by_pass[-1])
    )
    if not len(first):
        return None
    gain = last - first
    ci95, _ = median_interval(gain)
    interval = f", 95 % interval {ci95[0]:+.4f} to {ci95[1]:+.4f}" if ci95 else ""
    enough = len(gain) >= SMALLEST_TEST_N
    evidence = f"p = {wilcoxon_p(gain):.2g}" if enough else "too few patients for a test"
    return (
        f"Passes: mean Dice {first.mean():.3f} after the first, {last.mean():.3f} after the last; "
        f"median difference {np.median(gain):+.4f} (n = {len(gain)} patients{interval}, {evidence})."
    )
