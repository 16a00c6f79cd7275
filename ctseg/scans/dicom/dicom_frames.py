"""Enhanced multi-frame CT: one header per frame, as if each frame were a slice of its own.

Position, orientation, pixel spacing and rescale stand in functional groups, one set for all frames or one per
frame (DICOM PS3.3 C.7.6.16). Once taken from there, the checks of single slices hold for frames too.
"""

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


def functional_group(own: Any, shared: Any, name: str) -> Dataset:
    """What a functional group says of one frame: its own, else that of all frames; empty without either."""
    return (own.get(name) or shared.get(name) or [Dataset()])[0]


def split(header: Any) -> list[Any]:
    """One header per frame of a multi-frame CT: the file's own elements and the frame's geometry and rescale.

    The number of the frame, from 1, is its ReferencedFrameNumber and InstanceNumber. Raises CaseError
    MULTIFRAME_UNSUPPORTED for another class of multi-frame files, NOT_HU for maps, DICOM_CORRUPT for numbers
    that disagree.
    """
    if header.get("SOPClassUID") not in dicom_files.ENHANCED_CT:
        raise refuse("MULTIFRAME_UNSUPPORTED", "several frames in a file that is no enhanced CT", _FIX)
    groups, count = header.get(GROUPS[1]), int(header.get("NumberOfFrames") or 1)
    if not groups:
        cause = "a multi-frame file without functional groups for its frames"
        raise refuse("MULTIFRAME_UNSUPPORTED", cause, _FIX)
    if len(groups) != count:
        cause = f"{count} frames with {len(groups)} descriptions"
        raise refuse("DICOM_CORRUPT", cause, "export the series again")
    shared, elements = (header.get(GROUPS[0]) or [Dataset()])[0], list(header)
    left_out = (*GROUPS, "NumberOfFrames", "InstanceNumber", "ReferencedFrameNumber")
    frames = []
    for number, own in enumerate(groups, start=1):
        frame = Dataset({one.tag: one for one in elements if one.keyword not in left_out})
        for name, keywords in _TAKEN.items():
            group = functional_group(own, shared, name)
            for keyword in keywords:
                frame.pop(keyword, None)  # of the file as a whole: says nothing about a frame
                if keyword in group:
                    frame[keyword] = group[keyword]
        kind = functional_group(own, shared, "CTImageFrameTypeSequence")
        if "FrameType" in kind:
            frame.pop("ImageType", None)  # the element is that of all frames: replaced, not changed
            frame.ImageType = kind.FrameType
        words = [str(word).upper() for word in dicom_files.many(frame.get("ImageType"))[2:]]
        if any(word in _MAPS for word in words):
            cause = f"frame {number} is a map computed from CT, not a CT"
            raise refuse("NOT_HU", cause, "give the CT series itself")
        frame.ReferencedFrameNumber = frame.InstanceNumber = number
        frames.append(frame)
    return frames
