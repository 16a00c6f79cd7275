"""What a training run knows of itself: where it comes from, how far it is, the history that people read."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import torch

from ctseg import artifacts
from ctseg.config import Settings
from ctseg.runtime import checkpoint_schema


@dataclasses.dataclass
class Provenance:
    """What a checkpoint says about where it comes from."""

    arch: dict[str, Any]
    structures: list[str]
    preprocess: dict[str, Any]
    manifest_hash: str
    splits_hash: str
    synthetic: bool
    guide: dict[str, Any] | None  # organs and source of the guide that the network takes
    locator: dict[str, Any] | None  # arch, weights and patch size of the locator of the roi grid
    sides: dict[str, Any] | None  # of `laterality.Sides.record`; None: the names decide


@dataclasses.dataclass
class Epoch:
    """An epoch as far as it has come."""

    begun: float  # seconds of training before it
    dice: list[float | None]  # running soft Dice per structure
    steps: int = 0
    total: float = 0.0  # sum of the losses
    rate: float = 0.0


@dataclasses.dataclass
class TrainingState:
    """What a run remembers beside weights, optimizer and history; last.pth holds it under the same names."""

    partial: Epoch
    epoch: int = 0  # epochs finished
    steps: int = 0  # optimizer steps done
    skipped_in_a_row: int = 0  # steps left out since the last one done: their gradient was not finite
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0  # validations since the best one
    rate_scale: float = 1.0  # plateau schedule
    later_passes: bool = False  # whether passes after the first have begun to learn
    # of these only the largest is kept
    largest_component: list[str] = dataclasses.field(default_factory=list)
    # case and voxels of tubes that were missed, in the order of looking
    missed: list[tuple[str, torch.Tensor]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, content: dict[str, Any]) -> TrainingState:
        """From the checked content of last.pth."""
        own = {field.name: content[field.name] for field in dataclasses.fields(cls)}
        return cls(**own | {"partial": Epoch(**content["partial"])})


class Listener(Protocol):
    """Who is told what happens, and decides how it looks. Entered while a trainer works."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def step(self, epoch: int, step: int, loss: float, dice: float | None, progress: float) -> None:
        """After each step. loss: mean of the epoch so far; dice: running mean on patches."""

    def epoch(self, record: dict[str, Any]) -> None:
        """After each epoch: epoch, loss, dice, validation (mean Dice), rate, seconds."""

    def best(self, epoch: int, dice: float) -> None:
        """After a validation that was better than all before."""

    def note(self, line: str) -> None:
        """A line for the user."""

    def stop(self) -> bool:
        """Asked after every step and every validation scan: whether to save and end."""


class Stopped(Exception):
    """The listener asked to stop; the state is saved."""


def empty_history(settings: Settings, provenance: Provenance, network: torch.nn.Module) -> dict[str, Any]:
    """The history of a run before its first epoch."""
    names = provenance.structures
    return {
        "version": 1,
        "model": provenance.arch["name"],
        "structures": names,
        **{key: [] for key in (*checkpoint_schema.SERIES, "resource_usage")},
        **{key: {name: [] for name in names} for key in checkpoint_schema.SERIES_OF_STRUCTURES},
        "best_epoch": 0,
        "best_val_dice": None,
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": 0,
        "skipped_steps": 0,
        "seconds": 0.0,
        "step_seconds": None,
        "peak_memory_gb": None,
        "settings": settings.record(),
        "synthetic": provenance.synthetic,
        "manifest_hash": provenance.manifest_hash,
        "stopped": "running",
    }


def counter_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(artifacts.canonical_hash(list(numbers))[:15], 16)


def on_cpu(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy of weights on the CPU."""
    return {key: value.detach().cpu().clone() for key, value in weights.items()}
