"""Betti numbers, centre lines, components and tree metrics against known shapes, brute force and laws; their
files.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from shapes import (
    CASES,
    LEFT,
    SHAPE,
    SPACING,
    STEM,
    THICK_TREE,
    THICK_Y,
    UNIT,
    ball,
    betti_numbers,
    box,
    cldice,
    compare,
    component_errors,
    found_in,
    grown_tree,
    label_map,
    parse_tree,
    td_by_generation,
    thin_y,
    torus,
    tree_metrics,
    tube,
    tunnelled,
)

import evaluate
from ctseg import artifacts, config
from ctseg.errors import UsageError
from ctseg.evaluation import result_files
from ctseg.evaluation.scored import topology_rows
from ctseg.geometry.volume import Volume
from ctseg.scans.formats import nifti, volume_files
from ctseg.scoring.metrics import Structure
from ctseg.scoring.shape import airway_tree, skeleton, tubular
from ctseg.scoring.shape.airway_tree import UNREACHED
from ctseg.scoring.shape.skeleton import skeletonise
from ctseg.scoring.shape.topology import Betti, components, largest_component


def voxels(*places: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(np.array(places).T)] = True
    return mask


# ---- Betti numbers ----------------------------------------------------------------------------------------

KNOWN = {
    "cube": (box((5, 12), (6, 14), (7, 16)), (1, 0, 0)),
    "ball": (ball(10), (1, 0, 0)),
    "two balls": (ball(4, (-8, 0, 0)) | ball(4, (8, 0, 0)), (2, 0, 0)),
    "solid torus": (torus(), (1, 1, 0)),
    "hollow torus": (torus(inner=2.0), (1, 2, 1)),
    "hollow sphere": (ball(10) & ~ball(6), (1, 0, 1)),
    "one tunnel": (tunnelled(0), (1, 1, 0)),
    "three crossing tunnels": (tunnelled(0, 1, 2), (1, 5, 0)),
    "flat ring": (box((5, 6), (4, 12), (4, 12)) & ~box((5, 6), (7, 9), (7, 9)), (1, 1, 0)),
    "corner-touching voxels": (voxels((2, 2, 2), (3, 3, 3)), (1, 0, 0)),
    "edge-touching voxels": (voxels((2, 2, 2), (2, 3, 3)), (1, 0, 0)),
    "six voxels around a cavity": (
        voxels((4, 5, 5), (6, 5, 5), (5, 4, 5), (5, 6, 5), (5, 5, 4), (5, 5, 6)),
        (1, 0, 1),
    ),  # closed by edges only
    "edge-touching and one more": (voxels((2, 2, 2), (2, 3, 3), (2, 4, 4)), (1, 0, 0)),
    "nothing": (np.zeros(SHAPE, bool), (0, 0, 0)),
    "everything": (np.ones(SHAPE, bool), (1, 0, 0)),
    "two rings": (
        box((2, 3), (2, 7), (2, 7)) & ~box((2, 3), (3, 6), (3, 6))
        | box((8, 9), (2, 7), (2, 7)) & ~box((8, 9), (3, 6), (3, 6)),
        (2, 2, 0),
    ),
    "double torus": (
        box((5, 8), (3, 10), (3, 18)) & ~box((5, 8), (5, 8), (5, 8)) & ~box((5, 8), (5, 8), (12, 16)),
        (1, 2, 0),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_betti_numbers_of_known_shapes(name: str) -> None:
    mask, expected = KNOWN[name]
    assert betti_numbers(mask) == Betti(*expected)
    for order in itertools.permutations(range(3)):
        assert betti_numbers(np.flip(mask.transpose(order), 1).astype(np.uint8)) == Betti(*expected)


def test_six_neighbours_do_not_join_corners() -> None:
    mask = voxels((2, 2, 2), (3, 3, 3))
    assert components(mask, 6)[1] == 2 and components(mask, 26)[1] == 1


def test_a_cut_ring_has_no_tunnel() -> None:
    ring = torus()
    cut = ring.copy()
    cut[:, 16, 17:] = False
    assert (betti_numbers(ring).b1, betti_numbers(cut).b1) == (1, 0) and betti_numbers(cut).b0 == 1


def brute_force_euler(mask: np.ndarray) -> int:
    """Counts the cells of all closed cubes one by one, as points of a grid of half voxels."""
    cells = {
        tuple(2 * np.array(place) + shift)
        for place in np.argwhere(mask)
        for shift in itertools.product((-1, 0, 1), repeat=3)
    }
    return sum((-1) ** sum(coordinate % 2 == 0 for coordinate in cell) for cell in cells)


small_masks = st.integers(0, 2**32 - 1).map(
    lambda seed: (lambda rng: rng.random(rng.integers(1, 7, 3)) < rng.uniform(0.1, 0.9))(
        np.random.default_rng(seed)
    )
)


@settings(max_examples=60, deadline=None)
@given(small_masks)
def test_euler_number_equals_counting_every_cell(mask: np.ndarray) -> None:
    betti = betti_numbers(mask)
    assert betti.b0 - betti.b1 + betti.b2 == brute_force_euler(mask)
    assert min(betti.b0, betti.b1, betti.b2) >= 0


# ---- components -------------------------------------------------------------------------------------------


def errors(prediction: np.ndarray, reference: np.ndarray) -> tuple[int, int, int, int]:
    found = component_errors(prediction=prediction, reference=reference, spacing_mm=SPACING)
    assert found.b0_error == found.extra + found.lost + found.splits + found.merges
    return found.extra, found.lost, found.splits, found.merges


def test_extra_lost_split_and_merged_components() -> None:
    bar = box((2, 3), (2, 3), (1, 13), shape=SHAPE)
    cut = bar.copy()
    cut[:, :, 5] = cut[:, :, 9] = False
    far = box((7, 9), (8, 10), (3, 6), shape=SHAPE)
    nothing = np.zeros(SHAPE, bool)
    assert errors(bar, bar) == (0, 0, 0, 0)
    assert errors(cut, bar) == (0, 0, 2, 0) and errors(bar, cut) == (0, 0, 0, 2)
    assert errors(bar | far, bar) == (1, 0, 0, 0) and errors(bar, bar | far) == (0, 1, 0, 0)
    assert errors(far, bar) == (1, 1, 0, 0)  # the number is right, the place is not
    assert errors(nothing, bar | far) == (0, 2, 0, 0) and errors(far, nothing) == (1, 0, 0, 0)
    assert component_errors(prediction=far, reference=bar, spacing_mm=SPACING).extra_ml == pytest.approx(
        12 * 6 / 1000
    )


def test_largest_component() -> None:
    mask = voxels((1, 1, 1), (1, 1, 2), (1, 1, 3), (5, 5, 5), (6, 6, 6), (7, 7, 7), (8, 8, 8))
    assert largest_component(mask, 6).sum() == 3 and largest_component(mask, 26).sum() == 4
    assert largest_component(np.zeros(SHAPE)).sum() == 0


# ---- skeleton ---------------------------------------------------------------------------------------------


def test_simple_voxels_equal_counting_components_around() -> None:
    """Simple: one piece of foreground among 26 neighbours, one of background that touches a face (Malandain,
    1993).
    """
    rng = np.random.default_rng(0)
    draws = rng.integers(0, 1 << 26, (4, 200)).astype(np.uint32)
    codes = np.concatenate(
        [draws[0] & draws[1], draws[2], draws[2] | draws[3], np.array([0, (1 << 26) - 1], np.uint32)]
    )
    without_corners = ndimage.generate_binary_structure(3, 2)
    for code, simple in zip(codes, skeleton.is_simple(codes)):
        around = np.zeros((3, 3, 3), bool)
        for k, offset in enumerate(skeleton._OFFSETS):
            around[tuple(offset + 1)] = (int(code) >> k) & 1
        pieces = components(around)[1]
        around[1, 1, 1] = True
        background = components(~around & without_corners, 6)[0]
        faces = {
            int(background[place])
            for place in ((0, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2))
        } - {0}
        assert simple == (pieces == 1 and len(faces) == 1)
    assert 0.2 < skeleton.is_simple(codes).mean() < 0.6


@settings(max_examples=60, deadline=None)
@given(small_masks)
def test_thinning_keeps_the_topology(mask: np.ndarray) -> None:
    before = mask.copy()
    line = skeletonise(mask)
    assert betti_numbers(line) == betti_numbers(mask)
    assert not (line & ~mask).any() and (mask == before).all()
    assert (skeletonise(line) == line).all()


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "nothing"])
def test_every_component_keeps_a_thin_skeleton(name: str) -> None:
    mask = KNOWN[name][0]
    line = skeletonise(mask)
    labels, count = components(mask)
    assert set(np.unique(labels[line])) == set(range(1, count + 1)) and betti_numbers(line) == betti_numbers(
        mask
    )
    if betti_numbers(mask).b2 == 0:
        full_cells = line[1:, 1:, 1:] & line[:-1, 1:, 1:] & line[1:, :-1, 1:] & line[1:, 1:, :-1]
        assert not full_cells.any()


@pytest.mark.parametrize("shape", [(2, 2, 2), (4, 4, 4), (2, 2, 8)])
def test_shapes_that_thinning_likes_to_delete(shape: tuple[int, int, int]) -> None:
    mask = np.ones(shape, bool)
    assert skeletonise(mask).any()
    assert cldice(prediction=mask, reference=mask).cldice == 1


def test_skeleton_does_not_depend_on_the_place_or_the_memory_order() -> None:
    mask = torus() | ball(3, (9, 2, 1))
    line = skeletonise(mask)
    wide = skeletonise(np.pad(mask, ((1, 0), (2, 3), (5, 5))))
    assert (wide[1:, 2:-3, 5:-5] == line).all()
    assert (skeletonise(np.asfortranarray(mask).astype(np.uint8)) == line).all()
    assert (skeletonise(mask[::-1][::-1]) == line).all()


# ---- clDice -----------------------------------------------------------------------------------------------


def line_of(length: int, start: int = 2, height: int = 5) -> np.ndarray:
    mask = np.zeros((10, 12, 30), bool)
    mask[4, height, start : start + length] = True
    return mask


def test_cldice_of_lines() -> None:
    found = cldice(prediction=line_of(16), reference=line_of(20))
    assert (found.precision, found.recall, found.cldice) == (1, 0.8, pytest.approx(8 / 9))
    assert cldice(prediction=line_of(20, height=7), reference=line_of(20)).cldice == 0
    whole, without_arm = thin_y(), thin_y()
    without_arm[21:] = False
    found = cldice(prediction=without_arm, reference=whole)
    assert (found.precision, found.recall, found.cldice) == (1, pytest.approx(5 / 7), pytest.approx(5 / 6))
    swapped = cldice(prediction=whole, reference=without_arm)
    assert (swapped.precision, swapped.recall, swapped.cldice) == (
        found.recall,
        found.precision,
        pytest.approx(found.cldice),
    )


def test_pieces_of_a_single_row_of_voxels() -> None:
    row = np.array([1, 0, 1, 1, 0, 0, 1], bool)
    for shape in ((1, 1, 7), (1, 7, 1), (7, 1, 1)):
        labels, count = components(row.reshape(shape))
        assert count == 3 and labels.ravel().tolist() == [1, 0, 2, 2, 0, 0, 3]


def test_cldice_of_empty_masks() -> None:
    nothing = np.zeros((10, 12, 30), bool)
    missed, hallucinated = (
        cldice(prediction=nothing, reference=line_of(9)),
        cldice(prediction=line_of(9), reference=nothing),
    )
    assert (missed.precision, missed.recall, missed.cldice) == (None, 0, 0)
    assert (hallucinated.precision, hallucinated.recall, hallucinated.cldice) == (0, None, 0)
    assert cldice(prediction=nothing, reference=nothing).cldice is None
    with pytest.raises(ValueError, match="differ in shape"):
        cldice(prediction=nothing, reference=nothing[1:])


# ---- the parser -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spacing, length",
    [
        (UNIT, 14 + 20 * math.sqrt(2)),
        ((1, 1, 5), 70 + 20 * math.sqrt(26)),
        ((3, 2, 1), 14 + 20 * math.sqrt(10)),
    ],
)
def test_thin_y(spacing: tuple[float, float, float], length: float) -> None:
    tree = parse_tree(reference=thin_y(), spacing_mm=spacing)
    assert (len(tree.skeleton), tree.n_branches, len(tree.edges)) == (35, 3, 34)
    assert sorted(tree.generation) == [0, 1, 1] and tree.length_mm == pytest.approx(length)
    assert sorted(np.bincount(tree.branch_of)) == [10, 10, 15]  # the junction counts for the stem


def test_thick_y() -> None:
    assert abs(len(THICK_TREE.skeleton) - 80) <= 2 and THICK_TREE.length_mm == pytest.approx(
        95.57, abs=2 * math.sqrt(3)
    )
    assert THICK_TREE.n_branches == THICK_TREE.n_pieces == 3 and sorted(THICK_TREE.generation) == [0, 1, 1]
    assert THICK_Y[tuple(THICK_TREE.skeleton.T)].all()
    trachea = THICK_TREE.branch_of == np.flatnonzero(THICK_TREE.generation == 0)[0]
    assert THICK_TREE.skeleton[trachea, 2].min() >= 36 and THICK_TREE.skeleton[~trachea, 2].max() <= 40


def test_the_parser_follows_axis_order_and_place() -> None:
    """The same tree turned, with its spacing turned too, and moved, has the same branches and lengths."""
    reference = (
        tube((30, 30, 60), (30, 30, 40), 2.5)
        | tube((30, 30, 40), (20, 35, 25), 2)
        | tube((30, 30, 40), (45, 25, 25), 2)
    )
    spacing = (1.0, 1.5, 0.7)
    tree = parse_tree(reference=reference, spacing_mm=spacing)
    assert tree.n_branches == 3
    moved = parse_tree(reference=np.roll(reference, (3, -4, 5), axis=(0, 1, 2)), spacing_mm=spacing)
    assert (moved.skeleton == tree.skeleton + (3, -4, 5)).all() and moved.length_mm == tree.length_mm
    for order in itertools.permutations(range(3)):
        turned = parse_tree(
            reference=reference.transpose(order), spacing_mm=tuple(spacing[axis] for axis in order)
        )
        # thinning goes side by side
        assert turned.n_branches == 3 and turned.length_mm == pytest.approx(tree.length_mm, rel=0.05)


def test_parts_that_hang_on_nothing_have_no_generation() -> None:
    reference = THICK_Y | tube((10, 10, 10), (10, 10, 40), 2)
    tree = parse_tree(reference=reference, spacing_mm=UNIT)
    assert tree.n_branches == 4 and sorted(tree.generation) == [UNREACHED, 0, 1, 1]
    assert len(td_by_generation(prediction=reference, tree=tree)) == 2


def test_a_reference_too_short_for_a_branch() -> None:
    reference = box((3, 6), (3, 6), (3, 6), shape=SHAPE)
    tree = parse_tree(reference=reference, spacing_mm=SPACING)
    assert (
        tree.n_branches == 0
        and set(tree.branch_of) == {UNREACHED}
        and td_by_generation(prediction=reference, tree=tree) == []
    )
    found = tree_metrics(prediction=reference, reference=reference, tree=tree)
    assert (found["bd_full"], found["td_full"], found["branches"]) == (None, 1, 0)


def touching(n: int, *pairs: tuple[int, int]) -> np.ndarray:
    matrix = np.zeros((n, n), bool)
    for one, other in pairs:
        matrix[one, other] = matrix[other, one] = True
    return matrix


@pytest.mark.parametrize(
    "pairs, volumes, branch_of, generation",
    [
        (((0, 1), (0, 2)), (9, 2, 2), [0, 1, 2], [0, 1, 1]),  # a Y stays
        (
            ((0, 1), (0, 2)),
            (2, 9, 2),
            [0, 0, 0],
            [0],
        ),  # from another trachea it is a chain of only children: one branch
        (((0, 1), (1, 2), (1, 3)), (9, 2, 2, 2), [0, 0, 1, 2], [0, 1, 1]),  # the only child joins its parent
        (
            ((0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (3, 5)),
            (9, 2, 2, 2, 2, 2),
            [0, 0, 0, 0, 1, 2],
            [0, 1, 1],
        ),  # two parents are one, then only children
        # two parents (1, 2) of 4 become one branch, which then has the children 4 and 5: 4 is no only child
        (
            ((0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (2, 5)),
            (9, 2, 2, 2, 2, 2),
            [0, 1, 1, 2, 3, 4],
            [0, 1, 1, 2, 2],
        ),
        (((0, 1), (0, 2), (3, 4)), (9, 2, 2, 5, 1), [0, 1, 2, 3, 4], [0, 1, 1, UNREACHED, UNREACHED]),
    ],
)
def test_joining_of_mistaken_cuts(pairs, volumes, branch_of, generation) -> None:
    found = airway_tree.grow_tree(touching(len(volumes), *pairs), np.array(volumes))
    assert found[0].tolist() == branch_of and found[1].tolist() == generation


# ---- tree metrics -----------------------------------------------------------------------------------------


def test_a_perfect_prediction() -> None:
    found = found_in(THICK_Y)
    for suffix in ("full", "lcc"):
        assert [
            found[f"{name}_{suffix}"] for name in ("dice", "td", "td_mm", "bd", "precision", "leakage", "amr")
        ] == [1, 1, 1, 1, 1, 0, 0]
    assert (
        found["breaks"] == 0
        and found["branches"] == 3
        and td_by_generation(prediction=THICK_Y, tree=THICK_TREE) == [1, 1]
    )


def test_a_missing_arm() -> None:
    prediction = STEM | LEFT
    found = found_in(prediction)
    assert found["td_full"] == found["td_lcc"] == pytest.approx(0.7125, abs=0.02) and found[
        "bd_full"
    ] == pytest.approx(2 / 3)
    assert (
        found["precision_full"] == 1
        and found["leakage_full"] == 0
        and found["amr_full"] == pytest.approx(1 - prediction.sum() / THICK_Y.sum())
    )
    by_generation = td_by_generation(prediction=prediction, tree=THICK_TREE)
    assert by_generation[0] == 1 and 0.45 < by_generation[1] < 0.6


def test_a_gap_in_an_arm() -> None:
    prediction = THICK_Y.copy()
    prediction[:40, :, 27:30] = False
    found = found_in(prediction)
    assert found["dice_full"] == pytest.approx(0.982, abs=5e-4) and found["dice_lcc"] == pytest.approx(
        0.899, abs=5e-4
    )
    assert found["td_lcc"] == pytest.approx(0.8125, abs=0.02) and found["td_full"] == pytest.approx(
        0.963, abs=0.01
    )
    assert (found["bd_full"], found["bd_lcc"]) == (1, pytest.approx(2 / 3)) and found["breaks"] == 1


def test_a_leak_is_seen_where_tree_length_sees_nothing() -> None:
    blob = tube((40, 62, 60), (40, 62, 61), 8.9) & ~THICK_Y
    found = found_in(THICK_Y | blob)
    size, leaked = THICK_Y.sum(), blob.sum()
    assert found["td_full"] == found["bd_full"] == 1 and leaked > size
    assert found["leakage_full"] == pytest.approx(leaked / size) and found["precision_full"] == pytest.approx(
        size / (size + leaked)
    )
    assert found["td_lcc"] == 0 and found["precision_lcc"] == 0  # the blob is the larger piece
    assert found["breaks"] == 0  # and does not touch the reference
    assert found_in(blob)["breaks"] is None


def test_millimetres_are_the_length_of_the_edges_found() -> None:
    reference, spacing = thin_y(), (1.0, 1.0, 5.0)
    tree = parse_tree(reference=reference, spacing_mm=spacing)
    prediction = reference.copy()
    prediction[:, :, 25:] = False  # 5 voxels and 5 edges of the stem
    found = tree_metrics(prediction=prediction, reference=reference, tree=tree)
    assert found["td_full"] == pytest.approx(30 / 35) and found["td_mm_full"] == pytest.approx(
        1 - 25 / tree.length_mm
    )
    assert found["tree_length_mm"] == pytest.approx(70 + 20 * math.sqrt(26))
    assert found["bd_full"] == pytest.approx(2 / 3)  # 10 of the stem's 15 voxels are less than 80 %
    prediction[:, :, 25:27] = reference[:, :, 25:27]
    # 12 of 15 are 80 %
    assert tree_metrics(prediction=prediction, reference=reference, tree=tree)["bd_full"] == 1


def test_the_largest_component_is_joined_by_faces() -> None:
    """The arms of the thin Y hang together by edges only."""
    reference = thin_y()
    found = tree_metrics(
        prediction=reference, reference=reference, tree=parse_tree(reference=reference, spacing_mm=UNIT)
    )
    assert (found["td_full"], found["bd_full"], found["breaks"]) == (1, 1, 0)
    assert found["td_lcc"] == pytest.approx(15 / 35) and found["bd_lcc"] == pytest.approx(1 / 3)


def test_empty_masks() -> None:
    nothing = np.zeros_like(THICK_Y)
    found = found_in(nothing)
    for suffix in ("full", "lcc"):
        assert [
            found[f"{name}_{suffix}"] for name in ("td", "td_mm", "bd", "leakage", "amr", "precision")
        ] == [0, 0, 0, 0, 1, None]
    assert found["breaks"] is None
    empty = parse_tree(reference=nothing, spacing_mm=UNIT)
    assert set(tree_metrics(prediction=THICK_Y, reference=nothing, tree=empty).values()) == {None}


def test_losing_a_branch_and_cutting_one() -> None:
    reference = grown_tree()
    tree = parse_tree(reference=reference, spacing_mm=UNIT)
    assert tree.n_branches == 7 and sorted(tree.generation) == [0, 1, 1, 2, 2, 2, 2]
    whole = compare(prediction=reference, reference=reference, spacing_mm=UNIT, tree=True)
    lost = reference & ~(tube((58, 40, 36), (58, 54, 12), 3) & (np.arange(80)[:, None] > 40))
    found = compare(prediction=lost, reference=reference, spacing_mm=UNIT, tree=True)
    assert found["bd_full"] == pytest.approx(whole["bd_full"] - 1 / 7) and found["b0_error"] == 0
    cut = reference.copy()
    cut[:40, 40:, 24] = False
    found = compare(prediction=cut, reference=reference, spacing_mm=UNIT, tree=True)
    assert (
        found["b0_prediction"] == 2
        and found["b0_error"] == found["b0_located_error"] == found["breaks"] == 1
        and found["extra_components"] == 0
    )
    assert found["dice_full"] > 0.99 and 0.9 < found["cldice"] < 1 == whole["cldice"]
    assert found["td_full"] > 0.98 > 0.95 > found["td_lcc"]


# ---- which structures, and the files ----------------------------------------------------------------------


def test_kinds_by_name() -> None:
    kinds = {
        "airway": "tree",
        "lung_trachea_bronchia": "tree",
        "Coronary Arteries": "tree",
        "lung_vessels": "tree",
        "trachea": "tube",
        "aorta": "tube",
        "inferior_vena_cava": "tube",
        "portal_vein_and_splenic_vein": "tube",
        "pulmonary_artery": "tube",
        "bladder": "other",
        "airway_wall": "other",
        "portal vein tumour": "other",
        "heart_ventricle_left": "other",
        "liver": "other",
    }
    assert {name: tubular.kind_of(name) for name in kinds} == kinds
    names = ["liver", "aorta", "airway"]
    assert (
        tubular.measured(names, "auto") == ["aorta", "airway"]
        and tubular.measured(names, "all") == names
        and tubular.measured(names, "none") == []
    )
    with pytest.raises(ValueError):
        tubular.measured(names, "some")
    assert config.resolve(None, {"evaluate.topology": "all"}).evaluate.topology == "all"
    with pytest.raises(UsageError):
        config.resolve(None, {"evaluate.topology": "some"})


def score(root: Path, *more: str) -> Path:
    affine = np.diag([SPACING[2], SPACING[1], SPACING[0], 1.0])[:, [2, 1, 0, 3]]
    for case_id, arrays in CASES.items():
        for side, array in zip(("reference", "prediction"), arrays):
            nifti.write_label(root / side / f"{case_id}.nii.gz", Volume(array, affine))
    artifacts.write_json(root / "reference" / "labels.json", {"1": "liver", "2": "airway", "3": "aorta"})
    arguments = [
        "--reference",
        str(root / "reference"),
        "--prediction",
        str(root / "prediction"),
        "--output",
        str(root / "scores"),
        "--no-plots",
        "--workers",
        "1",
    ]
    assert evaluate.main([*arguments, *more]) == 0
    return root / "scores"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return score(tmp_path_factory.mktemp("topology"))


def test_topology_table(scored: Path) -> None:
    rows = list(csv.DictReader((scored / "topology.csv").read_text(encoding="utf-8").splitlines()))
    assert tuple(rows[0]) == result_files.TOPOLOGY_COLUMNS
    assert [(row["case_id"], row["structure"]) for row in rows] == [
        ("cut", "airway"),
        ("cut", "aorta"),
        ("good", "airway"),
        ("good", "aorta"),
        ("missed", "airway"),
        ("missed", "aorta"),
        ("without", "aorta"),
    ]
    cut, aorta, good, _, missed, *_ = rows
    assert (
        cut["b0_prediction"],
        cut["b0_error"],
        cut["b0_located_error"],
        cut["extra_components"],
        cut["breaks"],
    ) == ("3", "2", "2", "1", "1")
    assert float(cut["extra_components_ml"]) == pytest.approx(8 * 6 / 1000)
    assert (
        float(cut["td_lcc"]) < float(cut["td_full"]) < 1
        and len(cut["td_by_generation_full"].split()) == 2
        and cut["branches"] == "3"
    )
    assert (good["td_full"], good["bd_lcc"], good["cldice"], good["betti_error"], good["leakage_full"]) == (
        "1.0",
        "1.0",
        "1.0",
        "0",
        "0.0",
    )
    # a tube without branches
    assert (aorta["cldice"], aorta["td_full"], aorta["td_by_generation_full"]) == ("1.0", "", "")
    assert (
        missed["state"],
        missed["cldice"],
        missed["td_full"],
        missed["amr_lcc"],
        missed["precision_full"],
        missed["breaks"],
    ) == ("missed", "0.0", "0.0", "1.0", "", "")
    assert (missed["b0_error"], missed["b0_located_error"]) == ("1", "1")


def test_topology_in_the_summary(scored: Path) -> None:
    topology = json.loads((scored / "summary_statistics.json").read_text(encoding="utf-8"))["topology"]
    assert list(topology) == ["airway", "aorta"]
    airway = topology["airway"]
    assert (
        airway["kind"],
        airway["n_reference"],
        airway["n_missed"],
        airway["n_without_reference"],
        airway["n_hallucinated"],
    ) == ("tree", 3, 1, 1, 1)
    assert (
        {"mean", "median", "n"} <= set(airway["td_full"])
        and airway["td_full"]["n"] == 3
        and airway["td_full"]["median"] < 1
    )
    assert airway["precision_full"]["n"] == 2 and airway["precision_full"]["n_undefined"] == 1
    assert [entry["generation"] for entry in airway["td_by_generation_full"]] == [0, 1] and airway[
        "td_by_generation_full"
    ][0]["mean"] == pytest.approx(2 / 3)
    nothing = airway["all_background"]
    assert (
        nothing["cldice"],
        nothing["td_full"],
        nothing["bd_lcc"],
        nothing["precision_full"],
        nothing["amr_full"],
        nothing["b0_error"],
    ) == (0, 0, 0, None, 1, 1)
    assert (
        "td_full" not in topology["aorta"]
        and topology["aorta"]["kind"] == "tube"
        and topology["aorta"]["cldice"]["mean"] == 1
    )


def test_topology_in_the_report(scored: Path) -> None:
    text = (scored / "evaluation_report.txt").read_text(encoding="utf-8")
    assert text.index("Worst 5") < text.index("Topology") < text.index("Trees:") < text.index("Warnings")
    trees = text.split("Trees:")[1].split("\n\n")[0].splitlines()
    assert all(word in trees[2] for word in ("TD", "BD", "precision", "leakage", "breaks"))
    airway, background = trees[3].split(), trees[4].split()
    assert airway[0] == "airway" and "(n=2)" in airway  # precision where defined
    assert background == [
        "all",
        "background",
        "3",
        "0.000",
        "0.000",
        "0.000",
        "0.000",
        "-",
        "-",
        "0.000",
        "0.000",
        "1.000",
        "-",
    ]
    assert not any(
        re.search(r"\bTD\b", part) and not ("precision" in part and "leakage" in part)
        for part in text.split("\n\n")
    )


def test_other_choices(tmp_path: Path) -> None:
    folder = score(tmp_path, "--set", "evaluate.topology=all")
    rows = list(csv.DictReader((folder / "topology.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["structure"] for row in rows} == {"liver", "airway", "aorta"}
    assert all(row["td_full"] == "" for row in rows if row["structure"] == "liver")
    folder = score(tmp_path, "--set", "evaluate.topology=none")
    assert not (folder / "topology.csv").exists()  # that of the earlier evaluation is gone
    assert "Topology" not in (folder / "evaluation_report.txt").read_text(encoding="utf-8")
    assert json.loads((folder / "summary_statistics.json").read_text(encoding="utf-8"))["topology"] == {}


def test_workers_change_nothing(scored: Path, tmp_path: Path) -> None:
    folder = score(tmp_path, "--workers", "2")
    assert (folder / "topology.csv").read_bytes() == (scored / "topology.csv").read_bytes()


def test_ignored_voxels_are_background() -> None:
    reference, prediction = label_map(), label_map()
    reference[:, :, 30:], prediction[5:20, 15:18, 31:33] = 9, 2  # predicted where nobody looked
    found, nothing = topology_rows(prediction, reference, SPACING, Structure("airway", (2,)), 9)
    assert found["extra_components"] == 0 and found["precision_full"] == 1 and nothing["td_full"] == 0
    assert (
        topology_rows(prediction, reference, SPACING, Structure("airway", (2,)), None)[0]["extra_components"]
        == 1
    )


def test_regions_of_several_labels() -> None:
    """Two labels that together are one tube count as one piece."""
    array = label_map()
    array[:13][array[:13] == 2] = 4
    found, _ = topology_rows(array, array, SPACING, Structure("airway", (2, 4)), None)
    assert found["b0_reference"] == 1 and found["td_full"] == 1 and found["branches"] == 3


# ---- real predictions -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.real
def test_real_airways() -> None:
    """Two teams' predictions of one challenge case, one in the place of the reference; takes seconds."""
    if "CTSEG_DATA" not in os.environ:
        pytest.skip("CTSEG_DATA is not set")
    files = sorted(Path(os.environ["CTSEG_DATA"]).glob("atm22/*/preds_*/ATM_305_0000.nii.gz"))
    if len(files) < 2:
        pytest.skip("no atm22 predictions in CTSEG_DATA")
    volume, other = (volume_files.read_integers(path)[0] for path in files[:2])
    found, nothing = topology_rows(
        other.array, volume.array, volume.spacing_mm, Structure("airway", (1,)), None
    )
    assert 100 < found["branches"] < 600 and 2000 < found["tree_length_mm"] < 12000
    assert (
        0.5 < found["td_full"] < 1
        and 0.5 < found["precision_full"] < 1
        and found["td_lcc"] <= found["td_full"]
    )
    # Different ways to the same number: tree length and the centre line's recall; leakage from precision and
    # what is missing.
    assert found["cldice_recall"] == found["td_full"]
    assert found["leakage_full"] == pytest.approx(
        (1 - found["amr_full"]) * (1 - found["precision_full"]) / found["precision_full"]
    )
    assert (
        found["breaks"] == 0
        and found["b0_prediction"] == 1
        and found["b1_reference"] > 0
        and 0.8 < found["cldice"] < 1
    )
    assert (
        0.5 < found["bd_full"] < 1
        and found["bd_lcc"] <= found["bd_full"]
        and len(found["td_by_generation_full"]) > 8
    )
    assert found["td_by_generation_full"][0] == 1 and nothing["td_full"] == 0 and nothing["amr_full"] == 1
