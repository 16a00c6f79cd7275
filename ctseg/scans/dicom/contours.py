"""Contours and voxels: polygons parted into planes and filled, and the outlines of masks.

A voxel belongs to a structure where its centre lies inside an odd number of the structure's contours of that
plane (docs/decisions/015-contours.md).
"""

from collections import Counter

import numpy as np

from ctseg.geometry.tolerances import ROUNDED

# slices that a point may lie beside the plane of its contour: with one decimal, 0.12 of a slice of 0.5 mm
FLAT = 0.25

# length of the mean direction of planes on a circle of one slice: rounding by 0.2 of a slice leaves 0.9
SAME_OFFSET = 0.8


def fill(contours: list[np.ndarray], shape: tuple[int, int], corner: tuple[int, int] = (0, 0)) -> np.ndarray:
    """bool (H, W): pixel centres inside an odd number of closed polygons, each (N, 2) in (row, column) with
    centres at integers.

    corner: the (row, column) of the first pixel. Each edge toggles everything to the right of where it
    crosses a row of centres. Edges are open at their lower end, so a vertex on a row counts once; a centre on
    an edge belongs to the polygon on its right.
    """
    starts = np.concatenate(contours)
    ends = np.concatenate([np.roll(contour, -1, axis=0) for contour in contours])
    upward = starts[:, 0] <= ends[:, 0]
    top, bottom = np.where(upward[:, None], starts, ends), np.where(upward[:, None], ends, starts)
    first, last = (
        np.clip(np.ceil(rows), corner[0], corner[0] + shape[0]).astype(int)
        for rows in (top[:, 0], bottom[:, 0])
    )
    count = last - first
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = (bottom - top)[edge]
    # an edge along a row crosses none
    column = top[edge, 1] + (row - top[edge, 0]) * slope[:, 1] / slope[:, 0]
    toggles = np.zeros((shape[0], shape[1] + 1), dtype=np.int64)
    np.add.at(toggles, (row - corner[0], np.clip(np.ceil(column) - corner[1], 0, shape[1]).astype(int)), 1)
    return (np.cumsum(toggles[:, :-1], axis=1) % 2).astype(bool)


def part_into_planes(
    polygons: list[tuple[float, np.ndarray]], slices: int, dropped: Counter[str]
) -> dict[int, tuple[float, list[np.ndarray]]]:
    """Slice -> (place of its plane, the polygons of that plane). Other planes of a slice are added to
    `dropped`.

    Contours lie in one plane where the step between them is less than half the step from plane to plane: the
    positions of one slice differ by rounding, those of a finer series by its slices. Planes that all lie
    beside the slices by the same move by that, so that rounding does not part those half-way between two
    slices.
    """
    places = np.array([place for place, _ in polygons])
    found: dict[int, tuple[float, list[np.ndarray]]] = {}
    if not polygons:
        return found
    cuts = np.flatnonzero(np.diff(places) >= step_between(places) / 2) + 1
    groups = np.split(np.arange(len(places)), cuts)
    direction = np.mean([np.exp(2j * np.pi * places[members].mean()) for members in groups])
    # of all planes from the slices
    offset = float(np.angle(direction)) / (2 * np.pi) if abs(direction) > SAME_OFFSET else 0.0
    offset += offset < ROUNDED - 0.5  # half-way ones go the same way in every structure of a file
    for members in groups:
        place = float(places[members].mean())
        plane = min(max(int(np.rint(place - offset)), 0), slices - 1)
        outlines = [polygons[index][1] for index in members]
        if plane in found:
            nearer, farther = sorted((found[plane], (place, outlines)), key=lambda one: abs(one[0] - plane))
            dropped["RT_FINER_PLANES"] += len(farther[1])
            found[plane] = nearer
        else:
            found[plane] = place, outlines
    return found


def step_between(places: np.ndarray) -> float:
    """Slices between neighbouring planes of contours: from the last place of one slice to the first of the
    next one.

    places: sorted. Slices are cut apart at their middles and at their edges; where planes lie on a cut,
    rounding puts them on both of its sides, and the other cut counts. Within a single slice there is nothing
    to tell the step from: half a slice.
    """
    steps = [0.5]
    for offset in (0.5, 0.0):
        cell = np.floor(places + offset)
        steps += [float(np.median(step)) for step in [np.diff(places)[np.diff(cell) > 0]] if len(step)]
    return max(steps) if len(places) < 2 or places[-1] - places[0] < 1 else max(steps[1:])


def fill_plane(polygons: list[np.ndarray], shape: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """(mask (H, W) of one plane, polygons that enclose just what another one encloses and are left out,
    voxels where two cross)."""
    mask, copies, found = np.zeros(shape, dtype=bool), 0, set()
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for polygon in polygons:
        low = np.clip(np.ceil(polygon.min(axis=0)), 0, shape).astype(int)
        high = np.clip(np.floor(polygon.max(axis=0)) + 1, low, shape).astype(int)
        part = fill([polygon], (high[0] - low[0], high[1] - low[1]), (low[0], low[1]))
        key = (*low, *high, part.tobytes())
        if key in found:
            copies += 1
        elif part.any():
            found.add(key)
            parts.append((part, low, high))
            mask[low[0] : high[0], low[1] : high[1]] ^= part
    return mask, copies, _crossing(parts)


def _crossing(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> int:
    """Voxels that two of the masks share, each with its first corner and its end; without pairs of which one
    lies inside the other."""
    lows, highs = (np.array([part[end] for part in parts]).reshape(-1, 2) for end in (1, 2))
    count = 0
    for number, (part, low, high) in enumerate(parts):
        for other in np.flatnonzero((lows[:number] < high).all(axis=1) & (highs[:number] > low).all(axis=1)):
            start, end = np.maximum(low, lows[other]), np.minimum(high, highs[other])
            views = [
                mask[start[0] - at[0] : end[0] - at[0], start[1] - at[1] : end[1] - at[1]]
                for mask, at, _ in (parts[number], parts[other])
            ]
            shared = int(np.count_nonzero(views[0] & views[1]))
            count += shared if shared < min(np.count_nonzero(part), np.count_nonzero(parts[other][0])) else 0
    return count


def outlines_of(mask: np.ndarray) -> list[np.ndarray]:
    """Closed polygons (N, 2) in (row, column) around a mask (H, W) and around its holes, corners only."""
    if not mask.any():
        return []
    from contourpy import contour_generator

    outlines = []
    for outline in contour_generator(z=np.pad(mask, 1).astype(np.float64)).lines(0.5):
        points = np.asarray(outline)[:-1, ::-1] - 1  # closed: the last point repeats the first
        turns = (
            np.abs(np.diff(np.concatenate([points[-1:], points, points[:1]]), axis=0, n=2)).max(axis=1) > 1e-9
        )
        outlines.append(points[turns])
    return outlines
