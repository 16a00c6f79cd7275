"""Which earlier training a new one goes on from, and what becomes of the model of another one."""

from __future__ import annotations

import logging
from typing import Any

from ctseg import artifacts
from ctseg.artifacts import Workspace
from ctseg.config import Settings
from ctseg.errors import IntegrityError, UsageError
from ctseg.learning.trainer import Trainer
from ctseg.learning.training_state import Plan
from ctseg.runtime import checkpoints

LOG = logging.getLogger("ctseg.learning")
# a longer run is the same run
MAY_CHANGE = {"train.epochs", "train.minutes", "train.patience", "train.validations"}


def conflicts(before: dict[str, Any], now: dict[str, Any], *, finished: bool) -> list[str]:
    """What differs between the recorded settings of two trainings so that they are not the same.

    Unless finished: so that one cannot go on from the other.
    """
    return [
        f"{section}.{key} was {before.get(section, {}).get(key)}, is {value}"
        for section in ("model", "train")
        for key, value in now[section].items()
        if (finished or f"{section}.{key}" not in MAY_CHANGE) and before.get(section, {}).get(key) != value
    ]


def is_finished(workspace: Workspace) -> bool:
    """Whether the training that is there came to its end; a damaged history is written anew from the last
    state.
    """
    try:
        history = artifacts.read_json(workspace.history) if workspace.history.exists() else {}
        return history.get("stopped") in artifacts.TRAINED
    except IntegrityError:
        return False


def fell_back(workspace: Workspace, settings: Settings, smaller: Settings) -> bool:
    """Whether the training that is there took smaller settings than asked for, because of the memory."""
    content, _ = checkpoints.load_last(workspace.last_model)
    differs = [
        content is not None and bool(conflicts(content["settings"], wanted.record(), finished=False))
        for wanted in (settings, smaller)
    ]
    return differs == [True, False]


def earlier_state(plan: Plan, provenance: dict[str, Any], settings: Settings) -> dict[str, Any] | None:
    """The last state of an earlier training that this one is or goes on from; None where there is none.

    provenance: as checkpoints hold it. UsageError RESUME_CONFLICT when it was
    on the same data with other settings: which of the two is wanted, only the user can say.
    """
    workspace = plan.workspace
    content, warning = checkpoints.load_last(workspace.last_model)
    if warning:
        LOG.warning("%s (using the checkpoint before it)", warning)
    if content is None:
        return None
    if content["manifest_hash"] != provenance["manifest_hash"]:
        what = "other tensors"
        if content["structures"] != provenance["structures"]:
            what = "other structures: " + ", ".join(content["structures"])
        LOG.info("The earlier training here was on other data (%s): training begins anew.", what)
        return None
    finished = is_finished(workspace)
    if differing := conflicts(
        content["settings"], settings.record(), finished=finished and not plan.any_length
    ):
        raise UsageError(
            "RESUME_CONFLICT",
            f"the {'finished' if finished else 'interrupted'} training there had other settings "
            f"({', '.join(differing)})",
            "repeat its settings, train anew with --restart (the model of before is kept), or use "
            "another --workspace",
            file=workspace.relative(workspace.last_model),
        )
    return content


def set_best_aside(workspace: Workspace) -> None:
    """Keep the best model that is there under another name."""
    if kept := checkpoints.set_aside(workspace.best_model):
        LOG.info("The model that was there is kept as %s.", workspace.relative(kept))


def go_on(trainer: Trainer, content: dict[str, Any]) -> bool:
    """Take over the state of an earlier training; True when nothing is left to do."""
    workspace = trainer.workspace
    finished, best_is_there = is_finished(workspace), has_best(workspace, content)
    if finished and best_is_there:
        LOG.info("Already trained with these data and settings; --restart trains anew.")
        return True
    trainer.resume(content)
    if finished:
        trainer.history["stopped"] = artifacts.read_json(workspace.history)["stopped"]
    else:
        epoch, steps = trainer.state.epoch, trainer.state.partial.steps
        LOG.info(
            "Going on after epoch %d%s of the interrupted run (--restart begins anew).",
            epoch,
            f" and {steps} steps" if steps else "",
        )
    if content["best_epoch"] and not best_is_there:
        LOG.warning(
            "WARN BEST_MISMATCH case=- file=%s: it is missing, damaged or of another training; the latest "
            "weights take its place.",
            workspace.relative(workspace.best_model),
        )
        set_best_aside(workspace)
        trainer.replace_best()
    return finished


def has_best(workspace: Workspace, content: dict[str, Any]) -> bool:
    """Whether best_model.pth is the best of the training whose last state this is."""
    try:
        best = checkpoints.load(workspace.best_model)
    except IntegrityError:
        return False
    same = all(best[key] == content[key] for key in ("manifest_hash", "structures", "preprocess"))
    if not same or conflicts(best["settings"], content["settings"], finished=False):
        return False
    return best["epoch"] >= content["best_epoch"]  # later, when the run was killed between the two files
