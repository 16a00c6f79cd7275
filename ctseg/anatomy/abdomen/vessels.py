"""Vessels of the upper abdomen: aorta and its branches, vena cava, portal vein and the trees in the liver."""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.abdomen.people import Person
from ctseg.anatomy.implicit import Scene, Shape
from ctseg.anatomy.texture import Texture

AORTA = (
    [
        (4, -32, -190),
        (6, -33, -110),
        (7, -32, -40),
        (6, -30, 10),
        (6, -26, 50),
        (12, -16, 95),
        (20, -6, 150),
        (22, -4, 220),
    ],
    [8.5, 9, 10, 10.5, 11, 11.5, 12, 12],
)
CAVA = (
    [
        (-20, -28, -190),
        (-21, -30, -110),
        (-23, -29, -40),
        (-26, -26, 5),
        (-28, -22, 45),
        (-26, -24, 85),
        (-22, -32, 112),
        (-18, -38, 136),
    ],
    [10.5, 11, 11.5, 12, 12.5, 13, 12, 12],
)
# centre line, radii, tissue
BRANCHES: tuple[tuple[list[tuple[float, float, float]], list[float], str], ...] = (
    (
        [(6, -38, 20), (4, -52, 24), (-18, -50, 26), (-32, -46, 24)],
        [3.6, 3.2, 2.6, 2.2],
        "artery",
    ),  # coeliac trunk, hepatic artery
    (
        [(4, -52, 24), (30, -32, 30), (60, -6, 38), (84, 14, 46)],
        [3.0, 2.8, 2.6, 2.2],
        "artery",
    ),  # splenic artery
    (
        [(6, -40, 4), (4, -54, -14), (2, -58, -60), (-4, -60, -130)],
        [4, 3.6, 3.4, 3.0],
        "artery",
    ),  # upper mesenteric artery
    (
        [(-12, -56, -130), (-11, -56, -60), (-9, -50, -8), (-10, -46, 4)],
        [5, 5.2, 6, 7],
        "portal",
    ),  # upper mesenteric vein
    (
        [(88, 18, 46), (62, 12, 34), (38, -10, 24), (12, -36, 12), (-10, -46, 4)],
        [3.2, 4, 4.2, 4.6, 5.5],
        "portal",
    ),  # splenic vein
    ([(-10, -46, 4), (-20, -42, 16), (-30, -38, 24)], [7, 7, 6.6], "portal"),  # portal vein
    ([(44, -2, -6), (26, -26, -2), (6, -44, -2), (-14, -34, 0)], [4, 4.4, 4.6, 5], "vein"),  # left renal vein
    ([(-44, -4, -20), (-32, -16, -16), (-24, -26, -10)], [4, 4.4, 4.8], "vein"),
    ([(14, -30, -4), (28, -14, -6), (44, 0, -6)], [2.6, 2.4, 2.2], "artery"),  # renal arteries
    ([(0, -28, -6), (-24, -10, -14), (-44, 2, -20)], [2.6, 2.4, 2.2], "artery"),
)
PORTAL_TREE = (
    ([(-30, -38, 24), (-52, -30, 28), (-72, -22, 30)], [6.4, 5.4, 4.6]),
    ([(-72, -22, 30), (-92, -34, 34), (-104, -40, 46)], [4.2, 3.2, 1.8]),
    ([(-72, -22, 30), (-88, 6, 36), (-98, 24, 40)], [4.2, 3.2, 1.8]),
    ([(-72, -22, 30), (-90, 0, 4), (-98, 10, -24)], [4.0, 3.0, 1.6]),
    ([(-72, -22, 30), (-88, -38, 2), (-94, -40, -24)], [4.0, 3.0, 1.6]),
    ([(-88, 6, 36), (-84, 22, 66), (-84, 22, 88)], [3.0, 2.4, 1.4]),
    ([(-92, -34, 34), (-84, -44, 66), (-80, -44, 90)], [3.0, 2.4, 1.4]),
    ([(-30, -38, 24), (-16, -52, 36), (0, -66, 42)], [5.6, 4.8, 4.0]),
    ([(0, -66, 42), (22, -70, 52), (40, -66, 60)], [3.6, 2.8, 1.6]),
    ([(0, -66, 42), (-12, -80, 40), (-30, -84, 34)], [3.2, 2.4, 1.4]),
)
HEPATIC_TREE = (
    ([(-26, -26, 98), (-48, -18, 92), (-70, -4, 76), (-88, 8, 54), (-96, 10, 20)], [6, 5.4, 4.4, 3.2, 1.6]),
    ([(-26, -30, 98), (-36, -42, 86), (-48, -56, 62), (-56, -62, 34)], [5.4, 4.8, 3.8, 1.8]),
    ([(-24, -32, 98), (-8, -46, 84), (14, -60, 66), (28, -66, 52)], [5, 4.2, 3.0, 1.5]),
    ([(-70, -4, 76), (-86, -22, 72), (-100, -30, 66)], [3.4, 2.6, 1.4]),
    ([(-48, -56, 62), (-62, -70, 56), (-74, -76, 50)], [3.0, 2.4, 1.4]),
)


