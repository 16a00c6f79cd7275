"""Would the oracles notice? Copies of ctseg.scoring are damaged one by one, and at least one oracle must fail
on each.

A damage is a replacement of text that must occur exactly once: it cannot vanish when the code changes. All
damages are tried in one process, which imports each copy anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = {
    "spacing of the axes swapped": (
        "distances.py",
        "        spacing_mm=spacing_mm,\n        boundary_mode=boundary_mode,\n",
        "        spacing_mm=spacing_mm[::-1],\n        boundary_mode=boundary_mode,\n",
    ),
    "spacing forgotten": ("distances.py", "(d, h, w)", "(1.0, 1.0, 1.0)"),
    "spacing of a case swapped": (
        "metrics.py",
        "spacing_mm=spacing_mm,\n                boundary_mode=boundary_mode,\n            )\n   "
        "         surface",
        "spacing_mm=spacing_mm[::-1],\n                boundary_mode=boundary_mode,\n            "
        ")\n            surface",
    ),
    "percentile of the pooled distances": (
        "distances.py",
        "    values = []\n    for d, weights in distances.sides:\n",
        "    values = []\n    pooled = np.concatenate([d for d, _ in distances.sides])\n    "
        "order = np.argsort(pooled)\n"
        "    for d, weights in [(pooled[order], np.concatenate([w for _, w in distances.sides])[order])]:\n",
    ),
    "percentile of one direction": (
        "distances.py",
        "    values = []\n    for d, weights in distances.sides:\n",
        "    values = []\n    for d, weights in distances.sides[:1]:\n",
    ),
    "HD of one direction": (
        "distances.py",
        "max(d[-1] for d, _ in distances.sides)",
        "max(d[-1] for d, _ in distances.sides[:1])",
    ),
    "ASSD is MASD": ("metrics.py", "surfaces.average_symmetric_mm(pair)", "surfaces.mean_average_mm(pair)"),
    "NSD without the float rule": ("distances.py", "TOLERANCE_EPSILON = 1e-6", "TOLERANCE_EPSILON = 0.0"),
    "NSD of one side": (
        "distances.py",
        "near = sum(weights[d <= limit].sum() for d, weights in distances.sides)",
        "near = 2 * sum(weights[d <= limit].sum() for d, weights in distances.sides[1:])",
    ),
    "surface without area": (
        "distances.py",
        "surfel.area_table(spacing_mm)[codes.reshape(-1)[points]]",
        "np.ones(points.size)",
    ),
    "areas of other axes": ("surfel.py", "[h * w, d * w, d * h]", "[d * h, d * w, h * w]"),
    "cells not padded at the start": (
        "surfel.py",
        "voxels[1:-1, 1:-1, 1:-1] = mask",
        "voxels[:-2, :-2, :-2] = mask",
    ),
    "outside the image is foreground": (
        "distances.py",
        "padded, inside = np.pad(mask, 1)",
        "padded, inside = np.pad(mask, 1, mode='edge')",
    ),
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
        "metrics.py",
        "flat = prediction.reshape(-1), reference.reshape(-1)",
        "flat = reference.reshape(-1), prediction.reshape(-1)",
    ),
    "missed dropped from the headline": (
        "metrics.py",
        "HEADLINE_STATES = (PRESENT, MISSED)",
        "HEADLINE_STATES = (PRESENT,)",
    ),
    "absent enters the headline": (
        "metrics.py",
        "HEADLINE_STATES = (PRESENT, MISSED)",
        "HEADLINE_STATES = (PRESENT, MISSED, ABSENT)",
    ),
    "hallucinations dropped from the second table": (
        "summary.py",
        "ALL_STATES = (PRESENT, MISSED, HALLUCINATED)",
        "ALL_STATES = (PRESENT, MISSED)",
    ),
    "missed organs cost no distance": (
        "metrics.py",
        "diagonal_mm if state == MISSED else surface",
        "surface",
    ),
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


RUN_ALL = """
import contextlib, io, json, sys
noticed = {}
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        import metric_oracles
        status = metric_oracles.main()
    noticed[folder] = [status, text.getvalue()]
    sys.path.remove(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ctseg", "metric_oracles")]:
        del sys.modules[name]
print(json.dumps(noticed))
"""


def copy_of(folder: Path) -> Path:
    package = folder / "ctseg"
    package.mkdir(parents=True)
    for file in ("__init__.py", "errors.py", "geometry/__init__.py", "geometry/boxes.py"):
        (package / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "ctseg" / file, package / file)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ctseg" / "scoring", package / "scoring", ignore=ignored)
    return folder


def test_every_damage_is_noticed_and_no_other_copy(tmp_path: Path) -> None:
    copies = {"undamaged": copy_of(tmp_path / "undamaged")}
    for name, (file, before, after) in MUTATIONS.items():
        copies[name] = copy_of(tmp_path / name)
        path = copies[name] / "ctseg" / "scoring" / file
        source = path.read_text(encoding="utf-8")
        assert source.count(before) == 1, f"'{before}' occurs {source.count(before)} times in {file}"
        path.write_text(source.replace(before, after), encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tests" / "support"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *map(str, copies.values())],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, folder in copies.items():
        status, text = found[str(folder)]
        assert str(folder) in text, text  # it was this copy that ran, and its imports worked
        assert status == (0 if name == "undamaged" else 1), f"{name}: {text}"
        # a wrong number, not a broken program
        assert "NameError" not in text and "SyntaxError" not in text, text
