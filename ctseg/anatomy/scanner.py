"""The scan of a drawn body: its grid, the table, noise, streaks beside metal, edge of the field of view."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from ctseg.anatomy.implicit import Scene, Shape
from ctseg.anatomy.patients import Body, Protocol
from ctseg.geometry.volume import CANONICAL_DIRECTIONS, Grid, Volume, reorient

TINY_SPACING_MM = 6.0


@dataclasses.dataclass(frozen=True)
class Scan:
    """A scan in the making: its grid, and the scene of those rows that body and table can lie in.

    Above and below them there is only air.
    """

    protocol: Protocol
    grid: Grid
    rows: slice
    scene: Scene

    def finish(
        self,
        rng: np.random.Generator,
        skin: np.ndarray,
        *,
        metal: Shape | None = None,
        streaks_z_mm: float = -5.0,
        streak_share: float = 0.45,
    ) -> tuple[Volume, Volume]:
        """Picture (HU, float32) and label map (uint8), both (D, H, W), of what was painted into the scene.

        skin: f of the body. Where the rays cross much bone, about the height streaks_z_mm, the noise runs in
        streaks of streak_share times its level.
        """
        scene, protocol = self.scene, self.protocol
        scene.hu = gaussian_filter(scene.hu, (0, 0.45, 0.45), truncate=2.5)  # the scanner's own blur
        if metal is not None:
            add_metal_streaks(scene, rng, metal)
        add_noise(scene, rng, protocol, skin, streaks_z_mm, streak_share)
        label = np.zeros(self.grid.shape, dtype=np.uint8)
        label[:, self.rows] = scene.label
        image, labels = (
            reorient(Volume(array, self.grid.affine), protocol.axis_order, protocol.axis_flips)
            for array in (self.stored(rng), label)
        )
        return image, labels

    def stored(self, rng: np.random.Generator) -> np.ndarray:
        """The picture as stored, (D, H, W) float32: rows in their frame of noisy air, rounded, within 12 bit,
        with the fill outside a circular field of view."""
        _, height, width = self.grid.shape
        air = rng.normal(-1000, 0.4 * self.protocol.noise_hu, (1, height, width)).astype(np.float32)
        picture = np.broadcast_to(air, self.grid.shape).copy()
        picture[:, self.rows] = self.scene.hu
        np.clip(np.rint(picture, out=picture), -1024, 3071, out=picture)
        if self.protocol.circle_hu is not None:
            y, x = (
                (np.arange(n) - (n - 1) / 2) * step
                for n, step in zip((height, width), self.scene.spacing_mm[1:])
            )
            edge = 0.5 * min((height, width) * self.scene.spacing_mm[1:])
            picture[:, np.hypot(y[:, None], x) > edge] = self.protocol.circle_hu
        return picture


def begin_scan(body: Body, protocol: Protocol, rng: np.random.Generator) -> Scan:
    """The empty scan of a body lying on the table."""
    spacing, shape = np.array(protocol.spacing_mm), np.array(protocol.shape)
    affine, pose = np.eye(4), np.eye(4)
    affine[:3, :3] = rotation(protocol.tilt) @ CANONICAL_DIRECTIONS.T * spacing
    x_mm, y_mm = protocol.shift_mm
    middle_mm = np.array([x_mm, 5.0 + y_mm, protocol.bottom_mm + 0.5 * shape[0] * spacing[0]])
    affine[:3, 3] = middle_mm - affine[:3, :3] @ ((shape - 1) / 2)
    pose[:3, :3] = np.diag(1 / np.array(body.size)) @ rotation(protocol.turn)  # LPS mm to template mm
    grid = Grid(protocol.shape, affine)
    y = (pose @ affine)[1]
    tilted = min(sum(abs(y[axis]) * shape[axis] for axis in (0, 2)) / 2, 40)
    middle = y[3] + sum(y[axis] * shape[axis] for axis in (0, 2)) / 2
    reach = 150 + body.fat_mm + tilted
    start, stop = (int(np.clip(round((edge - middle) / y[1]), 0, shape[1])) for edge in (-reach, reach))
    rows = slice(start, max(stop, start + 2))
    part = grid.crop((0, start, 0), (protocol.shape[0], rows.stop - start, protocol.shape[2]))
    return Scan(protocol, grid, rows, Scene(part.shape, part.affine, pose, rng, body.warp_mm))


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    """Rotation about x, then y, then z by `angles` (radians); about y from z to x is negative."""
    out = np.eye(3)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), angles):
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


def paint_table(scene: Scene, fat_mm: float) -> None:
    """The couch: a thin curved plate under the back and a foam mat, in scanner coordinates."""
    top = np.float32(104 + fat_mm * 0.95 + 16) - scene.x * scene.x * np.float32(1 / 1500.0)
    wide = np.abs(scene.x) - 215
    mat = np.maximum.reduce([top - 12 - scene.y, scene.y - top, wide])
    scene.paint(scene.whole(mat), -940.0)
    for depth in (0.0, 26.0):
        plate = np.abs(scene.y - top - depth * (1 - (scene.x / 230) ** 2)) - 0.9
        scene.paint(scene.whole(np.maximum(plate, wide)), -110.0)


def add_noise(
    scene: Scene,
    rng: np.random.Generator,
    protocol: Protocol,
    skin: np.ndarray,
    streaks_z_mm: float,
    streak_share: float,
) -> None:
    """Quantum noise with the grain of a reconstruction kernel, strongest deep in the body."""
    noise = rng.standard_normal(scene.shape, dtype=np.float32)
    grain = protocol.noise_grain
    noise = gaussian_filter(noise, (0.35, grain, grain), truncate=3.0)
    # kernels pass little of the lowest frequencies
    noise -= 0.65 * gaussian_filter(noise, (0, 3.0, 3.0), truncate=2.5)
    noise /= np.float32(noise.std())
    streaks = rng.standard_normal(scene.shape, dtype=np.float32)
    streaks = gaussian_filter1d(gaussian_filter1d(streaks, 14.0, axis=2, truncate=2.5), 0.5, axis=1)
    streaks /= np.float32(streaks.std())
    deep = np.clip(-skin / 110, 0, 1)
    level = np.float32(protocol.noise_hu) * (0.45 + 0.75 * deep)
    across_bone = np.exp(-(((scene.z - streaks_z_mm) / 38) ** 2)) * deep
    scene.hu += level * noise + np.float32(streak_share * protocol.noise_hu) * across_bone * streaks


def add_metal_streaks(scene: Scene, rng: np.random.Generator, metal: Shape) -> None:
    """Dark and bright rays around a metal hip, slice by slice, and a dark band towards the other hip."""
    fine = 720
    top, left = metal.box[1].start, metal.box[2].start
    for d, f in enumerate(metal.f, start=metal.box[0].start):
        rows, columns = np.nonzero(f < 0)
        if not len(rows):
            continue
        dy = (np.arange(scene.shape[1]) - (rows.mean() + top))[:, None] * scene.spacing_mm[1]
        dx = (np.arange(scene.shape[2]) - (columns.mean() + left))[None, :] * scene.spacing_mm[2]
        radius, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
        rays = gaussian_filter1d(rng.standard_normal(fine), rng.uniform(2.0, 5.0), mode="wrap")
        rays /= rays.std()
        turn = ((angle / (2 * np.pi) + 0.5) * fine).astype(np.int64) % fine
        size = np.sqrt(len(rows) * scene.spacing_mm[1] * scene.spacing_mm[2])
        strength = 7.0 * size / (1 + radius / 22) * np.clip((radius - 0.3 * size) / 14, 0, 1)
        band = -2.2 * np.exp(-((np.sin(angle) / 0.10) ** 2))
        streaks = np.where(scene.hu[d] > -900, strength * (rays[turn] + band), 0.25 * strength * rays[turn])
        scene.hu[d] += streaks.astype(np.float32)
