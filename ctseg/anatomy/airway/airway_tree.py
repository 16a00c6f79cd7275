"""A bronchial tree in the lungs, and the vessels that go with it.

Trachea, main and lobar bronchi come from a table (Boyden's usual pattern). Below them the tree fills each
region of the lung by dividing the space it supplies (Kitaoka et al. 1999, doi 10.1152/jappl.1999.87.6.2207;
Tawhai et al. 2000, doi 10.1114/1.1289457): a branch ends on its way to the middle of its region, the region
is cut in two across its longest side, and each half gets a child. A child's width follows from its share of
the region, d_child = d_parent * share ** (1 / 2.8), which keeps the flow.

Coordinates are template mm: x to the patient's left, y to the back, z to the head, z = 0 at the carina.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

from ctseg.anatomy.implicit import Points
from ctseg.anatomy.shape_tables import read_table
from ctseg.anatomy.thin_tubes import Line, arc_mm

Depth = Callable[[Points], np.ndarray]  # points (n, 3) -> mm inside the lung, negative outside

_FLOW_EXPONENT = 2.8
_RATIO = (0.60, 0.85)  # child to parent diameter
_MAX_ANGLE = np.deg2rad(56)
_REACH = (0.39, 0.50)  # how far a branch goes on its way to the middle of its region
_TRIES = 9
_CLEAR_MM = 2.6  # between the walls of branches that do not share a joint


@dataclasses.dataclass
class Branch:
    """A stretch of tube between two joints. points: (n, 3) template mm from the proximal end; diameter:
    lumen, mm.

    parent: number in the tree's list, -1 for the trachea. joint: unit vector across the plane in which the
    branch divides; the artery runs on this side.
    """

    name: str
    points: Points
    diameter: float
    parent: int
    generation: int
    joint: Points
    cloud: Points | None = None

    @property
    def end(self) -> Points:
        return self.points[-1]

    @property
    def direction(self) -> Points:
        return unit(self.points[-1] - self.points[-2])

    @property
    def length(self) -> float:
        return float(arc_mm(self.points)[-1])


NODES = read_table(__file__, "bronchi")
TRUNKS = read_table(__file__, "trunks")
# Right, then left: above both fissures, between them, top and base of the lower lobe.
REGIONS = (
    "right_upper",
    "right_middle",
    "right_superior",
    "right_basal",
    "left_division",
    "lingula",
    "left_superior",
    "left_basal",
)


def oblique(points: Points) -> np.ndarray:
    """Signed distance in mm to the oblique fissure, negative in the lower lobe, for points (..., 3)."""
    y, z = points[..., 1], points[..., 2]
    return (z - 50 - 1.375 * (y - 80) - 0.0022 * (y - 20) ** 2 + 3) / 1.70


def horizontal(points: Points) -> np.ndarray:
    """Signed distance to the horizontal fissure of the right lung, negative in the middle lobe."""
    return points[..., 2] + 36 - 0.14 * (points[..., 1] + 20)


def regions(points: Points) -> dict[str, Points]:
    """Points (n, 3) inside the lungs, by the bronchus that supplies them."""
    lower = oblique(points) < 0
    below = np.where(lower, points[:, 2] < -66, horizontal(points) < 0)
    number = 4 * (points[:, 0] > 0) + 2 * lower + below
    return {name: points[number == k] for k, name in enumerate(REGIONS)}


def airways(tree: list[Branch], finest_mm: float) -> list[Branch]:
    """The branches at least `finest_mm` wide, with parents numbered anew. The trachea comes first."""
    kept = [number for number, branch in enumerate(tree) if branch.diameter >= finest_mm]
    place = {number: k for k, number in enumerate(kept)} | {-1: -1}
    return [dataclasses.replace(tree[number], parent=place[tree[number].parent]) for number in kept]


def unit(vector: Points) -> Points:
    """The vector at length 1."""
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def grow_tree(
    rng: np.random.Generator, cloud: Points, depth: Depth, *, airway_mm: float, finest_mm: float, width: float
) -> list[Branch]:
    """The whole tree, parents before children. cloud: points (n, 3) spread evenly over both lungs.

    airway_mm: from this lumen on, branches keep clear of each other; narrower ones only guide vessels.
    finest_mm: narrower branches are not grown. width: all diameters of the table times this.
    """
    # Trachea to lobar bronchi, a little different in everyone.
    tree: list[Branch] = []
    supply, known = regions(cloud), {"": (-1, np.zeros(3))}  # number and shift by name
    for way, rows in TRUNKS.items():
        parent, name = way.split("/")
        diameter, *side = rows[0].tolist()
        (up, shift), points, generation = known[parent], NODES[name], 0
        if parent:
            shift = shift + rng.normal(0, 1.0, 3)
            points = np.vstack([tree[up].end, points + shift])
            generation = tree[up].generation + 1
        known[name] = len(tree), shift
        lumen, joint = diameter * width * rng.uniform(0.96, 1.04), unit(np.array(side))
        tree.append(Branch(name, smooth_line(points), lumen, up, generation, joint, supply.get(name)))
    return Growth(rng, depth, finest_mm, airway_mm, tree).grow()


def smooth_line(points: Points, per_piece: int = 3) -> Points:
    """The nodes (n, 3), n > 2, with a Catmull-Rom curve between them; first and last stay."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.arange(per_piece)[:, None] / per_piece
    parts = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:])
    ]
    return np.concatenate([*parts, points[-1:]])


