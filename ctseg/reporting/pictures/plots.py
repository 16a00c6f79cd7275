"""Pictures of scores, drawn from the rows of `per_case.csv` (one row per case and structure).

A row is a mapping with at least `case_id`, `structure`, `state`, `dice`, `hd95_mm`; None is "undefined". Only
cases with the structure in the reference count ("present-only"); a missed structure counts as Dice 0 and is marked.
Every label carries its n. One line per structure, so that 60 structures stay readable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm

from ctseg.reporting.pictures import style
from ctseg.reporting.pictures.style import Target

Row = Mapping[str, Any]
NO_REFERENCE = "no test case with a reference"


def number(row: Row, key: str) -> float | None:
    """The finite number under `key`, else None."""
    value = row.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value):
        return float(value)
    return None


def with_reference(rows: Sequence[Row], structure: str | None = None) -> list[Row]:
    """The rows that enter the headline: the structure is in the reference, found (`present`) or not (`missed`)."""
    return [
        row
        for row in rows
        if row.get("state") in ("present", "missed") and structure in (None, row.get("structure"))
    ]


def dice_of(row: Row) -> float:
    """Dice of a row of `with_reference`: 0 when the structure was missed."""
    return 0.0 if row.get("state") == "missed" else number(row, "dice") or 0.0


def mean_of(rows: Sequence[Row], key: str) -> tuple[float | None, int]:
    """Mean of what is defined and how many that were."""
    values = [value for row in rows if (value := number(row, key)) is not None]
    return (float(np.mean(values)) if values else None), len(values)


def label_of(structure: str, rows: Sequence[Row]) -> str:
    """ "Bladder (n=12, 1 missed)"; the name is shortened, the counts are not."""
    chosen = with_reference(rows, structure)
    missed = sum(row["state"] == "missed" for row in chosen)
    return f"{style.short(structure)} (n={len(chosen)}{f', {missed} missed' if missed else ''})"


def _spread(count: int, index: int) -> np.ndarray:
    """(count,) small fixed offsets so that points of one row do not hide each other."""
    generator = np.random.default_rng(index)
    return generator.uniform(-0.22, 0.22, count)


# ---- distributions ----------------------------------------------------------------------------------------


def dice_boxplots(rows: Sequence[Row], structures: Sequence[str], path: Target, synthetic: bool) -> None:
    """`dice_boxplots.png`: the test Dice of every case, box and median where there are at least five."""
    size = (10.0, 2.0 + 0.42 * max(1, len(structures)))
    with style.picture(path, size, title="Test Dice per structure", synthetic=synthetic) as figure:
        axes = figure.subplots()
        if not with_reference(rows):
            return style.say(axes, NO_REFERENCE)
        for index, structure in enumerate(structures):
            _draw_distribution(axes, index, with_reference(rows, structure))
        _structure_axis(axes, structures, rows)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks(np.arange(0, 1.01, 0.1))
        axes.set_xlabel(
            "Dice (0 = no overlap, 1 = perfect); cases with the structure only, a missed one counts as 0"
        )
        axes.plot([], [], "o", color=style.PALETTE[0], markersize=4.5, label="one case")
        axes.plot([], [], "-", color=style.INK, linewidth=2.4, label="median")
        axes.plot(
            [],
            [],
            "X",
            color=style.MISSED,
            markersize=8,
            markeredgecolor="white",
            label="missed: nothing predicted",
        )
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=3,
            borderaxespad=2.2 if len(structures) > 15 else 0.1,
        )


def _draw_distribution(axes: Axes, index: int, rows: Sequence[Row]) -> None:
    if not rows:
        axes.text(
            0.5, index, "not in any test reference", ha="center", va="center", fontsize=8.5, color=style.GREY
        )
        return
    values = np.array([dice_of(row) for row in rows])
    missed = np.array([row["state"] == "missed" for row in rows])
    if len(values) >= 5:
        axes.boxplot(
            values,
            positions=[index],
            orientation="horizontal",
            widths=0.62,
            showfliers=False,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": "#dbe9f4", "edgecolor": style.PALETTE[0]},
            medianprops={"color": style.INK, "linewidth": 2.4},
            whiskerprops={"color": style.PALETTE[0]},
            capprops={"color": style.PALETTE[0]},
        )
    else:
        axes.plot([np.median(values)] * 2, [index - 0.3, index + 0.3], color=style.INK, linewidth=2.4)
    heights = index + _spread(len(values), index)
    axes.plot(
        values[~missed],
        heights[~missed],
        "o",
        color=style.PALETTE[0],
        markersize=4.5,
        alpha=0.75,
        markeredgewidth=0,
        zorder=3,
    )
    axes.plot(
        values[missed],
        heights[missed],
        "X",
        color=style.MISSED,
        markersize=8,
        markeredgecolor="white",
        zorder=4,
    )


def _structure_axis(axes: Axes, structures: Sequence[str], rows: Sequence[Row]) -> None:
    """One labelled line per structure, the first on top."""
    axes.set_yticks(range(len(structures)), [label_of(structure, rows) for structure in structures])
    axes.set_ylim(len(structures) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    for index in range(1, len(structures), 2):
        axes.axhspan(index - 0.5, index + 0.5, color="#f5f7f9", zorder=0, linewidth=0)
    if len(structures) > 15:
        axes.tick_params(top=True, labeltop=True)


# ---- Dice against distance --------------------------------------------------------------------------------


def dice_vs_hausdorff(rows: Sequence[Row], structures: Sequence[str], path: Target, synthetic: bool) -> None:
    """`dice_vs_hausdorff.png`: overlap against the 95th percentile distance, one point per case and structure.

    A missed structure has no distance: it stands at Dice 0 in a strip of its own at the right. With more
    structures than colours the ones with the lowest mean Dice are coloured and the others are grey.
    """
    with style.picture(
        path, (10, 6.2), title="Test Dice against Hausdorff distance", synthetic=synthetic
    ) as figure:
        axes = figure.subplots()
        chosen = with_reference(rows)
        if not chosen:
            return style.say(axes, NO_REFERENCE)
        distances = [value for row in chosen if (value := number(row, "hd95_mm")) is not None]
        limit = max([*distances, 1.0]) * 1.15
        axes.set_xscale("symlog", linthresh=1.0, linscale=0.4)  # one far outlier must not squeeze the others
        _draw_points(axes, rows, structures)
        missed = [row for row in chosen if row["state"] == "missed"]
        if missed:
            axes.axvspan(limit, limit * 1.5, color="#fbeee6", zorder=0)
            places = limit * (1.24 + 0.7 * _spread(len(missed), 0))
            axes.plot(
                places,
                np.zeros(len(missed)),
                "X",
                color=style.MISSED,
                markersize=9,
                markeredgecolor="white",
                clip_on=False,
                zorder=4,
            )
            axes.text(
                limit * 1.22,
                0.5,
                f"missed: Dice 0, no distance (n={len(missed)})",
                rotation=90,
                ha="center",
                va="center",
                fontsize=9,
                color=style.MISSED,
            )
        axes.set_xlim(-0.08, limit * (1.5 if missed else 1.0))
        ticks = [tick for tick in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= limit]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("Hausdorff distance, 95th percentile (mm, logarithmic above 1); smaller is better")
        axes.set_ylabel("Dice (0 = no overlap, 1 = perfect)")
        figure.legend(loc="outside right upper")


def _draw_points(axes: Axes, rows: Sequence[Row], structures: Sequence[str]) -> None:
    markers = "osD^vP*"
    used = [structure for structure in structures if with_reference(rows, structure)]
    lowest = sorted(
        used, key=lambda name: float(np.mean([dice_of(row) for row in with_reference(rows, name)]))
    )
    coloured = [name for name in used if name in lowest[: len(style.PALETTE)]]
    if len(used) > len(coloured):
        coloured = [
            name for name in used if name in lowest[: len(style.PALETTE) - 1]
        ]  # grey is taken by the others
        others = [row for name in used if name not in coloured for row in with_reference(rows, name)]
        x, y = _points(others)
        axes.plot(
            x,
            y,
            "o",
            color=style.PALETTE[-1],
            alpha=0.35,
            markersize=4,
            markeredgewidth=0,
            zorder=1.5,
            label=f"{len(used) - len(coloured)} others (n={len(x)})",
        )
    for index, name in enumerate(coloured):
        x, y = _points(with_reference(rows, name))
        axes.plot(
            x,
            y,
            markers[index],
            color=style.colour(index),
            alpha=0.8,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.5,
            label=f"{style.short(name)} (n={len(x)})",
        )


def _points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """HD95 in mm and Dice of the rows in which both are defined."""
    pairs = [(distance, dice_of(row)) for row in rows if (distance := number(row, "hd95_mm")) is not None]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


# ---- all metrics ------------------------------------------------------------------------------------------

_SCORES = (("dice", "Dice"), ("iou", "IoU"), ("precision", "precision"), ("recall", "recall"), ("nsd", "NSD"))
_DISTANCES = (
    ("hd95_imputed_mm", "HD95\nimputed"),
    ("hd95_mm", "HD95\ndefined"),
    ("hd_mm", "HD\ndefined"),
    ("assd_mm", "ASSD\ndefined"),
)


def metrics_heatmap(rows: Sequence[Row], structures: Sequence[str], path: Target, synthetic: bool) -> None:
    """`metrics_heatmap.png`: mean of every metric per structure, scores on the left, distances in mm on the right."""
    size = (11.0, 2.4 + 0.36 * max(1, len(structures)))
    with style.picture(path, size, title="Test metrics per structure: means", synthetic=synthetic) as figure:
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [len(_SCORES), len(_DISTANCES)]})
        if not with_reference(rows):
            style.say(left, NO_REFERENCE)
            return style.say(right, NO_REFERENCE)
        tables = [_means(rows, structures, [key for key, _ in columns]) for columns in (_SCORES, _DISTANCES)]
        _draw_table(
            left,
            *tables[0],
            columns=[name for _, name in _SCORES],
            colour_map=style.SCORE_MAP,
            norm=Normalize(0.0, 1.0),
            form="{:.2f}",
        )
        worst = float(np.nanmax(tables[1][0])) if np.isfinite(tables[1][0]).any() else 1.0
        _draw_table(
            right,
            *tables[1],
            columns=[name for _, name in _DISTANCES],
            colour_map=f"{style.SCORE_MAP}_r",
            norm=PowerNorm(0.5, 0.0, max(worst, 1.0)),
            form="{:.1f}",
        )
        left.set_yticks(range(len(structures)), [label_of(structure, rows) for structure in structures])
        right.set_yticks([])
        left.set_title("0 to 1, higher is better")
        right.set_title("mm, lower is better")
        figure.supxlabel(
            "dark is worse; a dash is undefined; (n) follows where fewer cases are defined than the structure has; "
            "imputed: a missed structure counts as the image diagonal",
            fontsize=8.5,
            color=style.GREY,
            x=0.012,
            ha="left",
        )


def _means(
    rows: Sequence[Row], structures: Sequence[str], keys: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(structures, keys) means over reference-present cases, (structures, keys) their n, (structures,) all n."""
    means = np.full((len(structures), len(keys)), np.nan)
    counts = np.zeros((len(structures), len(keys)), dtype=int)
    totals = np.zeros(len(structures), dtype=int)
    for i, structure in enumerate(structures):
        chosen = with_reference(rows, structure)
        totals[i] = len(chosen)
        for j, key in enumerate(keys):
            mean, counts[i, j] = mean_of(chosen, key)
            means[i, j] = np.nan if mean is None else mean
    return means, counts, totals


