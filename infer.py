"""New scans to masks: needs a checkpoint and the scans, nothing else.

Reads --input: a NIfTI, NRRD (.nrrd) or MetaImage (.mha) file, a folder with a DICOM CT series, or a folder of
such; --checkpoint (default checkpoints/best_model.pth) Writes --output: <scan>.nii.gz in the geometry of each
scan (--format: a file per structure, DICOM SEG, RTSTRUCT), labels.json with the names, inference.json with
what was done and found (--statistics: as a table too); on request probabilities and uncertainty

python infer.py --input scan.nii.gz --output masks python infer.py --input dicom_series --output masks
--format nifti,seg,rtstruct --statistics python infer.py --input new_patients --output masks --guide
totalsegmentator_masks python infer.py --input new_patients --output masks --checkpoint a/best_model.pth
b/best_model.pth (an ensemble)

A network that was trained with guide organs needs them here too: --guide, a folder of masks
(<scan>/<organ>.nii.gz), totalsegmentator, or an earlier best_model.pth. A scan that cannot be used is told
and left out (exit code 3); the others are still done. After an interruption the same command goes on with the
scans that are left.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg import artifacts, cli, config
from ctseg.cli import LOG
from ctseg.errors import PreconditionError, UsageError
from ctseg.outputs import keep_inputs, require_writable

if TYPE_CHECKING:
    from ctseg.datasets.case import ImageSource
    from ctseg.prediction.new_scans import Inference
    from ctseg.prediction.predictor import Predictor
    from ctseg.prediction.scan_outputs import Wanted

RECORD = "inference.json"
OPTIONS: dict[str, dict[str, Any]] = {
    "--input": {"type": Path, "required": True, "metavar": "PATH", "help": "a scan, or a folder of scans"},
    "--output": {"type": Path, "required": True, "metavar": "DIR", "help": "where the masks go"},
    "--checkpoint": {
        "type": Path,
        "nargs": "+",
        "default": [Path("checkpoints/best_model.pth")],
        "metavar": "FILE",
        "help": "default: checkpoints/best_model.pth; several: the mean of their probabilities",
    },
    "--format": {
        "default": "nifti",
        "metavar": "LIST",
        "help": "what to write, from nifti, organs (a file per structure), seg, rtstruct (default: nifti); "
        "the last two need DICOM scans",
    },
    "--tta": {
        "action": argparse.BooleanOptionalAction,
        "help": "predict the mirror image too and take the mean (default: where the network has seen such)",
    },
    "--keep-largest": {
        "choices": ["auto", "all", "none"],
        "help": "of which structures only the largest piece stays (default: auto, where validation gained)",
    },
    "--probabilities": {
        "action": "store_true",
        "help": "also write <scan>_probabilities/<structure>.nii.gz, 0 to 1",
    },
    "--save-uncertainty": {
        "action": "store_true",
        "help": "also write <scan>_uncertainty.nii.gz: entropy, 0 certain, 1 undecided",
    },
    "--statistics": {
        "action": "store_true",
        "help": "also write statistics.csv: volume and HU of each structure",
    },
    "--guide": {
        "metavar": "SOURCE",
        "help": "for guided networks: a folder of masks, totalsegmentator, or a best_model.pth",
    },
    "--device": {"default": "auto", "choices": ["auto", "cpu", "cuda", "mps"], "help": "default: auto"},
    "--set": {
        "action": "append",
        "default": [],
        "metavar": "KEY=VALUE",
        "dest": "assignments",
        "help": "settings of the prediction, for example --set evaluate.flip=false",
    },
}


def infer(arguments: argparse.Namespace) -> int:
    """Predict every scan. Returns 0, or 3 when some could not be used."""
    from ctseg.datasets import find_scans
    from ctseg.prediction.new_scans import Inference, choose_guides, failed
    from ctseg.prediction.predictor import ensemble, load_predictor
    from ctseg.prediction.scan_outputs import Wanted, write_statistics
    from models import build_network

    asked = {"evaluate.flip": arguments.tta, "evaluate.keep_largest": arguments.keep_largest}
    asked = {key: value for key, value in asked.items() if value is not None}
    resolved = config.resolve(None, {**config.parse_assignments(arguments.assignments), **asked})
    settings, output = resolved.evaluate, arguments.output
    found, left_out = find_scans.search(arguments.input)
    scans = {
        name: dataclasses.replace(source, assume_hu=resolved.data.assume_hu) for name, source in found.items()
    }
    formats = chosen_formats(arguments.format, scans)

    def load(path: Path) -> Predictor:
        return load_predictor(
            path, settings, device=arguments.device, build_network=build_network, file=path.name
        )

    hashes = checkpoint_hashes(arguments.checkpoint)
    require_writable(output)
    predictor = ensemble([load(checkpoint) for checkpoint in arguments.checkpoint])
    if settings.flip and predictor.why_not_mirrored:
        LOG.info("%s", predictor.why_not_mirrored)
    guide_of = choose_guides(predictor, arguments.guide, output, load)
    algorithm = f"ctseg {artifacts.canonical_hash(hashes)[:12]}"
    wanted = Wanted(tuple(formats), arguments.probabilities, arguments.save_uncertainty, algorithm)
    protect_inputs(arguments, scans, wanted, predictor.names)
    LOG.info(
        "%d scans, structures: %s. %s.", len(scans), ", ".join(predictor.names), predictor.machine.reason
    )
    artifacts.write_json(output / "labels.json", predictor.labels)
    run = run_record(arguments, predictor, wanted)
    run |= {"checkpoints_sha256": hashes, "settings": dataclasses.asdict(settings)}
    lost = []
    for finding in left_out:
        if finding.severity == "ERROR":
            lost.append(failed(finding))
        else:
            LOG.info("%s", finding.line())
    inference = Inference(predictor, guide_of, wanted, output, settings.low_confidence)
    records = predict_all(inference, scans, run, lost)
    if arguments.statistics:
        write_statistics(output / "statistics.csv", records)
    n_failed = sum("error" in record for record in records)
    LOG.info(
        "%d masks in %s%s. Research tool, not a medical device.",
        len(records) - n_failed,
        output,
        f", {n_failed} scans left out" if n_failed else "",
    )
    return 3 if n_failed else 0


def run_record(arguments: argparse.Namespace, predictor: Predictor, wanted: Wanted) -> dict[str, Any]:
    """What `inference.json` says of the run as a whole; a run that differs in it begins anew."""
    return {
        "version": 3,
        "model": predictor.checkpoint["arch"]["name"],
        "structures": predictor.names,
        "synthetic_training": bool(predictor.checkpoint["synthetic"]),
        "device": predictor.machine.reason,
        "why_no_confidence": predictor.why_no_confidence,
        "formats": list(wanted.formats),
        "probabilities": arguments.probabilities,
        "uncertainty": arguments.save_uncertainty,
        "guide": None if arguments.guide is None else Path(arguments.guide).name,
        "versions": artifacts.package_versions(),
    }


def predict_all(
    inference: Inference, scans: dict[str, ImageSource], run: dict[str, Any], lost: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The records of all scans, those that were lost first; inference.json is written after each.

    run: what inference.json says of the run as a whole. What an equal run did before is not done again.
    """
    from ctseg.prediction.new_scans import earlier_records, low_confidence
    from ctseg.runtime.hardware import peak_memory_gb

    path = inference.output / RECORD
    artifacts.sweep_temporaries(inference.output)
    before = earlier_records(path, run)
    # before any mask: it marks the folder as results
    artifacts.write_json(path, {**run, "finished": False, "scans": list(before.values())})
    records = list(lost)
    for name, source in cli.bar("Predicting")(scans.items()):
        records.append(inference.predict(name, source, before.get(name)))
        doubt = low_confidence(name, records[-1].get("confidence", {}), inference.low_confidence)
        if doubt is not None:
            LOG.warning("%s", doubt)
        state = {
            "finished": len(records) == len(scans) + len(lost),
            "peak_memory_gb": peak_memory_gb(inference.predictor.machine.device),
            "scans": records,
        }
        artifacts.write_json(path, run | state)
    return records


