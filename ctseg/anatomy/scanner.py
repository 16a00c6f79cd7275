"""The scan of a drawn body: protocol, grid, table, noise, streaks beside metal, edge of the field of view.

Lengths in mm, angles in radians, attenuation in HU. Trunks are scanned whole, with a `Protocol`; a
`ChestScan` holds the surroundings of an organ alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from ctseg.anatomy.implicit import Field, Points, Scene, Shape
from ctseg.anatomy.shape_tables import read_table
from ctseg.geometry.boxes import Index
from ctseg.geometry.volume import CANONICAL_DIRECTIONS, Flips, Grid, Volume, reorient

TINY_SPACING_MM = 6.0
PROTOCOLS = read_table(__file__)["protocol"].tolist()
USUAL_AXES = (0, 1, 2), (False, False, False)


@dataclasses.dataclass(frozen=True)
class Body:
    """What the drawing of table and scan needs to know of a patient."""

    size: tuple[float, float, float]  # body relative to the template along x, y, z
    fat_mm: float  # thickness of the fat under the skin at the flank
    warp_mm: float  # how far the body is deformed at random
    hu: dict[str, float]  # tissue -> mean attenuation


@dataclasses.dataclass(frozen=True)
class Stored:
    """How a scan's file holds the voxels. order, flips: of the axes, away from slice, row, column."""

    spacing_mm: tuple[float, float, float]  # slice, row, column
    order: Index
    flips: Flips

    def stored(self, array: np.ndarray, grid: Grid) -> Volume:
        """An array (slice, row, column) on a grid as the file holds it."""
        return reorient(Volume(array, grid.affine), self.order, self.flips)


@dataclasses.dataclass(frozen=True)
class Protocol(Stored):
    """How the scan of a trunk was made."""

    shape: Index
    bottom_mm: float  # template height of the lowest slice
    shift_mm: np.ndarray  # patient off the centre, x and y
    turn: np.ndarray  # patient on the table, about x, y, z
    tilt: tuple[float, ...]  # grid against the scanner, about x, y, z: an oblique scan
    noise_hu: float
    noise_grain: float  # width of the noise in voxels
    circle_hu: float | None  # value outside a circular field of view, None = square

    def coarse(self) -> Protocol:
        """The same scan with large voxels, for quick tests."""
        d, h, w = (int(np.ceil(n * s / TINY_SPACING_MM)) for n, s in zip(self.shape, self.spacing_mm))
        return dataclasses.replace(self, spacing_mm=(TINY_SPACING_MM,) * 3, shape=(d, h, w))


def sample_protocol(
    rng: np.random.Generator, index: int, body_mm: float, *, oblique: bool, any_axes: bool
) -> Protocol:
    """A scan of a body `body_mm` wide.

    `index` walks through the protocols so that every cohort has thin and thick slices.
    """
    slice_mm, pixel_mm = (0.8, 2.3) if index % 24 == 20 else PROTOCOLS[(7 * index + 3) % len(PROTOCOLS)]
    pixel_mm *= rng.uniform(0.95, 1.08)
    side = int(np.clip(round((body_mm + rng.uniform(25, 60)) / pixel_mm), 150, 280))
    bottom, top = rng.uniform((-104, 125), (-88, 195)).tolist()
    if slice_mm <= 1.5:
        bottom, top = bottom + 2, min(top, 124.0)
    depth = int(np.clip(round((top - bottom) / slice_mm), 40, 280))
    tilt = rng.uniform((-0.14, -0.05, -0.08), (0.14, 0.05, 0.08)).tolist() if oblique else (0.0, 0.0, 0.0)
    order, flips = random_axes(rng) if any_axes else USUAL_AXES
    return Protocol(
        spacing_mm=(slice_mm, pixel_mm, pixel_mm),
        shape=(depth, side, side),
        bottom_mm=bottom,
        shift_mm=rng.normal(0, (8, 6)),
        turn=rng.normal(0, (0.04, 0.03, 0.05)),
        tilt=tuple(tilt),
        noise_hu=rng.uniform(11, 19),
        noise_grain=rng.uniform(0.55, 0.8),
        circle_hu=(None, None, -1024.0, None, -2000.0)[index % 5],
        order=order,
        flips=flips,
    )


