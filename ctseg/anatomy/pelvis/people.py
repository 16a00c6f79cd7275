"""What varies between the patients of the pelvis: lengths in mm, volumes in mL, angles in radians, HU."""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.patients import Body
from ctseg.anatomy.shape_tables import draw_ranges, read_table

TISSUES = read_table(__file__, "attenuation")


@dataclasses.dataclass(frozen=True)
class Patient(Body):
    """One synthetic person on the day of the scan."""

    sex: str  # "male" or "female"
    bladder_ml: float
    bladder_pitch: float
    bladder_shift_mm: tuple[float, float]
    prostate_mm: tuple[float, ...]  # width, depth, height
    prostate_pitch: float
    rectum_radius_mm: tuple[float, float, float]  # top, ampulla, lower end
    rectum_bend_mm: tuple[float, float]  # sideways, at the upper and lower fold
    rectum_content: str  # "gas", "stool", "gel" (contrast medium), "collapsed"
    uterus_mm: tuple[float, float, float]
    uterus_pitch: float
    contrast: str  # "none", "venous", "excreted"
    hu: dict[str, float]  # tissue -> mean attenuation
    metal_side: int = 0  # -1 right, 1 left, 0 no metal hip

    @property
    def bladder_fullness(self) -> float:
        """0 when nearly empty, 1 when full."""
        return float(np.clip((self.bladder_ml - 60) / 420, 0, 1))


def sample_patient(rng: np.random.Generator, sex: str) -> Patient:
    """A person. Independent draws around adult means; ranges are those of the clinical literature."""
    male = sex == "male"
    width, depth, height = rng.uniform((0.94, 0.95, 0.95), (1.06, 1.06, 1.05)).tolist()
    prostate_ml = rng.uniform(38, 92)
    shape = rng.uniform((1.18, 0.82, 0.92), (1.38, 1.0, 1.12))
    contrast = str(rng.choice(["none", "venous", "excreted"], p=[0.44, 0.25, 0.31]))
    return Patient(
        sex=sex,
        size=(width, depth, height) if male else (width * 1.03, depth, height * 0.95),
        fat_mm=rng.uniform(9, 28) if male else rng.uniform(14, 34),
        warp_mm=rng.uniform(1.6, 2.6),
        bladder_ml=rng.uniform(70**0.5, 480**0.5) ** 2,
        bladder_pitch=rng.uniform(-0.4, 0.4),
        bladder_shift_mm=(rng.normal(0, 4), rng.normal(0, 3)),
        prostate_mm=tuple(((prostate_ml * 1000 / 0.42 / shape.prod()) ** (1 / 3) * shape).tolist()),
        prostate_pitch=rng.uniform(0.25, 0.6),
        rectum_radius_mm=(rng.uniform(13, 17), rng.uniform(15, 22), rng.uniform(13, 16)),
        rectum_bend_mm=(
            float(rng.choice([-1, 1]) * rng.uniform(8, 17)),
            float(rng.choice([-1, 1]) * rng.uniform(3, 10)),
        ),
        rectum_content=str(rng.choice(["gas", "stool", "gel", "collapsed"], p=[0.42, 0.37, 0.13, 0.08])),
        uterus_mm=(rng.uniform(20, 28), rng.uniform(17, 24), rng.uniform(32, 44)),
        uterus_pitch=rng.uniform(0.6, 1.3),
        contrast=contrast,
        hu=sample_attenuation(rng, contrast != "none"),
    )


def sample_attenuation(rng: np.random.Generator, enhanced: bool) -> dict[str, float]:
    """Mean attenuation of each tissue in HU; contrast medium raises the vessels and, less, the organs."""
    gain = rng.uniform(10, 26) if enhanced else 0.0
    prostate = rng.uniform(38, 50) + gain
    vein = rng.uniform(38, 48) + (rng.uniform(70, 130) if enhanced else 0.0)
    hu = draw_ranges(rng, TISSUES)
    for tissue in ("bladder_wall", "seminal", "rectum_wall"):
        hu[tissue] = prostate - hu[tissue]
    for tissue, share in (("muscle", 0.4), ("bowel_wall", 1.0), ("uterus", 1.5)):
        hu[tissue] += share * gain
    artery = vein + (12.0 if enhanced else 0.0)
    return hu | {"skin": 30.0, "cartilage": 70.0, "prostate": prostate, "vein": vein, "artery": artery}
