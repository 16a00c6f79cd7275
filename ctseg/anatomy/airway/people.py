"""What varies between the patients and scans of the task "airway": `people.toml` as a record."""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.scanner import USUAL_AXES, Body, ChestScan, random_axes
from ctseg.anatomy.shape_tables import draw_values, read_people

TINY_SPACING_MM = 4.5
PEOPLE = read_people(__file__)


@dataclasses.dataclass(frozen=True)
class Patient(Body):
    """One synthetic person and the scan. Lengths in mm, attenuation in HU."""

    heart: float  # size relative to the standard
    right_dome_mm: float  # height of the diaphragm's right dome
    left_lower_mm: float  # by which the left one stands lower
    kyphosis: float
    airway_width: float  # all airways relative to the standard
    finest_mm: float  # lumen of the narrowest branches drawn
    wall: float  # thickness relative to the lumen's diameter
    lung_hu: float
    gravity_hu: float  # how much denser the back of the lung is than its front
    emphysema: int  # number of dark spots
    gap_rate: float  # share of the thin branches with a gap
    scan: ChestScan


def sample_patient(rng: np.random.Generator, index: int, size: str) -> Patient:
    """Who is scanned, and how. Every third scan has its axes in another order."""
    slice_mm, pixel_mm = draw_values(rng, PEOPLE["grid"]).values()
    axes = random_axes(rng)
    body, dose, hu = (draw_values(rng, PEOPLE[section]) for section in ("body", "dose", "attenuation"))
    if size == "tiny":
        slice_mm = pixel_mm = TINY_SPACING_MM
        body["finest_mm"] *= 1.5
    spacing, noise_hu = (slice_mm, pixel_mm, pixel_mm), 15 + 25 * dose["noise"] ** 3
    scan = ChestScan(spacing, *(axes if index % 3 == 2 else USUAL_AXES), noise_hu, dose["blur_mm"])
    return Patient(scan=scan, hu=hu, **body)
