"""What a training step minimises: Dice + cross-entropy, and the connectivity loss where tubes are learned.

Neither says anything about structures nobody looked for, or voxels nobody looked at.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ctseg.config import TrainSettings
from ctseg.datasets.case import IGNORED
from ctseg.learning.connectivity_losses import connectivity_loss
from ctseg.learning.dataset import Batch

FOCAL_POWER = 2.0  # Lin et al. 2017, arXiv:1708.02002
FIRST_PASS_WEIGHT = 0.5  # the last pass weighs 1, those between rise evenly; divided by their sum

Terms = tuple[Tensor, Tensor, Tensor, Tensor]


def segmentation_loss(
    *, logits: Tensor, label: Tensor, labelled: Tensor, kind: str = "dice_ce", independent: bool = False
) -> tuple[Tensor, Tensor]:
    """(loss, soft Dice per structure) of a batch.

    logits: (B, S+1, D, H, W), softmax over background and S structures. label: (B, D, H, W) integers; voxels
    that are IGNORED take no part. labelled: (B, S) bool, False where the structure was not annotated in that
    case: its probability is then merged with background ("merged" partial-label loss, Shi et al. 2021, doi
    10.1016/j.media.2021.101979) and it takes no part in Dice. The loss is 1 - mean soft Dice over the
    structures present in the batch (annotated cases only), plus cross-entropy over all voxels, which is also
    the penalty for a structure predicted where it is absent. A batch without any present structure has the
    cross-entropy alone. Soft Dice of a structure that is not present in the batch is NaN. kind: "dice_ce";
    "dice" or "ce" alone; "dice_focal", where easy voxels count less. Without a present structure "dice" is 0
    with a gradient of 0. independent: each structure by itself, by the sigmoid of its logit; the background's
    has no part. The cross-entropy is then the sum of the binary ones of the annotated structures, about as
    large as the softmax's.
    """
    ignored = label == IGNORED
    seen = None if not bool(ignored.any()) else ~ignored
    target = label.long() if seen is None else label.long() * seen
    terms = _sigmoid_terms if independent else _softmax_terms
    voxel_loss, foreground, overlap, size = terms(logits.float(), target, labelled)
    if kind == "dice_focal":
        voxel_loss = voxel_loss * (1 - torch.exp(-voxel_loss)) ** FOCAL_POWER
    if seen is None:
        cross_entropy = voxel_loss.sum(1).mean()
    else:
        foreground = foreground * seen[:, None]
        cross_entropy = (voxel_loss.sum(1) * seen).sum() / seen.sum().clamp_min(1)
    cross_entropy = cross_entropy * (kind != "dice")

    mask = labelled.to(overlap.dtype)  # (B, S)
    overlap, size, predicted = ((x * mask).sum(0) for x in (overlap, size, foreground.flatten(2).sum(-1)))
    present = size > 0
    dice = torch.where(present, 2 * overlap / (size + predicted).clamp_min(1e-6), torch.nan)
    if kind == "ce" or not bool(present.any()):
        return cross_entropy, dice.detach()
    return cross_entropy + 1 - dice[present].mean(), dice.detach()


def _softmax_terms(logits: Tensor, target: Tensor, labelled: Tensor) -> Terms:
    """Loss of each voxel (B, 1, D, H, W), probabilities (B, S, D, H, W), and overlap and volume (B, S)."""
    log_all = torch.logsumexp(logits, dim=1)  # (B, D, H, W)
    picked = logits.gather(1, target[:, None])[:, 0]
    if bool(labelled.all()):
        log_target = picked
    else:
        hidden = torch.zeros_like(logits[:, :, :1, :1, :1])
        hidden[:, 1:] = torch.where(labelled, float("-inf"), 0.0)[:, :, None, None, None]
        log_background = torch.logsumexp(logits + hidden, dim=1)
        log_target = torch.where(target == 0, log_background, picked)
    voxel_loss = log_all - log_target  # -log of the probability of what is there

    foreground = torch.exp(logits[:, 1:] - log_all[:, None])
    own = torch.exp(picked - log_all)  # at the structure's own voxels: its overlap, without a one-hot volume

    def by_structure(values: Tensor) -> Tensor:
        sums = torch.zeros(logits.shape[:2], dtype=values.dtype, device=values.device)
        return sums.scatter_add(1, target.flatten(1), values.flatten(1))[:, 1:]

    return voxel_loss[:, None], foreground, by_structure(own), by_structure(torch.ones_like(own))


def _sigmoid_terms(logits: Tensor, target: Tensor, labelled: Tensor) -> Terms:
    """The same of each structure by itself: losses (B, S, D, H, W), 0 where it was not annotated."""
    reference = functional.one_hot(target, logits.shape[1]).movedim(-1, 1)[:, 1:].to(logits.dtype)
    voxel_loss = functional.binary_cross_entropy_with_logits(logits[:, 1:], reference, reduction="none")
    foreground = torch.sigmoid(logits[:, 1:])
    overlap, size = (volume.flatten(2).sum(-1) for volume in (foreground * reference, reference))
    return voxel_loss * labelled[:, :, None, None, None], foreground, overlap, size


def pass_weights(count: int) -> list[float]:
    """Weights of the losses of `count` passes, rising to the last, sum 1."""
    raw = np.linspace(FIRST_PASS_WEIGHT, 1, count)
    return (raw / raw.sum()).tolist()


def passes_loss(
    outputs: dict, *, label: Tensor, labelled: Tensor, kind: str = "dice_ce"
) -> tuple[Tensor, Tensor]:
    """(loss, soft Dice of the last pass): each pass of a MultiPass network is supervised, the last one
    deeply.

    Deep supervision: coarser outputs weigh 1/2, 1/4, ... and the weights sum to 1; their label is its
    nearest-neighbour reduction (nnU-Net's choice). outputs: "logits", and perhaps "deep" (coarser ones),
    "passes" (the logits of all passes), "independent", see `segmentation_loss`.
    """
    loss_of = functools.partial(
        segmentation_loss, labelled=labelled, kind=kind, independent=bool(outputs.get("independent"))
    )
    total, dice = loss_of(logits=outputs["logits"], label=label)
    weight, weights = 1.0, 1.0
    for logits in outputs.get("deep", []):
        weight /= 2
        weights += weight
        small = functional.interpolate(label[:, None].float(), size=logits.shape[2:], mode="nearest-exact")
        total = total + weight * loss_of(logits=logits, label=small[:, 0])[0]
    passes = outputs.get("passes", [outputs["logits"]])
    *earlier, last = pass_weights(len(passes))
    total = last * (total / weights)
    for weight, logits in zip(earlier, passes):
        total = total + weight * loss_of(logits=logits, label=label)[0]
    return total, dice


def objective(
    outputs: dict[str, Any], batch: Batch, settings: TrainSettings, progress: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(loss, soft Dice per structure) of a batch. progress: 0 at the start of training, 1 at its end.

    "logits" with "deep" and "passes": the segmentation loss, of each structure by itself where the network
    says "independent". "centreline" and "radius", where the batch carries their targets: the connectivity
    loss on top.
    """
    label, labelled = batch.label.to(device), batch.labelled.to(device)
    loss, dice = passes_loss(outputs, label=label, labelled=labelled, kind=settings.loss)
    if "centreline" in outputs and batch.targets:
        targets = {name: value.to(device) for name, value in batch.targets.items()}
        extra, _ = connectivity_loss(
            outputs, label=label, **targets, labelled=labelled, weights=settings, progress=progress
        )
        loss = loss + extra
    return loss, dice
