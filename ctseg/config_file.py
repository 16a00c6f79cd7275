"""Settings as a TOML file: read with --config, written beside the results of a run, which it repeats."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctseg import artifacts, config
from ctseg.artifacts import Workspace
from ctseg.errors import UsageError

FIRST_LINE = "# Settings of this workspace, as its stages used them; --config with this file repeats them.\n"


def read(path: Path) -> tuple[str | None, dict[str, Any]]:
    """(task, {"train.epochs": 5}) of a file with sections such as [train] and, above, maybe task = "NAME".

    UsageError for what is no such file, an unknown key, or a value that its setting does not allow.
    """
    content = _parsed(path)
    task = content.pop("task", None)
    overrides: dict[str, Any] = {}
    for name, part in content.items():
        overrides |= config.flat({name: part}) if isinstance(part, dict) else {name: part}
    try:
        if task is not None and not isinstance(task, str):
            raise UsageError("BAD_VALUE", f"task={task!r} is not a text", 'write for example task = "pelvis"')
        for key, value in overrides.items():
            config.known_value(key, value)
    except UsageError as error:
        error.file = path.name
        raise
    return task, overrides


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        cause = f"--config {path} {'is no file' if path.exists() else 'does not exist'}"
        raise UsageError("BAD_CONFIG", cause, "give a TOML file with settings", file=path.name)
    try:
        # "sig": editors of Windows begin a file with a mark
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8
        fix = "write sections and values as in TOML, for example [train] and below it epochs = 5"
        raise UsageError("BAD_CONFIG", f"it is not TOML ({error})", fix, file=path.name) from error


def note(workspace: Workspace, sections: Mapping[str, Mapping[str, Any]], task: str | None) -> None:
    """Write what a stage used into config.toml of its workspace; sections of other stages stay as they are.

    A file of that name which is not ours is left alone.
    """
    path = workspace.config
    noted: dict[str, dict[str, Any]] = {}
    if path.exists():
        if not path.is_file() or not path.read_bytes().startswith(FIRST_LINE.encode()):
            return
        try:
            earlier, _ = read(path)
            task = task or earlier
            noted = {name: part for name, part in _parsed(path).items() if isinstance(part, dict)}
        except UsageError:  # damaged: this stage begins it anew
            noted = {}
    order = [name for name in config.Settings().record() if name in {**noted, **sections}]
    text = FIRST_LINE + (f"task = {_toml(task)}\n" if task else "")
    for name in order:
        values = {**noted, **sections}[name]
        text += f"\n[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
    artifacts.write_text(path, text)


def _toml(value: Any) -> str:
    """A value of a settings record in TOML, whose texts are those of JSON but for two characters."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode()  # a name may hold bytes that are no UTF-8
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower()  # true, 5, 1e-08