def along(points: Points, share: np.ndarray) -> Points:
    """Points (len(share), 3) at shares 0..1 of a line's length."""
    way = arc_mm(points)
    return np.stack([np.interp(share, way / max(way[-1], 1e-9), column) for column in points.T], axis=1)


@dataclasses.dataclass
class Growth:
    """A tree that fills the lung. finest_mm: narrower branches are not grown; clear_mm: narrower ones may
    touch others. taken: (n, 5) where branches run already: x, y, z, radius, number."""

    rng: np.random.Generator
    depth: Depth
    finest_mm: float
    clear_mm: float
    tree: list[Branch]
    taken: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((0, 5)))

    def grow(self) -> list[Branch]:
        """Divide every branch that has a region, again and again; returns the tree."""
        order: list[tuple[float, int]] = []
        for number in range(len(self.tree)):
            self.remember(number, order, 0)
        while order:  # the widest first: they find free space
            _, parent = heapq.heappop(order)
            for child in self.children(parent):
                self.tree.append(child)
                self.remember(len(self.tree) - 1, order, 10)
        return self.tree

    def remember(self, number: int, order: list[tuple[float, int]], least: int) -> None:
        """Keep others away from a branch, unless it is too narrow to matter; one with a region of `least`
        points or more will divide in its turn."""
        branch = self.tree[number]
        if branch.diameter >= self.clear_mm:
            points = along(branch.points, np.linspace(0, 1, max(2, int(branch.length / 2))))
            rows = np.column_stack([points, np.tile((0.65 * branch.diameter, number), (len(points), 1))])
            self.taken = np.concatenate([self.taken, rows])
        if branch.cloud is not None and len(branch.cloud) >= least:
            heapq.heappush(order, (-branch.diameter, number))

    def free(self, branch: Branch, kin: tuple[int, ...], margin_mm: float) -> bool:
        """Whether a new branch keeps that far inside the lung, and clear of all others but its kin, beyond
        the joint."""
        # Lobar bronchi end at the root of the lung: their children begin there.
        first = 2 if branch.generation > 4 else 3
        if self.depth(branch.points[first:]).min() < 0.65 * branch.diameter + margin_mm:
            return False
        if branch.diameter < self.clear_mm:
            return True
        points = along(branch.points, np.linspace(0.35, 1, 5))
        near = self.taken[(np.abs(self.taken[:, :3] - points.mean(axis=0)) < 45).all(axis=1)]
        near = near[~np.isin(near[:, 4], kin)]
        gaps = np.linalg.norm(near[:, None, :3] - points[None], axis=2) - near[:, 3:4]
        return bool((gaps > 0.65 * branch.diameter + _CLEAR_MM).all())

    def children(self, number: int) -> list[Branch]:
        """The two children of a branch, or none where space or width do not allow them."""
        parent, cloud = self.tree[number], self.tree[number].cloud
        if cloud is None or parent.diameter * _RATIO[1] < self.finest_mm:
            return []
        # The region is cut across its longest side as seen from the end of the branch, into unequal halves.
        middle = cloud.mean(axis=0)
        ahead = unit(middle - parent.end)
        flat = cloud - middle
        flat = flat - np.outer(flat @ ahead, ahead)
        _, vectors = np.linalg.eigh(flat.T @ flat)
        for attempt in range(_TRIES):
            place = flat @ unit(vectors[:, 2] + 0.18 * self.rng.normal(size=3))
            cut = np.quantile(place, self.rng.uniform(0.33, 0.67))
            halves = cloud[place <= cut], cloud[place > cut]
            one, other = (self.child(number, half, len(half) / len(cloud), attempt) for half in halves)
            kin, margin_mm = (number, parent.parent), 3.0 - 0.4 * attempt
            if self.free(one, kin, margin_mm) and self.free(other, kin, margin_mm):
                plane = unit(np.cross(one.direction, other.direction))
                parent.joint = one.joint = other.joint = plane if plane @ parent.joint >= 0 else -plane
                return [child for child in (one, other) if child.diameter >= self.finest_mm]
        return []

    def child(self, number: int, cloud: Points, share: float, attempt: int) -> Branch:
        """A branch towards the middle of its region `cloud`, leaving its parent in a soft bend.

        number: the parent's. share: of its region. attempt: how often its place was taken before; then it is
        shorter and keeps inside.
        """
        rng, parent = self.rng, self.tree[number]
        ratio = share ** (1 / _FLOW_EXPONENT) * rng.uniform(0.95, 1.05)
        diameter = parent.diameter * float(np.clip(ratio, *_RATIO))
        way = cloud.mean(axis=0) - parent.end
        widest = _MAX_ANGLE if parent.generation > 4 else 1.4 * _MAX_ANGLE
        ahead = turned_to(unit(way), parent.direction, widest)
        length = float(np.clip(np.linalg.norm(way) * rng.uniform(*_REACH), 2.2 * diameter, 8.5 * diameter))
        length *= rng.uniform(1 - 0.06 * attempt, 1)
        end = self.inward(parent.end + length * ahead, 0.65 * diameter + 4.0)
        soft = unit(0.35 * parent.direction + 0.65 * ahead)
        bend = parent.end + 0.4 * length * soft + rng.normal(0, 0.05 * length, 3)
        if attempt:
            bend = self.inward(bend, 0.65 * diameter + 4.0)
        t = np.linspace(0, 1, 5)[:, None]
        points = (1 - t) ** 2 * parent.end + 2 * t * (1 - t) * bend + t**2 * end
        return Branch(parent.name, points, diameter, number, parent.generation + 1, parent.joint, cloud)

    def inward(self, point: Points, wanted_mm: float) -> Points:
        """The point, moved away from the surface of the lung where it lies less than `wanted_mm` deep."""
        for _ in range(3):
            here, *around = self.depth(np.concatenate([point[None], point + 1.5 * np.eye(3)]))
            if here >= wanted_mm:
                break
            point = point + (wanted_mm - here + 1.0) * unit(np.array(around) - here)
        return point


