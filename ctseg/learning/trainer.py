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
from ctseg.learning.training_state import (
    Budget,
    Epoch,
    Plan,
    Stopped,
    TrainingState,
    copied,
    counter_seed,
    empty_history,
    on_cpu,
    read_history,
)
from ctseg.learning.validation import Validation
from ctseg.prediction.largest_component import in_one_piece
from ctseg.prediction.sliding_windows import Windows, predict_probabilities
from ctseg.runtime import checkpoints, cpu_bfloat16, hardware
from ctseg.scoring.summary import mean

REFERENCES_LOOKED_AT = 50  # training cases that tell whether a structure is one piece
HALVE_AFTER = 3  # plateau schedule: validations without a better Dice before the learning rate is halved
SKIPS_ALLOWED = 8  # steps in a row whose gradient is not finite; a single one may be chance
RUNNING_MEAN = 0.9  # smoothing of the training Dice per structure, which is NaN where a batch lacks it


class Trainer:
    """One training run in a workspace. Call `resume` (optional), then `fit`."""

    def __init__(self, network: torch.nn.Module, plan: Plan, settings: Settings, provenance: dict[str, Any]):
        self.settings, self.provenance, self.machine = settings, provenance, plan.machine
        self.workspace, self.listener, self.names = plan.workspace, plan.listener, provenance["structures"]
        self.network = plan.machine.place(network)
        several = (part for part in self.network.modules() if hasattr(part, "n_train"))  # that run passes
        self.multipass: Any = next(several, None)
        self.dice_of_passes: list[float | None] = []  # of the latest validation
        self.averaged = copied(self.network)
        self.optimizer = make_optimizer(self.network, settings.train)
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.machine.precision == "fp16")
        sides = Sides.of(provenance["sides"], self.names)
        self.sampler = PatchSampler(plan.training, self.names, settings.train, sides)
        self.validation = plan.validation
        self.patch_size = settings.train.fixed_patch()
        self.windows = Windows(len(self.names) + 1, self.patch_size, overlap=0.25)
        self.go_on_from(TrainingState(self.new_epoch(0.0)))
        self.history = empty_history(settings, provenance, network)

    def go_on_from(self, state: TrainingState) -> None:
        """Take a state as one's own; the clock goes on from it."""
        self.state, self.budget = state, Budget(self.settings.train, state)

    # ---- the loop ----

    def fit(self) -> dict[str, Any]:
        """Train until the budget ends and return the history.

        Writes best_model.pth, last.pth and the history.

        Raises Stopped when that was asked for, with the state saved in last.pth, and DivergedError; `stopped`
        of the history says which.
        """
        try:
            self.history["stopped"] = self.run_epochs()
        except Stopped:
            self.history["stopped"] = "interrupted"
            self.save_last()
            raise
        except DivergedError:
            self.history["stopped"] = "diverged"
            self.write_history()
            raise
        self.write_history()
        return self.history

    def run_epochs(self) -> str:
        """Train and validate until the budget ends; return what ended it."""
        state, budget, patience = self.state, self.budget, self.settings.train.patience
        progress = budget.progress()
        # asked once per epoch: a clock that runs out between two questions would skip the last validation
        while progress < 1 or state.partial.steps:
            self.run_epoch()
            if state.epoch == 0:
                self.tell_float32_layers()
            if budget.timed and self.validation and not state.validation_seconds:
                self.estimate_validation()
            progress = budget.progress()
            due = self.validation and budget.validation_due(progress)
            validation = self.validate() if due else None
            state.epoch += 1
            self.record(validation)
            state.partial = self.new_epoch(budget.seconds())
            self.keep_if_best(validation)
            self.save_last()
            if patience and state.stale >= patience:
                return "patience"
        if not state.best_epoch:  # the budget was cut to less than what is trained
            self.keep_if_best(self.validate() if self.validation else None)
        return "minutes" if budget.timed else "epochs"

    def run_epoch(self) -> None:
        """Do the steps of an epoch that are left; it ends early when a timed budget does."""
        self.network.train()
        number, epoch, last = self.state.epoch, self.state.partial, self.settings.train.steps_per_epoch
        # A GPU waits for patches, so threads prepare them; on a CPU they would fight the network for cores.
        threads = 0 if self.machine.device.type == "cpu" else 4
        for batch in self.sampler.batches(number, epoch.steps, last, threads=threads):
            progress = self.budget.progress()
            if progress >= 1 and epoch.steps:
                break
            loss, batch_dice = self.train_step(batch, progress)
            epoch.total += loss
            epoch.steps += 1
            epoch.rate = self.optimizer.param_groups[0]["lr"]
            for index, value in enumerate(batch_dice.tolist()):
                if value == value:  # not NaN: the batch has the structure
                    old = epoch.dice[index]
                    epoch.dice[index] = (
                        value if old is None else RUNNING_MEAN * old + (1 - RUNNING_MEAN) * value
                    )
            dice = mean(epoch.dice) or 0
            status = f"loss {epoch.total / epoch.steps:.3f} dice {dice:.3f} done {100 * progress:.0f} %"
            self.listener.step(number + 1, epoch.steps, status)
            self.stop_if_asked()
        if not all(bool(torch.isfinite(p).all()) for p in self.network.parameters()):
            raise self.diverged(f"weights became NaN or infinite in epoch {number + 1}")

    def tell_float32_layers(self) -> None:
        """Say that some convolutions do not run in bfloat16, and why."""
        if number := cpu_bfloat16.count_in_float32(self.network):
            size = " x ".join(map(str, self.patch_size))
            self.listener.note(
                f"NOTE BF16_LAYERS: {number} convolutions run in float32: this processor computes them "
                f"wrongly in bfloat16 where little is left of a patch of {size} (found by trial)"
            )

    def new_epoch(self, seconds: float) -> Epoch:
        """An epoch that begins after so many seconds of training."""
        return Epoch(seconds, [None] * len(self.names))

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

    @torch.no_grad()
    def average_weights(self) -> None:
        """Exponential moving average of the weights, with a short memory at the start."""
        steps = self.state.steps
        decay = min(self.settings.train.ema_decay, (1 + steps) / (10 + steps))
        now = self.network.state_dict()
        smooth = [key for key, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.averaged[key] for key in smooth], [now[key] for key in smooth], 1 - decay)
        for key in now.keys() - smooth:
            self.averaged[key].copy_(now[key])

    # ---- validation ----

    def validate(self) -> Validation:
        """Predict the validation scans with the averaged weights and score them on their canvases."""
        started = time.monotonic()
        current = copied(self.network)
        self.network.load_state_dict(self.averaged)
        try:
            result = self.score_passes()
            if self.sampler.by_tubes:
                self.look_for_missed()
        finally:
            self.network.load_state_dict(current)
            self.network.train()
        self.state.validation_seconds = time.monotonic() - started
        self.state.validation_total += self.state.validation_seconds
        return result

    def estimate_validation(self) -> None:
        """Tell from one scan how long a validation will take: the time to keep free at the end."""
        started, most = time.monotonic(), self.multipass.n_infer if self.multipass is not None else 1
        self.score_case(self.validation[0], [Validation(self.names) for _ in range(most)])
        seconds = time.monotonic() - started
        self.state.validation_seconds = seconds * len(self.validation)
        self.state.validation_total += seconds

    def score_passes(self) -> Validation:
        """Scores of the best number of passes, the fewest where equal; other networks have one.

        That number stays with the averaged weights.
        """
        most = self.multipass.n_infer if self.multipass is not None and self.state.later_passes else 1
        if self.multipass is not None:
            self.multipass.pass_limit.fill_(most)
        by_pass = [Validation(self.names) for _ in range(most)]
        for case in self.validation:
            self.score_case(case, by_pass)
            self.stop_if_asked()
        self.dice_of_passes = [mean(validation.mean_dice()) for validation in by_pass]
        best = max(range(most), key=lambda number: self.dice_of_passes[number] or 0.0)
        for key, value in self.averaged.items():
            if key.endswith("pass_limit"):
                value.fill_(best + 1)
        return by_pass[best]

    def score_case(self, case: TrainingCase, by_pass: list[Validation]) -> None:
        """Score each pass on a case as soon as it is there: all together would take several times the
        memory.
        """
        left = iter(by_pass)

        def score(number: int, found: Probabilities) -> None:
            next(left).add(case, torch.from_numpy(found.dense()))

        last = predict_probabilities(
            self.network, case.seen, self.windows, self.machine, least=0.0, on_pass=score
        )
        for validation in left:  # a network of one pass tells none, and passes that agree end early
            validation.add(case, torch.from_numpy(last.dense()))

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
        if validation is None:
            if not self.validation:
                self.save_best()
            return
        dice = mean(validation.mean_dice())
        if dice is not None and (state.best is None or dice > state.best):
            keeps = zip(self.names, validation.keeps_largest(self.in_one_piece))
            state.largest_component = [name for name, kept in keeps if kept]
            state.best, state.stale = dice, 0
            if self.multipass is not None:
                self.history["val_dice_of_passes"] = self.dice_of_passes
            self.save_best()
            self.listener.note(f"  New best model: epoch {state.epoch}, validation Dice {dice:.3f}")
            return
        state.stale += 1
        if state.best is None:  # no validation case shows any structure
            self.save_best()
        if self.settings.train.schedule == "plateau" and state.stale % HALVE_AFTER == 0:
            state.rate_scale /= 2

    # ---- files ----

    def record(self, validation: Validation | None) -> None:
        """Write an epoch into the history and tell it."""
        history, state, epoch = self.history, self.state, self.state.partial
        scores = validation or Validation(self.names)
        dice, hausdorff = scores.mean_dice(), scores.mean_hd95_mm()
        loss, seconds = epoch.total / max(1, epoch.steps), self.budget.seconds() - epoch.begun
        row = {
            "epochs": state.epoch,
            "train_loss": loss,
            "val_loss": mean(scores.losses),
            "val_mean_dice": mean(dice),
            "learning_rate": epoch.rate,
            "epoch_seconds": round(seconds, 2),
            "resource_usage": hardware.usage(self.machine.device),
        }
        for key, value in row.items():
            history[key].append(value)
        for key, values in (("train_dice", epoch.dice), ("val_dice", dice), ("val_hausdorff", hausdorff)):
            for name, value in zip(self.names, values):
                history[key][name].append(value)
        parts = [f"Epoch {state.epoch:3d}", f"loss {loss:.3f}"]
        for title, value in (("patch Dice", mean(epoch.dice)), ("validation Dice", row["val_mean_dice"])):
            parts += [f"{title} {value:.3f}"] if value is not None else []
        self.listener.note("  ".join([*parts, f"rate {epoch.rate:.1e}", f"{seconds:.0f} s"]))

    def write_history(self) -> None:
        """Write the history, with time, steps and memory of the run so far."""
        state, seconds = self.state, self.budget.seconds()
        self.history |= {
            "best_epoch": state.best_epoch,
            "best_val_dice": state.best,
            "seconds": round(seconds, 1),
            "steps": state.steps,
            "step_seconds": round((seconds - state.validation_total) / max(1, state.steps), 4),
            "peak_memory_gb": hardware.peak_memory_gb(self.machine.device),
        }
        artifacts.write_json(self.workspace.history, self.history)

    def content(self, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
        """What every checkpoint holds."""
        state = self.state
        return {
            "created_by": "ctseg",
            **self.provenance,
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
        """Write the history, and last.pth: all that it takes to go on."""
        self.write_history()
        self.state.seconds = self.budget.seconds()
        content = self.content(self.network.state_dict()) | {
            **dataclasses.asdict(self.state),
            "averaged": on_cpu(self.averaged),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": json.dumps(self.history, allow_nan=False),
        }
        checkpoints.rotate(self.workspace.last_model)
        checkpoints.save(self.workspace.last_model, content)

    def resume(self, content: dict[str, Any]) -> None:
        """Continue from what `last.pth` holds, which must be of the same settings; IntegrityError where it is
        not.
        """
        file = self.workspace.relative(self.workspace.last_model)
        self.go_on_from(TrainingState.of(content, file))
        self.history |= read_history(content, file) | {"stopped": "running"}
        checkpoints.require_same_form(self.network, content["model"], file)
        self.network.load_state_dict(content["model"])
        self.averaged = {key: value.to(self.machine.device) for key, value in content["averaged"].items()}
        optimizer_state = content["optimizer"]["state"]
        require_fitting_state(self.optimizer, optimizer_state, self.state.steps, file)
        # momenta; rates and decays stay those of the settings
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": optimizer_state})
        if self.scaler.is_enabled() and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        shapes = {case.case_id: torch.tensor(case.label.shape) for case in self.sampler.cases}
        for case_id, points in self.state.missed:
            if case_id not in shapes or not bool(((points >= 0) & (points < shapes[case_id])).all()):
                raise checkpoints.mismatch(f"it names missed places that case {case_id} does not have", file)
            self.sampler.remember_missed(case_id, points.numpy())
        for key, now in (("threads", torch.get_num_threads()), ("precision", self.machine.precision)):
            if content[key] != now:
                self.listener.note(
                    f"NOTE {key.upper()}_CHANGED: {content[key]} {key} before, {now} now; "
                    "the weights will differ in the last bits"
                )
