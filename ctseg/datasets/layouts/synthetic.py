"""The cohort that the pipeline draws itself when no data is given. Everything made from it says "synthetic".

synthetic.json                                       task, its structures, and what is known of each patient
nifti/BDMAP_.../ct.nii.gz + segmentations/...        as in the layout abdomenatlas
dicom/Patient_01/im_1, im_3                          as in the layout dicom_seg; some tasks have none
"""

from __future__ import annotations

from pathlib import Path

from ctseg.datasets import listing
from ctseg.datasets.case import DataSet
from ctseg.datasets.gathering import Gathering
from ctseg.datasets.layouts import abdomenatlas, dicom_seg
from ctseg.errors import PreconditionError

SHAPE = "synthetic.json + nifti/<case>/... and dicom/Patient_XX/..., written by the pipeline itself"


def matches(root: Path) -> bool:
    """The marker file is there."""
    return (root / "synthetic.json").is_file()


def read(cases: Gathering) -> DataSet:
    """The cases of both halves in natural order; structures are the names of both, sorted."""
    names: set[str] = set()
    for folder, read_half in (("nifti", abdomenatlas.read), ("dicom", dicom_seg.read)):
        if (cases.root / folder).is_dir():
            half = Gathering(cases.layout, cases.shape, cases.root / folder, cases.follow_links)
            names |= set(cases.add(folder, read_half(half)))
    cases.account(*listing.entries(cases.root))  # whatever lies there was written by the pipeline
    if not names:
        raise PreconditionError(
            "NO_DATA",
            "the synthetic cohort is incomplete",
            "delete the folder; the next run draws it again",
            file=cases.root.name,
        )
    return cases.data_set(sorted(names, key=listing.natural_key))
