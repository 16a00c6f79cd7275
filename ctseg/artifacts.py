"""Every file name and format of a workspace, written atomically and checked when read.

This module is the only one that knows where an artifact lies. `docs/artifacts.md` is its page for people.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import socket
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np

from ctseg.errors import IntegrityError, LockedError, PreconditionError, ResourceError

# what a training's history says of each epoch, and of each structure in it
SERIES = ("epochs", "train_loss", "val_loss", "val_mean_dice", "learning_rate", "epoch_seconds")
SERIES_OF_STRUCTURES = ("train_dice", "val_dice", "val_hausdorff")
# `stopped` of a finished training's history
TRAINED = {"minutes": "time budget used up", "epochs": "all epochs done", "patience": "no further gain"}
# of any other
UNFINISHED = {
    "running": "not finished",
    "interrupted": "interrupted",
    "diverged": "stopped because it diverged",
}
TENSOR_SIZE = 128  # voxels along each axis of every stored tensor: the card's fixed 128^3


class Workspace:
    """The folder of one experiment and the names of everything in it.

    processed: where the tensors lie when several experiments share them; by default processed_data in the
    folder itself.
    """

    def __init__(self, root: str | Path = ".", processed: str | Path | None = None):
        self.root = Path(root).absolute()
        self.synthetic_data = self.root / "synthetic_data"
        self.processed = Path(processed).absolute() if processed is not None else self.root / "processed_data"
        self.manifest = self.processed / "manifest.json"
        self.splits = self.processed / "splits.json"
        self.preprocess_report = self.processed / "preprocess_report.json"
        self.tensors = self.processed / "tensors"
        self.references = self.processed / "references"
        self.guides = self.processed / "guides"
        self.guide_masks = self.processed / "guide_masks"
        self.finished = self.processed / "finished"  # manifest entries of a run that has not come to its end
        self.checkpoints = self.root / "checkpoints"
        self.best_model = self.checkpoints / "best_model.pth"
        self.last_model = self.checkpoints / "last.pth"
        self.history = self.checkpoints / "training_history.json"
        self.evaluation = self.root / "evaluation_results"
        self.predictions = self.evaluation / "predictions"
        self.run_record = self.evaluation / "evaluation_run.json"
        self.topology = self.evaluation / "topology.csv"
        self.calibration = self.evaluation / "calibration.json"
        self.analysis = self.root / "analysis"
        self.report = self.analysis / "report.html"
        self.viewer = self.analysis / "viewer.html"
        self.comparison = self.root / "comparison"
        self.log = self.root / "logs" / "pipeline.log"
        self.config = self.root / "config.toml"

    def for_locator(self) -> Workspace:
        """The same workspace, with the names that the training of a locator uses for its checkpoints and
        history.
        """
        other = Workspace(self.root, self.processed)
        other.best_model = self.checkpoints / "locator.pth"
        other.last_model = self.checkpoints / "locator_last.pth"
        other.history = self.checkpoints / "locator_history.json"
        return other

    def folders(self) -> list[Path]:
        """Itself and every folder in it that stages write to."""
        return [
            self.root,
            self.processed,
            self.tensors,
            self.references,
            self.guides,
            self.guide_masks,
            self.checkpoints,
            self.evaluation,
            self.predictions,
            self.analysis,
            self.comparison,
            self.log.parent,
        ]

    def relative(self, path: str | Path) -> str:
        """The path below the workspace as it is printed and stored (never an absolute path)."""
        path = Path(path)
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    def require(self, path: Path, *, stage: str) -> Path:
        """The path itself; a PreconditionError that names the command which writes it when it is missing."""
        if not path.exists():
            raise PreconditionError(
                "MISSING_ARTIFACT",
                f"{self.relative(path)} does not exist; the {stage} stage writes it",
                f"run `python run_pipeline.py --{stage}` first",
                file=self.relative(path),
            )
        return path


@contextlib.contextmanager
def lock_workspace(workspace: Workspace) -> Iterator[None]:
    """Hold the workspace for this process; the system gives the lock back when a process ends, however it
    ends.

    Raises LockedError LOCKED with the holder, ResourceError when the workspace cannot be written.
    """
    path = workspace.root / ".lock"
    lock = filelock.FileLock(path, timeout=0)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise LockedError(
                "LOCKED",
                f"the workspace is used by {_lock_holder(path)}",
                "wait until it has ended, or use another --workspace",
                file=".lock",
            ) from None
    try:
        with writing(path):
            started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
            path.write_text(json.dumps(holder), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held: who waits for this file finds it gone and takes a new one
        lock.release()


def _lock_holder(path: Path) -> str:
    """Who holds a lock, as words."""
    try:
        holder = read_json(path)
        return f"another run (process {holder['pid']} on {holder['host']}, started {holder['started']})"
    except (OSError, IntegrityError, KeyError, TypeError):
        return "another run that has just begun"


def _alive(pid: int) -> bool:
    if os.name != "posix":  # there os.kill ends a process, and what is being written cannot be removed anyway
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


# ---- writing ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """A place where whatever the system refuses is a ResourceError that names `path`."""
    try:
        yield
    except OSError as error:
        raise ResourceError.from_os(error, path) from error


def atomic_write(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that at every moment either the old or the new content stands under its name.

    `write` gets a binary stream. Temporary file in the same folder, fsync, rename, fsync of the folder.
    Raises ResourceError when the system refuses (DISK_FULL, OUTPUT_READONLY); the old file then is intact.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{os.urandom(4).hex()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    with contextlib.suppress(OSError):  # not every system can sync a folder; the file itself stands by now
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep_temporaries(folder: Path) -> None:
    """Remove temporary files that a killed process left in `folder` and below."""
    for leftover in folder.rglob(".tmp-*"):
        parts = leftover.name.split("-")
        if len(parts) == 3 and parts[1].isdigit() and not _alive(int(parts[1])):
            with contextlib.suppress(PermissionError):
                leftover.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write text atomically as UTF-8. A byte of a name that is no UTF-8 becomes \\udcXX, in JSON the same
    name.
    """
    atomic_write(path, lambda stream: stream.write(text.encode("utf-8", "backslashreplace")))


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically: UTF-8, indented, no NaN or infinity (undefined is null)."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def require_regular(path: Path) -> int:
    """Size in bytes of an artifact; IntegrityError for an empty one, a pipe or a device (some never end)."""
    size = path.stat().st_size
    if not path.is_file() or not size:  # files of the kernel say that they are empty
        cause = "it is empty" if path.is_file() else "it is a folder, a pipe or a device, not a file"
        raise IntegrityError(
            "ARTIFACT_CORRUPT", cause, "remove it and run the stage that writes it again", file=path.name
        )
    return size


