"""The one way to open masks, whatever their form, for training, guides, evaluation and pictures.

A label map (NIfTI, NRRD, MetaImage; names given, from labels.json beside it, or from the file itself), a
segmentation of 3D Slicer (.seg.nrrd), a folder with one volume per structure (as TotalSegmentator writes it),
a DICOM SEG or an RTSTRUCT. The DICOM ones lie on a scan's slices, so they need the scan. Where a level is
given, a volume may hold the probabilities of one structure instead (as infer.py --probabilities writes them):
the mask is where they reach it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ctseg.datasets import listing, metadata
from ctseg.datasets.case import ImageSource
from ctseg.errors import Finding, PreconditionError
from ctseg.geometry.boxes import Box, label_boxes
from ctseg.geometry.volume import Grid, Volume, tight
from ctseg.scans.dicom import dicom_files, dicom_seg, mask_objects, rtstruct
from ctseg.scans.formats import nrrd, slice_gaps, volume_files
from ctseg.scans.formats.checks import put_on
from ctseg.scans.formats.regular_files import at_file, located, refuse

MOST_STRUCTURES = 1024  # in one label map; an image has more values
FORMS = "a label map, a folder with one mask per structure, a DICOM SEG or an RTSTRUCT"
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Naming:
    """What the values of a label map mean. values: structure -> its values. ignore: that of voxels nobody
    looked at."""

    values: Mapping[str, tuple[int, ...]]
    ignore: int | None = None

    @classmethod
    def of(cls, names: Mapping[int, str], ignore: int | None = None) -> Naming:
        """The naming of a table value -> structure."""
        return cls({name: (value,) for value, name in names.items()}, ignore)

    @property
    def names(self) -> dict[int, str]:
        """Value -> structure, of the structures with one value."""
        return {values[0]: name for name, values in self.values.items() if len(values) == 1}

    @property
    def known(self) -> set[int]:
        """Every value that means something."""
        return {0, *(value for values in self.values.values() for value in values)} | (
            set() if self.ignore is None else {self.ignore}
        )


NO_NAMES = Naming({})


@dataclasses.dataclass(frozen=True)
class Masks:
    """Structures, each read when asked for, so that memory does not grow with their number.

    names: in their order. stored: one as it is stored, unless they are parts of a label map: labels, with
    naming. level: where probabilities end. findings: what is noticed on reading; grows with what is read.
    """

    names: tuple[str, ...]
    stored: Callable[[str], Volume] | None = None
    level: float | None = None
    labels: Volume | None = None
    naming: Naming = NO_NAMES
    findings: list[Finding] = dataclasses.field(default_factory=list)

    def values(self, name: str) -> Volume:
        """A structure as it is stored: a mask (bool), or probabilities, float32 from 0 to 1."""
        if self.stored is not None:
            return self.stored(name)
        labels = self.label_volume()
        return Volume(values_of(labels.array, self.naming.values[name]), labels.affine)

    def read(self, name: str) -> Volume:
        """The mask (bool) of a structure."""
        stored = self.values(name)
        return Volume(stored.array >= self.level, stored.affine) if stored.array.dtype.kind == "f" else stored

    def tight(self, name: str) -> Volume | None:
        """The mask (bool) of a structure inside its box, None when it is empty."""
        numbers = self.naming.values.get(name, ())
        if len(numbers) != 1 or self.boxes is None:
            return tight(self.read(name))
        if numbers[0] not in self.boxes:
            return None
        part = self.label_volume().crop_to(self.boxes[numbers[0]])
        return Volume(part.array == numbers[0], part.affine)

    @functools.cached_property
    def boxes(self) -> dict[int, Box] | None:
        """Positive value of a label map -> its box; None where a table of all values below would be long."""
        array = self.label_volume().array
        return label_boxes(array) if array.max() <= 65535 else None

    def label_volume(self) -> Volume:
        """The label map that these masks are parts of."""
        if self.labels is None:
            raise ValueError("these masks are no label map")
        return self.labels

    def on(self, grid: Grid, of: str, path: Path, name: str | None = None) -> np.ndarray:
        """A mask (bool), without a name the label map, on exactly `grid`, the grid of `of`; see
        `checks.put_on`."""
        volume = self.label_volume() if name is None else self.read(name)
        with at_file(path):
            placed, findings = put_on(volume, grid, of=of)
        note(self.findings, located(findings, path))
        return placed.array


def note(kept: list[Finding], found: Sequence[Finding]) -> None:
    """Add what was found, each once."""
    kept += (finding for finding in found if finding not in kept)


def open_masks(
    path: Path,
    scan: Volume | None = None,
    source: ImageSource | None = None,
    *,
    naming: Naming | None = None,
    level: float | None = None,
    fill_gaps: bool = False,
) -> Masks:
    """The masks at `path`. scan, source: the CT they belong to, needed for DICOM. naming: the names of a
    label map, which then holds no other value; without it those beside or in the file, and a number for each
    value nobody named. level: where probabilities become a mask; None refuses them. fill_gaps: interpolate
    between the slices of a DICOM SEG or RTSTRUCT of a thicker series.

    Raises PreconditionError for a path that holds none, and CaseError for a damaged file.
    """
    if path.is_dir():
        files = organ_files(path)
        if not files:
            raise PreconditionError("NO_DATA", "the folder holds no masks", f"give {FORMS}", file=path.name)
        return mask_files(files, level=level)
    if not path.is_file():
        raise PreconditionError("NO_DATA", f"'{path}' does not exist", "check the path", file=path.name)
    stem = volume_files.stem_of(path, detached=True)
    if naming is not None:
        return label_map(path, naming)
    if stem is None:
        return _dicom(path, scan, source, slice_gaps.FILL if fill_gaps else slice_gaps.KEEP)
    if volume_files.describes_segments(path):
        names, read, findings = nrrd.read_segments(path)
        return Masks(names, read, findings=findings)
    return _one_file(path, stem, level)


# ---- one file per structure -------------------------------------------------------------------------------


def organ_files(folder: Path) -> dict[str, Path]:
    """Structure -> file of a folder with one mask per structure, in it or in its `segmentations`; empty
    without any."""
    inner = listing.child(folder, "segmentations")
    found = listing.volumes(inner) if inner is not None and inner.is_dir() else {}
    return found or listing.volumes(folder)


def mask_files(files: Mapping[str, Path], *, level: float | None = None, strict: bool = False) -> Masks:
    """The masks of files of one structure each, name -> file. level: as for `open_masks`. strict: they hold 0
    and 1, not 0 and some other value.
    """
    findings: list[Finding] = []

    def values(name: str) -> Volume:
        path = files[name]
        volume_files.check_name(path, name)
        volume, noticed = volume_files.read_integers(path, or_probabilities=level is not None)
        note(findings, noticed)
        if volume.array.dtype.kind == "f":
            return volume
        low, high = int(volume.array.min()), int(volume.array.max())
        mask = volume.array > 0
        fix = "store 1 for the structure and 0 elsewhere"
        if strict and not {low, high} <= {0, 1}:
            raise refuse("LABEL_VALUES", f"found {{{low}, {high}}}, expected {{0, 1}}", fix, path)
        if low < 0 or (mask.any() and (volume.array[mask] != high).any()):
            cause = f"the mask of '{name}' holds several values, from {low} to {high}: "
            cause += "this looks like a label map or an image"
            raise refuse("LABEL_VALUES", cause, f"{fix}; a label map is given as the file itself", path)
        return Volume(mask, volume.affine)

    return Masks(tuple(files), values, level, findings=findings)


# ---- label maps -------------------------------------------------------------------------------------------


def label_map(path: Path, naming: Naming) -> Masks:
    """The masks of a label map (its values in the smallest unsigned type) that all have a name: CaseError
    LABEL_VALUES otherwise."""
    volume_files.check_names(path, naming.names)
    volume, findings = volume_files.read_integers(path)
    with at_file(path):
        check_values(volume.array, naming.known)
    smallest = np.min_scalar_type(int(volume.array.max())) if volume.array.min() >= 0 else np.int32
    labels = Volume(volume.array.astype(smallest), volume.affine)
    return Masks(tuple(naming.values), labels=labels, naming=naming, findings=findings)


def values_of(array: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Where a label map holds one of some values (bool)."""
    return array == values[0] if len(values) == 1 else np.isin(array, values)


