"""Dice + cross-entropy that says nothing about structures nobody looked for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FOCAL_POWER = 2.0  # Lin et al. 2017, arXiv:1708.02002


def segmentation_loss(
    *, logits: Tensor, label: Tensor, labelled: Tensor, kind: str = "dice_ce", independent: bool = False
) -> tuple[Tensor, Tensor]:
    """(loss, soft Dice per structure) of a batch.

    logits: (B, S+1, D, H, W), softmax over background and S structures. label: (B, D, H, W) integers.
    labelled: (B, S) bool, False where the structure was not annotated in that case: its probability is then
    merged with background ("merged" partial-label loss, Shi et al. 2021, doi 10.1016/j.media.2021.101979) and
    it takes no part in Dice.
    The loss is 1 - mean soft Dice over the structures present in the batch (annotated cases only), plus
    cross-entropy over all voxels, which is also the penalty for a structure predicted where it is absent.
    A batch without any present structure has the cross-entropy alone. Soft Dice of a structure that is not
    present in the batch is NaN.
    kind: "dice_ce"; "dice" or "ce" alone; "dice_focal", where easy voxels count less. Without a present structure "dice" is
    0 with a gradient of 0.
    independent: each structure by itself, by the sigmoid of its logit; the background's has no part. The cross-entropy is then
    the sum of the binary ones of the annotated structures, which is about as large as the softmax's.
    """
    terms = _sigmoid_terms if independent else _softmax_terms
    voxel_loss, overlap, predicted, size = terms(logits.float(), label.long(), labelled)
    if kind == "dice_focal":
        voxel_loss = voxel_loss * (1 - torch.exp(-voxel_loss)) ** FOCAL_POWER
    cross_entropy = voxel_loss.sum(1).mean() * (kind != "dice")

    mask = labelled.to(overlap.dtype)  # (B, S)
    overlap, size, predicted = ((x * mask).sum(0) for x in (overlap, size, predicted))
    present = size > 0
    dice = torch.where(present, 2 * overlap / (size + predicted).clamp_min(1e-6), torch.nan)
    if not bool(present.any()):
        return cross_entropy, dice.detach()
    if kind == "ce":
        return cross_entropy, dice.detach()
    return cross_entropy + 1 - dice[present].mean(), dice.detach()


def _softmax_terms(logits: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss (B, 1, D, H, W) of each voxel, overlap, predicted volume and volume (B, S) of each structure)."""
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
    overlap, size = (_sum_by_label(values, target, logits.shape[1]) for values in (own, torch.ones_like(own)))
    return voxel_loss[:, None], overlap, foreground.flatten(2).sum(-1), size


def _sigmoid_terms(logits: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of each structure by itself: losses (B, S, D, H, W), 0 where it was not annotated."""
    reference = functional.one_hot(target, logits.shape[1]).movedim(-1, 1)[:, 1:].to(logits.dtype)
    voxel_loss = functional.binary_cross_entropy_with_logits(logits[:, 1:], reference, reduction="none")
    foreground = torch.sigmoid(logits[:, 1:])
    sums = (
        (foreground * reference).flatten(2).sum(-1),
        foreground.flatten(2).sum(-1),
        reference.flatten(2).sum(-1),
    )
    return voxel_loss * labelled[:, :, None, None, None], *sums


def _sum_by_label(values: Tensor, target: Tensor, n_classes: int) -> Tensor:
    """(B, S): sums of values (B, D, H, W) over the voxels of each structure."""
    sums = torch.zeros(len(target), n_classes, dtype=values.dtype, device=values.device)
    return sums.scatter_add(1, target.flatten(1), values.flatten(1))[:, 1:]


def deep_loss(
    outputs: dict, *, label: Tensor, labelled: Tensor, kind: str = "dice_ce"
) -> tuple[Tensor, Tensor]:
    """(loss, soft Dice) with deep supervision: coarser outputs weigh 1/2, 1/4, ... and the weights sum to 1.

    The label of a coarser output is its nearest-neighbour reduction (nnU-Net's choice). outputs may hold "independent", see
    `segmentation_loss`.
    """
    independent = bool(outputs.get("independent"))
    total, dice = segmentation_loss(
        logits=outputs["logits"], label=label, labelled=labelled, kind=kind, independent=independent
    )
    weight, weights = 1.0, 1.0
    for logits in outputs.get("deep", []):
        weight /= 2
        weights += weight
        small = functional.interpolate(label[:, None].float(), size=logits.shape[2:], mode="nearest-exact")[
            :, 0
        ]
        total = (
            total
            + weight
            * segmentation_loss(
                logits=logits, label=small, labelled=labelled, kind=kind, independent=independent
            )[0]
        )
    return total / weights, dice


FIRST_PASS_WEIGHT = 0.5  # the last pass weighs 1, those between rise evenly; divided by their sum


def pass_weights(count: int) -> list[float]:
    """Weights of the losses of `count` passes, rising to the last, sum 1."""
    raw = (
        [FIRST_PASS_WEIGHT + (1 - FIRST_PASS_WEIGHT) * number / max(1, count - 1) for number in range(count)]
        if count > 1
        else [1.0]
    )
    return [value / sum(raw) for value in raw]


def passes_loss(
    outputs: dict, *, label: Tensor, labelled: Tensor, kind: str = "dice_ce"
) -> tuple[Tensor, Tensor]:
    """(loss, soft Dice of the last pass): every pass of a MultiPass network is supervised, the last one deeply; else `deep_loss`."""
    earlier = outputs.get("passes", [outputs["logits"]])[:-1]
    *weights, last = pass_weights(len(earlier) + 1)
    total, dice = deep_loss(outputs, label=label, labelled=labelled, kind=kind)
    total = last * total
    for weight, logits in zip(weights, earlier):
        total = (
            total
            + weight
            * segmentation_loss(
                logits=logits,
                label=label,
                labelled=labelled,
                kind=kind,
                independent=bool(outputs.get("independent")),
            )[0]
        )
    return total, dice
