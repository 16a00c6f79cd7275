"""What the connectivity losses and the patch sampler need to know of tubes: centreline, radius, places to
look at.

Everything is computed once per case on its whole canvas, (D, H, W): in a patch the end of a branch and the
edge of the patch look alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from scipy.spatial import cKDTree

from ctseg.geometry.boxes import tight_box
from ctseg.scoring.shape.skeleton import skeletonise

TOUCHING = np.ones((3, 3, 3), bool)  # 26 neighbours
THIN_MM = 2.0  # branches below this radius are the ones that break


def tube_targets(
    label: np.ndarray, structures: Sequence[int], spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(centreline, skeleton, radius_mm) of the structures, each (D, H, W).

    label: (D, H, W) integers. structures: the ids that are tubes; others get no targets. skeleton: uint8, the
    structure's id on its one voxel thin centreline. centreline: uint8, the same made thick by its 26
    neighbours, inside the structure or not, so that a network can hit it. radius_mm: float16, distance to the
    nearest voxel outside, 0 outside; the canvas' edge is not outside, for a tube goes on there.
    """
    centreline, skeleton = np.zeros(label.shape, np.uint8), np.zeros(label.shape, np.uint8)
    radius_mm = np.zeros(label.shape, np.float16)
    for value in structures:
        mask = label == value
        if not mask.any():
            continue
        box = tight_box(mask, 1)
        radius = depth_mm(mask[box], spacing_mm)
        line = skeletonise(mask[box])
        skeleton[box][line] = value
        thick = ndimage.binary_dilation(line, TOUCHING)
        # where the thick lines of two structures meet, each keeps what lies in itself
        centreline[box][thick & ((centreline[box] == 0) | mask[box])] = value
        radius_mm[box] = np.where(mask[box], radius, radius_mm[box])
    return centreline, skeleton, radius_mm


def depth_mm(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """(D, H, W) float32: distance from a voxel inside to the nearest one outside, between centres; 0 outside.

    The Euclidean distance transform, but only the structure's own voxels and the shell around it are looked
    at: time and memory do not depend on the canvas. A mask that fills its whole array ends at the array's
    edge.
    """
    shell = ndimage.binary_dilation(mask, ndimage.generate_binary_structure(3, 1)) & ~mask
    if mask.all() and mask.size:
        return depth_mm(np.pad(mask, 1), spacing_mm)[1:-1, 1:-1, 1:-1]
    result = np.zeros(mask.shape, np.float32)
    if mask.any():
        spacing = np.array(spacing_mm)
        # the nearest voxel outside always has a face neighbour inside, so it is in the shell; argwhere keeps
        # mask's order
        result[mask] = cKDTree(np.argwhere(shell) * spacing).query(np.argwhere(mask) * spacing)[0]
    return result


def sampling_points(
    skeleton: np.ndarray,
    radius_mm: np.ndarray,
    label: np.ndarray,
    lung: np.ndarray | None,
    *,
    rng: np.random.Generator,
    limit: int = 4000,
) -> dict[str, np.ndarray]:
    """Where patches may be centred: "thin" and "wide" skeleton voxels, and "background", each (n <= limit, 3)
    int16.

    label, skeleton: (D, H, W) ids; radius_mm: (D, H, W). lung: (D, H, W) bool, see
    `ctseg.geometry.body_regions`; the background is what lies there outside every structure. None: it is what
    lies outside within 10 voxels of a skeleton's box. A kind without voxels has n = 0.
    """
    line = skeleton > 0
    near = np.zeros(label.shape, bool)
    if lung is not None:
        near = lung
    elif line.any():
        near[tight_box(line, 10)] = True
    is_thin = line & (radius_mm < THIN_MM)
    kinds = {"thin": is_thin, "wide": line & ~is_thin, "background": near & (label == 0)}
    return {
        kind: choose_voxels(np.flatnonzero(where), where.shape, limit, rng) for kind, where in kinds.items()
    }


def missed_points(
    skeleton: np.ndarray, prediction: np.ndarray, *, rng: np.random.Generator, limit: int = 4000
) -> np.ndarray:
    """(n <= limit, 3) int16: skeleton voxels that a prediction misses, gaps between two predicted parts
    first.

    skeleton, prediction: (D, H, W) ids. A run of missed voxels that joins two runs that were found is a gap;
    the others are lost ends or whole branches, and get at most half of the places as long as gaps can fill
    the other half.
    """
    gaps, ends = [], []
    for value in np.unique(skeleton[skeleton > 0]):
        line = skeleton == value
        box = tight_box(line, 1)
        found = line[box] & (prediction[box] == value)
        missed = line[box] & ~found
        runs = ndimage.label(missed, TOUCHING)[0][missed]
        parts, n_parts = ndimage.label(found, TOUCHING)
        around = sliding_window_view(np.pad(parts, 1), (3, 3, 3))[missed].reshape(len(runs), 27)
        touched = np.zeros((runs.max(initial=0) + 1, n_parts + 1), bool)
        touched[runs[:, None], around] = True
        is_gap = touched[runs, 1:].sum(1) >= 2
        places = np.argwhere(missed) + [side.start for side in box]
        gaps.append(places[is_gap])
        ends.append(places[~is_gap])
    if not gaps:
        return np.zeros((0, 3), np.int16)
    gap, end = (
        np.ravel_multi_index(tuple(np.concatenate(group).T), skeleton.shape) for group in (gaps, ends)
    )
    n_ends = min(len(end), max(limit // 2, limit - len(gap)))
    return np.concatenate(
        [
            choose_voxels(gap, skeleton.shape, limit - n_ends, rng),
            choose_voxels(end, skeleton.shape, n_ends, rng),
        ]
    )


def choose_voxels(
    flat: np.ndarray, shape: tuple[int, ...], limit: int, rng: np.random.Generator
) -> np.ndarray:
    """(n <= limit, 3) int16 voxels of flat indices, at random when there are more than the limit."""
    if len(flat) > limit:
        flat = rng.choice(flat, limit, replace=False)
    return np.stack(np.unravel_index(flat, shape), axis=1).astype(np.int16)