def read_json(path: str | Path) -> Any:
    """The content of a JSON artifact; IntegrityError when it is not valid JSON (NaN and Infinity are not)."""
    path = Path(path)
    require_regular(path)

    def refuse(token: str) -> None:
        raise ValueError(f"the token {token} is not JSON")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (ValueError, UnicodeDecodeError) as error:
        raise _corrupt(path, f"not readable as JSON ({error})") from error


def read_record(path: str | Path) -> dict[str, Any]:
    """The content of a JSON artifact that is an object; IntegrityError for anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise _corrupt(Path(path), "it holds no JSON object")
    return content


def _corrupt(path: Path, cause: str) -> IntegrityError:
    return IntegrityError("ARTIFACT_CORRUPT", cause, "run the stage that writes it again", file=path.name)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what the numbers are."""
    return {
        "python": platform.python_version(),
        **{name.lower(): version(name) for name in ("numpy", "scipy", "SimpleITK", "nibabel", "pydicom")},
    }


def canonical_hash(content: Any) -> str:
    """sha256 of a JSON value, independent of key order."""
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


def file_hash(path: str | Path) -> str:
    """sha256 of a file's bytes. IntegrityError for what is no regular file."""
    digest, path = hashlib.sha256(), Path(path)
    if path.stat().st_size == 0 and path.is_file():
        return digest.hexdigest()
    require_regular(path)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def safe_name(identifier: str) -> str:
    """A file name made from an identifier; a changed one gets 8 digits of its hash, so two never collide."""
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in identifier)[
        :100
    ].lstrip(".-")
    if clean == identifier and clean:
        return clean
    return f"{clean or 'case'}_{hashlib.sha256(identifier.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


# ---- arrays -----------------------------------------------------------------------------------------------


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write named arrays into one .npz and return the sha256 of the file (the same content gives the same
    bytes).

    Stored, not compressed (`docs/decisions/002-storage.md`): zip members carry a CRC, nothing is pickled.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0)), member.getbuffer()
            )
    data = buffer.getbuffer()
    atomic_write(path, lambda stream: stream.write(data))
    return hashlib.sha256(data).hexdigest()


def read_arrays(
    path: str | Path, required: Sequence[str], *, sha256: str | None = None
) -> dict[str, np.ndarray]:
    """All arrays of an .npz of the preprocess stage. IntegrityError when its hash is another, it is broken,
    or one is missing.
    """
    path = Path(path)
    require_regular(path)
    if sha256 is not None and file_hash(path) != sha256:
        raise IntegrityError(
            "ARTIFACT_CORRUPT",
            "its hash differs from the manifest",
            "run `python run_pipeline.py --preprocess` again",
            file=path.name,
        )
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        if missing := set(required) - set(arrays):
            raise KeyError(f"no {', '.join(sorted(missing))}")
        return arrays
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise IntegrityError(
            "ARTIFACT_CORRUPT",
            f"not readable ({error})",
            "run `python run_pipeline.py --preprocess` again",
            file=path.name,
        ) from error
