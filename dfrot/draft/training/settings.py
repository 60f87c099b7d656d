"""Settings of training a draft."""

from __future__ import annotations

from dataclasses import dataclass, field

from dfrot.errors import InputError
from dfrot.settings import check, seed_setting, setting

EPOCHS = 2.0


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of the training loss."""

    feature: float = setting(0.1, minimum=0, help="Weight of the loss on the last feature.")
    mid: float = setting(0.1, minimum=0, help="Weight of the loss on the intermediate feature.")
    decay: float = setting(
        0.8,
        minimum=0,
        option="--loss-decay",
        aliases=("--decay",),
        help="Factor between the losses of successive steps of the training-time test.",
    )
    kl: float = setting(1.0, minimum=0, help="Weight of the KL divergence from the target.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TrainSettings:
    """How a draft is trained."""

    epochs: float = setting(EPOCHS, above=0, help="Passes over the samples.")
    hours: float | None = setting(
        None,
        above=0,
        help="Train for about this long in place of `epochs`: the number of steps, and with it warm-up and decay of "
        "the learning rate, follow from the speed of the first steps.",
    )
    batch: int = setting(4, minimum=1, help="Samples per step.")
    lr: float = setting(1e-3, above=0, help="Peak learning rate.")
    ttt_steps: int = setting(3, minimum=0, help="Steps of the training-time test.")
    roots: int = setting(
        64, minimum=1, help="dflash: random tokens of every sample behind which a block of draft tokens is trained."
    )
    noise: float = setting(
        0.05, minimum=0, help="Half-width of the uniform noise added to features, relative to their RMS."
    )
    weight_decay: float = setting(0.01, minimum=0, help="Weight decay of AdamW.")
    clip: float = setting(1.0, above=0, help="The largest gradient norm; larger gradients are scaled down.")
    evaluations: int = setting(
        8, minimum=1, help="How often acceptance on held-out samples is measured and the state is saved."
    )
    bf16: bool = setting(True, help="Train with bfloat16 autocast.")
    seed: int = seed_setting()
    weights: LossWeights = field(default_factory=LossWeights)
    """Weights of the loss."""

    def __post_init__(self) -> None:
        check(self)
        if self.hours is not None and self.epochs != EPOCHS:
            raise InputError("`hours` and `epochs` exclude each other; leave one out", field=("hours", "epochs"))
