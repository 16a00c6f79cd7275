"""Canvases, tensors and the way back: what goes through a grid must come out where it was."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
from shapes import probabilities_of

from ctseg.geometry import grids, intensity
from ctseg.geometry.argmax_on_scan import label_on_scan
from ctseg.geometry.volume import AIR_HU, Grid, Volume, resample
from ctseg.scans.formats import volume_files

# Ellipsoids in LPS mm: centre (x, y, z) and half axes. "left" lies on the patient's left (greater x).
BODY = ((0.0, 0.0, 0.0), (62.0, 48.0, 90.0))
ORGANS = {
    "left": ((30.0, 5.0, 20.0), (17.0, 15.0, 24.0)),
    "right": ((-32.0, 5.0, 10.0), (15.0, 17.0, 21.0)),
    "front": ((0.0, -24.0, -35.0), (20.0, 13.0, 16.0)),
}


def rotation(x_degrees: float, z_degrees: float) -> np.ndarray:
    a, b = np.radians(x_degrees), np.radians(z_degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    return about_x @ np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])


def make_grid(shape: tuple[int, int, int], spacing: tuple[float, float, float], columns: np.ndarray) -> Grid:
    """A grid centred on the patient's origin; columns: unit vectors of the axes D, H, W in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = columns * np.array(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


AXIAL = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])  # columns: D superior, H posterior, W left
GRIDS = {
    "canonical": make_grid((75, 62, 81), (3, 2, 2), AXIAL),
    "ras_file": make_grid((75, 62, 81), (3, 2, 2), AXIAL * np.array([1, -1, -1])),
    "left_handed": make_grid((75, 62, 81), (3, 2, 2), AXIAL * np.array([1, 1, -1])),
    "sagittal": make_grid((55, 80, 61), (3, 2.5, 2), AXIAL[:, [2, 0, 1]] * np.array([1, -1, 1])),
    "oblique": make_grid((75, 70, 91), (3, 2, 2), rotation(20, 12) @ AXIAL),
    "oblique_flipped": make_grid((75, 70, 91), (3, 2, 2), rotation(-15, 8) @ AXIAL * np.array([-1, 1, -1])),
    "thick_slices": make_grid((41, 63, 83), (5, 1.9, 1.9), AXIAL),
    "odd_sizes": make_grid((67, 53, 71), (3.1, 2.3, 2.3), AXIAL),
}


