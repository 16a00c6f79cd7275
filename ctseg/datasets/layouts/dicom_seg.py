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
import itertools
import re
from collections import Counter, defaultdict
from pathlib import Path

from ctseg import structure_names
from ctseg.datasets import listing
from ctseg.datasets.case import DataSet, ImageSource, LabelSource
from ctseg.datasets.gathering import Gathering
from ctseg.errors import CaseError, Finding
from ctseg.scans.dicom import dicom_files, mask_objects
from ctseg.scans.dicom.dicom_files import SeriesInfo
from ctseg.scans.formats import folder_walk

SHAPE = "<patient>/.../ one CT series + one DICOM SEG or RTSTRUCT, as in Patient_01/im_1 and Patient_01/im_3"
LABELS = {"SEG": "dicom_seg", "RTSTRUCT": "rtstruct"}  # modality -> format of the label source
SCOUT_SLICES = 3  # a CT with no more slices is a scout, not a scan
_NOT_DICOM = re.compile(
    r".*\.(nii|gz|json|csv|txt|md|png|jpg|pdf|npz|npy|nrrd|mha|zip|py|html|xml)", re.IGNORECASE
)
_LOOKED_AT = 500  # files opened to tell whether a folder holds DICOM


def matches(root: Path) -> bool:
    """Some file has the DICOM mark, in whatever depth."""
    files = (
        path
        for folder, _, names in folder_walk.walk(root)
        for path in (folder / name for name in names if not folder_walk.hidden(name))
        if not _NOT_DICOM.fullmatch(path.name) and path.is_file()
    )
    return any(map(_has_mark, itertools.islice(files, _LOOKED_AT)))


