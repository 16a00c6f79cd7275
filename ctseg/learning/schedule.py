"""How far training has come."""

from __future__ import annotations

import time

from ctseg.config import TrainSettings


class Budget:
    """Progress by minutes when `train.minutes` is set, else by steps (the only form that resumes
    bit-exactly).

    seconds: of training before a resume. validation_seconds: of the latest validation, reserved at the end of
    a timed run; validation_total: of all.
    """

    def __init__(
        self,
        settings: TrainSettings,
        *,
        seconds: float = 0.0,
        validation_seconds: float = 0.0,
        validation_total: float = 0.0,
    ):
        self.settings, self.timed = settings, settings.minutes > 0
        self.started = time.monotonic() - seconds
        self.validation_seconds, self.validation_total = validation_seconds, validation_total

    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return time.monotonic() - self.started

    def record(self) -> dict[str, float]:
        """What a resumed run needs, under the names of the constructor."""
        return {
            "seconds": self.seconds(),
            "validation_seconds": self.validation_seconds,
            "validation_total": self.validation_total,
        }

    def progress(self, epoch: int, step: int) -> float:
        """0 at the start, 1 when training is over. epoch counts from 0."""
        if self.timed:
            usable = max(1.0, self.settings.minutes * 60 - 1.1 * self.validation_seconds)
            return min(1.0, self.seconds() / usable)
        total = self.settings.epochs * self.settings.steps_per_epoch
        return min(1.0, (epoch * self.settings.steps_per_epoch + step) / total)

    def validation_due(self, epoch: int, progress: float) -> bool:
        """Whether to predict the validation scans after this epoch (0-based).

        Timed: at the first epoch past a tenth, then as often as keeps validation near a twentieth of the
        time. By steps: `train.validations` times, evenly.
        """
        if progress >= 1:
            return True
        if self.timed:
            spent = self.validation_total + self.validation_seconds
            return progress >= 0.1 and spent <= 0.05 * self.seconds()
        every = max(1, self.settings.epochs // max(1, self.settings.validations))
        return (epoch + 1) % every == 0

    def note_validation(self, seconds: float) -> None:
        """Remember what a validation cost."""
        self.validation_seconds = seconds
        self.validation_total += seconds
