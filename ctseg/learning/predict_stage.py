"""Predict the test scans with the best checkpoint and write label maps in the geometry of each scan."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from ctseg import artifacts, config
from ctseg.artifacts import Workspace
from ctseg.config import Settings
from ctseg.errors import IntegrityError
from ctseg.learning import augment, checkpoints, dataset, hardware
from ctseg.learning.inference import predict_canvas
from ctseg.learning.postprocess import keep_largest
from ctseg.scans import grids, laterality, nifti
from ctseg.scans.volume import Grid, Volume


def predict_test_cases(workspace: Workspace, settings: Settings, *, device: str, build_network: Callable[..., torch.nn.Module],
                       progress: Callable = iter) -> dict[str, Any]:
    """Write predictions/<case>.nii.gz, predictions/labels.json and evaluation_run.json; return the latter.

    What defines the network and its patches comes from the checkpoint. Raises IntegrityError when the checkpoint
    was trained on other structures, another split, or other tensors.
    """
    manifest = artifacts.load_manifest(workspace)
    workspace.require(workspace.best_model, stage="train")
    checkpoint = checkpoints.load(workspace.best_model)
    manifest_hash = artifacts.manifest_hash(manifest)
    _require_same_data(checkpoint, manifest, manifest_hash, workspace)
    trained = config.from_record(checkpoint["settings"])
    machine = hardware.choose_machine(device, trained.train.precision if trained.train.precision != "fp16" else "auto")
    network = build_network(**checkpoint["arch"])
    checkpoints.load_weights(network, checkpoint["model"], file=workspace.relative(workspace.best_model))
    network = machine.place(network)
    names = list(manifest["structures"])
    mirrored = settings.evaluate.flip and augment.STRENGTHS[trained.train.augmentation].mirror > 0  # else it never saw a mirror image
    swaps = augment.mirror_table(laterality.mirror_pairs(names), len(names)) if mirrored else None
    filtered = {"auto": checkpoint["largest_component"], "all": names, "none": []}[settings.evaluate.keep_largest]
    cases = []
    for entry in progress([case for case in manifest["cases"] if case["split"] == "test"]):
        started = time.monotonic()
        image, _ = dataset.assemble(workspace, entry)
        canvas, scan = Grid.from_record(entry["canvas"]), Grid.from_record(entry["scan"])
        probabilities = predict_canvas(network, image, n_classes=len(names) + 1, patch_size=trained.train.fixed_patch(), overlap=settings.evaluate.overlap,
                                       machine=machine, swaps=swaps)
        label = keep_largest(grids.label_on_scan(probabilities.numpy(), canvas, scan), [names.index(name) + 1 for name in filtered])
        path = workspace.predictions / f"{artifacts.safe_name(entry['case_id'])}.nii.gz"
        nifti.write_label(path, Volume(label, scan.affine), names=dict(enumerate(names, start=1)))
        cases.append({"case_id": entry["case_id"], "patient_id": entry["patient_id"], "seconds": round(time.monotonic() - started, 3),
                      "prediction": path.relative_to(workspace.evaluation).as_posix(), "reference": f"processed_data/{entry['reference']['file']}"})
    artifacts.write_json(workspace.predictions / "labels.json", {str(i): name for i, name in enumerate(names, start=1)})
    record = {"version": 1, "checkpoint_sha256": artifacts.file_hash(workspace.best_model), "manifest_hash": manifest_hash,
              "splits_hash": manifest["splits_hash"], "synthetic": bool(manifest["synthetic"]), "structures": names, "device": machine.reason,
              "model": checkpoint["arch"]["name"], "epoch": checkpoint["epoch"], "settings": settings.record()["evaluate"], "mirrored": mirrored, "largest_component": list(filtered), "cases": cases}
    artifacts.write_json(workspace.run_record, record)
    return record


def _require_same_data(checkpoint: dict[str, Any], manifest: dict[str, Any], manifest_hash: str, workspace: Workspace) -> None:
    file = workspace.relative(workspace.best_model)
    if checkpoint["structures"] != manifest["structures"]:
        raise IntegrityError("CHECKPOINT_MISMATCH", f"it was trained for {', '.join(checkpoint['structures'])}, the processed data hold {', '.join(manifest['structures'])}",
                             "run `python run_pipeline.py --train` again", file=file)
    if checkpoint["splits_hash"] != manifest["splits_hash"]:
        raise IntegrityError("SPLIT_CHANGED", "the checkpoint was trained with another split, so test patients may have been seen in training",
                             "run `python run_pipeline.py --train` again", file=file)
    if checkpoint["manifest_hash"] != manifest_hash:
        raise IntegrityError("CHECKPOINT_MISMATCH", "the checkpoint was trained on other tensors than those in processed_data",
                             "run `python run_pipeline.py --train` again", file=file)
