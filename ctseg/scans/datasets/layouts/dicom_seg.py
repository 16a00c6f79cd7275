"""DICOM: a CT series with a DICOM SEG or an RTSTRUCT per patient folder, as in AIDA CTPEL
(doi.org/10.23698/aida/ctpel).

    Patient_01/im_1/*.dcm       CT series
    Patient_01/im_3/*.dcm       DICOM SEG or RTSTRUCT; the structures' names stand in it
    Patient_02/...

Any folder names and depths will do: a SEG or RTSTRUCT belongs to the CT series that it refers to, or else to
the only CT of its patient folder. Structures it does not list were not looked for. Cases are grouped by the
patient id in the headers, which is not kept: a patient is named after the first case, in natural order.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg import structure_names
from ctseg.errors import CaseError, Finding
from ctseg.scans.datasets import gathering
from ctseg.scans.datasets.case import CaseRecord, DataSet, ImageSource, LabelSource
from ctseg.scans.datasets.gathering import Gathering
from ctseg.scans.formats import folder_walk

if TYPE_CHECKING:
    from ctseg.scans.dicom.dicom_files import SeriesInfo

SHAPE = "<patient>/.../ one CT series + one DICOM SEG or RTSTRUCT, as in Patient_01/im_1 and Patient_01/im_3"
LABELS = {"SEG": "dicom_seg", "RTSTRUCT": "rtstruct"}  # modality -> format of the label source
SCOUT_SLICES = 3  # a CT with no more slices is a scout, not a scan
_NOT_DICOM = (
    ".nii",
    ".gz",
    ".json",
    ".csv",
    ".txt",
    ".md",
    ".png",
    ".jpg",
    ".pdf",
    ".npz",
    ".npy",
    ".nrrd",
    ".mha",
    ".zip",
    ".py",
    ".html",
    ".xml",
)
_LOOKED_AT = 500  # files opened to tell whether a folder holds DICOM


def matches(root: Path) -> bool:
    """Some file has the DICOM mark, in whatever depth."""
    looked_at = 0
    for folder, _, files in folder_walk.walk(root):
        for name in files:
            path = folder / name
            if gathering.hidden(name) or name.casefold().endswith(_NOT_DICOM) or not path.is_file():
                continue
            if _has_mark(path):
                return True
            looked_at += 1
            if looked_at >= _LOOKED_AT:
                return False
    return False


def _has_mark(path: Path) -> bool:
    """Whether the bytes "DICM" stand behind the preamble."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read(root: Path, *, follow_links: bool = False) -> DataSet:
    """One case per pair of CT series and SEG; structures are the segment labels of all of them, sorted."""
    cases = Gathering("dicom_seg", root, follow_links)
    names: set[str] = set()
    for folder, series in _patient_folders(cases):
        names |= _read_patient(cases, folder, series)
    return _group_patients(_one_spelling(cases.data_set(sorted(names, key=gathering.natural_key))))


def _one_spelling(data: DataSet) -> DataSet:
    """The data set with one name per structure where cases spell it differently: the most frequent spelling,
    then the first in the alphabet.

    Nothing is joined that stands side by side in one case.
    """
    spellings: dict[tuple[str, str | None], Counter[str]] = {}
    apart: set[tuple[str, str | None]] = set()
    for case in data.cases:
        keys = Counter(structure_names.key_of(name) for name in case.annotated or ())
        apart |= {key for key, count in keys.items() if count > 1}
        for name in case.annotated or ():
            spellings.setdefault(structure_names.key_of(name), Counter())[name] += 1
    chosen = {
        name: min(found, key=lambda spelling: (-found[spelling], spelling))
        for key, found in spellings.items()
        if key not in apart
        for name in found
    }
    changed = {name: new for name, new in chosen.items() if name != new}
    if not changed:
        return data
    renamed = [_renamed(case, changed) for case in data.cases]
    told = "; ".join(f"{old} = {new}" for old, new in sorted(changed.items()))
    finding = Finding(
        "NOTE",
        "ONE_STRUCTURE",
        f"structures that are spelt differently count as one: {told}",
        "correct the names in the files if they are not",
    )
    structures = tuple(name for name in data.structures if name not in changed)
    return dataclasses.replace(
        data, cases=tuple(renamed), structures=structures, findings=(*data.findings, finding)
    )


def _renamed(case: CaseRecord, changed: dict[str, str]) -> CaseRecord:
    names = {changed.get(name, name): name for name in case.annotated or ()}
    if case.labels is None:
        return case
    labels = dataclasses.replace(case.labels, renamed={new: old for new, old in names.items() if new != old})
    return dataclasses.replace(case, labels=labels, annotated=frozenset(names))


