"""The shape of a synthetic heart: its frame, its chambers, and a map of its outer surface.

Heart coordinates (u, v, w) in mm: u from the valve plane to the apex, v from the right ventricle to the left
one, w across both, towards the head and the front. The surface is addressed by (angle, u): the angle, in
degrees, turns about the long axis from the left ventricle's side wall (0) over the front (90) to the right
ventricle (180) and the diaphragm (270).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

import numpy as np
from scipy.ndimage import gaussian_filter1d, map_coordinates
from scipy.spatial.transform import Rotation

from ctseg.anatomy.implicit import Field, Points, ellipsoid_distance, smooth_minimum
from ctseg.anatomy.shape_tables import read_table

# Rows u, v, w in LPS: the apex points to the left, the front and the feet.
_U = np.array([0.65, -0.55, -0.52]) / np.linalg.norm([0.65, -0.55, -0.52])
_V = np.array([0.62, 0.69, 0.04]) - _U * (_U @ np.array([0.62, 0.69, 0.04]))
FRAME = np.stack([_U, _V / np.linalg.norm(_V), np.cross(_U, _V / np.linalg.norm(_V))])
OUTER = read_table(__file__, "walls")
BASE_U = -4.0  # ventricles end here, at the valves
_BLEND_MM = 4.0
_BED_MM = 12.0
_ANGLES = np.arange(0.0, 360.0, 3.0)
_U_NODES = np.arange(-44.0, 71.0, 2.0)

Coordinates = tuple[Field, Field, Field] | np.ndarray
Groove = Callable[[np.ndarray], np.ndarray]  # u -> angle


@dataclasses.dataclass(frozen=True)
class Heart:
    """One heart.

    basis: rows u, v, w in template (LPS) mm. size: each wall relative to the standard. wall_mm: of the left
    ventricle.
    """

    basis: np.ndarray
    size: dict[str, float]
    wall_mm: float

    def coordinates(self, x: Field, y: Field, z: Field) -> Coordinates:
        """(u, v, w) of template points."""
        u, v, w = (row[0] * x + row[1] * y + row[2] * z for row in self.basis.astype(np.float32))
        return u, v, w

    def wall(self, name: str, at: Coordinates, inset_mm: float = 0.0) -> Field:
        """f of one outer wall, or of the cavity `inset_mm` inside it; ventricles stop at the valve plane."""
        center, radii = OUTER[name].reshape(2, 3).tolist()
        u, v, w = (axis - middle for axis, middle in zip(at, center))
        f = ellipsoid_distance(u, v, w, [radius * self.size[name] - inset_mm for radius in radii])
        return np.maximum(f, BASE_U - at[0]) if name in ("lv", "rv") else f

    def surface(self, at: Coordinates) -> Field:
        """f of the whole heart, its grooves hardly rounded."""
        return rounded_union((self.wall(name, at) for name in OUTER), _BLEND_MM)

    def bed(self, at: Coordinates, blend_mm: float = _BED_MM) -> Field:
        """f of the surface that vessels lie on.

        In a groove they float in its fat, and the root of the aorta fills the pit between the chambers.
        """
        root = ellipsoid_distance(at[0] + 9.0, at[1], at[2] - 15.0, (17.0, 18.0, 19.0))
        return rounded_union([root, *(self.wall(name, at) for name in OUTER)], blend_mm)

    def outside(self, points: Points, distance_mm: np.ndarray) -> Points:
        """Heart points (n, 3) moved along the surface's normal until they lie `distance_mm` (n,) outside."""

        def f(places: Points) -> np.ndarray:
            return self.bed(places.astype(np.float32).T)

        points = points.astype(np.float64)
        for _ in range(4):
            slope = np.stack([f(points + 0.5 * axis) - f(points - 0.5 * axis) for axis in np.eye(3)], axis=1)
            length = np.maximum((slope**2).sum(axis=1), 0.05)
            points = points + ((distance_mm - f(points)) / length)[:, None] * slope
        return points


