"""Time of signed distance maps: two full Euclidean transforms per structure against ours, as a Markdown
table.

    python benchmarks/signed_distance.py [LABELS.nii.gz] [--limit-mm 30] [--structures 20]

Without a file the label is synthetic: twenty ellipsoids in 128^3 voxels. A label map is padded or cut to
128^3 and its largest structures are used. One thread (SciPy's transform has no other way), processor time of
this process.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ctseg.artifacts import TENSOR_SIZE
from ctseg.geometry.distance_maps import signed_distance_maps
from ctseg.scans.formats import volume_files

SPACING_MM = (2.0, 2.0, 2.0)  # of the synthetic label


def synthetic_label(count: int) -> np.ndarray:
    """`count` ellipsoids with half axes of 5 to 16 voxels in 128^3."""
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.arange(TENSOR_SIZE)] * 3, indexing="ij"), axis=-1)
    label = np.zeros((TENSOR_SIZE,) * 3, dtype=np.uint8)
    for number in range(1, count + 1):
        centre, half_axes = rng.uniform(20, 108, 3), rng.uniform(5, 16, 3)
        label[(((places - centre) / half_axes) ** 2).sum(axis=-1) < 1] = number
    return label


def real_label(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A label map padded or cut to 128^3, and its spacing."""
    volume, _ = volume_files.read_integers(path)
    array = np.pad(volume.array, [(0, max(0, TENSOR_SIZE - size)) for size in volume.array.shape])
    return array[:TENSOR_SIZE, :TENSOR_SIZE, :TENSOR_SIZE], volume.spacing_mm


def plain_maps(label: np.ndarray, ids: list[int], spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """The textbook way: distance outside minus distance inside, of whole arrays."""
    maps = np.empty((len(ids), *label.shape), dtype=np.float32)
    for row, number in zip(maps, ids):
        mask = label == number
        row[:] = ndimage.distance_transform_edt(~mask, sampling=spacing_mm) - ndimage.distance_transform_edt(
            mask, sampling=spacing_mm
        )
    return maps


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """(seconds of processor time, result)."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labels", type=Path, nargs="?")
    parser.add_argument("--limit-mm", type=float, default=30.0)
    parser.add_argument("--structures", type=int, default=20)
    options = parser.parse_args()
    label, spacing_mm = (
        real_label(options.labels) if options.labels else (synthetic_label(options.structures), SPACING_MM)
    )
    sizes = np.bincount(label.ravel())
    sizes[0] = 0
    ids = [int(number) for number in np.argsort(-sizes)[: options.structures] if sizes[number]]
    plain_s, plain = timed(lambda: plain_maps(label, ids, spacing_mm))
    exact_s, exact = timed(lambda: signed_distance_maps(label, ids, spacing_mm)[0])
    short_s, short = timed(lambda: signed_distance_maps(label, ids, spacing_mm, limit_mm=options.limit_mm)[0])
    if not (np.sign(exact) == np.sign(plain)).all() or not np.array_equal(
        np.clip(exact, -options.limit_mm, options.limit_mm), short
    ):
        raise SystemExit("the maps disagree")
    print(
        f"{len(ids)} structures, {' x '.join(map(str, label.shape))} voxels of "
        f"{' x '.join(f'{s:.3g}' for s in spacing_mm)} mm"
        f"{'' if options.labels else ', synthetic'}\n"
    )
    print("| signed distance | seconds | times faster |\n|---|---|---|")
    for name, seconds in (
        ("SciPy, two transforms", plain_s),
        ("ours, no limit", exact_s),
        (f"ours, exact within {options.limit_mm:g} mm", short_s),
    ):
        print(f"| {name} | {seconds:.2f} | {plain_s / seconds:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
