"""The synthetic tasks by name, each a module with the same few names in it, and what they draw."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from ctseg.config import check_word
from ctseg.geometry.volume import Volume

DEFAULT = "pelvis"
VERSION = 1  # raised whenever the same seed draws other pictures
TASKS: dict[str, str] = {  # task -> module of this package, imported when the task is asked for
    "pelvis": "pelvis.pelvis_task",
    "pelvic_bones": "pelvis.pelvic_bones_task",
    "abdomen": "abdomen.abdomen_task",
    "airway": "airway.airway_task",
    "heart_like": "heart.heart_like_task",
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawn patient. image: HU float32; label: uint8 ids of the task's structures; one grid (D, H, W).

    facts: JSON values for the cohort's record, such as sex or whether contrast medium was given.
    """

    image: Volume
    label: Volume
    facts: dict[str, Any]


class Task(Protocol):
    """What the module of a task holds; is_dicom(index) -> bool, where there is one, says which patients are
    written as DICOM."""

    IDS: Mapping[str, int]  # structure -> id in the label map, 1..n
    TARGETS: tuple[str, ...]  # what the task learns
    PATIENTS: int  # how many its cohort has
    draw: Callable[..., Picture]  # draw(seed, index, size="full")


def load_task(name: str) -> Task:
    """The module of a task; UsageError for a name that is none."""
    check_word("UNKNOWN_TASK", "synthetic task", name, TASKS)
    return cast(Task, importlib.import_module(f"ctseg.anatomy.{TASKS[name]}"))


def is_dicom(task: Task, index: int) -> bool:
    """Whether a patient of the task is written as DICOM instead of NIfTI."""
    chosen = getattr(task, "is_dicom", None)
    return bool(chosen(index)) if chosen is not None else False


def numbered(*structures: str) -> dict[str, int]:
    """The structures with the numbers 1..n."""
    return {name: number for number, name in enumerate(structures, start=1)}
