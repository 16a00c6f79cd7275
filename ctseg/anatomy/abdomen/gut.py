"""Stomach, duodenum, colon and small bowel of the upper abdomen: tubes that give way to the solid organs.

The standard ones stand in `gut.csv`; its coordinates are those of `people.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctseg.anatomy.abdomen.people import Person
from ctseg.anatomy.implicit import Scene, Shape
from ctseg.anatomy.pelvis.bowel import along_line, fill_cavity
from ctseg.anatomy.pelvis.organs import paint_gas, stool
from ctseg.anatomy.shape_tables import read_table, tube
from ctseg.anatomy.texture import Texture

SHAPES = read_table(Path(__file__).with_suffix(".csv"))


def paint_gut(
    scene: Scene,
    person: Person,
    rng: np.random.Generator,
    keep_out: np.ndarray,
    ids: dict[str, int],
    texture: Texture,
) -> None:
    """Draw small bowel, colon, duodenum and stomach. keep_out: function of everything they must not enter."""
    hu = person.hu
    colon, duodenum, stomach = SHAPES["colon"], SHAPES["duodenum"], SHAPES["stomach"]
    colon = along_line(colon + rng.normal(0, 5, colon.shape) * (1, 1, 1, 0.25), 0.09)
    duodenum = along_line(duodenum, 0.05)
    stomach = stomach * (1, 1, 1, person.stomach) + rng.normal(0, 3, stomach.shape) * (1, 1, 1, 0)
    stomach = along_line(stomach, 0.02)
    taken = np.concatenate([colon, duodenum, stomach])
    loops = fill_cavity(scene, rng, taken, keep_out, (-95, -100, -175), (95, 0, -12))
    paint_loops(scene, person, rng, loops, keep_out, ids["intestine"], texture)

    wall = tube(scene, colon, blend_mm=2, with_axis=True)
    wall.f += 1.4 * texture.lumps[wall.box]
    wall = wall.cut(keep_out, 1.6)
    scene.paint(wall, hu["bowel_wall"] - 4, ids["colon"])
    lumen = wall.inset(2.6 + 0.8 * texture.blotch[wall.box])
    scene.paint(lumen, stool(person, texture.grain[wall.box] * 1.2 + 0.1, texture.blotch[wall.box]))
    paint_gas(scene, lumen.inset(0.5), rng.uniform(0.15, 0.6))

    wall = tube(scene, duodenum, blend_mm=2).cut(keep_out, 1.2)
    wall.f += 1.0 * texture.blotch[wall.box]
    scene.paint(wall, hu["bowel_wall"], ids["duodenum"])
    lumen = wall.inset(3.0 + 1.0 * texture.blotch[wall.box])
    scene.paint(lumen, hu["fluid"] + 8 * texture.grain[wall.box])

    wall = tube(scene, stomach, blend_mm=6)
    wall.f += 1.4 * texture.lumps[wall.box]
    paint_stomach(scene, person, wall.cut(keep_out, 0.3 + 0.6 * person.gap_mm), ids["stomach"], texture)


def paint_stomach(scene: Scene, person: Person, stomach: Shape, label: int, texture: Texture) -> None:
    """A wall with folds, food or fluid, and gas in front."""
    hu, blotch, grain = person.hu, texture.blotch[stomach.box], texture.grain[stomach.box]
    scene.paint(stomach, hu["stomach_wall"], label)
    lumen = stomach.inset(4.2 + 1.3 * blotch + 0.4 * grain)
    mean, uneven = {
        "food": (hu["food"], 12.0),
        "fluid": (hu["fluid"], 3.0),
        "contrast": (hu["gastric_contrast"], 10.0),
    }[person.stomach_content]
    content = mean + uneven * (blotch + 0.5 * grain)
    if person.stomach_content == "food":  # crumbs with air in them
        content = content - 120 * np.clip(grain + 0.6 * blotch - 1.9, 0, 2)
    scene.paint(lumen, content)
    y = scene.y[lumen.box]
    if (lumen.f < -1).any():  # gas above one level: the patient lies on the back
        level = float(np.quantile(y[lumen.f < -1], person.stomach_gas * 0.7))
        scene.paint(Shape(lumen.box, np.maximum(lumen.f + 0.4, y - level)), -960.0)


def paint_loops(
    scene: Scene,
    person: Person,
    rng: np.random.Generator,
    loops: list[np.ndarray],
    keep_out: np.ndarray,
    label: int,
    texture: Texture,
) -> None:
    """Loops of small bowel with fluid, in some with gas, each clear of those before it."""
    drawn = scene.empty()
    for line in loops:
        content, density = rng.uniform((0, 18), (1, 46)).tolist()
        loop = tube(scene, line, blend_mm=3, with_axis=True)
        loop.f += 1.1 * texture.lumps[loop.box]
        loop = loop.cut(keep_out, 1.8).cut(drawn, 1.0)
        np.minimum(drawn[loop.box], loop.f, out=drawn[loop.box])
        scene.paint(loop, person.hu["bowel_wall"] + 3 * texture.grain[loop.box], label)
        lumen = loop.inset(2.6)
        scene.paint(lumen, density + 6 * texture.blotch[loop.box])
        if content > 0.75:
            paint_gas(scene, lumen, 0.35 + 0.5 * (content - 0.75))
