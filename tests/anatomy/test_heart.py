"""The synthetic heart: coronary arteries among veins that differ from them in nothing but their place."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from ctseg.anatomy.heart import heart_like_task
from ctseg.anatomy.heart.shape import OUTER, SurfaceMap, make_heart
from ctseg.anatomy.heart.vessels import locate
from ctseg.anatomy.tasks import load_task
from ctseg.geometry.volume import Volume, to_canonical
from ctseg.laterality import find_sides

pytestmark = pytest.mark.slow  # bodies of full size

CUBE = np.ones((3, 3, 3), dtype=bool)  # 26-connected


@pytest.fixture(scope="module")
def patients() -> list[heart_like_task.Drawing]:
    """Four full synthetic patients."""
    return [heart_like_task.draw(0, index) for index in range(4)]


@pytest.fixture(scope="module")
def shaped() -> SurfaceMap:
    return SurfaceMap(make_heart(np.random.default_rng(3), 10.0))


# ---- interface --------------------------------------------------------------------------------------------


def test_task_has_what_every_task_has() -> None:
    task = load_task("heart_like")
    assert (
        sorted(task.IDS.values()) == list(range(1, 9))
        and task.TARGETS == ("coronary_artery",)
        and task.PATIENTS == 20
    )
    guides = [name for name in task.IDS if name not in task.TARGETS]
    assert {
        "heart_myocardium",
        "heart_atrium_left",
        "heart_ventricle_left",
        "heart_atrium_right",
        "heart_ventricle_right",
        "aorta",
        "pulmonary_artery",
    } == set(guides)
    assert find_sides(guides).pairs == ()  # chambers are no mirror images of each other


def test_same_seed_same_picture_other_index_another() -> None:
    one, same, other = (
        heart_like_task.draw(5, 2, "tiny"),
        heart_like_task.draw(5, 2, "tiny"),
        heart_like_task.draw(5, 3, "tiny"),
    )
    assert (
        one.image.array.tobytes() == same.image.array.tobytes()
        and one.label.array.tobytes() == same.label.array.tobytes()
    )
    assert one.facts == same.facts and one.facts != other.facts


def test_tiny_is_quick_and_complete() -> None:
    begin = time.process_time()
    picture = heart_like_task.draw(0, 0, "tiny")
    assert time.process_time() - begin < 2.0
    assert picture.image.array.dtype == np.float32 and picture.label.array.dtype == np.uint8
    assert picture.image.array.shape == picture.label.array.shape and np.array_equal(
        picture.image.affine, picture.label.affine
    )
    assert set(np.unique(picture.label.array)) == set(range(9)) and max(picture.image.array.shape) < 60
    assert (
        np.array_equal(picture.image.array, np.rint(picture.image.array))
        and picture.image.array.min() >= -1024
        and picture.image.array.max() <= 3071
    )


def test_full_size_fits_the_tensor(patients: list[heart_like_task.Drawing]) -> None:
    for drawing in patients:
        extent = np.array(drawing.image.array.shape) * drawing.image.spacing_mm
        assert max(drawing.image.array.shape) <= 128 and (extent > 125).all() and (extent < 155).all()
        assert all(1.0 <= step <= 1.4 for step in drawing.image.spacing_mm)


# ---- anatomy ----------------------------------------------------------------------------------------------


def test_target_is_a_left_and_a_right_tree(patients: list[heart_like_task.Drawing]) -> None:
    for drawing in patients:
        trees, count = ndimage.label(drawing.label.array == 1, CUBE)
        assert count == 2 and np.bincount(trees.ravel())[1:].min() > 200
        aorta = ndimage.binary_dilation(drawing.label.array == heart_like_task.IDS["aorta"], CUBE)
        assert set(np.unique(trees[aorta])) >= {1, 2}  # both begin at the aorta


def test_vessels_are_as_thick_as_coronaries(patients: list[heart_like_task.Drawing]) -> None:
    for drawing in patients:
        for vessel in [*drawing.arteries[0], *drawing.arteries[1], *drawing.veins]:
            # diameter 1.4 to 4.1 mm
            assert vessel.radii.min() >= 0.7 and vessel.radii.max() <= 2.05
        ml = drawing.facts["artery_ml"], drawing.facts["vein_ml"]
        assert 1.2 < ml[0] < 4.5 and 0.4 < ml[1] / ml[0] < 1.3


def test_guides_have_the_sizes_of_organs(patients: list[heart_like_task.Drawing]) -> None:
    limits = {
        "heart_myocardium": (60, 180),
        "heart_atrium_left": (25, 90),
        "heart_ventricle_left": (25, 90),
        "heart_atrium_right": (30, 110),
        "heart_ventricle_right": (45, 160),
        "aorta": (45, 160),
        "pulmonary_artery": (20, 110),
    }
    for drawing in patients:
        label = drawing.label
        voxel_ml = float(np.prod(label.spacing_mm)) / 1000
        for name, (low, high) in limits.items():
            mask = label.array == heart_like_task.IDS[name]
            assert low < mask.sum() * voxel_ml < high, name
            parts, _ = ndimage.label(mask, CUBE)
            assert np.bincount(parts.ravel())[1:].max() > 0.9 * mask.sum(), name


def test_heart_lies_as_in_a_person(patients: list[heart_like_task.Drawing]) -> None:
    """Canonical axes: superior, posterior, left."""
    for drawing in patients:
        label = to_canonical(drawing.label).array
        place = {
            name: np.array(ndimage.center_of_mass(label == number))
            for name, number in heart_like_task.IDS.items()
        }
        assert place["heart_ventricle_left"][2] > place["heart_atrium_right"][2] + 20  # to the left of it
        assert place["heart_atrium_left"][1] > place["heart_ventricle_right"][1] + 20  # behind it
        assert place["pulmonary_artery"][0] > place["heart_ventricle_left"][0] + 20  # above it


def test_blood_is_bright_and_the_right_heart_may_be_washed_out() -> None:
    seen = {
        heart_like_task.sample_patient(np.random.default_rng([0, i, 47]), "full").hu["blood_right"] < 140
        for i in range(20)
    }
    assert seen == {True, False}
    picture = heart_like_task.draw(0, 1, "tiny")
    inside = ndimage.binary_erosion(picture.label.array == heart_like_task.IDS["heart_ventricle_left"])
    assert picture.image.array[inside].mean() > 250


# ---- what makes the task ----------------------------------------------------------------------------------


def test_veins_look_like_arteries(patients: list[heart_like_task.Drawing]) -> None:
    """Over some patients the same attenuation, in the fat as in the middle of the tubes."""
    means = {"artery": [], "vein": []}  # type: ignore[var-annotated]
    cores = {"artery": [], "vein": []}  # type: ignore[var-annotated]
    for drawing in patients:
        image, level = drawing.image.array, drawing.patient.hu["vessel"]
        for name, mask in (("artery", drawing.label.array == 1), ("vein", drawing.vein)):
            means[name].append(image[mask].mean() / level)
            cores[name].append(
                np.median(image[mask & (ndimage.uniform_filter(mask.astype(np.float32), 3) > 0.4)]) / level
            )
    assert np.mean(means["artery"]) == pytest.approx(np.mean(means["vein"]), abs=0.06)
    assert np.mean(cores["artery"]) == pytest.approx(np.mean(cores["vein"]), abs=0.10)


def test_no_vein_touches_an_artery_and_none_is_labelled(patients: list[heart_like_task.Drawing]) -> None:
    for drawing in patients:
        assert not (drawing.vein & (drawing.label.array == 1)).any()
        axes = cKDTree(np.concatenate([v.points for tree in drawing.arteries for v in tree]))
        for vein in drawing.veins:
            assert axes.query(vein.points)[0].min() > 8.0 and vein.length >= 10
        assert len(drawing.veins) >= 7


def test_every_chamber_has_arteries_and_veins_nearby(patients: list[heart_like_task.Drawing]) -> None:
    """No chamber alone gives the answer: each has vessels of both kinds within a few millimetres of its
    wall.
    """
    wall = ("heart_myocardium", "heart_ventricle_right", "heart_atrium_left", "heart_atrium_right")
    for drawing in patients:
        label, step = drawing.label.array, 2 * np.array(drawing.label.spacing_mm)
        coarse = label[::2, ::2, ::2]
        maps = [
            ndimage.distance_transform_edt(coarse != heart_like_task.IDS[name], sampling=step)
            for name in wall
        ]
        nearest = np.where(np.min(maps, axis=0) < 12, np.argmin(maps, axis=0), -1)
        for i, name in enumerate(wall):
            for vessel in (label == 1, drawing.vein):
                assert (nearest[tuple(np.argwhere(vessel).T // 2)] == i).sum() > 30, name


def test_place_among_the_chambers_tells_artery_from_vein(patients: list[heart_like_task.Drawing]) -> None:
    """Nearest neighbours in the distances to the guide organs of three patients are nearly always right in a
    fourth.
    """
    found = []
    for drawing in patients:
        label = to_canonical(drawing.label)
        vein = to_canonical(Volume(drawing.vein, drawing.label.affine)).array
        where = np.concatenate([np.argwhere(label.array == 1), np.argwhere(vein)])[::4]
        coarse, step = label.array[::2, ::2, ::2], 2 * np.array(label.spacing_mm)
        maps = [
            ndimage.distance_transform_edt(coarse != i, sampling=step)
            - ndimage.distance_transform_edt(coarse == i, sampling=step)
            for i in range(2, 9)
        ]
        places = [ndimage.map_coordinates(m, where.T / 2, order=1, mode="nearest") for m in maps]
        found.append((np.stack(places, axis=1), ~vein[tuple(where.T)]))
    right = []
    for tested, (features, is_artery) in enumerate(found):
        others = [pair for number, pair in enumerate(found) if number != tested]
        known = cKDTree(np.concatenate([pair[0] for pair in others]))
        truth = np.concatenate([pair[1] for pair in others])
        right.append((truth[known.query(features, 9)[1]].mean(axis=1) > 0.5) == is_artery)
    assert np.concatenate(right).mean() > 0.9


# ---- surface ----------------------------------------------------------------------------------------------


def test_surface_points_lie_where_they_should(shaped: SurfaceMap) -> None:
    rng = np.random.default_rng(0)
    angle, u, distance = rng.uniform(0, 360, 60), rng.uniform(-30, 55, 60), rng.uniform(1, 4, 60)
    points = shaped.points(angle, u, distance)
    f = shaped.heart.bed(
        (points[:, 0].astype(np.float32), points[:, 1].astype(np.float32), points[:, 2].astype(np.float32))
    )
    assert np.abs(f - distance).max() < 0.6


def test_grooves_lie_between_the_chambers(shaped: SurfaceMap) -> None:
    u = np.array([15.0, 30.0, 45.0])
    for angle in (shaped.front(u), shaped.back(u)):
        points = shaped.points(angle, u, np.full(3, 2.0)).astype(np.float32)
        walls = {name: shaped.heart.wall(name, (points[:, 0], points[:, 1], points[:, 2])) for name in OUTER}
        assert np.abs(walls["lv"] - walls["rv"]).max() < 6
    assert shaped.front(u).max() < 150 and shaped.back(u).min() > 200
    back = shaped.points(np.array([30.0]), np.array([20.0]), np.array([2.0]))[0]
    assert locate(back)[0] == pytest.approx(30.0, abs=8)
