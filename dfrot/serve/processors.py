"""processors"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class _Penalty:
    """OpenAI's penalties: by how often, and whether, a token stands in the text so far (the prompt not counted)."""

    def __init__(self, prompt: int, frequency: float, presence: float) -> None:
        self.prompt, self.frequency, self.presence = prompt, frequency, presence

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        counts = scores.new_zeros(scores.shape[-1]).index_add_(
            0, ids[0, self.prompt :], scores.new_ones(ids.shape[1] - self.prompt)
        )
        return scores - self.frequency * counts - self.presence * (counts > 0)


class _Bias:
    def __init__(self, bias: Mapping[int, float]) -> None:
        self.bias = bias

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for token, value in self.bias.items():
            scores[0, token] += value
        return scores
