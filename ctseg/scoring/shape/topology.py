"""Is the shape in one piece, with the right holes: Betti numbers, components and centre-line overlap of two
masks.

Masks are arrays (D, H, W) of anything that is 0 or not; foreground is 26-connected, background 6-connected
("26/6") wherever nothing else is said, and outside the array lies background. The 6/26 pairing gives other
numbers. Undefined is None, never 0 or NaN.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ctseg.geometry.boxes import Spacing, tight_box
from ctseg.scoring.shape.skeleton import skeletonise

try:
    import cc3d as _cc3d
except ImportError:  # an accelerator only: SciPy gives the same numbers
    _cc3d = None  # type: ignore[assignment]

_NEIGHBOURS = {6: ndimage.generate_binary_structure(3, 1), 26: ndimage.generate_binary_structure(3, 3)}


class Betti(NamedTuple):
    """b0 components, b1 tunnels (a ring has one, the surface of a torus two), b2 enclosed cavities. The Euler
    number is b0 - b1 + b2."""

    b0: int
    b1: int
    b2: int


class ComponentErrors(NamedTuple):
    """How the 26-components of prediction and reference answer each other.

    extra: predicted ones that touch no reference, extra_ml their volume. lost: the reverse. splits: predicted
    components beyond the first on each reference component. merges: the reverse.
    """

    extra: int
    extra_ml: float
    lost: int
    splits: int
    merges: int

    @property
    def b0_error(self) -> int:
        """Location-aware error of b0: right numbers in the wrong places do not cancel out."""
        return self.extra + self.lost + self.splits + self.merges


class CentrelineOverlap(NamedTuple):
    """precision: share of the prediction's centre line inside the reference, None when the prediction is
    empty. recall: the reverse, None when the reference is empty. cldice: their harmonic mean, None when both
    are empty."""

    precision: float | None
    recall: float | None
    cldice: float | None


# ---- components -------------------------------------------------------------------------------------------


Components = tuple[np.ndarray, int]


def components(mask: np.ndarray, connectivity: int = 26) -> Components:
    """(int32 array of component numbers from 1 on, their count); connectivity 6 (faces) or 26 (corners too).

    Numbered by their first voxels, whichever package does it: cc3d when it is installed, else SciPy.
    """
    mask = np.ascontiguousarray(mask).astype(bool, copy=False)  # numbered in the order of the memory
    if not mask.any():
        return np.zeros(mask.shape, np.int32), 0
    if _cc3d is None or sorted(mask.shape)[1] == 1:  # it fails on a single row of voxels
        labels, count = ndimage.label(mask, structure=_NEIGHBOURS[connectivity])
    else:
        labels, count = _cc3d.connected_components(
            mask, connectivity=connectivity, return_N=True, out_dtype=np.uint32
        )  # type: ignore[call-overload]
    return labels.view(np.int32), int(count)


def largest_component(mask: np.ndarray, connectivity: int = 6) -> np.ndarray:
    """The component of the most voxels, bool; the first one of equals; empty stays empty."""
    labels, count = components(mask, connectivity)
    inside = labels > 0
    return labels == np.argmax(np.bincount(labels[inside])) if count > 1 else inside


class Shape:
    """A mask (D, H, W), and what is known of its shape: looked at once, when it is asked for."""

    def __init__(self, mask: np.ndarray):
        self.mask = np.ascontiguousarray(mask).astype(bool, copy=False)

    @functools.cached_property
    def components(self) -> Components:
        """Its 26-components."""
        return components(self.mask)

    @functools.cached_property
    def skeleton(self) -> np.ndarray:
        """Its centre lines (`skeletonise`)."""
        return skeletonise(self.mask)

    @functools.cached_property
    def betti(self) -> Betti:
        """Its Betti numbers; (0, 0, 0) of an empty mask."""
        if not self.mask.any():
            return Betti(0, 0, 0)
        padded = np.pad(self.mask[tight_box(self.mask)], 1)  # so that the outside is one piece of background
        b0, b2 = self.components[1], components(~padded, 6)[1] - 1
        return Betti(b0, b0 + b2 - euler_number(padded), b2)


def component_errors(prediction: Shape, reference: Shape, spacing_mm: Spacing) -> ComponentErrors:
    """Components that are too many, too few, torn apart or grown together (see `ComponentErrors`)."""
    predicted, n_predicted = prediction.components
    referenced, n_referenced = reference.components
    both = prediction.mask & reference.mask
    # One number for each pair of components that overlap somewhere.
    pairs = np.unique(predicted[both].astype(np.int64) * (n_referenced + 1) + referenced[both])
    per_predicted = np.bincount(pairs // (n_referenced + 1), minlength=n_predicted + 1)[1:]
    per_referenced = np.bincount(pairs % (n_referenced + 1), minlength=n_referenced + 1)[1:]
    voxels = np.bincount(predicted[prediction.mask], minlength=n_predicted + 1)[1:]
    return ComponentErrors(
        extra=int(np.count_nonzero(per_predicted == 0)),
        extra_ml=float(voxels[per_predicted == 0].sum() * math.prod(spacing_mm) / 1000.0),
        lost=int(np.count_nonzero(per_referenced == 0)),
        splits=int(np.maximum(per_referenced - 1, 0).sum()),
        merges=int(np.maximum(per_predicted - 1, 0).sum()),
    )


# ---- Betti numbers ----------------------------------------------------------------------------------------


def euler_number(padded: np.ndarray) -> int:
    """Vertices - edges + faces - voxels of the union of closed cubes, of a mask with a border of background.

    A face (edge, vertex) belongs to the union when any of its 2 (4, 8) voxels does: voxels ORed with
    themselves, shifted by one along one, two or all three axes.
    """
    faces = [_either(padded, axis) for axis in range(3)]
    edges = [_either(faces[0], 1), _either(faces[0], 2), _either(faces[1], 2)]
    vertices = _either(edges[0], 2)
    count = np.count_nonzero
    return int(count(vertices) - sum(count(e) for e in edges) + sum(count(f) for f in faces) - count(padded))


def _either(array: np.ndarray, axis: int) -> np.ndarray:
    """array or array shifted by one along the axis; one shorter."""
    moved = np.moveaxis(array, axis, 0)
    return np.moveaxis(moved[:-1] | moved[1:], 0, axis)


# ---- centre lines -----------------------------------------------------------------------------------------


def cldice(prediction: Shape, reference: Shape) -> CentrelineOverlap:
    """clDice (Shit et al., CVPR 2021) and its two halves.

    Every component has a skeleton (`skeletonise`), so only an empty mask leaves a half undefined. Missed and
    hallucinated masks score 0.
    """
    if prediction.mask.shape != reference.mask.shape:
        raise ValueError(
            f"prediction {prediction.mask.shape} and reference {reference.mask.shape} differ in shape"
        )
    shares = []
    for line, other in ((prediction.skeleton, reference), (reference.skeleton, prediction)):
        total = int(np.count_nonzero(line))
        shares.append(int(np.count_nonzero(line & other.mask)) / total if total else None)
    precision, recall = shares
    if precision is None and recall is None:
        return CentrelineOverlap(None, None, None)
    product, both = (precision or 0.0) * (recall or 0.0), (precision or 0.0) + (recall or 0.0)
    return CentrelineOverlap(precision, recall, 2 * product / both if both else 0.0)
