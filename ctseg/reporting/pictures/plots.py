"""Pictures of scores, drawn from the rows of `per_case.csv` (one row per case and structure).

A row is a mapping with at least `case_id`, `structure`, `state`, `dice`, `hd95_mm`; None is "undefined".
Only cases with the structure in the reference count ("present-only"); a missed structure counts as Dice 0
and is marked. Every label carries its n. One line per structure, so that 60 structures stay readable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm

from ctseg.reporting.pictures import style
from ctseg.reporting.pictures.style import Target
from ctseg.scoring.metrics import MISSED, Row, grouped, has_reference

NO_REFERENCE = "no test case with a reference"
DICE_AXIS = "Dice (0 = no overlap, 1 = perfect)"
ByStructure = Mapping[str, Sequence[Row]]


def by_structure(rows: Sequence[Row], structures: Sequence[str]) -> dict[str, list[Row]]:
    """Structure -> the rows that enter its headline: it is in the reference, found (`present`) or not
    (`missed`).
    """
    found = grouped(filter(has_reference, rows), "structure")
    return {name: found.get(name, []) for name in structures}


def is_missed(rows: Sequence[Row]) -> np.ndarray:
    """(n,) whether the structure of the row was missed."""
    return np.array([row["state"] == MISSED for row in rows], dtype=bool)


def label_of(name: str, rows: Sequence[Row]) -> str:
    """ "Bladder (n=12, 1 missed)"; the name is shortened, the counts are not."""
    missed = is_missed(rows).sum()
    return f"{style.short(name)} (n={len(rows)}{f', {missed} missed' if missed else ''})"


def spread_out(count: int, index: int) -> np.ndarray:
    """(count,) small fixed offsets so that points of one row do not hide each other."""
    return np.random.default_rng(index).uniform(-0.22, 0.22, count)


# ---- distributions ----------------------------------------------------------------------------------------


def dice_boxplots(rows: Sequence[Row], structures: Sequence[str], path: Target, synthetic: bool) -> None:
    """`dice_boxplots.png`: the test Dice of every case, box and median where there are at least five."""
    size = (10.0, 2.0 + 0.42 * max(1, len(structures)))
    with style.picture(path, size, title="Test Dice per structure", synthetic=synthetic) as figure:
        axes = figure.subplots()
        scored = by_structure(rows, structures)
        if not any(map(has_reference, rows)):
            return style.say(axes, NO_REFERENCE)
        for index, own in enumerate(scored.values()):
            draw_distribution(axes, index, own)
        style.name_rows(axes, [label_of(*item) for item in scored.items()])
        axes.set(xlim=(-0.03, 1.03), xticks=np.arange(0, 1.01, 0.1))
        axes.set_xlabel(f"{DICE_AXIS}; cases with the structure only, a missed one counts as 0")
        axes.plot([], [], "o", color=style.PALETTE[0], markersize=4.5, label="one case")
        axes.plot([], [], "-", color=style.INK, linewidth=2.4, label="median")
        style.missed_dots(axes, [], [], label="missed: nothing predicted")
        above = 2.2 if len(structures) > style.MANY_ROWS else 0.1
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderaxespad=above)


def draw_distribution(axes: Axes, index: int, rows: Sequence[Row]) -> None:
    """The Dice of one structure's cases in line `index`."""
    if not rows:
        words: Any = {"ha": "center", "va": "center", "fontsize": 8.5, "color": style.GREY}
        axes.text(0.5, index, "not in any test reference", **words)
        return
    blue = style.PALETTE[0]
    median: Any = {"color": style.INK, "linewidth": 2.4}
    values, missed = np.array([row["dice"] for row in rows]), is_missed(rows)
    if len(values) >= 5:
        axes.boxplot(
            values,
            positions=[index],
            orientation="horizontal",
            widths=0.62,
            showfliers=False,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": "#dbe9f4", "edgecolor": blue},
            medianprops=median,
            whiskerprops={"color": blue},
            capprops={"color": blue},
        )
    else:
        axes.plot([np.median(values)] * 2, [index - 0.3, index + 0.3], **median)
    heights = index + spread_out(len(values), index)
    found: Any = {"color": blue, "markersize": 4.5, "alpha": 0.75, "markeredgewidth": 0, "zorder": 3}
    axes.plot(values[~missed], heights[~missed], "o", **found)
    style.missed_dots(axes, values[missed], heights[missed])


