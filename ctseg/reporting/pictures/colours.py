"""One colour per structure, the same in every film and still: bones pale, muscles and vessels red, veins
blue, organs told apart.

The first row of colours.csv whose words all occur in a structure's name decides; the right one of a pair
is lighter. Other names take turns in the palette of the slice pictures.
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb

from ctseg.laterality import side_of, words_of
from ctseg.palette import ON_CT

LIGHTER = 0.22  # share of white in the right one of a pair
VIVID, APART = 0.28, 0.12  # least difference of a colour's channels, and of two colours as perceived
BRIGHT = 0.55  # least lightness as perceived: dark blue cannot be seen on muscle
TABLE = Path(__file__).with_name("colours.csv")
TO_CONES = np.array(  # from linear red, green and blue
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_OKLAB = np.array(  # from the cube roots of these
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@functools.cache
def table() -> list[list[str]]:
    """The rows of colours.csv: words, colour."""
    return [line.split(",") for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]]


def colour_of(name: str, index: int) -> np.ndarray:
    """(3,) red, green and blue from 0 to 1.

    index: position of the structure, for names that the table does not know.
    """
    words = {word.rstrip("s") if len(word) > 3 else word for word in words_of(name)} | set(words_of(name))
    joined = "".join(words_of(name))
    for key, text in table():
        if set(key.split()) <= words or key.replace(" ", "") == joined:
            colour = np.array(to_rgb(text))
            return colour + (1 - colour) * LIGHTER if side_of(name) == "right" else colour
    return np.array(to_rgb(ON_CT[index % len(ON_CT)]))


def colours_of(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The colour of each structure."""
    return {name: colour_of(name, index) for index, name in enumerate(names)}


def colours_on_ct(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The colour of each structure on a grey picture.

    That of the table where it is vivid and no other has one like it, else the vivid one least like all
    others.
    """
    pool = np.array(
        [
            colorsys.hsv_to_rgb(hue / 30, saturation, value)
            for saturation, value in ((0.85, 1.0), (0.45, 1.0), (0.9, 0.75))
            for hue in range(30)
        ]
    )
    pool = pool[perceived(pool)[:, 0] > BRIGHT]
    chosen: dict[str, np.ndarray] = {}
    for name, colour in colours_of(names).items():
        taken = perceived(np.array(list(chosen.values())).reshape(-1, 3))
        candidates = np.vstack([colour, pool])
        apart = np.linalg.norm(perceived(candidates)[:, None] - taken, axis=2).min(axis=1, initial=np.inf)
        keep = np.ptp(colour) > VIVID and apart[0] > APART
        chosen[name] = candidates[0 if keep else 1 + int(np.argmax(apart[1:]))]
    return chosen


def perceived(colours: np.ndarray) -> np.ndarray:
    """(N, 3) red, green and blue (0 to 1, sRGB) in Oklab, where distance is as the eye sees it.

    B. Ottosson 2020, "A perceptual color space for image processing".
    """
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return (TO_OKLAB @ np.cbrt(TO_CONES @ linear.T)).T
