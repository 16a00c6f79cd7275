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
from ctseg.reporting import results
from ctseg.reporting.pictures import slices
from ctseg.reporting.pictures.slices import CaseVolumes, Choice
from ctseg.reporting.results import Results
from ctseg.scans.formats import volume_files
from ctseg.scoring.metrics import grouped

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
    remarks = {
        case_id: {row["structure"]: REMARKS[row["state"]] for row in rows if row["state"] in REMARKS}
        for case_id, rows in grouped(found.rows, "case_id").items()
    }
    made: dict[Choice, CasePicture] = {}
    for case_id in progress(list(dict.fromkeys(choice.case_id for choice in choices))):
        own = [choice for choice in choices if choice.case_id == case_id]
        try:
            case = load_case_volumes(workspace, found, case_id)
            for choice in own:
                stream = io.BytesIO()
                slices.draw_case(
                    case,
                    found.structures,
                    stream,
                    only=choice.structure,
                    remarks=remarks[case_id],
                    synthetic=found.synthetic,
                    display_hu=found.display_hu,
                )
                made[choice] = CasePicture(choice, stream.getvalue())
                if view is not None and choice.structure is None:
                    view(choice, case)
        except (PipelineError, OSError) as error:
            reason = f"a file of this case cannot be read ({type(error).__name__})"
            if isinstance(error, PipelineError):
                reason = error.cause
            made = {choice: CasePicture(choice, None, reason) for choice in own} | made
    return [made[choice] for choice in choices]


def load_case_volumes(workspace: Workspace, found: Results, case_id: str) -> CaseVolumes:
    """Scan, reference and prediction of a case.

    Raises CaseError when one is missing or no longer what it was.
    """
    manifest = found.manifest
    entry = manifest.case(case_id) if manifest is not None else None
    files = {case["case_id"]: case["prediction"] for case in found.run["cases"]}
    if manifest is None or entry is None or case_id not in files:
        raise CaseError(
            "MISSING_ARTIFACT",
            "the case is not in the manifest or not in evaluation_run.json",
            results.EVALUATE_AGAIN,
            case=case_id,
        )
    reference, _ = volume_files.read_integers(workspace.processed / entry.written_reference().file)
    prediction, _ = volume_files.read_integers(workspace.evaluation / files[case_id])
    root = workspace.processed.parent / manifest.data_root  # a relative one counts from there
    source = case_sources.source_from_record(entry.source, root).image
    if not source.path.exists():
        raise CaseError(
            "NO_DATA",
            "raw scan not found: it was moved or deleted after preprocessing",
            "put it back",
            case=case_id,
        )
    image, _ = load_case.load_image(source)
    if not image.grid.matches(entry.scan):
        raise CaseError(
            "DATA_CHANGED",
            "the raw scan is no longer the one that was processed",
            "run `python run_pipeline.py --preprocess` again",
            case=case_id,
        )
    return slices.on_one_grid(image, reference, prediction)
