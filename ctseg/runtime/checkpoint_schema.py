"""What must hold of the content of a checkpoint before anything is made from it: types, ranges, and that its
parts agree.

A file may come from anywhere, with or without its hash beside it. Nothing here takes more memory than the
file has bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypedDict

import torch

from ctseg import config
from ctseg.config import Hu, Range
from ctseg.datasets.case import IGNORED
from ctseg.errors import IntegrityError, UsageError
from ctseg.scans.formats.checks import SPACING_RANGE_MM
from ctseg.structure_names import can_name
from ctseg.typed_values import fits

MOST_STRUCTURES = IGNORED - 1  # label maps are uint8
OWN_ARCH = ("n_structures", "guide_channels")  # of an architecture, what is no setting
FOREIGN = "give a checkpoint as this program wrote it, or train again with --restart if it is your own"


def are_names(value: list[str]) -> bool:
    """Whether they are different, can be names, and are as many as a label map can hold."""
    return 0 < len(set(value)) == len(value) <= MOST_STRUCTURES and all(map(can_name, value))


Names = Annotated[list[str], are_names]
Weights = Annotated[dict[str, torch.Tensor], bool]  # of at least one layer
Count = Annotated[int, Range(0, 2**53)]
Spacing = Annotated[float, Range(*SPACING_RANGE_MM)]


class GuideContent(TypedDict):
    """The organs that guide the network."""

    organs: Names


class LocatorContent(TypedDict):
    """The locator of the roi grid."""

    arch: dict
    model: Weights
    patch_size: tuple[Count, Count, Count]


class SidesContent(TypedDict):
    """What `laterality.Sides.record` returns."""

    pairs: list[Annotated[Names, lambda pair: len(pair) == 2]]
    lone: list[str]


# key -> (type, what is wanted in words); "a.b" is what stands under b in a
Rules = Mapping[str, tuple[Any, str]]
RULES: Rules = {
    "structures": (Names, f"1 to {MOST_STRUCTURES} different names"),
    "arch": (dict, "a description of the network"),
    "model": (Weights, "the weights of a network"),
    "settings": (dict[str, dict], "the settings of a training"),
    "preprocess": (dict, "a description of the tensors"),
    "preprocess.grid": (Literal["whole", "windows", "roi"], "one of whole, windows, roi"),
    "preprocess.spacing_mm": (
        tuple[Spacing, Spacing, Spacing] | None,
        "three voxel sizes of {:g} to {:g} mm".format(*SPACING_RANGE_MM),
    ),
    "preprocess.window_hu": (tuple[Hu, Hu], "two intensities in HU, the lower one first"),
    "preprocess.settings": (dict, "the settings of preprocessing"),
    "manifest_hash": (str, "a hash"),
    "splits_hash": (str, "a hash"),
    "epoch": (Count, "a number of epochs"),
    "synthetic": (bool, "true or false"),
    "guide": (GuideContent | None, "a guide with its organs"),
    "locator": (LocatorContent | None, "a locator with its weights and the size of its patches"),
    "sides": (SidesContent | None, "pairs of names and lone names"),
    "largest_component": (list[str], "a list of structures"),
}


def mismatch(cause: str, file: str, fix: str = FOREIGN) -> IntegrityError:
    """The error of a checkpoint whose content does not fit."""
    return IntegrityError("CHECKPOINT_MISMATCH", cause, fix, file=file)


def check(content: dict[str, Any], size: int, file: str) -> None:
    """Raise IntegrityError unless the content of a checkpoint of `size` bytes is plausible and fits together.

    That is: network, structures, geometry, settings and weights.
    """
    check_rules(content, RULES, file)
    check_tensors(content, size, file)
    structures, preprocess = content["structures"], content["preprocess"]
    settings = allowed_settings(content["settings"], file)
    window = allowed_settings({"data": preprocess["settings"]}, file)["data"]["window_hu"]
    if window != preprocess["window_hu"]:
        raise mismatch(f"its window {preprocess['window_hu']} HU is not that of its settings, {window}", file)
    spacing = preprocess["spacing_mm"]
    if (spacing is None) != (preprocess["grid"] == "whole"):
        raise mismatch(f"the grid {preprocess['grid']} does not go with spacing_mm {spacing}", file)
    if len(settings["train"]["patch_size"]) != 3:
        raise mismatch("it does not say with which patches the network was trained", file)
    if unknown := set(content["largest_component"]) - set(structures):
        raise mismatch(f"largest_component names {sorted(unknown)[0]}, which is no structure of it", file)
    check_arch(content["arch"], len(structures), content["model"], file)
    for key in content["arch"].keys() & content["settings"].get("model", {}).keys():
        network, wanted = content["arch"][key], settings["model"][key]
        if network != wanted:
            raise mismatch(f"its network has {key}={shown(network)}, its settings {shown(wanted)}", file)
    if locator := content["locator"]:
        check_arch(locator["arch"], len(structures), locator["model"], file)
        levels = {key: value for key, value in locator["arch"].items() if key == "levels"}
        allowed_settings({"model": levels, "train": {"patch_size": locator["patch_size"]}}, file)


def check_tensors(content: Any, size: int, file: str) -> None:
    """Raise IntegrityError unless every tensor is stored in full, within `size` bytes in all, and finite."""

    def too_large(cause: str) -> IntegrityError:
        return IntegrityError("CHECKPOINT_SIZE", cause, FOREIGN, file=file)

    total = 0
    for key, tensor in named_tensors(content):
        size_of_it = tensor.numel() * tensor.element_size()
        plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta"
        if not plain or size_of_it > tensor.untyped_storage().nbytes():
            raise too_large(f"'{key}' claims more elements than it stores")
        total += size_of_it
        if total > size:
            raise too_large(f"its tensors claim more than the {size} bytes of the file")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise IntegrityError(
                "CHECKPOINT_NONFINITE",
                f"'{key}' holds NaN or infinity",
                "train again with --restart and a smaller train.learning_rate",
                file=file,
            )


def check_arch(arch: dict[str, Any], n_structures: int, weights: dict[str, Any], file: str) -> None:
    """Raise IntegrityError unless the settings allow an architecture, and such weights can belong to it."""
    model = {key: value for key, value in arch.items() if key not in OWN_ARCH}
    accepted = allowed_settings({"model": model}, file)["model"]
    for key, value in model.items():
        if accepted[key] != value:
            raise mismatch(f"its network has {key}={shown(value)}, which is no value of model.{key}", file)
    if arch.get("n_structures") != n_structures:
        raise mismatch(
            f"its network is for {shown(arch.get('n_structures'))} structures, not {n_structures}", file
        )
    sizes = ("guide_channels", "n_structures", "width", "levels")
    if not all(fits(arch[key], Count) for key in sizes if key in arch):
        raise mismatch("the sizes of its network are no whole numbers", file)
    if sum(accepted["blocks"]) > len(weights):
        raise mismatch(f"its network has {sum(accepted['blocks'])} blocks and {len(weights)} weights", file)


def form(weights: dict[str, torch.Tensor]) -> dict[str, str]:
    """Shape and number format of each weight."""
    return {
        key: f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        for key, tensor in weights.items()
    }


def check_rules(content: dict[str, Any], rules: Rules, file: str) -> None:
    """Raise IntegrityError for the first rule that does not hold."""
    for key, (kind, wanted) in rules.items():
        value: Any = content
        for name in key.split("."):
            value = value.get(name)
        if not fits(value, kind):
            raise mismatch(f"{key} is {shown(value)}, not {wanted}", file)


def allowed_settings(record: dict[str, Any], file: str) -> dict[str, Any]:
    """The settings of a record, as values of JSON; what they do not allow is an IntegrityError."""
    try:
        return config.from_record(record).record()
    except UsageError as error:
        raise mismatch(error.cause, file) from error


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything below a value; what stands where is joined with points."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from named_tensors(part, f"{name}.{key}" if name else str(key))


def shown(value: Any) -> str:
    """A value in a message, shortened."""
    plain = value is None or isinstance(value, (str, int, float, list))
    text = repr(value) if plain else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
