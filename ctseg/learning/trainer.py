"""The training loop: steps, averaged weights, whole-volume validation, checkpoints that resume bit-exactly.

Everything random is drawn from counters (see `dataset`), so a checkpoint needs no generator state: on a CPU with
the same number of threads, a run that was killed ends in the same weights as one that was not (`--epochs`; with
`--minutes` the clock decides how many steps fit).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ctseg import artifacts
from ctseg.config import Settings
from ctseg.errors import DivergedError, UsageError
from ctseg.learning import checkpoints, hardware
from ctseg.learning.dataset import Batch, PatchSampler, TrainingCase
from ctseg.learning.inference import dice_per_structure, predict_canvas
from ctseg.learning.losses import deep_loss, segmentation_loss
from ctseg.learning.postprocess import keep_largest
from ctseg.learning.schedule import Budget, learning_rate_factor
from ctseg.scoring.distances import percentile_hausdorff_mm, surface_distances

HALVE_AFTER = 3  # plateau schedule: validations without a better Dice before the learning rate is halved
RUNNING_MEAN = 0.9  # smoothing of the training Dice per structure, which is NaN where a batch lacks it


@dataclasses.dataclass
class Callbacks:
    """How the trainer tells what happens; the script decides how it looks."""

    step: Callable[[int, int, float, float | None, float], None]  # epoch, step, loss, Dice, progress
    epoch: Callable[[dict[str, Any]], None]
    best: Callable[[int, float], None]
    note: Callable[[str], None]


@dataclasses.dataclass
class Identity:
    """What a checkpoint says about where it comes from."""

    arch: dict[str, Any]
    structures: list[str]
    preprocess: dict[str, Any]
    manifest_hash: str
    splits_hash: str
    synthetic: bool


@dataclasses.dataclass
class Validation:
    """Scores of the validation scans on their canvases, per structure and per case that shows it."""

    dice: list[list[float]]
    dice_of_largest: list[list[float]]  # of the largest component alone
    hd95_mm: list[list[float]]  # where something was predicted
    losses: list[float]  # one per scan

    def add(self, case: TrainingCase, probabilities: torch.Tensor, names: Sequence[str]) -> None:
        """Score the probabilities (S+1, D, H, W) of one case."""
        loss, _ = segmentation_loss(logits=probabilities.clamp_min(1e-7).log_()[None], label=case.label[None], labelled=torch.from_numpy(case.labelled)[None])
        self.losses.append(float(loss))
        prediction = probabilities.argmax(0)
        filtered = torch.from_numpy(keep_largest(prediction.numpy(), range(1, len(names) + 1)))
        for scores, label in ((self.dice, prediction), (self.dice_of_largest, filtered)):
            for index, value in enumerate(dice_per_structure(label, case.label, len(names))[0]):
                if value is not None and case.states[names[index]] == "present":
                    scores[index].append(value)
        for index, name in enumerate(names):
            if case.states[name] == "present":
                pair = surface_distances(prediction=(prediction == index + 1).numpy(), reference=(case.label == index + 1).numpy(), spacing_mm=case.spacing_mm)
                if pair is not None:
                    self.hd95_mm[index].append(percentile_hausdorff_mm(pair))

    def mean_dice(self) -> list[float | None]:
        """Present-only mean Dice per structure; None where no scan shows it."""
        return [_mean(values) for values in self.dice]

    def mean_hd95_mm(self) -> list[float | None]:
        """Mean HD95 per structure over the scans where it was found."""
        return [_mean(values) for values in self.hd95_mm]

    def largest_helps(self) -> list[bool]:
        """Whether the largest component alone scores higher than everything that was predicted."""
        return [sum(one) > sum(everything) for one, everything in zip(self.dice_of_largest, self.dice)]


class Trainer:
    """One training run in a workspace. Call `resume` (optional), then `fit`."""

    def __init__(self, network: torch.nn.Module, cases: Sequence[TrainingCase], validation: Sequence[TrainingCase], *, settings: Settings,
                 identity: Identity, machine: hardware.Machine, workspace: artifacts.Workspace, callbacks: Callbacks):
        self.settings, self.identity, self.machine, self.workspace, self.callbacks = settings, identity, machine, workspace, callbacks
        train = settings.train
        self.network = machine.place(network)
        self.averaged = {key: value.detach().clone() for key, value in self.network.state_dict().items()}
        self.optimizer = _optimizer(self.network, settings)
        self.scaler = torch.amp.GradScaler("cuda", enabled=machine.precision == "fp16")
        self.patch_size = train.fixed_patch()
        self.sampler = PatchSampler(cases, identity.structures, batch_size=train.batch_size, patch_size=self.patch_size,
                                    foreground_fraction=train.foreground_fraction, augmentation=train.augmentation, seed=train.seed)
        self.validation = list(validation)
        self.epoch = 0  # epochs finished
        self.steps = 0  # optimiser steps done
        self.best: float | None = None
        self.best_epoch = 0
        self.stale = 0  # validations since the best one
        self.rate_scale = 1.0  # plateau schedule
        self.largest_component: list[str] = []  # structures of which only the largest component is kept
        self.budget = Budget(train)
        self.history = _empty_history(settings, identity, self.network)

    # ---- the loop ----

    def fit(self) -> dict[str, Any]:
        """Train until the budget ends and return the history. Writes best_model.pth, last.pth and the history."""
        stopped = "minutes" if self.budget.timed else "epochs"
        while self.budget.progress(self.epoch, 0) < 1:
            started = time.monotonic()
            loss, dice = self._run_epoch()
            progress = self.budget.progress(self.epoch + 1, 0)
            validation = self._validate() if self.validation and self.budget.validation_due(self.epoch, progress) else None
            self.epoch += 1
            self._record(loss, dice, validation, time.monotonic() - started)
            if validation is not None:
                self._keep_if_best(validation)
            elif not self.validation:
                self._save_best()
            self._save_last()
            if self.settings.train.patience and self.stale >= self.settings.train.patience:
                stopped = "patience"
                break
        self.history |= {"stopped": stopped, "seconds": round(self.budget.seconds(), 1), "steps": self.steps}
        artifacts.write_json(self.workspace.history, self.history)
        return self.history

    def _run_epoch(self) -> tuple[float, list[float | None]]:
        """Mean loss and running soft Dice per structure of one epoch, which ends early when a timed budget does."""
        self.network.train()
        torch.manual_seed(counter_seed(self.settings.train.seed, self.epoch))  # dropout, if a network has it
        total, count = 0.0, 0
        dice: list[float | None] = [None] * len(self.identity.structures)
        # A GPU waits for patches, so threads prepare them. On a CPU they would fight the network for its cores.
        threads = 0 if self.machine.device.type == "cpu" else 4
        steps = self.settings.train.steps_per_epoch
        for step, batch in enumerate(self.sampler.batches(self.epoch, 0, steps, threads=threads)):
            progress = self.budget.progress(self.epoch, step)
            if progress >= 1:
                break
            loss, batch_dice = self._step(batch, progress)
            total, count = total + loss, count + 1
            for index, value in enumerate(batch_dice.tolist()):
                if value == value:  # not NaN: the batch has the structure
                    old = dice[index]
                    dice[index] = value if old is None else RUNNING_MEAN * old + (1 - RUNNING_MEAN) * value
            known = [value for value in dice if value is not None]
            self.callbacks.step(self.epoch + 1, step + 1, total / count, sum(known) / len(known) if known else None, progress)
        if not all(bool(torch.isfinite(p).all()) for p in self.network.parameters()):
            raise DivergedError("DIVERGED", f"weights became NaN or infinite in epoch {self.epoch + 1}", "use a smaller train.learning_rate; the last good checkpoint is kept")
        return total / max(count, 1), dice

    def _step(self, batch: Batch, progress: float) -> tuple[float, torch.Tensor]:
        train = self.settings.train
        rate = train.learning_rate * self.rate_scale * learning_rate_factor(train.schedule, progress, train.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.machine.autocast():
            outputs = self.network(self.machine.image(batch.image))
        device = self.machine.device
        loss, dice = deep_loss(outputs, label=batch.label.to(device), labelled=batch.labelled.to(device))
        value = float(loss.detach())
        if not value < float("inf"):  # NaN or infinity
            raise DivergedError("DIVERGED", f"the loss became {value} at step {self.steps + 1}, with patches of {', '.join(batch.case_ids)}",
                                "use a smaller train.learning_rate, or look at those scans; the last good checkpoint is kept")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), train.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.steps += 1
        self._average()
        return value, dice.cpu()

    @torch.no_grad()
    def _average(self) -> None:
        """Exponential moving average of the weights, with a short memory at the start."""
        decay = min(self.settings.train.ema_decay, (1 + self.steps) / (10 + self.steps))
        for key, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.averaged[key].lerp_(value, 1 - decay)
            else:
                self.averaged[key].copy_(value)

    # ---- validation ----

    def _validate(self) -> Validation:
        """Predict the validation scans with the averaged weights and score them on their canvases."""
        started = time.monotonic()
        current = {key: value.clone() for key, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.averaged)
        names = self.identity.structures
        result = Validation([[] for _ in names], [[] for _ in names], [[] for _ in names], [])
        for case in self.validation:
            probabilities = predict_canvas(self.network, case.image, n_classes=len(names) + 1, patch_size=self.patch_size, overlap=0.25, machine=self.machine)
            result.add(case, probabilities, names)
        self.network.load_state_dict(current)
        self.network.train()
        self.budget.note_validation(time.monotonic() - started)
        return result

    def _keep_if_best(self, validation: Validation) -> None:
        mean = _mean(validation.mean_dice())
        if mean is not None and (self.best is None or mean > self.best):
            self.largest_component = [name for name, helps in zip(self.identity.structures, validation.largest_helps()) if helps]
            self.best, self.best_epoch, self.stale = mean, self.epoch, 0
            self._save_best()
            self.callbacks.best(self.epoch, mean)
            return
        self.stale += 1
        if self.best is None:
            self._save_best()  # no validation case shows any structure: the latest weights are the best known
        if self.settings.train.schedule == "plateau" and self.stale % HALVE_AFTER == 0:
            self.rate_scale /= 2

    # ---- files ----

    def _record(self, loss: float, dice: list[float | None], validation: Validation | None, seconds: float) -> None:
        history, names = self.history, self.identity.structures
        scores = validation.mean_dice() if validation else [None] * len(names)
        distances = validation.mean_hd95_mm() if validation else [None] * len(names)
        history["epochs"].append(self.epoch)
        history["train_loss"].append(loss)
        history["val_loss"].append(_mean(validation.losses) if validation else None)
        history["learning_rate"].append(self.optimizer.param_groups[0]["lr"])
        history["epoch_seconds"].append(round(seconds, 2))
        history["resource_usage"].append(hardware.usage(self.machine.device))
        for index, name in enumerate(names):
            history["train_dice"][name].append(dice[index])
            history["val_dice"][name].append(scores[index])
            history["val_hausdorff"][name].append(distances[index])
        history["val_mean_dice"].append(_mean(scores))
        history |= {"best_epoch": self.best_epoch, "best_val_dice": self.best}
        self.callbacks.epoch({"epoch": self.epoch, "loss": loss, "dice": _mean(dice), "validation": _mean(scores),
                              "rate": history["learning_rate"][-1], "seconds": seconds})

    def _content(self, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
        identity = self.identity
        return {"created_by": "ctseg", "arch": identity.arch, "structures": identity.structures, "preprocess": identity.preprocess,
                "settings": self.settings.record(), "manifest_hash": identity.manifest_hash, "splits_hash": identity.splits_hash,
                "synthetic": identity.synthetic, "epoch": self.epoch, "steps": self.steps, "best": self.best, "largest_component": self.largest_component, "threads": torch.get_num_threads(),
                "model": {key: value.detach().cpu().clone() for key, value in weights.items()}}

    def _save_best(self) -> None:
        self.best_epoch = self.epoch
        checkpoints.save(self.workspace.best_model, self._content(self.averaged))

    def _save_last(self) -> None:
        self.history |= {"best_epoch": self.best_epoch, "best_val_dice": self.best, "seconds": round(self.budget.seconds(), 1), "steps": self.steps}
        content = self._content(self.network.state_dict()) | {
            "averaged": {key: value.detach().cpu().clone() for key, value in self.averaged.items()}, "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(), "best_epoch": self.best_epoch, "stale": self.stale, "rate_scale": self.rate_scale,
            "seconds": self.budget.seconds(), "validation_seconds": self.budget.validation_seconds,
            "validation_total": self.budget.validation_total, "history": json.dumps(self.history, allow_nan=False)}
        checkpoints.rotate(self.workspace.last_model)
        checkpoints.save(self.workspace.last_model, content)
        artifacts.write_json(self.workspace.history, self.history)

    def resume(self, content: dict[str, Any]) -> None:
        """Continue from what `last.pth` holds. UsageError RESUME_CONFLICT when the settings differ."""
        differing = _conflicts(content["settings"], self.settings.record())
        if differing:
            raise UsageError("RESUME_CONFLICT", f"the interrupted run had other settings ({', '.join(differing)})",
                             "repeat its settings, or start anew with --restart", file=self.workspace.relative(self.workspace.last_model))
        name = self.workspace.relative(self.workspace.last_model)
        checkpoints.load_weights(self.network, content["model"], file=name)
        self.averaged = {key: value.to(self.machine.device) for key, value in content["averaged"].items()}
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.epoch, self.steps, self.best, self.best_epoch = content["epoch"], content["steps"], content["best"], content["best_epoch"]
        self.stale, self.rate_scale, self.largest_component = content["stale"], content["rate_scale"], content["largest_component"]
        self.budget = Budget(self.settings.train, spent_seconds=content["seconds"])
        self.budget.validation_seconds, self.budget.validation_total = content["validation_seconds"], content["validation_total"]
        self.history = json.loads(content["history"])
        if content["threads"] != torch.get_num_threads():
            self.callbacks.note(f"NOTE THREADS_CHANGED: {content['threads']} threads before, {torch.get_num_threads()} now; the weights will differ in the last bits")


def counter_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(artifacts.canonical_hash(list(numbers))[:15], 16)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _optimizer(network: torch.nn.Module, settings: Settings) -> torch.optim.Optimizer:
    train = settings.train
    # Norms and biases are not decayed: shrinking them towards zero has no regularising meaning.
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.learning_rate, momentum=0.99, nesterov=True)
    return torch.optim.AdamW(groups, lr=train.learning_rate)


def _empty_history(settings: Settings, identity: Identity, network: torch.nn.Module) -> dict[str, Any]:
    names = identity.structures
    series: dict[str, Any] = {key: [] for key in ("epochs", "train_loss", "val_loss", "val_mean_dice", "learning_rate", "epoch_seconds", "resource_usage")}
    return {"version": 1, "model": identity.arch["name"], "structures": names, **series, "train_dice": {name: [] for name in names},
            "val_dice": {name: [] for name in names}, "val_hausdorff": {name: [] for name in names}, "best_epoch": 0, "best_val_dice": None,
            "parameters": sum(p.numel() for p in network.parameters()), "steps": 0, "seconds": 0.0, "settings": settings.record(),
            "synthetic": identity.synthetic, "manifest_hash": identity.manifest_hash, "stopped": "running"}


MAY_CHANGE = {"train.epochs", "train.minutes", "train.patience", "train.validations"}  # a longer run is the same run


def _conflicts(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [f"{section}.{key} was {before[section].get(key)}, is {value}" for section in ("model", "train") for key, value in now[section].items()
            if f"{section}.{key}" not in MAY_CHANGE and before[section].get(key) != value]
