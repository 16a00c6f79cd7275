"""ImageCAS (Zeng et al. 2023, doi 10.1016/j.compmedimag.2023.102287) as anatomical-guidance arranges it: coronary arteries, and the
heart around them as one map.

    [train|valid|test/]<id>/img.nii.gz, label.nii.gz (1 = coronary artery), heart_combined.nii.gz (0 to 7, may be missing)

The seven parts are by content those of TotalSegmentator's heart task. **Their order is inferred, not published**: check it against the
images of your copy before you guide by them.
"""

from __future__ import annotations

from pathlib import Path

from ctseg.scans.datasets import gathering
from ctseg.scans.datasets.case import DataSet, LabelSource
from ctseg.scans.datasets.gathering import Gathering

SHAPE = "[train|valid|test/]<id>/img.nii.gz + label.nii.gz, 1 = coronary artery"
VALUES = {1: "coronary_artery"}
SPLITS = {"train": "train", "valid": "val", "val": "val", "test": "test"}


def matches(root: Path) -> bool:
    """A case folder with img and label, in the folder or in a folder of a split."""
    return any(
        gathering.volume(case, "img") and gathering.volume(case, "label")
        for case, _ in _case_folders(root)[:50]
    )


def _case_folders(root: Path) -> list[tuple[Path, str | None]]:
    """(folder, split) of what may be cases."""
    found: list[tuple[Path, str | None]] = []
    for folder in gathering.folders(root):
        split = SPLITS.get(folder.name.casefold())
        if split is None:
            found.append((folder, None))
        else:
            found += [(case, split) for case in gathering.folders(folder)]
    return found


def read(root: Path, *, follow_links: bool = False) -> DataSet:
    """All cases with scan and label. The heart's map is left for `--guide`, which takes a folder of masks."""
    cases = Gathering("imagecas", root, follow_links)
    for folder, split in _case_folders(root):
        image, label, heart = (gathering.volume(folder, stem) for stem in ("img", "label", "heart_combined"))
        cases.account(heart)
        if image is None and label is None:
            continue
        if image is None or label is None:
            cases.refuse(
                folder.name,
                (
                    "FILE_MISSING",
                    f"the case has no {'img' if image is None else 'label'}.nii.gz",
                    "add it, or remove the folder",
                ),
                folder,
            )
            continue
        cases.offer(
            folder.name,
            gathering.image_source(image),
            LabelSource("map", label, values=dict(VALUES)),
            split=split,
        )
    return cases.data_set(tuple(VALUES.values()))
