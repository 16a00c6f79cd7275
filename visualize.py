"""Masks to a film that turns around them, and to stills.

Reads   --input: a label map (NIfTI, NRRD, MetaImage; names from labels.json beside it), a .seg.nrrd, a folder with one file per structure, a DICOM SEG or an RTSTRUCT (these with --ct)
        --ct: the scan, for the body around them; --reference: other masks, to show errors in mm
Writes  --output: an .mp4, or a .gif where no encoder is installed; --stills DIR: front.png, left.png, back.png, right.png

    python visualize.py --input masks/scan.nii.gz --output tour.mp4
    python visualize.py --input masks/scan.nii.gz --ct scan.nii.gz --output tour.mp4 --stills pictures
    python visualize.py --input prediction.nii.gz --reference labels.nii.gz --output errors.gif
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg import cli
from ctseg.artifacts import atomic_write
from ctseg.cli import LOG
from ctseg.errors import PreconditionError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from ctseg.scans.masks import Masks
    from ctseg.scans.volume import Volume

SMALLEST, LARGEST = 120, 4096  # pixels


def visualize(arguments: argparse.Namespace) -> int:
    """Draw the film and the stills. Returns 0."""
    from ctseg.reporting import tour, video

    _check(arguments)
    film, changed = video.film_path(arguments.output) if arguments.output is not None else (None, False)
    if changed:
        LOG.warning("NOTE NO_ENCODER: no video encoder is installed, so the film becomes %s; `%s` brings one.", film.name if film else "", video.INSTALL)
    masks, reference, ct = _read(arguments)
    chosen = _chosen(arguments.structures, masks)
    context = arguments.context or ("body" if ct is not None else "none")
    try:
        scene = tour.build_scene(masks, chosen, ct=ct, context=context, reference=reference, synthetic=arguments.synthetic, progress=cli.bar("Surfaces", unit="structure"))
    except ValueError:
        raise PreconditionError("NOTHING_TO_SHOW", f"no voxel belongs to {', '.join(chosen) if len(chosen) < 5 else 'any of the structures'}", "choose others with --structures", file=arguments.input.name) from None
    size = {"width": arguments.width - arguments.width % 2, "height": arguments.height - arguments.height % 2}
    if arguments.stills is not None:
        _write_stills(arguments.stills, tour.pictures(scene, list(tour.SIDES), **size), list(tour.SIDES.values()))
        LOG.info("%d stills in %s.", len(tour.SIDES), arguments.stills)
    if film is not None:
        count = max(2, round(arguments.seconds * arguments.fps))
        frames = tour.pictures(scene, [360 * number / count for number in range(count)], **size)
        video.write_film(film, cli.bar("Drawing", unit="picture")(frames, total=count), fps=arguments.fps)
        LOG.info("%d pictures of %d structures in %s.", count, len(chosen), film)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.output is None and arguments.stills is None:
        raise UsageError("BAD_OPTION", "neither --output nor --stills says where pictures go", "add for example --output tour.mp4")
    for name, low, high in (("width", SMALLEST, LARGEST), ("height", SMALLEST, LARGEST), ("fps", 1, 60), ("seconds", 0.1, 600)):
        if not low <= getattr(arguments, name) <= high:
            raise UsageError("BAD_VALUE", f"--{name} {getattr(arguments, name)} is out of range", f"give a number from {low} to {high}")
    if arguments.context not in (None, "none") and arguments.ct is None:
        raise UsageError("BAD_OPTION", f"--context {arguments.context} is drawn from the scan", "give the scan with --ct")


def _read(arguments: argparse.Namespace) -> tuple[Masks, Masks | None, Volume | None]:
    """The masks, those of the reference, and the scan."""
    from ctseg.scans import reading
    from ctseg.scans.cases import ImageSource
    from ctseg.scans.layouts import gathering
    from ctseg.scans.masks import open_masks

    source, ct = None, None
    if arguments.ct is not None:
        if not arguments.ct.exists():
            raise PreconditionError("NO_DATA", f"'{arguments.ct}' after --ct does not exist", "check the path", file=arguments.ct.name)
        source = ImageSource("dicom", arguments.ct) if arguments.ct.is_dir() else gathering.image_source(arguments.ct)
        ct, findings = reading.load_image(source)
        for finding in findings:
            LOG.info("%s", finding.line())
    masks = open_masks(arguments.input, ct, source)
    return masks, open_masks(arguments.reference, ct, source) if arguments.reference is not None else None, ct


def _chosen(wanted: str | None, masks: Masks) -> list[str]:
    """The structures to draw, in the masks' order. UsageError for one that is not there."""
    from ctseg.config import did_you_mean

    if wanted is None:
        return list(masks.names)
    names = [word.strip() for word in wanted.split(",") if word.strip()]
    for name in names:
        if name not in masks.names:
            raise UsageError("UNKNOWN_STRUCTURE", f"the masks hold no '{name}'", f"choose from {', '.join(masks.names)}{did_you_mean(name, masks.names)}")
    return [name for name in masks.names if name in names]


def _write_stills(folder: Path, pictures: Iterable[np.ndarray], sides: list[str]) -> None:
    from PIL import Image

    for side, picture in zip(sides, pictures):
        atomic_write(folder / f"{side}.png", functools.partial(Image.fromarray(picture).save, format="PNG", optimize=True))


def build_parser() -> argparse.ArgumentParser:
    """The command line of visualize.py."""
    parser = cli.plain_parser("visualize.py", __doc__ or "")
    parser.add_argument("--input", type=Path, required=True, metavar="MASKS", help="a label map, a folder of masks, a DICOM SEG or an RTSTRUCT")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the film, .mp4 or .gif")
    parser.add_argument("--stills", type=Path, metavar="DIR", help="where four pictures go: from the front, the left, the back and the right")
    parser.add_argument("--ct", type=Path, metavar="SCAN", help="the scan: NIfTI, NRRD, MetaImage or a DICOM series")
    parser.add_argument("--context", choices=["body", "bone", "none"], help="what is drawn translucent around the masks (default: body with --ct)")
    parser.add_argument("--reference", type=Path, metavar="MASKS", help="colour the masks by their distance to these, in mm")
    parser.add_argument("--structures", metavar="A,B,C", help="only these (default: all)")
    parser.add_argument("--seconds", type=float, default=6.0, metavar="S", help="for one turn (default: 6)")
    parser.add_argument("--fps", type=int, default=20, metavar="N", help="pictures per second (default: 20)")
    parser.add_argument("--width", type=int, default=720, metavar="PIXELS", help="default: 720")
    parser.add_argument("--height", type=int, default=540, metavar="PIXELS", help="default: 540")
    parser.add_argument("--synthetic", action="store_true", help="say in the pictures that the data are synthetic")
    return parser


def _main(argv: list[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    cli.log_to_terminal()
    return visualize(arguments)


def main(argv: list[str] | None = None) -> int:
    """Draw masks from the command line."""
    return cli.guarded(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
