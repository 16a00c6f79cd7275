"""Colon and small bowel: winding tubes that keep clear of each other and of everything drawn before."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import CubicSpline

from ctseg.scans.phantom.implicit import Scene, Shape
from ctseg.scans.phantom.labels import IDS, SIDES
from ctseg.scans.phantom.organs import paint_gas, stool
from ctseg.scans.phantom.patients import Patient

_STEP_MM = 9.0


def colon_lines(patient: Patient, rng: np.random.Generator, rectum_top: np.ndarray) -> list[np.ndarray]:
    """Centre lines (n, 4: x, y, z, radius) of sigmoid with descending colon, and of caecum with ascending colon."""
    j = rng.normal(0, 5, (9, 3))
    x, y, z, radius = rectum_top
    full = float(np.clip((patient.bladder_ml - 60) / 420, 0, 1))
    over = 38 + 34 * full  # the sigmoid loop lies on top of the bladder
    sigmoid = np.array([
        (x, y, z, min(radius - 2, 12.5)), (x + 8, y - 22, z + 10, 10.5), (-16 + j[0, 0], 0 + j[0, 1], over + 14, 12), (-32 + j[1, 0], -34 + j[1, 1], over + 10, 12.5),
        (2 + j[2, 0], -56 + j[2, 1], over + 8, 12.5), (42 + j[3, 0], -52, over + 12, 12), (72, -50 + j[4, 1], 82, 12),
        (94, -46 + j[5, 1], 108, 13), (108, -18, 145, 14), (108, -4, 190, 14), (106, 0, 235, 15)])
    caecum = np.array([
        (-66 + j[6, 0], -58 + j[6, 1], 58 + 10 * full, 20), (-80 + j[7, 0], -52, 84, 26), (-98, -34, 118, 25), (-106, -20, 155, 24), (-106, -14, 195, 24), (-104, -10, 235, 24)])
    caecum[:, 3] *= rng.uniform(0.8, 1.05)
    sigmoid[1:, 3] *= rng.uniform(0.95, 1.2)
    return [_dense(line, wobble) for line, wobble in ((sigmoid, 0.06), (caecum, 0.12))]


def _dense(line: np.ndarray, wobble: float) -> np.ndarray:
    """The line with a point about every 6 mm and the bulges of the colon wall."""
    t = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line[:, :3], axis=0), axis=1))])
    fine = np.linspace(0, t[-1], max(4, int(t[-1] / 6)))
    out = np.asarray(CubicSpline(t, line)(fine))
    out[:, 3] = np.interp(fine, t, line[:, 3]) * (1 + wobble * np.sin(fine * (2 * np.pi / 26)))
    return out


def bowel_walk(patient: Patient, rng: np.random.Generator, colon: list[np.ndarray], top_mm: float) -> list[np.ndarray]:
    """Centre lines of small-bowel loops: random walks that turn away from the wall, the colon and each other."""
    taken = np.concatenate(colon)
    loops: list[np.ndarray] = []
    floor = 6 + 66 * float(np.clip((patient.bladder_ml - 60) / 420, 0, 1))
    for _ in range(90):
        radius = float(rng.uniform(8.5, 15.5))
        places = rng.uniform((-105, -105, floor), (105, 20, top_mm), (40, 3))
        free = np.flatnonzero(_room(places, radius, taken, floor) > 0)
        if not free.size:
            continue
        loop = _walk(rng, places[free[0]], radius, taken, floor)
        if len(loop) >= 3:
            loops.append(loop)
            taken = np.concatenate([taken, loop])
    return loops


def _walk(rng: np.random.Generator, start: np.ndarray, radius: float, taken: np.ndarray, floor: float) -> np.ndarray:
    """One loop: at each step the best of some directions near the last one."""
    points = [start]
    heading = rng.normal(size=3)
    heading /= np.linalg.norm(heading)
    for _ in range(int(rng.integers(8, 34))):
        directions = heading + rng.normal(0, 0.55, (20, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        directions[:, 2] *= 0.8  # loops lie rather level
        candidates = points[-1] + _STEP_MM * directions
        own = np.array([(*p, radius) for p in points[:-3]]).reshape(-1, 4)
        room = _room(candidates, radius, np.concatenate([taken, own]), floor)
        best = int(np.argmax(np.minimum(room, 4.0) + rng.uniform(0, 1.5, len(room))))
        if room[best] < -1.0:
            break
        points.append(candidates[best])
        heading = directions[best]
    return np.column_stack([np.array(points), radius * (1 + 0.10 * rng.standard_normal(len(points)).clip(-2, 2))])


def _room(points: np.ndarray, radius: float, taken: np.ndarray, floor: float) -> np.ndarray:
    """Free space in mm around candidate points (n, 3): to the cavity's wall and to the tubes drawn so far."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    half = np.interp(z, [20, 60, 100, 140, 220], [52, 68, 100, 112, 112])
    front = np.interp(z, [20, 60, 90, 130, 220], [-76, -86, -92, -98, -100])
    back = np.interp(x, [0, 40, 62, 80, 120], [-28, -30, -24, 4, 6]) + np.clip(84 - z, 0, 60) * 0.9
    room = np.minimum.reduce([half - x, y - front, back - y, z - floor - 0.15 * np.clip(-y - 20, 0, 60)]) - radius
    offset = points[:, None] - taken[None, :, :3]
    apart = np.sqrt(np.einsum("ijk,ijk->ij", offset, offset)) - taken[None, :, 3]
    return np.minimum(room, apart.min(axis=1) - radius - 1.0)


