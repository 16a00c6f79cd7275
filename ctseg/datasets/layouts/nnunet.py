"""nnU-Net raw data, version 2 and 1. Source: github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md.

    [nnUNet_raw/]Dataset001_Name/dataset.json       v2 {"labels": {"liver": 1}}, v1 {"labels": {"1": "liver"}}
    [nnUNet_raw/]Dataset001_Name/imagesTr/CASE_0000.nii.gz
    [nnUNet_raw/]Dataset001_Name/labelsTr/CASE.nii.gz
    [nnUNet_raw/]Dataset001_Name/imagesTs, labelsTs    test cases where both exist
    splits_final.json                                  optional, beside dataset.json, in the root, or below
                                                       [root/]nnUNet_preprocessed/Dataset001_Name

dataset.json names what was looked for, so an empty label map is a patient without it. "ignore" marks voxels
nobody looked at. Regions (several values under one name) are refused. The key "dataset" (case -> files)
replaces the folders. Of splits_final.json the first fold counts: its `val` is ours, no test set.
"""

from __future__ import annotations

import re
from pathlib import Path

from ctseg.datasets import listing, metadata
from ctseg.datasets.case import DataSet
from ctseg.datasets.gathering import Gathering
from ctseg.errors import PreconditionError
from ctseg.scans.formats import volume_files

SHAPE = "[nnUNet_raw/]DatasetXXX_Name/{dataset.json, imagesTr/<case>_0000.nii.gz, labelsTr/<case>.nii.gz}"
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def matches(root: Path) -> bool:
    """A dataset.json of nnU-Net's kind in the folder, or in a DatasetXXX / TaskXXX folder of it."""
    return any(_is_nnunet(folder) for folder in dataset_folders(root))


def dataset_folders(root: Path) -> list[Path]:
    """The folders with a dataset.json: the root itself, else those below it (or below its nnUNet_raw)."""
    tops = [folder for folder in listing.folders(root) if folder.name.casefold().startswith("nnunet_raw")]
    inner = [folder for top in (root, *tops) for folder in listing.folders(top)]
    found = [folder for folder in (root, *inner) if (folder / "dataset.json").exists()]
    return [root] if root in found else found


def _is_nnunet(folder: Path) -> bool:
    content = metadata.peek(folder / "dataset.json")
    if content is None:  # unreadable: reading says why
        named = re.match(r"dataset\d{3}", folder.name, re.IGNORECASE) is not None
        return named and (folder / "imagesTr").is_dir()
    if "channel_names" in content or "dataset" in content:
        return True
    labels = set(listing.volumes(folder / "labelsTr"))
    stems = [stem for stem in listing.volumes(folder / "imagesTr") if stem not in labels]
    return any((match := _CHANNEL.fullmatch(stem)) and match["case"] in labels for stem in stems)


def read(cases: Gathering) -> DataSet:
    """The training cases (and the test cases that have labels) of the one data set in the folder."""
    folder = cases.only(dataset_folders(cases.root), "nnU-Net data set")
    path = folder / "dataset.json"
    content = metadata.read_object(path)
    ending = str(content.get("file_ending", ".nii.gz")).casefold()
    if ending not in volume_files.SUFFIXES:
        cause, fix = f"its files end in {ending}", "convert them to .nii.gz"
        raise PreconditionError("FORMAT_UNSUPPORTED", cause, fix, file=path.name)
    table = metadata.label_table(content.get("labels"), path)
    channel = metadata.ct_channel(content.get("channel_names", content.get("modality")), path)
    cases.account(path)
    splits, splits_file = _splits(cases, folder)
    listed = content.get("dataset")
    if isinstance(listed, dict):  # {case: {"images": [one per channel], "label": file}}
        for case_id, entry in listed.items():
            files = entry.get("images") if isinstance(entry, dict) else None
            if not isinstance(files, list) or channel >= len(files) or "label" not in entry:
                cause = 'its entry in "dataset" lacks images or label'
                cases.refuse(case_id, ("METADATA_INVALID", cause, "correct dataset.json"))
                continue
            split = splits.get(case_id)
            cases.offer_listed(case_id, files[channel], entry["label"], folder, table, split=split)
    else:
        images, labels = _images(cases, folder / "imagesTr", channel), listing.volumes(folder / "labelsTr")
        declared, count = content.get("numTraining"), len({*map(listing.folded, (*images, *labels))})
        if isinstance(declared, int) and declared > count:
            cause = f"it counts {declared} training cases, {count} are here"
            fix = "copy the missing files, or correct numTraining"
            cases.tell("CASES_MISSING", cause, fix, path=path)
        cases.offer_pairs(images, labels, table, splits, table.names)
    cases.match_splits(splits, splits_file)
    images, labels = _images(cases, folder / "imagesTs", channel), listing.volumes(folder / "labelsTs")
    without = [images.pop(case_id) for case_id in list(images) if case_id not in labels]
    cases.note_unlabelled(without, folder / "imagesTs", "imagesTs")
    cases.offer_pairs(images, labels, table, dict.fromkeys(images, "test"), table.names)
    return cases.data_set(table.names)


def _images(cases: Gathering, folder: Path, channel: int) -> dict[str, Path]:
    """Case id -> file of the CT channel. Other channels are accounted for, other names are left over."""
    images = {}
    for stem, path in listing.volumes(folder).items():
        match = _CHANNEL.fullmatch(stem)
        if match and int(match["channel"]) == channel:
            images[match["case"]] = path
        elif match:
            cases.account(path)
    return images


def _splits(cases: Gathering, folder: Path) -> tuple[dict[str, str], Path | None]:
    """(case id -> train or val from the first fold of splits_final.json, that file), when there is one."""
    places = (folder, cases.root, cases.root / "nnUNet_preprocessed" / folder.name)
    paths = [path for place in places if (path := place / "splits_final.json").is_file()]
    if not paths:
        return {}, None
    path = paths[0]
    cases.account(path)
    folds = metadata.read_list(path)
    fold = folds[0] if folds and isinstance(folds[0], dict) else {}
    if not all(isinstance(fold.get(key), list) for key in ("train", "val")):
        cause = 'it is not a list of {"train": [...], "val": [...]}'
        raise metadata.invalid(path, cause, "correct or remove the file")
    cases.tell("SPLITS_FOUND", f"the first of {len(folds)} folds is used", path=path)
    return {str(case_id): split for split in ("train", "val") for case_id in fold[split]}, path
