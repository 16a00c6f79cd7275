"""Sheets of slices with masks, and slices in space. All data here are synthetic."""

from __future__ import annotations

import numpy as np
import pytest
from masks_in_space import RED, ball, masks_of, oblique, upright
from PIL import Image

import visualize
from ctseg.datasets.masks import Masks, open_masks, tight
from ctseg.geometry.boxes import whole_box
from ctseg.geometry.volume import Volume, reorient, to_canonical
from ctseg.reporting.pictures import contact_sheet, planes, render, slices, tour
from ctseg.reporting.pictures.colours import colours_on_ct, perceived
from ctseg.reporting.pictures.contact_sheet import build_sheet, spread
from ctseg.reporting.pictures.pieces import Piece, piece_of
from ctseg.reporting.pictures.slices import PLANES
from ctseg.reporting.pictures.subject import Subject
from ctseg.scans.formats import nifti

SHAPE = (20, 30, 36)


def scan_of(affine=None) -> Volume:
    image = np.full(SHAPE, 40, dtype=np.float32)
    image[:, :4] = -1000
    return Volume(image, upright() if affine is None else affine)


def random_mask(seed: int = 0) -> Volume:
    array = np.zeros(SHAPE, dtype=bool)
    array[4:15, 8:21, 5:30] = np.random.default_rng(seed).random((11, 13, 25)) > 0.4
    return Volume(array, upright())


def whole(piece: Piece, axis: int, number: int) -> np.ndarray:
    """The slice of a piece in the whole scan."""
    others = [other for other in range(3) if other != axis]
    picture = np.zeros([SHAPE[other] for other in others], dtype=bool)
    part = piece.cut(axis, number)
    if part is not None:
        picture[tuple(piece.box[o] for o in others)] = part
    return picture


def test_a_packed_mask_gives_back_every_slice():
    mask = random_mask()
    piece, moved = piece_of(tight(mask), mask.grid)
    assert not moved and piece is not None
    for axis in range(3):
        for number in range(SHAPE[axis]):
            assert np.array_equal(whole(piece, axis, number), np.take(mask.array, number, axis=axis))


@pytest.mark.parametrize(
    ("order", "flips"), [((2, 1, 0), (True, False, True)), ((1, 0, 2), (False, True, True))]
)
def test_masks_with_other_axes_land_in_the_same_place(order, flips):
    mask = random_mask()
    turned = reorient(mask, order, flips)
    piece, moved = piece_of(tight(turned), mask.grid)
    assert piece is not None and not moved
    assert all(np.array_equal(whole(piece, 0, number), mask.array[number]) for number in range(SHAPE[0]))


def test_masks_on_another_grid_are_moved_and_it_is_said():
    affine = upright((4.0, 3.0, 3.0), (-39.25, -29.25, 11.0))  # two voxels in one, along each axis
    coarse = ball((10, 15, 18), affine, (affine @ [5, 7, 9, 1])[:3], 12)
    piece, moved = piece_of(tight(coarse), scan_of().grid)
    assert moved and piece is not None
    fine = np.stack([whole(piece, 0, number) for number in range(SHAPE[0])])
    index = np.argwhere(fine).mean(axis=0)
    assert (
        np.abs(
            (upright() @ [*index, 1])[:3] - (affine @ [*np.argwhere(coarse.array).mean(axis=0), 1])[:3]
        ).max()
        < 0.5
    )
    assert fine.sum() * 2 * 1.5 * 1.5 == pytest.approx(coarse.array.sum() * 4 * 3 * 3, rel=0.1)
    sheet = build_sheet(Subject(masks_of(liver=coarse), ["liver"], scan_of()))
    assert (
        sheet.resampled
        and not build_sheet(Subject(masks_of(liver=random_mask()), ["liver"], scan_of())).resampled
    )
    away = Volume(coarse.array, upright((4.0, 3.0, 3.0), (500, 500, 500)))
    assert piece_of(tight(away), scan_of().grid)[0] is None


def test_a_mask_that_reaches_beyond_the_scan_is_cut_there():
    # four voxels to the right
    mask = Volume(np.ones(SHAPE, dtype=bool), upright(origin=(-40.0 - 1.5 * 4, -30.0, 10.0)))
    piece, moved = piece_of(tight(mask), scan_of().grid)
    assert not moved and piece is not None and piece.box == whole_box((20, 30, 32))


def test_slices_are_spread_evenly():
    assert spread(3, 5, 6) == [3, 4, 5] and spread(0, 11, 3) == [2, 6, 10] and spread(7, 7, 4) == [7]
    numbers = spread(10, 199, 12)
    assert (
        len(set(numbers)) == 12
        and numbers[0] > 10
        and numbers[-1] < 199
        and set(np.diff(numbers)) <= {15, 16}
    )


