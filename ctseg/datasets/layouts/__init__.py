"""Data-set layouts: one adapter per file (or row of `paired_folders`), each turning a folder into the same
case records.

An adapter has `SHAPE` (the layout in one line), `matches(root)` and `read(cases)`. Nothing
is opened but metadata and DICOM headers. What holds for all of them:

- Cases come in natural order; hidden files (`._x`, `.DS_Store`) do not exist; upper and lower case are alike.
- A case that cannot be offered has exactly one ERROR finding that carries its id. Files that no case uses are
  reported (UNMATCHED_FILE, ARCHIVE_INPUT, OTHER_FILES). Two cases of one name stop the run (DUPLICATE_ID).
- `annotated` holds the structures somebody looked for: names whose mask exists, or what the metadata says.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path
from typing import Protocol

from ctseg.config import check_word
from ctseg.datasets import listing
from ctseg.datasets.case import DataSet
from ctseg.datasets.gathering import Gathering
from ctseg.datasets.layouts import (
    abdomenatlas,
    dicom_seg,
    monai,
    msd,
    nnunet,
    openkbp_csv,
    plain,
    synthetic,
    totalsegmentator,
)
from ctseg.datasets.layouts.paired_folders import PAIRED
from ctseg.errors import Finding, PreconditionError
from ctseg.scans.formats import folder_walk, volume_files


class Adapter(Protocol):
    """What every module of this package offers."""

    @property
    def SHAPE(self) -> str:
        """The layout in one line."""

    def matches(self, root: Path) -> bool:
        """Whether the folder looks like this layout."""

    def read(self, cases: Gathering) -> DataSet:
        """The cases in the folder of a gathering."""


# In order of precedence: where several match, the first counts. The ones with their own marker file come
# first, the ones that accept almost any folder of their format last.
LAYOUTS: dict[str, Adapter] = {
    "synthetic": synthetic,
    "plain": plain,
    "nnunet": nnunet,
    "msd": msd,
    "openkbp_csv": openkbp_csv,
    **{layout.name: layout for layout in PAIRED},
    "totalsegmentator": totalsegmentator,
    "abdomenatlas": abdomenatlas,
    "monai": monai,
    "dicom_seg": dicom_seg,
}
# Layouts that a more specific one always matches too: no reason for a note.
_SPECIAL_CASES = {
    "synthetic": {"dicom_seg"},
    "nnunet": {"msd", "monai"},
    "msd": {"monai"},
    "totalsegmentator": {"abdomenatlas"},
}
_COUNTED_FILES = 100_000  # enough to say what is there


def open_data_set(root: Path, layout: str | None = None, *, follow_links: bool = False) -> DataSet:
    """The data set in a folder: its layout detected (or forced by `layout`), its cases in natural order.

    follow_links: use files that only links out of the folder lead to, instead of refusing their cases. Raises
    UsageError UNKNOWN_LAYOUT, PreconditionError NO_DATA (no folder, nothing in it, nothing recognised), and
    whatever the adapter finds wrong with the metadata.
    """
    root = Path(root)
    check_folder(root, layout)
    found = [layout] if layout else [name for name, adapter in LAYOUTS.items() if adapter.matches(root)]
    if not found:
        raise _not_recognised(root)
    chosen, *others = found
    adapter = LAYOUTS[chosen]
    data_set = adapter.read(Gathering(chosen, adapter.SHAPE, root, follow_links))
    others = [name for name in others if name not in _SPECIAL_CASES.get(chosen, ())]
    if not others:
        return data_set
    cause = f"read as {chosen}; it also looks like {', '.join(others)}, which --layout would choose"
    return dataclasses.replace(
        data_set, findings=(Finding("NOTE", "LAYOUT_CHOSEN", cause), *data_set.findings)
    )


def check_folder(root: Path | None, layout: str | None = None) -> None:
    """What `open_data_set` refuses without looking into the scans: an unknown layout, no folder, nothing in
    it. root: None when none was given.
    """
    if layout is not None:
        check_word("UNKNOWN_LAYOUT", "layout", layout, LAYOUTS)
    if root is None:
        return
    code, fix = "NO_DATA", "give --data the folder that holds the scans"
    try:
        is_folder, exists = root.is_dir(), root.exists()
    except (OSError, ValueError):
        is_folder = exists = False
    if not exists:
        cause = f"there is no folder '{root}'"
    elif not is_folder and root.name.casefold().endswith(listing.ARCHIVE_SUFFIXES):
        code, cause, fix = "ARCHIVE_INPUT", "an archive is not opened", "unpack it and give --data the folder"
    elif not is_folder:
        cause = f"'{root.name}' is a file, not a folder"
    elif not listing.entries(root):
        cause = f"the folder '{root}' is empty"
    else:
        return
    raise PreconditionError(code, cause, fix, file=root.name)


def _not_recognised(root: Path) -> PreconditionError:
    """The message for a folder of unknown layout: how many files of each kind are there, and what would be
    understood.
    """
    kinds: Counter[str] = Counter()
    known = (*volume_files.SUFFIXES, ".dcm", ".json", ".csv", *listing.ARCHIVE_SUFFIXES)
    for _, _, files in folder_walk.walk(root):
        for name in files:
            if not folder_walk.hidden(name):
                suffixes = (suffix for suffix in known if name.casefold().endswith(suffix))
                kinds[next(suffixes, "other files")] += 1
        if kinds.total() > _COUNTED_FILES:
            break
    contents = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    cause = f"the folder '{root}' has no known layout; it holds {contents or 'no files, only folders'}"
    closed = [
        path.name
        for path in listing.entries(root)
        if not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK)
    ]
    cause += f"; {closed[0]} may not be opened" if closed else ""
    inner = (
        f"give --data '{folder}', which looks like {name}, or "
        for folder in listing.folders(root)[:20]
        for name, adapter in LAYOUTS.items()
        if adapter.matches(folder)
    )
    shapes = "".join(
        f"\n  {name}: {adapter.SHAPE}" for name, adapter in LAYOUTS.items() if name != "synthetic"
    )
    fix = f"{next(inner, '')}bring the data into one of these layouts{shapes}\n"
    return PreconditionError("NO_DATA", cause, fix, file=root.name or ".")
