"""Masks on the CT at a glance: one sheet of axial, coronal and sagittal slices, evenly spaced through the masks.

Orientation as in `slices`: the patient's left is on the right, superior and anterior are up. All panels have one scale.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ctseg.artifacts import atomic_write
from ctseg.errors import UsageError
from ctseg.geometry.boxes import Box, box_shape, intersection, move, union, whole_box, within
from ctseg.geometry.volume import Grid, Volume, covered_box, resample, tight, to_canonical
from ctseg.reporting.pictures import slices, style
from ctseg.reporting.pictures.colours import colours_on_ct
from ctseg.reporting.pictures.slices import PLANES, Plane
from ctseg.scans.masks import Masks

COLUMNS, AXIAL_ROWS = 6, 2
WIDTH, GAP, TEXT = 1600, 8, 14  # pixels
FINE = 2  # picture elements per pixel and axis
FILL, FILL_WITH_REFERENCE = 0.22, 0.45  # opacity
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
JPEG_QUALITY = 85
ALIGNED = (
    0.01  # voxels by which the voxels of masks may lie beside those of the scan and still count as the same
)


def sheet_format(path: Path) -> str:
    """PNG or JPEG, by the suffix. UsageError for another one."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            "BAD_OPTION",
            f"'{path.name}' after --sheet is no picture",
            "end it in .png or .jpg",
            file=path.name,
        )
    return SUFFIXES[path.suffix.lower()]


