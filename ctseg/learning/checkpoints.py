"""Saving and loading checkpoints: one way to write, one way to read, nothing in them is ever executed.

A checkpoint holds only tensors, numbers, strings, lists and dicts, so `torch.load(weights_only=True)` suffices.
Beside each `x.pth` lies `x.pth.json` with its sha256; while a file is replaced the sidecar accepts the old and the
new hash, so that no moment of a crash makes a good file look corrupt.
"""

from __future__ import annotations

import hashlib
import io
import pickle  # only for the name of the exception that torch.load raises on unsafe content
import zipfile
from pathlib import Path
from typing import Any

import torch

from ctseg import artifacts
from ctseg.errors import IntegrityError

FORMAT, VERSION = "ctseg-checkpoint", 1
MAX_BYTES = 8 << 30  # far above any network here
REQUIRED = {"format", "version", "arch", "structures", "preprocess", "settings", "manifest_hash", "splits_hash", "epoch", "model", "largest_component"}


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def save(path: Path, content: dict[str, Any]) -> str:
    """Write a checkpoint atomically and return its sha256. Weights that are not finite are refused."""
    _require_finite(content["model"], path)
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **content}, buffer)
    data = buffer.getvalue()
    new = hashlib.sha256(data).hexdigest()
    old = [artifacts.file_hash(path)] if path.exists() else []
    artifacts.write_json(_sidecar(path), {"sha256": [*old, new]})
    artifacts.atomic_write(path, lambda stream: stream.write(data))
    artifacts.write_json(_sidecar(path), {"sha256": [new]})
    return new


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, its hash, schema and numbers checked. Raises IntegrityError."""
    name = path.name
    try:
        artifacts.require_regular(path)
    except IntegrityError as error:
        raise _corrupt(name, error.cause) from None
    if path.stat().st_size > MAX_BYTES:
        raise IntegrityError("CHECKPOINT_SIZE", f"{path.stat().st_size} bytes", "use a checkpoint written by this program", file=name)
    if _sidecar(path).exists() and artifacts.file_hash(path) not in artifacts.read_json(_sidecar(path)).get("sha256", []):
        raise _corrupt(name, "its hash differs from the one noted beside it")
    with path.open("rb") as stream:
        if stream.read(24).startswith(b"version https://git-lfs"):
            raise _corrupt(name, "it looks like a git-lfs pointer")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise _corrupt(name, "a part of it fails its checksum")
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                raise IntegrityError("CHECKPOINT_SIZE", "it unpacks to too many bytes", "use a checkpoint written by this program", file=name)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise IntegrityError("UNSAFE_CHECKPOINT", "it holds something else than weights and was not opened", "use a checkpoint written by this program", file=name) from error
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, ValueError) as error:
        raise _corrupt(name, f"not readable ({type(error).__name__})") from error
    _check_schema(content, path)
    for part in (content, content.get("locator")):
        if part:
            part["arch"].setdefault("decoder_unit", "plain")  # of networks from before it was a choice
    return dict(content)


def _corrupt(name: str, cause: str) -> IntegrityError:
    return IntegrityError("CHECKPOINT_CORRUPT", cause, "train again, or copy the file again from where it came", file=name)


def _check_schema(content: Any, path: Path) -> None:
    name = path.name
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise IntegrityError("CHECKPOINT_MISMATCH", "it was not written by this program", "use checkpoints/best_model.pth of a training run", file=name)
    if content.get("version") != VERSION:
        raise IntegrityError("CHECKPOINT_VERSION", f"version {content.get('version')} instead of {VERSION}", "train again with this version", file=name)
    missing = REQUIRED - set(content)
    if missing:
        raise IntegrityError("CHECKPOINT_MISMATCH", f"it lacks {', '.join(sorted(missing))}", "use a checkpoint written by this program", file=name)
    _require_finite(content["model"], path)


def _require_finite(weights: dict[str, torch.Tensor], path: Path) -> None:
    for key, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor) or (tensor.layout == torch.strided and tensor.numel() > tensor.untyped_storage().nbytes()):
            raise IntegrityError("CHECKPOINT_SIZE", f"'{key}' claims more elements than it stores", "use a checkpoint written by this program", file=path.name)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise IntegrityError("CHECKPOINT_NONFINITE", f"'{key}' holds NaN or infinity", "train again, with a smaller train.learning_rate", file=path.name)


def load_weights(network: torch.nn.Module, weights: dict[str, torch.Tensor], *, file: str) -> None:
    """Put weights into a network; every name and shape must match."""
    own = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    theirs = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    differing = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
    if differing:
        shown = "; ".join(f"{key}: {own.get(key)} here, {theirs.get(key)} there" for key in differing[:3])
        raise IntegrityError("CHECKPOINT_MISMATCH", f"{len(differing)} weights differ from the network ({shown})", "use the settings it was trained with", file=file)
    network.load_state_dict(weights, strict=True)


def rotate(path: Path) -> Path:
    """Keep the current file as `<stem>.prev.pth` (with its sidecar) before a new one is written."""
    previous = path.with_name(f"{path.stem}.prev{path.suffix}")
    if path.exists():
        hashes = artifacts.read_json(_sidecar(path)).get("sha256", []) if _sidecar(path).exists() else []
        old = artifacts.read_json(_sidecar(previous)).get("sha256", []) if _sidecar(previous).exists() else []
        artifacts.write_json(_sidecar(previous), {"sha256": [*old[-1:], *hashes]})
        data = path.read_bytes()
        artifacts.atomic_write(previous, lambda stream: stream.write(data))
    return previous


def load_last(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """(content, warning) of `last.pth`, or of the one before it when the last is damaged; None when there is none."""
    previous = path.with_name(f"{path.stem}.prev{path.suffix}")
    problem: IntegrityError | None = None
    for candidate in (path, previous):
        if not candidate.exists():
            continue
        try:
            return load(candidate), str(problem) if problem else None
        except IntegrityError as error:
            if error.code not in ("CHECKPOINT_CORRUPT", "CHECKPOINT_NONFINITE"):
                raise
            problem = problem or error
    if problem is not None:
        raise problem
    return None, None
