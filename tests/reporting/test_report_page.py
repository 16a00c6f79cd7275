"""The report as people get it: sentences that are true, tables that explain themselves, a page that works in
a real browser and in print.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_results
import numpy as np
import pytest
from browser import BROWSER, MISSING, Browser
from pages import Elements

import analyze
from ctseg import artifacts
from ctseg.artifacts import Workspace
from ctseg.cli import Options
from ctseg.config import Settings
from ctseg.errors import IntegrityError, PreconditionError
from ctseg.manifest import Manifest
from ctseg.reporting import (
    comparison_runs,
    facts,
    glossary,
    other_runs,
    page,
    report,
    results,
    tables,
    verdict,
)
from ctseg.reporting.pictures import slices
from ctseg.reporting.results import Results
from ctseg.scoring import summary as scores

in_browser = pytest.mark.skipif(BROWSER is None, reason=MISSING)
pytestmark = pytest.mark.pictures
WIDTHS = (1366, 800, 390)
DRAWN = 3
HEAVIEST = 4_000_000  # bytes, with 20 structures and 16 cases


# ---- the verdict ------------------------------------------------------------------------------------------


def made_up(dice: dict[str, list[float | str]], *, synthetic: bool = False) -> Results:
    """Results of one scan per patient, summarised by the real code.

    A cell is a Dice or a state such as "missed".
    """
    rows, nothing = [], []
    for name, cells in dice.items():
        for index, cell in enumerate(cells):
            state = cell if isinstance(cell, str) else "present"
            value = {"present": cell, "missed": 0.0}.get(state)
            row = dict.fromkeys(scores.METRICS.values()) | {
                "case_id": f"c{index:03d}",
                "patient_id": f"p{index:03d}",
                "structure": name,
                "state": state,
                "dice": value,
                "nsd": value,
                "iou": value,
                "hd95_mm": 2.0 if state == "present" else None,
                "hd95_imputed_mm": {"present": 2.0, "missed": 300.0}.get(state),
                "nsd_by_tolerance": {},
                "image_diagonal_mm": 300.0,
                "prediction_ml": 1.0,
                "reference_ml": 1.0,
                "nsd_tau_mm": 2.0,
                "nsd2_tau_mm": 1.0,
                **{f"spacing_{axis}_mm": 1.0 for axis in "dhw"},
            }
            rows.append(row)
            empty = {"present": "missed", "hallucinated": "absent"}.get(state, state)
            nothing.append(
                row
                | {
                    "state": empty,
                    "dice": 0.0 if empty == "missed" else None,
                    "hd95_mm": None,
                    "hd95_imputed_mm": 300.0 if empty == "missed" else None,
                }
            )
    settings = {
        "n_patients": len(next(iter(dice.values()))),
        "tolerances_mm": {name: [2.0, 1.0] for name in dice},
        "boundary_mode": "surfel",
        "split_hash": "s",
    }
    history = fake_results.history(list(dice), epochs=4) | {"model": "unet", "synthetic": synthetic}
    history["settings"] = {"train": fake_results.TRAINING | {"seed": 3}}
    return Results(
        history, summary=scores.summarise(rows, nothing, settings), rows=rows, run={"structures": list(dice)}
    )


def words(found: Results) -> dict[str, str]:
    return dict(verdict.paragraphs(found))


def spread(mean: float, n: int) -> list[float | str]:
    return [float(value) for value in np.linspace(mean - 0.04, mean + 0.04, n)]


def test_all_good() -> None:
    said = words(made_up({"liver": spread(0.92, 60), "spleen": spread(0.88, 60)}))
    assert (
        "60 test scans" in said["Result"]
        and "is 0.900 over 2 structures" in said["Result"]
        and "none was missed" in said["Result"]
    )
    assert said["What works"].startswith("All 2 structures: liver 0.920 (95 % CI 0.91 to 0.93, n = 60)")
    # the lowest single one: 0.88 - 0.04
    assert (
        said["What fails or falls short"].startswith("No structure")
        and "Dice 0.840" in said["What fails or falls short"]
    )
    assert said["What fails or falls short"].endswith("HD95 2.0 mm.")
    assert (
        said["How sure"]
        == "60 test patients were scored. One training run (seed 3) and one split: how much another "
        "run would differ was not measured."
    )


def test_a_far_error_beside_a_good_dice_is_named() -> None:
    found = made_up({"liver": spread(0.92, 9), "bladder": spread(0.88, 9)})
    next(row for row in found.rows if row["structure"] == "bladder" and row["case_id"] == "c004")[
        "hd95_mm"
    ] = 84.26
    assert (
        "The farthest error is at bladder in scan c004: HD95 84.3 mm: a stray piece"
        in words(found)["What fails or falls short"]
    )


def test_one_structure_fails() -> None:
    said = words(
        made_up(
            {
                "liver": spread(0.92, 20),
                "duct": ["missed"] * 20,
                "gland": [*spread(0.9, 18), "missed", "missed"],
                "node": spread(0.5, 20),
            }
        )
    )
    assert "1 of 4 structures: liver 0.920" in said["What works"] and not re.search(
        "duct|gland|node", said["What works"]
    )
    fails = said["What fails or falls short"]
    assert (
        "duct: never found (20 scans)" in fails
        and "gland: mean Dice 0.810, missed in 2 of 20 scans" in fails
        and "node: mean Dice 0.500" in fails
        and "liver" not in fails
    )
    assert "22 were missed entirely" in said["Result"] and "fewer than 50 patients" in said["How sure"]


def test_predicting_nothing_is_called_that() -> None:
    found = made_up({"liver": ["missed"] * 8, "spleen": ["missed"] * 8})
    said = words(found)
    assert (
        verdict.NOT_BETTER in said["Result"]
        and said["What works"].startswith("No structure reaches")
        and "is 0.000" in said["Result"]
    )
    assert verdict.NOT_BETTER not in words(made_up({"liver": ["missed"] * 7 + [0.1]}))["Result"]


def test_three_patients_are_an_indication_without_an_interval() -> None:
    said = words(made_up({"liver": [0.9, 0.92, 0.94]}))
    assert (
        "3 test patients: an indication, not a measurement. Fewer than 5 per structure give no "
        "confidence interval." in said["How sure"]
    )
    assert "CI" not in said["What works"] and "too few for an interval, n = 3" in said["What works"]


def test_many_structures_are_named_with_what_there_is_of_intervals() -> None:
    names = [f"rib_{number}" for number in range(9)]
    assert (
        "(intervals in the table)" in words(made_up({name: spread(0.9, 6) for name in names}))["What works"]
    )
    assert "(too few scans for intervals)" in words(made_up({name: [0.9] for name in names}))["What works"]


def test_synthetic_is_said_in_the_verdict_and_real_is_not_called_so() -> None:
    cells = {"liver": spread(0.9, 12)}
    assert (
        "synthetic test scans" in words(made_up(cells, synthetic=True))["Result"]
        and "nothing about patients" in words(made_up(cells, synthetic=True))["How sure"]
    )
    assert "synthetic" not in " ".join(words(made_up(cells)).values())


def test_what_was_not_looked_for_is_said() -> None:
    said = words(
        made_up(
            {
                "liver": spread(0.9, 12),
                "node": [*spread(0.8, 10), "unannotated", "unannotated"],
                "tail": [*spread(0.8, 11), "unevaluable"],
                "horn": ["absent"] * 12,
            }
        )
    )
    assert (
        "Not scored, because not annotated: node in 2 scans." in said["How sure"]
        and "cut off by the edge of the scan: tail in 1 scan." in said["How sure"]
    )
    assert (
        "No test reference shows horn: whether the model finds it is not known." in said["How sure"]
        and "over 3 structures" in said["Result"]
    )


def test_a_hallucination_keeps_a_structure_from_working() -> None:
    said = words(
        made_up(
            {"liver": [*spread(0.9, 8), "absent", "hallucinated"], "horn": ["hallucinated", *["absent"] * 9]}
        )
    )
    assert "No structure reaches" in said["What works"]
    assert (
        "hallucinated in 1 of 2 scans without it" in said["What fails or falls short"]
        and "no test reference shows it: horn (in 1 scan)" in said["What fails or falls short"]
    )


def test_an_interval_that_reaches_below_the_rule_is_a_doubt() -> None:
    wide, narrow = [0.3, *[0.8] * 9], [0.79, *[0.8] * 9]
    assert (
        "For a the interval reaches below 0.70: that it works is not certain."
        in words(made_up({"a": wide, "b": narrow}))["How sure"]
    )


def test_every_number_of_the_verdict_stands_in_the_evaluation() -> None:
    rng = np.random.default_rng(4)
    for _ in range(12):
        names = [f"s{chr(97 + i)}" for i in range(rng.integers(1, 9))]
        n = int(rng.integers(2, 30))
        cells: dict[str, list[float | str]] = {
            name: [
                str(rng.choice(["missed", "absent", "hallucinated", "unannotated"]))
                if rng.random() < 0.2
                else float(rng.uniform(0.3, 0.98))
                for _ in range(n)
            ]
            for name in names
        }
        found = made_up(cells)
        known = (
            {f"{row['dice']:.3f}" for row in found.rows if row["dice"] is not None}
            | {f"{row['hd95_mm']:.1f}" for row in found.rows if row["hd95_mm"] is not None}
            | {"0.70", "0.000"}
        )
        for name in names:
            block = found.summary[f"{name}_dice"]
            known |= {page.text_of(block["mean"]), *(f"{limit:.2f}" for limit in block["ci95"] or [])}
        known.add(page.text_of(found.summary["headline"]["macro_dice"]))
        text = " ".join(words(found).values())
        assert set(re.findall(r"\d+\.\d+", text)) <= known, text
        for one in verdict.structures(found):  # said to work if and only if it does
            works = found.summary[f"{one.name}_dice"]["mean"] >= 0.6995 and not {
                "missed",
                "hallucinated",
            } & set(map(str, cells[one.name]))
            assert one.works == works and (one.tag == "works") == works


def test_no_evaluation_and_no_reference_give_one_sentence() -> None:
    assert [lead for lead, _ in verdict.paragraphs(Results({"model": "unet"}))] == ["Result"]
    assert "nothing can be said" in words(made_up({"horn": ["absent"] * 4}))["Result"]


# ---- tables and terms -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """20 structures, 16 cases, with what a later evaluation adds: calibration, confidence, topology, two
    pictures.
    """
    workspace = fake_results.build(tmp_path_factory.mktemp("many"), cases=16, scale=2, count=20)
    file = workspace.evaluation / "summary_statistics.json"
    summary = artifacts.read_json(file)
    bins = [{"n": 100, "p": 0.9, "y": 0.7}, {"n": 0, "p": None, "y": None}, {"n": 300, "p": 0.5, "y": 0.5}]
    summary["calibration"] = {
        "Bladder": {
            "whole": {"ece": 0.0121, "brier": 0.01, "nll": 0.1, "bins": bins},
            "band": {"ece": 0.109, "brier": 0.2, "nll": 0.5, "bins": bins},
        }
    }
    summary["failure_detection"] = {"aurc": 0.175, "spearman": 0.61}
    summary["topology"] = {
        "Rectum": {
            "n_reference": 14,
            **{column: summary["Rectum_dice"] | {"mean": 0.5} for column, _ in tables.TOPOLOGY_COLUMNS},
            "all_background": {column: 0.0 for column, _ in tables.TOPOLOGY_COLUMNS},
        }
    }
    artifacts.write_json(file, summary)
    table = workspace.evaluation / "per_case.csv"
    head, *lines = table.read_text().splitlines()
    place = head.split(",").index("confidence")
    cells = [line.split(",") for line in lines]
    table.write_text(
        "\n".join(
            [
                head,
                *(
                    ",".join([*cell[:place], f"{0.5 + i / 1000:.4f}", *cell[place + 1 :]])
                    for i, cell in enumerate(cells)
                ),
            ]
        )
        + "\n"
    )
    for name in ("reliability", "confidence"):
        shutil.copy(workspace.evaluation / "dice_boxplots.png", workspace.evaluation / f"{name}.png")
    return workspace


@pytest.fixture(scope="module")
def text(built: Workspace) -> str:
    """The page of the stage, with the pictures of 3 of the 20 structures only: drawing them takes longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "STRUCTURE_PICTURES", DRAWN)
        assert analyze.run(built, Settings(), Options()) == 0
    return built.report.read_text(encoding="utf-8")


