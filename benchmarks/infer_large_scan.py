"""Time and peak memory of `infer.py` on a scan of 512 x 512 x 300 voxels, with few structures and with many.

The scan is TotalSegmentator's example CT interpolated to that size; the models learn its structures for a
short while, from the same scan, so the masks are anatomical but say nothing about other patients: only time
and memory count here.

    python benchmarks/infer_large_scan.py --data DIR --workspace WORK      (DIR holds example_ct.nii.gz and
        its masks)
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train
from benchmarks.overfit_one_scan import STRUCTURES, prepare
from ctseg import artifacts
from ctseg.geometry.grids import GridPlan
from ctseg.geometry.volume import AIR_HU, Grid, resample
from ctseg.scans.formats import nifti, volume_files

SHAPE = (300, 512, 512)
PLANS = {"whole": GridPlan("whole", None), "windows": GridPlan("windows", (2.5, 2.5, 2.5))}


def enlarge(source: Path, target: Path) -> None:
    """Write the CT interpolated to SHAPE over the same field of view."""
    image = volume_files.read_image(source)[0]
    factor = np.array(image.array.shape) / np.array(SHAPE)
    affine = image.affine.copy()
    affine[:3, :3] = image.affine[:3, :3] * factor
    affine[:3, 3] += image.affine[:3, :3] @ ((factor - 1) / 2)
    nifti.write_image(target, resample(image, Grid(SHAPE, affine), order="cubic", fill=AIR_HU))


def structures_of(data: Path, count: int) -> dict[int, str]:
    """Label value -> name of `count` structures that the example shows, those of the overfitting benchmark
    first.
    """
    label = volume_files.read_integers(data / "example_seg_fast_force_split.nii.gz")[0]
    names = nifti.read_names(data / "example_seg_fast_force_split.nii.gz")
    there = {int(value): names[int(value)] for value in np.unique(label.array) if value}
    chosen = [*STRUCTURES, *(value for value in there if value not in STRUCTURES)][:count]
    return {value: there[value] for value in sorted(chosen)}


def measured(command: list[str]) -> tuple[float, float]:
    """(seconds, processor seconds) of a command.

    RuntimeError when it fails. Its memory is what it says itself: the system counts that of this process too.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}")
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime


def main() -> int:
    """Train, predict, and print one line per number of structures and grid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2, help="of training per model")
    parser.add_argument("--structures", type=int, nargs="+", default=[5, 61])
    parser.add_argument("--grids", nargs="+", choices=list(PLANS), default=list(PLANS))
    parser.add_argument("--width", type=int, default=8, help="of the network")
    parser.add_argument(
        "--patch",
        default="auto",
        help="of the training, for example 32,32,32: with many outputs small ones learn sooner",
    )
    parser.add_argument("--options", default="", help="more options of infer.py")
    arguments = parser.parse_args()
    scan = arguments.workspace / "scan.nii.gz"
    if not scan.is_file():
        enlarge(arguments.data / "example_ct.nii.gz", scan)
    lines = []
    for kind in arguments.grids:
        for count in arguments.structures:
            workspace = artifacts.Workspace(arguments.workspace / f"{kind}_{count}")
            if not workspace.best_model.is_file():
                prepare(
                    arguments.data.absolute(), workspace, PLANS[kind], structures_of(arguments.data, count)
                )
                code = train.main(
                    [
                        "--workspace",
                        str(workspace.root),
                        "--minutes",
                        str(arguments.minutes),
                        "--set",
                        "train.augmentation=none",
                        "--set",
                        "train.foreground_fraction=0.9",
                        "--set",
                        "train.learning_rate=0.003",
                        "--set",
                        f"model.width={arguments.width}",
                        "--set",
                        f"train.patch_size={arguments.patch}",
                    ]
                )
                if code:
                    return code
            output = workspace.root / "masks"
            shutil.rmtree(output, ignore_errors=True)  # infer.py would go on with what is there
            wall, processor = measured(
                [
                    sys.executable,
                    "infer.py",
                    "--input",
                    str(scan.absolute()),
                    "--output",
                    str(output.absolute()),
                    "--checkpoint",
                    str(workspace.best_model),
                    *arguments.options.split(),
                ]
            )
            record = artifacts.read_json(output / "inference.json")
            found = sum(values["volume_ml"] > 0 for values in record["scans"][0]["structures"].values())
            lines.append(
                f"| {kind} | {count} | {found} | {wall:.1f} | {processor:.1f} | "
                f"{record['peak_memory_gb']:.2f} |"
            )
    print("| grid | structures | found | s | processor s | peak GB |\n|---|---|---|---|---|---|")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
