"""Surfaces to pictures, by numpy alone: no display, no OpenGL.

The patient stands upright and turns about the long axis. At 0 degrees the viewer faces the patient, whose left is on the right
of the picture, as in a radiograph. Each pixel keeps the nearest point (a depth buffer), shaded by its normal and darkened in
hollows; flat pictures come next, not lit, and translucent surfaces last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from ctseg.reporting.pictures.surfaces import Surface

SUPERSAMPLING = 2  # picture elements per pixel and axis
LIGHT = np.array([-0.35, -0.80, 0.50]) / np.linalg.norm(
    [-0.35, -0.80, 0.50]
)  # towards the light: from the viewer's upper left
AMBIENT, HOLLOW_MM, HOLLOW_SHADE = 0.38, 25.0, 0.55
EDGE_ON = 0.06  # cosine below which a flat picture is seen from its edge: it would be a line, and is left out
_NOTHING = np.iinfo(np.uint64).max
_DEPTH_STEPS = 1 << 20


@dataclasses.dataclass(frozen=True)
class View:
    """Where the camera stands. centre_mm: (x, y, z), LPS. Orthographic; `width` and `height` in pixels, of which `left` columns are kept free.

    tilt: degrees by which the viewer looks down.
    """

    centre_mm: tuple[float, float, float]
    mm_per_pixel: float
    radius_mm: float
    width: int
    height: int
    left: int = 0
    tilt: float = 0.0

    def axes(self, degrees: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is to the right in the picture, towards the viewer, and up, as LPS directions (float32). The patient turns to their right."""
        turn, tilt = np.deg2rad(degrees), np.deg2rad(self.tilt)
        right = np.array([np.cos(turn), np.sin(turn), 0.0])
        ahead = np.array([np.sin(turn), -np.cos(turn), 0.0])
        above = np.array([0.0, 0.0, 1.0])
        towards, up = np.cos(tilt) * ahead + np.sin(tilt) * above, np.cos(tilt) * above - np.sin(tilt) * ahead
        return right.astype(np.float32), towards.astype(np.float32), up.astype(np.float32)

    def place(self, points_mm: np.ndarray, degrees: float) -> np.ndarray:
        """(N, 3) points -> columns, rows (in pixels) and depths (mm, larger is farther away)."""
        right, towards, up = self.axes(degrees)
        seen = points_mm - np.asarray(self.centre_mm, dtype=points_mm.dtype)
        columns = seen @ right / self.mm_per_pixel + (self.left + self.width) / 2
        rows = self.height / 2 - seen @ up / self.mm_per_pixel
        return np.stack([columns, rows, -(seen @ towards)], axis=1)


def fit_view(
    surfaces: Sequence[Surface],
    *,
    width: int,
    height: int,
    left: int = 0,
    tilt: float = 0.0,
    margin: float = 0.06,
) -> View:
    """A view in which everything stays inside the picture all the way round. ValueError when there is nothing to see."""
    points = [surface.points_mm for surface in surfaces if len(surface.points_mm)]
    if not points:
        raise ValueError("no surface has a point")
    low, high = np.min([p.min(0) for p in points], axis=0), np.max([p.max(0) for p in points], axis=0)
    centre = (low + high) / 2
    aside = [np.linalg.norm((p - centre)[:, :2], axis=1) for p in points]
    radius = max(float(distances.max()) for distances in aside)
    sine, cosine = float(np.sin(np.deg2rad(tilt))), float(np.cos(np.deg2rad(tilt)))
    half = max(
        float((np.abs(p[:, 2] - centre[2]) * cosine + distances * sine).max())
        for p, distances in zip(points, aside)
    )
    room = 1 - 2 * margin
    scale = max(2 * radius / ((width - left) * room), 2 * half / (height * room), 1e-3)
    reach = float(np.hypot(radius, (high[2] - low[2]) / 2)) + 1.0
    return View(
        (float(centre[0]), float(centre[1]), float(centre[2])), scale, reach, width, height, left, tilt
    )


def draw(
    surfaces: Sequence[Surface], view: View, degrees: float, background: Sequence[float] = (1.0, 1.0, 1.0)
) -> np.ndarray:
    """One picture, (height, width, 3) uint8, of the surfaces after the patient has turned by so many degrees."""
    view = finer(view)
    right, towards, up = view.axes(degrees)
    light = (LIGHT[0] * right - LIGHT[1] * towards + LIGHT[2] * up).astype(np.float32)

    def layer(chosen: Sequence[Surface]) -> Layer:
        hit, colours, normals, depth = _nearest(chosen, view, degrees)
        shade = 1 if chosen[0].flat else (AMBIENT + (1 - AMBIENT) * np.clip(normals @ light, 0, 1))[:, None]
        return Layer(hit, colours * shade, np.abs(normals @ towards), depth)

    return blend(surfaces, layer, view, degrees, background)


@dataclasses.dataclass(frozen=True)
class Layer:
    """What is nearest to the viewer. hit: bool (h, w); of these n elements: colours (n, 3), lit, and the cosine between surface and viewer (n,); depth: (h, w) in mm, inf elsewhere."""

    hit: np.ndarray
    colours: np.ndarray
    facing: np.ndarray
    depth: np.ndarray


def finer(view: View) -> View:
    """The view with several picture elements for each pixel."""
    return dataclasses.replace(
        view,
        mm_per_pixel=view.mm_per_pixel / SUPERSAMPLING,
        width=view.width * SUPERSAMPLING,
        height=view.height * SUPERSAMPLING,
        left=view.left * SUPERSAMPLING,
    )


