"""What surrounds the heart within a narrow field of view: lungs, chest wall, spine, liver, the great vessels.

Template coordinates are LPS mm with the origin between the heart's valves. The tubes stand in `chest.csv` and
`great_vessels.csv`.
"""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.chest_scan import blend
from ctseg.anatomy.heart.shape import FRAME, Heart
from ctseg.anatomy.implicit import Scene, Shape, ellipsoid_distance, occupancy, smooth_minimum
from ctseg.anatomy.shape_tables import read_table
from ctseg.anatomy.thin_tubes import TubeLayer, to_index

TUBES = read_table(__file__)
GREAT_VESSELS = read_table(__file__, "great_vessels")


def great_vessels(scene: Scene, heart: Heart, kind: str) -> list[Shape]:
    """The great vessels whose names begin with `kind`."""
    return [
        scene.tube(placed(heart, nodes), nodes[:, 3], blend_mm=2.0)
        for name, nodes in GREAT_VESSELS.items()
        if name.startswith(kind)
    ]


def placed(heart: Heart, nodes: np.ndarray) -> np.ndarray:
    """Template points (n, 3) of rows x, y, z, radius, follows."""
    standard = nodes[:, :3]
    turned = standard @ FRAME.T @ heart.basis
    return standard + nodes[:, 4:] * (turned - standard)


def paint_chest(
    scene: Scene, hu: dict[str, float], blotch: np.ndarray, sac: np.ndarray, rng: np.random.Generator
) -> None:
    """Everything outside the heart's sac but the great vessels. sac: its f on the whole grid."""
    x, y, z = scene.x, scene.y, scene.z
    scene.hu[:] = hu["fat"] + 7 * blotch
    cavity = ellipsoid_distance(x, y + 4.0, z, (118.0, 73.0, 190.0))
    shell = np.maximum(-cavity, ellipsoid_distance(x, y + 5.0, z, (129.0, 83.0, 200.0)))
    scene.paint(scene.whole(shell), hu["muscle"] + 6 * blotch)
    paint_lungs(scene, hu, blotch, cavity, sac, rng)
    for center, radius, tissue in (((-42, 2, -122), 84.0, "liver"), ((42, 12, -128), 76.0, "spleen")):
        ball = scene.ellipsoid(center, (radius,) * 3)
        scene.paint(ball.cut(sac, 1.5), hu["muscle"])
        scene.paint(ball.inset(2.5).cut(sac, 3.0), hu[tissue])
    paint_bones(scene, hu)
    scene.paint(scene.tube(TUBES["gullet"]), hu["muscle"])
    scene.paint(scene.tube(TUBES["windpipe"]), -990.0)
    for name in ("left bronchus", "right bronchus"):
        scene.paint(scene.tube(TUBES[name]), hu["muscle"])
        scene.paint(scene.tube(TUBES[name] - (0, 0, 0, 1.5)), -985.0)


def paint_lungs(
    scene: Scene,
    hu: dict[str, float],
    blotch: np.ndarray,
    cavity: np.ndarray,
    sac: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Air on both sides of heart and upper mediastinum, with vessels that run out from the hilum."""
    x, y, z = scene.x, scene.y, scene.z
    column = ellipsoid_distance(x - 2.0, y - 18.0, z - 60.0, (36.0, 50.0, 60.0))
    spine = np.hypot(x, y - 58.0) - 30.0
    front = np.maximum(np.abs(x) - 12.0, y + 55.0)  # fat behind the breastbone
    middle = smooth_minimum(smooth_minimum(sac, column, 8.0), np.minimum(spine, front), 5.0)
    lungs = np.maximum(cavity + 1.0, 1.0 - middle)
    scene.paint(scene.whole(lungs), hu["lung"] + 12 * blotch)
    layer = TubeLayer(scene)
    for hilum in TUBES["hilum"]:
        for _ in range(22):
            way = rng.normal(0, 1, 3) * (1, 1, 1.2)
            way[0] = np.sign(hilum[0]) * abs(way[0])
            steps = way / np.linalg.norm(way) * rng.uniform(9, 13) + rng.normal(0, 3.5, (5, 3))
            nodes = hilum + np.concatenate([np.zeros((1, 3)), steps.cumsum(axis=0)])
            layer.add(to_index(scene, nodes), np.linspace(rng.uniform(1.8, 3.2), 0.7, len(nodes)))
    blend(scene.hu, layer.share * occupancy(lungs), hu["blood_right"])


def paint_bones(scene: Scene, hu: dict[str, float]) -> None:
    """Vertebrae, breastbone and the front ends of ribs."""
    bones = [scene.ellipsoid((0.0, 67.0, z), (19.0, 16.0, 10.5)) for z in range(-62, 90, 24)]
    bones.append(scene.tube(TUBES["breastbone"]))
    for side in (-1, 1):
        bones += [scene.tube(TUBES["rib"] + (0, 0, z, 0), side=side) for z in range(-50, 90, 27)]
    for bone in bones:
        scene.paint(bone, hu["cortex"])
        scene.paint(bone.inset(1.8), hu["marrow"])


def mammary_arteries(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two thin vessels beside the breastbone: template points and radii."""
    found = []
    for side in (-1, 1):
        x = side * (19 + rng.normal(0, 1.5) + np.cumsum(rng.normal(0, 0.35, 40)))
        y = -72.5 + np.cumsum(rng.normal(0, 0.08, 40))
        found.append((np.stack([x, y, np.linspace(85, -70, 40)], axis=1), np.linspace(1.4, 1.0, 40)))
    return found
