"""Writing the synthetic cohort of a task to disk as raw scans, in two of the formats that people bring.

synthetic.json      written last: its presence says the cohort is complete
nifti/BDMAP_90000001/ct.nii.gz, segmentations/<name>.nii.gz     an empty mask = looked for, absent
dicom/Patient_03/im_1/*.dcm, im_3/seg.dcm     where the task draws some patients for DICOM: those with every
                                              target, as a SEG cannot say "absent"
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.anatomy.tasks import DEFAULT, VERSION, is_dicom, load_task
from ctseg.artifacts import read_json, sweep_temporaries, write_json
from ctseg.errors import IntegrityError, PreconditionError, UsageError
from ctseg.geometry.volume import Volume, canonical_axes
from ctseg.processes import ordered_map
from ctseg.scans.dicom import dicom_seg, dicom_series
from ctseg.scans.formats import nifti

MARKER = "synthetic.json"
SIZES = ("full", "tiny")
_OURS = re.compile(
    rf"{re.escape(MARKER)}|nifti(/BDMAP_.*)?|dicom(/Patient_.*)?"
)  # places in a cohort's folder


def write_cohort(
    folder: str | Path,
    *,
    task: str = DEFAULT,
    patients: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
    size: str = "full",
) -> None:
    """Write the cohort of a task into `folder`; returns at once when the same cohort stands there already.

    task: one of `tasks.TASKS`. patients: None for the task's own number. progress: called with (patients
    done, patients in all). size: "full", or "tiny" for quick tests. The same seed gives the same files,
    whatever `workers`. An older cohort, or that of another task, is replaced; raises PreconditionError when
    the folder holds anything that is no synthetic cohort.
    """
    module = load_task(task)
    patients = module.PATIENTS if patients is None else patients
    if patients < 1 or size not in SIZES:
        raise UsageError(
            "BAD_COHORT",
            f"patients={patients}, size={size!r}",
            f"at least one patient, and a size out of {', '.join(SIZES)}",
        )
    folder = Path(folder)
    wanted = {
        "task": task,
        "version": VERSION,
        "synthetic": True,
        "seed": seed,
        "size": size,
        "count": patients,
    }
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, IntegrityError):
        found = read_json(folder / MARKER)
        if isinstance(found, dict) and wanted.items() <= found.items():
            return
    _clear(folder)
    work = functools.partial(_write_patient, folder, task, seed, size)
    records = ordered_map(work, range(patients), workers=workers, progress=progress)
    write_json(folder / MARKER, {**wanted, "structures": list(module.TARGETS), "patients": records})


def draw_patient(
    seed: int, index: int, size: str = "full", *, task: str = DEFAULT
) -> tuple[Volume, Volume, dict[int, str]]:
    """(image in HU, label map, label id -> structure name) of one patient, without writing anything."""
    module = load_task(task)
    picture = module.draw(seed, index, size)
    return picture.image, picture.label, {number: name for name, number in module.IDS.items()}


def case_name(index: int, task: str = DEFAULT) -> str:
    """The folder of a patient below the cohort's folder."""
    return (
        f"dicom/Patient_{index + 1:02d}"
        if is_dicom(load_task(task), index)
        else f"nifti/BDMAP_{90000001 + index}"
    )


def _clear(folder: Path) -> None:
    """Remove an older or unfinished cohort; refuse to touch a folder with anything in it that is not ours."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(folder)
    places = (path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob("*/*")))
    strange = [place for place in places if not _OURS.fullmatch(place)]
    if strange:
        raise PreconditionError(
            "FOLDER_NOT_EMPTY",
            f"{min(strange)} is not part of a synthetic cohort",
            "choose an empty folder for it",
            file=folder.name,
        )
    (folder / MARKER).unlink(missing_ok=True)
    for part in ("nifti", "dicom"):
        shutil.rmtree(folder / part, ignore_errors=True)


def _write_patient(folder: Path, task: str, seed: int, size: str, index: int) -> dict[str, Any]:
    """Draw and write one patient; the record for the marker file."""
    module = load_task(task)
    picture = module.draw(seed, index, size)
    name, image, label = case_name(index, task), picture.image, picture.label
    place, counts = folder / name, np.bincount(label.array.ravel(), minlength=256)
    present = [structure for structure, number in module.IDS.items() if counts[number]]
    if is_dicom(module, index):  # AIDA CTPEL layout: a CT series and a DICOM SEG that lists what is present
        series = place / "im_1"
        dicom_series.write_series(
            series, image, patient_id=f"synthetic_{place.name}", series_number=1, seed=seed
        )
        names = {module.IDS[structure]: structure for structure in present}
        dicom_seg.write_segments(place / "im_3" / "seg.dcm", label, names, series)
    else:  # AbdomenAtlas layout: every structure has a mask file, an empty one where there is none of it
        for structure, number in module.IDS.items():
            mask = Volume((label.array == number).view(np.uint8), label.affine)
            nifti.write_label(place / "segmentations" / f"{structure}.nii.gz", mask)
        nifti.write_image(place / "ct.nii.gz", image)
    order, _ = canonical_axes(image.affine)  # as slice, row, column, however the file stores them
    return {
        "id": place.name,
        "folder": name,
        **picture.facts,
        "spacing_mm": [round(image.spacing_mm[k], 4) for k in order],
        "shape": [image.array.shape[k] for k in order],
        "present": present,
    }