def test_page_is_light_enough_to_send(built: Workspace, text: str) -> None:
    jpegs = [len(content) for content in re.findall(r"data:image/jpeg;base64,([^\"]+)", text)]
    assert len(jpegs) == DRAWN + 3
    # those not drawn here, as heavy as the heaviest
    missing = (len(results.read(built).structures) - DRAWN) * max(jpegs[3:])
    assert 300_000 < built.report.stat().st_size + missing < HEAVIEST


def test_every_abbreviation_in_a_table_head_has_a_line(text: str) -> None:
    names = {term.name for _, terms in glossary.GROUPS for term in terms}
    heads = re.findall(r"<thead>(.*?)</thead>", text, re.DOTALL)
    assert len(heads) >= 6
    seen = set()
    for head in heads:
        plain = re.sub(r"<[^>]+>", " ", re.sub("\u00ad", "", head))
        seen |= set(
            re.findall(r"\b(?:[A-Z]{2,}\d*|[a-z]*[A-Z][a-z]+[A-Z]\w*|clDice|Dice|Betti error|Brier)\b", plain)
        )
    assert {"Dice", "HD95", "NSD", "CI", "ECE", "NLL", "TD", "BD", "clDice", "Betti error"} <= seen <= names
    page_text = Elements(text).text
    assert all(term.line in page_text.replace("&#39;", "'") for _, terms in glossary.GROUPS for term in terms)


