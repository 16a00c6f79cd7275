"""From the canvas of a case to probabilities on it: sliding windows with Gaussian blending."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from ctseg.geometry.boxes import Box, box_start, move
from ctseg.geometry.probabilities import Shares
from ctseg.prediction.guide_input import Guide, guide_patch
from ctseg.runtime.hardware import Machine


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


AGREEMENT = 0.999  # Dice of successive passes above which another one is not worth its time
MANY_CLASSES = 32
AIR = 0.02  # a window whose brightest voxel lies below this sees only air


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a canvas is predicted: with windows of the trained size that overlap, perhaps also mirrored, perhaps in several passes.

    swaps: (S+1,) label ids after a left/right mirror; when given, the prediction is averaged with that of the mirrored image,
    whose paired structures change places back. context_scope: "volume" hands the stitched result of a pass to the next, "window" runs all
    passes inside each window.
    """

    n_classes: int
    patch_size: tuple[int, int, int]
    overlap: float
    swaps: torch.Tensor | None = None
    context_scope: str = "volume"

    @property
    def batch_size(self) -> int:
        """Windows at a time: what a network gives back for one of many structures is large."""
        return 2 if self.n_classes <= MANY_CLASSES else 1


@dataclasses.dataclass(frozen=True)
class Sight:
    """What a network sees of a case. image: (D, H, W) in 0..1; guide: for networks that take one; origin: first voxel of the image on
    the canvas that the guide covers."""

    image: torch.Tensor
    guide: Guide | None = None
    origin: tuple[int, int, int] = (0, 0, 0)

    def part(self, box: Box) -> Sight:
        """A part of it, in a box of the canvas."""
        place = move(box, [-first for first in self.origin])
        return dataclasses.replace(self, image=self.image[place], origin=box_start(box))


