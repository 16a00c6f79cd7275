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

from ctseg import artifacts, laterality
from ctseg.config import TrainSettings
from ctseg.geometry.boxes import Box, box_start
from ctseg.learning import augment, density_remap, tubes
from ctseg.prediction import guide_input
from ctseg.prediction.sliding_windows import Sight

POINTS_PER_STRUCTURE = 4000  # remembered positions per structure and tensor; enough to be as good as all
# Patch centres when tubes are learned: where branches are thin, where they are not, where the network failed, and where there are none.
TUBE_SHARES = {"thin": 0.4, "wide": 0.2, "missed": 0.2, "background": 0.2}


@dataclasses.dataclass
class Tubes:
    """What is learned of tubes beside their mask, each (D, H, W), see `tubes.tube_targets`.

    points: kind of TUBE_SHARES -> (n, 3) voxels; "missed" is filled in during training.
    """

    centreline: torch.Tensor  # uint8
    skeleton: torch.Tensor  # uint8
    radius_mm: torch.Tensor  # float16
    points: dict[str, np.ndarray]


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
    origin: tuple[int, int, int] = (0, 0, 0)  # of the arrays on the canvas
    guide: guide_input.Guide | None = None  # distances to the organs that guide the network
    tubes: Tubes | None = None  # centreline and radius of tubes, and where to look

    def sight(self) -> Sight:
        """What a network sees of it in prediction."""
        return Sight(self.image, self.guide, self.origin)


def assemble(
    workspace: artifacts.Workspace, entry: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int, int]]:
    """(image, label, first voxel on the canvas) of what there is of a case, put together from its 128^3 tensors; hashes are checked.

    It is the whole canvas, or for a training case of the roi grid the part about the structures. Where tensors overlap they hold the
    same voxels. What no tensor covers is air and background.
    """
    origins = np.array([item["origin"] for item in entry["tensors"]])
    parts = [
        artifacts.read_tensor(workspace.processed / item["file"], sha256=item["sha256"])
        for item in entry["tensors"]
    ]
    first = origins.min(axis=0)
    shape = tuple(int(n) for n in (origins + [part.shape for part, _ in parts]).max(axis=0) - first)
    image, label = torch.zeros(shape, dtype=torch.float16), torch.zeros(shape, dtype=torch.uint8)
    for origin, (part, part_label) in zip(origins - first, parts):
        place = tuple(slice(int(o), int(o) + n) for o, n in zip(origin, part.shape))
        image[place] = torch.from_numpy(part).half()
        if part_label is not None:
            label[place] = torch.from_numpy(part_label)
    return image, label, (int(first[0]), int(first[1]), int(first[2]))


def load_cases(
    workspace: artifacts.Workspace,
    manifest: dict[str, Any],
    split: str,
    *,
    with_tubes: bool = False,
    regions: dict[str, Box] | None = None,
    progress: Callable = iter,
) -> list[TrainingCase]:
    """The cases of one split, in memory (6 MB per tensor, three times that with tubes). regions: parts of canvases to keep, by case."""
    cases = []
    for entry in progress([case for case in manifest["cases"] if case["split"] == split]):
        image, label, origin = assemble(workspace, entry)
        if regions is not None and entry["case_id"] in regions:
            box = regions[entry["case_id"]]
            image, label, origin = image[box].clone(), label[box].clone(), box_start(box)
        case = prepare_case(entry, image, label, manifest["structures"])
        case.origin, case.guide = origin, guide_input.load(workspace, manifest, entry)
        if with_tubes:
            case.tubes = find_tubes(case, manifest["window_hu"])
        cases.append(case)
    return cases


def prepare_case(
    entry: dict[str, Any], image: torch.Tensor, label: torch.Tensor, structures: Sequence[str]
) -> TrainingCase:
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
    return TrainingCase(
        entry["case_id"], image, label, (d, h, w), entry["states"], labelled, points, body.astype(np.int16)
    )


def find_tubes(case: TrainingCase, window_hu: Sequence[float]) -> Tubes:
    """Centrelines and radii of all structures of a case, computed on its whole canvas."""
    label = case.label.numpy()
    centreline, skeleton, radius_mm = tubes.tube_targets(
        label, range(1, len(case.states) + 1), case.spacing_mm
    )
    lung = None
    if window_hu[0] < density_remap.AIR_HU < window_hu[1]:
        lung = density_remap.lung_region(
            case.image.float().numpy(), (window_hu[0], window_hu[1]), case.spacing_mm
        )
    rng = np.random.default_rng(int(artifacts.canonical_hash(case.case_id)[:12], 16))
    points = tubes.sampling_points(
        skeleton, radius_mm, label, lung if lung is not None and lung.any() else None, rng=rng
    )
    return Tubes(
        torch.from_numpy(centreline), torch.from_numpy(skeleton), torch.from_numpy(radius_mm), points
    )


@dataclasses.dataclass
class Batch:
    """image (B, 1, D, H, W) float32, label (B, D, H, W) uint8, labelled (B, S) bool, and whose patches they are.

    inputs: what the network sees beside the image ("guide": (B, K', D, H, W)). targets: what it learns beside the label ("centreline",
    "skeleton" uint8 and "radius_mm" float32, each (B, D, H, W)).
    """

    image: torch.Tensor
    label: torch.Tensor
    labelled: torch.Tensor
    case_ids: list[str]
    inputs: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    targets: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


