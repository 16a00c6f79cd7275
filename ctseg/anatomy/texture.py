"""What the scanner adds: table, noise, streaks beside metal, and the edge of the field of view."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from ctseg.anatomy.implicit import Scene, Shape, occupancy
from ctseg.anatomy.patients import Body, Protocol


@dataclasses.dataclass(frozen=True)
class Texture:
    """Random fields of the whole grid (D, H, W), deviation 1, with bumps of about 3, 14 and 40 mm."""

    grain: np.ndarray
    blotch: np.ndarray
    lumps: np.ndarray


def fields(scene: Scene, rng: np.random.Generator) -> Texture:
    """The random fields of one patient."""
    grain = rng.standard_normal(scene.shape, dtype=np.float32)
    grain = gaussian_filter(grain, np.maximum(1.5 / scene.spacing_mm, 0.35), truncate=3.0)
    grain /= np.float32(grain.std())
    return Texture(grain, scene.smooth_field(rng, 8.0), scene.smooth_field(rng, 22.0))


def paint_table(scene: Scene, patient: Body) -> None:
    """The couch: a thin curved plate under the back and a foam mat, in scanner coordinates."""
    back = 104 + patient.fat_mm * 0.95
    sag = scene.x * scene.x * np.float32(1 / 1500.0)
    top = np.float32(back + 16) - sag
    wide = np.abs(scene.x) - 215
    mat = np.maximum(np.maximum(top - 12 - scene.y, scene.y - top), wide)
    scene.paint(scene.whole(mat), -940.0)
    for depth in (0.0, 26.0):
        plate = np.maximum(np.abs(scene.y - top - depth * (1 - (scene.x / 230) ** 2)) - 0.9, wide)
        scene.paint(scene.whole(plate), -110.0)


def add_noise(
    scene: Scene,
    rng: np.random.Generator,
    protocol: Protocol,
    inside: np.ndarray,
    *,
    streaks_z_mm: float = -5.0,
    streak_share: float = 0.45,
) -> None:
    """Quantum noise with the grain of a reconstruction kernel, strongest deep in the body.

    Between the hips the rays cross much bone: there, about the height streaks_z_mm, the noise runs in horizontal
    streaks of streak_share times its level. inside: the skin's f.
    """
    noise = rng.standard_normal(scene.shape, dtype=np.float32)
    grain = protocol.noise_grain
    noise = gaussian_filter(noise, (0.35, grain, grain), truncate=3.0)
    noise -= 0.65 * gaussian_filter(
        noise, (0, 3.0, 3.0), truncate=2.5
    )  # kernels pass little of the lowest frequencies
    noise /= np.float32(noise.std())
    streaks = gaussian_filter1d(
        rng.standard_normal(scene.shape, dtype=np.float32), 14.0, axis=2, truncate=2.5
    )
    streaks = gaussian_filter1d(streaks, 0.5, axis=1)
    streaks /= np.float32(streaks.std())
    deep = np.clip(-inside / 110, 0, 1)
    level = np.float32(protocol.noise_hu) * (0.45 + 0.75 * deep)
    hips = np.exp(-(((scene.z - streaks_z_mm) / 38) ** 2)) * deep
    scene.hu += level * noise + np.float32(streak_share * protocol.noise_hu) * hips * streaks


def add_metal_streaks(scene: Scene, rng: np.random.Generator, metal: Shape) -> None:
    """Dark and bright rays around a metal hip, slice by slice, and a dark band towards the other hip."""
    if not metal.f.size:
        return
    amount = (occupancy(metal.f) > 0.5).sum(axis=(1, 2))
    fine = 720
    for offset, count in enumerate(amount):
        if count == 0:
            continue
        d = metal.box[0].start + offset
        rows, columns = np.nonzero(metal.f[offset] < 0)
        center_y, center_x = rows.mean() + metal.box[1].start, columns.mean() + metal.box[2].start
        dy = (np.arange(scene.shape[1]) - center_y)[:, None] * scene.spacing_mm[1]
        dx = (np.arange(scene.shape[2]) - center_x)[None, :] * scene.spacing_mm[2]
        radius, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
        rays = gaussian_filter1d(rng.standard_normal(fine), rng.uniform(2.0, 5.0), mode="wrap")
        rays /= rays.std()
        turn = ((angle / (2 * np.pi) + 0.5) * fine).astype(np.int64) % fine
        size = np.sqrt(count * scene.spacing_mm[1] * scene.spacing_mm[2])
        strength = 7.0 * size / (1 + radius / 22) * np.clip((radius - 0.3 * size) / 14, 0, 1)
        band = -2.2 * np.exp(-((np.sin(angle) / 0.10) ** 2))
        scene.hu[d] += np.where(
            scene.hu[d] > -900, strength * (rays[turn] + band), 0.25 * strength * rays[turn]
        ).astype(np.float32)


def finish(
    scene: Scene, protocol: Protocol, shape: tuple[int, int, int], rows: slice, rng: np.random.Generator
) -> np.ndarray:
    """The picture as stored, (D, H, W) float32: the drawn rows in their frame of noisy air, rounded, within 12 bit,
    with the fill outside a circular field of view."""
    air = rng.normal(-1000, 0.4 * protocol.noise_hu, (1, shape[1], shape[2])).astype(np.float32)
    picture = np.broadcast_to(air, shape).copy()
    picture[:, rows] = scene.hu
    np.clip(np.rint(picture, out=picture), -1024, 3071, out=picture)
    if protocol.circle_hu is not None:
        y = (np.arange(shape[1]) - (shape[1] - 1) / 2)[:, None] * scene.spacing_mm[1]
        x = (np.arange(shape[2]) - (shape[2] - 1) / 2)[None, :] * scene.spacing_mm[2]
        edge = 0.5 * min(shape[1] * scene.spacing_mm[1], shape[2] * scene.spacing_mm[2])
        picture[:, np.hypot(y, x) > edge] = protocol.circle_hu
    return picture
