"""Norm gains, the source of most channel outliers: folded into the weights exactly, or changed as the paper does.

- fold: every gain becomes 1 and the weights that read it are multiplied: the same function, all channels.
- smooth: the same for outlying channels only: their gain becomes the norm's mean, the readers compensate.
- one, mean: outlying gains become 1 or the norm's mean and nothing compensates. This is the strategy reported in
  arXiv 2505.21670, and it changes the function. The paper does not say whether it compensates or fine-tunes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.arch import Norm
from dfrot.errors import UnsupportedError
from dfrot.outliers.fixes.base import Change, Context, replaced_by, scaled_columns


class GainsFix:
    """Fix `gains`."""

    name = "gains"
    modes: tuple[str, ...] = ("fold", "smooth", "one", "mean")

    def plan(self, context: Context, mode: str) -> Change:
        """As `Fix.plan`."""
        compensate = mode in ("fold", "smooth")
        change = Change(exact=compensate)
        arch = context.arch
        changed: dict[str, object] = {}
        for layer, measured in enumerate(context.report["layers"]):
            for norm in arch.spec.norms:
                channels = list(measured["norms"].get(norm.name, {}).get("channels", ()))
                if not channels and mode != "fold":
                    continue
                name = arch.full(layer, norm.name)
                gain = context.subject.checkpoint.read(f"{name}.weight").float() + norm.offset
                target = _target_gain(gain, channels, mode)
                _edit_norm(change, context, layer, norm, gain, target, compensate)
                changed[name] = channels if mode != "fold" else "all"
        if not changed:
            raise UnsupportedError("fix gains: the report names no channel outlier behind a norm; nothing to change")
        change.account = {"norms": changed}
        return change


def _target_gain(gain: Tensor, channels: list[int], mode: str) -> Tensor:
    """The gain [hidden] that a norm shall have."""
    if mode == "fold":
        return torch.ones_like(gain)
    target = gain.clone()
    others = torch.ones(len(gain), dtype=torch.bool)
    others[channels] = False
    target[channels] = 1.0 if mode == "one" else float(gain[others].abs().mean()) * gain[channels].sign()
    return target


def _edit_norm(
    change: Change, context: Context, layer: int, norm: Norm, gain: Tensor, target: Tensor, compensate: bool
) -> None:
    """Give a norm its target gain; compensate: multiply the weights that read it by gain / target."""
    arch = context.arch
    change.edit(f"{arch.full(layer, norm.name)}.weight", replaced_by(target - norm.offset))
    if compensate:
        for reader in norm.feeds:
            change.edit(f"{arch.full(layer, reader)}.weight", scaled_columns(gain / target))
