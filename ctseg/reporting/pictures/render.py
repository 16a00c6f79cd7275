"""Surfaces to pictures, by numpy alone: no display, no OpenGL.

The patient stands upright and turns about the long axis. At 0 degrees the viewer faces the patient, whose
left is on the right of the picture, as in a radiograph. Each pixel keeps the nearest point (a depth
buffer), shaded by its normal and darkened in hollows; flat pictures come next, not lit, and translucent
surfaces last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ctseg.reporting.pictures.surfaces import Surface, all_points_mm, box_mm

SUPERSAMPLING = 2  # picture elements per pixel and axis
MARGIN = 0.06  # of the picture's width and height, at each side
LIGHT = np.array([-0.35, -0.80, 0.50])  # towards the light: from the viewer's upper left
AMBIENT, HOLLOW_MM, HOLLOW_SHADE = 0.38, 25.0, 0.55
EDGE_ON = 0.06  # cosine below which a flat picture is seen from its edge: it would be a line, and is left out
DEPTH_STEPS = 1 << 20
# in the depth buffer: behind everything, and exact as float64, in which SciPy filters
NOTHING = DEPTH_STEPS << 32


@dataclasses.dataclass(frozen=True)
class View:
    """Where the camera stands. centre_mm: (x, y, z), LPS. Orthographic; `width` and `height` in pixels.

    left: columns that are kept free. tilt: degrees by which the viewer looks down.
    """

    centre_mm: tuple[float, float, float]
    mm_per_pixel: float
    radius_mm: float
    width: int
    height: int
    left: int = 0
    tilt: float = 0.0

    def axes(self, degrees: float) -> np.ndarray:
        """(3, 3) float32: what is to the right in the picture, towards the viewer, and up, as LPS directions.

        The patient turns to their right.
        """
        turn, tilt = np.deg2rad(degrees), np.deg2rad(self.tilt)
        right = np.array([np.cos(turn), np.sin(turn), 0.0])
        ahead = np.array([np.sin(turn), -np.cos(turn), 0.0])
        above = np.array([0.0, 0.0, 1.0])
        towards, up = np.cos(tilt) * ahead + np.sin(tilt) * above, np.cos(tilt) * above - np.sin(tilt) * ahead
        return np.stack([right, towards, up]).astype(np.float32)

    def place(self, points_mm: np.ndarray, degrees: float) -> np.ndarray:
        """(N, 3) points -> columns, rows (in pixels) and depths (mm, larger is farther away)."""
        right, towards, up = self.axes(degrees)
        seen = points_mm - np.asarray(self.centre_mm, dtype=points_mm.dtype)
        columns = seen @ right / self.mm_per_pixel + (self.left + self.width) / 2
        rows = self.height / 2 - seen @ up / self.mm_per_pixel
        return np.stack([columns, rows, -(seen @ towards)], axis=1)


def fit_view(
    surfaces: Sequence[Surface], *, width: int, height: int, left: int = 0, tilt: float = 0.0
) -> View:
    """A view in which everything stays inside the picture all the way round.

    ValueError when there is nothing to see.
    """
    low, high = box_mm(surfaces)
    centre = (low + high) / 2
    points = all_points_mm(surfaces) - centre
    aside = np.linalg.norm(points[:, :2], axis=1)
    radius = float(aside.max())
    sine, cosine = float(np.sin(np.deg2rad(tilt))), float(np.cos(np.deg2rad(tilt)))
    half = float((np.abs(points[:, 2]) * cosine + aside * sine).max())
    room = 1 - 2 * MARGIN
    scale = max(2 * radius / ((width - left) * room), 2 * half / (height * room), 1e-3)
    reach = float(np.hypot(radius, (high[2] - low[2]) / 2)) + 1.0
    x, y, z = (float(value) for value in centre)
    return View((x, y, z), scale, reach, width, height, left, tilt)


@dataclasses.dataclass(frozen=True)
class Layer:
    """What is nearest to the viewer.

    hit: bool (h, w), where something is; of these n elements: colours (n, 3), lit, and the cosine between
    surface and viewer (n,). depth: (h, w) in mm, inf elsewhere.
    """

    hit: np.ndarray
    colours: np.ndarray
    facing: np.ndarray
    depth: np.ndarray


def draw(surfaces: Sequence[Surface], view: View, degrees: float) -> np.ndarray:
    """One picture, (height, width, 3) uint8, of the surfaces after the patient has turned by so many degrees.

    What is solid comes first, flat pictures between it, translucent surfaces over both.
    """
    view = dataclasses.replace(
        view,
        mm_per_pixel=view.mm_per_pixel / SUPERSAMPLING,
        width=view.width * SUPERSAMPLING,
        height=view.height * SUPERSAMPLING,
        left=view.left * SUPERSAMPLING,
    )
    _, towards, _ = view.axes(degrees)
    picture = np.ones((view.height, view.width, 3), dtype=np.float32)
    depth = np.full((view.height, view.width), np.inf, dtype=np.float32)
    drawn = [surface for surface in surfaces if len(surface.points_mm)]
    if solid := [surface for surface in drawn if surface.opacity >= 1 and not surface.flat]:
        front = nearest(solid, view, degrees)
        depth = front.depth
        picture[front.hit] = front.colours * hollow_shade(depth, front.hit)[:, None]
    if flat := [s for s in drawn if s.flat and abs(float(s.normals[0] @ towards)) > EDGE_ON]:
        front = nearest(flat, view, degrees)
        nearer = front.depth < depth
        picture[nearer] = front.colours[nearer[front.hit]]
        depth = np.minimum(depth, front.depth)
    for glass in (surface for surface in drawn if surface.opacity < 1):
        front = nearest([glass], view, degrees)
        visible = front.depth[front.hit] < depth[front.hit]
        rim = 0.35 + 0.65 * (1 - np.clip(front.facing, 0, 1)) ** 1.5  # denser there, like glass
        alpha = np.where(visible, glass.opacity * rim, 0).astype(np.float32)[:, None]
        picture[front.hit] = picture[front.hit] * (1 - alpha) + front.colours * alpha
    blocks = block_means(picture, SUPERSAMPLING)
    return (np.clip(blocks, 0, 1) * 255 + 0.5).astype(np.uint8)


def nearest(surfaces: Sequence[Surface], view: View, degrees: float) -> Layer:
    """What is seen of surfaces, all of them flat or none.

    Every point is three elements wide, so that no holes open.
    """
    right, towards, up = view.axes(degrees)
    flat = surfaces[0].flat
    parts = []
    for surface in surfaces:
        seen = slice(None) if flat else surface.normals @ towards > 0
        colours = np.broadcast_to(surface.colour, surface.points_mm.shape)
        parts.append([array[seen] for array in (surface.points_mm, surface.normals, colours)])
    points, normals, colours = map(np.concatenate, zip(*parts))
    placed = view.place(points, degrees)
    columns, rows = np.floor(placed[:, 0]).astype(np.int64), np.floor(placed[:, 1]).astype(np.int64)
    inside = (columns >= 0) & (columns < view.width) & (rows >= 0) & (rows < view.height)
    number = np.flatnonzero(inside)
    far = np.clip((placed[number, 2] + view.radius_mm) / (2 * view.radius_mm), 0, 1) * (DEPTH_STEPS - 1)
    keys = (far.astype(np.int64) << 32) | number
    buffer = np.full(view.height * view.width, NOTHING)
    np.minimum.at(buffer, rows[number] * view.width + columns[number], keys)
    buffer = ndimage.minimum_filter(buffer.reshape(view.height, view.width), size=3, mode="nearest")
    hit = buffer != NOTHING
    winner = buffer[hit] & 0xFFFFFFFF
    depth = np.full(hit.shape, np.inf, dtype=np.float32)
    depth[hit] = placed[winner, 2]
    normals, colours = normals[winner], colours[winner].astype(np.float32)
    if not flat:
        light = (LIGHT[0] * right - LIGHT[1] * towards + LIGHT[2] * up) / np.linalg.norm(LIGHT)
        colours = colours * (AMBIENT + (1 - AMBIENT) * np.clip(normals @ light, 0, 1))[:, None]
    return Layer(hit, colours, np.abs(normals @ towards), depth)


def hollow_shade(depth: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """(n,) factor below 1 for elements that lie behind their surroundings."""
    sigma = max(2.0, depth.shape[0] / 60)
    part = max(1, int(sigma / 3))  # so blurred that it is done on fewer elements
    weight, total = (
        ndimage.gaussian_filter(block_means(values, part), sigma / part)
        for values in (hit.astype(np.float32), np.where(hit, depth, 0))
    )
    places = (np.stack(np.nonzero(hit)) + 0.5) / part - 0.5
    around = ndimage.map_coordinates(total / np.maximum(weight, 1e-6), places, order=1, mode="nearest")
    return 1 - HOLLOW_SHADE * np.clip((depth[hit] - around) / HOLLOW_MM, 0, 1)


def block_means(picture: np.ndarray, part: int) -> np.ndarray:
    """Means of blocks of part x part elements of a picture, (h, w) or (h, w, 3), filled up with zeros at the
    ends.
    """
    height, width = (-(-length // part) for length in picture.shape[:2])
    ends = [(0, height * part - picture.shape[0]), (0, width * part - picture.shape[1])]
    padded = np.pad(picture, ends + [(0, 0)] * (picture.ndim - 2))
    return padded.reshape(height, part, width, part, *picture.shape[2:]).mean(axis=(1, 3))
