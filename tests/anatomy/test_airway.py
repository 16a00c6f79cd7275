"""The synthetic thorax: one tree of airways, where it belongs, that looks like CT and cannot simply be
thresholded.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial import cKDTree

from ctseg.anatomy.airway import airway_task, airway_tree
from ctseg.anatomy.airway.airway_task import IDS, Drawing
from ctseg.anatomy.implicit import Scene
from ctseg.anatomy.thin_tubes import TubeLayer, axis_voxels, disk_overlap, to_index
from ctseg.geometry.volume import CANONICAL_DIRECTIONS, Grid, to_canonical

pytestmark = pytest.mark.slow  # bodies of full size

FACES_EDGES_CORNERS = np.ones((3, 3, 3))


@pytest.fixture(scope="module")
def patient() -> Drawing:
    """One patient at full size, whose axes are not in the usual order."""
    return airway_task.draw(0, 2)


@pytest.fixture(scope="module")
def image(patient: Drawing) -> np.ndarray:
    return to_canonical(patient.image).array


@pytest.fixture(scope="module")
def label(patient: Drawing) -> np.ndarray:
    return to_canonical(patient.label).array


def branches_of_mask(mask: np.ndarray) -> int:
    """Branches of a tree-like mask, known from its voxels alone: a wave runs from the top slice through the
    mask, its fronts (two voxels thick) are pieces of branches; dead ends of a single front are roughness, not
    branches.
    """
    voxels = np.argwhere(mask)
    pairs = cKDTree(voxels).query_pairs(1.8, output_type="ndarray")
    ends = np.concatenate([pairs, pairs[:, ::-1]])
    graph = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(voxels),) * 2).tocsr()
    order, before = breadth_first_order(graph, int(np.argmax(voxels[:, 0])))
    steps = np.zeros(len(voxels), dtype=int)
    for node in order[1:]:
        steps[node] = steps[before[node]] + 1
    front = steps // 2
    same = front[ends[:, 0]] == front[ends[:, 1]]
    _, piece = connected_components(coo_matrix((np.ones(same.sum()), ends[same].T), shape=graph.shape))
    ahead = front[ends[:, 0]] + 1 == front[ends[:, 1]]
    links = {(int(a), int(b)) for a, b in piece[ends[ahead]]}
    children: dict[int, set[int]] = {}
    for a, b in links:
        children.setdefault(a, set()).add(b)
    leaves = {p for p in range(piece.max() + 1) if p not in children}
    # drop dead ends of one front
    kept = {a: {b for b in below if b not in leaves} for a, below in children.items()}
    tips = sum(not below for below in kept.values())
    return 2 * tips - 1  # every joint has two children


# ---- reproducible, quick -----------------------------------------------------------------------------------


def test_a_seed_and_a_number_give_one_patient() -> None:
    first, again, other = (
        airway_task.draw(0, 3, "tiny"),
        airway_task.draw(0, 3, "tiny"),
        airway_task.draw(1, 3, "tiny"),
    )
    assert (
        first.image.array.tobytes() == again.image.array.tobytes()
        and first.label.array.tobytes() == again.label.array.tobytes()
    )
    assert np.array_equal(first.image.affine, again.image.affine) and first.facts == again.facts
    assert first.facts != other.facts
    assert first.image.array.dtype == np.float32 and first.label.array.dtype == np.uint8
    assert first.image.grid.matches(first.label.grid)


def test_tiny_patients_are_small_whole_and_different() -> None:
    drawings = [airway_task.draw(0, index, "tiny") for index in range(4)]
    for drawing in drawings:
        label = to_canonical(drawing.label).array
        assert label.size < 500_000 and set(np.unique(label)) == {0, 1, 2, 3}
        assert ndimage.label(label == IDS["airway"], FACES_EDGES_CORNERS)[1] == 1
    assert len({drawing.facts["lung_ml"] for drawing in drawings}) == 4


def test_patients_vary_as_people_and_scanners_do() -> None:
    people = [
        airway_task.sample_patient(np.random.default_rng([0, index, 31]), index, "full")
        for index in range(airway_task.PATIENTS)
    ]
    assert 15 <= min(p.scan.noise_hu for p in people) < 20 and 28 < max(p.scan.noise_hu for p in people) <= 40
    assert sum(p.scan.order != (0, 1, 2) or any(p.scan.flips) for p in people) >= 3
    assert {p.emphysema > 0 for p in people} == {True, False}
    assert all(1.25 <= side <= 1.6 for p in people for side in p.scan.spacing_mm)
    assert max(p.wall for p in people) - min(p.wall for p in people) > 0.04 and all(
        0.1 <= p.wall <= 0.2 for p in people
    )


# ---- the tree ----------------------------------------------------------------------------------------------


def test_the_airway_is_one_piece_without_holes(label: np.ndarray) -> None:
    lumen = label == IDS["airway"]
    assert ndimage.label(lumen, FACES_EDGES_CORNERS)[1] == 1
    assert ndimage.label(lumen)[1] == 1  # even by faces alone, as scores on the largest component count
    assert (ndimage.binary_fill_holes(lumen) & ~lumen).sum() < 0.001 * lumen.sum()


def test_there_are_more_than_a_hundred_branches_in_the_tree_and_in_the_label(
    patient: Drawing, label: np.ndarray
) -> None:
    drawn = airway_task.count_branches(patient.tree)
    assert patient.facts["branches"] == drawn >= 100
    seen = branches_of_mask(label == IDS["airway"])
    assert seen >= 100 and 0.6 * drawn < seen < 1.3 * drawn, (seen, drawn)


def test_counting_by_a_wave_is_right_for_a_known_tree() -> None:
    mask = np.zeros((60, 50, 40), dtype=bool)
    for start, stop in (
        ((59, 25, 20), (40, 25, 20)),
        ((40, 25, 20), (25, 40, 20)),
        ((40, 25, 20), (25, 10, 20)),
        ((25, 10, 20), (8, 3, 30)),
        ((25, 10, 20), (8, 12, 8)),
    ):
        mask[tuple(axis_voxels(np.array([start, stop], dtype=float), mask.shape).T)] = True
    assert branches_of_mask(mask) == 5


def test_the_trachea_and_the_main_bronchi_are_those_of_an_adult(patient: Drawing, label: np.ndarray) -> None:
    spacing = to_canonical(patient.label).spacing_mm
    rows = [d for d in range(int(0.75 * len(label)), int(0.95 * len(label))) if (label[d] == 1).any()]
    area = np.median([(label[d] == 1).sum() for d in rows]) * spacing[1] * spacing[2]
    assert 15.0 <= 2 * np.sqrt(area / np.pi) <= 19.0
    trunks = {branch.name: branch for branch in patient.tree[:12]}
    right, left = trunks["right_main"], trunks["left_main"]
    assert right.diameter > left.diameter and right.length < left.length
    steep = [
        (branch.end - branch.points[0]) / np.linalg.norm(branch.end - branch.points[0])
        for branch in (right, left)
    ]
    assert steep[0][2] < steep[1][2] < 0 and steep[0][0] < 0 < steep[1][0]


def test_branches_divide_as_bronchi_do(patient: Drawing) -> None:
    ratios = [
        branch.diameter / patient.tree[branch.parent].diameter
        for branch in patient.tree
        if branch.generation > 4
    ]
    assert min(ratios) >= 0.6 and max(ratios) <= 0.86
    assert 1.5 < min(branch.diameter for branch in patient.tree) < 2.3
    lengths = np.array([branch.length / branch.diameter for branch in patient.tree if branch.generation > 4])
    assert 2.2 < np.median(lengths) < 4.5
    assert patient.facts["generations"] >= 8
    assert {branch.name for branch in patient.tree} >= set(airway_tree.REGIONS)
    for region in airway_tree.REGIONS:
        assert sum(branch.name == region for branch in patient.tree) >= 7, region


def test_branches_meet_only_at_joints(patient: Drawing) -> None:
    tree = patient.tree
    points = [airway_tree.along(branch.points, np.linspace(0.35, 1.0, 12)) for branch in tree]
    owner = np.repeat(np.arange(len(tree)), 12)
    search = cKDTree(np.concatenate(points))
    for number, branch in enumerate(tree):
        if branch.generation < 4:
            continue
        kin = {number, branch.parent, tree[branch.parent].parent} | {
            k for k, other in enumerate(tree) if other.parent in (number, branch.parent)
        }
        reach = 0.5 * branch.diameter + 3.0
        near = {
            int(owner[k]) for found in search.query_ball_point(points[number], reach) for k in found
        } - kin
        for other in near:
            gap = np.linalg.norm(points[number][:, None] - points[other][None], axis=2).min()
            assert gap > 0.5 * (branch.diameter + tree[other].diameter), (number, other)


def test_airways_stay_inside_lungs_and_mediastinum(
    patient: Drawing, image: np.ndarray, label: np.ndarray
) -> None:
    lumen, lungs = label == IDS["airway"], label >= 2
    share = lumen.sum() / (lumen.sum() + lungs.sum())
    assert 0.005 <= share <= 0.03
    assert 2500 < patient.facts["lung_ml"] < 6500
    body = ndimage.binary_fill_holes(ndimage.binary_opening(image > -400, iterations=2) | lumen | lungs)
    assert not (lumen & ~body).any()
    around = ndimage.binary_dilation(ndimage.binary_opening(lungs | lumen, iterations=2), iterations=2)
    for branch, axis in zip(patient.tree, patient.axes):
        if branch.generation > 4:  # beyond the lobar bronchi
            assert (label[tuple(axis.T)] == IDS["airway"]).all()
            assert around[tuple(axis.T)].all()
    grown = ndimage.binary_dilation(lumen, iterations=2) & ~lumen
    thin = np.zeros_like(lumen)
    for branch, axis in zip(patient.tree, patient.axes):
        thin[tuple(axis.T)] |= branch.diameter < 4
    near_thin = grown & ndimage.binary_dilation(thin, iterations=2)
    assert lungs[near_thin].mean() > 0.97


def test_left_is_left(patient: Drawing) -> None:
    label = patient.label
    places = {
        name: (label.affine @ [*np.argwhere(label.array == number).mean(axis=0), 1.0])[:3]
        for name, number in IDS.items()
    }
    assert places["lung_left"][0] > places["airway"][0] > places["lung_right"][0]
    top = np.argwhere(to_canonical(label).array == 1)
    # the trachea leaves at the head
    assert top[:, 0].max() == label.array.shape[patient.patient.scan.order.index(0)] - 1


# ---- the picture -------------------------------------------------------------------------------------------


def test_tissues_have_the_attenuation_of_ct(patient: Drawing, image: np.ndarray, label: np.ndarray) -> None:
    lumen, lungs = label == IDS["airway"], label >= 2
    assert image.min() >= -1024 and image.max() <= 3071
    wide = ndimage.binary_erosion(lumen, iterations=2)
    assert -1005 < image[wide].mean() < -985
    away = ndimage.binary_erosion(lungs, iterations=3) & ~ndimage.binary_dilation(lumen, iterations=4)
    parenchyma = float(np.median(image[away]))
    assert abs(parenchyma - patient.patient.lung_hu) < 30
    # Walls inside the lung, around bronchi of 5 mm and more (the finest walls fade by design).
    axis = np.zeros_like(lumen)
    for branch, voxels in zip(patient.tree, patient.axes):
        if branch.diameter > 5 and branch.generation > 3:
            axis[tuple(voxels.T)] = True
    bronchi = lumen & ndimage.binary_dilation(axis, iterations=2)
    wall = ndimage.binary_dilation(bronchi) & ~lumen
    vessels = ndimage.binary_opening((image > -250) & ndimage.binary_erosion(lungs, iterations=3))
    assert vessels.sum() > 500
    assert image[wide].mean() < parenchyma < image[wall].mean() < image[vessels].mean() < 80


def test_thin_lumens_are_shallow(patient: Drawing, image: np.ndarray) -> None:
    def depth(low: float, high: float) -> float:
        chosen = [axis for branch, axis in zip(patient.tree, patient.axes) if low <= branch.diameter < high]
        return float(np.median(image[tuple(np.concatenate(chosen).T)]))

    assert depth(8, 30) < depth(3, 4.5) - 20 < depth(1.5, 2.2) - 40
    assert depth(1.5, 2.2) < patient.patient.lung_hu - 10


def test_the_label_goes_on_through_gaps_in_the_contrast(
    patient: Drawing, image: np.ndarray, label: np.ndarray
) -> None:
    assert patient.facts["gaps"] == len(patient.gaps) == len(patient.gap_axes) >= 8
    closed = np.concatenate(patient.gap_axes)
    assert (label[tuple(closed.T)] == IDS["airway"]).all()
    widths = [patient.tree[number].diameter for number in patient.gaps]
    hidden = {tuple(v) for v in closed}
    alike = [
        axis
        for branch, axis in zip(patient.tree, patient.axes)
        if min(widths) <= branch.diameter <= max(widths)
    ]
    open_axis = np.array([v for axis in alike for v in axis if tuple(v) not in hidden])
    assert image[tuple(closed.T)].mean() > image[tuple(open_axis.T)].mean() + 40
    assert max(widths) < 4.1 and len(closed) < 0.2 * sum(len(axis) for axis in alike)


def test_a_threshold_neither_finds_the_tree_nor_stays_inside_it(image: np.ndarray, label: np.ndarray) -> None:
    """Air connected with the trachea, at any threshold: misses the thin branches or floods the lung."""
    lumen = label == IDS["airway"]
    box = tuple(slice(index.min(), index.max() + 1) for index in np.nonzero(label))
    scores = []
    for threshold in (-960, -930, -900):
        found, _ = ndimage.label(image[box] < threshold)
        grown = found == 1 + int(np.argmax(np.bincount(found[lumen[box]])[1:]))
        scores.append(2 * (grown & lumen[box]).sum() / (grown.sum() + lumen.sum()))
    assert max(scores) < 0.8 and max(scores) > 0.4, scores


# ---- thin tubes on voxels ----------------------------------------------------------------------------------


def small_scene(warp_mm: float = 0.0) -> Scene:
    affine = np.eye(4)
    affine[:3, :3] = CANONICAL_DIRECTIONS.T * np.array([3, 2, 1])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array([20, 28, 56]) - 1) / 2)
    return Scene(Grid((20, 28, 56), affine), np.eye(3), np.random.default_rng(0), warp_mm, {}, {})


@pytest.mark.parametrize("radius", [0.4, 1.0, 3.0])
def test_a_tube_fills_its_own_volume(radius: float) -> None:
    """Also one much narrower than a voxel, wherever it runs between the voxel centres."""
    grid = Grid((30, 32, 34), np.diag([1.5, 1.5, 1.5, 1.0]))
    layer = TubeLayer(Scene(grid, np.eye(3), np.random.default_rng(0), 0.0, {}, {}))
    for offset in (0.0, 0.3, 0.5):
        layer.share[:] = 0
        layer.add(np.array([[-5.0, 16 + offset, 16.2], [40.0, 16 + offset, 16.2]]), radius)
        area = layer.share[10:20].sum(axis=(1, 2)).mean() * 1.5**2
        assert area == pytest.approx(np.pi * radius**2, rel=0.15)


def test_overlap_of_disks() -> None:
    inside, partly, outside = disk_overlap(np.array([0.0, 1.0, 2.0]), 1.0, 0.5)
    assert inside == pytest.approx(1) and 0.3 < partly < 0.5 and outside == 0
    # a thin tube in the middle of a voxel
    assert disk_overlap(np.array([0.1]), 0.25, 0.5)[0] == pytest.approx(0.25)


def test_axis_voxels_share_faces() -> None:
    path = np.zeros((10, 12, 14), dtype=bool)
    path[tuple(axis_voxels(np.array([[1.0, 1, 1], [8, 10, 12], [2, 10, 3]]), path.shape).T)] = True
    assert ndimage.label(path)[1] == 1 and path[1, 1, 1] and path[8, 10, 12] and path[2, 10, 3]
    assert len(axis_voxels(np.array([[-5.0, -5, -5], [-2, -2, -2]]), path.shape)) == 0


def test_places_in_a_warped_body_are_found_on_the_grid() -> None:
    scene = small_scene(warp_mm=2.0)
    index = np.array([[4, 9, 20], [12, 20, 40], [16, 6, 50]])
    points = np.stack([axis[tuple(index.T)] for axis in (scene.x, scene.y, scene.z)], axis=1)
    assert np.allclose(to_index(scene, points), index, atol=0.05)
