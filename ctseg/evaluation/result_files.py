"""The files of an evaluation, from rows and settings: JSON, CSV and the report for people.

detailed_results.json    one object per case, keys {organ}_{metric} and mean_{metric}
summary_statistics.json  everything aggregated (`ctseg.scoring.summary.summarise`)
summary.json             the format of nnU-Net, whose readers need floats: the only file with the bare token
NaN per_case.csv             one line per case and structure, the columns of COLUMNS; an empty cell is
undefined or
                         was not measured
topology.csv             all that was measured of tubes and trees, more than per_case.csv has columns for: one
line
                         per case and structure its reference holds, the columns of TOPOLOGY_COLUMNS
per_pass.csv             the same scores after each pass, only for a network of several passes
evaluation_report.txt    the same for reading

The columns of calibration (ece_whole, ece_band) and confidence are empty where rows do not hold them: two
folders of masks have no probabilities.
"""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.artifacts import write_json, write_text
from ctseg.scoring import calibration, failure
from ctseg.scoring import summary as scores
from ctseg.scoring.metrics import UNANNOTATED, UNEVALUABLE, Row
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
TOPOLOGY_COLUMNS = (
    "case_id",
    "patient_id",
    "structure",
    "state",
    *tubular.SHAPE_COLUMNS,
    *tubular.TREE_COLUMNS,
    tubular.GENERATIONS,
)
RESULTS = (  # every file that an evaluation may write into its folder
    "detailed_results.json",
    "summary_statistics.json",
    "summary.json",
    "per_case.csv",
    "topology.csv",
    "evaluation_report.txt",
    "dice_boxplots.png",
    "dice_vs_hausdorff.png",
    "metrics_heatmap.png",
    "reliability.png",
    "confidence.png",
)
NOT_BETTER = "NOT BETTER THAN PREDICTING NOTHING"


@dataclasses.dataclass(frozen=True)
class Trust:
    """What is known of the probabilities behind a prediction. sums: structure -> region -> sums of its
    calibration; members: how many predictions each is the mean of; reason: why there is no confidence, None
    where there is."""

    sums: Mapping[str, Mapping[str, calibration.Sums]] = dataclasses.field(default_factory=dict)
    members: int = 1
    reason: str | None = "only masks were given, no probabilities"


def write_results(
    folder: Path | None,
    rows: Sequence[Row],
    baseline_rows: Sequence[Row],
    settings: Mapping[str, Any],
    warnings: Sequence[str] = (),
    trust: Trust | None = None,
) -> str:
    """Write the text files and return the report; without a folder only the report.

    rows: of `score_case`, completed by case_id, patient_id, prediction_file and reference_file, ordered by
    case; with "topology" where that was measured, and "ece_whole", "ece_band" and "confidence" where those
    are known. settings: what stands in summary_statistics.json; "synthetic" and "tolerances_mm" are read from
    it. warnings: said in the report and the summary beside those that follow from the rows.
    """
    summary = scores.summarise(rows, baseline_rows, settings)
    summary["topology"] = tubular.summarise(rows, baseline_rows)
    summary["airway"] = tubular.airway_block(summary["topology"])
    trust = trust or Trust()
    summary["calibration"] = calibration.describe(trust.sums)
    summary["failure_detection"] = failure.summarise(rows, trust.members, trust.reason)
    summary["warnings"] = [*warnings, *summary["warnings"]]
    report = report_text(rows, summary)
    if folder is None:
        return report
    write_json(folder / "detailed_results.json", scores.case_records(rows))
    write_json(folder / "summary_statistics.json", summary)
    write_text(folder / "summary.json", json.dumps(nnunet_summary(rows), indent=4, sort_keys=True) + "\n")
    measured = [row | (row.get("topology") or {}) for row in rows]
    write_csv(folder / "per_case.csv", measured, COLUMNS)
    if summary["topology"]:
        write_csv(folder / "topology.csv", topology_lines(rows), TOPOLOGY_COLUMNS)
    else:
        (folder / "topology.csv").unlink(missing_ok=True)  # of an earlier evaluation
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
    """Write per_pass.csv, one line per case, structure and pass."""
    write_csv(folder / "per_pass.csv", scores.pass_lines(rows_by_pass), PASS_COLUMNS)


