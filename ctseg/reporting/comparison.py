"""The page, the picture and the tables of a comparison of methods, from one record.

The record (JSON values only; what is missing or None is shown as a dash):

    format, version   "ctseg-comparison", 1
    title             text, may be left out
    synthetic         whether the scans were generated
    facts             name -> text on data, split, budget, device; shown in this order
    statistics        `ctseg.scoring.comparison.Comparison.record()`
    costs             method -> parameters, peak_memory_gb, seconds_per_step, steps, seconds_per_scan, and
                      beside these hd95_imputed_mm: macro HD95 in which a missed structure counts as the image
                      diagonal
    topology          method -> column name -> mean, may be left out; the columns of the first method that has
                      any
    warnings          further sentences for the top of the page

Written: comparison.json (the record), comparison.csv (one line per method), comparison_pairs.csv (one line
per pair, metric and structure), comparison.png, comparison.html (one file, nothing is loaded from
anywhere).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from ctseg.artifacts import write_json, write_text
from ctseg.reporting.method_sentences import METRIC_WORDS, p_text
from ctseg.reporting.page import DASH, data_uri, minus, plural, starred, template, text_of
from ctseg.reporting.pictures import style
from ctseg.reporting.pictures.style import Target
from ctseg.reporting.results import dig
from ctseg.scoring.comparison import ALL, TOO_SMALL
from ctseg.tables import write_csv

Record = Mapping[str, Any]
FORMAT, VERSION = "ctseg-comparison", 1
COSTS = ("parameters", "peak_memory_gb", "seconds_per_step", "steps", "seconds_per_scan")
PAIR_COLUMNS = (
    "reference",
    "method",
    "metric",
    "structure",
    "n",
    "difference",
    "ci_low",
    "ci_high",
    "p",
    "p_holm",
    "sd_reference",
    "sd_method",
    "separable",
    "verdict",
    "missed_reference",
    "scored_reference",
    "missed_method",
    "scored_method",
    "flags",
)


def write_comparison(record: Record, folder: Path) -> None:
    """Write the five files of a comparison into `folder`."""
    picture = io.BytesIO()
    draw(record, picture)
    write_json(folder / "comparison.json", record)
    lines = method_lines(record)
    write_csv(folder / "comparison.csv", lines, list(lines[0]))
    write_csv(folder / "comparison_pairs.csv", pair_lines(record), PAIR_COLUMNS)
    draw(record, folder / "comparison.png")
    write_text(folder / "comparison.html", render(record, picture.getvalue()))


# ---- tables -----------------------------------------------------------------------------------------------


def method_lines(record: Record) -> list[dict[str, Any]]:
    """One line per method, the columns of the topology last; None is undefined."""
    found = record["statistics"]
    ranks = {rank["method"]: rank for rank in found["ranking"]}
    lines = []
    for score in found["methods"]:
        name = score["method"]
        rank, costs = ranks[name], dig(record, "costs", name) or {}
        low, high = score["macro_ci95"]["dice"] or (None, None)
        rank_low, rank_high = rank["ci95"] or (None, None)
        lines.append(
            {
                "method": name,
                "dice": score["macro"]["dice"],
                "dice_ci_low": low,
                "dice_ci_high": high,
                "dice_seed_sd": score["seed_sd"]["dice"],
                "nsd": score["macro"]["nsd"],
                "hd95_imputed_mm": costs.get("hd95_imputed_mm"),
                "hd95_where_found_mm": score["macro"]["hd95_mm"],
                "missed": score["missed"],
                "scored": score["scored"],
                "seeds": len(score["seeds"]),
                "rank": rank["rank"],
                "rank_low": rank_low,
                "rank_high": rank_high,
                "wins": rank["wins"],
                **{key: costs.get(key) for key in COSTS},
                **{key: dig(record, "topology", name, key) for key in topology_columns(record)},
            }
        )
    return lines


def pair_lines(record: Record) -> list[dict[str, Any]]:
    """One line per pair, metric and structure."""
    lines = []
    for pair in record["statistics"]["pairs"]:
        low, high = pair["ci95"] or (None, None)
        lines.append(
            {
                **{key: pair.get(key) for key in PAIR_COLUMNS},
                "ci_low": low,
                "ci_high": high,
                "flags": " ".join(pair["flags"]),
            }
        )
    return lines


def topology_columns(record: Record) -> list[str]:
    return next((list(columns) for columns in (record.get("topology") or {}).values() if columns), [])


# ---- page -------------------------------------------------------------------------------------------------


def render(record: Record, picture: bytes) -> str:
    """The page as text. picture: the PNG of `draw`."""
    found = record["statistics"]
    pairs = [pair_cells(pair) for pair in found["pairs"]]
    return template("comparison.html.j2").render(
        title=record.get("title") or f"Comparison of {plural(len(found['methods']), 'method')}",
        synthetic=bool(record.get("synthetic")),
        notices=[],
        sentences=[found["sentences"][score["method"]] for score in found["methods"]],
        warnings=[*found["warnings"], *(record.get("warnings") or [])],
        methods=[method_cells(line, topology_columns(record)) for line in method_lines(record)],
        topology=topology_columns(record),
        reference=found["reference"],
        first=[pair for pair in pairs if pair["with_reference"]],
        others=[pair for pair in pairs if not pair["with_reference"]],
        n_tests=found["n_tests"],
        n_patients=found["n_patients"],
        n_cases=found["n_cases"],
        kendall=text_of(found["kendall_tau"], "{:.2f}"),
        facts=[(str(key), str(value)) for key, value in (record.get("facts") or {}).items()],
        picture=data_uri(picture, "png"),
        n_structures=len(found["structures"]),
    )


def method_cells(line: Mapping[str, Any], topology: Sequence[str]) -> dict[str, Any]:
    """A method's line as words."""
    few = line["dice_ci_low"] is not None
    return {
        "method": line["method"],
        "dice": text_of(line["dice"]),
        "width": 100 * min(1.0, max(0.0, line["dice"] or 0.0)),
        "interval": f"{line['dice_ci_low']:.3f}–{line['dice_ci_high']:.3f}" if few else "",
        "sd": text_of(line["dice_seed_sd"]),
        "seeds": plural(line["seeds"], "run"),
        "nsd": text_of(line["nsd"]),
        "imputed": text_of(line["hd95_imputed_mm"], "{:.1f}"),
        "found": text_of(line["hd95_where_found_mm"], "{:.1f}"),
        "missed": str(line["missed"]),
        "scored": str(line["scored"]),
        "rank": text_of(line["rank"], "{:g}"),
        "rank_range": f"{line['rank_low']:g}–{line['rank_high']:g}" if line["rank_low"] is not None else "",
        "wins": text_of(line["wins"], "{:.0%}"),
        "parameters": count_text(line["parameters"]),
        "memory": text_of(line["peak_memory_gb"], "{:.2f}"),
        "step": text_of(line["seconds_per_step"], "{:.3g}"),
        "steps": text_of(line["steps"], "{:,}"),
        "scan": text_of(line["seconds_per_scan"], "{:.3g}"),
        "topology": [text_of(line[key], "{:.3g}") for key in topology],
    }