def make_heart(rng: np.random.Generator, wall_mm: float) -> Heart:
    """A heart rolled by up to 23 degrees, tilted by up to 11, with chambers of their own size."""
    roll = rotation([rng.uniform(-0.4, 0.4), 0.0, 0.0])  # the first axis of the frame is the long one
    basis = roll @ FRAME @ rotation(rng.uniform(-0.2, 0.2, 3))
    return Heart(basis, {name: rng.uniform(0.95, 1.05) for name in OUTER}, wall_mm)


def rotation(angles: Iterable[float]) -> np.ndarray:
    """Rotation (3, 3) about x, then y, then z by small angles (radians)."""
    x, y, z = angles
    return Rotation.from_euler("xyz", [x, -y, z]).as_matrix()


def rounded_union(parts: Iterable[Field], blend_mm: float) -> Field:
    """The union of functions with rounded seams."""
    return functools.reduce(lambda a, b: smooth_minimum(a, b, blend_mm), parts)


class SurfaceMap:
    """The outer surface as radius over (angle, u), with its grooves.

    front(u), back(u): angle of the groove between the ventricles, on the front and on the side of the
    diaphragm; ring(angle): u of the groove between atria and ventricles. The vessels of the heart run there.
    """

    def __init__(self, heart: Heart):
        self.heart = heart
        angle, u = np.meshgrid(np.radians(_ANGLES), _U_NODES, indexing="ij")
        r = np.arange(0.0, 75.0, 1.0)
        f = heart.bed(_ray(angle[..., None], u[..., None], r))
        last = (f.shape[-1] - 1) - np.argmax((f <= 0)[..., ::-1], axis=-1)
        edge = r[last] - np.take_along_axis(f, last[..., None], -1)[..., 0]
        self._radius = np.where((f <= 0).any(axis=-1), edge, 1.0)
        at = _ray(angle, u, self._radius)
        lv, rv, la, ra = (heart.wall(name, at) for name in OUTER)
        self.front, self.back = (_groove(np.abs(lv - rv), *part) for part in ((50, 150), (215, 310)))
        inside = (_U_NODES > -22) & (_U_NODES < 16)
        level = np.abs(np.minimum(lv, rv) - np.minimum(la, ra))[:, inside]
        self._ring = gaussian_filter1d(_U_NODES[inside][np.argmin(level, axis=1)], 3.0, mode="wrap")

    def ring(self, angle: np.ndarray) -> np.ndarray:
        """u of the groove between atria and ventricles."""
        return np.interp(angle, _ANGLES, self._ring, period=360.0)

    def points(self, angle: np.ndarray, u: np.ndarray, distance_mm: np.ndarray) -> Points:
        """Heart points (n, 3) at angles and u, `distance_mm` outside the surface."""
        row, column = np.mod(angle, 360.0) / 3.0, np.interp(u, _U_NODES, np.arange(len(_U_NODES)))
        closed = np.concatenate([self._radius, self._radius[:1]])
        radius = map_coordinates(closed, [row, column], order=1, mode="nearest")
        return self.heart.outside(np.stack(_ray(np.radians(angle), u, radius), axis=1), distance_mm)


def axis_v(u: np.ndarray | float) -> np.ndarray:
    """v of the long axis, which bends from between the atria into the left ventricle."""
    return np.asarray(np.interp(u, [-40.0, 10.0, 70.0], [3.0, 1.0, 13.0]))


def _groove(between: np.ndarray, low: float, high: float) -> Groove:
    """The angle over u at which `between` (angles, u) is least, between two angles."""
    inside = (low < _ANGLES) & (high > _ANGLES)
    best = _ANGLES[inside][np.argmin(between[inside], axis=0)]
    used = (_U_NODES >= 6) & (_U_NODES <= 60)
    polynomial = np.polyfit(_U_NODES[used], best[used], 2)
    return lambda u: np.polyval(polynomial, np.clip(u, 6, 60))


def _ray(angle: np.ndarray, u: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points at a distance from the long axis."""
    v, w = axis_v(u) + radius * np.cos(angle), radius * np.sin(angle)
    return np.broadcast_to(u, v.shape).astype(np.float32), v.astype(np.float32), w.astype(np.float32)
