"""Reading the metadata files of data sets: JSON objects, tables of label names, channel names.

They come from elsewhere, so everything is checked and a message names the file and the entry.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ctseg.datasets import listing
from ctseg.datasets.case import LabelTable
from ctseg.errors import PreconditionError

LARGEST_BYTES = 256 * 2**20  # no public data set comes near it; a wrong file does
NAMES_EXAMPLE = '{"labels": {"background": 0, "liver": 1}}'


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; PreconditionError METADATA_PARSE with the line number when there is none."""
    content = _read(path)
    if not isinstance(content, dict):
        raise _parse_error(path, "a list or a single value instead of an object {...}")
    return content


def read_list(path: Path) -> list[Any]:
    """The JSON list in a file; errors as in `read_object`."""
    content = _read(path)
    if not isinstance(content, list):
        raise _parse_error(path, "no list [...]")
    return content


def _read(path: Path) -> Any:
    """A byte-order mark is accepted, a key that stands twice is not: one of its two values would silently
    win.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_BYTES:
            raise ValueError("not a regular file of reasonable size")
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise _parse_error(path, f"line {error.lineno}: {error.msg}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _parse_error(path, getattr(error, "strerror", None) or str(error)) from error


def peek(path: Path | None) -> dict[str, Any] | None:
    """The JSON object in a file, or None when it is missing or unreadable; for telling layouts apart."""
    try:
        return read_object(path) if path is not None and path.exists() else None
    except (PreconditionError, OSError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(key for key in keys if keys.count(key) > 1)}' stands twice")
    return content


def _parse_error(path: Path, cause: str) -> PreconditionError:
    return PreconditionError(
        "METADATA_PARSE", f"not readable as JSON ({cause})", "correct the file", file=path.name
    )


def invalid(path: Path, cause: str, fix: str) -> PreconditionError:
    """The file is JSON, but an entry does not say what it should."""
    return PreconditionError("METADATA_INVALID", cause, fix, file=path.name)


def label_table(raw: Any, path: Path) -> LabelTable:
    """The names of label values, in the order of the values.

    raw: {"liver": 1} (nnU-Net, plain) or {"1": "liver"} (Decathlon, nnU-Net v1). Background (0) is left out.
    Regions (a list of values for one name) overlap and are refused.
    """
    if not isinstance(raw, dict) or not raw:
        cause = (
            "the names of the label values stand in a list, which does not say the value of each"
            if isinstance(raw, list) and raw
            else "the names of the label values are not given"
        )
        raise PreconditionError(
            "LABEL_NAMES_MISSING", cause, f"add them, for example {NAMES_EXAMPLE}", file=path.name
        )
    by_value = all(key.strip().isdecimal() and isinstance(value, str) for key, value in raw.items())
    pairs = [(value, key) if by_value else (key, value) for key, value in raw.items()]
    values: dict[int, str] = {}
    ignore_value = None
    for name, value in pairs:
        number = _label_value(name, value, path)
        if number in values or (number == ignore_value):
            raise invalid(path, f"the label value {number} has two names", "give every value one name")
        if number == 0:
            continue
        if name.casefold() == "ignore":
            ignore_value = number
        else:
            values[number] = name.strip()
    names = [listing.folded(name) for name in values.values()]
    if len(set(names)) < len(names) or "" in names:
        raise invalid(path, "a label name is empty or stands twice", "give every structure its own name")
    if not values:
        raise invalid(
            path,
            "the label table names nothing but background",
            f"name the structures, for example {NAMES_EXAMPLE}",
        )
    return LabelTable(dict(sorted(values.items())), ignore_value)


def _label_value(name: Any, value: Any, path: Path) -> int:
    if isinstance(value, list):
        raise PreconditionError(
            "REGIONS_UNSUPPORTED",
            f"the label '{name}' is a region (several values: {value})",
            "give every value one name; regions overlap and one voxel can only have one label here",
            file=path.name,
        )
    try:
        number = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else -1
    except ValueError:
        number = -1
    if number < 0:
        raise invalid(
            path, f"the label '{name}' has the value {value!r}", "label values are whole numbers from 0 on"
        )
    return number


def names_beside(folder: Path) -> LabelTable | None:
    """The label table of a file `labels.json` in `folder` ({"labels": {...}} or the table itself), if there
    is one.
    """
    path = folder / "labels.json"
    if not path.exists():
        return None
    content = read_object(path)
    return label_table(content.get("labels", content), path)


def ct_channel(raw: Any, path: Path) -> int:
    """Which image channel is the CT. raw: {"0": "CT"} (channel_names, modality) or None when not stated.

    One channel that is not named as another modality counts as CT; among several, one must be named CT.
    """
    if raw is None or raw == {}:
        return 0
    names = dict(enumerate(raw)) if isinstance(raw, list) else raw
    if not isinstance(names, dict) or not all(str(key).isdecimal() for key in names):
        raise invalid(path, f"the channels are {raw!r}", 'write {"0": "CT"}')
    channels = {int(key): str(name).strip().casefold() for key, name in names.items()}
    named_ct = [
        number for number, name in channels.items() if name == "ct" or name.startswith(("ct ", "ct_", "cta"))
    ]
    if len(named_ct) == 1:
        return named_ct[0]
    if len(channels) == 1 and not any(
        name.startswith(("mr", "t1", "t2", "flair", "adc", "pet", "us")) for name in channels.values()
    ):
        return next(iter(channels))
    raise PreconditionError(
        "NOT_CT",
        f"the image channels are {', '.join(channels.values())}",
        "this software reads one CT channel named CT",
        file=path.name,
    )


def entry_list(content: dict[str, Any], key: str, path: Path) -> list[Any]:
    """The list under a key; empty when the key is missing."""
    value = content.get(key, [])
    if not isinstance(value, list):
        raise invalid(path, f"'{key}' is not a list", "correct the file")
    return value


def one_of(paths: Iterable[Path], what: str) -> Path:
    """The only path, or PreconditionError SEVERAL_DATA_SETS naming the choices."""
    paths = list(paths)
    if len(paths) != 1:
        names = ", ".join(path.name for path in paths[:10])
        raise PreconditionError(
            "SEVERAL_DATA_SETS",
            f"the folder holds {len(paths)} {what}: {names}",
            "give --data the one you mean",
            file=paths[0].parent.name,
        )
    return paths[0]
