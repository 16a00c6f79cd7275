"""Pictures of cases: an axial, a coronal and a sagittal slice of the CT with the outlines of reference and prediction.

Orientation as radiologists read it: the patient's left is on the right of axial and coronal slices, anterior is up
in axial slices and left in sagittal ones, superior is up. Pixels have the scan's own proportions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from ctseg.errors import CaseError
from ctseg.geometry.volume import Volume, match_grid, to_canonical
from ctseg.laterality import words_of
from ctseg.palette import ON_CT
from ctseg.reporting.pictures import style
from ctseg.reporting.pictures.plots import Row, dice_of, with_reference
from ctseg.reporting.pictures.style import Target

SOFT_TISSUE_HU = (-160.0, 240.0)  # the usual abdomen window: centre 40, width 400
LUNG_HU = (-1350.0, 150.0)  # the usual lung window: centre -600, width 1500
LUNG_WORDS = {"lung", "airway", "trachea", "bronchu", "bronchi", "bronchial"}
REFERENCE_COLOUR, PREDICTION_COLOUR = ON_CT[0], ON_CT[1]  # when colours do not stand for structures
WHOLE_MARGIN_MM, ZOOM_MARGIN_MM, SMALLEST_VIEW_MM = 20.0, 25.0, 80.0
STRUCTURE_PICTURES = 24  # worst cases of at most so many structures


# ---- which cases ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Choice:
    """One picture to make. structure: None = all structures of the case. dice: mean of the case, or of that row."""

    case_id: str
    structure: str | None
    reason: str
    dice: float
    missed: bool = False


def case_means(rows: Sequence[Row]) -> dict[str, float]:
    """Case -> mean Dice over its reference-present structures, missed ones 0; cases without any are left out."""
    values: dict[str, list[float]] = {}
    for row in with_reference(rows):
        values.setdefault(str(row["case_id"]), []).append(dice_of(row))
    return {case: float(np.mean(dice)) for case, dice in values.items()}


def choose(rows: Sequence[Row], structures: Sequence[str]) -> list[Choice]:
    """Best, median and worst case by mean Dice, then the worst case of each structure, the lowest Dice first.

    Equal values are ordered by case id. The median of an even number is the lower one. With one or two cases a
    case appears once, with both reasons.
    """
    means = case_means(rows)
    ranked = sorted(means, key=lambda case: (means[case], case))
    if not ranked:
        return []
    reasons: dict[str, list[str]] = {}
    for reason, case in (
        ("best", ranked[-1]),
        ("median", ranked[(len(ranked) - 1) // 2]),
        ("worst", ranked[0]),
    ):
        reasons.setdefault(case, []).append(reason)
    chosen = [
        Choice(case, None, f"{' and '.join(words)} of {len(ranked)} cases", means[case])
        for case, words in reasons.items()
    ]
    worst = []
    for structure in structures:
        mine = with_reference(rows, structure)
        if mine:
            row = min(mine, key=lambda r: (dice_of(r), str(r["case_id"])))
            worst.append(
                Choice(
                    str(row["case_id"]),
                    structure,
                    f"worst of n={len(mine)}",
                    dice_of(row),
                    row["state"] == "missed",
                )
            )
    if len(worst) > STRUCTURE_PICTURES:
        worst = sorted(worst, key=lambda choice: choice.dice)[:STRUCTURE_PICTURES]
    return chosen + worst


# ---- where to cut -----------------------------------------------------------------------------------------


def busiest_slices(label: np.ndarray) -> tuple[int, int, int]:
    """Per axis of a (D, H, W) label map the slice that shows most: each structure adds its area, 1 at its largest."""
    if not label.any():
        d, h, w = label.shape
        return d // 2, h // 2, w // 2
    result = []
    for axis in range(3):
        planes = np.moveaxis(label, axis, 0)
        areas = np.stack([np.bincount(plane.ravel(), minlength=int(label.max()) + 1)[1:] for plane in planes])
        result.append(int(np.argmax((areas / np.maximum(areas.max(0), 1)).sum(1))))
    return result[0], result[1], result[2]


def centre_voxel(mask: np.ndarray) -> tuple[int, int, int]:
    """The voxel of a (D, H, W) mask nearest to its centroid, so every slice through it shows the structure."""
    points = np.argwhere(mask)
    if not len(points):
        d, h, w = mask.shape
        return d // 2, h // 2, w // 2
    d, h, w = points[np.argmin(((points - points.mean(0)) ** 2).sum(1))]
    return int(d), int(h), int(w)


def view_box(
    mask: np.ndarray, spacing_mm: Sequence[float], *, margin_mm: float, smallest_mm: float
) -> tuple[slice, slice, slice]:
    """The part of the scan to show: the mask's box and a margin, at least `smallest_mm` wide where the scan allows."""
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2])
    hits = [
        np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        for axis in range(3)
    ]
    return box_around(
        [(int(found[0]), int(found[-1])) for found in hits],
        mask.shape,
        spacing_mm,
        margin_mm=margin_mm,
        smallest_mm=smallest_mm,
    )


