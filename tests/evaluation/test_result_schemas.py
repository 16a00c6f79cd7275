"""The result files against the specification's schemas: which keys and columns, of which kind, strict JSON,
readers.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shapes import CASES, SPACING, label_map

import evaluate
from ctseg import artifacts, cli
from ctseg.evaluation import result_files
from ctseg.geometry.volume import Volume
from ctseg.reporting import results
from ctseg.scans.formats import nifti
from ctseg.scoring.comparison import compare
from ctseg.scoring.metrics import STATES
from ctseg.scoring.shape import tubular

NAMES = ("liver", "airway", "aorta")
# Section 5.4 of the specification, word for word.
PER_CASE = [
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
]
SHAPE_CELLS = PER_CASE[PER_CASE.index("b0_reference") : PER_CASE.index("td_full")]
TREE_CELLS = PER_CASE[PER_CASE.index("td_full") : PER_CASE.index("ece_whole")]
# Missing here, undefined there: tells every state, a missed tree, and an unannotated structure.
REFERENCES = {case: pair[0] for case, pair in CASES.items()} | {
    "absent": label_map(airway=False, aorta=False),
    "unlabelled": label_map(aorta=False),
}
PREDICTIONS = {case: pair[1] for case, pair in CASES.items()} | {
    "absent": label_map(airway=False, aorta=False),
    "unlabelled": label_map(),
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of six synthetic cases in which every state but `unevaluable` occurs."""
    root = tmp_path_factory.mktemp("schemas")
    affine = np.diag([SPACING[2], SPACING[1], SPACING[0], 1.0])[:, [2, 1, 0, 3]]
    for side, maps in (("reference", REFERENCES), ("prediction", PREDICTIONS)):
        for case_id, array in maps.items():
            nifti.write_label(root / side / f"{case_id}.nii.gz", Volume(array, affine))
    artifacts.write_json(
        root / "reference" / "labels.json",
        {"1": "liver", "2": "airway", "3": "aorta", "annotated": {"unlabelled": ["liver", "airway"]}},
    )
    assert (
        evaluate.main(
            [
                "--reference",
                str(root / "reference"),
                "--prediction",
                str(root / "prediction"),
                "--output",
                str(root / "scores"),
                "--workers",
                "1",
            ]
        )
        == 0
    )
    return root / "scores"


def strict(path: Path) -> Any:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} in {path.name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# ---- a schema: a type, a function, [schema of every element], {key: schema} with exactly these keys -------


def number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def count(value: object) -> bool:
    return type(value) is int and value >= 0


def text(value: object) -> bool:
    return isinstance(value, str)


def share(value: object) -> bool:
    return number(value) and 0 <= value <= 1  # type: ignore[operator]


def maybe(schema: Any) -> Callable[[object], bool]:
    return lambda value: value is None or not list(faults(value, schema))


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, (dict, list)):
        return [
            found
            for item in (value.values() if isinstance(value, dict) else value)
            for found in numbers_in(item)
        ]
    return [value] if isinstance(value, (int, float)) else []


def at_least(schema: dict[str, Any]) -> Callable[[object], bool]:
    """A map with these keys and perhaps more."""
    return lambda value: (
        isinstance(value, dict)
        and set(schema) <= set(value)
        and not faults({key: value[key] for key in schema}, schema)
    )


def every(schema: Any) -> Callable[[object], bool]:
    """A map with any keys."""
    return lambda value: (
        isinstance(value, dict) and not any(list(faults(item, schema)) for item in value.values())
    )


def faults(value: Any, schema: Any, place: str = "") -> list[str]:
    """Where a value does not follow its schema."""
    if isinstance(schema, dict):
        if not isinstance(value, dict) or set(value) != set(schema):
            different = sorted(set(value) ^ set(schema)) if isinstance(value, dict) else type(value).__name__
            return [f"{place}: keys {different}"]
        return [
            fault for key, inner in schema.items() for fault in faults(value[key], inner, f"{place}/{key}")
        ]
    if isinstance(schema, list):
        return (
            [fault for i, item in enumerate(value) for fault in faults(item, schema[0], f"{place}/{i}")]
            if isinstance(value, list)
            else [f"{place}: no list"]
        )
    return [] if schema(value) else [f"{place}: {value!r}"]


