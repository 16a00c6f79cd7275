"""Which scans lie at a path that somebody typed: volume files, DICOM CT series, folders of either at any
depth.

Whatever a search leaves out it says: as a NOTE where no scan is lost (labels, scouts, other series of a study
whose CT is there), else as an ERROR. docs/decisions/014-finding-scans.md has the reasons.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from ctseg.datasets import listing
from ctseg.datasets.case import ImageSource
from ctseg.errors import Finding, PreconditionError, UsageError
from ctseg.scans.dicom import dicom_files
from ctseg.scans.dicom.dicom_files import Found, SeriesInfo
from ctseg.scans.formats import folder_walk, volume_files

# modalities that stand for no scan
NO_SCANS = ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "REG", "SR", "PR", "KO", "DOC")
RESULTS = "inference.json"  # a folder that holds it was written by infer.py: its masks are no scans
_MASK_FOLDER = re.compile(r"(labels?|masks?|segmentations?)(tr|ts|val)?", re.IGNORECASE)
_DICOM_NAME = re.compile(r"\.(dcm|ima|dicom)$", re.IGNORECASE)
_SYSTEM_FILE = re.compile(r"\._.*|\.DS_Store", re.IGNORECASE)


def find_one(path: Path, *, option: str) -> ImageSource:
    """The one scan at `path`. UsageError when there are several."""
    found, _ = search(path, option=option)
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
    series = _series_scans(found, out)
    files, rest = _volume_scans(found.others, out)
    scans = _named(path, files, series)
    _lost_files(found, rest, [source.path for source in scans.values() if source.format == "dicom"], out)
    _empty_folders(found, out)
    for place, why in found.not_entered.items():
        if why == folder_walk.HIDDEN:
            out.count(place, "OTHER_FILES", "a hidden folder")
        elif why == folder_walk.TWICE:
            out.count(place, "LINK_TWICE", why)
        else:
            out.lose(place, "PERMISSION", why, "change the permissions of the folder")
    if not scans:
        lost = [f"; {finding.case}: {finding.cause}" for finding in out.lost.values()]
        cause = "there is neither a NIfTI, NRRD or MetaImage file nor a DICOM CT series" + "".join(lost[:1])
        fix = "give a scan, a folder of scans, or a folder with a DICOM series"
        raise PreconditionError("NO_DATA", cause, fix, file=path.name)
    notes = [
        Finding(
            "NOTE",
            code,
            f"left out: {kind}" + (f" (and {len(places) - 1} more)" if len(places) > 1 else ""),
            file=places[0],
        )
        for (code, kind), places in sorted(out.counted.items())
    ]
    return scans, [*notes, *out.lost.values()]


class _LeftOut:
    """What a search leaves out: counted where no scan is lost, named where one is."""

    def __init__(self, root: Path):
        self.root = root
        self.counted: defaultdict[tuple[str, str], list[str]] = defaultdict(list)  # (code, kind) -> places
        self.lost: dict[str, Finding] = {}  # place -> why

    def place(self, path: Path) -> str:
        """Below the root, or its name, as it is printed."""
        inner = path.relative_to(self.root).as_posix()
        return listing.printable(self.root.resolve().name if inner == "." else inner)

    def top(self, path: Path) -> str:
        """The first folder below the root on the way to a path; empty for what lies in the root itself."""
        return "".join(path.relative_to(self.root).parts[:1])

    def count(self, path: Path, code: str, kind: str) -> None:
        """Something that is no scan of its own."""
        self.counted[code, kind].append(self.place(path))

    def lose(self, path: Path, code: str, cause: str, fix: str) -> None:
        """A scan that cannot be used; the first reason counts."""
        name = self.place(path)
        self.lost.setdefault(name, Finding("ERROR", code, cause, fix, case=name, file=name))


def _series_scans(found: Found, out: _LeftOut) -> dict[str, list[SeriesInfo]]:
    """The CT volumes by the first folder on the way to them. Series of a few slices (scouts, dose reports as
    images) are passed over beside one that is a volume; an image of another modality is lost where no CT lies
    beside it and its study has none.
    """
    groups: defaultdict[str, list[SeriesInfo]] = defaultdict(list)
    for info in dicom_files.join_parts([info for info in found.series if info.modality == "CT"]):
        groups[out.top(info.folder)].append(info)
    least = dicom_files.SMALLEST_SLICES
    for top, infos in groups.items():
        groups[top] = [info for info in infos if info.n_slices >= least] or infos
        for info in infos:
            if info not in groups[top]:
                out.count(info.folder, "EXTRA_SERIES", f"a CT series of fewer than {least} slices")
    studies = {info.study for infos in groups.values() for info in infos} - {""}
    for info in found.series:
        if info.modality == "CT":
            continue
        kind = f"a series of modality {dicom_files.word(info.modality)}, not CT"
        if info.modality in NO_SCANS or out.top(info.folder) in groups or info.study in studies:
            out.count(info.folder, "EXTRA_SERIES", kind)
        else:
            out.lose(info.folder, "NOT_CT", kind, "give a CT series, or take it away")
    return groups


def _volume_scans(others: Iterable[Path], out: _LeftOut) -> tuple[list[Path], list[Path]]:
    """(volume files that are scans, all other files). Masks are left out where their place says what they
    are.
    """
    volumes: dict[Path, str] = {}
    rest: list[Path] = []
    for path in others:
        stem = None if _SYSTEM_FILE.fullmatch(path.name) else volume_files.stem_of(path, detached=True)
        if stem is None:
            rest.append(path)
        else:
            volumes[path] = stem.casefold()
    named_ct = {path.parent for path, stem in volumes.items() if stem == "ct"} - {out.root}
    results = {path.parent for path in rest if path.name == RESULTS} - {out.root}
    scans = []
    for path, stem in volumes.items():
        inner = path.relative_to(out.root).parts[:-1]
        segmentation = path.name.casefold().endswith(volume_files.SEGMENTATION)
        if path.name.startswith("."):
            out.count(path, "OTHER_FILES", "a hidden file")
        elif not results.isdisjoint(path.parents):
            out.count(path, "LABELS", "a mask that infer.py wrote")
        elif segmentation or any(map(_MASK_FOLDER.fullmatch, inner)):
            out.count(path, "LABELS", "a mask, by its name or folder")
        elif path.parent in named_ct and stem != "ct":
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
        other = scans.setdefault(name, source)
        if other is not source:
            first, second = (
                str(one.path.relative_to(root)) if one.path != root else "a DICOM series"
                for one in (other, source)
            )
            cause = f"{first} and {second} are both called '{name}', and so would be their masks"
            raise UsageError("BAD_OPTION", cause, "rename one of them", file=root.name)

    for top, found in sorted(series.items()):
        top = top or root.resolve().name
        for number, info in enumerate(found, start=1):
            add(top if len(found) == 1 else f"{top}_{number}", ImageSource("dicom", info.folder, info.uid))
    for path in sorted(files, key=lambda path: (len(path.relative_to(root).parts), path)):
        stem = str(volume_files.stem_of(path, detached=True))
        parts = path.relative_to(root).parts[:-1]
        short = "_".join(parts)
        whole = stem.casefold() != "ct" or not short or short in scans
        add("_".join((*parts, stem)) if whole else short, listing.image_source(path))
    return scans


def _lost_files(found: Found, rest: Iterable[Path], scans: list[Path], out: _LeftOut) -> None:
    """Files that may have been a scan: damaged DICOM, links that lead nowhere, archives. Below the folder of
    a series its reader refuses or counts them.
    """
    lost: defaultdict[Path, list[tuple[str, str, str]]] = defaultdict(list)
    for path in rest:
        unpacked = listing.unpacked(path)
        # in the root each may be a patient, further down they are slices
        if path.is_symlink() and not path.exists():
            fix = "put the file there, or take the link away"
            place = path if path.parent == out.root else path.parent
            lost[place].append(("FILE_MISSING", "a link leads nowhere", fix))
        elif unpacked is not None and not unpacked.exists():
            out.lose(path, "ARCHIVE_INPUT", "an archive is not opened", "unpack it first, or take it away")
        elif folder_walk.hidden(path.name) or path.name == RESULTS:
            continue
        elif _DICOM_NAME.search(path.name):
            cause = "the DICOM mark at the beginning of a file is missing"
            fix = "save it again as a DICOM file with its file header (PS3.10)"
            lost[path.parent].append(("DICOM_CORRUPT", cause, fix))
        else:
            suffix = path.suffix.casefold()
            kind = f"a file with the suffix {suffix}" if suffix else "a file without suffix"
            out.count(path, "OTHER_FILES", kind)
    for path, error in found.damaged.items():
        lost[path.parent].append((error.code, error.cause, error.fix))
    for folder, problems in lost.items():
        if not any(folder == scan or scan in folder.parents for scan in scans):
            code, cause, fix = problems[0]
            more = "" if len(problems) == 1 else f" ({len(problems)} such files)"
            out.lose(folder, code, cause + more, fix)


def _empty_folders(found: Found, out: _LeftOut) -> None:
    """Folders in which nothing lies that is told otherwise; one that is named like a volume is refused."""
    files = (info.files[0] for info in found.series)
    used = {out.top(path) for path in (*found.others, *found.damaged, *found.not_entered, *files)}
    for folder in listing.folders(out.root):
        if folder.name in used:
            continue
        if volume_files.stem_of(folder, detached=True) is None:
            out.count(folder, "OTHER_FILES", "an empty folder")
        else:
            cause = "it is a folder, not a regular file"
            out.lose(folder, "NOT_REGULAR", cause, "put the data file itself there")
