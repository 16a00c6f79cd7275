"""Shared fixtures: where the real scans are, no network in any test, and pictures drawn only where one is
looked at.
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import filelock
import pytest
from dots import save_dot

# One thread per process: tests run side by side, and so many tiny steps only lose time in waiting for each
# other. Set before torch is imported, and inherited by the processes that tests start.
for variable in (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
):
    os.environ[variable] = "1"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that CTSEG_DATA points at; the test is skipped, saying so, when there is none."""
    folder = Path(os.environ.get("CTSEG_DATA", ""))
    if not os.environ.get("CTSEG_DATA") or not folder.is_dir():
        pytest.skip("CTSEG_DATA is not set: real scans are not at hand")
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline downloads nothing: a test that opens an internet connection fails."""

    def refuse(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise AssertionError(f"connection to {address}")
        original(self, address)

    original = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session", autouse=True)
def no_sync() -> Iterator[None]:
    """No waiting for the disk, 20,000 times in all: no test cuts the power."""
    with mock.patch("os.fsync"):
        yield


gc.disable()  # while tests are collected: a third of that time would go into walks over what all stays


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


# Files that take longest go first: with a file per worker, the last one begun decides when all is done.
LONGEST = (
    "test_compare.py",
    "test_tasks.py",
    "test_train.py",
    "test_infer_results.py",
    "test_cpu_bfloat16.py",
    "test_anatomy.py",
    "test_models.py",
    "test_infer.py",
    "test_guided.py",
    "test_reporting.py",
    "test_dicom_twin.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of LONGEST in its order, then all others as they come."""
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.path.name) in LONGEST else len(LONGEST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Save a dot for every plot, in the fixtures of a test too, unless it is marked `pictures`."""
    if item.get_closest_marker("pictures"):
        return (yield)
    with mock.patch("matplotlib.figure.Figure.savefig", save_dot):
        return (yield)


@pytest.fixture(scope="session")
def cohorts(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, Path]:
    """Tiny synthetic cohorts by task, drawn when first asked for, once for all processes."""
    root = tmp_path_factory.getbasetemp()
    root = (root if worker_id == "master" else root.parent) / "cohorts"
    root.mkdir(exist_ok=True)

    class Drawn(dict[str, Path]):
        def __missing__(self, task: str) -> Path:
            from ctseg.anatomy import write_cohort

            with filelock.FileLock(root / f"{task}.lock"):
                # what stands there is kept
                seed = 1 if task == "pelvis" else 0
                patients = 4 if task in ("airway", "heart_like") else 6  # of several forms
                write_cohort(root / task, task=task, patients=patients, seed=seed, size="tiny")
            self[task] = root / task
            return self[task]

    return Drawn()


@pytest.fixture(scope="module")
def small_tensors() -> Iterator[None]:
    """Tensors of 64^3 instead of 128^3 voxels, in this process, for tests of what is done with them: an
    eighth of the work, and about as fine as the scans of the tiny patients.
    """
    from ctseg.geometry import grids
    from ctseg.preparation import case_to_tensors, choices

    with pytest.MonkeyPatch.context() as patch:
        for module in (grids, case_to_tensors, choices):
            patch.setattr(module, "TENSOR_SIZE", 64)
        yield
