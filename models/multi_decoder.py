"""One shared encoder, one decoder per structure, and attention between the decoders.

Neighbouring organs share low-level appearance but differ in shape; at the end the decoders exchange what they
found, so that the place of one organ informs the others. After github.com/arunmm8335/3d-medical-segmentation,
written anew from its description.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import (
    FULL_SIZE_CHANNELS,
    Backbone,
    ConvUnit,
    Encoder,
    Hook,
    Hooks,
    Output,
    Size,
    Style,
    initialise,
    initialise_head,
)
from models.unet import SHORTCUT_WEIGHT, UNetOptions, residual_levels


@dataclasses.dataclass(frozen=True)
class MultiDecoderOptions(UNetOptions):
    """Options of the network with several decoders; those of encoder and decoder levels as of the U-Net.

    decoders: "shared" is the control for "per_structure": one decoder, whose features all heads read, without
    attention, so much wider that the whole network has as many parameters. attention: see
    CrossDecoderAttention; with a single structure there is nobody to listen to. attention_stride: it is
    computed at this fraction of the full size. attention_levels: 1, at the end of the decoders; 2, also one
    level before, from where they go on with what they heard. output: "softmax", the structures compete;
    "sigmoid", each is learned by itself, against a background whose logit is 0 (in training the key
    "independent" asks for that loss). A structure has a probability above 1/2 where its logit is positive, so
    the softmax beside that 0 decides for the same structure as the sigmoids: whoever predicts need not know.
    As probabilities the two are the same only for a single structure.
    """

    decoders: Literal["per_structure", "shared"] = "per_structure"
    attention: Literal["voxel", "global_gate", "published", "none"] = "voxel"
    attention_stride: int = 2
    attention_levels: Literal[1, 2] = 1
    output: Literal["softmax", "sigmoid"] = "softmax"


class CrossDecoderAttention(nn.Module):
    """Lets the S decoders, as S tokens, read each other's features. List of S (B, C, D, H, W) -> the same.

    Decoder n becomes F_n + gate * W(sum_m a_nm v_m), with gate = 0 at the start: attention begins as nothing
    and grows only where it helps. The weights a_nm are, with d channels per head and a learned identity of
    the decoder in q and k,

    - "voxel": softmax_m(q_n(v) . k_m(v) / sqrt d) at each voxel v;
    - "global_gate": softmax_m(mean_v q_n(v) . k_m(v) / sqrt d), one weight for all voxels.

    It is computed at 1/`stride` of the size.

    "published" is what others published, to compare with: softmax_m(sum_v q_n(v) . k_m(v) / sqrt d) at full
    size, no identity, and W(...) in place of F_n: what a decoder found itself is lost. The sums grow with the
    number of voxels, so the softmax is one-hot and query and key get no gradient
    (docs/decisions/005-attention-and-starting-weights.md).
    """

    def __init__(self, channels: int, n_decoders: int, *, form: str, stride: int):
        super().__init__()
        published = form == "published"
        self.form, self.stride, self.heads = form, 1 if published else stride, math.gcd(4, channels)
        self.query = nn.Conv3d(channels, channels, 1)
        # a bias of the key adds the same to all logits of a softmax: without effect
        self.key = nn.Conv3d(channels, channels, 1, bias=published)
        self.value = nn.Conv3d(channels, channels, 1)
        self.output = nn.Conv3d(channels, channels, 1)
        if not published:
            identity = torch.empty(n_decoders, channels)
            self.identity = nn.Parameter(identity if identity.is_meta else 0.1 * identity.normal_())
            self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The attended features, and the weights a: (B, heads, S, S, voxels or 1), sum 1 over axis 3."""
        decoders, batch, full_size = len(features), len(features[0]), features[0].shape[2:]
        size = [max(1, n // self.stride) for n in full_size]
        # trilinear to half the size is the mean of 2^3 voxels, 7 times faster than avg_pool3d under CPU
        # autocast
        small = torch.cat([resized(x, size) for x in features])
        # float32: under autocast a bfloat16 sum of products would round the weights to two digits
        query, key, value = (
            conv(small).float().reshape(decoders, batch, self.heads, -1, math.prod(size))
            for conv in (self.query, self.key, self.value)
        )
        if self.form != "published":
            identity = self.identity.view(decoders, 1, self.heads, -1, 1)
            query, key = query + identity, key + identity
        # one decoder after the other: all at once would take S times the memory
        over = (3,) if self.form == "voxel" else (3, 4)
        logits = torch.stack([(q * key).sum(over, keepdim=True) for q in query]) / math.sqrt(query.shape[3])
        if self.form == "global_gate":
            logits = logits / math.prod(size)
        weights = logits.softmax(dim=1)  # (S, S, B, heads, 1, voxels or 1)
        heard = torch.stack([(row * value).sum(0) for row in weights])
        heard = self.output(heard.to(small.dtype).reshape(*small.shape))
        shown = weights.squeeze(4).permute(2, 3, 0, 1, 4)
        if self.form == "published":
            return list(heard.split(batch)), shown
        heard = self.gate.to(heard.dtype) * heard
        heard = heard.contiguous(memory_format=torch.channels_last_3d)  # or the CPU interpolates slowly
        return [x + o for x, o in zip(features, resized(heard, full_size).split(batch))], shown


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Trilinear to `size`, where it has another."""
    size = list(size)
    return x if list(x.shape[2:]) == size else functional.interpolate(x, size, mode="trilinear")


class LightUpBlock(nn.Module):
    """Transposed 2^3 convolution plus a 1^3 convolution of the skip, then one convolution unit.

    That is a concatenation whose 3^3 convolution is factored through 1^3: each structure still chooses from
    the skip what it needs, at half the cost. The finest level of the decoders is where a step spends its
    time.

    shortcut: that sum is added to what the unit makes of it, see UpBlock.
    """

    def __init__(
        self, in_channels: int, skip_channels: int, out_channels: int, *, shortcut: bool, style: Style
    ):
        super().__init__()
        self.shortcut = shortcut
        self.up = nn.ConvTranspose3d(in_channels, out_channels, 2, 2, bias=False)
        self.skip = nn.Conv3d(skip_channels, out_channels, 1, bias=False)
        self.conv = ConvUnit(out_channels, out_channels, style=style)

    def forward(self, x: Tensor, skip: Tensor, hook: Hook | None = None) -> Tensor:
        x = self.up(x) + self.skip(skip)
        return self.conv(x, hook, SHORTCUT_WEIGHT * x if self.shortcut else None)


class StructureHeads(nn.Module):
    """Logits from one feature map per structure. List of S (B, C, D, H, W) -> (B, S+1, D, H, W).

    The background sees the mean of all decoders. Without a background head its logit is 0.
    """

    def __init__(self, channels: int, n_structures: int, *, background: bool = True):
        super().__init__()
        self.background = nn.Conv3d(channels, 1, 1) if background else None
        self.structures = nn.ModuleList(nn.Conv3d(channels, 1, 1) for _ in range(n_structures))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        logits = [head(x) for head, x in zip(self.structures, features)]
        if self.background is None:
            background = torch.zeros_like(logits[0])
        else:  # the mean of the logits is the logit of the mean: it is linear
            background = torch.stack([self.background(x) for x in features]).mean(0)
        return torch.cat([background, *logits], dim=1)


class MultiDecoder(Backbone):
    """(B, in_channels, D, H, W) -> logits, see Backbone. The features are those before the last attention."""

    def __init__(self, size: Size, options: MultiDecoderOptions):
        n_structures, stride = size.n_structures, options.attention_stride
        if stride < 1:
            raise ValueError(f"attention_stride={stride} must be 1 or more.")
        if options.attention_levels >= size.levels:
            raise ValueError(
                f"attention_levels={options.attention_levels} must be 1, or 2 with levels=3 or more; "
                f"levels={size.levels}."
            )
        style = Style(activation=options.activation)
        channels = size.channels()
        # one structure needs fewer channels than the encoder of all: at most four times the width
        of_decoder = [min(c, 4 * size.width) for c in channels[-2::-1]]
        if size.stem == 2:
            of_decoder[-1] = FULL_SIZE_CHANNELS
        if options.decoders == "shared":
            of_decoder = _as_large_as(n_structures, of_decoder, channels, style)
        super().__init__(size, of_decoder, n_decoders=1 if options.decoders == "shared" else n_structures)
        self.n_structures, self.independent = n_structures, options.output == "sigmoid"
        self.encoder = Encoder(residual_levels(size, options.blocks, style))
        self.decoders: Any = nn.ModuleList(
            _decoder(of_decoder, channels, style, options.decoder_unit == "residual")
            for _ in range(self.n_decoders)
        )
        self.attention: nn.Module | None = None
        self.attention_before: nn.Module | None = None  # of the level before the finest
        if options.attention != "none" and self.n_decoders > 1:
            self.attention, *before = (
                CrossDecoderAttention(c, n_structures, form=options.attention, stride=stride)
                for c in of_decoder[: -1 - options.attention_levels : -1]
            )
            self.attention_before = before[0] if before else None
        self.heads = nn.ModuleList(
            StructureHeads(c, n_structures, background=not self.independent)
            for c in of_decoder[1:] or of_decoder
        )
        initialise(self)
        initialise_head(self.heads)

    def forward(self, ct: Tensor, hooks: Hooks | None = None) -> Output:
        hooks_of_levels = list(zip(*self.checked(ct, hooks)))
        *skips, bottom = self.encoder(ct)  # fine to coarse
        features, reached = [], [bottom] * self.n_decoders
        for level, of_decoders in enumerate(hooks_of_levels):  # coarse to fine
            skip = skips.pop()
            reached = [
                decoder[level](x, skip, hook) for decoder, x, hook in zip(self.decoders, reached, of_decoders)
            ]
            if self.attention_before is not None and level == len(hooks_of_levels) - 2:
                reached, _ = self.attention_before(reached)
            features.append(reached)
        return self.predict(features)

    def predict(self, features: Sequence[list[Tensor]]) -> Output:
        """Output from the features of each level and decoder, after the decoders have read each other.

        The weights between decoders are there on request: `network.attention(features[-1])[1]`.
        """
        heard = [level * (self.n_structures // self.n_decoders) for level in features]
        if self.attention is not None:
            heard[-1], _ = self.attention(heard[-1])
        output = super().predict(heard)
        if self.training:
            output["features"] = features
            if self.independent:
                output["independent"] = True
        return output


def _decoder(channels: Sequence[int], skips: Sequence[int], style: Style, shortcut: bool) -> nn.ModuleList:
    """A decoder with `channels`, coarse to fine, on an encoder with channels `skips`, fine to coarse."""
    sizes = zip([skips[-1], *channels[:-1]], skips[-2::-1], channels)
    return nn.ModuleList(LightUpBlock(*size, shortcut=shortcut, style=style) for size in sizes)


def _as_large_as(count: int, channels: Sequence[int], skips: Sequence[int], style: Style) -> list[int]:
    """Channels of a wider decoder with, as nearly as they allow, the parameters of `count` decoders with
    `channels`.
    """

    def widened(coarsest: int) -> list[int]:
        return [round(c * coarsest / channels[0]) for c in channels]

    def parameters(coarsest: int) -> int:
        with torch.device("meta"):  # counted, not made
            return sum(p.numel() for p in _decoder(widened(coarsest), skips, style, False).parameters())

    wanted = count * parameters(channels[0])
    candidates = range(channels[0], count * channels[0] + 1)
    first_larger = bisect.bisect_left(candidates, wanted, key=parameters)
    nearest = candidates[max(0, first_larger - 1) : first_larger + 1]
    return widened(min(nearest, key=lambda coarsest: abs(parameters(coarsest) - wanted)))
