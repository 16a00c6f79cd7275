"""What surrounds the heart within a narrow field of view: lungs, chest wall, spine, liver, and the great vessels.

Template coordinates are LPS mm with the origin between the heart's valves.
"""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.heart.shape import Heart
from ctseg.anatomy.implicit import Scene, Shape, ellipsoid_distance, occupancy, smooth_minimum
from ctseg.anatomy.thin_tubes import TubeLayer, to_index

Nodes = tuple[tuple[float, ...], ...]
# x, y, z in the standard heart's LPS mm, radius, and how far the place follows when the heart's axis turns.
AORTA: Nodes = (
    (0, -1, 11, 13.0, 1),
    (-2, -3, 22, 14.0, 1),
    (-5, -4, 36, 13.5, 0.8),
    (-8, -1, 52, 13.0, 0.4),
    (-5, 8, 64, 12.5, 0),
    (4, 21, 70, 12.0, 0),
    (15, 37, 66, 11.5, 0),
    (24, 47, 54, 11.0, 0),
    (27, 50, 36, 10.5, 0),
    (27, 52, 0, 10.0, 0),
    (24, 53, -40, 9.5, 0),
    (20, 53, -75, 9.5, 0),
)
PULMONARY: dict[str, Nodes] = {
    "trunk": (
        (11, -28, 33, 12.0, 1),
        (14, -21, 38, 12.5, 1),
        (16, -8, 44, 12.5, 0.8),
        (13, 5, 48, 11.5, 0.6),
    ),
    "left": ((14, 5, 48, 10.5, 0.6), (27, 16, 48, 9.5, 0.2), (42, 25, 45, 8.0, 0), (56, 30, 38, 6.5, 0)),
    "right": (
        (12, 7, 47, 10.0, 0.6),
        (-6, 15, 44, 9.5, 0.4),
        (-26, 18, 41, 9.0, 0),
        (-44, 20, 37, 7.5, 0),
        (-58, 24, 30, 6.0, 0),
    ),
}
CAVA: tuple[Nodes, ...] = (
    ((-27, 1, 80, 9.0, 0), (-29, 1, 50, 9.0, 0), (-32, -1, 25, 9.5, 0.8), (-35, -5, 10, 10.0, 1)),
    ((-30, 10, -75, 11.0, 0), (-31, 7, -45, 11.0, 0.2), (-34, 0, -20, 11.0, 1)),
)
PULMONARY_VEINS: tuple[Nodes, ...] = (
    ((10, 26, 26, 6.0, 1), (28, 30, 30, 5.5, 0.5), (50, 32, 28, 4.5, 0)),
    ((12, 34, 6, 6.0, 1), (30, 38, 0, 5.0, 0.5), (52, 42, -8, 4.0, 0)),
    ((-22, 28, 22, 6.0, 1), (-38, 26, 22, 5.5, 0.5), (-58, 26, 18, 4.5, 0)),
    ((-22, 36, 4, 6.0, 1), (-40, 38, -4, 5.0, 0.5), (-60, 42, -14, 4.0, 0)),
)
HILA = ((-38.0, 22.0, 24.0), (38.0, 25.0, 28.0))


def great_tube(scene: Scene, heart: Heart, nodes: Nodes) -> Shape:
    """One of the tubes above."""
    return scene.tube(placed(heart, nodes), [node[3] for node in nodes], blend_mm=2.0)


def placed(heart: Heart, nodes: Nodes) -> np.ndarray:
    """Template points (n, 3) of nodes (x, y, z, radius, follows)."""
    table = np.array(nodes, dtype=np.float64)
    turned = heart.template(heart.from_standard(table[:, :3]))
    return table[:, :3] + table[:, 4:] * (turned - table[:, :3])


def paint_chest(
    scene: Scene, hu: dict[str, float], blotch: np.ndarray, sac: np.ndarray, rng: np.random.Generator
) -> None:
    """Everything outside the heart's sac but the great vessels. sac: its f on the whole grid."""
    x, y, z = scene.x, scene.y, scene.z
    fat = hu["fat"] + 7 * blotch
    scene.hu[:] = fat
    cavity = ellipsoid_distance(x, y + np.float32(4.0), z, (118.0, 73.0, 190.0))
    shell = np.maximum(-cavity, ellipsoid_distance(x, y + np.float32(5.0), z, (129.0, 83.0, 200.0)))
    scene.paint(scene.whole(shell), hu["muscle"] + 6 * blotch)
    _paint_lungs(scene, hu, blotch, cavity, sac, rng)
    for center, radius, tissue in (
        ((-42.0, 2.0, -122.0), 84.0, "liver"),
        ((42.0, 12.0, -128.0), 76.0, "spleen"),
    ):
        ball = scene.ellipsoid(center, (radius,) * 3)
        scene.paint(ball.cut(sac, 1.5), hu["muscle"])
        scene.paint(ball.inset(2.5).cut(sac, 3.0), hu[tissue])
    _paint_bones(scene, hu)
    _paint_gullet(scene, hu)


