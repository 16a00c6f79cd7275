"""Implicit shapes on a scan's voxel grid: drawing in millimetres, with partial volume at every edge.

A `Shape` holds a function f over a box of voxels: negative inside, roughly the distance in mm. How much of a
voxel lies inside follows from f and from how much f changes across that voxel, so thick slices, oblique grids
and stretched bodies all get the right soft edge without oversampling. Everything is evaluated in boxes around
the shapes, never voxel by voxel.

Coordinates are those of a standard body ("template", mm): origin between the femoral heads, x to the
patient's left, y to the back, z to the head. A scene maps every voxel there once: pose, size, and a smooth
random warp.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter1d

from ctseg.geometry.boxes import Box, box_shape, make_box, union, within
from ctseg.geometry.volume import Grid, corner_points

FAR_MM = 60.0  # value of f where a shape was not evaluated
_TABLE_STEP_MM = 0.5
_WARP_NODES_MM = 50.0

Field = np.ndarray  # a value per voxel, of the whole grid (D, H, W) or of a shape's box
Points = np.ndarray  # points or directions (n, 3) or one (3,), in mm; or (n, 4) with a radius
Coordinates = tuple[Field, Field, Field]
SIDES = {1: "left", -1: "right"}


@dataclasses.dataclass
class Shape:
    """An implicit function over a box of the scene. f: float32 of the box's shape, negative inside, about mm.

    axis_y: for some tubes, y of the nearest point of the centre line (for the level of fluids). `texture`
    says in methods by how much something varies with fields of the scene, such as grain=3 or blotch=1.2.
    """

    scene: Scene
    box: Box
    f: Field
    axis_y: Any = None

    def __post_init__(self) -> None:
        self.f = self.f.astype(np.float32, copy=False)

    def at(self) -> Coordinates:
        """Template coordinates x, y, z of the box's voxels."""
        return self.scene.at(self.box)

    def within(self, limit: Field) -> Shape:
        """The part of the shape where `limit` is negative too, a function over the same box."""
        return dataclasses.replace(self, f=np.maximum(self.f, limit))

    def cut(self, other: Shape | Field, gap_mm: float) -> Shape:
        """The shape kept `gap_mm` away from another one, or from what an f on the whole grid describes."""
        f = self.scene.spread(other) if isinstance(other, Shape) else other
        return self.within(gap_mm - f[self.box])

    def inside(self, other: Shape, depth_mm: float) -> Shape:
        """The part of the shape that lies `depth_mm` deep in another one."""
        return self.cut(-self.scene.spread(other), depth_mm)

    def inset(self, depth: float | Field, **texture: float) -> Shape:
        """The shape shrunk by a depth in mm (a number, or an array of the box's shape)."""
        return dataclasses.replace(self, f=self.f + self.uneven(depth, **texture))

    def uneven(self, value: Any, **texture: float) -> Any:
        """A number or an array of the box's shape, varied by amounts of the scene's texture."""
        for name, amount in texture.items():
            value = value + amount * self.scene.texture[name][self.box]
        return value

    def paint(
        self,
        hu: str | float | Field,
        label: str | None = None,
        *,
        plus: float = 0.0,
        strength: float = 1.0,
        **texture: float,
    ) -> None:
        """Blend a tissue into the picture, by the share of each voxel inside the shape.

        hu: a tissue of the scene, brighter by `plus`, or its HU: a number, or an array of the box's shape.
        label: the structure that every voxel becomes whose centre lies inside; KeyError for one without a
        number.
        """
        if not self.f.size:
            return
        mean = self.scene.tissue[hu] + plus if isinstance(hu, str) else hu
        picture = self.scene.hu[self.box]
        picture += strength * occupancy(self.f) * (self.uneven(mean, **texture) - picture)
        if label is not None:
            self.scene.label[self.box][self.f <= 0] = self.scene.ids[label]


