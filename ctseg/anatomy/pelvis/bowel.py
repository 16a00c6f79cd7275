"""Colon and small bowel: winding tubes that keep clear of each other and of everything drawn before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.interpolate import CubicSpline

from ctseg.anatomy.implicit import FAR_MM, Scene
from ctseg.anatomy.labels import IDS
from ctseg.anatomy.patients import Patient
from ctseg.anatomy.pelvis.organs import paint_gas, stool
from ctseg.anatomy.texture import Texture

_STEP_MM = 9.0
# Free space in mm at points (n, 3) for a tube of that radius, given the tubes (m, 4: x, y, z, radius) so far.
Room = Callable[[np.ndarray, float, np.ndarray], np.ndarray]


def colon_lines(patient: Patient, rng: np.random.Generator, rectum_top: np.ndarray) -> list[np.ndarray]:
    """Centre lines (n, 4: x, y, z, radius) of sigmoid with descending colon, and of caecum with ascending colon."""
    j = rng.normal(0, 5, (9, 3))
    x, y, z, radius = rectum_top
    full = float(np.clip((patient.bladder_ml - 60) / 420, 0, 1))
    over = 38 + 34 * full  # the sigmoid loop lies on top of the bladder
    sigmoid = np.array(
        [
            (x, y, z, min(radius - 2, 12.5)),
            (x + 8, y - 22, z + 10, 10.5),
            (-16 + j[0, 0], 0 + j[0, 1], over + 14, 12),
            (-32 + j[1, 0], -34 + j[1, 1], over + 10, 12.5),
            (2 + j[2, 0], -56 + j[2, 1], over + 8, 12.5),
            (42 + j[3, 0], -52, over + 12, 12),
            (72, -50 + j[4, 1], 82, 12),
            (94, -46 + j[5, 1], 108, 13),
            (108, -18, 145, 14),
            (108, -4, 190, 14),
            (106, 0, 235, 15),
        ]
    )
    caecum = np.array(
        [
            (-66 + j[6, 0], -58 + j[6, 1], 58 + 10 * full, 20),
            (-80 + j[7, 0], -52, 84, 26),
            (-98, -34, 118, 25),
            (-106, -20, 155, 24),
            (-106, -14, 195, 24),
            (-104, -10, 235, 24),
        ]
    )
    caecum[:, 3] *= rng.uniform(0.8, 1.05)
    sigmoid[1:, 3] *= rng.uniform(0.95, 1.2)
    return [along_line(line, wobble) for line, wobble in ((sigmoid, 0.06), (caecum, 0.12))]


def along_line(line: np.ndarray, wobble: float) -> np.ndarray:
    """The line with a point about every 6 mm and the bulges of the colon wall."""
    t = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line[:, :3], axis=0), axis=1))])
    fine = np.linspace(0, t[-1], max(4, int(t[-1] / 6)))
    out = np.asarray(CubicSpline(t, line)(fine))
    out[:, 3] = np.interp(fine, t, line[:, 3]) * (1 + wobble * np.sin(fine * (2 * np.pi / 26)))
    return out


def bowel_walk(
    patient: Patient, rng: np.random.Generator, colon: list[np.ndarray], top_mm: float
) -> list[np.ndarray]:
    """Centre lines of small-bowel loops: random walks that turn away from the wall, the colon and each other."""
    taken = np.concatenate(colon)
    floor = -8 + 58 * float(np.clip((patient.bladder_ml - 60) / 420, 0, 1))
    return _fill(
        rng,
        taken,
        (-105, -105, floor),
        (105, 20, top_mm),
        lambda points, radius, tubes: _room(points, radius, tubes, floor),
    )


def fill_cavity(
    scene: Scene,
    rng: np.random.Generator,
    taken: np.ndarray,
    keep_out: np.ndarray,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
) -> list[np.ndarray]:
    """Loops as in `bowel_walk` between two corners, wherever keep_out (a function on the whole grid) leaves room."""
    to_index = np.linalg.inv(scene.to_template)

    def room(points: np.ndarray, radius: float, tubes: np.ndarray) -> np.ndarray:
        index = np.rint(points @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
        seen = ((index >= 0) & (index < scene.shape)).all(axis=1)
        d, h, w = np.clip(index, 0, np.array(scene.shape) - 1).T
        return np.minimum(np.where(seen, keep_out[d, h, w], FAR_MM), _apart(points, tubes) - 1.0) - radius

    return _fill(rng, taken, low, high, room)


def _fill(
    rng: np.random.Generator,
    taken: np.ndarray,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    room: Room,
) -> list[np.ndarray]:
    """Random walks from free places in the box between two corners."""
    loops: list[np.ndarray] = []
    for _ in range(90):
        radius = float(rng.uniform(8.5, 15.5))
        places = rng.uniform(low, high, (40, 3))
        free = np.flatnonzero(room(places, radius, taken) > 0)
        if not free.size:
            continue
        loop = _walk(rng, places[free[0]], radius, taken, room)
        if len(loop) >= 3:
            loops.append(loop)
            taken = np.concatenate([taken, loop])
    return loops


def _walk(
    rng: np.random.Generator, start: np.ndarray, radius: float, taken: np.ndarray, room: Room
) -> np.ndarray:
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
        free = room(candidates, radius, np.concatenate([taken, own]))
        best = int(np.argmax(np.minimum(free, 4.0) + rng.uniform(0, 1.5, len(free))))
        if free[best] < -1.0:
            break
        points.append(candidates[best])
        heading = directions[best]
    return np.column_stack(
        [np.array(points), radius * (1 + 0.10 * rng.standard_normal(len(points)).clip(-2, 2))]
    )


def _room(points: np.ndarray, radius: float, taken: np.ndarray, floor: float) -> np.ndarray:
    """Free space in mm around candidate points (n, 3): to the cavity's wall and to the tubes drawn so far."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    half = np.interp(z, [20, 60, 100, 140, 220], [52, 68, 100, 112, 112])
    front = np.interp(z, [20, 60, 90, 130, 220], [-76, -86, -92, -98, -100])
    back = np.interp(x, [0, 40, 62, 80, 120], [-28, -30, -24, 4, 6]) + np.clip(84 - z, 0, 60) * 0.9
    room = (
        np.minimum.reduce([half - x, y - front, back - y, z - floor - 0.15 * np.clip(-y - 20, 0, 60)])
        - radius
    )
    return np.minimum(room, _apart(points, taken) - radius - 1.0)


