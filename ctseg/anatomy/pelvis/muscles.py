"""Body outline, skin, fat and muscles. The muscles share borders: a thin layer of fat runs where two meet.

Tables are axial sections (z, [(x, y, half thickness), ...]) of the left side in template mm.
"""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.implicit import Level, Scene, Shape, level_table, smooth_minimum, table_row
from ctseg.anatomy.labels import SIDES
from ctseg.anatomy.patients import Patient

# z, half width, centre y, depth to the front, depth to the back: the outline below the fat under the skin.
OUTLINE = np.array(
    [
        (-140, 158, 10, 84, 76),
        (-90, 163, 10, 86, 84),
        (-60, 165, 10, 90, 88),
        (-20, 165, 10, 95, 91),
        (20, 164, 10, 101, 90),
        (60, 156, 5, 105, 94),
        (90, 149, 0, 110, 93),
        (120, 145, -5, 112, 91),
        (150, 142, -8, 112, 89),
        (200, 140, -8, 114, 90),
        (260, 142, -8, 116, 92),
    ],
    dtype=float,
)

GLUTEUS_MAXIMUS: list[Level] = [
    (-110, [(98, 66, 6), (112, 60, 8), (130, 46, 6)]),
    (-80, [(60, 78, 9), (98, 72, 12), (132, 46, 8)]),
    (-38, [(38, 84, 11), (92, 77, 13), (146, 52, 10)]),
    (8, [(26, 90, 10), (96, 70, 14), (157, 40, 8)]),
    (38, [(40, 92, 9), (100, 69, 13), (150, 42, 8)]),
    (68, [(50, 90, 6), (94, 70, 11), (134, 46, 7)]),
    (98, [(62, 84, 4), (80, 73, 7), (96, 62, 4)]),
    (114, [(62, 77, 1), (66, 74, 1), (70, 71, 1)]),
]
GLUTEUS_MEDIUS: list[Level] = [
    (-22, [(144, 22, 3), (148, 14, 4), (150, 6, 3)]),
    (8, [(122, 46, 9), (141, 20, 11), (150, -8, 9)]),
    (38, [(104, 55, 10), (132, 20, 14), (149, -24, 11)]),
    (66, [(82, 56, 8), (118, 24, 16), (149, -14, 11)]),
    (98, [(74, 60, 6), (110, 30, 12), (146, -6, 8)]),
    (122, [(74, 53, 4), (104, 34, 7), (132, 12, 4)]),
    (140, [(94, 38, 1), (104, 33, 2), (112, 27, 1)]),
]
GLUTEUS_MINIMUS: list[Level] = [
    (-14, [(128, 8, 3), (134, 0, 3), (136, -10, 3)]),
    (8, [(109, 31, 6), (120, 4, 8), (127, -24, 6)]),
    (38, [(101, 33, 6), (114, -2, 9), (124, -38, 6)]),
    (68, [(99, 28, 4), (116, -4, 9), (130, -38, 5)]),
    (90, [(102, 22, 1), (114, 5, 3), (126, -12, 1)]),
]
ILIACUS: list[Level] = [
    (-20, [(84, -34, 5), (94, -37, 8), (104, -36, 5)]),
    (20, [(80, -42, 8), (98, -50, 11), (114, -54, 7)]),
    (45, [(74, -22, 7), (90, -40, 13), (108, -58, 8)]),
    (70, [(74, 2, 6), (92, -24, 14), (114, -50, 8)]),
    (98, [(68, 20, 4), (94, 4, 9), (122, -22, 6)]),
    (122, [(72, 30, 2), (98, 14, 5), (122, -6, 3)]),
    (136, [(90, 22, 1), (98, 15, 1), (106, 8, 1)]),
]
PSOAS: list[Level] = [
    (-70, [(96, 10, 6), (97, 14, 5)]),
    (-45, [(91, -14, 8), (95, -10, 8)]),
    (-15, [(80, -38, 10), (89, -34, 9)]),
    (15, [(68, -40, 10), (78, -40, 10)]),
    (40, [(59, -24, 11), (66, -20, 11)]),
    (68, [(51, -4, 14), (57, 3, 13)]),
    (98, [(45, -5, 14), (51, 7, 14)]),
    (125, [(43, -5, 14), (49, 8, 15)]),
    (155, [(41, -4, 12), (46, 8, 14)]),
    (200, [(35, 1, 10), (38, 10, 11)]),
    (240, [(32, 6, 8), (33, 12, 8)]),
]
OBTURATOR_INTERNUS: list[Level] = [
    (-62, [(34, 8, 3), (44, 24, 4), (50, 36, 3)]),
    (-40, [(30, -22, 6), (45, 8, 9), (55, 42, 7)]),
    (-15, [(34, -30, 6), (49, 2, 9), (58, 38, 8)]),
    (10, [(46, -18, 6), (51, 8, 8), (60, 34, 8)]),
    (34, [(54, -10, 4), (58, 10, 6), (64, 28, 5)]),
    (44, [(58, -2, 1), (60, 10, 2), (64, 24, 2)]),
]
OBTURATOR_EXTERNUS: list[Level] = [
    (-66, [(36, -8, 4), (54, 8, 6), (74, 18, 4)]),
    (-42, [(30, -28, 6), (54, -6, 10), (90, 20, 7)]),
    (-18, [(38, -32, 4), (58, -14, 7), (86, 14, 4)]),
]
LEVATOR: list[Level] = [
    (-62, [(9, 22, 3.5), (13, 44, 4.5), (0, 66, 4.5)]),
    (-50, [(13, -6, 3.5), (20, 34, 4.0), (0, 66, 4.5)]),
    (-38, [(17, -26, 3.0), (29, 24, 3.4), (0, 72, 4)]),
    (-22, [(23, -34, 2.5), (38, 14, 2.8), (0, 78, 3)]),
    (-4, [(32, -34, 1.8), (47, 10, 2.0), (4, 84, 2)]),
]
QUADRATUS_LUMBORUM: list[Level] = [
    (125, [(82, 32, 4), (96, 26, 4)]),
    (150, [(64, 34, 10), (84, 26, 8)]),
    (200, [(56, 32, 10), (72, 26, 7)]),
    (250, [(50, 34, 8), (60, 30, 5)]),
]
SPINE_INNER: list[Level] = [
    (46, [(8, 96, 3)]),
    (68, [(14, 94, 7)]),
    (90, [(17, 84, 11)]),
    (112, [(18, 74, 15)]),
    (150, [(16, 66, 14)]),
    (250, [(16, 64, 14)]),
]
SPINE_OUTER: list[Level] = [
    (92, [(32, 84, 6), (40, 78, 5)]),
    (112, [(36, 74, 10), (48, 66, 8)]),
    (135, [(36, 68, 15), (56, 60, 11)]),
    (170, [(38, 62, 19), (62, 54, 12)]),
    (250, [(38, 62, 20), (62, 54, 14)]),
]

