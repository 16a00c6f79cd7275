"""Pictures of trust: do probabilities mean what they say (reliability diagram), and does confidence foretell
the Dice.

`blocks` is "calibration" of `summary_statistics.json`: structure -> region -> {ece, bins: [{n, p, y}]};
rows are those of `per_case.csv`. Up to seven structures have a line or a colour each; more are drawn
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from ctseg.reporting.pictures import style
from ctseg.reporting.pictures.style import Target
from ctseg.scoring import failure
from ctseg.scoring.metrics import Row, grouped, has_reference
from ctseg.scoring.summary import lowest

PANELS = (
    ("band", "Boundary band: within 5 voxels of an outline"),
    ("whole", "Whole scan: nearly all voxels are easy"),
)
MARKED = 3  # cases of lowest Dice that are named


# ---- reliability ------------------------------------------------------------------------------------------


def diagram(blocks: Mapping[str, Any], pooled: Mapping[str, Any], path: Target, synthetic: bool) -> None:
    """`reliability.png`: frequency against probability in each bin, below it how many voxels the bins hold.

    pooled: region -> the same of all structures.
    """
    with style.picture(
        path, (11.5, 6.4), title="Calibration of the test probabilities", synthetic=synthetic
    ) as figure:
        panels = figure.subplots(2, 2, sharex=True, gridspec_kw={"height_ratios": [3.2, 1]})
        for column, (region, title) in enumerate(PANELS):
            panels[0, column].set_title(title)
            draw_reliability(
                panels[0, column], {name: block[region] for name, block in blocks.items()}, pooled[region]
            )
            draw_counts(panels[1, column], pooled[region])
        panels[0, 0].set_ylabel("frequency: share that is the structure")
        panels[1, 0].set_ylabel("voxels")


def draw_reliability(axes: Axes, blocks: Mapping[str, Any], pooled: Mapping[str, Any]) -> None:
    """Bin means of every structure against the diagonal; of all together where they are more than colours."""
    many = len(blocks) > len(style.PALETTE)
    shown = {f"all {len(blocks)} structures": pooled} if many else blocks
    shown = {name: block for name, block in shown.items() if block["ece"] is not None}
    if not shown:
        return style.say(axes, "no voxels to compare")
    axes.plot([0, 1], [0, 1], "--", color=style.GREY, linewidth=1.2)
    for index, (name, block) in enumerate(shown.items()):
        points = np.array([(item["p"], item["y"]) for item in block["bins"] if item["n"]])
        label = f"{style.short(name)} (ECE {block['ece']:.3f})"
        line: Any = {"size": 5, "linewidth": 1.5, "label": label}
        marker = f"{style.MARKERS[index]}-"
        style.dots(axes, points[:, 0], points[:, 1], marker, colour=style.colour(index), **line)
    note: Any = {"transform": axes.transAxes, "ha": "right", "fontsize": 8.5, "color": style.GREY}
    axes.text(0.98, 0.04, "below the dashed line: probabilities too high", **note)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc="upper left")


def draw_counts(axes: Axes, pooled: Mapping[str, Any]) -> None:
    """Voxels in each bin, all structures together."""
    counts = [item["n"] for item in pooled["bins"]]
    width = 1 / len(counts)
    axes.bar((np.arange(len(counts)) + 0.5) * width, counts, width=0.9 * width, color=style.PALE)
    if any(counts):
        axes.set(yscale="log", ylim=(0.7, None))
        axes.yaxis.set_major_locator(LogLocator(10, numticks=5))
        # no formula: text is not parsed
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", "\u2009")))
    axes.set_xlabel("predicted probability")


# ---- confidence -------------------------------------------------------------------------------------------


def confidence(rows: Sequence[Row], structures: Sequence[str], path: Target, synthetic: bool) -> None:
    """`confidence.png`: left confidence against Dice of every case and structure, right the mean risk of the
    most confident cases.
    """
    with style.picture(
        path, (12.0, 5.4), title="Does agreement between predictions foretell the Dice?", synthetic=synthetic
    ) as figure:
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.35, 1]})
        draw_confidence(left, rows, structures)
        draw_risk(right, rows)


def draw_confidence(axes: Axes, rows: Sequence[Row], structures: Sequence[str]) -> None:
    """A point per case and structure of the reference, the ones of lowest Dice named.

    Structures that no member predicts stand in a strip at the left.
    """
    axes.set_title("Each case and structure")
    scored = list(filter(has_reference, rows))
    sure = [row for row in scored if row.get("confidence") is not None]
    silent = [row for row in scored if row.get("confidence") is None]
    if not sure:
        return style.say(axes, "confidence is not known")
    by_name = grouped(sure, "structure")
    groups = {name: by_name[name] for name in structures if name in by_name}
    if len(structures) > len(style.PALETTE):
        groups = {f"all {len(structures)} structures": sure}
    for name, own in groups.items():
        index = list(structures).index(name) if name in structures else 0
        x, y = ([row[key] for row in own] for key in ("confidence", "dice"))
        rank = failure.spearman(x, y)
        label = f"{style.short(name)} (n={len(own)}{'' if rank is None else f', Spearman {rank:.2f}'})"
        style.dots(axes, x, y, style.MARKERS[index], colour=style.colour(index), alpha=0.8, label=label)
    left = shown_from = max(-0.02, min(row["confidence"] for row in sure) - 0.04)
    if silent:
        left -= 0.16 * (1.0 - shown_from)
    right = 1.0 + 0.02 * (1.0 - left)
    ticks = MaxNLocator(6).tick_values(shown_from, 1.0)
    axes.set(
        xticks=[tick for tick in ticks if shown_from <= tick <= 1.0], xlim=(left, right), ylim=(-0.03, 1.03)
    )
    if silent:
        style.missed_strip(axes, left, shown_from, f"predicted by no member (n={len(silent)})")
        spread = np.linspace(0.2, 0.8, len(silent)) if len(silent) > 1 else np.array([0.5])
        places = shown_from + spread * (left - shown_from)
        style.missed_dots(axes, places, [row["dice"] for row in silent], clip_on=False)
    name_lowest(axes, sure, shown_from + 0.02 * (right - shown_from))
    axes.set(
        xlabel="confidence: mean pairwise Dice of the members",
        ylabel="Dice against the reference; missed = 0",
    )
    axes.legend(loc="lower right", fontsize=8)


def name_lowest(axes: Axes, rows: Sequence[Row], left: float) -> None:
    """Ring the points of lowest Dice, number them, and list their names from `left` on."""
    ring: Any = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.2}
    words: Any = {"fontsize": 8, "color": style.MISSED}
    lines = ["lowest Dice:"]
    columns = ("confidence", "dice", "case_id", "structure")
    for rank, row in enumerate(lowest(rows, "dice", columns, MARKED), start=1):
        sure, dice, case, structure = row.values()
        place = sure, dice
        axes.plot(*place, "o", markeredgecolor=style.MISSED, **ring)
        axes.annotate(str(rank), place, xytext=(8, -10), textcoords="offset points", **words)
        lines.append(f"{rank}  {style.short(case, 18)}, {style.short(structure, 18)}")
    axes.text(left, 0.02, "\n".join(lines), ha="left", va="bottom", **words)


def draw_risk(axes: Axes, rows: Sequence[Row]) -> None:
    """Mean risk of the k most confident cases over their share; in any order it would be the mean of all, in
    the best order the curve below.
    """
    axes.set_title("If only the most confident cases were kept")
    points = failure.case_points(rows)
    if len(points) < 2:
        return style.say(axes, "too few cases")
    risk = [1.0 - point["dice"] for point in points]
    share = np.arange(1, len(points) + 1) / len(points)
    orders = (
        ("by confidence", [point["confidence"] for point in points], "o-", style.PALETTE[0]),
        ("best order, by Dice", [point["dice"] for point in points], "s:", style.PALETTE[2]),
    )
    for label, order, line, colour in reversed(orders):
        label = f"{label} (AURC {failure.aurc(order, risk):.3f})"
        axes.plot(share, failure.coverage_risk(order, risk), line, color=colour, markersize=4, label=label)
    mean = float(np.mean(risk))
    axes.axhline(mean, linestyle="--", color=style.GREY, linewidth=1.2, label=f"any order ({mean:.3f})")
    axes.set(xlim=(0, 1.03), ylim=(0, None), xlabel=f"share of cases kept (n={len(points)})")
    axes.set_ylabel("mean risk: 1 - Dice, mean of the case's structures")
    axes.legend(loc="lower right", fontsize=8)
