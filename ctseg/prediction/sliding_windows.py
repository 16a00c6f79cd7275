"""From the canvas of a case to probabilities on it: sliding windows with Gaussian blending."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ctseg.geometry.probabilities import Probabilities
from ctseg.prediction.guide_input import guide_patch
from ctseg.prediction.network_input import NetworkInput
from ctseg.runtime.hardware import Machine

AGREEMENT = 0.999  # Dice of successive passes above which another one is not worth its time
MANY_CLASSES = 32
AIR = 0.02  # a window whose brightest voxel lies below this sees only air

Place = tuple[slice, ...]


@functools.lru_cache(maxsize=4)
def gaussian_weight(size: tuple[int, ...]) -> np.ndarray:
    """(D, H, W) weights of a window, 1 at its centre; sigma is an eighth of the window (nnU-Net's choice)."""
    d, h, w = (torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in size)
    return (d[:, None, None] * h[None, :, None] * w[None, None, :]).clamp_min(1e-4).numpy()


def window_starts(length: int, size: int, overlap: float) -> list[int]:
    """First indices of evenly spread windows of `size` that cover `length` and share at least `overlap`."""
    if length <= size:
        return [0]
    count = int(-(-(length - size) // max(1, size * (1 - overlap)))) + 1
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a canvas is predicted: with windows of the trained size that overlap.

    swaps: (S+1,) label ids after a left/right mirror; when given, the prediction is averaged with that of the
    mirrored image, whose paired structures change places back. context_scope: of a network of several passes;
    "volume" hands the stitched result of a pass to the next, "window" runs all passes inside each window.
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

    def stitch_passes_of(self, network: torch.nn.Module) -> bool:
        """Whether each pass of a network sees the stitched result of the one before."""
        return getattr(network, "passes", 1) > 1 and self.context_scope != "window"

    def count_views(self, network: torch.nn.Module) -> int:
        """How many predictions of its own the result of a network is the mean of: 2 with the mirror image.

        1 without, and where whole volumes go from pass to pass: each pass then hands on the mean of both
        views, so that they are not independent of each other.
        """
        return 2 if self.swaps is not None and not self.stitch_passes_of(network) else 1


@torch.no_grad()
def predict_canvas(
    network: torch.nn.Module,
    seen: NetworkInput,
    windows: Windows,
    machine: Machine,
    *,
    on_pass: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """(S+1, D, H, W) float32 probabilities of a canvas, on the CPU.

    Windows are blended by their Gaussian weights; those that see only air are not computed: they are
    background. A network of several passes stops when they agree; on_pass is told (pass number from 0, its
    probabilities).
    """
    look = _Look(network.eval(), seen, windows, machine)
    if not windows.stitch_passes_of(network):
        return look.stitched(None)
    context, before = None, None
    for number in range(network.passes):  # type: ignore[arg-type]
        probabilities = look.stitched(_Pass(number, context))
        label = probabilities.argmax(0).to(torch.uint8)
        if on_pass is not None:
            on_pass(number, probabilities)
        if before is not None and _agree(before, label, windows.n_classes - 1):
            break
        before, context = label, probabilities[1:]
    return probabilities


@torch.no_grad()
def predict_probabilities(
    network: torch.nn.Module,
    seen: NetworkInput,
    windows: Windows,
    machine: Machine,
    *,
    on_pass: Callable[[int, Probabilities], None] | None = None,
    on_view: Callable[[np.ndarray], None] | None = None,
) -> Probabilities:
    """As `predict_canvas`, but each structure is kept only where it has any probability.

    So memory does not grow with their number; only a network that hands whole volumes from pass to pass takes
    whole arrays. on_view is told the label map (D, H, W) of each of `Windows.count_views` predictions that
    the result is the mean of.
    """
    tell_view = on_view or (lambda label: None)
    if windows.stitch_passes_of(network):

        def tell_pass(number: int, probabilities: torch.Tensor) -> None:
            if on_pass is not None:
                on_pass(number, Probabilities.of(probabilities.numpy()))

        result = Probabilities.of(predict_canvas(network, seen, windows, machine, on_pass=tell_pass).numpy())
        tell_view(result.label())
        return result
    look = _Look(network.eval(), seen, windows, machine)
    views = [Probabilities(windows.n_classes, seen.image.shape) for _ in range(windows.count_views(network))]
    for place, number, values in look.windows_seen(None):
        views[number].add(place, values, look.weight / look.total[place])
    for view in views:
        view.fill_background(look.total == 0)
        tell_view(view.label())
    total, *others = views
    for other in others:
        total.add_model(other)
    total.divide(len(views))
    return total


class _Pass(NamedTuple):
    """Of a network of several passes: which one, and the context (S, D, H, W) from the one before."""

    number: int
    context: torch.Tensor | None


class _Look:
    """One look of a network at a canvas through its windows.

    places: the windows that see more than air. weight: (d, h, w) of one window; total: (D, H, W), the sum of
    all weights at each voxel, 0 where no window looks.
    """

    def __init__(self, network: torch.nn.Module, seen: NetworkInput, windows: Windows, machine: Machine):
        self.network, self.seen, self.windows, self.machine = network, seen, windows, machine
        shape = seen.image.shape
        size = tuple(min(p, n) for p, n in zip(windows.patch_size, shape))
        starts = itertools.product(*(window_starts(n, p, windows.overlap) for n, p in zip(shape, size)))
        places = [tuple(slice(s, s + p) for s, p in zip(start, size)) for start in starts]
        self.places = [place for place in places if float(seen.image[place].max()) >= AIR]
        self.weight, self.total = gaussian_weight(size), np.zeros(shape, dtype=np.float32)
        for place in self.places:
            self.total[place] += self.weight

    def stitched(self, running: _Pass | None) -> torch.Tensor:
        """(S+1, D, H, W) probabilities of one pass; running: None for a network of one."""
        result = np.zeros((self.windows.n_classes, *self.total.shape), dtype=np.float32)
        views = 1 if self.windows.swaps is None else 2
        for place, _, values in self.windows_seen(running):
            result[(slice(None), *place)] += values * (self.weight / (views * self.total[place]))
        result[0] += self.total == 0
        return torch.from_numpy(result)

    def windows_seen(self, running: _Pass | None) -> Iterator[tuple[Place, int, np.ndarray]]:
        """(place, number of the view, probabilities (S+1, d, h, w)) of every window.

        View 0 is the window as it is; with swaps, view 1 is its mirror image, put back. One after the other:
        those of many structures are large.
        """
        for first in range(0, len(self.places), self.windows.batch_size):
            chosen = self.places[first : first + self.windows.batch_size]
            for number, swaps in enumerate(
                [None] if self.windows.swaps is None else [None, self.windows.swaps]
            ):
                for place, values in zip(chosen, self.probabilities(chosen, running, swaps)):
                    yield place, number, values

    def probabilities(
        self, places: Sequence[Place], running: _Pass | None, swaps: torch.Tensor | None
    ) -> np.ndarray:
        """(B, S+1, d, h, w) of some windows; with swaps, of their mirror images, put back."""
        seen, image = self.seen, self.machine.image
        images = torch.stack([seen.image[place].float() for place in places])[:, None]
        inputs: dict[str, torch.Tensor | int | None] = {}
        if seen.guide is not None:
            starts = [[o + part.start for o, part in zip(seen.origin, place)] for place in places]
            patches = [
                guide_patch(seen.guide, start, images.shape[2:], mirrored=swaps is not None)
                for start in starts
            ]
            inputs["guide"] = image(torch.stack(patches))
        if running is not None:
            inputs["pass_number"] = running.number
            if running.context is not None:
                parts = torch.stack([running.context[(slice(None), *place)] for place in places])
                inputs["context"] = image(parts if swaps is None else parts[:, swaps[1:] - 1].flip(4))
        with self.machine.autocast():
            logits = self.network(image(images if swaps is None else images.flip(4)), **inputs)["logits"]
        if swaps is None:
            return torch.softmax(logits.float(), dim=1).cpu().numpy()
        return torch.softmax(logits[:, swaps].float(), dim=1).cpu().numpy()[..., ::-1]


def dice_per_structure(
    prediction: torch.Tensor, reference: torch.Tensor, n_structures: int
) -> list[float | None]:
    """Dice of each structure in one whole canvas, None where the reference has none (never 1).

    prediction, reference: (D, H, W) integer label maps.
    """
    common, found, sizes = _overlaps(prediction, reference, n_structures)
    dices = 2 * common / (found + sizes)
    return [float(dice) if size else None for dice, size in zip(dices, sizes)]


def _agree(before: torch.Tensor, after: torch.Tensor, n_structures: int) -> bool:
    """Whether two passes give every structure almost the same voxels."""
    common, *sizes = _overlaps(before, after, n_structures)
    both = sizes[0] + sizes[1]
    return bool(((2 * common / both > AGREEMENT) | (both == 0)).all())


def _overlaps(one: torch.Tensor, other: torch.Tensor, n_structures: int) -> list[torch.Tensor]:
    """Of each structure, (S,): voxels in common, and in either of two label maps."""
    classes = n_structures + 1
    pairs = one.long().flatten() * classes + other.long().flatten()
    counts = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return [part[1:] for part in (counts.diagonal(), counts.sum(1), counts.sum(0))]
