"""Which method is better on these data, by how much, and is it more than chance.

Reads   processed_data/ (or makes it first) Writes  comparison/runs/<method>_seed<n>/ (a workspace per
training run that shares the tensors) and comparison/comparison.{json,csv,png,html}

    python run_pipeline.py --compare unet,multi_decoder --seeds 3 --minutes 10 python run_pipeline.py
    --compare unet,unet+train.augmentation=none --data PATH      (settings after a plus sign)

Every run has the same patients, tensors, crops per step and time. A finished run is not repeated: the same
command goes on where it was interrupted; --restart repeats all.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

from ctseg import artifacts, cli, processes
from ctseg.artifacts import Workspace
from ctseg.cli import LOG
from ctseg.errors import CaseError, UsageError
from ctseg.manifest import Manifest

ROOT = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of the comparison. method: a model, maybe with changed settings, as written on the
    command line: "unet+train.augmentation=none".
    """

    method: str
    seed: int
    workspace: Workspace

    @property
    def title(self) -> str:
        """Method and seed for people."""
        return f"{self.method}, seed {self.seed}"


def plan(workspace: Workspace, arguments: argparse.Namespace) -> list[Run]:
    """All runs of --compare and --seeds. Raises UsageError for fewer than two methods, twice the same, or one
    that does not exist.
    """
    names = [name.strip() for name in arguments.compare.split(",") if name.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(
            "BAD_OPTION",
            f"--compare {arguments.compare} does not name two or more different methods",
            "write for example --compare unet,multi_decoder",
        )
    for name in names:  # now, and not after the hours that those before it take
        check_method(name, arguments)
    if arguments.seeds < 1:
        raise UsageError("BAD_VALUE", f"--seeds {arguments.seeds} is not positive", "give 1 or more")
    first = arguments.seed or 0
    return [
        Run(
            name,
            seed,
            Workspace(
                workspace.comparison / "runs" / artifacts.safe_name(f"{name}_seed{seed}"), workspace.processed
            ),
        )
        for seed in range(first, first + arguments.seeds)
        for name in names
    ]


def words_of(method: str) -> list[str]:
    """The command-line arguments that make a training this method."""
    model, *changes = method.split("+")
    return ["--model", model, *(word for change in changes for word in ("--set", change))]


def check_method(method: str, arguments: argparse.Namespace) -> None:
    """Refuse what the training of a method would refuse. Raises UsageError."""
    _, settings, options = cli.settings_from(
        cli.parser("train.py", "").parse_args([*cli.shared_words(arguments), *words_of(method)])
    )
    guided = arguments.no_preprocess or arguments.guide is not None or settings.data.guide != "none"
    importlib.import_module("train").check_options(settings, options, guided=guided)


def run(workspace: Workspace, arguments: argparse.Namespace) -> int:
    """Train and score every run, then compare. Returns the exit code."""
    from ctseg.reporting import comparison_runs
    from ctseg.reporting.comparison import write_comparison

    runs = plan(workspace, arguments)
    for number, one in enumerate(runs, start=1):
        LOG.info("\n[run %d/%d] %s", number, len(runs), one.title)
        code = train_and_score(one, arguments)
        if code not in (0, CaseError.exit_code):
            return code
    record = comparison_runs.gather([(one.method, one.seed, one.workspace) for one in runs])
    write_comparison(record, workspace.comparison)
    LOG.info("")
    for sentence in record["statistics"]["sentences"].values():
        LOG.info("%s", sentence)
    LOG.info("\nComparison: %s", workspace.relative(workspace.comparison / "comparison.html"))
    return 0


def train_and_score(one: Run, arguments: argparse.Namespace) -> int:
    """Run train.py and evaluate.py of one run in processes of their own: memory is measured per run, and a
    crash stays there.
    """
    from ctseg.reporting.comparison_runs import is_finished

    seeds = ["--seed", str(one.seed), "--set", f"data.seed={arguments.seed or 0}"]
    words = [*cli.shared_words(arguments), *words_of(one.method), *seeds]
    done = {
        "arguments": words,
        "settings": cli.given_settings(arguments),  # a file of settings may have changed
        "manifest": Manifest.load(one.workspace).data_hash(),
    }
    marker = one.workspace.root / "run.json"
    same = marker.exists() and artifacts.read_json(marker) == done
    if same and not arguments.restart and is_finished(one.workspace):
        LOG.info("  already there")
        return 0
    place = ["--workspace", str(one.workspace.root), "--processed", str(one.workspace.processed)]
    for script, more in (("train.py", ["--restart"] * arguments.restart), ("evaluate.py", [])):
        code = run_script([sys.executable, str(ROOT / script), *place, *words, *more])
        if code not in (0, CaseError.exit_code):
            again = "" if code == UsageError.exit_code else "; the same command goes on from here"
            LOG.error("%s of %s ended with exit code %d%s.", script, one.title, code, again)
            return code
    artifacts.write_json(marker, done)
    return 0


def run_script(command: list[str]) -> int:
    """The exit code of a command. When this process is told to stop, the script is too, and may save its
    state.
    """
    process = subprocess.Popen(command, env={**os.environ, processes.PARENT: str(os.getpid())})
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