def _apart(points: np.ndarray, tubes: np.ndarray) -> np.ndarray:
    """Distance in mm from each point to the nearest tube."""
    offset = points[:, None] - tubes[None, :, :3]
    nearest: np.ndarray = (np.sqrt(np.einsum("ijk,ijk->ij", offset, offset)) - tubes[None, :, 3]).min(axis=1)
    return nearest


def paint_bowel(
    scene: Scene,
    patient: Patient,
    rng: np.random.Generator,
    colon: list[np.ndarray],
    keep_out: np.ndarray,
    texture: Texture,
) -> None:
    """Draw small bowel, then colon. keep_out: function of everything they must not enter, on the whole grid."""
    small = bowel_walk(patient, rng, colon, min(225.0, float(scene.z.max())))
    grain, blotch, lumps = texture.grain, texture.blotch, texture.lumps
    contents = rng.uniform(0, 1, len(small))
    fluid = rng.uniform(20, 44, len(small))
    drawn = scene.empty()
    for line, content, density in zip(small, contents, fluid):
        loop = scene.tube(line[:, :3], line[:, 3], blend_mm=3, with_axis=True)
        if not loop.f.size:
            continue
        loop.f += 1.1 * lumps[loop.box]
        loop = loop.cut(keep_out, 2.2).cut(drawn, 1.2)
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
        tube = tube.cut(keep_out, 2.2)
        scene.paint(tube, patient.hu["bowel_wall"] - 2, IDS["colon"])
        lumen = tube.inset(2.6 + 0.8 * blotch[tube.box])
        scene.paint(lumen, stool(patient, grain[tube.box] * 1.2 + 0.1, blotch[tube.box]))
        if number == 1 or patient.rectum_content == "gas":
            paint_gas(scene, lumen.inset(0.5), float(rng.uniform(0.2, 0.5)))
