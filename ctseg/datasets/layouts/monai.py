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


def read(root: Path, *, follow_links: bool = False) -> DataSet:
    """The cases of the one data list in the folder."""
    found = _data_lists(root)
    if not found:
        raise PreconditionError(
            "NO_DATA", "no JSON file has a list of training images", f"the layout monai needs {SHAPE}"
        )
    path = metadata.one_of(found, "data lists")
    content = metadata.read_object(path)
    cases = Gathering("monai", root, follow_links)
    cases.account(path)
    table = _names(cases, content, path)
    if "modality" in content and isinstance(content["modality"], str):
        metadata.ct_channel([content["modality"]], path)
    base = _base(root, content.get("dataroot"), path)
    listed = [
        (entry, split) for key, split in _LISTS.items() for entry in metadata.entry_list(content, key, path)
    ]
    names = _case_names([entry for entry, _ in listed])
    split_given = any(content.get(key) for key in _LISTS if key != "training")
    unlabelled = []
    for (entry, split), case_id in zip(listed, names):
        image = _image_text(entry)
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
                patient_id=listing.text_of(entry.get("patient_id", entry.get("patient"))),
            )
    cases.note_unlabelled(unlabelled, path, "the testing list")
    return cases.data_set(tuple(table.values.values()))


def _names(cases: Gathering, content: dict[str, Any], path: Path) -> LabelTable:
    """The label table, from the list itself or from labels.json beside it."""
    raw = content.get("labels", content.get("class_names"))
    if raw is None:
        beside = metadata.names_beside(cases.root)
        if beside is None:
            raise PreconditionError(
                "LABEL_NAMES_MISSING",
                "the data list does not name its label values",
                f"put a file labels.json beside it, for example {metadata.NAMES_EXAMPLE}, "
                "or add that key to the list",
                file=path.name,
            )
        cases.account(cases.root / "labels.json")
        return beside
    return metadata.label_table(_as_table(raw, path), path)


def _as_table(raw: Any, path: Path) -> Any:
    """{name: value} from Auto3DSeg's list forms; anything else unchanged."""
    if not isinstance(raw, list):
        return raw
    if raw and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) and "index" in item for item in raw
    ):
        indices = {item["name"]: item["index"] for item in raw}
        return {
            name: index[0] if isinstance(index, list) and len(index) == 1 else index
            for name, index in indices.items()
        }
    if raw and all(isinstance(item, str) for item in raw) and raw[0].casefold() == "background":
        return {name: value for value, name in enumerate(raw)}
    raise metadata.invalid(
        path, "the list of class names does not say which value each has", f"write {metadata.NAMES_EXAMPLE}"
    )


def _base(root: Path, raw: object, path: Path) -> Path:
    """The folder that relative paths start at. A data root elsewhere is not followed."""
    if raw is None or raw == "":
        return root
    inner = listing.below(root / str(raw), root)
    if inner is None:
        raise metadata.invalid(
            path,
            '"dataroot" leads out of the data folder',
            "put the list into the folder of the data and remove dataroot",
        )
    return root / inner


def _case_names(entries: list[Any]) -> list[str]:
    """One name per entry: the image's file name, or its whole path where file names repeat (a folder per
    case).
    """
    paths = [_image_text(entry) or f"entry_{number}" for number, entry in enumerate(entries)]
    stems = [listing.volume_stem(Path(text)) or Path(text).name for text in paths]
    folded = [listing.folded(stem) for stem in stems]
    whole = [str(Path(text).with_name(stem)).strip("./") for text, stem in zip(paths, stems)]
    count = Counter(folded)
    return [
        text.replace("/", "_") if count[name] > 1 else stem for text, stem, name in zip(whole, stems, folded)
    ]


def _image_text(entry: Any) -> str | None:
    """The path of the entry's image; a list of one is that one, several channels are not a CT."""
    image = entry.get("image") if isinstance(entry, dict) else None
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    return image if isinstance(image, str) else None