@dataclasses.dataclass(frozen=True)
class Piece:
    """The mask of one structure inside its box of the canonical scan. packed: its voxels, eight along W in one byte."""

    box: Box
    packed: np.ndarray

    def cut(self, axis: int, number: int) -> np.ndarray | None:
        """The slice (bool) across an axis, as wide and high as the box; None when it has no voxel."""
        inside = number - self.box[axis].start
        if not 0 <= inside < box_shape(self.box)[axis]:
            return None
        if axis == 2:
            part = np.unpackbits(self.packed[:, :, inside // 8, None], axis=2)[:, :, inside % 8]
        else:
            part = np.unpackbits(
                np.take(self.packed, inside, axis=axis), axis=1, count=box_shape(self.box)[2]
            )
        return part.astype(bool) if part.any() else None


def piece_of(part: Volume | None, grid: Grid) -> tuple[Piece | None, bool]:
    """(a mask, as `Masks.tight` gives it, on a canonical grid, None when it is empty there; whether it had to be resampled, to the nearest voxel)."""
    if part is None:
        return None, False
    part = to_canonical(part)
    to_grid = np.linalg.inv(grid.affine) @ part.affine
    moved = (
        np.abs(to_grid[:3, :3] - np.eye(3)).max() * max(part.array.shape) > ALIGNED
        or np.abs(to_grid[:3, 3] - np.rint(to_grid[:3, 3])).max() > ALIGNED
    )
    if moved:
        covered = intersection(covered_box(part.grid, grid), whole_box(grid.shape))
        if covered is None:
            return None, True
        voxels = Volume(part.array.astype(np.uint8), part.affine)
        part = tight(resample(voxels, grid.crop_to(covered), order="nearest", fill=0))
        if part is None:
            return None, True
        to_grid = np.linalg.inv(grid.affine) @ part.affine
    own = move(whole_box(part.array.shape), np.rint(to_grid[:3, 3]))
    box = intersection(own, whole_box(grid.shape))  # what lies beside the scan has no picture
    if box is None:
        return None, moved
    return Piece(box, np.packbits(part.array[within(box, own)] > 0, axis=2)), moved


# ---- the sheet --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sheet:
    """What is drawn. scan: canonical, HU. found, truth: structure -> its mask, None when it is empty; truth only of what the reference holds."""

    scan: Volume
    window_hu: tuple[float, float]
    found: dict[str, Piece | None]
    truth: dict[str, Piece | None] | None = None
    probabilities: tuple[str, ...] = ()  # structures that come from probabilities, where these reach `level`
    level: float | None = None
    synthetic: bool = False
    resampled: bool = False  # some mask lay on another grid

    @property
    def shown(self) -> tuple[str, ...]:
        """The structures that have a voxel in the scan."""
        return tuple(name for name, piece in self.found.items() if piece is not None)

    @functools.cached_property
    def colours(self) -> dict[str, np.ndarray]:
        """The colour of each structure."""
        return colours_on_ct(list(self.found))

    @functools.cached_property
    def box(self) -> Box:
        """The box of the scan that holds all masks (of the reference too)."""
        pieces = [*self.found.values(), *(self.truth or {}).values()]
        return union(*(piece.box for piece in pieces if piece is not None))


def build_sheet(
    ct: Volume,
    masks: Masks,
    chosen: Sequence[str],
    *,
    reference: Masks | None = None,
    window_hu: tuple[float, float] | None = None,
    synthetic: bool = False,
    progress: Callable[..., Any] = iter,
) -> Sheet:
    """The scan and the chosen masks, each read once. window_hu: by default chosen by the structures' names. ValueError when there is no voxel to show."""
    scan = to_canonical(ct)
    found: dict[str, Piece | None] = {}
    truth: dict[str, Piece | None] = {}
    probabilities: list[str] = []
    moved = False
    for name in progress(list(chosen)):
        part, fractional = _read(masks, name)
        found[name], other = piece_of(part, scan.grid)
        probabilities += [name] if fractional and found[name] is not None else []
        moved |= other
        if reference is not None and name in reference.names:
            truth[name], other = piece_of(_read(reference, name)[0], scan.grid)
            moved |= other
    sheet = Sheet(
        scan,
        window_hu or slices.window_for(chosen),
        found,
        None if reference is None else truth,
        tuple(probabilities),
        masks.level,
        synthetic,
        moved,
    )
    if not any(piece is not None for piece in [*found.values(), *truth.values()]):
        raise ValueError("none of the structures has a voxel in the scan")
    return sheet


def _read(masks: Masks, name: str) -> tuple[Volume | None, bool]:
    """(the mask of a structure in its box, None when it is empty; whether it comes from probabilities)."""
    if masks.stored is None:
        return masks.tight(name), False
    values = masks.stored(name)
    if values.array.dtype.kind != "f" or masks.level is None:
        return tight(values), False
    return tight(Volume(values.array >= masks.level, values.affine)), True


def spread(first: int, last: int, count: int) -> list[int]:
    """At most `count` whole numbers from first to last, in the middles of equal parts."""
    length = last - first + 1
    if length <= count:
        return list(range(first, last + 1))
    return [first + int((number + 0.5) * length / count) for number in range(count)]


def draw(sheet: Sheet) -> Image.Image:
    """The sheet as a picture: panels, legend, scale and what it shows."""
    box = slices.box_around(
        sheet.box,
        sheet.scan.array.shape,
        sheet.scan.spacing_mm,
        margin_mm=slices.WHOLE_MARGIN_MM,
        smallest_mm=slices.SMALLEST_VIEW_MM,
    )
    sizes_mm = {plane.name: _size_mm(plane, box, sheet.scan.spacing_mm) for plane in PLANES}
    cell = (WIDTH - 2 * TEXT - (COLUMNS - 1) * GAP) // COLUMNS
    mm_per_pixel = max(width for _, width in sizes_mm.values()) / cell
    rows: list[tuple[Plane, list[int]]] = []
    for plane in PLANES:
        side = sheet.box[plane.axis]
        numbers = spread(side.start, side.stop - 1, COLUMNS * (AXIAL_ROWS if plane.axis == 0 else 1))
        numbers = numbers[::-1] if plane.axis == 0 else numbers  # from the head down, as films are hung
        rows += [(plane, numbers[start : start + COLUMNS]) for start in range(0, len(numbers), COLUMNS)]
    legend, legend_height = _legend(sheet)
    heights = [round(sizes_mm[plane.name][0] / mm_per_pixel) for plane, _ in rows]
    top = round(4.6 * TEXT)
    picture = Image.new(
        "RGB", (WIDTH, top + sum(heights) + len(rows) * round(2 * TEXT) + legend_height + TEXT), "white"
    )
    pen = ImageDraw.Draw(picture)
    _head(pen, sheet, mm_per_pixel)
    for (plane, numbers), height in zip(rows, heights):
        width = round(sizes_mm[plane.name][1] / mm_per_pixel)
        for column, number in enumerate(numbers):
            left = TEXT + column * (cell + GAP) + (cell - width) // 2
            picture.paste(_panel(sheet, plane, number, box, (height, width)), (left, top))
            _letters(pen, plane, left, top, width, height)
            pen.text(
                (left + width / 2, top + height + 0.25 * TEXT),
                _place(sheet, plane, number),
                font=style.font(TEXT),
                fill=style.INK,
                anchor="mt",
            )
        top += height + round(2 * TEXT)
    for place, text, colour in legend:
        _entry(pen, place[0], top + place[1], text, colour, outlined=sheet.truth is not None)
    return picture


def write(path: Path, picture: Image.Image) -> None:
    """Write the sheet, atomically, as PNG or JPEG by the suffix."""
    kind = sheet_format(path)
    stream = io.BytesIO()
    picture.save(
        stream, format=kind, **({"quality": JPEG_QUALITY, "optimize": True} if kind == "JPEG" else {})
    )
    atomic_write(path, lambda target: target.write(stream.getvalue()))


def _size_mm(plane: Plane, box: Sequence[slice], spacing_mm: Sequence[float]) -> tuple[float, float]:
    rows, columns = (axis for axis in range(3) if axis != plane.axis)
    return (box[rows].stop - box[rows].start) * spacing_mm[rows], (
        box[columns].stop - box[columns].start
    ) * spacing_mm[columns]


def _panel(
    sheet: Sheet, plane: Plane, number: int, box: Sequence[slice], size: tuple[int, int]
) -> Image.Image:
    """One slice (size: height and width in pixels) with its masks."""
    fine = (size[1] * FINE, size[0] * FINE)
    low, high = sheet.window_hu
    axes = [axis for axis in range(3) if axis != plane.axis]
    view = [number if axis == plane.axis else part for axis, part in enumerate(box)]
    cut = sheet.scan.array[tuple(view)]
    grey = (np.clip((cut - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    scan = Image.fromarray(_upright(grey, plane)).resize(fine, Image.Resampling.BICUBIC)
    canvas = np.repeat(np.asarray(scan)[..., None], 3, axis=2).astype(np.float32)
    if sheet.truth is None:
        layers = [(sheet.found, FILL, 2)]
    else:
        layers = [(sheet.found, FILL_WITH_REFERENCE, 0), (sheet.truth, 0.0, 3)]
    for pieces, opacity, line in layers:
        for name, piece in pieces.items():
            mask = piece.cut(plane.axis, number) if piece is not None else None
            if piece is not None and mask is not None:
                start = [piece.box[axis].start - box[axis].start for axis in axes]
                start[0] = start[0] if not plane.flip_rows else grey.shape[0] - start[0] - mask.shape[0]
                _paint(
                    canvas, _upright(mask, plane), start, grey.shape, sheet.colours[name] * 255, opacity, line
                )
    return Image.fromarray((canvas + 0.5).clip(0, 255).astype(np.uint8)).reduce(FINE)


def _upright(picture: np.ndarray, plane: Plane) -> np.ndarray:
    return np.ascontiguousarray(picture[::-1] if plane.flip_rows else picture)


def _paint(
    canvas: np.ndarray,
    mask: np.ndarray,
    start: Sequence[int],
    shape: Sequence[int],
    colour: np.ndarray,
    opacity: float,
    line: int,
) -> None:
    """A mask on a picture, (h, w, 3) of 0 to 255: filled, and with a line along the inside of its border, in picture elements.

    start: row and column of the mask in the slice, which has this shape and fills the picture.
    """
    room = [
        1 + -(-whole // wanted) for whole, wanted in zip(shape, canvas.shape)
    ]  # at least an element around it
    sides = []
    for first, length, around, whole, wanted in zip(start, mask.shape, room, shape, canvas.shape):
        fine, begin = wanted / whole, first - around
        low, high = (
            max(0, int(np.ceil(begin * fine))),
            min(wanted, int(np.floor((first + length + around) * fine))),
        )
        sides.append((low, high, max(0.0, low / fine - begin), min(high / fine - begin, length + 2 * around)))
    (top, bottom, *rows), (left, right, *columns) = sides
    padded = np.pad(mask.astype(np.uint8) * 255, [(around, around) for around in room])
    share = np.asarray(
        Image.fromarray(padded).resize(
            (right - left, bottom - top),
            Image.Resampling.BILINEAR,
            box=(columns[0], rows[0], columns[1], rows[1]),
        )
    )
    covered = share >= max(
        1, min(128, int(share.max()) // 2)
    )  # so what is thinner than an element is still seen
    under = canvas[top:bottom, left:right]
    under[covered] = under[covered] * (1 - opacity) + colour * opacity
    if line:
        under[covered & ~ndimage.binary_erosion(covered, iterations=line, border_value=1)] = colour


def _place(sheet: Sheet, plane: Plane, number: int) -> str:
    """Which slice it is, and where: the coordinate of its centre along the axis nearest to it, in mm, LPS."""
    index = [(n - 1) / 2 for n in sheet.scan.array.shape]
    index[plane.axis] = number
    position = (sheet.scan.affine @ [*index, 1.0])[2 - plane.axis]
    return f"{plane.name} {number + 1}/{sheet.scan.array.shape[plane.axis]}, {'zyx'[plane.axis]} {position:.0f} mm".replace(
        "-", "−"
    )


def _letters(pen: Any, plane: Plane, left: int, top: int, width: int, height: int) -> None:
    edge = 0.8 * TEXT
    for text, x, y in (
        (plane.left, left + edge, top + height / 2),
        (plane.right, left + width - edge, top + height / 2),
        (plane.top, left + width / 2, top + edge),
        (plane.bottom, left + width / 2, top + height - edge),
    ):
        pen.text(
            (x, y),
            text,
            font=style.font(TEXT, bold=True),
            fill="white",
            stroke_width=2,
            stroke_fill="black",
            anchor="mm",
        )


def _head(pen: Any, sheet: Sheet, mm_per_pixel: float) -> None:
    low, high = sheet.window_hu
    title = (
        "Masks on the CT"
        + (", against a reference" if sheet.truth is not None else "")
        + (" (synthetic data)" if sheet.synthetic else "")
    )
    said = [f"window {low:g} to {high:g} HU".replace("-", "−")]
    said += ["filled: masks, line: reference"] if sheet.truth is not None else []
    said += [f"probability from {sheet.level:g}"] if sheet.probabilities else []
    said += ["masks moved to the nearest voxel of the scan"] if sheet.resampled else []
    said += ["x to the left, y to the back, z upwards (LPS)"]
    pen.text(
        (TEXT, 0.8 * TEXT), title, font=style.font(round(TEXT * 1.4), bold=True), fill=style.INK, anchor="lt"
    )
    pen.text((TEXT, 2.9 * TEXT), " · ".join(said), font=style.font(TEXT), fill=style.GREY, anchor="lt")
    bar = max(
        (length for length in (5, 10, 20, 50, 100, 200) if length / mm_per_pixel <= WIDTH / 10), default=5
    )
    right, bottom = WIDTH - TEXT, 3.6 * TEXT
    pen.line([(right - bar / mm_per_pixel, bottom), (right, bottom)], fill=style.INK, width=3)
    pen.text(
        (right - bar / mm_per_pixel / 2, bottom - 0.4 * TEXT),
        f"{bar / 10:g} cm",
        font=style.font(TEXT),
        fill=style.INK,
        anchor="mb",
    )


Entry = tuple[tuple[float, float], str, np.ndarray | None]


def _legend(sheet: Sheet) -> tuple[list[Entry], int]:
    """(places relative to the legend's corner, texts and colours, None for what is not shown; height in pixels)."""
    entries: list[tuple[str, np.ndarray | None]] = []
    for name, piece in sheet.found.items():
        truth = None if sheet.truth is None else sheet.truth.get(name)
        remark = (
            " (not found)"
            if piece is None
            else " (no reference)"
            if sheet.truth is not None and truth is None
            else ""
        )
        entries.append(
            (
                style.short(name).strip() + remark,
                sheet.colours[name] if piece is not None or truth is not None else None,
            )
        )
    wide = max(style.font(TEXT).getlength(text) for text, _ in entries) + 3 * TEXT
    columns = max(1, min(len(entries), int((WIDTH - 2 * TEXT) / wide)))
    rows = -(-len(entries) // columns)
    return [
        ((TEXT + number // rows * wide, (number % rows) * 1.5 * TEXT), text, colour)
        for number, (text, colour) in enumerate(entries)
    ], round(rows * 1.5 * TEXT)


def _entry(pen: Any, x: float, y: float, text: str, colour: np.ndarray | None, *, outlined: bool) -> None:
    if colour is not None:
        strong = tuple(int(c) for c in colour * 255)
        pale = tuple(int(c) for c in (colour * 0.5 + 0.5) * 255)
        pen.rectangle(
            [x, y + 0.1 * TEXT, x + 0.9 * TEXT, y + TEXT],
            fill=pale if outlined else strong,
            outline=strong,
            width=2,
        )
    pen.text(
        (x + 1.4 * TEXT, y + 0.55 * TEXT),
        text,
        font=style.font(TEXT),
        fill=style.INK if colour is not None else style.GREY,
        anchor="lm",
    )
