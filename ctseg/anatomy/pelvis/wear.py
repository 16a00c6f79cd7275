"""What age and illness do to the bones of the pelvis: thin cortex, narrow or fused joints, dense rims, spurs.

`HEALTHY` changes nothing. Keys of sides: 1 left, -1 right. Lengths in mm, attenuation in HU.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.implicit import Scene, Shape
from ctseg.anatomy.labels import IDS, SIDES
from ctseg.anatomy.texture import Texture

HEAD = (84.0, 0.0, 0.0)  # centre of the left femoral head
HEAD_RADIUS_MM = 23.5


@dataclasses.dataclass(frozen=True)
class Spur:
    """A knob of bone: "hip_left", "femur_right", ..., its centre in template mm, its radius in mm."""

    bone: str
    center: tuple[float, float, float]
    radius: float


@dataclasses.dataclass(frozen=True)
class Wear:
    """The state of the bones; pairs are {1: left, -1: right}."""

    cortex: float = 1.0  # thickness of the dense shell relative to a healthy one
    hip_gap_mm: dict[int, float] = dataclasses.field(default_factory=lambda: {1: 2.2, -1: 2.2})  # cartilage
    # bone beside the hip that much denser
    sclerosis_hu: dict[int, float] = dataclasses.field(default_factory=dict)
    # cartilage; none: bone on bone
    sacroiliac_gap_mm: dict[int, float] = dataclasses.field(default_factory=dict)
    fused: tuple[int, ...] = ()  # sides on which spongy bone runs through the sacroiliac joint
    spurs: tuple[Spur, ...] = ()

    def spurs_of(self, scene: Scene, bone: str) -> list[Shape]:
        """The spurs that have grown on a bone."""
        return [scene.ellipsoid(spur.center, (spur.radius,) * 3) for spur in self.spurs if spur.bone == bone]


HEALTHY = Wear()


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


def harden_hips(scene: Scene, wear: Wear) -> None:
    """Make the bone on both sides of a worn hip joint denser, most where it carries the weight."""
    for side, gain in wear.sclerosis_hu.items():
        box, (x, y, z) = scene.around(HEAD, 36, side=side)
        radius = np.sqrt(x * x + y * y + z * z)
        loaded = np.clip(0.45 + 0.75 * z / np.maximum(radius, 1), 0, 1)
        rim = np.exp(-(((radius - HEAD_RADIUS_MM) / 5.5) ** 2)) * loaded
        bone = np.isin(scene.label[box], [IDS[f"hip_{SIDES[side]}"], IDS[f"femur_{SIDES[side]}"]])
        scene.hu[box] += np.float32(gain) * (rim * bone)


def part_sacroiliac(
    scene: Scene, sacrum: Shape, hips: dict[int, Shape], wear: Wear, cartilage_hu: float
) -> None:
    """Cartilage between hip bone and sacrum; drawn before the sacrum."""
    for side, gap in wear.sacroiliac_gap_mm.items():
        if gap:
            scene.paint(overlap(scene, sacrum, hips[side], gap, 0.5), cartilage_hu, 0)


def bridge_sacroiliac(
    scene: Scene, sacrum: Shape, hips: dict[int, Shape], wear: Wear, marrow_hu: float, texture: Texture
) -> None:
    """Spongy bone across a fused joint, in patches; drawn after the sacrum. The labels stay."""
    t = texture.on(sacrum)
    for side in wear.fused:
        joint = overlap(scene, sacrum, hips[side], 3.2, 3.2)
        joint = joint.within(-2.6 - sacrum.f).within(2.5 * (-0.9 - t.blotch))
        scene.paint(joint, marrow_hu + 45 * t.grain + 55 * t.blotch, strength=0.92)


def overlap(scene: Scene, sacrum: Shape, hip: Shape, gap_mm: float, reach_mm: float) -> Shape:
    """Where the surroundings of both bones overlap, over the sacrum's box."""
    return sacrum.inset(-gap_mm).within(scene.spread(hip)[sacrum.box] - np.float32(reach_mm))
