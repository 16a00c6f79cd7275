"""Which scans lie at a path that somebody typed: volume files, DICOM CT series, folders of either at any
depth.

Whatever a search leaves out it says: as a NOTE where no scan is lost (labels, scouts, other series of a study
whose CT is there), else as an ERROR. docs/decisions/014-finding-scans.md has the reasons.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg.datasets import listing
from ctseg.datasets.case import ImageSource
from ctseg.errors import Finding, PreconditionError, UsageError
from ctseg.scans.formats import folder_walk, volume_files

if TYPE_CHECKING:
    from ctseg.scans.dicom.dicom_files import Found, SeriesInfo

# modalities that stand for no scan
NO_SCANS = ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "REG", "SR", "PR", "KO", "DOC")
RESULTS = "inference.json"  # a folder that holds it was written by infer.py: its masks are no scans
_MASK_FOLDER = re.compile(r"(labels?|masks?|segmentations?)(tr|ts|val)?", re.IGNORECASE)
_DICOM_NAME = re.compile(r"\.(dcm|ima|dicom)$", re.IGNORECASE)
_SYSTEM_FILE = re.compile(r"\._.*|\.DS_Store", re.IGNORECASE)


def find_scans(path: Path, *, option: str = "--input") -> dict[str, ImageSource]:
    """The scans of `search`."""
    return search(path, option=option)[0]


def find_one(path: Path, *, option: str) -> ImageSource:
    """The one scan at `path`. UsageError when there are several."""
    found = find_scans(path, option=option)
    if len(found) > 1:
        names = ", ".join(sorted(found)[:5])
        raise UsageError(
            "BAD_OPTION",
            f"there are {len(found)} scans at '{path}' after {option} ({names})",
            "give the file or the folder of one of them",
            file=path.name,
        )
    return next(iter(found.values()))


def search(path: Path, *, option: str = "--input") -> tuple[dict[str, ImageSource], list[Finding]]:
    """(name -> source of every scan at `path`, which was given with `option`; what was left out and why).

    An ERROR among the findings is a scan that cannot be used, `case` its place. PreconditionError NO_DATA
    when there is no scan. A detached header is listed too, so that its reader refuses it by name.
    """
    from ctseg.scans.dicom import dicom_files

    if path.is_file():
        if dicom_files.is_dicom(path):
            raise UsageError(
                "BAD_OPTION",
                f"'{path.name}' after {option} is a single DICOM file",
                "give the folder that holds the series",
                file=path.name,
            )
        return {volume_files.stem_of(path, detached=True) or path.stem: listing.image_source(path)}, []
    if not path.is_dir():
        raise PreconditionError(
            "NO_DATA", f"'{path}' after {option} does not exist", "check the path", file=path.name
        )
    found = dicom_files.find(path)
    out = _LeftOut(path)
    series = _series_scans(path, found, out)
    files, rest = _volume_scans(path, found.others, out)
    scans = _named(path, files, series)
    _lost_files(found, rest, [source.path for source in scans.values() if source.format == "dicom"], out)
    _empty_folders(path, found, out)
    findings = out.findings(found.not_entered)
    if not scans:
        lost = next(
            (f"; {finding.case}: {finding.cause}" for finding in findings if finding.severity == "ERROR"), ""
        )
        raise PreconditionError(
            "NO_DATA",
            f"there is neither a NIfTI, NRRD or MetaImage file nor a DICOM CT series{lost}",
            "give a scan, a folder of scans, or a folder with a DICOM series",
            file=path.name,
        )
    return scans, findings


class _LeftOut:
    """What a search leaves out: counted where no scan is lost, named where one is."""

    def __init__(self, root: Path):
        self.root = root
        self.counts: Counter[tuple[str, str]] = Counter()  # (code, kind)
        self.first: dict[tuple[str, str], str] = {}
        self.lost: dict[str, Finding] = {}  # place -> why

    def _place(self, path: Path) -> str:
        inner = path.relative_to(self.root).as_posix()
        return listing.printable(self.root.resolve().name if inner == "." else inner)

    def count(self, path: Path, code: str, kind: str) -> None:
        """Something that is no scan of its own."""
        self.counts[code, kind] += 1
        self.first.setdefault((code, kind), self._place(path))

    def lose(self, path: Path, code: str, cause: str, fix: str) -> None:
        """A scan that cannot be used; the first reason counts."""
        name = self._place(path)
        self.lost.setdefault(name, Finding("ERROR", code, cause, fix, case=name, file=name))

    def findings(self, not_entered: dict[Path, str]) -> list[Finding]:
        for place, why in not_entered.items():
            if why == folder_walk.HIDDEN:
                self.count(place, "OTHER_FILES", "a hidden folder")
            elif why == folder_walk.TWICE:
                self.count(place, "LINK_TWICE", why)
            else:
                self.lose(place, "PERMISSION", why, "change the permissions of the folder")
        notes = [
            Finding(
                "NOTE",
                code,
                f"left out: {kind}" + (f" (and {number - 1} more)" if number > 1 else ""),
                file=self.first[code, kind],
            )
            for (code, kind), number in sorted(self.counts.items())
        ]
        return [*notes, *self.lost.values()]


def _top(root: Path, path: Path) -> str:
    """The first folder below the root on the way to a path; empty for what lies in the root itself."""
    parts = path.relative_to(root).parts
    return parts[0] if parts else ""


def _series_scans(root: Path, found: Found, out: _LeftOut) -> dict[str, list[SeriesInfo]]:
    """The CT volumes by the first folder on the way to them. Series of a few slices (scouts, dose reports as
    images) are passed over beside one that is a volume; an image of another modality is lost where no CT lies
    beside it and its study has none.
    """
    from ctseg.scans.dicom import dicom_files

    groups: dict[str, list[SeriesInfo]] = {}
    for info in dicom_files.join_parts([info for info in found.series if info.modality == "CT"]):
        groups.setdefault(_top(root, info.folder), []).append(info)
    for top, infos in groups.items():
        groups[top] = [info for info in infos if info.n_slices >= dicom_files.SMALLEST_SLICES] or infos
        for info in (info for info in infos if info not in groups[top]):
            out.count(
                info.folder, "EXTRA_SERIES", f"a CT series of fewer than {dicom_files.SMALLEST_SLICES} slices"
            )
    studies = {info.study for infos in groups.values() for info in infos} - {""}
    for info in found.series:
        if info.modality == "CT":
            continue
        kind = f"a series of modality {dicom_files.word(info.modality)}, not CT"
        if info.modality in NO_SCANS or _top(root, info.folder) in groups or info.study in studies:
            out.count(info.folder, "EXTRA_SERIES", kind)
        else:
            out.lose(info.folder, "NOT_CT", kind, "give a CT series, or take it away")
    return groups


def _volume_scans(root: Path, others: Iterable[Path], out: _LeftOut) -> tuple[list[Path], list[Path]]:
    """(volume files that are scans, all other files). Masks are left out where their place says what they
    are.
    """
    volumes: list[Path] = []
    rest: list[Path] = []
    named_ct, results = set(), set()
    for path in others:
        stem = None if _SYSTEM_FILE.fullmatch(path.name) else volume_files.stem_of(path, detached=True)
        if path.parent != root:
            named_ct |= {path.parent} if stem is not None and stem.casefold() == "ct" else set()
            results |= {path.parent} if path.name == RESULTS else set()
        (rest if stem is None else volumes).append(path)
    scans = []
    for path in volumes:
        inner = path.relative_to(root).parts[:-1]
        if path.name.startswith("."):
            out.count(path, "OTHER_FILES", "a hidden file")
        elif any(folder in results for folder in path.parents):
            out.count(path, "LABELS", "a mask that infer.py wrote")
        elif path.name.casefold().endswith(volume_files.SEGMENTATION) or any(
            _MASK_FOLDER.fullmatch(part) for part in inner
        ):
            out.count(path, "LABELS", "a mask, by its name or folder")
        elif path.parent in named_ct and str(volume_files.stem_of(path, detached=True)).casefold() != "ct":
            out.count(path, "LABELS", "a file beside the ct of its folder")
        else:
            scans.append(path)
    return scans, rest


def _named(root: Path, files: list[Path], series: dict[str, list[SeriesInfo]]) -> dict[str, ImageSource]:
    """Every scan under a name of its own. In the root: the file's. Series: the first folder, numbered where
    it holds several. Files further down: their path, without `ct`, which is what the scan of a case folder is
    called. UsageError for two of one name.
    """
    scans: dict[str, ImageSource] = {}

    def add(name: str, source: ImageSource) -> None:
        if name in scans:
            both = " and ".join(
                str(one.path.relative_to(root)) if one.path != root else "a DICOM series"
                for one in (scans[name], source)
            )
            raise UsageError(
                "BAD_OPTION",
                f"{both} are both called '{name}', and so would be their masks",
                "rename one of them",
                file=root.name,
            )
        scans[name] = source

    for top, found in sorted(series.items()):
        top = top or root.resolve().name
        for number, info in enumerate(found, start=1):
            add(top if len(found) == 1 else f"{top}_{number}", ImageSource("dicom", info.folder, info.uid))
    for path in sorted(files, key=lambda path: (len(path.relative_to(root).parts), path)):
        stem = str(volume_files.stem_of(path, detached=True))
        parts = [*path.relative_to(root).parts[:-1], stem]
        short = "_".join(parts[:-1])
        add(
            short if short and stem.casefold() == "ct" and short not in scans else "_".join(parts),
            listing.image_source(path),
        )
    return scans


def _lost_files(found: Found, rest: Iterable[Path], scans: list[Path], out: _LeftOut) -> None:
    """Files that may have been a scan: damaged DICOM, links that lead nowhere, archives. Below the folder of
    a series its reader refuses or counts them.
    """
    lost: dict[Path, list[tuple[str, str, str]]] = {}
    for path in rest:
        unpacked = listing.unpacked(path)
        # in the root each may be a patient, further down they are slices
        if path.is_symlink() and not path.exists():
            lost.setdefault(path if path.parent == out.root else path.parent, []).append(
                ("FILE_MISSING", "a link leads nowhere", "put the file there, or take the link away")
            )
        elif unpacked is not None and not unpacked.exists():
            out.lose(path, "ARCHIVE_INPUT", "an archive is not opened", "unpack it first, or take it away")
        elif _DICOM_NAME.search(path.name) and not folder_walk.hidden(path.name):
            lost.setdefault(path.parent, []).append(
                (
                    "DICOM_CORRUPT",
                    "the DICOM mark at the beginning of a file is missing",
                    "save it again as a DICOM file with its file header (PS3.10)",
                )
            )
        elif not folder_walk.hidden(path.name) and path.name != RESULTS:
            out.count(
                path,
                "OTHER_FILES",
                f"a file with the suffix {path.suffix.casefold()}"
                if path.suffix
                else "a file without suffix",
            )
    for path, error in found.damaged.items():
        lost.setdefault(path.parent, []).append((error.code, error.cause, error.fix))
    for folder, problems in lost.items():
        if not any(folder == scan or scan in folder.parents for scan in scans):
            code, cause, fix = problems[0]
            out.lose(
                folder, code, cause if len(problems) == 1 else f"{cause} ({len(problems)} such files)", fix
            )


def _empty_folders(root: Path, found: Found, out: _LeftOut) -> None:
    """Folders in which nothing lies that is told otherwise; one that is named like a volume is refused."""
    used = {
        _top(root, path)
        for path in (
            *found.others,
            *found.damaged,
            *found.not_entered,
            *(info.files[0] for info in found.series),
        )
    }
    for folder in listing.folders(root):
        if folder.name in used:
            continue
        if volume_files.stem_of(folder, detached=True) is not None:
            out.lose(
                folder, "NOT_REGULAR", "it is a folder, not a regular file", "put the data file itself there"
            )
        else:
            out.count(folder, "OTHER_FILES", "an empty folder")
