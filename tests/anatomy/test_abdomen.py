"""The synthetic upper abdomen: reproducible, on the right sides, absent organs said to be absent, and not a
toy.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion
from scipy.ndimage import label as components

from ctseg.anatomy.abdomen import abdomen_task
from ctseg.anatomy.abdomen.abdomen_task import IDS, PATIENTS, TARGETS, plan
from ctseg.anatomy.tasks import Picture
from ctseg.datasets.case import ABSENT, PRESENT
from ctseg.datasets.layouts import open_data_set
from ctseg.datasets.load_case import load_case
from ctseg.geometry.volume import Volume, to_canonical

pytestmark = pytest.mark.slow  # bodies of full size

DRAWN = (0, 1, 2, 4, 5, 7, 8, 11, 13, 18)  # 4, 11 and 18 have lost an organ
REMOVED = {4: "kidney_left", 11: "spleen", 18: "kidney_right"}


@pytest.fixture(scope="module")
def pictures() -> dict[int, Picture]:
    """Ten patients of the default cohort with 6 mm voxels."""
    return {index: abdomen_task.draw(0, index, "tiny") for index in DRAWN}


def center_mm(volume: Volume, name: str) -> np.ndarray:
    """Centre of a structure in LPS mm."""
    index = np.argwhere(volume.array == IDS[name]).mean(axis=0)
    return (volume.affine @ np.array([*index, 1.0]))[:3]


def volume_ml(picture: Picture, name: str) -> float:
    return float((picture.label.array == IDS[name]).sum() * np.prod(picture.label.spacing_mm) / 1000)


def test_a_seed_and_a_number_give_one_patient(pictures: dict[int, Picture]) -> None:
    begin = time.process_time()
    again = abdomen_task.draw(0, 1, "tiny")
    assert time.process_time() - begin < 3  # about half a second where the machine is idle
    assert again.image.array.tobytes() == pictures[1].image.array.tobytes()
    assert (
        again.label.array.tobytes() == pictures[1].label.array.tobytes() and again.facts == pictures[1].facts
    )
    assert (
        again.image.array.dtype == np.float32
        and again.label.array.dtype == np.uint8
        and again.image.grid.matches(again.label.grid)
    )
    people = [plan(seed, index)[0] for seed, index in ((0, 0), (0, 1), (1, 0))]
    assert len({person.fat_mm for person in people}) == 3


def test_left_is_left_and_right_is_right(pictures: dict[int, Picture]) -> None:
    """LPS: x grows to the patient's left, y to the back, z to the head; the same after any order of axes."""
    higher = []
    for index, picture in pictures.items():
        label = picture.label
        middle = center_mm(label, "aorta")[0]
        here = {name: center_mm(label, name) for name in TARGETS if name != REMOVED.get(index)}
        assert here["liver"][0] < middle - 25
        for name, sign in (("kidney_left", 1), ("spleen", 1), ("kidney_right", -1)):
            if name in here:
                assert sign * (here[name][0] - middle) > 25, (index, name)
        if {"kidney_left", "kidney_right"} <= set(here):
            higher.append(here["kidney_left"][2] - here["kidney_right"][2])
        canonical = to_canonical(label).array  # W grows to the left
        assert (
            np.argwhere(canonical == IDS["stomach"])[:, 2].mean()
            > np.argwhere(canonical == IDS["liver"])[:, 2].mean()
        )
    assert np.mean(higher) > 5  # the liver pushes the right kidney down


def test_a_removed_organ_is_absent_and_nothing_else(pictures: dict[int, Picture]) -> None:
    for index, picture in pictures.items():
        there = {name for name in TARGETS if (picture.label.array == IDS[name]).any()}
        assert set(TARGETS) - there == ({REMOVED[index]} if index in REMOVED else set()), index
        assert picture.facts["removed"] == REMOVED.get(index)
    assert sum(plan(0, index)[0].removed is not None for index in range(PATIENTS)) == 3


def test_organs_have_adult_volumes(pictures: dict[int, Picture]) -> None:
    limits_ml = {
        "liver": (750, 2300),
        "kidney_right": (70, 280),
        "kidney_left": (70, 280),
        "spleen": (70, 420),
    }
    for index, picture in pictures.items():
        for name, (low, high) in limits_ml.items():
            if name != REMOVED.get(index):
                assert low < volume_ml(picture, name) < high, (index, name, volume_ml(picture, name))


def test_every_target_is_one_piece_inside_the_scan(pictures: dict[int, Picture]) -> None:
    for index, picture in pictures.items():
        for name in TARGETS:
            mask = picture.label.array == IDS[name]
            if mask.any():
                found, _ = components(mask, structure=np.ones((3, 3, 3)))
                assert np.bincount(found.ravel())[1:].max() >= 0.96 * mask.sum(), (index, name)
                assert not any(np.take(mask, [0, -1], axis=axis).any() for axis in range(3)), (index, name)


