"""The pipeline on a tiny synthetic cohort, as small as it can be."""

from __future__ import annotations

from pathlib import Path

import run_pipeline
from ctseg import artifacts


def words_of(**settings: object) -> list[str]:
    """Command-line words of settings, for example {"train.epochs": 2}."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


TINY = [
    *("--workers", "1", "--epochs", "2", "--profile", "cpu"),
    *words_of(
        **{
            "train.steps_per_epoch": 2,
            "train.patch_size": "32,32,32",
            "model.levels": 3,
            "model.width": 4,
            "train.validations": 1,
            "evaluate.overlap": 0,
        }
    ),
]
# a canvas of the scan's own size, a tenth of the default's voxels, where the grid is not the subject
COARSE = words_of(**{"data.grid": "windows", "data.spacing_mm": 6})
SCORED = ("preprocess", "train", "eval")  # all but the page


def run(
    workspace: Path, cohort: Path, *arguments: str, stages: tuple[str, ...] = SCORED
) -> artifacts.Workspace:
    """Stages in a workspace; asserts that they end well."""
    chosen = [f"--{stage}" for stage in stages]
    common = ["--data", str(cohort), "--workspace", str(workspace)]
    assert run_pipeline.main([*chosen, *common, *arguments, *TINY]) == 0
    return artifacts.Workspace(workspace)
