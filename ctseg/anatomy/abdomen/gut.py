"""Stomach, duodenum, colon and small bowel of the upper abdomen: tubes that give way to the solid organs.

The standard ones stand in `gut.csv`; its coordinates are those of `people.py`.
"""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.abdomen.people import IDS, Person
from ctseg.anatomy.bowel import along_line, fill_cavity, paint_colon, paint_gas, paint_loops
from ctseg.anatomy.implicit import Scene, Shape
from ctseg.anatomy.shape_tables import read_table
from ctseg.anatomy.texture import Texture

SHAPES = read_table(__file__)


def paint_gut(
    scene: Scene, person: Person, rng: np.random.Generator, keep_out: np.ndarray, texture: Texture
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
    contents = [rng.uniform((0, 18), (1, 46)).tolist() for _ in loops]
    filled = [(line, fluid_hu, 0.35 + 0.5 * (gas - 0.75)) for line, (gas, fluid_hu) in zip(loops, contents)]
    paint_loops(scene, filled, hu["bowel_wall"], IDS["intestine"], keep_out, (1.8, 1.0), texture)

    wall = scene.tube(colon, blend_mm=2, with_axis=True)
    wall.f += 1.4 * texture.lumps[wall.box]
    wall = wall.cut(keep_out, 1.6)
    lumen = paint_colon(scene, wall, hu["bowel_wall"] - 4, IDS["colon"], hu["stool"], texture)
    paint_gas(scene, lumen, rng.uniform(0.15, 0.6))

    wall = scene.tube(duodenum, blend_mm=2).cut(keep_out, 1.2)
    wall.f += 1.0 * texture.blotch[wall.box]
    scene.paint(wall, hu["bowel_wall"], IDS["duodenum"])
    lumen = wall.inset(3.0 + 1.0 * texture.blotch[wall.box])
    scene.paint(lumen, hu["fluid"] + 8 * texture.grain[wall.box])

    wall = scene.tube(stomach, blend_mm=6)
    wall.f += 1.4 * texture.lumps[wall.box]
    paint_stomach(scene, person, wall.cut(keep_out, 0.3 + 0.6 * person.gap_mm), IDS["stomach"], texture)


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