def _draw_table(
    axes: Axes,
    means: np.ndarray,
    counts: np.ndarray,
    totals: np.ndarray,
    *,
    columns: Sequence[str],
    colour_map: str,
    norm: Normalize,
    form: str,
) -> None:
    image = axes.imshow(means, aspect="auto", cmap=colour_map, norm=norm, interpolation="nearest")
    axes.grid(False)
    axes.set_facecolor("#f1f3f5")
    axes.set_xticks(range(len(columns)), columns)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for (i, j), value in np.ndenumerate(means):
        if np.isnan(value):
            axes.text(j, i, "–", ha="center", va="center", color=style.GREY, fontsize=9)
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        ink = style.INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
        text = form.format(value) + (f" ({counts[i, j]})" if counts[i, j] < totals[i] else "")
        axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=9)


# ---- passes -----------------------------------------------------------------------------------------------


def passes(
    rows_by_pass: Sequence[Sequence[Row]], structures: Sequence[str], path: Target, synthetic: bool
) -> None:
    """`per_pass.png`: Dice after each pass, a thin line per case and a thick one for the mean of each structure."""
    numbers = np.arange(1, len(rows_by_pass) + 1)
    with style.picture(path, (8.0, 4.5), title="Dice after each pass", synthetic=synthetic) as figure:
        axes = figure.subplots()
        for index, structure in enumerate(structures):
            chosen = [
                {row["case_id"]: dice_of(row) for row in with_reference(rows, structure)}
                for rows in rows_by_pass
            ]
            if not chosen[0]:
                continue
            colour = style.PALETTE[index % len(style.PALETTE)]
            curves = np.array([[of_pass[case] for of_pass in chosen] for case in sorted(chosen[0])])
            axes.plot(numbers, curves.T, "-", color=colour, linewidth=0.6, alpha=0.35)
            axes.plot(
                numbers,
                curves.mean(axis=0),
                "o-",
                color=colour,
                linewidth=2.2,
                markersize=4,
                label=label_of(structure, rows_by_pass[0]),
            )
        axes.set_xticks(numbers)
        axes.set_xlabel("pass")
        axes.set_ylabel("Dice (cases with the structure only)")
        axes.legend(loc="lower right")