def coloured(picture: np.ndarray, colour: np.ndarray, margin: float = 60) -> tuple[float, float]:
    """Mean row and column, as shares, of the pixels near to a colour."""
    rows, columns = np.nonzero(np.abs(picture.astype(float) - colour * 255).max(axis=2) < margin)
    return rows.mean() / picture.shape[0], columns.mean() / picture.shape[1]


@pytest.mark.parametrize(
    "affine", [upright((2, 2, 2), (0, 0, 0)), np.diag([-1.0, -1, 1, 1]) @ upright((2, 2, 2), (0, 0, 0))]
)
def test_panels_are_as_radiologists_hang_them(affine):
    shape = (40, 40, 40)
    place = affine @ [32, 32, 32, 1]
    mask = ball(shape, affine, place[:3], 9)
    scan = Volume(np.zeros(shape, dtype=np.float32), affine)
    sheet = build_sheet(Subject(masks_of(thing=mask), ["thing"], scan))
    # index 32 of W lies to the left where W runs there; of H to the back
    left, back = ((affine[0, 2] > 0), (affine[1, 1] > 0))
    box = tuple(slice(0, 40) for _ in range(3))
    for plane in PLANES:
        centre = [round(float(v)) for v in np.argwhere(to_canonical(mask).array).mean(axis=0)]
        picture = np.asarray(contact_sheet.panel(sheet, plane, centre[plane.axis], box, (100, 100)))
        row, column = coloured(picture, sheet.colours["thing"])
        if plane.name == "axial":
            assert (column > 0.6) == left and (row > 0.6) == back and abs(column - 0.5) > 0.2
        elif plane.name == "coronal":
            assert (column > 0.6) == left and row < 0.3  # superior is up
        else:
            assert (column > 0.6) == back and row < 0.3


def paint(
    canvas: np.ndarray, mask: np.ndarray, start: tuple[int, int], shape: tuple[int, int], line: int
) -> None:
    """A red mask, half transparent, in a slice of this shape that fills the canvas."""
    where = contact_sheet.placed(mask, start, shape, canvas.shape)
    contact_sheet.paint(canvas, *where, np.array([200.0, 0, 0]), opacity=0.5, line=line)


def test_paint_fills_where_the_mask_is_and_thin_things_stay_visible():
    canvas = np.zeros((200, 200, 3), dtype=np.float32)
    paint(canvas, np.ones((10, 20), dtype=bool), (15, 5), (50, 50), 2)
    assert (
        canvas[80, 60, 0] == 100
        and canvas[61, 60, 0] == 200
        and canvas[..., 0].max() == 200
        and not canvas[..., 1].any()
    )
    rows, columns = np.nonzero(canvas[..., 0])
    assert (rows.min(), rows.max()) == (60, 99) and (columns.min(), columns.max()) == (20, 99)
    small = np.zeros((40, 40, 3), dtype=np.float32)
    paint(small, np.ones((100, 1), dtype=bool), (50, 100), (200, 200), 1)
    assert (small[..., 0].max(axis=1) > 0).sum() >= 20  # one voxel wide, a fifth of an element


def test_a_mask_is_painted_where_the_scale_rounds_its_begin_below_zero():
    """The sheet said that there was nothing to show."""
    canvas = np.zeros((54, 236, 3), dtype=np.float32)
    paint(canvas, np.ones((3, 3), dtype=bool), (9, 17), (21, 20), 2)
    assert canvas[25:30, 205:230].any()


def test_fill_shows_the_masks_and_lines_show_the_reference():
    mask = np.zeros(SHAPE, dtype=bool)
    mask[4:16, 8:18, 8:18] = True
    truth = np.roll(mask, 8, axis=2)
    image = Volume(np.full(SHAPE, 40, dtype=np.float32), upright())
    masks, reference = (
        masks_of(liver=Volume(mask, upright()), spleen=Volume(mask, upright())),
        masks_of(liver=Volume(truth, upright())),
    )
    sheet = build_sheet(Subject(masks, ["liver", "spleen"], image, reference))
    texts = [text for _, text, _ in contact_sheet.legend_of(sheet)[0]]
    assert texts == ["liver", "spleen (no reference)"]
    alone = build_sheet(Subject(masks_of(liver=Volume(mask, upright())), ["liver"], image, reference))
    box = (slice(0, 20), slice(0, 30), slice(0, 36))
    picture = np.asarray(contact_sheet.panel(alone, PLANES[0], 10, box, (300, 360))).astype(float)
    plain, colour = picture[250, 100], alone.colours["liver"] * 255
    assert np.ptp(plain) < 2  # grey where nothing is
    only_mask, both, only_truth = picture[130, 110], picture[130, 170], picture[130, 230]
    assert (
        np.allclose(only_mask, both, atol=3)
        and np.allclose(only_mask, plain * 0.55 + colour * 0.45, atol=3)
        and np.allclose(only_truth, plain, atol=2)
    )
    assert np.abs(picture[130, 258:262] - colour).max(axis=1).min() < 40  # its right border is a line
    missed = build_sheet(
        Subject(masks_of(liver=Volume(np.zeros_like(mask), upright())), ["liver"], image, reference)
    )
    text, swatch = contact_sheet.legend_of(missed)[0][0][1:]
    assert text == "liver (not found)" and swatch is not None


