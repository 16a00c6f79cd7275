"""How far training has come."""

from __future__ import annotations

import time

from ctseg.config import TrainSettings
from ctseg.learning.training_state import TrainingState


class Budget:
    """Progress by minutes when `train.minutes` is set, else by steps (the only form that resumes
    bit-exactly).
    """

    def __init__(self, settings: TrainSettings, state: TrainingState):
        self.settings, self.state, self.timed = settings, state, settings.minutes > 0
        self.started = time.monotonic() - state.seconds

    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return time.monotonic() - self.started

    def progress(self) -> float:
        """0 at the start, 1 when training is over; the latest validation's time is reserved at the end."""
        if self.timed:
            usable = max(1.0, self.settings.minutes * 60 - 1.1 * self.state.validation_seconds)
            return min(1.0, self.seconds() / usable)
        per_epoch = self.settings.steps_per_epoch
        done = self.state.epoch * per_epoch + self.state.partial.steps
        return min(1.0, done / (self.settings.epochs * per_epoch))

    def validation_due(self, progress: float) -> bool:
        """Whether to predict the validation scans after the epoch that has just been trained.

        Timed: at the first epoch past a tenth, then as often as keeps validation near a twentieth of the
        time. By steps: `train.validations` times, evenly.
        """
        if progress >= 1:
            return True
        if self.timed:
            spent = self.state.validation_total + self.state.validation_seconds
            return progress >= 0.1 and spent <= 0.05 * self.seconds()
        every = max(1, self.settings.epochs // max(1, self.settings.validations))
        return (self.state.epoch + 1) % every == 0
