"""Liver with gallbladder, kidneys, spleen, pancreas and adrenals of the upper abdomen.

The standard ones stand in `organs.csv`; its coordinates are those of `people.py`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.abdomen.people import IDS, Person
from ctseg.anatomy.abdomen.trunk import Trunk
from ctseg.anatomy.implicit import NOTHING, Scene, Shape, ellipsoid_distance
from ctseg.anatomy.labels import SIDES
from ctseg.anatomy.shape_tables import read_table
from ctseg.anatomy.texture import Texture

SHAPES = read_table(__file__)
SPLEEN_CENTER = (88.0, 24.0, 66.0)
KIDNEY_CENTER = {1: (62.0, 9.0, -4.0), -1: (-62.0, 9.0, -20.0)}  # the right one lies lower
KIDNEY_RADII = (29.5, 25.5, 57.0)


@dataclasses.dataclass(frozen=True)
class Kidney:
    """One kidney: the tissue around its hollow, the hollow with fat, and the basin that drains it."""

    center: np.ndarray
    tissue: Shape
    sinus: Shape
    basin: Shape
    along: np.ndarray  # position along the axis, -1..1, of the box's voxels


@dataclasses.dataclass(frozen=True)
class Organs:
    """The solid organs as shapes. kidneys: by side, those the patient has; other removed organs are
    NOTHING.
    """

    liver: Shape
    gallbladder: Shape
    kidneys: dict[int, Kidney]
    spleen: Shape
    pancreas: Shape
    adrenals: list[Shape]

    def solid(self) -> list[Shape]:
        """What stomach and bowel give way to."""
        kidneys = [shape for kidney in self.kidneys.values() for shape in (kidney.tissue, kidney.sinus)]
        return [self.liver, self.gallbladder, self.spleen, self.pancreas, *kidneys]


def build_organs(scene: Scene, person: Person, trunk: Trunk, texture: Texture) -> Organs:
    """All organs; where two press on each other the softer one gives way."""
    kidneys = {
        side: build_kidney(scene, person, side, texture)
        for side, word in SIDES.items()
        if person.removed != f"kidney_{word}"
    }
    outer = scene.spread(*(shape for kidney in kidneys.values() for shape in (kidney.tissue, kidney.sinus)))

    def under_ribs(organ: Shape, kidney_mm: float, wall_mm: float) -> Shape:
        return organ.cut(outer, kidney_mm).cut(-trunk.dome, 1.6).cut(-trunk.cavity, wall_mm)

    gap = person.gap_mm
    gallbladder = spleen = NOTHING
    if person.gallbladder:
        nodes = SHAPES["gallbladder"] * (1, 1, 1, person.gallbladder)
        gallbladder = scene.tube(nodes, blend_mm=3)
    if person.removed != "spleen":  # a crescent, larger or smaller about its middle
        middle = np.array((*SPLEEN_CENTER, 0.0))
        spleen = scene.loft(middle + person.spleen * (SHAPES["spleen"] - middle), margin_mm=4)
        spleen.f += 1.2 * texture.lumps[spleen.box]
        spleen = under_ribs(spleen, 0.6 + gap, 0.4 + gap)
    liver = under_ribs(build_liver(scene, person, texture), 0.4 + 0.8 * gap, 0.3 + 0.7 * gap)
    liver = liver.cut(scene.spread(gallbladder), 0.4)
    liver = liver.cut(scene.spread(spleen), 0.6)  # a long left lobe may touch the spleen
    pancreas = scene.tube(SHAPES["pancreas"], blend_mm=4)
    pancreas.f += 2.0 * texture.blotch[pancreas.box] + 0.8 * texture.grain[pancreas.box]
    pancreas = pancreas.cut(scene.spread(liver, spleen), 2.0).cut(outer, 2.0)
    adrenals = []
    for side, z in ((1, 54.0), (-1, 52.0)):
        limbs = (SHAPES[name] + (0, 0, z, 0) for name in ("adrenal front", "adrenal back"))
        adrenals.append(scene.join([scene.tube(line, side=side) for line in limbs], 1.0))
    return Organs(liver, gallbladder, kidneys, spleen, pancreas, adrenals)


def build_liver(scene: Scene, person: Person, texture: Texture) -> Shape:
    """Both lobes and the caudate one, with the cleft of the round ligament and the porta left out."""
    left = person.liver_left
    x, y, z, radius = SHAPES["liver"].T
    bent = np.where(x < -35, x, -35 + (x + 35) * left)
    height = np.where(z > 0, z, z * (1 - person.liver_tip_mm / 78))
    radius = np.where(x < 0, radius, radius * min(1.1, left**0.5))
    lobes = scene.loft(np.column_stack([bent, y, height, radius]), margin_mm=4)
    liver = scene.join([lobes, scene.ellipsoid((-14, -34, 56), (15, 14, 26))], 5.0)
    liver.f += 1.8 * texture.lumps[liver.box] + 0.4 * texture.blotch[liver.box]
    porta, cleft = (
        scene.ellipsoid((-24, -32, 22), (30, 9, 8), pitch=0.3),
        scene.loft(SHAPES["ligament cleft"]),
    )
    return liver.cut(scene.spread(porta, cleft), 0.0)


def build_kidney(scene: Scene, person: Person, side: int, texture: Texture) -> Kidney:
    """A bean whose poles lean inwards and back, hollow on the side towards the spine."""
    a, b, c = (radius * person.kidneys[side] for radius in KIDNEY_RADII)
    center = np.array(KIDNEY_CENTER[side]) + (0, 0, person.kidney_shift_mm[side])
    box = scene.box(center - 1.25 * c, center + 1.25 * c)
    lumps, blotch = texture.lumps[box], texture.blotch[box]
    outwards, back, up = (at - place for at, place in zip(scene.at(box), center.tolist()))
    outwards, up = rotated(outwards * side, up, 0.22)  # the upper pole leans inwards
    up, back = rotated(up, back, 0.18)  # and back
    outwards, back = rotated(outwards, back, 0.5)  # the hollow looks a little to the front
    along = up / c
    bent = outwards + 8 * along * along - 2
    f = ellipsoid_distance(bent, back, up, (a, b, c)) + 0.9 * lumps + 0.3 * blotch
    hollow = ellipsoid_distance(bent + 0.66 * a, back + 0.12 * b, up, (0.66 * a, 0.40 * b, 0.48 * c))
    hollow = hollow + 2.2 * blotch
    basin = ellipsoid_distance(bent + 0.85 * a, back + 0.12 * b, up + 3, (0.5 * a, 0.24 * b, 0.24 * c))
    tissue, sinus = np.maximum(f, -hollow), np.maximum(hollow, f - 4)
    return Kidney(center, Shape(box, tissue), Shape(box, sinus), Shape(box, basin), along)


def rotated(p: np.ndarray, q: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates p and q in axes turned by `angle` (radians) from p towards q."""
    c, s = float(np.cos(angle)), float(np.sin(angle))
    return p * c + q * s, q * c - p * s


