"""Pelvis, hips and lumbar spine: cortex, spongy bone, joints, what wears them, and a metal hip in some.

The bones of a standard adult pelvis stand in `skeleton.csv`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.body import paint_bone, vertebra
from ctseg.anatomy.implicit import SIDES, Scene, Shape
from ctseg.anatomy.pelvis.people import HEAD, Patient, Wear
from ctseg.anatomy.shape_tables import read_table

SHAPES = read_table(__file__)
HEAD_RADIUS_MM = 23.5


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """Bones as shapes, for drawing and for keeping other organs away. Keys of pairs: 1 left, -1 right."""

    hips: dict[int, Shape]
    femora: dict[int, Shape]
    sacrum: Shape
    spine: list[tuple[Shape, Shape]]  # vertebra, spinal canal
    metal: Shape  # empty in most


def build_skeleton(scene: Scene, patient: Patient) -> Skeleton:
    """All bones of the patient."""
    wear, hips, femora, metal = patient.wear, {}, {}, scene.nothing
    for side, word in SIDES.items():
        spurs: dict[str, list[Shape]] = {"hip": [], "femur": []}
        for spur in wear.spurs:
            bone, grown_on = spur.bone.split("_")
            if grown_on == word:
                spurs[bone].append(scene.ellipsoid(spur.center, (spur.radius,) * 3))
        hips[side] = hip(scene, side, patient.sex, spurs["hip"], wear.hip_gap_mm[side])
        names = ("femoral_neck", "greater_trochanter", "femoral_shaft", "lesser_trochanter")
        parts = [scene.tube(SHAPES[name], side=side, blend_mm=4) for name in names]
        femora[side] = scene.join([ball(scene, side, 0), *parts, *spurs["femur"]], 6.0)
        if side == patient.metal_side:  # a total hip: cup with ball, neck with stem
            metal = scene.join([ball(scene, side, 1.0), scene.tube(SHAPES["hip_stem"], side=side)], 2.0)
    # The sacrum with the upper tail bone, and its nerve holes left out.
    halves = [scene.loft(SHAPES[name], side=side) for name in ("sacrum", "sacrum_back") for side in SIDES]
    holes = [scene.tube(SHAPES[f"sacral_foramen_{n}"], side=side) for side in SIDES for n in (1, 2, 3)]
    sacrum = scene.join(halves, 3.0).cut(scene.spread(*holes), 0.0)
    spine = [vertebra(scene, *place) for place in SHAPES["vertebra"].tolist()]
    return Skeleton(hips, femora, sacrum, spine, metal)


def ball(scene: Scene, side: int, gap_mm: float) -> Shape:
    """The head of a thigh bone with a gap around it."""
    return scene.ellipsoid(HEAD, (HEAD_RADIUS_MM + gap_mm,) * 3, side=side)


def hip(scene: Scene, side: int, sex: str, spurs: list[Shape], gap_mm: float) -> Shape:
    """Ilium, ischium, pubis and the socket of one side."""
    inferior = SHAPES["inferior_ramus"].copy()
    if sex == "female":
        inferior[:-1, 0] *= 1.22  # the arch below the symphysis is wider
    parts = [scene.loft(SHAPES[name], side=side) for name in ("ilium", "ischium", "pubis")]
    parts += [scene.tube(ramus, side=side, blend_mm=3) for ramus in (SHAPES["superior_ramus"], inferior)]
    # The acetabulum: a thick half shell around the femoral head, open to the side, below and in front.
    box, (x, y, z) = scene.around(HEAD, 34, side=side)
    radius = np.sqrt(x * x + y * y + z * z)
    opening = 0.80 * x - 0.28 * y - 0.53 * z - 9.0
    inner = HEAD_RADIUS_MM + min(1.0, gap_mm)
    socket = Shape(scene, box, np.maximum.reduce([radius - 31.5, inner - radius, opening]))
    return scene.join([*parts, socket, *spurs], 4.0)


def paint_skeleton(scene: Scene, bones: Skeleton, wear: Wear) -> None:
    """Draw the bones. The cartilage of worn sacroiliac joints is drawn before the sacrum, spongy bone across
    fused ones after it, in patches; the labels stay."""
    sacrum = bones.sacrum
    scene.tube(SHAPES["symphysis"]).paint("cartilage")
    for side, word in SIDES.items():
        paint_bone(bones.hips[side], 1.6 * wear.cortex, f"hip_{word}")
    for side in SIDES:
        ball(scene, side, wear.hip_gap_mm[side]).paint("cartilage", "background")
    for side in SIDES:
        paint_femur(bones.femora[side], side, wear.cortex)
    harden_hips(scene, wear)
    scene.loft(SHAPES["discs"]).paint("cartilage", plus=8)
    for side, gap in wear.sacroiliac_gap_mm.items():
        if gap:
            overlap(sacrum, bones.hips[side], gap, 0.5).paint("cartilage", "background")
    paint_bone(sacrum, 1.4 * wear.cortex, "sacrum")
    for side in wear.fused:
        patches = 2.5 * sacrum.uneven(-0.9, blotch=-1)
        joint = overlap(sacrum, bones.hips[side], 3.2, 3.2).within(-2.6 - sacrum.f).within(patches)
        joint.paint("marrow", strength=0.92, grain=45, blotch=55)
    scene.tube(SHAPES["sacral_canal"]).paint(0.5 * scene.tissue["fat"] + 25, "background")
    for bone, canal in bones.spine:
        paint_bone(bone, 1.2 * wear.cortex, "lumbar_vertebrae")
        canal.paint(25.0, "background")
    bones.metal.paint(6500.0)


def paint_femur(bone: Shape, side: int, cortex: float) -> None:
    """A thigh bone: thin shell, dense spongy bone in the head; thick shell, fatty marrow in the shaft."""
    x, y, z = bone.at()
    depth = np.clip((-15.0 - z) / 55, 0, 1)  # 0 at the neck, 1 in the shaft
    from_head = np.sqrt((x * side - HEAD[0]) ** 2 + y**2 + z**2)
    density = bone.scene.tissue["marrow"] * (0.55 + 0.9 * np.exp(-((from_head / 20) ** 2))) - 20
    density = density * (1 - depth) + depth * -30
    bone.paint("cortex", f"femur_{SIDES[side]}")
    shell = (1.3 + 5.0 * depth * depth) * cortex
    uneven = bone.uneven(0, grain=40, blotch=50)
    bone.inset(shell).paint(density + (1 - 0.7 * depth) * uneven)


def harden_hips(scene: Scene, wear: Wear) -> None:
    """Make the bone on both sides of a worn hip joint denser, most where it carries the weight."""
    for side, gain in wear.sclerosis_hu.items():
        box, (x, y, z) = scene.around(HEAD, 36, side=side)
        radius = np.sqrt(x * x + y * y + z * z)
        loaded = np.clip(0.45 + 0.75 * z / np.maximum(radius, 1), 0, 1)
        rim = np.exp(-(((radius - HEAD_RADIUS_MM) / 5.5) ** 2)) * loaded
        bones = [scene.ids[f"{bone}_{SIDES[side]}"] for bone in ("hip", "femur")]
        scene.hu[box] += gain * (rim * np.isin(scene.label[box], bones))


def overlap(sacrum: Shape, hip: Shape, gap_mm: float, reach_mm: float) -> Shape:
    """Where the surroundings of both bones overlap, over the sacrum's box."""
    return sacrum.inset(-gap_mm).within(sacrum.scene.spread(hip)[sacrum.box] - reach_mm)
