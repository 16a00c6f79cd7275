"""Settings with the reason behind each number, and the profiles that change them.

What a field may hold stands on the field: the words of a Literal, the Range of a number. defaults < profile <
task < file (--config) < command line. Later stages take what defines the data from the manifest and what
defines the network from the checkpoint, not from today's command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal

from ctseg.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Range:
    """Smallest and largest value of a number; NaN lies outside. zero: 0 is taken too, for "planned"."""

    low: float
    high: float
    zero: bool = False

    def __call__(self, number: float) -> bool:
        """Whether a number lies in it."""
        return self.low <= number <= self.high or (self.zero and number == 0)


Share = Annotated[float, Range(0, 1)]
Fraction = Annotated[float, Range(0, 0.8)]  # of the patients that are not trained on
Weight = Annotated[float, Range(0, 100)]
Hu = Annotated[float, Range(-1e5, 1e5)]
Count = Annotated[int, Range(0, 10**6)]
Positive = Annotated[int, Range(1, 10**6)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
AutoAllNone = Literal["auto", "all", "none"]


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """What `preprocessing.py` makes of the scans."""

    structures: tuple[str, ...] = ()  # empty: every structure the data set names
    pairs: tuple[str, ...] = ()  # "left:right" names of mirror images where the names do not say so
    # auto keeps the scans' own resolution when one tensor holds the body
    grid: Literal["auto", "whole", "windows", "roi"] = "auto"
    # windows and roi grid, along D, H, W or the same for all; empty: median of the training scans
    spacing_mm: tuple[Annotated[float, Range(0.1, 20)], ...] = ()
    window_hu: tuple[Hu, Hu] = (-250.0, 750.0)  # from fat to cortical bone; scaled to 0..1 and clipped
    crop: Literal["body", "lungs"] = "body"  # what of a scan the tensors keep
    # kept around the body, so that skin never touches the tensor's edge
    margin_mm: Annotated[float, Range(0, 1000)] = 10.0
    test_fraction: Fraction = 0.2
    val_fraction: Fraction = 0.1
    # whose organs guide the network: none | labels | totalsegmentator | a folder of masks | a checkpoint
    guide: str = "none"
    # empty: all that the guide knows, without the structures to be learned
    guide_organs: tuple[str, ...] = ()
    # links that leave the data folder lead to scans too; false: such cases are refused
    follow_links: bool = False
    # DICOM slices without rescale tags count as HU, with a warning; false: such a series is refused
    assume_hu: bool = False
    # DICOM SEG of fractions: voxels from this share of its largest value on are the structure; 0: refused
    fractional_threshold: Share = 0.0
    # RTSTRUCT or SEG of a thicker series: interpolate the slices between; false: such a structure is left out
    fill_contour_gaps: bool = False
    # a larger share of faulty cases (two or more) stops the run: the folder is not what we think
    skip_limit: Share = 0.2
    seed: Seed = 0


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Which network; meaning of each value beside the options of the same name in `models/`."""

    name: str = "unet"  # a preset of `models/`
    width: Annotated[int, Range(1, 512)] = 16
    levels: Annotated[int, Range(2, 7)] = 5
    # 2: computed at half the size, in half the time; 0: planned from network and voxels, see planning.py
    stem: Literal[0, 1, 2] = 1
    max_channels: Annotated[int, Range(1, 4096)] = 320  # where the doubling per level ends
    # this and the next two: of unet and multi_decoder; residual blocks per level; empty: 1, 2, 2, ...
    blocks: tuple[Annotated[int, Range(1, 100)], ...] = ()
    # residual: a decoder level adds what it reads, and learns faster
    decoder_unit: Literal["residual", "plain"] = "residual"
    # neither was better for certain (docs/decisions/003-training.md)
    activation: Literal["leaky", "prelu"] = "leaky"
    # this and the next four: of multi_decoder; shared: a single one with as many parameters, the control
    decoders: Literal["per_structure", "shared"] = "per_structure"
    attention: Literal["voxel", "global_gate", "published", "none"] = "voxel"
    attention_stride: Annotated[int, Range(1, 16)] = 2
    attention_levels: Literal[1, 2] = 1  # 2: the decoders read each other before the finest level too
    output: Literal["softmax", "sigmoid"] = "softmax"  # sigmoid: each structure is learned by itself
    # auto here and below, and 0 passes: what the preset says
    backbone: Literal["auto", "unet", "vnet", "multi_decoder"] = "auto"
    passes: Annotated[int, Range(0, 3)] = 0  # trained passes; 1: a single one
    infer_passes: Annotated[int, Range(0, 8)] = 0  # at most this many passes in prediction
    # what a pass sees of the one before; sdm: signed distances
    context: Literal["soft", "hard", "sdm", "zeros"] = "soft"
    # through: a pass learns from the losses of later ones too
    context_grad: Literal["detach", "through"] = "detach"
    context_corruption: Share = 0.3  # chance that a context is damaged in training
    pass_embedding: bool = True  # whether a network is told the number of its pass
    shared_passes: bool = True  # false: each trained pass has a network of its own
    # sdm (= film_spatial), segmap: smoothed masks
    guidance: Literal[
        "auto", "none", "sdm", "film_spatial", "film_global", "concat_input", "spade", "segmap"
    ] = "auto"
    guide_hidden: Annotated[int, Range(1, 512)] = 32
    # 2: modulation fields at half the size, cheaper on a CPU; the maps are smooth
    guide_stride: Literal[1, 2] = 1
    # guided decoder levels: top (finest), bottom (coarsest)
    guide_levels: Literal["all", "top", "bottom"] = "all"
    # where the distance maps bend: the near one resolves an organ, the far one the body
    guide_tau_mm: tuple[Annotated[float, Range(1, 1000)], ...] = (20.0, 100.0)
    guide_presence: bool = True  # whether the network is told which organs are there at all
    film_init: Literal["zero", "default"] = "zero"  # zero: guidance begins as nothing
    connectivity: Literal["auto", "none", "multitask"] = "auto"
    remap: Literal["auto", "none", "lut", "lut_linear"] = "auto"
    kernel: Literal[3, 5] = 5  # this and the next four: of vnet
    stage_convs: Literal["reference", "paper"] = "reference"
    norm: Literal["instance", "group", "batch"] = "instance"
    residual: bool = True  # whether a stage adds what it reads
    deep_supervision: bool = True  # the other networks always have it


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How the network learns."""

    init: str = "none"  # a checkpoint whose weights training starts from (fine-tuning); none: fresh ones
    freeze: Literal["nothing", "encoder"] = "nothing"  # what of the network stays as it started
    minutes: Annotated[float, Range(0, 1e6)] = 0.0  # 0: use epochs
    epochs: Positive = 100
    steps_per_epoch: Positive = 50
    batch_size: Annotated[int, Range(1, 1024)] = 2
    # empty: planned from the data, see ctseg/learning/planning.py
    patch_size: tuple[Annotated[int, Range(2, 128)], ...] = ()
    # upper bound of a planned patch: what sets the cost of a step
    patch_voxels: Annotated[int, Range(4096, 128**3)] = 64**3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Range(1e-8, 10, zero=True)] = 0.0  # 0: planned, see planning.py
    weight_decay: Annotated[float, Range(0, 10)] = 1e-4
    schedule: Literal["cosine", "poly", "plateau"] = "cosine"
    warmup_fraction: Share = 0.03
    first_pass_fraction: Share = 0.35  # several passes: of training, so much with the first pass alone
    gradient_clip: Annotated[float, Range(1e-6, 1e6)] = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # share of patches centred on a structure, drawn per patch: works at batch 1
    foreground_fraction: Share = 0.67
    augmentation: Literal["none", "light", "standard"] = "standard"
    # Left/right mirror as part of the augmentation; off where the mirror image is no anatomy (heart), or a
    # structure of one side lacks its partner.
    mirror: bool = True
    loss: Literal["dice_ce", "dice", "ce", "dice_focal"] = "dice_ce"
    # auto: tubes where the network learns centrelines
    sampling: Literal["auto", "structures", "tubes"] = "auto"
    # chance per guide organ to be hidden, so that a failed guide is survivable
    guidance_dropout: Share = 0.15
    union_weight: Weight = 1.0  # the next five: parts of the connectivity loss
    centreline_weight: Weight = 0.5
    radius_weight: Weight = 0.5
    cldice_weight: Weight = 0.2
    consistency_weight: Weight = 0.1
    # of the weights, with a shorter memory in the first steps
    ema_decay: Annotated[float, Range(0, 0.99999)] = 0.998
    patience: Count = 0  # epochs without a better validation Dice before stopping; 0: never
    validations: Count = 8  # how often the whole validation scans are predicted during a timed run
    seed: Seed = 0

    def fixed_patch(self) -> tuple[int, int, int]:
        """The patch size (D, H, W) after planning."""
        d, h, w = self.patch_size
        return d, h, w


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """How the test scans are predicted and scored."""

    overlap: Annotated[float, Range(0, 0.9)] = 0.5  # of neighbouring sliding windows inside a tensor
    # several passes: volume hands the whole prediction on, window works inside each window
    context_scope: Literal["volume", "window"] = "volume"
    flip: bool = True  # average with the left/right mirrored prediction, when training mirrored too
    # structures of which only the largest component stays; auto: validation decided
    keep_largest: AutoAllNone = "auto"
    boundary_mode: Literal["surfel", "voxel"] = "surfel"  # see docs/artifacts.md
    # structures whose pieces, holes and centre lines are scored; auto: tubes, by their names
    topology: AutoAllNone = "auto"
    # a structure whose views agree with a smaller Dice is named for a look; above 0.7 overlap counts as
    # excellent (Zijdenbos 1994)
    low_confidence: Share = 0.7


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    def record(self) -> dict[str, dict[str, Any]]:
        """The settings as JSON values."""
        return {
            section: {
                key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
            }
            for section, values in dataclasses.asdict(self).items()
        }


# A profile is only what differs from the defaults.
PROFILES: dict[str, dict[str, Any]] = {
    # below 8 GB of GPU memory at 128^3
    "low_vram": {
        "model.width": 8,
        "train.batch_size": 1,
        "train.patch_voxels": 128**3,
        "model.kernel": 3,
        "model.guide_hidden": 16,
    },
    "standard": {"model.width": 16, "train.batch_size": 2, "train.patch_voxels": 128**3},
    "full": {"model.width": 32, "train.batch_size": 2, "train.patch_voxels": 128**3, "train.epochs": 300},
    # small patches: one 128^3 step costs 8 times more and teaches little more on so few steps
    "cpu": {
        "model.width": 16,
        "model.blocks": (1, 1, 1, 1, 1),
        "model.stem": 0,
        "model.kernel": 3,
        "model.guide_hidden": 16,
        "model.guide_stride": 2,
        "train.batch_size": 2,
        "train.patch_voxels": 64**3,
        # in so few steps strong augmentation only slows learning down (docs/decisions/019-half-size.md)
        "train.augmentation": "light",
    },
}


def resolve(profile: str | None, overrides: Mapping[str, Any]) -> Settings:
    """Settings from defaults, a profile and overrides {"train.epochs": 5} (strings are converted).

    UsageError for an unknown profile, and see `changed`.
    """
    if profile is not None:
        check_word("UNKNOWN_PROFILE", "profile", profile, PROFILES)
        overrides = {**PROFILES[profile], **overrides}
    return changed(Settings(), overrides)


def changed(settings: Settings, overrides: Mapping[str, Any]) -> Settings:
    """The settings with other values; UsageError for an unknown key, a wrong value, or values that do not go
    together.
    """
    changes: dict[str, dict[str, Any]] = {section: {} for section in vars(settings)}
    for key, value in overrides.items():
        as_wanted = known_value(key, value)
        section, name = key.split(".")
        changes[section][name] = as_wanted
    result = Settings(
        **{name: dataclasses.replace(part, **changes[name]) for name, part in vars(settings).items()}
    )
    check_together(result)
    return result


def parse_assignments(assignments: list[str]) -> dict[str, str]:
    """{"key": "value"} from the key=value arguments of --set."""
    result = {}
    for text in assignments:
        key, separator, value = text.partition("=")
        if not separator:
            raise UsageError(
                "BAD_OPTION",
                f"--set {text} has no '='",
                "write --set section.key=value, for example --set train.epochs=5",
            )
        result[key.strip()] = value.strip()
    return result


def from_record(record: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Settings from what `Settings.record` returned; what it lacks has its default."""
    return resolve(None, flat(record))


