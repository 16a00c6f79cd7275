"""Stomach, duodenum, colon and small bowel of the upper abdomen: tubes that give way to the solid organs.

The standard ones stand in `gut.csv`; its coordinates are those of `people.py`.
"""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.abdomen.people import Person
from ctseg.anatomy.bowel import along_line, free_space, paint_colon, paint_gas, paint_loops, random_loops
from ctseg.anatomy.implicit import Field, Scene, Shape
from ctseg.anatomy.shape_tables import read_table

SHAPES = read_table(__file__)


def paint_gut(scene: Scene, person: Person, keep_out: Field) -> None:
    """Draw small bowel, colon, duodenum and stomach. keep_out: function of everything they must not enter."""
    rng, (colon, duodenum, stomach) = scene.rng, (SHAPES[name] for name in ("colon", "duodenum", "stomach"))
    colon = along_line(colon + rng.normal(0, 5, colon.shape) * (1, 1, 1, 0.25), 0.09)
    duodenum = along_line(duodenum, 0.05)
    stomach = stomach * (1, 1, 1, person.stomach) + rng.normal(0, 3, stomach.shape) * (1, 1, 1, 0)
    stomach = along_line(stomach, 0.02)
    taken, room = np.concatenate([colon, duodenum, stomach]), free_space(scene, keep_out)
    loops = random_loops(rng, taken, (-95, -100, -175), (95, 0, -12), room)
    contents = [rng.uniform((0, 18), (1, 46)).tolist() for _ in loops]
    filled = [(line, fluid_hu, 0.35 + 0.5 * (gas - 0.75)) for line, (gas, fluid_hu) in zip(loops, contents)]
    paint_loops(scene, filled, keep_out, (1.8, 1.0))

    wall = scene.tube(colon, blend_mm=2, with_axis=True).inset(0, lumps=1.4).cut(keep_out, 1.6)
    paint_gas(paint_colon(wall, -4), rng.uniform(0.15, 0.6))

    wall = scene.tube(duodenum, blend_mm=2).cut(keep_out, 1.2).inset(0, blotch=1.0)
    wall.paint("bowel_wall", "duodenum")
    wall.inset(3.0, blotch=1.0).paint("fluid", grain=8)

    wall = scene.tube(stomach, blend_mm=6).inset(0, lumps=1.4)
    paint_stomach(wall.cut(keep_out, 0.3 + 0.6 * person.gap_mm), person)


def paint_stomach(stomach: Shape, person: Person) -> None:
    """A wall with folds, food or fluid, and gas in front."""
    stomach.paint("stomach_wall", "stomach")
    lumen = stomach.inset(4.2, blotch=1.3, grain=0.4)
    tissue, amount = {
        "food": ("food", 12.0),
        "fluid": ("fluid", 3.0),
        "contrast": ("gastric_contrast", 10.0),
    }[person.stomach_content]
    uneven = lumen.uneven(0, blotch=1, grain=0.5)
    content = person.hu[tissue] + amount * uneven
    if person.stomach_content == "food":  # crumbs with air in them
        content = content - 120 * np.clip(lumen.uneven(0, grain=1, blotch=0.6) - 1.9, 0, 2)
    lumen.paint(content)
    _, y, _ = lumen.at()
    if (lumen.f < -1).any():  # gas above one level: the patient lies on the back
        level = float(np.quantile(y[lumen.f < -1], person.stomach_gas * 0.7))
        lumen.inset(0.4).within(y - level).paint(-960.0)
