"""The one walk through a folder of scans: which names do not exist for us, and where links lead.

Links to folders are followed, so that a cohort of links into an archive is found, but no folder is entered
twice (docs/decisions/014-finding-scans.md). What a walk did not enter it says, so that its caller can tell
it.
"""

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
    real_root = Path(os.path.realpath(root))
    reached: set[Path] = set()  # real folders that only links lead to

    def note(error: OSError) -> None:
        skipped[Path(error.filename or root)] = f"the folder cannot be listed ({error.strerror})"

    waiting = [(Path(root), real_root)]
    while waiting:  # os.walk itself recurses, which ends in a deep tree
        folder, real_folder = waiting.pop()
        _, folders, files = next(os.walk(folder, onerror=note), (folder, None, []))
        if folders is None:
            continue
        skipped |= {folder / name: HIDDEN for name in folders if hidden(name)}
        names = sorted(name for name in folders if not hidden(name))
        yield folder, names, sorted(files)
        entered = []
        for name in names:
            path, link = folder / name, (folder / name).is_symlink()
            # asked of all on Windows, whose junctions are no links to Python
            real = Path(os.path.realpath(path)) if link or os.name == "nt" else real_folder / name
            inside = real.is_relative_to(real_root)
            if link or not inside:
                walked = inside and not any(map(hidden, real.relative_to(real_root).parts))
                if walked or real in reached or real_root.is_relative_to(real):
                    skipped[path] = TWICE
                    continue
                reached.add(real)
            entered.append((path, real))
        waiting += reversed(entered)
