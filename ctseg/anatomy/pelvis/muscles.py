"""Body outline, skin, fat and muscles. The muscles share borders: a thin layer of fat runs where two meet.

The standard ones stand in `muscles.csv`.
"""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.body import body_outline, flattened, paint_muscle, paint_skin_and_fat, paint_twigs
from ctseg.anatomy.implicit import SIDES, Field, Scene
from ctseg.anatomy.pelvis.people import Patient
from ctseg.anatomy.shape_tables import read_table

SHAPES = read_table(__file__)


def paint_trunk(scene: Scene, patient: Patient) -> tuple[Field, Field]:
    """Everything but bones, vessels and organs. Two functions on the whole grid: the skin, and what keeps the
    bowel inside."""
    skin, inner = outlines(scene, patient)
    paint_skin_and_fat(scene, skin)
    muscle = paint_muscles(scene, skin, inner)
    # Spermatic cords and outer genitals in men, round ligaments in women.
    male = patient.sex == "male"
    for side in SIDES:
        scene.tube(SHAPES["cord"][:, :3], 5.5 if male else 2.0, side=side, blend_mm=2).paint(10.0)
    if male:
        scene.tube(SHAPES["penis"], blend_mm=3).paint(45.0)
        for side in SIDES:
            scene.tube(SHAPES["crus"], side=side).paint(48.0)
    paint_twigs(scene, SHAPES["twigs"])
    return skin, np.minimum(muscle, -20.0 - inner)


def outlines(scene: Scene, patient: Patient) -> tuple[Field, Field]:
    """Two functions on the whole grid: the skin, and the outline of what lies below the fat under it."""
    inner, y, backwards = body_outline(scene, SHAPES["outline"])
    # Groin: the front sinks between thigh and pubis; below, the thighs part.
    ux = np.abs(scene.x)
    low = np.clip((-15 - scene.z) / 60, 0, 1)
    inner += low * 16 * np.exp(-(((ux - 36) / 22) ** 2) - ((y + 104) / 36) ** 2)
    fat = patient.fat_mm * (1 + 0.12 * scene.smooth_field(40.0))
    skin = inner - fat * np.where(y < 0, 1 - 0.25 * backwards * (1 - low), 1 + 0.5 * backwards)
    skin += 9 * np.exp(-((ux / 7) ** 2)) * np.clip((y - 62) / 10, 0, 1) * np.clip((35 - scene.z) / 25, 0, 1)
    legs = np.clip((-86 - scene.z) / 25, 0, 1)
    skin = np.maximum(skin, 12 * legs - 6 - ux - 300 * (legs == 0))
    skin = flattened(scene, skin, patient.fat_mm)
    inner, skin = np.maximum(inner, skin + 5).astype(np.float32), skin.astype(np.float32)
    if patient.sex == "male":
        skin = np.minimum(skin, scene.spread(scene.tube(SHAPES["genital_skin"], blend_mm=6)))
    return skin, inner


def paint_muscles(scene: Scene, skin: Field, inner: Field) -> Field:
    """The fold between the buttocks, and all muscles; returns the function of their union (for keeping the
    bowel away)."""
    behind = 86 + 0.25 * np.clip(scene.z + 40, 0, 90) - scene.y
    fold = np.maximum.reduce([np.abs(scene.x) - 1.1, behind, skin, scene.z - 30])
    scene.whole(fold).paint("skin")  # skin lies on skin

    nearest, second = scene.spread(), scene.spread()  # distance to the nearest muscle and the next
    for side in SIDES:
        for name, rows in SHAPES.items():
            line, swell = rows[:, :4], float(rows[0, -1])
            if name.startswith("loft "):
                muscle = scene.loft(line, side=side, margin_mm=swell).inset(-swell)
            elif name.startswith("tube "):
                muscle = scene.tube(line + (0, 0, 0, swell), side=side, blend_mm=2)
            else:
                continue
            first, other = nearest[muscle.box], second[muscle.box]
            np.minimum(other, np.maximum(first, muscle.f), out=other)
            np.minimum(first, muscle.f, out=first)
    f = np.maximum(nearest, 0.5 * (1.5 + 1.1 * scene.texture["blotch"] - (second - nearest)))
    f = np.minimum(np.maximum(f, inner + 1.0), abdominal_wall(scene, inner))
    paint_muscle(scene, f, (0.7, 1.2))
    for side in SIDES:
        scene.loft(SHAPES["levator"], side=side).paint("muscle", plus=-3)
    return f


def abdominal_wall(scene: Scene, inner: Field) -> Field:
    """Rectus in front, three oblique layers at the flank, as sheets below the inner outline."""
    ux, y, z, blotch = np.abs(scene.x), scene.y, scene.z, scene.texture["blotch"]
    depth = -inner + 0.8 * blotch  # mm below the outline
    half = 5.0 * np.clip((z + 30) / 25, 0, 1)
    reach = 26 + 8 * np.clip((z + 25) / 60, 0, 1)
    thickness = half * (1 - 0.35 * ((ux - 4 - reach) / reach) ** 2)
    rectus = np.maximum.reduce([np.abs(depth - 8.5) - thickness, np.abs(ux - 4 - reach) - reach, y + 25])
    flank = np.maximum(66 - ux, 62 - z + np.clip(ux - 100, 0, 60) * 0.9)
    seam = 0.35 * blotch
    layers = np.minimum.reduce(
        [np.abs(depth - 4.6) - 2.9 + seam, np.abs(depth - 10.6) - 2.8 + seam, np.abs(depth - 15.6) - 2.0]
    )
    obliques = np.maximum.reduce([layers, flank, y - 52])
    # The thin sheets run on as a tendon sheath towards the rectus and the groin.
    sheath = np.maximum.reduce([np.abs(depth - 12.5) - 0.8, y + 30, -5 - z, ux - 90])
    return np.minimum.reduce([rectus, obliques, sheath])
