"""AbdomenAtlas: one folder per case, one mask file per organ. Source: github.com/MrGiovanni/AbdomenAtlas.

    BDMAP_00000001/ct.nii.gz
    BDMAP_00000001/segmentations/liver.nii.gz
    BDMAP_00000001/segmentations/...
    BDMAP_00000001/combined_labels.nii.gz      used only when there are no masks
    labels.json                                names for combined_labels, ours: {"labels": {"aorta": 1, ...}}

Any folder names will do; BDMAP is not required. The mask files' names are the structures: the ids of the
combined map differ between releases and the set's own scripts, so they are never guessed. A mask file that is
missing means that nobody looked for the organ; an empty one means that it is absent.
"""

from __future__ import annotations

import functools
from pathlib import Path

from ctseg.datasets import listing, metadata
from ctseg.datasets.case import DataSet, LabelSource
from ctseg.datasets.gathering import Gathering

SHAPE = (
    "<case>/ct.nii.gz + <case>/segmentations/<organ>.nii.gz (or combined_labels.nii.gz and one labels.json)"
)


class CaseFolder:
    """What a case folder holds. segmentations: the folder of the masks."""

    def __init__(self, folder: Path):
        self.ct, self.combined = (listing.volume(folder, stem) for stem in ("ct", "combined_labels"))
        inner = listing.child(folder, "segmentations")
        self.segmentations = inner if inner is not None and inner.is_dir() else None

    @functools.cached_property
    def masks(self) -> dict[str, Path]:
        """Structure (the file's stem) -> file, none where the folder may not be entered; listed when asked
        for: layouts that are only tried refuse nothing in it.
        """
        inner = self.segmentations
        return listing.volumes(inner) if inner is not None and listing.readable(inner) else {}

    def labelled(self) -> bool:
        """Whether it has the labels of a case (its CT may be missing: reading then says so)."""
        with_ct = self.segmentations is not None and self.ct is not None
        return with_ct or self.combined is not None or bool(self.masks)


def matches(root: Path) -> bool:
    """Some subfolder is a case."""
    return any(CaseFolder(folder).labelled() for folder in listing.folders(root))


def read(cases: Gathering) -> DataSet:
    """All case folders; structures are the mask names of all cases together, sorted."""
    return read_case_folders(cases, {})


def read_case_folders(cases: Gathering, splits: dict[str, str], splits_file: Path | None = None) -> DataSet:
    """The reading that AbdomenAtlas and TotalSegmentator share. splits: case id -> the data set's own word
    for its split, from `splits_file`.
    """
    table = metadata.names_beside(cases.root)
    cases.account(splits_file, None if table is None else cases.root / "labels.json")
    found = {folder: CaseFolder(folder) for folder in listing.folders(cases.root)}
    found = {folder: content for folder, content in found.items() if content.labelled() or content.ct}
    names = {name for content in found.values() for name in content.masks}
    if table is not None and not all(content.masks for content in found.values()):
        names |= set(table.names)
    # one spelling per structure: the first in natural order
    spelling = {listing.folded(name): name for name in sorted(names, key=listing.natural_key, reverse=True)}
    for folder, content in found.items():
        ct, combined, segmentations = content.ct, content.combined, content.segmentations
        masks = {spelling[listing.folded(name)]: path for name, path in content.masks.items()}
        cases.account(ct, combined, *masks.values())
        name = folder.name
        split = cases.split_of(splits.get(name.casefold()), name, splits_file or cases.root)
        if segmentations is not None and not listing.readable(segmentations):
            cases.refuse(name, listing.CLOSED, segmentations)
            cases.account(folder)
        elif ct is None:
            fix = "put the scan there, or move the folder away"
            cases.refuse(name, ("FILE_MISSING", "ct.nii.gz does not exist", fix), folder / "ct.nii.gz")
        elif masks:
            source = LabelSource("masks", masks=masks)
            cases.offer(name, listing.image_source(ct), source, annotated=masks, split=split)
        elif combined is None:
            fix = "add the masks, or move the folder away"
            cases.refuse(name, ("LABEL_MISSING", "there is no mask in segmentations", fix), folder)
        elif table is None:
            cause = "a combined map does not say which value is which organ"
            fix = f"write labels.json beside the case folders, for example {metadata.NAMES_EXAMPLE}"
            cases.refuse(name, ("LABEL_NAMES_MISSING", cause, fix), combined)
        else:
            cases.offer_map(name, ct, combined, table, annotated=table.names, split=split)
    return cases.data_set(sorted(spelling.values(), key=listing.natural_key))
