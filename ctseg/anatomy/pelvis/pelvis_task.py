"""The task "pelvis": bladder, prostate and rectum in pelvic CT, the embedded default.

The picture itself is made in `drawing.py`.
"""

from __future__ import annotations

from ctseg.anatomy.labels import IDS, TARGETS
from ctseg.anatomy.pelvis.drawing import Drawing, is_dicom
from ctseg.anatomy.pelvis.drawing import draw as draw_pelvis
from ctseg.anatomy.picture import Picture

__all__ = ["IDS", "PATIENTS", "TARGETS", "draw", "facts", "is_dicom"]

PATIENTS = 24


def draw(seed: int, index: int, size: str = "full") -> Picture:
    """Patient `index` of the cohort with this seed."""
    drawing = draw_pelvis(seed, index, size)
    return Picture(drawing.image, drawing.label, facts(drawing))


def facts(drawing: Drawing) -> dict[str, object]:
    """What the cohort's record says of a pelvic patient."""
    patient = drawing.patient
    return {
        "sex": patient.sex,
        "metal": patient.metal_side != 0,
        "contrast": patient.contrast,
        "rectum": patient.rectum_content,
    }
