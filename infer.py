"""New scans to masks: needs a checkpoint and the scans, nothing else.

Reads   --input: a NIfTI, NRRD (.nrrd) or MetaImage (.mha) file, a folder with a DICOM CT series, or a folder of such; --checkpoint (default checkpoints/best_model.pth)
Writes  --output: <scan>.nii.gz in the geometry of each scan (--format: a file per structure, DICOM SEG, RTSTRUCT), labels.json with the names, inference.json
        with what was done and found (--statistics: as a table too); on request probabilities and uncertainty

    python infer.py --input scan.nii.gz --output masks
    python infer.py --input dicom_series --output masks --format nifti,seg,rtstruct --statistics
    python infer.py --input new_patients --output masks --guide totalsegmentator_masks
    python infer.py --input new_patients --output masks --checkpoint a/best_model.pth b/best_model.pth --save-uncertainty     (an ensemble)

A network that was trained with guide organs needs them here too: --guide, a folder of masks (<scan>/<organ>.nii.gz), totalsegmentator, or
an earlier best_model.pth. A scan that cannot be used is told and left out (exit code 3); the others are still done. After an interruption the same
command goes on with the scans that are left.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg import artifacts, cli, config
from ctseg.cli import LOG
from ctseg.errors import SYSTEM_FAULTS, CaseError, Finding, PreconditionError, ResourceError, UsageError
from ctseg.outputs import keep_inputs, require_writable

if TYPE_CHECKING:
    from ctseg.geometry.volume import Volume
    from ctseg.prediction.predictor import Predictor
    from ctseg.scans.datasets.case import ImageSource
    from ctseg.scans.guide_organs import CaseGuide, GuideSource

RECORD = "inference.json"


@dataclasses.dataclass(frozen=True)
class Guides:
    """Where the guide organs of new scans come from: a source of masks, or an earlier model."""

    source: GuideSource | None = None
    model: Predictor | None = None
    organs: tuple[str, ...] = ()

    def of(self, name: str, image: Volume) -> CaseGuide | None:
        """The guide of one scan."""
        from ctseg.geometry.distance_maps import organ_masks
        from ctseg.geometry.volume import Volume
        from ctseg.scans.guide_organs import CaseGuide, load_guide

        if self.model is not None:
            label = Volume(self.model.predict_scan(image), image.affine)
            masks = organ_masks(label, [self.model.names.index(organ) + 1 for organ in self.organs])
            return CaseGuide(self.organs, tuple(masks), "predicted")
        if self.source is None:
            return None
        return load_guide(self.source, name, image, None, self.organs, ())[0]


def choose_guides(predictor: Predictor, wanted: str | None, output: Path, load: Any) -> Guides:
    """The guides for a network; UsageError when it needs some and none were given, or they do not know its organs."""
    from ctseg.scans.guide_organs import GuideSource

    if not predictor.takes_guide:
        return Guides()
    organs = tuple(predictor.checkpoint["guide"]["organs"])
    if wanted is None:
        raise UsageError(
            "BAD_OPTION",
            f"the network was trained with guide organs ({', '.join(organs)})",
            "give --guide: a folder of masks, totalsegmentator, or an earlier best_model.pth",
        )
    if wanted == "totalsegmentator":
        return Guides(GuideSource("totalsegmentator", organs, output / "guide_masks"), organs=organs)
    path = Path(wanted)
    if path.is_dir():
        return Guides(GuideSource("folder", organs, path), organs=organs)
    if not path.is_file():
        raise UsageError(
            "BAD_OPTION",
            f"'{wanted}' after --guide is no folder, no checkpoint, and not totalsegmentator",
            "check the path",
            file=path.name,
        )
    model = load(path)
    unknown = [organ for organ in organs if organ not in model.names]
    if unknown or model.takes_guide:
        raise UsageError(
            "BAD_OPTION",
            f"the guide model does not know {unknown[0]}"
            if unknown
            else "the guide model needs a guide itself",
            "give a model that predicts the guide organs",
            file=path.name,
        )
    return Guides(model=model, organs=organs)


def infer(arguments: argparse.Namespace) -> int:
    """Predict every scan. Returns 0, or 3 when some could not be used."""
    from ctseg.prediction.predictor import ensemble, load_predictor
    from ctseg.prediction.scan_outputs import write_statistics
    from ctseg.runtime.hardware import peak_memory_gb
    from ctseg.scans.datasets import find_scans
    from models import build_network

    resolved = config.resolve(None, {**config.parse_assignments(arguments.assignments), **_asked(arguments)})
    settings = resolved.evaluate
    found, left_out = find_scans.search(arguments.input)
    scans = {
        name: dataclasses.replace(source, assume_hu=resolved.data.assume_hu) for name, source in found.items()
    }
    formats = chosen_formats(arguments.format, scans)
    for checkpoint in arguments.checkpoint:
        if not os.path.lexists(checkpoint):
            raise PreconditionError(
                "MISSING_ARTIFACT",
                f"{checkpoint} does not exist; the train stage writes it",
                "run `python run_pipeline.py --train` first, or give --checkpoint",
                file=checkpoint.name,
            )

    def load(path: Path) -> Predictor:
        return load_predictor(
            path, settings, device=arguments.device, build_network=build_network, file=path.name
        )

    require_writable(arguments.output)
    hashes = [artifacts.file_hash(checkpoint) for checkpoint in arguments.checkpoint if checkpoint.is_file()]
    if len(set(hashes)) < len(hashes):
        raise UsageError(
            "BAD_OPTION",
            "--checkpoint names the same model twice, which would agree with itself",
            "give each model once",
        )
    predictor = ensemble([load(checkpoint) for checkpoint in arguments.checkpoint])
    if settings.flip and predictor.why_not_mirrored:
        LOG.info("%s", predictor.why_not_mirrored)
    guides = choose_guides(predictor, arguments.guide, arguments.output, load)
    _keep_inputs(arguments, scans, formats, predictor.names)
    LOG.info(
        "%d scans, structures: %s. %s.", len(scans), ", ".join(predictor.names), predictor.machine.reason
    )
    artifacts.write_json(
        arguments.output / "labels.json",
        {str(number): name for number, name in enumerate(predictor.names, start=1)},
    )
    run = {
        "version": 3,
        "checkpoints_sha256": hashes,
        "model": predictor.checkpoint["arch"]["name"],
        "structures": predictor.names,
        "synthetic_training": bool(predictor.checkpoint["synthetic"]),
        "device": predictor.machine.reason,
        "why_no_confidence": predictor.why_no_confidence,
        "settings": dataclasses.asdict(settings),
        "formats": formats,
        "probabilities": arguments.probabilities,
        "uncertainty": arguments.save_uncertainty,
        "guide": None if arguments.guide is None else Path(arguments.guide).name,
        "versions": artifacts.package_versions(),
    }
    for finding in left_out:
        LOG.log(logging.ERROR if finding.severity == "ERROR" else logging.INFO, "%s", finding.line())
    lost = [
        {"scan": finding.case, "error": finding.code, "cause": finding.cause}
        for finding in left_out
        if finding.severity == "ERROR"
    ]
    artifacts.sweep_temporaries(arguments.output)
    before, records = earlier_records(arguments.output, run), []
    artifacts.write_json(
        arguments.output / RECORD, {**run, "finished": False, "scans": list(before.values())}
    )  # before any mask: it marks the folder as results
    algorithm = f"ctseg {artifacts.canonical_hash(run['checkpoints_sha256'])[:12]}"
    for name, source in cli.bar("Predicting")(scans.items()):
        records.append(
            _predict(predictor, guides, name, source, arguments, formats, before.get(name), algorithm)
        )
        if doubt := low_confidence(name, records[-1].get("confidence", {}), settings.low_confidence):
            LOG.warning("%s", doubt)
        artifacts.write_json(
            arguments.output / RECORD,
            {
                **run,
                "finished": len(records) == len(scans),
                "peak_memory_gb": peak_memory_gb(predictor.machine.device),
                "scans": [*lost, *records],
            },
        )
    if arguments.statistics:
        write_statistics(arguments.output / "statistics.csv", records)
    failed = len(lost) + sum("error" in record for record in records)
    LOG.info(
        "%d masks in %s%s. Research tool, not a medical device.",
        len(lost) + len(records) - failed,
        arguments.output,
        f", {failed} scans left out" if failed else "",
    )
    return 3 if failed else 0


def _keep_inputs(
    arguments: argparse.Namespace, scans: dict[str, ImageSource], formats: list[str], names: Sequence[str]
) -> None:
    """Refuse an output that would touch scans, models or guide masks; a sub-folder among scans does not."""
    from ctseg.prediction import scan_outputs as files

    targets = []
    for name in scans:
        for kind, file in files.files_of(
            name, formats, probabilities=arguments.probabilities, uncertainty=arguments.save_uncertainty
        ).items():
            folder = arguments.output / file
            targets += (
                [folder / f"{files.file_name(organ)}.nii.gz" for organ in names]
                if kind in files.FOLDERS
                else [folder]
            )
    targets += [arguments.output / name for name in ("labels.json", RECORD, "statistics.csv")]
    guide = None if arguments.guide in (None, "totalsegmentator") else Path(arguments.guide)
    places = [
        place
        for source in scans.values()
        for place in (source.path, source.path.parent if source.path.is_file() else None)
    ]
    keep_inputs(targets, [arguments.input, *places], below=False)
    keep_inputs(targets, [*arguments.checkpoint, guide])


def earlier_records(output: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Scan -> its record of an interrupted run with the same models, settings and versions, where all its files are still there."""
    path = output / RECORD
    content = artifacts.read_json(path) if path.is_file() else {}
    if not isinstance(content, dict) or any(content.get(key) != value for key, value in run.items()):
        return {}
    return {
        record["scan"]: record
        for record in content.get("scans", [])
        if "error" not in record and all((output / file).exists() for file in record["files"].values())
    }


