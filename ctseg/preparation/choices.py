"""What preprocessing makes of a data set: its structures, sides, guide organs and grid, as the settings and
the scans ask for.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ctseg import laterality, structure_names
from ctseg.artifacts import TENSOR_SIZE, Workspace, read_json
from ctseg.config import DataSettings, did_you_mean
from ctseg.datasets import metadata
from ctseg.datasets.case import CaseRecord, DataSet
from ctseg.errors import IntegrityError, PreconditionError, UsageError
from ctseg.geometry.grids import GridPlan, canonical_grid
from ctseg.laterality import Sides
from ctseg.manifest import Case
from ctseg.preparation.guide_organs import GuideSource, totalsegmentator_command
from ctseg.typed_values import fits

LOG = logging.getLogger("ctseg")


def wanted_spacing(data: DataSettings) -> tuple[float, float, float] | None:
    """data.spacing_mm as three numbers (D, H, W), None when it is to be chosen. Raises UsageError."""
    values = data.spacing_mm * 3 if len(data.spacing_mm) == 1 else data.spacing_mm
    if values and (len(values) != 3 or not all(0.1 <= value <= 20 for value in values)):
        raise UsageError(
            "BAD_VALUE",
            f"data.spacing_mm={list(data.spacing_mm)} is not one number or three, each 0.1 to 20",
            "give mm along superior, posterior, left; for example --set data.spacing_mm=3,1.5,1.5",
        )
    if values and data.grid == "whole":
        raise UsageError(
            "BAD_VALUE",
            "data.spacing_mm has no meaning for data.grid=whole, where the body decides",
            "leave it out, or use --set data.grid=windows",
        )
    if data.val_fraction + data.test_fraction > 0.9:
        held_out = data.val_fraction + data.test_fraction
        raise UsageError(
            "BAD_VALUE",
            f"data.val_fraction + data.test_fraction = {held_out:g} leaves nothing to train on",
            "keep their sum at 0.9 or below",
        )
    return (values[0], values[1], values[2]) if values else None


def keep_tensors_of_scans(workspace: Workspace) -> None:
    """UsageError where a synthetic cohort would take the place of what was made from somebody's scans."""
    try:
        manifest = read_json(workspace.manifest)
    except (OSError, IntegrityError):
        return
    if isinstance(manifest, dict) and manifest.get("synthetic") is False:
        name = Path(str(manifest.get("data_root"))).name
        raise UsageError(
            "DATA_NEEDED",
            f"the tensors here were made from '{name}'; without --data a synthetic cohort would replace them",
            "give --data again, or another --workspace",
            file=workspace.relative(workspace.manifest),
        )


def guide_source(workspace: Workspace, data: DataSettings) -> GuideSource | None:
    """Which organs guide the network and where their masks come from, unless a model predicts them; organs
    that stand in the labels may still have to be named.

    Refuses a --guide that cannot be used whatever the scans are: UsageError, PreconditionError
    GUIDE_TOOL_MISSING.
    """
    path, organs = Path(data.guide), data.guide_organs
    if data.guide == "none":
        return None
    if data.guide == "labels":
        return GuideSource("labels", organs)
    if data.guide.endswith(".pth"):
        if not path.is_file():
            cause = f"the guide model '{data.guide}' does not exist"
            fix = "give the best_model.pth of an earlier training"
            raise UsageError("BAD_OPTION", cause, fix, file=path.name)
        return None
    if not organs:
        raise UsageError(
            "BAD_OPTION",
            f"--guide {data.guide} without the names of the organs",
            "name them, for example --set data.guide_organs=liver,spleen,aorta",
        )
    if data.guide == "totalsegmentator":
        if not workspace.guide_masks.is_dir():  # kept masks need no program
            totalsegmentator_command()
        return GuideSource("totalsegmentator", organs, workspace.guide_masks)
    if not path.is_dir():
        cause = f"'{data.guide}' after --guide is neither a folder nor one of labels, totalsegmentator"
        raise UsageError("BAD_OPTION", cause, "check the path", file=path.name)
    return GuideSource("folder", organs, path)


