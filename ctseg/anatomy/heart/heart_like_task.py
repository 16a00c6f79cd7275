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

from ctseg.anatomy.heart.chest import GREAT_VESSELS, great_vessels, mammary_arteries, paint_chest, placed
from ctseg.anatomy.heart.shape import Coordinates, Heart, SurfaceMap, make_heart, rotation
from ctseg.anatomy.heart.vessels import Vessel, VesselMaker
from ctseg.anatomy.implicit import Field, Points, Scene
from ctseg.anatomy.scanner import USUAL_AXES, ChestScan, random_axes
from ctseg.anatomy.shape_tables import draw_values, read_people
from ctseg.anatomy.tasks import Picture, numbered
from ctseg.anatomy.thin_tubes import TubeLayer, axis_voxels, to_index

IDS = numbered(
    "coronary_artery",
    "heart_myocardium",
    "heart_atrium_left",
    "heart_ventricle_left",
    "heart_atrium_right",
    "heart_ventricle_right",
    "aorta",
    "pulmonary_artery",
)
TARGETS = ("coronary_artery",)
PATIENTS = 20
TINY_SPACING_MM = 3.0
LOW_MM, HIGH_MM = np.array([-66.0, -81.0, -71.0]), np.array([74.0, 60.0, 73.0])  # the field of view: z, y, x
CALCIUM_HU = 900.0
PEOPLE = read_people(__file__)
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
class Drawing(Picture):
    """A picture with what tests want to see.

    arteries, veins: of the heart. vein: (D, H, W) mask like the label's, on the picture's grid.
    """

    patient: Patient
    arteries: tuple[list[Vessel], list[Vessel]]
    veins: list[Vessel]
    vein: Field


def draw(seed: int, index: int, size: str = "full") -> Drawing:
    """One patient. size: "full", or "tiny" for quick tests (3 mm voxels)."""
    rng = np.random.default_rng([seed, index, 47])
    patient = sample_patient(rng, size)
    heart, scan = make_heart(rng, patient.wall_mm), patient.scan
    middle = 0.5 * (LOW_MM + HIGH_MM)[::-1] * patient.scale + rng.normal(0, 1.5, 3)
    grid, pose = scan.grid((HIGH_MM - LOW_MM) * patient.scale, middle), patient.pose / patient.scale
    scene = Scene(grid, pose, rng, patient.warp_mm, patient.hu, IDS)
    scene.texture["blotch"] = scene.smooth_field(9.0)
    at = heart.coordinates(scene.x, scene.y, scene.z)
    sac = scene.whole(heart.bed(at, blend_mm=16.0) - patient.sac_mm - 0.8 * scene.smooth_field(18.0))
    paint_chest(scene, sac.f)
    sac.paint("muscle")
    sac.inset(1.2).paint("fat", blotch=5)
    paint_heart(scene, heart, at)
    chart = SurfaceMap(heart)
    maker = VesselMaker(chart, rng)
    trees = maker.coronaries(ostia(heart, chart), patient.left_dominant)
    arteries = [*trees[0], *trees[1]]
    veins = maker.veins(arteries)
    vein = paint_vessels(scene, heart, patient.calcium, arteries, veins)
    image, label = scan.finish(scene, (0.4, 0.6, 0.6))
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
    return Drawing(image, label, facts, patient, trees, veins, scan.stored(vein, grid).array)


def sample_patient(rng: np.random.Generator, size: str) -> Patient:
    """Who is scanned, and how."""
    scan = draw_values(rng, PEOPLE["scan"])
    # so that no axis has more than 128 voxels
    fitting = scan["scale"] * float((HIGH_MM - LOW_MM).max()) / 128
    spacing = (fitting * scan["across"], *(fitting * scan["in_plane"],) * 2)
    if size == "tiny":
        spacing = (TINY_SPACING_MM,) * 3
    axes = random_axes(rng) if scan["turned"] < 0.3 else USUAL_AXES
    body = draw_values(rng, PEOPLE["body"])
    low, high = (85, 135) if body["washed_out"] < 0.6 else (150, 430)
    hu = draw_values(rng, PEOPLE["attenuation"])
    hu |= {"blood_left": body["blood_left"], "blood_right": low + (high - low) * body["right"]}
    hu["vessel"] = hu["blood_left"] - hu["vessel"]
    return Patient(
        scale=scan["scale"],
        pose=rotation(body["pose"]),
        left_dominant=body["dominance"] < 0.2,
        scan=ChestScan(spacing, *axes, body["noise_hu"], body["blur_mm"]),
        hu=hu,
        **{name: body[name] for name in ("warp_mm", "wall_mm", "sac_mm", "calcium")},
    )


