"""What a left/right mirror of a scan does to names and labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ctseg.laterality import Sides, find_sides


def mirror_permutation(names: Sequence[str], sides: Sides | None = None) -> torch.Tensor:
    """(K,) index of the name whose place each name takes in a mirror (an involution); unpaired names stay.

    sides: from the names themselves when None.
    """
    swaps = torch.arange(len(names))
    for left, right in (sides or find_sides(names)).indices(names):
        swaps[left], swaps[right] = right, left
    return swaps


def mirror_labels(names: Sequence[str], sides: Sides | None = None) -> torch.Tensor:
    """(S+1,) label ids after a mirror, background first; see `mirror_permutation`."""
    return torch.cat([torch.zeros(1, dtype=torch.long), 1 + mirror_permutation(names, sides)])