def _paint_lungs(
    scene: Scene,
    hu: dict[str, float],
    blotch: np.ndarray,
    cavity: np.ndarray,
    sac: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Air on both sides of the heart and of the upper mediastinum, with vessels that run out from the hilum."""
    x, y, z = scene.x, scene.y, scene.z
    column = ellipsoid_distance(
        x - np.float32(2.0), y - np.float32(18.0), z - np.float32(60.0), (36.0, 50.0, 60.0)
    )
    spine = np.hypot(x, y - np.float32(58.0)) - np.float32(30.0)
    front = np.maximum(np.abs(x) - np.float32(12.0), y + np.float32(55.0))  # fat behind the breastbone
    middle = smooth_minimum(smooth_minimum(sac, column, 8.0), np.minimum(spine, front), 5.0)
    lungs = np.maximum(cavity + np.float32(1.0), np.float32(1.0) - middle)
    scene.paint(scene.whole(lungs), hu["lung"] + 12 * blotch)
    layer = TubeLayer(scene)
    for hilum in HILA:
        for _ in range(22):
            way = rng.normal(0, 1, 3) * (1, 1, 1.2)
            way[0] = np.sign(hilum[0]) * abs(way[0])
            steps = way / np.linalg.norm(way) * rng.uniform(9, 13) + rng.normal(0, 3.5, (5, 3))
            nodes = np.array(hilum) + np.concatenate([np.zeros((1, 3)), steps.cumsum(axis=0)])
            layer.add(to_index(scene, nodes), np.linspace(rng.uniform(1.8, 3.2), 0.7, len(nodes)))
    share = layer.share * occupancy(lungs)
    scene.hu += share * (np.float32(hu["blood_right"]) - scene.hu)


def _paint_bones(scene: Scene, hu: dict[str, float]) -> None:
    """Vertebra, breastbone and the front ends of ribs."""
    bones = [scene.ellipsoid((0.0, 67.0, z), (19.0, 16.0, 10.5)) for z in range(-62, 90, 24)]
    bones.append(scene.tube([(0, -84, 90), (0, -84, 0), (0, -82, -45)], [6.5, 7.0, 5.0]))
    for side in (-1, 1):
        for z in range(-50, 90, 27):
            bones.append(
                scene.tube(
                    [(11, -83, z + 4), (32, -80, z - 2), (58, -71, z - 4), (84, -50, z + 6)], 4.5, side=side
                )
            )
    for bone in bones:
        scene.paint(bone, hu["cortex"])
        scene.paint(bone.inset(1.8), hu["marrow"])


def _paint_gullet(scene: Scene, hu: dict[str, float]) -> None:
    scene.paint(
        scene.tube([(2, 42, 90), (4, 41, 40), (6, 42, 0), (10, 38, -45), (16, 30, -75)], 7.0), hu["muscle"]
    )
    scene.paint(scene.tube([(-2, 26, 90), (-3, 28, 58)], 8.5), -990.0)  # windpipe and main bronchi
    for side, end in ((1, (36, 28, 34)), (-1, (-36, 27, 30))):
        scene.paint(scene.tube([(-3, 28, 58), (side * 14 - 1, 28, 48), end], [7.5, 6.5, 5.0]), hu["muscle"])
        scene.paint(scene.tube([(-3, 28, 58), (side * 14 - 1, 28, 48), end], [6.0, 5.0, 3.5]), -985.0)


def mammary_arteries(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two thin vessels beside the breastbone: template points and radii."""
    found = []
    for side in (-1, 1):
        z = np.linspace(85, -70, 40)
        x = side * (19 + rng.normal(0, 1.5) + np.cumsum(rng.normal(0, 0.35, 40)))
        found.append(
            (
                np.stack([x, np.full(40, -72.5) + np.cumsum(rng.normal(0, 0.08, 40)), z], axis=1),
                np.linspace(1.4, 1.0, 40),
            )
        )
    return found
