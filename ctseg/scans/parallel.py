"""Cases over worker processes, so that a worker which dies costs one case and never the run."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from ctseg.errors import Finding
from ctseg.scans.case_to_tensors import CaseJob, CaseOutcome, prepare_case, start_worker

SERIAL_LIMIT = 2  # starting workers takes about a second: not worth it for so few cases


def map_cases(
    jobs: list[CaseJob],
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    work: Callable[[CaseJob], CaseOutcome] = prepare_case,
) -> list[CaseOutcome]:
    """What came of each job, in the order of the jobs, with any number of workers the same.

    Workers are spawned: they inherit no threads and no open files. When one is killed, every unfinished case is
    tried once more in a worker of its own; the one that kills that too is refused as WORKER_DIED.
    """
    report = progress or (lambda done, total: None)
    report(0, len(jobs))
    if workers <= 1 or len(jobs) <= SERIAL_LIMIT:
        results = []
        for job in jobs:
            results.append(work(job))
            report(len(results), len(jobs))
        return results
    done: dict[int, CaseOutcome] = {}
    with _pool(workers) as pool:
        futures = {pool.submit(work, job): index for index, job in enumerate(jobs)}
        _collect(pool, futures, done, lambda: report(len(done), len(jobs)))
    for index, job in enumerate(jobs):
        if index not in done:
            done[index] = _alone(job, work)
            report(len(done), len(jobs))
    return [done[index] for index in range(len(jobs))]


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker
    )


def _collect(
    pool: ProcessPoolExecutor,
    futures: dict[Future[CaseOutcome], int],
    done: dict[int, CaseOutcome],
    tick: Callable[[], None],
) -> None:
    """Gather results as they come; on any error (disk full, Ctrl-C) what has not begun is dropped."""
    try:
        for future in as_completed(futures):
            try:
                done[futures[future]] = future.result()
            except BrokenProcessPool:
                continue
            tick()
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise


def _alone(job: CaseJob, work: Callable[[CaseJob], CaseOutcome]) -> CaseOutcome:
    """The job in a fresh worker of its own; the finding tells that a worker died before."""
    case_id = job.record.case_id
    try:
        with _pool(1) as pool:
            outcome = pool.submit(work, job).result()
    except BrokenProcessPool:
        cause = "the process that read this scan was killed twice (memory, or a fault in a library)"
        return CaseOutcome(
            case_id,
            None,
            (
                Finding(
                    "ERROR",
                    "WORKER_DIED",
                    cause,
                    "use --workers 1 or a machine with more memory; check the scan",
                    case_id,
                ),
            ),
        )
    note = Finding(
        "WARN",
        "WORKER_DIED",
        "a process died while this scan was worked on or waiting; the second try went well",
        "nothing to do",
        case_id,
    )
    return dataclasses.replace(outcome, findings=(*outcome.findings, note))