class PatchSampler:
    """Draws augmented patches, foreground-aware with a probability per patch (so also at batch size 1).

    A foreground patch first draws a structure, evenly over those annotated anywhere, then a case that has it,
    then a voxel of it: rare structures are seen as often as common ones. Other patches are centred anywhere in
    the body of any case. Where cases carry tubes, TUBE_SHARES decides instead.
    """

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        structures: Sequence[str],
        settings: TrainSettings,
        sides: laterality.Sides | None = None,
    ):
        self.cases = list(cases)
        holders = {
            value: [i for i, case in enumerate(cases) if value in case.points]
            for value in range(1, len(structures) + 1)
        }
        self.holders = {value: indices for value, indices in holders.items() if indices}
        self.present = list(self.holders)
        self.settings, self.patch_size, self.seed = settings, settings.fixed_patch(), settings.seed
        self.strength = augment.STRENGTHS[settings.augmentation]
        if not settings.mirror:
            self.strength = dataclasses.replace(self.strength, mirror=0.0)
        self.swaps = augment.mirror_table(
            (sides or laterality.find_sides(structures)).indices(structures), len(structures)
        )
        self.by_tubes = settings.sampling != "structures" and any(case.tubes is not None for case in cases)

    def _choose(self, rng: np.random.Generator) -> tuple[TrainingCase, np.ndarray]:
        """A case and the voxels (n, 3) in it one of which becomes the centre of a patch."""
        if self.by_tubes:
            kind = str(rng.choice(list(TUBE_SHARES), p=list(TUBE_SHARES.values())))
            for name in (kind, "thin", "wide"):  # not every case has every kind
                holders = [
                    case
                    for case in self.cases
                    if case.tubes is not None and len(case.tubes.points.get(name, ()))
                ]
                if holders:
                    case = holders[rng.integers(len(holders))]
                    return case, case.tubes.points[name]  # type: ignore[union-attr]
        if self.present and rng.random() < self.settings.foreground_fraction:
            value = self.present[rng.integers(len(self.present))]
            case = self.cases[self.holders[value][rng.integers(len(self.holders[value]))]]
            return case, case.points[value]
        case = self.cases[int(rng.integers(len(self.cases)))]
        return case, case.body

    def draw(self, epoch: int, step: int, index: int) -> Batch:
        """Patch `index` of a step, as a batch of one without the batch axis."""
        rng = np.random.default_rng([self.seed, 1, epoch, step, index])
        case, places = self._choose(rng)
        jitter = rng.uniform(-0.25, 0.25, 3) * np.array(self.patch_size)
        centre = places[rng.integers(len(places))] + jitter
        sampling = augment.draw_sampling(
            case.image.shape, centre, self.patch_size, self.strength, case.spacing_mm, rng
        )
        label, labelled = sampling.label(case.label), torch.from_numpy(case.labelled)
        if sampling.mirror:  # what was annotated on the left now lies on the right
            label, labelled = self.swaps[label.long()].to(torch.uint8), labelled[self.swaps[1:] - 1]
        image = augment.shift_intensity(sampling.image(case.image), self.strength, rng)
        inputs, targets = {}, {}
        if case.guide is not None:
            hidden = guide_input.drop_organs(rng, len(case.guide.presence), self.settings.guidance_dropout)
            positions = (
                sampling.positions + torch.tensor(case.origin).view(3, 1, 1, 1)
                if sampling.positions is not None
                else None
            )
            inputs["guide"] = guide_input.guide_patch(
                case.guide,
                (sampling.start + case.origin).tolist(),
                sampling.size,
                positions=positions,
                scale=1 / sampling.zoom,
                mirrored=sampling.mirror,
                dropped=hidden,
            )
        if case.tubes is not None:
            centreline, skeleton = (
                sampling.label(volume) for volume in (case.tubes.centreline, case.tubes.skeleton)
            )
            if sampling.mirror:
                centreline, skeleton = (
                    self.swaps[volume.long()].to(torch.uint8) for volume in (centreline, skeleton)
                )
            targets = {
                "centreline": centreline,
                "skeleton": skeleton,
                "radius_mm": sampling.image(case.tubes.radius_mm) / sampling.zoom,
            }
        return Batch(image[None].contiguous(), label.contiguous(), labelled, [case.case_id], inputs, targets)

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of a step; the same arguments give the same batch."""
        drawn = [self.draw(epoch, step, index) for index in range(self.settings.batch_size)]
        stacked = [
            torch.stack([getattr(patch, name) for patch in drawn]) for name in ("image", "label", "labelled")
        ]
        extras = [
            {
                key: torch.stack([getattr(patch, name)[key] for patch in drawn])
                for key in getattr(drawn[0], name)
            }
            for name in ("inputs", "targets")
        ]
        return Batch(stacked[0], stacked[1], stacked[2], [patch.case_ids[0] for patch in drawn], *extras)

    def batches(self, epoch: int, first: int, last: int, *, threads: int) -> Iterator[Batch]:
        """Batches `first` to `last` - 1 of an epoch in order, prepared ahead by threads (0: none).

        Threads, not processes: torch releases the interpreter lock in the costly parts, nothing is copied
        through shared memory, and no worker can die or hang.
        """
        if threads == 0:
            yield from (self.batch(epoch, step) for step in range(first, last))
            return
        with ThreadPoolExecutor(threads) as pool:
            ahead = [
                pool.submit(self.batch, epoch, step) for step in range(first, min(last, first + threads + 1))
            ]
            for step in range(first, last):
                batch = ahead.pop(0).result()
                if step + threads + 1 < last:
                    ahead.append(pool.submit(self.batch, epoch, step + threads + 1))
                yield batch
