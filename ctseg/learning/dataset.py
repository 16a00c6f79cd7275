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
class CaseTensor:
    """One 128^3 tensor of a case with what sampling needs."""

    case_id: str
    image: torch.Tensor  # (128, 128, 128) float16, 0..1
    label: torch.Tensor  # (128, 128, 128) uint8
    points: dict[int, np.ndarray]  # label id -> (n, 3) voxels of that structure
    body: np.ndarray  # (n, 3) voxels that are not air
    labelled: np.ndarray  # (S,) bool


@dataclasses.dataclass
class TrainingCase:
    """One case: its tensors, where they lie on the canvas, and the annotation states."""

    case_id: str
    tensors: list[CaseTensor]
    origins: list[tuple[int, int, int]]
    canvas_shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    states: dict[str, str]


def load_cases(workspace: artifacts.Workspace, manifest: dict[str, Any], split: str, *, progress: Callable = iter) -> list[TrainingCase]:
    """The cases of one split, tensors checked against the manifest's hashes."""
    cases = []
    for entry in progress([case for case in manifest["cases"] if case["split"] == split]):
        labelled = np.array([entry["states"][name] != "unlabelled" for name in manifest["structures"]])
        tensors, origins = [], []
        for number, item in enumerate(entry["tensors"]):
            image, label = artifacts.read_tensor(workspace.processed / item["file"], sha256=item["sha256"])
            if label is None:
                continue
            rng = np.random.default_rng([artifacts_seed(entry["case_id"]), number])
            tensors.append(_case_tensor(entry["case_id"], image, label, labelled, rng))
            origins.append(tuple(item["origin"]))
        spacing = tuple(float(v) for v in np.linalg.norm(np.array(entry["canvas"]["affine"])[:3, :3], axis=0))
        cases.append(TrainingCase(entry["case_id"], tensors, origins, tuple(entry["canvas"]["shape"]), spacing, entry["states"]))  # type: ignore[arg-type]
    return cases


def artifacts_seed(identifier: str) -> int:
    """A number that belongs to an identifier on every machine."""
    return int(artifacts.canonical_hash(identifier)[:12], 16)


def _case_tensor(case_id: str, image: np.ndarray, label: np.ndarray, labelled: np.ndarray, rng: np.random.Generator) -> CaseTensor:
    flat = label.ravel()
    inside = np.flatnonzero(flat)
    ids = flat[inside]
    points = {}
    for value in np.unique(ids):
        places = inside[ids == value]
        if len(places) > POINTS_PER_STRUCTURE:
            places = rng.choice(places, POINTS_PER_STRUCTURE, replace=False)
        points[int(value)] = np.stack(np.unravel_index(places, label.shape), axis=1).astype(np.int16)
    body = np.argwhere(image[::4, ::4, ::4] > 0.02) * 4
    if len(body) == 0:
        body = np.array([[n // 2 for n in image.shape]])
    return CaseTensor(case_id, torch.from_numpy(image), torch.from_numpy(label), points, body.astype(np.int16), labelled)


@dataclasses.dataclass
class Batch:
    """image (B, 1, D, H, W) float32, label (B, D, H, W) uint8, labelled (B, S) bool, and whose patches they are."""

    image: torch.Tensor
    label: torch.Tensor
    labelled: torch.Tensor
    case_ids: list[str]


class PatchSampler:
    """Draws augmented patches, foreground-aware with a probability per patch (so also at batch size 1).

    A foreground patch first draws a structure, evenly over those annotated anywhere, then a tensor that has it,
    then a voxel of it: rare structures are seen as often as common ones. Other patches are centred anywhere in
    the body of any tensor.
    """

    def __init__(self, cases: Sequence[TrainingCase], structures: Sequence[str], *, batch_size: int, patch_size: tuple[int, int, int],
                 foreground_fraction: float, augmentation: str, seed: int):
        self.tensors = [tensor for case in cases for tensor in case.tensors]
        self.spacings = [case.spacing_mm for case in cases for _ in case.tensors]
        self.holders = {value: [i for i, tensor in enumerate(self.tensors) if value in tensor.points] for value in range(1, len(structures) + 1)}
        self.present = [value for value, holders in self.holders.items() if holders]
        self.batch_size, self.patch_size, self.foreground_fraction = batch_size, patch_size, foreground_fraction
        self.strength = augment.STRENGTHS[augmentation]
        self.swaps = augment.mirror_table(laterality.mirror_pairs(structures), len(structures))
        self.seed = seed

    def draw(self, epoch: int, step: int, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]:
        """Patch `index` of a step: image (1, D, H, W), label (D, H, W), labelled (S,), and the case's id."""
        rng = np.random.default_rng([self.seed, 1, epoch, step, index])
        if self.present and rng.random() < self.foreground_fraction:
            value = self.present[rng.integers(len(self.present))]
            chosen = self.holders[value][rng.integers(len(self.holders[value]))]
            places = self.tensors[chosen].points[value]
        else:
            chosen = int(rng.integers(len(self.tensors)))
            places = self.tensors[chosen].body
        tensor = self.tensors[chosen]
        jitter = rng.uniform(-0.25, 0.25, 3) * np.array(self.patch_size)
        centre = places[rng.integers(len(places))] + jitter
        image, label, mirrored = augment.sample_patch(tensor.image, tensor.label, centre, self.patch_size, self.strength, self.swaps,
                                                      self.spacings[chosen], rng)
        labelled = torch.from_numpy(tensor.labelled)
        if mirrored:  # what was annotated on the left now lies on the right
            labelled = labelled[self.swaps[1:] - 1]
        return image, label, labelled, tensor.case_id

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
