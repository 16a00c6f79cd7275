"""The shape of a synthetic heart: its frame, its chambers, and a map of its outer surface.

Heart coordinates (u, v, w) in mm: u from the valve plane to the apex, v from the right ventricle to the left one,
w across both, towards the head and the front. The surface is addressed by (angle, u): the angle, in degrees, turns
about the long axis from the left ventricle's side wall (0) over the front (90) to the right ventricle (180) and
the diaphragm (270).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.ndimage import gaussian_filter1d

from ctseg.anatomy.implicit import ellipsoid_distance, smooth_minimum

# Rows u, v, w in LPS: the apex points to the left, the front and the feet.
_U = np.array([0.65, -0.55, -0.52]) / np.linalg.norm([0.65, -0.55, -0.52])
_V = np.array([0.62, 0.69, 0.04]) - _U * (_U @ np.array([0.62, 0.69, 0.04]))
FRAME = np.stack([_U, _V / np.linalg.norm(_V), np.cross(_U, _V / np.linalg.norm(_V))])
# Centre and half axes along u, v, w of the four outer walls.
OUTER = {
    "lv": ((28.0, 14.0, 0.0), (48.0, 29.0, 30.0)),
    "rv": ((22.0, -17.0, 5.0), (46.0, 27.0, 33.0)),
    "la": ((-27.0, 13.0, -4.0), (21.0, 27.0, 27.0)),
    "ra": ((-21.0, -33.0, -8.0), (23.0, 24.0, 29.0)),
}
BASE_U = -4.0  # ventricles end here, at the valves
_BLEND_MM = 4.0
_BED_MM = 12.0
_ANGLES = np.arange(0.0, 360.0, 3.0)
_U_NODES = np.arange(-44.0, 71.0, 2.0)

Coordinates = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Heart:
    """One heart. basis: rows u, v, w in template (LPS) mm. size: each wall relative to the standard. wall_mm: of the
    left ventricle."""

    basis: np.ndarray
    size: dict[str, float]
    wall_mm: float

    def coordinates(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Coordinates:
        """(u, v, w) of template points."""
        b = self.basis.astype(np.float32)
        u, v, w = (b[i, 0] * x + b[i, 1] * y + b[i, 2] * z for i in range(3))
        return u, v, w

    def template(self, points: np.ndarray) -> np.ndarray:
        """Template points (n, 3) of heart points (n, 3)."""
        return points @ self.basis

    def from_standard(self, points: np.ndarray) -> np.ndarray:
        """Heart points (n, 3) of places given in LPS mm for the standard heart, whose axis is not turned."""
        return points @ FRAME.T

    def wall(self, name: str, at: Coordinates, inset_mm: float = 0.0) -> np.ndarray:
        """f of one outer wall, or of the cavity `inset_mm` inside it; ventricles stop at the valve plane."""
        center, radii = OUTER[name]
        f = ellipsoid_distance(
            at[0] - np.float32(center[0]),
            at[1] - np.float32(center[1]),
            at[2] - np.float32(center[2]),
            [r * self.size[name] - inset_mm for r in radii],
        )
        return np.maximum(f, np.float32(BASE_U) - at[0]) if name in ("lv", "rv") else f

    def surface(self, at: Coordinates) -> np.ndarray:
        """f of the whole heart, its grooves hardly rounded."""
        f = self.wall("lv", at)
        for name in ("rv", "la", "ra"):
            f = smooth_minimum(f, self.wall(name, at), _BLEND_MM)
        return f

    def bed(self, at: Coordinates, blend_mm: float = _BED_MM) -> np.ndarray:
        """f of the surface that vessels lie on: in a groove they float in its fat, and the root of the aorta fills
        the pit between the chambers."""
        f = ellipsoid_distance(at[0] + np.float32(9.0), at[1], at[2] - np.float32(15.0), (17.0, 18.0, 19.0))
        for name in OUTER:
            f = smooth_minimum(f, self.wall(name, at), blend_mm)
        return f

    def outside(self, points: np.ndarray, distance_mm: np.ndarray) -> np.ndarray:
        """Heart points (n, 3) moved along the surface's normal until they lie `distance_mm` (n,) outside it."""
        points = points.astype(np.float64)
        for _ in range(4):
            here = self.bed(_columns(points))
            steps = [
                self.bed(_columns(points + 0.5 * axis)) - self.bed(_columns(points - 0.5 * axis))
                for axis in np.eye(3)
            ]
            slope = np.stack(steps, axis=1)
            length = np.maximum((slope**2).sum(axis=1), 0.05)
            points = points + ((distance_mm - here) / length)[:, None] * slope
        return points


