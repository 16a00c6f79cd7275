"""The second renderer, and the child process that says whether it can be used. All data here are synthetic."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from masks_in_space import BLUE, RED, ball, masks_of, oblique, upright
from PIL import Image

import visualize
from ctseg.geometry.volume import Volume
from ctseg.reporting.pictures import planes, render, render_vtk, surfaces, tour
from ctseg.reporting.pictures.surfaces import Surface, surface_of
from ctseg.scans.formats import nifti

installed = importlib.util.find_spec("vtkmodules") is not None
REASON = render_vtk.unusable() if installed else "VTK is not installed"
drawn = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture
def looks_installed(monkeypatch):
    monkeypatch.setattr(render_vtk.importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.kill(os.getpid(), 11)", "signal 11"),
        ("raise SystemExit(1)", "exit code 1"),
        ("import time; time.sleep(30)", "within 0.5 seconds"),
        ("import vtk_that_is_not_there", "exit code 1"),
    ],
)
def test_a_probe_that_fails_is_told_and_does_not_end_this_process(looks_installed, code, said):
    reason = render_vtk.unusable((sys.executable, "-c", code), 0.5 if "sleep" in code else 30.0)
    assert reason is not None and said in reason


def test_a_probe_that_succeeds_or_cannot_start(looks_installed):
    assert render_vtk.unusable((sys.executable, "-c", "pass"), 30.0) is None
    assert "could not be tried" in str(render_vtk.unusable(("no such program",), 1.0))


def test_the_probe_runs_once(looks_installed, tmp_path):
    command = (sys.executable, "-c", f"open({str(tmp_path / 'runs')!r}, 'a').write('x')")
    assert [render_vtk.unusable(command, 30.0) for _ in range(3)] == [None] * 3
    assert (tmp_path / "runs").read_text() == "x"


def test_without_it_there_is_no_child(monkeypatch):
    monkeypatch.setattr(render_vtk.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(render_vtk.subprocess, "run", lambda *a, **k: pytest.fail("a child was started"))
    assert render_vtk.unusable(("anything",), 1.0) == "VTK is not installed"


@pytest.fixture
def label(tmp_path):
    array = np.zeros((12, 20, 20), dtype=np.uint8)
    array[3:9, 5:15, 5:15] = 1
    nifti.write_label(tmp_path / "map.nii.gz", Volume(array, upright()))
    return tmp_path, [
        "--input",
        str(tmp_path / "map.nii.gz"),
        "--width",
        "160",
        "--height",
        "120",
        "--stills",
        str(tmp_path / "stills"),
    ]


def test_without_it_numpy_draws_and_one_sentence_says_so(label, monkeypatch, capsys):
    folder, words = label
    monkeypatch.setattr(render_vtk, "unusable", lambda: "VTK crashes here (signal 11)")
    monkeypatch.setattr(render_vtk, "Renderer", lambda: pytest.fail("VTK was used"))
    assert visualize.main(words) == 0 and (folder / "stills" / "front.png").is_file()
    said = "".join(capsys.readouterr())
    assert said.count("NO_VTK") == 1 and "signal 11" in said
    assert visualize.main([*words, "--renderer", "vtk"]) == 4
    assert "signal 11" in capsys.readouterr().err


def test_numpy_when_asked_for_tries_nothing(label, monkeypatch, capsys):
    monkeypatch.setattr(render_vtk, "unusable", lambda: pytest.fail("VTK was tried"))
    assert visualize.main([*label[1], "--renderer", "numpy"]) == 0
    assert "NO_VTK" not in "".join(capsys.readouterr())


# ---- where it draws ---------------------------------------------------------------------------------------


ELLIPSOIDS = (
    ((-60.0, 10.0, 30.0), (70.0, 60.0, 95.0), RED),
    ((70.0, -20.0, -45.0), (60.0, 80.0, 70.0), BLUE),
)  # centre and half axes, mm


def phantom(*, triangles: bool) -> tuple[Surface, ...]:
    """Two ellipsoids: about a point per square millimetre, or triangles."""
    found = []
    for centre, axes, colour in ELLIPSOIDS:
        if triangles:
            rows, columns = 120, 240
            polar, around = np.meshgrid(
                np.linspace(0, np.pi, rows), np.linspace(0, 2 * np.pi, columns), indexing="ij"
            )
            number = np.arange(rows * columns).reshape(rows, columns)
            corners = [
                part.ravel() for part in (number[:-1, :-1], number[1:, :-1], number[:-1, 1:], number[1:, 1:])
            ]
            cells = np.concatenate(
                [np.stack(corners[:3], axis=1), np.stack(corners[1:], axis=1)[:, [0, 2, 1]]]
            )
        else:
            order = np.arange(300_000) + 0.5  # a Fibonacci lattice
            polar, around, cells = np.arccos(1 - order / 150_000), np.pi * (1 + 5**0.5) * order, None
        unit = np.stack(
            [np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], axis=-1
        ).reshape(-1, 3)
        normals = unit / np.array(axes)
        found.append(
            Surface(
                "ellipsoid",
                (unit * axes + centre).astype(np.float32),
                (normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float32),
                colour,
                triangles=cells,
            )
        )
    return tuple(found)


@drawn
@pytest.mark.parametrize(("degrees", "tilt", "left"), [(0, 0, 0), (65, 0, 160), (200, 25, 160)])
def test_both_renderers_give_the_same_picture(degrees, tilt, left):
    points, triangles = phantom(triangles=False), phantom(triangles=True)
    view = render.fit_view(points, width=720, height=540, tilt=tilt, left=left)
    one, other = (
        draw(found, view, degrees).astype(int)
        for draw, found in ((render.draw, points), (render_vtk.Renderer(), triangles))
    )
    shown = [picture.min(axis=2) < 250 for picture in (one, other)]
    inside = shown[0] & shown[1]
    assert inside.sum() / (shown[0] | shown[1]).sum() > 0.97
    assert (
        np.abs(one - other)[inside].mean() < 6 and np.median(np.abs(one - other)[inside]) <= 3
    )  # light and colours too


@drawn
@pytest.mark.parametrize("affine", [upright(), oblique()])
def test_triangles_lie_where_the_points_lie(affine):
    centre = (affine @ [15, 25, 25, 1])[:3]
    points, found = (
        surface_of(ball((30, 50, 50), affine, centre, 20.0), "ball", RED, step_mm=0.8, find=find)
        for find in (surfaces.crossings, render_vtk.triangulate)
    )
    radius = [np.linalg.norm(surface.points_mm - centre, axis=1) for surface in (points, found)]
    assert abs(np.median(radius[0]) - np.median(radius[1])) < 0.1 and np.abs(
        radius[1] - 20
    ).max() < np.linalg.norm(affine[:3, 0])
    away = (found.points_mm - centre) / radius[1][:, None]
    assert (away * found.normals).sum(axis=1).min() > 0.6
    a, b, c = (found.points_mm[render_vtk._outwards(found)[:, corner]] for corner in range(3))
    assert (np.cross(b - a, c - a) * (a - centre)).sum(
        axis=1
    ).min() > -1e-3  # counter-clockwise from outside, or without area
    edges = np.sort(np.concatenate([found.triangles[:, pair] for pair in ([0, 1], [1, 2], [2, 0])]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()  # closed


@drawn
def test_two_angles_give_two_pictures_and_the_first_comes_back():
    triangles = phantom(triangles=True)
    view = render.fit_view(triangles, width=200, height=160)
    draw = render_vtk.Renderer()
    first, second, again = (draw(triangles, view, degrees) for degrees in (0, 90, 0))
    assert np.abs(first.astype(int) - second).max() > 100 and np.array_equal(first, again)


@drawn
def test_glass_and_slices_are_blended_as_numpy_does():
    affine = upright((2, 2, 2), (0, 0, 0))
    shape = (40, 40, 40)
    scan = Volume(np.full(shape, 40, dtype=np.float32), affine)

    def build(find):
        glass = surface_of(
            ball(shape, affine, (40, 40, 40), 34), "glass", BLUE, step_mm=0.4, opacity=0.4, find=find
        )
        return (
            surface_of(ball(shape, affine, (50, 30, 40), 12), "solid", RED, step_mm=0.4, find=find),
            *planes.slice_planes(scan, (40, 40, 40), (-160.0, 240.0), step_mm=0.5),
            glass,
        )

    points, triangles = build(surfaces.crossings), build(render_vtk.triangulate)
    view = render.fit_view(points, width=200, height=160, tilt=25.0)
    draw = render_vtk.Renderer()
    for degrees in (30, 150):
        one, other = (
            render.draw(points, view, degrees).astype(int),
            draw(triangles, view, degrees).astype(int),
        )
        assert np.median(np.abs(one - other)) <= 3 and np.abs(one - other).mean() < 5


@drawn
def test_colours_of_errors_and_volumes_of_either_handedness():
    affine = upright((2, 2, 2), (0, 0, 0))
    for mirrored in (affine, affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 39], [0, 0, 0, 1.0]])):
        found = surface_of(
            ball((40, 40, 40), mirrored, (40, 40, 40), 20),
            "ball",
            RED,
            step_mm=1,
            find=render_vtk.triangulate,
        )
        halves = np.where(found.points_mm[:, :1] > 40, RED, BLUE).astype(np.float32)
        view = render.fit_view([found], width=100, height=100)
        picture = render_vtk.Renderer()(
            (Surface("ball", found.points_mm, found.normals, halves, triangles=found.triangles),), view, 0.0
        ).astype(int)
        assert (picture[50, 60:75, 0] - picture[50, 60:75, 2]).min() > 60 and (
            picture[50, 25:40, 2] - picture[50, 25:40, 0]
        ).min() > 60  # left is on the right


@drawn
def test_the_command_uses_it(label, monkeypatch):
    folder, words = label
    monkeypatch.setattr(render, "draw", lambda *a: pytest.fail("numpy drew"))
    assert visualize.main([*words, "--renderer", "vtk"]) == 0
    stills = [
        np.asarray(Image.open(folder / "stills" / f"{side}.png")).astype(int) for side in ("front", "left")
    ]
    assert np.abs(stills[0] - stills[1]).max() > 40


def test_masks_without_a_voxel_have_no_triangles():
    scene = tour.build_scene(
        masks_of(
            a=ball((10, 10, 10), upright(), (-40, -30, 10), 5),
            b=Volume(np.zeros((10, 10, 10), dtype=bool), upright()),
        ),
        ["a", "b"],
    )
    assert [surface.name for surface in scene.surfaces] == ["a"] and scene.shown == ("a",)
