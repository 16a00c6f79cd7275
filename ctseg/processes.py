"""Work in several processes: a map that survives a worker's death, and processes that end with the one that
started them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, TypeVar

from ctseg.errors import ResourceError

PARENT = "CTSEG_PARENT"  # environment variable: process id of the run that a script is part of
LOOK_S = 1.0  # how often a script looks whether that run is still there

Job = TypeVar("Job")
Result = TypeVar("Result")


def ordered_map(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    after_death: Callable[[Job, Result | None], Result] | None = None,
) -> list[Result]:
    """work(job) of every job in the order of the jobs, with any number of workers the same.

    Workers are spawned: they inherit no threads and no open files. When one is killed, every unfinished job
    is tried once more in a worker of its own. after_death: makes the result of such a job from that of its
    second try, or from None where that was killed too; by default the second try counts and ResourceError
    WORKER_DIED is raised. progress: called with (jobs done, jobs in all). On any error (disk full, Ctrl-C)
    what has not begun is dropped.
    """
    report = progress or (lambda done, total: None)
    report(0, len(jobs))
    done: dict[int, Result] = {}
    workers = min(workers, len(jobs))
    if workers > 1:
        with worker_pool(workers) as pool:
            futures = {}
            with contextlib.suppress(BrokenProcessPool):  # a worker may die before the last job is handed in
                for index, job in enumerate(jobs):
                    futures[pool.submit(work, job)] = index
            try:
                for future in as_completed(futures):
                    if not isinstance(future.exception(), BrokenProcessPool):
                        done[futures[future]] = future.result()
                        report(len(done), len(jobs))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    for index, job in enumerate(jobs):
        if index in done:
            continue
        if workers <= 1:
            done[index] = work(job)
        else:
            result: Any = None
            try:
                with worker_pool(1) as pool:
                    result = pool.submit(work, job).result()
            except BrokenProcessPool:
                if after_death is None:
                    raise ResourceError(
                        "WORKER_DIED",
                        "a process was killed twice at the same work (memory, or a fault in a library)",
                        "use --workers 1 or a machine with more memory",
                    ) from None
            done[index] = result if after_death is None else after_death(job, result)
        report(len(done), len(jobs))
    return [done[index] for index in range(len(jobs))]


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Spawned workers that are prepared by `start_worker`."""
    return ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker
    )


def start_worker() -> None:
    """Prepare a worker: resampling in one thread, it ends with its parent, and Ctrl-C is the parent's
    business.
    """
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"  # read when a filter first runs
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
