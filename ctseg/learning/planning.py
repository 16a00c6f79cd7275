"""What is planned before training: the shape of the patches, and the locator's part of the time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctseg.config import Settings, changed
from ctseg.errors import PreconditionError
from ctseg.learning.dataset import TrainingCase

WIDTH = 8  # of the locator
TIME_SHARE = 0.25  # of the training time for the locator: it only has to find, not to outline
LEARNING_RATES = {1: 2e-3, 2: 4e-3}  # at their peak, by the stem of the network
LOCATOR_TRAINING = {
    "train.patch_size": (),
    "train.patience": 0,
    "train.init": "none",
    "train.freeze": "nothing",
}
ANISOTROPIC = 2.5  # longest by shortest side of a voxel from which halving would leave too little
MARGIN = 1.15  # a patch should see a little more than the structures themselves
SMALLEST, LARGEST = 32, 128  # voxels along an axis


def fit_patch(extent: Sequence[float], budget: int, *, multiple: int) -> tuple[int, int, int]:
    """Patch (D, H, W) that holds a box of `extent` voxels with a margin, shrunk to `budget` voxels.

    Sizes are multiples of what the network needs. Too big a patch loses from its relatively longest axis
    first.
    """
    smallest = -(-SMALLEST // multiple) * multiple
    wanted = [min(LARGEST, max(smallest, int(-(-MARGIN * n // multiple)) * multiple)) for n in extent]
    size = list(wanted)
    while np.prod(size) > budget:
        shrinkable = [axis for axis in range(3) if size[axis] > smallest]
        if not shrinkable:
            break
        axis = max(shrinkable, key=lambda i: (size[i] / wanted[i], size[i]))
        size[axis] -= multiple
    return size[0], size[1], size[2]


def with_patch(settings: Settings, cases: Sequence[TrainingCase], structures: Sequence[str]) -> Settings:
    """The settings with their patch size, if they have none: fitted to the median box of all structures.

    PreconditionError when no case shows any structure.
    """
    if not any("present" in case.states.values() for case in cases):
        raise PreconditionError(
            "NO_LABELS",
            "no training case shows any of the structures " + ", ".join(structures),
            "check --structures and the labels (processed_data/preprocess_report.json lists what was found)",
        )
    if settings.train.patch_size:
        return settings
    extents = []
    for case in cases:
        if case.points:
            places = np.concatenate(list(case.points.values()))
            extents.append(places.max(0) - places.min(0) + 1)
    extent = np.median(extents, axis=0) if extents else np.full(3, LARGEST)
    multiple = 2 ** (settings.model.levels - 1)
    patch = fit_patch([float(n) for n in extent], settings.train.patch_voxels, multiple=multiple)
    return changed(settings, {"train.patch_size": patch})


def with_network_plan(settings: Settings, *, plain: bool, spacing_mm: Sequence[float]) -> Settings:
    """The settings with stem and learning rate, where they leave them open.

    Stem 2 where that was measured to be worth it: the plain U-Net on voxels that are about as long as wide
    (docs/decisions/019-half-size.md).
    """
    coarse = max(spacing_mm) > ANISOTROPIC * min(spacing_mm)
    stem = settings.model.stem or (2 if plain and not coarse else 1)
    rate = settings.train.learning_rate or LEARNING_RATES[stem]
    return changed(settings, {"model.stem": stem, "train.learning_rate": rate})


def with_time(settings: Settings, share: float, changes: Mapping[str, Any]) -> Settings:
    """The settings with a share of the training time, and other changes."""
    minutes, epochs = share * settings.train.minutes, max(1, round(share * settings.train.epochs))
    return changed(settings, {"train.minutes": minutes, "train.epochs": epochs, **changes})


def locator_settings(settings: Settings) -> Settings:
    """The settings of the locator's training, derived from those of the network that it serves."""
    levels = settings.model.levels
    model = {"model.width": WIDTH, "model.levels": levels, "model.blocks": (1,) * levels}
    plain = dataclasses.replace(settings, model=Settings().model)
    rate = settings.train.learning_rate or LEARNING_RATES[1]
    return with_time(plain, TIME_SHARE, {**model, **LOCATOR_TRAINING, "train.learning_rate": rate})
