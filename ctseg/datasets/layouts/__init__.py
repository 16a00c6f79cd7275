"""Data-set layouts: one adapter per file (or row of `paired_folders`), each turning a folder into the same
case records.

An adapter has `SHAPE` (the layout in one line), `matches(root)` and `read(root, follow_links=...)`. Nothing
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

from ctseg.config import did_you_mean
from ctseg.datasets import listing
from ctseg.datasets.case import DataSet
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
from ctseg.errors import Finding, PreconditionError, UsageError
from ctseg.scans.formats import folder_walk, volume_files


class Adapter(Protocol):
    """What every module of this package offers."""

    @property
    def SHAPE(self) -> str:
        """The layout in one line."""

    def matches(self, root: Path) -> bool:
        """Whether the folder looks like this layout."""

    def read(self, root: Path, *, follow_links: bool = False) -> DataSet:
        """The folder's cases."""


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
    if layout is not None:
        return LAYOUTS[layout].read(root, follow_links=follow_links)
    found = [name for name, adapter in LAYOUTS.items() if adapter.matches(root)]
    if not found:
        raise _not_recognised(root)
    data_set = LAYOUTS[found[0]].read(root, follow_links=follow_links)
    others = [name for name in found[1:] if name not in _SPECIAL_CASES.get(found[0], ())]
    if not others:
        return data_set
    cause = f"read as {found[0]}; it also looks like {', '.join(others)}, which --layout would choose"
    return dataclasses.replace(
        data_set, findings=(Finding("NOTE", "LAYOUT_CHOSEN", cause), *data_set.findings)
    )


def check_folder(root: Path | None, layout: str | None = None) -> None:
    """What `open_data_set` refuses without looking into the scans: an unknown layout, no folder, nothing in
    it. root: None when none was given.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(
            "UNKNOWN_LAYOUT",
            f"there is no layout '{layout}'{did_you_mean(layout, LAYOUTS)}",
            f"choose one of {', '.join(LAYOUTS)}",
        )
    if root is not None:
        _require_folder(root)


def _require_folder(root: Path) -> None:
    """PreconditionError unless `root` is a folder with something in it."""
    fix = "give --data the folder that holds the scans"
    try:
        is_folder, exists = root.is_dir(), root.exists()
    except (OSError, ValueError):
        is_folder = exists = False
    if not exists:
        raise PreconditionError("NO_DATA", f"there is no folder '{root}'", fix, file=root.name)
    if not is_folder and root.name.casefold().endswith(listing.ARCHIVE_SUFFIXES):
        raise PreconditionError(
            "ARCHIVE_INPUT",
            "an archive is not opened",
            "unpack it and give --data the folder",
            file=root.name,
        )
    if not is_folder:
        raise PreconditionError("NO_DATA", f"'{root.name}' is a file, not a folder", fix, file=root.name)
    if not listing.entries(root):
        raise PreconditionError("NO_DATA", f"the folder '{root}' is empty", fix, file=root.name)


def _not_recognised(root: Path) -> PreconditionError:
    """The message for a folder of unknown layout: what is there, and what would be understood."""
    cause = f"the folder '{root}' has no known layout; it holds {_contents(root)}"
    closed = [
        path.name
        for path in listing.entries(root)
        if not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK)
    ]
    cause += f"; {closed[0]} may not be opened" if closed else ""
    inner = [
        (folder.name, name)
        for folder in listing.folders(root)[:20]
        for name, adapter in LAYOUTS.items()
        if adapter.matches(folder)
    ]
    hint = f"give --data '{root / inner[0][0]}', which looks like {inner[0][1]}, or " if inner else ""
    shapes = "".join(
        f"\n  {name}: {adapter.SHAPE}" for name, adapter in LAYOUTS.items() if name != "synthetic"
    )
    return PreconditionError(
        "NO_DATA", cause, f"{hint}bring the data into one of these layouts{shapes}\n", file=root.name or "."
    )


def _contents(root: Path) -> str:
    """How many files of each kind are there, for people."""
    kinds: Counter[str] = Counter()
    for _, _, files in folder_walk.walk(root):
        for name in files:
            if not listing.hidden(name):
                lowered = name.casefold()
                known = (*volume_files.SUFFIXES, ".dcm", ".json", ".csv", *listing.ARCHIVE_SUFFIXES)
                kinds[next((suffix for suffix in known if lowered.endswith(suffix)), "other")] += 1
        if sum(kinds.values()) > _COUNTED_FILES:
            break
    if not kinds:
        return "no files, only folders"
    return ", ".join(
        f"{count} {'other files' if kind == 'other' else kind}" for kind, count in kinds.most_common()
    )