def build_vessels(scene: Scene) -> list[tuple[Shape, str, str | None]]:
    """The vessels outside the liver: (shape, tissue, label name or None), in the order in which they are painted."""
    shapes: list[tuple[Shape, str, str | None]] = [
        (scene.tube(points, radii, blend_mm=1), tissue, None) for points, radii, tissue in BRANCHES
    ]
    shapes.append((scene.tube(*CAVA, blend_mm=1), "vein", "postcava"))
    shapes.append((scene.tube(*AORTA, blend_mm=1), "artery", "aorta"))
    return shapes


def paint_vessels(
    scene: Scene,
    vessels: list[tuple[Shape, str, str | None]],
    person: Person,
    ids: dict[str, int],
    texture: Texture,
) -> None:
    """Draw the vessels; chalk in the wall of the aorta."""
    for shape, tissue, name in vessels:
        scene.paint(shape, person.hu[tissue], ids[name] if name else None)
        if name == "aorta" and shape.f.size:
            chalk = np.maximum(np.abs(shape.f + 1.0) - 0.9, 3 * (1.3 - texture.blotch[shape.box]))
            scene.paint(Shape(shape.box, chalk.astype(np.float32)), 480.0)


def paint_liver_trees(scene: Scene, liver: Shape, person: Person) -> None:
    """Portal and hepatic veins inside the liver; the label stays the liver's, as annotators leave them in."""
    if not liver.f.size:
        return
    outside = -scene.spread(liver)
    for trees, tissue in ((PORTAL_TREE, "portal"), (HEPATIC_TREE, "hepatic")):
        for points, radii in trees:
            scene.paint(scene.tube(points, radii, blend_mm=1).cut(outside, 1.0), person.hu[tissue])


def paint_twigs(scene: Scene, person: Person, rng: np.random.Generator) -> None:
    """Small vessels and nodes in the fat of the mesentery, the omentum and around the kidneys."""
    regions = (
        ((0, -60, -70), (45, 22, 30), 55),
        ((0, -88, -40), (60, 8, 45), 20),
        ((58, 0, -30), (22, 26, 45), 16),
        ((-58, 0, -40), (22, 26, 40), 16),
    )
    for center, spread, count in regions:
        for _ in range(count):
            start = np.array(center) + rng.normal(0, 0.6, 3) * spread
            steps = rng.normal(0, 1, (4, 3)).cumsum(axis=0) * rng.uniform(4, 9)
            scene.paint(
                scene.tube(start + steps, float(rng.uniform(0.7, 1.8))),
                0.6 * person.hu["vein"] + 10,
                strength=0.8,
            )
