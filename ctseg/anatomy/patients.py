"""The seeded shape model: what varies from one synthetic patient, and from one scan, to the next.

Lengths in mm, volumes in mL, angles in radians, attenuation in HU.
"""

from __future__ import annotations

import dataclasses
import typing

import numpy as np


class Body(typing.Protocol):
    """What the patients of every task have in common."""

    @property
    def size(self) -> tuple[float, float, float]:
        """Body relative to the template along x, y, z."""

    @property
    def fat_mm(self) -> float:
        """Thickness of the fat under the skin at the flank."""

    @property
    def hu(self) -> dict[str, float]:
        """Mean attenuation of each tissue."""


@dataclasses.dataclass(frozen=True)
class Patient:
    """One synthetic person on the day of the scan."""

    sex: str  # "male" or "female"
    size: tuple[float, float, float]  # body relative to the template along x, y, z
    fat_mm: float  # thickness of the fat under the skin at the flank
    warp_mm: float
    bladder_ml: float
    bladder_pitch: float
    bladder_shift_mm: tuple[float, float]
    prostate_mm: tuple[float, float, float]  # width, depth, height
    prostate_pitch: float
    rectum_radius_mm: tuple[float, float, float]  # top, ampulla, lower end
    rectum_bend_mm: tuple[float, float]  # sideways, at the upper and lower fold
    rectum_content: str  # "gas", "stool", "gel" (contrast medium), "collapsed"
    uterus_mm: tuple[float, float, float]
    uterus_pitch: float
    metal_side: int  # -1 right, 1 left, 0 no metal hip
    contrast: str  # "none", "venous", "excreted"
    hu: dict[str, float]  # tissue -> mean attenuation


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


def sample_patient(rng: np.random.Generator, sex: str) -> Patient:
    """A person. Independent draws around adult means; ranges are those of the clinical literature."""
    male = sex == "male"
    width, depth, height = (float(v) for v in rng.uniform((0.94, 0.95, 0.95), (1.06, 1.06, 1.05)))
    volume = float(rng.uniform(38, 92))
    shape = rng.uniform((1.18, 0.82, 0.92), (1.38, 1.0, 1.12))
    unit = (volume * 1000 / 0.42 / shape.prod()) ** (1 / 3)
    contrast = str(rng.choice(["none", "venous", "excreted"], p=[0.44, 0.25, 0.31]))
    return Patient(
        sex=sex,
        size=(width * (1.0 if male else 1.03), depth, height * (1.0 if male else 0.95)),
        fat_mm=float(rng.uniform(9, 28) if male else rng.uniform(14, 34)),
        warp_mm=float(rng.uniform(1.6, 2.6)),
        bladder_ml=float(rng.uniform(70**0.5, 480**0.5) ** 2),
        bladder_pitch=float(rng.uniform(-0.4, 0.4)),
        bladder_shift_mm=(float(rng.normal(0, 4)), float(rng.normal(0, 3))),
        prostate_mm=(float(unit * shape[0]), float(unit * shape[1]), float(unit * shape[2])),
        prostate_pitch=float(rng.uniform(0.25, 0.6)),
        rectum_radius_mm=(float(rng.uniform(13, 17)), float(rng.uniform(15, 22)), float(rng.uniform(13, 16))),
        rectum_bend_mm=(
            float(rng.choice([-1, 1]) * rng.uniform(8, 17)),
            float(rng.choice([-1, 1]) * rng.uniform(3, 10)),
        ),
        rectum_content=str(rng.choice(["gas", "stool", "gel", "collapsed"], p=[0.42, 0.37, 0.13, 0.08])),
        uterus_mm=(float(rng.uniform(20, 28)), float(rng.uniform(17, 24)), float(rng.uniform(32, 44))),
        uterus_pitch=float(rng.uniform(0.6, 1.3)),
        metal_side=0,
        contrast=contrast,
        hu=_tissues(rng, contrast),
    )


