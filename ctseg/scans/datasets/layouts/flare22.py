"""FLARE22, the labelled part. Source: flare22.grand-challenge.org (ids confirmed by its evaluation code).

    [FLARE22Train/]images/FLARE22_Tr_0001_0000.nii.gz
    [FLARE22Train/]labels/FLARE22_Tr_0001.nii.gz        `.nii` too

The data set has no table of names; its thirteen ids are fixed below.
"""

from __future__ import annotations

import re
from pathlib import Path

from ctseg.errors import PreconditionError
from ctseg.scans.datasets import gathering
from ctseg.scans.datasets.case import DataSet
from ctseg.scans.datasets.gathering import Gathering

SHAPE = "images/FLARE22_Tr_0001_0000.nii.gz + labels/FLARE22_Tr_0001.nii.gz"
VALUES = {
    1: "liver",
    2: "kidney_right",
    3: "spleen",
    4: "pancreas",
    5: "aorta",
    6: "inferior_vena_cava",
    7: "adrenal_gland_right",
    8: "adrenal_gland_left",
    9: "gallbladder",
    10: "esophagus",
    11: "stomach",
    12: "duodenum",
    13: "kidney_left",
}
_CASE = re.compile(r"FLARE\d*_", re.IGNORECASE)


def matches(root: Path) -> bool:
    """`images` and `labels` folders with FLARE names, in the folder or in one below it."""
    return bool(_places(root))


def _places(root: Path) -> list[tuple[Path, Path]]:
    """(images, labels) folders of the set."""
    return [
        pair
        for pair in gathering.image_label_folders(root)
        if any(_CASE.match(stem) for folder in pair for stem in gathering.volumes(folder))
    ]


def read(root: Path, *, follow_links: bool = False) -> DataSet:
    """All pairs of scan and label map, by case name."""
    places = _places(root)
    if not places:
        raise PreconditionError(
            "NO_DATA",
            "there are no FLARE22 files in folders images and labels",
            f"the layout flare22 needs {SHAPE}",
        )
    cases = Gathering("flare22", root, follow_links)
    for images, labels in places:
        scans = {_case_of(stem): path for stem, path in gathering.volumes(images).items()}
        maps = {_case_of(stem): path for stem, path in gathering.volumes(labels).items()}
        gathering.offer_pairs(cases, scans, maps, VALUES)
    return cases.data_set(tuple(VALUES.values()))


def _case_of(stem: str) -> str:
    """The case's name: the file name without the channel number."""
    return re.sub(r"_0000$", "", stem)
