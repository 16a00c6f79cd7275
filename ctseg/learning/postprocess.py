"""Largest component per structure, where the validation cases say that it helps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

CONNECTIVITY = np.ones((3, 3, 3), bool)  # 26 neighbours


def keep_largest(label: np.ndarray, structures: Sequence[int]) -> np.ndarray:
    """A copy of a label map (D, H, W) in which each of `structures` (label ids) has only its largest 26-component.

    Ties go to the component that comes first in memory order. A structure that is not there changes nothing.
    """
    result = label.copy()
    boxes = ndimage.find_objects(label, max_label=int(max(structures, default=0)))
    for value in structures:
        box = boxes[value - 1]
        if box is None:
            continue
        mask = label[box] == value
        components, count = ndimage.label(mask, CONNECTIVITY)
        if count > 1:
            sizes = np.bincount(components.ravel())
            sizes[0] = 0
            result[box][mask & (components != sizes.argmax())] = 0
    return result
