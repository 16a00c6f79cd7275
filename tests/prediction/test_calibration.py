"""Calibration: oracles worked out by hand, sums that add up, the scan's grid, and the files of a run against
a direct computation.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import ndtr
from tiny_workspace import SIZE, STRUCTURES, draw, make

import evaluate
from ctseg import artifacts, config
from ctseg.datasets.case import IGNORED
from ctseg.geometry.argmax_on_scan import probability_on_scan
from ctseg.geometry.probabilities import Probabilities
from ctseg.geometry.volume import Grid, Volume, resample
from ctseg.manifest import Manifest
from ctseg.prediction import sliding_windows
from ctseg.prediction.network_input import NetworkInput
from ctseg.prediction.test_split import Calibration
from ctseg.runtime.hardware import choose_machine
from ctseg.scans.formats import nifti, volume_files
from ctseg.scoring import calibration
from ctseg.scoring.calibration import BINS, Sums, structure_sums

CPU = choose_machine("cpu", "fp32")


def counted(p: list[float] | np.ndarray, y: list[int] | np.ndarray) -> Sums:
    sums = Sums()
    sums.add(np.asarray(p, dtype=np.float64), np.asarray(y).astype(bool))
    return sums


def direct(p: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The formulas of the specification, voxel by voxel and bin by bin."""
    p, y = p.astype(np.float64).ravel(), y.ravel().astype(np.float64)
    index = np.minimum(np.floor(15 * p), 14)
    ece = sum(
        (index == b).sum() / len(p) * abs(p[index == b].mean() - y[index == b].mean())
        for b in range(15)
        if (index == b).any()
    )
    clipped = np.clip(p, 1e-7, 1 - 1e-7)
    return {
        "ece": float(ece),
        "brier": float(((p - y) ** 2).mean()),
        "nll": float(-(y * np.log(clipped) + (1 - y) * np.log(1 - clipped)).mean()),
    }


