"""Centre line and radius learned beside the mask, after the idea of AP-MTL, "anatomical prior-based
multi-task learning".

github.com/inexhaustible419/AnatomicalPriorsMTL-AirwaySegment publishes the idea but no code and no numbers:
this is a reconstruction. Thin branches break because a mask rewards volume; features that also have to tell
the axis of each branch and its width keep the tree connected, and the heads that asked for it are dropped
when predicting.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import Hooks, Output, initialise_head
from models.technique import Technique


class ConnectivityMultitask(Technique):
    """Adds "centreline" (logits) and "radius" (>= 0, in units of the target), both (B, S, D, H, W), while
    training.

    The heads are single 1^3 convolutions: all they know they must read from the features that the mask is
    made of, which is what is left when they are gone. A 3^3 convolution of their own would learn part of the
    tree for itself, at the price of another decoder level at full size.

    With one decoder per structure each decoder tells its own structure's line; the attention between decoders
    comes after and is for the mask.
    """

    def __init__(self, network: nn.Module, n_structures: int):
        super().__init__(network)
        channels, per_decoder = self.decoder_channels[-1], n_structures if self.n_decoders == 1 else 1
        self.centreline, self.radius = (
            nn.ModuleList(nn.Conv3d(channels, per_decoder, 1) for _ in range(self.n_decoders))
            for _ in range(2)
        )
        for heads in (self.centreline, self.radius):
            initialise_head(heads)

    def forward(self, ct: Tensor, hooks: Hooks | None = None) -> Output:
        output: Output = self.network(ct, hooks)
        if self.training:
            finest = output["features"][-1]
            of_decoders = finest if isinstance(finest, list) else [finest]
            for name, heads in (("centreline", self.centreline), ("radius", self.radius)):
                output[name] = torch.cat([head(x) for head, x in zip(heads, of_decoders)], dim=1)
            output["radius"] = functional.softplus(output["radius"])
        return output
