"""Liver with gallbladder, kidneys, spleen, pancreas and adrenals of the upper abdomen.

Sections are (z, [(x, y, half thickness), ...]) in template mm; see `abdomen_people.py`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.abdomen.people import Person
from ctseg.anatomy.abdomen.trunk import Trunk
from ctseg.anatomy.implicit import Level, Scene, Shape, ellipsoid_distance
from ctseg.anatomy.labels import SIDES
from ctseg.anatomy.texture import Texture

# From the back of the right lobe round to the tip of the left one.
LIVER: list[Level] = [
    (116, [(-72, 8, 30), (-72, -32, 32), (-42, -44, 25), (-8, -52, 14)]),
    (92, [(-80, 16, 42), (-78, -28, 42), (-34, -50, 34), (24, -60, 22)]),
    (66, [(-82, 20, 42), (-80, -28, 46), (-30, -58, 32), (44, -66, 17)]),
    (40, [(-84, 22, 40), (-82, -28, 44), (-32, -64, 28), (38, -76, 13)]),
    (15, [(-86, 22, 36), (-84, -28, 38), (-40, -68, 22), (20, -84, 9)]),
    (-10, [(-90, 18, 31), (-88, -25, 32), (-56, -60, 18), (-5, -86, 5)]),
    (-35, [(-94, 12, 25), (-92, -22, 26), (-72, -50, 13), (-48, -68, 4)]),
    (-60, [(-98, 4, 17), (-96, -16, 17), (-88, -34, 9), (-82, -44, 3)]),
    (-78, [(-100, 0, 7), (-98, -12, 8), (-95, -22, 5), (-92, -30, 1)]),
]
SPLEEN: list[Level] = [
    (112, [(72, 34, 8), (84, 20, 13), (88, 2, 8)]),
    (96, [(62, 40, 16), (88, 26, 22), (100, -4, 15)]),
    (72, [(56, 44, 19), (92, 27, 25), (110, -12, 19)]),
    (48, [(62, 42, 16), (98, 22, 24), (112, -12, 18)]),
    (26, [(78, 34, 10), (102, 15, 17), (111, -8, 12)]),
    (12, [(94, 26, 3), (106, 10, 8), (110, 0, 4)]),
]
SPLEEN_CENTER = (88.0, 24.0, 66.0)
KIDNEY_CENTER = {1: (62.0, 9.0, -4.0), -1: (-62.0, 9.0, -20.0)}  # the right one lies lower
KIDNEY_RADII = (29.5, 25.5, 57.0)
PANCREAS = (
    [
        (84, 16, 38),
        (62, 6, 33),
        (40, -18, 20),
        (14, -40, 10),
        (-6, -42, 4),
        (-28, -32, -8),
        (-34, -24, -24),
        (-24, -20, -38),
    ],
    [9, 11, 11, 10, 9.5, 14, 15, 9],
)
GALLBLADDER = ([(-44, -58, 10), (-52, -70, -10), (-58, -78, -26)], [7, 12.5, 12])


@dataclasses.dataclass(frozen=True)
class Kidney:
    """One kidney: the tissue around its hollow, the hollow with fat, and the basin that drains it."""

    tissue: Shape
    sinus: Shape
    basin: Shape
    along: np.ndarray  # position along the axis, -1..1, of the box's voxels


@dataclasses.dataclass(frozen=True)
class Organs:
    """The solid organs as shapes; None where the patient has none."""

    liver: Shape
    gallbladder: Shape | None
    kidneys: dict[int, Kidney]
    spleen: Shape | None
    pancreas: Shape
    adrenals: list[Shape]

    def solid(self) -> list[Shape]:
        """What stomach and bowel give way to."""
        shapes = [
            self.liver,
            self.pancreas,
            *(k.tissue for k in self.kidneys.values()),
            *(k.sinus for k in self.kidneys.values()),
        ]
        return shapes + [shape for shape in (self.spleen, self.gallbladder) if shape is not None]


def build_organs(scene: Scene, person: Person, trunk: Trunk, texture: Texture) -> Organs:
    """All organs; where two press on each other the softer one gives way."""
    kidneys = {
        side: _kidney(scene, person, side, texture)
        for side, word in SIDES.items()
        if person.removed != f"kidney_{word}"
    }
    outer = scene.spread(*(shape for kidney in kidneys.values() for shape in (kidney.tissue, kidney.sinus)))
    gallbladder = None
    if person.gallbladder:
        points, radii = GALLBLADDER
        gallbladder = scene.tube(points, np.array(radii) * person.gallbladder, blend_mm=3)
    spleen = None
    if person.removed != "spleen":
        spleen = (
            _spleen(scene, person, texture)
            .cut(outer, 0.6 + person.gap_mm)
            .cut(-trunk.dome, 1.6)
            .cut(-trunk.cavity, 0.4 + person.gap_mm)
        )
    liver = (
        _liver(scene, person, texture)
        .cut(outer, 0.4 + 0.8 * person.gap_mm)
        .cut(-trunk.dome, 1.6)
        .cut(-trunk.cavity, 0.3 + 0.7 * person.gap_mm)
    )
    if gallbladder is not None:
        liver = liver.cut(scene.spread(gallbladder), 0.4)
    if spleen is not None:
        liver = liver.cut(scene.spread(spleen), 0.6)  # a long left lobe may touch the spleen
    pancreas = scene.tube(*PANCREAS, blend_mm=4)
    pancreas.f += 2.0 * texture.blotch[pancreas.box] + 0.8 * texture.grain[pancreas.box]
    pancreas = pancreas.cut(scene.spread(*(s for s in (liver, spleen) if s is not None)), 2.0).cut(outer, 2.0)
    adrenals = [
        scene.join(
            [
                scene.tube(line, 2.6, side=side)
                for line in (
                    [(36, 0, z), (40, 8, z - 12), (46, 16, z - 22)],
                    [(40, 2, z - 4), (37, 16, z - 20)],
                )
            ],
            1.0,
        )
        for side, z in ((1, 54.0), (-1, 52.0))
    ]
    return Organs(liver, gallbladder, kidneys, spleen, pancreas, adrenals)


def _liver(scene: Scene, person: Person, texture: Texture) -> Shape:
    """Both lobes and the caudate one, with the cleft of the round ligament and the porta left out."""
    levels: list[Level] = []
    for z, points in LIVER:
        height = z if z > 0 else z * (1 - person.liver_tip_mm / 78)
        bent = [
            (
                x if x < -35 else -35 + (x + 35) * person.liver_left,
                y,
                r if x < 0 else r * min(1.1, person.liver_left**0.5),
            )
            for x, y, r in points
        ]
        levels.append((height, bent))
    caudate = scene.ellipsoid((-14, -34, 56), (15, 14, 26))
    liver = scene.join([scene.loft(levels, margin_mm=4), caudate], 5.0)
    liver.f += 1.8 * texture.lumps[liver.box] + 0.4 * texture.blotch[liver.box]
    scene.carve(liver, scene.ellipsoid((-24, -32, 22), (30, 9, 8), pitch=0.3))
    scene.carve(
        liver,
        scene.loft(
            [
                (-40, [(4, -100, 2.6), (-4, -42, 2.2)]),
                (20, [(6, -100, 2.4), (-2, -48, 2.0)]),
                (58, [(8, -104, 0.6), (4, -70, 0.6)]),
            ]
        ),
    )
    return liver


def _spleen(scene: Scene, person: Person, texture: Texture) -> Shape:
    """A crescent under the left ribs, larger or smaller about its middle."""
    cx, cy, cz = SPLEEN_CENTER
    k = person.spleen
    levels: list[Level] = [
        (cz + k * (z - cz), [(cx + k * (x - cx), cy + k * (y - cy), k * r) for x, y, r in points])
        for z, points in SPLEEN
    ]
    spleen = scene.loft(levels, margin_mm=4)
    spleen.f += 1.2 * texture.lumps[spleen.box]
    return spleen


def _kidney(scene: Scene, person: Person, side: int, texture: Texture) -> Kidney:
    """A bean whose poles lean inwards and back, hollow on the side towards the spine."""
    scale = person.kidneys[1 if side == 1 else 0]
    a, b, c = (r * scale for r in KIDNEY_RADII)
    center = np.array(KIDNEY_CENTER[side]) + (0, 0, person.kidney_shift_mm[1 if side == 1 else 0])
    box = scene.box(center - 1.25 * c, center + 1.25 * c)
    lateral, behind, up = _kidney_axes(scene, box, center, side)
    t = up / np.float32(c)
    bent = lateral + np.float32(8) * t * t - np.float32(2)
    f = ellipsoid_distance(bent, behind, up, (a, b, c)) + 0.9 * texture.lumps[box] + 0.3 * texture.blotch[box]
    hollow = ellipsoid_distance(
        bent + np.float32(0.66 * a), behind + np.float32(0.12 * b), up, (0.66 * a, 0.40 * b, 0.48 * c)
    )
    hollow = hollow + 2.2 * texture.blotch[box]
    basin = ellipsoid_distance(
        bent + np.float32(0.85 * a),
        behind + np.float32(0.12 * b),
        up + np.float32(3),
        (0.5 * a, 0.24 * b, 0.24 * c),
    )
    tissue = np.maximum(f, -hollow).astype(np.float32)
    return Kidney(
        Shape(box, tissue),
        Shape(box, np.maximum(hollow, f - 4).astype(np.float32)),
        Shape(box, basin.astype(np.float32)),
        t,
    )


def _kidney_axes(
    scene: Scene, box: tuple[slice, slice, slice], center: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates in the kidney's own frame: outwards, backwards and along its axis (mm)."""
    x, y, z = scene.at(box)
    dx, dy, dz = (x - np.float32(center[0])) * side, y - np.float32(center[1]), z - np.float32(center[2])
    lean, tip, turn = (
        0.22,
        0.18,
        0.5,
    )  # upper pole inwards, upper pole back, hollow towards the front (radians)
    dx, dz = (
        dx * np.float32(np.cos(lean)) + dz * np.float32(np.sin(lean)),
        dz * np.float32(np.cos(lean)) - dx * np.float32(np.sin(lean)),
    )
    dy, dz = (
        dy * np.float32(np.cos(tip)) - dz * np.float32(np.sin(tip)),
        dz * np.float32(np.cos(tip)) + dy * np.float32(np.sin(tip)),
    )
    lateral = dx * np.float32(np.cos(turn)) + dy * np.float32(np.sin(turn))
    return lateral, dy * np.float32(np.cos(turn)) - dx * np.float32(np.sin(turn)), dz


