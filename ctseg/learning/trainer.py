"""The training loop: steps, averaged weights, whole-volume validation, checkpoints that resume bit-exactly.

Everything random is drawn from counters (see `dataset`), so a checkpoint needs no generator state: on a CPU with
the same number of threads, a run that was killed, or stopped in the middle of an epoch, ends in the same weights
as one that was not (`--epochs`; with `--minutes` the clock decides how many steps fit).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ctseg import artifacts
from ctseg.config import Settings
from ctseg.errors import DivergedError
from ctseg.laterality import Sides
from ctseg.learning import tubes
from ctseg.learning.dataset import Batch, PatchSampler, TrainingCase
from ctseg.learning.objective import objective
from ctseg.learning.schedule import Budget, learning_rate_factor
from ctseg.learning.validation import Validation
from ctseg.prediction.largest_component import in_one_piece
from ctseg.prediction.sliding_windows import Windows, predict_canvas
from ctseg.runtime import checkpoint_schema, checkpoints, cpu_bfloat16, hardware
from ctseg.scoring.summary import mean

REFERENCES_LOOKED_AT = 50  # training cases that tell whether a structure is one piece
HALVE_AFTER = 3  # plateau schedule: validations without a better Dice before the learning rate is halved
SKIPS_ALLOWED = 8  # steps in a row whose gradient is not finite; a single one may be chance
RUNNING_MEAN = 0.9  # smoothing of the training Dice per structure, which is NaN where a batch lacks it


@dataclasses.dataclass
class Callbacks:
    """How the trainer tells what happens; the script decides how it looks."""

    step: Callable[[int, int, float, float | None, float], None]  # epoch, step, loss, Dice, progress
    epoch: Callable[[dict[str, Any]], None]
    best: Callable[[int, float], None]
    note: Callable[[str], None]
    # asked after every step and every validation scan: whether to save and end
    stop: Callable[[], bool] = lambda: False


class Stopped(Exception):
    """The caller asked to stop; the state is saved."""


@dataclasses.dataclass
class _Epoch:
    """An epoch as far as it has come. begun: seconds of training before it; total: sum of the losses; dice:
    running soft Dice per structure.
    """

    begun: float
    dice: list[float | None]
    steps: int = 0
    total: float = 0.0
    rate: float = 0.0


@dataclasses.dataclass
class Identity:
    """What a checkpoint says about where it comes from."""

    arch: dict[str, Any]
    structures: list[str]
    preprocess: dict[str, Any]
    manifest_hash: str
    splits_hash: str
    synthetic: bool
    guide: dict[str, Any] | None = None  # organs and source of the guide that the network takes
    locator: dict[str, Any] | None = None  # arch, weights and patch size of the locator of the roi grid
    sides: dict[str, Any] | None = None  # of `laterality.Sides.record`; None: the names decide


class Trainer:
    """One training run in a workspace. Call `resume` (optional), then `fit`."""

    def __init__(
        self,
        network: torch.nn.Module,
        cases: Sequence[TrainingCase],
        validation: Sequence[TrainingCase],
        *,
        settings: Settings,
        identity: Identity,
        machine: hardware.Machine,
        workspace: artifacts.Workspace,
        callbacks: Callbacks,
    ):
        self.settings, self.identity, self.machine, self.workspace, self.callbacks = (
            settings,
            identity,
            machine,
            workspace,
            callbacks,
        )
        train = settings.train
        self.network = machine.place(network)
        self.multipass: Any = next(
            (part for part in self.network.modules() if hasattr(part, "n_train")), None
        )
        self.later_passes = False  # whether passes after the first have begun to learn
        self.dice_of_passes: list[float | None] = []  # of the latest validation
        self.averaged = {key: value.detach().clone() for key, value in self.network.state_dict().items()}
        self.optimizer = _optimizer(self.network, settings)
        self.scaler = torch.amp.GradScaler("cuda", enabled=machine.precision == "fp16")
        self.patch_size = train.fixed_patch()
        self.sampler = PatchSampler(
            cases, identity.structures, train, Sides.of(identity.sides, identity.structures)
        )
        self.validation = list(validation)
        self.windows = Windows(len(identity.structures) + 1, self.patch_size, overlap=0.25)
        self.epoch = 0  # epochs finished
        self.steps = 0  # optimiser steps done
        self.skipped_in_a_row = (
            0  # steps left out since the last one done, because their gradient was not finite
        )
        self.best: float | None = None
        self.best_epoch = 0
        self.stale = 0  # validations since the best one
        self.rate_scale = 1.0  # plateau schedule
        self.missed: list[
            tuple[str, torch.Tensor]
        ] = []  # case and voxels of tubes that were missed, in the order of looking
        self.largest_component: list[str] = []  # structures of which only the largest component is kept
        self.budget = Budget(train)
        self.partial = self._new_epoch()
        self.history = _empty_history(settings, identity, self.network)
        self.told_float32_layers = False

    # ---- the loop ----

    def fit(self) -> dict[str, Any]:
        """Train until the budget ends and return the history. Writes best_model.pth, last.pth and the
        history.

        Raises Stopped when that was asked for, with the state saved in last.pth, and DivergedError; `stopped`
        of the history says which.
        """
        try:
            stopped = self._run_epochs()
        except Stopped:
            self._end("interrupted")
            self._save_last()
            raise
        except DivergedError:
            self._end("diverged")
            raise
        self._end(stopped)
        return self.history

    def _end(self, stopped: str) -> None:
        self.history |= {"stopped": stopped, **self._costs()}
        artifacts.write_json(self.workspace.history, self.history)

    def _run_epochs(self) -> str:
        """Train and validate until the budget ends; return what ended it."""
        progress = self.budget.progress(self.epoch, 0)
        # asked once per epoch: a clock that runs out between two questions would skip the last validation
        while progress < 1 or self.partial.steps:
            self._run_epoch()
            progress = self.budget.progress(self.epoch + 1, 0)
            validation = (
                self._validate()
                if self.validation and self.budget.validation_due(self.epoch, progress)
                else None
            )
            self.epoch += 1
            self._record(validation)
            self.partial = self._new_epoch()
            if validation is not None:
                self._keep_if_best(validation)
            elif not self.validation:
                self._save_best()
            self._save_last()
            if self.settings.train.patience and self.stale >= self.settings.train.patience:
                return "patience"
        if not self.best_epoch:  # the budget was cut to less than what is trained
            self._keep_if_best(self._validate()) if self.validation else self._save_best()
        return "minutes" if self.budget.timed else "epochs"

    def _run_epoch(self) -> None:
        """Do the steps of an epoch that are left; it ends early when a timed budget does."""
        self.network.train()
        epoch, steps = self.partial, self.settings.train.steps_per_epoch
        # A GPU waits for patches, so threads prepare them. On a CPU they would fight the network for its cores.
        threads = 0 if self.machine.device.type == "cpu" else 4
        for step, batch in enumerate(
            self.sampler.batches(self.epoch, epoch.steps, steps, threads=threads), start=epoch.steps
        ):
            progress = self.budget.progress(self.epoch, step)
            if progress >= 1 and epoch.steps:
                break
            loss, batch_dice = self._step(batch, progress)
            epoch.total, epoch.steps = epoch.total + loss, step + 1
            epoch.rate = self.optimizer.param_groups[0]["lr"]
            self._tell_float32_layers()
            for index, value in enumerate(batch_dice.tolist()):
                if value == value:  # not NaN: the batch has the structure
                    old = epoch.dice[index]
                    epoch.dice[index] = (
                        value if old is None else RUNNING_MEAN * old + (1 - RUNNING_MEAN) * value
                    )
            self.callbacks.step(
                self.epoch + 1, step + 1, epoch.total / epoch.steps, mean(epoch.dice), progress
            )
            self._stop_if_asked()
        if not all(bool(torch.isfinite(p).all()) for p in self.network.parameters()):
            raise self._diverged(f"weights became NaN or infinite in epoch {self.epoch + 1}")

    def _new_epoch(self) -> _Epoch:
        return _Epoch(self.budget.seconds(), [None] * len(self.identity.structures))

    def _stop_if_asked(self) -> None:
        if self.callbacks.stop():
            raise Stopped

    def _step(self, batch: Batch, progress: float) -> tuple[float, torch.Tensor]:
        train = self.settings.train
        rate = (
            train.learning_rate
            * self.rate_scale
            * learning_rate_factor(train.schedule, progress, train.warmup_fraction)
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if (
            self.multipass is not None
        ):  # one pass as often as two; before the first finds anything, a second has nothing to mend
            drawn = 1 + counter_seed(train.seed, 3, self.steps) % int(self.multipass.n_train)
            self.multipass.draw_passes = drawn if progress >= train.first_pass_fraction else 1
            self.later_passes = progress >= train.first_pass_fraction
        # for what networks draw themselves: the corrupted context of passes
        torch.manual_seed(counter_seed(train.seed, 4, self.steps))
        with self.machine.autocast():
            outputs = self.network(
                self.machine.image(batch.image),
                **{name: self.machine.image(value) for name, value in batch.inputs.items()},
            )
        loss, dice = objective(outputs, batch, train, progress, self.machine.device)
        value = float(loss.detach())
        if not value < float("inf"):  # NaN or infinity
            raise self._diverged(f"the loss became {value} at step {self.steps + 1}", batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self._learn(batch)
        return value, dice.cpu()

    def _learn(self, batch: Batch) -> None:
        """Change the weights by their gradients, or leave the step out where these are not finite.

        Clipping would turn one infinite gradient into NaN everywhere. In float16 such steps are normal until the scale of
        the loss has come down, so only those in a row at a scale of 1 count against the run there.
        """
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.train.gradient_clip)
        finite = bool(torch.isfinite(norm))
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if finite:
            self.steps += 1
            self.skipped_in_a_row = 0
            self._average()
            return
        self.history["skipped_steps"] += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= SKIPS_ALLOWED and self.scaler.get_scale() <= 1:
            raise self._diverged(
                f"{self.skipped_in_a_row} gradients in a row were not finite after step {self.steps}", batch
            )

    def _diverged(self, what: str, batch: Batch | None = None) -> DivergedError:
        """The error that stops the run: what happened, at which size and precision, and remedies in the order to try them."""
        size = " x ".join(str(n) for n in self.patch_size)
        where = f", with patches of {', '.join(batch.case_ids)}" if batch is not None else ""
        other = (
            "" if self.machine.precision == "fp32" else "--set train.precision=fp32; if that does not help, "
        )
        return DivergedError(
            "DIVERGED",
            f"{what}{where} ({size} voxels, {self.machine.precision})",
            f"train anew (--restart) with {other}a smaller train.learning_rate; then look at those scans. "
            "The last good checkpoint is kept",
        )

    def _tell_float32_layers(self) -> None:
        """Say once that some convolutions do not run in bfloat16, and why."""
        if self.told_float32_layers:
            return
        if number := cpu_bfloat16.count_in_float32(self.network):
            size = " x ".join(map(str, self.patch_size))
            self.callbacks.note(
                f"NOTE BF16_LAYERS: {number} convolutions run in float32: this processor computes them "
                f"wrongly in bfloat16 where little is left of a patch of {size} (found by trial)"
            )
        self.told_float32_layers = True

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
        try:
            result = self._score_passes()
            if self.sampler.by_tubes:
                self._look_for_missed()
        finally:
            self.network.load_state_dict(current)
            self.network.train()
        self.budget.note_validation(time.monotonic() - started)
        return result

    def _score_passes(self) -> Validation:
        """Scores of the best number of passes, the fewest where equal; that number stays with the averaged weights. Other networks have one."""
        most = self.multipass.n_infer if self.multipass is not None and self.later_passes else 1
        if self.multipass is not None:
            self.multipass.pass_limit.fill_(most)
        by_pass = [Validation(self.identity.structures) for _ in range(most)]
        for index, case in enumerate(self.validation):

            def score(number: int, probabilities: torch.Tensor, case: TrainingCase = case) -> None:
                by_pass[number].add(case, probabilities)

            last = predict_canvas(self.network, case.sight(), self.windows, self.machine, on_pass=score)
            for validation in by_pass:
                if (
                    len(validation.losses) == index
                ):  # a network of one pass tells none, and passes that agree end early
                    validation.add(case, last)
            self._stop_if_asked()
        self.dice_of_passes = [mean(validation.mean_dice()) for validation in by_pass]
        best = max(range(most), key=lambda number: self.dice_of_passes[number] or 0.0)
        for key, value in self.averaged.items():
            if key.endswith("pass_limit"):
                value.fill_(best + 1)
        return by_pass[best]

    def _look_for_missed(self) -> None:
        """Predict one training case, each time another one, and remember the parts of its tubes that were missed: patches go there."""
        cases = [(case, case.tubes.skeleton.numpy()) for case in self.sampler.cases if case.tubes is not None]
        case, skeleton = cases[len(self.missed) % len(cases)]
        prediction = (
            predict_canvas(self.network, case.sight(), self.windows, self.machine).argmax(0).to(torch.uint8)
        )
        rng = np.random.default_rng([self.settings.train.seed, 2, len(self.missed)])
        points = tubes.missed_points(skeleton, prediction.numpy(), rng=rng)
        self._remember_missed(case.case_id, torch.from_numpy(points))

    def _remember_missed(self, case_id: str, points: torch.Tensor) -> None:
        self.missed.append((case_id, points))
        for case in self.sampler.cases:
            if case.case_id == case_id and case.tubes is not None:
                case.tubes.points["missed"] = points.numpy()

    @functools.cached_property
    def _in_one_piece(self) -> list[bool]:
        """Of each structure, whether the references of the first REFERENCES_LOOKED_AT training cases show it in one piece."""
        return in_one_piece(
            (case.label.numpy() for case in self.sampler.cases[:REFERENCES_LOOKED_AT]),
            len(self.identity.structures),
        )

    def _keep_if_best(self, validation: Validation) -> None:
        dice = mean(validation.mean_dice())
        if dice is not None and (self.best is None or dice > self.best):
            self.largest_component = [
                name
                for name, keeps in zip(self.identity.structures, validation.keeps_largest(self._in_one_piece))
                if keeps
            ]
            self.best, self.best_epoch, self.stale = dice, self.epoch, 0
            if self.multipass is not None:
                self.history["val_dice_of_passes"] = self.dice_of_passes
            self._save_best()
            self.callbacks.best(self.epoch, dice)
            return
        self.stale += 1
        if self.best is None:
            self._save_best()  # no validation case shows any structure: the latest weights are the best known
        if self.settings.train.schedule == "plateau" and self.stale % HALVE_AFTER == 0:
            self.rate_scale /= 2

    # ---- files ----

    def _record(self, validation: Validation | None) -> None:
        history, names, epoch = self.history, self.identity.structures, self.partial
        loss, seconds = epoch.total / max(1, epoch.steps), self.budget.seconds() - epoch.begun
        scores = validation.mean_dice() if validation else [None] * len(names)
        distances = validation.mean_hd95_mm() if validation else [None] * len(names)
        history["epochs"].append(self.epoch)
        history["train_loss"].append(loss)
        history["val_loss"].append(mean(validation.losses) if validation else None)
        history["learning_rate"].append(epoch.rate)
        history["epoch_seconds"].append(round(seconds, 2))
        history["resource_usage"].append(hardware.usage(self.machine.device))
        for index, name in enumerate(names):
            history["train_dice"][name].append(epoch.dice[index])
            history["val_dice"][name].append(scores[index])
            history["val_hausdorff"][name].append(distances[index])
        history["val_mean_dice"].append(mean(scores))
        history |= {"best_epoch": self.best_epoch, "best_val_dice": self.best}
        self.callbacks.epoch(
            {
                "epoch": self.epoch,
                "loss": loss,
                "dice": mean(epoch.dice),
                "validation": mean(scores),
                "rate": epoch.rate,
                "seconds": seconds,
            }
        )

    def _costs(self) -> dict[str, Any]:
        """Time, steps and memory of the run so far."""
        learning = self.budget.seconds() - self.budget.validation_total
        return {
            "seconds": round(self.budget.seconds(), 1),
            "steps": self.steps,
            "step_seconds": round(learning / max(1, self.steps), 4),
            "peak_memory_gb": hardware.peak_memory_gb(self.machine.device),
        }

    def _content(self, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
        identity = self.identity
        return {
            "created_by": "ctseg",
            "arch": identity.arch,
            "structures": identity.structures,
            "preprocess": identity.preprocess,
            "settings": self.settings.record(),
            "manifest_hash": identity.manifest_hash,
            "splits_hash": identity.splits_hash,
            "synthetic": identity.synthetic,
            "guide": identity.guide,
            "locator": identity.locator,
            "sides": identity.sides,
            "epoch": self.epoch,
            "steps": self.steps,
            "best": self.best,
            "largest_component": self.largest_component,
            "threads": torch.get_num_threads(),
            "precision": self.machine.precision,
            "model": {key: value.detach().cpu().clone() for key, value in weights.items()},
        }

    def _save_best(self) -> None:
        self.best_epoch = self.epoch
        checkpoints.save(self.workspace.best_model, self._content(self.averaged))

    def _save_last(self) -> None:
        self.history |= {"best_epoch": self.best_epoch, "best_val_dice": self.best, **self._costs()}
        content = self._content(self.network.state_dict()) | {
            "averaged": {key: value.detach().cpu().clone() for key, value in self.averaged.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped_in_a_row": self.skipped_in_a_row,
            "missed": self.missed,
            "best_epoch": self.best_epoch,
            "stale": self.stale,
            "rate_scale": self.rate_scale,
            "partial": dataclasses.asdict(self.partial),
            "later_passes": self.later_passes,
            "seconds": self.budget.seconds(),
            "validation_seconds": self.budget.validation_seconds,
            "validation_total": self.budget.validation_total,
            "history": json.dumps(self.history, allow_nan=False),
        }
        checkpoints.rotate(self.workspace.last_model)
        checkpoints.save(self.workspace.last_model, content)
        artifacts.write_json(self.workspace.history, self.history)

    def resume(self, content: dict[str, Any]) -> None:
        """Continue from what `last.pth` holds, which must be of the same settings. Raises IntegrityError for
        what does not fit.
        """
        file = self.workspace.relative(self.workspace.last_model)
        history = checkpoint_schema.check_training(content, file)
        checkpoints.load_weights(self.network, content["model"], file=file)
        self.averaged = {key: value.to(self.machine.device) for key, value in content["averaged"].items()}
        self._restore_optimizer(content["optimizer"]["state"], content["steps"], file)
        if self.scaler.is_enabled() and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        self.epoch, self.steps, self.best, self.best_epoch = (
            content["epoch"],
            content["steps"],
            content["best"],
            content["best_epoch"],
        )
        self.stale, self.rate_scale, self.largest_component = (
            content["stale"],
            content["rate_scale"],
            content["largest_component"],
        )
        self.skipped_in_a_row = content.get("skipped_in_a_row", 0)
        shapes = {case.case_id: torch.tensor(case.label.shape) for case in self.sampler.cases}
        for case_id, points in content.get("missed", []):
            if case_id not in shapes or not bool(((points >= 0) & (points < shapes[case_id])).all()):
                raise checkpoints.mismatch(f"it names missed places that case {case_id} does not have", file)
            self._remember_missed(case_id, points)
        self.budget = Budget(self.settings.train, spent_seconds=content["seconds"])
        self.budget.validation_seconds, self.budget.validation_total = (
            content["validation_seconds"],
            content["validation_total"],
        )
        self.partial = _Epoch(**content["partial"]) if content.get("partial") else self._new_epoch()
        self.later_passes = content.get("later_passes", False)
        self.history |= history | {"stopped": "running"}
        for key, now in (("threads", torch.get_num_threads()), ("precision", self.machine.precision)):
            if content.get(key, now) != now:
                self.callbacks.note(
                    f"NOTE {key.upper()}_CHANGED: {content[key]} {key} before, {now} now; "
                    "the weights will differ in the last bits"
                )

    def _restore_optimizer(self, state: dict[Any, Any], steps: int, file: str) -> None:
        """Take over momenta; rates and decays stay those of the settings."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        names = {"step", "exp_avg", "exp_avg_sq"}
        if self.settings.train.optimizer == "sgd":
            names = {"momentum_buffer"}

        def fits(number: Any, entry: Any) -> bool:
            if type(number) is not int or not 0 <= number < len(parameters):
                return False
            shapes = dict.fromkeys(names, parameters[number].shape) | (
                {"step": torch.Size()} if "step" in names else {}
            )
            return (
                isinstance(entry, dict)
                and entry.keys() == names
                and all(
                    isinstance(value, torch.Tensor) and value.shape == shapes[key]
                    for key, value in entry.items()
                )
            )

        if bool(state) != bool(steps) or not all(fits(number, entry) for number, entry in state.items()):
            raise checkpoints.mismatch(
                "the state of the optimizer is that of another network", file, "begin anew with --restart"
            )
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def replace_best(self) -> None:
        """Write best_model.pth from the averaged weights as they are: for when the best of an earlier run was
        lost.
        """
        self.best = None
        self._save_best()
        self._save_last()


