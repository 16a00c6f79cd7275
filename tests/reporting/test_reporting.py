"""Plots, pictures of cases and the report page, on a made-up workspace scored by the real code."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_results
import numpy as np
import pytest
from dots import save_dot
from pages import Elements
from PIL import Image

import analyze
from ctseg import artifacts
from ctseg.artifacts import Workspace
from ctseg.cli import Options
from ctseg.config import Settings
from ctseg.errors import CaseError, IntegrityError, PreconditionError
from ctseg.geometry.boxes import bounding_box
from ctseg.geometry.volume import Volume, reorient
from ctseg.reporting import comparison_runs, facts, gallery, report, results
from ctseg.reporting.pictures import curves, plots, slices, style
from ctseg.scans.formats import volume_files

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.pictures
NASTY = "<script>alert('x')</script>\"&$x^2$"
NAMES = list(fake_results.STRUCTURES)
GONE = object()
NO_PLOTS = dict.fromkeys(
    [*curves.PICTURES, "dice_boxplots.png", "dice_vs_hausdorff.png", "metrics_heatmap.png"], b""
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace after all stages; its first case has an id full of HTML."""
    return fake_results.build(tmp_path_factory.mktemp("workspace"), cases=7, scale=2, first_id=NASTY)


@pytest.fixture(scope="module")
def page(built: Workspace) -> str:
    """The page that the stage writes."""
    assert analyze.run(built, Settings(), Options()) == 0
    return built.report.read_text(encoding="utf-8")


@pytest.fixture
def workspace(built: Workspace, tmp_path: Path) -> Workspace:
    """A copy that a test may damage."""
    shutil.copytree(built.root, tmp_path / "copy")
    return Workspace(tmp_path / "copy")


def png_of(draw: Any, *arguments: Any) -> np.ndarray:
    """(rows, columns, 3) pixels of a picture drawn into memory."""
    stream = io.BytesIO()
    draw(*arguments, stream, False)
    return np.asarray(Image.open(io.BytesIO(stream.getvalue())).convert("RGB"))


def row(structure: str, state: str, dice: float | None, case: str = "a", **more: Any) -> dict[str, Any]:
    return {"case_id": case, "structure": structure, "state": state, "dice": dice, "hd95_mm": None, **more}


# ---- the stage --------------------------------------------------------------------------------------------


def test_stage_writes_every_named_file(built: Workspace, page: str) -> None:
    for name in (
        "loss_curves",
        "dice_scores",
        "hausdorff_distances",
        "learning_rate",
        "resource_usage",
        "combined_metrics",
    ):
        with Image.open(built.analysis / f"{name}.png") as image:
            assert image.width >= 600 and image.height >= 300
    text = (built.analysis / "training_summary.txt").read_text(encoding="utf-8")
    assert (
        "multi_decoder" in text
        and "synthetic" in text
        and "predicting nothing" in text
        and "not a medical device" in text
    )
    assert not list(built.analysis.glob(".tmp-*"))


