"""A trained model ready to predict: everything it needs comes from its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctseg import config, laterality
from ctseg.artifacts import Workspace
from ctseg.config import EvaluateSettings, Settings
from ctseg.errors import Finding, UsageError
from ctseg.geometry import argmax_on_scan, grids
from ctseg.geometry.boxes import Box, bounding_box, make_box
from ctseg.geometry.distance_maps import coarse_maps
from ctseg.geometry.intensity import window
from ctseg.geometry.probabilities import Probabilities
from ctseg.geometry.volume import Grid, Volume, face_corners
from ctseg.manifest import Case, Manifest
from ctseg.prediction import guide_input, mirroring, network_input
from ctseg.prediction.largest_component import keep_largest
from ctseg.prediction.network_input import CaseInput, NetworkInput
from ctseg.prediction.sliding_windows import Windows, predict_probabilities
from ctseg.preparation.guide_organs import CaseGuide
from ctseg.runtime import checkpoints, hardware
from ctseg.scoring.failure import agreement

BuildNetwork = Callable[..., torch.nn.Module]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What is predicted of a case.

    label: (D, H, W) uint8 on the scan's grid, ids in the order of the predictor's names. probabilities: on
    `canvas`, which is the part `region` of the case's canvas where a locator found one. confidence: structure
    -> agreement of the members, see `ctseg.scoring.failure.agreement`.
    """

    label: np.ndarray
    probabilities: Probabilities
    canvas: Grid
    region: Box | None
    confidence: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Locator:
    """Where the structures lie: a small network that looks at the whole body tells the roi grid where to cut.

    It travels inside the checkpoint of the network that it serves, so that prediction needs nothing else; its
    training: `ctseg.learning.training`. patch_size: of its windows.
    """

    network: torch.nn.Module
    patch_size: tuple[int, int, int]
    n_structures: int
    machine: hardware.Machine

    def find(self, case: CaseInput) -> Box | None:
        """The part of a case's canvas that holds the structures; None when nothing was found on the whole
        body.
        """
        if case.body is None:
            raise ValueError("a locator needs the whole body")
        image, whole = case.body
        windows = Windows(self.n_structures + 1, self.patch_size, overlap=0.25)
        found = predict_probabilities(self.network, NetworkInput(image), windows, self.machine)
        kept = keep_largest(found.label(), range(1, self.n_structures + 1))
        box = bounding_box(kept)
        if box is None:
            return None
        ends = face_corners(np.linalg.inv(case.canvas.affine) @ whole.affine, box)
        limits = np.array(case.canvas.shape) - 1
        low = np.clip(np.floor(ends.min(axis=1)), 0, limits)
        high = np.clip(np.ceil(ends.max(axis=1)), 0, limits)
        return grids.region_around(make_box(low, high + 1), case.canvas)


