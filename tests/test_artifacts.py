"""Atomic writes, hashes, tensors, names and the lock."""

from __future__ import annotations

import errno
import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ctseg import artifacts
from ctseg.errors import IntegrityError, LockedError, PreconditionError, ResourceError
from ctseg.manifest import Manifest

ROOT = Path(__file__).parent.parent


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
    first = artifacts.write_arrays(tmp_path / "a.npz", {"image": image, "label": label})
    second = artifacts.write_arrays(tmp_path / "b.npz", {"image": image, "label": label})
    assert first == second == artifacts.file_hash(tmp_path / "a.npz")
    names = ("image", "label")
    read = artifacts.read_arrays(tmp_path / "a.npz", names, sha256=first)
    assert np.array_equal(read["image"], image) and np.array_equal(read["label"], label)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[500] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(IntegrityError, match="hash"):
        artifacts.read_arrays(tmp_path / "a.npz", names, sha256=first)
    with pytest.raises(IntegrityError):  # the zip's own checksum sees it too
        artifacts.read_arrays(tmp_path / "a.npz", names)


@pytest.mark.parametrize(
    "identifier", ["../../x", "/etc/passwd", "a b", "ü", "", ".hidden", "-x", "a\nb", "$(id)", "x" * 300]
)
def test_names_stay_in_the_folder_and_do_not_collide(identifier, tmp_path):
    name = artifacts.safe_name(identifier)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert (
        name.isascii() and not name.startswith((".", "-")) and name != artifacts.safe_name(identifier + "x")
    )


def test_a_plain_name_is_kept():
    assert artifacts.safe_name("BDMAP_00000001") == "BDMAP_00000001"


def test_a_missing_artifact_names_the_command_that_makes_it(tmp_path):
    workspace = artifacts.Workspace(tmp_path)
    with pytest.raises(PreconditionError, match="--preprocess"):
        Manifest.load(workspace)
    with pytest.raises(PreconditionError, match="--train"):
        workspace.require(workspace.best_model, stage="train")


def test_the_lock_names_its_holder_in_words(tmp_path):
    workspace = artifacts.Workspace(tmp_path)
    with (
        artifacts.lock_workspace(workspace),
        pytest.raises(LockedError) as refused,
        artifacts.lock_workspace(workspace),
    ):
        pass
    assert f"process {os.getpid()} on {socket.gethostname()}, started 20" in str(
        refused.value
    ) and "{" not in str(refused.value)
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    "left",
    [
        "",
        "{",
        json.dumps({"pid": os.getpid(), "host": socket.gethostname()}),
        json.dumps({"pid": 1, "host": "elsewhere"}),
    ],
    ids=["empty", "broken", "own", "elsewhere"],
)
def test_a_lock_file_that_a_dead_run_left_holds_nobody_up(left, tmp_path):
    """Empty after a full disk; with the own process id after a container began anew."""
    (tmp_path / ".lock").write_text(left)
    with artifacts.lock_workspace(artifacts.Workspace(tmp_path)):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


def test_a_lock_ends_with_its_process_and_never_before(tmp_path):
    code = (
        "import sys, time\nfrom ctseg import artifacts\nwith "
        "artifacts.lock_workspace(artifacts.Workspace(sys.argv[1])):\n"
        "    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(LockedError, match=str(holder.pid)),
            artifacts.lock_workspace(artifacts.Workspace(tmp_path)),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with artifacts.lock_workspace(artifacts.Workspace(tmp_path)):
        pass


FULL = [errno.ENOSPC, errno.EDQUOT]


@pytest.mark.parametrize("number", [*FULL, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.EIO])
def test_what_the_system_refuses_is_a_resource_error_that_names_the_place(
    number, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "result.json"
    artifacts.write_json(path, 1)
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(ResourceError) as refused:
        artifacts.write_json(path, 2)
    assert str(path) in str(refused.value) and (refused.value.code == "DISK_FULL") == (number in FULL)
    monkeypatch.undo()
    assert artifacts.read_json(path) == 1 and [item.name for item in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("stage", ["preprocessing", "train", "evaluate", "analyze"])
def test_a_stage_that_cannot_begin_says_so_and_leaves_no_lock(stage, number, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Path, "write_text", failing(number))
    assert importlib.import_module(stage).main(["--workspace", str(tmp_path)]) == 6
    said = capsys.readouterr().err
    assert said.startswith("ERROR ") and str(tmp_path) in said and not list(tmp_path.iterdir())


def failing(number: int):
    """A function that the system answers with an error."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_names_in_other_bytes_than_utf8_survive_json_and_text(tmp_path):
    name = os.fsdecode(b"M\xfcller")
    artifacts.write_json(tmp_path / "names.json", {name: "\u4e2d"})
    assert (
        artifacts.read_json(tmp_path / "names.json") == {name: "\u4e2d"} and os.fsencode(name) == b"M\xfcller"
    )
    artifacts.write_text(tmp_path / "names.csv", name)
    assert (tmp_path / "names.csv").read_text() == "M\\udcfcller"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "empty", "kernel"])
def test_artifacts_are_regular_files_or_refused_without_reading(kind, tmp_path):
    path = tmp_path / "manifest.json"
    # says it has 0 bytes, as the ones that never end do
    make = {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "empty": path.touch,
        "kernel": lambda: path.symlink_to("/proc/self/maps"),
    }
    if kind in ("device", "kernel") and not Path("/proc/self/maps").exists():
        pytest.skip("no such files on this system")
    make[kind]()
    for read in (artifacts.read_json, lambda place: artifacts.read_arrays(place, ("image",), sha256="0")):
        with pytest.raises(IntegrityError, match="ARTIFACT_CORRUPT"):
            read(path)
    if kind not in ("empty", "kernel"):
        with pytest.raises(IntegrityError, match="not a file"):
            artifacts.file_hash(path)


def test_leftovers_of_dead_processes_are_swept(tmp_path):
    dead = tmp_path / ".tmp-999999999-abcd"
    alive = tmp_path / f".tmp-{os.getpid()}-abcd"
    dead.touch()
    alive.touch()
    artifacts.sweep_temporaries(tmp_path)
    assert not dead.exists() and alive.exists()


def test_windows_opens_no_folder_and_asks_no_process_whether_it_lives(tmp_path, monkeypatch):
    """There os.open refuses folders, os.kill ends what it is asked about, and what is being written cannot be
    removed.
    """

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Access is denied")

    with monkeypatch.context() as patched:
        patched.setattr(artifacts.os, "open", refuse)
        artifacts.write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
    left, written = tmp_path / ".tmp-1-left", tmp_path / ".tmp-2-written"
    left.touch()
    written.touch()
    unlink = Path.unlink
    with monkeypatch.context() as patched:
        patched.setattr(artifacts.os, "kill", lambda *_: pytest.fail("a process was ended"))
        patched.setattr(artifacts.os, "name", "nt")
        patched.setattr(
            Path, "unlink", lambda path, **more: refuse() if path == written else unlink(path, **more)
        )
        artifacts.sweep_temporaries(tmp_path)
    assert not left.exists() and written.exists()