def test_the_window_fits_what_is_shown_and_can_be_given():
    assert (
        slices.window_for(["lung_left", "LungRight", "trachea"])
        == slices.LUNG_HU
        == slices.window_for(["airway"])
    )
    assert slices.window_for(["lung_left", "heart"]) == slices.SOFT_TISSUE_HU == slices.window_for([])
    subjects = [
        Subject(masks_of(liver=random_mask()), ["liver"], window_hu=window) for window in (None, (30, 50))
    ]
    assert [subject.window for subject in subjects] == [slices.SOFT_TISSUE_HU, (30, 50)]


def test_colours_of_sixty_structures_differ_and_few_keep_the_tables():
    names = (
        [f"vertebrae_{n}" for n in range(20)]
        + [f"rib_left_{n}" for n in range(20)]
        + [f"kidney_{n}" for n in range(20)]
    )
    colours = perceived(np.array(list(colours_on_ct(names).values())))
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 9 * np.eye(len(names))
    assert distances.min() > 0.02
    few = colours_on_ct(["liver", "urinary_bladder", "hip_left", "hip_right"])
    assert np.allclose(few["urinary_bladder"], tour.colours_of(["urinary_bladder"])["urinary_bladder"])
    five = perceived(np.array(list(few.values())))
    assert (np.linalg.norm(five[:, None] - five[None], axis=2) + np.eye(4)).min() > 0.12


@pytest.mark.parametrize("count", [1, 60])
def test_nothing_is_drawn_beyond_the_sheet(count):
    names = [f"structure_with_a_long_name_{number}" for number in range(count)]
    small = ball(SHAPE, upright(), (-10, -5, 30), 4)
    masks = Masks(tuple(names), lambda name: small if name != names[0] else random_mask())
    sheet = build_sheet(Subject(masks, names, scan_of(), synthetic=True))
    legend, height = contact_sheet.legend_of(sheet)
    assert len(legend) == count
    for (x, y), text, _ in legend:
        assert (
            x + 1.4 * contact_sheet.TEXT + contact_sheet.style.font(contact_sheet.TEXT).getlength(text)
            <= contact_sheet.WIDTH
            and y + contact_sheet.TEXT <= height
        )
    picture = np.asarray(contact_sheet.draw(sheet))
    assert (
        (picture[:3] == 255).all()
        and (picture[-3:] == 255).all()
        and (picture[:, :3] == 255).all()
        and (picture[:, -3:] == 255).all()
    )


@pytest.fixture
def case(tmp_path):
    nifti.write_image(tmp_path / "ct.nii.gz", scan_of())
    nifti.write_label(tmp_path / "m" / "map.nii.gz", Volume(random_mask().array.astype(np.uint8), upright()))
    (tmp_path / "m" / "labels.json").write_text('{"1": "liver"}')
    return tmp_path, ["--input", str(tmp_path / "m" / "map.nii.gz"), "--ct", str(tmp_path / "ct.nii.gz")]


