"""The task "abdomen": liver, both kidneys and spleen in CT of the upper abdomen.

Organs that touch have like attenuation in most phases of contrast medium, the liver of some is fatty, stomach
and bowel hold food, fluid or gas, and one patient in eight has lost a kidney or the spleen. Begin reading
with `draw`; what varies stands in `people.py`, the frame in `trunk.py`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.abdomen.gut import paint_gut
from ctseg.anatomy.abdomen.organs import build_organs, paint_organs
from ctseg.anatomy.abdomen.people import Person, sample_person
from ctseg.anatomy.abdomen.trunk import paint_trunk
from ctseg.anatomy.scanner import Protocol, TrunkScan, sample_protocol
from ctseg.anatomy.tasks import Picture, numbered

IDS = numbered(
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
TARGETS = ("liver", "kidney_right", "kidney_left", "spleen")
PATIENTS = 24
_STREAM = 3  # keeps the draws of this task apart from those of others


def draw(seed: int, index: int, size: str = "full") -> Picture:
    """Patient `index` of the cohort with this seed. size: "full", or "tiny" for quick tests (6 mm voxels)."""
    person, protocol, rng = plan(seed, index, size)
    scene = TrunkScan(person, protocol, rng, IDS)
    trunk = paint_trunk(scene, person)
    organs = build_organs(scene, person, trunk)
    wall = -np.maximum(trunk.cavity, trunk.dome) - 1.5
    paint_gut(scene, person, np.minimum(scene.spread(*organs.solid, *trunk.spine), wall))
    paint_organs(organs, person)
    image, label = scene.finish(trunk.skin, streaks_z_mm=150.0, streak_share=0.3)
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
    """Draw the parameters of a patient, and of a scan from below the kidneys to above the diaphragm.

    The generator goes on to draw the picture.
    """
    rng = np.random.default_rng([seed, index, _STREAM])
    person = sample_person(rng, index)
    width_mm = 2 * (148 * person.size[0] + 1.2 * person.fat_mm)
    protocol = sample_protocol(rng, index, width_mm, oblique=index % 6 == 2, any_axes=True)
    slice_mm = protocol.spacing_mm[0]
    bottom, top = rng.uniform((-132, 136), (-112, 158)).tolist()
    if slice_mm < 1.4:  # thin slices: a tighter range keeps the cohort small
        slice_mm, bottom, top = 1.4, bottom + 8, 134.0
    depth = int(np.clip(round((top - bottom) / slice_mm), 45, 200))
    protocol = dataclasses.replace(
        protocol,
        spacing_mm=(slice_mm, *protocol.spacing_mm[1:]),
        bottom_mm=bottom,
        shape=(depth, *protocol.shape[1:]),
        noise_hu=rng.uniform(10, 20),
    )
    return person, protocol.coarse() if size == "tiny" else protocol, rng
