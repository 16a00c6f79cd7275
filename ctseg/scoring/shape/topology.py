"""Is the shape in one piece, with the right holes: Betti numbers, components and centre-line overlap of two
masks.

Masks are arrays (D, H, W) of anything that is 0 or not; foreground is 26-connected, background 6-connected
("26/6") wherever nothing else is said, and outside the array lies background. The 6/26 pairing gives other
numbers. Undefined is None, never 0 or NaN.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import ndimage

from ctseg.geometry.boxes import Spacing, tight_box
from ctseg.scoring.shape.skeleton import skeletonise

try:
    import cc3d as _cc3d
except ImportError:  # an accelerator only: SciPy gives the same numbers
    _cc3d = None  # type: ignore[assignment]

_NEIGHBOURS = {6: ndimage.generate_binary_structure(3, 1), 26: ndimage.generate_binary_structure(3, 3)}


@dataclasses.dataclass(frozen=True)
class Betti:
    """b0 components, b1 tunnels (a ring has one, the surface of a torus two), b2 enclosed cavities."""

    b0: int
    b1: int
    b2: int

    @property
    def euler(self) -> int:
        """The Euler number b0 - b1 + b2."""
        return self.b0 - self.b1 + self.b2


@dataclasses.dataclass(frozen=True)
class ComponentErrors:
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


@dataclasses.dataclass(frozen=True)
class CentrelineOverlap:
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
    if _cc3d is None:
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


def component_errors(
    *,
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Spacing,
    prediction_components: Components | None = None,
    reference_components: Components | None = None,
) -> ComponentErrors:
    """Components that are too many, too few, torn apart or grown together (see `ComponentErrors`).

    The 26-components of each mask are computed unless they are given.
    """
    predicted, n_predicted = (
        components(prediction) if prediction_components is None else prediction_components
    )
    referenced, n_referenced = components(reference) if reference_components is None else reference_components
    both = (predicted > 0) & (referenced > 0)
    # One number for each pair of components that overlap somewhere.
    pairs = np.unique(predicted[both].astype(np.int64) * (n_referenced + 1) + referenced[both])
    per_predicted = np.bincount(pairs // (n_referenced + 1), minlength=n_predicted + 1)[1:]
    per_referenced = np.bincount(pairs % (n_referenced + 1), minlength=n_referenced + 1)[1:]
    voxels = np.bincount(predicted[predicted > 0], minlength=n_predicted + 1)[1:]
    return ComponentErrors(
        extra=int(np.count_nonzero(per_predicted == 0)),
        extra_ml=float(voxels[per_predicted == 0].sum() * math.prod(spacing_mm) / 1000.0),
        lost=int(np.count_nonzero(per_referenced == 0)),
        splits=int(np.maximum(per_referenced - 1, 0).sum()),
        merges=int(np.maximum(per_predicted - 1, 0).sum()),
    )


# ---- Betti numbers ----------------------------------------------------------------------------------------


def betti_numbers(mask: np.ndarray, n_components: int | None = None) -> Betti:
    """Betti numbers of a mask of any kind; (0, 0, 0) for an empty one. n_components: its 26-components, when
    known."""
    mask = np.asarray(mask).astype(bool, copy=False)
    if not mask.any():
        return Betti(0, 0, 0)
    padded = np.pad(mask[tight_box(mask)], 1)  # so that the outside is one piece of background
    b0 = components(padded)[1] if n_components is None else n_components
    b2 = components(~padded, 6)[1] - 1
    return Betti(b0, b0 + b2 - euler_number(padded), b2)


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
    lower, upper = [slice(None)] * 3, [slice(None)] * 3
    lower[axis], upper[axis] = slice(None, -1), slice(1, None)
    return array[tuple(lower)] | array[tuple(upper)]


# ---- centre lines -----------------------------------------------------------------------------------------


def cldice(
    *,
    prediction: np.ndarray,
    reference: np.ndarray,
    prediction_skeleton: np.ndarray | None = None,
    reference_skeleton: np.ndarray | None = None,
) -> CentrelineOverlap:
    """clDice (Shit et al., CVPR 2021) and its two halves. The skeletons are computed unless they are given.

    Every component has a skeleton (`skeletonise`), so only an empty mask leaves a half undefined. Missed and
    hallucinated masks score 0.
    """
    prediction, reference = (
        np.asarray(prediction).astype(bool, copy=False),
        np.asarray(reference).astype(bool, copy=False),
    )
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    precision = _share_inside(
        skeletonise(prediction) if prediction_skeleton is None else prediction_skeleton, reference
    )
    recall = _share_inside(
        skeletonise(reference) if reference_skeleton is None else reference_skeleton, prediction
    )
    if precision is None and recall is None:
        return CentrelineOverlap(None, None, None)
    both = (precision or 0.0) + (recall or 0.0)
    return CentrelineOverlap(
        precision, recall, 2 * (precision or 0.0) * (recall or 0.0) / both if both else 0.0
    )


def _share_inside(skeleton: np.ndarray, mask: np.ndarray) -> float | None:
    total = int(np.count_nonzero(skeleton))
    return int(np.count_nonzero(skeleton & mask)) / total if total else None
