"""Settings of training a draft."""

from __future__ import annotations

from dataclasses import dataclass, field

from dfrot.errors import InputError


@dataclass(frozen=True)
class Weights:
    """feature, mid: l_f and l_m; decay: gamma; kl: of the KL terms."""

    feature: float = 0.1
    mid: float = 0.1
    decay: float = 0.8
    kl: float = 1.0


@dataclass(frozen=True)
class TrainOptions:
    """epochs over the samples; batch: samples per step; lr: peak; ttt_steps: of the training-time test; noise:
    half-width of the uniform noise on features, in units of their rms; evaluations: how often held-out acceptance
    is measured (and the state saved); bf16: autocast."""

    epochs: float = 1.0
    batch: int = 8
    lr: float = 1e-3
    ttt_steps: int = 3
    noise: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    evaluations: int = 10
    bf16: bool = True
    seed: int = 0
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "lr", "evaluations", "clip"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name} {getattr(self, name)}: must be positive")
        if self.ttt_steps < 0:
            raise InputError(f"--ttt-steps {self.ttt_steps}: cannot be negative")
