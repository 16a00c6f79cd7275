"""What is planned before training: the shape of the patches, and the locator's part of the time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ctseg.config import Settings
from ctseg.learning.dataset import TrainingCase

WIDTH = 8  # of the locator
TIME_SHARE = 0.25  # of the training time for the locator: it only has to find, not to outline
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


def plan_patch(cases: Sequence[TrainingCase], settings: Settings) -> tuple[int, int, int]:
    """The patch size of a training run: the setting if given, else fitted to the median box of all
    structures.
    """
    if settings.train.patch_size:
        return settings.train.fixed_patch()
    extents = []
    for case in cases:
        if case.points:
            places = np.concatenate(list(case.points.values()))
            extents.append(places.max(0) - places.min(0) + 1)
    extent = np.median(extents, axis=0) if extents else np.full(3, LARGEST)
    return fit_patch(
        [float(n) for n in extent], settings.train.patch_voxels, multiple=2 ** (settings.model.levels - 1)
    )


def with_time(settings: Settings, share: float, **changes: Any) -> Settings:
    """The settings with a share of the training time, and other changes of train."""
    train = dataclasses.replace(
        settings.train,
        minutes=share * settings.train.minutes,
        epochs=max(1, round(share * settings.train.epochs)),
        **changes,
    )
    return dataclasses.replace(settings, train=train)


def locator_settings(settings: Settings) -> Settings:
    """The settings of the locator's training, derived from those of the network that it serves."""
    levels = settings.model.levels
    model = dataclasses.replace(
        Settings().model, name="unet", width=WIDTH, levels=levels, blocks=(1,) * levels
    )
    return with_time(dataclasses.replace(settings, model=model), TIME_SHARE, patch_size=(), patience=0)


def remaining_settings(settings: Settings) -> Settings:
    """The settings of the network itself, with the time that the locator leaves."""
    return with_time(settings, 1 - TIME_SHARE)
