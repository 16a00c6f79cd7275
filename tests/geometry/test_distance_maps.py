"""Signed distances: sign, size, what the limit leaves out, and the coarse maps of a canvas.

All shapes are synthetic.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ctseg.geometry.distance_maps import (
    FAR_MM,
    GUIDE_RANGE_MM,
    coarse_maps,
    guide_grid,
    guide_stride,
    organ_masks,
    signed_distance_maps,
)
from ctseg.geometry.volume import Grid, Volume, resample, to_canonical

SHAPE, SPACING_MM = (10, 12, 14), (3.0, 2.0, 1.0)


def grid_of(shape: tuple[int, int, int] = SHAPE, spacing_mm: tuple[float, float, float] = SPACING_MM) -> Grid:
    """Canonical axes (superior, posterior, left)."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing_mm
    affine[:, 3] = (-20.0, 30.0, 5.0, 1.0)
    return Grid(shape, affine)


def ball(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], radius_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 ball in the middle, true signed distance in mm of every voxel centre)."""
    places = np.stack(
        np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm)], indexing="ij")
    )
    distance = np.sqrt((places**2).sum(axis=0)) - radius_mm
    return (distance < 0).astype(np.uint8), distance


def brute_force(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Signed distances by trying every pair of voxels, half a voxel off along the way to the nearest one."""
    result = np.zeros(mask.shape)
    places = {side: np.argwhere(mask == side) for side in (0, 1)}
    for index in itertools.product(*map(range, mask.shape)):
        steps = (places[1 - int(mask[index])] - index) * spacing_mm
        length = np.sqrt((steps**2).sum(axis=1))
        step, nearest = steps[length.argmin()], length.min()
        half = np.sqrt(((step / nearest * spacing_mm) ** 2).sum()) / 2
        result[index] = (half - nearest) if mask[index] else (nearest - half)
    return result


@pytest.mark.parametrize("spacing_mm", [SPACING_MM, (2.0, 2.0, 2.0)])
def test_a_box_as_by_brute_force(spacing_mm):
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[3:7, 4:8, 5:9] = (
        5  # faces: every voxel has one nearest direction, so brute force has no ties to break
    )
    label[0, 0, 0] = 3
    maps, presence = signed_distance_maps(label, [5], spacing_mm)
    assert presence.tolist() == [True] and maps.dtype == np.float32
    expected = brute_force((label == 5).astype(int), spacing_mm)
    unique = np.abs(maps[0] - expected) < 1e-4
    assert unique[label == 0].all()  # outside a box the nearest voxel is unique
    assert (np.sign(maps[0]) == np.sign(expected)).all()
    assert unique.mean() > 0.98  # inside, two faces can be equally near with different half voxels
    # straight on: half a voxel of that axis off
    assert maps[0][2, 5, 6] == pytest.approx(spacing_mm[0] / 2) and maps[0][5, 5, 9] == pytest.approx(
        spacing_mm[2] / 2
    )
    assert maps[0][6, 5, 6] < 0 < maps[0][7, 5, 6]


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.5, 0.35, 0.35), (3.0, 2.0, 2.0)])
def test_a_ball_against_the_formula(spacing_mm):
    shape = (41, 47, 53)
    mask, truth = ball(shape, spacing_mm, radius_mm=12 * min(spacing_mm))
    ((found,), _) = signed_distance_maps(mask, [1], spacing_mm)
    assert ((found < 0) == (mask > 0)).all()
    assert np.abs(found - truth).max() < max(spacing_mm)
    assert np.abs(found - truth).mean() < max(spacing_mm) / 4
    # zero crossings between neighbours lie within half a voxel of the surface
    for axis, spacing in enumerate(spacing_mm):
        near, far = np.moveaxis(found, axis, 0)[:-1], np.moveaxis(found, axis, 0)[1:]
        true_near, true_far = np.moveaxis(truth, axis, 0)[:-1], np.moveaxis(truth, axis, 0)[1:]
        crossing = (near < 0) != (far < 0)
        share, true_share = (
            a[crossing] / (a[crossing] - b[crossing]) for a, b in ((near, far), (true_near, true_far))
        )
        assert np.abs(share - true_share).max() <= 0.5, spacing
    # the map grows by 1 mm per mm, away from the surface and from the middle
    slope = np.sqrt(sum(g**2 for g in np.gradient(found, *spacing_mm)))
    clear = (truth > 3 * max(spacing_mm)) & (truth < 10 * max(spacing_mm))
    clear[[0, -1]] = clear[:, [0, -1]] = clear[:, :, [0, -1]] = False
    assert slope[clear].mean() == pytest.approx(1, abs=0.05) and np.percentile(slope[clear], 5) > 0.9


