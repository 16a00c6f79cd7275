"""Work that kills its process, in a file of its own, so that workers import nothing else."""

from __future__ import annotations

import os

from ctseg.preparation import case_to_tensors


def prepare_or_die(job: case_to_tensors.CaseJob) -> case_to_tensors.CaseOutcome:
    """Prepare a case; that of the second patient kills the process."""
    if job.record.case_id == "p1":
        os._exit(9)
    return case_to_tensors.prepare_case(job)
