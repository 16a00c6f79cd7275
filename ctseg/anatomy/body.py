"""What the trunk is in every task: outline, skin, fat with its twigs, muscle streaked with fat, and bone."""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.implicit import SIDES, Field, Scene, Shape, at_heights, smooth_minimum
from ctseg.anatomy.shape_tables import read_table

SHAPES = read_table(__file__)
ROUNDNESS = 2.3  # exponent of the outline: 2 an ellipse, more a rounded rectangle


def body_outline(scene: Scene, outline: np.ndarray) -> tuple[Field, Field, Field]:
    """A rounded cross-section on the whole grid: f, y about its middle, how far backwards it lies (-1..1).

    outline: rows of z, half width, centre y, depth to the front and to the back, in mm.
    """
    width, middle, to_front, to_back = at_heights(outline, scene.z)
    x, y = scene.x, scene.y - middle
    level = (np.abs(x) / width) ** ROUNDNESS + (np.abs(y) / np.where(y < 0, to_front, to_back)) ** ROUNDNESS
    level = np.maximum(level, 1e-6) ** (1 / ROUNDNESS)
    distance = np.sqrt(x * x + y * y)
    return distance * (1 - 1 / level), y, np.clip(y / np.maximum(distance, 1), -1, 1)


def flattened(scene: Scene, skin: Field, fat_mm: float) -> Field:
    """The skin's function with the back flattened by the table."""
    return -smooth_minimum(-skin, 102 + fat_mm * 0.95 - scene.y, 16.0)


def paint_skin_and_fat(scene: Scene, skin: Field) -> None:
    """Skin, then fat with faint strands everywhere inside."""
    body, blotch = scene.whole(skin), scene.texture["blotch"]
    strand = np.exp(-(((blotch + 0.25 * scene.texture["grain"]) / 0.12) ** 2))
    body.paint("skin")
    body.inset(2.2).paint(scene.tissue["fat"] + 3 * blotch + 14 * strand)


def paint_muscle(scene: Scene, f: Field, lean: tuple[float, float]) -> None:
    """Muscle streaked with fat, given on the whole grid; lean: how little fat in the back, elsewhere."""
    grain, blotch = scene.texture["grain"], scene.texture["blotch"]
    fatty = np.clip(grain * 0.8 + blotch * 0.4 - np.where(scene.y > 40, *lean), 0, 1.5)
    scene.whole(f).paint(scene.tissue["muscle"] + 3 * blotch - 34 * fatty)


def paint_twigs(scene: Scene, regions: np.ndarray) -> None:
    """Small vessels and nodes that make fat look like fat.

    regions: rows of centre, spread along each axis, number of twigs, length of a step and radius from least
    to most, and 1 where they lie on either side by chance.
    """
    rng = scene.rng
    for region in regions:
        count, low_mm, high_mm, thin_mm, thick_mm, mirrored = region[6:].tolist()
        for _ in range(int(count)):
            side = int(rng.choice([-1, 1])) if mirrored else 1
            start = region[:3] * (side, 1, 1) + rng.normal(0, 0.6, 3) * region[3:6]
            steps = rng.normal(0, 1, (4, 3)).cumsum(axis=0) * rng.uniform(low_mm, high_mm)
            twig = scene.tube(start + steps, rng.uniform(thin_mm, thick_mm))
            twig.paint(0.6 * scene.tissue["vein"] + 10, strength=0.8)


def paint_bone(bone: Shape, cortex_mm: float, label: str | None = None) -> None:
    """A bone: dense shell, spongy inside whose density varies."""
    bone.paint("cortex", label)
    shell = np.maximum(cortex_mm * bone.uneven(1, blotch=0.35), 0.7)
    bone.inset(shell).paint("marrow", grain=45, blotch=55)


def vertebra(scene: Scene, z: float, y: float, pitch: float, size: float = 1.0) -> tuple[Shape, Shape]:
    """One vertebra (body, arch, processes) and the spinal canal behind it; discs are drawn as soft tissue.

    size: relative to a lumbar one.
    """
    c, s = np.cos(pitch), np.sin(pitch)

    def part(name: str, side: int = 1, blend_mm: float = 0.0) -> Shape:
        px, py, pz, radius = SHAPES[name].T
        placed = size * px, y + size * (c * py - s * pz), z + size * (s * py + c * pz), radius
        return scene.tube(np.column_stack(placed), side=side, blend_mm=blend_mm)

    # The body: a kidney-shaped drum with a slight waist, 48 mm wide, 35 mm deep and 27 mm high.
    box, coordinates = scene.around((0.0, y, z), 34, pitch=pitch)
    ux, uy, uz = (axis / size for axis in coordinates)
    waist = 2.0 - 0.011 * uz * uz
    across, along = np.abs(ux) / (24.5 - waist), np.abs((uy + 0.004 * ux * ux) / (17.5 - waist))
    level = (across**2.4 + along**2.4) ** (1 / 2.4)
    parts = [Shape(scene, box, np.maximum((level - 1) * 19.0, np.abs(uz) - 13.5))]
    for side in SIDES:
        parts += [part("arch", side, 2.0), part("transverse process", side), part("lamina", side)]
    return scene.join([*parts, part("spinous process")], 2.0), part("canal")
