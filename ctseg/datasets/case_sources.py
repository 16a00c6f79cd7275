"""The raw files of a case: the hash of their bytes, and where they lie as JSON values."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ctseg.artifacts import file_hash
from ctseg.datasets import listing
from ctseg.datasets.case import CaseRecord, ImageSource, LabelSource
from ctseg.errors import CaseError, at_case
from ctseg.scans.formats import folder_walk
from ctseg.scans.formats.regular_files import require_regular


def source_hash(record: CaseRecord) -> str:
    """sha256 over the hashes of the image's and then the label's files, in order; CaseError when one is
    missing.

    Depends on the bytes and on which structure a mask belongs to, not on where the files lie. A label mask
    that is not there counts as such.
    """
    digest = hashlib.sha256()
    for role, path in _files(record):
        digest.update(
            f"{role}\0{file_hash(path) if path is not None else '-'}\n".encode("utf-8", "surrogatepass")
        )
    return digest.hexdigest()


def _files(record: CaseRecord) -> Iterator[tuple[str, Path | None]]:
    """(role, file) of every file of a case in a fixed order; None for a label mask that is not there."""
    yield from (("image", path) for path in _files_of(record.image.format, record.image.path, record))
    labels = record.labels
    if labels is None:
        return
    if labels.format == "masks":
        for name, path in sorted(labels.masks.items()):
            there = os.path.lexists(path)
            yield f"mask {name}", _files_of("map", path, record)[0] if there else None
    elif labels.path is not None:
        yield from (("label", path) for path in _files_of(labels.format, labels.path, record))


def _files_of(form: str, path: Path, record: CaseRecord) -> list[Path]:
    """The files of one source, in a fixed order, each checked."""
    if form == "dicom":
        files = sorted(
            folder / name
            for folder, _, names in folder_walk.walk(path)
            for name in names
            if not name.startswith(".") and (folder / name).is_file()
        )
    elif form == "openkbp_csv":
        files = sorted(path.glob("*.csv"))
    else:
        files = [path]
    if not files:
        cause, fix = "the folder holds no file", "restore the files or remove the case"
        raise CaseError("FILE_MISSING", cause, fix, case=record.case_id, file=path.name)
    for file in files:
        with at_case(record.case_id):
            try:
                require_regular(file)
            except CaseError as error:
                if error.code != "FILE_EMPTY":  # reading refuses it with its name; here it only has no bytes
                    raise
    return files


def source_to_record(record: CaseRecord, root: Path) -> dict[str, Any]:
    """The record as JSON values with paths relative to `root`; CaseError UNSAFE_NAME for a path outside."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            inner = listing.below(value, root)
            if inner is None:
                raise CaseError(
                    "UNSAFE_NAME",
                    "the file lies outside the data folder",
                    "move it below the folder given as --data",
                    case=record.case_id,
                    file=value.name,
                )
            return inner.as_posix()
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        return sorted(value) if isinstance(value, frozenset) else value

    return plain(dataclasses.asdict(record))


def source_from_record(content: dict[str, Any], root: Path) -> CaseRecord:
    """The CaseRecord of what `source_to_record` returned; refuses paths that lead out of `root`."""
    case_id = str(content["case_id"])

    def absolute(text: str) -> Path:
        path = PurePosixPath(text)
        if path.is_absolute() or ".." in path.parts:
            raise CaseError(
                "UNSAFE_NAME",
                "a stored path leads out of the data folder",
                "run `python run_pipeline.py --preprocess` again",
                case=case_id,
            )
        return Path(root) / path

    image, stored, annotated = content["image"], content["labels"], content["annotated"]
    labels = None
    if stored is not None:
        found = {
            "path": None if stored["path"] is None else absolute(stored["path"]),
            "values": {int(value): name for value, name in stored["values"].items()},
            "masks": {name: absolute(path) for name, path in stored["masks"].items()},
        }
        labels = LabelSource(**(stored | found))
    parts = {
        "image": ImageSource(**(image | {"path": absolute(image["path"])})),
        "labels": labels,
        "annotated": None if annotated is None else frozenset(annotated),
    }
    return CaseRecord(**(content | parts))