def test_links_lead_somewhere_and_headings_are_in_order(text: str) -> None:
    found = Elements(text)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    links = [
        str(attributes["href"])[1:]
        for tag, attributes in found.tags
        if tag == "a" and str(attributes["href"]).startswith("#")
    ]
    assert (
        len(ids) == len(set(ids))
        and set(links) <= set(ids)
        and all(re.fullmatch(r"[a-z0-9-]+", str(name)) for name in ids)
    )
    assert sum(name.startswith("picture-") for name in links) >= 6  # worst cases lead to their pictures
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert (
        levels[0] == 1
        and levels.count(1) == 1
        and all(after <= before + 1 for before, after in itertools.pairwise(levels))
    )
    assert all(len(str(attributes.get("alt"))) > 15 for tag, attributes in found.tags if tag == "img")


def test_calibration_confidence_and_topology_are_shown(built: Workspace, text: str) -> None:
    part = Elements(text.split('id="calibration"')[1].split('id="training"')[0]).text
    # (100·0.2 + 300·0) / 400
    assert (
        "0.109" in part
        and "0.012" in part
        and "+0.050" in part
        and "Spearman 0.61" in part
        and "AURC 0.175" in part
    )
    assert text.count("Reliability: observed") == 1 and "confidence against" not in part
    found = results.read(built)
    worst = tables.worst_table(found)
    lowest = sorted(row["dice"] for row in found.scored)[: tables.WORST]
    assert [line["dice"] for line in worst["dice"]] == lowest and worst["dice"][0]["state"] == "missed"
    confidences = [line["confidence"] for line in worst["confidence"]]
    assert confidences == sorted(confidences) and confidences[0] == 0.5


