"""The upper abdomen's frame: outline, wall, ribs and spine, lungs, heart and diaphragm.

Sections are (z, [(x, y, half thickness), ...]) of the left side in template mm; see `abdomen_people.py`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.abdomen.people import Person
from ctseg.anatomy.implicit import Level, Scene, Shape, level_table, smooth_minimum, table_row
from ctseg.anatomy.labels import SIDES
from ctseg.anatomy.pelvis.skeleton import paint_bone, vertebra
from ctseg.anatomy.texture import Texture

# z, half width, centre y, depth to the front, depth to the back: the outline below the fat under the skin.
OUTLINE = np.array(
    [
        (-190, 140, -6, 104, 90),
        (-110, 140, -8, 104, 92),
        (-60, 140, -10, 106, 94),
        (-10, 143, -12, 108, 98),
        (40, 146, -12, 108, 102),
        (90, 147, -12, 105, 106),
        (150, 145, -12, 100, 108),
        (220, 138, -12, 96, 108),
    ],
    dtype=float,
)
# z, y, pitch, size: L5 to T7
VERTEBRAE = (
    (-136, -4, 0.06, 1.0),
    (-102, -6, 0.05, 1.0),
    (-68, -6, 0.02, 1.0),
    (-34, -4, -0.03, 1.0),
    (0, 0, -0.06, 0.98),
    (31, 2, -0.06, 0.93),
    (60, 4, -0.04, 0.88),
    (87, 6, -0.03, 0.85),
    (112, 8, 0.0, 0.82),
    (137, 9, 0.0, 0.80),
    (161, 10, 0.0, 0.78),
)
RIBS = (
    (31, 60, False),
    (60, 100, False),
    (87, 128, True),
    (112, 134, True),
    (137, 138, True),
    (161, 140, True),
    (185, 140, True),
)  # z of the vertebra, reach in degrees, joins the sternum
# |x| to y of the back wall of the cavity: beside the spine in the chest, in front of psoas and loin muscle below.
BACK_CHEST = np.array(
    [(0, -10), (18, -8), (25, 22), (42, 42), (64, 54), (86, 55), (108, 44), (130, 20)], dtype=float
)
BACK_ABDOMEN = np.array(
    [(0, -22), (20, -20), (30, -6), (44, 22), (58, 36), (84, 38), (108, 32), (130, 10)], dtype=float
)
PSOAS: list[Level] = [
    (-190, [(46, -2, 14), (50, 8, 13)]),
    (-110, [(44, -2, 13), (47, 8, 13)]),
    (-70, [(38, 2, 10), (42, 10, 10)]),
    (-35, [(34, 6, 7), (37, 12, 7)]),
    (0, [(30, 10, 4), (32, 13, 4)]),
    (14, [(28, 12, 1), (29, 13, 1)]),
]
LOIN: list[Level] = [
    (-190, [(60, 46, 9), (78, 42, 8)]),
    (-60, [(54, 48, 9), (74, 44, 7)]),
    (0, [(48, 50, 8), (62, 48, 6)]),
    (28, [(44, 50, 4), (52, 50, 3)]),
]
SPINE_INNER: list[Level] = [
    (-190, [(16, 66, 13)]),
    (0, [(16, 68, 12)]),
    (100, [(15, 72, 10)]),
    (200, [(14, 76, 9)]),
]
SPINE_OUTER: list[Level] = [
    (-190, [(38, 64, 18), (62, 58, 13)]),
    (0, [(36, 68, 15), (58, 64, 11)]),
    (100, [(30, 74, 11), (50, 72, 8)]),
    (200, [(26, 78, 9), (40, 78, 7)]),
]


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
    inner, thickness = _outline(scene, person, ripple)
    skin = inner - thickness
    skin = -smooth_minimum(
        -skin, np.float32(102 + person.fat_mm * 0.95) - scene.y, 16.0
    )  # the table flattens the back
    inner = np.maximum(inner, skin + 5)
    ux = np.abs(scene.x)
    share = np.clip((scene.z - 5) / 45, 0, 1)
    low, high = (
        np.interp(ux.ravel(), wall[:, 0], wall[:, 1]).reshape(ux.shape).astype(np.float32)
        for wall in (BACK_ABDOMEN, BACK_CHEST)
    )
    cavity = np.maximum(inner + np.float32(17), scene.y - (low + share * (high - low)))
    return Trunk(
        skin.astype(np.float32), inner.astype(np.float32), cavity.astype(np.float32), _dome(scene, person)
    )


def _outline(scene: Scene, person: Person, ripple: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outline below the fat, and the thickness of the fat with the skin."""
    table = level_table(OUTLINE[:, 0], OUTLINE[:, 1:])
    row = table_row(scene.z, OUTLINE[:, 0].min(), len(table))
    x, y = scene.x, scene.y - table[:, 1][row]
    depth = np.where(y < 0, table[:, 2][row], table[:, 3][row])
    level = (np.abs(x) / table[:, 0][row]) ** 2.3 + (np.abs(y) / depth) ** 2.3
    level = np.maximum(level, 1e-6) ** np.float32(1 / 2.3)
    distance = np.sqrt(x * x + y * y)
    backwards = np.clip(y / np.maximum(distance, 1), -1, 1)
    lower = np.clip((40 - scene.z) / 100, 0, 1)  # over the ribs the fat is thinner
    thickness = (
        np.float32(person.fat_mm)
        * (1 + 0.12 * ripple)
        * (0.6 + 0.4 * lower)
        * np.where(y < 0, 1 - 0.25 * backwards, 1 + 0.2 * backwards)
    )
    return distance * (1 - 1 / level), thickness


