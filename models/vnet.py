"""V-Net (Milletari, Navab, Ahmadi 2016, arXiv:1606.04797): an encoder and a decoder whose stages learn residuals.

    image (tiled) -> stage --------------- concatenate -> stage -> output, logits
                     down -> stage ----- concatenate -> stage -> up
                             down -> stage ------------------ up

A stage is one to three convolutions of 5^3; what they return is added to what they read. Strided 2^3 convolutions go
down and double the channels, transposed ones go up. As in the paper, PReLU; InstanceNorm after each convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.blocks import (
    NORMS,
    Backbone,
    ConvUnit,
    Modulation,
    Modulations,
    OutputHead,
    Style,
    activation,
    choose,
    initialise,
    initialise_head,
    normalisation,
    size_multiple,
)
from models.unet import Decoder, Encoder

# Convolutions per stage of encoder and decoder, fine to coarse; levels further down repeat the last number.
# "paper": as published; "reference": the lighter form that most implementations share, 45.6 instead of 65.2 million.
STAGE_CONVS = {"paper": ((1, 2, 3, 3, 3), (1, 2, 3, 3)), "reference": ((1, 1, 2, 3, 2), (1, 1, 2, 2))}
KERNELS = (3, 5)


def tile_channels(x: Tensor, channels: int) -> Tensor:
    """The channels of x repeated in order until there are `channels`: (B, C, D, H, W) -> (B, channels, D, H, W).

    Where C is larger, the first `channels` of them.
    """
    if x.shape[1] == channels:
        return x
    return torch.cat([x] * math.ceil(channels / x.shape[1]), dim=1)[:, :channels]


class Stage(nn.Module):
    """Convolutions whose result is added to the stage's input. (B, in, D, H, W) -> (B, out, D, H, W).

    Only the first stage has fewer inputs than outputs: it adds the image, tiled to its channels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, count: int, *, kernel: int, residual: bool, style: Style
    ):
        super().__init__()
        sources = [in_channels] + [out_channels] * (count - 1)
        self.units = nn.ModuleList(
            ConvUnit(source, out_channels, kernel=kernel, style=style) for source in sources
        )
        self.channels = out_channels
        self.residual = residual

    def forward(self, x: Tensor, modulate: Modulation | None = None) -> Tensor:
        shortcut = tile_channels(x, self.channels) if self.residual else None
        last = len(self.units) - 1
        for number, unit in enumerate(self.units):
            x = unit(x, modulate if number == 0 else None, shortcut if number == last else None)
        return x


class UpStage(nn.Module):
    """Transposed 2^3 convolution, concatenation with the skip, a stage over both: twice the channels of the skip."""

    def __init__(
        self, in_channels: int, skip_channels: int, count: int, *, kernel: int, residual: bool, style: Style
    ):
        super().__init__()
        up = nn.ConvTranspose3d(in_channels, skip_channels, 2, 2, bias=style.bias)
        self.up = nn.Sequential(up, normalisation(style, skip_channels), activation(style, skip_channels))
        both = 2 * skip_channels
        self.stage = Stage(both, both, count, kernel=kernel, residual=residual, style=style)

    def forward(self, x: Tensor, skip: Tensor, modulate: Modulation | None = None) -> Tensor:
        return self.stage(torch.cat((self.up(x), skip), dim=1), modulate)


class VEncoder(Encoder):
    """A stage per level, from the second on behind a 2^3 convolution of stride 2."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: Sequence[int],
        counts: Sequence[int],
        kernel: int,
        residual: bool,
        style: Style,
    ):
        levels: list[nn.Module] = [
            Stage(in_channels, channels[0], counts[0], kernel=kernel, residual=residual, style=style)
        ]
        for above, here, count in zip(channels, channels[1:], counts[1:]):
            down = ConvUnit(above, here, kernel=2, stride=2, style=style)
            levels.append(
                nn.Sequential(down, Stage(here, here, count, kernel=kernel, residual=residual, style=style))
            )
        super().__init__(levels)


def _counts(given: Sequence[int], levels: int) -> list[int]:
    return [given[min(level, len(given) - 1)] for level in range(levels)]


def _channels(width: int, levels: int, max_channels: int) -> list[int]:
    """Channels of the encoder, fine to coarse. A decoder stage has twice those of its skip, and keeps to the limit too."""
    if max_channels < 2:
        raise ValueError(f"max_channels={max_channels} must be 2 or more.")
    doubled = [width * 2**level for level in range(levels)]
    return [min(c, max_channels // 2) for c in doubled[:-1]] + [min(doubled[-1], max_channels)]


class VNet(Backbone):
    """(B, in_channels, D, H, W) -> {"logits": (B, S+1, D, H, W)}; in training also "deep", finest first.

    Args:
        width, levels: 16 and 5 are the published size.
        max_channels: of any stage, those of the decoder (twice the skip) included.
        kernel: of the stages' convolutions, 5 as published, or 3 with a quarter of the parameters.
        stage_convs: one of STAGE_CONVS.
        residual: False leaves out the additions, for comparison.
        norm: one of NORMS.
        deep_supervision: False trains the finest level only, as published.
    """

    def __init__(
        self,
        *,
        n_structures: int,
        width: int,
        levels: int,
        in_channels: int = 1,
        max_channels: int = 320,
        kernel: int = 5,
        stage_convs: str = "reference",
        residual: bool = True,
        norm: str = "instance",
        deep_supervision: bool = True,
    ):
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"kernel={kernel} must be one of {', '.join(map(str, KERNELS))}.")
        down_counts, up_counts = STAGE_CONVS[choose("stage_convs", stage_convs, STAGE_CONVS)]
        style = Style(norm=choose("norm", norm, NORMS), activation="prelu")
        channels = _channels(width, levels, max_channels)
        self.in_channels = in_channels
        self.size_multiple = size_multiple(levels)
        self.decoder_channels = [2 * c for c in channels[-2::-1]]  # coarse to fine
        self.encoder = VEncoder(
            in_channels=in_channels,
            channels=channels,
            counts=_counts(down_counts, levels),
            kernel=kernel,
            residual=residual,
            style=style,
        )
        self.decoder = Decoder(
            UpStage(below, skip, count, kernel=kernel, residual=residual, style=style)
            for below, skip, count in zip(
                [channels[-1], *self.decoder_channels], channels[-2::-1], _counts(up_counts, levels - 1)[::-1]
            )
        )
        coarser = self.decoder_channels[1:-1] if deep_supervision else []
        self.heads = nn.ModuleList(nn.Conv3d(c, n_structures + 1, 1) for c in coarser)
        self.heads.append(OutputHead(self.decoder_channels[-1], n_structures + 1, kernel=kernel))
        initialise(self)
        initialise_head(self.heads)

    def features(self, ct: Tensor, modulations: Modulations | None = None) -> list[Tensor]:
        (of_decoder,) = self._checked(ct, modulations)
        return self.decoder(self.encoder(ct), of_decoder)
