"""Centre line and radius learned beside the mask, after the idea of AP-MTL, "anatomical prior-based multi-task learning".

github.com/inexhaustible419/AnatomicalPriorsMTL-AirwaySegment publishes the idea but no code and no numbers: this is a
reconstruction. Thin branches break because a mask rewards volume; features that also have to tell the axis of each
branch and its width keep the tree connected, and the heads that asked for it are dropped when predicting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import Modulations, Output, initialise_head
from models.technique import Technique


class ConnectivityMultitask(Technique):
    """Adds "centreline" (logits) and "radius" (>= 0, in units of the target), both (B, S, D, H, W), while training.

    The heads are single 1^3 convolutions: all they know they must read from the features that the mask is made of,
    which is what is left when they are gone. A 3^3 convolution of their own would learn part of the tree for itself,
    at the price of another decoder level at full size.

    Set `always_heads` to have both maps outside training too. With one decoder per structure each decoder tells its
    own structure's line; the attention between decoders comes after and is for the mask.
    """

    def __init__(self, network: nn.Module, n_structures: int):
        super().__init__(network)
        self.always_heads = False
        channels, per_decoder = self.decoder_channels[-1], n_structures if self.n_decoders == 1 else 1
        self.centreline = nn.ModuleList(nn.Conv3d(channels, per_decoder, 1) for _ in range(self.n_decoders))
        self.radius = nn.ModuleList(nn.Conv3d(channels, per_decoder, 1) for _ in range(self.n_decoders))
        for heads in (self.centreline, self.radius):
            initialise_head(heads)

    def features(self, ct: Tensor, modulations: Modulations | None = None) -> list[Any]:
        """Those of the network inside."""
        return self.network.features(ct, modulations)

    def predict(self, features: Sequence[Any]) -> Output:
        output = self.network.predict(features)
        if self.training or self.always_heads:
            finest: list[Tensor] = features[-1] if self.n_decoders > 1 else [_only(features[-1])]
            output["centreline"] = torch.cat([head(x) for head, x in zip(self.centreline, finest)], dim=1)
            output["radius"] = functional.softplus(
                torch.cat([head(x) for head, x in zip(self.radius, finest)], dim=1)
            )
        return output

    def forward(self, ct: Tensor, *, modulations: Modulations | None = None) -> Output:
        return self.predict(self.features(ct, modulations))


def _only(features: Tensor | Sequence[Tensor]) -> Tensor:
    """The features of the one decoder; a network for a single structure may give them as a list of one."""
    return features if isinstance(features, Tensor) else features[0]