def _dome(scene: Scene, person: Person) -> np.ndarray:
    """The diaphragm: a higher dome on the right, a lower one on the left, a saddle under the heart."""
    f = scene.z - np.float32(12)
    for center, radii in (
        ((-62, -14, 12), (70, 84, 98 + person.diaphragm_mm)),
        ((60, -14, 12), (74, 86, 88 + person.diaphragm_mm)),
        ((0, -38, 12), (62, 62, 80 + person.diaphragm_mm)),
    ):
        shape = scene.ellipsoid(center, radii)
        f[shape.box] = smooth_minimum(f[shape.box], shape.f, 10.0)
    return f.astype(np.float32)


def paint_trunk(scene: Scene, trunk: Trunk, person: Person, texture: Texture) -> list[Shape]:
    """Skin, fat, muscles, chest and bones; returns the vertebrae."""
    _paint_skin_and_fat(scene, trunk, person, texture)
    _paint_muscles(scene, trunk, person, texture)
    _paint_chest(scene, trunk, person, texture)
    _paint_ribs(scene, person, texture)
    return _paint_spine(scene, person, texture)


def _paint_skin_and_fat(scene: Scene, trunk: Trunk, person: Person, texture: Texture) -> None:
    strand = np.exp(-(((texture.blotch + 0.25 * texture.grain) / 0.12) ** 2))
    body = scene.whole(trunk.skin)
    scene.paint(body, person.hu["skin"])
    scene.paint(body, person.hu["fat"] + 3 * texture.blotch + 14 * strand, inset_mm=2.2)


def _paint_muscles(scene: Scene, trunk: Trunk, person: Person, texture: Texture) -> None:
    """The wall in layers with thin fat between them, and the muscles of back and loin."""
    depth, ux, y, z = -trunk.inner, np.abs(scene.x), scene.y, scene.z
    depth = depth + 0.5 * texture.blotch
    rectus = np.maximum(np.abs(depth - 7) - 4.2, np.maximum(np.abs(ux - 29.5) - 27.5, y + 40))
    rectus = np.maximum(rectus, z - 70)
    flank = np.maximum(48 - ux, y - 50)
    layers = np.minimum.reduce(
        [np.abs(depth - 4.2) - 2.6, np.abs(depth - 10) - 2.4, np.maximum(np.abs(depth - 15) - 1.8, z - 30)]
    )
    behind = np.maximum(np.abs(depth - 4.5) - 3.2, 16 - y)  # latissimus
    f = np.minimum(np.minimum(rectus, np.maximum(layers, flank)), behind).astype(np.float32)
    for side in SIDES:
        for levels in (PSOAS, LOIN, SPINE_INNER, SPINE_OUTER):
            shape = scene.loft(levels, side=side)
            np.minimum(f[shape.box], shape.f + np.float32(0.8) * texture.blotch[shape.box], out=f[shape.box])
    fatty = np.clip(texture.grain * 0.8 + texture.blotch * 0.4 - np.where(y > 40, 0.8, 1.3), 0, 1.5)
    scene.paint(
        scene.whole(np.maximum(f, trunk.inner + 1)), person.hu["muscle"] + 3 * texture.blotch - 34 * fatty
    )
    for side in SIDES:  # the crura of the diaphragm, beside the aorta
        scene.paint(
            scene.tube(
                [(13, -18, -44), (13, -24, 0), (16, -26, 40), (24, -34, 72)],
                [3, 5, 5, 3],
                side=side,
                blend_mm=2,
            ),
            person.hu["muscle"],
        )


