"""Masks on the CT at a glance: one sheet of axial, coronal and sagittal slices, evenly spaced through the
masks.

Orientation as in `slices`: the patient's left is on the right, superior and anterior are up. All panels
have one scale.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ctseg.artifacts import atomic_write
from ctseg.errors import UsageError
from ctseg.geometry.boxes import Box, box_shape, union
from ctseg.geometry.volume import Volume, to_canonical
from ctseg.reporting.pictures import slices, style
from ctseg.reporting.pictures.colours import colours_on_ct
from ctseg.reporting.pictures.pieces import Piece, mask_of, piece_of
from ctseg.reporting.pictures.slices import PLANES, Plane
from ctseg.reporting.pictures.subject import Subject

COLUMNS, AXIAL_ROWS = 6, 2
WIDTH, GAP, TEXT = 1600, 8, 14  # pixels
CELL = (WIDTH - 2 * TEXT - (COLUMNS - 1) * GAP) // COLUMNS
FINE = 2  # picture elements per pixel and axis
FILL, FILL_WITH_REFERENCE = 0.22, 0.45  # opacity
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
JPEG_QUALITY = 85
Pieces = dict[str, Piece | None]  # structure -> its mask, None when it is empty


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


# ---- what is on it ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sheet:
    """What is drawn. scan: canonical, HU. truth: only of structures that the reference holds.

    probabilities: structures that come from probabilities. resampled: some mask lay on another grid.
    """

    subject: Subject
    scan: Volume
    found: Pieces
    truth: Pieces
    probabilities: tuple[str, ...] = ()
    resampled: bool = False

    @property
    def shown(self) -> tuple[str, ...]:
        """The structures that have a voxel in the scan."""
        return tuple(name for name, piece in self.found.items() if piece is not None)

    @property
    def compared(self) -> bool:
        """Whether there is a reference."""
        return self.subject.reference is not None

    @functools.cached_property
    def colours(self) -> dict[str, np.ndarray]:
        """The colour of each structure."""
        return colours_on_ct(list(self.found))

    @functools.cached_property
    def masks_box(self) -> Box:
        """The box of the scan that holds all masks (of the reference too)."""
        return union(*(p.box for p in [*self.found.values(), *self.truth.values()] if p is not None))

    @functools.cached_property
    def box(self) -> Box:
        """The part of the scan that panels show."""
        shape, spacing_mm = self.scan.array.shape, self.scan.spacing_mm
        return slices.view_box(self.masks_box, shape, spacing_mm, margin_mm=slices.WHOLE_MARGIN_MM)

    @functools.cached_property
    def sizes_mm(self) -> dict[str, tuple[float, float]]:
        """Height and width of each plane's panels."""
        return {plane.name: plane.size_mm(box_shape(self.box), self.scan.spacing_mm) for plane in PLANES}

    @property
    def mm_per_pixel(self) -> float:
        """The scale of all panels: the widest one fills a cell."""
        return max(width for _, width in self.sizes_mm.values()) / CELL

    def size(self, plane: Plane) -> tuple[int, int]:
        """Height and width of a plane's panels in pixels."""
        height, width = (round(length / self.mm_per_pixel) for length in self.sizes_mm[plane.name])
        return height, width


def build_sheet(subject: Subject, progress: Callable[..., Any] = iter) -> Sheet:
    """The scan and the chosen masks, each read once. ValueError when there is no voxel to show."""
    assert subject.ct is not None, "a sheet is drawn on a scan"
    scan = to_canonical(subject.ct)
    found: Pieces = {}
    truth: Pieces = {}
    probabilities, moved = [], []
    for name in progress(list(subject.chosen)):
        mask, fractional = mask_of(subject.masks, name)
        found[name], resampled = piece_of(mask, scan.grid)
        moved.append(resampled)
        if fractional and found[name] is not None:
            probabilities.append(name)
        if (reference := subject.truth_of(name)) is not None:
            truth[name], resampled = piece_of(mask_of(reference, name)[0], scan.grid)
            moved.append(resampled)
    if not any(piece is not None for piece in [*found.values(), *truth.values()]):
        raise ValueError("none of the structures has a voxel in the scan")
    return Sheet(subject, scan, found, truth, tuple(probabilities), any(moved))


def spread(first: int, last: int, count: int) -> list[int]:
    """At most `count` whole numbers from first to last, in the middles of equal parts."""
    length = last - first + 1
    if length <= count:
        return list(range(first, last + 1))
    return [first + int((number + 0.5) * length / count) for number in range(count)]


