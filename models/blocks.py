"""What the networks share: their interface, normalisation, convolution units, residual blocks, starting
weights.

The blocks are laid out for a CPU with bfloat16 autocast and `channels_last_3d`. Measured there (AVX512-bf16,
one core, PyTorch 2.13), forward + backward in ms, batch 2, 16 channels of 64^3:

    3^3 convolution 16 -> 16   104 (32 -> 16: 204)      LeakyReLU                          5
    InstanceNorm below          15                      transposed 2^3 convolution        10
    nn.InstanceNorm3d           27                      nn.GroupNorm(16, 16)             244
    InstanceNorm + convolution 118                      var_mean, then scale and shift   238
    nn.InstanceNorm3d + same   146, for it loses channels_last and the convolution copies its input
    avg_pool3d to half          49, autocast sends it to float32; trilinear to half: 7
    nn.PReLU                   120                      PReLU below                       26
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAKY_SLOPE = 0.01
FULL_SIZE_CHANNELS = 8  # of a decoder at full size beside the image, with stem 2
Norm = Literal["instance", "group", "batch"]
Hook = Callable[[Tensor], Tensor]
Hooks = Sequence[Sequence[Hook]]  # [decoder][level, coarse to fine]
Output = dict[str, Any]  # "logits": Tensor; "deep": list of Tensor; "features": see Backbone


class Options:
    """Base of the options of a part: a field that is a Literal takes none but its words, see `choose`."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal:
                choose(name, getattr(self, name), get_args(kind))


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a network is. ValueError where that is no network.

    n_structures: S, without the background. width: channels at full size; they double with each level up to
    `max_channels`. levels: resolutions, each half the one before. in_channels: of the image. stem: 2, the
    image is halved before anything is computed: at full size there is only the image, which the last decoder
    level puts beside what it enlarges (see ImageLevel). That takes half the time of a network of stem 1.
    """

    n_structures: int
    width: int
    levels: int
    max_channels: int = 320
    in_channels: int = 1
    stem: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        choose("stem", self.stem, (1, 2))
        if self.n_structures < 1 or self.width < 1 or self.levels < 2:
            raise ValueError(
                f"n_structures={self.n_structures} and width={self.width} must be 1 or more, "
                f"levels={self.levels} 2 or more."
            )

    @property
    def multiple(self) -> int:
        """D, H and W must be multiples of this: each level after the first halves them."""
        return int(2 ** (self.levels - 1))

    def channels(self) -> list[int]:
        """Channels of each level of the encoder, fine to coarse."""
        channels = [min(self.width * 2**level, self.max_channels) for level in range(self.levels)]
        return channels if self.stem == 1 else [self.in_channels, *channels[1:]]


@dataclasses.dataclass(frozen=True)
class Style:
    """Normalisation and activation of a network."""

    norm: Norm = "instance"
    activation: Literal["leaky", "prelu"] = "leaky"


class InstanceNorm(nn.Module):
    """Zero mean and unit variance per sample and channel, then scale and shift. (B, C, D, H, W), any layout.

    On a CPU in bfloat16 it is computed as batch normalisation of one sample at a time: the same formula, by a
    kernel that keeps channels_last. In float32 that kernel's running sum loses digits, so there PyTorch's own
    form is used. A single voxel has no variance: it is only scaled and shifted.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:].numel() == 1:
            scale, shift = (part.view(-1, 1, 1, 1).to(x.dtype) for part in (self.weight, self.bias))
            return x * scale + shift
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            normalised = [
                functional.batch_norm(sample, None, None, self.weight, self.bias, True, 0.0, self.eps)
                for sample in x.split(1)
            ]
            return torch.cat(normalised) if len(normalised) > 1 else normalised[0]
        return functional.instance_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class PReLU(nn.Module):
    """x where positive, elsewhere a learned slope of its channel times x (He et al. 2015, arXiv:1502.01852).

    On a CPU in bfloat16 it is put together from two ReLUs: the same numbers, 5 times faster than PyTorch's
    kernel.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        slope = self.weight.to(x.dtype)
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            return x.relu() - slope.view(-1, 1, 1, 1) * (-x).relu()
        return functional.prelu(x, slope)


def normalisation(style: Style, channels: int) -> nn.Module:
    """The normalisation of a style. Groups: 8, or as many as divide the channels."""
    if style.norm == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    return nn.BatchNorm3d(channels) if style.norm == "batch" else InstanceNorm(channels)


def activation(style: Style, channels: int) -> nn.Module:
    """The activation of a style; in place where it can, which is safe after a normalisation or a sum."""
    return PReLU(channels) if style.activation == "prelu" else nn.LeakyReLU(LEAKY_SLOPE, inplace=True)


class ConvUnit(nn.Module):
    """Convolution, normalisation, (hook), (plus shortcut), activation.

    (B, in, D, H, W) -> (B, out, D/stride, ...). The hook is how techniques steer a decoder.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, style: Style
    ):
        super().__init__()
        # kernel 2 with stride 2 needs no padding: each voxel is read once; a bias would have no effect in
        # front of a normalisation
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, (kernel - 1) // 2, bias=False)
        self.norm = normalisation(style, out_channels)
        self.activation = activation(style, out_channels)

    def forward(self, x: Tensor, hook: Hook | None = None, shortcut: Tensor | None = None) -> Tensor:
        x = self.norm(self.conv(x))
        if hook is not None:
            x = hook(x)
        if shortcut is not None:
            x = x + shortcut.to(x.dtype)  # under autocast the image is float32, and so would be the sum
        return self.activation(x)


