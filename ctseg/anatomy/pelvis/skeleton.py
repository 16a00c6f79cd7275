"""Pelvis, hips and lumbar spine: cortex, spongy bone, joints, and a metal hip in some.

The bones of a standard adult pelvis stand in `skeleton.csv`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.bones import paint_bone, vertebra
from ctseg.anatomy.implicit import Scene, Shape
from ctseg.anatomy.labels import IDS, SIDES
from ctseg.anatomy.pelvis.people import Patient
from ctseg.anatomy.pelvis.wear import (
    HEAD,
    HEAD_RADIUS_MM,
    Wear,
    bridge_sacroiliac,
    harden_hips,
    part_sacroiliac,
)
from ctseg.anatomy.shape_tables import read_table
from ctseg.anatomy.texture import Texture

SHAPES = read_table(__file__)


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """Bones as shapes, for drawing and for keeping other organs away. Keys of pairs: 1 left, -1 right."""

    hips: dict[int, Shape]
    femora: dict[int, Shape]
    sacrum: Shape
    spine: list[tuple[Shape, Shape]]  # vertebra, spinal canal
    metal: Shape | None


def build_skeleton(scene: Scene, patient: Patient, wear: Wear) -> Skeleton:
    """All bones of the patient."""
    metal = None
    if side := patient.metal_side:  # a total hip: cup with ball, neck with stem
        ball = scene.ellipsoid(HEAD, (HEAD_RADIUS_MM + 1.0,) * 3, side=side)
        metal = scene.join([ball, scene.tube(SHAPES["hip_stem"], side=side)], 2.0)
    return Skeleton(
        hips={side: hip(scene, side, patient.sex, wear) for side in SIDES},
        femora={side: femur(scene, side, wear) for side in SIDES},
        sacrum=sacrum(scene),
        spine=[vertebra(scene, *place) for place in SHAPES["vertebra"].tolist()],
        metal=metal,
    )


def paint_skeleton(scene: Scene, bones: Skeleton, patient: Patient, texture: Texture, wear: Wear) -> None:
    """Draw the bones."""
    hu = patient.hu
    scene.paint(scene.tube(SHAPES["symphysis"]), hu["cartilage"])
    for side, word in SIDES.items():
        label = IDS[f"hip_{word}"]
        paint_bone(scene, bones.hips[side], hu, texture, label=label, cortex_mm=1.6 * wear.cortex)
    for side in SIDES:
        gap = scene.ellipsoid(HEAD, (HEAD_RADIUS_MM + wear.hip_gap_mm[side],) * 3, side=side)
        scene.paint(gap, hu["cartilage"], 0)
    for side in SIDES:
        paint_femur(scene, bones.femora[side], side, hu, texture, wear.cortex)
    harden_hips(scene, wear)
    scene.paint(scene.loft(SHAPES["discs"]), hu["cartilage"] + 8)
    part_sacroiliac(scene, bones.sacrum, bones.hips, wear, hu["cartilage"])
    paint_bone(scene, bones.sacrum, hu, texture, label=IDS["sacrum"], cortex_mm=1.4 * wear.cortex)
    bridge_sacroiliac(scene, bones.sacrum, bones.hips, wear, hu["marrow"], texture)
    scene.paint(scene.tube(SHAPES["sacral_canal"]), 0.5 * hu["fat"] + 25, 0)
    for bone, canal in bones.spine:
        label = IDS["lumbar_vertebrae"]
        paint_bone(scene, bone, hu, texture, label=label, cortex_mm=1.2 * wear.cortex)
        scene.paint(canal, 25.0, 0)
    if bones.metal is not None:
        scene.paint(bones.metal, 6500.0)


def hip(scene: Scene, side: int, sex: str, wear: Wear) -> Shape:
    """Ilium, ischium, pubis and the socket of one side."""
    inferior = SHAPES["inferior_ramus"].copy()
    if sex == "female":
        inferior[:-1, 0] *= 1.22  # the arch below the symphysis is wider
    parts = [scene.loft(SHAPES[name], side=side) for name in ("ilium", "ischium", "pubis")]
    parts += [scene.tube(ramus, side=side, blend_mm=3) for ramus in (SHAPES["superior_ramus"], inferior)]
    parts += [
        socket(scene, side, min(1.0, wear.hip_gap_mm[side])),
        *wear.spurs_of(scene, f"hip_{SIDES[side]}"),
    ]
    return scene.join(parts, 4.0)


def socket(scene: Scene, side: int, gap_mm: float) -> Shape:
    """The acetabulum: a thick half shell around the femoral head, open to the side, below and in front."""
    box, (x, y, z) = scene.around(HEAD, 34, side=side)
    radius = np.sqrt(x * x + y * y + z * z)
    opening = 0.80 * x - 0.28 * y - 0.53 * z - 9.0
    return Shape(box, np.maximum.reduce([radius - 31.5, HEAD_RADIUS_MM + gap_mm - radius, opening]))


def femur(scene: Scene, side: int, wear: Wear) -> Shape:
    """Head, neck, trochanters and shaft of one thigh bone."""
    names = ("femoral_neck", "greater_trochanter", "femoral_shaft", "lesser_trochanter")
    parts = [scene.ellipsoid(HEAD, (HEAD_RADIUS_MM,) * 3, side=side)]
    parts += [scene.tube(SHAPES[name], side=side, blend_mm=4) for name in names]
    return scene.join([*parts, *wear.spurs_of(scene, f"femur_{SIDES[side]}")], 6.0)


def paint_femur(
    scene: Scene, bone: Shape, side: int, hu: dict[str, float], texture: Texture, cortex: float
) -> None:
    """A thigh bone: thin shell, dense spongy bone in the head; thick shell, fatty marrow in the shaft."""
    x, y, z = scene.at(bone.box)
    t = texture.on(bone)
    depth = np.clip((np.float32(-15.0) - z) / 55, 0, 1)  # 0 at the neck, 1 in the shaft
    from_head = np.sqrt((x * side - HEAD[0]) ** 2 + y**2 + z**2)
    density = hu["marrow"] * (0.55 + 0.9 * np.exp(-((from_head / 20) ** 2))) - 20
    density = density * (1 - depth) + depth * -30
    scene.paint(bone, hu["cortex"], IDS[f"femur_{SIDES[side]}"])
    shell = (1.3 + 5.0 * depth * depth) * np.float32(cortex)
    scene.paint(bone.inset(shell), density + (1 - 0.7 * depth) * (40 * t.grain + 50 * t.blotch))


def sacrum(scene: Scene) -> Shape:
    """The sacrum with the upper tail bone, and its nerve holes left out."""
    bone = scene.join(
        [scene.loft(SHAPES[name], side=side) for name in ("sacrum", "sacrum_back") for side in SIDES], 3.0
    )
    holes = [scene.tube(SHAPES[f"sacral_foramen_{n}"], side=side) for side in SIDES for n in (1, 2, 3)]
    return bone.cut(scene.spread(*holes), 0.0)