def test_the_worst_cases_are_those_of_the_evaluation() -> None:
    """Of two that were missed the one that is farther off comes first, in the table and in the pictures."""
    found = made_up({"liver": [0.9, "missed", "missed", 0.8], "spleen": [0.9, 0.8, 0.7, 0.6]})
    near = next(row for row in found.rows if row["state"] == "missed")
    near["hd95_imputed_mm"] = 100.0
    table = [(line["case_id"], line["structure"]) for line in tables.worst_table(found)["dice"]]
    worst = [case for case in slices.choose(found.rows, found.structures) if case.structure]
    summary = scores.summarise(found.rows, found.rows, {})
    assert table[:2] == [("c002", "liver"), ("c001", "liver")]
    assert [case.case_id for case in worst] == [
        summary["worst_cases"][name][0]["case_id"] for name in ("liver", "spleen")
    ]
    assert "missed, Dice 0.000" in words(found)["What fails or falls short"]
    assert "liver in scan c002" in words(found)["What fails or falls short"]


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    bare = report.render(
        made_up({"liver": spread(0.9, 12)}), dict.fromkeys((*analyze_plots(), "x.png"), b""), []
    )
    for words_ in (
        "Calibration was not measured",
        "Confidence is not available",
        "was not measured.",
        "No structure here is measured as a tube",
        "No other run was compared",
    ):
        assert words_ in bare
    whole_only = made_up({"liver": spread(0.9, 12)})
    whole_only.summary["calibration"] = {"liver": {"whole": {"ece": 0.001}, "band": {"ece": None}}}
    assert tables.calibration_table(whole_only) == []  # the flattering number is never shown alone


