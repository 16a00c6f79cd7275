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
from ctseg.errors import IntegrityError, UsageError
from ctseg.scans.formats.checks import SPACING_RANGE_MM

MOST_STRUCTURES = 255  # label maps are uint8
OWN_ARCH = ("n_structures", "guide_channels")  # of an architecture, what is no setting
FOREIGN = "give a checkpoint as this program wrote it, or train again with --restart if it is your own"
# of a history: one number per epoch, and one per epoch and structure
SERIES = ("epochs", "train_loss", "val_loss", "val_mean_dice", "learning_rate", "epoch_seconds")
SERIES_OF_STRUCTURES = ("train_dice", "val_dice", "val_hausdorff")
# of torch.amp.GradScaler
SCALER_KEYS = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether it is a finite number in that range; bool is none."""
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high


def is_count(value: Any, low: int = 0) -> bool:
    """Whether it is an integer of a plausible size."""
    return type(value) is int and low <= value < 2**53


def are_names(value: Any) -> bool:
    """Whether it is a list of different, non-empty names that a label map can hold."""
    if not isinstance(value, list) or not all(isinstance(name, str) and name.strip() for name in value):
        return False
    return 0 < len(value) <= MOST_STRUCTURES and len(set(value)) == len(value)


def _are_numbers(value: Any, count: int, low: float, high: float) -> bool:
    return isinstance(value, list) and len(value) == count and all(is_number(n, low, high) for n in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def are_weights(value: Any) -> bool:
    """Whether it is a state dict of a network."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in value.items())


def _are_sides(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(value.get(key), list) for key in ("pairs", "lone")):
        return False
    return all(are_names(pair) and len(pair) == 2 for pair in value["pairs"]) and all(
        map(_is_text, value["lone"])
    )


def _optional(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("structures", are_names, f"1 to {MOST_STRUCTURES} different names"),
    ("arch", _is_dict, "a description of the network"),
    ("model", are_weights, "the weights of a network"),
    (
        "settings",
        lambda value: isinstance(value, dict) and all(map(_is_dict, value.values())),
        "the settings of a training",
    ),
    ("preprocess", _is_dict, "a description of the tensors"),
    ("preprocess.grid", lambda value: value in ("whole", "windows", "roi"), "one of whole, windows, roi"),
    (
        "preprocess.spacing_mm",
        _optional(lambda value: _are_numbers(value, 3, *SPACING_RANGE_MM)),
        "three voxel sizes of {:g} to {:g} mm".format(*SPACING_RANGE_MM),
    ),
    (
        "preprocess.window_hu",
        lambda value: _are_numbers(value, 2, -1e5, 1e5) and value[0] < value[1],
        "two intensities in HU, the lower one first",
    ),
    ("preprocess.settings", _is_dict, "the settings of preprocessing"),
    ("manifest_hash", _is_text, "a hash"),
    ("splits_hash", _is_text, "a hash"),
    ("epoch", is_count, "a number of epochs"),
    ("synthetic", lambda value: isinstance(value, bool), "true or false"),
    (
        "guide",
        _optional(lambda value: isinstance(value, dict) and are_names(value.get("organs"))),
        "a guide with its organs",
    ),
    (
        "locator",
        _optional(
            lambda value: (
                isinstance(value, dict) and _is_dict(value.get("arch")) and are_weights(value.get("model"))
            )
        ),
        "a locator with its weights",
    ),
    ("sides", _optional(_are_sides), "pairs of names and lone names"),
    ("largest_component", lambda value: value == [] or are_names(value), "a list of structures"),
)
TRAINING_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("averaged", are_weights, "the weights of a network"),
    ("optimizer", _is_dict, "the state of an optimizer"),
    ("optimizer.state", _is_dict, "the state of an optimizer"),
    (
        "scaler",
        lambda value: (
            value == {}
            or (_is_dict(value) and set(value) == SCALER_KEYS and all(map(is_number, value.values())))
        ),
        "the state of a scaler",
    ),
    (
        "partial",
        _optional(
            lambda value: _is_dict(value) and set(value) == {"begun", "dice", "steps", "total", "rate"}
        ),
        "an epoch",
    ),
    ("later_passes", _optional(lambda value: isinstance(value, bool)), "true or false"),
    ("best", _optional(lambda value: is_number(value, 0, 1)), "a Dice"),
    ("best_epoch", is_count, "an epoch"),
    ("skipped_in_a_row", is_count, "a number of steps"),
    ("steps", is_count, "a number of steps"),
    ("stale", is_count, "a number of validations"),
    ("threads", lambda value: is_count(value, 1), "a number of threads"),
    ("rate_scale", lambda value: is_number(value, 0, 1), "a factor"),
    ("seconds", lambda value: is_number(value, 0), "a duration"),
    ("validation_seconds", lambda value: is_number(value, 0), "a duration"),
    ("validation_total", lambda value: is_number(value, 0), "a duration"),
    ("history", _is_text, "a history"),
    (
        "missed",
        _optional(lambda value: isinstance(value, list) and all(map(_is_place, value))),
        "places that were missed",
    ),
)