def checkpoint_hashes(checkpoints: list[Path]) -> list[str]:
    """The hashes of the models of --checkpoint.

    PreconditionError for a missing one, UsageError for one given twice.
    """
    for path in checkpoints:
        if not os.path.lexists(path):
            raise PreconditionError(
                "MISSING_ARTIFACT",
                f"{path} does not exist; the train stage writes it",
                "run `python run_pipeline.py --train` first, or give --checkpoint",
                file=path.name,
            )
    hashes = [artifacts.file_hash(path) for path in checkpoints if path.is_file()]
    if len(set(hashes)) < len(hashes):
        raise UsageError(
            "BAD_OPTION",
            "--checkpoint names the same model twice, which would agree with itself",
            "give each model once",
        )
    return hashes


def protect_inputs(
    arguments: argparse.Namespace, scans: dict[str, ImageSource], wanted: Wanted, names: list[str]
) -> None:
    """Refuse an output that would touch scans, models or guide masks; a sub-folder among scans does not."""
    from ctseg.prediction.scan_outputs import FOLDERS, file_name

    output = arguments.output
    targets = [output / name for name in ("labels.json", RECORD, "statistics.csv")]
    for scan in scans:
        for kind, file in wanted.files_of(scan).items():
            inside = [f"{file_name(organ)}.nii.gz" for organ in names] if kind in FOLDERS else [""]
            targets += [output / file / name for name in inside]
    guide = None if arguments.guide in (None, "totalsegmentator") else Path(arguments.guide)
    places = [source.path for source in scans.values()]
    places += [path.parent for path in places if path.is_file()]
    keep_inputs(targets, [arguments.input, *places], below=False)
    keep_inputs(targets, [*arguments.checkpoint, guide])


def chosen_formats(text: str, scans: dict[str, ImageSource]) -> list[str]:
    """The formats of --format. UsageError for unknown ones, and for DICOM where a scan is no DICOM series."""
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


def build_parser() -> argparse.ArgumentParser:
    """The command line of infer.py."""
    parser = cli.plain_parser("infer.py", __doc__ or "")
    for flag, words in OPTIONS.items():
        parser.add_argument(flag, **words)
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
