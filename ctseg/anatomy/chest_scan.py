"""How the chest is scanned (airway, heart): the grid around the organ, the scanner, the axes."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.ndimage import gaussian_filter

from ctseg.anatomy.implicit import Scene
from ctseg.geometry.volume import CANONICAL_DIRECTIONS, Volume, reorient


@dataclasses.dataclass(frozen=True)
class ChestScan:
    """A scan with its axes in some order. spacing_mm: slice, row, column, before its axes are reordered."""

    spacing_mm: tuple[float, float, float]
    noise_hu: float
    blur_mm: float
    order: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    def scene(
        self,
        extent_mm: np.ndarray,
        middle_mm: np.ndarray,
        to_template: np.ndarray,
        warp_mm: float,
        rng: np.random.Generator,
    ) -> Scene:
        """The grid of `extent_mm` (z, y, x) about a place in LPS mm. to_template: (3, 3), from LPS mm."""
        shape = np.round(extent_mm / self.spacing_mm).astype(int)
        affine, pose = np.eye(4), np.eye(4)
        affine[:3, :3] = CANONICAL_DIRECTIONS.T * np.array(self.spacing_mm)
        affine[:3, 3] = middle_mm - affine[:3, :3] @ ((shape - 1) / 2)
        pose[:3, :3] = to_template
        d, h, w = shape.tolist()
        return Scene((d, h, w), affine, pose, rng, warp_mm)

    def acquire(self, scene: Scene, grain: tuple[float, float, float], rng: np.random.Generator) -> None:
        """Blur, noise with the grain of a reconstruction kernel (voxels), whole HU within 12 bit."""
        scene.hu = gaussian_filter(scene.hu, self.blur_mm / scene.spacing_mm, truncate=3.0)
        noise = gaussian_filter(rng.standard_normal(scene.shape, dtype=np.float32), grain, truncate=3.0)
        scene.hu += noise * np.float32(self.noise_hu / noise.std())
        np.clip(np.rint(scene.hu, out=scene.hu), -1024, 3071, out=scene.hu)

    def stored(self, scene: Scene, array: np.ndarray) -> Volume:
        """An array on the scene's grid as the scan's file holds it: its axes reordered."""
        return reorient(Volume(array, scene.affine), self.order, self.flips)


def blend(picture: np.ndarray, share: np.ndarray, hu: float | np.ndarray) -> None:
    """Mix a tissue into the picture by its share of each voxel (0..1), in place."""
    picture += share * (hu - picture)
