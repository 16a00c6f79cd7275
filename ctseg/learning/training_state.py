"""What a training run knows of itself: what it works on, how far it is, the history that people read."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol

import torch

from ctseg import artifacts
from ctseg.artifacts import Workspace
from ctseg.config import Range, Settings, Share, TrainSettings
from ctseg.learning.dataset import TrainingCase
from ctseg.manifest import Manifest, from_record
from ctseg.runtime.checkpoint_schema import Count, Rules, Weights, check_rules, form, mismatch
from ctseg.runtime.hardware import Machine, count_parameters
from ctseg.typed_values import fits

# of torch.amp.GradScaler, which is empty where it is not used
SCALER_KEYS = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}

# what last.pth holds beside the state
REST: Rules = {
    "averaged": (Weights, "the weights of a network"),
    "optimizer": (dict, "the state of an optimizer"),
    "optimizer.state": (dict[int, dict[str, torch.Tensor]], "the state of an optimizer"),
    "scaler": (
        Annotated[dict[str, float], lambda scaler: set(scaler) in (set(), SCALER_KEYS)],
        "the state of a scaler",
    ),
    "threads": (Annotated[int, Range(1, math.inf)], "a number of threads"),
    "precision": (str, "a number format"),
    "history": (str, "a history"),
}

Seconds = Annotated[float, Range(0, math.inf)]
Voxels = Annotated[torch.Tensor, lambda voxels: voxels.dim() == 2 and voxels.shape[1] == 3]


class Listener(Protocol):
    """Who is told what happens, and decides how it looks. Entered while a trainer works."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def step(self, epoch: int, step: int, status: str) -> None:
        """After each step, both counted from 1. status: mean loss, running Dice, share of training done."""

    def note(self, line: str) -> None:
        """A line for the user."""

    def stop(self) -> bool:
        """Asked after every step and every validation scan: whether to save and end."""


class Stopped(Exception):
    """The listener asked to stop; the state is saved."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training works on, whatever its settings. build: makes a network from an architecture."""

    workspace: Workspace
    manifest: Manifest
    machine: Machine
    build: Callable[[dict[str, Any]], Any]
    listener: Listener
    restart: bool
    training: Sequence[TrainingCase] = ()
    validation: Sequence[TrainingCase] = ()
    locator: dict[str, Any] | None = None
    any_length: bool = False  # whether a finished training of another length will do


@dataclasses.dataclass
class Epoch:
    """An epoch as far as it has come."""

    begun: float  # seconds of training before it
    dice: list[float | None]  # running soft Dice per structure
    steps: Count = 0
    total: float = 0.0  # sum of the losses
    rate: float = 0.0


@dataclasses.dataclass
class TrainingState:
    """What a run remembers beside weights, optimizer and history; last.pth holds it under the same names."""

    partial: Epoch
    epoch: Count = 0  # epochs finished
    steps: Count = 0  # optimizer steps done
    skipped_in_a_row: Count = 0  # steps left out since the last one done: their gradient was not finite
    best: Share | None = None
    best_epoch: Count = 0
    stale: Count = 0  # validations since the best one
    rate_scale: Share = 1.0  # plateau schedule
    later_passes: bool = False  # whether passes after the first have begun to learn
    # of these only the largest is kept
    largest_component: list[str] = dataclasses.field(default_factory=list)
    # case and voxels of tubes that were missed, in the order of looking
    missed: list[tuple[str, Voxels]] = dataclasses.field(default_factory=list)
    seconds: Seconds = 0.0  # of training when it was saved
    validation_seconds: Seconds = 0.0  # of the latest validation, before the first one an estimate
    validation_total: Seconds = 0.0  # of all validations

    @classmethod
    def of(cls, content: dict[str, Any], file: str) -> TrainingState:
        """From the content of last.pth. IntegrityError unless training can go on from all that is in it."""
        own = typing.get_type_hints(cls, include_extras=True)
        rules: Rules = {key: (kind, "what a training leaves there") for key, kind in own.items()}
        check_rules(content, {**rules, **REST}, file)
        if form(content["averaged"]) != form(content["model"]):
            raise mismatch("its averaged weights are not those of the network", file)
        if len(content["partial"]["dice"]) != len(content["structures"]):
            raise mismatch("it does not say how far its last epoch came", file)
        state: TrainingState = from_record(cls, content)
        return state


class Budget:
    """Progress by minutes when `train.minutes` is set, else by steps (the only form that resumes
    bit-exactly).
    """

    def __init__(self, settings: TrainSettings, state: TrainingState):
        self.settings, self.state, self.timed = settings, state, settings.minutes > 0
        self.started = time.monotonic() - state.seconds

    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return time.monotonic() - self.started

    def progress(self) -> float:
        """0 at the start, 1 when training is over; the latest validation's time is reserved at the end."""
        if self.timed:
            usable = max(1.0, self.settings.minutes * 60 - 1.1 * self.state.validation_seconds)
            return min(1.0, self.seconds() / usable)
        per_epoch = self.settings.steps_per_epoch
        done = self.state.epoch * per_epoch + self.state.partial.steps
        return min(1.0, done / (self.settings.epochs * per_epoch))

    def validation_due(self, progress: float) -> bool:
        """Whether to predict the validation scans after the epoch that has just been trained.

        Timed: as often as keeps validation, the next one included, near a twentieth of the time; so a short
        run has the last one alone. By steps: `train.validations` times, evenly.
        """
        if progress >= 1:
            return True
        if self.timed:
            spent = self.state.validation_total + self.state.validation_seconds
            return progress >= 0.1 and spent <= 0.05 * self.seconds()
        every = max(1, self.settings.epochs // max(1, self.settings.validations))
        return (self.state.epoch + 1) % every == 0


def empty_history(settings: Settings, provenance: dict[str, Any], network: torch.nn.Module) -> dict[str, Any]:
    """The history of a run before its first epoch, without what `Trainer.write_history` adds.

    provenance: where it comes from, as checkpoints say.
    """
    names = provenance["structures"]
    return {
        "version": 1,
        "model": provenance["arch"]["name"],
        "structures": names,
        **{key: [] for key in (*artifacts.SERIES, "resource_usage")},
        **{key: {name: [] for name in names} for key in artifacts.SERIES_OF_STRUCTURES},
        "parameters": count_parameters(network),
        "skipped_steps": 0,
        "settings": settings.record(),
        "synthetic": provenance["synthetic"],
        "manifest_hash": provenance["manifest_hash"],
        "stopped": "running",
    }


def read_history(content: dict[str, Any], file: str) -> dict[str, Any]:
    """The history in the checked content of last.pth. IntegrityError unless it is that of its epochs."""
    epoch, names = content["epoch"], content["structures"]
    try:
        history: dict[str, Any] = json.loads(content["history"])
        json.dumps(history, allow_nan=False)
        series = [history[key] for key in artifacts.SERIES]
        series += [history[key][name] for key in artifacts.SERIES_OF_STRUCTURES for name in names]
        usage = history["resource_usage"]
        complete = (
            history["epochs"] == list(range(1, epoch + 1))
            and fits(series, list[list[float | None]])
            and fits(usage, list[dict[str, float | None]])
            and all(len(values) == epoch for values in (*series, usage))
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        complete = False
    if not complete:
        raise mismatch("its history is not that of its epochs and structures", file)
    return history


def counter_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(artifacts.canonical_hash(list(numbers))[:15], 16)


def copied(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a network as they are now, each in memory of its own."""
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


def on_cpu(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights on the CPU."""
    return {key: value.cpu() for key, value in weights.items()}
