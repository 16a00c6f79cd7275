"""The chest around the airways: outlines, lungs, mediastinum with heart and vessels, ribs, spine, diaphragm.

Lungs are what remains of the inside of the rib cage above the diaphragm and beside the mediastinum. The
mediastinum is a width to either side of the midline for every y and z, read off the structures inside it.
Coordinates as in `airway_tree.py`: template mm, z = 0 at the carina. The standard chest stands in `chest.csv`
and `vessels.csv`.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from ctseg.anatomy.airway.airway_tree import smooth_line
from ctseg.anatomy.airway.people import Patient
from ctseg.anatomy.implicit import SIDES, Field, Points, Scene, at_heights
from ctseg.anatomy.shape_tables import read_table
from ctseg.anatomy.thin_tubes import Line, TubeLayer

CHEST = read_table(__file__)
VESSELS = read_table(__file__, "vessels")
_CORNERS = 0.58  # of the outlines: 0 an ellipse, 1 a rectangle

_EXTENT, _DEPTH_STEP_MM = ((-150, 150), (-120, 120), (-210, 120)), 3.0  # x, y, z of all that can be lung
_TABLE_Y, _TABLE_Z = (-125.0, 125.0), (-215.0, 125.0)  # extent of the mediastinum's tables, 1 mm apart


class Chest:
    """The shapes of one chest, as functions of template coordinates x, y, z (arrays of any one shape)."""

    def __init__(self, patient: Patient):
        self.patient = patient
        self.dome_mm = {-1: patient.right_dome_mm, 1: patient.right_dome_mm - patient.left_lower_mm}
        self._sides = {side: mediastinum(patient, side) for side in SIDES}
        axes = [np.arange(low, high, _DEPTH_STEP_MM, dtype=np.float32) for low, high in _EXTENT]
        *_, lungs = self.cavities(*np.meshgrid(*axes, indexing="ij"))
        self._depth = -np.minimum(lungs[1], lungs[-1])

    def outline(self, name: str, x: Field, y: Field, z: Field, extra_mm: float) -> Field:
        """The "skin" or the "cavity" of the rib cage, wider by extra_mm: negative inside, about mm near it.

        A closed line between an ellipse and a rectangle at each height.
        """
        a, b, middle = at_heights(CHEST[name], z)
        px, py = x / (a + extra_mm), (y - middle) / (b + extra_mm)
        u, v = np.minimum(px * px, 4), np.minimum(py * py, 4)
        corner = _CORNERS**2
        across, deep = px * (1 - corner * np.minimum(v, 1)) / a, py * (1 - corner * np.minimum(u, 1)) / b
        return (u + v - corner * u * v - 1) / np.maximum(2 * np.hypot(across, deep), 0.012)

    def cavities(self, x: Field, y: Field, z: Field) -> tuple[Field, Field, dict[int, Field]]:
        """Rib cage, what of it lies below the diaphragm, and lungs by side, negative inside.

        The diaphragm is two domes with deep gutters at the sides and the back.
        """
        cage = self.outline("cavity", x, y, z, 0.0)
        domes = []
        for side, top in self.dome_mm.items():
            dx, dy = (x - 62 * side) * (1 / 66), (y + 18) * (1 / 90)
            back = np.where(dy > 0, np.float32(58), np.float32(26))
            domes.append(top - 30 * dx * dx - back * dy * dy)
        above = (np.maximum(*domes) - z) * 0.85
        around = np.maximum(cage, above)
        row, column = (
            np.clip(axis - low, 0, high - low - 1).astype(np.intp)
            for axis, (low, high) in ((z, _TABLE_Z), (y, _TABLE_Y))
        )
        lungs = {
            side: np.maximum(around, (width[row, column] - side * x) * slope[row, column])
            for side, (width, slope) in self._sides.items()
        }
        return cage, np.maximum(cage, -above), lungs

    def depth(self, points: Points) -> np.ndarray:
        """How deep points (n, 3) lie inside a lung, in mm; negative outside. Read off a grid of 3 mm."""
        index = (points - [low for low, _ in _EXTENT]) / _DEPTH_STEP_MM
        return map_coordinates(self._depth, index.T, order=1, mode="nearest")

    def cloud(self, step_mm: float, rng: np.random.Generator) -> Points:
        """Points (n, 3) spread evenly over both lungs, at least 4 mm from their surface."""
        axes = [np.arange(low, high, step_mm) for low, high in _EXTENT]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        grid = grid + rng.uniform(-0.4, 0.4, grid.shape) * step_mm
        return grid[self.depth(grid) > 4.0]


def rib_cage(z: np.ndarray) -> np.ndarray:
    """Half width, half depth and middle (y) of the cavity at heights (n,): (3, n)."""
    return np.array(at_heights(CHEST["cavity"], z), dtype=np.float64)


def spine_y(patient: Patient, z: np.ndarray) -> np.ndarray:
    """y of the middle of the vertebral bodies at heights (n,)."""
    return patient.kyphosis * (np.interp(z, *CHEST["spine"].T) - 60) + 60


def mediastinum(patient: Patient, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Half width of the mediastinum towards one side for every z, y (tables 1 mm apart), 1 / its
    steepness.
    """
    all_y, all_z = np.arange(*_TABLE_Y), np.arange(*_TABLE_Z)
    width = np.full((all_z.size, all_y.size), 2.5)
    hollow = (CHEST[name] for name in ("oesophagus", "trachea", "right hilum", "left hilum"))
    tubes = [beads(nodes) for nodes in (*VESSELS.values(), *hollow)]
    levels = np.arange(-210.0, 125.0, 5.0)
    for back, radius in CHEST["behind the vertebral bodies"]:
        y = spine_y(patient, levels) + back
        tubes.append(np.column_stack([np.zeros_like(y), y, levels, np.full_like(y, radius)]))
    balls = np.concatenate(tubes)[:, [0, 1, 2, 3, 3, 3]]
    for x0, y0, z0, rx, ry, rz in [*balls, *CHEST["heart"] * ((1,) * 3 + (patient.heart,) * 3)]:
        part = (
            slice(*np.searchsorted(all_z, (z0 - rz - 3, z0 + rz + 3))),
            slice(*np.searchsorted(all_y, (y0 - ry - 3, y0 + ry + 3))),
        )
        off_y, off_z = (all_y[None, part[1]] - y0) / (ry + 3), (all_z[part[0], None] - z0) / (rz + 3)
        rest = 1 - off_y**2 - off_z**2
        edge = np.where(rest > 0, side * x0 + (rx + 3) * np.sqrt(np.maximum(rest, 0)), 0)
        width[part] = np.maximum(width[part], edge)
    width = gaussian_filter(width, 3.5)
    steep = np.hypot(*np.gradient(width))
    return width.astype(np.float32), (1 / np.hypot(1, steep)).astype(np.float32)


