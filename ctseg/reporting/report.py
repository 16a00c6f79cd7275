"""The page `report.html` and the text `training_summary.txt`: numbers become words and table cells here.

The page is one file: pictures are embedded, nothing is loaded from anywhere, and every text is HTML-escaped by
the template engine. Undefined values are a dash, never a number.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ctseg.reporting.curves import by_structure
from ctseg.reporting.gallery import CasePicture
from ctseg.reporting.plots import dice_of, mean_of, number, with_reference
from ctseg.reporting.results import Results
from ctseg.reporting.slices import (
    ON_CT,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    STRUCTURE_PICTURES,
    case_means,
    display_window,
)

TEMPLATES = Path(__file__).parent
DASH = "–"
FEW_CASES = 10  # below it the verdict says that the number is only an indication
WIDE = 8  # more structures than this: the table of cases names the lowest one instead of all
FINDING_LINES, NAMED_CASES = 60, 6
SEVERITY_ORDER = {"ERROR": 0, "WARN": 1, "NOTE": 2}
STATE_WORDS = {"missed": "missed", "hallucinated": "hallucinated", "absent": "absent", "unannotated": "not annotated", "unevaluable": "cut off"}
STOP_WORDS = {"budget": "time budget used up", "epochs": "all epochs done", "patience": "no further gain", "running": "not finished"}


def render(found: Results, plots: Mapping[str, bytes], gallery: Sequence[CasePicture], *, with_viewer: bool = False) -> str:
    """The page as text. plots: file name -> PNG; gallery: pictures of cases in their order; with_viewer: whether viewer.html lies beside it."""
    return template("report.html.j2").render(
        title=title(found), synthetic=found.synthetic, evaluated=found.evaluated, notices=found.notices, verdict=verdict(found),
        headline=headline(found), facts=facts(found), table=structure_table(found), topology=topology_table(found), baseline=baseline_row(found), warnings=found.summary.get("warnings") or [],
        mode=(found.summary.get("settings") or {}).get("boundary_mode") or DASH, cases=case_table(found), findings=findings(found.preprocess_report),
        counts=_preprocess_counts(found.preprocess_report), plots={name: data_uri(content, "png") for name, content in plots.items()},
        gallery=[_figure(picture) for picture in gallery], colours=_legend(found.structures), limits=limits(found),
        hausdorff=bool(by_structure(found.history, "val_hausdorff")), structure_pictures=STRUCTURE_PICTURES, display=_display(found), n_structures=len(found.structures), with_viewer=with_viewer)


def _display(found: Results) -> str:
    """The grey values of the pictures in words."""
    low, high = display_window(found.manifest.get("window_hu"))
    return f"{'lung' if low < -1000 else 'soft tissue'} window {low:g} to {high:g} HU".replace("-", "−")


def template(name: str) -> jinja2.Template:
    """A page's template. Every page extends `page.html.j2` and shares `page.css`; texts are HTML-escaped."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True)
    environment.filters["commands"] = _commands
    return environment.get_template(name)


def _commands(line: str) -> Markup:
    """The line, escaped, with what stands between backticks set as code."""
    parts = [Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(str(line).split("`"))]
    return Markup("").join(parts)


def data_uri(content: bytes, kind: str) -> str:
    """An image as the text that a page can carry."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def text_of(value: object, form: str = "{:.3f}") -> str:
    """A number by `form`, a dash for None and anything that is no number."""
    return form.format(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else DASH


def plural(count: int, word: str) -> str:
    """"1 case", "2 cases"."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")


# ---- words ------------------------------------------------------------------------------------------------


def title(found: Results) -> str:
    """The page's title."""
    root = Path(str(found.manifest.get("data_root") or "")).name
    return f"Segmentation report: {found.history.get('model') or 'model'}" + (f" on {root}" if root and not found.synthetic else "")


def headline(found: Results) -> dict[str, Any]:
    """The big number and what stands beside it."""
    values = found.summary.get("headline") or {}
    better = ((found.summary.get("baselines") or {}).get("all_background") or {}).get("better_than_baseline")
    return {"dice": text_of(values.get("macro_dice")), "nsd": text_of(values.get("macro_nsd")), "hd95": text_of(values.get("macro_hd95_imputed"), "{:.1f}"),
            "better": better, "without": [str(name) for name in values.get("structures_without_reference") or []],
            "n_structures": len(values.get("structures") or []), "n_cases": len(case_means(found.rows))}