class Scene:
    """A voxel grid with the template coordinates of its voxels, and the picture and label map drawn so far.

    pose: (3, 3), LPS mm to template mm. rng: draws the warp, then whatever is random in the picture. tissue:
    mean attenuation by name. ids: structure -> number in the label map. hu: (D, H, W) float32, label: uint8.
    texture: random fields (D, H, W) of deviation 1, by name, that make tissue uneven.
    """

    def __init__(
        self,
        grid: Grid,
        pose: np.ndarray,
        rng: np.random.Generator,
        warp_mm: float,
        tissue: dict[str, float],
        ids: Mapping[str, int],
    ):
        self.grid, self.shape, self.rng, self.tissue, self.ids = grid, grid.shape, rng, tissue, ids
        self.spacing_mm = np.array(grid.spacing_mm)
        self.to_template = np.vstack([pose @ grid.affine[:3], grid.affine[3:]])
        self.to_index = np.linalg.inv(self.to_template)
        d, h, w = (axis.astype(np.float32) for axis in np.ogrid[tuple(slice(n) for n in self.shape)])
        self.x, self.y, self.z = (
            row[0] * d + row[1] * h + row[2] * w + row[3] + warp_mm * self.smooth_field(_WARP_NODES_MM)
            for row in self.to_template[:3].astype(np.float32)
        )
        self._pad = np.ceil(3.0 * warp_mm / self.spacing_mm).astype(int) + 2
        self.hu = np.full(self.shape, -1000.0, dtype=np.float32)
        self.label = np.zeros(self.shape, dtype=np.uint8)
        self.texture: dict[str, Field] = {}

    # ---- fields over the whole grid ----------------------------------------------------------------------

    def smooth_field(self, node_mm: float) -> Field:
        """A smooth random field (D, H, W), float32, mean 0, deviation about 1; bumps about 2 * node_mm
        wide."""
        weights = []  # (n, nodes) along each axis: cubic B-splines, for unit-variance noise
        for n, step in zip(self.shape, self.spacing_mm):
            position = np.arange(n) / (node_mm / step) + 1.0
            knots = np.arange(-2, np.ceil(position[-1]) + 5)
            spline = BSpline.design_matrix(position, knots, 3).toarray()
            weights.append((spline / np.linalg.norm(spline, axis=1, keepdims=True)).astype(np.float32))
        nodes = self.rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32)
        planes = weights[1] @ (nodes @ weights[2].T)  # (nodes along D, H, W)
        return (weights[0] @ planes.reshape(len(planes), -1)).reshape(self.shape)

    def whole(self, f: Field) -> Shape:
        """A shape from a function over the whole grid."""
        return Shape(self, (slice(None), slice(None), slice(None)), f)

    def spread(self, *shapes: Shape) -> Field:
        """The union of shapes as a function on the whole grid, FAR_MM where there is none."""
        f = np.full(self.shape, FAR_MM, dtype=np.float32)
        for shape in shapes:
            np.minimum(f[shape.box], shape.f, out=f[shape.box])
        return f

    @property
    def nothing(self) -> Shape:
        """What is not there."""
        return Shape(self, make_box((0, 0, 0), (0, 0, 0)), np.zeros((0, 0, 0)))

    def blend(self, share: Field, hu: str | float | Field) -> None:
        """Mix a tissue, or HU, into the picture by its share of each voxel (0..1)."""
        self.hu += share * ((self.tissue[hu] if isinstance(hu, str) else hu) - self.hu)

    def join(self, shapes: list[Shape], blend_mm: float) -> Shape:
        """The union of shapes with rounded seams, in the box around them all."""
        seen = [shape for shape in shapes if shape.f.size] or shapes[:1]
        box = union(*(shape.box for shape in seen))
        f = np.full(box_shape(box), FAR_MM, dtype=np.float32)
        for shape in seen:
            inner = f[within(shape.box, box)]
            inner[...] = smooth_minimum(inner, shape.f, blend_mm)
        return Shape(self, box, f)

    # ---- shapes ------------------------------------------------------------------------------------------

    def box(self, low: np.ndarray, high: np.ndarray) -> Box:
        """The voxels that may lie in a template box (empty slices where it misses the scan)."""
        index = corner_points(self.to_index, low, high)
        start = np.clip(np.floor(index.min(axis=1)).astype(int) - self._pad, 0, self.shape)
        stop = np.clip(np.ceil(index.max(axis=1)).astype(int) + self._pad + 1, 0, self.shape)
        return make_box(start, np.maximum(start, stop))

    def at(self, box: Box) -> Coordinates:
        """Template coordinates x, y, z of the voxels of a box."""
        return self.x[box], self.y[box], self.z[box]

    def around(
        self, center: ArrayLike, reach_mm: float, *, pitch: float = 0.0, side: int = 1
    ) -> tuple[Box, Coordinates]:
        """The box that reaches `reach_mm` around a point, and there the coordinates about it.

        pitch (radians) turns them about the x axis; side -1 mirrors the point, and x points outwards.
        """
        middle = np.asarray(center, dtype=np.float64) * (side, 1, 1)
        box = self.box(middle - reach_mm, middle + reach_mm)
        x, y, z = (axis - np.float32(zero) for axis, zero in zip(self.at(box), middle))
        c, s = np.float32(np.cos(pitch)), np.float32(np.sin(pitch))
        return box, (x * side, c * y + s * z, c * z - s * y)

    def ellipsoid(
        self, center: ArrayLike, radii: Sequence[float], *, pitch: float = 0.0, side: int = 1
    ) -> Shape:
        """An ellipsoid; pitch (radians) turns it about the x axis."""
        box, coordinates = self.around(center, max(radii), pitch=pitch, side=side)
        return Shape(self, box, ellipsoid_distance(*coordinates, radii))

    def tube(
        self,
        points: ArrayLike,
        radii: ArrayLike | None = None,
        *,
        side: int = 1,
        blend_mm: float = 0.0,
        with_axis: bool = False,
    ) -> Shape:
        """A chain of rounded cones through points (n, 3), or (n, 4) with the radius in the last column.

        radii: (n,) or a number where the points hold none. side -1 mirrors it; blend_mm rounds the joints.
        """
        table = np.asarray(points, dtype=np.float64)
        nodes = table[:, :3] * (side, 1, 1)
        radius = np.broadcast_to(table[:, 3] if radii is None else radii, len(nodes)).tolist()
        reach = max(radius) + blend_mm
        outer = self.box((nodes - reach).min(axis=0), (nodes + reach).max(axis=0))
        f = np.full(box_shape(outer), FAR_MM, dtype=np.float32)
        axis_y = np.zeros_like(f) if with_axis else None
        for (a, ra), (b, rb) in itertools.pairwise(zip(nodes, radius)):
            margin = max(ra, rb) + blend_mm
            box = self.box(np.minimum(a, b) - margin, np.maximum(a, b) + margin)
            part = within(box, outer)
            inner = f[part]
            if not inner.size:
                continue
            step = (b - a).astype(np.float32)
            offset = [axis - zero for axis, zero in zip(self.at(box), a.tolist())]
            cone = _cone(offset, step, 1.0 / max(float(step @ step), 1e-6), ra, rb - ra)
            if axis_y is not None:
                axis_y[part][cone < inner] = 0.5 * (a[1] + b[1])
            inner[...] = smooth_minimum(inner, cone, blend_mm)
        return Shape(self, outer, f, axis_y)

    def loft(self, rows: ArrayLike, *, side: int = 1, margin_mm: float = 0.0) -> Shape:
        """A body given by axial sections, interpolated in between.

        rows: (n, 4), x, y, z and half thickness of points; those of one height are the chain that makes up a
        section, and every section has as many. margin_mm: how far outside the body the function is needed.
        """
        table = np.asarray(rows, dtype=np.float64) * (side, 1, 1, 1)
        count = int((table[:, 2] == table[0, 2]).sum())
        sections = table.reshape(-1, count, 4)
        reach = np.array([table[:, 3].max(), table[:, 3].max(), 0.0]) + margin_mm
        box = self.box(table[:, :3].min(axis=0) - reach, table[:, :3].max(axis=0) + reach)
        x, y, z = self.at(box)
        columns = [sections[:, 0, 2], *sections[:, :, (0, 1, 3)].reshape(len(sections), -1).T]
        ends = at_heights(np.stack(columns, axis=1), z)
        points = list(zip(ends[0::3], ends[1::3], ends[2::3]))
        chain = []
        for a, b in zip(points, points[1:] or points):
            step = b[0] - a[0], b[1] - a[1]
            inverse = 1.0 / np.maximum(step[0] ** 2 + step[1] ** 2, 1e-6)
            chain.append(_cone((x - a[0], y - a[1]), step, inverse, a[2], b[2] - a[2]))
        levels = table[:, 2].tolist()
        ends_mm = np.maximum(z - max(levels), min(levels) - z)
        return Shape(self, box, np.maximum(np.minimum.reduce(chain), ends_mm))


