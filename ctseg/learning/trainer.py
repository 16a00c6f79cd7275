"""The training loop: steps, averaged weights, whole-volume validation, checkpoints that resume bit-exactly.

Everything random is drawn from counters (see `dataset`), so a checkpoint needs no generator state: on a CPU
with the same number of threads, a run that was killed, or stopped in the middle of an epoch, ends in the same
weights as one that was not (`--epochs`; with `--minutes` the clock decides how many steps fit).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ctseg import artifacts
from ctseg.config import Settings
from ctseg.errors import DivergedError
from ctseg.geometry.probabilities import Probabilities
from ctseg.laterality import Sides
from ctseg.learning import tubes
from ctseg.learning.dataset import Batch, PatchSampler, TrainingCase
from ctseg.learning.losses import objective
from ctseg.learning.optimizer import learning_rate_factor, make_optimizer, require_fitting_state
from ctseg.learning.schedule import Budget
from ctseg.learning.training_state import (
    Epoch,
    Listener,
    Provenance,
    Stopped,
    TrainingState,
    counter_seed,
    empty_history,
    on_cpu,
)
from ctseg.learning.validation import Validation
from ctseg.prediction.largest_component import in_one_piece
from ctseg.prediction.sliding_windows import Windows, predict_probabilities
from ctseg.runtime import checkpoint_schema, checkpoints, cpu_bfloat16, hardware
from ctseg.scoring.summary import mean

REFERENCES_LOOKED_AT = 50  # training cases that tell whether a structure is one piece
HALVE_AFTER = 3  # plateau schedule: validations without a better Dice before the learning rate is halved
SKIPS_ALLOWED = 8  # steps in a row whose gradient is not finite; a single one may be chance
RUNNING_MEAN = 0.9  # smoothing of the training Dice per structure, which is NaN where a batch lacks it


class Trainer:
    """One training run in a workspace. Call `resume` (optional), then `fit`."""

    def __init__(
        self,
        network: torch.nn.Module,
        cases: Sequence[TrainingCase],
        validation: Sequence[TrainingCase],
        *,
        settings: Settings,
        provenance: Provenance,
        machine: hardware.Machine,
        workspace: artifacts.Workspace,
        listener: Listener,
    ):
        self.settings, self.provenance, self.machine = settings, provenance, machine
        self.workspace, self.listener, self.names = workspace, listener, provenance.structures
        self.network = machine.place(network)
        several = (part for part in self.network.modules() if hasattr(part, "n_train"))  # that run passes
        self.multipass: Any = next(several, None)
        self.dice_of_passes: list[float | None] = []  # of the latest validation
        self.averaged = {key: value.detach().clone() for key, value in self.network.state_dict().items()}
        self.optimizer = make_optimizer(self.network, settings.train)
        self.scaler = torch.amp.GradScaler("cuda", enabled=machine.precision == "fp16")
        self.patch_size = settings.train.fixed_patch()
        self.sampler = PatchSampler(cases, self.names, settings.train, Sides.of(provenance.sides, self.names))
        self.validation = list(validation)
        self.windows = Windows(len(self.names) + 1, self.patch_size, overlap=0.25)
        self.budget = Budget(settings.train)
        self.state = TrainingState(self.new_epoch())
        self.history = empty_history(settings, provenance, network)
        self.told_float32_layers = False

    # ---- the loop ----

    def fit(self) -> dict[str, Any]:
        """Train until the budget ends and return the history.

        Writes best_model.pth, last.pth and the history.

        Raises Stopped when that was asked for, with the state saved in last.pth, and DivergedError; `stopped`
        of the history says which.
        """
        try:
            stopped = self.run_epochs()
        except Stopped:
            self.end("interrupted")
            self.save_last()
            raise
        except DivergedError:
            self.end("diverged")
            raise
        self.end(stopped)
        return self.history

    def end(self, stopped: str) -> None:
        """Write into the history what ended the run."""
        self.history |= {"stopped": stopped, **self.costs()}
        artifacts.write_json(self.workspace.history, self.history)

    def run_epochs(self) -> str:
        """Train and validate until the budget ends; return what ended it."""
        state, train = self.state, self.settings.train
        progress = self.budget.progress(state.epoch, 0)
        # asked once per epoch: a clock that runs out between two questions would skip the last validation
        while progress < 1 or state.partial.steps:
            self.run_epoch()
            progress = self.budget.progress(state.epoch + 1, 0)
            due = self.validation and self.budget.validation_due(state.epoch, progress)
            validation = self.validate() if due else None
            state.epoch += 1
            self.record(validation)
            state.partial = self.new_epoch()
            self.keep_if_best(validation)
            self.save_last()
            if train.patience and state.stale >= train.patience:
                return "patience"
        if not state.best_epoch:  # the budget was cut to less than what is trained
            self.keep_if_best(self.validate() if self.validation else None)
        return "minutes" if self.budget.timed else "epochs"

    def run_epoch(self) -> None:
        """Do the steps of an epoch that are left; it ends early when a timed budget does."""
        self.network.train()
        number, epoch, last = self.state.epoch, self.state.partial, self.settings.train.steps_per_epoch
        # A GPU waits for patches, so threads prepare them; on a CPU they would fight the network for cores.
        threads = 0 if self.machine.device.type == "cpu" else 4
        batches = self.sampler.batches(number, epoch.steps, last, threads=threads)
        for step, batch in enumerate(batches, start=epoch.steps):
            progress = self.budget.progress(number, step)
            if progress >= 1 and epoch.steps:
                break
            loss, batch_dice = self.train_step(batch, progress)
            epoch.total, epoch.steps = epoch.total + loss, step + 1
            epoch.rate = self.optimizer.param_groups[0]["lr"]
            self.tell_float32_layers()
            for index, value in enumerate(batch_dice.tolist()):
                if value == value:  # not NaN: the batch has the structure
                    old = epoch.dice[index]
                    old = value if old is None else RUNNING_MEAN * old + (1 - RUNNING_MEAN) * value
                    epoch.dice[index] = old
            self.listener.step(number + 1, step + 1, epoch.total / epoch.steps, mean(epoch.dice), progress)
            self.stop_if_asked()
        if not all(bool(torch.isfinite(p).all()) for p in self.network.parameters()):
            raise self.diverged(f"weights became NaN or infinite in epoch {number + 1}")

    def new_epoch(self) -> Epoch:
        """An epoch that begins now."""
        return Epoch(self.budget.seconds(), [None] * len(self.names))

    def stop_if_asked(self) -> None:
        """Raise Stopped if the listener wants it."""
        if self.listener.stop():
            raise Stopped

    def train_step(self, batch: Batch, progress: float) -> tuple[float, torch.Tensor]:
        """(loss, soft Dice per structure) of one batch, from which the network has learned."""
        train, state = self.settings.train, self.state
        factor = learning_rate_factor(train.schedule, progress, train.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = train.learning_rate * state.rate_scale * factor
        if self.multipass is not None:
            # one pass as often as two; before the first finds anything, a second has nothing to mend
            state.later_passes = progress >= train.first_pass_fraction
            drawn = 1 + counter_seed(train.seed, 3, state.steps) % int(self.multipass.n_train)
            self.multipass.draw_passes = drawn if state.later_passes else 1
        # for what networks draw themselves: the corrupted context of passes
        torch.manual_seed(counter_seed(train.seed, 4, state.steps))
        image = self.machine.image
        with self.machine.autocast():
            inputs = {name: image(value) for name, value in batch.inputs.items()}
            outputs = self.network(image(batch.image), **inputs)
        loss, dice = objective(outputs, batch, train, progress, self.machine.device)
        value = float(loss.detach())
        if not value < float("inf"):  # NaN or infinity
            raise self.diverged(f"the loss became {value} at step {state.steps + 1}", batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.change_weights(batch)
        return value, dice.cpu()

    def change_weights(self, batch: Batch) -> None:
        """Change the weights by their gradients, or leave the step out where these are not finite.

        Clipping would turn one infinite gradient into NaN everywhere. In float16 such steps are normal until
        the scale of the loss has come down, so only those in a row at a scale of 1 count against the run
        there.
        """
        state = self.state
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.train.gradient_clip)
        finite = bool(torch.isfinite(norm))
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if finite:
            state.steps += 1
            state.skipped_in_a_row = 0
            self.average_weights()
            return
        self.history["skipped_steps"] += 1
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row >= SKIPS_ALLOWED and self.scaler.get_scale() <= 1:
            cause = f"{state.skipped_in_a_row} gradients in a row were not finite after step {state.steps}"
            raise self.diverged(cause, batch)

    def diverged(self, what: str, batch: Batch | None = None) -> DivergedError:
        """The error that stops the run: what happened, at which size and precision, remedies in order."""
        size, precision = " x ".join(map(str, self.patch_size)), self.machine.precision
        where = f", with patches of {', '.join(batch.case_ids)}" if batch is not None else ""
        other = "" if precision == "fp32" else "--set train.precision=fp32; if that does not help, "
        return DivergedError(
            "DIVERGED",
            f"{what}{where} ({size} voxels, {precision})",
            f"train anew (--restart) with {other}a smaller train.learning_rate; then look at those scans. "
            "The last good checkpoint is kept",
        )

    def tell_float32_layers(self) -> None:
        """Say once that some convolutions do not run in bfloat16, and why."""
        number = 0 if self.told_float32_layers else cpu_bfloat16.count_in_float32(self.network)
        self.told_float32_layers = True
        if number:
            size = " x ".join(map(str, self.patch_size))
            self.listener.note(
                f"NOTE BF16_LAYERS: {number} convolutions run in float32: this processor computes them "
                f"wrongly in bfloat16 where little is left of a patch of {size} (found by trial)"
            )

    @torch.no_grad()
    def average_weights(self) -> None:
        """Exponential moving average of the weights, with a short memory at the start."""
        steps = self.state.steps
        decay = min(self.settings.train.ema_decay, (1 + steps) / (10 + steps))
        for key, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.averaged[key].lerp_(value, 1 - decay)
            else:
                self.averaged[key].copy_(value)

    # ---- validation ----

    def validate(self) -> Validation:
        """Predict the validation scans with the averaged weights and score them on their canvases."""
        started = time.monotonic()
        current = {key: value.clone() for key, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.averaged)
        try:
            result = self.score_passes()
            if self.sampler.by_tubes:
                self.look_for_missed()
        finally:
            self.network.load_state_dict(current)
            self.network.train()
        self.budget.note_validation(time.monotonic() - started)
        return result

    def score_passes(self) -> Validation:
        """Scores of the best number of passes, the fewest where equal; other networks have one.

        That number stays with the averaged weights.
        """
        most = self.multipass.n_infer if self.multipass is not None and self.state.later_passes else 1
        if self.multipass is not None:
            self.multipass.pass_limit.fill_(most)
        by_pass = [Validation(self.names) for _ in range(most)]
        for case in self.validation:
            found: dict[int, Probabilities] = {}
            last = predict_probabilities(
                self.network, case.seen, self.windows, self.machine, least=0.0, on_pass=found.__setitem__
            )
            for number, validation in enumerate(by_pass):
                # a network of one pass tells none, and passes that agree end early
                validation.add(case, torch.from_numpy(found.get(number, last).dense()))
            self.stop_if_asked()
        self.dice_of_passes = [mean(validation.mean_dice()) for validation in by_pass]
        best = max(range(most), key=lambda number: self.dice_of_passes[number] or 0.0)
        for key, value in self.averaged.items():
            if key.endswith("pass_limit"):
                value.fill_(best + 1)
        return by_pass[best]

    def look_for_missed(self) -> None:
        """Predict one training case, each time another one, and remember which parts of its tubes were
        missed.
        """
        cases = [case for case in self.sampler.cases if case.tubes is not None]
        number = len(self.state.missed)
        case = cases[number % len(cases)]
        found = predict_probabilities(self.network, case.seen, self.windows, self.machine).label()
        rng = np.random.default_rng([self.settings.train.seed, 2, number])
        skeleton = case.tubes.skeleton.numpy()  # type: ignore[union-attr]
        points = tubes.missed_points(skeleton, found, rng=rng)
        self.state.missed.append((case.case_id, torch.from_numpy(points)))
        self.sampler.remember_missed(case.case_id, points)

    @functools.cached_property
    def in_one_piece(self) -> list[bool]:
        """Of each structure, whether the references of the first training cases show it in one piece."""
        labels = (case.label.numpy() for case in self.sampler.cases[:REFERENCES_LOOKED_AT])
        return in_one_piece(labels, len(self.names))

    def keep_if_best(self, validation: Validation | None) -> None:
        """Write best_model.pth where a validation is the best one, or nothing can tell which is."""
        state = self.state
        dice = mean(validation.mean_dice()) if validation is not None else None
        if validation is not None and dice is not None and (state.best is None or dice > state.best):
            keeps = zip(self.names, validation.keeps_largest(self.in_one_piece))
            state.largest_component = [name for name, kept in keeps if kept]
            state.best, state.best_epoch, state.stale = dice, state.epoch, 0
            if self.multipass is not None:
                self.history["val_dice_of_passes"] = self.dice_of_passes
            self.save_best()
            self.listener.best(state.epoch, dice)
        elif validation is not None:
            state.stale += 1
            if state.best is None:  # no validation case shows any structure
                self.save_best()
            if self.settings.train.schedule == "plateau" and state.stale % HALVE_AFTER == 0:
                state.rate_scale /= 2
        elif not self.validation:
            self.save_best()

    # ---- files ----

    def record(self, validation: Validation | None) -> None:
        """Write an epoch into the history and tell it."""
        history, state, epoch = self.history, self.state, self.state.partial
        nothing = [None] * len(self.names)
        scores = validation.mean_dice() if validation else nothing
        row = {
            "epochs": state.epoch,
            "train_loss": epoch.total / max(1, epoch.steps),
            "val_loss": mean(validation.losses) if validation else None,
            "val_mean_dice": mean(scores),
            "learning_rate": epoch.rate,
            "epoch_seconds": round(seconds := self.budget.seconds() - epoch.begun, 2),
            "resource_usage": hardware.usage(self.machine.device),
        }
        for key, value in row.items():
            history[key].append(value)
        hausdorff = validation.mean_hd95_mm() if validation else nothing
        for key, values in (("train_dice", epoch.dice), ("val_dice", scores), ("val_hausdorff", hausdorff)):
            for name, value in zip(self.names, values):
                history[key][name].append(value)
        history |= {"best_epoch": state.best_epoch, "best_val_dice": state.best}
        self.listener.epoch(
            {
                "epoch": state.epoch,
                "loss": row["train_loss"],
                "dice": mean(epoch.dice),
                "validation": row["val_mean_dice"],
                "rate": epoch.rate,
                "seconds": seconds,
            }
        )

    def costs(self) -> dict[str, Any]:
        """Time, steps and memory of the run so far."""
        seconds, steps = self.budget.seconds(), self.state.steps
        return {
            "seconds": round(seconds, 1),
            "steps": steps,
            "step_seconds": round((seconds - self.budget.validation_total) / max(1, steps), 4),
            "peak_memory_gb": hardware.peak_memory_gb(self.machine.device),
        }

    def content(self, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
        """What every checkpoint holds."""
        state = self.state
        return {
            "created_by": "ctseg",
            **vars(self.provenance),
            "settings": self.settings.record(),
            "epoch": state.epoch,
            "steps": state.steps,
            "best": state.best,
            "largest_component": state.largest_component,
            "threads": torch.get_num_threads(),
            "precision": self.machine.precision,
            "model": on_cpu(weights),
        }

    def save_best(self) -> None:
        """Write best_model.pth from the averaged weights as they are."""
        self.state.best_epoch = self.state.epoch
        checkpoints.save(self.workspace.best_model, self.content(self.averaged))

    def save_last(self) -> None:
        """Write last.pth, all that it takes to go on, and the history."""
        state = self.state
        self.history |= {"best_epoch": state.best_epoch, "best_val_dice": state.best, **self.costs()}
        content = self.content(self.network.state_dict()) | {
            **dataclasses.asdict(state),
            **self.budget.record(),
            "averaged": on_cpu(self.averaged),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": json.dumps(self.history, allow_nan=False),
        }
        checkpoints.rotate(self.workspace.last_model)
        checkpoints.save(self.workspace.last_model, content)
        artifacts.write_json(self.workspace.history, self.history)

    def resume(self, content: dict[str, Any]) -> None:
        """Continue from what `last.pth` holds, which must be of the same settings; IntegrityError where it is
        not.
        """
        file = self.workspace.relative(self.workspace.last_model)
        history = checkpoint_schema.check_training(content, file)
        checkpoints.load_weights(self.network, content["model"], file=file)
        self.averaged = {key: value.to(self.machine.device) for key, value in content["averaged"].items()}
        optimizer_state = content["optimizer"]["state"]
        require_fitting_state(self.optimizer, optimizer_state, content["steps"], file)
        # momenta; rates and decays stay those of the settings
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": optimizer_state})
        if self.scaler.is_enabled() and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        self.state = TrainingState.of(content)
        shapes = {case.case_id: torch.tensor(case.label.shape) for case in self.sampler.cases}
        for case_id, points in self.state.missed:
            if case_id not in shapes or not bool(((points >= 0) & (points < shapes[case_id])).all()):
                raise checkpoints.mismatch(f"it names missed places that case {case_id} does not have", file)
            self.sampler.remember_missed(case_id, points.numpy())
        self.budget = Budget(self.settings.train, **{key: content[key] for key in self.budget.record()})
        self.history |= history | {"stopped": "running"}
        for key, now in (("threads", torch.get_num_threads()), ("precision", self.machine.precision)):
            if content[key] != now:
                self.listener.note(
                    f"NOTE {key.upper()}_CHANGED: {content[key]} {key} before, {now} now; "
                    "the weights will differ in the last bits"
                )

    def replace_best(self) -> None:
        """Write best_model.pth anew when the best of an earlier run was lost."""
        self.state.best = None
        self.save_best()
        self.save_last()
