"""The page `report.html` and the text `training_summary.txt`, put together from what its neighbours say in
words.

`verdict.py` has the sentences at the top, `tables.py` the tables, `facts.py` how it was made,
`other_runs.py` the comparison of runs, `glossary.py` the terms, `page.py` the way from there to one HTML
file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.palette import ON_CT
from ctseg.reporting import facts, glossary, other_runs, tables, verdict
from ctseg.reporting.gallery import CasePicture
from ctseg.reporting.page import data_uri, slim, template, text_of
from ctseg.reporting.pictures.curves import by_structure
from ctseg.reporting.pictures.slices import (
    LUNG_HU,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    STRUCTURE_PICTURES,
    display_window,
    window_text,
)
from ctseg.reporting.results import Results, dig

FINDING_LINES, NAMED_CASES = 60, 6
SEVERITY_ORDER = {"ERROR": 0, "WARN": 1, "NOTE": 2}


def render(
    found: Results,
    plots: Mapping[str, bytes],
    gallery: Sequence[CasePicture],
    *,
    with_viewer: bool = False,
    comparison: Mapping[str, Any] | None = None,
) -> str:
    """The page as text.

    plots: file name -> PNG; gallery: pictures of cases in their order; with_viewer: whether viewer.html lies
    beside it; comparison: record of `other_runs`.
    """
    settings = found.summary.get("settings") or {}
    return template("report.html.j2").render(
        title=title(found),
        synthetic=found.synthetic,
        evaluated=found.evaluated,
        notices=found.notices,
        verdict=verdict.paragraphs(found),
        rule=verdict.RULE,
        tags={one.name: one.tag for one in verdict.structures(found)},
        headline=verdict.headline(found),
        macro_ci=tables.macro_ci(found) if found.evaluated else "",
        table=tables.structure_table(found),
        baseline=tables.baseline_row(found),
        topology=tables.topology_table(found),
        warnings=found.summary.get("warnings") or [],
        mode=settings.get("boundary_mode") or "not recorded",
        cases=tables.case_table(found),
        worst=tables.worst_table(found, gallery),
        calibration=tables.calibration_table(found),
        failures=tables.failure_detection(found),
        comparison=other_runs.table(comparison),
        facts=facts.facts(found),
        settings=facts.settings_lines(found),
        commands=facts.commands(found),
        findings=findings(found.preprocess_report),
        counts=_preprocess_counts(found.preprocess_report),
        plots={name: data_uri(slim(content), "png") for name, content in plots.items()},
        gallery=[_figure(picture, index) for index, picture in enumerate(gallery, start=1)],
        colours=_legend(found.structures),
        limits=limits(found),
        glossary=glossary.GROUPS,
        hausdorff=bool(by_structure(found.history, "val_hausdorff")),
        structure_pictures=STRUCTURE_PICTURES,
        display=_display(found),
        n_structures=len(found.structures),
        with_viewer=with_viewer,
    )


def title(found: Results) -> str:
    """The page's title."""
    root = Path(str(found.manifest.get("data_root") or "")).name
    return f"Segmentation report: {found.history.get('model') or 'model'}" + (
        f" on {root}" if root and not found.synthetic else ""
    )


def limits(found: Results) -> list[str]:
    """What this page does not say."""
    lines = [
        "This is a research tool, not a medical device. Do not use its output for diagnosis or treatment.",
        "The scores hold for scans like the test scans: same kind of patients, scanners, protocols and "
        "labels. Elsewhere they can be much lower.",
        "The references were drawn by people or programs and have errors of their own; a Dice of 1 is "
        "neither reachable nor wanted.",
        "One training run and one split: another seed or another split gives somewhat other numbers.",
    ]
    if found.synthetic:
        lines.insert(
            0,
            "Everything here was made from synthetic scans. The numbers show that the pipeline works; "
            "they say nothing about real patients.",
        )
    return lines


def _display(found: Results) -> str:
    """The grey values of the pictures in words."""
    window = display_window(found.manifest.get("window_hu"))
    return f"{'lung' if window == LUNG_HU else 'soft tissue'} window {window_text(window)}"


