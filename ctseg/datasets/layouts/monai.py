"""MONAI data lists, as Auto3DSeg reads them. Source: docs.monai.io, Project-MONAI/tutorials auto3dseg.

    datalist.json       {"training": [{"image": "a/ct.nii.gz", "label": "a/label.nii.gz", "fold": 0}],
                         "validation": [...], "testing": [...], "dataroot": "."}
    labels.json         names, when the list itself has no "labels" / "class_names"

Names: {"labels": {"liver": 1}} in either direction, {"class_names": [{"name": "liver", "index": [1]}]}, or a
list of names that begins with "background". Without names the data set is refused: a bare number says
nothing. `validation` and `testing` are the splits val and test; `fold` is not used. Paths start at the folder
or `dataroot`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ctseg.datasets import listing, metadata
from ctseg.datasets.case import DataSet, LabelTable
from ctseg.datasets.gathering import Gathering
from ctseg.errors import PreconditionError

SHAPE = '<any>.json with "training": [{"image": ..., "label": ...}] and "labels": {"name": value}'
_LISTS = {"training": "train", "validation": "val", "testing": "test", "test": "test"}


def matches(root: Path) -> bool:
    """A JSON file in the folder with a `training` list of image entries."""
    return bool(_data_lists(root))


def _data_lists(root: Path) -> list[Path]:
    """The JSON files that are data lists."""
    found = []
    for path in listing.entries(root):
        content = metadata.peek(path) if path.suffix.casefold() == ".json" else None
        training = content.get("training") if content else None
        if isinstance(training, list) and any(
            isinstance(entry, dict) and "image" in entry for entry in training
        ):
            found.append(path)
    return found


def read(cases: Gathering) -> DataSet:
    """The cases of the one data list in the folder."""
    path = cases.only(_data_lists(cases.root), "data list")
    content = metadata.read_object(path)
    cases.account(path)
    table = _names(cases, content, path)
    if isinstance(content.get("modality"), str):
        metadata.ct_channel([content["modality"]], path)
    inner = listing.below(cases.root / str(content.get("dataroot") or "."), cases.root)
    if inner is None:
        cause = '"dataroot" leads out of the data folder'
        raise metadata.invalid(path, cause, "put the list into the folder of the data and remove dataroot")
    base = cases.root / inner
    listed = [
        (entry, split) for key, split in _LISTS.items() for entry in metadata.entry_list(content, key, path)
    ]
    images = [_image_text(entry) for entry, _ in listed]
    split_given = any(content.get(key) for key in _LISTS if key != "training")
    unlabelled = []
    for (entry, split), image, case_id in zip(listed, images, _case_names(images)):
        if split == "test" and (not isinstance(entry, dict) or "label" not in entry):
            unlabelled.append(base / (image or str(entry)))
        elif image is None:
            problem = ("METADATA_INVALID", "the entry names no single image", "give one CT per entry")
            cases.refuse(case_id, problem)
        else:
            cases.offer_listed(
                case_id,
                image,
                entry.get("label"),
                base,
                table,
                split=split if split_given else None,
                patient_id=entry.get("patient_id", entry.get("patient")),
            )
    cases.note_unlabelled(unlabelled, path, "the testing list")
    return cases.data_set(table.names)


def _names(cases: Gathering, content: dict[str, Any], path: Path) -> LabelTable:
    """The label table, from the list itself (a table, or one of Auto3DSeg's lists) or from labels.json beside
    it.
    """
    raw = content.get("labels", content.get("class_names"))
    beside = metadata.names_beside(cases.root) if raw is None else None
    if beside is not None:
        cases.account(cases.root / "labels.json")
        return beside
    if raw is None:
        cause = "the data list does not name its label values"
        example = metadata.NAMES_EXAMPLE
        fix = f"put a file labels.json beside it, for example {example}, or add that key to the list"
        raise PreconditionError("LABEL_NAMES_MISSING", cause, fix, file=path.name)
    if isinstance(raw, list) and raw:
        if all(
            isinstance(item, dict) and isinstance(item.get("name"), str) and "index" in item for item in raw
        ):
            indices = [item["index"] for item in raw]
            single = [index[0] if isinstance(index, list) and len(index) == 1 else index for index in indices]
            raw = {item["name"]: index for item, index in zip(raw, single)}
        elif all(isinstance(item, str) for item in raw) and raw[0].casefold() == "background":
            raw = {name: value for value, name in enumerate(raw)}
    return metadata.label_table(raw, path)


def _case_names(images: list[str | None]) -> list[str]:
    """One name per entry: the image's file name, or its whole path where file names repeat (a folder per
    case).
    """
    # "." and "/" name no file
    named = [text if text and Path(text).name else f"entry_{number}" for number, text in enumerate(images)]
    paths = list(map(Path, named))
    stems = [listing.volume_stem(path) or path.name for path in paths]
    count = Counter(map(listing.folded, stems))
    whole = [str(path.with_name(stem)).strip("./").replace("/", "_") for path, stem in zip(paths, stems)]
    return [long if count[listing.folded(stem)] > 1 else stem for long, stem in zip(whole, stems)]


def _image_text(entry: Any) -> str | None:
    """The path of the entry's image; a list of one is that one, several channels are not a CT."""
    image = entry.get("image") if isinstance(entry, dict) else None
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    return image if isinstance(image, str) else None
