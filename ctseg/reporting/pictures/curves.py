"""The six pictures of a training run, drawn from `training_history.json`.

A value that was not measured (null) is a gap; a series that was never measured says "not recorded". Up to
seven structures are lines; more become a map of structure over epoch, which stays readable up to about 60.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ctseg.reporting.pictures import style
from ctseg.reporting.pictures.style import Target

NOT_RECORDED = "not recorded"
BOUNDS = ("ram_total_gb",)  # what is no measurement but cannot be exceeded


# ---- series -----------------------------------------------------------------------------------------------


class Run:
    """A training history as arrays over its epochs (n,), NaN where nothing was measured."""

    def __init__(self, history: Mapping[str, Any]):
        self.history = history
        self.epochs = np.array(history.get("epochs", []), dtype=np.float64)

    def series(self, key: str) -> np.ndarray:
        """(n,) a series of the history or of its `resource_usage`."""
        usage = [entry.get(key) for entry in self.history.get("resource_usage", [])]
        return self._values(self.history.get(key) or usage)

    def by_structure(self, key: str) -> dict[str, np.ndarray]:
        """Structure -> (n,) values of a per-structure series, without structures that were never measured."""
        found = {name: self._values(values) for name, values in self.history.get(key, {}).items()}
        return {name: values for name, values in found.items() if np.isfinite(values).any()}

    def _values(self, recorded: Sequence[float | None]) -> np.ndarray:
        return np.array(recorded or [None] * len(self.epochs), dtype=np.float64)


def draw_series(axes: Axes, epochs: np.ndarray, values: np.ndarray, **look: Any) -> bool:
    """Draw one series; False when it holds no value.

    Measured points stand out where neighbours were not measured; a thin dotted line leads over the gap, so
    nobody takes it for a measurement.
    """
    measured = np.isfinite(values)
    if not measured.any():
        return False
    sparse = measured.sum() < 0.7 * len(values) or measured.sum() < 3
    (line,) = axes.plot(epochs, values, marker="o" if sparse else None, markersize=4, **look)
    if not measured.all():
        thin: Any = {"color": line.get_color(), "linewidth": 0.9, "linestyle": ":", "alpha": 0.7}
        axes.plot(epochs[measured], values[measured], **thin)
    return True


# ---- panels -----------------------------------------------------------------------------------------------

Panel = Callable[[Axes, Run], None]


def epoch_axis(axes: Axes, run: Run, *, best: bool) -> None:
    """Epochs along the panel. best: mark the one whose weights were kept."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    first, last = run.epochs[[0, -1]]
    margin = max(0.5, 0.02 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    epoch = run.history.get("best_epoch")
    if best and epoch is not None:
        axes.axvline(epoch, color=style.GREY, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
        late = epoch > run.epochs.mean()
        axes.annotate(
            f"best model: epoch {epoch:g}",
            (epoch, 1.0),
            xycoords=("data", "axes fraction"),
            ha="right" if late else "left",
            xytext=(-4 if late else 4, 2),
            textcoords="offset points",
            fontsize=8,
            color=style.GREY,
        )


def draw_lines(
    axes: Axes,
    run: Run,
    title: str,
    unit: str,
    lines: Mapping[str, str],
    *,
    missing: str = NOT_RECORDED,
    best: bool = False,
    highest: float = 0.0,
) -> None:
    """Series over the epochs, from 0 up.

    lines: key -> label, which only matters where there are several. highest: what the axis reaches at least.
    """
    axes.set_title(title, pad=14)
    drawn = [
        draw_series(
            axes,
            run.epochs,
            run.series(key),
            color=colour,
            label=label,
            linestyle="--" if key in BOUNDS else "-",
        )
        for (key, label), colour in zip(lines.items(), style.PALETTE)
    ]
    if not any(drawn):
        return style.say(axes, missing)
    if len(lines) > 1:
        for label in (label for label, there in zip(lines.values(), drawn) if not there):
            axes.plot([], [], " ", label=f"{label}: {NOT_RECORDED}")
        axes.legend(loc="best")
    axes.set(ylabel=unit, ylim=(0, max(highest, axes.get_ylim()[1])))
    epoch_axis(axes, run, best=best)


def draw_rate(axes: Axes, run: Run) -> None:
    """Learning rate over the epochs."""
    draw_lines(axes, run, "Learning rate", "learning rate (per step)", {"learning_rate": ""}, best=True)
    axes.yaxis.set_major_formatter("{x:g}")


def draw_time(axes: Axes, run: Run) -> None:
    """Seconds per epoch."""
    axes.set_title("Time per epoch", pad=14)
    values = run.series("epoch_seconds")
    measured = np.isfinite(values)
    if not measured.any():
        return style.say(axes, NOT_RECORDED)
    axes.bar(run.epochs[measured], values[measured], color=style.PALETTE[0], width=0.8)
    axes.set(ylabel="seconds", ylim=(0, None))
    epoch_axis(axes, run, best=False)


class Measure(NamedTuple):
    """How a score of structures is drawn. missing: what an empty panel says. limits: of the axis.

    highest: end of the colours of a map, by default the highest value; colours: its colour map.
    """

    name: str
    unit: str
    missing: str
    limits: tuple[float, float | None]
    highest: float | None
    colours: str
    legend: Mapping[str, Any]


DICE = Measure(
    "Dice", "Dice (0 to 1)", NOT_RECORDED, (-0.02, 1.02), 1.0, style.SCORE_MAP, legend={"loc": "lower right"}
)
HD95 = Measure(
    "HD95 (mm)",
    "HD95 (mm), where found",
    f"{NOT_RECORDED} during training",
    (0, None),
    None,
    f"{style.SCORE_MAP}_r",
    legend={"loc": "best"},
)


def draw_structures(
    axes: Axes, run: Run, title: str, key: str, *, measure: Measure = DICE, small: bool = False
) -> None:
    """A score of each structure over the epochs, for the Dice of validation with the mean of what was
    measured.

    small: the panel has no room for a line per structure; more structures than colours become a band.
    """
    axes.set_title(title, pad=14)
    found, many = run.by_structure(key), len(style.PALETTE)
    mean = run.series("val_mean_dice" if key == "val_dice" else "")
    if not found and not np.isfinite(mean).any():
        return style.say(axes, measure.missing)
    if len(found) > many and not small:
        return structure_map(axes, run.epochs, found, measure)
    if len(found) > many:
        draw_band(axes, run.epochs, np.stack(list(found.values())))
    else:
        for index, (name, values) in enumerate(found.items()):
            draw_series(axes, run.epochs, values, color=style.colour(index), label=style.short(name))
    draw_series(axes, run.epochs, mean, color=style.INK, label="mean", linewidth=2.8)
    axes.set(ylim=measure.limits, ylabel=measure.unit)
    epoch_axis(axes, run, best=True)
    axes.legend(**measure.legend, ncols=2 if measure is DICE and 5 <= len(found) <= many else 1)


def draw_band(axes: Axes, epochs: np.ndarray, values: np.ndarray) -> None:
    """Lowest to highest of the structures, values (structures, n), and their median."""
    blue, measured = style.PALETTE[0], np.isfinite(values).any(0)
    low, median, high = np.full((3, len(epochs)), np.nan)
    for function, row in ((np.nanmin, low), (np.nanmedian, median), (np.nanmax, high)):
        row[measured] = function(values[:, measured], 0)
    look: Any = {"color": blue, "alpha": 0.18, "linewidth": 0}
    label = f"lowest to highest of {len(values)} structures"
    axes.fill_between(epochs[measured], low[measured], high[measured], label=label, **look)
    draw_series(axes, epochs, median, color=blue, label="median of the structures")


def structure_map(axes: Axes, epochs: np.ndarray, found: Mapping[str, np.ndarray], measure: Measure) -> None:
    """Structures (rows) over the measured epochs (columns); grey = not measured."""
    values = np.stack(list(found.values()))
    shown = np.flatnonzero(np.isfinite(values).any(0))
    axes.set_facecolor(style.PALE)
    axes.grid(False)
    look: Any = {"aspect": "auto", "interpolation": "nearest", "cmap": measure.colours, "vmin": 0.0}
    image = axes.imshow(values[:, shown], vmax=measure.highest or np.nanmax(values), **look)
    axes.set_yticks(range(len(found)), map(style.short, found), fontsize=10 if len(found) <= 20 else 8)
    ticks = np.unique(np.linspace(0, len(shown) - 1, min(len(shown), 8)).astype(int))
    axes.set_xticks(ticks, [f"{epochs[shown[tick]]:g}" for tick in ticks])
    axes.set_xlabel("epoch")
    axes.figure.colorbar(image, ax=axes, label=measure.name, fraction=0.04, pad=0.02)


# ---- pictures ---------------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """One file: its title, which stands for that of a single panel, and so many panels, six in two rows.

    size: inches; higher where the structure map of one of the series in `tall` needs it.
    """

    title: str
    panels: Sequence[Panel]
    size: tuple[float, float] = (6.6, 4.2)
    tall: Sequence[str] = ()

    def draw(self, history: Mapping[str, Any], target: Target, synthetic: bool) -> None:
        """Draw it from a training history."""
        run, (width, height) = Run(history), self.size
        count = max((len(run.by_structure(key)) for key in self.tall), default=0)
        if count > len(style.PALETTE):
            height = max(height, 1.7 + 0.2 * count)
        title = self.title.format(model=history.get("model", "a model"))
        with style.picture(target, (width, height), title=title, synthetic=synthetic) as figure:
            rows = 2 if len(self.panels) > 4 else 1
            places = figure.subplots(rows, len(self.panels) // rows, squeeze=False)
            for axes, panel in zip(places.flat, self.panels):
                panel(axes, run)
            if len(self.panels) == 1:
                axes.set_title("")


def lines(title: str, unit: str, keys: Mapping[str, str], **options: Any) -> Panel:
    """A panel by `draw_lines`."""
    return functools.partial(draw_lines, title=title, unit=unit, lines=keys, **options)


def scores(title: str, key: str, **options: Any) -> Panel:
    """A panel by `draw_structures`."""
    return functools.partial(draw_structures, title=title, key=key, **options)


LOSS = lines(
    "Loss", "loss (Dice + cross-entropy)", {"train_loss": "training", "val_loss": "validation"}, best=True
)
HD95_TITLE, HD95_KEY = "HD95, validation scans", "val_hausdorff"
PICTURES = {
    "loss_curves.png": Picture("Training: loss", [LOSS]),
    "dice_scores.png": Picture(  # training patches beside whole validation scans; the scale is the same
        "Training: Dice per structure",
        [scores("Training patches (augmented)", "train_dice"), scores("Validation, whole scans", "val_dice")],
        (12, 5.0),
        ("train_dice", "val_dice"),
    ),
    "hausdorff_distances.png": Picture(
        "Training: HD95 of the validation scans",
        [scores(HD95_TITLE, HD95_KEY, measure=HD95)],
        (8.0, 4.4),
        (HD95_KEY,),
    ),
    "learning_rate.png": Picture("Training: learning rate", [draw_rate]),
    "resource_usage.png": Picture(
        "Training: resources",
        [
            lines("Processor", "% of all cores", {"cpu_percent": ""}, highest=105),
            lines("Memory", "GB", {"ram_used_gb": "used", "ram_total_gb": "of the machine"}),
            lines("GPU memory", "GB", {"gpu_memory_gb": ""}, missing=f"{NOT_RECORDED}\n(no GPU used)"),
            draw_time,
        ],
        (13.5, 3.5),
    ),
    "combined_metrics.png": Picture(
        "Training of {model}: all metrics",
        [
            LOSS,
            scores("Dice, training patches", "train_dice", small=True),
            scores("Dice, validation scans", "val_dice", small=True),
            scores(HD95_TITLE, HD95_KEY, measure=HD95, small=True),
            draw_rate,
            draw_time,
        ],
        (15, 8.6),
    ),
}
