"""The pictures of chosen test cases: reads scan, reference and prediction of each case once, in scan
geometry.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterable

from ctseg.artifacts import Workspace
from ctseg.datasets import case_sources, load_case
from ctseg.errors import CaseError, PipelineError
from ctseg.geometry.volume import Grid
from ctseg.manifest import from_record
from ctseg.reporting import results
from ctseg.reporting.pictures import slices
from ctseg.reporting.pictures.slices import CaseVolumes, Choice
from ctseg.reporting.results import Results
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
    view: Callable[[Choice, CaseVolumes], None] | None = None,
) -> list[CasePicture]:
    """The pictures of `slices.choose`, in its order. Cases are opened one at a time, each once.

    view: told each choice of a whole case and its volumes.
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
            case = load_case_volumes(workspace, found, case_id)
            for choice in mine:
                stream = io.BytesIO()
                slices.draw_case(
                    case,
                    found.structures,
                    stream,
                    only=choice.structure,
                    remarks=remarks,
                    synthetic=found.synthetic,
                    display_hu=slices.display_window(found.manifest.get("window_hu")),
                )
                made[choice] = CasePicture(choice, stream.getvalue())
                if view is not None and choice.structure is None:
                    view(choice, case)
        except (PipelineError, OSError) as error:
            reason = f"a file of this case cannot be read ({type(error).__name__})"
            if isinstance(error, PipelineError):
                reason = error.cause
            made |= {choice: CasePicture(choice, None, reason) for choice in mine if choice not in made}
    return [made[choice] for choice in choices]


def load_case_volumes(workspace: Workspace, found: Results, case_id: str) -> CaseVolumes:
    """Scan, reference and prediction of a case.

    Raises CaseError when one is missing or no longer what it was.
    """
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
    source = case_sources.source_from_record(
        entry["source"], results.data_root(workspace, found.manifest)
    ).image
    if not source.path.exists():
        raise CaseError(
            "NO_DATA",
            "raw scan not found: it was moved or deleted after preprocessing",
            "put it back",
            case=case_id,
        )
    image, _ = load_case.load_image(source)
    if not image.grid.matches(from_record(Grid, entry["scan"])):
        raise CaseError(
            "DATA_CHANGED",
            "the raw scan is no longer the one that was processed",
            "run `python run_pipeline.py --preprocess` again",
            case=case_id,
        )
    return slices.on_one_grid(image, reference, prediction)
