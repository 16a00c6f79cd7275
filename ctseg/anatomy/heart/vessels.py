"""Arteries and veins on the surface of the heart: made by one routine, told apart only by where they run.

Coronary arteries: from the root of the aorta into the grooves between the chambers, with side branches over both
ventricles and both atria. Veins, of the same calibre: between those branches, on all chambers, and in the stretches
of the grooves that no artery takes; everywhere at least 8 mm from any artery. So every kind of place on the heart
(groove, thick wall, thin wall, atrium) holds both, and only the position among the chambers decides.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

from ctseg.anatomy.heart.shape import SurfaceMap

_STEP_MM = 1.5
_CLEAR_MM = 8.0  # between the axes of a vein and an artery
_SHORTEST_MM = 12.0


@dataclasses.dataclass(frozen=True)
class Vessel:
    """points: (n, 3) in heart coordinates. radii: (n,) mm."""

    name: str
    points: np.ndarray
    radii: np.ndarray

    @property
    def length(self) -> float:
        """Along the axis, mm."""
        return float(np.linalg.norm(np.diff(self.points, axis=0), axis=1).sum())


class Painter:
    """Makes vessels on one surface. Every vessel, artery or vein, gets the same wiggle, depth and taper."""

    def __init__(self, chart: SurfaceMap, rng: np.random.Generator):
        self._chart, self._rng = chart, rng

    def run(
        self,
        name: str,
        angle: np.ndarray,
        u: np.ndarray,
        radius: tuple[float, float],
        *,
        start: np.ndarray | None = None,
    ) -> Vessel:
        """A vessel through nodes (angle in degrees, u). radius: at its start and end. start: a heart point where it
        branches off, instead of its first node's place."""
        t = np.linspace(0, 1, len(angle))
        fine = np.linspace(0, 1, 90)
        angle, u = CubicSpline(t, angle)(fine), CubicSpline(t, u)(fine)
        free = np.clip(6 * fine, 0, 1) if start is not None else np.ones(90)
        wiggle = [gaussian_filter1d(self._rng.standard_normal(90), 6.0) * 4 * free for _ in range(3)]
        angle, u = angle + 1.8 * wiggle[0], u + 0.9 * wiggle[1]
        radii = np.linspace(*radius, 90)
        points = self._chart.points(angle, u, radii + 0.9 + 0.5 * np.abs(wiggle[2]))
        if start is not None:
            far = np.linalg.norm(points - start, axis=1)
            keep = slice(int(np.argmax(far > 3.0)), None)
            points, radii = (
                np.concatenate([start[None], points[keep]]),
                np.concatenate([radii[:1], radii[keep]]),
            )
        return even(name, points, radii)


def even(name: str, points: np.ndarray, radii: np.ndarray) -> Vessel:
    """The vessel with smoothed points every 1.5 mm; its ends stay."""
    smooth = gaussian_filter1d(points, 2.5, axis=0, mode="nearest")
    smooth[[0, -1]] = points[[0, -1]]
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(smooth, axis=0), axis=1))])
    at = np.linspace(0, along[-1], max(3, int(along[-1] / _STEP_MM) + 1))
    return Vessel(
        name,
        np.stack([np.interp(at, along, column) for column in smooth.T], axis=1),
        np.interp(at, along, radii),
    )


def coronaries(
    chart: SurfaceMap, rng: np.random.Generator, ostia: tuple[np.ndarray, np.ndarray], left_dominant: bool
) -> tuple[list[Vessel], list[Vessel]]:
    """The left and the right tree. ostia: heart points on the aorta's surface where they begin: left, right."""
    painter = Painter(chart, rng)
    left, circumflex = _left_tree(painter, chart, rng, ostia[0], left_dominant)
    right, rca = _right_tree(painter, chart, rng, ostia[1], left_dominant)
    giver = circumflex if left_dominant else rca
    u = np.array([6.0, 12.0, 18.0, 24.0])
    descending = painter.run(
        "posterior_descending", chart.back(u) + rng.normal(0, 1.5), u, (1.1, 0.8), start=giver.points[-1]
    )
    (left if left_dominant else right).append(descending)
    return left, right