def _is_place(value: Any) -> bool:
    """Whether it is a case id and (n, 3) voxels."""
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not isinstance(value[1], torch.Tensor):
        return False
    return isinstance(value[0], str) and value[1].dim() == 2 and value[1].shape[1] == 3


def mismatch(cause: str, file: str, fix: str = FOREIGN) -> IntegrityError:
    """The error of a checkpoint whose content does not fit."""
    return IntegrityError("CHECKPOINT_MISMATCH", cause, fix, file=file)


def check(content: dict[str, Any], size: int, file: str) -> None:
    """Raise IntegrityError unless network, structures, geometry, settings and weights of a checkpoint of
    `size` bytes are plausible and fit each other.
    """
    _check_rules(content, RULES, file)
    check_tensors(content, size, file)
    structures, preprocess = content["structures"], content["preprocess"]
    settings = _settings(content["settings"], file)
    tensors = _settings({"data": preprocess["settings"]}, file)
    window = list(tensors["data"]["window_hu"])
    if window != preprocess["window_hu"]:
        raise mismatch(f"its window {preprocess['window_hu']} HU is not that of its settings, {window}", file)
    spacing = preprocess["spacing_mm"]
    if (spacing is None) != (preprocess["grid"] == "whole"):
        raise mismatch(f"the grid {preprocess['grid']} does not go with spacing_mm {spacing}", file)
    if len(settings["train"]["patch_size"]) != 3:
        raise mismatch("it does not say with which patches the network was trained", file)
    if unknown := set(content["largest_component"]) - set(structures):
        raise mismatch(f"largest_component names {sorted(unknown)[0]}, which is no structure of it", file)
    _check_arch(content["arch"], len(structures), content["model"], file)
    for key in content["arch"].keys() & content["settings"].get("model", {}).keys():
        network, wanted = content["arch"][key], settings["model"][key]
        if network != wanted:
            raise mismatch(f"its network has {key}={_shown(network)}, its settings {_shown(wanted)}", file)
    if content.get("locator"):
        _check_locator(content["locator"], len(structures), file)


