"""Synthetic contrast-enhanced heart: find the coronary arteries among vessels that look exactly like them.

Arteries and veins of the heart come from one routine, with one calibre, attenuation, depth in the fat and calcium.
Only the place on the heart tells which is which: between which chambers a tube runs. That is what the guide organs
(chambers, heart muscle, great vessels) know and a small patch does not. Every picture is synthetic and stands for
no real person.

The heart's shape is in `heart_shape`, its vessels in `heart_vessels`, everything around it in `heart_chest`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from ctseg.anatomy.heart.chest import (
    AORTA,
    CAVA,
    PULMONARY,
    PULMONARY_VEINS,
    great_tube,
    mammary_arteries,
    paint_chest,
    placed,
)
from ctseg.anatomy.heart.shape import Heart, SurfaceMap, make_heart, rotation
from ctseg.anatomy.heart.vessels import Vessel, cardiac_veins, coronaries
from ctseg.anatomy.implicit import Scene
from ctseg.anatomy.picture import Picture
from ctseg.anatomy.thin_tubes import TubeLayer, axis_voxels, to_index
from ctseg.geometry.volume import CANONICAL_DIRECTIONS, Volume, reorient

IDS = {
    "coronary_artery": 1,
    "heart_myocardium": 2,
    "heart_atrium_left": 3,
    "heart_ventricle_left": 4,
    "heart_atrium_right": 5,
    "heart_ventricle_right": 6,
    "aorta": 7,
    "pulmonary_artery": 8,
}
TARGETS = ("coronary_artery",)
PATIENTS = 20
TINY_SPACING_MM = 3.0
LOW_MM, HIGH_MM = np.array([-66.0, -81.0, -71.0]), np.array([74.0, 60.0, 73.0])  # the field of view: z, y, x
CALCIUM_HU = 900.0
_SLEEVE_MM = 1.5  # fat around every vessel of the heart


@dataclasses.dataclass(frozen=True)
class Patient:
    """One synthetic person and the scan. Lengths in mm, attenuation in HU."""

    scale: float  # body relative to the template
    pose: np.ndarray  # (3, 3) rotation of the body on the table
    warp_mm: float
    wall_mm: float
    sac_mm: float  # fat between the heart and its sac
    left_dominant: bool  # which tree feeds the heart's lower groove
    calcium: float  # plaques per 100 mm of vessel, arteries and veins alike: it tells nothing
    spacing_mm: tuple[float, float, float]
    noise_hu: float
    blur_mm: float
    hu: dict[str, float]
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A drawn patient and what tests want to see. arteries, veins: of the heart. vein: (D, H, W) mask like the
    label's, on the picture's grid."""

    patient: Patient
    picture: Picture
    arteries: tuple[list[Vessel], list[Vessel]]
    veins: list[Vessel]
    vein: np.ndarray


def draw(seed: int, index: int, size: str = "full") -> Picture:
    """One patient. size: "full", or "tiny" for quick tests (3 mm voxels)."""
    return draw_with_vessels(seed, index, size).picture


def draw_with_vessels(seed: int, index: int, size: str = "full") -> Drawing:
    """The same with the vessels it was drawn from."""
    rng = np.random.default_rng([seed, index, 47])
    patient = sample_patient(rng, size)
    heart = make_heart(rng, patient.wall_mm)
    scene = _scene(patient, rng)
    blotch = scene.smooth_field(rng, 9.0)
    at = heart.coordinates(scene.x, scene.y, scene.z)
    sac = (
        heart.bed(at, blend_mm=16.0)
        - np.float32(patient.sac_mm)
        - np.float32(0.8) * scene.smooth_field(rng, 18.0)
    )
    paint_chest(scene, patient.hu, blotch, sac, rng)
    scene.paint(scene.whole(sac), patient.hu["muscle"])
    scene.paint(scene.whole(sac + np.float32(1.2)), patient.hu["fat"] + 5 * blotch)
    _paint_heart(scene, heart, patient, at, blotch)
    chart = SurfaceMap(heart)
    trees = coronaries(chart, rng, _ostia(heart, chart), patient.left_dominant)
    veins = cardiac_veins(chart, rng, [*trees[0], *trees[1]])
    vein = _paint_vessels(scene, heart, patient, [*trees[0], *trees[1]], veins, rng)
    _scan(scene, patient, rng)
    facts = _facts(patient, scene, trees, veins, vein)
    image = reorient(Volume(scene.hu, scene.affine), patient.order, patient.flips)
    label = reorient(Volume(scene.label, scene.affine), patient.order, patient.flips)
    mask = reorient(Volume(vein, scene.affine), patient.order, patient.flips).array
    return Drawing(patient, Picture(image, label, facts), trees, veins, mask)


