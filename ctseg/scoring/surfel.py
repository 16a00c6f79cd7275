"""Area of the surface piece ("surfel") in every 2x2x2 neighbourhood, derived from first principles.

A mask is cut into cells of 2x2x2 voxels, padded by background. The 8 voxels of a cell give a code
Σ bit(i,j,k)·mask(i,j,k) with bit = 128 >> (4i+2j+k). In a cell whose code is neither 0 nor 255 the surface
passes between foreground and background voxels; it is built as in marching cubes (Lorensen and Cline, 1987):

1. more than 4 foreground corners: the complement has the same surface;
2. vertices are the midpoints of the cell edges that join foreground and background;
3. on each face 2 vertices are joined; with 4 vertices each foreground corner is cut off by itself;
4. each closed loop is triangulated so that the total area at unit spacing is largest.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from ctseg.geometry.boxes import Spacing

_CORNERS = tuple(itertools.product((0, 1), repeat=3))
Edge = tuple[int, int]  # two corner numbers, which differ in one coordinate


def padded_codes(mask: np.ndarray) -> np.ndarray:
    """The code of every 2x2x2 cell of a bool mask (D, H, W), padded by background: uint8 (D+2, H+2, W+2).

    Cell (d, h, w) holds the voxels d-1..d, h-1..h, w-1..w, so its centre is the corner of those 8 voxels. The
    last layer of each axis is 0, so that the array is contiguous.

    The shifts run over the flat array: where a row ends the next one begins with background.
    """
    voxels = np.zeros(tuple(n + 2 for n in mask.shape), np.uint8)
    voxels[1:-1, 1:-1, 1:-1] = mask
    codes, following = voxels.reshape(-1), np.empty(voxels.size, np.uint8)
    for factor, step in ((2, 1), (4, voxels.shape[2]), (16, voxels.shape[1] * voxels.shape[2])):
        np.multiply(codes, np.uint8(factor), out=following)  # a shift, which NumPy does slower
        following[:-step] |= codes[step:]
        codes, following = following, codes
    return codes.reshape(voxels.shape)


def is_boundary(codes: np.ndarray) -> np.ndarray:
    """Where a code is neither 0 nor 255."""
    return codes + np.uint8(1) > 1  # 255 wraps to 0


@functools.lru_cache(maxsize=64)
def area_table(spacing_mm: Spacing) -> np.ndarray:
    """Surface area in mm2 for each of the 256 codes, shape (256,), read-only."""
    d, h, w = spacing_mm
    scale = np.array([h * w, d * w, d * h])
    areas = np.linalg.norm(_triangle_normals() * scale, axis=2).sum(axis=1)
    areas.setflags(write=False)
    return areas


@functools.lru_cache(maxsize=1)
def _triangle_normals() -> np.ndarray:
    """(256, T, 3): area-weighted normals at unit spacing of each code's triangles, filled up with zeros."""
    per_code = []
    for code in range(256):
        foreground = {i for i in range(8) if code & 128 >> i}
        if len(foreground) > 4:
            foreground = set(range(8)) - foreground
        per_code.append([normal for loop in _loops(foreground) for normal in largest_triangulation(loop)])
    result = np.zeros((256, max(map(len, per_code)), 3))
    for code, normals in enumerate(per_code):
        result[code, : len(normals)] = np.reshape(normals, (-1, 3))
    return result


def _loops(foreground: set[int]) -> list[np.ndarray]:
    """The closed polygons of the surface in one cell, each as vertices (n, 3) in unit coordinates."""
    neighbours: dict[Edge, list[Edge]] = {}
    for one, other in _segments(foreground):
        neighbours.setdefault(one, []).append(other)
        neighbours.setdefault(other, []).append(one)
    loops = []
    while neighbours:
        loop = [min(neighbours)]
        while neighbours.get(loop[-1]):
            following = neighbours[loop[-1]].pop()
            neighbours[following].remove(loop[-1])
            loop.append(following)
        neighbours = {edge: joined for edge, joined in neighbours.items() if joined}
        loops.append(np.array(_CORNERS)[loop[:-1]].mean(axis=1))  # of each edge its midpoint
    return loops


def _segments(foreground: set[int]) -> list[tuple[Edge, Edge]]:
    """Pairs of cut edges that a face joins by a segment."""
    segments = []
    for axis, side in itertools.product(range(3), (0, 1)):
        face = [i for i, corner in enumerate(_CORNERS) if corner[axis] == side]
        cut = [
            (a, b)
            for a, b in itertools.combinations(face, 2)
            if a ^ b in (1, 2, 4) and (a in foreground) != (b in foreground)
        ]
        if len(cut) == 2:
            segments.append((cut[0], cut[1]))
        elif len(cut) == 4:
            for corner in foreground.intersection(face):
                one, other = (edge for edge in cut if corner in edge)
                segments.append((one, other))
    return segments


def largest_triangulation(loop: np.ndarray) -> list[np.ndarray]:
    """Area-weighted normals of the triangulation of polygon `loop` (n, 3) with the largest total area."""

    @functools.cache
    def best(first: int, last: int) -> tuple[float, list[np.ndarray]]:
        """(area, normals) of the part of the polygon from one vertex to another."""
        options: list[tuple[float, list[np.ndarray]]] = []
        for middle in range(first + 1, last):
            normal = 0.5 * np.cross(loop[middle] - loop[first], loop[last] - loop[first])
            left, right = best(first, middle), best(middle, last)
            options.append((left[0] + right[0] + math.hypot(*normal), [*left[1], *right[1], normal]))
        return max(options, key=lambda option: option[0], default=(0.0, []))

    return best(0, len(loop) - 1)[1]
