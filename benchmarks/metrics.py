"""Processor time of HD95 + ASSD + NSD for 20 structures: ours against other packages, as Markdown tables.

    python benchmarks/metrics.py [--sizes 128 256 512] [--repeats 5] [--peers monai surface-distance medpy
    sitk]

The label maps are synthetic: twenty bent ellipsoids, the prediction being the reference moved by up to two
voxels with another bend. Size 512 means 512x512x300. All methods run in turn in this one process, with one
thread; the time is that of the processor (`time.process_time`), the median over the repeats. Where a peer is
slow it runs on a few structures of middling size and its time is multiplied up; the table says on how many.

Ours starts from the two label maps, so its time holds the search for the boxes. The peers get ready masks and
are not charged for making them. A peer that is not installed is left out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ctseg.geometry.boxes import label_boxes, union
from ctseg.scoring import distances, metrics

STRUCTURES = 20
TAU_MM = 2.0
SHAPES = {128: (128, 128, 128), 256: (256, 256, 256), 512: (300, 512, 512)}
SPACINGS = {128: (2.0, 2.0, 2.0), 256: (1.5, 1.0, 1.0), 512: (1.0, 0.8, 0.8)}
SCORES = tuple[float, float, float]
MODULES = {
    "monai": "monai",
    "surface-distance": "surface_distance",
    "medpy": "medpy",
    "sitk": "SimpleITK",
    "panoptica": "panoptica",
}
# On how many structures a peer runs at each size, where not on all: it would take minutes.
FEWER = {
    "monai": {512: 5},
    "medpy": {128: 5, 256: 2, 512: 1},
    "sitk": {128: 5, 256: 3, 512: 1},
    "panoptica": {128: 5, 256: 2, 512: 1},
}


# ---- label maps -------------------------------------------------------------------------------------------


def phantom(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, reference), uint8 label maps of twenty organ-like shapes at SHAPES[size]."""
    shape, rng = SHAPES[size], np.random.default_rng(seed)
    cells = [np.array(index) for index in np.ndindex(3, 3, 3)]
    prediction, reference = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for label, cell in enumerate(rng.permutation(cells)[:STRUCTURES], start=1):
        centre = (cell + 0.5) * np.array(shape) / 3 + rng.uniform(-0.02, 0.02, 3) * shape
        radii = rng.uniform(0.045, 0.16, 3) * shape
        waves = rng.uniform(0, 2 * np.pi, 3)
        _draw(reference, label, centre, radii, waves)
        _draw(
            prediction,
            label,
            centre + rng.uniform(-1.5, 1.5, 3),
            radii * rng.uniform(0.97, 1.03, 3),
            waves + rng.normal(0, 0.2, 3),
        )
    return prediction, reference


def _draw(volume: np.ndarray, label: int, centre: np.ndarray, radii: np.ndarray, waves: np.ndarray) -> None:
    """An ellipsoid whose surface is waved, in its box."""
    low = np.maximum(0, np.floor(centre - 1.2 * radii)).astype(int)
    high = np.minimum(volume.shape, np.ceil(centre + 1.2 * radii) + 1).astype(int)
    axes = [(np.arange(a, b, dtype=np.float32) - c) / r for a, b, c, r in zip(low, high, centre, radii)]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    field = sum(axis**2 for axis in grid) + 0.12 * sum(
        np.sin(3 * axis + wave) for axis, wave in zip(grid, waves)
    )
    volume[tuple(slice(a, b) for a, b in zip(low, high))][field < 1] = label


def lone(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, reference): one structure of some 600 voxels alone in a large volume."""
    volumes = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    centre = np.array(shape) * 0.4
    for volume, shift in zip(volumes, (0.8, 0.0)):
        _draw(volume, 1, centre + shift, np.full(3, 5.2), np.zeros(3))
    return volumes


# ---- the methods ------------------------------------------------------------------------------------------


def ours(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: tuple[float, float, float],
    labels: list[int],
    mode: str,
) -> list[SCORES]:
    """HD95, ASSD and NSD per label, from the label maps; undefined structures are not among the phantom's."""
    one, other = label_boxes(prediction), label_boxes(reference)
    scores = []
    for label in labels:
        box = union(one[label], other[label])
        pair = distances.distances_in_box(
            prediction=prediction[box] == label,
            reference=reference[box] == label,
            spacing_mm=spacing_mm,
            boundary_mode=mode,
        )
        scores.append(
            (
                distances.percentile_hausdorff_mm(pair),
                distances.average_symmetric_mm(pair),
                distances.surface_dice(pair, TAU_MM),
            )
        )
    return scores


