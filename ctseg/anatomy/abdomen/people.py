"""What varies between the patients and scans of the task "abdomen".

Lengths in mm, attenuation in HU. The template is that of `implicit.py` with its origin at the first lumbar
vertebra: x to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.patients import Body, Protocol, sample_protocol
from ctseg.anatomy.shape_tables import draw_ranges, read_table

STRUCTURES = (
    "liver",
    "kidney_right",
    "kidney_left",
    "spleen",
    "pancreas",
    "aorta",
    "postcava",
    "gall_bladder",
    "stomach",
    "duodenum",
    "colon",
    "intestine",
)
IDS = {name: number for number, name in enumerate(STRUCTURES, start=1)}
PHASES = ("none", "arterial", "portal", "late")
_ATTENUATION = read_table(__file__, "attenuation")
_UNENHANCED = read_table(__file__, "unenhanced")
# Patients of a cohort of 24 without an organ: one kidney or the spleen was removed.
_REMOVED = {4: "kidney_left", 11: "spleen", 18: "kidney_right"}


@dataclasses.dataclass(frozen=True)
class Person(Body):
    """One synthetic person on the day of the scan."""

    removed: str | None  # "kidney_left", "kidney_right", "spleen"
    gallbladder: float  # its size relative to the template, 0 after it was removed
    liver_left: float  # length of the left lobe relative to the template
    liver_tip_mm: float  # how far the right lobe reaches further down
    spleen: float  # linear size relative to the template
    kidneys: dict[int, float]  # linear size by side: 1 left, -1 right
    kidney_shift_mm: dict[int, float]  # up
    gap_mm: float  # fat between organs that lie next to each other: little in the lean
    diaphragm_mm: float  # how far it stands higher
    stomach: float  # width relative to the template
    stomach_content: str  # "food", "fluid", "contrast"
    stomach_gas: float  # share of its depth
    liver_cysts: int
    kidney_cysts: dict[int, int]
    metastases: int
    effusion: float  # share of the lung's recess, 0 none
    phase: str
    hu: dict[str, float]  # tissue -> mean attenuation


def sample_person(rng: np.random.Generator, index: int) -> Person:
    """A person; `index` decides who lacks an organ."""
    width, depth, height = rng.uniform((0.93, 0.92, 0.95), (1.08, 1.10, 1.06)).tolist()
    removed = _REMOVED.get(index % 24)
    phase = str(rng.choice(PHASES, p=[0.22, 0.16, 0.46, 0.16]))
    right, left = rng.uniform(0.9, 1.08, 2).tolist()
    if removed is not None and removed.startswith("kidney"):
        right, left = 1.14 * right, 1.14 * left  # the one that is left does the work of both
    return Person(
        size=(width, depth, height),
        fat_mm=rng.uniform(8, 32),
        warp_mm=rng.uniform(1.8, 3.0),
        removed=removed,
        gallbladder=0.0 if rng.random() < 0.15 else rng.uniform(0.75, 1.3),
        liver_left=rng.uniform(0.55, 1.25),
        liver_tip_mm=rng.uniform(-22, 18),
        spleen=rng.uniform(0.82, 1.18),
        kidneys={-1: right, 1: left},
        kidney_shift_mm={-1: rng.normal(0, 6), 1: rng.normal(0, 6)},
        gap_mm=max(0.0, rng.uniform(-0.6, 2.6)),
        diaphragm_mm=rng.uniform(-10, 12),
        stomach=rng.uniform(0.7, 1.08),
        stomach_content=str(rng.choice(["food", "fluid", "contrast"], p=[0.5, 0.35, 0.15])),
        stomach_gas=rng.uniform(0.1, 0.6),
        liver_cysts=rng.poisson(0.6),
        kidney_cysts={-1: rng.poisson(0.5), 1: rng.poisson(0.5)},
        metastases=int(rng.choice([0, 0, 0, 2, 4])),
        effusion=float(rng.choice([0.0, 0.0, 0.0, 0.0, 0.0, rng.uniform(0.3, 0.8)])),
        phase=phase,
        hu=_attenuation(rng, phase),
    )


def _attenuation(rng: np.random.Generator, phase: str) -> dict[str, float]:
    """Mean attenuation of each tissue in one patient."""
    gain = rng.uniform(0.82, 1.15)  # dose and timing of the contrast medium
    hu: dict[str, float] = {}
    for name, rows in _ATTENUATION.items():
        plain, enhanced = rows[0, [0, PHASES.index(phase)]].tolist()
        hu[name] = plain + (enhanced - plain) * gain + rng.normal(0, 3)
    if rng.random() < 0.25:
        hu["liver"] -= rng.uniform(14, 34)  # fatty liver
    hu["spleen"] += rng.normal(0, 4)
    hu |= draw_ranges(rng, _UNENHANCED)
    return hu | {"skin": 30.0, "cartilage": 72.0, "food": hu["liver"] - hu["food"]}


def sample_scan(rng: np.random.Generator, index: int, person: Person) -> Protocol:
    """A scan from below the kidneys to above the diaphragm."""
    width_mm = 2 * (148 * person.size[0] + 1.2 * person.fat_mm)
    protocol = sample_protocol(rng, index, width_mm, oblique=index % 6 == 2, any_axes=True)
    slice_mm = protocol.spacing_mm[0]
    bottom, top = rng.uniform(-132, -112), rng.uniform(136, 158)
    if slice_mm < 1.4:  # thin slices: a tighter range keeps the cohort small
        slice_mm = 1.4
        bottom, top = bottom + 8, 134.0
    depth = int(np.clip(round((top - bottom) / slice_mm), 45, 200))
    return dataclasses.replace(
        protocol,
        spacing_mm=(slice_mm, *protocol.spacing_mm[1:]),
        bottom_mm=bottom,
        shape=(depth, *protocol.shape[1:]),
        noise_hu=rng.uniform(10, 20),
    )