def analyze_plots() -> list[str]:
    from ctseg.reporting.pictures import curves

    return [*curves.PICTURES, "dice_boxplots.png", "dice_vs_hausdorff.png", "metrics_heatmap.png"]


def test_interval_of_the_mean_is_only_given_for_the_mean_that_is_shown() -> None:
    found = made_up({"liver": spread(0.9, 12), "spleen": spread(0.8, 12)})
    low, high = (float(value) for value in re.findall(r"\d\.\d+", tables.macro_ci(found)))
    assert low < 0.85 < high and tables.macro_ci(found).endswith("*")
    for row in found.rows:
        row["patient_id"] = "p" + str(int(row["case_id"][1:]) // 2)
    assert tables.macro_ci(found) == ""  # several scans of one patient: another mean


def test_contrast_is_enough_in_light_and_dark() -> None:
    css = (page.TEMPLATES / "page.css").read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    ]
    assert len(schemes) == 2

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(
            weight * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
            for weight, c in zip((0.2126, 0.7152, 0.0722), parts)
        )

    for colours in schemes:
        for ink, grounds in (
            ("ink", ("ground", "pale", "amber", "alarm")),
            ("soft", ("ground", "pale")),
            ("link", ("ground", "pale", "amber")),
            ("red", ("ground", "pale")),
        ):
            for ground in grounds:
                light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_commands_and_settings_show_no_folder_of_this_machine(built: Workspace) -> None:
    manifest = Manifest.load(built)
    manifest = dataclasses.replace(
        manifest, settings={"seed": 2}, synthetic=False, data_root="/home/somebody/ct"
    )
    found = Results(
        {
            "model": "unet",
            "settings": {
                "train": {
                    "seed": 1,
                    "minutes": 6.0,
                    "patch_size": [64, 64, 64],
                    "init": "/home/somebody/best_model.pth",
                },
                "data": {"guide": "/home/somebody/guides"},
            },
        },
        manifest,
    )
    assert (
        facts.command(found) == "python run_pipeline.py --data PATH --layout plain --model unet "
        "--init best_model.pth --minutes 6 --seed 1 "
        "--set data.seed=2"
    )
    assert ("train.patch_size", "64, 64, 64") in facts.settings_lines(found) and "somebody" not in str(
        facts.settings_lines(found)
    )


# ---- other runs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Workspace]:
    """Two workspaces on one split; the second scores 0.05 lower wherever something was found, and lacks one
    case.
    """
    first = fake_results.build(tmp_path_factory.mktemp("runs") / "first", cases=8, raw=False)
    second = Workspace(first.root.parent / "second")
    shutil.copytree(first.root, second.root)
    table = second.evaluation / "per_case.csv"
    head, *lines = [line.split(",") for line in table.read_text().splitlines()]
    for line in lines:
        if line[head.index("state")] == "present":
            line[head.index("dice")] = str(float(line[head.index("dice")]) - 0.05)
    table.write_text("\n".join(",".join(line) for line in [head, *lines] if line[0] != "patient_07") + "\n")
    return first, second


