"""One patient from seed and number to a CT and a label map."""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.body import paint_skin_and_fat, paint_twigs
from ctseg.anatomy.labels import IDS
from ctseg.anatomy.patients import Protocol, coarse, sample_protocol
from ctseg.anatomy.pelvis.bowel import paint_bowel
from ctseg.anatomy.pelvis.muscles import outlines, paint_cords, paint_fold, paint_muscles
from ctseg.anatomy.pelvis.organs import build_organs, paint_organs
from ctseg.anatomy.pelvis.people import Patient, sample_patient
from ctseg.anatomy.pelvis.skeleton import build_skeleton, paint_skeleton
from ctseg.anatomy.pelvis.vessels import TWIGS, vessel_shapes
from ctseg.anatomy.pelvis.wear import HEALTHY, Wear
from ctseg.anatomy.scanner import TINY_SPACING_MM, begin_scan, paint_table
from ctseg.anatomy.texture import fields
from ctseg.geometry.volume import Volume


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A drawn patient. image: HU float32; label: uint8 ids of `labels.IDS`; both (D, H, W) on one grid."""

    patient: Patient
    protocol: Protocol
    image: Volume
    label: Volume


def is_dicom(index: int) -> bool:
    """Whether a patient is written as DICOM: every third one, all men (a SEG cannot say "absent")."""
    return index % 3 == 2


def sex_of(index: int) -> str:
    """Sex of the patient with this number: of three, one woman more or less in turn."""
    return "female" if index % 3 == 1 and index % 12 != 10 else "male"


def plan(seed: int, index: int, size: str = "full") -> tuple[Patient, Protocol, np.random.Generator]:
    """Draw the parameters of a patient and the scan; the generator goes on to draw the picture."""
    rng = np.random.default_rng([seed, index])
    patient = sample_patient(rng, sex_of(index))
    if index % 8 == 3:
        patient = dataclasses.replace(patient, metal_side=1 if index % 16 == 3 else -1)
    width_mm = 2 * (165 * patient.size[0] + 1.25 * patient.fat_mm)
    protocol = sample_protocol(rng, index, width_mm, oblique=index % 4 == 1, any_axes=not is_dicom(index))
    return patient, coarse(protocol, TINY_SPACING_MM) if size == "tiny" else protocol, rng


def draw(seed: int, index: int, size: str = "full") -> Drawing:
    """Draw one patient. size: "full", or "tiny" for quick tests (6 mm voxels)."""
    return render(*plan(seed, index, size))


def render(patient: Patient, protocol: Protocol, rng: np.random.Generator, wear: Wear = HEALTHY) -> Drawing:
    """Draw a planned patient. wear: the state of the bones."""
    scan = begin_scan(patient, protocol, rng)
    scene = scan.scene
    texture = fields(scene, rng)
    skin, inner = outlines(scene, patient, scene.smooth_field(rng, 40.0))
    paint_table(scene, patient.fat_mm)
    paint_skin_and_fat(scene, skin, patient.hu, texture)
    paint_fold(scene, skin, patient)
    muscle = paint_muscles(scene, inner, patient, texture)
    paint_cords(scene, patient)
    vein_hu = patient.hu["vein"]
    paint_twigs(scene, rng, TWIGS, vein_hu, step_mm=(5, 10), radius_mm=(0.8, 2.0), mirrored=True)
    bones = build_skeleton(scene, patient, wear)
    organs = build_organs(scene, patient, texture)
    vessels = vessel_shapes(scene)
    solid = [bones.sacrum, *bones.hips.values(), *(v for v, _ in bones.spine), *(s for s, _, _ in vessels)]
    wall = np.minimum(muscle, -20.0 - inner)
    keep_out = np.minimum(scene.spread(*solid, *organs.solid()), wall)
    paint_bowel(scene, patient, rng, organs.rectum_line[0], keep_out, texture)
    for shape, tissue, name in vessels:
        scene.paint(shape, patient.hu[tissue], IDS[name] if name else None)
    paint_skeleton(scene, bones, patient, texture, wear)
    paint_organs(scene, organs, patient, texture)
    return Drawing(patient, protocol, *scan.finish(rng, skin, metal=bones.metal))
