"""Options of training and extraction, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dfrot.draft.training.settings import LossWeights, TrainSettings
from dfrot.stages.draft.settings import DataSettings, DraftSettings
from dfrot_cli.options import Common
from dfrot_cli.setting_options import options_of, settings_from

Function = TypeVar("Function", bound=Callable[..., Any])

OF_THE_DRAFT = (
    *("cross", "newest", "trained_head", "intermediate"),
    *("block_size", "num_layers", "warm", "draft_vocab", "quantize", "quantize_head"),
)
LOSS_WEIGHTS = {"feature": "weight_feature", "mid": "weight_mid", "decay": "loss_decay"}


def data_options(function: Function) -> Function:
    """What a draft is trained on, and what decides which features it needs."""
    return options_of(DataSettings)(options_of(DraftSettings, only=("arch", "select", "reads"))(function))


def draft_settings(common: Common, options: dict[str, Any]) -> DraftSettings:
    """The settings of a draft from the options of train or extract, which are taken out of `options`."""
    data = settings_from(DataSettings, options, seed=common.seed)
    weights = settings_from(LossWeights, options, LOSS_WEIGHTS)
    train = settings_from(TrainSettings, options, seed=common.seed, weights=weights)
    return settings_from(DraftSettings, options, data=data, train=train)
