"""Small synthetic data sets in every layout, all written from the same phantoms.

    phantoms = {"case_1": small_phantom(seed=1), "case_2": small_phantom(seed=2)}
    write_nnunet(folder, phantoms)

Every writer takes the folder to give to `--data` and {case id: Phantom}. Mask layouts write one file for each
name of a phantom, map layouts one table of all names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ctseg.artifacts import write_json, write_text
from ctseg.geometry.volume import Volume, to_canonical
from ctseg.scans.formats import nifti

SIDES = ("kidney_left", "kidney_right", "bladder")  # the default names: left, right, middle
SHAPE = (10, 12, 14)
SPACING_MM = (3.0, 2.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Phantom:
    """image: whole HU as float32; label: uint8 on the same grid; names: label value -> structure name."""

    image: Volume
    label: Volume
    names: dict[int, str]

    def mask(self, name: str) -> Volume:
        """The uint8 mask of one structure."""
        value = next(value for value, known in self.names.items() if known == name)
        return Volume((self.label.array == value).astype(np.uint8), self.label.affine)


Phantoms = dict[str, Phantom]


def small_phantom(
    names: Sequence[str] = SIDES,
    *,
    seed: int = 0,
    absent: Iterable[str] = (),
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
) -> Phantom:
    """A body in air with up to three structures (on its left, on its right, in the middle); canonical axes.

    absent: names that are looked for but not there. Whole HU, so that integer files hold them exactly.
    """
    rng = np.random.default_rng([seed, 7])
    image = np.full(shape, -1000.0, dtype=np.float32)
    label = np.zeros(shape, dtype=np.uint8)
    d, h, w = shape
    image[:, 1:-1, 1:-1] = -90  # fat
    image[:, 2:-2, 2:-2] = 40
    boxes = (
        np.s_[d // 2 : d // 2 + 3, h // 3 : h // 3 + 3, w - 5 : w - 3],
        np.s_[d // 2 : d // 2 + 3, h // 3 : h // 3 + 3, 3:5],
        np.s_[1:3, h // 2 : h // 2 + 2, w // 2 - 1 : w // 2 + 2],
    )
    for value, (name, box) in enumerate(zip(names, boxes), start=1):
        if name not in absent:
            image[box] = 20 + 50 * value
            label[box] = value
    inside = image > -500
    image[inside] += np.rint(rng.normal(0, 10, int(inside.sum()))).astype(np.float32)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing_mm
    affine[:, 3] = (-20.0, 30.0, 5.0 + seed, 1.0)
    return Phantom(Volume(image, affine), Volume(label, affine), dict(enumerate(names, start=1)))


def all_names(phantoms: Phantoms) -> dict[int, str]:
    """One table of values for all phantoms."""
    names = list(dict.fromkeys(name for phantom in phantoms.values() for name in phantom.names.values()))
    return dict(enumerate(names, start=1))


def _map(phantom: Phantom, values: dict[int, str]) -> Volume:
    """The label map with the values of a table."""
    numbers = {name: value for value, name in values.items()}
    array = np.zeros_like(phantom.label.array)
    for value, name in phantom.names.items():
        array[phantom.label.array == value] = numbers[name]
    return Volume(array, phantom.label.affine)


# ---- NIfTI layouts ----------------------------------------------------------------------------------------


def write_plain(root: Path, phantoms: Phantoms, splits: dict[str, str] | None = None) -> None:
    """manifest.json + <split>/<case>/{ct,labels}.nii.gz; `annotated` = the phantom's names."""
    values = all_names(phantoms)
    cases = []
    for case_id, phantom in phantoms.items():
        split = (splits or {}).get(case_id, "train")
        nifti.write_image(root / split / case_id / "ct.nii.gz", phantom.image)
        nifti.write_label(root / split / case_id / "labels.nii.gz", _map(phantom, values))
        cases.append({"split": split, "case": case_id, "annotated": list(phantom.names.values())})
    write_json(
        root / "manifest.json", {"labels": {name: value for value, name in values.items()}, "cases": cases}
    )


