"""Where the organs come from that guide a network, and the file that keeps their distance maps.

Three sources: other structures of the case's own reference labels (`labels`), masks that another model wrote
(`folder`), or the installed TotalSegmentator (`totalsegmentator`; Wasserthal et al. 2023, doi
10.1148/ryai.230024), called as a program of its own. The one thing a guide must never be is the answer: see
`_refuse_leaks`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ctseg.artifacts import canonical_hash, file_hash, read_arrays, safe_name, write_arrays, write_text
from ctseg.datasets import listing, metadata
from ctseg.datasets.masks import Naming, label_map, mask_files, organ_files
from ctseg.errors import CaseError, Finding, PreconditionError, UsageError, at_case
from ctseg.geometry.boxes import make_box
from ctseg.geometry.distance_maps import organ_masks
from ctseg.geometry.grids import Index
from ctseg.geometry.volume import Grid, Volume, tight
from ctseg.manifest import to_record
from ctseg.scans.formats import nifti

LEAK_DICE = 0.995  # a mask this equal to the reference is the reference, saved or resampled once more
INSTALL = "pip install TotalSegmentator"
TIMEOUT_S = 3600.0  # one scan on a slow processor takes minutes


@dataclasses.dataclass(frozen=True)
class GuideSource:
    """What guides: `organs` by name (they become the channels in this order) and where their masks come from.

    kind: "labels", "folder" or "totalsegmentator". folder: for `folder` <folder>/<case id>/<organ>.nii.gz
    (also below `segmentations/`), or <folder>/<case id>.nii.gz with the names in <folder>/labels.json; for
    `totalsegmentator` where its masks are kept between runs.
    """

    kind: str
    organs: tuple[str, ...]
    folder: Path = Path()

    @property
    def provenance(self) -> str:
        """For the column `guide_source` of the results: "ground_truth" or "predicted"."""
        return "ground_truth" if self.kind == "labels" else "predicted"

    def digest(self, case_id: str) -> str:
        """A hash of what decides the guide of a case, so that changed masks are noticed. The voxels of the
        scan and its labels are not in it: whoever keeps guides knows them already."""
        found = _find(self.folder, case_id) if self.kind == "folder" else None
        files: list[Path] = []
        if found is not None and found.is_dir():
            files = [path for path in sorted(found.rglob("*")) if listing.volume_stem(path) is not None]
        elif found is not None:
            files = [path for path in (found, found.with_name("labels.json")) if path.exists()]
        hashes = [[path.relative_to(self.folder).as_posix(), file_hash(path)] for path in files]
        return canonical_hash([self.kind, self.organs, *hashes])


@dataclasses.dataclass(frozen=True)
class CaseGuide:
    """The guide organs of one case. masks: for each organ a uint8 0/1 array cut to the organ, with its place
    in the patient (organs may overlap), None where the scan does not show it or nobody looked."""

    organs: tuple[str, ...]
    masks: tuple[Volume | None, ...]
    source: str


def check_source(source: GuideSource, structures: Sequence[str], targets: Sequence[str]) -> None:
    """Refuse settings that cannot work, before any scan is opened (UsageError).

    structures: all names in the reference labels; targets: those that the network learns.
    """
    organs, labels = source.organs, source.kind == "labels"
    unsafe = [organ for organ in organs if listing.unsafe_name(organ)]
    unknown = [organ for organ in organs if labels and organ not in structures]
    leaks = [organ for organ in organs if labels and organ in targets]
    code = "BAD_VALUE"
    if not organs or len(set(organs)) < len(organs):
        cause, fix = "the list of guide organs is empty or names one twice", "name each guide organ once"
    elif unsafe:
        cause, fix = f"'{unsafe[0]}' is no name of an organ", "use names as TotalSegmentator writes them"
    elif unknown:
        cause = f"the labels have no structure {unknown[0]}"
        fix = f"choose among {', '.join(structures)}"
    elif leaks:
        code, cause = "GUIDE_LEAK", f"{leaks[0]} is a target: its own reference labels would be the guide"
        fix = "name other structures, or use masks of a separate model"
    else:
        return
    raise UsageError(code, cause, fix)


def load_guide(
    source: GuideSource,
    case_id: str,
    scan: Volume,
    label: Volume | None,
    structures: Sequence[str],
    targets: Sequence[str],
) -> tuple[CaseGuide, list[Finding]]:
    """The guide organs of one case, and what was noticed.

    scan: the CT in HU. label: reference labels on the scan's grid (ids 1, 2, ... as in `structures`), None
    when there are none (prediction). An organ without mask or without a voxel is allowed and has no presence.
    CaseError when the case has no guide at all or its grid differs; PreconditionError GUIDE_LEAK when the
    guide is the answer.
    """
    check_source(source, structures, targets)
    findings: list[Finding] = []
    with at_case(case_id):
        if source.kind == "labels":
            if label is None:
                cause = "the guide organs are to come from reference labels and this case has none"
                fix = "give a folder of predicted masks, or use totalsegmentator"
                raise CaseError("GUIDE_MISSING", cause, fix)
            masks = organ_masks(label, [structures.index(organ) + 1 for organ in source.organs])
        else:
            name = case_id
            if source.kind == "totalsegmentator":
                name = run_totalsegmentator(source, case_id, scan).name
            masks, noticed = _from_folder(source, name, scan.grid)
            findings = [finding.at(case_id) for finding in noticed if finding.severity == "WARN"]
            if label is not None:
                numbers = {structures.index(one) + 1: one for one in targets if one in structures}
                _refuse_leaks(masks, source.organs, label, numbers)
    empty = [organ for organ, mask in zip(source.organs, masks) if mask is None]
    if empty:
        cause = f"no voxel of {', '.join(empty)}: not there for the network"
        findings.append(Finding("NOTE", "GUIDE_ABSENT", cause, case=case_id))
    return CaseGuide(source.organs, tuple(masks), source.provenance), findings


# ---- masks of another model -----------------------------------------------------------------------------


def _find(root: Path, name: str) -> Path | None:
    """The folder of masks or the label map of a case; `safe_name` serves names with odd characters."""
    for candidate in dict.fromkeys((name, safe_name(name))):
        if listing.unsafe_name(candidate):
            continue
        if (root / candidate).is_dir():
            return root / candidate
        path = listing.volume(root, listing.folded(candidate))
        if path is not None:
            return path
    return None


def _from_folder(source: GuideSource, name: str, scan: Grid) -> tuple[list[Volume | None], list[Finding]]:
    """Masks found by the case's name: one file per organ, else one map. And what was noticed about them."""
    root, organs = source.folder, source.organs
    found = _find(root, name)
    if found is None:
        cause = f"{root.name} holds neither a folder nor a label map for this case"
        raise CaseError(
            "GUIDE_MISSING", cause, f"put the masks into {root.name}/{safe_name(name)}/", file=root
        )
    if found.is_dir():
        files = organ_files(found)
        opened, masks = mask_files(files, strict=True), []
        for organ in organs:
            part = None
            if organ in files:
                part = tight(Volume(opened.on(scan, "scan", files[organ], organ), scan.affine))
            masks.append(None if part is None else Volume(part.array.astype(np.uint8), part.affine))
        missing = [organ for organ in organs if organ not in files]
        if len(missing) == len(organs):
            cause = f"none of the guide organs has a mask ({', '.join(organs)})"
            raise CaseError("GUIDE_MISSING", cause, "name the files as the organs", file=found)
        if missing:
            cause = f"no mask file of {', '.join(missing)}"
            fix = "restore the masks, or leave the organs out of the guide"
            opened.findings.append(Finding("WARN", "GUIDE_MISSING", cause, fix, file=str(found)))
        return masks, opened.findings
    table = metadata.names_beside(found.parent)
    if table is None:
        fix = f"write labels.json beside them, for example {metadata.NAMES_EXAMPLE}"
        raise PreconditionError(
            "LABEL_NAMES_MISSING", "the values of the guide maps have no names", fix, file=found
        )
    values = {name: value for value, name in table.values.items()}
    unknown = [organ for organ in organs if organ not in values]
    if unknown:
        cause, fix = f"labels.json names no {unknown[0]}", f"choose among {', '.join(values)}"
        raise PreconditionError("GUIDE_MISSING", cause, fix, file="labels.json")
    opened = label_map(found, Naming.of(*table))
    label = Volume(opened.on(scan, "scan", found), scan.affine)
    return organ_masks(label, [values[organ] for organ in organs]), opened.findings


