"""The one walk through a folder of scans: which names do not exist for us, and where links lead.

Links to folders are followed, so that a cohort of links into an archive is found, but no folder is entered
twice (docs/decisions/014-finding-scans.md). What a walk did not enter it says, so that its caller can tell
it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

SYSTEM_NAMES = {"__macosx", "thumbs.db", "desktop.ini", "dicomdir"}
HIDDEN = "a hidden folder"  # why a folder was not entered; of any other reason scans may be lost
TWICE = "a link to a folder that is searched anyway, or to one that holds this one"


def hidden(name: str) -> bool:
    """Whether a file or folder is the operating system's own (`._x`, `.DS_Store`, `__MACOSX`,
    `Thumbs.db`)."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def walk(
    root: Path, not_entered: dict[Path, str] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, names of its subfolders, of its other entries) from `root` downwards, sorted, as `os.walk`.

    The caller may take subfolders out of the list. Hidden ones are not in it; a link is not followed to a
    folder that is walked anyway (in `root`, above it, or reached by another link). not_entered: filled with
    those and with folders that cannot be listed, and why.
    """
    skipped = {} if not_entered is None else not_entered
    real_root = os.path.realpath(root)
    reached: set[str] = set()  # real folders that only links lead to
    waiting = [Path(root)]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listing:
                found = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            skipped[folder] = f"the folder cannot be listed ({error.strerror})"
            continue
        inner: tuple[list[str], list[str]] = [], []  # files, folders
        for entry in found:
            inner[_is_folder(entry)].append(entry.name)
        skipped |= {folder / name: HIDDEN for name in inner[True] if hidden(name)}
        names = [name for name in inner[True] if not hidden(name)]
        yield folder, names, inner[False]
        entered = []
        for path in (folder / name for name in names):
            real = os.path.realpath(path)
            if path.is_symlink() or not _within(real, real_root):
                if real in reached or _within(real_root, real) or _walked(real, real_root):
                    skipped[path] = TWICE
                    continue
                reached.add(real)
            entered.append(path)
        waiting += reversed(entered)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link loop
        return False


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _walked(path: str, root: str) -> bool:
    """Whether a walk from `root` comes to a real folder without any link."""
    return _within(path, root) and not any(hidden(part) for part in Path(os.path.relpath(path, root)).parts)
