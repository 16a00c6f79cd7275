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
from ctseg.anatomy.airway.chest import Chest, paint_chest, soft
from ctseg.anatomy.airway.people import Patient, sample_patient
from ctseg.anatomy.implicit import Field, Points, Scene
from ctseg.anatomy.tasks import Picture, numbered
from ctseg.anatomy.thin_tubes import TubeLayer, axis_voxels, lines_to_index, to_index

IDS = numbered("airway", "lung_left", "lung_right")
TARGETS = ("airway",)
PATIENTS = 16
AIR_HU = -1000.0
# Branch -> the stretch without contrast, whose label goes on: from and to as shares of its length, HU.
Gaps = dict[int, tuple[float, float, float]]
_FISSURE_HU = 115.0  # of a fissure above the lung beside it: its tissue fills a small part of a voxel


@dataclasses.dataclass(frozen=True)
class Drawing(Picture):
    """A picture with what it was drawn from.

    axes: per branch, the voxels (n, 3) of its centre line, on the picture's grid before its axes are
    reordered (`to_canonical` leads back to it). gap_axes: the part of that inside each gap.
    """

    patient: Patient
    tree: list[Branch]
    gaps: Gaps
    axes: list[Points]
    gap_axes: list[Points]


def draw(seed: int, index: int, size: str = "full") -> Drawing:
    """One patient. size: "full", or "tiny" for quick tests (4.5 mm voxels, fewer branches and vessels)."""
    rng = np.random.default_rng([seed, index, 31])
    patient = sample_patient(rng, index, size)
    chest, scan = Chest(patient), patient.scan
    cloud = chest.cloud(6.0, rng)
    fine = 1.0 if size == "full" else 2.6  # narrower vessels are not drawn
    finest, width = min(fine, patient.finest_mm), patient.airway_width
    paths = grow_tree(rng, cloud, chest.depth, airway_mm=patient.finest_mm, finest_mm=finest, width=width)
    tree = airways(paths, patient.finest_mm)
    gaps = choose_gaps(rng, tree, patient)
    vessels = arteries(paths) + veins(rng, cloud, chest.depth, tree, 1.3 * fine)
    fat, (x, y, z) = patient.fat_mm, patient.size
    low = np.array([-200 * z, -(106 + fat) * y - 4, -(154 + fat) * x])  # z, y, x in LPS mm
    high = np.array([112 * z, (140 + fat) * y + 6, (154 + fat) * x])
    pose = np.diag(1 / np.array(patient.size))
    scene = Scene(
        scan.grid(high - low, 0.5 * (low + high)[::-1]), pose, rng, patient.warp_mm, patient.hu, IDS
    )
    scene.texture["blotch"] = scene.smooth_field(9.0)
    lungs = paint_chest(scene, chest)
    paint_lungs(scene, patient, np.minimum(lungs[1], lungs[-1]))
    layer = TubeLayer(scene)
    layer.add_lines(vessels)
    scene.blend(layer.share, "blood")
    if patient.emphysema:
        paint_emphysema(scene, chest, tree, patient.emphysema)
    lumen, axes, gap_axes = paint_airways(scene, tree, gaps, patient)
    for name, mask in (("lung_left", lungs[1] <= 0), ("lung_right", lungs[-1] <= 0), ("airway", lumen)):
        scene.label[mask] = IDS[name]
    image, label = scan.finish(scene, (0.3, 0.55, 0.55))
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
    return Drawing(image, label, facts, patient, tree, gaps, axes, gap_axes)


def count_branches(tree: list[Branch]) -> int:
    """Stretches between joints: a chain of only children is one branch."""
    children = np.bincount([b.parent for b in tree if b.parent >= 0], minlength=len(tree))
    return len(tree) - int((children == 1).sum())


def choose_gaps(rng: np.random.Generator, tree: list[Branch], patient: Patient) -> Gaps:
    """Short stretches of thin branches in which motion or mucus takes the contrast away."""
    gaps: Gaps = {}
    for number, branch in enumerate(tree):
        if branch.diameter > 4.0 or branch.length < 7 or rng.random() > patient.gap_rate:
            continue
        width = rng.uniform(3.0, 6.0) + branch.diameter
        middle, half = rng.uniform(0.4, 0.65), min(0.5 * width / branch.length, 0.36)
        motion = rng.random() < 0.7
        hu = patient.lung_hu - rng.uniform(0, 35) if motion else rng.uniform(-780, -450)
        gaps[number] = (middle - half, middle + half, hu)
    return gaps