def count_text(value: object) -> str:
    """Parameters as "2.77 M" or "850 k"."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return DASH
    return (
        f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k" if value >= 1e4 else f"{value:,}"
    )


def pair_cells(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the pairwise table as words."""
    form, unit = ("{:+.2f}", " mm") if pair["metric"] == "hd95_mm" else ("{:+.3f}", "")
    spread = [text_of(pair[key], form.replace("+", "")) for key in ("sd_reference", "sd_method")]
    untested = pair["verdict"] if pair["verdict"] == TOO_SMALL else DASH
    return {
        **{key: pair[key] for key in ("reference", "method", "structure", "n", "verdict", "with_reference")},
        "metric": METRIC_WORDS.get(pair["metric"], pair["metric"]),
        "difference": minus(text_of(pair["difference"], form + unit)),
        "interval": minus(starred(pair["ci95"], pair["flags"], form)),
        "p": bare_p(pair["p"], untested),
        "holm": bare_p(pair["p_holm"]),
        "spread": " / ".join(spread),
        "missed": f"{pair['missed_reference']} / {pair['missed_method']}",
        "any_missed": bool(pair["missed_reference"] or pair["missed_method"]),
        "whole": pair["structure"] == ALL,
    }


def bare_p(value: float | None, untested: str = DASH) -> str:
    """A p for a column that is headed so: "0.012", "< 0.001"."""
    return untested if value is None else p_text(value).removeprefix("p = ").removeprefix("p ")


