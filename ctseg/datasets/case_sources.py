"""The raw files of a case: the hash of their bytes, and where they lie as JSON values."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctseg.artifacts import file_hash
from ctseg.datasets import listing
from ctseg.datasets.case import CaseRecord
from ctseg.errors import CaseError, at_case
from ctseg.manifest import from_record, to_record
from ctseg.scans.formats import folder_walk
from ctseg.scans.formats.regular_files import refuse, require_regular


def source_hash(record: CaseRecord) -> str:
    """sha256 over the hashes of the image's and then the label's files, in order; CaseError when one is
    missing.

    Depends on the bytes and on which structure a mask belongs to, not on where the files lie. A label mask
    that is not there counts as such.
    """
    sources, labels = [("image", record.image.format, record.image.path)], record.labels
    if labels is not None and labels.path is not None:
        sources.append(("label", labels.format, labels.path))
    elif labels is not None:
        sources += [(f"mask {name}", "mask", path) for name, path in sorted(labels.masks.items())]
    digest = hashlib.sha256()
    with at_case(record.case_id):
        for role, form, path in sources:
            absent = form == "mask" and not os.path.lexists(path)
            for known in ["-"] if absent else [file_hash(file) for file in _files_of(form, path)]:
                digest.update(f"{role}\0{known}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _files_of(form: str, path: Path) -> list[Path]:
    """The files of one source, in a fixed order, each checked."""
    files = [path]
    if form == "dicom":
        files = sorted(
            folder / name
            for folder, _, names in folder_walk.walk(path)
            for name in names
            if not name.startswith(".") and (folder / name).is_file()
        )
    elif form == "openkbp_csv":
        files = sorted(path.glob("*.csv"))
    if not files:
        raise refuse("FILE_MISSING", "the folder holds no file", "restore the files or remove the case", path)
    for file in files:
        try:
            require_regular(file)
        except CaseError as error:
            if error.code != "FILE_EMPTY":  # reading refuses it with its name; here it only has no bytes
                raise
    return files


def source_to_record(record: CaseRecord, root: Path) -> dict[str, Any]:
    """The record as JSON values with paths relative to `root`; CaseError UNSAFE_NAME for a path outside."""

    def relative(path: Path) -> Path:
        inner = listing.below(path, root)
        if inner is None:
            cause, fix = "the file lies outside the data folder", "move it below the folder given as --data"
            raise CaseError("UNSAFE_NAME", cause, fix, case=record.case_id, file=path.name)
        return inner

    return dict(to_record(_with_paths(record, relative)))


def source_from_record(content: dict[str, Any], root: Path) -> CaseRecord:
    """The CaseRecord of what `source_to_record` returned; refuses paths that lead out of `root`."""
    record: CaseRecord = from_record(CaseRecord, content)

    def absolute(path: Path) -> Path:
        if path.anchor or ".." in path.parts:
            cause = "a stored path leads out of the data folder"
            fix = "run `python run_pipeline.py --preprocess` again"
            raise CaseError("UNSAFE_NAME", cause, fix, case=record.case_id)
        return root / path

    return _with_paths(record, absolute)


def _with_paths(record: CaseRecord, moved: Callable[[Path], Path]) -> CaseRecord:
    labels = record.labels
    if labels is not None:
        path = None if labels.path is None else moved(labels.path)
        masks = {name: moved(mask) for name, mask in labels.masks.items()}
        labels = dataclasses.replace(labels, path=path, masks=masks)
    image = dataclasses.replace(record.image, path=moved(record.image.path))
    return dataclasses.replace(record, image=image, labels=labels)
