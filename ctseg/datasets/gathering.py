"""What one adapter collects while it reads a folder: cases, findings, and which files it has accounted for.

Nothing here opens an image. Names and links are checked, and every file that no case uses is reported.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ctseg.datasets import listing
from ctseg.datasets.case import CaseRecord, DataSet, ImageSource, LabelSource, LabelTable
from ctseg.errors import Finding, PreconditionError
from ctseg.scans.formats import volume_files
from ctseg.scans.formats.folder_walk import HIDDEN, TWICE, hidden, walk

SHOWN = 20  # files reported one by one; the rest are counted in one finding
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


class Gathering:
    """Cases and findings of one data set in the making. A case is either offered or refused, never both."""

    def __init__(self, layout: str, shape: str, root: Path, follow_links: bool):
        """shape: the layout in one line, for messages."""
        self.layout, self.shape, self.root, self.follow_links = layout, shape, root, follow_links
        self.findings: list[Finding] = []
        self._cases: list[CaseRecord] = []
        self._ids: list[str] = []
        self._refused: set[str] = set()
        self._label_of: dict[str, str] = {}  # label file -> the first case that has it
        self._accounted: set[str] = set()
        self._real_root = root.resolve()
        self._plain_folders: dict[str, bool] = {}  # folder -> whether it really lies inside the data folder

    def relative(self, path: Path | None) -> str:
        """The path below the data folder as it is printed."""
        return listing.told(path or "-", self.root)

    def tell(
        self, code: str, cause: str, fix: str | None = None, *, path: Path | None = None, case: str = "-"
    ) -> None:
        """A note where nothing is lost; with a remedy a warning: it is used, but something may be wrong."""
        severity, fix = ("WARN", fix) if fix else ("NOTE", Finding.fix)
        self.findings.append(Finding(severity, code, cause, fix, case, self.relative(path)))

    def refuse(self, case_id: str, problem: tuple[str, str, str], path: Path | None = None) -> None:
        """Leave a case out, for the reason (code, cause, fix). Of several reasons the first counts."""
        case_id = listing.printable(case_id)
        self.account(path)
        if case_id in self._refused:
            return
        self._refused.add(case_id)
        self._ids.append(case_id)
        self.findings.append(Finding("ERROR", *problem, case=case_id, file=self.relative(path)))

    def account(self, *paths: Path | None) -> None:
        """Mark files (or whole folders) as explained, so that they are not reported as left over."""
        self._accounted.update(os.path.normpath(path) for path in paths if path is not None)

    def split_of(self, word: str | None, case_id: str, path: Path) -> str | None:
        """train, val or test, whatever the data set calls it; any other word is told, because such a case is
        assigned anew.
        """
        split = None if word is None else SPLITS.get(word.casefold())
        if word and split is None:
            self.tell(
                "SPLIT_UNKNOWN",
                f"its split '{listing.printable(word)}' is none of {', '.join(SPLITS)}: "
                "it is assigned to any of train, val and test",
                "rename the split, or move the case away",
                path=path,
                case=case_id,
            )
        return split

    def match_splits(self, splits: Iterable[str], path: Path | None) -> None:
        """A warning about cases that a file of splits names and that are not there: another spelling makes a
        split without effect.
        """
        unknown = sorted(set(splits) - set(self._ids), key=listing.natural_key)
        if unknown:
            self.tell(
                "SPLIT_UNKNOWN",
                f"{len(unknown)} of its cases are not in this data set, "
                f"the first is '{listing.printable(unknown[0])}'",
                "spell them like the cases, or take them out",
                path=path,
            )

    def problem(self, path: Path, *, folder: bool = False) -> tuple[str, str, str] | None:
        """(code, cause, fix) when `path` is not a regular file (or folder) inside the data folder, else None.

        Decided by `stat` alone: a FIFO that is opened waits for ever. Ordinary files, of which a data set has
        a hundred thousand, take one `lstat`.
        """
        place, name = os.path.split(path)
        try:
            plain = not folder and stat.S_ISREG(os.lstat(path).st_mode) and name not in ("", "..")
            if plain and self._inside(place):
                return None
            real = path.resolve(strict=True)
            mode = real.stat().st_mode
        except PermissionError:
            return "PERMISSION", "the file may not be read", "change its permissions"
        except FileNotFoundError:
            cause = "a link that leads nowhere" if path.is_symlink() else "the file does not exist"
            return "FILE_MISSING", cause, "put the file there"
        except (RuntimeError, OSError):  # 3.13 raises OSError for a loop, earlier versions RuntimeError
            return "FILE_MISSING", "a link loop, or a path that cannot exist", "replace the link by the file"
        if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
            return "NOT_REGULAR", f"not a regular {'folder' if folder else 'file'}", "put the real file there"
        if not self.follow_links and not real.is_relative_to(self._real_root):
            return "LINK_OUTSIDE", "a link that leaves the data folder", listing.FOLLOW
        return None

    def _inside(self, place: str) -> bool:
        if place not in self._plain_folders:
            inside = self.follow_links or Path(place).resolve().is_relative_to(self._real_root)
            self._plain_folders[place] = inside
        return self._plain_folders[place]

    def offer(
        self,
        case_id: str,
        image: ImageSource,
        labels: LabelSource,
        *,
        annotated: Iterable[str] | None = None,
        split: str | None = None,
        patient_id: object = None,
    ) -> None:
        """Add a case after checking its name and that its files are regular files inside the data folder."""
        paths = (image.path, labels.path, *labels.masks.values())
        files = dict.fromkeys(path for path in paths if path is not None)
        self.account(*files)
        bad_name = listing.unsafe_name(case_id)
        if bad_name is not None:
            return self.refuse(case_id, ("UNSAFE_NAME", bad_name, "rename the case"), image.path)
        for path in files:
            folder = path == image.path and image.format not in volume_files.FORMATS
            problem = self.problem(path, folder=folder)
            if problem is not None:
                return self.refuse(case_id, problem, path)
        other = case_id
        if labels.path is not None:
            other = self._label_of.setdefault(os.path.normpath(labels.path), case_id)
        if other != case_id:
            self.tell(
                "LABEL_SHARED",
                f"case {other} has the same label file",
                "give each scan its own label, unless both show the same anatomy in the same place",
                path=labels.path,
                case=case_id,
            )
        self._ids.append(case_id)
        names = None if annotated is None else frozenset(annotated)
        patient = case_id if patient_id in (None, "") else str(patient_id)
        self._cases.append(CaseRecord(case_id, patient, image, labels, names, split))

    def offer_map(self, case_id: str, image: Path, label: Path, table: LabelTable, **more: Any) -> None:
        """`offer` a scan with a label map."""
        labels = LabelSource("map", label, values=dict(table.values), ignore_value=table.ignore_value)
        self.offer(case_id, listing.image_source(image), labels, **more)

    def offer_listed(
        self, case_id: str, image: object, label: object, base: Path, table: LabelTable, **more: Any
    ) -> None:
        """`offer_map` of files that metadata name relative to `base`; somebody looked for every structure of
        the table.
        """
        scan = self.inside(case_id, image, base)
        if label in (None, "", []):
            problem = ("LABEL_MISSING", "the entry names no label", "add its label to the list")
            return self.refuse(case_id, problem, scan)
        mask = self.inside(case_id, label, base)
        self.account(scan, mask)
        if scan is None or mask is None:
            return
        for path in (scan, mask):
            if listing.volume_stem(path) is None:
                cause = "it is no volume file (.nii.gz, .nii, .nrrd, .mha)"
                return self.refuse(case_id, ("FORMAT_UNSUPPORTED", cause, "convert it to .nii.gz"), path)
        self.offer_map(case_id, scan, mask, table, annotated=table.names, **more)

    def offer_pairs(
        self,
        images: dict[str, Path],
        labels: dict[str, Path],
        table: LabelTable,
        splits: dict[str, str],
        annotated: Iterable[str] | None = None,
    ) -> None:
        """Offer every case that has both an image and a label map; refuse the others. Keys are case ids (any
        case).

        annotated: as in `CaseRecord`.
        """
        maps = {listing.folded(name): (name, path) for name, path in labels.items()}
        for case_id, path in images.items():
            _, label = maps.pop(listing.folded(case_id), ("", None))
            if label is not None:
                split = splits.get(case_id)
                self.offer_map(case_id, path, label, table, annotated=annotated, split=split)
            else:
                fix = "add its label, or move the scan away"
                self.refuse(case_id, ("LABEL_MISSING", "a scan without label", fix), path)
        for case_id, path in maps.values():
            fix = "add the scan, or move the label away"
            self.refuse(case_id, ("FILE_MISSING", "a label without scan", fix), path)

    def add(self, folder: str, part: DataSet) -> tuple[str, ...]:
        """Take over the cases and findings of a data set in a subfolder; its structures come back."""
        self.account(self.root / folder)
        self._ids += (case.case_id for case in part.cases)
        self._cases += part.cases
        for one in part.findings:
            file = one.file if one.file == "-" else f"{folder}/{one.file}"
            self.findings.append(dataclasses.replace(one, file=file))
        return part.structures

    def note_unlabelled(self, scans: Collection[Path], where: Path, told: str) -> None:
        """Scans for testing that have no label are told and left alone."""
        if scans:
            self.account(*scans)
            self.tell(
                "TEST_UNLABELLED", f"{len(scans)} scans in {told} have no label and are not used", path=where
            )

    def inside(self, case_id: str, text: object, base: Path) -> Path | None:
        """The file that metadata names relative to `base`; None, and the case refused, when it lies outside
        the data folder. An absolute path is accepted only when it leads into the data folder.
        """
        if not isinstance(text, str) or not text.strip() or "\0" in text:
            self.refuse(case_id, ("METADATA_INVALID", f"{text!r} is not a file name", "correct the entry"))
            return None
        inner = listing.below(base / text, self.root)
        if inner is None:
            self.refuse(
                case_id,
                (
                    "UNSAFE_NAME",
                    f"the path '{text}' leaves the data folder",
                    "use paths relative to the data folder",
                ),
            )
            return None
        return self.root / inner

    def missing(self, what: str) -> PreconditionError:
        """The error of a folder that lacks what makes it a data set of this layout."""
        fix = f"the layout {self.layout} needs {self.shape}"
        return PreconditionError("NO_DATA", f"there is no {what}", fix, file=self.root.name or ".")

    def only(self, paths: Sequence[Path], what: str) -> Path:
        """The one path there is. Raises PreconditionError NO_DATA, or SEVERAL_DATA_SETS with the choices."""
        if not paths:
            raise self.missing(what)
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths[:10])
            cause = f"the folder holds {len(paths)} {what}s: {names}"
            fix = "give --data the one you mean"
            raise PreconditionError("SEVERAL_DATA_SETS", cause, fix, file=paths[0].parent.name)
        return paths[0]

    def data_set(self, structures: Iterable[str]) -> DataSet:
        """The finished data set: cases in natural order, names unique, left-over files reported.

        Raises PreconditionError DUPLICATE_ID, or NO_DATA when no case can be used.
        """
        names: dict[str, str] = {}
        for case_id in self._ids:
            key = listing.folded(case_id)
            if key in names:
                raise listing.duplicate_error(f"case '{names[key]}' and case '{case_id}'")
            names[key] = case_id
        self._report_leftovers()
        errors = [finding for finding in self.findings if finding.severity == "ERROR"]
        if not self._cases and not errors:
            raise self.missing("case")
        if not self._cases:
            raise PreconditionError(
                "NO_DATA",
                f"layout {self.layout}: {len(self._refused)} cases found, none of them usable; "
                f"the first: {errors[0].file}: {errors[0].cause}",
                "repair the first one named, or give --layout",
                file=self.root.name or ".",
            )
        cases = sorted(self._cases, key=lambda case: listing.natural_key(case.case_id))
        return DataSet(self.layout, self.root, tuple(structures), tuple(cases), tuple(self.findings))

    def _report_leftovers(self) -> None:
        """Findings for archives, for scans that no case uses, and one for all other files."""
        left: list[Path] = []
        not_entered: dict[Path, str] = {}
        for folder, subfolders, files in walk(self.root, not_entered):
            place = "" if os.path.normpath(folder) == "." else os.path.normpath(folder) + os.sep
            left += (
                folder / name
                for name in sorted(files, key=listing.natural_key)
                if place + name not in self._accounted and not hidden(name)
            )
            entered = []
            for name in sorted(subfolders, key=listing.natural_key):
                if place + name in self._accounted:
                    continue
                if self._inside(place + name):
                    entered.append(name)
                else:
                    cause = "a link that leaves the data folder is not searched"
                    self.tell("LINK_OUTSIDE", cause, listing.FOLLOW, path=folder / name)
            subfolders[:] = entered
        strays: list[Path] = []
        others: Counter[str] = Counter()
        for path in left:
            unpacked = listing.unpacked(path)
            if unpacked is not None and unpacked.exists():
                told = "an archive; what was unpacked from it stands beside it"
                self.tell("ARCHIVE_INPUT", told, path=path)
            elif unpacked is not None:  # it may hold cases
                fix = "unpack it first, or remove it"
                self.refuse(path.name, ("ARCHIVE_INPUT", "an archive is not opened", fix), path)
            elif path.parent == self.root and path.is_symlink() and not path.exists():
                fix = "put the case there, or remove the link"  # it may have been a case
                self.refuse(path.name, ("FILE_MISSING", "a link that leads nowhere", fix), path)
            elif listing.volume_stem(path) is not None:
                strays.append(path)
            else:
                others[path.suffix.casefold() or "no suffix"] += 1
        for path, why in not_entered.items():
            if why in (HIDDEN, TWICE):
                continue
            # a folder that cannot be listed may hold cases, unless it lies in a case or is a file system's
            if any(part in self._ids for part in Path(self.relative(path)).parts):
                self.tell(*listing.CLOSED, path=path)
            elif path.name != "lost+found":
                self.refuse(self.relative(path), listing.CLOSED, path)
        for path in strays[:SHOWN]:
            fix = f"name it, or list it in the metadata, as the layout {self.layout} expects; or remove it"
            self.tell("UNMATCHED_FILE", "no case uses this file", fix, path=path)
        if len(strays) > SHOWN:
            cause, fix = f"no case uses {len(strays) - SHOWN} more files", "see the files named before"
            self.tell("UNMATCHED_FILE", cause, fix, path=strays[SHOWN].parent)
        if others:
            listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
            self.tell("OTHER_FILES", f"files that hold no scan or label of a case are ignored ({listed})")
