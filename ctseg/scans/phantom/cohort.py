"""Writing the synthetic cohort to disk as raw scans, in two of the formats that people bring.

    synthetic.json                                            written last: its presence says the cohort is complete
    nifti/BDMAP_90000001/ct.nii.gz, segmentations/<name>.nii.gz    an empty mask = looked for, absent
    dicom/Patient_03/im_1/*.dcm, im_3/seg.dcm                 men only: a SEG cannot say that an organ is absent
"""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.artifacts import read_json, sweep_temporaries, write_json
from ctseg.errors import IntegrityError, PreconditionError, UsageError
from ctseg.scans import dicom_seg, dicom_series, nifti
from ctseg.scans.phantom.drawing import Drawing, draw, is_dicom
from ctseg.scans.phantom.labels import IDS, TARGETS
from ctseg.scans.volume import Volume

MARKER = "synthetic.json"
VERSION = 1  # raised whenever the same seed draws other pictures
SIZES = ("full", "tiny")
_PARTS = {"nifti": "BDMAP_", "dicom": "Patient_"}


def write_cohort(folder: str | Path, *, patients: int = 24, seed: int = 0, progress: Callable[[int, int], None] | None = None,
                 workers: int = 1, size: str = "full") -> None:
    """Write the cohort into `folder`; returns at once when the same cohort stands there already.

    progress: called with (patients done, patients in all). size: "full", or "tiny" for quick tests. The same seed
    gives the same files, whatever `workers`. Raises PreconditionError when the folder holds anything else.
    """
    if patients < 1 or size not in SIZES:
        raise UsageError("BAD_COHORT", f"patients={patients}, size={size!r}", f"at least one patient, and a size out of {', '.join(SIZES)}")
    folder = Path(folder)
    wanted = {"version": VERSION, "synthetic": True, "seed": seed, "size": size, "count": patients}
    if _stands_already(folder, wanted):
        return
    _clear(folder)
    report = progress or (lambda done, total: None)
    report(0, patients)
    records: dict[int, dict[str, Any]] = {}
    for index, record in _written(folder, seed, patients, size, workers):
        records[index] = record
        report(len(records), patients)
    write_json(folder / MARKER, {**wanted, "structures": list(TARGETS), "patients": [records[index] for index in range(patients)]})


def draw_patient(seed: int, index: int, size: str = "full") -> tuple[Volume, Volume, dict[int, str]]:
    """(image in HU, label map, label id -> structure name) of one patient, without writing anything."""
    drawing = draw(seed, index, size)
    return drawing.image, drawing.label, {number: name for name, number in IDS.items()}


def case_name(index: int) -> str:
    """The folder of a patient below the cohort's folder."""
    return f"dicom/Patient_{index + 1:02d}" if is_dicom(index) else f"nifti/BDMAP_{90000001 + index}"


def _stands_already(folder: Path, wanted: dict[str, Any]) -> bool:
    if not (folder / MARKER).is_file():
        return False
    try:
        found = read_json(folder / MARKER)
    except IntegrityError:
        return False
    return isinstance(found, dict) and all(found.get(key) == value for key, value in wanted.items())


def _clear(folder: Path) -> None:
    """Remove an older or unfinished cohort; refuse to touch a folder with anything in it that is not ours."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(folder)
    for part, prefix in _PARTS.items():
        if (folder / part).is_dir():
            strange = sorted(entry.name for entry in (folder / part).iterdir() if not entry.name.startswith(prefix))
            if strange:
                raise _not_ours(folder, f"{part}/{strange[0]}")
    strange = sorted(entry.name for entry in folder.iterdir() if entry.name not in {*_PARTS, MARKER})
    if strange:
        raise _not_ours(folder, strange[0])
    (folder / MARKER).unlink(missing_ok=True)
    for part in _PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)


def _not_ours(folder: Path, name: str) -> PreconditionError:
    return PreconditionError("FOLDER_NOT_EMPTY", f"{name} is not part of a synthetic cohort", "choose an empty folder for it", file=folder.name)


def _written(folder: Path, seed: int, patients: int, size: str, workers: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Write all patients and yield (number, record) as they are done. Workers are spawned: they inherit no threads."""
    if workers <= 1 or patients == 1:
        for index in range(patients):
            yield index, _write_patient(folder, seed, index, size)
        return
    with ProcessPoolExecutor(min(workers, patients), mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_write_patient, folder, seed, index, size): index for index in range(patients)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _write_patient(folder: Path, seed: int, index: int, size: str) -> dict[str, Any]:
    """Draw and write one patient; the record for the marker file."""
    drawing = draw(seed, index, size)
    place = folder / case_name(index)
    (_write_dicom if is_dicom(index) else _write_nifti)(place, drawing, seed)
    patient, protocol = drawing.patient, drawing.protocol
    return {
        "id": place.name, "folder": case_name(index), "sex": patient.sex, "metal": patient.metal_side != 0, "contrast": patient.contrast,
        "rectum": patient.rectum_content, "spacing_mm": [round(s, 4) for s in protocol.spacing_mm], "shape": list(protocol.shape),
        "present": _present(drawing),
    }


def _present(drawing: Drawing) -> list[str]:
    counts = np.bincount(drawing.label.array.ravel(), minlength=len(IDS) + 1)
    return [name for name, number in IDS.items() if counts[number]]


def _write_nifti(place: Path, drawing: Drawing, seed: int) -> None:
    """AbdomenAtlas layout; every structure has a mask file, an empty one where the patient or the scan has none."""
    for name, number in IDS.items():
        mask = (drawing.label.array == number).view(np.uint8)
        nifti.write_label(place / "segmentations" / f"{name}.nii.gz", Volume(mask, drawing.label.affine))
    nifti.write_image(place / "ct.nii.gz", drawing.image)


def _write_dicom(place: Path, drawing: Drawing, seed: int) -> None:
    """AIDA CTPEL layout: a CT series and a DICOM SEG that lists the structures present."""
    dicom_series.write_series(place / "im_1", drawing.image, patient_id=f"synthetic_{place.name}", series_number=1, seed=seed)
    names = {IDS[name]: name for name in _present(drawing)}
    dicom_seg.write_segments(place / "im_3" / "seg.dcm", drawing.label, names, place / "im_1")