def slice_rows(sheet: Sheet) -> list[tuple[Plane, list[int]]]:
    """The rows of the sheet: plane and numbers of the slices.

    Axial ones from the head down, as films are hung.
    """
    rows = []
    for plane in PLANES:
        axial = plane.axis == 0
        side = sheet.masks_box[plane.axis]
        numbers = spread(side.start, side.stop - 1, COLUMNS * (AXIAL_ROWS if axial else 1))
        if axial:
            numbers.reverse()
        rows += [(plane, numbers[start : start + COLUMNS]) for start in range(0, len(numbers), COLUMNS)]
    return rows


# ---- drawing ----------------------------------------------------------------------------------------------


def draw(sheet: Sheet) -> Image.Image:
    """The sheet as a picture: panels, legend, scale and what it shows."""
    rows = slice_rows(sheet)
    legend, legend_height = legend_of(sheet)
    top, below = round(4.6 * TEXT), round(2 * TEXT)
    height = top + sum(sheet.size(plane)[0] + below for plane, _ in rows) + legend_height + TEXT
    picture = Image.new("RGB", (WIDTH, height), "white")
    pen = ImageDraw.Draw(picture)
    draw_head(pen, sheet)
    for plane, numbers in rows:
        high, wide = sheet.size(plane)
        for column, number in enumerate(numbers):
            left = TEXT + column * (CELL + GAP) + (CELL - wide) // 2
            picture.paste(panel(sheet, plane, number, sheet.box, (high, wide)), (left, top))
            draw_letters(pen, plane, left, top, wide, high)
            place = (left + wide / 2, top + high + 0.25 * TEXT)
            pen.text(place, caption(sheet, plane, number), font=style.font(TEXT), fill=style.INK, anchor="mt")
        top += high + below
    for (x, y), text, colour in legend:
        y += top
        if colour is not None:
            fill = colour * 0.5 + 0.5 if sheet.compared else colour
            box = [x, y + 0.1 * TEXT, x + 0.9 * TEXT, y + TEXT]
            pen.rectangle(box, fill=style.rgb(fill), outline=style.rgb(colour), width=2)
        ink = style.INK if colour is not None else style.GREY
        pen.text((x + 1.4 * TEXT, y + 0.55 * TEXT), text, font=style.font(TEXT), fill=ink, anchor="lm")
    return picture


def write(path: Path, picture: Image.Image) -> None:
    """Write the sheet, atomically, as PNG or JPEG by the suffix."""
    kind = sheet_format(path)
    how: Any = {"quality": JPEG_QUALITY, "optimize": True} if kind == "JPEG" else {}
    atomic_write(path, functools.partial(picture.save, format=kind, **how))


def panel(
    sheet: Sheet, plane: Plane, number: int, box: Sequence[slice], size: tuple[int, int]
) -> Image.Image:
    """One slice of a box of the scan, with its masks, `size` (height, width) pixels large."""
    height, width = size
    view = tuple(number if axis == plane.axis else part for axis, part in enumerate(box))
    grey = (slices.grey_of(sheet.scan.array[view], sheet.subject.window) * 255).astype(np.uint8)
    scan = Image.fromarray(np.ascontiguousarray(plane.upright(grey)))
    scan = scan.resize((width * FINE, height * FINE), Image.Resampling.BICUBIC)
    canvas = np.repeat(np.asarray(scan)[..., None], 3, axis=2).astype(np.float32)
    layers = [(sheet.found, FILL, 2)]
    if sheet.compared:
        layers = [(sheet.found, FILL_WITH_REFERENCE, 0), (sheet.truth, 0.0, 3)]
    for pieces, opacity, line in layers:
        for name, piece in pieces.items():
            if piece is None or (mask := piece.cut(plane.axis, number)) is None:
                continue
            row, column = (piece.box[axis].start - box[axis].start for axis in plane.others)
            if plane.flip_rows:
                row = len(grey) - row - len(mask)
            where = placed(plane.upright(mask), (row, column), grey.shape, canvas.shape)
            paint(canvas, *where, sheet.colours[name] * 255, opacity=opacity, line=line)
    return Image.fromarray((canvas + 0.5).clip(0, 255).astype(np.uint8)).reduce(FINE)


