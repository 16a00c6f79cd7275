"""A whole training: a network is built and fitted on the cases of a workspace, from where an earlier run
ended; for the roi grid a locator before it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ctseg import artifacts, config
from ctseg.artifacts import Workspace
from ctseg.config import Settings
from ctseg.errors import IntegrityError, UsageError
from ctseg.geometry.boxes import Box
from ctseg.learning import density_remap, planning, starting_weights
from ctseg.learning.dataset import load_cases
from ctseg.learning.trainer import Trainer
from ctseg.learning.training_state import Plan, Stopped
from ctseg.manifest import to_record
from ctseg.prediction import guide_input
from ctseg.prediction.network_input import read_case
from ctseg.prediction.predictor import restore_locator
from ctseg.runtime import checkpoints, hardware

LOG = logging.getLogger("ctseg.learning")
# a longer run is the same run
MAY_CHANGE = {"train.epochs", "train.minutes", "train.patience", "train.validations"}


def architecture(settings: Settings, *, n_structures: int, guide_channels: int) -> dict[str, Any]:
    """What a network is built from."""
    return {"n_structures": n_structures, **settings.record()["model"], "guide_channels": guide_channels}


def train_locator(
    plan: Plan, settings: Settings, bar: Callable[[str], Callable[[Iterable], Iterable]]
) -> tuple[dict[str, Any], dict[str, Box]]:
    """Train the locator of the roi grid: (what a checkpoint keeps of it, region of each validation case)."""
    LOG.info("Training the locator, which finds the structures on the whole body.")
    workspace, manifest = plan.workspace, plan.manifest
    training, validation = (
        load_cases(workspace, manifest, split, whole_body=True, progress=bar(f"Loading {split}"))
        for split in ("train", "val")
    )
    place = workspace.for_locator()
    plan = dataclasses.replace(
        plan, workspace=place, training=training, validation=validation, any_length=True
    )
    settings = planning.with_patch(planning.locator_settings(settings), training, manifest.structures)
    train_network(plan, settings)
    content = checkpoints.load(place.best_model)
    record = {"patch_size": list(settings.train.patch_size)}
    record |= {key: content[key] for key in ("arch", "model")}
    file = workspace.relative(place.best_model)
    finder = restore_locator(record, lambda **arch: plan.build(arch), plan.machine, file=file)
    regions = {}
    for case in bar("Locating")(manifest.of_split("val")):
        region = finder.find(read_case(workspace, manifest, case, guided=False, located=True))
        if region is None:
            LOG.warning(
                "WARN NOT_LOCATED case=%s: the locator found no structure; the whole canvas is used.",
                case.case_id,
            )
        else:
            regions[case.case_id] = region
    return record, regions


def train_network(plan: Plan, settings: Settings) -> None:
    """Build a network and fit it, from where an earlier run of the same settings ended. Raises Stopped."""
    workspace, manifest, machine = plan.workspace, plan.manifest, plan.machine
    guide = plan.training[0].guide
    channels = guide_input.n_channels(len(guide.presence)) if guide is not None else 0
    arch = architecture(settings, n_structures=len(manifest.structures), guide_channels=channels)
    torch.manual_seed(settings.train.seed)
    network = plan.build(arch)
    if hasattr(network, "set_lookup"):
        low, high = manifest.window_hu
        network.set_lookup(torch.from_numpy(density_remap.fit_lookup(plan.training, (low, high))))
    start = None
    if settings.train.init != "none":
        start = starting_weights.take_weights(network, Path(settings.train.init), manifest.structures)
        tell_start(start)
    starting_weights.freeze(network, settings.train.freeze)
    guided = "guide" in getattr(network, "inputs", ())
    if not guided:  # the data may hold a guide that this network does not look at
        for case in (*plan.training, *plan.validation):
            case.guide = None
    tell_size(arch["name"], network, settings, machine)
    known = to_record(manifest)
    provenance = {
        "arch": arch,
        "structures": known["structures"],
        "synthetic": manifest.synthetic,
        "preprocess": {key: known[key] for key in ("grid", "spacing_mm", "window_hu", "settings")},
        "manifest_hash": manifest.data_hash(),
        "splits_hash": manifest.splits_hash,
        "guide": known["guide"] if guided else None,
        "start": start,
        "locator": plan.locator,  # what it is built from, its weights and patch size
        "sides": known["sides"],
    }
    trainer = Trainer(network, plan, settings, provenance)
    content = None if plan.restart else earlier_state(plan, provenance, settings)
    if content is None:
        set_best_aside(workspace)
        checkpoints.remove(workspace.last_model)
    elif go_on(trainer, content):
        return
    trainer.write_history()
    fit(trainer, restart=plan.restart)


def fit(trainer: Trainer, *, restart: bool) -> None:
    """Let a trainer work and tell how it ended. Raises Stopped."""
    workspace, state = trainer.workspace, trainer.state
    try:
        with trainer.listener, hardware.freed_memory_kept():
            history = trainer.fit()
    except Stopped:
        LOG.info(
            "Stopped in epoch %d after %d of its steps; the state lies in %s.",
            state.epoch + 1,
            state.partial.steps,
            workspace.relative(workspace.last_model),
        )
        LOG.info("The same command%s goes on from there.", " without --restart" if restart else "")
        raise
    best = history["best_val_dice"]
    LOG.info(
        "Trained %d steps in %.1f minutes; best epoch %d%s. Weights: %s",
        history["steps"],
        history["seconds"] / 60,
        history["best_epoch"],
        f", validation Dice {best:.3f} (present structures only)" if best is not None else "",
        workspace.relative(workspace.best_model),
    )
    if skipped := history["skipped_steps"]:
        LOG.warning(
            "WARN STEPS_SKIPPED: %d further steps were left out, because their gradient was not finite%s.",
            skipped,
            " (normal in float16)" if trainer.machine.precision == "fp16" else "",
        )
    if of_passes := history.get("val_dice_of_passes"):
        shown = ", ".join("-" if dice is None else f"{dice:.3f}" for dice in of_passes)
        LOG.info("Validation Dice after each pass: %s; predictions end at the best.", shown)


def tell_start(start: dict[str, Any]) -> None:
    """Say from which weights a training starts."""
    LOG.info(
        "Starting from %s%s: %.0f %% of the weights%s.",
        start["file"],
        " (trained on synthetic data)" if start["synthetic"] else "",
        100 * start["share"],
        "" if start["heads"] else f"; the heads start anew, for it knows {', '.join(start['structures'])}",
    )


def tell_size(name: str, network: torch.nn.Module, settings: Settings, machine: hardware.Machine) -> None:
    """Say how large a network is and whether the memory suffices."""
    train = settings.train
    needed = hardware.estimate_memory_gb(network, train.fixed_patch(), train.batch_size, machine)
    free, parameters = hardware.available_memory_gb(machine.device), hardware.count_parameters(network)
    LOG.info(
        f"{name}: {parameters:,} parameters. A training step needs about {needed:.1f} GB, "
        f"{free:.1f} GB are free."
    )
    if needed > free:
        LOG.warning(
            "WARN MEMORY_LOW: that may not suffice; --low-vram or a smaller train.patch_size needs less."
        )


# ---- which earlier training a new one goes on from, and what becomes of the model of another one ----


def conflicts(before: dict[str, Any], now: dict[str, Any], *, finished: bool) -> list[str]:
    """What differs between the recorded settings of two trainings so that they are not the same.

    Unless finished: so that one cannot go on from the other.
    """
    earlier = config.flat(before)
    return [
        f"{key} was {earlier.get(key)}, is {value}"
        for key, value in config.flat({section: now[section] for section in ("model", "train")}).items()
        if (finished or key not in MAY_CHANGE) and earlier.get(key) != value
    ]


def is_finished(workspace: Workspace) -> bool:
    """Whether the training that is there came to its end; a damaged history is written anew from the last
    state.
    """
    try:
        history = artifacts.read_record(workspace.history) if workspace.history.exists() else {}
        return history.get("stopped") in artifacts.TRAINED
    except IntegrityError:
        return False


def fell_back(workspace: Workspace, settings: Settings, smaller: Settings) -> bool:
    """Whether the training that is there took smaller settings than asked for, because of the memory."""
    content, _ = checkpoints.load_last(workspace.last_model)
    differs = [
        content is not None and bool(conflicts(content["settings"], wanted.record(), finished=False))
        for wanted in (settings, smaller)
    ]
    return differs == [True, False]


def earlier_state(plan: Plan, provenance: dict[str, Any], settings: Settings) -> dict[str, Any] | None:
    """The last state of an earlier training that this one is or goes on from; None where there is none.

    provenance: as checkpoints hold it. UsageError RESUME_CONFLICT when it was
    on the same data with other settings: which of the two is wanted, only the user can say.
    """
    workspace = plan.workspace
    content, warning = checkpoints.load_last(workspace.last_model)
    if warning:
        LOG.warning("%s (using the checkpoint before it)", warning)
    if content is None:
        return None
    if content["manifest_hash"] != provenance["manifest_hash"]:
        what = "other tensors"
        if content["structures"] != provenance["structures"]:
            what = "other structures: " + ", ".join(content["structures"])
        LOG.info("The earlier training here was on other data (%s): training begins anew.", what)
        return None
    finished = is_finished(workspace)
    if differing := conflicts(
        content["settings"], settings.record(), finished=finished and not plan.any_length
    ):
        raise UsageError(
            "RESUME_CONFLICT",
            f"the {'finished' if finished else 'interrupted'} training there had other settings "
            f"({', '.join(differing)})",
            "repeat its settings, train anew with --restart (the model of before is kept), or use "
            "another --workspace",
            file=workspace.relative(workspace.last_model),
        )
    return content


def set_best_aside(workspace: Workspace) -> None:
    """Keep the best model that is there under another name."""
    if kept := checkpoints.set_aside(workspace.best_model):
        LOG.info("The model that was there is kept as %s.", workspace.relative(kept))


def go_on(trainer: Trainer, content: dict[str, Any]) -> bool:
    """Take over the state of an earlier training; True when nothing is left to do."""
    workspace = trainer.workspace
    finished, best_is_there = is_finished(workspace), has_best(workspace, content)
    if finished and best_is_there:
        LOG.info("Already trained with these data and settings; --restart trains anew.")
        return True
    trainer.resume(content)
    if finished:
        trainer.history["stopped"] = artifacts.read_record(workspace.history)["stopped"]
    else:
        epoch, steps = trainer.state.epoch, trainer.state.partial.steps
        LOG.info(
            "Going on after epoch %d%s of the interrupted run (--restart begins anew).",
            epoch,
            f" and {steps} steps" if steps else "",
        )
    if content["best_epoch"] and not best_is_there:
        LOG.warning(
            "WARN BEST_MISMATCH case=- file=%s: it is missing, damaged or of another training; the latest "
            "weights take its place.",
            workspace.relative(workspace.best_model),
        )
        set_best_aside(workspace)
        trainer.state.best = None
        trainer.save_best()
        trainer.save_last()
    return finished


def has_best(workspace: Workspace, content: dict[str, Any]) -> bool:
    """Whether best_model.pth is the best of the training whose last state this is."""
    try:
        best = checkpoints.load(workspace.best_model)
    except IntegrityError:
        return False
    same = all(best[key] == content[key] for key in ("manifest_hash", "structures", "preprocess"))
    if not same or conflicts(best["settings"], content["settings"], finished=False):
        return False
    return best["epoch"] >= content["best_epoch"]  # later, when the run was killed between the two files
