"""DDR-CB, "class-balanced CT density distribution reconstruction": the image through a table before the
network.

github.com/inexhaustible419/AnatomicalPriorsMTL-AirwaySegment names it without code: this is a reconstruction.
Airways are a hundredth of the voxels, so the grey values are spread anew, giving the range in which airway,
wall and lung differ most of the input's dynamic range; the table is fitted on training cases and travels with
the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import Output
from models.technique import Technique

# One value per HU of the window -1024..400, so that a table fitted on bins of 16 HU is kept exactly. A fixed
# size lets a fresh network take any checkpoint.
LOOKUP_SIZE = 1425


class DensityRemap(Technique):
    """The network sees table(image) for image values 0..1, clipped outside, and with `keep_linear` the image
    too.

    `lookup`: (n,) values at equal steps over 0..1, strictly increasing from 0 to 1; the identity until
    `set_lookup`.
    """

    lookup: Tensor

    def __init__(self, network: nn.Module, *, keep_linear: bool = False):
        super().__init__(network)
        if keep_linear:
            if self.in_channels % 2:
                raise ValueError(
                    "keep_linear needs a network that reads two channels per image channel, "
                    f"not {self.in_channels}."
                )
            self.in_channels //= 2
        self.keep_linear = keep_linear
        self.register_buffer("lookup", torch.linspace(0, 1, LOOKUP_SIZE))

    @torch.no_grad()
    def set_lookup(self, values: Tensor | Sequence[float]) -> None:
        """Store a table of any length. ValueError unless it rises strictly from 0 to 1."""
        table = torch.as_tensor(values, dtype=torch.float64).cpu()
        if table.dim() != 1 or len(table) < 2 or table[0] != 0 or table[-1] != 1:
            ends = f"of shape {tuple(table.shape)}"
            if table.dim() == 1 and len(table):
                ends = f"from {table[0]:g} to {table[-1]:g}"
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
        """(B, C, D, H, W) -> the same through the table; with `keep_linear` (B, 2C, ...), remapped first."""
        # float32: bfloat16 would tell only 256 grey values apart
        position = ct.float().clamp(0, 1) * (LOOKUP_SIZE - 1)
        below = position.long().clamp(max=LOOKUP_SIZE - 2)
        remapped = torch.lerp(self.lookup[below], self.lookup[below + 1], position - below).to(ct.dtype)
        return torch.cat((remapped, ct), dim=1) if self.keep_linear else remapped

    def forward(self, ct: Tensor, *inputs: Any, **options: Any) -> Output:
        return self.network(self.remap(ct), *inputs, **options)
