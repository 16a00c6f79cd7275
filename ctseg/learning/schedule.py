"""How far training has come, and the learning rate that belongs to it."""

from __future__ import annotations

import math
import time

from ctseg.config import TrainSettings


def learning_rate_factor(schedule: str, progress: float, warmup: float) -> float:
    """Share of the peak learning rate at `progress` (0..1): linear warm-up, then cosine or poly 0.9 to zero.

    "plateau" stays at 1 after the warm-up; the trainer halves the rate when validation stands still.
    """
    if warmup > 0 and progress < warmup:
        return max(progress / warmup, 0.02)
    rest = min(1.0, (progress - warmup) / (1 - warmup))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    if schedule == "poly":
        return float((1 - rest) ** 0.9)
    return 1.0


class Budget:
    """Progress by minutes when `train.minutes` is set, else by steps (the only form that resumes bit-exactly)."""

    def __init__(self, settings: TrainSettings, *, spent_seconds: float = 0.0):
        self.settings = settings
        self.spent_before = spent_seconds
        self.started = time.monotonic()
        self.validation_seconds = 0.0  # of the latest validation: reserved at the end of a timed run
        self.validation_total = 0.0

    @property
    def timed(self) -> bool:
        """Whether the clock decides."""
        return self.settings.minutes > 0

    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self.spent_before + time.monotonic() - self.started

    def progress(self, epoch: int, step: int) -> float:
        """0 at the start, 1 when training is over. epoch counts from 0."""
        if self.timed:
            usable = max(1.0, self.settings.minutes * 60 - 1.1 * self.validation_seconds)
            return min(1.0, self.seconds() / usable)
        total = self.settings.epochs * self.settings.steps_per_epoch
        return min(1.0, (epoch * self.settings.steps_per_epoch + step) / total)

    def validation_due(self, epoch: int, progress: float) -> bool:
        """Whether to predict the validation scans after this epoch (0-based).

        Timed: at the first epoch past a tenth, then as often as keeps validation near a twentieth of the time. By
        steps: `train.validations` times, evenly.
        """
        if progress >= 1:
            return True
        if self.timed:
            return (
                progress >= 0.1 and self.validation_total + self.validation_seconds <= 0.05 * self.seconds()
            )
        every = max(1, self.settings.epochs // max(1, self.settings.validations))
        return (epoch + 1) % every == 0

    def note_validation(self, seconds: float) -> None:
        """Remember what a validation cost."""
        self.validation_seconds = seconds
        self.validation_total += seconds
