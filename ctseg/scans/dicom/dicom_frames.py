"""Enhanced multi-frame CT: one header per frame, as if each frame were a slice of its own.

Position, orientation, pixel spacing and rescale stand in functional groups, one set for all frames or one per
frame (DICOM PS3.3 C.7.6.16). Once taken from there, the checks of single slices hold for frames too.
"""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset

from ctseg.scans.dicom import dicom_files
from ctseg.scans.formats.regular_files import refuse

GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_TAKEN = {  # functional group -> what of it a single slice has in its header
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
}
# in the image type: values are no HU any more
_MAPS = ("PERFUSION", "QUANTITY", "STD_DEVIATION", "DIVISION", "MULTIPLICATION", "SUBTRACTION")
_FIX = "convert the series to single slices or to NIfTI"


def is_multiframe(header: Any) -> bool:
    """Whether a file holds several images, or could."""
    return header.get("SOPClassUID") in dicom_files.ENHANCED_CT or int(header.get("NumberOfFrames") or 1) > 1


def frame_of(header: Any) -> int | None:
    """Which frame of its file a header of `split` stands for, counted from 0; None for a file of one
    slice."""
    number = header.get("ReferencedFrameNumber")
    return None if number is None else int(number) - 1


def split(header: Any) -> list[Any]:
    """One header per frame of a multi-frame CT: the file's own elements and the frame's geometry and rescale.

    The number of the frame, from 1, is its ReferencedFrameNumber and InstanceNumber. Raises CaseError
    MULTIFRAME_UNSUPPORTED for another class of multi-frame files, NOT_HU for maps, DICOM_CORRUPT for numbers
    that disagree.
    """
    if header.get("SOPClassUID") not in dicom_files.ENHANCED_CT:
        raise refuse("MULTIFRAME_UNSUPPORTED", "several frames in a file that is no enhanced CT", _FIX)
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        raise refuse(
            "MULTIFRAME_UNSUPPORTED", "a multi-frame file without functional groups for its frames", _FIX
        )
    if len(groups) != int(header.get("NumberOfFrames") or 1):
        raise refuse(
            "DICOM_CORRUPT",
            f"{int(header.get('NumberOfFrames') or 1)} frames with {len(groups)} descriptions",
            "export the series again",
        )
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    common = [
        element
        for element in header
        if element.keyword not in (*GROUPS, "NumberOfFrames", "InstanceNumber", "ReferencedFrameNumber")
    ]
    return [_frame(common, shared, own, number) for number, own in enumerate(groups, start=1)]


def _frame(common: list[Any], shared: Any, own: Any, number: int) -> Dataset:
    frame = Dataset()
    for element in common:
        frame[element.tag] = element
    for group, keywords in _TAKEN.items():
        items = own.get(group) or shared.get(group) or []
        for keyword in keywords:
            if items and keyword in items[0]:
                frame[keyword] = items[0][keyword]
            elif keyword in frame:
                del frame[keyword]  # of the file as a whole: says nothing about a frame
    kinds = own.get("CTImageFrameTypeSequence") or shared.get("CTImageFrameTypeSequence") or []
    if kinds and "FrameType" in kinds[0]:
        frame.pop("ImageType", None)  # the element is that of all frames: replaced, not changed
        frame.ImageType = kinds[0].FrameType
    words = [str(word).upper() for word in dicom_files.many(frame.get("ImageType"))[2:]]
    if any(word in _MAPS for word in words):
        raise refuse(
            "NOT_HU", f"frame {number} is a map computed from CT, not a CT", "give the CT series itself"
        )
    frame.ReferencedFrameNumber = frame.InstanceNumber = number
    return frame
