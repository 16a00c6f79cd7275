"""Scripts in processes of their own that import torch once for all: a server imports it and forks."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "train", "ctseg.learning.training"])


def start(script: str, arguments: Sequence[str], output: Path) -> BaseProcess:
    """The process of `python SCRIPT.py ARGUMENTS`; what it says on stdout and stderr goes to that file."""
    # a daemon: one that does not stop may not keep the tests from ending
    process = SERVER.Process(target=call, args=(script, list(arguments), output), daemon=True)
    process.start()
    return process


def call(script: str, arguments: list[str], output: Path) -> None:
    """Run in the new process."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        os.dup2(file, number)
        stream.reconfigure(line_buffering=True)
    sys.exit(importlib.import_module(script).main(arguments))
