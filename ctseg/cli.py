"""The options that every stage shares, logging, and the one place where errors become exit codes.

Nothing here imports torch: `--help` must be instant.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ctseg import config, config_file
from ctseg.artifacts import Workspace, lock_workspace, writing
from ctseg.errors import SYSTEM_FAULTS, PipelineError, ResourceError, UsageError, place_of
from ctseg.outputs import keep_data
from ctseg.processes import stop_with_parent
from ctseg.tasks import TASKS, find_task

LOG = logging.getLogger("ctseg")


@dataclasses.dataclass
class Options:
    """What the command line said beside the settings."""

    data: Path | None = None
    layout: str | None = None
    model: str | None = None
    profile: str | None = None
    device: str = "auto"
    workers: int | None = None
    allow_skips: bool = False
    restart: bool = False
    task: str | None = None
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)


class _Store(argparse.Action):
    """Keep the value of an option. Given again, lists are joined and other names and paths refused; of
    numbers the last one counts.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        earlier = getattr(namespace, self.dest, self.default)
        if earlier is not self.default:
            if self.nargs == "+":
                values = [*earlier, *values]
            elif earlier != values and self.type not in (int, float):
                raise UsageError(
                    "BAD_OPTION", f"{option_string} is given twice: {earlier} and {values}", "give it once"
                )
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """argparse with this project's error line, a hint at the nearest option and no value dropped without a
    word.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for name in (None, "store"):
            self.register("action", name, _Store)

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        words = [word.rstrip(":,") for word in message.split() if word.startswith("--")]
        wrong = next((word for word in words if word not in known), "")
        near = config.did_you_mean(wrong, known) if wrong else ""
        raise UsageError("BAD_OPTION", message, f"see `python {Path(self.prog).name} --help`{near}")


def plain_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser without any option yet, with this project's error line."""
    return _Parser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


class Option(NamedTuple):
    """An option that all stages share. An empty metavar: a switch."""

    flag: str
    metavar: str
    help: str
    type: Callable[[str], Any] = str
    more: dict[str, Any] = {}  # noqa: RUF012  (is not written to)


SHARED_OPTIONS = {
    "data": [
        Option(
            "--data", "PATH", "folder with your scans (default: a synthetic cohort of the task is made)", Path
        ),
        Option(
            "--task",
            "NAME",
            f"defaults for what is learned: {', '.join(TASKS)} "
            "(default: none; without --data the pelvis is drawn)",
        ),
        Option("--layout", "NAME", "layout of that folder (default: detected and told; see --list)"),
        Option("--structures", "A,B,C", "only these structures (default: all that the data name)"),
        Option(
            "--guide",
            "SOURCE",
            "organs that guide the network: labels (other labelled structures), totalsegmentator, "
            "or a folder of masks",
        ),
        Option(
            "--guide-model",
            "FILE",
            "the same, predicted by an earlier model of this pipeline (best_model.pth)",
            Path,
        ),
        Option(
            "--workspace",
            "DIR",
            "where all results lie (default: the current folder)",
            Path,
            {"default": Path()},
        ),
        Option(
            "--processed",
            "DIR",
            "tensors that several workspaces share (default: processed_data in the workspace)",
            Path,
        ),
    ],
    "learning": [
        Option("--model", "NAME", "see --list (default: the task's, else unet)"),
        Option("--profile", "NAME", "low_vram, standard, full or cpu (default: the hardware decides)"),
        Option(
            "--low-vram", "", "tiny channels and batch 1 for GPUs below 8 GB; the same as --profile low_vram"
        ),
        Option(
            "--init",
            "FILE",
            "start from the weights of a trained model (best_model.pth), of these or other structures",
        ),
        Option("--minutes", "M", "train for this long; the learning rate reaches zero at the end", float),
        Option("--epochs", "N", "train for this many epochs", int),
        Option(
            "--device",
            "NAME",
            "auto, cpu, cuda or mps (default: auto)",
            more={"default": "auto", "choices": ["auto", "cpu", "cuda", "mps"]},
        ),
        Option("--seed", "N", "seed of the split and of training (default: 0)", int),
        Option(
            "--restart", "", "train anew, whatever training is there; its model is kept beside the new one"
        ),
    ],
    "other": [
        Option(
            "--config",
            "FILE",
            "settings in TOML, such as the config.toml that every run leaves in its workspace; "
            "the command line wins",
            Path,
        ),
        Option(
            "--set",
            "KEY=VALUE",
            "any setting, for example --set train.epochs=5; may be repeated",
            more={"action": "append", "default": [], "dest": "assignments"},
        ),
        Option(
            "--workers", "N", "processes for reading and scoring (default: number of cores, at most 8)", int
        ),
        Option("--allow-skips", "", "end with exit code 0 although some cases were skipped"),
    ],
}


def parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that all stages share."""
    result = plain_parser(prog, description)
    for group, options in SHARED_OPTIONS.items():
        part = result.add_argument_group(group)
        for one in options:
            value = {"metavar": one.metavar, "type": one.type, **one.more}
            part.add_argument(one.flag, help=one.help, **(value if one.metavar else {"action": "store_true"}))
    return result


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """{"train.epochs": 5}: what --config and --set say; the command line wins. The file may also name the
    task.
    """
    from_file: dict[str, Any] = {}
    if arguments.config is not None:
        task, from_file = config_file.read(arguments.config)
        arguments.task = arguments.task or task
    return {**from_file, **config.parse_assignments(arguments.assignments)}


def refuse_contradictions(arguments: argparse.Namespace) -> None:
    """UsageError for options that exclude each other; --low-vram and --guide-model become what they mean."""
    if arguments.low_vram:
        if arguments.profile not in (None, "low_vram"):
            raise UsageError(
                "BAD_OPTION", f"--low-vram contradicts --profile {arguments.profile}", "give one of them"
            )
        arguments.profile = "low_vram"
    if arguments.guide_model is not None:
        if arguments.guide is not None:
            raise UsageError("BAD_OPTION", "--guide-model contradicts --guide", "give one of them")
        arguments.guide = str(arguments.guide_model)
    if arguments.minutes is not None and not arguments.minutes > 0:
        raise UsageError(
            "BAD_VALUE", f"--minutes {arguments.minutes} is not positive", "give a number above 0"
        )
    if arguments.workers is not None and arguments.workers < 1:
        raise UsageError("BAD_VALUE", f"--workers {arguments.workers} is not positive", "give 1 or more")


def settings_from(arguments: argparse.Namespace) -> tuple[Workspace, config.Settings, Options]:
    """Workspace, settings and options of parsed arguments. Raises UsageError for anything unknown."""
    refuse_contradictions(arguments)
    overrides = given_settings(arguments)
    if arguments.task is not None:
        overrides = {**find_task(arguments.task).settings, **overrides}
    if arguments.epochs is not None and "train.minutes" not in config.parse_assignments(
        arguments.assignments
    ):
        overrides["train.minutes"] = 0.0  # those of a file do not count any more
    named = {
        "model.name": arguments.model,
        "data.guide": arguments.guide,
        "data.structures": arguments.structures,
        "train.init": arguments.init,
        "train.minutes": arguments.minutes,
        "train.epochs": arguments.epochs,
        "train.seed": arguments.seed,
        "data.seed": arguments.seed,
    }
    overrides |= {key: value for key, value in named.items() if value is not None}
    given = vars(arguments)
    options = Options(
        overrides=overrides,
        **{field.name: given[field.name] for field in dataclasses.fields(Options) if field.name in given},
    )
    workspace = Workspace(arguments.workspace, arguments.processed)
    settings = config.resolve(arguments.profile, overrides)
    if settings.train.init != "none" and not Path(settings.train.init).is_file():
        raise UsageError(
            "BAD_OPTION",
            "there is no such file to start from",
            "give --init the best_model.pth of a training",
            file=settings.train.init,
        )
    return workspace, settings, options


def shared_words(arguments: argparse.Namespace) -> list[str]:
    """The command line that gives another stage the same options but workspace, model, seed and restart."""
    words = []
    of_data, of_training = (
        ("data", "layout", "task", "structures"),
        ("profile", "init", "minutes", "epochs", "device"),
    )
    for name in (*of_data, *of_training, "config", "workers"):
        if (value := getattr(arguments, name)) is not None:
            words += [f"--{name}", str(value)]
    return words + [word for text in arguments.assignments for word in ("--set", text)]


def worker_count(options: Options) -> int:
    """How many processes to use: what was asked, else the usable cores, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return options.workers or min(8, usable)


def bar(label: str, *, unit: str = "case") -> Callable[..., Any]:
    """A function that wraps an iterable in a progress bar; nothing is drawn where no one watches (a file, a
    pipe).
    """
    from tqdm import tqdm

    watched = sys.stderr.isatty()
    return lambda items, total=None: tqdm(
        items, desc=label, total=total, unit=unit, leave=False, dynamic_ncols=True, disable=not watched
    )


