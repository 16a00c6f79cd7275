"""From the canvas of a case to probabilities on it: sliding windows with Gaussian blending."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ctseg.geometry.boxes import Box, box_start, make_box
from ctseg.geometry.probabilities import LEAST, Probabilities
from ctseg.prediction.guide_input import guide_patch
from ctseg.prediction.network_input import NetworkInput
from ctseg.runtime.hardware import Machine
from ctseg.scoring.failure import agreement

AGREEMENT = 0.999  # Dice of successive passes above which another one is not worth its time
MANY_CLASSES = 32
AIR = 0.02  # a window whose brightest voxel lies below this sees only air


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
def predict_probabilities(
    network: torch.nn.Module,
    seen: NetworkInput,
    windows: Windows,
    machine: Machine,
    *,
    least: float = LEAST,
    on_pass: Callable[[int, Probabilities], None] | None = None,
    on_view: Callable[[np.ndarray], None] | None = None,
) -> Probabilities:
    """Probabilities of the structures on a canvas.

    Windows are blended by their Gaussian weights; those that see only air are not computed: they are
    background. least: see `Probabilities`; what a pass hands on to the next is kept in full. A network of
    several passes stops when they agree; on_pass is told (pass number from 0, its probabilities). on_view is
    told the label map (D, H, W) of each of `Windows.count_views` predictions that the result is the mean of.
    """
    network, shape = network.eval(), seen.image.shape
    size = tuple(min(p, n) for p, n in zip(windows.patch_size, shape))
    starts = itertools.product(*(window_starts(n, p, windows.overlap) for n, p in zip(shape, size)))
    places = [make_box(start, np.add(start, size)) for start in starts]
    places = [place for place in places if float(seen.image[place].max()) >= AIR]
    weight = gaussian_weight(size)
    total = np.zeros(shape, dtype=np.float32)  # the sum of all weights at each voxel, 0 where no window looks
    for place in places:
        total[place] += weight
    stitched, n_views = windows.stitch_passes_of(network), windows.count_views(network)
    if stitched:
        least = 0.0
    # of the views of a window, so many are added up in one volume
    share = (1 if windows.swaps is None else 2) / n_views
    context, before = None, None
    for number in range(network.passes if stitched else 1):  # type: ignore[arg-type]
        running = {"pass_number": number, "context": context} if stitched else {}
        views = [Probabilities(windows.n_classes, shape, least) for _ in range(n_views)]
        for place, mirrored, values in windows_seen(network, seen, windows, machine, places, running):
            views[mirrored % n_views].add(place, values, weight / (share * total[place]))
        for view in views:
            view.fill_background(total == 0)
        if stitched:
            if on_pass is not None:
                on_pass(number, views[0])
            label = views[0].label()
            if before is not None:
                dices = agreement([before, label], windows.n_classes - 1)
                if all(dice is None or dice > AGREEMENT for dice in dices):
                    break
            before, context = label, torch.from_numpy(views[0].dense()[1:])
    for view in views:
        if on_view is not None:
            on_view(view.label())
    mean, *others = views
    for other in others:
        mean.add_model(other)
    mean.divide(n_views)
    return mean


def windows_seen(
    network: torch.nn.Module,
    seen: NetworkInput,
    windows: Windows,
    machine: Machine,
    every: Sequence[Box],
    running: dict[str, Any],
) -> Iterator[tuple[Box, int, np.ndarray]]:
    """(place, 1 for a mirror image that was put back, probabilities (S+1, d, h, w)) of every window.

    running: what a network of several passes is told, "pass_number" and "context" (S, D, H, W). One window
    after the other: those of many structures are large.
    """
    context, inputs, on_device = running.get("context"), dict(running), machine.image
    for first in range(0, len(every), windows.batch_size):
        places = every[first : first + windows.batch_size]
        images = torch.stack([seen.image[place].float() for place in places])[:, None]
        for mirrored, swaps in enumerate([None] if windows.swaps is None else [None, windows.swaps]):
            if seen.guide is not None:
                starts = [np.add(seen.origin, box_start(place)).tolist() for place in places]
                patches = [
                    guide_patch(seen.guide, start, images.shape[2:], mirrored=bool(mirrored))
                    for start in starts
                ]
                inputs["guide"] = on_device(torch.stack(patches))
            if context is not None:
                parts = torch.stack([context[(slice(None), *place)] for place in places])
                inputs["context"] = on_device(parts if swaps is None else parts[:, swaps[1:] - 1].flip(4))
            with machine.autocast():
                output = network(on_device(images if swaps is None else images.flip(4)), **inputs)
            logits = output["logits"] if swaps is None else output["logits"][:, swaps]
            batch = torch.softmax(logits.float(), dim=1).cpu().numpy()
            for place, values in zip(places, batch[..., ::-1] if mirrored else batch):
                yield place, mirrored, values
