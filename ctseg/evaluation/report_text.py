"""The report of an evaluation for people: evaluation_report.txt, table by table.

Every table says what it is a mean of; a number without its count or tolerance would mislead.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ctseg.scoring import calibration
from ctseg.scoring import summary as scores
from ctseg.scoring.metrics import STATES, Row
from ctseg.scoring.shape import tubular

Table = tuple[str, list[str]]  # title, lines
Cell = str | int | float | None  # a float is shown with three digits, None as "-"

NOT_BETTER = "NOT BETTER THAN PREDICTING NOTHING"


def report_text(rows: Sequence[Row], summary: scores.Summary) -> str:
    """The content of `evaluation_report.txt`."""
    mark = " [synthetic data]" if summary["settings"].get("synthetic") else ""
    parts = [opening(rows, summary, mark)]
    for title, lines in (
        counts_table(summary),
        headline_table(summary),
        all_table(summary),
        distance_table(summary),
        worst_table(summary),
        *topology_tables(summary["topology"]),
        calibration_table(summary["calibration"]),
        failure_table(summary["failure_detection"]),
        ("Warnings", [f"- {text}" for text in summary["warnings"]] or ["none"]),
    ):
        parts.append("\n".join([title + mark, "-" * len(title + mark), *lines]))
    parts.append(
        "The means in summary.json follow nnU-Net's rules (hallucinated structures count 0, absent ones are\n"
        "dropped) and are not the headline above. Research tool, not a medical device.\n"
    )
    return "\n\n".join(parts)


def opening(rows: Sequence[Row], summary: scores.Summary, mark: str) -> str:
    """What was compared and how, with the tolerances of every structure."""
    settings = summary["settings"]
    taus = "; ".join(
        f"{name} {', '.join(f'{tau:g}' for tau in settings['tolerances_mm'][name])}"
        for name in summary["presence"]
    )
    return "\n".join(
        [
            f"Evaluation{mark}: boundary mode {settings['boundary_mode']}, "
            f"{len({row['case_id'] for row in rows})} cases of {settings['n_patients']} patients",
            "Distances in mm on each scan's own grid. HD95 is the larger of the two directed percentiles.",
            *textwrap.wrap(
                f"NSD tolerances in mm (the first is the main one): {taus}",
                100,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            ),
        ]
    )


def counts_table(summary: scores.Summary) -> Table:
    """How many cases are present, missed, hallucinated and so on."""
    header = ("present", "missed", "halluc.", "absent", "unannot.", "uneval.", "sens.", "spec.", "false mL")
    lines = [
        [
            name,
            *(found[f"n_{state}"] for state in STATES),
            found["sensitivity"],
            found["specificity"],
            number(found["false_volume_ml_mean"], 1),
        ]
        for name, found in summary["presence"].items()
    ]
    note = "halluc.: predicted, the reference holds none (false mL: mean volume). sens., spec.: of presence."
    return "Counts of cases", [*columns(("structure", *header), lines), note]


def headline_table(summary: scores.Summary) -> Table:
    """Present-only means, the macro line and the row of the predictor that predicts nothing; below them
    overlap and volume over the same cases."""
    nothing, head = summary["baselines"]["all_background"], summary["headline"]
    lines: list[Sequence[Cell]] = []
    for name, found in summary["presence"].items():
        dice = summary[f"{name}_dice"]
        lines.append(
            [
                name,
                dice["n"],
                dice["mean"],
                with_tolerance(summary, name, summary[f"{name}_nsd"]["mean"]),
                number(summary[f"{name}_hd95_imputed"]["mean"], 2),
                interval(dice),
                dice["median"],
                dice["p05"],
                found["n_missed"],
                found["n_hallucinated"],
                "!" if dice["mean"] is not None and not dice["mean"] > nothing[f"{name}_dice"] else "",
            ]
        )
    flags = [f"!: {NOT_BETTER}"] if any(line[-1] for line in lines) else []
    count = len(head["structures"])
    for title, source, words in (
        ("MACRO MEAN", head, NOT_BETTER if nothing["better_than_baseline"] is False else ""),
        ("all background", nothing, "what predicting nothing scores"),
    ):
        hd95 = number(source["macro_hd95_imputed"], 2)
        lines.append([title, count, source["macro_dice"], source["macro_nsd"], hd95, words])
    header = ("Dice", "NSD", "HD95 imp.", "95 % CI of Dice", "median", "p05", "miss.", "hall.", "")
    metrics = ("iou", "precision", "sensitivity", "volume_error")
    overlap: list[Sequence[Cell]] = [
        [name, summary[f"{name}_dice"]["n"], *(summary[f"{name}_{metric}"]["mean"] for metric in metrics)]
        for name in summary["presence"]
    ]
    overlap += [
        ["macro mean", count, number(head["macro_iou"])],
        ["nothing predicted", count, number(nothing["macro_iou"])],
    ]
    overlap += [
        [f"  {name}", summary[f"{name}_dice"]["n"], *(nothing[f"{name}_{metric}"] for metric in metrics)]
        for name in summary["presence"]
    ]
    return "Headline: mean over the cases whose reference holds the structure; a missed one counts 0", [
        *columns(("structure", "n", *header), lines),
        "A missed structure is charged the image diagonal in HD95 imp. No reference, no score.",
        "NSD is followed by its tolerance in mm; its macro mean is over the main tolerances.",
        "median, p05 (5th percentile): of Dice. miss., hall.: missed and hallucinated cases.",
        "* at an interval: fewer than 50 patients, so it is optimistic.",
        *flags,
        "",
        *columns(("the same cases", "n", "IoU", "precision", "recall", "vol. error"), overlap),
    ]


def all_table(summary: scores.Summary) -> Table:
    """With hallucinated cases, which overlap 0; absent cases never enter."""
    lines = []
    for name in summary["presence"]:
        own = {metric: summary["all_cases"][f"{name}_{metric}"] for metric in scores.ALL_METRICS}
        lines.append(
            [
                name,
                own["dice"]["n"],
                own["dice"]["mean"],
                own["iou"]["mean"],
                with_tolerance(summary, name, own["nsd"]["mean"]),
                number(own["hd_imputed"]["mean"], 2),
                number(own["hd95_imputed"]["mean"], 2),
                summary["baselines"]["all_background"][f"{name}_dice"],
            ]
        )
    header = ("structure", "n", "Dice", "IoU", "NSD", "HD imp.", "HD95 imp.", "all background: Dice")
    return "All: present, missed and hallucinated cases (the last count 0)", columns(header, lines)


def distance_table(summary: scores.Summary) -> Table:
    """Surface distances, imputed and where they are defined."""
    lines = []
    for name in summary["presence"]:
        hd, hd95, imputed, assd, masd = (
            summary[f"{name}_{metric}"] for metric in ("hd", "hd95", "hd95_imputed", "assd", "masd")
        )
        counted = [f"{number(one['mean'], 2)} (n={one['n']})" for one in (imputed, hd95, hd)]
        nothing = summary["baselines"]["all_background"][f"{name}_hd95_imputed"]
        plain = [number(value, 2) for value in (hd95["median"], assd["mean"], masd["mean"], nothing)]
        lines.append([name, *counted[:2], plain[0], counted[2], *plain[1:]])
    header = ("structure", "HD95 imputed", "where defined", "median", "HD defined", "ASSD", "MASD", "nothing")
    return "Surface distances in mm", [
        *columns(header, lines),
        "Where defined: missed structures have no distance, so this mean improves when structures are "
        "missed.",
        "median: of HD95 where defined. nothing: HD95 imputed of predicting nothing (all background).",
    ]


def worst_table(summary: scores.Summary) -> Table:
    """The cases of lowest Dice, structure by structure."""
    lines = [
        ["" if rank else name, case["case_id"], case["state"], case["dice"], number(case["hd95_mm"], 2)]
        for name, cases in summary["worst_cases"].items()
        for rank, case in enumerate(cases)
    ]
    header = ("structure", "case", "state", "Dice", "HD95")
    return f"Worst {scores.WORST} cases of each structure", columns(header, lines)


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


def topology_tables(topology: Mapping[str, Any]) -> list[Table]:
    """Pieces, holes and centre lines; and for trees how much of them was found, never without how much
    leaked."""
    trees = {name: block for name, block in topology.items() if tubular.GENERATIONS in block}
    found = [
        (
            "Topology, foreground 26-connected: mean over the cases whose reference holds the structure",
            topology,
            _SHAPE_SHOWN,
            "Betti error: of the numbers of pieces (b0), tunnels (b1) and cavities (b2). "
            "Extra parts touch nothing of the reference.",
        ),
        (
            "Trees: tree length (TD) and branches (BD) detected",
            trees,
            _TREE_SHOWN,
            "lcc: of the prediction's largest 6-connected part. TD and BD rise with leakage "
            "(predicted outside / reference).\n"
            "A missed tree has TD and BD 0 and no precision and no breaks: these means are then over "
            "fewer cases, (n=...).",
        ),
    ]
    return [(title, [*topology_lines(blocks, shown), note]) for title, blocks, shown, note in found if blocks]


def topology_lines(topology: Mapping[str, Any], shown: Sequence[tuple[str, str, int]]) -> list[str]:
    """A mean for each (head, column, digits), with its count where it is over fewer cases."""
    lines = []
    for name, block in topology.items():
        n = block["n_reference"]
        cells = [
            number(block[column]["mean"], digits)
            + (f" (n={block[column]['n']})" if 0 < block[column]["n"] < n else "")
            for _, column, digits in shown
        ]
        nothing = [number(block["all_background"][column], digits) for _, column, digits in shown]
        lines += [[name, n, *cells], ["  all background", n, *nothing]]
    return columns(("structure", "n", *(head for head, _, _ in shown)), lines)


def calibration_table(blocks: Mapping[str, Any]) -> Table:
    """The boundary band first: over the whole scan nearly every voxel is certain and right, which hides any
    fault."""
    title = "Calibration of the probabilities over all test cases"
    if not blocks:
        return title, ["not measured: only masks were given, no probabilities"]
    shown = [(region, name) for region in calibration.REGIONS for name in ("ECE", "Brier", "NLL")]
    lines = [
        [structure, *(number(block[region][name.lower()], 4) for region, name in shown)]
        for structure, block in blocks.items()
    ]
    return title, [
        *columns(("structure", *(f"{name} {region}" for region, name in shown)), lines),
        f"Band: within {calibration.BAND_STEPS} voxels of the outlines of reference or prediction. Whole: "
        "all voxels of the scans, most of them far from everything; never read it",
        f"alone. ECE: mean gap between probability and frequency in {calibration.BINS} bins, 0 is "
        "best. Only structures that a case is annotated for.",
    ]


def failure_table(block: Mapping[str, Any]) -> Table:
    """What confidence foretells, and the cases of lowest confidence."""
    title = "Failure detection: does agreement between predictions of one scan foretell its Dice?"
    if not block["structures"]:
        reason = block["reason"] or "no member predicted a structure that a reference holds"
        return title, [f"not measured: {reason}"]
    lines = [
        [name, *(own[key] for key in ("n", "spearman", "aurc", "aurc_random", "aurc_oracle"))]
        for name, own in (("cases (means)", block), *block["structures"].items())
    ]
    return title, [
        *columns(("", "n", "Spearman", "AURC", "any order", "best order"), lines),
        f"Confidence: mean pairwise Dice of {block['members']} predictions of each scan. AURC: "
        "mean risk (1 - Dice) of the most confident cases, lower is better.",
        f"{block['n_missed_by_all']} structures of the references were found by no member: no "
        "confidence warns of them.",
        "Lowest confidence:",
        *(
            printable(
                f"  {one['confidence']:.3f}  {one['case_id']} {one['structure']}, Dice {one['dice']:.3f}"
            )
            for one in block["worst_by_confidence"]
        ),
    ]


# ---- cells ------------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 3) -> str:
    """A number with its digits, "-" where it is undefined."""
    return "-" if value is None else f"{value:.{digits}f}"


def with_tolerance(summary: scores.Summary, name: str, value: float | None) -> str:
    """An NSD with its tolerance, for example "0.913 @3": without it the number says nothing."""
    return "-" if value is None else f"{value:.3f} @{summary['settings']['tolerances_mm'][name][0]:g}"


def interval(statistic: Mapping[str, Any]) -> str:
    """The interval of a mean, "*" where it is optimistic."""
    if statistic["ci95"] is None:
        return "-"
    low, high = statistic["ci95"]
    return f"{low:.3f} to {high:.3f}{'*' if 'optimistic_ci' in statistic['flags'] else ''}"


def printable(text: str) -> str:
    """The text with control characters shown as ?."""
    return "".join(c if c.isprintable() else "?" for c in text)


def columns(header: Sequence[str], lines: Sequence[Sequence[Cell]]) -> list[str]:
    """Columns aligned, the first one to the left, the others to the right. The last cell of a shorter line is
    text that takes the rest of it."""
    cells = [
        [printable(number(cell) if cell is None or isinstance(cell, float) else str(cell)) for cell in line]
        for line in (header, *lines)
    ]
    widths = [max(len(line[i]) for line in cells if len(line) == len(header)) for i in range(len(header))]
    widths[0] = max(len(line[0]) for line in cells)
    table = [
        "  ".join(
            cell.ljust(widths[i])
            if i == 0 or (len(line) < len(header) and i == len(line) - 1)
            else cell.rjust(widths[i])
            for i, cell in enumerate(line)
        ).rstrip()
        for line in cells
    ]
    return table if lines else [*table, "none"]
