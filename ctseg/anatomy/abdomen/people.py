"""What varies between the patients of the task "abdomen": `people.toml`, and what follows from it.

Lengths in mm, attenuation in HU. The template is that of `implicit.py` with its origin at the first lumbar
vertebra: x to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.scanner import Body
from ctseg.anatomy.shape_tables import draw_values, read_people, read_table

PHASES = ("none", "arterial", "portal", "late")
PEOPLE = read_people(__file__)
_ATTENUATION = read_table(__file__, "attenuation")
# Patients of a cohort of 24 without an organ: one kidney or the spleen was removed.
_REMOVED = {4: "kidney_left", 11: "spleen", 18: "kidney_right"}


@dataclasses.dataclass(frozen=True)
class Person(Body):
    """One synthetic person on the day of the scan. Pairs are by side: 1 left, -1 right."""

    removed: str | None  # "kidney_left", "kidney_right", "spleen"
    gallbladder: float  # its size relative to the template, 0 after it was removed
    liver_left: float  # length of the left lobe relative to the template
    liver_tip_mm: float  # how far the right lobe reaches further down
    spleen: float  # linear size relative to the template
    kidneys: dict[int, float]  # linear size
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


def sample_person(rng: np.random.Generator, index: int) -> Person:
    """A person; `index` decides who lacks an organ."""
    values = draw_values(rng, PEOPLE["frame"])
    values["removed"] = _REMOVED.get(index % 24)
    values["gallbladder"] = 0.0 if rng.random() < 0.15 else rng.uniform(0.75, 1.3)
    values |= draw_values(rng, PEOPLE["organs"])
    for pair in ("kidneys", "kidney_shift_mm", "kidney_cysts"):
        values[pair] = dict(zip((-1, 1), values[pair]))
    if values["removed"] in ("kidney_left", "kidney_right"):  # the one that is left does the work of both
        values["kidneys"] = {side: 1.14 * size for side, size in values["kidneys"].items()}
    values["gap_mm"] = max(0.0, values["gap_mm"])
    values["effusion"] *= values.pop("effused")

    gain = rng.uniform(0.82, 1.15)  # dose and timing of the contrast medium
    hu: dict[str, float] = {}
    for name, rows in _ATTENUATION.items():
        plain, enhanced = rows[0, [0, PHASES.index(values["phase"])]].tolist()
        hu[name] = plain + (enhanced - plain) * gain + rng.normal(0, 3)
    if rng.random() < 0.25:
        hu["liver"] -= rng.uniform(14, 34)  # fatty liver
    hu["spleen"] += rng.normal(0, 4)
    hu |= {"skin": 30.0, "cartilage": 72.0} | draw_values(rng, PEOPLE["unenhanced"])
    hu["food"] = hu["liver"] - hu["food"]
    return Person(hu=hu, **values)
