"""Synthetic chest CT for learning airways: a bronchial tree with walls, vessels, gaps and impostors.

One patient from seed and number: `draw`. The tree stands in `airway_tree.py`, the body in `chest.py`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from ctseg.anatomy.airway.airway_tree import (
    Branch,
    airways,
    along,
    arteries,
    grow_tree,
    horizontal,
    oblique,
    veins,
)
from ctseg.anatomy.airway.chest import Build, Chest, paint_body, paint_bones, paint_mediastinum, soft
from ctseg.anatomy.chest_scan import ChestScan, blend
from ctseg.anatomy.implicit import Scene
from ctseg.anatomy.patients import random_axes
from ctseg.anatomy.picture import Picture
from ctseg.anatomy.shape_tables import draw_ranges, read_table
from ctseg.anatomy.thin_tubes import AirwayLayer, TubeLayer, axis_voxels, lines_to_index, to_index

IDS = {"airway": 1, "lung_left": 2, "lung_right": 3}
TARGETS = ("airway",)
PATIENTS = 16
TINY_SPACING_MM = 4.5
AIR_HU = -1000.0
ATTENUATION = read_table(__file__, "attenuation")
_FISSURE_HU = 115.0  # of a fissure above the lung beside it: its tissue fills a small part of a voxel


@dataclasses.dataclass(frozen=True)
class Patient:
    """One synthetic person and the scan. Lengths in mm, attenuation in HU."""

    build: Build
    size: tuple[float, float, float]  # body relative to the template along x, y, z
    warp_mm: float
    airway_width: float  # all airways relative to the standard
    finest_mm: float  # lumen of the narrowest branches drawn
    wall: float  # thickness relative to the lumen's diameter
    lung_hu: float
    gravity_hu: float  # how much denser the back of the lung is than its front
    emphysema: int  # number of dark spots
    gap_rate: float  # share of the thin branches with a gap
    scan: ChestScan
    hu: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Gap:
    """A stretch of a branch without contrast, whose label goes on. share: from where to where along it."""

    branch: int
    share: tuple[float, float]
    lumen_hu: float


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A drawn patient with what it was drawn from.

    axes: per branch, the voxels (n, 3) of its centre line, on the picture's grid before its axes are
    reordered (`to_canonical` leads back to it). gap_axes: the part of that inside each gap.
    """

    patient: Patient
    picture: Picture
    tree: list[Branch]
    gaps: list[Gap]
    axes: list[np.ndarray]
    gap_axes: list[np.ndarray]


def draw(seed: int, index: int, size: str = "full") -> Picture:
    """One patient. size: "full", or "tiny" for quick tests (4.5 mm voxels, fewer branches and vessels)."""
    return draw_with_tree(seed, index, size).picture


def draw_with_tree(seed: int, index: int, size: str = "full") -> Drawing:
    """The same with the tree and the gaps it was drawn from."""
    rng = np.random.default_rng([seed, index, 31])
    patient = sample_patient(rng, index, size)
    chest, scan = Chest(patient.build), patient.scan
    cloud = chest.cloud(6.0, rng)
    fine = 1.0 if size == "full" else 2.6  # narrower vessels are not drawn
    paths = grow_tree(
        rng,
        cloud,
        chest.depth,
        airway_mm=patient.finest_mm,
        finest_mm=min(fine, patient.finest_mm),
        width=patient.airway_width,
    )
    tree = airways(paths, patient.finest_mm)
    gaps = choose_gaps(rng, tree, patient)
    vessels = arteries(paths) + veins(rng, cloud, chest.depth, tree, finest_mm=1.3 * fine)
    low, high = extent(patient)
    to_template = np.diag(1 / np.array(patient.size))
    scene = scan.scene(high - low, 0.5 * (low + high)[::-1], to_template, patient.warp_mm, rng)
    lungs = paint_chest(scene, chest, patient, rng)
    layer = TubeLayer(scene)
    for vessel, nodes in zip(vessels, lines_to_index(scene, [vessel.points for vessel in vessels])):
        layer.add(nodes, vessel.radii)
    blend(scene.hu, layer.share, patient.hu["blood"])
    paint_emphysema(scene, chest, tree, patient, rng)
    lumen, axes, gap_axes = paint_airways(scene, tree, gaps, patient)
    scan.acquire(scene, (0.3, 0.55, 0.55), rng)
    for name, mask in (("lung_left", lungs[1] <= 0), ("lung_right", lungs[-1] <= 0), ("airway", lumen)):
        scene.label[mask] = IDS[name]
    voxel_ml = float(np.prod(scene.spacing_mm)) / 1000
    airway, *both = (int((scene.label == number).sum()) for number in IDS.values())
    facts = {
        "branches": count_branches(tree),
        "generations": max(branch.generation for branch in tree),
        "gaps": len(gaps),
        "lung_ml": round(sum(both) * voxel_ml, 1),
        "airway_ml": round(airway * voxel_ml, 1),
        "emphysema_spots": patient.emphysema,
        "trachea_mm": round(tree[0].diameter, 1),
        "noise_hu": round(scan.noise_hu, 1),
    }
    picture = Picture(scan.stored(scene, scene.hu), scan.stored(scene, scene.label), facts)
    return Drawing(patient, picture, tree, gaps, axes, gap_axes)