# ---- picture ----------------------------------------------------------------------------------------------


def draw(record: Record, target: Target) -> None:
    """`comparison.png`: paired differences in Dice to the reference per structure, and the macro Dice of
    every run.
    """
    found = record["statistics"]
    others = [score["method"] for score in found["methods"] if score["method"] != found["reference"]]
    lines = (1 + len(found["structures"])) * max(1, len(others))
    size = (11.0, 2.2 + max(0.26 * lines + 0.15 * len(found["structures"]), 0.45 * len(found["methods"])))
    with style.picture(
        target,
        size,
        title=f"{plural(len(found['methods']), 'method')} on {plural(found['n_patients'], 'test patient')}",
        synthetic=bool(record.get("synthetic")),
    ) as figure:
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.25, 1]})
        draw_differences(left, found, others)
        draw_runs(right, found)
        if others:
            figure.legend(
                *left.get_legend_handles_labels(), loc="outside lower left", ncols=min(5, len(others))
            )


def draw_differences(axes: Axes, found: Mapping[str, Any], others: Sequence[str]) -> None:
    """The difference of every method to the reference, overall and per structure, with its interval."""
    axes.set_title(f"Dice: difference to {style.short(found['reference'])}")
    if not others:
        return style.say(axes, "only one method")
    groups = [ALL, *found["structures"]]
    pairs = {
        (pair["method"], pair["structure"]): pair
        for pair in found["pairs"]
        if pair["with_reference"] and pair["metric"] == "dice" and pair["difference"] is not None
    }
    step = 0.8 / len(others)
    for i, name in enumerate(others):
        shift = step * (i - (len(others) - 1) / 2)
        shown = [(n + shift, pairs[name, group]) for n, group in enumerate(groups) if (name, group) in pairs]
        for place, pair in shown:
            if pair["ci95"]:
                draw_interval(axes, pair["ci95"], place, style.colour(i), linewidth=2, alpha=0.75)
        x, y = [pair["difference"] for _, pair in shown], [place for place, _ in shown]
        marker, more = style.MARKERS[i % len(style.MARKERS)], {"label": style.short(name), "zorder": 3}
        style.dots(axes, x, y, marker, colour=style.colour(i), size=6.5, **more)
    axes.axvline(0, color=style.INK, linewidth=1)
    style.name_rows(axes, [style.short(group) for group in groups])
    axes.set_xlabel("left: worse than it, right: better; bars: 95 % CI over patients")


def draw_interval(axes: Axes, interval: Sequence[float], place: float, colour: str, **more: Any) -> None:
    """A bar from the lower to the upper limit at the height `place`."""
    axes.plot(interval, [place] * 2, "-", color=colour, solid_capstyle="butt", **more)


def draw_runs(axes: Axes, found: Mapping[str, Any]) -> None:
    """A dot per training run, a bar for the 95 % CI over patients of the mean over the runs."""
    axes.set_title("Mean Dice, one dot per training run")
    names = [score["method"] for score in found["methods"]]
    others = [name for name in names if name != found["reference"]]
    colours = {found["reference"]: style.INK} | {name: style.colour(i) for i, name in enumerate(others)}
    for place, score in enumerate(found["methods"]):
        colour, interval, mean = colours[score["method"]], score["macro_ci95"]["dice"], score["macro"]["dice"]
        if interval:
            draw_interval(axes, interval, place, colour, linewidth=7, alpha=0.2)
        if mean is not None:
            axes.plot([mean] * 2, [place - 0.26, place + 0.26], "-", color=colour, linewidth=2)
        values = [value for value in score["seed_macro"]["dice"].values() if value is not None]
        style.dots(axes, values, [place] * len(values), "o", colour=colour, alpha=0.85, zorder=3)
    style.name_rows(axes, [style.short(name) for name in names])
    axes.set_xlabel("mean over structures; pale bar: 95 % CI over patients")
