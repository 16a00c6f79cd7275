"""What a training step minimises, whatever the network returns: each key of its output has its own term."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctseg.config import TrainSettings
from ctseg.learning.connectivity_losses import ConnectivityWeights, connectivity_loss
from ctseg.learning.dataset import Batch
from ctseg.learning.losses import passes_loss


def objective(
    outputs: dict[str, Any], batch: Batch, settings: TrainSettings, progress: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(loss, soft Dice per structure) of a batch. progress: 0 at the start of training, 1 at its end.

    "logits" with "deep" and "passes": the segmentation loss, of each structure by itself where the network says "independent". "centreline"
    and "radius", where the batch carries their targets: the connectivity loss on top.
    """
    label, labelled = batch.label.to(device), batch.labelled.to(device)
    loss, dice = passes_loss(outputs, label=label, labelled=labelled, kind=settings.loss)
    if "centreline" in outputs and batch.targets:
        targets = {name: value.to(device) for name, value in batch.targets.items()}
        extra, _ = connectivity_loss(
            outputs,
            label=label,
            centreline=targets["centreline"],
            skeleton=targets["skeleton"],
            radius_mm=targets["radius_mm"],
            labelled=labelled,
            weights=connectivity_weights(settings),
            progress=progress,
        )
        loss = loss + extra
    return loss, dice


def connectivity_weights(settings: TrainSettings) -> ConnectivityWeights:
    """The weights of the connectivity loss from the settings of a run."""
    return ConnectivityWeights(
        union=settings.union_weight,
        centreline=settings.centreline_weight,
        radius=settings.radius_weight,
        cldice=settings.cldice_weight,
        consistency=settings.consistency_weight,
    )
