"""The page `report.html` and the text `training_summary.txt`, put together from what its neighbours say in
words.

`verdict.py` has the sentences at the top, `tables.py` the tables, `facts.py` how it was made,
`other_runs.py` the comparison of runs, `glossary.py` the terms, `page.py` the way from there to one HTML
file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import Finding
from ctseg.manifest import from_record
from ctseg.palette import ON_CT
from ctseg.reporting import facts, glossary, other_runs, tables, verdict
from ctseg.reporting.gallery import CasePicture
from ctseg.reporting.page import data_uri, template
from ctseg.reporting.pictures.curves import Run
from ctseg.reporting.pictures.slices import (
    LUNG_HU,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    STRUCTURE_PICTURES,
    window_text,
)
from ctseg.reporting.results import Results

MOST = {"findings": 60, "cases": 6}  # lines of the table of findings, names of cases in a line
SEVERITIES = {"ERROR": "skipped", "WARN": "warning", "NOTE": "note"}


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
    window = (
        f"{'lung' if found.display_hu == LUNG_HU else 'soft tissue'} window {window_text(found.display_hu)}"
    )
    return template("report.html.j2").render(
        _scores(found),
        notices=found.notices,
        verdict=verdict.paragraphs(found),
        rule=verdict.RULE,
        tags={one.name: one.tag for one in verdict.structures(found)},
        macro_ci=tables.macro_ci(found) if found.evaluated else "",
        topology_columns=tables.TOPOLOGY_COLUMNS,
        cases=tables.case_table(found),
        state_words=tables.STATE_WORDS,
        worst=tables.worst_table(found),
        n_scored=len(found.scored),
        calibration=tables.calibration_table(found),
        comparison=other_runs.table(comparison),
        settings=facts.settings_lines(found),
        command=facts.command(found),
        findings=findings(found.preprocess_report),
        severities=SEVERITIES,
        most=MOST,
        report=found.preprocess_report,
        plots={name: data_uri(content, "png") for name, content in plots.items()},
        gallery=gallery,
        anchors={
            (picture.choice.case_id, picture.choice.structure): f"picture-{index}"
            for index, picture in enumerate(gallery, start=1)
        },
        colours={"structures": ON_CT, "reference": REFERENCE_COLOUR, "prediction": PREDICTION_COLOUR},
        glossary=glossary.GROUPS,
        hausdorff=bool(Run(found.history).by_structure("val_hausdorff")),
        structure_pictures=STRUCTURE_PICTURES,
        display=window,
        with_viewer=with_viewer,
    )


def training_summary(found: Results) -> str:
    """`training_summary.txt`: the run in plain text."""
    history = found.history
    measured = {
        name: [value for value in values if value is not None] for name, values in history["val_dice"].items()
    }
    best = history["best_epoch"]
    place = history["epochs"].index(best) if best in history["epochs"] else None
    lines = [
        (name, None if place is None else values[place], (measured[name] or [None])[-1])
        for name, values in history["val_dice"].items()
    ]
    return template("training_summary.txt.j2").render(_scores(found), notices=found.notices, validation=lines)


def _scores(found: Results) -> dict[str, Any]:
    """What page and text say alike."""
    return {
        "title": title(found),
        "synthetic": found.synthetic,
        "evaluated": found.evaluated,
        "summary": found.summary,
        "structures": found.structures,
        "facts": facts.facts(found),
        "table": tables.structure_table(found),
        "better": verdict.better_than_nothing(found),
        "not_better": verdict.NOT_BETTER,
    }


def title(found: Results) -> str:
    """The page's title."""
    root = Path(found.manifest.data_root).name if found.manifest is not None else ""
    return f"Segmentation report: {found.history['model']}" + (
        f" on {root}" if root and not found.synthetic else ""
    )


def findings(report: Mapping[str, Any]) -> list[list[Finding]]:
    """Preprocessing findings, skipped cases first: each refusal by itself, warnings and notes of one code
    together.
    """
    groups: dict[tuple[int, str, int], list[Finding]] = {}
    for position, item in enumerate(report.get("findings", [])):
        finding = from_record(Finding, item)
        order = list(SEVERITIES).index(finding.severity)
        groups.setdefault((order, finding.code, -1 if order else position), []).append(finding)
    return [groups[key] for key in sorted(groups)]
