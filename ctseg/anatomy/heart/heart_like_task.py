"""Synthetic contrast-enhanced heart: find the coronary arteries among vessels that look exactly like them.

Arteries and veins of the heart come from one routine, with one calibre, attenuation, depth in the fat and
calcium. Only the place on the heart tells which is which: between which chambers a tube runs. That is what
the guide organs (chambers, heart muscle, great vessels) know and a small patch does not. Every picture is
synthetic and stands for no real person.

The heart's shape is in `shape.py`, its vessels in `vessels.py`, everything around it in `chest.py`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.anatomy.chest_scan import ChestScan, blend
from ctseg.anatomy.heart.chest import GREAT_VESSELS, great_vessels, mammary_arteries, paint_chest, placed
from ctseg.anatomy.heart.shape import Coordinates, Heart, SurfaceMap, make_heart, rotation
from ctseg.anatomy.heart.vessels import Vessel, VesselMaker
from ctseg.anatomy.implicit import Scene
from ctseg.anatomy.patients import random_axes
from ctseg.anatomy.picture import Picture
from ctseg.anatomy.shape_tables import draw_ranges, read_table
from ctseg.anatomy.thin_tubes import TubeLayer, axis_voxels, to_index

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
ATTENUATION = read_table(__file__, "attenuation")
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
    scan: ChestScan
    hu: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A drawn patient and what tests want to see.

    arteries, veins: of the heart. vein: (D, H, W) mask like the label's, on the picture's grid.
    """

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
    heart, scan = make_heart(rng, patient.wall_mm), patient.scan
    middle = 0.5 * (LOW_MM + HIGH_MM)[::-1] * patient.scale + rng.normal(0, 1.5, 3)
    extent, to_template = (HIGH_MM - LOW_MM) * patient.scale, patient.pose / patient.scale
    scene = scan.scene(extent, middle, to_template, patient.warp_mm, rng)
    blotch = scene.smooth_field(rng, 9.0)
    at = heart.coordinates(scene.x, scene.y, scene.z)
    sac = heart.bed(at, blend_mm=16.0) - patient.sac_mm - 0.8 * scene.smooth_field(rng, 18.0)
    paint_chest(scene, patient.hu, blotch, sac, rng)
    scene.paint(scene.whole(sac), patient.hu["muscle"])
    scene.paint(scene.whole(sac + 1.2), patient.hu["fat"] + 5 * blotch)
    paint_heart(scene, heart, patient, at, blotch)
    chart = SurfaceMap(heart)
    maker = VesselMaker(chart, rng)
    trees = maker.coronaries(ostia(heart, chart), patient.left_dominant)
    arteries = [*trees[0], *trees[1]]
    veins = maker.veins(arteries)
    vein = paint_vessels(scene, heart, patient, arteries, veins, rng)
    scan.acquire(scene, (0.4, 0.6, 0.6), rng)
    voxel_ml = float(np.prod(scene.spacing_mm)) / 1000
    facts = {
        "arteries": len(arteries),
        "veins": len(veins),
        "artery_mm": round(sum(v.length for v in arteries), 1),
        "vein_mm": round(sum(v.length for v in veins), 1),
        "artery_ml": round(int((scene.label == IDS["coronary_artery"]).sum()) * voxel_ml, 2),
        "vein_ml": round(int(vein.sum()) * voxel_ml, 2),
        "dominance": "left" if patient.left_dominant else "right",
        "calcium": patient.calcium,
        "vessel_hu": round(patient.hu["vessel"], 1),
        "noise_hu": round(scan.noise_hu, 1),
    }
    picture = Picture(scan.stored(scene, scene.hu), scan.stored(scene, scene.label), facts)
    return Drawing(patient, picture, trees, veins, scan.stored(scene, vein).array)


def sample_patient(rng: np.random.Generator, size: str) -> Patient:
    """Who is scanned, and how."""
    scale, in_plane = rng.uniform(0.93, 1.04), rng.uniform(1.0, 1.1)
    fitting = scale * float((HIGH_MM - LOW_MM).max()) / 128  # so that no axis has more than 128 voxels
    spacing = (fitting * rng.uniform(1.0, 1.12), fitting * in_plane, fitting * in_plane)
    if size == "tiny":
        spacing = (TINY_SPACING_MM,) * 3
    axes = random_axes(rng) if rng.random() < 0.3 else ()
    left = rng.uniform(320, 460)
    washed_out = rng.random() < 0.6  # by saline
    right = rng.uniform(85, 135) if washed_out else rng.uniform(150, 430)
    patient = Patient(
        scale=scale,
        pose=rotation(rng.normal(0, 0.05, 3)),
        warp_mm=rng.uniform(0.8, 1.6),
        wall_mm=rng.uniform(9.0, 12.0),
        sac_mm=rng.uniform(6.0, 9.0),
        left_dominant=rng.random() < 0.2,
        calcium=float(rng.choice([0.0, 1.0, 2.5])),
        scan=ChestScan(spacing, rng.uniform(15, 28), rng.uniform(0.5, 0.65), *axes),
        hu={"blood_left": left, "blood_right": right} | draw_ranges(rng, ATTENUATION),
    )
    patient.hu["vessel"] = left - patient.hu["vessel"]
    return patient


