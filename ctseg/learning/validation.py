"""Scores of the validation scans during training: whole canvases, present structures only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from ctseg.datasets.case import IGNORED
from ctseg.learning.dataset import TrainingCase
from ctseg.learning.losses import segmentation_loss
from ctseg.prediction.largest_component import keep_largest
from ctseg.scoring.distances import percentile_hausdorff_mm, surface_distances
from ctseg.scoring.summary import mean


@dataclasses.dataclass
class Validation:
    """Scores of the validation scans on their canvases, per structure and per case that shows it."""

    names: Sequence[str]
    losses: list[float] = dataclasses.field(default_factory=list)  # one per scan
    dice: list[list[float]] = dataclasses.field(default_factory=list)
    dice_of_largest: list[list[float]] = dataclasses.field(default_factory=list)  # largest component alone
    hd95_mm: list[list[float]] = dataclasses.field(default_factory=list)  # where something was predicted

    def __post_init__(self) -> None:
        for scores in (self.dice, self.dice_of_largest, self.hd95_mm):
            scores.extend([] for _ in self.names)

    def add(self, case: TrainingCase, probabilities: torch.Tensor) -> None:
        """Score the probabilities (S+1, D, H, W) of one case."""
        loss, _ = segmentation_loss(
            logits=probabilities.clamp_min(1e-7).log_()[None],
            label=case.label[None],
            labelled=torch.from_numpy(case.labelled)[None],
        )
        self.losses.append(float(loss))
        label = probabilities.argmax(0)
        filtered = torch.from_numpy(keep_largest(label.numpy(), range(1, len(self.names) + 1)))
        ignored = case.label == IGNORED
        # what nobody looked at is neither right nor wrong
        prediction, largest, reference = (
            one.masked_fill(ignored, 0) for one in (label, filtered, case.label)
        )
        dice, dice_of_largest = (
            dice_per_structure(found, reference, len(self.names)) for found in (prediction, largest)
        )
        for index, name in enumerate(self.names):
            if case.states[name] != "present":
                continue
            pair = surface_distances(
                prediction=(prediction == index + 1).numpy(),
                reference=(reference == index + 1).numpy(),
                spacing_mm=case.spacing_mm,
            )
            values = (dice[index], dice_of_largest[index], pair and percentile_hausdorff_mm(pair))
            for scores, value in zip((self.dice, self.dice_of_largest, self.hd95_mm), values):
                if value is not None:
                    scores[index].append(value)

    def mean_dice(self) -> list[float | None]:
        """Present-only mean Dice per structure; None where no scan shows it."""
        return [mean(values) for values in self.dice]

    def mean_hd95_mm(self) -> list[float | None]:
        """Mean HD95 per structure over the scans where it was found."""
        return [mean(values) for values in self.hd95_mm]

    def keeps_largest(self, in_one_piece: Sequence[bool]) -> list[bool]:
        """Whether of each structure only the largest component should stay.

        Where that scores higher than all that was predicted, or just as high and the structure is in one
        piece in the training references.
        """
        return [
            sum(one) > sum(everything) or (whole and sum(one) == sum(everything))
            for one, everything, whole in zip(self.dice_of_largest, self.dice, in_one_piece)
        ]


def dice_per_structure(
    prediction: torch.Tensor, reference: torch.Tensor, n_structures: int
) -> list[float | None]:
    """Dice of each structure in one whole canvas, None where the reference has none (never 1).

    prediction, reference: (D, H, W) integer label maps.
    """
    classes = n_structures + 1
    pairs = prediction.long().flatten() * classes + reference.long().flatten()
    counts = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    sizes = counts.sum(0)
    dices = 2 * counts.diagonal() / (counts.sum(1) + sizes)
    return [float(dice) if size else None for dice, size in zip(dices[1:], sizes[1:])]
