"""Predict the test scans with the best checkpoint, write label maps in the geometry of each scan, and count
how well their probabilities are calibrated.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ctseg import artifacts
from ctseg.artifacts import Workspace
from ctseg.config import Settings
from ctseg.datasets.case import IGNORED
from ctseg.errors import IntegrityError
from ctseg.geometry.argmax_on_scan import probability_on_scan
from ctseg.geometry.boxes import box_shape, box_start, grow, label_boxes, make_box, union, within
from ctseg.geometry.probabilities import Probabilities
from ctseg.geometry.volume import Grid, Volume
from ctseg.manifest import Case, Manifest, to_record
from ctseg.prediction.predictor import BuildNetwork, Predictor, load_predictor
from ctseg.scans.formats import nifti, volume_files
from ctseg.scoring import calibration
from ctseg.scoring.calibration import Regions

FORMAT, VERSION = "ctseg-calibration", 1  # of calibration.json


def predict_test_cases(
    workspace: Workspace,
    settings: Settings,
    *,
    device: str,
    build_network: BuildNetwork,
    progress: Callable = iter,
) -> dict[str, Any]:
    """Write predictions/<case>.nii.gz and labels.json, calibration.json, evaluation_run.json; return the
    latter.

    What defines the network and its patches comes from the checkpoint. Raises IntegrityError when the
    checkpoint was trained on other structures, another split, or other tensors.
    """
    manifest = Manifest.load(workspace)
    workspace.require(workspace.best_model, stage="train")
    file = workspace.relative(workspace.best_model)
    predictor = load_predictor(
        workspace.best_model, settings.evaluate, device=device, build_network=build_network, file=file
    )
    names, checkpoint = predictor.names, predictor.checkpoint
    require_same_data(checkpoint, manifest, file)
    counted = Calibration(names)
    cases = [
        predict_case(predictor, workspace, manifest, case, counted)
        for case in progress(manifest.of_split("test"))
    ]
    artifacts.write_json(workspace.predictions / "labels.json", predictor.labels)
    identity = {
        "checkpoint_sha256": artifacts.file_hash(workspace.best_model),
        "manifest_hash": manifest.data_hash(),
        "synthetic": manifest.synthetic,
    }
    counted.write(workspace, identity)
    record = {
        "version": 1,
        **identity,
        "splits_hash": manifest.splits_hash,
        "structures": names,
        "device": predictor.machine.reason,
        "model": checkpoint["arch"]["name"],
        "epoch": checkpoint["epoch"],
        "settings": settings.record()["evaluate"],
        "training": end_of_training(workspace, checkpoint),
        "mirrored": predictor.windows.swaps is not None,
        "why_not_mirrored": predictor.why_not_mirrored if settings.evaluate.flip else None,
        "largest_component": [names[number - 1] for number in predictor.filtered],
        "guide_source": manifest.guide.source if manifest.guide and predictor.takes_guide else None,
        "members": predictor.members,
        "why_no_confidence": predictor.why_no_confidence,
        "cases": cases,
    }
    artifacts.write_json(workspace.run_record, record)
    return record


def end_of_training(workspace: Workspace, checkpoint: dict[str, Any]) -> str | None:
    """How the checkpoint's training ended, as its history says; None when that is missing or another's."""
    history = artifacts.read_record(workspace.history) if workspace.history.exists() else {}
    model = (history.get("settings") or {}).get("model")
    same = history.get("manifest_hash") == checkpoint["manifest_hash"]
    same = same and model == checkpoint["settings"].get("model")
    reached = len(history.get("epochs", ()))
    return str(history.get("stopped")) if same and checkpoint["epoch"] <= reached else None


def predict_case(
    predictor: Predictor, workspace: Workspace, manifest: Manifest, case: Case, counted: Calibration
) -> dict[str, Any]:
    """Predict one test case, write its label maps, count its calibration; its part of evaluation_run.json."""
    started = time.monotonic()
    seen = predictor.read_case(workspace, manifest, case)
    safe = artifacts.safe_name(case.case_id)
    passes: list[str] = []

    def write(file: str, label: np.ndarray) -> str:
        path = workspace.predictions / file
        nifti.write_label(path, Volume(label, case.scan.affine), names=predictor.labels)
        return path.relative_to(workspace.evaluation).as_posix()

    def write_pass(number: int, label: np.ndarray) -> None:
        passes.append(write(f"passes/{safe}_pass{number + 1}.nii.gz", label))

    found = predictor.predict(seen, on_pass=write_pass)
    file = write(f"{safe}.nii.gz", found.label)
    seconds = round(time.monotonic() - started, 3)
    counted.add(case, found.probabilities, found.canvas, found.label, workspace)
    return {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "seconds": seconds,
        "prediction": file,
        "confidence": found.confidence,
        "reference": case.written_reference().file,
        "passes": passes,
        "region": None if found.region is None else (box_start(found.region), box_shape(found.region)),
        "located": predictor.locator is None or found.region is not None,
    }


def require_same_data(checkpoint: dict[str, Any], manifest: Manifest, file: str) -> None:
    """IntegrityError unless a checkpoint was trained on the data of a manifest and their split."""

    def refuse(code: str, cause: str, words: str = "") -> IntegrityError:
        return IntegrityError(code, cause, f"run `python run_pipeline.py --train{words}`", file=file)

    if checkpoint["structures"] != list(manifest.structures):
        known, wanted = (", ".join(names) for names in (checkpoint["structures"], manifest.structures))
        raise refuse("CHECKPOINT_MISMATCH", f"it was trained for {known}, the processed data hold {wanted}")
    if checkpoint["splits_hash"] != manifest.splits_hash:
        cause = (
            "the checkpoint was trained with another split, so test patients may have been seen in training"
        )
        raise refuse("SPLIT_CHANGED", cause)
    for key in ("grid", "spacing_mm", "window_hu"):
        if (own := checkpoint["preprocess"][key]) != (here := to_record(getattr(manifest, key))):
            cause = f"its {key} is {own}, that of the processed data {here}"
            raise refuse("CHECKPOINT_MISMATCH", cause, " --restart")
    if checkpoint["manifest_hash"] != manifest.data_hash():
        cause = "the checkpoint was trained on other tensors than those in processed_data"
        raise refuse("CHECKPOINT_MISMATCH", cause)


@dataclasses.dataclass
class Calibration:
    """Calibration of the test scans' probabilities, counted while they are at hand, case by case.

    Each structure in its box on the scan's grid.

    sums: structure -> region -> sums over all cases; cases: case id -> structure -> ece_whole, ece_band.
    """

    names: Sequence[str]
    sums: dict[str, Regions] = dataclasses.field(default_factory=dict)
    cases: dict[str, dict[str, dict[str, float | None]]] = dataclasses.field(default_factory=dict)

    def add(
        self,
        case: Case,
        probabilities: Probabilities,
        canvas: Grid,
        prediction: np.ndarray,
        workspace: Workspace,
    ) -> None:
        """Count one case of the manifest.

        canvas: where the probabilities lie; prediction: label map (D, H, W) on the scan's grid. What counts
        are structures that the case is annotated for, and voxels that somebody looked at. IntegrityError when
        the reference lies on another grid than the scan.
        """
        scan, file = case.scan, case.written_reference().file
        reference = volume_files.read_integers(
            workspace.require(workspace.processed / file, stage="preprocess")
        )[0]
        if not reference.grid.matches(scan):
            raise IntegrityError(
                "GRID_MISMATCH",
                "the reference does not lie on the grid of its scan",
                "run `python run_pipeline.py --preprocess` again",
                case=case.case_id,
                file=f"processed_data/{file}",
            )
        ignored = reference.array == IGNORED
        voxels = int(np.count_nonzero(~ignored))
        found = [label_boxes(label) for label in (reference.array, prediction)]
        scores = self.cases.setdefault(case.case_id, {})
        for number, name in enumerate(self.names, start=1):
            if case.states.get(name) not in ("present", "absent"):
                continue
            soft = probability_on_scan(probabilities, number, canvas, scan)
            held = [grow(own[number], calibration.MARGIN, scan.shape) for own in found if number in own]
            held += [soft[0]] if soft is not None else []
            box = union(*held) if held else make_box((0, 0, 0), (0, 0, 0))
            probability = np.zeros(box_shape(box), dtype=np.float32)
            if soft is not None:
                probability[within(soft[0], box)] = soft[1]
            own = calibration.structure_sums(
                probability=probability,
                reference=reference.array[box] == number,
                prediction=prediction[box] == number,
                voxels=voxels,
                ignored=ignored[box],
            )
            total = self.sums.setdefault(name, calibration.empty())
            for region, sums in own.items():
                total[region].merge(sums)
            scores[name] = {f"ece_{region}": own[region].ece for region in calibration.REGIONS}

    def write(self, workspace: Workspace, identity: Mapping[str, Any]) -> None:
        """Write calibration.json. identity: which weights and data it belongs to."""
        artifacts.write_json(
            workspace.calibration,
            {
                "format": FORMAT,
                "version": VERSION,
                **identity,
                "bins": calibration.BINS,
                "band_voxels": calibration.BAND_STEPS,
                "clip": calibration.CLIP,
                "structures": {
                    name: {region: regions[region].record() for region in calibration.REGIONS}
                    for name, regions in self.sums.items()
                },
                "cases": self.cases,
            },
        )