@pytest.mark.parametrize("limit_mm", [2.0, 7.5, 100.0])
def test_the_limit_only_clips(limit_mm):
    rng = np.random.default_rng(3)
    label = np.zeros((20, 24, 28), dtype=np.int32)
    for number in (1, 2, 7):
        first = rng.integers(0, 14, 3)
        label[tuple(slice(f, f + n) for f, n in zip(first, rng.integers(1, 12, 3)))] = number
    full, _ = signed_distance_maps(label, [1, 2, 7], SPACING_MM)
    short, _ = signed_distance_maps(label, [1, 2, 7], SPACING_MM, limit_mm=limit_mm)
    assert np.array_equal(short, np.clip(full, -limit_mm, limit_mm))
    assert full.min() < 0 < full.max()


def test_empty_and_full_are_finite():
    label = np.full(SHAPE, 2, dtype=np.uint8)
    for limit_mm, far in ((None, FAR_MM), (30.0, 30.0)):
        maps, presence = signed_distance_maps(label, [9, 2], SPACING_MM, limit_mm=limit_mm)
        assert presence.tolist() == [False, True]
        assert (maps[0] == far).all() and (maps[1] == -far).all()


def test_the_edge_of_the_array_is_no_boundary():
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[:4] = 1
    ((found,), _) = signed_distance_maps(label, [1], SPACING_MM)
    assert np.allclose(found, ((np.arange(10) - 3.5) * 3.0)[:, None, None])


def test_stride_comes_nearest_to_two_millimetres():
    spacings = {3.9: 1, 2.0: 1, 1.5: 1, 1.3: 2, 1.0: 2, 0.8: 2, 0.7: 3, 0.35: 6, 5.0: 1}
    for spacing, steps in spacings.items():
        assert guide_stride(grid_of(spacing_mm=(spacing, 1.0, 2.0))) == (steps, 2, 1), spacing
    assert guide_stride(grid_of(spacing_mm=(1.0, 1.0, 1.0)), target_mm=4.0) == (4, 4, 4)


def test_a_guide_voxel_is_a_block_of_canvas_voxels():
    canvas = grid_of((11, 12, 13))
    grid = guide_grid(canvas, (2, 3, 5))
    assert grid.shape == (6, 4, 3) and grid.spacing_mm == pytest.approx((6.0, 6.0, 5.0))
    block = np.array(
        list(itertools.product(range(4, 6), range(3, 6), range(10, 15)))
    ).T  # reaches beyond the canvas
    middle = (canvas.affine @ np.vstack([block, np.ones(block.shape[1])])).mean(axis=1)
    assert np.allclose(grid.affine @ [2, 1, 2, 1], middle)


def label_volume(grid: Grid) -> Volume:
    label = np.zeros(grid.shape, dtype=np.uint8)
    label[2:6, 3:8, 1:4] = 1
    label[12:19, 2:9, 20:26] = 2
    return Volume(label, grid.affine)


def test_distances_are_those_of_the_whole_scan():
    scan = grid_of((24, 26, 30), (2.0, 2.0, 2.0))
    label = label_volume(scan)
    whole, _ = signed_distance_maps(label.array, [1, 2, 3], scan.spacing_mm)
    canvas = scan.crop((4, 5, 6), (10, 12, 16))  # organ 1 lies before it along W, organ 2 is cut
    maps = coarse_maps(organ_masks(label, [1, 2, 3]), canvas)
    assert maps.stride == (1, 1, 1) and maps.presence.tolist() == [True, True, False]
    assert maps.distance_mm.dtype == np.float16
    assert np.allclose(maps.distance_mm[:2], whole[:2, 4:14, 5:17, 6:22], atol=0.02)
    assert maps.distance_mm[0].min() > 0 > maps.distance_mm[1].min()
    assert (maps.distance_mm[2] == GUIDE_RANGE_MM).all()


def test_a_canvas_beyond_the_scan_and_uncut_masks():
    scan = grid_of((24, 26, 30), (2.0, 2.0, 2.0))
    label = label_volume(scan)
    canvas = scan.crop((-3, -4, -5), (32, 33, 37))
    cut = coarse_maps(organ_masks(label, [2]), canvas)
    uncut = coarse_maps([Volume(label.array == 2, label.affine)], canvas)
    padded = np.pad(label.array, [(3, 5), (4, 3), (5, 2)])
    expected, _ = signed_distance_maps(padded, [2], scan.spacing_mm)
    assert np.array_equal(cut.distance_mm, uncut.distance_mm)
    assert np.allclose(cut.distance_mm, expected, atol=0.05)


