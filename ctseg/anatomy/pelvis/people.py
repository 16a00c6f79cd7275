"""What varies between the patients of the pelvis, `people.toml` and what follows from it, and how bones wear.

Lengths in mm, volumes in mL, angles in radians, attenuation in HU. Keys of sides: 1 left, -1 right.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.implicit import SIDES
from ctseg.anatomy.scanner import Body
from ctseg.anatomy.shape_tables import draw_values, read_people

PEOPLE = read_people(__file__)
HEAD = (84.0, 0.0, 0.0)  # centre of the left femoral head


@dataclasses.dataclass(frozen=True)
class Spur:
    """A knob of bone: "hip_left", "femur_right", ..., its centre in template mm, its radius in mm."""

    bone: str
    center: tuple[float, float, float]
    radius: float


@dataclasses.dataclass(frozen=True)
class Wear:
    """The state of the bones, healthy as it stands; pairs are {1: left, -1: right}."""

    cortex: float = 1.0  # thickness of the dense shell relative to a healthy one
    hip_gap_mm: dict[int, float] = dataclasses.field(default_factory=lambda: {1: 2.2, -1: 2.2})  # cartilage
    # bone beside the hip that much denser
    sclerosis_hu: dict[int, float] = dataclasses.field(default_factory=dict)
    # cartilage; none: bone on bone
    sacroiliac_gap_mm: dict[int, float] = dataclasses.field(default_factory=dict)
    fused: tuple[int, ...] = ()  # sides on which spongy bone runs through the sacroiliac joint
    spurs: tuple[Spur, ...] = ()


HEALTHY = Wear()


@dataclasses.dataclass(frozen=True)
class Patient(Body):
    """One synthetic person on the day of the scan."""

    sex: str  # "male" or "female"
    bladder_ml: float
    bladder_pitch: float
    bladder_shift_mm: list[float]
    prostate_mm: list[float]  # width, depth, height
    prostate_pitch: float
    rectum_radius_mm: list[float]  # top, ampulla, lower end
    rectum_bend_mm: list[float]  # sideways, at the upper and lower fold
    rectum_content: str  # "gas", "stool", "gel" (contrast medium), "collapsed"
    uterus_mm: list[float]
    uterus_pitch: float
    contrast: str  # "none", "venous", "excreted"
    metal_side: int  # -1 right, 1 left, 0 no metal hip
    wear: Wear = HEALTHY

    @property
    def bladder_fullness(self) -> float:
        """0 when nearly empty, 1 when full."""
        return float(np.clip((self.bladder_ml - 60) / 420, 0, 1))


def sample_patient(rng: np.random.Generator, index: int) -> Patient:
    """A person. Of three patients, one is a woman more or less in turn; of eight, one has a metal hip."""
    values = draw_values(rng, PEOPLE["body"])
    fat, male = values.pop("fat"), index % 3 != 1 or index % 12 == 10
    width, depth, height = values["size"]
    if not male:
        values["size"] = width * 1.03, depth, height * 0.95
    volume, shape = values.pop("prostate_ml"), np.array(values.pop("prostate_shape"))
    prostate = (volume * 1000 / 0.42 / shape.prod()) ** (1 / 3) * shape
    folds = [values.pop(f"{fold}_fold_side") * values.pop(f"{fold}_fold_mm") for fold in ("upper", "lower")]

    # Contrast medium raises the vessels and, less, the organs.
    enhanced = values["contrast"] != "none"
    gain = rng.uniform(10, 26) if enhanced else 0.0
    gland = rng.uniform(38, 50) + gain
    vein = rng.uniform(38, 48) + (rng.uniform(70, 130) if enhanced else 0.0)
    hu = draw_values(rng, PEOPLE["attenuation"])
    for tissue in ("bladder_wall", "seminal", "rectum_wall"):
        hu[tissue] = gland - hu[tissue]
    for tissue, share in (("muscle", 0.4), ("bowel_wall", 1.0), ("uterus", 1.5)):
        hu[tissue] += share * gain
    artery = vein + (12.0 if enhanced else 0.0)
    hu |= {"skin": 30.0, "cartilage": 70.0, "prostate": gland, "vein": vein, "artery": artery}
    return Patient(
        sex="male" if male else "female",
        fat_mm=9 + 19 * fat if male else 14 + 20 * fat,
        bladder_ml=(70**0.5 + (480**0.5 - 70**0.5) * values.pop("bladder")) ** 2,
        prostate_mm=prostate.tolist(),
        rectum_bend_mm=folds,
        metal_side=0 if index % 8 != 3 else 1 if index % 16 == 3 else -1,
        hu=hu,
        **values,
    )


def sample_wear(rng: np.random.Generator) -> Wear:
    """The bones of an older patient: each hip and each sacroiliac joint wears on its own."""
    gaps, dense, iliac = {}, {}, {}
    fused: list[int] = []
    spurs: list[Spur] = []
    for side in (-1, 1):
        worn = rng.random() < 0.45
        gaps[side] = rng.uniform(0.2, 0.9) if worn else rng.uniform(1.4, 2.4)
        if worn:
            dense[side] = rng.uniform(150, 420)
            spurs += sample_spurs(rng, side)
        iliac[side] = float(rng.choice([0.0, rng.uniform(0.6, 1.2), rng.uniform(1.8, 2.8)]))
        if iliac[side] == 0.0 and rng.random() < 0.7:
            fused.append(side)
    return Wear(rng.uniform(0.5, 1.0), gaps, dense, iliac, tuple(fused), tuple(spurs))


def sample_spurs(rng: np.random.Generator, side: int) -> list[Spur]:
    """A ring of knobs where the head meets the neck, and some along the rim of the socket."""
    axis = np.array([0.73, 0.14, -0.67])  # from the head's centre down the neck
    axis /= np.linalg.norm(axis)
    across = np.cross(axis, (0.0, 1.0, 0.0))
    across /= np.linalg.norm(across)
    found = []
    counts = rng.integers(4, 9), rng.integers(2, 6)
    for bone, along, ring, count in (("femur", 13.0, 20.5, counts[0]), ("hip", 7.0, 29.0, counts[1])):
        for turn in rng.uniform(0, 2 * np.pi, count):
            if bone == "hip" and np.cos(turn) * across[2] < -0.1:
                continue  # the socket is open below
            radial = np.cos(turn) * across + np.sin(turn) * np.cross(axis, across)
            x, y, z = (np.array(HEAD) + along * axis + ring * radial).tolist()
            found.append(Spur(f"{bone}_{SIDES[side]}", (side * x, y, z), rng.uniform(3.0, 5.5)))
    return found
