"""The ordered map over processes: order, progress, deaths, errors, one thread for each worker."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ctseg.errors import ResourceError
from ctseg.processes import ordered_map


def backwards(number: int) -> int:
    """The number; the first jobs take longest."""
    time.sleep(0.2 if number == 0 else 0)
    return number


def die_at_two(number: int) -> int:
    if number == 2:
        os._exit(9)
    return number


def die_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os._exit(9)
    return "alive"


def itk_threads(_: int) -> int:
    import SimpleITK

    return SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_results_stand_in_the_order_of_the_jobs_and_progress_is_told(workers: int) -> None:
    told: list[tuple[int, int]] = []
    assert ordered_map(
        backwards, range(3), workers=workers, progress=lambda done, total: told.append((done, total))
    ) == [0, 1, 2]
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_killed_worker_costs_its_own_job_alone() -> None:
    assert ordered_map(
        die_at_two, range(4), workers=2, after_death=lambda job, result: -job if result is None else result
    ) == [0, 1, -2, 3]
    with pytest.raises(ResourceError, match="WORKER_DIED"):
        ordered_map(die_at_two, range(4), workers=2)


def test_a_worker_that_died_once_gets_a_second_try(tmp_path: Path) -> None:
    (tmp_path / "lives").touch()
    markers = [tmp_path / "dies once", tmp_path / "lives"]
    assert ordered_map(die_once, markers, workers=2) == ["alive", "alive"]


def test_an_error_of_the_work_comes_out_and_workers_resample_in_one_thread() -> None:
    with pytest.raises(TypeError):
        ordered_map(len, [1, 2, 3], workers=2)  # type: ignore[arg-type]
    assert ordered_map(itk_threads, range(2), workers=2) == [1, 1]
