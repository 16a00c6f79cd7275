"""Nothing that is written may take the place of something that was given: decided before the first byte.

Files and folders are compared by what the system says they are, so that links, hard links and, where upper
and lower case are one file, other spellings count as the thing itself.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ctseg.artifacts import Workspace, writing
from ctseg.errors import UsageError


def keep_inputs(targets: Iterable[Path], inputs: Iterable[Path | None], *, below: bool = True) -> None:
    """Refuse to write `targets` (files, there or not) over `inputs` (files and folders, None is passed over).

    No target may be an input file or lie in an input folder; below: nor anywhere below one. Raises UsageError
    OUTPUT_OVER_INPUT, and TARGET_TWICE for two targets of one name (upper and lower case count as the same).
    """
    given = [path for path in inputs if path is not None]
    names: dict[str, Path] = {}
    refused: dict[Path, Path | None] = {}
    for target in targets:
        if names.setdefault(os.path.normpath(target).casefold(), target) is not target:
            raise UsageError(
                "TARGET_TWICE",
                f"two results would be written to '{target}'",
                "rename one of the scans or structures",
                file=target.name,
            )
        if target.parent not in refused:
            refused[target.parent] = _met([target.parent], given, below=below)
        if (over := _met([target], given, below=False) or refused[target.parent]) is not None:
            raise UsageError(
                "OUTPUT_OVER_INPUT",
                f"'{target}' would be written over or into the input '{over}'",
                "give the output a folder of its own, which holds no input",
                file=target.name,
            )


def keep_data(workspace: Workspace, data: Path | None, guide: str) -> None:
    """Refuse a workspace among the scans of `data`, and scans or a guide that lie where the workspace writes.

    Among the scans, results would be read as scans by the next run. guide: the setting data.guide.
    """
    folders = workspace.folders()
    if data is not None and (over := _met(folders, [data], below=True)) is not None:
        raise UsageError(
            "OUTPUT_OVER_INPUT",
            f"the workspace '{workspace.root}' would write among the scans of '{over}'",
            "give --workspace (and --processed) a folder outside of --data",
            file=workspace.root.name,
        )
    for given in (data, Path(guide)):
        if given is None or given.absolute() == workspace.guide_masks:
            continue
        if (over := _met([given], folders[1:], below=True)) is not None:
            raise UsageError(
                "OUTPUT_OVER_INPUT",
                f"the input '{given}' lies in '{over}', where this workspace writes",
                "copy it to another place, or use another --workspace",
                file=given.name,
            )


def require_writable(folder: Path) -> None:
    """Refuse, before any work, a folder that cannot be made or written. Raises ResourceError."""
    with writing(folder):
        place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _met(paths: Iterable[Path], given: Sequence[Path], *, below: bool) -> Path | None:
    """The first of `given` that one of `paths` is; below: or lies in."""
    known = {identity: path for path in given if (identity := _identity(path)) is not None}
    places = (place for path in paths for place in (path, *(path.resolve().parents if below else ())))
    return next((known[found] for found in map(_identity, places) if found in known), None)


def _identity(path: Path) -> tuple[int, int] | None:
    """What the system knows a file or folder by, None where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