def topology_lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows of topology.csv; tree length by generation is a list in one cell, parted by blanks."""
    lines = [row | row["topology"] for row in rows if row.get("topology")]
    return [
        line | {tubular.GENERATIONS: " ".join(str(share) for share in line.get(tubular.GENERATIONS, []))}
        for line in lines
    ]


# ---- nnU-Net ----------------------------------------------------------------------------------------------

_NNUNET_KEYS = ("Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref")


def nnunet_summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The content of `summary.json`, by nnU-Net's own rules: a hallucination counts 0, an absent case is NaN
    and left out of a mean, a label that never occurs makes foreground_mean NaN. These means are not the
    headline."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case_id"], []).append(row)
    per_case = [
        {
            "metrics": {row["label"]: _nnunet_metrics(row) for row in own},
            "prediction_file": own[0]["prediction_file"],
            "reference_file": own[0]["reference_file"],
            "extra": {row["label"]: {"name": row["structure"], "state": row["state"]} for row in own},
        }
        for own in cases.values()
    ]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    means = {
        label: {
            key: _nan_mean([case["metrics"][label][key] for case in per_case if label in case["metrics"]])
            for key in _NNUNET_KEYS
        }
        for label in labels
    }
    return {
        "foreground_mean": {key: _plain_mean([mean[key] for mean in means.values()]) for key in _NNUNET_KEYS},
        "mean": means,
        "metric_per_case": per_case,
    }


def _nnunet_metrics(row: Row) -> dict[str, float]:
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


def _plain_mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _nan_mean(values: Sequence[float]) -> float:
    return _plain_mean([value for value in values if not math.isnan(value)])


# ---- report -----------------------------------------------------------------------------------------------


def report_text(rows: Sequence[Row], summary: scores.Summary) -> str:
    """The content of `evaluation_report.txt`."""
    settings = summary["settings"]
    mark = " [synthetic data]" if settings.get("synthetic") else ""
    names = list(summary["presence"])
    parts = [
        _opening(rows, settings, names, mark),
        _counts_table(summary, names, mark),
        _headline_table(summary, names, mark),
        _all_table(summary, names, mark),
        _distance_table(summary, names, mark),
        _worst_table(summary, names, mark),
        *_topology_tables(summary["topology"], mark),
        _calibration_table(summary["calibration"], mark),
        _failure_table(summary["failure_detection"], mark),
        _titled("Warnings", mark, [f"- {text}" for text in summary["warnings"]] or ["none"]),
        "The means in summary.json follow nnU-Net's rules (hallucinated structures count 0, absent ones are\n"
        "dropped) and are not the headline above. Research tool, not a medical device.",
    ]
    return "\n\n".join(parts) + "\n"


def _opening(rows: Sequence[Row], settings: Mapping[str, Any], names: Sequence[str], mark: str) -> str:
    cases = len({row["case_id"] for row in rows})
    taus = "; ".join(
        f"{name} {', '.join(f'{t:g}' for t in settings['tolerances_mm'][name])}" for name in names
    )
    return (
        f"Evaluation{mark}: boundary mode {settings['boundary_mode']}, {cases} cases of "
        f"{settings['n_patients']} patients\n"
        f"Distances in mm on each scan's own grid. HD95 is the larger of the two directed percentiles.\n"
        + "\n".join(
            textwrap.wrap(
                f"NSD tolerances in mm (the first is the main one): {taus}",
                100,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    )


def _counts_table(summary: scores.Summary, names: Sequence[str], mark: str) -> str:
    shown = {
        "present": "present",
        "missed": "missed",
        "hallucinated": "halluc.",
        "absent": "absent",
        "unannotated": "unannot.",
        "unevaluable": "uneval.",
    }
    lines = []
    for name in names:
        found = summary["presence"][name]
        lines.append(
            [
                name,
                *[str(found[f"n_{key}"]) for key in shown],
                _number(found["sensitivity"]),
                _number(found["specificity"]),
                _number(found["false_volume_ml_mean"], 1),
            ]
        )
    table = _table(
        "Counts of cases", mark, ("structure", *shown.values(), "sens.", "spec.", "false mL"), lines
    )
    return (
        f"{table}\nhalluc.: predicted, the reference holds none (false mL: mean volume). sens., "
        "spec.: of presence."
    )


def _headline_table(summary: scores.Summary, names: Sequence[str], mark: str) -> str:
    """Present-only means, the macro line and the row of the predictor that predicts nothing; below it overlap
    and volume."""
    nothing, head, lines = summary["baselines"]["all_background"], summary["headline"], []
    for name in names:
        dice, found = summary[f"{name}_dice"], summary["presence"][name]
        lines.append(
            [
                name,
                str(dice["n"]),
                _number(dice["mean"]),
                _surface(summary, name, summary[f"{name}_nsd"]["mean"]),
                _number(summary[f"{name}_hd95_imputed"]["mean"], 2),
                _interval(dice),
                _number(dice["median"]),
                _number(dice["p05"]),
                str(found["n_missed"]),
                str(found["n_hallucinated"]),
                "!" if dice["mean"] is not None and not dice["mean"] > nothing[f"{name}_dice"] else "",
            ]
        )
    flagged = any(line[-1] for line in lines)
    for title, source, words in (
        ("MACRO MEAN", head, NOT_BETTER if nothing["better_than_baseline"] is False else ""),
        ("all background", nothing, "what predicting nothing scores"),
    ):
        lines.append(
            [
                title,
                str(len(head["structures"])),
                _number(source["macro_dice"]),
                _number(source["macro_nsd"]),
                _number(source["macro_hd95_imputed"], 2),
                words,
            ]
        )
    table = _table(
        "Headline: mean over the cases whose reference holds the structure; a missed one counts 0",
        mark,
        (
            "structure",
            "n",
            "Dice",
            "NSD",
            "HD95 imp.",
            "95 % CI of Dice",
            "median",
            "p05",
            "miss.",
            "hall.",
            "",
        ),
        lines,
    )
    note = (
        "A missed structure is charged the image diagonal in HD95 imp. No reference, no score.\n"
        "NSD is followed by its tolerance in mm; its macro mean is over the main tolerances.\n"
        "median, p05 (5th percentile): of Dice. miss., hall.: missed and hallucinated cases.\n"
        "* at an interval: fewer than 50 patients, so it is optimistic."
    )
    return "\n".join(
        [table, note, *([f"!: {NOT_BETTER}"] if flagged else []), "", *_overlap_lines(summary, names)]
    )


def _overlap_lines(summary: scores.Summary, names: Sequence[str]) -> list[str]:
    """Overlap and volume over the same cases, and what predicting nothing scores."""
    nothing, lines = summary["baselines"]["all_background"], []
    metrics = ("iou", "precision", "sensitivity", "volume_error")
    for name in names:
        lines.append(
            [
                name,
                str(summary[f"{name}_dice"]["n"]),
                *[_number(summary[f"{name}_{metric}"]["mean"]) for metric in metrics],
            ]
        )
    for title, source in (("macro mean", summary["headline"]), ("nothing predicted", nothing)):
        lines.append([title, str(len(summary["headline"]["structures"])), _number(source["macro_iou"])])
    lines += [
        [
            f"  {name}",
            str(summary[f"{name}_dice"]["n"]),
            *[_number(nothing[f"{name}_{metric}"]) for metric in metrics],
        ]
        for name in names
    ]
    return _columns(("the same cases", "n", "IoU", "precision", "recall", "vol. error"), lines)


def _all_table(summary: scores.Summary, names: Sequence[str], mark: str) -> str:
    """With hallucinated cases, which overlap 0; absent cases never enter."""
    lines = []
    for name in names:
        own = {metric: summary["all_cases"][f"{name}_{metric}"] for metric in scores.ALL_METRICS}
        nothing = summary["baselines"]["all_background"]
        lines.append(
            [
                name,
                str(own["dice"]["n"]),
                _number(own["dice"]["mean"]),
                _number(own["iou"]["mean"]),
                _surface(summary, name, own["nsd"]["mean"]),
                _number(own["hd_imputed"]["mean"], 2),
                _number(own["hd95_imputed"]["mean"], 2),
                _number(nothing[f"{name}_dice"]),
            ]
        )
    return _table(
        "All: present, missed and hallucinated cases (the last count 0)",
        mark,
        ("structure", "n", "Dice", "IoU", "NSD", "HD imp.", "HD95 imp.", "all background: Dice"),
        lines,
    )


def _distance_table(summary: scores.Summary, names: Sequence[str], mark: str) -> str:
    lines = []
    for name in names:
        hd, hd95, imputed = (summary[f"{name}_{metric}"] for metric in ("hd", "hd95", "hd95_imputed"))
        lines.append(
            [
                name,
                f"{_number(imputed['mean'], 2)} (n={imputed['n']})",
                f"{_number(hd95['mean'], 2)} (n={hd95['n']})",
                _number(hd95["median"], 2),
                f"{_number(hd['mean'], 2)} (n={hd['n']})",
                _number(summary[f"{name}_assd"]["mean"], 2),
                _number(summary[f"{name}_masd"]["mean"], 2),
                _number(summary["baselines"]["all_background"][f"{name}_hd95_imputed"], 2),
            ]
        )
    table = _table(
        "Surface distances in mm",
        mark,
        ("structure", "HD95 imputed", "where defined", "median", "HD defined", "ASSD", "MASD", "nothing"),
        lines,
    )
    return (
        f"{table}\nWhere defined: missed structures have no distance, so this mean improves when "
        "structures are missed.\n"
        "median: of HD95 where defined. nothing: HD95 imputed of predicting nothing (all background)."
    )


def _worst_table(summary: scores.Summary, names: Sequence[str], mark: str) -> str:
    lines = [
        [
            name if rank == 0 else "",
            case["case_id"],
            case["state"],
            _number(case["dice"]),
            _number(case["hd95_mm"], 2),
        ]
        for name in names
        for rank, case in enumerate(summary["worst_cases"][name])
    ]
    return _table(
        f"Worst {scores.WORST} cases of each structure",
        mark,
        ("structure", "case", "state", "Dice", "HD95"),
        lines,
    )


_SHAPE_SHOWN = (
    ("clDice", "cldice", 3),
    ("Betti error", "betti_error", 1),
    ("of b0", "b0_error", 1),
    ("b1", "b1_error", 1),
    ("b2", "b2_error", 1),
    ("b0 located", "b0_located_error", 1),
    ("extra parts", "extra_components", 1),
    ("extra mL", "extra_components_ml", 2),
)
_TREE_SHOWN = (
    ("TD", "td_full", 3),
    ("TD lcc", "td_lcc", 3),
    ("BD", "bd_full", 3),
    ("BD lcc", "bd_lcc", 3),
    ("precision", "precision_full", 3),
    ("prec. lcc", "precision_lcc", 3),
    ("leakage", "leakage_full", 3),
    ("leak. lcc", "leakage_lcc", 3),
    ("missing", "amr_full", 3),
    ("breaks", "breaks", 1),
)


def _topology_tables(topology: Mapping[str, Any], mark: str) -> list[str]:
    """Pieces, holes and centre lines; and for trees how much of them was found, never without how much
    leaked."""
    tables = []
    if topology:
        table = _topology_table(
            "Topology, foreground 26-connected: mean over the cases whose reference holds the structure",
            mark,
            topology,
            _SHAPE_SHOWN,
        )
        tables.append(
            f"{table}\nBetti error: of the numbers of pieces (b0), tunnels (b1) and cavities (b2). "
            "Extra parts touch nothing of the reference."
        )
    trees = {name: block for name, block in topology.items() if tubular.GENERATIONS in block}
    if trees:
        table = _topology_table(
            "Trees: tree length (TD) and branches (BD) detected", mark, trees, _TREE_SHOWN
        )
        tables.append(
            f"{table}\nlcc: of the prediction's largest 6-connected part. TD and BD rise with leakage "
            "(predicted outside / reference).\n"
            "A missed tree has TD and BD 0 and no precision and no breaks: these means are then over "
            "fewer cases, (n=...)."
        )
    return tables


def _topology_table(
    title: str, mark: str, topology: Mapping[str, Any], shown: Sequence[tuple[str, str, int]]
) -> str:
    lines = []
    for name, block in topology.items():
        n = block["n_reference"]
        cells = [
            _number(block[column]["mean"], digits)
            + (f" (n={block[column]['n']})" if 0 < block[column]["n"] < n else "")
            for _, column, digits in shown
        ]
        lines.append([name, str(n), *cells])
        lines.append(
            [
                "  all background",
                str(n),
                *[_number(block["all_background"][column], digits) for _, column, digits in shown],
            ]
        )
    return _table(title, mark, ("structure", "n", *[head for head, _, _ in shown]), lines)


def _calibration_table(blocks: Mapping[str, Any], mark: str) -> str:
    """The boundary band first: over the whole scan nearly every voxel is certain and right, which hides any
    fault."""
    title = "Calibration of the probabilities over all test cases"
    if not blocks:
        return _titled(title, mark, ["not measured: only masks were given, no probabilities"])
    columns = ("ece", "brier", "nll")
    lines = [
        [name, *[_number(block[region][key], 4) for region in calibration.REGIONS for key in columns]]
        for name, block in blocks.items()
    ]
    table = _table(
        title,
        mark,
        (
            "structure",
            *[f"{key} {region}" for region in calibration.REGIONS for key in ("ECE", "Brier", "NLL")],
        ),
        lines,
    )
    return (
        f"{table}\nBand: within {calibration.BAND_STEPS} voxels of the outlines of reference or "
        "prediction. Whole: all voxels of the scans, most of them far from everything; never read it\n"
        f"alone. ECE: mean gap between probability and frequency in {calibration.BINS} bins, 0 is "
        "best. Only structures that a case is annotated for."
    )


def _failure_table(block: Mapping[str, Any], mark: str) -> str:
    """What confidence foretells, and the cases of lowest confidence."""
    title = "Failure detection: does agreement between predictions of one scan foretell its Dice?"
    if not block["structures"]:
        return _titled(
            title,
            mark,
            [f"not measured: {block['reason'] or 'no member predicted a structure that a reference holds'}"],
        )
    lines = [
        [
            name,
            str(own["n"]),
            _number(own["spearman"]),
            _number(own["aurc"]),
            _number(own["aurc_random"]),
            _number(own["aurc_oracle"]),
        ]
        for name, own in (("cases (means)", block), *block["structures"].items())
    ]
    table = _table(title, mark, ("", "n", "Spearman", "AURC", "any order", "best order"), lines)
    lowest = [
        f"  {item['confidence']:.3f}  {item['case_id']} {item['structure']}, Dice {_number(item['dice'])}"
        for item in block["worst_by_confidence"]
    ]
    return "\n".join(
        [
            table,
            f"Confidence: mean pairwise Dice of {block['members']} predictions of each scan. AURC: "
            "mean risk (1 - Dice) of the most confident cases, lower is better.",
            f"{block['n_missed_by_all']} structures of the references were found by no member: no "
            "confidence warns of them.",
            "Lowest confidence:",
            *["".join(c if c.isprintable() else "?" for c in line) for line in lowest],
        ]
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _surface(summary: scores.Summary, name: str, value: float | None) -> str:
    """An NSD with its tolerance, for example "0.913 @3": without it the number says nothing."""
    return "-" if value is None else f"{value:.3f} @{summary['settings']['tolerances_mm'][name][0]:g}"


def _interval(statistic: Mapping[str, Any]) -> str:
    if statistic["ci95"] is None:
        return "-"
    low, high = statistic["ci95"]
    return f"{low:.3f} to {high:.3f}{'*' if 'optimistic_ci' in statistic['flags'] else ''}"


def _titled(title: str, mark: str, lines: Sequence[str]) -> str:
    heading = title + mark
    return "\n".join([heading, "-" * len(heading), *lines])


def _table(title: str, mark: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A title over columns."""
    return _titled(title, mark, _columns(header, lines) if lines else [*_columns(header, []), "none"])


def _columns(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns aligned, the first one to the left, the others to the right; control characters are shown as ?.
    The last cell of a shorter line is text that takes the rest of it."""
    cells = [
        ["".join(c if c.isprintable() else "?" for c in cell) for cell in line] for line in (header, *lines)
    ]
    widths = [max(len(line[i]) for line in cells if len(line) == len(header)) for i in range(len(header))]
    widths[0] = max(len(line[0]) for line in cells)
    return [
        "  ".join(
            _aligned(cell, i, widths[i], free=len(line) < len(header) and i == len(line) - 1)
            for i, cell in enumerate(line)
        ).rstrip()
        for line in cells
    ]


def _aligned(cell: str, place: int, width: int, *, free: bool) -> str:
    return cell.ljust(width) if place == 0 or free else cell.rjust(width)
