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

from pathlib import Path

from ctseg.datasets import listing, metadata
from ctseg.datasets.case import DataSet, LabelSource, LabelTable
from ctseg.datasets.gathering import Gathering

SHAPE = (
    "<case>/ct.nii.gz + <case>/segmentations/<organ>.nii.gz (or combined_labels.nii.gz and one labels.json)"
)


def matches(root: Path) -> bool:
    """Some subfolder is a case."""
    return any(is_case(folder) for folder in listing.folders(root))


def is_case(folder: Path) -> bool:
    """Whether a folder has the labels of a case (its CT may be missing: reading then says so)."""
    masks = listing.child(folder, "segmentations")
    if masks is not None and masks.is_dir() and (listing.volume(folder, "ct") or listing.volumes(masks)):
        return True
    return listing.volume(folder, "combined_labels") is not None


def read(cases: Gathering) -> DataSet:
    """All case folders; structures are the mask names of all cases together, sorted."""
    return read_case_folders(cases, {})


def read_case_folders(cases: Gathering, splits: dict[str, str], splits_file: Path | None = None) -> DataSet:
    """The reading that AbdomenAtlas and TotalSegmentator share. splits: case id -> the data set's own word
    for its split, from `splits_file`.
    """
    table = metadata.names_beside(cases.root)
    cases.account(splits_file, None if table is None else cases.root / "labels.json")
    found: dict[Path, dict[str, Path]] = {}
    for folder in listing.folders(cases.root):
        if is_case(folder) or listing.volume(folder, "ct"):
            inner = listing.child(folder, "segmentations")
            found[folder] = listing.volumes(inner) if inner is not None and listing.readable(inner) else {}
    names = {name for masks in found.values() for name in masks}
    if table is not None and not all(found.values()):
        names |= set(table.names)
    # one spelling per structure: the first in natural order
    spelling = {listing.folded(name): name for name in sorted(names, key=listing.natural_key, reverse=True)}
    for folder, files in found.items():
        masks = {spelling[listing.folded(name)]: path for name, path in files.items()}
        split = cases.split_of(splits.get(folder.name.casefold()), folder.name, splits_file or cases.root)
        _read_case(cases, folder, masks, table, split)
    return cases.data_set(sorted(spelling.values(), key=listing.natural_key))


def _read_case(
    cases: Gathering, folder: Path, masks: dict[str, Path], table: LabelTable | None, split: str | None
) -> None:
    """Offer one case folder, or refuse it with what it lacks."""
    ct, combined = listing.volume(folder, "ct"), listing.volume(folder, "combined_labels")
    cases.account(ct, combined, *masks.values())
    closed = listing.child(folder, "segmentations")
    if closed is not None and closed.is_dir() and not listing.readable(closed):
        cases.refuse(folder.name, listing.CLOSED, closed)
        cases.account(folder)
    elif ct is None:
        fix = "put the scan there, or move the folder away"
        cases.refuse(folder.name, ("FILE_MISSING", "ct.nii.gz does not exist", fix), folder / "ct.nii.gz")
    elif masks:
        source = LabelSource("masks", masks=masks)
        cases.offer(folder.name, listing.image_source(ct), source, annotated=masks, split=split)
    elif combined is None:
        fix = "add the masks, or move the folder away"
        cases.refuse(folder.name, ("LABEL_MISSING", "there is no mask in segmentations", fix), folder)
    elif table is None:
        cause = "a combined map does not say which value is which organ"
        fix = f"write labels.json beside the case folders, for example {metadata.NAMES_EXAMPLE}"
        cases.refuse(folder.name, ("LABEL_NAMES_MISSING", cause, fix), combined)
    else:
        cases.offer_map(folder.name, ct, combined, table, annotated=table.names, split=split)
