"""The baseline: a residual encoder (Isensee et al. 2024, arXiv:2404.09556) and a light decoder with skips.

Deep supervision: during training every decoder level but the coarsest predicts too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from models.blocks import (
    ACTIVATIONS,
    Backbone,
    ConvUnit,
    Modulation,
    Modulations,
    OutputHead,
    ResidualBlock,
    Style,
    choose,
    initialise,
    initialise_head,
    level_channels,
    size_multiple,
)

SMALL_BLOCKS = (
    1,
    2,
    2,
    2,
    2,
    2,
)  # residual blocks per level; the large form of the paper is (1, 3, 4, 6, 6, 6)
SHORTCUT_WEIGHT = 0.5**0.5  # of a sum of two, so that it varies as much as each of them
DECODER_UNITS = ("residual", "plain")
PUBLISHED = Style(norm="batch", activation="relu", bias=True)  # for parity with older networks


class Encoder(nn.Module):
    """Levels from full size to the bottom, each of which (but the first) halves the size itself."""

    def __init__(self, levels: Iterable[nn.Module]):
        super().__init__()
        self.levels = nn.ModuleList(levels)

    def forward(self, ct: Tensor) -> list[Tensor]:
        """Features of each level, fine to coarse: (B, C_l, D/2^l, H/2^l, W/2^l)."""
        features = []
        for level in self.levels:
            ct = level(ct)
            features.append(ct)
        return features


class ResidualEncoder(Encoder):
    """Residual blocks per level; the first block of each level but the first halves the size.

    The first block reads the image itself: a separate stem would add a third convolution at full size, where one
    costs as much as all of the third level.
    """

    def __init__(self, *, in_channels: int, channels: Sequence[int], blocks: Sequence[int], style: Style):
        if len(blocks) < len(channels) or min(blocks) < 1:
            raise ValueError(
                f"blocks={tuple(blocks)} must name at least 1 residual block for each of {len(channels)} levels."
            )
        levels = []
        for level, (out_channels, count) in enumerate(zip(channels, blocks)):
            first = ResidualBlock(in_channels, out_channels, stride=1 if level == 0 else 2, style=style)
            rest = [ResidualBlock(out_channels, out_channels, style=style) for _ in range(count - 1)]
            levels.append(nn.Sequential(first, *rest))
            in_channels = out_channels
        super().__init__(levels)


class PoolingEncoder(Encoder):
    """Max pooling, then two convolution units per level (Cicek et al. 2016, arXiv:1606.06650).

    With `residual`, each level but the bottom ends in a residual block.
    """

    def __init__(self, *, in_channels: int, channels: Sequence[int], residual: bool, style: Style):
        levels = []
        for level, out_channels in enumerate(channels):
            parts: list[nn.Module] = [nn.MaxPool3d(2)] if level else []
            parts += [
                ConvUnit(in_channels, out_channels, style=style),
                ConvUnit(out_channels, out_channels, style=style),
            ]
            if residual and level < len(channels) - 1:
                parts.append(ResidualBlock(out_channels, out_channels, style=style))
            levels.append(nn.Sequential(*parts))
            in_channels = out_channels
        super().__init__(levels)


class UpBlock(nn.Module):
    """Transposed 2^3 convolution, concatenation with the skip, one convolution unit.

    shortcut: the sum of both is added to what the unit makes of them, as in a residual block. It has no parameters and
    costs next to nothing, and the decoder learns several times faster at first (docs/decisions/003-training.md).
    """

    def __init__(self, in_channels: int, out_channels: int, *, shortcut: bool, style: Style):
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, out_channels, 2, 2, bias=False)
        self.conv = ConvUnit(2 * out_channels, out_channels, style=style)
        self.shortcut = shortcut

    def forward(self, x: Tensor, skip: Tensor, modulate: Modulation | None = None) -> Tensor:
        x = self.up(x)
        return self.conv(
            torch.cat((x, skip), dim=1), modulate, SHORTCUT_WEIGHT * (x + skip) if self.shortcut else None
        )


class TwoUnitUpBlock(nn.Module):
    """Transposed 2^3 convolution, concatenation with the skip, two convolution units."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, *, style: Style):
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, out_channels, 2, 2)
        self.conv = ConvUnit(out_channels + skip_channels, out_channels, style=style)
        self.last = ConvUnit(out_channels, out_channels, style=style)

    def forward(self, x: Tensor, skip: Tensor, modulate: Modulation | None = None) -> Tensor:
        return self.last(self.conv(torch.cat((self.up(x), skip), dim=1), modulate))


