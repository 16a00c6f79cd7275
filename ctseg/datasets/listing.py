"""Names and listings of a data folder: natural order, volumes by stem, what may not be used as a name or a
file.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from ctseg.datasets.case import ImageSource
from ctseg.errors import PreconditionError
from ctseg.scans.formats import volume_files
from ctseg.scans.formats.folder_walk import hidden

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
CLOSED = ("PERMISSION", "the folder may not be listed or entered", "change its permissions, or move it away")
FOLLOW = "copy the file into the data folder, or trust its links: --set data.follow_links=true"


def natural_key(text: str) -> tuple:
    """Sort key with numbers by value ("pt_2" before "pt_10"), upper and lower case alike."""
    parts = re.split(r"(\d+)", text.casefold())
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts if part), text


def entries(folder: Path) -> list[Path]:
    """Everything in a folder in natural order, without hidden names; empty when there is no such folder."""
    try:
        return sorted(
            (path for path in folder.iterdir() if not hidden(path.name)),
            key=lambda path: natural_key(path.name),
        )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise PreconditionError(
            "NO_DATA",
            f"the folder cannot be listed ({error.strerror})",
            "check its permissions",
            file=folder.name,
        ) from error


def folders(folder: Path) -> list[Path]:
    """The subfolders (and links to folders) in natural order, without hidden and closed ones.

    One that may not be entered costs what is in it, not the run: `Gathering` reports it.
    """
    return [path for path in entries(folder) if readable(path)]


def readable(folder: Path) -> bool:
    """Whether a path is a folder whose entries can be listed and opened."""
    return folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)


def child(folder: Path, name: str) -> Path | None:
    """The entry of that name, upper and lower case alike."""
    return next((path for path in entries(folder) if path.name.casefold() == name.casefold()), None)


def volume_stem(path: Path) -> str | None:
    """The file name without `.nii.gz` or another suffix of a volume (any case); None when it has none."""
    return volume_files.stem_of(path)


def unpacked(path: Path) -> Path | None:
    """Where the content of an archive lies once it is unpacked beside it; None for what is no archive."""
    name = path.name.casefold()
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if name.endswith(suffix)), None)
    return None if suffix is None else path.parent / path.name[: -len(suffix)]


def image_source(path: Path) -> ImageSource:
    """The scan in one file of a volume format, or in a folder of a DICOM series (its name is not that of a
    volume).
    """
    series = volume_stem(path) is None and path.is_dir()
    return ImageSource("dicom" if series else volume_files.format_of(path), path)


def volumes(folder: Path) -> dict[str, Path]:
    """Stem -> file for the volumes in a folder; two files of one stem (`.nii` and `.nii.gz`) are refused."""
    found: dict[str, Path] = {}
    for path in entries(folder):
        stem = volume_stem(path)
        other = path if stem is None else found.setdefault(folded(stem), path)
        if other is not path:
            raise duplicate_error(f"{path.parent.name}/{other.name} and {path.parent.name}/{path.name}")
    return {str(volume_stem(path)): path for path in found.values()}


def volume(folder: Path, *stems: str) -> Path | None:
    """The volume whose stem is one of `stems` (any case), in their order of preference."""
    by_name = {folded(stem): path for stem, path in volumes(folder).items()}
    return next((by_name[stem] for stem in stems if stem in by_name), None)


def folded(text: str) -> str:
    """The text as file systems that ignore case and composition see it."""
    return unicodedata.normalize("NFC", text).casefold()


def printable(text: str) -> str:
    """The text with bytes that are no UTF-8 escaped, so that it can be printed and stored."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def unsafe_name(text: str) -> str | None:
    """Why a name from metadata must not become part of a path, or None."""
    if not text or text in (".", ".."):
        return "the name is empty" if not text else f"'{text}' is not a name"
    if "/" in text or "\\" in text or "\0" in text:
        return "the name is a path"
    if printable(text) != text:
        return "the name is not valid UTF-8"
    return None


def duplicate_error(what: str) -> PreconditionError:
    """The same case or file twice: nothing may be overwritten, so the run stops."""
    return PreconditionError(
        "DUPLICATE_ID",
        f"the same name stands twice: {what}",
        "remove or rename one of them (upper and lower case count as the same)",
    )


def below(path: Path, root: Path) -> Path | None:
    """`path` relative to `root`, None when it lies elsewhere. As written: `..` is resolved, no link is."""
    path, root = (Path(os.path.normpath(place.absolute())) for place in (path, root))
    return path.relative_to(root) if path.is_relative_to(root) else None


def told(file: str | Path, root: Path) -> str:
    """A file as messages name it: below the data folder `root`, elsewhere by its name alone; "-" is none."""
    inner = None if file == "-" else below(Path(file), root)
    return printable(Path(file).name if inner is None else inner.as_posix())
