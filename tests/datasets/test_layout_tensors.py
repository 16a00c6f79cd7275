"""Equal content gives equal tensors, whatever the layout of the folder it came in."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest
import tiny_workspace

import preprocessing
import run_pipeline
from ctseg import artifacts

pytestmark = pytest.mark.usefixtures("small_tensors")

NAMES = ("kidney_left", "kidney_right", "liver")  # FLARE22 has ids for these
WRITERS = {
    "abdomenatlas": builders.write_abdomenatlas,
    "totalsegmentator": builders.write_totalsegmentator,
    "nnunet": builders.write_nnunet,
    "msd": builders.write_msd,
    "monai": builders.write_monai,
    "flare22": builders.write_flare22,
    "dicom_seg": builders.write_dicom_seg,
}


def phantoms(prefix: str = "case_") -> dict[str, builders.Phantom]:
    return {
        f"{prefix}{i:04d}": builders.small_phantom(NAMES, seed=i, shape=(20, 24, 28)) for i in range(1, 5)
    }


def tensors(
    folder: Path, workspace: artifacts.Workspace
) -> dict[int, tuple[np.ndarray, dict[str, np.ndarray]]]:
    """{number of the case: (image, {structure: mask})} after preprocessing; ids differ between layouts,
    numbers do not.
    """
    assert (
        preprocessing.main(
            [
                "--data",
                str(folder),
                "--workspace",
                str(workspace.root),
                "--workers",
                "1",
                "--set",
                "data.grid=windows",
                "--set",
                "data.spacing_mm=3,2,1",
            ]
        )
        == 0
    )
    manifest = artifacts.read_json(workspace.manifest)
    result = {}
    for case in manifest["cases"]:
        (item,) = case["tensors"]
        image, label = tiny_workspace.read_tensor(workspace.processed / item["file"], sha256=item["sha256"])
        assert label is not None
        number = int("".join(c for c in case["case_id"].split("_")[-1] if c.isdigit()))
        result[number] = (image, {name: label == i for i, name in enumerate(manifest["structures"], start=1)})
    return result


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[int, tuple[np.ndarray, dict[str, np.ndarray]]]:
    folder = tmp_path_factory.mktemp("plain")
    builders.write_plain(folder / "data", phantoms())
    return tensors(folder / "data", artifacts.Workspace(folder / "w"))


@pytest.mark.parametrize("layout", WRITERS)
def test_tensors_equal_those_of_the_plain_layout(layout, plain, tmp_path):
    WRITERS[layout](tmp_path / "data", phantoms("FLARE22_Tr_" if layout == "flare22" else "case_"))
    found = tensors(tmp_path / "data", artifacts.Workspace(tmp_path / "w"))
    assert len(found) == len(plain) == 4
    for (_, (image, masks)), (_, (other, expected)) in zip(sorted(found.items()), sorted(plain.items())):
        assert np.array_equal(image, other)
        for name in NAMES:
            assert expected[name].any()
            assert np.array_equal(masks[name], expected[name]), name


@pytest.mark.slow
@pytest.mark.real
def test_the_challenges_own_csv_runs_through_all_stages(real_data, tmp_path):
    arguments = [
        "--all",
        "--data",
        str(real_data / "openkbp_csv"),
        "--workspace",
        str(tmp_path),
        "--profile",
        "cpu",
        "--structures",  # all of them are read by the test below
        "brainstem,spinal_cord",
        "--epochs",
        "1",
        "--set",
        "train.steps_per_epoch=2",
        "--set",
        "train.patch_size=32,32,32",
        "--set",
        "model.levels=3",
        "--set",
        "model.width=4",
        "--set",
        "evaluate.overlap=0",
        "--set",
        "evaluate.flip=false",
    ]
    assert run_pipeline.main(arguments) == 0
    manifest = artifacts.read_json(artifacts.Workspace(tmp_path).manifest)
    assert manifest["layout"] == "openkbp_csv" and len(manifest["cases"]) == 3


@pytest.mark.real
def test_csv_and_prepared_files_of_the_same_patients_give_equal_tensors(real_data, tmp_path):
    """Three patients in the challenge's CSV and the same three as NIfTI, both on the scans' own grids."""
    import json
    import shutil

    csv_patients = sorted(
        path.name for path in (real_data / "openkbp_csv" / "train-pats").iterdir() if path.is_dir()
    )
    source = json.loads((real_data / "openkbp" / "manifest.json").read_text())
    chosen = [case for case in source["cases"] if case["case"] in csv_patients]
    assert len(chosen) == len(csv_patients) == 3
    for case in chosen:
        shutil.copytree(
            real_data / "openkbp" / case["split"] / case["case"],
            tmp_path / "nifti" / case["split"] / case["case"],
        )
    (tmp_path / "nifti" / "manifest.json").write_text(json.dumps(source | {"cases": chosen}))
    images, labels = [], []
    for name, folder in (("csv", real_data / "openkbp_csv"), ("nifti", tmp_path / "nifti")):
        workspace = artifacts.Workspace(tmp_path / f"{name}_w")
        assert (
            preprocessing.main(["--data", str(folder), "--workspace", str(workspace.root), "--workers", "1"])
            == 0
        )
        manifest = artifacts.read_json(workspace.manifest)
        read = {
            case["case_id"]: tiny_workspace.read_tensor(workspace.processed / case["tensors"][0]["file"])
            for case in manifest["cases"]
        }
        images.append({key: image for key, (image, _) in read.items()})
        labels.append(
            {
                key: np.where(label > 0, np.array(["", *manifest["structures"]])[label], "")
                for key, (_, label) in read.items()
            }
        )
    assert images[0].keys() == images[1].keys() == set(csv_patients)
    for patient in csv_patients:
        assert np.array_equal(images[0][patient], images[1][patient])
        assert np.array_equal(labels[0][patient], labels[1][patient])
