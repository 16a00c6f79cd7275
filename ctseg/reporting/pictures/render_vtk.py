"""Surfaces to pictures by VTK, where it is installed and can draw: the same view, light and colours as `render`, from triangles.

VTK ends the whole process where the system has no OpenGL, which no exception handler sees. So a child process draws one sphere
first, and only its success lets this process load VTK. The only address of VTK; it is loaded when a picture is drawn, not before.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ctseg.reporting.pictures import render
from ctseg.reporting.pictures.render import AMBIENT, LIGHT, Layer, View
from ctseg.reporting.pictures.surfaces import Surface

INSTALL = "pip install vtk"
PROBE_SECONDS = 60.0
PROBE = (sys.executable, "-m", "ctseg.reporting.pictures.render_vtk")


@functools.cache
def unusable(command: tuple[str, ...] = PROBE, seconds: float = PROBE_SECONDS) -> str | None:
    """Why VTK cannot be used here, as the end of a sentence; None when it drew a sphere in a child process. Asked once."""
    if importlib.util.find_spec("vtkmodules") is None:
        return "VTK is not installed"
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return f"VTK drew no picture within {seconds:g} seconds"
    except OSError as error:
        return f"VTK could not be tried ({type(error).__name__})"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"VTK crashes here (signal {-done.returncode}: most likely the system has no OpenGL library)"
    return f"VTK draws no picture here (exit code {done.returncode})"


def triangulate(
    field: np.ndarray, level: float, parts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A Finder: the surface where the field (D, H, W) crosses the level, as triangles of about a voxel; `parts` are not needed."""
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkFiltersCore import vtkFlyingEdges3D

    edges = vtkFlyingEdges3D()
    edges.SetInputData(_image(field))
    edges.SetValue(0, level)
    edges.ComputeNormalsOff()
    edges.ComputeScalarsOff()
    edges.Update()
    found = edges.GetOutput()
    if found.GetNumberOfPoints() == 0:
        return np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)
    index = vtk_to_numpy(found.GetPoints().GetData())[:, ::-1].astype(np.float64)
    triangles = vtk_to_numpy(found.GetPolys().GetConnectivityArray()).reshape(-1, 3).astype(np.int64)
    slope = np.stack(
        [ndimage.map_coordinates(np.gradient(field, axis=axis), index.T, order=1) for axis in range(3)],
        axis=1,
    )
    return index, slope, triangles


def _image(field: np.ndarray) -> Any:
    """The field as VTK's image: W runs fastest in both."""
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonDataModel import vtkImageData

    image = vtkImageData()
    image.SetDimensions(*field.shape[::-1])
    image.GetPointData().SetScalars(
        numpy_to_vtk(np.ascontiguousarray(field, dtype=np.float32).ravel(), deep=True)
    )
    return image


