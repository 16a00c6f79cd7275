"""Arteries and veins on the surface of the heart: made by one routine, told apart only by where they run.

Coronary arteries: from the root of the aorta into the grooves between the chambers, with side branches over
both ventricles and both atria. Veins, of the same calibre: between those branches, on all chambers, and in
the stretches of the grooves that no artery takes; everywhere at least 8 mm from any artery. So every kind of
place on the heart (groove, thick wall, thin wall, atrium) holds both, and only the position among the
chambers decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d, label
from scipy.spatial import cKDTree

from ctseg.anatomy.heart.shape import SurfaceMap, axis_v
from ctseg.anatomy.implicit import Points
from ctseg.anatomy.shape_tables import read_table
from ctseg.anatomy.thin_tubes import arc_mm

_STEP_MM = 1.5
_CLEAR_MM = 8.0  # between the axes of a vein and an artery
_SHORTEST_MM = 12.0
BRANCHES = read_table(__file__, "side_branches")
VENTRICULAR = read_table(__file__, "ventricular_veins")
ATRIAL = read_table(__file__, "atrial_veins")


@dataclasses.dataclass(frozen=True)
class Vessel:
    """points: (n, 3) in heart coordinates. radii: (n,) mm."""

    points: Points
    radii: np.ndarray

    @property
    def length(self) -> float:
        """Along the axis, mm."""
        return float(arc_mm(self.points)[-1])

    def at_share(self, share: float) -> Points:
        """The point at a share (0..1) of the way."""
        return self.points[round(share * (len(self.points) - 1))]

    def at_angle(self, angle: float) -> Points:
        """The point whose angle on the heart's surface is nearest."""
        return self.points[np.argmin([abs(locate(point)[0] - angle) for point in self.points])]


class VesselMaker:
    """Makes vessels on one surface. Every vessel, artery or vein, gets the same wiggle, depth and taper."""

    def __init__(self, chart: SurfaceMap, rng: np.random.Generator):
        self.chart, self._rng = chart, rng

    def run(
        self, angle: np.ndarray, u: np.ndarray, radius: tuple[float, float], start: Points | None = None
    ) -> Vessel:
        """A vessel through nodes (angle in degrees, u).

        radius: at its start and end. start: a heart point where it branches off, instead of its first node's
        place.
        """
        t, fine = np.linspace(0, 1, len(angle)), np.linspace(0, 1, 90)
        free = np.clip(6 * fine, 0, 1) if start is not None else np.ones(90)
        wiggle = [gaussian_filter1d(self._rng.standard_normal(90), 6.0) * 4 * free for _ in range(3)]
        angle, u = CubicSpline(t, angle)(fine) + 1.8 * wiggle[0], CubicSpline(t, u)(fine) + 0.9 * wiggle[1]
        radii = np.linspace(*radius, 90)
        points = self.chart.points(angle, u, radii + 0.9 + 0.5 * np.abs(wiggle[2]))
        if start is not None:
            first = int(np.argmax(np.linalg.norm(points - start, axis=1) > 3.0))
            points = np.concatenate([start[None], points[first:]])
            radii = np.concatenate([radii[:1], radii[first:]])
        return even(points, radii)

    def branch(self, start: Points, to: Sequence[float], spread: tuple[float, float] = (2.0, 3.0)) -> Vessel:
        """A side branch from a point of another vessel to about a place (angle, u) on the surface."""
        (angle, u), t = locate(start), np.linspace(0, 1, 5)
        to_angle, to_u = self._rng.normal(to, spread)
        return self.run(angle + (to_angle - angle) * t, u + (to_u - u) * t, (1.1, 0.75), start)

    def coronaries(
        self, ostia: tuple[Points, Points], left_dominant: bool
    ) -> tuple[list[Vessel], list[Vessel]]:
        """The left and the right tree. ostia: heart points on the aorta where they begin: left, right."""
        rng, chart = self._rng, self.chart
        # Left: stem, descending artery with diagonals, circumflex with marginals and atrial branch.
        fork = chart.points(np.array([66.0 + rng.normal(0, 2)]), np.array([4.0]), np.array([2.5]))[0]
        u = np.array([7.0, 16.0, 30.0, 46.0, 60.0, 68.0])
        front = chart.front(u) - 3 + rng.normal(0, 1.5)
        descending = self.run(np.array([66.0, *front]), np.array([4.0, *u]), (1.75, 0.85), fork)
        angle = np.array([58.0, 40.0, 15.0, -15.0, -48.0, *([-88.0] if left_dominant else [])])
        circumflex = self.run(angle, chart.ring(angle) + 2.0, (1.65, 1.1), fork)
        left = [root(ostia[0], fork, 2.0), descending, circumflex]
        for share, *to in BRANCHES["diagonal"][: rng.integers(1, 3)]:
            left.append(self.branch(descending.at_share(share + rng.normal(0, 0.02)), to))
        left += [self.branch(circumflex.at_angle(leaves), to) for leaves, *to in BRANCHES["marginal"]]
        left.append(self.branch(circumflex.at_share(0.35), (22, -33), spread=(4.0, 2.0)))
        # Right: root, main vessel, acute marginals and atrial branch.
        angle = np.array([138.0, 155.0, 180.0, 205.0, *([] if left_dominant else [225.0, 252.0])])
        u = chart.ring(angle) + 2.0
        first = chart.points(angle[:1], u[:1], np.array([3.0]))[0]
        main = self.run(angle, u, (1.8, 1.15), first)
        right = [root(ostia[1], first, 1.8), main]
        right += [self.branch(main.at_angle(leaves), to) for leaves, *to in BRANCHES["acute"]]
        right.append(self.branch(main.at_share(0.12), (150, -34), spread=(4.0, 2.0)))
        # The artery in the lower groove comes from either.
        giver, tree = (circumflex, left) if left_dominant else (main, right)
        u = np.array([6.0, 12.0, 18.0, 24.0])
        tree.append(self.run(chart.back(u) + rng.normal(0, 1.5), u, (1.1, 0.8), giver.points[-1]))
        return left, right

    def veins(self, arteries: list[Vessel]) -> list[Vessel]:
        """Veins of the same calibre and course as arteries, elsewhere: cut where they come near an artery."""
        rng, ring, found = self._rng, self.chart.ring, []
        for first, last, first_u, last_u in np.concatenate([*VENTRICULAR.values()]):
            angle = np.linspace(first, last, 5) + rng.normal(0, 2.0) + rng.normal(0, 1.0, 5)
            found.append(self.run(angle, np.linspace(first_u, last_u, 5) + rng.normal(0, 2.0), calibre(rng)))
        for first, last, depth in np.concatenate([*ATRIAL.values()]):
            angle = np.linspace(first, last, 5) + rng.normal(0, 2.0)
            found.append(self.run(angle, ring(angle) + depth + rng.normal(0, 1.0), calibre(rng)))
        u = np.linspace(30, 64, 5)
        found.append(self.run(self.chart.back(u) + rng.normal(0, 2.0), u, calibre(rng)))
        taken = cKDTree(np.concatenate([artery.points for artery in arteries]))
        return [short for vein in found if (short := clear_of(taken, vein)) is not None]


