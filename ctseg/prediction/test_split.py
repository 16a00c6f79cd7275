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
from ctseg.geometry.probabilities import Shares
from ctseg.geometry.volume import Grid, Volume
from ctseg.learning import dataset
from ctseg.prediction import guide_input
from ctseg.prediction.calibration_stage import Calibration
from ctseg.prediction.predictor import BuildNetwork, Predictor, load_predictor
from ctseg.prediction.sliding_windows import Sight
from ctseg.scans.formats import nifti
from ctseg.scoring.failure import agreement


def predict_test_cases(
    workspace: Workspace,
    settings: Settings,
    *,
    device: str,
    build_network: BuildNetwork,
    progress: Callable = iter,
) -> dict[str, Any]:
    """Write predictions/<case>.nii.gz, predictions/labels.json, calibration.json and evaluation_run.json; return the latter.

    What defines the network and its patches comes from the checkpoint. Raises IntegrityError when the checkpoint
    was trained on other structures, another split, or other tensors.
    """
    manifest = artifacts.load_manifest(workspace)
    workspace.require(workspace.best_model, stage="train")
    predictor = load_predictor(
        workspace.best_model,
        settings.evaluate,
        device=device,
        build_network=build_network,
        file=workspace.relative(workspace.best_model),
    )
    manifest_hash = artifacts.manifest_hash(manifest)
    _require_same_data(predictor.checkpoint, manifest, manifest_hash, workspace)
    calibration = Calibration(predictor.names)
    cases = [
        _predict_case(predictor, workspace, manifest, entry, calibration)
        for entry in progress([case for case in manifest["cases"] if case["split"] == "test"])
    ]
    names, checkpoint = predictor.names, predictor.checkpoint
    artifacts.write_json(
        workspace.predictions / "labels.json", {str(i): name for i, name in enumerate(names, start=1)}
    )
    identity = {
        "checkpoint_sha256": artifacts.file_hash(workspace.best_model),
        "manifest_hash": manifest_hash,
    }
    calibration.write(workspace, identity | {"synthetic": bool(manifest["synthetic"])})
    record = {
        "version": 1,
        **identity,
        "splits_hash": manifest["splits_hash"],
        "synthetic": bool(manifest["synthetic"]),
        "structures": names,
        "device": predictor.machine.reason,
        "model": checkpoint["arch"]["name"],
        "epoch": checkpoint["epoch"],
        "settings": settings.record()["evaluate"],
        "training": _end_of_training(workspace, checkpoint),
        "mirrored": predictor.windows.swaps is not None,
        "why_not_mirrored": predictor.why_not_mirrored if settings.evaluate.flip else None,
        "largest_component": [names[number - 1] for number in predictor.filtered],
        "guide_source": manifest["guide"]["source"] if predictor.takes_guide else None,
        "members": predictor.members,
        "why_no_confidence": predictor.why_no_confidence,
        "cases": cases,
    }
    artifacts.write_json(workspace.run_record, record)
    return record


def _end_of_training(workspace: Workspace, checkpoint: dict[str, Any]) -> str | None:
    """How the training of the checkpoint ended, as its history says; None when the history is missing or that
    of another training.
    """
    history = artifacts.read_json(workspace.history) if workspace.history.exists() else {}
    model = (history.get("settings") or {}).get("model")
    same = history.get("manifest_hash") == checkpoint["manifest_hash"]
    same = same and model == checkpoint["settings"].get("model")
    reached = len(history.get("epochs", ()))
    return str(history.get("stopped")) if same and checkpoint["epoch"] <= reached else None


def _predict_case(
    predictor: Predictor,
    workspace: Workspace,
    manifest: dict[str, Any],
    entry: dict[str, Any],
    calibration: Calibration,
) -> dict[str, Any]:
    """Predict one test case, write its label maps, count its calibration and return its part of evaluation_run.json."""
    started = time.monotonic()
    image, _, origin = dataset.assemble(workspace, entry)
    sight = Sight(
        image, guide_input.load(workspace, manifest, entry) if predictor.takes_guide else None, origin
    )
    region = predictor.locator.find_case(workspace, entry) if predictor.locator is not None else None
    if region is not None:
        sight = sight.part(region)
    name = artifacts.safe_name(entry["case_id"])
    d, h, w = sight.image.shape
    canvas, scan = (
        Grid.from_record(entry["canvas"]).crop(sight.origin, (d, h, w)),
        Grid.from_record(entry["scan"]),
    )
    passes: list[str] = []
    members: list[np.ndarray] = []

    def write_pass(number: int, probabilities: Shares) -> None:
        label = predictor.label_on_scan(probabilities, canvas, scan)
        passes.append(_write(predictor, label, scan, workspace, f"passes/{name}_pass{number + 1}.nii.gz"))

    probabilities = predictor.probabilities(sight, on_pass=write_pass, on_member=members.append)
    confidence = dict(zip(predictor.names, agreement(members, len(predictor.names))))
    label = predictor.label_on_scan(probabilities, canvas, scan)
    prediction = _write(predictor, label, scan, workspace, f"{name}.nii.gz")
    seconds = round(time.monotonic() - started, 3)
    calibration.add(entry, probabilities, canvas, label, workspace)
    return {
        "case_id": entry["case_id"],
        "patient_id": entry["patient_id"],
        "seconds": seconds,
        "prediction": prediction,
        "confidence": confidence,
        "reference": entry["reference"]["file"],
        "passes": passes,
        "region": None if region is None else (box_start(region), box_shape(region)),
        "located": predictor.locator is None or region is not None,
    }


def _write(predictor: Predictor, label: np.ndarray, scan: Grid, workspace: Workspace, file: str) -> str:
    """Write a label map in the scan's geometry and return its path below evaluation_results/."""
    path = workspace.predictions / file
    nifti.write_label(path, Volume(label, scan.affine), names=dict(enumerate(predictor.names, start=1)))
    return path.relative_to(workspace.evaluation).as_posix()


def _require_same_data(
    checkpoint: dict[str, Any], manifest: dict[str, Any], manifest_hash: str, workspace: Workspace
) -> None:
    file = workspace.relative(workspace.best_model)
    if checkpoint["structures"] != manifest["structures"]:
        raise IntegrityError(
            "CHECKPOINT_MISMATCH",
            f"it was trained for {', '.join(checkpoint['structures'])}, the processed data hold {', '.join(manifest['structures'])}",
            "run `python run_pipeline.py --train` again",
            file=file,
        )
    if checkpoint["splits_hash"] != manifest["splits_hash"]:
        raise IntegrityError(
            "SPLIT_CHANGED",
            "the checkpoint was trained with another split, so test patients may have been seen in training",
            "run `python run_pipeline.py --train` again",
            file=file,
        )
    for key in ("grid", "spacing_mm", "window_hu"):
        if (own := checkpoint["preprocess"][key]) != manifest[key]:
            raise IntegrityError(
                "CHECKPOINT_MISMATCH",
                f"its {key} is {own}, that of the processed data {manifest[key]}",
                "run `python run_pipeline.py --train --restart`",
                file=file,
            )
    if checkpoint["manifest_hash"] != manifest_hash:
        raise IntegrityError(
            "CHECKPOINT_MISMATCH",
            "the checkpoint was trained on other tensors than those in processed_data",
            "run `python run_pipeline.py --train` again",
            file=file,
        )