def restore_locator(
    record: dict[str, Any], build: Callable[..., torch.nn.Module], machine: hardware.Machine, *, file: str
) -> Locator:
    """The locator that a checkpoint holds.

    record: "arch", "model" (its weights) and "patch_size"; build: as `models.build_network`.
    """
    network = checkpoints.restore(build, record["arch"], record["model"], file=file)
    d, h, w = record["patch_size"]
    return Locator(machine.place(network), (d, h, w), record["arch"]["n_structures"], machine)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A network with its weights and how it is used.

    filtered: ids of which only the largest component stays.
    """

    checkpoint: dict[str, Any]
    network: torch.nn.Module
    machine: hardware.Machine
    windows: Windows
    filtered: tuple[int, ...]
    locator: Locator | None
    others: tuple[Predictor, ...] = ()  # of an ensemble

    @property
    def names(self) -> list[str]:
        """Structures in label order."""
        return list(self.checkpoint["structures"])

    @property
    def labels(self) -> dict[int, str]:
        """Label id -> structure."""
        return dict(enumerate(self.names, start=1))

    @property
    def takes_guide(self) -> bool:
        """Whether the network needs a guide."""
        return "guide" in getattr(self.network, "inputs", ())

    @property
    def why_not_mirrored(self) -> str | None:
        """The line that says that structures of one side forbid to mirror a scan; None without any."""
        if not (names := one_sided(self.checkpoint)):
            return None
        cause = f"{', '.join(names)}: one side only, so the mirrored scan is not predicted too"
        return Finding("NOTE", "ONE_SIDED", cause).line()

    @property
    def members(self) -> int:
        """How many predictions the result is the mean of: mirrored views of each model of an ensemble."""
        return sum(one.windows.count_views(one.network) for one in (self, *self.others))

    @property
    def why_no_confidence(self) -> str | None:
        """Why there are no members whose agreement could be measured; None when there are."""
        if self.members > 1:
            return None
        if self.windows.swaps is not None:
            return "the passes of the network hand on the mean of both mirrored views"
        return "a single prediction: no mirrored view, no ensemble"

    # ---- what is predicted: two ways in, one way out ----

    def read_case(self, workspace: Workspace, manifest: Manifest, case: Case) -> CaseInput:
        """A case of the manifest from its tensors."""
        guided, located = self.takes_guide, self.locator is not None
        return network_input.read_case(workspace, manifest, case, guided=guided, located=located)

    def read_scan(self, image: Volume, guide: CaseGuide | None = None) -> CaseInput:
        """A case from a raw CT in HU.

        guide: for networks that take one, see `ctseg.preparation.guide_organs.load_guide`; ValueError when it
        is missing.
        """
        preprocess = self.checkpoint["preprocess"]
        data, spacing = config.from_record({"data": preprocess["settings"]}).data, preprocess["spacing_mm"]
        box = grids.kept_extent(image, data.crop, data.margin_mm)
        whole = grids.whole_grid(image.grid, box)
        canvas = grids.window_grid(image.grid, box, tuple(spacing)) if spacing else whole
        seen = None
        if self.takes_guide:
            if guide is None:
                raise ValueError("this network needs a guide")
            maps = coarse_maps(guide.masks, canvas)
            sides = laterality.Sides.of(
                self.checkpoint["sides"], [*self.names, *guide_organs(self.checkpoint)]
            )
            seen = guide_input.make_guide(maps.distance_mm, maps.presence, maps.stride, guide.organs, sides)

        def scaled(grid: Grid) -> torch.Tensor:
            values = window(grids.image_on_canvas(image, grid).array, data.window_hu)
            return torch.from_numpy(values.astype(np.float16))

        body = (scaled(whole), whole) if self.locator is not None else None
        return CaseInput(NetworkInput(scaled(canvas), seen), canvas, image.grid, body)

    def predict(
        self, case: CaseInput, *, on_pass: Callable[[int, np.ndarray], None] | None = None
    ) -> Prediction:
        """Find the structures of a case, in an ensemble by the mean of all models.

        on_pass: told (pass number from 0, label map on the scan's grid) by networks of several passes.
        """
        region = self.locator.find(case) if self.locator is not None else None
        seen = case.seen if region is None else case.seen.part(region)
        d, h, w = seen.image.shape
        canvas = case.canvas.crop(seen.origin, (d, h, w))
        members: list[np.ndarray] = []

        def on_scan(probabilities: Probabilities) -> np.ndarray:
            return keep_largest(argmax_on_scan.label_on_scan(probabilities, canvas, case.scan), self.filtered)

        def tell_pass(number: int, probabilities: Probabilities) -> None:
            if on_pass is not None:
                on_pass(number, on_scan(probabilities))

        tell_view = members.append if self.members > 1 else None
        probabilities = predict_probabilities(
            self.network, seen, self.windows, self.machine, on_pass=tell_pass, on_view=tell_view
        )
        for other in self.others:
            probabilities.add_model(
                predict_probabilities(other.network, seen, other.windows, other.machine, on_view=tell_view)
            )
        if self.others:
            probabilities.divide(1 + len(self.others))
        confidence = dict(zip(self.names, agreement(members, len(self.names))))
        return Prediction(on_scan(probabilities), probabilities, canvas, region, confidence)


def load_predictor(
    path: Path, settings: EvaluateSettings, *, device: str, build_network: BuildNetwork, file: str
) -> Predictor:
    """The predictor of a checkpoint.

    file: how messages call it. IntegrityError for a damaged or foreign one, and one without the locator of
    its grid or the names of its guide organs.
    """
    checkpoint = checkpoints.load(path)
    trained: Settings = config.from_record(checkpoint["settings"])
    precision = "auto" if trained.train.precision == "fp16" else trained.train.precision
    machine = hardware.choose_machine(device, precision)
    network = checkpoints.restore(build_network, checkpoint["arch"], checkpoint["model"], file=file)
    organs = guide_organs(checkpoint)
    if (checkpoint["preprocess"]["grid"] == "roi") != bool(checkpoint["locator"]):
        raise checkpoints.mismatch(
            "a network of the roi grid and a locator belong together; this has one",
            file,
            "use checkpoints/best_model.pth of a training run",
        )
    if "guide" in getattr(network, "inputs", ()):
        wanted = checkpoint["arch"]["guide_channels"]
        if guide_input.n_channels(len(organs)) != wanted:
            raise checkpoints.mismatch(
                f"its network takes {wanted} guide channels, and it names {len(organs)} guide organs", file
            )
    names = list(checkpoint["structures"])
    swaps = None
    # a network that has never seen mirrored patches takes a mirrored scan for something foreign
    seen_mirrored = trained.train.mirror and trained.train.augmentation != "none"
    if settings.flip and seen_mirrored and not one_sided(checkpoint):
        swaps = mirroring.mirror_labels(names, laterality.Sides.of(checkpoint["sides"], names))
    filtered = {"auto": checkpoint["largest_component"], "all": names, "none": []}[settings.keep_largest]
    finder = checkpoint["locator"]
    return Predictor(
        checkpoint,
        machine.place(network),
        machine,
        Windows(len(names) + 1, trained.train.fixed_patch(), settings.overlap, swaps, settings.context_scope),
        tuple(names.index(name) + 1 for name in filtered),
        restore_locator(finder, build_network, machine, file=file) if finder else None,
    )


def ensemble(members: Sequence[Predictor]) -> Predictor:
    """One predictor whose probabilities are the mean of all.

    The first one's region (roi grid) holds, and only what all filter is filtered. UsageError unless all were
    trained for the same structures, on the same grid, with the same guide.
    """
    first, *others = members
    for other in others:
        for what in ("structures", "preprocess", "guide"):
            if first.checkpoint[what] != other.checkpoint[what]:
                raise UsageError(
                    "ENSEMBLE_MISMATCH",
                    f"the checkpoints were trained with other {what}",
                    "give models of one data set and the same settings of data",
                )
    filtered = [number for number in first.filtered if all(number in other.filtered for other in others)]
    return dataclasses.replace(first, others=tuple(others), filtered=tuple(filtered))


def guide_organs(checkpoint: dict[str, Any]) -> list[str]:
    """The organs that guide the network of a checkpoint."""
    return list((checkpoint["guide"] or {}).get("organs", ()))


def one_sided(checkpoint: dict[str, Any]) -> list[str]:
    """Names whose mirror image the network does not know, so that it is never shown a mirrored scan."""
    return laterality.one_sided(checkpoint["sides"], checkpoint["structures"], guide_organs(checkpoint))