def paint_organs(
    scene: Scene,
    organs: Organs,
    person: Person,
    ids: dict[str, int],
    texture: Texture,
    rng: np.random.Generator,
) -> None:
    """Draw the organs, those that yield first; vessels inside the liver are drawn by the caller."""
    hu = person.hu
    for adrenal in organs.adrenals:
        scene.paint(adrenal, hu["adrenal"])
    scene.paint(
        organs.pancreas,
        hu["pancreas"]
        + 7 * texture.grain[organs.pancreas.box]
        - 10 * np.clip(texture.blotch[organs.pancreas.box], 0, 2),
        ids["pancreas"],
    )
    for side, kidney in organs.kidneys.items():
        _paint_kidney(scene, kidney, side, person, ids[f"kidney_{SIDES[side]}"], texture)
        _paint_blobs(
            scene,
            kidney.tissue,
            rng,
            person.cysts[1 if side == -1 else 2],
            (5, 16),
            8.0,
            -2.0,
            ids[f"kidney_{SIDES[side]}"],
        )
    if organs.spleen is not None:
        mottled = 26.0 if person.phase == "arterial" else 2.0
        scene.paint(organs.spleen, hu["spleen"] + mottled * texture.blotch[organs.spleen.box], ids["spleen"])
    if organs.gallbladder is not None:
        scene.paint(organs.gallbladder, hu["bowel_wall"], ids["gall_bladder"])
        scene.paint(organs.gallbladder, hu["bile"], inset_mm=1.8)
    scene.paint(
        organs.liver,
        hu["liver"] + 2.5 * texture.blotch[organs.liver.box] + 1.5 * texture.lumps[organs.liver.box],
        ids["liver"],
    )
    _paint_blobs(scene, organs.liver, rng, person.cysts[0], (4, 18), 9.0, 4.0, None)
    _paint_blobs(scene, organs.liver, rng, person.metastases, (5, 17), hu["liver"] - 32.0, 4.0, None)


