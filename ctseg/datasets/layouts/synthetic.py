"""The cohort that the pipeline draws itself when no data is given. Everything made from it says "synthetic".

synthetic.json                                       task, its structures, and what is known of each patient
nifti/BDMAP_.../ct.nii.gz + segmentations/...        as in the layout abdomenatlas
dicom/Patient_01/im_1, im_3                          as in the layout dicom_seg; some tasks have none
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

from ctseg.datasets import listing
from ctseg.datasets.case import CaseRecord, DataSet
from ctseg.datasets.layouts import abdomenatlas, dicom_seg
from ctseg.errors import PreconditionError

SHAPE = "synthetic.json + nifti/<case>/... and dicom/Patient_XX/..., written by the pipeline itself"
_PARTS: dict[str, ModuleType] = {"nifti": abdomenatlas, "dicom": dicom_seg}


def matches(root: Path) -> bool:
    """The marker file is there."""
    return (root / "synthetic.json").is_file()


def read(root: Path, *, follow_links: bool = False) -> DataSet:
    """The cases of both halves in natural order; structures are the names of both, sorted."""
    parts = {
        name: adapter.read(root / name, follow_links=follow_links)
        for name, adapter in _PARTS.items()
        if (root / name).is_dir()
    }
    if not parts:
        raise PreconditionError(
            "NO_DATA",
            "the synthetic cohort is incomplete",
            "delete the folder; the next run draws it again",
            file=root.name,
        )
    cases: dict[str, CaseRecord] = {}
    for case in (case for part in parts.values() for case in part.cases):
        if listing.folded(case.case_id) in cases:
            raise listing.duplicate_error(f"case '{case.case_id}'")
        cases[listing.folded(case.case_id)] = case
    findings = [
        dataclasses.replace(finding, file=finding.file if finding.file == "-" else f"{name}/{finding.file}")
        for name, part in parts.items()
        for finding in part.findings
    ]
    structures = sorted(
        {name for part in parts.values() for name in part.structures}, key=listing.natural_key
    )
    ordered = sorted(cases.values(), key=lambda case: listing.natural_key(case.case_id))
    return DataSet("synthetic", root, tuple(structures), tuple(ordered), tuple(findings), synthetic=True)
