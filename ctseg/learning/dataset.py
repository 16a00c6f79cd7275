"""Cases in memory and the choice of patches.

Seeds are counters: patch `i` of step `t` of epoch `e` depends on (seed, e, t, i) alone, so a resumed run and
any number of threads see the same patches, and no generator state has to be saved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from ctseg import artifacts, laterality
from ctseg.config import TrainSettings
from ctseg.datasets.case import IGNORED
from ctseg.geometry.body_regions import AIR_HU, lung_region
from ctseg.geometry.boxes import Box, box_start
from ctseg.learning import augment, tubes
from ctseg.manifest import Case, Manifest
from ctseg.prediction import guide_input, mirroring
from ctseg.prediction.network_input import NetworkInput, assemble, read_tensor

POINTS_PER_STRUCTURE = 4000  # remembered positions per structure and tensor; enough to be as good as all
# Patch centres when tubes are learned: where branches are thin, where they are not, where the network failed,
# and where there are none.
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
    split: str | None
    image: torch.Tensor  # (D, H, W) float16, 0..1
    label: torch.Tensor  # (D, H, W) uint8, IGNORED where nobody looked
    spacing_mm: tuple[float, float, float]
    states: dict[str, str]
    labelled: np.ndarray  # (S,) bool
    points: dict[int, np.ndarray]  # label id -> (n, 3) voxels of that structure
    body: np.ndarray  # (n, 3) voxels that are not air
    origin: tuple[int, int, int] = (0, 0, 0)  # of the arrays on the canvas
    guide: guide_input.Guide | None = None  # distances to the organs that guide the network
    tubes: Tubes | None = None  # centreline and radius of tubes, and where to look

    @property
    def seen(self) -> NetworkInput:
        """What a network sees of it in prediction."""
        return NetworkInput(self.image, self.guide, self.origin)


def load_cases(
    workspace: artifacts.Workspace,
    manifest: Manifest,
    split: str,
    *,
    with_tubes: bool = False,
    whole_body: bool = False,
    regions: dict[str, Box] | None = None,
    progress: Callable = iter,
) -> list[TrainingCase]:
    """The cases of one split, in memory (6 MB per tensor, three times that with tubes).

    whole_body: on the small canvas of the whole body, for the locator. regions: parts of canvases to keep, by
    case.
    """
    cases = []
    for stored in progress(manifest.of_split(split)):
        if whole_body:
            image, label = read_tensor(workspace, stored.locator)
            stored = dataclasses.replace(stored, canvas=stored.locator.canvas)
            cases.append(prepare_case(stored, image, label, manifest.structures))
            continue
        image, label, origin = assemble(workspace, stored)
        if stored.case_id in (regions or {}):
            box = regions[stored.case_id]  # type: ignore[index]
            image, label, origin = image[box].clone(), label[box].clone(), box_start(box)
        case = prepare_case(stored, image, label, manifest.structures)
        case.origin, case.guide = origin, guide_input.load(workspace, manifest, stored)
        if with_tubes:
            case.tubes = find_tubes(case, manifest.window_hu)
        cases.append(case)
    return cases


def prepare_case(
    case: Case, image: torch.Tensor, label: torch.Tensor, structures: Sequence[str]
) -> TrainingCase:
    """A case with the positions that sampling draws from; their choice depends on the case's id alone."""
    rng = generator_of(case.case_id)
    flat = label.numpy().ravel()
    inside = np.flatnonzero((flat > 0) & (flat != IGNORED))
    points = {
        int(value): tubes.choose_voxels(inside[flat[inside] == value], label.shape, POINTS_PER_STRUCTURE, rng)
        for value in np.unique(flat[inside])
    }
    looked_at = (image[::4, ::4, ::4] > 0.02) & (label[::4, ::4, ::4] != IGNORED)
    body = np.argwhere(looked_at.numpy()) * 4
    if len(body) == 0:
        body = np.array([[n // 2 for n in image.shape]])
    spacing_mm = case.on_canvas().spacing_mm
    labelled = np.array([case.states[name] != "unlabelled" for name in structures])
    body = body.astype(np.int16)
    return TrainingCase(
        case.case_id, case.split, image, label, spacing_mm, case.states, labelled, points, body
    )


def generator_of(case_id: str) -> np.random.Generator:
    """A generator whose numbers depend on the case alone."""
    return np.random.default_rng(int(artifacts.canonical_hash(case_id)[:12], 16))


def find_tubes(case: TrainingCase, window_hu: Sequence[float]) -> Tubes:
    """Centrelines and radii of all structures of a case, computed on its whole canvas."""
    label, (low, high) = case.label.numpy(), window_hu
    numbers = range(1, len(case.states) + 1)
    centreline, skeleton, radius_mm = tubes.tube_targets(label, numbers, case.spacing_mm)
    lung = None
    if low < AIR_HU < high:
        found = lung_region(case.image.float().numpy(), (low, high), case.spacing_mm)
        lung = found if found.any() else None
    points = tubes.sampling_points(skeleton, radius_mm, label, lung, rng=generator_of(case.case_id))
    read = torch.from_numpy
    return Tubes(read(centreline), read(skeleton), read(radius_mm), points)


class Batch(NamedTuple):
    """image (B, 1, D, H, W) float32, label (B, D, H, W) uint8, labelled (B, S) bool, and whose patches they
    are.

    inputs: what the network sees beside the image ("guide": (B, K', D, H, W)). targets: what it learns beside
    the label ("centreline", "skeleton" uint8 and "radius_mm" float32, each (B, D, H, W)).
    """

    image: torch.Tensor
    label: torch.Tensor
    labelled: torch.Tensor
    case_ids: Sequence[str]
    inputs: dict[str, torch.Tensor]
    targets: dict[str, torch.Tensor]


class PatchSampler:
    """Draws augmented patches, foreground-aware with a probability per patch (so also at batch size 1).

    A foreground patch first draws a structure, evenly over those annotated anywhere, then a case that has it,
    then a voxel of it: rare structures are seen as often as common ones. Other patches are centred anywhere
    in the body of any case. Where cases carry tubes, TUBE_SHARES decides instead.
    """

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        structures: Sequence[str],
        settings: TrainSettings,
        sides: laterality.Sides | None = None,
    ):
        self.cases, self.n_structures = list(cases), len(structures)
        holders = [
            (number, [case for case in cases if number in case.points])
            for number in range(1, self.n_structures + 1)
        ]
        self.holders = [(number, found) for number, found in holders if found]
        self.settings, self.patch_size = settings, settings.fixed_patch()
        self.strength = augment.STRENGTHS[settings.augmentation]
        if not settings.mirror:
            self.strength = dataclasses.replace(self.strength, mirror=0.0)
        self.swaps = torch.arange(IGNORED + 1)  # label ids after a mirror
        self.swaps[: len(structures) + 1] = mirroring.mirror_labels(structures, sides)
        self.by_tubes = settings.sampling != "structures" and any(case.tubes is not None for case in cases)

    def remember_missed(self, case_id: str, points: np.ndarray) -> None:
        """From now on patches go to these voxels (n, 3) of a case, where the network missed tubes."""
        for case in self.cases:
            if case.case_id == case_id and case.tubes is not None:
                case.tubes.points["missed"] = points

    def choose_places(self, rng: np.random.Generator) -> tuple[TrainingCase, np.ndarray]:
        """A case and the voxels (n, 3) in it one of which becomes the centre of a patch."""
        if self.by_tubes:
            kind = str(rng.choice(list(TUBE_SHARES), p=list(TUBE_SHARES.values())))
            for name in (kind, "thin", "wide"):  # not every case has every kind
                holders = [
                    (case, case.tubes.points[name])
                    for case in self.cases
                    if case.tubes is not None and len(case.tubes.points.get(name, ()))
                ]
                if holders:
                    return holders[rng.integers(len(holders))]
        if self.holders and rng.random() < self.settings.foreground_fraction:
            number, cases = self.holders[rng.integers(len(self.holders))]
            case = cases[rng.integers(len(cases))]
            return case, case.points[number]
        case = self.cases[int(rng.integers(len(self.cases)))]
        return case, case.body

    def draw(self, epoch: int, step: int, index: int) -> Batch:
        """Patch `index` of a step, as a batch of one without the batch axis and with the id of its case."""
        rng = np.random.default_rng([self.settings.seed, 1, epoch, step, index])
        case, places = self.choose_places(rng)
        jitter = rng.uniform(-0.25, 0.25, 3) * np.array(self.patch_size)
        centre = places[rng.integers(len(places))] + jitter
        sampling = augment.draw_sampling(
            case.image.shape, centre, self.patch_size, self.strength, case.spacing_mm, rng
        )

        def ids(volume: torch.Tensor) -> torch.Tensor:
            """A patch of label ids: what was annotated on the left lies on the right of a mirrored one."""
            patch = sampling.label(volume)
            return (self.swaps[patch.long()].to(torch.uint8) if sampling.mirror else patch).contiguous()

        label, labelled = ids(case.label), torch.from_numpy(case.labelled)
        if sampling.mirror:
            labelled = labelled[self.swaps[1 : self.n_structures + 1] - 1]
        image = augment.shift_intensity(sampling.image(case.image), self.strength, rng)
        batch = Batch(image[None].contiguous(), label, labelled, case.case_id, {}, {})
        if case.guide is not None:
            # organs to hide from this patch, so that a failed guide is survivable
            hidden = torch.from_numpy(rng.random(len(case.guide.presence)) < self.settings.guidance_dropout)
            positions = sampling.positions
            if positions is not None:
                positions = positions + torch.tensor(case.origin).view(3, 1, 1, 1)
            batch.inputs["guide"] = guide_input.guide_patch(
                case.guide,
                (sampling.start + case.origin).tolist(),
                sampling.size,
                positions=positions,
                scale=1 / sampling.zoom,
                mirrored=sampling.mirror,
                dropped=hidden,
            )
        if case.tubes is not None:
            batch.targets["centreline"] = ids(case.tubes.centreline)
            batch.targets["skeleton"] = ids(case.tubes.skeleton)
            batch.targets["radius_mm"] = sampling.image(case.tubes.radius_mm) / sampling.zoom
        return batch

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of a step; the same arguments give the same batch."""
        drawn = [self.draw(epoch, step, index) for index in range(self.settings.batch_size)]
        batch: Batch = torch.utils.data.default_collate(drawn)
        return batch

    def batches(self, epoch: int, first: int, last: int, *, threads: int) -> Iterator[Batch]:
        """Batches `first` to `last` - 1 of an epoch in order, prepared ahead by threads (0: none).

        Threads, not processes: torch releases the interpreter lock in the costly parts, nothing is copied
        through shared memory, and no worker can die or hang.
        """
        if threads == 0:
            yield from (self.batch(epoch, step) for step in range(first, last))
            return
        with ThreadPoolExecutor(threads) as pool:
            ahead: list[Future[Batch]] = []
            for step in range(first, last):
                ahead.append(pool.submit(self.batch, epoch, step))
                if len(ahead) > threads + 1:
                    yield ahead.pop(0).result()
            for waiting in ahead:
                yield waiting.result()
