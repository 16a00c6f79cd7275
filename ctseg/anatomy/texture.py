"""The random fields that make tissue uneven."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.ndimage import gaussian_filter

from ctseg.anatomy.implicit import Scene, Shape


@dataclasses.dataclass(frozen=True)
class Texture:
    """Random fields of the whole grid (D, H, W), deviation 1, with bumps of about 3, 14 and 40 mm."""

    grain: np.ndarray
    blotch: np.ndarray
    lumps: np.ndarray

    def on(self, shape: Shape) -> Texture:
        """The fields over the box of a shape."""
        return Texture(self.grain[shape.box], self.blotch[shape.box], self.lumps[shape.box])


def fields(scene: Scene, rng: np.random.Generator) -> Texture:
    """The random fields of one patient."""
    grain = rng.standard_normal(scene.shape, dtype=np.float32)
    grain = gaussian_filter(grain, np.maximum(1.5 / scene.spacing_mm, 0.35), truncate=3.0)
    grain /= np.float32(grain.std())
    return Texture(grain, scene.smooth_field(rng, 8.0), scene.smooth_field(rng, 22.0))