def check_values(array: np.ndarray, known: set[int]) -> None:
    """Refuse integers that are not `known`: the one check of what a label map may hold."""
    low, high = int(array.min()), int(array.max())
    if low >= 0 and high < 1 << 16:
        seen = np.zeros(high + 1, dtype=bool)
        # in blocks: bincount takes 8 bytes a voxel
        for block in np.array_split(array.reshape(-1), array.size // _BLOCK + 1):
            seen |= np.bincount(block, minlength=high + 1) > 0
        found = set(np.flatnonzero(seen).tolist())
    else:
        found = {low, high} - known or set(np.unique(array).tolist())
    if not found - known:
        return
    cause = f"found {_shown(found)}, expected {_shown(known)}"
    if len(found) > MOST_STRUCTURES:
        cause = f"{len(found)} different values: this looks like an image, not a label map"
    fix = "give the label map that belongs to these names, or correct the names"
    raise refuse("LABEL_VALUES", cause, "store 1 for the structure" if found == {0, 255} else fix)


def _shown(values: set[int]) -> str:
    ordered = sorted(values)
    return "{" + ", ".join(map(str, ordered[:12])) + (", ..." if len(ordered) > 12 else "") + "}"


def _one_file(path: Path, stem: str, level: float | None) -> Masks:
    """A label map under the names at hand; or the probabilities of one structure, named after the file."""
    volume, findings = volume_files.read_integers(path, or_probabilities=level is not None)
    if volume.array.dtype.kind == "f":
        return Masks((stem,), lambda name: volume, level, findings=findings)
    low, values = int(volume.array.min()), [v for v in np.unique(volume.array).tolist() if v > 0]
    if low < 0 or len(values) >= MOST_STRUCTURES:
        found = "negative values" if low < 0 else f"{len(values)} different values"
        cause = f"it holds {found}: this looks like an image, not a label map"
        raise PreconditionError("LABEL_VALUES", cause, f"give {FORMS}", file=path.name)
    table = metadata.names_beside(path.parent)
    if table is not None:
        volume_files.check_names(path, table.values)
        named = dict(table.values)
    else:
        named = {value: name for value, name in volume_files.read_names(path).items() if value in values}
    naming = Naming.of(named | {value: _unnamed(value) for value in values if value not in named})
    return Masks(tuple(naming.values), labels=volume, naming=naming, findings=findings)


def _unnamed(value: int) -> str:
    return f"label {value}"


def named_like(masks: Masks, other: Masks) -> Masks:
    """The masks of a label map whose values nobody named, under the names that the same values have in
    another one; other masks as they are."""
    own = masks.naming.names
    if not own or not other.naming.names or any(name != _unnamed(value) for value, name in own.items()):
        return masks
    called = {other.naming.names.get(value, name): (value,) for value, name in own.items()}
    return dataclasses.replace(masks, names=tuple(called), naming=Naming(called))


# ---- DICOM ------------------------------------------------------------------------------------------------


def _dicom(path: Path, scan: Volume | None, source: ImageSource | None, gaps: str) -> Masks:
    if scan is None:
        raise scan_missing(path)
    modality = dicom_mask_kind(path)
    read_masks = dicom_seg.read_segments if modality == "SEG" else rtstruct.read_structures
    names = mask_objects.list_names(path, modality)
    # That the masks belong to the series is checked with the first of them: it reads every slice's header.
    unchecked = [source] if source is not None and source.format == "dicom" else []
    findings: list[Finding] = []

    def values(name: str) -> Volume:
        folder, uid = (unchecked[0].path, unchecked[0].series_uid) if unchecked else (None, None)
        found, noticed = read_masks(path, scan, folder, names=[name], series_uid=uid, gaps=gaps)
        unchecked.clear()
        note(findings, noticed)
        return Volume(found.get(name, np.zeros(scan.array.shape, dtype=bool)), scan.affine)

    return Masks(tuple(names.values()), values, findings=findings)


def scan_missing(path: Path, case: str = "-") -> PreconditionError:
    """The error of DICOM masks without the scan they lie on."""
    cause = "a DICOM SEG or RTSTRUCT lies on the slices of a scan"
    fix = "give the scan, or the folder of scans, with --ct"
    return PreconditionError("SCAN_MISSING", cause, fix, case=case, file=path.name)


def dicom_mask_kind(path: Path) -> str:
    """ "SEG" or "RTSTRUCT"; PreconditionError NO_DATA for any other file."""
    modality = dicom_files.modality_of(path)
    if modality not in ("SEG", "RTSTRUCT"):
        cause = f"it holds no masks (its modality is {modality or 'not told'})"
        raise PreconditionError("NO_DATA", cause, f"give {FORMS}", file=path.name)
    return modality