def _refuse_leaks(
    masks: Sequence[Volume | None], organs: Sequence[str], label: Volume, targets: dict[int, str]
) -> None:
    """PreconditionError GUIDE_LEAK when a mask equals a target's reference: the network would only copy its
    input.

    targets: label id -> name. Overlap is counted inside the organ's box, where the masks share the scan's
    voxels.
    """
    volumes = np.bincount(label.array.ravel(), minlength=max(targets, default=0) + 1)
    for organ, mask in zip(organs, masks):
        if mask is None:
            continue
        offset = np.linalg.inv(label.affine) @ mask.affine[:, 3]
        first = np.rint(offset[:3]).astype(int)
        box = make_box(first, first + mask.array.shape)
        common = np.bincount(label.array[box][mask.array > 0], minlength=len(volumes))
        for number, target in targets.items():
            total = int(mask.array.sum(dtype=np.int64)) + int(volumes[number])
            if volumes[number] and 2 * int(common[number]) > LEAK_DICE * total:
                dice = 2 * int(common[number]) / total
                cause = f"the guide mask of {organ} is the reference mask of the target {target} "
                cause += f"(Dice {dice:.4f})"
                fix = "guide with masks of a separate model, or with other structures"
                raise PreconditionError("GUIDE_LEAK", cause, fix)


