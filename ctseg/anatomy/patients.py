"""What the patients of every task have in common, and how their scans are made.

Lengths in mm, angles in radians, attenuation in HU.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.shape_tables import read_table


@dataclasses.dataclass(frozen=True)
class Body:
    """What the drawing of table and scan needs to know of a patient."""

    size: tuple[float, float, float]  # body relative to the template along x, y, z
    fat_mm: float  # thickness of the fat under the skin at the flank
    warp_mm: float  # how far the body is deformed at random


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How the scan was made."""

    spacing_mm: tuple[float, float, float]  # slice, row, column
    shape: tuple[int, int, int]
    bottom_mm: float  # template height of the lowest slice
    shift_mm: tuple[float, float]  # patient off the centre, x and y
    turn: tuple[float, float, float]  # patient on the table, about x, y, z
    tilt: tuple[float, float, float]  # grid against the scanner, about x, y, z: an oblique scan
    noise_hu: float
    noise_grain: float  # width of the noise in voxels
    circle_hu: float | None  # value outside a circular field of view, None = square
    axis_order: tuple[int, int, int]
    axis_flips: tuple[bool, bool, bool]


PROTOCOLS = read_table(__file__)["protocol"].tolist()


def sample_protocol(
    rng: np.random.Generator, index: int, body_mm: float, *, oblique: bool, any_axes: bool
) -> Protocol:
    """A scan of a body `body_mm` wide.

    `index` walks through the protocols so that every cohort has thin and thick slices.
    """
    slice_mm, pixel_mm = (0.8, 2.3) if index % 24 == 20 else PROTOCOLS[(7 * index + 3) % len(PROTOCOLS)]
    pixel_mm *= rng.uniform(0.95, 1.08)
    field = body_mm + rng.uniform(25, 60)
    side = int(np.clip(round(field / pixel_mm), 150, 280))
    bottom, top = rng.uniform(-104, -88), rng.uniform(125, 195)
    if slice_mm <= 1.5:
        bottom, top = bottom + 2, min(top, 124.0)
    depth = int(np.clip(round((top - bottom) / slice_mm), 40, 280))
    tilt = rng.uniform((-0.14, -0.05, -0.08), (0.14, 0.05, 0.08)).tolist() if oblique else (0.0, 0.0, 0.0)
    order, flips = random_axes(rng) if any_axes else ((0, 1, 2), (False, False, False))
    return Protocol(
        spacing_mm=(slice_mm, pixel_mm, pixel_mm),
        shape=(depth, side, side),
        bottom_mm=bottom,
        shift_mm=(rng.normal(0, 8), rng.normal(0, 6)),
        turn=(rng.normal(0, 0.04), rng.normal(0, 0.03), rng.normal(0, 0.05)),
        tilt=tuple(tilt),
        noise_hu=rng.uniform(11, 19),
        noise_grain=rng.uniform(0.55, 0.8),
        circle_hu=(None, None, -1024.0, None, -2000.0)[index % 5],
        axis_order=order,
        axis_flips=flips,
    )


def random_axes(rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """A random order of the axes of a file, and which of them run backwards."""
    (i, j, k), (a, b, c) = rng.permutation(3).tolist(), rng.integers(0, 2, 3).astype(bool).tolist()
    return (i, j, k), (a, b, c)


def coarse(protocol: Protocol, spacing_mm: float) -> Protocol:
    """The same scan with large voxels, for quick tests."""
    d, h, w = (int(np.ceil(n * s / spacing_mm)) for n, s in zip(protocol.shape, protocol.spacing_mm))
    return dataclasses.replace(protocol, spacing_mm=(spacing_mm,) * 3, shape=(d, h, w))