def _patient_folders(cases: Gathering) -> list[tuple[Path, list[SeriesInfo]]]:
    """(folder, its series) per patient: the subfolders, or the root alone when no subfolder holds both a CT
    and labels but the root does (one patient, or scans and labels in separate trees).
    """
    found = []
    for folder in gathering.folders(cases.root):
        series = _series(cases, folder)
        if series:
            found.append((folder, series))
    loose = any(path.is_file() and _has_mark(path) for path in gathering.entries(cases.root))
    if loose or not any(_holds_both(series) for _, series in found):
        everything = _series(cases, cases.root)
        if loose or _holds_both(everything):
            return [(cases.root, everything)]
    return found


def _holds_both(series: list[SeriesInfo]) -> bool:
    modalities = {info.modality for info in series}
    return "CT" in modalities and not modalities.isdisjoint(LABELS)


def _series(cases: Gathering, folder: Path) -> list[SeriesInfo]:
    """The series below a folder; one that links lead out of the data folder for, and a folder that cannot be
    read, is refused.
    """
    from ctseg.scans.dicom import dicom_files

    problem = cases.problem(folder, folder=True)
    if problem is not None:
        cases.refuse(folder.name, problem, folder)
        return []
    try:
        found = dicom_files.find(folder)
        if found.damaged and not any(
            info.modality == "CT" for info in found.series
        ):  # else reading the case says it
            raise next(iter(found.damaged.values()))
    except CaseError as error:
        cases.refuse(folder.name, (error.code, error.cause, error.fix), Path(error.file))
        cases.account(folder)
        return []
    inside = []
    for info in found.series:
        cases.account(*info.files)
        problem = next((problem for path in info.files if (problem := cases.problem(path)) is not None), None)
        if problem is None:
            inside.append(info)
        else:
            way = [
                cases.root / part
                for part in (
                    *reversed(info.folder.relative_to(cases.root).parents),
                    info.folder.relative_to(cases.root),
                )
            ][1:]
            link = next((place for place in way if place.is_symlink()), info.folder)
            cases.refuse(
                "_".join(link.relative_to(cases.root).parts) or cases.root.absolute().name, problem, link
            )
    return inside


def _read_patient(cases: Gathering, folder: Path, series: list[SeriesInfo]) -> set[str]:
    """Offer the pairs of one patient folder; the names of their segments. Whatever is no pair is reported."""
    scans = _scans(series)
    segmentations: dict[SeriesInfo, list[LabelSource]] = {scan: [] for scan in scans}
    stray = []
    for source in (
        LabelSource(LABELS[info.modality], path)
        for info in series
        if info.modality in LABELS
        for path in info.files
    ):
        scan = _scan_of(source, scans)
        if scan is None:
            stray.append(_file(source))
        else:
            segmentations[scan].append(source)
    labelled = [scan for scan in scans if segmentations[scan]]
    names: set[str] = set()
    for scan, case_id in zip(labelled, _case_names(cases.root, folder, labelled)):
        names |= _offer(cases, case_id, scan, segmentations[scan])
    _report_rest(
        cases, folder, series, stray, [scan for scan in scans if not segmentations[scan]], bool(labelled)
    )
    return names


def _scans(series: list[SeriesInfo]) -> list[SeriesInfo]:
    """The CT volumes, without scouts where there are others and without copies of one. One whose slices are
    spread over subfolders counts as one, in their common folder.
    """
    from ctseg.scans.dicom import dicom_files

    joined = dicom_files.join_parts([info for info in series if info.modality == "CT"])
    merged = [
        info
        for index, info in enumerate(joined)
        if not any((info.uid, info.slices) == (other.uid, other.slices) for other in joined[:index])
    ]
    return [info for info in merged if info.n_slices > SCOUT_SLICES] or merged


def _file(source: LabelSource) -> Path:
    return Path(source.path or "")


def _scan_of(source: LabelSource, scans: list[SeriesInfo]) -> SeriesInfo | None:
    """The scan that labels were drawn on: the one they refer to, else the only one there is (reading the
    case then checks the frame of reference)."""
    from ctseg.scans.dicom import dicom_seg, rtstruct

    try:
        referenced = (dicom_seg if source.format == "dicom_seg" else rtstruct).referenced_series(
            _file(source)
        )
    except CaseError:  # reading names the fault, if there is a scan that the file can belong to
        referenced = frozenset()
    found = [scan for scan in scans if scan.uid in referenced] or scans
    return found[0] if len(found) == 1 else None


