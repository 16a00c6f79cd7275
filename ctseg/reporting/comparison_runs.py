"""The record of a comparison, put together from the files of its training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ctseg.artifacts import Workspace
from ctseg.errors import PipelineError
from ctseg.reporting import results
from ctseg.reporting.comparison import FORMAT, VERSION
from ctseg.reporting.method_sentences import described
from ctseg.reporting.results import Results
from ctseg.scoring.comparison import compare
from ctseg.scoring.metrics import grouped
from ctseg.scoring.summary import mean

TOPOLOGY = (
    "td_lcc",
    "bd_lcc",
    "precision_lcc",
    "leakage_lcc",
    "td_full",
    "precision_full",
    "cldice",
    "betti_error",
)


def gather(runs: Sequence[tuple[str, int, Workspace]]) -> dict[str, Any]:
    """The record that `comparison.write_comparison` takes. runs: (method, seed, finished workspace)."""
    by_seed: dict[str, dict[int, Results]] = {}
    for method, seed, workspace in runs:
        name = f"comparison/runs/{workspace.root.name}"
        fix = f"delete the folder {name} and run the same command again"
        by_seed.setdefault(method, {})[seed] = results.read_other(workspace, name, fix)
    rows = {
        method: {seed: result.rows_by_key for seed, result in found.items()}
        for method, found in by_seed.items()
    }
    by_method = {method: list(found.values()) for method, found in by_seed.items()}
    everything = [result for found in by_method.values() for result in found]
    return {
        "format": FORMAT,
        "version": VERSION,
        "synthetic": any(result.synthetic for result in everything),
        "facts": _facts(everything[0], sorted({seed for _, seed, _ in runs})),
        "statistics": described(compare(rows)),
        "costs": {method: _costs(found) for method, found in by_method.items()},
        "topology": {
            method: _topology([workspace for name, _, workspace in runs if name == method])
            for method in by_method
        },
        "warnings": _warnings([result.history for result in everything]),
    }


def _facts(first: Results, seeds: Sequence[int]) -> dict[str, str]:
    train, manifest = first.history["settings"]["train"], first.manifest
    budget = (
        f"{train['minutes']:g} minutes of training each"
        if train["minutes"]
        else f"{train['epochs']} epochs of {train['steps_per_epoch']} steps each"
    )
    data = {}
    if manifest is not None:
        n_train, n_val, n_test = (len(manifest.of_split(split)) for split in ("train", "val", "test"))
        data = {
            "data": f"layout {manifest.layout}, {n_train} training, {n_val} validation and {n_test} test "
            "cases",
            "structures": ", ".join(manifest.structures),
            "split": manifest.splits_hash[:12],
        }
    return {
        **data,
        "budget": budget,
        "seeds": ", ".join(map(str, seeds)),
        "patches": f"{train['batch_size']} of {' x '.join(map(str, train['patch_size']))} voxels per step",
        "device": str(first.run.get("device", "unknown")),
    }


def _costs(found: Sequence[Results]) -> dict[str, float | int | None]:
    histories = [result.history for result in found]
    scored = grouped([row for result in found for row in result.scored], "structure")
    memory = [history["peak_memory_gb"] for history in histories if history["peak_memory_gb"]]
    return {
        "parameters": histories[0]["parameters"],
        "peak_memory_gb": max(memory, default=None),
        "seconds_per_step": mean([history.get("step_seconds") for history in histories]),
        "steps": round(sum(history["steps"] for history in histories) / len(histories)),
        "seconds_per_scan": mean([case["seconds"] for result in found for case in result.run["cases"]]),
        "hd95_imputed_mm": mean([mean([row["hd95_imputed_mm"] for row in own]) for own in scored.values()]),
    }


def _topology(workspaces: Sequence[Workspace]) -> dict[str, float | None]:
    """Means over structures, cases and seeds of the columns of `topology.csv`; empty where no structure is a
    tube.
    """
    rows = [
        row
        for workspace in workspaces
        if workspace.topology.exists()
        for row in results.read_rows(workspace.topology, scores=())
    ]
    if not rows:
        return {}
    return {name: mean([row.get(name) for row in rows]) for name in TOPOLOGY if name in rows[0]}


def _warnings(histories: Sequence[Mapping[str, Any]]) -> list[str]:
    """What makes the comparison less fair than it looks."""
    warnings = []
    if len({tuple(history["settings"]["train"]["patch_size"]) for history in histories}) > 1:
        warnings.append("The methods were trained with patches of different sizes.")
    steps = [history["steps"] for history in histories]
    if max(steps) > 1.5 * min(steps):
        warnings.append(
            f"At equal time the methods made between {min(steps)} and {max(steps)} steps: what is compared "
            "is what a user gets in that time, not the methods at convergence."
        )
    return warnings


def is_finished(workspace: Workspace) -> bool:
    """Whether training and evaluation of a run are complete, undamaged and belong together."""
    try:
        found = results.read(workspace)
    except PipelineError:
        return False
    return found.evaluated and results.of_best_model(found.run, workspace)
