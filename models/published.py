"""Networks as others published them, to compare with: their parameter counts are what they should be.

Max pooling, two convolution units per level, batch normalisation, ReLU, concatenation, no background head
(its logit is 0, so a sigmoid per structure), no deep supervision. Ours differ on purpose: see the decisions
in docs/decisions/.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.multi_decoder import CrossDecoderAttention


def unit(in_channels: int, out_channels: int) -> nn.Sequential:
    """3^3 convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 3, padding=1), nn.BatchNorm3d(out_channels), nn.ReLU()
    )


class Residual(nn.Module):
    """A unit, convolution and batch normalisation beside the identity, ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.inside = nn.Sequential(unit(channels, channels), *list(unit(channels, channels))[:2])

    def forward(self, x: Tensor) -> Tensor:
        return (self.inside(x) + x).relu()


def pooling_levels(in_channels: int, channels: Sequence[int], *, residual: bool) -> nn.ModuleList:
    """Levels of an encoder: max pooling, then two convolution units (Cicek et al. 2016, arXiv:1606.06650).

    With `residual`, each level but the bottom ends in a residual block.
    """
    levels = nn.ModuleList()
    for level, out_channels in enumerate(channels):
        parts: list[nn.Module] = [nn.MaxPool3d(2)] if level else []
        parts += [unit(in_channels, out_channels), unit(out_channels, out_channels)]
        if residual and level < len(channels) - 1:
            parts.append(Residual(out_channels))
        levels.append(nn.Sequential(*parts))
        in_channels = out_channels
    return levels


class TwoUnitUpBlock(nn.Module):
    """Transposed 2^3 convolution, concatenation with the skip, two convolution units."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, out_channels, 2, 2)
        self.units = nn.Sequential(unit(2 * out_channels, out_channels), unit(out_channels, out_channels))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.units(torch.cat((self.up(x), skip), dim=1))


class PublishedNetwork(nn.Module):
    """The plain U-Net of early multi-pass segmentation (github.com/DigiDxDoc/CT-Segmentation), or the network
    with several decoders (github.com/arunmm8335/3d-medical-segmentation). (B, in_channels, D, H, W) ->
    {"logits": (B, S+1, D, H, W)}.

    several: False, one decoder: with 1 structure, width 32, 3 levels and 2 input channels (CT and the
    previous prediction) it has 1,357,505 parameters. True, a decoder per structure, attention between them
    and residual blocks: with 3 structures and 5 levels 2,765,067 parameters at width 8 and 44,181,027 at
    width 32.
    """

    def __init__(self, n_structures: int, width: int, levels: int, *, in_channels: int = 1, several: bool):
        super().__init__()
        channels = [width * 2**level for level in range(levels)]
        n_decoders = n_structures if several else 1
        self.encoder = pooling_levels(in_channels, channels, residual=several)
        self.decoders = nn.ModuleList(
            nn.ModuleList(map(TwoUnitUpBlock, channels[:0:-1], channels[-2::-1])) for _ in range(n_decoders)
        )
        self.attention = (
            CrossDecoderAttention(width, n_structures, form="published", stride=1) if several else None
        )
        self.heads = nn.ModuleList(nn.Conv3d(width, n_structures // n_decoders, 1) for _ in range(n_decoders))

    def forward(self, ct: Tensor) -> dict[str, Tensor]:
        encoded = [ct]
        for level in self.encoder:
            encoded.append(level(encoded[-1]))
        finest = []
        for decoder in self.decoders:
            *skips, x = encoded[1:]
            for up in decoder.children():  # coarse to fine
                x = up(x, skips.pop())
            finest.append(x)
        if self.attention is not None:
            finest, _ = self.attention(finest)
        logits = torch.cat([head(x) for head, x in zip(self.heads, finest)], dim=1)
        return {"logits": torch.cat((torch.zeros_like(logits[:, :1]), logits), dim=1)}
