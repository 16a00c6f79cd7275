"""The task "pelvic_bones": the pelvis patients with bones whose edges are hard to see, and quick noisy scans.

Thin or pale cortex, worn and fused joints, dense rims, spurs, metal hips and low dose: where two bones touch,
the shape alone tells which is which. Five bones to learn, as in AIDA CTPEL (doi.org/10.23698/aida/ctpel); the
lumbar vertebrae are in the label map but no target, as a scan of the pelvis cuts through them at any height.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy import labels
from ctseg.anatomy.patients import Protocol
from ctseg.anatomy.pelvis.drawing import is_dicom, plan, render
from ctseg.anatomy.pelvis.people import Patient
from ctseg.anatomy.pelvis.wear import Wear, sample_wear
from ctseg.anatomy.picture import Picture
from ctseg.geometry.volume import Volume

__all__ = ["IDS", "PATIENTS", "TARGETS", "draw", "is_dicom"]

TARGETS = ("hip_left", "hip_right", "sacrum", "femur_left", "femur_right")
IDS = {name: number for number, name in enumerate((*TARGETS, "lumbar_vertebrae"), start=1)}
PATIENTS = 24
_STREAM = 2  # keeps the draws of this task apart from those of the pelvis, whose patients it shares


def draw(seed: int, index: int, size: str = "full") -> Picture:
    """Patient `index` of the cohort with this seed."""
    patient, protocol, rng = plan(seed, index, size)
    patient, protocol, wear = _aged(patient, protocol, np.random.default_rng([seed, index, _STREAM]))
    drawing = render(patient, protocol, rng, wear)
    table = np.zeros(max(labels.IDS.values()) + 1, dtype=np.uint8)
    for name, number in IDS.items():
        table[labels.IDS[name]] = number
    return Picture(
        drawing.image,
        Volume(table[drawing.label.array], drawing.label.affine),
        _facts(patient, protocol, wear),
    )


def _aged(patient: Patient, protocol: Protocol, rng: np.random.Generator) -> tuple[Patient, Protocol, Wear]:
    """The patient with older bones, the scan with less dose in every second, and the state of the joints."""
    porous = float(np.clip(rng.uniform(-0.3, 1.0), 0, 1))  # 0: firm bone, 1: severe osteoporosis
    hu = dict(patient.hu)
    hu["cortex"] *= 1 - 0.62 * porous
    hu["marrow"] = hu["marrow"] * (1 - 0.75 * porous) - 25 * porous
    noise = protocol.noise_hu * float(rng.choice([1.0, rng.uniform(1.6, 2.6)]))
    return (
        dataclasses.replace(patient, hu=hu),
        dataclasses.replace(protocol, noise_hu=noise),
        sample_wear(rng),
    )


def _facts(patient: Patient, protocol: Protocol, wear: Wear) -> dict[str, object]:
    """What the cohort's record says of the patient; pairs are right, left."""
    return {
        "sex": patient.sex,
        "metal": patient.metal_side != 0,
        "contrast": patient.contrast,
        "cortex_hu": round(patient.hu["cortex"]),
        "marrow_hu": round(patient.hu["marrow"]),
        "noise_hu": round(protocol.noise_hu, 1),
        "hip_gap_mm": [round(wear.hip_gap_mm[side], 1) for side in (-1, 1)],
        "sacroiliac_gap_mm": [round(wear.sacroiliac_gap_mm[side], 1) for side in (-1, 1)],
        "sacroiliac_fused": [side in wear.fused for side in (-1, 1)],
    }
