"""A turn around the patient: pictures of masks from all sides with names, colours, and which side is the
patient's left.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ctseg.datasets.masks import Masks
from ctseg.geometry.volume import Volume
from ctseg.reporting.pictures import planes, render, style
from ctseg.reporting.pictures.colours import colours_of
from ctseg.reporting.pictures.subject import Subject
from ctseg.reporting.pictures.surfaces import Surface, box_mm, surface_of

# what is seen of the patient after so many degrees
SIDES = {0: "front", 90: "left", 180: "back", 270: "right"}
BODY_HU, BONE_HU = -300.0, 220.0
BODY_COLOUR, BONE_COLOUR = np.array([0.86, 0.72, 0.62]), np.array([0.90, 0.87, 0.78])
REFERENCE_COLOUR, ABSENT_COLOUR = np.array([0.45, 0.55, 0.70]), np.full(3, 0.85)
ERROR_MM = 5.0  # the colour scale of errors ends here
ERROR_COLOURS = {
    "inside": np.array([0.10, 0.35, 0.85]),
    "met": np.array([0.85, 0.85, 0.83]),
    "outside": np.array([0.85, 0.20, 0.10]),
}
ERROR_LEGEND = (
    (f"{ERROR_MM:g} mm outside the reference", ERROR_COLOURS["outside"]),
    ("on its surface", ERROR_COLOURS["met"]),
    (f"{ERROR_MM:g} mm inside", ERROR_COLOURS["inside"]),
    ("reference", REFERENCE_COLOUR),
)
FINEST_MM, POINTS_ACROSS = 0.35, 500  # distance of surface points: so many across the scene, but no closer
LEGEND_ROWS = 22
TILT = (
    25.0  # degrees by which the viewer looks down on slices: from straight ahead an axial one would be a line
)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Surfaces of a subject and what the legend says of them.

    probabilities: names of the structures that were drawn from probabilities. tilt: degrees by which the
    viewer looks down.
    """

    subject: Subject
    surfaces: tuple[Surface, ...]
    legend: tuple[tuple[str, np.ndarray], ...]
    probabilities: tuple[str, ...] = ()
    tilt: float = 0.0

    @property
    def shown(self) -> tuple[str, ...]:
        """The structures that have a surface."""
        solid = [surface.name for surface in self.surfaces if surface.opacity >= 1]
        return tuple(name for name in solid if name in self.subject.chosen)

    @functools.cached_property
    def box_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest x, y and z of all points."""
        return box_mm(self.surfaces)

    @property
    def legend_rows(self) -> Sequence[tuple[str, np.ndarray]]:
        """(text, colour) of each line of the legend, white where there is no colour to show."""
        if self.subject.reference is not None:
            return ERROR_LEGEND
        rows = list(self.legend[:LEGEND_ROWS])
        if len(self.legend) > LEGEND_ROWS:
            rows[-1] = (f"and {len(self.legend) - LEGEND_ROWS + 1} more", np.ones(3))
        return rows


def build_scene(subject: Subject, *, context: str = "none", progress: Callable[..., Any] = iter) -> Scene:
    """Surfaces of the chosen structures.

    With a reference: coloured by their distance to it, in mm, and the reference translucent. context:
    "body" or "bone" of the scan, translucent, or three "slices" through the middle of the masks. Raises
    ValueError when no chosen structure has a voxel.
    """
    masks, scan = subject.masks, subject.ct if context != "none" else None
    grid = scan.grid if scan is not None else masks.read(subject.chosen[0]).grid
    step_mm = max(FINEST_MM, max(n * s for n, s in zip(grid.shape, grid.spacing_mm)) / POINTS_ACROSS)
    colours = colours_of(masks.names)
    surfaces: list[Surface] = []
    legend, probabilities = [], []
    for name in progress(list(subject.chosen)):
        surface, fractional = structure_surface(masks, name, colours[name], step_mm)
        if not len(surface.points_mm):
            why = f"below {masks.level:g}" if fractional else "not found"
            if len(subject.chosen) <= LEGEND_ROWS:
                legend.append((f"{style.short(name)} ({why})", ABSENT_COLOUR))
            continue
        if fractional:
            probabilities.append(name)
        if (reference := subject.truth_of(name)) is not None:
            colour = error_colours(surface.points_mm, reference.read(name))
            surface = dataclasses.replace(surface, colour=colour)
            glass, _ = structure_surface(reference, name, REFERENCE_COLOUR, step_mm)
            surfaces.append(dataclasses.replace(glass, name=f"{name}, reference", opacity=0.22))
        surfaces.append(surface)
        legend.append((style.short(name), colours[name]))
    if not surfaces:
        raise ValueError("none of the structures has a voxel")
    if scan is not None and context == "slices":
        middle = np.mean(box_mm(surfaces), axis=0)
        surfaces += planes.slice_planes(scan, middle, subject.window, step_mm=step_mm)
    elif scan is not None:
        surfaces.append(context_surface(scan, context, step_mm))
    tilt = TILT if context == "slices" else 0.0
    return Scene(subject, tuple(surfaces), tuple(legend), tuple(probabilities), tilt)


def structure_surface(masks: Masks, name: str, colour: np.ndarray, step_mm: float) -> tuple[Surface, bool]:
    """(the surface of one structure, whether it comes from probabilities)."""
    values = masks.values(name)
    level = masks.level if values.array.dtype.kind == "f" else None
    return surface_of(values, name, colour, step_mm=step_mm, level=level), level is not None


def context_surface(ct: Volume, context: str, step_mm: float) -> Surface:
    """The largest piece of body, its hollows filled, or the bones: translucent."""
    if context != "body":
        bones = Volume(ct.array > BONE_HU, ct.affine)
        return surface_of(bones, "bones", BONE_COLOUR, step_mm=step_mm, opacity=0.35)
    mask = ct.array > BODY_HU
    pieces, count = ndimage.label(ndimage.binary_opening(mask, iterations=2))
    if count:
        mask = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    body = Volume(np.stack([ndimage.binary_fill_holes(part) for part in mask]), ct.affine)
    return surface_of(body, "body", BODY_COLOUR, step_mm=step_mm, opacity=0.28, smooth_voxels=1.5)


def error_colours(points_mm: np.ndarray, truth: Volume) -> np.ndarray:
    """(N, 3) colours of points by their distance to the surface of a mask.

    Grey where it is met, red where outside, blue where inside, full at ERROR_MM.
    """
    inside = ndimage.distance_transform_edt(truth.array, sampling=truth.spacing_mm)
    outside = np.full(truth.array.shape, ERROR_MM)
    if truth.array.any():
        outside = ndimage.distance_transform_edt(~truth.array, sampling=truth.spacing_mm)
    half = np.mean(truth.spacing_mm) / 2
    signed = np.where(truth.array, -(inside - half), outside - half)
    index = (points_mm - truth.affine[:3, 3]) @ np.linalg.inv(truth.affine[:3, :3]).T
    distance = ndimage.map_coordinates(signed, index.T, order=1, mode="nearest")
    share = np.clip(np.abs(distance) / ERROR_MM, 0, 1)[:, None]
    full = np.where(distance[:, None] > 0, ERROR_COLOURS["outside"], ERROR_COLOURS["inside"])
    return (ERROR_COLOURS["met"] * (1 - share) + full * share).astype(np.float32)


# ---- pictures ---------------------------------------------------------------------------------------------


def pictures(scene: Scene, degrees: Sequence[float], *, width: int, height: int) -> Iterator[np.ndarray]:
    """One picture (height, width, 3) uint8 per angle."""
    size = text_size(height)
    longest = max(style.font(size).getlength(text) for text, _ in scene.legend_rows)
    left = min(round(longest + 3 * size), width // 3)
    view = render.fit_view(scene.surfaces, width=width, height=height, left=left, tilt=scene.tilt)
    for angle in degrees:
        yield annotated(render.draw(scene.surfaces, view, angle), scene, view, angle)


def annotated(picture: np.ndarray, scene: Scene, view: render.View, degrees: float) -> np.ndarray:
    """The picture with the legend, the patient's left and right, a scale bar and what is seen."""
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    size = text_size(view.height)
    font, bold = style.font(size), style.font(round(size * 1.3), bold=True)
    for number, (text, colour) in enumerate(scene.legend_rows):
        top = size + number * size * 1.45
        if np.min(colour) < 1:
            box = [size, top, size * 1.9, top + size * 0.9]
            pen.rectangle(box, fill=style.rgb(colour), outline=style.GREY)
        pen.text((size * 2.4, top + size * 0.45), text, font=font, fill=style.INK, anchor="lm")
    low, high = scene.box_mm
    ends = np.array([[side, view.centre_mm[1], low[2]] for side in (high[0], low[0])], dtype=np.float32)
    placed = view.place(ends, degrees)
    apart = abs(placed[0, 0] - placed[1, 0]) > 2 * size
    for letter, (column, row, depth) in zip("LR", placed):
        if apart or depth < 0:  # else the one at the back would stand behind the other
            place = (float(column), min(float(row) + size, view.height - 0.7 * size))
            pen.text(place, letter, font=bold, fill=style.INK if depth < 1 else style.GREY, anchor="mm")
    style.scale_bar(pen, view.width - size, view.height - size, view.mm_per_pixel, view.width / 6, size)
    caption = f"seen from the {seen_from(degrees)}" + (" and above" if view.tilt > 0 else "")
    caption += f", probability {scene.subject.masks.level:g}" if scene.probabilities else ""
    caption += ", synthetic data" if scene.subject.synthetic else ""
    pen.text((view.width - size, size), caption, font=font, fill=style.GREY, anchor="rt")
    return np.asarray(image)


def text_size(height: int) -> int:
    """Height of letters, in pixels, in a picture of this height."""
    return max(11, height // 36)


def seen_from(degrees: float) -> str:
    """The side of the patient that is nearest to the viewer."""
    return SIDES[min(SIDES, key=lambda side: abs((degrees - side + 180) % 360 - 180))]