def _paint_chest(scene: Scene, trunk: Trunk, person: Person, texture: Texture) -> None:
    """Lungs with vessels, fluid in their recess in some, heart in its fat, and the sheet of the diaphragm."""
    lung = np.maximum(trunk.cavity, 2.4 - trunk.dome)
    beside = np.abs(scene.x + 2) - np.where(
        scene.y > -62, np.float32(16), np.float32(6)
    )  # the mediastinum is narrow in front
    lung = np.maximum(lung, -beside).astype(np.float32)
    vessels = np.clip(texture.grain + 0.5 * texture.blotch - 1.7, 0, 1.2)
    air = person.hu["lung"] + 18 * texture.blotch + 500 * vessels + 0.6 * np.clip(scene.y, -60, 60)
    sheet = np.maximum(np.abs(trunk.dome) - 1.6, trunk.cavity).astype(np.float32)
    scene.paint(scene.whole(sheet), person.hu["muscle"])
    scene.paint(scene.whole(lung), air)
    if person.effusion and lung.min() < 0:
        level = np.float32(60 - 40 * person.effusion)
        scene.paint(
            scene.whole(np.maximum(lung, np.maximum(level - scene.y, scene.x)).astype(np.float32)),
            8.0 + 4 * texture.blotch,
        )
    sac = scene.ellipsoid((16, -46, 146), (66, 50, 56))
    sac.f = np.maximum(sac.f, np.maximum(2.0 - trunk.dome[sac.box], trunk.cavity[sac.box])).astype(np.float32)
    scene.paint(sac, person.hu["fat"])
    heart = sac.inset(4.0 + 2.0 * texture.blotch[sac.box])
    scene.paint(heart, person.hu["myocardium"])
    for center, radii in (((-14, -44, 150), (26, 28, 32)), ((34, -40, 148), (24, 24, 30))):
        chamber = scene.ellipsoid(center, radii)
        whole = scene.spread(heart)[chamber.box]
        scene.paint(
            Shape(chamber.box, np.maximum(chamber.f, whole + 7).astype(np.float32)), person.hu["chambers"]
        )


def _paint_ribs(scene: Scene, person: Person, texture: Texture) -> None:
    """Ribs from the spine forwards and down, and cartilage from there to the breastbone."""
    for z, reach, joins in RIBS:
        for side in SIDES:
            path = _rib_line(z, reach)
            paint_bone(
                scene,
                scene.tube(path, np.linspace(5.6, 4.6, len(path)), side=side, blend_mm=1),
                person,
                texture.grain,
                texture.blotch,
                None,
                cortex_mm=1.2,
            )
            if joins:
                end = path[-1]
                last = np.array([(0.55 * end[0], -108, end[2] + 14), (16, -112, max(end[2] + 36, 70))])
                scene.paint(
                    scene.tube(np.vstack([end, last]), 4.6, side=side, blend_mm=1),
                    person.hu["cartilage"] + 25,
                )


def _rib_line(z: float, reach: float) -> np.ndarray:
    """Centre line (n, 3) of a left rib: along the transverse process, round the back, then just under the outline."""
    angles = np.radians(np.arange(46.0, reach + 1, 9.0))
    half, centre, front, back = (np.interp(z - 25, OUTLINE[:, 0], OUTLINE[:, k]) for k in (1, 2, 3, 4))
    depth = np.where(np.cos(angles) > 0, back, front) - 10.5
    power = 2 / 2.3
    x = (half - 10.5) * np.abs(np.sin(angles)) ** power
    y = centre + depth * np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** power
    fall = 0.62 * (np.degrees(angles) - 20)
    start = [(20, 22, z + 4), (38, 46, z), (62, 60, z - 8)]
    return np.vstack([start, np.column_stack([x, y, z - fall])])


def _paint_spine(scene: Scene, person: Person, texture: Texture) -> list[Shape]:
    """Discs, vertebrae and the canal; returns the vertebrae."""
    levels = [
        (float(z), [(-8.0, float(y), 15 * size), (8.0, float(y), 15 * size)]) for z, y, _, size in VERTEBRAE
    ]
    scene.paint(scene.loft(levels), person.hu["cartilage"] + 8)
    bones = []
    for z, y, pitch, size in VERTEBRAE:
        bone, canal = vertebra(scene, z, y, pitch, size)
        paint_bone(scene, bone, person, texture.grain, texture.blotch, None, cortex_mm=1.2)
        scene.paint(canal, 25.0)
        bones.append(bone)
    return bones
