"""From probabilities on a canvas to the scan: a label map, or the probabilities of one structure.

For the label map every structure is interpolated where it could win. The scan is cut into blocks of about
eight canvas voxels. A block that one class holds all around with 0.9 is that class without any interpolation;
in the others only the classes that reach what can win are interpolated, by cubic splines, axis by axis. So
neither memory nor time grows with structures that lie elsewhere.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctseg.geometry.boxes import Box, grow, whole_box
from ctseg.geometry.grids import SPLINE_MARGIN, argmax_of, covered_part, find_placement, place
from ctseg.geometry.probabilities import Probabilities
from ctseg.geometry.volume import Grid, Volume, parallel_axes, resample, spline_weights

BLOCK = 8  # canvas voxels along each edge of a block
MARGIN = 8  # canvas voxels around it that a spline still feels: 0.268^8 of them
# One class with this much at every voxel that shapes a block wins all of it: interpolation multiplies what is
# left for the others (0.1) by at most 1.55^3 (the Lebesgue constant of cubic splines, per axis), which is
# less than what then remains of the class.
CERTAIN = 0.9
# a class with less than this share of the leading one, everywhere around, cannot win between the voxels
SHARE_OF_LEADER = 0.5


def label_on_scan(probabilities: Probabilities, canvas: Grid, scan: Grid) -> np.ndarray:
    """Label map (uint8) on the scan's grid from probabilities on the canvas: interpolated there, then argmax.

    A structure takes part in a block where it somewhere reaches half of what the leading class has everywhere
    there (at least 1 / (S + 1)). Ties go to the lower number, that is to background first. Outside the canvas
    is background. When canvas and scan share their voxels, this is the argmax on the canvas, copied.
    """
    placement = find_placement(canvas, scan)
    if placement is not None:
        return place(Volume(probabilities.label(), canvas.affine), scan, placement, 0).array
    mapping = np.linalg.inv(canvas.affine) @ scan.affine  # index of the scan -> index of the canvas
    axes = parallel_axes(mapping)
    if axes is not None:
        result = np.zeros(scan.shape, dtype=np.uint8)
        lines = [
            _blocks(mapping[axis, 3] + mapping[axis, along] * np.arange(scan.shape[along]), size)
            for axis, (along, size) in enumerate(zip(axes, canvas.shape))
        ]
        if all(lines):
            _fill(result.transpose(axes), probabilities, lines)
        return result
    threshold = SHARE_OF_LEADER / probabilities.n_classes
    candidates = []  # a sheared scan: structure by structure, each in the box where it can win
    for number in probabilities.numbers():
        box = probabilities.box_above(number, threshold, margin=SPLINE_MARGIN)
        if box is not None:
            candidates.append((number, Volume(probabilities.cut(number, box), canvas.crop_to(box).affine)))
    return argmax_of(candidates, Volume(probabilities.whole(0), canvas.affine), scan)


@dataclasses.dataclass(frozen=True)
class _Block:
    """A stretch of one axis. target: of the scan; source: of the canvas, with margin; near: what lies in it,
    two voxels wider; weights: (target, source)."""

    target: slice
    source: slice
    near: slice
    weights: np.ndarray


def _blocks(places: np.ndarray, size: int) -> list[_Block]:
    """The blocks of one axis. places: canvas coordinate of each voxel of the scan, evenly spaced; those off
    the canvas are in no block."""
    inside = np.flatnonzero((places >= -0.5) & (places <= size - 0.5))
    if not len(inside):
        return []
    step = max(1, round(BLOCK / max(abs(float(places[1] - places[0])) if len(places) > 1 else 1.0, 1e-6)))
    blocks = []
    for first in range(int(inside[0]), int(inside[-1]) + 1, step):
        target = slice(first, min(first + step, int(inside[-1]) + 1))
        own = np.clip(places[target], 0, size - 1)
        low, high = int(np.floor(own.min())), int(np.ceil(own.max()))
        source = slice(max(0, low - MARGIN), min(size, high + MARGIN + 1))
        weights = spline_weights(own - source.start, source.stop - source.start)
        blocks.append(_Block(target, source, slice(max(0, low - 2), min(size, high + 3)), weights))
    return blocks


def _fill(result: np.ndarray, probabilities: Probabilities, lines: list[list[_Block]]) -> None:
    """Write the winner of every voxel into `result`, whose axes are those of the canvas."""
    numbers = probabilities.numbers()
    near = [[block.near for block in line] for line in lines]
    around = [[block.source for block in line] for line in lines]
    _, leading = probabilities.highest()
    enough = SHARE_OF_LEADER * _extremes((whole_box(leading.shape), leading), near, highest=False)
    decided = np.full(enough.shape, -1, dtype=np.int16)
    takes_part = np.zeros((len(numbers), *decided.shape), dtype=bool)
    for index, number in enumerate((0, *numbers)):
        if (part := probabilities.part(number)) is None:
            continue
        decided[_extremes(part, around, highest=False) >= CERTAIN] = number
        if number:
            takes_part[index - 1] = _extremes(part, near, highest=True) >= enough
    for place_of in np.ndindex(*decided.shape):
        winner, rivals = int(decided[place_of]), np.flatnonzero(takes_part[(slice(None), *place_of)])
        if winner == 0 or not len(rivals):
            continue
        blocks = [line[place] for line, place in zip(lines, place_of)]
        target = result[tuple(block.target for block in blocks)]
        if winner > 0:
            target[...] = winner
            continue
        best = _interpolated(probabilities, 0, blocks)
        for number in (numbers[index] for index in rivals):
            weight = _interpolated(probabilities, number, blocks)
            wins = weight > best
            best[wins] = weight[wins]
            target[wins] = number


def _extremes(part: tuple[Box, np.ndarray], ranges: list[list[slice]], *, highest: bool) -> np.ndarray:
    """The highest or lowest value in every block, (blocks of D, of H, of W). part: a box of the canvas and
    the values in it; outside it is 0."""
    box, values = part
    for axis, (held, line) in enumerate(zip(box, ranges)):
        rows = []
        values = np.moveaxis(values, axis, 0)
        for wanted in line:
            start, stop = max(wanted.start, held.start) - held.start, min(wanted.stop, held.stop) - held.start
            whole = stop - start == wanted.stop - wanted.start
            if stop <= start or not (highest or whole):
                rows.append(np.zeros(values.shape[1:], dtype=np.float32))
            else:
                taken = values[start:stop]
                rows.append(taken.max(axis=0) if highest else taken.min(axis=0))
        values = np.moveaxis(np.stack(rows), 0, axis)
    return values


def _interpolated(probabilities: Probabilities, number: int, blocks: list[_Block]) -> np.ndarray:
    """(target voxels of D, of H, of W) float32 of a class in one block."""
    d, h, w = (block.weights for block in blocks)
    array = probabilities.cut(number, (blocks[0].source, blocks[1].source, blocks[2].source))
    return np.tensordot(d, np.matmul(h, np.tensordot(array, w.T, axes=(2, 0))), axes=(1, 0))


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
    if (placement := find_placement(source.grid, target)) is not None:
        moved = place(source, target, placement, 0.0)
    else:
        moved = resample(source, target, order="linear", fill=0.0)
    return box, np.clip(moved.array, 0.0, 1.0)