def findings(report: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing findings, skipped cases first: each refusal by itself, warnings and notes grouped by
    code.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for position, item in enumerate(report.get("findings") or []):
        severity, code = str(item.get("severity")), str(item.get("code"))
        key = (SEVERITY_ORDER.get(severity, 3), code, position if severity == "ERROR" else -1)
        groups.setdefault(key, []).append(item)
    lines = []
    for key in sorted(groups):
        items = groups[key]
        names = list(dict.fromkeys(str(item.get("case") or "-") for item in items))
        shown = ", ".join(names[:NAMED_CASES]) + (
            f" and {len(names) - NAMED_CASES} more" if len(names) > NAMED_CASES else ""
        )
        lines.append(
            {
                "severity": {0: "skipped", 1: "warning", 2: "note"}.get(key[0], "note"),
                "code": key[1],
                "cases": shown,
                "n": len(names),
                "file": str(items[0].get("file") or "-") if len(items) == 1 else "",
                "cause": str(items[0].get("cause") or ""),
                "more": len(items) - 1,
                "fix": str(items[0].get("fix") or ""),
            }
        )
    return {"lines": lines[:FINDING_LINES], "left_out": max(0, len(lines) - FINDING_LINES)}


def _preprocess_counts(report: Mapping[str, Any]) -> str:
    if not report:
        return ""
    return ", ".join(
        f"{text_of(report.get(key), '{:d}')} {word}"
        for key, word in (
            ("found", "cases found"),
            ("processed", "processed"),
            ("cached", "unchanged since an earlier run"),
            ("skipped", "skipped"),
        )
        if key in report
    )


def _figure(picture: CasePicture, index: int) -> dict[str, Any]:
    choice = picture.choice
    return {
        "id": f"picture-{index}",
        "case": choice.case_id,
        "structure": choice.structure,
        "reason": choice.reason,
        "dice": f"{choice.dice:.3f}",
        "missed": choice.missed,
        "image": None if picture.jpeg is None else data_uri(picture.jpeg, "jpeg"),
        "why": picture.missing or "",
    }


def _legend(structures: Sequence[str]) -> dict[str, Any]:
    by_structure = len(structures) <= len(ON_CT)
    return {
        "by_structure": list(zip(structures, ON_CT)) if by_structure else [],
        "reference": REFERENCE_COLOUR,
        "prediction": PREDICTION_COLOUR,
    }


# ---- text -------------------------------------------------------------------------------------------------


def training_summary(found: Results) -> str:
    """`training_summary.txt`: the run in plain text."""
    lines = [title(found) + (" (synthetic data)" if found.synthetic else ""), ""]
    for _, group in facts.facts(found)[:1]:
        lines += [f"{name + ':':<14}{value}" for name, value in group]
    lines += [
        "",
        "Validation Dice (present structures only)",
        f"  {'structure':<28}{'best epoch':>12}{'last':>8}",
    ]
    lines += [f"  {name:<28}{at_best:>12}{last:>8}" for name, at_best, last in _validation(found.history)]
    lines += ["", *(f"Notice: {line}" for line in found.notices), *([""] if found.notices else [])]
    if found.evaluated:
        lines += [
            "Test Dice (present-only; a missed structure counts as 0)",
            f"  {'structure':<28}{'mean':>8}{'median':>8}{'n':>6}{'missed':>8}",
        ]
        for line in tables.structure_table(found):
            n = dig(found.summary, f"{line['name']}_dice", "n")
            scores = f"{line['dice']:>8}{line['median']:>8}{text_of(n, '{:d}'):>6}{line['counts'][1]:>8}"
            lines.append(f"  {line['name']:<28}{scores}")
        lines += [
            f"  {'mean over structures':<28}{verdict.headline(found)['dice']:>8}",
            f"  {'predicting nothing':<28}{tables.baseline_row(found)['dice']:>8}",
        ]
        if verdict.headline(found)["better"] is False:
            lines.append(f"  {verdict.NOT_BETTER}")
        lines.append("")
    lines.append("Research tool, not a medical device.")
    return "\n".join(lines) + "\n"


def _validation(history: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """Structure, Dice at the best epoch, last measured Dice."""
    epochs = list(history.get("epochs") or [])
    best = epochs.index(history["best_epoch"]) if history.get("best_epoch") in epochs else None
    for name, values in (history.get("val_dice") or {}).items():
        measured = [value for value in values if value is not None]
        at_best = values[best] if best is not None and best < len(values) else None
        yield str(name), text_of(at_best), text_of(measured[-1] if measured else None)
