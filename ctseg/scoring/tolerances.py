"""Tolerances in mm for the surface Dice (NSD), by structure name. The first one is the main tolerance.

Liver to duodenum: FLARE challenge (Ma et al., arXiv:2308.05862). For bladder, prostate and rectum no standard
on CT was found: 3 mm, and 2 and 5 mm beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Tolerances = dict[str, tuple[float, ...]]

DEFAULT_MM = (2.0, 1.0)
# The first row with a word that occurs in the name wins, so the narrower words stand first.
_TABLE: tuple[tuple[tuple[str, ...], tuple[float, ...]], ...] = (
    (("lesion", "tumor", "tumour", "cancer", "cyst", "metastas"), (2.0, 1.0)),
    (("adrenal", "gallbladder"), (2.0, 1.0)),
    (("airway", "trachea", "bronch"), (1.0, 2.0)),
    (("pelvicbone", "hip", "sacrum", "pelvis"), (2.0, 1.0)),
    (("bladder", "prostate", "rectum"), (3.0, 2.0, 5.0)),
    (("aorta", "venacava", "postcava"), (2.0, 1.0)),
    (("liver", "pancreas", "stomach"), (5.0, 2.0)),
    (("kidney", "spleen", "esophagus", "oesophagus"), (3.0, 2.0)),
    (("duodenum",), (7.0, 2.0)),
)


def first_fit(name: str, table: Iterable[tuple[Iterable[str], Any]], default: Any) -> Any:
    """The value of the first row (words, value) with a word that occurs in the name, read without case and
    anything but letters; `default` where none does."""
    plain = re.sub(r"[^a-z]", "", name.lower())
    return next((value for words, value in table if any(word in plain for word in words)), default)


def tolerances_for(
    names: Iterable[str], overrides: Mapping[str, Iterable[float]] | None = None
) -> Tolerances:
    """At least two tolerances per name; an override of a single one gets its half as the second."""
    result = {}
    for name in names:
        chosen = first_fit(name, _TABLE, DEFAULT_MM)
        if overrides and name in overrides:
            chosen = tuple(float(value) for value in overrides[name])
            if not chosen or not all(0 <= value < float("inf") for value in chosen):
                raise ValueError(f"tolerances of '{name}' must be numbers of 0 or more, not {chosen}")
        result[name] = chosen if len(chosen) > 1 else (*chosen, chosen[0] / 2)
    return result


def key(tolerance_mm: float) -> str:
    """The name of an NSD at one tolerance, for example "nsd_2mm"."""
    return f"nsd_{tolerance_mm:g}mm"