def paint_organs(
    scene: Scene, organs: Organs, person: Person, texture: Texture, rng: np.random.Generator
) -> None:
    """Draw the organs, those that yield first; vessels inside the liver are drawn by the caller."""
    hu, liver, spleen, pancreas = person.hu, organs.liver, organs.spleen, organs.pancreas
    grain, blotch, lumps = texture.grain, texture.blotch, texture.lumps
    for adrenal in organs.adrenals:
        scene.paint(adrenal, hu["adrenal"])
    fat = 10 * np.clip(blotch[pancreas.box], 0, 2)
    scene.paint(pancreas, hu["pancreas"] + 7 * grain[pancreas.box] - fat, IDS["pancreas"])
    for side, kidney in organs.kidneys.items():
        label = IDS[f"kidney_{SIDES[side]}"]
        paint_kidney(scene, kidney, side, person, label, texture)
        paint_blobs(scene, kidney.tissue, rng, person.kidney_cysts[side], (5, 16), 8.0, label)
    mottled = 26.0 if person.phase == "arterial" else 2.0
    scene.paint(spleen, hu["spleen"] + mottled * blotch[spleen.box], IDS["spleen"])
    scene.paint(organs.gallbladder, hu["bowel_wall"], IDS["gall_bladder"])
    scene.paint(organs.gallbladder.inset(1.8), hu["bile"])
    scene.paint(liver, hu["liver"] + 2.5 * blotch[liver.box] + 1.5 * lumps[liver.box], IDS["liver"])
    paint_blobs(scene, liver, rng, person.liver_cysts, (4, 18), 9.0)
    paint_blobs(scene, liver, rng, person.metastases, (5, 17), hu["liver"] - 32.0)


def paint_kidney(
    scene: Scene, kidney: Kidney, side: int, person: Person, label: int, texture: Texture
) -> None:
    """Cortex, pyramids of medulla, fat in the hollow, the basin with urine, and the ureter."""
    hu, box = person.hu, kidney.tissue.box
    grain, blotch = texture.grain[box], texture.blotch[box]
    scene.paint(kidney.tissue, hu["cortex_kidney"] + 3 * blotch, label)
    between = np.cos(kidney.along * 11.0) + 0.5 * blotch  # columns of cortex between the pyramids
    pyramids = Shape(box, np.maximum(kidney.tissue.f + 7.0, 4 * (-0.55 - between)))
    scene.paint(pyramids, hu["medulla"] + 3 * blotch)
    scene.paint(kidney.sinus, hu["fat"] + 12 + 6 * grain)
    scene.paint(kidney.basin, hu["pelvis_kidney"])
    x, y, z = kidney.center.tolist()
    ureter = [(side * x - 20, y - 8, z - 4), (37, -2, z - 34), (38, -6, -90), (36, -12, -160)]
    ureter_hu = 0.5 * hu["pelvis_kidney"] + 10
    scene.paint(scene.tube(ureter, [3.4, 2.2, 2.0, 2.0], side=side, blend_mm=1), ureter_hu)


def paint_blobs(
    scene: Scene,
    organ: Shape,
    rng: np.random.Generator,
    count: int,
    radii: tuple[float, float],
    hu: float,
    label: int | None = None,
) -> None:
    """Cysts or metastases at random places deep in an organ; with its label they bulge out and belong to
    it.
    """
    places = np.argwhere(organ.f < -4 if label is None else np.abs(organ.f) < 2)
    for _ in range(count):
        radius, pick = rng.uniform(*radii), rng.random()
        if not len(places):
            continue
        place = tuple(places[int(pick * len(places))] + [part.start for part in organ.box])
        center = [axis[place] for axis in (scene.x, scene.y, scene.z)]
        blob = scene.ellipsoid(center, (radius, 0.9 * radius, radius))
        if label is None:
            blob = blob.cut(-scene.spread(organ), 0.0)
        scene.paint(blob, hu, label)