def test_the_schemas_can_fail() -> None:
    assert faults({"a": 1}, {"a": number}) == [] and faults({"a": math.nan}, {"a": number}) == ["/a: nan"]
    assert faults({"a": 1, "b": 2}, {"a": number}) == [": keys ['b']"] and faults(
        [{"n": -1}], [{"n": count}]
    ) == ["/0/n: -1"]
    assert (
        faults(True, number)
        and faults(None, number)
        and not faults(None, maybe(number))
        and faults({"x": "y"}, every(number))
    )


STATISTIC = {
    "mean": maybe(number),
    "std": maybe(number),
    "min": maybe(number),
    "max": maybe(number),
    "median": maybe(number),
    "p05": maybe(number),
    "n": count,
    "n_undefined": count,
    "ci95": maybe([number]),
    "ci_method": maybe(text),
    "flags": [text],
}
METRICS = (
    "dice",
    "iou",
    "precision",
    "sensitivity",
    "specificity",
    "f1",
    "hd",
    "hd_imputed",
    "hd95",
    "hd95_imputed",
    "assd",
    "assd_imputed",
    "masd",
    "nsd",
    "volume_error",
)
SEED_METRICS = ("dice", "iou", "sensitivity", "specificity", "precision", "f1", "hd", "hd95")
BASELINE = (
    "dice",
    "iou",
    "nsd",
    "sensitivity",
    "precision",
    "hd95",
    "hd95_imputed",
    "volume_error",
    "presence_sensitivity",
    "presence_specificity",
)
COUNTED = {"n_reference": count, "n_missed": count, "n_without_reference": count, "n_hallucinated": count}
CALIBRATION = {
    **dict.fromkeys(("ece", "brier", "nll"), maybe(number)),
    "bins": [{"n": count, "p": maybe(share), "y": maybe(share)}],
}
RANKED = {**dict.fromkeys(("aurc", "aurc_random", "aurc_oracle", "spearman"), maybe(number)), "n": count}
DOUBTFUL = {"case_id": text, "structure": text, "confidence": maybe(share), "dice": share}
GENERATION = {"generation": count, "mean": share, "median": share, "n": count}
TREE = {**dict.fromkeys(tubular.TREE_COLUMNS, STATISTIC), tubular.GENERATIONS: [GENERATION]}


def topology_schema(tree: bool) -> dict[str, Any]:
    columns = (*tubular.SHAPE_COLUMNS, *(tubular.TREE_COLUMNS if tree else ()))
    return {
        "kind": text,
        "connectivity": text,
        **COUNTED,
        **dict.fromkeys(tubular.SHAPE_COLUMNS, STATISTIC),
        **(TREE if tree else {}),
        "all_background": dict.fromkeys(columns, maybe(number)),
    }


