"""A page to scroll through chosen test cases: scan, reference and prediction, in one file that needs no
network.

The volumes stand in the page, cropped to the body around the masks, at most LARGEST voxels along an axis,
compressed. The page's policy allows its own script, by hash, and nothing else.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from ctseg.palette import ON_CT
from ctseg.reporting import report
from ctseg.reporting.page import TEMPLATES, template
from ctseg.reporting.pictures import slices
from ctseg.reporting.pictures.slices import CaseVolumes
from ctseg.reporting.results import Results

LARGEST = 160  # voxels along an axis of what the page carries
MARGIN_MM = 40.0
SCRIPT = TEMPLATES / "viewer.js"


@dataclasses.dataclass(frozen=True)
class ViewedCase:
    """A case as the page carries it. arrays: image (0 to 255), reference and prediction, uint8 (D, H, W) in
    canonical order.
    """

    title: str
    spacing_mm: tuple[float, float, float]
    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    start: tuple[int, int, int]

    def record(self) -> dict[str, Any]:
        """The case as JSON values."""
        arrays = {
            name: base64.b64encode(
                gzip.compress(np.ascontiguousarray(getattr(self, name)).tobytes(), 6, mtime=0)
            ).decode()
            for name in ("image", "reference", "prediction")
        }
        return {
            "title": self.title,
            "shape": list(self.image.shape),
            "spacing": [round(s, 4) for s in self.spacing_mm],
            "start": list(self.start),
            **arrays,
        }


def view_case(title: str, case: CaseVolumes, display_hu: tuple[float, float]) -> ViewedCase:
    """A case ready for the page."""
    scan, truth, found = case.scan, case.truth, case.found
    box = slices.view_box((truth.array > 0) | (found.array > 0), scan.spacing_mm, margin_mm=MARGIN_MM)
    steps = [max(1, -(-(part.stop - part.start) // LARGEST)) for part in box]
    thin = tuple(slice(part.start, part.stop, step) for part, step in zip(box, steps))
    low, high = display_hu
    grey = np.clip((scan.array[thin] - low) / (high - low), 0, 1) * 255
    spacing = tuple(s * step for s, step in zip(scan.spacing_mm, steps))
    centre = slices.busiest_slices(truth.array[thin] if truth.array.any() else found.array[thin])
    return ViewedCase(
        title,
        spacing,
        grey.astype(np.uint8),
        truth.array[thin].astype(np.uint8),
        found.array[thin].astype(np.uint8),
        centre,
    )  # type: ignore[arg-type]


def render(found: Results, cases: Sequence[ViewedCase]) -> str:
    """The page as text."""
    script = SCRIPT.read_text(encoding="utf-8")
    colours = [ON_CT[index % len(ON_CT)] for index in range(len(found.structures))]
    content = json.dumps(
        {"cases": [case.record() for case in cases], "structures": list(found.structures), "colours": colours}
    ).replace("<", "\\u003c")
    return template("viewer.html.j2").render(
        title=report.title(found).replace("Segmentation report", "Test cases"),
        synthetic=found.synthetic,
        notices=[],
        content=Markup(content),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        window=slices.window_text(slices.display_window(found.manifest.get("window_hu"))),
        structures=list(zip(found.structures, colours)),
    )