def random_axes(rng: np.random.Generator) -> tuple[Index, Flips]:
    """A random order of the axes of a file, and which of them run backwards."""
    (i, j, k), (a, b, c) = rng.permutation(3).tolist(), rng.integers(0, 2, 3).astype(bool).tolist()
    return (i, j, k), (a, b, c)


class TrunkScan(Scene):
    """The scan of a body on its table, with texture but not yet drawn: the rows that both can lie in.

    Above and below them there is only air.
    """

    def __init__(
        self, body: Body, protocol: Protocol, rng: np.random.Generator, ids: Mapping[str, int]
    ) -> None:
        shape, (x_mm, y_mm) = protocol.shape, protocol.shift_mm
        middle_z = protocol.bottom_mm + 0.5 * shape[0] * protocol.spacing_mm[0]
        middle_mm = np.array([x_mm, 5.0 + y_mm, middle_z])
        grid = grid_about(middle_mm, shape, protocol.spacing_mm, rotation(protocol.tilt))
        pose = np.diag(1 / np.array(body.size)) @ rotation(protocol.turn)  # LPS mm to template mm
        y = pose[1] @ grid.affine[:3]
        tilted = min(sum(abs(y[axis]) * shape[axis] for axis in (0, 2)) / 2, 40)
        middle = y[3] + sum(y[axis] * shape[axis] for axis in (0, 2)) / 2
        reach = 150 + body.fat_mm + tilted
        start, stop = (int(np.clip(round((edge - middle) / y[1]), 0, shape[1])) for edge in (-reach, reach))
        self.protocol, self.frame, self.rows = protocol, grid, slice(start, max(stop, start + 2))
        part = grid.crop((0, start, 0), (shape[0], self.rows.stop - start, shape[2]))
        super().__init__(part, pose, rng, body.warp_mm, body.hu, ids)
        # Texture with bumps of about 3, 14 and 40 mm.
        grain = rng.standard_normal(self.shape, dtype=np.float32)
        grain = gaussian_filter(grain, np.maximum(1.5 / self.spacing_mm, 0.35), truncate=3.0)
        grain /= grain.std()
        self.texture = {"grain": grain, "blotch": self.smooth_field(8.0), "lumps": self.smooth_field(22.0)}
        # The couch: a foam mat and a thin curved plate under the back.
        top = 104 + body.fat_mm * 0.95 + 16 - self.x * self.x * (1 / 1500.0)
        wide = np.abs(self.x) - 215
        self.whole(np.maximum.reduce([top - 12 - self.y, self.y - top, wide])).paint(-940.0)
        for depth in (0.0, 26.0):
            plate = np.abs(self.y - top - depth * (1 - (self.x / 230) ** 2)) - 0.9
            self.whole(np.maximum(plate, wide)).paint(-110.0)

    def finish(
        self,
        skin: Field,
        *,
        metal: Shape | None = None,
        streaks_z_mm: float = -5.0,
        streak_share: float = 0.45,
    ) -> tuple[Volume, Volume]:
        """Picture (HU, float32) and label map (uint8), both (D, H, W), of what was painted.

        skin: f of the body. Noise has the grain of a reconstruction kernel and is strongest deep in the body;
        where the rays cross much bone, about the height streaks_z_mm, it runs in streaks of streak_share
        times its level. The picture is rounded and within 12 bit; outside a circular field of view it holds
        the fill.
        """
        protocol, rng = self.protocol, self.rng
        self.hu = gaussian_filter(self.hu, (0, 0.45, 0.45), truncate=2.5)  # the scanner's own blur
        if metal is not None:
            add_metal_streaks(metal)

        noise = rng.standard_normal(self.shape, dtype=np.float32)
        noise = gaussian_filter(noise, (0.35, protocol.noise_grain, protocol.noise_grain), truncate=3.0)
        # kernels pass little of the lowest frequencies
        noise -= 0.65 * gaussian_filter(noise, (0, 3.0, 3.0), truncate=2.5)
        noise /= noise.std()
        streaks = rng.standard_normal(self.shape, dtype=np.float32)
        streaks = gaussian_filter1d(gaussian_filter1d(streaks, 14.0, axis=2, truncate=2.5), 0.5, axis=1)
        streaks /= streaks.std()
        deep = np.clip(-skin / 110, 0, 1)
        level = protocol.noise_hu * (0.45 + 0.75 * deep)
        across_bone = np.exp(-(((self.z - streaks_z_mm) / 38) ** 2)) * deep
        self.hu += level * noise + streak_share * protocol.noise_hu * across_bone * streaks

        size = self.frame.shape[1:]
        air = rng.normal(-1000, 0.4 * protocol.noise_hu, (1, *size)).astype(np.float32)
        picture, label = np.broadcast_to(air, self.frame.shape).copy(), np.zeros(self.frame.shape, np.uint8)
        picture[:, self.rows], label[:, self.rows] = self.hu, self.label
        np.clip(np.rint(picture, out=picture), -1024, 3071, out=picture)
        if protocol.circle_hu is not None:
            y, x = ((np.arange(n) - (n - 1) / 2) * step for n, step in zip(size, self.spacing_mm[1:]))
            edge = 0.5 * min(size * self.spacing_mm[1:])
            picture[:, np.hypot(y[:, None], x) > edge] = protocol.circle_hu
        return protocol.stored(picture, self.frame), protocol.stored(label, self.frame)


