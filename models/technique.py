"""What all techniques share: a network around a network that looks from outside like the one inside."""

from __future__ import annotations

from typing import Any

from torch import nn

from models.blocks import Hook, Hooks


class Technique(nn.Module):
    """`network` (a Backbone or another technique) with something added; has the same interface, see Backbone.

    own_channels: how many of the network's input channels the technique fills itself.
    """

    def __init__(self, network: Any, *, own_channels: int = 0):
        super().__init__()
        self.network = network
        self.in_channels: int = network.in_channels - own_channels
        self.size_multiple: int = network.size_multiple
        self.decoder_channels: list[int] = network.decoder_channels
        self.n_decoders: int = network.n_decoders
        self.inputs: tuple[str, ...] = network.inputs
        self.guide_channels: int = getattr(network, "guide_channels", 0)

    @property
    def passes(self) -> int:
        """How often the whole predicts at most, as Backbone.passes."""
        return int(self.network.passes)


def chained(first: Hooks, then: Hooks | None) -> Hooks:
    """The hooks of `first`, each followed by the one of `then` at its place."""
    if then is None:
        return first

    def both(one: Hook, other: Hook) -> Hook:
        return lambda x: other(one(x))

    return [list(map(both, *of_decoder)) for of_decoder in zip(first, then)]