def test_other_runs_are_compared_on_the_shared_patients(pair: tuple[Workspace, Workspace]) -> None:
    found = other_runs.table(other_runs.gather(results.read(pair[0]), [pair[1].root]))
    mine, other = found["methods"]
    assert (
        found["n_patients"] == 7 and list(found["main"]) == [other["method"]] and "second" in other["method"]
    )
    change = other["macro"]["dice"] - mine["macro"]["dice"]
    # a missed one stays at 0
    assert (
        found["main"][other["method"]]["difference"] == pytest.approx(change, abs=1e-9)
        and -0.051 < change < -0.04
    )
    assert any("left out" in line for line in found["warnings"])


def test_comparison_of_the_workspace_is_shown_by_itself(
    pair: tuple[Workspace, Workspace], tmp_path: Path
) -> None:
    record = other_runs.gather(results.read(pair[0]), [pair[1].root])
    workspace = Workspace(tmp_path)
    artifacts.write_json(
        workspace.comparison / "comparison.json", {"format": "ctseg-comparison", "version": 1, **record}
    )
    read = other_runs.read_comparison(workspace)
    assert other_runs.table(read) == other_runs.table(record)
    shown = Elements(
        report.render(results.read(pair[0]), dict.fromkeys(analyze_plots(), b""), [], comparison=read)
    ).text
    (pair,) = other_runs.table(record)["main"].values()
    sentence = list(record["statistics"]["sentences"].values())[1]
    assert sentence in shown and f"{pair['difference']:+.3f}".replace("-", "−") in shown and "−0.0" in shown


def test_command_line_names_other_workspaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(analyze, "run", lambda *arguments: seen.append(arguments[3]) or 0)
    assert (
        analyze.main(["--workspace", str(tmp_path), "--compare-with", "a", "b"]) == 0
        and analyze.main(["--workspace", str(tmp_path)]) == 0
    )
    assert seen == [[Path("a"), Path("b")], []]


def test_runs_that_cannot_be_compared_are_refused(pair: tuple[Workspace, Workspace], tmp_path: Path) -> None:
    other = Workspace(tmp_path / "other")
    shutil.copytree(pair[1].root, other.root)
    file = other.evaluation / "summary_statistics.json"
    summary = artifacts.read_json(file)
    for key, code in (("split_hash", "SPLITS_DIFFER"), ("boundary_mode", "SETTINGS_DIFFER")):
        artifacts.write_json(file, summary | {"settings": summary["settings"] | {key: "other"}})
        with pytest.raises(IntegrityError, match=code):
            other_runs.gather(results.read(pair[0]), [other.root])
    artifacts.write_json(file, summary | {"settings": None})
    with pytest.raises(IntegrityError) as caught:
        other_runs.gather(results.read(pair[0]), [other.root])
    assert caught.value.file == "other/evaluation_results/summary_statistics.json"
    assert caught.value.fix.endswith(f"--eval` again, with --workspace {other.root}")
    with pytest.raises(IntegrityError, match=r"file=comparison/runs/other/eval.*Fix: delete the folder"):
        comparison_runs.gather([("unet", 0, pair[0]), ("vnet", 0, other)])
    artifacts.write_json(file, summary)
    shutil.rmtree(other.evaluation)
    with pytest.raises(PreconditionError, match=r"no test results.*--workspace"):
        other_runs.gather(results.read(pair[0]), [other.root])


