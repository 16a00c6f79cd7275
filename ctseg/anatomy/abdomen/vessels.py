"""Vessels of the upper abdomen: aorta and its branches, vena cava, portal vein and the trees in the liver.

Their courses stand in `vessels.csv` and `liver_vessels.csv`.
"""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.abdomen.people import IDS, Person
from ctseg.anatomy.implicit import Scene, Shape
from ctseg.anatomy.shape_tables import read_table
from ctseg.anatomy.texture import Texture

VESSELS = read_table(__file__)
LIVER_VESSELS = read_table(__file__, "liver_vessels")
_LABELS = {"artery aorta": "aorta", "vein cava": "postcava"}
TWIGS = read_table(__file__, "twigs")["twigs"]


def build_vessels(scene: Scene) -> dict[str, Shape]:
    """The vessels outside the liver by name, in the order in which they are painted."""
    return {name: scene.tube(nodes, blend_mm=1) for name, nodes in VESSELS.items()}


def paint_vessels(scene: Scene, vessels: dict[str, Shape], person: Person, texture: Texture) -> None:
    """Draw the vessels; chalk in the wall of the aorta."""
    for name, shape in vessels.items():
        scene.paint(shape, person.hu[name.split()[0]], IDS[_LABELS[name]] if name in _LABELS else None)
    aorta = vessels["artery aorta"]
    chalk = np.maximum(np.abs(aorta.f + 1.0) - 0.9, 3 * (1.3 - texture.blotch[aorta.box]))
    scene.paint(Shape(aorta.box, chalk), 480.0)


def paint_liver_vessels(scene: Scene, liver: Shape, person: Person) -> None:
    """Portal and hepatic veins inside the liver; the label stays the liver's, as annotators leave them in."""
    outside = -scene.spread(liver)
    for name, nodes in LIVER_VESSELS.items():
        scene.paint(scene.tube(nodes, blend_mm=1).cut(outside, 1.0), person.hu[name.split()[0]])
