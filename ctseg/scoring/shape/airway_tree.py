"""Branching tubes: the branches of a reference tree, and how much of the tree a prediction found, without
leaking.

The branch parser follows the evaluation of the ATM'22 challenge (Zhang et al., Medical Image Analysis 90,
2023): cut the centre line at its junctions, give every voxel to the nearest piece, build the tree from the
trachea, join what was cut by mistake. Here the joining happens on the small graph of branches, never on the
voxels, and lengths are also given in mm.

Tree length and branches detected rise when a prediction leaks: they are never shown without precision and
leakage.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree, shortest_path
from scipy.spatial import cKDTree

from ctseg.geometry.boxes import Spacing, tight_box
from ctseg.scoring.distances import check_masks
from ctseg.scoring.metrics import Counts
from ctseg.scoring.shape.topology import Shape, largest_component

MIN_BRANCH_VOXELS = 5  # shorter pieces of the centre line are cut-off corners of junctions, or noise
DETECTED = 0.8  # share of a branch's centre line that must be found for the branch to count as found
UNREACHED = -1  # generation of branches that hang on no other part of the tree, and branch of voxels in none

# One of each pair of opposite neighbours: 13 of 26, so that every pair of voxels is looked at once.
_FORWARD = np.array([offset for offset in itertools.product((-1, 0, 1), repeat=3) if offset > (0, 0, 0)])


class Tree(NamedTuple):
    """What the parser read off a reference; S centre-line voxels, B branches, E edges.

    skeleton: (S, 3) voxel indices in the reference's array. branch_of: (S,) branch of each, UNREACHED when
    the reference is too short for any branch. generation: (B,) 0 for the trachea (the largest branch), 1 for
    its children, UNREACHED for what does not hang together with it. edges: (E, 2) pairs of centre-line voxels
    that a line runs between, edge_mm: (E,) their lengths. n_pieces: branches before the joining.
    """

    skeleton: np.ndarray
    branch_of: np.ndarray
    generation: np.ndarray
    edges: np.ndarray
    edge_mm: np.ndarray
    n_pieces: int

    @property
    def length_mm(self) -> float:
        """Length of all centre lines."""
        return float(self.edge_mm.sum())

    @property
    def n_branches(self) -> int:
        """Branches after the joining; each has at least MIN_BRANCH_VOXELS centre-line voxels by
        construction."""
        return int(self.generation.size)


# ---- the parser -------------------------------------------------------------------------------------------


def parse_tree(reference: Shape, spacing_mm: Spacing) -> Tree:
    """The tree of a mask (D, H, W); an empty mask has no voxels and no branches."""
    mask, _, spacing_mm = check_masks(reference.mask, reference.mask, spacing_mm)
    if not mask.any():
        none = np.zeros(0, np.int64)
        return Tree(np.zeros((0, 3), np.int64), none, none, np.zeros((0, 2), np.int64), np.zeros(0), 0)
    box = tight_box(mask)
    mask, line = np.pad(mask[box], 1), np.pad(reference.skeleton[box], 1)
    voxels, of_line = np.flatnonzero(mask), np.flatnonzero(line)
    points = np.stack(np.unravel_index(of_line, mask.shape), axis=1)
    neighbours = neighbour_graph(of_line, mask.shape, spacing_mm)
    forest = minimum_spanning_tree(neighbours).tocoo()
    piece, n_pieces = cut_at_junctions(neighbours)
    known, nearest = piece >= 0, np.full(voxels.size, UNREACHED)  # piece whose centre line is nearest
    if known.any():
        line_tree = cKDTree((points * spacing_mm)[known], balanced_tree=False, compact_nodes=False)
        places_mm = np.stack(np.unravel_index(voxels, mask.shape), axis=1) * spacing_mm
        nearest = piece[known][line_tree.query(places_mm)[1]]
    branch_of_piece, generation = grow_tree(
        touching_pieces(voxels, nearest, mask.shape, n_pieces),
        np.bincount(nearest + 1, minlength=n_pieces + 1)[1:],
    )
    branch_of = np.append(branch_of_piece, UNREACHED)[nearest[np.searchsorted(voxels, of_line)]]
    return Tree(
        points - 1 + [side.start for side in box],
        branch_of,
        generation,
        np.stack([forest.row, forest.col], axis=1).astype(np.int64),
        np.asarray(forest.data, np.float64),
        n_pieces,
    )


def neighbour_graph(positions: np.ndarray, shape: tuple[int, ...], spacing_mm: Spacing) -> csr_array:
    """(S, S) upper triangle of the distances in mm between centre-line voxels that are 26-neighbours.

    positions: their sorted flat indices in an array of that shape with an empty border.
    """
    starts, ends, lengths = [], [], []
    for offset, step in zip(_FORWARD, _steps(shape)):
        place = np.searchsorted(positions, positions + step)
        place[place == positions.size] = 0
        found = np.flatnonzero(positions[place] == positions + step)
        starts.append(found)
        ends.append(place[found])
        lengths.append(np.full(found.size, math.hypot(*(offset * spacing_mm))))
    return coo_array(
        (np.concatenate(lengths), (np.concatenate(starts), np.concatenate(ends))), shape=(positions.size,) * 2
    ).tocsr()


def _steps(shape: tuple[int, ...]) -> np.ndarray:
    """What the 13 forward neighbours add to a flat index; all positive."""
    return _FORWARD @ np.array([shape[1] * shape[2], shape[2], 1])


def cut_at_junctions(neighbours: csr_array) -> tuple[np.ndarray, int]:
    """((S,) piece of each centre-line voxel, counted from 0, UNREACHED for none; number of pieces).

    Pieces are what hangs together without the junctions, voxels with more than two neighbours.
    """
    links = neighbours.tocoo()
    degree = np.bincount(links.row, minlength=links.shape[0]) + np.bincount(
        links.col, minlength=links.shape[0]
    )
    plain = degree <= 2
    kept = plain[links.row] & plain[links.col]
    graph = coo_array((links.data[kept], (links.row[kept], links.col[kept])), shape=links.shape)
    label = connected_components(graph, directed=False)[1]
    long_enough = np.bincount(label, weights=plain) >= MIN_BRANCH_VOXELS
    number = np.where(long_enough, np.cumsum(long_enough) - 1, UNREACHED)
    return np.where(plain, number[label], UNREACHED), int(np.count_nonzero(long_enough))


def touching_pieces(
    voxels: np.ndarray, piece: np.ndarray, shape: tuple[int, ...], n_pieces: int
) -> np.ndarray:
    """(B, B) bool: which pieces' volumes touch (26-connected). voxels: flat indices, piece: that of each."""
    grid = np.zeros(math.prod(shape), np.int32)
    grid[voxels] = piece + 1
    touching = np.zeros((n_pieces + 1, n_pieces + 1), bool)
    for step in _steps(shape):
        touching[piece + 1, grid[voxels + step]] = True
    touching = (touching | touching.T)[1:, 1:]
    np.fill_diagonal(touching, False)
    return touching