TUBES_SWELL_MM = 7.0
TUBES: tuple[tuple[tuple[tuple[float, float, float], ...], tuple[float, ...]], ...] = (
    (((34, 72, 48), (60, 58, 36), (92, 44, 24), (124, 26, 8)), (7, 7, 5, 1)),  # piriformis
    (((60, 44, -6), (88, 40, -8), (124, 24, -10)), (3, 5, 2)),  # obturator internus tendon and gemelli
    (((74, 46, -44), (98, 36, -44), (122, 28, -42)), (6, 7, 4)),  # quadratus femoris
    (((30, -52, -8), (52, -42, -24), (80, -20, -52), (98, 2, -85)), (8, 11, 12, 6)),  # pectineus
    (((16, -44, -34), (40, -46, -60), (66, -32, -110), (76, -26, -135)), (7, 11, 15, 14)),  # adductor longus
    (((16, -32, -46), (44, -22, -72), (74, -6, -115), (84, 0, -135)), (7, 10, 13, 12)),  # adductor brevis
    (((34, 4, -66), (54, 24, -86), (78, 34, -115), (82, 36, -138)), (8, 16, 20, 20)),  # adductor magnus
    (((14, -30, -52), (22, -24, -80), (34, -20, -135)), (5, 8, 9)),  # gracilis
    (
        ((126, -54, 84), (122, -68, 40), (110, -78, 0), (96, -82, -50), (72, -76, -130)),
        (4, 8, 9, 9, 9),
    ),  # sartorius
    (
        ((138, -38, 72), (146, -38, 30), (147, -36, -30), (146, -28, -90)),
        (5, 9, 11, 8),
    ),  # tensor fasciae latae
    (((108, -38, 26), (118, -58, -10), (116, -64, -50), (112, -62, -130)), (6, 10, 14, 17)),  # rectus femoris
    (((134, -18, -34), (142, -10, -60), (140, -8, -130)), (8, 15, 20)),  # vastus lateralis
    (((116, -18, -50), (116, -26, -80), (112, -30, -130)), (8, 15, 18)),  # vastus intermedius
    (((70, 62, -50), (76, 66, -90), (84, 70, -135)), (6, 12, 17)),  # hamstrings
    (((58, 56, -62), (62, 60, -100), (62, 62, -135)), (5, 10, 14)),  # semimembranosus
)
# Each with the mm by which it swells, so that neighbours meet.
LOFTS = (
    (GLUTEUS_MAXIMUS, 3.0),
    (GLUTEUS_MEDIUS, 5.0),
    (GLUTEUS_MINIMUS, 4.0),
    (ILIACUS, 3.0),
    (PSOAS, 1.0),
    (OBTURATOR_INTERNUS, 1.0),
    (OBTURATOR_EXTERNUS, 4.0),
    (QUADRATUS_LUMBORUM, 3.0),
    (SPINE_INNER, 5.0),
    (SPINE_OUTER, 6.0),
)


