"""Medical Segmentation Decathlon. Source: medicaldecathlon.com, arXiv 2106.05735.

    [.../]Task09_Spleen/dataset.json      {"labels": {"1": "spleen"},
                                           "training": [{"image": ..., "label": ...}]}
    [.../]Task09_Spleen/imagesTr/spleen_2.nii.gz
    [.../]Task09_Spleen/labelsTr/spleen_2.nii.gz
    [.../]Task09_Spleen/imagesTs/...      without labels: noted, not used

Labels map value -> name, the reverse of nnU-Net; image and label have the same file name. An empty label map:
none of it is there.
"""

from __future__ import annotations

from pathlib import Path

from ctseg.datasets import listing, metadata
from ctseg.datasets.case import DataSet, LabelTable
from ctseg.datasets.gathering import Gathering
from ctseg.datasets.layouts import nnunet
from ctseg.errors import PreconditionError

SHAPE = "TaskXX_Name/{dataset.json, imagesTr/<case>.nii.gz, labelsTr/<case>.nii.gz}"


def matches(root: Path) -> bool:
    """A dataset.json with a `training` list (one that cannot be read counts beside imagesTr)."""
    for folder in nnunet.dataset_folders(root):
        content = metadata.peek(folder / "dataset.json")
        unreadable = content is None and (folder / "imagesTr").is_dir()
        if unreadable or isinstance((content or {}).get("training"), list):
            return True
    return False


def read(cases: Gathering) -> DataSet:
    """The training cases of the one task in the folder."""
    folder = cases.only(nnunet.dataset_folders(cases.root), "Decathlon task")
    path = folder / "dataset.json"
    content = metadata.read_object(path)
    table = LabelTable(metadata.label_table(content.get("labels"), path).values)  # it has no "ignore"
    channels = content.get("modality")
    if metadata.ct_channel(channels, path) or len(channels or ()) > 1:
        cause, fix = "an image holds several channels", "this software reads files with one CT each"
        raise PreconditionError("NOT_CT", cause, fix, file=path.name)
    cases.account(path)
    for number, entry in enumerate(metadata.entry_list(content, "training", path)):
        image = entry.get("image") if isinstance(entry, dict) else None
        if not isinstance(image, str):
            problem = ("METADATA_INVALID", "the entry names no image", "correct dataset.json")
            cases.refuse(f"training[{number}]", problem)
        else:
            case_id = listing.volume_stem(Path(image)) or Path(image).name
            cases.offer_listed(case_id, image, entry.get("label"), folder, table)
    cases.note_unlabelled(listing.volumes(folder / "imagesTs").values(), folder / "imagesTs", "imagesTs")
    return cases.data_set(table.names)