@contextlib.contextmanager
def counting_bar(label: str, *, unit: str = "scan") -> Iterator[Callable[..., None]]:
    """A progress bar while it is entered: a function that is told (done, total)."""
    with bar(label, unit=unit)(None) as drawn:

        def show(done: int, total: int, *_: object) -> None:
            drawn.total = total
            drawn.update(done - drawn.n)

        yield show


@contextlib.contextmanager
def open_workspace(workspace: Workspace, settings: config.Settings, options: Options) -> Iterator[None]:
    """Hold a workspace that keeps apart from what was given, with the log started. Raises PipelineError."""
    keep_data(workspace, options.data, settings.data.guide)
    with lock_workspace(workspace):
        start_log(workspace)
        yield


def start_log(workspace: Workspace) -> None:
    """Send everything to logs/pipeline.log and messages of level INFO also to the terminal."""
    if log_file() == workspace.log:
        return
    with writing(workspace.log):
        workspace.log.parent.mkdir(parents=True, exist_ok=True)
        if workspace.log.exists() and not workspace.log.is_file():  # opening a pipe would wait for a reader
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        to_file = logging.FileHandler(workspace.log, encoding="utf-8", errors="backslashreplace")
    to_file.set_name(str(workspace.log))
    lines = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    lines.converter = time.gmtime
    to_file.setFormatter(lines)
    log_to_terminal(to_file)


def log_to_terminal(*others: logging.Handler) -> None:
    """Send messages of level INFO to the terminal, and everything to `others`, in place of those before."""
    for old in list(LOG.handlers):
        LOG.removeHandler(old)
        old.close()
    LOG.setLevel(logging.DEBUG)
    LOG.propagate = False
    to_terminal = logging.StreamHandler(sys.stdout)
    to_terminal.setLevel(logging.INFO)
    to_terminal.setFormatter(logging.Formatter("%(message)s"))
    for handler in (*others, to_terminal):
        LOG.addHandler(handler)


def log_file() -> Path | None:
    """Where the log goes, None while it has no file."""
    return next((Path(str(one.name)) for one in LOG.handlers if isinstance(one, logging.FileHandler)), None)


class Terminated(BaseException):
    """SIGTERM arrived; carries no message, ends with exit code 143."""


@contextlib.contextmanager
def interruptions() -> Iterator[None]:
    """Ctrl-C and SIGTERM are exceptions; one that a library swallowed is raised again at the end."""
    arrived: list[BaseException] = []

    def interrupt(number: int, _frame: object) -> None:
        arrived.append(KeyboardInterrupt() if number == signal.SIGINT else Terminated())
        raise arrived[-1]

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
        if arrived:
            raise arrived[-1]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def guarded(main: Callable[[list[str] | None], int], argv: list[str] | None) -> int:
    """The exit code of `main(argv)`: a PipelineError prints its line, all else goes to the log file."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show ends no run
    logging.raiseExceptions = False  # nor does a log that cannot be written any more
    try:
        with interruptions():
            stop_with_parent()
            code = main(argv)
        sys.stdout.flush()
        return code
    except PipelineError as error:
        return _told(error)
    except (KeyboardInterrupt, Terminated) as error:
        how, code = ("Stopped", 130) if isinstance(error, KeyboardInterrupt) else ("Terminated", 143)
        print(f"{how}. What is finished is kept; run the same command again to go on.", file=sys.stderr)
        return code
    except MemoryError:
        return _told(
            ResourceError("OUT_OF_MEMORY", "the memory does not suffice", "use --workers 1 or --low-vram")
        )
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again at its end
        if isinstance(error, OSError) and error.errno in SYSTEM_FAULTS:
            return _told(ResourceError.from_os(error))
        cause, fix = place_of(error), "please report it with this line"
        if (file := log_file()) is not None:
            cause, fix = f"{cause}, see {file.name}", "please report it with that file"
        return _told(PipelineError("INTERNAL", cause, fix))


def _told(error: PipelineError) -> int:
    """The exit code of an error, which is printed; where it came from goes to the log file."""
    LOG.debug("", exc_info=True)
    print(error, file=sys.stderr)
    return error.exit_code


def run_stage(
    prog: str,
    description: str,
    run: Callable[[Workspace, config.Settings, Options], int],
    argv: list[str] | None,
) -> int:
    """Parse, lock the workspace, run one stage and return its exit code."""

    def main(argv: list[str] | None) -> int:
        workspace, settings, options = settings_from(parser(prog, description).parse_args(argv))
        with open_workspace(workspace, settings, options):
            return run(workspace, settings, options)

    return guarded(main, argv)
