"""Topology, centre lines and trees: every number of the specification, agreement with other programs, laws,
and old defects.
"""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import (
    LEFT,
    RIGHT,
    STEM,
    THICK_Y,
    ball,
    betti_numbers,
    box,
    cldice,
    compare,
    component_errors,
    found_in,
    grown_tree,
    known,
    parse_tree,
    td_by_generation,
    thin_y,
    torus,
    tree_metrics,
    tube,
    tunnelled,
)

from ctseg.geometry.boxes import tight_box
from ctseg.scans.formats import volume_files
from ctseg.scoring.shape import topology, tubular
from ctseg.scoring.shape.skeleton import skeletonise
from ctseg.scoring.shape.topology import components, largest_component

UNIT, PLANAR = (1.0, 1.0, 1.0), (1.0, 1.0, 5.0)
GROWN = grown_tree()  # a stem, two arms, four twigs
SPACINGS = pytest.mark.parametrize("spacing", [UNIT, PLANAR], ids=["unit", "planar"])


def at(shape: tuple[int, int, int], *places: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(np.array(places).T)] = True
    return mask


# ---- Betti numbers ----------------------------------------------------------------------------------------

BETTI = {  # shape -> b0, b1, b2, Euler number
    "cube": (box((5, 15), (5, 15), (5, 15)), (1, 0, 0, 1)),
    "ball": (ball(10), (1, 0, 0, 1)),
    "two balls": (ball(4, (-8, 0, 0)) | ball(4, (8, 0, 0)), (2, 0, 0, 2)),
    "solid torus": (torus(), (1, 1, 0, 0)),
    "hollow torus shell": (torus(inner=2.0), (1, 2, 1, 0)),
    "hollow sphere": (ball(10) & ~ball(6), (1, 0, 1, 2)),
    "box with one tunnel": (tunnelled(2), (1, 1, 0, 0)),
    "box with three crossing tunnels": (tunnelled(0, 1, 2), (1, 5, 0, -4)),
    "flat ring": (box((5, 6), (4, 12), (4, 12)) & ~box((5, 6), (6, 10), (6, 10)), (1, 1, 0, 0)),
    "two corner-touching voxels": (at((4, 4, 4), (1, 1, 1), (2, 2, 2)), (1, 0, 0, 1)),
    "two edge-touching voxels": (at((4, 4, 4), (1, 1, 1), (1, 2, 2)), (1, 0, 0, 1)),
    "one voxel": (at((4, 4, 4), (1, 1, 1)), (1, 0, 0, 1)),
    "empty": (np.zeros((4, 4, 4), bool), (0, 0, 0, 0)),
    "full volume": (np.ones((4, 5, 6), bool), (1, 0, 0, 1)),
    "cavity at the border": (
        np.pad(np.zeros((2, 2, 2), bool), 1, constant_values=True),
        (1, 0, 1, 2),
    ),  # fails without padding
    "tunnel at the border": (
        np.pad(np.zeros((4, 2, 2), bool), ((0, 0), (1, 1), (1, 1)), constant_values=True),
        (1, 1, 0, 0),
    ),
}


@pytest.mark.parametrize("name", BETTI)
def test_betti_oracles(name: str) -> None:
    mask, expected = BETTI[name]
    found = betti_numbers(mask)
    assert (*found, found.b0 - found.b1 + found.b2) == expected
    assert betti_numbers(np.pad(mask, ((3, 0), (1, 2), (0, 4)))) == found
    assert components(mask)[1] == found.b0


def test_corner_touching_voxels_are_two_pieces_for_six_neighbours() -> None:
    mask = BETTI["two corner-touching voxels"][0]
    assert components(mask, 6)[1] == 2 and largest_component(mask, 6).sum() == 1


random_masks = st.integers(0, 2**32 - 1).map(
    lambda seed: (lambda rng: rng.random(rng.integers(3, 13, 3)) < rng.uniform(0.05, 0.95))(
        np.random.default_rng(seed)
    )
)


@settings(max_examples=80, deadline=None)
@given(random_masks)
def test_betti_numbers_equal_those_of_a_cubical_complex(mask: np.ndarray) -> None:
    gudhi = pytest.importorskip("gudhi", reason="pip install gudhi")
    complex_ = gudhi.CubicalComplex(top_dimensional_cells=np.where(np.pad(mask, 1), 0.0, 1.0))
    complex_.compute_persistence()
    expected = complex_.persistent_betti_numbers(0.0, 0.5)
    found = betti_numbers(mask)
    assert [found.b0, found.b1, found.b2] == [*expected, 0, 0, 0][:3]


