"""Pelvis, hips and lumbar spine: cortex, spongy bone, joints, and a metal hip in some.

The tables are axial sections of a standard adult pelvis in template mm, for the left side.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.implicit import Level, Scene, Shape
from ctseg.anatomy.labels import IDS, SIDES
from ctseg.anatomy.patients import Body, Patient
from ctseg.anatomy.wear import (
    HEAD,
    HEAD_RADIUS_MM,
    HEALTHY,
    Wear,
    at_side,
    bridge_sacroiliac,
    harden_hips,
    part_sacroiliac,
)

ILIUM: list[Level] = [
    (143, [(94, 31, 2), (97, 29, 2), (100, 27, 2), (103, 25, 2)]),
    (138, [(78, 42, 4), (92, 33, 4), (106, 23, 4), (122, 8, 4)]),
    (126, [(60, 55, 5), (82, 44, 4.2), (112, 24, 4), (136, -7, 5.5)]),
    (112, [(47, 69, 7), (66, 53, 5), (102, 28, 3.2), (141, -22, 6)]),
    (98, [(44, 80, 8), (58, 60, 7), (94, 25, 3.2), (137, -37, 6)]),
    (82, [(47, 79, 7), (60, 58, 8), (93, 17, 3.8), (131, -50, 6)]),
    (68, [(50, 73, 6), (63, 52, 8), (92, 7, 5.5), (123, -56, 6)]),
    (52, [(55, 63, 4), (67, 40, 7.5), (88, 4, 8), (111, -45, 6.5)]),
    (38, [(64, 38, 5), (75, 20, 9), (88, -5, 11), (104, -41, 7)]),
    (26, [(64, 40, 5), (72, 26, 9), (84, 2, 14), (93, -32, 7)]),
    (8, [(73, 46, 5.5), (66, 30, 8), (59, 2, 4.5), (60, -27, 6.5)]),
    (-8, [(72, 50, 7), (66, 30, 9), (58, 4, 4.5), (54, -28, 5.5)]),
    (-20, [(73, 51, 7), (70, 38, 9), (66, 22, 6), (62, 15, 4)]),
]
ISCHIUM: list[Level] = [
    (-12, [(70, 30, 7), (73, 50, 7)]),
    (-24, [(68, 24, 7), (73, 52, 8)]),
    (-38, [(67, 24, 7.5), (68, 53, 9)]),
    (-55, [(61, 32, 8), (65, 56, 10)]),
    (-68, [(54, 34, 7), (60, 53, 9)]),
    (-78, [(50, 38, 3), (55, 46, 3)]),
]
PUBIS: list[Level] = [
    (-4, [(14, -52, 3), (24, -48, 4)]),
    (-12, [(10, -55, 6), (24, -49, 7)]),
    (-24, [(9, -52, 6.5), (20, -44, 7)]),
    (-38, [(9, -43, 6.5), (15, -35, 6.5)]),
    (-50, [(11, -32, 5), (16, -25, 6)]),
]
SUPERIOR_RAMUS = [(60, -28, 10), (53, -33, 2), (40, -41, -7), (24, -48, -13), (14, -52, -16)]
SUPERIOR_RAMUS_RADII = [8, 8.5, 7, 7, 7]
INFERIOR_RAMUS = [(13, -29, -46), (24, -9, -58), (39, 18, -68), (53, 38, -70)]
INFERIOR_RAMUS_RADII = [6, 5, 5, 7]
SACRUM: list[Level] = [
    (106, [(0, 20, 6), (14, 20, 6), (24, 26, 5), (30, 32, 4)]),
    (99, [(0, 32, 15), (14, 34, 14), (34, 42, 11), (48, 46, 8)]),
    (84, [(0, 43, 15), (18, 46, 14), (38, 54, 13), (53, 60, 9)]),
    (68, [(0, 60, 13), (18, 61, 12), (36, 66, 12), (50, 71, 7)]),
    (52, [(0, 76, 10), (15, 77, 9.5), (30, 79, 9), (42, 81, 6)]),
    (38, [(0, 85, 7.5), (10, 85, 7.5), (20, 86, 7), (30, 87, 4)]),
    (24, [(0, 88, 5.5), (5, 88, 5), (9, 88, 5), (14, 88, 3)]),
    (10, [(0, 86, 4.5), (2, 86, 4), (4, 86, 4), (5, 86, 3)]),
    (-2, [(0, 82, 4), (1, 82, 3.5), (2, 82, 3), (3, 82, 3)]),
    (-12, [(0, 76, 2.5), (1, 76, 2), (1, 76, 2), (2, 76, 2)]),
]
SACRUM_BACK: list[Level] = [
    (104, [(0, 66, 3), (8, 63, 3), (22, 56, 4)]),
    (92, [(0, 81, 5), (12, 70, 5), (26, 62, 7)]),
    (76, [(0, 89, 5), (12, 79, 5), (28, 72, 7)]),
    (58, [(0, 94, 4.5), (10, 88, 5), (26, 84, 6)]),
    (44, [(0, 95, 3.5), (8, 92, 4), (16, 90, 5)]),
    (30, [(0, 95, 2), (6, 93, 2), (9, 92, 2)]),
]
DISCS: list[Level] = [
    (98, [(-10, 32, 13), (10, 32, 13)]),
    (108, [(-10, 20, 14), (10, 20, 14)]),
    (124, [(-9, 6, 14), (9, 6, 14)]),
    (158, [(-8, -2, 14), (8, -2, 14)]),
    (193, [(-8, -3, 14), (8, -3, 14)]),
    (240, [(-8, 2, 14), (8, 2, 14)]),
]
VERTEBRAE = (
    (124.0, 6.0, -0.42),
    (158.0, -2.0, -0.12),
    (193.0, -3.0, 0.0),
    (228.0, 1.0, 0.1),
)  # z, y, pitch: L5 to L2


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """Bones as shapes, for drawing and for keeping other organs away. Keys of `sides`: 1 left, -1 right."""

    hips: dict[int, Shape]
    femora: dict[int, Shape]
    sacrum: Shape
    spine: list[tuple[Shape, Shape]]  # vertebra, spinal canal
    discs: Shape
    metal: Shape | None


def build_skeleton(scene: Scene, patient: Patient, wear: Wear = HEALTHY) -> Skeleton:
    """All bones of the patient."""
    return Skeleton(
        hips={side: _hip(scene, side, patient.sex, wear) for side in SIDES},
        femora={side: _femur(scene, side, wear) for side in SIDES},
        sacrum=_sacrum(scene),
        spine=[vertebra(scene, *place) for place in VERTEBRAE],
        discs=scene.loft(DISCS),
        metal=_prosthesis(scene, patient.metal_side) if patient.metal_side else None,
    )


def paint_skeleton(
    scene: Scene,
    bones: Skeleton,
    patient: Patient,
    grain: np.ndarray,
    blotch: np.ndarray,
    wear: Wear = HEALTHY,
) -> None:
    """Draw the bones. grain, blotch: fine and coarse random fields of the whole grid, for the spongy bone."""
    symphysis = scene.tube([(0, -52, -10), (0, -50, -24), (0, -42, -42)], [6, 7, 5])
    scene.paint(symphysis, patient.hu["cartilage"])
    for side in SIDES:
        paint_bone(
            scene,
            bones.hips[side],
            patient,
            grain,
            blotch,
            IDS[f"hip_{SIDES[side]}"],
            cortex_mm=1.6 * wear.cortex,
        )
    for side in SIDES:
        joint = scene.ellipsoid(HEAD, (HEAD_RADIUS_MM + at_side(wear.hip_gap_mm, side),) * 3, side=side)
        scene.label[joint.box][joint.f <= 0] = 0
        scene.paint(joint, patient.hu["cartilage"])
    for side in SIDES:
        _paint_femur(scene, bones.femora[side], side, patient, grain, blotch, wear.cortex)
    harden_hips(scene, wear)
    scene.paint(bones.discs, patient.hu["cartilage"] + 8)
    part_sacroiliac(scene, bones.sacrum, bones.hips, wear, patient.hu["cartilage"])
    paint_bone(scene, bones.sacrum, patient, grain, blotch, IDS["sacrum"], cortex_mm=1.4 * wear.cortex)
    bridge_sacroiliac(
        scene, bones.sacrum, bones.hips, wear, patient.hu["marrow"] + 45 * grain + 55 * blotch, blotch
    )
    _paint_sacral_canal(scene, patient)
    for bone, canal in bones.spine:
        paint_bone(scene, bone, patient, grain, blotch, IDS["lumbar_vertebrae"], cortex_mm=1.2 * wear.cortex)
        scene.label[canal.box][canal.f <= 0] = 0
        scene.paint(canal, 25.0)
    if bones.metal is not None:
        scene.paint(bones.metal, 6500.0)


def paint_bone(
    scene: Scene,
    bone: Shape,
    patient: Body,
    grain: np.ndarray,
    blotch: np.ndarray,
    label: int | None,
    *,
    cortex_mm: float,
) -> None:
    """A bone: dense shell, spongy inside whose density varies."""
    if not bone.f.size:
        return
    spongy = patient.hu["marrow"] + 45 * grain[bone.box] + 55 * blotch[bone.box]
    shell = cortex_mm * (1 + 0.35 * blotch[bone.box])
    scene.paint(bone, patient.hu["cortex"], label)
    scene.paint(Shape(bone.box, bone.f + np.maximum(shell, 0.7).astype(np.float32)), spongy)


def _hip(scene: Scene, side: int, sex: str, wear: Wear) -> Shape:
    """Ilium, ischium, pubis and the socket of one side."""
    opening = 1.0 if sex == "male" else 1.22  # the arch below the symphysis is wider in women
    inferior = [(x * (opening if 10 < x < 50 else 1.0), y, z) for x, y, z in INFERIOR_RAMUS]
    parts = [
        scene.loft(ILIUM, side=side),
        scene.loft(ISCHIUM, side=side),
        scene.loft(PUBIS, side=side),
        scene.tube(SUPERIOR_RAMUS, SUPERIOR_RAMUS_RADII, side=side, blend_mm=3),
        scene.tube(inferior, INFERIOR_RAMUS_RADII, side=side, blend_mm=3),
        _socket(scene, side, min(1.0, at_side(wear.hip_gap_mm, side))),
        *wear.spurs_of(scene, f"hip_{SIDES[side]}"),
    ]
    return scene.join(parts, 4.0)


def _socket(scene: Scene, side: int, gap_mm: float) -> Shape:
    """The acetabulum: a thick half shell around the femoral head, open to the side, below and in front."""
    center = np.array(HEAD) * (side, 1, 1)
    box = scene.box(center - 34, center + 34)
    x, y, z = scene.at(box)
    dx, dy, dz = (x - np.float32(center[0])) * side, y - np.float32(center[1]), z - np.float32(center[2])
    radius = np.sqrt(dx * dx + dy * dy + dz * dz)
    opening = 0.80 * dx - 0.28 * dy - 0.53 * dz - 9.0
    return Shape(box, np.maximum(np.maximum(radius - 31.5, HEAD_RADIUS_MM + gap_mm - radius), opening))


def _femur(scene: Scene, side: int, wear: Wear) -> Shape:
    """Head, neck, trochanters and shaft of one thigh bone."""
    parts = [
        scene.ellipsoid(HEAD, (HEAD_RADIUS_MM,) * 3, side=side),
        scene.tube([(90, 1, -5), (106, 5, -19), (118, 9, -34)], [14.5, 13.5, 17], side=side, blend_mm=4),
        scene.tube([(124, 17, -6), (131, 17, -20), (130, 14, -40)], [9, 14, 13], side=side, blend_mm=4),
        scene.tube([(120, 10, -34), (117, 8, -62), (112, 4, -120)], [17, 15.5, 14], side=side, blend_mm=4),
        scene.tube([(108, 20, -54), (101, 24, -60), (108, 18, -70)], [6, 8, 5], side=side, blend_mm=4),
        *wear.spurs_of(scene, f"femur_{SIDES[side]}"),
    ]
    return scene.join(parts, 6.0)


def _paint_femur(
    scene: Scene,
    femur: Shape,
    side: int,
    patient: Patient,
    grain: np.ndarray,
    blotch: np.ndarray,
    cortex: float,
) -> None:
    """A thigh bone: thin shell and dense spongy bone in the head, thick shell and fatty marrow in the shaft."""
    if not femur.f.size:
        return
    x, y, z = scene.at(femur.box)
    depth = np.clip((np.float32(-15.0) - z) / 55, 0, 1)  # 0 at the neck, 1 in the shaft
    from_head = np.sqrt((x * side - HEAD[0]) ** 2 + y**2 + z**2)
    density = patient.hu["marrow"] * (0.55 + 0.9 * np.exp(-((from_head / 20) ** 2))) - 20
    density = density * (1 - depth) + depth * -30
    spongy = density + (1 - 0.7 * depth) * (40 * grain[femur.box] + 50 * blotch[femur.box])
    shell = (1.3 + 5.0 * depth * depth) * np.float32(cortex)
    scene.paint(femur, patient.hu["cortex"], IDS[f"femur_{SIDES[side]}"])
    scene.paint(Shape(femur.box, femur.f + shell), spongy)


def _sacrum(scene: Scene) -> Shape:
    """The sacrum with the upper tail bone, and its canal and nerve holes left out."""
    sides = [scene.loft(SACRUM, side=side) for side in SIDES] + [
        scene.loft(SACRUM_BACK, side=side) for side in SIDES
    ]
    bone = scene.join(sides, 3.0)
    holes = [
        scene.tube([(19, 40 + 16 * k, 86 - 16 * k), (23, 76 + 9 * k, 88 - 16 * k)], [4.5, 3.0], side=side)
        for side in SIDES
        for k in range(3)
    ]
    for hole in holes:
        scene.carve(bone, hole)
    return bone


def _paint_sacral_canal(scene: Scene, patient: Patient) -> None:
    canal = scene.tube([(0, 52, 108), (0, 64, 92), (0, 78, 76), (0, 89, 58), (0, 91, 44)], [8, 7, 5.5, 4, 2])
    scene.label[canal.box][canal.f <= 0] = 0
    scene.paint(canal, 0.5 * patient.hu["fat"] + 25)


def vertebra(scene: Scene, z: float, y: float, pitch: float, size: float = 1.0) -> tuple[Shape, Shape]:
    """One vertebra (body, arch, processes) and the spinal canal behind it; discs are drawn as soft tissue.

    size: relative to a lumbar one.
    """

    def place(points: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
        c, s = np.cos(pitch), np.sin(pitch)
        return [
            (size * px, y + size * (c * py - s * pz), z + size * (s * py + c * pz)) for px, py, pz in points
        ]

    body = _vertebral_body(scene, np.array([0.0, y, z]), pitch, size)
    parts = [body]
    for side in SIDES:
        parts.append(
            scene.tube(
                place([(14, 14, 5), (17, 30, 4), (18, 42, 0), (17, 47, -10)]),
                [5, 5, 6.5, 5.5],
                side=side,
                blend_mm=2,
            )
        )
        parts.append(scene.tube(place([(17, 32, 4), (42, 36, 6)]), [4.5, 2.8], side=side))
        parts.append(scene.tube(place([(17, 42, -2), (3, 55, -4)]), [4.0, 3.5], side=side))
    parts.append(scene.tube(place([(0, 54, -3), (0, 78, -9)]), [3.2, 4.2]))
    canal = scene.tube(place([(0, 30, 17), (0, 30, -17)]), 8.5)
    return scene.join(parts, 2.0), canal


def _vertebral_body(scene: Scene, center: np.ndarray, pitch: float, size: float) -> Shape:
    """A kidney-shaped drum with a slight waist, 48 mm wide, 35 mm deep and 27 mm high."""
    box = scene.box(center - 34, center + 34)
    x, y, z = scene.at(box)
    c, s = np.float32(np.cos(pitch)), np.float32(np.sin(pitch))
    dy, dz = y - np.float32(center[1]), z - np.float32(center[2])
    py, pz = c * dy + s * dz, c * dz - s * dy
    px = np.abs(x)
    if size != 1.0:
        px, py, pz = px / np.float32(size), py / np.float32(size), pz / np.float32(size)
    waist = 2.0 - 0.011 * pz * pz
    level = ((px / (24.5 - waist)) ** 2.4 + np.abs((py + 0.004 * px * px) / (17.5 - waist)) ** 2.4) ** (
        1 / 2.4
    )
    return Shape(box, np.maximum((level - 1) * 19.0, np.abs(pz) - 13.5).astype(np.float32))


def _prosthesis(scene: Scene, side: int) -> Shape:
    """A total hip: cup, ball, neck and stem."""
    parts = [
        scene.ellipsoid(HEAD, (HEAD_RADIUS_MM + 1.0,) * 3, side=side),
        scene.tube(
            [(84, 0, 0), (104, 5, -18), (116, 9, -36), (116, 8, -60), (112, 4, -125)],
            [8, 6, 8, 8, 6.5],
            side=side,
        ),
    ]
    return scene.join(parts, 2.0)
