"""Reading the metadata files of data sets: JSON objects, tables of label names, channel names.

They come from elsewhere, so everything is checked and a message names the file and the entry.
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
from pathlib import Path
from typing import Any

from ctseg.datasets import listing
from ctseg.datasets.case import LabelTable
from ctseg.errors import PreconditionError

LARGEST_BYTES = 256 * 2**20  # no public data set comes near it; a wrong file does
LONGEST_VALUE = 10  # digits of a label value
NAMES_EXAMPLE = '{"labels": {"background": 0, "liver": 1}}'


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; PreconditionError METADATA_PARSE with the line number when there is none.

    A byte-order mark is accepted, a key that stands twice is not: one of its two values would silently win.
    """
    return dict(_read(path, dict, "a list or a single value instead of an object {...}"))


def read_list(path: Path) -> list[Any]:
    """The JSON list in a file; errors as in `read_object`."""
    return list(_read(path, list, "no list [...]"))


def read_value(path: Path) -> Any:
    """Any JSON in a file; errors as in `read_object`."""
    return _read(path, object, "")


def _read(path: Path, kind: type, otherwise: str) -> Any:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_BYTES:
            raise ValueError("not a regular file of reasonable size")
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
        if not isinstance(content, kind):
            raise ValueError(otherwise)
        return content
    except (OSError, ValueError, RecursionError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        if isinstance(error, json.JSONDecodeError):
            cause = f"line {error.lineno}: {error.msg}"
        cause, fix = f"not readable as JSON ({cause})", "correct the file"
        raise PreconditionError("METADATA_PARSE", cause, fix, file=path.name) from error


def peek(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None when it is missing or unreadable; for telling layouts apart."""
    with contextlib.suppress(PreconditionError):
        return read_object(path)
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key '{key}' stands twice")
        content[key] = value
    return content


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
    values: dict[int, str] = {}
    for key, value in raw.items():
        name, number = (value, key) if by_value else (key, value)
        if isinstance(number, list):
            raise PreconditionError(
                "REGIONS_UNSUPPORTED",
                f"the label '{name}' is a region (several values: {number})",
                "give every value one name; regions overlap and one voxel can only have one label here",
                file=path.name,
            )
        # a bool is no number, and isdecimal knows no sign and no point
        digits = str(number).strip()
        if not (digits.isdecimal() and len(digits) <= LONGEST_VALUE and isinstance(number, (int, str))):
            cause = f"the label '{name}' has the value {number!r:.60}"
            raise invalid(path, cause, "label values are whole numbers from 0 on")
        if int(number) in values and int(number):
            raise invalid(path, f"the label value {number} has two names", "give every value one name")
        values[int(number)] = name.strip()
    values.pop(0, None)
    by_name = {listing.folded(name): number for number, name in values.items()}
    if len(by_name) < len(values) or "" in by_name:
        raise invalid(path, "a label name is empty or stands twice", "give every structure its own name")
    ignored = by_name.get("ignore")
    values.pop(-1 if ignored is None else ignored, None)
    if not values:
        fix = f"name the structures, for example {NAMES_EXAMPLE}"
        raise invalid(path, "the label table names nothing but background", fix)
    return LabelTable(dict(sorted(values.items())), ignored)


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
    named_ct = [number for number, name in channels.items() if re.match(r"ct(a|[ _]|$)", name)]
    others = [number for number, name in channels.items() if re.match(r"mr|t1|t2|flair|adc|pet|us", name)]
    if len(named_ct) == 1:
        return named_ct[0]
    if len(channels) == 1 and not others:
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