def _left_tree(
    painter: Painter, chart: SurfaceMap, rng: np.random.Generator, ostium: np.ndarray, left_dominant: bool
) -> tuple[list[Vessel], Vessel]:
    """All of the left tree, and its circumflex."""
    fork = chart.points(np.array([66.0 + rng.normal(0, 2)]), np.array([4.0]), np.array([2.5]))[0]
    stem = even("left_main", np.stack([ostium, 0.5 * (ostium + fork), fork]), np.full(3, 2.0))
    u = np.array([7.0, 16.0, 30.0, 46.0, 60.0, 68.0])
    front = chart.front(u) - 3 + rng.normal(0, 1.5)
    lad = painter.run(
        "lad", np.concatenate([[66.0], front]), np.concatenate([[4.0], u]), (1.75, 0.85), start=fork
    )
    angle = np.array([58.0, 40.0, 15.0, -15.0, -48.0, *([-88.0] if left_dominant else [])])
    cx = painter.run("circumflex", angle, chart.ring(angle) + 2.0, (1.65, 1.1), start=fork)
    left = [stem, lad, cx, *_diagonals(painter, rng, lad, chart), *_marginals(painter, rng, cx, chart)]
    left.append(
        _branch(
            painter,
            chart,
            "left_atrial",
            cx,
            0.35,
            22 + float(rng.normal(0, 4)),
            -33 + float(rng.normal(0, 2)),
        )
    )
    return left, cx


def _right_tree(
    painter: Painter, chart: SurfaceMap, rng: np.random.Generator, ostium: np.ndarray, left_dominant: bool
) -> tuple[list[Vessel], Vessel]:
    """All of the right tree but the descending branch, and its main vessel."""
    angle = np.array([138.0, 155.0, 180.0, 205.0, *([] if left_dominant else [225.0, 252.0])])
    first = chart.points(angle[:1], chart.ring(angle[:1]) + 2.0, np.array([3.0]))[0]
    root = even("right_root", np.stack([ostium, 0.5 * (ostium + first), first]), np.full(3, 1.8))
    rca = painter.run("rca", angle, chart.ring(angle) + 2.0, (1.8, 1.15), start=first)
    right = [root, rca, *_acute(painter, rng, rca, chart)]
    right.append(
        _branch(
            painter,
            chart,
            "right_atrial",
            rca,
            0.12,
            150 + float(rng.normal(0, 4)),
            -34 + float(rng.normal(0, 2)),
        )
    )
    return right, rca


def _branch(
    painter: Painter, chart: SurfaceMap, name: str, giver: Vessel, share: float, to_angle: float, to_u: float
) -> Vessel:
    """A side branch that leaves `giver` at a share of its length for the place (to_angle, to_u)."""
    start = giver.points[round(share * (len(giver.points) - 1))]
    angle, u = locate(start)
    t = np.linspace(0, 1, 5)
    return painter.run(name, angle + (to_angle - angle) * t, u + (to_u - u) * t, (1.1, 0.75), start=start)


def locate(point: np.ndarray) -> tuple[float, float]:
    """(angle in degrees within -110..250, u) of a heart point."""
    v0 = float(np.interp(point[0], [-40.0, 10.0, 70.0], [3.0, 1.0, 13.0]))
    angle = float(np.degrees(np.arctan2(point[2], point[1] - v0)))
    return (angle + 360 if angle < -110 else angle), float(point[0])


def _diagonals(painter: Painter, rng: np.random.Generator, lad: Vessel, chart: SurfaceMap) -> list[Vessel]:
    places = ((0.22, 56.0, 38.0), (0.42, 60.0, 52.0))
    return [
        _branch(
            painter,
            chart,
            f"diagonal_{i + 1}",
            lad,
            share + float(rng.normal(0, 0.02)),
            angle + float(rng.normal(0, 2)),
            u + float(rng.normal(0, 3)),
        )
        for i, (share, angle, u) in enumerate(places[: int(rng.integers(1, 3))])
    ]


