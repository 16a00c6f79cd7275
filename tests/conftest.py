"""Shared fixtures: where the real scans are, and no network in any test."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

# One thread per process: tests run side by side, and so many tiny steps only lose time in waiting for each other.
# Set before torch is imported, and inherited by the processes that tests start.
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
