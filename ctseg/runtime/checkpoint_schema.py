"""What must hold of the content of a checkpoint before anything is made from it: types, ranges, and that its
parts agree.

A file may come from anywhere, with or without its hash beside it. Nothing here takes more memory than the
file has bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ctseg import config
from ctseg.datasets.case import IGNORED
from ctseg.errors import IntegrityError, UsageError
from ctseg.scans.formats.checks import SPACING_RANGE_MM

MOST_STRUCTURES = IGNORED - 1  # label maps are uint8
OWN_ARCH = ("n_structures", "guide_channels")  # of an architecture, what is no setting
FOREIGN = "give a checkpoint as this program wrote it, or train again with --restart if it is your own"
# of a history: one number per epoch, and one per epoch and structure
SERIES = ("epochs", "train_loss", "val_loss", "val_mean_dice", "learning_rate", "epoch_seconds")
SERIES_OF_STRUCTURES = ("train_dice", "val_dice", "val_hausdorff")
# of torch.amp.GradScaler
SCALER_KEYS = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}

Check = Callable[[Any], bool]


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether it is a finite number in that range; bool is none."""
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high


def is_count(value: Any, low: int = 0) -> bool:
    """Whether it is an integer of a plausible size."""
    return type(value) is int and low <= value < 2**53


def is_list(value: Any, holds: Check, count: int | None = None) -> bool:
    """Whether it is a list, of so many items if that is said, that all hold."""
    return isinstance(value, list) and count in (None, len(value)) and all(map(holds, value))


def are_names(value: Any) -> bool:
    """Whether it is a list of different, non-empty names that a label map can hold."""
    if not is_list(value, lambda name: isinstance(name, str) and bool(name.strip())):
        return False
    return 0 < len(value) <= MOST_STRUCTURES and len(set(value)) == len(value)