def _tissues(rng: np.random.Generator, contrast: str) -> dict[str, float]:
    """Mean attenuation of each tissue in HU; contrast medium raises the vessels and, less, the organs."""
    gain = 0.0 if contrast == "none" else float(rng.uniform(10, 26))
    prostate = float(rng.uniform(38, 50)) + gain
    vessel = float(rng.uniform(38, 48)) + (0.0 if contrast == "none" else float(rng.uniform(70, 130)))
    return {
        "fat": float(rng.uniform(-112, -98)),
        "muscle": float(rng.uniform(46, 58)) + 0.4 * gain,
        "skin": 30.0,
        "cartilage": 70.0,
        "marrow": float(rng.uniform(110, 215)),
        "cortex": float(rng.uniform(620, 950)),
        "urine": float(rng.uniform(2, 16)),
        "bladder_wall": prostate - float(rng.uniform(10, 20)),
        "prostate": prostate,
        "seminal": prostate - float(rng.uniform(8, 16)),
        "rectum_wall": prostate - float(rng.uniform(10, 16)),
        "bowel_wall": float(rng.uniform(35, 48)) + gain,
        "uterus": float(rng.uniform(48, 58)) + 1.5 * gain,
        "artery": vessel + (0.0 if contrast == "none" else 12.0),
        "vein": vessel,
        "stool": float(rng.uniform(-40, 35)),
        "gel": float(rng.uniform(160, 420)),
        "excreted": float(rng.uniform(180, 750)),
    }


# Slice and in-plane spacing in mm of common protocols, thin to thick. In-plane sizes are coarser than a
# scanner's, which keeps the cohort small.
_PROTOCOLS = (
    (1.25, 2.2),
    (1.5, 2.2),
    (2.0, 2.1),
    (2.0, 2.3),
    (2.5, 2.0),
    (3.0, 1.8),
    (3.0, 2.2),
    (4.0, 1.7),
    (5.0, 1.5),
    (5.0, 1.9),
)


def sample_protocol(
    rng: np.random.Generator, index: int, body_mm: float, *, oblique: bool, any_axes: bool
) -> Protocol:
    """A scan of a body `body_mm` wide. `index` walks through the protocols so that every cohort has thin and thick slices."""
    slice_mm, pixel_mm = _PROTOCOLS[(7 * index + 3) % len(_PROTOCOLS)]
    if index % 24 == 20:
        slice_mm, pixel_mm = 0.8, 2.3
    pixel_mm *= float(rng.uniform(0.95, 1.08))
    field = body_mm + float(rng.uniform(25, 60))
    side = int(np.clip(round(field / pixel_mm), 150, 280))
    bottom, top = float(rng.uniform(-104, -88)), float(rng.uniform(125, 195))
    if slice_mm <= 1.5:
        bottom, top = bottom + 2, min(top, 124.0)
    depth = int(np.clip(round((top - bottom) / slice_mm), 40, 280))
    tilt = (
        tuple(float(v) for v in rng.uniform((-0.14, -0.05, -0.08), (0.14, 0.05, 0.08)))
        if oblique
        else (0.0, 0.0, 0.0)
    )
    order = tuple(int(v) for v in rng.permutation(3)) if any_axes else (0, 1, 2)
    flips = tuple(bool(v) for v in rng.integers(0, 2, 3)) if any_axes else (False, False, False)
    return Protocol(
        spacing_mm=(slice_mm, pixel_mm, pixel_mm),
        shape=(depth, side, side),
        bottom_mm=bottom,
        shift_mm=(float(rng.normal(0, 8)), float(rng.normal(0, 6))),
        turn=(float(rng.normal(0, 0.04)), float(rng.normal(0, 0.03)), float(rng.normal(0, 0.05))),
        tilt=(tilt[0], tilt[1], tilt[2]),
        noise_hu=float(rng.uniform(11, 19)),
        noise_grain=float(rng.uniform(0.55, 0.8)),
        circle_hu=(None, None, -1024.0, None, -2000.0)[index % 5],
        axis_order=(order[0], order[1], order[2]),
        axis_flips=(flips[0], flips[1], flips[2]),
    )


def coarse(protocol: Protocol, spacing_mm: float) -> Protocol:
    """The same scan with large voxels, for quick tests."""
    extent = [n * s for n, s in zip(protocol.shape, protocol.spacing_mm)]
    d, h, w = (int(np.ceil(mm / spacing_mm)) for mm in extent)
    return dataclasses.replace(protocol, spacing_mm=(spacing_mm,) * 3, shape=(d, h, w))
