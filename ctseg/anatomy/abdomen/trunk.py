"""The upper abdomen's frame: outline, wall, ribs and spine, lungs, heart and diaphragm.

The standard frame stands in `trunk.csv`; its coordinates are those of `people.py`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.abdomen.people import Person
from ctseg.anatomy.body import (
    ROUNDNESS,
    body_outline,
    flattened,
    paint_bone,
    paint_muscle,
    paint_skin_and_fat,
    paint_twigs,
    vertebra,
)
from ctseg.anatomy.implicit import SIDES, Field, Points, Scene, Shape, smooth_minimum
from ctseg.anatomy.shape_tables import read_table

SHAPES = read_table(__file__)


@dataclasses.dataclass(frozen=True)
class Trunk:
    """Functions on the whole grid, negative inside, and the vertebrae."""

    skin: Field
    cavity: Field  # chest and abdomen inside ribs and muscles
    dome: Field  # below the diaphragm
    spine: list[Shape]


def paint_trunk(scene: Scene, person: Person) -> Trunk:
    """Skin, fat, muscles, chest and bones. The diaphragm has a higher dome on the right, a lower one on the
    left, and a saddle under the heart."""
    inner, y, backwards = body_outline(scene, SHAPES["outline"])  # inner: what lies below the fat
    lower = np.clip((40 - scene.z) / 100, 0, 1)  # over the ribs the fat is thinner
    around = np.where(y < 0, 1 - 0.25 * backwards, 1 + 0.2 * backwards)
    thickness = person.fat_mm * (1 + 0.12 * scene.smooth_field(40.0)) * (0.6 + 0.4 * lower) * around
    skin = flattened(scene, inner - thickness, person.fat_mm)
    inner = np.maximum(inner, skin + 5)
    low, high = (
        np.interp(np.abs(scene.x), *SHAPES[f"back of {part}"].T).astype(np.float32)
        for part in ("abdomen", "chest")
    )
    back = low + np.clip((scene.z - 5) / 45, 0, 1) * (high - low)
    dome = scene.z - 12
    for row in SHAPES["diaphragm"]:
        shape = scene.ellipsoid(row[:3], row[3:] + (0, 0, person.diaphragm_mm))
        dome[shape.box] = smooth_minimum(dome[shape.box], shape.f, 10.0)
    trunk = Trunk(skin, np.maximum(inner + 17, scene.y - back), dome, [])

    paint_skin_and_fat(scene, skin)
    paint_muscles(scene, inner)
    paint_chest(scene, trunk, person.effusion)
    # Ribs from the spine forwards and down, and cartilage from there to the breastbone.
    for z, reach, joins in SHAPES["rib"].tolist():
        path = rib_line(z, reach)
        x, _, tip_z = end = path[-1]
        cartilage = np.array([end, (0.55 * x, -108, tip_z + 14), (16, -112, max(tip_z + 36, 70))])
        for side in SIDES:
            paint_bone(scene.tube(path, np.linspace(5.6, 4.6, len(path)), side=side, blend_mm=1), 1.2)
            if joins:
                scene.tube(cartilage, 4.6, side=side, blend_mm=1).paint("cartilage", plus=25)
    levels = SHAPES["vertebra"].tolist()
    discs = scene.loft([(x, y, z, 15 * size) for z, y, _, size in levels for x in (-8.0, 8.0)])
    discs.paint("cartilage", plus=8)
    for level in levels:
        bone, canal = vertebra(scene, *level)
        paint_bone(bone, 1.2)
        canal.paint(25.0)
        trunk.spine.append(bone)
    paint_twigs(scene, SHAPES["twigs"])
    return trunk


def paint_muscles(scene: Scene, inner: Field) -> None:
    """The wall in layers with thin fat between them, the muscles of back and loin, the crura of the
    diaphragm.
    """
    depth = 0.5 * scene.texture["blotch"] - inner
    ux, y, z = np.abs(scene.x), scene.y, scene.z
    rectus = np.maximum.reduce([np.abs(depth - 7) - 4.2, np.abs(ux - 29.5) - 27.5, y + 40, z - 70])
    flank = np.maximum(48 - ux, y - 50)
    layers = np.minimum.reduce(
        [np.abs(depth - 4.2) - 2.6, np.abs(depth - 10) - 2.4, np.maximum(np.abs(depth - 15) - 1.8, z - 30)]
    )
    latissimus = np.maximum(np.abs(depth - 4.5) - 3.2, 16 - y)
    f = np.minimum.reduce([rectus, np.maximum(layers, flank), latissimus])
    for side in SIDES:
        for name in ("psoas", "loin", "inner spine", "outer spine"):
            shape = scene.loft(SHAPES[name], side=side).inset(0, blotch=0.8)
            f[shape.box] = np.minimum(f[shape.box], shape.f)
    paint_muscle(scene, np.maximum(f, inner + 1), (0.8, 1.3))
    for side in SIDES:
        scene.tube(SHAPES["crus"], side=side, blend_mm=2).paint("muscle")


def paint_chest(scene: Scene, trunk: Trunk, effusion: float) -> None:
    """Lungs with vessels, fluid in their recess in some, heart in its fat, and the sheet of the diaphragm."""
    blotch = scene.texture["blotch"]
    mediastinum = np.where(scene.y > -62, np.float32(16), np.float32(6))  # half width: it is narrow in front
    lung = np.maximum.reduce([trunk.cavity, 2.4 - trunk.dome, mediastinum - np.abs(scene.x + 2)])
    vessels = np.clip(scene.texture["grain"] + 0.5 * blotch - 1.7, 0, 1.2)
    air = scene.tissue["lung"] + 18 * blotch + 500 * vessels + 0.6 * np.clip(scene.y, -60, 60)
    scene.whole(np.maximum(np.abs(trunk.dome) - 1.6, trunk.cavity)).paint("muscle")
    scene.whole(lung).paint(air)
    if effusion and lung.min() < 0:
        fluid = np.maximum.reduce([lung, 60 - 40 * effusion - scene.y, scene.x])
        scene.whole(fluid).paint(8.0, blotch=4)
    sac = scene.ellipsoid((16, -46, 146), (66, 50, 56)).cut(trunk.dome, 2.0).cut(-trunk.cavity, 0.0)
    sac.paint("fat")
    heart = sac.inset(4.0, blotch=2.0)
    heart.paint("myocardium")
    for row in SHAPES["heart chamber"]:
        scene.ellipsoid(row[:3], row[3:]).inside(heart, 7.0).paint("chambers")


def rib_line(z: float, reach: float) -> Points:
    """Centre line (n, 3) of a left rib: along the transverse process, round the back, then just under the
    outline.
    """
    angles = np.radians(np.arange(46.0, reach + 1, 9.0))
    across, back = np.sin(angles), np.cos(angles)
    heights, *columns = SHAPES["outline"].T
    half, centre, to_front, to_back = (np.interp(z - 25, heights, column) for column in columns)
    power = 2 / ROUNDNESS
    x = (half - 10.5) * np.abs(across) ** power
    y = centre + (np.where(back > 0, to_back, to_front) - 10.5) * np.sign(back) * np.abs(back) ** power
    start = [(20, 22, z + 4), (38, 46, z), (62, 60, z - 8)]
    return np.vstack([start, np.column_stack([x, y, z - 0.62 * (np.degrees(angles) - 20)])])
