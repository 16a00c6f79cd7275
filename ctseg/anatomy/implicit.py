"""Implicit shapes on a scan's voxel grid: drawing in millimetres, with partial volume at every edge.

A `Shape` holds a function f over a box of voxels: negative inside, roughly the distance in mm. How much of a
voxel lies inside follows from f and from how much f changes across that voxel, so thick slices, oblique grids
and stretched bodies all get the right soft edge without oversampling. Everything is evaluated in boxes around
the shapes, never voxel by voxel.

Coordinates are those of a standard body ("template", mm): origin between the femoral heads, x to the patient's
left, y to the back, z to the head. A scene maps every voxel there once: pose, size, and a smooth random warp.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter1d

from ctseg.geometry.boxes import Box, box_shape, intersection, make_box, union, within

FAR_MM = 60.0  # value of f where a shape was not evaluated
_TABLE_STEP_MM = 0.5
_WARP_NODES_MM = 50.0

Level = tuple[float, Sequence[tuple[float, float, float]]]  # z, then (x, y, radius) of each point


@dataclasses.dataclass
class Shape:
    """An implicit function over a box of the scene. f: array of the box's shape, negative inside, about mm.

    axis_y: for some tubes, y of the nearest point of the centre line (for the level of fluids).
    """

    box: Box
    f: np.ndarray
    axis_y: np.ndarray | None = None

    def cut(self, other: np.ndarray, gap_mm: float) -> Shape:
        """The shape kept `gap_mm` away from another one, whose f is given on the whole grid."""
        return Shape(self.box, np.maximum(self.f, gap_mm - other[self.box]), self.axis_y)

    def inset(self, depth: float | np.ndarray) -> Shape:
        """The shape shrunk by a depth in mm (a number, or an array of the box's shape)."""
        return Shape(self.box, (self.f + depth).astype(np.float32, copy=False), self.axis_y)


class Scene:
    """A voxel grid with the template coordinates of its voxels, and the picture and label map drawn so far.

    shape: (D, H, W). affine: index to LPS mm. pose: (4, 4), LPS mm to template mm. hu: float32, label: uint8.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        affine: np.ndarray,
        pose: np.ndarray,
        rng: np.random.Generator,
        warp_mm: float,
    ):
        self.shape = shape
        self.affine = affine
        self.spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
        self.to_template = pose @ affine
        self._to_index = np.linalg.inv(self.to_template)
        d, h, w = np.ogrid[: shape[0], : shape[1], : shape[2]]
        axes = []
        for row in self.to_template[:3].astype(np.float32):
            straight = (
                row[0] * d.astype(np.float32) + row[1] * h.astype(np.float32) + row[2] * w.astype(np.float32)
            )
            axes.append(straight + row[3] + warp_mm * self.smooth_field(rng, _WARP_NODES_MM))
        self.x, self.y, self.z = axes
        self._pad = np.ceil(3.0 * warp_mm / self.spacing_mm).astype(int) + 2
        self.hu = np.full(shape, -1000.0, dtype=np.float32)
        self.label = np.zeros(shape, dtype=np.uint8)

    # ---- fields over the whole grid ----------------------------------------------------------------------

    def smooth_field(self, rng: np.random.Generator, node_mm: float) -> np.ndarray:
        """A smooth random field (D, H, W), float32, mean 0 and deviation about 1; bumps about 2 * node_mm wide."""
        weights = [_spline_weights(n, node_mm / step) for n, step in zip(self.shape, self.spacing_mm)]
        nodes = rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32)
        planes = weights[1] @ (nodes @ weights[2].T)  # (nodes along D, H, W)
        return (weights[0] @ planes.reshape(len(planes), -1)).reshape(self.shape)

    def empty(self) -> np.ndarray:
        """A function on the whole grid that is far outside everywhere."""
        return np.full(self.shape, FAR_MM, dtype=np.float32)

    def whole(self, f: np.ndarray) -> Shape:
        """A shape from a function over the whole grid."""
        return Shape((slice(None), slice(None), slice(None)), f)

    def carve(self, shape: Shape, hole: Shape) -> None:
        """Take `hole` out of `shape`, in place."""
        both = intersection(shape.box, hole.box)
        if both is not None:
            outer, inner = shape.f[within(both, shape.box)], hole.f[within(both, hole.box)]
            np.maximum(outer, -inner, out=outer)

    def join(self, shapes: Sequence[Shape], blend_mm: float) -> Shape:
        """The union of shapes with rounded seams, in the box around them all."""
        seen = [shape for shape in shapes if shape.f.size]
        if not seen:
            return shapes[0]
        box = union(*(shape.box for shape in seen))
        f = np.full(box_shape(box), FAR_MM, dtype=np.float32)
        for shape in seen:
            inner = f[within(shape.box, box)]
            inner[...] = smooth_minimum(inner, shape.f, blend_mm)
        return Shape(box, f)

    def spread(self, *shapes: Shape) -> np.ndarray:
        """The union of shapes as a function on the whole grid."""
        f = self.empty()
        for shape in shapes:
            np.minimum(f[shape.box], shape.f, out=f[shape.box])
        return f

    # ---- shapes ------------------------------------------------------------------------------------------

    def box(self, low: np.ndarray, high: np.ndarray) -> Box:
        """The voxels that may lie in a template box (empty slices where it misses the scan)."""
        corners = np.array(np.meshgrid(*zip(low, high))).reshape(3, -1)
        index = self._to_index[:3, :3] @ corners + self._to_index[:3, 3:]
        start = np.clip(np.floor(index.min(axis=1)).astype(int) - self._pad, 0, self.shape)
        stop = np.clip(np.ceil(index.max(axis=1)).astype(int) + self._pad + 1, 0, self.shape)
        return make_box(start, np.maximum(start, stop))

    def at(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Template coordinates x, y, z of the voxels of a box."""
        return self.x[box], self.y[box], self.z[box]

    def tube(
        self,
        points: ArrayLike | Sequence[ArrayLike],
        radii: ArrayLike,
        *,
        side: int = 1,
        blend_mm: float = 0.0,
        with_axis: bool = False,
    ) -> Shape:
        """A chain of rounded cones through `points` (n, 3). side -1 mirrors it; blend_mm rounds the joints."""
        nodes = np.asarray(points, dtype=np.float64) * (side, 1, 1)
        radius = np.broadcast_to(np.asarray(radii, dtype=np.float64), len(nodes))
        reach = radius.max() + blend_mm
        outer = self.box((nodes - reach).min(axis=0), (nodes + reach).max(axis=0))
        f = np.full(box_shape(outer), FAR_MM, dtype=np.float32)
        axis_y = np.zeros_like(f) if with_axis else None
        for a, b, ra, rb in zip(nodes[:-1], nodes[1:], radius[:-1], radius[1:]):
            margin = max(ra, rb) + blend_mm
            box = self.box(np.minimum(a, b) - margin, np.maximum(a, b) + margin)
            part = within(box, outer)
            inner = f[part]
            if not inner.size:
                continue
            cone = _cone(*self.at(box), a, b, ra, rb)
            if axis_y is not None:
                axis_y[part][cone < inner] = 0.5 * (a[1] + b[1])
            inner[...] = smooth_minimum(inner, cone, blend_mm)
        return Shape(outer, f, axis_y)

    def ellipsoid(
        self, center: ArrayLike, radii: Sequence[float], *, pitch: float = 0.0, side: int = 1
    ) -> Shape:
        """An ellipsoid; pitch (radians) turns it about the x axis."""
        middle = np.asarray(center, dtype=np.float64) * (side, 1, 1)
        reach = np.full(3, max(radii))
        box = self.box(middle - reach, middle + reach)
        return Shape(box, ellipsoid_distance(*turned(*self.at(box), middle, pitch), radii))

    def loft(self, levels: Sequence[Level], *, side: int = 1, margin_mm: float = 0.0) -> Shape:
        """A body given by axial sections: at each z a chain of points with radii, interpolated in between.

        margin_mm: how far outside the body the function is needed.
        """
        heights = np.array([z for z, _ in levels], dtype=np.float64)
        sections = np.array([points for _, points in levels], dtype=np.float64)  # (levels, points, 3)
        sections[:, :, 0] *= side
        reach = sections[:, :, 2:].max()
        low = np.array([*(sections[:, :, :2].min(axis=(0, 1)) - reach), heights.min()]) - margin_mm
        high = np.array([*(sections[:, :, :2].max(axis=(0, 1)) + reach), heights.max()]) + margin_mm
        box = self.box(low, high)
        x, y, z = self.at(box)
        if not x.size:
            return Shape(box, np.zeros(x.shape, dtype=np.float32))
        table = level_table(heights, sections.reshape(len(heights), -1)).reshape(-1, sections.shape[1], 3)
        row = table_row(z, heights.min(), len(table))
        f = np.maximum(z - np.float32(heights.max()), np.float32(heights.min()) - z)
        ends = [(j, min(j + 1, sections.shape[1] - 1)) for j in range(max(1, sections.shape[1] - 1))]
        chain = np.minimum.reduce([_flat_cone(x, y, row, table[:, j], table[:, k]) for j, k in ends])
        return Shape(box, np.maximum(f, chain))

    # ---- painting ----------------------------------------------------------------------------------------

    def paint(
        self,
        shape: Shape,
        hu: float | np.ndarray,
        label: int | None = None,
        *,
        inset_mm: float = 0.0,
        strength: float = 1.0,
    ) -> None:
        """Blend a tissue into the picture, by the share of each voxel inside the shape shrunk by `inset_mm`.

        hu: a number, or an array of the box's shape. label: id written where the voxel centre lies inside.
        """
        if not shape.f.size:
            return
        f = shape.f + np.float32(inset_mm) if inset_mm else shape.f
        share = occupancy(f)
        if strength != 1.0:
            share *= np.float32(strength)
        picture = self.hu[shape.box]
        picture += share * (hu - picture)
        if label is not None:
            self.label[shape.box][f <= 0] = label


def occupancy(f: np.ndarray) -> np.ndarray:
    """Share of each voxel that lies inside (0..1), from f at the centres and its change across a voxel."""
    square = np.full(f.shape, 1e-4, dtype=np.float32)
    for axis in range(3):
        if f.shape[axis] > 1:
            change = np.empty_like(f)
            lead, tail, middle = [slice(None)] * 3, [slice(None)] * 3, [slice(None)] * 3
            lead[axis], tail[axis], middle[axis] = slice(2, None), slice(None, -2), slice(1, -1)
            change[tuple(middle)] = (f[tuple(lead)] - f[tuple(tail)]) * np.float32(0.5)
            for edge, near, away in ((0, 0, 1), (-1, -2, -1)):
                pick = [slice(None)] * 3
                pick[axis] = slice(edge, None) if edge else slice(0, 1)
                first, second = list(pick), list(pick)
                first[axis] = slice(near, near + 1 or None)
                second[axis] = slice(away, away + 1 or None)
                change[tuple(pick)] = f[tuple(second)] - f[tuple(first)]
            square += change * change
    share = np.float32(0.5) - f / np.sqrt(square, out=square)
    return np.clip(share, 0, 1, out=share)


def smooth_minimum(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """The union of two functions with a rounded seam."""
    if blend_mm <= 0:
        return np.minimum(a, b)
    overlap = np.maximum(np.float32(blend_mm) - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap * np.float32(0.25 / blend_mm)


def turned(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, center: np.ndarray, pitch: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates about `center`, turned about the x axis by `pitch` radians."""
    c, s = np.float32(np.cos(pitch)), np.float32(np.sin(pitch))
    dy, dz = y - np.float32(center[1]), z - np.float32(center[2])
    return x - np.float32(center[0]), c * dy + s * dz, c * dz - s * dy


def ellipsoid_distance(x: np.ndarray, y: np.ndarray, z: np.ndarray, radii: Sequence[float]) -> np.ndarray:
    """About the distance in mm to an axis-parallel ellipsoid at the origin, negative inside."""
    a, b, c = (np.float32(1.0 / r) for r in radii)
    px, py, pz = x * a, y * b, z * c
    level = np.sqrt(px * px + py * py + pz * pz)
    slope = np.sqrt((px * a) ** 2 + (py * b) ** 2 + (pz * c) ** 2)
    return level * (level - 1) / np.maximum(slope, np.float32(1e-4))


def level_table(heights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rows of `values` (levels, k) interpolated every half millimetre from the lowest to the highest level, float32."""
    z = np.arange(heights.min(), heights.max() + _TABLE_STEP_MM, _TABLE_STEP_MM)
    order = np.argsort(heights)
    columns = [np.interp(z, heights[order], column[order]) for column in values.T]
    return gaussian_filter1d(np.stack(columns, axis=1), 8.0, axis=0, mode="nearest").astype(np.float32)


def table_row(z: np.ndarray, lowest: float, rows: int) -> np.ndarray:
    """Which row of a level table belongs to each height; heights outside get the first or last row."""
    return np.clip((z - np.float32(lowest)) * np.float32(1 / _TABLE_STEP_MM), 0, rows - 1).astype(np.intp)


def _cone(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, a: np.ndarray, b: np.ndarray, ra: float, rb: float
) -> np.ndarray:
    """Distance to the rounded cone from a (radius ra) to b (radius rb)."""
    step = (b - a).astype(np.float32)
    px, py, pz = x - np.float32(a[0]), y - np.float32(a[1]), z - np.float32(a[2])
    t = (px * step[0] + py * step[1] + pz * step[2]) * np.float32(1.0 / max(float(step @ step), 1e-6))
    np.clip(t, 0, 1, out=t)
    px -= t * step[0]
    py -= t * step[1]
    pz -= t * step[2]
    return np.sqrt(px * px + py * py + pz * pz) - (np.float32(ra) + t * np.float32(rb - ra))


def _flat_cone(x: np.ndarray, y: np.ndarray, row: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same in the axial plane, with ends (x, y, radius) that depend on the table row of each voxel."""
    step = b - a
    inverse = 1.0 / np.maximum(step[:, 0] ** 2 + step[:, 1] ** 2, np.float32(1e-6))
    px, py = x - _pick(a[:, 0], row), y - _pick(a[:, 1], row)
    sx, sy = _pick(step[:, 0], row), _pick(step[:, 1], row)
    t = (px * sx + py * sy) * _pick(inverse, row)
    np.clip(t, 0, 1, out=t)
    px -= t * sx
    py -= t * sy
    return np.sqrt(px * px + py * py) - (_pick(a[:, 2], row) + t * _pick(step[:, 2], row))


def _pick(column: np.ndarray, row: np.ndarray) -> np.ndarray:
    return np.take(np.ascontiguousarray(column), row, mode="clip")  # "clip" spares the check of every index


def _spline_weights(n: int, node_step: float) -> np.ndarray:
    """(n, nodes) weights of cubic B-splines with a node every `node_step` voxels, for unit-variance noise."""
    position = np.arange(n) / node_step + 1.0
    nodes = int(np.ceil(position[-1])) + 3
    u = np.abs(position[:, None] - np.arange(nodes)[None, :])
    weights = np.where(u < 1, 2 / 3 - u**2 + u**3 / 2, np.where(u < 2, (2 - np.minimum(u, 2)) ** 3 / 6, 0.0))
    return (weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))).astype(np.float32)