def beads(nodes: Points) -> Points:
    """A tube (n, 4: x, y, z, radius) as balls about 4 mm apart, in the same form."""
    pieces = []
    for a, b in itertools.pairwise(nodes):
        t = np.linspace(0, 1, max(2, int(np.linalg.norm(b[:3] - a[:3]) / 4)))
        pieces.append(a + t[:, None] * (b - a))
    return np.concatenate(pieces)


def soft(scene: Scene, f: Field) -> Field:
    """Share of each voxel inside, for a function on the whole grid that is about mm."""
    return np.clip(0.5 - f * (1 / float(scene.spacing_mm.mean())), 0, 1)


def paint_chest(scene: Scene, chest: Chest) -> dict[int, Field]:
    """Everything but what is in the lungs. Returns the lungs' functions by side (1 left, -1 right)."""
    hu, blotch, fat_mm = scene.tissue, scene.texture["blotch"], chest.patient.fat_mm
    cage, below, lungs = chest.cavities(scene.x, scene.y, scene.z)
    # of the couch: a mat, two thin plates
    below_top = scene.y - (129 + fat_mm - scene.x * scene.x * (1 / 1700))
    scene.blend(np.clip(below_top + 9, 0, 1) * np.clip(-below_top, 0, 1), -940.0)
    for depth in (1.0, 20.0):
        scene.blend(np.clip(1.2 - np.abs(below_top - depth), 0, 1), -150.0)
    skin = chest.outline("skin", scene.x, scene.y, scene.z, fat_mm)
    scene.blend(soft(scene, skin), hu["fat"] + 6 * blotch)
    scene.blend(np.clip(1 - np.abs(skin + 1.2) * (1 / float(scene.spacing_mm.mean())), 0, 1), 10.0)
    wall = np.minimum(skin + (fat_mm + 2), 30.0) + 1.5 * blotch
    strands = np.clip(np.abs(wall + 9 + 4 * blotch) * 0.7, 0.2, 1)  # planes of fat between layers of muscle
    strands *= 1 - np.float32(0.15) * (blotch > 1.2)
    scene.blend(soft(scene, wall) * strands, "muscle")
    scene.blend(soft(scene, cage), hu["fat"] + 14)
    organ = np.where(scene.x < 22 + 4 * blotch, np.float32(hu["liver"]), np.float32(hu["spleen"]))
    scene.blend(soft(scene, below), organ)
    paint_mediastinum(scene, chest, below)
    paint_spine(scene, chest.patient)
    cortex, marrow = TubeLayer(scene), TubeLayer(scene)
    rods = [*ribs(), *plates()]
    cortex.add_lines(rods)
    marrow.add_lines([(points, radius - 1.6) for points, radius in rods])
    scene.blend(cortex.share, "cortex")
    scene.blend(marrow.share, "marrow")
    return lungs