def _columns(points: np.ndarray) -> Coordinates:
    p = points.astype(np.float32)
    return p[:, 0], p[:, 1], p[:, 2]


def make_heart(rng: np.random.Generator, wall_mm: float) -> Heart:
    """A heart rolled about its long axis by up to 23 degrees and tilted by up to 11, with chambers of their own size."""
    roll = rotation(
        np.array([rng.uniform(-0.4, 0.4), 0.0, 0.0])
    )  # the first axis of the frame is the long one
    basis = roll @ FRAME @ rotation(rng.uniform(-0.2, 0.2, 3))
    return Heart(basis, {name: float(rng.uniform(0.95, 1.05)) for name in OUTER}, wall_mm)


def rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation about x, then y, then z by `angles` (radians)."""
    out = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


class SurfaceMap:
    """The outer surface as radius over (angle, u), with its grooves.

    front(u), back(u): angle of the groove between the ventricles; ring(angle): u of the groove between atria and
    ventricles, where the vessels of the heart run.
    """

    def __init__(self, heart: Heart):
        self.heart = heart
        angle, u = np.meshgrid(np.radians(_ANGLES), _U_NODES, indexing="ij")
        r = np.arange(0.0, 75.0, 1.0)
        f = heart.bed(_ray(angle[..., None], u[..., None], r))
        last = (f.shape[-1] - 1) - np.argmax((f <= 0)[..., ::-1], axis=-1)
        self._radius = np.where(
            (f <= 0).any(axis=-1), r[last] - np.take_along_axis(f, last[..., None], -1)[..., 0], 1.0
        )
        at = _ray(angle, u, self._radius)
        walls = {name: heart.wall(name, at) for name in OUTER}
        self._find_grooves(walls)

    def _find_grooves(self, walls: dict[str, np.ndarray]) -> None:
        between = np.abs(walls["lv"] - walls["rv"])
        for name, low, high in (("front", 50.0, 150.0), ("back", 215.0, 310.0)):
            inside = (low < _ANGLES) & (high > _ANGLES)
            best = _ANGLES[inside][np.argmin(between[inside], axis=0)]
            used = (_U_NODES >= 6) & (_U_NODES <= 60)
            setattr(self, f"_{name}", np.polyfit(_U_NODES[used], best[used], 2))
        level = np.abs(np.minimum(walls["lv"], walls["rv"]) - np.minimum(walls["la"], walls["ra"]))
        inside = (_U_NODES > -22) & (_U_NODES < 16)
        self._ring = gaussian_filter1d(
            _U_NODES[inside][np.argmin(level[:, inside], axis=1)], 3.0, mode="wrap"
        )

    def front(self, u: np.ndarray) -> np.ndarray:
        """Angle of the groove between the ventricles on the front."""
        return np.polyval(self._front, np.clip(u, 6, 60))  # type: ignore[attr-defined]

    def back(self, u: np.ndarray) -> np.ndarray:
        """Angle of the groove between the ventricles on the side of the diaphragm."""
        return np.polyval(self._back, np.clip(u, 6, 60))  # type: ignore[attr-defined]

    def ring(self, angle: np.ndarray) -> np.ndarray:
        """u of the groove between atria and ventricles."""
        return np.interp(np.mod(angle, 360.0), [*_ANGLES, 360.0], [*self._ring, self._ring[0]])

    def points(self, angle: np.ndarray, u: np.ndarray, distance_mm: np.ndarray) -> np.ndarray:
        """Heart points (n, 3) at angles and u, `distance_mm` outside the surface."""
        row, column = np.mod(angle, 360.0) / 3.0, np.interp(u, _U_NODES, np.arange(len(_U_NODES)))
        table = np.concatenate([self._radius, self._radius[:1]])
        i, j = row.astype(int), np.minimum(column.astype(int), len(_U_NODES) - 2)
        p, q = row - i, column - j
        radius = (1 - p) * ((1 - q) * table[i, j] + q * table[i, j + 1]) + p * (
            (1 - q) * table[i + 1, j] + q * table[i + 1, j + 1]
        )
        return self.heart.outside(np.stack(_ray(np.radians(angle), u, radius), axis=1), distance_mm)


def _ray(angle: np.ndarray, u: np.ndarray, radius: np.ndarray) -> Coordinates:
    """Points at a distance from the long axis, which bends from between the atria into the left ventricle."""
    v0 = np.interp(u, [-40.0, 10.0, 70.0], [3.0, 1.0, 13.0])
    v, w = v0 + radius * np.cos(angle), radius * np.sin(angle)
    return np.broadcast_to(u, v.shape).astype(np.float32), v.astype(np.float32), w.astype(np.float32)
