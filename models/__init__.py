"""The networks, by name.

A network takes (B, 1, D, H, W) and returns {"logits": (B, S+1, D, H, W)}, channel 0 being the background; while it
trains also "deep", a list of coarser logits, finest first. Softmax is applied once, by the caller. A new network is one
file and one row in PRESETS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from models.blocks import choose, size_multiple
from models.multi_decoder import MultiDecoder
from models.unet import UNet

__all__ = ["BACKBONES", "PRESETS", "Preset", "build_network", "size_multiple"]


class Preset(NamedTuple):
    """A backbone, and the techniques around it from the innermost to the outermost."""

    backbone: str
    techniques: tuple[str, ...] = ()


def _build_unet(*, attention: str, attention_stride: int, **options: Any) -> UNet:
    return UNet(**options)  # one decoder: nobody to attend to


BACKBONES: dict[str, Callable[..., nn.Module]] = {"unet": _build_unet, "multi_decoder": MultiDecoder}

PRESETS: dict[str, Preset] = {
    "unet": Preset("unet"),  # baseline, residual encoder of nnU-Net
    "multi_decoder": Preset("multi_decoder"),  # github.com/arunmm8335/3d-medical-segmentation
}


def build_network(
    name: str, *, n_structures: int, width: int, levels: int, attention: str = "voxel", attention_stride: int = 2, **more: Any
) -> nn.Module:
    """The network called `name` in PRESETS, with fresh weights.

    Args:
        name: a key of PRESETS; an unknown one raises ValueError with the nearest known name.
        n_structures: S, without the background.
        width: channels at full size; they double with each level up to `max_channels`.
        levels: resolutions, each half the one before; D, H and W must be multiples of 2^(levels - 1).
        attention, attention_stride: of `multi_decoder`, see there; other networks have no use for them.
        more: `max_channels` (320), `blocks` (residual blocks per level), `in_channels` (1), and `parity` of
            `multi_decoder`.

    The network has `size_multiple`, `decoder_channels` (coarse to fine), `features(ct, modulations)` and
    `predict(features)`, the two halves of its forward, between which techniques work.
    """
    if n_structures < 1 or width < 1 or levels < 2:
        raise ValueError(f"n_structures={n_structures} and width={width} must be 1 or more, levels={levels} 2 or more.")
    preset = PRESETS[choose("model", name, PRESETS)]
    build = BACKBONES[preset.backbone]
    return build(
        n_structures=n_structures, width=width, levels=levels, attention=attention, attention_stride=attention_stride, **more
    )