@pytest.mark.parametrize(("name", "kind"), [("sheet.png", "PNG"), ("sheet.jpg", "JPEG")])
def test_the_command_writes_a_sheet(case, name, kind):
    folder, words = case
    assert visualize.main([*words, "--sheet", str(folder / "new" / name), "--window=-100,200"]) == 0
    with Image.open(folder / "new" / name) as picture:
        assert picture.format == kind and picture.width == contact_sheet.WIDTH and picture.height > 500


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sheet", "a.tiff"], ".png or .jpg"),
        (["--sheet", "a.png", "--window=200,100"], "--window"),
        (["--sheet", "a.png", "--window=soft"], "--window"),
        (["--sheet", "a.png", "--window=1,2,3"], "--window"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(words, said, tmp_path, capsys):
    assert (
        visualize.main(["--input", str(tmp_path / "nothing"), "--ct", str(tmp_path / "nothing"), *words]) == 2
    )
    assert said in capsys.readouterr().err


def test_a_sheet_needs_the_scan_and_something_to_show(case, capsys):
    folder, words = case
    assert (
        visualize.main([*words[:2], "--sheet", str(folder / "a.png")]) == 2
        and "--ct" in capsys.readouterr().err
    )
    nifti.write_label(folder / "m" / "map.nii.gz", Volume(np.zeros(SHAPE, dtype=np.uint8), upright()))
    assert visualize.main([*words, "--sheet", str(folder / "a.png")]) == 4 and not (folder / "a.png").exists()


def test_a_label_map_gives_boxes_without_reading_it_all(case):
    folder, _ = case
    masks = open_masks(folder / "m" / "map.nii.gz")
    quick, slow = masks.tight("liver"), tight(masks.read("liver"))
    assert (
        quick is not None
        and slow is not None
        and np.array_equal(quick.array, slow.array)
        and np.allclose(quick.affine, slow.affine)
    )


# ---- slices in space --------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [upright(), oblique()])
def test_slices_lie_in_the_scan_and_show_its_values(affine):
    rng = np.random.default_rng(0)
    scan = Volume(rng.integers(-100, 200, SHAPE).astype(np.float32), affine)
    centre = (affine @ [10, 14, 17, 1])[:3]
    found = planes.slice_planes(scan, centre, (-160.0, 240.0), step_mm=1.5)
    assert [surface.name for surface in found] == ["axial slice", "coronal slice", "sagittal slice"]
    for axis, surface in enumerate(found):
        assert surface.flat and len(surface.points_mm) > 200
        index = (surface.points_mm - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
        assert np.abs(index[:, axis] - (10, 14, 17)[axis]).max() < 1e-3
        on_voxel = np.abs(index - np.rint(index)).max(axis=1) < 1e-3
        d, h, w = np.rint(index[on_voxel]).astype(int).T
        assert (
            on_voxel.any()
            and np.abs(surface.colour[on_voxel, 0] - (scan.array[d, h, w] + 160) / 400).max() < 1e-3
        )


def test_slices_cover_what_is_behind_them_and_are_covered_by_what_is_before():
    affine = upright((2, 2, 2), (0, 0, 0))
    shape = (40, 40, 40)
    scan = Volume(np.full(shape, 40, dtype=np.float32), affine)  # half grey in the window
    picture = {}
    for name, y in (("before", 15), ("behind", 65)):  # y grows to the back
        masks = masks_of(
            thing=ball(shape, affine, (40, y, 40), 9), other=ball(shape, affine, (40, 80 - y, 40), 0.5)
        )
        scene = tour.build_scene(Subject(masks, ["thing"]))
        flat = planes.slice_planes(scan, (40, 40, 40), (-160.0, 240.0), step_mm=0.5)[1:2]  # the coronal one
        thing = [tour.dataclasses.replace(surface, colour=RED) for surface in scene.surfaces]
        view = render.fit_view([*thing, *flat], width=120, height=120)
        picture[name] = [
            render.draw([*thing, *flat], view, degrees)[55:65, 55:65].reshape(-1, 3).astype(int)
            for degrees in (0, 180)
        ]
    red, grey = picture["before"]
    assert (red[:, 0] - red[:, 2]).min() > 60 and np.abs(
        grey - 128
    ).max() <= 2  # not lit: the grey of the window
    grey, red = picture["behind"]
    assert (red[:, 0] - red[:, 2]).min() > 60 and np.abs(grey - 128).max() <= 2


def test_the_viewer_looks_down_on_slices_and_one_seen_from_its_edge_is_left_out():
    affine = upright((2, 2, 2), (0, 0, 0))
    scan = Volume(np.full((40, 40, 40), 40, dtype=np.float32), affine)  # grey before white
    masks = masks_of(thing=ball((40, 40, 40), affine, (40, 40, 40), 6))
    scene = tour.build_scene(Subject(masks, ["thing"], scan), context="slices")
    assert scene.tilt > 10
    axial, sagittal = (
        [surface for surface in scene.surfaces if surface.name == name]
        for name in ("axial slice", "sagittal slice")
    )
    view = render.fit_view(scene.surfaces, width=100, height=100, tilt=scene.tilt)
    level = render.fit_view(scene.surfaces, width=100, height=100)
    shown = [
        int((render.draw(found, seen, 0)[..., 0] < 200).sum())
        for found, seen in ((axial, view), (axial, level), (sagittal, view))
    ]
    assert shown[0] > 500 and shown[1:] == [0, 0]
    assert (render.draw(sagittal, view, 90)[..., 0] < 200).sum() > 1000
    for degrees in range(0, 360, 45):  # everything stays inside
        picture = render.draw(scene.surfaces, view, degrees)
        edge = np.concatenate(
            [picture[:2].ravel(), picture[-2:].ravel(), picture[:, :2].ravel(), picture[:, -2:].ravel()]
        )
        assert edge.min() == 255
