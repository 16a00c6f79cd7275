"""New scans predicted by infer.py beside what the evaluation made of the same scans."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

import infer
from ctseg import artifacts
from ctseg.scans.formats import volume_files


def infer_test_cases(
    workspace: artifacts.Workspace, output: Path, *arguments: str
) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
    """(exit code of infer.py on the NIfTI test scans, pairs of its masks and those of the evaluation)."""
    manifest, record = artifacts.read_json(workspace.manifest), artifacts.read_json(workspace.run_record)
    scans = output / "scans"
    predictions = {case["case_id"]: case["prediction"] for case in record["cases"]}
    chosen = {}
    for case in manifest["cases"]:
        name, image = case["case_id"], case["source"]["image"]
        if case["split"] == "test" and image["format"] == "nifti":
            (scans / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(workspace.root / manifest["data_root"] / image["path"], scans / f"{name}.nii.gz")
            chosen[name] = predictions[name]
    words = ["--input", str(scans), "--output", str(output / "masks"), "--device", "cpu"]
    words += ["--checkpoint", str(workspace.best_model), "--set", "evaluate.overlap=0"]
    if code := infer.main([*words, *arguments]):
        return code, []
    pairs = [
        (
            volume_files.read_integers(output / "masks" / f"{name}.nii.gz")[0],
            volume_files.read_integers(workspace.evaluation / file)[0],
        )
        for name, file in chosen.items()
    ]
    assert pairs and all(np.array_equal(a.affine, b.affine) for a, b in pairs)
    return code, [(a.array, b.array) for a, b in pairs]
