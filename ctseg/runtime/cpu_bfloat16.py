"""Convolutions that this CPU computes wrongly in bfloat16: found by trial, and run in float32.

With oneDNN 3.12 (torch 2.13), parts of a weight gradient are never written where the first axis has 2 voxels,
and with AMX an output is wrong where its last axis has 1. Which shapes depends on the processor (measured in
docs/decisions/013-bfloat16-gradients.md). So no list of shapes decides, but a trial of each layer at its own.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SHORT = 4  # voxels: every fault found has an axis of so few (of 2 with 3^3 kernels, of 4 with 5^3)
TOLERANCE = 0.05  # of the largest value: rounding makes errors of 0.004, the faults of 0.5 and more
JUNK = 1e30  # left behind in freed memory, so that what is never written does not pass for a sum from zero


class Tried:
    """Mixed into a convolution: float32 under bfloat16 autocast where a trial gave wrong numbers."""

    in_float32 = False  # whether it has run so

    def forward(self, image: Tensor) -> Tensor:
        run = super().forward  # type: ignore[misc]
        long = min(image.shape[2:]) > SHORT
        if long or not torch.is_autocast_enabled("cpu") or _is_right(_Call.of(self, image)):
            return run(image)
        self.in_float32 = True
        with torch.autocast("cpu", enabled=False):
            return run(image.float()).bfloat16()


class TriedConv3d(Tried, nn.Conv3d):
    pass


class TriedConvTranspose3d(Tried, nn.ConvTranspose3d):  # type: ignore[misc]
    pass


TRIED: dict[type, type] = {nn.Conv3d: TriedConv3d, nn.ConvTranspose3d: TriedConvTranspose3d}


def guard(network: nn.Module) -> None:
    """Make every convolution of a network one of TRIED, in place."""
    for layer in network.modules():
        layer.__class__ = TRIED.get(type(layer), type(layer))


def count_in_float32(network: nn.Module) -> int:
    """How many convolutions of a guarded network have run in float32 so far."""
    return sum(layer.in_float32 for layer in network.modules() if isinstance(layer, Tried))


class _Call(NamedTuple):
    """All that decides which routine computes a convolution. The trial of each is made once per process.

    image, weight: shape and strides; bias: its length, 0 for none. how: the arguments of `torch.convolution`
    after the bias, the second of which is the padding.
    """

    image: tuple[torch.Size, tuple[int, ...]]
    weight: tuple[torch.Size, tuple[int, ...]]
    bias: int
    how: tuple[Any, ...]
    gradients: bool
    threads: int

    @classmethod
    def of(cls, layer: Any, image: Tensor) -> _Call:
        names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
        return cls(
            (image.shape, image.stride()),
            (layer.weight.shape, layer.weight.stride()),
            0 if layer.bias is None else len(layer.bias),
            tuple(getattr(layer, name) for name in names),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
        )


@functools.cache
def _is_right(call: _Call) -> bool:
    """Whether output and gradients in bfloat16 are those of float32, on random numbers of an own generator.

    Where the padding is as long as an axis nothing is tried: some routines write outside their memory there.
    """
    if any(n <= padding for n, padding in zip(call.image[0][2:], call.how[1])):
        return False
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.empty_strided(*form).normal_(generator=generator) for form in (call.image, call.weight)]
    numbers += [torch.randn(call.bias, generator=generator)] if call.bias else []
    numbers = [number.bfloat16() for number in numbers]
    with torch.autocast("cpu", enabled=False):
        expected = _results(call, [number.float() for number in numbers])
        junk = [torch.full((share * numbers[1].numel() // 2 + 1,), JUNK) for share in (1, 2, 4)]
        del junk
        found = _results(call, numbers)
    errors = [(a.float() - b).abs().max() / b.abs().max() for a, b in zip(found, expected)]
    return all(bool(error <= TOLERANCE) for error in errors)


def _results(call: _Call, numbers: list[Tensor]) -> list[Tensor]:
    """The output, and where wanted the gradients of image, weight and bias."""
    with torch.set_grad_enabled(call.gradients):
        inputs = [number.detach().requires_grad_(call.gradients) for number in numbers]
        image, weight, *bias = inputs
        output = torch.convolution(image, weight, bias[0] if bias else None, *call.how)
        if not call.gradients:
            return [output]
        towards = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        return [output.detach(), *torch.autograd.grad(output, inputs, towards.to(output.dtype))]