def check_tensors(content: Any, size: int, file: str) -> None:
    """Raise IntegrityError unless every tensor is stored in full, within `size` bytes in all, and finite."""
    total = 0
    for key, tensor in _tensors(content):
        size_of_it = tensor.numel() * tensor.element_size()
        plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta"
        if not plain or size_of_it > tensor.untyped_storage().nbytes():
            raise IntegrityError(
                "CHECKPOINT_SIZE", f"'{key}' claims more elements than it stores", FOREIGN, file=file
            )
        total += size_of_it
        if total > size:
            raise IntegrityError(
                "CHECKPOINT_SIZE",
                f"its tensors claim more than the {size} bytes of the file",
                FOREIGN,
                file=file,
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise IntegrityError(
                "CHECKPOINT_NONFINITE",
                f"'{key}' holds NaN or infinity",
                "train again with --restart and a smaller train.learning_rate",
                file=file,
            )


def _check_arch(arch: dict[str, Any], n_structures: int, weights: dict[str, Any], file: str) -> None:
    """Raise IntegrityError unless an architecture is one that the settings allow and that weights for so many
    structures can belong to.
    """
    model = {key: value for key, value in arch.items() if key not in OWN_ARCH}
    accepted = _settings({"model": model}, file)["model"]
    for key, value in model.items():
        if accepted[key] != value:
            raise mismatch(f"its network has {key}={_shown(value)}, which is no value of model.{key}", file)
    if arch.get("n_structures") != n_structures:
        raise mismatch(
            f"its network is for {_shown(arch.get('n_structures'))} structures, not {n_structures}", file
        )
    if not is_count(arch.get("guide_channels", 0)) or not all(
        type(arch[key]) is int for key in ("n_structures", "width", "levels") if key in arch
    ):
        raise mismatch("the sizes of its network are no whole numbers", file)
    if sum(accepted["blocks"]) > len(weights):
        raise mismatch(f"its network has {sum(accepted['blocks'])} blocks and {len(weights)} weights", file)


def check_training(content: dict[str, Any], file: str) -> dict[str, Any]:
    """Raise IntegrityError unless training can go on from the content; return the history in it."""
    _check_rules(content, TRAINING_RULES, file)
    if form(content["averaged"]) != form(content["model"]):
        raise mismatch("its averaged weights are not those of the network", file)
    partial = content.get("partial")
    if partial and not (
        is_count(partial["steps"])
        and all(is_number(partial[key]) for key in ("begun", "total", "rate"))
        and isinstance(partial["dice"], list)
        and len(partial["dice"]) == len(content["structures"])
        and all(value is None or is_number(value) for value in partial["dice"])
    ):
        raise mismatch("it does not say how far its last epoch came", file)
    epoch, names = content["epoch"], content["structures"]
    try:
        history = json.loads(content["history"], parse_constant=_no_constant)
        series = [history[key] for key in SERIES]
        series += [
            history[key][name] for key in ("train_dice", "val_dice", "val_hausdorff") for name in names
        ]
        complete = history["epochs"] == list(range(1, epoch + 1)) and all(
            len(values) == epoch and all(value is None or is_number(value) for value in values)
            for values in series
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        complete = False
    if not complete:
        raise mismatch("its history is not that of its epochs and structures", file)
    return dict(history)


def _no_constant(token: str) -> None:
    raise ValueError(f"{token} is not JSON")


def form(weights: dict[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and number format of each weight."""
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in weights.items()}


def _check_locator(record: dict[str, Any], n_structures: int, file: str) -> None:
    _check_arch(record["arch"], n_structures, record["model"], file)
    patch = record.get("patch_size")
    if not isinstance(patch, list) or len(patch) != 3 or not all(map(is_count, patch)):
        raise mismatch("its locator does not say with which patches it was trained", file)
    levels = {key: value for key, value in record["arch"].items() if key == "levels"}
    _settings({"model": levels, "train": {"patch_size": patch}}, file)


def _check_rules(
    content: dict[str, Any], rules: tuple[tuple[str, Callable[[Any], bool], str], ...], file: str
) -> None:
    for key, holds, wanted in rules:
        value: Any = content
        for name in key.split("."):
            value = value.get(name)
        if not holds(value):
            raise mismatch(f"{key} is {_shown(value)}, not {wanted}", file)


def _settings(record: dict[str, Any], file: str) -> dict[str, Any]:
    """The settings of a record, as values of JSON; what they do not allow is an IntegrityError."""
    try:
        return config.from_record(record).record()
    except UsageError as error:
        raise mismatch(error.cause, file) from error


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything below a value; what stands where is joined with points."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(part, f"{name}.{key}" if name else str(key))


def _shown(value: Any) -> str:
    text = (
        repr(value)
        if value is None or isinstance(value, (str, int, float, list))
        else f"a {type(value).__name__}"
    )
    return text if len(text) <= 60 else f"{text[:57]}..."
