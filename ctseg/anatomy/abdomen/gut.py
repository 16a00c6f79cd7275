"""Stomach, duodenum, colon and small bowel of the upper abdomen: tubes that give way to the solid organs."""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.abdomen.people import Person
from ctseg.anatomy.implicit import Scene, Shape
from ctseg.anatomy.pelvis.bowel import along_line, fill_cavity
from ctseg.anatomy.pelvis.organs import paint_gas, stool
from ctseg.anatomy.texture import Texture

# x, y, z, radius from the fundus to the pylorus
STOMACH = np.array(
    [
        (56, 8, 88, 28),
        (60, -10, 74, 32),
        (60, -34, 52, 31),
        (50, -56, 26, 28),
        (28, -70, 0, 24),
        (2, -68, -14, 18),
        (-16, -58, -8, 13),
        (-24, -52, -2, 9),
    ],
    dtype=float,
)
DUODENUM = np.array(
    [
        (-24, -52, -2, 10),
        (-40, -46, -2, 13),
        (-54, -36, -16, 13),
        (-56, -26, -40, 13),
        (-44, -24, -60, 13),
        (-14, -44, -68, 12),
        (20, -46, -58, 12),
        (38, -44, -40, 12),
    ],
    dtype=float,
)
COLON = np.array(
    [
        (-100, 8, -190, 24),
        (-100, 6, -130, 24),
        (-98, 0, -92, 23),
        (-84, -22, -72, 20),
        (-68, -60, -76, 19),
        (-30, -80, -90, 19),
        (18, -84, -86, 18),
        (60, -80, -56, 17),
        (90, -56, -16, 17),
        (104, -26, 8, 16),
        (108, 4, -8, 14),
        (106, 20, -48, 13),
        (104, 20, -110, 13),
        (102, 18, -190, 13),
    ],
    dtype=float,
)


def paint_gut(
    scene: Scene,
    person: Person,
    rng: np.random.Generator,
    keep_out: np.ndarray,
    ids: dict[str, int],
    texture: Texture,
) -> None:
    """Draw small bowel, colon, duodenum and stomach. keep_out: function of everything they must not enter."""
    shift = rng.normal(0, 5, COLON.shape) * (1, 1, 1, 0.25)
    colon, duodenum = along_line(COLON + shift, 0.09), along_line(DUODENUM, 0.05)
    stomach = along_line(
        STOMACH * (1, 1, 1, person.stomach) + rng.normal(0, 3, STOMACH.shape) * (1, 1, 1, 0), 0.02
    )
    taken = np.concatenate([colon, duodenum, stomach])
    _paint_loops(
        scene,
        person,
        rng,
        fill_cavity(scene, rng, taken, keep_out, (-95, -100, -175), (95, 0, -12)),
        keep_out,
        ids["intestine"],
        texture,
    )
    _paint_colon(scene, person, rng, colon, keep_out, ids["colon"], texture)
    tube = scene.tube(duodenum[:, :3], duodenum[:, 3], blend_mm=2, with_axis=True).cut(keep_out, 1.2)
    tube.f += 1.0 * texture.blotch[tube.box]
    scene.paint(tube, person.hu["bowel_wall"], ids["duodenum"])
    lumen = tube.inset(3.0 + 1.0 * texture.blotch[tube.box])
    scene.paint(lumen, person.hu["fluid"] + 8 * texture.grain[tube.box])
    _paint_stomach(scene, person, stomach, keep_out, ids["stomach"], texture)


def _paint_stomach(
    scene: Scene, person: Person, line: np.ndarray, keep_out: np.ndarray, label: int, texture: Texture
) -> None:
    """A wall with folds, food or fluid, and gas in front."""
    stomach = scene.tube(line[:, :3], line[:, 3], blend_mm=6, with_axis=True)
    if not stomach.f.size:
        return
    stomach.f += 1.4 * texture.lumps[stomach.box]
    stomach = stomach.cut(keep_out, 0.3 + 0.6 * person.gap_mm)
    scene.paint(stomach, person.hu["stomach_wall"], label)
    folds = 4.2 + 1.3 * texture.blotch[stomach.box] + 0.4 * texture.grain[stomach.box]
    lumen = stomach.inset(folds)
    mean, uneven = {
        "food": (person.hu["food"], 12.0),
        "fluid": (person.hu["fluid"], 3.0),
        "contrast": (person.hu["gastric_contrast"], 10.0),
    }[person.stomach_content]
    content = mean + uneven * (texture.blotch[stomach.box] + 0.5 * texture.grain[stomach.box])
    if person.stomach_content == "food":  # crumbs with air in them
        content = content - 120 * np.clip(
            texture.grain[stomach.box] + 0.6 * texture.blotch[stomach.box] - 1.9, 0, 2
        )
    scene.paint(lumen, content)
    _paint_level_gas(scene, lumen, person.stomach_gas)


def _paint_level_gas(scene: Scene, lumen: Shape, share: float) -> None:
    """Gas above one level for the whole organ: the patient lies on the back."""
    inside = lumen.f < -1
    if inside.any():
        level = np.quantile(scene.y[lumen.box][inside], share * 0.7)
        scene.paint(
            Shape(
                lumen.box,
                np.maximum(lumen.f + 0.4, scene.y[lumen.box] - np.float32(level)).astype(np.float32),
            ),
            -960.0,
        )


def _paint_colon(
    scene: Scene,
    person: Person,
    rng: np.random.Generator,
    line: np.ndarray,
    keep_out: np.ndarray,
    label: int,
    texture: Texture,
) -> None:
    tube = scene.tube(line[:, :3], line[:, 3], blend_mm=2, with_axis=True)
    if not tube.f.size:
        return
    tube.f += 1.4 * texture.lumps[tube.box]
    tube = tube.cut(keep_out, 1.6)
    scene.paint(tube, person.hu["bowel_wall"] - 4, label)
    lumen = tube.inset(2.6 + 0.8 * texture.blotch[tube.box])
    scene.paint(lumen, stool(person, texture.grain[tube.box] * 1.2 + 0.1, texture.blotch[tube.box]))
    paint_gas(scene, lumen.inset(0.5), float(rng.uniform(0.15, 0.6)))


def _paint_loops(
    scene: Scene,
    person: Person,
    rng: np.random.Generator,
    loops: list[np.ndarray],
    keep_out: np.ndarray,
    label: int,
    texture: Texture,
) -> None:
    drawn = scene.empty()
    for line in loops:
        content, density = rng.uniform(0, 1), rng.uniform(18, 46)
        loop = scene.tube(line[:, :3], line[:, 3], blend_mm=3, with_axis=True)
        if not loop.f.size:
            continue
        loop.f += 1.1 * texture.lumps[loop.box]
        loop = loop.cut(keep_out, 1.8).cut(drawn, 1.0)
        np.minimum(drawn[loop.box], loop.f, out=drawn[loop.box])
        scene.paint(loop, person.hu["bowel_wall"] + 3 * texture.grain[loop.box], label)
        lumen = loop.inset(2.6)
        scene.paint(lumen, density + 6 * texture.blotch[loop.box])
        if content > 0.75:
            paint_gas(scene, lumen, 0.35 + 0.5 * (content - 0.75))