class Renderer:
    """draw(surfaces, view, degrees) -> picture, as `render.draw`. The surfaces need triangles; they are handed over once and kept for further angles."""

    def __init__(self) -> None:
        self.scene: tuple[Sequence[Surface], View] | None = None
        self.window: Any = None

    def __call__(self, surfaces: Sequence[Surface], view: View, degrees: float) -> np.ndarray:
        if self.scene is None or self.scene[0] is not surfaces or self.scene[1] != view:
            self._hand_over(surfaces, view)
        fine = render.finer(view)
        self._aim(fine, degrees)
        return render.blend(surfaces, functools.partial(self._layer, view=fine), fine, degrees)

    def _hand_over(self, surfaces: Sequence[Surface], view: View) -> None:
        import vtkmodules.vtkRenderingOpenGL2  # noqa: F401 (brings the drawing itself)
        from vtkmodules.vtkCommonCore import vtkLogger
        from vtkmodules.vtkRenderingCore import vtkLight, vtkRenderer, vtkRenderWindow

        vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_ERROR)  # that there is no window system is no news
        fine = render.finer(view)
        self.scene = (surfaces, view)
        self.renderer, self.window, self.light, self.lamp = (
            vtkRenderer(),
            vtkRenderWindow(),
            vtkLight(),
            vtkLight(),
        )
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)  # as `render`: several elements for each pixel
        self.window.SetSize(fine.width, fine.height)
        self.window.AddRenderer(self.renderer)
        self.renderer.SetBackground(1, 1, 1)
        self.renderer.SetAutomaticLightCreation(False)
        for lamp, place in (
            (self.light, (LIGHT[0], LIGHT[2], -LIGHT[1])),
            (self.lamp, (0, 0, 1)),
        ):  # to the right, up, towards the viewer
            lamp.SetLightTypeToCameraLight()
            lamp.SetPosition(*place)
            lamp.SetFocalPoint(0, 0, 0)
            self.renderer.AddLight(lamp)
        self.lamp.SetColor(0, 1, 0)
        self.actors = {id(surface): _actor(surface) for surface in surfaces if len(surface.points_mm)}
        for actor in self.actors.values():
            self.renderer.AddActor(actor)

    def _aim(self, view: View, degrees: float) -> None:
        right, towards, up = (axis.astype(float) for axis in view.axes(degrees))
        focus = (
            np.asarray(view.centre_mm) - right * view.left / 2 * view.mm_per_pixel
        )  # the middle of the picture, legend included
        camera = self.renderer.GetActiveCamera()
        camera.ParallelProjectionOn()
        camera.SetParallelScale(view.height / 2 * view.mm_per_pixel)
        camera.SetFocalPoint(*focus)
        camera.SetPosition(*(focus + towards * 3 * view.radius_mm))
        camera.SetViewUp(*up)
        camera.SetClippingRange(view.radius_mm, 5 * view.radius_mm)

    def _layer(self, chosen: Sequence[Surface], view: View) -> Layer:
        """What is nearest of some surfaces: all solid, all flat, or one translucent."""
        actors = [self.actors[id(surface)] for surface in chosen]
        for actor in self.actors.values():
            actor.SetVisibility(actor in actors)
        glass = chosen[0].opacity < 1
        # a translucent surface is drawn white under a red lamp where the light is and a green one at the viewer: that gives both cosines
        self.light.SetColor(1, *(0, 0) if glass else (1, 1))
        self.lamp.SetSwitch(glass)
        colours, depth = self._picture(view)
        hit = np.isfinite(depth)
        seen = colours[hit]
        if not glass:
            return Layer(hit, seen, np.ones(len(seen), dtype=np.float32), depth)
        return Layer(
            hit,
            np.asarray(chosen[0].colour, dtype=np.float32) * (AMBIENT + (1 - AMBIENT) * seen[:, :1]),
            seen[:, 1],
            depth,
        )

    def _picture(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """(colours (h, w, 3) float32, 0 to 1; depth (h, w) in mm, inf where nothing is) of what is visible."""
        from vtkmodules.util.numpy_support import vtk_to_numpy
        from vtkmodules.vtkCommonCore import vtkFloatArray, vtkUnsignedCharArray

        self.window.Render()  # before reading: else the last angle comes back
        pixels, distances = vtkUnsignedCharArray(), vtkFloatArray()
        box = (0, 0, view.width - 1, view.height - 1)
        self.window.GetRGBACharPixelData(*box, 0, pixels)
        colours = (
            vtk_to_numpy(pixels).reshape(view.height, view.width, 4)[::-1, :, :3].astype(np.float32) / 255
        )
        self.window.GetZbufferData(*box, distances)
        share = vtk_to_numpy(distances).reshape(view.height, view.width)[::-1]
        return colours, np.where(share < 1, (share * 4 - 2) * view.radius_mm, np.inf).astype(
            np.float32
        )  # the clipping range is 4 radii, centred


def _actor(surface: Surface) -> Any:
    """A surface as VTK draws it; a translucent one is drawn solid here and blended later."""
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray
    from vtkmodules.vtkCommonCore import vtkPoints
    from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData
    from vtkmodules.vtkRenderingCore import vtkActor, vtkPolyDataMapper

    triangles = _outwards(surface)
    data, points, cells = vtkPolyData(), vtkPoints(), vtkCellArray()
    points.SetData(numpy_to_vtk(np.ascontiguousarray(surface.points_mm), deep=True))
    offsets = np.arange(0, 3 * len(triangles) + 1, 3, dtype=np.int64)
    cells.SetData(
        numpy_to_vtkIdTypeArray(offsets, deep=True),
        numpy_to_vtkIdTypeArray(np.ascontiguousarray(triangles.ravel(), dtype=np.int64), deep=True),
    )
    data.SetPoints(points)
    data.SetPolys(cells)
    data.GetPointData().SetNormals(numpy_to_vtk(np.ascontiguousarray(surface.normals), deep=True))
    mapper, actor = vtkPolyDataMapper(), vtkActor()
    look = actor.GetProperty()
    colour = np.asarray(surface.colour, dtype=np.float32)
    if colour.ndim == 2:
        data.GetPointData().SetScalars(numpy_to_vtk((colour * 255 + 0.5).astype(np.uint8), deep=True))
    else:
        look.SetColor(*map(float, colour))
        mapper.ScalarVisibilityOff()
    mapper.SetInputData(data)
    actor.SetMapper(mapper)
    look.SetInterpolationToPhong()
    look.SetSpecular(0.0)
    look.SetAmbient(AMBIENT)
    look.SetDiffuse(1 - AMBIENT)
    look.SetBackfaceCulling(not surface.flat)
    look.SetLighting(not surface.flat)
    if surface.opacity < 1:
        look.SetColor(1, 1, 1)
        look.SetAmbient(0.0)
        look.SetDiffuse(1.0)
    return actor


def _outwards(surface: Surface) -> np.ndarray:
    """The triangles, their corners counter-clockwise as seen from outside."""
    assert surface.triangles is not None, "the scene was built with `triangulate`"
    if surface.flat or not len(surface.triangles):
        return surface.triangles
    a, b, c = (surface.points_mm[surface.triangles[:, corner]] for corner in range(3))
    agree = (np.cross(b - a, c - a) * surface.normals[surface.triangles[:, 0]]).sum()
    return surface.triangles if agree > 0 else surface.triangles[:, ::-1]


def draw_sphere() -> int:
    """Draw one sphere: 0 when it is in the picture, 1 when the picture is empty. May end the process."""
    grid = np.indices((24, 24, 24)) - 11.5
    index, slope, triangles = triangulate(
        (10 - np.linalg.norm(grid, axis=0)).astype(np.float32), 0.0, (1, 1, 1)
    )
    normals = -slope / np.linalg.norm(slope, axis=1, keepdims=True)
    sphere = Surface(
        "sphere",
        index.astype(np.float32),
        normals.astype(np.float32),
        np.array([1.0, 0.2, 0.2]),
        triangles=triangles,
    )
    view = dataclasses.replace(render.fit_view([sphere], width=64, height=48), tilt=0.0)
    picture = Renderer()((sphere,), view, 0.0).astype(int)
    middle, corner = picture[20:28, 28:36], picture[:4, :4]
    return 0 if corner.min() > 250 and (middle[..., 0] - middle[..., 2]).min() > 60 else 1


if __name__ == "__main__":
    sys.exit(draw_sphere())
