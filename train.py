"""Stage 2: learn from the tensors.

Reads processed_data/ (manifest.json, splits.json, tensors of the splits train and val; test is never opened)
Writes checkpoints/best_model.pth, last.pth (an interrupted run goes on from it), training_history.json

A trained model is never overwritten by another training: on the same data, other settings need --restart. A
model of other data, or that --restart replaces, is kept as checkpoints/best_model.<start of its hash>.pth.

    python train.py --minutes 10
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg import artifacts, cli, config, config_file
from ctseg.artifacts import Workspace
from ctseg.cli import LOG, Options
from ctseg.config import Settings
from ctseg.errors import Finding, ResourceError, UsageError
from ctseg.laterality import one_sided
from ctseg.manifest import Manifest, to_record
from ctseg.tasks import find_task

if TYPE_CHECKING:
    from ctseg.learning.training import Plan


def run(workspace: Workspace, settings: Settings, options: Options) -> int:
    """Train on the processed data of a workspace. Returns the exit code."""
    manifest = Manifest.load(workspace)
    artifacts.sweep_temporaries(workspace.checkpoints)
    tell_data_settings(manifest, options)

    import torch

    from ctseg.learning import training
    from ctseg.learning.training_state import Stopped
    from ctseg.runtime import hardware

    if options.task is None and manifest.task:  # the defaults of the task that the data were made for
        task = find_task(manifest.task)
        options = dataclasses.replace(
            options, task=manifest.task, overrides={**task.settings, **options.overrides}
        )
    settings = training_settings(options, manifest)
    machine = hardware.choose_machine(options.device, settings.train.precision)
    LOG.info("Training on %s.", machine.reason)
    if machine.device.type == "cpu" and machine.precision == "bf16":
        torch.set_float32_matmul_precision("high")
    check_model(settings.model.name)
    used = settings.record()
    sections = {"data": manifest.settings, "model": used["model"], "train": used["train"]}
    config_file.note(workspace, sections, options.task)
    terminal = Terminal(settings)
    plan = training.Plan(workspace, manifest, machine, build, terminal, options.restart)
    try:
        learn(plan, settings)
    except torch.OutOfMemoryError:
        raise ResourceError(
            "GPU_OOM",
            "the memory does not suffice even with batch size 1 and width 8",
            "use a smaller train.patch_size, or --device cpu",
        ) from None
    except Stopped:
        raise terminal.interruption() from None
    if terminal.stop():  # asked for after the last step
        raise terminal.interruption()
    return 0


def training_settings(options: Options, manifest: Manifest) -> Settings:
    """The settings of a training: the profile's, which is told where nobody chose it, and the user's."""
    from ctseg.runtime import hardware

    device, profile = hardware.choose_device(options.device), options.profile
    if profile is None:
        profile, reason = hardware.choose_profile(device)
        LOG.info("Profile %s, because %s (--profile chooses).", profile, reason)
    return without_wrong_mirror(config.resolve(profile, options.overrides), options, manifest)


def learn(plan: Plan, settings: Settings) -> None:
    """Train the locator where the grid has one, then the network; once more smaller where memory is short.

    Raises OutOfMemoryError where that is too large too, and Stopped.
    """
    import torch

    from ctseg.learning import planning, training
    from ctseg.learning.dataset import load_cases

    workspace, manifest, regions = plan.workspace, plan.manifest, None
    if manifest.grid == "roi":
        locator, regions = training.train_locator(plan, settings, cli.bar)
        plan = dataclasses.replace(plan, locator=locator)
        settings = planning.with_time(settings, 1 - planning.TIME_SHARE, {})
    tubes = learns_tubes(settings)
    plan = dataclasses.replace(
        plan,
        training=load_cases(
            workspace, manifest, "train", with_tubes=tubes, progress=cli.bar("Loading train")
        ),
        validation=load_cases(workspace, manifest, "val", regions=regions, progress=cli.bar("Loading val")),
    )
    settings = planning.with_patch(settings, plan.training, manifest.structures)
    settings = with_network_plan(settings, plan.training[0].spacing_mm)
    LOG.info(
        "%d training and %d validation cases, structures: %s.",
        len(plan.training),
        len(plan.validation),
        ", ".join(manifest.structures),
    )
    train = settings.train
    LOG.info("Patches of %d x %d x %d voxels, %d at a time.", *train.patch_size, train.batch_size)
    smaller = config.changed(settings, {"train.batch_size": 1, "model.width": 8})
    if not plan.restart and training.fell_back(workspace, settings, smaller):
        settings = smaller
    try:
        training.train_network(plan, settings)
    except torch.OutOfMemoryError:
        LOG.warning(
            "WARN GPU_OOM: the GPU's memory does not suffice; trying once more with batch size 1 and "
            "width 8 (--low-vram)."
        )
        torch.cuda.empty_cache()
        training.train_network(dataclasses.replace(plan, restart=True), smaller)


def tell_data_settings(manifest: Manifest, options: Options) -> None:
    """Say that settings of the data count only when the data are preprocessed, where they differ."""
    asked = {key: value for key, value in options.overrides.items() if key.startswith("data.")}
    wanted = config.resolve(None, asked).record()["data"]
    for key in sorted(key.split(".")[1] for key in asked):
        if key in manifest.settings and manifest.settings[key] != wanted[key]:
            LOG.info(
                "NOTE DATA_SETTINGS: the tensors were made with data.%s=%s; run --preprocess to change that.",
                key,
                manifest.settings[key],
            )


def check_model(name: str) -> None:
    """Raises UsageError, with the nearest known name, unless there is a preset of that name."""
    from models import PRESETS

    config.check_word("UNKNOWN_MODEL", "model", name, PRESETS)


def check_options(settings: Settings, options: Options, *, guided: bool) -> None:
    """Refuse what training would refuse, before other stages work for it.

    An unknown model, a device that is not there, parts that do not fit, a damaged file to start from. guided:
    whether the data have guide organs. Raises UsageError, IntegrityError.
    """
    import torch

    from ctseg.learning.training import architecture
    from ctseg.runtime import checkpoints, hardware

    check_model(settings.model.name)
    device = hardware.choose_device(options.device)
    if settings.train.precision != "auto":  # auto takes a trial of a second and refuses nothing
        hardware.choose_machine(options.device, settings.train.precision)
    profile = options.profile or hardware.choose_profile(device)[0]
    resolved = with_network_plan(config.resolve(profile, options.overrides), (1.0, 1.0, 1.0))
    if settings.train.init != "none":
        checkpoints.load(Path(settings.train.init))
    with torch.device("meta"):  # without memory
        build(architecture(resolved, n_structures=2, guide_channels=3 * guided))


def with_network_plan(settings: Settings, spacing_mm: Sequence[float]) -> Settings:
    """The settings with what is planned for their network on voxels of that size."""
    from ctseg.learning import planning
    from models import PRESETS, parts_of

    plain = parts_of(settings.model.name, settings.record()["model"]) == PRESETS["unet"]
    return planning.with_network_plan(settings, plain=plain, spacing_mm=spacing_mm)


def learns_tubes(settings: Settings) -> bool:
    """Whether the network predicts centrelines, so that their targets are needed."""
    from models import parts_of

    return parts_of(settings.model.name, settings.record()["model"]).connectivity == "multitask"


def build(arch: dict[str, Any]) -> Any:
    """The network of an architecture. Raises UsageError for parts that do not fit."""
    from models import build_network

    try:
        return build_network(**arch)
    except ValueError as error:
        raise UsageError(
            "BAD_VALUE",
            str(error).rstrip("."),
            "change the setting (--set model....), or give the network what it asks for (--guide)",
        ) from error


def without_wrong_mirror(settings: Settings, options: Options, manifest: Manifest) -> Settings:
    """The settings, without mirroring where a structure of one side lacks its partner.

    What the user asks for by name is done with a warning.
    """
    names = one_sided(to_record(manifest.sides), manifest.structures, manifest.organs)
    if not names or not settings.train.mirror:
        return settings
    cause = (
        f"{', '.join(names)}: one side only, the mirror image is another structure that is not among "
        "those to be learned"
    )
    if "train.mirror" in options.overrides:
        cause += ", and train.mirror=true teaches the network to take it for the same"
        LOG.warning("%s", Finding("WARN", "ONE_SIDED", cause, "leave train.mirror out").line())
        return settings
    remedy = (
        "preprocess with its partner among --structures, and with --set data.pairs=LEFT:RIGHT if their "
        "names do not say left and right"
    )
    cause += ", so nothing is mirrored in training and prediction"
    LOG.info("%s", Finding("NOTE", "ONE_SIDED", cause, remedy).line())
    return config.changed(settings, {"train.mirror": False})


class Terminal:
    """Tells people of a training: a bar per epoch, a line after it, a notice at each new best.

    While it is entered, Ctrl-C and SIGTERM ask training to save its state and end; a second Ctrl-C ends it at
    once.
    """

    def __init__(self, settings: Settings):
        self.steps = settings.train.steps_per_epoch
        self.bar: Any = None
        self.asked: int | None = None  # the signal

    def __enter__(self) -> None:
        signals = (signal.SIGINT, signal.SIGTERM)
        self.previous = {number: signal.signal(number, self.arrived) for number in signals}

    def __exit__(self, *_: object) -> None:
        self.close()
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def arrived(self, number: int, _frame: object) -> None:
        """Remember a signal."""
        if number == self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked is None:
            # print is not safe in here
            os.write(2, b"\nSaving the state and stopping; Ctrl-C once more stops at once.\n")
        self.asked = number

    def stop(self) -> bool:
        """Whether a signal asked for the end."""
        return self.asked is not None

    def interruption(self) -> BaseException:
        """What the signal would have raised."""
        return KeyboardInterrupt() if self.asked == signal.SIGINT else cli.Terminated()

    def step(self, epoch: int, step: int, status: str) -> None:
        """Move the bar."""
        if self.bar is None:
            self.bar = cli.bar(f"Epoch {epoch}", unit="step")(None, total=self.steps)
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix_str(status, refresh=False)

    def note(self, line: str) -> None:
        """Write a line where the bar was; it comes again with the next step."""
        self.close()
        LOG.info("%s", line)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def main(argv: list[str] | None = None) -> int:
    """Run the stage from the command line."""
    # threads that wait should not spin: readers and bars share the cores
    os.environ.setdefault("KMP_BLOCKTIME", "1")
    return cli.run_stage("train.py", __doc__ or "", run, argv)


if __name__ == "__main__":
    sys.exit(main())
