"""Slices of a CT as pictures in space: an axial, a coronal and a sagittal plane, cut out along the patient's outline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ctseg.geometry.volume import Volume, to_canonical
from ctseg.reporting.pictures.slices import PLANES
from ctseg.reporting.pictures.surfaces import Surface

OUTLINE_HU = -300.0  # what is below and connected to the border is air around the patient


def slice_planes(
    ct: Volume, centre_mm: Sequence[float], window_hu: tuple[float, float], *, step_mm: float
) -> list[Surface]:
    """The three slices of a CT (HU) nearest to a place (LPS mm), in grey, a point every `step_mm`, along the scan's own axes."""
    scan = to_canonical(ct)
    index = np.linalg.inv(scan.affine) @ [*centre_mm, 1.0]
    return [
        _plane(
            scan,
            axis,
            int(np.clip(round(float(index[axis])), 0, scan.array.shape[axis] - 1)),
            window_hu,
            step_mm,
            plane.name,
        )
        for axis, plane in enumerate(PLANES)
    ]


def _plane(
    scan: Volume, axis: int, number: int, window_hu: tuple[float, float], step_mm: float, name: str
) -> Surface:
    picture = np.take(scan.array, number, axis=axis).astype(np.float32)
    rows, columns = (other for other in range(3) if other != axis)
    counts = [
        max(2, round((scan.array.shape[other] - 1) * scan.spacing_mm[other] / step_mm) + 1)
        for other in (rows, columns)
    ]
    places = np.meshgrid(
        *[np.linspace(0, length - 1, count) for length, count in zip(picture.shape, counts)], indexing="ij"
    )
    low, high = window_hu
    grey = np.clip((ndimage.map_coordinates(picture, places, order=1) - low) / (high - low), 0, 1)
    patient = ndimage.map_coordinates(_outline(picture), places, order=1) > 0.5
    index = np.zeros((*grey.shape, 3))
    index[..., axis], index[..., rows], index[..., columns] = number, places[0], places[1]
    points_mm = (index[patient] @ scan.affine[:3, :3].T + scan.affine[:3, 3]).astype(np.float32)
    colour = np.repeat(grey[patient].astype(np.float32)[:, None], 3, axis=1)
    across = np.cross(scan.affine[:3, rows], scan.affine[:3, columns])
    normals = np.broadcast_to((across / np.linalg.norm(across)).astype(np.float32), points_mm.shape)
    return Surface(f"{name} slice", points_mm, normals, colour, triangles=_triangles(patient), flat=True)


def _outline(picture: np.ndarray) -> np.ndarray:
    """The patient in a slice, hollows filled and the border smoothed: above 0.5; all of it where there is no outline."""
    body = ndimage.binary_opening(picture > OUTLINE_HU, iterations=2)
    if not body.any():
        return np.ones(picture.shape, dtype=np.float32)
    return ndimage.gaussian_filter(ndimage.binary_fill_holes(body).astype(np.float32), 1.0)


def _triangles(kept: np.ndarray) -> np.ndarray:
    """(M, 3) numbers of the kept points of a grid (bool (R, C)): two triangles for each square whose corners all remain."""
    number = np.cumsum(kept.ravel()).reshape(kept.shape) - 1
    whole = kept[:-1, :-1] & kept[1:, :-1] & kept[:-1, 1:] & kept[1:, 1:]
    a, b, c, d = (
        corner[whole] for corner in (number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:])
    )
    return np.concatenate([np.stack([a, b, c], axis=1), np.stack([b, d, c], axis=1)])