def verdict(found: Results) -> str:
    """One plain sentence on the test result."""
    if not found.evaluated:
        return "There is no test result yet: the model has been trained, but not evaluated on scans it has not seen."
    values = headline(found)
    if values["dice"] == DASH:
        return "The test references hold none of the structures, so nothing can be said about the model."
    names = found.summary["headline"]["structures"]
    means = {name: (found.summary.get(f"{name}_dice") or {}).get("mean") for name in names}
    known = {name: mean for name, mean in means.items() if mean is not None}
    scored = with_reference(found.rows)
    missed = sum(row["state"] == "missed" for row in scored)
    kind = "synthetic test scan" if found.synthetic else "test scan"
    text = f"On {plural(values['n_cases'], kind)} that took no part in training the mean Dice is {values['dice']}"
    if len(known) > 1:
        low, high = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
        text += f" over {plural(len(known), 'structure')} (lowest: {low} {known[low]:.3f}, highest: {high} {known[high]:.3f})"
    text += f"; {missed} of the {plural(len(scored), 'structure')} in these scans {'was' if missed == 1 else 'were'} missed entirely" if missed else "; no structure was missed entirely"
    if values["n_cases"] < FEW_CASES:
        text += "; so few cases give an indication, not a measurement"
    return text + "."


def limits(found: Results) -> list[str]:
    """What this page does not say."""
    lines = ["This is a research tool, not a medical device. Do not use its output for diagnosis or treatment.",
             "The scores hold for scans like the test scans: same kind of patients, scanners, protocols and labels. Elsewhere they can be much lower.",
             "The references were drawn by people or programs and have errors of their own; a Dice of 1 is neither reachable nor wanted.",
             "One training run and one split: another seed or another split gives somewhat other numbers."]
    if found.synthetic:
        lines.insert(0, "Everything here was made from synthetic scans. The numbers show that the pipeline works; they say nothing about real patients.")
    return lines


# ---- what was run -----------------------------------------------------------------------------------------


