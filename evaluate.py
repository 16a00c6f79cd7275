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
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg import cli, config_file
from ctseg.artifacts import UNFINISHED, Workspace, read_record
from ctseg.cli import LOG, Options
from ctseg.config import Settings
from ctseg.datasets.metadata import read_value
from ctseg.errors import PreconditionError, UsageError
from ctseg.evaluation.mask_pairs import Pair, pair_masks
from ctseg.evaluation.result_files import (
    ONLY_MASKS,
    RESULTS,
    Trust,
    join_trust,
    remove_results,
    write_passes,
    write_results,
)
from ctseg.evaluation.scored import Scored, ScoreSettings, pairs_of_test_split, score_pairs
from ctseg.manifest import Manifest
from ctseg.outputs import keep_inputs, require_writable
from ctseg.scoring import calibration
from ctseg.scoring.metrics import Structure
from ctseg.scoring.summary import pass_gain
from ctseg.scoring.tolerances import tolerances_for


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
    manifest = Manifest.load(workspace)
    record = read_record(workspace.require(workspace.run_record, stage="eval"))
    pairs = pairs_of_test_split(workspace, manifest, record)
    structures = [Structure(name, (i,)) for i, name in enumerate(manifest.structures, start=1)]
    how = score_settings(settings, tolerances_for(manifest.structures))
    remove_results(workspace.evaluation)  # now: scoring can take long, and be stopped
    scored = score(pairs, structures, how, workers)
    trust = join_trust(workspace, record, scored.rows)
    report = write_results(
        workspace.evaluation,
        scored,
        synthetic=manifest.synthetic,
        split_hash=manifest.splits_hash,
        trust=trust,
    )
    LOG.info("\n%s", report)
    draw(workspace.evaluation, scored, manifest.synthetic, trust)
    score_passes(workspace, record["cases"], scored, workers=workers, synthetic=manifest.synthetic)
    return 0


def score_settings(settings: Settings, tolerances_mm: Mapping[str, tuple[float, ...]]) -> ScoreSettings:
    """How to score, as the settings say."""
    chosen = settings.evaluate
    return ScoreSettings(
        tolerances_mm, chosen.boundary_mode, chosen.topology, settings.data.fill_contour_gaps
    )


def score(pairs: Sequence[Pair], structures: Sequence[Structure], how: ScoreSettings, workers: int) -> Scored:
    """`score_pairs` with a bar that counts the cases."""
    with cli.counting_bar("Scoring") as bar:
        return score_pairs(pairs, structures, how, workers=workers, progress=bar)


def score_passes(
    workspace: Workspace, cases: Sequence[Mapping[str, Any]], scored: Scored, *, workers: int, synthetic: bool
) -> None:
    """Score every pass of a multi-pass network: per_pass.csv, per_pass.png and one sentence. A case that
    stopped early keeps its last pass."""
    from ctseg.reporting.pictures import plots

    files = {case["case_id"]: case.get("passes", []) for case in cases}
    count = max((len(names) for names in files.values()), default=0)
    if count < 2:
        return
    how = scored.how._replace(topology="none")
    rows_by_pass = []
    for number in range(count):
        pairs = []
        for pair in scored.pairs:
            file = files[pair.case_id][: number + 1][-1]
            side = pair.prediction and pair.prediction._replace(path=workspace.evaluation / file, file=file)
            pairs.append(pair._replace(prediction=side))
        rows_by_pass.append(score(pairs, scored.structures, how, workers).rows)
    write_passes(workspace.evaluation, rows_by_pass)
    plots.passes(rows_by_pass, scored.names, workspace.evaluation / "per_pass.png", synthetic)
    gain = pass_gain(rows_by_pass)
    if gain is not None:
        used = sum(len(names) for names in files.values()) / len(files)
        LOG.info("%s Passes used: %.1f of at most %d.", gain, used, count)


def draw(folder: Path, scored: Scored, synthetic: bool, trust: Trust = ONLY_MASKS) -> None:
    """All pictures of an evaluation; reliability.png and confidence.png where there is something to draw."""
    from ctseg.reporting.pictures import plots, reliability

    rows, names = scored.rows, scored.names
    for picture in (plots.dice_boxplots, plots.dice_vs_hausdorff, plots.metrics_heatmap):
        picture(rows, names, folder / f"{picture.__name__}.png", synthetic)
    if trust.sums:
        pooled = calibration.describe({"all": calibration.pooled(trust.sums)})["all"]
        reliability.diagram(calibration.describe(trust.sums), pooled, folder / "reliability.png", synthetic)
    if any(row.get("confidence") is not None for row in rows):
        reliability.confidence(rows, names, folder / "confidence.png", synthetic)


# ---- masks against masks ----------------------------------------------------------------------------------


def compare(arguments: argparse.Namespace, settings: Settings, workers: int) -> int:
    """Score --prediction against --reference and print the report; the files go to --output, where that is
    given."""
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
    pairs, structures = pair_masks(
        arguments.reference,
        arguments.prediction,
        labels=arguments.labels,
        ct=arguments.ct,
        structures=arguments.structures,
        single=arguments.one_case,
        allow_missing=arguments.allow_missing,
    )
    tolerances = read_tolerances(arguments.tolerances, [structure.name for structure in structures])
    scored = score(pairs, structures, score_settings(settings, tolerances), workers)
    synthetic = _says_synthetic(arguments)
    print(write_results(arguments.output, scored, synthetic=synthetic))
    if arguments.output is not None and not arguments.no_plots:
        draw(arguments.output, scored, synthetic)
    return 0


def read_tolerances(path: Path | None, names: Sequence[str]) -> Mapping[str, tuple[float, ...]]:
    """The tolerances of the structures, by a file {name: [mm, ...]} where one is given."""
    if path is None:
        return tolerances_for(names)
    if not path.is_file():
        raise UsageError(
            "FILE_MISSING", "the file does not exist", "check the path after --tolerances", file=path.name
        )
    content = read_value(path)
    try:
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
        return tolerances_for(names, content)
    except (ValueError, TypeError) as error:
        fix = 'write for example {"liver": [5, 2]}'
        raise UsageError("BAD_VALUE", f"--tolerances: {error}", fix, file=path.name) from None


def _says_synthetic(arguments: argparse.Namespace) -> bool:
    """Whether the masks come from made-up scans: said on the command line or beside the files."""
    if arguments.synthetic or any(
        (folder / "synthetic.json").is_file() for folder in (arguments.reference, arguments.reference.parent)
    ):
        return True
    record = arguments.prediction.parent / "evaluation_run.json"
    return record.is_file() and bool(read_record(record).get("synthetic"))


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
