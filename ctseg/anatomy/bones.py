"""Bones that more than one task draws: dense shell, spongy inside, and the vertebra."""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.implicit import Scene, Shape
from ctseg.anatomy.labels import SIDES
from ctseg.anatomy.shape_tables import read_table
from ctseg.anatomy.texture import Texture

SHAPES = read_table(__file__)


def paint_bone(
    scene: Scene, bone: Shape, hu: dict[str, float], texture: Texture, *, cortex_mm: float, label: int | None
) -> None:
    """A bone: dense shell, spongy inside whose density varies."""
    t = texture.on(bone)
    scene.paint(bone, hu["cortex"], label)
    shell = np.maximum(cortex_mm * (1 + 0.35 * t.blotch), 0.7)
    scene.paint(bone.inset(shell), hu["marrow"] + 45 * t.grain + 55 * t.blotch)


def vertebra(scene: Scene, z: float, y: float, pitch: float, size: float = 1.0) -> tuple[Shape, Shape]:
    """One vertebra (body, arch, processes) and the spinal canal behind it; discs are drawn as soft tissue.

    size: relative to a lumbar one.
    """
    c, s = np.cos(pitch), np.sin(pitch)

    def part(name: str, side: int = 1, blend_mm: float = 0.0) -> Shape:
        px, py, pz, radius = SHAPES[name].T
        placed = size * px, y + size * (c * py - s * pz), z + size * (s * py + c * pz), radius
        return scene.tube(np.column_stack(placed), side=side, blend_mm=blend_mm)

    parts = [vertebral_body(scene, y, z, pitch, size)]
    for side in SIDES:
        parts += [part("arch", side, 2.0), part("transverse process", side), part("lamina", side)]
    return scene.join([*parts, part("spinous process")], 2.0), part("canal")


def vertebral_body(scene: Scene, y: float, z: float, pitch: float, size: float) -> Shape:
    """A kidney-shaped drum with a slight waist, 48 mm wide, 35 mm deep and 27 mm high."""
    box, coordinates = scene.around((0.0, y, z), 34, pitch=pitch)
    px, py, pz = (axis / np.float32(size) for axis in coordinates)
    waist = 2.0 - 0.011 * pz * pz
    across, along = np.abs(px) / (24.5 - waist), np.abs((py + 0.004 * px * px) / (17.5 - waist))
    level = (across**2.4 + along**2.4) ** (1 / 2.4)
    return Shape(box, np.maximum((level - 1) * 19.0, np.abs(pz) - 13.5))
