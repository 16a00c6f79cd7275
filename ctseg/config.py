"""Settings with the reason behind each number, and the profiles that change them.

defaults < profile < command line. Later stages take what defines the data from the manifest and what defines
the network from the checkpoint, not from today's command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any

from ctseg.errors import UsageError


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """What `preprocessing.py` makes of the scans."""

    structures: tuple[str, ...] = ()  # empty: every structure the data set names
    pairs: tuple[str, ...] = ()  # "left:right" names of mirror images where the names do not say so
    grid: str = "auto"  # auto | whole | windows | roi; auto keeps the scans' own resolution when one tensor holds the body
    spacing_mm: tuple[
        float, ...
    ] = ()  # windows and roi grid, along D, H, W; empty: median of the training scans
    window_hu: tuple[float, float] = (-250.0, 750.0)  # from fat to cortical bone; scaled to 0..1 and clipped
    crop: str = "body"  # body | lungs: what of a scan the tensors keep
    margin_mm: float = 10.0  # kept around the body, so that skin never touches the tensor's edge
    test_fraction: float = 0.2
    val_fraction: float = 0.1
    guide: str = "none"  # none | labels | totalsegmentator | a folder of masks | a checkpoint (.pth): whose organs guide the network
    guide_organs: tuple[
        str, ...
    ] = ()  # empty: all that the guide knows, without the structures to be learned
    follow_links: bool = (
        False  # links that leave the data folder lead to scans too; false: such cases are refused
    )
    assume_hu: bool = False  # DICOM slices without rescale tags count as HU, with a warning; false: such a series is refused
    fractional_threshold: float = 0.0  # DICOM SEG of fractions: voxels from this share of its largest value on are the structure; 0: refused
    fill_contour_gaps: bool = False  # RTSTRUCT or SEG of a thicker series: the slices between are interpolated; false: such a structure is left out
    skip_limit: float = (
        0.2  # a larger share of faulty cases (two or more) stops the run: the folder is not what we think
    )
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Which network; meaning of each value in `models/`."""

    name: str = "unet"
    width: int = 16
    levels: int = 5
    max_channels: int = 320  # where the doubling per level ends
    blocks: tuple[int, ...] = ()  # residual blocks per level; empty: 1, 2, 2, ...
    decoder_unit: str = "residual"  # of unet and multi_decoder: a decoder level adds what it reads, and learns faster; plain: it does not
    activation: str = (
        "leaky"  # of the same two; neither was better for certain (docs/decisions/003-training.md)
    )
    decoders: str = "per_structure"  # this and the next four: of multi_decoder; shared: a single one with as many parameters, the control
    attention: str = "voxel"
    attention_stride: int = 2
    attention_levels: int = 1  # 2: the decoders read each other before the finest level too
    output: str = "softmax"  # sigmoid: each structure is learned by itself
    backbone: str = "auto"  # this and the next: auto or 0 = what the preset says
    passes: int = 0  # trained passes; 1: a single one
    infer_passes: int = 0  # at most this many passes in prediction
    context: str = "soft"  # what a pass sees of the one before: soft | hard | sdm (signed distances) | zeros
    context_grad: str = "detach"  # through: a pass learns from the losses of later ones too
    context_corruption: float = 0.3  # chance that a context is damaged in training
    pass_embedding: bool = True  # whether a network is told the number of its pass
    shared_passes: bool = True  # false: each trained pass has a network of its own
    guidance: str = "auto"  # auto | none | sdm (= film_spatial) | film_global | concat_input | spade | segmap (smoothed masks)
    guide_hidden: int = 32
    guide_stride: int = 1  # 2: modulation fields at half the size, cheaper on a CPU; the maps are smooth
    guide_levels: str = "all"  # guided decoder levels: all | top (finest) | bottom (coarsest)
    guide_tau_mm: tuple[float, ...] = (
        20.0,
        100.0,
    )  # where the distance maps bend: the near one resolves an organ, the far one the body
    guide_presence: bool = True  # whether the network is told which organs are there at all
    film_init: str = "zero"  # zero: guidance begins as nothing | default
    connectivity: str = "auto"  # auto | none | multitask
    remap: str = "auto"  # auto | none | lut | lut_linear
    kernel: int = 5  # of vnet: 5 | 3
    stage_convs: str = "reference"  # of vnet: reference | paper
    norm: str = "instance"  # of vnet: instance | group | batch
    residual: bool = True  # of vnet: whether a stage adds what it reads
    deep_supervision: bool = True  # of vnet; the others always have it


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How the network learns."""

    minutes: float = 0.0  # 0: use epochs
    epochs: int = 100
    steps_per_epoch: int = 50
    batch_size: int = 2
    patch_size: tuple[int, ...] = ()  # empty: planned from the data, see ctseg/learning/planning.py
    patch_voxels: int = 64**3  # upper bound of a planned patch: what sets the cost of a step
    optimizer: str = "adamw"  # adamw | sgd
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    schedule: str = "cosine"  # cosine | poly | plateau
    warmup_fraction: float = 0.03
    first_pass_fraction: float = 0.35  # several passes: of training, so much with the first pass alone
    gradient_clip: float = 1.0
    precision: str = "auto"  # auto | fp32 | bf16 | fp16
    foreground_fraction: float = (
        0.67  # share of patches centred on a structure, drawn per patch: works at batch 1
    )
    augmentation: str = "standard"  # none | light | standard
    # Left/right mirror as part of the augmentation; off where the mirror image is no anatomy (heart), or a structure of one side lacks its partner.
    mirror: bool = True
    loss: str = "dice_ce"  # dice_ce | dice | ce | dice_focal
    sampling: str = "auto"  # auto | structures | tubes; auto: tubes where the network learns centrelines
    guidance_dropout: float = (
        0.15  # chance per guide organ to be hidden, so that a failed guide is survivable
    )
    union_weight: float = 1.0  # the next five: parts of the connectivity loss
    centreline_weight: float = 0.5
    radius_weight: float = 0.5
    cldice_weight: float = 0.2
    consistency_weight: float = 0.1
    ema_decay: float = 0.998  # of the weights, with a shorter memory in the first steps
    patience: int = 0  # epochs without a better validation Dice before stopping; 0: never
    validations: int = 8  # how often the whole validation scans are predicted during a timed run
    seed: int = 0

    def fixed_patch(self) -> tuple[int, int, int]:
        """The patch size (D, H, W) after planning."""
        d, h, w = self.patch_size
        return d, h, w


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """How the test scans are predicted and scored."""

    overlap: float = 0.5  # of neighbouring sliding windows inside a tensor
    context_scope: str = (
        "volume"  # several passes: volume hands the whole prediction on, window works inside each window
    )
    flip: bool = True  # average with the left/right mirrored prediction, when training mirrored too
    keep_largest: str = "auto"  # auto | all | none: structures of which only the largest component stays; auto: validation decided
    boundary_mode: str = "surfel"  # surfel | voxel, see docs/artifacts.md
    topology: str = "auto"  # auto | all | none: structures whose pieces, holes and centre lines are scored; auto: tubes, by their names
    low_confidence: float = 0.7  # a structure whose views agree with a smaller Dice is named for a look; above 0.7 overlap counts as excellent (Zijdenbos 1994)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    def record(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return typing.cast(dict[str, Any], _plain(dataclasses.asdict(self)))


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
        "model.kernel": 3,
        "model.guide_hidden": 16,
        "model.guide_stride": 2,
        "train.batch_size": 2,
        "train.patch_voxels": 64**3,
    },
}


def resolve(profile: str | None, overrides: dict[str, Any]) -> Settings:
    """Settings from defaults, a profile and overrides {"train.epochs": 5} (strings are converted)."""
    settings = Settings()
    if profile is not None:
        if profile not in PROFILES:
            raise UsageError(
                "UNKNOWN_PROFILE",
                f"there is no profile '{profile}'",
                f"choose one of {', '.join(PROFILES)}{did_you_mean(profile, PROFILES)}",
            )
        settings = _apply(settings, PROFILES[profile])
    return _apply(settings, overrides)


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


def from_record(record: dict[str, Any]) -> Settings:
    """Settings from what `Settings.record` returned."""
    flat = {f"{section}.{key}": value for section, values in record.items() for key, value in values.items()}
    return _apply(Settings(), flat)


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """'; did you mean X?' for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def setting_types() -> dict[str, type]:
    """Every settable key with its type."""
    result: dict[str, type] = {}
    for section in dataclasses.fields(Settings):
        section_type = typing.get_type_hints(Settings)[section.name]
        hints = typing.get_type_hints(section_type)
        result |= {
            f"{section.name}.{field.name}": hints[field.name] for field in dataclasses.fields(section_type)
        }
    return result