def _paint_kidney(
    scene: Scene, kidney: Kidney, side: int, person: Person, label: int, texture: Texture
) -> None:
    """Cortex, pyramids of medulla, fat in the hollow, and the basin with urine."""
    if not kidney.tissue.f.size:
        return
    hu, box = person.hu, kidney.tissue.box
    scene.paint(kidney.tissue, hu["cortex_kidney"] + 3 * texture.blotch[box], label)
    between = (
        np.cos(kidney.along * np.float32(11.0)) + 0.5 * texture.blotch[box]
    )  # columns of cortex between the pyramids
    outer = Shape(box, np.maximum(kidney.tissue.f + 7.0, 4 * (-0.55 - between)).astype(np.float32))
    scene.paint(outer, hu["medulla"] + 3 * texture.blotch[box])
    scene.paint(kidney.sinus, hu["fat"] + 12 + 6 * texture.grain[box])
    scene.paint(kidney.basin, hu["pelvis_kidney"])
    center = np.array(KIDNEY_CENTER[side]) + (0, 0, person.kidney_shift_mm[1 if side == 1 else 0])
    hilum = center * (side, 1, 1) + (-20, -8, -4)
    line = [tuple(hilum), (37, -2, center[2] - 34), (38, -6, -90), (36, -12, -160)]
    scene.paint(scene.tube(line, [3.4, 2.2, 2.0, 2.0], side=side, blend_mm=1), 0.5 * hu["pelvis_kidney"] + 10)


def _paint_blobs(
    scene: Scene,
    organ: Shape,
    rng: np.random.Generator,
    count: int,
    radii: tuple[float, float],
    hu: float,
    depth_mm: float,
    label: int | None,
) -> None:
    """Cysts or metastases at random places at least `depth_mm` inside an organ (negative: they may bulge out)."""
    for _ in range(count):
        radius, pick = float(rng.uniform(*radii)), float(rng.random())
        inside = np.argwhere(organ.f < -depth_mm if depth_mm > 0 else np.abs(organ.f) < 2)
        if not len(inside):
            continue
        place = tuple(inside[int(pick * len(inside))] + [part.start for part in organ.box])
        blob = scene.ellipsoid(
            [float(axis[place]) for axis in (scene.x, scene.y, scene.z)], (radius, 0.9 * radius, radius)
        )
        if label is None:
            blob = blob.cut(-scene.spread(organ), 0.0)
        scene.paint(blob, hu, label)
