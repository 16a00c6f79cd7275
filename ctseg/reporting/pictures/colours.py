"""One colour per structure, the same in every film and still: bones pale, muscles and vessels red, veins blue, organs told apart.

The first row whose words all occur in a structure's name decides; the right one of a pair is lighter. Other names take turns in
the palette of the slice pictures.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

from ctseg.laterality import side_of, words_of
from ctseg.palette import ON_CT

_TABLE = (
    ("brainstem", "#c48fc0"),
    ("spinal cord", "#f0d97a"),
    ("parotid", "#7fc6a4"),
    ("submandibular", "#5aa88a"),
    ("mandible", "#e6ddc4"),
    ("larynx", "#6fa8a0"),
    ("lung", "#e3b3ae"),
    ("trachea", "#6fb7d9"),
    ("airway", "#6fb7d9"),
    ("bronchi", "#6fb7d9"),
    ("esophagus", "#b07d54"),
    ("thyroid", "#c98b4f"),
    ("coronary", "#e0473f"),
    ("aorta", "#d43d3d"),
    ("artery", "#e0473f"),
    ("iliac vena", "#4a6fc0"),
    ("vein", "#4a6fc0"),
    ("vena", "#4a6fc0"),
    ("cava", "#4a6fc0"),
    ("portal", "#5f83cf"),
    ("atrium", "#d0616b"),
    ("ventricle", "#a93a44"),
    ("myocardium", "#7d2f38"),
    ("heart", "#b8434a"),
    ("brain", "#d9b3a8"),
    ("liver", "#a5533b"),
    ("gallbladder", "#4f9a4f"),
    ("kidney", "#c9863b"),
    ("adrenal", "#e0a63c"),
    ("spleen", "#8a4f9e"),
    ("pancreas", "#dfc06a"),
    ("stomach", "#c9798f"),
    ("duodenum", "#d19a7f"),
    ("bowel", "#d6ab8f"),
    ("colon", "#c2906b"),
    ("rectum", "#9a6a4a"),
    ("bladder", "#e8c83c"),
    ("prostate", "#5a8fd0"),
    ("uterus", "#c06a9a"),
    ("gluteus", "#9c4a46"),
    ("iliopsoas", "#a85a50"),
    ("autochthon", "#8c443f"),
    ("muscle", "#9c4a46"),
    ("sacrum", "#d3c090"),
    ("hip", "#e3d6b4"),
    ("femur", "#efe6cf"),
    ("vertebrae", "#dccfa6"),
    ("vertebra", "#dccfa6"),
    ("rib", "#eae0c8"),
    ("costal", "#cfd8c8"),
    ("sternum", "#e0d4b0"),
    ("clavicula", "#e6dcc0"),
    ("scapula", "#ddd0aa"),
    ("humerus", "#efe6cf"),
    ("skull", "#e6ddc4"),
    ("bone", "#e3d6b4"),
    ("tumor", "#35c24a"),
    ("tumour", "#35c24a"),
    ("lesion", "#35c24a"),
    ("nodule", "#35c24a"),
)
LIGHTER = 0.22  # share of white in the right one of a pair


def colour_of(name: str, index: int) -> np.ndarray:
    """(3,) red, green and blue from 0 to 1. index: position of the structure, for names that the table does not know."""
    words = {word.rstrip("s") if len(word) > 3 else word for word in words_of(name)} | set(words_of(name))
    joined = "".join(words_of(name))
    for key, text in _TABLE:
        if set(key.split()) <= words or key.replace(" ", "") == joined:
            colour = from_hex(text)
            return colour + (1 - colour) * LIGHTER if side_of(name) == "right" else colour
    return from_hex(ON_CT[index % len(ON_CT)])


def colours_of(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The colour of each structure."""
    return {name: colour_of(name, index) for index, name in enumerate(names)}


def colours_on_ct(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The colour of each structure on a grey picture: that of the table where it is vivid and no other has one like it, else the vivid one least like all others."""
    pool = np.array(
        [
            colorsys.hsv_to_rgb(hue / 30, saturation, value)
            for saturation, value in ((0.85, 1.0), (0.45, 1.0), (0.9, 0.75))
            for hue in range(30)
        ]
    )
    pool = pool[_perceived(pool)[:, 0] > BRIGHT]
    chosen: dict[str, np.ndarray] = {}
    for name, colour in colours_of(names).items():
        taken = _perceived(np.array(list(chosen.values())).reshape(-1, 3))
        far = _least_distance(colour[None], taken)[0] > APART
        chosen[name] = (
            colour if np.ptp(colour) > VIVID and far else pool[int(np.argmax(_least_distance(pool, taken)))]
        )
    return chosen


def _least_distance(colours: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """(N,) how far each colour is from the nearest of those taken (already as perceived); infinite when none is."""
    return np.linalg.norm(_perceived(colours)[:, None] - taken[None], axis=2).min(axis=1, initial=np.inf)


VIVID, APART = 0.28, 0.12  # least difference of a colour's channels, and of two colours as perceived
BRIGHT = 0.55  # least lightness as perceived: dark blue cannot be seen on muscle


def _perceived(colour: np.ndarray) -> np.ndarray:
    """(N, 3) red, green and blue (0 to 1, sRGB) in Oklab, where distance is as the eye sees it (B. Ottosson 2020, "A perceptual color space for image processing")."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    cones = (
        np.array(
            [
                [0.4122214708, 0.5363325363, 0.0514459929],
                [0.2119034982, 0.6806995451, 0.1073969566],
                [0.0883024619, 0.2817188376, 0.6299787005],
            ]
        )
        @ linear.T
    )
    return (
        np.array(
            [
                [0.2104542553, 0.7936177850, -0.0040720468],
                [1.9779984951, -2.4285922050, 0.4505937099],
                [0.0259040371, 0.7827717662, -0.8086757660],
            ]
        )
        @ np.cbrt(cones)
    ).T


def from_hex(text: str) -> np.ndarray:
    """ "#ff8000" as (3,) numbers from 0 to 1."""
    return np.frombuffer(bytes.fromhex(text[1:]), dtype=np.uint8) / 255.0