def _apply(settings: Settings, overrides: dict[str, Any]) -> Settings:
    known = setting_types()
    for key, value in overrides.items():
        if key not in known:
            raise UsageError(
                "UNKNOWN_KEY",
                f"there is no setting '{key}'",
                f"see `python run_pipeline.py --list`{did_you_mean(key, known)}",
            )
        section, name = key.split(".")
        part = dataclasses.replace(getattr(settings, section), **{name: _convert(key, value, known[key])})
        settings = dataclasses.replace(settings, **{section: part})
    _check(settings)
    return settings


def _convert(key: str, value: Any, wanted: Any) -> Any:
    origin = typing.get_origin(wanted)
    try:
        if origin is tuple:
            arguments = typing.get_args(wanted)
            if isinstance(value, str):
                value = (
                    value if arguments[0] is str else value.strip("()[] ")
                )  # names may hold brackets, and spaces inside
                value = [part.strip() for part in value.split(",") if part.strip()]
            if arguments[-1] is Ellipsis:
                return tuple(_convert(key, part, arguments[0]) for part in value)
            if len(value) != len(arguments):
                raise ValueError
            return tuple(_convert(key, part, kind) for part, kind in zip(value, arguments))
        if wanted is bool:
            words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            return words[str(value).lower()]
        if wanted is int:
            if float(value) != int(float(value)):
                raise ValueError
            return int(float(value))
        if isinstance(wanted, types.GenericAlias):
            raise ValueError
        return wanted(value)
    except (ValueError, KeyError, TypeError, OverflowError):
        kind = getattr(wanted, "__name__", str(wanted))
        raise UsageError(
            "BAD_VALUE",
            f"{key}={value!r} is not a {kind if origin is None else str(wanted)}",
            "give a value of that type",
        ) from None


