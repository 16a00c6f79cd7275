"""A processed workspace made by hand: small synthetic tensors with two mirrored blobs and a midline one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ctseg import artifacts, config

STRUCTURES = ["left_blob", "right_blob", "middle"]
SIZE = 32


def draw(index: int) -> tuple[np.ndarray, np.ndarray]:
    """(image 0..1 float16, label uint8) of one synthetic case; W grows towards the patient's left."""
    rng = np.random.default_rng([index, 99])
    d, h, w = np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij")
    shift = rng.integers(-2, 3, 3)
    label = np.zeros((SIZE,) * 3, np.uint8)
    for value, centre in enumerate([(16, 16, 24), (16, 16, 8), (16, 10, 16)], start=1):
        label[sum((a - c - s) ** 2 for a, c, s in zip((d, h, w), centre, shift)) < 20] = value
    image = 0.3 + 0.25 * (label > 0) + rng.normal(0, 0.03, label.shape)
    return image.clip(0, 1).astype(np.float16), label


def make(
    root: Path, *, cases: int = 6, unlabelled: dict[int, list[str]] | None = None
) -> artifacts.Workspace:
    """Write processed_data/ of `cases` synthetic cases (the last two are val and test)."""
    workspace = artifacts.Workspace(root)
    affine = np.eye(4)[:, [2, 1, 0, 3]]
    entries: list[dict[str, Any]] = []
    for index in range(cases):
        image, label = draw(index)
        case_id = f"case_{index}"
        hidden = (unlabelled or {}).get(index, [])
        for name in hidden:
            label[label == STRUCTURES.index(name) + 1] = 0
        digest = artifacts.write_tensor(workspace.tensors / f"{case_id}_00.npz", image=image, label=label)
        grid = {"shape": [SIZE] * 3, "affine": affine.tolist()}
        entries.append(
            {
                "case_id": case_id,
                "patient_id": case_id,
                "split": "test" if index == cases - 1 else "val" if index == cases - 2 else "train",
                "states": {name: "unlabelled" if name in hidden else "present" for name in STRUCTURES},
                "scan": grid,
                "canvas": grid,
                "tensors": [{"file": f"tensors/{case_id}_00.npz", "origin": [0, 0, 0], "sha256": digest}],
                "reference": {"file": f"references/{case_id}.nii.gz", "sha256": ""},
            }
        )
    splits = {
        "version": 1,
        "seed": 0,
        "assignment": {entry["patient_id"]: entry["split"] for entry in entries},
    }
    artifacts.write_json(workspace.splits, splits)
    artifacts.write_json(
        workspace.manifest,
        {
            "format": "ctseg-manifest",
            "version": 1,
            "layout": "synthetic",
            "synthetic": True,
            "data_root": "-",
            "structures": STRUCTURES,
            "grid": "whole",
            "spacing_mm": None,
            "window_hu": [-250.0, 750.0],
            "settings": config.Settings().record()["data"],
            "settings_hash": "0",
            "splits_hash": artifacts.canonical_hash(splits),
            "versions": {},
            "cases": entries,
        },
    )
    return workspace


def arguments(workspace: artifacts.Workspace, **settings: Any) -> list[str]:
    """Command-line arguments of a very small training run in that workspace."""
    values = {
        "model.levels": 3,
        "model.width": 4,
        "train.patch_size": "32,32,32",
        "train.steps_per_epoch": 4,
        "train.epochs": 3,
        "train.validations": 3,
        "train.precision": "fp32",
    } | settings
    result = ["--workspace", str(workspace.root), "--profile", "cpu", "--device", "cpu"]
    for key, value in values.items():
        result += ["--set", f"{key}={value}"]
    return result
