"""A made-up but realistic workspace after training and evaluation: every artifact the last stage reads.

Small synthetic volumes with ellipsoids as structures; predictions are shifted or shrunk copies. One structure
is missed once, one hallucinated once, one absent and one unannotated in some cases. No network, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

import evaluate
from ctseg.artifacts import Workspace, canonical_hash, safe_name, write_json
from ctseg.config import Settings
from ctseg.manifest import Manifest, from_record, to_record

STRUCTURES = ("Bladder", "Rectum", "Femur_left", "Femur_right")
# fractions of D, H, W
CENTRES = ((0.45, 0.40, 0.50), (0.45, 0.68, 0.50), (0.55, 0.50, 0.78), (0.55, 0.50, 0.22))
RADII = ((0.20, 0.16, 0.16), (0.30, 0.10, 0.09), (0.34, 0.12, 0.08), (0.34, 0.12, 0.08))
INTENSITIES_HU = (10.0, 45.0, 600.0, 600.0)
TRAINING = {"minutes": 6.0, "epochs": 100, "steps_per_epoch": 50, "batch_size": 2, "seed": 0}
TRAINING |= {"patch_size": [64, 64, 64]}


def anatomy(
    count: int,
) -> tuple[tuple[str, ...], list[tuple[float, float, float]], list[tuple[float, float, float]], list[float]]:
    """Names, centres, radii (fractions of D, H, W) and HU of so many structures: the four above, or many
    balls in rows.
    """
    if count <= len(STRUCTURES):
        return STRUCTURES[:count], list(CENTRES[:count]), list(RADII[:count]), list(INTENSITIES_HU[:count])
    places = [(0.5, 0.2 + 0.15 * (i // 5), 0.16 + 0.17 * (i % 5)) for i in range(count)]
    names = STRUCTURES + tuple(
        f"{'Vertebra' if i % 2 else 'Muscle'}_{i:02d}" for i in range(len(STRUCTURES), count)
    )
    return names, places, [(0.30, 0.07, 0.08)] * count, [20.0 + 40 * (i % 6) for i in range(count)]


def history(
    structures: Sequence[str] = STRUCTURES, *, epochs: int = 30, every: int = 4, gpu: bool = False
) -> dict[str, Any]:
    """A training history: losses fall, Dice rises, validation only every few epochs (null in between)."""
    rng = np.random.default_rng(3)
    numbers = list(range(1, epochs + 1))

    def rise(end: float, pace: float) -> list[float]:
        return [float(np.clip(end * (1 - math.exp(-n / pace)) + rng.normal(0, 0.01), 0, 1)) for n in numbers]

    def sparse(values: list[float]) -> list[float | None]:
        return [value if n % every == 0 or n == epochs else None for n, value in zip(numbers, values)]

    train = {name: rise(0.93 - 0.05 * (i % 5), 4 + i % 6) for i, name in enumerate(structures)}
    val = {name: sparse(rise(0.88 - 0.06 * (i % 5), 5 + i % 6)) for i, name in enumerate(structures)}
    means = [
        None if val[structures[0]][n - 1] is None else float(np.mean([val[s][n - 1] for s in structures]))
        for n in numbers
    ]
    usage = [
        {
            "cpu_percent": 170 / 2 + float(rng.normal(0, 3)),
            "ram_used_gb": 3.1 + 0.01 * n,
            "ram_total_gb": 8.0,
            **({"gpu_memory_gb": 5.5} if gpu else {}),
        }
        for n in numbers
    ]
    measured = [value for value in means if value is not None]
    return {
        "version": 1,
        "model": "multi_decoder",
        "structures": list(structures),
        "epochs": numbers,
        "train_loss": [1.7 * math.exp(-n / 7) + 0.28 + float(rng.normal(0, 0.01)) for n in numbers],
        "val_loss": sparse([1.6 * math.exp(-n / 7) + 0.36 for n in numbers]),
        "train_dice": train,
        "val_dice": val,
        "val_mean_dice": means,
        "val_hausdorff": {
            name: sparse([40 * math.exp(-n / 8) + 4 + i for n in numbers])
            for i, name in enumerate(structures[:-1])
        }
        | {structures[-1]: [None] * epochs},
        "learning_rate": [2e-3 * 0.5 * (1 + math.cos(math.pi * n / epochs)) for n in numbers],
        "epoch_seconds": [11.5 + float(rng.normal(0, 0.3)) for _ in numbers],
        "resource_usage": usage,
        "best_epoch": numbers[means.index(max(measured))],
        "best_val_dice": max(measured),
        "parameters": 2_765_067,
        "steps": 50 * epochs,
        "seconds": 352.0,
        "step_seconds": 0.23,
        "peak_memory_gb": 1.9,
        "settings": {"train": TRAINING},
        "synthetic": True,
        "manifest_hash": "m" * 64,
        "stopped": "minutes",
        "device": "cpu",
    }


# ---- volumes ----------------------------------------------------------------------------------------------


def draw(
    shape: tuple[int, int, int], rng: np.random.Generator, count: int = len(STRUCTURES)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((D, H, W) float32 HU, uint8 labels 1..count, uint8 prediction), axes already superior, posterior,
    left.

    The prediction has each structure a little elsewhere and a little smaller.
    """
    position = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n for n in shape], indexing="ij"))
    body = ((position[1] - 0.5) / 0.42) ** 2 + ((position[2] - 0.5) / 0.46) ** 2 < 1
    image = np.where(body, -90.0, -1000.0)
    image[((position[1] - 0.5) / 0.36) ** 2 + ((position[2] - 0.5) / 0.40) ** 2 < 1] = 50.0
    label, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    _, centres, all_radii, intensities_hu = anatomy(count)
    for value, (centre, radii) in enumerate(zip(centres, all_radii), start=1):
        moved = np.array(centre) + rng.uniform(-0.03, 0.03, 3)
        inside = sum(((position[i] - moved[i]) / radii[i]) ** 2 for i in range(3)) < 1
        label[inside] = value
        error, size = (
            rng.normal(0, 0.012 + 0.006 * min(value, 5) * (1 if count <= len(STRUCTURES) else 0.3), 3),
            rng.uniform(0.85, 1.05),
        )
        prediction[
            sum(((position[i] - moved[i] - error[i]) / (radii[i] * size)) ** 2 for i in range(3)) < 1
        ] = value
        image[inside] = intensities_hu[value - 1]
    return (image + rng.normal(0, 12, shape)).astype(np.float32), label, prediction


