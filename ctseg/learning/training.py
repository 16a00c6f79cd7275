"""A whole training: a network is built and fitted on the cases of a workspace; for the roi grid a locator
before it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ctseg import artifacts
from ctseg.config import Settings
from ctseg.datasets.case import IGNORED
from ctseg.errors import PreconditionError
from ctseg.geometry.boxes import Box
from ctseg.learning import density_remap, planning, resuming
from ctseg.learning.dataset import load_cases
from ctseg.learning.trainer import Trainer
from ctseg.learning.training_state import Plan, Stopped
from ctseg.manifest import to_record
from ctseg.prediction import guide_input
from ctseg.prediction.locator import restore_locator
from ctseg.prediction.network_input import read_case
from ctseg.runtime import checkpoints, cpu_bfloat16, hardware

LOG = logging.getLogger("ctseg.learning")


def architecture(settings: Settings, *, n_structures: int, guide_channels: int) -> dict[str, Any]:
    """What a network is built from."""
    return {"n_structures": n_structures, **settings.record()["model"], "guide_channels": guide_channels}


def with_planned_patch(plan: Plan, settings: Settings) -> Settings:
    """The settings with the patch size that fits the cases.

    PreconditionError when none shows any structure.
    """
    if not any("present" in case.states.values() for case in plan.training):
        raise PreconditionError(
            "NO_LABELS",
            "no training case shows any of the structures " + ", ".join(plan.manifest.structures),
            "check --structures and the labels (processed_data/preprocess_report.json lists what was found)",
        )
    patch_size = planning.plan_patch(plan.training, settings)
    return dataclasses.replace(settings, train=dataclasses.replace(settings.train, patch_size=patch_size))


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
    settings = with_planned_patch(plan, planning.locator_settings(settings))
    train_network(plan, settings)
    content = checkpoints.load(place.best_model)
    record = {
        "arch": content["arch"],
        "model": content["model"],
        "patch_size": list(settings.train.patch_size),
    }
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
        network.set_lookup(fit_lookup(plan))
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
        "locator": plan.locator,  # what it is built from, its weights and patch size
        "sides": known["sides"],
    }
    trainer = Trainer(network, plan, settings, provenance)
    content = None if plan.restart else resuming.earlier_state(plan, provenance, settings)
    if content is None:
        resuming.set_best_aside(workspace)
        checkpoints.remove(workspace.last_model)
    elif resuming.go_on(trainer, content):
        return
    artifacts.write_json(workspace.history, {**trainer.history, "stopped": "running"})
    fit(trainer, restart=plan.restart)


def fit(trainer: Trainer, *, restart: bool) -> None:
    """Let a trainer work and tell how it ended. Raises Stopped."""
    workspace, state = trainer.workspace, trainer.state
    try:
        with trainer.listener:
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
    if number := cpu_bfloat16.count_in_float32(trainer.network):
        LOG.info(
            "NOTE BF16_LAYERS: %d convolutions ran in float32: this processor computes them wrongly in "
            "bfloat16 where little is left of a patch of %d x %d x %d (found by trial)",
            number,
            *trainer.patch_size,
        )
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


def tell_size(name: str, network: torch.nn.Module, settings: Settings, machine: hardware.Machine) -> None:
    """Say how large a network is and whether the memory suffices."""
    train = settings.train
    needed = hardware.estimate_memory_gb(network, train.fixed_patch(), train.batch_size, machine)
    free, parameters = (
        hardware.available_memory_gb(machine.device),
        sum(p.numel() for p in network.parameters()),
    )
    LOG.info(
        "%s: %s parameters. A training step needs about %.1f GB, %.1f GB are free.",
        name,
        f"{parameters:,}",
        needed,
        free,
    )
    if needed > free:
        LOG.warning(
            "WARN MEMORY_LOW: that may not suffice; --low-vram or a smaller train.patch_size needs less."
        )


def fit_lookup(plan: Plan) -> torch.Tensor:
    """The table of the density remap, from the training cases."""
    splits = {case.case_id: str(case.split) for case in plan.manifest.cases}
    low, high = plan.manifest.window_hu
    cases = (
        density_remap.LookupCase(
            case.case_id,
            splits[case.case_id],
            case.image.float().numpy(),
            ((case.label > 0) & (case.label != IGNORED)).numpy(),
            case.spacing_mm,
        )
        for case in plan.training
    )
    return torch.from_numpy(density_remap.fit_lookup(cases, (low, high)))
