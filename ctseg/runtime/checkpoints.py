"""Saving and loading checkpoints: one way to write, one way to read, nothing in them is ever executed.

A checkpoint holds only tensors, numbers, strings, lists and dicts, so `torch.load(weights_only=True)`
suffices. Beside each `x.pth` lies `x.pth.json` with its sha256; while a file is replaced the sidecar accepts
the old and the new hash, so that no moment of a crash makes a good file look corrupt.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle  # only for the name of the exception that torch.load raises on unsafe content
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ctseg import artifacts
from ctseg.errors import CaseError, IntegrityError
from ctseg.runtime import checkpoint_schema
from ctseg.runtime.checkpoint_schema import FOREIGN, mismatch
from ctseg.scans.formats.regular_files import require_regular

FORMAT, VERSION = "ctseg-checkpoint", 1
TENSOR_PARTS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
MAX_BYTES = 8 << 30  # far above any network here
REQUIRED = {key.split(".")[0] for key in checkpoint_schema.RULES}


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def save(path: Path, content: dict[str, Any]) -> str:
    """Write a checkpoint atomically and return its sha256. Weights that are not finite are refused."""
    checkpoint_schema.check_tensors(content, MAX_BYTES, path.name)
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
    """The content of a checkpoint; its hash, its schema and its numbers are checked before any of it is used.
    Raises IntegrityError.
    """
    name, size = path.name, _require_file(path)
    hashes = _noted_hashes(path)
    if hashes is not None and artifacts.file_hash(path) not in hashes:
        raise _corrupt(name, "its hash differs from the one noted beside it")
    try:
        _check_archive(path, size)
        content = torch.load(path, map_location="cpu", weights_only=True)
        _check_kind(content, name)
        checkpoint_schema.check(content, size, name)
    except IntegrityError:
        raise
    except pickle.UnpicklingError as error:
        raise IntegrityError(
            "UNSAFE_CHECKPOINT", "it holds something else than weights and was not opened", FOREIGN, file=name
        ) from error
    except Exception as error:  # whatever else a foreign file brings about
        raise _corrupt(name, f"not readable ({type(error).__name__})") from error
    return dict(content)


def _require_file(path: Path) -> int:
    """Size in bytes. IntegrityError for what is no regular file: opening a named pipe would wait for ever."""
    try:
        return require_regular(path)
    except CaseError as error:
        raise _corrupt(path.name, error.cause) from None


def _noted_hashes(path: Path) -> list[str] | None:
    """The hashes in the sidecar of a checkpoint, None when there is none."""
    sidecar = _sidecar(path)
    if not sidecar.exists():
        return None
    _require_file(sidecar)
    content = artifacts.read_json(sidecar)
    hashes = content.get("sha256") if isinstance(content, dict) else None
    if not isinstance(hashes, list):
        raise _corrupt(sidecar.name, "it holds no list of hashes")
    return hashes


def _readable_hashes(path: Path) -> list[str]:
    """As `_noted_hashes`, but empty where a sidecar is missing or damaged."""
    with contextlib.suppress(IntegrityError):
        return _noted_hashes(path) or []
    return []


def _check_archive(path: Path, size: int) -> None:
    """Raise IntegrityError unless a file of `size` bytes is a zip archive whose parts are whole and unpack to
    no more.
    """
    with path.open("rb") as stream:
        if stream.read(24).startswith(b"version https://git-lfs"):
            raise _corrupt(path.name, "it looks like a git-lfs pointer")
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > min(size, MAX_BYTES):
            raise IntegrityError(
                "CHECKPOINT_SIZE", f"it unpacks to more than its {size} bytes", FOREIGN, file=path.name
            )
        if archive.testzip() is not None:
            raise _corrupt(path.name, "a part of it fails its checksum")
        for member in archive.infolist():
            if member.filename.endswith("/data.pkl"):
                _check_globals(archive.read(member), path.name)


def _check_globals(pickled: bytes, name: str) -> None:
    """Raise IntegrityError unless a pickle names nothing but what tensors are made of: of the rest that
    weights_only allows, bytearray(n) takes n bytes.
    """
    named = {
        str(argument)
        for operation, argument, _ in pickletools.genops(pickled)
        if operation.name in ("GLOBAL", "INST")
    }
    if foreign := sorted(
        word for word in named if word not in TENSOR_PARTS and not re.fullmatch(r"torch \w+Storage", word)
    ):
        raise IntegrityError(
            "UNSAFE_CHECKPOINT",
            f"it holds something else than weights ({foreign[0][:60]}) and was not opened",
            FOREIGN,
            file=name,
        )


def _corrupt(name: str, cause: str) -> IntegrityError:
    return IntegrityError(
        "CHECKPOINT_CORRUPT",
        cause,
        "train again with --restart, or copy the file again from where it came",
        file=name,
    )


def _check_kind(content: Any, name: str) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise mismatch(
            "it was not written by this program", name, "use checkpoints/best_model.pth of a training run"
        )
    if content.get("version") != VERSION:
        raise IntegrityError(
            "CHECKPOINT_VERSION",
            f"version {content.get('version')} instead of {VERSION}",
            "use the version of this program that wrote it, or train again with --restart",
            file=name,
        )
    if missing := REQUIRED - set(content):
        raise mismatch(f"it lacks {', '.join(sorted(missing))}", name)


def require_same_form(network: torch.nn.Module, weights: dict[str, torch.Tensor], file: str) -> None:
    """IntegrityError unless names, shapes and number formats of weights are those of a network."""
    own, theirs = checkpoint_schema.form(network.state_dict()), checkpoint_schema.form(weights)
    differing = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
    if differing:
        shown = "; ".join(
            f"{key}: {own.get(key, 'none')} here, {theirs.get(key, 'none')} there" for key in differing[:3]
        )
        raise mismatch(
            f"{len(differing)} weights differ from the network ({shown})",
            file,
            "use the settings it was trained with",
        )


def restore(
    build: Callable[..., torch.nn.Module],
    arch: dict[str, Any],
    weights: dict[str, torch.Tensor],
    *,
    file: str,
) -> torch.nn.Module:
    """The network of an architecture, with weights. IntegrityError unless they fit.

    That is found out on the meta device, so that no memory is taken, however large the network claims to be.
    """
    try:
        with torch.device("meta"):
            planned = build(**arch)
    except Exception as error:  # of a description that comes from a file
        raise mismatch(f"its network cannot be built ({error})", file) from error
    require_same_form(planned, weights, file)
    network = build(**arch)
    network.load_state_dict(weights)
    for part in network.modules():
        limit, most = getattr(part, "pass_limit", None), getattr(part, "n_infer", 0)
        if limit is not None and not 1 <= int(limit) <= most:
            raise mismatch(f"it predicts in {int(limit)} passes, of at most {most}", file)
    return network


def previous_of(path: Path) -> Path:
    """Where the checkpoint before the last one lies."""
    return path.with_stem(f"{path.stem}.prev")


def rotate(path: Path) -> None:
    """Keep the current file as `<stem>.prev.pth` (with its sidecar) before a new one is written."""
    previous = previous_of(path)
    if path.exists():
        hashes, old = _readable_hashes(path), _readable_hashes(previous)
        artifacts.write_json(_sidecar(previous), {"sha256": [*old[-1:], *hashes]})
        data = path.read_bytes()
        artifacts.atomic_write(previous, lambda stream: stream.write(data))


def set_aside(path: Path) -> Path | None:
    """Rename a checkpoint, with its sidecar, to <stem>.<start of its hash><suffix>, so that a new training
    never overwrites it; None when there is none.
    """
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        raise in_the_way(path)
    digest = artifacts.file_hash(path)
    kept = path.with_name(f"{path.stem}.{digest[:8]}{path.suffix}")
    artifacts.write_json(_sidecar(kept), {"sha256": _readable_hashes(path) or [digest]})
    path.replace(kept)
    _sidecar(path).unlink(missing_ok=True)
    return kept


def in_the_way(path: Path) -> IntegrityError:
    """The error of something that is no file where a checkpoint should be written."""
    cause = "it is no file, so no checkpoint can be written there"
    return IntegrityError("CHECKPOINT_CORRUPT", cause, "remove it", file=path.name)


def remove(path: Path) -> None:
    """Delete the state of a training that is not gone on with, and the one before it."""
    for file in (path, previous_of(path)):
        for part in (file, _sidecar(file)):
            if part.is_dir():
                raise in_the_way(part)
            part.unlink(missing_ok=True)


def load_last(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """(content, warning) of `last.pth`, or of the one before it when the last is damaged; None when there is
    none.
    """
    problem: IntegrityError | None = None
    for candidate in (path, previous_of(path)):
        if not os.path.lexists(candidate):
            continue
        try:
            return load(candidate), str(problem) if problem else None
        except IntegrityError as error:
            if error.code in ("UNSAFE_CHECKPOINT", "CHECKPOINT_VERSION"):
                raise
            problem = problem or error
    if problem is not None:
        raise problem
    return None, None
