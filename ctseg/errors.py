"""The exception tree for everything a user can fix, and the record of a finding.

Scripts catch `PipelineError` and print its line; anything else is our own mistake and keeps its traceback
(in the log file). Codes are stable strings, listed in codes.csv: one may be added, none is renamed.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

EXIT_CODES = {
    0: "Done.",
    1: "Training diverged (train anew with a smaller learning rate), or this program failed (report it).",
    2: "A wrong option, setting, name or file of settings: the line names the right ones. Nothing was begun.",
    3: "Done, but some cases could not be used: the last lines say which. `--allow-skips` makes it 0.",
    4: "No data, no model, too few cases, or a stage before has not run: the line names stage or path.",
    5: "Files that do not belong together, or a checkpoint that must not be loaded: run that stage again.",
    6: "Disk or memory do not suffice, or a place cannot be read or written: free some, or choose another.",
    7: "Another run works in the same workspace: wait for it, or give another `--workspace`.",
    130: "Stopped with Ctrl-C. What is finished is kept: the same command goes on.",
    143: "Terminated (SIGTERM). What is finished is kept: the same command goes on.",
}


def code_table() -> list[dict[str, str]]:
    """All codes of messages with "meaning" and "remedy", in alphabetical order."""
    with Path(__file__).with_name("codes.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class PipelineError(Exception):
    """Something the user can fix: what is wrong, in which file, and the remedy."""

    exit_code = 1

    def __init__(self, code: str, cause: str, fix: str, *, case: str = "-", file: str | Path = "-"):
        super().__init__(code, cause, fix)
        self.code, self.cause, self.fix = code, cause.rstrip("."), fix.rstrip(".")
        self.case, self.file = case, str(file)

    def __str__(self) -> str:
        return format_line("ERROR", self.code, self.case, self.file, self.cause, self.fix)


@contextlib.contextmanager
def at_case(
    case: str, file: str | Path | None = None, *, kind: type[PipelineError] | None = None
) -> Iterator[None]:
    """A place where what is wrong is wrong with this case.

    file: what messages call its file; by default the name of the one that the error names. kind: the class
    that a CaseError becomes where the case cannot be left out.
    """
    try:
        yield
    except PipelineError as error:
        raised = kind if kind is not None and isinstance(error, CaseError) else type(error)
        place = Path(error.file).name if file is None else file
        raise raised(error.code, error.cause, error.fix, case=case, file=place) from None


class DivergedError(PipelineError):
    """Loss, gradients or weights became NaN or infinite."""


class UsageError(PipelineError):
    """A wrong option, key or value."""

    exit_code = 2


class CaseError(PipelineError):
    """One case cannot be used: it is skipped and reported, the run goes on."""

    exit_code = 3


class PreconditionError(PipelineError):
    """No data, no model, too few cases, or an earlier stage has not run."""

    exit_code = 4


class IntegrityError(PipelineError):
    """Artifacts that do not belong together, or a checkpoint that must not be loaded."""

    exit_code = 5


class ResourceError(PipelineError):
    """Disk, memory or processor do not suffice, or a place cannot be read or written."""

    exit_code = 6

    @classmethod
    def from_os(cls, error: OSError, path: str | Path | None = None) -> ResourceError:
        """What the system said of a place. path: what was to be written; None: what `error` names."""
        place = error.filename if path is None else path
        if isinstance(place, bytes):
            place = place.decode("utf-8", "backslashreplace")
        reason = (error.strerror or type(error).__name__).lower()
        code, fix = SYSTEM_FAULTS.get(
            error.errno or 0, ("PLACE_UNUSABLE", "choose another place, or repair this one")
        )
        if path is None and code == "OUTPUT_READONLY":
            code = "PERMISSION"
        if place is None:
            return cls(code, reason, fix)
        cause = f"'{place}' cannot be {'used' if path is None else 'written'}: {reason}"
        return cls(code, cause, fix, file=Path(place).name if isinstance(place, (str, Path)) else "-")


_FREE_SPACE = ("DISK_FULL", "free some space there, or choose another place, and run the same command again")
_PERMIT = ("OUTPUT_READONLY", "change its permissions, or choose another place")
_FOLDER = ("NOT_A_FOLDER", "a file stands where a folder is needed: move it away, or choose another place")
_FILE = ("NOT_A_FILE", "a folder stands where a file is needed: move it away, or choose another place")
SYSTEM_FAULTS = {  # error number of the system -> (code, fix)
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: _FREE_SPACE,
    errno.EROFS: _PERMIT,
    errno.EACCES: _PERMIT,
    errno.EPERM: _PERMIT,
    errno.ENOTDIR: _FOLDER,
    errno.EEXIST: _FOLDER,
    errno.EISDIR: _FILE,
    errno.ENOTEMPTY: _FILE,
    errno.ENAMETOOLONG: ("NAME_TOO_LONG", "choose a place with a shorter path"),
    errno.ENOENT: ("FILE_MISSING", "put it there again, and run the same command again"),
    errno.ELOOP: ("FILE_MISSING", "replace the link by what it should lead to"),
    errno.EPIPE: ("OUTPUT_CLOSED", "let the program that reads the output run to its end"),
}


class LockedError(PipelineError):
    """Another run works in the same workspace."""

    exit_code = 7


def format_line(severity: str, code: str, case: str, file: str, cause: str, fix: str) -> str:
    """A message in the one format that all messages have; control characters in names are escaped."""
    return f"{severity} {code} case={_printable(case)} file={_printable(file)}: {cause}. Fix: {fix}."


def _printable(name: str) -> str:
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name
    )


def place_of(error: Exception) -> str:
    """Kind and place of an error that nobody foresaw, without its text, which may quote a header."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"


def listed(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing noticed about one case: `severity` is ERROR (case refused), WARN (used) or NOTE (used)."""

    severity: Annotated[str, ("ERROR", "WARN", "NOTE").__contains__]
    code: str
    cause: str
    fix: str = "nothing to do"
    case: str = "-"
    file: str = "-"
    stage: str = "preprocess"

    @property
    def action(self) -> str:
        """What happened to the case: "skipped" or "used"."""
        return "skipped" if self.severity == "ERROR" else "used"

    @classmethod
    def from_error(cls, error: PipelineError, *, case: str, file: str | None = None) -> Finding:
        """The finding that reports a refused case."""
        return cls("ERROR", error.code, error.cause, error.fix, case, file or error.file)

    def at(self, case: str, file: str | Path | None = None) -> Finding:
        """The finding about this case. file: what messages call its file; by default the name of its own."""
        return dataclasses.replace(self, case=case, file=str(Path(self.file).name if file is None else file))

    def line(self) -> str:
        """The finding as it is printed."""
        return format_line(
            self.severity, self.code, self.case, self.file, self.cause.rstrip("."), self.fix.rstrip(".")
        )

    def record(self) -> dict[str, str]:
        """The finding as it stands in `preprocess_report.json`."""
        return {**dataclasses.asdict(self), "action": self.action}


Findings = list[Finding]
