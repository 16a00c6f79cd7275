"""What the preprocess stage knows of the data and of each case, as typed records that turn themselves into
JSON and back.

A `Case` grows: read (source, states), measured (scan, box, voxels), written (canvas, tensors, reference,
guide), assigned to a split. `docs/artifacts.md` is the page for people.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.artifacts import Workspace, canonical_hash, file_hash, read_json
from ctseg.errors import Finding, IntegrityError
from ctseg.geometry.grids import Extent
from ctseg.geometry.volume import Grid
from ctseg.laterality import Sides

VERSION = 1
FORMAT = "ctseg-manifest"
AGAIN = "run `python run_pipeline.py --preprocess` again"


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file below processed_data/ and the sha256 of its bytes."""

    file: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class TensorFile(StoredFile):
    """A 128^3 tensor: its first voxel on the canvas."""

    origin: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class LocatorFile(TensorFile):
    """The tensor of the whole body, in which the roi grid looks for the structures, and the canvas that it
    is.
    """

    canvas: Grid


@dataclasses.dataclass(frozen=True)
class GuideFile(StoredFile):
    """Distances to the guide organs in mm, and which of them are there."""

    presence: dict[str, bool]


@dataclasses.dataclass(frozen=True)
class Guide:
    """Which organs guide the network. source: "ground_truth" or "predicted"."""

    kind: str
    source: str
    organs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """One case. source: its raw files, as `case_sources.source_to_record` gives them. states: per structure.

    scan: the grid of the raw image. body_box: what is kept of it. voxels: of each annotated structure, on the
    scan. lost_fraction: share of each structure outside the tensors. Hashes: source_hash of the raw files,
    content_hash of the image's voxels, survey_key and key of all that decides what is known of it and what
    its tensors are.
    """

    case_id: str
    patient_id: str
    states: dict[str, str]
    source: dict[str, Any]
    scan: Grid
    split: str | None = None
    body_box: Extent | None = None
    canvas: Grid | None = None
    tensors: tuple[TensorFile, ...] = ()
    reference: StoredFile | None = None
    locator: LocatorFile | None = None
    guide: GuideFile | None = None
    voxels: dict[str, int] = dataclasses.field(default_factory=dict)
    ignored_voxels: int = 0  # that nobody looked at, on the scan
    lost_fraction: dict[str, float] = dataclasses.field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    source_hash: str = ""
    content_hash: str = ""
    survey_key: str = ""
    key: str = ""

    def seen_files(self) -> list[StoredFile]:
        """What networks see of it."""
        return [file for file in (*self.tensors, self.locator, self.guide) if file is not None]

    def files(self) -> list[str]:
        """Every file of it below processed_data/."""
        return [file.file for file in (*self.seen_files(), self.reference) if file is not None]

    def intact(self, workspace: Workspace) -> bool:
        """Whether it is written and every file of it is there with the hash written down."""
        if self.reference is None:
            return False
        try:
            return all(
                file_hash(workspace.processed / file.file) == file.sha256
                for file in (*self.seen_files(), self.reference)
            )
        except (OSError, IntegrityError):
            return False

    def written_reference(self) -> StoredFile:
        """The label map of a case that is written, on the grid of its scan."""
        if self.reference is None:
            raise ValueError(f"case {self.case_id} has no reference yet")
        return self.reference

    def on_canvas(self) -> Grid:
        """The canvas of a case whose tensors are written."""
        if self.canvas is None:
            raise ValueError(f"case {self.case_id} has no canvas yet")
        return self.canvas


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The whole of `processed_data/manifest.json`."""

    structures: tuple[str, ...]
    grid: str
    spacing_mm: tuple[float, float, float] | None
    window_hu: tuple[float, float]
    settings: dict[str, Any]
    settings_hash: str
    splits_hash: str
    cases: tuple[Case, ...]
    layout: str
    synthetic: bool
    data_root: str
    task: str | None = None
    guide: Guide | None = None
    sides: Sides | None = None
    versions: dict[str, Any] = dataclasses.field(default_factory=dict)
    content_hash: str = ""
    format: str = FORMAT
    version: int = VERSION

    def of_split(self, split: str) -> list[Case]:
        """The cases of train, val or test."""
        return [case for case in self.cases if case.split == split]

    def case(self, case_id: str) -> Case | None:
        """The case of that id."""
        return next((case for case in self.cases if case.case_id == case_id), None)

    @property
    def organs(self) -> tuple[str, ...]:
        """The guide organs."""
        return self.guide.organs if self.guide is not None else ()

    def data_hash(self) -> str:
        """What identifies the processed data: structures, grid, settings and the hash of everything that a
        network sees.
        """
        return canonical_hash(
            {
                "structures": self.structures,
                "settings": self.settings_hash,
                "splits": self.splits_hash,
                "tensors": {case.case_id: [file.sha256 for file in case.seen_files()] for case in self.cases},
            }
        )

    def sealed(self) -> Manifest:
        """With the hash of all the rest, so that edits are noticed."""
        rest = {name: value for name, value in to_record(self).items() if name != "content_hash"}
        return dataclasses.replace(self, content_hash=canonical_hash(rest))

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest in a file. Raises IntegrityError ARTIFACT_VERSION or ARTIFACT_CORRUPT."""
        content = read_json(path)
        version = content.get("version") if isinstance(content, dict) else None
        if version != VERSION:
            raise IntegrityError(
                "ARTIFACT_VERSION", f"manifest version {version} instead of {VERSION}", AGAIN, file=path.name
            )
        try:
            return from_record(cls, content)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                "ARTIFACT_CORRUPT", f"not readable as a manifest ({error})", AGAIN, file=path.name
            ) from error

    @classmethod
    def load(cls, workspace: Workspace) -> Manifest:
        """The manifest of a workspace, its own hash and the splits checked.

        Raises PreconditionError MISSING_ARTIFACT, IntegrityError (LEAKAGE: a case stands in another split
        than its patient).
        """
        manifest = cls.read(workspace.require(workspace.manifest, stage="preprocess"))
        file = workspace.relative(workspace.manifest)
        splits = read_json(workspace.require(workspace.splits, stage="preprocess"))
        if canonical_hash(splits) != manifest.splits_hash:
            raise IntegrityError(
                "SPLIT_CHANGED",
                "splits.json is not the one the tensors were made with",
                "restore it, or delete processed_data and run `python run_pipeline.py --preprocess`",
                file=workspace.relative(workspace.splits),
            )
        for case in manifest.cases:
            drawn = splits["assignment"].get(case.patient_id)
            if case.split != drawn:
                cause = f"the manifest puts it into {case.split}, splits.json its patient into {drawn}"
                raise IntegrityError("LEAKAGE", cause, AGAIN, case=case.case_id, file=file)
        if manifest.content_hash != manifest.sealed().content_hash:
            raise IntegrityError("MANIFEST_CHANGED", "it was edited after it was written", AGAIN, file=file)
        return manifest