def turned_to(direction: Points, axis: Points, angle: float) -> Points:
    """The direction turned towards the axis as far as needed to lie within `angle` of it."""
    cosine = direction @ axis
    if cosine >= np.cos(angle):
        return direction
    return np.cos(angle) * axis + np.sin(angle) * unit(direction - cosine * axis)


def arteries(tree: list[Branch]) -> list[Line]:
    """One artery beside every bronchus from the lobar ones on, turning about it from joint to joint.

    On the normal of the plane in which bronchi divide, the arteries divide in parallel and cross none of
    them.
    """
    ends: dict[int, tuple[Points, float]] = {}
    found = []
    for number, branch in enumerate(tree):
        if branch.name in ("trachea", "right_main", "left_main"):
            continue
        radius = 0.22 + 0.47 * branch.diameter
        entry = NODES["ends of the pulmonary arteries"][int(branch.end[0] > 0)]
        begin, first = ends.get(branch.parent, (entry, 1.15 * radius))
        t = np.linspace(0, 1, len(branch.points))[:, None]
        turn = (1 - t) * tree[branch.parent].joint + t * branch.joint
        turn /= np.maximum(np.linalg.norm(turn, axis=1, keepdims=True), 0.2)
        beside = branch.points + (0.62 * branch.diameter + radius + 0.7) * turn
        points = np.concatenate([begin[None], beside[2:]])
        found.append((points, np.linspace(min(first, 1.25 * radius), radius, len(points))))
        ends[number] = (points[-1], radius)
    return found


def veins(
    rng: np.random.Generator, cloud: Points, depth: Depth, tree: list[Branch], finest_mm: float
) -> list[Line]:
    """Veins between the bronchi: trees of their own towards the left atrium, off the bronchi they meet."""
    bronchi = {branch.name: branch for branch in reversed(tree)}  # the first of each name: the lobar ones
    roots: list[Branch] = []
    for number, (name, part) in enumerate(regions(cloud).items()):
        bronchus, atrium = bronchi[name], NODES["roots of the veins"][number // 4]
        entry = bronchus.end - 12 * bronchus.joint + (0, -3.0, -4.0)
        points = smooth_line(np.array([atrium, 0.5 * (atrium + entry) - (0, 3, 2), entry]))
        roots.append(Branch(name, points, 0.95 * bronchus.diameter, -1, 0, -bronchus.joint, part))
    axes = cKDTree(np.concatenate([along(b.points, np.linspace(0, 1, 12)) for b in tree]))
    wide = np.repeat([0.65 * b.diameter for b in tree], 12)
    found = []
    for branch in Growth(rng, depth, finest_mm, 99.0, roots).grow():
        # Moved off the bronchi where it comes too close.
        points, radius = branch.points, np.full(len(branch.points), 0.5 * branch.diameter)
        distance, nearest = axes.query(points, k=6)
        short = wide[nearest] + radius[:, None] + 1.0 - distance
        worst = (np.arange(len(points)), np.argmax(short, axis=1))
        away = (points - axes.data[nearest[worst]]) / np.maximum(distance[worst], 0.1)[:, None]
        found.append((points + away * np.maximum(short[worst], 0)[:, None], radius))
    return found
