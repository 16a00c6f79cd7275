"""Overfit one real scan through both grids and score it in scan space: proof that the geometry loses nothing.

The TotalSegmentator example CT (122 x 101 x 112 voxels of 3 mm) with liver, spleen, kidneys, bladder,
prostate, hips and sacrum is training, validation and test case at once, so the numbers say nothing about
other patients.

    python benchmarks/overfit_one_scan.py --data DIR --workspace WORK      (DIR holds example_ct.nii.gz and
        its masks)
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import evaluate
import train
from ctseg import artifacts, config
from ctseg.datasets.case import CaseRecord, ImageSource, LabelSource
from ctseg.datasets.splits import splits_record
from ctseg.geometry.grids import GridPlan
from ctseg.geometry.volume import Volume
from ctseg.manifest import Manifest, to_record
from ctseg.preparation.case_to_tensors import CaseJob, Recipe, prepare_case
from ctseg.scans.formats.nifti import write_label
from ctseg.scans.formats.volume_files import read_integers

# ids of TotalSegmentator v2 "total"
STRUCTURES = {
    1: "spleen",
    2: "kidney_right",
    3: "kidney_left",
    5: "liver",
    21: "urinary_bladder",
    22: "prostate",
    25: "sacrum",
    77: "hip_left",
    78: "hip_right",
}


def prepare(data: Path, workspace: artifacts.Workspace, plan: GridPlan, structures: dict[int, str]) -> None:
    """Write processed_data/ with the one scan in all three splits.

    structures: label value -> name, the others are background.
    """
    workspace.root.mkdir(parents=True, exist_ok=True)
    segmentation = read_integers(data / "example_seg_fast_force_split.nii.gz")[0]
    kept = Volume(
        np.where(np.isin(segmentation.array, list(structures)), segmentation.array, 0).astype(np.uint8),
        segmentation.affine,
    )
    labels, scan = workspace.root / "labels.nii.gz", workspace.root / "ct.nii.gz"
    shutil.copy(data / "example_ct.nii.gz", scan)
    write_label(labels, kept, names=structures)
    names = tuple(structures.values())
    record = CaseRecord(
        "example", "example", ImageSource("nifti", scan), LabelSource("map", path=labels, values=structures)
    )
    settings = config.DataSettings(window_hu=(-250.0, 750.0), margin_mm=10.0)
    recipe = Recipe(workspace.root, workspace, names, settings, plan=plan)
    outcome = prepare_case(CaseJob(record, recipe))
    if outcome.case is None:
        sys.exit("\n".join(finding.line() for finding in outcome.findings))
    cases = [
        dataclasses.replace(
            outcome.case, case_id=f"example_{split}", patient_id=f"example_{split}", split=split
        )
        for split in ("train", "val", "test")
    ]
    splits = splits_record({case.patient_id: str(case.split) for case in cases}, 0)
    artifacts.write_json(workspace.splits, splits)
    manifest = Manifest(
        structures=names,
        grid=plan.kind,
        spacing_mm=plan.spacing_mm,
        window_hu=settings.window_hu,
        settings=config.Settings().record()["data"],
        settings_hash="",
        splits_hash=artifacts.canonical_hash(splits),
        cases=tuple(cases),
        layout="one scan, overfitted",
        synthetic=False,
        data_root=".",
    )
    artifacts.write_json(workspace.manifest, to_record(manifest.sealed()))


def main() -> int:
    """Overfit through `whole` and `windows` and print the Dice of each structure on the scan's grid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--model", default="unet")
    parser.add_argument("--grid", choices=["whole", "windows", "both"], default="both")
    arguments = parser.parse_args()
    results = {}
    for plan in (GridPlan("whole", None), GridPlan("windows", (2.5, 2.5, 2.5))):
        if arguments.grid not in (plan.kind, "both"):
            continue
        workspace = artifacts.Workspace(arguments.workspace / plan.kind)
        prepare(arguments.data.absolute(), workspace, plan, STRUCTURES)
        common = ["--workspace", str(workspace.root), "--model", arguments.model]
        code = train.main(
            [
                *common,
                "--minutes",
                str(arguments.minutes),
                "--restart",
                "--set",
                "train.augmentation=none",
                "--set",
                "train.foreground_fraction=0.9",
                "--set",
                "train.patch_size=48,48,48",
                "--set",
                "train.learning_rate=0.003",
            ]
        ) or evaluate.main(common)
        if code:
            return code
        results[plan.kind] = artifacts.read_json(workspace.evaluation / "summary_statistics.json")
    print("| structure | " + " | ".join(results) + " |")
    print("|---|" + "---|" * len(results))
    for name in STRUCTURES.values():
        print(
            f"| {name} | "
            + " | ".join(f"{summary[f'{name}_dice']['mean']:.4f}" for summary in results.values())
            + " |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
