"""The records that every data-set layout is turned into, and the three label states.

present: annotated and there. absent: annotated and none there. unlabelled: nobody looked, so neither loss nor
metric may say anything about it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from ctseg.errors import CaseError, Finding
from ctseg.geometry.volume import Volume

PRESENT, ABSENT, UNLABELLED = "present", "absent", "unlabelled"
IGNORED = 255  # in label arrays and label tensors: a voxel nobody looked at, left out of training and scores


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Where the CT lies. format: "nifti", "nrrd" or "metaimage" (path = file), "dicom" (folder of one series,
    or a folder that holds it), or "openkbp_csv" (patient folder).
    """

    format: str
    path: Path
    series_uid: str | None = None  # dicom: which series, when the folder holds several
    assume_hu: bool = False  # dicom: pixels without rescale tags count as HU


@dataclasses.dataclass(frozen=True)
class LabelSource:
    """Where the labels lie and how names are attached to them.

    format "map": one volume file of integers (NIfTI, NRRD, MetaImage), `path`, names in `values` (stored
    value -> structure name; 0 is background). format "masks": one volume file per structure, `masks` (name ->
    file). format "dicom_seg", "rtstruct": a DICOM SEG or RTSTRUCT file, `path`; names stand in the file.
    format "openkbp_csv": patient folder, `path`.
    """

    format: str
    path: Path | None = None
    values: dict[int, str] = dataclasses.field(default_factory=dict)
    masks: dict[str, Path] = dataclasses.field(default_factory=dict)
    ignore_value: int | None = None  # nnU-Net's "ignore" label: voxels nobody looked at
    # structure -> what a DICOM file calls it, where that differs
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)
    fractional_threshold: float | None = (
        None  # dicom_seg: from which share of its largest value a fractional one is a mask; None: refused
    )
    # dicom_seg, rtstruct: slices between those of a thicker series are interpolated; else it is left out
    fill_gaps: bool = False


class LabelTable(NamedTuple):
    """What the values of label maps mean. values: stored value -> structure name. ignore_value: nnU-Net's
    "ignore".
    """

    values: dict[int, str]
    ignore_value: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The structures, in the order of their values."""
        return tuple(self.values.values())


@dataclasses.dataclass(frozen=True)
class CaseRecord:
    """One scan with its labels, before anything is opened.

    annotated: names of the structures somebody looked for in this case, as the data set itself says; None =
    it does not say, so every structure the label source can name, and a label map without any is a fault.
    split: "train", "val", "test" when the data set fixes it, else None.
    """

    case_id: str
    patient_id: str
    image: ImageSource
    labels: LabelSource | None
    annotated: frozenset[str] | None = None
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A folder as its adapter understood it. structures: names in the order of the data set's own metadata.

    left_right_pairs is not stored: names and the setting data.pairs decide (see `ctseg.laterality`).
    """

    layout: str
    root: Path
    structures: tuple[str, ...]
    cases: tuple[CaseRecord, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def synthetic(self) -> bool:
        """Whether the pipeline drew it itself."""
        return self.layout == "synthetic"


@dataclasses.dataclass(frozen=True)
class LoadedCase:
    """A case read and checked: image in HU (float32), label on the image's grid (uint8, 0 background,
    i+1 = i-th of the requested structures, IGNORED where nobody looked), the state of each structure, what
    was noticed, and the label of the guide organs where they stand in the labels too."""

    record: CaseRecord
    image: Volume
    label: Volume | None
    states: dict[str, str]
    findings: tuple[Finding, ...]
    organs: Volume | None = None

    def annotated(self) -> Volume:
        """The label of a case in which somebody looked for a structure. CaseError LABEL_MISSING otherwise."""
        if self.label is None or set(self.states.values()) == {UNLABELLED}:
            cause = "none of the wanted structures is annotated"
            fix = "add labels, remove the case, or choose other --structures"
            raise CaseError("LABEL_MISSING", cause, fix, case=self.record.case_id)
        return self.label