def choose_structures(data_set: DataSet, data: DataSettings) -> tuple[str, ...]:
    """The structures asked for, in the order of the data set; for the synthetic cohort its own default.

    Raises UsageError UNKNOWN_ORGAN, PreconditionError NO_DATA, and STRUCTURES_ALIKE for a name that says
    nothing and for two that differ in spelling alone: they would be taken for each other.
    """
    wanted: Sequence[str] = data.structures
    if not wanted and data_set.synthetic:
        path = data_set.root / "synthetic.json"
        wanted = metadata.read_object(path).get("structures", [])
        if not fits(wanted, list[str]):
            raise metadata.invalid(path, "'structures' is no list of names", "have the cohort drawn again")
    names = {known_name(name, name, data_set.structures) for name in wanted}
    chosen = tuple(name for name in data_set.structures if not wanted or name in names)
    if not chosen or not data_set.cases:
        raise PreconditionError(
            "NO_DATA",
            f"the folder has {len(data_set.cases)} usable cases and names {len(chosen)} structures",
            "see `python run_pipeline.py --list` for the layouts",
            file=data_set.root.name,
        )
    seen: dict[tuple[str, str | None], str] = {}
    for name in chosen:
        other = seen.setdefault(laterality.spelling(name), name)
        if other != name or not structure_names.can_name(name):
            cause = f"'{other}' and '{name}' are one name in two spellings"
            if not structure_names.can_name(name):
                cause = f"{name!r} holds control characters" if name.strip() else "a structure has no name"
            raise PreconditionError(
                "STRUCTURES_ALIKE",
                cause,
                "rename it in the data, or leave it out: --structures takes the names that are meant",
                file=data_set.root.name,
            )
    return chosen


def known_name(name: str, told: str, names: Sequence[str]) -> str:
    """The one of `names` that means the same as `name`; UsageError UNKNOWN_ORGAN otherwise. told: what the
    user wrote.
    """
    found = structure_names.find(name, names)
    if found is None:
        where = "" if told == name else f"{told}: "
        raise UsageError(
            "UNKNOWN_ORGAN",
            f"{where}the data set has no structure '{name}'{did_you_mean(name, names)}",
            f"choose from {', '.join(names)}",
        )
    return found


def sides_of(data_set: DataSet, data: DataSettings, organs: Sequence[str]) -> Sides:
    """Left and right among all structures of the data and the guide organs, and as data.pairs says. Raises
    UsageError.
    """
    names = list(dict.fromkeys([*data_set.structures, *organs]))
    declared = []
    for text in (part.strip() for item in data.pairs for part in item.split(";") if part.strip()):
        left, separator, right = text.partition(":")
        if not separator:
            raise UsageError(
                "BAD_VALUE",
                f"data.pairs={text} has no ':'",
                "write left:right, for example --set data.pairs=kidney_a:kidney_b",
            )
        told = f"data.pairs={text}"
        declared.append((known_name(left.strip(), told, names), known_name(right.strip(), told, names)))
    return laterality.find_sides(names, declared)


def with_leave(record: CaseRecord, data: DataSettings) -> CaseRecord:
    """The case, with the leave to read what is refused otherwise; it stands in the manifest, so that every
    later stage reads the same.
    """
    image, labels = record.image, record.labels
    if image.format == "dicom":
        image = dataclasses.replace(image, assume_hu=data.assume_hu)
    if labels is not None and labels.format in ("dicom_seg", "rtstruct"):
        labels = dataclasses.replace(labels, fill_gaps=data.fill_contour_gaps)
        if labels.format == "dicom_seg" and data.fractional_threshold > 0:
            labels = dataclasses.replace(labels, fractional_threshold=data.fractional_threshold)
    return dataclasses.replace(record, image=image, labels=labels)


def known_plan(data: DataSettings) -> GridPlan | None:
    """The grid when the settings alone decide it; None when the training scans do."""
    if data.grid == "whole":
        return GridPlan("whole", None)
    if data.grid == "roi":  # which part of a case is kept depends on its split
        return None
    spacing_mm = wanted_spacing(data)
    return GridPlan("windows", spacing_mm) if spacing_mm else None


def choose_plan(train: Sequence[Case], data: DataSettings) -> GridPlan:
    """The grid that the training scans ask for: their median spacing, and for grid=auto whether one tensor
    holds the body.
    """
    wanted = wanted_spacing(data)
    spacing = wanted or np.median([canonical_grid(case.scan).spacing_mm for case in train], axis=0)
    d, h, w = (round(float(value), 4) for value in spacing)
    sizes_mm = [case.body_box.size_mm for case in train if case.body_box is not None]
    voxels = np.ceil(np.median(np.divide(sizes_mm, (d, h, w)), axis=0) - 1e-3)
    if data.grid == "auto" and (voxels > TENSOR_SIZE).any():
        LOG.info(
            "Grid: whole (at the scans' own spacing of %g x %g x %g mm the body needs %d x %d x %d voxels, "
            "more than one tensor)",
            *(d, h, w),
            *voxels,
        )
        return GridPlan("whole", None)
    kind = "roi" if data.grid == "roi" else "windows"
    told = "" if wanted else " (median of the training scans)"
    LOG.info("Grid: %s of %g x %g x %g mm%s", kind, d, h, w, told)
    return GridPlan(kind, (d, h, w))