def blend(
    surfaces: Sequence[Surface],
    layer: Callable[[Sequence[Surface]], Layer],
    view: View,
    degrees: float,
    background: Sequence[float] = (1.0, 1.0, 1.0),
) -> np.ndarray:
    """The picture, (h, w, 3) uint8, from layers: what is solid, flat pictures between, and translucent surfaces over both. view: already finer."""
    _, towards, _ = view.axes(degrees)
    picture = np.broadcast_to(np.asarray(background, dtype=np.float32), (view.height, view.width, 3)).copy()
    depth = np.full((view.height, view.width), np.inf, dtype=np.float32)
    drawn = [surface for surface in surfaces if len(surface.points_mm)]
    solid = [surface for surface in drawn if surface.opacity >= 1 and not surface.flat]
    if solid:
        front = layer(solid)
        depth = front.depth
        picture[front.hit] = front.colours * _hollows(depth, front.hit)[:, None]
    if flat := [
        surface for surface in drawn if surface.flat and abs(float(surface.normals[0] @ towards)) > EDGE_ON
    ]:
        front = layer(flat)
        nearer = front.depth < depth
        picture[nearer] = front.colours[nearer[front.hit]]
        depth = np.minimum(depth, front.depth)
    for surface in drawn:
        if surface.opacity < 1:
            front = layer([surface])
            visible = front.depth[front.hit] < depth[front.hit]
            alpha = np.where(
                visible, surface.opacity * (0.35 + 0.65 * (1 - np.clip(front.facing, 0, 1)) ** 1.5), 0
            ).astype(np.float32)[:, None]  # denser at the rim, like glass
            picture[front.hit] = picture[front.hit] * (1 - alpha) + front.colours * alpha
    blocks = (
        sum(
            picture[row::SUPERSAMPLING, column::SUPERSAMPLING]
            for row in range(SUPERSAMPLING)
            for column in range(SUPERSAMPLING)
        )
        / SUPERSAMPLING**2
    )
    return (np.clip(blocks, 0, 1) * 255 + 0.5).astype(np.uint8)


def _nearest(
    surfaces: Sequence[Surface], view: View, degrees: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(bool (h, w) where something is, colours (n, 3) and normals (n, 3) of those elements, depth (h, w) in mm, inf elsewhere)."""
    _, towards, _ = view.axes(degrees)
    points, normals, colours = [], [], []
    for surface in surfaces:
        facing = surface.normals @ towards > 0 if not surface.flat else slice(None)
        points.append(surface.points_mm[facing])
        normals.append(surface.normals[facing])
        colours.append(np.broadcast_to(surface.colour, surface.points_mm.shape)[facing])
    cloud, of_points, of_colours = np.concatenate(points), np.concatenate(normals), np.concatenate(colours)
    placed = view.place(cloud, degrees)
    columns, rows = np.floor(placed[:, 0]).astype(np.int64), np.floor(placed[:, 1]).astype(np.int64)
    inside = (columns >= 0) & (columns < view.width) & (rows >= 0) & (rows < view.height)
    number = np.flatnonzero(inside)
    far = np.clip((placed[number, 2] + view.radius_mm) / (2 * view.radius_mm), 0, 1) * (_DEPTH_STEPS - 1)
    keys = (far.astype(np.uint64) << np.uint64(32)) | number.astype(np.uint64)
    buffer = np.full(view.height * view.width, _NOTHING, dtype=np.uint64)
    np.minimum.at(buffer, rows[number] * view.width + columns[number], keys)
    buffer = _widened(buffer.reshape(view.height, view.width))
    hit = buffer != _NOTHING
    winner = (buffer[hit] & np.uint64(0xFFFFFFFF)).astype(np.int64)
    depth = np.full(hit.shape, np.inf, dtype=np.float32)
    depth[hit] = placed[winner, 2]
    return hit, of_colours[winner].astype(np.float32), of_points[winner], depth


def _widened(buffer: np.ndarray) -> np.ndarray:
    """Every point three elements wide and high, so that no holes open between them."""
    for axis in range(2):
        lower, upper = [slice(None)] * 2, [slice(None)] * 2
        lower[axis], upper[axis] = slice(None, -1), slice(1, None)
        wide = buffer.copy()
        np.minimum(wide[tuple(upper)], buffer[tuple(lower)], out=wide[tuple(upper)])
        np.minimum(wide[tuple(lower)], buffer[tuple(upper)], out=wide[tuple(lower)])
        buffer = wide
    return buffer


def _hollows(depth: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """(n,) factor below 1 for elements that lie behind their surroundings."""
    sigma = max(2.0, depth.shape[0] / 60)
    part = max(1, int(sigma / 3))  # so blurred that it is done on fewer elements
    weight = ndimage.gaussian_filter(_shrunk(hit.astype(np.float32), part), sigma / part)
    around = ndimage.gaussian_filter(_shrunk(np.where(hit, depth, 0), part), sigma / part) / np.maximum(
        weight, 1e-6
    )
    rows, columns = np.nonzero(hit)
    places = (np.stack([rows, columns]) + 0.5) / part - 0.5
    return 1 - HOLLOW_SHADE * np.clip(
        (depth[hit] - ndimage.map_coordinates(around, places, order=1, mode="nearest")) / HOLLOW_MM, 0, 1
    )


def _shrunk(picture: np.ndarray, part: int) -> np.ndarray:
    """Means of blocks of part x part elements; the last ones are filled up with zeros."""
    height, width = (-(-length // part) for length in picture.shape)
    padded = np.pad(picture, ((0, height * part - picture.shape[0]), (0, width * part - picture.shape[1])))
    return padded.reshape(height, part, width, part).mean(axis=(1, 3))