def positions(grid: Grid) -> np.ndarray:
    """(D, H, W, 3) LPS mm of every voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def inside(points: np.ndarray, ellipsoid: tuple[tuple[float, ...], tuple[float, ...]]) -> np.ndarray:
    return (((points - ellipsoid[0]) / np.array(ellipsoid[1])) ** 2).sum(axis=-1) <= 1


def draw(grid: Grid) -> tuple[Volume, Volume]:
    """Image in HU and label map of the synthetic patient on a grid."""
    points = positions(grid)
    image = np.where(inside(points, BODY), 40.0, -1000.0)
    label = np.zeros(grid.shape, np.uint8)
    for number, organ in enumerate(ORGANS.values(), start=1):
        label[inside(points, organ)] = number
    image += 20.0 * label + np.random.default_rng(0).normal(0, 5, grid.shape)
    return Volume(image.astype(np.float32), grid.affine), Volume(label, grid.affine)


@functools.cache
def drawn(name: str) -> tuple[Volume, Volume]:
    return draw(GRIDS[name])


def centroid_mm(label: Volume, number: int) -> np.ndarray:
    """LPS mm of the centroid of one structure."""
    return (label.affine @ [*np.argwhere(label.array == number).mean(axis=0), 1.0])[:3]


def canvases(image: Volume, label: Volume) -> dict[str, Grid]:
    box = grids.extent_with(grids.kept_extent(image, "body", 10.0), label)
    own = grids.canonical_grid(image.grid).spacing_mm
    finer = (own[0] * 0.8, own[1] * 0.9, own[2] * 0.9)
    return {
        "whole": grids.whole_grid(image.grid, box),
        "own": grids.window_grid(image.grid, box, own),
        "finer": grids.window_grid(image.grid, box, finer),
    }


def through_tensors(label: Volume, canvas: Grid) -> np.ndarray:
    """Cut into 128^3 tensors, put together again, back to the scan as one-hot probabilities."""
    on_canvas = grids.label_on_canvas(label, canvas).array
    again = np.full(canvas.shape, 255, np.uint8)
    for origin in grids.tensor_origins(canvas.shape):
        part = tuple(slice(first, first + 128) for first in origin)
        assert on_canvas[part].shape == (128, 128, 128)
        again[part] = on_canvas[part]
    one_hot = np.stack([again == number for number in range(len(ORGANS) + 1)]).astype(np.float32)
    return label_on_scan(probabilities_of(one_hot), canvas, label.grid)


def dice(prediction: np.ndarray, reference: np.ndarray, number: int) -> float:
    a, b = prediction == number, reference == number
    return 2 * int((a & b).sum()) / int(a.sum() + b.sum())


@pytest.mark.parametrize("name", GRIDS)
def test_round_trip_of_labels(name: str) -> None:
    image, label = drawn(name)
    for kind, canvas in canvases(image, label).items():
        back = through_tensors(label, canvas)
        assert back.shape == label.array.shape and back.dtype == np.uint8
        scores = [dice(back, label.array, number) for number in (1, 2, 3)]
        assert min(scores) >= (1.0 if kind == "own" else 0.98), (kind, scores)


@pytest.mark.parametrize("name", GRIDS)
def test_aligned_canvas_changes_no_voxel_value(name: str) -> None:
    image, label = drawn(name)
    canvas = canvases(image, label)["own"]
    on_canvas = grids.image_on_canvas(image, canvas)
    placement = grids.find_placement(canvas, image.grid)
    assert placement is not None
    back = grids.place(on_canvas, image.grid, placement, AIR_HU).array
    body = label.array > 0
    np.testing.assert_array_equal(back[body], image.array[body])
    # One percent off still counts as the same spacing, two percent do not.
    own = grids.canonical_grid(image.grid).spacing_mm
    box = grids.kept_extent(image, "body", 10.0)
    near, far = (
        grids.window_grid(image.grid, box, (own[0] * f, own[1] * f, own[2] * f)) for f in (1.009, 1.02)
    )
    assert grids.find_placement(image.grid, near) is not None
    assert grids.find_placement(image.grid, far) is None


@pytest.mark.parametrize("name", GRIDS)
def test_canvas_holds_the_body_and_keeps_anatomical_directions(name: str) -> None:
    image, label = drawn(name)
    for kind, canvas in canvases(image, label).items():
        assert all(size >= 128 for size in canvas.shape)
        assert set(grids.lost_fractions(label, canvas).values()) == {0.0}
        superior, posterior, left = (canvas.affine[:3, :3] / canvas.spacing_mm).T
        assert superior[2] > 0.8 and posterior[1] > 0.8 and left[0] > 0.8, kind
        placed = grids.label_on_canvas(label, canvas)
        for number, (centre, _) in enumerate(ORGANS.values(), start=1):
            np.testing.assert_allclose(centroid_mm(placed, number), centre, atol=1.0)


def test_whole_is_the_finest_isotropic_spacing() -> None:
    scan = make_grid((10, 12, 14), (3, 2, 1), AXIAL)
    canvas = grids.whole_grid(scan, grids.Extent((-10, 0, 5), (54, 32, 37)))
    assert canvas.shape == (128, 128, 128)
    np.testing.assert_allclose(canvas.spacing_mm, 0.5)  # 64 mm over 128 voxels
    centre = canvas.affine @ np.array([63.5, 63.5, 63.5, 1])
    np.testing.assert_allclose(centre[:3], [21, 16, 22])  # W 5..37, H 0..32, D -10..54


def test_windows_grow_into_the_scan_before_they_grow_into_air() -> None:
    scan = make_grid((200, 140, 100), (2, 2, 2), AXIAL)
    low = scan.affine[:3, 3][::-1] - 1  # lower edges along D, H, W
    box = grids.Extent((low[0] + 300, low[1] + 40, low[2] + 40), (low[0] + 380, low[1] + 80, low[2] + 80))
    canvas = grids.window_grid(scan, box, (2, 2, 2))
    assert canvas.shape == (128, 128, 128)
    placement = grids.find_placement(canvas, scan)
    assert placement is not None
    assert placement.start[0] == 200 - 128  # pushed back from the upper end
    assert placement.start[1] == 0  # and from the lower end
    assert -28 <= placement.start[2] <= 0  # a shorter axis lies inside the canvas as a whole


def test_tensor_origins_by_hand_and_as_a_law() -> None:
    assert grids.tensor_origins((128, 128, 128)) == [(0, 0, 0)]
    assert grids.tensor_origins((200, 128, 129)) == [(0, 0, 0), (0, 0, 1), (72, 0, 0), (72, 0, 1)]
    assert grids.tensor_origins((256, 384, 128)) == [(d, h, 0) for d in (0, 128) for h in (0, 128, 256)]
    for size in range(128, 700, 7):
        starts = [origin[0] for origin in grids.tensor_origins((size, 128, 128))]
        assert starts[0] == 0 and starts[-1] == size - 128 and len(starts) == -(-size // 128)
        assert all(0 < b - a <= 128 for a, b in itertools.pairwise(starts))


def test_body_box_leaves_the_table_and_keeps_both_legs() -> None:
    grid = make_grid((40, 80, 110), (5, 3, 3), AXIAL)
    points = positions(grid)
    image = np.full(grid.shape, -1000.0, np.float32)
    image[inside(points, ((70, -20, 0), (45, 45, 200)))] = 30
    image[inside(points, ((-70, -20, 0), (35, 35, 200)))] = 30
    image[(points[..., 1] > 60) & (points[..., 1] < 75)] = 50  # the table, 15 mm thick, over the whole width
    box = grids.kept_extent(Volume(image, grid.affine), "body", 0.0)
    np.testing.assert_allclose(box.low_mm[1:], [-65, -105], atol=9)
    np.testing.assert_allclose(box.high_mm[1:], [25, 115], atol=9)
    wider = grids.kept_extent(Volume(image, grid.affine), "body", 10.0)
    np.testing.assert_allclose(np.subtract(wider.high_mm[1:], box.high_mm[1:]), 10.0)
    assert wider.high_mm[0] == pytest.approx(100.0)  # never beyond the scan


def test_scan_without_body_gives_the_whole_scan() -> None:
    grid = make_grid((10, 12, 14), (3, 2, 1), AXIAL)
    box = grids.kept_extent(Volume(np.full(grid.shape, -1000.0, np.float32), grid.affine), "body", 5.0)
    np.testing.assert_allclose(box.size_mm, (30, 24, 14))


def test_box_grows_to_hold_labels_outside_the_body() -> None:
    image, label = drawn("ras_file")
    label.array[2:4, 3:5, 78:80] = 2
    box = grids.kept_extent(image, "body", 0.0)
    canvas = grids.whole_grid(image.grid, grids.extent_with(box, label))
    assert grids.lost_fractions(label, canvas)[2] == 0.0
    assert (
        grids.lost_fractions(
            label,
            grids.whole_grid(
                image.grid, dataclasses.replace(box, low_mm=(-20, -20, -20), high_mm=(20, 20, 20))
            ),
        )[2]
        > 0.1
    )


def test_lost_fraction_by_hand() -> None:
    grid = make_grid((10, 12, 14), (3, 2, 1), AXIAL)
    label = np.zeros(grid.shape, np.uint8)
    label[2:8, 1:11, 2:12] = 1
    label[8:, 0, 0] = 2
    lost = grids.lost_fractions(Volume(label, grid.affine), grid.crop((0, 0, 8), (10, 12, 6)))
    assert lost == {1: pytest.approx(0.6), 2: 1.0}
    assert grids.count_voxels(label) == {1: 600, 2: 2}


@pytest.mark.parametrize("name", ["oblique_flipped", "thick_slices"])
def test_back_to_the_scan_equals_interpolating_everything(name: str) -> None:
    """The region-wise winner is the argmax of all probabilities interpolated over the whole scan."""
    scan = GRIDS[name]
    generator = np.random.default_rng(3)
    canvas = make_grid((30, 26, 28), (6, 5, 5), rotation(5, 3) @ AXIAL)
    logits = generator.normal(0, 2, (5, *canvas.shape))
    logits[0] += 2
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=0)).astype(np.float32)
    everything = [
        resample(Volume(p, canvas.affine), scan, order="cubic", fill=float(k == 0)).array
        for k, p in enumerate(probabilities)
    ]
    result = label_on_scan(probabilities_of(probabilities), canvas, scan)
    assert len(np.unique(result)) == 5
    assert (
        result == np.argmax(everything, axis=0)
    ).mean() > 0.9995  # at the edge of a region the spline sees its end


def test_a_vessel_thinner_than_two_voxels_keeps_its_volume() -> None:
    """To a grid of the same spacing, half a voxel off, and back: linear interpolation loses most of it."""
    scan = make_grid((24, 40, 44), (1.1, 1.1, 1.1), AXIAL)
    d, h, w = np.indices(scan.shape)
    distance = np.hypot(h - 20 - 0.4 * (d - 12), w - 22 - 6 * np.sin(d / 5.0))
    label = Volume((distance < 1.0).astype(np.uint8), scan.affine)
    canvas = make_grid((24, 40, 44), (1.16, 1.16, 1.16), AXIAL)
    canvas.affine[:3, 3] = scan.affine[:3, 3] + 0.55
    on_canvas = grids.label_on_canvas(label, canvas)
    probabilities = np.stack([on_canvas.array == 0, on_canvas.array == 1]).astype(np.float32)
    back = label_on_scan(probabilities_of(probabilities), canvas, scan)
    inside = label.array[2:-2] > 0  # the ends of the tube lie on the border of both grids
    found = back[2:-2] > 0
    volume, dice = found.sum() / inside.sum(), 2 * (found & inside).sum() / (found.sum() + inside.sum())
    assert 0.85 < volume < 1.1 and dice > 0.85


def test_empty_stays_empty_and_outside_is_background() -> None:
    image, label = drawn("oblique")
    empty = Volume(np.zeros_like(label.array), label.affine)
    for canvas in canvases(image, label).values():
        assert not grids.label_on_canvas(empty, canvas).array.any()
        assert not through_tensors(empty, canvas).any()
    small = make_grid((20, 20, 20), (2, 2, 2), rotation(4, 0) @ AXIAL)
    full = np.stack([np.zeros(small.shape), np.ones(small.shape)]).astype(np.float32)
    back = label_on_scan(probabilities_of(full), small, label.grid)
    volume_ml = back.sum() * np.prod(label.spacing_mm) / 1000
    assert volume_ml == pytest.approx(64.0, rel=0.1)  # 40 x 40 x 40 mm
    far = Grid(small.shape, small.affine + np.array([[0, 0, 0, 9000.0]] + [[0] * 4] * 3))
    assert not label_on_scan(probabilities_of(full), far, label.grid).any()
    assert (grids.image_on_canvas(image, far).array == AIR_HU).all()


def test_thin_structure_survives_a_coarse_canvas() -> None:
    """A tube 6 mm wide on voxels of 4 mm: never broken, and on average as large as it is."""
    grid = make_grid((60, 90, 90), (2, 1, 1), AXIAL)
    points = positions(grid)
    canvas = grids.window_grid(grid, grids.Extent((-60, -45, -45), (60, 45, 45)), (4, 4, 4))
    ratios = []
    for x, y in ((0, 0), (1.3, 0.4), (2, 2), (0.7, 1.9), (3.1, 2.6), (2, 0.2)):
        tube = (((points[..., 0] - x) ** 2 + (points[..., 1] - y) ** 2) <= 3.0**2).astype(np.uint8)
        on_canvas = grids.label_on_canvas(Volume(tube, grid.affine), canvas).array
        assert on_canvas.any(axis=(1, 2)).sum() >= 29
        ratios.append(on_canvas.sum() * 64 / (tube.sum() * 2))
    assert 0.75 < np.mean(ratios) < 1.25


def test_sheared_scan_gets_an_upright_canvas() -> None:
    """A tilted gantry: slices step 15 degrees off their normal. Organs keep their place and shape in mm."""
    grid = GRIDS["canonical"]
    affine = grid.affine.copy()
    affine[1, 0] = np.tan(np.radians(15)) * 3
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2)
    image, label = draw(Grid(grid.shape, affine))
    for canvas in (canvases(image, label)[kind] for kind in ("whole", "own")):
        directions = canvas.affine[:3, :3] / canvas.spacing_mm
        np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
        on_canvas = grids.label_on_canvas(label, canvas)
        for number, (centre, _) in enumerate(ORGANS.values(), start=1):
            np.testing.assert_allclose(centroid_mm(on_canvas, number), centre, atol=1.0)
        assert min(dice(through_tensors(label, canvas), label.array, number) for number in (1, 2, 3)) >= 0.95


def test_downsampling_does_not_alias() -> None:
    """A checkerboard of +-500 HU becomes its mean, not one of its values."""
    grid = make_grid((64, 96, 128), (1, 1, 1), AXIAL)
    checker = np.where(np.indices(grid.shape).sum(axis=0) % 2, 500.0, -500.0).astype(np.float32)
    canvas = make_grid((10, 15, 20), (4.7, 4.7, 4.7), AXIAL)
    values = grids.image_on_canvas(Volume(checker, grid.affine), canvas).array
    assert np.abs(values).max() < 60
    ramp = np.broadcast_to(
        np.arange(128, dtype=np.float32), grid.shape
    ).copy()  # averaging must not shift anything
    values = grids.image_on_canvas(Volume(ramp, grid.affine), canvas).array
    expected = positions(canvas)[..., 0] - grid.affine[0, 3]
    np.testing.assert_allclose(values, expected, atol=0.05)


def test_window_scales_and_clips() -> None:
    scaled = intensity.window(np.array([-32768, -1024, -250, 250, 750, 31000.0]), (-250.0, 750.0))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [0, 0, 0, 0.5, 1, 1])


@pytest.mark.real
def test_real_organs_come_back_through_both_grids(real_data: Path) -> None:
    """TotalSegmentator's example CT (3 mm): liver, spleen, kidneys, bladder, prostate, sacrum, hips."""

    folder = real_data / "totalseg/tests/reference_files"
    image, _ = volume_files.read_image(folder / "example_ct.nii.gz")
    stored, _ = volume_files.read_integers(folder / "example_seg_fast_force_split.nii.gz")
    ids = {
        "spleen": 1,
        "kidney_right": 2,
        "kidney_left": 3,
        "liver": 5,
        "urinary_bladder": 21,
        "prostate": 22,
        "sacrum": 25,
        "hip_left": 77,
        "hip_right": 78,
    }
    label = Volume(np.zeros(stored.array.shape, np.uint8), stored.affine)
    for number, value in enumerate(ids.values(), start=1):
        label.array[stored.array == value] = number
    box = grids.extent_with(grids.kept_extent(image, "body", 10.0), label)
    for canvas, least in (
        (grids.whole_grid(image.grid, box), 0.97),
        (grids.window_grid(image.grid, box, (3, 3, 3)), 1.0),
        (grids.window_grid(image.grid, box, (2.5, 2.5, 2.5)), 0.97),
    ):
        on_canvas = grids.label_on_canvas(label, canvas).array
        one_hot = np.stack([on_canvas == number for number in range(len(ids) + 1)]).astype(np.float32)
        back = label_on_scan(probabilities_of(one_hot), canvas, image.grid)
        scores = {name: dice(back, label.array, number) for number, name in enumerate(ids, start=1)}
        assert min(scores.values()) >= least, scores


