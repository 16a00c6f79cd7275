"""Colon and small bowel of the pelvis."""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.bowel import along_line, paint_colon, paint_gas, paint_loops, random_loops
from ctseg.anatomy.implicit import Field, Points, Scene
from ctseg.anatomy.pelvis.people import Patient
from ctseg.anatomy.shape_tables import read_table

SHAPES = read_table(__file__)


def colon_lines(rng: np.random.Generator, bladder_fullness: float, rectum_top: Points) -> list[Points]:
    """Centre lines (n, 4: x, y, z, radius): sigmoid with descending colon, caecum with ascending colon."""
    jitter = rng.normal(0, 5, (9, 3))
    x, y, z, radius = rectum_top
    loop = SHAPES["sigmoid loop"] + (0, 0, 38 + 34 * bladder_fullness, 0)
    loop[:, 0] += jitter[:4, 0]
    loop[:3, 1] += jitter[:3, 1]
    descending, caecum = SHAPES["descending"].copy(), SHAPES["caecum"].copy()
    descending[:2, 1] += jitter[4:6, 1]
    caecum[0, 2] += 10 * bladder_fullness
    caecum[:2, 0] += jitter[6:8, 0]
    caecum[0, 1] += jitter[6, 1]
    begin = [(x, y, z, min(radius - 2, 12.5)), (x + 8, y - 22, z + 10, 10.5)]
    sigmoid = np.vstack([begin, loop, descending])
    caecum[:, 3] *= rng.uniform(0.8, 1.05)
    sigmoid[1:, 3] *= rng.uniform(0.95, 1.2)
    return [along_line(sigmoid, 0.06), along_line(caecum, 0.12)]


def paint_bowel(scene: Scene, patient: Patient, rectum_top: Points, keep_out: Field) -> None:
    """Draw small bowel, then colon. keep_out: f of everything they must not enter, on the whole grid."""
    rng, full = scene.rng, patient.bladder_fullness
    colon = colon_lines(rng, full, rectum_top)
    floor = -8 + 58 * full

    def room(points: Points) -> np.ndarray:
        x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
        half, front = (np.interp(z, *SHAPES[name].T) for name in ("half width", "front"))
        back = np.interp(x, *SHAPES["back"].T) + np.clip(84 - z, 0, 60) * 0.9
        above = z - floor - 0.15 * np.clip(-y - 20, 0, 60)
        return np.minimum.reduce([half - x, y - front, back - y, above])

    top_mm = min(225.0, float(scene.z.max()))
    small = random_loops(rng, np.concatenate(colon), (-105, -105, floor), (105, 20, top_mm), room)
    gas = 0.35 + 0.5 * (rng.uniform(0, 1, len(small)) - 0.72)
    paint_loops(scene, zip(small, rng.uniform(20, 44, len(small)), gas), keep_out, (2.2, 1.2))
    for number, line in enumerate(colon):
        tube = scene.tube(line, blend_mm=2, with_axis=True).inset(0, lumps=1.4).cut(keep_out, 2.2)
        lumen = paint_colon(tube, -2)
        if number == 1 or patient.rectum_content == "gas":
            paint_gas(lumen, rng.uniform(0.2, 0.5))