def manhattan_band(reference: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The band by distances: five 6-connected steps reach exactly |dd| + |dh| + |dw| <= 5.

    Outside the scan is background.
    """
    near = ndimage.distance_transform_cdt(~np.pad(reference | prediction, 1), metric="taxicab") <= 5
    deep = ndimage.distance_transform_cdt(np.pad(reference & prediction, 1), metric="taxicab") > 5
    return (near & ~deep)[1:-1, 1:-1, 1:-1]


# ---- oracles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frequency", "ece"), [(0.9, 0.0), (0.5, 0.4), (1.0, 0.1)])
def test_one_probability_and_its_frequency(frequency, ece):
    y = np.arange(1000) < 1000 * frequency
    sums = counted(np.full(1000, 0.9), y)
    assert sums.ece == pytest.approx(ece, abs=1e-12) and sums.n[13] == 1000  # floor(15 * 0.9) = 13


def test_six_voxels_by_hand(monkeypatch):
    p, y = [0.05, 0.15, 0.95, 0.95, 0.85, 0.25], [0, 0, 1, 0, 1, 1]
    brier = (0.05**2 + 0.15**2 + 0.05**2 + 0.95**2 + 0.15**2 + 0.75**2) / 6
    assert counted(p, y).describe()["brier"] == pytest.approx(brier) == pytest.approx(0.2525)
    monkeypatch.setattr(calibration, "BINS", 10)
    ten = Sums(np.zeros(10, np.int64), np.zeros(10), np.zeros(10, np.int64))
    ten.add(np.array(p), np.array(y, dtype=bool))
    assert ten.ece == pytest.approx(1 / 3)
    # with 15 bins 0.95 (bin 14) and 0.85 (bin 12), 0.05, 0.15, 0.25 (bins 0, 2, 3) stand alone, but for the
    # two of 0.95
    monkeypatch.setattr(calibration, "BINS", 15)
    assert counted(p, y).ece == pytest.approx((0.05 + 0.15 + 2 * abs(0.95 - 0.5) + 0.15 + 0.75) / 6)


def test_the_ends_of_the_scale():
    sums = counted([0.0, 1.0, 1.0, 1 / 15, 0.9999], [0, 1, 0, 0, 1])
    assert sums.n[0] == 1 and sums.n[1] == 1 and sums.n[14] == 3  # 1 belongs to the last bin
    wrong = counted([1.0], [0]).describe()
    assert wrong["nll"] == pytest.approx(-np.log(1e-7), rel=1e-6) and wrong["ece"] == wrong["brier"] == 1.0
    assert counted([0.0], [0]).describe()["nll"] == pytest.approx(1e-7, rel=1e-6)


def test_nothing_counted_is_undefined_not_zero():
    described = Sums().describe()
    assert described["ece"] is described["brier"] is described["nll"] is None
    assert described["bins"] == [{"n": 0, "p": None, "y": None}] * BINS


def test_random_voxels_against_the_formulas_and_in_parts():
    rng = np.random.default_rng(0)
    p, y = rng.random(300_000, dtype=np.float32) ** 3, rng.random(300_000) < 0.2
    whole, expected = counted(p, y), direct(p, y)
    assert {key: whole.describe()[key] for key in expected} == pytest.approx(expected, rel=1e-9)
    parts = Sums()
    for first in range(0, p.size, 70_001):
        own = Sums()
        own.add(p[first : first + 70_001], y[first : first + 70_001])
        parts.merge(Sums.from_record(own.record()))
    assert np.array_equal(parts.n, whole.n) and np.array_equal(parts.y, whole.y)
    assert {key: parts.describe()[key] for key in expected} == pytest.approx(expected, rel=1e-9)


def test_voxels_outside_the_box_are_counted_without_being_seen():
    rng = np.random.default_rng(1)
    p, reference, prediction = (
        np.zeros((30, 28, 32), np.float32),
        np.zeros((30, 28, 32), bool),
        np.zeros((30, 28, 32), bool),
    )
    reference[10:18, 9:17, 12:18], prediction[11:18, 9:18, 12:17] = True, True
    p[9:19, 8:19, 11:19] = rng.random((10, 11, 8))
    box = (slice(4, 24), slice(2, 24), slice(5, 25))  # both masks and six voxels more
    small = structure_sums(
        probability=p[box], reference=reference[box], prediction=prediction[box], voxels=p.size
    )
    full = structure_sums(probability=p, reference=reference, prediction=prediction, voxels=p.size)
    band = manhattan_band(reference, prediction)
    for sums in (small, full):
        for region, chosen in (("whole", np.ones_like(band)), ("band", band)):
            expected = direct(p[chosen], reference[chosen])
            assert sums[region].voxels == chosen.sum()
            assert {key: sums[region].describe()[key] for key in expected} == pytest.approx(
                expected, rel=1e-9
            )


def test_the_band_at_the_edge_of_the_scan_and_of_empty_masks():
    rng = np.random.default_rng(2)
    reference, prediction = np.zeros((2, 14, 15, 13), bool)
    reference[0:14, 0:13, 3:13], prediction[0:13, 1:13, 2:13] = True, True
    reference &= rng.random(reference.shape) < 0.999
    assert np.array_equal(
        calibration.boundary_band(reference=reference, prediction=prediction),
        manhattan_band(reference, prediction),
    )
    nothing = np.zeros((6, 6, 6), bool)
    sums = structure_sums(probability=np.zeros((6, 6, 6)), reference=nothing, prediction=nothing, voxels=1000)
    assert sums["band"].ece is None and sums["whole"].voxels == 1000 and sums["whole"].ece == 0
    with pytest.raises(ValueError, match="cannot hold"):
        structure_sums(probability=np.zeros((6, 6, 6)), reference=nothing, prediction=nothing, voxels=100)


def test_an_overconfident_map_looks_well_on_the_whole_scan_and_bad_in_the_band():
    """What section 4 warns of: far away everything is certain and right."""
    distance = np.sqrt(((np.indices((96, 96, 96)) - 48) ** 2).sum(axis=0))
    rng = np.random.default_rng(3)
    reference = distance + rng.normal(0, 2.5, distance.shape) < 20  # nobody can know this edge
    sure, fair = (
        ndtr((20 - distance) / 0.1).astype(np.float32),
        ndtr((20 - distance) / 2.5).astype(np.float32),
    )
    over = structure_sums(probability=sure, reference=reference, prediction=sure > 0.5, voxels=distance.size)
    good = structure_sums(probability=fair, reference=reference, prediction=fair > 0.5, voxels=distance.size)
    assert over["whole"].ece < 0.02 < 0.08 < over["band"].ece  # type: ignore[operator]
    assert good["band"].ece < 0.1 * over["band"].ece  # type: ignore[operator]


# ---- on the scan ------------------------------------------------------------------------------------------


def shares(probabilities: np.ndarray) -> Probabilities:
    result = Probabilities(len(probabilities), probabilities.shape[1:])
    result.add([slice(0, n) for n in result.shape], probabilities)
    return result


@pytest.mark.parametrize("kind", ["same", "part", "larger", "flipped", "finer", "turned"])
def test_a_structure_on_the_scan_is_that_of_the_whole_canvas(kind):
    rng = np.random.default_rng(4)
    full = np.zeros((3, 20, 24, 28), np.float32)
    full[1, 4:10, 3:9, 5:20], full[2, 0:5, 18:24, 20:28] = rng.random((6, 6, 15)), rng.random((5, 6, 8))
    full[0] = 1 - full[1] - full[2]
    canvas = Grid(full.shape[1:], np.diag([2.0, 2, 2, 1])[:, [2, 1, 0, 3]])
    affine = canvas.affine.copy()
    if kind == "flipped":
        affine[:3, 3] += affine[:3, 0] * 19
        affine[:3, 0] *= -1
    if kind in ("finer", "turned"):
        affine[:3, :3] *= [0.7, 1.3, 0.6]
        affine[:3, 3] = [-1.5, 0.3, -2.2]
    if kind == "turned":
        affine[:3, :3] = (
            np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
            @ affine[:3, :3]
        )
    scan = {
        "part": canvas.crop((2, 3, 4), (10, 12, 14)),
        "larger": canvas.crop((-2, -3, -1), (30, 30, 30)),
    }.get(kind, Grid((30, 24, 50) if kind in ("finer", "turned") else canvas.shape, affine))
    given = shares(full)
    for number in (1, 2):
        expected = np.clip(
            resample(Volume(given.whole(number), canvas.affine), scan, order="linear", fill=0.0).array, 0, 1
        )
        found = probability_on_scan(given, number, canvas, scan)
        result = np.zeros(scan.shape, np.float32)
        if found is not None:
            result[found[0]] = found[1]
        assert np.allclose(result, expected, atol=1e-6)
        assert number == 2 or result.max() > 0.5
    assert probability_on_scan(shares(full[:2]), 2, canvas, scan) is None


def softmax_of(index: int) -> np.ndarray:
    """(4, D, H, W) made-up probabilities of a case of the tiny workspace, overconfident and a little beside
    it.
    """
    label = draw(index)[1]
    logits = np.stack([2.0 * (np.roll(label, 1, 0) == value) for value in range(4)]) + np.random.default_rng(
        index
    ).normal(0, 0.5, (4, *label.shape))
    weights = np.exp(3 * logits)
    return (weights / weights.sum(axis=0)).astype(np.float32)


def test_a_case_counts_only_what_somebody_looked_for_and_at_and_cases_add_up(tmp_path):
    workspace = make(tmp_path, unlabelled={5: ["middle"]})
    manifest = Manifest.load(workspace)
    found, expected = Calibration(STRUCTURES), {}
    for index in (4, 5):
        entry, soft = manifest.cases[index], softmax_of(index)
        grid = entry.scan
        reference, prediction = draw(index)[1], soft.argmax(0).astype(np.uint8)
        if index == 5:
            reference[reference == 3] = 0
        reference[14:17, :, 20:] = IGNORED  # through the left blob
        looked_at = reference != IGNORED
        nifti.write_label(
            workspace.processed / entry.written_reference().file, Volume(reference, grid.affine), names=None
        )
        found.add(entry, shares(soft), grid, prediction, workspace)
        for number, name in enumerate(STRUCTURES, start=1):
            if (index, name) != (5, "middle"):
                band = calibration.boundary_band(
                    reference=reference == number, prediction=prediction == number
                )
                for region, chosen in (("whole", looked_at), ("band", band & looked_at)):
                    expected.setdefault((name, region), []).append(
                        (soft[number][chosen], (reference == number)[chosen])
                    )
    assert set(found.cases["case_4"]) == set(STRUCTURES) and set(found.cases["case_5"]) == {
        "left_blob",
        "right_blob",
    }
    for (name, region), parts in expected.items():
        p, y = (np.concatenate(column) for column in zip(*parts))
        described = found.sums[name][region].describe()
        # a voxel of less than 0.0001 with no higher one near counts as 0
        assert {key: described[key] for key in ("ece", "brier", "nll")} == pytest.approx(
            direct(p, y), abs=1e-3
        )
        assert sum(item["n"] for item in described["bins"]) == len(p)
        assert found.cases["case_4"][name][f"ece_{region}"] == pytest.approx(
            direct(*parts[0])["ece"], abs=1e-3
        )


# ---- a run ------------------------------------------------------------------------------------------------


class Mirrored(torch.nn.Module):
    """A network without training: the brightness decides, and the W-upper half of the window is called left,
    which a mirror turns round.
    """

    def forward(self, ct: torch.Tensor) -> dict[str, torch.Tensor]:
        place = torch.linspace(-1, 1, ct.shape[4]).expand(ct.shape)
        return {
            "logits": torch.cat(
                [
                    torch.zeros_like(ct) + 2,
                    14 * ct - 6 + 3 * place,
                    14 * ct - 6 - 3 * place + 0.4,
                    torch.full_like(ct, -9),
                ],
                1,
            )
        }


@pytest.mark.parametrize("mirror", [True, False])
def test_views_are_told_and_their_mean_is_the_result(mirror):
    image = torch.from_numpy(draw(0)[0]).float()
    swaps = torch.tensor([0, 2, 1, 3]) if mirror else None
    windows, sight = sliding_windows.Windows(4, (20, 20, 24), 0.5, swaps), NetworkInput(image)
    labels: list[np.ndarray] = []
    mean = sliding_windows.predict_probabilities(Mirrored(), sight, windows, CPU, on_view=labels.append)
    canvas = sliding_windows.predict_probabilities(Mirrored(), sight, windows, CPU, least=0.0).dense()
    # what blocks leave out
    assert np.abs(mean.dense() - canvas).max() < 1e-3
    assert np.array_equal(mean.label(), canvas.argmax(0)) and len(labels) == windows.count_views(
        Mirrored()
    ) == (2 if mirror else 1)
    once = sliding_windows.Windows(4, (20, 20, 24), 0.5)
    plain = sliding_windows.predict_probabilities(Mirrored(), sight, once, CPU, least=0.0).dense()
    assert np.array_equal(labels[0], plain.argmax(0))
    if mirror:
        flipped = sliding_windows.predict_probabilities(
            Mirrored(), NetworkInput(image.flip(2)), once, CPU, least=0.0
        ).dense()[:, :, :, ::-1][[0, 2, 1, 3]]
        assert np.array_equal(labels[1], flipped.argmax(0)) and not np.array_equal(labels[0], labels[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[artifacts.Workspace, Manifest]:
    """A tiny workspace with a trained model, evaluated; and its manifest."""
    from tiny_workspace import arguments

    import train

    workspace = make(tmp_path_factory.mktemp("run"), unlabelled={5: ["middle"]})
    manifest = Manifest.load(workspace)
    for index, entry in enumerate(manifest.cases):
        label = draw(index)[1]
        label[label == (3 if index == 5 else 9)] = 0
        nifti.write_label(
            workspace.processed / entry.written_reference().file, Volume(label, entry.scan.affine), names=None
        )
    words = arguments(
        workspace,
        **{
            "train.epochs": 6,
            "train.learning_rate": 0.01,
            "train.steps_per_epoch": 8,
            "train.validations": 1,
        },
    )
    assert train.main(words) == 0 and evaluate.main(words) == 0
    return workspace, manifest


def test_the_files_hold_what_a_direct_computation_gives(run):
    from ctseg.prediction.network_input import assemble
    from ctseg.prediction.predictor import load_predictor
    from models import build_network

    workspace, manifest = run
    entry = manifest.cases[5]
    predictor = load_predictor(
        workspace.best_model,
        config.EvaluateSettings(),
        device="cpu",
        build_network=build_network,
        file="best_model.pth",
    )
    _, label, _ = assemble(workspace, entry)
    found = predictor.predict(predictor.read_case(workspace, manifest, entry))
    soft, agreed = found.probabilities, found.confidence
    prediction = volume_files.read_integers(workspace.evaluation / "predictions" / "case_5.nii.gz")[0].array
    summary, record = (
        artifacts.read_json(workspace.evaluation / "summary_statistics.json"),
        artifacts.read_json(workspace.run_record),
    )
    with (workspace.evaluation / "per_case.csv").open() as stream:
        rows = {row["structure"]: row for row in csv.DictReader(stream)}
    assert (
        predictor.members == record["members"] == 2
        and record["why_no_confidence"] is None
        and record["cases"][0]["confidence"] == agreed
    )
    assert any(value is not None for value in agreed.values())  # else there is nothing to compare
    for number, name in enumerate(STRUCTURES, start=1):
        if name == "middle":  # nobody looked for it
            assert (
                name not in summary["calibration"]
                and rows[name]["ece_band"] == rows[name]["ece_whole"] == rows[name]["confidence"] == ""
            )
            continue
        truth = (np.asarray(label) == number).reshape(SIZE, SIZE, SIZE)
        band = calibration.boundary_band(reference=truth, prediction=prediction == number)
        p = soft.whole(number)
        for region, chosen in (("whole", np.ones_like(band)), ("band", band)):
            block, expected = summary["calibration"][name][region], direct(p[chosen], truth[chosen])
            assert {key: block[key] for key in expected} == pytest.approx(expected, rel=1e-6)
            assert float(rows[name][f"ece_{region}"]) == pytest.approx(expected["ece"], rel=1e-6)
            assert sum(item["n"] for item in block["bins"]) == chosen.sum()
        assert rows[name]["confidence"] == ("" if agreed[name] is None else str(agreed[name]))
    content = artifacts.read_json(workspace.calibration)
    assert (
        content["format"] == "ctseg-calibration"
        and content["version"] == 1
        and content["checkpoint_sha256"] == record["checkpoint_sha256"]
    )
    assert (
        Sums.from_record(content["structures"]["left_blob"]["band"]).ece
        == summary["calibration"]["left_blob"]["band"]["ece"]
    )


def test_the_report_shows_the_band_before_the_whole(run):
    workspace, _ = run
    report = (workspace.evaluation / "evaluation_report.txt").read_text()
    table = report[report.index("Calibration of the probabilities") :]
    assert table.index("ECE band") < table.index("ECE whole") and "synthetic" in table.splitlines()[0]
    assert (
        report.index("Worst 5")
        < report.index("Calibration of")
        < report.index("Failure detection")
        < report.index("Warnings")
    )
    assert (workspace.evaluation / "reliability.png").stat().st_size > 0


def test_calibration_of_other_weights_is_left_out(run, tmp_path):
    import shutil

    workspace = artifacts.Workspace(tmp_path / "w")
    shutil.copytree(run[0].root, workspace.root)
    content = artifacts.read_json(workspace.calibration)
    artifacts.write_json(workspace.calibration, content | {"checkpoint_sha256": "0" * 64})
    assert evaluate.score_run(workspace, config.Settings()) == 0
    assert artifacts.read_json(workspace.evaluation / "summary_statistics.json")["calibration"] == {}
    assert not (workspace.evaluation / "reliability.png").exists()
    assert "not measured" in (workspace.evaluation / "evaluation_report.txt").read_text()


@pytest.mark.pictures
def test_pictures_of_few_many_and_no_structures(tmp_path: Path):
    from ctseg.reporting.pictures import reliability

    rng = np.random.default_rng(5)
    for count in (0, 3, 12):
        sums = {}
        for number in range(count):
            p = rng.random((12, 12, 12), dtype=np.float32)
            sums[f"s{number}"] = structure_sums(
                probability=p, reference=rng.random(p.shape) < p, prediction=p > 0.5, voxels=4000
            )
        pooled = calibration.pooled(sums)
        assert pooled["whole"].voxels == 4000 * count
        reliability.diagram(
            calibration.describe(sums),
            calibration.describe({"all": pooled})["all"],
            tmp_path / f"{count}.png",
            True,
        )
        assert (tmp_path / f"{count}.png").stat().st_size > 5000
