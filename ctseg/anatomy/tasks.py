"""The synthetic tasks by name, each a module with the same few names in it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Protocol, cast

from ctseg.anatomy.picture import Picture
from ctseg.errors import UsageError

DEFAULT = "pelvis"
VERSION = 1  # raised whenever the same seed draws other pictures
TASKS: dict[str, str] = {  # task -> module of this package, imported when the task is asked for
    "pelvis": "pelvis.pelvis_task",
    "pelvic_bones": "pelvis.pelvic_bones_task",
    "abdomen": "abdomen.abdomen_task",
    "airway": "airway.airway_task",
    "heart_like": "heart.heart_like_task",
}


class Task(Protocol):
    """What the module of a task holds; is_dicom(index) -> bool, where there is one, says which patients are
    written as DICOM."""

    IDS: Mapping[str, int]  # structure -> id in the label map, 1..n
    TARGETS: tuple[str, ...]  # what the task learns
    PATIENTS: int  # how many its cohort has
    draw: Callable[..., Picture]  # draw(seed, index, size="full")


def load_task(name: str) -> Task:
    """The module of a task; UsageError for a name that is none."""
    if name not in TASKS:
        raise UsageError(
            "UNKNOWN_TASK", f"there is no synthetic task '{name}'", f"choose one of {', '.join(TASKS)}"
        )
    return cast(Task, importlib.import_module(f"ctseg.anatomy.{TASKS[name]}"))


def is_dicom(task: Task, index: int) -> bool:
    """Whether a patient of the task is written as DICOM instead of NIfTI."""
    chosen = getattr(task, "is_dicom", None)
    return bool(chosen(index)) if chosen is not None else False
