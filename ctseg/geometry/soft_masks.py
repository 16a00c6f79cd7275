"""The probabilities of one structure on the scan's own grid, only in the box where it has any."""

from __future__ import annotations

import numpy as np

from ctseg.geometry.boxes import Box, grow
from ctseg.geometry.grids import covered_part, find_placement, place
from ctseg.geometry.probabilities import Probabilities
from ctseg.geometry.volume import Grid, Volume, resample


def probability_on_scan(
    probabilities: Probabilities, number: int, canvas: Grid, scan: Grid
) -> tuple[Box, np.ndarray] | None:
    """(box of the scan, float32 probabilities 0..1 of class `number` in it); outside the box they are 0.

    None where the structure has none at all. Interpolated linearly between canvas voxels; copied where canvas
    and scan share their voxels.
    """
    held = probabilities.held_box(number)
    if held is None:
        return None
    held = grow(held, 1, probabilities.shape)  # a zero around it, to fade to
    source = Volume(probabilities.cut(number, held), canvas.crop_to(held).affine)
    box = covered_part(source.grid, scan, margin=0)
    if box is None:
        return None
    target = scan.crop_to(box)
    placement = find_placement(source.grid, target)
    moved = (
        resample(source, target, order="linear", fill=0.0)
        if placement is None
        else place(source, target, placement, 0.0)
    )
    return box, np.clip(moved.array, 0.0, 1.0)
