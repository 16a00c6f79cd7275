"""Calibration of the test scans' probabilities, while they are at hand, case by case.

Each structure in its box on the scan's grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctseg import artifacts
from ctseg.artifacts import Workspace
from ctseg.datasets.case import IGNORED
from ctseg.errors import IntegrityError
from ctseg.geometry.argmax_on_scan import probability_on_scan
from ctseg.geometry.boxes import box_shape, grow, label_boxes, make_box, union, within
from ctseg.geometry.probabilities import Probabilities
from ctseg.geometry.volume import Grid
from ctseg.manifest import Case
from ctseg.scans.formats import volume_files
from ctseg.scoring import calibration
from ctseg.scoring.calibration import Regions

FORMAT, VERSION = "ctseg-calibration", 1
_ANNOTATED = ("present", "absent")


@dataclasses.dataclass
class Calibration:
    """What was counted over the test cases.

    sums: structure -> region -> sums over all cases; cases: case id -> structure -> ece_whole, ece_band.
    """

    names: Sequence[str]
    sums: dict[str, Regions] = dataclasses.field(default_factory=dict)
    cases: dict[str, dict[str, dict[str, float | None]]] = dataclasses.field(default_factory=dict)

    def add(
        self,
        case: Case,
        probabilities: Probabilities,
        canvas: Grid,
        prediction: np.ndarray,
        workspace: Workspace,
    ) -> None:
        """Count one case of the manifest.

        canvas: where the probabilities lie; prediction: label map (D, H, W) on the scan's grid. What counts
        are structures that the case is annotated for, and voxels that somebody looked at. IntegrityError when
        the reference lies on another grid than the scan.
        """
        scan, file = case.scan, case.written_reference().file
        reference = volume_files.read_integers(
            workspace.require(workspace.processed / file, stage="preprocess")
        )[0]
        if not reference.grid.matches(scan):
            raise IntegrityError(
                "GRID_MISMATCH",
                "the reference does not lie on the grid of its scan",
                "run `python run_pipeline.py --preprocess` again",
                case=case.case_id,
                file=f"processed_data/{file}",
            )
        numbers = [
            number for number, name in enumerate(self.names, start=1) if case.states.get(name) in _ANNOTATED
        ]
        ignored = reference.array == IGNORED
        voxels = int(np.count_nonzero(~ignored))
        found = [label_boxes(label) for label in (reference.array, prediction)]
        scores = self.cases.setdefault(case.case_id, {})
        for number in numbers:
            name = self.names[number - 1]
            soft = probability_on_scan(probabilities, number, canvas, scan)
            held = [grow(own[number], calibration.MARGIN, scan.shape) for own in found if number in own]
            held += [soft[0]] if soft is not None else []
            box = union(*held) if held else make_box((0, 0, 0), (0, 0, 0))
            probability = np.zeros(box_shape(box), dtype=np.float32)
            if soft is not None:
                probability[within(soft[0], box)] = soft[1]
            own = calibration.structure_sums(
                probability=probability,
                reference=reference.array[box] == number,
                prediction=prediction[box] == number,
                voxels=voxels,
                ignored=ignored[box],
            )
            total = self.sums.setdefault(name, calibration.empty())
            for region, sums in own.items():
                total[region].merge(sums)
            scores[name] = {f"ece_{region}": own[region].ece for region in calibration.REGIONS}

    def write(self, workspace: Workspace, identity: Mapping[str, Any]) -> None:
        """Write calibration.json. identity: which weights and data it belongs to."""
        artifacts.write_json(
            workspace.calibration,
            {
                "format": FORMAT,
                "version": VERSION,
                **identity,
                "bins": calibration.BINS,
                "band_voxels": calibration.BAND_STEPS,
                "clip": calibration.CLIP,
                "structures": {
                    name: {region: regions[region].record() for region in calibration.REGIONS}
                    for name, regions in self.sums.items()
                },
                "cases": self.cases,
            },
        )
