"""How a result was made: network, data, identity, settings, and the commands that make it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctseg.artifacts import TRAINED, UNFINISHED
from ctseg.manifest import Manifest
from ctseg.reporting.page import DASH, plural, short_hash, text_of
from ctseg.reporting.results import Results, dig

STOP_WORDS = {**TRAINED, **UNFINISHED}
Facts = list[tuple[str, str]]


def facts(found: Results) -> list[tuple[str, Facts]]:
    """Groups of (name, value) on the network, the data and the run."""
    history, manifest, run = found.history, found.manifest, found.run
    train = history["settings"]["train"]
    model = [
        ("Network", history["model"]),
        ("Parameters", f"{history['parameters']:,}"),
        ("Starting weights", _start(train)),
        (
            "Training",
            f"{history['seconds'] / 60:.1f} minutes, {plural(len(history['epochs']), 'epoch')}, "
            f"{history['steps']:,} steps",
        ),
        ("Ended by", STOP_WORDS.get(history["stopped"], history["stopped"])),
        (
            "Best model",
            f"epoch {text_of(history['best_epoch'], '{:g}')}, "
            f"validation Dice {text_of(history['best_val_dice'])}",
        ),
        ("Patches", f"{' × '.join(map(str, train['patch_size']))} voxels, batch {train['batch_size']}"),
        ("Device", run.get("device") or history.get("device") or DASH),
    ]
    names = ", ".join(found.structures)
    data, identity = [("Structures", f"{len(found.structures)}: {names}")], []
    if manifest is not None:
        data = _facts_of_data(manifest, data)
        versions = ", ".join(f"{name} {value}" for name, value in sorted(manifest.versions.items()))
        identity = [("Versions", versions or DASH)]
    split_seed = text_of(manifest and manifest.settings.get("seed"), "{:g}")
    tested = dig(found.summary, "settings", "split_hash") or (manifest and manifest.splits_hash)
    identity = [
        ("Seeds", f"split {split_seed}, training {train['seed']}"),
        ("Split hash", short_hash(tested)),
        ("Data hash", short_hash(history["manifest_hash"])),
        ("Weights hash", short_hash(run.get("checkpoint_sha256"))),
        *identity,
    ]
    return [("Model", model), ("Data", data), ("Identity", identity)]


def _start(train: Mapping[str, Any]) -> str:
    """Where the weights came from before training."""
    if train.get("init", "none") == "none":
        return "random"
    return f"{_shown(train['init'])}{', its encoder kept' * (train['freeze'] == 'encoder')}"


def _facts_of_data(manifest: Manifest, structures: Facts) -> Facts:
    """Data set, cases (and, where different, patients) per split, grid and window."""
    root = manifest.data_root  # folders above are nobody's business
    shown = Path(root).name if Path(root).is_absolute() or root.startswith("..") else root
    counts = []
    for split, word in (("train", "training"), ("val", "validation"), ("test", "test")):
        own = manifest.of_split(split)
        patients = len({case.patient_id for case in own})
        counts.append(f"{len(own)} {word}" + f" ({plural(patients, 'patient')})" * (patients != len(own)))
    spacing = "one tensor per scan, finest spacing that holds the body"
    if manifest.spacing_mm:
        spacing = " × ".join(f"{value:g}" for value in manifest.spacing_mm) + " mm"
    low, high = manifest.window_hu
    return [
        ("Data set", f"{'synthetic, ' * manifest.synthetic}{shown or DASH}, layout {manifest.layout}"),
        *structures,
        ("Cases", ", ".join(counts)),
        ("Grid", f"{manifest.grid}, {spacing}"),
        ("Intensities", f"{low:g} to {high:g} HU"),
    ]


def settings_lines(found: Results) -> Facts:
    """Every recorded setting as (name, value): of preprocessing (data), training and evaluation.

    A folder shows its name only.
    """
    lines: dict[str, str] = {}
    for prefix, settings in (
        ("data", found.manifest and found.manifest.settings),
        ("", found.history["settings"]),
        ("evaluate", found.run.get("settings")),
        ("scores", found.summary.get("settings")),
    ):
        for key, value in _flat(settings or {}, prefix):
            lines.setdefault(key, value)
    return sorted(lines.items())


def _flat(settings: Mapping[str, Any], prefix: str) -> Facts:
    lines = []
    for key, value in settings.items():
        name = f"{prefix}.{key}" if prefix else key
        lines += _flat(value, name) if isinstance(value, dict) else [(name, _shown(value))]
    return lines


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("..", "~"))):
        return Path(value).name
    return DASH if value is None else str(value)


def command(found: Results) -> str:
    """The command that makes these results again, as far as the files tell; PATH stands for the folder of the
    scans.
    """
    train, manifest = found.history["settings"]["train"], found.manifest
    words = ["python run_pipeline.py"]
    if manifest is not None and manifest.task:
        words.append(f"--task {manifest.task}")
    if manifest is not None and not manifest.synthetic:
        words.append(f"--data PATH --layout {manifest.layout}")
    words.append(f"--model {found.history['model']}")
    if train.get("init", "none") != "none":
        words.append(f"--init {_shown(train['init'])}")
    words.append(f"--minutes {train['minutes']:g}" if train["minutes"] else f"--epochs {train['epochs']}")
    words.append(f"--seed {train['seed']}")
    if manifest is not None and manifest.settings.get("seed") not in (None, train["seed"]):
        words.append(f"--set data.seed={manifest.settings['seed']}")
    return " ".join(words)