def extent(patient: Patient) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the scan around the chest: z, y, x in LPS mm, lowest and highest."""
    fat, (x, y, z) = patient.build.fat_mm, patient.size
    low = np.array([-200 * z, -(106 + fat) * y - 4, -(154 + fat) * x])
    return low, np.array([112 * z, (140 + fat) * y + 6, (154 + fat) * x])


def sample_patient(rng: np.random.Generator, index: int, size: str) -> Patient:
    """Who is scanned, and how. Every third scan has its axes in another order."""
    spacing = (rng.uniform(1.35, 1.6), *(rng.uniform(1.38, 1.58),) * 2)
    if size == "tiny":
        spacing = (TINY_SPACING_MM,) * 3
    axes = random_axes(rng)
    high = rng.uniform(-112, -98)
    fat_mm, heart = rng.uniform(7, 16), rng.uniform(0.92, 1.06)
    build = Build(fat_mm, heart, (high, high - rng.uniform(6, 16)), rng.uniform(0.8, 1.2))
    x, y, z = rng.uniform(0.90, 1.0, 3).tolist()
    return Patient(
        build=build,
        size=(x, y, z),
        warp_mm=rng.uniform(1.2, 2.2),
        airway_width=rng.uniform(0.95, 1.06),
        finest_mm=rng.uniform(1.9, 2.25) * (1.0 if size == "full" else 1.5),
        wall=rng.uniform(0.10, 0.18),
        lung_hu=rng.uniform(-880, -840),
        gravity_hu=rng.uniform(20, 60),
        emphysema=int(rng.choice([0, 15, 40, 90])),
        gap_rate=rng.uniform(0.08, 0.14),
        scan=ChestScan(
            spacing, 15 + 25 * rng.random() ** 3, rng.uniform(0.55, 0.75), *(axes if index % 3 == 2 else ())
        ),
        hu=draw_ranges(rng, ATTENUATION),
    )


def count_branches(tree: list[Branch]) -> int:
    """Stretches between joints: a chain of only children is one branch."""
    children = np.bincount([b.parent for b in tree if b.parent >= 0], minlength=len(tree))
    return len(tree) - int((children == 1).sum())


def choose_gaps(rng: np.random.Generator, tree: list[Branch], patient: Patient) -> list[Gap]:
    """Short stretches of thin branches in which motion or mucus takes the contrast away."""
    gaps = []
    for number, branch in enumerate(tree):
        if branch.diameter > 4.0 or branch.length < 7 or rng.random() > patient.gap_rate:
            continue
        width = rng.uniform(3.0, 6.0) + branch.diameter
        middle, half = rng.uniform(0.4, 0.65), min(0.5 * width / branch.length, 0.36)
        motion = rng.random() < 0.7
        hu = patient.lung_hu - rng.uniform(0, 35) if motion else rng.uniform(-780, -450)
        gaps.append(Gap(number, (middle - half, middle + half), hu))
    return gaps


def paint_chest(
    scene: Scene, chest: Chest, patient: Patient, rng: np.random.Generator
) -> dict[int, np.ndarray]:
    """All but vessels and airways of the lungs. Returns the lungs' functions by side (1 left, -1 right)."""
    blotch = scene.smooth_field(rng, 9.0)
    cavities = chest.cavities(scene.x, scene.y, scene.z)
    paint_body(scene, chest, cavities, patient.hu, blotch)
    paint_mediastinum(scene, chest, cavities, patient.hu)
    paint_bones(scene, chest, patient.hu, blotch)
    paint_lungs(scene, patient, np.minimum(cavities.lungs[1], cavities.lungs[-1]), blotch, rng)
    return cavities.lungs