def paint_heart(scene: Scene, heart: Heart, at: Coordinates) -> None:
    """Walls, chambers and great vessels, each kept clear of the next. at: the scene in heart coordinates."""
    (aorta,) = great_vessels(scene, heart, "aorta")
    lung_artery = scene.join(great_vessels(scene, heart, "pulmonary artery"), 3.0)
    great = scene.spread(aorta, lung_artery)
    left = heart.wall("lv", at)
    scene.whole(heart.surface(at)).paint("myocardium", plus=-10, blotch=4)
    for vein in great_vessels(scene, heart, "pulmonary vein"):
        vein.paint("blood_left")
    for cava in great_vessels(scene, heart, "cava"):
        cava.paint(0.5 * (scene.tissue["blood_right"] + 110))
    for name, f, tissue, uneven in (
        ("heart_atrium_right", heart.wall("ra", at, 2.2), "blood_right", 6),
        ("heart_atrium_left", heart.wall("la", at, 2.2), "blood_left", 6),
        ("heart_ventricle_right", np.maximum(heart.wall("rv", at, 3.2), 0.5 - left), "blood_right", 6),
        ("heart_myocardium", left, "myocardium", 4),
        ("heart_ventricle_left", heart.wall("lv", at, heart.wall_mm), "blood_left", 6),
    ):
        scene.whole(f).cut(great, 1.5).paint(tissue, name, blotch=uneven)
    for shape, tissue, name in (
        (lung_artery, "blood_right", "pulmonary_artery"),
        (aorta, "blood_left", "aorta"),
    ):
        shape.inset(-1.5).paint("muscle", plus=20)
        shape.paint(tissue, name)


def ostia(heart: Heart, chart: SurfaceMap) -> tuple[Points, Points]:
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
    scene: Scene, heart: Heart, calcium_rate: float, arteries: list[Vessel], veins: list[Vessel]
) -> Field:
    """Arteries and veins in their fat, by one and the same rule. Returns the mask of the veins."""
    rng, outside = scene.rng, scene.label != IDS["aorta"]
    sleeve, blood, calcium = TubeLayer(scene), TubeLayer(scene), TubeLayer(scene)
    masks = []
    for vessels in (arteries, veins):
        layer, axes = TubeLayer(scene), []
        for vessel in vessels:
            nodes = to_index(scene, vessel.points @ heart.basis)
            sleeve.add(nodes, vessel.radii + _SLEEVE_MM)
            layer.add(nodes, vessel.radii)
            axes.append(axis_voxels(nodes, scene.shape))
            for place in np.flatnonzero(rng.random(len(nodes)) < calcium_rate * 0.015):
                spot = nodes[place] + rng.normal(0, 0.5, 3) * vessel.radii[place] / scene.spacing_mm
                calcium.add(np.stack([spot, spot]), rng.uniform(0.6, 1.2))
        np.maximum(blood.share, layer.share, out=blood.share)
        masks.append(layer.mask(axes) & outside)
    blood.add_lines(mammary_arteries(rng))
    for turn in rng.uniform(0, 2 * np.pi, rng.integers(0, 7)):  # in the ring of the mitral valve
        spot = np.array([[-5 + rng.normal(0, 1), 14 + 24 * np.cos(turn), 22 * np.sin(turn)]])
        calcium.add(to_index(scene, spot @ heart.basis).repeat(2, axis=0), rng.uniform(0.8, 2.0))
    fat = sleeve.share * outside
    scene.label[fat > 0.5] = 0
    scene.blend(fat, "fat")
    scene.blend(blood.share * outside, "vessel")
    scene.blend(calcium.share, CALCIUM_HU)
    artery, vein = masks
    scene.label[artery] = IDS["coronary_artery"]
    return vein & ~artery
