"""The baseline: a residual encoder (Isensee et al. 2024, arXiv:2404.09556) and a light decoder with skips.

    image -> blocks ------------------------ up block -> head, logits
             half, blocks -------- up block -> head, deep
                     half, blocks -> up block

Deep supervision: during training every decoder level but the coarsest predicts too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.blocks import (
    FULL_SIZE_CHANNELS,
    Backbone,
    ConvUnit,
    Encoder,
    Hook,
    ImageHead,
    ImageLevel,
    Options,
    OutputHead,
    ResidualBlock,
    Size,
    Style,
    initialise,
    initialise_head,
)

# residual blocks per level; the large form of the paper is (1, 3, 4, 6, 6, 6)
SMALL_BLOCKS = (1, 2, 2, 2, 2, 2, 2)
SHORTCUT_WEIGHT = 0.5**0.5  # of a sum of two, so that it varies as much as each of them


@dataclasses.dataclass(frozen=True)
class UNetOptions(Options):
    """Options of the U-Net.

    blocks: residual blocks per level of the encoder; empty, SMALL_BLOCKS. decoder_unit: "residual", each
    decoder level learns what to add to what it reads (see UpBlock) and a 3^3 convolution comes before the
    finest logits; "plain", as in the paper. activation: of encoder and decoder.
    """

    blocks: Sequence[int] = ()
    decoder_unit: Literal["residual", "plain"] = "residual"
    activation: Literal["leaky", "prelu"] = "leaky"


def residual_levels(size: Size, blocks: Sequence[int], style: Style) -> Iterator[nn.Module]:
    """Levels of an encoder: residual blocks, of which the first of each level but the first halves the size.

    The first block reads the image itself: a separate stem would add a third convolution at full size, where
    one costs as much as all of the third level. With stem 2 the first level is the image.
    """
    in_channels, channels, blocks = size.in_channels, size.channels(), blocks or SMALL_BLOCKS
    if len(blocks) < len(channels) or min(blocks) < 1:
        raise ValueError(
            f"blocks={tuple(blocks)} must name at least 1 residual block for each of {len(channels)} levels."
        )
    for level, (out_channels, count) in enumerate(zip(channels, blocks)):
        if level == 0 and size.stem == 2:
            yield nn.Identity()
            continue
        first = ResidualBlock(in_channels, out_channels, stride=1 if level == 0 else 2, style=style)
        rest = [ResidualBlock(out_channels, out_channels, style=style) for _ in range(count - 1)]
        yield nn.Sequential(first, *rest)
        in_channels = out_channels


class UpBlock(nn.Module):
    """Transposed 2^3 convolution, concatenation with the skip, one convolution unit.

    shortcut: the sum of both is added to what the unit makes of them, as in a residual block. It has no
    parameters and costs next to nothing, and the decoder learns several times faster at first
    (docs/decisions/003-training.md).
    """

    def __init__(self, in_channels: int, out_channels: int, *, shortcut: bool, style: Style):
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, out_channels, 2, 2, bias=False)
        self.conv = ConvUnit(2 * out_channels, out_channels, style=style)
        self.shortcut = shortcut

    def forward(self, x: Tensor, skip: Tensor, hook: Hook | None = None) -> Tensor:
        x = self.up(x)
        shortcut = SHORTCUT_WEIGHT * (x + skip) if self.shortcut else None
        return self.conv(torch.cat((x, skip), dim=1), hook, shortcut)


class UNet(Backbone):
    """(B, in_channels, D, H, W) -> logits, see Backbone."""

    def __init__(self, size: Size, options: UNetOptions):
        channels, halved = size.channels(), size.stem == 2
        computed = channels[-2:0:-1] if halved else channels[-2::-1]  # of the decoder, coarse to fine
        super().__init__(size, [*computed, FULL_SIZE_CHANNELS + size.in_channels] if halved else computed)
        style = Style(activation=options.activation)
        residual = options.decoder_unit == "residual"
        self.encoder = Encoder(residual_levels(size, options.blocks, style))
        self.decoder = nn.ModuleList(
            UpBlock(below, here, shortcut=residual, style=style)
            for below, here in zip(channels[:0:-1], computed)
        )
        # the coarsest decoder level predicts only where it is also the finest
        supervised = self.decoder_channels[1:] or self.decoder_channels
        self.heads = nn.ModuleList(nn.Conv3d(c, size.n_structures + 1, 1) for c in supervised)
        if halved:
            self.decoder.append(ImageLevel(channels[1]))
            self.heads[-1] = ImageHead(supervised[-1], size.n_structures + 1)
        elif residual:
            self.heads[-1] = OutputHead(size.width, size.n_structures + 1)
        initialise(self)
        initialise_head(self.heads)