def paint_mediastinum(scene: Scene, chest: Chest, below: Field) -> None:
    """Heart, great vessels, gullet; below the diaphragm the liver's dome and the stomach with its gas."""
    hearts = [(row[:3], row[3:] * chest.patient.heart) for row in CHEST["heart"]]
    walls = scene.join([scene.ellipsoid(center, radii) for center, radii in hearts], 8.0)
    walls.paint("muscle", plus=-4)
    for center, radii in hearts:
        scene.ellipsoid(center, radii - 9).paint("blood")
    for nodes in VESSELS.values():
        line, share = smooth_line(nodes[:, :3]), np.linspace(0, 1, len(nodes))
        radius = np.interp(np.linspace(0, 1, len(line)), share, nodes[:, 3])
        scene.tube(line, radius).paint("blood")
    scene.tube(CHEST["oesophagus"], blend_mm=2).paint("muscle", plus=-12)
    scene.blend(soft(scene, np.maximum(below, scene.x + 30)), "liver")
    middle = chest.dome_mm[1] - 38
    scene.ellipsoid((52, -22, middle), (38, 40, 30)).paint("muscle", plus=-15)
    bubble = scene.ellipsoid((52, -24, middle), (34, 36, 26))
    bubble.within(bubble.at()[1] + 30).paint(-985.0)  # rises to the front


def paint_spine(scene: Scene, patient: Patient) -> None:
    """Arches and processes, then bodies with discs between them, then the canal."""
    heights = np.arange(116.0, -215.0, -8.0)
    middle = np.column_stack([np.zeros_like(heights), spine_y(patient, heights), heights])
    parts = [scene.tube(middle + (0, 29, 0), 12.0)]
    levels = np.arange(110.0, -200.0, -23.0)
    for z, y in zip(levels, spine_y(patient, levels)):
        parts.append(scene.tube(CHEST["spinous process"] + (0, y, z, 0)))
        parts += [scene.tube(CHEST["transverse process"] + (0, y, z, 0), side=side) for side in SIDES]
    for part in parts:
        part.paint(scene.tissue["cortex"] * 0.7)
        part.inset(2.0).paint("marrow", plus=40)
    body = scene.tube(middle, 16.5)
    gap = np.abs((scene.z[body.box] + 207.5) % 23.0 - 11.5)  # 11.5 in the middle of a disc
    disc = np.clip((gap - 8.5) / 1.5, 0, 1)
    spongy = body.uneven(scene.tissue["marrow"], blotch=35)
    body.paint((1 - disc) * scene.tissue["cortex"] * 0.8 + disc * 75)
    body.inset(1.6).paint((1 - disc) * spongy + disc * 75)
    scene.tube(middle + (0, 28, 0), 8.0).paint(25.0)


def ribs() -> list[Line]:
    """Centre lines and radii of the ribs: from the spine around the cavity, sinking towards the front."""
    found = []
    for number, (front, sink) in enumerate(CHEST["rib"]):
        turn = np.linspace(0.32, front, 16)
        z = 96.0 - 24.0 * number - sink * ((turn - turn[0]) / 2.4) ** 1.2
        wide, deep, middle = rib_cage(z)
        p, q = (np.sin(turn) / (wide + 6)) ** 2, (np.cos(turn) / (deep + 6)) ** 2
        corner = _CORNERS**2 * p * q
        root = np.sqrt(np.maximum((p + q) ** 2 - 4 * corner, 0))
        square = (p + q - root) / np.maximum(2 * corner, 1e-14)
        reach = np.sqrt(np.where(corner > 1e-14, square, 1 / (p + q)))
        x, y = reach * np.sin(turn), middle + reach * np.cos(turn)
        found += [(np.column_stack([side * x, y, z]), 4.6) for side in SIDES]
    return found


def plates() -> list[Line]:
    """Breast bone, collar bones and shoulder blades as bundles of rods: centre lines and radii."""
    levels = np.linspace(58, -88, 10)
    _, deep, middle = rib_cage(levels)
    front = np.column_stack([np.zeros(10), middle - deep - 7, levels])
    found = [(front + (x, 0, 0), 5.0) for x in np.linspace(-10, 10, 8)]
    left = [(CHEST["collar bone"], 5.5)]
    for t in np.linspace(0, 1, 9):
        top, tip = (row[:3] + t * row[3:] for row in CHEST["shoulder blade"])
        left.append((np.array([top, 0.5 * (top + tip) + (0, 3, 0), tip]), 2.6))
    return found + [(points * (side, 1, 1), radius) for side in SIDES for points, radius in left]
