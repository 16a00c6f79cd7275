"""The pixels of a series as HU: decoded, and each slice rescaled by its own tags."""

from collections import Counter
from pathlib import Path

import numpy as np

from ctseg.errors import Finding, Findings
from ctseg.geometry.volume import AIR_HU
from ctseg.scans.dicom import dicom_frames
from ctseg.scans.dicom.dicom_pixels import Decoder
from ctseg.scans.dicom.slice_geometry import Slice, numbers_of
from ctseg.scans.formats.regular_files import refuse

# rescale types of values that are something else
_NO_HU = ("OD", "Z_EFF", "ED", "EDW", "PCT", "MGML", "HU_MOD")


def read_pixels(slices: list[Slice], array: np.ndarray, assume_hu: bool) -> Findings:
    """Fill `array` (D, H, W) with HU, each slice by its own rescale tags."""
    scalings: Counter[tuple[float, float]] = Counter()
    padded = assumed = 0
    places: dict[Path, dict[int, int]] = {}  # file -> frame -> index d
    for d, item in enumerate(slices):
        places.setdefault(item.path, {})[dicom_frames.frame_of(item.header) or 0] = d
        assumed += _check_values(item, assume_hu)
    with Decoder() as decoder:
        for path, wanted in places.items():
            for number, stored in enumerate(decoder.frames(path)):
                if number not in wanted:
                    continue
                item, target = slices[wanted[number]], array[wanted[number]]
                slope, intercept = [
                    *numbers_of(item, "RescaleSlope"),
                    *numbers_of(item, "RescaleIntercept"),
                ] or [1.0, 0.0]
                scalings[slope, intercept] += 1
                np.multiply(stored, np.float32(slope), out=target)
                target += np.float32(intercept)
                padding = numbers_of(item, "PixelPaddingValue")
                if padding and not -900 < padding[0] * slope + intercept < 3072:
                    # Inside this range the value is also one that tissue has, and the tag is often wrong.
                    outside = stored == padding[0]
                    padded += int(np.count_nonzero(outside))
                    target[outside] = AIR_HU
    if scalings.total() < len(slices):
        cause = f"{scalings.total()} of {len(slices)} frames have pixels"
        raise refuse("DICOM_TRUNCATED", cause, "copy or export the file again", slices[0].path)
    unscaled = (
        f"{assumed} of {len(slices)} slices have no rescale tags; their pixels count as HU, "
        "as data.assume_hu says"
    )
    outside = f"{100 * padded / array.size:.3g} % of the voxels are padding and count as air"
    varied = f"{len(scalings)} different rescale pairs, applied slice by slice"
    noticed = (
        (assumed, "WARN", "RESCALE_ASSUMED", unscaled),
        (padded, "NOTE", "PADDING", outside),
        (len(scalings) > 1, "NOTE", "RESCALE_VARIES", varied),
    )
    return [Finding(*finding) for found, *finding in noticed if found]


def _check_values(item: Slice, assume_hu: bool) -> bool:
    """Refuse a slice whose pixels are no HU; whether they only count as such because of assume_hu."""
    header, path = item.header, item.path
    samples, kind = header.get("SamplesPerPixel") or 1, str(header.get("RescaleType") or "")
    if int(samples) != 1 or str(header.get("PhotometricInterpretation") or "MONOCHROME2") != "MONOCHROME2":
        raise refuse("NOT_SCALAR", "pixels are colours or inverted", "export the original CT series", path)
    if int(header.get("BitsAllocated") or 0) == 1:
        raise refuse("NOT_SCALAR", "pixels are single bits", "export the original CT series", path)
    if kind in _NO_HU:
        raise refuse("NOT_HU", f"the rescale type is {kind}, not HU", "give the CT series in HU", path)
    found = len(numbers_of(item, "RescaleSlope")), len(numbers_of(item, "RescaleIntercept"))
    if assume_hu and found == (0, 0):
        return True
    if found != (1, 1):
        cause = "RescaleSlope or RescaleIntercept is missing, so HU are unknown"
        fix = (
            "export the series again with its rescale tags; if its pixels are HU already: --set "
            "data.assume_hu=true"
        )
        raise refuse("RESCALE_MISSING", cause, fix, path)
    return False
