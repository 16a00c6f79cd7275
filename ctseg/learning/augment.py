"""Random patches: where their voxels come from (affine and elastic deformation, mirror), then intensity and noise.

One `Sampling` is drawn per patch and used for everything that belongs to it: image, label, and what a technique adds.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class Strength:
    """How far each change may go. Angles in degrees, elastic shift in voxels, intensities on the 0..1 scale."""

    probability: float  # of the spatial deformation
    angle: float
    scale: float
    elastic: float
    mirror: float  # probability of a left/right mirror; paired structures swap their labels
    brightness: float
    contrast: float
    noise: float


STRENGTHS = {
    "none": Strength(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "light": Strength(0.4, 8.0, 0.1, 0.0, 0.5, 0.02, 0.05, 0.01),
    "standard": Strength(0.7, 12.0, 0.15, 3.0, 0.5, 0.03, 0.1, 0.02),
}


@dataclasses.dataclass
class Sampling:
    """Where the voxels of a patch come from: an upright box of the canvas, or free positions; then perhaps mirrored.

    positions: (3, D, H, W) canvas voxels, None for the upright box that begins at `start`. zoom: mm in the scan per
    mm in the patch.
    """

    start: np.ndarray
    size: tuple[int, int, int]
    positions: torch.Tensor | None
    zoom: float
    mirror: bool

    def image(self, volume: torch.Tensor) -> torch.Tensor:
        """Linearly interpolated (D, H, W) float32 of a canvas volume; the edge goes on outside."""
        return self._take(volume, "bilinear", "border").float()

    def label(self, volume: torch.Tensor) -> torch.Tensor:
        """Nearest (D, H, W) of a canvas label map, 0 outside; numbers are not swapped by the mirror."""
        return self._take(volume, "nearest", "zeros").to(volume.dtype)

    def _take(self, volume: torch.Tensor, mode: str, padding: str) -> torch.Tensor:
        if self.positions is None:
            patch = volume[tuple(slice(s, s + n) for s, n in zip(self.start, self.size))]
        else:
            patch = _interpolate(volume, self.positions, mode, padding)
        return patch.flip(2) if self.mirror else patch


def draw_sampling(
    shape: tuple[int, ...],
    centre: np.ndarray,
    size: tuple[int, int, int],
    strength: Strength,
    spacing: tuple[float, float, float],
    rng: np.random.Generator,
) -> Sampling:
    """A random sampling of a patch of `size` about the voxel `centre`, moved to lie inside a canvas of `shape`.

    spacing: voxel size in mm, so that rotations are rotations in space. W is the patient's left-right axis on every
    canvas.
    """
    limits = np.array(shape) - np.array(size)
    start = np.clip(np.round(np.asarray(centre) - np.array(size) / 2).astype(int), 0, np.maximum(limits, 0))
    mirror = bool(rng.random() < strength.mirror)
    if rng.random() < strength.probability:
        positions, zoom = _deformed(start, size, strength, spacing, rng)
        return Sampling(start, size, positions, zoom, mirror)
    return Sampling(start, size, None, 1.0, mirror)


def _deformed(
    start: np.ndarray,
    size: tuple[int, int, int],
    strength: Strength,
    spacing: tuple[float, float, float],
    rng: np.random.Generator,
) -> tuple[torch.Tensor, float]:
    """Rotated, scaled and bent positions (3, D, H, W) in voxels of the canvas, and the mean scale."""
    angles = np.deg2rad(rng.uniform(-strength.angle, strength.angle, 3))
    zoom = np.exp(rng.uniform(-strength.scale, strength.scale)) * np.exp(
        rng.uniform(-0.3, 0.3, 3) * strength.scale
    )
    to_mm = np.diag(spacing)
    matrix = np.linalg.inv(to_mm) @ _rotation(angles) @ to_mm @ np.diag(zoom)
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size]
    rows = torch.tensor(matrix, dtype=torch.float32)
    centre = torch.tensor(start + (np.array(size) - 1) / 2, dtype=torch.float32)
    # position[i] = sum_j matrix[i, j] * axis_j + centre[i], built by broadcasting
    positions = torch.stack(
        [
            rows[i, 0] * axes[0][:, None, None]
            + rows[i, 1] * axes[1][None, :, None]
            + rows[i, 2] * axes[2][None, None, :]
            + centre[i]
            for i in range(3)
        ]
    )
    if strength.elastic:
        coarse = torch.from_numpy(rng.normal(0, strength.elastic / 2, (1, 3, 4, 4, 4)).astype(np.float32))
        positions += F.interpolate(coarse, size=tuple(size), mode="trilinear", align_corners=True)[0]
    return positions, float(zoom.prod() ** (1 / 3))


def _interpolate(volume: torch.Tensor, positions: torch.Tensor, mode: str, padding: str) -> torch.Tensor:
    """(D, H, W) float32 of `volume` at `positions`; only the touched box is made float32."""
    low = [max(0, int(positions[i].min().floor())) for i in range(3)]
    high = [min(volume.shape[i], int(positions[i].max().ceil()) + 1) for i in range(3)]
    box = tuple(slice(min(a, n - 1), max(b, a + 1)) for a, b, n in zip(low, high, volume.shape))
    extent = [max(s.stop - s.start, 1) for s in box]
    grid = torch.stack([2 * (positions[i] - box[i].start + 0.5) / extent[i] - 1 for i in (2, 1, 0)], dim=-1)[
        None
    ]
    return F.grid_sample(
        volume[box].float()[None, None], grid, mode=mode, padding_mode=padding, align_corners=False
    )[0, 0]


def _rotation(angles: np.ndarray) -> np.ndarray:
    a, b, c = angles
    about_d = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_h = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_w = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_d @ about_h @ about_w


def shift_intensity(image: torch.Tensor, strength: Strength, rng: np.random.Generator) -> torch.Tensor:
    """The image (any shape, 0..1) with another gain and brightness, and noise in half of the cases.

    Unchanged at strength "none".
    """
    if not (strength.contrast or strength.brightness or strength.noise):
        return image
    gain = 1 + rng.uniform(-strength.contrast, strength.contrast)
    image = image * gain + (rng.uniform(-strength.brightness, strength.brightness) + 0.25 * (1 - gain))
    if strength.noise and rng.random() < 0.5:
        deviation = rng.uniform(0, strength.noise)
        image = (
            image + torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32)) * deviation
        )
    return image.clamp_(0, 1)
