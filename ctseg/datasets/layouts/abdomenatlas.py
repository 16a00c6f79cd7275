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
    if masks is not None and masks.is_dir() and (listing.volume(folder, "ct") or _mask_files(folder)):
        return True
    return combined_map(folder) is not None


def combined_map(folder: Path) -> Path | None:
    """The combined label map of a case folder."""
    return listing.volume(folder, "combined_labels")


def read(root: Path, *, follow_links: bool = False) -> DataSet:
    """All case folders; structures are the mask names of all cases together, sorted."""
    return read_case_folders("abdomenatlas", root, follow_links, {})


def read_case_folders(
    layout: str, root: Path, follow_links: bool, splits: dict[str, str], *metadata_files: Path
) -> DataSet:
    """The reading that AbdomenAtlas and TotalSegmentator share. splits: case id -> the data set's own word
    for its split.
    """
    cases = Gathering(layout, root, follow_links)
    cases.account(*metadata_files)
    table = metadata.names_beside(root)
    if table is not None:
        cases.account(root / "labels.json")
    found = {
        folder: _mask_files(folder)
        for folder in listing.folders(root)
        if is_case(folder) or listing.volume(folder, "ct")
    }
    names = {name for masks in found.values() for name in masks}
    if table is not None and any(not masks for masks in found.values()):
        names |= set(table.values.values())
    # one spelling per structure: the first in natural order
    spelling = {listing.folded(name): name for name in sorted(names, key=listing.natural_key, reverse=True)}
    for folder, masks in found.items():
        masks = {spelling[listing.folded(name)]: path for name, path in masks.items()}
        _read_case(
            cases,
            folder,
            masks,
            table,
            cases.split_of(splits.get(folder.name.casefold()), folder.name, next(iter(metadata_files), root)),
        )
    return cases.data_set(sorted(spelling.values(), key=listing.natural_key))


def _mask_files(folder: Path) -> dict[str, Path]:
    """Structure name (the file's stem) -> mask file of one case."""
    masks = listing.child(folder, "segmentations")
    return listing.volumes(masks) if masks is not None and listing.readable(masks) else {}


def _read_case(
    cases: Gathering, folder: Path, masks: dict[str, Path], table: LabelTable | None, split: str | None
) -> None:
    """Offer one case folder, or refuse it with what it lacks."""
    ct, combined = listing.volume(folder, "ct"), combined_map(folder)
    cases.account(ct, combined, *masks.values())
    closed = listing.child(folder, "segmentations")
    if closed is not None and closed.is_dir() and not listing.readable(closed):
        cases.refuse(folder.name, listing.CLOSED, closed)
        cases.account(folder)
    elif ct is None:
        cases.refuse(
            folder.name,
            ("FILE_MISSING", "ct.nii.gz does not exist", "put the scan there, or move the folder away"),
            folder / "ct.nii.gz",
        )
    elif masks:
        source = LabelSource("masks", masks=masks)
        cases.offer(folder.name, listing.image_source(ct), source, annotated=masks, split=split)
    elif combined is None:
        cases.refuse(
            folder.name,
            ("LABEL_MISSING", "there is no mask in segmentations", "add the masks, or move the folder away"),
            folder,
        )
    elif table is None:
        fix = f"write labels.json beside the case folders, for example {metadata.NAMES_EXAMPLE}"
        cases.refuse(
            folder.name,
            ("LABEL_NAMES_MISSING", "a combined map does not say which value is which organ", fix),
            combined,
        )
    else:
        cases.offer_map(folder.name, ct, combined, table, annotated=table.values.values(), split=split)
