"""Bowel: winding tubes that keep clear of each other and of everything drawn before."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy.interpolate import CubicSpline

from ctseg.anatomy.implicit import FAR_MM, Field, Points, Scene, Shape
from ctseg.anatomy.thin_tubes import arc_mm

_STEP_MM = 9.0
# How far points (n, 3) lie inside the cavity that the bowel fills, in mm; negative outside.
Room = Callable[[Points], np.ndarray]
Corner = tuple[float, float, float]


def along_line(line: Points, wobble: float) -> Points:
    """The line (n, 4: x, y, z, radius) with a point about every 6 mm and the bulges of the colon wall."""
    t = arc_mm(line[:, :3])
    fine = np.linspace(0, t[-1], max(4, int(t[-1] / 6)))
    out = np.asarray(CubicSpline(t, line)(fine))
    out[:, 3] = np.interp(fine, t, line[:, 3]) * (1 + wobble * np.sin(fine * (2 * np.pi / 26)))
    return out


def free_space(scene: Scene, keep_out: Field) -> Room:
    """The room that keep_out leaves, a function on the whole grid."""
    to_index = scene.to_index

    def room(points: Points) -> np.ndarray:
        index = np.rint(points @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
        seen = ((index >= 0) & (index < scene.shape)).all(axis=1)
        return np.where(seen, keep_out[tuple(np.clip(index, 0, np.array(scene.shape) - 1).T)], FAR_MM)

    return room


def random_loops(
    rng: np.random.Generator, taken: Points, low: Corner, high: Corner, room: Room
) -> list[Points]:
    """Centre lines (n, 4) of small-bowel loops: random walks from free places between two corners.

    taken: (m, 4) tubes that are there already. At each step a loop takes the best of some directions near
    the last one.
    """
    loops: list[Points] = []

    def free(points: Points, radius: float, tubes: Points) -> np.ndarray:
        offset = points[:, None] - tubes[None, :, :3]
        to_tube = (np.sqrt(np.einsum("ijk,ijk->ij", offset, offset)) - tubes[None, :, 3]).min(axis=1)
        return np.minimum(room(points), to_tube - 1.0) - radius

    for _ in range(90):
        radius = rng.uniform(8.5, 15.5)
        places = rng.uniform(low, high, (40, 3))
        starts = np.flatnonzero(free(places, radius, taken) > 0)
        if not starts.size:
            continue
        points = [places[starts[0]]]
        heading = rng.normal(size=3)
        heading /= np.linalg.norm(heading)
        for _ in range(int(rng.integers(8, 34))):
            directions = heading + rng.normal(0, 0.55, (20, 3))
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
            directions[:, 2] *= 0.8  # loops lie rather level
            candidates = points[-1] + _STEP_MM * directions
            own = np.array([(*p, radius) for p in points[:-3]]).reshape(-1, 4)
            space = free(candidates, radius, np.concatenate([taken, own]))
            best = int(np.argmax(np.minimum(space, 4.0) + rng.uniform(0, 1.5, len(space))))
            if space[best] < -1.0:
                break
            points.append(candidates[best])
            heading = directions[best]
        radii = radius * (1 + 0.10 * rng.standard_normal(len(points)).clip(-2, 2))
        if len(points) >= 3:
            loops.append(np.column_stack([np.array(points), radii]))
            taken = np.concatenate([taken, loops[-1]])
    return loops


def paint_loops(
    scene: Scene, loops: Iterable[tuple[Points, float, float]], keep_out: Field, gaps_mm: tuple[float, float]
) -> None:
    """Loops of small bowel with fluid, in some with gas.

    loops: centre line, HU of the fluid, and share of the depth that is gas (below 0.35: none). gaps_mm: how
    far they stay away from keep_out, and from the loops drawn before.
    """
    drawn = scene.spread()
    for line, fluid_hu, gas in loops:
        loop = scene.tube(line, blend_mm=3, with_axis=True).inset(0, lumps=1.1)
        loop = loop.cut(keep_out, gaps_mm[0]).cut(drawn, gaps_mm[1])
        np.minimum(drawn[loop.box], loop.f, out=drawn[loop.box])
        loop.paint("bowel_wall", "intestine", grain=3)
        lumen = loop.inset(2.6)
        lumen.paint(fluid_hu, blotch=6)
        if gas > 0.35:
            paint_gas(lumen, gas)


def paint_colon(colon: Shape, plus: float) -> Shape:
    """Wall (`plus` HU brighter than that of the small bowel) and stool of the colon; returns the lumen, where
    gas may stand."""
    colon.paint("bowel_wall", "colon", plus=plus)
    lumen = colon.inset(2.6, blotch=0.8)
    paint_stool(lumen, lumen.uneven(0, grain=1.2) + 0.1)
    return lumen.inset(0.5)


def paint_stool(lumen: Shape, grain: Field) -> None:
    """Stool: uneven, with fat-dark patches and gas bubbles."""
    bubbles = np.clip(lumen.uneven(grain, blotch=0.5) + 0.1, 0, 2.6)
    stool = lumen.uneven(lumen.scene.tissue["stool"] + 12 * grain, blotch=26)
    lumen.paint(stool - 150 * bubbles * bubbles)


def paint_gas(lumen: Shape, share: float) -> None:
    """Gas in the front of a bowel's lumen, with a flat level; share 0..1 is how deep it reaches.

    lumen: of a tube drawn with_axis.
    """
    inside = lumen.f < -1.0
    if not inside.any():
        return
    depth = float(-lumen.f[inside].min())
    level = lumen.axis_y + np.float32((2 * share - 1) * depth)
    lumen.inset(0.4).within(lumen.at()[1] - level).paint(-960.0)
