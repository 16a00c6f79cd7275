"""One patient from seed and number to a CT and a label map."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.ndimage import gaussian_filter

from ctseg.anatomy.implicit import Scene, Shape
from ctseg.anatomy.labels import IDS
from ctseg.anatomy.patients import Body, Patient, Protocol, coarse, sample_patient, sample_protocol
from ctseg.anatomy.pelvis.bowel import colon_lines, paint_bowel
from ctseg.anatomy.pelvis.muscles import (
    genital_outline,
    outlines,
    paint_cords,
    paint_muscles,
    paint_skin_and_fat,
)
from ctseg.anatomy.pelvis.organs import build_organs, paint_organs
from ctseg.anatomy.pelvis.skeleton import build_skeleton, paint_skeleton
from ctseg.anatomy.pelvis.vessels import paint_small_vessels, vessel_shapes
from ctseg.anatomy.texture import Texture, add_metal_streaks, add_noise, fields, finish, paint_table
from ctseg.anatomy.wear import HEALTHY, Wear
from ctseg.geometry.volume import CANONICAL_DIRECTIONS, Grid, Volume, reorient

TINY_SPACING_MM = 6.0


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A drawn patient. image: HU float32; label: uint8 ids of `labels.IDS`; both (D, H, W) on one grid."""

    patient: Patient
    protocol: Protocol
    image: Volume
    label: Volume


def is_dicom(index: int) -> bool:
    """Whether a patient of a cohort is written as DICOM: every third one, all men (a SEG cannot say "absent")."""
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
    if size == "tiny":
        protocol = coarse(protocol, TINY_SPACING_MM)
    return patient, protocol, rng


def draw(seed: int, index: int, size: str = "full") -> Drawing:
    """Draw one patient. size: "full", or "tiny" for quick tests (6 mm voxels)."""
    return render(*plan(seed, index, size))


def render(patient: Patient, protocol: Protocol, rng: np.random.Generator, wear: Wear = HEALTHY) -> Drawing:
    """Draw a planned patient. wear: the state of the bones."""
    grid, pose = scan_geometry(patient, protocol)
    rows = body_rows(grid, pose, patient)  # only these are drawn: the rest is air
    shape = (grid.shape[0], rows.stop - rows.start, grid.shape[2])
    scene = Scene(shape, grid.crop((0, rows.start, 0), shape).affine, pose, rng, patient.warp_mm)
    texture = fields(scene, rng)
    skin, muscle, inner = _draw_body(scene, patient, rng, texture)
    metal = _draw_inside(scene, patient, rng, texture, np.minimum(muscle, -20.0 - inner), wear)
    scene.hu = gaussian_filter(scene.hu, (0, 0.45, 0.45), truncate=2.5)  # the scanner's own blur
    if metal is not None:
        add_metal_streaks(scene, rng, metal)
    add_noise(scene, rng, protocol, skin)
    image = Volume(finish(scene, protocol, grid.shape, rows, rng), grid.affine)
    label = Volume(np.zeros(grid.shape, dtype=np.uint8), grid.affine)
    label.array[:, rows] = scene.label
    order, flips = protocol.axis_order, protocol.axis_flips
    return Drawing(patient, protocol, reorient(image, order, flips), reorient(label, order, flips))


def _draw_body(
    scene: Scene, patient: Patient, rng: np.random.Generator, texture: Texture
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Table, skin, fat and muscles. Returns the functions of the skin, the muscles, and the outline below the fat."""
    skin, inner = outlines(scene, patient, scene.smooth_field(rng, 40.0))
    genitals = genital_outline(scene, patient)
    if genitals.f.size:
        np.minimum(skin[genitals.box], genitals.f, out=skin[genitals.box])
    paint_table(scene, patient)
    paint_skin_and_fat(scene, skin, patient, texture.grain, texture.blotch)
    muscle = paint_muscles(scene, inner, patient, texture.grain, texture.blotch)
    paint_cords(scene, patient)
    paint_small_vessels(scene, patient, rng)
    return skin, muscle, inner


def _draw_inside(
    scene: Scene, patient: Patient, rng: np.random.Generator, texture: Texture, wall: np.ndarray, wear: Wear
) -> Shape | None:
    """Bowel, vessels, bones and organs. wall: where the bowel cannot be, f on the whole grid. Returns the metal."""
    bones = build_skeleton(scene, patient, wear)
    organs = build_organs(scene, patient, texture.lumps)
    vessels = vessel_shapes(scene)
    solid = [bones.sacrum, *bones.hips.values(), *(v for v, _ in bones.spine), *(s for s, _, _ in vessels)]
    solid += [
        *organs.ovaries,
        *(
            s
            for s in (organs.bladder, organs.rectum, organs.prostate, organs.seminal, organs.uterus)
            if s is not None
        ),
    ]
    keep_out = np.minimum(scene.spread(*solid), wall)
    colon = colon_lines(patient, rng, organs.rectum_line[0])
    paint_bowel(scene, patient, rng, colon, keep_out, texture)
    for shape, tissue, name in vessels:
        scene.paint(shape, patient.hu[tissue], IDS[name] if name else None)
    paint_skeleton(scene, bones, patient, texture.grain, texture.blotch, wear)
    paint_organs(scene, organs, patient, texture.grain, texture.blotch)
    return bones.metal


def scan_geometry(patient: Body, protocol: Protocol) -> tuple[Grid, np.ndarray]:
    """The scan's grid, and the pose (4, 4) of the patient: LPS mm to template mm."""
    affine = np.eye(4)
    spacing, shape = np.array(protocol.spacing_mm), np.array(protocol.shape)
    affine[:3, :3] = _rotation(protocol.tilt) @ CANONICAL_DIRECTIONS.T * spacing
    middle_mm = np.array(
        [protocol.shift_mm[0], 5.0 + protocol.shift_mm[1], protocol.bottom_mm + 0.5 * shape[0] * spacing[0]]
    )
    affine[:3, 3] = middle_mm - affine[:3, :3] @ ((shape - 1) / 2)
    pose = np.eye(4)
    pose[:3, :3] = np.diag(1 / np.array(patient.size)) @ _rotation(protocol.turn)
    return Grid(protocol.shape, affine), pose


def body_rows(grid: Grid, pose: np.ndarray, patient: Body) -> slice:
    """The rows that body and table can lie in; above and below there is only air."""
    y = (pose @ grid.affine)[1]
    tilted = sum(abs(y[axis]) * grid.shape[axis] for axis in (0, 2)) / 2
    middle = y[3] + sum(y[axis] * grid.shape[axis] for axis in (0, 2)) / 2
    front, back = -150 - patient.fat_mm - min(tilted, 40), 150 + patient.fat_mm + min(tilted, 40)
    start, stop = (int(np.clip(round((edge - middle) / y[1]), 0, grid.shape[1])) for edge in (front, back))
    return slice(start, max(stop, start + 2))


def _rotation(angles: tuple[float, float, float]) -> np.ndarray:
    """Rotation about x, then y, then z by `angles` (radians)."""
    out = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out