def write_abdomenatlas(root: Path, phantoms: Phantoms, *, combined: bool = False) -> None:
    """<case>/ct.nii.gz + segmentations/<organ>.nii.gz, or combined_labels.nii.gz and one labels.json."""
    values = all_names(phantoms)
    for case_id, phantom in phantoms.items():
        nifti.write_image(root / case_id / "ct.nii.gz", phantom.image)
        if combined:
            nifti.write_label(root / case_id / "combined_labels.nii.gz", _map(phantom, values))
            continue
        for name in phantom.names.values():
            nifti.write_label(root / case_id / "segmentations" / f"{name}.nii.gz", phantom.mask(name))
    if combined:
        write_json(root / "labels.json", {"labels": {name: value for value, name in values.items()}})


def write_totalsegmentator(root: Path, phantoms: Phantoms, splits: dict[str, str] | None = None) -> None:
    """The same with meta.csv."""
    write_abdomenatlas(root, phantoms)
    if splits is not None:
        write_text(
            root / "meta.csv",
            "image_id;age;split\n" + "".join(f"{case};50;{split}\n" for case, split in splits.items()),
        )


def write_nnunet(
    root: Path, phantoms: Phantoms, *, version: int = 2, dataset: str = "Dataset001_Synthetic"
) -> None:
    """nnUNet_raw with one data set; version 1 has the names the other way round."""
    values, folder = all_names(phantoms), root / dataset
    for case_id, phantom in phantoms.items():
        nifti.write_image(folder / "imagesTr" / f"{case_id}_0000.nii.gz", phantom.image)
        nifti.write_label(folder / "labelsTr" / f"{case_id}.nii.gz", _map(phantom, values))
    if version == 2:
        labels = {"background": 0} | {name: value for value, name in values.items()}
        content = {
            "channel_names": {"0": "CT"},
            "labels": labels,
            "numTraining": len(phantoms),
            "file_ending": ".nii.gz",
        }
    else:
        content = _decathlon_json(phantoms, values)
    write_json(folder / "dataset.json", content)


def _decathlon_json(phantoms: Phantoms, values: dict[int, str]) -> dict:
    training = [
        {"image": f"./imagesTr/{case_id}.nii.gz", "label": f"./labelsTr/{case_id}.nii.gz"}
        for case_id in phantoms
    ]
    labels = {"0": "background"} | {str(value): name for value, name in values.items()}
    return {
        "name": "Synthetic",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": labels,
        "numTraining": len(training),
        "numTest": 0,
        "training": training,
        "test": [],
    }


def write_msd(root: Path, phantoms: Phantoms) -> None:
    """A Decathlon task."""
    values, folder = all_names(phantoms), root / "Task42_Synthetic"
    for case_id, phantom in phantoms.items():
        nifti.write_image(folder / "imagesTr" / f"{case_id}.nii.gz", phantom.image)
        nifti.write_label(folder / "labelsTr" / f"{case_id}.nii.gz", _map(phantom, values))
    write_json(folder / "dataset.json", _decathlon_json(phantoms, values))


def write_monai(root: Path, phantoms: Phantoms) -> None:
    """datalist.json with names, one folder per case."""
    values, training = all_names(phantoms), []
    for case_id, phantom in phantoms.items():
        nifti.write_image(root / "scans" / f"{case_id}.nii.gz", phantom.image)
        nifti.write_label(root / "maps" / f"{case_id}_seg.nii.gz", _map(phantom, values))
        training.append(
            {"image": f"scans/{case_id}.nii.gz", "label": f"maps/{case_id}_seg.nii.gz", "fold": 0}
        )
    write_json(
        root / "datalist.json",
        {"labels": {name: value for value, name in values.items()}, "training": training},
    )


FLARE_VALUES = {"liver": 1, "kidney_right": 2, "spleen": 3, "kidney_left": 13}  # those the phantoms use
HIP_VALUES = {"sacrum": 1, "right_hip": 2, "left_hip": 3, "lumbar_vertebra": 4}


def write_flare22(root: Path, phantoms: Phantoms) -> None:
    """images/<case>_0000.nii.gz + labels/<case>.nii.gz; case ids and names must be FLARE's."""
    for case_id, phantom in phantoms.items():
        nifti.write_image(root / "images" / f"{case_id}_0000.nii.gz", phantom.image)
        nifti.write_label(
            root / "labels" / f"{case_id}.nii.gz",
            _map(phantom, {value: name for name, value in FLARE_VALUES.items()}),
        )


