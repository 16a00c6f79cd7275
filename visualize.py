"""Masks to a film that turns around them, to stills, and to a sheet of slices.

Reads   --input: a label map (NIfTI, NRRD, MetaImage; names from labels.json beside it), a .seg.nrrd, a folder
        with one file per structure, a DICOM SEG or an RTSTRUCT (these with --ct); files of one structure may
        hold its probabilities instead (0 to 1; drawn where they reach --level)
        --ct: the scan, for what is around them; --reference: other masks, to show errors in mm
Writes  --output: an .mp4, or a .gif where no encoder is installed
        --stills DIR: front.png, left.png, back.png, right.png
        --sheet: a .png or .jpg of slices of the scan with the masks on them

    python visualize.py --input masks/scan.nii.gz --output tour.mp4
    python visualize.py --input masks/scan.nii.gz --ct scan.nii.gz --output tour.mp4 --stills pictures
    python visualize.py --input masks/scan.nii.gz --ct scan.nii.gz --context slices --stills pictures
    python visualize.py --input masks/scan.nii.gz --ct scan.nii.gz --sheet sheet.png --reference labels.nii.gz
    python visualize.py --input masks/scan_probabilities --level 0.3 --output possible.mp4
    python visualize.py --input prediction.nii.gz --reference labels.nii.gz --output errors.gif
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg import cli
from ctseg.artifacts import atomic_write
from ctseg.cli import LOG
from ctseg.errors import CaseError, Finding, PreconditionError, UsageError, listed
from ctseg.outputs import keep_inputs, require_writable

if TYPE_CHECKING:
    from ctseg.datasets.masks import Masks
    from ctseg.geometry.volume import Volume
    from ctseg.reporting.pictures.subject import Subject

SMALLEST, LARGEST = 120, 4096  # pixels


def visualize(arguments: argparse.Namespace) -> int:
    """Draw the film, the stills and the sheet. Returns 0."""
    film = check(arguments)
    window = window_of(arguments.window)
    masks, reference, ct = read(arguments)
    if not masks.names:
        raise PreconditionError(
            "NOTHING_TO_SHOW",
            "the masks hold nothing but background",
            "give other masks",
            file=arguments.input.name,
        )
    from ctseg.reporting.pictures.subject import Subject

    chosen = chosen_names(arguments.structures, masks)
    subject = Subject(masks, chosen, ct, reference, window, arguments.synthetic)
    try:
        if film is not None or arguments.stills is not None:
            draw_tour(arguments, film, subject)
        if arguments.sheet is not None:
            draw_sheet(arguments, subject)
    except ValueError:
        raise PreconditionError(
            "NOTHING_TO_SHOW",
            f"no voxel belongs to {', '.join(chosen) if len(chosen) < 5 else 'any of the structures'}",
            "choose others with --structures" + (", or a lower --level" if masks.level is not None else ""),
            file=arguments.input.name,
        ) from None
    finally:
        tell([*masks.findings, *(reference.findings if reference is not None else ())])
    return 0


def draw_tour(arguments: argparse.Namespace, film: Path | None, subject: Subject) -> None:
    """Write the film and the stills."""
    from PIL import Image

    from ctseg.reporting.pictures import tour, video

    context = arguments.context or ("body" if subject.ct is not None else "none")
    scene = tour.build_scene(subject, context=context, progress=cli.bar("Surfaces", unit="structure"))
    tell_shown(subject, scene.shown, scene.probabilities)
    size = {"width": arguments.width - arguments.width % 2, "height": arguments.height - arguments.height % 2}
    if arguments.stills is not None:
        for side, picture in zip(tour.SIDES.values(), tour.pictures(scene, list(tour.SIDES), **size)):
            save = functools.partial(Image.fromarray(picture).save, format="PNG", optimize=True)
            atomic_write(arguments.stills / f"{side}.png", save)
        LOG.info("%d stills in %s.", len(tour.SIDES), arguments.stills)
    if film is not None:
        count = max(2, round(arguments.seconds * arguments.fps))
        frames = tour.pictures(scene, [360 * number / count for number in range(count)], **size)
        video.write_film(film, cli.bar("Drawing", unit="picture")(frames, total=count), fps=arguments.fps)
        LOG.info("%d pictures of %d structures in %s.", count, len(scene.shown), film)


def draw_sheet(arguments: argparse.Namespace, subject: Subject) -> None:
    """Write the sheet of slices."""
    from ctseg.reporting.pictures import contact_sheet

    sheet = contact_sheet.build_sheet(subject, progress=cli.bar("Masks", unit="structure"))
    if arguments.output is None and arguments.stills is None:
        tell_shown(subject, sheet.shown, sheet.probabilities)
    contact_sheet.write(arguments.sheet, contact_sheet.draw(sheet))
    LOG.info("Slices with %d structures in %s.", len(sheet.shown), arguments.sheet)


def tell_shown(subject: Subject, shown: tuple[str, ...], probabilities: tuple[str, ...]) -> None:
    """What the pictures cannot say themselves: which structures are not in them, and which ones are
    probabilities.
    """
    empty = [name for name in subject.chosen if name not in shown]
    if empty:
        LOG.warning("NOTE LABEL_EMPTY: no voxel belongs to %s: not drawn.", listed(empty))
    if 0 < len(probabilities) < len(shown):
        LOG.warning(
            "NOTE MIXED_MASKS: %s: probabilities, drawn where they reach %g; the other %d of the "
            "structures: masks.",
            ", ".join(probabilities),
            subject.masks.level,
            len(shown) - len(probabilities),
        )


def check(arguments: argparse.Namespace) -> Path | None:
    """Refuse what cannot be done before anything is read. Returns where the film goes, None without one."""
    from ctseg.reporting.pictures import contact_sheet, tour, video

    if arguments.output is None and arguments.stills is None and arguments.sheet is None:
        raise UsageError(
            "BAD_OPTION",
            "neither --output nor --stills nor --sheet says where pictures go",
            "add for example --output tour.mp4",
        )
    for name, low, high in (
        ("width", SMALLEST, LARGEST),
        ("height", SMALLEST, LARGEST),
        ("fps", 1, 60),
        ("seconds", 0.1, 600),
        ("level", 0.001, 0.999),
    ):
        if not low <= getattr(arguments, name) <= high:
            raise UsageError(
                "BAD_VALUE",
                f"--{name} {getattr(arguments, name)} is out of range",
                f"give a number from {low} to {high}",
            )
    for option, given in (
        (f"--context {arguments.context}", arguments.context not in (None, "none")),
        ("--sheet", arguments.sheet is not None),
    ):
        if given and arguments.ct is None:
            raise UsageError("BAD_OPTION", f"{option} is drawn from the scan", "give the scan with --ct")
    if arguments.sheet is not None:
        contact_sheet.sheet_format(arguments.sheet)
    film, changed = video.film_path(arguments.output) if arguments.output is not None else (None, False)
    stills = (
        [arguments.stills / f"{side}.png" for side in tour.SIDES.values()]
        if arguments.stills is not None
        else []
    )
    targets = [path for path in (film, arguments.sheet, *stills) if path is not None]
    keep_inputs(targets, [arguments.input, arguments.ct, arguments.reference])
    for folder in {path.parent for path in targets}:
        require_writable(folder)
    if film is not None and changed:
        LOG.warning(
            "NOTE NO_ENCODER: no video encoder is installed, so the film becomes %s; `%s` brings one.",
            film.name,
            video.INSTALL,
        )
    return film


def window_of(text: str | None) -> tuple[float, float] | None:
    """LOW,HIGH in HU. UsageError when that is no window."""
    if text is None:
        return None
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        low = high = 0.0
    if not -5000 <= low < high <= 50000:
        raise UsageError(
            "BAD_VALUE",
            f"--window {text} is no window",
            "give the darkest and the brightest HU, for example --window=-160,240",
        )
    return low, high


def read(arguments: argparse.Namespace) -> tuple[Masks, Masks | None, Volume | None]:
    """The masks, those of the reference, and the scan."""
    from ctseg.datasets import find_scans, load_case
    from ctseg.datasets.masks import named_like, open_masks

    source, ct = None, None
    if arguments.ct is not None:
        source = find_scans.find_one(arguments.ct, option="--ct")
        ct, findings = load_case.load_image(source)
        tell(findings)
    how = {"level": arguments.level, "fill_gaps": arguments.fill_contour_gaps}
    masks = open_masks(arguments.input, ct, source, **how)
    if arguments.reference is None:
        return masks, None, ct
    return masks, named_like(open_masks(arguments.reference, ct, source, **how), masks), ct


def tell(findings: Iterable[Finding]) -> None:
    """Log what was noticed about files, without the folders that they lie in."""
    for finding in findings:
        LOG.info("%s", dataclasses.replace(finding, file=Path(finding.file).name).line())


def chosen_names(wanted: str | None, masks: Masks) -> list[str]:
    """The structures to draw, in the masks' order. UsageError for one that is not there."""
    from ctseg.config import did_you_mean

    if wanted is None:
        return list(masks.names)
    names = [word.strip() for word in wanted.split(",") if word.strip()]
    for name in names:
        if name not in masks.names:
            raise UsageError(
                "UNKNOWN_STRUCTURE",
                f"the masks hold no '{name}'",
                f"choose from {', '.join(masks.names)}{did_you_mean(name, masks.names)}",
            )
    return [name for name in masks.names if name in names]