def paint_bowel(scene: Scene, patient: Patient, rng: np.random.Generator, colon: list[np.ndarray], keep_out: np.ndarray,
                grain: np.ndarray, blotch: np.ndarray, lumps: np.ndarray) -> None:
    """Draw small bowel, then colon. keep_out: function of everything they must not enter, on the whole grid."""
    small = bowel_walk(patient, rng, colon, min(225.0, float(scene.z.max())))
    obstacle = keep_out
    contents = rng.uniform(0, 1, len(small))
    fluid = rng.uniform(4, 32, len(small))
    drawn = scene.empty()
    for line, content, density in zip(small, contents, fluid):
        loop = scene.tube(line[:, :3], line[:, 3], blend_mm=3, with_axis=True)
        if not loop.f.size:
            continue
        loop.f += 1.1 * lumps[loop.box]
        loop = loop.cut(obstacle, 2.0).cut(drawn, 1.2)
        np.minimum(drawn[loop.box], loop.f, out=drawn[loop.box])
        scene.paint(loop, patient.hu["bowel_wall"] + 3 * grain[loop.box], IDS["intestine"])
        lumen = loop.inset(2.6)
        scene.paint(lumen, density + 6 * blotch[loop.box])
        if content > 0.72:
            paint_gas(scene, lumen, 0.35 + 0.5 * (content - 0.72))
    for number, line in enumerate(colon):
        tube = scene.tube(line[:, :3], line[:, 3], blend_mm=2, with_axis=True)
        if not tube.f.size:
            continue
        tube.f += 1.4 * lumps[tube.box]
        tube = tube.cut(obstacle, 1.5)
        scene.paint(tube, patient.hu["bowel_wall"] - 2, IDS["colon"])
        lumen = tube.inset(2.6 + 0.8 * blotch[tube.box])
        scene.paint(lumen, stool(patient, grain[tube.box] * 1.2 + 0.1, blotch[tube.box]))
        if number == 1 or patient.rectum_content == "gas":
            paint_gas(scene, lumen.inset(0.5), float(rng.uniform(0.2, 0.5)))


ARTERIES = {
    "aorta": ([(6, -34, 260), (5, -34, 200), (3, -33, 148)], [9, 9, 8.5]),
    "iliac": ([(3, -33, 148), (16, -29, 128), (30, -18, 106), (40, -12, 90), (50, -22, 66), (60, -36, 38), (67, -52, 8),
               (73, -64, -20), (74, -66, -50), (70, -62, -90), (66, -54, -135)], [7, 6, 5.6, 5.4, 5, 4.8, 4.6, 4.8, 4.6, 4.2, 4]),
}
INTERNAL_ILIAC = ([(38, -10, 92), (43, 14, 76), (46, 34, 58), (46, 40, 36), (44, 32, 16)], [4.2, 3.8, 3.2, 2.6, 2.0])
VEINS = {
    "postcava": ([(-20, -28, 260), (-20, -29, 200), (-16, -24, 138)], [10.5, 10.5, 10]),
    "iliac": ([(-14, -24, 138), (8, -16, 118), (30, -4, 98), (42, 2, 80), (48, -10, 60), (56, -26, 34), (61, -42, 6),
               (63, -56, -20), (64, -58, -50), (66, -52, -90)], [8, 7, 6.6, 6.4, 6, 5.8, 5.6, 5.8, 5.2, 4.6]),
}


def vessel_shapes(scene: Scene) -> list[tuple[Shape, str, str | None]]:
    """Large vessels of abdomen and pelvis: (shape, tissue, label name)."""
    shapes: list[tuple[Shape, str, str | None]] = []
    for side, word in SIDES.items():
        shapes.append((scene.tube(*INTERNAL_ILIAC, side=side, blend_mm=1), "artery", None))
        points, radii = VEINS["iliac"]
        if side == -1:  # the cava lies on the right: the right common vein is shorter and steeper
            points = [(16, -24, 138), (22, -14, 118), *points[2:]]
        shapes.append((scene.tube(points, radii, side=side, blend_mm=1), "vein", f"iliac_vein_{word}"))
        points, radii = ARTERIES["iliac"]
        shapes.append((scene.tube(points, radii, side=side, blend_mm=1), "artery", f"iliac_artery_{word}"))
    shapes.append((scene.tube(*VEINS["postcava"]), "vein", "postcava"))
    shapes.append((scene.tube(*ARTERIES["aorta"]), "artery", "aorta"))
    return shapes


def paint_small_vessels(scene: Scene, patient: Patient, rng: np.random.Generator) -> None:
    """Twigs and nodes in the fat: around rectum and prostate, in the mesentery, the groin and under the skin."""
    regions = (((0, 50, 15), (32, 22, 45), 60), ((0, -45, 120), (75, 30, 60), 60), ((70, -80, 0), (25, 14, 40), 16),
               ((0, -90, 40), (110, 35, 90), 22), ((0, 5, -25), (30, 26, 14), 14))
    for center, spread, count in regions:
        for _ in range(count):
            side = int(rng.choice([-1, 1]))
            start = np.array(center) * (side, 1, 1) + rng.normal(0, 0.6, 3) * spread
            steps = rng.normal(0, 1, (4, 3)).cumsum(axis=0) * rng.uniform(5, 10)
            radius = float(rng.uniform(0.8, 2.0))
            scene.paint(scene.tube(start + steps, radius), 0.6 * patient.hu["vein"] + 10, strength=0.8)
