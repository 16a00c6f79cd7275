"""Airway data sets: scans and airway masks in two folders, paired by name. ATM'22 (atm22.grand-challenge.org), BAS (Qin et al. 2019,
MICCAI, doi 10.1007/978-3-030-32226-7_24, built on LIDC-IDRI and EXACT'09).

    [TrainBatch1/]images/ATM_001_0000.nii.gz        or a folder images/CASE01/ with a DICOM series
    [TrainBatch1/]labels/ATM_001_0000.nii.gz        1 = airway

BAS publishes no folder layout: bring its files into these two folders. A CASE folder of EXACT'09 is paired with the mask of its name.
"""

from __future__ import annotations

import re
from pathlib import Path

from ctseg.errors import PreconditionError
from ctseg.scans.datasets import gathering
from ctseg.scans.datasets.case import DataSet, ImageSource, LabelSource
from ctseg.scans.datasets.gathering import Gathering

SHAPE = "images/ATM_001_0000.nii.gz (or a DICOM folder per case) + labels/ATM_001_0000.nii.gz, 1 = airway"
VALUES = {1: "airway"}
_CASE = re.compile(r"ATM_\d|LIDC|EXACT|CASE\d\d", re.IGNORECASE)


def matches(root: Path) -> bool:
    """`images` and `labels` folders with names of an airway data set, in the folder or in one below it."""
    return any(
        _CASE.match(stem)
        for _, labels in gathering.image_label_folders(root)
        for stem in gathering.volumes(labels)
    )


def read(root: Path, *, follow_links: bool = False) -> DataSet:
    """All pairs of scan and airway mask, by case name."""
    places = gathering.image_label_folders(root)
    if not places:
        raise PreconditionError(
            "NO_DATA", "there are no folders images and labels", f"the layout airway_pair needs {SHAPE}"
        )
    cases = Gathering("airway_pair", root, follow_links)
    for images, labels in places:
        masks = {_case_of(stem): path for stem, path in gathering.volumes(labels).items()}
        for folder in gathering.folders(images):  # DICOM series
            mask = masks.pop(folder.name, None)
            if mask is None:
                cases.refuse(
                    folder.name,
                    ("LABEL_MISSING", "a scan without label", "add its label, or move the scan away"),
                    folder,
                )
            else:
                cases.offer(
                    folder.name, ImageSource("dicom", folder), LabelSource("map", mask, values=dict(VALUES))
                )
        gathering.offer_pairs(
            cases, {_case_of(stem): path for stem, path in gathering.volumes(images).items()}, masks, VALUES
        )
    return cases.data_set(tuple(VALUES.values()))


def _case_of(stem: str) -> str:
    """The case's name: the file name without the channel number."""
    return re.sub(r"_0000$", "", stem)