def save(path: Path, array: np.ndarray, spacing_mm: tuple[float, float, float], dtype: type) -> np.ndarray:
    """Write a canonical (D, H, W) array as NIfTI and return its (4, 4) affine to LPS mm."""
    d, h, w = spacing_mm
    affine = np.array([[0, 0, w, -120.0], [0, h, 0, -90.0], [d, 0, 0, 15.0], [0, 0, 0, 1]])
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [2, 1, 0, 3]]
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0).astype(dtype), ras), path)
    return affine


# ---- the workspace ----------------------------------------------------------------------------------------


def build(
    root: Path,
    *,
    cases: int = 10,
    scale: int = 1,
    evaluated: bool = True,
    raw: bool = True,
    synthetic: bool = True,
    first_id: str = "patient_00",
    count: int = len(STRUCTURES),
) -> Workspace:
    """Write everything below `root`. scale enlarges the volumes, raw=False leaves the scans out; count: how
    many structures.
    """
    workspace = Workspace(root)
    rng = np.random.default_rng(11)
    entries, runs = [], []
    spacing_mm = (3.0, 2.0, 1.0)
    for index in range(cases):
        case_id = first_id if index == 0 else f"patient_{index:02d}"
        shape = (10 * scale, (12 + index % 3) * scale, 14 * scale)
        image, reference, prediction = draw(shape, rng, count)
        names = anatomy(count)[0]
        states = dict.fromkeys(names, "present")
        if index == 1:  # Rectum missed
            prediction[prediction == 2] = 0
        if index == 2:  # Bladder removed from the reference: the prediction hallucinates it
            reference[reference == 1] = 0
            states["Bladder"] = "absent"
        if index == 3 and count >= 4:  # Femur_right absent from both
            reference[reference == 4] = 0
            prediction[prediction == 4] = 0
            states["Femur_right"] = "absent"
        if index in (4, 5):  # nobody looked for the Rectum
            reference[reference == 2] = 0
            states["Rectum"] = "unlabelled"
        name = safe_name(case_id)
        if raw:
            save(root / "raw" / name / "ct.nii.gz", image, spacing_mm, np.int16)
        affine = save(workspace.references / f"{name}.nii.gz", reference, spacing_mm, np.uint8)
        entries.append(
            {
                "case_id": case_id,
                "patient_id": case_id,
                "split": "test",
                "states": states,
                "source": {
                    "case_id": case_id,
                    "patient_id": case_id,
                    "image": {"format": "nifti", "path": f"{name}/ct.nii.gz", "series_uid": None},
                    "labels": None,
                    "annotated": None,
                    "split": "test",
                },
                "source_hash": "0",
                "key": "0",
                "scan": {"shape": list(shape), "affine": affine.tolist()},
                "tensors": [],
                "reference": {"file": f"references/{name}.nii.gz", "sha256": "0"},
                "voxels": {},
                "lost_fraction": {},
                "findings": [],
            }
        )
        if not evaluated:
            continue
        save(workspace.predictions / f"{name}.nii.gz", prediction, spacing_mm, np.uint8)
        runs.append(
            {
                "case_id": case_id,
                "patient_id": case_id,
                "seconds": 4.2,
                "prediction": f"predictions/{name}.nii.gz",
                "reference": f"references/{name}.nii.gz",
            }
        )
    _write_results(workspace, entries, runs, synthetic, list(anatomy(count)[0]))
    return workspace


