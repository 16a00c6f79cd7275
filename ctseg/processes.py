"""Processes that end with the one that started them: a parent that is killed can tell them nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing import connection

PARENT = "CTSEG_PARENT"  # environment variable: process id of the run that a script is part of
_LOOK_S = 1.0


def end_with_parent() -> None:
    """In a worker of multiprocessing: end at once when the process that the work is for is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def stop_with_parent() -> None:
    """In a script that another script started (PARENT is set): stop as by SIGTERM when that one is gone."""
    parent = os.environ.get(PARENT)
    if parent is not None and os.name == "posix":
        threading.Thread(target=_stop_after, args=(parent,), daemon=True).start()


def _stop_after(parent: str) -> None:
    while str(os.getppid()) == parent:
        time.sleep(_LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