def flat(record: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{"train.epochs": 5} from {"train": {"epochs": 5}}."""
    return {f"{section}.{key}": value for section, values in record.items() for key, value in values.items()}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def check_word(code: str, kind: str, word: str, known: Collection[str]) -> None:
    """Raise UsageError, with the nearest known word, unless it is one of them."""
    if word not in known:
        fix = f"choose one of {', '.join(known)}{did_you_mean(word, known)}"
        raise UsageError(code, f"there is no {kind} '{word}'", fix)


@functools.cache
def setting_types() -> dict[str, Any]:
    """Every settable key with the type on its field."""
    sections = typing.get_type_hints(Settings)
    return flat({name: typing.get_type_hints(kind, include_extras=True) for name, kind in sections.items()})


def known_value(key: str, value: Any) -> Any:
    """A value as the setting `key` wants it. UsageError UNKNOWN_KEY, BAD_VALUE."""
    known = setting_types()
    if key not in known:
        raise UsageError(
            "UNKNOWN_KEY",
            f"there is no setting '{key}'",
            f"see `python run_pipeline.py --list`{did_you_mean(key, known)}",
        )
    return converted(key, value, known[key])


BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def converted(key: str, value: Any, kind: Any) -> Any:
    """A value of the command line, a file or JSON as its field wants it. UsageError BAD_VALUE."""

    def refused(what: str, fix: str) -> UsageError:
        return UsageError("BAD_VALUE", f"{key}={value!r} {what}", fix)

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        number, limits = converted(key, value, arguments[0]), arguments[1]
        if not limits(number):  # as NaN does not
            raise refused(f"lies outside {limits.low} to {limits.high}", "give a value in that range")
        return number
    if origin is Literal:
        words = {str(word): word for word in arguments}
        if str(value) not in words:
            raise refused(
                f"is not one of {', '.join(words)}", f"choose one of them{did_you_mean(str(value), words)}"
            )
        return words[str(value)]
    if origin is tuple:
        parts = [value]
        if isinstance(value, str):  # names may hold brackets, and spaces inside
            text = value if arguments[0] is str else value.strip("()[] ")
            parts = [part.strip() for part in text.split(",") if part.strip()]
        elif isinstance(value, (list, tuple)):
            parts = list(value)
        kinds = [arguments[0]] * len(parts) if arguments[-1] is Ellipsis else list(arguments)
        if len(parts) != len(kinds):
            raise refused(f"has not {len(kinds)} parts", "give so many, with commas between them")
        return tuple(converted(key, part, one) for part, one in zip(parts, kinds))
    try:
        if kind is bool:
            return BOOLEANS[str(value).lower()]
        if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
            raise ValueError
        if kind is int and float(value) != int(float(value)):
            raise ValueError
        return kind(float(value)) if kind is int else kind(value)
    except (ValueError, KeyError, TypeError, OverflowError):
        raise refused(f"is not {KINDS[kind]}", "give a value of that type") from None


def check_together(settings: Settings) -> None:
    """Refuse values that are legal one by one and not together. UsageError BAD_VALUE, BAD_SIZE."""
    if not settings.model.guide_tau_mm:
        raise UsageError(
            "BAD_VALUE",
            "model.guide_tau_mm is empty",
            "give one or more distances, near to far, for example 20,100",
        )
    low_hu, high_hu = settings.data.window_hu
    if not low_hu < high_hu:
        raise UsageError(
            "BAD_VALUE",
            f"data.window_hu={settings.data.window_hu} is empty",
            "give the lower end first, for example -250,750",
        )
    patch = settings.train.patch_size
    if len(patch) not in (0, 3):
        raise UsageError(
            "BAD_SIZE",
            f"train.patch_size={patch} has not three numbers",
            "give depth, height and width in voxels, for example 64,64,64",
        )
    multiple = 2 ** (settings.model.levels - 1)
    for size in patch:
        if size % multiple:
            lower = max(multiple, size // multiple * multiple)
            raise UsageError(
                "BAD_SIZE",
                f"train.patch_size has {size}, not a multiple of {multiple} "
                f"(model.levels={settings.model.levels})",
                f"use {lower} or {min(lower + multiple, 128)}",
            )
