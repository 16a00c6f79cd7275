"""Where the structures lie: a small network that looks at the whole body tells the roi grid where to cut.

It travels inside the checkpoint of the network that it serves, so that prediction needs nothing else. Its
training: `ctseg.learning.training`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ctseg.geometry.boxes import Box, bounding_box, make_box
from ctseg.geometry.grids import region_around
from ctseg.geometry.volume import face_corners
from ctseg.prediction.largest_component import keep_largest
from ctseg.prediction.network_input import CaseInput, NetworkInput
from ctseg.prediction.sliding_windows import Windows, predict_probabilities
from ctseg.runtime import checkpoints
from ctseg.runtime.hardware import Machine


@dataclasses.dataclass(frozen=True)
class Locator:
    """A trained locator. patch_size: of its windows."""

    network: torch.nn.Module
    patch_size: tuple[int, int, int]
    n_structures: int
    machine: Machine

    def find(self, case: CaseInput) -> Box | None:
        """The part of a case's canvas that holds the structures; None when nothing was found on the whole
        body.
        """
        if case.body is None:
            raise ValueError("a locator needs the whole body")
        image, whole = case.body
        windows = Windows(self.n_structures + 1, self.patch_size, overlap=0.25)
        found = predict_probabilities(self.network, NetworkInput(image), windows, self.machine)
        kept = keep_largest(found.label(), range(1, self.n_structures + 1))
        box = bounding_box(kept)
        if box is None:
            return None
        ends = face_corners(np.linalg.inv(case.canvas.affine) @ whole.affine, box)
        limits = np.array(case.canvas.shape) - 1
        low = np.clip(np.floor(ends.min(axis=1)), 0, limits)
        high = np.clip(np.ceil(ends.max(axis=1)), 0, limits)
        return region_around(make_box(low, high + 1), case.canvas)


def restore_locator(
    record: dict[str, Any], build: Callable[..., torch.nn.Module], machine: Machine, *, file: str
) -> Locator:
    """The locator that a checkpoint holds.

    record: "arch", "model" (its weights) and "patch_size"; build: as `models.build_network`.
    """
    network = checkpoints.restore(build, record["arch"], record["model"], file=file)
    d, h, w = record["patch_size"]
    return Locator(machine.place(network), (d, h, w), record["arch"]["n_structures"], machine)
