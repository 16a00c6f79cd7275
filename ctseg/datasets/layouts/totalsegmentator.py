"""The TotalSegmentator data set (v1 and v2). Source: doi.org/10.5281/zenodo.6802613,
wasserth/TotalSegmentator.

    meta.csv                              optional: image_id;...;split (separator ";" or ",")
    s0000/ct.nii.gz
    s0000/segmentations/liver.nii.gz
    s0000/segmentations/...

The ids of v1 and v2 differ, the file names are the structures. `split` in meta.csv is used when it is there.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from ctseg.datasets import listing
from ctseg.datasets.case import DataSet
from ctseg.datasets.gathering import Gathering
from ctseg.datasets.layouts import abdomenatlas
from ctseg.errors import PreconditionError

SHAPE = "s0000/ct.nii.gz + s0000/segmentations/<structure>.nii.gz, optional meta.csv"
_CASE = re.compile(r"s\d{4,5}", re.IGNORECASE)


def matches(root: Path) -> bool:
    """Case folders named sXXXX, or any mask folders beside a meta.csv."""
    labelled = [folder for folder in listing.folders(root) if abdomenatlas.CaseFolder(folder).labelled()]
    return any(_CASE.fullmatch(folder.name) for folder in labelled) or bool(
        labelled and listing.child(root, "meta.csv")
    )


def read(cases: Gathering) -> DataSet:
    """All case folders, with the splits of meta.csv where it has such columns."""
    path = listing.child(cases.root, "meta.csv")
    if path is None:
        return abdomenatlas.read_case_folders(cases, {})
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        delimiter = ";" if lines and ";" in lines[0] else ","
        rows = list(csv.DictReader(lines, delimiter=delimiter))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        cause, fix = f"not readable as a table ({error})", "correct or remove the file"
        raise PreconditionError("METADATA_PARSE", cause, fix, file=path.name) from error
    told = [[(row.get(key) or "").strip() for key in ("image_id", "split")] for row in rows]
    splits = {case_id.casefold(): split for case_id, split in told if split}
    return abdomenatlas.read_case_folders(cases, splits, path)
