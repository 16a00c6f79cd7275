"""The pelvic bones with hard edges: the pelvis patients, bones worn, pale or fused, noisier scans."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.ndimage import label as components

from ctseg.anatomy.pelvis import pelvic_bones_task, pelvis_task
from ctseg.anatomy.pelvis.pelvic_bones_task import IDS, PATIENTS, TARGETS
from ctseg.anatomy.pelvis.pelvis_task import Drawing, is_dicom, plan, render
from ctseg.anatomy.pelvis.people import HEALTHY, Spur, Wear, sample_wear
from ctseg.anatomy.tasks import Picture
from ctseg.datasets.case import PRESENT
from ctseg.datasets.layouts import open_data_set
from ctseg.datasets.load_case import load_case
from ctseg.geometry.volume import to_canonical

pytestmark = pytest.mark.slow  # bodies of full size

INDEX = 2  # a calm patient without metal


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """Eight patients of the default cohort with 6 mm voxels."""
    return [pelvic_bones_task.draw(0, index, "tiny") for index in range(8)]


def render_with(wear: Wear) -> Drawing:
    """Always the same patient, the bones in some state: hips and sacrum alone, small enough to be quick."""
    patient, protocol, rng = plan(0, INDEX)
    height, width = (int(n * s / 2.6) for n, s in zip(protocol.shape[1:], protocol.spacing_mm[1:]))
    protocol = dataclasses.replace(
        protocol, spacing_mm=(4.0, 2.6, 2.6), shape=(36, height, width), bottom_mm=-30.0, noise_hu=2.0
    )
    return render(dataclasses.replace(patient, wear=wear), protocol, rng)


@pytest.fixture(scope="module")
def healthy() -> Drawing:
    return render_with(HEALTHY)


def contacts(drawing: Drawing, first: str, second: str) -> int:
    """Voxels of the first bone that have one of the second as a neighbour."""
    a, b = (drawing.label.array == pelvis_task.IDS[name] for name in (first, second))
    return int((binary_dilation(a) & b).sum())


def test_a_seed_and_a_number_give_one_patient(pictures: list[Picture]) -> None:
    begin = time.process_time()
    again = pelvic_bones_task.draw(0, 5, "tiny")
    assert time.process_time() - begin < 3  # about a third of a second where the machine is idle
    assert (
        again.image.array.tobytes() == pictures[5].image.array.tobytes()
        and again.label.array.tobytes() == pictures[5].label.array.tobytes()
    )
    assert again.facts == pictures[5].facts and again.label.array.dtype == np.uint8


def test_every_patient_has_all_five_bones_on_their_sides(pictures: list[Picture]) -> None:
    """All of them, since a third is written as DICOM SEG, which cannot say "absent"."""
    assert len(TARGETS) == 5 and set(np.unique(pictures[0].label.array)) <= {0, *IDS.values()}
    for picture in pictures:
        x_mm = {}
        for name in TARGETS:
            index = np.argwhere(picture.label.array == IDS[name])
            assert len(index) * np.prod(picture.label.spacing_mm) / 1000 > 60, name
            found, _ = components(picture.label.array == IDS[name], structure=np.ones((3, 3, 3)))
            # spurs have grown on, not apart
            assert np.bincount(found.ravel())[1:].max() >= 0.97 * len(index), name
            x_mm[name] = (picture.label.affine @ np.array([*index.mean(axis=0), 1.0]))[0]
        assert x_mm["hip_left"] > x_mm["sacrum"] + 40 > x_mm["hip_right"] + 80
        assert x_mm["femur_left"] > x_mm["femur_right"] + 100
    assert sum(is_dicom(index) for index in range(PATIENTS)) == PATIENTS / 3


def test_patients_are_those_of_the_pelvis_with_paler_bones_and_noisier_scans(pictures: list[Picture]) -> None:
    cortex, noise = [], []
    for index, picture in enumerate(pictures):
        patient, protocol, _ = plan(0, index)
        assert picture.facts["sex"] == patient.sex and picture.facts["metal"] == (patient.metal_side != 0)
        cortex.append(picture.facts["cortex_hu"] / patient.hu["cortex"])
        noise.append(picture.facts["noise_hu"] / protocol.noise_hu)
    assert 0.85 < max(cortex) < 1.01 and min(cortex) < 0.65
    assert max(noise) > 1.5 and min(noise) > 0.98


def test_healthy_bones_are_those_of_the_pelvis(healthy: Drawing) -> None:
    assert np.array_equal(render_with(Wear()).image.array, healthy.image.array)
    assert contacts(healthy, "hip_left", "femur_left") < 120


def test_narrow_joints_bring_the_bones_together(healthy: Drawing) -> None:
    worn = render_with(Wear(hip_gap_mm={1: 0.2, -1: 2.2}))
    assert contacts(worn, "hip_left", "femur_left") > contacts(healthy, "hip_left", "femur_left") + 100
    assert contacts(worn, "hip_right", "femur_right") == contacts(healthy, "hip_right", "femur_right")


def test_a_sacroiliac_gap_parts_the_bones_and_a_fused_joint_hides_the_edge(healthy: Drawing) -> None:
    apart, fused = render_with(Wear(sacroiliac_gap_mm={1: 2.8, -1: 2.8})), render_with(Wear(fused=(1, -1)))
    assert contacts(apart, "hip_left", "sacrum") < 0.6 * contacts(healthy, "hip_left", "sacrum")
    # what it is does not change, only what is seen
    assert np.array_equal(fused.label.array, healthy.label.array)
    changed = np.abs(fused.image.array - healthy.image.array) > 40
    assert 20 < changed.sum() < 0.2 * (healthy.label.array == pelvis_task.IDS["sacrum"]).sum()
    assert fused.image.array[changed].mean() < healthy.image.array[changed].mean()  # the dense line is gone


def test_dense_rims_and_spurs_grow_on_the_worn_side_alone(healthy: Drawing) -> None:
    worn = render_with(Wear(sclerosis_hu={1: 300.0}, spurs=(Spur("femur_left", (104.0, 18.0, 8.0), 6.0),)))
    rise = {}
    for side in ("left", "right"):
        bone = [drawing.label.array == pelvis_task.IDS[f"hip_{side}"] for drawing in (worn, healthy)]
        beside = (
            binary_dilation(healthy.label.array == pelvis_task.IDS[f"femur_{side}"], iterations=2)
            & bone[0]
            & bone[1]
        )
        rise[side] = float((worn.image.array - healthy.image.array)[beside].mean())
    assert rise["left"] > 40 and abs(rise["right"]) < 5
    assert (worn.label.array == pelvis_task.IDS["femur_left"]).sum() > (
        healthy.label.array == pelvis_task.IDS["femur_left"]
    ).sum()


def test_wear_varies_and_keeps_to_its_side() -> None:
    states = [sample_wear(np.random.default_rng(number)) for number in range(60)]
    assert any(state.fused for state in states) and any(
        min(state.hip_gap_mm.values()) < 0.6 for state in states
    )
    assert any(not state.sclerosis_hu for state in states) and min(state.cortex for state in states) < 0.6
    for state in states:
        assert all((spur.center[0] > 0) == spur.bone.endswith("left") for spur in state.spurs)
        assert all(state.sacroiliac_gap_mm[side] == 0 for side in state.fused)


def test_the_pipeline_reads_the_cohort(cohorts: dict[str, Path]) -> None:
    data = open_data_set(cohorts["pelvic_bones"], None)
    assert data.synthetic and set(data.structures) == set(IDS)
    assert sorted(case.image.format for case in data.cases) == ["dicom"] * 2 + ["nifti"] * 4
    scan = next(case for case in data.cases if "im_1" in case.image.path.parts)
    loaded = load_case(scan, TARGETS, root=cohorts["pelvic_bones"])
    assert set(loaded.states.values()) == {PRESENT}
    drawn = to_canonical(pelvic_bones_task.draw(0, 2, "tiny").label).array
    for number, name in enumerate(TARGETS, start=1):
        assert np.array_equal(to_canonical(loaded.label).array == number, drawn == IDS[name]), name
