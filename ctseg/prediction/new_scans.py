"""One new scan after the other: predicted, written, recorded.

What goes wrong with one does not end the others.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg import artifacts
from ctseg.datasets import case_sources, load_case
from ctseg.datasets.case import CaseRecord, ImageSource
from ctseg.errors import (
    SYSTEM_FAULTS,
    CaseError,
    Finding,
    PipelineError,
    PreconditionError,
    ResourceError,
    UsageError,
    listed,
    place_of,
)
from ctseg.geometry.distance_maps import organ_masks
from ctseg.geometry.volume import Volume
from ctseg.prediction.predictor import Predictor
from ctseg.prediction.scan_outputs import Wanted, statistics_of
from ctseg.preparation.guide_organs import CaseGuide, GuideSource, load_guide
from ctseg.scans.formats import nifti

LOG = logging.getLogger("ctseg.prediction")


GuideOf = Callable[[str, Volume], CaseGuide | None]  # of a scan, by its name and image


def choose_guides(
    predictor: Predictor, wanted: str | None, output: Path, load: Callable[[Path], Predictor]
) -> GuideOf:
    """Where the guide organs of new scans come from: nowhere, a source of masks, or an earlier model.

    UsageError when it needs some and none were given, or they do not know its organs.
    """
    if not predictor.takes_guide:
        return lambda name, image: None
    organs = tuple(predictor.checkpoint["guide"]["organs"])
    if wanted is None:
        raise UsageError(
            "BAD_OPTION",
            f"the network was trained with guide organs ({', '.join(organs)})",
            "give --guide: a folder of masks, totalsegmentator, or an earlier best_model.pth",
        )
    path = Path(wanted)
    program = wanted == "totalsegmentator"
    if program or path.is_dir():
        kind, folder = (wanted, output / "guide_masks") if program else ("folder", path)
        source = GuideSource(kind, organs, folder)
        return lambda name, image: load_guide(source, name, image, None, organs, ())[0]
    if not path.is_file():
        raise UsageError(
            "BAD_OPTION",
            f"'{wanted}' after --guide is no folder, no checkpoint, and not totalsegmentator",
            "check the path",
            file=path.name,
        )
    model = load(path)
    unknown = [organ for organ in organs if organ not in model.names]
    if unknown or model.takes_guide:
        raise UsageError(
            "BAD_OPTION",
            f"the guide model does not know {unknown[0]}"
            if unknown
            else "the guide model needs a guide itself",
            "give a model that predicts the guide organs",
            file=path.name,
        )

    def predicted(name: str, image: Volume) -> CaseGuide:
        label = Volume(model.predict(model.read_scan(image)).label, image.affine)
        masks = organ_masks(label, [model.names.index(organ) + 1 for organ in organs])
        return CaseGuide(organs, tuple(masks), "predicted")

    return predicted


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
    done = artifacts.read_record(done_file) if done_file.exists() else {}
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


def earlier_records(path: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Scan -> its record of an interrupted run with the same models, settings and versions.

    Only where all its files are still there. path: of inference.json.
    """
    content = artifacts.read_json(path) if path.is_file() else {}
    if not isinstance(content, dict) or any(content.get(key) != value for key, value in run.items()):
        return {}
    return {
        record["scan"]: record
        for record in content.get("scans", [])
        if "error" not in record and all((path.parent / file).exists() for file in record["files"].values())
    }


@dataclasses.dataclass(frozen=True)
class Inference:
    """What is done with every scan. low_confidence: below it a scan is named, to be looked at."""

    predictor: Predictor
    guide_of: GuideOf
    wanted: Wanted
    output: Path
    low_confidence: float

    def predict(self, name: str, source: ImageSource, before: dict[str, Any] | None) -> dict[str, Any]:
        """Predict one scan, write what was asked for, and return its record; what went wrong is told in it.

        before: its record of an earlier run of the same kind.
        """
        image: Volume | None = None
        try:
            digest = case_sources.source_hash(CaseRecord(name, name, source, None))
            if before is not None and before["input_sha256"] == digest:
                return before
            started = time.monotonic()
            image, findings = load_case.load_image(source)
            for finding in findings:
                LOG.info("%s", finding.at(name).line())
            names = self.predictor.labels
            case = self.predictor.read_scan(image, self.guide_of(name, image))
            found = self.predictor.predict(case)
            findings = self.wanted.write(self.output, name, found, image, names, source)
            for finding in findings:
                LOG.warning("%s", finding.at(name, finding.file).line())
        except (CaseError, PreconditionError) as error:
            return failed(Finding.from_error(error, case=name, file=Path(error.file).name))
        except ResourceError:  # the output, not the scan: the next one would fare no better
            raise
        except Exception as error:  # the case boundary: a scan that nobody foresaw must not end the others
            return failed(unforeseen(error, name, image))
        return {
            "scan": name,
            "input_sha256": digest,
            "files": self.wanted.files_of(name),
            "confidence": found.confidence,
            "members": self.predictor.members,
            "structures": statistics_of(Volume(found.label, image.affine), image, names),
            "seconds": round(time.monotonic() - started, 2),
        }


def unforeseen(error: Exception, name: str, image: Volume | None) -> Finding:
    """What is said of an error that nobody planned for."""
    if isinstance(error, MemoryError):
        what = "the scan does not fit" if image is None else f"{image.array.shape} voxels do not fit"
        fix = "crop the scan, or use a machine with more memory"
        return Finding("ERROR", "OUT_OF_MEMORY", f"{what} into the memory", fix, name)
    if isinstance(error, OSError) and error.errno in SYSTEM_FAULTS:
        return dataclasses.replace(Finding.from_error(ResourceError.from_os(error), case=name), file="-")
    return Finding("ERROR", "PREDICT_FAILED", place_of(error), "please report it with this line", name)


def failed(finding: Finding) -> dict[str, Any]:
    """The record of a scan that could not be predicted, which is told too."""
    LOG.error("%s", finding.line())
    return {"scan": finding.case, "error": finding.code, "cause": finding.cause}


def low_confidence(scan: str, confidence: Mapping[str, float | None], threshold: float) -> str | None:
    """The line that asks for a look at a scan, least certain structures first; None where its views agree."""
    doubtful = sorted(
        (value, name) for name, value in confidence.items() if value is not None and value < threshold
    )
    if not doubtful:
        return None
    named = listed([f"{name} {value:.2f}" for value, name in doubtful])
    cause = f"predictions of it that should be equal differ (their Dice: {named})"
    return Finding("WARN", "LOW_CONFIDENCE", cause, "look at these masks before using them", scan).line()