@settings(max_examples=60, deadline=None)
@given(random_masks)
def test_euler_number_equals_scikit_image(mask: np.ndarray) -> None:
    measure = pytest.importorskip("skimage.measure", reason="pip install scikit-image")
    b0, b1, b2 = betti_numbers(mask)
    assert b0 - b1 + b2 == measure.euler_number(np.pad(mask, 1), connectivity=3)


@settings(max_examples=40, deadline=None)
@given(random_masks, st.permutations(range(3)), st.sampled_from([(0,), (1, 2), (0, 1, 2)]))
def test_betti_numbers_follow_turns_and_memory(
    mask: np.ndarray, order: list[int], flipped: tuple[int, ...]
) -> None:
    before, expected = mask.copy(), betti_numbers(mask)
    turned = np.flip(mask.transpose(order), flipped)
    for same in (turned, np.asfortranarray(turned), turned.astype(np.uint8) * 7, np.pad(turned, 2)):
        assert betti_numbers(same) == expected
    assert (mask == before).all()


# ---- components -------------------------------------------------------------------------------------------


def with_package(monkeypatch: pytest.MonkeyPatch, used: bool) -> None:
    if used:
        pytest.importorskip("cc3d", reason="pip install connected-components-3d")
    else:
        monkeypatch.setattr(topology, "_cc3d", None)


@settings(max_examples=60, deadline=None)
@given(random_masks, st.sampled_from([6, 26]))
def test_components_do_not_depend_on_the_package(mask: np.ndarray, connectivity: int) -> None:
    pytest.importorskip("cc3d", reason="pip install connected-components-3d")
    for same in (
        mask,
        np.asfortranarray(mask),
        mask[::-1, :, ::-1][::-1, :, ::-1],
        mask.astype(np.uint8) * 3,
    ):
        with pytest.MonkeyPatch.context() as patch:
            fast = components(same, connectivity)
            patch.setattr(topology, "_cc3d", None)
            plain = components(same, connectivity)
        assert (
            np.array_equal(fast[0], plain[0])
            and fast[1] == plain[1]
            and fast[0].dtype == plain[0].dtype == np.int32
        )
        assert type(fast[1]) is type(plain[1]) is int