_CHOICES = {
    "data.grid": ("auto", "whole", "windows", "roi"),
    "data.crop": ("body", "lungs"),
    "train.loss": ("dice_ce", "dice", "ce", "dice_focal"),
    "train.sampling": ("auto", "structures", "tubes"),
    "model.decoder_unit": ("residual", "plain"),
    "model.activation": ("leaky", "prelu"),
    "model.decoders": ("per_structure", "shared"),
    "model.output": ("softmax", "sigmoid"),
    "model.context": ("soft", "hard", "sdm", "zeros"),
    "model.context_grad": ("detach", "through"),
    "model.guidance": (
        "auto",
        "none",
        "sdm",
        "film_spatial",
        "film_global",
        "concat_input",
        "spade",
        "segmap",
    ),
    "model.guide_levels": ("all", "top", "bottom"),
    "model.film_init": ("zero", "default"),
    "model.connectivity": ("auto", "none", "multitask"),
    "model.remap": ("auto", "none", "lut", "lut_linear"),
    "model.stage_convs": ("reference", "paper"),
    "model.norm": ("instance", "group", "batch"),
    "train.optimizer": ("adamw", "sgd"),
    "train.schedule": ("cosine", "poly", "plateau"),
    "train.precision": ("auto", "fp32", "bf16", "fp16"),
    "train.augmentation": ("none", "light", "standard"),
    "evaluate.context_scope": ("volume", "window"),
    "evaluate.boundary_mode": ("surfel", "voxel"),
    "evaluate.keep_largest": ("auto", "all", "none"),
    "evaluate.topology": ("auto", "all", "none"),
}
_RANGES = {
    "train.learning_rate": (1e-8, 10.0),
    "train.epochs": (1, 10**6),
    "train.patch_voxels": (4096, 128**3),
    "train.batch_size": (1, 1024),
    "train.minutes": (0.0, 1e6),
    "train.steps_per_epoch": (1, 10**6),
    "model.width": (1, 512),
    "model.levels": (2, 7),
    "model.max_channels": (1, 4096),
    "evaluate.overlap": (0.0, 0.9),
    "evaluate.low_confidence": (0.0, 1.0),
    "train.ema_decay": (0.0, 0.99999),
    "train.foreground_fraction": (0.0, 1.0),
    "data.test_fraction": (0.0, 0.8),
    "data.val_fraction": (0.0, 0.8),
    "train.gradient_clip": (1e-6, 1e6),
    "train.first_pass_fraction": (0.0, 1.0),
    "data.skip_limit": (0.0, 1.0),
    "data.fractional_threshold": (0.0, 1.0),
    "data.margin_mm": (0.0, 1000.0),
    "data.seed": (0, 2**32 - 1),
    "train.seed": (0, 2**32 - 1),
    "train.weight_decay": (0.0, 10.0),
    "train.warmup_fraction": (0.0, 1.0),
    "train.patience": (0, 10**6),
    "train.validations": (0, 10**6),
    "model.attention_stride": (1, 16),
    "model.attention_levels": (1, 2),
    "model.context_corruption": (0.0, 1.0),
    "model.passes": (0, 3),
    "model.infer_passes": (0, 8),
    "model.guide_hidden": (1, 512),
    "model.guide_stride": (1, 2),
    "model.kernel": (3, 5),
    "train.guidance_dropout": (0.0, 1.0),
    "train.union_weight": (0.0, 100.0),
    "train.centreline_weight": (0.0, 100.0),
    "train.radius_weight": (0.0, 100.0),
    "train.cldice_weight": (0.0, 100.0),
    "train.consistency_weight": (0.0, 100.0),
}


