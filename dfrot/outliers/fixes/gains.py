"""Norm gains: the source of most channel outliers, folded away exactly, or set aside as the paper does.

- fold: every gain becomes 1 and the weights that read it are multiplied: the same function, all channels.
- smooth: the same for outlying channels only: their gain becomes the norm's mean, the readers make up for it.
- one, mean: outlying gains become 1 or the norm's mean and nothing makes up for it: the strategy reported of
  arXiv 2505.21670, which changes the function. Whether the paper compensates or fine-tunes is not known.
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
        change = Change(exact=mode in ("fold", "smooth"))
        arch, told = context.arch, {}
        for layer, found in enumerate(context.report["layers"]):
            for norm in arch.spec.norms:
                channels = list(found["norms"].get(norm.name, {}).get("channels", ()))
                if not channels and mode != "fold":
                    continue
                name = arch.full(layer, norm.name)
                gain = context.subject.checkpoint.read(f"{name}.weight").float() + norm.offset
                target = self._target(gain, channels, mode)
                self._apply(change, context, layer, norm, gain, target, mode in ("fold", "smooth"))
                told[name] = channels if mode != "fold" else "all"
        if not told:
            raise UnsupportedError("fix gains: the report names no channel outlier behind a norm; nothing to change")
        change.account = {"norms": told}
        return change

    @staticmethod
    def _target(gain: Tensor, channels: list[int], mode: str) -> Tensor:
        if mode == "fold":
            return torch.ones_like(gain)
        target = gain.clone()
        others = torch.ones(len(gain), dtype=torch.bool)
        others[channels] = False
        target[channels] = 1.0 if mode == "one" else float(gain[others].abs().mean()) * gain[channels].sign()
        return target

    @staticmethod
    def _apply(
        change: Change, context: Context, layer: int, norm: Norm, gain: Tensor, target: Tensor, compensate: bool
    ) -> None:
        arch = context.arch
        stored = target - norm.offset
        change.edit(f"{arch.full(layer, norm.name)}.weight", replaced_by(stored))
        if compensate:
            ratio = gain / target
            for reader in norm.feeds:
                change.edit(f"{arch.full(layer, reader)}.weight", scaled_columns(ratio))
