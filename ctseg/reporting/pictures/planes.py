"""Slices of a CT as pictures in space: an axial, a coronal and a sagittal plane, cut out along the patient's
outline.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ctseg.geometry.volume import Volume, to_canonical
from ctseg.reporting.pictures.slices import PLANES, Plane, grey_of
from ctseg.reporting.pictures.surfaces import Surface

OUTLINE_HU = -300.0  # what is below and connected to the border is air around the patient


def slice_planes(
    ct: Volume, centre_mm: Sequence[float], window_hu: tuple[float, float], *, step_mm: float
) -> list[Surface]:
    """The three slices of a CT (HU) nearest to a place (LPS mm), along the scan's own axes.

    In grey, a point every `step_mm`.
    """
    scan = to_canonical(ct)
    index = np.linalg.inv(scan.affine) @ [*centre_mm, 1.0]
    return [slice_plane(scan, plane, float(index[plane.axis]), window_hu, step_mm) for plane in PLANES]


def slice_plane(
    scan: Volume, plane: Plane, near: float, window_hu: tuple[float, float], step_mm: float
) -> Surface:
    """The slice of a canonical CT nearest to an index along the plane's axis."""
    rows, columns = plane.others
    number = int(np.clip(round(near), 0, scan.array.shape[plane.axis] - 1))
    picture = np.take(scan.array, number, axis=plane.axis).astype(np.float32)
    counts = [
        max(2, round((length - 1) * scan.spacing_mm[axis] / step_mm) + 1)
        for length, axis in zip(picture.shape, plane.others)
    ]
    ends = [np.linspace(0, length - 1, count) for length, count in zip(picture.shape, counts)]
    places = np.meshgrid(*ends, indexing="ij")
    grey = grey_of(ndimage.map_coordinates(picture, places, order=1), window_hu)
    patient = ndimage.map_coordinates(patient_share(picture), places, order=1) > 0.5
    index = np.zeros((*grey.shape, 3))
    index[..., plane.axis], index[..., rows], index[..., columns] = number, places[0], places[1]
    points_mm = (index[patient] @ scan.affine[:3, :3].T + scan.affine[:3, 3]).astype(np.float32)
    colour = np.repeat(grey[patient].astype(np.float32)[:, None], 3, axis=1)
    across = np.cross(scan.affine[:3, rows], scan.affine[:3, columns])
    normals = np.broadcast_to((across / np.linalg.norm(across)).astype(np.float32), points_mm.shape)
    return Surface(f"{plane.name} slice", points_mm, normals, colour, flat=True)


def patient_share(picture: np.ndarray) -> np.ndarray:
    """The patient in a slice, hollows filled and the border smoothed: above 0.5; all of it where there is no
    outline.
    """
    body = ndimage.binary_opening(picture > OUTLINE_HU, iterations=2)
    if not body.any():
        return np.ones(picture.shape, dtype=np.float32)
    return ndimage.gaussian_filter(ndimage.binary_fill_holes(body).astype(np.float32), 1.0)