def test_a_broken_record_of_a_comparison_is_refused(
    pair: tuple[Workspace, Workspace], tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    assert other_runs.read_comparison(workspace) is None
    record = comparison_runs.gather([("a", 0, pair[0]), ("b", 0, pair[0])])
    artifacts.write_json(workspace.comparison / "comparison.json", record)
    assert other_runs.read_comparison(workspace) is not None
    statistics = artifacts.read_json(workspace.comparison / "comparison.json")["statistics"]
    (first, second) = statistics["methods"]
    for damage in (
        {"format": "something"},
        {"statistics": {}},
        {"statistics": statistics | {"pairs": None}},
        {"statistics": statistics | {"sentences": ["better"]}},
        {"statistics": statistics | {"methods": [first, second | {"macro": {}}]}},
        {"warnings": "none"},
    ):
        artifacts.write_json(workspace.comparison / "comparison.json", record | damage)
        with pytest.raises(IntegrityError, match="ARTIFACT_CORRUPT"):
            other_runs.read_comparison(workspace)


# ---- in a browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@in_browser
def test_page_fits_every_width_without_a_complaint(built: Workspace, text: str, browser: Browser) -> None:
    for width in WIDTHS:
        browser.size(width, 768)
        browser.open(built.report.as_uri())
        scroll, client = browser.value(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert scroll <= client <= width, width
        assert browser.value(
            "Array.from(document.images).every(image => image.complete && image.naturalWidth > 300)"
        )
        beside = browser.value(
            "document.querySelector('nav').getBoundingClientRect().right <= "
            "document.querySelector('h1').getBoundingClientRect().left"
        )
        assert beside == (width >= 1300)  # the table of contents stands beside the text where there is room
    assert not browser.complaints
    assert {url for url in browser.requests if not url.startswith("data:")} == {built.report.as_uri()}


@in_browser
def test_overflow_and_a_forbidden_load_would_be_noticed(tmp_path: Path, browser: Browser) -> None:
    before = len(browser.complaints)
    (tmp_path / "wide.html").write_text(
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\"><body><div "
        "style='width:900px'>wide</div><img src='x.png'>"
    )
    browser.size(390, 768)
    browser.open((tmp_path / "wide.html").as_uri())
    browser.value("document.body.firstChild.style.width = '900px'")
    assert browser.value("document.documentElement.scrollWidth > 390") and len(browser.complaints) > before
    del browser.complaints[before:]


def pages_of(pdf: bytes) -> list[list[str]]:
    """Per page of a PDF that Chromium printed the targets of its links."""
    targets = {
        number: name.decode()
        for number, name in re.findall(
            rb"\n(\d+) 0 obj\n<</Type /Annot\n/Subtype /Link[^>]*?/Dest /([\w-]+)", pdf
        )
    }
    pages = re.findall(rb"<</Type /Page\n(.*?)\nendobj", pdf, re.DOTALL)
    return [
        [targets[number] for number in re.findall(rb"(\d+) 0 R", block.group(1)) if number in targets]
        if (block := re.search(rb"/Annots \[([^\]]*)\]", one))
        else []
        for one in pages
    ]


@in_browser
def test_print_keeps_the_headline_table_on_one_page(built: Workspace, text: str, browser: Browser) -> None:
    browser.open(built.report.as_uri())
    links = pages_of(browser.pdf())
    head, foot = (
        [index for index, names in enumerate(links) if name in names]
        for name in ("term-not-annotated", "term-predicting-nothing")
    )
    assert 10 < len(links) < 25 and len(head) == 1 and head == foot  # its last column's head and its last row


@in_browser
def test_dark_is_for_the_screen_only(built: Workspace, text: str, browser: Browser) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.open(built.report.as_uri())
    seen: dict[str, Any] = {}
    for media in ("screen", "print"):
        browser.call(
            "Emulation.setEmulatedMedia",
            media=media,
            features=[{"name": "prefers-color-scheme", "value": "dark"}],
        )
        seen[media] = browser.value(ground)
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    assert seen["print"] == "rgb(255, 255, 255)" != seen["screen"]


def test_long_names_break_behind_underscores_and_are_escaped() -> None:
    text = "{{ name | breakable }}"
    environment = page.template("report_scores.html.j2").environment
    assert environment.from_string(text).render(name="portal_vein_<i>") == "portal_<wbr>vein_<wbr>&lt;i&gt;"