# ---- Dice against distance --------------------------------------------------------------------------------


def dice_vs_hausdorff(rows: Sequence[Row], structures: Sequence[str], path: Target, synthetic: bool) -> None:
    """`dice_vs_hausdorff.png`: overlap against the 95th percentile distance, one point per case and
    structure.

    A missed structure has no distance: it stands at Dice 0 in a strip of its own at the right. With more
    structures than colours the ones with the lowest mean Dice are coloured and the others are grey.
    """
    title = "Test Dice against Hausdorff distance"
    with style.picture(path, (10, 6.2), title=title, synthetic=synthetic) as figure:
        axes = figure.subplots()
        scored = list(filter(has_reference, rows))
        if not scored:
            return style.say(axes, NO_REFERENCE)
        missed = is_missed(scored).sum()
        limit = max([*distances_and_dice(scored)[0], 1.0]) * 1.15
        axes.set_xscale("symlog", linthresh=1.0, linscale=0.4)  # one far outlier must not squeeze the others
        axes.set(xlim=(-0.08, limit * (1.5 if missed else 1.0)), ylim=(-0.03, 1.03))
        draw_points(axes, by_structure(rows, structures))
        if missed:
            style.missed_strip(axes, limit, limit * 1.5, f"missed: Dice 0, no distance (n={missed})")
            places = limit * (1.24 + 0.7 * spread_out(missed, 0))
            style.missed_dots(axes, places, np.zeros(missed), clip_on=False)
        ticks = [tick for tick in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= limit]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("Hausdorff distance, 95th percentile (mm, logarithmic above 1); smaller is better")
        axes.set_ylabel(DICE_AXIS)
        figure.legend(loc="outside right upper")


def draw_points(axes: Axes, scored: ByStructure) -> None:
    """A colour and a marker per structure; where they are too many, grey for those of higher mean Dice."""
    used = {name: own for name, own in scored.items() if own}
    lowest = sorted(used, key=lambda name: float(np.mean([row["dice"] for row in used[name]])))
    most = len(style.PALETTE) - (len(used) > len(style.PALETTE))  # grey is taken by the others
    others = [name for name in used if name in lowest[most:]]
    if others:
        x, y = distances_and_dice([row for name in others for row in used.pop(name)])
        grey: Any = {"alpha": 0.35, "markersize": 4, "markeredgewidth": 0, "zorder": 1.5}
        label = f"{len(others)} others (n={len(x)})"
        axes.plot(x, y, "o", color=style.PALETTE[-1], label=label, **grey)
    for index, (name, own) in enumerate(used.items()):
        x, y = distances_and_dice(own)
        label = f"{style.short(name)} (n={len(x)})"
        style.dots(axes, x, y, style.MARKERS[index], colour=style.colour(index), alpha=0.8, label=label)


