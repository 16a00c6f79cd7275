"""From raw CT to an honest segmentation model in one command.

    python run_pipeline.py --all                          synthetic demo: data, training, scores, report
    python run_pipeline.py --all --data PATH --minutes 30 your own scans
    python run_pipeline.py --eval --analyze               single stages, always in this order

Stages talk through files only: --preprocess writes processed_data/, --train writes checkpoints/, --eval
writes evaluation_results/, --analyze writes analysis/. This is a research tool, not a medical device.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from ctseg import cli, config
from ctseg.artifacts import Workspace
from ctseg.cli import LOG, Options
from ctseg.config import Settings
from ctseg.errors import CaseError, UsageError
from ctseg.tasks import TASKS, UNET_DEMO, find_task

# flag -> script
STAGES = {"preprocess": "preprocessing", "train": "train", "eval": "evaluate", "analyze": "analyze"}


def build_parser() -> argparse.ArgumentParser:
    """The command line of the pipeline: the shared options and the choice of stages."""
    parser = cli.parser("run_pipeline.py", __doc__ or "")
    stages = parser.add_argument_group("stages")
    stages.add_argument("--all", action="store_true", help="all four stages")
    for flag, script in STAGES.items():
        stages.add_argument(f"--{flag}", action="store_true", help=f"the stage of {script}.py")
    stages.add_argument(
        "--no-preprocess", action="store_true", help="with --all: use the tensors that are there"
    )
    stages.add_argument(
        "--compare",
        metavar="A,B,...",
        help="train and score these models on the same data and say which is better; settings may follow a "
        "plus sign: unet+model.width=32",
    )
    stages.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="with --compare: training runs per model (default: 1; claims need 3)",
    )
    stages.add_argument(
        "--list",
        action="store_true",
        help="show models, profiles, layouts and settings; with --data what would be used and refused",
    )
    return parser


def chosen_stages(arguments: argparse.Namespace) -> list[str]:
    """The stages to run, in the pipeline's order. Raises UsageError when none is chosen."""
    chosen = [flag for flag in STAGES if arguments.all or getattr(arguments, flag)]
    if arguments.no_preprocess:
        if not chosen or arguments.preprocess:
            raise UsageError(
                "BAD_OPTION",
                "--no-preprocess needs --all or other stages",
                "write --all --no-preprocess, or the stages you want",
            )
        chosen = [stage for stage in chosen if stage != "preprocess"]
    if not chosen:
        raise UsageError(
            "BAD_OPTION",
            "no stage was chosen",
            "write --all, or any of --preprocess --train --eval --analyze (see --help)",
        )
    return chosen


def check_options(stages: list[str], workspace: Workspace, settings: Settings, options: Options) -> None:
    """Refuse the options that a stage would refuse later, before any work. Raises UsageError,
    PreconditionError.
    """
    if "preprocess" in stages:
        importlib.import_module("preprocessing").check_options(workspace, settings, options)
    # the others need no torch, which takes seconds to load
    if {"train", "eval"} & set(stages) or options.model is not None or options.device != "auto":
        importlib.import_module("train").check_options(
            settings, options, guided="preprocess" not in stages or settings.data.guide != "none"
        )


def run_stages(stages: list[str], workspace: Workspace, settings: Settings, options: Options) -> int:
    """Run stages in order; the first that fails ends the pipeline. Exit code: 3 when cases were left out."""
    started, skipped = time.monotonic(), False
    for number, flag in enumerate(stages, start=1):
        LOG.info("\n[%d/%d] %s", number, len(stages), flag)
        code = importlib.import_module(STAGES[flag]).run(workspace, settings, options)
        if code not in (0, CaseError.exit_code):
            return int(code)
        skipped |= code == CaseError.exit_code
    LOG.info(
        "\nCOMPLETE in %.1f minutes%s.",
        (time.monotonic() - started) / 60,
        ", some cases were left out" if skipped else "",
    )
    for label, path in (
        ("Report", workspace.report),
        ("Scores", workspace.evaluation / "evaluation_report.txt"),
        ("Weights", workspace.best_model),
        ("Findings", workspace.preprocess_report),
        ("Log", workspace.log),
    ):
        if path.exists():
            LOG.info("  %-9s %s", label, workspace.relative(path))
    return CaseError.exit_code if skipped else 0


def show_list(workspace: Workspace, settings: Settings, options: Options) -> int:
    """Print what can be chosen: models, profiles, layouts, settings.

    Of a folder what preprocessing would use and refuse, too.
    """
    from ctseg.datasets.layouts import LAYOUTS
    from models import PRESETS

    print("Models:   " + ", ".join(PRESETS))
    print("Tasks:")
    for name, task in TASKS.items():
        print(f"  {name:17s} {task.about}")
    print("Profiles:")
    for name, changes in config.PROFILES.items():
        print(f"  {name:9s} " + ", ".join(f"{key}={value}" for key, value in changes.items()))
    print("Layouts:")
    for name, layout in LAYOUTS.items():
        print(f"  {name:17s} {layout.SHAPE}")
    print("Settings (--set key=value):")
    for key, value in config.flat(Settings().record()).items():
        print(f"  {key:28s} {value}")
    if options.data is None:
        return 0
    cli.log_to_terminal()
    return int(importlib.import_module("preprocessing").preview(workspace, settings, options))


def use_demo_settings(arguments: argparse.Namespace) -> None:
    """The training time and settings of the task's synthetic cohort, unless a training time is given
    anywhere.

    The task's own choice of a backbone stays out where the user names the models; what is given wins.
    """
    given = cli.given_settings(arguments)
    timed = arguments.minutes is not None or arguments.epochs is not None
    if timed or {"train.minutes", "train.epochs"} & set(given):
        return
    task = find_task(arguments.task or "pelvis")
    arguments.minutes = task.demo_minutes
    named = arguments.compare or arguments.model or "model.name" in given
    plain = arguments.task is None and not named
    demo = [
        f"{key}={value}"
        for key, value in (UNET_DEMO if plain else task.demo).items()
        if key not in given and not (named and key == "model.backbone")
    ]
    arguments.assignments = [*demo, *arguments.assignments]


def _main(argv: list[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    if arguments.list:
        return show_list(*cli.settings_from(arguments))
    if arguments.seeds != 1 and not arguments.compare:
        raise UsageError(
            "BAD_OPTION", f"--seeds {arguments.seeds} is for --compare", "write --compare A,B too"
        )
    if arguments.compare:
        stages = [] if arguments.no_preprocess else ["preprocess"]
    else:
        stages = chosen_stages(arguments)
    if arguments.data is None and (arguments.compare or {"preprocess", "train"} <= set(stages)):
        use_demo_settings(arguments)
    workspace, settings, options = cli.settings_from(arguments)
    check_options(stages, workspace, settings, options)
    if arguments.compare:
        importlib.import_module("compare").plan(workspace, arguments)
    with cli.open_workspace(workspace, settings, options):
        LOG.debug("stages %s, settings %s", stages, settings.record())
        code = run_stages(stages, workspace, settings, options) if stages else 0
        if code not in (0, CaseError.exit_code) or not arguments.compare:
            return code
        return importlib.import_module("compare").run(workspace, arguments)


def main(argv: list[str] | None = None) -> int:
    """Run the pipeline and return its exit code."""
    return cli.guarded(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
