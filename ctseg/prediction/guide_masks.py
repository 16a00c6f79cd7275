"""Guide organs that an earlier model of this pipeline predicts, written as a folder of masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ctseg import artifacts
from ctseg.datasets import case_sources, load_case
from ctseg.datasets.case import CaseRecord
from ctseg.errors import PipelineError
from ctseg.geometry.volume import Volume
from ctseg.prediction.predictor import Predictor
from ctseg.scans.formats import nifti


def predict_guide_masks(
    predictor: Predictor,
    model_hash: str,
    records: Sequence[CaseRecord],
    folder: Path,
    *,
    progress: Callable[[Sequence[CaseRecord]], Iterable[CaseRecord]] = iter,
) -> None:
    """Write <folder>/<case id>.nii.gz for each case, and labels.json with the names.

    What an earlier run left is kept. model_hash: of the checkpoint. A case whose scan cannot be read is left
    out: preprocessing refuses it later with its reason.
    """
    done_file = folder / "made.json"
    done = artifacts.read_json(done_file) if done_file.exists() else {}
    for record in progress(records):
        path = folder / f"{artifacts.safe_name(record.case_id)}.nii.gz"
        try:
            key = [model_hash, case_sources.source_hash(record)]
            if done.get(record.case_id) == key and path.exists():
                continue
            image, _ = load_case.load_image(record.image)
        except (PipelineError, OSError):
            continue
        label = predictor.predict(predictor.read_scan(image)).label
        nifti.write_label(path, Volume(label, image.affine), names=predictor.labels)
        done[record.case_id] = key
        artifacts.write_json(done_file, done)
    artifacts.write_json(folder / "labels.json", predictor.labels)
