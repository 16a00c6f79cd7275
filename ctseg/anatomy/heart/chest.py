"""What surrounds the heart within a narrow field of view: lungs, chest wall, spine, liver, the great vessels.

Template coordinates are LPS mm with the origin between the heart's valves. The tubes stand in `chest.csv` and
`great_vessels.csv`.
"""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.heart.shape import FRAME, Heart
from ctseg.anatomy.implicit import Field, Points, Scene, Shape, ellipsoid_distance, occupancy, smooth_minimum
from ctseg.anatomy.shape_tables import read_table
from ctseg.anatomy.thin_tubes import Line, TubeLayer

TUBES = read_table(__file__)
GREAT_VESSELS = read_table(__file__, "great_vessels")


def great_vessels(scene: Scene, heart: Heart, kind: str) -> list[Shape]:
    """The great vessels whose names begin with `kind`."""
    return [
        scene.tube(placed(heart, nodes), nodes[:, 3], blend_mm=2.0)
        for name, nodes in GREAT_VESSELS.items()
        if name.startswith(kind)
    ]


def placed(heart: Heart, nodes: Points) -> Points:
    """Template points (n, 3) of rows x, y, z, radius, follows."""
    standard = nodes[:, :3]
    turned = standard @ FRAME.T @ heart.basis
    return standard + nodes[:, 4:] * (turned - standard)


def paint_chest(scene: Scene, sac: Field) -> None:
    """Everything outside the heart's sac but the great vessels. sac: its f on the whole grid."""
    x, y, z = scene.x, scene.y, scene.z
    scene.hu[:] = scene.tissue["fat"] + 7 * scene.texture["blotch"]
    cavity = ellipsoid_distance(x, y + 4.0, z, (118.0, 73.0, 190.0))
    shell = np.maximum(-cavity, ellipsoid_distance(x, y + 5.0, z, (129.0, 83.0, 200.0)))
    scene.whole(shell).paint("muscle", blotch=6)
    paint_lungs(scene, cavity, sac)
    for center, radius, tissue in (((-42, 2, -122), 84.0, "liver"), ((42, 12, -128), 76.0, "spleen")):
        organ = scene.ellipsoid(center, (radius,) * 3)
        organ.cut(sac, 1.5).paint("muscle")
        organ.inset(2.5).cut(sac, 3.0).paint(tissue)
    bones = [scene.ellipsoid((0.0, 67.0, z), (19.0, 16.0, 10.5)) for z in range(-62, 90, 24)]
    bones.append(scene.tube(TUBES["breastbone"]))
    bones += [
        scene.tube(TUBES["rib"] + (0, 0, z, 0), side=side) for side in (-1, 1) for z in range(-50, 90, 27)
    ]
    for bone in bones:
        bone.paint("cortex")
        bone.inset(1.8).paint("marrow")
    scene.tube(TUBES["gullet"]).paint("muscle")
    scene.tube(TUBES["windpipe"]).paint(-990.0)
    for name in ("left bronchus", "right bronchus"):
        scene.tube(TUBES[name]).paint("muscle")
        scene.tube(TUBES[name] - (0, 0, 0, 1.5)).paint(-985.0)


def paint_lungs(scene: Scene, cavity: Field, sac: Field) -> None:
    """Air on both sides of heart and upper mediastinum, with vessels that run out from the hilum."""
    x, y, z, rng = scene.x, scene.y, scene.z, scene.rng
    column = ellipsoid_distance(x - 2.0, y - 18.0, z - 60.0, (36.0, 50.0, 60.0))
    spine = np.hypot(x, y - 58.0) - 30.0
    front = np.maximum(np.abs(x) - 12.0, y + 55.0)  # fat behind the breastbone
    middle = smooth_minimum(smooth_minimum(sac, column, 8.0), np.minimum(spine, front), 5.0)
    lungs = np.maximum(cavity + 1.0, 1.0 - middle)
    scene.whole(lungs).paint("lung", blotch=12)
    lines = []
    for hilum in TUBES["hilum"]:
        for _ in range(22):
            way = rng.normal(0, 1, 3) * (1, 1, 1.2)
            way[0] = np.sign(hilum[0]) * abs(way[0])
            steps = way / np.linalg.norm(way) * rng.uniform(9, 13) + rng.normal(0, 3.5, (5, 3))
            nodes = hilum + np.concatenate([np.zeros((1, 3)), steps.cumsum(axis=0)])
            lines.append((nodes, np.linspace(rng.uniform(1.8, 3.2), 0.7, len(nodes))))
    layer = TubeLayer(scene)
    layer.add_lines(lines)
    scene.blend(layer.share * occupancy(lungs), "blood_right")


def mammary_arteries(rng: np.random.Generator) -> list[Line]:
    """Two thin vessels beside the breastbone: template points and radii."""
    found = []
    for side in (-1, 1):
        x = side * (19 + rng.normal(0, 1.5) + np.cumsum(rng.normal(0, 0.35, 40)))
        y = -72.5 + np.cumsum(rng.normal(0, 0.08, 40))
        found.append((np.stack([x, y, np.linspace(85, -70, 40)], axis=1), np.linspace(1.4, 1.0, 40)))
    return found