def box_around(
    ends: Sequence[tuple[int, int]],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    *,
    margin_mm: float,
    smallest_mm: float,
) -> tuple[slice, slice, slice]:
    """The part of a scan of this shape around what reaches from a first to a last index along each axis; margins as for `view_box`."""
    parts = []
    for (first, last), length, spacing in zip(ends, shape, spacing_mm):
        centre, half = (first + last) / 2, (last - first + 1) / 2 + margin_mm / spacing
        half = max(half, smallest_mm / spacing / 2)
        parts.append(
            slice(max(0, int(np.floor(centre - half))), min(length, int(np.ceil(centre + half)) + 1))
        )
    return parts[0], parts[1], parts[2]


# ---- drawing ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plane:
    """How one plane is taken from a canonical (D, H, W) array and which way up it is shown."""

    name: str
    axis: int
    flip_rows: bool  # D points up in the patient but down in an image
    left: str
    right: str
    top: str
    bottom: str

    def cut(self, array: np.ndarray, index: int) -> np.ndarray:
        """The 2D image, its first row on top and its first column at the left."""
        image = np.take(array, index, axis=self.axis)
        return image[::-1] if self.flip_rows else image

    def pixel_mm(self, spacing_mm: Sequence[float]) -> tuple[float, float]:
        """Height and width of a pixel in mm."""
        rows, columns = (axis for axis in range(3) if axis != self.axis)
        return spacing_mm[rows], spacing_mm[columns]


PLANES = (
    Plane("axial", 0, False, "R", "L", "A", "P"),
    Plane("coronal", 1, True, "R", "L", "S", "I"),
    Plane("sagittal", 2, True, "A", "P", "S", "I"),
)


def on_grid_of(image: Volume, label: Volume, what: str) -> Volume:
    """The label map on the image's grid, axes permuted where needed; CaseError when it is another grid."""
    matched = match_grid(label, image.grid)
    if matched is None:
        raise CaseError(
            "LABEL_GRID",
            f"the {what} does not lie on the scan's grid",
            "run `python run_pipeline.py --preprocess --train --eval` again",
        )
    return matched


def display_window(window_hu: Sequence[float] | None) -> tuple[float, float]:
    """The window that pictures are shown in: for lungs when the network saw everything down to air, else for soft tissue."""
    return LUNG_HU if window_hu is not None and window_hu[0] <= -900 else SOFT_TISSUE_HU


def window_for(names: Sequence[str]) -> tuple[float, float]:
    """The window for masks of these structures: for lungs when they are all airways and lungs."""
    words = [{word.rstrip("s") for word in words_of(name)} for name in names]
    return LUNG_HU if words and all(found & LUNG_WORDS for found in words) else SOFT_TISSUE_HU


def draw_case(
    image: Volume,
    reference: Volume,
    prediction: Volume,
    structures: Sequence[str],
    target: Target,
    *,
    only: str | None = None,
    remarks: Mapping[str, str] | None = None,
    synthetic: bool = False,
    display_hu: tuple[float, float] = SOFT_TISSUE_HU,
) -> None:
    """Three slices as one JPEG. image: HU; reference, prediction: label maps, i + 1 = structures[i], same grid.

    only: one structure, shown enlarged through the centre of its reference (of the prediction if there is none);
    else the planes that show most structures. remarks: structure -> words for the legend, such as "not annotated",
    without which an outline that stands alone would be read as an error.
    """
    reference, prediction = (
        on_grid_of(image, reference, "reference"),
        on_grid_of(image, prediction, "prediction"),
    )
    low, high = display_hu
    scan, truth, found = (to_canonical(volume) for volume in (image, reference, prediction))
    spacing_mm = scan.spacing_mm
    values = [structures.index(only) + 1] if only is not None else list(range(1, len(structures) + 1))
    shown = np.isin(truth.array, values)
    if not shown.any():
        shown = np.isin(found.array, values)
    if only is not None:
        centre = centre_voxel(shown)
        box = view_box(shown, spacing_mm, margin_mm=ZOOM_MARGIN_MM, smallest_mm=SMALLEST_VIEW_MM)
    else:
        centre = busiest_slices(np.where(shown, truth.array if truth.array.any() else found.array, 0))
        box = view_box(shown, spacing_mm, margin_mm=WHOLE_MARGIN_MM, smallest_mm=SMALLEST_VIEW_MM)
    colours = _colours(values, structures, by_structure=only is None)
    arrays = (scan.array[box] - low) / (high - low), truth.array[box], found.array[box]
    sizes = [_size_mm(plane, arrays[0].shape, spacing_mm) for plane in PLANES]
    with style.picture(target, _figure_inches(sizes), dpi=110, quality=88) as figure:
        panels = figure.subplots(1, 3, gridspec_kw={"width_ratios": [w for _, w in sizes]})
        for axes, plane in zip(panels, PLANES):
            index = centre[plane.axis] - (box[plane.axis].start or 0)
            _draw_plane(axes, plane, [plane.cut(array, index) for array in arrays], spacing_mm, colours)
            axes.set_title(
                f"{plane.name}, slice {centre[plane.axis] + 1}/{scan.array.shape[plane.axis]}",
                fontsize=9,
                fontweight="normal",
                color=style.GREY,
            )
        handles = _handles(
            colours,
            [
                f"{style.short(name)} ({(remarks or {})[name]})"
                if name in (remarks or {})
                else style.short(name)
                for name in structures
            ],
            arrays[1:],
            by_structure=only is None,
        )
        handles += [Line2D([], [], linestyle="", label="synthetic data")] if synthetic else []
        figure.legend(
            handles=handles,
            loc="outside lower left",
            ncols=min(len(handles), int(figure.get_figwidth() / 1.5)),
            fontsize=9,
        )


