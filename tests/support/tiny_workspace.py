"""A processed workspace made by hand: small synthetic tensors with two mirrored blobs and a midline one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctseg import artifacts, config
from ctseg.geometry.volume import Grid
from ctseg.manifest import Case, Manifest, StoredFile, TensorFile, to_record

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


def read_tensor(path: Path, *, sha256: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(image, label) of a stored tensor."""
    arrays = artifacts.read_arrays(path, ("image", "label"), sha256=sha256)
    return arrays["image"], arrays["label"]


def make(
    root: Path, *, cases: int = 6, unlabelled: dict[int, list[str]] | None = None
) -> artifacts.Workspace:
    """Write processed_data/ of `cases` synthetic cases (the last two are val and test)."""
    workspace = artifacts.Workspace(root)
    grid = Grid((SIZE,) * 3, np.eye(4)[:, [2, 1, 0, 3]])
    made: list[Case] = []
    for index in range(cases):
        image, label = draw(index)
        name = f"case_{index}"
        hidden = (unlabelled or {}).get(index, [])
        for structure in hidden:
            label[label == STRUCTURES.index(structure) + 1] = 0
        digest = artifacts.write_arrays(
            workspace.tensors / f"{name}_00.npz", {"image": image, "label": label}
        )
        made.append(
            Case(
                name,
                name,
                {name: "unlabelled" if name in hidden else "present" for name in STRUCTURES},
                source={},
                scan=grid,
                canvas=grid,
                split="test" if index == cases - 1 else "val" if index == cases - 2 else "train",
                tensors=(TensorFile(f"tensors/{name}_00.npz", digest, (0, 0, 0)),),
                reference=StoredFile(f"references/{name}.nii.gz", ""),
            )
        )
    write_manifest(workspace, made, STRUCTURES, layout="synthetic", synthetic=True)
    return workspace


def write_manifest(
    workspace: artifacts.Workspace, cases: Sequence[Case], structures: Sequence[str], **more: Any
) -> Manifest:
    """Write splits.json and manifest.json of cases that have their split."""
    splits = {"version": 1, "seed": 0, "assignment": {case.patient_id: case.split for case in cases}}
    artifacts.write_json(workspace.splits, splits)
    facts = {"layout": "plain", "synthetic": False, "data_root": "-", "grid": "whole", "spacing_mm": None}
    manifest = Manifest(
        structures=tuple(structures),
        settings_hash="0",
        splits_hash=artifacts.canonical_hash(splits),
        cases=tuple(cases),
        **{**facts, "window_hu": (-250.0, 750.0), "settings": config.Settings().record()["data"], **more},
    ).sealed()
    artifacts.write_json(workspace.manifest, to_record(manifest))
    return manifest


def arguments(workspace: artifacts.Workspace, **settings: Any) -> list[str]:
    """Command-line arguments of a very small training run in that workspace."""
    values = {
        "model.levels": 3,
        "model.width": 4,
        "train.patch_size": "32,32,32",
        "train.steps_per_epoch": 2,
        "train.epochs": 3,
        "train.validations": 3,
        "train.precision": "fp32",
    } | settings
    result = ["--workspace", str(workspace.root), "--profile", "cpu", "--device", "cpu"]
    for key, value in values.items():
        result += ["--set", f"{key}={value}"]
    return result
