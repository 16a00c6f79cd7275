"""What a network sees of a case, and how it is put together from the tensors of preprocessing."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ctseg import artifacts
from ctseg.geometry.boxes import Box, box_shape, box_start, make_box, move, union, within
from ctseg.geometry.volume import Grid
from ctseg.manifest import Case, LocatorFile, Manifest, TensorFile
from ctseg.prediction import guide_input
from ctseg.prediction.guide_input import Guide


@dataclasses.dataclass(frozen=True)
class NetworkInput:
    """What a network sees: an image, and a guide if it takes one.

    image: (D, H, W) in 0..1. origin: its first voxel on the canvas, which the guide covers.
    """

    image: torch.Tensor
    guide: Guide | None = None
    origin: tuple[int, int, int] = (0, 0, 0)

    def part(self, box: Box) -> NetworkInput:
        """The part of it in a box of the canvas."""
        place = move(box, [-first for first in self.origin])
        return dataclasses.replace(self, image=self.image[place], origin=box_start(box))


@dataclasses.dataclass(frozen=True)
class CaseInput:
    """A case to be predicted: what lies on its canvas, and the grid of the scan on which its mask is wanted.

    body: (128, 128, 128) image of the whole body and its grid, for networks with a locator.
    """

    seen: NetworkInput
    canvas: Grid
    scan: Grid
    body: tuple[torch.Tensor, Grid] | None = None


def read_case(
    workspace: artifacts.Workspace, manifest: Manifest, case: Case, *, guided: bool, located: bool
) -> CaseInput:
    """A case of the manifest from its tensors.

    guided, located: whether its guide, and its whole body, are read too.
    """
    image, _, origin = assemble(workspace, case)
    guide = guide_input.load(workspace, manifest, case) if guided else None
    body = None
    if located and case.locator is not None:
        body = read_tensor(workspace, case.locator)[0], case.locator.canvas
    return CaseInput(NetworkInput(image, guide, origin), case.on_canvas(), case.scan, body)


def assemble(
    workspace: artifacts.Workspace, case: Case
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int, int]]:
    """(image, label, first voxel on the canvas) of what there is of a case, from its 128^3 tensors; hashes
    are checked.

    It is the whole canvas, or for a training case of the roi grid the part about the structures. Where
    tensors overlap they hold the same voxels. What no tensor covers is air and background.
    """
    parts = [read_tensor(workspace, file) for file in case.tensors]
    boxes = [
        make_box(file.origin, np.add(file.origin, image.shape))
        for file, (image, _) in zip(case.tensors, parts)
    ]
    whole = union(*boxes)
    image = torch.zeros(box_shape(whole), dtype=torch.float16)
    label = torch.zeros(box_shape(whole), dtype=torch.uint8)
    for box, part in zip(boxes, parts):
        place = within(box, whole)
        image[place], label[place] = part
    return image, label, box_start(whole)


def read_tensor(
    workspace: artifacts.Workspace, file: TensorFile | LocatorFile
) -> tuple[torch.Tensor, torch.Tensor]:
    """(image, label) of one stored tensor, its hash checked."""
    arrays = artifacts.read_arrays(workspace.processed / file.file, ("image", "label"), sha256=file.sha256)
    return torch.from_numpy(arrays["image"]).half(), torch.from_numpy(arrays["label"])
