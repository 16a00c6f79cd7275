"""Pictures of cases: an axial, a coronal and a sagittal slice of the CT with the outlines of reference and
prediction.

Orientation as radiologists read it: the patient's left is on the right of axial and coronal slices,
anterior is up in axial slices and left in sagittal ones, superior is up. Pixels have the scan's own
proportions.
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
from ctseg.geometry.boxes import Box, bounding_box, box_start, box_stop, make_box, whole_box
from ctseg.geometry.volume import Volume, match_grid, to_canonical
from ctseg.laterality import words_of
from ctseg.palette import ON_CT
from ctseg.reporting.pictures import style
from ctseg.reporting.pictures.style import Target
from ctseg.scoring.metrics import MISSED, Row, grouped, has_reference
from ctseg.scoring.summary import lowest

SOFT_TISSUE_HU = (-160.0, 240.0)  # the usual abdomen window: centre 40, width 400
LUNG_HU = (-1350.0, 150.0)  # the usual lung window: centre -600, width 1500
LUNG_WORDS = {"lung", "airway", "trachea", "bronchu", "bronchi", "bronchial"}
REFERENCE_COLOUR, PREDICTION_COLOUR = ON_CT[0], ON_CT[1]  # when colours do not stand for structures
WHOLE_MARGIN_MM, ZOOM_MARGIN_MM, SMALLEST_VIEW_MM = 20.0, 25.0, 80.0
DASHES: Any = (0, (3.2, 2.0))  # the line of predictions
STRUCTURE_PICTURES = 24  # worst cases of at most so many structures


# ---- which cases ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Choice:
    """One picture to make. structure: None = all structures of the case.

    dice: mean of the case, or of that row.
    """

    case_id: str
    structure: str | None
    reason: str
    dice: float
    missed: bool = False


def case_means(rows: Sequence[Row]) -> dict[str, float]:
    """Case -> mean Dice over its reference-present structures, missed ones 0; only cases that have any."""
    cases = grouped(filter(has_reference, rows), "case_id")
    return {case: float(np.mean([row["dice"] for row in own])) for case, own in cases.items()}


def choose(rows: Sequence[Row], structures: Sequence[str]) -> list[Choice]:
    """Best, median and worst case by mean Dice, then the worst case of each structure, the lowest Dice first.

    Equal means are ordered by case id. The median of an even number is the lower one. With one or two cases a
    case appears once, with both reasons.
    """
    means = case_means(rows)
    ranked = sorted(means, key=lambda case: (means[case], case))
    if not ranked:
        return []
    reasons: dict[str, list[str]] = {}
    for reason, place in (("best", -1), ("median", (len(ranked) - 1) // 2), ("worst", 0)):
        reasons.setdefault(ranked[place], []).append(reason)
    chosen = [
        Choice(case, None, f"{' and '.join(words)} of {len(ranked)} cases", means[case])
        for case, words in reasons.items()
    ]
    scored = grouped(filter(has_reference, rows), "structure")
    worst = []
    for name in (name for name in structures if name in scored):
        (row,) = lowest(scored[name], "dice", ("case_id", "dice", "state"), 1)
        reason = f"worst of n={len(scored[name])}"
        worst.append(Choice(row["case_id"], name, reason, row["dice"], row["state"] == MISSED))
    if len(worst) > STRUCTURE_PICTURES:
        worst = sorted(worst, key=lambda choice: choice.dice)[:STRUCTURE_PICTURES]
    return chosen + worst


# ---- where to cut -----------------------------------------------------------------------------------------


def busiest_slices(label: np.ndarray) -> list[int]:
    """Per axis of a (D, H, W) label map the slice that shows most: each structure adds its area, 1 at its
    largest. The middle of an empty one.
    """
    if not label.any():
        return [length // 2 for length in label.shape]
    result = []
    for axis in range(3):
        planes = np.moveaxis(label, axis, 0)
        areas = np.stack([np.bincount(plane.ravel(), minlength=int(label.max()) + 1)[1:] for plane in planes])
        result.append(int(np.argmax((areas / np.maximum(areas.max(0), 1)).sum(1))))
    return result


def centre_voxel(mask: np.ndarray) -> list[int]:
    """The voxel of a (D, H, W) mask nearest to its centroid: every slice through it shows the structure. The
    middle of an empty one.
    """
    points = np.argwhere(mask)
    if not len(points):
        return [length // 2 for length in mask.shape]
    nearest: list[int] = points[np.argmin(((points - points.mean(0)) ** 2).sum(1))].tolist()
    return nearest


def view_box(
    box: Box | None,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    *,
    margin_mm: float,
    smallest_mm: float = SMALLEST_VIEW_MM,
) -> Box:
    """The part of a scan of this shape to show: the box of the masks and a margin, at least `smallest_mm`
    wide where the scan allows; all of it without a box.
    """
    if box is None:
        return whole_box(shape)
    spacing = np.asarray(spacing_mm)
    start, stop = np.array(box_start(box)), np.array(box_stop(box))
    half = np.maximum((stop - start) / 2 + margin_mm / spacing, smallest_mm / spacing / 2)
    centre = (start + stop - 1) / 2
    return make_box(np.maximum(np.floor(centre - half), 0), np.minimum(np.ceil(centre + half) + 1, shape))


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

    @property
    def others(self) -> tuple[int, int]:
        """The axes along the rows and the columns of its pictures."""
        rows, columns = (axis for axis in range(3) if axis != self.axis)
        return rows, columns

    def cut(self, array: np.ndarray, index: int) -> np.ndarray:
        """The 2D image, its first row on top and its first column at the left."""
        return self.upright(np.take(array, index, axis=self.axis))

    def upright(self, picture: np.ndarray) -> np.ndarray:
        """A slice of the array the right way up."""
        return picture[::-1] if self.flip_rows else picture

    def size_mm(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[float, float]:
        """Height and width in mm of a slice of an array; of a pixel where the shape is that of one voxel."""
        rows, columns = self.others
        return shape[rows] * spacing_mm[rows], shape[columns] * spacing_mm[columns]


PLANES = (
    Plane("axial", 0, False, "R", "L", "A", "P"),
    Plane("coronal", 1, True, "R", "L", "S", "I"),
    Plane("sagittal", 2, True, "A", "P", "S", "I"),
)


@dataclasses.dataclass(frozen=True)
class CaseVolumes:
    """What is drawn of a case, in canonical axes on one grid. scan: HU. truth, found: label maps."""

    scan: Volume
    truth: Volume
    found: Volume


def on_one_grid(image: Volume, reference: Volume, prediction: Volume) -> CaseVolumes:
    """A case to draw, axes permuted where needed; CaseError for labels that lie on another grid."""
    matched = []
    for what, label in (("reference", reference), ("prediction", prediction)):
        same = match_grid(label, image.grid)
        if same is None:
            raise CaseError(
                "LABEL_GRID",
                f"the {what} does not lie on the scan's grid",
                "run `python run_pipeline.py --preprocess --train --eval` again",
            )
        matched.append(to_canonical(same))
    return CaseVolumes(to_canonical(image), *matched)


def window_for(names: Sequence[str]) -> tuple[float, float]:
    """The window for masks of these structures: for lungs when they are all airways and lungs."""
    words = [{word.rstrip("s") for word in words_of(name)} for name in names]
    return LUNG_HU if words and all(found & LUNG_WORDS for found in words) else SOFT_TISSUE_HU


def grey_of(array: np.ndarray, window_hu: tuple[float, float]) -> np.ndarray:
    """HU as grey values from 0 to 1 in a window: lowest and highest HU."""
    low, high = window_hu
    return np.clip((array - low) / (high - low), 0, 1)


def window_text(window_hu: Sequence[float]) -> str:
    """ "−160 to 240 HU"."""
    return f"{window_hu[0]:g} to {window_hu[1]:g} HU".replace("-", "−")


Ink = Mapping[int, tuple[str, str]]  # label value -> colour of the outline of reference and prediction


def draw_case(
    case: CaseVolumes,
    structures: Sequence[str],
    target: Target,
    *,
    only: str | None = None,
    remarks: Mapping[str, str] | None = None,
    synthetic: bool = False,
    display_hu: tuple[float, float] = SOFT_TISSUE_HU,
) -> None:
    """Three slices as one JPEG. Label i + 1 is structures[i].

    only: one structure, shown enlarged through the centre of its reference (of the prediction if there is
    none); else the planes that show most structures. remarks: structure -> words for the legend, such as
    "not annotated", without which an outline that stands alone would be read as an error.
    """
    (low, high), spacing_mm = display_hu, case.scan.spacing_mm
    truth, found = case.truth.array, case.found.array
    values = [structures.index(only) + 1] if only is not None else list(range(1, len(structures) + 1))
    shown = np.isin(truth, values)
    if not shown.any():
        shown = np.isin(found, values)
    if only is not None:
        centre, margin_mm = centre_voxel(shown), ZOOM_MARGIN_MM
    else:
        centre = busiest_slices(np.where(shown, truth if truth.any() else found, 0))
        margin_mm = WHOLE_MARGIN_MM
    box = view_box(bounding_box(shown), shown.shape, spacing_mm, margin_mm=margin_mm)
    # cut off only when it is drawn, after the interpolation
    arrays = (case.scan.array[box] - low) / (high - low), truth[box], found[box]
    sizes = [plane.size_mm(arrays[0].shape, spacing_mm) for plane in PLANES]
    by_structure = only is None and len(structures) <= len(ON_CT)
    pair = (REFERENCE_COLOUR, PREDICTION_COLOUR)
    ink = {value: (ON_CT[value - 1],) * 2 if by_structure else pair for value in values}
    with style.picture(target, figure_inches(sizes), dpi=110, quality=88) as figure:
        panels = figure.subplots(1, 3, gridspec_kw={"width_ratios": [w for _, w in sizes]})
        for axes, plane in zip(panels, PLANES):
            index = centre[plane.axis] - (box[plane.axis].start or 0)
            draw_plane(axes, plane, [plane.cut(array, index) for array in arrays], spacing_mm, ink)
            title = f"{plane.name}, slice {centre[plane.axis] + 1}/{case.scan.array.shape[plane.axis]}"
            axes.set_title(title, fontsize=9, fontweight="normal", color=style.GREY)
        handles = line_handles((style.INK, style.INK) if by_structure else pair, 1.8 if by_structure else 2.2)
        for value in ink if by_structure else ():
            if any((label == value).any() for label in arrays[1:]):
                name = structures[value - 1]
                remark = (remarks or {}).get(name)
                label = style.short(name) + (f" ({remark})" if remark else "")
                handles.append(Line2D([], [], color=ON_CT[value - 1], linewidth=5, label=label))
        handles += [Line2D([], [], linestyle="", label="synthetic data")] if synthetic else []
        columns = min(len(handles), int(figure.get_figwidth() / 1.5))
        figure.legend(handles=handles, loc="outside lower left", ncols=columns, fontsize=9)


def line_handles(colours: Sequence[str], width: float) -> list[Line2D]:
    """Legend: solid = reference, dashed = prediction."""
    lines = zip(colours, ("solid", DASHES), ("reference", "prediction"))
    return [Line2D([], [], color=c, linewidth=width, linestyle=line, label=name) for c, line, name in lines]


def figure_inches(sizes_mm: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Width and height of the figure so that three panels of these (height, width) in mm fill it without
    bands.
    """
    height_mm, width_mm = max(h for h, _ in sizes_mm), sum(w for _, w in sizes_mm)
    inches_per_mm = min(10.6 / width_mm, 4.6 / height_mm)
    return max(6.0, inches_per_mm * width_mm + 0.5), inches_per_mm * height_mm + 0.8


