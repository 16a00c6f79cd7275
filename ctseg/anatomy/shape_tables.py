"""Shapes of the standard body as tables of numbers: CSV files beside the code that draws them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.anatomy.implicit import Scene, Shape


def read_table(file: Path) -> dict[str, np.ndarray]:
    """Name -> its rows (n, columns), float64, in the order of a CSV file with lines `name,number,number,...`.

    Lines that begin with # are comments; they say what the columns are.
    """
    rows: dict[str, list[list[float]]] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for name, *numbers in csv.reader(line for line in lines if not line.startswith("#")):
            rows.setdefault(name, []).append([float(number) for number in numbers])
    return {name: np.array(values) for name, values in rows.items()}


def tube(scene: Scene, nodes: np.ndarray, **options: Any) -> Shape:
    """`Scene.tube` through rows x, y, z, radius."""
    return scene.tube(nodes[:, :3], nodes[:, 3], **options)


def loft(scene: Scene, nodes: np.ndarray, **options: Any) -> Shape:
    """`Scene.loft` through axial sections given as rows x, y, z, radius; rows of one z are one section."""
    heights = dict.fromkeys(nodes[:, 2].tolist())
    return scene.loft([(z, nodes[nodes[:, 2] == z][:, [0, 1, 3]].tolist()) for z in heights], **options)
