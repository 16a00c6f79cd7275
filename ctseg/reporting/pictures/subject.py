"""What visualize.py draws, in a film and on a sheet alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ctseg.datasets.masks import Masks
from ctseg.geometry.volume import Volume
from ctseg.reporting.pictures.slices import window_for


@dataclasses.dataclass(frozen=True)
class Subject:
    """Chosen structures of masks, their scan in HU and other masks to compare with, where these are known.

    window_hu: what is black and white in slices, by default chosen by the structures' names. synthetic:
    said in pictures.
    """

    masks: Masks
    chosen: Sequence[str]
    ct: Volume | None = None
    reference: Masks | None = None
    window_hu: tuple[float, float] | None = None
    synthetic: bool = False

    @property
    def window(self) -> tuple[float, float]:
        """The grey values of slices: lowest and highest HU."""
        return self.window_hu or window_for(self.chosen)

    def truth_of(self, name: str) -> Masks | None:
        """The reference where it knows the structure."""
        return self.reference if self.reference is not None and name in self.reference.names else None