def occupancy(f: Field) -> Field:
    """Share of each voxel that lies inside (0..1), from f at the centres and its change across a voxel."""
    square = np.full(f.shape, 1e-4, dtype=np.float32)
    for axis in range(3):
        if f.shape[axis] > 1:
            square += np.gradient(f, axis=axis) ** 2
    share = 0.5 - f / np.sqrt(square, out=square)
    return np.clip(share, 0, 1, out=share)


def smooth_minimum(a: Field, b: Field, blend_mm: float) -> Field:
    """The union of two functions with a rounded seam."""
    if blend_mm <= 0:
        return np.minimum(a, b)
    overlap = np.maximum(blend_mm - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap * (0.25 / blend_mm)


def ellipsoid_distance(x: Field, y: Field, z: Field, radii: Sequence[float]) -> Field:
    """About the distance in mm to an axis-parallel ellipsoid at the origin, negative inside."""
    a, b, c = (np.float32(1.0 / r) for r in radii)
    px, py, pz = x * a, y * b, z * c
    level = np.sqrt(px * px + py * py + pz * pz)
    slope = np.sqrt((px * a) ** 2 + (py * b) ** 2 + (pz * c) ** 2)
    return level * (level - 1) / np.maximum(slope, 1e-4)


def at_heights(levels: np.ndarray, z: Field) -> list[Field]:
    """What a table of levels (n, 1 + k: height, values) says at the heights z: k float32 arrays of z's shape.

    Interpolated and smoothed in steps of half a millimetre; heights outside get the first or last value.
    """
    heights, *columns = levels[np.argsort(levels[:, 0])].T
    steps = np.arange(heights[0], heights[-1] + _TABLE_STEP_MM, _TABLE_STEP_MM)
    row = (z - np.float32(heights[0])) / _TABLE_STEP_MM
    row = np.clip(row, 0, len(steps) - 1).astype(np.intp)
    smooth = (gaussian_filter1d(np.interp(steps, heights, c), 8.0, mode="nearest") for c in columns)
    # "clip" spares checks of the rows
    return [np.take(f.astype(np.float32), row, mode="clip") for f in smooth]


def _cone(
    offset: Sequence[Field],
    step: Sequence[Field],
    inverse: Field | float,
    radius: Field | float,
    growth: Field | float,
) -> Field:
    """Distance to a rounded cone in two or three dimensions.

    offset: coordinates about its first end (overwritten), where it has `radius`. step: the way to its other
    end, where the radius is larger by `growth`; inverse: one over the square of its length.
    """
    t = functools.reduce(np.add, (p * s for p, s in zip(offset, step)))
    t = np.clip(t * inverse, 0, 1)
    for p, s in zip(offset, step):
        p -= t * s
    return np.sqrt(functools.reduce(np.add, (p * p for p in offset))) - (radius + t * growth)
