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
from typing import Any

from ctseg.datasets import gathering, listing, metadata
from ctseg.datasets.case import DataSet, LabelTable
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
    if (root / "dataset.json").exists():
        return [root]
    tops = [
        root,
        *(folder for folder in listing.folders(root) if folder.name.casefold().startswith("nnunet_raw")),
    ]
    return [folder for top in tops for folder in listing.folders(top) if (folder / "dataset.json").exists()]


def dataset_folder(root: Path, what: str, fix: str) -> Path:
    """The only one of `dataset_folders`. what: what several of them are called; fix: the remedy for none.

    Raises PreconditionError NO_DATA, SEVERAL_DATA_SETS.
    """
    found = dataset_folders(root)
    if not found:
        raise PreconditionError("NO_DATA", "there is no dataset.json", fix, file="dataset.json")
    return metadata.one_of(found, what)


def _is_nnunet(folder: Path) -> bool:
    content = metadata.peek(folder / "dataset.json")
    if content is None:  # unreadable: reading says why
        return (folder / "imagesTr").is_dir() and re.match(
            r"dataset\d{3}", folder.name, re.IGNORECASE
        ) is not None
    if "channel_names" in content or "dataset" in content:
        return True
    labels = set(listing.volumes(folder / "labelsTr"))
    stems = [stem for stem in listing.volumes(folder / "imagesTr") if stem not in labels]
    return any((match := _CHANNEL.fullmatch(stem)) and match["case"] in labels for stem in stems)


def read(root: Path, *, follow_links: bool = False) -> DataSet:
    """The training cases (and the test cases that have labels) of the one data set in the folder."""
    folder = dataset_folder(root, "nnU-Net data sets", f"the layout nnunet needs {SHAPE}")
    path = folder / "dataset.json"
    content = metadata.read_object(path)
    ending = str(content.get("file_ending", ".nii.gz")).casefold()
    if ending not in volume_files.SUFFIXES:
        raise PreconditionError(
            "FORMAT_UNSUPPORTED", f"its files end in {ending}", "convert them to .nii.gz", file=path.name
        )
    table = metadata.label_table(content.get("labels"), path)
    channel = metadata.ct_channel(content.get("channel_names", content.get("modality")), path)
    cases = Gathering("nnunet", root, follow_links)
    cases.account(path)
    splits, splits_file = _splits(cases, folder)
    if isinstance(content.get("dataset"), dict):
        _read_listed(cases, folder, content["dataset"], channel, table, splits)
    else:
        images, labels = _images(cases, folder / "imagesTr", channel), listing.volumes(folder / "labelsTr")
        declared, count = (
            content.get("numTraining"),
            len({listing.folded(name) for name in (*images, *labels)}),
        )
        if isinstance(declared, int) and declared > count:
            cases.warn(
                "CASES_MISSING",
                f"it counts {declared} training cases, {count} are here",
                "copy the missing files, or correct numTraining",
                path=path,
            )
        gathering.offer_pairs(cases, images, labels, table, annotated=table.values.values(), splits=splits)
    cases.match_splits(splits, splits_file)
    _read_test(cases, folder, channel, table)
    return cases.data_set(tuple(table.values.values()))


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


def _read_listed(
    cases: Gathering,
    folder: Path,
    listed: dict[str, Any],
    channel: int,
    table: LabelTable,
    splits: dict[str, str],
) -> None:
    """Cases of the key "dataset": {case: {"images": [one per channel], "label": file}}, paths from
    dataset.json on.
    """
    for case_id, entry in listed.items():
        files = entry.get("images") if isinstance(entry, dict) else None
        if not isinstance(files, list) or channel >= len(files) or "label" not in entry:
            cases.refuse(
                case_id,
                ("METADATA_INVALID", 'its entry in "dataset" lacks images or label', "correct dataset.json"),
            )
            continue
        cases.offer_listed(case_id, files[channel], entry["label"], folder, table, split=splits.get(case_id))


def _read_test(cases: Gathering, folder: Path, channel: int, table: LabelTable) -> None:
    """imagesTs with labelsTs are test cases; without, they are noted and left alone."""
    images, labels = _images(cases, folder / "imagesTs", channel), listing.volumes(folder / "labelsTs")
    with_label = {case_id: path for case_id, path in images.items() if case_id in labels}
    without = [path for case_id, path in images.items() if case_id not in labels]
    cases.note_unlabelled(without, folder / "imagesTs", "imagesTs")
    splits = dict.fromkeys(with_label, "test")
    gathering.offer_pairs(cases, with_label, labels, table, annotated=table.values.values(), splits=splits)


def _splits(cases: Gathering, folder: Path) -> tuple[dict[str, str], Path | None]:
    """(case id -> train or val from the first fold of splits_final.json, that file), when there is one."""
    places = (folder, cases.root, cases.root / "nnUNet_preprocessed" / folder.name)
    path = next(
        (place / "splits_final.json" for place in places if (place / "splits_final.json").is_file()), None
    )
    if path is None:
        return {}, None
    cases.account(path)
    folds = metadata.read_list(path)
    if (
        not folds
        or not isinstance(folds[0], dict)
        or not all(isinstance(folds[0].get(key), list) for key in ("train", "val"))
    ):
        raise metadata.invalid(
            path, 'it is not a list of {"train": [...], "val": [...]}', "correct or remove the file"
        )
    cases.note("SPLITS_FOUND", f"the first of {len(folds)} folds is used", path=path)
    return {str(case_id): split for split in ("train", "val") for case_id in folds[0][split]}, path
