"""What the trunk is in every task: its outline, skin, fat with its twigs, and muscle streaked with fat."""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.implicit import Scene, at_heights, smooth_minimum
from ctseg.anatomy.texture import Texture

ROUNDNESS = 2.3  # exponent of the outline: 2 an ellipse, more a rounded rectangle


def body_outline(scene: Scene, outline: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A rounded cross-section on the whole grid: f, y about its middle, how far backwards it lies (-1..1).

    outline: rows of z, half width, centre y, depth to the front and to the back, in mm.
    """
    width, middle, to_front, to_back = at_heights(outline, scene.z)
    x, y = scene.x, scene.y - middle
    level = (np.abs(x) / width) ** ROUNDNESS + (np.abs(y) / np.where(y < 0, to_front, to_back)) ** ROUNDNESS
    level = np.maximum(level, 1e-6) ** (1 / ROUNDNESS)
    distance = np.sqrt(x * x + y * y)
    return distance * (1 - 1 / level), y, np.clip(y / np.maximum(distance, 1), -1, 1)


def flattened(scene: Scene, skin: np.ndarray, fat_mm: float) -> np.ndarray:
    """The skin's function with the back flattened by the table."""
    return -smooth_minimum(-skin, np.float32(102 + fat_mm * 0.95) - scene.y, 16.0)


def paint_skin_and_fat(scene: Scene, skin: np.ndarray, hu: dict[str, float], texture: Texture) -> None:
    """Skin, then fat with faint strands everywhere inside."""
    body = scene.whole(skin)
    strand = np.exp(-(((texture.blotch + 0.25 * texture.grain) / 0.12) ** 2))
    scene.paint(body, hu["skin"])
    scene.paint(body.inset(2.2), hu["fat"] + 3 * texture.blotch + 14 * strand)


def muscle_hu(scene: Scene, hu: dict[str, float], texture: Texture, lean: tuple[float, float]) -> np.ndarray:
    """Attenuation of muscle on the whole grid, streaked with fat; lean: how little, in the back,
    elsewhere."""
    threshold = np.where(scene.y > 40, *lean)
    fatty = np.clip(texture.grain * 0.8 + texture.blotch * 0.4 - threshold, 0, 1.5)
    return hu["muscle"] + 3 * texture.blotch - 34 * fatty


def paint_twigs(
    scene: Scene,
    rng: np.random.Generator,
    regions: np.ndarray,
    vein_hu: float,
    *,
    step_mm: tuple[float, float],
    radius_mm: tuple[float, float],
    mirrored: bool,
) -> None:
    """Small vessels and nodes that make fat look like fat.

    regions: rows of centre, spread along each axis, and number of twigs; mirrored: on either side by chance.
    """
    for region in regions:
        for _ in range(int(region[6])):
            side = int(rng.choice([-1, 1])) if mirrored else 1
            start = region[:3] * (side, 1, 1) + rng.normal(0, 0.6, 3) * region[3:6]
            steps = rng.normal(0, 1, (4, 3)).cumsum(axis=0) * rng.uniform(*step_mm)
            twig = scene.tube(start + steps, rng.uniform(*radius_mm))
            scene.paint(twig, 0.6 * vein_hu + 10, strength=0.8)
