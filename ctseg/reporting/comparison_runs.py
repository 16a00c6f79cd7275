"""The record of a comparison, put together from the files of its training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ctseg import artifacts
from ctseg.artifacts import Workspace
from ctseg.reporting import results
from ctseg.reporting.comparison import FORMAT, VERSION
from ctseg.reporting.method_sentences import described
from ctseg.reporting.pictures.plots import with_reference
from ctseg.scoring.comparison import compare
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
    by_seed: dict[str, dict[int, results.Results]] = {}
    for method, seed, workspace in runs:
        by_seed.setdefault(method, {})[seed] = results.read(workspace)
    statistics = described(
        compare(
            {
                method: {seed: result.rows_by_key for seed, result in found.items()}
                for method, found in by_seed.items()
            }
        )
    )
    by_method = {method: list(found.values()) for method, found in by_seed.items()}
    everything = [result for found in by_method.values() for result in found]
    return {
        "format": FORMAT,
        "version": VERSION,
        "synthetic": any(result.synthetic for result in everything),
        "facts": _facts(everything[0], runs),
        "statistics": statistics,
        "costs": {method: _costs(found) for method, found in by_method.items()},
        "topology": {
            method: _topology([workspace for name, _, workspace in runs if name == method])
            for method in by_method
        },
        "warnings": _warnings(by_method),
    }


def _facts(first: results.Results, runs: Sequence[tuple[str, int, Workspace]]) -> dict[str, str]:
    train, manifest = first.history["settings"]["train"], first.manifest
    splits = {
        split: sum(case["split"] == split for case in manifest["cases"]) for split in ("train", "val", "test")
    }
    budget = (
        f"{train['minutes']:g} minutes of training each"
        if train["minutes"]
        else f"{train['epochs']} epochs of {train['steps_per_epoch']} steps each"
    )
    return {
        "data": f"layout {manifest['layout']}, {splits['train']} training, {splits['val']} validation and "
        f"{splits['test']} test cases",
        "structures": ", ".join(manifest["structures"]),
        "split": manifest["splits_hash"][:12],
        "budget": budget,
        "seeds": ", ".join(str(seed) for seed in sorted({seed for _, seed, _ in runs})),
        "patches": f"{train['batch_size']} of {' x '.join(map(str, train['patch_size']))} voxels per step",
        "device": str(first.run.get("device", "unknown")),
    }


def _costs(found: Sequence[results.Results]) -> dict[str, float | int | None]:
    histories = [result.history for result in found]
    scans = [case["seconds"] for result in found for case in result.run["cases"]]
    imputed: dict[str, list[float | None]] = {}
    for result in found:
        for row in with_reference(result.rows):
            imputed.setdefault(row["structure"], []).append(row["hd95_imputed_mm"])
    return {
        "parameters": histories[0]["parameters"],
        "peak_memory_gb": max(
            (h["peak_memory_gb"] for h in histories if h.get("peak_memory_gb")), default=None
        ),
        "seconds_per_step": mean([h.get("step_seconds") for h in histories]),
        "steps": round(sum(h["steps"] for h in histories) / len(histories)),
        "seconds_per_scan": mean(scans),
        "hd95_imputed_mm": mean([mean(values) for values in imputed.values()]),
    }


def _topology(workspaces: Sequence[Workspace]) -> dict[str, float | None]:
    """Means over structures, cases and seeds of the columns of `topology.csv`; empty where no structure is a
    tube.
    """
    rows = [
        row
        for workspace in workspaces
        if workspace.topology.exists()
        for row in results.read_rows(workspace.topology)
    ]
    if not rows:
        return {}
    return {name: mean([row.get(name) for row in rows]) for name in TOPOLOGY if name in rows[0]}


def _warnings(by_method: Mapping[str, Sequence[results.Results]]) -> list[str]:
    """What makes the comparison less fair than it looks."""
    patches = {
        tuple(result.history["settings"]["train"]["patch_size"])
        for found in by_method.values()
        for result in found
    }
    steps = {method: [result.history["steps"] for result in found] for method, found in by_method.items()}
    warnings = []
    if len(patches) > 1:
        warnings.append("The methods were trained with patches of different sizes.")
    fewest, most = (
        min(min(values) for values in steps.values()),
        max(max(values) for values in steps.values()),
    )
    if most > 1.5 * fewest:
        warnings.append(
            f"At equal time the methods made between {fewest} and {most} steps: what is compared is "
            "what a user gets in that time, not the methods at convergence."
        )
    return warnings


def is_finished(workspace: Workspace) -> bool:
    """Whether training and evaluation of a run are complete and belong together."""
    if not (workspace.history.exists() and workspace.run_record.exists() and workspace.best_model.exists()):
        return False
    return bool(
        artifacts.read_json(workspace.run_record).get("checkpoint_sha256")
        == artifacts.file_hash(workspace.best_model)
    )