def test_imports_no_torch_and_help_is_instant() -> None:
    code = (
        "import sys, io, contextlib, analyze\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): "
        "analyze.main(['--help'])\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules, 'help is slow'\n"
        "import ctseg.reporting.report, ctseg.reporting.pictures.curves, "
        "ctseg.reporting.pictures.plots, ctseg.reporting.gallery\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules, 'torch or pyplot'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_command_line_writes_the_page_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = fake_results.build(tmp_path, cases=1)
    monkeypatch.setattr(style.Figure, "savefig", save_dot)
    assert analyze.main(["--workspace", str(small.root)]) == 0
    said = capsys.readouterr()
    assert "analysis/report.html" in said.out and "Traceback" not in said.out + said.err


def test_missing_history_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="--train"):
        analyze.run(Workspace(tmp_path), Settings(), Options())
    done = subprocess.run(
        [sys.executable, str(ROOT / "analyze.py"), "--workspace", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 4 and "MISSING_ARTIFACT" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "content", ["{", "[1, 2]", '{"train_loss": [NaN]}'], ids=["truncated", "list", "NaN"]
)
def test_damaged_history_is_refused(workspace: Workspace, content: str) -> None:
    workspace.history.write_text(content)
    with pytest.raises(IntegrityError, match="ARTIFACT_CORRUPT"):
        results.read(workspace)


# ---- the page ---------------------------------------------------------------------------------------------


def test_page_is_one_file_without_outside_references(page: str) -> None:
    found = Elements(page)
    for tag, attributes in found.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for key in ("src", "href"):
            if key in attributes:
                assert (
                    str(attributes[key]).startswith(("data:image/", "#")) or attributes[key] == "viewer.html"
                ), attributes[key]
        assert not any(name.startswith("on") for name in attributes)
    style_text = page.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style_text and "@import" not in style_text
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert len(images) >= 7 + 3 + 4 and all(attributes["alt"] for attributes in images)
    for attributes in images:
        Image.open(io.BytesIO(base64.b64decode(str(attributes["src"]).split(",")[1]))).verify()


def test_case_ids_are_escaped_everywhere(page: str) -> None:
    assert "<script" not in page
    assert NASTY in Elements(page).text.replace("’", "'")


def test_page_says_what_was_run_and_how_good_it_is(built: Workspace, page: str) -> None:
    text = Elements(page).text
    summary = artifacts.read_json(built.evaluation / "summary_statistics.json")
    assert f"{summary['headline']['macro_dice']:.3f}" in text
    for name in NAMES:
        assert (
            f"{summary[f'{name}_dice']['mean']:.3f}" in text
            and f"{summary[f'{name}_hd95_imputed']['mean']:.1f}" in text
        )
    for words in (
        "SYNTHETIC DATA",
        "2,765,067",
        "11 training, 3 validation, 7 test",
        "layout plain",
        "not a medical device",
        "not annotated",
        "seed".title(),
        artifacts.read_json(built.manifest)["splits_hash"][:12],
    ):
        assert words in text, words


def test_predicting_nothing_is_a_line_of_zeros(page: str) -> None:
    line = page.split("Predicting nothing at all")[1].split("</tr>")[0]
    assert re.findall(r">([^<]+)</td>", line)[:2] == ["0.000", "0.000"]


def test_findings_list_skipped_cases_first(page: str) -> None:
    part = page.split('id="findings"')[1]
    assert 0 < part.index("TRUNCATED") < part.index("LOW_RESOLUTION") < part.index("REORIENTED")


def test_undefined_is_a_dash_and_never_nan(page: str) -> None:
    text = Elements(page).text
    assert not re.search(r"\b(nan|NaN|None|null|inf)\b", text)


def test_without_evaluation_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = fake_results.build(tmp_path, cases=1, evaluated=False)
    monkeypatch.setattr(style.Figure, "savefig", save_dot)
    assert analyze.run(bare, Settings(), Options()) == 0
    text = Elements(bare.report.read_text(encoding="utf-8")).text
    assert "has not been evaluated" in text and "--eval" in text and "Scores on the test scans" not in text


DAMAGES = {  # file, key (a/b: b within a) -> another value than this program writes; GONE: none
    ("training_history.json", "epochs"): 3,
    ("training_history.json", "train_loss"): [1.0],
    ("training_history.json", "val_dice"): {"Bladder": ["high"]},
    ("training_history.json", "val_dice/Bladder"): GONE,
    ("training_history.json", "resource_usage"): None,
    ("training_history.json", "resource_usage/0"): GONE,
    ("training_history.json", "settings/train/batch_size"): GONE,
    ("training_history.json", "settings/train/patch_size"): 64,
    ("training_history.json", "parameters"): "many",
    ("training_history.json", "peak_memory_gb"): GONE,
    ("summary_statistics.json", "Bladder_dice"): None,
    ("summary_statistics.json", "Bladder_dice/mean"): None,
    ("summary_statistics.json", "Bladder_nsd/ci95"): GONE,
    ("summary_statistics.json", "Bladder_hd95_imputed/flags"): "optimistic_ci",
    ("summary_statistics.json", "Bladder_hd95/n"): 0.5,
    ("summary_statistics.json", "settings"): [],
    ("summary_statistics.json", "settings/boundary_mode"): GONE,
    ("summary_statistics.json", "settings/tolerances_mm"): {"Bladder": 2},
    ("summary_statistics.json", "settings/tolerances_mm/Bladder"): [],
    ("summary_statistics.json", "headline"): {},
    ("summary_statistics.json", "headline/macro_dice"): None,
    ("summary_statistics.json", "headline/structures"): ["Bladder"],
    ("summary_statistics.json", "presence/Bladder"): GONE,
    ("summary_statistics.json", "presence/Bladder/n_missed"): None,
    ("summary_statistics.json", "baselines/all_background"): None,
    ("summary_statistics.json", "baselines/all_background/better_than_baseline"): "yes",
    ("summary_statistics.json", "failure_detection"): None,
    ("summary_statistics.json", "failure_detection/aurc"): GONE,
    ("summary_statistics.json", "topology"): {"Bladder": {"n_reference": 2}},
    ("summary_statistics.json", "calibration"): {"Bladder": {"band": {"ece": 0.1}}},
    ("summary_statistics.json", "warnings"): "none",
    ("evaluation_run.json", "structures"): "Bladder",
    ("evaluation_run.json", "cases"): None,
    ("evaluation_run.json", "cases/0"): {"case_id": "patient_00"},
    ("evaluation_run.json", "cases/0/case_id"): 5,
    ("preprocess_report.json", "found"): "many",
    ("preprocess_report.json", "findings"): [{"severity": "WARN"}],
    ("preprocess_report.json", "findings/0/severity"): "LOUD",
}


@pytest.mark.parametrize(("name", "key"), DAMAGES)
def test_a_result_that_this_program_did_not_write_is_refused_by_name(
    name: str, key: str, workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    path = next(workspace.root.rglob(name))
    content = part = artifacts.read_json(path)
    *outer, last = (int(word) if word.isdigit() else word for word in key.split("/"))
    for word in outer:
        part = part[word]
    if DAMAGES[name, key] is GONE:
        del part[last]
    else:
        part[last] = DAMAGES[name, key]
    artifacts.write_json(path, content)
    assert analyze.main(["--workspace", str(workspace.root)]) == 5
    said = capsys.readouterr().err
    assert (
        "ERROR ARTIFACT_CORRUPT" in said
        and name in said
        and "Fix: delete it and run `python run_pipeline.py --" in said
    )


@pytest.mark.parametrize(
    ("state", "column", "cell", "said"),
    [
        ("present", "dice", "", "'Bladder' has no dice"),
        ("present", "dice", "nan", "not readable as a table"),
        ("missed", "hd95_imputed_mm", "inf", "not readable as a table"),
        ("missed", "hd95_imputed_mm", "", "'Rectum' has no hd95_imputed_mm"),
        ("present", "state", "here", "'Bladder' has no known state"),
        ("hallucinated", "state", "present", "'Bladder' has no dice"),
        (None, "hd95_mm", None, "'Bladder' has no hd95_mm"),
        (None, "state", "unannotated", "it is not about what per_case.csv says"),
    ],
)
def test_a_table_of_scores_that_this_program_did_not_write_is_refused(
    state: str | None, column: str, cell: str | None, said: str, workspace: Workspace
) -> None:
    """state: of the row that is damaged, None for all rows. cell: None for no such column."""
    path = workspace.evaluation / "per_case.csv"
    head, *lines = (line.split(",") for line in path.read_text(encoding="utf-8").splitlines())
    of_state = [line for line in lines if state in (None, line[head.index("state")])]
    for line in of_state[: 1 if state else None]:
        line[head.index(column)] = str(cell)
    if cell is None:
        head[head.index(column)] = "other"
        lines = [[*line[: head.index("other")], "", *line[head.index("other") + 1 :]] for line in lines]
    path.write_text("\n".join(map(",".join, [head, *lines])) + "\n", encoding="utf-8")
    with pytest.raises(IntegrityError, match=f"ARTIFACT_CORRUPT.*{said}"):
        results.read(workspace)


def test_a_plot_that_is_gone_or_no_picture_is_left_out_and_named(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(style.Figure, "savefig", save_dot)
    (workspace.evaluation / "dice_boxplots.png").unlink()
    (workspace.evaluation / "metrics_heatmap.png").write_bytes(b"no picture")
    cut = workspace.evaluation / "dice_vs_hausdorff.png"
    cut.write_bytes(cut.read_bytes()[:-2000])
    assert analyze.main(["--workspace", str(workspace.root)]) == 0
    said, text = capsys.readouterr().out, workspace.report.read_text(encoding="utf-8")
    for name in ("dice_boxplots.png", "metrics_heatmap.png", cut.name):
        line = f"evaluation_results/{name} is missing or no picture and left out; "
        assert f"WARN {line}{results.EVALUATE_AGAIN}." in said and line in text
    assert "reliability.png" not in said and "Each point is one scan" not in text
    assert "Overlap and distance fail" not in text and "Mean of every other measure" not in text


def test_evaluation_of_other_data_is_left_out(workspace: Workspace) -> None:
    artifacts.write_json(
        workspace.run_record, artifacts.read_json(workspace.run_record) | {"manifest_hash": "other"}
    )
    found = results.read(workspace)
    assert not found.evaluated and any("left out" in notice for notice in found.notices)


def test_evaluation_of_other_weights_is_said(workspace: Workspace) -> None:
    workspace.best_model.write_bytes(b"newer weights")
    found = results.read(workspace)
    assert found.evaluated and any("other weights" in notice for notice in found.notices)


@pytest.mark.parametrize("name", ["summary_statistics.json", "per_case.csv", "evaluation_run.json"])
def test_a_run_is_finished_only_with_undamaged_results(workspace: Workspace, name: str) -> None:
    workspace.best_model.write_bytes(b"weights")
    known = {"checkpoint_sha256": artifacts.file_hash(workspace.best_model)}
    artifacts.write_json(workspace.run_record, artifacts.read_json(workspace.run_record) | known)
    assert comparison_runs.is_finished(workspace)
    path = workspace.evaluation / name
    path.write_bytes(path.read_bytes()[:100])
    assert not comparison_runs.is_finished(workspace)


@pytest.mark.parametrize(
    ("stopped", "said"),
    [("running", "not finished"), ("interrupted", "interrupted"), ("diverged", "--restart")],
)
def test_a_training_that_did_not_finish_is_said(workspace: Workspace, stopped: str, said: str) -> None:
    artifacts.write_json(workspace.history, artifacts.read_json(workspace.history) | {"stopped": stopped})
    assert any("Training:" in notice and said in notice for notice in results.read(workspace).notices)


def test_evaluation_of_weights_that_are_gone_is_said(workspace: Workspace) -> None:
    artifacts.write_json(
        workspace.run_record, artifacts.read_json(workspace.run_record) | {"checkpoint_sha256": "w" * 64}
    )
    workspace.best_model.unlink(missing_ok=True)
    assert any("other weights" in notice for notice in results.read(workspace).notices)


def test_model_that_predicts_nothing_is_called_out(built: Workspace) -> None:
    found = results.read(built)
    found.summary["headline"]["macro_dice"] = 0.0
    found.summary["baselines"]["all_background"]["better_than_baseline"] = False
    assert "NOT BETTER THAN PREDICTING NOTHING" in report.render(found, NO_PLOTS, [])
    assert "NOT BETTER THAN PREDICTING NOTHING" in report.training_summary(found)


def test_page_without_the_pictures_of_the_evaluation(built: Workspace) -> None:
    text = report.render(results.read(built), dict.fromkeys(curves.PICTURES, b""), [])
    assert "Test Dice of every case, one line" not in text and "Scores on the test scans" in text


def test_notice_is_escaped_and_its_command_is_code(built: Workspace) -> None:
    found = results.read(built)
    found.notices = ["<i>gone</i>; run `python <x>`"]
    text = report.render(found, NO_PLOTS, [])
    assert "&lt;i&gt;gone&lt;/i&gt;; run <code>python &lt;x&gt;</code>" in text


def test_absolute_data_folder_shows_its_name_only(built: Workspace) -> None:
    found = results.read(built)
    assert found.manifest is not None
    found.manifest = dataclasses.replace(found.manifest, data_root="/home/somebody/secret/scans")
    assert "secret" not in str(facts.facts(found)) and "scans" in str(facts.facts(found))


def test_warnings_of_one_kind_share_a_line(built: Workspace) -> None:
    items = [
        {"severity": "NOTE", "code": "REORIENTED", "case": f"c{i}", "cause": "x", "fix": "y"}
        for i in range(30)
    ]
    items += [
        {"severity": "ERROR", "code": "TRUNCATED", "case": f"e{i}", "cause": "x", "fix": "y"}
        for i in range(2)
    ]
    groups = report.findings({"findings": items})
    assert [(group[0].severity, len(group)) for group in groups] == [("ERROR", 1), ("ERROR", 1), ("NOTE", 30)]
    found = results.read(built)
    found.preprocess_report["findings"] = items
    part = Elements(report.render(found, NO_PLOTS, []).split('id="findings"')[1]).text
    assert "c4, c5 and 24 more" in part and "30 cases" in part and part.count("TRUNCATED") == 2


def test_rows_keep_undefined_apart_from_zero(built: Workspace) -> None:
    rows = results.read_rows(built.evaluation / "per_case.csv")
    missed = next(r for r in rows if r["state"] == "missed")
    assert (
        missed["dice"] == 0.0 and missed["hd95_mm"] is None and isinstance(missed["hd95_imputed_mm"], float)
    )
    unannotated = next(r for r in rows if r["state"] == "unannotated")
    assert unannotated["dice"] is None and unannotated["structure"] == "Rectum"


@pytest.mark.parametrize(
    "content",
    ["case_id,structure,state,dice\na,b,present,high\n", "structure,dice\nb,0.5\n"],
    ids=["word instead of a number", "no case_id"],
)
def test_damaged_table_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "per_case.csv").write_text(content)
    with pytest.raises(IntegrityError, match="ARTIFACT_CORRUPT"):
        results.read_rows(tmp_path / "per_case.csv")


# ---- curves -----------------------------------------------------------------------------------------------


def test_null_is_a_gap_and_not_zero() -> None:
    run = curves.Run({"epochs": [1, 2, 3], "train_loss": [1.0, None, 3.0]})
    assert np.array_equal(run.series("train_loss"), [1.0, np.nan, 3.0], equal_nan=True)
    assert np.isnan(run.series("val_loss")).all() and run.series("val_loss").shape == (3,)
    with style.picture(io.BytesIO(), (4, 3)) as figure:
        axes = figure.subplots()
        assert curves.draw_series(axes, np.arange(3.0), np.array([1.0, np.nan, 3.0]), color="k", label="x")
        assert 0.0 not in np.concatenate([line.get_ydata() for line in axes.lines])
        assert np.isnan(axes.lines[0].get_ydata()[1])
        assert not curves.draw_series(axes, np.arange(3.0), np.full(3, np.nan), color="k", label="x")


@pytest.mark.parametrize("name", list(curves.PICTURES))
@pytest.mark.parametrize(
    "history",
    [
        {},
        {
            "epochs": [1, 2],
            "train_loss": [None, None],
            "val_dice": {"A": [None, None]},
            "resource_usage": [{}, {}],
        },
        {
            "epochs": [1],
            "train_loss": [0.5],
            "val_dice": {"A": [0.5]},
            "train_dice": {"A": [0.4]},
            "best_epoch": 1,
        },
    ],
    ids=["empty", "only nulls", "one epoch"],
)
def test_missing_series_still_gives_a_file(tmp_path: Path, name: str, history: dict[str, Any]) -> None:
    curves.PICTURES[name].draw(history, tmp_path / name, False)
    assert Image.open(tmp_path / name).width >= 600


@pytest.mark.parametrize("used", [0.6, 4.0, 11.0, 20.0, 23.0])
def test_the_memory_of_the_machine_is_dashed_and_its_legend_hides_no_line(used: float) -> None:
    history = fake_results.history(epochs=8)
    history["resource_usage"] = [{"ram_used_gb": used, "ram_total_gb": 24.0}] * 8
    with style.picture(io.BytesIO(), (3.4, 3.5)) as figure:
        axes = figure.subplots()
        curves.PICTURES["resource_usage.png"].panels[1](axes, curves.Run(history))
        figure.canvas.draw()
        assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]
        legend = axes.get_legend()
        assert legend is not None
        place = legend.get_window_extent()
        for value in (used, 24.0):
            height = axes.transData.transform((1, value))[1]
            assert not place.y0 < height < place.y1


def test_missing_series_says_not_recorded() -> None:
    with style.picture(io.BytesIO(), (4, 3)) as figure:
        axes = figure.subplots()
        curves.draw_rate(axes, curves.Run({"epochs": [1, 2], "learning_rate": [None, None]}))
        assert "not recorded" in [text.get_text() for text in axes.texts]


def test_sixty_structures_become_a_map_with_every_name() -> None:
    structures = fake_results.many_rows(cases=1)[1]
    with style.picture(io.BytesIO(), (6, 14)) as figure:
        axes = figure.subplots()
        curves.draw_structures(axes, curves.Run(fake_results.history(structures)), "Dice", "val_dice")
        assert len(axes.get_yticklabels()) == 60 and len(axes.images) == 1


# ---- scores -----------------------------------------------------------------------------------------------


def test_headline_rows_are_present_only() -> None:
    rows = [
        row("A", "present", 0.8),
        row("A", "missed", 0.0),
        row("A", "absent", None),
        row("A", "hallucinated", None),
        row("A", "unannotated", None),
        row("B", "present", 1.0),
    ]
    scored = plots.by_structure(rows, ["A", "B", "C"])
    assert [r["dice"] for r in scored["A"]] == [0.8, 0.0] and scored["C"] == []
    assert [plots.label_of(*item) for item in scored.items()] == ["A (n=2, 1 missed)", "B (n=1)", "C (n=0)"]


def test_missed_structures_are_drawn_at_zero_and_marked() -> None:
    rows = [row("A", "present", 0.5, case=str(i)) for i in range(6)]
    marked = tuple(int(style.MISSED[i : i + 2], 16) for i in (1, 3, 5))

    def count(pixels: np.ndarray) -> int:
        return int((np.abs(pixels.astype(int) - marked).max(-1) < 12).sum())

    without, with_one = (
        png_of(plots.dice_boxplots, rows, ["A"]),
        png_of(plots.dice_boxplots, [*rows, row("A", "missed", 0.0, case="m")], ["A"]),
    )
    assert count(with_one) > count(without) + 20  # the legend's mark is in both


@pytest.mark.parametrize("draw", [plots.dice_boxplots, plots.dice_vs_hausdorff, plots.metrics_heatmap])
def test_score_plots_for_empty_and_odd_results(draw: Any) -> None:
    assert png_of(draw, [], []).shape[1] >= 600
    assert png_of(draw, [row("A", "absent", None), row("A", "unannotated", None)], ["A", "B"]).shape[1] >= 600
    assert png_of(draw, [row("A", "missed", 0.0)], ["A", "$x_$ _hidden"]).shape[1] >= 600
    assert png_of(draw, [row("_A$^", "present", 1.0, hd95_mm=0.0)], ["_A$^"]).shape[1] >= 600


@pytest.mark.parametrize("draw", [plots.dice_boxplots, plots.metrics_heatmap])
def test_sixty_structures_get_a_line_each(draw: Any) -> None:
    rows, structures = fake_results.many_rows(cases=5)
    assert png_of(draw, rows, structures).shape[0] >= 60 * 30  # pixels per line of text


def test_synthetic_stands_in_the_title(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = style.Figure.suptitle
    monkeypatch.setattr(
        style.Figure,
        "suptitle",
        lambda self, text, **more: (seen.append(text), original(self, text, **more))[1],
    )
    history, rows = fake_results.history(epochs=3), [row("A", "present", 0.5)]
    for picture in curves.PICTURES.values():
        picture.draw(history, io.BytesIO(), True)
    for draw_scores in (plots.dice_boxplots, plots.dice_vs_hausdorff, plots.metrics_heatmap):
        draw_scores(rows, ["A"], io.BytesIO(), True)
    assert len(seen) == 9 and all("synthetic" in text for text in seen)


def test_same_input_gives_the_same_bytes() -> None:
    rows = [row("A", state, 0.5, case=str(i)) for i, state in enumerate(["present"] * 6 + ["missed"])]
    first, second = io.BytesIO(), io.BytesIO()
    plots.dice_boxplots(rows, ["A"], first, True)
    plots.dice_boxplots(rows, ["A"], second, True)
    assert first.getvalue() == second.getvalue()


# ---- cases as slices --------------------------------------------------------------------------------------


def test_best_median_worst_and_worst_per_structure() -> None:
    rows = [row("A", "present", dice, case=case) for case, dice in (("p", 0.9), ("q", 0.5), ("r", 0.7))]
    rows += [
        row("B", "present", 0.9, case="p"),
        row("B", "missed", 0.0, case="r"),
        row("B", "unannotated", None, case="q"),
        row("C", "absent", None, case="p"),
    ]
    chosen = [(c.case_id, c.structure, c.reason.split()[0]) for c in slices.choose(rows, ["A", "B", "C"])]
    # r: (0.7 + 0) / 2 = 0.35 is the worst, q: 0.5 (B was not annotated) the median
    assert chosen == [
        ("p", None, "best"),
        ("q", None, "median"),
        ("r", None, "worst"),
        ("q", "A", "worst"),
        ("r", "B", "worst"),
    ]
    assert slices.choose([row("A", "absent", None)], ["A"]) == []
    assert slices.choose(rows[:1], ["A"])[0].reason == "best and median and worst of 1 cases"


def test_many_structures_show_the_lowest_only() -> None:
    rows, structures = fake_results.many_rows(cases=4)
    chosen = [choice for choice in slices.choose(rows, structures) if choice.structure]
    assert len(chosen) == slices.STRUCTURE_PICTURES and max(c.dice for c in chosen) < 0.9


def test_planes_follow_the_radiological_convention() -> None:
    """Canonical axes are superior, posterior, left: a bright voxel must appear where the letters say."""
    array = np.zeros((10, 12, 14))
    array[9, 0, 13] = 1  # superior, anterior, left
    axial, coronal, sagittal = (plane.cut(array, {0: 9, 1: 0, 2: 13}[plane.axis]) for plane in slices.PLANES)
    assert np.argwhere(axial).tolist() == [[0, 13]]  # anterior on top, the patient's left at the right
    assert np.argwhere(coronal).tolist() == [[0, 13]]  # superior on top, left at the right
    assert np.argwhere(sagittal).tolist() == [[0, 0]]  # superior on top, anterior at the left
    assert [(p.left, p.right, p.top, p.bottom) for p in slices.PLANES] == [
        ("R", "L", "A", "P"),
        ("R", "L", "S", "I"),
        ("A", "P", "S", "I"),
    ]
    assert [p.size_mm((1, 1, 1), (3, 2, 1)) for p in slices.PLANES] == [(2, 1), (3, 1), (3, 2)]


@pytest.mark.parametrize(
    ("order", "flips"),
    [((0, 1, 2), (False, False, False)), ((2, 0, 1), (True, False, True)), ((1, 2, 0), (False, True, True))],
)
def test_picture_does_not_depend_on_how_the_file_is_stored(
    order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    image, reference, prediction = fake_results.draw((10, 12, 14), np.random.default_rng(0))
    affine = np.array([[0, 0, 1.0, -5], [0, 2.0, 0, 7], [3.0, 0, 0, 9], [0, 0, 0, 1]])
    drawn = []
    for how in (((0, 1, 2), (False, False, False)), (order, flips)):
        stream = io.BytesIO()
        slices.draw_case(
            slices.on_one_grid(
                *(reorient(Volume(array, affine), *how) for array in (image, reference, prediction))
            ),
            NAMES,
            stream,
        )
        drawn.append(stream.getvalue())
    assert drawn[0] == drawn[1]


def test_label_on_another_grid_is_refused() -> None:
    image, reference, _ = fake_results.draw((10, 12, 14), np.random.default_rng(0))
    shifted = np.eye(4)
    shifted[0, 3] = 5
    with pytest.raises(CaseError, match="LABEL_GRID"):
        slices.on_one_grid(Volume(image, np.eye(4)), Volume(reference, shifted), Volume(reference, np.eye(4)))


def test_slices_go_through_the_structure() -> None:
    ring = np.zeros((10, 12, 14), bool)
    ring[5, 2:9, 2:9] = True
    ring[5, 4:7, 4:7] = False  # the centroid lies in the hole
    assert ring[tuple(slices.centre_voxel(ring))]
    label = np.zeros((10, 12, 14), np.uint8)
    label[2, 3:9, 3:9] = 1
    label[7, 3, 3], label[7, 4, 4] = 1, 2
    label[8, 4:6, 4:8] = 2
    assert slices.busiest_slices(label)[0] in (2, 8) and slices.busiest_slices(
        np.zeros((4, 6, 8), np.uint8)
    ) == [2, 3, 4]


def test_view_has_its_margin_in_mm_and_stays_inside() -> None:
    mask = np.zeros((100, 100, 100), bool)
    mask[50:60, 50:60, 0:10] = True
    box = slices.view_box(bounding_box(mask), mask.shape, (2.0, 1.0, 1.0), margin_mm=10.0, smallest_mm=0.0)
    assert [(s.start, s.stop) for s in box][2][0] == 0
    assert (
        box[0].start in (44, 45)
        and box[0].stop in (65, 66)
        and box[1].start in (39, 40)
        and box[1].stop in (70, 71)
    )
    wide = slices.view_box(bounding_box(mask), mask.shape, (1.0, 1.0, 1.0), margin_mm=0.0, smallest_mm=60.0)
    assert all(s.stop - s.start >= 35 for s in wide) and wide[0].stop - wide[0].start >= 60


def test_raw_scan_that_is_gone_is_said(workspace: Workspace) -> None:
    shutil.rmtree(workspace.root / "raw")
    pictures = gallery.make(workspace, results.read(workspace))
    assert pictures and all(
        picture.jpeg is None and "raw scan not found" in str(picture.missing) for picture in pictures
    )
    assert "raw scan not found" in report.render(results.read(workspace), NO_PLOTS, pictures)


def test_raw_scan_of_another_shape_is_not_shown(workspace: Workspace) -> None:
    for path in workspace.root.glob("raw/*/ct.nii.gz"):
        fake_results.save(path, np.zeros((20, 22, 24)) + 30 * np.arange(24), (3.0, 2.0, 1.0), np.int16)
    assert all(picture.jpeg is None for picture in gallery.make(workspace, results.read(workspace)))


def test_unannotated_outline_is_named_in_the_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    image, reference, prediction = fake_results.draw((10, 12, 14), np.random.default_rng(0))
    reference[reference == 2] = 0
    labels: list[str] = []
    original = style.Figure.legend
    monkeypatch.setattr(
        style.Figure,
        "legend",
        lambda self, **more: (labels.extend(h.get_label() for h in more["handles"]), original(self, **more))[
            1
        ],
    )
    affine = np.diag([3.0, 2.0, 1.0, 1.0])
    case = slices.on_one_grid(*(Volume(array, affine) for array in (image, reference, prediction)))
    slices.draw_case(case, NAMES, io.BytesIO(), remarks={"Rectum": "not annotated"}, synthetic=True)
    assert (
        "Rectum (not annotated)" in labels
        and "synthetic data" in labels
        and {"reference", "prediction"} <= set(labels)
    )


@pytest.mark.real
def test_left_parotid_of_a_real_scan_is_shown_on_the_right(real_data: Path) -> None:
    from ctseg.geometry.volume import to_canonical

    values = artifacts.read_json(real_data / "openkbp" / "manifest.json")["labels"]
    label, _ = volume_files.read_integers(sorted((real_data / "openkbp" / "test").glob("*/labels.nii.gz"))[0])
    canonical = to_canonical(label).array
    for plane in slices.PLANES[:2]:
        columns = {
            name: np.mean(
                [
                    np.argwhere(plane.cut(canonical == values[name], i))[:, 1].mean()
                    for i in np.unique(np.argwhere(canonical == values[name])[:, plane.axis])
                ]
            )
            for name in ("LeftParotid", "RightParotid")
        }
        assert columns["LeftParotid"] > columns["RightParotid"] + 10


def test_names_in_letters_that_the_font_lacks_stay_apart_in_pictures():
    assert [style.short(name) for name in ("肝臓", "脾臓", "left 肾", "Größe", "печень")] == [
        "[809D 81D3]",
        "[813E 81D3]",
        "left [80BE]",
        "Größe",
        "печень",
    ]
