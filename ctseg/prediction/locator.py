"""Where the structures lie: a small network that looks at the whole body tells the roi grid where to cut.

It is trained on the `whole` canvas of the training cases and travels inside the checkpoint of the network that it serves, so that
prediction needs nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ctseg import artifacts
from ctseg.config import Settings
from ctseg.geometry.boxes import Box, bounding_box, make_box
from ctseg.geometry.grids import region_around
from ctseg.geometry.volume import Grid, face_corners
from ctseg.learning.dataset import TrainingCase, prepare_case
from ctseg.prediction.largest_component import keep_largest
from ctseg.prediction.sliding_windows import Sight, Windows, predict_canvas
from ctseg.runtime import checkpoints
from ctseg.runtime.hardware import Machine

WIDTH = 8
TIME_SHARE = 0.25  # of the training time: it only has to find, not to outline


def locator_settings(settings: Settings) -> Settings:
    """The settings of the locator's training, derived from those of the network that it serves."""
    model = dataclasses.replace(
        Settings().model,
        name="unet",
        width=WIDTH,
        levels=settings.model.levels,
        blocks=(1,) * settings.model.levels,
    )
    train = dataclasses.replace(
        settings.train,
        minutes=TIME_SHARE * settings.train.minutes,
        epochs=max(1, round(TIME_SHARE * settings.train.epochs)),
        patch_size=(),
        patience=0,
    )
    return dataclasses.replace(settings, model=model, train=train)


def remaining_settings(settings: Settings) -> Settings:
    """The settings of the network itself, with the time that the locator leaves."""
    left = 1 - TIME_SHARE
    return dataclasses.replace(
        settings,
        train=dataclasses.replace(
            settings.train,
            minutes=left * settings.train.minutes,
            epochs=max(1, round(left * settings.train.epochs)),
        ),
    )


def load_cases(
    workspace: artifacts.Workspace, manifest: dict[str, Any], split: str, *, progress: Callable = iter
) -> list[TrainingCase]:
    """The cases of a split on their `whole` canvas."""
    cases = []
    for entry in progress([case for case in manifest["cases"] if case["split"] == split]):
        image, label = _read(workspace, entry)
        cases.append(
            prepare_case(
                {**entry, "canvas": entry["locator"]["canvas"]}, image, label, manifest["structures"]
            )
        )
    return cases


def _read(workspace: artifacts.Workspace, entry: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    record = entry["locator"]
    image, label = artifacts.read_tensor(workspace.processed / record["file"], sha256=record["sha256"])
    return torch.from_numpy(image).half(), torch.from_numpy(
        label if label is not None else np.zeros(image.shape, np.uint8)
    )


def restore_locator(
    record: dict[str, Any], build: Callable[..., torch.nn.Module], machine: Machine, *, file: str
) -> Locator:
    """The locator that a checkpoint holds. record: "arch", "model" (its weights) and "patch_size"; build: as
    `models.build_network`.
    """
    network = checkpoints.restore(build, record["arch"], record["model"], file=file)
    d, h, w = record["patch_size"]
    return Locator(machine.place(network), (d, h, w), record["arch"]["n_structures"], machine)


@dataclasses.dataclass(frozen=True)
class Locator:
    """A trained locator. patch_size: of its windows."""

    network: torch.nn.Module
    patch_size: tuple[int, int, int]
    n_structures: int
    machine: Machine

    def find_case(self, workspace: artifacts.Workspace, entry: dict[str, Any]) -> Box | None:
        """`find` for a case of the manifest."""
        return self.find(
            _read(workspace, entry)[0],
            Grid.from_record(entry["locator"]["canvas"]),
            Grid.from_record(entry["canvas"]),
        )

    def find(self, image: torch.Tensor, whole: Grid, canvas: Grid) -> Box | None:
        """The part of a canvas that holds the structures, None when nothing was found on the whole body.

        image: (128, 128, 128) in 0..1 on the grid `whole`.
        """
        windows = Windows(self.n_structures + 1, self.patch_size, overlap=0.25)
        label = (
            predict_canvas(self.network, Sight(image), windows, self.machine)
            .argmax(0)
            .to(torch.uint8)
            .numpy()
        )
        box = bounding_box(keep_largest(label, range(1, self.n_structures + 1)))
        if box is None:
            return None
        ends = face_corners(np.linalg.inv(canvas.affine) @ whole.affine, box)
        limits = np.array(canvas.shape) - 1
        low = np.clip(np.floor(ends.min(axis=1)), 0, limits)
        high = np.clip(np.ceil(ends.max(axis=1)), 0, limits)
        return region_around(make_box(low, high + 1), canvas)