def counter_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(artifacts.canonical_hash(list(numbers))[:15], 16)


def _optimizer(network: torch.nn.Module, settings: Settings) -> torch.optim.Optimizer:
    train = settings.train
    # Norms and biases are not decayed: shrinking them towards zero has no regularising meaning.
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": train.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.learning_rate, momentum=0.99, nesterov=True)
    return torch.optim.AdamW(groups, lr=train.learning_rate)


def _empty_history(settings: Settings, identity: Identity, network: torch.nn.Module) -> dict[str, Any]:
    names = identity.structures
    series: dict[str, Any] = {
        key: []
        for key in (
            "epochs",
            "train_loss",
            "val_loss",
            "val_mean_dice",
            "learning_rate",
            "epoch_seconds",
            "resource_usage",
        )
    }
    return {
        "version": 1,
        "model": identity.arch["name"],
        "structures": names,
        **series,
        "train_dice": {name: [] for name in names},
        "val_dice": {name: [] for name in names},
        "val_hausdorff": {name: [] for name in names},
        "best_epoch": 0,
        "best_val_dice": None,
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": 0,
        "skipped_steps": 0,
        "seconds": 0.0,
        "step_seconds": None,
        "peak_memory_gb": None,
        "settings": settings.record(),
        "synthetic": identity.synthetic,
        "manifest_hash": identity.manifest_hash,
        "stopped": "running",
    }


MAY_CHANGE = {
    "train.epochs",
    "train.minutes",
    "train.patience",
    "train.validations",
}  # a longer run is the same run


def conflicts(before: dict[str, Any], now: dict[str, Any], *, finished: bool) -> list[str]:
    """What differs between the recorded settings of two trainings so that one cannot be taken for the other,
    or, unless finished, go on from it.
    """
    return [
        f"{section}.{key} was {before.get(section, {}).get(key)}, is {value}"
        for section in ("model", "train")
        for key, value in now[section].items()
        if (finished or f"{section}.{key}" not in MAY_CHANGE) and before.get(section, {}).get(key) != value
    ]