def test_blocks_of_two_with_an_incomplete_last_one():
    """The organ's faces lie on block boundaries, so the coarse map is the exact map of the blocks."""
    scan = grid_of((24, 26, 30), (1.0, 1.0, 1.0))
    label = Volume(np.zeros(scan.shape, dtype=np.uint8), scan.affine)
    label.array[4:10, 6:14, 8:12] = 1
    canvas = scan.crop((0, 0, 0), (15, 17, 30))
    maps = coarse_maps(organ_masks(label, [1]), canvas)
    assert maps.stride == (2, 2, 2) and maps.distance_mm.shape == (1, 8, 9, 15)
    blocks = np.zeros((8, 9, 15), dtype=np.uint8)
    blocks[2:5, 3:7, 4:6] = 1
    expected, _ = signed_distance_maps(blocks, [1], (2.0, 2.0, 2.0))
    assert np.allclose(maps.distance_mm, expected, atol=0.02)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
def test_axes_of_the_scan_do_not_matter(flips):
    scan = grid_of((20, 22, 26), (2.0, 2.5, 1.5))
    label = Volume(np.zeros(scan.shape, dtype=np.uint8), scan.affine)
    label.array[3:9, 5:11, 14:20] = 1
    turned = label.array.transpose(2, 0, 1)[:: flips[0], :: flips[1], :: flips[2]]
    affine = scan.affine[:, [2, 0, 1, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip < 0:
            affine[:3, 3] += affine[:3, axis] * (turned.shape[axis] - 1)
            affine[:3, axis] *= -1
    stored = Volume(np.ascontiguousarray(turned), affine)
    assert np.array_equal(to_canonical(stored).array, label.array)
    straight, other = (coarse_maps(organ_masks(volume, [1]), scan) for volume in (label, stored))
    assert np.array_equal(straight.distance_mm, other.distance_mm)


def test_an_oblique_canvas_sees_a_ball_as_a_ball():
    mask, _ = ball((40, 40, 40), (2.0, 2.0, 2.0), 20.0)
    scan = grid_of((40, 40, 40), (2.0, 2.0, 2.0))
    angle = np.radians(25)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    centre = (scan.affine @ [19.5, 19.5, 19.5, 1])[:3]
    affine = scan.affine.copy()
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = centre - affine[:3, :3] @ np.array([15.0, 12.0, 18.0])
    canvas = Grid((31, 25, 37), affine)
    maps = coarse_maps([Volume(mask, scan.affine)], canvas)
    _, truth = ball((31, 25, 37), (2.0, 2.0, 2.0), 20.0)
    error = np.abs(maps.distance_mm[0] - truth)
    # drawn on one grid, moved to another: each time the surface moves by up to half the diagonal of a voxel
    assert error.max() < 2 * np.sqrt(3) and error.mean() < 1.0


def test_an_organ_between_the_guide_voxels_is_kept():
    scan = grid_of((24, 24, 24), (1.0, 1.0, 1.0))
    label = Volume(np.zeros(scan.shape, dtype=np.uint8), scan.affine)
    label.array[9, 9, 9] = 1
    canvas = scan.crop((0, 0, 0), (24, 24, 24))
    coarse = guide_grid(canvas, (4, 4, 4))
    assert not resample(
        label, coarse, order="nearest", fill=0
    ).array.any()  # nearest neighbour alone loses it
    maps = coarse_maps(organ_masks(label, [1]), canvas, target_mm=4.0)
    assert maps.presence.all() and np.argwhere(maps.distance_mm[0] < 0).tolist() == [[2, 2, 2]]


def test_an_organ_out_of_range_is_far_but_present():
    scan = grid_of((200, 12, 14), (5.0, 4.0, 4.0))
    label = Volume(np.zeros(scan.shape, dtype=np.uint8), scan.affine)
    label.array[195:, 4:8, 4:8] = 1
    maps = coarse_maps(organ_masks(label, [1]), scan.crop((5, 0, 0), (20, 12, 14)))
    assert maps.presence.all() and (maps.distance_mm == GUIDE_RANGE_MM).all()


def test_deep_inside_an_organ_that_ends_beyond_the_range():
    scan = grid_of((40, 40, 40), (20.0, 20.0, 20.0))
    everywhere = Volume(np.ones(scan.shape, dtype=np.uint8), scan.affine)
    middle = coarse_maps([everywhere], scan.crop((17, 18, 18), (6, 4, 4)))
    assert (middle.distance_mm == -GUIDE_RANGE_MM).all()
    # what lies beyond the scan is not the organ
    corner = coarse_maps([everywhere], scan.crop((-1, -1, -1), (8, 8, 8)))
    assert corner.distance_mm[0, 1, 4, 5] == -10 and corner.distance_mm[0, 0, 4, 5] == 10
