"""The networks, by name: a backbone, and techniques around it.

A network takes (B, 1, D, H, W), and a guide (B, K', D, H, W) if its `inputs` say so, and returns {"logits": (B, S+1, D,
H, W)}, channel 0 being the background; while it trains also "deep", a list of coarser logits, finest first. Softmax is
applied once, by the caller; "independent" beside the logits asks for a loss of each structure by itself. A new network
is one file and one row in PRESETS.

From inside to outside: backbone, connectivity heads, anatomy guidance, several passes, density remap. Each technique
looks from outside like the network inside, so any backbone takes any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import nn

from models.anatomy_guidance import DELIVERED_TAU_MM, FORMS, AnatomyGuidance, GuideForm
from models.blocks import choose, size_multiple
from models.connectivity import ConnectivityMultitask
from models.density_remap import DensityRemap
from models.multi_decoder import MultiDecoder
from models.multipass import MultiPass
from models.unet import SMALL_BLOCKS, UNet
from models.vnet import VNet

__all__ = ["BACKBONES", "PRESETS", "TECHNIQUES", "Preset", "build_network", "size_multiple"]

TECHNIQUES = ("connectivity_multitask", "anatomy_guidance", "multipass", "density_remap")  # innermost first


class Preset(NamedTuple):
    """A backbone, and those of TECHNIQUES that go with it."""

    backbone: str
    techniques: tuple[str, ...] = ()


class Backbone(NamedTuple):
    """How a backbone is built, and the options of `build_network` that are for it alone."""

    build: Callable[..., nn.Module]
    options: tuple[str, ...]


BACKBONES = {
    "unet": Backbone(UNet, ("blocks", "decoder_unit", "activation")),
    "vnet": Backbone(VNet, ("kernel", "stage_convs", "residual", "norm", "deep_supervision")),
    "multi_decoder": Backbone(
        MultiDecoder,
        (
            "blocks",
            "decoder_unit",
            "activation",
            "decoders",
            "attention",
            "attention_stride",
            "attention_levels",
            "output",
        ),
    ),
}

PRESETS = {
    "unet": Preset("unet"),  # baseline, residual encoder of nnU-Net
    "multi_decoder": Preset("multi_decoder"),  # github.com/arunmm8335/3d-medical-segmentation
    "multipass_unet": Preset(
        "unet", ("multipass",)
    ),  # github.com/DigiDxDoc/CT-Segmentation; Wang et al. 2018
    "vnet": Preset("vnet"),  # github.com/KAATHEEK/3D-Segmentation-Task; Milletari et al. 2016
    "anatomy_guided_unet": Preset("unet", ("anatomy_guidance",)),  # github.com/seoooa/anatomical-guidance
    # github.com/inexhaustible419/AnatomicalPriorsMTL-AirwaySegment
    "airway_multitask_unet": Preset("unet", ("connectivity_multitask", "density_remap")),
}

GUIDANCE = ("none", *FORMS)
CONNECTIVITY = ("none", "multitask")
REMAP = ("none", "lut", "lut_linear")
N_TRAIN, LARGEST_N_TRAIN, N_INFER = 2, 3, 4


def build_network(
    name: str,
    *,
    n_structures: int,
    width: int,
    levels: int,
    in_channels: int = 1,
    max_channels: int = 320,
    backbone: str = "auto",
    passes: int = 0,
    infer_passes: int = 0,
    context: str = "soft",
    context_grad: str = "detach",
    context_corruption: float = 0.3,
    pass_embedding: bool = True,
    shared_passes: bool = True,
    guidance: str = "auto",
    guide_channels: int = 0,
    guide_hidden: int = 32,
    guide_stride: int = 1,
    guide_levels: str = "all",
    film_init: str = "zero",
    guide_tau_mm: Sequence[float] = DELIVERED_TAU_MM,
    guide_presence: bool = True,
    connectivity: str = "auto",
    remap: str = "auto",
    blocks: Sequence[int] = SMALL_BLOCKS,
    decoder_unit: str = "residual",
    activation: str = "leaky",
    decoders: str = "per_structure",
    attention: str = "voxel",
    attention_stride: int = 2,
    attention_levels: int = 1,
    output: str = "softmax",
    kernel: int = 5,
    stage_convs: str = "reference",
    residual: bool = True,
    norm: str = "instance",
    deep_supervision: bool = True,
    **more: Any,
) -> nn.Module:
    """The network called `name` in PRESETS, with fresh weights. "auto" and 0 stand for what the preset says.

    Unknown words raise ValueError with the nearest known one. Options of a part that the network does not have are
    without effect.

    Args:
        n_structures: S, without the background.
        width: channels at full size; they double with each level up to `max_channels`.
        levels: resolutions, each half the one before; D, H and W must be multiples of 2^(levels - 1).
        in_channels: of the image.
        backbone: a key of BACKBONES.
        passes: 1, a single one; 2 or 3, so many in training (a multi-pass preset: 2).
        infer_passes: at most so many when predicting (4). This and the next four: see MultiPass.
        shared_passes: False gives each pass of the training a network of its own.
        guidance: one of GUIDANCE, or "sdm" for "film_spatial". It needs `guide_channels`, the K' of the guide. The
            options that begin with guide_, and `film_init`: see AnatomyGuidance.
        connectivity: "none", or "multitask" for heads that learn centre line and radius.
        remap: "none", "lut" for a density table in front, "lut_linear" for table and image side by side. The table is
            the identity until the network's `set_lookup` is given one.
        blocks, decoder_unit, activation: of `unet` and `multi_decoder`: residual blocks per level of the encoder; "residual" or
            "plain", what a decoder level is; "leaky" or "prelu".
        decoders, attention, attention_stride, attention_levels, output: of `multi_decoder`.
        kernel, stage_convs, residual, norm, deep_supervision: of `vnet`.
        more: for the backbone alone, which must know it: `parity` of `unet` and `multi_decoder`.
    """
    if n_structures < 1 or width < 1 or levels < 2:
        raise ValueError(
            f"n_structures={n_structures} and width={width} must be 1 or more, levels={levels} 2 or more."
        )
    parts = _parts(PRESETS[choose("model", name, PRESETS)], backbone, passes, guidance, connectivity, remap)
    if parts.guidance != "none" and guide_channels < 1:
        raise ValueError(
            f"guidance={parts.guidance} needs a guide, but there is none: guide_channels={guide_channels}."
        )
    if infer_passes < 0:
        raise ValueError(f"infer_passes={infer_passes} must be 0 (the default, {N_INFER}) or more.")

    channels = in_channels * (2 if parts.remap == "lut_linear" else 1)
    channels += n_structures if parts.passes > 1 else 0
    if parts.guidance == "concat_input":
        channels += GuideForm(guide_channels, tau_mm=guide_tau_mm, presence=guide_presence).channels
    own = {
        "blocks": blocks,
        "decoder_unit": decoder_unit,
        "activation": activation,
        "decoders": decoders,
        "attention": attention,
        "attention_stride": attention_stride,
        "attention_levels": attention_levels,
        "output": output,
        "kernel": kernel,
        "stage_convs": stage_convs,
        "residual": residual,
        "norm": norm,
        "deep_supervision": deep_supervision,
    }

    def of_a_pass() -> nn.Module:
        build, names = BACKBONES[parts.backbone]
        network = build(
            n_structures=n_structures,
            width=width,
            levels=levels,
            max_channels=max_channels,
            in_channels=channels,
            **{key: own[key] for key in names},
            **more,
        )
        if parts.connectivity == "multitask":
            network = ConnectivityMultitask(network, n_structures)
        if parts.guidance != "none":
            network = AnatomyGuidance(
                network,
                guide_channels,
                guide_hidden,
                parts.guidance,
                guide_stride,
                levels=guide_levels,
                film_init=film_init,
                tau_mm=guide_tau_mm,
                presence=guide_presence,
            )
        return network

    network = of_a_pass()
    if parts.passes > 1:
        network = MultiPass(
            network,
            n_structures,
            parts.passes,
            infer_passes or N_INFER,
            context,
            context_grad=context_grad,
            corruption=context_corruption,
            pass_embedding=pass_embedding,
            later=[] if shared_passes else [of_a_pass() for _ in range(parts.passes - 1)],
        )
    if parts.remap != "none":
        network = DensityRemap(network, keep_linear=parts.remap == "lut_linear")
    return network


class _Parts(NamedTuple):
    backbone: str
    passes: int
    guidance: str
    connectivity: str
    remap: str


def _parts(
    preset: Preset, backbone: str, passes: int, guidance: str, connectivity: str, remap: str
) -> _Parts:
    """What the network is made of: what was asked for, and the preset's choice for "auto" and 0."""

    def chosen(kind: str, word: str, known: Iterable[str], technique: str, with_it: str) -> str:
        of_the_preset = with_it if technique in preset.techniques else "none"
        return of_the_preset if word == "auto" else choose(kind, word, known)

    if not 0 <= passes <= LARGEST_N_TRAIN:
        raise ValueError(f"passes={passes} must be 0 (as the preset says) to {LARGEST_N_TRAIN}.")
    return _Parts(
        backbone=preset.backbone if backbone == "auto" else choose("backbone", backbone, BACKBONES),
        passes=passes or (N_TRAIN if "multipass" in preset.techniques else 1),
        guidance=chosen(
            "guidance",
            "film_spatial" if guidance == "sdm" else guidance,
            GUIDANCE,
            "anatomy_guidance",
            "film_spatial",
        ),
        connectivity=chosen(
            "connectivity", connectivity, CONNECTIVITY, "connectivity_multitask", "multitask"
        ),
        remap=chosen("remap", remap, REMAP, "density_remap", "lut"),
    )
