"""One shared encoder, one decoder per structure, and attention between the decoders.

Neighbouring organs share low-level appearance but differ in shape; at the end the decoders exchange what they found,
so that the place of one organ informs the others. After github.com/arunmm8335/3d-medical-segmentation, written anew
from its description; `parity=True` builds the published network with its own parameter count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import (
    ACTIVATIONS,
    Backbone,
    ConvUnit,
    Modulation,
    Modulations,
    Output,
    Style,
    choose,
    initialise,
    initialise_head,
    level_channels,
    size_multiple,
)
from models.unet import (
    DECODER_UNITS,
    PUBLISHED,
    SHORTCUT_WEIGHT,
    SMALL_BLOCKS,
    Decoder,
    Encoder,
    PoolingEncoder,
    ResidualEncoder,
    TwoUnitUpBlock,
)

ATTENTION = ("none", "voxel", "global_gate", "published")
DECODERS = ("per_structure", "shared")
OUTPUTS = ("softmax", "sigmoid")


class CrossDecoderAttention(nn.Module):
    """Lets the S decoders, as S tokens, read each other's features. List of S (B, C, D, H, W) -> the same.

    With q, k, v from 1^3 convolutions and d channels per head, decoder n receives sum_m a_nm v_m, where a_nm is

    - `voxel`: softmax_m(q_n(v) . k_m(v) / sqrt d) at each voxel v;
    - `global_gate`: softmax_m(mean_v q_n(v) . k_m(v) / sqrt d), one weight for all voxels;
    - `published`: the same with the sum over voxels. It grows with their number, so the softmax is one-hot and
      q and k get no gradient; kept to show that, in the published wiring: no residual, no identity, no stride.

    The other two compute at 1/`stride` of the size, add a learned identity of the decoder to q and k, and return
    F_n + gate * W(o_n) with gate = 0 at the start: attention begins as nothing and grows only where it helps.
    """

    def __init__(self, channels: int, n_decoders: int, *, form: str, stride: int):
        super().__init__()
        self.form = form
        self.stride = 1 if form == "published" else stride
        self.heads = math.gcd(4, channels)
        self.query = nn.Conv3d(channels, channels, 1)
        # a bias of the key adds the same to all logits of a softmax: without effect, published nevertheless
        self.key = nn.Conv3d(channels, channels, 1, bias=form == "published")
        self.value = nn.Conv3d(channels, channels, 1)
        self.output = nn.Conv3d(channels, channels, 1)
        if form != "published":
            self.identity = nn.Parameter(0.1 * torch.randn(n_decoders, channels))
            self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The attended features, and the weights a: (B, heads, S, S, voxels or 1), summing to 1 over axis 3."""
        n_decoders, batch = len(features), len(features[0])
        tokens = torch.cat([self._reduce(x) for x in features])  # (S B, C, d, h, w)
        size = tokens.shape[2:]
        tokens_of = (n_decoders, batch, self.heads, tokens.shape[1] // self.heads, size.numel())
        # float32: under autocast a bfloat16 sum of products would round the weights to two digits
        query, key, value = (
            conv(tokens).float().reshape(tokens_of) for conv in (self.query, self.key, self.value)
        )
        if self.form != "published":
            identity = self.identity.view(n_decoders, 1, *tokens_of[2:4], 1)
            query, key = query + identity, key + identity
        weights = self._weights(query, key)  # (S, S, B, heads, 1, voxels or 1)
        mixed = torch.stack([(row * value).sum(0) for row in weights])
        mixed = self.output(mixed.to(tokens.dtype).reshape(-1, tokens.shape[1], *size))
        if self.form == "published":
            attended = list(mixed.split(batch))
        else:
            mixed = self._enlarge(self.gate.to(mixed.dtype) * mixed, features[0])
            attended = [x + o for x, o in zip(features, mixed.split(batch))]
        return attended, weights.squeeze(4).permute(2, 3, 0, 1, 4)

    def _weights(self, query: Tensor, key: Tensor) -> Tensor:
        over = (3,) if self.form == "voxel" else (3, 4)
        logits = torch.stack([(q * key).sum(over, keepdim=True) for q in query]) / math.sqrt(query.shape[3])
        if self.form == "global_gate":
            logits = logits / query.shape[4]
        return logits.softmax(dim=1)

    def _reduce(self, x: Tensor) -> Tensor:
        # trilinear to half the size is the mean of 2^3 voxels, 7 times faster than avg_pool3d under CPU autocast
        size = [max(1, n // self.stride) for n in x.shape[2:]]
        return x if self.stride == 1 else functional.interpolate(x, size, mode="trilinear")

    def _enlarge(self, x: Tensor, like: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        x = x.contiguous(memory_format=torch.channels_last_3d)
        return functional.interpolate(x, like.shape[2:], mode="trilinear")


class LightUpBlock(nn.Module):
    """Transposed 2^3 convolution plus a 1^3 convolution of the skip, then one convolution unit.

    That is a concatenation whose 3^3 convolution is factored through 1^3: each structure still chooses from the skip
    what it needs, at half the cost. The finest level of the decoders is where a step spends its time.

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

    def forward(self, x: Tensor, skip: Tensor, modulate: Modulation | None = None) -> Tensor:
        x = self.up(x) + self.skip(skip)
        return self.conv(x, modulate, SHORTCUT_WEIGHT * x if self.shortcut else None)


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
        else:
            background = torch.stack([self.background(x) for x in features]).mean(
                0
            )  # = of the mean: it is linear
        return torch.cat([background, *logits], dim=1)


class MultiDecoder(Backbone):
    """(B, in_channels, D, H, W) -> {"logits": (B, S+1, D, H, W)}; in training also "deep", finest first.

    Args:
        decoders: "shared" is the control for "per_structure": one decoder, whose features all heads read, without
            attention, so much wider that the whole network has as many parameters.
        attention: one of ATTENTION. With a single structure there is nobody to listen to, and no attention is built.
        attention_stride: attention is computed at this fraction of the full size.
        attention_levels: 1, at the end of the decoders; 2, also one level before, from where they go on with what they heard.
        output: "softmax", the structures compete; "sigmoid", each is learned by itself, against a background whose
            logit is 0 (in training the key "independent" asks for that loss). A structure has a probability above 1/2
            where its logit is positive, so the softmax beside that 0 decides for the same structure as the sigmoids:
            whoever predicts need not know. As probabilities the two are the same only for a single structure.
        decoder_unit: "residual", each level learns what to add to what it reads (see LightUpBlock); "plain", it does not.
        parity: the published network: batch normalisation, ReLU, concatenation, no background head (its logit
            is 0, so a sigmoid per structure), no deep supervision. With attention "published" and 3 structures it
            has 2,765,067 parameters at width 8 and 44,181,027 at width 32.
    """

    def __init__(
        self,
        *,
        n_structures: int,
        width: int,
        levels: int,
        decoders: str = "per_structure",
        attention: str = "voxel",
        attention_stride: int = 2,
        attention_levels: int = 1,
        output: str = "softmax",
        in_channels: int = 1,
        max_channels: int = 320,
        blocks: Sequence[int] = SMALL_BLOCKS,
        decoder_unit: str = "residual",
        activation: str = "leaky",
        parity: bool = False,
    ):
        super().__init__()
        choose("attention", attention, ATTENTION)
        if attention_stride < 1:
            raise ValueError(f"attention_stride={attention_stride} must be 1 or more.")
        if not 1 <= attention_levels <= min(2, levels - 1):
            raise ValueError(
                f"attention_levels={attention_levels} must be 1, or 2 with levels=3 or more; levels={levels}."
            )
        self.in_channels = in_channels
        self.size_multiple = size_multiple(levels)
        self.n_structures = n_structures
        self.shared = choose("decoders", decoders, DECODERS) == "shared"
        self.n_decoders = 1 if self.shared else n_structures
        self.independent = choose("output", output, OUTPUTS) == "sigmoid"
        style = PUBLISHED if parity else Style(activation=choose("activation", activation, ACTIVATIONS))
        residual = choose("decoder_unit", decoder_unit, DECODER_UNITS) == "residual"
        self.encoder: Encoder
        if parity:
            channels = level_channels(width, levels, width * 2**levels)
            self.encoder = PoolingEncoder(
                in_channels=in_channels, channels=channels, residual=True, style=style
            )
            self.decoder_channels = channels[-2::-1]
        else:
            channels = level_channels(width, levels, max_channels)
            self.encoder = ResidualEncoder(
                in_channels=in_channels, channels=channels, blocks=blocks, style=style
            )
            # one structure needs fewer channels than the encoder of all: at most four times the width
            self.decoder_channels = [min(c, 4 * width) for c in channels[-2::-1]]
        if self.shared:
            self.decoder_channels = _as_large_as(n_structures, self.decoder_channels, channels, style)
        self.decoders: Any = nn.ModuleList(
            _decoder(self.decoder_channels, channels, style, residual) for _ in range(self.n_decoders)
        )
        finest = self.decoder_channels[-1]
        self.attention: nn.Module | None = None
        self.attention_before: nn.Module | None = None  # of the level before the finest
        if attention != "none" and self.n_decoders > 1:
            self.attention = CrossDecoderAttention(
                finest, n_structures, form=attention, stride=attention_stride
            )
            if attention_levels == 2:
                self.attention_before = CrossDecoderAttention(
                    self.decoder_channels[-2], n_structures, form=attention, stride=attention_stride
                )
        supervised = [finest] if parity else self.decoder_channels[1:] or [finest]
        background = not parity and not self.independent
        self.heads = nn.ModuleList(StructureHeads(c, n_structures, background=background) for c in supervised)
        initialise(self)
        initialise_head(self.heads)

    def features(self, ct: Tensor, modulations: Modulations | None = None) -> list[Any]:
        """Features of each decoder level, coarse to fine, each a list over structures, or a tensor of the shared decoder.

        Those of the finest level before the attention.
        """
        of_decoders = self._checked(ct, modulations)
        encoded = self.encoder(ct)
        if self.shared:
            return self.decoders[0](encoded, of_decoders[0])
        if self.attention_before is None:
            by_decoder = [decoder(encoded, m) for decoder, m in zip(self.decoders, of_decoders)]
            return [list(level) for level in zip(*by_decoder)]
        return self._in_step(encoded, of_decoders)

    def _in_step(
        self, encoded: Sequence[Tensor], of_decoders: Sequence[Sequence[Modulation] | None]
    ) -> list[list[Tensor]]:
        """The same, level by level: the decoders read each other before the finest one."""
        *skips, bottom = encoded
        reached, features = [bottom] * self.n_decoders, []
        for level in range(len(self.decoder_channels)):
            skip = skips.pop()
            reached = [
                decoder.blocks[level](x, skip, hooks[level] if hooks else None)
                for decoder, x, hooks in zip(self.decoders, reached, of_decoders)
            ]
            if self.attention_before is not None and level == len(self.decoder_channels) - 2:
                reached, _ = self.attention_before(reached)
            features.append(reached)
        return features

    def predict(self, features: Sequence[Any]) -> Output:
        """Logits from what `features` returned, after the decoders have read each other.

        The weights between decoders are there on request: `network.attention(network.features(ct)[-1])[1]`.
        """
        levels = [[level] * self.n_structures if self.shared else list(level) for level in features]
        if self.attention is not None:
            levels[-1], _ = self.attention(levels[-1])
        output = super().predict(levels)
        if self.training and self.independent:
            output["independent"] = True
        return output


def _decoder(channels: Sequence[int], skips: Sequence[int], style: Style, shortcut: bool) -> Decoder:
    """A decoder with `channels`, coarse to fine, on an encoder with channels `skips`, fine to coarse."""
    sizes = list(zip([skips[-1], *channels[:-1]], skips[-2::-1], channels))
    if style is PUBLISHED:
        return Decoder(TwoUnitUpBlock(*size, style=style) for size in sizes)
    return Decoder(LightUpBlock(*size, shortcut=shortcut, style=style) for size in sizes)


def _as_large_as(count: int, channels: Sequence[int], skips: Sequence[int], style: Style) -> list[int]:
    """Channels of a wider decoder that has, as nearly as they allow, the parameters of `count` decoders with `channels`."""

    def widened(coarsest: int) -> list[int]:
        return [round(c * coarsest / channels[0]) for c in channels]

    def parameters(coarsest: int) -> int:
        with torch.device("meta"):  # counted, not made
            return sum(p.numel() for p in _decoder(widened(coarsest), skips, style, False).parameters())

    wanted = count * parameters(channels[0])
    low, high = channels[0], count * channels[0]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if parameters(middle) > wanted else (middle, high)
    return widened(min((low, high), key=lambda coarsest: abs(parameters(coarsest) - wanted)))
