"""A trained model ready to predict: everything it needs comes from its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctseg import config, laterality
from ctseg.config import EvaluateSettings, Settings
from ctseg.errors import Finding, UsageError
from ctseg.geometry import argmax_on_scan, grids
from ctseg.geometry.distance_maps import coarse_maps
from ctseg.geometry.intensity import window
from ctseg.geometry.probabilities import Shares
from ctseg.geometry.volume import Grid, Volume
from ctseg.learning import augment
from ctseg.prediction import guide_input, locator
from ctseg.prediction.largest_component import keep_largest
from ctseg.prediction.sliding_windows import Sight, Windows, count_views, predict_shares
from ctseg.runtime import checkpoints, hardware
from ctseg.scans.guide_organs import CaseGuide

BuildNetwork = Callable[..., torch.nn.Module]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A network with its weights and how it is used. filtered: label ids of which only the largest component stays."""

    checkpoint: dict[str, Any]
    network: torch.nn.Module
    machine: hardware.Machine
    windows: Windows
    filtered: tuple[int, ...]
    locator: locator.Locator | None
    others: tuple[Predictor, ...] = ()  # of an ensemble

    @property
    def names(self) -> list[str]:
        """Structures in label order."""
        return list(self.checkpoint["structures"])

    @property
    def takes_guide(self) -> bool:
        """Whether the network needs a guide."""
        return "guide" in getattr(self.network, "inputs", ())

    @property
    def sides(self) -> laterality.Sides:
        """Which structures, and organs of the guide, are left and right."""
        return laterality.Sides.of(
            self.checkpoint.get("sides"), [*self.names, *_guide_organs(self.checkpoint)]
        )

    @property
    def one_sided(self) -> list[str]:
        """Names whose mirror image the network does not know, so that it is never shown a mirrored scan."""
        return laterality.one_sided(self.checkpoint.get("sides"), self.names, _guide_organs(self.checkpoint))

    @property
    def why_not_mirrored(self) -> str | None:
        """The line that says that a mirrored scan is not predicted too because of structures of one side; None without any."""
        if not self.one_sided:
            return None
        return Finding(
            "NOTE",
            "ONE_SIDED",
            f"{', '.join(self.one_sided)}: one side only, so the mirrored scan is not predicted too",
        ).line()

    @property
    def members(self) -> int:
        """How many predictions the result is the mean of: mirrored views of each model of an ensemble."""
        return count_views(self.network, self.windows) + sum(
            count_views(other.network, other.windows) for other in self.others
        )

    @property
    def why_no_confidence(self) -> str | None:
        """Why there are no members whose agreement could be measured; None when there are."""
        if self.members > 1:
            return None
        if self.windows.swaps is not None:
            return "the passes of the network hand on the mean of both mirrored views"
        return "a single prediction: no mirrored view, no ensemble"

    def probabilities(
        self,
        sight: Sight,
        *,
        on_pass: Callable[[int, Shares], None] | None = None,
        on_member: Callable[[np.ndarray], None] | None = None,
    ) -> Shares:
        """Those of what it sees; see `predict_shares`. Of an ensemble the mean.

        on_member is told the label map (D, H, W) of each of `members`, before small pieces are removed; nothing when there is only one.
        """
        tell = on_member if self.members > 1 else None
        total = predict_shares(self.network, sight, self.windows, self.machine, on_pass=on_pass, on_view=tell)
        for other in self.others:
            total.add_shares(predict_shares(other.network, sight, other.windows, other.machine, on_view=tell))
        if self.others:
            total.divide(1 + len(self.others))
        return total

    def label_on_scan(self, probabilities: Shares, canvas: Grid, scan: Grid) -> np.ndarray:
        """Label map (uint8) on the scan's grid from probabilities on a canvas (or a part of one)."""
        return keep_largest(argmax_on_scan.label_on_scan(probabilities, canvas, scan), self.filtered)

    def predict_scan(self, image: Volume, guide: CaseGuide | None = None) -> np.ndarray:
        """Label map (uint8, ids in the order of `names`) of a raw CT in HU, on its own grid; arguments as for `probabilities_of_scan`."""
        probabilities, canvas = self.probabilities_of_scan(image, guide)
        return self.label_on_scan(probabilities, canvas, image.grid)

    def probabilities_of_scan(
        self,
        image: Volume,
        guide: CaseGuide | None = None,
        *,
        on_member: Callable[[np.ndarray], None] | None = None,
    ) -> tuple[Shares, Grid]:
        """(probabilities of a raw CT in HU, the canvas they lie on). on_member: see `probabilities`.

        guide: for networks that take one, see `ctseg.scans.guide_organs.load_guide`. Raises ValueError when it is missing.
        """
        if self.takes_guide and guide is None:
            raise ValueError("this network needs a guide")
        preprocess = self.checkpoint["preprocess"]
        spacing = preprocess["spacing_mm"]
        plan = grids.GridPlan(preprocess["grid"], tuple(spacing) if spacing else None, 0.0)
        box = grids.kept_extent(
            image, preprocess["settings"].get("crop", "body"), preprocess["settings"]["margin_mm"]
        )
        canvas = plan.canvas(image.grid, box)
        scaled = self._scaled(image, canvas)
        maps = coarse_maps(guide.masks, canvas) if guide is not None and self.takes_guide else None
        seen = (
            guide_input.make_guide(maps.distance_mm, maps.presence, maps.stride, guide.organs, self.sides)
            if maps is not None and guide is not None
            else None
        )
        sight = Sight(scaled, seen)
        if self.locator is not None:
            whole = grids.whole_grid(image.grid, box)
            region = self.locator.find(self._scaled(image, whole), whole, canvas)
            if region is not None:
                sight = sight.part(region)
        d, h, w = sight.image.shape
        return self.probabilities(sight, on_member=on_member), canvas.crop(sight.origin, (d, h, w))

    def _scaled(self, image: Volume, canvas: Grid) -> torch.Tensor:
        low, high = self.checkpoint["preprocess"]["window_hu"]
        return torch.from_numpy(
            window(grids.image_on_canvas(image, canvas).array, (low, high)).astype(np.float16)
        )


