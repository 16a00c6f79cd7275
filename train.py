"""Stage 2: learn from the tensors.

Reads   processed_data/ (manifest.json, splits.json, tensors of the splits train and val; test is never opened)
Writes  checkpoints/best_model.pth, last.pth (an interrupted run goes on from it), training_history.json

A trained model is never overwritten by another training: on the same data, other settings need --restart. A
model of other data, or that --restart replaces, is kept as checkpoints/best_model.<start of its hash>.pth.

    python train.py --minutes 10
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from ctseg import artifacts, cli, config
from ctseg.artifacts import Workspace
from ctseg.cli import LOG, Options
from ctseg.config import Settings
from ctseg.errors import Finding, IntegrityError, PreconditionError, ResourceError, UsageError
from ctseg.tasks import find_task

if TYPE_CHECKING:
    from ctseg.runtime import hardware


def run(workspace: Workspace, settings: Settings, options: Options) -> int:
    """Train on the processed data of a workspace. Returns the exit code."""
    manifest = artifacts.load_manifest(workspace)
    artifacts.sweep_temporaries(workspace.checkpoints)

    _tell_data_settings(manifest, options)

    import torch

    from ctseg.learning import dataset, planning
    from ctseg.prediction.locator import remaining_settings
    from ctseg.runtime import hardware

    device = hardware.choose_device(options.device)
    options = _with_task(options, manifest)
    settings = _with_profile(settings, options, device)
    settings = _with_sides(settings, options, manifest)
    machine = hardware.choose_machine(options.device, settings.train.precision)
    LOG.info("Training on %s.", machine.reason)
    if device.type == "cpu" and machine.precision == "bf16":
        torch.set_float32_matmul_precision("high")
    check_model(settings.model.name)
    locator, regions = None, None
    if manifest["grid"] == "roi":
        locator, regions = _train_locator(workspace, settings, options, manifest, machine)
        settings = remaining_settings(settings)
    training = dataset.load_cases(
        workspace, manifest, "train", with_tubes=learns_tubes(settings), progress=cli.bar("Loading train")
    )
    validation = dataset.load_cases(
        workspace, manifest, "val", regions=regions, progress=cli.bar("Loading val")
    )
    _require_labels(training, manifest)
    settings = dataclasses.replace(
        settings,
        train=dataclasses.replace(settings.train, patch_size=planning.plan_patch(training, settings)),
    )
    LOG.info(
        "%d training and %d validation cases, structures: %s.",
        len(training),
        len(validation),
        ", ".join(manifest["structures"]),
    )
    LOG.info(
        "Patches of %d x %d x %d voxels, %d at a time.", *settings.train.patch_size, settings.train.batch_size
    )
    plan = _Plan(workspace, options, manifest, machine, training, validation, locator)
    smaller = dataclasses.replace(
        settings,
        train=dataclasses.replace(settings.train, batch_size=1),
        model=dataclasses.replace(settings.model, width=8),
    )
    try:
        return _fit(plan, smaller if _fell_back(plan, settings, smaller) else settings)
    except torch.OutOfMemoryError:
        LOG.warning(
            "WARN GPU_OOM: the GPU's memory does not suffice; trying once more with batch size 1 and width 8 (--low-vram)."
        )
        if device.type == "cuda":
            torch.cuda.empty_cache()
    try:
        return _fit(dataclasses.replace(plan, options=dataclasses.replace(options, restart=True)), smaller)
    except torch.OutOfMemoryError:
        raise ResourceError(
            "GPU_OOM",
            "the memory does not suffice even with batch size 1 and width 8",
            "use a smaller train.patch_size, or --device cpu",
        ) from None


def _tell_data_settings(manifest: dict[str, Any], options: Options) -> None:
    """Say that settings of the data count only when the data are preprocessed, where they differ."""
    wanted = config.resolve(
        None, {key: value for key, value in options.overrides.items() if key.startswith("data.")}
    ).record()["data"]
    for key in sorted(key.split(".")[1] for key in options.overrides if key.startswith("data.")):
        if key in manifest["settings"] and manifest["settings"][key] != wanted[key]:
            LOG.info(
                "NOTE DATA_SETTINGS: the tensors were made with data.%s=%s; run --preprocess to change that.",
                key,
                manifest["settings"][key],
            )


def check_model(name: str) -> None:
    """Raises UsageError, with the nearest known name, unless there is a preset of that name."""
    from models import PRESETS

    if name not in PRESETS:
        raise UsageError(
            "UNKNOWN_MODEL",
            f"there is no model '{name}'",
            f"choose one of {', '.join(PRESETS)}{config.did_you_mean(name, PRESETS)}",
        )


def check_options(settings: Settings, options: Options, *, guided: bool) -> None:
    """Refuse what training would refuse, before other stages work for it: an unknown model, a device that is not there, parts that do not fit.

    guided: whether the data have guide organs. Raises UsageError.
    """
    import torch

    from ctseg.runtime import hardware

    check_model(settings.model.name)
    device = hardware.choose_device(options.device)
    if settings.train.precision != "auto":  # auto takes a trial of a second and refuses nothing
        hardware.choose_machine(options.device, settings.train.precision)
    profile = options.profile or hardware.choose_profile(device)[0]
    with torch.device("meta"):  # without memory
        _build(_arch(config.resolve(profile, options.overrides), n_structures=2, guide_channels=3 * guided))


def _arch(settings: Settings, *, n_structures: int, guide_channels: int) -> dict[str, Any]:
    """What `build_network` is given."""
    return {"n_structures": n_structures, **settings.record()["model"], "guide_channels": guide_channels}


def learns_tubes(settings: Settings) -> bool:
    """Whether the network predicts centrelines, so that their targets are needed."""
    from models import parts_of

    return parts_of(settings.model.name, settings.record()["model"]).connectivity == "multitask"


def _with_task(options: Options, manifest: dict[str, Any]) -> Options:
    """The options, with the defaults of the task that the data were preprocessed for when the command line names none."""
    if options.task is not None or not manifest.get("task"):
        return options
    task = find_task(manifest["task"])
    return dataclasses.replace(
        options, task=manifest["task"], overrides={**task.settings, **options.overrides}
    )


def _with_profile(settings: Settings, options: Options, device: Any) -> Settings:
    """The settings, with the profile that fits the hardware when the user named none."""
    if options.profile is not None:
        return config.resolve(options.profile, options.overrides)
    from ctseg.runtime import hardware

    profile, reason = hardware.choose_profile(device)
    LOG.info("Profile %s, because %s (--profile chooses).", profile, reason)
    return config.resolve(profile, options.overrides)


def _with_sides(settings: Settings, options: Options, manifest: dict[str, Any]) -> Settings:
    """The settings, without mirroring where a structure of one side lacks its partner; what the user asks for by name is done with a warning."""
    from ctseg.laterality import one_sided

    names = one_sided(
        manifest.get("sides"), manifest["structures"], (manifest.get("guide") or {}).get("organs", ())
    )
    if not names or not settings.train.mirror:
        return settings
    cause = f"{', '.join(names)}: one side only, the mirror image is another structure that is not among those to be learned"
    if "train.mirror" in options.overrides:
        LOG.warning(
            "%s",
            Finding(
                "WARN",
                "ONE_SIDED",
                f"{cause}, and train.mirror=true teaches the network to take it for the same",
                "leave train.mirror out",
            ).line(),
        )
        return settings
    LOG.info(
        "%s",
        Finding(
            "NOTE",
            "ONE_SIDED",
            f"{cause}, so nothing is mirrored in training and prediction",
            "preprocess with its partner among --structures, and with --set data.pairs=LEFT:RIGHT if their names do not say left and right",
        ).line(),
    )
    return dataclasses.replace(settings, train=dataclasses.replace(settings.train, mirror=False))


def _require_labels(cases: list, manifest: dict[str, Any]) -> None:
    if not any("present" in case.states.values() for case in cases):
        raise PreconditionError(
            "NO_LABELS",
            "no training case shows any of the structures " + ", ".join(manifest["structures"]),
            "check --structures and the labels (processed_data/preprocess_report.json lists what was found)",
        )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a training run works on, whatever its settings."""

    workspace: Workspace
    options: Options
    manifest: dict[str, Any]
    machine: hardware.Machine
    training: list
    validation: list
    locator: dict[str, Any] | None = None
    any_length: bool = False  # whether a finished training of another length will do


