"""A page to scroll through chosen test cases: scan, reference and prediction, in one file that needs no
network.

The volumes stand in the page, cropped to the body around the masks, at most LARGEST voxels along an axis,
compressed. The page's policy allows its own script, by hash, and nothing else.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from ctseg.geometry.boxes import bounding_box, box_shape
from ctseg.palette import ON_CT
from ctseg.reporting import report
from ctseg.reporting.page import TEMPLATES, template
from ctseg.reporting.pictures import slices
from ctseg.reporting.pictures.slices import CaseVolumes
from ctseg.reporting.results import Results

LARGEST = 160  # voxels along an axis of what the page carries
MARGIN_MM = 40.0
SCRIPT = TEMPLATES / "viewer.js"


def view_case(title: str, case: CaseVolumes, display_hu: tuple[float, float]) -> dict[str, Any]:
    """A case as the page carries it, in JSON values.

    shape, spacing (mm) and start (the slices shown first) in canonical order. image (0 to 255), reference and
    prediction: uint8 (D, H, W), compressed.
    """
    scan, truth, found = case.scan, case.truth, case.found
    masks = bounding_box((truth.array > 0) | (found.array > 0))
    box = slices.view_box(masks, truth.array.shape, scan.spacing_mm, margin_mm=MARGIN_MM)
    steps = [max(1, -(-length // LARGEST)) for length in box_shape(box)]
    thin = tuple(slice(part.start, part.stop, step) for part, step in zip(box, steps))
    arrays = {
        "image": slices.grey_of(scan.array[thin], display_hu) * 255,
        "reference": truth.array[thin],
        "prediction": found.array[thin],
    }
    packed = {
        name: base64.b64encode(gzip.compress(array.astype(np.uint8).tobytes(), 6, mtime=0)).decode()
        for name, array in arrays.items()
    }
    return {
        "title": title,
        "shape": list(arrays["image"].shape),
        "spacing": [round(length * step, 4) for length, step in zip(scan.spacing_mm, steps)],
        "start": slices.busiest_slices(arrays["reference" if truth.array.any() else "prediction"]),
        **packed,
    }


def render(found: Results, cases: Sequence[Mapping[str, Any]]) -> str:
    """The page as text."""
    script = SCRIPT.read_text(encoding="utf-8")
    colours = [ON_CT[index % len(ON_CT)] for index in range(len(found.structures))]
    content = json.dumps({"cases": list(cases), "structures": found.structures, "colours": colours}).replace(
        "<", "\\u003c"
    )
    return template("viewer.html.j2").render(
        title=report.title(found).replace("Segmentation report", "Test cases"),
        synthetic=found.synthetic,
        notices=[],
        content=Markup(content),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        window=slices.window_text(found.display_hu),
        structures=list(zip(found.structures, colours)),
    )