def summary_schema(tolerances: dict[str, list[float]]) -> dict[str, Any]:
    metrics = {
        f"{name}_{metric}": STATISTIC
        for name in NAMES
        for metric in (*METRICS, *(f"nsd_{tau:g}mm" for tau in tolerances[name]))
    }
    return {
        "schema_version": lambda value: value == 1,
        "settings": at_least(
            {
                "boundary_mode": lambda value: value in ("surfel", "voxel"),
                "hd95": lambda value: value == "max_of_directed_percentiles",
                "tolerance_epsilon": lambda value: value == 1e-6,
                "empty_policy": lambda value: value == "present_only",
                "tolerances_mm": {key: [number] for key in NAMES},
                "distance_unit": lambda value: value == "mm",
                "bootstrap": {"method": text, "resamples": count, "seed": count},
                "split_hash": maybe(text),
                "n_patients": count,
                "n_cases": count,
                "n_missing_predictions": count,
                "synthetic": lambda value: isinstance(value, bool),
            }
        ),
        **metrics,
        **{f"mean_{metric}": STATISTIC for metric in ("dice", "iou", "hd", "hd95", "hd95_imputed")},
        "presence": {
            key: {
                **{f"n_{state}": count for state in STATES},
                "sensitivity": maybe(share),
                "specificity": maybe(share),
                "false_volume_ml_mean": maybe(number),
            }
            for key in NAMES
        },
        "all_cases": {
            f"{name}_{metric}": {"mean": maybe(number), "n": count}
            for name in NAMES
            for metric in ("dice", "iou", "nsd", "hd_imputed", "hd95_imputed")
        },
        "baselines": {
            "all_background": {
                **{f"{name}_{metric}": maybe(number) for name in NAMES for metric in BASELINE},
                **{f"macro_{metric}": maybe(number) for metric in ("dice", "iou", "nsd", "hd95_imputed")},
                "better_than_baseline": lambda value: value in (True, False, None),
            }
        },
        "headline": {
            **{f"macro_{metric}": maybe(number) for metric in ("dice", "iou", "nsd", "hd95_imputed")},
            "structures": [text],
            "structures_without_reference": [text],
        },
        "worst_cases": {
            key: [{"case_id": text, "dice": share, "state": text, "hd95_mm": maybe(number)}] for key in NAMES
        },
        "topology": {"airway": topology_schema(tree=True), "aorta": topology_schema(tree=False)},
        "airway": {"structure": text, **COUNTED, **TREE},
        # Filled where probabilities, confidences or a second method are there; empty otherwise.
        "calibration": every({"band": CALIBRATION, "whole": CALIBRATION}),
        "failure_detection": {
            **RANKED,
            "members": count,
            "reason": maybe(text),
            "n_missed_by_all": maybe(count),
            "structures": every(RANKED),
            "worst_by_confidence": [DOUBTFUL],
            "worst_by_dice": [DOUBTFUL],
        },
        "comparisons": lambda value: isinstance(value, list),
        "warnings": [text],
    }


# ---- JSON -------------------------------------------------------------------------------------------------


def test_names_of_the_files(scored: Path) -> None:
    assert {path.name for path in scored.iterdir()} == {
        "detailed_results.json",
        "summary_statistics.json",
        "evaluation_report.txt",
        "dice_boxplots.png",
        "dice_vs_hausdorff.png",
        "metrics_heatmap.png",
        "summary.json",
        "per_case.csv",
        "topology.csv",
    }


def test_every_json_file_but_nnunets_is_strict(scored: Path) -> None:
    files = sorted(path.name for path in scored.glob("*.json"))
    assert files == ["detailed_results.json", "summary.json", "summary_statistics.json"]
    for name in files:
        content = (scored / name).read_text(encoding="utf-8")
        assert ("NaN" in content) == (name == "summary.json") and "Infinity" not in content
        assert not {999, -999} & set(numbers_in(json.loads(content)))
        if name != "summary.json":
            strict(scored / name)


def test_summary_statistics_has_exactly_the_keys_of_the_schema(scored: Path) -> None:
    summary = strict(scored / "summary_statistics.json")
    tolerances = summary["settings"]["tolerances_mm"]
    assert all(len(values) >= 2 for values in tolerances.values())
    assert faults(summary, summary_schema(tolerances)) == []
    assert (
        summary["calibration"] == {}
        and summary["failure_detection"]["aurc"] is None
        and "only masks" in summary["failure_detection"]["reason"]
    )
    nothing = summary["baselines"]["all_background"]
    assert [
        nothing[f"liver_{metric}"]
        for metric in (
            "dice",
            "iou",
            "nsd",
            "sensitivity",
            "precision",
            "hd95",
            "volume_error",
            "presence_sensitivity",
        )
    ] == [0, 0, 0, 0, None, None, -1, 0]
    assert nothing["macro_dice"] == 0 and nothing["better_than_baseline"] is True
    assert summary["presence"]["airway"] | {"false_volume_ml_mean": None} == {
        "n_present": 3,
        "n_missed": 1,
        "n_hallucinated": 1,
        "n_absent": 1,
        "n_unannotated": 0,
        "n_unevaluable": 0,
        "sensitivity": 0.75,
        "specificity": 0.5,
        "false_volume_ml_mean": None,
    }