def paint_lungs(
    scene: Scene, patient: Patient, inside: np.ndarray, blotch: np.ndarray, rng: np.random.Generator
) -> None:
    """Parenchyma: denser towards the back, clouded, grainy, with thin bright fissures."""
    voxel = float(scene.spacing_mm.mean())
    share = soft(inside, voxel)
    where = share > 0
    x, y, z = scene.x[where], scene.y[where], scene.z[where]
    noise = rng.standard_normal(scene.shape, dtype=np.float32)
    grain = gaussian_filter(noise, 1.6 / voxel, truncate=2.5)[where]
    hu = patient.lung_hu + patient.gravity_hu * y / 180 + 9 * blotch[where] + 14 * grain / grain.std()
    points = np.stack([x, y, z], axis=1)
    bump = 7 * scene.smooth_field(rng, 45.0)[where]
    split = oblique(points) + bump
    hu += _FISSURE_HU * np.clip(1 - np.abs(split) / voxel, 0, 1)
    middle = np.abs(horizontal(points) + bump)
    hu += _FISSURE_HU * np.clip(1 - middle / voxel, 0, 1) * ((x < 0) & (split > 0))
    scene.hu[where] += share[where] * (hu - scene.hu[where])


def paint_emphysema(
    scene: Scene, chest: Chest, tree: list[Branch], patient: Patient, rng: np.random.Generator
) -> None:
    """Dark spots of destroyed lung, mostly in the upper lobes: what looks like an airway and is none."""
    if not patient.emphysema:
        return
    cloud = chest.cloud(9.0, rng)
    axes = np.concatenate([along(b.points, np.linspace(0, 1, 10)) for b in tree])
    clear = cloud[cKDTree(axes).query(cloud)[0] > 9]
    weight = np.where(clear[:, 2] > -30, 1.0, 0.25)
    chosen = clear[rng.choice(len(clear), patient.emphysema, replace=False, p=weight / weight.sum())]
    layer = TubeLayer(scene)
    for place in to_index(scene, chosen):
        steps = rng.normal(0, 1.2, (3, 3)) / scene.spacing_mm
        layer.add(place + steps, rng.uniform(1.0, 3.0, 3))
    blend(scene.hu, layer.share, -970.0)


def paint_airways(
    scene: Scene, tree: list[Branch], gaps: list[Gap], patient: Patient
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Walls and lumens, over everything else.

    Returns the lumen's mask and the voxels of all axes and of those in gaps.
    """
    layer = AirwayLayer(scene)
    by_branch = {gap.branch: gap for gap in gaps}
    fine = np.linspace(0, 1, 13)  # a branch with a gap in twelve pieces, to close some of them
    lines = [along(b.points, fine) if number in by_branch else b.points for number, b in enumerate(tree)]
    axes, gap_axes = [], []
    for number, (branch, index) in enumerate(zip(tree, lines_to_index(scene, lines))):
        lumen, wall = np.full(len(index) - 1, AIR_HU), np.full(len(index) - 1, wall_hu(branch.diameter))
        if gap := by_branch.get(number):
            middle = 0.5 * (fine[1:] + fine[:-1])
            closed = np.flatnonzero((middle > gap.share[0]) & (middle < gap.share[1]))
            lumen[closed], wall[closed] = gap.lumen_hu, max(gap.lumen_hu, patient.lung_hu)
            gap_axes.append(axis_voxels(index[closed[0] : closed[-1] + 2], scene.shape))
        thickness = min(patient.wall * branch.diameter, 1.7)
        layer.add_airway(index, np.full(len(index), 0.5 * branch.diameter), thickness, lumen, wall)
        axes.append(axis_voxels(index, scene.shape))
    rim = np.maximum(layer.outer - layer.share, 0)
    scene.hu += rim * (layer.wall_hu - scene.hu) + layer.share * (layer.lumen_hu - scene.hu)
    return layer.mask(axes), axes, gap_axes


def wall_hu(diameter: float) -> float:
    """Attenuation of a wall: that of tissue in wide bronchi, near that of lung in the narrowest.

    Walls of real small bronchi are so thin that they fade into the lung; drawn as tissue at these voxel sizes
    they would outweigh the lumen's air, and the narrow airways would be bright lines.
    """
    return -800 + 840 * float(np.clip((diameter - 1.8) / 7.5, 0, 1))
