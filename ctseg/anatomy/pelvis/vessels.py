"""Large vessels of abdomen and pelvis. The standard ones stand in `vessels.csv`."""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.implicit import Scene, Shape
from ctseg.anatomy.labels import SIDES
from ctseg.anatomy.shape_tables import read_table

SHAPES = read_table(__file__)
TWIGS = SHAPES["twigs"]


def vessel_shapes(scene: Scene) -> list[tuple[Shape, str, str | None]]:
    """The large vessels: (shape, tissue, label name or None), in the order in which they are painted."""
    found: list[tuple[Shape, str, str | None]] = []
    for side, word in SIDES.items():
        vein = SHAPES["iliac_vein"]
        if side == -1:  # the cava lies on the right: the right common vein is shorter and steeper
            vein = np.vstack([[(16, -24, 138, 8), (22, -14, 118, 7)], vein[2:]])
        for nodes, tissue, name in (
            (SHAPES["internal_iliac"], "artery", None),
            (vein, "vein", f"iliac_vein_{word}"),
            (SHAPES["iliac_artery"], "artery", f"iliac_artery_{word}"),
        ):
            found.append((scene.tube(nodes, side=side, blend_mm=1), tissue, name))
    found.append((scene.tube(SHAPES["postcava"]), "vein", "postcava"))
    return [*found, (scene.tube(SHAPES["aorta"]), "artery", "aorta")]
