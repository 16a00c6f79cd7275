"""Masks in DICOM: written by us and read by others, fractional and compressed ones, damaged numbers.

Phantoms are synthetic.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from builders import slanted, small_phantom, write_dicom_seg
from independent_dicom import in_order, seg_masks, structure_masks
from pydicom.uid import generate_uid

import preprocessing
from ctseg import artifacts
from ctseg.datasets import case_sources, load_case
from ctseg.datasets.case import CaseRecord, ImageSource, LabelSource
from ctseg.datasets.masks import open_masks
from ctseg.errors import CaseError
from ctseg.geometry.volume import Volume
from ctseg.scans.dicom import dicom_files, dicom_seg, dicom_series, rtstruct

SHAPE = (10, 11, 13)  # 143 pixels: 17 bytes and 7 bits
PHANTOM = small_phantom(shape=SHAPE)


def label_map() -> np.ndarray:
    """The phantom's organs, with a hole, an islet, a diagonal contact and voxels on the image's border."""
    label = PHANTOM.label.array.copy()
    label[2, 3:9, 3:10] = 3
    label[2, 5:7, 5:8] = 0
    label[2, 6, 6] = 1
    label[4, 0, 0] = label[4, 1, 1] = label[4, 10, 12] = 2
    return label


@pytest.fixture(params=["straight", "oblique", "tilted"])
def written(request, tmp_path) -> tuple[Path, Volume]:
    """(folder with ct, seg.dcm and rs.dcm, the label map as it was given)"""
    label = Volume(label_map(), slanted(PHANTOM.image.affine, request.param))
    dicom_series.write_series(
        tmp_path / "ct",
        Volume(PHANTOM.image.array, label.affine),
        patient_id="synthetic",
        series_number=1,
        seed=0,
    )
    dicom_seg.write_segments(tmp_path / "seg.dcm", label, PHANTOM.names, tmp_path / "ct", algorithm="ctseg")
    rtstruct.write_structures(tmp_path / "rs.dcm", label, PHANTOM.names, tmp_path / "ct")
    return tmp_path, label


def test_highdicom_reads_the_seg_voxel_by_voxel(written):
    folder, label = written
    slices = in_order(folder / "ct", label)
    seg = highdicom.seg.segread(folder / "seg.dcm")
    theirs = seg_masks(folder / "seg.dcm", slices)
    assert set(theirs) == set(PHANTOM.names.values())
    for value, name in PHANTOM.names.items():
        assert np.array_equal(theirs[name], label.array == value), name
    assert [
        (int(item.SegmentNumber), item.SegmentLabel, item.SegmentAlgorithmType)
        for item in seg.SegmentSequence
    ] == [(n, name, "AUTOMATIC") for n, name in PHANTOM.names.items()]
    for groups in seg.PerFrameFunctionalGroupsSequence:  # each frame lies on the slice that it names
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        place = next(item.ImagePositionPatient for item in slices if item.SOPInstanceUID == source)
        assert np.allclose(
            np.array(place, float),
            np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float),
            atol=1e-4,
        )


@pytest.mark.parametrize("file", ["seg.dcm", "rs.dcm"])
def test_masks_read_one_by_one_parse_their_file_once_and_again_when_it_changed(tmp_path, file, monkeypatch):
    volume = Volume(PHANTOM.image.array, PHANTOM.image.affine)
    dicom_series.write_series(tmp_path / "ct", volume, patient_id="synthetic", series_number=1, seed=0)
    write = dicom_seg.write_segments if file == "seg.dcm" else rtstruct.write_structures
    real, parsed = dicom_files.read_header, []

    def read_header(path: Path, tags: Any) -> Any:
        parsed.append((path, tags))
        return real(path, tags)

    monkeypatch.setattr(dicom_files, "read_header", read_header)
    for count, label in enumerate((label_map(), label_map() > 1), start=1):
        write(tmp_path / file, Volume(label.astype(np.uint8), volume.affine), PHANTOM.names, tmp_path / "ct")
        masks = open_masks(tmp_path / file, volume)
        for value, name in PHANTOM.names.items():
            assert np.array_equal(masks.read(name).array, label.astype(np.uint8) == value)
        assert parsed.count((tmp_path / file, None)) == count  # with all of its tags


def test_highdicom_places_the_seg_on_the_grid(written):
    folder, label = written
    if abs(np.cross(label.affine[:3, 2], label.affine[:3, 1]) @ label.affine[:3, 0]) < 0.999 * np.prod(
        label.spacing_mm
    ):
        with pytest.raises(RuntimeError):  # a tilted one is no volume to highdicom
            highdicom.seg.segread(folder / "seg.dcm").get_volume()
        return
    theirs = highdicom.seg.segread(folder / "seg.dcm").get_volume(combine_segments=True, dtype=np.uint8)
    index = np.column_stack([np.argwhere(theirs.array), np.ones(np.count_nonzero(theirs.array))])
    ours = index @ (np.linalg.inv(label.affine) @ theirs.affine).T
    assert np.abs(ours - np.rint(ours)).max() < 1e-3
    back = np.zeros(SHAPE, dtype=np.uint8)
    d, h, w = np.rint(ours[:, :3]).astype(int).T
    back[d, h, w] = theirs.array[theirs.array > 0]
    assert np.array_equal(back, label.array)


def test_an_independent_filler_gives_the_structure_set_voxel_by_voxel(written):
    folder, label = written
    theirs = structure_masks(folder / "rs.dcm", in_order(folder / "ct", label))
    assert set(theirs) == set(PHANTOM.names.values())
    for value, name in PHANTOM.names.items():
        assert np.array_equal(theirs[name], label.array == value), name


def test_both_files_are_complete_objects(written):
    """Every element is readable, the file header agrees, and what the standard requires of an RTSTRUCT is
    there.
    """
    folder, _ = written
    for name in ("seg.dcm", "rs.dcm"):
        content = pydicom.dcmread(folder / name)
        content.decode()
        assert (
            content.file_meta.MediaStorageSOPClassUID == content.SOPClassUID
            and content.file_meta.MediaStorageSOPInstanceUID == content.SOPInstanceUID
        )
        assert (
            content.FrameOfReferenceUID
            == pydicom.dcmread(next((folder / "ct").iterdir())).FrameOfReferenceUID
        )
        for keyword in (
            "PatientID",
            "PatientName",
            "PatientBirthDate",
            "PatientSex",
            "StudyInstanceUID",
            "StudyDate",
            "StudyTime",
            "StudyID",
            "AccessionNumber",
            "ReferringPhysicianName",
            "Modality",
            "SeriesInstanceUID",
            "SeriesNumber",
            "Manufacturer",
        ):
            assert keyword in content, f"{name}: {keyword}"
    numbers = [
        [int(item[keyword].value) for item in content[sequence].value]
        for sequence, keyword in (
            ("StructureSetROISequence", "ROINumber"),
            ("ROIContourSequence", "ReferencedROINumber"),
            ("RTROIObservationsSequence", "ReferencedROINumber"),
        )
    ]
    assert numbers == [[1, 2, 3]] * 3


# ---- identity and names -----------------------------------------------------------------------------------


WRITERS = {"seg": dicom_seg.write_segments, "rtstruct": rtstruct.write_structures}
READERS = {"seg": dicom_seg.read_segments, "rtstruct": rtstruct.read_structures}


def test_other_masks_names_or_models_are_other_instances_in_other_series(case):
    folder, _ = case
    changed = Volume(np.where(PHANTOM.label.array == 2, 0, PHANTOM.label.array), PHANTOM.label.affine)
    renamed = {**PHANTOM.names, 2: "other"}
    seen: set[str] = set()
    for label, names, model in (
        (PHANTOM.label, PHANTOM.names, "a"),
        (changed, PHANTOM.names, "a"),
        (PHANTOM.label, renamed, "a"),
        (PHANTOM.label, PHANTOM.names, "b"),
    ):
        for write in WRITERS.values():
            uids = []
            for path in (folder / "first.dcm", folder / "again.dcm"):
                write(path, label, names, folder / "ct", algorithm=model)
                content = pydicom.dcmread(path)
                assert content.file_meta.MediaStorageSOPInstanceUID == content.SOPInstanceUID
                uids.append((content.SOPInstanceUID, content.SeriesInstanceUID))
            assert uids[0] == uids[1]
            seen |= set(uids[0])
    assert len(seen) == 4 * 2 * 2


@pytest.mark.parametrize("kind", WRITERS)
def test_names_of_every_script_and_any_length_are_written_and_read(tmp_path, kind):
    dicom_series.write_series(tmp_path / "ct", PHANTOM.image, patient_id="synthetic", series_number=1, seed=0)
    for path in (tmp_path / "ct").iterdir():
        edit(
            path,
            lambda content: (
                setattr(content, "SpecificCharacterSet", "GB18030"),
                setattr(content, "PatientName", "张^三"),
                setattr(content, "AccessionNumber", "甲"),
            ),
        )
    names = {1: "前列腺 Größe", 2: "A" * 70 + "1", 3: "A" * 70 + "2"}
    WRITERS[kind](tmp_path / "masks.dcm", PHANTOM.label, names, tmp_path / "ct")
    content = pydicom.dcmread(tmp_path / "masks.dcm")
    assert (str(content.PatientName), content.AccessionNumber, content.SpecificCharacterSet) == (
        "张^三",
        "甲",
        "ISO_IR 192",
    )
    masks, _ = READERS[kind](tmp_path / "masks.dcm", PHANTOM.image, tmp_path / "ct")
    assert len(masks) == 3 and all(len(name) <= 64 for name in masks)
    for value, (name, mask) in enumerate(masks.items(), start=1):
        assert name[:50] == names[value][:50] and np.array_equal(mask, PHANTOM.label.array == value)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    "blank", ["FrameOfReferenceUID", "StudyInstanceUID", "SOPClassUID", "SeriesInstanceUID"]
)
def test_a_scan_whose_uids_were_blanked_gets_made_up_ones_with_a_warning(tmp_path, kind, blank):
    dicom_series.write_series(tmp_path / "ct", PHANTOM.image, patient_id="synthetic", series_number=1, seed=0)
    for path in (tmp_path / "ct").iterdir():
        edit(path, lambda content: setattr(content, blank, ""))
    (finding,) = WRITERS[kind](tmp_path / "masks.dcm", PHANTOM.label, PHANTOM.names, tmp_path / "ct")
    assert (finding.severity, finding.code) == ("WARN", "UID_MISSING") and blank in finding.cause
    masks, _ = READERS[kind](tmp_path / "masks.dcm", PHANTOM.image, tmp_path / "ct")
    for value, name in PHANTOM.names.items():
        assert np.array_equal(masks[name], PHANTOM.label.array == value)


REMOVED = ("PatientID", "PatientName", "PatientSex", "PatientBirthDate", "StudyDate", "StudyTime", "StudyID")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_scan_whose_header_was_emptied_by_anonymisation_gets_its_masks(case, kind):
    """Elements taken away, no slice thickness, a series number that has no successor in 32 bits."""
    root, _ = case

    def empty(content: Any) -> None:
        for keyword in (*REMOVED, "AccessionNumber", "ReferringPhysicianName", "SliceThickness"):
            delattr(content, keyword)
        content.SeriesNumber = 2**31 - 1

    for path in (root / "ct").iterdir():
        edit(path, empty)
    assert WRITERS[kind](root / "masks.dcm", PHANTOM.label, PHANTOM.names, root / "ct") == []
    assert 0 < pydicom.dcmread(root / "masks.dcm").SeriesNumber < 2**31
    masks, _ = READERS[kind](root / "masks.dcm", PHANTOM.image, root / "ct")
    for value, name in PHANTOM.names.items():
        assert np.array_equal(masks[name], PHANTOM.label.array == value)


def test_made_up_uids_are_one_for_each_slice_and_the_same_again(case):
    headers = dicom_series.series_headers(case[0] / "ct")
    for header in headers:
        header.SOPInstanceUID = header.FrameOfReferenceUID = ""
    again = [pydicom.Dataset(header) for header in headers]
    (finding,) = dicom_series.fill_uids(headers, Path("seg.dcm"))
    dicom_series.fill_uids(again, Path("seg.dcm"))
    assert "FrameOfReferenceUID, SOPInstanceUID" in finding.cause and headers == again
    assert (
        len({header.SOPInstanceUID for header in headers}) == len(headers)
        and len({header.FrameOfReferenceUID for header in headers}) == 1
    )


# ---- places, gaps and numbers -----------------------------------------------------------------------------


def test_a_seg_that_announces_fewer_frames_than_it_describes_is_refused(tmp_path):
    dicom_series.write_series(tmp_path / "ct", PHANTOM.image, patient_id="synthetic", series_number=1, seed=0)
    dicom_seg.write_segments(tmp_path / "seg.dcm", PHANTOM.label, PHANTOM.names, tmp_path / "ct")

    def shorten(content: Any) -> None:
        content.NumberOfFrames = int(content.NumberOfFrames) - 1

    edit(tmp_path / "seg.dcm", shorten)
    with pytest.raises(CaseError, match=r"DICOM_CORRUPT.*frames with \d+ descriptions"):
        dicom_seg.read_segments(tmp_path / "seg.dcm", PHANTOM.image, tmp_path / "ct")


@pytest.mark.parametrize(("decimals", "codes"), [(6, []), (2, []), (1, ["GRID_ROUNDING"]), (0, None)])
def test_rounded_positions_of_frames_are_told_in_fractions_of_a_voxel(tmp_path, decimals, codes):
    image = Volume(
        PHANTOM.image.array,
        PHANTOM.image.affine + np.array([[0, 0, 0, 0.04], [0, 0, 0, 0.3], [0, 0, 0, 0.03], [0, 0, 0, 0]]),
    )
    dicom_series.write_series(tmp_path / "ct", image, patient_id="synthetic", series_number=1, seed=0)
    dicom_seg.write_segments(
        tmp_path / "seg.dcm", Volume(PHANTOM.label.array, image.affine), PHANTOM.names, tmp_path / "ct"
    )

    def rounded(content: Any) -> None:
        for groups in content.PerFrameFunctionalGroupsSequence:
            position = groups.PlanePositionSequence[0]
            position.ImagePositionPatient = [
                round(float(value), decimals) for value in position.ImagePositionPatient
            ]

    edit(tmp_path / "seg.dcm", rounded)
    if codes is None:
        with pytest.raises(CaseError, match=r"SEG_GEOMETRY.*of a voxel off the nearest slice"):
            dicom_seg.read_segments(tmp_path / "seg.dcm", image, tmp_path / "ct")
        return
    masks, findings = dicom_seg.read_segments(tmp_path / "seg.dcm", image, tmp_path / "ct")
    assert [finding.code for finding in findings] == codes and np.array_equal(
        masks["bladder"], PHANTOM.label.array == 3
    )


def test_a_seg_of_a_thicker_series_is_told_left_out_or_interpolated(tmp_path):
    """Frames of every other slice of the same frame of reference."""
    label = Volume(np.zeros(SHAPE, np.uint8), PHANTOM.image.affine)
    label.array[1:9:2, 4:8, 4:9] = 1
    dicom_series.write_series(tmp_path / "ct", PHANTOM.image, patient_id="synthetic", series_number=1, seed=0)
    dicom_seg.write_segments(tmp_path / "seg.dcm", label, {1: "liver"}, tmp_path / "ct")
    for gaps, voxels in (("keep", 4 * 20), ("fill", 7 * 20), ("leave_out", None)):
        masks, (finding,) = dicom_seg.read_segments(
            tmp_path / "seg.dcm", PHANTOM.image, tmp_path / "ct", gaps=gaps
        )
        assert (
            finding.code == "LABEL_GAPS"
            and (None if "liver" not in masks else masks["liver"].sum()) == voxels
        )


def test_segments_without_a_label_are_told_and_gaps_in_their_numbers_do_not_matter(case):
    folder, image = case

    def change(content: Any) -> None:
        content.SegmentSequence[0].SegmentLabel = ""
        content.SegmentSequence[2].SegmentNumber = 9
        for groups in content.PerFrameFunctionalGroupsSequence:
            for item in groups.SegmentIdentificationSequence:
                item.ReferencedSegmentNumber = {3: 9}.get(
                    item.ReferencedSegmentNumber, item.ReferencedSegmentNumber
                )

    edit(folder / "seg.dcm", change)
    masks, (finding,) = dicom_seg.read_segments(folder / "seg.dcm", image, folder / "ct")
    assert (
        finding.code == "SEG_NAMELESS"
        and np.array_equal(masks["bladder"], PHANTOM.label.array == 3)
        and "kidney_left" not in masks
    )
    edit(folder / "seg.dcm", lambda content: setattr(content.SegmentSequence[1], "SegmentNumber", 9))
    with pytest.raises(CaseError, match=r"SEG_AMBIGUOUS.*same number"):
        dicom_seg.read_segments(folder / "seg.dcm", image, folder / "ct")


# ---- fractional, compressed, damaged -----------------------------------------------------------------------


@pytest.fixture
def case(tmp_path) -> tuple[Path, Volume]:
    """(folder with ct and seg.dcm, image)"""
    dicom_series.write_series(tmp_path / "ct", PHANTOM.image, patient_id="synthetic", series_number=1, seed=0)
    dicom_seg.write_segments(tmp_path / "seg.dcm", PHANTOM.label, PHANTOM.names, tmp_path / "ct")
    return tmp_path, PHANTOM.image


def rewrite(folder: Path, pixels: np.ndarray, kind: str, **more: Any) -> None:
    """Another kind of SEG of the same series, by highdicom."""
    binary = highdicom.seg.segread(folder / "seg.dcm")
    headers = dicom_series.series_headers(folder / "ct")
    planes = dicom_series.label_planes(PHANTOM.label, headers)
    highdicom.seg.Segmentation(
        source_images=headers,
        pixel_array=pixels[planes],
        segmentation_type=kind,
        segment_descriptions=[
            highdicom.seg.SegmentDescription.from_dataset(item) for item in binary.SegmentSequence
        ],
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
        **more,
    ).save_as(folder / "seg.dcm")


def test_a_threshold_makes_masks_of_fractions(case):
    folder, image = case
    # 0.25, 0.5, 0.75 inside
    shares = np.stack(
        [np.where(PHANTOM.label.array == value, 0.25 * value, 0.1) for value in PHANTOM.names], axis=-1
    )
    rewrite(folder, shares, "FRACTIONAL", fractional_type="OCCUPANCY", max_fractional_value=200)
    with pytest.raises(CaseError, match=r"SEG_FRACTIONAL.*0 to 200 \(type OCCUPANCY\)"):
        dicom_seg.read_segments(folder / "seg.dcm", image, folder / "ct")
    for threshold, kept in ((0.2, (1, 2, 3)), (0.5, (2, 3)), (0.75, (3,)), (1.0, ()), (0.05, None)):
        masks, (finding,) = dicom_seg.read_segments(
            folder / "seg.dcm", image, folder / "ct", fractional_threshold=threshold
        )
        for value, name in PHANTOM.names.items():
            expected = (
                np.ones(SHAPE, bool) if kept is None else (PHANTOM.label.array == value) & (value in kept)
            )
            assert np.array_equal(masks[name], expected), (threshold, name)
        assert "OCCUPANCY, largest value 200" in finding.cause


def test_the_setting_reaches_the_tensors_and_the_manifest(tmp_path, capsys):
    """The whole stage: refused without the setting; with it the masks are those of the binary files, and
    manifest and report tell it.
    """
    phantoms = {f"case_{seed}": small_phantom(seed=seed, shape=SHAPE) for seed in range(3)}
    write_dicom_seg(tmp_path / "data", phantoms)
    for case_id in phantoms:
        edit(tmp_path / "data" / case_id / "im_3" / "seg.dcm", to_fractional)
    words = ["--data", str(tmp_path / "data"), "--workers", "1", "--set", "data.grid=whole"]
    assert (
        preprocessing.main(["--workspace", str(tmp_path / "refused"), *words]) == 4
        and "SEG_FRACTIONAL" in capsys.readouterr().out
    )
    workspace = artifacts.Workspace(tmp_path / "work")
    assert (
        preprocessing.main(
            ["--workspace", str(workspace.root), *words, "--set", "data.fractional_threshold=0.5"]
        )
        == 0
    )
    manifest = artifacts.read_json(workspace.manifest)
    for entry in manifest["cases"]:
        assert entry["source"]["labels"]["fractional_threshold"] == 0.5 and [
            finding["code"] for finding in entry["findings"]
        ] == ["SEG_FRACTIONAL"]
        phantom = phantoms[entry["case_id"]]
        assert entry["voxels"] == {
            name: int((phantom.label.array == value).sum()) for value, name in phantom.names.items()
        }
        assert (
            case_sources.source_from_record(entry["source"], tmp_path / "data").labels.fractional_threshold
            == 0.5
        )


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = pydicom.dcmread(path)
    change(content)
    content.save_as(path)


def to_fractional(content: Any) -> None:
    """A binary SEG as the fractional one with 255 for 1."""
    pixels = content.pixel_array.astype(np.uint8) * 255
    content.BitsAllocated = content.BitsStored = 8
    content.HighBit = 7
    content.SegmentationType, content.SegmentationFractionalType, content.MaximumFractionalValue = (
        "FRACTIONAL",
        "PROBABILITY",
        255,
    )
    content.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)


def test_compressed_segmentations(case, monkeypatch):
    folder, image = case
    rewrite(folder, PHANTOM.label.array, "LABELMAP")
    edit(
        folder / "seg.dcm",
        lambda content: content.compress(
            pydicom.uid.RLELossless, encoding_plugin="pydicom", generate_instance_uid=False
        ),
    )
    masks, _ = dicom_seg.read_segments(folder / "seg.dcm", image, folder / "ct")
    for value, name in PHANTOM.names.items():
        assert np.array_equal(masks[name], PHANTOM.label.array == value), name
    monkeypatch.setattr("ctseg.scans.dicom.dicom_pixels.installed", lambda _: ())
    with pytest.raises(CaseError, match=r"CODEC_MISSING.*requirements-dicom"):
        dicom_seg.read_segments(folder / "seg.dcm", image, folder / "ct")


def test_bits_packed_by_hand_are_read(case):
    """The golden case of frames that do not end with a byte: one bit per pixel, lowest bit first, no gap
    between frames.
    """
    folder, image = case
    content = pydicom.dcmread(folder / "seg.dcm")
    planes = [
        round(
            float(
                (
                    np.linalg.inv(image.affine)
                    @ [*map(float, groups.PlanePositionSequence[0].ImagePositionPatient), 1]
                )[0]
            )
        )
        for groups in content.PerFrameFunctionalGroupsSequence
    ]
    numbers = [
        int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        for groups in content.PerFrameFunctionalGroupsSequence
    ]
    bits = np.random.default_rng(3).integers(0, 2, (len(planes), *SHAPE[1:]))
    packed = bytearray((bits.size + 7) // 8)
    for index, bit in enumerate(bits.ravel()):
        packed[index // 8] |= int(bit) << (index % 8)
    content.PixelData = bytes(packed) + b"\0" * (len(packed) % 2)
    content.save_as(folder / "seg.dcm")
    masks, _ = dicom_seg.read_segments(folder / "seg.dcm", image, folder / "ct")
    for plane, number, frame in zip(planes, numbers, bits):
        assert np.array_equal(masks[PHANTOM.names[number]][plane], frame == 1)


def test_numbers_without_a_segment_are_refused(case):
    folder, image = case
    edit(
        folder / "seg.dcm",
        lambda content: setattr(
            content.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0],
            "ReferencedSegmentNumber",
            9,
        ),
    )
    with pytest.raises(CaseError, match=r"LABEL_VALUES.*found segment numbers \[9\], expected \[1, 2, 3\]"):
        dicom_seg.read_segments(folder / "seg.dcm", image, folder / "ct")
    dicom_seg.write_segments(folder / "seg.dcm", PHANTOM.label, PHANTOM.names, folder / "ct")
    rewrite(folder, PHANTOM.label.array, "LABELMAP")
    assert len(dicom_seg.read_segments(folder / "seg.dcm", image, folder / "ct")[0]) == 3
    edit(
        folder / "seg.dcm",
        lambda content: setattr(content, "PixelData", content.PixelData.replace(b"\x02", b"\x07")),
    )
    with pytest.raises(CaseError, match=r"LABEL_VALUES.*found segment numbers \[7\], expected"):
        dicom_seg.read_segments(folder / "seg.dcm", image, folder / "ct", names=["bladder"])


def test_pixels_without_rescale_count_as_hu_only_when_told(tmp_path):
    dicom_series.write_series(tmp_path / "ct", PHANTOM.image, patient_id="synthetic", series_number=1, seed=0)
    for path in (tmp_path / "ct").iterdir():
        edit(path, without_rescale)
    source = ImageSource("dicom", tmp_path / "ct")
    with pytest.raises(CaseError, match=r"RESCALE_MISSING.*data\.assume_hu=true"):
        load_case.load_image(source)
    allowed = ImageSource("dicom", tmp_path / "ct", assume_hu=True)
    volume, (finding,) = load_case.load_image(allowed)
    assert np.array_equal(volume.array, PHANTOM.image.array)
    assert (finding.severity, finding.code) == (
        "WARN",
        "RESCALE_ASSUMED",
    ) and "10 of 10 slices" in finding.cause
    record = CaseRecord(
        "a", "a", allowed, LabelSource("dicom_seg", tmp_path / "seg.dcm", fractional_threshold=0.3)
    )
    assert (
        case_sources.source_from_record(case_sources.source_to_record(record, tmp_path), tmp_path) == record
    )
    for path in (
        tmp_path / "ct"
    ).iterdir():  # one of the two tags alone is no licence, and stored HU + 1024 are found out
        edit(path, lambda content: setattr(content, "RescaleIntercept", "0"))
    with pytest.raises(CaseError, match="RESCALE_MISSING"):
        load_case.load_image(allowed)


def without_rescale(content: Any) -> None:
    stored = content.pixel_array.astype(int) - 1024
    del content.RescaleSlope, content.RescaleIntercept, content.RescaleType
    content.PixelRepresentation, content.PixelData = 1, stored.astype("<i2").tobytes()
