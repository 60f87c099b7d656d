"""The search for one start: momentum around the best iterate, restarts with a smaller step, and a stopping rule."""

from __future__ import annotations

from torch import Tensor

from dfrot.rotation.refinement.procrustes_step import ProcrustesStep, cap_angle
from dfrot.rotation.refinement.settings import RefineSettings

MOMENTUM = 0.75  # upper bound of Nesterov's k / (k + 3)
STEP = 1.5  # over-relaxation
PATIENCE = 4  # iterates above the best before the search returns to it
WINDOW = 12  # rounds over which the relative improvement is judged
MIN_STEP = 1 / 16


class Search:
    """Momentum with restarts around the best iterate; iterates are those of `ProcrustesStep`."""

    def __init__(self, settings: RefineSettings, iterate: Tensor) -> None:
        self.settings = settings
        self.iterate = self.best = iterate
        self.skew: Tensor | None = None
        self.step = STEP
        self.momentum_age = 0  # steps since the momentum was dropped
        self.rejected = 0  # iterates since the best one
        self.curve: list[float] = []
        self.accepted: list[tuple[int, float]] = []

    def record(self, value: float) -> None:
        """Note the objective at the present iterate: it becomes the best one, or ends the momentum."""
        self.curve.append(value)
        if self.accepted and not value < self.accepted[-1][1]:
            self.skew = None
            self.rejected += 1
        else:
            self.accepted.append((len(self.curve) - 1, value))
            self.best, self.rejected = self.iterate, 0

    def finished(self, lowest: float) -> bool:
        """Whether rounds, improvement or step size are used up, or `lowest`, the best objective of all searches, is out
        of reach: falling as in its last window, this search would not get there in two more."""
        rounds = len(self.curve) - 1
        if rounds >= self.settings.rounds or self.accepted[-1][1] == 0.0 or self.step < MIN_STEP:
            return True
        if rounds < WINDOW:
            return False
        before = min(value for index, value in self.accepted if index <= rounds - WINDOW)
        now = self.accepted[-1][1]
        return now > before * (1.0 - WINDOW * self.settings.tol) or now - 2 * (before - now) > lowest

    def advance(self, procrustes: ProcrustesStep, product: Tensor) -> None:
        """Move to the next iterate; product: C at the present one (`ProcrustesStep.measure`)."""
        if self.rejected >= PATIENCE:
            self.iterate, self.skew, self.rejected, self.momentum_age = self.best, None, 0, 0
            self.step /= 2
            _, product = procrustes.measure(self.iterate)
        skew = procrustes.direction(self.iterate, product).mul_(self.step)
        if self.skew is not None:
            skew.add_(self.skew, alpha=min(MOMENTUM, self.momentum_age / (self.momentum_age + 3)))
        self.skew = cap_angle(skew)
        self.momentum_age += 1
        self.iterate = procrustes.rotate(self.iterate, self.skew)