def are_weights(value: Any) -> bool:
    """Whether it is a state dict of a network."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in value.items())


def are_sides(value: Any) -> bool:
    """Whether it is what `laterality.Sides.record` returns."""
    return (
        isinstance(value, dict)
        and is_list(value.get("pairs"), lambda pair: are_names(pair) and len(pair) == 2)
        and is_list(value.get("lone"), lambda name: isinstance(name, str))
    )


def is_place(value: Any) -> bool:
    """Whether it is a case id and (n, 3) voxels."""
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not isinstance(value[1], torch.Tensor):
        return False
    return isinstance(value[0], str) and value[1].dim() == 2 and value[1].shape[1] == 3


def a(kind: Any, **parts: Check) -> Check:
    """The check of something of a type; of a dict also of what it holds under some keys."""
    return lambda value: (
        isinstance(value, kind) and all(holds(value.get(key)) for key, holds in parts.items())
    )


def optional(holds: Check) -> Check:
    """The check that takes None too."""
    return lambda value: value is None or holds(value)


def a_number(low: float = -math.inf, high: float = math.inf) -> Check:
    """The check of a number in a range."""
    return lambda value: is_number(value, low, high)


HASH, DESCRIPTION, WEIGHTS = "a hash", "a description of the network", "the weights of a network"
RULES: tuple[tuple[str, Check, str], ...] = (
    ("structures", are_names, f"1 to {MOST_STRUCTURES} different names"),
    ("arch", a(dict), DESCRIPTION),
    ("model", are_weights, WEIGHTS),
    (
        "settings",
        lambda value: a(dict)(value) and all(map(a(dict), value.values())),
        "the settings of a training",
    ),
    ("preprocess", a(dict), "a description of the tensors"),
    ("preprocess.grid", lambda value: value in ("whole", "windows", "roi"), "one of whole, windows, roi"),
    (
        "preprocess.spacing_mm",
        optional(lambda value: is_list(value, a_number(*SPACING_RANGE_MM), 3)),
        "three voxel sizes of {:g} to {:g} mm".format(*SPACING_RANGE_MM),
    ),
    (
        "preprocess.window_hu",
        lambda value: is_list(value, a_number(-1e5, 1e5), 2) and value[0] < value[1],
        "two intensities in HU, the lower one first",
    ),
    ("preprocess.settings", a(dict), "the settings of preprocessing"),
    ("manifest_hash", a(str), HASH),
    ("splits_hash", a(str), HASH),
    ("epoch", is_count, "a number of epochs"),
    ("synthetic", a(bool), "true or false"),
    ("guide", optional(a(dict, organs=are_names)), "a guide with its organs"),
    ("locator", optional(a(dict, arch=a(dict), model=are_weights)), "a locator with its weights"),
    ("sides", optional(are_sides), "pairs of names and lone names"),
    ("largest_component", lambda value: value == [] or are_names(value), "a list of structures"),
)
TRAINING_RULES: tuple[tuple[str, Check, str], ...] = (
    ("averaged", are_weights, WEIGHTS),
    ("optimizer", a(dict), "the state of an optimizer"),
    ("optimizer.state", a(dict), "the state of an optimizer"),
    (
        "scaler",
        lambda value: (
            value == {}
            or (a(dict)(value) and set(value) == SCALER_KEYS and all(map(is_number, value.values())))
        ),
        "the state of a scaler",
    ),
    (
        "partial",
        lambda value: a(dict)(value) and set(value) == {"begun", "dice", "steps", "total", "rate"},
        "an epoch",
    ),
    ("later_passes", a(bool), "true or false"),
    ("best", optional(a_number(0, 1)), "a Dice"),
    ("best_epoch", is_count, "an epoch"),
    *((key, is_count, "a number of steps") for key in ("skipped_in_a_row", "steps")),
    ("stale", is_count, "a number of validations"),
    ("threads", lambda value: is_count(value, 1), "a number of threads"),
    ("precision", a(str), "a number format"),
    ("rate_scale", a_number(0, 1), "a factor"),
    *((key, a_number(0), "a duration") for key in ("seconds", "validation_seconds", "validation_total")),
    ("history", a(str), "a history"),
    ("missed", lambda value: is_list(value, is_place), "places that were missed"),
)


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
        patch = locator.get("patch_size")
        if not is_list(patch, is_count, 3):
            raise mismatch("its locator does not say with which patches it was trained", file)
        levels = {key: value for key, value in locator["arch"].items() if key == "levels"}
        allowed_settings({"model": levels, "train": {"patch_size": patch}}, file)


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
    if not is_count(arch.get("guide_channels", 0)) or not all(
        type(arch[key]) is int for key in ("n_structures", "width", "levels") if key in arch
    ):
        raise mismatch("the sizes of its network are no whole numbers", file)
    if sum(accepted["blocks"]) > len(weights):
        raise mismatch(f"its network has {sum(accepted['blocks'])} blocks and {len(weights)} weights", file)


def check_training(content: dict[str, Any], file: str) -> dict[str, Any]:
    """Raise IntegrityError unless training can go on from the content; return the history in it."""
    check_rules(content, TRAINING_RULES, file)
    if form(content["averaged"]) != form(content["model"]):
        raise mismatch("its averaged weights are not those of the network", file)
    epoch, names, partial = content["epoch"], content["structures"], content["partial"]
    if not (
        is_count(partial["steps"])
        and all(is_number(partial[key]) for key in ("begun", "total", "rate"))
        and is_list(partial["dice"], optional(is_number), len(names))
    ):
        raise mismatch("it does not say how far its last epoch came", file)

    def refuse(token: str) -> None:
        raise ValueError(f"{token} is not JSON")

    try:
        history = json.loads(content["history"], parse_constant=refuse)
        series = [history[key] for key in SERIES]
        series += [history[key][name] for key in SERIES_OF_STRUCTURES for name in names]
        complete = history["epochs"] == list(range(1, epoch + 1)) and all(
            is_list(values, optional(is_number), epoch) for values in series
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        complete = False
    if not complete:
        raise mismatch("its history is not that of its epochs and structures", file)
    return dict(history)


def form(weights: dict[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and number format of each weight."""
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in weights.items()}


def check_rules(content: dict[str, Any], rules: tuple[tuple[str, Check, str], ...], file: str) -> None:
    """Raise IntegrityError for the first rule that does not hold; "a.b" is what stands under b in a."""
    for key, holds, wanted in rules:
        value: Any = content
        for name in key.split("."):
            value = value.get(name)
        if not holds(value):
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