def sample_patient(rng: np.random.Generator, size: str) -> Patient:
    """Who is scanned, and how."""
    scale, in_plane = float(rng.uniform(0.93, 1.04)), float(rng.uniform(1.0, 1.1))
    fitting = scale * (HIGH_MM - LOW_MM).max() / 128  # so that no axis has more than 128 voxels
    spacing = (fitting * float(rng.uniform(1.0, 1.12)), fitting * in_plane, fitting * in_plane)
    if size == "tiny":
        spacing = (TINY_SPACING_MM,) * 3
    turned = rng.random() < 0.3
    order = tuple(int(v) for v in rng.permutation(3)) if turned else (0, 1, 2)
    flips = tuple(bool(v) for v in rng.integers(0, 2, 3)) if turned else (False, False, False)
    left = float(rng.uniform(320, 460))
    right = float(
        rng.uniform(85, 135) if rng.random() < 0.6 else rng.uniform(150, 430)
    )  # mostly washed out by saline
    return Patient(
        scale=scale,
        pose=rotation(rng.normal(0, 0.05, 3)),
        warp_mm=float(rng.uniform(0.8, 1.6)),
        wall_mm=float(rng.uniform(9.0, 12.0)),
        sac_mm=float(rng.uniform(6.0, 9.0)),
        left_dominant=bool(rng.random() < 0.2),
        calcium=float(rng.choice([0.0, 1.0, 2.5])),
        spacing_mm=spacing,
        noise_hu=float(rng.uniform(15, 28)),
        blur_mm=float(rng.uniform(0.5, 0.65)),
        hu={
            "fat": float(rng.uniform(-108, -88)),
            "muscle": float(rng.uniform(45, 60)),
            "myocardium": float(rng.uniform(90, 130)),
            "lung": float(rng.uniform(-870, -820)),
            "blood_left": left,
            "blood_right": right,
            "vessel": left - float(rng.uniform(0, 25)),
            "liver": float(rng.uniform(60, 85)),
            "spleen": float(rng.uniform(80, 120)),
            "cortex": float(rng.uniform(420, 600)),
            "marrow": float(rng.uniform(130, 210)),
        },
        order=order,  # type: ignore[arg-type]
        flips=flips,  # type: ignore[arg-type]
    )


def _scene(patient: Patient, rng: np.random.Generator) -> Scene:
    """The grid around the heart, and the pose of the patient in it."""
    shape = tuple(int(n) for n in np.round((HIGH_MM - LOW_MM) * patient.scale / patient.spacing_mm))
    affine = np.eye(4)
    affine[:3, :3] = CANONICAL_DIRECTIONS.T * np.array(patient.spacing_mm)
    middle = 0.5 * (LOW_MM + HIGH_MM)[::-1] * patient.scale + rng.normal(0, 1.5, 3)
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    pose = np.eye(4)
    pose[:3, :3] = patient.pose / patient.scale
    return Scene(shape, affine, pose, rng, patient.warp_mm)  # type: ignore[arg-type]


# ---- heart ------------------------------------------------------------------------------------------------


def _paint_heart(
    scene: Scene, heart: Heart, patient: Patient, at: tuple[np.ndarray, ...], blotch: np.ndarray
) -> None:
    """Walls, chambers and great vessels, each kept clear of the next."""
    hu, coordinates = patient.hu, (at[0], at[1], at[2])
    aorta = great_tube(scene, heart, AORTA)
    lung_artery = scene.join([great_tube(scene, heart, nodes) for nodes in PULMONARY.values()], 3.0)
    great = scene.spread(aorta, lung_artery)
    left, ventricle = heart.wall("lv", coordinates), heart.wall("lv", coordinates, patient.wall_mm)
    scene.paint(scene.whole(heart.surface(coordinates)), hu["myocardium"] - 10 + 4 * blotch)
    for nodes in PULMONARY_VEINS:
        scene.paint(great_tube(scene, heart, nodes), hu["blood_left"])
    for nodes in CAVA:
        scene.paint(great_tube(scene, heart, nodes), 0.5 * (hu["blood_right"] + 110))
    for name, f, tissue in (
        ("heart_atrium_right", heart.wall("ra", coordinates, 2.2), "blood_right"),
        ("heart_atrium_left", heart.wall("la", coordinates, 2.2), "blood_left"),
        (
            "heart_ventricle_right",
            np.maximum(heart.wall("rv", coordinates, 3.2), np.float32(0.5) - left),
            "blood_right",
        ),
    ):
        scene.paint(scene.whole(np.maximum(f, np.float32(1.5) - great)), hu[tissue] + 6 * blotch, IDS[name])
    muscle = np.maximum(left, np.float32(1.5) - great)
    scene.paint(scene.whole(muscle), hu["myocardium"] + 4 * blotch, IDS["heart_myocardium"])
    scene.paint(
        scene.whole(np.maximum(ventricle, np.float32(1.5) - great)),
        hu["blood_left"] + 6 * blotch,
        IDS["heart_ventricle_left"],
    )
    for shape, tissue, name in (
        (lung_artery, "blood_right", "pulmonary_artery"),
        (aorta, "blood_left", "aorta"),
    ):
        scene.paint(shape.inset(-1.5), hu["muscle"] + 20)
        scene.paint(shape, hu[tissue], IDS[name])