def test_tissues_have_the_attenuation_that_was_drawn(pictures: dict[int, Picture]) -> None:
    for index, picture in pictures.items():
        person, image, label = plan(0, index, "tiny")[0], picture.image.array, picture.label.array
        core = binary_erosion(label == IDS["liver"])
        assert abs(np.median(image[core]) - person.hu["liver"]) < 8, index
        assert image.max() <= 3071 and image.min() >= -2000
        air = image[(label == 0) & (image > -950) & (image < -700)]
        assert air.size > 0.02 * image.size  # the bases of the lungs


def test_contrast_medium_orders_the_organs() -> None:
    """Without medium liver, spleen and kidney are alike; the arteries lead early, the kidneys stand out
    after.
    """
    people = [plan(0, index)[0] for index in range(60)]
    assert {person.phase for person in people} == {"none", "arterial", "portal", "late"}
    for person in people:
        hu = person.hu
        if person.phase == "none":
            assert abs(hu["spleen"] - hu["cortex_kidney"]) < 35
        else:
            assert hu["cortex_kidney"] > hu["spleen"] + 10 and hu["artery"] > 80
        if person.phase == "arterial":
            assert hu["artery"] > hu["cortex_kidney"] > hu["medulla"] + 50
        assert hu["fat"] < hu["bile"] < hu["muscle"] < hu["cortex"]
    apart = [abs(person.hu["liver"] - person.hu["spleen"]) for person in people]
    assert np.mean(np.array(apart) < 20) > 0.3  # in many no threshold can part them


def test_neighbours_touch_in_many_patients(pictures: dict[int, Picture]) -> None:
    """Voxels of other organs right beside the spleen and the liver: their edges cannot be found by fat
    alone.
    """
    for name, neighbours in (
        ("liver", ("kidney_right", "stomach", "gall_bladder", "colon", "duodenum")),
        ("spleen", ("stomach", "kidney_left", "colon")),
    ):
        touching = 0
        for picture in pictures.values():
            mask = picture.label.array == IDS[name]
            rim = binary_dilation(mask) & ~mask
            touching += bool(
                np.isin(picture.label.array[rim], [IDS[other] for other in neighbours]).sum() > 5
            )
        assert touching >= 0.6 * len(pictures), name


def test_no_window_of_attenuation_finds_the_organs(pictures: dict[int, Picture]) -> None:
    """The window that is best over all patients, and the largest piece in it, leave room for a network."""
    edges = np.array([-50, 0, 20, 40, 60, 80, 100, 120, 150, 200, 300])
    windows = [(low, high) for low in edges for high in edges if low < high]
    scores = {name: np.full((len(pictures), len(windows)), np.nan) for name in TARGETS}
    for row, picture in enumerate(pictures.values()):
        for column, (low, high) in enumerate(windows):
            inside = (picture.image.array >= low) & (picture.image.array < high)
            found, count = components(inside)
            largest = found == np.bincount(found.ravel())[1:].argmax() + 1 if count else inside
            for name in TARGETS:
                mask = picture.label.array == IDS[name]
                if mask.any():
                    scores[name][row, column] = 2 * (largest & mask).sum() / (largest.sum() + mask.sum())
    best = {name: float(np.nanmean(table, axis=0).max()) for name, table in scores.items()}
    assert best["liver"] < 0.8 and all(best[name] < 0.5 for name in TARGETS[1:]), best
    assert best["liver"] > 0.2  # the measure itself works


def test_scans_vary_as_scans_do() -> None:
    people, scans, _ = zip(*(plan(0, index) for index in range(PATIENTS)))
    assert {person.stomach_content for person in people} == {"food", "fluid", "contrast"}
    assert any(person.gallbladder == 0 for person in people) and any(person.metastases for person in people)
    slices = [scan.spacing_mm[0] for scan in scans]
    assert min(slices) < 2 and max(slices) == 5.0
    assert len({(scan.order, scan.flips) for scan in scans}) > 8
    assert any(scan.tilt != (0.0, 0.0, 0.0) for scan in scans)
    assert all(np.prod(scan.shape) < 1.1e7 for scan in scans)


def test_the_pipeline_reads_the_cohort(cohorts: dict[str, Path]) -> None:
    data = open_data_set(cohorts["abdomen"], None)
    assert (
        data.synthetic
        and data.layout == "synthetic"
        and len(data.cases) == 6
        and set(data.structures) == set(IDS)
    )
    last = load_case(data.cases[4], TARGETS, root=cohorts["abdomen"])
    assert last.states == {
        "liver": PRESENT,
        "kidney_right": PRESENT,
        "kidney_left": ABSENT,
        "spleen": PRESENT,
    }
    drawn, read = to_canonical(abdomen_task.draw(0, 4, "tiny").label).array, to_canonical(last.label).array
    for number, name in enumerate(TARGETS, start=1):
        assert np.array_equal(read == number, drawn == IDS[name]), name
