"""Bowel: winding tubes that keep clear of each other and of everything drawn before."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy.interpolate import CubicSpline

from ctseg.anatomy.implicit import FAR_MM, Scene, Shape
from ctseg.anatomy.texture import Texture
from ctseg.anatomy.thin_tubes import arc_mm

_STEP_MM = 9.0
# Free space in mm at points (n, 3) for a tube of that radius, given the tubes (m, 4: x, y, z, radius) so far.
Room = Callable[[np.ndarray, float, np.ndarray], np.ndarray]
Corner = tuple[float, float, float]


def along_line(line: np.ndarray, wobble: float) -> np.ndarray:
    """The line (n, 4: x, y, z, radius) with a point about every 6 mm and the bulges of the colon wall."""
    t = arc_mm(line[:, :3])
    fine = np.linspace(0, t[-1], max(4, int(t[-1] / 6)))
    out = np.asarray(CubicSpline(t, line)(fine))
    out[:, 3] = np.interp(fine, t, line[:, 3]) * (1 + wobble * np.sin(fine * (2 * np.pi / 26)))
    return out


def fill_cavity(
    scene: Scene, rng: np.random.Generator, taken: np.ndarray, keep_out: np.ndarray, low: Corner, high: Corner
) -> list[np.ndarray]:
    """`random_loops` wherever keep_out (a function on the whole grid) leaves room."""
    to_index = np.linalg.inv(scene.to_template)

    def room(points: np.ndarray, radius: float, tubes: np.ndarray) -> np.ndarray:
        index = np.rint(points @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
        seen = ((index >= 0) & (index < scene.shape)).all(axis=1)
        d, h, w = np.clip(index, 0, np.array(scene.shape) - 1).T
        return (
            np.minimum(np.where(seen, keep_out[d, h, w], FAR_MM), tube_distance(points, tubes) - 1.0) - radius
        )

    return random_loops(rng, taken, low, high, room)


def random_loops(
    rng: np.random.Generator, taken: np.ndarray, low: Corner, high: Corner, room: Room
) -> list[np.ndarray]:
    """Centre lines (n, 4) of small-bowel loops: random walks from free places between two corners."""
    loops: list[np.ndarray] = []
    for _ in range(90):
        radius = rng.uniform(8.5, 15.5)
        places = rng.uniform(low, high, (40, 3))
        free = np.flatnonzero(room(places, radius, taken) > 0)
        if not free.size:
            continue
        loop = random_loop(rng, places[free[0]], radius, taken, room)
        if len(loop) >= 3:
            loops.append(loop)
            taken = np.concatenate([taken, loop])
    return loops


def random_loop(
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
    radii = radius * (1 + 0.10 * rng.standard_normal(len(points)).clip(-2, 2))
    return np.column_stack([np.array(points), radii])


def tube_distance(points: np.ndarray, tubes: np.ndarray) -> np.ndarray:
    """Distance in mm from each point to the nearest tube (m, 4)."""
    offset = points[:, None] - tubes[None, :, :3]
    nearest: np.ndarray = (np.sqrt(np.einsum("ijk,ijk->ij", offset, offset)) - tubes[None, :, 3]).min(axis=1)
    return nearest


def paint_loops(
    scene: Scene,
    loops: Iterable[tuple[np.ndarray, float, float]],
    wall_hu: float,
    label: int,
    keep_out: np.ndarray,
    gaps_mm: tuple[float, float],
    texture: Texture,
) -> None:
    """Loops of small bowel with fluid, in some with gas.

    loops: centre line, HU of the fluid, and share of the depth that is gas (below 0.35: none). gaps_mm: how
    far they stay away from keep_out, and from the loops drawn before.
    """
    drawn = scene.empty()
    for line, fluid_hu, gas in loops:
        loop = scene.tube(line, blend_mm=3, with_axis=True)
        t = texture.on(loop)
        loop = loop.inset(1.1 * t.lumps).cut(keep_out, gaps_mm[0]).cut(drawn, gaps_mm[1])
        np.minimum(drawn[loop.box], loop.f, out=drawn[loop.box])
        scene.paint(loop, wall_hu + 3 * t.grain, label)
        lumen = loop.inset(2.6)
        scene.paint(lumen, fluid_hu + 6 * t.blotch)
        if gas > 0.35:
            paint_gas(scene, lumen, gas)


def paint_colon(
    scene: Scene, colon: Shape, wall_hu: float, label: int, stool_hu: float, texture: Texture
) -> Shape:
    """Wall and stool of the colon; returns the lumen, where gas may stand."""
    t = texture.on(colon)
    scene.paint(colon, wall_hu, label)
    lumen = colon.inset(2.6 + 0.8 * t.blotch)
    scene.paint(lumen, uneven_stool(stool_hu, t.grain * 1.2 + 0.1, t.blotch))
    return lumen.inset(0.5)


def uneven_stool(stool_hu: float, grain: np.ndarray, blotch: np.ndarray) -> np.ndarray:
    """Attenuation of stool: uneven, with fat-dark patches and gas bubbles."""
    bubbles = np.clip(grain + 0.5 * blotch + 0.1, 0, 2.6)
    return stool_hu + 12 * grain + 26 * blotch - 150 * bubbles * bubbles


def paint_gas(scene: Scene, lumen: Shape, share: float) -> None:
    """Gas in the front of a bowel's lumen, with a flat level; share 0..1 is how deep it reaches.

    lumen: of a tube drawn with_axis.
    """
    inside = lumen.f < -1.0
    if not inside.any():
        return
    assert lumen.axis_y is not None
    depth = float(-lumen.f[inside].min())
    level = lumen.axis_y + np.float32((2 * share - 1) * depth)
    scene.paint(lumen.inset(0.4).within(scene.y[lumen.box] - level), -960.0)