def even(points: Points, radii: np.ndarray) -> Vessel:
    """The vessel with smoothed points every 1.5 mm; its ends stay."""
    smooth = gaussian_filter1d(points, 2.5, axis=0, mode="nearest")
    smooth[[0, -1]] = points[[0, -1]]
    along = arc_mm(smooth)
    at = np.linspace(0, along[-1], max(3, int(along[-1] / _STEP_MM) + 1))
    points = np.stack([np.interp(at, along, column) for column in smooth.T], axis=1)
    return Vessel(points, np.interp(at, along, radii))


def root(start: Points, end: Points, radius: float) -> Vessel:
    """A straight vessel between two heart points."""
    return even(np.stack([start, 0.5 * (start + end), end]), np.full(3, radius))


def locate(point: Points) -> tuple[float, float]:
    """(angle in degrees within -110..250, u) of a heart point."""
    angle = float(np.degrees(np.arctan2(point[2], point[1] - axis_v(point[0]))))
    return (angle + 360 if angle < -110 else angle), float(point[0])


def calibre(rng: np.random.Generator) -> tuple[float, float]:
    """Radius at start and end: half as a stem's, half as a side branch's. Either end may be the wide one."""
    wide, narrow = (rng.uniform(1.5, 1.85), rng.uniform(0.9, 1.15)) if rng.random() < 0.5 else (1.1, 0.75)
    return (wide, narrow) if rng.random() < 0.5 else (narrow, wide)


def clear_of(taken: cKDTree, vein: Vessel) -> Vessel | None:
    """The longest stretch of a vein that keeps its distance; None when hardly anything is left."""
    stretches, _ = label(taken.query(vein.points)[0] > _CLEAR_MM)
    keep = stretches == np.argmax(np.bincount(stretches, minlength=2)[1:]) + 1
    if keep.sum() * _STEP_MM < _SHORTEST_MM:
        return None
    return Vessel(vein.points[keep], vein.radii[keep])