def draw_plane(
    axes: Axes, plane: Plane, cuts: Sequence[np.ndarray], spacing_mm: Sequence[float], ink: Ink
) -> None:
    """One panel. cuts: the slice of the scan (0 to 1), of the reference and of the prediction."""
    image, *labels = cuts
    pixel_mm = plane.size_mm((1, 1, 1), spacing_mm)
    extent = (0, image.shape[1] * pixel_mm[1], image.shape[0] * pixel_mm[0], 0)
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="bilinear", aspect="equal")
    axes.grid(False)
    axes.set(anchor="N", xticks=[], yticks=[])
    for value, colours in ink.items():
        for label, colour, line in zip(labels, colours, ("solid", DASHES)):
            draw_outline(axes, label == value, pixel_mm, colour, line)
    halo: list[Any] = [withStroke(linewidth=2, foreground="black")]
    for text, x, y, ha, va in (
        (plane.left, 0.02, 0.5, "left", "center"),
        (plane.right, 0.98, 0.5, "right", "center"),
        (plane.top, 0.5, 0.97, "center", "top"),
        (plane.bottom, 0.5, 0.03, "center", "bottom"),
    ):
        letter = axes.text(x, y, text, transform=axes.transAxes, ha=ha, va=va, path_effects=halo)
        letter.set(color="white", fontsize=10, fontweight="bold")
    axes.set(xlim=extent[:2], ylim=extent[2:])


def draw_outline(axes: Axes, mask: np.ndarray, pixel_mm: tuple[float, float], colour: str, line: Any) -> None:
    """The border of a 2D mask; padded so that one at the edge of the view is closed too."""
    if mask.any():
        padded = np.pad(mask.astype(np.float32), 1)
        y, x = ((np.arange(length) - 0.5) * size for length, size in zip(padded.shape, pixel_mm))
        axes.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=1.5, linestyles=[line])
