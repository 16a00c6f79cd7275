"""Plain folders with a manifest: the project's own layout for prepared data.

    manifest.json
    train/pt_1/ct.nii.gz
    train/pt_1/labels.nii.gz
    test/pt_2/...

    {"labels": {"Brainstem": 1, "Larynx": 2},
     "cases": [{"split": "train", "case": "pt_1", "annotated": ["Brainstem"]}, ...]}

`labels` and the `case` of every entry are needed. Without `split` a case lies directly below the root and the
software splits; without `annotated` somebody looked for every structure; `patient` groups cases of one
patient. The OpenKBP set prepared as NIfTI has this layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctseg.datasets import listing, metadata
from ctseg.datasets.case import DataSet, LabelTable
from ctseg.datasets.gathering import Gathering

SHAPE = "manifest.json + <split>/<case>/ct.nii.gz and labels.nii.gz"


def matches(root: Path) -> bool:
    """A manifest.json with `cases`, or one that cannot be read (so that reading it says why)."""
    path = root / "manifest.json"
    content = metadata.peek(path)
    return path.is_file() and (content is None or "cases" in content)


def read(cases: Gathering) -> DataSet:
    """The cases of the manifest, in natural order."""
    path = cases.root / "manifest.json"
    if not path.exists():
        raise cases.missing("manifest.json")
    content = metadata.read_object(path)
    table = metadata.label_table(content.get("labels"), path)
    cases.account(path)
    for number, entry in enumerate(metadata.entry_list(content, "cases", path)):
        if not isinstance(entry, dict) or not isinstance(entry.get("case"), str):
            raise metadata.invalid(
                path, f'entry {number} of "cases" has no "case"', 'write {"split": "train", "case": "pt_1"}'
            )
        _read_case(cases, entry, table)
    return cases.data_set(table.names)


def _read_case(cases: Gathering, entry: dict[str, Any], table: LabelTable) -> None:
    """Offer the case of an entry, or refuse it with what it lacks."""
    case_id, split, told = entry["case"], entry.get("split"), entry.get("annotated")
    bad: str | None = "the split is not a name"
    if split is None or isinstance(split, str):
        bad = listing.unsafe_name(case_id) or listing.unsafe_name("-" if split is None else split)
    if bad is not None:
        fix = "use plain folder names for cases and splits"
        return cases.refuse(case_id, ("UNSAFE_NAME", f"manifest.json: {bad}", fix))
    folder = cases.root / (split or "") / case_id
    image, labels = listing.volume(folder, "ct"), listing.volume(folder, "labels", "label")
    if image is None or labels is None:
        code, name, what = (
            ("FILE_MISSING", "ct.nii.gz", "scan")
            if image is None
            else ("LABEL_MISSING", "labels.nii.gz", "labels")
        )
        cases.account(image, labels)
        fix = f"put the {what} there, or take the case out of manifest.json"
        return cases.refuse(case_id, (code, f"{name} does not exist", fix), folder / name)
    # in the spelling of "labels"; all of them when the manifest does not say
    known = {listing.folded(name): name for name in table.names}
    annotated = []
    for name in table.names if told is None else told if isinstance(told, list) else [told]:
        if isinstance(name, str) and listing.folded(name) in known:
            annotated.append(known[listing.folded(name)])
            continue
        cause = f'manifest.json: "annotated" has {name!r}, which "labels" does not name'
        fix = "correct the spelling; it counts as not annotated"
        cases.tell("METADATA_INVALID", cause, fix, case=case_id)
    cases.offer_map(
        case_id,
        image,
        labels,
        table,
        annotated=annotated,
        split=cases.split_of(split, case_id, cases.root / "manifest.json"),
        patient_id=entry.get("patient"),
    )
