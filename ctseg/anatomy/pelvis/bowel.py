"""Colon and small bowel of the pelvis."""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.bowel import along_line, paint_colon, paint_gas, paint_loops, random_loops, tube_distance
from ctseg.anatomy.implicit import Scene
from ctseg.anatomy.labels import IDS
from ctseg.anatomy.pelvis.people import Patient
from ctseg.anatomy.shape_tables import read_table
from ctseg.anatomy.texture import Texture

SHAPES = read_table(__file__)


def colon_lines(patient: Patient, rng: np.random.Generator, rectum_top: np.ndarray) -> list[np.ndarray]:
    """Centre lines (n, 4: x, y, z, radius): sigmoid with descending colon, caecum with ascending colon."""
    jitter = rng.normal(0, 5, (9, 3))
    x, y, z, radius = rectum_top
    full = patient.bladder_fullness
    loop = SHAPES["sigmoid loop"] + (0, 0, 38 + 34 * full, 0)
    loop[:, 0] += jitter[:4, 0]
    loop[:3, 1] += jitter[:3, 1]
    descending, caecum = SHAPES["descending"].copy(), SHAPES["caecum"].copy()
    descending[:2, 1] += jitter[4:6, 1]
    caecum[0, 2] += 10 * full
    caecum[:2, 0] += jitter[6:8, 0]
    caecum[0, 1] += jitter[6, 1]
    begin = [(x, y, z, min(radius - 2, 12.5)), (x + 8, y - 22, z + 10, 10.5)]
    sigmoid = np.vstack([begin, loop, descending])
    caecum[:, 3] *= rng.uniform(0.8, 1.05)
    sigmoid[1:, 3] *= rng.uniform(0.95, 1.2)
    return [along_line(sigmoid, 0.06), along_line(caecum, 0.12)]


def bowel_walk(
    patient: Patient, rng: np.random.Generator, colon: list[np.ndarray], top_mm: float
) -> list[np.ndarray]:
    """Centre lines of small-bowel loops that turn away from the cavity's wall, the colon and each other."""
    floor = -8 + 58 * patient.bladder_fullness

    def room(points: np.ndarray, radius: float, taken: np.ndarray) -> np.ndarray:
        x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
        half, front = (np.interp(z, *SHAPES[name].T) for name in ("half width", "front"))
        back = np.interp(x, *SHAPES["back"].T) + np.clip(84 - z, 0, 60) * 0.9
        above = z - floor - 0.15 * np.clip(-y - 20, 0, 60)
        wall = np.minimum.reduce([half - x, y - front, back - y, above])
        return np.minimum(wall - radius, tube_distance(points, taken) - radius - 1.0)

    return random_loops(rng, np.concatenate(colon), (-105, -105, floor), (105, 20, top_mm), room)


def paint_bowel(
    scene: Scene,
    patient: Patient,
    rng: np.random.Generator,
    rectum_top: np.ndarray,
    keep_out: np.ndarray,
    texture: Texture,
) -> None:
    """Draw small bowel, then colon. keep_out: f of everything they must not enter, on the whole grid."""
    colon = colon_lines(patient, rng, rectum_top)
    small = bowel_walk(patient, rng, colon, min(225.0, float(scene.z.max())))
    wall_hu = patient.hu["bowel_wall"]
    gas = 0.35 + 0.5 * (rng.uniform(0, 1, len(small)) - 0.72)
    loops = zip(small, rng.uniform(20, 44, len(small)), gas)
    paint_loops(scene, loops, wall_hu, IDS["intestine"], keep_out, (2.2, 1.2), texture)
    for number, line in enumerate(colon):
        tube = scene.tube(line, blend_mm=2, with_axis=True)
        tube = tube.inset(1.4 * texture.lumps[tube.box]).cut(keep_out, 2.2)
        lumen = paint_colon(scene, tube, wall_hu - 2, IDS["colon"], patient.hu["stool"], texture)
        if number == 1 or patient.rectum_content == "gas":
            paint_gas(scene, lumen, rng.uniform(0.2, 0.5))
