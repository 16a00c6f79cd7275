"""Large vessels of abdomen and pelvis, and the twigs and nodes that make fat look like fat."""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.implicit import Scene, Shape
from ctseg.anatomy.labels import SIDES
from ctseg.anatomy.patients import Patient

# Centre line in template mm (left side) and radii.
ARTERIES = {
    "aorta": ([(6, -34, 260), (5, -34, 200), (3, -33, 148)], [9, 9, 8.5]),
    "iliac": (
        [
            (3, -33, 148),
            (16, -29, 128),
            (30, -18, 106),
            (40, -12, 90),
            (50, -22, 66),
            (60, -36, 38),
            (67, -52, 8),
            (73, -64, -20),
            (74, -66, -50),
            (70, -62, -90),
            (66, -54, -135),
        ],
        [7, 6, 5.6, 5.4, 5, 4.8, 4.6, 4.8, 4.6, 4.2, 4],
    ),
}
INTERNAL_ILIAC = (
    [(38, -10, 92), (43, 14, 76), (46, 34, 58), (46, 40, 36), (44, 32, 16)],
    [4.2, 3.8, 3.2, 2.6, 2.0],
)
VEINS = {
    "postcava": ([(-20, -28, 260), (-20, -29, 200), (-16, -24, 138)], [10.5, 10.5, 10]),
    "iliac": (
        [
            (-14, -24, 138),
            (8, -16, 118),
            (30, -4, 98),
            (42, 2, 80),
            (48, -10, 60),
            (56, -26, 34),
            (61, -42, 6),
            (63, -56, -20),
            (64, -58, -50),
            (66, -52, -90),
        ],
        [8, 7, 6.6, 6.4, 6, 5.8, 5.6, 5.8, 5.2, 4.6],
    ),
}


def vessel_shapes(scene: Scene) -> list[tuple[Shape, str, str | None]]:
    """The large vessels: (shape, tissue, label name or None), in the order in which they are painted."""
    shapes: list[tuple[Shape, str, str | None]] = []
    for side, word in SIDES.items():
        shapes.append((scene.tube(*INTERNAL_ILIAC, side=side, blend_mm=1), "artery", None))
        points, radii = VEINS["iliac"]
        if side == -1:  # the cava lies on the right: the right common vein is shorter and steeper
            points = [(16, -24, 138), (22, -14, 118), *points[2:]]
        shapes.append((scene.tube(points, radii, side=side, blend_mm=1), "vein", f"iliac_vein_{word}"))
        points, radii = ARTERIES["iliac"]
        shapes.append((scene.tube(points, radii, side=side, blend_mm=1), "artery", f"iliac_artery_{word}"))
    shapes.append((scene.tube(*VEINS["postcava"]), "vein", "postcava"))
    shapes.append((scene.tube(*ARTERIES["aorta"]), "artery", "aorta"))
    return shapes


def paint_small_vessels(scene: Scene, patient: Patient, rng: np.random.Generator) -> None:
    """Twigs and nodes in the fat: around rectum and prostate, in the mesentery, the groin and under the skin."""
    regions = (
        ((0, 50, 15), (32, 22, 45), 60),
        ((0, -45, 120), (75, 30, 60), 60),
        ((70, -80, 0), (25, 14, 40), 16),
        ((0, -90, 40), (110, 35, 90), 22),
        ((0, 5, -25), (30, 26, 14), 14),
    )
    for center, spread, count in regions:
        for _ in range(count):
            side = int(rng.choice([-1, 1]))
            start = np.array(center) * (side, 1, 1) + rng.normal(0, 0.6, 3) * spread
            steps = rng.normal(0, 1, (4, 3)).cumsum(axis=0) * rng.uniform(5, 10)
            radius = float(rng.uniform(0.8, 2.0))
            scene.paint(scene.tube(start + steps, radius), 0.6 * patient.hu["vein"] + 10, strength=0.8)