def _ostia(heart: Heart, chart: SurfaceMap) -> tuple[np.ndarray, np.ndarray]:
    """Heart points just inside the wall of the aorta where the left and the right tree begin."""
    axis = placed(heart, AORTA[1:3]) @ heart.basis.T
    radius, found = AORTA[1][3], []
    up = (axis[1] - axis[0]) / np.linalg.norm(axis[1] - axis[0])
    for angle, u in ((66.0, 4.0), (138.0, float(chart.ring(np.array([138.0]))[0]) + 2.0)):
        way = chart.points(np.array([angle]), np.array([u]), np.array([3.0]))[0] - axis[0]
        way -= (way @ up) * up
        found.append(axis[0] + (radius - 1.0) * way / np.linalg.norm(way))
    return found[0], found[1]


def _paint_vessels(
    scene: Scene,
    heart: Heart,
    patient: Patient,
    arteries: list[Vessel],
    veins: list[Vessel],
    rng: np.random.Generator,
) -> np.ndarray:
    """Arteries and veins in their fat, by one and the same rule. Returns the mask of the veins."""
    aorta = scene.label == IDS["aorta"]
    sleeve, other, calcium = TubeLayer(scene), TubeLayer(scene), TubeLayer(scene)
    layers, axes = (
        (TubeLayer(scene), TubeLayer(scene)),
        (np.zeros(scene.shape, dtype=bool), np.zeros(scene.shape, dtype=bool)),
    )
    for kind, vessels in enumerate((arteries, veins)):
        for vessel in vessels:
            nodes = to_index(scene, heart.template(vessel.points))
            sleeve.add(nodes, vessel.radii + _SLEEVE_MM)
            layers[kind].add(nodes, vessel.radii)
            axes[kind][tuple(axis_voxels(nodes, scene.shape).T)] = True
            for place in np.flatnonzero(rng.random(len(nodes)) < patient.calcium * 0.015):
                _add_ball(
                    calcium,
                    nodes[place] + rng.normal(0, 0.5, 3) * vessel.radii[place] / scene.spacing_mm,
                    rng.uniform(0.6, 1.2),
                )
    for points, radii in mammary_arteries(rng):
        other.add(to_index(scene, points), radii)
    for turn in rng.uniform(0, 2 * np.pi, int(rng.integers(0, 7))):  # in the ring of the mitral valve
        spot = np.array([[-5 + rng.normal(0, 1), 14 + 24 * np.cos(turn), 22 * np.sin(turn)]])
        _add_ball(calcium, to_index(scene, heart.template(spot))[0], rng.uniform(0.8, 2.0))
    blood = np.maximum(other.share, np.maximum(layers[0].share, layers[1].share)) * ~aorta
    fat = sleeve.share * ~aorta
    scene.label[fat > 0.5] = 0
    for share, hu in ((fat, patient.hu["fat"]), (blood, patient.hu["vessel"]), (calcium.share, CALCIUM_HU)):
        scene.hu += share * (np.float32(hu) - scene.hu)
    artery, vein = (((layer.share > 0.5) | axis) & ~aorta for layer, axis in zip(layers, axes))
    scene.label[artery] = IDS["coronary_artery"]
    return vein & ~artery


def _add_ball(layer: TubeLayer, spot: np.ndarray, radius: float) -> None:
    layer.add(np.stack([spot, spot]), radius)


def _scan(scene: Scene, patient: Patient, rng: np.random.Generator) -> None:
    """The scanner: blur, noise with the grain of a reconstruction kernel, whole HU within 12 bit."""
    scene.hu = gaussian_filter(scene.hu, patient.blur_mm / scene.spacing_mm, truncate=3.0)
    noise = gaussian_filter(rng.standard_normal(scene.shape, dtype=np.float32), (0.4, 0.6, 0.6), truncate=3.0)
    scene.hu += noise * np.float32(patient.noise_hu / noise.std())
    np.clip(np.rint(scene.hu, out=scene.hu), -1024, 3071, out=scene.hu)


def _facts(
    patient: Patient,
    scene: Scene,
    trees: tuple[list[Vessel], list[Vessel]],
    veins: list[Vessel],
    vein: np.ndarray,
) -> dict[str, Any]:
    voxel_ml = float(np.prod(scene.spacing_mm)) / 1000
    arteries = [*trees[0], *trees[1]]
    return {
        "arteries": len(arteries),
        "veins": len(veins),
        "artery_mm": round(sum(v.length for v in arteries), 1),
        "vein_mm": round(sum(v.length for v in veins), 1),
        "artery_ml": round(int((scene.label == IDS["coronary_artery"]).sum()) * voxel_ml, 2),
        "vein_ml": round(int(vein.sum()) * voxel_ml, 2),
        "dominance": "left" if patient.left_dominant else "right",
        "calcium": patient.calcium,
        "vessel_hu": round(patient.hu["vessel"], 1),
        "noise_hu": round(patient.noise_hu, 1),
        "spacing_mm": [round(s, 3) for s in patient.spacing_mm],
    }
