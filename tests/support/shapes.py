"""Shapes whose topology is known: boxes, balls, tori, tubes and trees."""

from __future__ import annotations

import numpy as np

from ctseg.geometry.boxes import whole_box
from ctseg.geometry.probabilities import Probabilities
from ctseg.scoring.shape import airway_tree, topology, tubular
from ctseg.scoring.shape.airway_tree import Tree
from ctseg.scoring.shape.topology import Betti, CentrelineOverlap, ComponentErrors, Shape

UNIT = (1.0, 1.0, 1.0)
SPACING = (3.0, 2.0, 1.0)
SHAPE = (10, 12, 14)


# ---- the measures of plain masks --------------------------------------------------------------------------


def known(mask: np.ndarray, skeleton: np.ndarray | None = None) -> Shape:
    """A mask with its skeleton, or with another one."""
    shape = Shape(mask)
    if skeleton is not None:
        shape.skeleton = skeleton
    return shape


def betti_numbers(mask: np.ndarray) -> Betti:
    return Shape(mask).betti


def component_errors(
    *, prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]
) -> ComponentErrors:
    return topology.component_errors(Shape(prediction), Shape(reference), spacing_mm)


def cldice(*, prediction: np.ndarray, reference: np.ndarray) -> CentrelineOverlap:
    return topology.cldice(Shape(prediction), Shape(reference))


def parse_tree(
    *, reference: np.ndarray, spacing_mm: tuple[float, float, float], skeleton: np.ndarray | None = None
) -> Tree:
    return airway_tree.parse_tree(known(reference, skeleton), spacing_mm)


def tree_metrics(*, prediction: np.ndarray, reference: np.ndarray, tree: Tree) -> dict:
    return airway_tree.tree_metrics(Shape(prediction), Shape(reference), tree)


def td_by_generation(*, prediction: np.ndarray, tree: Tree) -> list[float]:
    return airway_tree.td_by_generation(prediction, tree)


def compare(
    *, prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float], tree: bool
) -> dict:
    """Everything about one structure, with the tree of the reference or without."""
    shape = Shape(reference)
    parsed = airway_tree.parse_tree(shape, spacing_mm) if tree else None
    return tubular.compare(Shape(prediction), shape, spacing_mm, parsed)


# ---- shapes -----------------------------------------------------------------------------------------------


def box(*sides: tuple[int, int], shape: tuple[int, int, int] = (24, 24, 24)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def from_centre(size: int = 32) -> list[np.ndarray]:
    return [axis - size // 2 for axis in np.ogrid[:size, :size, :size]]


def ball(radius: float, shift: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    return sum((axis - s) ** 2 for axis, s in zip(from_centre(), shift)) <= radius**2


def torus(inner: float = 0.0, shift: int = 0) -> np.ndarray:
    """A ring around the first axis; hollow when inner > 0."""
    d, h, w = from_centre()
    squared = (np.hypot(h, w - shift) - 9) ** 2 + d**2
    return (squared <= 4**2) & (squared >= inner**2)


def tunnelled(*axes: int) -> np.ndarray:
    """A box with a straight tunnel along each of the axes, all through its centre."""
    mask = box((4, 19), (4, 19), (4, 19))
    for axis in axes:
        place = [slice(10, 13)] * 3
        place[axis] = slice(None)
        mask[tuple(place)] = False
    return mask


def thin_y() -> np.ndarray:
    """Stem of 14 steps along the last axis, two arms of 10 diagonal steps."""
    mask = np.zeros((40, 24, 40), bool)
    mask[20, 12, 15:30] = True
    for k in range(1, 11):
        mask[20 + k, 12, 15 - k] = mask[20 - k, 12, 15 - k] = True
    return mask


def tube(start: tuple[int, int, int], end: tuple[int, int, int], radius: float) -> np.ndarray:
    grid = np.stack(np.mgrid[:80, :80, :80], -1).astype(float)
    along = np.subtract(end, start).astype(float)
    share = np.clip((grid - start) @ along / (along @ along), 0, 1)
    return np.linalg.norm(grid - start - share[..., None] * along, axis=-1) <= radius


STEM, LEFT, RIGHT = (
    tube((40, 40, 70), (40, 40, 40), 3),
    tube((40, 40, 40), (20, 40, 15), 2.5),
    tube((40, 40, 40), (60, 40, 15), 2.5),
)
THICK_Y = STEM | LEFT | RIGHT
THICK_TREE = parse_tree(reference=THICK_Y, spacing_mm=UNIT)


def found_in(prediction: np.ndarray) -> dict[str, float]:
    return tree_metrics(prediction=prediction, reference=THICK_Y, tree=THICK_TREE)  # type: ignore[return-value]


def grown_tree() -> np.ndarray:
    """A stem, two arms and four twigs: 7 branches."""
    ends = [
        ((40, 40, 78), (40, 40, 55), 3.0),
        ((40, 40, 55), (22, 40, 38), 2.3),
        ((40, 40, 55), (58, 40, 38), 2.3),
    ]
    ends += [((h, 40, 38), (h, 40 + s, 12), 1.8) for h in (22, 58) for s in (-14, 14)]
    return np.logical_or.reduce([tube(*end) for end in ends])


def label_map(
    *, airway: bool = True, aorta: bool = True, gap: bool = False, extra: bool = False
) -> np.ndarray:
    """A small synthetic label map: 1 liver, 2 airway (stem and two arms, 3 x 3 thick), 3 aorta."""
    array = np.zeros((26, 22, 34), np.uint8)
    if airway:
        for k in range(-12, 13):
            d, w = (k + 13, 17) if k < 0 else (13 + k, 17 + k)
            array[d - 1 : d + 2, 9:12, w - 1 : w + 2] = 2
            if k > 0:
                array[d - 1 : d + 2, 9:12, 33 - w : 36 - w] = 2
    if gap:
        array[19, :, 17:] = 0
    if aorta:
        array[3:22, 15:18, 3:6] = 3
    if extra:
        array[2:4, 1:3, 1:3] = 2
    array[20:24, 2:6, 14:20] = 1
    return array


CASES = {  # case -> reference, prediction
    "cut": (label_map(), label_map(gap=True, extra=True)),
    "good": (label_map(), label_map()),
    "missed": (label_map(), label_map(airway=False)),
    "without": (label_map(airway=False), label_map(extra=True, airway=False)),
}


def probabilities_of(values: np.ndarray) -> Probabilities:
    """From whole arrays (S+1, D, H, W), nothing dropped."""
    result = Probabilities(len(values), values.shape[1:], least=0.0)
    result.add(whole_box(result.shape), values)
    return result
