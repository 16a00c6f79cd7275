"""Surfaces, pictures and films of masks. All masks here are synthetic."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from masks_in_space import BLUE, RED, ball, masks_of, oblique, upright
from PIL import Image

import visualize
from ctseg.datasets.case import ImageSource
from ctseg.datasets.masks import named_like, open_masks
from ctseg.errors import UsageError
from ctseg.geometry.volume import Volume
from ctseg.reporting.pictures import render, tour, video
from ctseg.reporting.pictures.colours import colour_of
from ctseg.reporting.pictures.subject import Subject
from ctseg.reporting.pictures.surfaces import Surface, surface_of
from ctseg.scans.dicom import dicom_seg, dicom_series, rtstruct
from ctseg.scans.formats import nifti


@pytest.mark.parametrize("affine", [upright(), oblique()])
def test_the_surface_of_a_ball_lies_on_it_and_faces_outwards(affine):
    centre = (affine @ [15, 25, 25, 1])[:3]
    surface = surface_of(ball((30, 50, 50), affine, centre, 20.0), "ball", RED, step_mm=0.8)
    away = surface.points_mm - centre
    radius = np.linalg.norm(away, axis=1)
    # within a voxel of the coarsest axis
    assert abs(np.median(radius) - 20) < 0.4 and np.abs(radius - 20).max() < np.linalg.norm(affine[:3, 0])
    assert ((away / radius[:, None]) * surface.normals).sum(1).min() > 0.6
    # at least one point per 0.8 mm: every direction is covered
    directions = np.random.default_rng(0).normal(size=(500, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    assert max(np.linalg.norm(surface.points_mm - (centre + 20 * d), axis=1).min() for d in directions) < 1.6


def test_a_vessel_one_voxel_thick_stays_whole_and_an_empty_mask_has_no_surface():
    array = np.zeros((40, 20, 20), dtype=bool)
    array[5:35, 10, 10] = True
    surface = surface_of(Volume(array, upright((1, 1, 1))), "vessel", RED, step_mm=0.5)
    heights = np.unique(np.round(surface.points_mm[:, 2]))
    assert set(range(16, 44)) <= {int(h) for h in heights}
    assert (
        len(surface_of(Volume(np.zeros((4, 4, 4), dtype=bool), upright()), "none", RED, step_mm=1).points_mm)
        == 0
    )


def test_the_patients_left_is_on_the_right_of_the_picture_and_above_is_above():
    affine = upright((2, 2, 2), (0, 0, 0))
    # +x is the patient's left, +z superior
    left_above = surface_of(ball((50, 40, 60), affine, (100, 40, 80), 12), "a", RED, step_mm=0.5)
    right_below = surface_of(ball((50, 40, 60), affine, (20, 40, 20), 12), "b", BLUE, step_mm=0.5)
    view = render.fit_view([left_above, right_below], width=200, height=160)

    def centre(picture, channel):
        other = 2 - channel
        rows, columns = np.nonzero(picture[..., channel].astype(int) - picture[..., other] > 60)
        return rows.mean(), columns.mean()

    front = render.draw([left_above, right_below], view, 0)
    (red_row, red_column), (blue_row, blue_column) = centre(front, 0), centre(front, 2)
    assert red_column > 120 and blue_column < 80 and red_row < 70 and blue_row > 90
    back = render.draw([left_above, right_below], view, 180)
    assert centre(back, 0)[1] < 80


def test_what_is_nearer_covers_what_is_behind():
    affine = upright((2, 2, 2), (0, 0, 0))
    left, right = (
        surface_of(ball((40, 40, 60), affine, (x, 40, 40), 15), "s", colour, step_mm=0.5)
        for x, colour in ((95, RED), (25, BLUE))
    )
    view = render.fit_view([left, right], width=120, height=120)
    for degrees, channel in ((90, 0), (270, 2)):  # from the patient's left; from the right
        picture = render.draw([left, right], view, degrees)
        middle = picture[55:65, 55:65].reshape(-1, 3).astype(int)
        assert (middle[:, channel] - middle[:, 2 - channel]).min() > 60
        assert tour.seen_from(degrees) == ("left" if channel == 0 else "right")


def test_no_holes_and_everything_inside_the_picture_all_the_way_round():
    affine = upright((3, 3, 3), (0, 0, 0))
    surface = surface_of(ball((40, 40, 40), affine, (60, 60, 60), 50), "ball", RED, step_mm=0.7)
    view = render.fit_view([surface], width=160, height=140)
    for degrees in range(0, 360, 45):
        red = render.draw([surface], view, degrees)[..., 1] < 200
        rows, columns = np.nonzero(red)
        assert rows.min() > 2 and columns.min() > 2 and rows.max() < 137 and columns.max() < 157
        for row in range(rows.min() + 2, rows.max() - 2):
            inside = np.flatnonzero(red[row])
            assert len(inside) == inside[-1] - inside[0] + 1


def test_a_translucent_surface_shows_what_is_in_it_but_not_what_is_before_it():
    affine = upright((2, 2, 2), (0, 0, 0))
    inner, around = ball((50, 50, 50), affine, (50, 50, 50), 12), ball((50, 50, 50), affine, (50, 50, 50), 40)
    solid = surface_of(inner, "inner", RED, step_mm=0.5)
    glass = surface_of(around, "around", BLUE, step_mm=0.5, opacity=0.3)
    view = render.fit_view([solid, glass], width=120, height=120)
    with_glass, alone = (
        render.draw([solid, glass], view, 0).astype(int),
        render.draw([solid], view, 0).astype(int),
    )
    centre = (slice(58, 62), slice(58, 62))
    assert with_glass[centre][..., 0].mean() > with_glass[centre][..., 2].mean() + 40  # still red
    assert with_glass[centre][..., 2].mean() > alone[centre][..., 2].mean() + 5  # through blue glass
    before = Surface("before", solid.points_mm - np.array([0, 60, 0], dtype=np.float32), solid.normals, RED)
    assert np.array_equal(
        render.draw([before, glass], view, 0)[centre], render.draw([before], view, 0)[centre]
    )


def test_errors_are_red_where_too_much_and_blue_where_too_little():
    affine = upright((1, 1, 1), (0, 0, 0))
    prediction = surface_of(ball((40, 40, 60), affine, (33, 20, 20), 12), "p", RED, step_mm=0.7)
    colours = tour.error_colours(prediction.points_mm, ball((40, 40, 60), affine, (27, 20, 20), 12))
    left, right = prediction.points_mm[:, 0] > 44, prediction.points_mm[:, 0] < 22
    assert (colours[left, 0] > colours[left, 2] + 0.3).all() and (
        colours[right, 2] > colours[right, 0] + 0.3
    ).all()
    same = tour.error_colours(prediction.points_mm, ball((40, 40, 60), affine, (33, 20, 20), 12))
    assert np.ptp(same, axis=1).max() < 0.25


def test_colours_are_those_of_the_table_whatever_the_spelling():
    assert np.array_equal(colour_of("kidney_left", 0), colour_of("LeftKidney", 5)) and np.array_equal(
        colour_of("SpinalCord", 0), colour_of("spinal_cord", 3)
    )
    assert (colour_of("kidney_right", 0) > colour_of("kidney_left", 0)).any()
    assert not np.array_equal(colour_of("something", 0), colour_of("something", 1))
    assert not np.array_equal(colour_of("urinary_bladder", 0), colour_of("gallbladder", 0))


# ---- masks on disk ----------------------------------------------------------------------------------------


@pytest.fixture
def scan(tmp_path):
    rng = np.random.default_rng(0)
    image = Volume(rng.integers(-100, 200, (12, 24, 28)).astype(np.float32), upright((2.5, 2.0, 2.0)))
    dicom_series.write_series(tmp_path / "ct", image, patient_id="synthetic", series_number=1, seed=0)
    label = np.zeros(image.array.shape, dtype=np.uint8)
    label[3:9, 5:12, 4:10] = 1
    label[3:9, 12:20, 14:24] = 2
    return tmp_path, dicom_series.read_series(tmp_path / "ct")[0], label


def test_every_form_of_masks_gives_the_same(scan):
    folder, image, label = scan
    names = {1: "liver", 2: "spleen"}
    volume = Volume(label, image.affine)
    nifti.write_label(folder / "map" / "scan.nii.gz", volume, names=names)
    (folder / "map" / "labels.json").write_text('{"1": "liver", "2": "spleen"}')
    for value, name in names.items():
        nifti.write_label(
            folder / "organs" / f"{name}.nii.gz", Volume((label == value).astype(np.uint8), image.affine)
        )
    dicom_seg.write_segments(folder / "seg.dcm", volume, names, folder / "ct", algorithm="test")
    rtstruct.write_structures(folder / "rs.dcm", volume, names, folder / "ct")
    for path in (folder / "map" / "scan.nii.gz", folder / "organs", folder / "seg.dcm", folder / "rs.dcm"):
        masks = open_masks(path, image, ImageSource("dicom", folder / "ct"))
        assert masks.names == ("liver", "spleen")
        for value, name in names.items():
            mask = masks.read(name)
            assert (
                mask.array.dtype == bool
                and np.array_equal(mask.array, label == value)
                and np.abs(mask.affine - image.affine).max() < 1e-3
            )


def test_a_reference_without_names_takes_those_of_the_masks(scan):
    folder, image, label = scan
    opened = []
    for name, names in (
        ("named", '{"1": "liver", "2": "spleen"}'),
        ("bare", None),
        ("other", '{"1": "kidney", "2": "spleen"}'),
    ):
        nifti.write_label(folder / name / "map.nii.gz", Volume(label, image.affine))
        if names is not None:
            (folder / name / "labels.json").write_text(names)
        opened.append(open_masks(folder / name / "map.nii.gz"))
    named, bare, other = opened
    found = named_like(bare, named)
    assert found.names == ("liver", "spleen") and np.array_equal(found.read("spleen").array, label == 2)
    assert found.tight("liver") is not None and named_like(other, named) is other


def test_names_inside_the_file_are_read_and_values_without_one_are_numbered(scan):
    folder, image, label = scan
    nifti.write_label(folder / "map.nii.gz", Volume(label, image.affine))
    stored = nib.load(folder / "map.nii.gz")
    text = (
        b'<CaretExtension><LabelTable><Label Key="1" Red="0" Green="1"><![CDATA[liver]]></Label>'
        b'<Label Key="9"><![CDATA[ghost]]></Label></LabelTable></CaretExtension>'
    )
    stored.header.extensions.append(nib.nifti1.Nifti1Extension("ignore", text))
    nib.save(stored, folder / "named.nii.gz")
    assert (
        nifti.read_names(folder / "named.nii.gz") == {1: "liver", 9: "ghost"}
        and nifti.read_names(folder / "map.nii.gz") == {}
    )
    assert open_masks(folder / "named.nii.gz").names == ("liver", "label 2")


# ---- the command ------------------------------------------------------------------------------------------


def small(folder, image, label, *words):
    nifti.write_label(folder / "map.nii.gz", Volume(label, image.affine))
    (folder / "labels.json").write_text('{"1": "liver", "2": "spleen", "3": "kidney_left"}')
    return visualize.main(
        ["--input", str(folder / "map.nii.gz"), "--width", "160", "--height", "120", *words]
    )


def test_film_and_stills(scan):
    folder, image, label = scan
    assert (
        small(
            folder,
            image,
            label,
            "--ct",
            str(folder / "ct"),
            "--context",
            "bone",
            "--output",
            str(folder / "tour.gif"),
            "--seconds",
            "0.5",
            "--fps",
            "8",
            "--stills",
            str(folder / "stills"),
            "--synthetic",
        )
        == 0
    )
    with Image.open(folder / "tour.gif") as film:
        assert (
            film.size == (160, 120)
            and film.n_frames == 4
            and film.info["duration"] == pytest.approx(125, abs=6)
        )
        frames = []
        for number in range(film.n_frames):
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB")).astype(int))
    assert all(np.abs(a - b).max() > 40 for a, b in itertools.pairwise(frames))
    stills = {path.name: np.asarray(Image.open(path)) for path in (folder / "stills").iterdir()}
    assert sorted(stills) == ["back.png", "front.png", "left.png", "right.png"] and stills[
        "front.png"
    ].shape == (120, 160, 3)
    assert not np.array_equal(stills["front.png"], stills["back.png"])


def test_without_an_encoder_the_film_is_a_gif_and_it_is_said(scan, monkeypatch, capsys):
    folder, image, label = scan
    monkeypatch.setattr(video, "encoder", lambda: None)
    assert (
        small(folder, image, label, "--output", str(folder / "tour.mp4"), "--seconds", "0.2", "--fps", "10")
        == 0
    )
    assert (folder / "tour.gif").is_file() and not (folder / "tour.mp4").exists()
    assert "pip install imageio-ffmpeg" in "".join(capsys.readouterr())


@pytest.mark.skipif(video.encoder() is None, reason="no ffmpeg on this machine")
def test_an_mp4_plays(scan):
    folder, image, label = scan
    assert (
        small(folder, image, label, "--output", str(folder / "tour.mp4"), "--seconds", "0.5", "--fps", "10")
        == 0
    )
    content = (folder / "tour.mp4").read_bytes()
    # a browser can begin before the end is there
    assert content[4:8] == b"ftyp" and content.index(b"moov") < content.index(b"mdat")


def test_errors_against_a_reference(scan):
    folder, image, label = scan
    nifti.write_label(folder / "truth" / "map.nii.gz", Volume(np.roll(label, 2, axis=2), image.affine))
    (folder / "truth" / "labels.json").write_text('{"1": "liver", "2": "spleen"}')
    assert (
        small(
            folder,
            image,
            label,
            "--reference",
            str(folder / "truth" / "map.nii.gz"),
            "--stills",
            str(folder / "stills"),
        )
        == 0
    )
    picture = np.asarray(Image.open(folder / "stills" / "front.png")).astype(int)
    assert (picture[:, 60:, 0] - picture[:, 60:, 2]).max() > 60 and (
        picture[:, 60:, 2] - picture[:, 60:, 0]
    ).max() > 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "neither --output nor --stills"),
        (["--output", "tour.avi"], ".mp4 or .gif"),
        (["--output", "a.gif", "--structures", "livre"], "liver"),
        (["--output", "a.gif", "--context", "body"], "--ct"),
        (["--output", "a.gif", "--fps", "0"], "--fps"),
        (["--output", "a.gif", "--structures", "kidney_left"], "no voxel"),
        (["--output", "a.gif", "--ct", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_told(scan, words, said, capsys, monkeypatch):
    folder, image, label = scan
    monkeypatch.chdir(folder)
    assert small(folder, image, label, *words) != 0
    assert said in capsys.readouterr().err
    assert not list(folder.glob("*.gif"))


def test_a_scan_in_place_of_masks_is_told(scan, tmp_path, capsys):
    image = np.random.default_rng(0).integers(-1000, 1000, (12, 12, 12)).astype(np.int16)
    nifti.write_image(tmp_path / "ct.nii.gz", Volume(image.astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0])))
    assert visualize.main(["--input", str(tmp_path / "ct.nii.gz"), "--stills", str(tmp_path / "stills")]) == 4
    assert "negative values: this looks like an image" in capsys.readouterr().err


def test_structures_without_a_voxel_are_told(scan, capsys):
    folder, image, label = scan
    assert small(folder, image, label, "--stills", str(folder / "stills")) == 0
    assert "NOTE LABEL_EMPTY: no voxel belongs to kidney_left: not drawn." in capsys.readouterr().out
    (folder / "labels.json").unlink()
    nifti.write_label(folder / "nothing.nii.gz", Volume(np.zeros_like(label), image.affine))
    assert visualize.main(["--input", str(folder / "nothing.nii.gz"), "--stills", str(folder / "none")]) == 4
    assert "the masks hold nothing but background" in capsys.readouterr().err


def test_a_dicom_mask_without_its_scan_is_told(scan, capsys):
    folder, image, label = scan
    dicom_seg.write_segments(
        folder / "seg.dcm",
        Volume(label, image.affine),
        {1: "liver", 2: "spleen"},
        folder / "ct",
        algorithm="test",
    )
    assert visualize.main(["--input", str(folder / "seg.dcm"), "--output", str(folder / "a.gif")]) != 0
    assert "--ct" in capsys.readouterr().err


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="mp4"):
        video.film_path(tmp_path / "tour.mov")


def test_masks_without_a_voxel_have_no_surface():
    masks = masks_of(
        a=ball((10, 10, 10), upright(), (-40, -30, 10), 5),
        b=Volume(np.zeros((10, 10, 10), dtype=bool), upright()),
    )
    scene = tour.build_scene(Subject(masks, ["a", "b"]))
    assert [surface.name for surface in scene.surfaces] == ["a"] and scene.shown == ("a",)
