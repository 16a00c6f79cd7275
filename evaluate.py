"""Stage 3: predict the test scans and score them; or score any masks against any others.

Reads   processed_data/ and checkpoints/best_model.pth; or the masks --reference and --prediction, a file each
        or folders of cases: label maps (NIfTI, NRRD, MetaImage), .seg.nrrd of 3D Slicer, folders with one
        file per structure, DICOM SEG or RTSTRUCT (these with --ct)
Writes  evaluation_results/ (or --output; without it masks are only printed): predictions/,
        detailed_results.json, summary_statistics.json, summary.json, per_case.csv, evaluation_report.txt,
        dice_boxplots.png, dice_vs_hausdorff.png, metrics_heatmap.png, and topology.csv when a structure is a
        tube (airway, vessels); of a model also calibration.json, reliability.png and confidence.png

    python evaluate.py
    python evaluate.py --reference labelsTs --prediction predicted --output scores --labels names.json
    python evaluate.py --reference rtstruct.dcm --prediction masks/a.nii.gz --ct series --structures liver
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg import cli, config_file
from ctseg.artifacts import UNFINISHED, Workspace, read_json
from ctseg.cli import LOG, Options
from ctseg.config import Settings
from ctseg.errors import PreconditionError, UsageError
from ctseg.manifest import Manifest
from ctseg.outputs import keep_inputs, require_writable

if TYPE_CHECKING:
    from ctseg.evaluation.mask_comparison import MaskPair
    from ctseg.evaluation.mask_pairs import LabelNames, Pair, ScoreSettings
    from ctseg.evaluation.result_files import Trust
    from ctseg.evaluation.scored import Scored
    from ctseg.scoring.metrics import Row, Structure


def run(workspace: Workspace, settings: Settings, options: Options) -> int:
    """Predict the test split with the best model and score it. Returns the exit code."""
    from ctseg.prediction.test_split import predict_test_cases
    from models import build_network

    record = predict_test_cases(
        workspace,
        settings,
        device=options.device,
        build_network=build_network,
        progress=cli.bar("Predicting"),
    )
    if record["why_not_mirrored"]:
        LOG.info("%s", record["why_not_mirrored"])
    if record["training"] in UNFINISHED:
        LOG.warning(
            "WARN TRAINING_UNFINISHED: training of this model: %s. These are scores of its best "
            "weights so far.",
            UNFINISHED[record["training"]],
        )
    elif record["training"] is None:
        LOG.warning(
            "WARN BEST_MISMATCH: training_history.json is missing or not that of "
            "checkpoints/best_model.pth, so "
            "how its training ended is not known."
        )
    for case in record["cases"]:
        if not case["located"]:
            LOG.warning(
                "WARN NOT_LOCATED case=%s: the locator found no structure; the whole canvas was predicted.",
                case["case_id"],
            )
    config_file.note(workspace, {"evaluate": settings.record()["evaluate"]}, options.task)
    return score_run(workspace, settings, cli.worker_count(options))


def score_run(workspace: Workspace, settings: Settings, workers: int = 1) -> int:
    """Score the predictions that `evaluation_run.json` lists against the references of the test split."""
    from ctseg.datasets.case import IGNORED
    from ctseg.evaluation.mask_pairs import ScoreSettings
    from ctseg.evaluation.result_files import join_trust
    from ctseg.evaluation.scored import pairs_of_test_split
    from ctseg.scoring.metrics import Structure
    from ctseg.scoring.tolerances import tolerances_for

    manifest = Manifest.load(workspace)
    record = read_json(workspace.require(workspace.run_record, stage="eval"))
    pairs = pairs_of_test_split(workspace, manifest, record)
    structures = [Structure(name, (i,)) for i, name in enumerate(manifest.structures, start=1)]
    tolerances, chosen = tolerances_for(manifest.structures), settings.evaluate
    how = ScoreSettings(tolerances, chosen.boundary_mode, IGNORED, chosen.topology)
    scored = score_pairs(pairs, structures, how, workers=workers)
    if ignored := sum(case.ignored_voxels for case in manifest.of_split("test")):
        line = f'{ignored} voxels of the references are marked "ignore" and left out of all scores'
        scored.notes.append(line)
    report = write_evaluation(
        workspace.evaluation,
        scored,
        synthetic=manifest.synthetic,
        split_hash=manifest.splits_hash,
        trust=join_trust(workspace, record, scored.rows),
    )
    LOG.info("\n%s", report)
    score_passes(workspace, record["cases"], scored, workers=workers, synthetic=manifest.synthetic)
    return 0


def score_passes(
    workspace: Workspace, cases: Sequence[Mapping[str, Any]], scored: Scored, *, workers: int, synthetic: bool
) -> None:
    """Score every pass of a multi-pass network: per_pass.csv, per_pass.png and one sentence. A case that
    stopped early keeps its last pass."""
    from ctseg.evaluation.result_files import write_passes
    from ctseg.reporting.pictures import plots
    from ctseg.scoring.summary import pass_gain

    files = {case["case_id"]: case.get("passes", []) for case in cases}
    count = max((len(names) for names in files.values()), default=0)
    if count < 2:
        for name in ("per_pass.csv", "per_pass.png"):  # of an earlier network
            (workspace.evaluation / name).unlink(missing_ok=True)
        return
    how = dataclasses.replace(scored.how, topology="none")
    rows_by_pass = []
    for number in range(count):
        pairs: list[Any] = []
        for pair in scored.pairs:
            file = files[pair.case_id][min(number, len(files[pair.case_id]) - 1)]
            path = workspace.evaluation / file
            pairs.append(dataclasses.replace(pair, prediction=path, prediction_file=file))
        rows_by_pass.append(score_pairs(pairs, scored.structures, how, workers=workers).rows)
    write_passes(workspace.evaluation, rows_by_pass)
    plots.passes(rows_by_pass, scored.names, workspace.evaluation / "per_pass.png", synthetic)
    gain = pass_gain(rows_by_pass)
    if gain is not None:
        used = sum(len(names) for names in files.values()) / len(files)
        LOG.info("%s Passes used: %.1f of at most %d.", gain.sentence(), used, count)


def score_pairs(
    pairs: Sequence[Pair] | Sequence[MaskPair],
    structures: Sequence[Structure],
    how: ScoreSettings,
    **options: Any,
) -> Scored:
    """`ctseg.evaluation.scored.score_pairs` with a bar that counts the cases."""
    from ctseg.evaluation import scored

    with cli.CountingBar("Scoring") as bar:
        return scored.score_pairs(pairs, structures, how, progress=bar, **options)


def write_evaluation(
    folder: Path | None,
    scored: Scored,
    *,
    synthetic: bool = False,
    split_hash: str | None = None,
    plots: bool = True,
    trust: Trust | None = None,
) -> str:
    """Write every result file and return the report; without a folder only the report."""
    from ctseg.evaluation.result_files import write_results

    content = scored.settings(split_hash=split_hash, synthetic=synthetic)
    report = write_results(folder, scored.rows, scored.nothing, content, scored.warnings, trust)
    if plots and folder is not None:
        _draw(folder, scored.rows, scored.names, synthetic)
        _draw_trust(folder, scored.rows, scored.names, trust, synthetic)
    return report


def _draw(folder: Path, rows: Sequence[Row], names: Sequence[str], synthetic: bool) -> None:
    from ctseg.reporting.pictures import plots

    for name in ("dice_boxplots", "dice_vs_hausdorff", "metrics_heatmap"):
        getattr(plots, name)(rows, names, folder / f"{name}.png", synthetic)


def _draw_trust(
    folder: Path, rows: Sequence[Row], names: Sequence[str], trust: Trust | None, synthetic: bool
) -> None:
    """reliability.png and confidence.png where there is something to draw; those of an earlier evaluation
    go."""
    from ctseg.reporting.pictures import reliability
    from ctseg.scoring import calibration

    for name in ("reliability.png", "confidence.png"):
        (folder / name).unlink(missing_ok=True)
    if trust is not None and trust.sums:
        reliability.diagram(
            calibration.describe(trust.sums),
            calibration.describe({"all": calibration.pooled(trust.sums)})["all"],
            folder / "reliability.png",
            synthetic,
        )
    if any(row.get("confidence") is not None for row in rows):
        reliability.confidence(rows, names, folder / "confidence.png", synthetic)


# ---- masks against masks ----------------------------------------------------------------------------------


def compare(arguments: argparse.Namespace, settings: Settings, workers: int) -> int:
    """Score --prediction against --reference and print the report; the files go to --output, where that is
    given."""
    from ctseg.evaluation import mask_comparison, mask_pairs
    from ctseg.evaluation.result_files import RESULTS

    for option, path in (("--reference", arguments.reference), ("--prediction", arguments.prediction)):
        if not path.exists():
            raise PreconditionError(
                "NO_DATA", f"'{path}' after {option} does not exist", "check the path", file=path.name
            )
    if arguments.output is not None:
        inputs = (
            arguments.reference,
            arguments.prediction,
            arguments.ct,
            arguments.labels,
            arguments.tolerances,
        )
        keep_inputs((arguments.output / name for name in RESULTS), inputs)
        require_writable(arguments.output)
    names = _map_names(arguments)
    if names is not None:
        pairs = mask_pairs.pair_folders(
            arguments.reference, arguments.prediction, names, allow_missing=arguments.allow_missing
        )
        return _compare(
            arguments, settings, workers, pairs, names.structures, mask_pairs.score_pair, names.ignore_label
        )
    others, chosen = mask_comparison.pair_masks(
        arguments.reference,
        arguments.prediction,
        labels=arguments.labels,
        ct=arguments.ct,
        structures=arguments.structures,
        single=arguments.one_case,
        allow_missing=arguments.allow_missing,
    )
    return _compare(
        arguments,
        settings,
        workers,
        others,
        mask_comparison.numbered(chosen),
        mask_comparison.score_masks,
        None,
        mask_comparison.said_of(others),
    )


def _map_names(arguments: argparse.Namespace) -> LabelNames | None:
    """The names of two folders of label maps that share their ids; None for any other comparison."""
    from ctseg.evaluation import mask_forms, mask_pairs

    reference, prediction = arguments.reference, arguments.prediction
    if (
        arguments.ct is not None
        or arguments.structures is not None
        or arguments.one_case
        or not mask_forms.is_folder_of_maps(reference)
    ):
        return None
    if not mask_forms.is_folder_of_maps(prediction) and not (
        prediction.is_dir() and not mask_forms.find_cases(prediction)
    ):
        return None
    try:
        return mask_pairs.find_label_names(reference, prediction, arguments.labels)
    except PreconditionError:
        return None  # the maps may name their values themselves


def _compare(
    arguments: argparse.Namespace,
    settings: Settings,
    workers: int,
    pairs: Sequence[Pair] | Sequence[MaskPair],
    structures: Sequence[Structure],
    score: Callable[..., Any],
    ignore_label: int | None,
    warnings: Sequence[str] = (),
) -> int:
    from ctseg.evaluation.mask_pairs import ScoreSettings
    from ctseg.scoring.tolerances import tolerances_for

    names = [structure.name for structure in structures]
    try:
        tolerances = tolerances_for(names, _read_tolerances(arguments.tolerances, names))
    except (ValueError, TypeError) as error:
        raise UsageError(
            "BAD_VALUE",
            f"--tolerances: {error}",
            'write for example {"liver": [5, 2]}',
            file=arguments.tolerances.name,
        ) from None
    how = ScoreSettings(
        tolerances,
        settings.evaluate.boundary_mode,
        ignore_label,
        settings.evaluate.topology,
        settings.data.fill_contour_gaps,
    )
    scored = score_pairs(pairs, structures, how, workers=workers, score=score)
    scored.notes[:0] = warnings
    synthetic = _says_synthetic(arguments)
    report = write_evaluation(arguments.output, scored, synthetic=synthetic, plots=not arguments.no_plots)
    print(report)
    return 0


def _read_tolerances(path: Path | None, names: Sequence[str]) -> Mapping[str, Sequence[float]] | None:
    if path is None:
        return None
    if not path.is_file():
        raise UsageError(
            "FILE_MISSING", "the file does not exist", "check the path after --tolerances", file=path.name
        )
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(values, list) for values in content.values()):
        raise ValueError(f"{json.dumps(content)[:80]} is no map of names and lists")
    unknown = sorted(set(content) - set(names))
    if unknown:
        raise UsageError(
            "UNKNOWN_STRUCTURE",
            f"--tolerances names {', '.join(unknown)}",
            f"the structures are {', '.join(names)}",
            file=path.name,
        )
    return content


def _says_synthetic(arguments: argparse.Namespace) -> bool:
    """Whether the masks come from made-up scans: said on the command line or beside the files."""
    if arguments.synthetic or any(
        (folder / "synthetic.json").is_file() for folder in (arguments.reference, arguments.reference.parent)
    ):
        return True
    record = arguments.prediction.parent / "evaluation_run.json"
    return record.is_file() and bool(read_json(record).get("synthetic"))


def build_parser() -> argparse.ArgumentParser:
    """The command line: the shared options and those of the comparison of two folders."""
    parser = cli.parser("evaluate.py", __doc__ or "")
    parser.add_argument(
        "--boundary-mode",
        choices=["surfel", "voxel"],
        help="surface of a mask (default: surfel); values of different modes are never compared",
    )
    add_mask_options(parser)
    return parser


def add_mask_options(parser: argparse.ArgumentParser) -> None:
    """The options of a comparison of masks with masks."""
    masks = parser.add_argument_group(
        "masks against masks instead of a model (a file each, or folders with a file or a sub-folder "
        "for each case; --structures limits what is compared)"
    )
    masks.add_argument(
        "--reference",
        type=Path,
        metavar="PATH",
        help="the truth: label maps, .seg.nrrd, one file per structure, DICOM SEG or RTSTRUCT",
    )
    masks.add_argument(
        "--prediction",
        type=Path,
        metavar="PATH",
        help="what is scored, in any of these forms; cases of the same names",
    )
    masks.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where the results go (default: the report is only printed)",
    )
    masks.add_argument(
        "--ct",
        type=Path,
        metavar="PATH",
        help="the scan or the folder of scans: masks are put on its grid, by exact reordering of "
        "axes; needed for DICOM masks",
    )
    masks.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help='names of the ids of label maps, {"1": "liver"} or a dataset.json (default: labels.json '
        "or dataset.json beside them)",
    )
    masks.add_argument(
        "--one-case", action="store_true", help="both folders hold one mask per structure of one single case"
    )
    masks.add_argument(
        "--tolerances",
        type=Path,
        metavar="FILE",
        help='tolerances of the surface Dice in mm, {"liver": [5, 2]}',
    )
    masks.add_argument(
        "--allow-missing",
        action="store_true",
        help="count a missing prediction, or a structure that it does not hold, as missed instead of "
        "refusing",
    )
    masks.add_argument(
        "--synthetic", action="store_true", help="say in every result that the data are synthetic"
    )
    masks.add_argument("--no-plots", action="store_true", help="write no pictures")


def _main(argv: list[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    if arguments.boundary_mode is not None:
        # not appended: the parser's default is one list for all calls in a process
        arguments.assignments = [*arguments.assignments, f"evaluate.boundary_mode={arguments.boundary_mode}"]
    workspace, settings, options = cli.settings_from(arguments)
    if any(
        path is not None
        for path in (arguments.reference, arguments.prediction, arguments.output, arguments.ct)
    ):
        if arguments.reference is None or arguments.prediction is None:
            raise UsageError(
                "BAD_OPTION",
                "scoring masks needs --reference and --prediction",
                "give both, or neither to score the model",
            )
        return compare(arguments, settings, cli.worker_count(options))
    with cli.open_workspace(workspace, settings, options):
        return run(workspace, settings, options)


def main(argv: list[str] | None = None) -> int:
    """Run the stage, or compare two folders, from the command line."""
    return cli.guarded(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