def _marginals(painter: Painter, rng: np.random.Generator, cx: Vessel, chart: SurfaceMap) -> list[Vessel]:
    found = []
    for i, (target, to_angle, to_u) in enumerate(((10.0, 4.0, 52.0), (-44.0, -54.0, 50.0))):
        angles = np.array([locate(p)[0] for p in cx.points])
        share = float(np.argmin(np.abs(angles - target))) / (len(angles) - 1)
        found.append(
            _branch(
                painter,
                chart,
                f"marginal_{i + 1}",
                cx,
                share,
                to_angle + float(rng.normal(0, 2)),
                to_u + float(rng.normal(0, 3)),
            )
        )
    return found


def _acute(painter: Painter, rng: np.random.Generator, rca: Vessel, chart: SurfaceMap) -> list[Vessel]:
    angles = np.array([locate(p)[0] for p in rca.points])
    found = []
    for i, (to_angle, to_u) in enumerate(((147.0, 46.0), (205.0, 48.0))):
        share = float(np.argmin(np.abs(angles - to_angle + 3))) / (len(angles) - 1)
        found.append(
            _branch(
                painter,
                chart,
                f"acute_marginal_{i + 1}",
                rca,
                share,
                to_angle + float(rng.normal(0, 2)),
                to_u + float(rng.normal(0, 3)),
            )
        )
    return found


# Name, angle at start and end, u at start and end.
_VENTRICULAR = (
    ("right_front", (119.0, 122.0), (17.0, 56.0)),
    ("right_side", (176.0, 176.0), (15.0, 56.0)),
    ("left_side", (31.0, 30.0), (17.0, 60.0)),
    ("left_below", (-24.0, -24.0), (13.0, 60.0)),
)
# The same with mm from the groove between atria and ventricles instead of u: in it, or on the atria.
_ATRIAL = (
    ("sinus", (-62.0, -98.0), 2.0),
    ("small", (232.0, 258.0), 2.0),
    ("left_atrium_around", (2.0, -70.0), -14.0),
    ("right_atrium_around", (170.0, 240.0), -14.0),
    ("left_atrium_along", (-15.0, -65.0), -24.0),
    ("right_atrium_along", (180.0, 235.0), -25.0),
)


def cardiac_veins(chart: SurfaceMap, rng: np.random.Generator, arteries: list[Vessel]) -> list[Vessel]:
    """Veins of the same calibre and course as arteries, in other places: cut where they come near an artery."""
    painter, found = Painter(chart, rng), []
    for name, angles, us in _VENTRICULAR:
        angle = np.linspace(*angles, 5) + rng.normal(0, 2.0) + rng.normal(0, 1.0, 5)
        found.append(painter.run(name, angle, np.linspace(*us, 5) + rng.normal(0, 2.0), _calibre(rng)))
    for name, angles, depth in _ATRIAL:
        angle = np.linspace(*angles, 5) + rng.normal(0, 2.0)
        found.append(painter.run(name, angle, chart.ring(angle) + depth + rng.normal(0, 1.0), _calibre(rng)))
    u = np.linspace(30, 64, 5)
    found.append(painter.run("middle", chart.back(u) + rng.normal(0, 2.0), u, _calibre(rng)))
    taken = cKDTree(np.concatenate([artery.points for artery in arteries]))
    return [short for vein in found if (short := _clear_of(taken, vein)) is not None]


def _calibre(rng: np.random.Generator) -> tuple[float, float]:
    """Radius at start and end: half as a stem's, half as a side branch's. Either end may be the wide one."""
    wide, narrow = (rng.uniform(1.5, 1.85), rng.uniform(0.9, 1.15)) if rng.random() < 0.5 else (1.1, 0.75)
    return (float(wide), float(narrow)) if rng.random() < 0.5 else (float(narrow), float(wide))


def _clear_of(taken: cKDTree, vein: Vessel) -> Vessel | None:
    """The longest stretch of a vein that keeps its distance; None when hardly anything is left."""
    free = np.concatenate([[False], taken.query(vein.points)[0] > _CLEAR_MM, [False]])
    edges = np.flatnonzero(np.diff(free.astype(int)))
    stretches = sorted(zip(edges[::2], edges[1::2]), key=lambda pair: pair[0] - pair[1])
    if not stretches or (stretches[0][1] - stretches[0][0]) * _STEP_MM < _SHORTEST_MM:
        return None
    keep = slice(*stretches[0])
    return Vessel(vein.name, vein.points[keep], vein.radii[keep])