def _check(settings: Settings) -> None:
    record = settings.record()
    for key, choices in _CHOICES.items():
        section, name = key.split(".")
        value = record[section][name]
        if value not in choices:
            raise UsageError(
                "BAD_VALUE",
                f"{key}={value!r} is not one of {', '.join(choices)}",
                f"choose one of them{did_you_mean(str(value), choices)}",
            )
    for key, (low, high) in _RANGES.items():
        section, name = key.split(".")
        value = record[section][name]
        if not low <= value <= high:  # also refuses NaN
            raise UsageError(
                "BAD_VALUE", f"{key}={value!r} lies outside {low} to {high}", "give a value in that range"
            )
    taus_mm = settings.model.guide_tau_mm
    if not taus_mm or not all(1.0 <= tau <= 1000.0 for tau in taus_mm):
        raise UsageError(
            "BAD_VALUE",
            f"model.guide_tau_mm={taus_mm} must be one or more distances of 1 to 1000 mm",
            "give them near to far, for example 20,100",
        )
    low_hu, high_hu = settings.data.window_hu
    if not low_hu < high_hu:
        raise UsageError(
            "BAD_VALUE",
            f"data.window_hu={settings.data.window_hu} is empty",
            "give the lower end first, for example -250,750",
        )
    if len(settings.train.patch_size) not in (0, 3):
        raise UsageError(
            "BAD_SIZE",
            f"train.patch_size={settings.train.patch_size} has not three numbers",
            "give depth, height and width in voxels, for example 64,64,64",
        )
    multiple = 2 ** (settings.model.levels - 1)
    bad = [n for n in settings.train.patch_size if n % multiple or not multiple <= n <= 128]
    if bad:
        lower = max(multiple, bad[0] // multiple * multiple)
        raise UsageError(
            "BAD_SIZE",
            f"train.patch_size has {bad[0]}, not a multiple of {multiple} up to 128 (model.levels={settings.model.levels})",
            f"use {min(lower, 128)} or {min(lower + multiple, 128)}",
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
