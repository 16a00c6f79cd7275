"""What every synthetic task draws: a scan, its labels, and a few facts about the patient."""

from __future__ import annotations

import dataclasses
from typing import Any

from ctseg.geometry.volume import Volume


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawn patient. image: HU float32; label: uint8 ids of the task's structures; one grid (D, H, W).

    facts: JSON values for the cohort's record, such as sex or whether contrast medium was given.
    """

    image: Volume
    label: Volume
    facts: dict[str, Any]