def _write_results(
    workspace: Workspace, entries: list[dict], runs: list[dict], synthetic: bool, names: list[str]
) -> None:
    others = [
        {**entries[0], "case_id": f"{split}_{i}", "patient_id": f"{split}_{i}", "split": split}
        for split, n in (("train", 11), ("val", 3))
        for i in range(n)
    ]
    splits = {
        "version": 1,
        "seed": 0,
        "assignment": {entry["patient_id"]: entry["split"] for entry in entries + others},
    }
    findings = [
        {
            "severity": "WARN",
            "code": "LOW_RESOLUTION",
            "cause": "slices are 5 mm apart",
            "fix": "nothing to do",
            "case": "patient_03",
            "file": "raw/patient_03/ct.nii.gz",
            "stage": "preprocess",
            "action": "used",
        },
        {
            "severity": "ERROR",
            "code": "TRUNCATED",
            "cause": "the file ends early",
            "fix": "copy it again",
            "case": "patient_99",
            "file": "raw/patient_99/ct.nii.gz",
            "stage": "preprocess",
            "action": "skipped",
        },
        {
            "severity": "NOTE",
            "code": "REORIENTED",
            "cause": "axes were stored in another order",
            "fix": "nothing to do",
            "case": "patient_04",
            "file": "raw/patient_04/ct.nii.gz",
            "stage": "preprocess",
            "action": "used",
        },
    ]
    write_json(workspace.splits, splits)
    record = {
        "layout": "plain",
        "synthetic": synthetic,
        "data_root": "raw",
        "structures": names,
        "grid": "windows",
        "spacing_mm": [3.0, 2.0, 2.0],
        "window_hu": [-250, 750],
        "settings": {"seed": 0},
        "settings_hash": "0",
        "splits_hash": canonical_hash(splits),
        "versions": {"numpy": np.__version__, "python": "3.11"},
        "cases": entries + others,
    }
    manifest = from_record(Manifest, record).sealed()
    write_json(workspace.manifest, to_record(manifest))
    write_json(
        workspace.preprocess_report,
        {
            "version": 1,
            "found": len(entries) + 15,
            "processed": len(entries) + 14,
            "cached": 0,
            "skipped": 1,
            "findings": findings,
        },
    )
    write_json(
        workspace.history, history(names) | {"synthetic": synthetic, "manifest_hash": manifest.data_hash()}
    )
    if not runs:
        return
    write_json(
        workspace.run_record,
        {
            "version": 1,
            "checkpoint_sha256": "c" * 64,
            "manifest_hash": manifest.data_hash(),
            "synthetic": synthetic,
            "structures": names,
            "settings": {"flip": True},
            "device": "cpu",
            "cases": runs,
        },
    )
    write_json(workspace.predictions / "labels.json", {str(i + 1): name for i, name in enumerate(names)})
    evaluate.score_run(workspace, Settings())


def many_rows(count: int = 60, cases: int = 20) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows for `count` structures with long names, for the looks of wide results."""
    rng = np.random.default_rng(5)
    structures = [
        f"{'vertebra' if i % 3 else 'lung_upper_lobe_segment'}_{i:02d}_{'left' if i % 2 else 'right'}"
        for i in range(count)
    ]
    rows = []
    for i, structure in enumerate(structures):
        for case in range(cases):
            missed = rng.random() < 0.03
            dice = 0.0 if missed else float(np.clip(rng.normal(0.9 - 0.006 * i, 0.06), 0.01, 0.99))
            distance = None if missed else 1 + 30 * (1 - dice)
            rows.append(
                {
                    "case_id": f"c{case:02d}",
                    "structure": structure,
                    "state": "missed" if missed else "present",
                    "dice": dice,
                    "iou": dice / (2 - dice),
                    "precision": None if missed else dice,
                    "recall": dice,
                    "nsd": dice,
                    "hd95_mm": distance,
                    "hd95_imputed_mm": distance or 400.0,
                    "hd_mm": distance,
                    "assd_mm": distance,
                }
            )
    return rows, structures
