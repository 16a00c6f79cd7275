"""A patient folder of the OpenKBP challenge: sparse CSV lists of a 128 x 128 x 128 volume.

Conventions (github.com/ababier/open-kbp, checked against organ positions): each file lists flat C-order
indices of an array whose axes run to posterior, left, inferior; `ct.csv` holds HU + 1024 and what it does not
list is air; a structure's file has an empty value column; a structure without a file was not annotated. The
origin is arbitrary: the volume is centred at 0.
"""

import io
from pathlib import Path

import numpy as np

from ctseg.errors import CaseError, Finding, Findings
from ctseg.geometry.volume import AIR_HU, Volume
from ctseg.scans.formats import checks
from ctseg.scans.formats.regular_files import at_file, located, read_regular, refuse

SIZE = 128
STRUCTURES = {
    1: "Brainstem",
    2: "SpinalCord",
    3: "RightParotid",
    4: "LeftParotid",
    5: "Mandible",
    6: "Larynx",
    7: "Esophagus",
}


def read_image(folder: Path) -> tuple[Volume, Findings]:
    """The CT in HU, float32 (128, 128, 128), and what was noticed."""
    affine = _affine(folder)
    path = folder / "ct.csv"
    with at_file(path):
        indices, values = _read_list(path, columns=2)
        flat = np.full(SIZE**3, AIR_HU, dtype=np.float32)
        flat[indices] = values + np.float32(AIR_HU)
        array = _to_volume(flat)
        checks.check_finite(array)
        checks.check_hu(array)
        return Volume(array, affine), located(checks.clip_padding(array), path)


def read_label(folder: Path) -> tuple[Volume, tuple[str, ...], Findings]:
    """(map of int32 with the ids of STRUCTURES, names of the annotated ones, what was noticed).

    Where structures overlap the one with the higher id counts, as in the challenge's own conversion.
    """
    affine = _affine(folder)
    flat = np.zeros(SIZE**3, dtype=np.int32)
    names, overlap = [], 0
    for number, name in STRUCTURES.items():
        path = folder / f"{name}.csv"
        if not path.exists():
            continue
        with at_file(path):
            indices, _ = _read_list(path, columns=1)
        overlap += int(np.count_nonzero(flat[indices]))
        flat[indices] = number
        names.append(name)
    if not names:
        fix = "restore the files or remove the case"
        raise refuse("LABEL_MISSING", "the folder holds no structure", fix, folder)
    cause = f"{overlap} voxels belong to more than one structure; the higher id counts, as in the challenge"
    told = [Finding("WARN", "LABEL_OVERLAP", cause, file=str(folder))] if overlap else []
    return Volume(_to_volume(flat), affine), tuple(names), told


def _to_volume(flat: np.ndarray) -> np.ndarray:
    """(D, H, W) = (inferior, left, posterior) from the flat list in (posterior, left, inferior) order."""
    return np.ascontiguousarray(flat.reshape(SIZE, SIZE, SIZE).transpose(2, 1, 0))


def _affine(folder: Path) -> np.ndarray:
    """Index (d, h, w) to LPS mm."""
    path = folder / "voxel_dimensions.csv"
    with at_file(path):
        try:
            sizes = np.array([float(line) for line in read_regular(path).split()])
        except ValueError:
            sizes = np.zeros(0)
        if sizes.shape != (3,):
            raise _corrupt("the file does not hold three numbers")
        # as precise as the NIfTI form
        posterior, left, inferior = sizes.astype(np.float32).astype(np.float64)
        affine = np.zeros((4, 4))
        affine[2, 0], affine[0, 1], affine[1, 2] = -inferior, left, posterior
        affine[:3, 3] = -affine[:3, :3].sum(axis=1) * (SIZE - 1) / 2
        affine[3, 3] = 1.0
        checks.check_affine(affine)
    return affine


def _read_list(path: Path, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(flat indices, the last column) of one sparse list; refuses indices that cannot be."""
    content = io.BytesIO(read_regular(path))
    try:
        table = np.loadtxt(content, delimiter=",", skiprows=1, usecols=range(columns), ndmin=2)
    except (ValueError, IndexError, UnicodeDecodeError):
        raise _corrupt("a line is not an index and a value") from None
    indices = table[:, 0]
    if ((indices != np.rint(indices)) | (indices < 0) | (indices >= SIZE**3)).any():
        raise _corrupt(f"an index lies outside 0 to {SIZE**3 - 1}")
    whole = indices.astype(np.int64)
    if np.bincount(whole, minlength=SIZE**3).max() > 1:
        raise _corrupt("an index occurs twice")
    return whole, table[:, -1].astype(np.float32)


def _corrupt(cause: str) -> CaseError:
    return refuse("CSV_CORRUPT", cause, "download the patient again")