def _figure_inches(sizes_mm: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Width and height of the figure so that three panels of these (height, width) in mm fill it without bands."""
    height_mm, width_mm = max(h for h, _ in sizes_mm), sum(w for _, w in sizes_mm)
    inches_per_mm = min(10.6 / width_mm, 4.6 / height_mm)
    return max(6.0, inches_per_mm * width_mm + 0.5), inches_per_mm * height_mm + 0.8


def _size_mm(plane: Plane, shape: tuple[int, ...], spacing_mm: Sequence[float]) -> tuple[float, float]:
    rows, columns = (axis for axis in range(3) if axis != plane.axis)
    return shape[rows] * spacing_mm[rows], shape[columns] * spacing_mm[columns]


def _colours(
    values: Sequence[int], structures: Sequence[str], *, by_structure: bool
) -> Mapping[int, tuple[str, str]]:
    """Label value -> colour of the reference and of the prediction."""
    if by_structure and len(structures) <= len(ON_CT):
        return {value: (ON_CT[value - 1], ON_CT[value - 1]) for value in values}
    return dict.fromkeys(values, (REFERENCE_COLOUR, PREDICTION_COLOUR))


def _draw_plane(
    axes: Axes,
    plane: Plane,
    cuts: Sequence[np.ndarray],
    spacing_mm: Sequence[float],
    colours: Mapping[int, tuple[str, str]],
) -> None:
    image, truth, found = cuts
    height, width = plane.pixel_mm(spacing_mm)
    extent = (0, image.shape[1] * width, image.shape[0] * height, 0)
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="bilinear", aspect="equal")
    axes.grid(False)
    axes.set_anchor("N")
    axes.set_xticks([])
    axes.set_yticks([])
    for value, (reference_colour, prediction_colour) in colours.items():
        _outline(axes, truth == value, height, width, reference_colour, "solid", 1.5)
        _outline(axes, found == value, height, width, prediction_colour, (0, (3.2, 2.0)), 1.5)
    halo: list[Any] = [withStroke(linewidth=2, foreground="black")]
    for text, x, y in (
        (plane.left, 0.02, 0.5),
        (plane.right, 0.98, 0.5),
        (plane.top, 0.5, 0.97),
        (plane.bottom, 0.5, 0.03),
    ):
        axes.text(
            x,
            y,
            text,
            transform=axes.transAxes,
            color="white",
            fontsize=10,
            fontweight="bold",
            path_effects=halo,
            ha={0.02: "left", 0.98: "right"}.get(x, "center"),
            va={0.97: "top", 0.03: "bottom"}.get(y, "center"),
        )
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])


def _outline(
    axes: Axes, mask: np.ndarray, height_mm: float, width_mm: float, colour: str, line: Any, width: float
) -> None:
    """The border of a 2D mask; padded so that one at the edge of the view is closed too."""
    if not mask.any():
        return
    padded = np.pad(mask.astype(np.float32), 1)
    x = (np.arange(padded.shape[1]) - 0.5) * width_mm
    y = (np.arange(padded.shape[0]) - 0.5) * height_mm
    axes.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=width, linestyles=[line])


def _handles(
    colours: Mapping[int, tuple[str, str]],
    names: Sequence[str],
    labels: Sequence[np.ndarray],
    *,
    by_structure: bool,
) -> list[Line2D]:
    """Legend: solid = reference, dashed = prediction, and the colours of the structures that are in view."""
    if by_structure and len(names) <= len(ON_CT):
        visible = [value for value in colours if any((label == value).any() for label in labels)]
        patches = [
            Line2D([], [], color=colours[value][0], linewidth=5, label=names[value - 1]) for value in visible
        ]
        return [
            Line2D([], [], color=style.INK, label="reference"),
            Line2D([], [], color=style.INK, linestyle=(0, (3.2, 2.0)), label="prediction"),
            *patches,
        ]
    return [
        Line2D([], [], color=REFERENCE_COLOUR, linewidth=2.2, label="reference"),
        Line2D([], [], color=PREDICTION_COLOUR, linewidth=2.2, linestyle=(0, (3.2, 2.0)), label="prediction"),
    ]