def _train_locator(
    workspace: Workspace,
    settings: Settings,
    options: Options,
    manifest: dict[str, Any],
    machine: hardware.Machine,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train the locator of the roi grid. (what the checkpoint keeps of it, region of each validation case)"""
    from ctseg.learning import planning
    from ctseg.prediction import locator
    from ctseg.runtime import checkpoints
    from models import build_network

    LOG.info("Training the locator, which finds the structures on the whole body.")
    training = locator.load_cases(workspace, manifest, "train", progress=cli.bar("Loading train"))
    validation = locator.load_cases(workspace, manifest, "val", progress=cli.bar("Loading val"))
    _require_labels(training, manifest)
    settings = locator.locator_settings(settings)
    settings = dataclasses.replace(
        settings,
        train=dataclasses.replace(settings.train, patch_size=planning.plan_patch(training, settings)),
    )
    place = workspace.for_locator()
    _fit(_Plan(place, options, manifest, machine, training, validation, any_length=True), settings)
    content = checkpoints.load(place.best_model)
    record = {
        "arch": content["arch"],
        "model": content["model"],
        "patch_size": list(settings.train.patch_size),
    }
    finder = locator.restore_locator(
        record, build_network, machine, file=workspace.relative(place.best_model)
    )
    regions = {}
    for entry in cli.bar("Locating")([case for case in manifest["cases"] if case["split"] == "val"]):
        region = finder.find_case(workspace, entry)
        if region is None:
            LOG.warning(
                "WARN NOT_LOCATED case=%s: the locator found no structure; the whole canvas is used.",
                entry["case_id"],
            )
        else:
            regions[entry["case_id"]] = region
    return record, regions


def _fit(plan: _Plan, settings: Settings) -> int:
    import torch

    from ctseg.learning import trainer
    from ctseg.runtime import hardware

    workspace, options, manifest, machine, training, validation = (
        getattr(plan, name)
        for name in ("workspace", "options", "manifest", "machine", "training", "validation")
    )
    guide = training[0].guide
    arch = _arch(
        settings,
        n_structures=len(manifest["structures"]),
        guide_channels=guide.n_channels if guide is not None else 0,
    )
    torch.manual_seed(settings.train.seed)
    network = _build(arch)
    if getattr(network, "set_lookup", None) is not None:
        network.set_lookup(_fit_lookup(training, manifest))
    if "guide" not in getattr(
        network, "inputs", ()
    ):  # the data may hold a guide that this network does not look at
        for case in (*training, *validation):
            case.guide = None
    needed, free = (
        hardware.estimate_memory_gb(
            network, settings.train.fixed_patch(), settings.train.batch_size, machine
        ),
        hardware.available_memory_gb(machine.device),
    )
    LOG.info(
        "%s: %s parameters. A training step needs about %.1f GB, %.1f GB are free.",
        arch["name"],
        f"{sum(p.numel() for p in network.parameters()):,}",
        needed,
        free,
    )
    if needed > free:
        LOG.warning(
            "WARN MEMORY_LOW: that may not suffice; --low-vram or a smaller train.patch_size needs less."
        )
    data = manifest["settings"]
    identity = trainer.Identity(
        arch=arch,
        structures=list(manifest["structures"]),
        synthetic=bool(manifest["synthetic"]),
        preprocess={
            "grid": manifest["grid"],
            "spacing_mm": manifest["spacing_mm"],
            "window_hu": manifest["window_hu"],
            "settings": data,
        },
        manifest_hash=artifacts.manifest_hash(manifest),
        splits_hash=manifest["splits_hash"],
        guide=manifest.get("guide") if "guide" in getattr(network, "inputs", ()) else None,
        locator=plan.locator,
        sides=manifest.get("sides"),
    )
    display, request = _Display(settings), _StopRequest()
    job = trainer.Trainer(
        network,
        training,
        validation,
        settings=settings,
        identity=identity,
        machine=machine,
        workspace=workspace,
        callbacks=display.callbacks(request),
    )
    content = _earlier(plan, identity, settings)
    if content is None:
        _begin_anew(workspace)
    elif _go_on(job, content):
        return 0
    artifacts.write_json(workspace.history, {**job.history, "stopped": "running"})
    try:
        with request:
            history = job.fit()
    except trainer.Stopped:
        LOG.info(
            "Stopped in epoch %d after %d of its steps; the state lies in %s.",
            job.epoch + 1,
            job.partial.steps,
            workspace.relative(workspace.last_model),
        )
        LOG.info("The same command%s goes on from there.", " without --restart" if options.restart else "")
        raise request.error() from None
    finally:
        display.close()
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
            " (normal in float16)" if machine.precision == "fp16" else "",
        )
    if of_passes := history.get("val_dice_of_passes"):
        LOG.info(
            "Validation Dice after each pass: %s; predictions end at the best.",
            ", ".join("-" if dice is None else f"{dice:.3f}" for dice in of_passes),
        )
    if request.asked is not None:  # after the last step
        raise request.error()
    return 0


def _fit_lookup(training: list, manifest: dict[str, Any]) -> Any:
    """The table of the density remap, from the training cases."""
    import torch

    from ctseg.learning import density_remap

    splits = {entry["case_id"]: entry["split"] for entry in manifest["cases"]}
    cases = (
        density_remap.LookupCase(
            case.case_id,
            splits[case.case_id],
            case.image.float().numpy(),
            case.label.numpy() > 0,
            case.spacing_mm,
        )
        for case in training
    )
    low, high = manifest["window_hu"]
    return torch.from_numpy(density_remap.fit_lookup(cases, (low, high)))


def _build(arch: dict[str, Any]) -> Any:
    from models import build_network

    try:
        return build_network(**arch)
    except ValueError as error:
        raise UsageError(
            "BAD_VALUE",
            str(error).rstrip("."),
            "change the setting (--set model....), or give the network what it asks for (--guide)",
        ) from error


def _fell_back(plan: _Plan, settings: Settings, smaller: Settings) -> bool:
    """Whether the training that is there took smaller settings than asked for, because the memory did not
    suffice.
    """
    from ctseg.learning import trainer
    from ctseg.runtime import checkpoints

    if plan.options.restart:
        return False
    content, _ = checkpoints.load_last(plan.workspace.last_model)
    differs = [
        content is not None and bool(trainer.conflicts(content["settings"], wanted.record(), finished=False))
        for wanted in (settings, smaller)
    ]
    return differs == [True, False]


def _earlier(plan: _Plan, identity: Any, settings: Settings) -> dict[str, Any] | None:
    """The last state of an earlier training that this one is or goes on from; None where training begins
    anew.

    UsageError RESUME_CONFLICT when it was on the same data with other settings: which of the two is wanted,
    only the user can say.
    """
    from ctseg.learning import trainer
    from ctseg.runtime import checkpoints

    workspace = plan.workspace
    content, warning = (None, None) if plan.options.restart else checkpoints.load_last(workspace.last_model)
    if warning:
        LOG.warning("%s (using the checkpoint before it)", warning)
    if content is None:
        return None
    if content["manifest_hash"] != identity.manifest_hash:
        what = "other tensors"
        if content["structures"] != identity.structures:
            what = "other structures: " + ", ".join(content["structures"])
        LOG.info("The earlier training here was on other data (%s): training begins anew.", what)
        return None
    finished = _finished(workspace)
    strict = finished and not plan.any_length
    if differing := trainer.conflicts(content["settings"], settings.record(), finished=strict):
        kind = "finished" if finished else "interrupted"
        raise UsageError(
            "RESUME_CONFLICT",
            f"the {kind} training there had other settings ({', '.join(differing)})",
            "repeat its settings, train anew with --restart (the model of before is kept), or use "
            "another --workspace",
            file=workspace.relative(workspace.last_model),
        )
    return content


def _begin_anew(workspace: Workspace) -> None:
    """Make room for a new training without losing the model of an earlier one."""
    from ctseg.runtime import checkpoints

    _set_best_aside(workspace)
    checkpoints.remove(workspace.last_model)


def _set_best_aside(workspace: Workspace) -> None:
    from ctseg.runtime import checkpoints

    if kept := checkpoints.set_aside(workspace.best_model):
        LOG.info("The model that was there is kept as %s.", workspace.relative(kept))


def _go_on(job: Any, content: dict[str, Any]) -> bool:
    """Take over the state of an earlier training; True when nothing is left to do."""
    workspace, finished = job.workspace, _finished(job.workspace)
    best_is_there = _best_is_there(workspace, content)
    if finished and best_is_there:
        LOG.info("Already trained with these data and settings; --restart trains anew.")
        return True
    job.resume(content)
    if finished:
        job.history["stopped"] = artifacts.read_json(workspace.history)["stopped"]
    else:
        LOG.info(
            "Going on after epoch %d%s of the interrupted run (--restart begins anew).",
            job.epoch,
            f" and {job.partial.steps} steps" if job.partial.steps else "",
        )
    if content["best_epoch"] and not best_is_there:
        LOG.warning(
            "WARN BEST_MISMATCH case=- file=%s: it is missing, damaged or of another training; the latest "
            "weights take its place.",
            workspace.relative(workspace.best_model),
        )
        _set_best_aside(workspace)
        job.replace_best()
    return finished


def _best_is_there(workspace: Workspace, content: dict[str, Any]) -> bool:
    """Whether best_model.pth is the best of the training whose last state this is."""
    from ctseg.learning import trainer
    from ctseg.runtime import checkpoints

    try:
        best = checkpoints.load(workspace.best_model)
    except IntegrityError:
        return False
    same = all(best[key] == content[key] for key in ("manifest_hash", "structures", "preprocess"))
    if not same or trainer.conflicts(best["settings"], content["settings"], finished=False):
        return False
    return best["epoch"] >= content["best_epoch"]  # later, when the run was killed between the two files


def _finished(workspace: Workspace) -> bool:
    try:
        history = artifacts.read_json(workspace.history) if workspace.history.exists() else {}
        return history.get("stopped") in artifacts.TRAINED
    except IntegrityError:
        return False  # a damaged history is written anew from the last state


class _StopRequest:
    """While it is entered, Ctrl-C and SIGTERM ask training to save its state and end; a second Ctrl-C ends it
    at once.
    """

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal

    def __enter__(self) -> None:
        self.previous = {
            number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        if number == self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked is None:
            # print is not safe in here
            os.write(2, b"\nSaving the state and stopping; Ctrl-C once more stops at once.\n")
        self.asked = number

    def error(self) -> BaseException:
        """What the signal would have raised."""
        return KeyboardInterrupt() if self.asked == signal.SIGINT else cli.Terminated()


class _Display:
    """A bar per epoch with loss and Dice, a line per epoch, a notice at each new best."""

    def __init__(self, settings: Settings):
        self.steps = settings.train.steps_per_epoch
        self.bar: Any = None

    def callbacks(self, request: _StopRequest) -> Any:
        from ctseg.learning import trainer

        return trainer.Callbacks(
            step=self.step,
            epoch=self.epoch,
            best=self.best,
            note=LOG.info,
            stop=lambda: request.asked is not None,
        )

    def step(self, epoch: int, step: int, loss: float, dice: float | None, progress: float) -> None:
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(
                total=self.steps,
                desc=f"Epoch {epoch}",
                unit="step",
                leave=False,
                disable=not sys.stderr.isatty(),
            )
        self.bar.update(1)
        self.bar.set_postfix_str(
            f"loss {loss:.3f} dice {dice or 0:.3f} done {100 * progress:.0f} %", refresh=False
        )

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
    os.environ.setdefault(
        "KMP_BLOCKTIME", "1"
    )  # threads that wait should not spin: readers and bars share the cores
    return cli.run_stage("train.py", __doc__ or "", run, argv)


if __name__ == "__main__":
    sys.exit(main())
