"""From the canvas of a case to probabilities on it: sliding windows with Gaussian blending."""

from __future__ import annotations

import functools
import itertools

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
def predict_canvas(network: torch.nn.Module, image: torch.Tensor, *, n_classes: int, patch_size: tuple[int, int, int], overlap: float, machine: Machine,
                   swaps: torch.Tensor | None = None, batch_size: int = 2) -> torch.Tensor:
    """(S+1, D, H, W) float32 probabilities of a canvas, on the CPU.

    image: (D, H, W) in 0..1. Windows of the size that the network was trained with are blended by their Gaussian
    weights. Windows that see only air are not computed: they are background. swaps: when given, the prediction is
    averaged with that of the left/right mirrored image, whose paired structures change places back.
    """
    network.eval()
    size: tuple[int, int, int] = (min(patch_size[0], image.shape[0]), min(patch_size[1], image.shape[1]), min(patch_size[2], image.shape[2]))
    total = torch.zeros(n_classes, *image.shape)
    weights = torch.zeros(image.shape)
    weight = gaussian_weight(size)
    starts = itertools.product(*(window_starts(n, p, overlap) for n, p in zip(image.shape, size)))
    places = [tuple(slice(s, s + p) for s, p in zip(start, size)) for start in starts]
    seen = [place for place in places if float(image[place].max()) >= 0.02]
    for first in range(0, len(seen), batch_size):
        chosen = seen[first:first + batch_size]
        images = torch.stack([image[place].float() for place in chosen])[:, None]
        probabilities = _probabilities(network, images, machine)
        if swaps is not None:
            mirrored = _probabilities(network, images.flip(4), machine).flip(4)
            probabilities = (probabilities + mirrored[:, swaps]) / 2
        for place, result in zip(chosen, probabilities):
            total[(slice(None), *place)] += result * weight
            weights[place] += weight
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
