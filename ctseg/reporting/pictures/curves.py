"""The six pictures of a training run, drawn from `training_history.json`.

A value that was not measured (null) is a gap; a series that was never measured says "not recorded". Up to
seven structures are lines; more become a map of structure over epoch, which stays readable up to about 60.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ctseg.reporting.pictures import style
from ctseg.reporting.pictures.style import Target

History = Mapping[str, Any]
NOT_RECORDED = "not recorded"


# ---- series -----------------------------------------------------------------------------------------------


def series(values: object, length: int) -> np.ndarray:
    """(length,) float64 of a recorded list; NaN where nothing, no number or an infinite one was recorded."""
    result = np.full(length, np.nan)
    for index, value in enumerate(list(values)[:length] if isinstance(values, (list, tuple)) else []):
        if isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value):
            result[index] = float(value)
    return result


def epochs_of(history: History) -> np.ndarray:
    """(n,) the epoch numbers; counted from 1 when the list is missing."""
    recorded = history.get("epochs")
    if isinstance(recorded, (list, tuple)) and recorded:
        return np.asarray(recorded, dtype=np.float64)
    lists = [value for value in history.values() if isinstance(value, list)]
    return np.arange(1, max((len(value) for value in lists), default=0) + 1, dtype=np.float64)


def by_structure(history: History, key: str) -> dict[str, np.ndarray]:
    """Structure -> (n,) values of a per-structure series, without structures that were never measured."""
    recorded = history.get(key)
    length = len(epochs_of(history))
    if not isinstance(recorded, Mapping):
        return {}
    found = {str(name): series(values, length) for name, values in recorded.items()}
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def resources(history: History, key: str | None) -> np.ndarray:
    """(n,) one entry of `resource_usage` over the epochs."""
    recorded = history.get("resource_usage")
    usage = recorded if isinstance(recorded, list) else []
    return series(
        [item.get(key) if isinstance(item, Mapping) else None for item in usage], len(epochs_of(history))
    )


def draw_series(
    axes: Axes,
    epochs: np.ndarray,
    values: np.ndarray,
    *,
    colour: str,
    label: str,
    width: float = 1.8,
    line: str = "-",
) -> bool:
    """Draw one series; False when it holds no value.

    Measured points stand out where neighbours were not measured; a thin dotted line leads over the gap, so
    nobody takes it for a measurement.
    """
    measured = np.isfinite(values)
    if not measured.any():
        return False
    sparse = measured.sum() < 0.7 * len(values) or measured.sum() < 3
    axes.plot(
        epochs,
        values,
        color=colour,
        label=style.short(label),
        linewidth=width,
        linestyle=line,
        marker="o" if sparse else None,
        markersize=4,
    )
    if not measured.all():
        axes.plot(epochs[measured], values[measured], color=colour, linewidth=0.9, linestyle=":", alpha=0.7)
    return True


# ---- panels -----------------------------------------------------------------------------------------------


def _epoch_axis(axes: Axes, history: History, *, best: bool = True) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    epochs = epochs_of(history)
    if len(epochs):
        margin = max(0.5, 0.02 * (epochs[-1] - epochs[0]))
        axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
    best_epoch = history.get("best_epoch")
    if best and isinstance(best_epoch, (int, float)):
        axes.axvline(best_epoch, color=style.GREY, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
        late = len(epochs) and best_epoch > epochs.mean()
        axes.annotate(
            f"best model: epoch {best_epoch:g}",
            (best_epoch, 1.0),
            xycoords=("data", "axes fraction"),
            ha="right" if late else "left",
            xytext=(-4 if late else 4, 2),
            textcoords="offset points",
            fontsize=8,
            color=style.GREY,
        )


def _legend(axes: Axes, **options: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, **({"loc": "best"} | options))


def draw_loss(axes: Axes, history: History) -> None:
    """Training and validation loss over the epochs."""
    axes.set_title("Loss", pad=14)
    epochs = epochs_of(history)
    drawn = [
        draw_series(axes, epochs, series(history.get(key), len(epochs)), colour=colour, label=label)
        for key, label, colour in zip(("train_loss", "val_loss"), ("training", "validation"), style.PALETTE)
    ]
    if not any(drawn):
        return style.say(axes, NOT_RECORDED)
    if not drawn[1]:
        axes.plot([], [], " ", label="validation: not recorded")
    axes.set_ylabel("loss (Dice + cross-entropy)")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    _epoch_axis(axes, history)
    _legend(axes)


def draw_dice(axes: Axes, history: History, key: str, title: str, *, small: bool = False) -> None:
    """Dice per structure over the epochs (`key`: train_dice or val_dice), with the mean of what was measured.

    small: the panel has no room for a line per structure; more structures than colours become a band.
    """
    axes.set_title(title, pad=14)
    found, epochs = by_structure(history, key), epochs_of(history)
    mean = series(history.get("val_mean_dice") if key == "val_dice" else None, len(epochs))
    if not found and not np.isfinite(mean).any():
        return style.say(axes, NOT_RECORDED)
    if len(found) > len(style.PALETTE) and not small:
        return _structure_map(axes, epochs, found, label="Dice", highest=1.0, colour_map=style.SCORE_MAP)
    _draw_structures(axes, epochs, found)
    draw_series(axes, epochs, mean, colour=style.INK, label="mean", width=2.8)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("Dice (0 to 1)")
    _epoch_axis(axes, history)
    _legend(axes, loc="lower right", ncols=2 if 5 <= len(found) <= len(style.PALETTE) else 1)


def _draw_structures(axes: Axes, epochs: np.ndarray, found: Mapping[str, np.ndarray]) -> None:
    """A line per structure; a band from the lowest to the highest and the median when there are more than
    colours.
    """
    if len(found) <= len(style.PALETTE):
        for index, (name, values) in enumerate(found.items()):
            draw_series(axes, epochs, values, colour=style.colour(index), label=name)
        return
    values = np.stack(list(found.values()))
    measured = np.isfinite(values).any(0)
    axes.fill_between(
        epochs[measured],
        np.nanmin(values[:, measured], 0),
        np.nanmax(values[:, measured], 0),
        color=style.PALETTE[0],
        alpha=0.18,
        linewidth=0,
        label=f"lowest to highest of {len(found)} structures",
    )
    median = np.full(len(epochs), np.nan)
    median[measured] = np.nanmedian(values[:, measured], 0)
    draw_series(axes, epochs, median, colour=style.PALETTE[0], label="median of the structures")


def draw_hausdorff(axes: Axes, history: History, *, small: bool = False) -> None:
    """Validation HD95 per structure in mm."""
    axes.set_title("HD95, validation scans", pad=14)
    found, epochs = by_structure(history, "val_hausdorff"), epochs_of(history)
    if not found:
        return style.say(axes, f"{NOT_RECORDED} during training")
    if len(found) > len(style.PALETTE) and not small:
        highest = float(np.nanmax(list(found.values())))
        return _structure_map(
            axes, epochs, found, label="HD95 (mm)", highest=highest, colour_map=f"{style.SCORE_MAP}_r"
        )
    _draw_structures(axes, epochs, found)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("HD95 (mm), where found")
    _epoch_axis(axes, history)
    _legend(axes)


def _structure_map(
    axes: Axes,
    epochs: np.ndarray,
    found: Mapping[str, np.ndarray],
    *,
    label: str,
    colour_map: str,
    highest: float,
) -> None:
    """Structures (rows) over the measured epochs (columns); grey = not measured."""
    values = np.stack(list(found.values()))
    columns = np.isfinite(values).any(0)
    axes.set_facecolor(style.PALE)
    axes.grid(False)
    look: Any = {"aspect": "auto", "interpolation": "nearest"}
    image = axes.imshow(values[:, columns], cmap=colour_map, vmin=0.0, vmax=highest, **look)
    axes.set_yticks(
        range(len(found)), [style.short(name) for name in found], fontsize=10 if len(found) <= 20 else 8
    )
    shown = np.flatnonzero(columns)
    ticks = np.unique(np.linspace(0, len(shown) - 1, min(len(shown), 8)).astype(int))
    axes.set_xticks(ticks, [f"{epochs[shown[tick]]:g}" for tick in ticks])
    axes.set_xlabel("epoch")
    axes.figure.colorbar(image, ax=axes, label=label, fraction=0.04, pad=0.02)


def draw_rate(axes: Axes, history: History) -> None:
    """Learning rate over the epochs."""
    axes.set_title("Learning rate", pad=14)
    epochs = epochs_of(history)
    values = series(history.get("learning_rate"), len(epochs))
    if not draw_series(axes, epochs, values, colour=style.PALETTE[0], label="learning rate"):
        return style.say(axes, NOT_RECORDED)
    axes.set_ylabel("learning rate (per step)")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    _epoch_axis(axes, history)


def draw_time(axes: Axes, history: History) -> None:
    """Seconds per epoch."""
    axes.set_title("Time per epoch", pad=14)
    epochs = epochs_of(history)
    values = series(history.get("epoch_seconds"), len(epochs))
    measured = np.isfinite(values)
    if not measured.any():
        return style.say(axes, NOT_RECORDED)
    axes.bar(epochs[measured], values[measured], color=style.PALETTE[0], width=0.8)
    axes.set_ylabel("seconds")
    axes.set_ylim(bottom=0)
    _epoch_axis(axes, history, best=False)


def _draw_usage(
    axes: Axes, history: History, key: str, title: str, unit: str, missing: str, total: str | None = None
) -> None:
    axes.set_title(title, pad=14)
    epochs, values = epochs_of(history), resources(history, key)
    if not draw_series(axes, epochs, values, colour=style.PALETTE[0], label="used"):
        return style.say(axes, missing)
    if draw_series(
        axes, epochs, resources(history, total), colour=style.PALETTE[1], label="of the machine", line="--"
    ):
        _legend(axes, loc="center right")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    _epoch_axis(axes, history, best=False)


# ---- pictures ---------------------------------------------------------------------------------------------


def _height(history: History, keys: Sequence[str], base: float) -> float:
    """Inches high enough for the structure map of the longest per-structure series."""
    count = max(len(by_structure(history, key)) for key in keys)
    return base if count <= len(style.PALETTE) else max(base, 1.7 + 0.2 * count)


def _one_panel(
    draw: Callable[[Axes, History], None],
    title: str,
    history: History,
    path: Target,
    synthetic: bool,
    *,
    size: tuple[float, float] = (6.6, 4.2),
) -> None:
    """A picture of one panel: the figure's title stands for the panel's."""
    with style.picture(path, size, title=title, synthetic=synthetic) as figure:
        axes = figure.subplots()
        draw(axes, history)
        axes.set_title("")


def dice_scores(history: History, path: Target, synthetic: bool) -> None:
    """`dice_scores.png`: training patches beside whole validation scans; the scale is the same."""
    size = (12, _height(history, ("train_dice", "val_dice"), 5.0))
    with style.picture(path, size, title="Training: Dice per structure", synthetic=synthetic) as figure:
        left, right = figure.subplots(1, 2)
        draw_dice(left, history, "train_dice", "Training patches (augmented)")
        draw_dice(right, history, "val_dice", "Validation, whole scans")


def hausdorff_distances(history: History, path: Target, synthetic: bool) -> None:
    """`hausdorff_distances.png`."""
    size = (8.0, _height(history, ("val_hausdorff",), 4.4))
    title = "Training: HD95 of the validation scans"
    _one_panel(draw_hausdorff, title, history, path, synthetic, size=size)


def resource_usage(history: History, path: Target, synthetic: bool) -> None:
    """`resource_usage.png`: processor, memory, GPU memory, time."""
    with style.picture(path, (13.5, 3.5), title="Training: resources", synthetic=synthetic) as figure:
        panels = figure.subplots(1, 4)
        _draw_usage(panels[0], history, "cpu_percent", "Processor", "% of all cores", NOT_RECORDED)
        panels[0].set_ylim(0, max(105, panels[0].get_ylim()[1]))
        _draw_usage(panels[1], history, "ram_used_gb", "Memory", "GB", NOT_RECORDED, total="ram_total_gb")
        _draw_usage(panels[2], history, "gpu_memory_gb", "GPU memory", "GB", f"{NOT_RECORDED}\n(no GPU used)")
        draw_time(panels[3], history)


def combined_metrics(history: History, path: Target, synthetic: bool) -> None:
    """`combined_metrics.png`: the whole run on one sheet."""
    model = history.get("model")
    title = f"Training of {model}: all metrics" if model else "Training: all metrics"
    with style.picture(path, (15, 8.6), title=title, synthetic=synthetic) as figure:
        panels = figure.subplots(2, 3)
        draw_loss(panels[0, 0], history)
        draw_dice(panels[0, 1], history, "train_dice", "Dice, training patches", small=True)
        draw_dice(panels[0, 2], history, "val_dice", "Dice, validation scans", small=True)
        draw_hausdorff(panels[1, 0], history, small=True)
        draw_rate(panels[1, 1], history)
        draw_time(panels[1, 2], history)


PICTURES = {
    "loss_curves.png": functools.partial(_one_panel, draw_loss, "Training: loss"),
    "dice_scores.png": dice_scores,
    "hausdorff_distances.png": hausdorff_distances,
    "learning_rate.png": functools.partial(_one_panel, draw_rate, "Training: learning rate"),
    "resource_usage.png": resource_usage,
    "combined_metrics.png": combined_metrics,
}