def paint_lungs(scene: Scene, patient: Patient, inside: Field) -> None:
    """Parenchyma: denser towards the back, clouded, grainy, with thin bright fissures."""
    voxel = float(scene.spacing_mm.mean())
    share = soft(scene, inside)
    where = share > 0
    x, y, z = scene.x[where], scene.y[where], scene.z[where]
    noise = scene.rng.standard_normal(scene.shape, dtype=np.float32)
    grain = gaussian_filter(noise, 1.6 / voxel, truncate=2.5)[where]
    hu = patient.lung_hu + patient.gravity_hu * y / 180
    hu = hu + 9 * scene.texture["blotch"][where] + 14 * grain / grain.std()
    points = np.stack([x, y, z], axis=1)
    bump = 7 * scene.smooth_field(45.0)[where]
    split = oblique(points) + bump
    hu += _FISSURE_HU * np.clip(1 - np.abs(split) / voxel, 0, 1)
    middle = np.abs(horizontal(points) + bump)
    hu += _FISSURE_HU * np.clip(1 - middle / voxel, 0, 1) * ((x < 0) & (split > 0))
    scene.hu[where] += share[where] * (hu - scene.hu[where])


def paint_emphysema(scene: Scene, chest: Chest, tree: list[Branch], count: int) -> None:
    """Dark spots of destroyed lung, mostly in the upper lobes: what looks like an airway and is none."""
    rng, layer = scene.rng, TubeLayer(scene)
    cloud = chest.cloud(9.0, rng)
    axes = np.concatenate([along(b.points, np.linspace(0, 1, 10)) for b in tree])
    clear = cloud[cKDTree(axes).query(cloud)[0] > 9]
    weight = np.where(clear[:, 2] > -30, 1.0, 0.25)
    chosen = clear[rng.choice(len(clear), count, replace=False, p=weight / weight.sum())]
    for place in to_index(scene, chosen):
        steps = rng.normal(0, 1.2, (3, 3)) / scene.spacing_mm
        layer.add(place + steps, rng.uniform(1.0, 3.0, 3))
    scene.blend(layer.share, -970.0)


def paint_airways(
    scene: Scene, tree: list[Branch], gaps: Gaps, patient: Patient
) -> tuple[Field, list[Points], list[Points]]:
    """Walls and lumens, over everything else.

    Returns the lumen's mask and the voxels of all axes and of those in gaps.
    """
    lumens, tubes = TubeLayer(scene), TubeLayer(scene)  # without and with the walls
    fine = np.linspace(0, 1, 13)  # a branch with a gap in twelve pieces, to close some of them
    lines = [along(b.points, fine) if number in gaps else b.points for number, b in enumerate(tree)]
    axes, gap_axes = [], []
    for number, (branch, index) in enumerate(zip(tree, lines_to_index(scene, lines))):
        # A wall is like tissue in wide bronchi, near lung in the narrowest. Walls of real small ones are so
        # thin that they fade into the lung; drawn as tissue at these voxel sizes they would outweigh the
        # lumen's air, and the narrow airways would be bright lines.
        wall_hu = -800 + 840 * float(np.clip((branch.diameter - 1.8) / 7.5, 0, 1))
        lumen, wall = np.full(len(index) - 1, AIR_HU), np.full(len(index) - 1, wall_hu)
        if number in gaps:
            low, high, gap_hu = gaps[number]
            middle = 0.5 * (fine[1:] + fine[:-1])
            closed = np.flatnonzero((middle > low) & (middle < high))
            lumen[closed], wall[closed] = gap_hu, max(gap_hu, patient.lung_hu)
            gap_axes.append(axis_voxels(index[closed[0] : closed[-1] + 2], scene.shape))
        thickness = min(patient.wall * branch.diameter, 1.7)
        lumens.add(index, 0.5 * branch.diameter, lumen)
        tubes.add(index, 0.5 * branch.diameter + thickness, wall)
        axes.append(axis_voxels(index, scene.shape))
    rim = np.maximum(tubes.share - lumens.share, 0)
    scene.hu += rim * (tubes.hu - scene.hu) + lumens.share * (lumens.hu - scene.hu)
    return lumens.mask(axes), axes, gap_axes
