"""What a training step minimises: Dice + cross-entropy, and the connectivity loss where tubes are learned.

Neither says anything about structures nobody looked for, or voxels nobody looked at.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
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

PART = 2**17  # values (voxels times classes) of which some copies fit into the cache of a processor core


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
    sums: Callable[..., tuple[Tensor, Tensor, Tensor]] = _sigmoid_sums if independent else SoftmaxSums.apply
    voxel_losses, overlap, predicted = sums(logits, label, labelled, kind == "dice_focal")
    counts = torch.stack([torch.bincount(one.flatten().byte(), minlength=IGNORED + 1) for one in label])
    seen = counts[:, :IGNORED].sum().clamp_min(1)
    cross_entropy = voxel_losses.sum() / seen * (kind != "dice")

    size = counts[:, 1 : logits.shape[1]]
    overlap, size, predicted = ((x * labelled).sum(0) for x in (overlap, size, predicted))
    present = size > 0
    dice = torch.where(present, 2 * overlap / (size + predicted).clamp_min(1e-6), torch.nan)
    if kind == "ce" or not bool(present.any()):
        return cross_entropy, dice.detach()
    return cross_entropy + 1 - dice[present].mean(), dice.detach()


class SoftmaxSums(torch.autograd.Function):
    """Sums over the voxels of each image that were looked at: loss (B,), overlap and predicted (B, S).

    `apply(logits, label, labelled, focal)`: the loss is -log of the probability of what is there, background
    being all that was not annotated; overlap, the probabilities of the structures at their own voxels;
    predicted, their probabilities everywhere.

    The network is worth its time, a loss in float32 over whole volumes is not: with eight classes it took as
    long as a third of a U-Net of half size. So everything is computed in parts that stay in the processor's
    cache, twice (forward and backward) instead of kept: 2 to 3.5 times faster, and the logits are all that
    lies in memory (docs/benchmarks.md).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, labelled: Tensor, focal: bool) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits, label, labelled)
        ctx.focal = focal
        classes = torch.arange(logits.shape[1], device=logits.device)[:, None]
        sums = logits.new_zeros((3, *logits.shape[:2]), dtype=torch.float32)
        loss, overlap, predicted = sums
        for index, part in _parts(logits, label, labelled):
            losses = part.losses
            if focal:
                losses = losses * (1 - torch.exp(-losses)) ** FOCAL_POWER
            loss[index, 0] += losses @ part.seen
            overlap[index] += (part.target == classes).float() @ (part.own * part.seen)
            predicted[index] += part.probabilities @ part.seen
        return loss[:, 0], overlap[:, 1:], predicted[:, 1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, label, labelled = ctx.saved_tensors
        of_loss, of_overlap, of_predicted = gradients
        of_overlap, of_predicted = (functional.pad(x.float(), (1, 0)) for x in (of_overlap, of_predicted))
        result = torch.empty_like(logits)
        places = _voxels_first(result, _part_size(logits))
        for (index, part), place in zip(_parts(logits, label, labelled), places):
            # with p the probabilities and t the class that is there: loss -> p - [t], or where the background
            # is merged p - its shares; sum of a p -> p (a - sum of a p)
            weight = of_loss[index]
            if ctx.focal:  # d of x (1 - exp(-x))^2
                kept = 1 - torch.exp(-part.losses)
                weight = weight * kept * (kept + FOCAL_POWER * part.losses * (1 - kept))
            overlap = of_overlap[index][part.target] * part.own
            pulled = of_predicted[index] @ part.probabilities + overlap
            gradient = part.probabilities * (of_predicted[index][:, None] + (weight - pulled))
            there = overlap - weight
            if part.merged is not None:
                background = part.target == 0
                gradient[part.merged] -= weight * background * torch.softmax(part.logits[part.merged], 0)
                there = torch.where(background, 0.0, there)  # the background's overlap is nobody's
            gradient.scatter_add_(0, part.target[None], there[None])
            place.copy_((gradient * part.seen).T)
        return result, None, None, None


@dataclasses.dataclass
class _Part:
    """Some voxels of an image: logits and probabilities (S+1, n), of what is there (n,), seen 0 or 1."""

    logits: Tensor
    probabilities: Tensor
    target: Tensor  # class that is there, 0 where nobody looked
    own: Tensor  # its probability
    losses: Tensor
    seen: Tensor
    merged: Tensor | None  # (S+1,) the classes that count as background; None: itself alone


def _part_size(logits: Tensor) -> int:
    """Voxels of a part; elsewhere than on a CPU an image is one part."""
    voxels = logits[0, 0].numel()
    return min(voxels, max(1, PART // logits.shape[1])) if logits.device.type == "cpu" else voxels


def _voxels_first(volumes: Tensor, size: int) -> Iterator[Tensor]:
    """Parts (`size`, C) of (B, C, D, H, W), image by image; views where C is last in memory, as networks have
    it.
    """
    for volume in volumes:
        yield from volume.movedim(0, -1).flatten(0, 2).split(size)


def _parts(logits: Tensor, label: Tensor, labelled: Tensor) -> Iterator[tuple[int, _Part]]:
    """The parts of a batch in the order of `_voxels_first`, each with the number of its image."""
    merged = functional.pad(~labelled, (1, 0), value=True)
    several, size = merged.sum(1).tolist(), _part_size(logits)
    of_image = -(-label[0].numel() // size)
    parts = zip(_voxels_first(logits, size), _voxels_first(label[:, None], size))
    for number, (values, classes) in enumerate(parts):
        index = number // of_image
        target = classes[:, 0].long()
        seen = target != IGNORED
        target = target * seen
        x = values.float().T.contiguous()
        log_sum = torch.logsumexp(x, 0)
        picked = x.gather(0, target[None])[0]
        own, mine = torch.exp(picked - log_sum), merged[index] if several[index] > 1 else None
        if mine is not None:
            picked = torch.where(target == 0, torch.logsumexp(x[mine], 0), picked)
        probabilities = (x - log_sum).exp_()
        yield index, _Part(x, probabilities, target, own, log_sum - picked, seen.float(), mine)


def _sigmoid_sums(
    logits: Tensor, label: Tensor, labelled: Tensor, focal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of each structure by itself; the loss adds the binary ones of the annotated structures."""
    seen = (label != IGNORED)[:, None]
    reference = functional.one_hot((label * seen[:, 0]).long(), logits.shape[1]).movedim(-1, 1)[:, 1:].float()
    losses = functional.binary_cross_entropy_with_logits(logits[:, 1:].float(), reference, reduction="none")
    if focal:
        losses = losses * (1 - torch.exp(-losses)) ** FOCAL_POWER
    foreground = torch.sigmoid(logits[:, 1:].float()) * seen
    losses = losses * labelled[:, :, None, None, None] * seen
    overlap, predicted = (x.flatten(2).sum(-1) for x in (foreground * reference, foreground))
    return losses.flatten(1).sum(-1), overlap, predicted


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