class ResidualBlock(nn.Module):
    """Two 3^3 convolutions beside a shortcut (He et al. 2016, arXiv:1512.03385).

    The shortcut is the identity, or where size or channels change, a convolution whose kernel equals its
    stride, so that every voxel counts.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, style: Style):
        super().__init__()
        self.first = ConvUnit(in_channels, out_channels, stride=stride, style=style)
        self.second = nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm = normalisation(style, out_channels)
        self.activation = activation(style, out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, stride, stride, bias=False),
                normalisation(style, out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.second(self.first(x))) + self.shortcut(x))


class ImageLevel(nn.Module):
    """The finest decoder level of a network of stem 2: transposed 2^3 convolution, the image beside it.

    (B, in, D/2, H/2, W/2) and the image (B, C, D, H, W) -> (B, FULL_SIZE_CHANNELS + C, D, H, W): little is
    computed at full size, but the head behind it sees every voxel as it is.
    """

    def __init__(self, in_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, FULL_SIZE_CHANNELS, 2, 2, bias=False)

    def forward(self, x: Tensor, image: Tensor, hook: Hook | None = None) -> Tensor:
        x = self.up(x)
        x = torch.cat((x, image.to(x.dtype)), dim=1)
        return x if hook is None else hook(x)


class OutputHead(nn.Sequential):
    """A large convolution to one channel per class, PReLU, then 1^3. (B, channels, ...) -> (B, n_classes,
    ...).

    Not normalised: a channel is a class here, and unit variance in each patch hides how much of a structure
    the patch holds. On a synthetic task, 45 to 99 % of the voxels of patches full of the structure came out
    wrong with an InstanceNorm here, none without. PReLU, because with LeakyReLU a small structure was never
    learned.
    """

    def __init__(self, channels: int, n_classes: int, *, kernel: int = 3):
        first = nn.Conv3d(channels, n_classes, kernel, padding=kernel // 2)
        super().__init__(first, PReLU(n_classes), nn.Conv3d(n_classes, n_classes, 1))


class ImageHead(nn.Conv3d):
    """The head behind an ImageLevel: one 3^3 convolution. (B, channels, ...) -> (B, n_classes, ...).

    What an OutputHead has beside it, PReLU and a 1^3 convolution, costs a tenth of a step at full size and
    gained nothing (docs/decisions/019-half-size.md).
    """

    def __init__(self, channels: int, n_classes: int):
        super().__init__(channels, n_classes, 3, padding=1)


class Encoder(nn.ModuleList):
    """Levels from full size to the bottom, each of which (but the first) halves the size itself."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of each level, fine to coarse: (B, C_l, D/2^l, H/2^l, W/2^l)."""
        features = []
        for level in self:
            x = level(x)
            features.append(x)
        return features


