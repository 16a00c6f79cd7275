"""Masks to look at: balls and boxes on upright and oblique grids."""

from __future__ import annotations

import numpy as np

from ctseg.datasets.masks import Masks
from ctseg.geometry.volume import Volume

RED, BLUE = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])


def upright(spacing=(2.0, 1.5, 1.5), origin=(-40.0, -30.0, 10.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing)[::-1]  # D along z, H along y, W along x
    affine[:3, 3] = origin
    return affine


def ball(shape, affine, centre_mm, radius_mm) -> Volume:
    index = np.stack([*np.indices(shape), np.ones(shape)], axis=-1)
    return Volume(np.linalg.norm((index @ affine.T)[..., :3] - centre_mm, axis=-1) <= radius_mm, affine)


def masks_of(**volumes: Volume) -> Masks:
    return Masks(tuple(volumes), volumes.__getitem__)


def oblique() -> np.ndarray:
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = upright((3.0, 1.2, 1.2))
    affine[:3, :3] = turn @ affine[:3, :3]
    return affine