def facts(found: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of (name, value) on the network, the data and the run."""
    history, manifest, run = found.history, found.manifest, found.run
    train = (history.get("settings") or {}).get("train") or {}
    minutes = number(history, "seconds")
    best = text_of(history.get("best_val_dice"))
    stopped = STOP_WORDS.get(str(history.get("stopped")), str(history.get("stopped") or DASH))
    model = [("Network", str(history.get("model") or DASH)), ("Parameters", text_of(history.get("parameters"), "{:,}")),
             ("Training", f"{DASH if minutes is None else f'{minutes / 60:.1f}'} minutes, {plural(len(history.get('epochs') or []), 'epoch')}, {text_of(history.get('steps'), '{:,}')} steps"),
             ("Ended by", stopped), ("Best model", f"epoch {text_of(history.get('best_epoch'), '{:g}')}, validation Dice {best}"),
             ("Patches", _patches(train)), ("Device", str(run.get("device") or history.get("device") or DASH))]
    data = [("Data set", _data_name(manifest)), ("Structures", f"{len(found.structures)}: {', '.join(found.structures)}"), *_case_counts(manifest),
            ("Grid", _grid(manifest)), ("Intensities", _window(manifest))]
    seeds = (manifest.get("settings") or {}).get("seed"), train.get("seed")
    identity = [("Seed", f"split {text_of(seeds[0], '{:g}')}, training {text_of(seeds[1], '{:g}')}"), ("Split", _hash(manifest.get("splits_hash"))),
                ("Data", _hash(history.get("manifest_hash"))), ("Weights", _hash(run.get("checkpoint_sha256"))),
                ("Versions", ", ".join(f"{name} {value}" for name, value in sorted((manifest.get("versions") or {}).items())) or DASH)]
    return [("Model", model), ("Data", data), ("Identity", identity)]


def _patches(train: Mapping[str, Any]) -> str:
    size = train.get("patch_size")
    return f"{' × '.join(str(n) for n in size)} voxels, batch {train.get('batch_size', DASH)}" if isinstance(size, list) else DASH


def _data_name(manifest: Mapping[str, Any]) -> str:
    if not manifest:
        return DASH
    root = str(manifest.get("data_root") or "")
    shown = Path(root).name if Path(root).is_absolute() or root.startswith("..") else root  # folders above are nobody's business
    return f"{'synthetic, ' if manifest.get('synthetic') else ''}{shown or DASH}, layout {manifest.get('layout') or DASH}"


def _case_counts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Cases and, where different, patients per split."""
    if not manifest:
        return []
    parts = []
    for split, word in (("train", "training"), ("val", "validation"), ("test", "test")):
        mine = [case for case in manifest.get("cases", []) if case.get("split") == split]
        patients = len({case.get("patient_id") for case in mine})
        parts.append(f"{len(mine)} {word}" + (f" ({plural(patients, 'patient')})" if patients != len(mine) else ""))
    return [("Cases", ", ".join(parts))]


def _grid(manifest: Mapping[str, Any]) -> str:
    spacing = manifest.get("spacing_mm")
    size = " × ".join(f"{value:g}" for value in spacing) + " mm" if spacing else "one tensor per scan, finest spacing that holds the body"
    return f"{manifest.get('grid')}, {size}" if manifest.get("grid") else DASH


def _window(manifest: Mapping[str, Any]) -> str:
    window = manifest.get("window_hu")
    return f"{window[0]:g} to {window[1]:g} HU" if window else DASH


def _hash(value: object) -> str:
    return str(value)[:12] if value else DASH


# ---- tables -----------------------------------------------------------------------------------------------


TOPOLOGY_COLUMNS = (("td_lcc", "{:.3f}"), ("bd_lcc", "{:.3f}"), ("precision_lcc", "{:.3f}"), ("leakage_lcc", "{:.3f}"), ("td_full", "{:.3f}"), ("precision_full", "{:.3f}"),
                    ("breaks", "{:.1f}"), ("cldice", "{:.3f}"), ("betti_error", "{:.1f}"))


def topology_table(found: Results) -> list[dict[str, Any]]:
    """One line per structure that is a tube: means over the test scans that show it; empty without such structures."""
    lines = []
    for name, block in ((found.summary.get("topology") or {}) if found.evaluated else {}).items():
        cells = [text_of((block.get(column) or {}).get("mean"), form) for column, form in TOPOLOGY_COLUMNS]
        nothing = [text_of((block.get("all_background") or {}).get(column), form) for column, form in TOPOLOGY_COLUMNS]
        lines.append({"name": name, "n": block.get("n_reference"), "cells": cells, "nothing": nothing})
    return lines


def structure_table(found: Results) -> list[dict[str, Any]]:
    """One line per structure, all numbers from `summary_statistics.json`."""
    if not found.evaluated:
        return []
    tolerances = (found.summary.get("settings") or {}).get("tolerances_mm") or {}
    lines = []
    for name in found.structures:
        dice, nsd, imputed, defined = (found.summary.get(f"{name}_{metric}") or {} for metric in ("dice", "nsd", "hd95_imputed", "hd95"))
        counts = (found.summary.get("presence") or {}).get(name) or {}
        interval = dice.get("ci95")
        lines.append({
            "name": name, "dice": text_of(dice.get("mean")), "width": 100 * min(1.0, max(0.0, dice.get("mean") or 0.0)),
            "interval": f"{interval[0]:.2f}–{interval[1]:.2f}" + ("*" if "optimistic_ci" in (dice.get("flags") or []) else "") if interval else "",
            "median": text_of(dice.get("median")), "p05": text_of(dice.get("p05")), "nsd": text_of(nsd.get("mean")),
            "tolerance": _tolerance(tolerances.get(name)), "hd95_imputed": text_of(imputed.get("mean"), "{:.1f}"),
            "hd95": text_of(defined.get("mean"), "{:.1f}"), "hd95_n": text_of(defined.get("n"), "{:d}"),
            "counts": [text_of(counts.get(f"n_{state}"), "{:d}") for state in ("present", "missed", "hallucinated", "absent", "unannotated")],
            "unevaluable": counts.get("n_unevaluable") or 0})
    return lines


def _tolerance(values: object) -> str:
    first = values[0] if isinstance(values, (list, tuple)) and values else values
    return f"{first:g} mm" if isinstance(first, (int, float)) else ""


def baseline_row(found: Results) -> dict[str, str]:
    """The predictor that says "background" everywhere, as the same table shows it."""
    if not found.evaluated:
        return {}
    values = (found.summary.get("baselines") or {}).get("all_background") or {}
    names = found.summary["headline"]["structures"]
    imputed = [values[f"{name}_hd95_imputed"] for name in names if values.get(f"{name}_hd95_imputed") is not None]
    distance = values.get("macro_hd95_imputed", sum(imputed) / len(imputed) if imputed else None)
    dice = values.get("macro_dice")
    return {"dice": text_of(dice), "nsd": text_of(values.get("macro_nsd", dice)), "hd95_imputed": text_of(distance, "{:.1f}"), "missed": str(len(with_reference(found.rows)))}


def case_table(found: Results) -> dict[str, Any]:
    """Every test case, the lowest mean Dice first. Few structures: one column each; many: the lowest one by name."""
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
        distance, defined = mean_of(scored, "hd95_mm")
        cells = [_case_cell(next((row for row in mine if row["structure"] == name), None)) for name in ([] if wide else found.structures)]
        if wide:
            low = min(scored, key=dice_of, default=None)
            missed = [row for row in scored if row["state"] == "missed"]
            cells = [{"text": DASH if low is None else f"{low['structure']} {dice_of(low):.3f}", "state": "present"},
                     {"text": str(len(missed)), "state": "missed" if missed else "present"}]
        lines.append({"case": case, "mean": text_of(means.get(case)), "hd95": f"{distance:.1f}" if distance is not None and defined else DASH, "cells": cells})
    return {"columns": ["lowest structure", "missed"] if wide else found.structures, "lines": lines}


def _case_cell(row: Mapping[str, Any] | None) -> dict[str, str]:
    if row is None:
        return {"text": DASH, "state": "absent"}
    state = str(row["state"])
    if state == "present":
        return {"text": text_of(number(row, "dice")), "state": state}
    return {"text": "0.000 missed" if state == "missed" else STATE_WORDS.get(state, state), "state": state}


def findings(report: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing findings, skipped cases first: each refusal by itself, warnings and notes grouped by code."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for position, item in enumerate(report.get("findings") or []):
        severity, code = str(item.get("severity")), str(item.get("code"))
        key = (SEVERITY_ORDER.get(severity, 3), code, position if severity == "ERROR" else -1)
        groups.setdefault(key, []).append(item)
    lines = []
    for key in sorted(groups):
        items = groups[key]
        names = list(dict.fromkeys(str(item.get("case") or "-") for item in items))
        shown = ", ".join(names[:NAMED_CASES]) + (f" and {len(names) - NAMED_CASES} more" if len(names) > NAMED_CASES else "")
        lines.append({"severity": {0: "skipped", 1: "warning", 2: "note"}.get(key[0], "note"), "code": key[1], "cases": shown, "n": len(names),
                      "file": str(items[0].get("file") or "-") if len(items) == 1 else "", "cause": str(items[0].get("cause") or ""), "more": len(items) - 1,
                      "fix": str(items[0].get("fix") or "")})
    return {"lines": lines[:FINDING_LINES], "left_out": max(0, len(lines) - FINDING_LINES)}


def _preprocess_counts(report: Mapping[str, Any]) -> str:
    if not report:
        return ""
    return ", ".join(f"{text_of(report.get(key), '{:d}')} {word}" for key, word in (("found", "cases found"), ("processed", "processed"), ("cached", "unchanged since an earlier run"), ("skipped", "skipped"))
                     if key in report)


def _figure(picture: CasePicture) -> dict[str, Any]:
    choice = picture.choice
    return {"case": choice.case_id, "structure": choice.structure, "reason": choice.reason, "dice": f"{choice.dice:.3f}", "missed": choice.missed,
            "image": None if picture.jpeg is None else data_uri(picture.jpeg, "jpeg"), "why": picture.missing or ""}


def _legend(structures: Sequence[str]) -> dict[str, Any]:
    by_structure = len(structures) <= len(ON_CT)
    return {"by_structure": list(zip(structures, ON_CT)) if by_structure else [], "reference": REFERENCE_COLOUR, "prediction": PREDICTION_COLOUR}


# ---- text -------------------------------------------------------------------------------------------------


def training_summary(found: Results) -> str:
    """`training_summary.txt`: the run in plain text."""
    lines = [title(found) + (" (synthetic data)" if found.synthetic else ""), ""]
    for _, group in facts(found)[:1]:
        lines += [f"{name + ':':<14}{value}" for name, value in group]
    lines += ["", "Validation Dice (present structures only)", f"  {'structure':<28}{'best epoch':>12}{'last':>8}"]
    lines += [f"  {name:<28}{at_best:>12}{last:>8}" for name, at_best, last in _validation(found.history)]
    lines += ["", *(f"Notice: {line}" for line in found.notices), *([""] if found.notices else [])]
    if found.evaluated:
        lines += ["Test Dice (present-only; a missed structure counts as 0)", f"  {'structure':<28}{'mean':>8}{'median':>8}{'n':>6}{'missed':>8}"]
        for line in structure_table(found):
            n = (found.summary.get(f"{line['name']}_dice") or {}).get("n")
            lines.append(f"  {line['name']:<28}{line['dice']:>8}{line['median']:>8}{text_of(n, '{:d}'):>6}{line['counts'][1]:>8}")
        lines += [f"  {'mean over structures':<28}{headline(found)['dice']:>8}", f"  {'predicting nothing':<28}{baseline_row(found)['dice']:>8}"]
        if headline(found)["better"] is False:
            lines.append("  NOT BETTER THAN PREDICTING NOTHING")
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
