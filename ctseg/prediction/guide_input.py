"""Guide channels of a patch: how far, and on which side, every voxel lies from each guide organ.

Channels (K organs, T length scales tau): first tanh(d / tau) of all organs for the first tau, then for the
next, last the K presence channels, K * (T + 1) in all. d is negative inside an organ, positive outside. An
organ that is not there, or was dropped, is +1 in every distance channel (infinitely far) and 0 in its
presence channel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ctseg import artifacts
from ctseg.laterality import Sides
from ctseg.manifest import Case, Manifest
from ctseg.prediction.mirroring import mirror_permutation
from ctseg.preparation.guide_organs import read_guide

TAUS_MM = (20.0, 100.0)  # the near one resolves an organ's shape, the far one where in the body a patch lies

Triple = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Guide:
    """The guide maps of one case.

    distance_mm: (K, d, h, w) float16. presence: (K,) bool. stride: canvas voxels per guide voxel along each
    axis; guide voxel g covers canvas voxels [g * stride, (g + 1) * stride). swaps: (K,) the organ whose place
    each organ takes in a left/right mirror (an involution).
    """

    distance_mm: torch.Tensor
    presence: torch.Tensor
    stride: Triple
    swaps: torch.Tensor


def load(workspace: artifacts.Workspace, manifest: Manifest, case: Case) -> Guide | None:
    """The guide of a case of the manifest, its hash checked; None when the data have none."""
    if case.guide is None:
        return None
    found = read_guide(workspace.processed / case.guide.file, sha256=case.guide.sha256)
    return make_guide(*found, manifest.organs, manifest.sides)


def make_guide(
    distance_mm: np.ndarray,
    presence: np.ndarray,
    stride: Triple,
    organs: Sequence[str],
    sides: Sides | None = None,
) -> Guide:
    """The Guide of what `ctseg.preparation.guide_organs.read_guide` returned.

    sides: from the organs' names when None.
    """
    swaps = mirror_permutation(organs, sides)
    return Guide(torch.from_numpy(distance_mm), torch.from_numpy(presence), stride, swaps)


def n_channels(n_organs: int) -> int:
    """How many channels `guide_channels` makes."""
    return n_organs * (len(TAUS_MM) + 1)


def guide_channels(distance_mm: torch.Tensor, presence: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    """(K * (T + 1), D, H, W) float32 in [-1, 1] from distances (K, D, H, W) in mm and presence (K,).

    scale: how many times larger the picture shows the anatomy; distances grow with it.
    """
    blocks = torch.empty((len(TAUS_MM) + 1, *distance_mm.shape))
    for block, tau in zip(blocks, TAUS_MM):
        torch.mul(distance_mm, scale / tau, out=block).tanh_()
        block[~presence] = 1.0
    blocks[-1] = presence.float().view(-1, 1, 1, 1)
    return blocks.flatten(0, 1)


def guide_patch(
    guide: Guide,
    start: Sequence[int],
    size: Sequence[int],
    *,
    positions: torch.Tensor | None = None,
    scale: float = 1.0,
    mirrored: bool = False,
    dropped: torch.Tensor | None = None,
) -> torch.Tensor:
    """(K * (T + 1), D, H, W) guide channels of a patch of the canvas.

    start, size: first canvas voxel and voxels of an upright patch (it may reach beyond the canvas: the edge
    goes on). positions: (3, D, H, W) canvas voxel coordinates instead, where the patch was rotated or bent;
    start and size do not count then. mirrored: the patch is flipped along W afterwards, so paired organs
    change channels. dropped: (K,) bool in the order of the resulting channels.
    """
    distance_mm = _along_axes(guide, start, size) if positions is None else _at_positions(guide, positions)
    presence = guide.presence
    if mirrored:
        distance_mm, presence = distance_mm.flip(3)[guide.swaps], presence[guide.swaps]
    if dropped is not None:
        presence = presence & ~dropped
    return guide_channels(distance_mm, presence, scale=scale)


def _along_axes(guide: Guide, start: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """(K, D, H, W) float32 mm: trilinear, one axis after the other.

    Every weight depends on the canvas voxel alone, so a voxel has the same value in whichever patch it lies.
    """
    steps = []  # of each axis: the lower guide voxel of every canvas voxel, and the weight of the next one
    for first, count, stride, length in zip(start, size, guide.stride, guide.distance_mm.shape[1:]):
        voxels = torch.arange(first, first + count, dtype=torch.float64)
        places = ((voxels - (stride - 1) / 2) / stride).clamp_(0, length - 1)
        low = places.floor().long()
        steps.append((low, (places - low).float()))
    box = tuple(slice(int(low[0]), int(low[-1]) + 2) for low, _ in steps)
    values = guide.distance_mm[(slice(None), *box)].float()
    for axis in (3, 2, 1):  # the contiguous axis while the array is still small
        low, weight = steps[axis - 1]
        low = low - low[0]
        near = values.index_select(axis, low)
        if bool(weight.any()):
            far = values.index_select(axis, (low + 1).clamp_(max=values.shape[axis] - 1))
            near = torch.lerp(near, far, weight.view([-1] + [1] * (3 - axis)))
        values = near
    return values


def _at_positions(guide: Guide, positions: torch.Tensor) -> torch.Tensor:
    """(K, D, H, W) float32 mm, trilinear, at canvas voxels (3, D, H, W); beyond them the edge goes on."""
    grid = torch.empty((*positions.shape[1:], 3))
    box = []
    for axis, (stride, length) in enumerate(zip(guide.stride, guide.distance_mm.shape[1:])):
        places = (positions[axis] - (stride - 1) / 2) / stride
        low, high = touched(places, length)
        # grid_sample counts the axes backwards and from -1 to 1 between the outer edges of the box
        grid[..., 2 - axis] = places.sub_(low - 0.5).mul_(2 / (high - low)).sub_(1)
        box.append(slice(low, high))
    values = guide.distance_mm[(slice(None), *box)].float()
    return F.grid_sample(
        values[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0]


def touched(places: torch.Tensor, length: int) -> tuple[int, int]:
    """(first, end) voxels along an axis of `length` that lie about some places on it; at least one."""
    ends = torch.aminmax(places)
    low = min(max(int(ends.min.floor()), 0), length - 1)
    return low, min(max(int(ends.max.ceil()) + 1, low + 1), length)
