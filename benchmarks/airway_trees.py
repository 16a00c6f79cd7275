"""Tree metrics of several teams' airways of one scan, each team once as the reference of every other one: two
Markdown tables.

    python benchmarks/airway_trees.py --data DIR [--scipy]

DIR holds the masks (.nii.gz, one value above 0) in one folder per team, for example predictions of one ATM'22
case. Nobody's tree is the truth here: the tables show how the metrics behave on real trees, and what they
cost. Every pair runs in a process of its own, so that its peak memory is its own. Seconds are processor time
of one thread without the reading of files; memory is the largest resident size of the process, with the two
volumes and Python in it. --scipy: count components with SciPy although cc3d is installed.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ctseg.geometry.boxes import tight_box, union
from ctseg.scans.formats import volume_files
from ctseg.scoring.shape import topology, tubular
from ctseg.scoring.shape.airway_tree import parse_tree

SHOWN = (
    ("TD", "td_full", 3),
    ("TD lcc", "td_lcc", 3),
    ("TD mm", "td_mm_full", 3),
    ("BD", "bd_full", 3),
    ("BD lcc", "bd_lcc", 3),
    ("precision", "precision_full", 3),
    ("leakage", "leakage_full", 3),
    ("AMR", "amr_full", 3),
    ("breaks", "breaks", 0),
    ("clDice", "cldice", 3),
    ("b0", "b0_error", 0),
    ("b1", "b1_error", 0),
    ("b2", "b2_error", 0),
    ("b0 located", "b0_located_error", 0),
    ("extra mL", "extra_components_ml", 2),
)


def read(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """(bool mask, spacing in mm)."""
    volume, _ = volume_files.read_integers(path)
    return volume.array > 0, volume.spacing_mm


def peak_mb() -> float:
    """Largest resident size of this process so far; kilobytes on Linux, bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform != "darwin" else 1e6)


def one_tree(path: Path, scipy_only: bool) -> dict[str, Any]:
    """What one mask is like, and the seconds of thinning and of parsing it."""
    _choose(scipy_only)
    mask, spacing_mm = read(path)
    shape, mask = mask.shape, np.ascontiguousarray(mask[tight_box(mask)])
    start = time.process_time()
    reference = topology.Shape(mask)
    assert reference.skeleton.shape == mask.shape  # thinned when asked for
    middle = time.process_time()
    tree = parse_tree(reference, spacing_mm)
    parsed = time.process_time() - middle
    return {
        "shape": shape,
        "spacing": spacing_mm,
        "box": mask.shape,
        "voxels": int(mask.sum()),
        "line": len(tree.skeleton),
        "branches": tree.n_branches,
        "depth": int(tree.generation.max()),
        "length_mm": tree.length_mm,
        "thinning_s": middle - start,
        "parsing_s": parsed,
    }


def one_pair(reference_path: Path, prediction_path: Path, scipy_only: bool) -> dict[str, Any]:
    """Every metric of one prediction against one reference, seconds, and peak memory in MB."""
    _choose(scipy_only)
    (reference, spacing_mm), (prediction, _) = read(reference_path), read(prediction_path)
    read_mb, start = peak_mb(), time.process_time()
    box = union(tight_box(reference), tight_box(prediction))
    known = topology.Shape(reference[box])
    tree, _ = parse_tree(known, spacing_mm), known.betti
    studied = time.process_time()
    found = tubular.compare(topology.Shape(prediction[box]), known, spacing_mm, tree)
    return found | {
        "study_s": studied - start,
        "compare_s": time.process_time() - studied,
        "read_mb": read_mb,
        "peak_mb": peak_mb(),
    }


def _choose(scipy_only: bool) -> None:
    if scipy_only:
        topology._cc3d = None  # type: ignore[assignment]


def main() -> int:
    """Print the two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--scipy", action="store_true")
    options = parser.parse_args()
    files = {path.parent.name.removeprefix("preds_"): path for path in sorted(options.data.rglob("*.nii.gz"))}
    if len(files) < 2:
        raise SystemExit("fewer than two folders with a .nii.gz file below --data")
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        trees = {name: pool.submit(one_tree, path, options.scipy).result() for name, path in files.items()}
        pairs = {
            pair: pool.submit(one_pair, files[pair[0]], files[pair[1]], options.scipy).result()
            for pair in itertools.permutations(files, 2)
        }
    first = next(iter(trees.values()))
    print(
        f"{len(files)} trees of one scan, {' x '.join(map(str, first['shape']))} voxels of "
        f"{' x '.join(f'{s:.3g}' for s in first['spacing'])} mm; "
        f"components by {'SciPy' if options.scipy or topology._cc3d is None else 'cc3d'}\n"
    )
    print(
        "| tree | voxels | its box | centre line | length mm | branches | generations | thinning "
        "s | parsing s |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, tree in trees.items():
        print(
            f"| {name} | {tree['voxels']} | {' x '.join(map(str, tree['box']))} | {tree['line']} "
            f"| {tree['length_mm']:.0f} | {tree['branches']} | {tree['depth'] + 1} "
            f"| {tree['thinning_s']:.2f} | {tree['parsing_s']:.2f} |"
        )
    heads = [head for head, _, _ in SHOWN]
    print(
        f"\n| reference | prediction | {' | '.join(heads)} | study s | compare s | MB after "
        f"reading | peak MB |\n{'|---' * (len(heads) + 6)}|"
    )
    for (reference, prediction), found in pairs.items():
        cells = ["-" if found[key] is None else f"{found[key]:.{digits}f}" for _, key, digits in SHOWN]
        print(
            f"| {reference} | {prediction} | {' | '.join(cells)} | {found['study_s']:.2f} | "
            f"{found['compare_s']:.2f} | {found['read_mb']:.0f} | {found['peak_mb']:.0f} |"
        )
    print()
    for name, key in (
        ("seconds of a reference", "study_s"),
        ("seconds of a prediction", "compare_s"),
        ("MB after reading", "read_mb"),
        ("peak MB", "peak_mb"),
    ):
        values = [found[key] for found in pairs.values()]
        print(f"{name}: median {np.median(values):.2f}, largest {max(values):.2f}  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
