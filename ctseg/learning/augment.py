"""Random patches: where their voxels come from (affine and elastic deformation, mirror), then intensity and
noise.

One `Sampling` is drawn per patch and used for everything that belongs to it: image, label, and what a
technique adds.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from ctseg.datasets.case import IGNORED
from ctseg.prediction.guide_input import touched


@dataclasses.dataclass(frozen=True)
class Strength:
    """How far each change may go.

    Angles in degrees, elastic shift in voxels, intensities on the 0..1 scale.
    """

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
    """Where the voxels of a patch come from: an upright box of the canvas, or free positions; then perhaps
    mirrored.

    positions: (3, D, H, W) canvas voxels, None for the upright box that begins at `start`. zoom: mm in the
    scan per mm in the patch.
    """

    start: np.ndarray
    size: tuple[int, int, int]
    positions: torch.Tensor | None
    zoom: float
    mirror: bool

    def image(self, volume: torch.Tensor) -> torch.Tensor:
        """Linearly interpolated (D, H, W) float32 of a canvas volume; the edge goes on outside."""
        return self.take(volume, "bilinear").float()

    def label(self, volume: torch.Tensor) -> torch.Tensor:
        """Nearest (D, H, W) of a canvas label map; numbers are not swapped by the mirror.

        Outside the canvas IGNORED: the image's edge goes on there, so that background would be a lie.
        """
        patch = self.take(volume, "nearest").to(volume.dtype)
        if self.positions is not None:
            last = torch.tensor(volume.shape).view(3, 1, 1, 1) - 0.5
            outside = ((self.positions < -0.5) | (self.positions > last)).any(0)
            patch[outside.flip(2) if self.mirror else outside] = IGNORED
        return patch

    def take(self, volume: torch.Tensor, mode: str) -> torch.Tensor:
        """The patch of a volume; the edge goes on outside."""
        if self.positions is None:
            patch = volume[tuple(slice(s, s + n) for s, n in zip(self.start, self.size))]
        else:
            patch = interpolate(volume, self.positions, mode)
        return patch.flip(2) if self.mirror else patch


def draw_sampling(
    shape: tuple[int, ...],
    centre: np.ndarray,
    size: tuple[int, int, int],
    strength: Strength,
    spacing: tuple[float, float, float],
    rng: np.random.Generator,
) -> Sampling:
    """A random sampling of a patch of `size` about the voxel `centre`, moved to lie inside a canvas of
    `shape`.

    spacing: voxel size in mm, so that rotations are rotations in space. W is the patient's left-right axis on
    every canvas.
    """
    limits = np.array(shape) - np.array(size)
    start = np.clip(np.round(np.asarray(centre) - np.array(size) / 2).astype(int), 0, np.maximum(limits, 0))
    mirror = bool(rng.random() < strength.mirror)
    deformed = rng.random() < strength.probability
    positions, zoom = deform(start, size, strength, spacing, rng) if deformed else (None, 1.0)
    return Sampling(start, size, positions, zoom, mirror)


def deform(
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
    matrix = np.linalg.inv(to_mm) @ rotation_matrix(angles) @ to_mm @ np.diag(zoom)
    d, h, w = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size)
    rows = torch.tensor(matrix, dtype=torch.float32)
    centre = torch.tensor(start + (np.array(size) - 1) / 2, dtype=torch.float32)
    # position[i] = sum_j matrix[i, j] * axis_j + centre[i], built by broadcasting
    positions = torch.stack(
        [
            row[0] * d[:, None, None] + row[1] * h[None, :, None] + row[2] * w[None, None, :] + middle
            for row, middle in zip(rows, centre)
        ]
    )
    if strength.elastic:
        coarse = torch.from_numpy(rng.normal(0, strength.elastic / 2, (1, 3, 4, 4, 4)).astype(np.float32))
        positions += F.interpolate(coarse, size=tuple(size), mode="trilinear", align_corners=True)[0]
    return positions, float(zoom.prod() ** (1 / 3))


def interpolate(volume: torch.Tensor, positions: torch.Tensor, mode: str) -> torch.Tensor:
    """(D, H, W) float32 of `volume` at `positions`; only the touched box is made float32."""
    box = []
    grid = torch.empty((*positions.shape[1:], 3))
    for axis, length in enumerate(volume.shape):
        low, high = touched(positions[axis], length)
        # grid_sample counts the axes backwards and from -1 to 1 between the outer edges of the box
        grid[..., 2 - axis] = 2 * (positions[axis] - low + 0.5) / (high - low) - 1
        box.append(slice(low, high))
    values = volume[tuple(box)].float()[None, None]
    return F.grid_sample(values, grid[None], mode=mode, padding_mode="border", align_corners=False)[0, 0]


def rotation_matrix(angles: np.ndarray) -> np.ndarray:
    """(3, 3) rotation about D, H and W by angles in radians."""
    (a, b, c), (x, y, z) = np.cos(angles), np.sin(angles)
    about_d = np.array([[1, 0, 0], [0, a, -x], [0, x, a]])
    about_h = np.array([[b, 0, y], [0, 1, 0], [-y, 0, b]])
    about_w = np.array([[c, -z, 0], [z, c, 0], [0, 0, 1]])
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
