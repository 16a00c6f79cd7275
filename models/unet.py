"""The baseline: a residual encoder and a plain decoder with skips (Isensee et al. 2024, arXiv:2404.09556).

Deep supervision: during training every decoder level but the coarsest predicts too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from models.blocks import (
    ConvUnit,
    Modulation,
    ResidualBlock,
    Style,
    check_size,
    initialise,
    initialise_head,
    level_channels,
    size_multiple,
)

SMALL_BLOCKS = (1, 2, 2, 2, 2, 2)  # residual blocks per level; the large form of the paper is (1, 3, 4, 6, 6, 6)


class ResidualEncoder(nn.Module):
    """Residual blocks per level; the first block of each level but the first halves the size.

    The first block reads the image itself: a separate stem would add a third convolution at full size, where one
    costs as much as all of the third level.
    """

    def __init__(self, *, in_channels: int, channels: Sequence[int], blocks: Sequence[int], style: Style):
        super().__init__()
        if len(blocks) < len(channels) or min(blocks) < 1:
            raise ValueError(f"blocks={tuple(blocks)} must name at least 1 residual block for each of {len(channels)} levels.")
        levels = []
        for level, (out_channels, count) in enumerate(zip(channels, blocks)):
            first = ResidualBlock(in_channels, out_channels, stride=1 if level == 0 else 2, style=style)
            rest = [ResidualBlock(out_channels, out_channels, style=style) for _ in range(count - 1)]
            levels.append(nn.Sequential(first, *rest))
            in_channels = out_channels
        self.levels = nn.ModuleList(levels)

    def forward(self, ct: Tensor) -> list[Tensor]:
        """Features of each level, fine to coarse: (B, C_l, D/2^l, H/2^l, W/2^l)."""
        features = []
        for level in self.levels:
            ct = level(ct)
            features.append(ct)
        return features


class UpBlock(nn.Module):
    """Transposed 2^3 convolution, concatenation with the skip, one convolution unit."""

    def __init__(self, in_channels: int, out_channels: int, *, style: Style):
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, out_channels, 2, 2, bias=False)
        self.conv = ConvUnit(2 * out_channels, out_channels, style=style)

    def forward(self, x: Tensor, skip: Tensor, modulate: Modulation | None = None) -> Tensor:
        return self.conv(torch.cat((self.up(x), skip), dim=1), modulate)


class Decoder(nn.Module):
    """Up blocks from the bottom to full size; a block takes (features below, skip, modulation or None)."""

    def __init__(self, blocks: Iterable[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, encoded: Sequence[Tensor], modulations: Sequence[Modulation] | None = None) -> list[Tensor]:
        """Features of each decoder level, coarse to fine, from those of the encoder, fine to coarse."""
        *skips, x = encoded
        features = []
        for level, block in enumerate(self.blocks):
            x = block(x, skips.pop(), modulations[level] if modulations else None)
            features.append(x)
        return features


class UNet(nn.Module):
    """(B, in_channels, D, H, W) -> {"logits": (B, S+1, D, H, W)}; in training also "deep", finest first."""

    def __init__(
        self, *, n_structures: int, width: int, levels: int, in_channels: int = 1, max_channels: int = 320,
        blocks: Sequence[int] = SMALL_BLOCKS,
    ):
        super().__init__()
        style = Style()
        channels = level_channels(width, levels, max_channels)
        self.in_channels = in_channels
        self.size_multiple = size_multiple(levels)
        self.decoder_channels = channels[-2::-1]  # coarse to fine
        self.encoder = ResidualEncoder(in_channels=in_channels, channels=channels, blocks=blocks, style=style)
        self.decoder = Decoder(UpBlock(channels[i + 1], channels[i], style=style) for i in reversed(range(levels - 1)))
        # the coarsest decoder level predicts only where it is also the finest
        supervised = self.decoder_channels[1:] or self.decoder_channels
        self.heads = nn.ModuleList(nn.Conv3d(c, n_structures + 1, 1) for c in supervised)
        initialise(self)
        initialise_head(self.heads)

    def features(self, ct: Tensor, modulations: Sequence[Modulation] | None = None) -> list[Tensor]:
        """Decoder features, coarse to fine. `modulations`: one per decoder level, coarse to fine (see ConvUnit)."""
        check_size(ct, channels=self.in_channels, multiple=self.size_multiple)
        return self.decoder(self.encoder(ct), modulations)

    def predict(self, features: Sequence[Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Logits from what `features` returned."""
        output: dict[str, Tensor | list[Tensor]] = {"logits": self.heads[-1](features[-1])}
        if self.training:
            coarse_to_fine = zip(self.heads[:-1], features[1:])
            output["deep"] = [head(x) for head, x in coarse_to_fine][::-1]
        return output

    def forward(self, ct: Tensor) -> dict[str, Tensor | list[Tensor]]:
        return self.predict(self.features(ct))