def placed(
    mask: np.ndarray, start: Sequence[int], shape: Sequence[int], canvas_shape: Sequence[int]
) -> tuple[tuple[slice, slice], np.ndarray]:
    """(rows and columns of a finer canvas that a mask reaches, bool which of their elements it covers).

    start: row and column of the mask in a slice of this shape, which fills the canvas.
    """
    # at least an element around it
    room = [1 + -(-whole // wanted) for whole, wanted in zip(shape, canvas_shape)]
    parts, ends = [], []
    for first, length, around, whole, wanted in zip(start, mask.shape, room, shape, canvas_shape):
        fine, begin = wanted / whole, first - around
        low = max(0, int(np.ceil(begin * fine)))
        high = min(wanted, int(np.floor((first + length + around) * fine)))
        parts.append(slice(low, high))
        ends.append((max(0.0, low / fine - begin), min(high / fine - begin, length + 2 * around)))
    (top, bottom), (left, right) = ends
    padded = np.pad(mask.astype(np.uint8) * 255, [(around, around) for around in room])
    size = (parts[1].stop - parts[1].start, parts[0].stop - parts[0].start)
    finer = Image.fromarray(padded).resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    share = np.asarray(finer)
    least = max(1, min(128, int(share.max()) // 2))  # so what is thinner than an element is still seen
    return (parts[0], parts[1]), share >= least


def paint(
    canvas: np.ndarray,
    part: tuple[slice, slice],
    covered: np.ndarray,
    colour: np.ndarray,
    *,
    opacity: float,
    line: int,
) -> None:
    """Fill what is covered of a part of a picture, (h, w, 3) of 0 to 255, and draw a line along the inside of
    its border.

    line: width in picture elements.
    """
    under = canvas[part]
    under[covered] = under[covered] * (1 - opacity) + colour * opacity
    if line:
        under[covered & ~ndimage.binary_erosion(covered, iterations=line, border_value=1)] = colour


def caption(sheet: Sheet, plane: Plane, number: int) -> str:
    """Which slice it is, and where: the coordinate of its centre along the axis nearest to it, in mm, LPS."""
    index = [(n - 1) / 2 for n in sheet.scan.array.shape]
    index[plane.axis] = number
    position = (sheet.scan.affine @ [*index, 1.0])[2 - plane.axis]
    which = f"{plane.name} {number + 1}/{sheet.scan.array.shape[plane.axis]}"
    return f"{which}, {'zyx'[plane.axis]} {position:.0f} mm".replace("-", "−")


def draw_letters(pen: Any, plane: Plane, left: int, top: int, width: int, height: int) -> None:
    """The patient's directions at the borders of a panel."""
    edge, bold = 0.8 * TEXT, style.font(TEXT, bold=True)
    for text, x, y in (
        (plane.left, left + edge, top + height / 2),
        (plane.right, left + width - edge, top + height / 2),
        (plane.top, left + width / 2, top + edge),
        (plane.bottom, left + width / 2, top + height - edge),
    ):
        pen.text((x, y), text, font=bold, fill="white", stroke_width=2, stroke_fill="black", anchor="mm")


def draw_head(pen: Any, sheet: Sheet) -> None:
    """What the sheet shows, and its scale."""
    title = "Masks on the CT" + (", against a reference" if sheet.compared else "")
    title += " (synthetic data)" if sheet.subject.synthetic else ""
    said = [
        f"window {slices.window_text(sheet.subject.window)}",
        "filled: masks, line: reference" if sheet.compared else "",
        f"probability from {sheet.subject.masks.level:g}" if sheet.probabilities else "",
        "masks moved to the nearest voxel of the scan" if sheet.resampled else "",
        "x to the left, y to the back, z upwards (LPS)",
    ]
    bold = style.font(round(TEXT * 1.4), bold=True)
    pen.text((TEXT, 0.8 * TEXT), title, font=bold, fill=style.INK, anchor="lt")
    line = " · ".join(filter(None, said))
    pen.text((TEXT, 2.9 * TEXT), line, font=style.font(TEXT), fill=style.GREY, anchor="lt")
    style.scale_bar(pen, WIDTH - TEXT, 3.6 * TEXT, sheet.mm_per_pixel, WIDTH / 10, TEXT)


Entry = tuple[tuple[float, float], str, np.ndarray | None]


def legend_of(sheet: Sheet) -> tuple[list[Entry], int]:
    """(place relative to the legend's corner, text and colour of each line, None for what is not shown;
    height in pixels).
    """
    entries: list[tuple[str, np.ndarray | None]] = []
    for name, piece in sheet.found.items():
        truth = sheet.truth.get(name)
        remark = " (no reference)" if sheet.compared and truth is None else ""
        if piece is None:
            remark = " (not found)"
        colour = None if piece is truth is None else sheet.colours[name]
        entries.append((style.short(name).strip() + remark, colour))
    wide = max(style.font(TEXT).getlength(text) for text, _ in entries) + 3 * TEXT
    columns = max(1, min(len(entries), int((WIDTH - 2 * TEXT) / wide)))
    rows = -(-len(entries) // columns)
    places = [(TEXT + n // rows * wide, (n % rows) * 1.5 * TEXT) for n in range(len(entries))]
    return [(place, *entry) for place, entry in zip(places, entries)], round(rows * 1.5 * TEXT)