def load_predictor(
    path: Path, settings: EvaluateSettings, *, device: str, build_network: BuildNetwork, file: str
) -> Predictor:
    """The predictor of a checkpoint. file: how messages call it. Raises IntegrityError for a damaged or foreign one."""
    checkpoint = checkpoints.load(path)
    trained: Settings = config.from_record(checkpoint["settings"])
    machine = hardware.choose_machine(
        device, trained.train.precision if trained.train.precision != "fp16" else "auto"
    )
    network = checkpoints.restore(build_network, checkpoint["arch"], checkpoint["model"], file=file)
    _check_companions(checkpoint, network, file)
    names = list(checkpoint["structures"])
    swaps = None
    if (
        settings.flip
        and mirrors(trained)
        and not laterality.one_sided(checkpoint.get("sides"), names, _guide_organs(checkpoint))
    ):
        swaps = augment.mirror_table(
            laterality.Sides.of(checkpoint.get("sides"), names).indices(names), len(names)
        )
    filtered = {"auto": checkpoint["largest_component"], "all": names, "none": []}[settings.keep_largest]
    finder = checkpoint.get("locator")
    return Predictor(
        checkpoint,
        machine.place(network),
        machine,
        Windows(len(names) + 1, trained.train.fixed_patch(), settings.overlap, swaps, settings.context_scope),
        tuple(names.index(name) + 1 for name in filtered),
        locator.restore_locator(finder, build_network, machine, file=file) if finder else None,
    )


def _check_companions(checkpoint: dict[str, Any], network: torch.nn.Module, file: str) -> None:
    """Raise IntegrityError unless the checkpoint brings the locator that its grid needs, and names the organs
    whose guide its network takes.
    """
    if (checkpoint["preprocess"]["grid"] == "roi") != bool(checkpoint.get("locator")):
        raise checkpoints.mismatch(
            "a network of the roi grid and a locator belong together; this has one",
            file,
            "use checkpoints/best_model.pth of a training run",
        )
    if "guide" in getattr(network, "inputs", ()):
        organs = (checkpoint.get("guide") or {}).get("organs", ())
        if guide_input.n_channels(len(organs)) != checkpoint["arch"]["guide_channels"]:
            raise checkpoints.mismatch(
                f"its network takes {checkpoint['arch']['guide_channels']} guide channels, "
                f"and it names {len(organs)} guide organs",
                file,
            )


def ensemble(members: Sequence[Predictor]) -> Predictor:
    """One predictor whose probabilities are the mean of all. The first one's region (roi grid) holds, and only what all filter is filtered.

    UsageError unless all were trained for the same structures, on the same grid, with the same guide.
    """
    first, *others = members
    for other in others:
        for what in ("structures", "preprocess", "guide"):
            if first.checkpoint.get(what) != other.checkpoint.get(what):
                raise UsageError(
                    "ENSEMBLE_MISMATCH",
                    f"the checkpoints were trained with other {what}",
                    "give models of one data set and the same settings of data",
                )
    filtered = [number for number in first.filtered if all(number in other.filtered for other in others)]
    return dataclasses.replace(first, others=tuple(others), filtered=tuple(filtered))


def _guide_organs(checkpoint: dict[str, Any]) -> list[str]:
    return list((checkpoint.get("guide") or {}).get("organs", ()))


def mirrors(trained: Settings) -> bool:
    """Whether the network has seen mirrored patches; else a mirrored scan is foreign to it."""
    return trained.train.mirror and augment.STRENGTHS[trained.train.augmentation].mirror > 0
