"""Whether a value read from a file is of a type, as annotations write types."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Annotated, Any, Literal


def fits(value: Any, kind: Any) -> bool:
    """Whether a value read from a file is of a type.

    kind: a class; a record (dataclass or TypedDict), of which the value is a dict that holds every field, but
    for those of a TypedDict that need not be there; list, tuple, dict, Literal or union of such types;
    Annotated with a function that must hold. Numbers are finite and no bool, a tuple may be a list.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return fits(value, parts[0]) and bool(parts[1](value))
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        return isinstance(value, (list, tuple)) and len(value) == len(parts) and all(map(fits, value, parts))
    if origin is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(key, parts[0]) and fits(item, parts[1]) for key, item in value.items()
        )
    if typing.is_typeddict(kind) or dataclasses.is_dataclass(kind):
        fields = typing.get_type_hints(kind, include_extras=True)
        optional = getattr(kind, "__optional_keys__", ())
        return isinstance(value, dict) and all(
            fits(value[key], part) if key in value else key in optional for key, part in fields.items()
        )
    if kind in (int, float):
        return type(value) in (int, kind) and abs(value) < 1e300
    return isinstance(value, kind)
