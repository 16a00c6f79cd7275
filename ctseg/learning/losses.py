"""Dice + cross-entropy that says nothing about structures nobody looked for."""

from __future__ import annotations

import torch
from torch import Tensor


def segmentation_loss(*, logits: Tensor, label: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, soft Dice per structure) of a batch.

    logits: (B, S+1, D, H, W), softmax over background and S structures. label: (B, D, H, W) integers.
    labelled: (B, S) bool, False where the structure was not annotated in that case: its probability is then
    merged with background ("merged" partial-label loss, Shi et al. 2021, doi 10.1016/j.media.2021.101979) and
    it takes no part in Dice.
    The loss is 1 - mean soft Dice over the structures present in the batch (annotated cases only), plus
    cross-entropy over all voxels, which is also the penalty for a structure predicted where it is absent.
    A batch without any present structure has the cross-entropy alone. Soft Dice of a structure that is not
    present in the batch is NaN.
    """
    logits = logits.float()
    log_all = torch.logsumexp(logits, dim=1)  # (B, D, H, W)
    target = label.long()
    picked = logits.gather(1, target[:, None])[:, 0]
    if bool(labelled.all()):
        log_target = picked
    else:
        hidden = torch.zeros_like(logits[:, :, :1, :1, :1])
        hidden[:, 1:] = torch.where(labelled, float("-inf"), 0.0)[:, :, None, None, None]
        log_background = torch.logsumexp(logits + hidden, dim=1)
        log_target = torch.where(target == 0, log_background, picked)
    cross_entropy = (log_all - log_target).mean()

    structures = logits.shape[1] - 1
    foreground = torch.exp(logits[:, 1:] - log_all[:, None])
    mask = labelled.to(foreground.dtype)  # (B, S)
    # Sum of the probability at the structure's own voxels, without a one-hot volume.
    own = torch.exp(picked - log_all)
    index = target.flatten(1)
    overlap = torch.zeros(len(target), structures + 1, dtype=foreground.dtype, device=logits.device).scatter_add(1, index, own.flatten(1))[:, 1:]
    size = torch.zeros_like(torch.empty(len(target), structures + 1, device=logits.device)).scatter_add(1, index, torch.ones_like(own).flatten(1))[:, 1:]
    predicted = foreground.flatten(2).sum(-1)
    overlap, size, predicted = ((x * mask).sum(0) for x in (overlap, size, predicted))
    present = size > 0
    dice = torch.where(present, 2 * overlap / (size + predicted).clamp_min(1e-6), torch.nan)
    if not bool(present.any()):
        return cross_entropy, dice.detach()
    return cross_entropy + 1 - dice[present].mean(), dice.detach()


def deep_loss(outputs: dict, *, label: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, soft Dice) with deep supervision: coarser outputs weigh 1/2, 1/4, ... and the weights sum to 1.

    The label of a coarser output is its nearest-neighbour reduction (nnU-Net's choice).
    """
    total, dice = segmentation_loss(logits=outputs["logits"], label=label, labelled=labelled)
    weight, weights = 1.0, 1.0
    for logits in outputs.get("deep", []):
        weight /= 2
        weights += weight
        small = torch.nn.functional.interpolate(label[:, None].float(), size=logits.shape[2:], mode="nearest-exact")[:, 0]
        total = total + weight * segmentation_loss(logits=logits, label=small, labelled=labelled)[0]
    return total / weights, dice
