"""What preprocessing says of a data set as a whole: the content of `preprocess_report.json`, and when a run
must stop.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ctseg.datasets.case import DataSet
from ctseg.errors import Finding, PreconditionError
from ctseg.preparation.case_to_tensors import CaseOutcome

VERSION = 1
# A scan without labels, or an archive beside the scans, says nothing against the others.
NO_FAULT = {"LABEL_MISSING", "LABEL_EMPTY", "ARCHIVE_INPUT"}


@dataclasses.dataclass(frozen=True)
class Report:
    """found = processed + cached + skipped cases, and every finding."""

    layout: str
    found: int
    processed: int
    cached: int
    skipped: int
    skipped_cases: tuple[str, ...]
    findings: tuple[Finding, ...]
    version: int = VERSION

    @classmethod
    def of(cls, data_set: DataSet, outcomes: Sequence[CaseOutcome], findings: Sequence[Finding]) -> Report:
        """findings: those about the data set, which are told before those about its cases."""
        refused = {finding.case for finding in data_set.findings if finding.severity == "ERROR"} - {"-"}
        skipped = sorted(refused | {outcome.case_id for outcome in outcomes if outcome.case is None})
        cached = sum(outcome.reused for outcome in outcomes if outcome.case is not None)
        found = len(refused | {outcome.case_id for outcome in outcomes})
        return cls(
            data_set.layout,
            found,
            processed=found - cached - len(skipped),
            cached=cached,
            skipped=len(skipped),
            skipped_cases=tuple(skipped),
            findings=(*findings, *(finding for outcome in outcomes for finding in outcome.findings)),
        )

    def check_skips(self, limit: float, file: str) -> None:
        """PreconditionError SKIP_LIMIT or NO_DATA when too few cases can be used. file: where they are named.

        One faulty case alone never stops a run, unless the limit is 0. Cases without labels are left out and
        do not count.
        """
        kinds = {(finding.case, finding.code) for finding in self.findings if finding.severity == "ERROR"}
        faulty = len({case for case, code in kinds if code not in NO_FAULT})
        if self.skipped == self.found:
            raise PreconditionError(
                "NO_DATA",
                f"none of {self.found} cases can be used",
                f"correct the cases ({file} lists what is wrong with each)",
                file=file,
            )
        if faulty > max(limit * self.found, 1 if limit else 0):
            enough = math.ceil(100 * faulty / self.found) / 100
            raise PreconditionError(
                "SKIP_LIMIT",
                f"{faulty} of {self.found} cases are faulty, more than data.skip_limit={limit:g}",
                f"see {file}; correct the cases, or go on without them with --set data.skip_limit={enough:g}",
                file=file,
            )
