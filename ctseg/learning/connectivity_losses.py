"""Losses that keep thin tubes connected: airways, vessels.

They are added to `passes_loss` (Dice + cross-entropy), which counts voxels and hardly notices a cut of a few
voxels through a thin branch. The multi-task form (mask, centreline and radius learned together) is our
reconstruction of AnatomicalPriorsMTL-AirwaySegment, which publishes an idea and no code; each term names its
own source.

Inside, tensors are (N, D, H, W): one item per pair of a case and a structure annotated there. `owner` (N,)
says which structure an item shows; sums run over the items of a structure (batch Dice), means over the
structures present.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ctseg.config import TrainSettings
from ctseg.datasets.case import IGNORED

UNION_ALPHAS = (0.1, 0.2)  # share of the prediction in the union: first half of training, second half
CLDICE_ITERATIONS = 5  # radius in voxels of the widest branch that gets a soft skeleton; trunks hardly break
RADIUS_CAP_MM = 10.0  # the radius head predicts radius / cap, at most 1
RADIUS_BETA = 0.1  # SmoothL1 is linear beyond this (1 mm): with 1 it would be all but flat for thin branches
CONSISTENCY_OFFSET = 0.05  # r0: half a millimetre; the outermost voxels have the size of a voxel
CONSISTENCY_SLOPE = 0.02  # t
CONSISTENCY_WARM_UP = 0.1  # share of training without it: partners that know nothing yet
CERTAIN = -30.0  # logit of a centreline that is not there for certain


def connectivity_loss(
    outputs: dict,
    *,
    label: Tensor,
    centreline: Tensor,
    skeleton: Tensor,
    radius_mm: Tensor,
    labelled: Tensor,
    weights: TrainSettings,
    progress: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(weighted sum, unweighted value of each term that was computed, detached).

    outputs: "logits" (B, S+1, D, H, W) and, when the network has these heads, "centreline" (B, S, D, H, W)
    logits and "radius" (B, S, D, H, W) non-negative, in units of the cap; terms of a missing head are left
    out. label, centreline, skeleton: (B, D, H, W) structure ids, see `ctseg.learning.tubes`; radius_mm (B, D,
    H, W). labelled: (B, S) bool; what was not annotated in a case has no part in any term, nor have voxels of
    the label that are IGNORED. weights: what each term counts beside Dice + cross-entropy; 0 skips it.
    progress: share of training done, 0..1. A structure without a voxel in the batch counts only in the cross-
    entropy of its centreline and in the consistency; a batch without any annotation gives 0.
    """
    numbers = torch.arange(1, labelled.shape[1] + 1, device=label.device)[:, None, None, None]
    owner = torch.nonzero(labelled)[:, 1]
    p = torch.softmax(outputs["logits"].float(), 1)[:, 1:][labelled]
    if not len(p):
        return p.sum(), {}
    ignored = (label == IGNORED)[:, None].expand(-1, labelled.shape[1], -1, -1, -1)[labelled]
    some_ignored = bool(ignored.any())

    def own(volume: Tensor) -> Tensor:
        """(N, D, H, W) bool: where a volume of ids shows the item's structure."""
        return (volume[:, None] == numbers)[labelled] & ~ignored

    def quiet(values: Tensor, fill: float) -> Tensor:
        """What is ignored says, without a gradient, that nothing is there: as its targets do."""
        return values.masked_fill(ignored, fill) if some_ignored else values

    def head(name: str, fill: float) -> Tensor | None:
        return quiet(outputs[name].float()[labelled], fill) if name in outputs else None

    p = quiet(p, 0.0)
    mask, line, reach = own(label), head("centreline", CERTAIN), head("radius", 0.0)
    sums = Sums(owner, labelled.shape[1])
    terms: dict[str, Tensor] = {}
    if weights.union_weight:
        terms["union"] = general_union_loss(p, mask, sums, alpha=UNION_ALPHAS[0 if progress < 0.5 else 1])
    if weights.cldice_weight:
        terms["cldice"] = soft_cldice_loss(p, mask, own(skeleton), sums)
    if weights.centreline_weight and line is not None:
        terms["centreline"] = centreline_loss(line, own(centreline), sums)
    if weights.radius_weight and reach is not None:
        radius = (radius_mm.float() / RADIUS_CAP_MM).clamp(max=1)
        terms["radius"] = radius_loss(
            reach, radius[:, None].expand_as(outputs["radius"])[labelled], mask, sums
        )
    heads = line is not None or reach is not None
    if weights.consistency_weight and heads and progress >= CONSISTENCY_WARM_UP:
        terms["consistency"] = consistency_loss(p, line, reach)
    total = sum((getattr(weights, f"{name}_weight") * value for name, value in terms.items()), p.sum() * 0)
    return total, {name: value.detach() for name, value in terms.items()}


class Sums(NamedTuple):
    """Sums of items (N, ...) per structure (T,), and means over the structures that are present."""

    owner: Tensor
    n_structures: int

    def __call__(self, values: Tensor) -> Tensor:
        """(T,) sums of (N,) or (N, D, H, W)."""
        items = values.flatten(1).sum(1) if values.dim() > 1 else values
        return items.new_zeros(self.n_structures).index_add(0, self.owner, items)

    def present(self, mask: Tensor) -> Tensor:
        """(T,) bool: structures with a voxel in (N, D, H, W) bool."""
        return self(mask.flatten(1).any(1).float()) > 0

    @staticmethod
    def mean(values: Tensor, present: Tensor) -> Tensor:
        """Mean of (T,) over the structures present; 0 when there is none."""
        return torch.where(present, values, 0).sum() / present.sum().clamp_min(1)