def write_ctpelvic1k(root: Path, phantoms: Phantoms) -> None:
    """<case>_data.nii.gz + <case>_mask_4label.nii.gz in two folders; names must be the set's."""
    for case_id, phantom in phantoms.items():
        nifti.write_image(root / "data" / f"{case_id}_data.nii.gz", phantom.image)
        values = {value: name for name, value in HIP_VALUES.items()}
        nifti.write_label(root / "masks" / f"{case_id}_mask_4label.nii.gz", _map(phantom, values))


# ---- OpenKBP and DICOM ------------------------------------------------------------------------------------


def write_openkbp_csv(root: Path, phantoms: Phantoms, pools: dict[str, str] | None = None) -> None:
    """<pool>/<case>/*.csv; the phantom lies in the corner of the 128^3 volume, the rest is air.

    The lists count an array with axes to posterior, left, inferior.
    """
    for case_id, phantom in phantoms.items():
        folder = root / (pools or {}).get(case_id, "train-pats") / case_id
        image = _posterior_left_inferior(to_canonical(phantom.image).array + 1024.0)
        listed = np.flatnonzero(image > 0)
        _write_sparse(folder / "ct.csv", [f"{index},{image[index]:.1f}" for index in listed])
        for name in phantom.names.values():
            mask = _posterior_left_inferior(to_canonical(phantom.mask(name)).array)
            _write_sparse(folder / f"{name}.csv", [f"{index}," for index in np.flatnonzero(mask)])
        d, h, w = to_canonical(phantom.image).spacing_mm
        write_text(folder / "voxel_dimensions.csv", f"{h}\n{w}\n{d}\n")


def _posterior_left_inferior(array: np.ndarray) -> np.ndarray:
    """A canonical (superior, posterior, left) array as the flat 128^3 list."""
    whole = np.zeros((128, 128, 128), dtype=array.dtype)
    whole[tuple(slice(0, n) for n in array.shape)] = array
    return np.ascontiguousarray(whole[::-1].transpose(1, 2, 0)).ravel()


def _write_sparse(path: Path, lines: list[str]) -> None:
    write_text(path, ",data\n" + "".join(f"{line}\n" for line in lines))


def write_dicom_seg(root: Path, phantoms: Phantoms) -> None:
    """<case>/im_1 (CT series) and <case>/im_3 (DICOM SEG), as AIDA CTPEL has it."""
    from ctseg.scans.dicom import dicom_seg, dicom_series

    for number, (case_id, phantom) in enumerate(phantoms.items(), start=1):
        series, folder = root / case_id / "im_1", root / case_id / "im_3"
        dicom_series.write_series(
            series, phantom.image, patient_id=f"SYNTHETIC-{case_id}", series_number=1, seed=number
        )
        folder.mkdir(parents=True, exist_ok=True)
        dicom_seg.write_segments(folder / "seg.dcm", phantom.label, phantom.names, series)


def write_synthetic(root: Path, phantoms: Phantoms) -> None:
    """The default cohort's folder: the first half of the cases as NIfTI, the others as DICOM."""
    items = list(phantoms.items())
    half = (len(items) + 1) // 2
    write_abdomenatlas(root / "nifti", dict(items[:half]))
    write_dicom_seg(root / "dicom", dict(items[half:]))
    write_json(root / "synthetic.json", {"synthetic": True, "patients": len(items)})


def slanted(affine: np.ndarray, kind: str) -> np.ndarray:
    """An affine that is straight, oblique, or has slices shifted by 0.8 mm each (a gantry tilt of 14.9
    degrees).
    """
    c, s = np.cos(0.3), np.sin(0.3)
    result = affine.copy()
    if kind == "tilted":
        result[1, 0] = 0.8
    if kind != "straight":
        result[:3, :3] = (
            np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
            @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
            @ result[:3, :3]
        )
    result[:3, 3] = -101.3, 57.7, 1203.1
    return result


def with_itk(
    path: Path, array: np.ndarray, affine: np.ndarray, *, compress: bool = True, **metadata: str
) -> Path:
    """The file as SimpleITK writes it."""
    image = sitk.GetImageFromArray(array)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing[::-1].tolist())
    image.SetDirection((affine[:3, :3] / spacing)[:, ::-1].ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    for key, value in metadata.items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path), compress)
    return path
