"""Targets and sampling places of tubes, on synthetic tubes whose axis and radius are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from ctseg.learning import tubes

SPACING_MM = (3.0, 2.0, 1.0)


def straight_tube(axis: int, radius_mm: float, shape=(30, 34, 38)) -> tuple[np.ndarray, tuple[int, ...]]:
    """A tube through the whole array along an axis, and the voxel its centre passes through."""
    centre = (14, 17, 18)
    distance = np.zeros(shape)
    for other in {0, 1, 2} - {axis}:
        place = (np.arange(shape[other]) - centre[other]) * SPACING_MM[other]
        distance = distance + np.expand_dims(place, [k for k in range(3) if k != other]) ** 2
    return np.sqrt(distance) <= radius_mm, centre


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("radius_mm", [5.0, 6.3, 8.8])
def test_a_straight_tube_has_its_axis_as_centreline_and_its_radius_there(axis, radius_mm):
    mask, centre = straight_tube(axis, radius_mm)
    _, skeleton, radius = tubes.tube_targets(mask.astype(np.uint8), [1], SPACING_MM)
    others = [k for k in range(3) if k != axis]
    places = np.argwhere(skeleton)
    inner = places[(places[:, axis] > 5) & (places[:, axis] < mask.shape[axis] - 6)]
    assert len(np.unique(inner[:, axis])) == mask.shape[axis] - 12  # no slice without centreline
    assert np.abs(inner[:, others] - np.array(centre)[others]).max() <= 1
    on_axis = radius[tuple(slice(None) if k == axis else centre[k] for k in range(3))]
    assert on_axis.min() == on_axis.max()  # also at both ends: the canvas' edge is no surface
    assert abs(float(on_axis[0]) - radius_mm) <= max(SPACING_MM[k] for k in others) / 2


def test_the_depth_is_the_distance_transform():
    mask = ndimage.binary_dilation(np.random.default_rng(0).random((10, 12, 14)) > 0.97, iterations=2)
    assert tubes.depth_mm(mask, SPACING_MM) == pytest.approx(
        ndimage.distance_transform_edt(mask, sampling=SPACING_MM), abs=1e-5
    )


def test_a_structure_that_fills_everything_ends_at_the_edge():
    assert tubes.depth_mm(np.ones((3, 3, 5), bool), SPACING_MM)[1, 1].tolist() == [1, 2, 3, 2, 1]
    assert not tubes.depth_mm(np.zeros((3, 3, 3), bool), SPACING_MM).any()


def test_targets_carry_ids_and_leave_other_structures_alone():
    label = np.zeros((10, 12, 14), np.uint8)
    label[2:5, 2:5, 1:13] = 2
    label[6:9, 6:11, 3:6] = 7
    label[7:9, 2:4, 8:12] = 1
    centreline, skeleton, radius = tubes.tube_targets(label, [2, 7], SPACING_MM)
    assert (centreline.dtype, skeleton.dtype, radius.dtype) == (np.uint8, np.uint8, np.float16)
    assert set(np.unique(skeleton)) == set(np.unique(centreline)) == {0, 2, 7}
    assert (label[skeleton > 0] == skeleton[skeleton > 0]).all()
    assert (radius[np.isin(label, [2, 7])] > 0).all() and (radius[~np.isin(label, [2, 7])] == 0).all()
    assert np.array_equal(centreline == 2, ndimage.binary_dilation(skeleton == 2, np.ones((3, 3, 3), bool)))


def test_thick_centrelines_that_meet_keep_what_lies_in_their_structure():
    label = np.zeros((10, 12, 14), np.uint8)
    label[4, 5, 1:13], label[4, 6, 1:13] = 1, 2
    centreline, skeleton, _ = tubes.tube_targets(label, [1, 2], SPACING_MM)
    assert (skeleton == label).all()
    assert (centreline[label > 0] == label[label > 0]).all()


def test_blocks_and_single_voxels_have_a_skeleton_and_nothing_has_none():
    label = np.zeros((10, 12, 14), np.uint8)
    label[1:3, 1:3, 1:3], label[6:8, 6:8, 2:10], label[9, 11, 13] = 1, 1, 1
    _, skeleton, _ = tubes.tube_targets(label, [1], SPACING_MM)
    pieces, n_pieces = ndimage.label(label, np.ones((3, 3, 3)))
    assert set(pieces[skeleton > 0]) == set(range(1, n_pieces + 1))
    for target in tubes.tube_targets(np.zeros((10, 12, 14), np.uint8), [1], SPACING_MM):
        assert not target.any()


def test_sampling_points_tell_thin_branches_from_wide_ones_and_know_the_background():
    label = np.zeros((24, 26, 28), np.uint8)
    label[3:12, 3:12, 2:26] = 1  # 5 voxels from the axis to the outside
    label[18, 18, 2:26] = 1  # 1 voxel
    _, skeleton, radius = tubes.tube_targets(label, [1], (1, 1, 1))
    lung = np.zeros(label.shape, bool)
    lung[:20] = True
    points = tubes.sampling_points(skeleton, radius, label, lung, rng=np.random.default_rng(0), limit=50)
    assert 0 < len(points["thin"]) <= 50 and len(points["wide"]) > 0 and len(points["background"]) == 50
    assert (skeleton[tuple(points["thin"].T)] == 1).all() and (skeleton[tuple(points["wide"].T)] == 1).all()
    assert radius[tuple(points["thin"].T)].max() < tubes.THIN_MM <= radius[tuple(points["wide"].T)].min()
    background = tuple(points["background"].T)
    assert lung[background].all() and not label[background].any()
    without = tubes.sampling_points(skeleton, radius, label, None, rng=np.random.default_rng(0))
    assert len(without["background"]) > 0 and not label[tuple(without["background"].T)].any()
    nothing = tubes.sampling_points(skeleton * 0, radius * 0, label * 0, None, rng=np.random.default_rng(0))
    assert [places.shape for places in nothing.values()] == [(0, 3)] * 3


def test_missed_points_put_gaps_before_lost_ends():
    skeleton, prediction = np.zeros((10, 12, 40), np.uint8), np.zeros((10, 12, 40), np.uint8)
    skeleton[5, 6, 2:38] = 3
    prediction[5, 5:8, 2:10] = 3
    prediction[5, 5:8, 14:25] = 3  # 10 to 13 is a gap, 25 to 37 a lost end
    prediction[5, 6, 30] = 1  # another structure there is a miss as well
    everything = tubes.missed_points(skeleton, prediction, rng=np.random.default_rng(0))
    assert (
        sorted(everything[:, 2]) == [10, 11, 12, 13, *range(25, 38)] and (everything[:, :2] == (5, 6)).all()
    )
    few = tubes.missed_points(skeleton, prediction, rng=np.random.default_rng(0), limit=8)
    assert sorted(few[:4, 2]) == [10, 11, 12, 13] and (few[4:, 2] >= 25).all() and len(few) == 8
    skeleton[5, 6, 10:14] = 0  # without gaps the ends take all places
    assert len(tubes.missed_points(skeleton, prediction, rng=np.random.default_rng(0), limit=8)) == 8
    assert len(tubes.missed_points(skeleton, skeleton, rng=np.random.default_rng(0))) == 0
    assert tubes.missed_points(skeleton * 0, prediction, rng=np.random.default_rng(0)).shape == (0, 3)
