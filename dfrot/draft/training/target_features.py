"""target_features"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dfrot.draft.attention_entropy import row_entropy
from dfrot.draft.feature_selection import FeatureChooser


@dataclass
class TargetFeatures:
    """last [B, S, d] behind the final norm; mid [B, S, d] and its layer int64 [B, 1 or S], or None; aux [B, S, 3 d]
    or None: outputs of three decoder layers side by side. With images: embeddings [B, S, d], text and images merged,
    and kept int64 [B, n], the positions that become slots of the draft."""

    last: Tensor
    mid: Tensor | None = None
    layer: Tensor | None = None
    aux: Tensor | None = None
    embeddings: Tensor | None = None
    kept: Tensor | None = None


def _measure(chooser: FeatureChooser) -> Any:
    def observe(
        layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, causal: bool, cap: float | None
    ) -> None:
        if chooser.wants_entropy(layer):
            chooser.measured(*row_entropy(query, key, mask, scale, causal, cap=cap))

    return observe


def _offer(chooser: FeatureChooser, layer: int) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        chooser.offer(layer, output[0] if isinstance(output, tuple) else output)

    return hook