@pytest.mark.parametrize(
    "tilt", [0.0, 1e-5]
)  # parallel axes are interpolated one by one, others voxel by voxel
def test_cubic_interpolation_is_exact_for_what_is_cubic(tilt: float) -> None:
    """A smooth function of the place, on a grid with other axes, spacing and direction; air beyond the outer
    faces of the voxels.
    """
    source = make_grid((30, 34, 38), (3, 2, 1), AXIAL)

    def wave(grid: Grid) -> np.ndarray:
        place = (
            np.einsum("ij,jdhw->idhw", grid.affine[:3, :3], np.indices(grid.shape))
            + grid.affine[:3, 3, None, None, None]
        )
        x, y, z = place / 20
        return (np.sin(x) * np.cos(y) + 0.5 * np.sin(z + x)).astype(np.float32)

    affine = np.eye(4)
    # D along y, H along z, W against x
    affine[:3, :3] = np.array([[0, 0, -2.1], [1.3, 0, 0], [0, 0.9, tilt]])
    affine[:3, 3] = (
        source.affine[:3, :3] @ [15, 17, 19] + source.affine[:3, 3] - affine[:3, :3] @ [14, 30, 12]
    )
    target = Grid((28, 60, 24), affine)
    found = resample(Volume(wave(source), source.affine), target, order="cubic", fill=9.0).array
    index = np.einsum(
        "ij,jdhw->idhw", np.linalg.inv(source.affine)[:3, :3] @ affine[:3, :3], np.indices(target.shape)
    )
    index += (np.linalg.inv(source.affine) @ affine)[:3, 3, None, None, None]
    size = np.array(source.shape)[:, None, None, None]
    outside, inner = (
        ((index < -0.5) | (index > size - 0.5)).any(axis=0),
        ((index > 4) & (index < size - 5)).all(axis=0),
    )
    assert inner.sum() > 1000 and outside.sum() > 1000
    assert np.array_equal(found == 9.0, outside)
    assert np.abs(found - wave(target))[inner].max() < 2e-3
