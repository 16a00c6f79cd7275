"""Do the connectivity losses reconnect broken tubes? Synthetic branching tubes whose contrast fades out in
places.

Two arms with the same volumes, seeds, steps and network: Dice + cross-entropy ("plain"), and the same with
the connectivity losses and their two training heads ("connected"). For each seed: the share of the
reference's gaps that the prediction bridges and the precision, at the usual threshold of 0.5 and with the
threshold of one arm moved (on volumes of their own) until it has the precision of the other: a lower
threshold alone bridges gaps too. All numbers are of synthetic data.

    python benchmarks/reconnect_tubes.py            (about 5 minutes on one slow core)
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from ctseg.config import TrainSettings
from ctseg.learning.connectivity_losses import connectivity_loss
from ctseg.learning.losses import passes_loss
from ctseg.learning.tubes import tube_targets
from models import build_network
from models.connectivity import ConnectivityMultitask

SIZE, PATCH = 40, 32  # voxels a side; 1 mm
STUMP = 4.0  # length on both sides of a gap that the prediction has to join
TOUCHING = np.ones((3, 3, 3), bool)


@dataclasses.dataclass
class Tubes:
    """One volume: image (D, H, W) float32, its targets (D, H, W), and each gap as (region, one side, other
    side) masks.
    """

    image: np.ndarray
    label: np.ndarray
    centreline: np.ndarray
    skeleton: np.ndarray
    radius_mm: np.ndarray
    gaps: list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def draw_path(rng: np.random.Generator, start: np.ndarray, heading: np.ndarray, length: float) -> np.ndarray:
    """(n, 3) points half a voxel apart on a gently bending line."""
    points = [start]
    for _ in range(int(length * 2)):
        heading = heading + rng.normal(0, 0.06, 3)
        heading = heading / np.linalg.norm(heading)
        points.append(points[-1] + heading / 2)
    return np.array(points)


def draw_tubes(seed: int) -> Tubes:
    """A trunk, three branches and loose pieces that are no tube; on each line half to all of the contrast
    fades over 4 to 7 voxels.
    """
    rng = np.random.default_rng([seed, 77])
    heading = rng.normal(size=3)
    heading /= np.linalg.norm(heading)
    trunk = draw_path(
        rng, np.full(3, SIZE / 2) - heading * SIZE * 0.45 + rng.normal(0, 3, 3), heading, SIZE * 0.9
    )
    lines = [trunk]
    for place in rng.uniform(0.15, 0.75, 3):
        side = rng.normal(size=3)
        lines.append(
            draw_path(
                rng, trunk[int(place * len(trunk))], side / np.linalg.norm(side) + heading * 0.5, SIZE * 0.5
            )
        )
    middles = [rng.uniform(8, len(line) / 2 - 8) for line in lines]  # voxels along the line
    halves = rng.uniform(2, 3.5, len(lines))
    arc = [np.arange(len(line)) / 2 for line in lines]
    depths = rng.uniform(0.5, 1, len(lines))  # the contrast lost in the middle of a gap
    contrast = [
        1 - depth * np.exp(-((np.abs(a - m) / h) ** 6) * 0.7)
        for a, m, h, depth in zip(arc, middles, halves, depths)
    ]
    radius = [np.full(len(line), 2.0 if k == 0 else rng.uniform(1.2, 1.7)) for k, line in enumerate(lines)]

    grid = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"), -1).reshape(-1, 3)
    distance, nearest = cKDTree(np.concatenate(lines)).query(grid, distance_upper_bound=4)
    found = np.isfinite(distance)
    nearest = np.where(found, nearest, 0)
    inside = (found & (distance <= np.concatenate(radius)[nearest])).reshape((SIZE,) * 3)
    brightness = np.where(inside, np.concatenate(contrast)[nearest].reshape(inside.shape), 0.0)
    for _ in range(5):  # loose pieces, as bright as the tubes
        piece = draw_path(rng, rng.uniform(4, SIZE - 4, 3), rng.normal(size=3), rng.uniform(3, 7))
        near, _ = cKDTree(piece).query(grid, distance_upper_bound=1.4)
        brightness = np.maximum(
            brightness, np.isfinite(near).reshape(inside.shape) & ~ndimage.binary_dilation(inside, TOUCHING)
        )
    image = (
        ndimage.gaussian_filter(brightness, 0.6)
        + ndimage.gaussian_filter(rng.normal(0, 1, inside.shape), 0.7) * 0.6
    )
    label = inside.astype(np.uint8)
    owner = np.repeat(np.arange(len(lines)), [len(line) for line in lines])[nearest].reshape(inside.shape)
    along = np.concatenate(arc)[nearest].reshape(inside.shape)
    gaps = []
    for k, (m, h) in enumerate(zip(middles, halves)):
        own = inside & (owner == k) & (np.abs(along - m) <= h + STUMP)
        before, after = own & (along < m - h), own & (along > m + h)
        crowded = (
            ndimage.binary_dilation(own & (np.abs(along - m) <= h), iterations=2) & inside & (owner != k)
        ).any()
        if before.any() and after.any() and not crowded:
            gaps.append((ndimage.binary_dilation(own, TOUCHING), before, after))
    return Tubes((image * 0.3 + 0.3).astype(np.float32), label, *tube_targets(label, [1], (1, 1, 1)), gaps)


def draw_batch(tubes: list[Tubes], rng: np.random.Generator, size: int = 2) -> dict[str, torch.Tensor]:
    """Random flipped patches: image (B, 1, D, H, W), label and targets (B, D, H, W)."""
    names = ("image", "label", "centreline", "skeleton", "radius_mm")
    stacks: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for _ in range(size):
        case = tubes[rng.integers(len(tubes))]
        place = tuple(slice(i, i + PATCH) for i in rng.integers(0, SIZE - PATCH + 1, 3))
        flips = tuple(slice(None, None, -1 if flip else 1) for flip in rng.random(3) < 0.5)
        for name in names:
            stacks[name].append(getattr(case, name)[place][flips])
    batch = {name: torch.from_numpy(np.stack(items)) for name, items in stacks.items()}
    batch["image"] = batch["image"][:, None]
    return batch


def train(tubes: list[Tubes], *, seed: int, steps: int, weights: TrainSettings | None) -> torch.nn.Module:
    """The network after a fixed number of steps; weights None: Dice + cross-entropy alone."""
    torch.manual_seed(seed)
    network = build_network("unet", n_structures=1, width=8, levels=3, blocks=(1, 1, 1))
    if weights is not None:
        network = ConnectivityMultitask(network, n_structures=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng([seed, 5])
    labelled = torch.ones(2, 1, dtype=torch.bool)
    network.train()
    for step in range(steps):
        batch = draw_batch(tubes, rng)
        outputs = network(batch.pop("image"))
        loss, _ = passes_loss(outputs, label=batch["label"], labelled=labelled)
        if weights is not None:
            loss = (
                loss
                + connectivity_loss(
                    outputs, **batch, labelled=labelled, weights=weights, progress=step / steps
                )[0]
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def predict(network: torch.nn.Module, tubes: list[Tubes]) -> list[np.ndarray]:
    """Probability (D, H, W) of each volume."""
    with torch.no_grad():
        return [
            torch.softmax(network(torch.from_numpy(case.image)[None, None])["logits"], 1)[0, 1].numpy()
            for case in tubes
        ]


def score(tubes: list[Tubes], probabilities: list[np.ndarray], threshold: float) -> dict[str, float]:
    """Share of gaps bridged, precision, recall and Dice over all volumes."""
    bridged = n_gaps = hit = predicted = actual = 0
    for case, probability in zip(tubes, probabilities):
        mask = probability > threshold
        hit, predicted, actual = (
            hit + (mask & (case.label > 0)).sum(),
            predicted + mask.sum(),
            actual + case.label.sum(dtype=int),
        )
        for region, before, after in case.gaps:
            parts, _ = ndimage.label(mask & region, TOUCHING)
            bridged += bool(set(np.unique(parts[before])) & set(np.unique(parts[after])) - {0})
            n_gaps += 1
    return {
        "bridged": bridged / n_gaps,
        "precision": float(hit / max(predicted, 1)),
        "recall": float(hit / actual),
        "dice": float(2 * hit / (predicted + actual)),
    }


def threshold_for(tubes: list[Tubes], probabilities: list[np.ndarray], precision: float) -> float:
    """The lowest threshold at which the precision is at least the one given."""
    for threshold in np.linspace(0.05, 0.98, 94):
        if score(tubes, probabilities, threshold)["precision"] >= precision:
            return float(threshold)
    return 0.98


def main() -> int:
    """Train both arms for each seed and print one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--without",
        default="",
        help="terms to switch off in 'connected', with commas: union,cldice,centreline,radius,consistency",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    off: dict[str, Any] = {f"{name}_weight": 0.0 for name in arguments.without.split(",") if name}
    weights = dataclasses.replace(TrainSettings(), **off)
    training, tuning, test = (
        [draw_tubes(seed) for seed in range(first, first + n)]
        for first, n in ((0, 50), (1000, 12), (2000, 40))
    )
    print(
        f"synthetic tubes: {sum(len(case.gaps) for case in test)} gaps in {len(test)} test "
        f"volumes, {arguments.steps} steps"
    )
    print(f"{'seed':>4} {'arm':32} {'bridged':>8} {'precision':>9} {'recall':>8} {'Dice':>8}")
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        started = time.perf_counter()
        networks = [train(training, seed=seed, steps=arguments.steps, weights=arm) for arm in (None, weights)]
        tuned, tested = ([predict(network, tubes) for network in networks] for tubes in (tuning, test))
        precisions = [score(tuning, probabilities, 0.5)["precision"] for probabilities in tuned]
        for name, arm, threshold in (
            ("plain", 0, 0.5),
            ("connected", 1, 0.5),
            ("plain, precision of connected", 0, threshold_for(tuning, tuned[0], precisions[1])),
            ("connected, precision of plain", 1, threshold_for(tuning, tuned[1], precisions[0])),
        ):
            result = score(test, tested[arm], threshold)
            print(
                f"{seed:4} {name:32}"
                + "".join(f" {result[key]:8.3f}" for key in ("bridged", "precision", "recall", "dice"))
                + f"  threshold {threshold:.2f}"
            )
        print(f"{'':4} {time.perf_counter() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
