"""How a result was made: network, data, identity, settings, and the commands that make it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctseg.artifacts import TRAINED, UNFINISHED
from ctseg.reporting.page import DASH, plural, short_hash, text_of
from ctseg.reporting.pictures.plots import number
from ctseg.reporting.results import Results, dig

STOP_WORDS = {**TRAINED, **UNFINISHED}


def facts(found: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of (name, value) on the network, the data and the run."""
    history, manifest, run = found.history, found.manifest, found.run
    train = dig(history, "settings", "train") or {}
    minutes = number(history, "seconds")
    best = text_of(history.get("best_val_dice"))
    stopped = STOP_WORDS.get(str(history.get("stopped")), str(history.get("stopped") or DASH))
    model = [
        ("Network", str(history.get("model") or DASH)),
        ("Parameters", text_of(history.get("parameters"), "{:,}")),
        (
            "Training",
            f"{DASH if minutes is None else f'{minutes / 60:.1f}'} minutes, "
            f"{plural(len(history.get('epochs') or []), 'epoch')}, "
            f"{text_of(history.get('steps'), '{:,}')} steps",
        ),
        ("Ended by", stopped),
        ("Best model", f"epoch {text_of(history.get('best_epoch'), '{:g}')}, validation Dice {best}"),
        ("Patches", _patches(train)),
        ("Device", str(run.get("device") or history.get("device") or DASH)),
    ]
    data = [
        ("Data set", _data_name(manifest)),
        ("Structures", f"{len(found.structures)}: {', '.join(found.structures)}"),
        *_case_counts(manifest),
        ("Grid", _grid(manifest)),
        ("Intensities", _window(manifest)),
    ]
    seeds = dig(manifest, "settings", "seed"), train.get("seed")
    test_split = dig(found.summary, "settings", "split_hash") or manifest.get("splits_hash")
    identity = [
        ("Seeds", f"split {text_of(seeds[0], '{:g}')}, training {text_of(seeds[1], '{:g}')}"),
        ("Split hash", short_hash(test_split)),
        ("Data hash", short_hash(history.get("manifest_hash"))),
        ("Weights hash", short_hash(run.get("checkpoint_sha256"))),
        (
            "Versions",
            ", ".join(f"{name} {value}" for name, value in sorted((manifest.get("versions") or {}).items()))
            or DASH,
        ),
    ]
    return [("Model", model), ("Data", data), ("Identity", identity)]


def _patches(train: Mapping[str, Any]) -> str:
    size = train.get("patch_size")
    return (
        f"{' × '.join(str(n) for n in size)} voxels, batch {train.get('batch_size', DASH)}"
        if isinstance(size, list)
        else DASH
    )


def _data_name(manifest: Mapping[str, Any]) -> str:
    if not manifest:
        return DASH
    root = str(manifest.get("data_root") or "")
    # folders above are nobody's business
    shown = Path(root).name if Path(root).is_absolute() or root.startswith("..") else root
    return (
        f"{'synthetic, ' if manifest.get('synthetic') else ''}{shown or DASH}, layout "
        f"{manifest.get('layout') or DASH}"
    )


def _case_counts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Cases and, where different, patients per split."""
    if not manifest:
        return []
    parts = []
    for split, word in (("train", "training"), ("val", "validation"), ("test", "test")):
        mine = [case for case in manifest.get("cases", []) if case.get("split") == split]
        patients = len({case.get("patient_id") for case in mine})
        parts.append(
            f"{len(mine)} {word}" + (f" ({plural(patients, 'patient')})" if patients != len(mine) else "")
        )
    return [("Cases", ", ".join(parts))]


def _grid(manifest: Mapping[str, Any]) -> str:
    spacing = manifest.get("spacing_mm")
    size = (
        " × ".join(f"{value:g}" for value in spacing) + " mm"
        if spacing
        else "one tensor per scan, finest spacing that holds the body"
    )
    return f"{manifest.get('grid')}, {size}" if manifest.get("grid") else DASH


def _window(manifest: Mapping[str, Any]) -> str:
    window = manifest.get("window_hu")
    return f"{window[0]:g} to {window[1]:g} HU" if window else DASH


def settings_lines(found: Results) -> list[tuple[str, str]]:
    """Every recorded setting as (name, value): of preprocessing (data), training and evaluation.

    A folder shows its name only.
    """
    sources = (
        ("data", found.manifest.get("settings")),
        ("", found.history.get("settings")),
        ("evaluate", found.run.get("settings")),
        ("scores", found.summary.get("settings")),
    )
    lines: dict[str, str] = {}
    for prefix, settings in sources:
        for key, value in _flat(settings if isinstance(settings, dict) else {}, prefix):
            lines.setdefault(key, value)
    return sorted(lines.items())


def _flat(settings: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    lines = []
    for key, value in settings.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        lines += _flat(value, name) if isinstance(value, dict) else [(name, _shown(value))]
    return lines


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    text = DASH if value is None else str(value)
    return (
        Path(text).name
        if isinstance(value, str) and (Path(text).is_absolute() or text.startswith(("..", "~")))
        else text
    )


def commands(found: Results) -> list[str]:
    """The command that makes these results again, as far as the files tell; PATH stands for the folder of the
    scans.
    """
    train, seed = (dig(found.history, "settings", "train") or {}, dig(found.manifest, "settings", "seed"))
    words = ["python run_pipeline.py"]
    if found.manifest.get("task"):
        words.append(f"--task {found.manifest['task']}")
    if found.manifest and not found.manifest.get("synthetic"):
        words.append(f"--data PATH --layout {found.manifest.get('layout')}")
    if found.history.get("model"):
        words.append(f"--model {found.history['model']}")
    if train.get("minutes"):
        words.append(f"--minutes {train['minutes']:g}")
    elif train.get("epochs"):
        words.append(f"--epochs {train['epochs']}")
    if train.get("seed") is not None:
        words.append(
            f"--seed {train['seed']}"
            + (f" --set data.seed={seed}" if seed not in (None, train["seed"]) else "")
        )
    return [" ".join(words)]