class Decoder(nn.Module):
    """Up blocks from the bottom to full size; a block takes (features below, skip, modulation or None)."""

    def __init__(self, blocks: Iterable[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self, encoded: Sequence[Tensor], modulations: Sequence[Modulation] | None = None
    ) -> list[Tensor]:
        """Features of each decoder level, coarse to fine, from those of the encoder, fine to coarse."""
        *skips, x = encoded
        features = []
        for level, block in enumerate(self.blocks):
            x = block(x, skips.pop(), modulations[level] if modulations else None)
            features.append(x)
        return features


class ZeroBackground(nn.Module):
    """Logits of a network that predicts only the structures: the background's is 0. (B, C, ...) -> (B, S+1, ...).

    With one structure the softmax over both is the sigmoid of its logit.
    """

    def __init__(self, channels: int, n_structures: int):
        super().__init__()
        self.structures = nn.Conv3d(channels, n_structures, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.structures(x)
        return torch.cat((torch.zeros_like(logits[:, :1]), logits), dim=1)


class UNet(Backbone):
    """(B, in_channels, D, H, W) -> {"logits": (B, S+1, D, H, W)}; in training also "deep", finest first.

    Args:
        decoder_unit: "residual", each level learns what to add to what it reads (see UpBlock) and a 3^3 convolution comes before
            the finest logits; "plain", as in the paper.
        parity: the plain network of early multi-pass segmentation (github.com/DigiDxDoc/CT-Segmentation): max
            pooling, two units per level, batch normalisation, ReLU, no background head (its logit is 0), no deep
            supervision; `max_channels` and `blocks` have no effect. With 1 structure, width 32, 3 levels and
            2 input channels (CT and the previous prediction) it has 1,357,505 parameters.
    """

    def __init__(
        self,
        *,
        n_structures: int,
        width: int,
        levels: int,
        in_channels: int = 1,
        max_channels: int = 320,
        blocks: Sequence[int] = SMALL_BLOCKS,
        decoder_unit: str = "residual",
        activation: str = "leaky",
        parity: bool = False,
    ):
        super().__init__()
        channels = level_channels(width, levels, width * 2**levels if parity else max_channels)
        self.in_channels = in_channels
        self.size_multiple = size_multiple(levels)
        self.decoder_channels = channels[-2::-1]  # coarse to fine
        below_and_here = list(zip(channels[:0:-1], self.decoder_channels))
        style = Style(activation=choose("activation", activation, ACTIVATIONS))
        residual = choose("decoder_unit", decoder_unit, DECODER_UNITS) == "residual"
        self.encoder: Encoder
        if parity:
            self.encoder = PoolingEncoder(
                in_channels=in_channels, channels=channels, residual=False, style=PUBLISHED
            )
            self.decoder = Decoder(
                TwoUnitUpBlock(below, c, c, style=PUBLISHED) for below, c in below_and_here
            )
            self.heads = nn.ModuleList([ZeroBackground(width, n_structures)])
        else:
            self.encoder = ResidualEncoder(
                in_channels=in_channels, channels=channels, blocks=blocks, style=style
            )
            self.decoder = Decoder(
                UpBlock(below, c, shortcut=residual, style=style) for below, c in below_and_here
            )
            # the coarsest decoder level predicts only where it is also the finest
            supervised = self.decoder_channels[1:] or self.decoder_channels
            self.heads = nn.ModuleList(nn.Conv3d(c, n_structures + 1, 1) for c in supervised)
            if residual:
                self.heads[-1] = OutputHead(width, n_structures + 1)
        initialise(self)
        initialise_head(self.heads)

    def features(self, ct: Tensor, modulations: Modulations | None = None) -> list[Tensor]:
        (of_decoder,) = self._checked(ct, modulations)
        return self.decoder(self.encoder(ct), of_decoder)
