"""Vessels of the upper abdomen: aorta and its branches, vena cava, portal vein and the trees in the liver.

Their courses stand in `vessels.csv`, in the order of drawing, and `liver_vessels.csv`. The first word of a
name is the tissue.
"""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.implicit import Shape
from ctseg.anatomy.shape_tables import read_table

VESSELS = read_table(__file__)
LIVER_VESSELS = read_table(__file__, "liver_vessels")
_LABELS = {"artery aorta": "aorta", "vein cava": "postcava"}


def paint_vessels(vessels: dict[str, Shape]) -> None:
    """Draw the vessels outside the liver; chalk in the wall of the aorta."""
    for name, shape in vessels.items():
        shape.paint(name.split()[0], _LABELS.get(name))
    aorta = vessels["artery aorta"]
    chalk = Shape(aorta.scene, aorta.box, np.abs(aorta.f + 1.0) - 0.9)
    chalk.within(3 * aorta.uneven(1.3, {"blotch": -1.0})).paint(480.0)


def paint_liver_vessels(liver: Shape) -> None:
    """Portal and hepatic veins inside the liver; the label stays the liver's, as annotators leave them in."""
    for name, nodes in LIVER_VESSELS.items():
        liver.scene.tube(nodes, blend_mm=1).inside(liver, 1.0).paint(name.split()[0])
