"""V-Net (Milletari, Navab, Ahmadi 2016, arXiv:1606.04797): an encoder and a decoder whose stages learn
residuals.

    image (tiled) -> stage --------------- concatenate -> stage -> output, logits
                     down -> stage ----- concatenate -> stage -> up
                             down -> stage ------------------ up

A stage is one to three convolutions of 5^3; what they return is added to what they read. Strided 2^3
convolutions go down and double the channels, transposed ones go up. As in the paper, PReLU; InstanceNorm
after each convolution.
"""

from __future__ import annotations

import dataclasses
import math
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
    Norm,
    Options,
    OutputHead,
    Size,
    Style,
    activation,
    initialise,
    initialise_head,
    normalisation,
)

# Convolutions per stage of encoder and decoder, fine to coarse; levels further down repeat the last number.
# "paper": as published; "reference": the lighter form that most implementations share, 45.6 instead of 65.2
# million.
STAGE_CONVS = {"paper": ((1, 2, 3, 3, 3), (1, 2, 3, 3)), "reference": ((1, 1, 2, 3, 2), (1, 1, 2, 2))}


@dataclasses.dataclass(frozen=True)
class VNetOptions(Options):
    """Options of the V-Net.

    kernel: of the stages' convolutions, 5 as published, or 3 with a quarter of the parameters. stage_convs:
    see STAGE_CONVS. residual: False leaves out the additions, for comparison. deep_supervision: False trains
    the finest level only, as published.
    """

    kernel: Literal[3, 5] = 5
    stage_convs: Literal["reference", "paper"] = "reference"
    residual: bool = True
    norm: Norm = "instance"
    deep_supervision: bool = True


def tile_channels(x: Tensor, channels: int) -> Tensor:
    """The channels of x repeated in order until there are `channels`: (B, C, D, H, W) -> (B, channels, D, H,
    W).

    Where C is larger, the first `channels` of them.
    """
    if x.shape[1] == channels:
        return x
    return torch.cat([x] * math.ceil(channels / x.shape[1]), dim=1)[:, :channels]


class Stage(nn.Module):
    """`count` convolutions whose result is added to the stage's input. (B, in, D, H, W) -> (B, out, D, H, W).

    Only the first stage has fewer inputs than outputs: it adds the image, tiled to its channels.
    """

    def __init__(self, in_channels: int, out_channels: int, count: int, options: VNetOptions):
        super().__init__()
        sources = [in_channels] + [out_channels] * (count - 1)
        self.units = nn.ModuleList(
            ConvUnit(source, out_channels, kernel=options.kernel, style=style_of(options))
            for source in sources
        )
        self.channels = out_channels
        self.residual = options.residual

    def forward(self, x: Tensor, hook: Hook | None = None) -> Tensor:
        shortcut = tile_channels(x, self.channels) if self.residual else None
        last = len(self.units) - 1
        for number, unit in enumerate(self.units):
            x = unit(x, hook if number == 0 else None, shortcut if number == last else None)
        return x


class UpStage(nn.Module):
    """Transposed 2^3 convolution, concatenation with the skip, a stage over both: twice the channels of the
    skip.
    """

    def __init__(self, in_channels: int, skip_channels: int, count: int, options: VNetOptions):
        super().__init__()
        style = style_of(options)
        up = nn.ConvTranspose3d(in_channels, skip_channels, 2, 2, bias=False)
        self.up = nn.Sequential(up, normalisation(style, skip_channels), activation(style, skip_channels))
        self.stage = Stage(2 * skip_channels, 2 * skip_channels, count, options)

    def forward(self, x: Tensor, skip: Tensor, hook: Hook | None = None) -> Tensor:
        return self.stage(torch.cat((self.up(x), skip), dim=1), hook)


def style_of(options: VNetOptions) -> Style:
    """Normalisation and activation of all stages."""
    return Style(norm=options.norm, activation="prelu")


class VNet(Backbone):
    """(B, in_channels, D, H, W) -> logits, see Backbone. Width 16 and 5 levels are the published size.

    No stage has more than `max_channels`, those of the decoder (twice the skip) included.
    """

    def __init__(self, size: Size, options: VNetOptions):
        if size.max_channels < 2:
            raise ValueError(f"max_channels={size.max_channels} must be 2 or more.")
        *upper, bottom = size.channels()
        halved, finest = size.stem == 2, upper[0]
        upper = [min(c, size.max_channels // 2) for c in upper]
        skips = upper[:0:-1] if halved else upper[::-1]  # of the stages of the decoder, coarse to fine
        of_decoder = [2 * c for c in skips]
        super().__init__(size, [*of_decoder, FULL_SIZE_CHANNELS + finest] if halved else of_decoder)
        down_counts, up_counts = (
            [*counts, *[counts[-1]] * size.levels] for counts in STAGE_CONVS[options.stage_convs]
        )
        first = nn.Identity() if halved else Stage(size.in_channels, upper[0], down_counts[0], options)
        stages: list[nn.Module] = [first]
        sources = [finest, *upper[1:]] if halved else upper
        for above, here, count in zip(sources, [*upper[1:], bottom], down_counts[1:]):
            down = ConvUnit(above, here, kernel=2, stride=2, style=style_of(options))
            stages.append(nn.Sequential(down, Stage(here, here, count, options)))
        self.encoder = Encoder(stages)
        self.decoder = nn.ModuleList(
            UpStage(below, skip, count, options)
            for below, skip, count in zip([bottom, *of_decoder], skips, reversed(up_counts[: len(upper)]))
        )
        coarser = self.decoder_channels[1:-1] if options.deep_supervision else []
        self.heads = nn.ModuleList(nn.Conv3d(c, size.n_structures + 1, 1) for c in coarser)
        if halved:
            self.decoder.append(ImageLevel([bottom, *of_decoder][-1]))
            self.heads.append(ImageHead(self.decoder_channels[-1], size.n_structures + 1))
        else:
            head = OutputHead(self.decoder_channels[-1], size.n_structures + 1, kernel=options.kernel)
            self.heads.append(head)
        initialise(self)
        initialise_head(self.heads)
