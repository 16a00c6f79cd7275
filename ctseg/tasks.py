"""The five tasks: what each learns by default, on which grid, in which window, with which network.

A task is only a set of defaults. `defaults < profile < task < command line`; with `--data` it applies to the
user's scans, without it the pipeline draws the task's synthetic cohort.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ctseg.config import check_word


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of TASKS. demo_minutes, demo: training time and settings of the synthetic cohort when the user
    names neither time nor epochs.
    """

    about: str
    settings: dict[str, Any]
    demo_minutes: float = 6.5
    demo: dict[str, Any] = dataclasses.field(default_factory=dict)


# So few steps leave the network far from overfitting (patch Dice below validation Dice at the end): strong
# augmentation only slows it down.
_SHORT = {"train.augmentation": "light"}
# At twice the width a step costs up to four times as much, and few steps teach less than a narrow network
# learns in many.
_NARROW = {**_SHORT, "model.width": 8}

# The synthetic pelvis with the plain U-Net, which computes at half the size and so affords its full width.
UNET_DEMO = _SHORT

TASKS: dict[str, Task] = {
    "pelvis": Task(
        "prostate, bladder and rectum; decoders that attend to each other",
        {"model.name": "multi_decoder"},
        demo=_NARROW,
    ),
    # Patches show both sides of the body. The V-Net inside learned this task several times faster per step
    # than the plain U-Net (docs/decisions/003-training.md).
    "pelvic_bones": Task(
        "hips, sacrum and femora; two passes",
        {"model.name": "multipass_unet", "data.window_hu": (-250.0, 1250.0)},
        demo_minutes=10,
        demo={
            **_NARROW,
            "model.backbone": "vnet",
            "data.grid": "windows",
            "data.spacing_mm": 4.0,
            "train.patch_size": "64,48,96",
        },
    ),
    "abdomen": Task(
        "liver, kidneys and spleen; V-Net",
        {"model.name": "vnet", "data.window_hu": (-160.0, 240.0)},
        demo_minutes=8,
        demo=_NARROW,
    ),
    "airway": Task(
        "airway tree; density remap, centreline and radius beside the mask",
        {
            "model.name": "airway_multitask_unet",
            "data.window_hu": (-1024.0, 400.0),
            "data.grid": "windows",
            "data.crop": "lungs",
        },
        demo_minutes=9,
        demo={**_SHORT, "evaluate.overlap": 0.25, "evaluate.flip": False},
    ),
    # Heart chambers are no mirror pairs, so a mirrored heart is no heart. The guide: the chambers, by their
    # own reference labels. On thin vessels, too, a narrow V-Net learned more in the same minutes than the
    # U-Net, narrow or wide.
    "heart_like": Task(
        "coronary arteries, guided by the chambers around them",
        {
            "model.name": "anatomy_guided_unet",
            "data.window_hu": (-150.0, 550.0),
            "data.grid": "windows",
            "data.guide": "labels",
            "train.mirror": False,
        },
        demo_minutes=11,
        demo={**_NARROW, "model.backbone": "vnet"},
    ),
}


def find_task(name: str) -> Task:
    """The task of that name. Raises UsageError with the nearest known name."""
    check_word("UNKNOWN_TASK", "task", name, TASKS)
    return TASKS[name]
