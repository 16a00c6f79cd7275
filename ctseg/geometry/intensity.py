"""From Hounsfield units to the 0..1 that networks see. The bounds are fixed numbers, never statistics of
scans."""

from __future__ import annotations

import numpy as np


def window(image_hu: np.ndarray, window_hu: tuple[float, float]) -> np.ndarray:
    """Intensities scaled so that the window's ends become 0 and 1, clipped outside; float32, any shape.

    Air, padding and everything outside the scan (-1024 HU and below) becomes exactly 0 with every window that
    begins at -1024 HU or above.
    """
    low, high = window_hu
    scaled = (np.asarray(image_hu, dtype=np.float32) - np.float32(low)) * np.float32(1.0 / (high - low))
    return np.clip(scaled, 0.0, 1.0, out=scaled)