class Backbone(nn.Module):
    """What every network here is to its caller and to the techniques around it.

    forward(ct, hooks=None) takes (B, in_channels, D, H, W). `hooks[decoder][level]`, coarse to fine, is
    called once in that level (see ConvUnit): so a technique steers the decoders. It returns "logits" (B, S+1,
    D, H, W). In training also "deep", logits of coarser levels, finest first; and "features", of each decoder
    level, coarse to fine: (B, C, D, H, W), or a list of them where each structure has a decoder. There a
    technique puts heads.
    """

    inputs: tuple[str, ...] = ("image",)  # what forward takes, in order
    passes: int = 1
    encoder: Encoder
    decoder: nn.ModuleList  # coarse to fine: (what comes from below, skip, hook) -> features
    heads: nn.ModuleList  # coarse to fine; the last makes the logits

    def __init__(self, size: Size, decoder_channels: Sequence[int], *, n_decoders: int = 1):
        super().__init__()
        self.in_channels, self.size_multiple = size.in_channels, size.multiple
        self.decoder_channels = list(decoder_channels)  # coarse to fine
        self.n_decoders = n_decoders

    def forward(self, ct: Tensor, hooks: Hooks | None = None) -> Output:
        """One encoder and one decoder with skips; networks of another form have a forward of their own."""
        (of_levels,) = self.checked(ct, hooks)
        *skips, x = self.encoder(ct)  # fine to coarse
        features = []
        for up, hook in zip(self.decoder, of_levels):  # coarse to fine
            x = up(x, skips.pop(), hook)
            features.append(x)
        return self.predict(features)

    def checked(self, ct: Tensor, hooks: Hooks | None) -> Sequence[Sequence[Hook | None]]:
        """Refuse an input of the wrong shape (ValueError); the hooks of each decoder, None at each level
        without.
        """
        if ct.dim() != 5 or ct.shape[1] != self.in_channels:
            raise ValueError(
                f"The input has shape {tuple(ct.shape)}; expected (B, {self.in_channels}, D, H, W)."
            )
        for axis, size in zip("DHW", ct.shape[2:]):
            lower = size - size % self.size_multiple
            if not size or size != lower:
                upper = lower + self.size_multiple
                raise ValueError(
                    f"The input has {axis}={size}, but this network halves its input "
                    f"{self.size_multiple.bit_length() - 1} times and needs multiples of "
                    f"{self.size_multiple}; the nearest legal size is "
                    f"{f'{lower} or {upper}' if lower else upper}."
                )
        levels = len(self.decoder_channels)
        if hooks is None:
            return [[None] * levels] * self.n_decoders
        if [len(of_decoder) for of_decoder in hooks] != [levels] * self.n_decoders:
            raise ValueError(
                f"hooks must hold, for each of {self.n_decoders} decoders, {levels}: one per level."
            )
        return hooks

    def predict(self, features: Sequence[Any]) -> Output:
        """Output of the network from the features of its decoder levels, coarse to fine."""
        output: Output = {"logits": self.heads[-1](features[-1])}
        if self.training:  # the coarsest level does not predict
            output["deep"] = [head(x) for head, x in zip(self.heads[:-1], features[1:])][::-1]
            output["features"] = features
        return output


def choose(kind: str, name: Any, known: Iterable[Any]) -> Any:
    """`name` if it is one of `known`; otherwise ValueError with the nearest known word."""
    words = {str(word): word for word in known}
    if name not in words.values():
        near = difflib.get_close_matches(str(name).lower(), words, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise ValueError(f"There is no {kind} '{name}'. Choose one of {', '.join(words)}{hint}")
    return name


def initialise(network: nn.Module) -> None:
    """Starting weights: Kaiming for LeakyReLU; up-convolutions, which no activation follows, keep the
    variance.

    Biases are 0. Networks call it once at the end of their constructor, then `initialise_head` for their
    heads. On the meta device there is nothing to draw, and trying to would import torch's compiler (2 s).
    """
    for module in network.modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            continue
        if isinstance(module, nn.ConvTranspose3d):
            # kernel = stride: one tap per input channel
            nn.init.normal_(module.weight, std=module.in_channels**-0.5)
        elif isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def initialise_head(head: nn.Module) -> None:
    """Weights that start the logits with a deviation of about 0.5: every class is possible and the first loss
    tame.

    Much smaller is worse: a deviation of 0.01 per weight passes so little gradient to the network that on
    small synthetic tasks 200 steps at 2e-3 learned nothing, where this form found the structure (Dice 0.8 to
    1.0).
    """
    for module in head.modules():
        if not isinstance(module, nn.Conv3d) or module.weight.is_meta:
            continue
        if isinstance(module, ImageHead) or module.kernel_size == (1, 1, 1):
            nn.init.normal_(module.weight, std=0.5 * module.weight[0].numel() ** -0.5)
