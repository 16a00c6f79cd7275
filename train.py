"""Stage 2: learn from the tensors.

Reads   processed_data/ (manifest.json, splits.json, tensors of the splits train and val; test is never opened)
Writes  checkpoints/best_model.pth, last.pth (an interrupted run goes on from it), training_history.json

    python train.py --minutes 10
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

from ctseg import artifacts, cli, config
from ctseg.artifacts import Workspace
from ctseg.cli import LOG, Options
from ctseg.config import Settings
from ctseg.errors import PreconditionError, ResourceError, UsageError

if TYPE_CHECKING:
    from ctseg.learning import hardware

MULTI_DECODER_UP_TO = 4  # structures; beyond that one decoder each costs more than it brings (docs/benchmarks.md)


def run(workspace: Workspace, settings: Settings, options: Options) -> int:
    """Train on the processed data of a workspace. Returns the exit code."""
    manifest = artifacts.load_manifest(workspace)
    artifacts.sweep_temporaries(workspace.checkpoints)

    _tell_data_settings(manifest, options)

    import torch

    from ctseg.learning import dataset, hardware, planning

    device = hardware.choose_device(options.device)
    settings = _with_profile(settings, options, device)
    machine = hardware.choose_machine(options.device, settings.train.precision)
    LOG.info("Training on %s.", machine.reason)
    if device.type == "cpu" and machine.precision == "bf16":
        torch.set_float32_matmul_precision("high")
    settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, name=choose_model(settings.model.name, manifest["structures"])))
    training = dataset.load_cases(workspace, manifest, "train", progress=cli.bar("Loading train"))
    validation = dataset.load_cases(workspace, manifest, "val", progress=cli.bar("Loading val"))
    _require_labels(training, manifest)
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, patch_size=planning.plan_patch(training, settings)))
    LOG.info("%d training and %d validation cases, structures: %s.", len(training), len(validation), ", ".join(manifest["structures"]))
    LOG.info("Patches of %d x %d x %d voxels, %d at a time.", *settings.train.patch_size, settings.train.batch_size)
    try:
        return _fit(workspace, settings, options, manifest, machine, training, validation)
    except torch.OutOfMemoryError:
        smaller = dataclasses.replace(settings, train=dataclasses.replace(settings.train, batch_size=1), model=dataclasses.replace(settings.model, width=8))
        LOG.warning("WARN GPU_OOM: the GPU's memory does not suffice; trying once more with batch size 1 and width 8 (--low-vram).")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    try:
        return _fit(workspace, smaller, dataclasses.replace(options, restart=True), manifest, machine, training, validation)
    except torch.OutOfMemoryError:
        raise ResourceError("GPU_OOM", "the memory does not suffice even with batch size 1 and width 8", "use a smaller train.patch_size, or --device cpu") from None


def _tell_data_settings(manifest: dict[str, Any], options: Options) -> None:
    """Say that settings of the data count only when the data are preprocessed, where they differ."""
    wanted = config.resolve(None, {key: value for key, value in options.overrides.items() if key.startswith("data.")}).record()["data"]
    for key in sorted(key.split(".")[1] for key in options.overrides if key.startswith("data.")):
        if key in manifest["settings"] and manifest["settings"][key] != wanted[key]:
            LOG.info("NOTE DATA_SETTINGS: the tensors were made with data.%s=%s; run --preprocess to change that.", key, manifest["settings"][key])


def choose_model(name: str, structures: list[str]) -> str:
    """The preset to train: the one asked for, or the default for this number of structures."""
    from models import PRESETS

    if name == "auto":
        name = "multi_decoder" if len(structures) <= MULTI_DECODER_UP_TO else "unet"
        LOG.info("Model %s, the default for %d structures (--model chooses).", name, len(structures))
    if name not in PRESETS:
        raise UsageError("UNKNOWN_MODEL", f"there is no model '{name}'", f"choose one of {', '.join(PRESETS)}{config.did_you_mean(name, PRESETS)}")
    return name


def _with_profile(settings: Settings, options: Options, device: Any) -> Settings:
    """The settings, with the profile that fits the hardware when the user named none."""
    if options.profile is not None:
        return settings
    from ctseg.learning import hardware

    profile, reason = hardware.choose_profile(device)
    LOG.info("Profile %s, because %s (--profile chooses).", profile, reason)
    return config.resolve(profile, options.overrides)


def _require_labels(cases: list, manifest: dict[str, Any]) -> None:
    if not any("present" in case.states.values() for case in cases):
        raise PreconditionError("NO_LABELS", "no training case shows any of the structures " + ", ".join(manifest["structures"]),
                                "check --structures and the labels (processed_data/preprocess_report.json lists what was found)")


def _fit(workspace: Workspace, settings: Settings, options: Options, manifest: dict[str, Any], machine: hardware.Machine, training: list, validation: list) -> int:
    import torch

    from ctseg.learning import checkpoints, hardware, trainer
    from models import build_network

    arch: dict[str, Any] = {"n_structures": len(manifest["structures"]), **settings.record()["model"]}
    if not arch["blocks"]:
        del arch["blocks"]  # the network's own default
    torch.manual_seed(settings.train.seed)
    network = build_network(**arch)
    needed, free = hardware.estimate_memory_gb(network, settings.train.fixed_patch(), settings.train.batch_size, machine), hardware.available_memory_gb(machine.device)
    LOG.info("%s: %s parameters. A training step needs about %.1f GB, %.1f GB are free.", arch["name"], f"{sum(p.numel() for p in network.parameters()):,}", needed, free)
    if needed > free:
        LOG.warning("WARN MEMORY_LOW: that may not suffice; --low-vram or a smaller train.patch_size needs less.")
    data = manifest["settings"]
    identity = trainer.Identity(arch=arch, structures=list(manifest["structures"]), synthetic=bool(manifest["synthetic"]),
                                preprocess={"grid": manifest["grid"], "spacing_mm": manifest["spacing_mm"], "window_hu": manifest["window_hu"], "settings": data},
                                manifest_hash=artifacts.manifest_hash(manifest), splits_hash=manifest["splits_hash"])
    display = _Display(settings)
    job = trainer.Trainer(network, training, validation, settings=settings, identity=identity, machine=machine, workspace=workspace, callbacks=display.callbacks())
    content, warning = (None, None) if options.restart else checkpoints.load_last(workspace.last_model)
    if warning:
        LOG.warning("%s (using the checkpoint before it)", warning)
    if content is not None and _belongs(content, identity):
        if _finished(workspace) and content["settings"] == settings.record():
            LOG.info("Already trained with these data and settings; --restart trains anew.")
            return 0
        if not _finished(workspace):
            job.resume(content)
            LOG.info("Going on after epoch %d of the interrupted run (--restart begins anew).", job.epoch)
    artifacts.write_json(workspace.history, {**job.history, "stopped": "running"})
    try:
        history = job.fit()
    finally:
        display.close()
    best = history["best_val_dice"]
    LOG.info("Trained %d steps in %.1f minutes; best epoch %d%s. Weights: %s", history["steps"], history["seconds"] / 60, history["best_epoch"],
             f", validation Dice {best:.3f} (present structures only)" if best is not None else "", workspace.relative(workspace.best_model))
    return 0


def _belongs(content: dict[str, Any], identity: Any) -> bool:
    """Whether the last checkpoint was trained on these data with this network; else training begins anew."""
    same = content["manifest_hash"] == identity.manifest_hash and content["arch"] == identity.arch
    if not same:
        LOG.info("The last checkpoint belongs to other data or another network: training begins anew.")
    return bool(same)


def _finished(workspace: Workspace) -> bool:
    return workspace.history.exists() and artifacts.read_json(workspace.history).get("stopped") != "running"


class _Display:
    """A bar per epoch with loss and Dice, a line per epoch, a notice at each new best."""

    def __init__(self, settings: Settings):
        self.steps = settings.train.steps_per_epoch
        self.bar: Any = None

    def callbacks(self) -> Any:
        from ctseg.learning import trainer

        return trainer.Callbacks(step=self.step, epoch=self.epoch, best=self.best, note=LOG.info)

    def step(self, epoch: int, step: int, loss: float, dice: float | None, progress: float) -> None:
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(total=self.steps, desc=f"Epoch {epoch}", unit="step", leave=False, disable=not sys.stderr.isatty())
        self.bar.update(1)
        self.bar.set_postfix_str(f"loss {loss:.3f} dice {dice or 0:.3f} done {100 * progress:.0f} %", refresh=False)

    def epoch(self, record: dict[str, Any]) -> None:
        self.close()
        parts = [f"Epoch {record['epoch']:3d}", f"loss {record['loss']:.3f}"]
        parts += [f"patch Dice {record['dice']:.3f}"] if record["dice"] is not None else []
        parts += [f"validation Dice {record['validation']:.3f}"] if record["validation"] is not None else []
        LOG.info("  ".join([*parts, f"rate {record['rate']:.1e}", f"{record['seconds']:.0f} s"]))

    def best(self, epoch: int, dice: float) -> None:
        LOG.info("  New best model: epoch %d, validation Dice %.3f", epoch, dice)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def main(argv: list[str] | None = None) -> int:
    """Run the stage from the command line."""
    os.environ.setdefault("KMP_BLOCKTIME", "1")  # threads that wait should not spin: readers and bars share the cores
    return cli.run_stage("train.py", __doc__ or "", run, argv)


if __name__ == "__main__":
    sys.exit(main())
