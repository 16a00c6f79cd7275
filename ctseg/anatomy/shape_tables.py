"""The standard body as tables of numbers, CSV files beside the code that draws it; what varies as TOML."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path
from typing import Any

import numpy as np


def read_table(module: str, name: str | None = None) -> dict[str, np.ndarray]:
    """Name -> its rows (n, columns), float64, in the order of a CSV file with lines `name,number,number,...`.

    module: `__file__` of the code; the CSV lies beside it and is called `name`, or like the module. Lines
    that begin with # are comments; they say what the columns are.
    """
    file = Path(module).with_name(f"{name or Path(module).stem}.csv")
    rows: dict[str, list[list[float]]] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for key, *numbers in csv.reader(line for line in lines if not line.startswith("#")):
            rows.setdefault(key, []).append([float(number) for number in numbers])
    return {key: np.array(values) for key, values in rows.items()}


def read_people(module: str) -> dict[str, dict[str, Any]]:
    """The sections of `people.toml` beside the code in the file `module`, for `draw_values`."""
    return tomllib.loads(Path(module).with_name("people.toml").read_text(encoding="utf-8"))


def draw_values(rng: np.random.Generator, section: dict[str, Any]) -> dict[str, Any]:
    """One value of each name, drawn in the order of the section.

    An entry is `name.distribution = {arguments}`, a method of NumPy's generator; arrays become lists.
    """
    return {
        name: np.asarray(getattr(rng, distribution)(**arguments)).tolist()
        for name, entry in section.items()
        for distribution, arguments in entry.items()
    }
