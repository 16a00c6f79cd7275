"""Atomic writes, hashes, tensors, names and the lock."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from ctseg import artifacts
from ctseg.errors import IntegrityError, LockedError, PreconditionError


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "a.json"
    artifacts.write_json(path, {"a": 1})

    def fail(stream):
        stream.write(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        artifacts.atomic_write(path, fail)
    assert artifacts.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": Infinity}', '{"a": 1', "\xff"])
def test_json_that_is_not_json_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(IntegrityError, match=r"ARTIFACT_CORRUPT.*a\.json"):
        artifacts.read_json(path)


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError):
        artifacts.write_json(tmp_path / "a.json", {"a": float("nan")})


def test_tensors_are_byte_identical_and_checked(tmp_path):
    image = np.random.default_rng(0).random((10, 12, 14)).astype(np.float16)
    label = np.zeros((10, 12, 14), np.uint8)
    first = artifacts.write_tensor(tmp_path / "a.npz", image=image, label=label)
    second = artifacts.write_tensor(tmp_path / "b.npz", image=image, label=label)
    assert first == second == artifacts.file_hash(tmp_path / "a.npz")
    read_image, read_label = artifacts.read_tensor(tmp_path / "a.npz", sha256=first)
    assert np.array_equal(read_image, image) and np.array_equal(read_label, label)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[500] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(IntegrityError, match="hash"):
        artifacts.read_tensor(tmp_path / "a.npz", sha256=first)
    with pytest.raises(IntegrityError):  # the zip's own checksum sees it too
        artifacts.read_tensor(tmp_path / "a.npz")


@pytest.mark.parametrize("identifier", ["../../x", "/etc/passwd", "a b", "ü", "", ".hidden", "-x", "a\nb", "$(id)", "x" * 300])
def test_names_stay_in_the_folder_and_do_not_collide(identifier, tmp_path):
    name = artifacts.safe_name(identifier)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert name.isascii() and not name.startswith((".", "-")) and name != artifacts.safe_name(identifier + "x")


def test_a_plain_name_is_kept():
    assert artifacts.safe_name("BDMAP_00000001") == "BDMAP_00000001"


def test_a_missing_artifact_names_the_command_that_makes_it(tmp_path):
    workspace = artifacts.Workspace(tmp_path)
    with pytest.raises(PreconditionError, match="--preprocess"):
        artifacts.load_manifest(workspace)
    with pytest.raises(PreconditionError, match="--train"):
        workspace.require(workspace.best_model, stage="train")


def test_the_lock_names_its_holder_and_a_dead_one_is_taken_over(tmp_path):
    workspace = artifacts.Workspace(tmp_path)
    with artifacts.lock_workspace(workspace), pytest.raises(LockedError, match=str(os.getpid())), artifacts.lock_workspace(workspace):
        pass
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    import socket

    (tmp_path / ".lock").write_text(json.dumps({"pid": child, "host": socket.gethostname()}))
    with artifacts.lock_workspace(workspace):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


def test_leftovers_of_dead_processes_are_swept(tmp_path):
    dead = tmp_path / ".tmp-999999999-abcd"
    alive = tmp_path / f".tmp-{os.getpid()}-abcd"
    dead.touch()
    alive.touch()
    artifacts.sweep_temporaries(tmp_path)
    assert not dead.exists() and alive.exists()
