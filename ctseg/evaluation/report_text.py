"""The report of an evaluation for people: evaluation_report.txt, table by table.

Every table says what it is a mean of; a number without its count or tolerance would mislead.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ctseg.scoring import calibration
from ctseg.scoring import summary as scores
from ctseg.scoring.metrics import Row
from ctseg.scoring.shape import tubular

NOT_BETTER = "NOT BETTER THAN PREDICTING NOTHING"
HEADLINE = (
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
)


def report_text(rows: Sequence[Row], summary: scores.Summary) -> str:
    """The content of `evaluation_report.txt`."""
    settings = summary["settings"]
    mark = " [synthetic data]" if settings.get("synthetic") else ""
    names = list(summary["presence"])
    parts = [
        opening(rows, settings, names, mark),
        counts_table(summary, names, mark),
        headline_table(summary, names, mark),
        "\n".join(overlap_lines(summary, names)),
        all_table(summary, names, mark),
        distance_table(summary, names, mark),
        worst_table(summary, names, mark),
        *topology_tables(summary["topology"], mark),
        calibration_table(summary["calibration"], mark),
        failure_table(summary["failure_detection"], mark),
        _titled("Warnings", mark, [f"- {text}" for text in summary["warnings"]] or ["none"]),
        "The means in summary.json follow nnU-Net's rules (hallucinated structures count 0, absent ones are\n"
        "dropped) and are not the headline above. Research tool, not a medical device.",
    ]
    return "\n\n".join(parts) + "\n"


def opening(rows: Sequence[Row], settings: Mapping[str, Any], names: Sequence[str], mark: str) -> str:
    """What was compared and how, with the tolerances of every structure."""
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


def counts_table(summary: scores.Summary, names: Sequence[str], mark: str) -> str:
    """How many cases are present, missed, hallucinated and so on."""
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


def headline_table(summary: scores.Summary, names: Sequence[str], mark: str) -> str:
    """Present-only means, the macro line and the row of the predictor that predicts nothing."""
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
        HEADLINE,
        lines,
    )
    note = (
        "A missed structure is charged the image diagonal in HD95 imp. No reference, no score.\n"
        "NSD is followed by its tolerance in mm; its macro mean is over the main tolerances.\n"
        "median, p05 (5th percentile): of Dice. miss., hall.: missed and hallucinated cases.\n"
        "* at an interval: fewer than 50 patients, so it is optimistic."
    )
    return "\n".join([table, note, *([f"!: {NOT_BETTER}"] if flagged else [])])


def overlap_lines(summary: scores.Summary, names: Sequence[str]) -> list[str]:
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


def all_table(summary: scores.Summary, names: Sequence[str], mark: str) -> str:
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


def distance_table(summary: scores.Summary, names: Sequence[str], mark: str) -> str:
    """Surface distances, imputed and where they are defined."""
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


def worst_table(summary: scores.Summary, names: Sequence[str], mark: str) -> str:
    """The cases of lowest Dice, structure by structure."""
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


def topology_tables(topology: Mapping[str, Any], mark: str) -> list[str]:
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


def calibration_table(blocks: Mapping[str, Any], mark: str) -> str:
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


def failure_table(block: Mapping[str, Any], mark: str) -> str:
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
