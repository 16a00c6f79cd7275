"""Would the oracles notice? Copies of ctseg.scoring are damaged one by one, and at least one oracle must fail on each.

A damage is a replacement of text that must occur exactly once: it cannot vanish when the code changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = {
    "spacing of the axes swapped": (
        "distances.py",
        "spacing_mm=spacing_mm, boundary_mode=boundary_mode, engine=engine,\n",
        "spacing_mm=spacing_mm[::-1], boundary_mode=boundary_mode, engine=engine,\n",
    ),
    "spacing forgotten": ("distances.py", "(spacing[0], spacing[1], spacing[2])", "(1.0, 1.0, 1.0)"),
    "spacing of a case swapped": (
        "metrics.py",
        "spacing_mm=spacing_mm, boundary_mode=boundary_mode)\n            surface",
        "spacing_mm=spacing_mm[::-1], boundary_mode=boundary_mode)\n            surface",
    ),
    "percentile of the pooled distances": (
        "distances.py",
        "    sides = ((distances.from_reference_mm, distances.reference_weights), (distances.from_prediction_mm, distances.prediction_weights))\n",
        "    pooled = np.concatenate([distances.from_reference_mm, distances.from_prediction_mm])\n    order = np.argsort(pooled)\n"
        "    sides = ((pooled[order], np.concatenate([distances.reference_weights, distances.prediction_weights])[order]),)\n",
    ),
    "percentile of one direction": (
        "distances.py",
        "    sides = ((distances.from_reference_mm, distances.reference_weights), (distances.from_prediction_mm, distances.prediction_weights))\n",
        "    sides = ((distances.from_reference_mm, distances.reference_weights),)\n",
    ),
    "HD of one direction": (
        "distances.py",
        "max(distances.from_reference_mm[-1], distances.from_prediction_mm[-1])",
        "distances.from_reference_mm[-1]",
    ),
    "ASSD is MASD": ("metrics.py", "surfaces.average_symmetric_mm(pair)", "surfaces.mean_average_mm(pair)"),
    "NSD without the float rule": ("distances.py", "TOLERANCE_EPSILON = 1e-6", "TOLERANCE_EPSILON = 0.0"),
    "NSD of one side": (
        "distances.py",
        "    near = distances.reference_weights[distances.from_reference_mm <= limit].sum() \\\n        + ",
        "    near = 2 * ",
    ),
    "surface without area": (
        "distances.py",
        "reference_weights = areas[reference_codes.reshape(-1)[reference_side.points]]",
        "reference_weights = np.ones(reference_side.points.size)",
    ),
    "areas of other axes": ("surfel.py", "[h * w, d * w, d * h]", "[d * h, d * w, h * w]"),
    "cells not padded at the start": (
        "surfel.py",
        "voxels[1:-1, 1:-1, 1:-1] = mask",
        "voxels[:-2, :-2, :-2] = mask",
    ),
    "outside the image is foreground": ("distances.py", "for end in (0, -1):", "for end in (0,):"),
    "looking to one side only": ("shells.py", "np.arange(-n, n + 1)", "np.arange(n + 1)"),
    "diagonal neighbours as far as straight ones": (
        "shells.py",
        "np.sqrt(((grid * np.array(spacing_mm)) ** 2).sum(axis=1))",
        "np.abs(grid * np.array(spacing_mm)).max(axis=1)",
    ),
    "absent counts 1": (
        "metrics.py",
        "numerator / denominator if denominator else None",
        "numerator / denominator if denominator else 1.0",
    ),
    "smoothed ratios": (
        "metrics.py",
        "numerator / denominator if denominator else None",
        "(numerator + 1e-5) / (denominator + 1e-5)",
    ),
    "prediction and reference swapped in the counts": (
        "label_scan.py",
        "pairs = reference.astype(self._pair_type)",
        "prediction, reference = reference, prediction\n        pairs = reference.astype(self._pair_type)",
    ),
    "missed dropped from the headline": (
        "summary.py",
        "HEADLINE_STATES = (PRESENT, MISSED)",
        "HEADLINE_STATES = (PRESENT,)",
    ),
    "absent enters the headline": (
        "summary.py",
        "HEADLINE_STATES = (PRESENT, MISSED)",
        "HEADLINE_STATES = (PRESENT, MISSED, ABSENT)",
    ),
    "hallucinations dropped from the second table": (
        "summary.py",
        "ALL_STATES = (PRESENT, MISSED, HALLUCINATED)",
        "ALL_STATES = (PRESENT, MISSED)",
    ),
    "missed organs cost no distance": ("metrics.py", "diagonal_mm if state == MISSED else value", "value"),
    "mean of nothing is 0": (
        "summary.py",
        "sum(defined) / len(defined)) if defined else None",
        "sum(defined) / len(defined)) if defined else 0.0",
    ),
    "undefined values count 0": (
        "statistics.py",
        "pairs = [(value, patient) for value, patient in zip(values, patients) if value is not None]",
        "pairs = [(value or 0.0, patient) for value, patient in zip(values, patients)]",
    ),
}


def run_oracles(package: Path) -> tuple[int, str]:
    """(exit status, what it printed) of the oracles on the ctseg below `package`."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "metric_oracles.py")],
        env={
            **os.environ,
            "PYTHONPATH": str(package),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert str(package) in done.stdout, (
        done.stdout + done.stderr
    )  # it was this copy that ran, and its imports worked
    return done.returncode, done.stdout


def copy_of(folder: Path) -> Path:
    (folder / "ctseg").mkdir()
    shutil.copy(ROOT / "ctseg" / "__init__.py", folder / "ctseg")
    shutil.copytree(
        ROOT / "ctseg" / "scoring", folder / "ctseg" / "scoring", ignore=shutil.ignore_patterns("__pycache__")
    )
    return folder


def test_an_undamaged_copy_passes(tmp_path: Path) -> None:
    status, text = run_oracles(copy_of(tmp_path))
    assert status == 0, text


@pytest.mark.parametrize("name", MUTATIONS)
def test_damage_is_noticed(name: str, tmp_path: Path) -> None:
    file, before, after = MUTATIONS[name]
    path = copy_of(tmp_path) / "ctseg" / "scoring" / file
    source = path.read_text(encoding="utf-8")
    assert source.count(before) == 1, f"'{before}' occurs {source.count(before)} times in {file}"
    path.write_text(source.replace(before, after), encoding="utf-8")
    status, text = run_oracles(tmp_path)
    assert status == 1, f"no oracle noticed: {name}"
    assert "NameError" not in text and "SyntaxError" not in text, text  # a wrong number, not a broken program
