"""Networks as others published them, to compare with: their parameter counts are what they should be.

Max pooling, two convolution units per level, batch normalisation, ReLU, concatenation, no background head
(its logit is 0, so a sigmoid per structure), no deep supervision. Ours differ on purpose: see the decisions
in docs/decisions/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.blocks import (
    Backbone,
    ConvUnit,
    Encoder,
    Hook,
    Hooks,
    Output,
    ResidualBlock,
    Size,
    Style,
    initialise,
    initialise_head,
)
from models.multi_decoder import CrossDecoderAttention

PUBLISHED = Style(norm="batch", activation="relu", bias=True)


def pooling_levels(in_channels: int, channels: Sequence[int], *, residual: bool) -> Iterator[nn.Module]:
    """Levels of an encoder: max pooling, then two convolution units (Cicek et al. 2016, arXiv:1606.06650).

    With `residual`, each level but the bottom ends in a residual block.
    """
    for level, out_channels in enumerate(channels):
        parts: list[nn.Module] = [nn.MaxPool3d(2)] if level else []
        for source in (in_channels, out_channels):
            parts.append(ConvUnit(source, out_channels, style=PUBLISHED))
        if residual and level < len(channels) - 1:
            parts.append(ResidualBlock(out_channels, out_channels, style=PUBLISHED))
        yield nn.Sequential(*parts)
        in_channels = out_channels


class TwoUnitUpBlock(nn.Module):
    """Transposed 2^3 convolution, concatenation with the skip, two convolution units."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, out_channels, 2, 2)
        self.conv = ConvUnit(2 * out_channels, out_channels, style=PUBLISHED)
        self.last = ConvUnit(out_channels, out_channels, style=PUBLISHED)

    def forward(self, x: Tensor, skip: Tensor, hook: Hook | None = None) -> Tensor:
        return self.last(self.conv(torch.cat((self.up(x), skip), dim=1), hook))


class PublishedNetwork(Backbone):
    """The plain U-Net of early multi-pass segmentation (github.com/DigiDxDoc/CT-Segmentation), or the network
    with several decoders (github.com/arunmm8335/3d-medical-segmentation). (B, in_channels, D, H, W) ->
    logits, see Backbone.

    several: False, one decoder: with 1 structure, width 32, 3 levels and 2 input channels (CT and the
    previous prediction) it has 1,357,505 parameters. True, a decoder per structure, attention between them
    and residual blocks: with 3 structures and 5 levels 2,765,067 parameters at width 8 and 44,181,027 at
    width 32.
    """

    def __init__(self, size: Size, *, several: bool):
        channels = [size.width * 2**level for level in range(size.levels)]
        super().__init__(size, channels[-2::-1], n_decoders=size.n_structures if several else 1)
        self.encoder = Encoder(pooling_levels(size.in_channels, channels, residual=several))
        self.decoders: Any = nn.ModuleList(
            nn.ModuleList(map(TwoUnitUpBlock, channels[:0:-1], channels[-2::-1]))
            for _ in range(self.n_decoders)
        )
        self.attention = (
            CrossDecoderAttention(size.width, size.n_structures, form="published", stride=1)
            if several
            else None
        )
        per_decoder = size.n_structures // self.n_decoders
        self.heads = nn.ModuleList(nn.Conv3d(size.width, per_decoder, 1) for _ in range(self.n_decoders))
        initialise(self)
        initialise_head(self.heads)

    def forward(self, ct: Tensor, hooks: Hooks | None = None) -> Output:
        hooks_of_decoders = self.checked(ct, hooks)
        encoded = self.encoder(ct)  # fine to coarse
        finest = []
        for decoder, of_levels in zip(self.decoders, hooks_of_decoders):
            *skips, x = encoded
            for up, hook in zip(decoder, of_levels):  # coarse to fine
                x = up(x, skips.pop(), hook)
            finest.append(x)
        if self.attention is not None:
            finest, _ = self.attention(finest)
        logits = torch.cat([head(x) for head, x in zip(self.heads, finest)], dim=1)
        logits = torch.cat((torch.zeros_like(logits[:, :1]), logits), dim=1)
        return {"logits": logits, "deep": []} if self.training else {"logits": logits}