# ---- records and JSON ----------------------------------------------------------------------------


def to_record(value: Any) -> Any:
    """A typed record as JSON values: fields by name, tuples, sets (in order) and arrays as lists."""
    if isinstance(value, Finding):
        return value.record()
    if dataclasses.is_dataclass(value):
        return {field.name: to_record(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_record(item) for key, item in value.items()}
    if isinstance(value, (tuple, list, frozenset)):
        return [to_record(item) for item in (sorted(value) if isinstance(value, frozenset) else value)]
    if isinstance(value, Path):
        return value.as_posix()
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def from_record(kind: Any, value: Any) -> Any:
    """The record of type `kind` that `to_record` made JSON of; fields that are missing take their defaults,
    others are passed over.

    Raises KeyError, TypeError or ValueError for anything else.
    """
    parts = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin is types.UnionType:  # X | None
        return None if value is None else from_record(parts[0], value)
    if origin is tuple:
        kinds: Any = itertools.repeat(parts[0]) if parts[-1] is Ellipsis else parts
        return tuple(from_record(part, item) for part, item in zip(kinds, value))
    if origin is dict:
        return {parts[0](key): from_record(parts[1], item) for key, item in value.items()}
    if kind is Path or origin is frozenset:
        return (origin or kind)(value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind(
            **{name: from_record(part, value[name]) for name, part in field_types(kind) if name in value}
        )
    if kind is np.ndarray:
        return np.array(value, dtype=np.float64)
    if kind in (str, bool, int) and not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


@functools.cache
def field_types(kind: Any) -> list[tuple[str, Any]]:
    """(name, type) of each field of a record."""
    types_by_name = typing.get_type_hints(kind)
    return [(field.name, types_by_name[field.name]) for field in dataclasses.fields(kind)]