def grow_tree(touching: np.ndarray, volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(branch of each piece, generation of each branch): the tree from the trachea, mistaken cuts joined.

    The trachea is the piece of the largest volume. Two parents of one child are one branch, and so are a
    parent and its only child; repeated until nothing changes. Branches are numbered in the order of their
    first piece.
    """
    branch_of = np.arange(volume.size)
    if not volume.size:
        return branch_of, branch_of
    trachea = int(np.argmax(volume))
    while True:
        steps = shortest_path(csr_array(touching), unweighted=True, indices=trachea)  # breadth first
        generation = np.where(np.isfinite(steps), steps, UNREACHED).astype(int)
        joined = join_once(touching, generation)
        if joined.max() + 1 == generation.size:
            return branch_of, generation
        branch_of, trachea = joined[branch_of], int(joined[trachea])
        first, second = np.nonzero(touching)
        touching = np.zeros((joined.max() + 1,) * 2, bool)
        touching[joined[first], joined[second]] = True
        np.fill_diagonal(touching, False)


def join_once(touching: np.ndarray, generation: np.ndarray) -> np.ndarray:
    """New number of each branch after one round of joining; only children wait until nobody has two
    parents."""
    # [child, parent]: they touch and the parent is one step nearer to the trachea
    parents = touching & (generation[:, None] > 0) & (generation[:, None] == generation[None] + 1)
    number = np.arange(len(touching))
    twice = np.flatnonzero(parents.sum(axis=1) > 1)
    for child in twice:
        same = np.unique(number[parents[child]])
        number[np.isin(number, same)] = same[0]
    if not twice.size:
        for parent in np.flatnonzero(parents.sum(axis=0) == 1):
            only_child = int(np.flatnonzero(parents[:, parent])[0])
            number[number == number[only_child]] = number[parent]
    return np.unique(number, return_inverse=True)[1]


# ---- what a prediction found ------------------------------------------------------------------------------


def tree_metrics(prediction: Shape, reference: Shape, tree: Tree) -> dict[str, float | int | None]:
    """Every metric of one prediction against the reference that `tree` was parsed from.

    Keys with `_full` are of the whole prediction, with `_lcc` of its largest 6-connected component: only the
    second hides breaks, only the first hides what hangs on nothing. dice, td (tree length detected, in
    voxels), td_mm (in mm), bd (branches detected), precision, leakage (predicted outside / reference, can
    exceed 1) and amr (missing share). Without suffix: breaks (predicted 26-components that touch the
    reference, less one), branches, tree_length_mm. An empty prediction: td, bd and leakage 0, amr 1,
    precision and breaks None. An empty reference: all None.
    """
    result: dict[str, float | int | None] = {}
    for suffix, mask in (("full", prediction.mask), ("lcc", largest_component(prediction.mask))):
        found = _found(mask, reference.mask, tree)
        result |= {f"{name}_{suffix}": value for name, value in found.items()}
    # predicted 26-components (numbered, 0 is background) that touch the reference, less one
    touching = int(np.count_nonzero(np.unique(prediction.components[0][reference.mask])))
    something = bool(tree.skeleton.size)
    return result | {
        "breaks": touching - 1 if touching else None,
        "branches": tree.n_branches if something else None,
        "tree_length_mm": tree.length_mm if something else None,
    }


def _found(prediction: np.ndarray, reference: np.ndarray, tree: Tree) -> dict[str, float | None]:
    counts = Counts.of(prediction=prediction, reference=reference)
    size, ratios = counts.tp + counts.fn, counts.ratios()
    if not size:
        return dict.fromkeys(("dice", "td", "td_mm", "bd", "precision", "leakage", "amr"))
    hit = prediction[tuple(tree.skeleton.T)]
    length = tree.length_mm
    branch_share = _shares(hit, tree.branch_of, tree.n_branches)
    return {
        "dice": ratios["dice"],
        "td": float(hit.mean()),
        "td_mm": float(tree.edge_mm[hit[tree.edges].all(axis=1)].sum()) / length if length else None,
        "bd": float((branch_share >= DETECTED).mean()) if branch_share.size else None,
        "precision": ratios["precision"],
        "leakage": counts.fp / size,
        "amr": counts.fn / size,
    }


def _shares(hit: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Share of hits in each group; voxels of a negative group take no part."""
    taken = group >= 0
    return np.bincount(group[taken], weights=hit[taken], minlength=n_groups) / np.bincount(
        group[taken], minlength=n_groups
    )


def td_by_generation(prediction: np.ndarray, tree: Tree) -> list[float]:
    """Share of the centre-line voxels found by a mask (bool) in generation 0, 1, 2, ...; parts that hang on
    nothing take no part."""
    if not tree.n_branches:
        return []
    generation = np.append(tree.generation, UNREACHED)[tree.branch_of]  # branch -1: none
    hit = prediction[tuple(tree.skeleton.T)]
    return _shares(hit, generation, int(tree.generation.max()) + 1).tolist()