def chosen_formats(text: str, scans: dict[str, ImageSource]) -> list[str]:
    """The formats of --format. UsageError for an unknown one, and for a DICOM format where a scan is no DICOM series."""
    from ctseg.prediction.scan_outputs import DICOM_FORMATS, FORMATS

    formats = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in formats if word not in FORMATS]
    if unknown or not formats:
        raise UsageError(
            "BAD_OPTION",
            f"--format {text} names no format that can be written",
            f"choose from {', '.join(FORMATS)}",
        )
    foreign = [name for name, source in scans.items() if source.format != "dicom"]
    if foreign and set(formats) & DICOM_FORMATS:
        raise UsageError(
            "BAD_OPTION",
            f"--format {text} refers to the slices of a DICOM series, and '{foreign[0]}' is none",
            "give the DICOM series as --input, or --format nifti",
        )
    return formats


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that have an option of their own here."""
    asked = {"evaluate.flip": arguments.tta, "evaluate.keep_largest": arguments.keep_largest}
    return {key: value for key, value in asked.items() if value is not None}


def low_confidence(scan: str, confidence: Mapping[str, float | None], threshold: float) -> str | None:
    """The line that asks for a look at a scan, least certain structures first; None where its views agree with at least `threshold`."""
    doubtful = sorted(
        (value, name) for name, value in confidence.items() if value is not None and value < threshold
    )
    if not doubtful:
        return None
    listed = ", ".join(f"{name} {value:.2f}" for value, name in doubtful[:5]) + (
        f" and {len(doubtful) - 5} more" if len(doubtful) > 5 else ""
    )
    return Finding(
        "WARN",
        "LOW_CONFIDENCE",
        f"predictions of it that should be equal differ (their Dice: {listed})",
        "look at these masks before using them",
        scan,
    ).line()


def _predict(
    predictor: Predictor,
    guides: Guides,
    name: str,
    source: ImageSource,
    arguments: argparse.Namespace,
    formats: list[str],
    before: dict[str, Any] | None,
    algorithm: str,
) -> dict[str, Any]:
    """Predict one scan and write what was asked for; what went wrong is told and becomes part of the record. before: its record of an earlier run of the same kind.
    algorithm: how DICOM files call the model."""
    from ctseg.geometry.volume import Volume
    from ctseg.prediction import scan_outputs as files
    from ctseg.scans.datasets import load_case
    from ctseg.scans.datasets.case import CaseRecord
    from ctseg.scoring.failure import agreement

    started, output = time.monotonic(), arguments.output
    image: Volume | None = None
    try:
        digest = load_case.source_hash(CaseRecord(name, name, source, None))
        if before is not None and before["input_sha256"] == digest:
            return before
        image, findings = load_case.load_image(source)
        for finding in findings:
            LOG.info("%s", dataclasses.replace(finding, case=name, file=Path(finding.file).name).line())
        members: list[Any] = []
        probabilities, canvas = predictor.probabilities_of_scan(
            image, guides.of(name, image), on_member=members.append
        )
        confidence = dict(zip(predictor.names, agreement(members, len(predictor.names))))
        names, mask = (
            dict(enumerate(predictor.names, start=1)),
            Volume(predictor.label_on_scan(probabilities, canvas, image.grid), image.affine),
        )
        written = files.files_of(
            name, formats, probabilities=arguments.probabilities, uncertainty=arguments.save_uncertainty
        )
        for kind in formats:
            for finding in files.write_mask(
                output / written[kind], kind, mask, names, source, algorithm=algorithm
            ):
                LOG.warning("%s", dataclasses.replace(finding, case=name).line())
        if arguments.probabilities:
            files.write_probabilities(
                output / written["probabilities"], probabilities, canvas, image.grid, predictor.names
            )
        if arguments.save_uncertainty:
            files.write_uncertainty(output / written["uncertainty"], probabilities, canvas, image.grid)
    except (CaseError, PreconditionError) as error:
        LOG.error("%s", Finding.from_error(error, case=name, file=Path(error.file).name).line())
        return {"scan": name, "error": error.code, "cause": error.cause}
    except ResourceError:  # the output, not the scan: the next one would fare no better
        raise
    except MemoryError:
        return _broken(
            name,
            "OUT_OF_MEMORY",
            f"{image.array.shape} voxels do not fit into the memory"
            if image is not None
            else "the scan does not fit into the memory",
            "crop the scan, or use a machine with more memory",
        )
    except Exception as error:  # the case boundary: a scan that nobody foresaw must not end the others
        if isinstance(error, OSError) and error.errno in SYSTEM_FAULTS:
            problem = ResourceError.from_os(error)
            return _broken(name, problem.code, problem.cause, problem.fix)
        frame = traceback.extract_tb(error.__traceback__)[
            -1
        ]  # its place, but not its text, which may quote a header
        return _broken(
            name,
            "PREDICT_FAILED",
            f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}",
            "please report it with this line",
        )
    return {
        "scan": name,
        "input_sha256": digest,
        "files": written,
        "confidence": confidence,
        "members": predictor.members,
        "structures": files.statistics_of(mask, image, names),
        "seconds": round(time.monotonic() - started, 2),
    }


def _broken(name: str, code: str, cause: str, fix: str) -> dict[str, Any]:
    LOG.error("%s", Finding("ERROR", code, cause, fix, case=name).line())
    return {"scan": name, "error": code, "cause": cause}


def build_parser() -> argparse.ArgumentParser:
    """The command line of infer.py."""
    parser = cli.plain_parser("infer.py", __doc__ or "")
    parser.add_argument(
        "--input", type=Path, required=True, metavar="PATH", help="a scan, or a folder of scans"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the masks go")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        nargs="+",
        default=[Path("checkpoints/best_model.pth")],
        metavar="FILE",
        help="default: checkpoints/best_model.pth; several: the mean of their probabilities",
    )
    parser.add_argument(
        "--format",
        default="nifti",
        metavar="LIST",
        help="what to write, from nifti, organs (a file per structure), seg, rtstruct (default: nifti); the last two need DICOM scans",
    )
    parser.add_argument(
        "--tta",
        action=argparse.BooleanOptionalAction,
        help="predict the mirror image too and take the mean (default: yes, where the network has seen mirrored scans)",
    )
    parser.add_argument(
        "--keep-largest",
        choices=["auto", "all", "none"],
        help="of which structures only the largest piece stays (default: auto, what validation found to help)",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="also write <scan>_probabilities/<structure>.nii.gz, 0 to 1",
    )
    parser.add_argument(
        "--save-uncertainty",
        action="store_true",
        help="also write <scan>_uncertainty.nii.gz: entropy, 0 certain, 1 undecided",
    )
    parser.add_argument(
        "--statistics", action="store_true", help="also write statistics.csv: volume and HU of each structure"
    )
    parser.add_argument(
        "--guide",
        metavar="SOURCE",
        help="for guided networks: a folder of masks, totalsegmentator, or a best_model.pth that predicts the organs",
    )
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="default: auto"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="settings of the prediction, for example --set evaluate.flip=false",
    )
    return parser


def _main(argv: list[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    cli.log_to_terminal()
    return infer(arguments)


def main(argv: list[str] | None = None) -> int:
    """Predict scans from the command line."""
    return cli.guarded(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
