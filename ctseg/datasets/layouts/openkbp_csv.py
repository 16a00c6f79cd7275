"""OpenKBP as the challenge published it. Source: github.com/ababier/open-kbp (MIT), doi.org/10.1002/mp.14845.

    [provided-data/]train-pats/pt_1/ct.csv
    [provided-data/]train-pats/pt_1/voxel_dimensions.csv
    [provided-data/]train-pats/pt_1/Brainstem.csv, ...     one sparse list of voxels per structure
    [provided-data/]validation-pats/..., test-pats/...     the official splits: val and test

Dose, dose mask and PTV files are no organs and are ignored. A structure without file was not drawn:
unlabelled.
"""

from __future__ import annotations

import re
from pathlib import Path

from ctseg.datasets import listing
from ctseg.datasets.case import DataSet, ImageSource, LabelSource
from ctseg.datasets.gathering import Gathering
from ctseg.scans.formats.openkbp_csv import STRUCTURES

SHAPE = "train-pats/pt_1/{ct.csv, voxel_dimensions.csv, <Structure>.csv}, also validation-pats and test-pats"
SPLITS = {"train-pats": "train", "validation-pats": "val", "test-pats": "test"}
_NO_STRUCTURE = re.compile(r"ct|voxel_dimensions|dose|possible_dose_mask|ptv\d*", re.IGNORECASE)


def matches(root: Path) -> bool:
    """Some patient folder holds ct.csv."""
    return any((folder / "ct.csv").exists() for folder, _ in _patients(root))


def _patients(root: Path) -> list[tuple[Path, str | None]]:
    """(patient folder, split) for the published folders below the root, or for the root's own subfolders."""
    for top in (root, root / "provided-data"):
        pools = [folder for folder in listing.folders(top) if folder.name.casefold() in SPLITS]
        if pools:
            break
    return [
        (folder, SPLITS.get(pool.absolute().name.casefold()))
        for pool in pools or [root]
        for folder in listing.folders(pool)
    ]


def read(cases: Gathering) -> DataSet:
    """All patients; structures in the order in which a label map holds them."""
    present: set[str] = set()
    for folder, split in _patients(cases.root):
        tables = {path.stem: path for path in listing.entries(folder) if path.suffix.casefold() == ".csv"}
        if tables:
            present |= _read_patient(cases, folder, tables, split)
    return cases.data_set(name for name in STRUCTURES.values() if name in present)


def _read_patient(cases: Gathering, folder: Path, tables: dict[str, Path], split: str | None) -> set[str]:
    """Offer or refuse one patient; the structures drawn for this patient. tables: stem -> file."""
    cases.account(*tables.values())
    names = {name for name in STRUCTURES.values() if name in tables}
    needed = [folder / "ct.csv", folder / "voxel_dimensions.csv"]
    problems = [
        (("FILE_MISSING", f"{path.name} does not exist", "download the patient again"), path)
        for path in needed
        if path.stem not in tables
    ]
    problems += [(found, path) for path in tables.values() if (found := cases.problem(path)) is not None]
    if not names:
        problems.append((("LABEL_MISSING", "no structure was drawn", "move the folder away"), folder))
    if problems:
        cases.refuse(folder.name, *problems[0])
        return set()
    for stem, path in tables.items():
        if stem not in names and not _NO_STRUCTURE.fullmatch(stem):
            cause = "not one of the challenge's structures"
            cases.tell("UNMATCHED_FILE", cause, "remove the file", path=path, case=folder.name)
    image, labels = ImageSource("openkbp_csv", folder), LabelSource("openkbp_csv", folder)
    cases.offer(folder.name, image, labels, annotated=names, split=split)
    return names