def _case_names(root: Path, folder: Path, scans: list[SeriesInfo]) -> list[str]:
    """The patient folder's name; of several scans with the name of each one's folder, then a number."""
    top = root.absolute().name if folder == root else folder.name
    if len(scans) == 1:
        return [top]
    inner = ["_".join(scan.folder.relative_to(folder).parts) for scan in scans]
    names = [
        text if folder == root and text else "_".join(part for part in (top, text) if part) for text in inner
    ]
    return [
        name if names.count(name) == 1 else f"{name}_{names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]


def _offer(cases: Gathering, case_id: str, scan: SeriesInfo, segmentations: list[LabelSource]) -> set[str]:
    """Offer one scan with its SEG or RTSTRUCT; the names of its segments."""
    from ctseg.scans.dicom.dicom_files import NO_PATIENT
    from ctseg.scans.dicom.dicom_seg import list_segments
    from ctseg.scans.dicom.rtstruct import list_structures

    if len(segmentations) > 1:
        cause = f"{len(segmentations)} SEG or RTSTRUCT files belong to one CT series"
        cases.refuse(case_id, ("SEG_AMBIGUOUS", cause, "keep the one that is meant"), _file(segmentations[1]))
        return set()
    labels = segmentations[0]
    try:
        names = set(
            (list_segments if labels.format == "dicom_seg" else list_structures)(_file(labels)).values()
        )
    except CaseError as error:
        cases.refuse(case_id, (error.code, error.cause, error.fix), _file(labels))
        return set()
    image = ImageSource("dicom", scan.folder, scan.uid)
    patient = None if scan.patient_key == NO_PATIENT else scan.patient_key
    cases.offer(case_id, image, labels, annotated=names, patient_id=patient)
    return names


def _report_rest(
    cases: Gathering,
    folder: Path,
    series: list[SeriesInfo],
    stray: list[Path],
    unlabelled: list[SeriesInfo],
    some_labelled: bool,
) -> None:
    """What of a patient folder became no case: errors when nothing did, else warnings and notes."""
    from ctseg.scans.dicom.dicom_files import word

    name = cases.root.absolute().name if folder == cases.root else folder.name
    if not some_labelled and stray:
        cases.refuse(
            name,
            (
                "SEG_WRONG_SERIES",
                "the SEG or RTSTRUCT does not refer to a CT series of this folder",
                "put its CT series beside it",
            ),
            stray[0],
        )
    elif not some_labelled and unlabelled:
        cases.refuse(
            name,
            ("LABEL_MISSING", "a CT series without SEG or RTSTRUCT", "add one, or move the folder away"),
            unlabelled[0].folder,
        )
    else:
        for path in stray:
            cases.warn(
                "SEG_WRONG_SERIES",
                "the SEG or RTSTRUCT does not refer to a CT series of this folder",
                "remove it, or add its CT series",
                path=path,
            )
        if unlabelled:
            cases.note(
                "EXTRA_SERIES",
                f"{len(unlabelled)} CT series without SEG or RTSTRUCT are not used",
                path=folder,
            )
    others = Counter(
        info.modality for info in series if info.modality != "CT" and info.modality not in LABELS
    )
    if others and len(series) == sum(others.values()):
        cases.refuse(
            name,
            (
                "NOT_CT",
                f"modality {', '.join(sorted(map(word, others)))} instead of CT",
                "add the CT series and its labels, or move the folder away",
            ),
            folder,
        )
    elif others:
        cases.note(
            "EXTRA_SERIES",
            f"{sum(others.values())} series that are neither CT nor labels are not used",
            path=folder,
        )


def _group_patients(data: DataSet) -> DataSet:
    """The data set with patients named after their first case (a hash of a short record number can be
    guessed), or with folders as patients where anonymisation gave all of them one patient id.
    """
    if len(data.cases) < 2 or len({case.patient_id for case in data.cases}) > 1:
        first: dict[str, str] = {}
        cases = tuple(
            dataclasses.replace(case, patient_id=first.setdefault(case.patient_id, case.case_id))
            for case in data.cases
        )
        return dataclasses.replace(data, cases=cases)
    cause = (
        f"all {len(data.cases)} cases carry one patient id, as after anonymisation; "
        "each case counts as a patient"
    )
    finding = Finding("WARN", "PATIENT_ID_SHARED", cause, "split by hand if they are scans of one person")
    cases = tuple(dataclasses.replace(case, patient_id=case.case_id) for case in data.cases)
    return dataclasses.replace(data, cases=cases, findings=(*data.findings, finding))