def grid_about(middle_mm: Points, shape: Index, spacing_mm: Sequence[float], turn: np.ndarray) -> Grid:
    """The grid around a place in LPS mm, its axes turned (3, 3) away from the canonical ones."""
    affine = np.eye(4)
    affine[:3, :3] = turn @ CANONICAL_DIRECTIONS.T * np.array(spacing_mm)
    affine[:3, 3] = middle_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def rotation(angles: Sequence[float] | np.ndarray) -> np.ndarray:
    """Rotation about x, then y, then z by `angles` (radians); about y from z to x is negative."""
    out = np.eye(3)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), angles):
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


def add_metal_streaks(metal: Shape) -> None:
    """Dark and bright rays around a metal hip, slice by slice, and a dark band towards the other hip."""
    fine, scene = 720, metal.scene
    height, width = scene.spacing_mm[1:]
    top, left = metal.box[1].start, metal.box[2].start
    for d, f in enumerate(metal.f, start=metal.box[0].start):
        rows, columns = np.nonzero(f < 0)
        if not len(rows):
            continue
        dy = (np.arange(scene.shape[1]) - (rows.mean() + top))[:, None] * height
        dx = (np.arange(scene.shape[2]) - (columns.mean() + left))[None, :] * width
        radius, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
        rays = gaussian_filter1d(scene.rng.standard_normal(fine), scene.rng.uniform(2.0, 5.0), mode="wrap")
        rays /= rays.std()
        ray = rays[((angle / (2 * np.pi) + 0.5) * fine).astype(np.int64) % fine]
        size = np.sqrt(len(rows) * height * width)
        strength = 7.0 * size / (1 + radius / 22) * np.clip((radius - 0.3 * size) / 14, 0, 1)
        band = -2.2 * np.exp(-((np.sin(angle) / 0.10) ** 2))
        streaks = np.where(scene.hu[d] > -900, strength * (ray + band), 0.25 * strength * ray)
        scene.hu[d] += streaks.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ChestScan(Stored):
    """The scan of a chest. noise_hu, blur_mm: of the picture."""

    noise_hu: float
    blur_mm: float

    def grid(self, extent_mm: np.ndarray, middle_mm: Points) -> Grid:
        """The grid of `extent_mm` (z, y, x) about a place in LPS mm."""
        d, h, w = np.round(extent_mm / self.spacing_mm).astype(int).tolist()
        return grid_about(middle_mm, (d, h, w), self.spacing_mm, np.eye(3))

    def finish(self, scene: Scene, grain: tuple[float, float, float]) -> tuple[Volume, Volume]:
        """Picture and label map of the scene: blur, noise with the grain of a reconstruction kernel (voxels),
        whole HU within 12 bit."""
        scene.hu = gaussian_filter(scene.hu, self.blur_mm / scene.spacing_mm, truncate=3.0)
        noise = gaussian_filter(scene.rng.standard_normal(scene.shape, dtype=np.float32), grain, truncate=3.0)
        scene.hu += noise * (self.noise_hu / noise.std())
        np.clip(np.rint(scene.hu, out=scene.hu), -1024, 3071, out=scene.hu)
        return self.stored(scene.hu, scene.grid), self.stored(scene.label, scene.grid)