def build_parser() -> argparse.ArgumentParser:
    """The command line of visualize.py."""
    parser = cli.plain_parser("visualize.py", __doc__ or "")
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="MASKS",
        help="a label map, a folder of masks or of probabilities, a DICOM SEG or an RTSTRUCT",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the film, .mp4 or .gif")
    parser.add_argument(
        "--stills",
        type=Path,
        metavar="DIR",
        help="where four pictures go: from the front, the left, the back and the right",
    )
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE",
        help="a sheet of slices of the scan with the masks on them, .png or .jpg",
    )
    parser.add_argument(
        "--ct", type=Path, metavar="SCAN", help="the scan: NIfTI, NRRD, MetaImage or a DICOM series"
    )
    parser.add_argument(
        "--context",
        choices=["body", "bone", "slices", "none"],
        help="what of the scan is drawn around the masks: the body or the bones, translucent, or three "
        "slices (default: body with --ct)",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="MASKS",
        help="colour the masks by their distance to these, in mm; on a sheet: draw their outlines",
    )
    parser.add_argument("--structures", metavar="A,B,C", help="only these (default: all)")
    parser.add_argument(
        "--level", type=float, default=0.5, metavar="P", help="where probabilities end (default: 0.5)"
    )
    parser.add_argument(
        "--fill-contour-gaps",
        action="store_true",
        help="interpolate between the slices of a DICOM SEG or RTSTRUCT that was drawn on a thicker series",
    )
    parser.add_argument(
        "--window",
        metavar="LOW,HIGH",
        help="HU that are black and white in slices (default: by the structures, for soft tissue or lungs); "
        "write --window=-160,240",
    )
    parser.add_argument("--seconds", type=float, default=6.0, metavar="S", help="for one turn (default: 6)")
    parser.add_argument("--fps", type=int, default=20, metavar="N", help="pictures per second (default: 20)")
    parser.add_argument("--width", type=int, default=720, metavar="PIXELS", help="default: 720")
    parser.add_argument("--height", type=int, default=540, metavar="PIXELS", help="default: 540")
    parser.add_argument(
        "--synthetic", action="store_true", help="say in the pictures that the data are synthetic"
    )
    return parser


def _main(argv: list[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    cli.log_to_terminal()
    try:
        return visualize(arguments)
    except CaseError as error:  # here without the folders that the file lies in
        raise CaseError(
            error.code, error.cause, error.fix, case=error.case, file=Path(error.file).name
        ) from None


def main(argv: list[str] | None = None) -> int:
    """Draw masks from the command line."""
    return cli.guarded(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
