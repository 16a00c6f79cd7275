"""The upper abdomen's frame: outline, wall, ribs and spine, lungs, heart and diaphragm.

The standard frame stands in `trunk.csv`; its coordinates are those of `people.py`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.abdomen.people import Person
from ctseg.anatomy.body import ROUNDNESS, body_outline, flattened, muscle_hu, paint_skin_and_fat
from ctseg.anatomy.bones import paint_bone, vertebra
from ctseg.anatomy.implicit import Scene, Shape, smooth_minimum
from ctseg.anatomy.labels import SIDES
from ctseg.anatomy.shape_tables import read_table
from ctseg.anatomy.texture import Texture

SHAPES = read_table(__file__)


@dataclasses.dataclass(frozen=True)
class Trunk:
    """Functions on the whole grid, negative inside."""

    skin: np.ndarray
    inner: np.ndarray  # what lies below the fat under the skin
    cavity: np.ndarray  # chest and abdomen inside ribs and muscles
    dome: np.ndarray  # below the diaphragm

    @property
    def abdomen(self) -> np.ndarray:
        """Below the diaphragm and inside the wall."""
        return np.maximum(self.cavity, self.dome)


def build_trunk(scene: Scene, person: Person, ripple: np.ndarray) -> Trunk:
    """Outlines of the body and its cavities. ripple: smooth field (deviation 1) that makes the fat uneven."""
    inner, y, backwards = body_outline(scene, SHAPES["outline"])
    lower = np.clip((40 - scene.z) / 100, 0, 1)  # over the ribs the fat is thinner
    around = np.where(y < 0, 1 - 0.25 * backwards, 1 + 0.2 * backwards)
    thickness = person.fat_mm * (1 + 0.12 * ripple) * (0.6 + 0.4 * lower) * around
    skin = flattened(scene, inner - thickness, person.fat_mm)
    inner = np.maximum(inner, skin + 5)
    ux = np.abs(scene.x)
    low, high = (
        np.interp(ux, *SHAPES[f"back of {part}"].T).astype(np.float32) for part in ("abdomen", "chest")
    )
    back = low + np.clip((scene.z - 5) / 45, 0, 1) * (high - low)
    return Trunk(skin, inner, np.maximum(inner + 17, scene.y - back), diaphragm(scene, person))


def diaphragm(scene: Scene, person: Person) -> np.ndarray:
    """A higher dome on the right, a lower one on the left, a saddle under the heart; negative below."""
    f = scene.z - 12
    for dome in SHAPES["diaphragm"]:
        shape = scene.ellipsoid(dome[:3], dome[3:] + (0, 0, person.diaphragm_mm))
        f[shape.box] = smooth_minimum(f[shape.box], shape.f, 10.0)
    return f


def paint_trunk(scene: Scene, trunk: Trunk, person: Person, texture: Texture) -> list[Shape]:
    """Skin, fat, muscles, chest and bones; returns the vertebrae."""
    paint_skin_and_fat(scene, trunk.skin, person.hu, texture)
    paint_muscles(scene, trunk, person, texture)
    paint_chest(scene, trunk, person, texture)
    paint_ribs(scene, person, texture)
    return paint_spine(scene, person, texture)


def paint_muscles(scene: Scene, trunk: Trunk, person: Person, texture: Texture) -> None:
    """The wall in layers with thin fat between them, the muscles of back and loin, the crura of the
    diaphragm.
    """
    depth, ux, y, z = 0.5 * texture.blotch - trunk.inner, np.abs(scene.x), scene.y, scene.z
    rectus = np.maximum.reduce([np.abs(depth - 7) - 4.2, np.abs(ux - 29.5) - 27.5, y + 40, z - 70])
    flank = np.maximum(48 - ux, y - 50)
    layers = np.minimum.reduce(
        [np.abs(depth - 4.2) - 2.6, np.abs(depth - 10) - 2.4, np.maximum(np.abs(depth - 15) - 1.8, z - 30)]
    )
    latissimus = np.maximum(np.abs(depth - 4.5) - 3.2, 16 - y)
    f = np.minimum.reduce([rectus, np.maximum(layers, flank), latissimus])
    for side in SIDES:
        for name in ("psoas", "loin", "inner spine", "outer spine"):
            shape = scene.loft(SHAPES[name], side=side)
            f[shape.box] = np.minimum(f[shape.box], shape.f + 0.8 * texture.blotch[shape.box])
    muscle = scene.whole(np.maximum(f, trunk.inner + 1))
    scene.paint(muscle, muscle_hu(scene, person.hu, texture, (0.8, 1.3)))
    for side in SIDES:
        scene.paint(scene.tube(SHAPES["crus"], side=side, blend_mm=2), person.hu["muscle"])


def paint_chest(scene: Scene, trunk: Trunk, person: Person, texture: Texture) -> None:
    """Lungs with vessels, fluid in their recess in some, heart in its fat, and the sheet of the diaphragm."""
    mediastinum = np.where(scene.y > -62, np.float32(16), np.float32(6))  # half width: it is narrow in front
    lung = np.maximum.reduce([trunk.cavity, 2.4 - trunk.dome, mediastinum - np.abs(scene.x + 2)])
    vessels = np.clip(texture.grain + 0.5 * texture.blotch - 1.7, 0, 1.2)
    air = person.hu["lung"] + 18 * texture.blotch + 500 * vessels + 0.6 * np.clip(scene.y, -60, 60)
    scene.paint(scene.whole(np.maximum(np.abs(trunk.dome) - 1.6, trunk.cavity)), person.hu["muscle"])
    scene.paint(scene.whole(lung), air)
    if person.effusion and lung.min() < 0:
        fluid = np.maximum.reduce([lung, 60 - 40 * person.effusion - scene.y, scene.x])
        scene.paint(scene.whole(fluid), 8.0 + 4 * texture.blotch)
    sac = scene.ellipsoid((16, -46, 146), (66, 50, 56)).cut(trunk.dome, 2.0).cut(-trunk.cavity, 0.0)
    scene.paint(sac, person.hu["fat"])
    heart = sac.inset(4.0 + 2.0 * texture.blotch[sac.box])
    scene.paint(heart, person.hu["myocardium"])
    for chamber_row in SHAPES["heart chamber"]:
        chamber = scene.ellipsoid(chamber_row[:3], chamber_row[3:]).cut(-scene.spread(heart), 7.0)
        scene.paint(chamber, person.hu["chambers"])


def paint_ribs(scene: Scene, person: Person, texture: Texture) -> None:
    """Ribs from the spine forwards and down, and cartilage from there to the breastbone."""
    for z, reach, joins in SHAPES["rib"].tolist():
        path = rib_line(z, reach)
        end = path[-1]
        cartilage = np.array([end, (0.55 * end[0], -108, end[2] + 14), (16, -112, max(end[2] + 36, 70))])
        for side in SIDES:
            rib = scene.tube(path, np.linspace(5.6, 4.6, len(path)), side=side, blend_mm=1)
            paint_bone(scene, rib, person.hu, texture, cortex_mm=1.2, label=None)
            if joins:
                scene.paint(scene.tube(cartilage, 4.6, side=side, blend_mm=1), person.hu["cartilage"] + 25)


def rib_line(z: float, reach: float) -> np.ndarray:
    """Centre line (n, 3) of a left rib: along the transverse process, round the back, then just under the
    outline.
    """
    angles = np.radians(np.arange(46.0, reach + 1, 9.0))
    heights, *columns = SHAPES["outline"].T
    half, centre, front, back = (np.interp(z - 25, heights, column) for column in columns)
    depth = np.where(np.cos(angles) > 0, back, front) - 10.5
    power = 2 / ROUNDNESS
    x = (half - 10.5) * np.abs(np.sin(angles)) ** power
    y = centre + depth * np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** power
    fall = 0.62 * (np.degrees(angles) - 20)
    start = [(20, 22, z + 4), (38, 46, z), (62, 60, z - 8)]
    return np.vstack([start, np.column_stack([x, y, z - fall])])


def paint_spine(scene: Scene, person: Person, texture: Texture) -> list[Shape]:
    """Discs, vertebrae and the canal; returns the vertebrae."""
    levels = SHAPES["vertebra"].tolist()
    discs = scene.loft([(x, y, z, 15 * size) for z, y, _, size in levels for x in (-8.0, 8.0)])
    scene.paint(discs, person.hu["cartilage"] + 8)
    bones = []
    for z, y, pitch, size in levels:
        bone, canal = vertebra(scene, z, y, pitch, size)
        paint_bone(scene, bone, person.hu, texture, cortex_mm=1.2, label=None)
        scene.paint(canal, 25.0)
        bones.append(bone)
    return bones
