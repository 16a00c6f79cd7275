"""How every picture looks: sizes, fonts, one fixed colour-blind safe palette, and saving without a display.

Figures are made with the Agg canvas directly, so no window system, no global matplotlib state and no pyplot.
A target is a path (written atomically) or a binary stream.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import ImageDraw, ImageFont

from ctseg.artifacts import atomic_write

Target = str | Path | BinaryIO

# Okabe and Ito, "Color Universal Design" (2008), without black and with the yellow left out: it vanishes on
# white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6b6b6b")
INK, GREY, PALE, GRID = "#1c2733", "#6b7682", "#c9d1d9", "#e6eaee"
MISSED = "#D55E00"
SCORE_MAP = "cividis"  # readable in grey and with every common colour vision
DPI = 120
MARKERS = "osD^vP*"
RIM = {"markeredgewidth": 0.5}
MANY_ROWS = 15

_SHEET: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "text.parse_math": False,  # a '$' in a name is a character, not a formula
    "svg.fonttype": "none",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextlib.contextmanager
def picture(
    target: Target,
    size_in: tuple[float, float],
    *,
    title: str | None = None,
    synthetic: bool = False,
    dpi: int = DPI,
    quality: int | None = None,
) -> Iterator[Figure]:
    """A figure of `size_in` inches that is written to `target` at the end of the block.

    title: bold, top left; the words "synthetic data" follow when `synthetic`. quality: JPEG instead of PNG.
    """
    with matplotlib.rc_context(_SHEET), warnings.catch_warnings():
        # a box instead of a rare letter is enough
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size_in, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.09))
        FigureCanvasAgg(figure)
        if title is not None:
            figure.suptitle(
                f"{title} (synthetic data)" if synthetic else title,
                x=0.012,
                ha="left",
                fontsize=13,
                fontweight="bold",
            )
        yield figure
        stream = io.BytesIO()
        if quality is None:
            figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
        else:
            figure.savefig(stream, format="jpeg", dpi=dpi, pil_kwargs={"quality": quality, "optimize": True})
    if isinstance(target, (str, Path)):
        atomic_write(target, lambda file: file.write(stream.getvalue()))
    else:
        target.write(stream.getvalue())


def say(axes: Axes, message: str) -> None:
    """An empty panel that says why it is empty."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set(visible=True, color=PALE, linestyle=(0, (4, 4)))
    axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=11)


def dots(axes: Axes, x: Any, y: Any, marker: str, *, colour: str, size: float = 6, **more: Any) -> None:
    """Points with a white rim, so that neighbours can be told apart."""
    axes.plot(x, y, marker, color=colour, markersize=size, markeredgecolor="white", **RIM | more)


def missed_dots(axes: Axes, x: Any, y: Any, **more: Any) -> None:
    """Points of structures that were not found."""
    dots(axes, x, y, "X", colour=MISSED, size=8, markeredgewidth=1.0, **{"zorder": 4} | more)


def missed_strip(axes: Axes, left: float, right: float, message: str) -> None:
    """A tinted strip from left to right for results that have no place on the axis, and what they are."""
    axes.axvspan(left, right, color="#fbeee6", zorder=0)
    look: Any = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 9, "color": MISSED}
    scale = axes.transData
    middle = scale.inverted().transform((scale.transform([(left, 0), (right, 0)])[:, 0].mean(), 0))[0]
    axes.text(middle, 0.5, message, **look)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """A labelled line per name, the first on top, every other one tinted; labels below and above where there
    are many.
    """
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    for index in range(1, len(names), 2):
        axes.axhspan(index - 0.5, index + 0.5, color="#f5f7f9", zorder=0, linewidth=0)
    if len(names) > MANY_ROWS:
        axes.tick_params(top=True, labeltop=True)


def short(name: str, limit: int = 26) -> str:
    """The name, its middle replaced by an ellipsis when it is longer than `limit`; letters that the font
    lacks by their code, as boxes all look alike.
    """
    name = " ".join(str(name).split())
    name = "".join(
        "".join(run) if shown else "[" + " ".join(f"{ord(c):X}" for c in run) + "]"
        for shown, run in itertools.groupby(name, lambda c: ord(c) in _glyphs())
    )
    if len(name) > limit:
        keep = limit - 1
        name = f"{name[: keep - keep // 3]}…{name[len(name) - keep // 3 :]}"
    # matplotlib hides legend entries that begin with an underscore
    return f" {name}" if name.startswith("_") else name


@functools.cache
def _glyphs() -> frozenset[int]:
    """Code points that the font of all pictures can draw."""
    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def font(size: float, *, bold: bool = False) -> Any:
    """matplotlib's own font for pictures that Pillow draws; size in pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def rgb(colour: np.ndarray) -> tuple[int, ...]:
    """A colour of numbers from 0 to 1 as Pillow takes it."""
    return tuple(int(255 * part) for part in colour)


def scale_bar(
    pen: ImageDraw.ImageDraw, right: float, bottom: float, mm_per_pixel: float, longest: float, size: int
) -> None:
    """A bar of a round length, at most `longest` pixels, that ends at (right, bottom), its length in words
    above it.
    """
    bar_mm = max(
        (length for length in (5, 10, 20, 50, 100, 200) if length <= longest * mm_per_pixel), default=5
    )
    left = right - bar_mm / mm_per_pixel
    pen.line([(left, bottom), (right, bottom)], fill=INK, width=max(2, size // 5))
    middle = ((left + right) / 2, bottom - 0.4 * size)
    pen.text(middle, f"{bar_mm / 10:g} cm", font=font(size), fill=INK, anchor="mb")


def colour(index: int) -> str:
    """The colour of the i-th structure; it repeats after the palette's end, so plots with more need another
    form.
    """
    return PALETTE[index % len(PALETTE)]
