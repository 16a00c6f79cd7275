"""What a network takes over from a trained one before it learns: fine-tuning.

Weights are matched by name and shape. The heads are taken only where both know the same structures; a layer
that reads more channels than before starts with the new ones at zero, so that it begins as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctseg import artifacts
from ctseg.errors import UsageError
from ctseg.runtime import checkpoints

LEAST = 0.5  # share of a network's weights that must be found, or the two are no relatives


def take_weights(network: nn.Module, file: Path, structures: Sequence[str]) -> dict[str, Any]:
    """Take over what fits of the weights in a checkpoint; the record of it for the new one.

    Raises IntegrityError for a file that is no checkpoint, UsageError INIT_MISMATCH where less than LEAST of
    the weights (counted one by one) are found in it.
    """
    content = checkpoints.load(file)
    same = content["structures"] == list(structures)
    mine = network.state_dict()
    taken = {}
    for name, value in mine.items():
        if same or not is_of_head(name):
            found = fitted(content["model"].get(name), value)
            if found is not None:
                taken[name] = found
    share = sum(mine[name].numel() for name in taken) / sum(value.numel() for value in mine.values())
    if share < LEAST:
        raise UsageError(
            "INIT_MISMATCH",
            f"only {100 * share:.0f} % of the network's weights are found in it; it holds a "
            f"{content['arch']['name']} of width {content['arch']['width']}",
            "train the same network (--model, --set model.width=...), or begin without --init",
            file=file.name,
        )
    network.load_state_dict({**mine, **taken})
    return {
        "file": file.name,
        "sha256": artifacts.file_hash(file),
        "structures": content["structures"],
        "synthetic": content["synthetic"],
        "share": round(share, 4),
        "heads": same,
    }


def is_of_head(name: str) -> bool:
    """Whether a weight belongs to a head, whose channels are structures."""
    return "heads" in name.split(".")


def fitted(found: Tensor | None, wanted: Tensor) -> Tensor | None:
    """A stored weight in the form of `wanted`, or None where it is another layer's.

    Of a convolution that reads other channels (axis 1), the first ones are the same as before.
    """
    if found is None or found.ndim != wanted.ndim:
        return None
    if found.shape == wanted.shape:
        return found
    if found.ndim == 5 and found[:, :1].shape == wanted[:, :1].shape:
        result = torch.zeros_like(wanted, device=found.device)
        shared = min(found.shape[1], wanted.shape[1])
        result[:, :shared] = found[:, :shared]
        return result
    return None


def freeze(network: nn.Module, part: str) -> None:
    """Keep a part of a network as it is: "encoder", all levels that make features smaller; "nothing"."""
    if part == "nothing":
        return
    for name, parameter in network.named_parameters():
        if part in name.split("."):
            parameter.requires_grad_(False)
