"""The task "abdomen": liver, both kidneys and spleen in CT of the upper abdomen.

Organs that touch have like attenuation in most phases of contrast medium, the liver of some is fatty, stomach
and bowel hold food, fluid or gas, and one patient in eight has lost a kidney or the spleen. Begin reading
with `draw`; what varies stands in `people.py`, the frame in `trunk.py`.
"""

from __future__ import annotations

import numpy as np

from ctseg.anatomy.abdomen.gut import paint_gut
from ctseg.anatomy.abdomen.organs import build_organs, paint_organs
from ctseg.anatomy.abdomen.people import IDS, Person, sample_person, sample_scan
from ctseg.anatomy.abdomen.trunk import build_trunk, paint_trunk
from ctseg.anatomy.abdomen.vessels import TWIGS, build_vessels, paint_liver_vessels, paint_vessels
from ctseg.anatomy.body import paint_twigs
from ctseg.anatomy.patients import Protocol, coarse
from ctseg.anatomy.picture import Picture
from ctseg.anatomy.scanner import TINY_SPACING_MM, begin_scan, paint_table
from ctseg.anatomy.texture import fields

__all__ = ["IDS", "PATIENTS", "TARGETS", "draw", "plan"]

TARGETS = ("liver", "kidney_right", "kidney_left", "spleen")
PATIENTS = 24
_STREAM = 3  # keeps the draws of this task apart from those of others


def draw(seed: int, index: int, size: str = "full") -> Picture:
    """Patient `index` of the cohort with this seed. size: "full", or "tiny" for quick tests (6 mm voxels)."""
    person, protocol, rng = plan(seed, index, size)
    scan = begin_scan(person, protocol, rng)
    scene = scan.scene
    texture = fields(scene, rng)
    trunk = build_trunk(scene, person, scene.smooth_field(rng, 40.0))
    paint_table(scene, person.fat_mm)
    spine = paint_trunk(scene, trunk, person, texture)
    vein_hu = person.hu["vein"]
    paint_twigs(scene, rng, TWIGS, vein_hu, step_mm=(4, 9), radius_mm=(0.7, 1.8), mirrored=False)
    organs = build_organs(scene, person, trunk, texture)
    vessels = build_vessels(scene)
    solid = scene.spread(*organs.solid(), *spine, *vessels.values())
    paint_gut(scene, person, rng, np.minimum(solid, -trunk.abdomen - 1.5), texture)
    paint_organs(scene, organs, person, texture, rng)
    paint_liver_vessels(scene, organs.liver, person)
    paint_vessels(scene, vessels, person, texture)
    image, label = scan.finish(rng, trunk.skin, streaks_z_mm=150.0, streak_share=0.3)
    facts = {
        "phase": person.phase,
        "removed": person.removed,
        "stomach": person.stomach_content,
        "liver_hu": round(person.hu["liver"]),
        "spleen_hu": round(person.hu["spleen"]),
        "noise_hu": round(protocol.noise_hu, 1),
    }
    return Picture(image, label, facts)


def plan(seed: int, index: int, size: str = "full") -> tuple[Person, Protocol, np.random.Generator]:
    """Draw the parameters of a patient and the scan; the generator goes on to draw the picture."""
    rng = np.random.default_rng([seed, index, _STREAM])
    person = sample_person(rng, index)
    protocol = sample_scan(rng, index, person)
    return person, coarse(protocol, TINY_SPACING_MM) if size == "tiny" else protocol, rng
