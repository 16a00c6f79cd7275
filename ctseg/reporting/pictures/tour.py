"""A turn around the patient: pictures of masks from all sides with names, colours, and which side is the patient's left."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ctseg.geometry.volume import Volume
from ctseg.reporting.pictures import planes, render, style
from ctseg.reporting.pictures.colours import colours_of
from ctseg.reporting.pictures.slices import SOFT_TISSUE_HU
from ctseg.reporting.pictures.surfaces import Finder, Surface, crossings, surface_at, surface_of
from ctseg.scans.masks import Masks

SIDES = {
    0: "front",
    90: "left",
    180: "back",
    270: "right",
}  # what the viewer sees of the patient after so many degrees
BODY_HU, BONE_HU = -300.0, 220.0
BODY_COLOUR, BONE_COLOUR, REFERENCE_COLOUR = (
    np.array([0.86, 0.72, 0.62]),
    np.array([0.90, 0.87, 0.78]),
    np.array([0.45, 0.55, 0.70]),
)
ERROR_MM = 5.0  # the colour scale of errors ends here
FINEST_MM, POINTS_ACROSS = 0.35, 500  # distance of surface points: so many across the scene, but no closer
LEGEND_ROWS = 22
TILT = (
    25.0  # degrees by which the viewer looks down on slices: from straight ahead an axial one would be a line
)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Surfaces, what the legend says of them, and whether they are coloured by their error.

    tilt: degrees by which the viewer looks down. probabilities: names of the structures that were drawn from probabilities, where these reach `level`.
    structures: names of all that were asked for.
    """

    surfaces: tuple[Surface, ...]
    legend: tuple[tuple[str, np.ndarray], ...]
    errors: bool = False
    synthetic: bool = False
    tilt: float = 0.0
    probabilities: tuple[str, ...] = ()
    level: float | None = None
    structures: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[str, ...]:
        """The structures that have a surface."""
        return tuple(
            surface.name
            for surface in self.surfaces
            if surface.opacity >= 1 and surface.name in self.structures
        )

    @functools.cached_property
    def box_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest x, y and z of all points."""
        return _box_mm(self.surfaces)


def _box_mm(surfaces: Sequence[Surface]) -> tuple[np.ndarray, np.ndarray]:
    points = [surface.points_mm for surface in surfaces if len(surface.points_mm)]
    return np.min([p.min(axis=0) for p in points], axis=0), np.max([p.max(axis=0) for p in points], axis=0)


def build_scene(
    masks: Masks,
    chosen: Sequence[str],
    *,
    ct: Volume | None = None,
    context: str = "none",
    reference: Masks | None = None,
    synthetic: bool = False,
    window_hu: tuple[float, float] = SOFT_TISSUE_HU,
    find: Finder = crossings,
    progress: Callable[..., Any] = iter,
) -> Scene:
    """Surfaces of the chosen structures. With a reference: coloured by their distance to it, in mm, and the reference translucent.

    ct, HU: needed for a context, the translucent body or bones, or three slices through the middle of the masks, grey as in window_hu. find: for a
    renderer that needs triangles. Raises ValueError when no chosen structure has a voxel.
    """
    step = _step_mm(masks, chosen, ct if context != "none" else None)
    colours = colours_of(masks.names)
    surfaces, legend, probabilities = [], [], []
    for name in progress(list(chosen)):
        surface, fractional = _structure(masks, name, colours[name], step, find)
        if not len(surface.points_mm):
            if len(chosen) <= LEGEND_ROWS:
                legend.append(
                    (
                        f"{style.short(name)} ({f'below {masks.level:g}' if fractional else 'not found'})",
                        np.full(3, 0.85),
                    )
                )
            continue
        if fractional:
            probabilities.append(name)
        if reference is not None and name in reference.names:
            truth = reference.read(name)
            surface = dataclasses.replace(surface, colour=error_colours(surface.points_mm, truth))
            if truth.array.any():
                shown, _ = _structure(reference, name, REFERENCE_COLOUR, step, find)
                surfaces.append(dataclasses.replace(shown, name=f"{name}, reference", opacity=0.22))
        surfaces.append(surface)
        legend.append((style.short(name), colours[name]))
    if not surfaces:
        raise ValueError("none of the structures has a voxel")
    if ct is not None and context == "slices":
        low, high = _box_mm(surfaces)
        surfaces += planes.slice_planes(ct, (low + high) / 2, window_hu, step_mm=step)
    elif ct is not None and context != "none":
        surfaces.append(_context(ct, context, step, find))
    return Scene(
        tuple(surfaces),
        tuple(legend),
        reference is not None,
        synthetic,
        TILT if context == "slices" else 0.0,
        tuple(probabilities),
        masks.level,
        tuple(chosen),
    )


def _structure(
    masks: Masks, name: str, colour: np.ndarray, step_mm: float, find: Finder
) -> tuple[Surface, bool]:
    """(the surface of one structure, whether it comes from probabilities)."""
    values = masks.values(name)
    if values.array.dtype.kind == "f" and masks.level is not None:
        return surface_at(values, masks.level, name, colour, step_mm=step_mm, find=find), True
    return surface_of(values, name, colour, step_mm=step_mm, find=find), False


def _step_mm(masks: Masks, chosen: Sequence[str], ct: Volume | None) -> float:
    grid = ct.grid if ct is not None else masks.read(chosen[0]).grid
    return max(FINEST_MM, max(n * s for n, s in zip(grid.shape, grid.spacing_mm)) / POINTS_ACROSS)


def _context(ct: Volume, context: str, step_mm: float, find: Finder) -> Surface:
    """The largest piece of body, its hollows filled, or the bones."""
    mask = ct.array > (BODY_HU if context == "body" else BONE_HU)
    if context == "body":
        pieces, count = ndimage.label(ndimage.binary_opening(mask, iterations=2))
        if count:
            mask = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
        mask = np.stack([ndimage.binary_fill_holes(part) for part in mask])
        return surface_of(
            Volume(mask, ct.affine),
            "body",
            BODY_COLOUR,
            step_mm=step_mm,
            opacity=0.28,
            smooth_voxels=1.5,
            find=find,
        )
    return surface_of(Volume(mask, ct.affine), "bones", BONE_COLOUR, step_mm=step_mm, opacity=0.35, find=find)


def error_colours(points_mm: np.ndarray, truth: Volume) -> np.ndarray:
    """(N, 3) colours of points by their distance to the surface of a mask: grey where it is met, red where outside, blue where inside, full at ERROR_MM."""
    outside = (
        ndimage.distance_transform_edt(~truth.array, sampling=truth.spacing_mm)
        if truth.array.any()
        else np.full(truth.array.shape, ERROR_MM)
    )
    inside = ndimage.distance_transform_edt(truth.array, sampling=truth.spacing_mm)
    half = np.mean(truth.spacing_mm) / 2
    signed = np.where(truth.array, -(inside - half), outside - half)
    index = (points_mm - truth.affine[:3, 3]) @ np.linalg.inv(truth.affine[:3, :3]).T
    distance = ndimage.map_coordinates(signed, index.T, order=1, mode="nearest")
    share = np.clip(np.abs(distance) / ERROR_MM, 0, 1)[:, None]
    full = np.where(distance[:, None] > 0, ERROR_COLOURS["outside"], ERROR_COLOURS["inside"])
    return (ERROR_COLOURS["met"] * (1 - share) + full * share).astype(np.float32)


ERROR_COLOURS = {
    "inside": np.array([0.10, 0.35, 0.85]),
    "met": np.array([0.85, 0.85, 0.83]),
    "outside": np.array([0.85, 0.20, 0.10]),
}


# ---- pictures ---------------------------------------------------------------------------------------------


def pictures(
    scene: Scene,
    degrees: Sequence[float],
    *,
    width: int,
    height: int,
    draw: Callable[..., np.ndarray] = render.draw,
) -> Iterator[np.ndarray]:
    """One picture (height, width, 3) uint8 per angle."""
    size = _text_size(height)
    longest = max(style.font(size).getlength(text) for text, _ in _legend_rows(scene))
    view = render.fit_view(
        scene.surfaces,
        width=width,
        height=height,
        left=min(round(longest + 3 * size), width // 3),
        tilt=scene.tilt,
    )
    for angle in degrees:
        yield annotated(draw(scene.surfaces, view, angle), scene, view, angle)


def annotated(picture: np.ndarray, scene: Scene, view: render.View, degrees: float) -> np.ndarray:
    """The picture with the legend, the patient's left and right, a scale bar and what is seen."""
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    size = _text_size(view.height)
    font, bold = style.font(size), style.font(round(size * 1.3), bold=True)
    _draw_legend(pen, scene, font, size)
    low, high = scene.box_mm
    ends = np.array([[side, view.centre_mm[1], low[2]] for side in (high[0], low[0])], dtype=np.float32)
    placed = view.place(ends, degrees)
    apart = abs(placed[0, 0] - placed[1, 0]) > 2 * size
    for letter, (column, row, depth) in zip("LR", placed):
        if apart or depth < 0:  # else the one at the back would stand behind the other
            pen.text(
                (float(column), min(float(row) + size, view.height - 0.7 * size)),
                letter,
                font=bold,
                fill=style.INK if depth < 1 else style.GREY,
                anchor="mm",
            )
    bar = _bar_mm(view)
    length, right, bottom = bar / view.mm_per_pixel, view.width - size, view.height - size
    pen.line([(right - length, bottom), (right, bottom)], fill=style.INK, width=max(2, size // 6))
    pen.text(
        (right - length / 2, bottom - size * 0.4), f"{bar / 10:g} cm", font=font, fill=style.INK, anchor="mb"
    )
    caption = f"seen from the {_seen_from(degrees)}" + (" and above" if view.tilt > 0 else "")
    caption += (f", probability {scene.level:g}" if scene.probabilities else "") + (
        ", synthetic data" if scene.synthetic else ""
    )
    pen.text((view.width - size, size), caption, font=font, fill=style.GREY, anchor="rt")
    return np.asarray(image)


def _legend_rows(scene: Scene) -> list[tuple[str, np.ndarray]]:
    if scene.errors:
        return [
            (f"{ERROR_MM:g} mm outside the reference", ERROR_COLOURS["outside"]),
            ("on its surface", ERROR_COLOURS["met"]),
            (f"{ERROR_MM:g} mm inside", ERROR_COLOURS["inside"]),
            ("reference", REFERENCE_COLOUR),
        ]
    rows = list(scene.legend[:LEGEND_ROWS])
    if len(scene.legend) > LEGEND_ROWS:
        rows[-1] = (f"and {len(scene.legend) - LEGEND_ROWS + 1} more", np.ones(3))
    return rows


def _draw_legend(pen: Any, scene: Scene, font: Any, size: int) -> None:
    for number, (text, colour) in enumerate(_legend_rows(scene)):
        top = size + number * size * 1.45
        if np.min(colour) < 1:
            pen.rectangle(
                [size, top, size * 1.9, top + size * 0.9],
                fill=tuple(int(255 * c) for c in colour),
                outline=style.GREY,
            )
        pen.text((size * 2.4, top + size * 0.45), text, font=font, fill=style.INK, anchor="lm")


def _text_size(height: int) -> int:
    return max(11, height // 36)


def _seen_from(degrees: float) -> str:
    nearest = min(SIDES, key=lambda side: abs((degrees - side + 180) % 360 - 180))
    return SIDES[nearest]


def _bar_mm(view: render.View) -> float:
    """A round length, about a sixth of the picture's width."""
    wanted = view.width * view.mm_per_pixel / 6
    return max((length for length in (10, 20, 50, 100, 200) if length <= wanted), default=10)
