"""Liver with gallbladder, kidneys, spleen, pancreas, adrenals and the vessels of the upper abdomen.

The standard ones stand in `organs.csv`, `vessels.csv` (outside the liver) and `liver_vessels.csv`, in the
coordinates of `people.py`. The first word of a vessel's name is the tissue.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.abdomen.people import Person
from ctseg.anatomy.abdomen.trunk import Trunk
from ctseg.anatomy.implicit import SIDES, Field, Points, Scene, Shape, ellipsoid_distance
from ctseg.anatomy.shape_tables import read_table

SHAPES, VESSELS, LIVER_VESSELS = (
    read_table(__file__, name) for name in ("organs", "vessels", "liver_vessels")
)
_LABELS = {"artery aorta": "aorta", "vein cava": "postcava"}


@dataclasses.dataclass(frozen=True)
class Kidney:
    """One kidney: the tissue around its hollow, the hollow with fat, and the basin that drains it."""

    center: Points
    tissue: Shape
    sinus: Shape
    basin: Shape
    along: Field  # position along the axis, -1..1, of the box's voxels


@dataclasses.dataclass(frozen=True)
class Organs:
    """The solid organs as shapes, empty where one was removed. kidneys: by side, those the patient has."""

    liver: Shape
    gallbladder: Shape
    kidneys: dict[int, Kidney]
    spleen: Shape
    pancreas: Shape
    adrenals: list[Shape]
    vessels: dict[str, Shape]  # outside the liver, in the order of drawing
    solid: list[Shape]  # what stomach and bowel give way to


def build_organs(scene: Scene, person: Person, trunk: Trunk) -> Organs:
    """All organs; where two press on each other the softer one gives way."""
    kidneys = {
        side: build_kidney(scene, person, side)
        for side, word in SIDES.items()
        if person.removed != f"kidney_{word}"
    }
    solid = [shape for kidney in kidneys.values() for shape in (kidney.tissue, kidney.sinus)]
    outer, gap = scene.spread(*solid), person.gap_mm

    def under_ribs(organ: Shape, kidney_mm: float, wall_mm: float) -> Shape:
        return organ.cut(outer, kidney_mm).cut(-trunk.dome, 1.6).cut(-trunk.cavity, wall_mm)

    gallbladder = spleen = scene.nothing
    if person.gallbladder:
        gallbladder = scene.tube(SHAPES["gallbladder"] * (1, 1, 1, person.gallbladder), blend_mm=3)
    if person.removed != "spleen":  # a crescent, larger or smaller about its middle
        middle = SHAPES["middle of the spleen"]
        spleen = scene.loft(middle + person.spleen * (SHAPES["spleen"] - middle), margin_mm=4)
        spleen = under_ribs(spleen.inset(0, lumps=1.2), 0.6 + gap, 0.4 + gap)
    liver = under_ribs(build_liver(scene, person), 0.4 + 0.8 * gap, 0.3 + 0.7 * gap)
    liver = liver.cut(gallbladder, 0.4).cut(spleen, 0.6)  # a long left lobe may touch the spleen
    pancreas = scene.tube(SHAPES["pancreas"], blend_mm=4).inset(0, blotch=2.0, grain=0.8)
    pancreas = pancreas.cut(scene.spread(liver, spleen), 2.0).cut(outer, 2.0)
    adrenals = []
    for side, z in ((1, 54.0), (-1, 52.0)):
        limbs = (SHAPES[name] + (0, 0, z, 0) for name in ("adrenal front", "adrenal back"))
        adrenals.append(scene.join([scene.tube(line, side=side) for line in limbs], 1.0))
    vessels = {name: scene.tube(nodes, blend_mm=1) for name, nodes in VESSELS.items()}
    solid += [liver, gallbladder, spleen, pancreas, *vessels.values()]
    return Organs(liver, gallbladder, kidneys, spleen, pancreas, adrenals, vessels, solid)


def build_liver(scene: Scene, person: Person) -> Shape:
    """Both lobes and the caudate one, with the cleft of the round ligament and the porta left out."""
    left = person.liver_left
    x, y, z, radius = SHAPES["liver"].T
    bent = np.where(x < -35, x, -35 + (x + 35) * left)
    height = np.where(z > 0, z, z * (1 - person.liver_tip_mm / 78))
    radius = np.where(x < 0, radius, radius * min(1.1, left**0.5))
    lobes = scene.loft(np.column_stack([bent, y, height, radius]), margin_mm=4)
    liver = scene.join([lobes, scene.ellipsoid((-14, -34, 56), (15, 14, 26))], 5.0)
    porta = scene.ellipsoid((-24, -32, 22), (30, 9, 8), pitch=0.3)
    cleft = scene.loft(SHAPES["ligament cleft"])
    return liver.inset(0, lumps=1.8, blotch=0.4).cut(scene.spread(porta, cleft), 0.0)


def build_kidney(scene: Scene, person: Person, side: int) -> Kidney:
    """A bean whose poles lean inwards and back, hollow on the side towards the spine."""
    x, y, z, *radii = SHAPES[f"kidney {SIDES[side]}"][0].tolist()
    a, b, c = (radius * person.kidneys[side] for radius in radii)
    center = np.array([x, y, z + person.kidney_shift_mm[side]])
    box = scene.box(center - 1.25 * c, center + 1.25 * c)
    lumps, blotch = scene.texture["lumps"][box], scene.texture["blotch"][box]
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
    parts = np.maximum(f, -hollow), np.maximum(hollow, f - 4), basin
    tissue, sinus, basin_shape = (Shape(scene, box, part) for part in parts)
    return Kidney(center, tissue, sinus, basin_shape, along)


def rotated(p: Field, q: Field, angle: float) -> tuple[Field, Field]:
    """Coordinates p and q in axes turned by `angle` (radians) from p towards q."""
    c, s = float(np.cos(angle)), float(np.sin(angle))
    return p * c + q * s, q * c - p * s


def paint_organs(organs: Organs, person: Person) -> None:
    """Draw the organs, those that yield first, then the vessels. Those in the liver keep its label, as
    annotators leave them in."""
    pancreas, liver = organs.pancreas, organs.liver
    for adrenal in organs.adrenals:
        adrenal.paint("adrenal")
    fat = 10 * np.clip(pancreas.uneven(0, blotch=1), 0, 2)
    pancreas.paint(pancreas.uneven(person.hu["pancreas"], grain=7) - fat, "pancreas")
    for side, kidney in organs.kidneys.items():
        label = f"kidney_{SIDES[side]}"
        paint_kidney(kidney, side, label)
        paint_blobs(kidney.tissue, person.kidney_cysts[side], (5, 16), 8.0, label)
    organs.spleen.paint("spleen", "spleen", blotch=26.0 if person.phase == "arterial" else 2.0)
    organs.gallbladder.paint("bowel_wall", "gall_bladder")
    organs.gallbladder.inset(1.8).paint("bile")
    liver.paint("liver", "liver", blotch=2.5, lumps=1.5)
    paint_blobs(liver, person.liver_cysts, (4, 18), 9.0)
    paint_blobs(liver, person.metastases, (5, 17), person.hu["liver"] - 32.0)
    for name, nodes in LIVER_VESSELS.items():
        liver.scene.tube(nodes, blend_mm=1).inside(liver, 1.0).paint(name.split()[0])
    for name, vessel in organs.vessels.items():
        vessel.paint(name.split()[0], _LABELS.get(name))
    aorta = organs.vessels["artery aorta"]
    chalk = Shape(aorta.scene, aorta.box, np.abs(aorta.f + 1.0) - 0.9)  # in its wall
    chalk.within(3 * aorta.uneven(1.3, blotch=-1.0)).paint(480.0)


def paint_kidney(kidney: Kidney, side: int, label: str) -> None:
    """Cortex, pyramids of medulla, fat in the hollow, the basin with urine, and the ureter."""
    tissue, scene = kidney.tissue, kidney.tissue.scene
    tissue.paint("cortex_kidney", label, blotch=3)
    # columns of cortex between the pyramids
    between = tissue.uneven(np.cos(kidney.along * 11.0), blotch=0.5)
    tissue.inset(7.0).within(4 * (-0.55 - between)).paint("medulla", blotch=3)
    kidney.sinus.paint("fat", plus=12, grain=6)
    kidney.basin.paint("pelvis_kidney")
    x, y, z = kidney.center.tolist()
    ureter = [(side * x - 20, y - 8, z - 4), (37, -2, z - 34), (38, -6, -90), (36, -12, -160)]
    urine_hu = 0.5 * scene.tissue["pelvis_kidney"] + 10
    scene.tube(ureter, [3.4, 2.2, 2.0, 2.0], side=side, blend_mm=1).paint(urine_hu)


def paint_blobs(
    organ: Shape, count: int, radii: tuple[float, float], hu: float, label: str | None = None
) -> None:
    """Cysts or metastases at random places deep in an organ; with its label they bulge out and belong to
    it.
    """
    scene = organ.scene
    places = np.argwhere(organ.f < -4 if label is None else np.abs(organ.f) < 2)
    for _ in range(count):
        radius, pick = scene.rng.uniform(*radii), scene.rng.random()
        if not len(places):
            continue
        place = tuple(places[int(pick * len(places))])
        blob = scene.ellipsoid([axis[place] for axis in organ.at()], (radius, 0.9 * radius, radius))
        if label is None:
            blob = blob.inside(organ, 0.0)
        blob.paint(hu, label)
