"""DDR-CB, "class-balanced CT density distribution reconstruction": the image through a table before the network.

github.com/inexhaustible419/AnatomicalPriorsMTL-AirwaySegment names it without code: this is a reconstruction. Airways
are a hundredth of the voxels, so the grey values are spread anew, giving the range in which airway, wall and lung
differ most of the input's dynamic range; the table is fitted on training cases and travels with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import Output
from models.technique import Technique

# One value per HU of the window -1024..400, so that a table fitted on bins of 16 HU is kept exactly. A fixed size lets
# a fresh network take any checkpoint.
LOOKUP_SIZE = 1425


class DensityRemap(Technique):
    """The network sees table(image) for image values 0..1, clipped outside, and with `keep_linear` the image too.

    `lookup`: (n,) values at equal steps over 0..1, strictly increasing from 0 to 1. None is the identity, to be
    replaced by `set_lookup` before training.
    """

    lookup: Tensor

    def __init__(
        self, network: nn.Module, lookup: Tensor | Sequence[float] | None = None, keep_linear: bool = False
    ):
        super().__init__(network)
        if keep_linear:
            if self.in_channels % 2:
                raise ValueError(
                    f"keep_linear needs a network that reads two channels per image channel, not {self.in_channels}."
                )
            self.in_channels //= 2
        self.keep_linear = keep_linear
        self.register_buffer("lookup", torch.linspace(0, 1, LOOKUP_SIZE))
        if lookup is not None:
            self.set_lookup(lookup)

    @property
    def draw_passes(self) -> int | None:
        """That of the MultiPass network inside, if there is one."""
        return getattr(self.network, "draw_passes", None)

    @draw_passes.setter
    def draw_passes(self, number: int | None) -> None:
        self.network.draw_passes = number

    @torch.no_grad()
    def set_lookup(self, values: Tensor | Sequence[float]) -> None:
        """Store a table of any length. ValueError unless it rises strictly from 0 to 1."""
        table = torch.as_tensor(values, dtype=torch.float64).cpu()
        if table.dim() != 1 or len(table) < 2 or table[0] != 0 or table[-1] != 1:
            ends = (
                f"from {table[0]:g} to {table[-1]:g}"
                if table.dim() == 1 and len(table)
                else f"of shape {tuple(table.shape)}"
            )
            raise ValueError(f"A density table must be a list that rises from 0 to 1; this one is {ends}.")
        flat = (table.diff() <= 0).nonzero().flatten().tolist()
        if flat or not table.isfinite().all():
            where = f"after entry {flat[0]}" if flat else "for it holds NaN"
            raise ValueError(
                f"A density table must rise strictly; this one of {len(table)} entries does not, {where}."
            )
        resized = functional.interpolate(table.view(1, 1, -1), LOOKUP_SIZE, mode="linear", align_corners=True)
        self.lookup.copy_(resized.flatten())

    @torch.no_grad()
    def remap(self, ct: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same through the table; with `keep_linear` (B, 2C, D, H, W), remapped first."""
        position = ct.float().clamp(0, 1) * (
            LOOKUP_SIZE - 1
        )  # float32: bfloat16 would tell only 256 grey values apart
        below = position.long().clamp(max=LOOKUP_SIZE - 2)
        remapped = torch.lerp(self.lookup[below], self.lookup[below + 1], position - below).to(ct.dtype)
        return torch.cat((remapped, ct), dim=1) if self.keep_linear else remapped

    def features(self, ct: Tensor, *inputs: Any, **options: Any) -> list[Any]:
        """Those of the network inside, for the remapped image."""
        return self.network.features(self.remap(ct), *inputs, **options)

    def forward(self, ct: Tensor, *inputs: Any, **options: Any) -> Output:
        return self.network(self.remap(ct), *inputs, **options)