def _has_mark(path: Path) -> bool:
    """Whether the bytes "DICM" stand behind the preamble."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read(cases: Gathering) -> DataSet:
    """One case per pair of CT series and SEG; structures are the segment labels of all of them, sorted."""
    names: set[str] = set()
    for folder, series in _patient_folders(cases):
        names |= read_patient(cases, folder, series)
    return _group_patients(_one_spelling(cases.data_set(sorted(names, key=listing.natural_key))))


def _one_spelling(data: DataSet) -> DataSet:
    """The data set with one name per structure where cases spell it differently: the most frequent spelling,
    then the first in the alphabet.

    Nothing is joined that stands side by side in one case.
    """
    counts = Counter(name for case in data.cases for name in case.annotated or ())
    by_key = defaultdict(set)
    for name in counts:
        by_key[structure_names.key_of(name)].add(name)
    changed: dict[str, str] = {}
    for found in by_key.values():
        if not any(len(found & (case.annotated or set())) > 1 for case in data.cases):
            chosen = min(found, key=lambda name: (-counts[name], name))
            changed |= {name: chosen for name in found if name != chosen}
    if not changed:
        return data
    cases = []
    for case in data.cases:
        names = {changed.get(name, name): name for name in case.annotated or ()}
        if case.labels is not None:
            renamed = {new: old for new, old in names.items() if new != old}
            labels = dataclasses.replace(case.labels, renamed=renamed)
            case = dataclasses.replace(case, labels=labels, annotated=frozenset(names))
        cases.append(case)
    told = "; ".join(f"{old} = {new}" for old, new in sorted(changed.items()))
    cause = f"structures that are spelt differently count as one: {told}"
    fix = "correct the names in the files if they are not"
    finding = Finding("NOTE", "ONE_STRUCTURE", cause, fix)
    return dataclasses.replace(
        data,
        cases=tuple(cases),
        structures=tuple(name for name in data.structures if name not in changed),
        findings=(*data.findings, finding),
    )


def _patient_folders(cases: Gathering) -> list[tuple[Path, list[SeriesInfo]]]:
    """(folder, its series) per patient: the subfolders, or the root alone when no subfolder holds both a CT
    and labels but the root does (one patient, or scans and labels in separate trees).
    """
    found = [(folder, series) for folder in listing.folders(cases.root) if (series := _series(cases, folder))]
    loose = any(path.is_file() and _has_mark(path) for path in listing.entries(cases.root))
    if loose or not any(_holds_both(series) for _, series in found):
        everything = _series(cases, cases.root)
        if loose or _holds_both(everything):
            return [(cases.root, everything)]
    return found


def _holds_both(series: list[SeriesInfo]) -> bool:
    modalities = {info.modality for info in series}
    return "CT" in modalities and not modalities.isdisjoint(LABELS)


def _series(cases: Gathering, folder: Path) -> list[SeriesInfo]:
    """The series below a folder.

    One that links lead out of the data folder for, and a folder that cannot be read, is refused.
    """
    problem = cases.problem(folder, folder=True)
    if problem is not None:
        cases.refuse(folder.name, problem, folder)
        return []
    try:
        found = dicom_files.find(folder)
        if found.damaged and not any(info.modality == "CT" for info in found.series):
            raise next(iter(found.damaged.values()))  # beside a CT, reading the case says it
    except CaseError as error:
        cases.refuse(folder.name, (error.code, error.cause, error.fix), Path(error.file))
        cases.account(folder)
        return []
    inside = []
    for info in found.series:
        cases.account(*info.files)
        problem = next(filter(None, map(cases.problem, info.files)), None)
        if problem is None:
            inside.append(info)
            continue
        way = [place for place in (info.folder, *info.folder.parents) if cases.root in place.parents]
        link = next((place for place in reversed(way) if place.is_symlink()), info.folder)
        name = "_".join(link.relative_to(cases.root).parts) or cases.root.absolute().name
        cases.refuse(name, problem, link)
    return inside


def read_patient(cases: Gathering, folder: Path, series: list[SeriesInfo]) -> set[str]:
    """Offer the pairs of one patient folder; the names of their segments. Whatever is no pair is reported: as
    an error where nothing became a case.
    """
    scans = ct_volumes(series)
    drawn: dict[SeriesInfo, list[tuple[str, Path]]] = {scan: [] for scan in scans}
    stray: list[Path] = []
    for modality, path in ((info.modality, path) for info in series for path in info.files):
        if modality in LABELS:
            scan = scan_of(modality, path, scans)
            if scan is None:
                stray.append(path)
            else:
                drawn[scan].append((modality, path))
    labelled = [scan for scan in scans if drawn[scan]]
    names: set[str] = set()
    for scan, case_id in zip(labelled, case_names(cases.root, folder, labelled)):
        names |= offer_scan(cases, case_id, scan, drawn[scan])
    name = cases.root.absolute().name if folder == cases.root else folder.name
    unlabelled = [scan.folder for scan in scans if not drawn[scan]]
    wrong = "the SEG or RTSTRUCT does not refer to a CT series of this folder"
    if not labelled and stray:
        cases.refuse(name, ("SEG_WRONG_SERIES", wrong, "put its CT series beside it"), stray[0])
    elif not labelled and unlabelled:
        fix = "add one, or move the folder away"
        cases.refuse(name, ("LABEL_MISSING", "a CT series without SEG or RTSTRUCT", fix), unlabelled[0])
    else:
        for path in stray:
            cases.tell("SEG_WRONG_SERIES", wrong, "remove it, or add its CT series", path=path)
        if unlabelled:
            told = f"{len(unlabelled)} CT series without SEG or RTSTRUCT are not used"
            cases.tell("EXTRA_SERIES", told, path=unlabelled[0])
    others = [info.modality for info in series if info.modality not in ("CT", *LABELS)]
    if others and len(others) == len(series):
        cause = f"modality {', '.join(sorted(map(dicom_files.word, set(others))))} instead of CT"
        fix = "add the CT series and its labels, or move the folder away"
        cases.refuse(name, ("NOT_CT", cause, fix), folder)
    elif others:
        told = f"{len(others)} series that are neither CT nor labels are not used"
        cases.tell("EXTRA_SERIES", told, path=folder)
    return names


def ct_volumes(series: list[SeriesInfo]) -> list[SeriesInfo]:
    """The CT volumes, without scouts where there are others and without copies of one.

    One whose slices are spread over subfolders counts as one, in their common folder.
    """
    joined = dicom_files.join_parts([info for info in series if info.modality == "CT"])
    merged = list({(info.uid, info.slices): info for info in reversed(joined)}.values())[::-1]
    return [info for info in merged if info.n_slices > SCOUT_SLICES] or merged


def scan_of(modality: str, path: Path, scans: list[SeriesInfo]) -> SeriesInfo | None:
    """The scan that labels were drawn on: the one they refer to, else the only one there is.

    Reading the case then checks the frame of reference.
    """
    try:
        referenced = mask_objects.referenced_series(path, modality)
    except CaseError:  # reading names the fault, if there is a scan that the file can belong to
        referenced = frozenset()
    found = [scan for scan in scans if scan.uid in referenced] or scans
    return found[0] if len(found) == 1 else None


def case_names(root: Path, folder: Path, scans: list[SeriesInfo]) -> list[str]:
    """The patient folder's name; of several scans with the name of each one's folder, then a number."""
    top = root.absolute().name if folder == root else folder.name
    if len(scans) == 1:
        return [top]
    inner = ["_".join(scan.folder.relative_to(folder).parts) for scan in scans]
    names = [text if folder == root and text else "_".join(filter(None, (top, text))) for text in inner]
    return [
        name if names.count(name) == 1 else f"{name}_{names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]


def offer_scan(cases: Gathering, case_id: str, scan: SeriesInfo, drawn: list[tuple[str, Path]]) -> set[str]:
    """Offer one scan with its SEG or RTSTRUCT; the names of its segments. drawn: (modality, file)."""
    (modality, path), *others = drawn
    if others:
        cause = f"{len(drawn)} SEG or RTSTRUCT files belong to one CT series"
        cases.refuse(case_id, ("SEG_AMBIGUOUS", cause, "keep the one that is meant"), drawn[1][1])
        return set()
    try:
        names = set(mask_objects.list_names(path, modality).values())
    except CaseError as error:
        cases.refuse(case_id, (error.code, error.cause, error.fix), path)
        return set()
    image, labels = ImageSource("dicom", scan.folder, scan.uid), LabelSource(LABELS[modality], path)
    patient = None if scan.patient_key == dicom_files.NO_PATIENT else scan.patient_key
    cases.offer(case_id, image, labels, annotated=names, patient_id=patient)
    return names


def _group_patients(data: DataSet) -> DataSet:
    """The data set with patients named after their first case: a hash of a short record number can be
    guessed.

    Folders are the patients where anonymisation gave all of them one patient id.
    """
    first: dict[str, str] = {}
    for case in data.cases:
        first.setdefault(case.patient_id, case.case_id)
    findings = data.findings
    alike = len(first) < 2 <= len(data.cases)
    if alike:
        cause = (
            f"all {len(data.cases)} cases carry one patient id, as after anonymisation; "
            "each case counts as a patient"
        )
        fix = "split by hand if they are scans of one person"
        findings = (*findings, Finding("WARN", "PATIENT_ID_SHARED", cause, fix))
    cases = (
        dataclasses.replace(case, patient_id=case.case_id if alike else first[case.patient_id])
        for case in data.cases
    )
    return dataclasses.replace(data, cases=tuple(cases), findings=findings)
