"""The task "pelvis": bladder, prostate and rectum in pelvic CT, the embedded default.

One patient from seed and number: `plan` draws who is scanned and how, `render` the picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ctseg.anatomy.pelvis.bowel import paint_bowel
from ctseg.anatomy.pelvis.muscles import paint_trunk
from ctseg.anatomy.pelvis.organs import build_organs, paint_organs
from ctseg.anatomy.pelvis.people import Patient, sample_patient
from ctseg.anatomy.pelvis.skeleton import build_skeleton, paint_skeleton
from ctseg.anatomy.scanner import Protocol, TrunkScan, sample_protocol
from ctseg.anatomy.shape_tables import read_table
from ctseg.anatomy.tasks import Picture, numbered

# The multi-organ label map, in the spelling of the AbdomenAtlas data set.
IDS = numbered(
    "bladder",
    "prostate",
    "rectum",
    "colon",
    "intestine",
    "femur_left",
    "femur_right",
    "hip_left",
    "hip_right",
    "sacrum",
    "lumbar_vertebrae",
    "aorta",
    "postcava",
    "iliac_artery_left",
    "iliac_artery_right",
    "iliac_vein_left",
    "iliac_vein_right",
    "uterus",
)
TARGETS = ("prostate", "bladder", "rectum")
PATIENTS = 24
VESSELS = read_table(__file__, "vessels")


@dataclasses.dataclass(frozen=True)
class Drawing(Picture):
    """A picture with the patient it was drawn from."""

    patient: Patient


def is_dicom(index: int) -> bool:
    """Whether a patient is written as DICOM: every third one, all men (a SEG cannot say "absent")."""
    return index % 3 == 2


def draw(seed: int, index: int, size: str = "full") -> Drawing:
    """Patient `index` of the cohort with this seed. size: "full", or "tiny" for quick tests (6 mm voxels)."""
    return render(*plan(seed, index, size))


def plan(seed: int, index: int, size: str = "full") -> tuple[Patient, Protocol, np.random.Generator]:
    """Draw the parameters of a patient and the scan; the generator goes on to draw the picture."""
    rng = np.random.default_rng([seed, index])
    patient = sample_patient(rng, index)
    width_mm = 2 * (165 * patient.size[0] + 1.25 * patient.fat_mm)
    protocol = sample_protocol(rng, index, width_mm, oblique=index % 4 == 1, any_axes=not is_dicom(index))
    return patient, protocol.coarse() if size == "tiny" else protocol, rng


def render(
    patient: Patient, protocol: Protocol, rng: np.random.Generator, ids: Mapping[str, int] = IDS
) -> Drawing:
    """Draw a planned patient. ids: what the label map shows."""
    # what is not shown is background
    scene = TrunkScan(patient, protocol, rng, dict.fromkeys((*IDS, "background"), 0) | dict(ids))
    skin, wall = paint_trunk(scene, patient)
    bones = build_skeleton(scene, patient)
    organs = build_organs(scene, patient)
    vessels = {name: scene.tube(rows[:, :4], blend_mm=float(rows[0, 4])) for name, rows in VESSELS.items()}
    spine = [vertebra for vertebra, _ in bones.spine]
    solid = scene.spread(bones.sacrum, *bones.hips.values(), *spine, *vessels.values(), *organs.solid)
    paint_bowel(scene, patient, organs.rectum_line[0], np.minimum(solid, wall))
    for name, shape in vessels.items():
        tissue, label = name.split()
        shape.paint(tissue, None if label.startswith("internal_iliac") else label)
    paint_skeleton(scene, bones, patient.wear)
    paint_organs(scene, organs, patient)
    image, labels = scene.finish(skin, metal=bones.metal)
    facts = {
        "sex": patient.sex,
        "metal": patient.metal_side != 0,
        "contrast": patient.contrast,
        "rectum": patient.rectum_content,
    }
    return Drawing(image, labels, facts, patient)