def whole_case(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float], labels: list[int]
) -> None:
    """Everything that evaluate.py writes about the masks: counts, states, HD, HD95, ASSD, MASD, two NSD."""
    structures = [metrics.Structure(f"s{label}", (label,)) for label in labels]
    metrics.score_case(
        prediction=prediction,
        reference=reference,
        spacing_mm=spacing_mm,
        structures=structures,
        tolerances_mm={structure.name: (TAU_MM, 1.0) for structure in structures},
    )


def monai(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> SCORES:
    """Three calls: there is none for all three metrics."""
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    pair: dict[str, Any] = {
        "y_pred": torch.from_numpy(prediction)[None, None],
        "y": torch.from_numpy(reference)[None, None],
        "include_background": True,
        "spacing": list(spacing_mm),
    }
    return (
        float(compute_hausdorff_distance(percentile=95, **pair)),
        float(compute_average_surface_distance(symmetric=True, **pair)),
        float(compute_surface_dice(class_thresholds=[TAU_MM], **pair)),
    )


def deepmind(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> SCORES:
    """The surface-distance package; its two directed means are averaged."""
    import surface_distance as package

    found = package.compute_surface_distances(reference, prediction, spacing_mm)
    return (
        package.compute_robust_hausdorff(found, 95),
        sum(package.compute_average_surface_distance(found)) / 2,
        package.compute_surface_dice_at_tolerance(found, TAU_MM),
    )


def medpy(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> SCORES:
    """It has no NSD; its HD95 pools the directions."""
    from medpy.metric import binary

    return (
        binary.hd95(prediction, reference, spacing_mm),
        binary.assd(prediction, reference, spacing_mm),
        float("nan"),
    )


def sitk(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> SCORES:
    """The usual recipe: Maurer's distance map of one mask read at the contour of the other."""
    import SimpleITK

    images = []
    for mask in (prediction, reference):
        image = SimpleITK.GetImageFromArray(mask.view(np.uint8))
        image.SetSpacing(spacing_mm[::-1])
        images.append(image)
    sides = []
    for one, other in (images, images[::-1]):
        field = SimpleITK.Abs(
            SimpleITK.SignedMaurerDistanceMap(other, squaredDistance=False, useImageSpacing=True)
        )
        # a name keeps the image that the views look at
        contour = SimpleITK.LabelContour(one, fullyConnected=False)
        sides.append(SimpleITK.GetArrayViewFromImage(field)[SimpleITK.GetArrayViewFromImage(contour) > 0])
    pooled = np.concatenate(sides)
    return (
        float(max(np.percentile(side, 95) for side in sides)),
        float(pooled.mean()),
        float((pooled <= TAU_MM).mean()),
    )


def panoptica(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]
) -> SCORES:
    """One matched instance."""
    from panoptica import InputType, Metric, Panoptica_Evaluator

    evaluator = Panoptica_Evaluator(
        expected_input=InputType.MATCHED_INSTANCE,
        instance_metrics=[Metric.HD95, Metric.ASSD, Metric.NSD],
        verbose=False,
    )
    found = evaluator.evaluate(
        prediction.astype(np.uint8), reference.astype(np.uint8), voxelspacing=spacing_mm, verbose=False
    )["ungrouped"]
    return found.sq_hd95, found.sq_assd, found.sq_nsd


PEERS: dict[str, Callable[[np.ndarray, np.ndarray, tuple[float, float, float]], SCORES]] = {
    "monai": monai,
    "surface-distance": deepmind,
    "medpy": medpy,
    "sitk": sitk,
    "panoptica": panoptica,
}


# ---- timing -----------------------------------------------------------------------------------------------


class Timer:
    """Processor seconds of named jobs, which run in turn."""

    def __init__(self, repeats: int):
        self.repeats, self.seconds = repeats, {}  # type: int, dict[str, list[float]]

    def run(self, jobs: dict[str, Callable[[], object]], heavy_s: float = 12.0) -> dict[str, float]:
        """Median per job over the repeats; a job of more than `heavy_s` seconds runs once."""
        next(iter(jobs.values()))()  # the first call fills tables
        for turn in range(self.repeats):
            for name, job in jobs.items():
                if turn and self.seconds[name][0] > heavy_s:
                    continue
                start = time.process_time()
                job()
                self.seconds.setdefault(name, []).append(time.process_time() - start)
        return {name: statistics.median(seconds) for name, seconds in self.seconds.items()}


def jobs_of(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: tuple[float, float, float],
    labels: list[int],
    peers: list[str],
    size: int,
):
    """(name -> job, name -> number of structures it runs on)."""
    jobs: dict[str, Callable[[], object]] = {
        "ours, surfel (default)": lambda: ours(prediction, reference, spacing_mm, labels, "surfel"),
        "ours, voxel": lambda: ours(prediction, reference, spacing_mm, labels, "voxel"),
        "ours, the whole row (surfel)": lambda: whole_case(prediction, reference, spacing_mm, labels),
    }
    on = dict.fromkeys(jobs, len(labels))
    by_size = sorted(labels, key=lambda label: np.count_nonzero(reference == label))
    for peer in peers:
        count = min(len(labels), FEWER.get(peer, {}).get(size, len(labels)))
        start = (len(labels) - count) // 2
        masks = [
            (np.equal(prediction, label), np.equal(reference, label))
            for label in by_size[start : start + count]
        ]
        on[peer] = count

        def job(method=PEERS[peer], masks=masks) -> object:
            return [method(one, other, spacing_mm) for one, other in masks]

        jobs[peer] = job
    return jobs, on


def table(title: str, seconds: dict[str, float], on: dict[str, int], total: int) -> str:
    """A Markdown table; ratio is the time over that of our default."""
    base = seconds["ours, surfel (default)"]
    lines = [
        f"\n**{title}**\n",
        "| method | CPU seconds | times ours | structures run |",
        "|---|---|---|---|",
    ]
    for name, value in seconds.items():
        scaled = value * total / on[name]
        lines.append(
            f"| {name} | {scaled:.4g} | {scaled / base:.2f} | "
            f"{on[name]}{'' if on[name] == total else ', scaled'} |"
        )
    return "\n".join(lines)


def counting(prediction: np.ndarray, reference: np.ndarray, repeats: int) -> str:
    """Milliseconds of the confusion matrix of all labels."""
    seconds = Timer(repeats).run(
        {
            "matrix": lambda: metrics.confusion_matrix(
                prediction=prediction, reference=reference, n_labels=STRUCTURES + 1
            )
        }
    )
    return f"\nConfusion matrix of {STRUCTURES} labels: {1000 * seconds['matrix']:.1f} ms."


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", nargs="*", choices=sorted(PEERS), default=list(PEERS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    peers = [name for name in options.peers if util.find_spec(MODULES[name])]
    if "monai" in peers:
        import torch

        torch.set_num_threads(1)
    if "sitk" in peers:
        import SimpleITK

        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}, "
        "synthetic label maps, CPU time"
    )
    for size in options.sizes:
        prediction, reference = phantom(size)
        labels = [
            label
            for label in range(1, STRUCTURES + 1)
            if (reference == label).any() and (prediction == label).any()
        ]
        jobs, on = jobs_of(prediction, reference, SPACINGS[size], labels, peers, size)
        print(
            table(
                f"HD95 + ASSD + NSD of {len(labels)} structures, {'x'.join(map(str, SHAPES[size]))}",
                Timer(options.repeats).run(jobs),
                on,
                len(labels),
            )
        )
        print(counting(prediction, reference, options.repeats), flush=True)
    if 512 in options.sizes:
        prediction, reference = lone(SHAPES[512])
        jobs, on = jobs_of(
            prediction,
            reference,
            SPACINGS[512],
            [1],
            [peer for peer in peers if peer in ("monai", "surface-distance")],
            512,
        )
        print(
            table(
                f"one structure of {np.count_nonzero(reference)} voxels alone in "
                f"{'x'.join(map(str, SHAPES[512]))}",
                Timer(options.repeats).run(jobs),
                on,
                1,
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