def outlines(scene: Scene, patient: Patient, ripple: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two functions on the whole grid: the skin, and the outline of what lies below the fat under it.

    ripple: smooth field (deviation 1) that makes the fat uneven.
    """
    table = level_table(OUTLINE[:, 0], OUTLINE[:, 1:])
    row = table_row(scene.z, OUTLINE[:, 0].min(), len(table))
    x, y = scene.x, scene.y - table[:, 1][row]
    front = y < 0
    depth = np.where(front, table[:, 2][row], table[:, 3][row])
    level = (np.abs(x) / table[:, 0][row]) ** 2.3 + (np.abs(y) / depth) ** 2.3
    level = np.maximum(level, 1e-6) ** np.float32(1 / 2.3)
    distance = np.sqrt(x * x + y * y)
    inner = distance * (1 - 1 / level)
    # Groin: the front sinks between thigh and pubis; below, the thighs part.
    ux = np.abs(x)
    low = np.clip((np.float32(-15) - scene.z) / 60, 0, 1)
    inner += low * 16 * np.exp(-(((ux - 36) / 22) ** 2) - ((y + 104) / 36) ** 2)
    fat = np.float32(patient.fat_mm) * (1 + 0.12 * ripple)
    backwards = np.clip(y / np.maximum(distance, 1), -1, 1)
    thickness = fat * np.where(front, 1 - 0.25 * backwards * (1 - low), 1 + 0.5 * backwards)
    skin = inner - thickness
    skin += 9 * np.exp(-((ux / 7) ** 2)) * np.clip((y - 62) / 10, 0, 1) * np.clip((35 - scene.z) / 25, 0, 1)
    legs = np.clip((np.float32(-86) - scene.z) / 25, 0, 1)
    skin = np.maximum(skin, 12 * legs - 6 - ux - 300 * (legs == 0))
    # the table flattens the back
    skin = -smooth_minimum(-skin, np.float32(102 + patient.fat_mm * 0.95) - scene.y, 16.0)
    return skin.astype(np.float32), np.maximum(inner, skin + 5).astype(np.float32)


def paint_skin_and_fat(
    scene: Scene, skin: np.ndarray, patient: Patient, grain: np.ndarray, blotch: np.ndarray
) -> None:
    """Skin, then fat with faint strands everywhere inside."""
    strand = np.exp(-(((blotch + 0.25 * grain) / 0.12) ** 2))
    fat = patient.hu["fat"] + 3 * blotch + 14 * strand
    body = scene.whole(skin)
    scene.paint(body, patient.hu["skin"])
    scene.paint(body, fat, inset_mm=2.2)
    y = scene.y
    fold = np.maximum(
        np.abs(scene.x) - 1.1,
        np.maximum(86 + 0.25 * np.clip(scene.z + 40, 0, 90) - y, np.maximum(skin, scene.z - 30)),
    )
    scene.paint(
        scene.whole(fold.astype(np.float32)), patient.hu["skin"]
    )  # between the buttocks skin lies on skin


def muscle_fields(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest muscle and to the second nearest, on the whole grid."""
    nearest, second = scene.empty(), scene.empty()
    for side in SIDES:
        shapes = [(scene.loft(levels, side=side, margin_mm=swell), swell) for levels, swell in LOFTS]
        shapes += [
            (scene.tube(points, np.add(radii, TUBES_SWELL_MM), side=side, blend_mm=2), 0.0)
            for points, radii in TUBES
        ]
        for shape, swell in shapes:
            first, other = nearest[shape.box], second[shape.box]
            f = shape.f - np.float32(swell)
            np.minimum(other, np.maximum(first, f), out=other)
            np.minimum(first, f, out=first)
    return nearest, second


def paint_muscles(
    scene: Scene, inner: np.ndarray, patient: Patient, grain: np.ndarray, blotch: np.ndarray
) -> np.ndarray:
    """All muscles; returns the function of their union (for keeping the bowel away)."""
    nearest, second = muscle_fields(scene)
    seam = 1.5 + 1.1 * blotch
    f = np.maximum(nearest, 0.5 * (seam - (second - nearest)))
    wall = _abdominal_wall(scene, inner, blotch)
    f = np.minimum(np.maximum(f, inner + 1.0), wall)
    fatty = np.clip(grain * 0.8 + blotch * 0.4 - np.where(scene.y > 40, 0.7, 1.2), 0, 1.5)
    hu = patient.hu["muscle"] + 3 * blotch - 34 * fatty
    scene.paint(scene.whole(f), hu)
    for side in SIDES:
        scene.paint(scene.loft(LEVATOR, side=side), patient.hu["muscle"] - 3)
    return f


def _abdominal_wall(scene: Scene, inner: np.ndarray, blotch: np.ndarray) -> np.ndarray:
    """Rectus in front, three oblique layers at the flank, as sheets below the inner outline."""
    ux = np.abs(scene.x)
    depth = -inner + 0.8 * blotch  # mm below the outline
    rise = np.clip((scene.z + 25) / 60, 0, 1)
    half = 5.0 * np.clip((scene.z + 30) / 25, 0, 1)
    reach = 26 + 8 * rise
    rectus = np.maximum(
        np.abs(depth - 8.5) - half * (1 - 0.35 * ((ux - 4 - reach) / reach) ** 2),
        np.abs(ux - 4 - reach) - reach,
    )
    rectus = np.maximum(rectus, scene.y + 25)
    flank = np.maximum(66 - ux, np.float32(62) - scene.z + np.clip(ux - 100, 0, 60) * 0.9)
    seam = 0.35 * blotch
    layers = np.minimum(
        np.abs(depth - 4.6) - 2.9 + seam,
        np.minimum(np.abs(depth - 10.6) - 2.8 + seam, np.abs(depth - 15.6) - 2.0),
    )
    obliques = np.maximum(np.maximum(layers, flank), scene.y - 52)
    # The thin sheets run on as a tendon sheath towards the rectus and the groin.
    sheath = np.maximum(np.abs(depth - 12.5) - 0.8, np.maximum(scene.y + 30, -5 - scene.z))
    return np.minimum(np.minimum(rectus, obliques), np.maximum(sheath, ux - 90)).astype(np.float32)


def paint_cords(scene: Scene, patient: Patient) -> None:
    """Spermatic cords and outer genitals in men, round ligaments in women."""
    for side in SIDES:
        cord = 5.5 if patient.sex == "male" else 2.0
        scene.paint(
            scene.tube(
                [(62, -88, 18), (40, -96, -8), (24, -94, -35), (18, -90, -70)], cord, side=side, blend_mm=2
            ),
            10.0,
        )
    if patient.sex == "male":
        scene.paint(
            scene.tube(
                [(0, -30, -64), (0, -62, -60), (0, -92, -50), (2, -104, -66), (3, -104, -92)],
                [9, 10, 12, 13, 12],
                blend_mm=3,
            ),
            45.0,
        )
        for side in SIDES:
            scene.paint(scene.tube([(22, 6, -68), (10, -24, -62), (4, -36, -60)], [5, 6, 6], side=side), 48.0)


def genital_outline(scene: Scene, patient: Patient) -> Shape:
    """The skin over the outer genitals (empty in women), to be joined to the body's outline."""
    if patient.sex != "male":
        return Shape((slice(0, 0), slice(0, 0), slice(0, 0)), np.zeros((0, 0, 0), dtype=np.float32))
    return scene.tube(
        [(0, -84, -48), (2, -102, -64), (3, -102, -94), (0, -84, -135)], [18, 17, 17, 24], blend_mm=6
    )
