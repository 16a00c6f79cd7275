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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from ctseg.artifacts import write_json, write_text
from ctseg.reporting.method_sentences import METRIC_WORDS
from ctseg.reporting.page import data_uri, plural, template
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
    write_json(folder / "comparison.json", record)
    lines = method_lines(record)
    write_csv(folder / "comparison.csv", lines, list(lines[0]))
    write_csv(folder / "comparison_pairs.csv", pair_lines(record), PAIR_COLUMNS)
    draw(record, folder / "comparison.png")
    write_text(folder / "comparison.html", render(record, (folder / "comparison.png").read_bytes()))


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
        lines.append({**pair, "ci_low": low, "ci_high": high, "flags": " ".join(pair["flags"])})
    return lines


def topology_columns(record: Record) -> list[str]:
    return next((list(columns) for columns in (record.get("topology") or {}).values() if columns), [])


# ---- page -------------------------------------------------------------------------------------------------


def render(record: Record, picture: bytes) -> str:
    """The page as text. picture: the PNG of `draw`."""
    found = record["statistics"]
    return template("comparison.html.j2").render(
        title=record.get("title") or f"Comparison of {plural(len(found['methods']), 'method')}",
        synthetic=record.get("synthetic", False),
        notices=[],
        found=found,
        warnings=[*found["warnings"], *record.get("warnings", [])],
        methods=method_lines(record),
        topology=topology_columns(record),
        metric_words=METRIC_WORDS,
        all_structures=ALL,
        too_small=TOO_SMALL,
        facts=record.get("facts", {}),
        picture=data_uri(picture, "png"),
    )


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