@torch.no_grad()
def predict_canvas(
    network: torch.nn.Module,
    sight: Sight,
    windows: Windows,
    machine: Machine,
    *,
    on_pass: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """(S+1, D, H, W) float32 probabilities of a canvas, on the CPU.

    Windows are blended by their Gaussian weights; those that see only air are not computed: they are background. A network of
    several passes stops when they agree; on_pass is told (pass number from 0, its probabilities).
    """
    network.eval()
    if not _stitches_passes(network, windows):
        return _one_pass(network, sight, windows, machine, None)
    context, before = None, None
    for number in range(network.passes):  # type: ignore[arg-type]
        probabilities = _one_pass(network, sight, windows, machine, (number, context))
        label = probabilities.argmax(0).to(torch.uint8)
        if on_pass is not None:
            on_pass(number, probabilities)
        if before is not None and _agree(before, label, windows.n_classes - 1):
            break
        before, context = label, probabilities[1:]
    return probabilities


def predict_shares(
    network: torch.nn.Module,
    sight: Sight,
    windows: Windows,
    machine: Machine,
    *,
    on_pass: Callable[[int, Shares], None] | None = None,
    on_view: Callable[[np.ndarray], None] | None = None,
) -> Shares:
    """As `predict_canvas`, but each structure is kept only where it has any probability: memory does not grow with their number.

    on_view is told the label map (D, H, W) of each of `count_views` predictions that the result is the mean of. A network that hands whole
    volumes from pass to pass takes whole arrays, so there memory does grow.
    """
    if _stitches_passes(network, windows):
        tell = (
            None
            if on_pass is None
            else lambda number, probabilities: on_pass(number, Shares.of(probabilities.numpy()))
        )
        result = Shares.of(predict_canvas(network, sight, windows, machine, on_pass=tell).numpy())
        if on_view is not None:
            on_view(result.label())
        return result
    network.eval()
    views = [Shares(windows.n_classes, sight.image.shape) for _ in range(count_views(network, windows))]
    seen, weight, weights = _blending(sight, windows)
    unseen = weights == 0
    with torch.no_grad():
        for place, number, values in _predictions(network, sight, seen, windows, machine, None):
            views[number].add(place, values, weight / weights[place])
    for view in views:
        view.fill_background(unseen)
        if on_view is not None:
            on_view(view.label())
    total, *others = views
    for other in others:
        total.add_shares(other)
    total.divide(len(views))
    return total


def count_views(network: torch.nn.Module, windows: Windows) -> int:
    """How many predictions of its own the result of one network is the mean of: 2 with the mirror image, 1 without.

    Also 1 where whole volumes go from pass to pass: each pass hands on the mean of both views, so that they are not independent of each other.
    """
    return 2 if windows.swaps is not None and not _stitches_passes(network, windows) else 1


def _stitches_passes(network: torch.nn.Module, windows: Windows) -> bool:
    """Whether each pass sees the stitched result of the one before."""
    return getattr(network, "passes", 1) > 1 and windows.context_scope != "window"


def _agree(before: torch.Tensor, after: torch.Tensor, n_structures: int) -> bool:
    dices, counts = dice_per_structure(after, before, n_structures)
    return all(
        (dice if dice is not None else float(counts[:, value].sum() == 0)) > AGREEMENT
        for value, dice in enumerate(dices, start=1)
    )


def _one_pass(
    network: torch.nn.Module,
    sight: Sight,
    windows: Windows,
    machine: Machine,
    running: tuple[int, torch.Tensor | None] | None,
) -> torch.Tensor:
    """The stitched probabilities of one pass. running: (pass number, context of the whole canvas (S, D, H, W)), None for networks without."""
    total = np.zeros((windows.n_classes, *sight.image.shape), dtype=np.float32)
    seen, weight, weights = _blending(sight, windows)
    views = 1 if windows.swaps is None else 2
    for place, _, values in _predictions(network, sight, seen, windows, machine, running):
        total[(slice(None), *place)] += values * (weight / (views * weights[place]))
    total[0] += weights == 0
    return torch.from_numpy(total)


def _blending(sight: Sight, windows: Windows) -> tuple[list[tuple[slice, ...]], np.ndarray, np.ndarray]:
    """(the windows that see more than air, (d, h, w) weights of a window, (D, H, W) their sum over these windows; 0 where none looks)."""
    image = sight.image
    size: tuple[int, int, int] = tuple(min(p, n) for p, n in zip(windows.patch_size, image.shape))  # type: ignore[assignment]
    starts = itertools.product(*(window_starts(n, p, windows.overlap) for n, p in zip(image.shape, size)))
    places = [tuple(slice(s, s + p) for s, p in zip(start, size)) for start in starts]
    seen = [place for place in places if float(image[place].max()) >= AIR]
    weight, total = gaussian_weight(size).numpy(), np.zeros(image.shape, dtype=np.float32)
    for place in seen:
        total[place] += weight
    return seen, weight, total


def _predictions(
    network: torch.nn.Module,
    sight: Sight,
    seen: Sequence[tuple[slice, ...]],
    windows: Windows,
    machine: Machine,
    running: tuple[int, torch.Tensor | None] | None,
) -> Iterator[tuple[tuple[slice, ...], int, np.ndarray]]:
    """(place, number of the view, probabilities (S+1, d, h, w)) of every window of `seen`.

    View 0 is the window as it is; with swaps, view 1 is its mirror image, put back. One after the other: those of many structures are large.
    """
    for first in range(0, len(seen), windows.batch_size):
        chosen = seen[first : first + windows.batch_size]
        for number, swaps in enumerate([None] if windows.swaps is None else [None, windows.swaps]):
            for place, values in zip(chosen, _probabilities(network, sight, chosen, machine, running, swaps)):
                yield place, number, values


def _probabilities(
    network: torch.nn.Module,
    sight: Sight,
    places: Sequence[tuple[slice, ...]],
    machine: Machine,
    running: tuple[int, torch.Tensor | None] | None,
    swaps: torch.Tensor | None,
) -> np.ndarray:
    """(B, S+1, d, h, w) of some windows; with swaps, of their mirror images, put back."""
    mirrored = swaps is not None
    images = torch.stack([sight.image[place].float() for place in places])[:, None]
    inputs: dict[str, torch.Tensor | int | None] = {}
    if sight.guide is not None:
        patches = [
            guide_patch(
                sight.guide,
                [o + part.start for o, part in zip(sight.origin, place)],
                images.shape[2:],
                mirrored=mirrored,
            )
            for place in places
        ]
        inputs["guide"] = machine.image(torch.stack(patches))
    if running is not None:
        inputs["pass_number"], context = running
        if context is not None:
            parts = torch.stack([context[(slice(None), *place)] for place in places])
            inputs["context"] = machine.image(parts if swaps is None else parts[:, swaps[1:] - 1].flip(4))
    with machine.autocast():
        logits = network(machine.image(images.flip(4) if mirrored else images), **inputs)["logits"]
    if swaps is None:
        return torch.softmax(logits.float(), dim=1).cpu().numpy()
    return torch.softmax(logits[:, swaps].float(), dim=1).cpu().numpy()[..., ::-1]


def dice_per_structure(
    prediction: torch.Tensor, reference: torch.Tensor, n_structures: int
) -> tuple[list[float | None], torch.Tensor]:
    """Dice of each structure in one whole canvas, None where the reference has none (never 1); and the counts.

    prediction, reference: (D, H, W) integer label maps.
    """
    classes = n_structures + 1
    counts = torch.bincount(
        reference.long().flatten() * classes + prediction.long().flatten(), minlength=classes**2
    ).reshape(classes, classes)
    result: list[float | None] = []
    for value in range(1, classes):
        size = int(counts[value].sum())
        result.append(
            None if size == 0 else float(2 * counts[value, value] / (size + counts[:, value].sum()))
        )
    return result, counts