# ---- TotalSegmentator -----------------------------------------------------------------------------------


def totalsegmentator_command() -> list[str]:
    """How to call it: its program, else its package. PreconditionError GUIDE_TOOL_MISSING when it is not
    installed.
    """
    found = shutil.which("TotalSegmentator")
    if found is None and importlib.util.find_spec("totalsegmentator") is None:
        fix = f"run `{INSTALL}`, or give a folder of masks as the guide source"
        raise PreconditionError("GUIDE_TOOL_MISSING", "TotalSegmentator is not installed", fix)
    return [found] if found else [sys.executable, "-m", "totalsegmentator.bin.TotalSegmentator"]


def run_totalsegmentator(source: GuideSource, case_id: str, scan: Volume) -> Path:
    """The folder with TotalSegmentator's masks of one scan, made now unless an earlier run kept it.

    The folder's name holds a hash of voxels and options, so another scan of the same name is not mistaken for
    it. It appears complete or not at all; what the program said stands beside it in a .log. On its first call
    the program fetches its weights from the network. Memory: several GB, so not in many processes at once.
    """
    cache = source.folder
    digest = hashlib.sha256(np.ascontiguousarray(scan.array).data)
    digest.update(canonical_hash([to_record(scan.grid), sorted(source.organs)]).encode())
    result = cache / f"{safe_name(case_id)}-{digest.hexdigest()[:16]}"
    if result.is_dir():
        return result
    program = totalsegmentator_command()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".work-") as temporary:
        image, masks = Path(temporary) / "ct.nii.gz", Path(temporary) / "masks"
        nifti.write_image(image, scan)
        masks.mkdir()
        # Its 3 mm model, whose distances are as good a guide; "gpu" falls back to the processor.
        options = ["--device", "gpu", "--fast", "--roi_subset", *source.organs]
        try:
            done = subprocess.run(
                [*program, "-i", str(image), "-o", str(masks), *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            cause = f"TotalSegmentator had not ended after {TIMEOUT_S:g} s"
            raise CaseError("GUIDE_FAILED", cause, "run it by itself and give its folder of masks") from None
        except OSError as error:
            cause = f"TotalSegmentator does not start ({error.strerror})"
            raise PreconditionError("GUIDE_TOOL_MISSING", cause, f"run `{INSTALL}` again") from None
        log = result.with_name(result.name + ".log")
        write_text(log, done.stdout.decode("utf-8", "replace"))
        count = len(listing.volumes(masks))
        if done.returncode or not count:
            cause = f"TotalSegmentator ended with code {done.returncode} and {count} masks"
            raise CaseError("GUIDE_FAILED", cause, f"see {log.name}", file=log)
        masks.replace(result)
    return result


# ---- the file -------------------------------------------------------------------------------------------


def write_guide(path: str | Path, distance_mm: np.ndarray, presence: np.ndarray, stride: Index) -> str:
    """Write the coarse maps of one case and return the sha256 of the file (the same content gives the same
    bytes).

    distance_mm: (K, d, h, w) float16, finite. presence: (K,) bool. stride: canvas voxels per guide voxel.
    Stored, not compressed, and without pickle, as the tensors are. ValueError for anything else.
    """
    sound = distance_mm.ndim == 4 and presence.shape == distance_mm.shape[:1] and min(stride) >= 1
    if not (sound and distance_mm.dtype == np.float16 and presence.dtype == bool):
        raise ValueError(f"no guide: {distance_mm.dtype} {distance_mm.shape}, {presence.shape}, {stride}")
    if not np.isfinite(distance_mm).all():
        raise ValueError("a distance is NaN or infinite")
    steps = np.array(stride, dtype=np.int64)
    return write_arrays(path, {"distance_mm": distance_mm, "presence": presence, "stride": steps})


def read_guide(path: str | Path, *, sha256: str | None = None) -> tuple[np.ndarray, np.ndarray, Index]:
    """(distance_mm (K, d, h, w) float16, presence (K,) bool, stride) of one case. Checks the hash when one is
    given."""
    arrays = read_arrays(path, ("distance_mm", "presence", "stride"), sha256=sha256)
    d, h, w = arrays["stride"].tolist()
    return arrays["distance_mm"], arrays["presence"], (d, h, w)
