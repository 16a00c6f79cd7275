"""The colours of structures on a CT: the same in pictures and in DICOM contours."""

from __future__ import annotations

# bright on a grey ground
ON_CT = ("#56B4E9", "#E69F00", "#2fd6a3", "#F0E442", "#ff86c8", "#ff7f41", "#b9a6ff")


def rgb_of(number: int) -> tuple[int, int, int]:
    """Red, green and blue (0 to 255) of a label id (from 1)."""
    red, green, blue = bytes.fromhex(ON_CT[(number - 1) % len(ON_CT)][1:])
    return red, green, blue
