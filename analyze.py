"""Stage 4: show what training and evaluation gave.

Reads   checkpoints/training_history.json; evaluation_results/, comparison/ and processed_data/ where they
        exist
Writes  analysis/: report.html and viewer.html (each one file, opens offline), training_summary.txt,
        loss_curves.png, dice_scores.png, hausdorff_distances.png, learning_rate.png, resource_usage.png,
        combined_metrics.png

    python analyze.py
    python analyze.py --compare-with OTHER_WORKSPACE   (finished runs on the same split, side by side)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg import cli
from ctseg.artifacts import Workspace, sweep_temporaries, write_text
from ctseg.cli import LOG, Options
from ctseg.config import Settings

if TYPE_CHECKING:
    from ctseg.reporting.pictures.slices import CaseVolumes, Choice
    from ctseg.reporting.results import Results


def run(workspace: Workspace, settings: Settings, options: Options, others: Sequence[Path] = ()) -> int:
    """Draw the plots and write the page of a workspace. others: workspaces to compare it with.

    Returns the exit code.
    """
    from ctseg.reporting import gallery, other_runs, report, results, verdict, viewer

    found = results.read(workspace)
    comparison = other_runs.gather(found, others) if others else other_runs.read_comparison(workspace)
    sweep_temporaries(workspace.analysis) if workspace.analysis.exists() else None
    images = _draw(workspace, found)
    for notice in found.notices:
        LOG.warning("WARN %s", notice)
    viewed: list[dict[str, Any]] = []

    def view(choice: Choice, case: CaseVolumes) -> None:
        title = f"{choice.case_id} ({choice.reason}), mean Dice {choice.dice:.3f}"
        viewed.append(viewer.view_case(title, case, found.display_hu))

    cases = (
        gallery.make(workspace, found, progress=cli.bar("Drawing cases"), view=view)
        if found.evaluated
        else []
    )
    without = [picture for picture in cases if picture.jpeg is None]
    if without:
        LOG.warning(
            "WARN %d of %d pictures of cases could not be made: %s.",
            len(without),
            len(cases),
            without[0].missing,
        )
    write_text(workspace.analysis / "training_summary.txt", report.training_summary(found))
    write_text(
        workspace.report, report.render(found, images, cases, with_viewer=bool(viewed), comparison=comparison)
    )
    if viewed:
        write_text(workspace.viewer, viewer.render(found, viewed[::-1]))
    else:
        workspace.viewer.unlink(missing_ok=True)
    LOG.info("%s", verdict.sentence(found))
    if verdict.better_than_nothing(found) is False:
        LOG.warning("%s", verdict.NOT_BETTER)
    LOG.info("Open %s in a browser.", workspace.relative(workspace.report))
    return 0


def _draw(workspace: Workspace, found: Results) -> dict[str, bytes]:
    """Write the plots of training; return them and those of the evaluation, as PNG by file name.

    A notice names each plot of the evaluation that should be there and is not, or is no picture.
    """
    from ctseg.evaluation.result_files import PLOTS
    from ctseg.reporting import page, results
    from ctseg.reporting.pictures import curves

    images = {}
    for name, picture in cli.bar("Drawing plots")(list(curves.PICTURES.items())):
        picture.draw(found.history, workspace.analysis / name, found.synthetic)
        images[name] = page.slim((workspace.analysis / name).read_bytes())
    for name, always in PLOTS.items() if found.evaluated else ():
        path = workspace.evaluation / name
        try:
            if always or path.exists():
                images[name] = page.slim(path.read_bytes())
        except OSError:
            found.notices.append(
                f"{workspace.relative(path)} is missing or no picture and left out; {results.EVALUATE_AGAIN}."
            )
    return images


def _main(argv: list[str] | None) -> int:
    parser = cli.parser("analyze.py", __doc__ or "")
    parser.add_argument(
        "--compare-with",
        type=Path,
        nargs="+",
        default=[],
        metavar="WORKSPACE",
        help="finished runs on the same split of the patients, to stand beside this one on the page",
    )
    arguments = parser.parse_args(argv)
    workspace, settings, options = cli.settings_from(arguments)
    with cli.open_workspace(workspace, settings, options):
        return run(workspace, settings, options, arguments.compare_with)


def main(argv: list[str] | None = None) -> int:
    """Run the stage from the command line."""
    return cli.guarded(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
