"""From the tensors of a case to probabilities on its canvas: sliding windows with Gaussian blending."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from ctseg.learning.hardware import Machine


@functools.lru_cache(maxsize=4)
def gaussian_weight(size: tuple[int, int, int]) -> torch.Tensor:
    """(D, H, W) weights of a window, 1 at its centre; sigma is an eighth of the window (nnU-Net's choice)."""
    axes = [torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in size]
    weight = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    return weight.clamp_min(1e-4)


def window_starts(length: int, size: int, overlap: float) -> list[int]:
    """First indices of evenly spread windows of `size` that cover `length` and share at least `overlap`."""
    if length <= size:
        return [0]
    count = int(-(-(length - size) // max(1, size * (1 - overlap)))) + 1
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


@torch.no_grad()
def predict_canvas(network: torch.nn.Module, tensors: Sequence[tuple[torch.Tensor, tuple[int, int, int]]], canvas_shape: tuple[int, int, int], *,
                   n_classes: int, patch_size: tuple[int, int, int], overlap: float, machine: Machine, swaps: torch.Tensor | None = None,
                   batch_size: int = 2) -> torch.Tensor:
    """(S+1, D, H, W) float32 probabilities on the canvas, on the CPU.

    tensors: (image (128, 128, 128) in 0..1, origin on the canvas). Windows that see only air are not computed:
    they are background. swaps: when given, the prediction is averaged with that of the left/right mirrored image,
    whose paired structures change places back.
    """
    network.eval()
    total = torch.zeros(n_classes, *canvas_shape)
    weights = torch.zeros(canvas_shape)
    weight = gaussian_weight(patch_size)
    pending: list[tuple[torch.Tensor, tuple[slice, ...]]] = []

    def flush() -> None:
        if not pending:
            return
        images = torch.stack([image for image, _ in pending])[:, None]
        probabilities = _probabilities(network, images, machine)
        if swaps is not None:
            mirrored = _probabilities(network, images.flip(4), machine).flip(4)
            probabilities = (probabilities + mirrored[:, swaps]) / 2
        for (_, place), result in zip(pending, probabilities):
            total[(slice(None), *place)] += result * weight
            weights[place] += weight
        pending.clear()

    for image, origin in tensors:
        starts = [window_starts(n, p, overlap) for n, p in zip(image.shape, patch_size)]
        for d in starts[0]:
            for h in starts[1]:
                for w in starts[2]:
                    window = image[d:d + patch_size[0], h:h + patch_size[1], w:w + patch_size[2]]
                    place = tuple(slice(o + s, o + s + p) for o, s, p in zip(origin, (d, h, w), patch_size))
                    if float(window.max()) < 0.02:
                        total[(0, *place)] += weight
                        weights[place] += weight
                        continue
                    pending.append((window.float(), place))
                    if len(pending) == batch_size:
                        flush()
    flush()
    total[0] += weights == 0
    return total.div_(weights.masked_fill_(weights == 0, 1.0))


def _probabilities(network: torch.nn.Module, images: torch.Tensor, machine: Machine) -> torch.Tensor:
    with machine.autocast():
        logits = network(machine.image(images))["logits"]
    return torch.softmax(logits.float(), dim=1).cpu()


def dice_per_structure(prediction: torch.Tensor, reference: torch.Tensor, n_structures: int) -> tuple[list[float | None], torch.Tensor]:
    """Dice of each structure in one whole canvas, None where the reference has none (never 1); and the counts.

    prediction, reference: (D, H, W) integer label maps.
    """
    classes = n_structures + 1
    counts = torch.bincount(reference.long().flatten() * classes + prediction.long().flatten(), minlength=classes**2).reshape(classes, classes)
    result: list[float | None] = []
    for value in range(1, classes):
        size = int(counts[value].sum())
        result.append(None if size == 0 else float(2 * counts[value, value] / (size + counts[:, value].sum())))
    return result, counts
