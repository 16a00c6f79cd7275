"""What a plain threshold reaches on processed data: the score that any network has to beat.

For each structure an HU interval is chosen on the training cases (best mean Dice after keeping the largest
component), then applied to the test cases. Scored on the tensors' canvas, present structures only.

    python benchmarks/threshold_baseline.py --workspace WORK      (after `python run_pipeline.py --preprocess
        --workspace WORK`)
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ctseg import artifacts
from ctseg.manifest import Manifest
from ctseg.prediction.largest_component import keep_largest
from ctseg.prediction.network_input import assemble

STEPS = 16  # candidate ends of the interval
TRAINING_CASES = 6  # enough to choose two numbers
COARSE = 2  # candidates are compared on every second voxel


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Dice of two bool arrays, the reference not empty."""
    return 2 * float((prediction & reference).sum()) / float(prediction.sum() + reference.sum())


def threshold(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """The largest component of the voxels within [low, high]."""
    return keep_largest(((image >= low) & (image <= high)).astype(np.uint8), [1]) > 0


def best_interval(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """The interval with the best mean Dice on (image, mask) pairs."""
    inside = np.concatenate([image[mask] for image, mask in pairs])
    ends = np.unique(np.quantile(inside, np.linspace(0, 1, STEPS)))
    candidates = [(low, high) for low, high in itertools.combinations(ends, 2)]
    return max(
        candidates, key=lambda ends: np.mean([dice(threshold(image, *ends), mask) for image, mask in pairs])
    )


def main() -> int:
    """Print the test Dice of the threshold per structure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", type=Path, required=True)
    workspace = artifacts.Workspace(parser.parse_args().workspace)
    manifest = Manifest.load(workspace)
    loaded = {}
    for split, limit in (("train", TRAINING_CASES), ("test", None)):
        entries = manifest.of_split(split)[:limit]
        loaded[split] = [
            tuple(tensor.numpy() for tensor in assemble(workspace, entry)[:2]) for entry in entries
        ]
    low_hu, high_hu = manifest.window_hu
    means = []
    print("| structure | interval (HU) | test Dice | n |\n|---|---|---|---|")
    for number, name in enumerate(manifest.structures, start=1):
        step = (slice(None, None, COARSE),) * 3
        pairs = [
            (image[step].astype(np.float32), label[step] == number)
            for image, label in loaded["train"]
            if (label == number).any()
        ]
        low, high = best_interval(pairs)
        scores = [
            dice(threshold(image.astype(np.float32), low, high), label == number)
            for image, label in loaded["test"]
            if (label == number).any()
        ]
        means.append(float(np.mean(scores)))
        bounds = [low_hu + value * (high_hu - low_hu) for value in (low, high)]
        print(f"| {name} | {bounds[0]:.0f} to {bounds[1]:.0f} | {np.mean(scores):.3f} | {len(scores)} |")
    print(f"| mean | | {np.mean(means):.3f} | |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