def distances_and_dice(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """HD95 in mm and Dice of the rows in which both are defined."""
    found = [row for row in rows if row["hd95_mm"] is not None]
    return [row["hd95_mm"] for row in found], [row["dice"] for row in found]


# ---- all metrics ------------------------------------------------------------------------------------------

SCORES = {"dice": "Dice", "iou": "IoU", "precision": "precision", "recall": "recall", "nsd": "NSD"}
DISTANCES = {
    "hd95_imputed_mm": "HD95\nimputed",
    "hd95_mm": "HD95\ndefined",
    "hd_mm": "HD\ndefined",
    "assd_mm": "ASSD\ndefined",
}


def metrics_heatmap(rows: Sequence[Row], structures: Sequence[str], path: Target, synthetic: bool) -> None:
    """`metrics_heatmap.png`: mean of every metric per structure, scores on the left, distances in mm on the
    right.
    """
    size = (11.0, 2.4 + 0.36 * max(1, len(structures)))
    with style.picture(path, size, title="Test metrics per structure: means", synthetic=synthetic) as figure:
        panels = figure.subplots(1, 2, gridspec_kw={"width_ratios": [len(SCORES), len(DISTANCES)]})
        if not any(map(has_reference, rows)):
            for axes in panels:
                style.say(axes, NO_REFERENCE)
            return
        scored = by_structure(rows, structures)
        draw_means(panels[0], scored, SCORES, "{:.2f}")
        draw_means(panels[1], scored, DISTANCES, "{:.1f}")
        panels[0].set_yticks(range(len(scored)), [label_of(*item) for item in scored.items()])
        panels[1].set_yticks([])
        panels[0].set_title("0 to 1, higher is better")
        panels[1].set_title("mm, lower is better")
        figure.supxlabel(
            "dark is worse; a dash is undefined; (n) follows where fewer cases are defined than the "
            "structure has; "
            "imputed: a missed structure counts as the image diagonal",
            fontsize=8.5,
            color=style.GREY,
            x=0.012,
            ha="left",
        )


def draw_means(axes: Axes, scored: ByStructure, columns: Mapping[str, str], form: str) -> None:
    """A table of means, a line per structure.

    Distances, which have no upper end, are coloured by their root.
    """
    values = [[[row.get(key) for row in own] for key in columns] for own in scored.values()]
    defined = [[[value for value in cell if value is not None] for cell in line] for line in values]
    means = np.array([[np.mean(cell) if cell else np.nan for cell in line] for line in defined])
    norm, colour_map = Normalize(0.0, 1.0), style.SCORE_MAP
    if columns is DISTANCES:
        norm, colour_map = PowerNorm(0.5, 0.0, np.nanmax(means, initial=1.0)), f"{style.SCORE_MAP}_r"
    image = axes.imshow(means, aspect="auto", cmap=colour_map, norm=norm, interpolation="nearest")
    axes.grid(False)
    axes.set_facecolor("#f1f3f5")
    axes.set_xticks(range(len(columns)), list(columns.values()))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (i, j), value in np.ndenumerate(means):
        text, ink = "–", style.GREY
        if not np.isnan(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            ink = style.INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
            n = len(defined[i][j])
            text = form.format(value) + f" ({n})" * (n < len(values[i][j]))
        axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=9)


# ---- passes -----------------------------------------------------------------------------------------------


def passes(
    rows_by_pass: Sequence[Sequence[Row]], structures: Sequence[str], path: Target, synthetic: bool
) -> None:
    """`per_pass.png`: Dice after each pass, a thin line per case and a thick one for the mean of each
    structure.
    """
    numbers = np.arange(1, len(rows_by_pass) + 1)
    with style.picture(path, (8.0, 4.5), title="Dice after each pass", synthetic=synthetic) as figure:
        axes = figure.subplots()
        scored = [by_structure(rows, structures) for rows in rows_by_pass]
        for index, name in enumerate(structures):
            of_pass = [{row["case_id"]: row["dice"] for row in one[name]} for one in scored]
            if not of_pass[0]:
                continue
            colour = style.colour(index)
            curves = np.array([[dice[case] for dice in of_pass] for case in sorted(of_pass[0])])
            axes.plot(numbers, curves.T, "-", color=colour, linewidth=0.6, alpha=0.35)
            mean: Any = {"linewidth": 2.2, "markersize": 4, "label": label_of(name, scored[0][name])}
            axes.plot(numbers, curves.mean(axis=0), "o-", color=colour, **mean)
        axes.set(xticks=numbers, xlabel="pass", ylabel="Dice (cases with the structure only)")
        axes.legend(loc="lower right")
