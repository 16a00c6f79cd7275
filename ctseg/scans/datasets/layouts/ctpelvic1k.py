"""CTPelvic1K. Source: github.com/MIRACLE-Center/CTPelvic1K (label ids from its conversion code).

    [any folders/]dataset6_CLINIC_0001_data.nii.gz
    [any folders/]dataset6_CLINIC_0001_mask_4label.nii.gz

Scans and masks are paired by the name before `_data` / `_mask_4label`. 1 sacrum, 2 right hip, 3 left hip, 4 lumbar
vertebrae. Copies of the set disagree about 2 and 3, and some volumes are mirrored: reading a case compares every
left and right structure with the geometry and warns with SIDE_SWAP, naming the case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ctseg.scans.datasets import gathering
from ctseg.scans.datasets.case import DataSet
from ctseg.scans.datasets.gathering import Gathering
from ctseg.scans.formats import folder_walk

SHAPE = "[folders/]datasetN_NAME_0001_data.nii.gz + datasetN_NAME_0001_mask_4label.nii.gz"
VALUES = {1: "sacrum", 2: "right_hip", 3: "left_hip", 4: "lumbar_vertebra"}
DEEPEST = 4  # folder levels searched
_SCAN = re.compile(r"(?P<case>.+)_data", re.IGNORECASE)
_MASK = re.compile(r"(?P<case>.+)_mask(_4label)?", re.IGNORECASE)


def matches(root: Path) -> bool:
    """A scan named *_data and a mask named *_mask_4label."""
    names = [
        name.casefold().removesuffix(".gz")
        for _, names in _walk(root)
        for name in names
        if not gathering.hidden(name)
    ]
    return any(name.endswith("_data.nii") for name in names) and any(
        name.endswith("_mask_4label.nii") for name in names
    )


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """(folder, file names) down to the deepest level."""
    for folder, subfolders, names in folder_walk.walk(root):
        depth = len(folder.relative_to(root).parts)
        subfolders[:] = [] if depth >= DEEPEST else sorted(subfolders, key=gathering.natural_key)
        yield folder, names


def _files(root: Path) -> list[tuple[str, Path]]:
    """(stem, file) of all NIfTI names, in natural order."""
    found = []
    for folder, names in _walk(root):
        for name in sorted((n for n in names if not gathering.hidden(n)), key=gathering.natural_key):
            stem = gathering.volume_stem(Path(name))
            if stem is not None:
                found.append((stem, Path(folder, name)))
    return found


def read(root: Path, *, follow_links: bool = False) -> DataSet:
    """All pairs of scan and mask below the folder; unpaired ones are refused by name."""
    cases = Gathering("ctpelvic1k", root, follow_links)
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for stem, path in _files(root):
        for pattern, found in ((_SCAN, images), (_MASK, masks)):
            match = pattern.fullmatch(stem)
            if match is None:
                continue
            if match["case"] in found:
                raise gathering.duplicate_error(
                    f"{cases.relative(found[match['case']])} and {cases.relative(path)}"
                )
            found[match["case"]] = path
    gathering.offer_pairs(cases, images, masks, VALUES)
    return cases.data_set(tuple(VALUES.values()))