@pytest.mark.parametrize("used", [True, False], ids=["cc3d", "scipy"])
def test_every_number_is_the_same_with_and_without_the_package(
    used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_package(monkeypatch, used)
    cut = GROWN.copy()
    cut[:40, :, 30] = False
    found = compare(
        prediction=cut | box((2, 4), (2, 4), (2, 4), shape=(80, 80, 80)),
        reference=GROWN,
        spacing_mm=UNIT,
        tree=True,
    )
    # of the left side of the tree, two twigs hang on nothing; the small box touches nothing
    assert (
        found["b0_reference"],
        found["b0_prediction"],
        found["b0_error"],
        found["extra_components"],
        found["breaks"],
    ) == (1, 4, 3, 1, 2)
    assert found["b0_located_error"] == 3 and found["td_lcc"] < found["td_full"]


@SPACINGS
def test_betti_errors_per_number_and_located_errors(spacing: tuple[float, float, float]) -> None:
    reference = torus()
    broken = reference.copy()
    broken[:, 14:18, 17:] = False  # the ring is cut: one tunnel less
    far = box((1, 3), (1, 3), (1, 4), shape=(32, 32, 32))
    found = compare(prediction=broken | far, reference=reference, spacing_mm=spacing, tree=False)
    assert (found["b0_error"], found["b1_error"], found["b2_error"], found["betti_error"]) == (1, 1, 0, 2)
    assert (found["extra_components"], found["b0_located_error"]) == (1, 1)
    assert found["extra_components_ml"] == pytest.approx(12 * math.prod(spacing) / 1000)
    assert not set(tubular.TREE_COLUMNS) & set(found)  # a ring is no tree


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_location_aware_error_is_symmetric_and_at_least_the_error_of_the_number(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(3, 13, 3)
    prediction, reference = (rng.random(shape) < rng.uniform(0.02, 0.3) for _ in range(2))
    found = component_errors(prediction=prediction, reference=reference, spacing_mm=UNIT)
    swapped = component_errors(prediction=reference, reference=prediction, spacing_mm=UNIT)
    assert (found.extra, found.lost, found.splits, found.merges) == (
        swapped.lost,
        swapped.extra,
        swapped.merges,
        swapped.splits,
    )
    assert found.b0_error >= abs(components(prediction)[1] - components(reference)[1])
    assert component_errors(prediction=reference, reference=reference, spacing_mm=UNIT).b0_error == 0


# ---- skeleton ---------------------------------------------------------------------------------------------


def lee(mask: np.ndarray) -> np.ndarray:
    """scikit-image's Lee thinning of the padded mask."""
    morphology = pytest.importorskip("skimage.morphology", reason="pip install scikit-image")
    return morphology.skeletonize(np.pad(mask, 1), method="lee")[1:-1, 1:-1, 1:-1].astype(bool)


LONG = {"thick Y": THICK_Y, "grown tree": GROWN, "torus": torus(), "tunnel": tunnelled(0), "tube": LEFT}
LENGTH_TOLERANCE = 0.05  # relative; the two thin from the same six sides but not in the same order of voxels
CLDICE_TOLERANCE = 2 / 80  # the specification's two voxels of the thick Y's 80


@SPACINGS
@pytest.mark.parametrize("name", LONG)
def test_length_agrees_with_lee_thinning(name: str, spacing: tuple[float, float, float]) -> None:
    mask = LONG[name]
    ours, theirs = skeletonise(mask), lee(mask)
    assert betti_numbers(ours) == betti_numbers(theirs) == betti_numbers(mask)
    trees = [parse_tree(reference=mask, spacing_mm=spacing, skeleton=line) for line in (ours, theirs)]
    assert (
        trees[0].length_mm == pytest.approx(trees[1].length_mm, rel=LENGTH_TOLERANCE)
        and trees[0].n_branches == trees[1].n_branches
    )


def test_cldice_agrees_with_lee_thinning() -> None:
    gap = THICK_Y.copy()
    gap[:40, :, 27:30] = False
    # No shift by the tube's own radius: it lays the line onto the border, where a single voxel to the side
    # decides everything.
    for prediction in (
        STEM | LEFT,
        gap,
        RIGHT,
        np.roll(THICK_Y, 1, axis=0),
        np.roll(THICK_Y, (2, 1), axis=(0, 1)),
        np.roll(THICK_Y, 6, axis=1),
    ):
        ours = cldice(prediction=prediction, reference=THICK_Y)
        theirs = topology.cldice(known(prediction, lee(prediction)), known(THICK_Y, lee(THICK_Y)))
        for key in ("precision", "recall", "cldice"):
            assert getattr(ours, key) == pytest.approx(getattr(theirs, key), abs=CLDICE_TOLERANCE)


@pytest.mark.parametrize("shape", [(2, 2, 2), (4, 4, 4), (2, 2, 8)])
def test_lee_thinning_deletes_these_shapes_and_ours_does_not(shape: tuple[int, int, int]) -> None:
    mask = np.ones(shape, bool)
    assert not lee(mask).any() and skeletonise(mask).any()


@pytest.mark.parametrize("shape", [(2, 2, 2), (4, 4, 4), (2, 2, 8), (6, 2, 2), (4, 4, 9)])
@pytest.mark.parametrize("margin", [0, 3])
def test_even_shapes_have_a_skeleton(shape: tuple[int, int, int], margin: int) -> None:
    mask = np.pad(np.ones(shape, bool), margin)
    twice = np.concatenate([mask, np.zeros((1, *mask.shape[1:]), bool), mask])  # every component keeps one
    assert skeletonise(mask).any() and components(skeletonise(twice))[1] == 2
    found = cldice(prediction=mask, reference=mask)
    assert (found.precision, found.recall, found.cldice) == (1, 1, 1)


def test_memory_order_of_a_mask_that_fills_its_box() -> None:
    """It was not thinned at all once: the thinning worked on a copy."""
    mask = np.ones((3, 3, 9), bool)
    line = skeletonise(mask)
    assert line.sum() < 12
    for same in (
        np.asfortranarray(mask),
        mask.astype(np.float32),
        mask[::-1],
        np.ascontiguousarray(mask.T).T,
    ):
        assert (skeletonise(same) == line).all()


# ---- clDice -----------------------------------------------------------------------------------------------


def test_cldice_oracles() -> None:
    line = box((5, 6), (5, 6), (2, 22), shape=(12, 12, 26))
    cut = line.copy()
    cut[:, :, 8:12] = False
    found = cldice(prediction=cut, reference=line)
    assert (found.precision, found.recall, found.cldice) == (1, pytest.approx(0.8), pytest.approx(8 / 9))
    assert cldice(prediction=np.roll(line, 2, axis=1), reference=line).cldice == 0
    arm = thin_y()
    arm[:20] = False
    found = cldice(prediction=arm, reference=thin_y())
    assert (found.precision, found.recall, found.cldice) == (1, pytest.approx(5 / 7), pytest.approx(5 / 6))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_cldice_laws(seed: int) -> None:
    """Identity, swap, one side empty; in its range; a prediction's deletion is never better."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(3, 11, 3)
    prediction, reference = (rng.random(shape) < rng.uniform(0.05, 0.9) for _ in range(2))
    prediction.flat[0] = reference.flat[-1] = True
    nothing = np.zeros(shape, bool)
    found, swapped = (
        cldice(prediction=prediction, reference=reference),
        cldice(prediction=reference, reference=prediction),
    )
    assert found.cldice is not None and 0 <= found.cldice <= 1
    assert (found.precision, found.recall) == (
        swapped.recall,
        swapped.precision,
    ) and found.cldice == pytest.approx(swapped.cldice)
    assert cldice(prediction=reference, reference=reference).cldice == 1
    assert cldice(prediction=nothing, reference=reference).cldice == 0 <= found.cldice
    assert cldice(prediction=nothing, reference=nothing).cldice is None


# ---- trees ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spacing, length", [(UNIT, 14 + 20 * math.sqrt(2)), (PLANAR, 70 + 20 * math.sqrt(26))]
)
def test_thin_y_oracle(spacing: tuple[float, float, float], length: float) -> None:
    tree = parse_tree(reference=thin_y(), spacing_mm=spacing)
    assert length == pytest.approx({UNIT: 42.284271, PLANAR: 171.980}[spacing], abs=1e-3)
    assert (len(tree.skeleton), tree.n_branches, tree.n_pieces) == (
        35,
        3,
        3,
    ) and tree.length_mm == pytest.approx(length)
    neighbours = (np.abs(tree.skeleton[:, None] - tree.skeleton[None]).max(axis=2) <= 1).sum(axis=1)
    assert np.count_nonzero(neighbours > 3) == 1  # one junction; the count holds the voxel itself


def tree_of(spacing: tuple[float, float, float]):
    return parse_tree(reference=THICK_Y, spacing_mm=spacing)


@SPACINGS
def test_thick_y_oracle(spacing: tuple[float, float, float]) -> None:
    tree = tree_of(spacing)
    assert abs(len(tree.skeleton) - 80) <= 2 and tree.n_branches == 3
    analytic = 30 * spacing[2] + 2 * math.hypot(20 * spacing[0], 25 * spacing[2])
    assert analytic == pytest.approx(
        {UNIT: 94.03, PLANAR: 403.18}[spacing], abs=0.01
    ) and tree.length_mm == pytest.approx(analytic, rel=0.06)
    if spacing == UNIT:
        assert tree.length_mm == pytest.approx(95.57, abs=2)


@SPACINGS
def test_perfect_missing_arm_gap_and_leak(spacing: tuple[float, float, float]) -> None:
    tree = tree_of(spacing)

    def found_with(prediction: np.ndarray) -> dict:
        return tree_metrics(prediction=prediction, reference=THICK_Y, tree=tree)

    perfect = found_with(THICK_Y)
    for suffix in ("full", "lcc"):
        assert [
            perfect[f"{key}_{suffix}"] for key in ("td", "td_mm", "bd", "precision", "leakage", "amr")
        ] == [1, 1, 1, 1, 0, 0]
    arm = found_with(STEM | LEFT)
    for suffix in ("full", "lcc"):
        assert arm[f"td_{suffix}"] == pytest.approx(0.7125, abs=0.02) and arm[
            f"bd_{suffix}"
        ] == pytest.approx(2 / 3)
    shorter = math.hypot(20 * spacing[0], 25 * spacing[2]) / tree.length_mm
    assert arm["td_mm_full"] == pytest.approx(1 - shorter, abs=0.05)
    gapped = THICK_Y.copy()
    gapped[:40, :, 27:30] = False
    gap = found_with(gapped)
    assert gap["dice_full"] == pytest.approx(0.982, abs=5e-4) and gap["dice_lcc"] == pytest.approx(
        0.899, abs=5e-4
    )
    assert gap["td_lcc"] == pytest.approx(0.8125, abs=0.02) and (
        gap["bd_full"],
        gap["bd_lcc"],
        gap["breaks"],
    ) == (1, pytest.approx(2 / 3), 1)
    assert gap["td_mm_lcc"] < gap["td_mm_full"] < 1  # the edges into the gap are missing too
    leaked = round(1.446 * THICK_Y.sum())
    distance = np.where(
        THICK_Y,
        np.inf,
        np.linalg.norm(np.indices(THICK_Y.shape) - np.array((40, 60, 60))[:, None, None, None], axis=0),
    )
    leak = THICK_Y.copy()
    leak.flat[np.argsort(distance, axis=None, kind="stable")[:leaked]] = True
    found = found_with(leak)
    assert (found["td_full"], found["bd_full"], found["amr_full"]) == (1, 1, 0)
    assert found["precision_full"] == pytest.approx(0.409, abs=5e-4) and found[
        "leakage_full"
    ] == pytest.approx(1.446, abs=5e-4)


@SPACINGS
def test_tree_columns_of_an_empty_prediction(spacing: tuple[float, float, float]) -> None:
    nothing = np.zeros_like(THICK_Y)
    found = tree_metrics(prediction=nothing, reference=THICK_Y, tree=tree_of(spacing))
    for suffix in ("full", "lcc"):
        assert [found[f"{key}_{suffix}"] for key in ("td", "td_mm", "bd", "precision", "leakage", "amr")] == [
            0,
            0,
            0,
            None,
            0,
            1,
        ]
    assert found["breaks"] is None and td_by_generation(prediction=nothing, tree=tree_of(spacing)) == [0, 0]


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_lengths_scale_with_the_spacing_and_shares_do_not(factor: float) -> None:
    cut = GROWN.copy()
    cut[:40, 40:] = False
    one, other = (
        compare(prediction=cut, reference=GROWN, spacing_mm=(f * 1.0, f * 0.8, f * 1.2), tree=True)
        for f in (1.0, factor)
    )
    assert other["tree_length_mm"] == pytest.approx(factor * one["tree_length_mm"])
    for key in (
        "td_full",
        "td_mm_full",
        "td_lcc",
        "bd_full",
        "bd_lcc",
        "breaks",
        "cldice",
        "td_by_generation_full",
    ):
        assert other[key] == pytest.approx(one[key])


def test_td_per_generation_of_a_tree_with_three() -> None:
    """Without one of the two arms, generation 1 and 2 lose about a half, the trachea nothing."""
    half = GROWN.copy()
    half[:38, :, :52] = False
    tree = parse_tree(reference=GROWN, spacing_mm=UNIT)
    shares = td_by_generation(prediction=half, tree=tree)
    assert len(shares) == 3 and shares[0] > 0.9 and all(0.35 < share < 0.65 for share in shares[1:])
    generation = tree.generation[tree.branch_of]
    hit = half[tuple(tree.skeleton.T)]
    assert shares == [pytest.approx(hit[generation == g].mean()) for g in range(3)]
    whole = tree_metrics(prediction=half, reference=GROWN, tree=tree)["td_full"]
    assert whole == pytest.approx(np.average(shares, weights=np.bincount(generation)))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_more_correct_voxels_never_lower_what_was_found_and_false_ones_never_raise_precision(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    prediction = THICK_Y & (rng.random(THICK_Y.shape) < rng.uniform(0.3, 1))
    prediction[40, 40, 40] = True
    more = prediction | (THICK_Y & (rng.random(THICK_Y.shape) < 0.5))
    worse = prediction | (rng.random(THICK_Y.shape) < 0.01)
    one, other, noisy = found_in(prediction), found_in(more), found_in(worse & ~THICK_Y | prediction)
    for key in ("td_full", "td_mm_full", "bd_full"):
        assert other[key] >= one[key]
    assert (
        other["amr_full"] <= one["amr_full"]
        and noisy["precision_full"] <= one["precision_full"]
        and noisy["leakage_full"] >= one["leakage_full"]
    )


# ---- defects seen elsewhere -------------------------------------------------------------------------------


def test_no_rounding_no_smoothing_and_no_division_by_zero() -> None:
    """The ATM'22 evaluation rounds to two decimals, adds 1e-5 and divides 0 by 0 for a branch without a
    centre line.
    """
    prediction = THICK_Y.copy()
    prediction[np.nonzero(THICK_Y)[0][0], np.nonzero(THICK_Y)[1][0], np.nonzero(THICK_Y)[2][0]] = False
    size = int(THICK_Y.sum())
    assert found_in(prediction)["amr_full"] == 1 / size and found_in(THICK_Y)["precision_full"] == 1.0
    outside = np.zeros_like(THICK_Y)
    outside[0, 0, 0] = True
    assert (found_in(outside)["precision_full"], found_in(outside)["leakage_full"]) == (0.0, 1 / size)
    tree = parse_tree(reference=GROWN, spacing_mm=UNIT)
    assert (np.bincount(tree.branch_of, minlength=tree.n_branches) > 0).all()


def test_tunnels_are_not_pieces_of_the_centre_line() -> None:
    """A published tool counts the components of the skeleton and calls them b1."""
    two_rods = box((3, 5), (3, 5), (2, 20)) | box((10, 12), (3, 5), (2, 20))
    assert components(skeletonise(two_rods))[1] == 2 and betti_numbers(two_rods).b1 == 0
    assert components(skeletonise(torus()))[1] == 1 == betti_numbers(torus()).b1


def test_lengths_are_in_millimetres() -> None:
    along, across = (
        parse_tree(reference=box(*sides), spacing_mm=PLANAR)
        for sides in (((5, 6), (5, 6), (2, 22)), ((2, 22), (5, 6), (5, 6)))
    )
    assert (along.length_mm, across.length_mm) == (pytest.approx(95), pytest.approx(19)) and len(
        along.skeleton
    ) == len(across.skeleton) == 20


# ---- real predictions -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.real
def test_real_airway_agrees_with_lee_thinning() -> None:
    """One challenge team's tree: length, branches and clDice against another team's, with both skeletons."""
    if "CTSEG_DATA" not in os.environ:
        pytest.skip("CTSEG_DATA is not set")
    files = sorted(Path(os.environ["CTSEG_DATA"]).glob("atm22/*/preds_*/ATM_305_0000.nii.gz"))
    if len(files) < 2:
        pytest.skip("no atm22 predictions in CTSEG_DATA")
    volumes = [volume_files.read_integers(path)[0] for path in files[:2]]
    reference, prediction = (volume.array > 0 for volume in volumes)
    place = tight_box(reference | prediction)
    # half of it, for time: trachea and upper lobes
    place = (slice(place[0].start + (place[0].stop - place[0].start) // 2, place[0].stop), *place[1:])
    reference, prediction = np.ascontiguousarray(reference[place]), np.ascontiguousarray(prediction[place])
    lines = [skeletonise(reference), skeletonise(prediction)], [lee(reference), lee(prediction)]
    ours, theirs = (
        parse_tree(reference=reference, spacing_mm=volumes[0].spacing_mm, skeleton=line[0]) for line in lines
    )
    assert ours.length_mm == pytest.approx(theirs.length_mm, rel=0.02) and ours.n_branches == pytest.approx(
        theirs.n_branches, rel=0.05
    )
    scores = [topology.cldice(known(prediction, line[1]), known(reference, line[0])).cldice for line in lines]
    assert scores[0] == pytest.approx(scores[1], abs=CLDICE_TOLERANCE) and 0.8 < scores[0] < 1
    assert betti_numbers(lines[0][0]) == betti_numbers(lines[1][0]) == betti_numbers(reference)


def test_turned_masks_give_the_same_components() -> None:
    mask = tube((20, 20, 60), (40, 40, 20), 2) | tube((60, 60, 60), (60, 20, 60), 2)
    for order in itertools.permutations(range(3)):
        assert component_errors(
            prediction=mask.transpose(order), reference=STEM.transpose(order), spacing_mm=UNIT
        ) == component_errors(prediction=mask, reference=STEM, spacing_mm=UNIT)