def test_the_airway_block_holds_the_tree_columns_of_the_airway(scored: Path) -> None:
    summary = strict(scored / "summary_statistics.json")
    airway, block = summary["airway"], summary["topology"]["airway"]
    assert airway["structure"] == "airway" and all(
        airway[key] == block[key] for key in (*tubular.TREE_COLUMNS, tubular.GENERATIONS, "n_reference")
    )
    assert airway["td_full"]["n"] == 4 and airway["td_full"]["mean"] < 1
    coronary = {"coronary_arteries": block}
    assert tubular.airway_block(coronary) == {} and tubular.airway_block({}) == {}
    assert (
        tubular.airway_block(coronary | {"lung_trachea_bronchia": block})["structure"]
        == "lung_trachea_bronchia"
    )


def test_detailed_results(scored: Path) -> None:
    cases = strict(scored / "detailed_results.json")
    keys = {
        "patient_id",
        "case_id",
        "n_reference",
        *(f"mean_{metric}" for metric in ("dice", "iou", "hd", "hd95", "hd95_imputed")),
    }
    own = (
        "state",
        "nsd",
        "assd",
        "masd",
        "hd95_imputed",
        "volume_error",
        "reference_ml",
        "prediction_ml",
        "hd_imputed",
        "assd_imputed",
    )
    keys |= {f"{name}_{key}" for name in NAMES for key in (*SEED_METRICS, *own)}
    assert len(cases) == 6
    for case in cases:
        words = {key: text for key in keys if key.endswith(("_state", "_id"))}
        assert faults(case, {**dict.fromkeys(keys, maybe(number)), **words}) == []
        assert all(
            case[f"{name}_f1"] == case[f"{name}_dice"] and case[f"{name}_state"] in STATES for name in NAMES
        )
        present = [name for name in NAMES if case[f"{name}_state"] in ("present", "missed")]
        assert case["n_reference"] == len(present) and case["mean_dice"] == pytest.approx(
            np.mean([case[f"{name}_dice"] for name in present])
        )


def test_nnunet_summary(scored: Path) -> None:
    path = scored / "summary.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    eight = dict.fromkeys(
        ("Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref"),
        lambda value: isinstance(value, (int, float)),
    )
    labels = ("1", "2", "3")
    assert (
        faults(
            content,
            {
                "foreground_mean": eight,
                "mean": dict.fromkeys(labels, eight),
                "metric_per_case": [
                    {
                        "metrics": dict.fromkeys(labels, eight),
                        "prediction_file": text,
                        "reference_file": text,
                        "extra": {label: {"name": text, "state": text} for label in labels},
                    }
                ],
            },
        )
        == []
    )
    assert path.read_text(encoding="utf-8") == json.dumps(content, indent=4, sort_keys=True) + "\n"
    unlabelled = next(
        case for case in content["metric_per_case"] if case["reference_file"].startswith("unlabelled")
    )
    # nobody looked: no number, not 0
    assert all(math.isnan(value) for value in unlabelled["metrics"]["3"].values())
    assert "not the headline" in (scored / "evaluation_report.txt").read_text(encoding="utf-8")


def test_report_order(scored: Path) -> None:
    report = (scored / "evaluation_report.txt").read_text(encoding="utf-8")
    parts = (
        "boundary mode surfel",
        "NSD tolerances",
        "Counts of cases",
        "Headline",
        "95 % CI",
        "all background",
        "All: present",
        "HD95 where defined",
        "Worst 5",
        "Topology",
        "Trees:",
        "Calibration",
        "Failure detection",
        "Warnings",
    )
    places = [report.index(part) for part in parts]
    assert places == sorted(places)


# ---- per_case.csv -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells(scored: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (scored / "per_case.csv").open(encoding="utf-8", newline="") as stream:
        return {(row["case_id"], row["structure"]): row for row in csv.DictReader(stream)}


