"""What age and illness do to the bones of the pelvis: thin cortex, narrow or fused joints, dense rims, spurs.

`HEALTHY` changes nothing. Keys of sides: 1 left, -1 right. Lengths in mm, attenuation in HU.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.implicit import Scene, Shape
from ctseg.anatomy.labels import IDS, SIDES

HEAD = (84.0, 0.0, 0.0)  # centre of the left femoral head
HEAD_RADIUS_MM = 23.5
_HEALTHY_GAP_MM = 2.2


@dataclasses.dataclass(frozen=True)
class Wear:
    """The state of the bones."""

    cortex: float = 1.0  # thickness of the dense shell relative to a healthy one
    hip_gap_mm: tuple[float, float] = (_HEALTHY_GAP_MM, _HEALTHY_GAP_MM)  # cartilage in the hip: right, left
    sclerosis_hu: tuple[float, float] = (0.0, 0.0)  # how much denser the bone beside the hip is: right, left
    sacroiliac_gap_mm: tuple[float, float] = (
        0.0,
        0.0,
    )  # cartilage beside the sacrum: right, left; 0: bone on bone
    fused: tuple[bool, bool] = (False, False)  # spongy bone runs through the sacroiliac joint: right, left
    spurs: tuple[
        tuple[str, tuple[float, float, float], float], ...
    ] = ()  # bone, centre in template mm, radius

    def spurs_of(self, scene: Scene, bone: str) -> list[Shape]:
        """The spurs that have grown on a bone."""
        return [scene.ellipsoid(center, (radius,) * 3) for name, center, radius in self.spurs if name == bone]


HEALTHY = Wear()


def at_side(pair: tuple[float, float], side: int) -> float:
    """The value of a side from a pair (right, left)."""
    return pair[1] if side == 1 else pair[0]


def sample_wear(rng: np.random.Generator) -> Wear:
    """The bones of an older patient: each hip and each sacroiliac joint wears on its own."""
    gaps, dense, spurs, iliac, fused = [], [], [], [], []
    for side in (-1, 1):
        worn = bool(rng.random() < 0.45)
        gaps.append(float(rng.uniform(0.2, 0.9) if worn else rng.uniform(1.4, 2.4)))
        dense.append(float(rng.uniform(150, 420)) if worn else 0.0)
        spurs += _spurs(rng, side) if worn else []
        iliac.append(float(rng.choice([0.0, rng.uniform(0.6, 1.2), rng.uniform(1.8, 2.8)])))
        fused.append(bool(iliac[-1] == 0.0 and rng.random() < 0.7))
    return Wear(
        float(rng.uniform(0.5, 1.0)),
        (gaps[0], gaps[1]),
        (dense[0], dense[1]),
        (iliac[0], iliac[1]),
        (fused[0], fused[1]),
        tuple(spurs),
    )


def _spurs(rng: np.random.Generator, side: int) -> list[tuple[str, tuple[float, float, float], float]]:
    """A ring of knobs where the head meets the neck, and some along the rim of the socket."""
    axis = np.array([0.73, 0.14, -0.67])  # from the head's centre down the neck
    axis /= np.linalg.norm(axis)
    across = np.cross(axis, (0.0, 1.0, 0.0))
    across /= np.linalg.norm(across)
    found = []
    for bone, along, ring, count in (
        ("femur", 13.0, 20.5, int(rng.integers(4, 9))),
        ("hip", 7.0, 29.0, int(rng.integers(2, 6))),
    ):
        for turn in rng.uniform(0, 2 * np.pi, count):
            if bone == "hip" and np.cos(turn) * across[2] < -0.1:
                continue  # the socket is open below
            point = (
                np.array(HEAD)
                + along * axis
                + ring * (np.cos(turn) * across + np.sin(turn) * np.cross(axis, across))
            )
            found.append(
                (
                    f"{bone}_{SIDES[side]}",
                    (float(side * point[0]), float(point[1]), float(point[2])),
                    float(rng.uniform(3.0, 5.5)),
                )
            )
    return found


def harden_hips(scene: Scene, wear: Wear) -> None:
    """Make the bone on both sides of a worn hip joint denser, most where it carries the weight."""
    for side in SIDES:
        gain = at_side(wear.sclerosis_hu, side)
        if not gain:
            continue
        center = np.array(HEAD) * (side, 1, 1)
        box = scene.box(center - 36, center + 36)
        x, y, z = scene.at(box)
        dx, dy, dz = (x - np.float32(center[0])) * side, y - np.float32(center[1]), z - np.float32(center[2])
        radius = np.sqrt(dx * dx + dy * dy + dz * dz)
        loaded = np.clip(0.45 + 0.75 * dz / np.maximum(radius, 1), 0, 1)
        rim = np.exp(-(((radius - HEAD_RADIUS_MM) / 5.5) ** 2)) * loaded
        bone = np.isin(scene.label[box], [IDS[f"hip_{SIDES[side]}"], IDS[f"femur_{SIDES[side]}"]])
        scene.hu[box] += np.float32(gain) * (rim * bone).astype(np.float32)


def part_sacroiliac(
    scene: Scene, sacrum: Shape, hips: dict[int, Shape], wear: Wear, cartilage_hu: float
) -> None:
    """Cartilage between hip bone and sacrum; drawn before the sacrum."""
    for side in SIDES:
        gap = at_side(wear.sacroiliac_gap_mm, side)
        if gap and sacrum.f.size:
            joint = _common(scene, sacrum, hips[side], gap, 0.5)
            scene.label[joint.box][joint.f <= 0] = 0
            scene.paint(joint, cartilage_hu)


def bridge_sacroiliac(
    scene: Scene, sacrum: Shape, hips: dict[int, Shape], wear: Wear, spongy: np.ndarray, blotch: np.ndarray
) -> None:
    """Spongy bone across a fused joint, in patches; drawn after the sacrum. The labels stay."""
    for side in SIDES:
        if at_side(wear.fused, side) and sacrum.f.size:
            joint = _common(scene, sacrum, hips[side], 3.2, 3.2)
            joint.f = np.maximum(joint.f, -2.6 - sacrum.f).astype(np.float32)
            joint.f = np.maximum(joint.f, 2.5 * (-0.9 - blotch[sacrum.box])).astype(np.float32)
            scene.paint(joint, spongy[sacrum.box], strength=0.92)


def _common(scene: Scene, sacrum: Shape, hip: Shape, gap_mm: float, reach_mm: float) -> Shape:
    """Where the surroundings of both bones overlap, over the sacrum's box."""
    hip_f = scene.spread(hip)[sacrum.box]
    return Shape(sacrum.box, np.maximum(sacrum.f - np.float32(gap_mm), hip_f - np.float32(reach_mm)))
