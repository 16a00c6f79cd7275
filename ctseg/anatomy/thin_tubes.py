"""Tubes thinner than a voxel, with the share of every voxel that they fill.

`Scene.paint` takes the share from the slope of a distance, which has no slope on the axis of a tube narrower
than a voxel. Here a voxel seen along the tube counts as a disk of equal area, so its share is the overlap of
two disks, exact in the middle and at the edge. Tubes are drawn in the scanner's own coordinates (index times
spacing), where a box around a thin tube is small even when the body is warped.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates

from ctseg.anatomy.implicit import Field, Points, Scene
from ctseg.geometry.boxes import Index, make_box

Line = tuple[Points, Any]  # template points (n, 3) and radii in mm, (n,) or one


def to_index(scene: Scene, points: Points) -> Points:
    """Voxel indices (n, 3), float, of template points (n, 3): the warp undone by fixed-point steps."""
    inverse = np.linalg.inv(scene.to_template[:3, :3])
    index = (points - scene.to_template[:3, 3]) @ inverse.T
    for _ in range(6):
        here = np.stack(
            [map_coordinates(axis, index.T, order=1, mode="nearest") for axis in (scene.x, scene.y, scene.z)],
            axis=1,
        )
        # Outside the grid the fields hold their edge value: add the straight part of the way beyond it.
        inside = np.clip(index, 0, np.array(scene.shape) - 1)
        here += (index - inside) @ scene.to_template[:3, :3].T
        index = index - (here - points) @ inverse.T
    return index


def lines_to_index(scene: Scene, lines: Sequence[Points]) -> list[Points]:
    """`to_index` of many lines of template points at once."""
    index = to_index(scene, np.concatenate(lines))
    return np.split(index, np.cumsum([len(line) for line in lines])[:-1])


def arc_mm(points: Points) -> np.ndarray:
    """Length (n,) in mm along a chain of points (n, 3) from its first one to each."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])


def disk_overlap(distance: Field, radius: np.ndarray | float, voxel: float) -> Field:
    """Share (0..1) of a disk of radius `voxel` covered by one of `radius`, centres `distance` apart (mm)."""
    rho = np.maximum(distance, 1e-3)
    near = np.arccos(np.clip((rho * rho + voxel * voxel - radius * radius) / (2 * rho * voxel), -1, 1))
    far = np.arccos(np.clip((rho * rho + radius * radius - voxel * voxel) / (2 * rho * radius), -1, 1))
    kite = (-rho + radius + voxel) * (rho + radius - voxel) * (rho - radius + voxel) * (rho + radius + voxel)
    area = voxel * voxel * near + radius * radius * far - 0.5 * np.sqrt(np.maximum(kite, 0))
    return (area / (np.pi * voxel * voxel)).astype(np.float32)


class TubeLayer:
    """Tubes collected on a grid. share: (D, H, W) float32, how much of each voxel they fill; hu: with what,
    where that was said."""

    def __init__(self, scene: Scene):
        self.scene = scene
        # disk of a voxel's cross-section
        self.voxel_mm = float(np.prod(scene.spacing_mm) ** (1 / 3) / np.sqrt(np.pi))
        self.share, self.hu = (np.zeros(scene.shape, dtype=np.float32) for _ in range(2))

    def add(self, index: Points, radii: np.ndarray | float, hu: np.ndarray | None = None) -> None:
        """Add one tube through nodes (n, 3), voxel indices, radii in mm. Two equal nodes make a ball.

        hu: one value per piece between two nodes.
        """
        spacing = self.scene.spacing_mm
        nodes = zip(index, np.broadcast_to(radii, len(index)).tolist())
        for number, ((a, ra), (b, rb)) in enumerate(itertools.pairwise(nodes)):
            reach = (max(ra, rb) + self.voxel_mm) / spacing
            start = np.maximum(np.ceil(np.minimum(a, b) - reach), 0)
            stop = np.minimum(np.floor(np.maximum(a, b) + reach) + 1, self.share.shape)
            if (start >= stop).any():
                continue
            box = make_box(start, stop)
            offset = [(axis - zero) * size for axis, zero, size in zip(np.ogrid[box], a, spacing)]
            step = (b - a) * spacing
            t = sum(p * s for p, s in zip(offset, step)) / max(float(step @ step), 1e-6)
            t = np.clip(t, 0, 1)
            distance = np.sqrt(sum((p - t * s) ** 2 for p, s in zip(offset, step)))
            share = disk_overlap(distance, ra + t * (rb - ra), self.voxel_mm)
            larger = share > self.share[box]
            self.share[box][larger] = share[larger]
            if hu is not None:
                self.hu[box][larger] = hu[number]

    def add_lines(self, lines: Sequence[Line]) -> None:
        """Add tubes through template points."""
        for (_, radii), index in zip(lines, lines_to_index(self.scene, [points for points, _ in lines])):
            self.add(index, radii)

    def mask(self, axes: Sequence[Points]) -> Field:
        """Voxels at least half filled, and those of the tubes' centre lines as `axis_voxels` gives them."""
        filled = self.share > 0.5
        filled[tuple(np.concatenate(axes).T)] = True
        return filled


def axis_voxels(index: Points, shape: Index) -> Points:
    """Voxels (n, 3) along a chain of nodes, each sharing a face with the next, those in the grid."""
    fine = [
        a + (b - a) * np.linspace(0, 1, int(np.ceil(np.abs(b - a).max() * 4)) + 1)[:, None]
        for a, b in itertools.pairwise(index)
    ]
    voxels = np.rint(np.concatenate(fine)).astype(int)
    corners = [voxels]
    for axis in (0, 1):  # of a diagonal step, walk the axes one after the other
        bridge = voxels[:-1].copy()
        bridge[:, : axis + 1] = voxels[1:, : axis + 1]
        corners.append(bridge)
    path = np.unique(np.concatenate(corners), axis=0)
    return path[((path >= 0) & (path < np.array(shape))).all(axis=1)]