def imbalance_weight(mask: Tensor) -> Tensor:
    """(N, D, H, W) weights: background 1, foreground (-log10 of the structure's share of the 7^3 around)^2.5.

    From 0 deep inside a trunk to about 4 on a line of single voxels (local imbalance: Zheng et al. 2021,
    doi 10.1109/TMI.2021.3093067). At the patch's edge the share is of the voxels that are inside.
    """
    share = mask[:, None].float()
    for kernel in ((7, 1, 1), (1, 7, 1), (1, 1, 7)):  # three lines are the cube, at a sixteenth of the work
        share = F.avg_pool3d(share, kernel, 1, [k // 2 for k in kernel], count_include_pad=False)
    local = (-torch.log10(share[:, 0].clamp(1e-3, 1))) ** 2.5
    return torch.where(mask, local, 1.0)


def general_union_loss(p: Tensor, mask: Tensor, sums: Sums, *, alpha: float) -> Tensor:
    """1 - weighted overlap / weighted union, thin parts first (Zheng et al.

    2021, doi 10.1109/TMI.2021.3093067).

    The root of p makes a voxel at 0.1 worth more than a tenth, and alpha < 1/2 makes a missed voxel cost more
    than an invented one.
    """
    weight = imbalance_weight(mask)
    overlap = sums(torch.where(mask, weight * (p + 1e-4) ** 0.7, 0))
    union = sums(weight * (alpha * p + (1 - alpha) * mask))
    return sums.mean(1 - (overlap + 1) / (union + 1), sums.present(mask))


def soft_cldice_loss(p: Tensor, mask: Tensor, skeleton: Tensor, sums: Sums) -> Tensor:
    """1 - harmonic mean of skeleton precision and skeleton recall (Shit et al. 2021, arXiv:2003.07311).

    skeleton: (N, D, H, W) bool, of the whole structure and not of the patch. The value is the published one;
    in its gradient the place of the predicted skeleton is held fixed and only the probability there moves.
    That is about twelve times cheaper than a gradient through the pooling, which would also push the sides of
    a branch down to make its ridge sharper.
    """
    with torch.no_grad():
        place = soft_skeleton(p, CLDICE_ITERATIONS) / p.clamp_min(1e-6)
    predicted = p * place
    precision = (sums(predicted * mask) + 1) / (sums(predicted) + 1)
    recall = (sums(p * skeleton) + 1) / (sums(skeleton.float()) + 1)
    return sums.mean(1 - 2 * precision * recall / (precision + recall), sums.present(skeleton))


def soft_skeleton(p: Tensor, iterations: int) -> Tensor:
    """Ridges of (N, D, H, W) values 0..1 that at most `iterations` erosions reach.

    What an opening removes is thin at that scale; the parts found at all scales are united. Wider parts have
    no skeleton here.
    """
    skeleton = torch.zeros_like(p)
    for _ in range(iterations + 1):
        eroded = _erode(p)
        thin = F.relu(p - _dilate(eroded))
        skeleton = skeleton + F.relu(thin - skeleton * thin)
        p = eroded
    return skeleton


def _erode(x: Tensor) -> Tensor:
    """Smallest value among the voxel and its 6 neighbours."""
    d, h, w = (_of_three(x, axis, torch.minimum) for axis in (1, 2, 3))
    return torch.minimum(torch.minimum(d, h), w)


def _dilate(x: Tensor) -> Tensor:
    """Largest value of the 3^3 around, one axis after the other."""
    for axis in (1, 2, 3):
        x = _of_three(x, axis, torch.maximum)
    return x


def _of_three(x: Tensor, axis: int, choose: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Minimum or maximum of each value and its two neighbours along an axis.

    On a CPU ten times faster than pooling.
    """
    n = x.shape[axis]
    if n < 2:
        return x
    pairs = choose(x.narrow(axis, 0, n - 1), x.narrow(axis, 1, n - 1))
    before = torch.cat([pairs.narrow(axis, 0, 1), pairs], axis)
    after = torch.cat([pairs, pairs.narrow(axis, n - 2, 1)], axis)
    return choose(before, after)


def centreline_loss(logits: Tensor, target: Tensor, sums: Sums) -> Tensor:
    """Dice (structures present) + cross-entropy (all structures) of the thick centreline."""
    p, truth = torch.sigmoid(logits), target.float()
    dice = (2 * sums(p * truth) + 1) / (sums(p) + sums(truth) + 1)
    return sums.mean(1 - dice, sums.present(target)) + F.binary_cross_entropy_with_logits(logits, truth)


def radius_loss(radius: Tensor, target: Tensor, mask: Tensor, sums: Sums) -> Tensor:
    """SmoothL1 of the radius in units of the cap, inside the structure only: outside there is none."""
    error = F.smooth_l1_loss(radius, target, beta=RADIUS_BETA, reduction="none") * mask
    return sums.mean(sums(error) / sums(mask.float()).clamp_min(1), sums.present(mask))


def consistency_loss(p: Tensor, centreline: Tensor | None, radius: Tensor | None) -> Tensor:
    """What the heads say about the same voxel should agree: a centreline lies inside, a radius > 0 means
    inside.

    Each of two partners learns from the other held fixed, so that they cannot agree by both giving way.
    """
    loss = p.sum() * 0
    if centreline is not None:
        line = torch.sigmoid(centreline)
        loss = loss + (line.detach() * (1 - p) + line * (1 - p.detach())).mean() / 2
    if radius is not None:
        inside = torch.sigmoid((radius - CONSISTENCY_OFFSET) / CONSISTENCY_SLOPE)
        loss = loss + ((inside.detach() - p).abs() + (inside - p.detach()).abs()).mean() / 2
    return loss
