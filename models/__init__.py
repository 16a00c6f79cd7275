"""The networks, by name: a backbone, and techniques around it.

A network takes (B, 1, D, H, W), and a guide (B, K', D, H, W) if its `inputs` say so, and returns {"logits":
(B, S+1, D, H, W)}, channel 0 being the background; while it trains also "deep", a list of coarser logits,
finest first. Softmax is applied once, by the caller; "independent" beside the logits asks for a loss of each
structure by itself. A new network is one file and one row in PRESETS.

From inside to outside: backbone, connectivity heads, anatomy guidance, several passes, density remap. Each
technique looks from outside like the network inside, so any backbone takes any of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar

from torch import nn

from models.anatomy_guidance import AnatomyGuidance, Form, GuideForm, GuideOptions
from models.blocks import Options, Size, choose
from models.connectivity import ConnectivityMultitask
from models.density_remap import DensityRemap
from models.multi_decoder import MultiDecoder, MultiDecoderOptions
from models.multipass import MultiPass, PassOptions
from models.unet import UNet, UNetOptions
from models.vnet import VNet, VNetOptions

__all__ = ["BACKBONES", "OPTIONS", "PRESETS", "Parts", "build_network", "parts_of"]

BACKBONES: dict[str, tuple[Any, Any]] = {  # the network and its options
    "unet": (UNet, UNetOptions),
    "vnet": (VNet, VNetOptions),
    "multi_decoder": (MultiDecoder, MultiDecoderOptions),
}


@dataclasses.dataclass(frozen=True)
class Parts(Options):
    """What a network is made of."""

    backbone: Literal["unet", "vnet", "multi_decoder"] = "unet"
    passes: int = 1
    guidance: Literal["none", Form] = "none"
    connectivity: Literal["none", "multitask"] = "none"
    remap: Literal["none", "lut", "lut_linear"] = "none"


PRESETS = {
    "unet": Parts(),  # baseline, residual encoder of nnU-Net
    # github.com/arunmm8335/3d-medical-segmentation
    "multi_decoder": Parts("multi_decoder"),
    # github.com/DigiDxDoc/CT-Segmentation; Wang et al. 2018
    "multipass_unet": Parts(passes=2),
    # github.com/KAATHEEK/3D-Segmentation-Task; Milletari et al. 2016
    "vnet": Parts("vnet"),
    # github.com/seoooa/anatomical-guidance
    "anatomy_guided_unet": Parts(guidance="film_spatial"),
    # github.com/inexhaustible419/AnatomicalPriorsMTL-AirwaySegment
    "airway_multitask_unet": Parts(connectivity="multitask", remap="lut"),
}
OPTIONS = (Size, UNetOptions, MultiDecoderOptions, VNetOptions, PassOptions, GuideOptions, Parts)
Part = TypeVar("Part")


def parts_of(name: str, options: dict[str, Any]) -> Parts:
    """What the network called `name` in PRESETS is made of; "auto" and 0 stand for what the preset says.

    guidance "sdm", signed distance maps, is another name of "film_spatial".
    """
    keys = [field.name for field in dataclasses.fields(Parts)]
    asked = {key: options[key] for key in keys if options.get(key, "auto") not in ("auto", 0)}
    if asked.get("guidance") == "sdm":
        asked["guidance"] = "film_spatial"
    return dataclasses.replace(PRESETS[choose("model", name, PRESETS)], **asked)


def build_network(
    name: str, *, n_structures: int, guide_channels: int = 0, in_channels: int = 1, **options: Any
) -> nn.Module:
    """The network called `name` in PRESETS, with fresh weights.

    Unknown words raise ValueError with the nearest known one. Options of a part that the network does not
    have are without effect.

    Args:
        n_structures: S, without the background.
        guide_channels: K' of the guide, 0 without one.
        in_channels: of the image.
        options: fields of OPTIONS, by name, `width` and `levels` among them; D, H and W of what the network
            reads must be multiples of 2^(levels - 1). Of Parts, "auto" and 0 stand for what the preset says.
    """
    known = {field.name for kind in OPTIONS for field in dataclasses.fields(kind)}
    for key in options:
        choose("network option", key, known)
    parts = parts_of(name, options)
    options |= dataclasses.asdict(parts)

    def own(kind: type[Part]) -> Part:
        """The options of one part."""
        fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        return kind(**{key: value for key, value in options.items() if key in fields})

    if parts.guidance != "none" and guide_channels < 1:
        raise ValueError(
            f"guidance={parts.guidance} needs a guide, but there is none: guide_channels={guide_channels}."
        )
    channels = in_channels * (2 if parts.remap == "lut_linear" else 1)
    channels += n_structures if parts.passes > 1 else 0
    if parts.guidance == "concat_input":
        channels += GuideForm(guide_channels, own(GuideOptions)).channels
    options |= {"n_structures": n_structures, "in_channels": channels}

    def of_a_pass() -> nn.Module:
        build, kind = BACKBONES[parts.backbone]
        network = build(own(Size), own(kind))
        if parts.connectivity == "multitask":
            network = ConnectivityMultitask(network, n_structures)
        if parts.guidance != "none":
            network = AnatomyGuidance(network, guide_channels, parts.guidance, own(GuideOptions))
        return network

    network = of_a_pass()
    if parts.passes > 1:
        passes = own(PassOptions)
        later = 0 if passes.shared_passes else passes.passes - 1
        network = MultiPass(network, n_structures, passes, [of_a_pass() for _ in range(later)])
    if parts.remap != "none":
        network = DensityRemap(network, keep_linear=parts.remap == "lut_linear")
    return network
