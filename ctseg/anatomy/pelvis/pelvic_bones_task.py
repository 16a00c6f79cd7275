"""The task "pelvic_bones": the pelvis patients with bones whose edges are hard to see, and quick noisy scans.

Thin or pale cortex, worn and fused joints, dense rims, spurs, metal hips and low dose: where two bones touch,
the shape alone tells which is which. Five bones to learn, as in AIDA CTPEL (doi.org/10.23698/aida/ctpel); the
lumbar vertebrae are in the label map but no target, as a scan of the pelvis cuts through them at any height.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.pelvis.pelvis_task import PATIENTS, Drawing, is_dicom, plan, render
from ctseg.anatomy.pelvis.people import sample_wear
from ctseg.anatomy.tasks import numbered

__all__ = ["IDS", "PATIENTS", "TARGETS", "draw", "is_dicom"]

TARGETS = ("hip_left", "hip_right", "sacrum", "femur_left", "femur_right")
IDS = numbered(*TARGETS, "lumbar_vertebrae")
_STREAM = 2  # keeps the draws of this task apart from those of the pelvis, whose patients it shares


def draw(seed: int, index: int, size: str = "full") -> Drawing:
    """Patient `index` of the cohort with this seed: older bones and, in every second, a scan of less dose."""
    patient, protocol, picture_rng = plan(seed, index, size)
    rng = np.random.default_rng([seed, index, _STREAM])
    porous = float(np.clip(rng.uniform(-0.3, 1.0), 0, 1))  # 0: firm bone, 1: severe osteoporosis
    cortex = patient.hu["cortex"] * (1 - 0.62 * porous)
    marrow = patient.hu["marrow"] * (1 - 0.75 * porous) - 25 * porous
    noise = protocol.noise_hu * float(rng.choice([1.0, rng.uniform(1.6, 2.6)]))
    wear, hu = sample_wear(rng), patient.hu | {"cortex": cortex, "marrow": marrow}
    patient = dataclasses.replace(patient, hu=hu, wear=wear)
    drawing = render(patient, dataclasses.replace(protocol, noise_hu=noise), picture_rng, IDS)
    facts = {
        **{name: drawing.facts[name] for name in ("sex", "metal", "contrast")},
        "cortex_hu": round(cortex),
        "marrow_hu": round(marrow),
        "noise_hu": round(noise, 1),  # pairs are right, left
        "hip_gap_mm": [round(wear.hip_gap_mm[side], 1) for side in (-1, 1)],
        "sacroiliac_gap_mm": [round(wear.sacroiliac_gap_mm[side], 1) for side in (-1, 1)],
        "sacroiliac_fused": [side in wear.fused for side in (-1, 1)],
    }
    return dataclasses.replace(drawing, facts=facts)