def test_columns_are_exactly_those_of_the_specification(scored: Path) -> None:
    header = (scored / "per_case.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.split(",") == PER_CASE == list(result_files.COLUMNS)


def test_every_state_and_no_stand_ins(cells: dict[tuple[str, str], dict[str, str]]) -> None:
    assert len(cells) == 6 * len(NAMES) and {row["state"] for row in cells.values()} == set(STATES) - {
        "unevaluable"
    }
    for row in cells.values():
        numbers = [
            value
            for key, value in row.items()
            if value
            and key
            not in (
                "case_id",
                "patient_id",
                "structure",
                "label",
                "state",
                "boundary_mode",
                "prediction_file",
                "reference_file",
            )
        ]
        assert all(math.isfinite(float(value)) and float(value) != 999 for value in numbers)
        with_it = row["state"] in ("present", "missed")
        assert all((row[key] != "") == (with_it and row["structure"] != "liver") for key in SHAPE_CELLS), row[
            "case_id"
        ]
        # undefined for a missed tree
        trees = [key for key in TREE_CELLS if key not in ("precision_lcc", "breaks")]
        assert all((row[key] != "") == (with_it and row["structure"] == "airway") for key in trees), row[
            "case_id"
        ]


def test_topology_cells(cells: dict[tuple[str, str], dict[str, str]]) -> None:
    good, cut, missed, hallucinated = (cells[case, "airway"] for case in ("good", "cut", "missed", "without"))
    assert [
        good[key]
        for key in (
            "b0_reference",
            "b0_prediction",
            "betti_error",
            "extra_components",
            "cldice",
            "td_full",
            "bd_lcc",
            "precision_lcc",
            "leakage_full",
            "amr_lcc",
            "breaks",
        )
    ] == ["1", "1", "0", "0", "1.0", "1.0", "1.0", "1.0", "0.0", "0.0", "0"]
    assert (cut["b0_prediction"], cut["b0_error"], cut["extra_components"], cut["breaks"]) == (
        "3",
        "2",
        "1",
        "1",
    )
    assert (
        float(cut["extra_components_ml"]) == pytest.approx(8 * math.prod(SPACING) / 1000)
        and 0 < float(cut["td_mm_lcc"]) < float(cut["td_mm_full"]) < 1
    )
    assert [
        missed[key]
        for key in (
            "cldice",
            "td_full",
            "td_mm_lcc",
            "bd_full",
            "leakage_full",
            "amr_full",
            "precision_lcc",
            "breaks",
        )
    ] == ["0.0", "0.0", "0.0", "0.0", "0.0", "1.0", "", ""]
    assert (
        hallucinated["state"] == "hallucinated" and hallucinated["cldice"] == hallucinated["b0_error"] == ""
    )
    assert float(good["tree_length_mm"]) == float(missed["tree_length_mm"]) > 100


def test_the_wider_table_says_the_same(scored: Path, cells: dict[tuple[str, str], dict[str, str]]) -> None:
    with (scored / "topology.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["case_id"], row["structure"]) for row in rows} == {
        key for key, row in cells.items() if row["cldice"]
    }
    for row in rows:
        own = cells[row["case_id"], row["structure"]]
        assert all(row[key] == own[key] for key in (*SHAPE_CELLS, *TREE_CELLS))
        if row["td_full"]:
            assert row["precision_full"] == own["precision"]  # the same number, which per_case.csv has once


def test_readers_of_the_table(scored: Path) -> None:
    rows = results.read_rows(scored / "per_case.csv")
    airway = next(row for row in rows if (row["case_id"], row["structure"]) == ("cut", "airway"))
    assert (
        airway["b0_error"] == 2.0
        and isinstance(airway["td_full"], float)
        and airway["ece_whole"] is None
        and airway["confidence"] is None
    )
    keyed = {(row["patient_id"], row["case_id"], row["structure"]): row for row in rows}
    found = compare({"one": {0: keyed}, "other": {0: keyed}})
    assert found.n_cases == 6 and all(
        pair.difference == 0 for pair in found.pairs if pair.difference is not None
    )


# ---- bytes and options ------------------------------------------------------------------------------------


def test_the_same_pairs_give_the_same_bytes(scored: Path, tmp_path: Path) -> None:
    root = scored.parent
    assert (
        evaluate.main(
            [
                "--reference",
                str(root / "reference"),
                "--prediction",
                str(root / "prediction"),
                "--output",
                str(tmp_path),
                "--workers",
                "2",
                "--no-plots",
            ]
        )
        == 0
    )
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (scored / path.name).read_bytes(), path.name


def test_options_that_must_exist() -> None:
    options = {option for action in evaluate.build_parser()._actions for option in action.option_strings}
    assert {"--model", "--data", "--output", "--device"} <= options and cli.parser("x", "y") is not None
