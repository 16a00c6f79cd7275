"""The pictures of chosen test cases: reads scan, reference and prediction of each case once, in scan geometry."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterable
from typing import Any

from ctseg.artifacts import Workspace
from ctseg.errors import CaseError, PipelineError
from ctseg.geometry.volume import Grid, Volume
from ctseg.reporting import results
from ctseg.reporting.pictures import slices
from ctseg.reporting.pictures.slices import Choice
from ctseg.reporting.results import Results
from ctseg.scans.datasets import load_case
from ctseg.scans.formats import volume_files

REMARKS = {
    "missed": "missed",
    "hallucinated": "hallucinated",
    "unannotated": "not annotated",
    "unevaluable": "cut off by the field of view",
}
Progress = Callable[[list[str]], Iterable[str]]


@dataclasses.dataclass(frozen=True)
class CasePicture:
    """A choice with its JPEG, or with the reason why there is none."""

    choice: Choice
    jpeg: bytes | None
    missing: str | None = None


def make(
    workspace: Workspace,
    found: Results,
    *,
    progress: Progress = iter,
    view: Callable[[Choice, Volume, Volume, Volume], None] | None = None,
) -> list[CasePicture]:
    """The pictures of `slices.choose`, in its order. Cases are opened one at a time, each once.

    view: told (choice, scan in HU, reference, prediction) of each choice of a whole case.
    """
    choices = slices.choose(found.rows, found.structures)
    made: dict[Choice, CasePicture] = {}
    for case_id in progress(list(dict.fromkeys(choice.case_id for choice in choices))):
        mine = [choice for choice in choices if choice.case_id == case_id]
        remarks = {
            str(row["structure"]): REMARKS[row["state"]]
            for row in found.rows
            if row["case_id"] == case_id and row["state"] in REMARKS
        }
        try:
            image, reference, prediction = _load(workspace, found, case_id)
            for choice in mine:
                stream = io.BytesIO()
                slices.draw_case(
                    image,
                    reference,
                    prediction,
                    found.structures,
                    stream,
                    only=choice.structure,
                    remarks=remarks,
                    synthetic=found.synthetic,
                    display_hu=slices.display_window(found.manifest.get("window_hu")),
                )
                made[choice] = CasePicture(choice, stream.getvalue())
                if view is not None and choice.structure is None:
                    view(choice, image, reference, prediction)
        except (PipelineError, OSError) as error:
            made |= {
                choice: CasePicture(choice, None, _reason(error)) for choice in mine if choice not in made
            }
    return [made[choice] for choice in choices]


def _load(workspace: Workspace, found: Results, case_id: str) -> tuple[Volume, Volume, Volume]:
    """Scan in HU, reference and prediction of a case."""
    entry = found.entry(case_id)
    run = next((case for case in found.run.get("cases", []) if case["case_id"] == case_id), None)
    if entry is None or run is None:
        raise CaseError(
            "MISSING_ARTIFACT",
            "the case is not in the manifest or not in evaluation_run.json",
            results.EVALUATE_AGAIN,
            case=case_id,
        )
    reference, _ = volume_files.read_integers(workspace.processed / entry["reference"]["file"])
    prediction, _ = volume_files.read_integers(workspace.evaluation / run["prediction"])
    image = _load_scan(workspace, found.manifest, entry)
    if not image.grid.matches(Grid.from_record(entry["scan"])):
        raise CaseError(
            "DATA_CHANGED",
            "the raw scan is no longer the one that was processed",
            "run `python run_pipeline.py --preprocess` again",
            case=case_id,
        )
    return image, reference, prediction


def _load_scan(workspace: Workspace, manifest: dict[str, Any], entry: dict[str, Any]) -> Volume:
    source = load_case.source_from_record(entry["source"], results.data_root(workspace, manifest)).image
    if not source.path.exists():
        raise CaseError(
            "NO_DATA",
            "raw scan not found: it was moved or deleted after preprocessing",
            "put it back",
            case=entry["case_id"],
        )
    image, _ = load_case.load_image(source)
    return image


def _reason(error: PipelineError | OSError) -> str:
    if isinstance(error, PipelineError):
        return error.cause
    return f"a file of this case cannot be read ({type(error).__name__})"