def paint_heart(scene: Scene, heart: Heart, patient: Patient, at: Coordinates, blotch: np.ndarray) -> None:
    """Walls, chambers and great vessels, each kept clear of the next. at: the scene in heart coordinates."""
    hu = patient.hu
    (aorta,) = great_vessels(scene, heart, "aorta")
    lung_artery = scene.join(great_vessels(scene, heart, "pulmonary artery"), 3.0)
    great = 1.5 - scene.spread(aorta, lung_artery)
    left = heart.wall("lv", at)
    scene.paint(scene.whole(heart.surface(at)), hu["myocardium"] - 10 + 4 * blotch)
    for vein in great_vessels(scene, heart, "pulmonary vein"):
        scene.paint(vein, hu["blood_left"])
    for cava in great_vessels(scene, heart, "cava"):
        scene.paint(cava, 0.5 * (hu["blood_right"] + 110))
    for name, f, tissue, uneven in (
        ("heart_atrium_right", heart.wall("ra", at, 2.2), "blood_right", 6),
        ("heart_atrium_left", heart.wall("la", at, 2.2), "blood_left", 6),
        ("heart_ventricle_right", np.maximum(heart.wall("rv", at, 3.2), 0.5 - left), "blood_right", 6),
        ("heart_myocardium", left, "myocardium", 4),
        ("heart_ventricle_left", heart.wall("lv", at, patient.wall_mm), "blood_left", 6),
    ):
        scene.paint(scene.whole(np.maximum(f, great)), hu[tissue] + uneven * blotch, IDS[name])
    for shape, tissue, name in (
        (lung_artery, "blood_right", "pulmonary_artery"),
        (aorta, "blood_left", "aorta"),
    ):
        scene.paint(shape.inset(-1.5), hu["muscle"] + 20)
        scene.paint(shape, hu[tissue], IDS[name])


def ostia(heart: Heart, chart: SurfaceMap) -> tuple[np.ndarray, np.ndarray]:
    """Heart points just inside the wall of the aorta where the left and the right tree begin."""
    nodes = GREAT_VESSELS["aorta"][1:3]
    low, high = placed(heart, nodes) @ heart.basis.T
    up = (high - low) / np.linalg.norm(high - low)
    angle = np.array([66.0, 138.0])
    ways = chart.points(angle, np.array([4.0, chart.ring(angle)[1] + 2.0]), np.full(2, 3.0)) - low
    ways -= (ways @ up)[:, None] * up
    left, right = low + (nodes[0, 3] - 1.0) * ways / np.linalg.norm(ways, axis=1, keepdims=True)
    return left, right


def paint_vessels(
    scene: Scene,
    heart: Heart,
    patient: Patient,
    arteries: list[Vessel],
    veins: list[Vessel],
    rng: np.random.Generator,
) -> np.ndarray:
    """Arteries and veins in their fat, by one and the same rule. Returns the mask of the veins."""
    sleeve, other, calcium = TubeLayer(scene), TubeLayer(scene), TubeLayer(scene)
    outside = scene.label != IDS["aorta"]
    blood, masks = [other], []
    for vessels in (arteries, veins):
        layer, axes = TubeLayer(scene), []
        for vessel in vessels:
            nodes = to_index(scene, vessel.points @ heart.basis)
            sleeve.add(nodes, vessel.radii + _SLEEVE_MM)
            layer.add(nodes, vessel.radii)
            axes.append(axis_voxels(nodes, scene.shape))
            for place in np.flatnonzero(rng.random(len(nodes)) < patient.calcium * 0.015):
                spot = nodes[place] + rng.normal(0, 0.5, 3) * vessel.radii[place] / scene.spacing_mm
                calcium.add(np.stack([spot, spot]), rng.uniform(0.6, 1.2))
        blood.append(layer)
        masks.append(layer.mask(axes) & outside)
    for points, radii in mammary_arteries(rng):
        other.add(to_index(scene, points), radii)
    for turn in rng.uniform(0, 2 * np.pi, rng.integers(0, 7)):  # in the ring of the mitral valve
        spot = np.array([[-5 + rng.normal(0, 1), 14 + 24 * np.cos(turn), 22 * np.sin(turn)]])
        calcium.add(to_index(scene, spot @ heart.basis).repeat(2, axis=0), rng.uniform(0.8, 2.0))
    fat = sleeve.share * outside
    scene.label[fat > 0.5] = 0
    blend(scene.hu, fat, patient.hu["fat"])
    blend(scene.hu, np.maximum.reduce([layer.share for layer in blood]) * outside, patient.hu["vessel"])
    blend(scene.hu, calcium.share, CALCIUM_HU)
    artery, vein = masks
    scene.label[artery] = IDS["coronary_artery"]
    return vein & ~artery
