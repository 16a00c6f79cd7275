"""Shapes of the standard body as tables of numbers: CSV files beside the code that draws them."""

from __future__ import annotations

import csv
from pathlib import Path

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


def draw_ranges(rng: np.random.Generator, table: dict[str, np.ndarray]) -> dict[str, float]:
    """One value of each name, even between the two numbers of its row, drawn in the order of the table."""
    return {name: rng.uniform(*rows[0].tolist()) for name, rows in table.items()}
