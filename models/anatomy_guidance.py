"""Spatial FiLM from maps of the anatomy around, after github.com/seoooa/anatomical-guidance (SPADE, Park et
al. 2019, arXiv:1903.07291; FiLM, Perez et al. 2018, arXiv:1709.07871).

Signed distances to known organs say at every voxel where it lies in the body, which a patch cannot see. Per
decoder level they become a scale and a shift of the features at each voxel, zero at the start: guidance
begins as nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import Hook, Hooks, Options, Output, choose, initialise
from models.technique import Technique, chained

Form = Literal["film_spatial", "film_global", "concat_input", "spade", "segmap"]
SPADE_HIDDEN = 128
# A guide of K organs has 3 K channels: tanh(distance / tau), negative inside, of all organs for each tau, and
# last whether an organ is there. The far one tells the distance exactly, so that all other forms follow from
# it.
DELIVERED_TAU_MM = (20.0, 100.0)
SMOOTHING_MM = 2.0  # of masks ("segmap"): one voxel of the grid on which the maps are stored


@dataclasses.dataclass(frozen=True)
class GuideOptions(Options):
    """Options of the guidance.

    guide_hidden: channels between guide and scale/shift; 32 adds 104,384 parameters at K' = 21 and decoder
    channels 256/128/64/32. The form "spade" always has its published 128. guide_stride: 2 computes scale and
    shift of the finest level at half the size: an eighth of the work, and the maps are smooth. guide_levels:
    which decoder levels are guided: "all", "top" (the finest) or "bottom" (the coarsest). guide_tau_mm,
    guide_presence: see GuideForm. film_init: "zero", so that the guided network starts as the one inside bit
    for bit, or PyTorch's "default".
    """

    guide_hidden: int = 32
    guide_stride: Literal[1, 2] = 1
    guide_levels: Literal["all", "top", "bottom"] = "all"
    guide_tau_mm: Sequence[float] = DELIVERED_TAU_MM
    guide_presence: bool = True
    film_init: Literal["zero", "default"] = "zero"


class GuideForm:
    """What of the delivered guide the network reads, and as what.

    options: guide_tau_mm, the distances at which the maps bend, near to far; guide_presence, whether the
    channels that say so are read. masks: the organs themselves instead of distances to them, smoothed with a
    Gaussian of SMOOTHING_MM. For a flat surface that is a function of the distance alone; thin parts come out
    a little stronger than a filter makes them.
    """

    def __init__(self, delivered: int, options: GuideOptions = GuideOptions(), *, masks: bool = False):
        self.tau_mm, self.presence, self.masks = tuple(options.guide_tau_mm), options.guide_presence, masks
        self.unchanged = self.tau_mm == DELIVERED_TAU_MM and self.presence and not masks
        blocks = len(DELIVERED_TAU_MM) + 1
        if not self.tau_mm or min(self.tau_mm) <= 0:
            raise ValueError(f"guide_tau_mm={self.tau_mm} must be one or more distances above 0.")
        if not self.unchanged and delivered % blocks:
            raise ValueError(
                f"guide_channels={delivered} must be {blocks} per organ to be read in another form."
            )
        kept = (1 if masks else len(self.tau_mm)) + self.presence
        self.channels = delivered if self.unchanged else delivered // blocks * kept

    def __call__(self, guide: Tensor) -> Tensor:
        """(B, K', D, H, W) as delivered -> (B, `channels`, D, H, W), float32 where anything changes."""
        if self.unchanged:
            return guide
        *maps, there = guide.float().chunk(len(DELIVERED_TAU_MM) + 1, dim=1)
        distance_mm = DELIVERED_TAU_MM[-1] * torch.atanh(maps[-1])  # infinite where an organ is not there
        if self.masks:
            read = [0.5 * torch.erfc(distance_mm / (SMOOTHING_MM * math.sqrt(2)))]
        else:
            read = [torch.tanh(distance_mm / tau) for tau in self.tau_mm]
        return torch.cat((*read, there) if self.presence else read, dim=1)


class GuidedLevel(nn.Module):
    """One decoder level: guide (B, K', d, h, w) -> per decoder the hook x -> x * (1 + gamma) + beta.

    What the guide means is worked out once per level (`shared`); what follows from it, once per decoder.
    The guide of "film_global" is one voxel, where a larger kernel of `shared` would see only padding.
    """

    def __init__(
        self, guide_channels: int, channels: int, n_decoders: int, form: Form, options: GuideOptions
    ):
        super().__init__()
        hidden = SPADE_HIDDEN if form == "spade" else options.guide_hidden
        kernel_shared, kernel = (1 if form == "film_global" else 3), (3 if form == "spade" else 1)
        self.shared = nn.Conv3d(guide_channels, hidden, kernel_shared, padding=kernel_shared // 2)
        initialise(self.shared)
        self.gamma, self.beta = (
            nn.ModuleList(nn.Conv3d(hidden, channels, kernel, padding=kernel // 2) for _ in range(n_decoders))
            for _ in range(2)
        )
        if options.film_init == "zero":
            for parameter in (*self.gamma.parameters(), *self.beta.parameters()):
                nn.init.zeros_(parameter)

    def forward(self, guide: Tensor) -> list[Hook]:
        hidden = functional.silu(self.shared(guide))
        return [functools.partial(film, hidden, *convs) for convs in zip(self.gamma, self.beta)]


def film(hidden: Tensor, gamma: nn.Module, beta: nn.Module, x: Tensor) -> Tensor:
    """x * (1 + gamma) + beta; where these were computed at half the size of x, they are enlarged."""
    fields = []
    for conv in (gamma, beta):
        field = conv(hidden)
        if field.shape[2:] != x.shape[2:] and field.shape[2:].numel() > 1:
            # without it the CPU interpolates slowly
            field = field.contiguous(memory_format=torch.channels_last_3d)
            field = functional.interpolate(field, x.shape[2:], mode="trilinear")
        fields.append(field.to(x.dtype))
    scale, shift = fields
    return x * (1 + scale) + shift


class AnatomyGuidance(Technique):
    """A network that also reads `guide` (B, K', D, H, W): maps of about -1..1 on the voxels of the image.

    What of it is read is worked out here and not where guides are made, so that it is part of the network and
    its checkpoint: comparisons of guides share their data, and prediction cannot go wrong.

    Args:
        guide_channels: K'.
        form: "film_spatial", per voxel; "film_global", one scale and shift per channel from the mean of the
            guide; "concat_input", the guide beside the image as further input channels, no modulation;
            "spade", the published module with 3^3 convolutions (without its own normalisation: the level has
            one); "segmap", "film_spatial" of smoothed masks in place of distances.
    """

    def __init__(
        self,
        network: nn.Module,
        guide_channels: int,
        form: Form = "film_spatial",
        options: GuideOptions = GuideOptions(),
    ):
        choose("form of guidance", form, get_args(Form))
        if guide_channels < 1 or options.guide_hidden < 1:
            raise ValueError(
                f"guide_channels={guide_channels} and guide_hidden={options.guide_hidden} must be 1 or more."
            )
        self.read = GuideForm(guide_channels, options, masks=form == "segmap")
        concatenated = form == "concat_input"
        super().__init__(network, own_channels=self.read.channels if concatenated else 0)
        self.inputs = (*self.inputs, "guide")
        self.guide_channels, self.form, self.stride = guide_channels, form, options.guide_stride
        numbers = range(len(self.decoder_channels))  # 0 is the coarsest
        guided = {"all": numbers, "top": numbers[-1:], "bottom": numbers[:1]}[options.guide_levels]
        self.levels = nn.ModuleDict(
            {
                str(level): GuidedLevel(
                    self.read.channels, self.decoder_channels[level], self.n_decoders, form, options
                )
                for level in ([] if concatenated else guided)
            }
        )

    def forward(self, ct: Tensor, guide: Tensor, hooks: Hooks | None = None) -> Output:
        """Output of the network inside, steered by the guide, then by `hooks`."""
        expected = (ct.shape[0], self.guide_channels, *ct.shape[2:])
        if guide is None or tuple(guide.shape) != expected:
            found = "is missing" if guide is None else f"has shape {tuple(guide.shape)}"
            raise ValueError(f"The guide {found}; expected (B, K', D, H, W) = {expected}.")
        guide = self.read(guide).to(ct.dtype)
        if self.form == "concat_input":
            return self.network(torch.cat((ct, guide), dim=1), hooks)
        of_levels = [
            self.levels[str(level)](resized)
            if str(level) in self.levels
            else [nn.Identity()] * self.n_decoders
            for level, resized in enumerate(self._guide_of_each_level(guide))
        ]
        return self.network(ct, chained(list(zip(*of_levels)), hooks))

    def _guide_of_each_level(self, guide: Tensor) -> list[Tensor]:
        """The guide at the size of each decoder level, coarse to fine. Halving is the exact mean of 2^3
        voxels.
        """
        n_levels = len(self.decoder_channels)
        if self.form == "film_global":
            return [guide.mean((2, 3, 4), keepdim=True)] * n_levels
        halved = [guide]
        while len(halved) < max(n_levels, self.stride):
            halved.append(functional.interpolate(halved[-1], scale_factor=0.5, mode="trilinear"))
        return [halved[max(times, self.stride - 1)] for times in reversed(range(n_levels))]
