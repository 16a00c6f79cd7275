"""Data sets of scans and label maps that are paired by their names alone: one row each, read in one way.

A path is told by its place below the data folder, without suffix, upper and lower case alike. Sources:

- FLARE22, the labelled part: flare22.grand-challenge.org (ids confirmed by its evaluation code; there is no
  table of names).
- CTPelvic1K: github.com/MIRACLE-Center/CTPelvic1K (ids from its conversion code). Copies of the set disagree
  about the hips, and some volumes are mirrored: reading a case compares sides with the geometry and warns
  with SIDE_SWAP.
- Airways: ATM'22 (atm22.grand-challenge.org); BAS (Qin et al. 2019, MICCAI, doi 10.1007/978-3-030-32226-7_24,
  built on LIDC-IDRI and EXACT'09) publishes no folder layout: bring its files into these two folders.
- ImageCAS (Zeng et al. 2023, doi 10.1016/j.compmedimag.2023.102287) as anatomical-guidance arranges it. Its
  heart_combined (0 to 7, by content the parts of TotalSegmentator's heart task) is left for --guide. **The
  order of the seven is inferred, not published**: check it against the images of your copy before you guide
  by them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from ctseg.datasets import listing
from ctseg.datasets.case import DataSet, LabelTable
from ctseg.datasets.gathering import SPLITS, Gathering
from ctseg.scans.formats import folder_walk


@dataclasses.dataclass(frozen=True)
class PairedFolders:
    """A layout, given by patterns of paths below the data folder (without suffix; folders end without "/").

    scan, label: with a group `case` and, where the set has splits, `split`. marks: each must fit some file,
    or it is another layout. enter: folders to look into. series: folders that are scans, each a DICOM series.
    beside: files of a case that are neither scan nor label.
    """

    name: str
    SHAPE: str
    values: dict[int, str]
    scan: str
    label: str
    marks: tuple[str, ...]
    enter: str
    series: str = ""
    beside: str = ""

    def matches(self, root: Path) -> bool:
        """Whether there is a file for each of the marks."""
        missing = set(self.marks)
        for place, _ in self.places(root):
            missing -= {mark for mark in missing if fits(mark, place)}
            if not missing:
                return True
        return False

    def places(self, root: Path) -> Iterator[tuple[str, Path]]:
        """(path below the root without suffix, path) of volumes and of folders with a series, in natural
        order.
        """
        for folder, subfolders, files in folder_walk.walk(root):
            inner = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
            series = [name for name in subfolders if fits(self.series, inner + name)]
            subfolders[:] = [
                name for name in subfolders if name not in series and fits(self.enter, inner + name)
            ]
            subfolders.sort(key=listing.natural_key)
            for name in sorted((*series, *files), key=listing.natural_key):
                stem = name if name in series else listing.volume_stem(Path(name))
                if stem is not None and not listing.hidden(name):
                    yield inner + stem, folder / name

    def read(self, cases: Gathering) -> DataSet:
        """All pairs of scan and label map; what has no partner is refused by name."""
        scans: dict[str, Path] = {}
        labels: dict[str, Path] = {}
        splits: dict[str, str] = {}
        for place, path in self.places(cases.root):
            if fits(self.beside, place):
                cases.account(path)
            for pattern, found in ((self.scan, scans), (self.label, labels)):
                match = fits(pattern, place)
                if match is None:
                    continue
                other = found.setdefault(match["case"], path)
                if other is not path:
                    raise listing.duplicate_error(f"{cases.relative(other)} and {cases.relative(path)}")
                if split := match.groupdict().get("split"):
                    splits[match["case"]] = SPLITS[split.casefold()]
        table = LabelTable(self.values)
        cases.offer_pairs(scans, labels, table, splits)
        return cases.data_set(table.names)


def fits(pattern: str, place: str) -> re.Match[str] | None:
    """The match of a pattern with a whole path; an empty pattern fits none."""
    return re.fullmatch(pattern, place, re.IGNORECASE) if pattern else None


_TWO_FOLDERS = {
    "scan": r"([^/]+/)?images/(?P<case>[^/]+?)(_0000)?",
    "label": r"([^/]+/)?labels/(?P<case>[^/]+?)(_0000)?",
    "enter": r"[^/]+|([^/]+/)?(images|labels)",
}
_SPLIT = r"((?P<split>train|valid|val|test)/)?"
PAIRED = (
    PairedFolders(
        "flare22",
        "images/FLARE22_Tr_0001_0000.nii.gz + labels/FLARE22_Tr_0001.nii.gz",
        {
            1: "liver",
            2: "kidney_right",
            3: "spleen",
            4: "pancreas",
            5: "aorta",
            6: "inferior_vena_cava",
            7: "adrenal_gland_right",
            8: "adrenal_gland_left",
            9: "gallbladder",
            10: "esophagus",
            11: "stomach",
            12: "duodenum",
            13: "kidney_left",
        },
        marks=(r"([^/]+/)?images/.+", r"([^/]+/)?labels/.+", r"([^/]+/)?(images|labels)/FLARE\d*_.*"),
        **_TWO_FOLDERS,
    ),
    PairedFolders(
        "ctpelvic1k",
        "[folders/]datasetN_NAME_0001_data.nii.gz + datasetN_NAME_0001_mask_4label.nii.gz",
        {1: "sacrum", 2: "right_hip", 3: "left_hip", 4: "lumbar_vertebra"},
        scan=r"(.+/)?(?P<case>[^/]+)_data",
        label=r"(.+/)?(?P<case>[^/]+)_mask(_4label)?",
        marks=(".+_data", ".+_mask_4label"),
        enter="([^/]+/){0,3}[^/]+",
    ),
    PairedFolders(
        "airway_pair",
        "images/ATM_001_0000.nii.gz (or a DICOM folder per case) + labels/ATM_001_0000.nii.gz, 1 = airway",
        {1: "airway"},
        marks=(r"([^/]+/)?images/.+", r"([^/]+/)?labels/(ATM_\d|LIDC|EXACT|CASE\d\d).*"),
        series=r"([^/]+/)?images/[^/]+",
        **_TWO_FOLDERS,
    ),
    PairedFolders(
        "imagecas",
        "[train|valid|test/]<id>/img.nii.gz + label.nii.gz, 1 = coronary artery",
        {1: "coronary_artery"},
        scan=rf"{_SPLIT}(?P<case>[^/]+)/img",
        label=rf"{_SPLIT}(?P<case>[^/]+)/label",
        marks=(rf"{_SPLIT}[^/]+/img", rf"{_SPLIT}[^/]+/label"),
        enter=r"[^/]+|(train|valid|val|test)/[^/]+",
        beside=r".*heart_combined",
    ),
)
