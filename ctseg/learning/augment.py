"""Random patches in one resampling pass: affine and elastic deformation, mirror, then intensity and noise."""

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


def sample_patch(
    image: torch.Tensor, label: torch.Tensor, centre: np.ndarray, size: tuple[int, int, int], strength: Strength,
    swaps: torch.Tensor, spacing: tuple[float, float, float], rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """One augmented patch: image (1, D, H, W) float32, label (D, H, W) uint8, and whether it was mirrored.

    image: (128, 128, 128) float; label: (128, 128, 128) uint8. centre: voxel at the patch's centre; the patch is
    moved to lie inside the tensor. swaps: (S+1,) label ids after a left/right mirror (W is the patient's
    left-right axis on every grid). spacing: voxel size in mm, so that rotations are rotations in space.
    """
    limits = np.array(image.shape) - np.array(size)
    start = np.clip(np.round(np.asarray(centre) - np.array(size) / 2).astype(int), 0, np.maximum(limits, 0))
    mirror = rng.random() < strength.mirror
    deform = rng.random() < strength.probability
    if deform:
        image_patch, label_patch = _deform(image, label, start, size, strength, spacing, rng)
    else:
        window = tuple(slice(s, s + n) for s, n in zip(start, size))
        image_patch, label_patch = image[window].float(), label[window]
    if mirror:
        image_patch = image_patch.flip(2)
        label_patch = swaps[label_patch.flip(2).long()]
    if strength.contrast or strength.brightness or strength.noise:
        image_patch = _shift_intensity(image_patch, strength, rng)
    return image_patch[None].contiguous(), label_patch.to(torch.uint8).contiguous(), mirror


def _deform(image: torch.Tensor, label: torch.Tensor, start: np.ndarray, size: tuple[int, int, int], strength: Strength,
            spacing: tuple[float, float, float], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate, scale and bend: one sampling grid in voxels of the tensor, used once for image and label."""
    angles = np.deg2rad(rng.uniform(-strength.angle, strength.angle, 3))
    zoom = np.exp(rng.uniform(-strength.scale, strength.scale)) * np.exp(rng.uniform(-0.3, 0.3, 3) * strength.scale)
    to_mm = np.diag(spacing)
    matrix = np.linalg.inv(to_mm) @ _rotation(angles) @ to_mm @ np.diag(zoom)
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size]
    rows = torch.tensor(matrix, dtype=torch.float32)
    centre = torch.tensor(start + (np.array(size) - 1) / 2, dtype=torch.float32)
    # position[i] = sum_j matrix[i, j] * axis_j + centre[i], built by broadcasting
    position = torch.stack([
        rows[i, 0] * axes[0][:, None, None] + rows[i, 1] * axes[1][None, :, None] + rows[i, 2] * axes[2][None, None, :] + centre[i] for i in range(3)
    ])
    if strength.elastic:
        coarse = torch.from_numpy(rng.normal(0, strength.elastic / 2, (1, 3, 4, 4, 4)).astype(np.float32))
        position += F.interpolate(coarse, size=tuple(size), mode="trilinear", align_corners=True)[0]
    # Only the touched box is handed to grid_sample, so the float32 copy stays small.
    low = [max(0, int(position[i].min().floor())) for i in range(3)]
    high = [min(image.shape[i], int(position[i].max().ceil()) + 1) for i in range(3)]
    box = tuple(slice(min(a, n - 1), max(b, a + 1)) for a, b, n in zip(low, high, image.shape))
    extent = [max(s.stop - s.start, 1) for s in box]
    grid = torch.stack([2 * (position[i] - box[i].start + 0.5) / extent[i] - 1 for i in (2, 1, 0)], dim=-1)[None]
    patch = F.grid_sample(image[box].float()[None, None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0, 0]
    moved = F.grid_sample(label[box].float()[None, None], grid, mode="nearest", padding_mode="zeros", align_corners=False)[0, 0]
    return patch, moved.to(torch.uint8)


def _rotation(angles: np.ndarray) -> np.ndarray:
    a, b, c = angles
    about_d = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_h = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_w = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_d @ about_h @ about_w


def _shift_intensity(image: torch.Tensor, strength: Strength, rng: np.random.Generator) -> torch.Tensor:
    gain = 1 + rng.uniform(-strength.contrast, strength.contrast)
    image = image * gain + (rng.uniform(-strength.brightness, strength.brightness) + 0.25 * (1 - gain))
    if strength.noise and rng.random() < 0.5:
        deviation = rng.uniform(0, strength.noise)
        image = image + torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32)) * deviation
    return image.clamp_(0, 1)


def mirror_table(pairs: list[tuple[int, int]], n_structures: int) -> torch.Tensor:
    """(S+1,) label ids after a left/right mirror: paired structures change places. An involution."""
    table = torch.arange(n_structures + 1)
    for left, right in pairs:
        table[left + 1], table[right + 1] = right + 1, left + 1
    return table
