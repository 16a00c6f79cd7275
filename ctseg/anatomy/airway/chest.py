"""The chest around the airways: outlines, lungs, mediastinum with heart and vessels, ribs, spine, diaphragm.

Lungs are what remains of the inside of the rib cage above the diaphragm and beside the mediastinum. The
mediastinum is a width to either side of the midline for every y and z, read off the structures inside it.
Coordinates as in `airway_tree`: template mm, z = 0 at the carina.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from ctseg.anatomy.airway.airway_tree import smooth_line
from ctseg.anatomy.implicit import Scene, Shape, level_table, table_row
from ctseg.anatomy.thin_tubes import TubeLayer, lines_to_index

# z; half width, half depth, centre y
_CAVITY = (
    (112, 16, 12, 12),
    (104, 30, 22, 13),
    (94, 54, 36, 12),
    (84, 69, 46, 10),
    (68, 85, 57, 8),
    (45, 102, 70, 5),
    (10, 116, 82, 3),
    (-40, 126, 92, 1),
    (-90, 131, 97, 1),
    (-140, 132, 97, 3),
    (-200, 128, 92, 6),
)
_SKIN = (
    (112, 156, 70, 16),
    (80, 160, 84, 12),
    (50, 160, 96, 8),
    (10, 154, 104, 7),
    (-40, 152, 110, 7),
    (-90, 152, 113, 7),
    (-200, 147, 112, 8),
)
_SPINE = (
    (112, 30),
    (95, 36),
    (60, 46),
    (0, 57),
    (-60, 62),
    (-110, 62),
    (-200, 56),
)  # z, y of the middle of the vertebral bodies
_LOWEST_MM = -200.0  # z of the tables' lowest level
_CORNERS = 0.58  # 0 an ellipse, 1 a rectangle

_EXTENT, _DEPTH_STEP_MM = ((-150, 150), (-120, 120), (-210, 120)), 3.0  # x, y, z of all that can be lung
_TABLE_Y, _TABLE_Z = (-125.0, 125.0), (-215.0, 125.0)  # extent of the mediastinum's tables, 1 mm apart

Line = tuple[list[tuple[float, float, float]], list[float]]
VESSELS: dict[str, Line] = {
    "cava": (
        [(-22, -12, 84), (-26, -15, 60), (-28, -20, 20), (-30, -22, -20), (-30, -22, -45)],
        [7, 9, 9.5, 10, 12],
    ),
    "left_vein": ([(34, -18, 82), (14, -24, 60), (-24, -18, 48)], [6.5, 6.5, 7]),
    "brachiocephalic": ([(-4, -22, 42), (-14, -12, 66), (-24, -6, 100)], [6.5, 6, 5]),
    "carotid": ([(5, -16, 42), (12, -9, 70), (16, -9, 115)], [4.5, 4, 4]),
    "subclavian": ([(14, -2, 42), (20, 4, 70), (30, 4, 92), (58, 0, 100)], [5.5, 5, 5, 4.5]),
    "aorta": (
        [
            (-4, -30, -50),
            (-12, -36, -20),
            (-12, -36, 5),
            (-5, -26, 30),
            (7, -9, 40),
            (18, 12, 37),
            (24, 34, 22),
            (24, 42, 0),
            (22, 45, -60),
            (14, 46, -110),
            (5, 38, -150),
            (3, 32, -205),
        ],
        [14, 16, 16, 15, 14, 13, 12.5, 12, 11.5, 11, 10.5, 10],
    ),
    "pulmonary_trunk": (
        [(14, -56, -48), (20, -46, -22), (20, -30, -6), (24, -8, -6), (34, 12, -10), (42, 20, -22)],
        [13, 14, 14, 12, 11, 9.5],
    ),
    "pulmonary_right": ([(20, -28, -8), (4, -14, -16), (-16, -2, -22), (-32, 12, -28)], [12, 11.5, 11, 9]),
    "cava_inferior": ([(-22, -6, -72), (-24, 8, -110), (-22, 10, -150), (-18, 8, -200)], [13, 12, 12, 12]),
}
OESOPHAGUS: Line = (
    [(3, 10, 112), (4, 20, 60), (6, 32, 20), (6, 37, 0), (8, 40, -50), (14, 28, -100), (24, 10, -125)],
    [6, 6, 6, 6.5, 7, 7, 8],
)
_HILA: list[Line] = [
    ([(0, 18, 0), (-16, 22, -21), (-26, 20, -32), (-28, 22, -54)], [10, 11, 13, 12]),
    ([(0, 18, 0), (22, 22, -20), (40, 24, -30), (44, 26, -50)], [10, 10, 13, 11]),
]
_TRACHEA: Line = ([(0, -8, 128), (-1, -3, 100), (-2, 4, 66), (-2, 11, 32), (0, 18, 0)], [12, 12, 12, 12, 12])
HEART: tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...] = (  # centre, radii
    ((42, -34, -86), (47, 38, 42)),
    ((12, -58, -82), (46, 28, 42)),
    ((-24, -28, -74), (27, 32, 36)),
    ((6, 3, -54), (38, 19, 21)),
)


@dataclasses.dataclass(frozen=True)
class Build:
    """How a chest differs from the standard one. dome_mm: height of the right and left dome of the diaphragm."""

    fat_mm: float
    heart: float
    dome_mm: tuple[float, float]
    kyphosis: float


class Chest:
    """The shapes of one chest, as functions of template coordinates (arrays of any one shape), negative inside."""

    def __init__(self, build: Build):
        self.build = build
        self._tables = {"cavity": _levels(_CAVITY), "skin": _levels(_SKIN)}
        self._sides = {side: _mediastinum(build, side) for side in (1, -1)}
        self._depth = self._depth_grid()

    def skin(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """The outline of the body."""
        return self._outline("skin", x, y, z, self.build.fat_mm)

    def cavity(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """The inside of the rib cage."""
        return self._outline("cavity", x, y, z, 0.0)

    def diaphragm(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Negative above the diaphragm: two domes with deep gutters at the sides and the back."""
        tops = [_dome(x, y, side, top) for side, top in zip((-1, 1), self.build.dome_mm)]
        return (np.maximum(*tops) - z) * np.float32(0.85)

    def lung(self, side: int, x: np.ndarray, y: np.ndarray, z: np.ndarray, around: np.ndarray) -> np.ndarray:
        """The lung of one side (1 left, -1 right). around: the larger of `cavity` and `diaphragm`."""
        width, slope = self._sides[side]
        row = np.clip(z - np.float32(_TABLE_Z[0]), 0, width.shape[0] - 1).astype(np.intp)
        column = np.clip(y - np.float32(_TABLE_Y[0]), 0, width.shape[1] - 1).astype(np.intp)
        row *= width.shape[1]
        row += column
        return np.maximum(around, (np.take(width, row) - np.float32(side) * x) * np.take(slope, row))

    def depth(self, points: np.ndarray) -> np.ndarray:
        """How deep points (n, 3) lie inside a lung, in mm; negative outside. Read off a grid of 3 mm."""
        index = (points - [low for low, _ in _EXTENT]) / _DEPTH_STEP_MM
        return map_coordinates(self._depth, index.T, order=1, mode="nearest")

    def _depth_grid(self) -> np.ndarray:
        axes = [np.arange(low, high, _DEPTH_STEP_MM, dtype=np.float32) for low, high in _EXTENT]
        x, y, z = np.meshgrid(*axes, indexing="ij")
        around = np.maximum(self.cavity(x, y, z), self.diaphragm(x, y, z))
        return -np.minimum(self.lung(1, x, y, z, around), self.lung(-1, x, y, z, around))

    def cloud(self, step_mm: float, rng: np.random.Generator) -> np.ndarray:
        """Points (n, 3) spread evenly over both lungs, at least 4 mm from their surface."""
        axes = [np.arange(low, high, step_mm) for low, high in _EXTENT]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        grid = grid + rng.uniform(-0.4, 0.4, grid.shape) * step_mm
        return grid[self.depth(grid) > 4.0]

    def rib_cage(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Half width, half depth and middle (y) of the cavity at heights (n,)."""
        columns = self._tables["cavity"]
        a, b, middle = columns[table_row(z, _LOWEST_MM, len(columns))].astype(np.float64).T
        return a, b, middle

    def _outline(self, table: str, x: np.ndarray, y: np.ndarray, z: np.ndarray, extra: float) -> np.ndarray:
        """A closed line between an ellipse and a rectangle at each height; about mm near the line."""
        columns = self._tables[table]
        row = table_row(z, _LOWEST_MM, len(columns))
        a, b, middle = (np.take(np.ascontiguousarray(columns[:, k]), row) for k in range(3))
        px, py = x / (a + np.float32(extra)), (y - middle) / (b + np.float32(extra))
        u, v = np.minimum(px * px, 4), np.minimum(py * py, 4)
        corner = np.float32(_CORNERS**2)
        slope = 2 * np.hypot(
            px * (1 - corner * np.minimum(v, 1)) / a, py * (1 - corner * np.minimum(u, 1)) / b
        )
        return (u + v - corner * u * v - 1) / np.maximum(slope, np.float32(0.012))


def spine_y(build: Build, z: np.ndarray) -> np.ndarray:
    """y of the middle of the vertebral bodies at heights (n,)."""
    line = np.array(_SPINE[::-1])
    return build.kyphosis * (np.interp(z, line[:, 0], line[:, 1]) - 60) + 60


def _levels(rows: tuple[tuple[float, ...], ...]) -> np.ndarray:
    table = np.array(rows)
    return level_table(table[:, 0], table[:, 1:])


def _dome(x: np.ndarray, y: np.ndarray, side: int, top: float) -> np.ndarray:
    """Height of one dome over each x, y."""
    dx, dy = (x - np.float32(62 * side)) * np.float32(1 / 66), (y + np.float32(18)) * np.float32(1 / 90)
    back = np.where(dy > 0, np.float32(58), np.float32(26))
    return np.float32(top) - np.float32(30) * dx * dx - back * dy * dy


def _mediastinum(build: Build, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Half width of the mediastinum towards one side for every z, y (tables 1 mm apart), and 1 / steepness of it."""
    all_y, all_z = np.arange(*_TABLE_Y), np.arange(*_TABLE_Z)
    width = np.full((all_z.size, all_y.size), 2.5)
    balls = [ball for line in (*VESSELS.values(), OESOPHAGUS, _TRACHEA, *_HILA) for ball in _balls(line)]
    levels = np.arange(-210.0, 125.0, 5.0)
    balls += [
        ((0.0, y0 + back, z0), (r,) * 3)
        for y0, z0 in zip(spine_y(build, levels), levels)
        for back, r in ((0.0, 18.0), (16.0, 17.0), (32.0, 20.0), (50.0, 24.0))
    ]
    balls += [(center, tuple(r * build.heart for r in radii)) for center, radii in HEART]
    for (x0, y0, z0), (rx, ry, rz) in balls:
        part = (
            slice(*np.searchsorted(all_z, (z0 - rz - 3, z0 + rz + 3))),
            slice(*np.searchsorted(all_y, (y0 - ry - 3, y0 + ry + 3))),
        )
        rest = (
            1 - ((all_y[None, part[1]] - y0) / (ry + 3)) ** 2 - ((all_z[part[0], None] - z0) / (rz + 3)) ** 2
        )
        np.maximum(
            width[part],
            np.where(rest > 0, side * x0 + (rx + 3) * np.sqrt(np.maximum(rest, 0)), 0),
            out=width[part],
        )
    width = gaussian_filter(width, 3.5)
    steep = np.hypot(*np.gradient(width))
    return width.astype(np.float32), (1 / np.hypot(1, steep)).astype(np.float32)


def _balls(line: Line) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """A tube as overlapping balls: centre and three equal radii."""
    points, radii = np.array(line[0], dtype=np.float64), np.array(line[1], dtype=np.float64)
    found: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    for a, b, ra, rb in zip(points, points[1:], radii, radii[1:]):
        for t in np.linspace(0, 1, max(2, int(np.linalg.norm(b - a) / 4))):
            found.append((tuple(a + t * (b - a)), (ra + t * (rb - ra),) * 3))
    return found


# ---- painting -----------------------------------------------------------------------------------------------


def soft(f: np.ndarray, voxel_mm: float) -> np.ndarray:
    """Share of each voxel inside, for a function that is about mm."""
    return np.clip(np.float32(0.5) - f * np.float32(1 / voxel_mm), 0, 1)


def blend(picture: np.ndarray, share: np.ndarray, hu: float | np.ndarray) -> None:
    """Mix a tissue into the picture, in place."""
    picture += share * (hu - picture)


def paint_body(
    scene: Scene,
    chest: Chest,
    cavity: np.ndarray,
    diaphragm: np.ndarray,
    hu: dict[str, float],
    blotch: np.ndarray,
) -> None:
    """Table, skin, fat, muscle, mediastinal fat and the upper abdomen. blotch: a smooth random field, deviation 1."""
    voxel = float(scene.spacing_mm.mean())
    skin = chest.skin(scene.x, scene.y, scene.z)
    _paint_table(scene, chest)
    blend(scene.hu, soft(skin, voxel), hu["fat"] + 6 * blotch)
    rind = np.clip(1 - np.abs(skin + 1.2) * np.float32(1 / voxel), 0, 1)
    blend(scene.hu, rind, 10.0)
    wall = np.minimum(skin + np.float32(chest.build.fat_mm + 2), 30.0) + 1.5 * blotch
    strands = np.clip(np.abs(wall + 9 + 4 * blotch) * 0.7, 0.2, 1)  # planes of fat between layers of muscle
    strands *= 1 - np.float32(0.15) * (blotch > 1.2)
    blend(scene.hu, soft(wall, voxel) * strands, hu["muscle"])
    blend(scene.hu, soft(cavity, voxel), hu["fat"] + 14)
    below = np.maximum(cavity, -diaphragm)
    organ = np.where(scene.x < 22 + 4 * blotch, np.float32(hu["liver"]), np.float32(hu["spleen"]))
    blend(scene.hu, soft(below, voxel), organ)


def paint_mediastinum(
    scene: Scene, chest: Chest, cavity: np.ndarray, diaphragm: np.ndarray, hu: dict[str, float]
) -> None:
    """Heart, great vessels and gullet, and below the diaphragm the liver's dome and the stomach with its gas."""
    size = chest.build.heart
    heart = scene.join(
        [scene.ellipsoid(center, tuple(r * size for r in radii)) for center, radii in HEART], 8.0
    )
    scene.paint(heart, hu["muscle"] - 4)
    for center, radii in HEART:
        scene.paint(scene.ellipsoid(center, tuple(r * size - 9 for r in radii)), hu["blood"])
    for points, widths in VESSELS.values():
        nodes = smooth_line(np.array(points, dtype=np.float64))
        width = np.interp(np.linspace(0, 1, len(nodes)), np.linspace(0, 1, len(widths)), widths)
        scene.paint(scene.tube(nodes, width), hu["blood"])
    scene.paint(scene.tube(*OESOPHAGUS, blend_mm=2), hu["muscle"] - 12)
    liver = np.maximum(np.maximum(cavity, -diaphragm), scene.x + 30)
    blend(scene.hu, soft(liver, float(scene.spacing_mm.mean())), hu["liver"])
    middle = chest.build.dome_mm[1] - 38
    scene.paint(scene.ellipsoid((52, -22, middle), (38, 40, 30)), hu["muscle"] - 15)
    bubble = scene.ellipsoid((52, -24, middle), (34, 36, 26))
    scene.paint(
        Shape(bubble.box, np.maximum(bubble.f, scene.y[bubble.box] + 30)), -985.0
    )  # gas rises to the front


def paint_bones(scene: Scene, chest: Chest, hu: dict[str, float], blotch: np.ndarray) -> None:
    """Spine, ribs, breast bone, collar bones and shoulder blades."""
    _paint_spine(scene, chest, hu, blotch)
    cortex, marrow = TubeLayer(scene), TubeLayer(scene)
    rods = [*_ribs(chest), *_plates(chest)]
    for (_, radius), index in zip(rods, lines_to_index(scene, [points for points, _ in rods])):
        cortex.add(index, radius)
        marrow.add(index, radius - 1.6)
    blend(scene.hu, cortex.share, hu["cortex"])
    blend(scene.hu, marrow.share, hu["marrow"])


def _paint_spine(scene: Scene, chest: Chest, hu: dict[str, float], blotch: np.ndarray) -> None:
    heights = np.arange(116.0, -215.0, -8.0)
    middle = np.column_stack([np.zeros_like(heights), spine_y(chest.build, heights), heights])
    parts = [scene.tube(middle + (0, 29, 0), 12.0)]
    levels = np.arange(110.0, -200.0, -23.0)
    for level, y in zip(levels, spine_y(chest.build, levels)):
        parts.append(scene.tube([(0, y + 38, level), (0, y + 54, level - 14)], [4, 4]))
        parts += [
            scene.tube([(12, y + 24, level), (32, y + 30, level + 3)], [6, 4], side=side) for side in (1, -1)
        ]
    for part in parts:
        scene.paint(part, hu["cortex"] * 0.7)
        scene.paint(part.inset(2.0), hu["marrow"] + 40)
    body = scene.tube(middle, 16.5)
    gap = np.abs((scene.z[body.box] + 207.5) % 23.0 - 11.5)  # 11.5 in the middle of a disc
    disc = np.clip((gap - 8.5) / 1.5, 0, 1)
    spongy = hu["marrow"] + 35 * blotch[body.box]
    scene.paint(body, (1 - disc) * hu["cortex"] * 0.8 + disc * 75)
    scene.paint(body.inset(1.6), (1 - disc) * spongy + disc * 75)
    scene.paint(scene.tube(middle + (0, 28, 0), 8.0), 25.0)


def _ribs(chest: Chest) -> list[tuple[np.ndarray, float]]:
    """Centre lines of the ribs: from the spine around the cavity, sinking towards the front."""
    found = []
    for number in range(12):
        start = 96.0 - 24.0 * number
        front = (1.9, 2.35, 2.6, 2.7, 2.7, 2.65, 2.55, 2.4, 2.2, 1.95, 1.5, 1.1)[number]
        sink = (22, 38, 50, 58, 62, 64, 64, 60, 52, 42, 26, 14)[number]
        turn = np.linspace(0.32, front, 16)
        z = start - sink * ((turn - turn[0]) / 2.4) ** 1.2
        wide, deep, middle = chest.rib_cage(z)
        p, q = (np.sin(turn) / (wide + 6)) ** 2, (np.cos(turn) / (deep + 6)) ** 2
        corner = _CORNERS**2 * p * q
        square = np.where(
            corner > 1e-14,
            (p + q - np.sqrt(np.maximum((p + q) ** 2 - 4 * corner, 0))) / np.maximum(2 * corner, 1e-14),
            1 / (p + q),
        )
        reach = np.sqrt(square)
        x, y = reach * np.sin(turn), middle + reach * np.cos(turn)
        found += [(np.column_stack([side * x, y, z]), 4.6) for side in (1, -1)]
    return found


def _plates(chest: Chest) -> list[tuple[np.ndarray, float]]:
    """Breast bone, collar bones and shoulder blades as bundles of rods."""
    levels = np.linspace(58, -88, 10)
    _, deep, middle = chest.rib_cage(levels)
    found = [
        (np.column_stack([np.full(10, x), middle - deep - 7, levels]), 5.0) for x in np.linspace(-10, 10, 8)
    ]
    for side in (1, -1):
        found.append(
            (np.array([(10, -66, 62), (40, -62, 78), (80, -34, 92), (125, -8, 98)]) * (side, 1, 1), 5.5)
        )
        for t in np.linspace(0, 1, 9):
            top = np.array([92 + 40 * t, 84 - 24 * t, 74 - 4 * t])
            tip = np.array([104 + 8 * t, 92 - 6 * t, -44 + 14 * t])
            found.append((np.array([top, 0.5 * (top + tip) + (0, 3, 0), tip]) * (side, 1, 1), 2.6))
    return found


def _paint_table(scene: Scene, chest: Chest) -> None:
    """The couch under the back: a mat and two thin plates."""
    back = 7 + 113 + chest.build.fat_mm
    top = np.float32(back + 9) - scene.x * scene.x * np.float32(1 / 1700)
    below = scene.y - top
    blend(scene.hu, np.clip(below + 9, 0, 1) * np.clip(-below, 0, 1), -940.0)
    for depth in (1.0, 20.0):
        blend(scene.hu, np.clip(1.2 - np.abs(below - depth), 0, 1), -150.0)
