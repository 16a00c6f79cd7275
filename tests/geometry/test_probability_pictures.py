"""Probabilities as surfaces: where they lie, what is refused, what is told. All data here are synthetic."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from masks_in_space import RED, oblique, upright
from PIL import Image

import visualize
from ctseg.datasets.masks import Masks, open_masks
from ctseg.errors import CaseError
from ctseg.geometry.volume import Volume
from ctseg.reporting.pictures import tour
from ctseg.reporting.pictures.subject import Subject
from ctseg.reporting.pictures.surfaces import surface_of
from ctseg.scans.formats import nifti


def fuzzy_ball(
    affine: np.ndarray, centre_mm: np.ndarray, radius_mm: float, softness_mm: float, shape=(30, 50, 50)
) -> Volume:
    """Probability 0.5 at the radius, as a logistic curve of the distance."""
    index = np.stack([*np.indices(shape), np.ones(shape)], axis=-1)
    distance = np.linalg.norm((index @ affine.T)[..., :3] - centre_mm, axis=-1)
    return Volume((1 / (1 + np.exp((distance - radius_mm) / softness_mm))).astype(np.float32), affine)


@pytest.mark.parametrize("affine", [upright(), oblique()])
@pytest.mark.parametrize("level", [0.2, 0.5, 0.9])
def test_the_surface_lies_where_the_values_cross_the_level_between_the_voxels(affine, level):
    centre, softness = (affine @ [15.3, 25.4, 24.7, 1])[:3], 2.5
    values = fuzzy_ball(affine, centre, 18.0, softness)
    surface = surface_of(values, "ball", RED, step_mm=0.8, level=level)
    away = surface.points_mm - centre
    radius = np.linalg.norm(away, axis=1)
    expected = 18.0 - softness * np.log(level / (1 - level))
    error = np.abs(radius - expected)
    assert np.median(error) < 0.1 and error.max() < 0.6  # voxels are up to 3 mm thick
    assert ((away / radius[:, None]) * surface.normals).sum(1).min() > 0.9
    if level == 0.5:  # the mask of the same ball knows only whole voxels
        mask = surface_of(Volume(values.array >= level, affine), "ball", RED, step_mm=0.8)
        assert np.median(error) < 0.5 * np.median(
            np.abs(np.linalg.norm(mask.points_mm - centre, axis=1) - expected)
        )


def test_a_structure_that_leaves_the_scan_is_closed_and_one_below_the_level_has_no_surface():
    values = np.zeros((10, 12, 12), dtype=np.float32)
    values[:5, 3:9, 3:9] = 0.8
    surface = surface_of(Volume(values, upright((1, 1, 1), (0, 0, 0))), "cut", RED, step_mm=0.5, level=0.5)
    assert (
        surface.points_mm[:, 2].min() == pytest.approx(-0.4, abs=0.3) and (surface.normals[:, 2] < -0.8).any()
    )
    assert len(surface_of(Volume(values, upright()), "none", RED, step_mm=1, level=0.9).points_mm) == 0


@pytest.fixture
def folder(tmp_path):
    values = fuzzy_ball(upright(), (upright() @ [6, 12, 12, 1])[:3], 9.0, 1.5, (12, 24, 24))
    nifti.write_image(tmp_path / "p" / "liver.nii.gz", values, dtype=np.float32)
    return tmp_path, values


def test_files_of_probabilities_are_recognised_whatever_their_type(folder):
    path, values = folder
    masks = open_masks(path / "p" / "liver.nii.gz", level=0.5)
    assert masks.names == ("liver",) and np.allclose(masks.values("liver").array, values.array, atol=1e-6)
    assert (
        np.array_equal(masks.read("liver").array, values.array >= 0.5)
        and masks.read("liver").array.dtype == bool
    )
    scaled = nib.Nifti1Image(
        np.round(values.array.transpose(2, 1, 0) * 250).astype(np.uint8), nifti.file_affine(values.affine)
    )
    scaled.header.set_slope_inter(1 / 250, 0)
    scaled.header["scl_slope"] = 1 / 250
    nib.save(scaled, path / "bytes.nii.gz")
    stored = nib.load(path / "bytes.nii.gz")
    assert stored.get_data_dtype() == np.uint8
    seen = open_masks(path / "bytes.nii.gz", level=0.5).values("bytes").array
    assert (
        seen.dtype == np.float32 and np.abs(seen - np.asarray(stored.dataobj).transpose(2, 1, 0)).max() < 1e-6
    )
    with pytest.raises(CaseError, match="LABEL_NOT_INTEGER"):
        open_masks(path / "p" / "liver.nii.gz")


def test_a_label_map_stored_as_floats_stays_a_label_map(folder):
    path, values = folder
    nifti.write_image(
        path / "map.nii.gz", Volume((values.array > 0.5) * 2.0, values.affine), dtype=np.float64
    )
    masks = open_masks(path / "map.nii.gz", level=0.5)
    assert masks.names == ("label 2",) and masks.values("label 2").array.dtype == bool


@pytest.mark.parametrize("change", [lambda v: v * 100, lambda v: v * 8 - 4, lambda v: v * 1.01])
def test_values_that_are_no_probabilities_are_refused(folder, change, capsys):
    path, values = folder
    nifti.write_image(path / "logits.nii.gz", Volume(change(values.array), values.affine), dtype=np.float32)
    assert visualize.main(["--input", str(path / "logits.nii.gz"), "--output", str(path / "a.gif")]) == 3
    error = capsys.readouterr().err
    assert (
        "PROBABILITY_RANGE" in error and "probabilities (0 to 1)" in error and not (path / "a.gif").exists()
    )


def test_the_level_moves_the_surface_and_stands_in_the_picture(folder):
    path, _ = folder
    masks = {level: open_masks(path / "p", level=level) for level in (0.1, 0.5, 0.9)}
    sizes = {}
    for level, found in masks.items():
        scene = tour.build_scene(Subject(found, ["liver"]))
        sizes[level] = float(np.ptp(scene.surfaces[0].points_mm[:, 2]))
        assert scene.probabilities == ("liver",) and scene.subject.masks.level == level
    assert sizes[0.1] > sizes[0.5] + 3 and sizes[0.5] > sizes[0.9] + 3
    words = ["--input", str(path / "p"), "--width", "200", "--height", "160", "--stills"]
    assert visualize.main([*words, str(path / "s"), "--level", "0.2"]) == 0
    wide = np.asarray(Image.open(path / "s" / "front.png")).astype(int)
    assert visualize.main([*words, str(path / "t"), "--level", "0.95"]) == 0
    # the caption names the level
    assert (
        np.abs(
            wide[:20, 100:] - np.asarray(Image.open(path / "t" / "front.png")).astype(int)[:20, 100:]
        ).max()
        > 40
    )


def test_a_folder_that_mixes_is_told(folder, capsys):
    path, values = folder
    nifti.write_label(
        path / "p" / "spleen.nii.gz", Volume((values.array > 0.7).astype(np.uint8), values.affine)
    )
    words = ["--input", str(path / "p"), "--width", "160", "--height", "120", "--stills", str(path / "s")]
    assert visualize.main(words) == 0
    said = "".join(capsys.readouterr())
    assert "MIXED_MASKS" in said and "liver" in said.split("MIXED_MASKS")[1]
    (path / "p" / "spleen.nii.gz").unlink()
    assert visualize.main(words) == 0
    assert "MIXED_MASKS" not in "".join(capsys.readouterr())


def test_what_never_reaches_the_level_is_said_in_the_legend_and_in_the_error(folder, capsys):
    path, values = folder
    weak = Volume(values.array * 0.3, values.affine)
    stored = {"liver": values, "spleen": weak}
    masks = Masks(("liver", "spleen"), stored.__getitem__, 0.5)
    assert [text for text, _ in tour.build_scene(Subject(masks, masks.names)).legend] == [
        "liver",
        "spleen (below 0.5)",
    ]
    nifti.write_image(path / "weak.nii.gz", weak, dtype=np.float32)
    assert visualize.main(["--input", str(path / "weak.nii.gz"), "--output", str(path / "a.gif")]) == 4
    assert "lower --level" in capsys.readouterr().err


@pytest.mark.parametrize("level", ["0", "1", "1.5"])
def test_levels_outside_are_refused_before_anything_is_read(level, tmp_path, capsys):
    assert visualize.main(["--input", str(tmp_path / "nothing"), "--output", "a.gif", "--level", level]) == 2
    assert "--level" in capsys.readouterr().err
