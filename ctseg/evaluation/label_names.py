"""The names of the ids of label maps: labels.json, dataset.json, manifest.json, or what --labels gives.

Read strictly: what does not say clearly which structure an id is, is refused.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ctseg.datasets.masks import Naming
from ctseg.datasets.metadata import read_value
from ctseg.errors import IntegrityError, UsageError, listed
from ctseg.scoring.metrics import MAX_LABEL, Structure
from ctseg.scoring.summary import RESERVED_NAMES

_NAME_FILES = ("labels.json", "dataset.json")


class LabelNames(NamedTuple):
    """Structures of a folder of label maps; ignore_label: voxels nobody looked at; annotated: case id ->
    names of the structures that were looked for there (cases that are not listed: all)."""

    structures: tuple[Structure, ...]
    ignore_label: int | None
    annotated: Mapping[str, frozenset[str]]

    @property
    def naming(self) -> Naming:
        """What the ids mean, for the readers of masks."""
        return Naming({one.name: one.labels for one in self.structures}, self.ignore_label)

    def states_of(self, case_id: str) -> dict[str, str]:
        """ "unlabelled" for every structure that was not looked for in this case."""
        if case_id not in self.annotated:
            return {}
        return {s.name: "unlabelled" for s in self.structures if s.name not in self.annotated[case_id]}


def find_label_names(folders: Iterable[Path], given: Path | None) -> LabelNames | None:
    """Names from `given`, else from labels.json or dataset.json in the folders or the parent of each
    (nnU-Net's place); None without any. Raises when files contradict each other."""
    if given is not None:
        return read_label_names(given)
    found: dict[Path, LabelNames] = {}
    for place in dict.fromkeys(place for folder in folders for place in (folder, folder.parent)):
        path = next((place / name for name in _NAME_FILES if (place / name).is_file()), None)
        if path is not None:
            found[path] = read_label_names(path)
    for path, other in found.items():
        first, names = next(iter(found.items()))
        if set(other.structures) != set(names.structures):
            raise IntegrityError(
                "ORGAN_MAP_MISMATCH",
                f"{first.parent.name}/{first.name} and {path.parent.name}/{path.name} give the label "
                "ids different names",
                "give the right names with --labels",
                file=path.name,
            )
    return next(iter(found.values()), None)


def read_label_names(path: Path) -> LabelNames:
    """Names from {"1": "liver"}, {"liver": 1}, or a dataset.json or manifest.json with such a map under
    "labels".

    A list of ids makes a region. "background" is left out, "ignore" is the ignore label. An "annotated" map
    (case id -> names), or "annotated" in each of a manifest's "cases", says what was looked for in a case.
    """
    if not path.is_file():
        raise UsageError(
            "FILE_MISSING",
            "the file with the label names does not exist",
            "check the path after --labels",
            file=path.name,
        )
    content = read_value(path)
    table = content.get("labels", content) if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        raise UsageError(
            "BAD_LABELS",
            "no map of label ids and names in it",
            'write for example {"1": "liver"}',
            file=path.name,
        )
    structures, ignore = [], None
    for key, value in table.items():
        if key == "annotated":
            continue
        name, labels = (value, _ids(key)) if isinstance(value, str) else (key, _ids(value))
        if labels is None:
            raise UsageError(
                "BAD_LABELS",
                f"{key!r}: {value!r} does not join a name and an id from 0 to {MAX_LABEL}",
                'write for example "1": "liver"',
                file=path.name,
            )
        if name.lower() == "ignore":
            ignore = labels[0]
        elif name.lower() != "background" and labels != (0,):
            structures.append(Structure(name, labels))
    structures.sort(key=lambda structure: structure.labels)
    check_names([structure.name for structure in structures], path.name)
    return LabelNames(
        tuple(structures),
        ignore,
        _annotated(content, {structure.name for structure in structures}, path.name),
    )


def _annotated(table: dict[str, Any], known: set[str], file: str) -> dict[str, frozenset[str]]:
    content = table.get("annotated", {})
    if isinstance(table.get("cases"), list):  # the manifest.json of the plain layout
        content = {
            case["case"]: case["annotated"]
            for case in table["cases"]
            if isinstance(case, dict) and {"case", "annotated"} <= set(case)
        }
    if not isinstance(content, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in content.values()
    ):
        raise UsageError(
            "BAD_LABELS",
            "'annotated' is no map from case ids to lists of names",
            'write for example {"case_1": ["liver"]}',
            file=file,
        )
    unknown = sorted({name for names in content.values() for name in names} - known)
    if unknown:
        raise UsageError(
            "BAD_LABELS",
            f"'annotated' names {listed(unknown)}, which have no label id",
            "correct the names",
            file=file,
        )
    return {unicodedata.normalize("NFC", case): frozenset(names) for case, names in content.items()}


def _ids(value: object) -> tuple[int, ...] | None:
    """Label ids from "1", 1 or [1, 2]; None when it is none of these."""
    values: list[Any] = value if isinstance(value, list) else [value]
    try:
        ids = tuple(sorted({int(v) for v in values if not isinstance(v, (bool, float))}))
    except (TypeError, ValueError):
        return None
    return ids if len(ids) == len(values) > 0 and ids[0] >= 0 and ids[-1] <= MAX_LABEL else None


def check_names(names: Sequence[str], file: str = "-") -> None:
    """Refuse no names, equal names, and names that would collide with keys of the result files."""
    twice = sorted({name for name in names if names.count(name) > 1})
    reserved = sorted(RESERVED_NAMES.intersection(names))
    if not names or twice or reserved or "" in names:
        cause = (
            f"{twice} occur twice"
            if twice
            else f"{reserved} are keys of the result files"
            if reserved
            else "there is no structure, or one without a name"
        )
        raise UsageError("BAD_LABELS", cause, "rename the structures", file=file)
