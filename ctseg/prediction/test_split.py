"""Predict the test scans with the best checkpoint and write label maps in the geometry of each scan."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ctseg import artifacts
from ctseg.artifacts import Workspace
from ctseg.config import Settings
from ctseg.errors import IntegrityError
from ctseg.geometry.boxes import box_shape, box_start
from ctseg.geometry.volume import Volume
from ctseg.manifest import Case, Manifest, to_record
from ctseg.prediction.calibration_stage import Calibration
from ctseg.prediction.predictor import BuildNetwork, Predictor, load_predictor
from ctseg.scans.formats import nifti


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
    calibration = Calibration(names)
    cases = [
        predict_case(predictor, workspace, manifest, case, calibration)
        for case in progress(manifest.of_split("test"))
    ]
    artifacts.write_json(workspace.predictions / "labels.json", predictor.labels)
    identity = {
        "checkpoint_sha256": artifacts.file_hash(workspace.best_model),
        "manifest_hash": manifest.data_hash(),
        "synthetic": manifest.synthetic,
    }
    calibration.write(workspace, identity)
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
    history = artifacts.read_json(workspace.history) if workspace.history.exists() else {}
    model = (history.get("settings") or {}).get("model")
    same = history.get("manifest_hash") == checkpoint["manifest_hash"]
    same = same and model == checkpoint["settings"].get("model")
    reached = len(history.get("epochs", ()))
    return str(history.get("stopped")) if same and checkpoint["epoch"] <= reached else None


def predict_case(
    predictor: Predictor, workspace: Workspace, manifest: Manifest, case: Case, calibration: Calibration
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
    calibration.add(case, found.probabilities, found.canvas, found.label, workspace)
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
