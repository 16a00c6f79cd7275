"""Probabilities kept where they are, and the label map whose argmax is taken on the scan: against whole
arrays interpolated.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from shapes import probabilities_of

from ctseg.geometry.argmax_on_scan import label_on_scan
from ctseg.geometry.probabilities import Probabilities
from ctseg.geometry.volume import Grid, Volume, resample


def probabilities(shape: tuple[int, int, int], count: int, seed: int) -> np.ndarray:
    """(count + 1, *shape) smooth, organ-like, summing to 1."""
    rng = np.random.default_rng(seed)
    fields = np.stack([gaussian_filter(rng.normal(size=shape), 3) for _ in range(count + 1)])
    fields[0] += fields.std()
    shares = np.exp(12 * fields / fields.std())
    return (shares / shares.sum(axis=0)).astype(np.float32)


def test_windows_add_up_to_the_whole_array():
    shape, rng = (12, 10, 14), np.random.default_rng(0)
    windows = [
        (slice(0, 8), slice(0, 10), slice(0, 9)),
        (slice(4, 12), slice(0, 10), slice(5, 14)),
        (slice(2, 9), slice(1, 7), slice(3, 11)),
    ]
    total, exact, loose = (
        np.zeros((4, *shape)),
        Probabilities(4, shape, least=0.0),
        Probabilities(4, shape, least=0.01),
    )
    for place in windows:
        size = [part.stop - part.start for part in place]
        values = rng.dirichlet((1, 1, 1, 1), size=size).transpose(3, 0, 1, 2).astype(np.float32)
        values[3][: size[0] // 2] *= 0.001  # a class with little in half of the window
        weight = rng.uniform(0.1, 1, size).astype(np.float32)
        total[(slice(None), *place)] += values * weight
        exact.add(place, values, weight)
        loose.add(place, values, weight)
    for number in range(4):
        np.testing.assert_allclose(exact.whole(number), total[number], atol=1e-6)
        assert 0 <= (total[number] - loose.whole(number)).max() < 0.01 * len(windows)
    assert np.array_equal(exact.label(), total.argmax(axis=0))


def test_a_stray_voxel_costs_a_block_and_not_the_way_to_it():
    values = np.zeros((2, 64, 64, 64), np.float32)
    values[1, 2:8, 2:8, 2:8], values[1, 60, 60, 60] = 1.0, 0.01
    shares = probabilities_of(values)
    assert (
        shares.stored < 2000
        and shares.part(1)[1].shape == (64, 64, 64)
        and np.array_equal(shares.whole(1), values[1])
    )


def test_many_structures_take_no_more_room_than_few():
    quarter = np.arange(40) // 10
    # 4 slabs, 64 cubes of one scan
    few, many = (quarter[:, None, None], 16 * quarter[:, None, None] + 4 * quarter[:, None] + quarter)
    for label, count in ((few, 4), (many, 64)):
        values = (np.broadcast_to(label, (40, 40, 40)) == np.arange(-1, count)[:, None, None, None]).astype(
            np.float32
        )
        shares = Probabilities(count + 1, (40, 40, 40))
        for start in range(0, 40, 5):
            shares.add((slice(start, start + 5), slice(0, 40), slice(0, 40)), values[:, start : start + 5])
        # a side of 10 voxels needs three blocks of 4
        assert shares.stored == {4: 48 * 40 * 40, 64: 48**3}[count]
        assert shares.part(0) is None
        assert all(np.array_equal(shares.whole(number), values[number]) for number in (1, 3, count))


@pytest.mark.parametrize(("axes", "flip"), [((0, 1, 2), False), ((2, 0, 1), True), ((1, 0, 2), True)])
def test_the_argmax_is_that_of_every_class_interpolated_everywhere(axes, flip):
    values = probabilities((26, 30, 34), 6, seed=1)
    canvas = Grid(values.shape[1:], np.diag([3.0, 2.5, 2.0, 1.0]))
    step = np.array([[1.1, 0, 0], [0, 0.9, 0], [0, 0, 1.3]])[:, list(axes)]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = step, (-4.0, 3.0, 1.0)  # begins outside the canvas
    shape = tuple(np.array([70, 84, 50])[list(axes)].tolist())
    if flip:
        affine[:3, 3] += affine[:3, 1] * (shape[1] - 1)
        affine[:3, 1] *= -1
    scan = Grid(shape, affine)
    found = label_on_scan(probabilities_of(values), canvas, scan)
    everywhere = np.stack(
        [
            resample(
                Volume(share, canvas.affine), scan, order="cubic", fill=1.0 if number == 0 else 0.0
            ).array
            for number, share in enumerate(values)
        ]
    )
    ranked = np.sort(everywhere, axis=0)
    clear = ranked[-1] - ranked[-2] > 2e-3  # a spline cut into blocks differs by less
    assert clear.mean() > 0.98
    assert len(np.unique(found)) == 7
    np.testing.assert_array_equal(found[clear], everywhere.argmax(axis=0)[clear])


def test_a_thin_sheet_inside_a_certain_organ_is_not_overlooked():
    values = np.zeros((3, 40, 40, 40), np.float32)
    values[1] = 1.0
    values[2, :, :, 20], values[1, :, :, 20] = 0.95, 0.05
    canvas, scan = (
        Grid((40, 40, 40), np.diag([2.0, 2.0, 2.0, 1.0])),
        Grid((80, 80, 80), np.diag([1.0, 1.0, 1.0, 1.0])),
    )
    found = label_on_scan(probabilities_of(values), canvas, scan)
    assert (found[10:70, 10:70, 40] == 2).all() and (found[10:70, 10:70, 44] == 1).all()


def test_a_canvas_beside_the_scan_labels_nothing():
    canvas, scan = Grid((10, 10, 10), np.diag([2.0, 2.0, 2.0, 1.0])), Grid((12, 12, 12), np.eye(4))
    scan.affine[:3, 3] = 500.0
    assert not label_on_scan(probabilities_of(probabilities((10, 10, 10), 2, seed=2)), canvas, scan).any()
