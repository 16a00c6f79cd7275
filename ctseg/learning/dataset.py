"""Cases in memory and the choice of patches.

Seeds are counters: patch `i` of step `t` of epoch `e` depends on (seed, e, t, i) alone, so a resumed run and any
number of threads see the same patches, and no generator state has to be saved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from ctseg import artifacts
from ctseg.learning import augment
from ctseg.scans import laterality

POINTS_PER_STRUCTURE = 4000  # remembered positions per structure and tensor; enough to be as good as all


@dataclasses.dataclass
class TrainingCase:
    """One case on its canvas, with what sampling needs."""

    case_id: str
    image: torch.Tensor  # (D, H, W) float16, 0..1
    label: torch.Tensor  # (D, H, W) uint8
    spacing_mm: tuple[float, float, float]
    states: dict[str, str]
    labelled: np.ndarray  # (S,) bool
    points: dict[int, np.ndarray]  # label id -> (n, 3) voxels of that structure
    body: np.ndarray  # (n, 3) voxels that are not air


def assemble(workspace: artifacts.Workspace, entry: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(image, label) of a case on its canvas, put together from its 128^3 tensors; hashes are checked.

    Where tensors overlap they hold the same voxels. What no tensor covers is air and background.
    """
    image = torch.zeros(entry["canvas"]["shape"], dtype=torch.float16)
    label = torch.zeros(entry["canvas"]["shape"], dtype=torch.uint8)
    for item in entry["tensors"]:
        part, part_label = artifacts.read_tensor(workspace.processed / item["file"], sha256=item["sha256"])
        place = tuple(slice(o, o + n) for o, n in zip(item["origin"], part.shape))
        image[place] = torch.from_numpy(part).half()
        if part_label is not None:
            label[place] = torch.from_numpy(part_label)
    return image, label


def load_cases(workspace: artifacts.Workspace, manifest: dict[str, Any], split: str, *, progress: Callable = iter) -> list[TrainingCase]:
    """The cases of one split, in memory (6 MB per tensor)."""
    return [prepare_case(entry, *assemble(workspace, entry), manifest["structures"])
            for entry in progress([case for case in manifest["cases"] if case["split"] == split])]


def prepare_case(entry: dict[str, Any], image: torch.Tensor, label: torch.Tensor, structures: Sequence[str]) -> TrainingCase:
    """A case with the positions that sampling draws from; the choice of positions depends on the case's id alone."""
    rng = np.random.default_rng(int(artifacts.canonical_hash(entry["case_id"])[:12], 16))
    flat = label.numpy().ravel()
    inside = np.flatnonzero(flat)
    points = {}
    for value in np.unique(flat[inside]):
        places = inside[flat[inside] == value]
        if len(places) > POINTS_PER_STRUCTURE:
            places = rng.choice(places, POINTS_PER_STRUCTURE, replace=False)
        points[int(value)] = np.stack(np.unravel_index(places, label.shape), axis=1).astype(np.int16)
    body = np.argwhere(image[::4, ::4, ::4].numpy() > 0.02) * 4
    if len(body) == 0:
        body = np.array([[n // 2 for n in image.shape]])
    d, h, w = (float(v) for v in np.linalg.norm(np.array(entry["canvas"]["affine"])[:3, :3], axis=0))
    labelled = np.array([entry["states"][name] != "unlabelled" for name in structures])
    return TrainingCase(entry["case_id"], image, label, (d, h, w), entry["states"], labelled, points, body.astype(np.int16))


@dataclasses.dataclass
class Batch:
    """image (B, 1, D, H, W) float32, label (B, D, H, W) uint8, labelled (B, S) bool, and whose patches they are."""

    image: torch.Tensor
    label: torch.Tensor
    labelled: torch.Tensor
    case_ids: list[str]


class PatchSampler:
    """Draws augmented patches, foreground-aware with a probability per patch (so also at batch size 1).

    A foreground patch first draws a structure, evenly over those annotated anywhere, then a case that has it,
    then a voxel of it: rare structures are seen as often as common ones. Other patches are centred anywhere in
    the body of any case.
    """

    def __init__(self, cases: Sequence[TrainingCase], structures: Sequence[str], *, batch_size: int, patch_size: tuple[int, int, int],
                 foreground_fraction: float, augmentation: str, seed: int):
        self.cases = list(cases)
        holders = {value: [i for i, case in enumerate(cases) if value in case.points] for value in range(1, len(structures) + 1)}
        self.holders = {value: indices for value, indices in holders.items() if indices}
        self.present = list(self.holders)
        self.batch_size, self.patch_size, self.foreground_fraction = batch_size, patch_size, foreground_fraction
        self.strength = augment.STRENGTHS[augmentation]
        self.swaps = augment.mirror_table(laterality.mirror_pairs(structures), len(structures))
        self.seed = seed

    def draw(self, epoch: int, step: int, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]:
        """Patch `index` of a step: image (1, D, H, W), label (D, H, W), labelled (S,), and the case's id."""
        rng = np.random.default_rng([self.seed, 1, epoch, step, index])
        if self.present and rng.random() < self.foreground_fraction:
            value = self.present[rng.integers(len(self.present))]
            case = self.cases[self.holders[value][rng.integers(len(self.holders[value]))]]
            places = case.points[value]
        else:
            case = self.cases[int(rng.integers(len(self.cases)))]
            places = case.body
        jitter = rng.uniform(-0.25, 0.25, 3) * np.array(self.patch_size)
        centre = places[rng.integers(len(places))] + jitter
        image, label, mirrored = augment.sample_patch(case.image, case.label, centre, self.patch_size, self.strength, self.swaps, case.spacing_mm, rng)
        labelled = torch.from_numpy(case.labelled)
        if mirrored:  # what was annotated on the left now lies on the right
            labelled = labelled[self.swaps[1:] - 1]
        return image, label, labelled, case.case_id

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of a step; the same arguments give the same batch."""
        drawn = [self.draw(epoch, step, index) for index in range(self.batch_size)]
        images, labels, labelled, case_ids = zip(*drawn)
        return Batch(torch.stack(images), torch.stack(labels), torch.stack(labelled), list(case_ids))

    def batches(self, epoch: int, first: int, last: int, *, threads: int) -> Iterator[Batch]:
        """Batches `first` to `last` - 1 of an epoch in order, prepared ahead by threads (0: none).

        Threads, not processes: torch releases the interpreter lock in the costly parts, nothing is copied
        through shared memory, and no worker can die or hang.
        """
        if threads == 0:
            yield from (self.batch(epoch, step) for step in range(first, last))
            return
        with ThreadPoolExecutor(threads) as pool:
            ahead = [pool.submit(self.batch, epoch, step) for step in range(first, min(last, first + threads + 1))]
            for step in range(first, last):
                batch = ahead.pop(0).result()
                if step + threads + 1 < last:
                    ahead.append(pool.submit(self.batch, epoch, step + threads + 1))
                yield batch
